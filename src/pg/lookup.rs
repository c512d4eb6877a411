//! Looking rows up as PostgreSQL does in its own catalogs: as they are now, whatever the snapshot of the statement under way,
//! and without a statement, a plan or a role of its own. So it can be done while a statement is being started, in parallel
//! mode and on a standby.

use std::ffi::CStr;

use pgrx::datum::{FromDatum, JsonB};
use pgrx::pg_sys;
use smallvec::SmallVec;

use super::inspect::ObjectId;
use super::table::relation_named;
use super::{c_string, extension, oids_of};

/// A catalog of PostgreSQL's, and the index that it is looked up by.
type Catalog = (u32, u32);

const INHERITS_BY_CHILD: Catalog = (2611, 2680);
const CONSTRAINT_BY_TYPE: Catalog = (2606, 2666);
const DEPEND_BY_REFERENCED: Catalog = (2608, 2674);
const TRIGGER_BY_TABLE: Catalog = (2620, 2701);
const TRIGGER_BY_OID: Catalog = (2620, 2702);

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
    look_up(INHERITS_BY_CHILD, &[(c"inhrelid", relation)], |row| {
        parents.extend(row.oid(c"inhparent"));
    });
    parents
}

/// The table and the rule, as JSON, of the active change with this id.
pub fn registered(id: i64) -> Option<(pg_sys::Oid, String)> {
    let mut found = None;
    // SAFETY: zdd.change.id is a bigint.
    unsafe {
        scan(extension::catalog()?, Index::PrimaryKey, &[(c"id", pg_sys::F_INT8EQ, id.into())], |row| {
            found = row.oid(c"relation").zip(row.json(c"rule"));
            true
        });
    }
    found
}

/// Whether there is an active change of a table itself.
pub fn has_change(relation: pg_sys::Oid) -> bool {
    is_active(&[(c"relation", pg_sys::F_OIDEQ, relation.into())])
}

/// Whether there is any active change.
pub fn any_change() -> bool {
    is_active(&[])
}

fn is_active(relation: &[(&CStr, u32, pg_sys::Datum)]) -> bool {
    let Some(catalog) = extension::catalog() else { return false };
    let mut found = false;
    // SAFETY: zdd.change.relation is a regclass, which is compared as an OID.
    unsafe {
        scan(catalog, Index::Named("change_source_key"), relation, |row| {
            found = row.oid(c"relation").is_some();
            !found
        });
    }
    found
}

/// As whom the SQL of a change's rule runs.
pub fn rule_owner(id: i64) -> Option<pg_sys::Oid> {
    extension::catalog()?;
    let mut found = None;
    // SAFETY: zdd.guarded.change_id is a bigint.
    unsafe {
        let key = (c"change_id", pg_sys::F_INT8EQ, id.into());
        scan(relation_named("zdd", "guarded")?, Index::PrimaryKey, &[key], |row| {
            found = row.oid(c"owner");
            true
        });
    }
    found
}

/// A trigger as pg_trigger knows it.
pub struct Trigger {
    pub table: pg_sys::Oid,
    pub name: String,
    pub function: pg_sys::Oid,
}

impl Trigger {
    fn from_row(row: &Found) -> Option<Trigger> {
        Some(Trigger { table: row.oid(c"tgrelid")?, name: row.name(c"tgname")?, function: row.oid(c"tgfoid")? })
    }
}

/// The trigger with this OID.
pub fn trigger(oid: pg_sys::Oid) -> Option<Trigger> {
    let mut found = None;
    look_up(TRIGGER_BY_OID, &[(c"oid", oid)], |row| found = Trigger::from_row(row));
    found
}

/// All triggers of a table.
pub fn triggers_of(table: pg_sys::Oid) -> Vec<Trigger> {
    let mut found = Vec::new();
    look_up(TRIGGER_BY_TABLE, &[(c"tgrelid", table)], |row| found.extend(Trigger::from_row(row)));
    found
}

/// What depends on an object.
pub struct Dependent {
    pub object: ObjectId,
    /// Whether it is a part of it, such as the array type of a type.
    pub is_part: bool,
}

/// All that depends on an object or a part of it.
pub fn dependents(object: ObjectId) -> Vec<Dependent> {
    let mut found = Vec::new();
    look_up(DEPEND_BY_REFERENCED, &[(c"refclassid", object.class), (c"refobjid", object.oid)], |row| {
        let object = row.oid(c"classid").zip(row.oid(c"objid")).map(|(class, oid)| ObjectId { class, oid });
        let is_part = row.char(c"deptype") == Some('i');
        found.extend(object.map(|object| Dependent { object, is_part }));
    });
    found
}

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
    look_up(CONSTRAINT_BY_TYPE, &[(c"contypid", oid)], |_| has_check = true);
    not_null || has_check
}

