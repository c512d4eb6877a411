//! Refuses DDL that would break an active change. It looks at the state that the DDL leaves behind, not at its text; only
//! at what the DDL touched; and only in PostgreSQL's catalogs: it opens and locks no table and runs no code of users.

use std::cell::RefCell;
use std::collections::HashSet;

use pgrx::pg_sys::{self, Oid};
use serde_json::json;

use crate::catalog::{self, Change};
use crate::ddl::{foreign_key, trigger_name};
use crate::error::Error;
use crate::guc;
use crate::pg::inheritance::{ancestors, has_parent};
use crate::pg::inspect::{ObjectId, default_is_constant};
use crate::pg::lock::tree;
use crate::pg::lookup::{Dependent, Trigger, any_change, dependents, has_change, trigger, triggers_of};
use crate::pg::security::{acts_for, current_role, query, query_strings, role_name};
use crate::pg::table::relation_named;
use crate::pg::trigger::{Command, Dropped, DroppedKind, EventTrigger, NAME_PREFIX};
use crate::pg::types::ColumnType;
use crate::pg::{class, extension};
use crate::phase::Phase;
use crate::rule::Rule;

thread_local! {
    /// The tables that our own DDL is changing right now.
    static SUSPENDED: RefCell<Vec<Oid>> = const { RefCell::new(Vec::new()) };
}

/// Runs DDL of our own on these tables, which passes through states that the guard would refuse. What code of users does
/// meanwhile to other tables is looked at.
pub fn suspended<R>(tables: &[Oid], f: impl FnOnce() -> R) -> R {
    struct Resume(usize);
    impl Drop for Resume {
        fn drop(&mut self) {
            SUSPENDED.with_borrow_mut(|suspended| suspended.truncate(self.0));
        }
    }
    let _resume = SUSPENDED.with_borrow_mut(|suspended| {
        let before = Resume(suspended.len());
        suspended.extend(tables);
        before
    });
    f()
}

fn is_suspended(table: Oid) -> bool {
    SUSPENDED.with_borrow(|suspended| suspended.contains(&table))
}

/// Called by the event triggers.
pub fn on_event(event: &EventTrigger) -> Result<(), Error> {
    if !extension::is_installed() {
        return Ok(());
    }
    match event.event().as_str() {
        "ddl_command_start" if event.drops_extension(c"pg_zdd") => check_extension(),
        // Without a change there is nothing to break. But nobody else is to make its trigger.
        "ddl_command_end" if guc::guard() && (any_change() || event.may_make_triggers()) => {
            let mut commands = event.commands();
            commands.retain(|it| !it.is_temporary && !matches!(it.tag.as_str(), "COMMENT" | "SECURITY LABEL"));
            check_used(&commands)?;
            check_rights(&event.revoked())?;
            check_relations(&commands)
        }
        "sql_drop" if any_change() => check_dropped(&event.dropped()),
        _ => Ok(()),
    }
}

/// An error while there are active changes.
fn check_extension() -> Result<(), Error> {
    let changes: Vec<String> = catalog::all()?.into_iter().map(|change| change.name).collect();
    if changes.is_empty() || !guc::guard() { Ok(()) } else { Err(Error::ActiveChanges { changes }) }
}

const WAIT: &str = "Wait until the change is over, or give it up with SELECT zdd.rollback(...).";

fn refuse<T>(change: &Change, message: String, hint: &'static str) -> Result<T, Error> {
    Err(Error::Guard { change: change.name.clone(), message, hint })
}

/// Whether a relation is a part of a change, or has a sync trigger that is of none. This is all that most DDL pays for: a few
/// look-ups by index.
fn is_managed(relation: Oid) -> bool {
    let Some(class) = class::find(relation).filter(|class| matches!(class.kind, 'r' | 'p' | 'f')) else { return false };
    (class.has_triggers || has_parent(relation))
        && !is_suspended(relation)
        && (ancestors(relation).into_iter().any(has_change) || has_sync_trigger(relation))
}

fn has_sync_trigger(relation: Oid) -> bool {
    let sync = extension::sync_function();
    triggers_of(relation).into_iter().any(|trigger| Some(trigger.function) == sync)
}

