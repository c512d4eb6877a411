//! The way to `contracted`: what must be known before the old column may go, and the steps, each in its own transaction.

use serde_json::json;

use crate::archive::{self, Archive};
use crate::backfill::run::count;
use crate::catalog::{self, Change, Claim, JobOptions};
use crate::census::Census;
use crate::ddl;
use crate::error::Error;
use crate::guc;
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

/// Drops the old column. `doing` hears of each step.
pub fn contract(
    session: &Session,
    claim: &Claim,
    consent: Consent<'_>,
    mut doing: impl FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    let change = &session.transaction(|| claim.find())?;
    // A worker that is gone may have come as far as its own fence.
    let own_fence = change.phase == Phase::Expanded || change.has_own_fence();
    if !change.has_own_fence() {
        session.transaction(|| check(change, consent))?;
    }
    if change.phase == Phase::Expanded {
        // Nobody is fenced off for a contract that is refused.
        doing("counts rows")?;
        refuse_rows(change, &count(session, claim)?, consent)?;
        doing("fences")?;
        session.transaction(|| {
            let change = claim.lock()?;
            // Counting may have taken long.
            check_usage(&change, consent, false)?;
            ddl::watch(&change)?;
            ddl::fence(&change)?;
            catalog::set_own_fence(change.id)
        })?;
    }
    let watched = change.phase == Phase::Expanded;
    match finish(session, claim, own_fence, watched, consent, &mut doing) {
        Ok((counts, None)) => {
            notice_lost(&counts);
            pgrx::info!("{}: contracted; the old column is gone", claim.name);
            Ok(())
        }
        Ok((_, Some(archive))) => {
            pgrx::info!("{}: what the new columns do not give back is in {archive}", claim.name);
            pgrx::info!("{}: contracted; the old column is gone", claim.name);
            Ok(())
        }
        Err(error) => loop {
            match undo(session, claim, own_fence) {
                // Nobody else would take the fence back.
                Err(late) if session.is_worker() && late.is_transient() => {
                    doing("takes its fence back")?;
                    session.transaction(|| catalog::record_retry(change, &late))?;
                }
                undone => return undone.and(Err(error)),
            }
        },
    }
}

/// The steps behind the fence. Returns what there was to lose, and the name of the archive that keeps it.
fn finish(
    session: &Session,
    claim: &Claim,
    own_fence: bool,
    watched: bool,
    consent: Consent<'_>,
    doing: &mut impl FnMut(&str) -> Result<(), Error>,
) -> Result<(Counts, Option<String>), Error> {
    let change = session.transaction(|| claim.find())?;
    // The old application may have written between the first count and the fence, and who names no columns still does.
    doing("counts rows behind the fence")?;
    if !watched {
        session.transaction(|| ddl::watch(&claim.lock()?))?;
    }
    let archive = session.transaction(|| archive::prepare(&claim.lock()?, consent.archive))?;
    let mut census = Census::new(archive);
    census.look(session, claim)?;
    refuse_rows(&change, &census.counts(), consent)?;
    doing("demands NOT NULL")?;
    if session.transaction(|| ddl::demand_not_null(&claim.lock()?))? {
        doing("validates NOT NULL")?;
        session.transaction(|| ddl::validate_not_null(&claim.find()?))?;
    }
    doing("drops the old column")?;
    loop {
        let dropped = session.transaction(|| {
            let change = claim.lock()?;
            // Who ran into our own fence gets the column back.
            if own_fence {
                check_usage(&change, consent, true)?;
            }
            ddl::drop_source(&change, || {
                let is_complete = census.is_complete(&change)?;
                refuse_rows(&change, &census.counts(), consent)?;
                if let Some(archive) = archive.filter(|_| is_complete) {
                    catalog::record(change.id, &change.name, "archived", json!({ "archive": archive.name() }))?;
                }
                Ok(is_complete)
            })
        })?;
        if dropped {
            return Ok((census.counts(), session.transaction(|| Ok(archive.map(Archive::name)))?));
        }
        // Partitions have come, or many rows been written, while it waited for the table.
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

/// Takes back what a contract that was refused or cancelled has done.
fn undo(session: &Session, claim: &Claim, own_fence: bool) -> Result<(), Error> {
    // First the applications, then what nobody waits for.
    session.transaction(|| {
        let change = claim.lock()?;
        match change.phase {
            Phase::Fenced if own_fence => ddl::unfence(&change),
            Phase::Fenced => ddl::stop_contract(&change),
            // Somebody was quicker.
            _ => Ok(()),
        }
    })?;
    session.transaction(|| archive::discard(&claim.lock()?))
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
    ddl::refuse_dependents(change, "contract", &[change.rule.source.current_name()])?;
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
