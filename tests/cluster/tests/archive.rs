//! The archive of a contract: it has what would be lost and nothing else, whatever is written meanwhile and whoever is killed;
//! nobody but its owner can read it; and where the contract comes to nothing, so does the archive.

use std::time::Duration;

use pg_zdd_cluster::address::wait_for;
use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::load::Runner;
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, wait_until};

const RULE: &str = r#"columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '[{streetname}][ {housenumber}]'"#;
const CONTRACT: &str = "CALL zdd.contract('address.street', force => true, archive => 'kept')";
const START: &str = "SELECT zdd.start_contract('address.street', force => true, archive => 'kept')";
const KEPT: &str =
    "SELECT relation, key, old_value, kind, archived_at > now() - interval '1 hour' FROM kept ORDER BY old_value";
const LEFT: &str = "SELECT to_regclass('kept') IS NULL AND NOT EXISTS (SELECT FROM zdd.archive)
    AND NOT EXISTS (SELECT FROM zdd.written) AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname LIKE 'zdd_watch%')";

/// A table with rows of all kinds, made by this, that is expanded.
#[track_caller]
fn expanded(db: Session, table: &str) -> Session {
    let mut db = db;
    db.run(table);
    db.run("INSERT INTO address VALUES (1, 'Elm Street 1'), (2, 'Elm  2'), (3, ''), (4, NULL), (5, 'Oak  5')");
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    db.run("CALL zdd.backfill('address.street')");
    db
}

const PLAIN: &str = "CREATE TABLE address (id int PRIMARY KEY, street text)";

#[test]
fn the_archive_has_what_would_be_lost() {
    let mut db = expanded(Session::new(), PLAIN);
    db.run(CONTRACT);
    assert_eq!(
        db.text(KEPT),
        "address|{\"id\": 3}||unmatched|t\naddress|{\"id\": 2}|Elm  2|lossy|t\naddress|{\"id\": 5}|Oak  5|lossy|t"
    );
    assert_eq!(db.text("SELECT * FROM address WHERE id = 2"), "2|Elm|2");
    assert!(db.notices().iter().any(|it| it.contains("is in public.kept")));
    assert_eq!(db.text("SELECT detail FROM zdd.events WHERE event = 'archived'"), "{\"archive\": \"public.kept\"}");
    assert_eq!(db.number("SELECT count(*) FROM zdd.archive"), 0);
}

