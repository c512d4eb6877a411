//! Every function and procedure that SQL can call: check, call, return.

// The size of an error report is pgrx's choice, and an error is reported once.
#![allow(clippy::result_large_err)]

use std::time::{Duration, Instant};

use pgrx::JsonB;
use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::json;

use crate::backfill::batch::Task;
use crate::backfill::{run, signals};
use crate::binding::Binding;
use crate::catalog::{self, Change, Job, JobKind, Right};
use crate::contract::Consent;
use crate::ddl::{self, Request};
use crate::error::Error;
use crate::guc;
use crate::pg::class;
use crate::pg::gate::as_owner_for_caller;
use crate::pg::hook::LOGICAL_REPLICATION;
use crate::pg::lock::sleep;
use crate::pg::parse::{ColumnDefinition, column_definitions};
use crate::pg::security::{acts_for, current_role, role_name};
use crate::pg::session::Session;
use crate::pg::subxact::catch;
use crate::pg::table::Table;
use crate::pg::types::ColumnType;
use crate::pg::value::Passed;
use crate::phase::Phase;
use crate::rule::{Column, Conflict, Join, Rule, Split, Target, Unmatched};
use crate::usage::report;
use crate::usage::store::{Entry, Side};
use crate::worker::{interrupt, launch_at_commit, launch_missing, show};
use crate::{archive, contract, verify};

/// Begins a change: adds the new columns and keeps both sides in sync from now on. See the reference for the arguments.
///
/// Takes ACCESS EXCLUSIVE on the table for catalog updates only, tried for `zdd.lock_timeout` at a time.
#[pg_extern(sql = r#"
create function zdd.split_column(
    relation regclass, source name, columns text,
    regex text default null, delimiter text default null, split_sql text[] default null,
    "join" text default null, join_sql text default null,
    unmatched text default 'null', conflict text default 'new',
    indexes text[] default '{}', change text default null
) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::too_many_arguments)]
fn split_column(
    relation: Option<pg_sys::Oid>,
    source: Option<&core::ffi::CStr>,
    columns: Option<&str>,
    regex: Option<String>,
    delimiter: Option<String>,
    split_sql: Option<Vec<Option<String>>>,
    join: Option<String>,
    join_sql: Option<String>,
    unmatched: Option<&str>,
    conflict: Option<&str>,
    indexes: Option<Vec<Option<String>>>,
    change: Option<String>,
) -> Result<String, ErrorReport> {
    let (draft, table) = Draft::new(relation, source, columns, regex, delimiter, split_sql, join, join_sql, unmatched)?;
    let conflict = word("conflict", conflict, &["new", "old", "error"])?;
    ddl::check_table(&table, &draft.source, None)?;
    let change = change.unwrap_or_else(|| format!("{}.{}", table.bare_name(), draft.source));
    if change.is_empty() {
        Err(Error::EmptyName)?;
    }
    let mut rule = draft.rule(&table, change, conflict)?;
    let indexes: Vec<String> = indexes.unwrap_or_default().into_iter().flatten().collect();
    check_indexes(&indexes, &rule)?;
    limit_indexed(&mut rule, &indexes);
    // Everything about the rule that can be wrong is found before anything is locked.
    draft.bind(rule.clone(), &table)?;
    drop(table);
    let change = rule.change.clone();
    ddl::expand(&Request { relation: draft.relation, rule, columns: draft.columns, indexes })?;
    Ok(change)
}

/// Applies a rule to a sample of the rows and changes nothing. Takes ACCESS SHARE.
#[pg_extern(sql = r#"
create function zdd.preview_split(
    relation regclass, source name, columns text,
    regex text default null, delimiter text default null, split_sql text[] default null,
    "join" text default null, join_sql text default null,
    unmatched text default 'null', sample_rows integer default 10000
) returns table (kind text, rows bigint, share numeric, examples jsonb)
language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
fn preview_split(
    relation: Option<pg_sys::Oid>,
    source: Option<&core::ffi::CStr>,
    columns: Option<&str>,
    regex: Option<String>,
    delimiter: Option<String>,
    split_sql: Option<Vec<Option<String>>>,
    join: Option<String>,
    join_sql: Option<String>,
    unmatched: Option<&str>,
    sample_rows: Option<i32>,
) -> Result<
    TableIterator<'static, (name!(kind, String), name!(rows, i64), name!(share, AnyNumeric), name!(examples, JsonB))>,
    ErrorReport,
