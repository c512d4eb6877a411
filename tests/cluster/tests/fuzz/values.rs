//! Values to call things with: valid ones, and those that nobody expects.

use pg_zdd_cluster::fastrand::Rng;

use crate::world::{Argument, NAMES, Role, Snapshot, regclass, some_mischief};

/// A name, quoted.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string, quoted in a way that holds whatever standard_conforming_strings is.
pub fn lit(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// One of them.
pub fn one<'a, T: ?Sized>(rng: &mut Rng, of: &[&'a T]) -> &'a T {
    of[rng.usize(..of.len())]
}

pub fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

/// A street, or what might be taken for one.
pub fn street(rng: &mut Rng) -> String {
    match rng.u8(..20) {
        0..9 => format!("Elm Street {}", rng.u16(1..3000)),
        9 => "Main  St 5".to_owned(),
        10 => String::new(),
        11 => " ".repeat(rng.usize(1..5)),
        12 => format!("Elm{}1", rng.char(..)).replace('\0', ""),
        13 => "Elm\n1".to_owned(),
        14 => "ELM STREET".to_owned(),
        15 => NAMES[rng.usize(..NAMES.len())].to_owned(),
        16 => "9223372036854775808 99999999999999999999999".to_owned(),
        17 => "a".repeat(rng.usize(1..3000)),
        18 => "\u{202e}e\u{301} \u{feff}7".to_owned(),
        _ => format!("{}  b", rng.i32(..)),
    }
}

/// SQL for a text that nobody expects.
pub fn hostile_text(rng: &mut Rng) -> String {
    const TEXTS: &[&str] = &[
        "NULL",
        "''",
        "' '",
        "'x'",
        "'$1'",
        "'$1::tid'",
        "E'it''s \\\\ \"quoted\"'",
        "'%s%n%I%L'",
        "'{a}'",
        "'{b}[{c}]'",
        "'[[[[{a}]'",
        "'{'",
        "'}'",
        "E'\\\\'",
        "'1; DROP TABLE x'",
        "'pg_catalog.pg_class'",
        "E'\\n\\t\\r\\x01\\x7f'",
        "U&'\\FFFD\\202E\\+01F418'",
        "E'\\xff'",
        "repeat('x', 100)",
        "repeat('x', 70000)",
        "repeat('é ', 40000)",
        "repeat('x', 5000000)",
        "repeat('x', 200000000)",
        "repeat('{b}', 2000)",
        "repeat('[', 100000)",
        "repeat('(', 100000)",
        "repeat('a,', 5000)",
        "repeat('(?<a>', 300)",
        "'(?<a>(x+x+)+y)'",
        "'(?<a>\\w{1000}{1000})(?<b>.*)'",
        "'(?<a>.*)*(?<b>.*)*$'",
        "'^(?<a>.+?)(?:\\s+(?<b>\\d\\S*))?$'",
        "'(?P<a>a)|(?P<a>b)'",
        "'(?<a>\\p{Greek}\\1)'",
        "'{\"version\": 1}'",
        "'null'",
        "'whole'",
        "'error'",
        "'new'",
        "'old'",
        "'expanded'",
        "'contracted'",
        "current_user",
        "'true'",
        "'select'",
        "'a text'",
        "'a text, b text'",
    ];
    if chance(rng, 15) { lit(NAMES[rng.usize(..NAMES.len())]) } else { TEXTS[rng.usize(..TEXTS.len())].to_owned() }
}

/// SQL for an argument of a function: most of the time one that makes sense.
pub fn argument(rng: &mut Rng, function: &str, argument: &Argument, now: &Snapshot, role: Role) -> String {
    if chance(rng, 75)
        && let Some(value) = sensible(rng, function, argument, now, role)
    {
        return value;
    }
    hostile(rng, &argument.type_name, now)
}

