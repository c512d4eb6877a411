//! Availability: the guard looks after all changes of a database, and nobody's change stops the DDL of others.

use std::time::Instant;

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::session::{Session, shared_cluster};

use crate::{PLAIN, SHOP, Stage, memory_kb, soon};

/// What everybody does all day, in a schema.
fn ddl(schema: &str) -> Vec<String> {
    [
        "CREATE FUNCTION @.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION @.f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "ALTER FUNCTION @.f() STABLE",
        "CREATE TABLE @.x (id int PRIMARY KEY, a text)",
        "ALTER TABLE @.x ADD COLUMN b text",
        "CREATE INDEX x_a ON @.x (a)",
        "CREATE TRIGGER t BEFORE UPDATE ON @.x FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE @.x DROP COLUMN b",
        "CREATE VIEW @.v AS SELECT a FROM @.x",
        "CREATE DOMAIN @.d AS text",
        "ALTER DOMAIN @.d ADD CHECK (VALUE <> '')",
        "CREATE TYPE @.e AS ENUM ('x')",
        "GRANT SELECT ON @.x TO PUBLIC",
        "COMMENT ON TABLE @.x IS 'x'",
        "ALTER TABLE @.x RENAME TO y",
        "DROP TRIGGER t ON @.y",
        "DROP VIEW @.v",
        "DROP TYPE @.e",
        "DROP DOMAIN @.d",
        "DROP FUNCTION @.f()",
        "DROP TABLE @.y",
        "CREATE TEMPORARY TABLE x (a text)",
        "DROP TABLE x",
    ]
    .iter()
    .map(|sql| sql.replace('@', schema))
    .collect()
}

