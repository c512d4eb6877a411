//! Background workers: when they begin, what stops them, what brings them back, and what they leave behind.

use std::time::{Duration, Instant};

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::address::{address, check_expanded, rows_split, split, wait_for, wait_for_rows};
use pg_zdd_cluster::session::Session;

const START: &str = "SELECT zdd.start_backfill('address.street')";
const RESUME: &str = "SELECT zdd.resume('address.street')";
const EXPANDED: &str = "CALL zdd.wait_for('address.street', 'expanded', '60 s')";
/// "Within a second", on a machine that does other things too.
const SOON: Duration = Duration::from_millis(2000);
/// Workers of this database, as PostgreSQL knows them.
const WORKERS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%' AND datname = current_database()";

/// The pid of the only worker, once there is one.
#[track_caller]
fn worker(db: &mut Session) -> i32 {
    wait_for(db, "SELECT count(*) FROM zdd.workers", "1");
    db.number("SELECT pid FROM zdd.workers") as i32
}

/// A backfill in a worker that goes on for minutes unless it is let go.
#[track_caller]
fn slow_backfill(db: Session, rows: i32) -> Session {
    let mut db = address(db, rows);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    db.run(START);
    worker(&mut db);
    db
}

#[track_caller]
fn let_go(db: &mut Session) {
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
}

/// Something must have happened by then.
#[track_caller]
fn soon(since: Instant, what: &str) {
    assert!(since.elapsed() < SOON, "{what} took {:?}", since.elapsed());
}

#[test]
fn rollback_starts_nothing_and_commit_starts_workers() {
    let mut db = address(Session::new(), 20_000);
    let workers_ever = "SELECT count(*) FROM zdd.worker";
    db.run(&format!("BEGIN; {START}; ROLLBACK"));
    db.run(&format!("BEGIN; SAVEPOINT s; {START}; ROLLBACK TO s; COMMIT"));
    db.run("BEGIN; SELECT zdd.split_column('address', 'note', columns => 'a text, b text', delimiter => ' ')");
    db.run("SELECT zdd.start_backfill('address.note'); ROLLBACK");
    assert!(db.error(&format!("BEGIN; {START}; SELECT 1/0")).contains("(22012)"));
    db.run("ROLLBACK");
    assert_eq!(db.text(WORKERS), "0");
    assert_eq!(db.text("SELECT job, state FROM zdd.progress"), "");
    assert_eq!(db.text(workers_ever), "0");

    db.run(&format!("BEGIN; {START}"));
    let other =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%' AND datname = current_database()";
    assert_eq!(db.another().text(other), "0");
    db.run("COMMIT");
    let pid = worker(&mut db);
    let activity = format!("SELECT backend_type, state, query FROM pg_stat_activity WHERE pid = {pid}");
    let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("a process");
    assert!(title.contains("pg_zdd: address.street: splits rows"), "{title}");
    let activity = db.text(&activity);
    assert!(activity.starts_with("pg_zdd worker|active|pg_zdd: address.street: splits rows"), "{activity}");
    assert_eq!(db.text("SELECT kind, doing FROM zdd.workers"), "background worker|splits rows");
    wait_for_rows(&mut db, 1);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
    wait_for(&mut db, WORKERS, "0");
    assert_eq!(db.text(workers_ever), "0");
}

#[test]
fn a_savepoint_that_is_rolled_back_takes_only_its_own_workers_along() {
    let mut db = address(Session::new(), 2_000);
    db.run("BEGIN; SELECT zdd.start_backfill('address.street', workers => 1)");
    db.run("SAVEPOINT s; SELECT zdd.start_backfill('address.street', workers => 3); ROLLBACK TO s");
    db.run("SAVEPOINT t; RELEASE t; COMMIT");
    db.run(EXPANDED);
    check_expanded(&mut db, 2_000, 2_000);
}

#[test]
fn several_workers_share_the_lanes_of_one_table() {
    const ROWS: i32 = 100_000;
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text) WITH (fillfactor = 10)");
    db.run(&format!("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, {ROWS}) AS i"));
    split(&mut db);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 10000)");
    db.run("SELECT zdd.start_backfill('address.street', workers => 3)");
    wait_for(&mut db, "SELECT workers FROM zdd.progress", "3");
    wait_for(&mut db, "SELECT count(DISTINCT taken_by) FROM zdd.lane WHERE next_block > first_block", "3");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, ROWS.into(), ROWS.into());
    wait_for(&mut db, WORKERS, "0");
}

