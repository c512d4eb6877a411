//! What not all versions of PostgreSQL have.

use pg_zdd_cluster::address::wait_for;
use pg_zdd_cluster::session::Session;

const RULE: &str =
    r#"regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]'"#;

fn split(columns: &str) -> String {
    format!("SELECT zdd.split_column('address', 'street', columns => '{columns}', {RULE})")
}

/// A table with a few rows from before the change, if the server is new enough.
fn expanding(since: i64, more_columns: &str) -> Option<Session> {
    let mut db = Session::new();
    if db.major() < since {
        return None;
    }
    db.run(&format!("CREATE TABLE address (id int PRIMARY KEY, street text{more_columns})"));
    db.run("INSERT INTO address (id, street) VALUES (1, 'Elm 1'), (2, 'Oak 2'), (3, 'Ash 3')");
    db.run(&split("streetname text, housenumber text"));
    Some(db)
}

fn streets(db: &mut Session) -> String {
    db.text("SELECT street, streetname, housenumber FROM address ORDER BY id")
}

/// Before 16 there is no syntax for it.
#[test]
fn storage_of_a_new_column_is_refused() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (street text)");
    let error = db.error(&split("streetname text STORAGE EXTERNAL, housenumber text"));
    let expected = if db.major() < 16 { "(42601)" } else { "has a constraint that a change cannot carry (0A000)" };
    assert!(error.contains(expected), "{error}");
}

/// Before 18 there is no syntax for it.
#[test]
fn not_null_of_one_table_alone_is_refused() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (street text)");
    let error = db.error(&split("streetname text NOT NULL NO INHERIT, housenumber text"));
    let expected = if db.major() < 18 { "(42601)" } else { "NO INHERIT, which a change cannot carry (0A000)" };
    assert!(error.contains(expected), "{error}");
}

/// Columns that are generated when they are read, from others or from the new ones, and constraints on them.
#[test]
fn constraints_on_virtual_columns_hold() {
    let unrelated = ", note text DEFAULT 'x', loud text GENERATED ALWAYS AS (upper(note)) VIRTUAL CHECK (loud = 'X')";
    for constraint in [
        "low text GENERATED ALWAYS AS (lower(streetname)) VIRTUAL CHECK (low <> 'oak')",
        "low text GENERATED ALWAYS AS (nullif(coalesce(streetname, ''), 'Oak')) VIRTUAL NOT NULL",
    ] {
        let Some(mut db) = expanding(18, unrelated) else { return };
        db.run(&format!("ALTER TABLE address ADD {constraint}"));
        let error = db.error("CALL zdd.backfill('address.street')");
        assert!(error.contains("(23514)") || error.contains("(23502)"), "{constraint}: {error}");
        assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding");
        db.run("UPDATE address SET street = 'Fir 2' WHERE id = 2");
        db.run("CALL zdd.backfill('address.street')");
        assert_eq!(streets(&mut db), "Elm 1|Elm|1\nFir 2|Fir|2\nAsh 3|Ash|3");

        // Repair obeys them too.
        db.run("SET session_replication_role = replica; UPDATE address SET street = 'Oak 3' WHERE id = 3");
        db.run("RESET session_replication_role");
        let error = db.error("CALL zdd.repair('address.street', winner => 'old')");
        assert!(error.contains("(23514)") || error.contains("(23502)"), "{constraint}: {error}");
        db.run("CALL zdd.repair('address.street', winner => 'new')");
        assert_eq!(streets(&mut db), "Elm 1|Elm|1\nFir 2|Fir|2\nAsh 3|Ash|3");
    }
}

#[test]
fn checks_that_are_not_enforced_do_not_stop_a_backfill() {
    let Some(mut db) = expanding(18, "") else { return };
    db.run("ALTER TABLE address ADD CHECK (streetname <> 'Oak') NOT ENFORCED");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Ash|3");
}

/// Without event triggers there is no guard. What it would have refused then stops writes, not silently their sync.
#[test]
fn without_event_triggers_a_broken_change_takes_no_writes() {
    let Some(mut db) = expanding(17, "") else { return };
    db.run("SET event_triggers = off; ALTER TABLE address DROP COLUMN housenumber; RESET event_triggers");
    for write in ["INSERT INTO address (id, street) VALUES (4, 'Fir 4')", "UPDATE address SET street = 'Fir 1'"] {
        let error = db.error(write);
        assert!(error.contains("(55000)"), "{error}");
    }
    db.run("SET event_triggers = off; DROP TABLE address; RESET event_triggers");
    db.run("SELECT zdd.rollback('address.street')");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");

    // Nobody but a superuser can do that.
    db.run("CREATE ROLE versions_owner LOGIN");
    let error = db.another_as("versions_owner").error("SET event_triggers = off");
    assert!(error.contains("(42501)"), "{error}");
}

/// transaction_timeout is for clients.
#[test]
fn workers_take_longer_than_transactions_may() {
    let Some(mut db) = expanding(17, "") else { return };
    let name = db.text("SELECT current_database()");
    db.run(&format!("ALTER DATABASE {name} SET transaction_timeout = '50ms'"));
    db.run(
        "CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN new; END $$;
         CREATE TRIGGER a BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION take_time();
         SELECT zdd.start_backfill('address.street', fire_triggers => true)",
    );
    db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Ash|3");
    assert_eq!(db.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
}

/// VACUUM of a table means its children too from 18 on, but each has its own turn.
#[test]
fn a_table_and_its_children_are_vacuumed_once() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text); CREATE TABLE child () INHERITS (address);
         INSERT INTO address VALUES (1, 'Elm 1'); INSERT INTO child VALUES (2, 'Oak 2')",
    );
    db.run(&split("streetname text, housenumber text"));
    db.run("SELECT zdd.start_backfill('address.street')");
    db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%'
        AND datname = current_database()";
    wait_for(&mut db, workers, "0");
    let vacuumed = "SELECT relname, vacuum_count FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1";
    assert_eq!(db.text(vacuumed), "address|1\nchild|1");
}