/// The victim and a superuser do their DDL, in sessions of their own, and it takes no time.
#[track_caller]
fn others_go_on(stage: &Stage) {
    let mut failed = Vec::new();
    for (mut session, schema) in [(stage.victim.another(), "shop"), (stage.db.another(), "public")] {
        session.run("SET statement_timeout = '2s'; SET client_min_messages = warning");
        for sql in ddl(schema) {
            if let Err(error) = session.attempt(&sql) {
                failed.push(format!("{sql}: {error}"));
                // One that hangs will do.
                break;
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Her change has a rule of SQL, over a function of hers with this body.
#[track_caller]
fn with_rule_function(body: &str) -> Stage {
    let mut stage = Stage::new();
    stage.mallory.run(&format!(
        "CREATE TABLE evil.is_on (it boolean); GRANT SELECT ON evil.is_on TO PUBLIC;
         CREATE FUNCTION evil.f(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN
             IF EXISTS (SELECT FROM evil.is_on) THEN {body}; END IF;
             RETURN $1;
         END $$;
         CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text);
         SELECT zdd.split_column('evil.t', 'a', 'b text', split_sql => array['evil.f(a) || substr(evil.f(''k''), 2)'],
             join_sql => 'b')"
    ));
    stage
}

/// The rule calls a function of her session alone, which other sessions do not have.
#[test]
fn rule_over_a_temporary_function() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)");
    stage.mallory.run("CREATE FUNCTION pg_temp.f(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1");
    let _ = stage.mallory.attempt(
        "SELECT zdd.split_column('evil.t', 'a', 'b text', split_sql => array['pg_temp.f(a)'], join_sql => 'b')",
    );
    others_go_on(&stage);
}

/// A function of the rule begins to raise errors.
#[test]
fn rule_that_raises() {
    for error in
        ["RAISE 'no'", "RAISE SQLSTATE '57014'", "RAISE SQLSTATE 'XX000'", "PERFORM 1 / 0", "PERFORM evil.f($1)"]
    {
        let mut stage = with_rule_function(error);
        stage.mallory.run("INSERT INTO evil.is_on VALUES (true)");
        others_go_on(&stage);
    }
}

/// A function of the rule begins to sleep.
#[test]
fn rule_that_sleeps() {
    let mut stage = with_rule_function("PERFORM pg_sleep(60)");
    stage.mallory.run("INSERT INTO evil.is_on VALUES (true)");
    others_go_on(&stage);
}

/// A default begins to sleep.
#[test]
fn default_that_sleeps() {
    let mut stage = with_rule_function("PERFORM pg_sleep(60)");
    stage.mallory.run("ALTER TABLE evil.t ALTER a SET DEFAULT evil.f('k'); INSERT INTO evil.is_on VALUES (true)");
    others_go_on(&stage);
}

/// The right to call a function of the rule is taken from everybody, herself included.
#[test]
fn rule_that_nobody_may_call() {
    let mut stage = with_rule_function("NULL");
    let revoke = stage.names.fill("REVOKE EXECUTE ON FUNCTION evil.f(text) FROM PUBLIC, :mallory");
    let _ = stage.mallory.attempt(&revoke);
    let _ = stage.mallory.attempt(&stage.names.fill("REVOKE USAGE ON SCHEMA evil FROM PUBLIC, :mallory"));
    others_go_on(&stage);
}

/// She holds a lock on her own table, or what her transaction has done to her change is not committed.
#[test]
fn transactions_of_hers() {
    let mut stage = Stage::with_change(PLAIN);
    stage.mallory.run("CREATE TABLE evil.more (id int, a text)");
    for sql in [
        "LOCK TABLE evil.t IN ACCESS EXCLUSIVE MODE".to_owned(),
        "SELECT zdd.alter_change('t.a', conflict => 'old')".to_owned(),
        format!("SELECT zdd.split_column('evil.more', 'a', {PLAIN})"),
        "SELECT zdd.rollback('t.a')".to_owned(),
        "DROP TABLE evil.t".to_owned(),
        "CREATE TABLE evil.another (id int)".to_owned(),
        "SELECT zdd.start_backfill('t.a')".to_owned(),
    ] {
        stage.mallory.run(&format!("BEGIN; {sql}"));
        others_go_on(&stage);
        stage.mallory.run("ROLLBACK");
    }
}

/// Her rule is larger than anything that has to be read for the DDL of others.
#[test]
fn rule_of_great_size() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)");
    let _ = stage.mallory.attempt(
        "SELECT zdd.split_column('evil.t', 'a', 'b text, c text', delimiter => ' ', \"join\" => '{b} {c}' || repeat('x', 60000000))",
    );
    others_go_on(&stage);
    // Nor for the rows of others.
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("SET statement_timeout = '5s'");
    stage.victim.run("CALL zdd.backfill('address.a')");
}

/// After a restore, the guard writes down which changes are complete; she does not commit what she has it write.
#[test]
fn transaction_of_hers_after_a_restore() {
    let mut stage = Stage::with_change(PLAIN);
    // This is where a restore leaves it, if it is written down at all.
    let _ = stage.db.attempt("DELETE FROM zdd.guarded");
    stage.mallory.run("BEGIN; CREATE TABLE evil.another (id int)");
    others_go_on(&stage);
    stage.mallory.run("ROLLBACK");
}

/// What looks after all changes is not for everybody to call.
#[test]
fn guard_on_demand() {
    let mut stage = Stage::with_change(PLAIN);
    let functions = stage.db.text("SELECT oid::regprocedure FROM pg_proc WHERE proname = '_check_guard'");
    for function in functions.lines() {
        let arguments = ["null", "array[null]::oid[]", "array[0]::oid[]", "'{}'"];
        for argument in arguments {
            let error = stage.mallory.error(&format!("SELECT zdd._check_guard({argument})"));
            assert!(error.contains("(42501)"), "{function}: {error}");
        }
    }
    // Those who may must not be told of errors inside.
    for argument in
        ["null", "array[null]::oid[]", "array[null, 0]::oid[], array[null]::oid[], array[null]::oid[], array[null]"]
    {
        if let Err(error) = stage.db.attempt(&format!("SELECT zdd._check_guard({argument})")) {
            assert!(!error.contains("(XX"), "{argument}: {error}");
        }
    }
}

