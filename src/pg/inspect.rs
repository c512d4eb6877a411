//! What expressions are made of, told by looking at them: nothing is evaluated.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::ffi::walk_children;
use super::tag;

/// An object of PostgreSQL's catalogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// The catalog that it is in.
    pub class: pg_sys::Oid,
    pub oid: pg_sys::Oid,
}

/// The functions and types in expressions that are not built in.
#[derive(Default)]
pub struct UserObjects(Vec<ObjectId>);

fn is_built_in(oid: pg_sys::Oid) -> bool {
    oid.to_u32() < pg_sys::FirstNormalObjectId
}

impl UserObjects {
    /// Adds what an expression uses.
    ///
    /// # Safety
    /// `expression` comes from parse analysis.
    pub(super) unsafe fn add_from(&mut self, expression: *mut pg_sys::Node) {
        // SAFETY: the caller vouches for the expression; the walker gets this set as its context.
        unsafe { collect(expression, std::ptr::from_mut(self).cast()) };
    }

    fn add(&mut self, class: pg_sys::Oid, oid: pg_sys::Oid) {
        let object = ObjectId { class, oid };
        if oid != pg_sys::InvalidOid && !is_built_in(oid) && !self.0.contains(&object) {
            self.0.push(object);
        }
    }

    pub fn into_list(self) -> Vec<ObjectId> {
        self.0
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn collect(node: *mut pg_sys::Node, context: *mut core::ffi::c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: called by the walk with a node of the expression and the context that `add_from` gave.
    unsafe {
        let found = &mut *context.cast::<UserObjects>();
        if tag(node) != NodeTag::T_List {
            found.add(pg_sys::TypeRelationId, pg_sys::exprType(node));
        }
        pg_sys::check_functions_in_node(node, Some(collect_function), context);
        walk_children(node, collect, context)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn collect_function(function: pg_sys::Oid, context: *mut core::ffi::c_void) -> bool {
    // SAFETY: the context is that of `collect`.
    unsafe { (*context.cast::<UserObjects>()).add(pg_sys::ProcedureRelationId, function) };
    false
}

/// Whether an expression is always the same and takes no code of users to know: a literal, or what the planner makes one
/// of by functions that are built in.
///
/// # Safety
/// `expression` comes from parse analysis.
pub(super) unsafe fn is_constant(expression: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller vouches for the expression.
    unsafe { !pg_sys::contain_mutable_functions(expression) && !depends_on_users(expression, std::ptr::null_mut()) }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn depends_on_users(node: *mut pg_sys::Node, context: *mut core::ffi::c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: called by the walk with a node of the expression.
    unsafe {
        // A domain's CHECKs are users' code; the others are no constants.
        matches!(tag(node), NodeTag::T_CoerceToDomain | NodeTag::T_SubLink | NodeTag::T_Var | NodeTag::T_Param)
            || pg_sys::check_functions_in_node(node, Some(is_users), context)
            || walk_children(node, depends_on_users, context)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn is_users(function: pg_sys::Oid, _context: *mut core::ffi::c_void) -> bool {
    !is_built_in(function)
}

/// Whether a column's default is a constant, see `is_constant`, from its text in pg_attrdef.adbin.
pub fn default_is_constant(adbin: &str) -> bool {
    let Ok(text) = std::ffi::CString::new(adbin) else { return false };
    // SAFETY: the text is what PostgreSQL has written of a default expression.
    unsafe { is_constant(pg_sys::stringToNode(text.as_ptr()).cast()) }
}
