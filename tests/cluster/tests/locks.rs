//! A transaction holds the table: whoever wants to change it waits in small steps, and nobody else waits behind.

use std::time::{Duration, Instant};

use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::session::{Session, shared_cluster};
use pg_zdd_cluster::wait_until;

const SPLIT: &str = r#"SELECT zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]')"#;
const FENCE: &str = "SELECT zdd.fence('address.street')";
const HOLD: &str = "BEGIN; SELECT count(*) FROM address";

const TIMEOUT: Duration = Duration::from_millis(100);
/// What a busy machine may add to a wait of `TIMEOUT`.
const SLACK: Duration = Duration::from_millis(900);
const PATIENT: &str = "SET zdd.lock_timeout = '100ms'; SET zdd.lock_patience = '60s'";
const IMPATIENT: &str = "SET zdd.lock_timeout = '100ms'; SET zdd.lock_patience = '1s'";

fn address() -> Session {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int PRIMARY KEY, street text);
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, 100) AS i",
    );
    db
}

fn expanded() -> Session {
    let mut db = address();
    db.run(SPLIT);
    db.run("CALL zdd.backfill('address.street')");
    db
}

/// Everything that pg_zdd makes or changes.
fn traces(db: &mut Session) -> String {
    db.text(
        "SELECT (SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = 'address'::regclass AND attnum > 0 AND NOT attisdropped),
             (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'address'::regclass),
             (SELECT count(*) FROM pg_constraint WHERE conrelid = 'address'::regclass AND contype = 'c'),
             (SELECT count(*) FROM zdd.change), (SELECT max(phase) FROM zdd.change), (SELECT count(*) FROM zdd.event
                 WHERE event NOT IN ('contract_started', 'error'))",
    )
}

/// Waits until a session is seen to wait for a lock, or not to.
fn until_waiting(db: &mut Session, pid: i32, waiting: bool) {
    let sql = format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} AND NOT granted");
    let what = format!("session {pid} waiting for a lock is {waiting}");
    wait_until(&what, Duration::from_secs(30), || Ok((db.number(&sql) > 0) == waiting)).unwrap();
}

/// Runs a call while a transaction holds the table. It must succeed once the transaction is over, and no query of
/// anybody else may wait long meanwhile.
fn waits_in_small_steps(mut db: Session, call: &str) {
    let (mut holder, mut caller, mut prober) = (db.another(), db.another(), db.another());
    holder.run(HOLD);
    let pid = caller.pid();
    caller.run(PATIENT);
    let record = Record::default();
    let probes = record.clone();
    let runner = Runner::start(Duration::from_millis(2), move || {
        probes.time("SELECT", || prober.client.batch_execute("SELECT id FROM address WHERE id = 1"));
    });
    let start = Instant::now();
    let call = caller.in_background(call);
    // An attempt, a pause, and another attempt.
    until_waiting(&mut db, pid, true);
    until_waiting(&mut db, pid, false);
    until_waiting(&mut db, pid, true);
    holder.run("COMMIT");
    let (_, result) = call.join();
    let seen = record.between(start, Instant::now());
    runner.stop();
    assert_eq!(result, Ok(()));
    assert_eq!((seen.errors, record.failures().len()), (0, 0));
    assert!(seen.statements > 20, "{seen:?}");
    assert!(seen.longest < TIMEOUT + SLACK, "{seen:?}");
}

#[test]
fn split_column_lets_queries_through() {
    waits_in_small_steps(address(), SPLIT);
}

#[test]
fn fence_lets_queries_through() {
    waits_in_small_steps(expanded(), FENCE);
}

#[test]
fn rollback_lets_queries_through() {
    waits_in_small_steps(expanded(), "SELECT zdd.rollback('address.street')");
}

#[test]
fn contract_lets_queries_through() {
    waits_in_small_steps(expanded(), "CALL zdd.contract('address.street', force => true)");
}

/// Runs a call in vain: it names the holder's query and leaves nothing behind.
fn gives_up(mut db: Session, call: &str) {
    let (mut holder, mut caller) = (db.another(), db.another());
    let pid = holder.pid();
    let before = traces(&mut db);
    holder.run(HOLD);
    caller.run(IMPATIENT);
    let start = Instant::now();
    let error = caller.error(call);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(error.contains("(55P03)"), "{error}");
    let detail = error.split("DETAIL:").nth(1).unwrap_or_default();
    assert!(detail.contains(&format!("pid {pid}, postgres, idle in transaction")), "{error}");
    assert!(detail.contains("SELECT count(*) FROM address"), "{error}");
    holder.run("COMMIT");
    assert_eq!(traces(&mut db), before);
    caller.run(call);
}

#[test]
fn split_column_gives_up() {
    gives_up(address(), SPLIT);
}

#[test]
fn fence_gives_up() {
    gives_up(expanded(), FENCE);
}

#[test]
fn contract_from_expanded_gives_up() {
    gives_up(expanded(), "CALL zdd.contract('address.street', force => true)");
}

#[test]
fn contract_from_fenced_gives_up() {
    let mut db = expanded();
    db.run(FENCE);
    gives_up(db, "CALL zdd.contract('address.street', force => true)");
}

#[test]
fn a_partition_is_enough_to_hold() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (1000);
         INSERT INTO address VALUES (1, 'Elm 1')",
    );
    let (mut holder, mut caller) = (db.another(), db.another());
    let pid = holder.pid();
    holder.run("BEGIN; UPDATE low SET id = 2");
    caller.run(IMPATIENT);
    let error = caller.error(SPLIT);
    assert!(error.contains("(55P03)") && error.contains(&format!("pid {pid},")), "{error}");
    assert!(error.contains("UPDATE low"), "{error}");
    holder.run("COMMIT");
    caller.run(SPLIT);
}

#[test]
fn a_prepared_transaction_is_named() {
    let mut db = address();
    let (mut holder, mut caller) = (db.another(), db.another());
    let before = traces(&mut db);
    holder.run("BEGIN; SELECT count(*) FROM address; PREPARE TRANSACTION 'left behind'");
    caller.run(IMPATIENT);
    let error = caller.error(SPLIT);
    db.run("ROLLBACK PREPARED 'left behind'");
    assert!(error.contains("(55P03)"), "{error}");
    assert!(error.contains("prepared transaction 'left behind' of role postgres"), "{error}");
    assert_eq!(traces(&mut db), before);
    caller.run(SPLIT);
}

/// A database made from a template has its tables under the same OIDs.
#[test]
fn holders_in_other_databases_are_not_blamed() {
    let mut db = address();
    let name = db.text("SELECT current_database()");
    drop(db);
    let cluster = shared_cluster();
    let mut admin = Session::connect(cluster.config("postgres", "postgres", "test"));
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'");
    wait_until("the template is free", Duration::from_secs(30), || Ok(admin.number(&sessions) == 0)).unwrap();
    admin.run(&format!("CREATE DATABASE twin_of_{name} TEMPLATE {name}"));
    let mut bystander = Session::connect(cluster.config(&name, "postgres", "test"));
    let mut holder = Session::connect(cluster.config(&format!("twin_of_{name}"), "postgres", "test"));
    let mut caller = holder.another();
    let (bystander_pid, holder_pid) = (bystander.pid(), holder.pid());
    bystander.run(HOLD);
    holder.run(HOLD);
    caller.run(IMPATIENT);
    let error = caller.error(SPLIT);
    assert!(error.contains(&format!("pid {holder_pid},")), "{error}");
    assert!(!error.contains(&format!("pid {bystander_pid},")), "{error}");
}
