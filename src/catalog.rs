//! The only reader and writer of zdd's tables.

use std::cell::Cell;
use std::time::Duration;

use pgrx::datum::{DatumWithOid, JsonB, TimestampWithTimeZone};
use pgrx::pg_sys;
use pgrx::spi::{SpiHeapTupleData, SpiResult};
use serde_json::json;

use crate::error::Error;
use crate::guc;
use crate::patience::{self, with_patience};
use crate::pg::inheritance::ancestors;
use crate::pg::lock::{SessionLock, lock_key, wait_for_key};
use crate::pg::security::{acts_for, as_extension, role_name, session_role};
use crate::pg::table::{Table, Tid};
use crate::pg::{class, extension, lookup};
use crate::phase::{Phase, move_to};
use crate::rule::Rule;
use crate::usage;

/// An active change.
#[derive(Clone, Debug)]
pub struct Change {
    pub id: i64,
    pub name: String,
    pub relation: pg_sys::Oid,
    pub phase: Phase,
    /// How long it has been in this phase.
    pub in_phase: Duration,
    pub rule: Rule,
    pub batch_target: Duration,
    /// 0 for no limit.
    pub max_rows_per_second: u32,
    /// An SQL expression that must be true for the backfill to go on.
    pub run_if: Option<String>,
    /// The columns of each index that is to be built.
    pub indexes: Vec<Vec<String>>,
    pub job: Option<Job>,
    /// The last event that has changed what work on it stands on, see [`Claim`].
    pub claim: i64,
}

/// What is to be done for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub kind: JobKind,
    /// How many background workers it is to have; 0 when sessions do it.
    pub workers: u32,
    /// Who asked for it.
    pub role: pg_sys::Oid,
    /// The claim that it was asked for under, or has moved on itself.
    pub claim: i64,
    pub options: JobOptions,
    /// Nobody is to go on with it.
    pub stopped: Option<Stopped>,
}

/// The kinds of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Backfill,
    Contract,
}

/// Why a job was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// An error, or else somebody paused it.
    pub by_error: bool,
    pub role: String,
    pub error: Option<String>,
    pub error_hint: Option<String>,
}

/// What the caller asked for, and what a worker that takes over must know.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct JobOptions {
    pub fire_triggers: bool,
    pub accept_unmatched: bool,
    pub accept_lossy: bool,
    pub force: bool,
    /// The name of the table that keeps what would be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The fence that is up is the contract's own, which goes when it is refused.
    pub own_fence: bool,
}

impl Change {
    /// Whether the fence that is up is that of a contract.
    pub fn has_own_fence(&self) -> bool {
        self.phase == Phase::Fenced && self.job.as_ref().is_some_and(|job| job.options.own_fence)
    }

    /// Whether nobody is to go on with it.
    pub fn is_stopped(&self) -> bool {
        self.job.as_ref().is_none_or(|job| job.stopped.is_some())
    }

    /// Whether a contract was asked for and neither done nor stopped. What a session that is gone has left behind counts only
    /// with a fence that is up.
    pub fn is_contracting(&self) -> Result<bool, Error> {
        Ok(match &self.job {
            Some(Job { kind: JobKind::Contract, stopped: None, workers, options, .. }) => {
                *workers > 0 || options.own_fence || live(self.id)? > 0
            }
            _ => false,
        })
    }
}

impl Stopped {
    /// What to tell those who wait for the job.
    pub fn error(&self, change: &str) -> Error {
        let change = change.to_owned();
        if self.by_error {
            Error::Stopped { change, error: self.error.clone().unwrap_or_default(), hint: self.error_hint.clone() }
        } else {
            Error::Paused { change, role: self.role.clone() }
        }
    }
}

impl JobKind {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Contract => "contract",
        }
    }
}

/// A row of zdd.lane.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    pub change_id: i64,
    pub relation: pg_sys::Oid,
    pub number: i32,
    pub file: pg_sys::Oid,
    pub first_block: u32,
    pub next_block: u32,
    pub end_block: u32,
}

/// The right to act for a change. Names may come to mean something else, and rights may go, so both are asked for again
/// whenever the change is read.
#[derive(Clone, Debug)]
pub struct Right {
    pub id: i64,
    pub name: String,
    pub relation: pg_sys::Oid,
    role: pg_sys::Oid,
}

impl Right {
    /// The right of a role to an active change of this name.
    pub fn new(name: &str, role: pg_sys::Oid) -> Result<Right, Error> {
        let change = find(name)?;
        let right = Right { id: change.id, name: change.name, relation: change.relation, role };
        right.check()?;
        Ok(right)
    }

    /// The change as it is now, unlocked.
    pub fn find(&self) -> Result<Change, Error> {
        self.checked(read(&format!("{ACTIVE} where c.id = $1"), &[self.id.into()], change)?)
    }

    /// The change as it is now, locked against other verbs until the end of the transaction. An error if somebody else has it
    /// for longer than `zdd.lock_timeout`.
    pub fn lock(&self) -> Result<Change, Error> {
        self.checked(self.lock_row()?)
    }

    fn lock_row(&self) -> Result<Vec<Change>, Error> {
        if !lock_key(CHANGE, self.id as u32, guc::lock_timeout()) {
            let holders = patience::holders_of_key(CHANGE, self.id as u32)?;
            return Err(Error::ChangeLocked { change: self.name.clone(), holders });
        }
        // What the lock's last holder has done to the change is seen, or else an error: each verb writes the row.
        write(&format!("{ACTIVE} where c.id = $1 for update of c"), &[self.id.into()], change)
    }

    /// The same, tried again and again for `zdd.lock_patience`.
    pub fn lock_patiently(&self) -> Result<Change, Error> {
        let locked = with_patience(guc::lock_patience(), || self.lock(), || Ok(()))?;
        locked.map_err(|gave_up| gave_up.error)
    }

    fn checked(&self, found: Vec<Change>) -> Result<Change, Error> {
        let change = self.active(found)?;
        self.check()?;
        Ok(change)
    }

    fn active(&self, found: Vec<Change>) -> Result<Change, Error> {
        match found.into_iter().next() {
            Some(change) if change.phase.is_active() && change.relation == self.relation => Ok(change),
            Some(change) => Err(Error::Final { change: change.name, phase: change.phase }),
            None => Err(Error::NoSuchChange { change: self.name.clone() }),
        }
    }

    fn check(&self) -> Result<(), Error> {
        match class::owner(self.relation) {
            Some(owner) if acts_for(self.role, owner) => Ok(()),
            Some(_) => Err(Error::NotOwner { relation: class::name(self.relation) }),
            None => Err(Error::TableGone { change: self.name.clone() }),
        }
    }
}

