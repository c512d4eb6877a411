//! Dual writes, cell by cell, and through every way of writing that PostgreSQL has.
//!
//! O is the old side (street), N the new one (streetname, housenumber), f splits, g joins.

use std::io::Write;

use pg_zdd_cluster::session::Session;

const RULE: &str = r#"columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]'"#;
/// The same without NOT NULL.
const NULLABLE: &str = r#"columns => 'streetname varchar, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '[{streetname}][ {housenumber}]'"#;

/// A table of addresses with rows from before the change, and the change, expanding.
fn address(before: &str, options: &str) -> Session {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text)");
    db.run(before);
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE} {options})"));
    db
}

fn rows(db: &mut Session) -> String {
    db.text("SELECT id, street, streetname, housenumber FROM address ORDER BY id")
}

/// What the table holds after a statement.
#[track_caller]
fn after(before: &str, options: &str, statement: &str) -> String {
    let mut db = address(before, options);
    db.run(statement);
    rows(&mut db)
}

/// The error of a statement that must leave the table as it was.
#[track_caller]
fn refused(before: &str, options: &str, statement: &str) -> String {
    let mut db = address(before, options);
    let unchanged = rows(&mut db);
    let error = db.error(statement);
    assert_eq!(rows(&mut db), unchanged);
    error
}

/// The states of all rows: in sync, unmatched, pending, diverged.
fn states(db: &mut Session, change: &str) -> String {
    db.text(&format!("SELECT in_sync, unmatched, pending, diverged FROM zdd.verify('{change}')"))
}

/// Every test below whose row must be split already begins with a write of the old application.
const ELM: &str = "INSERT INTO address (id, street) VALUES (1, 'Elm Street 12a');";

// INSERT

#[test]
fn insert_old_given() {
    assert_eq!(after("", "", ELM), "1|Elm Street 12a|Elm Street|12a");
}

#[test]
fn insert_new_given() {
    let insert = "INSERT INTO address (id, streetname, housenumber) VALUES (1, 'Elm Street', '12a'), (2, 'Oak', NULL)";
    assert_eq!(after("", "", insert), "1|Elm Street 12a|Elm Street|12a\n2|Oak|Oak|~");
}

#[test]
fn insert_both_agree_by_f() {
    let insert = "INSERT INTO address VALUES (1, 'Elm  12', NULL, 'Elm', '12')";
    assert_eq!(after("", ", conflict => 'error'", insert), "1|Elm  12|Elm|12");
}

#[test]
fn insert_both_agree_by_g() {
    let insert = "INSERT INTO address VALUES (1, 'Straße 17', NULL, 'Straße 17', NULL)";
    assert_eq!(after("", ", conflict => 'error'", insert), "1|Straße 17|Straße 17|~");
}

const DISAGREE: &str = "INSERT INTO address VALUES (1, 'Elm 1', NULL, 'Oak', '2')";

#[test]
fn insert_both_conflict_new() {
    assert_eq!(after("", ", conflict => 'new'", DISAGREE), "1|Oak 2|Oak|2");
}

#[test]
fn insert_both_conflict_old() {
    assert_eq!(after("", ", conflict => 'old'", DISAGREE), "1|Elm 1|Elm|1");
}

#[test]
fn insert_both_conflict_error() {
    let error = refused("", ", conflict => 'error'", DISAGREE);
    assert!(error.contains("(23514)") && error.contains("Elm 1") && error.contains("Oak"), "{error}");
}

#[test]
fn insert_neither() {
    let insert =
        "INSERT INTO address (id, note) VALUES (1, 'nothing'); INSERT INTO address VALUES (2, NULL, NULL, NULL, NULL)";
    assert_eq!(after("", "", insert), "1|~|~|~\n2|~|~|~");
}

#[test]
fn insert_source_default() {
    let default = "ALTER TABLE address ALTER street SET DEFAULT 'Nowhere 1'";
    for (insert, row) in [
        ("(id) VALUES (1)", "1|Nowhere 1|Nowhere|1"),
        ("(id, street) VALUES (1, 'Elm 2')", "1|Elm 2|Elm|2"),
        ("(id, streetname) VALUES (1, 'Elm')", "1|Elm|Elm|~"),
        ("VALUES (1, 'Nowhere 1', NULL, 'Nowhere', '1')", "1|Nowhere 1|Nowhere|1"),
        ("(id, street) VALUES (1, NULL)", "1|~|~|~"),
    ] {
        assert_eq!(after(default, ", conflict => 'error'", &format!("INSERT INTO address {insert}")), row, "{insert}");
    }
}

#[test]
fn insert_target_default() {
    let rule = RULE.replace("NOT NULL", "DEFAULT ''Nowhere''");
    for (insert, row) in [
        ("(id) VALUES (1)", "1|~|Nowhere|~"),
        ("(id, street) VALUES (1, 'Elm 2')", "1|Elm 2|Elm|2"),
        ("(id, street) VALUES (1, '')", "1||~|~"),
        ("(id, streetname, housenumber) VALUES (1, 'Elm', '2')", "1|Elm 2|Elm|2"),
        ("(id, housenumber) VALUES (1, '2')", "1|Nowhere 2|Nowhere|2"),
        ("(id, streetname) VALUES (1, NULL)", "1|~|~|~"),
    ] {
        let mut db = Session::new();
        db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text); INSERT INTO address VALUES (0)");
        db.run(&format!("SELECT zdd.split_column('address', 'street', {rule}, conflict => 'error')"));
        assert_eq!(rows(&mut db), "0|~|~|~", "existing rows do not get the default");
        db.run(&format!("INSERT INTO address {insert}"));
        assert_eq!(rows(&mut db), format!("0|~|~|~\n{row}"), "{insert}");
    }
}

#[test]
fn insert_source_and_target_default() {
    let rule = RULE.replace("NOT NULL", "DEFAULT ''Nowhere''");
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text DEFAULT 'Unknown 0')");
    db.run(&format!("SELECT zdd.split_column('address', 'street', {rule}, conflict => 'error')"));
    db.run("INSERT INTO address (id) VALUES (1)");
    db.run("INSERT INTO address (id, street) VALUES (2, 'Elm 2')");
    db.run("INSERT INTO address (id, streetname) VALUES (3, 'Elm')");
    assert_eq!(rows(&mut db), "1|Unknown 0|Nowhere|~\n2|Elm 2|Elm|2\n3|Elm|Elm|~");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
}

// UPDATE

fn update(set: &str) -> String {
    format!("{ELM} UPDATE address SET {set}")
}

