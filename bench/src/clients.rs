//! Applications at work: clients that issue single-row statements all the time, at a constant rate or as fast as the
//! server answers, and what became of each statement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::types::ToSql;
use pg_zdd_cluster::postgres::{Client, Error, Statement};
use pg_zdd_cluster::{Result, describe};
use serde::{Deserialize, Serialize};

use crate::contender::{Contender, Version};
use crate::stats::Series;
use crate::subject::Subject;

/// How much the clients of one group ask for.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    /// Statements per second and client. None: the next one as soon as the last one is answered.
    pub rate: Option<f64>,
}

/// One statement. Times are seconds since the epoch of the trace.
struct Sample {
    /// When it should have been sent. At a constant rate a client that is held up owes the statements of that time:
    /// a user of the application waits for them too.
    due: f64,
    sent: f64,
    done: f64,
    error: Option<String>,
}

/// All statements of some groups of clients.
#[derive(Default)]
pub struct Trace(Vec<Sample>);

/// What a trace holds of a stretch of time.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    pub seconds: f64,
    pub statements: usize,
    pub per_second: f64,
    /// Milliseconds from when a statement was due.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// The p99 of a second, which is the median of all seconds: a few stalls of the disk change nothing about it.
    pub p99_of_second: f64,
    /// The fewest statements that were answered in any second which touches the stretch.
    pub worst_second: f64,
    /// The longest that a single statement took from when it was sent, in milliseconds.
    pub longest: f64,
    pub failed: usize,
    pub first_error: Option<String>,
}

impl Trace {
    pub fn add(&mut self, mut other: Trace) {
        self.0.append(&mut other.0);
    }

    pub fn summary(&self, from: f64, to: f64) -> Summary {
        let within: Vec<&Sample> = self.0.iter().filter(|s| s.due < to && s.done > from).collect();
        let mut waits: Vec<f64> = within.iter().map(|s| s.wait()).collect();
        waits.sort_by(f64::total_cmp);
        let answered = self.0.iter().filter(|s| from <= s.done && s.done < to).count();
        let errors: Vec<&String> = within.iter().filter_map(|s| s.error.as_ref()).collect();
        Summary {
            seconds: to - from,
            statements: within.len(),
            per_second: answered as f64 / (to - from).max(1e-9),
            p50: quantile(&waits, 0.5),
            p99: quantile(&waits, 0.99),
            p999: quantile(&waits, 0.999),
            p99_of_second: p99_of_second(&within, from),
            worst_second: self.worst_second(from, to),
            longest: within.iter().map(|s| (s.done - s.sent) * 1000.0).fold(0.0, f64::max),
            failed: errors.len(),
            first_error: errors.first().map(|&error| error.clone()),
        }
    }

    fn worst_second(&self, from: f64, to: f64) -> f64 {
        let mut answers: Vec<f64> = self.0.iter().map(|s| s.done).collect();
        answers.sort_by(f64::total_cmp);
        let (Some(&first), Some(&last)) = (answers.first(), answers.last()) else { return 0.0 };
        let before = |time: f64| answers.partition_point(|&done| done < time);
        let mut fewest = f64::INFINITY;
        let mut start = first.max(from - 0.9);
        while start < to && start + 1.0 <= last {
            fewest = fewest.min((before(start + 1.0) - before(start)) as f64);
            start += 0.1;
        }
        if fewest.is_finite() { fewest } else { 0.0 }
    }

    /// The longest wait of the statements that were due in each stretch of so many seconds, in milliseconds.
    pub fn worst_waits(&self, stretch: f64, to: f64) -> Vec<f64> {
        let mut worst = vec![0.0; (to / stretch).ceil() as usize];
        for sample in &self.0 {
            if let Some(worst) = worst.get_mut((sample.due / stretch) as usize) {
                *worst = f64::max(*worst, sample.wait());
            }
        }
        worst
    }
}

impl Sample {
    /// Milliseconds from when it was due.
    fn wait(&self) -> f64 {
        (self.done - self.due) * 1000.0
    }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn p99_of_second(samples: &[&Sample], from: f64) -> f64 {
    let mut seconds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        seconds.entry((sample.due - from).max(0.0) as u64).or_default().push(sample.wait());
    }
    let mut all = Series::default();
    for mut waits in seconds.into_values() {
        waits.sort_by(f64::total_cmp);
        all.add(quantile(&waits, 0.99));
    }
    all.median().unwrap_or_default()
}

/// A running group of clients, all of one version.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Trace>>,
}

impl Clients {
    /// When it returns, all have their plans and are at work.
    pub fn start(
        db: &Subject,
        contender: &dyn Contender,
        version: Version,
        load: Load,
        epoch: Instant,
    ) -> Result<Clients> {
        let rows: i64 = db.value("SELECT max(id) FROM public.address")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut applications = Vec::new();
        for _ in 0..load.clients {
            let mut client = db.application(contender, version)?;
            let sql = Sql::prepare(&mut client, version).map_err(|e| describe(&e))?;
            applications.push(Application { client, sql, version, rows, rng: Rng::new() });
        }
        let mut threads = Vec::new();
        for (number, mut application) in applications.into_iter().enumerate() {
            let stop = stop.clone();
            let period = load.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
            let offset = period.unwrap_or_default().mul_f64(number as f64 / load.clients as f64);
            threads.push(std::thread::spawn(move || application.work(&stop, period, offset, epoch)));
        }
        Ok(Clients { stop, threads })
    }

