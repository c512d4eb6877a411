//! pg_zdd: the backfill in the caller's session, or in background workers.

use std::time::Duration;

use pg_zdd_cluster::{Cluster, Result, wait_until};

use super::Contender;
use crate::stats::thousands;
use crate::subject::Subject;

pub struct Zdd {
    name: String,
    /// None: the session that calls it.
    workers: Option<i32>,
    max_rows_per_second: Option<i32>,
}

impl Zdd {
    pub fn in_session() -> Zdd {
        Zdd { name: "pg_zdd".into(), workers: None, max_rows_per_second: None }
    }

    pub fn with_workers(workers: i32) -> Zdd {
        let s = if workers == 1 { "" } else { "s" };
        Zdd { name: format!("pg_zdd, {workers} worker{s}"), workers: Some(workers), max_rows_per_second: None }
    }

    /// One worker that splits so many rows a second at most.
    pub fn limited_to(rows: i32) -> Zdd {
        let name = format!("pg_zdd, 1 worker, at most {} rows/s", thousands(rows.into()));
        Zdd { name, workers: Some(1), max_rows_per_second: Some(rows) }
    }

    /// Begins to split the rows. Workers have not done so yet when it returns.
    pub fn start_backfill(&self, db: &Subject) -> Result<()> {
        match self.workers {
            None => db.run("CALL zdd.backfill('address.street')"),
            Some(n) => db.run(&format!("SELECT zdd.start_backfill('address.street', workers => {n})")),
        }
    }

    pub fn is_done(&self, db: &Subject) -> Result<bool> {
        db.value(IS_DONE)
    }

    /// Returns when nobody splits rows any more.
    pub fn pause(&self, db: &Subject) -> Result<()> {
        db.run("SELECT zdd.pause('address.street')")?;
        wait(db, "the workers are gone", "SELECT count(*) = 0 FROM zdd.workers")
    }

    /// Returns when rows are split again.
    pub fn resume(&self, db: &Subject) -> Result<()> {
        db.run("SELECT zdd.resume('address.street')")?;
        wait(db, "a worker is there", "SELECT count(*) > 0 FROM zdd.workers")
    }
}

const IS_DONE: &str = "SELECT phase <> 'expanding' FROM zdd.changes WHERE change = 'address.street'";

/// Looks again and again, in a session of its own: others would feel a new one for each look.
fn wait(db: &Subject, what: &str, condition: &str) -> Result<()> {
    let mut watcher = db.connect("watcher")?;
    wait_until(what, Duration::from_secs(600), || Ok(watcher.query_one(condition, &[])?.get(0)))
}

impl Contender for Zdd {
    fn name(&self) -> &str {
        &self.name
    }

    fn how(&self) -> String {
        let backfill = match self.workers {
            None => "`CALL zdd.backfill`".into(),
            Some(n) => format!("`zdd.start_backfill(…, workers => {n})`"),
        };
        let limit =
            self.max_rows_per_second.map(|rows| format!("`zdd.alter_change(…, max_rows_per_second => {rows})`, "));
        format!(
            "`zdd.split_column` with the regex of the README, {}{backfill} with its verification, `zdd.fence`, `CALL \
             zdd.contract(…, accept_lossy => true, force => true)`. All settings at their defaults.",
            limit.unwrap_or_default()
        )
    }

    fn missing(&self, cluster: &Cluster) -> Result<Option<String>> {
        let Some(_) = self.workers else { return Ok(None) };
        let db = Subject::empty(cluster)?;
        db.run("CREATE EXTENSION pg_zdd")?;
        let there: bool = db.value(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'zdd'::regnamespace
                 AND proname = 'start_backfill' AND 'workers' = ANY (proargnames))",
        )?;
        Ok((!there).then(|| "this pg_zdd has no zdd.start_backfill".into()))
    }

    fn adopt(&self, db: &Subject) -> Result<()> {
        db.run("CREATE EXTENSION pg_zdd")
    }

    fn start(&self, db: &Subject) -> Result<()> {
        db.run(
            r"SELECT zdd.split_column('address', 'street',
                  columns => 'streetname varchar, housenumber varchar',
                  regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
                  join => '{streetname}[ {housenumber}]')",
        )?;
        match self.max_rows_per_second {
            Some(rows) => db.run(&format!("SELECT zdd.alter_change('address.street', max_rows_per_second => {rows})")),
            None => Ok(()),
        }
    }

    fn backfill(&self, db: &Subject) -> Result<()> {
        self.start_backfill(db)?;
        if let Err(e) = wait(db, "every row is split", IS_DONE) {
            let errors = "SELECT string_agg(detail::text, '; ') FROM zdd.events WHERE event = 'error'";
            let errors = db.value::<Option<String>>(errors)?.unwrap_or_default();
            return Err(format!("{e} {errors}").into());
        }
        let phase: String = db.value("SELECT phase::text FROM zdd.changes WHERE change = 'address.street'")?;
        match phase.as_str() {
            "expanded" => Ok(()),
            phase => Err(format!("after the backfill the change is {phase}").into()),
        }
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        db.run("SELECT zdd.fence('address.street')")?;
        db.run("CALL zdd.contract('address.street', accept_lossy => true, force => true)")
    }

    fn is_variant(&self) -> bool {
        self.workers.is_some()
    }
}
