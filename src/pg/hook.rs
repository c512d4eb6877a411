//! The hooks: where statements are seen, their rows, and errors. Each calls the hook that was there before it.

use std::ffi::CStr;
use std::sync::OnceLock;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::ffi;
use crate::usage::store::{self, Name};
use crate::usage::{self, Counted, Statement};

static PREVIOUS_CHECK: OnceLock<pg_sys::ExecutorCheckPerms_hook_type> = OnceLock::new();
static PREVIOUS_START: OnceLock<pg_sys::ExecutorStart_hook_type> = OnceLock::new();
static PREVIOUS_LOG: OnceLock<pg_sys::emit_log_hook_type> = OnceLock::new();

/// Sets the hooks. Called by `_PG_init` while the server preloads us.
pub fn install() {
    // SAFETY: set in the postmaster's only thread, before anything calls them; the previous ones are kept.
    unsafe {
        if PREVIOUS_CHECK.set(pg_sys::ExecutorCheckPerms_hook).is_ok() {
            pg_sys::ExecutorCheckPerms_hook = Some(super::version::check_permissions);
        }
        if PREVIOUS_START.set(pg_sys::ExecutorStart_hook).is_ok() {
            pg_sys::ExecutorStart_hook = Some(start_statement);
        }
        if PREVIOUS_LOG.set(pg_sys::emit_log_hook).is_ok() {
            pg_sys::emit_log_hook = Some(emit_log);
        }
    }
}

/// Columns of a relation, as PostgreSQL's parser has marked them.
pub struct Columns(pub(super) *const pg_sys::Bitmapset);

impl Columns {
    /// Whether a column is among them, by number.
    pub fn has(&self, column: i16) -> bool {
        const BITS: usize = pg_sys::bitmapword::BITS as usize;
        let Ok(bit) = usize::try_from(i32::from(column) - pg_sys::FirstLowInvalidHeapAttributeNumber) else {
            return false;
        };
        // SAFETY: NULL is the empty set; else it has `nwords` words. It belongs to the statement under way.
        unsafe {
            let Some(set) = self.0.as_ref() else { return false };
            bit / BITS < set.nwords as usize && (*set.words.as_ptr().add(bit / BITS) >> (bit % BITS)) & 1 == 1
        }
    }

    /// Whether the row is used as a whole, by the table's name.
    pub fn has_whole_row(&self) -> bool {
        self.has(0)
    }
}

/// What a statement does to the columns of one relation.
pub struct Access {
    pub relation: pg_sys::Oid,
    pub selected: Columns,
    pub inserted: Columns,
    pub updated: Columns,
}

impl Access {
    /// From the sets that PostgreSQL has.
    pub(super) fn new(
        relation: pg_sys::Oid,
        selected: *const pg_sys::Bitmapset,
        inserted: *const pg_sys::Bitmapset,
        updated: *const pg_sys::Bitmapset,
    ) -> Access {
        Access { relation, selected: Columns(selected), inserted: Columns(inserted), updated: Columns(updated) }
    }
}

/// The hook that was there before ours.
pub(super) fn previous_check() -> pg_sys::ExecutorCheckPerms_hook_type {
    PREVIOUS_CHECK.get().copied().flatten()
}

/// Counts a statement that may do what it wants, for each relation.
pub(super) fn count<I: Iterator<Item = Access>>(wanted: impl FnOnce() -> I) {
    if usage::is_recording() {
        let mut statement = Statement::default();
        wanted().for_each(|access| statement.touch(&access));
        statement.count();
    }
}

/// Starts a statement, in which its permissions are checked. If it was counted, so are its rows, when it ends.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn start_statement(query: *mut pg_sys::QueryDesc, flags: core::ffi::c_int) {
    let counted = usage::while_starting(|| {
        // SAFETY: called as PostgreSQL called us.
        unsafe {
            match PREVIOUS_START.get().copied().flatten() {
                Some(previous) => pg_guard_ffi_boundary(|| previous(query, flags)),
                None => pg_sys::standard_ExecutorStart(query, flags),
            }
        }
    });
    if counted.is_empty() {
        return;
    }
    // SAFETY: a statement that was started has a state, whose memory context lives until it ends. Memory made in that
    // context is still there when its callbacks are called.
    unsafe {
        let mut memory = pgrx::PgMemoryContexts::For((*(*query).estate).es_query_cxt);
        if (*query).totaltime.is_null() {
            // Rows cost next to nothing. But pg_stat_statements and auto_explain take what is there, and want the time too:
            // if they were not called by us, they may be about to.
            let first =
                pg_sys::ExecutorStart_hook.is_some_and(|hook| hook as usize == start_statement as *const () as usize);
            let options = if first {
                pg_sys::InstrumentOption::INSTRUMENT_ROWS
            } else {
                pg_sys::InstrumentOption::INSTRUMENT_ALL
            };
            (*query).totaltime = memory.switch_to(|_| pg_sys::InstrAlloc(1, options as i32, false));
        }
        memory.leak_and_drop_on_delete(Running { counted, totals: (*query).totaltime });
    }
}

