//! What the fuzzer's clients say.

use pg_zdd_cluster::fastrand::Rng;

use crate::values::{argument, chance, columns, hostile, hostile_text, ident, lit, one, street};
use crate::world::{Change, Column, Function, NAMES, Role, Slot, Snapshot, Table, regclass, some_mischief};

/// A statement and what it counts as.
pub struct Statement {
    pub kind: String,
    pub sql: String,
    /// The lines of a COPY FROM STDIN.
    pub copy: Option<String>,
}

impl Statement {
    pub fn new(kind: impl Into<String>, sql: impl Into<String>) -> Statement {
        Statement { kind: kind.into(), sql: sql.into(), copy: None }
    }
}

/// A call of a function of the extension.
pub fn call(rng: &mut Rng, function: &Function, now: &Snapshot, role: Role) -> Statement {
    if function.name == "split_column" && chance(rng, 80) {
        return split(rng, now, role, "split_column");
    }
    if function.name == "preview_split" && chance(rng, 80) {
        return split(rng, now, role, "preview_split");
    }
    let required = function.arguments.len() - function.defaults.min(function.arguments.len());
    let named = chance(rng, 70);
    let mut arguments = Vec::new();
    for (number, expected) in function.arguments.iter().enumerate() {
        if number >= required && chance(rng, 50) {
            if named { continue } else { break }
        }
        let value = argument(rng, &function.name, expected, now, role);
        let is_named = named && !expected.name.is_empty();
        arguments.push(if is_named { format!("{} => {value}", ident(&expected.name)) } else { value });
    }
    if chance(rng, 1) {
        arguments.pop();
    }
    let call = format!("zdd.{}({})", ident(&function.name), arguments.join(", "));
    let kind = format!("zdd.{}", function.name);
    Statement::new(kind, if function.is_procedure { format!("CALL {call}") } else { wrapped(rng, &call) })
}

/// A call of a function, in one of the places where it can stand.
fn wrapped(rng: &mut Rng, call: &str) -> String {
    match rng.u8(..24) {
        0 => format!("EXPLAIN ANALYZE SELECT {call}"),
        1 => format!("EXPLAIN (VERBOSE) SELECT * FROM {call}"),
        2 => format!("DO $do$ BEGIN PERFORM {call}; EXCEPTION WHEN others THEN NULL; END $do$"),
        3 => format!("DO $do$ BEGIN FOR i IN 1..3 LOOP PERFORM {call}; END LOOP; END $do$"),
        4 => format!("WITH x AS MATERIALIZED (SELECT * FROM {call}) SELECT * FROM x LIMIT 1"),
        5 => format!("DEALLOCATE ALL; PREPARE p AS SELECT * FROM {call}; EXECUTE p; EXECUTE p"),
        6 => format!("BEGIN; DECLARE c CURSOR FOR SELECT * FROM {call}; FETCH 1 FROM c; COMMIT"),
        7 => format!("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT {call}; FETCH 1 FROM c; COMMIT; FETCH c; CLOSE c"),
        8 => format!("DROP TABLE IF EXISTS pg_temp.result; CREATE TEMP TABLE result AS SELECT {call}"),
        9 => format!("SELECT (SELECT {call}) FROM generate_series(1, 2)"),
        10 => format!("SELECT {call}; SELECT {call}"),
        11 => format!("BEGIN; SELECT {call}; ROLLBACK"),
        12 => format!("BEGIN; SAVEPOINT s; SELECT {call}; ROLLBACK TO s; SELECT {call}; COMMIT"),
        13 => format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT {call}; COMMIT"),
        14 if rng.bool() => format!("BEGIN; SELECT {call}; PREPARE TRANSACTION 'fuzz_{}'", rng.u32(..)),
        14 => format!("BEGIN READ ONLY; SELECT {call}; COMMIT"),
        15 => format!("SELECT * FROM (VALUES (1), (2)) AS v, LATERAL (SELECT {call}) AS l"),
        16 | 17 => format!("SELECT * FROM {call}"),
        _ => format!("SELECT {call}"),
    }
}

