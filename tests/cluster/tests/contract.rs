//! What a contract goes by: nothing that happens while it looks at the rows, or waits for the table, is missed.

use pg_zdd_cluster::address::wait_for;
use pg_zdd_cluster::session::Session;

/// Lets whoever counts rows behind the fence wait for as long as another session holds the lock.
const JOINED: &str =
    "CREATE FUNCTION joined(streetname text, housenumber text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN
        IF (SELECT phase FROM zdd.change WHERE relation IS NOT NULL) = 'fenced' THEN
            PERFORM pg_advisory_xact_lock_shared(7);
        END IF;
        RETURN nullif(concat_ws(' ', streetname, housenumber), '');
    END $$";
const RULE: &str = r#"columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', join_sql => 'public.joined(streetname, housenumber)'"#;
const CONTRACT: &str = "SELECT zdd.start_contract('address.street', force => true)";
const STATE: &str = "SELECT phase, state FROM zdd.progress";

/// A table of ten addresses, made by this, that is expanded.
#[track_caller]
fn expanded(table: &str) -> Session {
    let mut db = Session::new();
    db.run(table);
    db.run(JOINED);
    db.run("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 10) AS i");
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    db.run("CALL zdd.backfill('address.street')");
    db
}

const PLAIN: &str = "CREATE TABLE address (id int PRIMARY KEY, street text)";
const PARTED: &str = "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (1000)";

/// Begins a contract that waits while it counts behind its fence.
#[track_caller]
fn begin(db: &mut Session) {
    db.run("SELECT pg_advisory_lock(7)");
    db.run(CONTRACT);
    let waits = "SELECT doing, wait_event FROM pg_stat_activity JOIN zdd.workers USING (pid)";
    wait_for(db, waits, "counts rows behind the fence|advisory");
}

/// Does something while a contract counts.
#[track_caller]
fn meanwhile(db: &mut Session, sql: &str) {
    begin(db);
    db.run(sql);
    db.run("SELECT pg_advisory_unlock(7)");
}

