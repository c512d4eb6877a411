//! What the extension trusts: what it owns. CREATE EXTENSION, the launcher, schemas that only look like ours, dumps.

use std::process::{Command, Stdio};

use pg_zdd_cluster::address::PATIENCE;
use pg_zdd_cluster::session::{Session, shared_cluster};
use pg_zdd_cluster::{Cluster, Stop, wait_until};

use crate::{PLAIN, SHOP, Stage, TABLE, wait_for_true};

/// A database without pg_zdd that belongs to an attacker.
struct Forgery {
    judge: Session,
    mallory: Session,
    name: String,
}

/// A database of the attacker's, with her code in it.
#[track_caller]
fn her_database(cluster: &Cluster, name: &str) -> Forgery {
    let mallory = format!("mallory_{name}");
    let mut admin = Session::connect(cluster.config("postgres", "postgres", "test"));
    admin.run(&format!("CREATE ROLE {mallory} LOGIN"));
    admin.run(&format!("CREATE DATABASE {name} OWNER {mallory}"));
    let judge = Session::connect(cluster.config(name, "postgres", "test"));
    let mut mallory = judge.another_as(&mallory);
    mallory.run("CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC");
    mallory.run(&crate::TRAP.replace(":mallory", &format!("mallory_{name}")));
    Forgery { judge, mallory, name: name.to_owned() }
}

impl Forgery {
    fn escalation(&mut self) -> Option<String> {
        let is_super = format!("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory_{}'", self.name);
        let found = self.judge.text(&format!("SELECT ({is_super}), is_called FROM evil.caught"));
        (found != "f|f")
            .then(|| format!("{}: superuser, caught: {found}: {}", self.name, self.judge.text("TABLE evil.log")))
    }
}

/// Makes a schema that looks like the one of `real`, with a backfill of `evil.t` in it that is to be done.
#[track_caller]
fn forge(forgery: &mut Forgery, relation: &str, run_if: &str) {
    let mut real = Stage::new();
    let mut db = real.db.another();
    db.run("SET search_path = pg_catalog");
    let statements = db.text(
        "SELECT string_agg(sql, E';\\n') FROM (
             SELECT 1, format('CREATE SEQUENCE %s', oid::regclass) FROM pg_class
                 WHERE relnamespace = 'zdd'::regnamespace AND relkind = 'S'
             UNION ALL
             SELECT 2, format('CREATE TABLE %s (%s)', attrelid::regclass, string_agg(
                     format('%I %s', attname, format_type(atttypid, atttypmod)) || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), ''),
                     ', ' ORDER BY attnum))
                 FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                 LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                 WHERE relnamespace = 'zdd'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped GROUP BY attrelid
             UNION ALL
             SELECT 3, format('ALTER TABLE %s ADD %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
                 WHERE connamespace = 'zdd'::regnamespace AND contype IN ('p', 'u')
             ORDER BY 1) AS s (step, sql)",
    );
    forgery.mallory.run("CREATE SCHEMA zdd; GRANT USAGE ON SCHEMA zdd TO PUBLIC");
    forgery.mallory.run(&statements);
    let views = db.text(
        "SELECT format('CREATE VIEW %s AS %s', oid::regclass, replace(pg_get_viewdef(oid), E'\\n', ' ')) FROM pg_class
         WHERE relnamespace = 'zdd'::regnamespace AND relkind = 'v' ORDER BY relname DESC",
    );
    for view in views.lines() {
        // Not all can be made without the functions, and not all are needed.
        let _ = forgery.mallory.attempt(view);
    }
    for sql in [TABLE, &format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN})")] {
        forgery.mallory.attempt(sql).ok();
        real.mallory.run(sql);
    }
    db.run("BEGIN; SELECT zdd.start_backfill('t.a')");
    let tables =
        db.text("SELECT oid::regclass FROM pg_class WHERE relnamespace = 'zdd'::regnamespace AND relkind = 'r'");
    for table in tables.lines() {
        for row in db.text(&format!("SELECT to_jsonb(t) FROM {table} AS t")).lines() {
            let row = row.replace('\'', "''");
            let change = format!(
                r#"CASE WHEN '{row}'::jsonb ? 'run_if' THEN '{{"relation": "{relation}", "run_if": "{run_if}"}}' ELSE '{{}}' END::jsonb"#
            );
            let insert = format!(
                "INSERT INTO {table} SELECT * FROM jsonb_populate_record(null::{table}, '{row}'::jsonb || {change})"
            );
            forgery.mallory.attempt(&insert).ok();
        }
    }
    db.run("ROLLBACK");
    assert_eq!(forgery.mallory.text("SELECT count(*) FROM zdd.job"), "1", "nothing was forged");
}

