//! A fuzzer: everybody calls everything with arguments and on tables that nobody expects, while applications write, owners
//! alter their tables and an administrator cancels and terminates. No backend may crash, leak or be at a loss for an
//! SQLSTATE, nobody may get rights that are not theirs, and in the end nothing may be left behind.
//!
//! PG_ZDD_SOAK_SECONDS (60) is how long; PG_ZDD_SEED the seed (random), which repeats what the clients say but not how
//! the server interleaves it; with PG_ZDD_VERBOSE the report has an example of each error, with PG_ZDD_KEEP the server's
//! folder and log stay.

mod aftermath;
mod client;
mod judge;
mod statements;
mod values;
mod world;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, NoTls};
use pg_zdd_cluster::{Cluster, Result, Stop, describe};

use client::{Stage, Talker};
use judge::{Judge, Log};
use world::{DATABASE, Role, Snapshot, rows};

const CLIENTS: usize = 10;

/// The address space of a backend: what runs away fails, and not the machine.
const MEMORY: u64 = 2 << 30;

/// How often a backend is killed, which is a crash of the server for all others.
const BETWEEN_KILLS: Duration = Duration::from_secs(40);

/// How long a statement may go on: all have a timeout of 3 seconds, and the machine may be slow.
const TOO_LONG: &str = "40 seconds";

#[test]
fn everybody_calls_everything() {
    // Without a soak, what depends on how the server interleaves things is reported and does not fail the test.
    let soak = number("PG_ZDD_SOAK_SECONDS");
    let seconds = soak.unwrap_or(60);
    let seed = number("PG_ZDD_SEED").unwrap_or_else(|| pg_zdd_cluster::fastrand::u64(..));
    println!("PG_ZDD_SEED={seed}, {seconds} s");
    let mut settings = vec![
        ("shared_preload_libraries", "pg_zdd"),
        ("max_worker_processes", "16"),
        ("max_prepared_transactions", "5"),
        ("wal_level", "logical"),
        ("shared_buffers", "32MB"),
        ("jit", "off"),
        ("deadlock_timeout", "100ms"),
        ("zdd.launcher_naptime", "1s"),
        ("zdd.quiet_period", "1s"),
        ("zdd.usage_max", "30"),
        ("zdd.usage_save_interval", "1s"),
        ("zdd.lock_timeout", "50ms"),
        ("zdd.lock_patience", "2s"),
    ];
    settings.extend(Log::SETTINGS);
    let mut cluster = Cluster::start(&settings).expect("a cluster");
    cluster.limit_memory(MEMORY);
    cluster.restart(Stop::Fast).expect("a server with a limit");
    let judge = Judge::default();
    let mut rng = Rng::with_seed(seed);
    let mut scout = build(&cluster, &mut rng).unwrap_or_else(|e| panic!("no world: {e}"));
    let stage = Stage {
        cluster: &cluster,
        judge: &judge,
        functions: world::functions(&mut scout).expect("functions"),
        relations: world::relations(&mut scout).expect("relations"),
        slots: world::slots(),
        now: Mutex::new(Arc::new(Snapshot::take(&mut scout).expect("a snapshot"))),
        end: Instant::now() + Duration::from_secs(seconds),
    };
    let mut log = Log::of(cluster.log());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let talker = Talker::new(&stage, seed, number);
            scope.spawn(|| talker.talk());
        }
        // What this thread knows goes to all others.
        let mut next_kill = Instant::now() + BETWEEN_KILLS;
        while !stage.is_over() {
            watch(&stage, &mut scout);
            if Instant::now() > next_kill {
                next_kill += BETWEEN_KILLS;
                // The server takes all down and recovers.
                if let Some(&pid) = stage.now().backends.first() {
                    let _ = cluster.kill9_backend(pid);
                }
            }
            log.read(&judge, false);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    drop(scout);
    log.read(&judge, false);
    aftermath::clean_up(&cluster, &judge);
    log.read(&judge, true);
    judge.report();
    judge.verdict(soak.is_none()).unwrap_or_else(|findings| panic!("{findings}"));
    if let Err(findings) = judge.verdict(false) {
        println!("not grave: {findings}");
    }
    // One that did nothing would find nothing.
    for function in ["split_column", "backfill", "verify", "fence", "rollback"] {
        assert!(judge.successes(function) > 0, "no call of zdd.{function} has succeeded");
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Roles, functions and a first set of tables. Returns the connection that watches.
fn build(cluster: &Cluster, rng: &mut Rng) -> Result<Client> {
    let run =
        |client: &mut Client, sql: &str| client.batch_execute(sql).map_err(|e| format!("{}\n{sql}", describe(&e)));
    let mut postgres = cluster.connect("postgres", "postgres", "scout")?;
    for statement in world::ROLES.split_inclusive(';') {
        run(&mut postgres, statement)?;
    }
    let mut scout = watcher(cluster)?;
    run(&mut scout, &world::foundation())?;
    for owner in [Role::OwnerA, Role::OwnerB] {
        let mut client = cluster.connect(DATABASE, owner.name(), "scout")?;
        run(&mut client, &world::toolbox(owner))?;
        for slot in world::slots().iter().filter(|slot| slot.owner == owner) {
            if let Err(error) = run(&mut client, &slot.make(rng)) {
                println!("NOT MADE {error}");
            }
        }
    }
    Ok(scout)
}

/// A superuser's connection that no setting of the database changes.
fn watcher(cluster: &Cluster) -> Result<Client> {
    let mut config = cluster.config(DATABASE, "postgres", "scout");
    config.options(
        "-c statement_timeout=120s -c search_path=pg_catalog -c default_transaction_isolation=read\\ committed",
    );
    config.connect(NoTls).map_err(|e| describe(&e).into())
}

/// Tells the clients what is there, and keeps the stage in order.
fn watch(stage: &Stage, scout: &mut Client) {
    if scout.is_closed() {
        match watcher(stage.cluster) {
            Ok(client) => *scout = client,
            Err(_) => return,
        }
    }
    world::ensure_extension(scout);
    for row in rows(scout, "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'").unwrap_or_default()
    {
        stage.judge.finds("somebody has become superuser", &row[0]);
        let _ = scout.batch_execute(&format!("ALTER ROLE {} NOSUPERUSER", row[0]));
    }
    if let Ok(now) = Snapshot::take(scout) {
        *stage.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }
    let prepared = "SELECT gid FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > '1 second'";
    for row in rows(scout, prepared).unwrap_or_default() {
        let how = if row[0].ends_with(['1', '3', '5']) { "COMMIT" } else { "ROLLBACK" };
        let _ = scout.batch_execute(&format!("{how} PREPARED '{}'", row[0]));
    }
    let endless = format!(
        "SELECT pid, query, wait_event_type, wait_event FROM pg_stat_activity
        WHERE state = 'active' AND application_name LIKE 'fuzz%' AND query_start < clock_timestamp() - interval '{TOO_LONG}'"
    );
    for row in rows(scout, &endless).unwrap_or_default() {
        stage.judge.finds("a statement goes on and on", &row.join(" | "));
        let _ = scout.batch_execute(&format!("SELECT pg_terminate_backend({})", row[0]));
    }
}
