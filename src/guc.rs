//! The settings.

use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(200);
static LOCK_PATIENCE: GucSetting<i32> = GucSetting::<i32>::new(60);
static MAX_SOURCE_LENGTH: GucSetting<i32> = GucSetting::<i32>::new(64);
static GUARD: GucSetting<bool> = GucSetting::<bool>::new(true);
static USAGE_MAX: GucSetting<i32> = GucSetting::<i32>::new(1000);
static USAGE_SAVE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static QUIET_PERIOD: GucSetting<i32> = GucSetting::<i32>::new(3600);

/// How long one attempt to lock a table may make other sessions queue behind it.
pub fn lock_timeout() -> Duration {
    Duration::from_millis(LOCK_TIMEOUT.get().unsigned_abs().into())
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
            c"Each takes 1,240 bytes of shared memory. When there are more, the one not seen for longest goes.",
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
    crate::pg::reserve_settings();
}
