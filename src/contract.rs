//! The way to `contracted`: what must be known before the old column may go, and the steps, each in its own transaction.

use serde_json::json;

use crate::archive::{self, Archive};
use crate::backfill::run::count;
use crate::catalog::{self, Change, Claim, JobKind, JobOptions, Right};
use crate::census::Census;
use crate::ddl;
use crate::error::Error;
use crate::guc;
use crate::patience::across_transactions;
use crate::pg::session::Session;
use crate::phase::Phase;
use crate::usage::report::{self, Standing};
use crate::verify::Counts;

/// What the caller takes upon himself.
#[derive(Clone, Copy, Debug)]
pub struct Consent<'a> {
    /// The values of unmatched rows may be lost.
    pub accept_unmatched: bool,
    /// What the new columns do not say of the values of lossy rows may be lost.
    pub accept_lossy: bool,
    /// The name of a table that keeps them all, so that nothing is lost.
    pub archive: Option<&'a str>,
    /// Nobody needs to have been seen not using the old column.
    pub force: bool,
}

impl Consent<'_> {
    /// What whoever asked for a job said.
    pub fn of_job(options: &JobOptions) -> Consent<'_> {
        let JobOptions { accept_unmatched, accept_lossy, force, .. } = *options;
        Consent { accept_unmatched, accept_lossy, archive: options.archive.as_deref(), force }
    }

    fn may_lose_unmatched(&self) -> bool {
        self.accept_unmatched || self.archive.is_some()
    }

    fn may_lose_lossy(&self) -> bool {
        self.accept_lossy || self.archive.is_some()
    }
}

/// Writes down that a contract is to be done, by a background worker or by this session, which has taken a place for it. Returns
/// the claim that it goes on under.
pub fn begin(right: Right, consent: Consent, workers: u32) -> Result<Claim, Error> {
    let change = right.lock_patiently()?;
    if let Some(job) = &change.job {
        let is_mine = |live: u32| if workers == 0 { live <= 1 } else { live == 0 };
        match job.kind {
            // A session that is gone has left it behind.
            JobKind::Contract if job.stopped.is_some() => {}
            JobKind::Contract if job.workers == 0 && is_mine(catalog::live(change.id)?) => {}
            JobKind::Contract => return Err(Error::ContractRunning { change: change.name }),
            JobKind::Backfill if job.stopped.as_ref().is_some_and(|stopped| stopped.by_error) => {}
            JobKind::Backfill if job.workers == 0 && is_mine(catalog::live(change.id)?) => {}
            JobKind::Backfill => return Err(Error::BackfillRunning { change: change.name }),
        }
    }
    check(&change, consent)?;
    let options = JobOptions {
        accept_unmatched: consent.accept_unmatched,
        accept_lossy: consent.accept_lossy,
        archive: consent.archive.map(str::to_owned),
        force: consent.force,
        own_fence: change.has_own_fence(),
        ..JobOptions::default()
    };
    let claim = catalog::set_job(&change, JobKind::Contract, workers, options, "contract_started")?;
    Ok(Claim::new(right, &Change { claim, ..change }, "contract"))
}

/// Drops the old column. `doing` hears of each step, and of what it waits for.
pub fn contract(
    session: &Session,
    claim: &Claim,
    consent: Consent,
    mut doing: impl FnMut(&str, Option<&str>) -> Result<(), Error>,
) -> Result<(), Error> {
    match run(session, claim, consent, &mut doing) {
        Ok((counts, archive)) => {
            match archive {
                None => notice_lost(&counts),
                Some(archive) => {
                    pgrx::info!("{}: what the new columns do not give back is in {archive}", claim.name());
                }
            }
            pgrx::info!("{}: contracted; the old column is gone", claim.name());
            Ok(())
        }
        Err(error) => {
            // Nobody else would take the fence back, however long others keep the table locked.
            across_transactions(
                session,
                true,
                || undo(claim),
                |late| {
                    if !session.is_worker() {
                        pgrx::warning!(
                            "{}: the contract takes its fence back and waits: {}",
                            claim.name(),
                            late.message()
                        );
                    }
                    session.asynchronous_transaction(|| catalog::record_retry(claim.id(), claim.name(), late))?;
                    doing("takes its fence back", WAITS)
                },
            )?;
            // First the applications, then what nobody waits for.
            session.transaction(|| discard_archive(claim))?;
            if !session.is_worker() {
                session.transaction(|| give_up(claim, &error))?;
            }
            Err(error)
        }
    }
}

