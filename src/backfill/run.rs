//! A whole backfill, batch by batch: in the session that calls it, or in background workers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use serde_json::json;

use super::batch::{self, Task};
use super::plan::{
    BatchSizer, Rate, RateLimit, Visit, Window, format_count, format_duration, format_rows, lanes, lanes_from,
    most_blocks,
};
use super::throttle::Courtesy;
use super::{index, signals};
use crate::catalog::{self, Batch, Change, Claim, Job, JobKind, JobOptions, Remaining, Right, Slot};
use crate::ddl;
use crate::error::Error;
use crate::guc;
use crate::patience::{across_transactions, with_patience};
use crate::pg::inheritance::ancestors;
use crate::pg::lock::{self, LockMode, SessionLock};
use crate::pg::page::Destinations;
use crate::pg::session::{Session, wal_bytes, with_latest_snapshot};
use crate::pg::settings::with_settings;
use crate::pg::subxact::catch;
use crate::pg::table::Table;
use crate::pg::worker;
use crate::phase::Phase;
use crate::verify::{self, Counts};
use crate::worker::{launch_helper, launch_missing, show, show_long_work};

/// What one step of a backfill did.
enum Step {
    /// A batch of so many rows, which kept so many sessions waiting, and the time that its work took.
    Batch { rows: u64, blocked: u64, work: Duration },
    /// Nothing: the rows of a block that was skipped are still locked.
    Passed,
    /// Nothing: others have all lanes that are left.
    Busy,
    /// All lanes are done and nothing is skipped.
    Done,
    /// What was skipped is still locked.
    Locked,
    /// The blocks of a table are not what its lanes say.
    Moved { relation: pg_sys::Oid },
    /// Nobody is to go on.
    Stopped,
    /// There are enough others.
    Surplus,
}

/// How a backfill ended for one of those who worked on it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It went as far as it can.
    Finished,
    /// Somebody else finishes it.
    LeftToOthers,
    /// It was paused or given up.
    Stopped,
}

/// Writes down that a backfill is to be done by so many background workers, or by this session when there are none.
pub fn request(right: &Right, workers: u32, fire_triggers: bool) -> Result<Change, Error> {
    let requested = with_patience(guc::lock_patience(), || request_once(right, workers, fire_triggers), || Ok(()))?;
    requested.map_err(|gave_up| ddl::lock_timeout(right.relation, gave_up).unwrap_or_else(|error| error))
}

fn request_once(right: &Right, workers: u32, fire_triggers: bool) -> Result<Change, Error> {
    let change = right.lock()?;
    if let Some(Job { kind: JobKind::Backfill, stopped: Some(stopped), .. }) = &change.job
        && !stopped.by_error
    {
        return Err(Error::Paused { change: change.name, role: stopped.role.clone() });
    }
    if change.is_contracting()? {
        return Err(Error::ContractRunning { change: change.name });
    }
    let resumed = prepare(&change, change.phase != Phase::Expanding)?;
    let event = if resumed { "backfill_resumed" } else { "backfill_started" };
    let options = JobOptions { fire_triggers, ..JobOptions::default() };
    match &change.job {
        // Sessions join in.
        Some(Job { workers: 1.., stopped: None, .. }) if workers == 0 => {
            catalog::record(change.id, &change.name, event, json!({ "workers": workers }))?;
        }
        _ => drop(catalog::set_job(&change, JobKind::Backfill, workers, options, event)?),
    }
    right.find()
}

/// Sees to it that every table has lanes, and begins them again if `anew`: an attached partition may have brought rows
/// that were never split. Returns whether something had been done before.
fn prepare(change: &Change, anew: bool) -> Result<bool, Error> {
    // The change is locked, which somebody may want who has locked the table.
    let timeout = guc::milliseconds(guc::lock_timeout());
    with_settings(&[(c"lock_timeout", timeout.as_c_str())], || make_lanes(change, anew))
}

fn make_lanes(change: &Change, anew: bool) -> Result<bool, Error> {
    let tables = verify::tables(change.relation);
    let known = catalog::lanes(change.id)?;
    for lane in known.iter().filter(|lane| !tables.contains(&lane.relation)) {
        catalog::drop_lanes(change.id, lane.relation)?;
    }
    for relation in tables {
        let Some(table) = Table::look_at(relation) else { continue };
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
    }
    Ok(!anew && known.iter().any(|lane| lane.next_block > 0))
}

