//! Running code with another's rights: all ways in which an owner's code gets to where pg_zdd works, times all that pg_zdd
//! does with her table.

use pg_zdd_cluster::session::Session;

use crate::{PLAIN, SHOP, Stage, TABLE};

/// How she lays her code.
struct Way {
    /// Makes `evil.t`, before it has rows.
    table: &'static str,
    /// Done to it before the split.
    before: &'static str,
    rule: &'static str,
    /// Done to it after the split.
    after: &'static str,
    fire_triggers: bool,
    /// Whether some of what is done with the table may be refused. Her code must have run nowhere else all the same.
    may_fail: bool,
}

impl Default for Way {
    fn default() -> Way {
        Way {
            table: "CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)",
            before: "",
            rule: PLAIN,
            after: "",
            fire_triggers: false,
            may_fail: false,
        }
    }
}

impl Way {
    /// Makes the table anew, her code in it, and begins the change.
    #[track_caller]
    fn lay(&self, stage: &mut Stage, wrong: &mut Vec<String>) {
        stage.mallory.run("DROP TABLE IF EXISTS evil.t");
        stage.mallory.run(self.table);
        stage.mallory.run("INSERT INTO evil.t SELECT i, 'Elm ' || i, 'n' || i FROM generate_series(1, 5) AS i");
        stage.mallory.run(self.before);
        let rule = self.rule;
        attempt(self, &mut stage.db, &format!("SELECT * FROM zdd.preview_split('evil.t', 'a', {rule})"));
        stage.note_escalation("preview_split by a superuser", wrong);
        stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {rule})"));
        stage.mallory.run(self.after);
    }

    /// A superuser does all that one can do with the change, and other things beside it.
    #[track_caller]
    fn superuser(&self, stage: &mut Stage, wrong: &mut Vec<String>) {
        self.lay(stage, wrong);
        let backfill = format!("CALL zdd.backfill('t.a', fire_triggers => {})", self.fire_triggers);
        for sql in [
            "CREATE FUNCTION public.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION public.unrelated()",
            "CREATE TABLE public.unrelated (id int)",
            "ALTER TABLE public.unrelated ADD COLUMN a text",
            "DROP TABLE public.unrelated",
            "GRANT SELECT ON evil.t TO PUBLIC",
            "ALTER TABLE evil.t ALTER note SET STATISTICS 10",
            "SELECT zdd.alter_change('t.a', conflict => 'old')",
            "SELECT zdd.alter_change('t.a', run_if => 'true')",
            "SELECT * FROM zdd.verify('t.a')",
            "SELECT * FROM zdd.mismatches('t.a')",
            "SELECT * FROM zdd.usage; SELECT * FROM zdd.progress; SELECT * FROM zdd.changes; SELECT * FROM zdd.events",
            &backfill,
            "CALL zdd.repair('t.a', 'new')",
            "CALL zdd.repair('t.a', 'old')",
            "SELECT zdd.fence('t.a')",
            "SELECT zdd.unfence('t.a')",
            "CALL zdd.contract('t.a', force => true)",
        ] {
            attempt(self, &mut stage.db, sql);
            stage.note_escalation(sql, wrong);
        }
        self.lay(stage, wrong);
        match stage.db.attempt("SELECT zdd.rollback('t.a')") {
            // What she has added depends on the new columns.
            Err(error) if !error.contains("(2BP01)") => panic!("{error}"),
            _ => stage.note_escalation("rollback by a superuser", wrong),
        }
    }

    /// Workers, whose session is a superuser's, do the same.
    #[track_caller]
    fn workers(&self, stage: &mut Stage, wrong: &mut Vec<String>) {
        self.lay(stage, wrong);
        let start = format!("SELECT zdd.start_backfill('t.a', fire_triggers => {})", self.fire_triggers);
        for (sql, phase) in [
            (start.as_str(), "expanded"),
            (
                "SELECT zdd.start_contract('t.a', accept_unmatched => true, accept_lossy => true, force => true)",
                "contracted",
            ),
        ] {
            attempt(self, &mut stage.mallory, sql);
            let wait = format!("CALL zdd.wait_for('t.a', '{phase}', '{}')", if self.may_fail { "2s" } else { "60s" });
            let waited = stage.mallory.attempt(&wait);
            stage.note_escalation(sql, wrong);
            if !self.may_fail
                && let Err(error) = waited
            {
                panic!("{sql}: {error}\n{}", stage.db.text("SELECT * FROM zdd.events"));
            }
        }
    }
}