/// A change whose table is gone is over. Columns and sync triggers of the others stay.
fn check_dropped(dropped: &[Dropped]) -> Result<(), Error> {
    let tables: Vec<Oid> =
        dropped.iter().filter(|it| it.kind == DroppedKind::Table && has_change(it.oid)).map(|it| it.oid).collect();
    if !tables.is_empty() {
        for change in catalog::of_relations(&tables)? {
            catalog::set_phase(&change, Phase::RolledBack, json!({ "reason": "the table was dropped" }))?;
        }
    }
    if !guc::guard() {
        return Ok(());
    }
    for it in dropped {
        let [schema, table, name] = it.names.as_slice() else { continue };
        if it.kind == DroppedKind::Column && is_managed(it.oid) {
            // A column of the same name may have been added at once, but what was in it is gone.
            for change in catalog::of_table(it.oid)? {
                let rule = &change.rule;
                if rule.source.current_name() == name || rule.targets.iter().any(|target| target.name == *name) {
                    return refuse(&change, format!("Column \"{name}\" would be dropped."), WAIT);
                }
            }
        } else if it.kind == DroppedKind::Trigger && name.starts_with(NAME_PREFIX) {
            let Some(table) = relation_named(schema, table).filter(|table| !is_suspended(*table)) else { continue };
            if let Some(change) = change_of_trigger(table, name)? {
                let message = format!("{} would not have the sync trigger \"{name}\".", class::name(table));
                return refuse(&change, message, WAIT);
            }
        }
    }
    Ok(())
}

/// The active change whose sync trigger has this name on this table.
fn change_of_trigger(table: Oid, trigger: &str) -> Result<Option<Change>, Error> {
    Ok(catalog::of_table(table)?.into_iter().find(|change| trigger_name(&change.name) == trigger))
}

/// Checks the changes of all relations that were touched.
fn check_relations(commands: &[Command]) -> Result<(), Error> {
    let of = |class: Oid| commands.iter().map(|it| it.object).filter(move |it| it.class == class).map(|it| it.oid);
    let triggers: Vec<Trigger> = of(pg_sys::TriggerRelationId).filter_map(trigger).collect();
    let touched: HashSet<Oid> = of(pg_sys::RelationRelationId)
        .chain(triggers.iter().map(|trigger| trigger.table))
        .filter(|relation| is_managed(*relation))
        .collect();
    for relation in touched {
        let changes = catalog::of_table(relation)?;
        for change in &changes {
            check_change(change, relation)?;
        }
        let known: Vec<String> = changes.iter().map(|change| trigger_name(&change.name)).collect();
        let sync = extension::sync_function();
        let made = triggers.iter().any(|trigger| trigger.table == relation && Some(trigger.function) == sync);
        check_unmanaged_triggers(relation, &known, made)?;
    }
    Ok(())
}

/// Checks a change after DDL on one of its tables.
fn check_change(change: &Change, touched: Oid) -> Result<(), Error> {
    let checked = check_members(change, touched);
    match catalog::is_guarded(change.id)? {
        true => checked,
        // A dump brings back the change first, and its triggers one by one.
        false if checked.is_ok() && check_members(change, change.relation).is_ok() => {
            catalog::set_guarded(change.id, class::owner(change.relation).unwrap_or_default())
        }
        false => Ok(()),
    }
}

/// What can be wrong with a touched table and with what inherits from it.
pub fn check_members(change: &Change, touched: Oid) -> Result<(), Error> {
    let members = tree(touched);
    check_columns(change)?;
    check_owners(change, &members)?;
    let targets: Vec<String> = change.rule.targets.iter().map(|target| target.name.clone()).collect();
    if let Some((table, target)) = not_null_columns(&members, &targets)? {
        return refuse(
            change,
            format!("Column \"{target}\" of {table} would be NOT NULL: the old application writes NULL there."),
            "Define it NOT NULL in split_column: it is enforced for the new application, and set in the contract.",
        );
    }
    for (table, target, default) in defaults(&members, &targets)? {
        if !default_is_constant(&default) {
            return refuse(
                change,
                format!("The default of column \"{target}\" of {table} would not be a constant."),
                "It could not be told from what an application has given. Set it after the contract.",
            );
        }
    }
    for &member in &members {
        for target in &targets {
            if let Some(constraint) = foreign_key(member, target)? {
                return refuse(
                    change,
                    format!(
                        "Foreign key \"{constraint}\" of {} would reject what the old application writes.",
                        class::name(member)
                    ),
                    "Add it after the contract.",
                );
            }
        }
    }
    check_kinds(change, &members)?;
    check_sync_triggers(change, &members)
}

