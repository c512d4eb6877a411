//! How long an application's statement waits because of pg_zdd: while nobody holds the table for long, and while a
//! transaction holds it for seconds and each step has to try again and again.

use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::{Cluster, Error, Result, describe};
use serde_json::{Map, Value, json};

use crate::stats::Times;
use crate::{Bench, SOURCE, split};

const CLIENTS: usize = 8;
const PACE: Duration = Duration::from_millis(5);
const HELD: Duration = Duration::from_secs(3);

/// The step, the statement, and whether the clients use the old shape meanwhile.
const STEPS: [(&str, &str, bool); 6] = [
    ("split_column", "", true),
    ("backfill", "CALL zdd.backfill('address.street')", true),
    ("fence", "SELECT zdd.fence('address.street')", false),
    ("unfence", "SELECT zdd.unfence('address.street')", false),
    ("fence again", "SELECT zdd.fence('address.street')", false),
    ("contract", "CALL zdd.contract('address.street', force => true)", false),
];

/// What one step did, over the rounds.
#[derive(Default)]
struct Figures {
    /// How long the step took.
    call: Times,
    /// The longest statement of the clients while it ran.
    longest: Times,
}

pub fn run(bench: &mut Bench) -> Result<Value> {
    let rows = bench.rows / 5;
    println!("longest statement of {CLIENTS} clients on {rows} rows, {} rounds", bench.rounds);
    let mut json = Map::new();
    let idle = baseline(bench, rows)?;
    println!("  {:<52}{:>6.1} ms", "nothing else going on, 3 s", millis(idle));
    json.insert("baseline_seconds".into(), json!(idle.as_secs_f64()));
    for (held, title) in [(None, "no long transaction"), (Some(HELD), "a transaction holds ACCESS SHARE for 3 s")] {
        println!("  {title}:");
        let mut figures: [Figures; STEPS.len()] = Default::default();
        for _ in 0..bench.rounds {
            lifecycle(bench, rows, held, &mut figures)?;
        }
        for ((step, ..), figures) in STEPS.iter().zip(&figures) {
            println!(
                "    {step:<14} took {:>8.1} ms (median), longest statement {:>6.1} ms (median {:.1})",
                figures.call.median() * 1000.0,
                figures.longest.max() * 1000.0,
                figures.longest.median() * 1000.0
            );
            json.insert(
                format!("{step}{}", if held.is_some() { ", table held" } else { "" }),
                json!({ "call": figures.call.json(), "longest_statement": figures.longest.json() }),
            );
        }
    }
    println!("  targets: without a long transaction under 50 ms; with one at most zdd.lock_timeout (200 ms)");
    Ok(json.into())
}

/// What the machine itself adds: the longest statement while nothing happens.
fn baseline(bench: &mut Bench, rows: i64) -> Result<Duration> {
    fresh_table(bench, rows)?;
    let (runners, record) = start_clients(&bench.cluster, rows, true)?;
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    stop_clients(runners, &record)?;
    Ok(record.between(from, Instant::now()).longest)
}

fn lifecycle(bench: &mut Bench, rows: i64, held: Option<Duration>, figures: &mut [Figures; STEPS.len()]) -> Result<()> {
    fresh_table(bench, rows)?;
    let split = split("address");
    for ((step, sql, old_shape), figures) in STEPS.iter().zip(figures) {
        let sql = if *step == "split_column" { split.as_str() } else { sql };
        let (runners, record) = start_clients(&bench.cluster, rows, *old_shape)?;
        // Every client has its plans before the step begins.
        std::thread::sleep(Duration::from_millis(300));
        let holder = held.map(|held| hold(&bench.cluster, held)).transpose()?;
        let from = Instant::now();
        bench.run(sql)?;
        let to = Instant::now();
        if let Some(holder) = holder {
            holder.join().map_err(|_| "the holder panicked")??;
        }
        stop_clients(runners, &record)?;
        figures.call.add(to - from);
        figures.longest.add(record.between(from, to).longest);
    }
    Ok(())
}

/// Holds the table until the time is over, as a report or a forgotten transaction would.
fn hold(cluster: &Cluster, held: Duration) -> Result<std::thread::JoinHandle<Result<()>>> {
    let mut client = cluster.connect("bench", "postgres", "holder")?;
    client.batch_execute("BEGIN; LOCK TABLE address IN ACCESS SHARE MODE")?;
    Ok(std::thread::spawn(move || {
        std::thread::sleep(held);
        Ok(client.batch_execute("COMMIT")?)
    }))
}

fn start_clients(cluster: &Cluster, rows: i64, old_shape: bool) -> Result<(Vec<Runner>, Record)> {
    let record = Record::default();
    let (read, write, insert) = if old_shape {
        (
            "SELECT street FROM address WHERE id = $1",
            "UPDATE address SET street = 'Elm Street ' || $1::bigint WHERE id = $1",
            "INSERT INTO address (street) VALUES ('Main Street 1')",
        )
    } else {
        (
            "SELECT streetname, housenumber FROM address WHERE id = $1",
            "UPDATE address SET housenumber = $1::bigint::text WHERE id = $1",
            "INSERT INTO address (streetname, housenumber) VALUES ('Main Street', '1')",
        )
    };
    let mut runners = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = cluster.connect("bench", "postgres", "client")?;
        let error = |e: pg_zdd_cluster::postgres::Error| -> Error { describe(&e).into() };
        let read = client.prepare(read).map_err(error)?;
        let write = client.prepare(write).map_err(error)?;
        let insert = client.prepare(insert).map_err(error)?;
        let record = record.clone();
        let mut rng = Rng::new();
        runners.push(Runner::start(PACE, move || {
            let id = rng.i64(1..=rows);
            match rng.u8(..10) {
                0..5 => record.time("read", || client.query(&read, &[&id]).map(drop)),
                5..9 => record.time("write", || client.execute(&write, &[&id]).map(drop)),
                _ => record.time("insert", || client.execute(&insert, &[]).map(drop)),
            };
        }));
    }
    Ok((runners, record))
}

fn stop_clients(runners: Vec<Runner>, record: &Record) -> Result<()> {
    runners.into_iter().for_each(Runner::stop);
    match record.failures().first() {
        None => Ok(()),
        Some(failure) => Err(format!("a client's statement failed: {}", failure.text).into()),
    }
}

fn fresh_table(bench: &mut Bench, rows: i64) -> Result<()> {
    bench.run("DROP TABLE IF EXISTS address")?;
    bench.run(&format!(
        "CREATE TABLE address (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street varchar NOT NULL);
         INSERT INTO address (street) SELECT {SOURCE} FROM generate_series(1, {rows}) g"
    ))?;
    bench.run("VACUUM ANALYZE address")?;
    bench.run("CHECKPOINT")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
