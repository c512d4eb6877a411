//! The change that tests of usage look at, the application that uses it, and what is recorded of that.

use crate::Cluster;
use crate::session::{Session, shared_cluster};

/// What a server needs to record usage.
pub const PRELOADED: (&str, &str) = ("shared_preload_libraries", "pg_zdd");

/// Ten addresses.
pub const TABLE: &str = "CREATE TABLE address (id int PRIMARY KEY, street text, city text);
    INSERT INTO address SELECT i, 'Elm ' || i, 'X' FROM generate_series(1, 10) AS i";
/// Begins the change.
pub const SPLIT: &str =
    "SELECT zdd.split_column('address', 'street', 'streetname text, housenumber text', delimiter => ' ')";
pub const BACKFILL: &str = "CALL zdd.backfill('address.street')";
pub const FENCE: &str = "SELECT zdd.fence('address.street')";
pub const CONTRACT: &str = "CALL zdd.contract('address.street')";

/// A cluster of a test's own.
#[track_caller]
pub fn start(conf: &[(&str, &str)]) -> Cluster {
    Cluster::start(conf).unwrap_or_else(|e| panic!("no cluster: {e}"))
}

/// A database with an expanded change that nobody has used, and the application that will, on the shared cluster.
#[track_caller]
pub fn expanded() -> (Session, Session) {
    expanded_on(shared_cluster())
}

/// The same on another cluster.
#[track_caller]
pub fn expanded_on(cluster: &Cluster) -> (Session, Session) {
    let mut db = Session::on(cluster);
    for sql in [TABLE, SPLIT, BACKFILL] {
        db.run(sql);
    }
    let app = application(&db, "shop");
    (db, app)
}

/// A connection of an application.
#[track_caller]
pub fn application(db: &Session, name: &str) -> Session {
    let mut app = db.another();
    app.run(&format!("SET application_name = '{name}'"));
    app
}

/// A line per application and side: reads, writes and errors.
#[track_caller]
pub fn usage(db: &mut Session) -> String {
    db.text(
        "SELECT application_name, side, reads || 'r' || writes || 'w' || errors || 'e' FROM zdd.usage
         ORDER BY application_name, side DESC",
    )
}

/// What [`usage`] says when the application has read the old column once.
pub const OLD_READ: &str = "shop|old|1r0w0e";
