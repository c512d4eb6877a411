//! pg_dump and restore of a database with changes in flight, and pg_upgrade of the server: they go on where they were.

use std::process::{Command, Stdio};
use std::time::Duration;

use pg_zdd_cluster::address::{address, check_expanded, wait_for_rows};
use pg_zdd_cluster::session::{Session, shared_cluster};
use pg_zdd_cluster::{Cluster, Stop, wait_until};

const ROWS: i64 = 3000;

fn split(db: &mut Session, table: &str) {
    db.run(&format!(
        r#"SELECT zdd.split_column('{table}', 'street',
            columns => 'streetname varchar NOT NULL, housenumber varchar',
            regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{{streetname}}[ {{housenumber}}]')"#
    ));
}

fn pending(db: &mut Session, table: &str) -> i64 {
    db.number(&format!("SELECT pending FROM zdd.verify('{table}.street')"))
}

/// Backfills a table while somebody holds its last rows, and cancels it when only those are left.
fn backfill_half(db: &mut Session, table: &str) {
    let (mut holder, mut worker) = (db.another(), db.another());
    holder.run(&format!("BEGIN; SELECT 1 FROM {table} WHERE id > {} FOR UPDATE", ROWS - 10));
    let pid = worker.pid();
    let call = worker.in_background(&format!("CALL zdd.backfill('{table}.street')"));
    let waiting = "SELECT count(*) FROM zdd.workers WHERE waiting_for LIKE 'row locks%'";
    wait_until("the backfill waits", Duration::from_secs(60), || Ok(db.number(waiting) > 0)).unwrap();
    db.run(&format!("SELECT pg_cancel_backend({pid})"));
    let (_, result) = call.join();
    assert!(result.is_err_and(|error| error.contains("(57014)")));
    holder.run("ROLLBACK");
    let left = pending(db, table);
    assert!((10..ROWS).contains(&left), "{left} rows are pending");
}

/// Changes in each phase, and on each kind of table.
fn in_flight(db: &mut Session) {
    db.run(&format!(
        "CREATE TABLE half (id int PRIMARY KEY, street text NOT NULL);
         CREATE TABLE done (id int PRIMARY KEY, street text);
         CREATE TABLE fenced (id int PRIMARY KEY, street text);
         CREATE INDEX ON fenced (street);
         CREATE TABLE parted (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);
         CREATE TABLE parted_lowest PARTITION OF parted_low FOR VALUES FROM (0) TO (1000);
         CREATE TABLE parted_high (street text, gone int, id int);
         ALTER TABLE parted_high DROP gone;
         ALTER TABLE parted ATTACH PARTITION parted_high FOR VALUES FROM (1000) TO (100000);
         CREATE TABLE family (id int, street text);
         CREATE TABLE child (extra text) INHERITS (family);
         INSERT INTO half SELECT i, 'Elm ' || i FROM generate_series(1, {ROWS}) AS i;
         INSERT INTO done SELECT * FROM half; INSERT INTO fenced SELECT * FROM half;
         INSERT INTO parted SELECT * FROM half; INSERT INTO family SELECT * FROM half WHERE id % 2 = 0;
         INSERT INTO child SELECT * FROM half WHERE id % 2 = 1"
    ));
    for table in ["half", "done", "fenced", "parted", "family"] {
        split(db, table);
    }
    for table in ["done", "fenced"] {
        db.run(&format!("CALL zdd.backfill('{table}.street')"));
    }
    db.run("SELECT zdd.fence('fenced.street')");
    for table in ["half", "parted", "family"] {
        backfill_half(db, table);
    }
}

const CATALOG: &str = "SELECT change, relation, source, targets, phase, phase_since, rule, started_at, started_by
    FROM zdd.changes ORDER BY change";
