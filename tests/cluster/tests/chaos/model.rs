//! What every row must hold, and whether it does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use pg_zdd_cluster::postgres::{Client, Error};

use crate::world::{self, SLOTS, STILL, Standing, TABLES, Table, literal};

/// Rows that all applications fight for: they count how often they were hit.
pub const SHARED: i32 = 16;
pub const FIRST_SHARED: i32 = 900_000;

/// A row by what its old columns hold or would hold: the new ones follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub region: i32,
    pub note: i64,
    /// One for each of the table's slots.
    pub values: Vec<Option<String>>,
    /// What else either side may hold of `DIVERGING`, since somebody has written both past the trigger, and others repair.
    pub rivals: Vec<String>,
}

/// The slot in whose table some rows are made to diverge.
pub const DIVERGING: usize = 1;

/// These rows, which nobody else writes.
pub const DIVERGED: std::ops::Range<i32> = 700_000..700_020;

/// The rows of one owner in one table.
pub type Rows = BTreeMap<i32, Row>;

/// The rows of one owner, for each table.
pub type Holding = Mutex<[Rows; TABLES.len()]>;

/// A row that all applications write. Whether a write has come through is not always known.
#[derive(Default)]
pub struct Shared {
    pub least: AtomicI64,
    pub most: AtomicI64,
}

/// When the old column was last used: from when to when.
type Use = Mutex<Option<(Instant, Instant)>>;

pub struct Models {
    /// Held by whoever writes, for as long as the table and the model may differ.
    pub gate: RwLock<()>,
    /// Of each application, then rows that are made to diverge, those of the owner's partitions, and those nobody writes.
    holdings: Vec<Holding>,
    pub shared: [Vec<Shared>; TABLES.len()],
    pub uses: [Use; SLOTS.len()],
}

impl Models {
    pub fn new(applications: usize) -> Models {
        let models = Models {
            gate: RwLock::default(),
            holdings: (0..applications + 3).map(|_| Holding::default()).collect(),
            shared: TABLES.map(|_| (0..SHARED).map(|_| Shared::default()).collect()),
            uses: SLOTS.map(|_| Use::default()),
        };
        for (rows, table) in models.still().iter_mut().zip(&TABLES) {
            let values = |id| table.slots.iter().map(|&slot| Some(SLOTS[slot].still(id))).collect();
            *rows = (1..=STILL).map(|id| (id, Row::new(id % world::REGIONS, values(id)))).collect();
        }
        let table = &TABLES[SLOTS[DIVERGING].table];
        let values = |id| table.slots.iter().map(|&slot| Some(SLOTS[slot].still(id))).collect();
        models.diverging()[SLOTS[DIVERGING].table] = DIVERGED.map(|id| (id, Row::new(0, values(id)))).collect();
        models
    }

    fn holding(&self, number: usize) -> MutexGuard<'_, [Rows; TABLES.len()]> {
        self.holdings[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn application(&self, number: usize) -> MutexGuard<'_, [Rows; TABLES.len()]> {
        self.holding(number)
    }

