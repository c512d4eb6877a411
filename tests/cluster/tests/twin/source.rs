//! Kinds of old columns: their type, the values that applications write, and rules that split them.

use pg_zdd_cluster::fastrand::Rng;

use super::{one_in, pick};

/// What an application writes; `None` is NULL.
pub type Value = Option<String>;

/// A kind of old column.
pub struct Kind {
    /// Its type and collation.
    pub definition: &'static str,
    /// The type that a literal is cast to where PostgreSQL cannot tell it.
    pub cast: &'static str,
    /// Whether it can be compared and sorted.
    pub ordered: bool,
    /// Whether text functions work on it.
    pub is_text: bool,
    /// A value that most rules accept.
    accepted: fn(&mut Rng) -> String,
    /// One that some do not.
    odd: fn(&mut Rng) -> String,
    rule: fn(&mut Rng) -> Rule,
}

/// A new column.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    pub type_name: &'static str,
    pub not_null: bool,
    pub default: Option<&'static str>,
    /// What the new application writes.
    value: fn(&mut Rng) -> String,
}

/// How the old column is split. `$s` stands for it.
#[derive(Clone)]
pub struct Rule {
    pub targets: Vec<Target>,
    /// Named arguments of split_column.
    pub how: String,
    /// g, as SQL over the new columns.
    pub joined: &'static str,
    pub unmatched: &'static str,
    pub conflict: &'static str,
}

impl Kind {
    pub fn value(&self, rng: &mut Rng) -> Value {
        match rng.u8(..20) {
            0..15 => Some(self.good(rng)),
            15..18 => Some((self.odd)(rng)),
            _ => None,
        }
    }

    /// One that every rule of this kind accepts.
    pub fn good(&self, rng: &mut Rng) -> String {
        (self.accepted)(rng)
    }

    /// A rule, with random policies.
    pub fn rule(&self, rng: &mut Rng) -> Rule {
        let mut rule = (self.rule)(rng);
        rule.conflict = pick(rng, &["new", "old", "error"]);
        let holds_text = |it: &Target| ["text", "varchar", "citext"].iter().any(|text| it.type_name.starts_with(text));
        if self.is_text && one_in(rng, 3) && holds_text(&rule.targets[0]) {
            rule.unmatched = "whole";
        }
        // What a default gives must be something that can be joined.
        let takes_defaults = !["app.mood", "int4range"].contains(&self.definition);
        for target in &mut rule.targets {
            target.not_null = one_in(rng, 3);
            if !takes_defaults {
                continue;
            }
            if one_in(rng, 6) && target.type_name == "int" {
                target.default = Some("7");
            } else if one_in(rng, 6) && holds_text(target) {
                target.default = Some("'new'");
            }
        }
        rule
    }
}

impl Target {
    pub fn value(&self, rng: &mut Rng) -> Value {
        if one_in(rng, 7) { None } else { Some((self.value)(rng)) }
    }

    /// The type that a literal is cast to where PostgreSQL cannot tell it: without a length, which would cut it off.
    pub fn cast(&self) -> &str {
        match self.type_name.split([' ', '(']).next().unwrap_or_default() {
            "char" => "bpchar",
            cast => cast,
        }
    }

    /// Never NULL.
    pub fn some_value(&self, rng: &mut Rng) -> String {
        (self.value)(rng)
    }
}

impl Rule {
    /// The call that begins the change of this column.
    pub fn split_column(&self, table: &str, source: &str) -> String {
        let define = |target: &Target| {
            let default = target.default.map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
            format!("{} {}{}{default}", target.name, target.type_name, if target.not_null { " NOT NULL" } else { "" })
        };
        let columns: Vec<String> = self.targets.iter().map(define).collect();
        format!(
            "SELECT zdd.split_column('{table}', '{}', columns => '{}', {}, unmatched => '{}', conflict => '{}',
                change => 'twin')",
            source.trim_matches('"'),
            columns.join(", ").replace('\'', "''"),
            self.how.replace("$s", source),
            self.unmatched,
            self.conflict,
        )
    }

    pub fn target_names(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.name.to_owned()).collect()
    }
}

