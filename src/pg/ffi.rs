//! What of PostgreSQL's pgrx has no bindings for. Functions are behind a boundary that turns their errors into unwinding.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

mod raw {
    use pgrx::pg_sys;

    /// How PostgreSQL's Subscription begins.
    #[repr(C)]
    pub struct Subscription {
        oid: pg_sys::Oid,
        database: pg_sys::Oid,
        skip: pg_sys::XLogRecPtr,
        pub name: *const core::ffi::c_char,
    }

    /// Is called with a node and the context of the walk; `true` ends the walk.
    pub type Walker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut core::ffi::c_void) -> bool;

    unsafe extern "C-unwind" {
        pub static MySubscription: *const Subscription;
        pub static bytea_output: core::ffi::c_int;
        pub static xmloption: core::ffi::c_int;
        pub fn ThrowErrorData(error: *mut pg_sys::ErrorData);
        pub fn has_superclass(relation: pg_sys::Oid) -> bool;
        pub fn find_all_inheritors(
            parent: pg_sys::Oid,
            lockmode: pg_sys::LOCKMODE,
            numparents: *mut *mut pg_sys::List,
        ) -> *mut pg_sys::List;
        pub fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
        pub fn RelationGetPartitionQual(relation: pg_sys::Relation) -> *mut pg_sys::List;
        pub fn die(signal: core::ffi::c_int);
        pub fn SignalHandlerForConfigReload(signal: core::ffi::c_int);
        pub fn datumCopy(value: pg_sys::Datum, by_value: bool, len: i32) -> pg_sys::Datum;
        pub fn ExecComputeStoredGenerated(
            result: *mut pg_sys::ResultRelInfo,
            state: *mut pg_sys::EState,
            slot: *mut pg_sys::TupleTableSlot,
            command: pg_sys::CmdType::Type,
        );
    }
}

pub use raw::Walker;

/// Handles a signal.
pub type Signal = unsafe extern "C-unwind" fn(core::ffi::c_int);

/// Whether a relation is a partition or an inheritance child of another.
pub fn has_superclass(relation: pg_sys::Oid) -> bool {
    // SAFETY: looks any OID up in pg_inherits.
    unsafe { pg_guard_ffi_boundary(|| raw::has_superclass(relation)) }
}

/// Whether bytea is written in hexadecimal digits.
pub fn bytea_output_is_hex() -> bool {
    const BYTEA_OUTPUT_HEX: core::ffi::c_int = 1;
    // SAFETY: reads a setting.
    unsafe { raw::bytea_output == BYTEA_OUTPUT_HEX }
}

/// Whether a text is taken for XML content, not for a document.
pub fn xml_option_is_content() -> bool {
    // SAFETY: reads a setting.
    unsafe { raw::xmloption == pg_sys::XmlOptionType::XMLOPTION_CONTENT as core::ffi::c_int }
}

/// The name of the subscription that this process works for, if it is one of logical replication.
pub fn subscription_name<'s>() -> Option<&'s CStr> {
    // SAFETY: NULL in all other processes; else it has a name, which the caller uses at once: it may be read anew between
    // two transactions.
    unsafe { raw::MySubscription.as_ref().map(|subscription| CStr::from_ptr(subscription.name)) }
}

/// PostgreSQL's handlers for SIGTERM and SIGHUP, as they are: a signal handler must not set up a boundary.
pub fn signal_handlers() -> [(u32, Signal); 2] {
    [(pg_sys::SIGTERM, raw::die), (pg_sys::SIGHUP, raw::SignalHandlerForConfigReload)]
}

/// Raises an error as it is, with all its fields; unwinding would lose those that pgrx does not know.
///
/// # Safety
/// The texts are in PostgreSQL's memory, and no frame from here up to PostgreSQL's has anything to drop.
pub unsafe fn throw(error: *mut pg_sys::ErrorData) -> ! {
    // SAFETY: the caller keeps the contract; PostgreSQL copies what it needs.
    unsafe { raw::ThrowErrorData(error) };
    unreachable!("an ERROR does not return")
}

/// # Safety
/// As the C function; the result is a list of OIDs.
pub unsafe fn find_all_inheritors(parent: pg_sys::Oid, lockmode: pg_sys::LOCKMODE) -> *mut pg_sys::List {
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| raw::find_all_inheritors(parent, lockmode, std::ptr::null_mut())) }
}

/// # Safety
/// `relation` is a partition; the result is a list of OIDs, the topmost ancestor last.
pub unsafe fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List {
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| raw::get_partition_ancestors(relation)) }
}

/// # Safety
/// `relation` is open; the result is a list of expressions, NIL unless it is a partition.
pub unsafe fn partition_condition(relation: pg_sys::Relation) -> *mut pg_sys::List {
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| raw::RelationGetPartitionQual(relation)) }
}

/// # Safety
/// The datum is of a type with this length.
pub unsafe fn datum_copy(value: pg_sys::Datum, by_value: bool, len: i16) -> pg_sys::Datum {
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| raw::datumCopy(value, by_value, len.into())) }
}

/// # Safety
/// As the C function.
pub unsafe fn compute_stored_generated(
    result: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::EState,
    slot: *mut pg_sys::TupleTableSlot,
) {
    let command = pg_sys::CmdType::CMD_UPDATE;
    // SAFETY: the caller keeps the C function's contract.
    unsafe {
        pg_guard_ffi_boundary(|| raw::ExecComputeStoredGenerated(result, state, slot, command));
    }
}