#[test]
fn values_keep_their_type_and_rows_without_a_key_their_place() {
    let mut db = expanded(
        Session::new(),
        "CREATE DOMAIN short AS varchar(20) CHECK (value <> 'x');
         CREATE TABLE address (id int, street short COLLATE \"C\") PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (3);
         CREATE TABLE high PARTITION OF address FOR VALUES FROM (3) TO (10)",
    );
    let places = db.text("SELECT tableoid::regclass, ctid, street FROM address WHERE id IN (2, 3, 5) ORDER BY id");
    db.run(CONTRACT);
    assert_eq!(db.text("SELECT relation, tid, old_value FROM kept ORDER BY relation::text DESC, tid"), places);
    assert_eq!(db.number("SELECT count(key) FROM kept"), 0);
    let column = "SELECT format_type(atttypid, atttypmod), attcollation::regcollation FROM pg_attribute
        WHERE attrelid = 'kept'::regclass AND attname = 'old_value'";
    assert_eq!(db.text(column), "short|\"C\"");
}

#[test]
fn an_archive_can_be_used_again() {
    let mut db = expanded(Session::new(), PLAIN);
    db.run(CONTRACT);
    db.run("CREATE TABLE other (id int PRIMARY KEY, street text); INSERT INTO other VALUES (7, ''), (8, '')");
    db.run(&format!("SELECT zdd.split_column('other', 'street', {RULE})"));
    db.run("CALL zdd.backfill('other.street'); ");
    db.run(&CONTRACT.replace("address", "other"));
    let kept = "SELECT change, count(*) FROM kept GROUP BY change ORDER BY change";
    assert_eq!(db.text(kept), "address.street|3\nother.street|2");
    // And what comes to nothing takes only its own out again.
    db.run("CREATE TABLE third (id int PRIMARY KEY, street text); INSERT INTO third VALUES (7, ''), (8, '')");
    db.run(&format!("SELECT zdd.split_column('third', 'street', {RULE})"));
    db.run("CALL zdd.backfill('third.street')");
    drop(hold_last_step(&mut db));
    assert!(db.error(&CONTRACT.replace("address", "third")).contains("held"));
    assert_eq!(db.text(kept), "address.street|3\nother.street|2");
}

#[test]
fn a_contract_that_comes_to_nothing_leaves_no_archive() {
    let mut db = expanded(Session::new(), PLAIN);
    drop(hold_last_step(&mut db));
    assert!(db.error(CONTRACT).contains("held"));
    assert_eq!(db.text(LEFT), "t");
    assert_eq!(db.text("SELECT street FROM address WHERE id = 2"), "Elm  2");
    // What somebody else has put there, or made of it, stays.
    for (own, left) in [
        ("INSERT INTO kept SELECT -1, 'mine', 'address', tid, NULL, '', 'lossy', now() FROM kept LIMIT 1", "mine"),
        ("CREATE VIEW v AS SELECT * FROM kept", ""),
    ] {
        let mut db = expanded(Session::new(), PLAIN);
        let mut holder = hold_last_step(&mut db);
        let contract = db.another().in_background(CONTRACT);
        wait_for(&mut db, HELD, "1");
        db.run(own);
        holder.run("SELECT pg_advisory_unlock(7)");
        assert!(contract.join().1.unwrap_err().contains("held"));
        assert_eq!(db.text("SELECT string_agg(change, ',') FROM kept"), if left.is_empty() { "~" } else { left });
        assert_eq!(db.number("SELECT count(*) FROM zdd.archive"), 0);
    }
}

/// How many are held so.
const HELD: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()";

/// Makes the last step of a contract wait while the other session holds it, and then fail.
#[track_caller]
fn hold_last_step(db: &mut Session) -> Session {
    db.run(
        "CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE object_type = 'table column') THEN
                PERFORM pg_advisory_xact_lock_shared(7);
                RAISE EXCEPTION 'held';
            END IF;
        END $$;
        CREATE EVENT TRIGGER hold ON sql_drop EXECUTE FUNCTION hold()",
    );
    let mut holder = db.another();
    holder.run("SELECT pg_advisory_lock(7)");
    holder
}

#[test]
fn a_rollback_takes_the_archive_of_a_killed_contract_back() {
    let mut db = expanded(Session::new(), PLAIN);
    let _holder = hold_last_step(&mut db);
    let contract = db.another().in_background(CONTRACT);
    wait_for(&mut db, HELD, "1");
    db.run(&format!("SELECT pg_terminate_backend({}, 5000)", contract.pid));
    assert!(contract.join().1.is_err());
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "fenced");
    assert_eq!(db.number("SELECT count(*) FROM kept"), 3);
    // Another contract begins it anew, here under another name.
    db.run("DROP EVENT TRIGGER hold");
    assert!(db.error("CALL zdd.contract('address.street', archive => 'other')").contains("(55006)"));
    db.run("SELECT zdd.rollback('address.street')");
    assert_eq!(db.text(LEFT), "t");
}

#[test]
fn an_archive_is_made_where_the_owner_may() {
    let mut db = Session::new();
    db.run("CREATE ROLE archivist LOGIN; CREATE SCHEMA a AUTHORIZATION archivist; CREATE SCHEMA b");
    db.run("GRANT USAGE ON SCHEMA b TO archivist");
    let mut owner = db.another_as("archivist");
    owner.run("SET search_path = a");
    let mut owner = expanded(owner, PLAIN);
    for (name, sqlstate) in [
        ("b.kept", "42501"),
        ("nowhere.kept", "3F000"),
        ("zdd.kept", "42602"),
        ("pg_temp.kept", "42602"),
        ("pg_catalog.kept", "42602"),
        ("one.two.three", "42602"),
        ("", "42602"),
        ("kept; DROP TABLE a.address", "42602"),
        ("address", "42P07"),
    ] {
        let error = owner.error(&format!("CALL zdd.contract('address.street', force => true, archive => '{name}')"));
        assert!(
            error.contains(&format!("({sqlstate})")) && (error.contains("HINT: ") || sqlstate == "3F000"),
            "{error}"
        );
        let start =
            owner.error(&format!("SELECT zdd.start_contract('address.street', force => true, archive => '{name}')"));
        assert!(start.contains(&format!("({sqlstate})")), "{start}");
    }
    assert_eq!(owner.text("SELECT phase FROM zdd.changes"), "expanded");
    // Without a schema it is beside the table, whoever's search_path.
    owner.run("SET search_path = public");
    owner.run("CALL zdd.contract('address.street', force => true, archive => '\"Kept it\"')");
    assert_eq!(owner.number("SELECT count(*) FROM a.\"Kept it\""), 3);
}