/// Nothing that pg_zdd does with a table that was laid in this way runs her code as anybody but her.
#[track_caller]
fn contained(way: &Way) {
    let stage = contained_whoever_runs_it(way);
    assert!(stage.has_run(), "her code was not run by anybody");
}

/// The same where pg_zdd need not run her code at all.
#[track_caller]
fn contained_whoever_runs_it(way: &Way) -> Stage {
    let (mut stage, mut wrong) = (Stage::new(), Vec::new());
    way.superuser(&mut stage, &mut wrong);
    way.workers(&mut stage, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stage
}

#[track_caller]
fn attempt(way: &Way, session: &mut Session, sql: &str) {
    match session.attempt(sql) {
        Err(error) if !way.may_fail || error.contains("(XX") || error.contains("closed") => panic!("{sql}: {error}"),
        _ => {}
    }
}

/// She sets the default of the old column to a function of hers that says that it is IMMUTABLE, and so is folded.
#[test]
fn default_of_the_source() {
    contained_whoever_runs_it(&Way {
        before: "ALTER TABLE evil.t ALTER a SET DEFAULT evil.probe('x y')",
        ..Way::default()
    });
}

/// The same, once the change is under way.
#[test]
fn default_of_the_source_that_comes_later() {
    contained_whoever_runs_it(&Way {
        after: "ALTER TABLE evil.t ALTER a SET DEFAULT evil.probe('x y')",
        ..Way::default()
    });
}

/// The default is not the column's but its domain's.
#[test]
fn default_of_the_domain_of_the_source() {
    contained(&Way {
        table: "DROP DOMAIN IF EXISTS evil.word; CREATE DOMAIN evil.word AS text DEFAULT evil.probe('x y');
            CREATE TABLE evil.t (id int PRIMARY KEY, a evil.word, note text)",
        after: "SELECT evil.probe('x')",
        ..Way::default()
    });
}

/// The default of a column that the change is not about.
#[test]
fn default_of_another_column() {
    contained(&Way {
        before: "ALTER TABLE evil.t ALTER note SET DEFAULT evil.probe('n')",
        after: "SELECT evil.probe('x')",
        ..Way::default()
    });
}

/// CHECK constraints of the table, with a call that can be folded and with one that cannot.
#[test]
fn checks_of_the_table() {
    contained(&Way {
        before: "ALTER TABLE evil.t ADD CHECK (evil.holds('k')), ADD CHECK (evil.holds(note)), ADD CHECK (evil.holds(a))",
        after: "ALTER TABLE evil.t ADD CHECK (evil.holds(b))",
        ..Way::default()
    });
}

/// Expressions and predicates of indexes.
#[test]
fn indexes() {
    contained(&Way {
        before: "CREATE INDEX ON evil.t (evil.probe(note)); CREATE INDEX ON evil.t ((evil.probe('k') || note));
            CREATE INDEX ON evil.t (id) WHERE evil.holds(note)",
        after: "CREATE INDEX ON evil.t (evil.probe(b)); CREATE INDEX ON evil.t (b) WHERE evil.holds(c) AND evil.holds('k')",
        ..Way::default()
    });
}

/// A constraint that is checked when the transaction ends, and whose index calls her function for it.
#[test]
fn deferred_exclusion() {
    contained(&Way {
        after: "ALTER TABLE evil.t ADD EXCLUDE USING btree ((evil.probe(b || id)) WITH =) DEFERRABLE INITIALLY DEFERRED",
        ..Way::default()
    });
}

/// Statistics over an expression.
#[test]
fn statistics() {
    contained(&Way {
        before: "DROP STATISTICS IF EXISTS evil.s; CREATE STATISTICS evil.s ON (evil.probe(note)), (evil.probe('k')) FROM evil.t",
        after: "ANALYZE evil.t",
        ..Way::default()
    });
}

/// Generated columns, also one that follows a new column.
#[test]
fn generated_columns() {
    contained(&Way {
        before: "ALTER TABLE evil.t ADD COLUMN g text GENERATED ALWAYS AS (evil.probe(note)) STORED",
        after: "ALTER TABLE evil.t ADD COLUMN h text GENERATED ALWAYS AS (evil.probe(b) || evil.probe('k')) STORED",
        ..Way::default()
    });
}

/// The CHECKs of a domain over a domain, of the old column.
#[test]
fn domain_over_domain() {
    contained(&Way {
        table: "DROP DOMAIN IF EXISTS evil.upper; DROP DOMAIN IF EXISTS evil.lower;
            CREATE DOMAIN evil.lower AS text CHECK (evil.holds(VALUE)) CHECK (evil.holds('k'));
            CREATE DOMAIN evil.upper AS evil.lower CHECK (evil.holds(VALUE));
            CREATE TABLE evil.t (id int PRIMARY KEY, a evil.upper, note text)",
        ..Way::default()
    });
}

/// A domain of a new column that gets its CHECK later.
#[test]
fn domain_of_a_target_that_gets_a_check() {
    contained(&Way {
        table: "DROP DOMAIN IF EXISTS evil.word; CREATE DOMAIN evil.word AS text;
            CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)",
        rule: "columns => 'b evil.word, c text', delimiter => ' '",
        after: "SELECT evil.probe('x');
            DO $$ BEGIN ALTER DOMAIN evil.word ADD CHECK (evil.holds(VALUE)); EXCEPTION WHEN OTHERS THEN NULL; END $$",
        may_fail: true,
        ..Way::default()
    });
}

