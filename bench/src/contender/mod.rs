//! The contenders: everyone who can split a column of a live table, and the floor that nobody can beat.
//!
//! A measurement drives each through this trait and knows nothing else of it.

mod blog;
mod by_hand;
mod floor;
mod pgroll;
mod reshape;
mod tool;
pub mod zdd;

use pg_zdd_cluster::{Cluster, Result};

use crate::subject::Subject;

/// A version of the application: the old one knows street, the new one streetname and housenumber.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Old,
    New,
}

pub trait Contender: Sync {
    fn name(&self) -> &str;

    /// How it is driven, in a sentence, for the page that shows the figures.
    fn how(&self) -> String;

    /// Why it cannot run here, if it cannot.
    fn missing(&self, _cluster: &Cluster) -> Result<Option<String>> {
        Ok(None)
    }

    /// What is done once and long before: never measured.
    fn adopt(&self, _db: &Subject) -> Result<()> {
        Ok(())
    }

    /// From its end on both shapes exist, and writes are carried over.
    fn start(&self, db: &Subject) -> Result<()>;

    /// Splits the rows from before.
    fn backfill(&self, _db: &Subject) -> Result<()> {
        Ok(())
    }

    /// Whether `start` splits the rows from before, so that there is no step of its own for it.
    fn start_backfills(&self) -> bool {
        false
    }

    /// The old column goes. By now the old application is gone.
    fn complete(&self, db: &Subject) -> Result<()>;

    /// The `search_path` that a version of the application has to set.
    fn search_path(&self, _version: Version) -> &'static str {
        "public"
    }

    /// The floor does not do the job. It only costs the least that the job can cost, with applications that write
    /// both shapes themselves.
    fn is_floor(&self) -> bool {
        false
    }

    /// Whether it differs from the one before only in who splits the rows from before.
    fn is_variant(&self) -> bool {
        false
    }
}

/// All of them, in the order of the tables.
pub fn all() -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(floor::Floor),
        Box::new(blog::Blog::SPLIT_PART),
        Box::new(blog::Blog::REGEXP_MATCH),
        Box::new(by_hand::ByHand),
        Box::new(pgroll::Pgroll),
        Box::new(reshape::Reshape),
        Box::new(zdd::Zdd::in_session()),
        Box::new(zdd::Zdd::with_workers(1)),
        Box::new(zdd::Zdd::with_workers(2)),
    ]
}

/// Those with a limit on the rows per second, which only makes sense beside applications.
pub fn limited() -> [zdd::Zdd; 3] {
    [30_000, 10_000, 2_500].map(zdd::Zdd::limited_to)
}

pub fn floor() -> Box<dyn Contender> {
    Box::new(floor::Floor)
}

/// The rule in PostgreSQL's own regular expressions: what is left of the last blank that a digit follows, and what is
/// right of it.
const PATTERN: &str = r"^(.+?)(?:\s+(\d\S*))?$";