#[test]
fn what_is_there_already_must_be_an_archive() {
    let columns = "change_id bigint NOT NULL, change text NOT NULL, relation regclass NOT NULL, tid tid NOT NULL,
        key jsonb, old_value text, kind text NOT NULL, archived_at timestamptz NOT NULL";
    let table = format!("CREATE TABLE kept ({columns}, PRIMARY KEY (change_id, relation, tid))");
    let code = "CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'";
    for (setup, reason) in [
        ("CREATE VIEW kept AS SELECT 1".to_owned(), "not an ordinary table"),
        (format!("CREATE TABLE kept ({columns})"), "another primary key"),
        (table.replace("old_value text", "old_value varchar"), "other columns"),
        (table.replace("old_value text", "old_value text COLLATE \"C\""), "other columns"),
        (table.replace("kind text", "kind text DEFAULT 'x'"), "other columns"),
        (table.replace("CREATE TABLE", "CREATE UNLOGGED TABLE"), "temporary or unlogged"),
        (
            format!("{table}; {code}; CREATE TRIGGER t BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION spy()"),
            "triggers",
        ),
        (format!("{table}; CREATE RULE r AS ON INSERT TO kept DO ALSO SELECT 1"), "rules"),
        (format!("{table}; ALTER TABLE kept ENABLE ROW LEVEL SECURITY"), "row-level security"),
        (format!("{table}; ALTER TABLE kept FORCE ROW LEVEL SECURITY"), "row-level security"),
        (format!("{table}; GRANT SELECT ON kept TO pg_monitor"), "have privileges"),
        (format!("{table}; GRANT SELECT (old_value) ON kept TO PUBLIC"), "have privileges"),
        (format!("{table}; ALTER TABLE kept OWNER TO pg_monitor"), "another owner"),
        (format!("{table}; CREATE TABLE child () INHERITS (kept)"), "parent or child"),
        (format!("{table}; ALTER TABLE kept ADD CHECK (kind <> 'lossy')"), "constraints"),
        (format!("{table}; CREATE INDEX ON kept (lower(old_value))"), "constraints"),
        (
            format!(
                "CREATE TABLE parent ({columns}) PARTITION BY LIST (kind); {table};
                     ALTER TABLE parent ATTACH PARTITION kept FOR VALUES IN ('lossy')"
            ),
            "partition",
        ),
    ] {
        let mut db = expanded(Session::new(), PLAIN);
        db.run(&setup);
        let error = db.error(CONTRACT);
        assert!(error.contains("(42P07)") && error.contains(reason) && error.contains("HINT: "), "{setup}: {error}");
        assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    }
    let mut db = expanded(Session::new(), PLAIN);
    db.run(&format!("{table}; CREATE INDEX ON kept (kind)"));
    db.run(CONTRACT);
    assert_eq!(db.number("SELECT count(*) FROM kept"), 3);
}

#[test]
fn nobody_else_can_read_it() {
    let mut db = Session::new();
    db.run("CREATE ROLE reader LOGIN; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reader, PUBLIC");
    let mut db = expanded(db, PLAIN);
    db.run(CONTRACT);
    let mut reader = db.another_as("reader");
    assert_eq!(reader.number("SELECT count(*) FROM address"), 5);
    assert!(reader.error("SELECT * FROM kept").contains("(42501)"));
    let others =
        "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE oid = 'kept'::regclass AND grantee <> relowner";
    assert_eq!(db.number(others), 0);
}

/// Remembers how the rows were while they had an old column.
const MIRROR: &str = "CREATE TABLE mirror (id int PRIMARY KEY, old_value text, kind text);
    CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        o jsonb := to_jsonb(OLD); n jsonb := to_jsonb(NEW);
        v text := coalesce(n->>'street_zdd_fenced', n->>'street');
        j text := (n->>'streetname') || coalesce(' ' || (n->>'housenumber'), '');
    BEGIN
        IF NOT coalesce(n, o) ?| array['street', 'street_zdd_fenced'] THEN
            RETURN NULL;
        END IF;
        IF o IS NOT NULL THEN DELETE FROM public.mirror WHERE id = (o->>'id')::int; END IF;
        IF n IS NOT NULL AND v IS DISTINCT FROM j THEN
            INSERT INTO public.mirror VALUES ((n->>'id')::int, v, CASE WHEN n->>'streetname' IS NULL THEN 'unmatched' ELSE 'lossy' END);
        END IF;
        RETURN NULL;
    END $$;
    INSERT INTO mirror SELECT id, street, CASE WHEN streetname IS NULL THEN 'unmatched' ELSE 'lossy' END
    FROM address WHERE street IS DISTINCT FROM streetname || coalesce(' ' || housenumber, '');
    CREATE TRIGGER mirror AFTER INSERT OR UPDATE OR DELETE ON address FOR EACH ROW EXECUTE FUNCTION mirror()";

