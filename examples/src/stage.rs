//! What all examples have: a server, a table, two versions of an application, and a look at what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pg_zdd_cluster::load::Record;
use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Cluster, Result, describe, wait_until};
use pg_zdd_demo::app::{Fleet, Version, World};
use pg_zdd_demo::model::Row;
use pg_zdd_demo::shop::{self, SPLIT};

/// How many connections a version has in its pool.
pub const CONNECTIONS: usize = 4;

pub const BACKFILL: &str = "CALL zdd.backfill('address.street')";
pub const FENCE: &str = "SELECT zdd.fence('address.street')";
pub const UNFENCE: &str = "SELECT zdd.unfence('address.street')";
pub const CONTRACT: &str = "CALL zdd.contract('address.street', accept_lossy => true)";
pub const ROLLBACK: &str = "SELECT zdd.rollback('address.street')";

/// How long to stay with each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// For people to watch.
    Watch,
    /// For tests.
    Test,
}

impl Pace {
    fn rows(self) -> i64 {
        match self {
            Pace::Watch => 100_000,
            Pace::Test => 10_000,
        }
    }

    /// How many statements each version that runs must have got done before a step is over.
    fn statements(self) -> usize {
        match self {
            Pace::Watch => 1000,
            Pace::Test => 200,
        }
    }
}

/// What a version has done in one step: statements, errors, wrong values.
struct Line {
    step: String,
    version: &'static str,
    statements: usize,
    errors: usize,
    wrong: usize,
}

/// What zdd.usage has seen.
pub struct Used {
    pub statements: i64,
    pub rows: i64,
    pub errors: i64,
}

pub struct Stage {
    pub old: Fleet,
    pub new: Fleet,
    /// Version 2, for a few new rows before the old ones are split.
    pub early: Fleet,
    pace: Pace,
    title: &'static str,
    lines: Vec<Line>,
    operator: Client,
    world: Arc<World>,
    others: HashMap<i64, Row>,
    pub cluster: Cluster,
}

impl Stage {
    /// A server that records usage, a table, and version 1 at work.
    pub fn new(title: &'static str, pace: Pace) -> Result<Stage> {
        println!("\n=== {title} ===\n");
        let cluster = Cluster::start(&[("shared_preload_libraries", "pg_zdd"), ("shared_buffers", "256MB")])?;
        let (mut operator, world, mut others) = shop::open(&cluster, pace.rows())?;
        // Rows without a street are another story: the demo tells it.
        operator.batch_execute("DELETE FROM address WHERE street = ''")?;
        others.retain(|_, row| !row.street.old_shape().is_empty());
        let (old, new) = (Record::default(), Record::default());
        let mut stage = Stage {
            old: Fleet::new(Version::One, world.clone(), old),
            new: Fleet::new(Version::Two, world.clone(), new.clone()),
            early: Fleet::new(Version::Canary, world.clone(), new),
            pace,
            title,
            lines: Vec::new(),
            operator,
            world,
            others,
            cluster,
        };
        stage.old.scale(&stage.cluster, CONNECTIONS)?;
        stage.watch("version 1 alone")?;
        Ok(stage)
    }

    /// Splits the column, while version 1 goes on.
    pub fn expand(&mut self) -> Result<()> {
        self.run(SPLIT)?;
        self.run(BACKFILL)?;
        self.phase("expanded")
    }

