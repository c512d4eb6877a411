//! What old applications say.

use pg_zdd_cluster::fastrand::Rng;

use super::author::{Author, Version, settings};
use super::script::{Act, Save, Stage, Step, Verb};
use super::shape::{Layout, ROWS, Shape, literal, quoted};
use super::source::Value;
use super::{one_in, pick};

/// What old applications may meet.
#[derive(Default)]
struct Old {
    /// Whether the change has begun and is not over: rows then have a new side.
    split: bool,
    /// Whether every row carries both shapes, so that the new application writes too.
    expanded: bool,
    /// Whether there are mappers that save the new side too, which they do not know.
    star: bool,
}

type OldApp<'a> = Author<'a, Old>;

impl Version for Old {
    fn speak(author: &mut OldApp<'_>, app: usize, choice: u8) {
        match choice {
            0 => author.prepared(app),
            1 => author.cursor(app),
            2..5 => author.whole_row(app),
            _ => {
                let act = author.statement();
                author.act(app, act);
            }
        }
    }
}

impl OldApp<'_> {
    fn value(&mut self) -> Value {
        self.shape.kind.value(&mut self.rng)
    }

    fn literal(&mut self) -> String {
        let value = self.value();
        literal(self.shape.kind, &value)
    }

    /// What most statements end with.
    fn returning(&mut self) -> String {
        if self.rng.bool() { String::new() } else { format!(" RETURNING {}", self.shape.all_columns()) }
    }

    /// A column that has nothing to do with the change, and what it becomes.
    fn unrelated(&mut self) -> String {
        match self.rng.u8(..6) {
            0 | 1 => format!("note = 'note {}'", self.rng.u8(..100)),
            2 => "qty = qty + 1".into(),
            3 => format!("qty = {}", self.rng.u8(..70)),
            4 => format!("region = '{}'", self.region()),
            _ => "note = note".into(),
        }
    }

    fn statement(&mut self) -> Act {
        match self.rng.u8(..20) {
            0..6 => Act::Sql(self.insert()),
            6..13 => Act::Sql(self.update()),
            13..15 => Act::Sql(self.other()),
            15 | 16 => Act::Sql(self.around()),
            17 => self.copy(),
            18 if self.version.expanded && !self.shape.watched => self.write_of_new_application(),
            _ => Act::Sql(self.read()),
        }
    }

    fn insert(&mut self) -> String {
        let Shape { table, source, .. } = *self.shape;
        let (id, value, region) = (self.fresh(), self.literal(), self.region());
        let returning = self.returning();
        let known = self.id();
        match self.rng.u8(..13) {
            0 | 1 => format!("INSERT INTO {table} (id, {source}, region) VALUES ({id}, {value}, '{region}'){returning}"),
            2 => format!("INSERT INTO {table} (id, note) VALUES ({id}, 'skipped'), ({}, NULL){returning}", self.fresh()),
            3 => {
                let (other, another) = (self.literal(), self.fresh());
                format!("INSERT INTO {table} ({source}, id) VALUES ({value}, {id}), ({other}, {another}){returning}")
            }
            4 => self.insert_all(id, &value),
            5 => {
                let to = self.fresh_for_all();
                format!(
                    "INSERT INTO {table} (id, {source}, qty, region) SELECT {to} + id, {source}, qty, '{region}' FROM {table}
                     WHERE id BETWEEN 1 AND 4{returning}"
                )
            }
            6 | 7 => format!(
                "INSERT INTO {table} AS t (id, {source}, note, region) VALUES ({known}, {value}, 'upsert', '{region}')
                 ON CONFLICT ({}) DO UPDATE SET {source} = EXCLUDED.{source}, note = EXCLUDED.note{returning}",
                self.shape.key
            ),
            8 => {
                let set = self.unrelated().replace("= qty", "= t.qty").replace("= note", "= t.note");
                format!(
                    "INSERT INTO {table} AS t (id, {source}) VALUES ({known}, {value}), ({id}, {value})
                     ON CONFLICT ({}) DO UPDATE SET {set} WHERE t.qty < 50{returning}",
                    self.shape.key
                )
            }
            9 => format!("INSERT INTO {table} (id, {source}) VALUES ({known}, {value}) ON CONFLICT DO NOTHING{returning}"),
            10 if self.shape.serial => format!("INSERT INTO {table} ({source}) VALUES ({value}), (DEFAULT){returning}"),
            11 if self.version.split => {
                // A mapper that knows all columns of the table.
                let targets = self.rule.target_names();
                let nulls = vec!["NULL"; targets.len()].join(", ");
                format!(
                    "INSERT INTO {table} (id, {source}, {}) VALUES ({id}, {value}, {nulls}){returning}",
                    targets.join(", ")
                )
            }
            12 if self.shape.layout == Layout::Inherited => {
                format!("INSERT INTO app.item_x (id, {source}, extra) VALUES ({id}, {value}, 7){returning}")
            }
            _ => format!(
                "MERGE INTO {table} AS t USING (VALUES ({known}, {value}), ({id}, {value})) AS n (id, value) ON t.id = n.id
                 WHEN MATCHED AND t.qty > 5 THEN DELETE
                 WHEN MATCHED THEN UPDATE SET {source} = n.value
                 WHEN NOT MATCHED THEN INSERT (id, {source}) VALUES (n.id, n.value)"
            ),
        }
    }

    /// Without naming the columns.
    fn insert_all(&mut self, id: i32, value: &str) -> String {
        let region = self.region();
        let values = self.shape.columns.iter().map(|column| match *column {
            "id" => id.to_string(),
            "note" => "'all'".into(),
            "region" => format!("'{region}'"),
            "qty" | "rev" | "tenant" => "1".into(),
            _ => value.to_owned(),
        });
        let values: Vec<String> = values.collect();
        // Where PostgreSQL computes a column, its place is not known here.
        if self.shape.generated.is_empty() {
            format!("INSERT INTO {} VALUES ({})", self.shape.table, values.join(", "))
        } else {
            format!(
                "INSERT INTO {} ({}) VALUES ({})",
                self.shape.table,
                self.shape.columns.join(", "),
                values.join(", ")
            )
        }
    }

    fn update(&mut self) -> String {
        let Shape { table, source, .. } = *self.shape;
        let (id, value, set) = (self.id(), self.literal(), self.unrelated());
        let returning = self.returning();
        match self.rng.u8(..15) {
            0..3 => format!("UPDATE {table} SET {source} = {value} WHERE id = {id}{returning}"),
            3..5 => format!("UPDATE {table} SET {set} WHERE id = {id}{returning}"),
            5 => format!("UPDATE {table} SET {source} = {value}, {set} WHERE id = {id}{returning}"),
            6 if self.shape.kind.is_text => {
                let changed =
                    pick(&mut self.rng, &["$s || 'x'", "upper($s)", "replace($s, ' ', '  ')", "nullif($s, 'Elm 1')"]);
                format!("UPDATE {table} SET {source} = {} WHERE id = {id}{returning}", changed.replace("$s", source))
            }
            7 => format!("UPDATE {table} SET {source} = {source} WHERE id BETWEEN {id} AND {id} + 3{returning}"),
            8 => format!("UPDATE {table} SET {source} = DEFAULT WHERE id = {id}{returning}"),
            9 => format!(
                "UPDATE {table} AS t SET {source} = n.value, note = 'joined'
                 FROM (VALUES ({id}, {value}), ({}, NULL)) AS n (id, value) WHERE t.id = n.id",
                id + 1
            ),
            10 => format!("UPDATE {table} SET note = 'range' WHERE id BETWEEN {id} AND {id} + 2{returning}"),
            11 => {
                let region = self.region();
                format!("UPDATE {table} SET region = '{region}', {source} = {value} WHERE id = {id}{returning}")
            }
            12 if self.shape.layout == Layout::Hash => {
                let fresh = self.fresh();
                format!("UPDATE {table} SET id = {fresh} WHERE id = {id}{returning}")
            }
            13 => format!(
                "UPDATE {table} AS t SET {source} = o.{source} FROM {table} AS o WHERE t.id = {id} AND o.id = {}",
                (id + 7) % ROWS + 1
            ),
            14 => format!(
                "WITH changed AS (UPDATE {table} SET {source} = {value} WHERE id = {id} RETURNING id, {source}),
                   noted AS (UPDATE {table} SET note = 'with' WHERE id = {} RETURNING id)
                 SELECT * FROM changed",
                id + 1
            ),
            _ => format!("UPDATE {table} SET tenant = 3 - tenant WHERE id = {id}{returning}"),
        }
    }

    fn other(&mut self) -> String {
        let Shape { table, source, .. } = *self.shape;
        let (id, fresh, value) = (self.id(), self.fresh(), self.literal());
        let returning = self.returning();
        match self.rng.u8(..9) {
            0 | 1 => format!("DELETE FROM {table} WHERE id = {id}{returning}"),
            2 => format!(
                "WITH gone AS (DELETE FROM {table} WHERE id = {id} RETURNING id, {source}, region)
                 INSERT INTO {table} (id, {source}, region) SELECT {fresh}, {source}, region FROM gone{returning}"
            ),
            3 => format!("INSERT INTO app.audit (what, id, new) SELECT 'copy', id, {source}::text FROM {table} WHERE id = {id}"),
            5 => format!(
                "DO $do$ DECLARE r record; BEGIN
                   FOR r IN SELECT id, {source} AS value FROM {table} WHERE id BETWEEN {id} AND {id} + 2 ORDER BY id LOOP
                     BEGIN
                       UPDATE {table} SET {source} = {value}, note = 'loop' WHERE id = r.id;
                     EXCEPTION WHEN OTHERS THEN
                       INSERT INTO app.audit (what, id, old) VALUES (SQLSTATE, r.id, r.value::text);
                     END;
                   END LOOP;
                 END $do$"
            ),
            6 if self.shape.kind.ordered => format!("DELETE FROM {table} WHERE {source} = {value} AND id > 0{returning}"),
            7 if self.shape.kind.ordered => {
                format!("UPDATE {table} SET note = 'found' WHERE {source} = {value} AND id > 0{returning}")
            }
            _ => format!("UPDATE {table} SET {source} = NULL WHERE id = {id}{returning}"),
        }
    }

    /// Statements on what stands around the table.
    fn around(&mut self) -> String {
        let source = self.shape.source;
        let (id, fresh, value, region) = (self.id(), self.fresh(), self.literal(), self.region());
        match self.rng.u8(..10) {
            0..3 if self.shape.child && self.shape.layout == Layout::List => {
                format!("INSERT INTO app.child SELECT 'child', id, region FROM {} WHERE id = {id}", self.shape.table)
            }
            0..3 if self.shape.child => format!("INSERT INTO app.child VALUES ('child', {id})"),
            3 if self.shape.child => format!("DELETE FROM app.child WHERE item_id = {id}"),
            4 | 5 if self.shape.lookup => {
                let name = quoted(&self.shape.kind.good(&mut self.rng));
                match self.rng.u8(..4) {
                    0 => format!("INSERT INTO app.streets VALUES ({name}) ON CONFLICT DO NOTHING"),
                    1 => format!("DELETE FROM app.streets WHERE name = {name}"),
                    _ => format!("UPDATE app.streets SET name = {value} WHERE name = {name}"),
                }
            }
            _ if self.shape.view => match self.rng.u8(..6) {
                0 => format!("INSERT INTO app.v (id, {source}, region) VALUES ({fresh}, {value}, '{region}')"),
                1 => format!("INSERT INTO app.v (id, note, region, tenant) VALUES ({fresh}, 'view', '{region}', 1)"),
                2 => format!("UPDATE app.v SET {source} = {value} WHERE id = {id} RETURNING id, {source}"),
                3 => format!("UPDATE app.v SET note = 'seen', tenant = 2 WHERE id = {id}"),
                4 => format!("DELETE FROM app.v WHERE id = {id}"),
                _ => format!("SELECT id, {source}, note FROM app.v WHERE id < {id} AND id > 0"),
            },
            _ => self.read(),
        }
    }

    fn read(&mut self) -> String {
        let table = self.shape.table;
        let (id, columns) = (self.id(), self.shape.all_columns());
        match self.rng.u8(..6) {
            0 => format!("SELECT {columns} FROM {table} WHERE id = {id} FOR UPDATE"),
            1 => format!("SELECT {columns} FROM {table} WHERE id = {id} FOR SHARE"),
            2 => format!("SELECT {columns} FROM {table} WHERE id = {id} FOR KEY SHARE"),
            3 => format!("SELECT {columns} FROM {table} WHERE id = {id} FOR NO KEY UPDATE"),
            4 => format!("SELECT region, count(*), count({}) FROM {table} WHERE id > 0 GROUP BY 1", self.shape.source),
            _ => format!("SELECT {columns} FROM {table} WHERE id BETWEEN {id} AND {id} + 5"),
        }
    }

    fn copy(&mut self) -> Act {
        let Shape { table, source, .. } = *self.shape;
        let escaped = |value: &Value| match value {
            None => r"\N".to_owned(),
            Some(text) => text.replace('\\', r"\\").replace('\t', r"\t").replace('\n', r"\n"),
        };
        let mut lines = String::new();
        for _ in 0..self.rng.u8(1..4) {
            let (value, region, id) = (self.value(), self.region(), self.fresh());
            lines += &format!("{}\t{id}\t{region}\n", escaped(&value));
        }
        Act::Copy(format!("COPY {table} ({source}, id, region)"), lines)
    }

    /// What the new application writes is what the old one would, joined.
    fn write_of_new_application(&mut self) -> Act {
        let Shape { table, source, .. } = *self.shape;
        let id = self.id();
        let values = self
            .rule
            .targets
            .iter()
            .map(|target| format!("{}::{}", quoted(&target.some_value(&mut self.rng)), target.type_name));
        let values: Vec<String> = values.collect();
        let names = self.rule.target_names();
        let set: Vec<String> = names.iter().zip(&values).map(|(name, value)| format!("{name} = {value}")).collect();
        let joined =
            format!("(SELECT {} FROM (VALUES ({})) AS n ({}))", self.rule.joined, values.join(", "), names.join(", "));
        Act::Apart {
            table: format!("UPDATE {table} SET {} WHERE id = {id}", set.join(", ")),
            twin: format!("UPDATE {table} SET {source} = {joined} WHERE id = {id}"),
        }
    }

    /// A named statement, executed often enough to get a plan for all values.
    fn prepared(&mut self, app: usize) {
        let Shape { table, source, .. } = *self.shape;
        let cast = self.shape.kind.cast;
        let name = format!("p{}", self.steps.len());
        let (text, times) = match self.rng.u8(..3) {
            0 => (format!("UPDATE {table} SET {source} = $2 WHERE id = $1 RETURNING id, {source}, note"), 3),
            1 => (
                format!(
                    "INSERT INTO {table} AS t (id, {source}) VALUES ($1, $2) ON CONFLICT ({}) DO UPDATE SET {source} = EXCLUDED.{source}",
                    self.shape.key
                ),
                7,
            ),
            _ => (format!("UPDATE {table} SET {source} = coalesce($2, {source}), qty = qty + 1 WHERE id = $1"), 2),
        };
        self.sql(app, format!("PREPARE {name} (int, {cast}) AS {text}"));
        for _ in 0..times {
            let (id, value) = (self.id(), self.literal());
            self.sql(app, format!("EXECUTE {name} ({id}, {value})"));
        }
        self.later(app, name);
    }

    /// One more execution of a prepared statement when other things have happened.
    fn later(&mut self, app: usize, name: String) {
        if self.rng.bool() {
            self.statements(2);
            let (id, value) = (self.id(), self.literal());
            self.sql(app, format!("EXECUTE {name} ({id}, {value})"));
        }
    }

    fn cursor(&mut self, app: usize) {
        let Shape { table, source, .. } = *self.shape;
        let id = self.id();
        let lock = pick(&mut self.rng, &["", " FOR UPDATE"]);
        self.act(app, Act::Begin("BEGIN"));
        let name = format!("c{}", self.steps.len());
        self.sql(
            app,
            format!("DECLARE {name} CURSOR FOR SELECT id, {source}, note FROM {table} WHERE id = {id}{lock}"),
        );
        self.sql(app, format!("FETCH {name}"));
        if self.rng.bool() {
            self.statements(1);
        }
        let value = self.literal();
        self.sql(app, format!("UPDATE {table} SET {source} = {value} WHERE CURRENT OF {name}"));
        self.act(app, Act::End("COMMIT"));
    }

    /// Reads a row, and later writes all of it back: the old columns, or, like a mapper that asks the server for its columns,
    /// all there are.
    fn whole_row(&mut self, app: usize) {
        let Shape { table, .. } = *self.shape;
        let id = self.id();
        let mut columns: Vec<String> =
            self.shape.columns.iter().filter(|name| **name != "id").map(|name| (*name).to_owned()).collect();
        let width = columns.len();
        let mut loaded = columns.clone();
        if self.version.split {
            loaded.extend(self.rule.target_names());
        }
        let star = (self.version.star && self.rng.bool()).then_some(width);
        if star.is_some() {
            columns.clone_from(&loaded);
        }
        let lock = pick(&mut self.rng, &["", "", " FOR UPDATE"]);
        let sql = format!("SELECT {}, to_jsonb(t) FROM {table} AS t WHERE id = {id}{lock}", loaded.join(", "));
        self.act(app, Act::Load { sql, width });
        if self.rng.u8(..3) > 0 {
            let between = self.rng.usize(1..4);
            self.statements(between);
        }
        let of = |name: &str| columns.iter().position(|column| column == name);
        let changed = match self.rng.u8(..4) {
            0 => None,
            1 => of("note").map(|index| (index, format!("'saved {}'", self.rng.u8(..100)))),
            _ => of(self.shape.source)
                .map(|index| (index, literal(self.shape.kind, &self.shape.kind.value(&mut self.rng)))),
        };
        let sql = match self.rng.u8(..4) {
            // An upsert that gives a new side and no old one would be the new application's.
            0 if star.is_none() => format!(
                "INSERT INTO {table} (id, $columns) VALUES ({id}, $values) ON CONFLICT ({}) DO UPDATE SET $excluded",
                self.shape.key
            ),
            1 => format!(
                "UPDATE {table} SET ($columns) = (SELECT $columns FROM jsonb_populate_record(NULL::{table}, $json)) WHERE id = {id}"
            ),
            _ => format!("UPDATE {table} SET $set WHERE id = {id}"),
        };
        // Whose word about the new side counts is the conflict policy's business, and only `old` says what the twin says.
        let always = self.rule.conflict == "old";
        self.act(app, Act::Save(Save { sql, columns, changed, star, always }));
    }
}

