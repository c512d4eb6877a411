//! What DDL costs on tables that pg_zdd has nothing to do with: in a database without it, in one with it, and in one with a
//! thousand active changes. All three have the same tables, and take turns in short runs.
//!
//! As in `usage`, the processor time of the server's process is measured as well as the time that passes: other processes
//! do not add to it.

use std::path::Path;
use std::time::Instant;

use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Cluster, Result};
use serde_json::{Map, Value, json};

use crate::stats::{Series, turns};
use crate::subject::run;

const CONF: [(&str, &str); 4] = [
    ("autovacuum", "off"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1h"),
    ("max_locks_per_transaction", "1000"),
];

const DATABASES: [&str; 3] = ["without pg_zdd", "no change", "1,000 changes"];
const TABLES: &str = "
    DO $$ BEGIN
        FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (a text, b text, c text)', i); END LOOP;
    END $$";
/// Made anew for each round: what a table has lost of columns slows it down.
const ELSEWHERE: &str = "DROP TABLE IF EXISTS elsewhere; CREATE TABLE elsewhere (a text)";
/// Instead of two columns of these tables there are changes that have them.
const CHANGES: &str = "
    DO $$ BEGIN
        FOR i IN 1..1000 LOOP
            EXECUTE format('ALTER TABLE t%s DROP COLUMN b, DROP COLUMN c', i);
            PERFORM zdd.split_column(format('t%s', i)::regclass, 'a', 'b text, c text', delimiter => ' ');
        END LOOP;
    END $$";

/// Rounds, and how often each statement runs in one.
const ROUNDS: usize = 15;
const REPEATS: usize = 100;
/// The most that a ratio may be.
const AIM: f64 = 1.1;

const LOADS: [(&str, [&str; 2]); 3] = [
    ("CREATE TABLE, DROP TABLE", ["CREATE TABLE new (id bigint PRIMARY KEY, a text, b int)", "DROP TABLE new"]),
    ("ADD COLUMN, DROP COLUMN", ["ALTER TABLE elsewhere ADD COLUMN b int", "ALTER TABLE elsewhere DROP COLUMN b"]),
    (
        "SET DEFAULT, DROP DEFAULT",
        ["ALTER TABLE elsewhere ALTER a SET DEFAULT 'x'", "ALTER TABLE elsewhere ALTER a DROP DEFAULT"],
    ),
];

/// Microseconds that the two statements of a load take.
#[derive(Default)]
struct Times {
    passed: Series,
    processor: Series,
}

/// Runs the rounds, prints what came of them and keeps every figure in results/ddl.json.
pub fn measure() -> Result<()> {
    println!("ddl: elsewhere in a database; microseconds that pass, and of the server's process");
    let cluster = Cluster::start(&CONF)?;
    for (number, database) in DATABASES.iter().enumerate() {
        println!("  {database}: 1,000 tables");
        run(&mut cluster.connect("postgres", "postgres", "bench")?, &format!("CREATE DATABASE {}", name(number)))?;
        let mut client = connect(&cluster, number)?;
        run(&mut client, TABLES)?;
        if number > 0 {
            run(&mut client, "CREATE EXTENSION pg_zdd")?;
        }
        if number > 1 {
            run(&mut client, CHANGES)?;
        }
        run(&mut client, "VACUUM ANALYZE")?;
    }
    let mut json = Map::new();
    for (load, statements) in LOADS {
        report(load, &rounds(&cluster, statements, REPEATS)?, &mut json);
    }
    // What begins with a session: the library is loaded, and everything is looked up for the first time.
    report("the first of a session", &rounds(&cluster, LOADS[2].1, 1)?, &mut json);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("ddl.json");
    std::fs::write(&file, format!("{:#}\n", json!({ "rounds": ROUNDS, "repeats": REPEATS, "figures": json })))?;
    println!("written to {}", file.display());
    Ok(())
}

fn name(database: usize) -> String {
    format!("ddl{database}")
}

fn connect(cluster: &Cluster, database: usize) -> Result<Client> {
    cluster.connect(&name(database), "postgres", "bench")
}

/// In each round each database gets a new session. Where the statements are repeated, it warms up first.
fn rounds(cluster: &Cluster, statements: [&str; 2], repeats: usize) -> Result<Vec<Times>> {
    let mut all: Vec<Times> = DATABASES.iter().map(|_| Times::default()).collect();
    for (_, database) in turns(ROUNDS, DATABASES.len()) {
        run(&mut connect(cluster, database)?, ELSEWHERE)?;
        let mut client = connect(cluster, database)?;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let mut repeat = |times: usize| {
            (0..times).try_for_each(|_| statements.iter().try_for_each(|statement| run(&mut client, statement)))
        };
        if repeats > 1 {
            repeat(3)?;
        }
        let (passed, processor) = (Instant::now(), processor_time(pid)?);
        repeat(repeats)?;
        let micros = |seconds: f64| seconds * 1e6 / repeats as f64;
        all[database].passed.add(micros(passed.elapsed().as_secs_f64()));
        all[database].processor.add(micros(processor_time(pid)? - processor));
    }
    Ok(all)
}

/// Seconds on a processor so far.
fn processor_time(pid: i32) -> Result<f64> {
    let account = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds: f64 = account.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}

fn report(load: &str, all: &[Times], json: &mut Map<String, Value>) {
    println!("  {load}");
    let median = |series: &Series| series.median().unwrap_or(f64::NAN);
    for (database, times) in DATABASES.iter().zip(all) {
        let (passed, processor) = (median(&times.passed), median(&times.processor));
        let ratios = (passed / median(&all[0].passed), processor / median(&all[0].processor));
        println!(
            "    {database:<16}{passed:>9.0} passed, ratio {:.3}{processor:>9.0} processor, ratio {:.3} (aim {AIM})",
            ratios.0, ratios.1
        );
        json.insert(
            format!("{load}, {database}"),
            json!({ "passed_us": times.passed, "processor_us": times.processor, "ratio_passed": ratios.0, "ratio_processor": ratios.1 }),
        );
    }
}