/// A statement that was counted and has not ended.
struct Running {
    counted: Counted,
    /// The state itself knows, before PostgreSQL 16, only the rows that were fetched last.
    totals: *const pg_sys::Instrumentation,
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: called when the statement's memory goes, which `totals` is a part of.
        let rows = unsafe {
            // A statement that failed has no rows.
            if pg_sys::IsTransactionState() { (*self.totals).ntuples + (*self.totals).tuplecount } else { 0.0 }
        };
        if rows > 0.0 {
            usage::count_rows(&self.counted, rows as u64);
        }
    }
}

/// The elements of a list of nodes, without a copy: this runs for every statement.
///
/// # Safety
/// `list` is NIL or a valid list of pointers to `T` that lives as long as the result is used.
pub(super) unsafe fn elements<'l, T: 'l>(list: *mut pg_sys::List) -> impl Iterator<Item = &'l T> {
    // SAFETY: the caller vouches for the list; `length` elements are initialised.
    unsafe {
        let count = list.as_ref().map_or(0, |list| list.length as usize);
        (0..count).map(move |index| &*(*(*list).elements.add(index)).ptr_value.cast::<T>())
    }
}

/// Sees the errors that go to the server's log. It reads no catalog, since the transaction is broken, and raises nothing.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn emit_log(error: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes the error that it reports; its texts are NULL or NUL-terminated.
    unsafe {
        if let Some(previous) = PREVIOUS_LOG.get().copied().flatten() {
            pg_guard_ffi_boundary(|| previous(error));
        }
        let Some(error) = error.as_ref() else { return };
        let undefined_column = pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN as i32;
        if error.elevel == pgrx::PgLogLevel::ERROR as i32
            && error.sqlerrcode == undefined_column
            && !error.message.is_null()
            && !pg_sys::MyProc.is_null()
        {
            // SQL inside a function comes with its own text.
            let inner = error.internalquery.cast_const();
            let statement = if inner.is_null() { pg_sys::debug_query_string } else { inner };
            let statement = if statement.is_null() { &[] } else { CStr::from_ptr(statement).to_bytes() };
            usage::undefined_column(CStr::from_ptr(error.message).to_bytes(), statement);
        }
    }
}

/// Whether this process runs a part of a statement for another.
pub fn is_parallel_worker() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// The database that the session is connected to.
pub fn database() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::MyDatabaseId }
}

/// What stands for the text of what a publisher sends.
pub const LOGICAL_REPLICATION: &str = "(logical replication)";

/// Whether this process applies what a publisher sends.
pub fn is_apply_worker() -> bool {
    ffi::subscription_name().is_some()
}

/// The session's application_name; of an apply worker, which has none, the name of its subscription.
pub fn application_name() -> Name {
    if let Some(name) = ffi::subscription_name() {
        return store::name(name.to_bytes());
    }
    // SAFETY: NULL or a NUL-terminated string that stays until the setting changes.
    unsafe {
        let name = pg_sys::application_name;
        if name.is_null() { [0; 64] } else { store::name(CStr::from_ptr(name).to_bytes()) }
    }
}

/// The beginning of what the client has sent. A publisher sends rows.
pub fn query_text(most: usize) -> &'static [u8] {
    // SAFETY: NULL or the NUL-terminated text of the statement under way, which the caller copies at once.
    unsafe {
        let text = pg_sys::debug_query_string;
        match text.as_ref() {
            Some(text) => store::cut(CStr::from_ptr(text).to_bytes(), most),
            None if is_apply_worker() => LOGICAL_REPLICATION.as_bytes(),
            None => &[],
        }
    }
}

/// The main function of the process that saves usage.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn zdd_save_usage(_argument: pg_sys::Datum) {
    usage::worker::run();
}
