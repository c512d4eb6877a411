//! The phases of a change, and what a table can have that stands in their way: partitions, children, indexes,
//! privileges, triggers, publications, and code of its own.

use std::time::Duration;

use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::wait_until;

const RULE: &str = r#"columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]'"#;
const BACKFILL: &str = "CALL zdd.backfill('address.street')";
const CONTRACT: &str = "CALL zdd.contract('address.street', force => true)";
const ROLLBACK: &str = "SELECT zdd.rollback('address.street')";
const FENCE: &str = "SELECT zdd.fence('address.street')";
const UNFENCE: &str = "SELECT zdd.unfence('address.street')";

fn split(db: &mut Session) {
    db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
}

/// A table with three rows from before the change, and whatever else is asked for.
fn table(more: &str) -> Session {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int PRIMARY KEY, street text, note text);
         INSERT INTO address VALUES (1, 'Elm 1'), (2, 'Oak 2'), (3, 'Ash')",
    );
    db.run(more);
    db
}

/// The same, expanding.
fn expanding(more: &str) -> Session {
    let mut db = table(more);
    split(&mut db);
    db
}

/// The same, expanded.
fn expanded(more: &str) -> Session {
    let mut db = expanding(more);
    db.run(BACKFILL);
    assert_eq!(phase(&mut db), "expanded");
    db
}

fn phase(db: &mut Session) -> String {
    db.text("SELECT phase FROM zdd.changes")
}

fn states(db: &mut Session) -> String {
    db.text("SELECT in_sync, unmatched, pending, diverged FROM zdd.verify('address.street')")
}

/// What there is to a table and its partitions or children, but for its rows.
fn shape(db: &mut Session) -> String {
    db.text(
        "SELECT c.oid::regclass::text, string_agg(a.attname || CASE WHEN a.attnotnull THEN '!' ELSE '' END, ',' ORDER BY a.attnum),
             (SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE conrelid = c.oid AND contype <> 'n'),
             (SELECT string_agg(tgname || tgenabled::text, ',' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid)
         FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
         GROUP BY c.oid ORDER BY 1",
    )
}

// Partitions and children

/// Two levels of partitions, one with its columns in another order and some dropped.
fn partitioned() -> Session {
    let mut db = Session::new();
    db.run(
        "CREATE TABLE address (id int, region text, street text, note text) PARTITION BY LIST (region);
         CREATE TABLE north PARTITION OF address FOR VALUES IN ('n') PARTITION BY RANGE (id);
         CREATE TABLE north_low PARTITION OF north FOR VALUES FROM (0) TO (1000);
         CREATE TABLE north_high PARTITION OF north FOR VALUES FROM (1000) TO (10000);
         CREATE TABLE south (junk int, street text, id int, gone text, note text, region text);
         ALTER TABLE south DROP gone, DROP junk;
         ALTER TABLE address ATTACH PARTITION south FOR VALUES IN ('s');
         INSERT INTO address SELECT i, CASE i % 3 WHEN 0 THEN 's' ELSE 'n' END, 'Elm ' || i, 'note'
             FROM generate_series(1, 2000) AS i",
    );
    db
}

/// Tables with rows of the old application, to be attached to `partitioned`.
const EAST: &str =
    "CREATE TABLE east (note text, housenumber varchar, streetname varchar, street text, region text, id int);
    INSERT INTO east (region, id, street) SELECT 'e', i, 'Elm ' || i FROM generate_series(1, 500) AS i";
const ATTACH: &str = "ALTER TABLE address ATTACH PARTITION east FOR VALUES IN ('e')";

#[test]
fn partitions_of_all_kinds() {
    let mut db = partitioned();
    split(&mut db);
    db.run(
        "CREATE TABLE west PARTITION OF address FOR VALUES IN ('w');
         INSERT INTO address (id, region, street) VALUES (1, 'w', 'Oak 1');
         INSERT INTO address (id, region, streetname, housenumber) VALUES (2, 'w', 'Oak', '2'), (1, 's', 'Yew', '1');
         INSERT INTO south (id, region, street) VALUES (2, 's', 'Yew 2')",
    );
    db.run(EAST);
    db.run(ATTACH);
    assert_eq!(states(&mut db), "4|0|2500|0");
    db.run(BACKFILL);
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("2504|0|0|0", "expanded"));
    let wrong = "SELECT * FROM address WHERE street <> streetname || ' ' || housenumber OR streetname IS NULL";
    assert_eq!(db.text(wrong), "");
    db.run(FENCE);
    db.run("INSERT INTO address (id, region, streetname) VALUES (3, 'e', 'Fir')");
    assert_eq!(db.text("SELECT street_zdd_fenced FROM east WHERE id = 3 AND streetname = 'Fir'"), "Fir");
    db.run(CONTRACT);
    assert_eq!(
        shape(&mut db),
        "address|id,region,note,streetname!,housenumber|~|~
         east|note,housenumber,streetname!,region,id|~|~
         north|id,region,note,streetname!,housenumber|~|~
         north_high|id,region,note,streetname!,housenumber|~|~
         north_low|id,region,note,streetname!,housenumber|~|~
         south|id,note,region,streetname!,housenumber|~|~
         west|id,region,note,streetname!,housenumber|~|~"
            .replace("\n         ", "\n")
    );
    assert_eq!(db.number("SELECT count(*) FROM address WHERE streetname IS NOT NULL"), 2505);
}

