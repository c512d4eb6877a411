//! What differs between PostgreSQL 15, 16, 17 and 18, side by side: for each difference, what each version does. All else is
//! the same for all of them, and no other file asks which version it is built for.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::ffi::{Signal, Walker};
use super::hook;

/// What pgrx has no bindings for.
mod raw {
    use core::ffi::c_void;

    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        #[cfg(feature = "pg15")]
        pub fn expression_tree_walker(node: *mut pg_sys::Node, walker: super::Walker, context: *mut c_void) -> bool;
        #[cfg(not(feature = "pg15"))]
        pub fn expression_tree_walker_impl(
            node: *mut pg_sys::Node,
            walker: super::Walker,
            context: *mut c_void,
        ) -> bool;
        #[cfg(feature = "pg18")]
        pub fn expand_generated_columns_in_expr(
            node: *mut pg_sys::Node,
            relation: pg_sys::Relation,
            number: core::ffi::c_int,
        ) -> *mut pg_sys::Node;
        #[cfg(feature = "pg18")]
        pub fn build_generation_expression(relation: pg_sys::Relation, column: core::ffi::c_int) -> *mut pg_sys::Node;
    }
}

/// The hook that sees which columns a statement uses. In 15 they stand in the range table, later in a list of their own.
#[cfg(feature = "pg15")]
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn check_permissions(range_table: *mut pg_sys::List, raise: bool) -> bool {
    // SAFETY: called as PostgreSQL called us; a range table is a list of RangeTblEntry nodes.
    unsafe {
        if let Some(previous) = hook::previous_check()
            && !pg_guard_ffi_boundary(|| previous(range_table, raise))
        {
            return false;
        }
        hook::count(|| {
            hook::elements::<pg_sys::RangeTblEntry>(range_table)
                // What PostgreSQL has added by itself, such as partitions, asks for no permission.
                .filter(|entry| entry.rtekind == pg_sys::RTEKind::RTE_RELATION && entry.requiredPerms != 0)
                .map(|entry| hook::Access::new(entry.relid, entry.selectedCols, entry.insertedCols, entry.updatedCols))
        });
        true
    }
}

#[cfg(not(feature = "pg15"))]
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn check_permissions(
    range_table: *mut pg_sys::List,
    permissions: *mut pg_sys::List,
    raise: bool,
) -> bool {
    // SAFETY: called as PostgreSQL called us; the permissions are a list of RTEPermissionInfo nodes.
    unsafe {
        if let Some(previous) = hook::previous_check()
            && !pg_guard_ffi_boundary(|| previous(range_table, permissions, raise))
        {
            return false;
        }
        hook::count(|| {
            hook::elements::<pg_sys::RTEPermissionInfo>(permissions)
                .filter(|entry| entry.requiredPerms != 0)
                .map(|entry| hook::Access::new(entry.relid, entry.selectedCols, entry.insertedCols, entry.updatedCols))
        });
        true
    }
}

/// Walks an expression's children. From 16 on the C name is a macro.
///
/// # Safety
/// `node` is NULL or an expression, and the walker takes this context.
pub(super) unsafe fn walk_children(node: *mut pg_sys::Node, walker: Walker, context: *mut core::ffi::c_void) -> bool {
    #[cfg(feature = "pg15")]
    use raw::expression_tree_walker as walk;
    #[cfg(not(feature = "pg15"))]
    use raw::expression_tree_walker_impl as walk;
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| walk(node, walker, context)) }
}

/// The storage that a column definition asks for, NULL if none. 15 has no syntax for it.
#[cfg(feature = "pg15")]
pub(super) fn storage_name(_column: &pg_sys::ColumnDef) -> *const core::ffi::c_char {
    std::ptr::null()
}

#[cfg(not(feature = "pg15"))]
pub(super) fn storage_name(column: &pg_sys::ColumnDef) -> *const core::ffi::c_char {
    column.storage_name
}

/// Which indexes need entries for a new row version, as the access method says: all or none; from 16 on also those alone
/// that summarize blocks (BRIN).
#[cfg(feature = "pg15")]
pub(super) type NeededIndexes = bool;
#[cfg(not(feature = "pg15"))]
pub(super) type NeededIndexes = pg_sys::TU_UpdateIndexes::Type;

#[cfg(feature = "pg15")]
pub(super) const NO_INDEXES: NeededIndexes = false;
#[cfg(not(feature = "pg15"))]
pub(super) const NO_INDEXES: NeededIndexes = pg_sys::TU_UpdateIndexes::TU_None;

