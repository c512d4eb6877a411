//! One value, whatever the rule, takes no more time than the user allows and no more memory than there is.

use std::time::{Duration, Instant};

use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::wait_until;

/// Far more than a check for interrupts takes on a busy machine, far less than the values below take in all.
const PROMPT: Duration = Duration::from_secs(5);

/// Tens of thousands of states, in each of which the match may be at every byte.
const HOSTILE: &str = r"^(?<a>.*)(?:a?b?\b?){5000}x(?<b>.*)$";

/// No word boundaries, but more combinations of states than can ever be built, whether one reads forwards or backwards.
const EXPLOSIVE: &str = r"^(?<a>[ab ]*a)[ab ]{20000}b(?<b>[ab ]*)$";

/// Splits a text of three letters in no order.
const INSERT: &str = "INSERT INTO t SELECT 1, s FROM long";

fn split_by(regex: &str) -> Session {
    let mut db = Session::new();
    db.run("SET zdd.max_source_length = '1MB'");
    db.run("CREATE TABLE t (id int PRIMARY KEY, s text)");
    db.run(
        "CREATE TABLE long AS
         SELECT string_agg(substr('ab ', (i * i * 7919 % 104729 % 3)::int + 1, 1), '' ORDER BY i) AS s
         FROM generate_series(1::bigint, 300000) AS i",
    );
    db.run(&format!(
        "SELECT zdd.split_column('t', 's', columns => 'a text, b text', regex => '{regex}', \"join\" => '{{a}}x{{b}}')"
    ));
    db
}

#[test]
fn a_statement_timeout_ends_a_match() {
    for (regex, value, parts) in [(HOSTILE, "abxc", "ab|c"), (EXPLOSIVE, "c", "~|~")] {
        let mut db = split_by(regex);
        db.run("SET statement_timeout = '200ms'");
        for _ in 0..2 {
            let start = Instant::now();
            let error = db.error(INSERT);
            assert!(error.contains("(57014)"), "{error}");
            assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        }
        // What was under way does no harm to the next value.
        db.run("SET statement_timeout = 0");
        db.run(&format!("INSERT INTO t VALUES (2, '{value}')"));
        assert_eq!(db.text("SELECT id, a, b FROM t"), format!("2|{parts}"), "{regex}");
    }
}

#[test]
fn a_backend_in_a_match_can_be_terminated() {
    let mut db = split_by(HOSTILE);
    let insert = db.another().in_background(INSERT);
    let pid = insert.pid;
    // It gets nowhere near its end.
    let active = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE pid = {pid} AND state = 'active' AND clock_timestamp() - query_start > '300 ms'"
    );
    wait_until("the match is under way", Duration::from_secs(60), || Ok(db.number(&active) == 1)).unwrap();
    let start = Instant::now();
    db.run(&format!("SELECT pg_terminate_backend({pid})"));
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("the backend is gone", Duration::from_secs(60), || Ok(db.number(&gone) == 0)).unwrap();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    let error = insert.join().1.unwrap_err();
    assert!(error.contains("57P01"), "{error}");
    assert_eq!(db.number("SELECT count(*) FROM t"), 0);
}

/// A rule whose join repeats the new value 2,000 times.
fn repeating() -> Session {
    let mut db = Session::new();
    db.run("SET zdd.max_source_length = '1MB'");
    db.run("CREATE TABLE t (id int PRIMARY KEY, s text)");
    db.run(
        "SELECT zdd.split_column('t', 's', columns => 'b text', regex => '^(?<b>(?s:.*))$',
                                 \"join\" => repeat('{b}', 2000))",
    );
    db
}

#[test]
fn a_joined_text_has_a_limit() {
    let mut db = repeating();
    let pid = db.pid();
    for bytes in [600_000_i64, 5_000_000] {
        let error = db.error(&format!("INSERT INTO t (id, b) VALUES (1, repeat('x', {bytes}))"));
        assert!(error.contains("(54000)") && error.contains(&format!("{} bytes", 2000 * bytes)), "{error}");
    }
    assert_eq!(db.number("SELECT count(*) FROM t"), 0);
    db.run("INSERT INTO t (id, b) VALUES (1, 'x')");
    assert_eq!(db.text("SELECT length(s) FROM t"), "2000");
    let error = db.error("UPDATE t SET b = repeat('x', 600000)");
    assert!(error.contains("(54000)"), "{error}");
    assert_eq!(db.text("SELECT length(s), length(b) FROM t"), "2000|1");
    assert_eq!(db.pid(), pid);
}

