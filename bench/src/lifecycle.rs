//! What the applications feel: clients of the old and the new version work on the table from before the change until
//! after it, at half of what the server can do and at all of it.

use std::time::{Duration, Instant};

use pg_zdd_cluster::Result;
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::clients::{Clients, Load, Summary, Trace};
use crate::contender::{self, Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::{Series, thousands, turns};
use crate::subject::Subject;
use crate::table::Table;

pub const CLIENTS: usize = 8;
/// Each takes a while.
pub const MOST_ROUNDS: usize = 2;
/// How long the clients work when nothing else goes on.
const QUIET: Duration = Duration::from_millis(1500);
/// One point of the chart, in seconds.
pub const STRETCH: f64 = 0.1;

/// Nobody but the applications; then the three steps, with both versions side by side before the last one.
pub const STEPS: [&str; 5] = ["before", "start", "backfill", "side by side", "complete"];

#[derive(Serialize, Deserialize)]
pub struct Lifecycle {
    pub rows: i64,
    pub loads: Vec<AtLoad>,
    pub not_run: Vec<NotRun>,
}

#[derive(Serialize, Deserialize)]
pub struct AtLoad {
    pub name: String,
    /// Statements per second of all clients; None: as many as they can.
    pub rate: Option<f64>,
    pub contenders: Vec<Felt>,
}

#[derive(Serialize, Deserialize)]
pub struct Felt {
    pub name: String,
    /// One per round.
    pub rounds: Vec<Round>,
    pub failed: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Round {
    /// In the order of STEPS. None: this contender has no such step.
    pub steps: Vec<Option<Step>>,
    /// The worst wait in each stretch, in milliseconds.
    pub worst_waits: Vec<f64>,
}

#[derive(Serialize, Deserialize)]
pub struct Step {
    pub from: f64,
    pub to: f64,
    pub felt: Summary,
}

pub fn measure(bench: &Bench) -> Result<Lifecycle> {
    let rows = bench.rows / 20;
    let (contenders, not_run) = bench.contenders(|contender| !contender.is_floor());
    let most = saturation(bench, rows)?;
    let rounds = bench.rounds.min(MOST_ROUNDS);
    let mut loads = Vec::new();
    for (name, rate) in [("half load", Some(most / 2.0)), ("saturation", None)] {
        let load = Load { clients: CLIENTS, rate: rate.map(|rate| rate / CLIENTS as f64) };
        let mut all: Vec<Felt> = contenders.iter().map(|contender| Felt::new(contender.name())).collect();
        for (round, which) in turns(rounds, contenders.len()) {
            let felt = &mut all[which];
            if felt.failed.is_some() {
                continue;
            }
            bench.say(&format!("{name}, round {}: {}", round + 1, felt.name));
            match one_round(bench, contenders[which], rows, load) {
                Ok(round) => felt.rounds.push(round),
                Err(e) => felt.failed = Some(e.to_string()),
            }
        }
        loads.push(AtLoad { name: name.to_owned(), rate, contenders: all });
    }
    Ok(Lifecycle { rows, loads, not_run })
}

/// How many statements a second the clients can do when nothing is in their way.
pub fn saturation(bench: &Bench, rows: i64) -> Result<f64> {
    let db = Subject::with_rows(&bench.cluster, rows)?;
    let plain = contender::floor();
    let epoch = Instant::now();
    let load = Load { clients: CLIENTS, rate: None };
    let clients = Clients::start(&db, &*plain, Version::Old, load, epoch)?;
    let from = epoch.elapsed().as_secs_f64();
    std::thread::sleep(QUIET * 2);
    let to = epoch.elapsed().as_secs_f64();
    Ok(clients.stop()?.summary(from, to).per_second)
}

fn one_round(bench: &Bench, contender: &dyn Contender, rows: i64, load: Load) -> Result<Round> {
    let db = Subject::with_rows(&bench.cluster, rows)?;
    contender.adopt(&db)?;
    db.run("CHECKPOINT")?;
    let mut run = Run { db: &db, contender, epoch: Instant::now(), trace: Trace::default(), spans: Vec::new() };
    let half = Load { clients: load.clients / 2, ..load };

    let old = run.clients(Version::Old, load)?;
    run.step("before", |_| quiet())?;
    run.step("start", |run| contender.start(run.db))?;
    if !contender.start_backfills() {
        run.step("backfill", |run| contender.backfill(run.db))?;
    }
    run.settle(vec![old])?;

    let both = vec![run.clients(Version::Old, half)?, run.clients(Version::New, half)?];
    run.step("side by side", |_| quiet())?;
    run.settle(both)?;

    let new = run.clients(Version::New, load)?;
    std::thread::sleep(QUIET / 3);
    run.step("complete", |run| contender.complete(run.db))?;
    run.settle(vec![new])?;
    Ok(run.result())
}

/// Nothing but the applications.
fn quiet() -> Result<()> {
    std::thread::sleep(QUIET);
    Ok(())
}

struct Run<'a> {
    db: &'a Subject<'a>,
    contender: &'a dyn Contender,
    epoch: Instant,
    trace: Trace,
    spans: Vec<(&'static str, f64, f64)>,
}

impl Run<'_> {
    fn clients(&self, version: Version, load: Load) -> Result<Clients> {
        Clients::start(self.db, self.contender, version, load, self.epoch)
    }

    fn step(&mut self, name: &'static str, act: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let from = self.epoch.elapsed().as_secs_f64();
        act(self).map_err(|e| format!("{name}: {e}"))?;
        self.spans.push((name, from, self.epoch.elapsed().as_secs_f64()));
        Ok(())
    }

    /// What a step leaves behind is felt for a moment after it.
    fn settle(&mut self, clients: Vec<Clients>) -> Result<()> {
        std::thread::sleep(QUIET / 3);
        clients.into_iter().try_for_each(|clients| -> Result<()> {
            self.trace.add(clients.stop()?);
            Ok(())
        })
    }

    fn result(self) -> Round {
        let end = self.epoch.elapsed().as_secs_f64();
        let step = |name: &&str| {
            let &(_, from, to) = self.spans.iter().find(|span| span.0 == *name)?;
            Some(Step { from, to, felt: self.trace.summary(from, to) })
        };
        Round { steps: STEPS.iter().map(step).collect(), worst_waits: self.trace.worst_waits(STRETCH, end) }
    }
}

impl Felt {
    fn new(name: &str) -> Felt {
        Felt { name: name.to_owned(), rounds: Vec::new(), failed: None }
    }

    /// A figure of a step, over the rounds.
    fn series(&self, step: usize, figure: impl Fn(&Summary) -> f64) -> Series {
        let mut series = Series::default();
        self.rounds
            .iter()
            .filter_map(|round| round.steps[step].as_ref())
            .for_each(|step| series.add(figure(&step.felt)));
        series
    }

    fn first_error(&self) -> Option<String> {
        let steps = self.rounds.iter().flat_map(|round| round.steps.iter().flatten());
        steps.into_iter().find_map(|step| step.felt.first_error.clone())
    }
}

impl Part for Lifecycle {
    const NAME: &'static str = "lifecycle";

    fn tables(&self) -> Vec<Table> {
        self.loads.iter().map(|load| self.table(load)).collect()
    }
}

impl Lifecycle {
    fn table(&self, load: &AtLoad) -> Table {
        let header = [
            "",
            "step",
            "took s",
            "stmts/s",
            "worst second",
            "p50 ms",
            "p99 ms",
            "× before",
            "p99.9 ms",
            "longest ms",
            "failed",
        ];
        let asked = load.rate.map(|rate| format!(" ({} statements/s asked for)", thousands(rate))).unwrap_or_default();
        let rounds = load.contenders.iter().map(|felt| felt.rounds.len()).max().unwrap_or_default();
        let title = format!(
            "{CLIENTS} clients at {}{asked}, {} rows, rounds: {rounds}",
            load.name,
            thousands(self.rows as f64)
        );
        let mut table = Table::new(title, &header);
        for felt in &load.contenders {
            if let Some(reason) = &felt.failed {
                table.failed(&felt.name, reason);
                continue;
            }
            let quiet = felt.series(0, |felt| felt.p99).median();
            for (number, step) in STEPS.iter().enumerate() {
                let median = |figure: fn(&Summary) -> f64| felt.series(number, figure).median().unwrap_or_default();
                let failed = felt.series(number, |felt| felt.failed as f64);
                if failed.count() == 0 {
                    continue;
                }
                let p99 = median(|felt| felt.p99);
                table.row(vec![
                    if number == 0 { felt.name.clone() } else { String::new() },
                    step.to_string(),
                    format!("{:.2}", median(|felt| felt.seconds)),
                    thousands(median(|felt| felt.per_second)),
                    thousands(median(|felt| felt.worst_second)),
                    format!("{:.2}", median(|felt| felt.p50)),
                    format!("{p99:.1}"),
                    quiet.map(|quiet| format!("{:.1}", p99 / quiet)).unwrap_or_default(),
                    format!("{:.1}", median(|felt| felt.p999)),
                    felt.series(number, |felt| felt.longest).spread(0),
                    failed.spread(0),
                ]);
            }
            if let Some(error) = felt.first_error() {
                let error = error.lines().next().unwrap_or_default();
                table.row(vec![String::new(), format!("first error: {error}")]);
            }
        }
        self.not_run.iter().for_each(|left_out| table.not_run(&left_out.name, &left_out.reason));
        table
    }
}
