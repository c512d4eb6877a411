//! Event triggers of the database's administrator: what pg_zdd's DDL sets off finds the rights and the search_path of whoever
//! called, as if she had written the DDL; and what the attacker's DDL sets off finds those of the attacker.

use pg_zdd_cluster::session::Session;

use crate::{SHOP, Stage, TABLE};

/// An audit by someone who has never heard of SECURITY DEFINER, in a table that only she may write.
const AUDIT: &str = "
    CREATE SCHEMA audit;
    CREATE TABLE audit.log (whom name DEFAULT current_user, path text DEFAULT current_setting('search_path'), event text,
        tag text, object text);
    CREATE FUNCTION audit.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF tg_event = 'ddl_command_end' THEN
            INSERT INTO log (event, tag, object)
                SELECT tg_event, tg_tag, object_identity FROM pg_event_trigger_ddl_commands();
        ELSIF tg_event = 'sql_drop' THEN
            INSERT INTO log (event, tag, object)
                SELECT tg_event, tg_tag, object_identity FROM pg_event_trigger_dropped_objects();
        ELSE
            INSERT INTO log (event, tag) VALUES (tg_event, tg_tag);
        END IF;
    END $$;";
const LISTEN: &str = "
    CREATE EVENT TRIGGER audit_start ON ddl_command_start EXECUTE FUNCTION audit.note();
    CREATE EVENT TRIGGER audit_end ON ddl_command_end EXECUTE FUNCTION audit.note();
    CREATE EVENT TRIGGER audit_drop ON sql_drop EXECUTE FUNCTION audit.note()";
const SPLIT: &str =
    "SELECT zdd.split_column('shop.address', 'a', columns => 'b text NOT NULL, c text', delimiter => ' ')";

impl Stage {
    /// The victim's table, the audit, and a search_path that finds it.
    #[track_caller]
    fn audited() -> Stage {
        let mut stage = Stage::new();
        stage.victim.run(SHOP);
        let database = stage.db.text("SELECT current_database()");
        stage.db.run(&format!("{AUDIT}; ALTER DATABASE {database} SET search_path = audit, public"));
        stage.db.run(LISTEN);
        stage.db = stage.db.another();
        stage.victim = stage.db.another_as(&stage.names.victim);
        stage.mallory = stage.db.another_as(&stage.names.mallory);
        stage
    }
}

/// All that is done to a table by DDL.
#[track_caller]
fn all_steps(db: &mut Session) {
    db.run(SPLIT);
    db.run("CALL zdd.backfill('address.a')");
    db.run("SELECT zdd.fence('address.a')");
    db.run("SELECT zdd.unfence('address.a')");
    db.run("SELECT zdd.alter_change('address.a', conflict => 'old')");
    db.run("SELECT zdd.rollback('address.a')");
    db.run(SPLIT);
    db.run("CALL zdd.backfill('address.a')");
    db.run("CALL zdd.contract('address.a', force => true)");
}

/// Who the audit has heard of, and which commands.
#[track_caller]
fn heard(stage: &mut Stage) -> String {
    let heard = stage.judge().text(
        "SELECT whom, path, string_agg(DISTINCT event || ' ' || tag, ', ' ORDER BY event || ' ' || tag) FROM audit.log
         WHERE tag NOT IN ('ANALYZE', 'VACUUM') GROUP BY 1, 2 ORDER BY 1, 2",
    );
    stage.db.run("TRUNCATE audit.log");
    heard
}

const COMMANDS: &str = "ddl_command_end ALTER TABLE, ddl_command_end CREATE TRIGGER, ddl_command_start ALTER TABLE, \
    ddl_command_start CREATE TRIGGER, ddl_command_start DROP TRIGGER, sql_drop ALTER TABLE, sql_drop DROP TRIGGER";

#[test]
fn a_superuser_is_audited_as_herself() {
    let mut stage = Stage::audited();
    stage.db.run("ALTER TABLE shop.address ADD COLUMN plain text");
    assert_eq!(heard(&mut stage), "postgres|audit, public|ddl_command_end ALTER TABLE, ddl_command_start ALTER TABLE");
    all_steps(&mut stage.db);
    assert_eq!(heard(&mut stage), format!("postgres|audit, public|{COMMANDS}"));
}

#[test]
fn a_superuser_is_audited_as_herself_in_the_background() {
    let mut stage = Stage::audited();
    stage.db.run(&SPLIT.replace("delimiter", "indexes => '{b}', delimiter"));
    stage.db.run("SELECT zdd.start_backfill('address.a')");
    stage.db.run("CALL zdd.wait_for('address.a', 'expanded', '60 s')");
    stage.db.run("SELECT zdd.start_contract('address.a', force => true)");
    stage.db.run("CALL zdd.wait_for('address.a', 'contracted', '60 s')");
    let with_index = COMMANDS
        .replace("ddl_command_end CREATE TRIGGER", "ddl_command_end CREATE INDEX, ddl_command_end CREATE TRIGGER");
    let with_index = with_index.replace(
        "ddl_command_start CREATE TRIGGER",
        "ddl_command_start CREATE INDEX, ddl_command_start CREATE TRIGGER",
    );
    assert_eq!(heard(&mut stage), format!("postgres|audit, public|{with_index}"));
}

