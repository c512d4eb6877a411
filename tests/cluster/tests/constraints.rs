//! What a backfill or a repair writes obeys the table's constraints as an UPDATE does, fires no user's trigger, and waits for no
//! application's row lock.

use pg_zdd_cluster::address::{PATIENCE, rows_split, wait_for};
use pg_zdd_cluster::session::{Background, Session};
use pg_zdd_cluster::wait_until;

const SPLIT: &str = r#"SELECT zdd.split_column('address', 'street', columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]')"#;
const BACKFILL: &str = "CALL zdd.backfill('address.street')";
const FIRING: &str = "CALL zdd.backfill('address.street', fire_triggers => true)";
const NEW_WINS: &str = "CALL zdd.repair('address.street', winner => 'new')";

/// A table with these streets from before the change, numbered from 1; then whatever else is asked for.
fn expanding(streets: &[&str], more: &str) -> Session {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text)");
    for (index, street) in streets.iter().enumerate() {
        db.run(&format!("INSERT INTO address VALUES ({}, '{street}')", index + 1));
    }
    db.run(SPLIT);
    db.run(more);
    db
}

fn phase(db: &mut Session) -> String {
    db.text("SELECT phase FROM zdd.changes")
}

fn streets(db: &mut Session) -> String {
    db.text("SELECT street, streetname, housenumber FROM address ORDER BY id")
}

/// Writes past the trigger, which makes rows diverge.
fn write_apart(db: &mut Session, sql: &str) {
    db.run(&format!("SET session_replication_role = replica; {sql}; SET session_replication_role = origin"));
}

// UNIQUE and EXCLUDE

const DEFERRABLE: [&str; 4] = [
    "ALTER TABLE address ADD CONSTRAINT sole UNIQUE (streetname) DEFERRABLE",
    "ALTER TABLE address ADD CONSTRAINT sole UNIQUE (streetname) DEFERRABLE INITIALLY DEFERRED",
    "ALTER TABLE address ADD CONSTRAINT sole EXCLUDE (streetname WITH =) DEFERRABLE INITIALLY IMMEDIATE",
    "ALTER TABLE address ADD CONSTRAINT sole EXCLUDE (streetname WITH =) DEFERRABLE INITIALLY DEFERRED",
];

#[test]
fn deferrable_constraints_on_new_columns_hold() {
    for constraint in DEFERRABLE {
        for backfill in [BACKFILL, FIRING] {
            let mut db = expanding(&["Elm 1", "Oak 2", "Elm 3"], constraint);
            let error = db.error(backfill);
            assert!(error.contains("\"sole\"") && error.contains("(23"), "{constraint}: {error}");
            assert_eq!(phase(&mut db), "expanding", "{constraint}");
            db.run("UPDATE address SET street = 'Ash 3' WHERE id = 3");
            db.run(backfill);
            assert_eq!(phase(&mut db), "expanded", "{constraint}");
            assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Ash|3");
        }
    }
}

/// Also where the sessions of its database do without such constraints.
#[test]
fn a_worker_obeys_deferrable_constraints() {
    for role in ["origin", "replica"] {
        let mut db = expanding(&["Elm 1", "Elm 2"], DEFERRABLE[1]);
        let name = db.text("SELECT current_database()");
        db.run(&format!("ALTER DATABASE {name} SET session_replication_role = {role}"));
        db.run("SELECT zdd.start_backfill('address.street')");
        let error = "SELECT detail->>'error' FROM zdd.events WHERE event = 'error'";
        wait_for(&mut db, error, "duplicate key value violates unique constraint \"sole\"");
        assert_eq!(phase(&mut db), "expanding");
        assert!(db.number("SELECT count(*) FROM address WHERE streetname = 'Elm'") < 2);
    }
}

#[test]
fn a_deferrable_constraint_of_a_partition_holds() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (100);
         CREATE TABLE high PARTITION OF address FOR VALUES FROM (100) TO (200);
         INSERT INTO address VALUES (1, 'Elm 1'), (101, 'Elm 1'), (102, 'Elm 2')",
    );
    db.run(SPLIT);
    db.run("ALTER TABLE high ADD CONSTRAINT sole UNIQUE (streetname) DEFERRABLE INITIALLY DEFERRED");
    let error = db.error(BACKFILL);
    assert!(error.contains("\"sole\" (23505)"), "{error}");
    db.run("DELETE FROM address WHERE id = 102");
    db.run(BACKFILL);
    assert_eq!(phase(&mut db), "expanded");
}

