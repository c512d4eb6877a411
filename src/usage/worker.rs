//! The process that saves usage now and then.

use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};

use super::file;
use crate::guc;

/// Has the server start it. Called by `_PG_init` while the server preloads us.
pub fn register() {
    BackgroundWorkerBuilder::new("pg_zdd usage saver")
        .set_type("pg_zdd usage saver")
        .set_library("pg_zdd")
        .set_function("zdd_save_usage")
        // No database, but a place in pg_stat_activity.
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(Duration::from_secs(10)))
        .load();
}

/// Saves at an interval. What comes after the last time is saved when the server ends, by its last process.
pub fn run() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi(None, None);
    while BackgroundWorker::wait_latch(Some(guc::usage_save_interval())) {
        if BackgroundWorker::sighup_received() {
            crate::pg::reload_settings();
        } else {
            file::save();
        }
    }
    crate::pg::worker::end_for_now();
}
