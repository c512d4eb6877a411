//! One batch: the rows in a range of blocks that need work.

use std::ops::Range;
use std::time::Instant;

use smallvec::smallvec;

use pgrx::pg_sys::PgBuiltInOids;
use pgrx::spi::quote_identifier as quote;

use super::plan::{Visit, Work};
use crate::binding::Binding;
use crate::catalog::{self, Change};
use crate::error::Error;
use crate::guc;
use crate::pg::constraint::check_at_once;
use crate::pg::gate::{Gate, as_owner};
use crate::pg::lock::deadlock_timeout;
use crate::pg::page::{Destinations, PAGE_SIZE};
use crate::pg::session::with_latest_snapshot;
use crate::pg::settings::with_settings;
use crate::pg::table::{Row, Table, Tid, Writer, Written};
use crate::pg::value::{Value, Values};
use crate::plans;
use crate::rule::state::{RowState, is_pending};
use crate::verify::{rows, sides};

/// What to do with which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Split pending rows.
    Split,
    /// Split pending rows by an UPDATE that fires the table's triggers.
    SplitFiringTriggers,
    /// Settle diverged rows: N := f(O).
    OldWins,
    /// Settle diverged rows: O := g(N).
    NewWins,
}

impl Task {
    /// How often a batch of this task should come by a block, see `Window`.
    pub fn visits(self) -> u32 {
        if self == Task::Split { 8 } else { 1 }
    }
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Outcome {
    pub work: Work,
    /// Blocks that should be done, with rows that somebody else had locked.
    pub skipped: Vec<u32>,
}

/// Does a task on the rows in some blocks, as the table's owner, without ever waiting for a row lock.
pub fn run(
    change: &Change,
    table: &Table,
    visit: &Visit,
    task: Task,
    destinations: &mut Destinations,
) -> Result<Outcome, Error> {
    let plan = plans::of_change(change, table)?;
    // No change can begin while we hold a lock on the table.
    let others = catalog::of_table(table.oid())?
        .iter()
        .filter(|other| other.id != change.id)
        .map(|other| plans::of_change(other, table))
        .collect::<Result<Vec<_>, _>>()?;
    let others: Vec<&Binding> = others.iter().map(|plan| &plan.binding).collect();
    let binding = &plan.binding;
    let start = Instant::now();
    let mut outcome = Outcome::default();
    // It has locked rows. If it must wait for somebody, such as for the fate of a row with the same key, then so short that it
    // gives way before anybody who waits for it looks for a deadlock.
    let patience = guc::milliseconds(guc::lock_timeout().min(deadlock_timeout() / 2));
    as_owner(table.owner(), |gate| {
        with_settings(&[(c"lock_timeout", patience.as_c_str())], || {
            with_latest_snapshot(|| match task {
                Task::SplitFiringTriggers => touch(gate, binding, &others, table, visit.blocks.clone(), &mut outcome),
                _ => write(gate, binding, &others, table, visit, task, destinations, &mut outcome),
            })
        })
    })?;
    outcome.work.time = start.elapsed();
    outcome.work.blocks = visit.blocks.len() as u32;
    Ok(outcome)
}

/// The new columns of changes.
fn targets<'b>(bindings: impl IntoIterator<Item = &'b Binding>) -> Vec<i16> {
    bindings.into_iter().flat_map(|binding| binding.targets.iter().map(|target| target.number)).collect()
}

/// Writes rows without their triggers, and so does for other changes of the table what their sync triggers would do: a
/// row that moves must not stay pending, or their backfills could miss it.
#[allow(clippy::too_many_arguments)]
fn write(
    gate: &Gate,
    binding: &Binding,
    others: &[&Binding],
    table: &Table,
    visit: &Visit,
    task: Task,
    destinations: &mut Destinations,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let mut columns = match task {
        Task::NewWins => vec![binding.source.number],
        _ => targets([binding]),
    };
    columns.extend(targets(others.iter().copied()));
    let overhead = MOST_OVERHEAD * columns.len();
    let mut writer = Writer::new(gate, table, columns, destinations);
    let mut room: Option<Room> = None;
    let scanned = rows(table, visit.blocks.clone(), |row| {
        outcome.work.seen += 1;
        let block = row.tid().block;
        let room = match &mut room {
            Some(room) if room.block == block => room,
            room => {
                room.take().inspect(|before| before.publish(table, visit));
                room.insert(Room::on_page_of(row))
            }
        };
        // What is left for later, or need not be looked at, is told at little cost.
        let (last, size) = (block < visit.done, row.size());
        if !last && !room.allows(size) || task == Task::Split && !binding.lacks_targets(row) {
            return Ok(());
        }
        let source = binding.source_of(row);
        let need = size + binding.source.column_type.text_length(source) + overhead;
        if !last && !room.allows(need) {
            return Ok(());
        }
        let targets = &binding.targets_of(row);
        if let Some(mut values) = values(binding, task, source, targets) {
            for other in others {
                let (source, targets) = (other.source_of(row), other.targets_of(row));
                values.extend(self::values(other, Task::Split, source, &targets).unwrap_or(targets));
            }
            match writer.write(gate, row, &values) {
                Written::Done => {
                    outcome.work.written += 1;
                    room.written(size, need);
                }
                // Whoever changed the row did so under the sync trigger, or as we do.
                Written::Gone => {}
                Written::Locked if last => outcome.skip(row.tid()),
                Written::Locked => {}
            }
        }
        Ok::<_, Error>(())
    });
    writer.finish(gate);
    scanned?;
    room.inspect(|last| last.publish(table, visit));
    if visit.done > visit.blocks.start {
        table.publish_free_space(visit.blocks.start..visit.done);
    }
    Ok(())
}

