//! Background workers: when they begin, what stops them, what brings them back, and what they leave behind.

use std::time::{Duration, Instant};

use pg_zdd_cluster::address::{PATIENCE, RULE, address, check_expanded, rows_split, split, wait_for, wait_for_rows};
use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, Stop, wait_until};

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
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0, batch_target => '50ms')");
}

/// A table of addresses with few rows on each page, and so with several lanes.
#[track_caller]
fn spread(db: &mut Session, rows: i64) {
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text) WITH (fillfactor = 10)");
    db.run(&format!("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, {rows}) AS i"));
    split(db);
}

/// Makes each row take a millisecond, if the triggers of the table fire.
const DAWDLE: &str = "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF NEW.note IS NULL THEN PERFORM pg_sleep(0.001); END IF; RETURN NEW; END';
    CREATE TRIGGER dawdle BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION dawdle()";

/// Something must have happened by then.
#[track_caller]
fn soon(since: Instant, what: &str) {
    assert!(since.elapsed() < SOON, "{what} took {:?}", since.elapsed());
}

#[test]
fn rollback_starts_nothing_and_commit_starts_workers() {
    // The server's log tells of every worker that is asked for.
    let cluster = Cluster::start(&[("log_min_messages", "debug1")]).expect("a cluster");
    let asked_for = || {
        let log = std::fs::read_to_string(cluster.log()).expect("a log");
        log.matches(" registering background worker \"pg_zdd worker\"").count()
    };
    let mut db = address(Session::on(&cluster), 20_000);
    db.run(&format!("BEGIN; {START}; ROLLBACK"));
    db.run(&format!("BEGIN; SAVEPOINT s; {START}; ROLLBACK TO s; COMMIT"));
    db.run("BEGIN; SELECT zdd.split_column('address', 'note', columns => 'a text, b text', delimiter => ' ')");
    db.run("SELECT zdd.start_backfill('address.note'); ROLLBACK");
    assert!(db.error(&format!("BEGIN; {START}; SELECT 1/0")).contains("(22012)"));
    db.run("ROLLBACK");
    assert_eq!(db.text(WORKERS), "0");
    assert_eq!(db.text("SELECT job, state FROM zdd.progress"), "");
    assert_eq!(asked_for(), 0);

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
    assert_eq!(asked_for(), 1);
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
    const ROWS: i64 = 100_000;
    let mut db = Session::new();
    spread(&mut db, ROWS);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '20ms', max_rows_per_second => 6000)");
    db.run("SELECT zdd.start_backfill('address.street', workers => 3)");
    wait_for(&mut db, "SELECT workers FROM zdd.progress", "3");
    wait_for(&mut db, "SELECT count(DISTINCT taken_by) FROM zdd.lane WHERE next_block > first_block", "3");
    // The limit is for all of them together.
    let (rows, begun) = (rows_split(&mut db), Instant::now());
    wait_for_rows(&mut db, rows + 18_000);
    assert!(begun.elapsed() > Duration::from_millis(2300), "18,000 rows took {:?}", begun.elapsed());
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, ROWS, ROWS);
    wait_for(&mut db, WORKERS, "0");
}

#[test]
fn whoever_has_nothing_left_takes_lanes_over_from_one_that_has_several() {
    const ROWS: i64 = 100_000;
    const LEFT: &str = "SELECT count(*), count(DISTINCT taken_by) FROM zdd.lane WHERE next_block < end_block";
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut db = Session::on(&cluster);
    spread(&mut db, ROWS);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 2000)");
    db.run(START);
    wait_for(&mut db, "SELECT count(*) FROM zdd.lane WHERE taken_by = 0", "4");
    // The first worker goes no further, and is not in a transaction that has a lane locked.
    let first = worker(&mut db);
    wait_until("a moment between two batches", PATIENCE, || {
        cluster.freeze_backend(first)?;
        let idle = format!("SELECT xact_start IS NULL FROM pg_stat_activity WHERE pid = {first}");
        if db.text(&idle) == "t" {
            return Ok(true);
        }
        cluster.thaw_backend(first)?;
        Ok(false)
    })
    .expect("frozen");
    let frozen_at = db.text("SELECT lane, next_block FROM zdd.lane WHERE taken_by = 0");
    let_go(&mut db);
    db.run("SELECT zdd.start_backfill('address.street', workers => 2)");
    // It is left the one that it may be at.
    wait_for(&mut db, LEFT, "1|1");
    let left = db.text("SELECT lane, next_block FROM zdd.lane WHERE next_block < end_block AND taken_by = 0");
    assert!(frozen_at.lines().any(|lane| lane == left), "{left} is none of {frozen_at}");
    cluster.thaw_backend(first).expect("thawed");
    db.run(EXPANDED);
    check_expanded(&mut db, ROWS, ROWS);
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn with_fewer_workers_wanted_the_others_leave() {
    const ROWS: i64 = 100_000;
    let mut db = Session::new();
    spread(&mut db, ROWS);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 300)");
    let workers = |db: &mut Session, wanted: u32| {
        let begun = Instant::now();
        db.run(&format!("SELECT zdd.start_backfill('address.street', workers => {wanted})"));
        let counts = "SELECT workers, workers_requested, (SELECT count(*) FROM zdd.workers) FROM zdd.progress";
        wait_for(db, counts, &format!("{wanted}|{wanted}|{wanted}"));
        soon(begun, "another number of workers");
        // One that finds no place waits a second for one.
        wait_for(db, WORKERS, &wanted.to_string());
    };
    workers(&mut db, 4);
    workers(&mut db, 2);
    // Those that wait for something else leave too.
    db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    wait_for(&mut db, "SELECT count(*) FROM zdd.workers WHERE waiting_for = 'run_if to be true'", "2");
    let_go(&mut db);
    workers(&mut db, 1);
    // The one that is left need not be the first.
    workers(&mut db, 2);
    db.run("BEGIN; SELECT zdd.start_backfill('address.street', workers => 1)");
    db.run("SELECT pg_terminate_backend(pid, 5000) FROM zdd.worker WHERE slot = 0; COMMIT");
    wait_for(&mut db, WORKERS, "1");
    db.run("SELECT zdd.alter_change('address.street', run_if => '')");
    db.run(EXPANDED);
    check_expanded(&mut db, ROWS, ROWS);
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
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
    // Each partition has been vacuumed by one of them.
    let vacuumed = "SELECT count(*) FROM pg_stat_user_tables WHERE relname LIKE 'address\\__' AND vacuum_count = 1";
    wait_for(&mut db, vacuumed, "6");
    assert_eq!(db.number("SELECT count(DISTINCT tablename) FROM pg_stats WHERE attname = 'housenumber'"), 6);
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
fn a_pause_does_not_wait_for_a_long_batch() {
    let mut db = address(Session::new(), 2_000);
    db.run(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN IF NEW.id = 1000 THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END';
         CREATE TRIGGER dawdle BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION dawdle()",
    );
    db.run("SELECT zdd.alter_change('address.street', batch_target => '10s', max_rows_per_second => 0)");
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    let sleeps = "SELECT a.wait_event FROM zdd.workers JOIN pg_stat_activity AS a USING (pid)";
    wait_for(&mut db, sleeps, "PgSleep");
    let begun = Instant::now();
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, WORKERS, "0");
    soon(begun, "the pause");
    assert_eq!(db.text("SELECT state FROM zdd.progress"), "paused");
    db.run("DROP TRIGGER dawdle ON address");
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 2_000, 2_000);
}

