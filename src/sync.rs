//! The row trigger that carries each write from the side that it was made on to the other side.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys;

use crate::binding::Binding;
use crate::error::Error;
use crate::pg::security::may_select;
use crate::pg::session::is_replica;
use crate::pg::trigger::RowTrigger;
use crate::pg::value::{Value, Values};
use crate::plans;
use crate::rule::Unmatched;
use crate::rule::state::{self, Action, Side, UpdateFacts, Winner};
use crate::usage::{self, store};

/// Handles one row. Returns the tuple to write.
pub fn fire(trigger: &RowTrigger) -> Result<pg_sys::Datum, Error> {
    // Whoever has sent the row has sent both sides of it.
    if is_replica() {
        usage::applied(trigger);
        return Ok(trigger.unchanged());
    }
    let plan = plans::of_trigger(trigger)?;
    let binding = &plan.binding;
    let written = if trigger.is_update() { update(binding, trigger) } else { insert(binding, trigger) };
    written.map_err(|error| match error.has_values() && !may_see_values(binding, trigger) {
        true => error.without_values(),
        false => error,
    })
}

/// Whether the current role may see both sides of a row that it has written, as PostgreSQL asks it for the values in its own
/// errors.
fn may_see_values(binding: &Binding, trigger: &RowTrigger) -> bool {
    let names = binding.rule.targets.iter().map(|target| target.name.as_str());
    let root = trigger.table().root();
    let columns: Vec<&str> = names.chain([binding.rule.source.current_name()]).collect();
    may_select(root, &columns)
}

fn insert(binding: &Binding, trigger: &RowTrigger) -> Result<pg_sys::Datum, Error> {
    let row = trigger.new_row();
    let (source, targets) = (binding.source_of(&row), binding.targets_of(&row));
    let given = binding.given(source, &targets);
    let conflict = binding.rule.conflict;
    if trigger.is_on_partition() && was_moved(binding, trigger, source, &targets) {
        return Ok(trigger.unchanged());
    }
    match state::on_insert(given, conflict, || binding.facts(source, &targets).agree()) {
        Action::Keep => {
            if given.source == Side::Given && given.targets == Side::Given {
                check_kept(binding, trigger, source, &targets)?;
            }
            Ok(trigger.unchanged())
        }
        Action::Split => Ok(split(binding, trigger, source, &targets)?.tuple),
        Action::Join | Action::FillThenJoin => Ok(join(binding, trigger, source, &targets, &targets)?.tuple),
        Action::Settle(Winner::Old) => {
            Ok(split(binding, trigger, source, &targets)?.settled(trigger, store::Side::New))
        }
        Action::Settle(Winner::New) => {
            Ok(join(binding, trigger, source, &targets, &targets)?.settled(trigger, store::Side::Old))
        }
        Action::Reject => Err(conflict_error(binding, source, &targets)),
    }
}

fn update(binding: &Binding, trigger: &RowTrigger) -> Result<pg_sys::Datum, Error> {
    let (old, new) = (trigger.old_row(), trigger.new_row());
    let (source, targets) = (binding.source_of(&new), binding.targets_of(&new));
    let (old_source, old_targets) = (binding.source_of(&old), binding.targets_of(&old));
    let changed = UpdateFacts {
        source_changed: !binding.same_source(old_source, source),
        targets_changed: !binding.same_targets(&old_targets, &targets),
        is_stale: binding.rule.expanding && !source.is_null() && targets.iter().all(|value| value.is_null()),
    };
    let old_was_pending = || state::is_pending(&mut binding.facts(old_source, &old_targets));
    // The new application saw NULLs where the row had not been split yet: what it left alone is what was there.
    let filled = || -> Values {
        let before = binding.facts(old_source, &old_targets).into_split();
        let fill = |index: usize| {
            let column_type = &binding.targets[index].column_type;
            let untouched = column_type.same_image(old_targets[index], targets[index]);
            if untouched { before[index] } else { targets[index] }
        };
        (0..targets.len()).map(fill).collect()
    };
    let action = state::on_update(
        changed,
        binding.rule.conflict,
        old_was_pending,
        || state::is_pending(&mut binding.facts(source, &targets)),
        || binding.facts(source, &targets).agree(),
    );
    match action {
        Action::Keep => {
            if trigger.is_on_partition() {
                remember_kept(fingerprint(binding, trigger, source, &targets));
            }
            if changed.source_changed && changed.targets_changed {
                check_kept(binding, trigger, source, &targets)?;
            }
            Ok(trigger.unchanged())
        }
        Action::Split => Ok(split(binding, trigger, source, &targets)?.tuple),
        Action::Join => Ok(join(binding, trigger, source, &targets, &targets)?.tuple),
        Action::FillThenJoin => Ok(join(binding, trigger, source, &targets, &filled())?.tuple),
        Action::Settle(Winner::Old) => {
            Ok(split(binding, trigger, source, &targets)?.settled(trigger, store::Side::New))
        }
        Action::Settle(Winner::New) => {
            let filled = if old_was_pending() { filled() } else { targets.clone() };
            Ok(join(binding, trigger, source, &targets, &filled)?.settled(trigger, store::Side::Old))
        }
        Action::Reject => Err(conflict_error(binding, source, &targets)),
    }
}

