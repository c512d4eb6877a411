//! What a contract goes by, who uses the old column, must not be forged, wiped or crowded out. Each test is what somebody
//! tried who owns a table of his own, or nothing, and what others see after it.

use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::usage::{
    BACKFILL, CONTRACT, FENCE, OLD_READ, PRELOADED, SPLIT, TABLE, application, expanded, expanded_on, start, usage,
};

/// A role that may log in and make tables, and its session.
fn attacker(db: &mut Session, role: &str) -> Session {
    db.run(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}"));
    db.another_as(role)
}

// Wiping

#[test]
fn a_change_whose_trigger_is_called_the_same_wipes_nothing() {
    let mut db = Session::new();
    db.run(TABLE);
    db.run(&SPLIT.replace(')', &format!(", change => '{}')", "v".repeat(60))));
    let mut app = application(&db, "shop");
    app.run("SELECT street FROM address");
    // A long name is cut off and gets a hash in the trigger's name; a shorter name may have it from the beginning.
    let name = db.text("SELECT substr(tgname, 6) FROM pg_trigger WHERE tgrelid = 'address'::regclass");
    let mut attacker = attacker(&mut db, "namesake");
    attacker.run("CREATE TABLE mine (a text)");
    let split = format!("SELECT zdd.split_column('mine', 'a', 'b text', delimiter => ' ', change => '{name}')");
    attacker.run(&format!("BEGIN; {split}; ROLLBACK"));
    assert_eq!(usage(&mut db), OLD_READ);
    // Also when it stays, each has its own.
    attacker.run(&split);
    attacker.run("SET application_name = 'mine'; SELECT b FROM mine");
    assert_eq!(
        db.text("SELECT length(change), application_name, side FROM zdd.usage ORDER BY 1"),
        "58|mine|new\n60|shop|old"
    );
}

#[test]
fn a_change_that_is_given_up_and_begun_anew_in_vain_wipes_nothing() {
    let (mut db, mut app) = expanded();
    app.run("SELECT street FROM address");
    db.run(&format!("BEGIN; SELECT zdd.rollback('address.street'); {SPLIT}; ROLLBACK"));
    assert_eq!(usage(&mut db), OLD_READ);
    assert!(db.error(CONTRACT).contains("was used within"));
    db.run("BEGIN; SAVEPOINT s; SELECT zdd.rollback('address.street'); ROLLBACK TO s; COMMIT");
    assert_eq!(usage(&mut db), OLD_READ);
    // It begins with nothing when it is.
    db.run(&format!("BEGIN; SELECT zdd.rollback('address.street'); {SPLIT}; COMMIT"));
    assert_eq!(usage(&mut db), "");
}

#[test]
fn a_reset_that_is_rolled_back_resets_nothing() {
    const RESET: &str = "SELECT zdd.reset_usage('address.street')";
    let (mut db, mut app) = expanded();
    app.run("SELECT street FROM address");
    db.run(&format!("BEGIN; {RESET}; ROLLBACK"));
    assert_eq!(usage(&mut db), OLD_READ);
    db.run(&format!("BEGIN; SAVEPOINT s; {RESET}; ROLLBACK TO s; COMMIT"));
    assert_eq!(usage(&mut db), OLD_READ);
    db.run(&format!("BEGIN; SAVEPOINT a; SAVEPOINT b; {RESET}; RELEASE b; ROLLBACK TO a; COMMIT"));
    assert_eq!(usage(&mut db), OLD_READ);
    db.error(&format!("BEGIN; {RESET}; SELECT 1 / 0; COMMIT"));
    db.run("ROLLBACK");
    assert_eq!(usage(&mut db), OLD_READ);
    let prepared = db.error(&format!("BEGIN; {RESET}; PREPARE TRANSACTION 'reset'"));
    assert!(prepared.contains("0A000") && prepared.contains("zdd.reset_usage"), "{prepared}");
    assert_eq!(usage(&mut db), OLD_READ);
    // What was taken back is in nobody's way.
    db.run(&format!("BEGIN; SAVEPOINT s; {RESET}; ROLLBACK TO s; PREPARE TRANSACTION 'reset'"));
    db.run("COMMIT PREPARED 'reset'");
    assert_eq!(usage(&mut db), OLD_READ);
    // Others see it when it is done, and what comes meanwhile is no exception.
    db.run(&format!("BEGIN; SAVEPOINT s; {RESET}; RELEASE s"));
    assert_eq!(usage(&mut app), OLD_READ);
    db.run("COMMIT");
    assert_eq!(usage(&mut app), "");
    assert!(db.error(CONTRACT).contains("nothing since the reset"));
}