#[test]
fn pause_and_resume_in_quick_succession() {
    let mut db = address(Session::new(), 60_000);
    db.run(START);
    let mut rng = Rng::new();
    for _ in 0..40 {
        db.run("SELECT zdd.pause('address.street')");
        std::thread::sleep(Duration::from_micros(rng.u64(..4_000)));
        db.run(RESUME);
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
    }
    let_go(&mut db);
    wait_for(&mut db, "SELECT phase FROM zdd.changes", "expanded");
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn a_pause_holds_also_when_all_rows_are_split() {
    let mut db = Session::new();
    // A rule that gets stuck in the verification.
    db.run(
        "CREATE TABLE address (id int PRIMARY KEY, street text, note text);
         INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 100) AS i;
         CREATE FUNCTION stuck(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN IF EXISTS (SELECT FROM zdd.worker WHERE doing = 'verifies') THEN PERFORM pg_advisory_xact_lock_shared(8); END IF;
         RETURN t; END $$;
         SELECT zdd.split_column('address', 'street', columns => 'a text', split_sql => '{public.stuck(street)}', join_sql => 'public.stuck(a)')",
    );
    let mut holder = db.another();
    holder.run("SELECT pg_advisory_lock(8)");
    db.run(START);
    wait_for(
        &mut db,
        "SELECT doing, a.wait_event FROM zdd.workers JOIN pg_stat_activity AS a USING (pid)",
        "verifies|advisory",
    );
    db.run("SELECT zdd.pause('address.street')");
    holder.run("SELECT pg_advisory_unlock(8)");
    wait_for(&mut db, WORKERS, "0");
    assert_eq!(db.text("SELECT phase, state, rows_split FROM zdd.progress"), "expanding|paused|100");
    db.run(RESUME);
    db.run(EXPANDED);
    assert_eq!(db.text("SELECT in_sync FROM zdd.verify('address.street')"), "100");
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
    assert!(db.notices().iter().any(|notice| notice.contains("in a background worker")));
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn an_interrupted_foreground_backfill_goes_on_in_a_worker() {
    let mut db = address(Session::new(), 20_000);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    let backfill = db.another().in_background("CALL zdd.backfill('address.street')");
    wait_for_rows(&mut db, 1);
    // As long as the session is at it there is nothing to resume.
    assert!(db.error(RESUME).contains("(55000)"));
    assert_eq!(db.text("SELECT state, workers, workers_requested FROM zdd.progress"), "waiting|1|0");
    db.run(&format!("SELECT pg_terminate_backend({}, 5000)", backfill.pid));
    backfill.join().1.expect_err("it was terminated");
    let waiting = "a call of zdd.resume, zdd.start_backfill or zdd.backfill";
    assert_eq!(db.text("SELECT state, waiting_for FROM zdd.progress"), format!("interrupted|{waiting}"));
    let late = db.error("CALL zdd.wait_for('address.street', 'expanded', '0')");
    assert!(late.contains(waiting), "{late}");
    db.notices();
    db.run(RESUME);
    assert!(db.notices().iter().any(|notice| notice.contains("in a background worker")));
    worker(&mut db);
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn a_transaction_that_starts_workers_cannot_be_prepared() {
    let mut db = address(Session::new(), 2_000);
    let refused = |db: &mut Session, call: &str| {
        let error = db.error(&format!("BEGIN; {call}; PREPARE TRANSACTION 'mine'"));
        assert!(error.contains("(0A000)") && error.contains("HINT: "), "{error}");
        assert_eq!(db.text(WORKERS), "0");
    };
    refused(&mut db, START);
    assert_eq!(db.text("SELECT state FROM zdd.progress"), "");
    // What has started none can be.
    db.run(&format!("BEGIN; SAVEPOINT s; {START}; ROLLBACK TO s; PREPARE TRANSACTION 'mine'"));
    db.run("COMMIT PREPARED 'mine'");
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    db.run(START);
    worker(&mut db);
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, WORKERS, "0");
    refused(&mut db, RESUME);
    let_go(&mut db);
    db.run(RESUME);
    db.run(EXPANDED);
    wait_for(&mut db, WORKERS, "0");
    refused(&mut db, "SELECT zdd.start_contract('address.street', force => true)");
    db.run("BEGIN; SELECT zdd.fence('address.street'); PREPARE TRANSACTION 'mine'");
    db.run("COMMIT PREPARED 'mine'");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "fenced");
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
        // It sleeps outside of transactions, and says so.
        let sleep = "SELECT wait_event_type, xact_start, backend_xmin, a.query FROM zdd.workers
            JOIN pg_stat_activity AS a USING (pid)";
        wait_for(&mut db, sleep, "Extension|~|~|pg_zdd: address.street: splits rows, waits for run_if to be true");
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
    let mut db = Session::new();
    spread(&mut db, 15_000);
    db.run(DAWDLE);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '1s', max_rows_per_second => 0)");
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    wait_for(&mut db, "SELECT batch_ms > 500 FROM zdd.progress", "t");
    db.run("SELECT zdd.alter_change('address.street', batch_target => '20ms')");
    let begun = Instant::now();
    wait_for(&mut db, "SELECT batch_ms < 100 FROM zdd.progress", "t");
    soon(begun, "another batch_target");
    db.run("DROP TRIGGER dawdle ON address");
    db.run(EXPANDED);
    check_expanded(&mut db, 15_000, 15_000);
}