/// The steps. Returns what there was to lose, and the name of the archive that keeps it.
fn run(
    session: &Session,
    claim: &Claim,
    consent: Consent,
    doing: &mut impl FnMut(&str, Option<&str>) -> Result<(), Error>,
) -> Result<(Counts, Option<String>), Error> {
    let change = session.transaction(|| claim.find())?;
    // A worker that is gone may have come as far as its own fence.
    let own_fence = change.phase == Phase::Expanded || change.has_own_fence();
    if change.phase == Phase::Expanded {
        // Nobody is fenced off for a contract that is refused.
        doing("counts rows", None)?;
        refuse_rows(&change, &count(session, claim)?, consent)?;
        doing("fences", None)?;
        let fence = || {
            let table = ddl::lock_once(&|| claim.lock(), |change| {
                // Counting may have taken long.
                check_usage(change, consent, false)?;
                ddl::check_fence(change)
            })?;
            ddl::watch(&table)?;
            let moved = ddl::fence(&table)?;
            catalog::set_own_fence(claim.id(), moved)?;
            Ok(moved)
        };
        claim.move_on(across_transactions(session, false, fence, |_| doing("fences", WAITS))?);
    } else {
        let watch = || ddl::watch(&ddl::lock_once(&|| claim.lock(), |_| Ok(()))?);
        across_transactions(session, false, watch, |_| doing("counts rows behind the fence", WAITS))?;
    }
    // The old application may have written between the first count and the fence, and who names no columns still does.
    doing("counts rows behind the fence", None)?;
    let prepare = || archive::prepare(&claim.lock()?, consent.archive);
    let archive = across_transactions(session, false, prepare, |_| doing("counts rows behind the fence", WAITS))?;
    let mut census = Census::new(archive);
    census.look(session, claim)?;
    refuse_rows(&change, &census.counts(), consent)?;
    if ddl::has_not_null(&change) {
        doing("demands NOT NULL", None)?;
        let demand = || ddl::demand_not_null(&ddl::lock_once(&|| claim.lock(), |_| Ok(()))?);
        across_transactions(session, false, demand, |_| doing("demands NOT NULL", WAITS))?;
        doing("validates NOT NULL", None)?;
        session.transaction(|| ddl::validate_not_null(&claim.find()?))?;
    }
    loop {
        doing("drops the old column", None)?;
        let drop_source = || {
            let table = ddl::lock_once(&|| claim.lock(), |change| {
                // Who ran into our own fence gets the column back.
                if own_fence {
                    check_usage(change, consent, true)?;
                }
                ddl::check_drop_source(change)
            })?;
            let is_complete = census.is_complete(&table.change)?;
            refuse_rows(&change, &census.counts(), consent)?;
            if is_complete {
                if let Some(archive) = archive {
                    let detail = json!({ "archive": archive.name() });
                    catalog::record(change.id, &change.name, "archived", detail)?;
                }
                ddl::drop_source(&table)?;
            }
            Ok(is_complete)
        };
        if across_transactions(session, false, drop_source, |_| doing("drops the old column", WAITS))? {
            return Ok((census.counts(), session.transaction(|| Ok(archive.map(Archive::name)))?));
        }
        // Partitions have come, or many rows been written, while it waited for the table.
        doing("counts rows behind the fence", None)?;
        census.look(session, claim)?;
    }
}

/// Says what went with the old column.
fn notice_lost(counts: &Counts) {
    for (rows, kind, why) in [
        (counts.unmatched, "unmatched", "the split rule did not accept their old value"),
        (counts.lossy, "lossy", "the new columns joined would not have given their old value back"),
    ] {
        match rows {
            0 => {}
            1 => pgrx::notice!("1 row was {kind}: {why}"),
            _ => pgrx::notice!("{rows} rows were {kind}: {why}"),
        }
    }
}

const WAITS: Option<&str> = Some("a short lock on the table");

