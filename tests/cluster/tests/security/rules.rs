//! What a rule may be, and what the evaluation of one may take: re-entrancy, memory, time, and values of all kinds.

use std::process::Stdio;
use std::time::Instant;

use pg_zdd_cluster::address::PATIENCE;
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, Stop, wait_until};

use crate::{PLAIN, Stage, TABLE, memory_kb, soon};

/// Rules that give another result in another session, or next year.
#[test]
fn expressions_that_are_not_immutable() {
    let mut stage = Stage::new();
    stage.mallory.run(
        "CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text);
         CREATE FUNCTION evil.stable(text) RETURNS text LANGUAGE sql STABLE RETURN $1;
         CREATE FUNCTION evil.volatile(text) RETURNS text LANGUAGE sql VOLATILE RETURN $1;
         CREATE FUNCTION evil.inlined(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT upper($1)'",
    );
    let mut wrong = Vec::new();
    for expression in [
        "now()::text",
        "clock_timestamp()::text",
        "current_user::text",
        "session_user || #",
        "current_date::text",
        "random()::text",
        "#::date::text",
        "#::timestamptz::text",
        "#::regclass::text",
        "to_char(now(), ''YYYY'')",
        "to_date(#, ''YYYY'')::text",
        "concat(#, ''x'')",
        "format(''%s'', #)",
        "current_setting(''search_path'')",
        "nextval(''evil.ran'')::text",
        "evil.stable(#)",
        "evil.volatile(#)",
        "evil.inlined(#)",
        "CASE WHEN # IS NULL THEN evil.stable(#) ELSE # END",
        "(array[#, now()::text])[1]",
        "pg_backend_pid()::text",
    ] {
        for rule in [
            format!("'b text', split_sql => array['{}'], join_sql => 'b'", expression.replace('#', "a")),
            format!("'b text', split_sql => array['a'], join_sql => '{}'", expression.replace('#', "b")),
        ] {
            match stage.mallory.attempt(&format!("SELECT zdd.split_column('evil.t', 'a', {rule})")) {
                Err(error) if error.contains("(42P17)") && error.contains("HINT") => {}
                Err(error) => wrong.push(format!("{rule}: {error}")),
                Ok(()) => {
                    wrong.push(rule);
                    stage.mallory.run("SELECT zdd.rollback('t.a')");
                }
            }
        }
    }
    for expression in ["lower(a)", "a || ''x''", "split_part(a, '' '', 1)", "a::int::text", "replace(a, ''x'', ''y'')"]
    {
        stage.mallory.run(&format!(
            "SELECT zdd.split_column('evil.t', 'a', 'b text', split_sql => array['{expression}'], join_sql => 'b');
             SELECT zdd.rollback('t.a')"
        ));
    }
    assert!(wrong.is_empty(), "not refused with 42P17 and a hint:\n{}", wrong.join("\n"));
}

/// A domain's default is not given to existing rows, and is no way around a default that is a constant.
#[test]
fn default_of_a_domain() {
    let mut stage = Stage::new();
    stage.mallory.run(TABLE);
    stage.mallory.run("CREATE DOMAIN evil.given AS text DEFAULT 'k'");
    if stage.mallory.attempt("SELECT zdd.split_column('evil.t', 'a', 'b evil.given, c text', delimiter => ' ')").is_ok()
    {
        assert_eq!(stage.mallory.text("SELECT DISTINCT b FROM evil.t"), "~", "existing rows got the default");
        stage.mallory.run("CALL zdd.backfill('t.a')");
        assert_eq!(stage.mallory.text("SELECT DISTINCT b FROM evil.t"), "Elm");
    }
}

/// An error that a user may see, if any: not one of ours, and no crash.
#[track_caller]
fn civil(what: &str, result: Result<(), String>) -> Option<String> {
    let error = result.err()?;
    assert!(!error.contains("(XX") && error.contains("("), "{what}: {error}");
    assert!(!error.contains("(57P0"), "{what}: the server has crashed: {error}");
    Some(error)
}

/// A function of the rule writes to the table that the rule is of, while a row is being split.
#[test]
fn rule_that_writes_to_its_own_table() {
    // A server without its defences does not survive this.
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run(
        "CREATE SEQUENCE evil.ids START 100;
         CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text);
         CREATE FUNCTION evil.insert() RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO evil.t (id, a) VALUES (nextval('evil.ids'), 'inner-' || repeat('z', 5000) || ' ' || repeat('y', 5000));
             INSERT INTO evil.t (id, b, c) VALUES (nextval('evil.ids'), 'joined', repeat('x', 5000));
         END $$;
         CREATE FUNCTION evil.first(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN
             IF $1 LIKE 'outer%' THEN PERFORM evil.insert(); END IF;
             RETURN split_part($1, ' ', 1);
         END $$;
         CREATE FUNCTION evil.joined(text, text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN
             IF $1 LIKE 'outer%' THEN PERFORM evil.insert(); END IF;
             RETURN $1 || ' ' || $2;
         END $$;
         SELECT zdd.split_column('evil.t', 'a', 'b text, c text, d text',
             split_sql => array['evil.first(a)', 'split_part(a, '' '', 2)', 'evil.first(a)'],
             join_sql => 'evil.joined(b, c)');",
    );
    let pid = stage.mallory.pid();
    let same = "SELECT b, c, d FROM evil.t WHERE id = 1";
    stage.mallory.run("INSERT INTO evil.t (id, a) VALUES (1, 'outer-1 one')");
    assert_eq!(stage.mallory.text(same), "outer-1|one|outer-1");
    stage.mallory.run("UPDATE evil.t SET a = 'outer-2 two' WHERE id = 1");
    assert_eq!(stage.mallory.text(same), "outer-2|two|outer-2");
    stage.mallory.run("UPDATE evil.t SET b = 'outer-3', c = 'three' WHERE id = 1");
    assert_eq!(stage.mallory.text("SELECT a FROM evil.t WHERE id = 1"), "outer-3 three");
    stage
        .mallory
        .run("INSERT INTO evil.t (id, a) SELECT i, 'outer-' || i || ' ' || i FROM generate_series(2, 50) AS i");
    let wrong = "SELECT count(*) FROM evil.t WHERE id BETWEEN 2 AND 50 AND (b, c, d) IS DISTINCT FROM
        ('outer-' || id, id::text, 'outer-' || id)";
    assert_eq!(stage.mallory.text(wrong), "0");
    let inner = "SELECT count(*) FROM evil.t WHERE id >= 100 AND a LIKE 'inner%' AND (b, c) IS DISTINCT FROM
        ('inner-' || repeat('z', 5000), repeat('y', 5000))";
    assert_eq!(stage.mallory.text(inner), "0");
    // Those who look at rows one after the other.
    for sql in ["SELECT * FROM zdd.verify('t.a')", "SELECT * FROM zdd.mismatches('t.a')", "CALL zdd.backfill('t.a')"] {
        civil(sql, stage.mallory.attempt(sql));
    }
    assert_eq!(stage.mallory.pid(), pid);
}

/// The same without an end.
#[test]
fn rule_without_an_end() {
    // A server without its defences does not survive this.
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run(
        "CREATE TABLE evil.t (id int, a text, note text);
         CREATE FUNCTION evil.insert(text) RETURNS void LANGUAGE sql AS $$ INSERT INTO evil.t (id, a) VALUES (1, $1) $$;
         CREATE FUNCTION evil.endless(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM evil.insert($1); RETURN $1; END $$;
         SELECT zdd.split_column('evil.t', 'a', 'b text', split_sql => array['evil.endless(a)'], join_sql => 'b')",
    );
    let error = stage.mallory.error("INSERT INTO evil.t (id, a) VALUES (1, 'x')");
    assert!(error.contains("(54001)"), "{error}");
    assert_eq!(stage.mallory.text("SELECT count(*) FROM evil.t"), "0");
}

/// A function of the rule changes, drops or works on what the rule is of.
#[test]
fn rule_that_pulls_the_rug() {
    // A server without its defences does not survive this.
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run(
        "CREATE TABLE evil.todo (it text);
         CREATE FUNCTION evil.once() RETURNS void LANGUAGE plpgsql AS $$
         DECLARE
             sql text;
         BEGIN
             DELETE FROM evil.todo RETURNING it INTO sql;
             IF sql IS NOT NULL THEN EXECUTE sql; END IF;
         END $$;
         CREATE FUNCTION evil.does(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM evil.once(); RETURN $1; END $$;",
    );
    let make = "SET client_min_messages = warning; DROP TABLE IF EXISTS evil.t; DROP FUNCTION IF EXISTS evil.also(text);
         CREATE FUNCTION evil.also(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1;
         CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text);
         INSERT INTO evil.t SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, 5) AS i;
         SELECT zdd.split_column('evil.t', 'a', 'b text, c text', split_sql => array['split_part(evil.does(a), '' '', 1)',
             'split_part(evil.also(a), '' '', 2)'], join_sql => 'b || '' '' || evil.does(c)')";
    let todo = [
        "ALTER TABLE evil.t ADD COLUMN more text",
        "DROP TABLE evil.t",
        "TRUNCATE evil.t",
        "UPDATE evil.t SET a = 'Oak 1'",
        "DELETE FROM evil.t",
        "CREATE OR REPLACE FUNCTION evil.also(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1 || '1'",
        "DROP FUNCTION evil.also(text) CASCADE",
        "SELECT zdd.rollback('t.a')",
        "SELECT zdd.fence('t.a')",
        "SELECT zdd.alter_change('t.a', conflict => 'old')",
        "SELECT zdd.split_column('evil.t', 'note', 'n text', delimiter => ' ')",
        "SELECT * FROM zdd.mismatches('t.a')",
        "CALL zdd.backfill('t.a')",
        "SELECT zdd.start_backfill('t.a')",
        "SELECT zdd.sync()",
        "SELECT zdd.guard()",
        "SELECT pg_advisory_unlock_all()",
        "COMMIT",
        "DROP EXTENSION pg_zdd CASCADE",
    ];
    for sql in todo {
        for entry in [
            "INSERT INTO evil.t (id, a) VALUES (11, 'Oak 1')",
            "UPDATE evil.t SET a = 'Ash 2' WHERE id = 1",
            "SELECT * FROM zdd.mismatches('t.a')",
            "CALL zdd.backfill('t.a')",
            "CALL zdd.repair('t.a', 'old')",
        ] {
            let what = format!("{entry}, with {sql}");
            stage.mallory.run(make);
            stage.mallory.run(&format!("DELETE FROM evil.todo; INSERT INTO evil.todo VALUES ($todo${sql}$todo$)"));
            civil(&what, stage.mallory.attempt(entry));
            let alive = stage.mallory.attempt("RESET ALL; DELETE FROM evil.todo");
            assert!(alive.is_ok(), "{what}: {alive:?}");
        }
    }
}

/// A session that writes row after row, each in a transaction of its own, through SQL rules.
#[test]
fn memory_of_transactions() {
    let mut stage = Stage::new();
    stage.mallory.run(
        "CREATE TABLE evil.t (id int, a text, note text);
         CREATE FUNCTION evil.f(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END';
         SELECT zdd.split_column('evil.t', 'a', 'b text, c text', split_sql => array['evil.f(split_part(a, '' '', 1))',
             'evil.f(split_part(a, '' '', 2))'], join_sql => 'evil.f(b) || '' '' || c')",
    );
    let pid = stage.mallory.pid();
    let mut write = |times| {
        for _ in 0..times {
            stage.mallory.run("INSERT INTO evil.t (id, a) VALUES (1, 'Elm 1')");
        }
    };
    write(200);
    let before = memory_kb(pid, "RssAnon");
    write(2000);
    let kept = memory_kb(pid, "RssAnon") - before;
    assert!(kept < 4096, "{kept} kB are kept");
}

/// Rows whose rule raises an error inside, which takes a subtransaction each.
#[test]
fn memory_of_errors() {
    const ROWS: i64 = 2000;
    let rule = "'b text', split_sql => array['evil.f(a::int::text)'], join_sql => 'b'";
    for raises in ["RETURN $1", "RAISE 'no'"] {
        let mut stage = Stage::new();
        stage.mallory.run(&format!(
            "CREATE TABLE evil.t (id int, a text, note text);
             CREATE FUNCTION evil.f(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN {}; END';
             INSERT INTO evil.t SELECT i, {} FROM generate_series(1, {ROWS}) AS i;
             SELECT zdd.split_column('evil.t', 'a', {rule})",
            raises.replace('\'', "''"),
            if raises.starts_with("RAISE") { "i::text" } else { "'x' || i" },
        ));
        for sql in ["INSERT INTO evil.t (id, a) SELECT id + 10000, a FROM evil.t", "CALL zdd.backfill('t.a')"] {
            let mut session = stage.mallory.another();
            let pid = session.pid();
            session.run("SELECT count(*) FROM evil.t; SELECT * FROM zdd.changes");
            let before = memory_kb(pid, "VmHWM");
            session.run(sql);
            let peak = memory_kb(pid, "VmHWM") - before;
            assert!(peak < 48 << 10, "{raises}, {sql}: {peak} kB");
        }
    }
}

/// A cluster whose processes may not have more than 800 MB each.
fn with_little_memory() -> Cluster {
    let cluster = Cluster::start(&[("shared_buffers", "16MB")]).expect("a cluster");
    cluster.stop(Stop::Fast).expect("stopped");
    let mut start = cluster.server_tool("/bin/sh");
    start.args(["-c", "ulimit -v 800000 && exec \"$@\"", "sh"]).arg(cluster.bin_dir().join("pg_ctl"));
    start.args(["start", "-w", "-s", "-D"]).arg(cluster.pgdata()).arg("-l").arg(cluster.log());
    let started = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(started.is_ok_and(|status| status.success()), "{}", cluster.log_tail(10));
    cluster
}

/// A template that makes much of little, in a server whose processes may not have so much memory.
#[test]
fn text_without_bounds() {
    let cluster = with_little_memory();
    let mut stage = Stage::on(&cluster);
    for (number, copies) in [(1, 110), (2, 60), (3, 2000)] {
        stage.mallory.run(&format!(
            r#"CREATE TABLE evil.t{number} (id int, a text); SELECT zdd.split_column('evil.t{number}', 'a', 'b text, c text',
                regex => '^(?<b>.)(?<c>.)?$', "join" => '{}')"#,
            "[{b}]".repeat(copies) + "[{c}]"
        ));
    }
    stage.mallory.run(
        "CREATE TABLE evil.d (id int, a text);
         SELECT zdd.split_column('evil.d', 'a', 'b text, c text, d text', delimiter => repeat('-', 10000))",
    );
    let mut witness = stage.db.another();
    let started = witness.text("SELECT pg_postmaster_start_time()");
    let mut wrong = Vec::new();
    for (sql, codes) in [
        ("INSERT INTO evil.t1 (id, b) VALUES (1, repeat('x', 10000000))", &["(54000)"][..]),
        ("INSERT INTO evil.t3 (id, b) VALUES (1, repeat('x', 5000000))", &["(54000)"]),
        ("INSERT INTO evil.t2 (id, b) VALUES (1, repeat('x', 10000000))", &["(53200)", "(54000)"]),
        (
            "INSERT INTO evil.d (id, b, c, d) SELECT 1, repeat('x', 500000000), 'y', repeat('z', 600000000)",
            &["(53200)", "(54000)"],
        ),
    ] {
        let mut session = stage.mallory.another();
        let error = session.error(sql);
        if !codes.iter().any(|code| error.contains(code)) {
            wrong.push(format!("{sql}: {error}"));
        }
        if error.contains("closed") {
            wait_until("all are gone", PATIENCE, || Ok(witness.attempt("SELECT 1").is_err())).expect("gone");
            wait_until("the server is there again", PATIENCE, || Ok(stage.db.connects())).expect("up");
            (witness, stage.mallory) = (witness.another(), stage.mallory.another());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(witness.text("SELECT pg_postmaster_start_time()"), started);
}

/// Regexes that are beyond the automaton, and a value for which they take long.
#[test]
fn regex_that_takes_long() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.t (id int, a text)");
    let mut wrong = Vec::new();
    // Word boundaries are beyond the one automaton, and beside letters that are not ASCII beyond the other too.
    for (name, regex) in [
        ("no match", r"(?<b>(?:é?){1000}\b[xy])(?<c>x)?"),
        ("a match", r"^(?<b>(?:é?){6000}\b)(?<c>é*!)$"),
        ("a large counter", r"(?<b>\b(?:é|è){4000}[xy])(?<c>x)?"),
    ] {
        let value = "repeat('é', 32000) || '!'";
        let split = format!(
            r#"SELECT zdd.split_column('evil.t', 'a', 'b text, c text', regex => '{regex}', "join" => '{{b}}[{{c}}]')"#
        );
        let begun = Instant::now();
        if let Err(error) = stage.mallory.attempt(&split) {
            assert!(error.contains("regex") || error.contains("regular expression"), "{name}: {error}");
            soon(begun, "a refusal");
            continue;
        }
        stage.mallory.run("SET statement_timeout = '200ms'");
        let begun = Instant::now();
        let _ = stage.mallory.attempt(&format!("INSERT INTO evil.t (id, a) VALUES (1, {value})"));
        if begun.elapsed().as_millis() > 1000 {
            wrong.push(format!("{name}: {:?} with a timeout of 200 ms", begun.elapsed()));
        }
        stage.mallory.run("SET statement_timeout = '120s'; SELECT zdd.rollback('t.a')");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A session that a superuser ends in the middle of such a value is ended.
#[test]
fn regex_that_is_terminated() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.t (id int, a text)");
    let split = r#"SELECT zdd.split_column('evil.t', 'a', 'b text, c text',
        regex => '(?<b>(?:é?){1000}\b[xy])(?<c>x)?', "join" => '{b}[{c}]')"#;
    if stage.mallory.attempt(split).is_err() {
        return;
    }
    let insert = "INSERT INTO evil.t (id, a) SELECT i, repeat('é', 32000) || '!' FROM generate_series(1, 10) AS i";
    let busy = stage.mallory.another().in_background(insert);
    let active =
        format!("SELECT state = 'active' AND query LIKE 'INSERT%' FROM pg_stat_activity WHERE pid = {}", busy.pid);
    crate::wait_for_true(&mut stage.db, &active);
    let begun = Instant::now();
    let ended = stage.db.text(&format!("SELECT pg_terminate_backend({}, 2000)", busy.pid));
    assert!(ended == "t" && begun.elapsed().as_millis() < 2000, "it goes on after {:?}", begun.elapsed());
}

/// Keys that are beyond what other programs take for numbers, or that are deep.
#[test]
fn keys_of_mismatches() {
    let mut stage = Stage::new();
    stage.mallory.run(
        "CREATE TABLE evil.n (k numeric PRIMARY KEY, a text);
         INSERT INTO evil.n VALUES (1e500, 'Elm 1'), (12345678901234567890123, 'Elm 2'), (-0.00000000000000000000001, 'Elm 3'),
             ('NaN', 'Elm 4'), ('Infinity', 'Elm 5'), (9007199254740993, 'Elm 6');
         CREATE TABLE evil.j (k jsonb PRIMARY KEY, a text);
         INSERT INTO evil.j VALUES ((repeat('[', 400) || 'null' || repeat(']', 400))::jsonb, 'Elm 1'),
             ((repeat('[', 600) || 'null' || repeat(']', 600))::jsonb, 'Elm 2'), ('{\"x\": 1e400}', 'Elm 3'), ('\"\"', 'Elm 4');
         CREATE TABLE evil.f (k float8 PRIMARY KEY, a text); INSERT INTO evil.f VALUES ('NaN', 'Elm 1'), ('-Infinity', 'Elm 2');
         CREATE TABLE evil.x (k bytea PRIMARY KEY, a text); INSERT INTO evil.x VALUES ('\\x00ff', 'Elm 1');
         CREATE TABLE evil.r (k int4range PRIMARY KEY, a text, l text); INSERT INTO evil.r VALUES ('[1,)', 'Elm 1')",
    );
    for table in ["n", "j", "f", "x", "r"] {
        stage.mallory.run(&format!("SELECT zdd.split_column('evil.{table}', 'a', {PLAIN})"));
        let mismatches =
            format!("SELECT count(*) FROM zdd.mismatches('{table}.a') AS m JOIN evil.{table} AS t ON m.ctid = t.ctid");
        let rows = stage.mallory.text(&format!("SELECT count(*) FROM evil.{table}"));
        let found = stage.mallory.attempt(&mismatches);
        assert!(found.is_ok(), "{table}: {found:?}");
        assert_eq!(stage.mallory.text(&mismatches), rows, "{table}");
    }
    let exact = "SELECT count(*) FROM zdd.mismatches('n.a') AS m JOIN evil.n AS t ON m.ctid = t.ctid
        WHERE m.key->>'k' = t.k::text";
    assert_eq!(stage.mallory.text(exact), "6", "{}", stage.mallory.text("SELECT key FROM zdd.mismatches('n.a')"));
    let exact =
        "SELECT count(*) FROM zdd.mismatches('j.a') AS m JOIN evil.j AS t ON m.ctid = t.ctid WHERE m.key->'k' = t.k";
    assert_eq!(stage.mallory.text(exact), "4");
}

/// Names that look like what a statement is put together from.
#[test]
fn names_that_are_text_of_statements() {
    let mut stage = Stage::new();
    let ident = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    for name in ["$1::tid", "%s", "a\"b", "it's", "\\", "; DROP TABLE evil.log; --", "ähm €"] {
        let (table, key, old) = (format!("evil.{}", ident(name)), ident(name), format!("old {name}"));
        let new = ident(&format!("new {name}"));
        stage.mallory.run(&format!(
            "CREATE TABLE {table} ({key} int PRIMARY KEY, {} text);
             INSERT INTO {table} SELECT i, 'Elm ' || i FROM generate_series(1, 3) AS i;
             SELECT zdd.split_column({}, {}, columns => {}, delimiter => ' ', change => 'x', indexes => array['also'])",
            ident(&old),
            literal(&table),
            literal(&old),
            literal(&format!("{new} text, also text")),
        ));
        let missed = "SELECT count(*), count(DISTINCT key), count(DISTINCT source) FROM zdd.mismatches('x')";
        assert_eq!(stage.mallory.text(missed), "3|3|3", "{name}");
        for sql in [
            "SELECT zdd.start_backfill('x')",
            "CALL zdd.wait_for('x', 'expanded', '60s')",
            "CALL zdd.repair('x', 'new')",
            "SELECT zdd.fence('x')",
            "SELECT zdd.unfence('x')",
            "CALL zdd.contract('x', force => true)",
        ] {
            let done = stage.mallory.attempt(sql);
            assert!(done.is_ok(), "{name}: {sql}: {done:?}\n{}", stage.db.text("SELECT * FROM zdd.events"));
        }
        let all = format!("SELECT string_agg({new} || also, ' ' ORDER BY also) FROM {table}");
        assert_eq!(stage.mallory.text(&all), "Elm1 Elm2 Elm3", "{name}");
        stage.mallory.run(&format!("DROP TABLE {table}"));
    }
    stage.mallory.run("SELECT * FROM evil.log");
}

/// Sessions with settings that change how names and texts are read and written work as others do.
#[test]
fn settings_of_the_session() {
    let mut stage = Stage::new();
    let mut wrong = Vec::new();
    for set in [
        "quote_all_identifiers = on",
        "standard_conforming_strings = off",
        "bytea_output = escape",
        "transform_null_equals = on",
        "client_encoding = LATIN1",
        "default_transaction_isolation = serializable",
    ] {
        stage
            .mallory
            .run("SET client_min_messages = warning; DROP TABLE IF EXISTS evil.t; DROP DOMAIN IF EXISTS evil.word");
        stage.mallory.run("CREATE DOMAIN evil.word AS text; CREATE TABLE evil.t (id int PRIMARY KEY, a evil.word)");
        let split = "SELECT zdd.split_column('evil.t', 'a', 'b evil.word, c numeric(9,2)', delimiter => ' ')";
        let mut session: Session = stage.mallory.another();
        session.run(&format!("SET {set}"));
        // Made here and used there, and the other way round.
        for in_session in [true, false] {
            if in_session {
                session.run(split)
            } else {
                stage.mallory.run(split)
            }
            for sql in [
                "INSERT INTO evil.t (id, a) VALUES (1, 'Elm 1')",
                "CREATE TABLE evil.another (id int)",
                "ALTER TABLE evil.t ADD COLUMN d text",
                "DROP TABLE evil.another",
                "SELECT * FROM zdd.verify('t.a')",
                "SELECT * FROM zdd.mismatches('t.a')",
                "SELECT * FROM zdd.progress",
                "SELECT zdd.alter_change('t.a', conflict => 'old', batch_target => '10ms')",
                "CALL zdd.backfill('t.a')",
                "SELECT zdd.fence('t.a')",
                "SELECT zdd.unfence('t.a')",
            ] {
                for session in [&mut session, &mut stage.mallory] {
                    if let Err(error) = session.attempt(sql)
                        // The other session has done it.
                        && !["already", "does not exist", "(23505)"].iter().any(|it| error.contains(it))
                    {
                        wrong.push(format!("{set}: {sql}: {error}"));
                    }
                }
            }
            if stage.mallory.text("SELECT a, b, c FROM evil.t") != "Elm 1|Elm|1.00" {
                wrong.push(format!("{set}: {}", stage.mallory.text("TABLE evil.t")));
            }
            stage
                .mallory
                .run("SELECT zdd.rollback('t.a'); DELETE FROM evil.t; ALTER TABLE evil.t DROP COLUMN IF EXISTS d");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