#[test]
fn update_old() {
    assert_eq!(after("", "", &update("street = 'Oak 3'")), "1|Oak 3|Oak|3");
    assert_eq!(after("", "", &update("street = 'Oak'")), "1|Oak|Oak|~");
    assert_eq!(after("", "", &update("street = NULL")), "1|~|~|~");
}

#[test]
fn update_old_on_pending() {
    assert_eq!(after(ELM, "", "UPDATE address SET street = 'Oak 3'"), "1|Oak 3|Oak|3");
    assert_eq!(after(ELM, "", "UPDATE address SET street = street || 'b'"), "1|Elm Street 12ab|Elm Street|12ab");
}

#[test]
fn update_new() {
    assert_eq!(after("", "", &update("streetname = 'Oak', housenumber = '3'")), "1|Oak 3|Oak|3");
    assert_eq!(after("", "", &update("housenumber = '13'")), "1|Elm Street 13|Elm Street|13");
    assert_eq!(after("", "", &update("housenumber = NULL")), "1|Elm Street|Elm Street|~");
    // What f would split differently stays as it was written.
    assert_eq!(after("", "", &update("streetname = 'Elm 5', housenumber = NULL")), "1|Elm 5|Elm 5|~");
}

#[test]
fn update_new_to_null() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text)");
    db.run(&format!("SELECT zdd.split_column('address', 'street', {NULLABLE})"));
    // While the change is expanding it may be what was read before the row was split.
    db.run(&update("streetname = NULL, housenumber = NULL"));
    assert_eq!(rows(&mut db), "1|Elm Street 12a|Elm Street|12a");
    db.run("CALL zdd.backfill('address.street')");
    db.run("UPDATE address SET streetname = NULL, housenumber = NULL");
    assert_eq!(rows(&mut db), "1|~|~|~");
}

#[test]
fn update_new_on_pending_fills() {
    assert_eq!(after(ELM, "", "UPDATE address SET housenumber = '13'"), "1|Elm Street 13|Elm Street|13");
    assert_eq!(after(ELM, "", "UPDATE address SET streetname = 'Oak'"), "1|Oak 12a|Oak|12a");
    assert_eq!(after(ELM, "", "UPDATE address SET streetname = 'Oak', housenumber = '3'"), "1|Oak 3|Oak|3");
}

#[test]
fn update_new_on_unmatched() {
    let unmatched = "INSERT INTO address (id, street) VALUES (1, '')";
    assert_eq!(after(unmatched, "", "UPDATE address SET streetname = 'Oak'"), "1|Oak|Oak|~");
    // Nothing can be filled in from a value that f does not accept.
    let error = refused(unmatched, "", "UPDATE address SET housenumber = '3'");
    assert!(error.contains("\"streetname\"") && error.contains("(23502)"), "{error}");
}

#[test]
fn update_both_agree() {
    for (set, row) in [
        ("street = 'Oak  3', streetname = 'Oak', housenumber = '3'", "1|Oak  3|Oak|3"),
        ("street = 'Oak 3', streetname = 'Oak 3', housenumber = NULL", "1|Oak 3|Oak 3|~"),
        ("street = 'Oak 12a', streetname = 'Oak'", "1|Oak 12a|Oak|12a"),
        ("street = NULL, streetname = NULL, housenumber = NULL", "1|~|~|~"),
    ] {
        assert_eq!(after("", ", conflict => 'error'", &update(set)), row, "{set}");
    }
}

const BOTH: &str = "street = 'Oak 3', streetname = 'Ash', housenumber = '4'";

#[test]
fn update_both_conflict_new() {
    assert_eq!(after("", ", conflict => 'new'", &update(BOTH)), "1|Ash 4|Ash|4");
    // On a pending row the target that was left alone is the one that was there.
    let both = "UPDATE address SET street = 'Oak 3', streetname = 'Ash'";
    assert_eq!(after(ELM, ", conflict => 'new'", both), "1|Ash 12a|Ash|12a");
}

#[test]
fn update_both_conflict_old() {
    assert_eq!(after("", ", conflict => 'old'", &update(BOTH)), "1|Oak 3|Oak|3");
}

#[test]
fn update_both_conflict_error() {
    let mut db = address("", ", conflict => 'error'");
    db.run(ELM);
    let error = db.error(&format!("UPDATE address SET {BOTH}"));
    assert!(error.contains("(23514)") && error.contains("Oak 3") && error.contains("Ash"), "{error}");
    assert_eq!(rows(&mut db), "1|Elm Street 12a|Elm Street|12a");
}

#[test]
fn update_unrelated_pending_splits() {
    assert_eq!(after(ELM, "", "UPDATE address SET note = 'x'"), "1|Elm Street 12a|Elm Street|12a");
    assert_eq!(after(ELM, "", "UPDATE address SET street = street"), "1|Elm Street 12a|Elm Street|12a");
}

#[test]
fn update_unrelated_keeps() {
    // f(g(n)) <> n: what the new application wrote.
    let new = "INSERT INTO address (id, streetname) VALUES (1, 'Straße 17'); UPDATE address SET note = 'x'";
    assert_eq!(after("", "", new), "1|Straße 17|Straße 17|~");
    // g(f(o)) <> o: what the old application wrote.
    let old = "INSERT INTO address (id, street) VALUES (1, 'Main  St  5'); UPDATE address SET note = 'x'";
    assert_eq!(after("", "", old), "1|Main  St  5|Main  St|5");
    let unmatched = "INSERT INTO address (id, street) VALUES (1, ''); UPDATE address SET note = 'x'";
    assert_eq!(after("", "", unmatched), "1||~|~");
    // The same value again is no change, from either side.
    let again = "INSERT INTO address (id, streetname) VALUES (1, 'Straße 17');
        UPDATE address SET street = 'Straße 17'; UPDATE address SET streetname = 'Straße 17'";
    assert_eq!(after("", "", again), "1|Straße 17|Straße 17|~");
}

// NOT NULL, unmatched values, rules

#[test]
fn not_null_binds_the_new_side_only() {
    let mut db = address("", "");
    db.run(ELM);
    for old in [
        "INSERT INTO address (id, street) VALUES (2, '')",
        "INSERT INTO address (id) VALUES (3)",
        "UPDATE address SET note = 'x' WHERE id > 1",
        "UPDATE address SET street = NULL WHERE id = 2",
        "UPDATE address SET street = '' WHERE id = 3",
        "INSERT INTO address VALUES (4, '', NULL, NULL, NULL)",
    ] {
        db.run(old);
    }
    let new = [
        "INSERT INTO address (id, housenumber) VALUES (5, '1')",
        "INSERT INTO address VALUES (5, 'Elm 1', NULL, NULL, '1')",
        "UPDATE address SET streetname = NULL WHERE id = 1",
        "UPDATE address SET housenumber = '1' WHERE id = 3",
        "UPDATE address SET street = 'Oak 3', housenumber = '4' WHERE id = 3",
    ];
    // Before it is expanded, what is all NULL may be what was read before the row was split: see update_new_to_null.
    let expanded = "UPDATE address SET streetname = NULL, housenumber = NULL WHERE id = 1";
    for new in new.into_iter().chain([expanded]) {
        if new == expanded {
            db.run("CALL zdd.backfill('address.street')");
            assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
        }
        let error = db.error(new);
        let expected =
            "null value in column \"streetname\" of relation \"address\" violates not-null constraint (23502)";
        assert!(error.contains(expected), "{new}\n{error}");
    }
}

