//! What roles may do with tables, by what the catalogs say now.

use pgrx::pg_sys;

/// Whether there is a role with this OID.
pub fn role_exists(role: pg_sys::Oid) -> bool {
    let none = pg_sys::Datum::from(0);
    // SAFETY: looks the OID up.
    unsafe { pg_sys::SearchSysCacheExists(pg_sys::SysCacheIdentifier::AUTHOID as i32, role.into(), none, none, none) }
}

/// Whether a role has any privilege on a table or on one of its columns, by itself, as a member of others, or like all.
pub fn has_any(role: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    let any = pg_sys::ACL_ALL_RIGHTS_RELATION as pg_sys::AclMode;
    let mut is_gone = false;
    // SAFETY: both look OIDs up and raise no error for those that are not there.
    unsafe {
        pg_sys::pg_class_aclcheck_ext(table, role, any, &mut is_gone) == pg_sys::AclResult::ACLCHECK_OK
            || (!is_gone
                && pg_sys::pg_attribute_aclcheck_all(table, role, any, pg_sys::AclMaskHow::ACLMASK_ANY)
                    == pg_sys::AclResult::ACLCHECK_OK)
    }
}