/// The texts of errors are not in a dump.
const EVENTS: &str = "SELECT at, change, event, detail - '{error,detail,hint}'::text[], role FROM zdd.events";
const TRIGGERS: &str = "SELECT tgrelid::regclass::text, tgname, tgenabled, tgparentid <> 0, md5(tgargs)
    FROM pg_trigger WHERE tgfoid = 'zdd.sync()'::regprocedure ORDER BY 1, 2";

/// Feeds one program with the other's output. Neither may say anything on stderr.
fn pipe(mut from: Command, mut to: Command) {
    let mut from = from.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    to.stdin(from.stdout.take().unwrap()).stdout(Stdio::null());
    let output = to.output().unwrap();
    // It has an end of the pipe too. Were it open, the writer would never hear that nobody reads any more.
    drop(to);
    let to = output;
    let from = from.wait_with_output().unwrap();
    for output in [from, to] {
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(output.status.success(), "{}", output.status);
    }
}

fn restore(db: &mut Session, dump: &[&str], program: &str, arguments: &[&str]) -> Session {
    let cluster = shared_cluster();
    let name = db.text("SELECT current_database()");
    let copy = format!("{name}_copy");
    db.run(&format!("CREATE DATABASE {copy}"));
    let mut from = cluster.client_tool("pg_dump", &name);
    from.args(dump);
    let mut to = cluster.client_tool(program, &copy);
    to.args(arguments).args(["-d", &copy]);
    pipe(from, to);
    Session::connect(cluster.config(&copy, "postgres", "test"))
}

/// Both applications write, and each sees what the other wrote. Row 1 is from before the change.
fn both_write(db: &mut Session, table: &str) {
    let old = if table == "fenced" { "street_zdd_fenced" } else { "street" };
    db.run(&format!(
        "INSERT INTO {table} (id, {old}) VALUES (10001, 'Oak 1'), (10002, 'Ash 2');
         INSERT INTO {table} (id, streetname, housenumber) VALUES (10003, 'Fir', '3');
         UPDATE {table} SET {old} = 'Yew 4' WHERE id = 10001;
         UPDATE {table} SET housenumber = '5b' WHERE id = 10002;
         UPDATE {table} SET housenumber = '6b' WHERE id = 1;"
    ));
    let rows = format!("SELECT {old}, streetname, housenumber FROM {table} WHERE id > 10000 OR id = 1 ORDER BY id");
    assert_eq!(db.text(&rows), "Elm 6b|Elm|6b\nYew 4|Yew|4\nAsh 5b|Ash|5b\nFir 3|Fir|3", "{table}");
}

/// Where the changes of `in_flight` are.
fn state(db: &mut Session) -> Vec<String> {
    let pending = |table: &&str| format!("SELECT pending FROM zdd.verify('{table}.street')");
    let pending: Vec<String> = ["half", "parted", "family"].iter().map(pending).collect();
    let queries = [CATALOG, EVENTS, TRIGGERS].map(str::to_owned);
    queries.iter().chain(&pending).map(|sql| db.text(sql)).collect()
}

fn goes_on(dump: &[&str], program: &str, arguments: &[&str]) {
    let mut db = Session::new();
    in_flight(&mut db);
    let mut copy = restore(&mut db, dump, program, arguments);
    assert_eq!(state(&mut copy), state(&mut db));
    goes_on_to_the_end(copy);
}

