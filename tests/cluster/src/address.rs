//! The change that tests of backfills work on: `street` of a table `address`, split slowly enough to come in between.

use std::time::Duration;

use crate::session::Session;
use crate::wait_until;

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The rule of the change.
pub const RULE: &str = r#"columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]'"#;

/// Splits the street of `address`, slowly.
#[track_caller]
pub fn split(db: &mut Session) {
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    db.run("SELECT zdd.alter_change('address.street', batch_target => '1ms', max_rows_per_second => 20000)");
}

/// A table of addresses that is expanding.
#[track_caller]
pub fn address(mut db: Session, rows: i32) -> Session {
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text)");
    db.run(&format!("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, {rows}) AS i"));
    split(&mut db);
    db
}

/// How many rows the backfill has split.
#[track_caller]
pub fn rows_split(db: &mut Session) -> i64 {
    db.number("SELECT rows_split FROM zdd.changes")
}

/// Waits until a query gives this text.
#[track_caller]
pub fn wait_for(db: &mut Session, sql: &str, expected: &str) {
    let mut last = String::new();
    let waited = wait_until("", PATIENCE, || {
        last = db.text(sql);
        Ok(last == expected)
    });
    let seen = |db: &mut Session| {
        db.text("SELECT * FROM zdd.progress")
            + "\n"
            + &db.text("SELECT * FROM zdd.workers")
            + "\n"
            + &db.text("TABLE zdd.events")
    };
    assert!(waited.is_ok(), "{sql}\nis not {expected} but {last}\n{}", seen(db));
}

/// Waits until the backfill has split so many rows, and is not at its end.
#[track_caller]
pub fn wait_for_rows(db: &mut Session, rows: i64) {
    wait_for(db, &format!("SELECT rows_split >= {rows} OR phase <> 'expanding' FROM zdd.changes"), "t");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding", "it was over too soon");
}

/// Every row is split, and the backfill has counted each row once.
#[track_caller]
pub fn check_expanded(db: &mut Session, rows: i64, split_by_backfill: i64) {
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    assert_eq!(
        db.text("SELECT rows, in_sync, unmatched, pending, diverged FROM zdd.verify('address.street')"),
        format!("{rows}|{rows}|0|0|0")
    );
    let counted = db.text("SELECT detail->>'rows_split' FROM zdd.events WHERE event = 'expanded'");
    assert_eq!((counted.parse(), rows_split(db)), (Ok(split_by_backfill), split_by_backfill));
}
