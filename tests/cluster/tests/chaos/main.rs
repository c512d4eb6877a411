//! Chaos: several operators call every verb at any time, alone, in transactions and in savepoints, the owner alters the
//! tables, sessions and workers are cancelled and killed and the server crashes, while old and new applications write and
//! read. No value may be lost or wrong, no statement may fail that was promised to succeed, what the catalog says of a
//! change must be what the tables look like at every moment, and nothing may be left of changes that are over.
//!
//! PG_ZDD_SOAK_SECONDS (45) is how long, in rounds of a minute, each on a server of its own; PG_ZDD_SEED the seed of the
//! first round, which repeats what each client does but not how the server interleaves it. With PG_ZDD_KEEP the servers'
//! folders stay.

// What one statement gives is taken apart at once.
#![allow(clippy::type_complexity)]

mod app;
mod auditor;
mod judge;
mod model;
mod operator;
mod owner;
mod saboteur;
mod world;

use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::{self, Rng};
use pg_zdd_cluster::postgres::{Client, NoTls};
use pg_zdd_cluster::{Cluster, Result, describe};

use judge::{Judge, Log};
use model::Models;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

const APPLICATIONS: usize = 6;
const OPERATORS: usize = 4;

/// A soak has rounds of this length. Tables, logs and models stay small, and each round begins with a new server.
const ROUND: Duration = Duration::from_secs(60);

/// How long the old column must be out of use before a contract.
pub const QUIET: Duration = Duration::from_secs(2);

/// What all clients of a round share.
pub struct Stage<'c> {
    cluster: &'c Cluster,
    judge: &'c Judge,
    models: &'c Models,
    /// What a contract is told that may lose values.
    acceptance: &'static str,
}

/// A connection that the driver may have struck down.
pub struct Line {
    client: Client,
    pid: i32,
    /// Between which crashes it was made.
    crash: u64,
}

impl Line {
    /// Nothing while the server is down.
    pub fn open(stage: &Stage, user: &str, name: &str, options: &str) -> Option<Line> {
        let crash = stage.judge.crash();
        let mut config = stage.cluster.config(world::DATABASE, user, name);
        config.options(options);
        let mut client = config.connect(NoTls).ok()?;
        let found = world::rows(&mut client, "SELECT pg_backend_pid()").ok()?;
        Some(Line { client, pid: found.first()?.first()?.as_ref()?.parse().ok()?, crash })
    }

    pub fn has_been_struck(&self, judge: &Judge) -> bool {
        let crash = judge.crash();
        // One that was made on the way down is down, too.
        self.crash != crash || crash % 2 == 1 || judge.has_struck(self.pid)
    }
}

#[test]
fn whatever_happens_no_value_is_lost() {
    let soak = number("PG_ZDD_SOAK_SECONDS").map(Duration::from_secs);
    let first = number("PG_ZDD_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    let started = Instant::now();
    let mut findings = String::new();
    for seed in first.. {
        let left = soak.map_or(Duration::from_secs(45), |soak| soak.saturating_sub(started.elapsed()).min(ROUND));
        if left < Duration::from_secs(5) {
            break;
        }
        println!("PG_ZDD_SEED={seed}, {} s", left.as_secs());
        if let Err(found) = round(seed, left) {
            findings += &format!("PG_ZDD_SEED={seed}\n{found}");
        }
        // Enough is enough.
        if soak.is_none() || findings.len() > 100_000 {
            break;
        }
    }
    assert!(findings.is_empty(), "{findings}");
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn round(seed: u64, time: Duration) -> std::result::Result<(), String> {
    let quiet = format!("{}s", QUIET.as_secs());
    let mut settings = vec![
        ("shared_preload_libraries", "pg_zdd"),
        ("max_worker_processes", "24"),
        ("shared_buffers", "32MB"),
        ("max_wal_size", "256MB"),
        ("jit", "off"),
        ("zdd.launcher_naptime", "1s"),
        ("zdd.usage_save_interval", "1s"),
        ("zdd.quiet_period", &quiet),
        ("zdd.lock_timeout", "100ms"),
        ("zdd.lock_patience", "3s"),
    ];
    settings.extend(Log::SETTINGS);
    let cluster = Cluster::start(&settings).unwrap_or_else(|e| panic!("no cluster: {e}"));
    let models = Models::new(APPLICATIONS);
    let acceptance = build(&cluster, &models).unwrap_or_else(|e| panic!("no tables: {e}"));
    let judge = Judge::new(time);
    let stage = Stage { cluster: &cluster, judge: &judge, models: &models, acceptance };
    let mut numbers = 0..;
    let mut rng = || Rng::with_seed(seed.wrapping_mul(1000).wrapping_add(numbers.next().unwrap_or(0)));
    let (mut auditor, owner, saboteur) = (auditor::Auditor::new(&stage), rng(), rng());
    std::thread::scope(|scope| {
        let stage = &stage;
        let mut clients = vec![
            scope.spawn(move || owner::Owner::new(stage, owner).run()),
            scope.spawn(move || saboteur::Saboteur::new(stage, saboteur).run()),
        ];
        for number in 0..OPERATORS {
            let rng = rng();
            clients.push(scope.spawn(move || operator::Operator::new(stage, number, rng).run()));
        }
        for number in 0..APPLICATIONS {
            let rng = rng();
            clients.push(scope.spawn(move || app::App::new(stage, number, rng).run()));
        }
        while !clients.iter().all(|client| client.is_finished()) {
            auditor.look();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    auditor.close();
    judge.report();
    // One that did nothing would find nothing.
    let few = ["split_column", "backfill", "verify", "fence", "rollback", "contract", "release"];
    let done = |what: &str| judge.count(what, Some("00000"));
    if judge.verdict().is_ok() && time >= Duration::from_secs(40) {
        for what in few {
            assert!(done(what) > 0, "no {what} has succeeded");
        }
        for who in ["old application", "new application"] {
            assert!(done(who) > 500, "the {who} has done {} statements", done(who));
        }
    }
    judge.verdict()
}

/// Makes the tables. Returns what a contract is told that may lose values.
fn build(cluster: &Cluster, models: &Models) -> Result<&'static str> {
    let mut client = cluster.create_database(world::DATABASE)?;
    for sql in [world::build(), models.fill()] {
        client.batch_execute(&sql).map_err(|e| describe(&e))?;
    }
    // Without it lossy rows go with a NOTICE.
    let knows_lossy = "SELECT FROM pg_proc WHERE proname = 'contract' AND 'accept_lossy' = ANY (proargnames)";
    Ok(match world::rows(&mut client, knows_lossy)?.is_empty() {
        true => ", accept_unmatched => true",
        false => ", accept_unmatched => true, accept_lossy => true",
    })
}
