//! zdd.usage: each way of using a column is recorded on the right side, under the right application; and what is no use
//! is not. What it is good for: contract waits for the last user.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pg_zdd_cluster::postgres::SimpleQueryMessage;
use pg_zdd_cluster::session::{Session, shared_cluster};
use pg_zdd_cluster::usage::{
    BACKFILL, CONTRACT, OLD_READ, PRELOADED, SPLIT, TABLE, application, expanded, expanded_on, start, usage,
};
use pg_zdd_cluster::{Cluster, Stop, wait_until};

/// What one use of an application gives.
#[track_caller]
fn recorded(usage_before: &str, act: impl FnOnce(&mut Session, &mut Session), expected: &str) {
    let (mut db, mut app) = expanded();
    app.run(usage_before);
    db.run("SELECT zdd.reset_usage('address.street')");
    act(&mut db, &mut app);
    assert_eq!(usage(&mut db), expected);
}

/// SQL of an application in the simple protocol.
#[track_caller]
fn sql(sql: &str, expected: &str) {
    recorded("", |_, app| app.run(sql), expected);
}

const NEW_READ: &str = "shop|new|1r0w0e";
const OLD_WRITE: &str = "shop|old|0r1w0e";
const NEW_WRITE: &str = "shop|new|0r1w0e";

// Statements

#[test]
fn simple_protocol() {
    sql("SELECT street FROM address WHERE id = 1", OLD_READ);
    sql("SELECT streetname FROM address WHERE id = 1", NEW_READ);
    sql("SELECT city FROM address WHERE id = 1", "");
    sql("SELECT count(*) FROM address", "");
    sql("SELECT street, housenumber FROM address", "shop|old|1r0w0e\nshop|new|1r0w0e");
}

#[test]
fn extended_protocol() {
    let query = |_: &mut Session, app: &mut Session| {
        app.client.query("SELECT street FROM address WHERE id = $1", &[&1]).unwrap();
    };
    recorded("", query, OLD_READ);
}

#[test]
fn prepared_statements_count_each_time() {
    let query = |_: &mut Session, app: &mut Session| {
        let statement = app.client.prepare("SELECT street FROM address WHERE id = $1").unwrap();
        for id in 1..=7 {
            app.client.query(&statement, &[&id]).unwrap();
        }
    };
    recorded("", query, "shop|old|7r0w0e");
    sql("PREPARE p AS SELECT housenumber FROM address; EXECUTE p; EXECUTE p", "shop|new|2r0w0e");
}

#[test]
fn cursor() {
    sql("BEGIN; DECLARE c CURSOR FOR SELECT street FROM address; FETCH 2 FROM c; FETCH ALL FROM c; COMMIT", OLD_READ);
}

#[test]
fn function() {
    let body = "CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS
        $$ DECLARE s text; BEGIN SELECT street INTO s FROM address WHERE id = 1; RETURN s; END $$;
        CREATE FUNCTION g() RETURNS text LANGUAGE sql AS $$ SELECT streetname FROM address WHERE id = 1 $$;";
    recorded(body, |_, app| app.run("SELECT f(); SELECT f()"), "shop|old|2r0w0e");
    recorded(body, |_, app| app.run("SELECT g()"), NEW_READ);
}

#[test]
fn function_with_the_rights_of_its_owner_counts_for_the_caller() {
    let (mut db, mut app) = expanded();
    db.run(
        "CREATE ROLE usage_owner; CREATE ROLE usage_caller LOGIN; GRANT SELECT ON address TO usage_owner;
         CREATE FUNCTION f() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT street FROM address WHERE id = 1';
         ALTER FUNCTION f() OWNER TO usage_owner",
    );
    app.run("SET SESSION AUTHORIZATION usage_caller; SELECT f()");
    assert_eq!(db.text("SELECT side, role, reads FROM zdd.usage"), "old|usage_caller|1");
    db.run("DROP FUNCTION f(); REVOKE ALL ON address FROM usage_owner; DROP ROLE usage_owner, usage_caller");
}

#[test]
fn view_over_the_table() {
    let view = "CREATE VIEW v AS SELECT id, street FROM address; CREATE VIEW w AS SELECT id, streetname FROM address";
    recorded(view, |_, app| app.run("SELECT street FROM v"), OLD_READ);
    recorded(view, |_, app| app.run("SELECT * FROM w"), NEW_READ);
    recorded(view, |_, app| app.run("UPDATE v SET street = 'Oak 1' WHERE id = 1"), "shop|old|1r1w0e");
}

#[test]
fn copy() {
    sql("COPY address (id, street) TO '/dev/null'", OLD_READ);
    sql("COPY (SELECT housenumber FROM address) TO '/dev/null'", NEW_READ);
    sql("COPY address (id, street) FROM PROGRAM 'echo 11,Elm' (FORMAT csv)", OLD_WRITE);
    sql("COPY address (id, streetname) FROM PROGRAM 'echo 11,Elm' (FORMAT csv)", NEW_WRITE);
}

#[test]
fn returning() {
    sql("DELETE FROM address WHERE id = 1 RETURNING street", OLD_READ);
    sql("UPDATE address SET city = 'Y' WHERE id = 1 RETURNING housenumber", NEW_READ);
    sql("DELETE FROM address WHERE id = 1", "");
}

#[test]
fn where_only() {
    sql("SELECT city FROM address WHERE street = 'Elm 1'", OLD_READ);
    sql("DELETE FROM address WHERE streetname = 'Oak'", NEW_READ);
    sql("SELECT a.city FROM address AS a JOIN address AS b ON a.street = b.street", OLD_READ);
}

#[test]
fn order_and_group() {
    sql("SELECT city FROM address ORDER BY street", OLD_READ);
    sql("SELECT count(*) FROM address GROUP BY housenumber", NEW_READ);
}

#[test]
fn update_set() {
    sql("UPDATE address SET street = 'Oak 1' WHERE id = 1", OLD_WRITE);
    sql("UPDATE address SET housenumber = '1' WHERE id = 1", NEW_WRITE);
    sql("UPDATE address SET street = street || '0'", "shop|old|1r1w0e");
    sql("UPDATE address SET city = 'Y'", "");
}

#[test]
fn insert() {
    sql("INSERT INTO address (id, street) VALUES (11, 'Oak 1')", OLD_WRITE);
    sql("INSERT INTO address (id, streetname) VALUES (11, 'Oak')", NEW_WRITE);
    sql("INSERT INTO address (id) VALUES (11)", "");
    sql("INSERT INTO address VALUES (11, 'Oak 1', 'X')", OLD_WRITE);
    sql("INSERT INTO address (id, city) VALUES (1, 'X') ON CONFLICT (id) DO UPDATE SET street = 'Oak'", OLD_WRITE);
}

#[test]
fn merge() {
    sql(
        "MERGE INTO address AS a USING (VALUES (1)) AS v (id) ON a.id = v.id
         WHEN MATCHED THEN UPDATE SET housenumber = '1' WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)",
        NEW_WRITE,
    );
}

#[test]
fn whole_rows() {
    sql("SELECT * FROM address", "shop|old|1r0w0e\nshop|new|1r0w0e");
    sql("SELECT address FROM address", "shop|old|1r0w0e\nshop|new|1r0w0e");
    let (mut db, mut app) = expanded();
    let whole = "SELECT side, reads, whole_row FROM zdd.usage ORDER BY side DESC";
    app.run("SELECT * FROM address; SELECT to_json(a) FROM address AS a; COPY address TO '/dev/null'");
    assert_eq!(db.text(whole), "old|3|3\nnew|3|3");
    app.run("SELECT street, streetname, housenumber FROM address");
    assert_eq!(db.text(whole), "old|4|3\nnew|4|3");
}

