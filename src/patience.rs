//! Waiting for locks, for a short while at a time, so that nobody queues up behind who waits; and who holds them.

use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

use crate::error::Error;
use crate::guc;
use crate::pg::class;
use crate::pg::gate::as_owner;
use crate::pg::lock;
use crate::pg::security::query_strings;
use crate::pg::session::Session;
use crate::pg::settings::with_settings;
use crate::pg::subxact;
use crate::pg::worker;

/// Attempts that were all in vain.
pub struct GaveUp {
    pub attempts: u32,
    pub patience: Duration,
    /// The last one's error.
    pub error: Error,
}

/// Does what may have to wait for locks, for `zdd.lock_timeout` at a time and for so long in all. An attempt that fails leaves
/// nothing behind, its locks included. `clear_the_way` is called between attempts.
pub fn with_patience<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, Error>,
    clear_the_way: impl Fn() -> Result<(), Error>,
) -> Result<Result<T, GaveUp>, Error> {
    let timeout = guc::lock_timeout();
    let (lock_timeout, deadlock_timeout) = (guc::milliseconds(timeout), guc::milliseconds(timeout / 2));
    // PostgreSQL cancels an autovacuum that is in the way when it looks for deadlocks, which must come first.
    let settings = [(c"lock_timeout", lock_timeout.as_c_str()), (c"deadlock_timeout", deadlock_timeout.as_c_str())];
    let start = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let error = match subxact::attempt(|| with_settings(&settings, &mut attempt)) {
            Err(error) if error.is_about_locks() => error,
            done => return done.map(Ok),
        };
        if start.elapsed() >= patience {
            return Ok(Err(GaveUp { attempts, patience, error }));
        }
        clear_the_way()?;
        lock::sleep(backoff(attempts).min(patience.saturating_sub(start.elapsed())));
    }
}

/// The same over transactions: nothing is held between two attempts, each of which is a transaction of its own. For
/// `zdd.lock_patience` in all, or `forever`. `waits` hears of each error.
pub fn across_transactions<T>(
    session: &Session,
    forever: bool,
    mut attempt: impl FnMut() -> Result<T, Error>,
    mut waits: impl FnMut(&Error) -> Result<(), Error>,
) -> Result<T, Error> {
    let (start, patience) = (Instant::now(), guc::lock_patience());
    for attempts in 1.. {
        match session.transaction(&mut attempt) {
            Err(error) if error.is_transient() && (forever || start.elapsed() < patience) => waits(&error)?,
            Err(Error::LockTimeout { relation, blockers, .. }) => {
                return Err(Error::LockTimeout { relation, attempts, patience, blockers });
            }
            done => return done,
        }
        session.sleep(backoff(attempts))?;
    }
    Err(Error::Spi("out of attempts".into()))
}

/// The pause after an attempt: longer each time, and never the same for two sessions.
fn backoff(attempt: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(2);
    let longest = (FIRST * 2_u32.pow(attempt.min(8) - 1)).min(MOST);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let jitter = f64::from(now.subsec_nanos() % 1_000_000) / 1_000_000.0;
    longest.mul_f64(0.5 + jitter / 2.0)
}

/// Who holds locks on these tables, a line each, as far as the current role may see what they run.
pub fn holders_of_tables(relation: pg_sys::Oid, members: &[pg_sys::Oid]) -> Result<Vec<String>, Error> {
    // A background worker could see more, but what it says is for the table's owner.
    let held = "k.locktype = 'relation' and k.relation = any ($1)";
    match class::owner(relation).filter(|_| worker::is_background_worker()) {
        Some(owner) => as_owner(owner, |_| holders(held, &[members.to_vec().into()])),
        None => holders(held, &[members.to_vec().into()]),
    }
}

/// Who holds the lock of these keys, see [`lock::lock_key`].
pub fn holders_of_key(class: u32, key: u32) -> Result<Vec<String>, Error> {
    let keys = [pg_sys::Oid::from(class).into(), pg_sys::Oid::from(key).into()];
    holders("k.locktype = 'userlock' and k.classid = $1 and k.objid = $2", &keys)
}

fn holders(held: &str, args: &[DatumWithOid]) -> Result<Vec<String>, Error> {
    let sql = format!(
        "select distinct case when k.pid is null then
             format('prepared transaction %L of role %s, prepared at %s', p.gid, p.owner, p.prepared)
         when a.state is null then
             format('pid %s, %s', k.pid, coalesce(a.usename::text, a.backend_type, 'unknown'))
         else
             format('pid %s, %s, %s since %s: %s', k.pid, a.usename, a.state, a.xact_start, left(a.query, 200))
         end
     from pg_locks as k
     left join pg_stat_activity as a on a.pid = k.pid
     -- A prepared transaction has no pid; its lock on its own id leads to its name.
     left join pg_locks as t on k.pid is null and t.pid is null and t.virtualtransaction = k.virtualtransaction
         and t.locktype = 'transactionid' and t.mode = 'ExclusiveLock' and t.granted
     left join pg_prepared_xacts as p on p.transaction = t.transactionid
     where k.granted and {held}
         and k.database = (select d.oid from pg_database as d where d.datname = current_database())
         and k.pid is distinct from pg_backend_pid()"
    );
    query_strings(&sql, args)
}