/// What goes on over several transactions works under a claim: the number of the last event that has changed what such work
/// stands on. Whoever does so later moves it on, and each of the work's transactions finds out.
#[derive(Clone, Debug)]
pub struct Claim {
    right: Right,
    number: Cell<i64>,
    work: &'static str,
}

impl Claim {
    /// Claims a change as it is now.
    pub fn new(right: Right, change: &Change, work: &'static str) -> Claim {
        Claim { right, number: Cell::new(change.claim), work }
    }

    /// The claim of background workers, who act for the role that asked for the job.
    pub fn of_job(change: &Change) -> Option<Claim> {
        let job = change.job.as_ref()?;
        let right = Right { id: change.id, name: change.name.clone(), relation: change.relation, role: job.role };
        // A backfill goes on with whatever was changed. A contract does not.
        let number = if job.kind == JobKind::Backfill { change.claim } else { job.claim };
        Some(Claim { right, number: Cell::new(number), work: job.kind.as_str() })
    }

    pub fn id(&self) -> i64 {
        self.right.id
    }

    pub fn name(&self) -> &str {
        &self.right.name
    }

    pub fn relation(&self) -> pg_sys::Oid {
        self.right.relation
    }

    /// Whose claim it is.
    pub fn role(&self) -> pg_sys::Oid {
        self.right.role
    }

    /// The change as it is now, unlocked; an error if the claim has moved on.
    pub fn find(&self) -> Result<Change, Error> {
        self.unmoved(self.right.find()?)
    }

    /// The same, locked; see [`Right::lock`].
    pub fn lock(&self) -> Result<Change, Error> {
        self.unmoved(self.right.lock()?)
    }

    /// The change as it is now, locked, whoever has changed what the work stood on, and whoever may: to take back what is the
    /// work's own.
    pub fn lock_anyway(&self) -> Result<Change, Error> {
        self.right.active(self.right.lock_row()?)
    }

    /// The change as it is now. The work goes on with it, whatever was changed.
    pub fn follow(&self) -> Result<Change, Error> {
        let change = self.right.find()?;
        self.number.set(change.claim);
        Ok(change)
    }

    /// Whether the change's job is still the one that this work does.
    pub fn has_job(&self, change: &Change) -> bool {
        change.job.as_ref().is_some_and(|job| job.claim == self.number.get())
    }

    /// Goes on after a step of its own that has moved the claim.
    pub fn move_on(&self, number: i64) {
        self.number.set(number);
    }

    fn unmoved(&self, change: Change) -> Result<Change, Error> {
        if change.claim == self.number.get() {
            return Ok(change);
        }
        let sql = "select e.event, e.detail ? 'renamed_to', e.role, e.at::text from zdd.event as e where e.id = $1";
        let moved = read(sql, &[change.claim.into()], |row| {
            Ok((verb(&get::<String>(row, 1)?, get(row, 2)?), get(row, 3)?, get(row, 4)?))
        })?;
        let (verb, role, at) = moved.into_iter().next().unwrap_or_default();
        Err(Error::ClaimMoved { change: change.name, work: self.work, verb, role, at })
    }
}

/// What has written an event that moves a claim.
fn verb(event: &str, renames: bool) -> &'static str {
    match event {
        "fenced" => "fence",
        "expanded" if renames => "unfence",
        "expanded" => "the end of a backfill",
        "altered" => "alter_change",
        "paused" => "pause",
        "resumed" => "resume",
        "backfill_started" | "backfill_resumed" => "the beginning of a backfill",
        "contract_started" => "the beginning of a contract",
        "repair_started" => "the beginning of a repair",
        _ => "a verb",
    }
}

const ACTIVE: &str = "select c.id, c.name, coalesce(c.relation, 0)::oid, c.phase,
    extract(epoch from clock_timestamp() - c.phase_since)::double precision, c.rule,
    (extract(epoch from c.batch_target) * 1000)::integer, coalesce(c.max_rows_per_second, 0), c.run_if, c.indexes,
    j.kind, j.workers, j.options, j.stopped, coalesce(j.stopped_by, ''), j.last_error, j.last_error_hint, j.requested_role,
    j.claim, c.claim
  from zdd.change as c left join zdd.job as j on j.change_id = c.id";

/// The active change of this name, unlocked.
pub fn find(name: &str) -> Result<Change, Error> {
    let found = read(&format!("{ACTIVE} where c.relation is not null and c.name = $1"), &[name.into()], change)?;
    found.into_iter().next().map_or_else(|| Err(missing(name)), Ok)
}

/// The active change with this id.
pub fn find_by_id(id: i64) -> Result<Option<Change>, Error> {
    let found = read(&format!("{ACTIVE} where c.relation is not null and c.id = $1"), &[id.into()], change)?;
    Ok(found.into_iter().next())
}

/// The same, locked until the end of the transaction, for the server's own work: whoever asked for it may have lost the
/// right to it.
pub fn lock_by_id(id: i64) -> Result<Option<Change>, Error> {
    wait_for_key(CHANGE, id as u32);
    let sql = format!("{ACTIVE} where c.relation is not null and c.id = $1 for update of c");
    Ok(write(&sql, &[id.into()], change)?.into_iter().next())
}

/// The active changes that a table takes part in.
pub fn of_table(relation: pg_sys::Oid) -> Result<Vec<Change>, Error> {
    of_relations(&ancestors(relation))
}

/// The active changes of these tables themselves.
pub fn of_relations(relations: &[pg_sys::Oid]) -> Result<Vec<Change>, Error> {
    // Written as a join, so that the index on the relation is used however many changes there are.
    let sql = format!("{ACTIVE} where c.relation = any ($1::oid[]) and c.relation is not null order by c.id");
    read(&sql, &[relations.to_vec().into()], change)
}

/// All active changes.
pub fn all() -> Result<Vec<Change>, Error> {
    read(&format!("{ACTIVE} where c.relation is not null order by c.id"), &[], change)
}

/// Ends a change whose table went while no event trigger fired. Returns whether it was one.
pub fn end_if_table_is_gone(change: &Change) -> Result<bool, Error> {
    let gone = class::find(change.relation).is_none();
    if gone {
        set_phase(change, Phase::RolledBack, json!({ "reason": "the table was dropped" }))?;
    }
    Ok(gone)
}