#[test]
fn workers_spread_over_partitions() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text, note text) PARTITION BY HASH (id)");
    for n in 0..6 {
        db.run(&format!("CREATE TABLE address_{n} PARTITION OF address FOR VALUES WITH (MODULUS 6, REMAINDER {n})"));
    }
    db.run("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 30000) AS i");
    split(&mut db);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 3000)");
    db.run("SELECT zdd.start_backfill('address.street', workers => 3)");
    wait_for(&mut db, "SELECT count(DISTINCT taken_by) FROM zdd.lane WHERE next_block > first_block", "3");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 30_000, 30_000);
}

#[test]
fn more_workers_than_there_is_work_for() {
    let mut db = address(Session::new(), 1_000);
    db.run("SELECT zdd.start_backfill('address.street', workers => 8)");
    db.run(EXPANDED);
    check_expanded(&mut db, 1_000, 1_000);
    wait_for(&mut db, WORKERS, "0");
}

#[test]
fn pause_and_resume_take_effect_at_once() {
    let mut db = slow_backfill(Session::new(), 20_000);
    wait_for_rows(&mut db, 1);
    let begun = Instant::now();
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, WORKERS, "0");
    soon(begun, "the pause");
    assert_eq!(db.text("SELECT state, workers, stopped_by, waiting_for FROM zdd.progress"), "paused|0|postgres|~");
    assert!(db.error("CALL zdd.backfill('address.street')").contains("zdd.resume"));
    assert!(db.error(START).contains("(55000)"));
    assert!(db.error(EXPANDED).contains("(55000)"));
    let rows = rows_split(&mut db);
    let_go(&mut db);
    db.run("SELECT 1");
    assert_eq!(rows_split(&mut db), rows);
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
    assert_eq!(
        db.text("SELECT string_agg(event, ',' ORDER BY at) FROM zdd.events WHERE event IN ('paused', 'resumed')"),
        "paused,resumed"
    );
}

#[test]
fn a_foreground_backfill_is_paused_and_goes_on_in_a_worker() {
    let mut db = address(Session::new(), 20_000);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    let backfill = db.another().in_background("CALL zdd.backfill('address.street')");
    wait_for_rows(&mut db, 1);
    db.run("SELECT zdd.pause('address.street')");
    let (session, result) = backfill.join();
    result.expect("the backfill ends well");
    assert!(session.notices().iter().any(|notice| notice.contains("paused by postgres")));
    let_go(&mut db);
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn settings_take_effect_on_a_running_worker() {
    let mut db = slow_backfill(Session::new(), 60_000);
    wait_for(&mut db, "SELECT state, waiting_for FROM zdd.progress", "waiting|max_rows_per_second");
    // Without a limit it goes on at once.
    let rows = rows_split(&mut db);
    let begun = Instant::now();
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 5000)");
    wait_for_rows(&mut db, rows + 500);
    soon(begun, "another max_rows_per_second");
    // A condition stops it within a second, and lets it go on.
    db.run("CREATE TABLE traffic (is_low bool); INSERT INTO traffic VALUES (true)");
    db.run("SELECT zdd.alter_change('address.street', run_if => 'SELECT is_low FROM public.traffic')");
    for _ in 0..2 {
        let begun = Instant::now();
        db.run("UPDATE traffic SET is_low = false");
        wait_for(&mut db, "SELECT state, waiting_for FROM zdd.progress", "waiting|run_if to be true");
        soon(begun, "run_if");
        let waiting = "SELECT now() - waiting_since BETWEEN '0' AND '1 min' FROM zdd.progress";
        assert_eq!(db.text(waiting), "t");
        let rows = rows_split(&mut db);
        let begun = Instant::now();
        db.run("UPDATE traffic SET is_low = true");
        wait_for_rows(&mut db, rows + 1);
        soon(begun, "going on");
    }
    // Longer batches.
    db.run("SELECT zdd.alter_change('address.street', batch_target => '200ms')");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn the_batch_target_takes_effect_on_a_running_worker() {
    let mut db = address(Session::new(), 400_000);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '400ms', max_rows_per_second => 0)");
    db.run(START);
    wait_for(&mut db, "SELECT batch_ms > 60 FROM zdd.progress", "t");
    let begun = Instant::now();
    db.run("SELECT zdd.alter_change('address.street', batch_target => '2ms')");
    wait_for(&mut db, "SELECT batch_ms < 20 FROM zdd.progress", "t");
    soon(begun, "another batch_target");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding");
}