/// Policies that hold for the owner too.
#[test]
fn policies() {
    contained(&Way {
        before: "ALTER TABLE evil.t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY p ON evil.t USING (evil.holds(note)) WITH CHECK (evil.holds('k'))",
        after: "SELECT evil.probe('x')",
        ..Way::default()
    });
}

/// Triggers of hers, fired on request.
#[test]
fn triggers() {
    contained(&Way {
        before: "CREATE TRIGGER a BEFORE INSERT OR UPDATE ON evil.t FOR EACH ROW EXECUTE FUNCTION evil.fires();
            CREATE TRIGGER b AFTER INSERT OR UPDATE ON evil.t FOR EACH ROW EXECUTE FUNCTION evil.fires();
            CREATE TRIGGER c BEFORE UPDATE ON evil.t EXECUTE FUNCTION evil.fires()",
        fire_triggers: true,
        ..Way::default()
    });
}

/// A trigger that waits for the end of the transaction, when pg_zdd is no longer looking.
#[test]
fn deferred_triggers() {
    for fire_triggers in [false, true] {
        contained(&Way {
            before: "CREATE CONSTRAINT TRIGGER a AFTER INSERT OR UPDATE ON evil.t DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION evil.fires()",
            after: "SELECT evil.probe('x')",
            fire_triggers,
            may_fail: true,
            ..Way::default()
        });
    }
}

/// What rules of the table add to an UPDATE.
#[test]
fn rewrite_rules() {
    contained(&Way {
        before: "CREATE RULE r AS ON UPDATE TO evil.t DO ALSO NOTIFY evil;
            CREATE RULE s AS ON UPDATE TO evil.t WHERE evil.holds(OLD.note) DO ALSO INSERT INTO evil.log VALUES (evil.probe('k'))",
        after: "SELECT evil.probe('x')",
        fire_triggers: true,
        may_fail: true,
        ..Way::default()
    });
}

/// The SQL of the rule, with calls that can be folded and calls that cannot.
#[test]
fn sql_of_the_rule() {
    contained(&Way {
        rule: "columns => 'b text, c text', split_sql => array['split_part(evil.probe(a), '' '', 1)',
            'substr(evil.probe(''k''), 2) || split_part(a, '' '', 2)'], join_sql => 'b || '' '' || evil.probe(c)'",
        ..Way::default()
    });
}

/// Casts, operators and literals of types of hers, which run her code while the expression is still being parsed.
#[test]
fn types_in_the_rule() {
    contained(&Way {
        table: "DROP DOMAIN IF EXISTS evil.word CASCADE; CREATE DOMAIN evil.word AS text CHECK (evil.holds(VALUE));
            DROP OPERATOR IF EXISTS evil.@@@ (NONE, text);
            CREATE OPERATOR evil.@@@ (FUNCTION = evil.probe, RIGHTARG = text);
            CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)",
        rule: "columns => 'b text, c text', split_sql => array[
            'split_part(a::evil.word, '' '', 1) || substr((''{k}''::evil.word[])[1], 2)',
            'split_part(OPERATOR(evil.@@@) a, '' '', 2)'], join_sql => 'b || '' '' || c::evil.word'",
        ..Way::default()
    });
}