/// What `in_flight` has begun is what it was, and can be brought to its end.
fn goes_on_to_the_end(mut copy: Session) {
    for table in ["half", "done", "fenced", "parted", "family"] {
        both_write(&mut copy, table);
        // The guard is on again.
        for refused in ["DROP COLUMN housenumber", "DISABLE TRIGGER ALL"] {
            let error = copy.error(&format!("ALTER TABLE {table} {refused}"));
            assert!(error.contains("(55006)"), "{error}");
        }
        copy.run(&format!("CALL zdd.backfill('{table}.street')"));
        let verified = copy.text(&format!("SELECT in_sync, pending, diverged FROM zdd.verify('{table}.street')"));
        assert_eq!(verified, format!("{}|0|0", ROWS + 3), "{table}");
    }
    let phases = "SELECT string_agg(phase, ' ' ORDER BY change) FROM zdd.changes";
    assert_eq!(copy.text(phases), "expanded expanded fenced expanded expanded");
    // New changes and events get numbers of their own.
    copy.run("CREATE TABLE another (id int, street text)");
    split(&mut copy, "another");
    copy.run("SET zdd.quiet_period = 0");
    for table in ["half", "done", "fenced", "parted", "family"] {
        copy.run(&format!("CALL zdd.contract('{table}.street')"));
        let rows = format!("SELECT count(*) FROM {table} WHERE (streetname, housenumber) = ('Elm', id::text)");
        assert_eq!(copy.number(&rows), ROWS - 1, "{table}");
    }
    assert_eq!(copy.text("SELECT * FROM half WHERE id = 1"), "1|Elm|6b");
}

#[test]
fn plain_dump() {
    goes_on(&[], "psql", &["-X", "-q", "-v", "ON_ERROR_STOP=0"]);
}

#[test]
fn custom_dump() {
    goes_on(&["-Fc"], "pg_restore", &["--exit-on-error"]);
}

/// Row by row, and all in one transaction.
#[test]
fn dump_of_inserts_in_one_transaction() {
    goes_on(&["--column-inserts"], "psql", &["-X", "-q", "-1", "-v", "ON_ERROR_STOP=0"]);
}

/// The restore of an owner's table, with the owner going on.
#[test]
fn the_owner_goes_on() {
    let mut db = Session::new();
    db.run(
        "CREATE ROLE dump_owner LOGIN;
         CREATE TABLE address (id int PRIMARY KEY, street text);
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, 100) AS i;
         ALTER TABLE address OWNER TO dump_owner",
    );
    split(&mut db.another_as("dump_owner"), "address");
    let copy = restore(&mut db, &["-Fc"], "pg_restore", &[]);
    let mut owner = copy.another_as("dump_owner");
    owner.run("CALL zdd.backfill('address.street')");
    owner.run("SELECT zdd.fence('address.street'); SELECT zdd.unfence('address.street')");
    owner.run("CALL zdd.contract('address.street', force => true)");
    assert_eq!(owner.text("SELECT * FROM address WHERE id = 7"), "7|Elm|7");
    assert_eq!(owner.text("SELECT event FROM zdd.events ORDER BY at LIMIT 1"), "expanding");
}

#[test]
fn pg_upgrade() {
    let settings = [("shared_preload_libraries", "pg_zdd"), ("zdd.auto_resume", "off")];
    let old = Cluster::start_old(&settings).expect("a cluster");
    let mut db = Session::on(&old);
    in_flight(&mut db);
    let before = state(&mut db);
    old.stop(Stop::Fast).expect("a shutdown");
    let new = old.upgraded(&settings).expect("an upgrade");
    let mut copy = db.at(&new);
    assert_eq!(state(&mut copy), before);
    goes_on_to_the_end(copy);
}

/// pg_upgrade starts the old server and copies it. What somebody wrote into it meanwhile would be lost.
#[test]
fn nobody_works_while_pg_upgrade_does() {
    const ROWS: i32 = 100_000;
    let settings = [("shared_preload_libraries", "pg_zdd"), ("zdd.launcher_naptime", "1s")];
    let old = Cluster::start_old(&settings).expect("a cluster");
    let mut db = address(Session::on(&old), ROWS);
    db.run("SELECT zdd.start_backfill('address.street')");
    wait_for_rows(&mut db, 1000);
    old.stop(Stop::Fast).expect("a shutdown");
    let new = old.upgraded(&settings).expect("an upgrade");
    let mut db = db.at(&new);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    check_expanded(&mut db, ROWS.into(), ROWS.into());
}