#[test]
fn only_the_owner_resets() {
    let (mut db, mut app) = expanded();
    app.run("SELECT street FROM address");
    let mut attacker = attacker(&mut db, "resetter");
    assert!(attacker.error("SELECT zdd.reset_usage('address.street')").contains("42501"));
    assert_eq!(usage(&mut db), OLD_READ);
}

// Forging

#[test]
fn who_may_not_use_the_table_cannot_pretend_to() {
    let (mut db, _) = expanded();
    let mut stranger = attacker(&mut db, "pretender");
    stranger.run("SET application_name = 'stranger'");
    assert!(stranger.error("SELECT street FROM address").contains("42501"));
    db.run(FENCE);
    assert!(stranger.error("SELECT street FROM address").contains("42703"));
    stranger.error(
        "DO $$ BEGIN RAISE 'column \"street\" of relation \"address\" does not exist' USING ERRCODE = '42703'; END $$",
    );
    stranger.run("CREATE TABLE mine (address int)");
    stranger.error("SELECT street, address FROM mine");
    assert_eq!(usage(&mut db), "");
    let unknown = db.error(CONTRACT);
    assert!(unknown.contains("it is not known that nobody uses") && !unknown.contains("stranger"), "{unknown}");
    // What counts is who may now: it may be an application that was only just given its rights.
    db.run("GRANT SELECT (city) ON address TO pretender");
    assert_eq!(usage(&mut db), "stranger|old|0r0w3e");
    assert!(db.error(CONTRACT).contains("application \"stranger\": 0 reads, 0 writes, 3 errors"));
    for (grant, revoke) in [
        ("SELECT (city) ON address TO pretender", "SELECT (city) ON address FROM pretender"),
        ("DELETE ON address TO PUBLIC", "DELETE ON address FROM PUBLIC"),
        ("pg_read_all_data TO pretender", "pg_read_all_data FROM pretender"),
    ] {
        db.run(&format!("GRANT {grant}"));
        assert_eq!(usage(&mut db), "stranger|old|0r0w3e", "{grant}");
        db.run(&format!("REVOKE {revoke}"));
        assert_eq!(usage(&mut db), "", "{revoke}");
    }
}

#[test]
fn who_may_use_a_partition_counts() {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY LIST (id);
         CREATE TABLE first PARTITION OF address FOR VALUES IN (1)",
    );
    for sql in [SPLIT, BACKFILL, FENCE] {
        db.run(sql);
    }
    let mut app = attacker(&mut db, "of_first");
    app.run("SET application_name = 'shop'");
    app.error("SELECT street FROM first");
    assert_eq!(usage(&mut db), "");
    db.run("GRANT SELECT ON first TO of_first");
    assert_eq!(usage(&mut db), "shop|old|0r0w1e");
}

#[test]
fn who_was_let_by_a_function_or_a_view_counts_without_a_privilege() {
    let (mut db, _) = expanded();
    db.run(
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT street FROM address WHERE id = 1';
         CREATE VIEW v AS SELECT streetname FROM address; GRANT SELECT ON v TO PUBLIC",
    );
    let mut app = attacker(&mut db, "unprivileged");
    app.run("SET application_name = 'shop'; SELECT f(); SELECT * FROM v");
    assert_eq!(usage(&mut db), "shop|old|1r0w0e\nshop|new|1r0w0e");
    // Not forgotten with the counters.
    db.run("SELECT zdd.reset_usage('address.street')");
    assert!(db.error(CONTRACT).contains("role \"unprivileged\""));
}

#[test]
fn a_role_that_is_gone_uses_nothing() {
    let (mut db, mut app) = expanded();
    db.run("CREATE ROLE leaver; GRANT SELECT ON address TO leaver");
    app.run("SET ROLE leaver; SELECT street FROM address; RESET ROLE");
    assert!(db.error(CONTRACT).contains("role \"leaver\""));
    db.run("DROP OWNED BY leaver; DROP ROLE leaver");
    assert_eq!(usage(&mut db), "");
    assert!(db.error(CONTRACT).contains("Usage has been recorded for"));
}

