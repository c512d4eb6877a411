//! Background workers: how they are registered, what they are told, and how they begin.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

use super::session::Session;
use crate::error::Error;

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The database that it works in.
    pub database: pg_sys::Oid,
    /// The change that it works for; 0 to look after all of the database.
    pub change: i64,
}

impl Order {
    const SIZE: usize = 12;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.database.to_u32().to_ne_bytes());
        bytes[4..].copy_from_slice(&self.change.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::SIZE]) -> Order {
        let [a, b, c, d, change @ ..] = bytes;
        Order { database: u32::from_ne_bytes([a, b, c, d]).into(), change: i64::from_ne_bytes(change) }
    }
}

/// The database of this session.
pub fn current_database() -> pg_sys::Oid {
    // SAFETY: reads a backend variable.
    unsafe { pg_sys::MyDatabaseId }
}

/// Whether this process is a background worker.
pub fn is_background_worker() -> bool {
    // SAFETY: reads a backend variable.
    unsafe { !pg_sys::MyBgworkerEntry.is_null() }
}

/// Whether the server was started by pg_upgrade, which knows of no other process that writes: what it has not seen is lost.
pub fn is_upgrading() -> bool {
    // SAFETY: reads a variable that the postmaster sets before it loads libraries.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Asks for a worker that carries out an order. `false` when no slot is free, or the server is being upgraded. Raises no error, so that it can be called
/// while a transaction ends.
pub fn register(order: Order, type_name: &CStr, title: &CStr) -> bool {
    let mut worker = describe_order(order, type_name, title);
    // SAFETY: the worker is fully described; PostgreSQL copies it.
    !is_upgrading() && unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, std::ptr::null_mut()) }
}

/// As `register`, but waits for the worker to end, up to so long.
pub fn run(order: Order, type_name: &CStr, title: &CStr, patience: Duration) -> bool {
    let mut worker = describe_order(order, type_name, title);
    let deadline = Instant::now() + patience;
    // SAFETY: the worker is fully described; PostgreSQL makes the handle, which is freed here.
    unsafe {
        let mut handle = std::ptr::null_mut();
        if is_upgrading() || !pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) {
            return false;
        }
        let mut pid = 0;
        while pg_sys::GetBackgroundWorkerPid(handle, &mut pid) != pg_sys::BgwHandleStatus::BGWH_STOPPED
            && Instant::now() < deadline
        {
            super::lock::sleep(Duration::from_millis(20));
        }
        pg_sys::pfree(handle.cast());
        true
    }
}

fn describe_order(order: Order, type_name: &CStr, title: &CStr) -> pg_sys::BackgroundWorker {
    let mut worker = describe(c"zdd_worker_main", type_name, title);
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    for (to, from) in worker.bgw_extra.iter_mut().zip(order.to_bytes()) {
        *to = from as core::ffi::c_char;
    }
    worker
}

/// Asks for the launcher, while the server preloads the library.
pub fn register_launcher(type_name: &CStr) {
    let mut worker = describe(c"zdd_launcher_main", type_name, type_name);
    worker.bgw_restart_time = 5;
    // SAFETY: the worker is fully described; PostgreSQL copies it.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) }
}

/// Ends this background worker. The server starts it again, unless it is about to end itself.
pub fn end_for_now() -> ! {
    // SAFETY: the way for a process to end. PostgreSQL takes status 0 to mean that the worker is done for good.
    unsafe { pg_sys::proc_exit(1) }
}

fn describe(function: &CStr, type_name: &CStr, title: &CStr) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        ..Default::default()
    };
    copy(title, &mut worker.bgw_name);
    copy(type_name, &mut worker.bgw_type);
    copy(c"pg_zdd", &mut worker.bgw_library_name);
    copy(function, &mut worker.bgw_function_name);
    worker
}

/// Copies what fits, always with a NUL at the end.
fn copy(text: &CStr, into: &mut [core::ffi::c_char]) {
    let most = into.len() - 1;
    for (to, from) in into[..most].iter_mut().zip(text.to_bytes()) {
        *to = *from as core::ffi::c_char;
    }
}

thread_local! {
    static AT_END: RefCell<Vec<AtEnd>> = const { RefCell::new(Vec::new()) };
}

type AtEnd = fn(Ending) -> Result<(), Error>;

/// How a transaction ended, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its effects can be seen by others.
    Committed,
    /// It is about to become a prepared transaction, unless there is an error.
    Preparing,
    /// It has become one, which nobody here hears of again.
    Prepared,
    /// All since this subtransaction began was rolled back.
    AbortedSince(u32),
}

/// What PostgreSQL numbers subtransactions from: the transaction itself.
const TOP_SUBTRANSACTION: u32 = 1;

