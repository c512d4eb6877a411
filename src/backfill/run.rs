//! A whole backfill, batch by batch, from the session that calls it.

use std::time::{Duration, Instant};

use pgrx::pg_sys;
use serde_json::json;

use super::batch::{self, Task};
use super::plan::{
    BatchSizer, Rate, RateLimit, Visit, Window, format_count, format_duration, format_rows, lanes, lanes_from,
};
use crate::catalog::{self, Batch, Change, Remaining};
use crate::error::Error;
use crate::guc;
use crate::pg::lock::{self, LockMode};
use crate::pg::procedure::Procedure;
use crate::pg::security::with_settings;
use crate::pg::subxact::catch;
use crate::pg::table::Table;
use crate::phase::Phase;
use crate::verify::{self, Counts};

/// What one step of a backfill did.
enum Step {
    /// A batch of so many rows.
    Batch { rows: u64 },
    /// Nothing: other sessions have all lanes that are left.
    Busy,
    /// All lanes are done and nothing is skipped.
    Done,
    /// What was skipped is still locked.
    Locked,
}

/// Runs a backfill until every row is split, and moves the change to `expanded` if it is.
pub fn backfill(procedure: &Procedure, name: &str, fire_triggers: bool) -> Result<(), Error> {
    let change = procedure.transaction(|| begin(name, false))?;
    let task = if fire_triggers { Task::SplitFiringTriggers } else { Task::Split };
    let mut run = Run::new(change, task);
    match run.until_verified(procedure) {
        Err(error) => match procedure.transaction(|| catalog::find(name)) {
            // Whatever came in the way, the change was given up meanwhile.
            Err(Error::Final { phase, .. }) => {
                pgrx::info!("{name}: stopped, the change is {}", phase.as_str());
                Ok(())
            }
            _ => Err(error),
        },
        done => done,
    }
}

/// Sees to it that every table has lanes, and begins them again if `anew`, or if the change was expanded before: an
/// attached partition may have brought rows that were never split.
fn begin(name: &str, anew: bool) -> Result<Change, Error> {
    let change = catalog::lock(name)?;
    let anew = anew || change.phase != Phase::Expanding;
    let tables = verify::tables(change.relation);
    let known = catalog::lanes(change.id)?;
    for lane in known.iter().filter(|lane| !tables.contains(&lane.relation)) {
        catalog::drop_lanes(change.id, lane.relation)?;
    }
    for relation in tables {
        let Some(table) = Table::open(relation, LockMode::AccessShare) else { continue };
        let (file, blocks) = (table.file(), table.blocks());
        let end =
            known.iter().filter(|lane| lane.relation == relation && lane.file == file).map(|lane| lane.end_block).max();
        match end {
            None => catalog::create_lanes(change.id, relation, file, &lanes(blocks))?,
            Some(end) if anew => catalog::add_lanes(change.id, relation, file, &lanes_from(end, blocks))?,
            Some(_) => {}
        }
    }
    if anew {
        catalog::restart_lanes(change.id)?;
    } else {
        let resumed = known.iter().any(|lane| lane.next_block > 0);
        let event = if resumed { "backfill_resumed" } else { "backfill_started" };
        catalog::record(change.id, name, event, json!({}))?;
    }
    Ok(change)
}

struct Run {
    change: Change,
    task: Task,
    sizer: BatchSizer,
    start: Instant,
    rows: u64,
    /// What counts for the limit of rows per second.
    limited_rows: u64,
    limited_since: Instant,
    rows_per_block: f64,
    rate: Rate,
    last_report: Instant,
    /// The lane that this session works on, and where in it. Lanes are kept, but another session may come in between.
    window: Option<(pg_sys::Oid, i32, Window)>,
    /// Where the sweep of skipped blocks is.
    swept: Option<(pg_sys::Oid, u32)>,
    waiting: bool,
}

impl Run {
    fn new(change: Change, task: Task) -> Run {
        let now = Instant::now();
        Run {
            sizer: BatchSizer::new(change.batch_target),
            change,
            task,
            start: now,
            rows: 0,
            limited_rows: 0,
            limited_since: now,
            // A guess for the first batch.
            rows_per_block: 100.0,
            rate: Rate::new(Duration::from_secs(10)),
            last_report: now,
            window: None,
            swept: None,
            waiting: false,
        }
    }