#[test]
fn trigger_function() {
    // What it does with NEW and OLD is seen by nobody; its SQL is.
    let trigger = "CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM streetname FROM address WHERE id = NEW.id; RETURN NULL; END $$;
        CREATE TRIGGER t AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION t()";
    recorded(trigger, |_, app| app.run("UPDATE address SET city = 'Y' WHERE id = 1"), NEW_READ);
}

#[test]
fn parallel_query_counts_once() {
    let settings = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
        SET max_parallel_workers_per_gather = 2";
    let query = "SELECT count(*) FROM address WHERE street LIKE 'E%'";
    let scan = |_: &mut Session, app: &mut Session| {
        let explained = app.client.simple_query(&format!("EXPLAIN (ANALYZE, COSTS off) {query}")).unwrap();
        let text: Vec<&str> = explained
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        assert!(text.iter().any(|line| line.contains("Workers Launched: ") && !line.ends_with('0')), "{text:?}");
    };
    recorded(settings, scan, OLD_READ);
    let all = |app: &mut Session| app.run("SELECT street FROM address WHERE street LIKE 'E%'");
    rows(settings, all, "old 10");
}

#[test]
fn partitions_directly_and_through_their_parent() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text, region text) PARTITION BY LIST (region);
         CREATE TABLE north PARTITION OF address FOR VALUES IN ('n');
         CREATE TABLE south (junk int, region text, street text, id int);
         ALTER TABLE south DROP junk;
         ALTER TABLE address ATTACH PARTITION south FOR VALUES IN ('s');
         INSERT INTO address VALUES (1, 'Elm 1', 'n'), (2, 'Elm 2', 's')",
    );
    db.run(SPLIT);
    let mut app = application(&db, "shop");
    app.run("SELECT street FROM south");
    assert_eq!(usage(&mut db), OLD_READ);
    app.run("SELECT street FROM address");
    assert_eq!(usage(&mut db), "shop|old|2r0w0e");
    app.run("UPDATE address SET street = 'Oak 1'");
    assert_eq!(usage(&mut db), "shop|old|2r1w0e");
    app.run("UPDATE south SET housenumber = '1'");
    assert_eq!(usage(&mut db), "shop|old|2r1w0e\nshop|new|0r1w0e");
    // One attached later is known at once.
    db.run("CREATE TABLE west PARTITION OF address FOR VALUES IN ('w')");
    app.run("SELECT region FROM west; SELECT street FROM west");
    assert_eq!(usage(&mut db), "shop|old|3r1w0e\nshop|new|0r1w0e");
}

#[test]
fn inheritance_children() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text); CREATE TABLE child () INHERITS (address)");
    db.run(SPLIT);
    let mut app = application(&db, "shop");
    app.run("SELECT street FROM child; SELECT street FROM address; SELECT street FROM ONLY address");
    assert_eq!(usage(&mut db), "shop|old|3r0w0e");
}

#[test]
fn materialized_view_refresh() {
    let view = "CREATE MATERIALIZED VIEW m AS SELECT street FROM address WITH NO DATA";
    recorded(view, |_, app| app.run("REFRESH MATERIALIZED VIEW m"), OLD_READ);
    recorded(view, |_, app| app.run("REFRESH MATERIALIZED VIEW m; SELECT street FROM m"), OLD_READ);
}

#[test]
fn every_execution_in_a_loop_counts() {
    sql(
        "DO $$ BEGIN FOR i IN 1..5 LOOP UPDATE address SET street = 'Oak ' || i WHERE id = i; END LOOP; END $$",
        "shop|old|0r5w0e",
    );
}

#[test]
fn two_changes_of_a_table() {
    let (mut db, mut app) = expanded();
    db.run("SELECT zdd.split_column('address', 'city', 'town text, country text', delimiter => ',')");
    app.run("SELECT street, city FROM address; SELECT town FROM address");
    let by_change = "SELECT change, side, reads FROM zdd.usage ORDER BY change, side DESC";
    assert_eq!(db.text(by_change), "address.city|old|1\naddress.city|new|1\naddress.street|old|1");
}

#[test]
fn a_session_that_was_there_before_the_change() {
    let mut db = Session::new();
    db.run(TABLE);
    let mut app = application(&db, "shop");
    app.run("PREPARE p AS SELECT street FROM address; EXECUTE p");
    db.run(SPLIT);
    app.run("EXECUTE p; UPDATE address SET street = 'Oak 1' WHERE id = 1");
    assert_eq!(usage(&mut db), "shop|old|1r1w0e");
}

#[test]
fn a_transaction_that_began_before_the_change() {
    let mut db = Session::new();
    db.run(TABLE);
    db.run("CREATE TABLE other (id int)");
    let mut app = application(&db, "shop");
    // Its snapshot shows no change, and its statements meet one.
    app.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT id FROM other");
    db.run(SPLIT);
    app.run("SELECT street FROM address; COMMIT; SELECT street FROM address");
    assert_eq!(usage(&mut db), "shop|old|2r0w0e");
}

#[test]
fn a_statement_within_a_parallel_one() {
    let (mut db, mut app) = expanded();
    db.run(
        "CREATE FUNCTION f() RETURNS text STABLE PARALLEL SAFE LANGUAGE plpgsql AS
            $$ BEGIN RETURN (SELECT streetname FROM address WHERE id = 1); END $$;
         CREATE TABLE other AS SELECT i FROM generate_series(1, 20000) AS i; ANALYZE other",
    );
    app.run(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SELECT count(*) FROM other WHERE f() IS NOT NULL",
    );
    app.run("SELECT f()");
    assert!(usage(&mut db).starts_with("shop|new|"));
}

#[test]
fn each_database_has_its_own() {
    let (mut one, _) = expanded();
    let (mut other, mut app) = expanded();
    app.run("SELECT street FROM address");
    assert_eq!((usage(&mut one), usage(&mut other)), (String::new(), OLD_READ.to_owned()));
}

#[test]
fn by_role_and_application() {
    let (mut db, mut app) = expanded();
    db.run("CREATE ROLE usage_reader; GRANT SELECT ON address TO usage_reader");
    app.run("SELECT street FROM address; SET ROLE usage_reader; SELECT street FROM address");
    app.run("SET application_name = 'report'; SELECT street FROM address; SELECT street FROM address");
    let all = "SELECT application_name, role, reads FROM zdd.usage ORDER BY 1, 2";
    assert_eq!(db.text(all), "report|usage_reader|2\nshop|postgres|1\nshop|usage_reader|1");
    db.run("DROP OWNED BY usage_reader; DROP ROLE usage_reader");
}

// Rows

/// Rows per side of what an application does.
#[track_caller]
fn rows(before: &str, act: impl FnOnce(&mut Session), expected: &str) {
    let (mut db, mut app) = expanded();
    app.run(before);
    db.run("SELECT zdd.reset_usage('address.street')");
    act(&mut app);
    let counted = "SELECT string_agg(side || ' ' || rows, ', ' ORDER BY side DESC) FROM zdd.usage";
    assert_eq!(db.text(counted), expected);
}

#[track_caller]
fn sql_rows(sql: &str, expected: &str) {
    rows("", |app| app.run(sql), expected);
}

