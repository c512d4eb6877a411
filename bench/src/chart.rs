//! Charts.
use crate::{backfill::Backfill, lifecycle::Lifecycle, writes::Writes};
use pg_zdd_cluster::Result;
pub fn write(_name: &str, _svg: &str) -> Result<()> {
    Ok(())
}
pub fn rows_per_second(_: &Backfill) -> String {
    String::new()
}
pub fn per_row_cost(_: &Writes) -> String {
    String::new()
}
pub fn latency(_: &Lifecycle) -> String {
    String::new()
}
