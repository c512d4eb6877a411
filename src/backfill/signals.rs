//! Reads what a backfill looks at before it goes on.

use pgrx::spi::{Spi, SpiResult};

use super::throttle::{Limits, Reading, Signals};
use crate::catalog::{Change, as_extension};
use crate::ddl::as_owner;
use crate::error::Error;
use crate::guc;
use crate::pg::lock::LockMode;
use crate::pg::subxact::catch;
use crate::pg::table::Table;

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
    let or_off = |limit: u64, sql: &str| if limit == 0 { Ok(None) } else { caught(|| number(sql)) };
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

/// A name and a number, if there is a row.
fn number(sql: &str) -> Result<Option<(String, u64)>, Error> {
    as_extension(|| {
        Spi::connect(|client| {
            let Some(row) = client.select(sql, Some(1), &[])?.next() else { return Ok(None) };
            let name: Option<String> = row.get(1)?;
            let bytes: Option<i64> = row.get(2)?;
            Ok(Some((name.unwrap_or_default(), bytes.unwrap_or_default().unsigned_abs())))
        })
        .map_err(|error: pgrx::spi::SpiError| error.into())
    })
}

/// Evaluates a change's condition with the rights of the table's owner.
pub fn condition(change: &Change, sql: &str) -> Result<bool, Error> {
    let owner = Table::open(change.relation, LockMode::AccessShare)
        .map(|table| table.owner())
        .ok_or_else(|| Error::TableGone { change: change.name.clone() })?;
    as_owner(owner, || {
        let found: SpiResult<Option<bool>> = Spi::connect(|client| {
            client.select(format!("select ({sql}\n)::boolean").as_str(), Some(1), &[])?.first().get(1)
        });
        // Neither NULL nor no row says that all is well.
        Ok(found?.unwrap_or(false))
    })
}
