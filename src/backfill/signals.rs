//! Reads what a backfill looks at before it goes on.

use super::throttle::{Limits, Reading, Signals};
use crate::catalog::{self, Change};
use crate::error::Error;
use crate::guc;
use crate::pg::class;
use crate::pg::gate::as_owner;
use crate::pg::subxact::catch;

const REPLICATION_LAG: &str = "select coalesce(nullif(application_name, ''), pid::text),
        greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, flush_lsn, write_lsn, sent_lsn, '0/0')), 0)::bigint
    from pg_stat_replication where state <> 'backup' order by 2 desc limit 1";

const SLOT_BACKLOG: &str = "select slot_name::text,
        greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
    from pg_replication_slots where restart_lsn is not null and wal_status is distinct from 'lost'
    order by 2 desc limit 1";

const CHECKPOINT_DISTANCE: &str = "select 'checkpoint'::text,
        greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), redo_lsn), 0)::bigint
    from pg_control_checkpoint()";

/// Reads all signals, for a change.
pub fn read(change: &Change) -> Signals {
    let limits = limits();
    let or_off = |limit: u64, sql: &str| if limit == 0 { Ok(None) } else { caught(|| catalog::number(sql)) };
    Signals {
        replication_lag: or_off(limits.replication_lag, REPLICATION_LAG),
        slot_backlog: or_off(limits.slot_backlog, SLOT_BACKLOG),
        checkpoint_distance: or_off(limits.checkpoint_distance, CHECKPOINT_DISTANCE)
            .map(|found| found.map_or(0, |(_, bytes)| bytes)),
        condition: change.run_if.as_deref().map(|sql| caught(|| condition(change, sql))).transpose(),
    }
}

/// The limits that are set.
pub fn limits() -> Limits {
    Limits {
        replication_lag: guc::max_replication_lag(),
        slot_backlog: guc::max_slot_backlog(),
        checkpoint_distance: (crate::pg::max_wal_size() as f64 * guc::max_checkpoint_distance()) as u64,
    }
}

fn caught<T>(f: impl FnOnce() -> Result<T, Error>) -> Reading<T> {
    match catch(f) {
        Ok(result) => result.map_err(|error| error.message()),
        Err(error) if error.is_interrupt() => error.rethrow(),
        Err(error) => Err(error.message()),
    }
}

/// Evaluates a change's condition with the rights of the table's owner.
pub fn condition(change: &Change, sql: &str) -> Result<bool, Error> {
    let owner = class::owner(change.relation).ok_or_else(|| Error::TableGone { change: change.name.clone() })?;
    // Neither NULL nor no row says that all is well.
    let mut holds = false;
    as_owner(owner, |gate| {
        gate.for_each(&format!("select ({sql}\n)::boolean"), [], std::iter::once([]), |row| {
            holds = row.get(1)?.unwrap_or(false);
            Ok(())
        })
    })?;
    Ok(holds)
}
