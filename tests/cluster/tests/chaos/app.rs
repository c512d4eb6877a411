//! An application: an old and a new version of it write and read rows of their own, and rows of all, and know what they hold.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, Error, SimpleQueryMessage};
use pg_zdd_cluster::wait_until;

use crate::judge::Failure;
use crate::model::{self, FIRST_SHARED, Row, Rows, SHARED, Seen};
use crate::world::{self, APPLICATION, Parts, REGIONS, SLOTS, Standing, TABLES, chance, literal};
use crate::{Line, PATIENCE, Stage};

/// How many rows of a table are an application's own.
const OWN: i32 = 40;

/// How often a transaction is tried again that could not be serialized.
const TRIES: usize = 4;

/// Which columns an application knows: the old one, or those of one of the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    Old,
    New(usize),
}

/// A transaction. What it does is chosen without looking at anything.
struct Plan {
    table: usize,
    version: Version,
    /// `None` without a transaction block.
    isolation: Option<&'static str>,
    acts: Vec<Act>,
    /// The last act: a row of all, which nobody waits for who holds another one of them.
    shared: Option<(i32, Parts)>,
    is_rolled_back: bool,
}

enum Act {
    /// Makes a row hold this, whether it is there or not.
    Put {
        id: i32,
        slot: usize,
        value: Option<String>,
        pair: Parts,
        way: Way,
    },
    /// Writes the second one of the new columns; an old version, the old column.
    Half {
        id: i32,
        slot: usize,
        value: String,
        part: String,
    },
    /// Writes a column that is on neither side.
    Touch {
        id: i32,
    },
    Move {
        id: i32,
        region: i32,
    },
    Remove {
        id: i32,
    },
    Read {
        id: i32,
        slot: usize,
    },
    Lock {
        id: i32,
    },
    Savepoint,
    RollbackTo,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Upsert,
    /// As drivers do that prepare each statement.
    Prepared,
}

/// A statement, and the column that it wants to find.
struct Statement {
    sql: String,
    slot: Option<usize>,
    is_prepared: bool,
}

/// What became of a transaction.
#[derive(PartialEq)]
enum End {
    Committed,
    RolledBack,
    /// It could not be serialized.
    Again,
    /// The connection was lost while it was committed.
    InDoubt,
}

/// A transaction under way.
struct Run<'p> {
    plan: &'p Plan,
    /// Where the columns stood before it began.
    before: Vec<Standing>,
    rows: Rows,
    saved: Option<Rows>,
    touched: BTreeSet<i32>,
}

pub struct App<'s> {
    stage: &'s Stage<'s>,
    number: usize,
    rng: Rng,
    unique: u64,
    line: Option<Line>,
    /// A superuser's connection, which sees where the columns stand.
    eye: Option<Client>,
}

impl<'s> App<'s> {
    pub fn new(stage: &'s Stage<'s>, number: usize, rng: Rng) -> Self {
        App { stage, number, rng, unique: 0, line: None, eye: None }
    }

    pub fn run(mut self) {
        while !self.stage.judge.is_over() {
            let plan = self.plan();
            let pause = Duration::from_millis(self.rng.u64(1..8));
            for _ in 0..TRIES {
                if self.play(&plan) != End::Again {
                    break;
                }
            }
            std::thread::sleep(pause);
        }
    }

    fn plan(&mut self) -> Plan {
        let table = [0, 0, 1, 1, 2][self.rng.usize(0..5)];
        let version = match self.rng.u8(0..10) {
            0..5 => Version::Old,
            5..8 => Version::New(0),
            _ => Version::New(1),
        };
        let isolation = match self.rng.u8(0..8) {
            0..4 => None,
            4 | 5 => Some("READ COMMITTED"),
            6 => Some("REPEATABLE READ"),
            _ => Some("SERIALIZABLE"),
        };
        let acts = if isolation.is_some() { self.rng.usize(1..6) } else { 1 };
        let acts = (0..acts).map(|_| self.act(table)).collect();
        let shared = (isolation.is_some() && chance(&mut self.rng, 15)).then(|| {
            let unique = self.unique();
            (self.rng.i32(0..SHARED), SLOTS[TABLES[table].slots[0]].fresh_pair(&mut self.rng, unique).1)
        });
        Plan { table, version, isolation, acts, shared, is_rolled_back: chance(&mut self.rng, 10) }
    }

