//! Partitions and inheritance children, as pg_inherits knows them.

use pgrx::pg_sys;

use super::ffi::has_superclass;
use super::security::query;
use crate::error::Error;

/// A relation and all that it is a partition or child of, the relation first.
pub fn ancestors(relation: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>, Error> {
    if !has_superclass(relation) {
        return Ok(vec![relation]);
    }
    let sql = "with recursive up (oid) as (
            select $1 union select i.inhparent from pg_inherits as i join up on i.inhrelid = up.oid)
        select oid from up";
    let found = query(sql, &[relation.into()], |row| Ok(row.get::<pg_sys::Oid>(1)?))?;
    let above = found.into_iter().flatten().filter(|oid| *oid != relation);
    Ok(std::iter::once(relation).chain(above).collect())
}

/// Whether a relation is a partition or child of another.
pub fn has_parent(relation: pg_sys::Oid) -> bool {
    has_superclass(relation)
}
