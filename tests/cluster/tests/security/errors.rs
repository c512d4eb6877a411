//! Errors and views tell a role what it may know, and no more.

use pg_zdd_cluster::session::Session;

use crate::{PLAIN, SHOP, Stage, wait_for_true};

/// A table of the victim with something in it that she may not read, and a change that is expanded. She may write some
/// columns.
#[track_caller]
fn secret(split: &str, grant: &str) -> Stage {
    let mut stage = Stage::new();
    stage.victim.run(
        "CREATE TABLE shop.t (id int PRIMARY KEY, a varchar(20), note text); INSERT INTO shop.t VALUES (1, 'Hush 1', 'n')",
    );
    stage.victim.run(&format!("SELECT zdd.split_column('shop.t', 'a', {split})"));
    stage.victim.run("CALL zdd.backfill('t.a')");
    let grant = stage.names.fill(grant);
    stage.victim.run(&grant);
    stage
}

/// She runs into an error that must not tell what she may not read; the owner is told, and so is she once she may.
#[track_caller]
fn tells_only_those_who_may_read(stage: &mut Stage, sql: &str, code: &str, secret: &str) {
    let told = |session: &mut Session| {
        let error = session.error(sql);
        assert!(error.contains(code), "{error}");
        error.contains(secret)
    };
    assert!(told(&mut stage.victim), "the owner was not told");
    assert!(told(&mut stage.db), "the superuser was not told");
    assert!(!told(&mut stage.mallory), "she was told what she may not read: {}", stage.mallory.error(sql));
    // Some columns are not enough.
    let grant = |what: &str| stage.names.fill(&format!("GRANT SELECT ({what}) ON shop.t TO :mallory"));
    stage.victim.run(&grant("id, note"));
    assert!(!told(&mut stage.mallory), "she was told although she may not read these columns");
    stage.victim.run(&grant("a, b, c"));
    assert!(told(&mut stage.mallory), "she was not told although she may read all");
    stage.victim.run("CREATE POLICY p ON shop.t USING (true); ALTER TABLE shop.t ENABLE ROW LEVEL SECURITY");
    assert!(!told(&mut stage.mallory), "she was told although there is row level security");
}

/// She writes one new column, and the join of both does not fit into the old one.
#[test]
fn value_that_does_not_fit() {
    let mut stage = secret(PLAIN, "GRANT UPDATE (c), SELECT (id) ON shop.t TO :mallory");
    tells_only_those_who_may_read(&mut stage, "UPDATE shop.t SET c = repeat('9', 30)", "(22001)", "Hush");
}

/// She writes the old and one of the new columns, and the other is in the error.
#[test]
fn conflict() {
    let mut stage = secret(
        "columns => 'b text, c text', delimiter => ' ', conflict => 'error'",
        "GRANT UPDATE (a, c) ON shop.t TO :mallory",
    );
    tells_only_those_who_may_read(&mut stage, "UPDATE shop.t SET a = 'Oak 7', c = '8'", "(23514)", "Hush");
}

/// What she has not given comes from a trigger of the victim's.
#[test]
fn value_that_does_not_match() {
    let mut stage = secret(
        r#"columns => 'b text, c text', regex => '^(?<b>\S+) (?<c>\d+)$', "join" => '{b} {c}', unmatched => 'error'"#,
        "GRANT UPDATE (note) ON shop.t TO :mallory",
    );
    stage.victim.run(
        "CREATE FUNCTION shop.secretly() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.a := 'Hush-' || NEW.id; RETURN NEW; END $$;
         CREATE TRIGGER s BEFORE UPDATE ON shop.t FOR EACH ROW EXECUTE FUNCTION shop.secretly()",
    );
    tells_only_those_who_may_read(&mut stage, "UPDATE shop.t SET note = 'x'", "(23514)", "Hush");
}

/// NOT NULL of a new column, as PostgreSQL's own error would tell of the failing row.
#[test]
fn null() {
    let mut stage =
        secret("columns => 'b text, c text NOT NULL', delimiter => ' '", "GRANT UPDATE (c) ON shop.t TO :mallory");
    let error = stage.mallory.error("UPDATE shop.t SET c = NULL");
    assert!(error.contains("(23502)") && !error.contains("Hush"), "{error}");
}

/// The condition of the victim's backfill fails over something that he alone may read.
#[test]
fn error_of_a_condition() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage
        .victim
        .run(&format!("CREATE TABLE shop.secret (it text); SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("SELECT zdd.alter_change('address.a', run_if => '(SELECT count(it::int) FROM shop.secret) >= 0')");
    stage.victim.run("INSERT INTO shop.secret VALUES ('hush'); SELECT zdd.start_backfill('address.a')");
    wait_for_true(&mut stage.db, "SELECT count(*) = 1 FROM zdd.progress WHERE waiting_for IS NOT NULL AND workers > 0");
    stage.run("CREATE ROLE :mallory_monitor LOGIN; GRANT pg_read_all_stats TO :mallory_monitor");
    let monitor = stage.db.another_as(&format!("{}_monitor", stage.names.mallory));
    let mut seen = Vec::new();
    for (who, mut session) in [("she", stage.mallory.another()), ("a monitor", monitor)] {
        let activity = "(SELECT * FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%')";
        for view in ["zdd.progress", "zdd.workers", "zdd.events", activity] {
            let found = session.text(&format!("SELECT string_agg(v::text, '') LIKE '%hush%' FROM {view} AS v"));
            if found == "t" {
                seen.push(format!("{who}: {view}"));
            }
        }
    }
    let pid = stage.db.number("SELECT pid FROM zdd.workers");
    if std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.contains("hush")) {
        seen.push("the operating system's list of processes".to_owned());
    }
    stage.victim.run("SELECT zdd.rollback('address.a')");
    assert!(seen.is_empty(), "the error is seen by {seen:?}");
}

