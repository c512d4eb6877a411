//! What a backfill of a large table takes from the applications that keep the server half busy, at full speed and with a
//! limit.

use std::time::{Duration, Instant};

use pg_zdd_cluster::Result;
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::clients::{Clients, Load, Summary};
use crate::contender::zdd::Zdd;
use crate::contender::{self, Contender, Version};
use crate::lifecycle::{CLIENTS, MOST_ROUNDS, saturation};
use crate::report::{NotRun, Part};
use crate::stats::{Series, thousands, turns};
use crate::subject::Subject;
use crate::table::Table;

/// How long the clients work alone first.
const QUIET: Duration = Duration::from_secs(15);
/// And with a change that has begun, before its rows are split: what that beginning costs is in `lifecycle`.
const SETTLED: Duration = Duration::from_secs(2);
/// How long those clients are watched that nobody disturbs, to tell what the machine itself does.
const ALONE: Duration = Duration::from_secs(30);
/// With a limit there is time to look at the same clients with the backfill and without, in turn. Each stretch takes so long,
/// and begins so long after the one before, when sessions and workers have come and gone.
const STRETCH: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_secs(1);
const MOST_PAIRS: usize = 10;
/// Whoever takes longer than this many seconds has one round.
const LONG: f64 = 40.0;

#[derive(Serialize, Deserialize)]
pub struct UnderLoad {
    pub rows: i64,
    /// Statements per second that all clients ask for.
    pub rate: f64,
    pub rate_was_given: bool,
    pub contenders: Vec<Shared>,
    /// Without the backfill and with it, in turn.
    pub limited: Vec<Shared>,
    pub not_run: Vec<NotRun>,
}

#[derive(Serialize, Deserialize)]
pub struct Shared {
    pub name: String,
    pub splits: bool,
    /// One per round, or per turn.
    pub before: Vec<Summary>,
    /// While the rows are split.
    pub during: Vec<Summary>,
    pub failed: Option<String>,
}

pub fn measure(bench: &Bench) -> Result<UnderLoad> {
    let (mut contenders, not_run) = bench.contenders(|contender| !contender.is_floor());
    let has_workers = contenders.iter().any(|contender| contender.is_variant());
    let rate = match bench.rate {
        Some(rate) => rate.into(),
        None => saturation(bench, bench.rows)? / 2.0,
    };
    let nobody = contender::floor();
    contenders.insert(0, &*nobody);
    let mut all: Vec<Shared> = contenders.iter().map(|contender| Shared::new(contender.name())).collect();
    all[0] = Shared { splits: false, ..Shared::new("nobody: the clients alone") };
    for (round, which) in turns(bench.rounds.min(MOST_ROUNDS), contenders.len()) {
        let shared = &mut all[which];
        if shared.failed.is_some() || shared.during.iter().any(|during| during.seconds > LONG) {
            continue;
        }
        bench.say(&format!("round {}: {}", round + 1, shared.name));
        shared.failed = one_round(bench, contenders[which], rate, shared).err().map(|e| e.to_string());
    }
    let mut limited = Vec::new();
    for zdd in contender::limited().iter().filter(|_| has_workers) {
        bench.say(&format!("in turn: {}", zdd.name()));
        let mut shared = Shared::new(zdd.name());
        shared.failed = in_turn(bench, zdd, rate, &mut shared).err().map(|e| e.to_string());
        limited.push(shared);
    }
    Ok(UnderLoad { rows: bench.rows, rate, rate_was_given: bench.rate.is_some(), contenders: all, limited, not_run })
}

fn one_round(bench: &Bench, contender: &dyn Contender, rate: f64, shared: &mut Shared) -> Result<()> {
    let db = Subject::with_rows(&bench.cluster, bench.rows)?;
    contender.adopt(&db)?;
    db.run("CHECKPOINT")?;
    let epoch = Instant::now();
    let clients = Clients::start(&db, contender, Version::Old, half_load(rate), epoch)?;
    let now = || epoch.elapsed().as_secs_f64();
    let first = now();
    std::thread::sleep(QUIET);
    let quiet = now();
    let mut from = quiet;
    if shared.splits {
        contender.start(&db)?;
        if !contender.start_backfills() {
            std::thread::sleep(SETTLED);
            from = now();
        }
        contender.backfill(&db)?;
    } else {
        std::thread::sleep(ALONE);
    }
    let to = now();
    std::thread::sleep(Duration::from_millis(500));
    let trace = clients.stop()?;
    shared.before.push(trace.summary(first, quiet));
    shared.during.push(trace.summary(from, to));
    Ok(())
}

