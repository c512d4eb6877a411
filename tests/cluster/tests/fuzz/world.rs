//! What the fuzzer works on: roles, code that means ill, tables with odd names and odd columns, and what is there of them
//! right now.

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, SimpleQueryMessage};

use crate::values::{ident, lit};

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Superuser,
    /// Owns the database, and none of its tables.
    DatabaseOwner,
    OwnerA,
    OwnerB,
    /// Reads and writes the tables of both.
    App,
    /// Has no privilege on anything.
    Stranger,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Superuser => "postgres",
            Role::DatabaseOwner => "db_owner",
            Role::OwnerA => "owner_a",
            Role::OwnerB => "owner_b",
            Role::App => "app",
            Role::Stranger => "stranger",
        }
    }

    pub fn owns_tables(self) -> bool {
        matches!(self, Role::OwnerA | Role::OwnerB)
    }

    /// The schema of an owner's tables and functions, ready for SQL.
    pub fn schema(self) -> &'static str {
        match self {
            Role::OwnerB => r#""We.ird ""$1::tid"" ü""#,
            _ => "shop",
        }
    }
}

pub const DATABASE: &str = "fuzz";

/// What a dump of it is restored into.
pub const RESTORED: &str = "restored";

/// Roles and the database, as the superuser in another database.
pub const ROLES: &str = "
    CREATE ROLE db_owner LOGIN;
    CREATE ROLE owner_a LOGIN;
    CREATE ROLE owner_b LOGIN IN ROLE pg_read_all_stats;
    CREATE ROLE app LOGIN;
    CREATE ROLE stranger LOGIN;
    CREATE ROLE heir;
    CREATE DATABASE fuzz OWNER db_owner";

/// What the superuser makes in the database.
pub fn foundation() -> String {
    let mut sql = "
        CREATE EXTENSION pg_zdd;
        CREATE FOREIGN DATA WRAPPER nothing;
        CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
        GRANT USAGE ON FOREIGN SERVER nowhere TO owner_a, owner_b;
        GRANT CREATE ON DATABASE fuzz TO owner_a, owner_b;
        DO $$
        BEGIN
            CREATE EXTENSION citext SCHEMA pg_catalog;
        EXCEPTION WHEN others THEN
            CREATE DOMAIN pg_catalog.citext AS text;
        END
        $$;"
    .to_owned();
    for owner in [Role::OwnerA, Role::OwnerB] {
        let (name, schema) = (owner.name(), owner.schema());
        sql += &format!(
            "CREATE SCHEMA {schema} AUTHORIZATION {name};
            GRANT USAGE ON SCHEMA {schema} TO app, stranger;
            ALTER DEFAULT PRIVILEGES FOR ROLE {name} IN SCHEMA {schema}
                GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON TABLES TO app;"
        );
    }
    sql
}

/// How many kinds of mischief there are.
pub const MISCHIEF: u32 = 48;