#[test]
fn a_condition_that_fails_counts_as_stop() {
    let mut db = slow_backfill(Session::new(), 20_000);
    db.run("CREATE TABLE traffic AS SELECT true AS is_low");
    db.run("SELECT zdd.alter_change('address.street', run_if => 'SELECT is_low FROM public.traffic')");
    wait_for_rows(&mut db, 1);
    db.run("DROP TABLE traffic");
    let says = "SELECT waiting_for, last_error FROM zdd.progress";
    let fails =
        |error: &str| format!("run_if, which cannot be evaluated: see last_error|run_if cannot be evaluated: {error}");
    wait_for(&mut db, says, &fails("relation \"public.traffic\" does not exist"));
    // Whatever kind of error it is.
    for code in ["53100", "40001", "XX000", "55P03"] {
        db.run(&format!(
            "CREATE OR REPLACE FUNCTION is_calm() RETURNS bool LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'no {code}' USING ERRCODE = '{code}'; END $$"
        ));
        db.run("UPDATE zdd.change SET run_if = 'public.is_calm()'");
        wait_for(&mut db, says, &fails(&format!("no {code}")));
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
    // A worker that has read it knows it by its OID; the next one does not.
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, "SELECT count(*) FROM zdd.workers", "0");
    db.run("SELECT zdd.resume('address.street')");
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
fn checkpoints_that_keep_up_do_not_stop_a_backfill() {
    let cluster = Cluster::start(&[("max_wal_size", "32MB")]).expect("a cluster");
    let mut db = address(Session::on(&cluster), 300_000);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '50ms')");
    let_go(&mut db);
    db.run("CHECKPOINT");
    let begun = db.text("SELECT pg_current_wal_lsn()");
    db.run(START);
    db.run("CALL zdd.wait_for('address.street', 'expanded', '30 s')");
    check_expanded(&mut db, 300_000, 300_000);
    let written = db.number(&format!("SELECT ((pg_current_wal_lsn() - '{begun}') / 1048576)::int"));
    assert!(written > 40, "{written} MB of WAL are no test");
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
    let_go(&mut db);
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn a_terminated_worker_is_replaced_by_the_others() {
    let mut db = Session::new();
    spread(&mut db, 100_000);
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
fn locks_are_tried_again_before_anybody_sees_a_deadlock() {
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
    // It is told once, and how often.
    let events = "SELECT count(*), max((detail->>'count')::int) > 3, min(detail->>'error'), bool_and(at <= (detail->>'last_at')::timestamptz)
        FROM zdd.events WHERE event = 'retried' AND detail->>'sqlstate' = ";
    wait_for(&mut db, &format!("{events}'55P03'"), "1|t|canceling statement due to lock timeout|t");
    // The worker has the table and wants the counter, the other one the other way round: the worker gives way.
    other.run("COMMIT; BEGIN; LOCK TABLE counter");
    wait_for(
        &mut db,
        "SELECT count(*) FROM pg_stat_activity WHERE pid IN (SELECT pid FROM zdd.workers) AND wait_event_type = 'Lock'",
        "1",
    );
    other.run("LOCK TABLE address IN SHARE MODE");
    other.run("COMMIT");
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 10_000, 10_000);
    let others = "SELECT * FROM zdd.events WHERE event = 'error' OR detail->>'sqlstate' <> '55P03'";
    assert_eq!(db.text(others), "");
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

/// Columns that rows have long enough to take a while: a big table, quickly made.
#[track_caller]
fn with_indexes(mut db: Session, rows: i32, indexes: &str) -> Session {
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text)");
    db.run(&format!("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, {rows}) AS i"));
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE}, indexes => '{indexes}')"));
    db
}

/// What a CREATE INDEX CONCURRENTLY waits for, but a backfill does not.
const HOLD: &str = "BEGIN; INSERT INTO address (id, street) VALUES (0, 'Elm Street 0')";

/// Another session whose open transaction a CREATE INDEX CONCURRENTLY has to wait for, and that it is waiting.
#[track_caller]
fn hold_index_build(db: &mut Session) -> Session {
    let mut holder = db.another();
    holder.run(HOLD);
    db.run(START);
    wait_for_index_build(db);
    holder
}

#[track_caller]
fn wait_for_index_build(db: &mut Session) {
    let building = "SELECT count(*) FROM zdd.workers AS w JOIN pg_stat_activity AS a USING (pid)
        WHERE w.doing LIKE 'builds index%' AND a.wait_event_type = 'Lock'";
    wait_for(db, building, "1");
}

const INDEXES: &str = "SELECT c.relname, i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = 'address'::regclass AND NOT i.indisprimary ORDER BY 1";

#[test]
fn indexes_are_built_while_others_write() {
    let mut db = with_indexes(Session::new(), 50_000, r#"{housenumber,"streetname, housenumber"}"#);
    let writes = Record::default();
    let runner = {
        let (writes, mut client) = (writes.clone(), db.another());
        let mut rng = Rng::new();
        Runner::start(Duration::from_millis(1), move || {
            let id = rng.i32(1..=50_000);
            let write = format!("UPDATE address SET note = 'x', street = 'Oak ' || id WHERE id = {id}");
            writes.time("write", || client.client.batch_execute(&write));
        })
    };
    let begun = Instant::now();
    db.run(START);
    db.run(EXPANDED);
    let summary = writes.between(begun, Instant::now());
    runner.stop();
    assert!(summary.statements > 20 && summary.errors == 0, "{summary:?} {:?}", writes.failures());
    assert!(summary.longest < Duration::from_secs(2), "{summary:?}");
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t\naddress_streetname_housenumber_idx|t");
    assert_eq!(db.text("SELECT count(*) FROM zdd.events WHERE event = 'index_built'"), "2");
    assert_eq!(db.text("SELECT rows, in_sync FROM zdd.verify('address.street')"), "50000|50000");
}

#[test]
fn the_leftover_of_an_index_build_is_built_again() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let mut holder = hold_index_build(&mut db);
    for end in ["pg_terminate_backend", "pg_cancel_backend"] {
        let pid = worker(&mut db);
        assert_eq!(db.text(INDEXES), "address_housenumber_idx|f");
        assert_eq!(db.text("SELECT phase, doing FROM zdd.progress"), "expanding|builds index address_housenumber_idx");
        db.run(&format!("SELECT {end}({pid})"));
        wait_for(&mut db, WORKERS, "0");
        assert_eq!(db.text(INDEXES), "address_housenumber_idx|f");
        db.run(RESUME);
        // The drop of the leftover waits too.
        wait_for_index_build(&mut db);
    }
    // An index that is not ours stays.
    holder.run("COMMIT");
    db.run(EXPANDED);
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t");
}

#[test]
fn a_foreground_backfill_waits_for_its_indexes() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let mut holder = db.another();
    holder.run(HOLD);
    let backfill = db.another().in_background("CALL zdd.backfill('address.street')");
    wait_for_index_build(&mut db);
    assert!(!backfill.has_ended());
    wait_for(
        &mut db,
        "SELECT phase, waiting_for FROM zdd.progress",
        "expanding|a background worker that builds the indexes",
    );
    holder.run("COMMIT");
    backfill.join().1.expect("the backfill succeeds");
    check_expanded(&mut db, 2_001, 2_000);
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t");
}