#[test]
fn rows_that_a_statement_returns_or_affects() {
    sql_rows("SELECT street FROM address", "old 10");
    sql_rows("SELECT street, streetname FROM address WHERE id <= 3", "old 3, new 3");
    sql_rows("SELECT street FROM address WHERE false", "old 0");
    sql_rows("SELECT street FROM address; SELECT street FROM address LIMIT 3; SELECT city FROM address", "old 13");
    sql_rows("INSERT INTO address (id, street) VALUES (11, 'Oak 1'), (12, 'Oak 2')", "old 2");
    sql_rows("UPDATE address SET housenumber = '1' WHERE id <= 4", "new 4");
    sql_rows("DELETE FROM address WHERE street LIKE 'Elm%'", "old 10");
    sql_rows("UPDATE address SET street = 'Oak 1' WHERE id <= 4 RETURNING street", "old 4");
    // What counts is what the client is told.
    let inner = "WITH u AS (UPDATE address SET street = 'Oak 1' WHERE id <= 4 RETURNING id) SELECT id FROM u LIMIT 1";
    sql_rows(inner, "old 1");
    sql_rows("CREATE TABLE copy AS SELECT street FROM address", "old 10");
    sql_rows("COPY (SELECT street FROM address) TO '/dev/null'", "old 10");
    sql_rows("COPY address (id, street) TO '/dev/null'", "old 0");
    rows("", |app| drop(app.client.query("SELECT street FROM address WHERE id > $1", &[&4]).unwrap()), "old 6");
}

#[test]
fn rows_of_cursors_that_are_fetched_in_parts() {
    let declare = "BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT street FROM address";
    sql_rows(&format!("{declare}; FETCH 2 FROM c; FETCH 3 FROM c; CLOSE c; COMMIT"), "old 5");
    sql_rows(&format!("{declare}; FETCH 2 FROM c; FETCH 3 FROM c; COMMIT"), "old 5");
    let hold = declare.replace("CURSOR", "CURSOR WITH HOLD");
    sql_rows(&format!("{hold}; FETCH 2 FROM c; COMMIT; FETCH ALL FROM c; CLOSE c"), "old 10");
    let portal = |app: &mut Session| {
        let mut transaction = app.client.transaction().unwrap();
        let portal = transaction.bind("SELECT street FROM address", &[]).unwrap();
        for most in [3, 4] {
            transaction.query_portal(&portal, most).unwrap();
        }
        transaction.commit().unwrap();
    };
    rows("", portal, "old 7");
    let in_loop = "DO $$ DECLARE a record; BEGIN
            FOR a IN SELECT street FROM address, generate_series(1, 10) LOOP END LOOP;
        END $$";
    sql_rows(in_loop, "old 100");
}

#[test]
fn rows_of_statements_within_statements() {
    let function = "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE plpgsql AS
        $$ BEGIN PERFORM streetname FROM address WHERE id <= 3; RETURN 1; END $$";
    rows(function, |app| app.run("SELECT street, f() FROM address WHERE id <= 2"), "old 2, new 6");
    // One starts while another does: which partitions to read is found out at the start.
    let parted = format!(
        "{function};
         CREATE TABLE parted (id int, a text) PARTITION BY LIST (id);
         CREATE TABLE parted1 PARTITION OF parted FOR VALUES IN (1);
         CREATE TABLE parted2 PARTITION OF parted FOR VALUES IN (2);
         INSERT INTO parted VALUES (1, 'x'), (1, 'y'), (2, 'z')"
    );
    let (mut db, mut app) = expanded();
    db.run(&parted);
    db.run("SELECT zdd.split_column('parted', 'a', 'b text, c text', delimiter => ' ')");
    app.run("SELECT a FROM parted WHERE id = f()");
    let counted =
        "SELECT change, side, rows = reads * CASE side WHEN 'old' THEN 2 ELSE 3 END FROM zdd.usage ORDER BY 1";
    assert_eq!(db.text(counted), "address.street|new|t\nparted.a|old|t");
}

#[test]
fn statements_that_fail_have_no_rows() {
    const FAILS: &str = "SELECT street, 1 / (id - 10) FROM address";
    rows("", |app| drop(app.error(FAILS)), "old 0");
    let caught = "DO $$ BEGIN
            BEGIN PERFORM street, 1 / (id - 10) FROM address; EXCEPTION WHEN division_by_zero THEN NULL; END;
            PERFORM street FROM address WHERE id <= 3;
        END $$";
    sql_rows(caught, "old 3");
    let savepoint = |app: &mut Session| {
        app.run("BEGIN; SAVEPOINT s; DECLARE c CURSOR FOR SELECT street FROM address; FETCH 5 FROM c");
        app.error(FAILS);
        app.run("ROLLBACK TO s; SELECT street FROM address WHERE id <= 2; COMMIT");
    };
    rows("", savepoint, "old 2");
    // A rollback comes too late.
    sql_rows("BEGIN; UPDATE address SET street = 'Oak 1'; ROLLBACK", "old 10");
}

// Conflicts

/// What an application has written in vain: per side with conflicts, and in all. Errors too.
fn conflicts(db: &mut Session) -> String {
    db.text(
        "SELECT string_agg(side || ' ' || conflicts || CASE errors WHEN 0 THEN '' ELSE ', ' || errors || ' errors' END,
             '; ' ORDER BY side DESC) FILTER (WHERE conflicts + errors > 0),
             (SELECT conflicts FROM zdd.changes) = sum(conflicts) FROM zdd.usage",
    )
}

#[test]
fn a_value_that_gives_way_is_counted_where_it_was_written() {
    let (mut db, mut app) = expanded();
    assert_eq!(db.text("SELECT conflicts FROM zdd.changes"), "0");
    // The new side wins.
    app.run("INSERT INTO address VALUES (11, 'Elm 1', 'X', 'Oak', '1'), (12, 'Elm 2', 'X', 'Oak', '2')");
    app.run("UPDATE address SET street = 'Fir 3', streetname = 'Oak' WHERE id IN (1, 2, 3)");
    assert_eq!(conflicts(&mut db), "old 5|t");
    db.run("SELECT zdd.alter_change('address.street', conflict => 'old')");
    app.run("INSERT INTO address VALUES (13, 'Elm 1', 'X', 'Oak', '1')");
    app.run("UPDATE address SET street = 'Ash 3', streetname = 'Fir' WHERE id IN (1, 2)");
    assert_eq!(conflicts(&mut db), "old 5; new 3|t");
    // What is refused is an error of its statement.
    db.run("SELECT zdd.alter_change('address.street', conflict => 'error')");
    app.error("INSERT INTO address VALUES (14, 'Elm 1', 'X', 'Oak', '1')");
    assert_eq!(conflicts(&mut db), "old 5, 1 errors; new 3, 1 errors|t");
    assert_eq!(
        db.text("SELECT string_agg(street, ', ' ORDER BY id) FROM address WHERE id <= 3 OR id > 10"),
        "Ash 3, Ash 3, Oak 3, Oak 1, Oak 2, Elm 1"
    );
}

