//! Giving a change up, at every stage: version 1 goes on as if nothing had been, with all that version 2 wrote.

use pg_zdd_cluster::Result;

use crate::stage::{CONNECTIONS, FENCE, Pace, ROLLBACK, Stage};
use pg_zdd_demo::shop::SPLIT;

pub fn play(pace: Pace) -> Result<()> {
    expanding(pace)?;
    expanded(pace)?;
    fenced(pace)
}

fn expanding(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("rollback while expanding", pace)?;
    stage.run(SPLIT)?;
    // Rows that are not split yet read as NULL: version 2 may only write new ones.
    stage.early.scale(&stage.cluster, 1)?;
    stage.watch("expanding, version 2 inserts")?;
    stage.usage()?;
    stage.early.scale(&stage.cluster, 0)?;
    stage.run(ROLLBACK)?;
    stage.watch("rolled back")?;
    stage.phase("rolled_back")?;
    stage.finish()
}

fn expanded(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("rollback while expanded", pace)?;
    stage.expand()?;
    stage.scale_new(CONNECTIONS)?;
    stage.watch("expanded, both versions")?;
    stage.usage()?;
    stage.scale_new(0)?;
    stage.run(ROLLBACK)?;
    stage.watch("rolled back")?;
    stage.phase("rolled_back")?;
    stage.finish()
}

/// From behind the fence, in one step: neither version can run while its columns come and go. Who cannot have that
/// unfences first, as in blue-green.
fn fenced(pace: Pace) -> Result<()> {
    let mut stage = Stage::new("rollback while fenced", pace)?;
    stage.expand()?;
    stage.scale_new(CONNECTIONS)?;
    stage.scale_old(0)?;
    stage.run(FENCE)?;
    stage.watch("fenced, version 2 alone")?;
    stage.usage()?;
    stage.scale_new(0)?;
    stage.run(ROLLBACK)?;
    stage.scale_old(CONNECTIONS)?;
    stage.watch("rolled back")?;
    stage.phase("rolled_back")?;
    stage.finish()
}
