//! The extension as PostgreSQL's catalogs know it. Names are not trusted: anybody may make a schema "zdd".

use std::cell::Cell;

use pgrx::pg_sys;

use super::class;
use super::table::relation_named;
use crate::error::Error;

thread_local! {
    /// zdd.change, once it has been seen to be the extension's.
    static CATALOG: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

/// zdd.change, if it is a member of the extension pg_zdd in this database.
pub fn catalog() -> Option<pg_sys::Oid> {
    let oid = relation_named("zdd", "change")?;
    if CATALOG.get() == oid {
        return Some(oid);
    }
    // SAFETY: both look names and OIDs up in the catalogs and give InvalidOid for what is not there.
    let is_member = unsafe {
        let extension = pg_sys::get_extension_oid(c"pg_zdd".as_ptr(), true);
        extension != pg_sys::InvalidOid && pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, oid) == extension
    };
    is_member.then(|| CATALOG.set(oid))?;
    Some(oid)
}

/// Whether pg_zdd is installed in this database.
pub fn is_installed() -> bool {
    catalog().is_some()
}

/// The role that the extension's tables belong to.
pub fn owner() -> Result<pg_sys::Oid, Error> {
    catalog().and_then(class::owner).ok_or(Error::NotInstalled)
}

/// The function of the sync triggers, if pg_zdd is installed.
pub fn sync_function() -> Option<pg_sys::Oid> {
    trigger_function(c"sync")
}

/// The function of the triggers that watch for a contract, if pg_zdd is installed.
pub fn watch_function() -> Option<pg_sys::Oid> {
    trigger_function(c"watch")
}

fn trigger_function(name: &core::ffi::CStr) -> Option<pg_sys::Oid> {
    let schema = class::find(catalog()?)?.schema;
    // SAFETY: looks a function without arguments up by name, in that schema alone.
    let oid = unsafe {
        let arguments = pg_sys::buildoidvector(std::ptr::null(), 0);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(arguments),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