/// The condition of the backfill.
#[test]
fn run_if() {
    contained(&Way {
        table: "DROP DOMAIN IF EXISTS evil.word CASCADE; CREATE DOMAIN evil.word AS text CHECK (evil.holds(VALUE));
            CREATE TABLE evil.t (id int PRIMARY KEY, a text, note text)",
        after: "SELECT zdd.alter_change('t.a', run_if => 'evil.holds(''k'') AND ''{k}''::evil.word[] IS NOT NULL
            AND (SELECT count(evil.probe(note)) FROM evil.t) > 0')",
        ..Way::default()
    });
}

/// The key that rows are partitioned by.
#[test]
fn partition_key() {
    contained(&Way {
        table:
            "CREATE TABLE evil.t (id int, a text, note text) PARTITION BY LIST ((evil.probe('k') || evil.probe(note)));
            CREATE TABLE evil.t1 PARTITION OF evil.t FOR VALUES IN ('kn1', 'kn2');
            CREATE TABLE evil.t2 PARTITION OF evil.t DEFAULT PARTITION BY RANGE (evil.probe(note));
            CREATE TABLE evil.t3 PARTITION OF evil.t2 DEFAULT",
        ..Way::default()
    });
}

/// A default of a new column that calls a function of hers, from the beginning, later, and by way of a domain.
#[test]
fn default_of_a_target() {
    let mut stage = Stage::new();
    stage.mallory.run(TABLE);
    stage.mallory.run(
        "CREATE DOMAIN evil.word AS text CHECK (evil.holds(VALUE)); CREATE DOMAIN evil.given AS text DEFAULT evil.probe('k')",
    );
    for columns in [
        "b text DEFAULT evil.probe(''k''), c text",
        "b text DEFAULT substr(evil.probe(''k''), 1), c text",
        "b text DEFAULT (''{k}''::evil.word[])[1], c text",
        "b text DEFAULT current_user, c text",
        "b text DEFAULT now(), c text",
        "b text DEFAULT nextval(''evil.ran''), c text",
        "b evil.given, c text",
    ] {
        let error = stage
            .mallory
            .attempt(&format!("SELECT zdd.split_column('evil.t', 'a', columns => '{columns}', delimiter => ' ')"));
        let error = error.expect_err(columns);
        assert!(error.to_lowercase().contains("default"), "{columns}: {error}");
    }
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN})"));
    for default in ["evil.probe('k')", "('{k}'::evil.word[])[1]", "current_user", "now()"] {
        let error = stage.mallory.error(&format!("ALTER TABLE evil.t ALTER b SET DEFAULT {default}"));
        assert!(error.contains("(55006)"), "{default}: {error}");
    }
    stage.mallory.run("ALTER TABLE evil.t ALTER b SET DEFAULT 'k', ALTER c SET DEFAULT lower('K')");
    stage.assert_contained("defaults of new columns");
}

/// Those who only write into her table give all values; PostgreSQL alone would not run her default for them.
#[test]
fn application_that_writes_into_her_table() {
    let mut stage = Stage::new();
    stage.mallory.run(&format!("{TABLE}; ALTER TABLE evil.t ALTER a SET DEFAULT evil.probe('x y')"));
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.t', 'a', {PLAIN}); GRANT ALL ON evil.t TO PUBLIC"));
    for sql in ["INSERT INTO evil.t VALUES (11, 'Oak 1', 'n')", "UPDATE evil.t SET a = 'Oak 2' WHERE id = 11"] {
        stage.victim.run(sql);
        stage.assert_contained(sql);
        stage.db.run(&sql.replace("11", "12"));
        stage.assert_contained(sql);
    }
}

/// The owner of a partition of somebody else's table sets a default there, which no INSERT into the root would run.
#[test]
fn default_of_a_partition() {
    let mut stage = Stage::new();
    stage.run("GRANT :mallory TO :victim");
    stage.victim.run("CREATE TABLE shop.address (id int, a text, note text) PARTITION BY LIST (id)");
    stage.mallory.run("CREATE TABLE evil.part (id int, a text, note text)");
    stage.victim.run("ALTER TABLE shop.address ATTACH PARTITION evil.part FOR VALUES IN (1, 2, 3)");
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.mallory.run("ALTER TABLE evil.part ALTER a SET DEFAULT evil.probe('x y')");
    for sql in [
        "INSERT INTO shop.address VALUES (1, 'Oak 1', 'n')",
        "INSERT INTO shop.address (id, b, c) VALUES (2, 'Oak', '2')",
        "UPDATE shop.address SET a = 'Oak 3' WHERE id = 1",
        "SELECT * FROM zdd.verify('address.a')",
        "CALL zdd.backfill('address.a')",
    ] {
        stage.db.run(sql);
        stage.assert_contained(sql);
        stage.victim.run(sql);
        stage.assert_contained(sql);
    }
}