/// A trigger made by hand, which says that it is of a change.
fn imitate(db: &mut Session, table: &str, trigger: &str, rule: &str) {
    db.run(&format!(
        "SET zdd.guard = off;
         DO $$ BEGIN
             EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW
                 EXECUTE FUNCTION zdd.sync(%L)', '{trigger}', ({rule}));
         END $$;
         RESET zdd.guard",
    ));
}

#[test]
fn a_trigger_made_by_hand_counts_for_nobodys_change() {
    const RULE: &str = "SELECT rule FROM zdd.changes WHERE change = 'address.street'";
    let (mut db, mut app) = expanded();
    db.run("CREATE TABLE mine (street text, streetname text, housenumber text)");
    imitate(&mut db, "mine", "~zdd_address.street", RULE);
    imitate(&mut db, "mine", "~zdd_x", RULE);
    let strict = format!("SELECT jsonb_set(rule, '{{conflict}}', '\"error\"') FROM ({RULE}) AS r");
    imitate(&mut db, "mine", "~zdd_a", &strict);
    app.run("SELECT street FROM mine; INSERT INTO mine VALUES ('Elm 1')");
    app.error("INSERT INTO mine VALUES ('Elm 1', 'Oak', '')");
    assert_eq!(usage(&mut db), "");
    // A child of one's own, in which other columns are made out to be the old one, is the change's by its true columns.
    imitate(
        &mut db,
        "address",
        "~zdd_z",
        &format!("SELECT jsonb_set(rule, '{{source,name}}', '\"city\"') FROM ({RULE}) AS r"),
    );
    app.run("SELECT city FROM address");
    assert_eq!(usage(&mut db), "");
    app.run("SELECT street FROM address");
    assert_eq!(usage(&mut db), OLD_READ);
}

#[test]
fn a_name_of_a_dump_makes_nobody_unseen() {
    let (mut db, mut app) = expanded();
    let mut plain = attacker(&mut db, "self_styled");
    db.run("GRANT SELECT ON address TO self_styled");
    plain.run("SET application_name = 'pg_dump'; SELECT * FROM address");
    assert_eq!(usage(&mut db), "pg_dump|old|1r0w0e\npg_dump|new|1r0w0e");
    assert!(db.error(CONTRACT).contains("role \"self_styled\", application \"pg_dump\": 1 read"));
    // Who may read all may be the one who dumps.
    db.run("GRANT pg_read_all_data TO self_styled");
    assert!(db.error(CONTRACT).contains("Usage has been recorded for"));
    // But a dump does not pick columns, writes nothing, and does not fail; and it cannot hide behind a reset.
    plain.run("SELECT street FROM address");
    db.run("SELECT zdd.reset_usage('address.street')");
    plain.run("SELECT * FROM address");
    assert!(db.error(CONTRACT).contains("role \"self_styled\", application \"pg_dump\": 1 read"));
    app.run("SET application_name = 'pg_dumpall'; UPDATE address SET street = 'Elm 1' WHERE id = 1");
    assert!(db.error(CONTRACT).contains("role \"postgres\", application \"pg_dumpall\": 0 reads, 1 write"));
}

// Crowding out

/// Whether a forgotten reader is found who has never looked at the table.
#[track_caller]
fn finds_who_misses_the_column(db: &mut Session) {
    let mut app = application(db, "forgotten");
    app.error("SELECT street FROM address");
    let found = "SELECT application_name, errors FROM zdd.usage WHERE change = 'address.street'";
    assert_eq!(db.text(found), "forgotten|1");
}

#[test]
fn fenced_partitions_without_end_do_not_blind_the_record() {
    let (mut db, _) = expanded();
    let mut attacker = attacker(&mut db, "partitioner");
    attacker.run("CREATE TABLE crowd (id int, street text) PARTITION BY LIST (id)");
    attacker.run(
        "DO $$ BEGIN
             FOR i IN 1..140 LOOP
                 EXECUTE format('CREATE TABLE crowd_%s PARTITION OF crowd FOR VALUES IN (%s)', i, i);
             END LOOP;
         END $$",
    );
    attacker.run("SELECT zdd.split_column('crowd', 'street', 'a text, b text', delimiter => ' ')");
    attacker.run("CALL zdd.backfill('crowd.street')");
    attacker.run("SELECT zdd.fence('crowd.street')");
    // Each is known when somebody looks at it.
    let mut looker = attacker.another();
    for number in 1..=140 {
        looker.run(&format!("SELECT id FROM crowd_{number}"));
    }
    db.run(FENCE);
    finds_who_misses_the_column(&mut db);
}