/// A row that was written by some statement, as one change sees it.
#[derive(Clone, Copy, PartialEq)]
struct Fingerprint {
    statement: (i64, i64),
    change: u64,
    row: u64,
}

thread_local! {
    /// The row of a partition that an UPDATE has just left as it is, for each change of its table.
    static KEPT: RefCell<Vec<Fingerprint>> = const { RefCell::new(Vec::new()) };
}

fn remember_kept(kept: Fingerprint) {
    KEPT.with_borrow_mut(|all| {
        all.retain(|other| other.statement == kept.statement && other.change != kept.change);
        all.push(kept);
    });
}

/// Whether an inserted row is one that an UPDATE moves to another partition and has left as it is. PostgreSQL deletes and
/// inserts it, but nobody has given it anything: also a row that no rule accepts may move.
fn was_moved(binding: &Binding, trigger: &RowTrigger, source: Value, targets: &[Value]) -> bool {
    KEPT.with_borrow_mut(|all| {
        if all.is_empty() {
            return false;
        }
        let moved = fingerprint(binding, trigger, source, targets);
        let found = all.iter().position(|kept| *kept == moved);
        // It arrives once.
        found.map(|index| all.swap_remove(index)).is_some()
    })
}

fn fingerprint(binding: &Binding, trigger: &RowTrigger, source: Value, targets: &[Value]) -> Fingerprint {
    let (mut change, mut row) = (DefaultHasher::new(), DefaultHasher::new());
    binding.rule.change.hash(&mut change);
    binding.source.column_type.hash_stored(source, &mut row);
    for (target, value) in binding.targets.iter().zip(targets) {
        target.column_type.hash_stored(*value, &mut row);
    }
    Fingerprint { statement: trigger.statement(), change: change.finish(), row: row.finish() }
}

/// A row with one side made from the other.
struct Made {
    tuple: pg_sys::Datum,
    /// What the statement gave for the side that was made was something else.
    replaces: bool,
}

impl Made {
    /// The tuple; that a side gave way is counted.
    fn settled(self, trigger: &RowTrigger, side: store::Side) -> pg_sys::Datum {
        if self.replaces {
            usage::settled(trigger, side);
        }
        self.tuple
    }
}

/// N := f(O).
fn split(binding: &Binding, trigger: &RowTrigger, source: Value, targets: &[Value]) -> Result<Made, Error> {
    let mut values = Values::new();
    let accepted = binding.split(source, &mut values);
    if !accepted && binding.rule.unmatched == Unmatched::Error {
        return Err(Error::UnmatchedValue {
            change: binding.rule.change.clone(),
            column: binding.rule.source.name.clone(),
            value: Some(binding.source_text(source)),
        });
    }
    if binding.same_targets(targets, &values) {
        return Ok(Made { tuple: trigger.unchanged(), replaces: false });
    }
    let columns = binding.targets.iter().map(|target| target.number);
    Ok(Made { tuple: trigger.changed(columns.zip(values)), replaces: true })
}

/// N := `filled`, O := g(N).
fn join(
    binding: &Binding,
    trigger: &RowTrigger,
    source: Value,
    targets: &[Value],
    filled: &[Value],
) -> Result<Made, Error> {
    check_not_null(binding, trigger, filled)?;
    let joined = binding.join(filled)?;
    let replaces = !binding.same_source(source, joined);
    if !replaces && binding.same_targets(targets, filled) {
        return Ok(Made { tuple: trigger.unchanged(), replaces });
    }
    let columns = binding.targets.iter().map(|target| target.number);
    let source = (binding.source.number, joined);
    Ok(Made { tuple: trigger.changed(columns.zip(filled.iter().copied()).chain([source])), replaces })
}

/// Both sides were written and belong together. NULLs are as f made them, unless the new side speaks for itself.
fn check_kept(binding: &Binding, trigger: &RowTrigger, source: Value, targets: &[Value]) -> Result<(), Error> {
    use state::Row;
    if binding.null_violation(targets).is_none() || binding.facts(source, targets).targets_equal_split() {
        return Ok(());
    }
    check_not_null(binding, trigger, targets)
}

fn check_not_null(binding: &Binding, trigger: &RowTrigger, targets: &[Value]) -> Result<(), Error> {
    match binding.null_violation(targets) {
        None => Ok(()),
        Some(column) => Err(Error::NotNull {
            change: binding.rule.change.clone(),
            relation: trigger.table().bare_name(),
            column: column.to_owned(),
        }),
    }
}

fn conflict_error(binding: &Binding, source: Value, targets: &[Value]) -> Error {
    Error::Conflict {
        change: binding.rule.change.clone(),
        sides: Some([
            format!("{} = {}", binding.rule.source.name, binding.source_text(source)),
            binding.targets_text(targets),
        ]),
    }
}