/// Why there is no active change of this name.
fn missing(name: &str) -> Error {
    let sql = "select c.phase from zdd.change as c where c.name = $1 order by c.id desc limit 1";
    let phase = read(sql, &[name.into()], |row| get::<String>(row, 1));
    match phase.ok().and_then(|phases| phases.first()?.parse().ok()) {
        Some(phase) => Error::Final { change: name.to_owned(), phase },
        None => Error::NoSuchChange { change: name.to_owned() },
    }
}

fn change(row: &SpiHeapTupleData) -> Result<Change, Error> {
    let phase: String = get(row, 4)?;
    let seconds: f64 = get(row, 5)?;
    let rule: JsonB = get(row, 6)?;
    Ok(Change {
        id: get(row, 1)?,
        name: get(row, 2)?,
        relation: get(row, 3)?,
        phase: phase.parse().map_err(|()| Error::Spi(format!("unknown phase {phase}")))?,
        in_phase: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
        rule: Rule::from_json(&rule.0.to_string())?,
        batch_target: Duration::from_millis(get::<i32>(row, 7)?.unsigned_abs().into()),
        max_rows_per_second: get::<i32>(row, 8)?.unsigned_abs(),
        run_if: row.get(9)?,
        indexes: get::<Vec<String>>(row, 10)?.iter().map(|columns| index_columns(columns)).collect(),
        job: row.get::<String>(11)?.map(|kind| job(&kind, row)).transpose()?,
        claim: get(row, 20)?,
    })
}

/// The columns of an index, as split_column was given them.
pub fn index_columns(columns: &str) -> Vec<String> {
    columns.split(',').map(|column| column.trim().to_owned()).collect()
}

fn job(kind: &str, row: &SpiHeapTupleData) -> Result<Job, Error> {
    let options: JsonB = get(row, 13)?;
    let stopped = match row.get::<String>(14)? {
        None => None,
        Some(reason) => Some(Stopped {
            by_error: reason == "error",
            role: get(row, 15)?,
            error: row.get(16)?,
            error_hint: row.get(17)?,
        }),
    };
    Ok(Job {
        role: get(row, 18)?,
        claim: get(row, 19)?,
        kind: if kind == JobKind::Contract.as_str() { JobKind::Contract } else { JobKind::Backfill },
        workers: get::<i32>(row, 12)?.unsigned_abs(),
        options: serde_json::from_value(options.0).map_err(|error| Error::Spi(error.to_string()))?,
        stopped,
    })
}

/// The table and the rule of the active change with this id, read without a statement, for those who look while one is being
/// started: as it is now, whatever the statement's snapshot sees.
pub fn registered(id: i64) -> Option<(pg_sys::Oid, Rule)> {
    let (relation, rule) = lookup::registered(id)?;
    Some((relation, Rule::from_json(&rule).ok()?))
}

/// An id for a new change. None is given twice, also not when the transaction is rolled back.
pub fn next_id() -> Result<i64, Error> {
    let id = write("select nextval('zdd.change_id_seq')", &[], |row| get(row, 1))?;
    id.into_iter().next().ok_or_else(|| Error::Spi("no id for the new change".into()))
}

/// Writes down a new change, which begins as expanding.
pub fn insert(rule: &Rule, table: &Table, indexes: &[String]) -> Result<(), Error> {
    let targets: Vec<String> = rule.targets.iter().map(|target| target.name.clone()).collect();
    execute(
        "insert into zdd.change (name, relation, relation_name, source, targets, rule, indexes, started_by, owner, id)
         values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9, $10)",
        &[
            rule.change.as_str().into(),
            table.oid().into(),
            table.name().into(),
            rule.source.name.as_str().into(),
            targets.into(),
            rule.to_json().into(),
            indexes.to_vec().into(),
            role_name(session_role()).into(),
            role_name(table.owner()).into(),
            rule.id.into(),
        ],
    )?;
    usage::begin(rule.id, table.oid());
    Ok(())
}

/// Moves a change to another phase and writes the event. Returns the claim.
pub fn set_phase(change: &Change, to: Phase, detail: serde_json::Value) -> Result<i64, Error> {
    move_to(change.phase, to).map_err(|illegal| Error::Move { change: change.name.clone(), illegal })?;
    execute(
        "update zdd.change as c set phase = $2, phase_since = clock_timestamp(),
             relation = case when $3 then null else c.relation end,
             relation_name = case when $3 and t.oid is not null then c.relation::text else c.relation_name end
         from zdd.change as o left join pg_class as t on t.oid = o.relation
         where c.id = $1 and o.id = c.id",
        &[change.id.into(), to.as_str().into(), to.is_final().into()],
    )?;
    let claim = record_and_claim(change, to.as_str(), detail)?;
    if to.is_final() {
        usage::end(change);
        forget_work(change.id)?;
        execute("delete from zdd.worker where change_id = $1", &[change.id.into()])?;
    } else {
        // Whoever moves it now, the fence of a contract is gone.
        execute("update zdd.job set options = options - 'own_fence' where change_id = $1", &[change.id.into()])?;
    }
    Ok(claim)
}

/// Writes an event that changes what work on the change stands on: who works under another claim stops. Returns the new one.
pub fn record_and_claim(change: &Change, event: &str, detail: serde_json::Value) -> Result<i64, Error> {
    let claim = add_event(change.id, &change.name, event, detail)?;
    execute("update zdd.change set claim = $2 where id = $1", &[change.id.into(), claim.into()])?;
    Ok(claim)
}

/// Remembers that the fence is the contract's own, and the claim that it goes on under.
pub fn set_own_fence(id: i64, claim: i64) -> Result<(), Error> {
    execute(
        "update zdd.job set options = options || jsonb_build_object('own_fence', true), claim = $2
         where change_id = $1 and kind = 'contract'",
        &[id.into(), claim.into()],
    )
}

/// Whether the guard watches over the change.
pub fn is_guarded(id: i64) -> Result<bool, Error> {
    let sql = "select 1 from zdd.guarded where change_id = $1";
    Ok(!read(sql, &[id.into()], |row| get::<i32>(row, 1))?.is_empty())
}

/// Makes the guard watch over the change, and lets the SQL of its rule run as the owner of its table if that is who began
/// it, as far as names tell after a restore.
pub fn set_guarded(id: i64, owner: pg_sys::Oid) -> Result<(), Error> {
    execute(
        "insert into zdd.guarded (change_id, owner)
         select c.id, case when c.owner = $3 then $2::oid end from zdd.change as c where c.id = $1
         on conflict do nothing",
        &[id.into(), owner.into(), role_name(owner).into()],
    )
}