    fn unique(&mut self) -> u64 {
        self.unique += 1;
        (self.number as u64 + 1) * 10_000_000 + self.unique
    }

    fn act(&mut self, table: usize) -> Act {
        let unique = self.unique();
        let rng = &mut self.rng;
        let slots = TABLES[table].slots;
        let slot = slots[rng.usize(0..slots.len())];
        let id = (self.number as i32 + 1) * 10_000 + rng.i32(0..OWN);
        let (value, pair) = SLOTS[slot].fresh_pair(rng, unique);
        match rng.u8(0..100) {
            0..44 => {
                let way = [Way::Plain, Way::Plain, Way::Upsert, Way::Prepared][rng.usize(0..4)];
                Act::Put { id, slot, value: SLOTS[slot].fresh(rng, unique), pair, way }
            }
            44..54 => Act::Half { id, slot, part: pair.1.unwrap_or_default(), value },
            54..62 => Act::Touch { id },
            62..67 => Act::Move { id, region: rng.i32(0..REGIONS) },
            67..71 => Act::Remove { id },
            71..90 => Act::Read { id, slot },
            90..94 => Act::Lock { id },
            94..97 => Act::Savepoint,
            _ => Act::RollbackTo,
        }
    }

    /// Runs a transaction on the table and on the model.
    fn play(&mut self, plan: &Plan) -> End {
        let models = &self.stage.models;
        let _gate = models.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = self.look(plan.table) else { return End::RolledBack };
        let rows = models.application(self.number)[plan.table].clone();
        let mut run = Run { plan, before, rows: rows.clone(), saved: None, touched: BTreeSet::new() };
        let shared = plan.shared.as_ref().map(|(number, _)| &models.shared[plan.table][*number as usize]);
        // It may come through whatever we hear of it.
        if let Some(shared) = shared {
            shared.most.fetch_add(1, Ordering::Relaxed);
        }
        let end = self.transaction(&mut run);
        if let Some(shared) = shared {
            match end {
                End::Committed => shared.least.fetch_add(1, Ordering::Relaxed),
                End::InDoubt => 0,
                End::RolledBack | End::Again => shared.most.fetch_sub(1, Ordering::Relaxed),
            };
        }
        match end {
            End::Committed => models.application(self.number)[plan.table] = run.rows,
            End::InDoubt => self.settle(&run, rows),
            End::RolledBack | End::Again => {}
        }
        end
    }

    fn transaction(&mut self, run: &mut Run) -> End {
        let Some(isolation) = run.plan.isolation else {
            return run.plan.acts.iter().try_for_each(|act| self.perform(run, act)).map_or_else(
                // A statement of its own may have come through.
                |end| if end == End::RolledBack && self.line.is_none() { End::InDoubt } else { end },
                |()| End::Committed,
            );
        };
        let plan = run.plan;
        let done = self
            .control(run, &format!("BEGIN ISOLATION LEVEL {isolation}"))
            .and_then(|()| plan.acts.iter().try_for_each(|act| self.perform(run, act)))
            .and_then(|()| plan.shared.as_ref().map_or(Ok(()), |shared| self.hit(run, shared)));
        match done {
            Err(end) => {
                if self.line.is_some() {
                    let _ = self.control(run, "ROLLBACK");
                }
                end
            }
            Ok(()) if plan.is_rolled_back => self.control(run, "ROLLBACK").err().unwrap_or(End::RolledBack),
            Ok(()) => match self.control(run, "COMMIT") {
                Err(End::RolledBack) if self.line.is_none() => End::InDoubt,
                ended => ended.err().unwrap_or(End::Committed),
            },
        }
    }

