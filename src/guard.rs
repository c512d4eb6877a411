//! Refuses DDL that would break an active change. It looks at the state that the DDL leaves behind, not at its text.

use std::cell::Cell;

use pgrx::pg_sys;
use serde_json::json;

use crate::binding::Binding;
use crate::catalog::{self, Change};
use crate::ddl::{foreign_key, query_strings, trigger_name};
use crate::error::Error;
use crate::guc;
use crate::pg::lock::{LockMode, tree};
use crate::pg::security::{acts_for, current_role};
use crate::pg::subxact::catch;
use crate::pg::table::Table;
use crate::phase::Phase;
use crate::rule::Rule;

thread_local! {
    static SUSPENDED: Cell<u32> = const { Cell::new(0) };
}

/// Runs DDL of our own, which passes through states that the guard would refuse.
pub fn suspended<R>(f: impl FnOnce() -> R) -> R {
    struct Resume;
    impl Drop for Resume {
        fn drop(&mut self) {
            SUSPENDED.set(SUSPENDED.get() - 1);
        }
    }
    SUSPENDED.set(SUSPENDED.get() + 1);
    let _resume = Resume;
    f()
}

/// Called after DDL on these relations, or on anything when `None`, that made these triggers: an error if it breaks a change.
/// `dropped` are columns, as table and name. A change whose table is gone is over.
pub fn check(
    touched: Option<&[pg_sys::Oid]>,
    triggers: &[pg_sys::Oid],
    dropped: &[(pg_sys::Oid, String)],
) -> Result<(), Error> {
    if SUSPENDED.get() > 0 {
        return Ok(());
    }
    for change in catalog::all()? {
        if !Table::exists(change.relation) {
            catalog::set_phase(&change, Phase::RolledBack, json!({ "reason": "the table was dropped" }))?;
            continue;
        }
        let members = tree(change.relation);
        if !guc::guard() || touched.is_some_and(|touched| !members.iter().any(|member| touched.contains(member))) {
            continue;
        }
        // A column of the same name may have been added at once, but what was in it is gone.
        let lost = dropped.iter().find(|(table, column)| {
            let mut columns = change.rule.targets.iter().map(|target| target.name.as_str());
            members.contains(table)
                && (columns.any(|name| name == column) || change.rule.source.current_name() == column)
        });
        if let Some((_, column)) = lost {
            let message = format!("Column \"{column}\" would be dropped.");
            return Err(Error::Guard { change: change.name, message, hint: WAIT });
        }
        let Some(table) = Table::open(change.relation, LockMode::AccessShare) else { continue };
        match (check_table(&change, &table), catalog::is_guarded(change.id)?) {
            (Ok(()), false) => catalog::set_guarded(change.id)?,
            // A dump brings back the change first, and its triggers one by one.
            (Err(_), false) => {}
            (checked, true) => checked?,
        }
    }
    if guc::guard() {
        check_left_alone(touched.unwrap_or_default())?;
        check_strangers(triggers)?;
    }
    Ok(())
}

/// Called before the extension is dropped: an error while there are active changes.
pub fn check_extension() -> Result<(), Error> {
    let changes: Vec<String> = catalog::all()?.into_iter().map(|change| change.name).collect();
    if changes.is_empty() || !guc::guard() { Ok(()) } else { Err(Error::ActiveChanges { changes }) }
}

const WAIT: &str = "Wait until the change is over, or give it up with SELECT zdd.rollback(...).";

fn check_table(change: &Change, root: &Table) -> Result<(), Error> {
    let refuse = |message: String, hint| Err(Error::Guard { change: change.name.clone(), message, hint });
    let trigger = trigger_name(&change.name);
    for member in tree(root.oid()) {
        let Some(table) = Table::open(member, LockMode::AccessShare) else { continue };
        if table.kind() == 'f' {
            return refuse(format!("{} is a foreign table: its rows cannot be kept in sync.", table.name()), WAIT);
        }
        // A function that the rule calls may be gone, which is PostgreSQL's error.
        match catch(|| Binding::to_table(change.rule.clone(), &table).map(drop)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return refuse(sentence(&error.message()), WAIT),
            Err(error) if error.is_about_data() => return refuse(sentence(&error.message()), WAIT),
            Err(error) => error.rethrow(),
        }
        for target in &change.rule.targets {
            if table.attribute(&target.name).is_some_and(|column| column.not_null) {
                return refuse(
                    format!(
                        "Column \"{}\" of {} would be NOT NULL: the old application writes NULL there.",
                        target.name,
                        table.name()
                    ),
                    "Define it NOT NULL in split_column: it is enforced for the new application, and set in the contract.",
                );
            }
        }
        if !table.is_partition() && table.owner() != root.owner() {
            return refuse(
                format!("{} would have another owner than {}.", table.name(), root.name()),
                "The rule of a change runs with the rights of one owner: change the owner of all its tables after the contract.",
            );
        }
        for target in &change.rule.targets {
            if let Some(constraint) = foreign_key(member, &target.name)? {
                return refuse(
                    format!(
                        "Foreign key \"{constraint}\" of {} would reject what the old application writes.",
                        table.name()
                    ),
                    "Add it after the contract.",
                );
            }
        }
        match sync_trigger(member, &trigger, &change.rule)? {
            None => {
                return refuse(
                    format!("{} would not have the sync trigger \"{trigger}\".", table.name()),
                    if member == root.oid() { WAIT } else { "Do without a child table until the change is over." },
                );
            }
            Some((enabled, _)) if matches!(enabled.as_str(), "D" | "R") => {
                return refuse(
                    format!("The sync trigger \"{trigger}\" of {} would not fire for ordinary sessions.", table.name()),
                    "Leave it enabled; for a bulk load without triggers, SET session_replication_role = replica in that session.",
                );
            }
            Some((_, false)) => {
                return refuse(
                    format!("The sync trigger \"{trigger}\" of {} would have another rule.", table.name()),
                    "Use zdd.alter_change.",
                );
            }
            Some((enabled, _)) if enabled != "A" => {
                return refuse(
                    format!(
                        "The sync trigger \"{trigger}\" of {} would not see what logical replication writes.",
                        table.name()
                    ),
                    "Say ENABLE ALWAYS TRIGGER.",
                );
            }
            Some(_) => {}
        }
        if let Some(trigger) = stranger(member)? {
            return Err(Error::StrangeTrigger { trigger, relation: table.name() });
        }
        if let Some(later) = later_trigger(member, &trigger)? {
            return Err(Error::LateTrigger { relation: table.name(), trigger: later, ours: trigger });
        }
    }
    Ok(())
}

