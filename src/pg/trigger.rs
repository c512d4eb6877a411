//! What a row trigger is called with.

use std::marker::PhantomData;

use pgrx::pg_sys;
use smallvec::SmallVec;

use super::hook::Columns;
use super::inspect::ObjectId;
use super::set::for_each_row;
use super::table::{Row, Table};
use super::value::Value;
use super::{c_string, list_of, node_string, tag};
use crate::error::Error;

/// A BEFORE ROW trigger's call for an INSERT or an UPDATE.
pub struct RowTrigger {
    data: *mut pg_sys::TriggerData,
}

impl RowTrigger {
    /// The call, or an error if the function was called in any other way.
    pub fn from_call(fcinfo: pg_sys::FunctionCallInfo) -> Result<RowTrigger, Error> {
        // SAFETY: PostgreSQL passes a valid call info; for a trigger its context is TriggerData.
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || tag(context) != pg_sys::NodeTag::T_TriggerData {
                return Err(Error::NotATrigger);
            }
            let data = context.cast::<pg_sys::TriggerData>();
            let event = (*data).tg_event;
            let operation = event & pg_sys::TRIGGER_EVENT_OPMASK;
            let before_row = event & pg_sys::TRIGGER_EVENT_ROW != 0
                && event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE;
            let handled = operation == pg_sys::TRIGGER_EVENT_INSERT || operation == pg_sys::TRIGGER_EVENT_UPDATE;
            if !before_row || !handled || (*(*data).tg_trigger).tgnargs != 1 {
                return Err(Error::NotATrigger);
            }
            Ok(RowTrigger { data })
        }
    }

    pub fn is_update(&self) -> bool {
        // SAFETY: valid for the duration of the call, here and below.
        unsafe { (*self.data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_UPDATE }
    }

    /// The OID of the trigger.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: see `is_update`.
        unsafe { (*(*self.data).tg_trigger).tgoid }
    }

    /// Whether the table is a partition, which an UPDATE may move rows out of and into.
    pub fn is_on_partition(&self) -> bool {
        // SAFETY: see `is_update`.
        unsafe { (*(*self.data).tg_trigger).tgisclone }
    }

    /// Tells the client's statements apart: when its transaction and itself began. Other triggers may run commands of their
    /// own within it.
    pub fn statement(&self) -> (i64, i64) {
        // SAFETY: reads backend variables.
        unsafe { (pg_sys::GetCurrentTransactionStartTimestamp(), pg_sys::GetCurrentStatementStartTimestamp()) }
    }

    pub fn table(&self) -> Table {
        // SAFETY: the relation stays open for the duration of the call.
        unsafe { Table::borrowed((*self.data).tg_relation) }
    }

    /// The trigger's one argument.
    pub fn argument(&self) -> String {
        // SAFETY: `from_call` has seen that there is one.
        unsafe { c_string(*(*(*self.data).tg_trigger).tgargs) }
    }

    /// The row as it is to be written.
    pub fn new_row(&self) -> Row<'_> {
        // SAFETY: see `is_update`; the slots hold the rows of the call.
        let slot = unsafe { if self.is_update() { (*self.data).tg_newslot } else { (*self.data).tg_trigslot } };
        Row { slot, table: PhantomData }
    }

    /// For an UPDATE, the row as it was.
    pub fn old_row(&self) -> Row<'_> {
        // SAFETY: see `is_update`.
        Row { slot: unsafe { (*self.data).tg_trigslot }, table: PhantomData }
    }

    /// Whether a column is written: by an UPDATE if it is set, by an INSERT if it is not NULL.
    pub fn writes(&self, column: i16) -> bool {
        if self.is_update() {
            // SAFETY: see `is_update`; the set belongs to the statement.
            Columns(unsafe { (*self.data).tg_updatedcols }).has(column)
        } else {
            !self.new_row().get(column).is_null()
        }
    }

    /// What to return to leave the row as it is.
    pub fn unchanged(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.new_tuple())
    }

    /// What to return to write values into some columns.
    pub fn changed(&self, columns: impl Iterator<Item = (i16, Value)>) -> pg_sys::Datum {
        let row = self.new_row();
        // SAFETY: the slot has as many values as its descriptor has columns once they are all read; the old tuple gives
        // the new one its identity, as heap_modify_tuple does it.
        unsafe {
            let descriptor = (*row.slot).tts_tupleDescriptor;
            let count = (*descriptor).natts as usize;
            row.read_all();
            let mut values =
                SmallVec::<[pg_sys::Datum; 32]>::from_slice(std::slice::from_raw_parts((*row.slot).tts_values, count));
            let mut nulls =
                SmallVec::<[bool; 32]>::from_slice(std::slice::from_raw_parts((*row.slot).tts_isnull, count));
            for (number, value) in columns {
                let index = number as usize - 1;
                (values[index], nulls[index]) = value.parts();
            }
            let old = self.new_tuple();
            let new = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            (*(*new).t_data).t_ctid = (*(*old).t_data).t_ctid;
            (*new).t_self = (*old).t_self;
            (*new).t_tableOid = (*old).t_tableOid;
            pg_sys::Datum::from(new)
        }
    }

    fn new_tuple(&self) -> pg_sys::HeapTuple {
        // SAFETY: see `is_update`.
        unsafe { if self.is_update() { (*self.data).tg_newtuple } else { (*self.data).tg_trigtuple } }
    }
}