/// A call of split_column or preview_split, of a rule that may be a good one.
pub fn split(rng: &mut Rng, now: &Snapshot, role: Role, function: &str) -> Statement {
    let kind = format!("zdd.{function}");
    let own = now.tables_of(role);
    let of: Vec<&Table> = if own.is_empty() || chance(rng, 10) { now.tables.iter().collect() } else { own };
    let of: Vec<&Table> = if chance(rng, 90) {
        of.iter().copied().filter(|table| matches!(table.kind, 'r' | 'p') && !table.is_partition).collect()
    } else {
        of
    };
    if of.is_empty() {
        return Statement::new(kind, format!("SELECT zdd.{function}(NULL, NULL, NULL)"));
    }
    let table = of[rng.usize(..of.len())];
    let taken: Vec<&str> =
        now.active().filter(|change| change.relation == table.name).map(|change| change.source.as_str()).collect();
    let source = source(rng, table, &taken);
    let (definitions, targets) = columns(rng, role);
    let (source_sql, schema) = (source.map_or("street", |column| &column.name), role.schema());
    let mut arguments = vec![
        ("relation", regclass(table)),
        ("source", lit(source.map_or("street", |column| &column.raw_name))),
        ("columns", definitions),
    ];
    let mischief = |rng: &mut Rng, value: &str| {
        let kind = some_mischief(rng);
        let function = one(rng, &["evil", "sly", "evil", "short", "recurse", "recurse"]);
        match function {
            "recurse" => format!("{schema}.recurse({}, {value}::text)", lit(&table.name)),
            "short" => format!("{schema}.short({value}::text)"),
            _ => format!("{schema}.{function}({kind}, {value}::text)"),
        }
    };
    // What groups of a regular expression can be called.
    let grouped = targets.iter().all(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    match rng.u8(..20) {
        0..7 if grouped => {
            let groups: Vec<String> = targets
                .iter()
                .enumerate()
                .map(|(number, name)| match (number, rng.u8(..8)) {
                    (0, 0..6) => format!("(?<{name}>.+?)"),
                    (_, 0..6) => format!(r"(?:\s+(?<{name}>\d\S*))?"),
                    (_, 6) => format!("(?<{name}>(?:x+x+)+)?"),
                    _ => format!(r"(?<{name}>\p{{L}}{{0,200}}.*)"),
                })
                .collect();
            arguments.push(("regex", lit(&format!("^{}$", groups.concat()))));
        }
        0..12 => {
            let delimiters = [" ", "  ", ",", "é", "x", "Street ", "\n", "$1", "{", "\\"];
            arguments.push(("delimiter", lit(one(rng, &delimiters))));
        }
        _ => {
            let expressions: Vec<String> = (1..=targets.len())
                .map(|number| {
                    let text = match rng.u8(..16) {
                        0..5 => format!("split_part({source_sql}::text, ' ', {number})"),
                        5..9 => mischief(rng, source_sql),
                        9 => format!("{schema}.recurse({}, {source_sql}::text)", lit(&table.name)),
                        10 => format!("{source_sql}::int"),
                        11 => format!("1 / (length({source_sql}::text) - 5)"),
                        12 => format!("{source_sql}::text || repeat('y', 100000000)"),
                        13 => format!("nullif({source_sql}, 'x')"),
                        14 => source_sql.to_owned(),
                        _ => one(
                            rng,
                            &[
                                "NULL",
                                "current_user::text",
                                "random()::text",
                                "count(*)",
                                "(SELECT max(relname::text) FROM pg_class)",
                                "generate_series(1, 3)",
                                "$1",
                                "x'",
                                "street::date::text",
                                "1); SELECT (1",
                                "1, 2",
                                "street.street",
                                "ctid::text",
                                "tableoid::text",
                                "NEW.street",
                            ],
                        )
                        .to_owned(),
                    };
                    lit(&text)
                })
                .collect();
            arguments.push(("split_sql", format!("ARRAY[{}]", expressions.join(", "))));
        }
    }
    // A delimiter joins too.
    let joins = if arguments[3].0 == "delimiter" { 10 } else { 8 };
    let quoted: Vec<String> = targets.iter().map(|name| ident(name)).collect();
    match rng.u8(..joins) {
        0..5 => {
            let escape = |name: &String| {
                name.chars().fold(String::new(), |text, c| {
                    if "{}[]\\".contains(c) { text + "\\" + &c.to_string() } else { text + &c.to_string() }
                })
            };
            let sections: Vec<String> = targets
                .iter()
                .enumerate()
                .map(|(number, name)| match number {
                    0 => format!("{{{}}}", escape(name)),
                    _ => format!("[ {{{}}}]", escape(name)),
                })
                .collect();
            let times = if chance(rng, 15) { 2000 } else { 1 };
            arguments.push(("join", lit(&sections.concat().repeat(times))));
        }
        5 => {
            let value = mischief(rng, &quoted[0]);
            arguments.push(("join_sql", lit(&value)));
        }
        6 | 7 => {
            let list: Vec<String> = quoted.iter().map(|name| format!("{name}::text")).collect();
            let cast = source.map_or("text", |column| &column.type_name);
            arguments.push(("join_sql", lit(&format!("({})::{cast}", list.join(" || ' ' || ")))));
        }
        _ => {}
    }
    if chance(rng, 30) {
        arguments.push(("unmatched", one(rng, &["'null'", "'whole'", "'error'"]).to_owned()));
    }
    if function == "split_column" {
        if chance(rng, 30) {
            arguments.push(("conflict", one(rng, &["'new'", "'old'", "'error'"]).to_owned()));
        }
        if chance(rng, 20) {
            arguments.push(("indexes", format!("ARRAY[{}]", lit(&ident(&targets[0])))));
        }
        if chance(rng, 20) {
            let name = if chance(rng, 70) { lit(NAMES[rng.usize(..NAMES.len())]) } else { hostile_text(rng) };
            arguments.push(("change", name));
        }
    } else if chance(rng, 30) {
        arguments.push(("sample_rows", "50".to_owned()));
    }
    // One of them may be something else altogether.
    if chance(rng, 15) {
        let at = rng.usize(..arguments.len());
        let type_name = match arguments[at].0 {
            "relation" => "regclass",
            "source" => "name",
            "split_sql" | "indexes" => "text[]",
            "sample_rows" => "integer",
            _ => "text",
        };
        arguments[at].1 = hostile(rng, type_name, now);
    }
    let list: Vec<String> = arguments.iter().map(|(name, value)| format!("\"{name}\" => {value}")).collect();
    let call = format!("zdd.{function}({})", list.join(", "));
    let sql = match rng.u8(..12) {
        0 => wrapped(rng, &call),
        _ => format!("SELECT * FROM {call}"),
    };
    Statement::new(kind, sql)
}

/// A column to split; most of the time one that is no part of a change yet.
fn source<'a>(rng: &mut Rng, table: &'a Table, taken: &[&str]) -> Option<&'a Column> {
    let street = table.columns.iter().find(|column| column.raw_name == "street");
    if chance(rng, 60) && street.is_some_and(|street| !taken.contains(&street.name.as_str())) {
        return street;
    }
    let text = |column: &&Column| {
        (column.type_name.contains("text") || column.type_name.contains("char"))
            && !taken.contains(&column.name.as_str())
    };
    let columns: Vec<&Column> = table.columns.iter().filter(text).collect();
    if !columns.is_empty() && chance(rng, 80) {
        return Some(columns[rng.usize(..columns.len())]);
    }
    let count = table.columns.len();
    (count > 0).then(|| &table.columns[rng.usize(..count)])
}