/// What programs read of an error: its SQLSTATE, schema, table, column and constraint.
fn fields(db: &mut Session, sql: &str) -> String {
    let error = db.client.batch_execute(sql).expect_err(sql);
    let error = error.as_db_error().expect("an error of the server");
    let names = [error.schema(), error.table(), error.column(), error.constraint()];
    format!("{} {}", error.code().code(), names.map(|name| name.unwrap_or("~")).join("|"))
}

#[test]
fn violations_name_table_and_column_as_those_of_constraints_do() {
    let mut db = address("", ", unmatched => 'error', conflict => 'error'");
    db.run("CREATE TABLE plain (streetname text NOT NULL)");
    assert_eq!(fields(&mut db, "INSERT INTO plain DEFAULT VALUES"), "23502 public|plain|streetname|~");
    let null = "INSERT INTO address (id, housenumber) VALUES (1, '1')";
    assert_eq!(fields(&mut db, null), "23502 public|address|streetname|~");
    let unmatched = "INSERT INTO address (id, street) VALUES (1, '')";
    assert_eq!(fields(&mut db, unmatched), "23514 public|address|street|~");
    let conflict = "INSERT INTO address (id, street, streetname) VALUES (1, 'Elm 1', 'Oak')";
    assert_eq!(fields(&mut db, conflict), "23514 public|address|~|~");
    // As for constraints of a partition, and within functions.
    db.run(
        r#"CREATE SCHEMA "S"; CREATE TABLE "S".parted (id int, street text) PARTITION BY RANGE (id);
           CREATE TABLE "S"."Part" PARTITION OF "S".parted DEFAULT;
           SELECT zdd.split_column('"S".parted', 'street', columns => '"Name" text NOT NULL, no text', delimiter => ' ')"#,
    );
    let within = r#"DO $$ BEGIN INSERT INTO "S".parted (no) VALUES ('1'); END $$"#;
    assert_eq!(fields(&mut db, within), "23502 S|Part|Name|~");
}

#[test]
fn unmatched_null() {
    let insert = "INSERT INTO address (id, street) VALUES (1, ''), (2, E'two\\nlines')";
    assert_eq!(after("", ", unmatched => 'null'", insert), "1||~|~\n2|two\nlines|~|~");
    assert_eq!(after("", ", unmatched => 'null'", &update("street = ''")), "1||~|~");
}

#[test]
fn unmatched_whole() {
    let insert = "INSERT INTO address (id, street) VALUES (1, ''), (2, E'two\\nlines')";
    let expected = "1|||~\n2|two\nlines|two\nlines|~";
    assert_eq!(after("", ", unmatched => 'whole'", insert), expected);
    let mut db = address(insert, ", unmatched => 'whole'");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(rows(&mut db), expected);
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
}

#[test]
fn unmatched_error() {
    let before = "INSERT INTO address (id, street) VALUES (1, '')";
    let error = refused(before, ", unmatched => 'error'", "INSERT INTO address (id, street) VALUES (2, '')");
    for part in ["(23514)", "\"street\"", "\"address.street\""] {
        assert!(error.contains(part), "{error}");
    }
    // A row that was there is nobody's fault.
    assert_eq!(after(before, ", unmatched => 'error'", "UPDATE address SET note = 'x'"), "1||~|~");
    refused(before, ", unmatched => 'error'", "UPDATE address SET street = E'two\\nlines'");
}

#[test]
fn delimiter_rule() {
    let mut db = Session::new();
    db.run("CREATE TABLE person (id int, name text); INSERT INTO person VALUES (0, 'Doe, Jane, Mary')");
    db.run("SELECT zdd.split_column('person', 'name', columns => 'last text, first text', delimiter => ', ')");
    db.run("INSERT INTO person VALUES (1, 'Doe, John'), (2, 'Cher'), (3, ''), (4, 'a, b, c')");
    db.run("INSERT INTO person (id, last, first) VALUES (5, 'Roe', 'Rick'), (6, 'Prince', NULL), (7, NULL, 'Sting')");
    db.run("UPDATE person SET first = 'Joe' WHERE id = 1; UPDATE person SET last = NULL WHERE id = 4");
    db.run("CALL zdd.backfill('person.name')");
    assert_eq!(
        db.text("SELECT * FROM person ORDER BY id"),
        "0|Doe, Jane, Mary|Doe|Jane, Mary\n1|Doe, Joe|Doe|Joe\n2|Cher|Cher|~\n3|||~\n4|b, c|~|b, c\n\
         5|Roe, Rick|Roe|Rick\n6|Prince|Prince|~\n7|Sting|~|Sting"
    );
    assert_eq!(states(&mut db, "person.name"), "8|0|0|0");
}

#[test]
fn sql_rule() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE item (id int, code text); INSERT INTO item VALUES (0, 'a:1'), (1, 'b:x')
         ",
    );
    db.run(
        r#"SELECT zdd.split_column('item', 'code', columns => 'kind text, n int',
               split_sql => ARRAY['split_part(code, '':'', 1)', 'split_part(code, '':'', 2)::int'],
               join_sql => 'kind || '':'' || (100 / n)::text')"#,
    );
    db.run("INSERT INTO item VALUES (2, 'c:7'), (3, 'd:eight'), (4, NULL)");
    db.run("INSERT INTO item (id, kind, n) VALUES (5, 'e', 50)");
    db.run("CALL zdd.backfill('item.code')");
    // An expression that fails for a value does not accept it.
    let expected = "0|a:1|a|1\n1|b:x|~|~\n2|c:7|c|7\n3|d:eight|~|~\n4|~|~|~\n5|e:2|e|50";
    assert_eq!(db.text("SELECT * FROM item ORDER BY id"), expected);
    assert_eq!(states(&mut db, "item.code"), "4|2|0|0");
    // A join that fails would lose the write, so it fails too.
    assert!(db.error("UPDATE item SET n = 0 WHERE id = 5").contains("(22012)"));
    assert_eq!(db.text("SELECT * FROM item ORDER BY id"), expected);
}

