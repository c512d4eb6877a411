//! What new applications say.

use pg_zdd_cluster::fastrand::Rng;

use super::author::{Author, Version, settings};
use super::script::{Act, Save, Stage, Step, Verb};
use super::shape::{Layout, ROWS, Shape, quoted};
use super::source::{Rule, Target};
use super::{one_in, pick};

struct New;

type NewApp<'a> = Author<'a, New>;

impl Version for New {
    fn speak(author: &mut NewApp<'_>, app: usize, choice: u8) {
        match choice {
            0 => author.prepared(app),
            1..4 => author.whole_row(app),
            4 => {
                let copy = author.copy();
                author.act(app, copy);
            }
            5..11 => {
                let sql = author.insert();
                author.sql(app, sql);
            }
            _ => {
                let sql = author.other();
                author.sql(app, sql);
            }
        }
    }
}

impl NewApp<'_> {
    fn literal(&mut self, target: &Target) -> String {
        let value = target.value(&mut self.rng);
        value.map_or_else(|| "NULL".to_owned(), |text| format!("{}::{}", quoted(&text), target.cast()))
    }

    /// Some of the new columns, and a value for each. One at least has a value: an INSERT that gives nothing to either side
    /// may be one of the old application.
    fn given(&mut self) -> (Vec<String>, Vec<String>) {
        let mut targets = self.rule.targets.clone();
        self.rng.shuffle(&mut targets);
        targets.truncate(self.rng.usize(1..=targets.len()));
        let mut values: Vec<String> = targets.iter().map(|target| self.literal(target)).collect();
        values[0] = format!("{}::{}", quoted(&targets[0].some_value(&mut self.rng)), targets[0].cast());
        (targets.iter().map(|target| target.name.to_owned()).collect(), values)
    }

    /// Assignments to some of the new columns.
    fn set(&mut self) -> String {
        let mut targets = self.rule.targets.clone();
        self.rng.shuffle(&mut targets);
        targets.truncate(self.rng.usize(1..=targets.len()));
        let set: Vec<String> =
            targets.iter().map(|target| format!("{} = {}", target.name, self.literal(target))).collect();
        set.join(", ")
    }

    fn unrelated(&mut self) -> String {
        match self.rng.u8(..5) {
            0 | 1 => format!("note = 'note {}'", self.rng.u8(..100)),
            2 => "qty = qty + 1".into(),
            3 => format!("region = '{}'", self.region()),
            _ => "note = note".into(),
        }
    }

    fn columns(&self) -> String {
        let kept = self.shape.columns.iter().filter(|name| **name != self.shape.source);
        kept.map(|name| (*name).to_owned()).chain(self.rule.target_names()).collect::<Vec<_>>().join(", ")
    }

    fn returning(&mut self) -> String {
        if self.rng.bool() { String::new() } else { format!(" RETURNING {}", self.columns()) }
    }

    fn insert(&mut self) -> String {
        let table = self.shape.table;
        let (id, known, region, returning) = (self.fresh(), self.id(), self.region(), self.returning());
        let (names, values) = self.given();
        let excluded: Vec<String> = names.iter().map(|name| format!("{name} = EXCLUDED.{name}")).collect();
        let (names, values, excluded) = (names.join(", "), values.join(", "), excluded.join(", "));
        match self.rng.u8(..9) {
            0..3 => format!("INSERT INTO {table} (id, region, {names}) VALUES ({id}, '{region}', {values}){returning}"),
            3 | 4 => format!(
                "INSERT INTO {table} (id, region, {names}) VALUES ({known}, '{region}', {values})
                 ON CONFLICT ({}) DO UPDATE SET {excluded}, note = 'upsert'{returning}",
                self.shape.key
            ),
            5 => format!("INSERT INTO {table} (id, {names}) VALUES ({known}, {values}) ON CONFLICT DO NOTHING{returning}"),
            6 => {
                let all = self.rule.target_names().join(", ");
                let to = self.fresh_for_all();
                format!(
                    "INSERT INTO {table} (id, region, {all}) SELECT {to} + id, region, {all} FROM {table}
                     WHERE id BETWEEN 1 AND 4 AND {} IS NOT NULL{returning}",
                    self.rule.targets[0].name
                )
            }
            7 if self.shape.layout == Layout::Inherited => {
                format!("INSERT INTO app.item_x (id, {names}, extra) VALUES ({id}, {values}, 7){returning}")
            }
            _ => format!(
                "MERGE INTO {table} AS t USING (VALUES ({known}, {values}), ({id}, {values})) AS n (id, {names}) ON t.id = n.id
                 WHEN MATCHED AND t.qty > 5 THEN DELETE
                 WHEN MATCHED THEN UPDATE SET {}
                 WHEN NOT MATCHED THEN INSERT (id, {names}) VALUES (n.id, {})",
                excluded.replace("EXCLUDED", "n"),
                names.split(", ").map(|name| format!("n.{name}")).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn other(&mut self) -> String {
        let table = self.shape.table;
        let (id, fresh, set, unrelated, returning) =
            (self.id(), self.fresh(), self.set(), self.unrelated(), self.returning());
        let columns = self.columns();
        let first = self.rule.targets[0].name;
        match self.rng.u8(..16) {
            0..4 => format!("UPDATE {table} SET {set} WHERE id = {id}{returning}"),
            4 => format!("UPDATE {table} SET {unrelated} WHERE id = {id}{returning}"),
            5 => format!("UPDATE {table} SET {set}, {unrelated} WHERE id = {id}{returning}"),
            6 => format!(
                "UPDATE {table} SET {set} WHERE id BETWEEN {id} AND {id} + 2 AND {first} IS NOT NULL{returning}"
            ),
            7 => format!("UPDATE {table} SET {first} = DEFAULT WHERE id = {id}{returning}"),
            8 => {
                let nulls: Vec<String> = self.rule.targets.iter().map(|it| format!("{} = NULL", it.name)).collect();
                format!("UPDATE {table} SET {} WHERE id = {id}{returning}", nulls.join(", "))
            }
            9 => format!(
                "UPDATE {table} AS t SET {first} = o.{first} FROM {table} AS o WHERE t.id = {id} AND o.id = {}",
                id % ROWS + 1
            ),
            10 => format!("DELETE FROM {table} WHERE id = {id}{returning}"),
            11 => {
                let all = self.rule.target_names().join(", ");
                format!(
                    "WITH gone AS (DELETE FROM {table} WHERE id = {id} AND {first} IS NOT NULL RETURNING id, region, {all})
                     INSERT INTO {table} (id, region, {all}) SELECT {fresh}, region, {all} FROM gone{returning}"
                )
            }
            12 if self.shape.child && self.shape.layout == Layout::List => {
                format!("INSERT INTO app.child SELECT 'child', id, region FROM {table} WHERE id = {id}")
            }
            12 if self.shape.child => format!("INSERT INTO app.child VALUES ('child', {id})"),
            13 => format!("UPDATE {table} SET region = '{}', {set} WHERE id = {id}{returning}", self.region()),
            14 => format!("SELECT {columns} FROM {table} WHERE id = {id} FOR UPDATE"),
            _ => format!("SELECT {columns} FROM {table} WHERE id BETWEEN {id} AND {id} + 5"),
        }
    }

    fn copy(&mut self) -> Act {
        let escaped = |text: String| text.replace('\\', r"\\").replace('\t', r"\t").replace('\n', r"\n");
        let names = self.rule.target_names();
        let mut lines = String::new();
        for _ in 0..self.rng.u8(1..4) {
            let mut fields = vec![self.fresh().to_string(), self.region().to_owned()];
            let first = self.rule.targets[0].some_value(&mut self.rng);
            fields.push(escaped(first));
            for target in &self.rule.targets[1..] {
                fields.push(target.value(&mut self.rng).map_or_else(|| r"\N".to_owned(), escaped));
            }
            lines += &(fields.join("\t") + "\n");
        }
        Act::Copy(format!("COPY {} (id, region, {})", self.shape.table, names.join(", ")), lines)
    }

    fn prepared(&mut self, app: usize) {
        let table = self.shape.table;
        let target = self.rule.targets[self.rng.usize(..self.rule.targets.len())].clone();
        let name = format!("p{}", self.steps.len());
        let text = format!("UPDATE {table} SET {0} = $2, qty = qty + 1 WHERE id = $1 RETURNING id, {0}", target.name);
        self.sql(app, format!("PREPARE {name} (int, {}) AS {text}", target.cast()));
        for _ in 0..7 {
            let (id, value) = (self.id(), self.literal(&target));
            self.sql(app, format!("EXECUTE {name} ({id}, {value})"));
        }
    }

    /// Reads a row, and later writes all of it back.
    fn whole_row(&mut self, app: usize) {
        let table = self.shape.table;
        let id = self.id();
        let columns: Vec<String> = self.columns().split(", ").filter(|name| *name != "id").map(str::to_owned).collect();
        let lock = pick(&mut self.rng, &["", "", " FOR UPDATE"]);
        let sql = format!("SELECT {} FROM {table} AS t WHERE id = {id}{lock}", columns.join(", "));
        self.act(app, Act::Load { sql, width: usize::MAX });
        if self.rng.bool() {
            let between = self.rng.usize(1..4);
            self.statements(between);
        }
        let target = self.rule.targets[self.rng.usize(..self.rule.targets.len())].clone();
        let changed = match self.rng.u8(..4) {
            0 => None,
            1 => Some(("note", format!("'saved {}'", self.rng.u8(..100)))),
            _ => Some((target.name, self.literal(&target))),
        };
        let of = |name: &str| columns.iter().position(|column| column == name);
        let changed = changed.and_then(|(name, value)| Some((of(name)?, value)));
        let sql = match self.rng.u8(..3) {
            // An upsert that gives NULLs may be that of an old application, which gets the default of its column.
            0 if !self.shape.defaulted => format!(
                "INSERT INTO {table} (id, $columns) VALUES ({id}, $values) ON CONFLICT ({}) DO UPDATE SET $excluded",
                self.shape.key
            ),
            _ => format!("UPDATE {table} SET $set WHERE id = {id}"),
        };
        self.act(app, Act::Save(Save { sql, columns, changed, star: None, always: true }));
    }
}

/// What comes with the new application, on both sides.
fn renewal(rng: &mut Rng, shape: &Shape, rule: &Rule) -> Vec<String> {
    let table = shape.table;
    let first = rule.targets[0].name;
    let mut ddl = vec![format!("ALTER TABLE {table} ALTER note SET DEFAULT 'new'")];
    // On a NOT NULL column it would be a second constraint that says the same.
    if one_in(rng, 3) && !rule.targets[0].not_null {
        ddl.push(format!(
            "ALTER TABLE {table} ADD CONSTRAINT new_check CHECK ({first} IS NOT NULL OR qty > 3) NOT VALID"
        ));
    }
    if one_in(rng, 3) && shape.kind.ordered && matches!(shape.layout, Layout::Plain | Layout::Inherited) {
        ddl.push(format!("CREATE UNIQUE INDEX new_once ON {table} ({first}, note) WHERE id > 1000"));
    }
    if one_in(rng, 3) {
        ddl.push(format!(
            "CREATE FUNCTION app.renewed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             $f$ BEGIN INSERT INTO app.audit VALUES (TG_OP, NEW.id, NULL, NEW.{first}::text, NEW.rev); RETURN NULL; END $f$"
        ));
        let event = pick(rng, &["INSERT OR UPDATE", "UPDATE OF $1", "INSERT"]).replace("$1", first);
        ddl.push(format!(
            "CREATE TRIGGER renewed AFTER {event} ON {table} FOR EACH ROW EXECUTE FUNCTION app.renewed()"
        ));
    }
    if one_in(rng, 4) && shape.kind.is_text && rule.targets[0].type_name == "text" {
        ddl.push(format!(
            "CREATE FUNCTION app.normal() RETURNS trigger LANGUAGE plpgsql AS
             $f$ BEGIN NEW.{first} := initcap(NEW.{first}); RETURN NEW; END $f$"
        ));
        ddl.push(format!(
            "CREATE TRIGGER normal BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION app.normal()"
        ));
    }
    // As privileges on the old column have given them.
    ddl.push(format!("GRANT ALL ON {table} TO twin_app"));
    ddl
}

/// A run of new applications, from the moment when the change is expanded until the old column is gone.
pub fn stage(rng: &mut Rng) -> Stage {
    let shape = Shape::random(rng, true);
    let rule = shape.kind.rule(rng);
    let settings = (0..3).map(|_| settings(rng)).collect();
    let renewal = renewal(rng, &shape, &rule);
    let mut app = NewApp::new(rng.fork(), &shape, &rule, New);
    let backfill = Verb::Backfill { workers: rng.u8(..2), rows_per_second: 0 };
    app.change(&[Verb::Split, Verb::Await, backfill, Verb::AwaitExpanded, Verb::Renew]);
    app.statements(50);
    app.end_all();
    app.steps.push(Step::Compare);
    app.change(&[Verb::Fence]);
    app.statements(25);
    app.end_all();
    if one_in(rng, 2) {
        app.change(&[Verb::Unfence]);
        app.statements(15);
        app.end_all();
    }
    app.steps.push(Step::Compare);
    app.change(&[Verb::Contract]);
    app.statements(15);
    app.end_all();
    app.steps.push(Step::Compare);
    let steps = app.steps;
    Stage { shape, rule, settings, renewal, steps }
}
