//! Other people's changes and data: what goes on across transactions goes on with what it began with, and asks for the
//! right again; rules trust nobody but those whom their owner trusts anyway.

use std::time::Duration;

use pg_zdd_cluster::address::PATIENCE;
use pg_zdd_cluster::session::{Background, Session, shared_cluster};
use pg_zdd_cluster::wait_until;

use crate::{PLAIN, SHOP, Stage, TABLE, wait_for_true};

/// A rule whose evaluation waits while somebody holds advisory lock 1.
const WAITING_RULE: &str = "columns => 'b text, c text', split_sql => array['split_part(evil.waits(a), '' '', 1)',
    'split_part(a, '' '', 2)'], join_sql => 'evil.waits(b) || '' '' || c'";
const WAITS: &str = "CREATE FUNCTION evil.waits(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN $1; END $$";

/// A partitioned table of two partitions, which are looked at in transactions of their own.
const PARTED: &str = "CREATE TABLE evil.t (id int, a text, note text) PARTITION BY LIST (id);
    CREATE TABLE evil.t1 PARTITION OF evil.t FOR VALUES IN (1);
    CREATE TABLE evil.t2 PARTITION OF evil.t FOR VALUES IN (2);
    INSERT INTO evil.t VALUES (1, 'Elm 1'), (2, 'Elm 2')";

#[track_caller]
fn wait_for_wait(db: &mut Session, pid: i32, event: &str) {
    let waits = format!("SELECT wait_event_type || wait_event ~ '{event}' FROM pg_stat_activity WHERE pid = {pid}");
    wait_for_true(db, &waits);
}

/// Runs a procedure of hers up to where it looks at the first partition, which takes until `let_go`.
struct Held {
    call: Background,
    holder: Session,
}

impl Held {
    #[track_caller]
    fn call(stage: &mut Stage, caller: Session, call: &str) -> Held {
        let mut holder = stage.mallory.another();
        holder.run("SELECT pg_advisory_lock(1)");
        let call = caller.in_background(call);
        wait_for_wait(&mut stage.db, call.pid, "^Lockadvisory");
        Held { call, holder }
    }

    #[track_caller]
    fn let_go(&mut self) {
        self.holder.run("SELECT pg_advisory_unlock(1)");
    }
}

/// Her contract, backfill or repair is under way when she drops her table; somebody else's change takes the name.
#[track_caller]
fn goes_on_by_name(call: &str, expanded: bool) {
    let mut stage = Stage::new();
    stage.mallory.run(&format!("{WAITS}; {PARTED}; SELECT zdd.split_column('evil.t', 'a', {WAITING_RULE})"));
    if expanded {
        stage.mallory.run("CALL zdd.backfill('t.a')");
    }
    let caller = stage.mallory.another();
    let mut held = Held::call(&mut stage, caller, call);
    let dropper = stage.mallory.another().in_background("BEGIN; LOCK TABLE evil.t2; DROP TABLE evil.t");
    wait_for_wait(&mut stage.db, dropper.pid, "^Lock");
    held.let_go();
    let (mut dropper, dropped) = dropper.join();
    dropped.expect("dropped");
    // It is waiting for her table, as a lock or between attempts, and does not see what happens meanwhile.
    wait_for_wait(&mut stage.db, held.call.pid, "^Lock(?!advisory)|^Extension");
    shared_cluster().freeze_backend(held.call.pid).expect("frozen");
    dropper.run("COMMIT");
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN}, change => 't.a')"));
    if expanded {
        stage.victim.run("CALL zdd.backfill('t.a')");
    }
    // What is pending, and diverged, is nobody else's business.
    stage.victim.run("UPDATE shop.address SET note = 'o' WHERE id = 1");
    let state = "SELECT id, a, b, c FROM shop.address ORDER BY id";
    let before = stage.victim.text(state);
    shared_cluster().thaw_backend(held.call.pid).expect("thawed");
    let (_, ended) = held.call.join();
    assert_eq!(
        stage.victim.text("SELECT phase FROM zdd.changes WHERE relation = 'shop.address'"),
        phase(expanded),
        "{ended:?}"
    );
    assert_eq!(stage.victim.text(state), before, "{ended:?}");
    let events = "SELECT string_agg(event, ' ' ORDER BY e.at) FROM zdd.events AS e WHERE role = ";
    let by_her = stage.db.text(&format!(
        "{events}'{}' AND event IN ('fenced', 'contracted', 'repaired', 'error')
        AND e.change = 't.a' AND e.at > (SELECT started_at FROM zdd.changes WHERE relation = 'shop.address')",
        stage.names.mallory
    ));
    assert_eq!(by_her, "~", "she has an event in the change of somebody else");
    if !call.contains("backfill") {
        let error = ended.expect_err("it has gone on without its change");
        assert!(!error.contains("(XX"), "{error}");
    }
}