/// The text of the condition is the victim's business.
#[test]
fn text_of_a_condition() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("SELECT zdd.alter_change('address.a', run_if => 'current_user <> ''hush''')");
    let found = "SELECT count(*) FROM zdd.events AS e WHERE e::text LIKE '%hush%'";
    assert_eq!(stage.victim.text(found), "1", "the owner sees it");
    assert_eq!(stage.mallory.text(found), "0", "she sees it");
    stage.mallory.run("SELECT * FROM zdd.progress");
}

/// An error of a worker quotes a row.
#[test]
fn error_of_a_worker() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("ALTER TABLE shop.address ADD CHECK (b <> 'Elm'); SELECT zdd.start_backfill('address.a')");
    wait_for_true(&mut stage.db, "SELECT count(*) = 1 FROM zdd.events WHERE event = 'error'");
    for view in ["zdd.events", "zdd.progress"] {
        let found = format!("SELECT coalesce(string_agg(v::text, '') ~ 'Failing|violates', false) FROM {view} AS v");
        assert_eq!(stage.victim.text(&found), "t", "the owner does not see it in {view}");
        assert_eq!(stage.mallory.text(&found), "f", "she sees it in {view}");
    }
    // Nor when it is over, or later somebody else's.
    stage.victim.run("SELECT zdd.rollback('address.a')");
    stage.run("ALTER TABLE shop.address OWNER TO :mallory");
    let found = "SELECT coalesce(string_agg(v::text, '') ~ 'Failing|violates', false) FROM zdd.events AS v";
    assert_eq!(stage.mallory.text(found), "f", "she sees it as the new owner");
}

/// Her contract in a worker fails for a lock that somebody holds on her table: what he runs is seen by the worker.
#[test]
fn queries_of_those_in_the_way() {
    let mut stage = Stage::with_change(PLAIN);
    let database = stage.db.text("SELECT current_database()");
    stage.run(&format!("ALTER DATABASE {database} SET zdd.lock_patience = '1s'"));
    stage.mallory.run("CALL zdd.backfill('t.a')");
    stage.mallory.run("GRANT SELECT ON evil.t TO PUBLIC");
    stage.victim.run("BEGIN; SELECT 'hush', a FROM evil.t");
    stage.mallory.run("SELECT zdd.start_contract('t.a', force => true)");
    wait_for_true(&mut stage.db, "SELECT count(*) > 0 FROM zdd.events WHERE event IN ('error', 'retried')");
    stage.victim.run("ROLLBACK");
    for view in ["zdd.events", "zdd.progress", "zdd.workers"] {
        let seen = stage.mallory.text(&format!("SELECT string_agg(v::text, '') FROM {view} AS v"));
        assert!(!seen.contains("hush"), "{view}: {seen}");
    }
}

/// The same in her own session, where PostgreSQL hides it by itself; she is told who is in the way.
#[test]
fn queries_of_those_in_the_way_of_a_session() {
    let mut stage = Stage::with_change(PLAIN);
    stage.mallory.run("CALL zdd.backfill('t.a')");
    stage.mallory.run("GRANT SELECT ON evil.t TO PUBLIC; SET zdd.lock_patience = 0");
    let pid = stage.victim.pid().to_string();
    stage.victim.run("BEGIN; SELECT 'hush', a FROM evil.t");
    let error = stage.mallory.error("SELECT zdd.fence('t.a')");
    assert!(error.contains("(55P03)") && error.contains(&pid) && !error.contains("hush"), "{error}");
}

/// What belongs to the library itself is not for everybody.
#[test]
fn tables_and_internal_functions() {
    let mut stage = Stage::with_change(PLAIN);
    let tables = stage.db.text(
        "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'zdd'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1",
    );
    for table in tables.lines() {
        let error = stage.mallory.error(&format!("SELECT * FROM {table}"));
        assert!(error.contains("(42501)"), "{table}: {error}");
    }
    let open = stage.db.text(
        "SELECT p.oid::regprocedure FROM pg_proc AS p WHERE pronamespace = 'zdd'::regnamespace AND proname LIKE '\\_%'
             AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0)",
    );
    assert_eq!(open, "", "internal functions that everybody may call");
    // They still do what they are there for.
    for sql in ["SELECT * FROM zdd.usage", "SELECT * FROM zdd.usage_info", "SELECT * FROM zdd.mismatches('t.a')"] {
        stage.mallory.run(sql);
    }
}