#[test]
fn a_condition_that_fails_counts_as_stop() {
    let mut db = slow_backfill(Session::new(), 20_000);
    db.run("CREATE TABLE traffic AS SELECT true AS is_low");
    db.run("SELECT zdd.alter_change('address.street', run_if => 'SELECT is_low FROM public.traffic')");
    wait_for_rows(&mut db, 1);
    db.run("DROP TABLE traffic");
    let reason = "run_if, which cannot be read: relation \"public.traffic\" does not exist";
    wait_for(&mut db, "SELECT waiting_for FROM zdd.progress", reason);
    // Whatever kind of error it is.
    for code in ["53100", "40001", "XX000", "55P03"] {
        db.run(&format!(
            "CREATE OR REPLACE FUNCTION is_calm() RETURNS bool LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'no {code}' USING ERRCODE = '{code}'; END $$"
        ));
        db.run("UPDATE zdd.change SET run_if = 'public.is_calm()'");
        wait_for(&mut db, "SELECT waiting_for FROM zdd.progress", &format!("run_if, which cannot be read: no {code}"));
    }
    db.run("SELECT zdd.alter_change('address.street', run_if => '', max_rows_per_second => 0)");
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn a_signal_that_cannot_be_read_counts_as_stop() {
    let mut db = slow_backfill(Session::new(), 20_000);
    db.run("SET allow_system_table_mods = on; ALTER FUNCTION pg_catalog.pg_control_checkpoint() RENAME TO gone");
    let reason = "checkpoint, which cannot be read: function pg_control_checkpoint() does not exist";
    wait_for(&mut db, "SELECT waiting_for FROM zdd.progress", reason);
    db.run("ALTER FUNCTION pg_catalog.gone() RENAME TO pg_control_checkpoint");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn a_replication_slot_that_holds_back_too_much() {
    let mut db = Session::new();
    let name = db.text("SELECT current_database()");
    db.run(&format!("ALTER DATABASE {name} SET zdd.max_slot_backlog = '1MB'"));
    db.run(&format!("SELECT pg_create_physical_replication_slot('{name}', true)"));
    db.run("SELECT pg_logical_emit_message(false, 'test', repeat('x', 2000000))");
    let mut db = address(db, 5_000);
    db.run(START);
    let waiting = format!(
        "SELECT state, waiting_for LIKE 'backlog of replication slot \"{name}\": %MB of at most 1.0 MB',
         waiting_since > now() - interval '1 min' FROM zdd.progress"
    );
    wait_for(&mut db, &waiting, "waiting|t|t");
    assert_eq!(rows_split(&mut db), 0);
    db.run(&format!("SELECT pg_drop_replication_slot('{name}')"));
    db.run(EXPANDED);
    check_expanded(&mut db, 5_000, 5_000);
}

#[test]
fn too_much_wal_since_the_last_checkpoint() {
    let conf = [("zdd.max_checkpoint_distance", "0.001"), ("shared_preload_libraries", "pg_zdd")];
    let cluster = Cluster::start(&conf).expect("a cluster");
    let mut db = address(Session::on(&cluster), 1_000);
    db.run("SELECT pg_logical_emit_message(false, 'test', repeat('x', 4000000))");
    db.run(START);
    let waiting =
        "SELECT waiting_for LIKE 'checkpoint: %MB of WAL since the last one, of at most 2.0 MB' FROM zdd.progress";
    wait_for(&mut db, waiting, "t");
    assert_eq!(rows_split(&mut db), 0);
    db.run("CHECKPOINT");
    db.run(EXPANDED);
    check_expanded(&mut db, 1_000, 1_000);
}

#[test]
fn a_cancelled_worker_stops_the_change() {
    let mut db = address(Session::new(), 60_000);
    let stopped = "SELECT state, last_error, last_error_hint IS NOT NULL, last_error_at > now() - interval '1 min'
        FROM zdd.progress";
    // While it sleeps, while it waits for something, and while it works.
    for (options, when) in [
        ("max_rows_per_second => 100", "waiting_for = 'max_rows_per_second'"),
        ("run_if => 'false'", "waiting_for = 'run_if to be true'"),
        ("run_if => '', max_rows_per_second => 0, batch_target => '1ms'", "waiting_for IS NULL AND state = 'running'"),
    ] {
        db.run(&format!("SELECT zdd.alter_change('address.street', {options})"));
        db.run(if options.starts_with("max") { START } else { RESUME });
        let pid = worker(&mut db);
        wait_for(&mut db, &format!("SELECT {when} FROM zdd.progress"), "t");
        db.run(&format!("SELECT pg_cancel_backend({pid})"));
        wait_for(&mut db, stopped, "stopped|canceling statement due to user request|t|t");
        wait_for(&mut db, WORKERS, "0");
        let event = "SELECT detail->>'error', detail->>'hint' IS NOT NULL FROM zdd.events
            WHERE event = 'error' ORDER BY at DESC LIMIT 1";
        assert_eq!(db.text(event), "canceling statement due to user request|t");
        let error = db.error(EXPANDED);
        assert!(error.contains("(55000)") && error.contains("canceling") && error.contains("HINT"), "{error}");
    }
    assert_eq!(db.number("SELECT count(*) FROM zdd.events WHERE event = 'error'"), 3);
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn a_terminated_worker_is_replaced_by_the_others() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text) WITH (fillfactor = 10)");
    db.run("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 100000) AS i");
    split(&mut db);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    db.run("SELECT zdd.start_backfill('address.street', workers => 2)");
    let pids = "SELECT pid FROM zdd.workers ORDER BY pid";
    wait_for(&mut db, "SELECT count(*) FROM zdd.workers", "2");
    let first = db.text(pids);
    let (victim, other) = first.split_once('\n').expect("two workers");
    db.run(&format!("SELECT pg_terminate_backend({victim})"));
    let replaced = format!(
        "SELECT count(*) FILTER (WHERE pid = {other}), count(*) FILTER (WHERE pid NOT IN ({victim}, {other})) FROM zdd.workers"
    );
    wait_for(&mut db, &replaced, "1|1");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 100_000, 100_000);
}