/// What swaps two keys is fine at its end, as in one UPDATE.
#[test]
fn repair_obeys_a_deferrable_constraint_on_the_source() {
    for constraint in ["DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"] {
        let mut db = expanding(&["Elm 1", "Oak 2", "Ash 3"], "");
        db.run(&format!("ALTER TABLE address ADD CONSTRAINT sole UNIQUE (street) {constraint}"));
        db.run(BACKFILL);
        write_apart(&mut db, "UPDATE address SET street = CASE id WHEN 1 THEN 'Oak 2' ELSE 'Elm 1' END WHERE id < 3");
        db.run(NEW_WINS);
        assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Ash|3", "{constraint}");
        write_apart(&mut db, "UPDATE address SET streetname = 'Oak', housenumber = '2' WHERE id = 3");
        let error = db.error(NEW_WINS);
        assert!(error.contains("\"sole\" (23505)"), "{constraint}: {error}");
        assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Oak|2", "{constraint}");
    }
}

// Foreign keys

/// An expanded change whose source others refer to, and a row that has diverged.
fn referenced(action: &str) -> Session {
    let mut db = expanding(&["Elm 1", "Oak 2"], "ALTER TABLE address ADD UNIQUE (street)");
    db.run(&format!(
        "CREATE TABLE letter (street text CONSTRAINT sent REFERENCES address (street) {action}, log text);
         INSERT INTO letter VALUES ('Elm 1')"
    ));
    db.run(BACKFILL);
    write_apart(&mut db, "UPDATE address SET streetname = 'Elm Street' WHERE id = 1");
    db
}

#[test]
fn repair_orphans_nobody() {
    for action in ["", "DEFERRABLE INITIALLY DEFERRED", "ON UPDATE RESTRICT"] {
        let mut db = referenced(action);
        let error = db.error(NEW_WINS);
        let (violates, is_referenced) = if action.ends_with("RESTRICT") && db.major() >= 18 {
            (
                "violates RESTRICT setting of foreign key constraint \"sent\" on table \"letter\" (23001)",
                "is referenced",
            )
        } else {
            ("violates foreign key constraint \"sent\" on table \"letter\" (23503)", "is still referenced")
        };
        assert!(error.contains(violates), "{error}");
        assert!(error.contains(&format!("Key (street)=(Elm 1) {is_referenced}")), "{error}");
        assert_eq!(streets(&mut db), "Elm 1|Elm Street|1\nOak 2|Oak|2", "{action}");
        db.run("DELETE FROM letter");
        db.run(NEW_WINS);
        assert_eq!(streets(&mut db), "Elm Street 1|Elm Street|1\nOak 2|Oak|2", "{action}");
    }
}

#[test]
fn repair_does_what_foreign_keys_demand() {
    for (action, expected) in [
        ("ON UPDATE CASCADE", "Elm Street 1"),
        ("ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED", "Elm Street 1"),
        ("ON UPDATE SET NULL", "~"),
    ] {
        let mut db = referenced(action);
        // What the other table does about it is its own business.
        db.run(
            "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.log := 'changed'; RETURN new; END $$;
             CREATE TRIGGER log BEFORE UPDATE ON letter FOR EACH ROW EXECUTE FUNCTION log()",
        );
        db.run(NEW_WINS);
        assert_eq!(db.text("SELECT street, log FROM letter"), format!("{expected}|changed"), "{action}");
        assert_eq!(streets(&mut db), "Elm Street 1|Elm Street|1\nOak 2|Oak|2", "{action}");
    }
}

