//! Background workers: started when the transaction that asks for them commits, and by the launcher when work was left
//! unfinished by a restart, a crash or a promotion.

use std::cell::RefCell;
use std::time::Duration;

use crate::backfill::run;
use crate::catalog::{self, Change, Claim, JobKind, Slot};
use crate::contract::{self, Consent};
use crate::error::Error;
use crate::guc;
use crate::pg::security::is_superuser;
use crate::pg::session::Session;
use crate::pg::worker::{self, Ending, Order};
use crate::pg::{extension, lock, outside};

const WORKER: &core::ffi::CStr = c"pg_zdd worker";
const RESUMER: &core::ffi::CStr = c"pg_zdd resumer";
const LAUNCHER: &core::ffi::CStr = c"pg_zdd launcher";
/// How long the launcher waits for one database before it looks at the next.
const RESUMER_PATIENCE: Duration = Duration::from_secs(5);

/// Registers the launcher, when the server starts.
pub fn register_launcher() {
    worker::register_launcher(LAUNCHER);
}

/// A worker to start at the end of the transaction.
#[derive(Clone, Copy)]
struct Wanted {
    order: Order,
    /// Or else if it aborts.
    if_committed: bool,
    /// The subtransaction that asked for it.
    since: u32,
}

/// As the subtransaction of those whose transaction has committed.
const COMMITTED: u32 = 0;

thread_local! {
    /// Those that found no free slot are tried again after the next commit.
    static WANTED: RefCell<Vec<Wanted>> = const { RefCell::new(Vec::new()) };
}

/// Starts so many workers for a change when this transaction commits, and none if it does not. A worker that finds
/// nothing to do ends.
pub fn launch_at_commit(id: i64, workers: u32) {
    want(id, workers, true);
}

fn want(id: i64, workers: u32, if_committed: bool) {
    worker::at_end_of_transaction(launch_wanted);
    let order = Order { database: worker::current_database(), change: id };
    let wanted = Wanted { order, if_committed, since: worker::current_subtransaction() };
    WANTED.with_borrow_mut(|all| all.extend((0..workers).map(|_| wanted)));
}

fn launch_wanted(ending: Ending) -> Result<(), Error> {
    let mut all = WANTED.with_borrow_mut(std::mem::take);
    let start = |wanted: &Wanted| worker::register(wanted.order, WORKER, WORKER);
    let mut refused = Ok(());
    match ending {
        Ending::Committed => {
            all.retain(|wanted| wanted.if_committed && !start(wanted));
            all.iter_mut().for_each(|wanted| wanted.since = COMMITTED);
        }
        // Nobody here would hear of its commit.
        Ending::Preparing if all.iter().any(|wanted| wanted.if_committed && wanted.since != COMMITTED) => {
            refused = Err(Error::Prepared);
        }
        Ending::Preparing => {}
        Ending::Prepared => all.retain(|wanted| wanted.since == COMMITTED),
        Ending::AbortedSince(first) => {
            all.iter().filter(|wanted| wanted.since >= first && !wanted.if_committed).for_each(|wanted| {
                start(wanted);
            });
            all.retain(|wanted| wanted.since < first);
        }
    }
    WANTED.with_borrow_mut(|left| *left = all);
    refused
}

/// Ends the background workers that do what can take long and holds the tables against DDL: vacuum, build indexes, or a
/// long batch. They lose no more than that, and others take their place if this transaction does not commit.
pub fn interrupt(change: &Change) -> Result<(), Error> {
    let ended = catalog::end_long_work(change)?;
    want(change.id, ended, false);
    Ok(())
}

