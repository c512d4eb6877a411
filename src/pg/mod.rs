//! Everything that needs `unsafe`, and what differs between PostgreSQL versions. The rest of the crate calls the safe
//! functions of these rooms.

pub mod class;
pub mod constraint;
pub mod expr;
pub mod extension;
mod ffi;
pub mod gate;
pub mod hook;
pub mod inheritance;
pub mod inspect;
pub mod inval;
pub mod lock;
pub mod lookup;
pub mod memory;
pub mod page;
pub mod parse;
pub mod privilege;
pub mod security;
pub mod session;
mod set;
pub mod settings;
pub mod shmem;
pub mod subxact;
pub mod table;
pub mod trigger;
pub mod types;
pub mod value;
pub mod worker;

use pgrx::pg_sys;

/// The elements of a PostgreSQL list of pointers.
///
/// # Safety
/// `list` is NIL or a valid list whose elements are pointers to `T`.
pub(crate) unsafe fn list_of<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller vouches for the list; `length` elements are initialised.
    unsafe { (0..(*list).length as usize).map(|index| (*(*list).elements.add(index)).ptr_value.cast::<T>()).collect() }
}

/// The elements of a PostgreSQL list of OIDs.
///
/// # Safety
/// `list` is NIL or a valid list of OIDs.
pub(crate) unsafe fn oids_of(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller vouches for the list; `length` elements are initialised.
    unsafe { (0..(*list).length as usize).map(|index| (*(*list).elements.add(index)).oid_value).collect() }
}

/// A palloc'ed C string as a Rust string; empty when NULL.
///
/// # Safety
/// `text` is NULL or a valid NUL-terminated string.
pub(crate) unsafe fn c_string(text: *const core::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller vouches for the string.
    unsafe { core::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The tag of a node.
///
/// # Safety
/// `node` points to a PostgreSQL node.
pub(crate) unsafe fn tag<T>(node: *const T) -> pg_sys::NodeTag {
    // SAFETY: every node begins with its tag.
    unsafe { (*node.cast::<pg_sys::Node>()).type_ }
}

/// A time, in microseconds since PostgreSQL's epoch, as the session writes it.
pub fn timestamp_text(time: i64) -> String {
    // SAFETY: gives a string in a static buffer, which is copied at once.
    unsafe { c_string(pg_sys::timestamptz_to_str(time)) }
}

/// Reads the configuration file again, as a process does that was told to.
pub fn reload_settings() {
    // SAFETY: called by a background worker between two pieces of work.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) }
}

/// The text of a String node.
///
/// # Safety
/// `node` is a String node.
pub(crate) unsafe fn node_string<'n>(node: *mut pg_sys::Node) -> &'n core::ffi::CStr {
    // SAFETY: the caller vouches for the node; its string is NUL-terminated.
    unsafe {
        #[cfg(feature = "pg14")]
        let text = (*node.cast::<pg_sys::Value>()).val.str_;
        #[cfg(not(feature = "pg14"))]
        let text = (*node.cast::<pg_sys::String>()).sval;
        core::ffi::CStr::from_ptr(text)
    }
}

/// Tells PostgreSQL that settings which begin with "zdd." are ours, so that it warns of misspelt ones.
pub fn reserve_settings() {
    // SAFETY: the prefix is a constant; PostgreSQL copies it.
    unsafe {
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(c"zdd".as_ptr());
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(c"zdd".as_ptr());
    }
}

/// max_wal_size, in bytes.
pub fn max_wal_size() -> u64 {
    // SAFETY: reads a setting.
    unsafe { pg_sys::max_wal_size_mb as u64 * 1_048_576 }
}

/// Keeps Rust's backtraces out of the DETAIL of errors, whatever the environment of the server says.
pub fn disable_backtraces() {
    // SAFETY: a backend has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") }
}
