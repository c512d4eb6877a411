//! pg_zdd: zero-downtime column splits inside PostgreSQL.

use pgrx::{extension_sql_file, pg_guard};

mod api;
mod archive;
mod backfill;
mod binding;
mod catalog;
mod census;
mod contract;
mod ddl;
mod error;
mod guard;
mod guc;
mod patience;
mod pg;
mod phase;
mod plans;
mod rule;
mod sync;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod usage;
mod verify;
mod worker;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/catalog.sql", name = "catalog", bootstrap);
extension_sql_file!("../sql/views.sql", name = "views", requires = ["catalog", api::conflicts]);
extension_sql_file!("../sql/sync.sql", name = "sync", requires = ["catalog"]);
extension_sql_file!("../sql/comments.sql", name = "comments", requires = ["views", "usage"], finalize);
extension_sql_file!("../sql/guard.sql", name = "guard", requires = [api::check_move, "sync"]);
extension_sql_file!(
    "../sql/usage.sql",
    name = "usage",
    requires = ["catalog", api::usage_of_change, api::usage_info, api::reset_usage]
);
extension_sql_file!("../sql/grants.sql", name = "grants", requires = ["views", "usage", "guard"]);

/// Called when the library is loaded.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::disable_backtraces();
    guc::register();
    pg::outside::install();
    if pg::shmem::is_preloading() {
        pg::shmem::install();
        pg::hook::install();
    }
    // Whatever they wrote meanwhile would be lost.
    if pg::shmem::is_preloading() && !pg::worker::is_upgrading() {
        usage::worker::register();
        worker::register_launcher();
    }
}

/// Needed by `cargo pgrx test`.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to set up.
    pub fn setup(_options: Vec<&str>) {}

    /// No settings needed.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![]
    }
}