/// Makes the entries of an updated row. Gives the indexes of constraints that can be deferred and may be violated.
///
/// # Safety
/// As the C function; some indexes need entries.
pub(super) unsafe fn insert_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    state: *mut pg_sys::EState,
    #[cfg_attr(feature = "pg15", allow(unused))] needed: NeededIndexes,
) -> *mut pg_sys::List {
    let (null, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the caller keeps the C function's contract.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::ExecInsertIndexTuples(result, slot, state, true, false, null, none);
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            result,
            slot,
            state,
            true,
            false,
            null,
            none,
            needed == pg_sys::TU_UpdateIndexes::TU_Summarizing,
        )
    }
}

/// Sets the title of the process. From 16 on the C name is an inline function.
pub(super) fn set_process_title(title: &CStr) {
    // SAFETY: PostgreSQL copies the text.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::set_ps_display(title.as_ptr());
        #[cfg(not(feature = "pg15"))]
        pg_sys::set_ps_display_with_len(title.as_ptr(), title.count_bytes());
    }
}

/// What pg_stat_activity calls a sleep of an extension: from 17 on it can have a name.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub(super) fn sleep_event() -> u32 {
    pg_sys::PG_WAIT_EXTENSION
}

#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub(super) fn sleep_event() -> u32 {
    static EVENT: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // SAFETY: PostgreSQL copies the name; asked for it again, by this or another process, it gives the same number.
    *EVENT.get_or_init(|| unsafe { pg_sys::WaitEventExtensionNew(c"ZddSleep".as_ptr()) })
}

/// The timeouts that a database or a role may have for its clients, as far as workers obey them. 17 has limited transactions.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub(super) const TIMEOUTS: &[&CStr] = &[c"lock_timeout"];
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub(super) const TIMEOUTS: &[&CStr] = &[c"lock_timeout", c"transaction_timeout"];

/// Has a signal handled. 18 has renamed the function.
///
/// # Safety
/// The handler can be called at any time.
pub(super) unsafe fn handle_signal(signal: u32, handler: Signal) {
    // SAFETY: the caller vouches for the handler.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal as i32, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal as i32, Some(handler));
    }
}

/// Runs a portal to its end, its rows going nowhere. 18 has one argument less.
///
/// # Safety
/// As the C function.
pub(super) unsafe fn run_portal(portal: pg_sys::Portal, nowhere: *mut pg_sys::DestReceiver) {
    let (all, none) = (core::ffi::c_long::MAX, std::ptr::null_mut());
    // SAFETY: the caller keeps the C function's contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::PortalRun(portal, all, true, true, nowhere, nowhere, none);
        #[cfg(feature = "pg18")]
        pg_sys::PortalRun(portal, all, true, nowhere, nowhere, none);
    }
}

/// Goes before the name of a table in VACUUM, to leave its children to their own turn. Before 18 they always are.
pub const VACUUM_ONLY: &str = if cfg!(feature = "pg18") { "ONLY " } else { "" };

/// A CHECK as it has to be evaluated: 18 has generated columns that are not stored, in whose place their expressions go.
///
/// # Safety
/// The expression is of this open relation, which is number 1 in it.
#[cfg(not(feature = "pg18"))]
pub(super) unsafe fn expand_generated(check: *mut pg_sys::Node, _relation: pg_sys::Relation) -> *mut pg_sys::Node {
    check
}

#[cfg(feature = "pg18")]
pub(super) unsafe fn expand_generated(check: *mut pg_sys::Node, relation: pg_sys::Relation) -> *mut pg_sys::Node {
    // SAFETY: the caller keeps the C function's contract.
    unsafe { pg_guard_ffi_boundary(|| raw::expand_generated_columns_in_expr(check, relation, 1)) }
}

/// Whether a CHECK is enforced. 18 has some that are not.
#[cfg(not(feature = "pg18"))]
pub(super) fn is_enforced(_check: &pg_sys::ConstrCheck) -> bool {
    true
}

#[cfg(feature = "pg18")]
pub(super) fn is_enforced(check: &pg_sys::ConstrCheck) -> bool {
    check.ccenforced
}

/// What a generated column that is not stored is generated from; NULL for all other columns.
///
/// # Safety
/// The relation is open, the number one of its columns.
#[cfg(not(feature = "pg18"))]
pub(super) unsafe fn virtual_expression(_relation: pg_sys::Relation, _number: i16) -> *mut pg_sys::Node {
    std::ptr::null_mut()
}

#[cfg(feature = "pg18")]
pub(super) unsafe fn virtual_expression(relation: pg_sys::Relation, number: i16) -> *mut pg_sys::Node {
    // SAFETY: the caller vouches for relation and number; attributes are read through a valid descriptor.
    unsafe {
        let descriptor = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        match descriptor.get(number as usize - 1) {
            Some(column) if column.attgenerated as u8 == b'v' => {
                pg_guard_ffi_boundary(|| raw::build_generation_expression(relation, number.into()))
            }
            _ => std::ptr::null_mut(),
        }
    }
}