/// Contracts beside applications that write, and compares the archive with what they wrote. `disturb` is called while it
/// goes on.
#[track_caller]
fn contract_beside_writers(mut db: Session, table: &str, disturb: impl Fn(&mut Session, usize)) {
    const ROWS: i32 = 20_000;
    db.run(table);
    db.run(&format!(
        "INSERT INTO address SELECT i, CASE i % 7 WHEN 0 THEN '' WHEN 1 THEN 'Elm  ' || i ELSE 'Elm ' || i END
         FROM generate_series(1, {ROWS}) AS i"
    ));
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    db.run("CALL zdd.backfill('address.street')");
    db.run(MIRROR);
    let writers: Vec<Runner> = (0..3)
        .map(|_| {
            let (mut client, mut rng) = (db.another(), Rng::new());
            Runner::start(Duration::ZERO, move || {
                let id = rng.i32(1..=ROWS);
                let to = ROWS + rng.i32(1..=ROWS);
                let sql = match rng.u32(0..8) {
                    0 => format!("INSERT INTO address VALUES ({to}, 'Oak  {id}') ON CONFLICT DO NOTHING"),
                    1 => format!("INSERT INTO address VALUES ({to}, '') ON CONFLICT DO NOTHING"),
                    2 => format!("UPDATE address SET streetname = 'Fir' WHERE id = {id}"),
                    3 => format!("UPDATE address SET note = 'x' WHERE id = {id}"),
                    4 => format!("DELETE FROM address WHERE id = {id}"),
                    5 => format!("UPDATE address SET id = {to} WHERE id = {id} AND NOT EXISTS (SELECT FROM address WHERE id = {to})"),
                    6 => format!("BEGIN; UPDATE address SET streetname = 'Yew' WHERE id = {id}; ROLLBACK"),
                    _ => format!("UPDATE address SET housenumber = NULL, note = 'y' WHERE id BETWEEN {id} AND {id} + 5"),
                };
                // The old column goes, the server may be down, two may want the same id.
                let _ = client.attempt(&sql);
            })
        })
        .collect();
    db.run(START);
    disturb(&mut db, 0);
    let mut times = 1;
    wait_until("the change is contracted", Duration::from_secs(90), || {
        if db.attempt("SELECT 1").is_ok()
            && db.number("SELECT count(*) FROM zdd.changes WHERE phase = 'contracted'") == 1
        {
            return Ok(true);
        }
        disturb(&mut db, times);
        times += 1;
        Ok(false)
    })
    .unwrap_or_else(|error| {
        panic!("{error}\n{}", db.text("TABLE zdd.event_error") + &db.text("SELECT * FROM zdd.progress"))
    });
    writers.into_iter().for_each(Runner::stop);
    let different = "SELECT id, old_value, kind, k IS NULL AS is_missing
        FROM (SELECT (key->>'id')::int AS id, old_value, kind FROM kept) AS k
        FULL JOIN mirror AS m USING (id, old_value, kind) WHERE k IS NULL OR m IS NULL LIMIT 10";
    assert_eq!(db.text(different), "");
    assert!(db.number("SELECT count(*) FROM kept") > i64::from(ROWS) / 10);
    assert_eq!(db.text("SELECT count(*) - count(DISTINCT key) FROM kept"), "0");
}

#[test]
fn the_archive_follows_what_is_written_meanwhile() {
    let table = "CREATE TABLE address (id int PRIMARY KEY, street text, note text)";
    contract_beside_writers(Session::new(), table, |_, _| std::thread::sleep(Duration::from_millis(50)));
}

#[test]
fn the_archive_follows_rows_from_partition_to_partition() {
    let table = "CREATE TABLE address (id int PRIMARY KEY, street text, note text) PARTITION BY HASH (id);
        CREATE TABLE p0 PARTITION OF address FOR VALUES WITH (MODULUS 3, REMAINDER 0);
        CREATE TABLE p1 PARTITION OF address FOR VALUES WITH (MODULUS 3, REMAINDER 1);
        CREATE TABLE p2 PARTITION OF address FOR VALUES WITH (MODULUS 3, REMAINDER 2)";
    // Their files change, too.
    contract_beside_writers(Session::new(), table, |db, times| {
        if times < 3 {
            let _ = db.attempt("VACUUM FULL p1");
        }
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn the_archive_survives_workers_that_are_killed() {
    let cluster =
        Cluster::start(&[("shared_preload_libraries", "pg_zdd"), ("zdd.auto_resume", "off")]).expect("a cluster");
    let table = "CREATE TABLE address (id int PRIMARY KEY, street text, note text)";
    contract_beside_writers(Session::on(&cluster), table, |db, times| {
        let kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_type = 'pg_zdd worker'";
        if times < 4 {
            // At some point of its way.
            std::thread::sleep(Duration::from_millis(40 * times as u64));
            let _ = db.attempt(kill);
        } else {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Unless it is at work, or done.
        let _ = db.attempt("SELECT zdd.resume('address.street')");
    });
}