// Ways of writing

fn copy(db: &mut Session, columns: &str, lines: &str) {
    let mut writer = db.client.copy_in(&format!("COPY address ({columns}) FROM STDIN")).expect("COPY begins");
    writer.write_all(lines.as_bytes()).expect("COPY takes lines");
    writer.finish().expect("COPY ends");
}

#[test]
fn copy_from() {
    let mut db = address("", "");
    copy(&mut db, "id, street", "1\tElm Street 12a\n2\t\\N\n3\t\n");
    copy(&mut db, "id, streetname, housenumber", "4\tOak\t3\n5\tOak\t\\N\n");
    copy(&mut db, "id, street, streetname, housenumber", "6\tElm 1\tElm\t1\n7\tElm 1\t\\N\t\\N\n");
    assert_eq!(
        rows(&mut db),
        "1|Elm Street 12a|Elm Street|12a\n2|~|~|~\n3||~|~\n4|Oak 3|Oak|3\n5|Oak|Oak|~\n6|Elm 1|Elm|1\n7|Elm 1|Elm|1"
    );
}

#[test]
fn insert_select_and_returning() {
    let mut db = address("INSERT INTO address VALUES (1, 'Elm 1'), (2, 'Oak 2')", "");
    let returned = db.text(
        "INSERT INTO address (id, street) SELECT id + 10, street || 'b' FROM address ORDER BY id
         RETURNING id, street, streetname, housenumber",
    );
    assert_eq!(returned, "11|Elm 1b|Elm|1b\n12|Oak 2b|Oak|2b");
    let returned = db.text(
        "WITH moved AS (UPDATE address SET housenumber = '9' WHERE id < 3 RETURNING *)
         SELECT id, street, streetname, housenumber FROM moved ORDER BY id",
    );
    assert_eq!(returned, "1|Elm 9|Elm|9\n2|Oak 9|Oak|9");
}

#[test]
fn merge() {
    let mut db = address("INSERT INTO address VALUES (1, 'Elm 1'), (2, 'Oak 2'), (3, 'Ash 3')", "");
    db.run(
        "MERGE INTO address AS a USING (VALUES (1, 'Elm 9'), (4, 'Fir 4')) AS v (id, street) ON a.id = v.id
         WHEN MATCHED THEN UPDATE SET street = v.street
         WHEN NOT MATCHED THEN INSERT (id, street) VALUES (v.id, v.street)",
    );
    db.run(
        "MERGE INTO address AS a USING (VALUES (2, '8'), (3, NULL), (5, '5')) AS v (id, number) ON a.id = v.id
         WHEN MATCHED AND v.number IS NULL THEN DELETE
         WHEN MATCHED THEN UPDATE SET housenumber = v.number
         WHEN NOT MATCHED THEN INSERT (id, streetname, housenumber) VALUES (v.id, 'Yew', v.number)",
    );
    assert_eq!(rows(&mut db), "1|Elm 9|Elm|9\n2|Oak 8|Oak|8\n4|Fir 4|Fir|4\n5|Yew 5|Yew|5");
}

#[test]
fn on_conflict_do_update() {
    // EXCLUDED has passed the INSERT trigger and carries both sides.
    let mut db = address("INSERT INTO address VALUES (1, 'Elm 1'), (2, 'Oak 2'), (3, 'Ash 3'), (4, 'Fir 4')", "");
    let upsert = |columns: &str, values: &str, set: &str| {
        format!("INSERT INTO address ({columns}) VALUES ({values}) ON CONFLICT (id) DO UPDATE SET {set}")
    };
    db.run(&upsert("id, street", "1, 'Yew  7'", "street = EXCLUDED.street"));
    db.run(&upsert("id, streetname, housenumber", "2, 'Yew', '7'", "streetname = EXCLUDED.streetname"));
    db.run(&upsert("id, street", "3, 'Yew 7'", "housenumber = EXCLUDED.housenumber"));
    db.run(&upsert("id, street", "5, 'Yew 7'", "street = 'not this'"));
    db.run("CALL zdd.backfill('address.street')");
    db.run(&upsert("id, streetname", "4, 'Yew 7'", "street = EXCLUDED.street, streetname = EXCLUDED.streetname"));
    assert_eq!(rows(&mut db), "1|Yew  7|Yew|7\n2|Yew 2|Yew|2\n3|Ash 7|Ash|7\n4|Yew 7 4|Yew 7|4\n5|Yew 7|Yew|7");
}

#[test]
fn update_that_moves_a_row_between_partitions() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text, note text) PARTITION BY LIST (note);
         CREATE TABLE address_a PARTITION OF address FOR VALUES IN ('a');
         CREATE TABLE address_b (note text, gone int, street text, id int);
         ALTER TABLE address_b DROP COLUMN gone;
         ALTER TABLE address ATTACH PARTITION address_b FOR VALUES IN ('b');
         INSERT INTO address VALUES (1, 'Elm 1', 'a'), (2, 'Oak 2', 'b'), (3, 'Ash 3', 'a'), (4, '', 'a')",
    );
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE}, conflict => 'error')"));
    db.run("INSERT INTO address (id, streetname, note) VALUES (5, 'Straße 17', 'a')");
    db.run("INSERT INTO address (id, street, note) VALUES (6, 'Main  5', 'b')");
    db.run("UPDATE address SET note = 'b' WHERE id = 1");
    db.run("UPDATE address SET note = 'a', street = 'Oak 22' WHERE id = 2");
    db.run("UPDATE address SET note = 'b', housenumber = '33' WHERE id = 3");
    db.run("UPDATE address SET note = CASE note WHEN 'a' THEN 'b' ELSE 'a' END WHERE id > 3");
    assert_eq!(
        db.text("SELECT tableoid::regclass, id, street, streetname, housenumber FROM address ORDER BY id"),
        "address_b|1|Elm 1|Elm|1\naddress_a|2|Oak 22|Oak|22\naddress_b|3|Ash 33|Ash|33\naddress_b|4||~|~\n\
         address_b|5|Straße 17|Straße 17|~\naddress_a|6|Main  5|Main|5"
    );
}