/// PostgreSQL sees to it that partitions and children have the columns of their parent, of the same types.
fn check_columns(change: &Change) -> Result<(), Error> {
    let rule = &change.rule;
    let columns = rule.targets.iter().map(|target| (target.name.as_str(), target.type_name.as_str()));
    for (name, type_name) in columns.chain([(rule.source.current_name(), rule.source.type_name.as_str())]) {
        let table = class::name(change.relation);
        let Some((oid, typmod)) = class::column_type(change.relation, name) else {
            return refuse(
                change,
                format!("The sync trigger does not fit table {table}: it has no column \"{name}\"."),
                WAIT,
            );
        };
        let actual = ColumnType::new(oid, typmod, pg_sys::InvalidOid).name();
        if actual != type_name {
            let message = format!(
                "The sync trigger does not fit table {table}: column \"{name}\" is of type {actual}, not {type_name}."
            );
            return refuse(change, message, WAIT);
        }
    }
    Ok(())
}

/// The owner who began the change has all its tables, or can act for the owners of partitions. PostgreSQL lets nobody else
/// alter them together, so that nothing could be taken back.
fn check_owners(change: &Change, members: &[Oid]) -> Result<(), Error> {
    let Some(owner) = catalog::rule_owner(change.id) else { return Ok(()) };
    let sql = "select c.oid from pg_class as c where c.oid = any ($1) and c.relowner <> $2
            and not (c.relispartition and pg_has_role($2, c.relowner, 'usage')) limit 1";
    let other = query(sql, &[members.to_vec().into(), owner.into()], |row| Ok(row.get::<Oid>(1)?))?.pop().flatten();
    match other {
        None => Ok(()),
        Some(table) => refuse(
            change,
            format!(
                "{} would have another owner than \"{}\", who began the change.",
                class::name(table),
                role_name(owner)
            ),
            "The rule of a change runs with the rights of one owner: change the owner of all its tables after the contract.",
        ),
    }
}

fn not_null_columns(members: &[Oid], columns: &[String]) -> Result<Option<(String, String)>, Error> {
    let sql = "select a.attrelid, a.attname::text from pg_attribute as a
        where a.attrelid = any ($1) and a.attname = any ($2::text[]::name[]) and a.attnotnull and not a.attisdropped limit 1";
    let found = query(sql, &[members.to_vec().into(), columns.to_vec().into()], |row| {
        let table: Option<Oid> = row.get(1)?;
        Ok((class::name(table.unwrap_or_default()), row.get::<String>(2)?.unwrap_or_default()))
    })?;
    Ok(found.into_iter().next())
}

/// The different defaults of columns: a table that has each, the column, and the expression as PostgreSQL stores it.
fn defaults(members: &[Oid], columns: &[String]) -> Result<Vec<(String, String, String)>, Error> {
    let sql = "select min(d.adrelid::oid), a.attname::text, d.adbin::text from pg_attribute as a
        join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = any ($1) and a.attname = any ($2::text[]::name[]) and a.atthasdef and not a.attisdropped
        group by a.attname, d.adbin::text";
    query(sql, &[members.to_vec().into(), columns.to_vec().into()], |row| {
        let table: Option<Oid> = row.get(1)?;
        let name = class::name(table.unwrap_or_default());
        Ok((name, row.get::<String>(2)?.unwrap_or_default(), row.get::<String>(3)?.unwrap_or_default()))
    })
}

