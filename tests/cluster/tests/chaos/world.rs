//! What the chaos is about: three tables, four columns to split, two rules for each of them, and where each stands.

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, Error, SimpleQueryMessage};

pub const DATABASE: &str = "chaos";

/// Owns the tables. The applications are another role.
pub const OWNER: &str = "shop";
pub const APPLICATION: &str = "app";

/// Rows of each table that nobody writes.
pub const STILL: i32 = 5_000;

pub const TABLES: [Table; 3] = [
    Table { name: "address", slots: &[0, 1], is_partitioned: false },
    Table { name: "customer", slots: &[2], is_partitioned: true },
    Table { name: "place", slots: &[3], is_partitioned: false },
];

/// Of the partitioned table, those that are always there.
pub const REGIONS: i32 = 3;

pub struct Table {
    pub name: &'static str,
    /// Its columns that are split, by their place in `SLOTS`. The first one is given when a row is inserted.
    pub slots: &'static [usize],
    pub is_partitioned: bool,
}

impl Table {
    /// Where a column's value is among those of a row.
    pub fn place(&self, slot: usize) -> usize {
        self.slots.iter().position(|&other| other == slot).expect("a column of the table")
    }
}

/// A column that is split again and again.
pub struct Slot {
    pub table: usize,
    pub source: &'static str,
    pub change: &'static str,
    /// One after the other, by chance: whoever holds on to the rule of a change that is over writes into the wrong columns.
    pub rules: [Rule; 2],
    /// f and g, written by hand.
    pub split: fn(&str) -> Option<Parts>,
    pub join: fn(&str, Option<&str>) -> String,
    /// g, in SQL.
    join_sql: fn([&str; 2]) -> String,
    /// What its applications write.
    fresh: fn(&mut Rng, u64) -> Option<String>,
    /// Whether some values are unmatched or lossy. Only then does anybody accept that in a contract.
    pub is_untidy: bool,
}

/// The two new columns.
pub type Parts = (String, Option<String>);

pub struct Rule {
    pub targets: [&'static str; 2],
    arguments: &'static str,
}

impl Slot {
    pub fn split_column(&self, rule: usize) -> String {
        let (table, source) = (TABLES[self.table].name, self.source);
        format!("SELECT zdd.split_column('{table}', '{source}', {})", self.rules[rule].arguments)
    }

    /// A value that an application writes, unlike all others.
    pub fn fresh(&self, rng: &mut Rng, unique: u64) -> Option<String> {
        (self.fresh)(rng, unique)
    }

    /// The same, but one that is the same on both sides, with both parts: of a row that is not split yet a NULL that the new
    /// application writes beside a value says nothing.
    pub fn fresh_pair(&self, rng: &mut Rng, unique: u64) -> (String, Parts) {
        loop {
            if let Some(value) = self.fresh(rng, unique)
                && let Some(parts) = (self.split)(&value)
                && parts.1.is_some()
                && self.joined(&parts) == value
            {
                return (value, parts);
            }
        }
    }

    pub fn joined(&self, (first, second): &Parts) -> String {
        (self.join)(first, second.as_deref())
    }

    /// Of the rows that nobody writes.
    pub fn still(&self, id: i32) -> String {
        let fresh = Rng::with_seed(id as u64 % 7);
        match id % 10 {
            0 if self.is_untidy => format!("Still {id}?"),
            1 if self.is_untidy => format!("Still   {id}"),
            _ => self.fresh_pair(&mut fresh.clone(), id as u64).0,
        }
    }