#[test]
fn prepared_statements_across_every_phase() {
    let mut db = address_before_split();
    let mut admin = db.another();
    let run = |db: &mut Session, admin: &mut Session, names: &[&str], works: bool| {
        for name in names {
            let result = db.attempt(&format!("EXECUTE {name}"));
            match result {
                Ok(()) => assert!(works, "{name} should fail"),
                Err(error) => {
                    assert!(!works && error.contains("\"street\" ") && error.contains("(42703)"), "{name}: {error}")
                }
            }
        }
        admin.run("UPDATE address SET note = 'admin'");
    };
    let old = ["old_insert", "old_update", "old_select"];
    let new = ["new_insert", "new_update", "new_select", "unrelated"];
    db.run(
        "PREPARE old_insert AS INSERT INTO address (id, street) SELECT max(id) + 1, 'Elm 1' FROM address;
         PREPARE old_update AS UPDATE address SET street = street || '0' WHERE id = 1;
         PREPARE old_select AS SELECT id, street FROM address;
         PREPARE unrelated AS UPDATE address SET note = 'x'",
    );
    run(&mut db, &mut admin, &old, true);
    admin.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    run(&mut db, &mut admin, &old, true);
    db.run(
        "PREPARE new_insert AS INSERT INTO address (id, streetname, housenumber) SELECT max(id) + 1, 'Oak', '2' FROM address;
         PREPARE new_update AS UPDATE address SET housenumber = housenumber || 'a' WHERE id = 1;
         PREPARE new_select AS SELECT id, streetname, housenumber FROM address",
    );
    run(&mut db, &mut admin, &new, true);
    admin.run("CALL zdd.backfill('address.street')");
    run(&mut db, &mut admin, &old, true);
    run(&mut db, &mut admin, &new, true);
    admin.run("SELECT zdd.fence('address.street')");
    run(&mut db, &mut admin, &old, false);
    run(&mut db, &mut admin, &new, true);
    admin.run("SELECT zdd.unfence('address.street')");
    run(&mut db, &mut admin, &old, true);
    run(&mut db, &mut admin, &new, true);
    assert_eq!(states(&mut admin, "address.street").split_once('|').expect("columns").1, "0|0|0");
    assert_eq!(
        admin.text("SELECT street, streetname, housenumber FROM address WHERE id = 1"),
        "Elm 100a0aa0a|Elm|100a0aa0a"
    );
    admin.run("CALL zdd.contract('address.street', force => true)");
    run(&mut db, &mut admin, &old, false);
    run(&mut db, &mut admin, &new, true);
    let count = admin.text("SELECT count(*), count(*) FILTER (WHERE streetname = 'Elm') FROM address");
    assert_eq!(count, "10|5");
}

fn address_before_split() -> Session {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int PRIMARY KEY, street text, note text); INSERT INTO address VALUES (1, 'Elm 1')",
    );
    db
}

// Other triggers

const SHOUT: &str = "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.street := upper(NEW.street); RETURN NEW; END'";

#[test]
fn before_triggers_that_sort_before_are_seen() {
    let before = format!(
        "{SHOUT}; CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON address FOR EACH ROW EXECUTE FUNCTION shout()"
    );
    let mut db = address(&before, ", conflict => 'error'");
    db.run("INSERT INTO address (id, street) VALUES (1, 'Elm 12a')");
    assert_eq!(rows(&mut db), "1|ELM 12A|ELM|12A");
    db.run("UPDATE address SET street = 'Oak 3b'");
    assert_eq!(rows(&mut db), "1|OAK 3B|OAK|3B");
    // A trigger of the new application's is seen as well.
    db.run(
        "CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.housenumber := replace(NEW.housenumber, '' '', ''''); RETURN NEW; END';
         CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON address FOR EACH ROW EXECUTE FUNCTION tidy()",
    );
    db.run("UPDATE address SET housenumber = '3 C'");
    assert_eq!(rows(&mut db), "1|OAK 3C|OAK|3C");
}

#[test]
fn before_triggers_that_sort_after_are_refused() {
    let mut db = address_before_split();
    db.run(SHOUT);
    let create = |name: &str, when: &str| {
        format!("CREATE TRIGGER \"{name}\" {when} ON address FOR EACH ROW EXECUTE FUNCTION shout()")
    };
    let split = format!("SELECT zdd.split_column('address', 'street', {RULE})");
    for late in ["~~", "~zdd_b", "äußerst spät"] {
        db.run(&create(late, "BEFORE UPDATE"));
        let error = db.error(&split);
        assert!(error.contains(late) && error.contains("(55000)"), "{error}");
        db.run(&format!("DROP TRIGGER \"{late}\" ON address"));
    }
    db.run(&create("~~ after", "AFTER UPDATE"));
    db.run(&create("~~ delete", "BEFORE DELETE"));
    db.run(&split);
    for late in ["~~", "~zdd_b", "äußerst spät"] {
        let error = db.error(&create(late, "BEFORE INSERT"));
        assert!(error.contains(late) && error.contains("(55000)"), "{error}");
    }
    db.run(&create("~~ too", "AFTER INSERT"));
    db.run(&create("}", "BEFORE INSERT"));
    assert!(db.error("ALTER TRIGGER \"}\" ON address RENAME TO \"~~\"").contains("(55000)"));
}

#[test]
fn replication_roles_bypass_the_trigger_and_the_backfill_catches_up() {
    let mut db = address("INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, 1000) AS i", "");
    // Something diverged keeps the change expanding, so that lanes exist when the rows below are written.
    let diverge = "SET session_replication_role = replica; UPDATE address SET streetname = 'Oak' WHERE id = 1; RESET session_replication_role";
    db.run(diverge);
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(states(&mut db, "address.street"), "999|0|0|1");
    db.run(
        "SET session_replication_role = replica;
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1001, 5000) AS i;
         UPDATE address SET streetname = NULL, housenumber = NULL WHERE id = 2;
         RESET session_replication_role",
    );
    assert_eq!(states(&mut db, "address.street"), "998|0|4001|1");
    db.run("CALL zdd.repair('address.street', winner => 'old')");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(states(&mut db, "address.street"), "5000|0|0|0");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    db.run("SET session_replication_role = local; INSERT INTO address VALUES (5001, 'Elm 1')");
    assert_eq!(states(&mut db, "address.street"), "5001|0|0|0");
}

#[test]
fn rows_that_bypassed_the_trigger_after_the_backfill_can_be_split_too() {
    let mut db = address("", "");
    db.run("CALL zdd.backfill('address.street')");
    db.run("SET session_replication_role = replica; INSERT INTO address VALUES (1, 'Elm 1'); RESET session_replication_role");
    assert_eq!(states(&mut db, "address.street"), "0|0|1|0");
    let error = db.error("CALL zdd.contract('address.street', force => true)");
    assert!(error.contains("1 row pending") && error.contains("HINT: CALL zdd.backfill"), "{error}");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(states(&mut db, "address.street"), "1|0|0|0");
    db.run("CALL zdd.contract('address.street', force => true)");
}

// Tables and names

