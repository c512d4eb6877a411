//! Background workers: started when the transaction that asks for them commits, and by the launcher when work was left
//! unfinished by a restart, a crash or a promotion.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::json;

use crate::backfill::run;
use crate::catalog::{self, Change, JobKind, Slot};
use crate::contract::{self, Consent};
use crate::error::Error;
use crate::guc;
use crate::pg::lock;
use crate::pg::session::Session;
use crate::pg::table::relation_named;
use crate::pg::worker::{self, Order};

const WORKER: &core::ffi::CStr = c"pg_zdd worker";
const RESUMER: &core::ffi::CStr = c"pg_zdd resumer";
const LAUNCHER: &core::ffi::CStr = c"pg_zdd launcher";

/// Registers the launcher, when the server starts.
pub fn register_launcher() {
    worker::register_launcher(LAUNCHER);
}

thread_local! {
    /// The workers to start when the transaction commits. Those that found no free slot are tried again after the next.
    static WANTED: RefCell<Vec<Order>> = const { RefCell::new(Vec::new()) };
}

/// Starts so many workers for a change when this transaction commits, and none if it does not. A worker that finds
/// nothing to do ends.
pub fn launch_at_commit(change: &Change, workers: u32) {
    worker::at_end_of_transaction(launch_wanted, forget_wanted);
    let order = Order { database: worker::current_database(), change: change.id };
    WANTED.with_borrow_mut(|wanted| wanted.extend((0..workers).map(|_| order)));
}

fn launch_wanted() {
    let wanted = WANTED.with_borrow_mut(std::mem::take);
    let missing: Vec<Order> = wanted.into_iter().filter(|order| !worker::register(*order, WORKER, WORKER)).collect();
    if !missing.is_empty() {
        WANTED.with_borrow_mut(|wanted| *wanted = missing);
    }
}

fn forget_wanted() {
    WANTED.with_borrow_mut(Vec::clear);
}

/// Sees to it that a change has the workers that it is to have, but no more than there is work for. Where no slot is free
/// it is tried again later.
pub fn launch_missing(change: &Change, work: u64) -> Result<(), Error> {
    let wanted = match &change.job {
        Some(job) if job.stopped.is_none() => u64::from(job.workers),
        _ => return Ok(()),
    };
    let live = u64::from(catalog::live_workers(change.id)?);
    let order = Order { database: worker::current_database(), change: change.id };
    for _ in live..wanted.min(work.max(1)) {
        if !worker::register(order, WORKER, WORKER) {
            break;
        }
    }
    Ok(())
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
        change => match session.transaction(|| if is_installed() { catalog::find_by_id(change) } else { Ok(None) }) {
            Ok(Some(change)) => work_for(session, change),
            other => other.map(drop),
        },
    };
    if let Err(error) = done {
        pgrx::log!("pg_zdd: {}", error.message());
    }
}

fn is_installed() -> bool {
    relation_named("zdd", "job").is_some()
}

/// Starts workers for all that is unfinished in this database.
fn resume(session: &Session) -> Result<(), Error> {
    session.transaction(|| {
        if is_installed() {
            for change in catalog::unfinished()? {
                launch_missing(&change, u64::MAX)?;
            }
        }
        Ok(())
    })
}

fn work_for(session: &Session, change: Change) -> Result<(), Error> {
    // What was asked for may be done, or have been taken back.
    let Some(job) = change.job.as_ref().filter(|job| job.stopped.is_none()) else { return Ok(()) };
    let workers = match job.kind {
        // A session that has indexes to build needs a worker for that.
        JobKind::Backfill => job.workers.max(1),
        JobKind::Contract => 1,
    };
    let Some(slot) = catalog::take_slot(change.id, Some(workers)) else { return Ok(()) };
    let (id, name) = (change.id, change.name.clone());
    worker::show_activity(Some(&format!("pg_zdd: {name}")));
    match session.whole(|| run_job(session, slot, change)) {
        Ok(()) => Ok(()),
        Err(error) => session.transaction(|| give_up(id, &name, &error)),
    }
}

fn run_job(session: &Session, slot: Slot, change: Change) -> Result<(), Error> {
    match &change.job {
        Some(job) if job.kind == JobKind::Contract => {
            let options = job.options;
            let consent = Consent { accept_unmatched: options.accept_unmatched, force: options.force };
            session.transaction(|| catalog::set_doing(&slot, "contracts", None))?;
            contract::contract(session, &change.name, &change, consent)
        }
        // The session that called for the backfill splits the rows.
        Some(job) if job.workers == 0 => run::build_indexes(session, slot, &change),
        _ => run::work(session, slot, change),
    }
}

/// Writes down why a job came to nothing, unless nobody wants it any longer, which is reason enough.
fn give_up(id: i64, name: &str, error: &Error) -> Result<(), Error> {
    match catalog::lock(name) {
        Ok(change) if change.id == id && change.job.as_ref().is_some_and(|job| job.stopped.is_none()) => {}
        Ok(_) | Err(Error::Final { .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    let (detail, hint) = error.detail_and_hint();
    let hint = Some(hint.unwrap_or_else(|| Error::RESUME.into()));
    catalog::set_error(id, &error.message(), hint.as_deref())?;
    catalog::stop_job(id, "error")?;
    catalog::record(id, name, "error", json!({ "error": error.message(), "detail": detail, "hint": hint }))
}

/// What the launcher does: again and again, have a look at every database.
pub fn launch(session: &Session) {
    loop {
        worker::show_activity(None);
        if guc::auto_resume() {
            for database in worker::databases(session) {
                worker::run(Order { database, change: 0 }, RESUMER, RESUMER);
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