> {
    let sample_rows = positive("sample_rows", sample_rows)?;
    let (draft, table) = Draft::new(relation, source, columns, regex, delimiter, split_sql, join, join_sql, unmatched)?;
    ddl::check_table(&table, &draft.source, None)?;
    let rule = draft.rule(&table, "preview".into(), Conflict::New)?;
    draft.bind(rule.clone(), &table)?;
    drop(table);
    let preview = verify::preview(draft.relation, sample_rows.into(), |table| draft.bind(rule.clone(), table))?;
    let total = preview.matched.rows + preview.unmatched.rows + preview.null.rows;
    let share = |rows: i64| {
        let basis_points = rows * 10_000 / total.max(1);
        AnyNumeric::try_from(basis_points as f64 / 10_000.0).unwrap_or_default()
    };
    let kinds = [
        ("matched", preview.matched),
        ("unmatched", preview.unmatched),
        ("null", preview.null),
        ("lossy", preview.lossy),
    ];
    Ok(TableIterator::new(
        kinds.map(|(name, kind)| (name.to_owned(), kind.rows, share(kind.rows), JsonB(kind.examples.into()))),
    ))
}

/// Splits the rows that were there before the change, in small transactions, and moves the change to `expanded`. Goes on
/// where it stopped. Prints its progress once a second. Takes ROW EXCLUSIVE, and row locks that are free.
#[pg_extern(sql = r#"
create procedure zdd.backfill(change text, fire_triggers boolean default false)
language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn backfill(
    change: Option<String>,
    fire_triggers: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<(), ErrorReport> {
    let session = Session::of_procedure("backfill", fcinfo)?;
    let right = session.transaction(|| right(change.as_deref()))?;
    Ok(run::backfill(&session, right, fire_triggers.unwrap_or(false))?)
}

/// Counts the rows of a change by state, in one snapshot. Takes ACCESS SHARE.
#[pg_extern(sql = r#"
create function zdd.verify(
    change text,
    out rows bigint, out in_sync bigint, out unmatched bigint, out pending bigint, out diverged bigint,
    out lossy bigint, out null_violations bigint
) returns setof record language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity)]
fn verify_change(
    change: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(rows, i64),
            name!(in_sync, i64),
            name!(unmatched, i64),
            name!(pending, i64),
            name!(diverged, i64),
            name!(lossy, i64),
            name!(null_violations, i64),
        ),
    >,
    ErrorReport,
> {
    let counts = verify::verify(&right(change)?)?;
    Ok(TableIterator::once((
        counts.rows,
        counts.in_sync,
        counts.unmatched,
        counts.pending,
        counts.diverged,
        counts.lossy,
        counts.null_violations,
    )))
}

/// The rows that are not plainly in sync. Takes ACCESS SHARE.
#[pg_extern(sql = r#"
create function zdd.mismatches(change text, max_rows integer default 100)
returns table (relation regclass, key jsonb, ctid tid, source text, targets jsonb, kind text)
language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity)]
fn mismatches(
    change: Option<&str>,
    max_rows: Option<i32>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(relation, pg_sys::Oid),
            name!(key, Option<Passed>),
            name!(ctid, pg_sys::ItemPointerData),
            name!(source, Option<Passed>),
            name!(targets, Option<Passed>),
            name!(kind, String),
        ),
    >,
    ErrorReport,
> {
    let max_rows = positive("max_rows", max_rows)?;
    Ok(TableIterator::new(verify::mismatches(&right(change)?, max_rows as usize)?))
}

