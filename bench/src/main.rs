//! pg_zdd side by side with the alternatives, on one scratch server, in interleaved rounds: whatever else the machine
//! does hits all of them. Read the ratios, not the seconds.
//!
//! `pg_zdd_bench [insert] [backfill] [locks]` or `usage` (`make bench PARTS=…`); ROWS (default 1,000,000) and ROUNDS (default 3)
//! from the environment.

mod backfill;
mod insert;
mod locks;
mod stats;
mod usage;

use std::path::Path;

use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Cluster, Result, describe};
use serde_json::{Value, json};

/// As a server would be set up for such work, except that nothing runs on its own while we measure.
const CONF: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1h"),
    ("fsync", "on"),
    ("autovacuum", "off"),
    // Nothing here takes that long, unless it hangs.
    ("statement_timeout", "10min"),
];

/// The split that all parts measure: a source of some 22 characters.
const SOURCE: &str = "'Rosenthaler Allee ' || (100 + g % 9900)";
const SPLIT: &str = r"columns => 'streetname varchar, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', join => '{streetname}[ {housenumber}]'";

type Part = fn(&mut Bench) -> Result<Value>;

pub struct Bench {
    pub cluster: Cluster,
    pub client: Client,
    pub rows: i64,
    pub rounds: usize,
}

impl Bench {
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).map_err(|e| format!("{}\n{sql}", describe(&e)).into())
    }

    pub fn split(&mut self, table: &str) -> Result<()> {
        self.run(&split(table))
    }
}

pub fn split(table: &str) -> String {
    format!("SELECT zdd.split_column('{table}', 'street', {SPLIT})")
}

fn main() -> Result<()> {
    let number = |name: &str, default: i64| match std::env::var(name) {
        Ok(value) => value.parse().map_err(|e| format!("{name}: {e}")),
        Err(_) => Ok(default),
    };
    // It has servers of its own.
    if std::env::args().skip(1).eq(["usage"]) {
        return usage::run();
    }
    let (rows, rounds) = (number("ROWS", 1_000_000)?, number("ROUNDS", 3)?);
    let cluster = Cluster::start(CONF)?;
    let client = cluster.create_database("bench")?;
    let mut bench = Bench { cluster, client, rows, rounds: usize::try_from(rounds)?.max(1) };

    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let parts: [(&str, Part); 3] = [("insert", insert::run), ("backfill", backfill::run), ("locks", locks::run)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            let figures = part(&mut bench)?;
            save(&mut bench, name, figures)?;
        }
    }
    Ok(())
}

fn save(bench: &mut Bench, name: &str, figures: Value) -> Result<()> {
    let server: String = bench.client.query_one("SELECT version()", &[])?.get(0);
    let cores = std::thread::available_parallelism()?.get();
    let result = json!({ "server": server, "cores": cores, "rounds": bench.rounds, "figures": figures });
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(name).with_extension("json");
    std::fs::write(&file, format!("{result:#}\n"))?;
    println!("written to {}\n", file.display());
    Ok(())
}
