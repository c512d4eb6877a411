//! The settings.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(200);
static LOCK_PATIENCE: GucSetting<i32> = GucSetting::<i32>::new(60);
static MAX_SOURCE_LENGTH: GucSetting<i32> = GucSetting::<i32>::new(64);
static GUARD: GucSetting<bool> = GucSetting::<bool>::new(true);
static USAGE_MAX: GucSetting<i32> = GucSetting::<i32>::new(1000);
static USAGE_SAVE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static QUIET_PERIOD: GucSetting<i32> = GucSetting::<i32>::new(3600);
static MAX_REPLICATION_LAG: GucSetting<i32> = GucSetting::<i32>::new(64);
static MAX_SLOT_BACKLOG: GucSetting<i32> = GucSetting::<i32>::new(1024);
static MAX_CHECKPOINT_DISTANCE: GucSetting<f64> = GucSetting::<f64>::new(1.1);
static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(8);
static AUTO_RESUME: GucSetting<bool> = GucSetting::<bool>::new(true);
static LAUNCHER_NAPTIME: GucSetting<i32> = GucSetting::<i32>::new(60);

/// How long one attempt to lock a table may make other sessions queue behind it.
pub fn lock_timeout() -> Duration {
    Duration::from_millis(LOCK_TIMEOUT.get().unsigned_abs().into())
}

/// A duration as settings take it.
pub fn milliseconds(duration: Duration) -> CString {
    CString::new(format!("{}ms", duration.as_millis().max(1))).unwrap_or_default()
}

/// How long such attempts are repeated.
pub fn lock_patience() -> Duration {
    Duration::from_secs(LOCK_PATIENCE.get().unsigned_abs().into())
}

/// The length in bytes beyond which a source value counts as unmatched, for new changes.
pub fn max_source_length() -> usize {
    MAX_SOURCE_LENGTH.get().unsigned_abs() as usize * 1024
}

/// Whether DDL that would break a change is refused.
pub fn guard() -> bool {
    GUARD.get()
}

/// How long an old column must have been out of use before it is dropped.
pub fn quiet_period() -> Duration {
    Duration::from_secs(QUIET_PERIOD.get().unsigned_abs().into())
}

/// How many users of how many changes can be told apart.
pub fn usage_max() -> usize {
    USAGE_MAX.get().unsigned_abs() as usize
}

/// How often usage is saved.
pub fn usage_save_interval() -> Duration {
    Duration::from_secs(USAGE_SAVE_INTERVAL.get().unsigned_abs().into())
}

/// How many bytes of WAL a standby may lag behind before backfills wait; 0 for no limit.
pub fn max_replication_lag() -> u64 {
    u64::from(MAX_REPLICATION_LAG.get().unsigned_abs()) << 20
}

/// How many bytes of WAL a replication slot may hold back before backfills wait; 0 for no limit.
pub fn max_slot_backlog() -> u64 {
    u64::from(MAX_SLOT_BACKLOG.get().unsigned_abs()) << 20
}

/// How much WAL there may be since the last checkpoint began before backfills wait, in units of `max_wal_size`; 0 for no
/// limit.
pub fn max_checkpoint_distance() -> f64 {
    MAX_CHECKPOINT_DISTANCE.get()
}

/// How many background workers the server has for all changes.
pub fn max_workers() -> u32 {
    MAX_WORKERS.get().unsigned_abs()
}

/// Whether the launcher resumes unfinished work.
pub fn auto_resume() -> bool {
    AUTO_RESUME.get()
}

/// How long the launcher sleeps between two rounds through the databases.
pub fn launcher_naptime() -> Duration {
    Duration::from_secs(LAUNCHER_NAPTIME.get().unsigned_abs().into())
}

/// Registers the settings.
pub fn register() {
    GucRegistry::define_int_guc(
        c"zdd.lock_timeout",
        c"Longest time that one attempt to lock a table for a change may block other sessions.",
        c"Attempts are repeated, with pauses, for zdd.lock_patience.",
        &LOCK_TIMEOUT,
        1,
        60_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"zdd.lock_patience",
        c"How long attempts to lock a table for a change are repeated.",
        c"",
        &LOCK_PATIENCE,
        0,
        86_400,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"zdd.max_source_length",
        c"Old values longer than this are not split but count as unmatched.",
        c"Each change keeps the value that was in force when it was made.",
        &MAX_SOURCE_LENGTH,
        1,
        1024 * 1024 - 1,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_bool_guc(
        c"zdd.guard",
        c"Refuses DDL that would break an active change.",
        c"",
        &GUARD,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"zdd.quiet_period",
        c"How long an old column must have been out of use, or fenced, before a contract drops it.",
        c"",
        &QUIET_PERIOD,
        0,
        31_536_000,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    // They mean something only to a server that preloads us, and one of them cannot be made later.
    if crate::pg::shmem::is_preloading() {
        GucRegistry::define_int_guc(
            c"zdd.usage_max",
            c"How many entries zdd.usage can have: one per change, side, role and application.",
            c"Each takes 1,192 bytes of shared memory. When there are more, the role that has most makes room.",
            &USAGE_MAX,
            10,
            100_000,
            GucContext::Postmaster,
            GucFlags::empty(),
        );
        GucRegistry::define_int_guc(
            c"zdd.usage_save_interval",
            c"How often zdd.usage is saved, so that a crash does not lose it.",
            c"",
            &USAGE_SAVE_INTERVAL,
            1,
            86_400,
            GucContext::Sighup,
            GucFlags::UNIT_S,
        );
    }
    GucRegistry::define_int_guc(
        c"zdd.max_replication_lag",
        c"Backfills wait while a standby lags behind by more WAL than this.",
        c"0 switches it off.",
        &MAX_REPLICATION_LAG,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"zdd.max_slot_backlog",
        c"Backfills wait while a replication slot holds back more WAL than this.",
        c"0 switches it off.",
        &MAX_SLOT_BACKLOG,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_float_guc(
        c"zdd.max_checkpoint_distance",
        c"Backfills wait while there is more WAL since the last checkpoint than so many times max_wal_size.",
        c"0 switches it off. Checkpoints that keep up stay below 1.",
        &MAX_CHECKPOINT_DISTANCE,
        0.0,
        10.0,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"zdd.max_workers",
        c"How many background workers the server has for all changes of all databases.",
        c"A role that is not a superuser gets at most half of them, rounded up, for the changes of its tables in a database.",
        &MAX_WORKERS,
        1,
        1024,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"zdd.auto_resume",
        c"Resumes unfinished backfills and contracts after a restart, a crash or a promotion.",
        c"Needs pg_zdd in shared_preload_libraries. Switch it off on clones of a server.",
        &AUTO_RESUME,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"zdd.launcher_naptime",
        c"How long the launcher sleeps between two rounds through the databases.",
        c"",
        &LAUNCHER_NAPTIME,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    crate::pg::reserve_settings();
}