/// Does what has to wait for the tables that are being counted, and comes before the contract locks them.
#[track_caller]
fn right_after(db: &mut Session, sql: &str) {
    begin(db);
    let ddl = db.another().in_background(sql);
    wait_for(db, &format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {}", ddl.pid), "Lock");
    db.run("SELECT pg_advisory_unlock(7)");
    ddl.join().1.expect("no error");
}

/// The contract is refused for this reason, and leaves nothing behind.
#[track_caller]
fn refused(db: &mut Session, reason: &str) {
    wait_for(db, STATE, "expanded|stopped");
    let error = db.text("SELECT last_error FROM zdd.progress");
    assert!(error.contains(reason), "{error}");
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zdd_watch%' OR EXISTS (SELECT FROM zdd.written)";
    assert_eq!(db.number(left), 0);
}

#[track_caller]
fn contracted(db: &mut Session) {
    db.run("CALL zdd.wait_for('address.street', 'contracted', '60 s')");
    assert_eq!(db.text("SELECT count(*) FROM zdd.written"), "0");
}

/// A table of a hundred addresses that becomes a partition.
fn attach(streets: &str) -> String {
    format!(
        "CREATE TABLE high (LIKE address);
         INSERT INTO high (id, {streets} FROM generate_series(1000, 1099) AS i;
         ALTER TABLE address ATTACH PARTITION high FOR VALUES FROM (1000) TO (2000)"
    )
}

#[test]
fn a_partition_that_comes_after_the_count_is_counted() {
    let mut db = expanded(PARTED);
    meanwhile(&mut db, &attach("street_zdd_fenced) SELECT i, 'Elm Street ' || i"));
    refused(&mut db, "not in sync");
    assert_eq!(db.text("SELECT count(street), count(streetname) FROM high"), "100|0");
    // With its rows split, it is in nobody's way.
    db.run("CALL zdd.backfill('address.street')");
    db.run(CONTRACT);
    contracted(&mut db);
    assert_eq!(db.text("SELECT count(streetname), count(housenumber) FROM address"), "110|110");
}

#[test]
fn a_partition_that_comes_in_sync_is_no_obstacle() {
    let mut db = expanded(PARTED);
    let attach = attach("street_zdd_fenced, streetname, housenumber) SELECT i, 'Elm ' || i, 'Elm', i");
    meanwhile(&mut db, &format!("{attach}; CREATE TABLE none PARTITION OF address DEFAULT"));
    contracted(&mut db);
    assert_eq!(db.text("SELECT count(streetname), count(housenumber) FROM address"), "110|110");
}

#[test]
fn a_partition_that_was_away_is_counted_again() {
    let mut db = expanded(PARTED);
    let away = "ALTER TABLE address DETACH PARTITION low;
        UPDATE low SET street_zdd_fenced = NULL, streetname = NULL, housenumber = NULL WHERE id < 5;
        UPDATE low SET street_zdd_fenced = 'Oak Street 7' WHERE id < 5;
        ALTER TABLE address ATTACH PARTITION low FOR VALUES FROM (0) TO (1000)";
    // What leaves the change must not keep its trigger, which only a superuser can get around.
    right_after(&mut db, &format!("SET zdd.guard = off; {away}"));
    refused(&mut db, "not in sync");
    assert_eq!(db.text("SELECT count(*) FROM address WHERE street = 'Oak Street 7'"), "4");
}

#[test]
fn rows_that_are_written_after_the_count_are_counted() {
    // Who names no columns is not kept out by the fence.
    for (write, reason) in [
        ("INSERT INTO address VALUES (11, '')", "1 row of change \"address.street\" is unmatched"),
        (
            "INSERT INTO address VALUES (11, 'Elm  11'), (12, 'Elm  12')",
            "2 rows of change \"address.street\" are lossy",
        ),
        ("UPDATE address SET street_zdd_fenced = '' WHERE id = 3", "is unmatched"),
    ] {
        let mut db = expanded(PLAIN);
        meanwhile(&mut db, write);
        refused(&mut db, reason);
        assert!(db.text("SELECT string_agg(street, ',') FROM address").contains("Elm"));
    }
    // What is settled again is nobody's business.
    let mut db = expanded(PLAIN);
    let writes = "BEGIN; INSERT INTO address VALUES (11, ''), (12, 'Elm  12'), (13, '');
        UPDATE address SET streetname = 'Oak' WHERE id = 11; UPDATE address SET streetname = 'Oak' WHERE id = 12;
        DELETE FROM address WHERE id = 13;
        SAVEPOINT s; INSERT INTO address VALUES (14, ''); ROLLBACK TO s; COMMIT";
    meanwhile(&mut db, writes);
    contracted(&mut db);
    assert_eq!(
        db.text("SELECT id, streetname, housenumber FROM address WHERE id > 10 ORDER BY id"),
        "11|Oak|~\n12|Oak|12"
    );
}

#[test]
fn what_comes_to_depend_on_the_column_is_seen() {
    let mut db = expanded(PLAIN);
    meanwhile(&mut db, "CREATE INDEX pair ON address (street_zdd_fenced, id)");
    refused(&mut db, "other objects depend");
    assert_eq!(db.text("SELECT count(*) FROM pg_class WHERE relname = 'pair'"), "1");
}

/// Under a fence that was asked for, too.
#[test]
fn a_refused_contract_no_longer_watches() {
    let mut db = expanded(PLAIN);
    db.run("SELECT zdd.fence('address.street')");
    meanwhile(&mut db, "INSERT INTO address VALUES (11, '')");
    wait_for(&mut db, STATE, "fenced|stopped");
    assert_eq!(db.text("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zdd_watch%'"), "0");
    assert_eq!(db.text("SELECT street_zdd_fenced FROM address WHERE id = 11"), "");
}