/// A row that refers to another one of its own table, whose users' triggers fire for what the foreign key does, as always.
#[test]
fn repair_follows_a_table_that_refers_to_itself() {
    let mut db = expanding(
        &["Elm 1", "Oak 2"],
        "ALTER TABLE address ADD UNIQUE (street);
         ALTER TABLE address ADD next_to text REFERENCES address (street) ON UPDATE CASCADE;
         UPDATE address SET next_to = 'Elm 1' WHERE id = 2;
         CREATE TABLE log (id int, next_to text);
         CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.log VALUES (new.id, new.next_to); RETURN NULL; END $$;
         CREATE TRIGGER log AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION log()",
    );
    db.run(BACKFILL);
    write_apart(&mut db, "UPDATE address SET streetname = 'Elm Street' WHERE id = 1");
    assert_eq!(db.number("SELECT count(*) FROM log"), 0);
    db.run(NEW_WINS);
    assert_eq!(db.text("SELECT street, next_to FROM address ORDER BY id"), "Elm Street 1|~\nOak 2|Elm Street 1");
    assert_eq!(db.text("SELECT id, next_to FROM log"), "2|Elm Street 1");
}

#[test]
fn repair_checks_a_foreign_key_of_the_source() {
    for deferrable in ["", "DEFERRABLE INITIALLY DEFERRED"] {
        let mut db = expanding(&["Elm 1", "Oak 2"], "CREATE TABLE known (street text PRIMARY KEY)");
        db.run("INSERT INTO known VALUES ('Elm 1'), ('Oak 2'), ('Ash 3')");
        db.run(&format!("ALTER TABLE address ADD CONSTRAINT known FOREIGN KEY (street) REFERENCES known {deferrable}"));
        db.run(BACKFILL);
        write_apart(&mut db, "UPDATE address SET streetname = 'Ash', housenumber = id + 2 WHERE id = 1");
        db.run(NEW_WINS);
        write_apart(&mut db, "UPDATE address SET streetname = 'Ash' WHERE id = 2");
        let error = db.error(NEW_WINS);
        assert!(error.contains("\"address\" violates foreign key constraint \"known\" (23503)"), "{error}");
        assert_eq!(streets(&mut db), "Ash 3|Ash|3\nOak 2|Ash|2", "{deferrable}");
    }
}

// Other triggers

/// All kinds of triggers, which write down that they fired.
const TRIGGERS: &str = "CREATE TABLE fired (name text);
    CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.fired VALUES (tg_name); RETURN new; END $$;
    CREATE TRIGGER before_row BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE TRIGGER after_row AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE TRIGGER after_statement AFTER UPDATE ON address EXECUTE FUNCTION fire();
    CREATE TRIGGER always AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION fire();
    ALTER TABLE address ENABLE ALWAYS TRIGGER always;
    CREATE CONSTRAINT TRIGGER checked AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE CONSTRAINT TRIGGER deferred AFTER UPDATE ON address DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION fire();";

#[test]
fn users_triggers_do_not_fire_where_constraints_have_some() {
    let mut db = expanding(&["Elm 1", "Oak 2"], TRIGGERS);
    db.run(
        "CREATE TABLE letter (address int REFERENCES address, street text);
         ALTER TABLE address ADD UNIQUE (street);
         ALTER TABLE letter ADD FOREIGN KEY (street) REFERENCES address (street);
         ALTER TABLE address ADD UNIQUE (streetname) DEFERRABLE INITIALLY DEFERRED;
         INSERT INTO letter VALUES (1, NULL)",
    );
    db.run(BACKFILL);
    write_apart(&mut db, "UPDATE address SET street = 'Elm Street 1' WHERE id = 1; TRUNCATE fired");
    db.run("CALL zdd.repair('address.street', winner => 'new')");
    assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2");
    assert_eq!(db.text("SELECT name FROM fired"), "");
}

#[test]
fn deferred_triggers_fire_with_the_others() {
    let mut db = expanding(&["Elm 1", "Oak 2"], TRIGGERS);
    db.run(FIRING);
    assert_eq!(phase(&mut db), "expanded");
    assert_eq!(
        db.text("SELECT name, count(*) FROM fired GROUP BY name ORDER BY name"),
        "after_row|2\nafter_statement|2\nalways|2\nbefore_row|2\nchecked|2\ndeferred|2"
    );
}

// Partitions