#[test]
fn rollback_gets_through_while_an_index_is_built() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let mut holder = hold_index_build(&mut db);
    holder.run("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    wait_for_index_build(&mut db);
    // One that does not go through leaves the change as it was, and the work goes on.
    let mut reader = db.another();
    reader.run("BEGIN; SELECT count(*) FROM address");
    let before = worker(&mut db);
    let refused = db.error("SET zdd.lock_patience = '1s'; SELECT zdd.rollback('address.street')");
    assert!(refused.contains("(55P03)"), "{refused}");
    reader.run("COMMIT");
    wait_for_index_build(&mut db);
    assert_ne!(worker(&mut db), before);
    let begun = Instant::now();
    db.run("RESET zdd.lock_patience; SELECT zdd.rollback('address.street')");
    soon(begun, "the rollback");
    wait_for(&mut db, WORKERS, "0");
    assert_eq!(db.text(INDEXES), "");
    assert_eq!(db.text("SELECT * FROM address WHERE id = 2"), "2|Elm Street 2|~");
    assert_eq!(
        db.text("SELECT string_agg(event, ',' ORDER BY at) FROM zdd.events"),
        "expanding,backfill_started,rolled_back"
    );
    holder.run("COMMIT");
}

#[test]
fn pause_ends_the_build_of_an_index() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let mut holder = hold_index_build(&mut db);
    db.run("BEGIN; SELECT zdd.pause('address.street'); ROLLBACK");
    wait_for_index_build(&mut db);
    let begun = Instant::now();
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, WORKERS, "0");
    soon(begun, "the pause");
    assert_eq!(db.text("SELECT state, last_error FROM zdd.progress"), "paused|~");
    holder.run("COMMIT");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding");
    db.run(RESUME);
    db.run(EXPANDED);
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t");
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn advisory_locks_of_applications_do_not_matter() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    // All that anybody could think of, on the table and on what stands for workers.
    let mut meddler = db.another();
    meddler.run(
        "BEGIN; LOCK TABLE address IN SHARE UPDATE EXCLUSIVE MODE;
         SELECT pg_advisory_lock(class, key::int), pg_advisory_lock((class::bigint << 32) + key)
         FROM zdd.change AS c, generate_series(2053399652, 2053399653) AS class, generate_series(0, c.id * 64 + 63) AS key",
    );
    assert_eq!(db.text("SELECT * FROM zdd.workers"), "");
    db.run("SELECT zdd.start_backfill('address.street', workers => 2)");
    let indexing = "SELECT count(*) FROM zdd.workers WHERE doing LIKE 'builds index%'";
    wait_for(&mut db, indexing, "1");
    db.run("SELECT zdd.pause('address.street')");
    wait_for(&mut db, WORKERS, "0");
    assert_eq!(meddler.text("SELECT count(*) > 100 FROM pg_locks WHERE pid = pg_backend_pid()"), "t");
    db.run(RESUME);
    wait_for(&mut db, indexing, "1");
    meddler.run("COMMIT");
    db.run(EXPANDED);
    check_expanded(&mut db, 2_000, 2_000);
}