/// A new column: its name, its type, and what makes values for it.
type Column = (&'static str, &'static str, fn(&mut Rng) -> String);

fn rule(targets: &[Column], how: &str, joined: &'static str) -> Rule {
    let target = |&(name, type_name, value): &(&'static str, &'static str, fn(&mut Rng) -> String)| Target {
        name,
        type_name,
        not_null: false,
        default: None,
        value,
    };
    Rule {
        targets: targets.iter().map(target).collect(),
        how: how.to_owned(),
        joined,
        unmatched: "null",
        conflict: "new",
    }
}

// Values of new applications are new ones with each statement: writing back what is there is no write.

fn name(rng: &mut Rng) -> String {
    format!("{} {}", pick(rng, &["Oak", "Ash", "Straße des 17. Juni", "O'Neil"]), word(rng))
}

fn word(rng: &mut Rng) -> String {
    (0..5).map(|_| rng.alphabetic()).collect()
}

fn number(rng: &mut Rng) -> String {
    rng.u16(1..30_000).to_string()
}

fn digits(rng: &mut Rng) -> String {
    rng.u8(1..100).to_string()
}

fn street(rng: &mut Rng) -> String {
    let name = pick(rng, &["Elm", "Oak Road", "Große Straße", "O'Hara", "丸の内"]);
    match rng.u8(..20) {
        0..11 => format!("{name} {}", rng.u8(1..30)),
        11..13 => format!("{name}  {}", rng.u8(1..30)),
        13..15 => format!("{name} {}b", rng.u8(1..30)),
        15 => format!("{} {}", name.to_uppercase(), rng.u8(1..30)),
        _ => name.to_owned(),
    }
}

fn odd_street(rng: &mut Rng) -> String {
    match rng.u8(..14) {
        0 | 1 => String::new(),
        2 => " ".into(),
        3 => " Elm 5".into(),
        4 => "two\nlines 7".into(),
        5 => format!("{}9", "Long ".repeat(700)),
        6 => (0..2500).map(|_| rng.alphanumeric()).collect(),
        7 => "tab\t3".into(),
        8 => "Elm 99999999999".into(),
        9 => "x".repeat(45),
        10 => "Elm 12  ".into(),
        11 => r"back\slash 1".into(),
        12 => "NULL".into(),
        _ => "bad".into(),
    }
}

/// A street and its number, or a name without one.
const ADDRESS: &str = r#"regex => '^(?<alpha>.+?)(?:\s+(?<beta>\d\S*))?$', "join" => '{alpha}[ {beta}]'"#;
const ADDRESS_JOIN: &str = "alpha || coalesce(' ' || beta, '')";