/// The current subtransaction; later ones have higher numbers.
pub fn current_subtransaction() -> u32 {
    // SAFETY: reads a backend variable.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// Whether the current transaction has changed anything, which it may see and others do not.
pub fn has_written() -> bool {
    // SAFETY: reads a backend variable; gives out no id.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Calls a function at the end of each transaction of this session, once however often it is asked for. Its error counts
/// only before anything has ended.
pub fn at_end_of_transaction(callback: AtEnd) {
    let is_first = AT_END.with_borrow_mut(|all| {
        let is_known = all.iter().any(|known| std::ptr::fn_addr_eq(*known, callback));
        if !is_known {
            all.push(callback);
        }
        !is_known && all.len() == 1
    });
    if is_first {
        // SAFETY: the callbacks are plain functions that live as long as the library, which is never unloaded.
        unsafe {
            pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(on_subtransaction), std::ptr::null_mut());
        }
    }
}

fn call_at_end(ending: Ending) {
    let nth = |index: usize| AT_END.with_borrow(|all| all.get(index).copied());
    for callback in (0..).map_while(nth) {
        if let (Err(error), Ending::Preparing) = (callback(ending), ending) {
            ErrorReport::from(error).report(pgrx::PgLogLevel::ERROR);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_transaction(event: pg_sys::XactEvent::Type, _argument: *mut core::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => call_at_end(Ending::Committed),
        pg_sys::XactEvent::XACT_EVENT_ABORT => call_at_end(Ending::AbortedSince(TOP_SUBTRANSACTION)),
        pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => call_at_end(Ending::Preparing),
        pg_sys::XactEvent::XACT_EVENT_PREPARE => call_at_end(Ending::Prepared),
        _ => {}
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut core::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        call_at_end(Ending::AbortedSince(subtransaction));
    }
}

/// Where a worker for a database begins.
///
/// # Safety
/// Called by PostgreSQL alone, in a background worker registered above.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn zdd_worker_main(_argument: pg_sys::Datum) {
    // SAFETY: in a background worker its entry is set, and `register` has put an order into it.
    let order = unsafe {
        answer_signals();
        let extra = &(*pg_sys::MyBgworkerEntry).bgw_extra;
        let mut bytes = [0; Order::SIZE];
        for (to, from) in bytes.iter_mut().zip(extra) {
            *to = *from as u8;
        }
        let order = Order::from_bytes(bytes);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(order.database, pg_sys::InvalidOid, 0);
        ignore_settings_for_clients();
        order
    };
    crate::worker::work(&Session::of_worker(), order);
}

/// Where the launcher begins.
///
/// # Safety
/// Called by PostgreSQL alone, in the background worker registered above.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn zdd_launcher_main(_argument: pg_sys::Datum) {
    // SAFETY: called once, at the beginning of a background worker; without a database it sees the shared catalogs.
    unsafe {
        answer_signals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        ignore_settings_for_clients();
    }
    crate::worker::launch(&Session::of_worker());
}

/// What a database or a role is set to for the sake of its clients must not make a worker fail.
unsafe fn ignore_settings_for_clients() {
    let limits = super::version::TIMEOUTS.iter().map(|name| (*name, c"0"));
    for (name, value) in limits.chain([
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"role", c"none"),
        // Constraint triggers fire, whatever clients do without.
        (c"session_replication_role", c"origin"),
    ]) {
        // SAFETY: the strings are NUL-terminated and PostgreSQL copies them.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Makes the worker answer signals as a session does: SIGTERM ends it at once, also within a statement, SIGHUP makes it read
/// the configuration.
unsafe fn answer_signals() {
    // SAFETY: the handlers are PostgreSQL's own for sessions.
    unsafe {
        for (signal, handler) in super::ffi::signal_handlers() {
            super::version::handle_signal(signal, handler);
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Reads the configuration anew if it has changed.
pub fn follow_configuration() {
    // SAFETY: reads and resets a flag that the signal handler sets; this is outside of transactions.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Says in pg_stat_activity and in the process title what the worker does; `None` when it does nothing.
pub fn show_activity(what: Option<&str>) {
    let text = CString::new(what.unwrap_or_default()).unwrap_or_default();
    let state = if what.is_some() { pg_sys::BackendState::STATE_RUNNING } else { pg_sys::BackendState::STATE_IDLE };
    // SAFETY: PostgreSQL copies the text.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) };
    super::version::set_process_title(&text);
}

/// The databases that one can connect to, templates left out, read in a transaction of the launcher.
pub fn databases(session: &Session) -> Vec<pg_sys::Oid> {
    session
        .transaction(|| {
            // SAFETY: scans a shared catalog as catalogs are scanned; the tuples are of pg_database.
            unsafe {
                let mut found = Vec::new();
                let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
                let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
                let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
                loop {
                    let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                    if tuple.is_null() {
                        break;
                    }
                    let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
                    let database = &*data.cast::<pg_sys::FormData_pg_database>();
                    if database.datallowconn && !database.datistemplate {
                        found.push(database.oid);
                    }
                }
                if let Some(end) = (*(*(*scan).rs_rd).rd_tableam).scan_end {
                    pg_sys::ffi::pg_guard_ffi_boundary(|| end(scan));
                }
                pg_sys::table_close(relation, lock);
                Ok(found)
            }
        })
        .unwrap_or_default()
}
