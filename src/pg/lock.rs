//! Locks on relations and waiting.

use std::time::Duration;

use pgrx::pg_sys;

/// How strong a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// As SELECT takes it.
    AccessShare,
    /// As UPDATE takes it.
    RowExclusive,
    /// As DROP COLUMN takes it: nothing goes on.
    AccessExclusive,
}

impl LockMode {
    pub(super) fn number(self) -> pg_sys::LOCKMODE {
        (match self {
            Self::AccessShare => pg_sys::AccessShareLock,
            Self::RowExclusive => pg_sys::RowExclusiveLock,
            Self::AccessExclusive => pg_sys::AccessExclusiveLock,
        }) as pg_sys::LOCKMODE
    }
}

/// How strong a lock of a row that is going to be updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowLock {
    /// Goes together with the locks that foreign keys take on the rows that they refer to.
    NoKeyUpdate,
    /// Goes together with none: what foreign keys may refer to changes.
    Update,
}

impl RowLock {
    pub(super) fn mode(self) -> pg_sys::LockTupleMode::Type {
        match self {
            Self::NoKeyUpdate => pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
            Self::Update => pg_sys::LockTupleMode::LockTupleExclusive,
        }
    }

    /// As SELECT ... FOR takes it.
    pub fn as_sql(self) -> &'static str {
        match self {
            Self::NoKeyUpdate => "no key update",
            Self::Update => "update",
        }
    }
}

/// How long a session waits for a lock before it looks for a deadlock, which it then is the victim of.
pub fn deadlock_timeout() -> Duration {
    // SAFETY: reads a setting.
    Duration::from_millis(unsafe { pg_sys::DeadlockTimeout }.max(0) as u64)
}

/// Locks a relation and all its partitions or inheritance children until the end of the transaction, waiting as
/// `lock_timeout` allows. Returns them, the relation first.
pub fn lock_tree(relation: pg_sys::Oid, mode: LockMode) -> Vec<pg_sys::Oid> {
    // SAFETY: locks by OID need no relation to exist.
    unsafe { pg_sys::LockRelationOid(relation, mode.number()) };
    members(relation, mode.number())
}

/// The relation and all its partitions or inheritance children, unlocked: to be looked at, not relied on. Empty when it is
/// gone.
pub fn tree(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    if !super::table::Table::exists(relation) {
        return Vec::new();
    }
    members(relation, pg_sys::NoLock as pg_sys::LOCKMODE)
}

fn members(relation: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> Vec<pg_sys::Oid> {
    // SAFETY: the list is one of OIDs.
    unsafe { super::oids_of(super::ffi::find_all_inheritors(relation, mode)) }
}

/// A lock of the session, which outlives transactions: held by exactly one session at a time, and by none when that
/// session is gone, however it went. So it tells who works on what, where a table could only tell who once did. It is an
/// advisory lock but for its type, so that SQL cannot take it: no application gets in the way, by accident or on purpose.
pub struct SessionLock(pg_sys::LOCKTAG);

impl SessionLock {
    /// Takes the lock with these two keys, if it is free. It shows in pg_locks with these as classid and objid.
    pub fn take(class: u32, key: u32) -> Option<SessionLock> {
        let tag = pg_sys::LOCKTAG {
            // SAFETY: reads a backend variable.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: class,
            locktag_field3: key,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        // SAFETY: the tag is complete.
        let taken = unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, true, true) };
        match taken {
            pg_sys::LockAcquireResult::LOCKACQUIRE_OK => Some(SessionLock(tag)),
            pg_sys::LockAcquireResult::LOCKACQUIRE_ALREADY_HELD => {
                // Held by this session already, which must not release it twice.
                // SAFETY: takes back what was just taken.
                unsafe { pg_sys::LockRelease(&tag, pg_sys::ExclusiveLock as i32, true) };
                None
            }
            _ => None,
        }
    }

    /// Whether nobody has given it up: SQL can, by `pg_advisory_unlock_all`. Then it is taken again, if it is free.
    pub fn is_held(&self) -> bool {
        // SAFETY: the tag is complete; what is taken a second time is released at once.
        unsafe {
            let taken = pg_sys::LockAcquire(&self.0, pg_sys::ExclusiveLock as i32, true, true);
            let is_held = taken == pg_sys::LockAcquireResult::LOCKACQUIRE_ALREADY_HELD;
            if is_held {
                pg_sys::LockRelease(&self.0, pg_sys::ExclusiveLock as i32, true);
            }
            is_held
        }
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        // SAFETY: taken above and released once, also while an error unwinds: a session's locks outlive its transactions.
        unsafe { pg_sys::LockRelease(&self.0, pg_sys::ExclusiveLock as i32, true) };
    }
}

/// Answers cancel requests and shutdowns.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// What pg_stat_activity calls a sleep.
#[cfg(any(feature = "pg17", feature = "pg18"))]
fn wait_event() -> u32 {
    static WAIT_EVENT: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // SAFETY: PostgreSQL copies the name; asked for it again, by this or another process, it gives the same number.
    *WAIT_EVENT.get_or_init(|| unsafe { pg_sys::WaitEventExtensionNew(c"ZddSleep".as_ptr()) })
}

#[cfg(not(any(feature = "pg17", feature = "pg18")))]
fn wait_event() -> u32 {
    pg_sys::PG_WAIT_EXTENSION
}

/// Sleeps, answering cancel requests and shutdowns.
pub fn sleep(duration: Duration) {
    let deadline = std::time::Instant::now() + duration;
    loop {
        check_for_interrupts();
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return;
        }
        // SAFETY: the backend's own latch; it is reset before interrupts are looked at.
        unsafe {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                left.as_millis().max(1) as core::ffi::c_long,
                wait_event(),
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
}
