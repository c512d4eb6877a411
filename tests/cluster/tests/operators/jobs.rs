//! Backfills and repairs, and what others do meanwhile.

use pg_zdd_cluster::address::{PATIENCE, wait_for};
use pg_zdd_cluster::session::{Session, shared_cluster};
use pg_zdd_cluster::wait_until;

use crate::stage::{
    BACKFILL, FENCE, NEVER, ROLLBACK, START_BACKFILL, Stage, TABLE, VERIFIES, WORKERS, table_of,
    until_it_wants_the_table, until_stuck, worker,
};

/// An address that no rule splits in the first of three pieces that are counted one after the other.
const PIECES: &str =
    "UPDATE address SET street = '' WHERE id = 2; UPDATE address SET street = 'Middle 1' WHERE id = 7000";
const WHOLE: &str = "SELECT zdd.alter_change('address.street', unmatched => 'whole')";

/// Whatever has come of it: a change that is called expanded has no row that is pending.
#[track_caller]
fn check_nothing_pending(stage: &mut Stage) {
    let pending = stage.db.number("SELECT pending FROM zdd.verify('address.street')");
    assert!(stage.phase() != "expanded" || pending == 0, "expanded with {pending} rows pending");
    stage.db.run(BACKFILL);
    assert_eq!(stage.phase(), "expanded");
    let state = "SELECT unmatched, pending, diverged FROM zdd.verify('address.street')";
    assert_eq!(stage.db.text(state), "0|0|0");
}

#[test]
fn another_policy_between_two_pieces_of_a_count() {
    let mut stage =
        Stage::expanding(&format!("{}; {PIECES}", table_of(12_000)), &format!("t = 'Middle' AND {VERIFIES}"));
    assert!(stage.db.number("SELECT pg_relation_size('address') / 8192") > 2 * 256, "it is too small");
    // With a limit there is a pause between two pieces.
    stage.db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 10000000)");
    let backfill = stage.db.another().in_background(BACKFILL);
    stage.until_held();
    let mut operator = stage.db.another();
    operator.run("SET zdd.lock_timeout = '60s'");
    let alter = operator.in_background(WHOLE);
    until_it_wants_the_table(&mut stage.db, &alter);
    stage.open();
    assert_eq!(alter.join().1, Ok(()));
    // It may end with an error that says what has come in between.
    let (_, _) = backfill.join();
    check_nothing_pending(&mut stage);
}

#[test]
fn another_policy_while_an_index_is_built() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text)");
    db.run(
        "INSERT INTO address SELECT i, CASE WHEN i = 2 THEN '' ELSE 'Elm ' || i END FROM generate_series(1, 100) AS i",
    );
    db.run(
        "SELECT zdd.split_column('address', 'street', columns => 'streetname text, housenumber text',
            regex => '^(?<streetname>\\w+) (?<housenumber>\\d+)$', \"join\" => '{streetname} {housenumber}',
            indexes => '{housenumber}')",
    );
    let mut operator = db.another();
    // Goes together with reads and writes, and not with CREATE INDEX CONCURRENTLY.
    operator.run("BEGIN; LOCK TABLE address IN SHARE UPDATE EXCLUSIVE MODE");
    db.run(START_BACKFILL);
    wait_for(&mut db, "SELECT count(*) FROM zdd.workers WHERE doing LIKE 'builds index%'", "1");
    wait_for(&mut db, "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'address'::regclass AND NOT granted", "t");
    operator.run(WHOLE);
    operator.run("COMMIT");
    wait_for(&mut db, WORKERS, "0");
    let pending = db.number("SELECT pending FROM zdd.verify('address.street')");
    let phase = db.text("SELECT phase FROM zdd.changes");
    assert!(phase == "expanding" || pending == 0, "{phase} with {pending} rows pending");
}

/// A change that begins anew under the same name has another rule.
#[test]
fn a_repair_ends_with_its_change() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text)");
    db.run("INSERT INTO address SELECT i, 'Elm, ' || i || ' b' FROM generate_series(1, 100) AS i");
    let split = |delimiter: &str| {
        format!(
            "SELECT zdd.split_column('address', 'street', 'streetname text, housenumber text', delimiter => '{delimiter}')"
        )
    };
    db.run(&split(" "));
    db.run(BACKFILL);
    db.run("SET session_replication_role = replica; UPDATE address SET streetname = 'Fir' WHERE id = 1");
    let (mut operator, mut repairer) = (db.another(), db.another());
    operator.run("BEGIN; SELECT FROM address WHERE id = 1 FOR UPDATE");
    // It comes back again and again for the row that is locked, and then waits for the table for as long as it takes.
    repairer.run("SET zdd.lock_timeout = '60s'");
    let repair = repairer.in_background("CALL zdd.repair('address.street', winner => 'old')");
    let tries = format!("SELECT count(*) FROM pg_locks WHERE pid = {} AND relation = 'address'::regclass", repair.pid);
    wait_until("the repair has begun", PATIENCE, || Ok(db.number(&tries) > 0)).expect("a try");
    operator.run(ROLLBACK);
    until_stuck(&mut db, &repair);
    operator.run(&split(", "));
    operator.run("UPDATE address SET street = street; COMMIT");
    let (_, repaired) = repair.join();
    db.run(BACKFILL);
    let kept = "SELECT count(*) FROM address WHERE streetname = 'Elm' AND housenumber = id || ' b'";
    assert_eq!(db.text(kept), "100", "{repaired:?}");
    let error = repaired.expect_err("its change is over");
    assert!(error.contains("rolled_back") || error.contains("rolled back"), "{error}");
}

