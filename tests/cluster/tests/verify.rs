//! Values as they are: whether two are the same, and how they are reported.

use pg_zdd_cluster::session::Session;

/// Values whose upper half a datum may be filled with in two ways.
#[test]
fn large_values_by_value_are_compared_as_they_are() {
    for (types, values, split, join) in [
        ("oid", ["4000000000", "7"], "a::bigint::oid", "b::bigint::oid"),
        ("xid", ["4000000000", "7"], "a::text::xid", "b::text::xid"),
        ("\"char\"", ["\\377", "x"], "a::text::\"char\"", "b::text::\"char\""),
    ] {
        let mut db = Session::new();
        db.run(&format!(
            "CREATE TABLE t (id int, a {types}); INSERT INTO t VALUES (1, '{}'), (2, '{}')",
            values[0], values[1]
        ));
        let split = format!(
            "SELECT zdd.split_column('t', 'a', columns => 'b {types}', split_sql => ARRAY['{split}'], join_sql => '{join}')"
        );
        db.run(&split);
        db.run("CALL zdd.backfill('t.a')");
        db.run(&format!("INSERT INTO t (id, a, b) VALUES (3, '{0}', '{0}')", values[0]));
        db.run(&format!("INSERT INTO t (id, b) VALUES (4, '{}')", values[0]));
        db.run("UPDATE t SET a = b, b = a");
        let counts = db.text("SELECT rows, in_sync, lossy, diverged FROM zdd.verify('t.a')");
        assert_eq!(counts, "4|4|0|0", "{types}");
    }
}

#[test]
fn mismatches_shows_numbers_exactly() {
    let name = "a table named $1::tid";
    let mut db = Session::new();
    let (key, large) = ("12345678901234567890123", format!("1{}", "0".repeat(400)));
    db.run(&format!(
        r#"CREATE TABLE "{name}" (k numeric PRIMARY KEY, a text); INSERT INTO "{name}" VALUES ({key}, '{key}.50')"#
    ));
    db.run(&format!(
        r#"SELECT zdd.split_column('"{name}"', 'a', 'b numeric', change => 't', split_sql => ARRAY['a::numeric'], join_sql => 'b::text')"#
    ));
    db.run(&format!(
        r#"SET session_replication_role = replica; UPDATE "{name}" SET b = {large};
           INSERT INTO "{name}" VALUES ({large}, NULL, 'NaN'); RESET session_replication_role"#
    ));
    assert_eq!(
        db.text("SELECT key, source, targets, kind FROM zdd.mismatches('t') ORDER BY (key->>'k')::numeric"),
        format!(
            r#"{{"k": {key}}}|{key}.50|{{"b": {large}}}|diverged
{{"k": {large}}}|~|{{"b": "NaN"}}|diverged"#
        )
    );
    assert_eq!(db.text("SELECT pg_typeof(key), pg_typeof(targets) FROM zdd.mismatches('t') LIMIT 1"), "jsonb|jsonb");
}

/// Also of types that no text rule can handle.
#[test]
fn preview_shows_values_of_all_types() {
    let mut db = Session::new();
    db.run("CREATE TABLE t (a text); INSERT INTO t VALUES ('2024-02-29')");
    let examples = db.text(
        "SELECT examples FROM zdd.preview_split('t', 'a', 'y int, r int4range', split_sql =>
             ARRAY['left(a, 4)::int', 'int4range(left(a, 4)::int, NULL)'], join_sql => 'y::text') WHERE kind = 'matched'",
    );
    assert_eq!(examples, r#"[{"a": "2024-02-29", "r": "[2024,)", "y": "2024"}]"#);
}