fn phase(expanded: bool) -> &'static str {
    if expanded { "expanded" } else { "expanding" }
}

#[test]
fn contract_goes_on_by_name() {
    goes_on_by_name("CALL zdd.contract('t.a', force => true)", true);
}

#[test]
fn backfill_goes_on_by_name() {
    goes_on_by_name("CALL zdd.backfill('t.a')", false);
}

#[test]
fn repair_goes_on_by_name() {
    goes_on_by_name("CALL zdd.repair('t.a', 'old')", true);
}

/// She may no longer act for the owner when the procedure that she called comes to its next transaction.
#[track_caller]
fn loses_the_right(call: &str, expanded: bool, take: &str) {
    let mut stage = Stage::new();
    stage.run(
        "CREATE ROLE :mallory_team; GRANT :mallory_team TO :mallory; GRANT ALL ON SCHEMA evil TO :mallory_team;
         SET ROLE :mallory_team",
    );
    stage.run(&format!("{WAITS}; {PARTED}; SELECT zdd.split_column('evil.t', 'a', {WAITING_RULE}); RESET ROLE"));
    if expanded {
        stage.mallory.run("CALL zdd.backfill('t.a')");
    }
    let caller = stage.mallory.another();
    let mut held = Held::call(&mut stage, caller, call);
    let taker = stage.db.another().in_background(&stage.names.fill(take));
    let mut db = stage.db.another();
    wait_until("the right is taken, or waits for her", PATIENCE, || {
        Ok(taker.has_ended() || db.text(&format!("SELECT cardinality(pg_blocking_pids({})) > 0", taker.pid)) == "t")
    })
    .expect("taken");
    held.let_go();
    let (_, taken) = taker.join();
    taken.expect("taken");
    let (_, ended) = held.call.join();
    let error = ended.expect_err("it has gone on without the right to");
    assert!(error.contains("(42501)"), "{error}");
    assert_eq!(stage.db.text("SELECT phase FROM zdd.changes"), phase(expanded));
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'evil.t'::regclass AND attname = 'a'";
    assert_eq!(stage.db.text(columns), "1", "the old column is gone");
}

const REVOKE: &str = "REVOKE :mallory_team FROM :mallory";
const GIVE_AWAY: &str = "SET zdd.guard = off; ALTER TABLE evil.t OWNER TO :victim";

#[test]
fn contract_after_a_revoke() {
    loses_the_right("CALL zdd.contract('t.a', force => true)", true, REVOKE);
}

#[test]
fn contract_of_a_table_that_was_given_away() {
    loses_the_right("CALL zdd.contract('t.a', force => true)", true, GIVE_AWAY);
}

#[test]
fn backfill_after_a_revoke() {
    loses_the_right("CALL zdd.backfill('t.a')", false, REVOKE);
}

#[test]
fn repair_after_a_revoke() {
    loses_the_right("CALL zdd.repair('t.a', 'old')", true, REVOKE);
}

/// A backfill of hers is waiting for its next batch when her table is given away.
#[test]
fn backfill_of_a_table_that_was_given_away() {
    loses_the_right("CALL zdd.backfill('t.a')", false, GIVE_AWAY);
}

