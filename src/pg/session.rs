//! Procedures that commit as they go.

use pgrx::pg_sys;

use super::subxact::catch;
use crate::error::Error;

/// A procedure's right to commit: an SPI connection that is not atomic.
pub struct Procedure(());

impl Procedure {
    /// Begins a procedure that was called with `fcinfo`; an error inside a transaction block, where it cannot commit.
    pub fn begin(name: &'static str, fcinfo: pg_sys::FunctionCallInfo) -> Result<Procedure, Error> {
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
        Ok(Procedure(()))
    }

    /// Runs `f` and commits it, or rolls it back if it fails; PostgreSQL's errors are returned too. Between two calls no
    /// snapshot is held.
    pub fn transaction<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        // SAFETY: the snapshot is pushed and popped here, around `f`; ending the transaction is legal because the
        // connection is not atomic and every nested connection has been closed by then.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let result = catch(f).unwrap_or_else(|error| Err(Error::Caught(error)));
            pg_sys::PopActiveSnapshot();
            match result {
                Ok(_) => pg_sys::SPI_commit(),
                Err(_) => pg_sys::SPI_rollback(),
            }
            result
        }
    }
}

impl Drop for Procedure {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: closes what `begin` opened.
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