/// Code of her change changes settings of whoever comes by, for good.
#[test]
fn settings() {
    const SETTINGS: &str =
        "SELECT string_agg(name || ' = ' || setting, E'\\n' ORDER BY name) FROM pg_catalog.pg_settings
        WHERE name NOT LIKE 'plpgsql.%'";
    let mut stage = Stage::new();
    stage.mallory.run(
        "CREATE TABLE evil.is_on (it boolean); GRANT SELECT ON evil.is_on TO PUBLIC;
         CREATE FUNCTION evil.sets(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
         DECLARE
             name text; value text;
         BEGIN
             IF EXISTS (SELECT FROM evil.is_on) THEN
                 FOR name, value IN VALUES ('search_path', 'evil, pg_catalog'), ('statement_timeout', '1h'),
                     ('application_name', 'pg_dump'), ('row_security', 'off'), ('work_mem', '64'), ('DateStyle', 'German'),
                     ('standard_conforming_strings', 'off'), ('default_transaction_read_only', 'on'),
                     ('zdd.lock_patience', '7'), ('role', 'none'), ('session_authorization', 'postgres') LOOP
                     BEGIN
                         PERFORM set_config(name, value, false);
                     EXCEPTION WHEN OTHERS THEN
                         NULL;
                     END;
                 END LOOP;
             END IF;
             RETURN $1;
         END $$;",
    );
    stage.mallory.run(TABLE);
    stage.mallory.run(
        "SELECT zdd.split_column('evil.t', 'a', columns => 'b text, c text', split_sql => array[
             'split_part(evil.sets(a), '' '', 1)', 'substr(evil.sets(''k''), 2) || split_part(a, '' '', 2)'],
             join_sql => 'b || '' '' || evil.sets(c)');
         GRANT ALL ON evil.t TO PUBLIC; INSERT INTO evil.is_on VALUES (true)",
    );
    let mut wrong = Vec::new();
    for sql in [
        "INSERT INTO evil.t VALUES (11, 'Oak 1', 'n')",
        "BEGIN; INSERT INTO evil.t VALUES (12, 'Oak 1', 'n')",
        "CREATE FUNCTION public.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE public.unrelated (id int)",
        "SELECT * FROM zdd.verify('t.a')",
        "SELECT * FROM zdd.mismatches('t.a')",
        "SELECT * FROM zdd.preview_split('evil.t', 'note', 'x text', split_sql => array['evil.sets(note)'], join_sql => 'x')",
        "SELECT zdd.alter_change('t.a', run_if => 'evil.sets(''k'') IS NOT NULL')",
        "CALL zdd.backfill('t.a')",
        "SELECT zdd.fence('t.a')",
        "CALL zdd.contract('t.a', force => true)",
    ] {
        let mut superuser = stage.db.another();
        let before = superuser.text(SETTINGS);
        if let Err(error) = superuser.attempt(sql) {
            wrong.push(format!("{sql}: {error}"));
            continue;
        }
        let after = superuser.text(SETTINGS);
        let changed: Vec<&str> = after.lines().filter(|line| before.lines().all(|it| it != *line)).collect();
        if !changed.is_empty() {
            wrong.push(format!("{sql}: {}", changed.join(", ")));
        }
        let _ = superuser.attempt("COMMIT");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The owner of the database puts a schema of hers before pg_catalog, with operators of the same names.
#[test]
fn search_path_of_the_database() {
    let mut stage = Stage::new();
    stage.mallory.run(
        r"DO $$
        DECLARE
            it text; op text;
        BEGIN
            FOREACH it IN ARRAY ARRAY['text', 'name', 'oid', 'int2', 'int4', 'int8', 'numeric', 'bool', 'jsonb', 'float8',
                'timestamptz', 'interval', 'regclass', 'pg_catalog.char', 'pg_lsn', 'text[]', 'tid'] LOOP
                EXECUTE format('CREATE FUNCTION evil.op(%s, %1$s) RETURNS boolean LANGUAGE plpgsql AS
                    ''BEGIN PERFORM evil.act(); RETURN true; END''', it);
                FOREACH op IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '&', '~~'] LOOP
                    EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.op, LEFTARG = %s, RIGHTARG = %2$s)', op, it);
                END LOOP;
            END LOOP;
            FOREACH it IN ARRAY ARRAY['current_database()', 'clock_timestamp()', 'pg_backend_pid()', 'quote_ident(text)',
                'pg_is_in_recovery()', 'pg_current_wal_lsn()', 'pg_get_userbyid(oid)', 'pg_has_role(oid, text)'] LOOP
                EXECUTE format('CREATE FUNCTION evil.%s RETURNS text LANGUAGE plpgsql AS
                    ''BEGIN PERFORM evil.act(); RETURN NULL; END''', it);
            END LOOP;
        END $$",
    );
    let database = stage.db.text("SELECT current_database()");
    stage.run(&format!("ALTER DATABASE {database} OWNER TO :mallory"));
    stage.mallory.run(&format!("ALTER DATABASE {database} SET search_path = evil, pg_catalog"));
    stage.mallory.run(&format!("{TABLE}; SELECT zdd.split_column('evil.t', 'a', {PLAIN}, indexes => '{{b}}')"));
    let mut superuser = stage.db.another();
    for sql in [
        "CREATE FUNCTION public.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP FUNCTION public.unrelated()",
        "SELECT * FROM zdd.changes",
        "SELECT * FROM zdd.events",
        "SELECT * FROM zdd.progress",
        "SELECT * FROM zdd.workers",
        "SELECT * FROM zdd.usage",
        "SELECT * FROM zdd.preview_split('evil.t', 'note', 'x text', delimiter => ' ')",
        "SELECT * FROM zdd.verify('t.a')",
        "SELECT * FROM zdd.mismatches('t.a')",
        "SELECT zdd.alter_change('t.a', conflict => 'old')",
        "SELECT zdd.start_backfill('t.a')",
        "CALL zdd.wait_for('t.a', 'expanded', '60s')",
        "CALL zdd.repair('t.a', 'new')",
        "SELECT zdd.fence('t.a')",
        "SELECT zdd.unfence('t.a')",
        "SELECT zdd.start_contract('t.a', force => true)",
        "CALL zdd.wait_for('t.a', 'contracted', '60s')",
    ] {
        superuser.run(sql);
        stage.assert_contained(sql);
    }
}

/// Her code comes by while pg_zdd does DDL that the guard lets pass, and makes use of it.
#[test]
fn code_inside_of_ddl() {
    let mut stage = Stage::new();
    stage.mallory.run(TABLE);
    stage.mallory.run(&format!(
        "{}; SELECT zdd.split_column('evil.other', 'a', {PLAIN})",
        TABLE.replace("evil.t", "evil.other")
    ));
    stage.mallory.run(
        "CREATE FUNCTION evil.disable() RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             ALTER TABLE evil.other DISABLE TRIGGER ALL;
         EXCEPTION WHEN OTHERS THEN NULL;
         END $$;
         CREATE FUNCTION evil.disables(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM evil.disable(); RETURN true; END $$;
         CREATE DOMAIN evil.word AS text CHECK (evil.disables(VALUE));
         CREATE DOMAIN evil.given AS text DEFAULT CASE WHEN evil.disables('k') THEN 'k' END;",
    );
    for rule in [
        "columns => 'b evil.word[] DEFAULT ''{k}''::evil.word[]', split_sql => array['array[a]::evil.word[]'], join_sql => 'b[1]'",
        "columns => 'b text DEFAULT CASE WHEN evil.disables(''k'') THEN ''k'' END, c text', delimiter => ' '",
        "columns => 'b evil.given, c text', delimiter => ' '",
        "columns => 'b evil.word[], c text', split_sql => array['array[a]::evil.word[]', 'a'], join_sql => 'c', indexes => '{b}'",
    ] {
        for sql in [
            &format!("SELECT zdd.split_column('evil.t', 'a', {rule})"),
            "SELECT zdd.start_backfill('t.a')",
            "CALL zdd.wait_for('t.a', 'expanded', '10s')",
            "SELECT zdd.fence('t.a')",
            "SELECT zdd.unfence('t.a')",
            "CALL zdd.contract('t.a', force => true)",
            &format!("DROP TABLE evil.t; {TABLE}"),
        ] {
            let _ = stage.mallory.attempt(sql);
            let enabled =
                "SELECT string_agg(tgenabled::text, '') FROM pg_trigger WHERE tgrelid = 'evil.other'::regclass";
            assert_eq!(stage.db.text(enabled), "A", "{rule}: {sql}");
        }
    }
}

/// She makes a sync trigger with a rule of her own on a partition of somebody else's table: it is the root's owner whose
/// rights the rule would have.
#[test]
fn sync_trigger_on_a_partition() {
    let mut stage = Stage::new();
    stage.run("GRANT :mallory TO :victim");
    stage.victim.run("CREATE TABLE shop.address (id int, a text, b text) PARTITION BY LIST (id)");
    stage.mallory.run("CREATE TABLE evil.part (id int, a text, b text)");
    stage.victim.run("ALTER TABLE shop.address ATTACH PARTITION evil.part FOR VALUES IN (1, 2, 3)");
    let made = stage.mallory.attempt(&forged_trigger("evil.part", "t.a", "evil.probe(a)"));
    if let Err(error) = made {
        assert!(error.contains("(42501)") || error.contains("(55006)"), "{error}");
    }
    for (session, table) in
        [(&mut stage.mallory, "evil.part"), (&mut stage.victim, "shop.address"), (&mut stage.db, "shop.address")]
    {
        if let Err(error) = session.attempt(&format!("INSERT INTO {table} VALUES (1, 'Elm 1')")) {
            assert!(error.contains("(55000)"), "{error}");
        }
    }
    stage.assert_contained("a sync trigger of the owner of a partition");
}

/// A sync trigger that was not made by pg_zdd.
pub fn forged_trigger(table: &str, change: &str, split_sql: &str) -> String {
    format!(
        r#"CREATE TRIGGER "~zdd_{change}" BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION zdd.sync('{{
            "version":1,"change":"{change}","source":{{"name":"a","type":"pg_catalog.text"}},
            "targets":[{{"name":"b","type":"pg_catalog.text","not_null":false}}],"split":{{"sql":["{split_sql}"]}},
            "join":{{"sql":"b"}},"unmatched":"null","conflict":"new","max_source_length":65536}}')"#
    )
}