    pub fn stop(mut self) -> Result<Trace> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Trace::default();
        for thread in std::mem::take(&mut self.threads) {
            all.add(thread.join().map_err(|_| "a client panicked")?);
        }
        Ok(all)
    }
}

/// Whoever gives up in the middle leaves no clients at work.
impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Application {
    client: Client,
    sql: Sql,
    version: Version,
    rows: i64,
    rng: Rng,
}

struct Sql {
    read: Statement,
    write: Statement,
    other: Statement,
    insert: Statement,
}

impl Sql {
    fn prepare(client: &mut Client, version: Version) -> std::result::Result<Sql, Error> {
        let [read, write, insert] = match version {
            Version::Old => [
                "SELECT street, city FROM address WHERE id = $1",
                "UPDATE address SET street = 'Rosenthaler-Allee ' || $2::bigint WHERE id = $1",
                "INSERT INTO address (street) VALUES ('Rosenthaler-Allee ' || $1::bigint)",
            ],
            Version::New => [
                "SELECT streetname, housenumber, city FROM address WHERE id = $1",
                "UPDATE address SET streetname = 'Rosenthaler-Allee', housenumber = $2::bigint WHERE id = $1",
                "INSERT INTO address (streetname, housenumber) VALUES ('Rosenthaler-Allee', $1::bigint)",
            ],
        };
        Ok(Sql {
            read: client.prepare(read)?,
            write: client.prepare(write)?,
            other: client.prepare("UPDATE address SET city = 'Ort ' || $2::bigint WHERE id = $1")?,
            insert: client.prepare(insert)?,
        })
    }
}

impl Application {
    fn work(&mut self, stop: &AtomicBool, period: Option<Duration>, offset: Duration, epoch: Instant) -> Trace {
        let mut trace = Trace::default();
        let mut next = Instant::now() + offset;
        while !stop.load(Ordering::Relaxed) {
            let due = match period {
                Some(_) => next,
                None => Instant::now(),
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let sent = Instant::now();
            let result = self.step();
            let done = Instant::now();
            next = due + period.unwrap_or_default();
            let error = result.err().map(|e| describe(&e));
            if error.is_some() {
                // As a pool would: the statements are prepared anew.
                if let Ok(sql) = Sql::prepare(&mut self.client, self.version) {
                    self.sql = sql;
                }
            }
            let since = |time: Instant| (time - epoch).as_secs_f64();
            trace.0.push(Sample { due: since(due), sent: since(sent), done: since(done), error });
        }
        trace
    }

    /// Half reads, and of the writes twice as many to either side as new rows.
    fn step(&mut self) -> std::result::Result<(), Error> {
        let (id, number) = (self.rng.i64(1..=self.rows), self.rng.i64(1000..10_000));
        let both: [&(dyn ToSql + Sync); 2] = [&id, &number];
        match self.rng.u8(..10) {
            0..5 => self.client.query(&self.sql.read, &[&id]).map(drop),
            5..7 => self.client.execute(&self.sql.write, &both).map(drop),
            7..9 => self.client.execute(&self.sql.other, &both).map(drop),
            _ => self.client.execute(&self.sql.insert, &[&number]).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A statement every 10 ms for 4 s, each answered in 1 ms; but those that are due from 1 s on for half a second
    /// are all answered at 1.5 s, and the last of them with an error.
    fn held_up() -> Trace {
        let sample = |number: i32| {
            let due = f64::from(number) / 100.0;
            let blocked = (100..150).contains(&number);
            let done = if blocked { 1.5 } else { due + 0.001 };
            let sent = if number == 100 || !blocked { due } else { 1.5 };
            Sample { due, sent, done, error: (number == 149).then(|| "too late".into()) }
        };
        Trace((0..400).map(sample).collect())
    }

    #[test]
    fn what_is_owed_counts_as_waiting() {
        let felt = held_up().summary(1.0, 1.5);
        assert_eq!((felt.statements, felt.failed, felt.first_error.as_deref()), (50, 1, Some("too late")));
        assert!((felt.p50 - 250.0).abs() < 11.0, "{}", felt.p50);
        assert!((felt.p999 - 500.0).abs() < 1.0, "{}", felt.p999);
        assert!((felt.longest - 500.0).abs() < 1.0, "{}", felt.longest);
    }

    #[test]
    fn the_worst_second_is_that_of_the_hold_up() {
        assert!(held_up().summary(1.0, 1.5).worst_second <= 60.0);
        assert!(held_up().summary(3.0, 3.5).worst_second >= 95.0);
    }

    #[test]
    fn waits_fall_into_the_stretch_in_which_they_began() {
        let waits = held_up().worst_waits(0.5, 2.0);
        let rounded: Vec<i64> = waits.iter().map(|wait| wait.round() as i64).collect();
        assert_eq!(rounded, [1, 1, 500, 1]);
    }
}