#[test]
fn code_of_the_table_that_gives_up_all_locks_stops_the_change() {
    let mut db = address(Session::new(), 20_000);
    db.run(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_advisory_unlock_all(); RETURN NEW; END';
         CREATE TRIGGER meddle BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION meddle()",
    );
    db.run("SELECT zdd.start_backfill('address.street', workers => 2, fire_triggers => true)");
    let error = db.error(EXPANDED);
    assert!(error.contains("pg_advisory_unlock_all") && error.contains("HINT: "), "{error}");
    wait_for(&mut db, WORKERS, "0");
    db.run("DROP TRIGGER meddle ON address");
    db.run(RESUME);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn settings_of_the_database_do_not_come_in_the_way() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let name = db.text("SELECT current_database()");
    let mut holder = db.another();
    db.run("CREATE ROLE worker_client");
    for setting in [
        "lock_timeout = '50ms'",
        "statement_timeout = '50ms'",
        "idle_in_transaction_session_timeout = '50ms'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "search_path = 'nowhere'",
        "role = worker_client",
    ] {
        db.run(&format!("ALTER DATABASE {name} SET {setting}"));
    }
    holder.run(HOLD);
    db.run(START);
    wait_for_index_build(&mut db);
    let waits =
        "SELECT a.query_start < now() - interval '300 ms' FROM zdd.workers JOIN pg_stat_activity AS a USING (pid)";
    wait_for(&mut db, waits, "t");
    holder.run("COMMIT");
    db.run(EXPANDED);
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t");
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn a_deadlock_of_an_index_build_is_tried_again() {
    let mut db = with_indexes(Session::new(), 2_000, "{housenumber}");
    let mut holder = hold_index_build(&mut db);
    // The worker waits for this transaction, which waits for the worker, and looks for deadlocks later.
    holder.run("SET LOCAL deadlock_timeout = '100s'; LOCK TABLE address IN SHARE MODE; COMMIT");
    db.run(EXPANDED);
    assert_eq!(db.text(INDEXES), "address_housenumber_idx|t");
    let events = "SELECT event, detail->>'error' FROM zdd.events WHERE event IN ('error', 'retried')";
    assert_eq!(db.text(events), "retried|deadlock detected");
}

#[test]
fn tables_are_rewritten_while_a_worker_runs() {
    let mut db = address(Session::new(), 60_000);
    db.run(START);
    for (rows, rewrite) in
        [(5_000, "VACUUM FULL address"), (20_000, "CLUSTER address USING address_pkey"), (35_000, "VACUUM address")]
    {
        wait_for(&mut db, &format!("SELECT count(streetname) >= {rows} FROM address"), "t");
        db.run(rewrite);
        assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding", "{rewrite} came too late");
    }
    db.run(EXPANDED);
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn a_table_that_is_dropped_ends_its_worker() {
    let mut db = slow_backfill(Session::new(), 20_000);
    wait_for_rows(&mut db, 1);
    let begun = Instant::now();
    db.run("DROP TABLE address");
    wait_for(&mut db, WORKERS, "0");
    soon(begun, "the end of the worker");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn a_rollback_ends_the_workers() {
    let mut db = address(Session::new(), 60_000);
    db.run("SELECT zdd.start_backfill('address.street', workers => 2)");
    wait_for_rows(&mut db, 1_000);
    let begun = Instant::now();
    db.run("SELECT zdd.rollback('address.street')");
    wait_for(&mut db, WORKERS, "0");
    soon(begun, "the rollback");
    assert_eq!(db.text("SELECT * FROM address WHERE id = 1"), "1|Elm Street 1|~");
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");
}

#[test]
fn a_database_is_dropped_while_a_worker_runs() {
    let mut db = slow_backfill(Session::new(), 20_000);
    let name = db.text("SELECT current_database()");
    let mut admin = pg_zdd_cluster::session::shared_cluster().connect("postgres", "postgres", "admin").expect("admin");
    let mut attempt = |sql: &str| admin.batch_execute(sql).map_err(|error| pg_zdd_cluster::describe(&error));
    let error = attempt(&format!("DROP DATABASE {name}")).expect_err("it is in use");
    assert!(error.contains("(55006)"), "{error}");
    assert_eq!(db.text(WORKERS), "1");
    drop(db);
    let begun = Instant::now();
    attempt(&format!("DROP DATABASE {name} WITH (FORCE)")).expect("dropped");
    soon(begun, "DROP DATABASE");
}

#[test]
fn the_extension_is_dropped_while_a_worker_runs() {
    let mut db = slow_backfill(Session::new(), 20_000);
    for drop in ["DROP EXTENSION pg_zdd", "DROP EXTENSION pg_zdd CASCADE"] {
        let error = db.error(drop);
        assert!(error.contains("(2BP01)") && error.contains("HINT: "), "{error}");
    }
    let rows = rows_split(&mut db);
    wait_for_rows(&mut db, rows + 1);
    // A superuser who means it.
    db.run("SET zdd.guard = off; DROP EXTENSION pg_zdd CASCADE");
    wait_for(&mut db, WORKERS, "0");
    db.run("CREATE EXTENSION pg_zdd");
    assert_eq!(db.text("SELECT * FROM zdd.changes"), "");
}

#[test]
fn roles_come_and_go_while_a_worker_runs() {
    let mut db = Session::new();
    let name = db.text("SELECT current_database()");
    let (team, member, next) = (format!("{name}_team"), format!("{name}_member"), format!("{name}_next"));
    db.run(&format!(
        "CREATE ROLE {team}; CREATE ROLE {next}; CREATE ROLE {member} LOGIN IN ROLE {team};
         GRANT CREATE ON SCHEMA public TO {team}, {next}"
    ));
    let mut requester = db.another_as(&member);
    requester.run(&format!("SET ROLE {team}"));
    let mut requester = address(requester, 20_000);
    requester.run("RESET ROLE; SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    requester.run(START);
    worker(&mut db);
    wait_for_rows(&mut db, 1);
    // Without the right of who asked for it the work stops, until somebody asks who has it.
    db.run(&format!("REVOKE {team} FROM {member}"));
    assert!(requester.error("SELECT zdd.pause('address.street')").contains("(42501)"));
    wait_for(&mut db, "SELECT state, last_error FROM zdd.progress", "stopped|must be owner of table public.address");
    drop(requester);
    db.run(&format!("DROP ROLE {member}"));
    db.run("SELECT zdd.resume('address.street')");
    let rows = rows_split(&mut db);
    wait_for_rows(&mut db, rows + 1);
    // Another owner.
    assert!(db.error(&format!("ALTER TABLE address OWNER TO {next}")).contains("(55006)"));
    let rows = rows_split(&mut db);
    wait_for_rows(&mut db, rows + 1);
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
    assert_eq!(db.text("SELECT count(*) FROM zdd.events WHERE event = 'error'"), "1");
    db.run(&format!("DROP TABLE address; DROP OWNED BY {team}, {next}; DROP ROLE {team}, {next}"));
}

#[test]
fn sessions_that_are_kept_waiting_make_batches_shorter() {
    let mut db = Session::new();
    spread(&mut db, 20_000);
    db.run(DAWDLE);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '1s', max_rows_per_second => 0)");
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    wait_for(&mut db, "SELECT batch_ms > 700 FROM zdd.progress", "t");
    let locks = Record::default();
    let runner = {
        let (locks, mut client) = (locks.clone(), db.another());
        Runner::start(Duration::from_millis(1), move || {
            // A row of the batch that is under way, sooner or later. It is left as it is, as rows that are split already
            // are in nobody's way.
            let lock = "SELECT FROM address WHERE ctid = ANY (ARRAY(
                SELECT format('(%s,%s)', next_block + (10 * random())::int, (1 + 14 * random())::int)::tid
                FROM zdd.lane WHERE next_block < end_block ORDER BY random() LIMIT 1)) FOR NO KEY UPDATE";
            locks.time("lock", || client.client.batch_execute(lock));
        })
    };
    wait_for(&mut db, "SELECT batch_ms < 200 FROM zdd.progress", "t");
    let begun = Instant::now();
    let some = || Ok(locks.between(begun, Instant::now()).statements > 20);
    wait_until("some locks", PATIENCE, some).expect("locks");
    let summary = locks.between(begun, Instant::now());
    runner.stop();
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding", "it was over too soon");
    assert!(summary.longest < Duration::from_millis(500) && summary.errors == 0, "{summary:?}");
    db.run("DROP TRIGGER dawdle ON address");
    db.run(EXPANDED);
    assert_eq!(db.text("SELECT in_sync FROM zdd.verify('address.street')"), "20000");
}

#[test]
fn progress_tells_all() {
    let mut db = address(Session::new(), 60_000);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 10000)");
    db.run(START);
    let complete = "SELECT job = 'backfill' AND state IN ('running', 'waiting') AND doing = 'splits rows'
            AND percent BETWEEN 0 AND 100 AND percent > 0 AND blocks_done < blocks_total AND rows_split > 0
            AND rows_per_second BETWEEN 1000 AND 30000
            AND eta_min <= eta_max AND eta_min > '0' AND eta_max < '1 min'
            AND batch_blocks > 0 AND batch_ms > 0 AND wal_bytes > 100 * rows_split
            AND workers = 1 AND workers_requested = 1 AND skipped_blocks = 0
            AND started_at <= updated_at AND stopped_at IS NULL AND last_error IS NULL FROM zdd.progress";
    wait_for(&mut db, complete, "t");
    // The speed is that of now, and what stands still has no end in sight.
    db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    let speed = db.number("SELECT rows_per_second FROM zdd.progress");
    wait_for(&mut db, "SELECT state FROM zdd.progress WHERE eta_max IS NULL", "waiting");
    wait_for(&mut db, &format!("SELECT rows_per_second < {speed} / 2 FROM zdd.progress"), "t");
    db.run("SELECT zdd.alter_change('address.street', run_if => '')");
    let pid = worker(&mut db);
    db.run(&format!("SELECT pg_cancel_backend({pid})"));
    wait_for(
        &mut db,
        "SELECT state, stopped_by, stopped_at > now() - interval '1 min', last_error, workers FROM zdd.progress",
        "stopped|postgres|t|canceling statement due to user request|0",
    );
    db.run(RESUME);
    let_go(&mut db);
    db.run(EXPANDED);
    assert_eq!(db.text("SELECT * FROM zdd.progress"), "");
}

