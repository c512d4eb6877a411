//! Who uses which side of a change: what statements on its tables read and write, by role and application.
//!
//! Statements are seen where PostgreSQL checks permissions, with the columns they name. What a table's columns mean, its
//! sync trigger and the catalog tell when a session looks at the table for the first time, and no more until its definition
//! changes.

mod effects;
pub mod file;
pub mod report;
pub mod store;
pub mod worker;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::time::SystemTime;

use pgrx::pg_sys;
use smallvec::SmallVec;

use crate::catalog::{self, Change};
use crate::error::Error;
use crate::pg::hook::{self, Access};
use crate::pg::lock::LockMode;
use crate::pg::table::Table;
use crate::pg::trigger::{RowTrigger, SyncTrigger, sync_triggers};
use crate::pg::worker::has_written;
use crate::pg::{class, inval, lookup, security, shmem};
use crate::rule::Rule;
use effects::Effect;
use store::{Fenced, Key, Name, Place, Side, Subject, Used};

/// A change of a table, as far as it matters here.
pub struct Managed {
    subject: Subject,
    /// Its sync trigger on this table.
    trigger: pg_sys::Oid,
    source: i16,
    targets: SmallVec<[i16; 4]>,
    /// The columns of a whole row: all but generated ones, which a dump leaves out.
    columns: Rc<[i16]>,
    /// The slots that were used last for the old and the new side.
    hints: [Cell<usize>; 2],
}

/// The changes of a table. Most tables have none.
type Changes = Option<Rc<[Managed]>>;

thread_local! {
    static KNOWN: RefCell<HashMap<pg_sys::Oid, Changes, BuildHasherDefault<OidHasher>>> = RefCell::default();
}

/// OIDs are spread well enough as they are.
#[derive(Default)]
struct OidHasher(u64);

impl Hasher for OidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Microseconds since PostgreSQL's epoch.
pub fn now() -> i64 {
    const EPOCH_SECONDS: i64 = 946_684_800;
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_micros()).unwrap_or(i64::MAX) - EPOCH_SECONDS * 1_000_000
}

/// Whether what this process does right now is recorded: there is memory for it, and an application does it. What we do
/// ourselves is no use, and what a parallel worker does has been counted by its leader.
pub fn is_recording() -> bool {
    shmem::is_available() && !security::acts_for_extension() && !hook::is_parallel_worker()
}

/// Where a statement was counted, so that its rows can be counted there when it ends.
pub type Counted = SmallVec<[Place; 2]>;

thread_local! {
    /// Of the statement that is being started; `None` outside of the executor.
    static STARTING: Cell<Option<Counted>> = const { Cell::new(None) };
}

/// Starts a statement and returns where it was counted meanwhile. One may start while another does.
pub fn while_starting(start: impl FnOnce()) -> Counted {
    struct Outer(Option<Counted>);
    impl Drop for Outer {
        fn drop(&mut self) {
            STARTING.set(self.0.take());
        }
    }
    let _outer = Outer(STARTING.replace(Some(Counted::new())));
    start();
    STARTING.take().unwrap_or_default()
}

/// Counts the rows of a statement that has ended.
pub fn count_rows(counted: &[Place], rows: u64) {
    shmem::read(|_, slots| {
        counted.iter().filter_map(|place| place.slot(slots)).for_each(|slot| slot.count_rows(rows));
    });
}

/// What one statement does to the changes whose tables it touches.
#[derive(Default)]
pub struct Statement {
    uses: SmallVec<[Use; 2]>,
}

struct Use {
    changes: Rc<[Managed]>,
    index: usize,
    /// Old and new side.
    sides: [Used; 2],
}

impl Use {
    fn change(&self) -> &Managed {
        &self.changes[self.index]
    }
}

impl Statement {
    /// Adds what the statement does to one relation. A statement counts once, however often a table occurs in it.
    pub fn touch(&mut self, access: &Access) {
        let Some(changes) = changes_of(access.relation) else { return };
        for (index, change) in changes.iter().enumerate() {
            let sides = change.used(access);
            if !sides.iter().any(|used| used.any()) {
                continue;
            }
            match self.uses.iter_mut().find(|other| other.change().subject == change.subject) {
                Some(other) => other.sides = [other.sides[0].and(sides[0]), other.sides[1].and(sides[1])],
                None => self.uses.push(Use { changes: Rc::clone(&changes), index, sides }),
            }
        }
    }

    /// Counts it.
    pub fn count(self) {
        if self.uses.is_empty() {
            return;
        }
        let user = User::current();
        let mut starting = STARTING.take();
        for it in &self.uses {
            for (side, used) in [Side::Old, Side::New].into_iter().zip(it.sides) {
                if used.any() {
                    let place = user.count(it.change(), side, used);
                    if let Some(counted) = &mut starting {
                        counted.extend(place);
                    }
                }
            }
        }
        STARTING.set(starting);
    }
}

impl Managed {
    /// The columns of a side.
    fn columns_of(&self, side: Side) -> &[i16] {
        match side {
            Side::Old => std::slice::from_ref(&self.source),
            Side::New => &self.targets,
        }
    }

