//! What expressions are made of, told by looking at them: nothing is evaluated.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::tag;
use super::version::walk_children;

/// An object of PostgreSQL's catalogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// The catalog that it is in.
    pub class: pg_sys::Oid,
    pub oid: pg_sys::Oid,
}

/// The functions, types and collations in expressions that are not built in.
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
            made_of(pg_sys::exprType(node)).into_iter().for_each(|oid| found.add(pg_sys::TypeRelationId, oid));
        }
        if tag(node) == NodeTag::T_CollateExpr {
            found.add(pg_sys::CollationRelationId, (*node.cast::<pg_sys::CollateExpr>()).collOid);
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
            || tag(node) == NodeTag::T_Const && has_domain((*node.cast::<pg_sys::Const>()).consttype)
            || pg_sys::check_functions_in_node(node, Some(is_users), context)
            || walk_children(node, depends_on_users, context)
    }
}

/// Whether a type is a domain, or an array of one.
fn has_domain(oid: pg_sys::Oid) -> bool {
    // SAFETY: both look the type up.
    unsafe {
        let element = pg_sys::get_element_type(oid);
        let oid = if element == pg_sys::InvalidOid { oid } else { element };
        pg_sys::get_typtype(oid) as u8 == pg_sys::TYPTYPE_DOMAIN
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

/// A type, and those that it is an array, a domain or a range of.
pub fn made_of(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let mut types = vec![oid];
    let mut next = Some(oid);
    while let Some(oid) = next {
        // SAFETY: both look the type up and give InvalidOid for what is none.
        let (element, subtype) = unsafe { (pg_sys::get_element_type(oid), pg_sys::get_range_subtype(oid)) };
        next = [element, subtype].into_iter().find(|oid| *oid != pg_sys::InvalidOid).or_else(|| domain_base(oid));
        types.extend(next);
    }
    types
}

/// The type that a domain is directly over.
fn domain_base(domain: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a tuple of this cache is of pg_type, whose data begin at its offset; it is released after it was read.
    let base = unsafe {
        let key = pg_sys::Datum::from(domain);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::TYPEOID as i32, key);
        if tuple.is_null() {
            return None;
        }
        let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
        let base = (*data.cast::<pg_sys::FormData_pg_type>()).typbasetype;
        pg_sys::ReleaseSysCache(tuple);
        base
    };
    (base != pg_sys::InvalidOid).then_some(base)
}