/// Sees to it that a change has the workers that it is to have, but no more than there is work for. Where no slot is free
/// it is tried again later.
pub fn launch_missing(change: &Change, work: u64) -> Result<Launched, Error> {
    let wanted = match &change.job {
        Some(job) if job.stopped.is_none() => u64::from(job.workers),
        _ => return Ok(Launched::Enough),
    };
    if quota_left(change.id)? == 0 {
        return Ok(Launched::Enough);
    }
    let live = u64::from(catalog::live_workers(change.id)?);
    let order = Order { database: worker::current_database(), change: change.id };
    for number in live..wanted.min(work.max(1)) {
        if !worker::register(order, WORKER, WORKER) {
            return Ok(if number == 0 { Launched::None } else { Launched::Enough });
        }
    }
    Ok(Launched::Enough)
}

/// How many more background workers a change may have beside all that are alive: the server has so many, of which no owner
/// gets all.
fn quota_left(id: i64) -> Result<u32, Error> {
    let (live, most) = (catalog::live_workers_beside(id)?, guc::max_workers());
    let left = most.saturating_sub(live.all);
    Ok(match live.owner {
        Some(owner) if !is_superuser(owner) => left.min(most.div_ceil(2).saturating_sub(live.of_owner)),
        _ => left,
    })
}

/// Whether a worker that has just taken its slot is one too many.
fn exceeds_quota(id: i64) -> Result<bool, Error> {
    let (live, most) = (catalog::live_workers_beside(id)?, guc::max_workers());
    let is_limited = live.owner.is_some_and(|owner| !is_superuser(owner));
    Ok(live.all > most || is_limited && live.of_owner > most.div_ceil(2))
}

/// Starts a worker for the change that has waited for longest, in the place of one that ends.
fn launch_next() -> Result<(), Error> {
    match catalog::longest_waiting()? {
        Some(change) => launch_missing(&change, 1).map(drop),
        None => Ok(()),
    }
}

/// Whether anybody works on a change now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launched {
    /// As many as are wanted or there are slots for.
    Enough,
    /// Nobody: there is no free slot.
    None,
}

/// Sees to it that a change has one worker, which does for a session what only workers can do.
pub fn launch_helper(change: &Change) -> Result<(), Error> {
    if catalog::live_workers(change.id)? == 0 {
        worker::register(Order { database: worker::current_database(), change: change.id }, WORKER, WORKER);
    }
    Ok(())
}

/// What a background worker does that is connected to a database.
pub fn work(session: &Session, order: Order) {
    let done = match order.change {
        0 => resume(session),
        change => match session
            .transaction(|| if extension::is_installed() { catalog::find_by_id(change) } else { Ok(None) })
        {
            Ok(Some(change)) => work_for(session, change),
            other => other.map(drop),
        },
    };
    if let Err(error) = done {
        pgrx::log!("pg_zdd: {}", error.message());
    }
}

/// Starts workers for all that is unfinished in this database. If it has the last free slot itself, it does the work.
fn resume(session: &Session) -> Result<(), Error> {
    worker::show_activity(Some("pg_zdd: looks for unfinished work"));
    let mut left = session.transaction(|| {
        let mut left = Vec::new();
        if extension::is_installed() {
            for change in catalog::unfinished()? {
                if launch_missing(&change, u64::MAX)? == Launched::None {
                    left.push(change);
                }
            }
        }
        Ok(left)
    })?;
    for change in
        session.transaction(|| if extension::is_installed() { catalog::left_by_sessions() } else { Ok(vec![]) })?
    {
        match session.transaction(|| contract::clean_up_after(&change)) {
            // It is tried again at the launcher's next look.
            Err(error) if error.is_transient() => {}
            done => done?,
        }
    }
    if left.is_empty() { Ok(()) } else { work_for(session, left.swap_remove(0)) }
}

fn work_for(session: &Session, change: Change) -> Result<(), Error> {
    let Some(slot) = wanted_workers(&change).and_then(|workers| take_slot(&change, workers)) else { return Ok(()) };
    // Much can have happened until there was a place.
    let (id, name) = (change.id, change.name);
    let Some(change) = session.transaction(|| catalog::find_by_id(id))? else { return Ok(()) };
    let Some(claim) = Claim::of_job(&change).filter(|_| wanted_workers(&change).is_some()) else { return Ok(()) };
    if session.transaction(|| exceeds_quota(id))? {
        return Ok(());
    }
    outside::work_for(claim.role());
    let done = match session.whole(|| run_job(session, &claim, slot, change)) {
        Ok(()) => Ok(()),
        Err(error) => session.transaction(|| give_up(id, &name, &error)),
    };
    session.transaction(launch_next)?;
    done
}

