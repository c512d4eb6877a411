//! One batch: the rows in a range of blocks that need work.

use std::ops::Range;
use std::time::{Duration, Instant};

use smallvec::smallvec;

use pgrx::spi::{Spi, quote_identifier as quote};

use crate::binding::Binding;
use crate::catalog::{self, Change};
use crate::ddl::as_owner;
use crate::error::Error;
use crate::pg::procedure::with_latest_snapshot;
use crate::pg::table::{Row, Table, Tid, Writer, Written};
use crate::pg::value::{Value, Values};
use crate::plans;
use crate::rule::state::{RowState, is_pending};
use crate::verify::rows;

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

/// What a batch did.
#[derive(Debug, Default)]
pub struct Outcome {
    pub rows: u64,
    /// Blocks with rows that somebody else had locked.
    pub skipped: Vec<u32>,
    /// The time that the work took, without waits for locks on the table.
    pub work: Duration,
}

/// Does a task on the rows in a range of blocks, as the table's owner, without ever waiting for a row lock.
pub fn run(change: &Change, table: &Table, blocks: Range<u32>, task: Task) -> Result<Outcome, Error> {
    let plan = plans::of_rule(&change.rule, table)?;
    // No change can begin while we hold a lock on the table.
    let others = catalog::of_table(table.oid())?
        .iter()
        .filter(|other| other.id != change.id)
        .map(|other| plans::of_rule(&other.rule, table))
        .collect::<Result<Vec<_>, _>>()?;
    let others: Vec<&Binding> = others.iter().map(|plan| &plan.binding).collect();
    let binding = &plan.binding;
    let start = Instant::now();
    let mut outcome = Outcome::default();
    as_owner(table.owner(), || {
        with_latest_snapshot(|| match task {
            Task::SplitFiringTriggers => touch(binding, table, blocks, &mut outcome),
            _ => write(binding, &others, table, blocks, task, &mut outcome),
        })
    })?;
    outcome.work = start.elapsed();
    Ok(outcome)
}

/// Writes rows without their triggers, and so does for other changes of the table what their sync triggers would do: a
/// row that moves must not stay pending, or their backfills could miss it.
fn write(
    binding: &Binding,
    others: &[&Binding],
    table: &Table,
    blocks: Range<u32>,
    task: Task,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let targets = |binding: &Binding| binding.targets.iter().map(|target| target.number).collect::<Vec<_>>();
    let mut columns = match task {
        Task::NewWins => vec![binding.source.number],
        _ => targets(binding),
    };
    columns.extend(others.iter().copied().flat_map(targets));
    let mut writer = Writer::new(table, columns);
    rows(binding, table, blocks, |row, source, targets| {
        if let Some(mut values) = values(binding, task, source, targets) {
            for other in others {
                let (source, targets) = (other.source_of(row), other.targets_of(row));
                values.extend(self::values(other, Task::Split, source, &targets).unwrap_or(targets));
            }
            outcome.count(row, writer.write(row, &values));
        }
        Ok(())
    })
}

impl Outcome {
    fn count(&mut self, row: &Row<'_>, written: Written) {
        match written {
            Written::Done => self.rows += 1,
            // Whoever changed the row did so under the sync trigger, or as we do.
            Written::Gone => {}
            Written::Locked => self.skip(row.tid()),
        }
    }

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
fn touch(binding: &Binding, table: &Table, blocks: Range<u32>, outcome: &mut Outcome) -> Result<(), Error> {
    let mut pending = Vec::new();
    rows(binding, table, blocks, |row, source, targets| {
        if is_pending(&mut binding.facts(source, targets)) {
            pending.push(row.tid());
        }
        Ok::<_, Error>(())
    })?;
    let (name, column) = (table.name(), quote(binding.rule.source.current_name()));
    let this = format!("{name} where ctid operator(pg_catalog.=) $1::text::tid");
    Spi::connect_mut(|client| {
        let types = [pgrx::pg_sys::PgBuiltInOids::TEXTOID.oid()];
        let lock =
            client.prepare_mut(format!("select 1 from only {this} for no key update skip locked").as_str(), &types)?;
        let update = client.prepare_mut(
            format!("update only {name} set {column} = {column} where ctid operator(pg_catalog.=) $1::text::tid")
                .as_str(),
            &types,
        )?;
        for tid in pending {
            if client.update(&lock, None, &[tid.to_string().into()])?.is_empty() {
                outcome.skip(tid);
            } else {
                outcome.rows += client.update(&update, None, &[tid.to_string().into()])?.len() as u64;
            }
        }
        Ok::<_, pgrx::spi::SpiError>(())
    })?;
    Ok(())
}