#[test]
fn forged_fences_do_not_blind_the_record() {
    let (mut db, mut app) = expanded();
    let rule = "SELECT jsonb_set(rule, '{source,renamed_to}', '\"old\"') FROM zdd.changes";
    for number in 1..=130 {
        db.run(&format!("CREATE TABLE forged_{number} (old text, streetname text, housenumber text)"));
        imitate(&mut db, &format!("forged_{number}"), "~zdd_address.street", rule);
        app.run(&format!("SELECT old FROM forged_{number}"));
    }
    db.run(FENCE);
    finds_who_misses_the_column(&mut db);
    app.error("SELECT street FROM forged_1");
    assert_eq!(usage(&mut db), "forgotten|old|0r0w1e");
}

#[test]
fn many_names_of_one_role_crowd_nobody_out() {
    let cluster = start(&[PRELOADED, ("zdd.usage_max", "10")]);
    let (mut db, mut app) = expanded_on(&cluster);
    for name in ["shop 1.0", "shop 2.0", "report"] {
        app.run(&format!("SET application_name = '{name}'; SELECT street FROM address"));
    }
    let mut crowd = attacker(&mut db, "crowd");
    db.run("GRANT SELECT ON address TO crowd");
    crowd.run("CREATE TABLE mine (a text)");
    for number in 1..=30 {
        crowd.run(&format!("SET application_name = 'crowd {number}'; SELECT streetname FROM address"));
    }
    // Nor with changes of one's own.
    for number in 1..=12 {
        crowd.run(&format!("CREATE TABLE mine{number} (a text)"));
        crowd.run(&format!("SELECT zdd.split_column('mine{number}', 'a', 'b text', delimiter => ' ')"));
        crowd.run(&format!("SELECT a FROM mine{number}"));
    }
    let mine = "SELECT application_name, reads FROM zdd.usage WHERE role = 'postgres' AND side = 'old' ORDER BY 1";
    assert_eq!(db.text(mine), "report|1\nshop 1.0|1\nshop 2.0|1");
    assert_eq!(db.text("SELECT entries FROM zdd.usage_info"), "10");
}

// Fences in transactions

#[test]
fn a_fence_is_known_when_it_is_committed_and_not_before() {
    let (mut db, mut app) = expanded();
    db.run("CREATE TABLE other (address int)");
    // Taken back with its savepoint; what the same transaction does next is none of its business.
    db.run(&format!(
        "BEGIN; SAVEPOINT s; {FENCE}; SELECT city FROM address; ROLLBACK TO s; UPDATE address SET city = 'Y'; COMMIT"
    ));
    app.error("SELECT street, address FROM other");
    assert_eq!(usage(&mut db), "");
    // Committed: whoever comes next is found, though nobody has looked at the table since.
    db.run(&format!("BEGIN; SAVEPOINT s; {FENCE}; RELEASE s; COMMIT"));
    finds_who_misses_the_column(&mut db);
    // It stays when it was not taken back after all.
    for in_vain in ["SELECT zdd.unfence('address.street')", "SELECT zdd.rollback('address.street')"] {
        db.run(&format!("BEGIN; {in_vain}; SELECT city FROM address; ROLLBACK"));
        db.run("SELECT zdd.reset_usage('address.street')");
        finds_who_misses_the_column(&mut db);
    }
    db.run("SELECT zdd.unfence('address.street'); SELECT zdd.reset_usage('address.street')");
    app.error("SELECT street, address FROM other");
    assert_eq!(usage(&mut db), "");
}