#[test]
fn what_cannot_be_joined_is_lossy() {
    let mut db = repeating();
    db.run("INSERT INTO t (id, s) VALUES (1, repeat('x', 600000))");
    assert_eq!(db.text("SELECT length(b) FROM t"), "600000");
    assert_eq!(db.text("SELECT rows, in_sync, lossy, diverged FROM zdd.verify('t.s')"), "1|1|1|0");
    db.run("CALL zdd.backfill('t.s')");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
}

#[test]
fn long_values_are_shortened_where_they_are_shown() {
    let mut db = Session::new();
    db.run("CREATE TABLE t (s text); INSERT INTO t SELECT repeat('x', 50000) || i FROM generate_series(1, 9) AS i");
    db.run("INSERT INTO t VALUES (repeat('y', 5000000))");
    let preview = "FROM zdd.preview_split('t', 's', columns => 'a text', regex => '^(?<a>.*)$', \"join\" => '{a}{a}')";
    assert_eq!(db.text(&format!("SELECT kind, rows {preview}")), "matched|9\nunmatched|1\nnull|0\nlossy|9");
    assert!(db.number(&format!("SELECT max(octet_length(examples::text)) {preview}")) < 50_000);
    let shortest = format!("SELECT min(octet_length(examples::text)) {preview} WHERE rows > 0");
    assert!(db.number(&shortest) > 1_000);

    db.run("TRUNCATE t");
    db.run(
        "SELECT zdd.split_column('t', 's', columns => 'a text, b text', regex => '^(?<a>\\w+) (?<b>\\w+)$',
                                 \"join\" => '{a} {b}', unmatched => 'error', conflict => 'error')",
    );
    let error = db.error("INSERT INTO t (s) VALUES (repeat('x', 5000000))");
    assert!(error.contains("(23514)") && error.contains("... (5000000 bytes)"), "{error}");
    let error = db.error("INSERT INTO t (s, a, b) VALUES ('x', repeat('y', 5000000), repeat('z', 5000000))");
    assert!(error.contains("(23514)") && error.matches("... (5000000 bytes)").count() == 2, "{error}");
    assert!(error.len() < 2_000, "{error}");
}

#[test]
fn mismatches_show_whatever_a_table_can_hold() {
    let mut db = Session::new();
    db.run("CREATE TABLE t (id numeric PRIMARY KEY, s text)");
    db.run("INSERT INTO t VALUES (1e500, repeat('-', 5000000)), (0.1234567890123456789012345678901234567890, '-')");
    db.run(
        "SELECT zdd.split_column('t', 's', columns => 'a text, n numeric', regex => '^(?<a>[a-z]*)(?<n>[0-9]+)$',
                                 \"join\" => '{a}{n}', conflict => 'new')",
    );
    let key = "(key -> 'id')::numeric = id AND NOT (key -> 'id')::numeric <> id";
    let mismatches = format!(
        "SELECT count(*), sum(length(m.source)) FROM zdd.mismatches('t.s') AS m JOIN t ON {key} AND m.source = s
         WHERE kind = 'unmatched'"
    );
    assert_eq!(db.text(&mismatches), "2|5000001");
    let deep = "repeat('[', 1000) || repeat(']', 1000)";
    db.run("CREATE TABLE j (s text)");
    db.run(&format!("INSERT INTO j VALUES ({deep})"));
    db.run(
        "SELECT zdd.split_column('j', 's', columns => 'a jsonb, b text', split_sql => '{s::jsonb, null::text}',
                                 join_sql => 'a::text || b', change => 'deep')",
    );
    db.run("CALL zdd.backfill('deep')");
    let same = format!("SELECT kind, key, (targets -> 'a') = ({deep})::jsonb FROM zdd.mismatches('deep')");
    assert_eq!(db.text(&same), "lossy|~|t");
}

#[test]
fn a_rule_has_a_limit() {
    let mut db = Session::new();
    db.run("CREATE TABLE t (s text)");
    for (rule, code) in [
        ("regex => '(?<a>' || repeat('x', 100000) || ')', \"join\" => '{a}'", "(54000)"),
        ("regex => '(?<a>x)', \"join\" => repeat('{a}', 100000)", "(54000)"),
        ("delimiter => repeat('x', 100000)", "(54000)"),
        ("split_sql => ARRAY['s' || repeat('||s', 100000)], join_sql => 'a'", "(54000)"),
        ("split_sql => '{s}', join_sql => 'a' || repeat('||a', 100000)", "(54000)"),
        ("regex => '(?<a>(?:\\pL{100}){100})', \"join\" => '{a}'", "(2201B)"),
    ] {
        let error = db.error(&format!("SELECT zdd.split_column('t', 's', columns => 'a text', {rule})"));
        assert!(error.contains(code) && error.contains("more") && error.contains("the limit of"), "{rule}: {error}");
    }
}
