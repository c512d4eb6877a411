//! A rolling update: instances of version 2 take the place of instances of version 1, one by one. The contract goes
//! through as soon as the database itself has not seen version 1 for a while.

use pg_zdd_cluster::Result;
use pg_zdd_demo::app::Version;

use crate::stage::{CONNECTIONS, CONTRACT, Pace, Stage};

pub fn play(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("rolling update", pace)?;
    stage.expand()?;
    for replaced in 1..=CONNECTIONS {
        stage.scale_new(replaced)?;
        stage.scale_old(CONNECTIONS - replaced)?;
        stage.watch(&format!("{} of version 1, {replaced} of version 2", CONNECTIONS - replaced))?;
        if replaced == 1 {
            stage.usage()?;
            stage.refused(CONTRACT, "application \"shop 1.0\"")?;
        }
    }
    stage.usage()?;
    let of_old = stage.used(Version::One, "old")?;
    stage.contract_when_quiet()?;
    stage.watch("contracted")?;
    if of_old.statements == 0 {
        return Err("zdd.usage has not seen version 1".into());
    }
    stage.finish()
}