/// Tables whose rows cannot be kept in sync, or not everywhere.
fn check_kinds(change: &Change, members: &[Oid]) -> Result<(), Error> {
    let sql = "select c.oid from pg_class as c where c.oid = any ($1) and c.relkind = 'f' limit 1";
    if let Some(Some(table)) = query(sql, &[members.to_vec().into()], |row| Ok(row.get::<Oid>(1)?))?.pop() {
        let message = format!("{} is a foreign table: its rows cannot be kept in sync.", class::name(table));
        return refuse(change, message, WAIT);
    }
    let sql = "select c.oid, a.amhandler::oid from pg_class as c join pg_am as a on a.oid = c.relam
        where c.oid = any ($1) and c.relkind = 'r' and a.amhandler <> 'heap_tableam_handler'::regproc";
    let methods = query(sql, &[members.to_vec().into()], |row| Ok((row.get::<Oid>(1)?, row.get::<Oid>(2)?)))?;
    for (table, handler) in methods.into_iter().filter_map(|(table, handler)| table.zip(handler)) {
        if !class::has_tid_range_scans(handler) {
            return refuse(
                change,
                format!(
                    "The access method of {} has no TID range scans: its rows cannot be split.",
                    class::name(table)
                ),
                "Do without such a partition until the change is over.",
            );
        }
    }
    let columns: Vec<&str> = change
        .rule
        .targets
        .iter()
        .map(|target| target.name.as_str())
        .chain([change.rule.source.current_name()])
        .collect();
    for &member in members.iter().filter(|member| class::find(**member).is_some_and(|class| class.kind == 'p')) {
        if let Some(column) = partition_key(member)?.into_iter().find(|key| columns.contains(&key.as_str())) {
            return refuse(
                change,
                format!("{} would be partitioned by column \"{column}\".", class::name(member)),
                "Rows would change their partition with every write of the other application. Partition it after the contract.",
            );
        }
    }
    Ok(())
}

/// The columns in the partition key of a table, also those in expressions.
pub fn partition_key(table: Oid) -> Result<Vec<String>, Error> {
    let sql = "select a.attname::text from pg_partitioned_table as p
        join pg_depend as d on d.classid = 'pg_class'::regclass and d.objid = p.partrelid and d.refobjid = p.partrelid
            and d.refclassid = d.classid and d.deptype = 'i'
        join pg_attribute as a on a.attrelid = p.partrelid and a.attnum = d.objsubid
        where p.partrelid = $1";
    query_strings(sql, &[table.into()])
}

/// Each table has the sync trigger with the change's rule, which fires for all who write, and last.
fn check_sync_triggers(change: &Change, members: &[Oid]) -> Result<(), Error> {
    let name = trigger_name(&change.name);
    let sql = "select m.oid, t.tgenabled::text, t.tgargs = convert_to($4::text, 'UTF8') || '\\x00'::bytea
        from unnest($1::oid[]) as m (oid)
        left join pg_trigger as t on t.tgrelid = m.oid and t.tgname = $2::text::name and t.tgfoid = $3
        where t.oid is null or t.tgenabled <> 'A' or t.tgargs <> convert_to($4::text, 'UTF8') || '\\x00'::bytea
        limit 1";
    let sync = extension::sync_function().unwrap_or_default();
    let args = [members.to_vec().into(), name.as_str().into(), sync.into(), change.rule.to_json().into()];
    let broken = query(sql, &args, |row| {
        Ok((row.get::<Oid>(1)?.unwrap_or_default(), row.get::<String>(2)?, row.get::<bool>(3)?))
    })?;
    if let Some((table, enabled, same_rule)) = broken.into_iter().next() {
        let relation = class::name(table);
        return match enabled.as_deref() {
            None => refuse(
                change,
                format!("{relation} would not have the sync trigger \"{name}\"."),
                if table == change.relation { WAIT } else { "Do without a child table until the change is over." },
            ),
            Some("D" | "R") => refuse(
                change,
                format!("The sync trigger \"{name}\" of {relation} would not fire for ordinary sessions."),
                "Leave it enabled; for a bulk load without triggers, SET session_replication_role = replica in that session.",
            ),
            Some(_) if same_rule == Some(false) => refuse(
                change,
                format!("The sync trigger \"{name}\" of {relation} would have another rule."),
                "Use zdd.alter_change.",
            ),
            Some(_) => refuse(
                change,
                format!("The sync trigger \"{name}\" of {relation} would not see what logical replication writes."),
                "Say ENABLE ALWAYS TRIGGER.",
            ),
        };
    }
    match later_trigger(members, &name)? {
        Some((relation, trigger)) => Err(Error::LateTrigger { relation, trigger, ours: name }),
        None => Ok(()),
    }
}