#[test]
fn what_gives_way_to_nobody_is_no_conflict() {
    let (mut db, mut app) = expanded();
    app.run("INSERT INTO address VALUES (11, 'Elm 1', 'X', 'Elm', '1'), (12, NULL, 'X', 'Oak', '2')");
    app.run("INSERT INTO address (id, street) VALUES (13, 'Elm 1')");
    app.run("UPDATE address SET street = 'Oak 1', streetname = 'Oak', housenumber = '1' WHERE id = 1");
    app.run("UPDATE address SET street = 'Oak 1' WHERE id = 2; UPDATE address SET streetname = 'Oak' WHERE id = 3");
    app.run("UPDATE address SET street = 'Elm 4', streetname = 'Elm', housenumber = '4' WHERE id = 4");
    // From expanded on, NULL is meant.
    app.run("UPDATE address SET streetname = NULL, housenumber = NULL WHERE id = 5");
    assert_eq!(db.text("SELECT street FROM address WHERE id = 5"), "~");
    assert_eq!(conflicts(&mut db), "~|t");
}

#[test]
fn conflicts_are_counted_once_for_a_row_however_it_is_written() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
         CREATE TABLE north PARTITION OF address FOR VALUES IN ('n');
         CREATE TABLE south PARTITION OF address FOR VALUES IN ('s');
         INSERT INTO address VALUES (1, 'Elm 1', 'n')",
    );
    db.run(SPLIT);
    db.run(BACKFILL);
    let mut app = application(&db, "shop");
    // It moves to another partition.
    app.run("UPDATE address SET region = 's', street = 'Ash 2', streetname = 'Oak' WHERE id = 1");
    assert_eq!(conflicts(&mut db), "old 1|t");
    app.run(
        "INSERT INTO address VALUES (1, 'Elm 3', 's', 'Fir', '4') ON CONFLICT (id, region) DO UPDATE
         SET street = EXCLUDED.street, streetname = EXCLUDED.streetname, housenumber = EXCLUDED.housenumber",
    );
    assert_eq!(conflicts(&mut db), "old 2|t");
    app.run("COPY north FROM PROGRAM 'printf \"2,Elm 1,n,Oak,1\\n3,Elm 1,n,Elm,1\\n\"' (FORMAT csv)");
    assert_eq!(conflicts(&mut db), "old 3|t");
    // An attempt is enough, as for all that PostgreSQL counts.
    app.run("BEGIN; INSERT INTO south VALUES (4, 'Elm 1', 's', 'Oak', '1'); ROLLBACK");
    assert_eq!(conflicts(&mut db), "old 4|t");
    let rows = "SELECT string_agg(tableoid::regclass || ': ' || street, ', ' ORDER BY id) FROM address";
    assert_eq!(db.text(rows), "south: Fir 4, north: Oak 1, north: Elm 1");
}

#[test]
fn a_row_that_is_saved_as_it_was_before_it_was_split_is_a_conflict() {
    let mut db = Session::new();
    db.run(TABLE);
    db.run(
        "SELECT zdd.split_column('address', 'street', 'streetname text NOT NULL, housenumber text',
            regex => '^(?<streetname>\\w+) (?<housenumber>\\d+)$', \"join\" => '{streetname}[ {housenumber}]')",
    );
    let mut app = application(&db, "shop");
    let unsplit = "streetname = NULL, housenumber = NULL";
    // Not split yet: there is nothing to disagree with. Then it is, and the next save gives way.
    app.run(&format!("UPDATE address SET city = 'Y', {unsplit} WHERE id <= 3"));
    assert_eq!(conflicts(&mut db), "~|t");
    app.run(&format!("UPDATE address SET city = 'Z', {unsplit} WHERE id <= 2"));
    assert_eq!(conflicts(&mut db), "new 2|t");
    app.run(&format!("UPDATE address SET street = 'Oak 3', {unsplit} WHERE id = 3"));
    assert_eq!(conflicts(&mut db), "new 3|t");
    // NULL is what the rule says here.
    app.run(&format!("UPDATE address SET street = '?', {unsplit} WHERE id = 2"));
    assert_eq!(conflicts(&mut db), "new 3|t");
    // What the new application left alone in a row that was pending is no word of it.
    app.run("UPDATE address SET street = 'Elm 44', housenumber = '44' WHERE id = 4");
    assert_eq!(conflicts(&mut db), "new 3|t");
    assert_eq!(
        db.text("SELECT id, street, streetname, housenumber FROM address WHERE id <= 4 ORDER BY id"),
        "1|Elm 1|Elm|1\n2|?|~|~\n3|Oak 3|Oak|3\n4|Elm 44|Elm|44"
    );
}

#[test]
fn conflicts_are_reset_and_end_with_the_change() {
    let (mut db, mut app) = expanded();
    let insert = "INSERT INTO address VALUES (11, 'Elm 1', 'X', 'Oak', '1')";
    app.run(insert);
    // Whoever wrote it, a value is lost.
    db.run("CREATE ROLE usage_writer; GRANT INSERT ON address TO usage_writer");
    app.run(&insert.replace("11", "12").replace("INSERT", "SET ROLE usage_writer; INSERT"));
    app.run("RESET ROLE");
    db.run("DROP OWNED BY usage_writer; DROP ROLE usage_writer");
    assert_eq!(db.text("SELECT conflicts FROM zdd.usage WHERE side = 'old'"), "1");
    assert_eq!(db.text("SELECT conflicts FROM zdd.changes"), "2");
    db.run("SELECT zdd.reset_usage('address.street')");
    assert_eq!(db.text("SELECT conflicts FROM zdd.changes"), "0");
    app.run(&insert.replace("11", "13"));
    db.run("SELECT zdd.rollback('address.street')");
    db.run(SPLIT);
    assert_eq!(db.text("SELECT phase, conflicts FROM zdd.changes"), "rolled_back|~\nexpanding|0");
}

// What is no use

#[test]
fn own_work_does_not_count() {
    let mut db = Session::new();
    db.run(TABLE);
    db.run(
        "CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM street FROM public.address; RETURN NEW; END $$;
         CREATE TRIGGER t BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION t()",
    );
    db.run(
        "SELECT zdd.split_column('address', 'street', 'streetname text NOT NULL, housenumber text', delimiter => ' ')",
    );
    db.run("INSERT INTO address (id, city) VALUES (11, 'X')");
    // With triggers, each batch is an UPDATE.
    db.run("CALL zdd.backfill('address.street', fire_triggers => true)");
    db.run(
        "SET session_replication_role = replica; UPDATE address SET street = 'Oak 1', streetname = 'Ash' WHERE id = 1",
    );
    db.run("RESET session_replication_role; SELECT zdd.reset_usage('address.street')");
    db.run("SELECT * FROM zdd.verify('address.street'); SELECT * FROM zdd.mismatches('address.street')");
    db.run("CALL zdd.repair('address.street', winner => 'old')");
    db.run("SELECT zdd.fence('address.street'); SELECT zdd.unfence('address.street')");
    db.run("SELECT zdd.preview_split('address', 'city', 'a text, b text', delimiter => ' ')");
    assert_eq!(usage(&mut db), "");
    assert!(db.error(CONTRACT).contains("null") || db.error(CONTRACT).contains("used"));
    assert_eq!(usage(&mut db), "");
}

#[test]
fn rules_that_query_the_table_do_not_count() {
    let mut db = Session::new();
    db.run(TABLE);
    db.run(
        "CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
            $$ BEGIN PERFORM street FROM public.address; RETURN $1; END $$",
    );
    db.run(
        "SELECT zdd.split_column('address', 'street', 'a text', split_sql => ARRAY['public.f(street)'], join_sql => 'a')",
    );
    let mut app = application(&db, "shop");
    app.run("UPDATE address SET street = 'Oak' WHERE id = 1");
    assert_eq!(usage(&mut db), OLD_WRITE);
}