/// How many workers a change is to have; `None` if what was asked for is done, or has been taken back.
fn wanted_workers(change: &Change) -> Option<u32> {
    let job = change.job.as_ref().filter(|job| job.stopped.is_none())?;
    Some(match job.kind {
        // A session that has indexes to build needs a worker for that.
        JobKind::Backfill => job.workers.max(1),
        // A session does it itself.
        JobKind::Contract if job.workers == 0 => return None,
        JobKind::Contract => 1,
    })
}

/// Takes a free place. The worker that had it before may be about to go, for good: it no longer looks whether it is wanted.
fn take_slot(change: &Change, workers: u32) -> Option<Slot> {
    (0..20).find_map(|attempt| {
        if attempt > 0 {
            lock::sleep(Duration::from_millis(50));
        }
        catalog::take_slot(change.id, Some(workers))
    })
}

fn run_job(session: &Session, claim: &Claim, slot: Slot, change: Change) -> Result<(), Error> {
    match &change.job {
        Some(job) if job.kind == JobKind::Contract => {
            contract::contract(session, claim, Consent::of_job(&job.options), |what, waiting| {
                show(session, &slot, &change.name, what, waiting)
            })
        }
        // The session that called for the backfill splits the rows.
        Some(job) if job.workers == 0 => run::build_indexes(session, claim.clone(), slot, &change),
        _ => run::work(session, claim.clone(), slot, change),
    }
}

/// Says what whoever has a place does, and what they wait for: in zdd.workers, and of a background worker in
/// pg_stat_activity and its process title too.
pub fn show(session: &Session, slot: &Slot, change: &str, what: &str, waiting_for: Option<&str>) -> Result<(), Error> {
    session.asynchronous_transaction(|| catalog::set_doing(slot, what, waiting_for))?;
    show_title(session, change, what, waiting_for);
    Ok(())
}

/// The same for what has to be ended from outside. Returns whether it may begin.
pub fn show_long_work(session: &Session, slot: &Slot, claim: &Claim, what: &str) -> Result<bool, Error> {
    let begins = session.transaction(|| catalog::begin_long_work(slot, claim, what))?;
    if begins {
        show_title(session, claim.name(), what, None);
    }
    Ok(begins)
}

fn show_title(session: &Session, change: &str, what: &str, waiting_for: Option<&str>) {
    if session.is_worker() {
        let waiting = waiting_for.map(|reason| format!(", waits for {reason}")).unwrap_or_default();
        worker::show_activity(Some(&format!("pg_zdd: {change}: {what}{waiting}")));
    }
}

/// Writes down why a job came to nothing, unless nobody wants it any longer, which is reason enough.
fn give_up(id: i64, name: &str, error: &Error) -> Result<(), Error> {
    match catalog::lock_by_id(id)? {
        Some(change) if change.job.as_ref().is_some_and(|job| job.stopped.is_none()) => {}
        _ => return Ok(()),
    }
    catalog::record_error(id, name, error)?;
    catalog::stop_job(id, "error")
}

/// What the launcher does: again and again, have a look at every database.
pub fn launch(session: &Session) {
    loop {
        worker::show_activity(None);
        if guc::auto_resume() {
            for database in worker::databases(session) {
                worker::run(Order { database, change: 0 }, RESUMER, RESUMER, RESUMER_PATIENCE);
                lock::check_for_interrupts();
            }
        }
        let mut left = guc::launcher_naptime();
        while !left.is_zero() {
            let nap = left.min(Duration::from_secs(1));
            lock::sleep(nap);
            left -= nap;
            worker::follow_configuration();
            left = left.min(guc::launcher_naptime());
        }
    }
}