    /// The rows that are made to diverge.
    pub fn diverging(&self) -> MutexGuard<'_, [Rows; TABLES.len()]> {
        self.holding(self.holdings.len() - 3)
    }

    /// The rows in partitions that come and go.
    pub fn partitions(&self) -> MutexGuard<'_, [Rows; TABLES.len()]> {
        self.holding(self.holdings.len() - 2)
    }

    /// The rows that nobody writes.
    pub fn still(&self) -> MutexGuard<'_, [Rows; TABLES.len()]> {
        self.holding(self.holdings.len() - 1)
    }

    /// When an application last used an old column, from when to when.
    pub fn last_use(&self, slot: usize) -> Option<(Instant, Instant)> {
        *self.uses[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows that are there at the beginning.
    pub fn fill(&self) -> String {
        let mut sql = String::new();
        for (number, table) in TABLES.iter().enumerate() {
            let (still, diverging) = (self.still(), self.diverging());
            let rows = still[number].iter().chain(&diverging[number]);
            let sources: Vec<&str> = table.slots.iter().map(|&slot| SLOTS[slot].source).collect();
            let sources = sources.join(", ");
            for chunk in rows.collect::<Vec<_>>().chunks(1000) {
                let lines: Vec<String> = chunk.iter().map(|(id, row)| row.tuple(**id)).collect();
                sql += &format!("INSERT INTO {} (id, region, {sources}) VALUES {};", table.name, lines.join(", "));
            }
            let first = SLOTS[table.slots[0]].source;
            sql += &format!(
                "INSERT INTO {} (id, region, {first}) SELECT {FIRST_SHARED} + i, 0, 'Shared ' || i
                FROM generate_series(0, {SHARED} - 1) AS i; ANALYZE {0};",
                table.name
            );
        }
        sql
    }

    /// Compares all rows of a table with the models, in one snapshot. Nobody writes meanwhile.
    pub fn compare(&self, client: &mut Client, number: usize) -> Result<Compared, Error> {
        let table = &TABLES[number];
        client.batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE {} IN ACCESS SHARE MODE",
            table.name
        ))?;
        let seen = observe(client, table, "true");
        client.batch_execute("COMMIT")?;
        let (standings, seen) = seen?;
        let (partitions, mut faults) = (self.holdings.len() - 2, Vec::new());
        let mut unknown: BTreeMap<i32, &Seen> = seen.iter().map(|row| (row.id, row)).collect();
        for holder in 0..self.holdings.len() {
            for (id, row) in &self.holding(holder)[number] {
                let fault = match unknown.remove(id) {
                    None => Some("the row is gone".to_owned()),
                    Some(seen) => row.fault(seen, table, &standings, holder == partitions),
                };
                faults.extend(fault.map(|fault| format!("{} {id}: {fault}", table.name)));
            }
        }
        for (shared, id) in self.shared[number].iter().zip(FIRST_SHARED..) {
            let hits = shared.least.load(Ordering::Relaxed)..=shared.most.load(Ordering::Relaxed);
            match unknown.remove(&id) {
                Some(seen) if hits.contains(&seen.note) => {}
                Some(seen) => faults.push(format!("{} {id}: was hit {} times, not {hits:?}", table.name, seen.note)),
                None => faults.push(format!("{} {id}: the row is gone", table.name)),
            }
        }
        faults.extend(unknown.keys().map(|id| format!("{} {id}: nobody has written this row", table.name)));
        // Two rows with one id.
        if seen.len() != seen.iter().map(|row| row.id).collect::<std::collections::BTreeSet<_>>().len() {
            faults.push(format!("{}: a row is there twice", table.name));
        }
        Ok(Compared { standings, faults })
    }

    /// After a contract what is only in the new columns is all that there is. Nobody writes meanwhile.
    pub fn forget_what_is_lost(&self, slot: usize) {
        let table = SLOTS[slot].table;
        let place = TABLES[table].place(slot);
        for holder in 0..self.holdings.len() {
            for row in self.holding(holder)[table].values_mut() {
                let value = row.values[place].take();
                let parts = value.as_deref().and_then(SLOTS[slot].split);
                row.values[place] = parts.map(|parts| SLOTS[slot].joined(&parts));
            }
        }
        // There is always something that a contract must ask about.
        if SLOTS[slot].is_untidy {
            for (id, row) in self.still()[table].iter_mut().filter(|(id, _)| *id % 10 < 2) {
                row.values[place] = Some(SLOTS[slot].still(*id));
            }
        }
    }
}

/// What came of a comparison.
pub struct Compared {
    pub standings: Vec<Standing>,
    pub faults: Vec<String>,
}

/// A row of the table.
#[derive(Debug)]
pub struct Seen {
    pub id: i32,
    region: i32,
    note: i64,
    /// For each slot the old column and the two new ones; `None` if they are not there.
    sides: Vec<(Side<Option<String>>, Side<[Option<String>; 2]>)>,
}

type Side<T> = Option<T>;

