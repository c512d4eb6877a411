//! A canary release: 1 %, 10 %, 50 % and then all requests go to version 2, and `zdd.usage` shows both side by side: no
//! error, and for each statement its row.

use pg_zdd_cluster::Result;
use pg_zdd_demo::app::Version;

use crate::stage::{CONNECTIONS, CONTRACT, Pace, Stage};

pub fn play(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("canary release", pace)?;
    stage.expand()?;
    stage.give_new(0);
    stage.scale_new(CONNECTIONS)?;
    let mut before = 0.0;
    for percent in [1, 10, 50, 100] {
        stage.run("SELECT zdd.reset_usage('address.street')")?;
        stage.give_new(percent);
        stage.watch(&format!("{percent} % to version 2"))?;
        stage.usage()?;
        let (old, new) = (stage.used(Version::One, "old")?, stage.used(Version::Two, "new")?);
        for (version, used) in [(1, &old), (2, &new)] {
            println!("  version {version}: {} statements, {} rows, {} errors", used.statements, used.rows, used.errors);
            // Every statement is about one row. Those that are under way are counted, and their rows are not yet.
            if used.errors > 0 || used.statements.abs_diff(used.rows) > CONNECTIONS as u64 {
                return Err(format!("zdd.usage saw something wrong with version {version}").into());
            }
        }
        let share = new.statements as f64 / (old.statements + new.statements).max(1) as f64;
        println!("  {:.1} % of what zdd.usage saw came from version 2\n", share * 100.0);
        if share <= before {
            return Err(format!("zdd.usage saw a share of {share} after {before}").into());
        }
        before = share;
        if percent < 100 {
            stage.refused(CONTRACT, "application \"shop 1.0\"")?;
        }
    }
    stage.scale_old(0)?;
    stage.contract_when_quiet()?;
    stage.watch("contracted")?;
    stage.finish()
}