#[test]
fn a_partition_attached_while_the_backfill_runs() {
    let mut db = partitioned();
    split(&mut db);
    db.run(EAST);
    let (mut holder, worker) = (db.another(), db.another());
    holder.run("BEGIN; SELECT 1 FROM south WHERE id = 1998 FOR UPDATE");
    let call = worker.in_background(BACKFILL);
    let waiting = "SELECT count(*) FROM zdd.workers WHERE waiting_for LIKE 'row locks%'";
    wait_until("the backfill waits", Duration::from_secs(60), || Ok(db.number(waiting) > 0)).unwrap();
    db.run(ATTACH);
    holder.run("ROLLBACK");
    let (_, result) = call.join();
    assert_eq!(result, Ok(()));
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("2500|0|0|0", "expanded"));
}

/// When every row is known to carry both shapes, rows that do not must not come in unseen.
#[test]
fn a_partition_attached_when_expanded() {
    let mut db = partitioned();
    split(&mut db);
    db.run(BACKFILL);
    db.run(EAST);
    if db.attempt(ATTACH).is_ok() {
        // The row would be missed by the new application; the backfill must at least be able to split it.
        db.run(BACKFILL);
        assert_eq!(states(&mut db), "2500|0|0|0");
    }
    db.run(CONTRACT);
}

#[test]
fn a_detached_partition_keeps_nothing_back() {
    let mut db = partitioned();
    split(&mut db);
    db.run("ALTER TABLE address DETACH PARTITION south");
    db.run(BACKFILL);
    db.run(CONTRACT);
    // It is a table of its own now, as DETACH leaves it: without the trigger.
    db.run("INSERT INTO south (id, street) VALUES (1, 'Elm 1')");
    assert_eq!(db.text("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'south'::regclass"), "0");
}

#[test]
fn inheritance_children() {
    let mut db = table(
        "CREATE TABLE child (extra text) INHERITS (address);
         CREATE TABLE grandchild () INHERITS (child);
         CREATE TABLE joined (note text, street text, gone int, id int); ALTER TABLE joined DROP gone;
         ALTER TABLE joined ALTER id SET NOT NULL;
         ALTER TABLE joined INHERIT address;
         INSERT INTO child VALUES (11, 'Elm 11'); INSERT INTO grandchild VALUES (21, 'Elm 21');
         INSERT INTO joined (id, street) VALUES (31, 'Elm 31')",
    );
    let before = shape(&mut db);
    split(&mut db);
    db.run(ROLLBACK);
    assert_eq!(shape(&mut db), before);
    split(&mut db);
    for table in ["child", "grandchild", "joined"] {
        db.run(&format!(
            "INSERT INTO {table} (id, street) VALUES (12, 'Oak 12');
             INSERT INTO {table} (id, streetname, housenumber) VALUES (13, 'Yew', '13')"
        ));
    }
    assert_eq!(states(&mut db), "6|0|6|0");
    db.run(BACKFILL);
    assert_eq!(states(&mut db), "12|0|0|0");
    // A new child would be without the trigger, which inheritance does not hand down.
    for refused in ["CREATE TABLE late () INHERITS (address)", "CREATE TABLE late () INHERITS (child)"] {
        let error = db.error(refused);
        assert!(error.contains("(55006)") && error.contains("sync trigger"), "{error}");
    }
    db.run(FENCE);
    db.run(UNFENCE);
    db.run(CONTRACT);
    let columns = "address|id!,note,streetname!,housenumber|address_pkey|~
        child|id!,note,extra,streetname!,housenumber|~|~
        grandchild|id!,note,extra,streetname!,housenumber|~|~
        joined|note,id!,streetname!,housenumber|~|~";
    // PostgreSQL's DROP COLUMN leaves to a child what the child defines itself.
    let shape = shape(&mut db);
    assert!(!shape.contains("zdd"), "{shape}");
    assert_eq!(shape.replace("note,street,id", "note,id"), columns.replace("\n        ", "\n"));
    assert_eq!(db.text("SELECT * FROM grandchild WHERE id <> 13 ORDER BY id"), "12|~|~|Oak|12\n21|~|~|Elm|21");
}