/// A split of a table of the victim that must be refused for whose objects it uses.
fn refused(victim: &mut Session, table: &str, source: &str, rule: &str, accepted: &mut Vec<String>) {
    match victim.attempt(&format!("SELECT zdd.split_column('shop.{table}', '{source}', {rule})")) {
        // Or for another reason already: PostgreSQL writes enums by a function that is not immutable.
        Err(error) if error.contains("(42501)") || error.contains("(42P17)") => {}
        Err(error) => accepted.push(format!("{rule}: {error}")),
        Ok(()) => {
            accepted.push(format!("{source}: {rule}"));
            victim.run(&format!("SELECT zdd.rollback('{table}.{source}')"));
        }
    }
}

/// The victim is made to use objects of hers in a rule, which would run with the victim's rights.
#[test]
fn objects_of_others_in_a_rule() {
    let mut stage = Stage::new();
    stage.mallory.run(
        "CREATE DOMAIN evil.word AS text; CREATE DOMAIN evil.number AS int; CREATE TYPE evil.pair AS (x text, y text);
         CREATE TYPE evil.mood AS ENUM ('Elm', 'Oak'); CREATE TYPE evil.span AS RANGE (SUBTYPE = text);
         CREATE COLLATION evil.c FROM \"C\";
         CREATE OPERATOR evil.@@@ (FUNCTION = evil.probe, RIGHTARG = text);
         CREATE FUNCTION evil.like(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
         CREATE OPERATOR evil.~~ (FUNCTION = evil.like, LEFTARG = text, RIGHTARG = text);
         CREATE FUNCTION evil.to_mood(text) RETURNS evil.mood LANGUAGE sql IMMUTABLE RETURN 'Elm'::evil.mood;
         CREATE CAST (text AS evil.mood) WITH FUNCTION evil.to_mood(text);
         CREATE FUNCTION evil.of_int(int) RETURNS evil.pair LANGUAGE sql IMMUTABLE RETURN ROW('x', 'y')::evil.pair;
         CREATE CAST (int AS evil.pair) WITH FUNCTION evil.of_int(int) AS IMPLICIT;
         CREATE AGGREGATE evil.agg(text) (SFUNC = textcat, STYPE = text);
         CREATE FUNCTION evil.variadic(VARIADIC text[]) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1[1];",
    );
    stage.victim.run(SHOP);
    // Operators and domains may be the victim's own, and what they call not.
    stage.victim.run(
        "CREATE OPERATOR shop.@@@ (FUNCTION = evil.probe, RIGHTARG = text); CREATE DOMAIN shop.above AS evil.word;
         CREATE FUNCTION shop.mine(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1",
    );
    let mut accepted = Vec::new();
    // Over the column `#`.
    for expression in [
        "evil.probe(#)",
        "evil.variadic(#, ''x'')",
        "lower(evil.probe(#))",
        "CASE WHEN # IS NULL THEN evil.probe(''k'') ELSE # END",
        "coalesce(#, evil.probe(#))",
        "OPERATOR(evil.@@@) #",
        "OPERATOR(shop.@@@) #",
        "(# OPERATOR(evil.~~) ''x'')::text",
        "(# OPERATOR(evil.~~) ANY (array[''x'']))::text",
        "#::evil.word",
        "#::shop.above",
        "(array[#]::evil.word[])[1]::text",
        "length(#)::evil.number::text",
        "(''{x}''::evil.word[])[1]::text",
        "(ROW(#, #)::evil.pair).x",
        "#::evil.mood::text",
        "(length(#)::evil.pair).x",
        "lower(evil.span(#, #))",
        "# COLLATE evil.c",
    ] {
        for rule in [
            format!("'b text', split_sql => array['{}'], join_sql => 'b'", expression.replace('#', "a")),
            format!("'b text', split_sql => array['a'], join_sql => '{}'", expression.replace('#', "b")),
        ] {
            refused(&mut stage.victim, "address", "a", &rule, &mut accepted);
        }
    }
    // Types of columns likewise.
    for columns in
        ["b evil.word", "b shop.above", "b evil.word[]", "b text COLLATE evil.c", "b evil.pair", "b evil.mood"]
    {
        let rule = format!("'{columns}', split_sql => array['null'], join_sql => '''x'''");
        refused(&mut stage.victim, "address", "a", &rule, &mut accepted);
    }
    stage.victim.run("CREATE TABLE shop.typed (id int, a evil.word, d shop.above, e text COLLATE evil.c)");
    for source in ["a", "d", "e"] {
        refused(&mut stage.victim, "typed", source, PLAIN, &mut accepted);
    }
    stage.note_escalation("a rule of the victim", &mut accepted);
    assert!(accepted.is_empty(), "not refused with 42501:\n{}", accepted.join("\n"));
    // Those of his own, of a superuser, and of roles whose rights he has are what rules are made of.
    stage.run(
        "CREATE FUNCTION public.common(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1; GRANT :mallory TO :victim",
    );
    for function in ["shop.mine", "public.common", "evil.probe", "lower"] {
        stage.victim.run(&format!(
            "SELECT zdd.split_column('shop.address', 'a', 'b text', split_sql => array['{function}(a)'], join_sql => 'b')"
        ));
        stage.victim.run("SELECT zdd.rollback('address.a')");
    }
}

/// She copies a rule of the victim's, whose function only the victim may call, to a trigger of that name on her own table.
#[test]
fn somebody_else_s_registered_rule() {
    let mut stage = Stage::new();
    stage.victim.run(SHOP);
    stage.victim.run(
        "CREATE FUNCTION shop.secret(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ''hush ''::text || $1';
         REVOKE EXECUTE ON FUNCTION shop.secret(text) FROM PUBLIC;
         SELECT zdd.split_column('shop.address', 'a', 'b text', split_sql => array['shop.secret(a)'], join_sql => 'b')",
    );
    let copy = "SELECT replace(pg_get_triggerdef(oid), 'shop.address', 'evil.made') FROM pg_trigger
        WHERE tgrelid = 'shop.address'::regclass AND NOT tgisinternal";
    let copy = stage.mallory.text(copy);
    stage.mallory.run("CREATE TABLE evil.made (id int PRIMARY KEY, a text, b text, note text)");
    if stage.mallory.attempt(&copy).is_ok() {
        let error = stage.mallory.error("INSERT INTO evil.made VALUES (1, 'Elm 1')");
        assert!(error.contains("(55000)") || error.contains("(42501)"), "{error}");
    }
}

/// She keeps a transaction open that has taken the name of a change; the victim's split of a table of the same name waits
/// for it, and must not hold the lock on his table meanwhile.
#[test]
fn name_that_is_being_taken() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.address (id int PRIMARY KEY, a text)");
    stage.mallory.run(&format!("BEGIN; SELECT zdd.split_column('evil.address', 'a', {PLAIN})"));
    stage.victim.run(SHOP);
    let mut application = stage.victim.another();
    let mut victim = stage.victim.another();
    victim.run("SET zdd.lock_patience = '3s'");
    let split = victim.in_background(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    let waits = format!("SELECT cardinality(pg_blocking_pids({})) > 0", split.pid);
    let mut db = stage.db.another();
    wait_until("the split waits or has ended", PATIENCE, || Ok(split.has_ended() || db.text(&waits) == "t"))
        .expect("waits");
    application.run("SET statement_timeout = '3s'");
    let read = application.attempt("SELECT * FROM shop.address");
    stage.mallory.run("ROLLBACK");
    let _ = split.join();
    assert!(read.is_ok(), "the victim's application was stopped: {read:?}");
}

/// She takes the name that a change of the victim would have by default: it is in her way alone.
#[test]
fn name_that_is_taken() {
    let mut stage = Stage::new();
    stage.mallory.run("CREATE TABLE evil.address (id int PRIMARY KEY, a text)");
    stage.mallory.run(&format!("SELECT zdd.split_column('evil.address', 'a', {PLAIN})"));
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN}, change => 'mine')"));
    for verb in
        ["fence", "unfence", "rollback", "verify", "mismatches", "pause", "resume", "start_backfill", "reset_usage"]
    {
        let error = stage.mallory.error(&format!("SELECT zdd.{verb}('mine')"));
        assert!(error.contains("(42501)"), "{verb}: {error}");
    }
    for call in ["backfill('mine')", "repair('mine', 'new')", "contract('mine')", "wait_for('mine', 'expanded', '1s')"]
    {
        let error = stage.mallory.error(&format!("CALL zdd.{call}"));
        assert!(error.contains("(42501)"), "{call}: {error}");
    }
}