#[test]
fn no_row_is_left_in_a_partition_that_is_not_its_own() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (100) PARTITION BY LIST (street);
         CREATE TABLE rest PARTITION OF low DEFAULT",
    );
    assert!(db.error(SPLIT).contains("partition key"));
    db.run("DROP TABLE low; CREATE TABLE old PARTITION OF address DEFAULT; INSERT INTO address VALUES (1, 'Elm 1')");
    db.run(SPLIT);
    db.run(
        "SET zdd.guard = off;
         ALTER TABLE address DETACH PARTITION old;
         CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (100) PARTITION BY LIST (streetname);
         ALTER TABLE low ATTACH PARTITION old FOR VALUES IN (NULL);
         RESET zdd.guard",
    );
    let error = db.error(BACKFILL);
    assert!(error.contains("(23514)") && error.contains("partition constraint"), "{error}");
    assert_eq!(phase(&mut db), "expanding");
}

// Row locks

/// Waits until a backfill has had to give way to somebody, or has waited for so long that it does not.
fn wait_for_conflict(db: &mut Session, backfill: &Background) {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM zdd.events WHERE event = 'retried')
             OR EXISTS (SELECT FROM pg_locks WHERE pid = {} AND NOT granted AND clock_timestamp() - waitstart > '1.5s')",
        backfill.pid
    );
    wait_until("the backfill meets somebody", PATIENCE, || Ok(db.text(&sql) == "t")).unwrap();
}

/// What an application does that writes a letter to row 2 and goes on in the same transaction.
const LETTER: &str = "BEGIN; INSERT INTO letter VALUES (2)";
const GOES_ON: &str =
    "UPDATE address SET note = 'read' WHERE id = 1; UPDATE address SET note = 'read' WHERE id = 3; COMMIT";

#[test]
fn rows_that_others_refer_to_are_skipped_while_their_key_would_change() {
    for backfill in [BACKFILL, FIRING] {
        let mut db = expanding(
            &["Elm 1", "Oak 2", "Ash 3"],
            "CREATE UNIQUE INDEX ON address (streetname, housenumber); CREATE TABLE letter (address int REFERENCES address)",
        );
        let mut application = db.another();
        application.run(LETTER);
        let backfill = db.another().in_background(backfill);
        wait_for(&mut db, "SELECT rows_split FROM zdd.changes", "2");
        application.run(GOES_ON);
        assert_eq!(backfill.join().1, Ok(()));
        assert_eq!((phase(&mut db).as_str(), rows_split(&mut db)), ("expanded", 3));
        assert_eq!(streets(&mut db), "Elm 1|Elm|1\nOak 2|Oak|2\nAsh 3|Ash|3");
    }
}

#[test]
fn rows_that_others_refer_to_are_split_while_their_key_stays() {
    for backfill in [BACKFILL, FIRING] {
        let mut db = expanding(
            &["Elm 1", "Oak 2", "Ash 3"],
            "CREATE INDEX ON address (streetname); CREATE TABLE letter (address int REFERENCES address)",
        );
        let mut application = db.another();
        application.run(LETTER);
        let backfill = db.another().in_background(backfill);
        // All rows are split; only the short lock that ends `expanding` waits for the application.
        wait_until("the backfill is done but for the lock", PATIENCE, || {
            Ok(db.text("SELECT count(*) FROM zdd.workers WHERE waiting_for = 'a short lock on the table'") == "1")
        })
        .expect("a backfill that goes on");
        assert_eq!(db.text("SELECT count(*) FROM address WHERE streetname IS NULL"), "0");
        application.run(GOES_ON);
        assert_eq!(backfill.join().1, Ok(()));
        assert_eq!(phase(&mut db), "expanded");
        assert_eq!(db.text("SELECT count(*) FROM letter"), "1");
    }
}

/// What decides about a key is up to the application; it must not be kept from it.
#[test]
fn a_backfill_gives_way_to_a_key_that_is_undecided() {
    for unique in ["UNIQUE (streetname)", "UNIQUE (streetname) DEFERRABLE INITIALLY DEFERRED"] {
        let mut db = expanding(&["Elm 1", "Oak 2", "Ash 3"], &format!("ALTER TABLE address ADD {unique}"));
        let mut application = db.another();
        application.run("BEGIN; INSERT INTO address (id, streetname, housenumber) VALUES (9, 'Ash', '4')");
        let backfill = db.another().in_background(BACKFILL);
        wait_for_conflict(&mut db, &backfill);
        application.run("UPDATE address SET note = 'read' WHERE id = 1; ROLLBACK");
        assert_eq!(backfill.join().1, Ok(()), "{unique}");
        assert_eq!(phase(&mut db), "expanded", "{unique}");
    }
}