/// A table, and its BEFORE ROW trigger that would fire after the sync trigger of this name. Other sync triggers mind other
/// columns.
pub fn later_trigger(members: &[Oid], ours: &str) -> Result<Option<(String, String)>, Error> {
    // tgtype: 1 row, 2 before, 4 insert, 16 update.
    let sql = "select t.tgrelid, t.tgname::text from pg_trigger as t
        where t.tgrelid = any ($1) and not t.tgisinternal and t.tgtype & 3 = 3 and t.tgtype & 20 <> 0
            and t.tgfoid <> $3 and t.tgname::text collate \"C\" > $2 limit 1";
    let sync = extension::sync_function().unwrap_or_default();
    let found = query(sql, &[members.to_vec().into(), ours.into(), sync.into()], |row| {
        let table: Option<Oid> = row.get(1)?;
        Ok((class::name(table.unwrap_or_default()), row.get::<String>(2)?.unwrap_or_default()))
    })?;
    Ok(found.into_iter().next())
}

/// The sync triggers of a table: name and rule.
fn sync_triggers(relation: Oid) -> Result<Vec<(String, String)>, Error> {
    let sql =
        "select tgname::text, convert_from(substr(tgargs, 1, greatest(length(tgargs) - 1, 0)), 'UTF8') from pg_trigger
        where tgrelid = $1 and tgfoid = $2";
    let sync = extension::sync_function().unwrap_or_default();
    query(sql, &[relation.into(), sync.into()], |row| {
        Ok((row.get(1)?.unwrap_or_default(), row.get(2)?.unwrap_or_default()))
    })
}

/// A sync trigger of a table that is of no active change.
pub fn unmanaged_sync_trigger(relation: Oid, known: &[String]) -> Result<Option<String>, Error> {
    Ok(sync_triggers(relation)?.into_iter().map(|(name, _)| name).find(|name| !known.contains(name)))
}

/// Sync triggers are pg_zdd's to make. A child that leaves its parent must not keep one. Where there is no change, as in a
/// database restored without its data, the owner may make one: it does nothing but what its text says.
fn check_unmanaged_triggers(relation: Oid, known: &[String], made: bool) -> Result<(), Error> {
    for (trigger, rule) in sync_triggers(relation)?.into_iter().filter(|(name, _)| !known.contains(name)) {
        let of = Rule::from_json(&rule).ok().map(|rule| rule.change);
        if let Some(change) = of.and_then(|name| catalog::find(&name).ok())
            && trigger_name(&change.name) == trigger
            && !made
        {
            return refuse(
                &change,
                format!("A table would leave the change with its sync trigger \"{trigger}\"."),
                WAIT,
            );
        }
        let owner = class::owner(relation).unwrap_or_default();
        if made && !(known.is_empty() && is_restored(relation, &trigger, &rule) && acts_for(current_role(), owner)) {
            return Err(Error::StrangeTrigger { trigger, relation: class::name(relation) });
        }
    }
    Ok(())
}

/// Whether a sync trigger is one that pg_zdd has made in the database that this one was dumped from: it has the name that its
/// rule gives it, and the table has the columns.
fn is_restored(relation: Oid, trigger: &str, rule: &str) -> bool {
    let Ok(rule) = Rule::from_json(rule) else { return false };
    let mut columns = rule.targets.iter().map(|target| target.name.as_str()).chain([rule.source.current_name()]);
    trigger_name(&rule.change) == trigger && columns.all(|name| class::column_type(relation, name).is_some())
}

/// A change whose rule uses an object, by the dependency of its sync trigger.
struct Use {
    object: ObjectId,
    table: Oid,
    trigger: String,
}