/// Her backfills sleep in all worker slots that the server has.
#[test]
fn all_worker_slots() {
    let cluster = pg_zdd_cluster::Cluster::start(&[
        ("shared_preload_libraries", "pg_zdd"),
        ("max_worker_processes", "8"),
        ("zdd.max_workers", "4"),
        ("zdd.auto_resume", "off"),
    ])
    .expect("a cluster");
    let mut stage = Stage::on(&cluster);
    stage.mallory.run(
        "CREATE TABLE evil.is_on (it boolean);
         CREATE FUNCTION evil.sleeps() RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             IF EXISTS (SELECT FROM evil.is_on) THEN PERFORM pg_sleep(600); END IF;
             RETURN true;
         END $$",
    );
    for change in ["x", "y", "z"] {
        stage.mallory.run(&TABLE.replace("evil.t", &format!("evil.{change}")));
        stage.mallory.run(&format!("SELECT zdd.split_column('evil.{change}', 'a', {PLAIN}, change => '{change}')"));
        stage.mallory.run(&format!("SELECT zdd.alter_change('{change}', run_if => 'evil.sleeps()')"));
    }
    stage.mallory.run("INSERT INTO evil.is_on VALUES (true)");
    for change in ["x", "y", "z"] {
        stage.mallory.run(&format!("SELECT zdd.start_backfill('{change}', workers => 8)"));
    }
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd worker%' AND wait_event = 'PgSleep'";
    wait_until("she has as many workers as she gets", Duration::from_secs(60), || {
        // Workers that found no slot are tried again after the session's next commit.
        stage.mallory.run("SELECT");
        Ok(stage.db.number(sleeping) >= 2)
    })
    .unwrap();
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    stage.victim.run("SELECT zdd.start_backfill('address.a')");
    let waited = stage.victim.attempt("CALL zdd.wait_for('address.a', 'expanded', '10s')");
    let hers = stage.db.number(sleeping);
    assert!(waited.is_ok() && hers <= 2, "she has {hers} workers; the victim: {waited:?}");
    let reasons = "SELECT bool_or(waiting_for ~* 'max_workers') FROM zdd.progress WHERE change IN ('x', 'y', 'z')";
    wait_for_true(&mut stage.db, reasons);
}

