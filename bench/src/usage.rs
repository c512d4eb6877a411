//! What it costs that statements are seen: pgbench on tables that pg_zdd has nothing to do with, and a single-row SELECT on
//! one that it has, on a server that preloads pg_zdd and on one that does not. Both run all the time; pairs of short runs
//! take turns, so that whatever else the machine does hits both.
//!
//! Throughput is what counts, but on a machine with other work to do it says little. So the processor time that the
//! server's process spends on a statement is measured as well: other processes do not add to it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use pg_zdd_cluster::postgres::{Client, Statement};
use pg_zdd_cluster::{Cluster, Result, describe};
use serde_json::{Map, Value, json};

const CONF: [(&str, &str); 7] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    // What the disk does is not the question.
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("statement_timeout", "10min"),
];

/// Pairs of runs, and the seconds of each.
const PAIRS: usize = 10;
const SECONDS: &str = "2";
const SCALE: &str = "10";
const ROWS: i64 = 100_000;

/// Name, pgbench's arguments, and the least ratio that is good enough.
const LOADS: [(&str, &[&str], f64); 4] = [
    ("pgbench -S", &["-S"], 0.98),
    ("pgbench -S -M prepared", &["-S", "-M", "prepared"], 0.98),
    ("pgbench, TPC-B", &[], 0.98),
    ("SELECT by primary key, managed table", &["-M", "prepared", "-f", "-"], 0.95),
];

const SPLIT: &str =
    "SELECT zdd.split_column('address', 'street', 'streetname text, housenumber text', delimiter => ' ')";
const STATEMENT_LOADS: [(&str, &str); 2] = [
    ("unrelated table", "SELECT abalance FROM pgbench_accounts WHERE aid = $1"),
    ("managed table", "SELECT street FROM address WHERE id = $1::int"),
];
const STATEMENTS: i32 = 20_000;

const SELECT: &str = "\\set id random(1, 100000)\nSELECT street FROM address WHERE id = :id;\n";

/// Runs the pairs, prints what came of them and keeps every figure in results/usage.json.
pub fn run() -> Result<()> {
    println!("usage: with pg_zdd preloaded and without");
    let without = server(&CONF)?;
    let with = server(&[&CONF[..], &[("shared_preload_libraries", "pg_zdd")]].concat())?;
    let mut json = Map::new();
    processor_time(&with, &without, &mut json)?;
    transactions(&with, &without, &mut json)?;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("usage.json");
    std::fs::write(&file, format!("{:#}\n", json!({ "pairs": PAIRS, "seconds": SECONDS, "figures": json })))?;
    println!("written to {}", file.display());
    Ok(())
}

/// What the server's process does for a statement.
fn processor_time(with: &Cluster, without: &Cluster, json: &mut Map<String, Value>) -> Result<()> {
    println!(
        "  processor time of the server's process per prepared SELECT by primary key, {PAIRS} pairs of {STATEMENTS}:"
    );
    for (name, sql) in STATEMENT_LOADS {
        let (mut preloaded, mut plain) = (Processor::new(with, sql)?, Processor::new(without, sql)?);
        for pair in 0..=PAIRS {
            for preload in [pair % 2 == 0, pair % 2 == 1] {
                let processor = if preload { &mut preloaded } else { &mut plain };
                // The first run warms up.
                processor.measure(pair > 0)?;
            }
        }
        let (with, without) = (median(&preloaded.micros), median(&plain.micros));
        let least = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "  {name:<40}{with:>9.2} us  {without:>9.2} us     {:.3} x (least of each {:.2} us, {:.2} us)",
            with / without,
            least(&preloaded.micros),
            least(&plain.micros)
        );
        json.insert(
            format!("processor time, {name}"),
            json!({ "with_us": preloaded.micros, "without_us": plain.micros, "ratio_of_medians": with / without }),
        );
    }
    Ok(())
}

