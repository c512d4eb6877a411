//! Partitions and inheritance children, as pg_inherits knows them.

use pgrx::pg_sys;

use super::ffi::has_superclass;
use super::lookup;

/// A relation and all that it is a partition or child of, the relation first.
pub fn ancestors(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    std::iter::once(relation).chain(lookup::ancestors(relation)).collect()
}

/// Whether a relation is a partition or child of another.
pub fn has_parent(relation: pg_sys::Oid) -> bool {
    has_superclass(relation)
}