/// A database of hers without pg_zdd has a schema that looks like ours. And in one that has it, her code lies where the
/// launcher's workers come by.
#[test]
fn launcher() {
    let cluster = Cluster::start(&[
        ("shared_preload_libraries", "pg_zdd"),
        ("zdd.launcher_naptime", "1s"),
        ("max_worker_processes", "16"),
        ("log_min_messages", "debug1"),
    ])
    .expect("a cluster");
    // The condition has the rights of whoever owns the table that is named.
    let mut condition = her_database(&cluster, "condition");
    forge(&mut condition, "pg_catalog.pg_class", "evil.holds(null)");
    // What is left for the end of a transaction has those of the session.
    let mut deferred = her_database(&cluster, "deferred");
    forge(&mut deferred, "evil.t", "true");
    let tables =
        "SELECT string_agg(format('CREATE CONSTRAINT TRIGGER x AFTER INSERT OR UPDATE OR DELETE ON %s DEFERRABLE
            INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.fires()', oid::regclass), '; ')
        FROM pg_class WHERE relnamespace = 'zdd'::regnamespace AND relkind = 'r'";
    let triggers = deferred.mallory.text(tables);
    deferred.mallory.run(&triggers);
    // Views over functions in the place of tables.
    let mut views = her_database(&cluster, "views");
    forge(&mut views, "pg_catalog.pg_class", "true");
    views.mallory.run(
        "ALTER TABLE zdd.job RENAME TO job_; CREATE VIEW zdd.job AS SELECT * FROM zdd.job_ WHERE evil.holds(kind);
         ALTER TABLE zdd.change RENAME TO change_; CREATE VIEW zdd.change AS SELECT * FROM zdd.change_ WHERE evil.holds(name)",
    );
    let over = rounds(&cluster, 2);
    wait_until("the launcher has been everywhere", PATIENCE, over).expect("two rounds");
    let wrong: Vec<String> = [condition, deferred, views].iter_mut().filter_map(Forgery::escalation).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the launcher has gone round so often from now on.
fn rounds(cluster: &Cluster, rounds: usize) -> impl Fn() -> pg_zdd_cluster::Result<bool> {
    // The server's log tells of every worker that is asked for.
    let asked = |cluster: &Cluster| {
        let log = std::fs::read_to_string(cluster.log())?;
        Ok::<_, pg_zdd_cluster::Error>(log.matches("registering background worker \"pg_zdd resumer\"").count())
    };
    let mut admin = Session::connect(cluster.config("postgres", "postgres", "test"));
    // The first may have begun already.
    let databases = admin.number("SELECT count(*) FROM pg_database WHERE NOT datistemplate") as usize;
    let enough = asked(cluster).expect("a log") + (rounds + 1) * databases;
    move || Ok(asked(cluster)? >= enough)
}

/// A restart interrupts her backfill, which the launcher goes on with; her code lies where it comes by.
#[test]
fn launcher_that_resumes() {
    let cluster =
        Cluster::start(&[("shared_preload_libraries", "pg_zdd"), ("zdd.launcher_naptime", "1s")]).expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run(TABLE);
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN})"));
    stage.mallory.run(
        "CREATE TABLE evil.go (it boolean); ALTER TABLE evil.t ADD CHECK (evil.holds(b) AND evil.holds('k'));
         CREATE INDEX ON evil.t (evil.probe(b)); ALTER TABLE evil.t ALTER a SET DEFAULT evil.probe('x y');
         SELECT zdd.alter_change('t.a', run_if => 'evil.holds(''k'') AND (SELECT count(*) FROM evil.go) > 0');
         SELECT zdd.start_backfill('t.a')",
    );
    cluster.restart(Stop::Fast).expect("restarted");
    stage.db = stage.db.another();
    stage.mallory = stage.mallory.another();
    stage.mallory.run("INSERT INTO evil.go VALUES (true)");
    wait_for_true(&mut stage.db, "SELECT phase = 'expanded' FROM zdd.changes");
    stage.assert_contained("the launcher");
}