/// A hand-made sync trigger is left on a table that then gets another owner, whose rights its rule would have.
#[test]
fn hand_made_trigger_and_a_new_owner() {
    let mut stage = Stage::new();
    for new_owner in [":victim", "postgres"] {
        stage.mallory.run("DROP TABLE IF EXISTS evil.made; CREATE TABLE evil.made (id int, a text, b text)");
        let _ = stage.mallory.attempt(&forged_trigger("evil.made", "made", "evil.probe(a)"));
        stage.run(&format!("ALTER TABLE evil.made OWNER TO {new_owner}; GRANT ALL ON evil.made TO PUBLIC"));
        for session in [&mut stage.mallory, &mut stage.db] {
            if let Err(error) = session.attempt("INSERT INTO evil.made VALUES (1, 'Elm 1')") {
                assert!(error.contains("(55000)"), "{error}");
                assert!(error.contains("HINT"), "{error}");
            }
        }
        stage.assert_contained(new_owner);
        stage.run("ALTER TABLE evil.made OWNER TO :mallory");
    }
}

/// SQL rules of a hand-made trigger are not run at all, those of text are, and nobody can make one in a table with a change.
#[test]
fn hand_made_triggers() {
    let mut stage = Stage::with_change(PLAIN);
    stage.mallory.run("CREATE TABLE evil.made (id int, a text, b text)");
    stage.mallory.run(&forged_trigger("evil.made", "made", "evil.probe(a)"));
    let error = stage.mallory.error("INSERT INTO evil.made VALUES (1, 'Elm 1')");
    assert!(error.contains("(55000)") && error.contains("HINT"), "{error}");
    stage.mallory.run("DROP TRIGGER \"~zdd_made\" ON evil.made");
    let text = forged_trigger("evil.made", "made", "").replace(r#"{"sql":[""]}"#, r#"{"delimiter":" "}"#);
    stage.mallory.run(&text.replace(r#"{"sql":"b"}"#, r#"{"delimiter":" "}"#));
    assert_eq!(stage.mallory.text("INSERT INTO evil.made VALUES (1, 'Elm 1') RETURNING b"), "Elm 1");
    // Others' tables, with and without a change, and also with TRIGGER on them.
    stage.victim.run(SHOP);
    stage.victim.run("ALTER TABLE shop.address ADD COLUMN x text");
    stage.run("GRANT ALL ON shop.address TO :mallory");
    let error = stage.mallory.error(&forged_trigger("shop.address", "x", "evil.probe(a)"));
    assert!(error.contains("(42501)"), "{error}");
    stage.victim.run("SELECT zdd.split_column('shop.address', 'note', 'b text, c text', delimiter => ' ')");
    for session in [&mut stage.mallory, &mut stage.victim, &mut stage.db] {
        session.error(&forged_trigger("shop.address", "x", "evil.probe(a)"));
        session.error(&forged_trigger("shop.address", "address.note", "evil.probe(a)"));
    }
    let error = stage.mallory.error(&forged_trigger("evil.t", "x", "evil.probe(a)"));
    assert!(error.contains("(42501)") || error.contains("(55006)"), "{error}");
}

/// Her table goes to a new owner, with a change that runs SQL of hers.
#[test]
fn new_owner_while_a_change_is_on() {
    let mut stage = Stage::with_change(
        "columns => 'b text, c text', split_sql => array['split_part(evil.probe(a), '' '', 1)',
            'split_part(a, '' '', 2)'], join_sql => 'b || '' '' || evil.probe(c)'",
    );
    stage.mallory.run("GRANT ALL ON evil.t TO PUBLIC");
    let mut wrong = Vec::new();
    for sql in [
        "ALTER TABLE evil.t OWNER TO :victim",
        "ALTER TABLE evil.t OWNER TO postgres",
        "REASSIGN OWNED BY :mallory TO :victim",
        "REASSIGN OWNED BY :mallory TO postgres",
    ] {
        match stage.db.attempt(&stage.names.fill(sql)) {
            Err(error) if error.contains("(55006)") && error.contains("HINT") => {}
            // PostgreSQL calls no event trigger for it. The rule goes on as who began it.
            Ok(()) if sql.starts_with("REASSIGN") => {}
            result => wrong.push(format!("{sql} is not refused: {result:?}")),
        }
        for statement in [
            "INSERT INTO evil.t VALUES (11, 'Oak 1', 'n') ON CONFLICT DO NOTHING",
            "SELECT * FROM zdd.verify('t.a')",
            "CALL zdd.backfill('t.a')",
        ] {
            let _ = stage.db.attempt(statement);
            stage.note_escalation(&format!("{sql}; {statement}"), &mut wrong);
        }
        stage.run("SET zdd.guard = off; REASSIGN OWNED BY :victim TO :mallory; ALTER TABLE evil.t OWNER TO :mallory");
        for function in ["act()", "probe(text)", "holds(text)", "fires()"] {
            stage.run(&format!("ALTER FUNCTION evil.{function} OWNER TO :mallory"));
        }
        stage.run("ALTER TABLE evil.log OWNER TO :mallory; RESET zdd.guard");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The new owner comes although the guard would refuse it: from a superuser who has switched it off, or a restore.
#[test]
fn new_owner_behind_the_guard_s_back() {
    let mut stage = Stage::with_change(
        "columns => 'b text, c text', split_sql => array['split_part(evil.probe(a), '' '', 1)',
            'split_part(a, '' '', 2)'], join_sql => 'b || '' '' || evil.probe(c)'",
    );
    stage.mallory.run("GRANT ALL ON evil.t TO PUBLIC");
    let mut wrong = Vec::new();
    for new_owner in [":victim", "postgres"] {
        stage.run(&format!("SET zdd.guard = off; ALTER TABLE evil.t OWNER TO {new_owner}; RESET zdd.guard"));
        for sql in [
            "INSERT INTO evil.t VALUES (11, 'Oak 1', 'n')",
            "SELECT * FROM zdd.verify('t.a')",
            "SELECT * FROM zdd.mismatches('t.a')",
            "CREATE FUNCTION public.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION public.unrelated()",
            "CALL zdd.backfill('t.a')",
            "CALL zdd.repair('t.a', 'new')",
        ] {
            let _ = stage.db.attempt(sql);
            stage.note_escalation(&format!("{new_owner}: {sql}"), &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// She has TRIGGER on a table of somebody else: her triggers are fired by a backfill that asks for it as by any UPDATE of
/// the owner, but not with more rights than the owner's.
#[test]
fn trigger_on_somebody_else_s_table() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage.run("GRANT TRIGGER ON shop.address TO :mallory");
    stage.mallory.run("CREATE TRIGGER a BEFORE UPDATE ON shop.address FOR EACH ROW EXECUTE FUNCTION evil.fires()");
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("SELECT zdd.start_backfill('address.a', fire_triggers => true)");
    stage.victim.run("CALL zdd.wait_for('address.a', 'expanded', '60s')");
    assert_eq!(stage.db.text("SELECT DISTINCT whom FROM evil.log"), stage.names.victim);
}
