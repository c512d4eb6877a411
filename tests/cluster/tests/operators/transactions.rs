//! Verbs in transactions: what one has not seen of the other decides nothing.

use pg_zdd_cluster::address::{address, wait_for};
use pg_zdd_cluster::session::Session;

use crate::stage::{BACKFILL, NEVER, START_BACKFILL, START_CONTRACT, Stage, TABLE, WORKERS, table_of, until_stuck};

const PAUSE: &str = "SELECT zdd.pause('address.street')";
const RESUME: &str = "SELECT zdd.resume('address.street')";
const LET_GO: &str = "SELECT zdd.alter_change('address.street', run_if => '')";

/// A change whose backfill in a worker goes on when it is let go.
#[track_caller]
fn waiting() -> Stage {
    let mut stage = Stage::expanding(TABLE, NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    stage.db.run(START_BACKFILL);
    wait_for(&mut stage.db, "SELECT waiting_for FROM zdd.progress", "run_if to be true");
    stage
}

/// A verb whose transaction has not ended, and another that waits for it. Returns what became of the other.
#[track_caller]
fn one_after_the_other(stage: &mut Stage, first: &str, second: &str) -> Result<(), String> {
    let mut operator = stage.db.another();
    operator.run(&format!("BEGIN; {first}"));
    let second = stage.db.another().in_background(second);
    until_stuck(&mut stage.db, &second);
    operator.run("COMMIT");
    second.join().1
}

#[test]
fn a_start_does_not_undo_a_pause() {
    let mut stage = waiting();
    let started = one_after_the_other(&mut stage, PAUSE, START_BACKFILL);
    let error = started.expect_err("it was paused");
    assert!(error.contains("(55000)") && error.contains("paused"), "{error}");
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(stage.db.text("SELECT state FROM zdd.progress"), "paused");
}

#[test]
fn a_pause_stops_what_has_just_been_started() {
    let mut stage = Stage::expanding(TABLE, NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    assert_eq!(one_after_the_other(&mut stage, START_BACKFILL, PAUSE), Ok(()));
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(stage.db.text("SELECT state FROM zdd.progress"), "paused");
}

#[test]
fn a_pause_stops_what_has_just_been_resumed() {
    let mut stage = waiting();
    stage.db.run(PAUSE);
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(one_after_the_other(&mut stage, RESUME, PAUSE), Ok(()));
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(stage.db.text("SELECT state FROM zdd.progress"), "paused");
}

#[test]
fn a_session_does_not_undo_a_pause() {
    let mut stage = waiting();
    let backfill = one_after_the_other(&mut stage, PAUSE, BACKFILL);
    let error = backfill.expect_err("it was paused");
    assert!(error.contains("(55000)") && error.contains("paused"), "{error}");
    assert_eq!(stage.db.text("SELECT state FROM zdd.progress"), "paused");
}

#[track_caller]
fn not_over_a_contract(call: &str) {
    let mut stage = Stage::expanded(TABLE, NEVER);
    // It does not begin before it commits.
    let started = one_after_the_other(&mut stage, START_CONTRACT, call);
    let error = started.expect_err("a contract is under way, or done");
    assert!((error.contains("(55006)") || error.contains("(55000)")) && error.contains("contract"), "{error}");
    stage.db.run("CALL zdd.wait_for('address.street', 'contracted', '20 s')");
}

#[test]
fn no_backfill_starts_over_a_contract() {
    not_over_a_contract(START_BACKFILL);
}

#[test]
fn no_session_backfills_over_a_contract() {
    not_over_a_contract(BACKFILL);
}

#[test]
fn no_contract_starts_over_a_contract() {
    not_over_a_contract(START_CONTRACT);
}

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM zdd.change";

#[test]
fn one_column_is_split_once_whatever_a_snapshot_sees() {
    let split = |change: &str, targets: &str| {
        format!("SELECT zdd.split_column('address', 'street', '{targets}', delimiter => ' ', change => '{change}')")
    };
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut db = Session::new();
        db.run(TABLE);
        let mut late = db.another();
        late.run(&SNAPSHOT.replace("REPEATABLE READ", level));
        db.run(&split("one", "a text, b text"));
        let error = late.error(&split("two", "c text, d text"));
        assert!(error.contains("(42710)") || error.contains("(40001)") || error.contains("(55006)"), "{error}");
        late.run("ROLLBACK");
        assert_eq!(db.text("SELECT change FROM zdd.changes"), "one");
    }
}

/// In a transaction that sees too little: done, or refused as a failure of serialization.
#[track_caller]
fn in_an_old_snapshot(db: &mut Session, meanwhile: &str, call: &str) {
    let mut late = db.another();
    late.run(SNAPSHOT);
    meanwhile.split(';').for_each(|statement| db.run(statement));
    let ended = late.attempt(call);
    assert!(ended.as_ref().err().is_none_or(|error| error.contains("(40001)")), "{ended:?}");
    late.run("ROLLBACK");
}

#[test]
fn a_start_in_a_snapshot_from_before_another() {
    let mut stage = Stage::expanding(TABLE, NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    in_an_old_snapshot(&mut stage.db, START_BACKFILL, START_BACKFILL);
    stage.db.run(LET_GO);
    stage.db.run("CALL zdd.wait_for('address.street', 'expanded', '20 s')");
}

#[test]
fn a_start_in_a_snapshot_from_before_the_table_grew() {
    let mut stage = Stage::expanded(TABLE, NEVER);
    let grow = "INSERT INTO address SELECT i, 'Oak ' || i FROM generate_series(101, 20000) AS i";
    in_an_old_snapshot(&mut stage.db, &format!("{grow}; {BACKFILL}"), START_BACKFILL);
}

#[test]
fn a_start_in_a_snapshot_from_before_the_change() {
    let mut db = Session::new();
    db.run("CREATE TABLE other (id int)");
    let mut late = db.another();
    late.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM other");
    let mut db = address(db, 100);
    let ended = late.attempt(START_BACKFILL);
    assert!(
        ended.as_ref().err().is_none_or(|error| error.contains("(42704)") || error.contains("(40001)")),
        "{ended:?}"
    );
    late.run("ROLLBACK");
    db.run(BACKFILL);
}

/// What the clock of a worker says, as its conditions ask for it.
#[test]
fn time_goes_on_in_a_worker() {
    let mut stage = Stage::expanding(&table_of(5000), NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    let in_seconds = |stage: &mut Stage, seconds: u32| {
        stage.db.text(&format!("SELECT quote_literal(clock_timestamp() + interval '{seconds} s')"))
    };
    // A window that closes, and one that opens, after the worker has begun.
    let soon = in_seconds(&mut stage, 3).replace('\'', "''");
    stage.db.run(&format!("SELECT zdd.alter_change('address.street', run_if => 'now() < {soon}')"));
    stage.db.run(START_BACKFILL);
    wait_for(&mut stage.db, "SELECT rows_split > 0 FROM zdd.changes", "t");
    let waits = "SELECT count(*) FROM zdd.progress WHERE waiting_for = 'run_if to be true'";
    wait_for(&mut stage.db, waits, "1");
    let soon = in_seconds(&mut stage, 3).replace('\'', "''");
    stage.db.run(&format!(
        "SELECT zdd.alter_change('address.street', max_rows_per_second => 0, run_if => 'now() > {soon}')"
    ));
    stage.db.run("CALL zdd.wait_for('address.street', 'expanded', '20 s')");
    assert_eq!(stage.db.text("SELECT count(*) FROM zdd.events WHERE event = 'error'"), "0");
}

/// Its transactions are as short as they look to those who look for long ones, a pause among them.
#[test]
fn transactions_of_a_worker_begin_when_they_begin() {
    // healthy workers.
    let mut stage = Stage::expanding(&table_of(30_000), NEVER);
    stage.db.run(
        "SELECT zdd.alter_change('address.street', max_rows_per_second => 2000, batch_target => '1ms');
         SELECT zdd.start_backfill('address.street')",
    );
    wait_for(&mut stage.db, "SELECT bool_or(started_at < clock_timestamp() - interval '2 s') FROM zdd.workers", "t");
    let ages = "SELECT extract(epoch FROM clock_timestamp() - xact_start) FROM pg_stat_activity
        WHERE backend_type LIKE 'pg_zdd worker%' AND datname = current_database() AND xact_start IS NOT NULL";
    let mut seen = Vec::new();
    while seen.len() < 20 {
        assert_eq!(stage.phase(), "expanding", "it was over too soon: {seen:?}");
        let age = stage.db.text(ages);
        seen.extend(age.parse::<f64>());
    }
    assert!(seen.iter().all(|age| *age < 1.0), "{seen:?}");
}