/// What a value can take beside its bytes: a length word and alignment.
const MOST_OVERHEAD: usize = 8;

/// Whether rows of one page should be split on this visit. A new version that fits on the page needs no new index entries
/// and leaves the table as small as it was. To make room, a few rows of a full page are moved to others at a time: so few
/// that indexes can drop their old entries before they need another page.
struct Room {
    block: u32,
    /// What new versions can still take; no limit where pages are unknown.
    free: usize,
    /// How many rows may still be moved to another page on this visit.
    moves: usize,
    /// What the old versions leave for the next visit.
    freed: usize,
}

impl Room {
    /// Of a page's rows, one in so many is moved on each visit.
    const ROWS_PER_MOVE: usize = 10;
    /// With so much space to be free on the next visit, no more rows need to be moved.
    const ENOUGH: usize = PAGE_SIZE / 7;

    fn on_page_of(row: &Row<'_>) -> Room {
        let block = row.tid().block;
        match row.page() {
            Some(page) => Room { block, free: page.free, moves: page.rows.div_ceil(Self::ROWS_PER_MOVE), freed: 0 },
            None => Room { block, free: usize::MAX, moves: 0, freed: 0 },
        }
    }

    fn allows(&self, need: usize) -> bool {
        self.free >= need || (self.moves > 0 && self.free.saturating_add(self.freed) < Self::ENOUGH)
    }

    /// Notes that a row of this size got a version that takes so much.
    fn written(&mut self, size: usize, need: usize) {
        self.freed += size;
        match self.free.checked_sub(need) {
            Some(left) => self.free = left,
            None => self.moves = self.moves.saturating_sub(1),
        }
    }

    /// Tells writers of the space on a page that is done, so that rows which are moved fill it.
    fn publish(&self, table: &Table, visit: &Visit) {
        if self.block < visit.done && self.free < PAGE_SIZE {
            table.record_free_space(self.block, self.free);
        }
    }
}

impl Outcome {
    fn skip(&mut self, tid: Tid) {
        if self.skipped.last() != Some(&tid.block) {
            self.skipped.push(tid.block);
        }
    }
}

/// What to write into a row, if anything.
fn values(binding: &Binding, task: Task, source: Value, targets: &[Value]) -> Option<Values> {
    match task {
        Task::Split | Task::SplitFiringTriggers => {
            let mut facts = binding.facts(source, targets);
            is_pending(&mut facts).then(|| facts.into_split())
        }
        Task::OldWins if binding.state(source, targets) == RowState::Diverged => {
            Some(binding.facts(source, targets).into_split())
        }
        Task::NewWins if binding.state(source, targets) == RowState::Diverged => {
            binding.join_if_possible(targets).map(|source| smallvec![source])
        }
        Task::OldWins | Task::NewWins => None,
    }
}

/// Updates pending rows in a way that changes nothing by itself: the sync trigger splits what it finds pending.
fn touch(
    gate: &Gate,
    binding: &Binding,
    others: &[&Binding],
    table: &Table,
    blocks: Range<u32>,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let mut pending = Vec::new();
    sides(binding, table, blocks, |row, source, targets| {
        outcome.work.seen += 1;
        if is_pending(&mut binding.facts(source, targets)) {
            pending.push(row.tid());
        }
        Ok::<_, Error>(())
    })?;
    let (name, column) = (table.name(), quote(binding.rule.source.current_name()));
    let this = format!("{name} where ctid operator(pg_catalog.=) $1");
    let lock = table.update_lock(&targets([binding].into_iter().chain(others.iter().copied()))).as_sql();
    let lock = format!("select ctid from only {this} for {lock} skip locked");
    let update = format!("update only {name} set {column} = {column} where ctid operator(pg_catalog.=) $1 returning 1");
    check_at_once();
    for tid in pending {
        let arguments = || std::iter::once([tid.into()]);
        let (mut locked, mut written) = (false, 0);
        gate.for_each(&lock, [PgBuiltInOids::TIDOID], arguments(), |_| {
            locked = true;
            Ok(())
        })?;
        if locked {
            gate.for_each(&update, [PgBuiltInOids::TIDOID], arguments(), |_| {
                written += 1;
                Ok(())
            })?;
            outcome.work.written += written;
        } else {
            outcome.skip(tid);
        }
    }
    Ok(())
}