    /// A statement that steers a transaction.
    fn control(&mut self, run: &Run, sql: &str) -> Result<(), End> {
        self.say(run, &Statement { sql: sql.to_owned(), slot: None, is_prepared: false }).map(drop)
    }

    fn perform(&mut self, run: &mut Run, act: &Act) -> Result<(), End> {
        match act {
            Act::Savepoint if run.plan.isolation.is_some() => {
                run.saved = Some(run.rows.clone());
                return self.control(run, "SAVEPOINT s");
            }
            Act::RollbackTo => {
                return match run.saved.clone() {
                    Some(saved) => {
                        run.rows = saved;
                        self.control(run, "ROLLBACK TO s")
                    }
                    None => Ok(()),
                };
            }
            Act::Read { id, slot } => return self.read(run, *id, *slot),
            _ => {}
        }
        let Some((id, statement, row)) = run.write(act) else { return Ok(()) };
        run.touched.insert(id);
        match row {
            Some(row) => run.rows.insert(id, row),
            None => run.rows.remove(&id),
        };
        let count = self.say(run, &statement)?.1;
        if count != 1 {
            self.finds("a statement of an application has not found its row", &statement.sql);
        }
        Ok(())
    }

    fn read(&mut self, run: &Run, id: i32, slot: usize) -> Result<(), End> {
        let Some(row) = run.rows.get(&id) else { return Ok(()) };
        let table = &TABLES[run.plan.table];
        let value = row.values[table.place(slot)].as_deref();
        let columns = match run.plan.version {
            Version::Old => SLOTS[slot].source.to_owned(),
            Version::New(rule) => SLOTS[slot].rules[rule].targets.join(", "),
        };
        let sql = format!("SELECT note::text, {columns} FROM {} WHERE id = {id}", table.name);
        let statement = Statement { sql, slot: Some(slot), is_prepared: id % 2 == 0 };
        let found = self.say(run, &statement)?.0;
        let wrong = match &found[..] {
            [found] if found[0].as_deref() != Some(&row.note.to_string()) => true,
            [found] => match run.plan.version {
                Version::Old => found[1].as_deref() != value,
                Version::New(_) => {
                    let new = [found[1].clone(), found[2].clone()];
                    let is_split = model::may_be_parts(slot, value, &new, false);
                    !(is_split || model::may_be_parts(slot, value, &new, true) && self.may_be_pending(run, slot))
                }
            },
            _ => true,
        };
        if wrong {
            let place = table.place(slot);
            self.finds(
                "an application reads what it has not written",
                &format!("{}\ngave {found:?} and not {row:?}; it stood at {:?}", statement.sql, run.before[place]),
            );
        }
        Ok(())
    }

    /// Whether a row may have been there that was not split, when a transaction looked.
    fn may_be_pending(&mut self, run: &Run, slot: usize) -> bool {
        let place = TABLES[run.plan.table].place(slot);
        let Some(after) = self.look(run.plan.table) else { return true };
        run.before[place].is_expanding() || run.before[place].change != after[place].change
    }

    /// Writes a row of all.
    fn hit(&mut self, run: &Run, (number, parts): &(i32, Parts)) -> Result<(), End> {
        let table = &TABLES[run.plan.table];
        let slot = table.slots[0];
        let assignments = run.plan.version.assignments(slot, Some(&SLOTS[slot].joined(parts)), parts);
        let id = FIRST_SHARED + number;
        let sql = format!("UPDATE {} SET note = note + 1, {assignments} WHERE id = {id}", table.name);
        self.say(run, &Statement { sql, slot: Some(slot), is_prepared: false }).map(drop)
    }