#[test]
fn pg_dump_is_shown_but_no_contract_waits_for_it() {
    let (mut db, _) = expanded();
    // What is generated is not dumped.
    db.run("ALTER TABLE address ADD twice int GENERATED ALWAYS AS (id * 2) STORED");
    let name = db.text("SELECT current_database()");
    let mut dump = shared_cluster().client_tool("pg_dump", &name);
    let output = dump.output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("COPY public.address"));
    assert_eq!(usage(&mut db), "pg_dump|old|1r0w0e\npg_dump|new|1r0w0e");
    let unknown = db.error(CONTRACT);
    assert!(unknown.contains("Usage has been recorded for"), "{unknown}");
}

#[test]
fn refused_statements_do_not_count() {
    let (mut db, mut app) = expanded();
    db.run("CREATE ROLE usage_stranger");
    app.run("SET ROLE usage_stranger");
    assert!(app.error("SELECT street FROM address").contains("42501"));
    assert_eq!(usage(&mut db), "");
    db.run("DROP ROLE usage_stranger");
}

#[test]
fn a_change_that_was_rolled_back_leaves_nothing() {
    let (mut db, mut app) = expanded();
    app.run("SELECT street FROM address");
    db.run("SELECT zdd.rollback('address.street')");
    assert_eq!(usage(&mut db), "");
    app.run("SELECT street FROM address");
    db.run(SPLIT);
    assert_eq!(usage(&mut db), "");
    app.run("SELECT street FROM address");
    assert_eq!(usage(&mut db), OLD_READ);
}

// Errors

#[test]
fn errors_of_the_split() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street varchar(5))");
    db.run(
        "SELECT zdd.split_column('address', 'street', 'streetname text NOT NULL, housenumber text',
            regex => '^(?<streetname>\\w+) (?<housenumber>\\d+)$', \"join\" => '{streetname}[ {housenumber}]',
            unmatched => 'error', conflict => 'error')",
    );
    let mut app = application(&db, "shop");
    app.error("INSERT INTO address (id, street) VALUES (1, '?')");
    assert_eq!(usage(&mut db), "shop|old|0r1w1e");
    app.error("INSERT INTO address (id, streetname) VALUES (1, 'too long')");
    assert_eq!(usage(&mut db), "shop|old|0r1w1e\nshop|new|0r1w1e");
    app.error("INSERT INTO address (id, housenumber) VALUES (1, '1')");
    assert_eq!(usage(&mut db), "shop|old|0r1w1e\nshop|new|0r2w2e");
    app.error("INSERT INTO address (id, street, streetname) VALUES (1, 'a 1', 'b')");
    assert_eq!(usage(&mut db), "shop|old|0r2w2e\nshop|new|0r3w3e");
}

#[test]
fn while_fenced_whoever_names_the_old_column_is_shown() {
    let (mut db, mut app) = expanded();
    app.run("PREPARE p AS SELECT street FROM address; PREPARE q AS SELECT city FROM address");
    let statement = app.client.prepare("SELECT id, street FROM address WHERE id = $1").unwrap();
    app.run(
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM street FROM address; RETURN 1; END $$",
    );
    db.run("SELECT zdd.fence('address.street')");
    let mut errors = 0;
    let mut fails = |db: &mut Session, counted: bool, error: String| {
        assert!(error.contains("42703"), "{error}");
        errors += i32::from(counted);
        assert_eq!(usage(db), format!("shop|old|0r0w{errors}e"), "after {error}");
    };
    // A session that never looked at the table before.
    let mut fresh = application(&db, "shop");
    fails(&mut db, true, fresh.error("SELECT street FROM address WHERE id = 1"));
    let mut attempts = vec![
        "SELECT a.street FROM public.address AS a",
        "select city from ADDRESS where STREET = 'x'",
        "UPDATE address SET street = 'x'",
        "INSERT INTO address (id, street) VALUES (11, 'x')",
        "DELETE FROM address WHERE street = 'x'",
        "COPY address (street) TO STDOUT",
        "EXECUTE p",
        "SELECT f()",
    ];
    attempts.push("BEGIN; SELECT street FROM address");
    for sql in attempts {
        fails(&mut db, true, app.error(sql));
    }
    app.run("ROLLBACK");
    let error = app.client.query(&statement, &[&1]).map(drop).map_err(|e| pg_zdd_cluster::describe(&e));
    fails(&mut db, true, error.unwrap_err());
    // Other missing columns, and other tables, are none of our business.
    app.run("CREATE TABLE other (id int)");
    fails(&mut db, false, app.error("SELECT street FROM other"));
    fails(&mut db, false, app.error("SELECT streets FROM address"));
    app.run("EXECUTE q");

    let sample = db.text("SELECT sample_query, role FROM zdd.usage");
    assert_eq!(sample, "SELECT street FROM address WHERE id = 1|postgres");
    db.run("SELECT zdd.unfence('address.street')");
    app.run("SELECT street FROM address");
    let before = usage(&mut db);
    app.run("ALTER TABLE other ADD address int");
    app.error("SELECT street, address FROM other");
    assert_eq!(usage(&mut db), before, "no longer fenced");
}

#[test]
fn a_partition_named_while_fenced() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY LIST (id);
         CREATE TABLE first PARTITION OF address FOR VALUES IN (1)",
    );
    db.run(SPLIT);
    db.run(BACKFILL);
    db.run("SELECT zdd.fence('address.street')");
    let mut app = application(&db, "shop");
    app.error("SELECT street FROM first");
    assert_eq!(usage(&mut db), "shop|old|0r0w1e");
}

#[test]
fn a_fence_that_was_rolled_back_counts_nothing() {
    let (mut db, mut app) = expanded();
    db.run("BEGIN; SELECT zdd.fence('address.street'); ROLLBACK");
    app.run("SELECT street FROM address");
    db.run("CREATE TABLE other (address int)");
    app.error("SELECT street, address FROM other");
    assert_eq!(usage(&mut db), OLD_READ);
}

#[test]
fn a_contract_ends_the_fence() {
    let (mut db, mut app) = expanded();
    db.run("SELECT zdd.fence('address.street')");
    db.run("CALL zdd.contract('address.street', force => true)");
    db.run(
        "SELECT zdd.split_column('address', 'city', 'a text, b text', delimiter => ' ', change => 'address.street')",
    );
    app.error("SELECT street FROM address");
    assert_eq!(usage(&mut db), "", "another column by now");
}

// Samples

#[test]
fn samples_are_for_pg_read_all_stats() {
    let (mut db, mut app) = expanded();
    app.run("SELECT street /* a password */ FROM address");
    db.run("CREATE ROLE usage_nobody; CREATE ROLE usage_dba; GRANT pg_read_all_stats TO usage_dba");
    let sample = |db: &mut Session, role: &str| {
        db.text(&format!("SET ROLE {role}; SELECT application_name, reads, sample_query FROM zdd.usage; RESET ROLE"))
    };
    assert_eq!(sample(&mut db, "usage_nobody"), "shop|1|~");
    assert_eq!(sample(&mut db, "usage_dba"), "shop|1|SELECT street /* a password */ FROM address");
    db.run("SET zdd.guard = off; ALTER TABLE address OWNER TO usage_nobody; RESET zdd.guard; SET ROLE usage_nobody");
    let refused = db.error(CONTRACT);
    assert!(refused.contains("application \"shop\": 1 read") && !refused.contains("password"), "{refused}");
    db.run("RESET ROLE; SET zdd.guard = off; ALTER TABLE address OWNER TO postgres; DROP ROLE usage_nobody, usage_dba");
}