/// A column that a child has from two parents cannot be renamed through one of them, so the change could not end.
#[test]
fn a_child_of_two_parents() {
    let mut db = table(
        "CREATE TABLE place (street text);
         CREATE TABLE child () INHERITS (address, place);
         INSERT INTO child VALUES (11, 'Elm 11')",
    );
    let before = shape(&mut db);
    let refused = db.attempt(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
    if refused.is_ok() {
        db.run(BACKFILL);
        db.run(FENCE);
        db.run(CONTRACT);
    } else {
        assert_eq!(shape(&mut db), before);
    }
}

// Phases

#[test]
fn every_verb_in_every_phase() {
    let verbs = [FENCE, UNFENCE, CONTRACT, ROLLBACK];
    let ways: [(&str, &[&str], [bool; 4]); 5] = [
        ("expanding", &[], [false, false, false, true]),
        ("expanded", &[BACKFILL], [true, false, true, true]),
        ("fenced", &[BACKFILL, FENCE], [false, true, true, true]),
        ("contracted", &[BACKFILL, CONTRACT], [false; 4]),
        ("rolled_back", &[ROLLBACK], [false; 4]),
    ];
    let mut wrong = Vec::new();
    for (from, way, allowed) in ways {
        for (verb, allowed) in verbs.iter().zip(allowed) {
            let mut db = expanding("");
            way.iter().for_each(|step| db.run(step));
            assert_eq!(phase(&mut db), from);
            let before = (shape(&mut db), db.text("SELECT * FROM zdd.events"));
            match db.attempt(verb) {
                Ok(()) => {
                    assert!(allowed, "{from}: {verb}");
                    let (now, shape) = (phase(&mut db), shape(&mut db));
                    let columns = match now.as_str() {
                        "fenced" => "id!,street_zdd_fenced,note,streetname,housenumber|address_pkey|~zdd_",
                        "expanded" => "id!,street,note,streetname,housenumber|address_pkey|~zdd_",
                        "contracted" => "id!,note,streetname!,housenumber|address_pkey|~",
                        "rolled_back" => "id!,street,note|address_pkey|~",
                        _ => unreachable!("{verb} leads to {now}"),
                    };
                    assert!(shape.starts_with(&format!("address|{columns}")), "{from}: {verb}: {shape}");
                    assert_eq!(shape.contains("zdd"), now == "fenced" || now == "expanded");
                    assert_eq!(db.text("SELECT event FROM zdd.events ORDER BY at DESC LIMIT 1"), now);
                }
                Err(error) => {
                    if allowed || !error.contains("(55000)") || !error.contains("HINT") {
                        wrong.push(format!("{from}: {verb}: {error}"));
                    }
                    assert_eq!((shape(&mut db), db.text("SELECT * FROM zdd.events")), before);
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_change_can_begin_again() {
    let mut db = expanded("");
    db.run(FENCE);
    db.run(ROLLBACK);
    assert_eq!(db.text("SELECT * FROM address ORDER BY id"), "1|Elm 1|~\n2|Oak 2|~\n3|Ash|~");
    split(&mut db);
    db.run(BACKFILL);
    db.run(CONTRACT);
    assert_eq!(db.text("SELECT phase FROM zdd.changes ORDER BY started_at"), "rolled_back\ncontracted");
    db.run("ALTER TABLE address DROP streetname, DROP housenumber, ADD street text");
    split(&mut db);
    assert_eq!(db.text("SELECT count(*) FROM zdd.changes WHERE phase = 'expanding'"), "1");
}

#[test]
fn a_fence_hides_the_old_column_from_sql_alone() {
    let mut db = expanded("CREATE VIEW streets AS SELECT id, street FROM address; CREATE INDEX ON address (street)");
    db.run(FENCE);
    for sql in ["SELECT street FROM address", "UPDATE address SET street = 'Elm'"] {
        assert!(db.error(sql).contains("(42703)"));
    }
    db.run("UPDATE address SET streetname = 'Fir' WHERE id = 1");
    assert_eq!(db.text("SELECT street FROM streets WHERE id = 1"), "Fir 1");
    assert_eq!(states(&mut db), "3|0|0|0");
    db.run(UNFENCE);
    db.run("UPDATE address SET street = 'Yew 7' WHERE id = 1");
    assert_eq!(db.text("SELECT streetname, housenumber FROM address WHERE id = 1"), "Yew|7");
}

// Contract

/// A contract that is refused leaves everything as it was, from expanded and from fenced.
fn refused(prepare: &str, contract: &str, code: &str, says: &str) {
    for from in ["expanded", "fenced"] {
        let mut db = expanded("");
        db.run(prepare);
        if from == "fenced" {
            db.run(FENCE);
        }
        let before = shape(&mut db);
        let error = db.error(contract);
        assert!(error.contains(&format!("({code})")) && error.contains(says), "{from}: {error}");
        assert_eq!((shape(&mut db), phase(&mut db).as_str()), (before, from));
        if from == "fenced" {
            db.run(UNFENCE);
        }
        db.run("INSERT INTO address (id, street) VALUES (51, 'Fir 1')");
        db.run("INSERT INTO address (id, streetname, housenumber) VALUES (52, 'Fir', '2')");
        assert_eq!(
            db.text("SELECT street, streetname, housenumber FROM address WHERE id > 50 ORDER BY id"),
            "Fir 1|Fir|1\nFir 2|Fir|2"
        );
    }
}

/// SQL that runs without the sync trigger.
fn bypass(sql: &str) -> String {
    format!("SET session_replication_role = replica; {sql}; RESET session_replication_role")
}

#[test]
fn contract_refuses_pending_rows() {
    let sql = bypass("INSERT INTO address VALUES (4, 'Elm 4'), (5, 'Elm 5')");
    refused(&sql, CONTRACT, "55000", "2 rows pending, 0 rows diverged");
}

#[test]
fn contract_refuses_diverged_rows() {
    refused(&bypass("UPDATE address SET streetname = 'Yew' WHERE id = 1"), CONTRACT, "55000", "1 row diverged");
}

#[test]
fn contract_refuses_unmatched_rows() {
    let unmatched = "INSERT INTO address (id, street) VALUES (4, E'two\\nlines')";
    refused(unmatched, CONTRACT, "55000", "1 row of change");
    let accepting = CONTRACT.replace("force", "accept_unmatched => true, force");
    refused(unmatched, &accepting, "23502", "1 row of change");
}

#[test]
fn contract_refuses_nulls() {
    refused("INSERT INTO address (id) VALUES (4)", CONTRACT, "23502", "1 row of change");
}

#[test]
fn contract_refuses_dependents() {
    for (dependent, name) in [
        ("CREATE VIEW streets AS SELECT street FROM address", "view public.streets"),
        ("CREATE MATERIALIZED VIEW streets AS SELECT street FROM address", "materialized view public.streets"),
        ("CREATE INDEX both_sides ON address (street, id)", "both_sides"),
        ("CREATE INDEX filtered ON address (id) WHERE street <> ''", "filtered"),
        ("CREATE STATISTICS together ON street, note FROM address", "together"),
        ("CREATE POLICY elm ON address USING (street LIKE 'Elm%')", "elm"),
        ("ALTER TABLE address ADD size int GENERATED ALWAYS AS (length(street)) STORED", "size"),
        ("ALTER TABLE address ADD CONSTRAINT pair CHECK (street <> note)", "pair"),
        ("CREATE PUBLICATION published FOR TABLE address (id, street)", "published"),
        (
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
          CREATE TRIGGER noted AFTER UPDATE OF street ON address FOR EACH ROW EXECUTE FUNCTION noted()",
            "noted",
        ),
    ] {
        refused(dependent, CONTRACT, "2BP01", name);
    }
}

#[test]
fn contract_refuses_a_column_that_may_be_in_use() {
    refused("", "CALL zdd.contract('address.street')", "55006", "zdd.quiet_period");
}

#[test]
fn contract_waits_for_a_fence_of_the_quiet_period() {
    let mut db = expanded("");
    db.run("SET zdd.quiet_period = '1h'");
    db.run(FENCE);
    assert!(db.error("CALL zdd.contract('address.street')").contains("(55006)"));
    db.run("UPDATE zdd.change SET phase_since = phase_since - interval '61 min'");
    db.run("CALL zdd.contract('address.street')");
}

/// What goes wrong in the last step of all is undone too.
#[test]
fn contract_that_fails_at_the_end() {
    let stop = "CREATE FUNCTION stop() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE object_type = 'table column') THEN
                RAISE EXCEPTION 'not on a Friday';
            END IF;
        END $$;
        CREATE EVENT TRIGGER stop ON sql_drop EXECUTE FUNCTION stop()";
    refused(stop, CONTRACT, "P0001", "not on a Friday");
}

#[test]
fn contract_accepts_the_loss_of_unmatched_rows() {
    let mut db = table("");
    db.run(&format!("SELECT zdd.split_column('address', 'street', {})", RULE.replace(" NOT NULL", "")));
    db.run("INSERT INTO address (id, street) VALUES (4, E'two\\nlines')");
    db.run(BACKFILL);
    db.run(&CONTRACT.replace("force", "accept_unmatched => true, force"));
    assert_eq!(db.text("SELECT * FROM address WHERE id = 4"), "4|~|~|~");
}

#[test]
fn not_null_becomes_real() {
    let mut db = expanded("");
    db.run(CONTRACT);
    assert_eq!(shape(&mut db), "address|id!,note,streetname!,housenumber|address_pkey|~");
    assert!(db.error("INSERT INTO address (id) VALUES (4)").contains("(23502)"));
    db.run("INSERT INTO address (id, streetname) VALUES (4, 'Elm')");
}

#[test]
fn what_belongs_to_the_old_column_alone_goes_with_it() {
    let mut db = expanding(
        "CREATE INDEX plain ON address (street);
         CREATE INDEX expression ON address (lower(street)) WHERE street <> '';
         CREATE INDEX other ON address (note);
         ALTER TABLE address ADD CONSTRAINT once UNIQUE (street), ADD CONSTRAINT filled CHECK (street <> ''),
             ALTER street SET DEFAULT 'Elm'",
    );
    db.run(
        "CREATE INDEX target ON address (streetname, housenumber); CREATE UNIQUE INDEX one ON address (housenumber)",
    );
    db.run(BACKFILL);
    db.run(CONTRACT);
    let indexes = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'address'::regclass ORDER BY 1";
    assert_eq!(db.text(indexes), "address_pkey\none\nother\ntarget");
    assert_eq!(shape(&mut db), "address|id!,note,streetname!,housenumber|address_pkey|~");
    // The indexes have what the backfill wrote.
    db.run("SET enable_seqscan = off");
    assert_eq!(db.text("SELECT id FROM address WHERE streetname = 'Oak' AND housenumber = '2'"), "2");
    assert_eq!(db.text("SELECT id FROM address WHERE housenumber = '1'"), "1");
}

// Roles

#[test]
fn column_privileges_are_copied() {
    let mut db = expanding(
        "CREATE ROLE priv_reader; CREATE ROLE priv_writer;
         GRANT SELECT (street) ON address TO priv_reader;
         GRANT INSERT (id, street), UPDATE (street) ON address TO priv_writer WITH GRANT OPTION;
         GRANT REFERENCES (street) ON address TO PUBLIC",
    );
    let acl = "SELECT string_agg(attacl::text, ' ' ORDER BY attname) FROM pg_attribute
        WHERE attrelid = 'address'::regclass AND attname IN ('street', 'streetname', 'housenumber')
        GROUP BY attacl::text";
    let privileges = "{priv_reader=r/postgres,priv_writer=a*w*/postgres,=x/postgres}";
    assert_eq!(db.text(acl), [privileges; 3].join(" "));
    db.run("SET ROLE priv_reader; SELECT streetname, housenumber FROM address");
    assert!(db.error("SELECT note FROM address").contains("(42501)"));
    db.run("SET ROLE priv_writer; INSERT INTO address (id, streetname) VALUES (4, 'Elm')");
    db.run("INSERT INTO address (id, street) VALUES (5, 'Elm 5')");
    assert!(db.error("SELECT streetname FROM address").contains("(42501)"));
}

#[test]
fn only_the_owner_and_its_members_may() {
    let db = table(
        "CREATE ROLE act_owner LOGIN; CREATE ROLE act_member LOGIN IN ROLE act_owner; CREATE ROLE act_other LOGIN;
         GRANT ALL ON SCHEMA public TO act_owner, act_member, act_other;
         ALTER TABLE address OWNER TO act_owner; GRANT ALL ON address TO act_other WITH GRANT OPTION",
    );
    let mut other = db.another_as("act_other");
    let mut member = db.another_as("act_member");
    let split_sql = format!("SELECT zdd.split_column('address', 'street', {RULE})");
    let preview = format!("SELECT * FROM zdd.preview_split('address', 'street', {RULE})");
    for sql in [preview, split_sql] {
        let error = other.error(&sql);
        assert!(error.contains("(42501)"), "{sql}: {error}");
        member.run(&sql);
    }
    let verbs = [
        "SELECT * FROM zdd.verify('address.street')",
        "SELECT * FROM zdd.mismatches('address.street')",
        "SELECT zdd.alter_change('address.street', conflict => 'old')",
        BACKFILL,
        "CALL zdd.repair('address.street', winner => 'new')",
        FENCE,
        UNFENCE,
        CONTRACT,
    ];
    for sql in verbs.iter().chain(&[ROLLBACK]) {
        let error = other.error(sql);
        assert!(error.contains("(42501)"), "{sql}: {error}");
    }
    for sql in verbs {
        member.run(sql);
    }
}

#[test]
fn the_catalog_is_for_reading() {
    let db = expanding("CREATE ROLE cat_other LOGIN");
    let mut other = db.another_as("cat_other");
    for view in ["zdd.changes", "zdd.events", "zdd.progress", "zdd.workers"] {
        other.run(&format!("SELECT * FROM {view}"));
        assert!(other.attempt(&format!("DELETE FROM {view}")).is_err());
    }
    for table in ["change", "event", "lane", "skipped", "job", "worker", "sample", "built_index", "guarded"] {
        for sql in ["DELETE FROM zdd.", "SELECT 1 FROM zdd."] {
            let error = other.error(&format!("{sql}{table}"));
            assert!(error.contains("(42501)"), "{error}");
        }
    }
}

// Code of the table's owner

/// A table of an ordinary role with code of its own in every place. `tell` raises who it runs as and with which search
/// path, as a notice.
fn with_code(owner: &str) -> Session {
    let db = table(&format!(
        "CREATE ROLE {owner} LOGIN; GRANT ALL ON SCHEMA public TO {owner}; ALTER TABLE address OWNER TO {owner}"
    ));
    let mut as_owner = db.another_as(owner);
    as_owner.run(
        "CREATE FUNCTION tell(tag text, value text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN
             RAISE NOTICE 'tell % % %', tag, current_user, current_setting('search_path');
             RETURN value;
         END $$;
         CREATE DOMAIN street_text AS text CHECK (tell('domain', value) IS NOT NULL OR value IS NULL);
         ALTER TABLE address ALTER street TYPE street_text;
         ALTER TABLE address ADD CONSTRAINT telling CHECK (tell('check', id::text) IS NOT NULL);
         CREATE INDEX telling_index ON address (tell('index', id::text)) WHERE tell('predicate', id::text) <> ''",
    );
    db
}

const SPLIT_TELLING: &str = "'address', 'street', columns => 'streetname varchar, housenumber varchar',
    split_sql => ARRAY['public.tell(''split'', split_part(street, '' '', 1))',
        'nullif(split_part(street, '' '', 2), public.tell(''constant'', ''''))'],
    join_sql => 'public.tell(''join'', streetname) || coalesce(public.tell(''constant'', '' '') || housenumber, '''')'";

/// What `tell` has been called for, each once. It must have been called as the owner, with the fixed search path.
#[track_caller]
fn told(db: &Session, owner: &str) -> String {
    let mut tags = Vec::new();
    for notice in db.notices() {
        let Some(told) = notice.strip_prefix("NOTICE: tell ") else { continue };
        let (tag, circumstances) = told.split_once(' ').unwrap();
        assert_eq!(circumstances, format!("{owner} pg_catalog, pg_temp"), "{tag}");
        if !tags.contains(&tag.to_owned()) {
            tags.push(tag.to_owned());
        }
    }
    tags.sort();
    tags.join(" ")
}

#[test]
fn code_runs_as_the_owner() {
    let owner = "code_owner";
    let mut db = with_code(owner);
    db.notices();
    db.run(&format!("SELECT * FROM zdd.preview_split({SPLIT_TELLING})"));
    assert!(told(&db, owner).contains("split"));
    db.run(&format!("SELECT zdd.split_column({SPLIT_TELLING})"));
    // As a CHECK on a new column, so that the backfill has to look at it.
    db.another_as(owner).run(
        "ALTER TABLE address ADD CONSTRAINT telling_too CHECK (tell('target', streetname) <> '' OR streetname IS NULL);
         CREATE INDEX telling_target ON address (tell('target_index', streetname));
         ALTER TABLE address ADD loud text GENERATED ALWAYS AS (upper(tell('generated', streetname))) STORED",
    );
    told(&db, owner);
    db.run("SELECT * FROM zdd.verify('address.street')");
    assert!(told(&db, owner).contains("split"));
    db.run("SELECT * FROM zdd.mismatches('address.street')");
    told(&db, owner);
    db.run(BACKFILL);
    let tags = told(&db, owner);
    for tag in ["generated", "index", "predicate", "split", "target", "target_index"] {
        assert!(tags.split(' ').any(|told| told == tag), "{tag} is missing: {tags}");
    }
    assert_eq!(db.text("SELECT loud FROM address ORDER BY id"), "ELM\nOAK\nASH");
    db.run(&bypass("UPDATE address SET streetname = 'Yew' WHERE id = 1"));
    db.notices();
    db.run("CALL zdd.repair('address.street', winner => 'new')");
    let tags = told(&db, owner);
    assert!(tags.contains("join") && tags.contains("domain"), "{tags}");
    for sql in [FENCE, UNFENCE] {
        db.run(sql);
        told(&db, owner);
    }
    assert_eq!(db.text("SELECT current_user"), "postgres");
}

/// The trigger's part of a superuser's UPDATE; the rest is PostgreSQL's own and runs as who writes.
#[test]
fn the_triggers_code_runs_as_the_owner() {
    let owner = "trigger_owner";
    let mut db = with_code(owner);
    db.run("DROP INDEX telling_index; ALTER TABLE address DROP CONSTRAINT telling");
    db.run(&format!("SELECT zdd.split_column({SPLIT_TELLING})"));
    db.run("INSERT INTO address (id, street) VALUES (11, 'Elm 11')");
    db.notices();
    db.run("UPDATE address SET housenumber = '12' WHERE id = 11");
    let tags = told(&db, owner);
    assert!(tags.contains("join") && tags.contains("domain"), "{tags}");
    db.run("UPDATE address SET note = 'pending' WHERE id = 1");
    assert!(told(&db, owner).contains("split"));
    assert_eq!(db.text("SELECT street FROM address WHERE id = 11"), "Elm 12");
    // And so does it for somebody who may do nothing but write.
    db.run("CREATE ROLE trigger_writer LOGIN; GRANT SELECT (id), UPDATE (note) ON address TO trigger_writer");
    let mut writer = db.another_as("trigger_writer");
    writer.run("UPDATE address SET note = 'pending' WHERE id = 2");
    assert!(told(&writer, owner).contains("split"));
}

/// Owner's code cannot leave the owner's rights: neither by RESET ROLE nor by what would run after it.
#[test]
fn code_cannot_break_out() {
    let mut db = table(
        "CREATE ROLE out_owner LOGIN; GRANT ALL ON SCHEMA public TO out_owner; ALTER TABLE address OWNER TO out_owner",
    );
    let mut owner = db.another_as("out_owner");
    owner.run(
        "CREATE FUNCTION break_out(text) RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             IF session_user = 'postgres' THEN PERFORM set_config('role', 'postgres', false); END IF;
             RETURN true;
         END $$",
    );
    split(&mut owner);
    owner.run("ALTER TABLE address ADD CONSTRAINT evil CHECK (break_out(streetname))");
    let error = db.error(BACKFILL);
    assert!(error.contains("(42501)") && error.contains("role"), "{error}");
    assert_eq!(db.text("SELECT current_user, session_user"), "postgres|postgres");
    owner.run(
        "ALTER TABLE address DROP CONSTRAINT evil;
         CREATE TABLE seen (who name);
         CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO seen VALUES (current_user); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER later AFTER UPDATE ON address DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION later()",
    );
    // PostgreSQL refuses to put off what would then run as the caller.
    let _ = db.attempt("CALL zdd.backfill('address.street', fire_triggers => true)");
    assert_eq!(db.text("SELECT DISTINCT who FROM seen WHERE who <> 'out_owner'"), "");
    db.run(BACKFILL);
    assert_eq!((db.text("SELECT * FROM seen").as_str(), phase(&mut db).as_str()), ("", "expanded"));
}

// Backfill

const AUDIT: &str = "ALTER TABLE address ADD updated_at int DEFAULT 0;
    CREATE TABLE audit (what text);
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.updated_at := NEW.updated_at + 1; RETURN NEW; END';
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.audit VALUES (NEW.streetname); RETURN NULL; END';
    CREATE TRIGGER a_touch BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION touch()";
const AUDIT_TOO: &str = "CREATE TRIGGER z_note AFTER UPDATE ON address FOR EACH ROW EXECUTE FUNCTION note()";

#[test]
fn users_triggers_are_not_fired() {
    let mut db = expanding(AUDIT);
    db.run(AUDIT_TOO);
    db.run(BACKFILL);
    assert_eq!(db.text("SELECT sum(updated_at), (SELECT count(*) FROM audit) FROM address"), "0|0");
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("3|0|0|0", "expanded"));
}

#[test]
fn users_triggers_are_fired_on_demand() {
    let mut db = expanding(AUDIT);
    db.run(AUDIT_TOO);
    db.run("CALL zdd.backfill('address.street', fire_triggers => true)");
    assert_eq!(db.text("SELECT string_agg(updated_at::text, '') FROM address"), "111");
    assert_eq!(db.text("SELECT * FROM audit ORDER BY 1"), "Ash\nElm\nOak");
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("3|0|0|0", "expanded"));
}

/// The backfill writes what PostgreSQL's UPDATE would accept, and nothing else.
fn constraint_holds(constraint: &str) {
    let mut db = expanding("");
    // The guard may refuse it in the first place.
    if db.attempt(constraint).is_ok() {
        let result = db.attempt(BACKFILL);
        assert!(result.as_ref().is_err_and(|error| error.contains("no_oak")), "{result:?}");
        assert_eq!(phase(&mut db), "expanding");
    }
}

#[test]
fn a_check_on_a_new_column_holds() {
    constraint_holds("ALTER TABLE address ADD CONSTRAINT no_oak CHECK (streetname <> 'Oak')");
}

#[test]
fn a_unique_index_on_a_new_column_holds() {
    constraint_holds("CREATE UNIQUE INDEX no_oak ON address (length(streetname))");
}

#[test]
fn an_exclusion_on_a_new_column_holds() {
    constraint_holds("ALTER TABLE address ADD CONSTRAINT no_oak EXCLUDE USING btree ((left(streetname, 0)) WITH =)");
}

#[test]
fn a_foreign_key_on_a_new_column_holds() {
    constraint_holds(
        "CREATE TABLE tree (name varchar PRIMARY KEY); INSERT INTO tree VALUES ('Elm'), ('Ash');
         ALTER TABLE address ADD CONSTRAINT no_oak FOREIGN KEY (streetname) REFERENCES tree",
    );
}

#[test]
fn old_violations_of_other_checks_do_not_matter() {
    let mut wrong = Vec::new();
    for more in [
        "",
        "ALTER TABLE address ADD CONSTRAINT named CHECK (streetname <> '')",
        "ALTER TABLE address ADD loud text GENERATED ALWAYS AS (upper(streetname)) STORED",
    ] {
        let mut db = expanding("ALTER TABLE address ADD CONSTRAINT noted CHECK (note IS NOT NULL) NOT VALID");
        assert!(db.error("UPDATE address SET id = 9 WHERE id = 1").contains("(23514)"));
        db.run(more);
        match db.attempt(BACKFILL) {
            Ok(()) => db.run(CONTRACT),
            Err(error) => wrong.push(format!("{more}: {error}")),
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn generated_columns_follow_the_backfill() {
    let mut db = partitioned();
    split(&mut db);
    db.run(
        "ALTER TABLE address ADD label text GENERATED ALWAYS AS (coalesce(upper(streetname) || '#' || housenumber, '?')) STORED",
    );
    assert_eq!(db.text("SELECT DISTINCT label FROM address"), "?");
    db.run(BACKFILL);
    assert_eq!(db.number("SELECT count(*) FROM address WHERE label = 'ELM#' || id"), 2000);
}

#[test]
fn published_without_replica_identity() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text); INSERT INTO address VALUES (1, 'Elm 1')");
    db.run("CREATE PUBLICATION everything FOR TABLE address");
    split(&mut db);
    let error = db.error(BACKFILL);
    assert!(
        error.starts_with("ERROR: cannot update table \"address\" because it does not have a replica identity and publishes updates (55000)"),
        "{error}"
    );
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("0|0|1|0", "expanding"));
    db.run("ALTER TABLE address REPLICA IDENTITY FULL");
    db.run(BACKFILL);
    assert_eq!((states(&mut db).as_str(), phase(&mut db).as_str()), ("1|0|0|0", "expanded"));
}