/// Types and functions of an owner. What `mischief` does is up to its first argument; 99 leaves it to chance. It tells
/// the server's log when it finds itself in a role whose rights its owner has no claim to.
pub fn toolbox(owner: Role) -> String {
    const SQL: &str = r#"
        CREATE DOMAIN {s}.plain_text AS text;
        CREATE DOMAIN {s}.fussy AS text CHECK (VALUE <> 'x' AND length(VALUE) < 1000);
        CREATE TYPE {s}.mood AS ENUM ('sad', 'ok', 'it''s "happy"');
        CREATE TYPE {s}.pair AS (a text, b int);
        CREATE TYPE {s}.span AS RANGE (subtype = float8);
        DO $$
        BEGIN
            CREATE COLLATION {s}.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        EXCEPTION WHEN others THEN
            CREATE COLLATION {s}.nocase FROM "C";
        END
        $$;

        CREATE FUNCTION {s}.mischief(kind int, value text) RETURNS text LANGUAGE plpgsql AS $f$
        DECLARE
            victim text;
            a_change text;
            cursor refcursor;
        BEGIN
            IF current_user NOT IN ('{o}', 'app', 'stranger', 'heir') THEN
                RAISE LOG 'LOOT: mischief % of {o} runs as %', kind, current_user;
            END IF;
            IF kind = 99 THEN
                kind := 1 + floor(random() * {n})::int;
            END IF;
            SELECT c.oid::regclass::text INTO victim FROM pg_class AS c
            WHERE c.relowner = '{o}'::regrole AND c.relkind IN ('r', 'p') ORDER BY random() LIMIT 1;
            SELECT c.change INTO a_change FROM zdd.changes AS c ORDER BY random() LIMIT 1;
            CASE kind
            WHEN 1 THEN RAISE EXCEPTION 'no % "%" $1', value, victim;
            WHEN 2 THEN RAISE EXCEPTION USING errcode = '22000', message = 'not this one';
            WHEN 3 THEN RAISE EXCEPTION USING errcode = '40001', message = 'try again';
            WHEN 4 THEN RAISE EXCEPTION USING errcode = '55P03', message = 'locked';
            WHEN 5 THEN RAISE EXCEPTION USING errcode = '57014', message = 'cancelled';
            WHEN 6 THEN RAISE EXCEPTION USING errcode = '42501', message = 'not allowed';
            WHEN 7 THEN RAISE EXCEPTION USING errcode = '53200', message = 'too much';
            WHEN 8 THEN PERFORM 1 / (length(value) - length(value));
            WHEN 9 THEN PERFORM pg_sleep(0.02);
            WHEN 10 THEN EXECUTE format('UPDATE %s SET note = note WHERE ctid = (SELECT ctid FROM %1$s LIMIT 1)', victim);
            WHEN 11 THEN EXECUTE format('INSERT INTO %s DEFAULT VALUES', victim);
            WHEN 12 THEN PERFORM set_config('search_path', $q${s}, pg_catalog$q$, false);
            WHEN 13 THEN EXECUTE 'SET LOCAL ROLE app';
            WHEN 14 THEN EXECUTE 'ALTER ROLE {o} SUPERUSER';
            WHEN 15 THEN EXECUTE 'CREATE TEMP TABLE IF NOT EXISTS left_behind (a int)';
            WHEN 16 THEN PERFORM zdd.rollback(a_change);
            WHEN 17 THEN PERFORM * FROM zdd.verify(a_change);
            WHEN 18 THEN EXECUTE format('CALL zdd.backfill(%L)', a_change);
            WHEN 19 THEN PERFORM pg_advisory_unlock_all();
            WHEN 20 THEN RETURN repeat('x', 30000000);
            WHEN 21 THEN RETURN NULL;
            WHEN 22 THEN RETURN '';
            WHEN 23 THEN PERFORM pg_cancel_backend(pg_backend_pid());
            WHEN 24 THEN EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS surprise int', victim);
            WHEN 25 THEN EXECUTE format('LOCK TABLE %s IN SHARE MODE', victim);
            WHEN 26 THEN
                FOR i IN 1..50 LOOP
                    BEGIN
                        RAISE EXCEPTION 'again';
                    EXCEPTION WHEN others THEN NULL;
                    END;
                END LOOP;
            WHEN 27 THEN PERFORM set_config('zdd.guard', 'off', false);
            WHEN 28 THEN
                PERFORM set_config('standard_conforming_strings', 'off', false);
                PERFORM set_config('quote_all_identifiers', 'on', false);
            WHEN 29 THEN PERFORM count(*) FROM zdd.progress, zdd.usage, zdd.workers, zdd.events;
            WHEN 30 THEN PERFORM {s}.mischief(30, value);
            WHEN 31 THEN EXECUTE format('DROP TABLE %s CASCADE', victim);
            WHEN 32 THEN COMMIT;
            WHEN 33 THEN SET CONSTRAINTS ALL IMMEDIATE;
            WHEN 34 THEN OPEN cursor FOR EXECUTE format('SELECT * FROM %s', victim);
            WHEN 35 THEN
                EXECUTE 'COPY (SELECT 1) TO PROGRAM ''true''';
                RAISE LOG 'LOOT: {o} runs a program';
            WHEN 36 THEN RAISE NOTICE '%', repeat('x', 1000000);
            WHEN 37 THEN EXECUTE format('TRUNCATE %s', victim);
            WHEN 38 THEN PERFORM zdd.fence(a_change), zdd.unfence(a_change);
            WHEN 39 THEN
                IF random() < 0.05 THEN
                    PERFORM pg_terminate_backend(pg_backend_pid());
                END IF;
            WHEN 40 THEN EXECUTE 'CREATE OR REPLACE FUNCTION {s}.newborn() RETURNS int LANGUAGE sql RETURN 1';
            WHEN 41 THEN EXECUTE 'GRANT {o} TO PUBLIC';
            WHEN 42 THEN PERFORM set_config('statement_timeout', '1ms', true);
            WHEN 43 THEN PERFORM pg_export_snapshot();
            WHEN 44 THEN EXECUTE 'DISCARD ALL';
            WHEN 45 THEN
                PERFORM set_config('session_replication_role', 'replica', false);
                RAISE LOG 'LOOT: {o} replicates';
            WHEN 46 THEN PERFORM pg_notify('zdd', value);
            WHEN 47 THEN
                EXECUTE 'RESET SESSION AUTHORIZATION';
                EXECUTE 'RESET ROLE';
                IF current_user NOT IN ('{o}', 'app', 'stranger', 'heir') THEN
                    RAISE LOG 'LOOT: {o} has become %', current_user;
                END IF;
            WHEN 48 THEN PERFORM zdd.split_column(victim::regclass, 'note', 'deep text', delimiter => ' ');
            ELSE NULL;
            END CASE;
            RETURN value;
        END
        $f$;
        -- Says that it is IMMUTABLE, so that it gets into everything.
        CREATE FUNCTION {s}.evil(kind int, value text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN {s}.mischief(kind, value);
        END
        $f$;
        CREATE FUNCTION {s}.sly(kind int, value text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN {s}.mischief(kind, value);
        EXCEPTION WHEN others THEN
            RETURN value;
        END
        $f$;
        -- Writes to the very table whose rows it is called for.
        CREATE FUNCTION {s}.write_to(target text, value text) RETURNS text LANGUAGE plpgsql AS $f$
        BEGIN
            IF pg_trigger_depth() < 3 THEN
                EXECUTE format('UPDATE %s SET (street, note) = ROW(street || %L, note)
                    WHERE ctid = ANY (ARRAY(SELECT ctid FROM %1$s ORDER BY random() LIMIT 2))', target, repeat('y', 500));
            END IF;
            RETURN value;
        EXCEPTION WHEN others THEN
            RETURN value;
        END
        $f$;
        CREATE FUNCTION {s}.recurse(target text, value text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN {s}.write_to(target, value);
        END
        $f$;
        CREATE FUNCTION {s}.short(value text) RETURNS text IMMUTABLE LANGUAGE sql AS $f$
            SELECT {s}.evil(99, value)
        $f$;
        -- In the way of whoever looks functions and operators up by a search_path.
        CREATE FUNCTION {s}.shadow(text, text) RETURNS boolean LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN {s}.mischief(0, $1) OPERATOR(pg_catalog.=) $2;
        END
        $f$;
        CREATE FUNCTION {s}.shadow(bigint, numeric) RETURNS numeric LANGUAGE plpgsql AS $f$
        BEGIN
            PERFORM {s}.mischief(0, 'x');
            RETURN 1;
        END
        $f$;
        CREATE OPERATOR {s}.= (LEFTARG = text, RIGHTARG = text, FUNCTION = {s}.shadow);
        CREATE OPERATOR {s}./ (LEFTARG = bigint, RIGHTARG = numeric, FUNCTION = {s}.shadow);
        CREATE FUNCTION {s}.quote_ident(text) RETURNS text LANGUAGE sql AS $f$
            SELECT pg_catalog.quote_ident({s}.mischief(0, $1))
        $f$;
        CREATE FUNCTION {s}.interfere() RETURNS trigger LANGUAGE plpgsql AS $f$
        BEGIN
            PERFORM {s}.sly(tg_argv[0]::int, 'from a trigger');
            RETURN CASE WHEN tg_op = 'DELETE' THEN OLD ELSE NEW END;
        END
        $f$;
        CREATE FUNCTION {s}.rewrite() RETURNS trigger LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN jsonb_populate_record(NEW, jsonb_build_object(tg_argv[0], 'rewritten ' || pg_trigger_depth()));
        END
        $f$;
        CREATE FUNCTION {s}.swallow() RETURNS trigger LANGUAGE plpgsql AS $f$
        BEGIN
            RETURN CASE WHEN random() < 0.5 THEN NEW END;
        END
        $f$;
        CREATE FUNCTION {s}.again() RETURNS trigger LANGUAGE plpgsql AS $f$
        BEGIN
            IF pg_trigger_depth() < 4 THEN
                EXECUTE format('UPDATE %s SET note = note WHERE ctid = (SELECT ctid FROM %1$s LIMIT 1)', tg_relid::regclass);
            END IF;
            RETURN NEW;
        END
        $f$;
    "#;
    fill(SQL, owner, "", 0).replace("{n}", &MISCHIEF.to_string())
}

/// A table that can be made again when nothing is left to do with it.
pub struct Slot {
    pub owner: Role,
    /// Its name, ready for SQL.
    pub table: String,
    recipe: &'static str,
}

impl Slot {
    /// Makes the table, in the place of what was there.
    pub fn make(&self, rng: &mut Rng) -> String {
        let rows = [0, 1, 50, 400, 400, 3000][rng.usize(..6)];
        let mut sql = format!("DROP TABLE IF EXISTS {} CASCADE;", self.table) + self.recipe;
        // Each place gets mischief of its own.
        while let Some(at) = sql.find("{k}") {
            sql.replace_range(at..at + 3, &some_mischief(rng).to_string());
        }
        fill(&sql, self.owner, &self.table, rows)
    }
}

/// A kind of mischief; those that let work go on come more often.
pub fn some_mischief(rng: &mut Rng) -> u32 {
    const MILD: [u32; 12] = [0, 0, 9, 12, 13, 14, 19, 26, 27, 28, 47, 99];
    if rng.bool() { MILD[rng.usize(..MILD.len())] } else { rng.u32(1..=MISCHIEF) }
}

fn fill(sql: &str, owner: Role, table: &str, rows: u32) -> String {
    let first: String = sql.replace("{s}", owner.schema()).replace("{o}", owner.name());
    // Names of parts go with the table's.
    let bare = table.strip_prefix(owner.schema()).map_or(table, |rest| rest.trim_start_matches('.'));
    let bare = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).map(|name| name.replace("\"\"", "\""));
    let bare = bare.unwrap_or_else(|| table.to_owned());
    let part = |suffix: &str| {
        let mut name = format!("{bare}{suffix}");
        if name.len() > 63 {
            name = format!("{}{suffix}", name.chars().take(20).collect::<String>());
        }
        format!("{}.{}", owner.schema(), ident(&name))
    };
    let mut filled = first.replace("{t}", table).replace("{rows}", &rows.to_string());
    for suffix in ["_1", "_2", "_3", "_4", "_5", "_v"] {
        filled = filled.replace(&format!("{{t{suffix}}}"), &part(suffix));
    }
    filled
}

/// Names that get in the way of whoever pastes them into SQL, templates or patterns.
pub const NAMES: &[&str] = &[
    "plain",
    "Quoted \"Name\"",
    "it's",
    "a.b",
    "$1::tid",
    "ü日本語 🐘",
    "sixty_three_bytes_long_name_that_leaves_no_room_for_anything_mo",
    "ends_in_the_middle_of_a_character_if_it_is_cut_at_sixty_three_é",
    "\"; DROP TABLE x; --",
    "%s %I {b} [c]",
    "select",
    "back\\slash",
    "new\nline\ttab",
    " ",
    "~zdd_plain",
    "zdd_not_null_1",
    "plain_zdd_fenced",
];

/// Each table by what is odd about it. `{t}` is its name, `{t_1}` and so on names for its parts, `{s}` the schema of its
/// owner, `{k}` some mischief.
const RECIPES: &[&str] = &[
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm Street ' || i, 'n' FROM generate_series(1, {rows}) AS i",
    // No key, NULLs, empty values, values of all lengths.
    "CREATE TABLE {t} (street varchar, note text, extra int DEFAULT 7);
     INSERT INTO {t} SELECT CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN repeat('Elm ', i)
         ELSE 'Elm' || chr(32 + i % 300) || i END, i FROM generate_series(1, {rows}) AS i",
    // Numeric keys that a float or a JSON number does not hold.
    "CREATE TABLE {t} (id numeric PRIMARY KEY, street text, note text);
     INSERT INTO {t} VALUES (1e500, 'Elm 1'), (-1e500, 'Elm'), (12345678901234567890123, 'Elm 23'), ('NaN', ''),
         (0.00000000000000000000000000000000000001, 'Elm 4'), ('Infinity', 'Elm  5'), (1e130000, 'x')",
    // Keys in jsonb, deep and large, and of bytes.
    "CREATE TABLE {t} (id jsonb, b bytea, f float8, street text, note text, PRIMARY KEY (id, b, f));
     INSERT INTO {t} VALUES ((repeat('[', 600) || repeat(']', 600))::jsonb, '\\xff00', 'NaN', 'Elm 1'),
         ('{\"a\": 1e500, \"b\": \"\\u00e9\"}', '', '-Infinity', 'Elm  2'), ('null', '\\x', 1e-300, 'Elm'),
         ((repeat('{\"a\":', 250) || '1' || repeat('}', 250))::jsonb, '', 0, '')",
    // Names of columns.
    "CREATE TABLE {t} (\"id $1\" int PRIMARY KEY, \"it's \"\"quoted\"\"\" text, \"a.b\" varchar(40), \"$1::tid\" text,
         \"sixty_three_bytes_long_name_that_leaves_no_room_for_anything_mo\" text, \"{b}[\" text, \"ü 🐘\" text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'Elm ' || i, 'Elm  ' || i, 'Elm ' || i, 'Elm', i, 'n'
         FROM generate_series(1, {rows}) AS i",
    // Three levels of partitions, of differing columns.
    "CREATE TABLE {t} (id int, region text, street text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
     CREATE TABLE {t_1} PARTITION OF {t} FOR VALUES IN ('eu', 'it''s') PARTITION BY RANGE (id);
     CREATE TABLE {t_2} PARTITION OF {t_1} FOR VALUES FROM (MINVALUE) TO (100) PARTITION BY HASH (id);
     CREATE TABLE {t_3} PARTITION OF {t_2} FOR VALUES WITH (MODULUS 1, REMAINDER 0);
     CREATE TABLE {t_4} (junk int, note text, street text DEFAULT 'part', region text NOT NULL, id int NOT NULL);
     ALTER TABLE {t_4} DROP COLUMN junk;
     ALTER TABLE {t_1} ATTACH PARTITION {t_4} FOR VALUES FROM (100) TO (MAXVALUE);
     CREATE TABLE {t_5} PARTITION OF {t} DEFAULT;
     INSERT INTO {t} SELECT i, (ARRAY['eu', 'it''s', 'x'])[1 + i % 3], 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i",
    // Inheritance, with a child of two parents.
    "CREATE TABLE {t} (id int, street text, note text);
     CREATE TABLE {t_1} (more int) INHERITS ({t});
     CREATE TABLE {t_2} (street text DEFAULT 'two') INHERITS ({t});
     CREATE TABLE {t_3} () INHERITS ({t_1}, {t_2});
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     INSERT INTO {t_1} SELECT i, 'Oak ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     INSERT INTO {t_3} SELECT i, 'Ash  ' || i, 'n' FROM generate_series(1, {rows}) AS i",
    // Types that are not plain text.
    "CREATE TABLE {t} (id serial PRIMARY KEY, street {s}.plain_text, fussy {s}.fussy, mood {s}.mood, pair {s}.pair,
         span {s}.span, fixed char(12), tiny varchar(3), number int, big numeric, data bytea, doc jsonb, at timestamptz,
         list text[], note text);
     INSERT INTO {t} (street, fussy, mood, pair, span, fixed, tiny, number, big, data, doc, at, list)
         SELECT 'Elm ' || i, 'Elm ' || i, 'ok', ROW('Elm', i)::{s}.pair, '[1,2)', 'Elm 1', 'a b', i, i * 1e20, 'ab', '{}',
             now(), '{a,b}' FROM generate_series(1, {rows}) AS i",
    // citext and a collation for which different strings are equal.
    "CREATE TABLE {t} (id int PRIMARY KEY, street citext, other text COLLATE {s}.nocase, note text);
     INSERT INTO {t} SELECT i, 'ELM street ' || i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE UNIQUE INDEX ON {t} (street)",
    // Generated and identity columns, and one that is generated from the source.
    "CREATE TABLE {t} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street text, note text,
         made text GENERATED ALWAYS AS (note || 'x') STORED, length int GENERATED ALWAYS AS (length(street)) STORED);
     INSERT INTO {t} (street) SELECT 'Elm ' || i FROM generate_series(1, {rows}) AS i",
    // Row level security.
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; ALTER TABLE {t} FORCE ROW LEVEL SECURITY;
     CREATE POLICY few ON {t} USING ({s}.sly({k}, note) IS NOT NULL AND id % 2 = 0);
     CREATE POLICY checked ON {t} FOR INSERT WITH CHECK (id > 0)",
    // CHECKs, defaults and indexes that run functions.
    "CREATE TABLE {t} (id int, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     ALTER TABLE {t} ADD CHECK ({s}.sly({k}, street) IS NOT NULL OR note = 'n') NOT VALID;
     ALTER TABLE {t} ALTER note SET DEFAULT {s}.sly({k}, 'd'), ALTER street SET DEFAULT {s}.evil({k}, 'default');
     CREATE INDEX ON {t} ({s}.sly(0, street)); CREATE INDEX ON {t} (note) WHERE {s}.sly(0, street) <> ''",
    "CREATE TABLE {t} (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, street text, note text, EXCLUDE (street WITH =));
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     ALTER TABLE {t} ADD CHECK ({s}.evil({k}, note) IS NOT NULL) NOT VALID; ALTER TABLE {t} REPLICA IDENTITY FULL",
    // Triggers that rewrite rows, swallow them, write to the table again.
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.interfere({k});
     CREATE TRIGGER b BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.rewrite(street);
     CREATE TRIGGER c AFTER INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.again();
     CREATE CONSTRAINT TRIGGER d AFTER INSERT OR UPDATE ON {t} DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION {s}.interfere({k});
     ALTER TABLE {t} ENABLE ALWAYS TRIGGER a",
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE TRIGGER a BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.swallow();
     CREATE RULE more AS ON UPDATE TO {t} DO ALSO SELECT {s}.sly({k}, new.street);
     CREATE RULE none AS ON DELETE TO {t} DO INSTEAD NOTHING",
    // Huge values.
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} VALUES (1, repeat('Elm ', 250000)), (2, repeat('x', 5000000) || ' 2'), (3, repeat(' ', 70000)),
         (4, repeat('é', 40000)), (5, repeat('ab', 32000))",
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     ALTER TABLE {t} ALTER street SET STORAGE EXTERNAL;
     INSERT INTO {t} SELECT i, (SELECT string_agg(md5(i::text || j), ' ') FROM generate_series(1, 1000) AS j)
         FROM generate_series(1, 20) AS i",
    // Both ends of a foreign key on the source.
    "CREATE TABLE {t} (street text PRIMARY KEY, note text);
     INSERT INTO {t} SELECT 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE TABLE {t_1} (id int, street text REFERENCES {t} ON UPDATE CASCADE ON DELETE SET NULL, note text);
     INSERT INTO {t_1} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i",
    // Depended on by all sorts of things.
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE VIEW {t_v} AS SELECT * FROM {t};
     CREATE STATISTICS {t_1} ON street, note FROM {t}; CREATE INDEX ON {t} (street, note);
     CREATE UNIQUE INDEX ON {t} (id) INCLUDE (street)",
    // Many columns, many of them dropped.
    "DO $$ BEGIN EXECUTE format('CREATE TABLE %s (id int, %s, street text, note text)', $q${t}$q$,
         (SELECT string_agg('c' || i || ' int', ', ') FROM generate_series(1, 400) AS i));
         EXECUTE format('ALTER TABLE %s %s', $q${t}$q$,
         (SELECT string_agg('DROP COLUMN c' || i, ', ') FROM generate_series(1, 400, 3) AS i)); END $$;
     INSERT INTO {t} (id, street) SELECT i, 'Elm ' || i FROM generate_series(1, {rows}) AS i",
    // A typed table, one whose row type is in use, and some that cannot be split.
    "CREATE TABLE {t} OF {s}.pair; INSERT INTO {t} VALUES ('Elm 1', 1)",
    "CREATE TABLE {t} (id int PRIMARY KEY, street text, note text) WITH (fillfactor = 10);
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i;
     CREATE TABLE {t_1} (whole {t})",
    "CREATE TABLE {t} (id int, street text, note text) PARTITION BY LIST (street);
     CREATE TABLE {t_1} PARTITION OF {t} DEFAULT;
     INSERT INTO {t} SELECT i, 'Elm ' || i, 'n' FROM generate_series(1, {rows}) AS i",
    "CREATE TABLE {t} (id int, street text, note text) PARTITION BY LIST (id);
     CREATE FOREIGN TABLE {t_1} PARTITION OF {t} FOR VALUES IN (1) SERVER nowhere;
     CREATE TABLE {t_2} PARTITION OF {t} DEFAULT",
    "CREATE TABLE {t} (); ALTER TABLE {t} ADD COLUMN street text, ADD note text; INSERT INTO {t} DEFAULT VALUES",
];