/// She makes the schema before the extension is there, with an operator in it that the extension's script could mean.
#[test]
fn schema_that_is_there_already() {
    let cluster = shared_cluster();
    let mut forgery = her_database(cluster, "premade");
    forgery.mallory.run(
        "CREATE SCHEMA zdd; GRANT ALL ON SCHEMA zdd TO PUBLIC;
         CREATE FUNCTION zdd.divided(bigint, numeric) RETURNS numeric LANGUAGE plpgsql AS
             'BEGIN PERFORM evil.act(); RETURN 1; END';
         CREATE OPERATOR zdd./ (FUNCTION = zdd.divided, LEFTARG = bigint, RIGHTARG = numeric)",
    );
    for owner in ["mallory_premade", "postgres"] {
        forgery.judge.run(&format!("ALTER SCHEMA zdd OWNER TO {owner}"));
        for create in
            ["CREATE EXTENSION pg_zdd", "CREATE EXTENSION pg_zdd SCHEMA zdd", "CREATE EXTENSION IF NOT EXISTS pg_zdd"]
        {
            let error = forgery.judge.error(create);
            assert!(error.contains("(42P06)"), "{owner}: {error}");
        }
    }
    let error = forgery.mallory.error("CREATE EXTENSION pg_zdd");
    assert!(error.contains("(42501)") || error.contains("(42P06)"), "{error}");
    forgery.judge.run("DROP SCHEMA zdd CASCADE; CREATE EXTENSION pg_zdd");
    // Whoever creates the extension has the schema.
    let owner = "SELECT DISTINCT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'zdd'";
    assert_eq!(forgery.judge.text(owner), "postgres");
    for sql in [
        "CREATE FUNCTION zdd.x() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE TABLE zdd.x (id int)",
        "DROP SCHEMA zdd CASCADE",
        "ALTER SCHEMA zdd OWNER TO mallory_premade",
        "ALTER EXTENSION pg_zdd DROP SCHEMA zdd",
        "DROP EXTENSION pg_zdd CASCADE",
    ] {
        let error = forgery.mallory.error(sql);
        assert!(error.contains("(42501)"), "{sql}: {error}");
    }
}

/// Nothing of the extension belongs to anybody else, has rights of its own without a search_path, or is bound to what is
/// neither PostgreSQL's nor the extension's.
#[test]
fn what_the_script_makes() {
    let mut stage = Stage::new();
    let foreign = "SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' on ' || pg_describe_object(d.refclassid, d.refobjid, 0)
        FROM pg_depend AS d JOIN pg_depend AS m ON m.deptype = 'e' AND (m.classid, m.objid) = (d.classid, d.objid)
        WHERE d.deptype = 'n' AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND d.refobjid >= 16384
            AND NOT EXISTS (SELECT FROM pg_depend AS r WHERE r.deptype = 'e' AND (r.classid, r.objid) = (d.refclassid, d.refobjid))";
    assert_eq!(stage.db.text(foreign), "");
    let definer = "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'zdd'::regnamespace AND prosecdef
        AND NOT EXISTS (SELECT FROM unnest(proconfig) AS c WHERE c LIKE 'search_path=%')";
    assert_eq!(stage.db.text(definer), "");
    let interpreted = "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'zdd'::regnamespace
        AND prorettype IN ('trigger'::regtype, 'event_trigger'::regtype) AND proname <> 'check_phase'
        AND prolang <> (SELECT oid FROM pg_language WHERE lanname = 'c')";
    assert_eq!(stage.db.text(interpreted), "", "triggers in an interpreted language");
    let writable =
        "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'zdd'::regnamespace AND relkind IN ('r', 'v', 'S')
        AND has_table_privilege('public', oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES')";
    assert_eq!(stage.db.text(writable), "");
}

/// A superuser restores a dump of a database with her code in it.
#[test]
fn restore() {
    let mut stage = Stage::new();
    stage.mallory.run(TABLE);
    stage.mallory.run("ALTER TABLE evil.t ALTER a SET DEFAULT evil.probe('x y'); CREATE DOMAIN evil.word AS text DEFAULT evil.probe('k')");
    stage.mallory.run(
        "SELECT zdd.split_column('evil.t', 'a', 'b text, c text', split_sql => array['split_part(evil.probe(a), '' '', 1)',
             'substr(evil.probe(''k''), 2) || split_part(a, '' '', 2)'], join_sql => 'b || '' '' || evil.probe(c)');
         SELECT zdd.alter_change('t.a', run_if => 'evil.holds(''k'')');
         CREATE TABLE evil.u (id int, a evil.word, b text);",
    );
    stage.mallory.run("SELECT zdd.split_column('evil.u', 'a', 'x text', delimiter => ' ')");
    let _ = stage.mallory.attempt(&crate::escalation::forged_trigger("evil.log", "log", "evil.probe(a)"));
    // PostgreSQL itself runs nothing of this for a restore.
    for arguments in [&["-Fc"][..], &["-Fc", "--section=pre-data", "--section=post-data"]] {
        let database = stage.db.text("SELECT current_database()");
        let copy = format!("{database}_copy{}", arguments.len());
        stage.run(&format!("CREATE DATABASE {copy}"));
        let mut dump = shared_cluster().client_tool("pg_dump", &database);
        let mut restore = shared_cluster().client_tool("pg_restore", &copy);
        let output = pipe(dump.args(arguments), restore.args(["-d", &copy]));
        let mut judge = Session::connect(shared_cluster().config(&copy, "postgres", "test"));
        judge.run("CREATE TABLE public.unrelated (id int)");
        assert_eq!(judge.text("SELECT is_called FROM evil.caught"), "f", "{output}: {}", judge.text("TABLE evil.log"));
        stage.assert_contained("a restore");
    }
}