/// Goes through a whole change on a table with a row from before it, a row written by each side during it.
fn whole_change(db: &mut Session, table: &str, source: &str, arguments: &str, old: &str, new: &str) {
    let change = db.text(&format!("SELECT zdd.split_column('{table}', '{source}', {arguments})"));
    let change = change.replace('\'', "''");
    db.run(old);
    db.run(new);
    db.run(&format!("CALL zdd.backfill('{change}')"));
    assert_eq!(states(db, &change), "3|0|0|0", "{table}");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    db.run(&format!("SELECT zdd.fence('{change}')"));
    db.run(new);
    db.run(&format!("SELECT zdd.unfence('{change}')"));
    db.run(old);
    assert_eq!(states(db, &change), "5|0|0|0", "{table}");
    db.run(&format!("CALL zdd.contract('{change}', force => true)"));
}

#[test]
fn identity_keys() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street text NOT NULL);
         INSERT INTO address (street) VALUES ('Elm 1')",
    );
    let old = "INSERT INTO address (street) VALUES ('Oak 2')";
    let new = "INSERT INTO address (streetname, housenumber) VALUES ('Ash', '3')";
    whole_change(&mut db, "address", "street", RULE, old, new);
    assert_eq!(db.text("SELECT * FROM address ORDER BY id"), "1|Elm|1\n2|Oak|2\n3|Ash|3\n4|Ash|3\n5|Oak|2");
}

#[test]
fn tables_without_a_primary_key() {
    let mut db = Session::new();
    db.run("CREATE UNLOGGED TABLE address (street text); INSERT INTO address VALUES ('Elm 1')");
    let old = "INSERT INTO address (street) VALUES ('Elm 1')";
    let new = "INSERT INTO address (streetname, housenumber) VALUES ('Elm', '1')";
    whole_change(&mut db, "address", "street", RULE, old, new);
    assert_eq!(db.text("SELECT DISTINCT * FROM address"), "Elm|1");
}

#[test]
fn forced_row_security() {
    let mut db = Session::new();
    db.run(
        "CREATE ROLE rls_owner LOGIN; CREATE ROLE rls_user LOGIN; GRANT ALL ON SCHEMA public TO rls_owner;
         SET ROLE rls_owner;
         CREATE TABLE address (owner name, street text);
         INSERT INTO address VALUES ('rls_user', 'Elm 1'), ('nobody', 'Oak 2');
         ALTER TABLE address ENABLE ROW LEVEL SECURITY;
         ALTER TABLE address FORCE ROW LEVEL SECURITY;
         CREATE POLICY mine ON address USING (owner = current_user);
         GRANT ALL ON address TO rls_user",
    );
    let mut owner = db.another_as("rls_owner");
    let mut user = db.another_as("rls_user");
    assert_eq!(owner.text("SELECT count(*) FROM address"), "0");
    owner.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    user.run("INSERT INTO address (owner, street) VALUES ('rls_user', 'Ash 3')");
    user.run("INSERT INTO address (owner, streetname, housenumber) VALUES ('rls_user', 'Fir', '4')");
    assert!(user.error("INSERT INTO address (owner, streetname) VALUES ('nobody', 'Yew')").contains("(42501)"));
    owner.run("CALL zdd.backfill('address.street')");
    assert_eq!(states(&mut owner, "address.street"), "4|0|0|0");
    let own = "SELECT street, streetname, housenumber FROM address ORDER BY 1";
    assert_eq!(user.text(own), "Ash 3|Ash|3\nElm 1|Elm|1\nFir 4|Fir|4");
    owner.run("CALL zdd.contract('address.street', force => true)");
    db.run("RESET ROLE");
    assert_eq!(db.text("SELECT count(*), count(housenumber) FROM address"), "4|4");
}