    /// Splits rows until a look at all of them finds nothing left, or nothing that could be done about it.
    fn until_verified(&mut self, procedure: &Procedure) -> Result<(), Error> {
        for pass in 1.. {
            let before = self.rows;
            self.split_rows(procedure)?;
            let counts = count(procedure, &self.change)?;
            // Sessions that write without the trigger, or a partition that was attached, can leave rows behind the lanes.
            let again = counts.pending > 0 && (pass == 1 || self.rows > before);
            if !again {
                return self.finish(procedure, &counts);
            }
            procedure.transaction(|| begin(&self.change.name, true).map(drop))?;
        }
        Ok(())
    }

    /// Goes on until no row is left.
    fn split_rows(&mut self, procedure: &Procedure) -> Result<(), Error> {
        let mut failures = 0_u32;
        loop {
            lock::check_for_interrupts();
            let limit = RateLimit { max_rows_per_second: self.change.max_rows_per_second };
            let pause = limit.wait(self.limited_rows, self.limited_since.elapsed());
            if !pause.is_zero() {
                self.report(procedure)?;
                lock::sleep(pause);
                self.follow_limit(procedure)?;
                continue;
            }
            // Losing the last few batches in a crash costs nothing but their repetition.
            let step = procedure
                .transaction(|| Ok(catch(|| with_settings(&[(c"synchronous_commit", c"off")], || self.step()))))?;
            let pause = match step {
                Ok(step) => {
                    failures = 0;
                    match step? {
                        Step::Batch { rows } => {
                            self.rows += rows;
                            self.limited_rows += rows;
                            Duration::ZERO
                        }
                        Step::Busy => self.wait(procedure, "lanes that other sessions work on")?,
                        Step::Locked => self.wait(procedure, "row locks of other sessions")?,
                        Step::Done => return Ok(()),
                    }
                }
                Err(error) => {
                    let message = error.message();
                    procedure.transaction(|| catalog::set_error(self.change.id, &message))?;
                    if !error.is_transient() {
                        let detail = json!({ "error": message });
                        procedure
                            .transaction(|| catalog::record(self.change.id, &self.change.name, "error", detail))?;
                        return Err(Error::Caught(error));
                    }
                    failures += 1;
                    Duration::from_millis(50 * u64::from(failures)).min(Duration::from_secs(2))
                }
            };
            if pause.is_zero() && self.waiting {
                self.waiting = false;
                procedure.transaction(|| catalog::set_waiting(self.change.id, None))?;
            }
            self.report(procedure)?;
            lock::sleep(pause);
        }
    }

    /// Learns of another limit, which begins to count anew.
    fn follow_limit(&mut self, procedure: &Procedure) -> Result<(), Error> {
        if let Ok(change) = procedure.transaction(|| catalog::find(&self.change.name))
            && change.max_rows_per_second != self.change.max_rows_per_second
        {
            self.change = change;
            self.begin_limit();
        }
        Ok(())
    }

    fn begin_limit(&mut self) {
        (self.limited_rows, self.limited_since) = (0, Instant::now());
    }

    /// How many blocks the next batch has: as long as its work may take, and no more than a second's worth of rows.
    fn batch_blocks(&self) -> u32 {
        let blocks = self.sizer.blocks();
        match self.change.max_rows_per_second {
            0 => blocks,
            rows => blocks.min((f64::from(rows) / self.rows_per_block.max(1.0)) as u32).max(1),
        }
    }

    fn wait(&mut self, procedure: &Procedure, reason: &str) -> Result<Duration, Error> {
        if !self.waiting {
            self.waiting = true;
            // The time of a wait is not made up for at full speed.
            self.begin_limit();
            procedure.transaction(|| catalog::set_waiting(self.change.id, Some(reason)))?;
        }
        Ok(Duration::from_millis(100))
    }

    /// One batch of a lane, or of the blocks that were skipped once all lanes are done.
    fn step(&mut self) -> Result<Step, Error> {
        // Read anew each time: alter_change, fence or rollback may have come in between.
        self.change = catalog::find(&self.change.name)?;
        let mine = self.window.map(|(relation, number, _)| (relation, number));
        if let Some(lane) = catalog::take_lane(self.change.id, mine)? {
            return self.lane_batch(&lane);
        }
        let remaining = catalog::remaining(self.change.id)?;
        if remaining.blocks_done < remaining.blocks_total {
            return Ok(Step::Busy);
        }
        match catalog::take_skipped(self.change.id, self.swept)? {
            Some((relation, block)) => self.sweep(relation, block),
            None if self.swept.take().is_some() && catalog::remaining(self.change.id)?.skipped > 0 => Ok(Step::Locked),
            None if remaining.skipped > 0 => Ok(Step::Busy),
            None => Ok(Step::Done),
        }
    }

