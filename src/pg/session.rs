//! Work that commits as it goes: in a procedure that was called, or in a background worker.

use std::ffi::CString;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::{PgTryBuilder, pg_sys};

use super::lock;
use super::memory::Memory;
use super::outside::{Caller, Statement};
use super::settings::set_local;
use super::subxact::{Caught, catch};
use crate::error::Error;

/// The right to commit.
pub struct Session {
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An SPI connection that is not atomic; always inside a transaction.
    Procedure,
    /// A worker of its own; outside of transactions but for those that it begins.
    Worker,
}

impl Session {
    /// Begins a procedure that was called with `fcinfo`; an error inside a transaction block, where it cannot commit.
    pub fn of_procedure(name: &'static str, fcinfo: pg_sys::FunctionCallInfo) -> Result<Session, Error> {
        // SAFETY: PostgreSQL passes a valid call info; for CALL its context is a CallContext node.
        let atomic = unsafe {
            let context = (*fcinfo).context;
            context.is_null()
                || super::tag(context) != pg_sys::NodeTag::T_CallContext
                || (*context.cast::<pg_sys::CallContext>()).atomic
        };
        if atomic {
            return Err(Error::InTransactionBlock { procedure: name });
        }
        // SAFETY: paired with SPI_finish in `drop`; after an error the abort of the transaction cleans up.
        unsafe { pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32) };
        Ok(Session { kind: Kind::Procedure })
    }

    /// The session of a background worker that is connected to a database.
    pub(super) fn of_worker() -> Session {
        Session { kind: Kind::Worker }
    }

    /// Whether nobody is there to read messages.
    pub fn is_worker(&self) -> bool {
        self.kind == Kind::Worker
    }

    /// Runs `f` and commits it, or rolls it back if it fails; PostgreSQL's errors are returned too. Between two calls no
    /// snapshot is held.
    pub fn transaction<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        // SAFETY: the snapshot is pushed and popped here, around `f`; ending the transaction is legal because a procedure's
        // connection is not atomic, every nested connection has been closed by then, and a worker's transaction is its own.
        unsafe {
            if self.kind == Kind::Worker {
                // A client's statement would have one of its own: now() moves on.
                pg_sys::SetCurrentStatementStartTimestamp();
                pg_sys::StartTransactionCommand();
            }
            // What is read under a lock must be what is there then, whatever the isolation of the caller's other transactions.
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let result = catch(f).unwrap_or_else(|error| Err(Error::Caught(error)));
            pg_sys::PopActiveSnapshot();
            match (&result, self.kind) {
                (Ok(_), Kind::Procedure) => caught(|| pg_sys::SPI_commit())?,
                (Err(_), Kind::Procedure) => pg_sys::SPI_rollback(),
                (Ok(_), Kind::Worker) => commit()?,
                (Err(_), Kind::Worker) => pg_sys::AbortCurrentTransaction(),
            }
            result
        }
    }

    /// The same, but the commit waits for neither the disk nor a standby: for what costs no more than to be done again, if
    /// a crash of the server loses it.
    pub fn asynchronous_transaction<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.transaction(|| {
            set_local(c"synchronous_commit", c"off");
            f()
        })
    }

    /// Sleeps between transactions. A cancel request is returned as an error.
    pub fn sleep(&self, duration: Duration) -> Result<(), Error> {
        caught(|| lock::sleep(duration)).inspect_err(|_| {
            // SAFETY: nothing but the sleep has run since the last transaction ended.
            unsafe {
                match self.kind {
                    Kind::Procedure => pg_sys::SPI_rollback(),
                    Kind::Worker => pg_sys::AbortCurrentTransaction(),
                }
            }
        })
    }

    /// Runs all that a worker does, transactions and what is between them, where a cancel request may come too: its error is
    /// returned.
    pub fn whole<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        caught(f).unwrap_or_else(|error| {
            // SAFETY: a worker's transactions are its own; outside of one this does nothing.
            unsafe { pg_sys::AbortCurrentTransaction() };
            Err(error)
        })
    }

    /// Runs one statement that begins transactions of its own, such as VACUUM, as a client of this role would. Only a worker
    /// can. What such statements evaluate of users PostgreSQL itself restricts to the table's owner.
    pub fn top_level(&self, role: pg_sys::Oid, sql: &str) -> Result<(), Error> {
        let statement = self.transaction(|| Statement::of(Caller::of_worker(role)))?;
        let _role = super::security::become_role(role);
        let sql = CString::new(sql).map_err(|error| Error::Spi(error.to_string()))?;
        // SAFETY: as exec_simple_query does it for a client: a transaction command, one parsed statement, a portal of its
        // own, run as top level, which is what such statements demand; all of it ends with the transaction.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            // The statement must outlive the transactions that it ends.
            let memory = Memory::long_lived();
            memory.make_current();
            let run = || {
                let statements = pg_sys::pg_parse_query(sql.as_ptr());
                let statement = (*(*statements).elements).ptr_value.cast::<pg_sys::RawStmt>();
                let tag = pg_sys::CreateCommandTag((*statement).stmt);
                let plans = plan(statement, &sql);
                let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
                (*portal).visible = false;
                pg_sys::PortalDefineQuery(portal, std::ptr::null(), sql.as_ptr(), tag, plans, std::ptr::null_mut());
                pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
                let nowhere = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
                super::version::run_portal(portal, nowhere);
                pg_sys::PortalDrop(portal, false);
            };
            match statement.run(|| caught(run)) {
                Ok(()) => commit(),
                Err(error) => {
                    pg_sys::AbortCurrentTransaction();
                    Err(error)
                }
            }
        }
    }
}

/// # Safety
/// `statement` comes from the parser, and there is a transaction.
unsafe fn plan(statement: *mut pg_sys::RawStmt, sql: &CString) -> *mut pg_sys::List {
    // SAFETY: the caller vouches for the statement.
    unsafe {
        let queries = pg_sys::pg_analyze_and_rewrite_fixedparams(
            statement,
            sql.as_ptr(),
            std::ptr::null(),
            0,
            std::ptr::null_mut(),
        );
        pg_sys::pg_plan_queries(queries, sql.as_ptr(), 0, std::ptr::null_mut())
    }
}

/// Commits a worker's transaction; if that fails it is rolled back.
fn commit() -> Result<(), Error> {
    // SAFETY: there is a transaction, and after an error it is aborted.
    unsafe {
        let committed = caught(|| pg_sys::CommitTransactionCommand());
        if committed.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        // Statistics are reported when a client's statement ends, which a worker has not.
        pg_sys::pgstat_report_stat(true);
        committed
    }
}

/// Runs what may end the transaction; its error is returned.
fn caught<T>(f: impl FnOnce() -> T) -> Result<T, Error> {
    PgTryBuilder::new(AssertUnwindSafe(|| Ok(f())))
        .catch_others(|error| Err(Error::Caught(Caught::new(error))))
        .execute()
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.kind == Kind::Procedure && !std::thread::panicking() {
            // SAFETY: closes what `of_procedure` opened.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// Runs `f` with a snapshot that sees everything committed by now.
pub fn with_latest_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: pushed and popped here; an error pops it with the (sub)transaction.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let result = f();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Whether the session writes what another server has written before.
pub fn is_replica() -> bool {
    // SAFETY: reads a setting.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}

/// Bytes of WAL that this process has written since it began.
pub fn wal_bytes() -> u64 {
    // SAFETY: reads a backend variable.
    unsafe { pg_sys::pgWalUsage.wal_bytes }
}