#[test]
fn names_that_need_quoting() {
    let table = r#""Мой склад"."Order ""1""; DROP"#.to_owned() + "\"";
    let mut db = Session::new();
    db.run(&format!(
        r#"CREATE SCHEMA "Мой склад"; CREATE TABLE {table} ("select" int, "Straße 'x'" text, note text);
           INSERT INTO {table} VALUES (1, 'Elm;1')"#
    ));
    let arguments =
        r#"columns => '"user" text NOT NULL, "größe {1} ""a""" text', delimiter => ';', change => 'it''s "my" change'"#;
    let old = format!(r#"INSERT INTO {table} ("select", "Straße 'x'") VALUES (2, 'Oak;2')"#);
    let new = format!(r#"INSERT INTO {table} ("select", "user", "größe {{1}} ""a""") VALUES (3, 'Ash', '3')"#);
    whole_change(&mut db, &table, r#"Straße ''x''"#, arguments, &old, &new);
    assert_eq!(
        db.text(&format!(r#"SELECT "select", "user", "größe {{1}} ""a""" FROM {table} ORDER BY 1"#)),
        "1|Elm|1\n2|Oak|2\n2|Oak|2\n3|Ash|3\n3|Ash|3"
    );
}

#[test]
fn names_of_greatest_length() {
    let (table, source) = ("t".repeat(63), "ü".repeat(31));
    let mut db = Session::new();
    db.run(&format!("CREATE TABLE {table} ({source} text); INSERT INTO {table} VALUES ('Elm 1')"));
    let arguments = r#"columns => 'größe text', regex => '^(?<größe>.+)$', "join" => '{größe}'"#;
    let old = format!("INSERT INTO {table} ({source}) VALUES ('Oak 2')");
    let new = format!("INSERT INTO {table} (größe) VALUES ('Ash 3')");
    whole_change(&mut db, &table, &source, arguments, &old, &new);
    assert_eq!(db.text(&format!("SELECT count(größe) FROM {table}")), "5");
}

#[test]
fn two_changes_on_one_table() {
    let mut db = Session::new();
    db.run("CREATE TABLE person (id int, street text, name text, note text)");
    db.run("INSERT INTO person SELECT i, 'Elm ' || i, 'Doe, ' || i FROM generate_series(1, 300) AS i");
    db.run(&format!("SELECT zdd.split_column('person', 'street', {RULE})"));
    db.run("SELECT zdd.split_column('person', 'name', columns => 'last text, first text', delimiter => ', ')");
    db.run("INSERT INTO person (id, street, last, first) VALUES (301, 'Oak 1', 'Roe', 'Ann')");
    db.run("INSERT INTO person (id, streetname, name) VALUES (302, 'Ash', 'Poe, Edgar')");
    db.run("UPDATE person SET name = 'Coe, Bea', housenumber = '5' WHERE id = 1");
    db.run("UPDATE person SET note = 'both pending' WHERE id = 2");
    let all = "SELECT * FROM person WHERE id IN (1, 2, 3, 301, 302) ORDER BY id";
    let split = "1|Elm 5|Coe, Bea|~|Elm|5|Coe|Bea\n2|Elm 2|Doe, 2|both pending|Elm|2|Doe|2\n";
    let inserted = "301|Oak 1|Roe, Ann|~|Oak|1|Roe|Ann\n302|Ash|Poe, Edgar|~|Ash|~|Poe|Edgar";
    assert_eq!(db.text(all), format!("{split}3|Elm 3|Doe, 3|~|~|~|~|~\n{inserted}"));
    // Both backfills at once.
    let street = db.another().in_background("CALL zdd.backfill('person.street')");
    db.run("CALL zdd.backfill('person.name')");
    street.join().1.expect("the backfill succeeds");
    assert_eq!(db.text(all), format!("{split}3|Elm 3|Doe, 3|~|Elm|3|Doe|3\n{inserted}"));
    assert_eq!(
        (states(&mut db, "person.street"), states(&mut db, "person.name")),
        ("302|0|0|0".into(), "302|0|0|0".into())
    );
    // One is given up, the other goes on.
    db.run("SELECT zdd.rollback('person.name')");
    db.run("INSERT INTO person (id, streetname, name) VALUES (303, 'Yew', 'Loe, Kay')");
    db.run("CALL zdd.contract('person.street', force => true)");
    assert_eq!(
        db.text("SELECT * FROM person WHERE id > 301 ORDER BY id"),
        "302|Poe, Edgar|~|Ash|~\n303|Loe, Kay|~|Yew|~"
    );
}

#[test]
fn generated_columns() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text, letters int GENERATED ALWAYS AS (length(street)) STORED);
         INSERT INTO address VALUES (1, 'Elm 1'), (2, 'Oak 22')",
    );
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    db.run("ALTER TABLE address ADD label text GENERATED ALWAYS AS (upper(streetname)) STORED");
    db.run("INSERT INTO address (id, street) VALUES (3, 'Ash 333')");
    db.run("INSERT INTO address (id, streetname, housenumber) VALUES (4, 'Yew', '4444')");
    db.run("UPDATE address SET housenumber = '22b' WHERE id = 2");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(
        db.text("SELECT id, street, letters, streetname, housenumber, label FROM address ORDER BY id"),
        "1|Elm 1|5|Elm|1|ELM\n2|Oak 22b|7|Oak|22b|OAK\n3|Ash 333|7|Ash|333|ASH\n4|Yew 4444|8|Yew|4444|YEW"
    );
    db.run("UPDATE address SET street = 'Fir  1' WHERE id = 1; UPDATE address SET streetname = 'Ivy' WHERE id = 3");
    assert_eq!(
        db.text("SELECT id, street, letters, label FROM address WHERE id IN (1, 3) ORDER BY id"),
        "1|Fir  1|6|FIR\n3|Ivy 333|7|IVY"
    );
    assert!(db.error("CALL zdd.contract('address.street', force => true)").contains("letters"));
    db.run("ALTER TABLE address DROP letters");
    db.run("CALL zdd.contract('address.street', accept_lossy => true, force => true)");
    assert_eq!(db.text("SELECT * FROM address WHERE id = 1"), "1|Fir|1|FIR");
}

// Types

/// A table `t (id int, old …)` with one row, `before`, from before the change; after the backfill the statements.
struct Typed<'a> {
    old: &'a str,
    columns: &'a str,
    before: &'a str,
    writes: &'a [(&'a str, &'a str)],
}

/// Each statement is followed by the row that it leaves, or by the SQLSTATE that it fails with.
#[track_caller]
fn typed(setup: &str, case: Typed<'_>) {
    let mut db = Session::new();
    db.run(setup);
    let Typed { old, columns, before, writes } = case;
    db.run(&format!("CREATE TABLE t (id int, old {old}); INSERT INTO t VALUES (1, '{before}')"));
    db.run(&format!("SELECT zdd.split_column('t', 'old', columns => '{columns}', delimiter => ' ')"));
    db.run("CALL zdd.backfill('t.old')");
    for (statement, expected) in writes {
        let result = db.attempt(statement);
        match result {
            Ok(()) => assert_eq!(db.text("SELECT old, a, b FROM t"), *expected, "{statement}"),
            Err(error) => assert!(error.contains(&format!("({expected})")), "{statement}: {error}"),
        }
    }
    let states = db.text("SELECT pending, diverged FROM zdd.verify('t.old')");
    assert_eq!(states, "0|0");
}

#[test]
fn domain_source() {
    let domain = "CREATE DOMAIN street_line AS text CHECK (length(VALUE) < 10) NOT NULL";
    let writes = [
        ("SELECT", "Elm 1|Elm|1"),
        ("UPDATE t SET old = 'Oak 2'", "Oak 2|Oak|2"),
        ("UPDATE t SET b = '3'", "Oak 3|Oak|3"),
        ("UPDATE t SET a = 'Magnolia'", "23514"),
        ("UPDATE t SET a = NULL, b = NULL", "23502"),
        ("SELECT", "Oak 3|Oak|3"),
    ];
    typed(domain, Typed { old: "street_line", columns: "a text, b text", before: "Elm 1", writes: &writes });
}

#[test]
fn citext_source() {
    let writes = [
        ("UPDATE t SET old = 'ELM 1'", "ELM 1|ELM|1"),
        ("UPDATE t SET a = 'elm'", "elm 1|elm|1"),
        ("UPDATE t SET old = 'eLm 1', a = 'ELM'", "ELM 1|ELM|1"),
    ];
    let case = Typed { old: "citext", columns: "a citext, b text", before: "Elm 1", writes: &writes };
    if Session::new().has_extension("citext") {
        typed("CREATE EXTENSION citext", case);
    }
}

#[test]
fn nondeterministic_collation() {
    let collation = "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    let writes = [
        ("UPDATE t SET id = 2 WHERE old = 'ELM 1'", "Elm 1|Elm|1"),
        ("UPDATE t SET old = 'ELM 1'", "ELM 1|ELM|1"),
        ("UPDATE t SET a = 'elm'", "elm 1|elm|1"),
    ];
    let case =
        Typed { old: "text COLLATE blind", columns: "a text COLLATE blind, b text", before: "Elm 1", writes: &writes };
    if Session::new().has_icu() {
        typed(collation, case);
    }
}

#[test]
fn char_n() {
    let writes = [
        ("SELECT", "Elm 1     |Elm  |1"),
        ("UPDATE t SET old = 'Oak 22'", "Oak 22    |Oak  |22"),
        ("UPDATE t SET a = 'Holly'", "Holly 22  |Holly|22"),
        ("UPDATE t SET b = '4444'", "Holly 4444|Holly|4444"),
        ("UPDATE t SET b = '55555'", "22001"),
        // Too long for char(5): unmatched.
        ("UPDATE t SET old = 'Poplar 1'", "Poplar 1  |~|~"),
    ];
    typed("", Typed { old: "char(10)", columns: "a char(5), b text", before: "Elm 1", writes: &writes });
}

