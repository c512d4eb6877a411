//! Relations as pg_class knows them, by OID: looked up without a lock, for those who must not wait for one.

use pgrx::pg_sys;

use super::c_string;

/// What pg_class says of a relation.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    pub owner: pg_sys::Oid,
    pub schema: pg_sys::Oid,
    /// The composite type of its rows.
    pub row_type: pg_sys::Oid,
    pub kind: char,
    /// Whether it has had triggers since they were looked for last.
    pub has_triggers: bool,
}

/// Looks a relation up; `None` when there is none.
pub fn find(relation: pg_sys::Oid) -> Option<Class> {
    // SAFETY: a tuple of this cache is of pg_class, whose data begin at its offset; it is released after it was read.
    unsafe {
        let key = pg_sys::Datum::from(relation);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, key);
        if tuple.is_null() {
            return None;
        }
        let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
        let class = &*data.cast::<pg_sys::FormData_pg_class>();
        let found = Class {
            owner: class.relowner,
            schema: class.relnamespace,
            row_type: class.reltype,
            kind: class.relkind as u8 as char,
            has_triggers: class.relhastriggers,
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Whether tables of an access method, which has this handler, can be scanned by ranges of blocks.
pub fn has_tid_range_scans(handler: pg_sys::Oid) -> bool {
    // SAFETY: the handler is that of an access method for tables: a superuser's C function that gives a constant.
    unsafe {
        let method = &*pg_sys::GetTableAmRoutine(handler);
        method.scan_set_tidrange.is_some() && method.scan_getnextslot_tidrange.is_some()
    }
}

/// The owner of a relation.
pub fn owner(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    find(relation).map(|class| class.owner)
}

/// The name of a relation, qualified and quoted; its OID when it is gone.
pub fn name(relation: pg_sys::Oid) -> String {
    // SAFETY: the functions give palloc'ed strings, or NULL for what is not there.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return relation.to_u32().to_string();
        }
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        c_string(pg_sys::quote_qualified_identifier(schema, name))
    }
}

/// The type and type modifier of a column.
pub fn column_type(relation: pg_sys::Oid, name: &str) -> Option<(pg_sys::Oid, i32)> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a tuple of this cache is of pg_attribute, whose data begin at its offset; it is released after it was read.
    // Dropped columns are left out.
    unsafe {
        let tuple = pg_sys::SearchSysCacheAttName(relation, name.as_ptr());
        if tuple.is_null() {
            return None;
        }
        let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
        let attribute = &*data.cast::<pg_sys::FormData_pg_attribute>();
        let found = (attribute.atttypid, attribute.atttypmod);
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// The number of a column.
pub fn column_number(relation: pg_sys::Oid, name: &str) -> Option<i16> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: looks the name up; 0 when there is no such column.
    let number = unsafe { pg_sys::get_attnum(relation, name.as_ptr()) };
    (number != 0).then_some(number)
}