fn sensible(rng: &mut Rng, function: &str, argument: &Argument, now: &Snapshot, role: Role) -> Option<String> {
    let change = |rng: &mut Rng| {
        let mut changes: Vec<_> = now.active().filter(|change| change.owner == role.name()).collect();
        if changes.is_empty() || chance(rng, 10) {
            changes = now.active().collect();
        }
        if changes.is_empty() || chance(rng, 10) {
            changes = now.changes.iter().collect();
        }
        (!changes.is_empty()).then(|| changes[rng.usize(..changes.len())])
    };
    let text = match (argument.name.as_str(), argument.type_name.as_str()) {
        ("change", "text") if !matches!(function, "split_column" | "_check_move") => lit(&change(rng)?.name),
        ("relation", "oid") => {
            change(rng).map_or_else(|| "0".into(), |change| format!("{}::regclass::oid", lit(&change.relation)))
        }
        (_, "regclass") => regclass(own_table(rng, now, role)?),
        ("source", "name") => one(rng, &["'street'", "'note'", "'it''s \"quoted\"'", "'a.b'", "'id'"]).to_owned(),
        ("columns", _) => columns(rng, role).0,
        ("winner" | "conflict", _) => one(rng, &["'new'", "'old'", "'error'"]).to_owned(),
        ("unmatched", _) => one(rng, &["'null'", "'whole'", "'error'"]).to_owned(),
        ("phase" | "destination", _) | ("source", "text") => {
            let phases = ["'expanding'", "'expanded'", "'fenced'", "'contracted'", "'rolled_back'"];
            one(rng, &phases).to_owned()
        }
        ("timeout", _) => one(rng, &["'1 second'", "'0'", "'100 ms'", "'-1 day'"]).to_owned(),
        ("batch_target", _) => one(rng, &["'1 ms'", "'50 ms'", "'10 s'"]).to_owned(),
        ("run_if", _) => condition(rng, role),
        ("workers", _) => rng.u8(1..4).to_string(),
        ("max_rows", _) => one(rng, &["1", "100", "2147483647"]).to_owned(),
        ("max_rows_per_second", _) => one(rng, &["0", "1000", "100000", "0"]).to_owned(),
        ("sample_rows", _) => one(rng, &["1", "10", "10000"]).to_owned(),
        ("touched" | "dropped_from", _) => {
            let oids: Vec<String> = (0..rng.u8(..4)).filter_map(|_| any_oid(rng, now)).collect();
            format!("'{{{}}}'", oids.join(","))
        }
        (_, "boolean") => rng.bool().to_string(),
        (_, "integer") => rng.u8(1..20).to_string(),
        _ => return None,
    };
    Some(text)
}

fn any_oid(rng: &mut Rng, now: &Snapshot) -> Option<String> {
    (!now.tables.is_empty()).then(|| now.tables[rng.usize(..now.tables.len())].oid.to_string())
}

fn own_table<'a>(rng: &mut Rng, now: &'a Snapshot, role: Role) -> Option<&'a crate::world::Table> {
    let own = now.tables_of(role);
    match own.len() {
        0 if now.tables.is_empty() => None,
        0 => Some(&now.tables[rng.usize(..now.tables.len())]),
        count => Some(own[rng.usize(..count)]),
    }
}