#[test]
fn varchar_n() {
    let writes = [
        ("UPDATE t SET old = 'Holly 1'", "Holly 1|Holly|1"),
        ("UPDATE t SET old = 'Poplar 1'", "Poplar 1|~|~"),
        ("UPDATE t SET old = 'Blüte 1'", "Blüte 1|Blüte|1"),
        ("UPDATE t SET old = 'Holly '", "Holly |Holly|"),
        ("UPDATE t SET a = 'Poplar'", "22001"),
        ("UPDATE t SET b = '12'", "Holly 12|Holly|12"),
        ("UPDATE t SET b = '123'", "22001"),
    ];
    typed("", Typed { old: "varchar(8)", columns: "a varchar(5), b text", before: "Elm 1", writes: &writes });
}

#[test]
fn number_targets() {
    for (columns, old, row) in [
        ("a int, b numeric(5,2)", "7 1.5", "7 1.5|7|1.50"),
        ("a int, b numeric(5,2)", "007 1.50", "007 1.50|7|1.50"),
        ("a int, b numeric(5,2)", "-7 -1", "-7 -1|-7|-1.00"),
        ("a int, b numeric(5,2)", "7 1.555", "7 1.555|~|~"),
        ("a int, b numeric(5,2)", "7 1000", "7 1000|~|~"),
        ("a int, b numeric(5,2)", "7 x", "7 x|~|~"),
        ("a int, b numeric(5,2)", "7", "7|7|~"),
        ("a int, b numeric(5,2)", "2147483648 1", "2147483648 1|~|~"),
        ("a smallint, b bigint", "32767 9223372036854775807", "32767 9223372036854775807|32767|9223372036854775807"),
        ("a smallint, b bigint", "32768 1", "32768 1|~|~"),
        ("a numeric, b text", "12345678901234567890.5 x", "12345678901234567890.5 x|12345678901234567890.5|x"),
    ] {
        let update = format!("UPDATE t SET old = '{old}'");
        let writes = [("SELECT", row), ("UPDATE t SET old = NULL", "~|~|~"), (&*update, row)];
        typed("", Typed { old: "text", columns, before: old, writes: &writes });
    }
    let writes = [
        ("UPDATE t SET a = 8", "8 1.50|8|1.50"),
        ("UPDATE t SET b = 2", "8 2.00|8|2.00"),
        ("UPDATE t SET b = NULL", "8|8|~"),
    ];
    typed("", Typed { old: "text", columns: "a int, b numeric(5,2)", before: "7 1.5", writes: &writes });
}

#[test]
fn toasted_values() {
    for (storage, filler) in [
        ("EXTENDED", "repeat('x', 70000)"),
        ("EXTENDED", "(SELECT string_agg(md5(i::text), '-') FROM generate_series(1, 2200) AS i)"),
        ("EXTERNAL", "(SELECT string_agg(md5(i::text), '-') FROM generate_series(1, 2200) AS i)"),
    ] {
        let mut db = address(
            &format!(
                "SET zdd.max_source_length = '1MB'; ALTER TABLE address ALTER street SET STORAGE {storage};
                 CREATE TABLE long AS SELECT {filler} AS text;
                 INSERT INTO address SELECT i, text || ' ' || i FROM long, generate_series(1, 3) AS i"
            ),
            "",
        );
        // Long values as they relate to the filler: `<>` stands for it.
        let short = "SELECT id, replace(street, text, '<>'), replace(streetname, text, '<>'), housenumber
            FROM address, long ORDER BY id";
        db.run("UPDATE address SET note = 'split' WHERE id = 1");
        db.run("CALL zdd.backfill('address.street')");
        assert_eq!(db.text(short), "1|<> 1|<>|1\n2|<> 2|<>|2\n3|<> 3|<>|3");
        // f(g(n)) <> n shows whether a side is recomputed.
        db.run("UPDATE address SET streetname = streetname || ' 5', housenumber = NULL");
        let kept = "1|<> 5|<> 5|~\n2|<> 5|<> 5|~\n3|<> 5|<> 5|~";
        assert_eq!(db.text(short), kept);
        db.run("UPDATE address SET note = 'unrelated' WHERE id = 1");
        db.run("UPDATE address SET street = street || '' WHERE id = 2");
        db.run("UPDATE address SET street = street, streetname = streetname || '' WHERE id = 3");
        assert_eq!(db.text(short), kept, "{storage}");
        db.run(
            "UPDATE address SET street = 'y' || street WHERE id = 1; UPDATE address SET housenumber = '6' WHERE id = 2",
        );
        assert_eq!(db.text(short), "1|y<> 5|y<>|5\n2|<> 5 6|<> 5|6\n3|<> 5|<> 5|~", "{storage}");
        assert_eq!(states(&mut db, "address.street"), "3|0|0|0");
    }
}

/// A moved row is deleted and inserted, but the statement has not written what it carries: a row that its rule would
/// reject moves as it did before the change.
#[test]
fn a_row_that_no_rule_accepts_moves_between_partitions() {
    let mut db = Session::new();
    db.run("CREATE TABLE p (id int, street text, k text, note text) PARTITION BY LIST (k)");
    db.run("CREATE TABLE pa PARTITION OF p FOR VALUES IN ('a')");
    db.run("CREATE TABLE pb (note text, k text, street text, id int)");
    db.run("ALTER TABLE p ATTACH PARTITION pb FOR VALUES IN ('b')");
    db.run("INSERT INTO p VALUES (1, 'x', 'a'), (2, 'a b', 'a')");
    db.run(
        r"SELECT zdd.split_column('p', 'street', columns => 'a text, b text', regex => '^(?<a>\S+) (?<b>\S+)$',
            join => '{a}[ {b}]', unmatched => 'error', conflict => 'error')",
    );
    db.run("SET session_replication_role = replica; UPDATE p SET a = 'o', b = 'p' WHERE id = 2");
    db.run("RESET session_replication_role");
    db.run("UPDATE p SET k = 'b', note = 'moved'");
    assert_eq!(
        db.text("SELECT id, street, k, a, b FROM p ORDER BY id"),
        "1|x|b|~|~\n2|a b|b|o|p",
        "what was there moves as it was"
    );
    assert!(db.error("INSERT INTO p VALUES (3, 'x', 'b')").contains("23514"), "what is written is still checked");
}