/// Fences while a backfill is about to open the table, with the rule that it has read before.
fn fenced_beside_a_backfill(call: &str) {
    let mut stage = Stage::expanded(TABLE, NEVER);
    let database = stage.db.text("SELECT current_database()");
    stage.db.run(&format!("ALTER DATABASE {database} SET zdd.lock_timeout = '60s'"));
    stage.db.run("CREATE TABLE traffic AS SELECT false AS is_low");
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'SELECT is_low FROM public.traffic')");
    let backfill = stage.db.another().in_background(call);
    wait_for(&mut stage.db, "SELECT waiting_for FROM zdd.progress", "run_if to be true");
    let mut operator = stage.db.another();
    operator.run(&format!("BEGIN; {FENCE}"));
    stage.db.run("UPDATE traffic SET is_low = true");
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'address'::regclass AND NOT granted";
    wait_for(&mut stage.db, waits, "t");
    operator.run("COMMIT");
    let (_, ended) = backfill.join();
    wait_for(&mut stage.db, WORKERS, "0");
    let errors = stage.db.text("SELECT error FROM zdd.event_error");
    assert!(!errors.contains("does not fit"), "{errors}");
    assert!(ended.as_ref().err().is_none_or(|error| error.contains("fence")), "{ended:?}");
    assert_eq!(stage.phase(), "fenced");
}

#[test]
fn a_fence_beside_a_backfill_in_a_session() {
    fenced_beside_a_backfill(BACKFILL);
}

#[test]
fn a_fence_beside_a_backfill_in_a_worker() {
    fenced_beside_a_backfill(START_BACKFILL);
}

/// What must be empty when all changes of a database are over.
const LEFT: &str = "SELECT 'job', change_id FROM zdd.job UNION ALL SELECT 'lane', change_id FROM zdd.lane
    UNION ALL SELECT 'skipped', change_id FROM zdd.skipped UNION ALL SELECT 'worker', change_id FROM zdd.worker
    UNION ALL SELECT 'sample', change_id FROM zdd.sample UNION ALL SELECT 'guarded', change_id FROM zdd.guarded
    UNION ALL SELECT 'built_index', change_id FROM zdd.built_index";

/// Gives a change up while the process that works on it does not move, outside of a transaction.
fn given_up_while_frozen(in_worker: bool) {
    let mut stage = Stage::expanding(&table_of(2000), NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    let (backfill, pid) = if in_worker {
        stage.db.run(START_BACKFILL);
        (None, worker(&mut stage.db))
    } else {
        let backfill = stage.db.another().in_background(BACKFILL);
        let pid = backfill.pid;
        (Some(backfill), pid)
    };
    wait_for(&mut stage.db, "SELECT count(*) FROM zdd.worker WHERE waiting_for = 'max_rows_per_second'", "1");
    let outside = format!(
        "SELECT count(*) FROM pg_locks WHERE pid = {pid} AND locktype <> 'userlock' AND mode <> 'ExclusiveLock'"
    );
    wait_until("it is frozen outside of a transaction", PATIENCE, || {
        shared_cluster().freeze_backend(pid)?;
        let is_outside = stage.db.number(&outside) == 0;
        if !is_outside {
            shared_cluster().thaw_backend(pid)?;
        }
        Ok(is_outside)
    })
    .expect("a moment outside of a transaction");
    stage.db.run("SET zdd.lock_patience = '5s'");
    let given_up = stage.db.attempt(ROLLBACK);
    shared_cluster().thaw_backend(pid).expect("a process");
    assert_eq!(given_up, Ok(()));
    if let Some(backfill) = backfill {
        let (_, _) = backfill.join();
    }
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(stage.db.text(LEFT), "");
    let after = "SELECT event FROM zdd.event WHERE id > (SELECT id FROM zdd.event WHERE event = 'rolled_back')";
    assert_eq!(stage.db.text(after), "");
}

#[test]
fn a_change_given_up_before_its_session_wakes_leaves_nothing() {
    given_up_while_frozen(false);
}

#[test]
fn a_change_given_up_before_its_worker_wakes_leaves_nothing() {
    given_up_while_frozen(true);
}