    /// After a contract the table gets its old shape back, for the next change.
    pub fn restore(&self, rule: usize) -> String {
        let (table, source, targets) = (TABLES[self.table].name, self.source, self.rules[rule].targets);
        let mut sql = format!(
            "ALTER TABLE {table} ADD COLUMN {source} text; UPDATE {table} SET {source} = {};
            ALTER TABLE {table} DROP COLUMN {}, DROP COLUMN {};",
            (self.join_sql)(targets),
            targets[0],
            targets[1]
        );
        if self.is_untidy {
            sql += &format!(
                "UPDATE {table} SET {source} = CASE id % 10 WHEN 0 THEN 'Still ' || id || '?' ELSE 'Still   ' || id END
                WHERE id <= {STILL} AND id % 10 < 2;"
            );
        }
        sql
    }
}

pub const SLOTS: [Slot; 4] = [
    Slot {
        table: 0,
        source: "street",
        change: "address.street",
        rules: [
            Rule {
                targets: ["streetname", "housenumber"],
                arguments: r#"columns => 'streetname text NOT NULL, housenumber text',
                    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
                    "join" => '{streetname}[ {housenumber}]', indexes => '{streetname}'"#,
            },
            Rule {
                targets: ["way", "door"],
                arguments: r#"columns => 'way text NOT NULL, door text',
                    split_sql => ARRAY['regexp_replace(street, ''\s\d\S*$'', '''')', 'substring(street, ''\s(\d\S*)$'')'],
                    join_sql => 'way || coalesce('' '' || door, '''')'"#,
            },
        ],
        split: split_street,
        join: join_by_blank,
        join_sql: |[name, number]| format!("{name} || coalesce(' ' || {number}, '')"),
        fresh: |rng, unique| {
            Some(match rng.u8(0..10) {
                0..6 => format!("Elm Street {unique}"),
                6 | 7 => format!("Unter den Linden {unique}b"),
                _ => format!("Straße x{unique}"),
            })
        },
        is_untidy: false,
    },
    Slot {
        table: 0,
        source: "city",
        change: "address.city",
        rules: [
            Rule { targets: ["zip", "cityname"], arguments: "columns => 'zip text, cityname text', delimiter => ' '" },
            Rule {
                targets: ["postcode", "town"],
                arguments: r#"columns => 'postcode text, town text',
                    regex => '^(?<postcode>\S+)(?:\s(?<town>.*))?$', "join" => '{postcode}[ {town}]',
                    indexes => '{"postcode, town"}'"#,
            },
        ],
        split: |value| Some(cut(value, " ")),
        join: join_by_blank,
        join_sql: |[zip, city]| format!("{zip} || coalesce(' ' || {city}, '')"),
        fresh: |rng, unique| match rng.u8(0..10) {
            0..7 => Some(format!("{unique} Springfield")),
            7 | 8 => Some(format!("X{unique}")),
            _ => None,
        },
        is_untidy: false,
    },
    Slot {
        table: 1,
        source: "fullname",
        change: "customer.fullname",
        rules: [
            Rule {
                targets: ["lastname", "firstname"],
                arguments: "columns => 'lastname text, firstname text', delimiter => ', '",
            },
            Rule {
                targets: ["family", "given"],
                arguments: r#"columns => 'family text, given text',
                    regex => '^(?<family>[^,]+)(?:, (?<given>.*))?$', "join" => '{family}[, {given}]'"#,
            },
        ],
        split: |value| Some(cut(value, ", ")),
        join: |last, first| first.map_or_else(|| last.to_owned(), |first| format!("{last}, {first}")),
        join_sql: |[last, first]| format!("{last} || coalesce(', ' || {first}, '')"),
        fresh: |rng, unique| match rng.u8(0..10) {
            0..7 => Some(format!("Miller{unique}, Ann")),
            7 | 8 => Some(format!("Cher{unique}")),
            _ => None,
        },
        is_untidy: false,
    },
    Slot {
        table: 2,
        source: "spot",
        change: "place.spot",
        rules: [
            Rule {
                targets: ["spotname", "spotnumber"],
                arguments: r#"columns => 'spotname text, spotnumber text',
                    regex => '^(?<spotname>[A-Za-z ]+?)\s+(?<spotnumber>\d+)$', "join" => '{spotname}[ {spotnumber}]'"#,
            },
            Rule {
                targets: ["pier", "berth"],
                arguments: r#"columns => 'pier text, berth text',
                    split_sql => ARRAY['substring(spot, ''^([A-Za-z ]*[A-Za-z])\s+\d+$'')',
                        'substring(spot, ''^[A-Za-z ]*[A-Za-z]\s+(\d+)$'')'],
                    join_sql => 'pier || coalesce('' '' || berth, '''')'"#,
            },
        ],
        split: split_spot,
        join: join_by_blank,
        // What is not split goes: it has been accepted.
        join_sql: |[name, number]| format!("{name} || ' ' || {number}"),
        fresh: |rng, unique| match rng.u8(0..20) {
            0..12 => Some(format!("Harbour Side {unique}")),
            12..15 => Some(format!("Harbour   {unique}")),
            15..18 => Some(format!("Harbour {unique}?")),
            _ => None,
        },
        is_untidy: true,
    },
];

fn cut(value: &str, delimiter: &str) -> Parts {
    value.split_once(delimiter).map_or_else(|| (value.to_owned(), None), |(a, b)| (a.to_owned(), Some(b.to_owned())))
}

fn join_by_blank(first: &str, second: Option<&str>) -> String {
    second.map_or_else(|| first.to_owned(), |second| format!("{first} {second}"))
}

fn split_street(value: &str) -> Option<Parts> {
    Some(match value.rsplit_once(' ') {
        Some((name, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => {
            (name.to_owned(), Some(number.to_owned()))
        }
        _ => (value.to_owned(), None),
    })
}

fn split_spot(value: &str) -> Option<Parts> {
    let (name, number) = value.rsplit_once(' ')?;
    let is_matched = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
    is_matched.then(|| (name.trim_end().to_owned(), Some(number.to_owned())))
}

/// Roles and the tables, as the superuser. The rows are up to the models.
pub fn build() -> String {
    let mut sql = format!(
        "CREATE ROLE {OWNER} LOGIN; CREATE ROLE {APPLICATION} LOGIN;
        GRANT CREATE ON SCHEMA public TO {OWNER}; GRANT SELECT ON zdd.change TO {OWNER}; SET ROLE {OWNER};"
    );
    for table in &TABLES {
        let name = table.name;
        let sources: String = table.slots.iter().map(|&slot| format!(", {} text", SLOTS[slot].source)).collect();
        let columns = format!("id int, region int NOT NULL, note bigint NOT NULL DEFAULT 0{sources}");
        sql += &match table.is_partitioned {
            false => format!("CREATE TABLE {name} ({columns}, PRIMARY KEY (id));"),
            true => {
                let parts: String = (0..REGIONS)
                    .map(|n| format!("CREATE TABLE {name}_{n} PARTITION OF {name} FOR VALUES IN ({n});"))
                    .collect();
                format!("CREATE TABLE {name} ({columns}, PRIMARY KEY (id, region)) PARTITION BY LIST (region); {parts}")
            }
        };
        sql += &format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {APPLICATION};");
    }
    sql + "RESET ROLE;"
}

/// Where a column stands: what its newest change says of itself, and what the table has.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The newest change: its id, phase, since when, and whether it is active. Any step makes another text of it.
    pub change: String,
    pub phase: String,
    pub is_active: bool,
    /// The columns of the table.
    columns: Vec<String>,
}

impl Standing {
    /// SQL for the standings of these columns: a row for each.
    pub fn sql(slots: &[usize]) -> String {
        let one = |&slot: &usize| {
            let Slot { table, source, .. } = &SLOTS[slot];
            let table = TABLES[*table].name;
            format!(
                "SELECT concat_ws(' ', c.id, c.phase, c.phase_since), c.phase, c.relation IS NOT NULL,
                    (SELECT string_agg(a.attname, ' ') FROM pg_attribute AS a
                    WHERE a.attrelid = '{table}'::regclass AND a.attnum > 0 AND NOT a.attisdropped)
                FROM (SELECT) AS one LEFT JOIN LATERAL (
                    SELECT * FROM zdd.change AS c WHERE c.source = '{source}' ORDER BY c.id DESC LIMIT 1) AS c ON true"
            )
        };
        slots.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ")
    }

    pub fn of(row: &[Option<String>]) -> Standing {
        let text = |n: usize| row[n].clone().unwrap_or_default();
        Standing {
            change: text(0),
            phase: text(1),
            is_active: text(2) == "t",
            columns: text(3).split(' ').map(str::to_owned).collect(),
        }
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|other| other == column)
    }

    /// The rule whose columns are there.
    pub fn rule(&self, slot: usize) -> Option<usize> {
        (0..2).find(|&rule| SLOTS[slot].rules[rule].targets.iter().all(|target| self.has(target)))
    }

    /// The name that the old column has now.
    pub fn source(&self, slot: usize) -> Option<String> {
        let source = SLOTS[slot].source;
        [source.to_owned(), fenced(source)].into_iter().find(|name| self.has(name))
    }

    /// Whether rows may be there that are not split.
    pub fn is_expanding(&self) -> bool {
        self.is_active && self.phase == "expanding"
    }
}

/// The name of an old column while it is fenced.
pub fn fenced(source: &str) -> String {
    format!("{source}_zdd_fenced")
}

/// The standings of a table's columns, in the order of its slots.
pub fn standings(client: &mut Client, table: &Table) -> Result<Vec<Standing>, Error> {
    Ok(rows(client, &Standing::sql(table.slots))?.iter().map(|row| Standing::of(row)).collect())
}

/// The rows of a query, as text.
pub fn rows(client: &mut Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
    let texts = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect()),
        _ => None,
    };
    Ok(client.simple_query(sql)?.into_iter().filter_map(texts).collect())
}

/// A text in SQL. None of ours have quotes.
pub fn literal(value: Option<&str>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| format!("'{value}'"))
}

pub fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(0..100) < percent
}

pub fn one<'a, T: ?Sized>(rng: &mut Rng, of: &[&'a T]) -> &'a T {
    of[rng.usize(0..of.len())]
}