fn text_rule(rng: &mut Rng) -> Rule {
    match rng.u8(..14) {
        0 => rule(&[("alpha", "varchar", name), ("beta", "varchar", number)], ADDRESS, ADDRESS_JOIN),
        1 => rule(&[("alpha", "text", name), ("beta", "varchar(3)", digits)], ADDRESS, ADDRESS_JOIN),
        2 => rule(
            &[("alpha", "varchar(12)", word), ("beta", "int", number)],
            ADDRESS,
            "alpha || coalesce(' ' || beta::text, '')",
        ),
        3 => rule(&[("alpha", "citext", name), ("beta", "text", number)], ADDRESS, ADDRESS_JOIN),
        4 => rule(&[("alpha", "text COLLATE ci", name), ("beta", "char(6)", digits)], ADDRESS, ADDRESS_JOIN),
        5 => rule(&[("alpha", "text", name)], r#"regex => '(?s)^(?<alpha>.*)$', "join" => '{alpha}'"#, "alpha"),
        6 => rule(
            &[("alpha", "text", word), ("beta", "text", number)],
            "delimiter => ' '",
            "concat_ws(' ', alpha, beta)",
        ),
        7 => rule(
            &[("alpha", "varchar(20)", word), ("beta", "text", word), ("gamma", "text", number)],
            r#"delimiter => ' ', "join" => '{alpha}[ {beta}[ {gamma}]]'"#,
            "coalesce(alpha, '') || coalesce(' ' || beta || coalesce(' ' || gamma, ''), '')",
        ),
        8 => rule(
            &[("alpha", "text", word), ("beta", "numeric(6,1)", digits)],
            r#"regex => '^(?<alpha>\D+?)\s*(?<beta>\d+)?$', "join" => '{alpha}[ {beta}]'"#,
            "alpha || coalesce(' ' || beta::numeric(6,1)::text, '')",
        ),
        9 => rule(
            &[("alpha", "text", name), ("beta", "text", number)],
            "split_sql => ARRAY['split_part($s::text, '' '', 1)', 'nullif(split_part($s::text, '' '', 2), '''')'],
                join_sql => 'alpha || coalesce('' '' || beta, '''')'",
            ADDRESS_JOIN,
        ),
        10 => rule(
            &[("alpha", "text", name), ("beta", "int", number)],
            "split_sql => ARRAY['app.street_name($s::text)', 'app.street_number($s::text)'],
                join_sql => 'alpha || coalesce('' '' || beta::text, '''')'",
            "alpha || coalesce(' ' || beta::text, '')",
        ),
        11 => rule(
            &[("alpha", "text", name), ("beta", "int", number)],
            "split_sql => ARRAY['substring($s::text from ''^\\D+'')', 'substring($s::text from ''\\d+'')::int'],
                join_sql => 'alpha || coalesce('' '' || beta::text, '''')'",
            "alpha || coalesce(' ' || beta::text, '')",
        ),
        12 => rule(&[("alpha", "text", name)], "split_sql => ARRAY['lower($s::text)'], join_sql => 'alpha'", "alpha"),
        _ => rule(
            &[("alpha", "text", word), ("beta", "int", number)],
            "split_sql => ARRAY['$s::text', '100 / (length($s::text) - 6)'], join_sql => 'alpha || beta::text'",
            "alpha || beta::text",
        ),
    }
}

/// The regular expressions and searches of PostgreSQL refuse such collations.
fn collated_rule(rng: &mut Rng) -> Rule {
    match rng.u8(..3) {
        0 => rule(&[("alpha", "text COLLATE ci", name), ("beta", "varchar", number)], ADDRESS, ADDRESS_JOIN),
        1 => rule(
            &[("alpha", "text", word), ("beta", "text", number)],
            "delimiter => ' '",
            "concat_ws(' ', alpha, beta)",
        ),
        _ => rule(&[("alpha", "text COLLATE ci", name)], "split_sql => ARRAY['$s'], join_sql => 'alpha'", "alpha"),
    }
}

fn amount(rng: &mut Rng) -> String {
    format!("{}.{:02}", rng.i32(-40..40), rng.u8(..100))
}

fn odd_amount(rng: &mut Rng) -> String {
    pick(rng, &["NaN", "9999999999.00", "-0.00", "0.10"]).to_string()
}

fn amount_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "int", number), ("beta", "int", digits)],
        "split_sql => ARRAY['trunc($s)::int', 'abs(($s - trunc($s)) * 100)::int'],
            join_sql => 'alpha + sign(alpha) * beta / 100.0'",
        "alpha + sign(alpha) * beta / 100.0",
    )
}

fn integer(rng: &mut Rng) -> String {
    rng.i32(-4000..4000).to_string()
}

fn odd_integer(rng: &mut Rng) -> String {
    pick(rng, &["2000000000", "-2000000000", "0"]).to_string()
}

fn integer_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "int", number), ("beta", "int", digits)],
        "split_sql => ARRAY['$s / 100', '100 * ($s % 100) / ($s % 100)'], join_sql => 'alpha * 100 + beta'",
        "alpha * 100 + beta",
    )
}

fn day(rng: &mut Rng) -> String {
    format!("20{:02}-{:02}-{:02}", rng.u8(10..30), rng.u8(1..13), rng.u8(1..29))
}

fn odd_day(rng: &mut Rng) -> String {
    pick(rng, &["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31"]).to_string()
}

fn day_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "int", number), ("beta", "int", |rng| rng.u8(1..13).to_string())],
        "split_sql => ARRAY['extract(year from $s)::int', 'extract(month from $s)::int'],
            join_sql => 'make_date(alpha, beta, 1)'",
        "make_date(alpha, beta, 1)",
    )
}

fn json(rng: &mut Rng) -> String {
    format!(r#"{{"name": "{}", "no": {}}}"#, word(rng), rng.u8(1..50))
}

fn odd_json(rng: &mut Rng) -> String {
    pick(rng, &["null", "{}", "[1, 2]", r#"{"name": "x", "no": "many"}"#, r#"{"no": 1e20, "name": null}"#]).to_string()
}

fn json_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "text", name), ("beta", "int", number)],
        "split_sql => ARRAY['$s->>''name''', '($s->>''no'')::int'],
            join_sql => 'app.make_json(alpha, beta)'",
        "app.make_json(alpha, beta)",
    )
}

fn range(rng: &mut Rng) -> String {
    format!("[{},{})", rng.i32(-50..50), rng.i32(200..250))
}

fn odd_range(rng: &mut Rng) -> String {
    pick(rng, &["empty", "(,)", "[5,]", "[,200)"]).to_string()
}

fn range_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "int", digits), ("beta", "int", |rng| rng.u16(200..900).to_string())],
        "split_sql => ARRAY['lower($s)', 'upper($s)'], join_sql => 'int4range(alpha, beta)'",
        "int4range(alpha, beta)",
    )
}