#[test]
fn samples_are_short_and_whole_characters() {
    let (mut db, mut app) = expanded();
    app.run(&format!("SELECT street,'{}' FROM address", "ß".repeat(2000)));
    let sample = db.text("SELECT octet_length(sample_query), right(sample_query, 1) FROM zdd.usage");
    assert_eq!(sample, "1023|ß");
}

#[test]
fn a_sample_says_more_than_select_star_if_it_can() {
    let (mut db, mut app) = expanded();
    let sample = "SELECT sample_query FROM zdd.usage WHERE side = 'old'";
    app.run("SELECT * FROM address");
    assert_eq!(db.text(sample), "SELECT * FROM address");
    app.run("SELECT street FROM address");
    app.run("SELECT * FROM address WHERE id = 1");
    assert_eq!(db.text(sample), "SELECT street FROM address");
}

// The contract

#[test]
fn contract_waits_for_the_last_user() {
    let (mut db, mut app) = expanded();
    app.run("SELECT street FROM address WHERE id = 1");
    let used = db.error(CONTRACT);
    assert!(used.contains("was used within the last 1h 00m (zdd.quiet_period) (55006)"), "{used}");
    assert!(used.contains("role \"postgres\", application \"shop\": 1 read, 0 writes, last seen 20"), "{used}");
    assert!(used.contains("ago): SELECT street FROM address WHERE id = 1"), "{used}");
    // A reset does not make them gone.
    db.run("SELECT zdd.reset_usage('address.street')");
    assert!(db.error(CONTRACT).contains("was used within"));
    // With a period that is over, the contract goes through: everything was recorded, and nobody was seen.
    db.run("SET zdd.quiet_period = '2s'");
    let mut refusals = Vec::new();
    let quiet = || match db.attempt(CONTRACT) {
        Ok(()) => Ok(true),
        Err(error) => {
            refusals.push(error);
            Ok(false)
        }
    };
    wait_until("nobody has used the column for 2 s", Duration::from_secs(20), quiet).unwrap();
    assert!(refusals.iter().all(|error| error.contains("was used within the last 2s")), "{refusals:?}");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "contracted");
}

#[test]
fn contract_says_that_it_may_be_only_select_star() {
    let (mut db, mut app) = expanded();
    app.run("SELECT * FROM address");
    let used = db.error(CONTRACT);
    assert!(
        used.contains("always with all columns, so it may be no more than SELECT *: SELECT * FROM address"),
        "{used}"
    );
    app.run("SELECT street FROM address");
    assert!(!db.error(CONTRACT).contains("no more than"));
}

#[test]
fn contract_does_not_trust_a_short_record() {
    let (mut db, mut app) = expanded();
    app.run("SELECT streetname FROM address");
    let unknown = db.error(CONTRACT);
    assert!(unknown.contains("it is not known that nobody uses the old column"), "{unknown}");
    assert!(unknown.contains("Usage has been recorded for") && unknown.contains("since the change began"), "{unknown}");
    // The server runs for longer than the period, and the change has only begun.
    db.run("SET zdd.quiet_period = '5s'");
    let long = "SELECT clock_timestamp() - recorded_since > '5s' FROM zdd.usage_info";
    wait_until("the server runs for 5 s", Duration::from_secs(20), || Ok(db.text(long) == "t")).unwrap();
    db.run("UPDATE zdd.change SET started_at = clock_timestamp()");
    assert!(db.error(CONTRACT).contains("since the change began"));
    // The change is old, and the server was only started.
    db.run("SET zdd.quiet_period = '1h'; UPDATE zdd.change SET started_at = started_at - interval '2 hours'");
    assert!(db.error(CONTRACT).contains("since the server was started"));
    db.run("CALL zdd.contract('address.street', force => true)");
}

#[test]
fn contract_counts_attempts_while_fenced() {
    let (mut db, mut app) = expanded();
    db.run("SELECT zdd.fence('address.street')");
    app.error("SELECT street FROM address");
    let used = db.error(CONTRACT);
    assert!(used.contains("application \"shop\": 0 reads, 0 writes, 1 error"), "{used}");
    // A fence held for long enough is proof; that somebody ran into it is told.
    db.run("SET zdd.quiet_period = '1s'");
    let fenced_for = "SELECT clock_timestamp() - phase_since > '1s' FROM zdd.changes";
    wait_until("the fence is old", Duration::from_secs(10), || Ok(db.text(fenced_for) == "t")).unwrap();
    db.notices();
    db.run(CONTRACT);
    let notices = db.notices().join("\n");
    assert!(notices.contains("was missed while it was fenced") && notices.contains("1 error"), "{notices}");
}