    fn lane_batch(&mut self, lane: &catalog::Lane) -> Result<Step, Error> {
        let id = self.change.id;
        let Some(table) = open(lane.relation)? else {
            catalog::drop_lanes(id, lane.relation)?;
            return Ok(Step::Batch { rows: 0 });
        };
        if table.file() != lane.file {
            // VACUUM FULL or CLUSTER has moved the rows. Those that were split are skipped quickly.
            catalog::create_lanes(id, lane.relation, table.file(), &lanes(table.blocks()))?;
            return Ok(Step::Batch { rows: 0 });
        }
        let window = match self.window.take() {
            Some((relation, number, window)) if (relation, number) == (lane.relation, lane.number) => Some(window),
            _ => None,
        };
        let window = window.filter(|window| window.next == lane.next_block).unwrap_or(Window::at(lane.next_block));
        let visit = window.visit(self.batch_blocks(), self.task.visits(), lane.end_block);
        let outcome = batch::run(&self.change, &table, &visit, self.task)?;
        // What the batch has moved the window on by, at either end.
        let blocks = (visit.done - window.next).max(visit.blocks.end - window.front);
        self.sizer.record(outcome.work, blocks);
        if outcome.rows > 0 {
            self.rows_per_block = outcome.rows as f64 / f64::from(blocks.max(1));
        }
        if !outcome.skipped.is_empty() {
            catalog::skip(lane, &outcome.skipped)?;
        }
        let batch = Batch { next_block: visit.done, rows: outcome.rows, blocks, work: outcome.work };
        catalog::advance_lane(lane, batch)?;
        self.window = Some((lane.relation, lane.number, Window::after(&visit)));
        Ok(Step::Batch { rows: outcome.rows })
    }

    fn sweep(&mut self, relation: pg_sys::Oid, block: u32) -> Result<Step, Error> {
        let id = self.change.id;
        self.swept = Some((relation, block));
        let Some(table) = open(relation)? else {
            catalog::drop_lanes(id, relation)?;
            return Ok(Step::Batch { rows: 0 });
        };
        if catalog::lanes(id)?.iter().any(|lane| lane.relation == relation && lane.file != table.file()) {
            catalog::create_lanes(id, relation, table.file(), &lanes(table.blocks()))?;
            return Ok(Step::Batch { rows: 0 });
        }
        let outcome = batch::run(&self.change, &table, &Visit::only(block..block + 1), self.task)?;
        if outcome.skipped.is_empty() {
            catalog::swept(id, relation, block)?;
        }
        catalog::count_rows(id, relation, outcome.rows)?;
        Ok(Step::Batch { rows: outcome.rows })
    }

    /// Prints a line if the last one is a second old.
    fn report(&mut self, procedure: &Procedure) -> Result<(), Error> {
        const INTERVAL: Duration = Duration::from_secs(1);
        if self.last_report.elapsed() < INTERVAL {
            return Ok(());
        }
        self.last_report = Instant::now();
        let remaining = procedure.transaction(|| catalog::remaining(self.change.id))?;
        self.rate.record(self.start.elapsed(), self.rows, remaining.blocks_done);
        pgrx::info!("{}", self.line(&remaining));
        Ok(())
    }

    fn line(&self, remaining: &Remaining) -> String {
        let blocks_left = remaining.blocks_total.saturating_sub(remaining.blocks_done);
        let percent = 100.0 * remaining.blocks_done as f64 / remaining.blocks_total.max(1) as f64;
        let seconds = self.start.elapsed().as_secs_f64();
        let speed = self.rate.rows_per_second().unwrap_or(self.rows as f64 / seconds.max(0.001));
        let mut line = format!(
            "{}: {percent:.1} %, {} rows, {} rows/s",
            self.change.name,
            format_count(remaining.rows),
            format_count(speed as u64)
        );
        if let Some(eta) = self.rate.eta(blocks_left).filter(|_| blocks_left > 0) {
            line.push_str(&format!(", {} left", format_duration(eta)));
        }
        if remaining.skipped > 0 {
            line.push_str(&format!(", {} blocks with locked rows to come back to", format_count(remaining.skipped)));
        }
        line
    }