/// What comes of it for clients.
fn transactions(with: &Cluster, without: &Cluster, json: &mut Map<String, Value>) -> Result<()> {
    println!("  transactions per second, {PAIRS} pairs of {SECONDS} s:");
    for (name, arguments, aim) in LOADS {
        // Once each to warm up.
        for cluster in [with, without] {
            throughput(cluster, arguments)?;
        }
        let (mut preloaded, mut plain) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let mut measure = |preload: bool| -> Result<()> {
                let (cluster, all) = if preload { (with, &mut preloaded) } else { (without, &mut plain) };
                all.push(throughput(cluster, arguments)?);
                Ok(())
            };
            // Neither always comes first.
            measure(pair % 2 == 0)?;
            measure(pair % 2 == 1)?;
        }
        let ratio = median(&preloaded) / median(&plain);
        let mut ratios: Vec<f64> = preloaded.iter().zip(&plain).map(|(with, without)| with / without).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        println!(
            "  {name:<40}{:>9.0} with{:>9.0} without   ratio {ratio:.3} (aim {aim}; pairs {low:.3} to {high:.3}, median {:.3})",
            median(&preloaded),
            median(&plain),
            median(&ratios)
        );
        json.insert(
            name.into(),
            json!({ "with": preloaded, "without": plain, "ratio_of_medians": ratio, "pair_ratios": ratios, "aim": aim }),
        );
    }
    Ok(())
}

/// A server with pgbench's tables, and a table with a change on.
fn server(conf: &[(&str, &str)]) -> Result<Cluster> {
    let cluster = Cluster::start(conf)?;
    let mut client = cluster.create_database("bench")?;
    let status = cluster
        .client_tool("pgbench", "bench")
        .args(["-i", "-q", "-s", SCALE])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err("pgbench -i failed".into());
    }
    let table = format!(
        "CREATE TABLE address (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street varchar NOT NULL);
         INSERT INTO address (street) SELECT 'Rosenthaler Allee ' || (100 + g % 9900) FROM generate_series(1, {ROWS}) g"
    );
    for sql in [&table, SPLIT, "CALL zdd.backfill('address.street')", "VACUUM ANALYZE address", "CHECKPOINT"] {
        client.batch_execute(sql).map_err(|e| describe(&e))?;
    }
    Ok(cluster)
}

/// Transactions per second of one client.
fn throughput(cluster: &Cluster, arguments: &[&str]) -> Result<f64> {
    let mut pgbench = cluster.client_tool("pgbench", "bench");
    pgbench.args(["-n", "-c", "1", "-T", SECONDS]).args(arguments);
    let mut child = pgbench.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Only the load that reads its script from there has an ear for it.
        let _ = stdin.write_all(SELECT.as_bytes());
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).ok_or("pgbench gave no tps")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// A connection that runs one statement again and again.
struct Processor {
    client: Client,
    statement: Statement,
    /// The server's process, as the system accounts for it.
    account: PathBuf,
    /// Per statement, of each measured run.
    micros: Vec<f64>,
}

impl Processor {
    fn new(cluster: &Cluster, sql: &str) -> Result<Processor> {
        let mut client = cluster.connect("bench", "postgres", "processor")?;
        let statement = client.prepare(sql)?;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        Ok(Processor { client, statement, account: format!("/proc/{pid}/schedstat").into(), micros: Vec::new() })
    }

    /// Nanoseconds on a processor so far.
    fn time(&self) -> Result<f64> {
        let account = std::fs::read_to_string(&self.account)?;
        Ok(account.split_whitespace().next().unwrap_or_default().parse()?)
    }

    fn measure(&mut self, keep: bool) -> Result<()> {
        let before = self.time()?;
        for id in 1..=STATEMENTS {
            self.client.query_one(&self.statement, &[&id])?;
        }
        if keep {
            self.micros.push((self.time()? - before) / f64::from(STATEMENTS) / 1000.0);
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