/// Runs a backfill in the session that calls it, until every row is split, and moves the change to `expanded` if it is.
pub fn backfill(session: &Session, right: Right, fire_triggers: bool) -> Result<(), Error> {
    let change = session.transaction(|| request(&right, 0, fire_triggers))?;
    let (id, name) = (right.id, right.name.clone());
    let claim = Claim::new(right.clone(), &change, "backfill");
    let mut run = Run::new(session, claim, catalog::take_slot(id, None), change);
    let ended = run.complete();
    match (session.transaction(|| right.find()), ended) {
        // Whatever came in the way, the change was given up meanwhile.
        (Err(Error::Final { phase, .. }), _) => {
            pgrx::info!("{name}: stopped, the change is {}", phase.as_str());
            Ok(())
        }
        (_, Err(error)) => {
            session.transaction(|| catalog::record_error(id, &name, &error))?;
            Err(error)
        }
        (Ok(Change { job: Some(Job { stopped: Some(stopped), .. }), .. }), Ok(End::Stopped)) => {
            if stopped.by_error {
                return Err(stopped.error(&name));
            }
            pgrx::info!("{name}: paused by {}; zdd.resume goes on", stopped.role);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Works on a backfill in a background worker that has a place.
pub fn work(session: &Session, claim: Claim, slot: Slot, change: Change) -> Result<(), Error> {
    Run::new(session, claim, Some(slot), change).complete().map(drop)
}

/// Builds the indexes that a session's backfill waits for.
pub fn build_indexes(session: &Session, claim: Claim, slot: Slot, change: &Change) -> Result<(), Error> {
    Run::new(session, claim, Some(slot), change.clone()).build_indexes()
}

struct Run<'s> {
    session: &'s Session,
    claim: Claim,
    slot: Option<Slot>,
    change: Change,
    sizer: BatchSizer,
    courtesy: Courtesy,
    start: Instant,
    rows: u64,
    /// What counts for the limit of rows per second.
    limited_rows: u64,
    limited_since: Instant,
    /// With how many, itself included, it shares that limit.
    sharers: u32,
    rows_per_block: f64,
    rate: Rate,
    last_report: Instant,
    /// How often it waited for others since its last batch.
    naps: u32,
    /// When the signals were looked at last.
    last_look: Option<Instant>,
    /// The lanes that are worked on in turn, and where in them; the next one first. While it is the other one's turn, the
    /// last visit's old row versions become invisible to all, also to transactions that were under way then.
    windows: VecDeque<(pg_sys::Oid, i32, Window)>,
    destinations: Destinations,
    /// Where the sweep of skipped blocks is.
    swept: Option<(pg_sys::Oid, u32)>,
    /// What is being done, and what it waits for, as it was said last.
    doing: String,
    waiting: Option<String>,
}

impl<'s> Run<'s> {
    fn new(session: &'s Session, claim: Claim, slot: Option<Slot>, change: Change) -> Run<'s> {
        let now = Instant::now();
        let courtesy = Courtesy::new(batch_target(&change));
        let sharers = change.job.as_ref().map_or(1, |job| job.workers.max(1));
        Run {
            session,
            claim,
            slot,
            sizer: BatchSizer::new(courtesy.target()),
            courtesy,
            change,
            start: now,
            rows: 0,
            limited_rows: 0,
            limited_since: now,
            sharers,
            // A guess for the first batch.
            rows_per_block: 100.0,
            rate: Rate::new(Duration::from_secs(10)),
            last_report: now,
            naps: 0,
            last_look: None,
            windows: VecDeque::new(),
            destinations: Destinations::default(),
            swept: None,
            doing: String::new(),
            waiting: None,
        }
    }

    /// Goes as far as it can, however often that takes another try.
    fn complete(&mut self) -> Result<End, Error> {
        let mut failures = 0;
        loop {
            match self.attempt() {
                Err(error) => {
                    failures += 1;
                    self.back_off(error, failures)?;
                }
                end => return end,
            }
        }
    }

    /// Splits rows until a look at all of them finds nothing left, or nothing that could be done about it.
    fn attempt(&mut self) -> Result<End, Error> {
        let name = self.change.name.clone();
        let mut pass = 0;
        loop {
            pass += 1;
            let before = self.rows;
            self.doing("splits rows", None)?;
            match self.split_rows()? {
                End::Finished => {}
                end => return Ok(end),
            }
            if self.session.is_worker() && !self.vacuum()? {
                return Ok(End::Stopped);
            }
            let begun = self.change.phase;
            let Some(_finisher) = self.become_finisher()? else { return Ok(End::LeftToOthers) };
            match self.session.transaction(|| self.claim.follow()) {
                Ok(change) if change.phase == begun && change.job.is_some() => self.change = change,
                // Somebody else was quicker.
                Ok(change) => {
                    self.tell(&format!("{name}: {}", change.phase.as_str()));
                    return Ok(End::Finished);
                }
                Err(Error::Final { .. }) => return Ok(End::Stopped),
                Err(error) => return Err(error),
            }
            self.doing("verifies", None)?;
            let mut since = Instant::now();
            let claim = self.claim.clone();
            let counts = count_while(self.session, &claim, || {
                self.leave_time(since.elapsed());
                since = Instant::now();
                Ok(())
            });
            // Sessions that write without the trigger, or a partition that was attached, can leave rows behind the lanes.
            let again = |counts: &Counts| counts.pending > 0 && (pass == 1 || self.rows > before);
            let ended = match counts {
                Ok(counts) if again(&counts) => Ok(None),
                Ok(counts) => self.finish(&counts, &claim).map(Some),
                Err(error) => Err(error),
            };
            match ended {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => drop(self.session.transaction(|| prepare(&self.claim.lock_anyway()?, true))?),
                // What was verified may be so no longer.
                Err(Error::ClaimMoved { .. }) => {}
                Err(error) => return Err(error),
            }
            if self.follow()? {
                return Ok(End::Stopped);
            }
        }
    }

    /// A worker leaves the rest to whoever is at it; a session waits for them, since its caller waits for the end.
    fn become_finisher(&mut self) -> Result<Option<SessionLock>, Error> {
        loop {
            let finisher = catalog::become_finisher(self.change.id);
            if finisher.is_some() || self.session.is_worker() {
                return Ok(finisher);
            }
            self.doing("waits", Some("the session that finishes the backfill"))?;
            lock::sleep(Duration::from_millis(100));
        }
    }

    /// Goes on until no row is left.
    fn split_rows(&mut self) -> Result<End, Error> {
        let mut failures = 0_u32;
        loop {
            lock::check_for_interrupts();
            if self.session.is_worker() {
                worker::follow_configuration();
            }
            self.report()?;
            if let Some((reason, pause)) = self.brake()? {
                self.wait(&reason)?;
                lock::sleep(pause);
                continue;
            }
            let session = self.session;
            let step = session.asynchronous_transaction(|| Ok(catch(|| self.step())))?;
            match step {
                Ok(step) => {
                    failures = 0;
                    if self.slot.as_ref().is_some_and(|slot| !slot.is_held()) {
                        return Err(Error::LocksGivenUp { change: self.change.name.clone() });
                    }
                    match step? {
                        Step::Batch { rows, blocked, work } => {
                            self.naps = 0;
                            self.rows += rows;
                            self.limited_rows += rows;
                            let pause = self.courtesy.record(blocked, work, batch_target(&self.change));
                            self.sizer.set_target(self.courtesy.target());
                            if !pause.is_zero() {
                                self.wait("sessions that its last batch kept waiting")?;
                                lock::sleep(pause);
                            } else {
                                self.go_on()?;
                            }
                        }
                        Step::Passed => {}
                        Step::Busy => self.nap("lanes that others work on")?,
                        Step::Locked => self.nap("row locks of other sessions")?,
                        Step::Done => return Ok(End::Finished),
                        Step::Moved { relation } => self.begin_lanes_again(relation)?,
                        Step::Stopped => return Ok(End::Stopped),
                        Step::Surplus => return Ok(End::LeftToOthers),
                    }
                }
                Err(error) => {
                    failures += 1;
                    self.back_off(Error::Caught(error), failures)?;
                }
            }
        }
    }

    /// Waits before another try, longer after each failure; not after an error that would come again.
    fn back_off(&mut self, error: Error, failures: u32) -> Result<(), Error> {
        if !error.is_transient() {
            return Err(error);
        }
        self.session.asynchronous_transaction(|| catalog::record_retry(self.change.id, &self.change.name, &error))?;
        self.wait("another try after an error")?;
        lock::sleep(Duration::from_millis(50 * u64::from(failures)).min(Duration::from_secs(2)));
        Ok(())
    }

    /// What to wait for before the next batch, and how long until the next look.
    fn brake(&mut self) -> Result<Option<(String, Duration)>, Error> {
        let mut pause = self.rate_pause();
        // Each batch reads the change. Before a long wait there may have come news.
        if pause > LOOK_INTERVAL {
            if self.follow()? || self.is_surplus() {
                return Ok(None);
            }
            pause = self.rate_pause();
        }
        if !pause.is_zero() {
            return Ok(Some((RATE_LIMIT.into(), pause)));
        }
        if self.last_look.is_some_and(|look| look.elapsed() < LOOK_INTERVAL) {
            return Ok(None);
        }
        let reason = self.session.transaction(|| {
            let signals = signals::read(&self.change);
            // What it says is for the table's owner alone.
            if let Err(error) = &signals.condition {
                catalog::set_error(self.change.id, &format!("run_if cannot be evaluated: {error}"), None)?;
            }
            Ok(signals.wait_for(&signals::limits()))
        })?;
        self.last_look = reason.is_none().then(Instant::now);
        match reason {
            // Whoever waits must hear of a pause, of other settings and of the end of the change.
            Some(reason) => Ok((!self.follow()? && !self.is_surplus()).then_some((reason, LOOK_INTERVAL))),
            None => Ok(None),
        }
    }

    /// Where there is a limit, others have most of the time while rows are only looked at, too.
    fn leave_time(&self, worked: Duration) {
        const OTHERS: u32 = 4;
        if self.change.max_rows_per_second > 0 {
            lock::sleep(worked * OTHERS);
        }
    }

    /// Its share of the limit of the change; 0 for no limit.
    fn max_rows_per_second(&self) -> u32 {
        self.change.max_rows_per_second.div_ceil(self.sharers)
    }

    fn rate_pause(&self) -> Duration {
        let limit = RateLimit { max_rows_per_second: self.max_rows_per_second() };
        limit.wait(self.limited_rows, self.limited_since.elapsed())
    }

    /// Learns of what was changed; another limit begins to count anew. Returns whether there is nothing more to wait for.
    fn follow(&mut self) -> Result<bool, Error> {
        match self.session.transaction(|| self.claim.follow()) {
            Ok(change) => {
                if change.max_rows_per_second != self.change.max_rows_per_second {
                    self.begin_limit();
                }
                self.change = change;
                Ok(self.change.is_stopped())
            }
            // The next step says why.
            Err(_) => Ok(true),
        }
    }

    /// Whether it has a place beyond those of the workers that are wanted, which may be fewer than they were.
    fn is_surplus(&self) -> bool {
        let workers = self.change.job.as_ref().map_or(0, |job| job.workers);
        self.session.is_worker() && workers > 0 && self.slot.as_ref().is_some_and(|slot| !slot.is_among(workers))
    }

    /// Takes a free place among those that are wanted, if there is one.
    fn move_up(&mut self) -> Result<Step, Error> {
        let workers = self.change.job.as_ref().map(|job| job.workers);
        let Some(slot) = catalog::take_slot(self.change.id, workers) else { return Ok(Step::Surplus) };
        catalog::set_doing(&slot, &self.doing, None)?;
        (self.slot, self.waiting) = (Some(slot), None);
        Ok(NOTHING)
    }

    fn task(&self) -> Task {
        match &self.change.job {
            Some(job) if job.options.fire_triggers => Task::SplitFiringTriggers,
            _ => Task::Split,
        }
    }

    fn begin_limit(&mut self) {
        (self.limited_rows, self.limited_since) = (0, Instant::now());
    }

    /// How many blocks the next batch has: as long as its work may take, and no more than a second's worth of rows.
    fn batch_blocks(&self) -> u32 {
        let blocks = self.sizer.blocks();
        match self.max_rows_per_second() {
            0 => blocks,
            rows => blocks.min((f64::from(rows) / self.rows_per_block.max(1.0)) as u32).max(1),
        }
    }

    /// Waits for others, the longer the more often it did without a batch in between.
    fn nap(&mut self, reason: &str) -> Result<(), Error> {
        self.wait(reason)?;
        lock::sleep(Duration::from_millis(10 << self.naps.min(4)));
        self.naps += 1;
        Ok(())
    }

    /// Says what is being waited for. The time of a wait is not made up for at full speed.
    fn wait(&mut self, reason: &str) -> Result<(), Error> {
        if reason != RATE_LIMIT {
            self.begin_limit();
        }
        if self.waiting.as_deref() == Some(reason) {
            return Ok(());
        }
        self.doing(&self.doing.clone(), Some(reason))
    }

    /// Says that nothing is being waited for any longer. With a limit there is a wait after nearly every batch.
    fn go_on(&mut self) -> Result<(), Error> {
        match self.waiting.as_deref() {
            None => Ok(()),
            Some(RATE_LIMIT) if self.change.max_rows_per_second > 0 => Ok(()),
            Some(_) => self.doing(&self.doing.clone(), None),
        }
    }

    /// Says what is being done, where people look for it.
    fn doing(&mut self, what: &str, waiting_for: Option<&str>) -> Result<(), Error> {
        (self.doing, self.waiting) = (what.to_owned(), waiting_for.map(str::to_owned));
        let Some(slot) = &self.slot else { return Ok(()) };
        show(self.session, slot, &self.change.name, what, waiting_for)
    }

    /// The same for what has to be ended from outside. Returns whether it may begin.
    fn begin_long_work(&mut self, what: &str) -> Result<bool, Error> {
        let Some(slot) = &self.slot else { return Ok(true) };
        (self.doing, self.waiting) = (what.to_owned(), None);
        show_long_work(self.session, slot, &self.claim, what)
    }

    fn tell(&self, text: &str) {
        if self.session.is_worker() {
            pgrx::log!("{text}");
        } else {
            pgrx::info!("{text}");
        }
    }

    /// One batch of a lane, or of the blocks that were skipped once all lanes are done.
    fn step(&mut self) -> Result<Step, Error> {
        if let Some(lane) = self.take_lane()? {
            // Who changes what the rule is, or where its columns are, has the table locked. So the change is read once it is ours.
            let table = open_member(self.claim.relation(), lane.relation)?;
            return match self.read()? {
                Some(step) => Ok(step),
                None => self.lane_batch(&lane, table),
            };
        }
        if let Some(step) = self.read()? {
            return Ok(step);
        }
        let remaining = catalog::remaining(self.change.id)?;
        if remaining.blocks_done < remaining.blocks_total {
            return Ok(Step::Busy);
        }
        match catalog::take_skipped(self.change.id, self.swept)? {
            Some((relation, block)) => self.sweep(relation, block),
            None if self.swept.take().is_some() && remaining.skipped > 0 => Ok(Step::Locked),
            None if remaining.skipped > 0 => Ok(Step::Busy),
            None => Ok(Step::Done),
        }
    }

    /// Reads the change as it is now: alter_change, pause, fence or rollback may have come in between. Returns what that makes
    /// of this step, if anything.
    fn read(&mut self) -> Result<Option<Step>, Error> {
        self.change = with_latest_snapshot(|| self.claim.follow())?;
        if self.change.is_stopped() {
            return Ok(Some(Step::Stopped));
        }
        if self.is_surplus() {
            return self.move_up().map(Some);
        }
        Ok(None)
    }

    /// The next lane to work on: so many in turn, and others' when there are no more.
    fn take_lane(&mut self) -> Result<Option<catalog::Lane>, Error> {
        let id = self.claim.id();
        if self.windows.len() < LANES_IN_TURN
            && let Some(lane) = catalog::take_free_lane(id)?
        {
            return Ok(Some(lane));
        }
        while let Some((relation, number, _)) = self.windows.front() {
            if let Some(lane) = catalog::take_own_lane(id, self.slot.as_ref(), (*relation, *number))? {
                return Ok(Some(lane));
            }
            // Somebody else has taken it over.
            self.windows.pop_front();
        }
        catalog::take_over_lane(id, self.slot.as_ref())
    }

    fn lane_batch(&mut self, lane: &catalog::Lane, table: Option<Table>) -> Result<Step, Error> {
        let Some(table) = table.filter(|table| table.file() == lane.file) else {
            return Ok(Step::Moved { relation: lane.relation });
        };
        let known = self.windows.iter().position(|it| (it.0, it.1) == (lane.relation, lane.number));
        let window = known.and_then(|index| self.windows.remove(index)).map(|(_, _, window)| window);
        // Another session may have come in between.
        let window = window.filter(|window| window.next == lane.next_block).unwrap_or(Window::at(lane.next_block));
        let (task, visits) = (self.task(), self.task().visits());
        let blocks = self.batch_blocks().min(most_blocks(lane.end_block - lane.first_block, visits));
        let visit = window.visit(blocks, visits, lane.end_block);
        let wal = wal_bytes();
        let outcome = batch::run(&self.change, &table, &visit, task, &mut self.destinations)?;
        let wal_bytes = wal_bytes() - wal;
        let blocked = catalog::blocked()?;
        let work = outcome.work;
        self.sizer.record(work, visits);
        if work.seen > 0 {
            self.rows_per_block = work.seen as f64 / f64::from(work.blocks.max(1));
        }
        if !outcome.skipped.is_empty() {
            catalog::skip(lane, &outcome.skipped)?;
        }
        let batch =
            Batch { next_block: visit.done, rows: work.written, blocks: work.blocks, work: work.time, wal_bytes };
        catalog::advance_lane(lane, self.slot.as_ref(), batch)?;
        if visit.done < lane.end_block {
            self.windows.push_back((lane.relation, lane.number, Window::after(&visit)));
        }
        Ok(Step::Batch { rows: work.written, blocked, work: work.time })
    }

    /// Gives a table that VACUUM FULL or CLUSTER has written anew its lanes, one worker for all. What was split is skipped quickly.
    /// A table that is gone loses them.
    fn begin_lanes_again(&mut self, relation: pg_sys::Oid) -> Result<(), Error> {
        self.session.transaction(|| {
            // Before the lanes, of which this transaction holds none: so no two workers wait for each other.
            let change = self.claim.lock_anyway()?;
            let Some(table) = open_member(change.relation, relation)? else {
                return catalog::drop_lanes(change.id, relation);
            };
            let file = table.file();
            let mut lanes_there = catalog::lanes(change.id)?.into_iter().filter(|lane| lane.relation == relation);
            match lanes_there.any(|lane| lane.file != file) {
                true => catalog::create_lanes(change.id, relation, file, &lanes(table.blocks())),
                false => Ok(()),
            }
        })
    }

    fn sweep(&mut self, relation: pg_sys::Oid, block: u32) -> Result<Step, Error> {
        let id = self.change.id;
        self.swept = Some((relation, block));
        let Some(table) = open_member(self.claim.relation(), relation)? else {
            return Ok(Step::Moved { relation });
        };
        if catalog::lanes(id)?.iter().any(|lane| lane.relation == relation && lane.file != table.file()) {
            return Ok(Step::Moved { relation });
        }
        if let Some(step) = self.read()? {
            return Ok(step);
        }
        let (visit, task) = (Visit::only(block..block + 1), self.task());
        let outcome = batch::run(&self.change, &table, &visit, task, &mut self.destinations)?;
        if outcome.skipped.is_empty() {
            catalog::swept(id, relation, block)?;
        } else if outcome.work.written == 0 {
            return Ok(Step::Passed);
        }
        catalog::count_rows(id, relation, outcome.work.written)?;
        Ok(Step::Batch { rows: outcome.work.written, blocked: 0, work: outcome.work.time })
    }

    /// Says how far the backfill is, if it was said a second ago, and sees to it that it has all its workers.
    fn report(&mut self) -> Result<(), Error> {
        const INTERVAL: Duration = Duration::from_secs(1);
        if self.last_report.elapsed() < INTERVAL {
            return Ok(());
        }
        self.last_report = Instant::now();
        let (remaining, live) = self.session.asynchronous_transaction(|| {
            let remaining = catalog::remaining(self.change.id)?;
            catalog::add_sample(self.change.id, &remaining)?;
            // More than there are lanes would find nothing to do.
            launch_missing(&self.change, remaining.lanes)?;
            Ok((remaining, catalog::live(self.change.id)?))
        })?;
        if live.max(1) != self.sharers {
            self.sharers = live.max(1);
            self.begin_limit();
        }
        self.rate.record(self.start.elapsed(), self.rows, remaining.blocks_done);
        if !self.session.is_worker() {
            pgrx::info!("{}", self.line(&remaining));
        }
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

    /// Cleans up behind the backfill, builds the indexes, and moves the change to `expanded`; or says what stands in the
    /// way.
    fn finish(&mut self, counts: &Counts, claim: &Claim) -> Result<End, Error> {
        let name = self.change.name.clone();
        if counts.pending > 0 || counts.diverged > 0 {
            let error = Error::NotInSync { change: name.clone(), pending: counts.pending, diverged: counts.diverged };
            if self.session.is_worker() {
                return Err(error);
            }
            pgrx::warning!(
                "{}: the change stays {}: {} rows are pending and {} diverged; see zdd.mismatches",
                name,
                self.change.phase.as_str(),
                format_count(counts.pending.unsigned_abs()),
                format_count(counts.diverged.unsigned_abs()),
            );
            self.session.transaction(|| end_own_job(&self.claim))?;
            return Ok(End::Finished);
        }
        if !self.tidy()? {
            return Ok(End::Stopped);
        }
        let expanded = || {
            // The claim under which it was verified: what has changed since may have made rows pending.
            let change = claim.lock()?;
            if change.is_stopped() {
                return Ok(None);
            }
            let rows = catalog::remaining(change.id)?.rows;
            if change.phase != Phase::Expanding {
                catalog::end_job(change.id)?;
                return Ok(Some(change.phase));
            }
            let table = ddl::lock_once(&|| claim.lock(), |_| Ok(()))?;
            catalog::end_job(change.id)?;
            ddl::end_expanding(&table)?;
            let detail = json!({
                "rows": counts.rows, "rows_split": rows, "unmatched": counts.unmatched, "lossy": counts.lossy,
            });
            catalog::set_phase(&change, Phase::Expanded, detail)?;
            Ok(Some(Phase::Expanded))
        };
        // What was verified stays so, however long others keep the table locked.
        let (session, slot, change) = (self.session, self.slot.as_ref(), &self.change);
        let mut told = session.is_worker();
        let phase = across_transactions(session, true, expanded, |error| {
            if !std::mem::replace(&mut told, true) {
                pgrx::info!("{name}: waits for a short lock on the table");
            }
            session.asynchronous_transaction(|| catalog::record_retry(change.id, &change.name, error))?;
            slot.map_or(Ok(()), |slot| show(session, slot, &change.name, "verifies", Some("a short lock on the table")))
        })?;
        let Some(phase) = phase else { return Ok(End::Stopped) };
        let seconds = self.start.elapsed().as_secs_f64();
        self.tell(&format!(
            "{name}: {}; {} split in {seconds:.1}s ({} rows/s), {} verified, {} unmatched, {} lossy",
            phase.as_str(),
            format_rows(self.rows),
            format_count((self.rows as f64 / seconds.max(0.001)) as u64),
            format_rows(counts.rows.unsigned_abs()),
            format_count(counts.unmatched.unsigned_abs()),
            format_count(counts.lossy.unsigned_abs()),
        ));
        Ok(End::Finished)
    }

    /// Vacuums the tables that no other worker has begun to. Meanwhile one of them may verify.
    /// Returns whether the backfill goes on.
    fn vacuum(&mut self) -> Result<bool, Error> {
        while let Some(relation) = self.session.transaction(|| catalog::take_vacuum(self.change.id))? {
            if !self.begin_long_work(catalog::VACUUMS)? {
                return Ok(false);
            }
            index::vacuum(self.session, &self.change, relation)?;
        }
        Ok(true)
    }

    fn build_indexes(&mut self) -> Result<(), Error> {
        let (session, change) = (self.session, self.change.clone());
        for failures in 1.. {
            let claim = self.claim.clone();
            match index::build(session, &claim, &change, |what| self.begin_long_work(what)) {
                Ok(()) => break,
                Err(error) => self.back_off(error, failures)?,
            }
        }
        Ok(())
    }

    /// Builds indexes, which only a worker can: a session that has indexes to build waits for one. Returns whether the change
    /// is still there.
    fn tidy(&mut self) -> Result<bool, Error> {
        if self.session.is_worker() {
            // They vacuum, which is soon over or takes long.
            self.naps = 0;
            while self.session.transaction(|| catalog::live_workers(self.change.id))? > 1 {
                self.nap("workers that are not done")?;
                if self.follow()? {
                    return Ok(false);
                }
            }
            self.build_indexes()?;
            return Ok(!self.follow()?);
        }
        loop {
            self.follow()?;
            if self.change.is_stopped() {
                return Ok(false);
            }
            if self.session.transaction(|| index::are_built(&self.change))? {
                return Ok(true);
            }
            self.doing("builds indexes", Some("a background worker that builds the indexes"))?;
            self.session.transaction(|| launch_helper(&self.change))?;
            lock::sleep(Duration::from_millis(100));
        }
    }
}

const RATE_LIMIT: &str = "max_rows_per_second";
/// How many lanes are worked on in turn.
const LANES_IN_TURN: usize = 4;
const NOTHING: Step = Step::Batch { rows: 0, blocked: 0, work: Duration::ZERO };

/// What a batch may take. Where there is a limit there is time for short ones, which are in nobody's way. Still shorter
/// ones would take more of the processor for their beginning and end than for their rows.
fn batch_target(change: &Change) -> Duration {
    const SHORT: Duration = Duration::from_millis(5);
    if change.max_rows_per_second == 0 { change.batch_target } else { change.batch_target.min(SHORT) }
}

/// How often the signals are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A session that gives up leaves nothing for others to go on with, unless workers are at it.
fn end_own_job(claim: &Claim) -> Result<(), Error> {
    let change = claim.lock_anyway()?;
    match change.job {
        Some(Job { workers: 0, .. }) => catalog::end_job(change.id),
        _ => Ok(()),
    }
}

/// Opens a table of a change for a batch, without waiting long behind DDL. `None` when it is gone, or no longer a part of the
/// change: a partition that was detached is nobody's business but its owner's.
fn open_member(root: pg_sys::Oid, relation: pg_sys::Oid) -> Result<Option<Table>, Error> {
    let timeout = guc::milliseconds(guc::lock_timeout());
    let table =
        with_settings(&[(c"lock_timeout", timeout.as_c_str())], || Table::open(relation, LockMode::RowExclusive));
    match table {
        Some(table) if ancestors(relation).contains(&root) => Ok(Some(table)),
        _ => Ok(None),
    }
}

/// Counts all rows, piece by piece, each as it is when it is looked at. That is enough: a row that is in sync stays so.
pub fn count(session: &Session, claim: &Claim) -> Result<Counts, Error> {
    count_while(session, claim, || Ok(()))
}

/// The same. `before_each` comes before each piece.
fn count_while(
    session: &Session,
    claim: &Claim,
    mut before_each: impl FnMut() -> Result<(), Error>,
) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for (relation, blocks) in sizes(session, claim)? {
        let before = counts.rows;
        for piece in verify::pieces(blocks) {
            before_each()?;
            session.transaction(|| {
                let Some(table) = Table::open(relation, LockMode::AccessShare) else { return Ok(()) };
                // Who changes what the rule is has the table locked.
                let change = with_latest_snapshot(|| claim.find())?;
                verify::count_piece(&change, &table, piece.clone(), &mut counts)
            })?;
        }
        if counts.rows == before {
            session.transaction(|| verify::check_empty(relation))?;
        }
    }
    Ok(counts)
}

fn sizes(session: &Session, claim: &Claim) -> Result<Vec<(pg_sys::Oid, u32)>, Error> {
    session.transaction(|| {
        Ok(verify::tables(claim.find()?.relation)
            .into_iter()
            .filter_map(|oid| Some((oid, Table::look_at(oid)?.blocks())))
            .collect())
    })
}

/// Settles all diverged rows by one side.
pub fn repair(session: &Session, right: Right, task: Task) -> Result<(), Error> {
    let winner = if task == Task::NewWins { "new" } else { "old" };
    let (claim, change) = session.transaction(|| {
        let change = right.lock_patiently()?;
        if change.is_contracting()? {
            return Err(Error::ContractRunning { change: change.name });
        }
        let claim = catalog::record_and_claim(&change, "repair_started", json!({ "winner": winner }))?;
        let change = Change { claim, ..change };
        Ok((Claim::new(right, &change, "repair"), change))
    })?;
    let claim = &claim;
    let (mut repaired, mut sizer) = (0, BatchSizer::new(change.batch_target));
    let mut destinations = Destinations::default();
    for (relation, blocks) in sizes(session, claim)? {
        let mut next = 0;
        while next < blocks {
            let end = next.saturating_add(sizer.blocks()).min(blocks);
            let outcome = session.transaction(|| {
                let table = open_member(claim.relation(), relation)?;
                let change = with_latest_snapshot(|| claim.find())?;
                let Some(table) = table else { return Ok(batch::Outcome::default()) };
                batch::run(&change, &table, &Visit::only(next..end), task, &mut destinations)
            });
            let is_done = match outcome {
                Ok(outcome) => {
                    repaired += outcome.work.written;
                    if outcome.skipped.is_empty() {
                        sizer.record(outcome.work, 1);
                    }
                    outcome.skipped.is_empty()
                }
                Err(error) if error.is_transient() => false,
                Err(error) => return Err(error),
            };
            if is_done {
                next = end;
            } else {
                // What was written is settled; the rest is tried again.
                session.sleep(Duration::from_millis(100))?;
            }
        }
    }
    let counts = count(session, claim)?;
    session.transaction(|| {
        claim.find()?;
        let detail = json!({ "rows": repaired, "winner": winner });
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
