//! What somebody tries who owns a table, a partition, a domain or a database, or who has TRIGGER on a table, and nothing
//! else: to run code with another's rights, to see what is not hers, to stop others' work.
//!
//! The attacker is called mallory. All of her code ends in `evil.act`, which tries to make her a superuser and writes down
//! whose rights it had, so that a test can lay it wherever pg_zdd may come by, and look afterwards who has run it.

mod errors;
mod escalation;
mod event_triggers;
mod extension;
mod guard;
mod other_owners;
mod rules;

use std::time::Duration;

use pg_zdd_cluster::address::PATIENCE;
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, wait_until};

/// A rule that anybody may use.
const PLAIN: &str = "columns => 'b text, c text', delimiter => ' '";

/// A database with an attacker, to whom the schema `evil` belongs, and a victim, to whom the schema `shop` belongs.
struct Stage {
    /// A superuser.
    db: Session,
    mallory: Session,
    victim: Session,
    names: Names,
}

/// Roles belong to the whole cluster, so each database has its own.
#[derive(Clone)]
struct Names {
    mallory: String,
    victim: String,
}

impl Names {
    /// Puts the names in the place of `:mallory` and `:victim`.
    fn fill(&self, sql: &str) -> String {
        sql.replace(":mallory", &self.mallory).replace(":victim", &self.victim)
    }
}

/// What is hers. `ran` and `caught` are sequences since what a sequence counts is not rolled back.
const TRAP: &str = r"
    CREATE TABLE evil.log (whom name, session name, is_super text);
    GRANT INSERT ON evil.log TO PUBLIC;
    CREATE SEQUENCE evil.ran;
    CREATE SEQUENCE evil.caught;
    GRANT USAGE ON evil.ran, evil.caught TO PUBLIC;
    CREATE FUNCTION evil.act() RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        way text;
    BEGIN
        PERFORM pg_catalog.nextval('evil.ran');
        IF current_user OPERATOR(pg_catalog.<>) ':mallory' THEN
            PERFORM pg_catalog.nextval('evil.caught');
        END IF;
        FOREACH way IN ARRAY ARRAY['SELECT 1', 'RESET ROLE', 'SET ROLE postgres',
            'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION postgres'] LOOP
            BEGIN
                EXECUTE way;
                EXECUTE 'ALTER ROLE :mallory SUPERUSER';
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
        BEGIN
            INSERT INTO evil.log VALUES (current_user, session_user, pg_catalog.current_setting('is_superuser'));
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END $$;
    -- They say that they only compute.
    CREATE FUNCTION evil.probe(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM evil.act(); RETURN $1; END $$;
    CREATE FUNCTION evil.holds(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM evil.act(); RETURN true; END $$;
    CREATE FUNCTION evil.fires() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM evil.act(); RETURN NEW; END $$;";

impl Stage {
    #[track_caller]
    fn new() -> Stage {
        Stage::in_database(Session::new())
    }

    #[track_caller]
    fn on(cluster: &Cluster) -> Stage {
        Stage::in_database(Session::on(cluster))
    }

    #[track_caller]
    fn in_database(mut db: Session) -> Stage {
        let database = db.text("SELECT current_database()");
        let names = Names { mallory: format!("mallory_{database}"), victim: format!("victim_{database}") };
        db.run(&names.fill(
            "CREATE ROLE :mallory LOGIN; CREATE ROLE :victim LOGIN;
             CREATE SCHEMA evil AUTHORIZATION :mallory; CREATE SCHEMA shop AUTHORIZATION :victim;
             GRANT USAGE ON SCHEMA evil, shop TO PUBLIC",
        ));
        let mut mallory = db.another_as(&names.mallory);
        mallory.run(&names.fill(TRAP));
        let victim = db.another_as(&names.victim);
        Stage { db, mallory, victim, names }
    }

    /// A table of the attacker, with a change of it under way.
    #[track_caller]
    fn with_change(rule: &str) -> Stage {
        let mut stage = Stage::new();
        stage.mallory.run(TABLE);
        stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {rule})"));
        stage
    }

    /// Runs SQL with names in it as the superuser.
    #[track_caller]
    fn run(&mut self, sql: &str) {
        let sql = self.names.fill(sql);
        self.db.run(&sql);
    }

    /// A superuser who is not fooled by any search_path.
    #[track_caller]
    fn judge(&self) -> Session {
        let mut judge = self.db.another();
        judge.run("RESET SESSION AUTHORIZATION; RESET ROLE; SET search_path = pg_catalog, pg_temp");
        judge
    }

    /// What has gone wrong, if anything: her code has run as somebody else, or she is a superuser.
    #[track_caller]
    fn escalation(&self) -> Option<String> {
        let mut judge = self.judge();
        let caught = judge.text("SELECT is_called FROM evil.caught") == "t";
        let is_super = judge.text(&self.names.fill("SELECT rolsuper FROM pg_roles WHERE rolname = ':mallory'")) == "t";
        (caught || is_super).then(|| {
            let log = self.names.fill(
                "SELECT DISTINCT whom, session, is_super FROM evil.log WHERE whom <> ':mallory' ORDER BY whom, session",
            );
            format!("superuser: {is_super}; her code ran as somebody else: {caught}\n{}", judge.text(&log))
        })
    }

    #[track_caller]
    fn assert_contained(&self, what: &str) {
        if let Some(evidence) = self.escalation() {
            panic!("{what}: {evidence}");
        }
    }

    /// The same where there is more to try: written down, and undone.
    #[track_caller]
    fn note_escalation(&self, what: &str, wrong: &mut Vec<String>) {
        if let Some(evidence) = self.escalation() {
            wrong.push(format!("{what}: {evidence}"));
            let undo = "ALTER ROLE :mallory NOSUPERUSER; TRUNCATE evil.log; SELECT setval('evil.caught', 1, false)";
            self.judge().run(&self.names.fill(undo));
        }
    }

    /// Whether her code has run at all.
    #[track_caller]
    fn has_run(&self) -> bool {
        self.judge().text("SELECT is_called FROM evil.ran") == "t"
    }
}

/// The attacker's table.
const TABLE: &str = "CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text);
    INSERT INTO evil.t SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, 5) AS i";

/// The victim's table.
const SHOP: &str = "CREATE TABLE shop.address (id int PRIMARY KEY, a text, note text);
    INSERT INTO shop.address SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, 5) AS i";

/// Polls as a superuser until a query gives `t`.
#[track_caller]
fn wait_for_true(db: &mut Session, sql: &str) {
    if let Err(error) = wait_until(sql, PATIENCE, || Ok(db.text(sql) == "t")) {
        panic!("{error}\n{}", db.text("SELECT * FROM zdd.progress") + "\n" + &db.text("SELECT * FROM zdd.events"));
    }
}

/// A line of a process's status, in kB.
fn memory_kb(pid: i32, line: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let found = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'));
    let number = found.and_then(|it| it.split_whitespace().next()).expect("a line of that name");
    number.parse().expect("a number")
}

/// Something that is not to be waited for has been.
#[track_caller]
fn soon(since: std::time::Instant, what: &str) {
    const SOON: Duration = Duration::from_secs(3);
    assert!(since.elapsed() < SOON, "{what} took {:?}", since.elapsed());
}