/// Settles diverged rows by one side, in small transactions. Takes ROW EXCLUSIVE.
#[pg_extern(sql = r#"
create procedure zdd.repair(change text, winner text)
language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn repair(change: Option<String>, winner: Option<String>, fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let session = Session::of_procedure("repair", fcinfo)?;
    let right = session.transaction(|| right(change.as_deref()))?;
    let task = match word("winner", winner.as_deref(), &["new", "old"])? {
        Conflict::New => Task::NewWins,
        _ => Task::OldWins,
    };
    Ok(run::repair(&session, right, task)?)
}

/// Changes the policies and the pace of a change. Policies take ACCESS EXCLUSIVE as split_column does.
#[pg_extern(sql = r#"
create function zdd.alter_change(
    change text, unmatched text default null, conflict text default null,
    batch_target interval default null, max_rows_per_second integer default null, run_if text default null
) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn alter_change(
    change: Option<&str>,
    unmatched: Option<&str>,
    conflict: Option<&str>,
    batch_target: Option<Interval>,
    max_rows_per_second: Option<i32>,
    run_if: Option<&str>,
) -> Result<String, ErrorReport> {
    let right = right(change)?;
    let unmatched =
        unmatched.map(|_| word::<Unmatched>("unmatched", unmatched, &["null", "whole", "error"])).transpose()?;
    let conflict = conflict.map(|_| word::<Conflict>("conflict", conflict, &["new", "old", "error"])).transpose()?;
    let batch_target = batch_target.map(batch_time).transpose()?;
    let max_rows = max_rows_per_second
        .map(|rows| {
            u32::try_from(rows).map_err(|_| Error::BadNumber {
                argument: "max_rows_per_second",
                value: rows.to_string(),
                allowed: "a number of rows, or 0 for no limit",
            })
        })
        .transpose()?;
    let altered = |change: &Change| {
        let mut rule = change.rule.clone();
        rule.unmatched = unmatched.unwrap_or(rule.unmatched);
        rule.conflict = conflict.unwrap_or(rule.conflict);
        rule
    };
    let widens =
        |change: &Change, rule: &Rule| rule.unmatched == Unmatched::Whole && change.rule.unmatched != Unmatched::Whole;
    let check = |change: &Change| {
        let rule = altered(change);
        if widens(change, &rule) && change.phase != Phase::Expanding {
            return Err(Error::WholeTooLate { change: change.name.clone(), phase: change.phase });
        }
        Binding::to_table(rule, &owned_table(change.relation)?, catalog::rule_owner(change.id)).map(drop)
    };
    let now = right.find()?;
    let (change, rule) = if altered(&now) == now.rule {
        let change = right.lock_patiently()?;
        (change.clone(), change.rule)
    } else {
        let table = ddl::lock(&|| right.lock(), check)?;
        let rule = altered(&table.change);
        ddl::set_rule(&table, &rule)?;
        if widens(&table.change, &rule) {
            // Rows that were passed over are pending now.
            catalog::restart_lanes(right.id)?;
        }
        (table.change, rule)
    };
    if let Some(sql) = run_if.filter(|sql| !sql.is_empty()) {
        check_condition(&change, sql)?;
    }
    catalog::set_options(&change, batch_target, max_rows, run_if)?;
    let detail = json!({
        "unmatched": rule.unmatched, "conflict": rule.conflict,
        "batch_target_ms": batch_target.map(|target| target.as_millis() as u64), "max_rows_per_second": max_rows,
        "run_if": run_if,
    });
    if rule == change.rule {
        catalog::record(change.id, &change.name, "altered", detail)?;
    } else {
        catalog::record_and_claim(&change, "altered", detail)?;
    }
    Ok(change.name)
}

/// A condition must be one that can be evaluated.
fn check_condition(change: &Change, sql: &str) -> Result<(), Error> {
    let bad = |message| Error::BadCondition { sql: sql.to_owned(), message };
    match catch(|| signals::condition(change, sql)) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(bad(error.message())),
        Err(error) if error.is_about_data() => Err(bad(error.message())),
        Err(error) => Err(Error::Caught(error)),
    }
}

