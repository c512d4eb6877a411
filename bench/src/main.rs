//! pg_zdd side by side with what people use today, on one scratch server, in interleaved rounds: whatever else the
//! machine does hits all of them. Read the ratios, not the seconds.
//!
//! `pg_zdd_bench [writes] [backfill] [load] [lifecycle] [locks] [cases] [report]` (`make bench PARTS=…`), by default all of
//! these; `usage` alone measures what recording usage costs, and `ddl` alone what other DDL costs.
//! From the environment: ROWS (default 1,000,000), ROUNDS (default 3), FULL=1 for a table ten times as large, and
//! ONLY="pgroll floor" for some of the contenders.

mod backfill;
mod cases;
mod chart;
mod clients;
mod contender;
mod ddl;
mod lifecycle;
mod load;
mod locks;
mod report;
mod stats;
mod subject;
mod svg;
mod table;
mod usage;
mod writes;

use std::time::Instant;

use pg_zdd_cluster::{Cluster, Result};

use contender::Contender;
use report::{Machine, NotRun, Part};

/// As a server would be set up for such work, except that nothing runs on its own while we measure.
const CONF: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1h"),
    ("fsync", "on"),
    ("autovacuum", "off"),
    // Nothing here takes that long, unless it hangs.
    ("statement_timeout", "1h"),
];

const PARTS: [&str; 7] = ["writes", "backfill", "load", "lifecycle", "locks", "cases", "report"];

pub struct Bench {
    pub cluster: Cluster,
    pub rows: i64,
    pub rounds: usize,
    /// With a table ten times as large.
    pub full: bool,
    /// Statements per second that count as half load in `load`; None: half of what the server can do.
    pub rate: Option<u32>,
    /// Each with the reason why it cannot run here, if it cannot.
    contenders: Vec<(Box<dyn Contender>, Option<String>)>,
    started: Instant,
}

impl Bench {
    /// Of the contenders that a part is about: who can run here, and who cannot.
    pub fn contenders(&self, wanted: fn(&dyn Contender) -> bool) -> (Vec<&dyn Contender>, Vec<NotRun>) {
        let (mut can, mut cannot) = (Vec::new(), Vec::new());
        for (contender, missing) in self.contenders.iter().filter(|(contender, _)| wanted(&**contender)) {
            match missing {
                None => can.push(&**contender),
                Some(reason) => cannot.push(NotRun { name: contender.name().to_owned(), reason: reason.clone() }),
            }
        }
        (can, cannot)
    }

    /// What is going on, for whoever waits.
    pub fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    fn part<P: Part>(&self, wanted: &[String], measure: fn(&Bench) -> Result<P>) -> Result<()> {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == P::NAME) {
            return Ok(());
        }
        self.say(P::NAME);
        let machine = Machine::new(&self.cluster, self.rows, self.rounds)?;
        report::keep(machine, measure(self)?)
    }
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    // They have servers of their own, and no place in the report.
    match wanted.as_slice() {
        [part] if part == "usage" => return usage::run(),
        [part] if part == "ddl" => return ddl::measure(),
        _ => {}
    }
    if let Some(unknown) = wanted.iter().find(|name| !PARTS.contains(&name.as_str())) {
        return Err(format!("there is no part {unknown}, but {}", PARTS.join(", ")).into());
    }
    if wanted != ["report"] {
        measure(&wanted)?;
    }
    report::publish()
}

fn measure(wanted: &[String]) -> Result<()> {
    let number = |name: &str, default: i64| match std::env::var(name) {
        Ok(value) => value.parse().map_err(|e| format!("{name}: {e}")),
        Err(_) => Ok(default),
    };
    let (rows, rounds) = (number("ROWS", 1_000_000)?, number("ROUNDS", 3)?);
    let full = number("FULL", 0)? > 0;
    let rate = u32::try_from(number("RATE", 0)?).ok().filter(|rate| *rate > 0);
    let cluster = Cluster::start(CONF)?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut contenders = Vec::new();
    for contender in contender::all() {
        if !only.is_empty() && !only.split_whitespace().any(|word| contender.name().contains(word)) {
            continue;
        }
        let missing = contender.missing(&cluster)?;
        if let Some(reason) = &missing {
            println!("not run: {}: {reason}", contender.name());
        }
        contenders.push((contender, missing));
    }
    let rounds = usize::try_from(rounds)?.max(1);
    let bench = Bench { cluster, rows, rounds, full, rate, contenders, started: Instant::now() };
    bench.part(wanted, writes::measure)?;
    bench.part(wanted, backfill::measure)?;
    bench.part(wanted, load::measure)?;
    bench.part(wanted, lifecycle::measure)?;
    bench.part(wanted, locks::measure)?;
    bench.part(wanted, cases::measure)
}
