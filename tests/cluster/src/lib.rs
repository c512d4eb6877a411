//! Scratch PostgreSQL clusters: made in a temporary folder, reached through a unix socket only, gone when dropped.
//!
//! Used by the integration tests, the demo and the bench, and by `make test` for pg_regress (`bin/scratch.rs`).

pub mod address;
mod cluster;
pub mod load;
pub mod session;
pub mod usage;

use std::time::{Duration, Instant};

pub use cluster::{Cluster, Stop};
pub use fastrand;
pub use postgres;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Polls until `condition` holds. The error names what was waited for.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    const SHORTEST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + timeout;
    loop {
        let asked = Instant::now();
        if condition()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("waited {timeout:?} in vain until {what}").into());
        }
        // What takes long to ask is not asked all the time: that would take the processor from what is waited for.
        std::thread::sleep((asked.elapsed() * 4).clamp(SHORTEST, LONGEST));
    }
}

/// The message of an error, and for one that came from the server also its SQLSTATE, DETAIL and HINT.
pub fn describe(error: &postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return error.to_string();
    };
    let mut text = format!("{}: {} ({})", db.severity(), db.message(), db.code().code());
    for (label, part) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
        if let Some(part) = part {
            text.push_str(&format!("\n{label}: {part}"));
        }
    }
    text
}