/// A sync trigger of a table, as it says it is.
pub struct SyncTrigger {
    pub oid: pg_sys::Oid,
    pub name: String,
    pub argument: String,
}

/// The sync triggers of a table, from what PostgreSQL keeps in memory of every open table.
pub fn sync_triggers(table: &Table) -> Vec<SyncTrigger> {
    // SAFETY: an open relation's triggers are valid for as long as it is open and locked; each has a name and `tgnargs`
    // arguments. The catalogs are asked only about functions of triggers that look like ours.
    unsafe {
        let Some(all) = (*table.raw()).trigdesc.as_ref() else { return Vec::new() };
        let count = usize::try_from(all.numtriggers).unwrap_or(0);
        let ours = (0..count).map(|index| &*all.triggers.add(index)).filter(|trigger| {
            trigger.tgnargs == 1
                && c_string(trigger.tgname).starts_with(NAME_PREFIX)
                && super::extension::sync_function() == Some(trigger.tgfoid)
        });
        ours.map(|trigger| SyncTrigger {
            oid: trigger.tgoid,
            name: c_string(trigger.tgname),
            argument: c_string(*trigger.tgargs),
        })
        .collect()
    }
}

/// How the names of sync triggers begin: '~' sorts after all other ASCII characters.
pub const NAME_PREFIX: &str = "~zdd_";

/// The SQL function zdd.sync(). Not a `#[pg_extern]`: it runs for every row that is written.
///
/// # Safety
/// Called by PostgreSQL alone.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn zdd_sync(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let fired = RowTrigger::from_call(fcinfo)
        .and_then(|trigger| crate::sync::fire(&trigger).inspect_err(|error| crate::usage::failed(&trigger, error)));
    match fired {
        Ok(tuple) => tuple,
        Err(error) => {
            pgrx::pg_sys::panic::ErrorReport::from(error).report(pgrx::PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }
}

/// Tells PostgreSQL how `zdd_sync` is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_zdd_sync() -> &'static pg_sys::Pg_finfo_record {
    const VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &VERSION_1
}

/// Something that a DDL statement has made or altered.
pub struct Command {
    pub object: ObjectId,
    pub tag: String,
    pub is_temporary: bool,
    /// Whether the script of an extension has done it.
    pub in_extension: bool,
}

/// Something that a statement has dropped.
pub struct Dropped {
    pub kind: DroppedKind,
    /// Of the table, if it is a column.
    pub oid: pg_sys::Oid,
    /// Schema, table, and, for columns and triggers, their own name.
    pub names: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DroppedKind {
    Table,
    Column,
    Trigger,
}

/// An event trigger's call.
pub struct EventTrigger {
    data: *const pg_sys::EventTriggerData,
}

impl EventTrigger {
    /// The call, or an error if the function was called in any other way.
    fn from_call(fcinfo: pg_sys::FunctionCallInfo) -> Result<EventTrigger, Error> {
        // SAFETY: PostgreSQL passes a valid call info; for an event trigger its context is EventTriggerData.
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || tag(context) != pg_sys::NodeTag::T_EventTriggerData {
                return Err(Error::NotAnEventTrigger);
            }
            Ok(EventTrigger { data: context.cast() })
        }
    }

    /// The event: ddl_command_start, ddl_command_end, sql_drop.
    pub fn event(&self) -> String {
        // SAFETY: valid for the duration of the call; the event is a NUL-terminated string.
        unsafe { c_string((*self.data).event) }
    }

    /// Whether the statement may be one that makes or alters triggers, on its own or as a part of it.
    pub fn may_make_triggers(&self) -> bool {
        // SAFETY: see `event`; the tag's name is a constant.
        let tag = unsafe { core::ffi::CStr::from_ptr(pg_sys::GetCommandTagName((*self.data).tag)) };
        tag == c"CREATE TRIGGER" || tag == c"ALTER TRIGGER" || tag == c"CREATE SCHEMA"
    }