/// Feeds one program with the other's output, and returns what they said.
fn pipe(from: &mut Command, to: &mut Command) -> String {
    let mut from = from.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    let to = to.stdin(from.stdout.take().expect("a pipe")).output().expect("a program");
    let from = from.wait_with_output().expect("an end");
    String::from_utf8_lossy(&from.stderr).into_owned() + &String::from_utf8_lossy(&to.stderr)
}

/// The owner of the database, who is not a superuser, dumps it: it works, and shows no texts of others' errors or queries.
#[test]
fn dump_of_the_database_s_owner() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run(
        "SELECT zdd.alter_change('address.a', run_if => 'current_user <> ''hush-query''');
         ALTER TABLE shop.address ADD CONSTRAINT hush_error CHECK (b <> 'Elm'); SELECT zdd.start_backfill('address.a')",
    );
    wait_for_true(&mut stage.db, "SELECT count(*) = 1 FROM zdd.events WHERE event = 'error'");
    let database = stage.db.text("SELECT current_database()");
    stage.run(&format!("ALTER DATABASE {database} OWNER TO :mallory"));
    stage.mallory.run(TABLE);
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN})"));
    stage.mallory.run("CALL zdd.backfill('t.a')");
    for arguments in [&["-N", "shop"][..], &["-Fc", "-N", "shop"], &["--inserts", "-N", "shop"]] {
        let mut dump = shared_cluster().client_tool("pg_dump", &database);
        let dump = dump.args(arguments).env("PGUSER", &stage.names.mallory).output().expect("a program");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        if !arguments.contains(&"-Fc") {
            let text = String::from_utf8_lossy(&dump.stdout);
            assert!(text.contains("evil.t"), "nothing was dumped");
            let seen: Vec<&str> = text.lines().filter(|line| line.contains("hush")).collect();
            assert!(seen.is_empty(), "{seen:?}");
        }
    }
    // Her own change goes on from it.
    let copy = format!("{database}_copy");
    stage.run(&format!("CREATE DATABASE {copy}"));
    let mut dump = shared_cluster().client_tool("pg_dump", &database);
    let mut restore = shared_cluster().client_tool("pg_restore", &copy);
    let said = pipe(dump.args(["-Fc", "-N", "shop"]).env("PGUSER", &stage.names.mallory), restore.args(["-d", &copy]));
    let mut owner = Session::connect(shared_cluster().config(&copy, &stage.names.mallory, "test"));
    assert_eq!(owner.text("SELECT phase FROM zdd.changes WHERE change = 't.a'"), "expanded", "{said}");
    owner.run("INSERT INTO evil.t (id, a) VALUES (11, 'Oak 1')");
    assert_eq!(owner.text("SELECT b, c FROM evil.t WHERE id = 11"), "Oak|1");
}