/// The owner gets what her own DDL gets: an error if she may not write the audit, and else her name in it.
#[test]
fn an_owner_is_audited_as_with_her_own_ddl() {
    let mut stage = Stage::audited();
    let plain = stage.victim.error("ALTER TABLE shop.address ADD COLUMN plain text");
    assert!(plain.contains("relation \"log\" does not exist (42P01)"), "{plain}");
    assert_eq!(stage.victim.error(SPLIT), plain);
    stage.run("GRANT USAGE ON SCHEMA audit TO :victim");
    let plain = stage.victim.error("ALTER TABLE shop.address ADD COLUMN plain text");
    assert!(plain.contains("permission denied for table log (42501)"), "{plain}");
    assert_eq!(stage.victim.error(SPLIT), plain);
    stage.run("GRANT INSERT ON audit.log TO :victim");
    heard(&mut stage);
    all_steps(&mut stage.victim);
    let victim = stage.names.victim.clone();
    assert_eq!(heard(&mut stage), format!("{victim}|audit, public|{COMMANDS}"));
}

/// A function with rights and settings of its own keeps them, whoever calls.
#[test]
fn an_audit_with_rights_of_its_own() {
    let mut stage = Stage::audited();
    stage.run("ALTER FUNCTION audit.note() SECURITY DEFINER SET search_path = audit, pg_temp");
    heard(&mut stage);
    all_steps(&mut stage.victim);
    assert_eq!(heard(&mut stage), format!("postgres|audit, pg_temp|{COMMANDS}"));
    stage.victim.run(&format!("DROP TABLE shop.address; {SHOP}"));
    heard(&mut stage);
    all_steps(&mut stage.db);
    assert_eq!(heard(&mut stage), format!("postgres|audit, pg_temp|{COMMANDS}"));
}

/// What the function of an event trigger does cannot be told from what it would do for DDL that was written: its own DDL
/// is audited too, and an error of it undoes all.
#[test]
fn an_event_trigger_that_raises() {
    let mut stage = Stage::audited();
    stage.run(
        "CREATE FUNCTION audit.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not now, %', current_user; END $$;
         CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION audit.refuse()",
    );
    let error = stage.db.error(SPLIT);
    assert!(error.starts_with("ERROR: not now, postgres (P0001)"), "{error}");
    assert_eq!(stage.db.text("SELECT current_user, current_setting('search_path')"), "postgres|audit, public");
    assert_eq!(stage.judge().text("SELECT count(*) FROM zdd.changes"), "0");
    // Caught in a subtransaction too.
    stage.db.run(&format!(
        "DO $$ BEGIN PERFORM 1; BEGIN {}; EXCEPTION WHEN raise_exception THEN NULL; END;
         ASSERT current_user = 'postgres' AND current_setting('search_path') = 'audit, public'; END $$",
        SPLIT.replacen("SELECT", "PERFORM", 1)
    ));
    stage.run("DROP EVENT TRIGGER refuse");
    heard(&mut stage);
    all_steps(&mut stage.db);
    assert_eq!(heard(&mut stage), format!("postgres|audit, public|{COMMANDS}"));
}

/// Her function is called while a superuser's contract sets NOT NULL, since PostgreSQL computes constants in her CHECK. Her
/// own DDL is audited as hers.
#[test]
fn ddl_of_the_attacker_is_not_the_callers() {
    let mut stage = Stage::audited();
    // Behind the gate nothing but a search_path of its own finds the audit.
    stage.run("ALTER FUNCTION audit.note() SET search_path = audit");
    stage.run("GRANT USAGE ON SCHEMA audit TO :mallory; GRANT INSERT ON audit.log TO :mallory");
    stage.mallory.run(TABLE);
    stage.mallory.run(
        "CREATE FUNCTION evil.make() RETURNS void LANGUAGE plpgsql AS
             $$ BEGIN PERFORM evil.act(); CREATE TABLE evil.made (); DROP TABLE evil.made; END $$;
         CREATE FUNCTION evil.makes(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM evil.make(); RETURN true; END $$;
         ALTER TABLE evil.t ADD CHECK (evil.makes('x'))",
    );
    stage.db.run("SELECT zdd.split_column('evil.t', 'a', columns => 'b text NOT NULL, c text', delimiter => ' ')");
    stage.db.run("CALL zdd.backfill('t.a')");
    stage.db.run("SELECT zdd.fence('t.a')");
    stage.db.run("TRUNCATE audit.log");
    stage.db.run("CALL zdd.contract('t.a', force => true)");
    let whom = "SELECT string_agg(DISTINCT whom, ',') FROM audit.log WHERE object LIKE 'evil.made%'";
    assert_eq!(stage.judge().text(whom), stage.names.mallory);
    let whom =
        "SELECT string_agg(DISTINCT whom, ',') FROM audit.log WHERE tag = 'ALTER TABLE' AND object LIKE 'evil.t%'";
    assert_eq!(stage.judge().text(whom), "postgres");
    stage.assert_contained("DDL in a CHECK");
}

/// An audit that names its table without a schema writes whatever the current role calls so. With her own DDL that is her
/// right. But a background worker, which builds an index as her, must not give her code the rights of its session.
#[test]
fn an_index_in_the_background_fires_event_triggers_in_her_name() {
    let mut stage = Stage::new();
    stage.run("CREATE SCHEMA :mallory AUTHORIZATION :mallory");
    stage.run(AUDIT);
    stage.mallory.run(TABLE);
    stage.mallory.run(&stage.names.fill(
        "CREATE TABLE :mallory.log (event text, tag text, object text);
         CREATE TRIGGER fires BEFORE INSERT ON :mallory.log FOR EACH ROW EXECUTE FUNCTION evil.fires()",
    ));
    stage.run(LISTEN);
    stage
        .mallory
        .run("SELECT zdd.split_column('evil.t', 'a', columns => 'b text, c text', delimiter => ' ', indexes => '{b}')");
    stage.mallory.run("SELECT zdd.start_backfill('t.a')");
    stage.mallory.run("CALL zdd.wait_for('t.a', 'expanded', '60 s')");
    assert!(stage.has_run());
    stage.assert_contained("an index in the background");
}