/// Every recipe once for each owner, under one of the names.
pub fn slots() -> Vec<Slot> {
    let recipes = RECIPES.iter().enumerate();
    recipes
        .flat_map(|(number, recipe)| {
            [Role::OwnerA, Role::OwnerB].map(|owner| {
                let shift = if owner == Role::OwnerA { 0 } else { 5 };
                let base = NAMES[(number + shift) % NAMES.len()];
                let name = if number < NAMES.len() {
                    base.to_owned()
                } else {
                    format!("{number} {}", base.chars().take(3).collect::<String>())
                };
                Slot { owner, table: format!("{}.{}", owner.schema(), ident(&name)), recipe }
            })
        })
        .collect()
}

/// What is there right now.
#[derive(Default)]
pub struct Snapshot {
    pub tables: Vec<Table>,
    pub changes: Vec<Change>,
    /// Triggers, each with its table, ready for SQL.
    pub triggers: Vec<(String, String)>,
    /// Backends to disturb; those of pg_zdd first.
    pub backends: Vec<i32>,
}

pub struct Table {
    pub oid: u32,
    /// Its name, ready for SQL, as all names below that are not said to be anything else.
    pub name: String,
    pub owner: String,
    pub kind: char,
    pub is_partition: bool,
    pub columns: Vec<Column>,
}