/// As whom the SQL of a change's rule runs.
pub fn rule_owner(id: i64) -> Option<pg_sys::Oid> {
    lookup::rule_owner(id)
}

/// As whom the SQL of a rule may run on a table: only if an active change has registered this rule for it, or for what it is a
/// partition or child of.
pub fn rule_owner_on(relation: pg_sys::Oid, rule: &Rule) -> Option<pg_sys::Oid> {
    let (table, registered) = registered(rule.id)?;
    (registered == *rule && ancestors(relation).contains(&table)).then(|| rule_owner(rule.id)).flatten()
}

/// Writes down that the rule has changed.
pub fn set_rule(change: &Change, rule: &Rule) -> Result<(), Error> {
    execute("update zdd.change set rule = $2::jsonb where id = $1", &[change.id.into(), rule.to_json().into()])
}

/// Changes the settings of the backfill that are not NULL; an empty `run_if` takes the condition away.
pub fn set_options(
    change: &Change,
    batch_target: Option<Duration>,
    max_rows: Option<u32>,
    run_if: Option<&str>,
) -> Result<(), Error> {
    execute(
        "update zdd.change set
             batch_target = coalesce(make_interval(secs => $2), batch_target),
             max_rows_per_second = case when $3 is null then max_rows_per_second else nullif($3, 0) end,
             run_if = case when $4 is null then run_if else nullif($4, '') end
         where id = $1",
        &[
            change.id.into(),
            batch_target.map(|target| target.as_secs_f64()).into(),
            max_rows.map(|rows| rows as i32).into(),
            run_if.into(),
        ],
    )
}

/// Writes down that something is to be done, with the event that says so. What stopped it before no longer counts. Returns
/// the claim that it is done under.
pub fn set_job(change: &Change, kind: JobKind, workers: u32, options: JobOptions, event: &str) -> Result<i64, Error> {
    let claim = record_and_claim(change, event, json!({ "workers": workers }))?;
    let role = crate::pg::security::current_role();
    let options = serde_json::to_value(options).map_err(|error| Error::Spi(error.to_string()))?;
    execute(
        "insert into zdd.job (change_id, kind, workers, options, requested_by, requested_role, claim)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (change_id) do update set kind = excluded.kind, workers = excluded.workers,
             options = excluded.options, claim = excluded.claim, requested_at = excluded.requested_at, requested_by = excluded.requested_by,
             requested_role = excluded.requested_role,
             stopped = null, stopped_at = null, stopped_by = null,
             last_error = null, last_error_hint = null, last_error_at = null",
        &[
            change.id.into(),
            kind.as_str().into(),
            (workers as i32).into(),
            JsonB(options).into(),
            role_name(session_role()).into(),
            role.into(),
            claim.into(),
        ],
    )?;
    Ok(claim)
}

/// Writes down that nobody is to go on with a job: it was paused, or ran into an error.
pub fn stop_job(id: i64, reason: &str) -> Result<(), Error> {
    execute(
        "update zdd.job set stopped = $2, stopped_at = clock_timestamp(), stopped_by = $3
         where change_id = $1 and stopped is null",
        &[id.into(), reason.into(), role_name(session_role()).into()],
    )
}

/// Forgets a job that is done, and who worked on it.
pub fn end_job(id: i64) -> Result<(), Error> {
    for table in ["worker", "sample", "job"] {
        execute(&format!("delete from zdd.{table} where change_id = $1"), &[id.into()])?;
    }
    Ok(())
}

/// Writes an event on behalf of whoever uses the session.
pub fn record(id: i64, name: &str, event: &str, detail: serde_json::Value) -> Result<(), Error> {
    add_event(id, name, event, detail).map(drop)
}

fn add_event(id: i64, name: &str, event: &str, detail: serde_json::Value) -> Result<i64, Error> {
    let id = write(
        "insert into zdd.event (change_id, change, event, detail, role) values ($1, $2, $3, $4, $5) returning id",
        &[id.into(), name.into(), event.into(), JsonB(detail).into(), role_name(session_role()).into()],
        |row| get(row, 1),
    )?;
    id.into_iter().next().ok_or_else(|| Error::Spi("no id for the event".into()))
}

/// Writes down an error that ends the work on a change, which can be resumed.
pub fn record_error(id: i64, name: &str, error: &Error) -> Result<(), Error> {
    let hint = error.detail_and_hint().1.unwrap_or_else(|| Error::RESUME.into());
    set_error(id, &error.message(), Some(&hint))?;
    add_error(id, name, error, Some(&hint))
}

/// Writes down an error that ends the work on a change for good.
pub fn record_end(id: i64, name: &str, error: &Error) -> Result<(), Error> {
    add_error(id, name, error, error.detail_and_hint().1.as_deref())
}

fn add_error(id: i64, name: &str, error: &Error, hint: Option<&str>) -> Result<(), Error> {
    let event = add_event(id, name, "error", json!({ "sqlstate": error.sqlstate() }))?;
    set_event_error(event, &error.message(), error.detail_and_hint().0.as_deref(), hint)
}

/// The text of an error may quote a row, so it is kept where only the table's owner sees it.
fn set_event_error(event: i64, error: &str, detail: Option<&str>, hint: Option<&str>) -> Result<(), Error> {
    execute(
        "insert into zdd.event_error (event_id, error, detail, hint) values ($1, $2, $3, $4)
         on conflict (event_id) do update set error = excluded.error, detail = excluded.detail, hint = excluded.hint",
        &[event.into(), error.into(), detail.into(), hint.into()],
    )
}

/// Writes down an error after which the work is tried again. What comes again and again takes one event an hour, which
/// counts.
pub fn record_retry(id: i64, name: &str, error: &Error) -> Result<(), Error> {
    // Not of a change that is over, or is about to be.
    let active = "select 1 from zdd.change as c where c.id = $1 and c.relation is not null for share skip locked";
    if write(active, &[id.into()], |row| get::<i32>(row, 1))?.is_empty() {
        return Ok(());
    }
    set_error(id, &error.message(), None)?;
    let counted = write(
        "update zdd.event set detail = detail || jsonb_build_object(
             'count', (detail->>'count')::bigint + 1, 'last_at', clock_timestamp())
         where id = (
             select max(e.id) from zdd.event as e
             where e.change_id = $1 and e.event = 'retried' and e.detail->>'sqlstate' = $2
                 and e.at > clock_timestamp() - interval '1 hour')
         returning id",
        &[id.into(), error.sqlstate().into()],
        |row| get::<i64>(row, 1),
    )?;
    let event = match counted.first() {
        Some(event) => *event,
        None => {
            let detail = json!({ "sqlstate": error.sqlstate(), "count": 1 });
            add_event(id, name, "retried", detail)?
        }
    };
    set_event_error(event, &error.message(), error.detail_and_hint().0.as_deref(), None)
}