    /// At the end of a statement: what it has made or altered and is still there.
    pub fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        // SAFETY: the function is called as it must be, or raises; these are its columns: classid, objid, command_tag,
        // schema_name and in_extension.
        unsafe {
            for_each_row(pg_sys::F_PG_EVENT_TRIGGER_DDL_COMMANDS, |row| {
                // A GRANT or REVOKE tells no object.
                let Some((class, oid)) = row.get(1).zip(row.get(2)) else { return };
                commands.push(Command {
                    object: ObjectId { class, oid },
                    tag: row.get(4).unwrap_or_default(),
                    is_temporary: row.get::<String>(6).as_deref() == Some("pg_temp"),
                    in_extension: row.get(8) == Some(true),
                });
            });
        }
        commands
    }

    /// When a statement has dropped something: the tables, columns and triggers that are gone, but for temporary ones.
    pub fn dropped(&self) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        // SAFETY: as above: classid, objid, is_temporary, object_type and address_names.
        unsafe {
            for_each_row(pg_sys::F_PG_EVENT_TRIGGER_DROPPED_OBJECTS, |row| {
                let kind = match row.get::<String>(7).as_deref() {
                    Some("table") => DroppedKind::Table,
                    Some("table column") => DroppedKind::Column,
                    Some("trigger") => DroppedKind::Trigger,
                    _ => return,
                };
                let Some(oid) = row.get(2).filter(|_| row.get(6) != Some(true)) else { return };
                let names: Vec<Option<String>> = row.get(11).unwrap_or_default();
                dropped.push(Dropped { kind, oid, names: names.into_iter().flatten().collect() });
            });
        }
        dropped
    }

    /// Whether the statement is DROP EXTENSION of this extension.
    pub fn drops_extension(&self, name: &core::ffi::CStr) -> bool {
        // SAFETY: the statement is a parse tree, whose tags tell its kind; the objects of DROP EXTENSION are names.
        unsafe {
            let statement = (*self.data).parsetree;
            tag(statement) == pg_sys::NodeTag::T_DropStmt
                && (*statement.cast::<pg_sys::DropStmt>()).removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                && list_of::<pg_sys::Node>((*statement.cast::<pg_sys::DropStmt>()).objects)
                    .into_iter()
                    .any(|object| tag(object) == pg_sys::NodeTag::T_String && node_string(object) == name)
        }
    }

    /// What a REVOKE takes rights on away: functions, and schemas for all that is in them. PostgreSQL does not tell event
    /// triggers.
    pub fn revoked(&self) -> Vec<ObjectId> {
        use pg_sys::ObjectType;
        // SAFETY: the statement is a parse tree, whose tags tell its kind; its objects are what get_object_address takes for
        // their type, and what is not there is passed over.
        unsafe {
            let statement = (*self.data).parsetree;
            if tag(statement) != pg_sys::NodeTag::T_GrantStmt {
                return Vec::new();
            }
            let grant = &*statement.cast::<pg_sys::GrantStmt>();
            let of_functions = matches!(
                grant.objtype,
                ObjectType::OBJECT_FUNCTION | ObjectType::OBJECT_PROCEDURE | ObjectType::OBJECT_ROUTINE
            );
            let object_type = match grant.targtype {
                pg_sys::GrantTargetType::ACL_TARGET_OBJECT if of_functions => grant.objtype,
                pg_sys::GrantTargetType::ACL_TARGET_OBJECT if grant.objtype == ObjectType::OBJECT_SCHEMA => {
                    grant.objtype
                }
                pg_sys::GrantTargetType::ACL_TARGET_ALL_IN_SCHEMA if of_functions => ObjectType::OBJECT_SCHEMA,
                _ => return Vec::new(),
            };
            if grant.is_grant {
                return Vec::new();
            }
            list_of::<pg_sys::Node>(grant.objects)
                .into_iter()
                .map(|object| {
                    let mut relation = std::ptr::null_mut();
                    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
                    pg_sys::get_object_address(object_type, object, &mut relation, lock, true)
                })
                .filter(|address| address.objectId != pg_sys::InvalidOid)
                .map(|address| ObjectId { class: address.classId, oid: address.objectId })
                .collect()
        }
    }
}

/// The SQL function zdd.guard(), which event triggers call.
///
/// # Safety
/// Called by PostgreSQL alone.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn zdd_guard(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if let Err(error) = EventTrigger::from_call(fcinfo).and_then(|event| crate::guard::on_event(&event)) {
        pgrx::pg_sys::panic::ErrorReport::from(error).report(pgrx::PgLogLevel::ERROR);
    }
    pg_sys::Datum::from(0)
}

/// Tells PostgreSQL how `zdd_guard` is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_zdd_guard() -> &'static pg_sys::Pg_finfo_record {
    const VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &VERSION_1
}

/// Records that the trigger of this name depends on objects, so that PostgreSQL protects them from being dropped.
pub fn record_dependencies(table: pg_sys::Oid, trigger: &str, objects: &[ObjectId]) -> Result<(), Error> {
    let name = super::parse::c_text(trigger)?;
    // SAFETY: the trigger exists, or the look-up raises; addresses are complete.
    unsafe {
        let address = |class, oid| pg_sys::ObjectAddress { classId: class, objectId: oid, objectSubId: 0 };
        let trigger = address(pg_sys::TriggerRelationId, pg_sys::get_trigger_oid(table, name.as_ptr(), false));
        for object in objects {
            let object = address(object.class, object.oid);
            pg_sys::recordDependencyOn(&trigger, &object, pg_sys::DependencyType::DEPENDENCY_NORMAL);
        }
    }
    Ok(())
}
