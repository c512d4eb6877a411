//! Catching errors: only a subtransaction undoes what the failed code did.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use crate::error::Error;

/// An error that was caught, its effects undone.
pub struct Caught(Box<CaughtError>);

impl std::fmt::Debug for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Caught({:?})", self.message())
    }
}

impl Caught {
    pub(super) fn new(error: CaughtError) -> Caught {
        Caught(Box::new(error))
    }

    fn report(&self) -> &pg_sys::panic::ErrorReportWithLevel {
        match &*self.0 {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => report,
        }
    }

    /// Its SQLSTATE.
    pub fn code(&self) -> PgSqlErrorCode {
        self.report().sql_error_code()
    }

    /// Its message.
    pub fn message(&self) -> String {
        self.report().message().to_owned()
    }

    /// Its DETAIL and HINT.
    pub fn detail_and_hint(&self) -> (Option<String>, Option<String>) {
        (self.report().detail().map(str::to_owned), self.report().hint().map(str::to_owned))
    }

    /// Goes on with the error.
    pub fn rethrow(self) -> ! {
        self.0.rethrow()
    }

    /// Whether the same work may succeed when it is tried again.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code(),
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
                | PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
                | PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
        )
    }

    /// Whether a lock could not be had.
    pub fn is_about_locks(&self) -> bool {
        self.is_transient() && self.code() != PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
    }

    /// Whether the user or the server wants to have an end.
    pub fn is_interrupt(&self) -> bool {
        self.is_of_class(&[*b"57"])
    }

    /// Whether it says something about the data or the code that looked at them, rather than that the server or the
    /// user wants the statement to end.
    pub fn is_about_data(&self) -> bool {
        !self.is_of_class(&[*b"53", *b"54", *b"57", *b"58", *b"XX", *b"40", *b"25"])
    }

    /// Whether the code of a rule says by it that it does not accept a value: a data exception, RAISE without an SQLSTATE, or
    /// what PostgreSQL says of NaN and infinity where they have no place.
    pub fn is_rejection(&self) -> bool {
        self.is_of_class(&[*b"22"])
            || matches!(
                self.code(),
                PgSqlErrorCode::ERRCODE_RAISE_EXCEPTION | PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
            )
    }

    /// Whether a constraint is violated.
    pub fn is_constraint_violation(&self) -> bool {
        self.is_of_class(&[*b"23"])
    }

    fn is_of_class(&self, classes: &[[u8; 2]]) -> bool {
        // The class of an SQLSTATE is its first two characters, 6 bits each.
        let class = self.code() as i32 & 0xfff;
        classes.iter().any(|text| class == i32::from(text[0] - b'0') | i32::from(text[1] - b'0') << 6)
    }
}

/// Runs `f` in a subtransaction. An error in it undoes its effects and is returned.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    subtransaction(f, |_| true)
}

/// The same for what may fail in both ways: an error that it returns undoes its effects too.
pub fn attempt<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    subtransaction(f, Result::is_ok).unwrap_or_else(|error| Err(Error::Caught(error)))
}

fn subtransaction<T>(f: impl FnOnce() -> T, is_kept: impl FnOnce(&T) -> bool) -> Result<T, Caught> {
    // SAFETY: the calls pair up as PostgreSQL's own languages do it: begin, then release or roll back, each followed by
    // the memory context and resource owner from before. Unwinding has run all Rust destructors of `f` by then.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result =
            PgTryBuilder::new(AssertUnwindSafe(|| Ok(f()))).catch_others(|error| Err(Caught::new(error))).execute();
        match result {
            Ok(value) => {
                if is_kept(&value) {
                    pg_sys::ReleaseCurrentSubTransaction();
                } else {
                    pg_sys::RollbackAndReleaseCurrentSubTransaction();
                }
                pg_sys::MemoryContextSwitchTo(context);
                pg_sys::CurrentResourceOwner = owner;
                Ok(value)
            }
            Err(error) => {
                pg_sys::MemoryContextSwitchTo(context);
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
                pg_sys::MemoryContextSwitchTo(context);
                pg_sys::CurrentResourceOwner = owner;
                Err(error)
            }
        }
    }
}