/// With the launcher, which has a look once a second.
const LAUNCHER: [(&str, &str); 2] = [("shared_preload_libraries", "pg_zdd"), ("zdd.launcher_naptime", "1s")];

#[track_caller]
fn launched_cluster(conf: &[(&str, &str)]) -> Cluster {
    Cluster::start(&[&LAUNCHER, conf].concat()).expect("a cluster")
}

/// Waits until a server that has lost a process is back, and connects to it.
#[track_caller]
fn after_crash(db: &mut Session) -> Session {
    wait_until("the server is down", PATIENCE, || Ok(db.attempt("SELECT").is_err())).expect("a crash");
    wait_until("the server is back", PATIENCE, || Ok(db.connects())).expect("a server");
    db.another()
}

#[test]
fn the_launcher_goes_on_after_every_end() {
    const ROWS: i64 = 100_000;
    #[derive(Clone, Copy, Debug)]
    enum Blow {
        Kill9,
        Terminate,
        Immediate,
        Fast,
        Sigterm,
        Smart,
    }
    let seed = pg_zdd_cluster::fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let cluster = launched_cluster(&[]);
    let mut db = Session::on(&cluster);
    spread(&mut db, ROWS);
    db.run("SELECT zdd.start_backfill('address.street', workers => 2)");
    let mut touched = 0;
    let blows = [Blow::Kill9, Blow::Terminate, Blow::Immediate, Blow::Fast, Blow::Sigterm, Blow::Smart];
    for blow in blows.into_iter().chain(blows) {
        let done = rows_split(&mut db);
        wait_for_rows(&mut db, done + rng.i64(1..6_000));
        let pid = db.number("SELECT min(pid) FROM zdd.workers") as i32;
        match blow {
            Blow::Kill9 => {
                cluster.kill9_backend(pid).expect("kill");
                db = after_crash(&mut db);
            }
            Blow::Terminate => db.run("SELECT pg_terminate_backend(pid) FROM zdd.workers"),
            Blow::Sigterm => cluster.kill_backend(pid).expect("kill"),
            Blow::Immediate | Blow::Fast | Blow::Smart => {
                let how = match blow {
                    Blow::Immediate => Stop::Immediate,
                    Blow::Fast => Stop::Fast,
                    _ => {
                        // It waits for clients, but not for workers.
                        db.error("SELECT pg_terminate_backend(pg_backend_pid())");
                        Stop::Smart
                    }
                };
                cluster.stop(how).expect("stop");
                cluster.start_again().expect("a server");
                db = db.another();
            }
        }
        // Applications go on, in both shapes, on rows that are split and on rows that are pending.
        let (old, new) = (rng.i64(1..=ROWS), rng.i64(1..=ROWS));
        for (id, write) in
            [(old, "street = 'Old  ' || address.id, note = 'old'"), (new, "streetname = 'New 1', note = 'new'")]
        {
            let update = format!(
                "WITH before AS (SELECT id, streetname IS NULL AS pending FROM address WHERE id = {id} FOR UPDATE),
                    write AS (UPDATE address SET {write} FROM before WHERE address.id = before.id)
                 SELECT count(*) FROM before WHERE pending"
            );
            touched += db.number(&update);
        }
    }
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, ROWS, ROWS - touched);
    let wrong = "SELECT count(*) FROM address WHERE housenumber IS DISTINCT FROM id::text
        OR street IS DISTINCT FROM CASE note WHEN 'old' THEN 'Old  ' WHEN 'new' THEN 'New 1 ' ELSE 'Elm Street ' END || id
        OR streetname IS DISTINCT FROM CASE note WHEN 'old' THEN 'Old' WHEN 'new' THEN 'New 1' ELSE 'Elm Street' END";
    assert_eq!(db.number(wrong), 0);
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn nothing_but_the_extension_is_needed() {
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut db = slow_backfill(Session::on(&cluster), 20_000);
    assert_eq!(db.text("SHOW shared_preload_libraries"), "");
    for how in [None, Some(Stop::Fast), Some(Stop::Immediate)] {
        let pid = worker(&mut db);
        let rows = rows_split(&mut db);
        wait_for_rows(&mut db, rows + 1);
        match how {
            None => {
                cluster.kill9_backend(pid).expect("kill");
                db = after_crash(&mut db);
            }
            Some(how) => {
                cluster.restart(how).expect("a restart");
                db = db.another();
            }
        }
        assert_eq!(db.text("SELECT state, workers, workers_requested FROM zdd.progress"), "starting|0|1");
        // After a crash the server may still be on its way.
        db.run(RESUME);
    }
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn auto_resume_can_be_switched_off() {
    let cluster = launched_cluster(&[]);
    let mut db = slow_backfill(Session::on(&cluster), 20_000);
    cluster.configure(&[("zdd.auto_resume", "off")]).expect("a setting");
    cluster.restart(Stop::Immediate).expect("a restart");
    db = db.another();
    wait_for(&mut db, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_zdd launcher'", "1");
    // Several rounds of the launcher.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(db.text(WORKERS), "0");
    }
    assert_eq!(db.text("SELECT state FROM zdd.progress"), "starting");
    cluster.configure(&[("zdd.auto_resume", "on")]).expect("a setting");
    cluster.reload().expect("a reload");
    worker(&mut db);
    let_go(&mut db);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

#[test]
fn workers_do_not_delay_a_shutdown() {
    let cluster = launched_cluster(&[]);
    let mut db = with_indexes(Session::on(&cluster), 20_000, "{housenumber}");
    db.run(DAWDLE);
    let stop_and_start = |db: Session, what: &str| {
        let begun = Instant::now();
        cluster.stop(Stop::Fast).expect("stop");
        let took = begun.elapsed();
        cluster.start_again().expect("a server");
        println!("{what}: {took:?}");
        (db.another(), took)
    };
    let check = |db: Session, what: &str, usual: Duration| {
        let (db, took) = stop_and_start(db, what);
        assert!(took < usual + Duration::from_secs(1), "{what}: {took:?}");
        db
    };
    let usual;
    (db, usual) = stop_and_start(db, "idle");
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 10, run_if => 'false')");
    db.run("SELECT zdd.start_backfill('address.street', fire_triggers => true)");
    wait_for(&mut db, "SELECT waiting_for FROM zdd.progress", "run_if to be true");
    db = check(db, "a condition", usual);
    db.run("SELECT zdd.alter_change('address.street', run_if => '')");
    wait_for(&mut db, "SELECT waiting_for FROM zdd.progress", "max_rows_per_second");
    db = check(db, "a limit", usual);
    // Batches of many seconds.
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0, batch_target => '10s')");
    let sleeps = "SELECT a.wait_event FROM zdd.workers JOIN pg_stat_activity AS a USING (pid)";
    wait_for(&mut db, sleeps, "PgSleep");
    db = check(db, "a batch", usual);
    db.run("SELECT zdd.alter_change('address.street', batch_target => '50ms')");
    db.run("DROP TRIGGER dawdle ON address");
    let mut holder = db.another();
    holder.run(HOLD);
    wait_for_index_build(&mut db);
    db = check(db, "an index", usual);
    drop(holder);
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}

