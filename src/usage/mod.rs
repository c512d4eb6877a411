//! Who uses which side of a change: what statements on its tables read and write, by role and application.
//!
//! Statements are seen where PostgreSQL checks permissions, with the columns they name. What a table's columns mean is
//! in its sync trigger, so no catalog is read for it.

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

use crate::error::Error;
use crate::pg::hook::{self, Access};
use crate::pg::inval;
use crate::pg::lock::LockMode;
use crate::pg::table::Table;
use crate::pg::trigger::{RowTrigger, sync_triggers};
use crate::pg::{security, shmem};
use crate::rule::Rule;
use store::{Fenced, Key, Name, Place, Side, Used};

/// Programs that read every column by themselves, and go on reading what is left.
const NO_USERS: [&[u8]; 2] = [b"pg_dump", b"pg_dumpall"];

/// A change of a table, as far as it matters here.
pub struct Managed {
    /// The name of its sync trigger.
    change: Name,
    source: i16,
    targets: SmallVec<[i16; 4]>,
    /// All columns of the table.
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
            match self.uses.iter_mut().find(|other| other.change().change == change.change) {
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
        let Some(user) = User::current() else { return };
        let mut starting = STARTING.take();
        for it in &self.uses {
            for (side, used) in [Side::Old, Side::New].into_iter().zip(it.sides) {
                if used.any() {
                    let place = user.count(&it.change().change, side, used, Some(&it.change().hints[side as usize]));
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
                failed: false,
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
    /// Who uses the session; `None` if it does not count.
    fn current() -> Option<User> {
        let application = hook::application_name();
        (!NO_USERS.contains(&store::bytes(&application))).then(|| User { role: security::session_role(), application })
    }

    /// Counts a statement, in the slot that the hint gives if that is right. Returns where.
    fn count(&self, change: &Name, side: Side, used: Used, hint: Option<&Cell<usize>>) -> Option<Place> {
        let key = Key::new(hook::database().to_u32(), self.role.to_u32(), *change, self.application, side);
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
    let columns: Rc<[i16]> = table.attributes().iter().map(|(_, attribute)| attribute.number).collect();
    let (mut changes, mut fenced) = (Vec::new(), Vec::new());
    for (trigger, argument) in triggers {
        // A trigger that does not fit its table fails when it fires; it is nothing that a reader must hear of.
        let Ok(rule) = Rule::from_json(&argument) else { continue };
        let Some(source) = table.attribute(rule.source.current_name()) else { continue };
        let targets = rule.targets.iter().filter_map(|target| Some(table.attribute(&target.name)?.number));
        let change = store::name(trigger.as_bytes());
        if rule.source.renamed_to.is_some() {
            fenced.push(Fenced {
                database: hook::database().to_u32(),
                relation: relation.to_u32(),
                change,
                source: store::name(rule.source.name.as_bytes()),
                table: store::name(table.bare_name().as_bytes()),
            });
        }
        changes.push(Managed {
            change,
            source: source.number,
            targets: targets.collect(),
            columns: Rc::clone(&columns),
            hints: Default::default(),
        });
    }
    drop(table);
    note_fenced(relation, &fenced);
    let changes: Changes = (!changes.is_empty()).then(|| changes.into());
    KNOWN.with_borrow_mut(|known| known.insert(relation, changes.clone()));
    changes
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
fn note_fenced(relation: pg_sys::Oid, fenced: &[Fenced]) {
    let (database, relation) = (hook::database().to_u32(), relation.to_u32());
    if shmem::read(|header, _| header.knows_fenced(database, relation, fenced)) == Some(false) {
        shmem::write(|header, _| header.set_fenced(database, relation, fenced));
    }
}

/// Called when a column of tables was fenced, or a fence undone, by the current transaction.
pub fn look_again(relations: &[pg_sys::Oid]) {
    if shmem::is_available() {
        // With thousands of partitions there is no room for all. Most statements name the first, their root.
        relations.iter().take(store::FENCED_TABLES / 4).for_each(|relation| drop(learn(*relation)));
    }
}

/// Called when a change begins: one of the same name may have left something.
pub fn begin(trigger: &str) {
    let (database, change) = (hook::database().to_u32(), store::name(trigger.as_bytes()));
    shmem::write(|_, slots| {
        let stale = |slot: &&mut store::Slot| slot.key().is_some_and(|key| key.is_about(database, &change));
        slots.iter_mut().filter(stale).for_each(store::Slot::clear);
    });
}

/// Counts an error that the split raised.
pub fn failed(trigger: &str, error: &Error) {
    let sides: &[Side] = match error {
        Error::UnmatchedValue { .. } => &[Side::Old],
        Error::NotNull { .. } | Error::DoesNotFit { .. } => &[Side::New],
        Error::Conflict { .. } => &[Side::Old, Side::New],
        _ => return,
    };
    if !is_recording() {
        return;
    }
    let Some(user) = User::current() else { return };
    let (change, used) = (store::name(trigger.as_bytes()), Used { failed: true, ..Used::default() });
    for side in sides {
        user.count(&change, *side, used, None);
    }
}

/// Counts a row that logical replication applies, which passes no executor: as a write of the sides that the publisher has
/// sent.
pub fn applied(trigger: &RowTrigger) {
    if !hook::is_apply_worker() || !is_recording() {
        return;
    }
    let Some(changes) = changes_of(trigger.table().oid()) else { return };
    let name = store::name(trigger.name().as_bytes());
    let Some(change) = changes.iter().find(|change| change.change == name) else { return };
    let Some(user) = User::current() else { return };
    let used = Used { wrote: true, ..Used::default() };
    for side in [Side::Old, Side::New] {
        if change.columns_of(side).iter().any(|column| trigger.writes(*column)) {
            let place = user.count(&name, side, used, Some(&change.hints[side as usize]));
            count_rows(place.as_slice(), 1);
        }
    }
}

/// Counts a statement that failed since there is no column of the name that the message mentions, if that is the name
/// of a fenced column of a table that the statement mentions. Called while the error is reported.
pub fn undefined_column(message: &[u8], statement: &[u8]) {
    if !is_recording() {
        return;
    }
    let database = hook::database().to_u32();
    let mut changes = SmallVec::<[Name; 2]>::new();
    shmem::read(|header, _| {
        for fenced in header.fenced_in(database) {
            // What EXECUTE runs is not to be seen here.
            let about = store::mentions(statement, store::bytes(&fenced.table)) || is_execute(statement);
            if about && store::mentions(message, store::bytes(&fenced.source)) && !changes.contains(&fenced.change) {
                changes.push(fenced.change);
            }
        }
    });
    if changes.is_empty() {
        return;
    }
    let Some(user) = User::current() else { return };
    let used = Used { failed: true, ..Used::default() };
    for change in &changes {
        user.count(change, Side::Old, used, None);
    }
}

fn is_execute(statement: &[u8]) -> bool {
    statement.trim_ascii_start().get(..7).is_some_and(|word| word.eq_ignore_ascii_case(b"execute"))
}