/// The standings and the rows of a table. The caller holds a lock and a snapshot.
pub fn observe(client: &mut Client, table: &Table, which: &str) -> Result<(Vec<Standing>, Vec<Seen>), Error> {
    let standings = world::standings(client, table)?;
    let mut columns = vec!["id".to_owned(), "region".to_owned(), "note".to_owned()];
    for (&slot, standing) in table.slots.iter().zip(&standings) {
        columns.extend(standing.source(slot));
        columns.extend(standing.rule(slot).iter().flat_map(|&rule| SLOTS[slot].rules[rule].targets).map(str::to_owned));
    }
    let sql = format!("SELECT {} FROM {} WHERE {which}", columns.join(", "), table.name);
    let mut seen = Vec::new();
    for row in world::rows(client, &sql)? {
        let mut values = row.into_iter();
        let mut number = || values.next().flatten().and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1);
        let (id, region, note) = (number() as i32, number() as i32, number());
        let mut next = || values.next().flatten();
        let sides = table.slots.iter().zip(&standings).map(|(&slot, standing)| {
            let old = standing.source(slot).map(|_| next());
            (old, standing.rule(slot).map(|_| [next(), next()]))
        });
        seen.push(Seen { id, region, note, sides: sides.collect() });
    }
    Ok((standings, seen))
}

impl Row {
    pub fn new(region: i32, values: Vec<Option<String>>) -> Row {
        Row { region, note: 0, values, rivals: Vec::new() }
    }

    /// As in VALUES.
    pub fn tuple(&self, id: i32) -> String {
        let values: String = self.values.iter().map(|value| format!(", {}", literal(value.as_deref()))).collect();
        format!("({id}, {}{values})", self.region)
    }

    /// What is wrong with a row of the table that must be this one.
    pub fn fault(&self, seen: &Seen, table: &Table, standings: &[Standing], may_be_pending: bool) -> Option<String> {
        if (seen.region, seen.note) != (self.region, self.note) {
            return Some(format!("is {seen:?}, and should be {self:?}"));
        }
        for (place, &slot) in table.slots.iter().enumerate() {
            let ((old, new), standing) = (&seen.sides[place], &standings[place]);
            let value = self.values[place].as_deref();
            let may_be_pending = may_be_pending || standing.is_expanding();
            if slot == DIVERGING && !self.rivals.is_empty() && self.is_of_rivals(value, old, new, may_be_pending) {
                continue;
            }
            let is_wrong = match (old, new) {
                (None, None) => true,
                (Some(old), new) => {
                    old.as_deref() != value
                        || new.as_ref().is_some_and(|new| !may_be_parts(slot, value, new, may_be_pending))
                }
                // Contracted: nothing will ever split what is not split.
                (None, Some(new)) => !may_be_parts(slot, value, new, false),
            };
            if is_wrong {
                let source = SLOTS[slot].source;
                return Some(format!(
                    "{source} is {old:?}, {new:?} and should be {value:?}; it stands at {standing:?}"
                ));
            }
        }
        None
    }

    /// Whether each side holds one of the values that were written to either.
    fn is_of_rivals(
        &self,
        value: Option<&str>,
        old: &Side<Option<String>>,
        new: &Side<[Option<String>; 2]>,
        may_be_pending: bool,
    ) -> bool {
        let all = || value.into_iter().chain(self.rivals.iter().map(String::as_str));
        let is_old = old.as_ref().is_none_or(|old| all().any(|value| old.as_deref() == Some(value)));
        // What is contracted is not pending.
        let may_be_pending = may_be_pending && old.is_some();
        let is_part = |new: &[_; 2]| all().any(|value| may_be_parts(DIVERGING, Some(value), new, may_be_pending));
        let is_new = new.as_ref().is_none_or(is_part);
        (old.is_some() || new.is_some()) && is_old && is_new
    }
}

/// Whether the new columns may hold this beside such an old value.
pub fn may_be_parts(slot: usize, value: Option<&str>, new: &[Option<String>; 2], may_be_pending: bool) -> bool {
    let slot = &SLOTS[slot];
    let is_empty = new == &[None, None];
    match value {
        None => is_empty,
        Some(value) => match (slot.split)(value) {
            Some((first, second)) => {
                (new[0].as_ref() == Some(&first) && new[1] == second) || (is_empty && may_be_pending)
            }
            // By `unmatched`: NULLs, or the whole.
            None => is_empty || (new[0].as_deref() == Some(value) && new[1].is_none()),
        },
    }
}
