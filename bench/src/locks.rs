//! How long an application's statement waits while a report or a forgotten transaction holds the table for seconds,
//! and the change wants its lock.

use std::time::{Duration, Instant};

use pg_zdd_cluster::Result;
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::clients::{Clients, Load, Summary};
use crate::contender::{Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::thousands;
use crate::subject::Subject;
use crate::table::Table;

const LOAD: Load = Load { clients: 8, rate: Some(100.0) };
pub const HELD: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
pub struct Locks {
    pub rows: i64,
    pub contenders: Vec<Blocked>,
    pub not_run: Vec<NotRun>,
}

#[derive(Serialize, Deserialize)]
pub struct Blocked {
    pub name: String,
    /// The start and the complete of one lifecycle.
    pub steps: Vec<(String, Summary)>,
    pub failed: Option<String>,
}

pub fn measure(bench: &Bench) -> Result<Locks> {
    let rows = bench.rows / 100;
    let (contenders, not_run) = bench.contenders(|contender| !contender.is_floor() && !contender.is_variant());
    let mut all = Vec::new();
    for contender in contenders {
        bench.say(contender.name());
        let mut blocked = Blocked { name: contender.name().to_owned(), steps: Vec::new(), failed: None };
        blocked.failed = lifecycle(bench, contender, rows, &mut blocked.steps).err().map(|e| e.to_string());
        all.push(blocked);
    }
    Ok(Locks { rows, contenders: all, not_run })
}

fn lifecycle(bench: &Bench, contender: &dyn Contender, rows: i64, steps: &mut Vec<(String, Summary)>) -> Result<()> {
    let db = Subject::with_rows(&bench.cluster, rows)?;
    contender.adopt(&db)?;
    let mut held = |name: &str, version: Version, act: &dyn Fn() -> Result<()>| -> Result<()> {
        let epoch = Instant::now();
        let clients = Clients::start(&db, contender, version, LOAD, epoch)?;
        std::thread::sleep(Duration::from_millis(300));
        let mut holder = db.connect("holder")?;
        holder.batch_execute("BEGIN; LOCK TABLE public.address IN ACCESS SHARE MODE")?;
        let holder = std::thread::spawn(move || {
            std::thread::sleep(HELD);
            holder.batch_execute("COMMIT")
        });
        let from = epoch.elapsed().as_secs_f64();
        let result = act();
        let to = epoch.elapsed().as_secs_f64();
        holder.join().map_err(|_| "the holder panicked")??;
        steps.push((name.to_owned(), clients.stop()?.summary(from, to)));
        result
    };
    held("start", Version::Old, &|| contender.start(&db))?;
    contender.backfill(&db)?;
    held("complete", Version::New, &|| contender.complete(&db))
}

impl Part for Locks {
    const NAME: &'static str = "locks";

    fn tables(&self) -> Vec<Table> {
        let title = format!(
            "A transaction holds the table (ACCESS SHARE) for {} s; 8 clients, 800 statements/s, {} rows",
            HELD.as_secs(),
            thousands(self.rows as f64)
        );
        let mut table = Table::new(title, &["", "step", "took s", "longest ms", "failed"]);
        for blocked in &self.contenders {
            for (number, (step, felt)) in blocked.steps.iter().enumerate() {
                table.row(vec![
                    if number == 0 { blocked.name.clone() } else { String::new() },
                    step.clone(),
                    format!("{:.2}", felt.seconds),
                    format!("{:.0}", felt.longest),
                    felt.failed.to_string(),
                ]);
            }
            if let Some(reason) = &blocked.failed {
                table.failed(&blocked.name, reason);
            }
        }
        self.not_run.iter().for_each(|left_out| table.not_run(&left_out.name, &left_out.reason));
        vec![table]
    }
}