/// Until all rows are split and verified, which happens in the last stretch, or for long enough.
fn in_turn(bench: &Bench, zdd: &Zdd, rate: f64, shared: &mut Shared) -> Result<()> {
    let db = Subject::with_rows(&bench.cluster, bench.rows)?;
    zdd.adopt(&db)?;
    zdd.start(&db)?;
    db.run("CHECKPOINT")?;
    let epoch = Instant::now();
    let clients = Clients::start(&db, zdd, Version::Old, half_load(rate), epoch)?;
    let now = || epoch.elapsed().as_secs_f64();
    std::thread::sleep(QUIET);
    zdd.start_backfill(&db)?;
    let mut stretches = Vec::new();
    while stretches.len() < MOST_PAIRS && !zdd.is_done(&db)? {
        zdd.pause(&db)?;
        std::thread::sleep(BETWEEN);
        let without = (now(), std::thread::sleep(STRETCH), now());
        zdd.resume(&db)?;
        std::thread::sleep(BETWEEN);
        let with = (now(), std::thread::sleep(STRETCH), now());
        stretches.push((without, with));
    }
    let trace = clients.stop()?;
    for ((without, (), until), (with, (), to)) in stretches {
        shared.before.push(trace.summary(without, until));
        shared.during.push(trace.summary(with, to));
    }
    Ok(())
}

fn half_load(rate: f64) -> Load {
    Load { clients: CLIENTS, rate: Some(rate / CLIENTS as f64) }
}

impl Shared {
    fn new(name: &str) -> Shared {
        Shared { name: name.to_owned(), splits: true, before: Vec::new(), during: Vec::new(), failed: None }
    }

    fn series(&self, figure: impl Fn(&Summary, &Summary) -> f64) -> Series {
        let mut series = Series::default();
        self.before.iter().zip(&self.during).for_each(|(before, during)| series.add(figure(before, during)));
        series
    }
}

impl Part for UnderLoad {
    const NAME: &'static str = "load";

    fn tables(&self) -> Vec<Table> {
        let header = [
            "",
            "took s",
            "runs",
            "rows/s",
            "throughput, × before",
            "p50 ms",
            "p99 ms",
            "p99, × before",
            "p99 of a second",
            "× before",
            "p99.9 ms",
            "longest ms",
            "failed",
        ];
        let title = format!(
            "{} rows are split while {CLIENTS} clients ask for {} statements/s{}",
            thousands(self.rows as f64),
            thousands(self.rate),
            if self.rate_was_given { "" } else { ", half of what the server can do" }
        );
        let mut table = Table::new(title, &header);
        for shared in &self.contenders {
            if let Some(reason) = &shared.failed {
                table.failed(&shared.name, reason);
                continue;
            }
            let took = shared.series(|_, during| during.seconds);
            table.row(vec![
                shared.name.clone(),
                took.spread(1),
                took.count().to_string(),
                took.median()
                    .filter(|_| shared.splits)
                    .map(|took| thousands(self.rows as f64 / took))
                    .unwrap_or_default(),
                shared.series(|before, during| during.per_second / before.per_second).spread(2),
                shared.series(|_, during| during.p50).spread(2),
                shared.series(|_, during| during.p99).spread(1),
                shared.series(|before, during| during.p99 / before.p99).spread(1),
                shared.series(|_, during| during.p99_of_second).spread(1),
                shared.series(|before, during| during.p99_of_second / before.p99_of_second).spread(1),
                shared.series(|_, during| during.p999).spread(1),
                shared.series(|_, during| during.longest).spread(0),
                shared.series(|_, during| during.failed as f64).spread(0),
            ]);
        }
        self.not_run.iter().for_each(|left_out| table.not_run(&left_out.name, &left_out.reason));
        vec![table, self.in_turn()]
    }
}

impl UnderLoad {
    fn in_turn(&self) -> Table {
        let title =
            format!("The same clients with a limited backfill and without it, {} s each in turn", STRETCH.as_secs());
        let header = [
            "",
            "pairs",
            "throughput, × without",
            "p50 ms: without",
            "with",
            "p99 ms: without",
            "with",
            "p99, × without",
            "longest ms: without",
            "with",
            "failed",
        ];
        let mut table = Table::new(title, &header);
        for shared in &self.limited {
            if let Some(reason) = &shared.failed {
                table.failed(&shared.name, reason);
                continue;
            }
            table.row(vec![
                shared.name.clone(),
                shared.during.len().to_string(),
                shared.series(|without, with| with.per_second / without.per_second).spread(2),
                shared.series(|without, _| without.p50).spread(2),
                shared.series(|_, with| with.p50).spread(2),
                shared.series(|without, _| without.p99).spread(1),
                shared.series(|_, with| with.p99).spread(1),
                shared.series(|without, with| with.p99 / without.p99).spread(1),
                shared.series(|without, _| without.longest).spread(0),
                shared.series(|_, with| with.longest).spread(0),
                shared.series(|_, with| with.failed as f64).spread(0),
            ]);
        }
        table
    }
}