#[test]
fn a_fence_and_its_end_in_one_transaction() {
    const UNFENCE: &str = "SELECT zdd.unfence('address.street')";
    let (mut db, _) = expanded();
    db.run("CREATE TABLE other (address int)");
    let mut is_known = |sql: &str, known: bool| {
        db.run("SELECT zdd.reset_usage('address.street')");
        db.run(&format!("BEGIN; {sql}; COMMIT"));
        // It is never the same session, and none that has looked at the table.
        application(&db, "forgotten").error("SELECT street, address FROM other");
        assert_eq!(usage(&mut db), if known { "forgotten|old|0r0w1e" } else { "" }, "{sql}");
    };
    is_known(&format!("{FENCE}; {UNFENCE}"), false);
    is_known(&format!("{FENCE}; SAVEPOINT s; {UNFENCE}; ROLLBACK TO s"), true);
    is_known(&format!("{UNFENCE}; {FENCE}"), true);
    is_known(&format!("{UNFENCE}; SAVEPOINT s; {FENCE}; ROLLBACK TO s"), false);
    is_known(&format!("{FENCE}; {UNFENCE}; {FENCE}"), true);
}

#[test]
fn prepared_transactions_change_the_record_no_sooner() {
    let (mut db, mut app) = expanded();
    db.run("CREATE TABLE other (address int)");
    app.run("SELECT street FROM address");
    for verb in ["SELECT zdd.rollback('address.street')", FENCE] {
        db.run(&format!("BEGIN; {verb}; PREPARE TRANSACTION 'verb'"));
        app.error("SELECT street, address FROM other");
        assert_eq!(usage(&mut app), OLD_READ);
        db.run("ROLLBACK PREPARED 'verb'");
        app.error("SELECT street, address FROM other");
        assert_eq!(usage(&mut app), OLD_READ);
        assert!(db.error(CONTRACT).contains("was used within"));
    }
    // A fence is known as soon as somebody looks at the table. Who does it in a transaction that is prepared, looks again.
    db.run(&format!("BEGIN; {FENCE}; PREPARE TRANSACTION 'verb'"));
    db.run("COMMIT PREPARED 'verb'");
    db.run("SELECT zdd.reset_usage('address.street')");
    let mut looker = application(&db, "looker");
    looker.run("BEGIN; INSERT INTO other VALUES (1); SELECT city FROM address; PREPARE TRANSACTION 'looker'");
    looker.run("COMMIT PREPARED 'looker'");
    looker.run("SELECT city FROM address");
    finds_who_misses_the_column(&mut db);
}

#[test]
fn a_change_that_is_begun_in_vain_leaves_nothing() {
    let cluster = start(&[PRELOADED]);
    let mut db = Session::on(&cluster);
    db.run(TABLE);
    let mut begin_in_vain = |begun: &str, ended: &str| {
        db.run(begun);
        db.run(&format!("{SPLIT}; SELECT street, streetname FROM address"));
        assert_eq!(db.text("SELECT entries FROM zdd.usage_info"), "2");
        db.run(ended);
        assert_eq!(db.text("SELECT entries FROM zdd.usage_info"), "0", "{ended}");
    };
    begin_in_vain("BEGIN", "ROLLBACK");
    begin_in_vain("BEGIN; SAVEPOINT s", "ROLLBACK TO s; COMMIT");
    begin_in_vain("BEGIN; SAVEPOINT a; SAVEPOINT b", "RELEASE b; ROLLBACK TO a; SELECT street FROM address; COMMIT");
    // What it counted stays when it is committed.
    db.run(&format!(
        "BEGIN; SAVEPOINT a; {SPLIT}; SELECT street FROM address; RELEASE a; SAVEPOINT b; ROLLBACK TO b; COMMIT"
    ));
    assert_eq!(usage(&mut db), "test|old|1r0w0e");
}

// Looking

#[test]
fn everybody_sees_what_the_view_shows_and_no_more() {
    let (mut db, mut app) = expanded();
    let (mut elsewhere, _) = expanded();
    app.run("SELECT street /* a password */ FROM address");
    let mut nobody = attacker(&mut db, "onlooker");
    let id = db.number("SELECT id FROM zdd.change");
    let seen = format!("SELECT side, application_name, reads, sample_query FROM zdd.usage({id})");
    assert_eq!(nobody.text(&seen), "old|shop|1|~");
    assert_eq!(nobody.text("SELECT count(*) FROM zdd.usage(0), zdd.usage_info()"), "0");
    // There is a change of the same number in another database.
    assert_eq!(elsewhere.number("SELECT id FROM zdd.change"), id);
    assert_eq!(elsewhere.text(&seen), "");
}