/// The change that has this column of the table, on either side.
pub fn change_of_column(relation: pg_sys::Oid, column: &str) -> Result<Option<String>, Error> {
    let changes = of_relations(&[relation])?;
    Ok(changes
        .into_iter()
        .find(|change| {
            change.rule.source.name == column
                || change.rule.source.current_name() == column
                || change.rule.targets.iter().any(|target| target.name == column)
        })
        .map(|change| change.name))
}

/// The lanes of a change.
pub fn lanes(id: i64) -> Result<Vec<Lane>, Error> {
    read(&format!("{LANE} where l.change_id = $1 order by l.relation, l.lane"), &[id.into()], lane)
}

const LANE: &str = "select l.change_id, l.relation, l.lane, l.file, l.first_block, l.next_block, l.end_block
    from zdd.lane as l";

fn lane(row: &SpiHeapTupleData) -> Result<Lane, Error> {
    let block = |ordinal| Ok::<_, Error>(u32::try_from(get::<i64>(row, ordinal)?).unwrap_or(u32::MAX));
    Ok(Lane {
        change_id: get(row, 1)?,
        relation: get(row, 2)?,
        number: get(row, 3)?,
        file: get(row, 4)?,
        first_block: block(5)?,
        next_block: block(6)?,
        end_block: block(7)?,
    })
}

/// Creates the lanes of one table anew. What was split before still counts.
pub fn create_lanes(
    id: i64,
    relation: pg_sys::Oid,
    file: pg_sys::Oid,
    lanes: &[crate::backfill::plan::Lane],
) -> Result<(), Error> {
    let rows = write(
        "select coalesce(sum(rows_split), 0)::bigint from zdd.lane where change_id = $1 and relation = $2",
        &[id.into(), relation.into()],
        |row| get::<i64>(row, 1),
    )?;
    drop_lanes(id, relation)?;
    add_lanes(id, relation, file, lanes)?;
    count_rows(id, relation, rows.first().map_or(0, |rows| rows.unsigned_abs()))
}

/// Adds lanes to those that a table has.
pub fn add_lanes(
    id: i64,
    relation: pg_sys::Oid,
    file: pg_sys::Oid,
    lanes: &[crate::backfill::plan::Lane],
) -> Result<(), Error> {
    let starts: Vec<i64> = lanes.iter().map(|lane| lane.start.into()).collect();
    let ends: Vec<i64> = lanes.iter().map(|lane| lane.end.into()).collect();
    execute(
        "insert into zdd.lane (change_id, relation, lane, file, first_block, next_block, end_block)
         select $1, $2, n + (select coalesce(max(l.lane), 0) from zdd.lane as l where l.change_id = $1 and l.relation = $2),
             $3, s, s, e
         from unnest($4::bigint[], $5::bigint[]) with ordinality as t (s, e, n)",
        &[id.into(), relation.into(), file.into(), starts.into(), ends.into()],
    )
}

/// Forgets the lanes of one table.
pub fn drop_lanes(id: i64, relation: pg_sys::Oid) -> Result<(), Error> {
    let args = [id.into(), relation.into()];
    execute("delete from zdd.skipped where change_id = $1 and relation = $2", &args)?;
    execute("delete from zdd.lane where change_id = $1 and relation = $2", &args)
}

/// Makes all lanes begin again.
pub fn restart_lanes(id: i64) -> Result<(), Error> {
    execute(
        "update zdd.lane set next_block = first_block, taken_by = null, vacuumed = false where change_id = $1",
        &[id.into()],
    )
}

/// Takes a table that nobody has begun to vacuum since all its rows are split.
pub fn take_vacuum(id: i64) -> Result<Option<pg_sys::Oid>, Error> {
    let taken = write(
        // Not a subquery: that could run again for each lane, and take one each time.
        "with t as materialized (
             select l.relation from zdd.lane as l where l.change_id = $1 and l.lane = 1 and not l.vacuumed
             order by l.relation limit 1 for update skip locked)
         update zdd.lane as l set vacuumed = true from t
         where l.change_id = $1 and l.relation = t.relation and l.lane = 1 returning l.relation",
        &[id.into()],
        |row| get(row, 1),
    )?;
    Ok(taken.into_iter().next())
}

/// Forgets what is only needed while a change is active, but for who works on it: they may have to be ended.
pub fn forget_work(id: i64) -> Result<(), Error> {
    for table in ["skipped", "lane", "sample", "job", "built_index", "guarded", "written", "archive"] {
        execute(&format!("delete from zdd.{table} where change_id = $1"), &[id.into()])?;
    }
    Ok(())
}

/// Takes a lane that nobody has begun, until the end of the transaction.
pub fn take_free_lane(id: i64) -> Result<Option<Lane>, Error> {
    take_lane("l.taken_by is null order by l.relation, l.lane", &[id.into()])
}

/// Takes a lane that is being worked on, unless somebody else has taken it over.
pub fn take_own_lane(
    id: i64,
    slot: Option<&Slot>,
    (relation, number): (pg_sys::Oid, i32),
) -> Result<Option<Lane>, Error> {
    take_lane(
        "l.taken_by is not distinct from $2 and l.relation = $3 and l.lane = $4",
        &[id.into(), slot_number(slot).into(), relation.into(), number.into()],
    )
}

/// Takes over a lane that was left behind, or one of somebody who has several. Only for whoever has none: it does not
/// compare how many each has.
pub fn take_over_lane(id: i64, slot: Option<&Slot>) -> Result<Option<Lane>, Error> {
    take_lane(
        "(l.taken_by is not distinct from $2
             or not exists (
                 select from pg_locks as k
                 where k.locktype = 'userlock' and k.classid = $3
                     and k.objid = ((l.change_id * 64 + l.taken_by) % 4294967296)::oid
                     and k.database = (select d.oid from pg_database as d where d.datname = current_database()))
             or exists (
                 select from zdd.lane as o
                 where o.change_id = l.change_id and o.taken_by = l.taken_by and o.next_block < o.end_block
                     and (o.relation, o.lane) <> (l.relation, l.lane)))
         order by l.end_block - l.next_block desc",
        &[id.into(), slot_number(slot).into(), pg_sys::Oid::from(WORKERS).into()],
    )
}