/// A run of old applications through the whole life of a change.
pub fn stage(rng: &mut Rng) -> Stage {
    let shape = Shape::random(rng, false);
    let rule = shape.kind.rule(rng);
    let settings = (0..3).map(|_| settings(rng)).collect();
    let mut app = OldApp::new(rng.fork(), &shape, &rule, Old::default());
    app.statements(12);
    app.change(&[Verb::Split]);
    app.statements(6);
    app.end_all();
    app.change(&[Verb::Await]);
    app.steps.push(Step::Compare);
    app.version.split = true;
    app.version.star = true;
    let before = rng.usize(..25);
    app.statements(before);
    // With this row locked the change stays `expanding`, so that it is known what mappers may save.
    app.change(&[Verb::Hold]);
    let backfill = Verb::Backfill { workers: rng.u8(..3), rows_per_second: pick(rng, &[0, 60, 150]) };
    app.change(&[backfill]);
    app.statements(25);
    if one_in(rng, 3) {
        app.change(&[Verb::Pause]);
        app.statements(6);
        app.change(&[Verb::Resume]);
        app.statements(6);
    }
    let early = one_in(rng, 6);
    if !early {
        app.version.star = false;
        app.change(&[Verb::Release]);
        app.statements(6);
        app.end_all();
        app.change(&[Verb::AwaitExpanded]);
        app.steps.push(Step::Compare);
        (app.version.expanded, app.version.star) = (true, rule.conflict == "old");
        app.statements(25);
        if one_in(rng, 2) {
            app.end_all();
            app.change(&[Verb::Fence, Verb::Unfence]);
            app.statements(8);
        }
    }
    app.end_all();
    app.steps.push(Step::Compare);
    if early || one_in(rng, 2) {
        app.change(&[Verb::Rollback]);
        (app.version.split, app.version.expanded, app.version.star) = (false, false, false);
        app.statements(10);
        app.end_all();
        app.steps.push(Step::Compare);
    } else {
        // Nobody needs the old column any more.
        app.change(&[Verb::AwaitExpanded, Verb::Fence]);
    }
    let steps = app.steps;
    Stage { shape, rule, settings, renewal: Vec::new(), steps }
}