/// A step on a change's way, of whoever may take it.
pub fn march(rng: &mut Rng, now: &Snapshot, role: Role) -> Option<Statement> {
    let own: Vec<&Change> =
        now.active().filter(|change| change.owner == role.name() || role == Role::Superuser).collect();
    let change = if own.is_empty() { return None } else { own[rng.usize(..own.len())] };
    let steps: &[&str] = match change.phase.as_str() {
        "expanding" => &[
            "CALL zdd.backfill({c})",
            "CALL zdd.backfill({c})",
            "CALL zdd.backfill({c}, fire_triggers => true)",
            "SELECT zdd.start_backfill({c}, workers => 2)",
            "SELECT zdd.start_backfill({c}, workers => 1, fire_triggers => true)",
            "CALL zdd.wait_for({c}, 'expanded', '1 second')",
            "SELECT zdd.pause({c})",
            "SELECT zdd.resume({c})",
            "SELECT * FROM zdd.verify({c})",
            "SELECT * FROM zdd.mismatches({c})",
            "CALL zdd.repair({c}, 'new')",
            "CALL zdd.repair({c}, 'old')",
            "SELECT zdd.alter_change({c}, unmatched => 'null', conflict => 'new')",
            "SELECT zdd.alter_change({c}, unmatched => 'whole', max_rows_per_second => 0, run_if => '')",
            "SELECT zdd.rollback({c})",
        ],
        "expanded" => &[
            "SELECT zdd.fence({c})",
            "SELECT zdd.fence({c})",
            "CALL zdd.contract({c}, accept_unmatched => true, accept_lossy => true, force => true)",
            "CALL zdd.contract({c})",
            "SELECT zdd.start_contract({c}, accept_unmatched => true, accept_lossy => true, force => true)",
            "SELECT * FROM zdd.verify({c})",
            "SELECT * FROM zdd.mismatches({c})",
            "CALL zdd.backfill({c})",
            "SELECT zdd.start_backfill({c})",
            "SELECT zdd.reset_usage({c})",
            "BEGIN; SELECT zdd.fence({c}); SELECT zdd.unfence({c}); COMMIT",
            "SELECT zdd.rollback({c})",
        ],
        "fenced" => &[
            "SELECT zdd.unfence({c})",
            "CALL zdd.contract({c}, accept_unmatched => true, accept_lossy => true, force => true)",
            "SELECT zdd.start_contract({c}, accept_unmatched => true, accept_lossy => true, force => true)",
            "CALL zdd.wait_for({c}, 'contracted', '1 second')",
            "CALL zdd.repair({c}, 'new')",
            "SELECT zdd.rollback({c})",
        ],
        _ => &["SELECT zdd.rollback({c})"],
    };
    let sql = one(rng, steps).replace("{c}", &lit(&change.name));
    let kind = sql.split("zdd.").nth(1).and_then(|rest| rest.split('(').next()).unwrap_or("").to_owned();
    Some(Statement::new(format!("zdd.{kind}"), sql))
}

/// A look into what the extension shows, or an attempt to write where only it may.
pub fn look(rng: &mut Rng, relations: &[(String, bool)], role: Role) -> Statement {
    let (relation, is_view) = &relations[rng.usize(..relations.len())];
    if *is_view || role == Role::Superuser {
        return Statement::new(format!("view {relation}"), format!("SELECT * FROM {relation}"));
    }
    let sql = one(
        rng,
        &[
            "SELECT * FROM {r}",
            "DELETE FROM {r}",
            "TRUNCATE {r}",
            "INSERT INTO {r} DEFAULT VALUES",
            "LOCK TABLE {r}",
            "ALTER TABLE {r} DISABLE TRIGGER ALL",
            "DROP TABLE {r}",
            "SELECT nextval('{r}')",
        ],
    );
    Statement::new("table of the extension", sql.replace("{r}", relation))
}