/// Takes a lane of change `$1` that has blocks left and that nobody has locked.
fn take_lane(which: &str, args: &[DatumWithOid]) -> Result<Option<Lane>, Error> {
    let sql = format!(
        "{LANE} where l.change_id = $1 and l.next_block < l.end_block and {which} limit 1 for update of l skip locked"
    );
    Ok(write(&sql, args, lane)?.into_iter().next())
}

fn slot_number(slot: Option<&Slot>) -> Option<i32> {
    slot.map(|slot| slot.number as i32)
}

/// What a batch did.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub next_block: u32,
    pub rows: u64,
    pub blocks: u32,
    pub work: Duration,
    pub wal_bytes: u64,
}

/// Moves the cursor of a lane that is taken.
pub fn advance_lane(lane: &Lane, slot: Option<&Slot>, batch: Batch) -> Result<(), Error> {
    execute(
        "update zdd.lane set next_block = $4, rows_split = rows_split + $5, batch_blocks = $6, batch_ms = $7,
             wal_bytes = wal_bytes + $8, taken_by = $9, updated_at = clock_timestamp()
         where change_id = $1 and relation = $2 and lane = $3",
        &[
            lane.change_id.into(),
            lane.relation.into(),
            lane.number.into(),
            i64::from(batch.next_block).into(),
            (batch.rows as i64).into(),
            (batch.blocks as i32).into(),
            (batch.work.as_secs_f32() * 1000.0).into(),
            (batch.wal_bytes as i64).into(),
            slot_number(slot).into(),
        ],
    )
}

/// Adds rows that were split outside of the order of a lane.
pub fn count_rows(id: i64, relation: pg_sys::Oid, rows: u64) -> Result<(), Error> {
    execute(
        "update zdd.lane set rows_split = rows_split + $3, updated_at = clock_timestamp()
         where change_id = $1 and relation = $2 and lane = 1",
        &[id.into(), relation.into(), (rows as i64).into()],
    )
}

/// Remembers blocks with locked rows.
pub fn skip(lane: &Lane, blocks: &[u32]) -> Result<(), Error> {
    let blocks: Vec<i64> = blocks.iter().map(|block| i64::from(*block)).collect();
    execute(
        "insert into zdd.skipped (change_id, relation, block) select $1, $2, unnest($3::bigint[])
         on conflict do nothing",
        &[lane.change_id.into(), lane.relation.into(), blocks.into()],
    )
}

/// Takes a skipped block that nobody else is working on, beginning after the given one.
pub fn take_skipped(id: i64, after: Option<(pg_sys::Oid, u32)>) -> Result<Option<(pg_sys::Oid, u32)>, Error> {
    let (relation, block) = after.map(|(relation, block)| (relation, i64::from(block))).unzip();
    let found = write(
        "select s.relation, s.block from zdd.skipped as s
         where s.change_id = $1 and ($2 is null or (s.relation, s.block) > ($2, $3))
         order by s.relation, s.block limit 1 for update skip locked",
        &[id.into(), relation.into(), block.into()],
        |row| Ok((get(row, 1)?, get::<i64>(row, 2)? as u32)),
    )?;
    Ok(found.into_iter().next())
}

/// Forgets a skipped block.
pub fn swept(id: i64, relation: pg_sys::Oid, block: u32) -> Result<(), Error> {
    execute(
        "delete from zdd.skipped where change_id = $1 and relation = $2 and block = $3",
        &[id.into(), relation.into(), i64::from(block).into()],
    )
}

/// How much is left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remaining {
    pub blocks_done: u64,
    pub blocks_total: u64,
    pub rows: u64,
    pub skipped: u64,
    /// Lanes that are not done.
    pub lanes: u64,
}

/// Reads how far all lanes are.
pub fn remaining(id: i64) -> Result<Remaining, Error> {
    let found = write(
        "select coalesce(sum(next_block - first_block), 0)::bigint, coalesce(sum(end_block - first_block), 0)::bigint,
             coalesce(sum(rows_split), 0)::bigint,
             (select count(*) from zdd.skipped where change_id = $1), count(*) filter (where next_block < end_block)
         from zdd.lane where change_id = $1",
        &[id.into()],
        |row| {
            let count = |ordinal| Ok::<_, Error>(get::<i64>(row, ordinal)?.unsigned_abs());
            Ok(Remaining {
                blocks_done: count(1)?,
                blocks_total: count(2)?,
                rows: count(3)?,
                skipped: count(4)?,
                lanes: count(5)?,
            })
        },
    )?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// The class of the locks of those who work for a change.
const WORKERS: u32 = 2_053_399_652;
/// The class of the lock of the one who finishes a job.
const FINISHER: u32 = 2_053_399_653;
/// The class of the lock of a verb that changes a change.
const CHANGE: u32 = 2_053_399_654;
/// The slots of a change: first those of background workers, then those of sessions.
const SLOTS: u32 = 64;
/// The most background workers that a change can have.
pub const MAX_WORKERS: u32 = 32;

/// A place among those who work for a change.
pub struct Slot {
    change_id: i64,
    number: u32,
    lock: SessionLock,
}

impl Slot {
    /// Whether it is one that a change with so many background workers has.
    pub fn is_among(&self, workers: u32) -> bool {
        self.number < workers
    }

    /// Whether others can still see that it is taken.
    pub fn is_held(&self) -> bool {
        self.lock.is_held()
    }
}

fn slot_key(id: i64, number: u32) -> u32 {
    (id as u32).wrapping_mul(SLOTS).wrapping_add(number)
}

/// Takes a free place for a background worker, of which there are so many, or for a session.
pub fn take_slot(id: i64, workers: Option<u32>) -> Option<Slot> {
    let slots = match workers {
        Some(workers) => 0..workers.min(MAX_WORKERS),
        None => MAX_WORKERS..SLOTS,
    };
    slots
        .filter_map(|number| {
            Some(Slot { change_id: id, number, lock: SessionLock::take(WORKERS, slot_key(id, number))? })
        })
        .next()
}

/// Ends the background workers of a change that do what a batch's time does not bound, VACUUM and CREATE INDEX, and those
/// whose batch takes long, and waits until they are gone, so that others find their places free. Returns how many. No other
/// process is ever ended.
pub fn end_long_work(change: &Change) -> Result<u32, Error> {
    let ended = read(
        "select pg_terminate_backend(w.pid, 5000) from zdd.workers as w
         join pg_stat_activity as a on a.pid = w.pid and a.backend_type like 'pg\\_zdd%'
         where w.change = $1 and w.kind = 'background worker'
             and (w.doing = $2 or w.doing like $3 || '%'
                 or a.xact_start < clock_timestamp() - case when $4 then interval '0' else interval '0.5 seconds' end)",
        &[
            change.name.as_str().into(),
            VACUUMS.into(),
            BUILDS_INDEX.into(),
            (change.batch_target > Duration::from_millis(500)).into(),
        ],
        |row| get::<bool>(row, 1),
    )?;
    Ok(ended.into_iter().filter(|ended| *ended).count() as u32)
}

/// What a worker says of itself when it does what has to be ended from outside.
pub const VACUUMS: &str = "vacuums";
pub const BUILDS_INDEX: &str = "builds index ";

/// As `set_doing`, for what has to be ended from outside: whoever stops the job either sees it, or is seen. Returns whether
/// it may begin.
pub fn begin_long_work(slot: &Slot, claim: &Claim, doing: &str) -> Result<bool, Error> {
    // A backfill goes on with whatever was changed.
    if claim.lock_anyway()?.is_stopped() {
        return Ok(false);
    }
    set_doing(slot, doing, None)?;
    Ok(true)
}

fn slot_keys(id: i64, slots: u32) -> Vec<pg_sys::Oid> {
    (0..slots).map(|number| pg_sys::Oid::from(slot_key(id, number))).collect()
}

/// How many background workers a change has, by the locks that they hold.
pub fn live_workers(id: i64) -> Result<u32, Error> {
    live_slots(id, MAX_WORKERS)
}

/// The background workers that are alive.
pub struct LiveWorkers {
    /// Of all changes in all databases.
    pub all: u32,
    /// Of the changes in this database that began under the same owner as a change.
    pub of_owner: u32,
    /// That owner.
    pub owner: Option<pg_sys::Oid>,
}

/// Counts the background workers that are alive, for a change that wants one.
pub fn live_workers_beside(id: i64) -> Result<LiveWorkers, Error> {
    // The key of a slot's lock is change_id * 64 + slot, in 32 bits; the first 32 slots are background workers'.
    let found = read(
        "with live as (
             select k.database, k.objid::bigint / 64 as change from pg_locks as k
             where k.locktype = 'userlock' and k.classid = $1 and k.objid::bigint % 64 < 32 and k.granted),
         owner as (select g.owner from zdd.guarded as g where g.change_id = $2)
         select (select count(*) from live), (
                 select count(*) from live as l
                 join zdd.change as c on c.id % 67108864 = l.change and c.relation is not null
                 join zdd.guarded as g on g.change_id = c.id and g.owner = (select o.owner from owner as o)
                 where l.database = (select d.oid from pg_database as d where d.datname = current_database())),
             (select o.owner from owner as o)",
        &[pg_sys::Oid::from(WORKERS).into(), id.into()],
        |row| {
            Ok(LiveWorkers {
                all: get::<i64>(row, 1)? as u32,
                of_owner: get::<i64>(row, 2)? as u32,
                owner: row.get(3)?,
            })
        },
    )?;
    found.into_iter().next().ok_or_else(|| Error::Spi("no count of workers".into()))
}