/// Hands the backfill to background workers, which begin when this transaction commits.
#[pg_extern(sql = r#"
create function zdd.start_backfill(change text, workers integer default 1, fire_triggers boolean default false)
returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn start_backfill(
    change: Option<&str>,
    workers: Option<i32>,
    fire_triggers: Option<bool>,
) -> Result<String, ErrorReport> {
    let right = right(change)?;
    let workers = workers.ok_or(Error::MissingArgument { argument: "workers" })?;
    let allowed = 1..=catalog::MAX_WORKERS;
    let workers = u32::try_from(workers).ok().filter(|workers| allowed.contains(workers)).ok_or_else(|| {
        Error::BadNumber { argument: "workers", value: workers.to_string(), allowed: "a number from 1 to 32" }
    })?;
    let change = run::request(&right, workers, fire_triggers.unwrap_or(false))?;
    launch_at_commit(change.id, workers);
    Ok(change.name)
}

/// Hands the contract to a background worker, which begins when this transaction commits.
#[pg_extern(sql = r#"
create function zdd.start_contract(
    change text, accept_unmatched boolean default false, force boolean default false,
    accept_lossy boolean default false, archive text default null
) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn start_contract(
    change: Option<&str>,
    accept_unmatched: Option<bool>,
    force: Option<bool>,
    accept_lossy: Option<bool>,
    archive: Option<String>,
) -> Result<String, ErrorReport> {
    let consent = Consent {
        accept_unmatched: accept_unmatched.unwrap_or(false),
        accept_lossy: accept_lossy.unwrap_or(false),
        force: force.unwrap_or(false),
        archive: archive.as_deref(),
    };
    let right = right(change)?;
    contract::begin(right.clone(), consent, 1)?;
    launch_at_commit(right.id, 1);
    Ok(right.name)
}