/// Two changes and one slot: the second one begins when the first is done.
#[track_caller]
fn share_one_slot(mut db: Session, wait: Option<&str>) {
    db.run("CREATE TABLE second (id int, street text); INSERT INTO second SELECT 1, 'Elm Street 1'");
    db.run("SELECT zdd.split_column('second', 'street', columns => 'a text, b text', delimiter => ' ', change => 'second')");
    db.run("SELECT zdd.start_backfill('second', workers => 2)");
    let second = "FROM zdd.progress WHERE change = 'second'";
    assert_eq!(
        db.text(&format!("SELECT state, workers, last_error, waiting_for {second}")),
        "starting|0|~|a free background worker slot (max_worker_processes), or the launcher"
    );
    assert_eq!(db.text(&format!("SELECT now() - waiting_since < '1 min' {second}")), "t");
    let late = db.error("CALL zdd.wait_for('second', 'expanded', '300 ms')");
    assert!(late.contains("(55000)") && late.contains("free background worker slot"), "{late}");
    let waiting = wait.map(|sql| db.another().in_background(sql));
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    wait_for(&mut db, "SELECT string_agg(phase, ',') FROM zdd.changes", "expanded,expanded");
    if let Some(waiting) = waiting {
        waiting.join().1.expect("what was waited for");
    }
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

#[test]
fn where_no_slot_is_free_wait_for_tries_again() {
    let conf = [("max_worker_processes", "1"), ("max_logical_replication_workers", "0")];
    let cluster = Cluster::start(&conf).expect("a cluster");
    let db = slow_backfill(Session::on(&cluster), 2_000);
    share_one_slot(db, Some("CALL zdd.wait_for('second', 'expanded', '60 s')"));
}

#[test]
fn where_no_slot_is_free_the_session_tries_again() {
    let conf =
        [("max_worker_processes", "1"), ("max_logical_replication_workers", "0"), ("max_prepared_transactions", "1")];
    let cluster = Cluster::start(&conf).expect("a cluster");
    let mut db = slow_backfill(Session::on(&cluster), 2_000);
    db.run("CREATE TABLE second AS SELECT 'Elm Street'::text AS street");
    db.run("SELECT zdd.split_column('second', 'street', columns => 'a text, b text', delimiter => ' ', change => 'second')");
    db.run("SELECT zdd.start_backfill('second')");
    // Whatever comes in between.
    db.error("SELECT 1/0");
    db.run("BEGIN; SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT");
    db.run("BEGIN; SELECT 1; PREPARE TRANSACTION 'other'");
    db.run("COMMIT PREPARED 'other'");
    let_go(&mut db);
    wait_for(&mut db, "SELECT string_agg(phase, ',') FROM zdd.changes", "expanded,expanded");
}

#[test]
fn where_no_slot_is_free_the_launcher_tries_again() {
    // The launcher and what saves usage have the other two.
    let cluster = launched_cluster(&[("max_worker_processes", "3"), ("max_logical_replication_workers", "0")]);
    let db = slow_backfill(Session::on(&cluster), 2_000);
    share_one_slot(db, None);
}

/// To cut a table short takes ACCESS EXCLUSIVE, and cancels queries on standbys.
#[test]
fn the_vacuum_at_the_end_does_not_cut_the_table_short() {
    let mut db = Session::new();
    // Rows without a street are not written.
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text) WITH (autovacuum_enabled = off)");
    db.run("INSERT INTO address SELECT i, NULL, repeat('x', 60) FROM generate_series(1, 20000) AS i");
    db.run("DELETE FROM address WHERE id > 10000");
    split(&mut db);
    let size = "SELECT pg_relation_size('address')";
    let before = db.number(size);
    db.run(START);
    db.run(EXPANDED);
    wait_for(&mut db, "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'address'", "1");
    assert_eq!(db.number(size), before);
    db.run("VACUUM address");
    assert!(db.number(size) < before, "there was nothing to cut off");
}

/// Makes a contract stick behind its fence, as long as the other session holds it.
#[track_caller]
fn hold_contract(db: &mut Session) -> Session {
    db.run(
        "CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS
         $$ BEGIN IF (SELECT phase FROM zdd.change) = 'fenced' THEN PERFORM pg_advisory_xact_lock_shared(7); END IF; END $$;
         CREATE EVENT TRIGGER hold ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION hold()",
    );
    let mut holder = db.another();
    holder.run("SELECT pg_advisory_lock(7)");
    holder
}

#[test]
fn a_contract_is_one_at_a_time() {
    let mut db = address(Session::new(), 2_000);
    let_go(&mut db);
    db.run(START);
    db.run(EXPANDED);
    let mut holder = db.another();
    holder.run(HOLD);
    db.run("SELECT zdd.start_contract('address.street', force => true)");
    wait_for(&mut db, "SELECT phase, state, doing FROM zdd.progress", "expanded|running|fences");
    let error = db.error("CALL zdd.contract('address.street', force => true)");
    assert!(error.contains("(55006)") && error.contains("HINT: "), "{error}");
    holder.run("COMMIT");
    db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
}