pub struct Column {
    pub name: String,
    /// As it is.
    pub raw_name: String,
    pub type_name: String,
    pub generated: bool,
}

pub struct Change {
    /// As it is.
    pub name: String,
    pub relation: String,
    pub owner: String,
    pub phase: String,
    pub source: String,
    pub targets: Vec<String>,
}

impl Snapshot {
    pub fn take(client: &mut Client) -> Result<Snapshot, pg_zdd_cluster::postgres::Error> {
        const SEPARATORS: [char; 2] = ['\x1e', '\x1d'];
        let tables = rows(
            client,
            r"SELECT c.oid, format('%I.%I', n.nspname, c.relname), r.rolname, c.relkind::text || c.relispartition::text, string_agg(concat_ws(E'\x1d',
                quote_ident(a.attname), a.attname, format_type(a.atttypid, a.atttypmod), concat(a.attgenerated, a.attidentity)),
                E'\x1e' ORDER BY a.attnum)
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_roles AS r ON r.oid = c.relowner
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE r.rolname IN ('owner_a', 'owner_b', 'heir') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
                AND n.nspname NOT LIKE 'pg_%'
            GROUP BY 1, 2, 3, 4 ORDER BY 1",
        )?;
        let changes = rows(
            client,
            r"SELECT c.name, coalesce(format('%I.%I', n.nspname, t.relname), '-'), coalesce(r.rolname, '-'), c.phase,
                quote_ident(coalesce(c.rule->'source'->>'renamed_to', c.source)),
                (SELECT string_agg(quote_ident(target), E'\x1e') FROM unnest(c.targets) AS target)
            FROM zdd.change AS c LEFT JOIN pg_class AS t ON t.oid = c.relation
            LEFT JOIN pg_namespace AS n ON n.oid = t.relnamespace LEFT JOIN pg_roles AS r ON r.oid = t.relowner
            WHERE c.relation IS NOT NULL OR c.id > (SELECT max(id) - 10 FROM zdd.change) ORDER BY c.id",
        )?;
        let triggers = rows(
            client,
            "SELECT quote_ident(t.tgname), format('%I.%I', n.nspname, c.relname)
            FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE NOT t.tgisinternal AND n.nspname <> 'zdd' ORDER BY t.oid",
        )?;
        let backends = rows(
            client,
            "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%' OR application_name LIKE 'fuzz%'
            ORDER BY backend_type LIKE 'pg_zdd%' DESC",
        )?;
        let column = |text: &str| {
            let mut parts = text.split(SEPARATORS[1]).map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Column { name: next(), raw_name: next(), type_name: next(), generated: !next().is_empty() }
        };
        Ok(Snapshot {
            tables: tables
                .into_iter()
                .map(|row| Table {
                    oid: row[0].parse().unwrap_or(0),
                    name: row[1].clone(),
                    owner: row[2].clone(),
                    kind: row[3].chars().next().unwrap_or('r'),
                    is_partition: row[3].ends_with("true"),
                    columns: row[4].split(SEPARATORS[0]).map(column).collect(),
                })
                .collect(),
            changes: changes
                .into_iter()
                .map(|row| Change {
                    name: row[0].clone(),
                    relation: row[1].clone(),
                    owner: row[2].clone(),
                    phase: row[3].clone(),
                    source: row[4].clone(),
                    targets: row[5].split(SEPARATORS[0]).map(str::to_owned).collect(),
                })
                .collect(),
            triggers: triggers.into_iter().map(|mut row| (row.remove(0), row.remove(0))).collect(),
            backends: backends.iter().filter_map(|row| row[0].parse().ok()).collect(),
        })
    }

    /// The tables of a role.
    pub fn tables_of(&self, owner: Role) -> Vec<&Table> {
        self.tables.iter().filter(|table| table.owner == owner.name()).collect()
    }

    pub fn active(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.relation != "-")
    }
}