/// A message as a sentence of its own.
fn sentence(message: &str) -> String {
    let mut letters = message.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// The sync trigger of this name: tgenabled, and whether it carries this rule.
fn sync_trigger(relation: pg_sys::Oid, name: &str, rule: &Rule) -> Result<Option<(String, bool)>, Error> {
    let sql = "select t.tgenabled::text || (t.tgargs = convert_to($3::text, 'UTF8') || '\\x00'::bytea)::text
        from pg_trigger as t
        where t.tgrelid = $1 and t.tgname = $2::text::name and t.tgfoid = 'zdd.sync()'::regprocedure";
    let found = query_strings(sql, &[relation.into(), name.into(), rule.to_json().into()])?;
    Ok(found.first().map(|found| {
        let (enabled, same_rule) = found.split_at(1);
        (enabled.to_owned(), same_rule == "true")
    }))
}

/// A BEFORE ROW trigger that would fire after the sync trigger of this name. Other sync triggers mind other columns.
pub fn later_trigger(relation: pg_sys::Oid, ours: &str) -> Result<Option<String>, Error> {
    // tgtype: 1 row, 2 before, 4 insert, 16 update.
    let sql = "select t.tgname::text from pg_trigger as t
        where t.tgrelid = $1 and not t.tgisinternal and t.tgtype & 3 = 3 and t.tgtype & 20 <> 0
            and t.tgfoid <> 'zdd.sync()'::regprocedure and t.tgname::text > $2 collate \"C\"";
    Ok(query_strings(sql, &[relation.into(), ours.into()])?.pop())
}

/// The names that sync triggers of a table may have.
fn known_triggers(relation: pg_sys::Oid) -> Result<Vec<String>, Error> {
    Ok(catalog::of_table(relation)?.iter().map(|change| trigger_name(&change.name)).collect())
}

/// A sync trigger of a table that is of no active change.
pub fn stranger(relation: pg_sys::Oid) -> Result<Option<String>, Error> {
    let sql = "select t.tgname::text from pg_trigger as t
        where t.tgrelid = $1 and t.tgfoid = 'zdd.sync()'::regprocedure";
    let known = known_triggers(relation)?;
    Ok(query_strings(sql, &[relation.into()])?.into_iter().find(|trigger| !known.contains(trigger)))
}

/// A child that leaves its parent would keep the trigger, but no longer belong to the change.
fn check_left_alone(touched: &[pg_sys::Oid]) -> Result<(), Error> {
    for relation in touched.iter().filter(|relation| Table::exists(**relation)) {
        if let Some(trigger) = stranger(*relation)?
            && let Some(change) = catalog::all()?.into_iter().find(|change| trigger_name(&change.name) == trigger)
        {
            let message = format!("A table would leave the change with its sync trigger \"{trigger}\".");
            return Err(Error::Guard { change: change.name, message, hint: WAIT });
        }
    }
    Ok(())
}

/// A sync trigger runs SQL of its rule with the rights of the table's owner, so nobody else may make one; and in a table
/// with a change nobody may, since a second one would break its writes.
fn check_strangers(triggers: &[pg_sys::Oid]) -> Result<(), Error> {
    let sql = "select t.tgrelid::oid::text from pg_trigger as t
        where t.oid = any ($1) and t.tgfoid = 'zdd.sync()'::regprocedure";
    for relation in query_strings(sql, &[triggers.to_vec().into()])? {
        let Some(table) = relation.parse().ok().and_then(|oid: u32| Table::open(oid.into(), LockMode::AccessShare))
        else {
            continue;
        };
        let may = acts_for(current_role(), table.owner()) && known_triggers(table.oid())?.is_empty();
        if let Some(trigger) = stranger(table.oid())?
            && !may
        {
            return Err(Error::StrangeTrigger { trigger, relation: table.name() });
        }
    }
    Ok(())
}