/// Statements with megabytes of nonsense, and many fenced tables, keep the memory locked that all sessions record usage in.
#[test]
fn lock_on_the_record_of_usage() {
    let mut stage = Stage::new();
    for number in 0..128 {
        stage.mallory.run(&format!("CREATE TABLE evil.f{number} (id int, x text, b text)"));
        let made = stage.mallory.attempt(&format!(
            r#"CREATE TRIGGER "~zdd_f{number}" BEFORE INSERT OR UPDATE ON evil.f{number} FOR EACH ROW EXECUTE FUNCTION zdd.sync('{{
                "version":1,"change":"f{number}","source":{{"name":"nonsense","renamed_to":"x","type":"text"}},
                "targets":[{{"name":"b","type":"text","not_null":false}}],"split":{{"delimiter":" "}},
                "join":{{"delimiter":" "}},"unmatched":"null","conflict":"new","max_source_length":65536}}')"#
        ));
        if made.is_ok() {
            stage.mallory.run(&format!("SELECT * FROM evil.f{number}"));
        }
    }
    stage.victim.run(SHOP);
    stage.victim.run(&format!("SELECT zdd.split_column('shop.address', 'a', {PLAIN})"));
    let long = format!("SELECT nonsense FROM evil.f1 WHERE x <> '{}'", "x ".repeat(2 << 20));
    let flood = stage.mallory.another().in_background(&long);
    let mut slowest = Duration::ZERO;
    let mut number = 0;
    while !flood.has_ended() {
        number += 1;
        let begun = std::time::Instant::now();
        // Each has an entry of its own to make.
        stage.victim.run(&format!("SET application_name = 'shop{}'; SELECT a, b FROM shop.address", number));
        slowest = slowest.max(begun.elapsed());
    }
    let (_, ended) = flood.join();
    assert!(ended.is_err_and(|error| error.contains("(42703)")), "the statement has not failed as it must");
    assert!(slowest < Duration::from_millis(500), "a statement of the victim took {slowest:?}");
}