/// What SQL can call.
pub struct Function {
    pub name: String,
    pub is_procedure: bool,
    /// What cannot be called: trigger functions. It is tried all the same.
    pub arguments: Vec<Argument>,
    /// How many of the last arguments may be left out.
    pub defaults: usize,
}

pub struct Argument {
    pub name: String,
    pub type_name: String,
}

/// Every function and procedure of the extension.
pub fn functions(client: &mut Client) -> Result<Vec<Function>, pg_zdd_cluster::postgres::Error> {
    let found = rows(
        client,
        r"SELECT p.proname, p.prokind, p.pronargdefaults,
            coalesce((SELECT string_agg(concat_ws(E'\x1d', coalesce(p.proargnames[a.n], ''), format_type(a.type, NULL)),
                E'\x1e' ORDER BY a.n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)), '')
        FROM pg_proc AS p WHERE p.pronamespace = 'zdd'::regnamespace ORDER BY p.oid",
    )?;
    Ok(found
        .into_iter()
        .map(|row| {
            let arguments = row[3].split('\x1e').filter(|text| !text.is_empty()).map(|text| {
                let (name, type_name) = text.split_once('\x1d').unwrap_or((text, "text"));
                Argument { name: name.to_owned(), type_name: type_name.to_owned() }
            });
            Function {
                name: row[0].clone(),
                is_procedure: row[1] == "p",
                arguments: arguments.collect(),
                defaults: row[2].parse().unwrap_or(0),
            }
        })
        .collect())
}

