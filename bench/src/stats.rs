//! The same figure from several rounds.

use std::time::Instant;

use pg_zdd_cluster::Result;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// None when there is no value.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    pub fn min(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    pub fn max(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    /// Median, and how far the values are apart: `1.23 (1.20 to 1.31)`.
    pub fn spread(&self, decimals: usize) -> String {
        match (self.median(), self.min(), self.max()) {
            (Some(median), Some(min), Some(max)) if self.count() > 1 => {
                format!("{median:.decimals$} ({min:.decimals$} to {max:.decimals$})")
            }
            (Some(median), ..) => format!("{median:.decimals$}"),
            _ => "".into(),
        }
    }
}

/// So many rounds of so many contenders, as round and contender: in each round another one comes first.
pub fn turns(rounds: usize, contenders: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rounds).flat_map(move |round| (0..contenders).map(move |turn| (round, (round + turn) % contenders)))
}

/// How many seconds something took.
pub fn seconds(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    act()?;
    Ok(started.elapsed().as_secs_f64())
}

/// `1,234,567`
pub fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number <= -0.5 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_spread() {
        let mut series = Series::default();
        assert_eq!((series.median(), series.spread(1)), (None, String::new()));
        series.add(3.0);
        assert_eq!(series.spread(1), "3.0");
        series.add(1.0);
        assert_eq!(series.median(), Some(2.0));
        series.add(10.0);
        assert_eq!(series.spread(1), "3.0 (1.0 to 10.0)");
    }

    #[test]
    fn everybody_comes_once_a_round_and_first_in_turn() {
        let all: Vec<_> = turns(2, 3).collect();
        assert_eq!(all, [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 0)]);
        assert_eq!(turns(2, 0).count(), 0);
    }

    #[test]
    fn groups_of_three_digits() {
        let texts = [0.0, 999.4, 1000.0, -1234567.0].map(thousands);
        assert_eq!(texts, ["0", "999", "1,000", "-1,234,567"]);
    }
}