/// What applications do.
pub fn dml(rng: &mut Rng, now: &Snapshot, role: Role) -> Option<Statement> {
    let own = now.tables_of(role);
    let of: Vec<&Table> = if own.is_empty() { now.tables.iter().collect() } else { own };
    if of.is_empty() {
        return None;
    }
    // Most of the time where something goes on.
    let mut table = of[rng.usize(..of.len())];
    let changes: Vec<&Change> = now.active().collect();
    let mut change = None;
    if !changes.is_empty() && chance(rng, 70) {
        let picked = changes[rng.usize(..changes.len())];
        if let Some(found) = of.iter().find(|table| table.name == picked.relation) {
            (table, change) = (found, Some(picked));
        }
    }
    let side: Vec<&Column> = match change {
        Some(change) => {
            let (new, both) = (rng.bool(), chance(rng, 15));
            let wanted = |column: &&Column| {
                let is_new = change.targets.contains(&column.name);
                (is_new && (new || both)) || (!new && column.name == change.source)
            };
            table.columns.iter().filter(wanted).collect()
        }
        None => table.columns.iter().filter(|_| rng.bool()).collect(),
    };
    let mut columns: Vec<&Column> = side.into_iter().filter(|column| !column.generated).collect();
    if chance(rng, 50)
        && let Some(id) = table.columns.first()
        && !columns.iter().any(|column| column.name == id.name)
    {
        columns.push(id);
    }
    if columns.is_empty() {
        columns.extend(table.columns.iter().take(2));
    }
    let name = &table.name;
    let list: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let list = list.join(", ");
    let values: Vec<String> = columns.iter().map(|column| value(rng, column)).collect();
    let values_list = values.join(", ");
    let sets: Vec<String> =
        columns.iter().zip(&values).map(|(column, value)| format!("{} = {value}", column.name)).collect();
    let sets = sets.join(", ");
    // A few rows, wherever they are.
    let few = format!("ctid = ANY (ARRAY(SELECT ctid FROM {name} TABLESAMPLE SYSTEM (50) LIMIT {}))", rng.u8(1..5));
    let first = table.columns.first().map_or("id", |column| &column.name);
    let sql = match rng.u8(..20) {
        0..4 => format!("INSERT INTO {name} ({list}) VALUES ({values_list})"),
        4 => format!("INSERT INTO {name} ({list}) VALUES ({values_list}) ON CONFLICT DO NOTHING RETURNING *"),
        5 => format!("INSERT INTO {name} ({list}) VALUES ({values_list}) ON CONFLICT ({first}) DO UPDATE SET {sets}"),
        6..10 => format!("UPDATE {name} SET {sets} WHERE {few}"),
        10 => format!("UPDATE {name} SET ({list}) = ROW({values_list}) WHERE {few} RETURNING *"),
        11 => format!("DELETE FROM {name} WHERE {few}"),
        12 => format!(
            "MERGE INTO {name} AS t USING (SELECT * FROM {name} LIMIT 2) AS s ON t.{first} = s.{first}
            WHEN MATCHED THEN UPDATE SET {sets} WHEN NOT MATCHED THEN INSERT ({list}) VALUES ({values_list})"
        ),
        13 => {
            let lines: String = (0..rng.u8(1..4))
                .map(|_| {
                    let fields: Vec<String> = columns
                        .iter()
                        .map(|_| street(rng).replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t"))
                        .map(|text| text.replace('\r', "\\r"))
                        .collect();
                    fields.join("\t") + "\n"
                })
                .collect();
            let sql = format!("COPY {name} ({list}) FROM STDIN");
            return Some(Statement { kind: "COPY".into(), sql, copy: Some(lines) });
        }
        14 => format!("SELECT * FROM {name} WHERE {few} FOR UPDATE"),
        15 => format!("SELECT {list} FROM {name} LIMIT 3"),
        16 => format!("INSERT INTO {name} DEFAULT VALUES"),
        17 => format!("UPDATE {name} SET {first} = {first} WHERE {few}"),
        18 => {
            format!("WITH x AS (UPDATE {name} SET {sets} WHERE {few} RETURNING *) INSERT INTO {name} SELECT * FROM x")
        }
        _ => format!("DEALLOCATE ALL; PREPARE q AS UPDATE {name} SET {sets} WHERE {few}; EXECUTE q; EXECUTE q"),
    };
    let kind = sql.split(' ').next().unwrap_or("").to_owned();
    Some(Statement::new(kind, sql))
}

/// SQL for a value of a column.
fn value(rng: &mut Rng, column: &Column) -> String {
    match rng.u8(..40) {
        0 | 1 => return "DEFAULT".to_owned(),
        2 | 3 => return "NULL".to_owned(),
        4 => return format!("repeat({}, {})", lit(&street(rng)), rng.u32(1..30_000)),
        5 | 6 => return format!("repeat('x', {})", [65_536, 65_537, 5_000_000][rng.usize(..3)]),
        _ => {}
    }
    let text = match column.type_name.as_str() {
        "integer" | "bigint" | "smallint" | "numeric" => rng.i32(-2..4000).to_string(),
        "jsonb" => one(rng, &["{}", "[1e500]", "null"]).to_owned(),
        _ => street(rng),
    };
    lit(&text)
}

/// DDL of an owner.
pub fn ddl(rng: &mut Rng, now: &Snapshot, slots: &[Slot], role: Role) -> Statement {
    let schema = role.schema();
    let own: Vec<&Slot> = slots.iter().filter(|slot| slot.owner == role).collect();
    let tables = now.tables_of(role);
    if tables.is_empty() || chance(rng, 25) {
        // What is there no longer, or has nothing left to split, comes before what is.
        let missing = |slot: &&&Slot| {
            !tables.iter().any(|table| {
                table.name.replace('"', "") == slot.table.replace('"', "")
                    && table.columns.iter().any(|column| column.raw_name == "street")
            })
        };
        let gone: Vec<&Slot> = own.iter().filter(missing).copied().collect();
        let slot = if gone.is_empty() || chance(rng, 20) {
            own[rng.usize(..own.len())]
        } else {
            gone[rng.usize(..gone.len())]
        };
        return Statement::new("make a table", slot.make(rng));
    }
    let mut table = tables[rng.usize(..tables.len())];
    let changes: Vec<&Change> = now.active().filter(|change| change.owner == role.name()).collect();
    let mut column_of_change = None;
    if !changes.is_empty() && chance(rng, 60) {
        let change = changes[rng.usize(..changes.len())];
        if let Some(found) = tables.iter().find(|table| table.name == change.relation) {
            table = found;
            let count = change.targets.len();
            column_of_change =
                Some(if rng.bool() { change.source.clone() } else { change.targets[rng.usize(..count)].clone() });
        }
    }
    let any_column = |rng: &mut Rng| {
        let count = table.columns.len();
        if count == 0 { "street".to_owned() } else { table.columns[rng.usize(..count)].name.clone() }
    };
    let column = column_of_change.unwrap_or_else(|| any_column(rng));
    let name = ident(NAMES[rng.usize(..NAMES.len())]);
    let other = &tables[rng.usize(..tables.len())].name;
    let trigger = match now.triggers.iter().filter(|(_, on)| *on == table.name).collect::<Vec<_>>() {
        of if of.is_empty() => "\"~zdd_x\"".to_owned(),
        of => of[rng.usize(..of.len())].0.clone(),
    };
    const TEMPLATES: &[&str] = &[
        "ALTER TABLE {t} RENAME COLUMN {c} TO {n}",
        "ALTER TABLE {t} RENAME TO {n}",
        "ALTER TABLE {t} ALTER {c} TYPE text",
        "ALTER TABLE {t} ALTER {c} TYPE varchar(3) USING left({c}::text, 3)",
        "ALTER TABLE {t} ALTER {c} TYPE {s}.fussy",
        "ALTER TABLE {t} ALTER {c} TYPE text USING {s}.evil({k}, {c}::text)",
        "ALTER TABLE {t} ALTER {c} SET DEFAULT 'changed'",
        "ALTER TABLE {t} ALTER {c} SET DEFAULT {s}.evil({k}, 'default')",
        "ALTER TABLE {t} ALTER {c} DROP DEFAULT",
        "ALTER TABLE {t} ALTER {c} SET NOT NULL",
        "ALTER TABLE {t} ALTER {c} DROP NOT NULL",
        "ALTER TABLE {t} ALTER {c} SET STORAGE EXTERNAL",
        "ALTER TABLE {t} ALTER {c} SET STATISTICS 10",
        "ALTER TABLE {t} ALTER {c} ADD GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE {t} DROP COLUMN {c}",
        "ALTER TABLE {t} DROP COLUMN {c} CASCADE",
        "ALTER TABLE {t} DROP COLUMN {c}, ADD COLUMN {c} text",
        "ALTER TABLE {t} ADD COLUMN {n} text",
        "ALTER TABLE {t} ADD COLUMN {n} text DEFAULT {s}.evil({k}, 'd')",
        "ALTER TABLE {t} ADD COLUMN {n} text GENERATED ALWAYS AS ({s}.sly({k}, {c}::text)) STORED",
        "ALTER TABLE {t} ADD CHECK ({s}.sly({k}, {c}::text) IS NOT NULL) NOT VALID",
        "ALTER TABLE {t} ADD CONSTRAINT zdd_not_null_1 CHECK ({c} IS NOT NULL) NOT VALID",
        "ALTER TABLE {t} ADD CONSTRAINT {n} UNIQUE ({c})",
        "ALTER TABLE {t} ADD FOREIGN KEY ({c}) REFERENCES {o} NOT VALID",
        "ALTER TABLE {t} DISABLE TRIGGER ALL",
        "ALTER TABLE {t} DISABLE TRIGGER USER",
        "ALTER TABLE {t} DISABLE TRIGGER {g}",
        "ALTER TABLE {t} ENABLE TRIGGER ALL",
        "ALTER TABLE {t} ENABLE REPLICA TRIGGER {g}",
        "DROP TRIGGER {g} ON {t}",
        "ALTER TRIGGER {g} ON {t} RENAME TO {n}",
        "ALTER TRIGGER {g} ON {t} DEPENDS ON EXTENSION pg_zdd",
        "CREATE TRIGGER \"~zdd_z\" BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION zdd.sync('{}')",
        "CREATE TRIGGER \"~zdd_z\" AFTER UPDATE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION zdd.sync()",
        "CREATE TRIGGER copied BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION zdd.sync('{\"version\": 1}')",
        "CREATE TRIGGER \"~~~late\" BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.interfere({k})",
        "CREATE TRIGGER {n} BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.interfere({k})",
        "CREATE TRIGGER {n} AFTER INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.again()",
        "CREATE TRIGGER {n} BEFORE INSERT OR UPDATE OF {c} ON {t} FOR EACH ROW WHEN ({s}.sly({k}, 'w') IS NOT NULL)
            EXECUTE FUNCTION {s}.rewrite('note')",
        "CREATE INDEX ON {t} ({c})",
        "CREATE INDEX ON {t} ({s}.sly({k}, {c}::text))",
        "CREATE INDEX CONCURRENTLY ON {t} ({c}) WHERE {s}.sly({k}, {c}::text) <> ''",
        "CREATE UNIQUE INDEX ON {t} ({c}) NULLS NOT DISTINCT",
        "CREATE INDEX {n} ON {t} ({c}, {c2})",
        "REINDEX TABLE {t}",
        "REINDEX TABLE CONCURRENTLY {t}",
        "CREATE STATISTICS {s}.{n} ON {c}, {c2} FROM {t}",
        "CLUSTER {t}",
        "VACUUM (FULL) {t}",
        "VACUUM (FREEZE, ANALYZE) {t}",
        "ANALYZE {t}",
        "TRUNCATE {t}",
        "CREATE TABLE {s}.{n} PARTITION OF {t} DEFAULT",
        "ALTER TABLE {t} ATTACH PARTITION {o} DEFAULT",
        "ALTER TABLE {t} DETACH PARTITION {o}",
        "ALTER TABLE {t} DETACH PARTITION {o} CONCURRENTLY",
        "ALTER TABLE {o} INHERIT {t}",
        "ALTER TABLE {o} NO INHERIT {t}",
        "CREATE TABLE {s}.{n} () INHERITS ({t})",
        "CREATE TABLE {s}.{n} (LIKE {t} INCLUDING ALL)",
        "CREATE VIEW {s}.{n} AS SELECT * FROM {t}",
        "CREATE MATERIALIZED VIEW {s}.{n} AS SELECT {c} FROM {t}",
        "DROP VIEW {s}.{n}",
        "DROP MATERIALIZED VIEW {s}.{n}",
        "CREATE RULE {n} AS ON INSERT TO {t} DO ALSO SELECT {s}.sly({k}, 'rule')",
        "CREATE RULE {n} AS ON UPDATE TO {t} DO INSTEAD NOTHING",
        "DROP RULE {n} ON {t}",
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE {t} FORCE ROW LEVEL SECURITY",
        "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY {n} ON {t} USING ({s}.evil({k}, {c}::text) IS NOT NULL)",
        "DROP POLICY {n} ON {t}",
        "CREATE PUBLICATION {n} FOR TABLE {t}",
        "CREATE PUBLICATION {n} FOR TABLE {t} ({c})",
        "DROP PUBLICATION {n}",
        "ALTER TABLE {t} REPLICA IDENTITY FULL",
        "ALTER TABLE {t} REPLICA IDENTITY NOTHING",
        "ALTER TABLE {t} SET (fillfactor = 20, autovacuum_enabled = off)",
        "ALTER TABLE {t} SET WITHOUT CLUSTER",
        "ALTER TABLE {t} SET SCHEMA zdd",
        "ALTER TABLE {t} OWNER TO app",
        "COMMENT ON COLUMN {t}.{c} IS 'it''s'",
        "GRANT SELECT ({c}), UPDATE ({c}), REFERENCES ({c}) ON {t} TO app, PUBLIC",
        "REVOKE ALL ON {t} FROM app, {o_name}",
        "GRANT ALL ON {t} TO app WITH GRANT OPTION",
        "DROP TABLE {t}",
        "DROP TABLE {t}, {o} CASCADE",
        "CREATE OR REPLACE FUNCTION {s}.newborn() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION {s}.evil(int, text) VOLATILE",
        "ALTER FUNCTION {s}.evil(int, text) IMMUTABLE",
        "ALTER FUNCTION {s}.sly(int, text) RENAME TO gone",
        "ALTER FUNCTION {s}.gone(int, text) RENAME TO sly",
        "REVOKE EXECUTE ON FUNCTION {s}.evil(int, text) FROM PUBLIC, {o_name}",
        "GRANT EXECUTE ON FUNCTION {s}.evil(int, text) TO PUBLIC",
        "ALTER FUNCTION {s}.sly(int, text) SET search_path = {s}",
        "ALTER FUNCTION {s}.sly(int, text) RESET ALL",
        "DROP FUNCTION {s}.sly(int, text)",
        "DROP FUNCTION {s}.sly(int, text) CASCADE",
        "ALTER DOMAIN {s}.plain_text ADD CONSTRAINT {n} CHECK ({s}.sly({k}, VALUE) IS NOT NULL) NOT VALID",
        "ALTER DOMAIN {s}.plain_text DROP CONSTRAINT {n}",
        "ALTER DOMAIN {s}.fussy DROP NOT NULL",
        "ALTER TYPE {s}.mood ADD VALUE IF NOT EXISTS {l}",
        "ALTER TYPE {s}.mood RENAME VALUE 'ok' TO 'fine'",
        "ALTER TYPE {s}.pair RENAME ATTRIBUTE b TO {n} CASCADE",
        "ALTER TYPE {s}.pair ADD ATTRIBUTE {n} text CASCADE",
        "DROP TYPE {s}.mood CASCADE",
        "CREATE TABLE {s}.{n} AS SELECT * FROM {t}",
        "CREATE TEMP TABLE address AS SELECT 1 AS street",
        "ALTER ROLE {o_name} SET search_path = {s}, pg_catalog",
        "ALTER ROLE {o_name} SET standard_conforming_strings = off",
        "ALTER ROLE {o_name} SET lock_timeout = '1ms'",
        "ALTER ROLE {o_name} RESET ALL",
        "ALTER ROLE {o_name} RESET ALL",
        "CREATE SCHEMA {n}",
        "DROP SCHEMA {n} CASCADE",
        "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION zdd.guard()",
        "DROP EVENT TRIGGER pg_zdd_guard",
        "ALTER EVENT TRIGGER pg_zdd_guard DISABLE",
        "DROP EXTENSION pg_zdd CASCADE",
        "DROP FUNCTION zdd.sync() CASCADE",
        "ALTER EXTENSION pg_zdd ADD TABLE {t}",
        "CREATE TABLE zdd.mine ()",
        "LOCK TABLE {t} IN SHARE MODE",
    ];
    let template = one(rng, TEMPLATES);
    let mut sql = template
        .replace("{t}", &table.name)
        .replace("{c2}", &any_column(rng))
        .replace("{c}", &column)
        .replace("{n}", &name)
        .replace("{o}", other)
        .replace("{o_name}", role.name())
        .replace("{g}", &trigger)
        .replace("{s}", schema)
        .replace("{l}", &lit(&street(rng)))
        .replace("{k}", &some_mischief(rng).to_string());
    if chance(rng, 10) {
        sql = format!("BEGIN; {sql}; ROLLBACK");
    }
    let words: Vec<&str> = template.split(' ').take(2).collect();
    Statement::new(words.join(" "), sql)
}

/// What a superuser and the owner of the database do: nothing that runs code of the owners of tables.
pub fn administer(rng: &mut Rng, now: &Snapshot, role: Role) -> Statement {
    let table = match now.tables.len() {
        0 => "nothing".to_owned(),
        count => now.tables[rng.usize(..count)].name.clone(),
    };
    const SUPERUSER: &[&str] = &[
        "CREATE FUNCTION pg_temp.unrelated() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE OR REPLACE FUNCTION public.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE public.unrelated (a int); DROP TABLE public.unrelated",
        "CREATE TABLE public.unrelated (a int)",
        "DROP TABLE IF EXISTS public.unrelated",
        "CREATE ROLE nobody; DROP ROLE nobody",
        "CREATE TYPE public.unrelated_type AS (a int); DROP TYPE public.unrelated_type",
        "ALTER TABLE {t} OWNER TO heir",
        "BEGIN; ALTER TABLE {t} OWNER TO owner_b; ROLLBACK",
        "DROP EXTENSION pg_zdd",
        "ALTER EXTENSION pg_zdd UPDATE",
        "REVOKE EXECUTE ON FUNCTION zdd.sync() FROM PUBLIC; GRANT EXECUTE ON FUNCTION zdd.sync() TO PUBLIC",
        "GRANT CREATE ON SCHEMA zdd TO owner_a; REVOKE CREATE ON SCHEMA zdd FROM owner_a",
        "ALTER SYSTEM SET zdd.max_slot_backlog = '1GB'; SELECT pg_reload_conf()",
        "CHECKPOINT",
        "SELECT * FROM pg_locks",
        "SELECT * FROM pg_stat_activity",
        "VACUUM zdd.change, zdd.event, zdd.lane",
        "COMMENT ON TABLE {t} IS 'seen'",
    ];
    const DATABASE_OWNER: &[&str] = &[
        "ALTER DATABASE fuzz SET search_path = shop, pg_catalog",
        "ALTER DATABASE fuzz SET quote_all_identifiers = on",
        "ALTER DATABASE fuzz SET default_transaction_isolation = serializable",
        "ALTER DATABASE fuzz SET zdd.lock_patience = 0",
        "ALTER DATABASE fuzz SET bytea_output = escape",
        "ALTER DATABASE fuzz SET DateStyle = 'German'",
        "ALTER DATABASE fuzz SET row_security = off",
        "ALTER DATABASE fuzz SET default_table_access_method = heap",
        "ALTER DATABASE fuzz RESET ALL",
        "ALTER DATABASE fuzz RESET ALL",
        "CREATE SCHEMA zdd",
        "DROP SCHEMA zdd CASCADE",
        "ALTER SCHEMA zdd RENAME TO mine",
        "CREATE TABLE zdd.job ()",
        "CREATE SCHEMA mine; CREATE TABLE mine.t (street text); DROP SCHEMA mine CASCADE",
        "VACUUM (ANALYZE) {t}",
        "DROP TABLE {t}",
        "DROP EXTENSION pg_zdd CASCADE",
        "CREATE EXTENSION pg_zdd SCHEMA public",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
    ];
    let template = one(rng, if role == Role::Superuser { SUPERUSER } else { DATABASE_OWNER });
    let words: Vec<&str> = template.split(' ').take(2).collect();
    let sql = template.replace("{t}", &table);
    let prefix = if role == Role::Superuser { "superuser: " } else { "database owner: " };
    Statement::new(format!("{prefix}{}", words.join(" ")), sql)
}

/// What a stranger tries.
pub fn trespass(rng: &mut Rng, now: &Snapshot) -> Statement {
    let table = match now.tables.len() {
        0 => "nothing".to_owned(),
        count => now.tables[rng.usize(..count)].name.clone(),
    };
    const ATTEMPTS: &[&str] = &[
        "SELECT * FROM {t}",
        "UPDATE {t} SET street = 'mine'",
        "INSERT INTO {t} DEFAULT VALUES",
        "LOCK TABLE {t}",
        "ALTER TABLE {t} ADD COLUMN mine int",
        "COPY {t} TO STDOUT",
        "CREATE TEMP TABLE mine (street text, note text)",
        "CREATE TEMP TABLE change (street text); SELECT * FROM zdd.changes",
        "SET zdd.guard = off",
        "SET zdd.quiet_period = 0",
        "SET zdd.no_such_setting = 1",
        "ALTER TABLE zdd.change OWNER TO stranger",
        "CREATE TEMP VIEW v AS SELECT * FROM zdd.progress; SELECT * FROM v",
        "DECLARE x CURSOR WITH HOLD FOR SELECT * FROM zdd.usage",
        "SELECT pg_advisory_lock(2053399652, 64), pg_advisory_unlock_all()",
        "SELECT pg_advisory_lock_shared(2053399652::bigint << 32), pg_advisory_unlock_all()",
        "LISTEN zdd",
        "DO $$ BEGIN CALL zdd.backfill('x'); EXCEPTION WHEN others THEN COMMIT; END $$",
    ];
    Statement::new("trespass", one(rng, ATTEMPTS).replace("{t}", &table))
}

/// Settings that change how things are said or done.
pub fn setting(rng: &mut Rng, role: Role) -> Statement {
    let schema = if role.owns_tables() { role.schema() } else { "shop" };
    const SETTINGS: &[&str] = &[
        "SET standard_conforming_strings = off",
        "SET standard_conforming_strings = on",
        "SET quote_all_identifiers = on",
        "SET backslash_quote = off",
        "SET search_path = {s}, pg_catalog",
        "SET search_path = ''",
        "SET search_path = pg_temp, zdd, pg_catalog",
        "RESET search_path",
        "SET DateStyle = 'German'",
        "SET IntervalStyle = 'iso_8601'",
        "SET extra_float_digits = -15",
        "SET bytea_output = 'escape'",
        "SET xmlbinary = hex",
        "SET TimeZone = 'Asia/Kolkata'",
        "SET lock_timeout = '1ms'",
        "SET lock_timeout = '300ms'",
        "SET statement_timeout = '5ms'",
        "SET statement_timeout = '50ms'",
        "SET statement_timeout = '3s'",
        "SET client_min_messages = debug1",
        "SET client_min_messages = error",
        "SET default_transaction_isolation = 'serializable'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET check_function_bodies = off",
        "SET enable_seqscan = off",
        "SET enable_tidscan = off",
        "SET plan_cache_mode = force_generic_plan",
        "SET default_with_oids = off",
        "SET array_nulls = off",
        "SET transform_null_equals = on",
        "SET row_security = off",
        "SET constraint_exclusion = on",
        "SET max_stack_depth = '100kB'",
        "SET work_mem = '64kB'",
        "SET temp_buffers = '800kB'",
        "SET vacuum_cost_delay = 1",
        "SET application_name = E'fuzz it''s \"$1\" \\n'",
        "SET application_name = 'pg_dump'",
        "SET client_encoding = 'LATIN1'; SET client_encoding = 'UTF8'",
        "SET zdd.lock_timeout = '1ms'",
        "SET zdd.lock_patience = 0",
        "SET zdd.max_source_length = '1kB'",
        "SET zdd.max_source_length = '1000MB'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET LOCAL search_path = {s}",
        "SET ROLE NONE",
        "SET ROLE app",
        "RESET ROLE",
        "RESET ALL",
        "DISCARD ALL",
        "DISCARD PLANS",
        "DEALLOCATE ALL",
        "CLOSE ALL",
        "UNLISTEN *",
        "SET CONSTRAINTS ALL IMMEDIATE",
    ];
    Statement::new("setting", one(rng, SETTINGS).replace("{s}", schema))
}

/// Statements that begin, divide and end transactions.
pub fn transaction(rng: &mut Rng, inside: bool) -> Statement {
    const OUTSIDE: &[&str] = &[
        "BEGIN",
        "BEGIN",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "BEGIN READ ONLY",
        "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
    ];
    const INSIDE: &[&str] = &[
        "SAVEPOINT s",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "ROLLBACK TO s",
        "RELEASE s",
        "COMMIT",
        "COMMIT AND CHAIN",
        "ROLLBACK",
        "ROLLBACK",
        "PREPARE TRANSACTION 'fuzz_{n}'",
    ];
    let sql = one(rng, if inside { INSIDE } else { OUTSIDE }).replace("{n}", &rng.u32(..).to_string());
    Statement::new("transaction", sql)
}

/// Disturbs somebody.
pub fn disturb(rng: &mut Rng, now: &Snapshot) -> Option<Statement> {
    let count = now.backends.len();
    let pid = if count == 0 {
        return None;
    } else {
        // Those of pg_zdd, who come first, are disturbed more often.
        let within = if rng.bool() { count.min(6) } else { count };
        now.backends[rng.usize(..within)]
    };
    let how = if chance(rng, 70) { "pg_cancel_backend" } else { "pg_terminate_backend" };
    Some(Statement::new(how, format!("SELECT pg_catalog.{how}({pid})")))
}