/// The change that has waited for longest for a first background worker.
pub fn longest_waiting() -> Result<Option<Change>, Error> {
    let sql = format!(
        "{ACTIVE} where c.relation is not null and j.workers > 0 and j.stopped is null and not exists (
             select from pg_locks as k
             where k.locktype = 'userlock' and k.classid = $1 and k.objid::bigint / 64 = c.id % 67108864
                 and k.database = (select d.oid from pg_database as d where d.datname = current_database()))
         order by j.requested_at limit 1"
    );
    Ok(read(&sql, &[pg_sys::Oid::from(WORKERS).into()], change)?.into_iter().next())
}

/// How many work for a change, sessions included.
pub fn live(id: i64) -> Result<u32, Error> {
    live_slots(id, SLOTS)
}

fn live_slots(id: i64, slots: u32) -> Result<u32, Error> {
    let count = read(
        "select count(*) from pg_locks as k
         where k.locktype = 'userlock' and k.classid = $1 and k.objid = any ($2)
             and k.database = (select d.oid from pg_database as d where d.datname = current_database())",
        &[pg_sys::Oid::from(WORKERS).into(), slot_keys(id, slots).into()],
        |row| get::<i64>(row, 1),
    )?;
    Ok(count.first().map_or(0, |count| *count as u32))
}

/// How many sessions wait for a lock that this transaction holds. Asked after every batch, so without the joins of
/// pg_stat_activity.
pub fn blocked() -> Result<u64, Error> {
    let count = read(
        "select count(*) from pg_stat_get_activity(null) as a
         where a.wait_event_type = 'Lock' and pg_backend_pid() = any (pg_blocking_pids(a.pid))",
        &[],
        |row| get::<i64>(row, 1),
    )?;
    Ok(count.first().map_or(0, |count| count.unsigned_abs()))
}

/// Becomes the one who finishes the job of a change, if nobody is.
pub fn become_finisher(id: i64) -> Option<SessionLock> {
    SessionLock::take(FINISHER, id as u32)
}

/// Notes what whoever has this place does, and what they wait for, if anything. Nothing is noted while somebody else changes
/// the change, or once it is over.
pub fn set_doing(slot: &Slot, doing: &str, waiting_for: Option<&str>) -> Result<(), Error> {
    execute(
        "insert into zdd.worker as w (change_id, slot, pid, doing, waiting_for, waiting_since)
         select $1, $2, pg_backend_pid(), $3, $4, case when $4 is not null then clock_timestamp() end
         from (
             select from zdd.change as c where c.id = $1 and c.relation is not null for share skip locked) as active
         on conflict (change_id, slot) do update set pid = excluded.pid, doing = excluded.doing,
             waiting_for = excluded.waiting_for,
             waiting_since = case when w.waiting_for is not distinct from excluded.waiting_for and w.pid = excluded.pid
                 then w.waiting_since else excluded.waiting_since end,
             started_at = case when w.pid = excluded.pid then w.started_at else excluded.started_at end",
        &[slot.change_id.into(), (slot.number as i32).into(), doing.into(), waiting_for.into()],
    )
}

/// What those who work for a change wait for, if anything.
pub fn waiting_for(id: i64) -> Result<Option<String>, Error> {
    let sql = "select p.waiting_for from zdd.progress as p join zdd.change as c on c.name = p.change
        where c.id = $1 and p.waiting_for is not null";
    Ok(read(sql, &[id.into()], |row| get(row, 1))?.into_iter().next())
}