/// Takes back what a contract that was refused or cancelled has done, unless somebody else has done so or gone on with it.
fn undo(claim: &Claim) -> Result<(), Error> {
    let change = match claim.lock_anyway() {
        Ok(change) if claim.has_job(&change) && change.phase == Phase::Fenced => change,
        Ok(_) | Err(Error::Final { .. } | Error::NoSuchChange { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let lock = || ddl::lock_once(&|| claim.lock_anyway(), |_| Ok(()));
    match change.has_own_fence() {
        true => ddl::unfence(&lock()?).map(drop),
        false if ddl::has_contract_begun(&change)? => ddl::stop_contract(&lock()?),
        false => Ok(()),
    }
}

/// Takes back what it has archived.
fn discard_archive(claim: &Claim) -> Result<(), Error> {
    match claim.lock_anyway() {
        Ok(change) if claim.has_job(&change) => archive::discard(&change),
        _ => Ok(()),
    }
}

/// Takes back what a contract has done whose session is gone.
pub fn clean_up_after(change: &Change) -> Result<(), Error> {
    let Some(claim) = Claim::of_job(change) else { return Ok(()) };
    undo(&claim)?;
    match claim.lock_anyway() {
        Ok(change) if claim.has_job(&change) => {
            archive::discard(&change)?;
            catalog::end_job(change.id)
        }
        _ => Ok(()),
    }
}

/// Writes down why a session's contract came to nothing, unless the change is over, which tells as much.
fn give_up(claim: &Claim, error: &Error) -> Result<(), Error> {
    let Ok(change) = claim.lock_anyway() else { return Ok(()) };
    catalog::record_end(claim.id(), claim.name(), error)?;
    if claim.has_job(&change) { catalog::end_job(change.id) } else { Ok(()) }
}

/// What can be told without looking at the rows.
pub fn check(change: &Change, consent: Consent<'_>) -> Result<(), Error> {
    if !matches!(change.phase, Phase::Expanded | Phase::Fenced) {
        return Err(Error::WrongPhase {
            change: change.name.clone(),
            phase: change.phase,
            action: "contract",
            hint: "Split the remaining rows first with CALL zdd.backfill(...).",
        });
    }
    ddl::refuse_dependents(change, "contract", &[change.rule.source.current_name().to_owned()])?;
    consent.archive.map_or(Ok(()), |name| archive::check(change, name))?;
    check_usage(change, consent, change.has_own_fence())
}

/// An error unless it is known that nobody uses the old column: it has been fenced for long enough, or use was recorded
/// for that long and there was none. A contract's own fence is no proof: nobody has watched who runs into it.
fn check_usage(change: &Change, consent: Consent<'_>, own_fence: bool) -> Result<(), Error> {
    let quiet_period = guc::quiet_period();
    let fenced_for = (change.phase == Phase::Fenced && !own_fence).then_some(change.in_phase);
    if consent.force || quiet_period.is_zero() {
        return Ok(());
    }
    if fenced_for.is_some_and(|time| time >= quiet_period) {
        let users = report::failed_while_fenced(change)?;
        if !users.is_empty() {
            pgrx::notice!("the old column was missed while it was fenced:\n{}", users.join("\n"));
        }
        return Ok(());
    }
    let name = || change.name.clone();
    match report::standing(change, quiet_period)? {
        Standing::Quiet => Ok(()),
        Standing::Used(users) => Err(Error::InUse { change: name(), quiet_period, users }),
        Standing::Unknown(reason) => Err(Error::UsageUnknown { change: name(), fenced_for, quiet_period, reason }),
    }
}

/// An error if a row would lose something.
fn refuse_rows(change: &Change, counts: &Counts, consent: Consent<'_>) -> Result<(), Error> {
    let change = change.name.clone();
    if counts.pending > 0 || counts.diverged > 0 {
        return Err(Error::NotInSync { change, pending: counts.pending, diverged: counts.diverged });
    }
    if counts.unmatched > 0 && !consent.may_lose_unmatched() {
        return Err(Error::UnmatchedRows { change, rows: counts.unmatched });
    }
    if counts.lossy > 0 && !consent.may_lose_lossy() {
        return Err(Error::LossyRows { change, rows: counts.lossy });
    }
    if counts.null_violations > 0 {
        return Err(Error::NullViolations { change, rows: counts.null_violations });
    }
    Ok(())
}