/// Stops a backfill, wherever it runs, until it is resumed.
#[pg_extern(sql = r#"
create function zdd.pause(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn pause(change: Option<&str>) -> Result<String, ErrorReport> {
    let change = right(change)?.lock_patiently()?;
    match &change.job {
        Some(Job { kind: JobKind::Backfill, stopped: None, .. }) => {
            catalog::stop_job(change.id, "paused")?;
            interrupt(&change)?;
            catalog::record_and_claim(&change, "paused", json!({}))?;
            Ok(change.name)
        }
        Some(Job { kind: JobKind::Backfill, stopped: Some(stopped), .. }) if !stopped.by_error => Ok(change.name),
        _ => Err(Error::NothingToPause { change: change.name })?,
    }
}

/// Goes on with what was paused, stopped by an error, or left behind by a worker that is gone, in background workers.
#[pg_extern(sql = r#"
create function zdd.resume(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn resume(change: Option<&str>) -> Result<String, ErrorReport> {
    let change = right(change)?.lock_patiently()?;
    let missing = |job: &Job| -> Result<bool, Error> {
        Ok(match job.workers {
            // Whoever works on it will do.
            0 => catalog::live(change.id)? == 0,
            workers => catalog::live_workers(change.id)? < workers,
        })
    };
    let job = match &change.job {
        Some(job) if job.stopped.is_some() || missing(job)? => job,
        _ => return Err(Error::NotPaused { change: change.name })?,
    };
    let workers = job.workers.max(1);
    if job.workers == 0 {
        let what = job.kind.as_str();
        pgrx::notice!("the {what} of change \"{}\", begun by a session, goes on in a background worker", change.name);
    }
    catalog::set_job(&change, job.kind, workers, job.options.clone(), "resumed")?;
    launch_at_commit(change.id, workers);
    Ok(change.name)
}

/// Waits until a change has reached a phase.
#[pg_extern(sql = r#"
create procedure zdd.wait_for(change text, phase text, timeout interval default null)
language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn wait_for(
    change: Option<String>,
    phase: Option<String>,
    timeout: Option<Interval>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<(), ErrorReport> {
    const PHASES: &[&str] = &["expanding", "expanded", "fenced", "contracted", "rolled_back"];
    let session = Session::of_procedure("wait_for", fcinfo)?;
    let wanted: Phase = word("phase", phase.as_deref(), PHASES)?;
    let timeout = timeout.map(|timeout| Duration::from_micros(timeout.as_micros().max(0) as u64));
    let name = change.ok_or(Error::MissingArgument { argument: "change" })?;
    let right = session.transaction(|| match right(Some(&name)) {
        Err(Error::Final { phase, .. }) if phase == wanted => Ok(None),
        right => right.map(Some),
    })?;
    let Some(right) = right else { return Ok(()) };
    let start = Instant::now();
    loop {
        let reached = session.transaction(|| match right.find() {
            Err(Error::Final { phase, .. }) if phase == wanted => Ok(true),
            Err(error) => Err(error),
            Ok(change) => {
                if change.phase.has_reached(wanted) {
                    return Ok(true);
                }
                if let Some(Job { stopped: Some(stopped), .. }) = &change.job {
                    return Err(stopped.error(&name));
                }
                let waited = start.elapsed();
                if timeout.is_some_and(|timeout| waited >= timeout) {
                    let waiting_for = catalog::waiting_for(change.id)?;
                    return Err(Error::NotReached {
                        change: name.clone(),
                        phase: change.phase,
                        wanted,
                        waited,
                        waiting_for,
                    });
                }
                // Where no slot was free, one may be by now.
                launch_missing(&change, catalog::remaining(change.id)?.lanes)?;
                Ok(false)
            }
        })?;
        if reached {
            return Ok(());
        }
        // Not long beside what has been waited for already.
        sleep((start.elapsed() / 64).clamp(Duration::from_millis(10), Duration::from_millis(500)));
    }
}

/// Rehearses the contract: renames the old column out of the applications' reach; dual writes go on. Takes ACCESS
/// EXCLUSIVE as split_column does.
#[pg_extern(sql = r#"
create function zdd.fence(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn fence(change: Option<&str>) -> Result<String, ErrorReport> {
    let right = right(change)?;
    ddl::fence(&ddl::lock(&|| right.lock(), ddl::check_fence)?)?;
    Ok(Phase::Fenced.as_str().into())
}

/// Takes a fence back at once. Locks as fence does.
#[pg_extern(sql = r#"
create function zdd.unfence(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn unfence(change: Option<&str>) -> Result<String, ErrorReport> {
    let right = right(change)?;
    ddl::unfence(&ddl::lock(&|| right.lock(), ddl::check_unfence)?)?;
    Ok(Phase::Expanded.as_str().into())
}

/// Gives a change up: drops the new columns and the trigger. Locks as fence does.
#[pg_extern(sql = r#"
create function zdd.rollback(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn rollback(change: Option<&str>) -> Result<String, ErrorReport> {
    let name = change.ok_or(Error::MissingArgument { argument: "change" })?;
    match right(Some(name)) {
        // There is nothing left that anybody could lose.
        Err(Error::TableGone { .. }) if catalog::end_if_table_is_gone(&catalog::find(name)?)? => {}
        right => {
            let right = right?;
            if catalog::archive(right.id)?.is_some() {
                archive::discard(&right.lock_patiently()?)?;
            }
            ddl::roll_back(&|| right.lock())?;
        }
    }
    Ok(Phase::RolledBack.as_str().into())
}

/// Drops the old column, once it is known that nothing is lost and nobody uses it. Scans the table under locks that let
/// reads and writes through; the last step takes ACCESS EXCLUSIVE as split_column does.
#[pg_extern(sql = r#"
create procedure zdd.contract(
    change text, accept_unmatched boolean default false, force boolean default false,
    accept_lossy boolean default false, archive text default null
) language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn contract_change(
    change: Option<String>,
    accept_unmatched: Option<bool>,
    force: Option<bool>,
    accept_lossy: Option<bool>,
    archive: Option<String>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<(), ErrorReport> {
    let session = Session::of_procedure("contract", fcinfo)?;
    let consent = Consent {
        accept_unmatched: accept_unmatched.unwrap_or(false),
        accept_lossy: accept_lossy.unwrap_or(false),
        archive: archive.as_deref(),
        force: force.unwrap_or(false),
    };
    let right = session.transaction(|| right(change.as_deref()))?;
    let slot = catalog::take_slot(right.id, None);
    let claim = session.transaction(|| contract::begin(right, consent, 0))?;
    Ok(contract::contract(&session, &claim, consent, |what, waiting| match &slot {
        Some(slot) => show(&session, slot, claim.name(), what, waiting),
        None => Ok(()),
    })?)
}

/// Behind the view zdd.usage, for a change by its id. Takes no locks. Shows to everybody what the view does.
#[pg_extern(sql = r#"
create function zdd.usage(change_id bigint)
returns table (
    side text, role text, application_name text, reads bigint, writes bigint, rows bigint, conflicts bigint,
    errors bigint, whole_row bigint, first_seen timestamptz, last_seen timestamptz, sample_query text
) language c strict as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity)]
fn usage_of_change(
    change_id: i64,
) -> Result<
    TableIterator<
        'static,
        (
            name!(side, String),
            name!(role, String),
            name!(application_name, String),
            name!(reads, i64),
            name!(writes, i64),
            name!(rows, i64),
            name!(conflicts, i64),
            name!(errors, i64),
            name!(whole_row, i64),
            name!(first_seen, Option<TimestampWithTimeZone>),
            name!(last_seen, Option<TimestampWithTimeZone>),
            name!(sample_query, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let Some(change) = catalog::find_by_id(change_id)? else { return Ok(TableIterator::new([])) };
    let Some(mut entries) = report::entries(&change) else { return Ok(TableIterator::new([])) };
    entries.retain(Entry::is_counted);
    // Which side these will write, nobody knows yet.
    let mut subscriptions = report::subscriptions(change.relation)?;
    subscriptions.retain(|(name, _)| entries.iter().all(|entry| entry.application != *name));
    let shows_samples = report::may_see_samples();
    let counted = entries.into_iter().map(move |entry| {
        (
            entry.side.as_str().to_owned(),
            role_name(entry.role.into()),
            entry.application,
            entry.reads as i64,
            entry.writes as i64,
            entry.rows as i64,
            entry.conflicts as i64,
            entry.errors as i64,
            entry.whole_row as i64,
            TimestampWithTimeZone::try_from(entry.first_seen).ok(),
            TimestampWithTimeZone::try_from(entry.last_seen).ok(),
            Some(entry.sample).filter(|_| shows_samples),
        )
    });
    let silent = subscriptions.into_iter().flat_map(move |(name, owner)| {
        [Side::Old, Side::New].map(|side| {
            let sample = shows_samples.then(|| LOGICAL_REPLICATION.to_owned());
            (side.as_str().to_owned(), owner.clone(), name.clone(), 0, 0, 0, 0, 0, 0, None, None, sample)
        })
    });
    Ok(TableIterator::new(counted.chain(silent)))
}

/// Behind the column conflicts of the view zdd.changes.
#[pg_extern(sql = r#"
create function zdd.conflicts(change_id bigint, relation oid) returns bigint
language c strict stable as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn conflicts(change_id: i64, relation: pg_sys::Oid) -> Option<i64> {
    report::conflicts(change_id, relation).map(|count| count as i64)
}

/// Behind the view zdd.usage_info. Says nothing of single entries, which may be of other databases.
#[pg_extern(sql = r#"
create function zdd.usage_info()
returns table (
    recorded_since timestamptz, saved_at timestamptz, entries integer, entries_max integer, evicted bigint,
    memory_bytes bigint
) language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity)]
fn usage_info() -> TableIterator<
    'static,
    (
        name!(recorded_since, Option<TimestampWithTimeZone>),
        name!(saved_at, Option<TimestampWithTimeZone>),
        name!(entries, i32),
        name!(entries_max, i32),
        name!(evicted, i64),
        name!(memory_bytes, i64),
    ),
> {
    TableIterator::new(report::info().map(|info| {
        (
            TimestampWithTimeZone::try_from(info.recorded_since).ok(),
            info.saved_at.and_then(|time| TimestampWithTimeZone::try_from(time).ok()),
            info.entries as i32,
            info.entries_max as i32,
            info.evicted as i64,
            info.memory as i64,
        )
    }))
}

/// Sets the counters of a change in zdd.usage to zero when the transaction commits. When somebody was last seen is kept for the contract.
#[pg_extern(sql = r#"
create function zdd.reset_usage(change text) returns text language c as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn reset_usage(change: Option<&str>) -> Result<String, ErrorReport> {
    let change = right(change)?.find()?;
    report::reset(&change);
    Ok(change.name)
}

/// Called by the catalog: an error if a change may not move from one phase to the other.
#[pg_extern(sql = r#"
create function zdd._check_move(change text, source text, destination text) returns void
language c immutable as 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn check_move(change: Option<&str>, source: Option<&str>, destination: Option<&str>) -> Result<(), ErrorReport> {
    let (Some(change), Some(source), Some(destination)) = (change, source, destination) else { return Ok(()) };
    // What is no phase at all is left to the table's own check.
    let (Ok(source), Ok(destination)) = (source.parse(), destination.parse()) else { return Ok(()) };
    let moved = crate::phase::move_to(source, destination);
    Ok(moved.map_err(|illegal| Error::Move { change: change.to_owned(), illegal })?)
}

/// What split_column and preview_split have in common.
struct Draft {
    relation: pg_sys::Oid,
    source: String,
    columns: Vec<ColumnDefinition>,
    split: Split,
    join: Join,
    unmatched: Unmatched,
}

impl Draft {
    #[allow(clippy::too_many_arguments)]
    fn new(
        relation: Option<pg_sys::Oid>,
        source: Option<&core::ffi::CStr>,
        columns: Option<&str>,
        regex: Option<String>,
        delimiter: Option<String>,
        split_sql: Option<Vec<Option<String>>>,
        join: Option<String>,
        join_sql: Option<String>,
        unmatched: Option<&str>,
    ) -> Result<(Draft, Table), Error> {
        let missing = |argument| Error::MissingArgument { argument };
        let encoding = crate::pg::parse::database_encoding();
        if encoding != "UTF8" {
            return Err(Error::NotUtf8 { encoding });
        }
        let split_sql = split_sql
            .map(|texts| texts.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| missing("split_sql")))
            .transpose()?;
        let split = match (regex, delimiter, split_sql) {
            (Some(regex), None, None) => Split::Regex(regex),
            (None, Some(delimiter), None) => Split::Delimiter(delimiter),
            (None, None, Some(texts)) => Split::Sql(texts),
            (None, None, None) => return Err(Error::NoSplitRule),
            _ => return Err(Error::SeveralSplitRules),
        };
        let join = match (join, join_sql, &split) {
            (Some(template), None, _) => Join::Template(template),
            (None, Some(text), _) => Join::Sql(text),
            (None, None, Split::Delimiter(delimiter)) => Join::Delimiter(delimiter.clone()),
            (None, None, _) => return Err(Error::NoJoinRule),
            (Some(_), Some(_), _) => return Err(Error::SeveralJoinRules),
        };
        let relation = relation.ok_or_else(|| missing("relation"))?;
        let source = source.ok_or_else(|| missing("source"))?.to_string_lossy().into_owned();
        let columns = columns.ok_or_else(|| missing("columns"))?;
        let unmatched = word("unmatched", unmatched, &["null", "whole", "error"])?;
        let table = owned_table(relation)?;
        let columns = as_owner_for_caller(table.owner(), |gate| column_definitions(gate, columns))?;
        Ok((Draft { relation, source, columns, split, join, unmatched }, table))
    }

    fn rule(&self, table: &Table, change: String, conflict: Conflict) -> Result<Rule, Error> {
        for column in &self.columns {
            if column.column_type.has_domain_constraints() {
                let type_name = column.column_type.name();
                return Err(Error::ConstrainedDomain { column: column.name.clone(), type_name });
            }
        }
        let targets = self.columns.iter().map(|column| Target {
            name: column.name.clone(),
            type_name: column.column_type.name(),
            not_null: column.not_null,
            max_bytes: None,
        });
        Ok(Rule {
            version: Rule::VERSION,
            id: 0,
            change,
            source: Column {
                name: self.source.clone(),
                renamed_to: None,
                type_name: self.source_type(table)?.1.name(),
            },
            targets: targets.collect(),
            split: self.split.clone(),
            join: self.join.clone(),
            unmatched: self.unmatched,
            conflict,
            max_source_length: guc::max_source_length(),
            expanding: true,
        })
    }

    fn source_type(&self, table: &Table) -> Result<(i16, ColumnType), Error> {
        let attribute = table
            .attribute(&self.source)
            .ok_or_else(|| Error::NoSuchColumn { relation: table.name(), column: self.source.clone() })?;
        Ok((attribute.number, ColumnType::new(attribute.type_oid, attribute.typmod, attribute.collation)))
    }

    /// The rule for a table that does not have the new columns yet.
    fn bind(&self, rule: Rule, table: &Table) -> Result<Binding, Error> {
        let targets = self.columns.iter().map(|column| column.column_type.clone()).collect();
        let owner = class::owner(table.root()).unwrap_or_else(|| table.owner());
        Binding::to_types(rule, self.source_type(table)?, targets, owner, &|uses| ddl::check_uses(uses, owner))
    }
}

/// Indexes are on new columns alone.
fn check_indexes(indexes: &[String], rule: &Rule) -> Result<(), Error> {
    let names = || rule.targets.iter().map(|target| target.name.clone());
    for column in indexes.iter().flat_map(|index| catalog::index_columns(index)) {
        if !names().any(|name| name == column) {
            return Err(Error::UnknownIndexColumn { column, targets: names().collect() });
        }
    }
    Ok(())
}

/// A B-tree refuses entries of more than 2,704 bytes. What the old application writes must not fail for an index on the new
/// columns, so longer parts do not fit.
fn limit_indexed(rule: &mut Rule, indexes: &[String]) {
    const ENTRY: usize = 2600;
    for columns in indexes.iter().map(|index| catalog::index_columns(index)) {
        let most = ENTRY / columns.len().max(1);
        for target in rule.targets.iter_mut().filter(|target| columns.contains(&target.name)) {
            target.max_bytes = Some(target.max_bytes.map_or(most, |other| other.min(most)));
        }
    }
}

/// The table, if the caller may act for its owner.
fn owned_table(relation: pg_sys::Oid) -> Result<Table, Error> {
    let table = ddl::open(relation)?;
    if acts_for(current_role(), table.owner()) { Ok(table) } else { Err(Error::NotOwner { relation: table.name() }) }
}

/// The caller's right to an active change.
fn right(name: Option<&str>) -> Result<Right, Error> {
    Right::new(name.ok_or(Error::MissingArgument { argument: "change" })?, current_role())
}

fn word<T: std::str::FromStr>(
    argument: &'static str,
    value: Option<&str>,
    allowed: &'static [&'static str],
) -> Result<T, Error> {
    let value = value.ok_or(Error::MissingArgument { argument })?;
    let bad = || Error::BadWord { argument, value: value.to_owned(), allowed };
    if !allowed.contains(&value) {
        return Err(bad());
    }
    value.parse().map_err(|_| bad())
}

fn positive(argument: &'static str, value: Option<i32>) -> Result<u32, Error> {
    let value = value.ok_or(Error::MissingArgument { argument })?;
    u32::try_from(value).ok().filter(|value| *value > 0).ok_or_else(|| Error::BadNumber {
        argument,
        value: value.to_string(),
        allowed: "a number from 1",
    })
}

fn batch_time(interval: Interval) -> Result<Duration, Error> {
    const ALLOWED: std::ops::RangeInclusive<i64> = 1_000..=10_000_000;
    let micros = interval.as_micros();
    let micros = i64::try_from(micros).ok().filter(|micros| ALLOWED.contains(micros));
    micros.map(|micros| Duration::from_micros(micros.unsigned_abs())).ok_or_else(|| Error::BadNumber {
        argument: "batch_target",
        value: format!("{} microseconds", interval.as_micros()),
        allowed: "an interval from 1 millisecond to 10 seconds",
    })
}