    /// What a statement does to the old and to the new side.
    fn used(&self, access: &Access) -> [Used; 2] {
        let whole = access.selected.has_whole_row();
        let every = || whole || self.columns.iter().all(|column| access.selected.has(*column));
        let side = |side: Side| {
            let columns = self.columns_of(side);
            let read = whole || columns.iter().any(|column| access.selected.has(*column));
            Used {
                read,
                whole_row: read && every(),
                wrote: columns.iter().any(|column| access.inserted.has(*column) || access.updated.has(*column)),
                ..Used::default()
            }
        };
        [Side::Old, Side::New].map(side)
    }
}

/// Who runs a statement.
struct User {
    role: pg_sys::Oid,
    application: Name,
}

impl User {
    /// Who uses the session.
    fn current() -> User {
        User { role: security::session_role(), application: hook::application_name() }
    }

    /// Counts a statement. Returns where.
    fn count(&self, change: &Managed, side: Side, used: Used) -> Option<Place> {
        self.count_near(change.subject, side, used, Some(&change.hints[side as usize]))
    }

    /// Counts a statement, in the slot that the hint gives if that is right. Returns where.
    fn count_near(&self, subject: Subject, side: Side, used: Used, hint: Option<&Cell<usize>>) -> Option<Place> {
        let key = Key::new(subject, self.role.to_u32(), self.application, side);
        let now = now();
        let counted = shmem::read(|_, slots| {
            let hinted = hint.map(Cell::get).filter(|index| slots.get(*index).is_some_and(|slot| slot.is_of(&key)));
            let index = hinted.or_else(|| store::find(slots, &key))?;
            slots[index].count(used, now);
            if let Some(hint) = hint {
                hint.set(index);
            }
            Some((Place::of(slots, index), slots[index].wants_sample(used, now)))
        })?;
        if let Some((place, false)) = counted {
            return Some(place);
        }
        let sample = hook::query_text(store::SAMPLE_SIZE);
        shmem::write(|header, slots| {
            let index = store::claim(header, slots, &key)?;
            if counted.is_none() {
                slots[index].count(used, now);
            }
            if slots[index].wants_sample(used, now) {
                slots[index].set_sample(sample, used, now);
            }
            Some(Place::of(slots, index))
        })?
    }
}

/// The changes of a table that the current statement has locked.
fn changes_of(relation: pg_sys::Oid) -> Changes {
    // Never borrowed while PostgreSQL code runs.
    let known = KNOWN.with_borrow(|known| known.get(&relation).cloned());
    known.unwrap_or_else(|| learn(relation))
}

/// Looks at the triggers of a table.
fn learn(relation: pg_sys::Oid) -> Changes {
    inval::listen_to_relations(forget);
    let table = Table::open(relation, LockMode::AccessShare)?;
    let triggers = sync_triggers(&table);
    if triggers.is_empty() && !knows_fenced(relation) {
        drop(table);
        KNOWN.with_borrow_mut(|known| known.insert(relation, None));
        return None;
    }
    let attributes = table.attributes();
    let whole_row = attributes.iter().filter(|(_, attribute)| !attribute.generated);
    let columns: Rc<[i16]> = whole_row.map(|(_, attribute)| attribute.number).collect();
    let number = |name: &str| attributes.iter().find(|(known, _)| known == name).map(|(_, it)| it.number);
    let (mut changes, mut fenced) = (Vec::new(), Vec::new());
    for trigger in triggers {
        let Some((root, rule)) = registered(relation, &trigger) else { continue };
        // A trigger that does not fit its table fails when it fires; it is nothing that a reader must hear of.
        let Some(source) = number(rule.source.current_name()) else { continue };
        let subject = subject(root, rule.id);
        if rule.source.renamed_to.is_some() {
            fenced.push(Fenced {
                subject,
                relation: relation.to_u32(),
                owner: class::owner(root).unwrap_or_default().to_u32(),
                source: store::name(rule.source.name.as_bytes()),
                table: store::name(table.bare_name().as_bytes()),
            });
        }
        changes.push(Managed {
            subject,
            trigger: trigger.oid,
            source,
            targets: rule.targets.iter().filter_map(|target| number(&target.name)).collect(),
            columns: Rc::clone(&columns),
            hints: Default::default(),
        });
    }
    drop(table);
    note_fenced(relation, fenced);
    let changes: Changes = (!changes.is_empty()).then(|| changes.into());
    KNOWN.with_borrow_mut(|known| known.insert(relation, changes.clone()));
    changes
}

/// The table and the rule of the active change that a sync trigger is of. Anybody can make a trigger that names a change: what
/// it says is not believed. It must have the name that only one trigger of each table has, and be on a table that the change
/// is of.
fn registered(relation: pg_sys::Oid, trigger: &SyncTrigger) -> Option<(pg_sys::Oid, Rule)> {
    let id = Rule::from_json(&trigger.argument).ok()?.id;
    let (root, rule) = catalog::registered(id)?;
    let is_its_own = trigger.name == crate::ddl::trigger_name(&rule.change)
        && (root == relation || lookup::ancestors(relation).contains(&root));
    is_its_own.then_some((root, rule))
}