/// Her own DDL is refused where it breaks her change, also while she holds the rule's function back.
#[test]
fn guard_still_guards() {
    let mut stage = with_rule_function("RAISE 'no'");
    stage.mallory.run("INSERT INTO evil.is_on VALUES (true)");
    for sql in [
        "ALTER TABLE evil.t DROP COLUMN a",
        "ALTER TABLE evil.t RENAME COLUMN b TO c",
        "ALTER TABLE evil.t ALTER b TYPE varchar(3)",
        "ALTER TABLE evil.t DISABLE TRIGGER ALL",
        "DROP TRIGGER \"~zdd_t.a\" ON evil.t",
    ] {
        let error = stage.mallory.error(sql);
        assert!(error.contains("(55006)"), "{sql}: {error}");
    }
    stage.mallory.run("DROP TABLE evil.t");
    assert_eq!(stage.db.text("SELECT phase FROM zdd.changes"), "rolled_back");
}

/// DDL elsewhere leaves nothing behind in the session, however many changes there are.
#[test]
fn memory_of_ddl_elsewhere() {
    let mut stage = Stage::new();
    for number in 0..20 {
        stage.mallory.run(&format!(
            "CREATE TABLE evil.t{number} (id int, a text);
             SELECT zdd.split_column('evil.t{number}', 'a', 'b text', split_sql => array['lower(a)'], join_sql => 'b')"
        ));
    }
    let mut session = stage.victim.another();
    let pid = session.pid();
    let ddl = "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION shop.f()";
    let mut some = |times| (0..times).for_each(|_| session.run(ddl));
    some(30);
    let before = memory_kb(pid, "RssAnon");
    some(200);
    let kept = memory_kb(pid, "RssAnon") - before;
    assert!(kept < 2048, "{kept} kB are kept");
}

/// She switches the guard off where a superuser's setting can be set by others.
#[test]
fn guard_switched_off() {
    let mut stage = Stage::with_change(PLAIN);
    let database = stage.db.text("SELECT current_database()");
    stage.run(&format!("ALTER DATABASE {database} OWNER TO :mallory"));
    for sql in [
        "SET zdd.guard = off".to_owned(),
        "SELECT set_config('zdd.guard', 'off', true)".to_owned(),
        format!("ALTER DATABASE {database} SET zdd.guard = off"),
        stage.names.fill("ALTER ROLE :mallory SET zdd.guard = off"),
        "CREATE FUNCTION evil.off() RETURNS void LANGUAGE sql SET zdd.guard = off AS ''".to_owned(),
        "SET zdd.quiet_period = 0".to_owned(),
        "SET zdd.max_workers = 64".to_owned(),
    ] {
        if stage.mallory.attempt(&sql).is_ok() && stage.mallory.attempt("SELECT evil.off()").is_ok() {
            let error = stage.mallory.another().error("ALTER TABLE evil.t DROP COLUMN b");
            assert!(error.contains("(55006)"), "{sql}: {error}");
        }
        let error = stage.mallory.another().error("ALTER TABLE evil.t DROP COLUMN b");
        assert!(error.contains("(55006)"), "{sql}: {error}");
    }
}

/// On a server that does not preload pg_zdd, its settings are anybody's until its library is there.
#[test]
fn guard_switched_off_before_it_is_loaded() {
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run("CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)");
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN})"));
    for set in ["SET zdd.guard = off", "SELECT set_config('zdd.guard', 'off', false)"] {
        let mut fresh: Session = stage.mallory.another();
        let _ = fresh.attempt(set);
        let error = fresh.error("ALTER TABLE evil.t DROP COLUMN b");
        assert!(error.contains("(55006)"), "{set}: {error}");
    }
}