#[test]
fn contract_without_preloading_needs_a_fence_or_force() {
    let cluster = start(&[]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT street FROM address");
    assert_eq!(db.text("SELECT count(*) FROM zdd.usage"), "0");
    assert_eq!(db.text("SELECT count(*) FROM zdd.usage_info"), "0");
    app.run("INSERT INTO address VALUES (11, 'Elm 1', 'X', 'Oak', '1')");
    assert_eq!(db.text("SELECT conflicts FROM zdd.changes"), "~");
    let unknown = db.error(CONTRACT);
    assert!(unknown.contains("pg_zdd is not in shared_preload_libraries"), "{unknown}");
    db.run("SELECT zdd.reset_usage('address.street')");
    db.run("CALL zdd.contract('address.street', force => true)");
}

// Logical replication

/// A subscriber's apply passes no executor; its rows are counted as they arrive, and left as they are. While there is a
/// subscription, there is no contract.
#[test]
fn logical_replication_apply() {
    let publisher = shared_cluster();
    let (mut db, _) = expanded();
    let name = db.text("SELECT current_database()");
    db.run("CREATE PUBLICATION p FOR TABLE address");
    let (mut replica, _) = expanded();
    replica.run("TRUNCATE address; SELECT zdd.reset_usage('address.street')");
    db.run(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"));
    replica.run(&format!(
        "CREATE SUBSCRIPTION feed CONNECTION 'host={} dbname={name} user=postgres'
         PUBLICATION p WITH (create_slot = false, slot_name = '{name}')",
        publisher.socket_dir().display()
    ));
    let arrived = |replica: &mut Session, sql: &str| {
        wait_until(sql, Duration::from_secs(60), || Ok(replica.text(sql) == "t")).unwrap();
    };
    arrived(&mut replica, "SELECT count(*) = 10 FROM address WHERE id > 0");
    db.run("UPDATE address SET street = 'Oak 1' WHERE id = 1");
    arrived(
        &mut replica,
        "SELECT count(*) = 1 FROM address WHERE id = 1 AND city = 'X' AND (SELECT true FROM address WHERE housenumber = '1' AND streetname = 'Oak')",
    );
    // Whatever arrives stays as it is, however wrong.
    db.run("SET session_replication_role = replica; INSERT INTO address VALUES (50, 'Elm 1', 'X', 'Oak', '9')");
    arrived(&mut replica, "SELECT count(*) = 1 FROM address WHERE address = (50, 'Elm 1', 'X', 'Oak', '9')::address");
    db.run("UPDATE address SET street = 'Yew 3' WHERE id = 50; RESET session_replication_role");
    arrived(&mut replica, "SELECT count(*) = 1 FROM address WHERE address = (50, 'Yew 3', 'X', 'Oak', '9')::address");
    // The publisher saw the initial copy, which reads all columns, and the statements.
    let on_publisher = usage(&mut db);
    assert!(on_publisher.contains("test|old|0r3w0e"), "{on_publisher}");
    let copies = db.text("SELECT side, reads, whole_row FROM zdd.usage WHERE application_name LIKE 'pg\\_%\\_sync\\_%' ORDER BY side DESC");
    assert_eq!(copies, "old|1|1\nnew|1|1");
    // The subscriber saw ten rows copied, an INSERT and two UPDATEs, each with both sides.
    let shown = "SELECT application_name, role, side, reads, writes, rows, errors, sample_query
        FROM zdd.usage WHERE application_name = 'feed' ORDER BY side DESC";
    assert_eq!(
        replica.text(shown),
        "feed|postgres|old|0|13|13|0|(logical replication)\nfeed|postgres|new|0|13|13|0|(logical replication)"
    );
    let used = replica.error(CONTRACT);
    assert!(used.contains("subscription \"feed\" of role \"postgres\" writes the table"), "{used}");
    assert!(used.contains("role \"postgres\", application \"feed\": 0 reads, 13 writes"), "{used}");
    // One that has sent nothing may send anything.
    replica.run("SELECT zdd.reset_usage('address.street')");
    assert_eq!(
        replica.text(shown),
        "feed|postgres|old|0|0|0|0|(logical replication)\nfeed|postgres|new|0|0|0|0|(logical replication)"
    );
    // A publisher that no longer sends the old column does not write it.
    db.run("ALTER PUBLICATION p SET TABLE address (id, city, streetname, housenumber)");
    db.run("UPDATE address SET streetname = 'Fir' WHERE id = 1; INSERT INTO address (id, street) VALUES (51, 'Ivy 1')");
    arrived(
        &mut replica,
        "SELECT count(*) = 1 FROM address WHERE address IS NOT DISTINCT FROM (51, NULL, NULL, 'Ivy', '1')::address",
    );
    arrived(&mut replica, "SELECT count(*) = 1 FROM address WHERE address = (1, 'Oak 1', 'X', 'Fir', '1')::address");
    assert_eq!(replica.text(shown), "feed|postgres|new|0|2|2|0|(logical replication)");
    assert!(replica.error(CONTRACT).contains("subscription \"feed\""));
    replica
        .run("ALTER SUBSCRIPTION feed DISABLE; ALTER SUBSCRIPTION feed SET (slot_name = NONE); DROP SUBSCRIPTION feed");
    let used = replica.error(CONTRACT);
    assert!(!used.contains("subscription") && used.contains("application \"feed\": nothing since the reset"), "{used}");
    let idle = format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{name}'");
    arrived(&mut db, &idle);
    db.run(&format!("SELECT pg_drop_replication_slot('{name}')"));
}

// Standbys

/// A physical standby of a cluster, beside it.
struct Standby<'c>(&'c Cluster, PathBuf);

impl Standby<'_> {
    const PORT: u16 = 5433;

    fn of(cluster: &Cluster) -> Standby<'_> {
        let data = cluster.socket_dir().join("standby");
        let mut copy = cluster.server_tool("pg_basebackup");
        copy.args(["-R", "-c", "fast", "-U", "postgres", "-h"]).arg(cluster.socket_dir()).arg("-D").arg(&data);
        assert!(copy.status().unwrap().success());
        let standby = Standby(cluster, data);
        standby.pg_ctl(&["start", "-w", "-s", "-l", "standby.log", "-o", &format!("-p {}", Self::PORT)]);
        standby
    }

    fn pg_ctl(&self, arguments: &[&str]) -> bool {
        let mut pg_ctl = self.0.server_tool("pg_ctl");
        pg_ctl.args(arguments).arg("-D").arg(&self.1).stdout(Stdio::null()).stderr(Stdio::null());
        pg_ctl.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        self.pg_ctl(&["stop", "-m", "immediate"]);
    }
}

