//! Blue and green: both versions stand ready, and one switch turns all requests from one to the other. Then back, and
//! back again from behind the fence.

use pg_zdd_cluster::Result;

use crate::stage::{CONNECTIONS, FENCE, Pace, Stage, UNFENCE};

pub fn play(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("blue-green", pace)?;
    stage.expand()?;
    stage.give_new(0);
    stage.scale_new(CONNECTIONS)?;
    stage.give_new(100);
    stage.watch("switched to green")?;
    stage.give_new(0);
    stage.watch("switched back to blue")?;
    stage.usage()?;
    stage.give_new(100);
    stage.scale_old(0)?;
    stage.watch("switched to green again, blue is off")?;
    stage.run(FENCE)?;
    stage.watch("fenced")?;
    // Something is wrong with green after all: the old column comes back before blue does.
    stage.run(UNFENCE)?;
    stage.scale_old(CONNECTIONS)?;
    stage.give_new(0);
    stage.watch("unfenced, back to blue")?;
    stage.give_new(100);
    stage.scale_old(0)?;
    stage.run(FENCE)?;
    stage.watch("green, fenced again")?;
    stage.usage()?;
    stage.contract_when_quiet()?;
    stage.watch("contracted")?;
    stage.finish()
}
