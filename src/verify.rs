//! Looking at every row: how many are in which state, and which are not as they should be.

use std::ops::Range;

use pgrx::pg_sys;
use pgrx::spi::{quote_identifier as quote, quote_literal};

use crate::binding::{Binding, BoundColumn};
use crate::catalog::{Change, Right};
use crate::ddl::{check_storage, open};
use crate::error::{Error, shortened};
use crate::pg::gate::as_owner;
use crate::pg::inheritance::ancestors;
use crate::pg::lock::{LockMode, tree};
use crate::pg::memory::{Caller, Memory};
use crate::pg::session::with_latest_snapshot;
use crate::pg::table::{Row, Table, Tid, primary_key};
use crate::pg::value::{Passed, Value, Values};
use crate::plans;
use crate::rule::state::RowState;

/// How many rows are in which state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub rows: i64,
    /// Lossy rows included.
    pub in_sync: i64,
    pub unmatched: i64,
    pub pending: i64,
    pub diverged: i64,
    pub lossy: i64,
    /// Rows that are not pending and have NULL in a target that is NOT NULL.
    pub null_violations: i64,
}

impl Counts {
    /// Counts one more row.
    pub fn add(&mut self, state: RowState, null_violation: bool) {
        self.rows += 1;
        match state {
            RowState::InSync => self.in_sync += 1,
            RowState::Lossy => {
                self.in_sync += 1;
                self.lossy += 1;
            }
            RowState::Unmatched => self.unmatched += 1,
            RowState::Pending => self.pending += 1,
            RowState::Diverged => self.diverged += 1,
        }
        if null_violation && state != RowState::Pending {
            self.null_violations += 1;
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.rows += other.rows;
        self.in_sync += other.in_sync;
        self.unmatched += other.unmatched;
        self.pending += other.pending;
        self.diverged += other.diverged;
        self.lossy += other.lossy;
        self.null_violations += other.null_violations;
    }
}

/// The tables of a change that have rows: the table itself, its partitions or children.
pub fn tables(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // Locked, it cannot be dropped while we look.
    let Some(_table) = Table::look_at(relation) else { return Vec::new() };
    tree(relation)
        .into_iter()
        .filter(|member| Table::look_at(*member).is_some_and(|table| table.kind() == 'r'))
        .collect()
}

/// Calls `each` with every row in a range of blocks. What it allocates is freed after a few rows, and then whoever waits
/// for the processor goes first. Between two rows no page is locked, only the rows of the batch, unlike where a process
/// of low priority would be made to wait.
pub fn rows<E: From<Error>>(
    table: &Table,
    blocks: Range<u32>,
    mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    // Freeing and yielding cost as much as looking at a row.
    const ROWS_AT_A_TIME: u32 = 64;
    let memory = Memory::short_lived();
    let mut done = 0;
    table.scan(blocks, |row| {
        let result = memory.enter(|| each(row));
        done += 1;
        if done == ROWS_AT_A_TIME {
            done = 0;
            memory.reset();
            std::thread::yield_now();
        }
        result
    })
}

/// Calls `each` with both sides of every row in a range of blocks.
pub fn sides<E: From<Error>>(
    binding: &Binding,
    table: &Table,
    blocks: Range<u32>,
    mut each: impl FnMut(&Row<'_>, Value, &[Value]) -> Result<(), E>,
) -> Result<(), E> {
    let mut targets = Values::new();
    rows(table, blocks, |row| {
        binding.read_targets(row, &mut targets);
        each(row, binding.source_of(row), &targets)
    })
}

/// Adds the rows of a range of blocks to the counts.
pub fn count(binding: &Binding, table: &Table, blocks: Range<u32>, counts: &mut Counts) -> Result<(), Error> {
    sides(binding, table, blocks, |_, source, targets| {
        counts.add(binding.state(source, targets), binding.null_violation(targets).is_some());
        Ok(())
    })
}

/// A change with its table locked as SELECT does it, until the end of the transaction: nobody changes its rule meanwhile.
fn locked(right: &Right) -> Result<Change, Error> {
    drop(Table::open(right.relation, LockMode::AccessShare));
    with_latest_snapshot(|| right.find())
}

/// Counts all rows as one snapshot sees them.
pub fn verify(right: &Right) -> Result<Counts, Error> {
    let change = &locked(right)?;
    let mut counts = Counts::default();
    for relation in tables(change.relation) {
        let table = open(relation)?;
        let plan = plans::of_change(change, &table)?;
        let before = counts.rows;
        count(&plan.binding, &table, 0..table.blocks(), &mut counts)?;
        if counts.rows == before {
            refuse_rows(&table)?;
        }
    }
    Ok(counts)
}

/// A row that is not as it should be.
pub struct Mismatch {
    pub relation: pg_sys::Oid,
    pub tid: Tid,
    pub kind: &'static str,
}

/// Finds rows that are not plainly in sync, up to so many of those that need work and so many lossy ones.
fn find(
    change: &Change,
    table: &Table,
    max_rows: usize,
    found: &mut Vec<Mismatch>,
    lossy: &mut Vec<Mismatch>,
) -> Result<(), Error> {
    enum Stop {
        Enough,
        Failed(Error),
    }
    impl From<Error> for Stop {
        fn from(error: Error) -> Stop {
            Stop::Failed(error)
        }
    }
    let plan = plans::of_change(change, table)?;
    let binding = &plan.binding;
    let scan = sides(binding, table, 0..table.blocks(), |row, source, targets| {
        if found.len() >= max_rows {
            return Err(Stop::Enough);
        }
        let kind = match binding.state(source, targets) {
            RowState::Unmatched => "unmatched",
            RowState::Pending => "pending",
            RowState::Diverged => "diverged",
            _ if binding.null_violation(targets).is_some() => "null_violation",
            RowState::Lossy => {
                if lossy.len() < max_rows {
                    lossy.push(Mismatch { relation: table.oid(), tid: row.tid(), kind: "lossy" });
                }
                return Ok(());
            }
            RowState::InSync => return Ok(()),
        };
        found.push(Mismatch { relation: table.oid(), tid: row.tid(), kind });
        Ok(())
    });
    match scan {
        Ok(()) | Err(Stop::Enough) => Ok(()),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// A row of `zdd.mismatches`.
pub type MismatchRow = (pg_sys::Oid, Option<Passed>, pg_sys::ItemPointerData, Option<Passed>, Option<Passed>, String);

/// The rows behind the counts.
pub fn mismatches(right: &Right, max_rows: usize) -> Result<Vec<MismatchRow>, Error> {
    let change = &locked(right)?;
    let caller = Caller::current();
    let (mut all, mut lossy) = (Vec::new(), Vec::new());
    for relation in tables(change.relation) {
        find(change, &open(relation)?, max_rows, &mut all, &mut lossy)?;
    }
    all.extend(lossy);
    all.truncate(max_rows);
    let mut result = Vec::new();
    for found in all.chunk_by(|left, right| left.relation == right.relation) {
        let Some(relation) = found.first().map(|mismatch| mismatch.relation) else { continue };
        let table = open(relation)?;
        let object = |names: &[String]| {
            let pairs: Vec<String> =
                names.iter().map(|name| format!("{}, t.{}", quote_literal(name), quote(name))).collect();
            format!("pg_catalog.jsonb_build_object({})", pairs.join(", "))
        };
        let key: Vec<String> =
            primary_key(&table).into_iter().filter_map(|number| table.attribute_name(number)).collect();
        let targets: Vec<String> = change.rule.targets.iter().map(|target| target.name.clone()).collect();
        let sql = format!(
            "select {}, t.{}::text, {}, t.ctid from only {} as t where t.ctid operator(pg_catalog.=) $1",
            if key.is_empty() { "null::jsonb".to_owned() } else { object(&key) },
            quote(change.rule.source.current_name()),
            object(&targets),
            table.name(),
        );
        let tids = found.iter().map(|mismatch| [mismatch.tid.into()]);
        as_owner(table.owner(), |gate| {
            gate.for_each(&sql, [pg_sys::PgBuiltInOids::TIDOID], tids, |row| {
                // Rows may have gone since they were looked at.
                let tid = row.get::<pg_sys::ItemPointerData>(4)?.map(Tid::unpack);
                let Some(mismatch) = found.iter().find(|mismatch| Some(mismatch.tid) == tid) else { return Ok(()) };
                // The query's own memory goes with the query.
                let (key, source, targets) =
                    caller.enter(|| Ok::<_, Error>((row.get(1)?, row.get(2)?, row.get(3)?)))?;
                let (tid, kind) = (mismatch.tid.pack(), mismatch.kind.to_owned());
                result.push((mismatch.relation, key, tid, source, targets, kind));
                Ok(())
            })
        })?;
    }
    Ok(result)
}

/// What a rule would make of the values that are there.
#[derive(Default)]
pub struct Preview {
    pub matched: Kind,
    pub unmatched: Kind,
    pub null: Kind,
    /// These are matched too.
    pub lossy: Kind,
}

/// The rows of one kind.
#[derive(Default)]
pub struct Kind {
    pub rows: i64,
    pub examples: Vec<serde_json::Value>,
}

impl Kind {
    fn add(&mut self, example: impl FnOnce() -> serde_json::Value) {
        const EXAMPLES: usize = 5;
        self.rows += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// Applies a rule to about `sample_rows` rows, taken evenly from all over the tables.
pub fn preview(
    relation: pg_sys::Oid,
    sample_rows: u64,
    mut bind: impl FnMut(&Table) -> Result<Binding, Error>,
) -> Result<Preview, Error> {
    let mut preview = Preview::default();
    for member in tree(relation) {
        check_storage(&open(member)?)?;
    }
    let tables = tables(relation);
    let share = sample_rows.div_ceil(tables.len().max(1) as u64);
    for relation in tables {
        let table = open(relation)?;
        let binding = bind(&table)?;
        sample(&binding, &table, share, &mut preview)?;
    }
    Ok(preview)
}

fn sample(binding: &Binding, table: &Table, sample_rows: u64, preview: &mut Preview) -> Result<(), Error> {
    let memory = Memory::short_lived();
    let blocks = table.blocks();
    // Blocks at even distances, enough of them if rows are as many as the planner thinks.
    let per_block = (table.estimated_rows().unwrap_or(0) / u64::from(blocks.max(1))).max(1);
    let wanted = sample_rows.div_ceil(per_block).clamp(1, u64::from(blocks.max(1)));
    let step = (u64::from(blocks) / wanted).max(1) as usize;
    let mut seen = 0;
    for block in (0..blocks).step_by(step) {
        if seen >= sample_rows {
            break;
        }
        table.scan(block..block + 1, |row| {
            let source = binding.source_of(row);
            memory.enter(|| preview_value(binding, source, preview));
            memory.reset();
            seen += 1;
            Ok::<_, Error>(())
        })?;
    }
    Ok(())
}

/// A value as an example shows it.
fn example_text(binding: &Binding, column: &BoundColumn, value: Value) -> Option<String> {
    const MOST: usize = 1000;
    binding.text(&column.column_type, value, |text| shortened(text, MOST))
}

fn preview_value(binding: &Binding, source: Value, preview: &mut Preview) {
    let mut targets = Values::new();
    if source.is_null() {
        return preview.null.add(|| serde_json::Value::Null);
    }
    let accepted = binding.split(source, &mut targets);
    let source_text = |source| example_text(binding, &binding.source, source).unwrap_or_else(|| "NULL".to_owned());
    let text = || serde_json::Value::from(source_text(source));
    let example = |joined: Option<String>| {
        let mut example = serde_json::Map::new();
        example.insert(binding.rule.source.name.clone(), text());
        for ((target, column), value) in binding.rule.targets.iter().zip(&binding.targets).zip(&targets) {
            example.insert(target.name.clone(), example_text(binding, column, *value).into());
        }
        if let Some(joined) = joined {
            example.insert("joined".into(), joined.into());
        }
        serde_json::Value::Object(example)
    };
    if !accepted {
        return preview.unmatched.add(text);
    }
    preview.matched.add(|| example(None));
    let joined = binding.join_if_possible(&targets);
    if !joined.is_some_and(|joined| binding.same_source(joined, source)) {
        preview.lossy.add(|| example(Some(joined.map_or_else(|| "NULL".into(), source_text))));
    }
}

/// The blocks of a table in pieces that are quick to read.
pub fn pieces(blocks: u32) -> impl Iterator<Item = Range<u32>> {
    const PIECE: u32 = 256;
    (0..blocks).step_by(PIECE as usize).map(move |start| start..(start + PIECE).min(blocks))
}

/// Counts the rows of one piece of a table as they are now, if it is still a part of the change.
pub fn count_piece(change: &Change, table: &Table, blocks: Range<u32>, counts: &mut Counts) -> Result<(), Error> {
    look_at_piece(change, table, blocks, |_, state, null_violation| counts.add(state, null_violation))
}

/// Calls `each` for the rows of one piece of a table as they are now, with their state, and whether a target that is NOT NULL
/// has none; if the table is still a part of the change.
pub fn look_at_piece(
    change: &Change,
    table: &Table,
    blocks: Range<u32>,
    mut each: impl FnMut(Tid, RowState, bool),
) -> Result<(), Error> {
    if !ancestors(table.oid()).contains(&change.relation) {
        return Ok(());
    }
    let plan = plans::of_change(change, table)?;
    let binding = &plan.binding;
    with_latest_snapshot(|| {
        sides(binding, table, blocks, |row, source, targets| {
            each(row.tid(), binding.state(source, targets), binding.null_violation(targets).is_some());
            Ok(())
        })
    })
}

/// An error if a table has rows but a scan finds none, after pieces of it had none. It may be gone.
pub fn check_empty(relation: pg_sys::Oid) -> Result<(), Error> {
    let Some(table) = Table::look_at(relation) else { return Ok(()) };
    with_latest_snapshot(|| {
        // Rows may have come since.
        let mut found = false;
        rows(&table, 0..table.blocks(), |_| {
            found = true;
            Ok::<_, Error>(())
        })?;
        if found { Ok(()) } else { refuse_rows(&table) }
    })
}

/// An error if a query finds rows in a table that a scan has found none in: whatever keeps them there, nothing is known of
/// them.
fn refuse_rows(table: &Table) -> Result<(), Error> {
    if as_owner(table.owner(), |gate| table.has_rows(gate))? {
        Err(Error::UnseenRows { relation: table.name() })
    } else {
        Ok(())
    }
}