fn subject(root: pg_sys::Oid, change: i64) -> Subject {
    Subject { change, database: hook::database().to_u32(), relation: root.to_u32() }
}

impl Change {
    /// What the record knows it by.
    fn subject(&self) -> Subject {
        subject(self.relation, self.id)
    }
}

/// Notes that relations may have changed.
fn forget(relation: Option<pg_sys::Oid>) {
    KNOWN.with(|known| {
        let Ok(mut known) = known.try_borrow_mut() else { return };
        match relation {
            Some(relation) => drop(known.remove(&relation)),
            None => known.clear(),
        }
    });
}

fn knows_fenced(relation: pg_sys::Oid) -> bool {
    let database = hook::database().to_u32();
    shmem::read(|header, _| !header.knows_fenced(database, relation.to_u32(), &[])).unwrap_or(false)
}

/// Statements that name a fenced column fail before anything can tell which table they are about. So the tables with
/// fenced columns are kept where all sessions find them.
fn note_fenced(relation: pg_sys::Oid, fenced: Vec<Fenced>) {
    let (database, relation) = (hook::database().to_u32(), relation.to_u32());
    // What this transaction has changed before is not in memory yet.
    let is_known = || shmem::read(|header, _| header.knows_fenced(database, relation, &fenced)) != Some(false);
    if !effects::changes_fences_of(relation) && is_known() {
        return;
    }
    let effect = Effect::Fenced { relation, fenced };
    // What this transaction sees of a table may be its own doing, and never come to be.
    if has_written() { effects::at_commit(effect) } else { effects::apply(&[effect]) }
}

/// Called when a column of tables was fenced, or a fence undone, by the current transaction, and written down.
pub fn look_again(relations: &[pg_sys::Oid]) {
    if shmem::is_available() {
        // With thousands of partitions there is no room for all. Most statements name the first, their root.
        relations.iter().take(store::FENCED_TABLES / 4).for_each(|relation| drop(learn(*relation)));
    }
}

/// Called when a change begins: if that is rolled back, nothing of it is kept.
pub fn begin(change: i64, relation: pg_sys::Oid) {
    effects::at_commit(Effect::Begin(subject(relation, change)));
}

/// Called when a change is over: when that is committed, nothing of it is kept.
pub fn end(change: &Change) {
    effects::at_commit(Effect::End(change.subject()));
}

/// Counts an error that the split raised.
pub fn failed(trigger: &RowTrigger, error: &Error) {
    let sides: &[Side] = match error {
        Error::UnmatchedValue { .. } => &[Side::Old],
        Error::NotNull { .. } | Error::DoesNotFit { .. } => &[Side::New],
        Error::Conflict { .. } => &[Side::Old, Side::New],
        _ => return,
    };
    count_of_row(trigger, sides, Used { failed: true, ..Used::default() });
}

/// Counts a row of a statement that has written both sides, which disagreed: what it wrote on this one gave way.
pub fn settled(trigger: &RowTrigger, side: Side) {
    count_of_row(trigger, &[side], Used { settled: true, ..Used::default() });
}

/// Counts what became of a row that was written.
fn count_of_row(trigger: &RowTrigger, sides: &[Side], used: Used) {
    if !is_recording() {
        return;
    }
    with_change_of(trigger, |change| {
        let user = User::current();
        for side in sides {
            user.count(change, *side, used);
        }
    });
}

/// Runs `f` on the change that a trigger is of, if it is of one.
fn with_change_of(trigger: &RowTrigger, f: impl FnOnce(&Managed)) {
    let changes = changes_of(trigger.table().oid());
    if let Some(change) = changes.as_deref().unwrap_or_default().iter().find(|it| it.trigger == trigger.oid()) {
        f(change);
    }
}

/// Counts a row that logical replication applies, which passes no executor: as a write of the sides that the publisher has
/// sent.
pub fn applied(trigger: &RowTrigger) {
    if !hook::is_apply_worker() || !is_recording() {
        return;
    }
    with_change_of(trigger, |change| {
        let (user, used) = (User::current(), Used { wrote: true, ..Used::default() });
        for side in [Side::Old, Side::New] {
            if change.columns_of(side).iter().any(|column| trigger.writes(*column)) {
                count_rows(user.count(change, side, used).as_slice(), 1);
            }
        }
    });
}

/// Counts a statement that failed since there is no column of the name that the message mentions, if that is the name
/// of a fenced column of a table that the statement mentions. Called while the error is reported, when no catalog can be
/// read: whether the role may use the table at all is asked when the record is looked at.
pub fn undefined_column(message: &[u8], statement: &[u8]) {
    if !is_recording() {
        return;
    }
    let database = hook::database().to_u32();
    // A statement can be long: it is looked at when nobody waits.
    let fenced: Option<Vec<Fenced>> = shmem::read(|header, _| header.fenced_in(database).copied().collect());
    let (user, used) = (User::current(), Used { missed: true, ..Used::default() });
    for subject in store::missed(&fenced.unwrap_or_default(), message, statement) {
        user.count_near(subject, Side::Old, used, None);
    }
}