/// She drops what is hers all at once, with or without the victim's things being in it.
#[test]
fn everything_is_dropped() {
    let mut stage = Stage::with_change(PLAIN);
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.mallory.run("BEGIN; LOCK TABLE evil.t IN ACCESS EXCLUSIVE MODE");
    let begun = Instant::now();
    stage.run("SET statement_timeout = '5s'; DROP OWNED BY :victim CASCADE");
    soon(begun, "DROP OWNED");
    stage.mallory.run("ROLLBACK");
    let phases = "SELECT string_agg(phase, ' ' ORDER BY change) FROM zdd.changes";
    assert_eq!(stage.db.text(phases), "rolled_back expanding");
    stage.run("DROP OWNED BY :mallory CASCADE");
    assert_eq!(stage.db.text(phases), "rolled_back rolled_back");
}

/// What the script of an extension does to its own is its business, also when a rule uses it; what it does to a table with a
/// change is not.
#[test]
fn scripts_of_extensions() {
    let mut stage = Stage::new();
    let name = format!("pg_zdd_scripts_{}", std::process::id());
    let dir = stage.db.text("SELECT setting || '/extension' FROM pg_config() WHERE name = 'SHAREDIR'");
    let files = [
        (".control", "default_version = '1'"),
        ("--1.sql", "CREATE FUNCTION public.of_script(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1;"),
        ("--1--2.sql", "ALTER FUNCTION public.of_script(text) COST 7;"),
        ("--2--3.sql", "ALTER TABLE evil.t ALTER COLUMN b SET NOT NULL;"),
        ("--2--4.sql", "CREATE TABLE public.of_script () INHERITS (evil.t);"),
        ("--2--5.sql", "ALTER TABLE evil.t DROP COLUMN b;"),
        ("--2--6.sql", "CREATE TABLE public.of_script (id int PRIMARY KEY); ALTER TABLE evil.t ADD COLUMN more text;"),
    ]
    .map(|(end, text)| (format!("{dir}/{name}{end}"), text));
    for (file, text) in &files {
        std::fs::write(file, text).expect("a file of the server");
    }
    stage.db.run(&format!("CREATE EXTENSION {name}"));
    stage.mallory.run(
        "CREATE TABLE evil.t (id int PRIMARY KEY, a text);
         SELECT zdd.split_column('evil.t', 'a', 'b text', split_sql => array['public.of_script(a)'], join_sql => 'b')",
    );
    let mut update = |version| stage.db.attempt(&format!("ALTER EXTENSION {name} UPDATE TO '{version}'"));
    assert_eq!(update("2"), Ok(()));
    let refused = ["3", "4", "5"].map(|version| update(version).expect_err("a script that breaks the change"));
    assert_eq!(update("6"), Ok(()));
    for (file, _) in &files {
        std::fs::remove_file(file).expect("a file of the server");
    }
    for error in refused {
        assert!(error.contains("this would break the active change"), "{error}");
    }
}

/// Many tables come in one statement.
#[test]
fn foreign_schema_comes_in() {
    let mut stage = Stage::with_change(PLAIN);
    stage.run(
        "CREATE SCHEMA far; CREATE TABLE far.x (id int PRIMARY KEY, a text); CREATE TABLE far.y (a text DEFAULT 'y');
         CREATE SCHEMA near; CREATE EXTENSION postgres_fdw",
    );
    let database = stage.db.text("SELECT current_database()");
    let socket = shared_cluster().socket_dir().display();
    stage.run(&format!(
        "CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{socket}', dbname '{database}');
         CREATE USER MAPPING FOR postgres SERVER self OPTIONS (user 'postgres');
         IMPORT FOREIGN SCHEMA far FROM SERVER self INTO near"
    ));
    assert_eq!(stage.db.text("SELECT count(*) FROM pg_class WHERE relkind = 'f'"), "2");
    let error = stage.db.error("ALTER FOREIGN TABLE near.x INHERIT evil.t");
    assert!(error.contains("child table is missing column"), "{error}");
    stage.db.run("ALTER FOREIGN TABLE near.x ADD note text, ADD b text, ADD c text");
    let error = stage.db.error("ALTER FOREIGN TABLE near.x INHERIT evil.t");
    assert!(error.contains("this would break the active change"), "{error}");
}