/// The sync triggers that use one of these objects, or one in them if they are schemas.
fn uses(objects: &[ObjectId]) -> Vec<Use> {
    let mut found = Vec::new();
    let mut next: Vec<(ObjectId, bool)> =
        objects.iter().map(|it| (*it, it.class == pg_sys::NamespaceRelationId)).collect();
    while let Some((object, with_parts)) = next.pop() {
        for Dependent { object: dependent, is_part } in dependents(object) {
            if dependent.class == pg_sys::TriggerRelationId {
                found.extend(use_by(dependent.oid, object));
            }
            // A table has a type for its rows, a range one for several, and each of them one for arrays.
            let is_in = match object.class {
                pg_sys::NamespaceRelationId => {
                    matches!(
                        dependent.class,
                        pg_sys::ProcedureRelationId | pg_sys::TypeRelationId | pg_sys::RelationRelationId
                    )
                }
                pg_sys::RelationRelationId | pg_sys::TypeRelationId => {
                    dependent.class == pg_sys::TypeRelationId && is_part
                }
                _ => false,
            };
            if with_parts && is_in {
                next.push((dependent, true));
            }
        }
    }
    found
}

fn use_by(oid: Oid, object: ObjectId) -> Option<Use> {
    let trigger = trigger(oid).filter(|trigger| Some(trigger.function) == extension::sync_function())?;
    Some(Use { object, table: trigger.table, trigger: trigger.name })
}

/// A description of an object for people.
fn describe(object: ObjectId) -> Result<String, Error> {
    let sql = "select coalesce(pg_describe_object($1, $2, 0), 'an object')";
    Ok(query_strings(sql, &[object.class.into(), object.oid.into()])?.pop().unwrap_or_default())
}

/// Refuses to alter what the rules of changes use. A function may get another body, as long as it stays immutable. An
/// extension may do with its own what it likes: nobody's rule is to stop an upgrade.
fn check_used(commands: &[Command]) -> Result<(), Error> {
    let altered: Vec<ObjectId> = commands
        .iter()
        .filter(|command| !command.in_extension)
        .filter(|command| command.tag.starts_with("ALTER ") || command.tag == "CREATE FUNCTION")
        .filter_map(|command| match command.object.class {
            // What uses a table uses the type of its rows.
            pg_sys::RelationRelationId => {
                let oid = class::find(command.object.oid)?.row_type;
                (oid != pg_sys::InvalidOid).then_some(ObjectId { class: pg_sys::TypeRelationId, oid })
            }
            _ => Some(command.object),
        })
        .collect();
    if altered.is_empty() {
        return Ok(());
    }
    for used in uses(&altered).into_iter().filter(|used| !is_suspended(used.table)) {
        let replaced = commands.iter().any(|it| it.object == used.object && it.tag == "CREATE FUNCTION");
        if replaced && is_immutable(used.object.oid)? {
            continue;
        }
        if let Some(change) = change_of_trigger(used.table, &used.trigger)? {
            return refuse(&change, format!("Its rule uses {}.", describe(used.object)?), WAIT);
        }
    }
    Ok(())
}

fn is_immutable(function: Oid) -> Result<bool, Error> {
    let sql = "select 'yes' from pg_proc where oid = $1 and provolatile = 'i' and not proretset and prokind = 'f'";
    Ok(!query_strings(sql, &[function.into()])?.is_empty())
}

/// Refuses to take rights away that the SQL of rules needs.
fn check_rights(revoked: &[ObjectId]) -> Result<(), Error> {
    if revoked.is_empty() {
        return Ok(());
    }
    let sql = "select 'lost' from pg_proc as p
        where p.oid = $1 and not (has_function_privilege($2, p.oid, 'execute') and has_schema_privilege($2, p.pronamespace, 'usage'))";
    for used in uses(revoked).into_iter().filter(|used| used.object.class == pg_sys::ProcedureRelationId) {
        let Some(change) = change_of_trigger(used.table, &used.trigger)? else { continue };
        let Some(owner) = catalog::rule_owner(change.id) else { continue };
        if !query_strings(sql, &[used.object.oid.into(), owner.into()])?.is_empty() {
            let message =
                format!("Its rule uses {}, which \"{}\" could not call.", describe(used.object)?, role_name(owner));
            return refuse(&change, message, WAIT);
        }
    }
    Ok(())
}