#[test]
fn without_the_launcher_others_go_on_with_what_is_left() {
    let cluster = pg_zdd_cluster::session::shared_cluster();
    let mut db = slow_backfill(Session::new(), 20_000);
    for (again, signal) in [(RESUME, true), (START, false), (RESUME, false), (START, true)] {
        let pid = worker(&mut db);
        let rows = rows_split(&mut db);
        wait_for_rows(&mut db, rows + 1);
        if signal {
            cluster.kill_backend(pid).expect("kill");
        } else {
            db.run(&format!("SELECT pg_terminate_backend({pid})"));
        }
        wait_for(&mut db, WORKERS, "0");
        let waiting = "a free background worker slot (max_worker_processes), or the launcher";
        assert_eq!(db.text("SELECT state, waiting_for FROM zdd.progress"), format!("starting|{waiting}"));
        db.run(again);
    }
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn locks_and_deadlocks_are_tried_again() {
    let mut db = address(Session::new(), 10_000);
    db.run("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)");
    db.run(
        "CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN LOCK TABLE public.counter; RETURN NEW; END';
         CREATE TRIGGER count_up BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION count_up()",
    );
    // A lock on the table.
    let mut other = db.another();
    other.run("BEGIN; LOCK TABLE address IN SHARE MODE");
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    let progress = "SELECT state, waiting_for, last_error, last_error_at > now() - interval '1 min' FROM zdd.progress";
    wait_for(&mut db, progress, "waiting|another try after an error|canceling statement due to lock timeout|t");
    // A deadlock: the worker has the table and wants the counter, the other one the other way round.
    other.run("COMMIT; SET deadlock_timeout = '100s'; BEGIN; LOCK TABLE counter");
    wait_for(
        &mut db,
        "SELECT count(*) FROM pg_stat_activity WHERE pid IN (SELECT pid FROM zdd.workers) AND wait_event_type = 'Lock'",
        "1",
    );
    other.run("LOCK TABLE address IN SHARE MODE");
    other.run("COMMIT");
    wait_for(&mut db, "SELECT last_error FROM zdd.progress", "deadlock detected");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 10_000, 10_000);
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn a_trigger_that_fails_stops_the_change() {
    let mut db = address(Session::new(), 5_000);
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN IF NEW.id = 3000 THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    let error = db.error(EXPANDED);
    assert!(error.contains("not this one") && error.contains("HINT: ") && error.contains("zdd.resume"), "{error}");
    let event = "SELECT detail->>'error', detail->>'hint' LIKE '%zdd.resume%' FROM zdd.events WHERE event = 'error'";
    assert_eq!(db.text(event), "not this one|t");
    assert_eq!(db.text("SELECT state, last_error FROM zdd.progress"), "stopped|not this one");
    let done = rows_split(&mut db);
    assert!(done > 0 && done < 3_000, "{done}");
    db.run("DROP TRIGGER refuse ON address");
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 5_000, 5_000);
}