/// Notes the last error of a job, and what to do about it.
pub fn set_error(id: i64, message: &str, hint: Option<&str>) -> Result<(), Error> {
    execute(
        "update zdd.job set last_error = $2, last_error_hint = $3, last_error_at = clock_timestamp()
         where change_id = $1",
        &[id.into(), message.into(), hint.into()],
    )
}

/// Notes how far a backfill is, for its speed over the last minute.
pub fn add_sample(id: i64, remaining: &Remaining) -> Result<(), Error> {
    execute(
        "insert into zdd.sample (change_id, at, rows_split, blocks_done)
         select $1, clock_timestamp(), $2, $3
         from (
             select from zdd.change as c where c.id = $1 and c.relation is not null for share skip locked) as active
         on conflict do nothing",
        &[id.into(), (remaining.rows as i64).into(), (remaining.blocks_done as i64).into()],
    )?;
    execute(
        "delete from zdd.sample where change_id = $1 and at < clock_timestamp() - interval '90 seconds'",
        &[id.into()],
    )
}

/// The name of an index that is being built for a change.
pub fn built_index(id: i64, relation: pg_sys::Oid, columns: &[String]) -> Result<Option<String>, Error> {
    let sql = "select name from zdd.built_index where change_id = $1 and relation = $2 and columns = $3";
    let found = read(sql, &[id.into(), relation.into(), columns.to_vec().into()], |row| get(row, 1))?;
    Ok(found.into_iter().next())
}

/// Remembers the name of an index before it is built.
pub fn set_built_index(id: i64, relation: pg_sys::Oid, columns: &[String], name: &str) -> Result<(), Error> {
    execute(
        "insert into zdd.built_index (change_id, relation, columns, name) values ($1, $2, $3, $4)
         on conflict (change_id, relation, columns) do update set name = excluded.name",
        &[id.into(), relation.into(), columns.to_vec().into(), name.into()],
    )
}

/// Notes versions of rows that a contract is to look at again.
pub fn add_written(id: i64, relation: pg_sys::Oid, tids: &[Tid]) -> Result<(), Error> {
    tids.iter().try_for_each(|tid| {
        execute(
            "insert into zdd.written (change_id, relation, tid) values ($1, $2, $3)",
            &[id.into(), relation.into(), (*tid).into()],
        )
    })
}

/// Takes so many of them, those first that were noted first.
pub fn take_written(id: i64, most: u32) -> Result<Vec<(pg_sys::Oid, Tid)>, Error> {
    write(
        "delete from zdd.written where id in (
             select w.id from zdd.written as w where w.change_id = $1 order by w.id limit $2)
         returning relation, tid",
        &[id.into(), i64::from(most).into()],
        |row| Ok((get(row, 1)?, Tid::unpack(get::<pg_sys::ItemPointerData>(row, 2)?))),
    )
}

/// Forgets them all.
pub fn forget_written(id: i64) -> Result<(), Error> {
    execute("delete from zdd.written where change_id = $1", &[id.into()])
}

/// The table that is the archive of a contract that is under way, or came to nothing, and whether the contract has made it.
pub fn archive(id: i64) -> Result<Option<(pg_sys::Oid, bool)>, Error> {
    let sql = "select relation, made from zdd.archive where change_id = $1";
    Ok(read(sql, &[id.into()], |row| Ok((get(row, 1)?, get(row, 2)?)))?.into_iter().next())
}

/// Remembers it. That the contract has made it stays so when another attempt finds it.
pub fn set_archive(id: i64, relation: pg_sys::Oid, made: bool) -> Result<(), Error> {
    execute(
        "insert into zdd.archive (change_id, relation, made) values ($1, $2, $3) on conflict (change_id) do nothing",
        &[id.into(), relation.into(), made.into()],
    )
}

/// Forgets it.
pub fn forget_archive(id: i64) -> Result<(), Error> {
    execute("delete from zdd.archive where change_id = $1", &[id.into()])
}

/// The changes of this database that background workers are to work for.
pub fn unfinished() -> Result<Vec<Change>, Error> {
    read(
        &format!("{ACTIVE} where c.relation is not null and j.workers > 0 and j.stopped is null order by c.id"),
        &[],
        change,
    )
}

/// The changes of this database whose contract was begun by a session that is gone.
pub fn left_by_sessions() -> Result<Vec<Change>, Error> {
    let sql = format!(
        "{ACTIVE} where c.relation is not null and j.kind = 'contract' and j.workers = 0 and j.stopped is null
         order by c.id"
    );
    let mut left = read(&sql, &[], change)?;
    let mut failed = None;
    left.retain(|change| live(change.id).map_err(|error| failed = Some(error)).is_ok_and(|live| live == 0));
    failed.map_or(Ok(left), Err)
}

/// When a change began, and its phase, in microseconds since PostgreSQL's epoch.
pub fn times(id: i64) -> Result<(i64, i64), Error> {
    let sql = "select c.started_at, c.phase_since from zdd.change as c where c.id = $1";
    let time =
        |row: &SpiHeapTupleData, ordinal| get::<TimestampWithTimeZone>(row, ordinal).map(pg_sys::TimestampTz::from);
    let times = read(sql, &[id.into()], |row| Ok((time(row, 1)?, time(row, 2)?)))?;
    times.first().copied().ok_or_else(|| Error::Spi("the change is gone".into()))
}

/// Runs SQL that gives rows and may write, as the extension.
fn write<T>(
    sql: &str,
    args: &[DatumWithOid],
    each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    as_extension(extension::owner()?, |extension| extension.write(sql, args, each))
}

/// Runs SQL that only reads, also on a standby.
fn read<T>(
    sql: &str,
    args: &[DatumWithOid],
    each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    as_extension(extension::owner()?, |extension| extension.read(sql, args, each))
}

/// Reads a name and a number of the server's own views, if there is a row.
pub fn number(sql: &str) -> Result<Option<(String, u64)>, Error> {
    let found = read(sql, &[], |row| {
        let (name, bytes): (Option<String>, Option<i64>) = (row.get(1)?, row.get(2)?);
        Ok((name.unwrap_or_default(), bytes.unwrap_or_default().unsigned_abs()))
    })?;
    Ok(found.into_iter().next())
}

fn execute(sql: &str, args: &[DatumWithOid]) -> Result<(), Error> {
    write(sql, args, |_| Ok(())).map(drop)
}

fn get<T: pgrx::FromDatum + pgrx::IntoDatum>(row: &SpiHeapTupleData, ordinal: usize) -> Result<T, Error> {
    let value: SpiResult<Option<T>> = row.get(ordinal);
    value?.ok_or_else(|| Error::Spi(format!("column {ordinal} of a catalog row is NULL")))
}