/// A contract, not forced, whose worker is gone but whose fence is up.
#[track_caller]
fn fence_of_a_worker_that_is_gone() -> Session {
    let mut db = address(Session::new(), 2_000);
    let name = db.text("SELECT current_database()");
    db.run(&format!("ALTER DATABASE {name} SET zdd.quiet_period = '1s'"));
    let mut db = db.another();
    let_go(&mut db);
    db.run(START);
    db.run(EXPANDED);
    let holder = hold_contract(&mut db);
    wait_for(&mut db, "SELECT now() - started_at > '1 s' FROM zdd.changes", "t");
    db.run("SELECT zdd.start_contract('address.street')");
    let pid = worker(&mut db);
    wait_for(&mut db, "SELECT wait_event FROM pg_stat_activity JOIN zdd.workers USING (pid)", "advisory");
    db.run(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
    drop(holder);
    assert_eq!(db.text("SELECT job, phase, state FROM zdd.progress"), "contract|fenced|starting");
    db
}

const STOPPED: &str = "SELECT job, phase, state FROM zdd.progress WHERE state = 'stopped'";

#[test]
fn a_contract_takes_back_the_fence_of_its_worker_that_is_gone() {
    let mut db = fence_of_a_worker_that_is_gone();
    db.run("UPDATE address SET street_zdd_fenced = '' WHERE id = 7");
    // It keeps trying until it gets the lock.
    let name = db.text("SELECT current_database()");
    db.run(&format!("ALTER DATABASE {name} SET zdd.lock_patience = '1s'"));
    let mut reader = db.another();
    reader.run("BEGIN; SELECT count(*) FROM address");
    db.run(RESUME);
    let retried = "SELECT count(*) FROM zdd.events WHERE event = 'retried' AND detail->>'sqlstate' = '55P03'";
    wait_for(&mut db, retried, "1");
    assert_eq!(db.text("SELECT phase, state, doing FROM zdd.progress"), "fenced|waiting|takes its fence back");
    reader.run("COMMIT");
    wait_for(&mut db, STOPPED, "contract|expanded|stopped");
    let error = db.text("SELECT last_error FROM zdd.progress");
    assert!(error.contains("could not lock"), "{error}");
    assert_eq!(db.text("SELECT street FROM address WHERE id = 1"), "Elm Street 1");
    // A backfill may be what it takes to go on with the contract, which has then to be asked for anew.
    db.run("CALL zdd.backfill('address.street')");
    db.run("UPDATE address SET street = 'Elm Street 7' WHERE id = 7");
    db.run("SELECT zdd.start_contract('address.street', force => true)");
    db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
}

#[test]
fn the_fence_of_a_contract_is_no_proof_however_long_its_worker_is_gone() {
    let mut db = fence_of_a_worker_that_is_gone();
    let runner = {
        let mut client = db.another();
        Runner::start(Duration::from_millis(10), move || {
            let _ = client.client.batch_execute("SELECT street FROM address WHERE id = 1");
        })
    };
    wait_for(&mut db, "SELECT now() - phase_since > '1 s' FROM zdd.changes", "t");
    db.run(RESUME);
    wait_for(&mut db, STOPPED, "contract|expanded|stopped");
    assert!(db.text("SELECT last_error FROM zdd.progress").contains("was used within"));
    runner.stop();
    wait_for(&mut db, "SELECT max(last_seen) < now() - interval '1 s' FROM zdd.usage WHERE side = 'old'", "t");
    db.run(RESUME);
    db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
}

#[test]
fn a_fence_that_was_asked_for_stays_when_the_contract_is_refused() {
    let mut db = fence_of_a_worker_that_is_gone();
    db.run("SELECT zdd.unfence('address.street')");
    db.run("UPDATE address SET street = '' WHERE id = 7; SELECT zdd.fence('address.street')");
    wait_for(&mut db, "SELECT now() - phase_since > '1 s' FROM zdd.changes", "t");
    db.run(RESUME);
    wait_for(&mut db, STOPPED, "contract|fenced|stopped");
    assert!(db.text("SELECT last_error FROM zdd.progress").contains("1 row"));
}

#[test]
fn a_contract_survives_its_worker() {
    let cluster = launched_cluster(&[]);
    for blow in ["kill9", "terminate", "cancel"] {
        let mut db = address(Session::on(&cluster), 2_000);
        let_go(&mut db);
        db.run(START);
        db.run(EXPANDED);
        // It gets stuck behind its fence.
        let mut holder = hold_contract(&mut db);
        db.run("SELECT zdd.start_contract('address.street', force => true)");
        let pid = worker(&mut db);
        wait_for(&mut db, "SELECT wait_event FROM pg_stat_activity JOIN zdd.workers USING (pid)", "advisory");
        assert_eq!(
            db.text("SELECT job, phase, state, doing FROM zdd.progress"),
            "contract|fenced|running|demands NOT NULL"
        );
        let activity = format!("SELECT query FROM pg_stat_activity WHERE pid = {pid}");
        assert_eq!(db.text(&activity), "pg_zdd: address.street: demands NOT NULL");
        match blow {
            "kill9" => {
                cluster.kill9_backend(pid).expect("kill");
                db = after_crash(&mut db);
            }
            "terminate" => {
                db.run(&format!("SELECT pg_terminate_backend({pid})"));
                wait_for(&mut db, &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"), "0");
                holder.run("SELECT pg_advisory_unlock(7)");
            }
            _ => {
                // What it has done is taken back.
                db.run(&format!("SELECT pg_cancel_backend({pid})"));
                holder.run("SELECT pg_advisory_unlock(7)");
                wait_for(&mut db, "SELECT phase, state FROM zdd.progress", "expanded|stopped");
                let event = "SELECT detail->>'error' FROM zdd.events WHERE event = 'error'";
                assert_eq!(db.text(event), "canceling statement due to user request");
                assert_eq!(db.text("SELECT street FROM address WHERE id = 1"), "Elm Street 1");
                db.run(RESUME);
            }
        }
        db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
        assert_eq!(db.text("SELECT * FROM address WHERE id = 1"), "1|~|Elm Street|1");
    }
}

#[test]
fn a_contract_that_is_refused_says_why() {
    let mut db = address(Session::new(), 2_000);
    db.run("UPDATE address SET street = '' WHERE id = 7");
    let_go(&mut db);
    db.run(START);
    db.run(EXPANDED);
    assert!(db.error("SELECT zdd.start_contract('address.street')").contains("(55006)"));
    db.run("SELECT zdd.start_contract('address.street', force => true)");
    let error = db.error("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
    assert!(error.contains("1 row") && error.contains("HINT: "), "{error}");
    let progress = "SELECT job, state, phase, last_error IS NOT NULL, last_error_hint IS NOT NULL,
        last_error_at > now() - interval '1 min' FROM zdd.progress";
    assert_eq!(db.text(progress), "contract|stopped|expanded|t|t|t");
    let event = "SELECT count(*) FROM zdd.events WHERE event = 'error' AND detail->>'error' LIKE '%1 row%'";
    assert_eq!(db.text(event), "1");
    db.run("UPDATE address SET street = 'Elm Street 7' WHERE id = 7");
    db.run(RESUME);
    db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
}