fn list(rng: &mut Rng) -> String {
    format!(r#"{{"{}",{}}}"#, name(rng), rng.u8(..9))
}

fn odd_list(rng: &mut Rng) -> String {
    pick(rng, &["{}", "{NULL,NULL}", "{{1,2},{3,4}}", "[5:6]={x,y}", "{a}"]).to_string()
}

fn list_rule(_: &mut Rng) -> Rule {
    let text = "split_sql => ARRAY['$s[1]', '$s[2]'], join_sql => 'ARRAY[alpha, beta]'";
    rule(&[("alpha", "text", name), ("beta", "text", number)], text, "ARRAY[alpha, beta]")
}

fn pair(rng: &mut Rng) -> String {
    format!(r#"("{}",{})"#, word(rng), rng.u8(..99))
}

fn odd_pair(rng: &mut Rng) -> String {
    pick(rng, &["(,)", "(x,)", "(,3)"]).to_string()
}

fn pair_rule(_: &mut Rng) -> Rule {
    rule(
        &[("alpha", "text", word), ("beta", "int", number)],
        "split_sql => ARRAY['($s).a', '($s).b'], join_sql => 'ROW(alpha, beta)::app.pair'",
        "ROW(alpha, beta)::app.pair",
    )
}

fn mood(rng: &mut Rng) -> String {
    pick(rng, &["sad", "ok", "happy"]).to_string()
}

fn mood_rule(_: &mut Rng) -> Rule {
    let text = "split_sql => ARRAY['app.mood_text($s)'], join_sql => 'app.text_mood(alpha)'";
    rule(&[("alpha", "text", mood)], text, "app.text_mood(alpha)")
}

/// The old column under a new name.
macro_rules! renamed {
    ($type_name:literal, $ordered:expr, $values:expr) => {
        Kind {
            definition: $type_name,
            cast: $type_name,
            ordered: $ordered,
            is_text: false,
            accepted: |rng| pick(rng, $values).to_string(),
            odd: |rng| pick(rng, $values).to_string(),
            rule: |_| {
                let how = "split_sql => ARRAY['$s'], join_sql => 'alpha'";
                rule(&[("alpha", $type_name, |rng| pick(rng, $values).to_string())], how, "alpha")
            },
        }
    };
}

const fn text(definition: &'static str, cast: &'static str) -> Kind {
    Kind { definition, cast, ordered: true, is_text: true, accepted: street, odd: odd_street, rule: text_rule }
}

macro_rules! kind {
    ($definition:literal, $ordered:expr, $accepted:ident, $odd:ident, $rule:ident) => {
        Kind {
            definition: $definition,
            cast: $definition,
            ordered: $ordered,
            is_text: false,
            accepted: $accepted,
            odd: $odd,
            rule: $rule,
        }
    };
}

static TEXTS: [Kind; 7] = [
    text("text", "text"),
    text("varchar", "varchar"),
    text("varchar(40)", "text"),
    text("char(30)", "text"),
    text("citext", "citext"),
    text("app.address", "text"),
    Kind {
        definition: "text COLLATE ci",
        cast: "text",
        ordered: true,
        // Their LIKE and such are not for all.
        is_text: false,
        accepted: street,
        odd: odd_street,
        rule: collated_rule,
    },
];

static OTHERS: [Kind; 19] = [
    kind!("numeric(12,2)", true, amount, odd_amount, amount_rule),
    kind!("int", true, integer, odd_integer, integer_rule),
    kind!("date", true, day, odd_day, day_rule),
    kind!("jsonb", true, json, odd_json, json_rule),
    kind!("json", false, json, odd_json, json_rule),
    kind!("int4range", true, range, odd_range, range_rule),
    kind!("text[]", true, list, odd_list, list_rule),
    kind!("app.pair", true, pair, odd_pair, pair_rule),
    kind!("app.mood", true, mood, mood, mood_rule),
    renamed!("\"char\"", true, &["a", "b", "z"]),
    renamed!("name", true, &["anna", "bert", "carl"]),
    renamed!("float8", true, &["0", "-0", "NaN", "1e300", "0.1"]),
    renamed!("bytea", true, &[r"\x00", r"\xdeadbeef", r"\x"]),
    renamed!("interval", true, &["1 day", "24:00:00", "30 days", "1 mon"]),
    renamed!("point", false, &["(1,2)", "(0,-0)", "(3,4)"]),
    renamed!("varbit(12)", true, &["101", "0", "111100001111"]),
    renamed!("inet", true, &["10.0.0.1", "10.0.0.0/8", "::1"]),
    // Unsigned: above 2³¹ such values are no numbers of their length.
    renamed!("oid", true, &["1", "3000000000", "4294967295"]),
    renamed!("xid", false, &["7", "3000000000"]),
];

/// A kind of column, mostly of text; with `roomy` one that takes whatever new applications write.
pub fn any_kind(rng: &mut Rng, roomy: bool) -> &'static Kind {
    if rng.u8(..3) > 0 {
        let kind = &TEXTS[rng.usize(..TEXTS.len())];
        return if roomy && kind.definition.ends_with("0)") { &TEXTS[0] } else { kind };
    }
    &OTHERS[rng.usize(..OTHERS.len())]
}

/// What types and rules are made of.
pub const PRELUDE: &str = "
CREATE DOMAIN app.address AS text CHECK (length(value) < 4000 AND value <> 'bad');
CREATE TYPE app.pair AS (a text, b int);
CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'happy');
CREATE FUNCTION app.mood_text(app.mood) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1; END $$;
CREATE FUNCTION app.text_mood(text) RETURNS app.mood IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1; END $$;
CREATE FUNCTION app.make_json(text, int) RETURNS json IMMUTABLE LANGUAGE sql
    AS $$ SELECT json_build_object('name', $1, 'no', $2) $$;
CREATE FUNCTION app.street_name(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        IF $1 !~ '^[[:alpha:]]' THEN RAISE EXCEPTION 'no street: %', $1; END IF;
        RETURN regexp_replace($1, '[[:space:]]+[0-9]+$', '');
    END $$;
CREATE FUNCTION app.street_number(text) RETURNS int IMMUTABLE LANGUAGE sql
    AS $$ SELECT substring($1 from '[[:space:]]([0-9]+)$')::int $$;
";