/// Makes the extension again if the superuser has dropped it, for which there was a moment without a change.
pub fn ensure_extension(client: &mut Client) {
    if rows(client, "SELECT FROM pg_extension WHERE extname = 'pg_zdd'").is_ok_and(|found| found.is_empty()) {
        // Somebody may have made a schema of this name meanwhile.
        let _ = client.batch_execute("DROP SCHEMA IF EXISTS zdd CASCADE; CREATE EXTENSION pg_zdd");
    }
}

/// Every table, view and sequence of the extension, ready for SQL, and whether it is a view.
pub fn relations(client: &mut Client) -> Result<Vec<(String, bool)>, pg_zdd_cluster::postgres::Error> {
    let found = rows(
        client,
        "SELECT format('zdd.%I', c.relname), c.relkind FROM pg_class AS c
        WHERE c.relnamespace = 'zdd'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S') ORDER BY c.oid",
    )?;
    Ok(found.into_iter().map(|row| (row[0].clone(), row[1] == "v")).collect())
}

/// The rows of a query, as text; NULL is empty.
pub fn rows(client: &mut Client, sql: &str) -> Result<Vec<Vec<String>>, pg_zdd_cluster::postgres::Error> {
    let messages = client.simple_query(sql)?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or("").to_owned()).collect())
            }
            _ => None,
        })
        .collect())
}

/// A regclass literal.
pub fn regclass(table: &Table) -> String {
    format!("{}::pg_catalog.regclass", lit(&table.name))
}