    /// Runs a statement: the rows that it gives and their number, or how the transaction ends with it.
    fn say(&mut self, run: &Run, statement: &Statement) -> Result<(Vec<Vec<Option<String>>>, u64), End> {
        let Some(line) = &mut self.line else { return Err(End::RolledBack) };
        let sent = Instant::now();
        let done = match statement.is_prepared {
            true => prepared(&mut line.client, &statement.sql),
            false => simple(&mut line.client, &statement.sql),
        };
        let judge = &self.stage.judge;
        let who = if run.plan.version == Version::Old { "old application" } else { "new application" };
        judge.times(who, sent.elapsed());
        let failure = match done {
            Ok(done) => {
                judge.counts(who, "00000");
                if let (Version::Old, Some(slot)) = (run.plan.version, statement.slot) {
                    let mut last = self.stage.models.uses[slot].lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some((sent, Instant::now()));
                }
                return Ok(done);
            }
            Err(error) => Failure::of(&error),
        };
        judge.counts(who, &failure.state);
        let is_serializing = run.plan.isolation.is_some_and(|isolation| isolation != "READ COMMITTED");
        match failure.state.as_str() {
            _ if failure.is_end() => {
                if !line.has_been_struck(judge) {
                    self.finds("an application has lost its connection", &failure.text);
                }
                self.line = None;
                return Err(End::RolledBack);
            }
            "40001" if is_serializing => return Err(End::Again),
            "42703" if !self.should_have_found(run, statement) => return Err(End::RolledBack),
            _ => {}
        }
        let title = format!("a statement of an application fails with {}", failure.state);
        self.finds(&title, &format!("{}\n{}\n{:?}", failure.text, statement.sql, run.before));
        Err(End::RolledBack)
    }

    /// Whether the columns that a statement names were there all the time.
    fn should_have_found(&mut self, run: &Run, statement: &Statement) -> bool {
        let Some(slot) = statement.slot else { return true };
        let place = TABLES[run.plan.table].place(slot);
        let Some(after) = self.look(run.plan.table) else { return false };
        let is_there = match run.plan.version {
            Version::Old => after[place].has(SLOTS[slot].source),
            Version::New(rule) => SLOTS[slot].rules[rule].targets.iter().all(|target| after[place].has(target)),
        };
        is_there && run.before[place] == after[place]
    }