    /// Moves the change to `expanded`, or says what stands in the way.
    fn finish(&self, procedure: &Procedure, counts: &Counts) -> Result<(), Error> {
        let seconds = self.start.elapsed().as_secs_f64();
        let name = &self.change.name;
        if counts.pending > 0 || counts.diverged > 0 {
            pgrx::warning!(
                "{}: the change stays {}: {} rows are pending and {} diverged; see zdd.mismatches",
                name,
                self.change.phase.as_str(),
                format_count(counts.pending.unsigned_abs()),
                format_count(counts.diverged.unsigned_abs()),
            );
            return Ok(());
        }
        let phase = procedure.transaction(|| {
            let change = catalog::lock(name)?;
            if change.phase != Phase::Expanding {
                return Ok(change.phase);
            }
            let rows = catalog::remaining(change.id)?.rows;
            let detail = json!({
                "rows": counts.rows, "rows_split": rows, "unmatched": counts.unmatched, "lossy": counts.lossy,
            });
            catalog::set_phase(&change, Phase::Expanded, detail)?;
            Ok(Phase::Expanded)
        })?;
        pgrx::info!(
            "{name}: {}; {} split in {} ({} rows/s), {} verified, {} unmatched, {} lossy",
            phase.as_str(),
            format_rows(self.rows),
            format!("{seconds:.1}s"),
            format_count((self.rows as f64 / seconds.max(0.001)) as u64),
            format_rows(counts.rows.unsigned_abs()),
            format_count(counts.unmatched.unsigned_abs()),
            format_count(counts.lossy.unsigned_abs()),
        );
        Ok(())
    }
}

/// Opens a table for a batch, without waiting long behind DDL.
fn open(relation: pg_sys::Oid) -> Result<Option<Table>, Error> {
    let timeout = std::ffi::CString::new(format!("{}ms", guc::lock_timeout().as_millis().max(1)))
        .map_err(|_| Error::Spi("invalid timeout".into()))?;
    Ok(with_settings(&[(c"lock_timeout", timeout.as_c_str())], || Table::open(relation, LockMode::RowExclusive)))
}

/// Counts all rows, piece by piece, each as it is when it is looked at. That is enough: a row that is in sync stays so.
pub fn count(procedure: &Procedure, change: &Change) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for (relation, blocks) in sizes(procedure, change)? {
        for piece in verify::pieces(blocks) {
            procedure.transaction(|| verify::count_piece(change, relation, piece.clone(), &mut counts))?;
        }
    }
    Ok(counts)
}

fn sizes(procedure: &Procedure, change: &Change) -> Result<Vec<(pg_sys::Oid, u32)>, Error> {
    procedure.transaction(|| {
        Ok(verify::tables(change.relation)
            .into_iter()
            .filter_map(|oid| Some((oid, Table::open(oid, LockMode::AccessShare)?.blocks())))
            .collect())
    })
}

/// Settles all diverged rows by one side.
pub fn repair(procedure: &Procedure, change: &Change, task: Task) -> Result<(), Error> {
    procedure.transaction(|| check_repair(change, task))?;
    let (mut repaired, mut sizer) = (0, BatchSizer::new(change.batch_target));
    for (relation, blocks) in sizes(procedure, change)? {
        let mut next = 0;
        while next < blocks {
            let end = next.saturating_add(sizer.blocks()).min(blocks);
            let outcome = procedure.transaction(|| {
                let Some(table) = open(relation)? else { return Ok(batch::Outcome::default()) };
                batch::run(change, &table, &Visit::only(next..end), task)
            })?;
            repaired += outcome.rows;
            if outcome.skipped.is_empty() {
                sizer.record(outcome.work, end - next);
                next = end;
            } else {
                // What was written is settled; the rest is tried again.
                lock::sleep(Duration::from_millis(100));
            }
        }
    }
    let counts = count(procedure, change)?;
    procedure.transaction(|| {
        let detail = json!({ "rows": repaired, "winner": if task == Task::NewWins { "new" } else { "old" } });
        catalog::record(change.id, &change.name, "repaired", detail)
    })?;
    pgrx::info!(
        "{}: {} repaired, {} still diverged",
        change.name,
        format_rows(repaired),
        format_count(counts.diverged.unsigned_abs())
    );
    Ok(())
}

/// Rows are repaired without firing triggers, and so without checking foreign keys.
fn check_repair(change: &Change, task: Task) -> Result<(), Error> {
    let source = change.rule.source.current_name();
    for relation in lock::tree(change.relation) {
        if task == Task::NewWins
            && let Some(constraint) = crate::ddl::foreign_key(relation, source)?
        {
            return Err(Error::ForeignKey { change: change.name.clone(), column: source.to_owned(), constraint });
        }
    }
    Ok(())
}