/// SQL for a value of a type, of the kind that is forgotten.
pub fn hostile(rng: &mut Rng, type_name: &str, now: &Snapshot) -> String {
    let value = match type_name {
        "text" | "character varying" | "name" => hostile_text(rng),
        "boolean" => one(rng, &["NULL", "true", "false"]).to_owned(),
        "integer" => one(rng, &["NULL", "0", "-1", "1", "32", "33", "2147483647", "'-2147483648'"]).to_owned(),
        "bigint" => one(rng, &["NULL", "0", "-1", "9223372036854775807"]).to_owned(),
        "interval" => {
            let values =
                ["NULL", "'0'", "'-1 day'", "'178000000 years'", "'-178000000 years'", "'1 month'", "'0.1 ms'"];
            one(rng, &values).to_owned()
        }
        "oid" => match any_oid(rng, now) {
            Some(oid) if rng.bool() => oid,
            _ => one(rng, &["NULL", "0", "1259", "4294967295", "'pg_class'::regclass::oid"]).to_owned(),
        },
        "regclass" => {
            const RELATIONS: &[&str] = &[
                "NULL",
                "0",
                "4294967295",
                "'pg_class'",
                "'pg_class_oid_index'",
                "'zdd.change'",
                "'zdd.changes'",
                "'zdd.change_id_seq'",
                "'information_schema.columns'",
                "'no_such_table'",
                "'pg_toast.pg_toast_1255'",
            ];
            match now.tables.len() {
                count @ 1.. if rng.bool() => return regclass(&now.tables[rng.usize(..count)]),
                _ => one(rng, RELATIONS).to_owned(),
            }
        }
        "text[]" => {
            const ARRAYS: &[&str] = &[
                "NULL",
                "'{}'",
                "ARRAY[NULL]",
                "ARRAY['', NULL, 'a']",
                "ARRAY[['a', 'b'], ['c', 'd']]",
                "'[5:6]={a,b}'",
                "array_fill('a'::text, ARRAY[10000])",
                "ARRAY['a, b', 'b', 'a']",
                "ARRAY['$1', '{a}', 'x y']",
                "ARRAY[repeat('x', 1000000)]",
            ];
            one(rng, ARRAYS).to_owned()
        }
        "oid[]" => {
            const ARRAYS: &[&str] = &[
                "NULL",
                "'{}'",
                "ARRAY[NULL]",
                "ARRAY[0, 4294967295]",
                "ARRAY[NULL, 1259]",
                "ARRAY[[1, 2], [3, 4]]",
                "'[-3:-2]={1,2}'",
                "array_fill(1::oid, ARRAY[100000])",
                "(SELECT array_agg(oid) FROM pg_catalog.pg_class)",
                "(SELECT array_agg(oid) FROM pg_catalog.pg_trigger)",
            ];
            one(rng, ARRAYS).to_owned()
        }
        "jsonb" | "json" => {
            one(rng, &["NULL", "'{}'", "'[]'", "'null'", "'{\"a\": 1e500}'", "repeat('[', 5000)"]).to_owned()
        }
        _ => one(rng, &["NULL", "''", "'0'"]).to_owned(),
    };
    format!("({value})::{type_name}")
}

/// An SQL expression for `run_if`, as a literal.
fn condition(rng: &mut Rng, role: Role) -> String {
    let mischief = some_mischief(rng);
    let text = match rng.u8(..10) {
        0..3 => String::new(),
        3 | 4 => "true".to_owned(),
        5 => "false".to_owned(),
        6 => one(rng, &["NULL", "1", "count(*) > 0", "$1", "random() < 2; select 1", "exists (select from pg_class)"])
            .to_owned(),
        _ => format!("{}.evil({mischief}, 'x') IS NOT NULL", role.schema()),
    };
    lit(&text)
}

/// Definitions of new columns as a literal, and their names as they are.
pub fn columns(rng: &mut Rng, role: Role) -> (String, Vec<String>) {
    let count = [1, 2, 2, 2, 3][rng.usize(..5)];
    let plain = chance(rng, 70);
    let mut names = Vec::new();
    for number in 0..count {
        // Not those of an earlier change.
        let common = format!("{}{}", ["a", "b", "c"][number], rng.u8(..30));
        let name = if plain { common } else { NAMES[rng.usize(..NAMES.len())].to_owned() };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let schema = role.schema();
    let types = [
        "text",
        "text",
        "text",
        "varchar",
        "varchar(5)",
        "char(8)",
        "int",
        "int2",
        "bigint",
        "numeric",
        "numeric(5,2)",
        "citext",
        "text COLLATE \"C\"",
        "{s}.plain_text",
        "{s}.fussy",
        "{s}.mood",
        "text COLLATE {s}.nocase",
        "jsonb",
        "{s}.pair",
        "text[]",
        "serial",
        "no_such_type",
    ];
    let definitions: Vec<String> = names
        .iter()
        .map(|name| {
            let common = if chance(rng, 75) { 4 } else { types.len() };
            let mut definition = format!("{} {}", ident(name), types[rng.usize(..common)].replace("{s}", schema));
            if chance(rng, 20) {
                definition += " NOT NULL";
            }
            if chance(rng, 10) {
                let mischief = some_mischief(rng);
                definition += match rng.u8(..4) {
                    0 | 1 => " DEFAULT 'd'".to_owned(),
                    2 => " DEFAULT now()::text".to_owned(),
                    _ => format!(" DEFAULT {schema}.evil({mischief}, 'd')"),
                }
                .as_str();
            }
            if chance(rng, 3) {
                definition +=
                    one(rng, &[" UNIQUE", " CHECK (true)", " REFERENCES x", "; DROP TABLE x", ") , (", " --"]);
            }
            definition
        })
        .collect();
    (lit(&definitions.join(", ")), names)
}
