//! Looking rows up as PostgreSQL does in its own catalogs: as they are now, whatever the snapshot of the statement under way,
//! and without a statement, a plan or a role of its own. So it can be done while a statement is being started, in parallel
//! mode and on a standby.

use pgrx::datum::{FromDatum, JsonB};
use pgrx::pg_sys;

use super::extension;
use super::table::relation_named;

const INHERITS: u32 = 2611;
const INHERITS_BY_CHILD: u32 = 2680;

/// All tables that a table is a partition or a child of, in any way.
pub fn ancestors(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    let mut next = parents(relation);
    while let Some(parent) = next.pop() {
        if !found.contains(&parent) {
            found.push(parent);
            next.extend(parents(parent));
        }
    }
    found
}

fn parents(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let mut parents = Vec::new();
    // SAFETY: pg_inherits begins with inhrelid and inhparent, and the index with the first.
    unsafe {
        look_up(INHERITS.into(), INHERITS_BY_CHILD.into(), (pg_sys::F_OIDEQ, relation.into()), |row| {
            parents.extend(row.get::<pg_sys::Oid>(c"inhparent", pg_sys::OIDOID));
        });
    }
    parents
}

/// The table and the rule, as JSON, of the active change with this id.
pub fn registered(id: i64) -> Option<(pg_sys::Oid, String)> {
    let mut found = None;
    // SAFETY: the first column of zdd.change is its key, a bigint.
    unsafe {
        look_up(extension::catalog()?, pg_sys::InvalidOid, (pg_sys::F_INT8EQ, id.into()), |row| {
            let relation = row.get::<pg_sys::Oid>(c"relation", pg_sys::REGCLASSOID);
            let rule = row.get::<JsonB>(c"rule", pg_sys::JSONBOID);
            found = relation.zip(rule.map(|rule| rule.0.to_string()));
        });
    }
    found
}

/// As whom the SQL of a change's rule runs.
pub fn rule_owner(id: i64) -> Option<pg_sys::Oid> {
    extension::catalog()?;
    let mut found = None;
    // SAFETY: the first column of zdd.guarded is its key, a bigint.
    unsafe {
        look_up(relation_named("zdd", "guarded")?, pg_sys::InvalidOid, (pg_sys::F_INT8EQ, id.into()), |row| {
            found = row.get::<pg_sys::Oid>(c"owner", pg_sys::OIDOID);
        });
    }
    found
}

const CONSTRAINT: u32 = 2606;
const CONSTRAINT_BY_TYPE: u32 = 2666;

/// Whether a type is a domain that is NOT NULL or has a CHECK of its own.
pub fn is_constrained_domain(oid: pg_sys::Oid) -> bool {
    // SAFETY: a tuple of this cache is of pg_type, whose data begin at its offset; it is released after it was read.
    let not_null = unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::TYPEOID as i32, oid.into());
        if tuple.is_null() {
            return false;
        }
        let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
        let not_null = (*data.cast::<pg_sys::FormData_pg_type>()).typnotnull;
        pg_sys::ReleaseSysCache(tuple);
        not_null
    };
    let mut has_check = false;
    // SAFETY: the first column of the index is contypid, an OID.
    unsafe {
        look_up_by(CONSTRAINT.into(), CONSTRAINT_BY_TYPE.into(), c"contypid", (pg_sys::F_OIDEQ, oid.into()), |_| {
            has_check = true;
        });
    }
    not_null || has_check
}

/// A row that was found.
struct Found {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Found {
    /// The value of a column, if it is there, not NULL, and of the type that it is expected to be.
    ///
    /// # Safety
    /// `T` is what values of `type_oid` are read as.
    unsafe fn get<T: FromDatum>(&self, name: &core::ffi::CStr, type_oid: pg_sys::Oid) -> Option<T> {
        // SAFETY: the tuple is of this descriptor, and both are valid while the row is looked at.
        unsafe {
            let number = pg_sys::SPI_fnumber(self.descriptor, name.as_ptr());
            if number <= 0 || pg_sys::SPI_gettypeid(self.descriptor, number) != type_oid {
                return None;
            }
            let mut is_null = false;
            let value = pg_sys::SPI_getbinval(self.tuple, self.descriptor, number, &mut is_null);
            T::from_datum(value, is_null)
        }
    }
}

/// Shows the rows of a table whose first column equals a value, with an index if there is one: InvalidOid stands for that of
/// the primary key.
///
/// # Safety
/// The function that compares is one for the type of the first column and of the value.
unsafe fn look_up(table: pg_sys::Oid, index: pg_sys::Oid, condition: (u32, pg_sys::Datum), each: impl FnMut(&Found)) {
    // SAFETY: the caller vouches for the first column.
    unsafe { look_up_column(table, index, None, condition, each) }
}

/// The same for a column by its name, which is the first of the index.
///
/// # Safety
/// The function that compares is one for the type of the column and of the value.
unsafe fn look_up_by(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    column: &core::ffi::CStr,
    condition: (u32, pg_sys::Datum),
    each: impl FnMut(&Found),
) {
    // SAFETY: the caller vouches for the column.
    unsafe { look_up_column(table, index, Some(column), condition, each) }
}

unsafe fn look_up_column(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    column: Option<&core::ffi::CStr>,
    (equals, value): (u32, pg_sys::Datum),
    mut each: impl FnMut(&Found),
) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opens, scans and closes as PostgreSQL's code does with its catalogs; the key lives as long as the scan. What is
    // left open by an error, the abort of the transaction closes.
    unsafe {
        let relation = pg_sys::try_relation_open(table, lock);
        if relation.is_null() {
            return;
        }
        let index = if index == pg_sys::InvalidOid {
            pg_sys::list_free(pg_sys::RelationGetIndexList(relation));
            (*relation).rd_pkindex
        } else {
            index
        };
        let mut key = pg_sys::ScanKeyData::default();
        let number = match column {
            Some(name) => pg_sys::SPI_fnumber((*relation).rd_att, name.as_ptr()) as pg_sys::AttrNumber,
            None => 1,
        };
        pg_sys::ScanKeyInit(&mut key, number, pg_sys::BTEqualStrategyNumber as u16, equals.into(), value);
        let has_index = index != pg_sys::InvalidOid;
        let scan = pg_sys::systable_beginscan(relation, index, has_index, std::ptr::null_mut(), 1, &mut key);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            each(&Found { tuple, descriptor: (*relation).rd_att });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::relation_close(relation, lock);
    }
}