#[test]
fn a_standby_records_its_own() {
    let cluster = start(&[PRELOADED]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT streetname FROM address");
    let standby = Standby::of(&cluster);
    let database = db.text("SELECT current_database()");
    let mut reader = Session::connect(cluster.config(&database, "postgres", "report").port(Standby::PORT).clone());
    assert_eq!(reader.text("SELECT pg_is_in_recovery()"), "t");
    let before = usage(&mut reader);
    reader.run("SELECT street FROM address");
    assert_eq!(usage(&mut reader).replace(&before, "").trim(), "report|old|1r0w0e");
    assert_eq!(usage(&mut db), NEW_READ);
    // A fence is known there as soon as somebody has looked at the table.
    db.run("SELECT zdd.fence('address.street')");
    let fenced = "SELECT phase FROM zdd.changes";
    wait_until("the fence arrives", Duration::from_secs(30), || Ok(reader.text(fenced) == "fenced")).unwrap();
    reader.run("SELECT city FROM address");
    reader.error("SELECT street FROM address");
    assert!(usage(&mut reader).contains("report|old|1r0w1e"));
    drop(standby);
}

// Memory and file

#[test]
fn a_restart_forgets_nothing() {
    let cluster = start(&[PRELOADED, ("zdd.usage_save_interval", "1h")]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT street FROM address; UPDATE address SET housenumber = '1'");
    app.run("UPDATE address SET street = 'Ash 1', streetname = 'Oak' WHERE id = 1");
    db.run("SELECT zdd.fence('address.street')");
    app.error("SELECT street FROM address");
    let all =
        "SELECT side, role, application_name, reads, writes, rows, conflicts, errors, first_seen, last_seen, sample_query,
            whole_row FROM zdd.usage";
    let before = db.text(all);
    assert_eq!(db.text("SELECT sum(conflicts) FROM zdd.usage"), "1");
    let since = "SELECT recorded_since > pg_postmaster_start_time() - interval '2 s' FROM zdd.usage_info";
    for how in [Stop::Fast, Stop::Smart] {
        let database = db.text("SELECT current_database()");
        drop((db, app));
        cluster.restart(how).unwrap();
        db = Session::connect(cluster.config(&database, "postgres", "test"));
        app = application(&db, "other");
        assert_eq!(db.text(all), before);
        assert_eq!(db.text(since), "t");
    }
    // It still knows what is fenced, before anybody has looked at the table.
    app.error("SELECT street FROM address");
    assert!(usage(&mut db).contains("other|old|0r0w1e"));
    let unknown = db.error("CALL zdd.contract('address.street')");
    assert!(unknown.contains("was used"), "{unknown}");
}

#[test]
fn a_crash_loses_one_interval() {
    let cluster = start(&[PRELOADED, ("zdd.usage_save_interval", "1")]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT street FROM address");
    let seen = db.text("SELECT clock_timestamp()");
    let saved = format!("SELECT coalesce(saved_at > '{seen}', false) FROM zdd.usage_info");
    wait_until("usage is saved", Duration::from_secs(20), || Ok(db.text(&saved) == "t")).unwrap();
    let database = db.text("SELECT current_database()");
    cluster.stop(Stop::Immediate).unwrap();
    cluster.start_again().unwrap();
    let mut db = Session::connect(cluster.config(&database, "postgres", "test"));
    assert_eq!(usage(&mut db), OLD_READ);
    // The same when one backend crashes and the server stays.
    let mut victim = db.another();
    let pid = victim.pid();
    cluster.kill9_backend(pid).unwrap();
    wait_until("the server is down", Duration::from_secs(60), || Ok(db.attempt("SELECT 1").is_err())).unwrap();
    wait_until("the server is back", Duration::from_secs(60), || Ok(db.connects())).unwrap();
    let mut db = db.another();
    assert_eq!(usage(&mut db), OLD_READ);
    let worker = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_zdd usage saver'";
    wait_until("the saver is back", Duration::from_secs(30), || Ok(db.text(worker) == "1")).unwrap();
}

#[test]
fn a_broken_file_is_passed_over() {
    let cluster = start(&[PRELOADED]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT street FROM address");
    let database = db.text("SELECT current_database()");
    drop((db, app));
    let file = cluster.pgdata().join("pg_stat/pg_zdd_usage.json");
    cluster.stop(Stop::Fast).unwrap();
    let saved = std::fs::read(&file).unwrap();
    let old = br#"{"version":1,"entries":[],"fenced":[]}"#;
    for broken in [&b"{}"[..], &saved[..saved.len() / 2], &[0xff; 100], old] {
        std::fs::write(&file, broken).unwrap();
        cluster.start_again().unwrap();
        let mut db = Session::connect(cluster.config(&database, "postgres", "test"));
        assert_eq!(usage(&mut db), "");
        assert!(cluster.log_tail(50).contains("ignoring \"pg_stat/pg_zdd_usage.json\""), "{}", cluster.log_tail(50));
        drop(db);
        cluster.stop(Stop::Fast).unwrap();
    }
    std::fs::write(&file, &saved).unwrap();
    cluster.start_again().unwrap();
    assert_eq!(usage(&mut Session::connect(cluster.config(&database, "postgres", "test"))), OLD_READ);
}

#[test]
fn those_not_seen_for_longest_make_room_and_are_counted_together() {
    let cluster = start(&[PRELOADED, ("zdd.usage_max", "10")]);
    let (mut db, mut app) = expanded_on(&cluster);
    for number in 1..=12 {
        app.run(&format!("SET application_name = 'app{number}'; SELECT street FROM address"));
    }
    let left = db.text("SELECT count(*), count(*) FILTER (WHERE application_name IN ('app1', 'app2')) FROM zdd.usage");
    assert_eq!(left, "10|0");
    let info = "SELECT entries, entries_max, evicted, memory_bytes BETWEEN 10000 AND 60000 FROM zdd.usage_info";
    assert_eq!(db.text(info), "10|10|2|t");
    // Which of them did what, nobody knows any more; that they did, the contract does.
    for number in 13..=22 {
        app.run(&format!("SET application_name = 'new{number}'; SELECT streetname FROM address"));
    }
    let old = "SELECT application_name, reads FROM zdd.usage WHERE side = 'old'";
    assert_eq!(db.text(old), "(other applications)|12");
    let used = db.error(CONTRACT);
    assert!(used.contains("application \"(other applications)\": 12 reads"), "{used}");
    db.run("SET zdd.quiet_period = '3s'");
    wait_until("the contract goes through", Duration::from_secs(30), || Ok(db.attempt(CONTRACT).is_ok())).unwrap();
}

/// With changes enough, nothing can be counted together.
#[test]
fn a_contract_does_not_trust_a_record_of_which_something_is_lost() {
    let cluster = start(&[PRELOADED, ("zdd.usage_max", "10")]);
    let (mut db, mut app) = expanded_on(&cluster);
    app.run("SELECT street FROM address");
    for number in 1..=10 {
        db.run(&format!("CREATE TABLE t{number} (a text)"));
        db.run(&format!("SELECT zdd.split_column('t{number}', 'a', 'b text', delimiter => ' ')"));
        app.run(&format!("SELECT a FROM t{number}"));
    }
    assert_eq!(db.text("SELECT count(*) FROM zdd.usage WHERE change = 'address.street'"), "0");
    db.run("SET zdd.quiet_period = '5s'");
    let mut refusals = Vec::new();
    wait_until("the contract goes through", Duration::from_secs(30), || {
        let refused = db.attempt(CONTRACT);
        let passes = refused.is_ok();
        refusals.extend(refused.err());
        Ok(passes)
    })
    .unwrap();
    let record_is_short = |error: &String| error.contains("Usage has been recorded for");
    assert!(refusals.iter().any(|error| error.contains("had to make room for others")), "{refusals:?}");
    assert!(refusals.iter().all(|error| error.contains("had to make room") || record_is_short(error)), "{refusals:?}");
}

// Other extensions

/// All are there, and see what they should, in either order.
#[test]
fn hooks_are_chained() {
    let pkglib =
        std::process::Command::new(shared_cluster().bin_dir().join("pg_config")).arg("--pkglibdir").output().unwrap();
    let pkglib = String::from_utf8(pkglib.stdout).unwrap();
    if !Session::on(shared_cluster()).has_extension("pg_stat_statements") {
        return;
    }
    let has_pgaudit = std::path::Path::new(pkglib.trim()).join("pgaudit.so").exists();
    let mut libraries = vec!["pg_stat_statements", "auto_explain", "pg_zdd"];
    if has_pgaudit {
        libraries.insert(2, "pgaudit");
    }
    for reversed in [false, true] {
        let mut order = libraries.clone();
        if reversed {
            order.reverse();
        }
        let order = order.join(",");
        let mut conf = vec![("shared_preload_libraries", order.as_str()), ("auto_explain.log_min_duration", "0")];
        if has_pgaudit {
            conf.extend([("pgaudit.log", "read, write"), ("pgaudit.log_relation", "on")]);
        }
        let cluster = start(&conf);
        let (mut db, mut app) = expanded_on(&cluster);
        db.run("CREATE EXTENSION pg_stat_statements");
        if has_pgaudit {
            db.run("CREATE EXTENSION pgaudit");
        }
        app.run("SELECT street FROM address WHERE id = 1");
        db.run("CREATE ROLE usage_stranger; SELECT zdd.fence('address.street')");
        app.error("SELECT street FROM address");
        app.run("SET ROLE usage_stranger");
        assert!(app.error("SELECT streetname FROM address").contains("42501"));
        assert_eq!(usage(&mut db), "shop|old|1r0w1e", "{order}");
        assert_eq!(db.text("SELECT rows FROM zdd.usage"), "1", "{order}");
        let calls = "SELECT calls, rows, total_exec_time > 0 FROM pg_stat_statements
            WHERE query LIKE 'SELECT street FROM address WHERE%'";
        assert_eq!(db.text(calls), "1|1|t", "{order}");
        let log = std::fs::read_to_string(cluster.log()).unwrap();
        assert!(log.contains("Query Text: SELECT street FROM address WHERE id = 1"), "{order}");
        assert!(!log.contains("duration: 0.000 ms  plan:\n\tQuery Text: SELECT street FROM address"), "{order}");
        assert_eq!(log.contains("AUDIT: SESSION"), has_pgaudit, "{order}");
        assert!(log.contains("column \"street\" does not exist"), "{order}");
    }
}

/// Who is ended by a signal is started again.
#[test]
fn the_saver_comes_back() {
    let cluster = start(&[PRELOADED]);
    let mut db = Session::on(&cluster);
    let saver = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_zdd usage saver'";
    wait_until("a saver", Duration::from_secs(60), || Ok(!db.text(saver).is_empty())).unwrap();
    let first = db.text(saver);
    db.run(&format!("SELECT pg_terminate_backend({first}, 5000)"));
    wait_until("another saver", Duration::from_secs(60), || Ok(!["", &first].contains(&db.text(saver).as_str())))
        .unwrap();
}
