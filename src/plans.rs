//! Rules bound to tables, kept for the life of the backend: compiling a regex takes as long as splitting many rows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use pgrx::pg_sys;

use crate::binding::Binding;
use crate::catalog::{self, Change};
use crate::error::Error;
use crate::pg::inheritance::ancestors;
use crate::pg::inval;
use crate::pg::table::Table;
use crate::pg::trigger::{RowTrigger, WatchTrigger};
use crate::rule::Rule;

/// A rule bound to a table.
pub struct Plan {
    pub binding: Binding,
    relation: pg_sys::Oid,
    /// Whether the table or something that the rule uses may have changed since.
    stale: Cell<bool>,
}

#[derive(Default)]
struct Plans {
    by_trigger: HashMap<pg_sys::Oid, Rc<Plan>>,
    by_rule: HashMap<(pg_sys::Oid, String), Rc<Plan>>,
    /// The trigger that fired last: most rows come in a row.
    last: Option<(pg_sys::Oid, Rc<Plan>)>,
}

thread_local! {
    /// Never dropped: at the end of the process there may be no memory contexts left to free.
    static PLANS: ManuallyDrop<RefCell<Plans>> = ManuallyDrop::new(RefCell::default());
}

/// The rule that a trigger carries.
pub fn of_trigger(trigger: &RowTrigger) -> Result<Rc<Plan>, Error> {
    let oid = trigger.oid();
    if let Some(plan) = known(oid) {
        return Ok(plan);
    }
    let (rule, table) = (Rule::from_json(&trigger.argument())?, trigger.table());
    let owner = catalog::rule_owner_on(table.oid(), &rule);
    bind_for_trigger(oid, rule, &table, owner)
}

/// The rule of the change that a trigger watches for; `None` if its table has no such change.
pub fn of_watch(trigger: &WatchTrigger) -> Result<Option<Rc<Plan>>, Error> {
    let oid = trigger.oid();
    if let Some(plan) = known(oid) {
        return Ok(Some(plan));
    }
    let table = trigger.table();
    let Some((relation, rule)) = trigger.argument().parse().ok().and_then(catalog::registered) else { return Ok(None) };
    if !ancestors(table.oid()).contains(&relation) {
        return Ok(None);
    }
    let owner = catalog::rule_owner(rule.id);
    bind_for_trigger(oid, rule, &table, owner).map(Some)
}

fn known(trigger: pg_sys::Oid) -> Option<Rc<Plan>> {
    PLANS.with(|plans| {
        let plans = &mut *plans.borrow_mut();
        if let Some((last, plan)) = plans.last.as_ref()
            && *last == trigger
            && !plan.stale.get()
        {
            return Some(Rc::clone(plan));
        }
        let plan = plans.by_trigger.get(&trigger).filter(|plan| !plan.stale.get()).cloned()?;
        plans.last = Some((trigger, Rc::clone(&plan)));
        Some(plan)
    })
}

fn bind_for_trigger(
    trigger: pg_sys::Oid,
    rule: Rule,
    table: &Table,
    owner: Option<pg_sys::Oid>,
) -> Result<Rc<Plan>, Error> {
    let plan = bind(rule, table, owner)?;
    let replaced = PLANS.with(|plans| plans.borrow_mut().by_trigger.insert(trigger, Rc::clone(&plan)));
    drop(replaced);
    Ok(plan)
}

/// The rule of a change for a table that is locked.
pub fn of_change(change: &Change, table: &Table) -> Result<Rc<Plan>, Error> {
    let key = (table.oid(), change.rule.to_json());
    let known = PLANS.with(|plans| plans.borrow().by_rule.get(&key).filter(|plan| !plan.stale.get()).cloned());
    if let Some(plan) = known {
        return Ok(plan);
    }
    let plan = bind(change.rule.clone(), table, catalog::rule_owner(change.id))?;
    let replaced = PLANS.with(|plans| plans.borrow_mut().by_rule.insert(key, Rc::clone(&plan)));
    drop(replaced);
    Ok(plan)
}

fn bind(rule: Rule, table: &Table, owner: Option<pg_sys::Oid>) -> Result<Rc<Plan>, Error> {
    inval::listen(forget);
    let binding = Binding::to_table(rule, table, owner)?;
    Ok(Rc::new(Plan { binding, relation: table.oid(), stale: Cell::new(false) }))
}

/// Notes that a relation's definition has changed. Its plans may be in use and are replaced when they are needed next.
fn forget(relation: Option<pg_sys::Oid>) {
    PLANS.with(|plans| {
        // Never borrowed while PostgreSQL code runs, which is what calls this.
        let Ok(plans) = plans.try_borrow() else { return };
        for plan in plans.by_trigger.values().chain(plans.by_rule.values()) {
            if relation.is_none_or(|relation| relation == plan.relation) {
                plan.stale.set(true);
            }
        }
    });
}
