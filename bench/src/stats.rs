//! Times of several rounds, boiled down.

use std::time::{Duration, Instant};

use pg_zdd_cluster::Result;
use serde_json::{Value, json};

/// The times of one contender, in seconds.
#[derive(Default)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64());
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn json(&self) -> Value {
        json!({ "seconds": self.0, "median": self.median(), "min": self.min(), "max": self.max() })
    }
}

pub fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    act()?;
    Ok(started.elapsed())
}

/// One line of a table of contenders: median, spread, and how it compares with the first of them.
pub fn print_line(name: &str, times: &Times, floor: f64) {
    println!(
        "  {name:<44}{:>8.3} s  ({:.3} to {:.3})  {:>6.2} x",
        times.median(),
        times.min(),
        times.max(),
        times.median() / floor
    );
}