/// A row that was found.
struct Found {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Found {
    /// The value of a column, if it is there, not NULL, and of one of these types.
    fn value(&self, name: &CStr, types: &[pg_sys::Oid]) -> Option<pg_sys::Datum> {
        // SAFETY: the tuple is of this descriptor, and both are valid while the row is looked at.
        unsafe {
            let number = pg_sys::SPI_fnumber(self.descriptor, name.as_ptr());
            if number <= 0 || !types.contains(&pg_sys::SPI_gettypeid(self.descriptor, number)) {
                return None;
            }
            let mut is_null = false;
            let value = pg_sys::SPI_getbinval(self.tuple, self.descriptor, number, &mut is_null);
            (!is_null).then_some(value)
        }
    }

    fn oid(&self, name: &CStr) -> Option<pg_sys::Oid> {
        // SAFETY: the value is of a type that is an OID.
        unsafe { pg_sys::Oid::from_datum(self.value(name, &[pg_sys::OIDOID, pg_sys::REGCLASSOID])?, false) }
    }

    fn char(&self, name: &CStr) -> Option<char> {
        // SAFETY: the value is a "char".
        unsafe { i8::from_datum(self.value(name, &[pg_sys::CHAROID])?, false).map(|char| char::from(char as u8)) }
    }

    fn name(&self, name: &CStr) -> Option<String> {
        let value = self.value(name, &[pg_sys::NAMEOID])?;
        // SAFETY: a name is NUL-terminated.
        Some(unsafe { c_string(value.cast_mut_ptr()) })
    }

    fn json(&self, name: &CStr) -> Option<String> {
        // SAFETY: the value is a jsonb.
        unsafe { JsonB::from_datum(self.value(name, &[pg_sys::JSONBOID])?, false).map(|json| json.0.to_string()) }
    }
}

/// Shows the rows of one of PostgreSQL's catalogs by the first columns of an index, which are OIDs.
fn look_up((catalog, index): Catalog, keys: &[(&CStr, pg_sys::Oid)], mut each: impl FnMut(&Found)) {
    let keys: SmallVec<[_; 2]> =
        keys.iter().map(|(column, value)| (*column, pg_sys::F_OIDEQ, pg_sys::Datum::from(*value))).collect();
    // SAFETY: the constants above are indexes of their catalogs, and all keys are columns of type OID.
    unsafe {
        scan(catalog.into(), Index::Of(index.into()), &keys, |row| {
            each(row);
            true
        });
    }
}

/// The index to look a table up by; without it the whole table is read.
enum Index<'i> {
    Of(pg_sys::Oid),
    PrimaryKey,
    Named(&'i str),
}

impl Index<'_> {
    /// # Safety
    /// The relation is open.
    unsafe fn oid(&self, relation: pg_sys::Relation) -> Option<pg_sys::Oid> {
        // SAFETY: the list is one of OIDs, of the table's own indexes; it also fills in which is the primary key.
        unsafe {
            let list = match self {
                Index::Of(oid) => return Some(*oid),
                _ => pg_sys::RelationGetIndexList(relation),
            };
            let found = match self {
                Index::Named(name) => {
                    oids_of(list).into_iter().find(|oid| c_string(pg_sys::get_rel_name(*oid)) == *name)
                }
                _ => Some((*relation).rd_pkindex),
            };
            pg_sys::list_free(list);
            found.filter(|oid| *oid != pg_sys::InvalidOid)
        }
    }
}

/// Shows the rows of a table that have these values in these columns, for as long as they are wanted.
///
/// # Safety
/// The index is one of the table that begins with these columns; each function that compares is one for the type of the
/// column and of the value.
unsafe fn scan(
    table: pg_sys::Oid,
    index: Index,
    values: &[(&CStr, u32, pg_sys::Datum)],
    mut wants_more: impl FnMut(&Found) -> bool,
) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opens, scans and closes as PostgreSQL's code does with its catalogs; the keys live as long as the scan. What is
    // left open by an error, the abort of the transaction closes.
    unsafe {
        let relation = pg_sys::try_relation_open(table, lock);
        if relation.is_null() {
            return;
        }
        let mut keys: SmallVec<[pg_sys::ScanKeyData; 2]> = values
            .iter()
            .map(|(column, equals, value)| {
                let mut key = pg_sys::ScanKeyData::default();
                let number = pg_sys::SPI_fnumber((*relation).rd_att, column.as_ptr()) as pg_sys::AttrNumber;
                pg_sys::ScanKeyInit(&mut key, number, pg_sys::BTEqualStrategyNumber as u16, (*equals).into(), *value);
                key
            })
            .collect();
        let index = index.oid(relation);
        let scan = pg_sys::systable_beginscan(
            relation,
            index.unwrap_or_default(),
            index.is_some(),
            std::ptr::null_mut(),
            keys.len() as i32,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() || !wants_more(&Found { tuple, descriptor: (*relation).rd_att }) {
                break;
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::relation_close(relation, lock);
    }
}
