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
    let deadline = Instant::now() + timeout;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("waited {timeout:?} in vain until {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
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