    /// One of the operator's statements.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        println!("{sql};");
        Ok(self.operator.batch_execute(sql).map_err(|e| describe(&e))?)
    }

    /// One that must be refused, with this in the error.
    pub fn refused(&mut self, sql: &str, with: &str) -> Result<()> {
        println!("{sql};");
        match self.operator.batch_execute(sql).map_err(|e| describe(&e)) {
            Err(error) if error.contains(with) => {
                println!("{error}");
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(()) => Err(format!("was not refused: {sql}").into()),
        }
    }

    pub fn phase(&mut self, expected: &str) -> Result<()> {
        let sql = "SELECT phase FROM zdd.changes ORDER BY started_at DESC LIMIT 1";
        let phase: String = self.operator.query_one(sql, &[])?.get(0);
        if phase == expected { Ok(()) } else { Err(format!("the change is {phase}, not {expected}").into()) }
    }

    /// Brings a version to so many connections.
    pub fn scale_old(&mut self, connections: usize) -> Result<()> {
        println!("-- version 1: {connections} connections");
        self.old.scale(&self.cluster, connections)
    }

    pub fn scale_new(&mut self, connections: usize) -> Result<()> {
        println!("-- version 2: {connections} connections");
        self.new.scale(&self.cluster, connections)
    }

    /// Divides the requests.
    pub fn give_new(&mut self, percent: u32) {
        println!("-- {percent} % of the requests to version 2");
        self.new.take_percent(percent);
        self.old.take_percent(100 - percent);
    }

    /// Lets the applications work until they have got enough done, each its share, and writes down what they did.
    pub fn watch(&mut self, step: &str) -> Result<()> {
        const LEAST: usize = 5;
        let from = Instant::now();
        let running: Vec<&Record> = [&self.old, &self.new, &self.early]
            .into_iter()
            .filter(|fleet| fleet.is_used())
            .map(Fleet::record)
            .collect();
        wait_until("the applications got something done", Duration::from_secs(60), || {
            let done = running.iter().map(|record| record.between(from, Instant::now()).statements);
            let (least, all) = done.fold((usize::MAX, 0), |(least, all), done| (least.min(done), all + done));
            Ok(least >= LEAST && all >= self.pace.statements())
        })?;
        self.note(step, from);
        Ok(())
    }

    fn note(&mut self, step: &str, from: Instant) {
        for (version, fleet) in [("1", &self.old), ("2", &self.new)] {
            let summary = fleet.record().between(from, Instant::now());
            if summary.statements > 0 {
                let failures = fleet.record().failures();
                let wrong = failures.iter().filter(|failure| failure.at >= from && failure.wrong_value).count();
                let errors = summary.errors - wrong.min(summary.errors);
                let step = step.to_owned();
                self.lines.push(Line { step, version, statements: summary.statements, errors, wrong });
            }
        }
    }

    /// Prints zdd.usage, old and new side by side.
    pub fn usage(&mut self) -> Result<()> {
        println!(
            "\n  {:<16}{:>10}{:>8}{:>8}{:>8}   {:>10}{:>8}{:>8}{:>8}",
            "", "old reads", "writes", "rows", "errors", "new reads", "writes", "rows", "errors"
        );
        for row in self.operator.query(
            "SELECT application_name,
                 coalesce(sum(reads) FILTER (WHERE side = 'old'), 0)::bigint,
                 coalesce(sum(writes) FILTER (WHERE side = 'old'), 0)::bigint,
                 coalesce(sum(rows) FILTER (WHERE side = 'old'), 0)::bigint,
                 coalesce(sum(errors) FILTER (WHERE side = 'old'), 0)::bigint,
                 coalesce(sum(reads) FILTER (WHERE side = 'new'), 0)::bigint,
                 coalesce(sum(writes) FILTER (WHERE side = 'new'), 0)::bigint,
                 coalesce(sum(rows) FILTER (WHERE side = 'new'), 0)::bigint,
                 coalesce(sum(errors) FILTER (WHERE side = 'new'), 0)::bigint
             FROM zdd.usage GROUP BY application_name ORDER BY 1",
            &[],
        )? {
            let name: String = row.get(0);
            let count = |index: usize| row.get::<_, i64>(index);
            println!(
                "  {name:<16}{:>10}{:>8}{:>8}{:>8}   {:>10}{:>8}{:>8}{:>8}",
                count(1),
                count(2),
                count(3),
                count(4),
                count(5),
                count(6),
                count(7),
                count(8)
            );
        }
        println!();
        Ok(())
    }

    /// What an application did with a side, from zdd.usage.
    pub fn used(&mut self, version: Version, side: &str) -> Result<Used> {
        let sql = "SELECT coalesce(sum(reads + writes), 0)::bigint, coalesce(sum(rows), 0)::bigint,
                coalesce(sum(errors), 0)::bigint
            FROM zdd.usage WHERE application_name = $1 AND side = $2";
        let row = self.operator.query_one(sql, &[&version.application_name(), &side])?;
        Ok(Used { statements: row.get(0), rows: row.get(1), errors: row.get(2) })
    }

    /// Contracts as soon as the old column has not been used for a while. Nobody forces anything.
    pub fn contract_when_quiet(&mut self) -> Result<()> {
        self.run("SET zdd.quiet_period = '2s'  -- an hour by default")?;
        let operator = &mut self.operator;
        println!("{CONTRACT};  -- until it is not refused");
        wait_until("nobody has used the old column for a while", Duration::from_secs(60), || {
            match operator.batch_execute(CONTRACT).map_err(|e| describe(&e)) {
                Ok(()) => Ok(true),
                Err(error) if error.contains("was used within") || error.contains("it is not known") => Ok(false),
                Err(error) => Err(error.into()),
            }
        })?;
        self.phase("contracted")
    }

    /// Stops everybody and tells what came of it: an error if anybody saw one, or a value that was not written last.
    pub fn finish(mut self) -> Result<()> {
        for fleet in [&mut self.old, &mut self.new, &mut self.early] {
            fleet.scale(&self.cluster, 0)?;
        }
        println!("\n  {:<40}{:>9}{:>12}{:>10}{:>14}", "step", "version", "statements", "errors", "wrong values");
        for Line { step, version, statements, errors, wrong } in &self.lines {
            println!("  {step:<40}{version:>9}{statements:>12}{errors:>10}{wrong:>14}");
        }
        let mut failures = self.old.record().failures();
        failures.extend(self.new.record().failures());
        let lost = self.lost_rows()?;
        let wrong = failures.iter().filter(|failure| failure.wrong_value).count();
        println!(
            "  {}: {} errors, {wrong} stale or wrong values read, {} rows that are not as they were last written",
            self.title,
            failures.len() - wrong,
            lost.len()
        );
        for text in failures.iter().map(|failure| &failure.text).chain(&lost).take(10) {
            println!("    {text}");
        }
        if failures.is_empty() && lost.is_empty() {
            Ok(())
        } else {
            Err("somebody saw an error or a wrong value".into())
        }
    }

    /// Compares every row with what was written last, in each shape that there is.
    fn lost_rows(&mut self) -> Result<Vec<String>> {
        let mut expected = std::mem::take(&mut self.others);
        expected.extend(self.world.pool.rows().into_iter().map(|row| (row.id, row)));
        let has = |operator: &mut Client, column: &str| {
            let sql = "SELECT 1 FROM pg_attribute WHERE attrelid = 'address'::regclass AND attname = $1";
            operator.query(sql, &[&column]).map(|rows| !rows.is_empty())
        };
        let mut wrong = Vec::new();
        if has(&mut self.operator, "street")? {
            let rows = self.operator.query("SELECT id, street, city FROM address", &[])?;
            let mut left = expected.clone();
            for row in &rows {
                let (id, street, city): (i64, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
                match left.remove(&id) {
                    Some(row) if Some(row.street.old_shape()) == street && row.city == city => {}
                    row => wrong.push(format!("row {id} holds {street:?}, {city}: {row:?} was written")),
                }
            }
            wrong.extend(left.keys().map(|id| format!("row {id} is lost")));
        }
        if has(&mut self.operator, "streetname")? {
            let rows = self.operator.query("SELECT id, streetname, housenumber, city FROM address", &[])?;
            let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)));
            wrong.extend(pg_zdd_demo::model::differences(expected, rows));
        }
        Ok(wrong)
    }
}