    /// Where the columns of a table stand, with both connections open; nothing if time is over before they are.
    fn look(&mut self, table: usize) -> Option<Vec<Standing>> {
        loop {
            if self.line.is_none() {
                let name = format!("app {}", self.number);
                self.line = Line::open(self.stage, APPLICATION, &name, "-c statement_timeout=30s");
            }
            if let Some(eye) = &mut self.eye {
                match world::standings(eye, &TABLES[table]) {
                    Ok(standings) if self.line.is_some() => return Some(standings),
                    Ok(_) => {}
                    Err(_) => self.eye = None,
                }
            } else {
                self.eye = self.stage.cluster.connect(world::DATABASE, "postgres", "eye").ok();
            }
            if self.line.is_none() || self.eye.is_none() {
                if self.stage.judge.is_over() {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Finds out whether a transaction was committed: all of it, or nothing.
    fn settle(&mut self, run: &Run, before: Rows) {
        let table = &TABLES[run.plan.table];
        let ids: Vec<String> = run.touched.iter().map(i32::to_string).collect();
        if ids.is_empty() {
            return;
        }
        let which = format!("id IN ({})", ids.join(", "));
        let mut seen = None;
        let looked = wait_until("the end of a transaction shows", PATIENCE, || {
            seen = observe(self.stage, run.plan.table, self.number, &which).ok().flatten();
            Ok(seen.is_some())
        });
        let Some((standings, seen)) = seen else {
            return self.finds("the server does not come back", &format!("{looked:?}"));
        };
        let fault = |rows: &Rows| {
            run.touched.iter().find_map(|id| match (rows.get(id), seen.iter().find(|row| row.id == *id)) {
                (None, None) => None,
                (Some(row), Some(seen)) => row.fault(seen, table, &standings, false),
                (row, seen) => Some(format!("{seen:?}, and should be {row:?}")),
            })
        };
        match (fault(&run.rows), fault(&before)) {
            (None, _) => self.stage.models.application(self.number)[run.plan.table] = run.rows.clone(),
            (_, None) => {}
            (Some(after), Some(before)) => self.finds(
                "a transaction that was struck down has come through in part",
                &format!("after: {after}\nbefore: {before}"),
            ),
        }
    }

    fn finds(&self, title: &str, example: &str) {
        self.stage.judge.finds(title, &format!("app {}: {example}", self.number));
    }
}

/// Rows of a table as they are when the last connection of an application is gone; nothing before.
fn observe(
    stage: &Stage,
    table: usize,
    number: usize,
    which: &str,
) -> Result<Option<(Vec<Standing>, Vec<Seen>)>, pg_zdd_cluster::Error> {
    let mut client = stage.cluster.connect(world::DATABASE, "postgres", "eye")?;
    let others = format!("SELECT FROM pg_stat_activity WHERE application_name = 'app {number}'");
    if !world::rows(&mut client, &others)?.is_empty() {
        return Ok(None);
    }
    let table = &TABLES[table];
    client.batch_execute(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE {} IN ACCESS SHARE MODE",
        table.name
    ))?;
    Ok(Some(model::observe(&mut client, table, which)?))
}

impl Version {
    /// What SET makes of a value.
    fn assignments(self, slot: usize, value: Option<&str>, (first, second): &Parts) -> String {
        match self {
            Version::Old => format!("{} = {}", SLOTS[slot].source, literal(value)),
            Version::New(rule) => {
                let [a, b] = SLOTS[slot].rules[rule].targets;
                format!("{a} = {}, {b} = {}", literal(Some(first)), literal(second.as_deref()))
            }
        }
    }
}

impl Run<'_> {
    /// What an act that writes comes to: the row's id, the statement, and the row afterwards.
    fn write(&self, act: &Act) -> Option<(i32, Statement, Option<Row>)> {
        let (table, version) = (&TABLES[self.plan.table], self.plan.version);
        let name = table.name;
        let id = act.id()?;
        let old = self.rows.get(&id);
        // With and without partition pruning.
        let found = match old {
            Some(row) if id % 2 == 0 => format!("id = {id} AND region = {}", row.region),
            _ => format!("id = {id}"),
        };
        let statement = |sql: String, slot, is_prepared| Statement { sql, slot, is_prepared };
        let with = |slot: usize, value: Option<String>| {
            let mut row = old?.clone();
            row.values[table.place(slot)] = value;
            Some(row)
        };
        let (statement, row) = match act {
            Act::Put { slot, value, pair, way, .. } => {
                let slot = *slot;
                let value = if version == Version::Old { value.clone() } else { Some(SLOTS[slot].joined(pair)) };
                let set = version.assignments(slot, value.as_deref(), pair);
                let is_first = table.slots[0] == slot;
                let sql = match old {
                    Some(_) if *way != Way::Upsert || !is_first => format!("UPDATE {name} SET {set} WHERE {found}"),
                    None if !is_first => return None,
                    _ => self.insert(id, slot, value.as_deref(), pair, old),
                };
                let place = table.place(slot);
                let row = with(slot, value.clone()).unwrap_or_else(|| {
                    let mut values = vec![None; table.slots.len()];
                    values[place] = value;
                    Row::new(id % REGIONS, values)
                });
                (statement(sql, Some(slot), *way == Way::Prepared), Some(row))
            }
            Act::Half { slot, value, part, .. } => {
                let (first, _) = (SLOTS[*slot].split)(old?.values[table.place(*slot)].as_deref()?)?;
                let (set, value) = match version {
                    Version::Old => (format!("{} = '{value}'", SLOTS[*slot].source), value.clone()),
                    Version::New(rule) => (
                        format!("{} = '{part}'", SLOTS[*slot].rules[rule].targets[1]),
                        (SLOTS[*slot].join)(&first, Some(part)),
                    ),
                };
                let sql = format!("UPDATE {name} SET {set}, note = note + 1 WHERE {found}");
                let row = with(*slot, Some(value)).map(|row| Row { note: row.note + 1, ..row });
                (statement(sql, Some(*slot), false), row)
            }
            Act::Touch { .. } => {
                let row = Row { note: old?.note + 1, ..old?.clone() };
                (statement(format!("UPDATE {name} SET note = note + 1 WHERE {found}"), None, id % 3 == 0), Some(row))
            }
            Act::Move { region, .. } => {
                let row = Row { region: *region, ..old?.clone() };
                (statement(format!("UPDATE {name} SET region = {region} WHERE {found}"), None, false), Some(row))
            }
            Act::Remove { .. } => {
                old?;
                (statement(format!("DELETE FROM {name} WHERE {found}"), None, false), None)
            }
            Act::Lock { .. } => {
                let lock = if id % 3 == 0 { "FOR UPDATE" } else { "FOR NO KEY UPDATE" };
                (statement(format!("SELECT id FROM {name} WHERE {found} {lock}"), None, false), Some(old?.clone()))
            }
            Act::Read { .. } | Act::Savepoint | Act::RollbackTo => return None,
        };
        Some((id, statement, row))
    }

    /// An INSERT, which becomes an UPDATE where the row is there.
    fn insert(&self, id: i32, slot: usize, value: Option<&str>, (first, second): &Parts, old: Option<&Row>) -> String {
        let table = &TABLES[self.plan.table];
        let region = old.map_or(id % REGIONS, |row| row.region);
        let (columns, values) = match self.plan.version {
            Version::Old => (vec![SLOTS[slot].source], literal(value)),
            Version::New(rule) => {
                let values = format!("{}, {}", literal(Some(first)), literal(second.as_deref()));
                (SLOTS[slot].rules[rule].targets.to_vec(), values)
            }
        };
        let excluded: Vec<String> = columns.iter().map(|column| format!("{column} = EXCLUDED.{column}")).collect();
        let conflict = match old {
            None => String::new(),
            Some(_) => {
                let key = if table.is_partitioned { "id, region" } else { "id" };
                format!(" ON CONFLICT ({key}) DO UPDATE SET {}", excluded.join(", "))
            }
        };
        format!(
            "INSERT INTO {} (id, region, {}) VALUES ({id}, {region}, {values}){conflict}",
            table.name,
            columns.join(", ")
        )
    }
}

impl Act {
    fn id(&self) -> Option<i32> {
        match self {
            Act::Put { id, .. } | Act::Half { id, .. } | Act::Touch { id } | Act::Move { id, .. } => Some(*id),
            Act::Remove { id } | Act::Read { id, .. } | Act::Lock { id } => Some(*id),
            Act::Savepoint | Act::RollbackTo => None,
        }
    }
}

type Answer = Result<(Vec<Vec<Option<String>>>, u64), Error>;

fn simple(client: &mut Client, sql: &str) -> Answer {
    let (mut rows, mut count) = (Vec::new(), 0);
    for message in client.simple_query(sql)? {
        match message {
            SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect()),
            SimpleQueryMessage::CommandComplete(affected) => count = affected,
            _ => {}
        }
    }
    Ok((rows, count))
}

fn prepared(client: &mut Client, sql: &str) -> Answer {
    if !sql.starts_with("SELECT") {
        return Ok((Vec::new(), client.execute(sql, &[])?));
    }
    let found = client.query(sql, &[])?;
    let rows: Vec<_> = found.iter().map(|row| (0..row.len()).map(|n| row.get(n)).collect()).collect();
    let count = rows.len() as u64;
    Ok((rows, count))
}
