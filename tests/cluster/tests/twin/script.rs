//! A run, written down before it begins: statements of applications, and what is done to the change meanwhile.

use super::shape::{ROLES, Shape, quoted};
use super::sides::Row;
use super::source::Rule;

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Step {
    /// An application does something, on both sides.
    App(usize, Act),
    /// Something is done to the change.
    Change(Verb),
    /// Both sides are compared, whole.
    Compare,
}

/// What an application does.
#[derive(Clone, Debug)]
pub enum Act {
    Sql(String),
    /// A write of the new application, and what it means to the twin, which has the old columns only.
    Apart {
        table: String,
        twin: String,
    },
    /// COPY of these lines.
    Copy(String, String),
    /// BEGIN and the like. Nothing within a transaction.
    Begin(&'static str),
    /// COMMIT or ROLLBACK. Nothing outside of a transaction.
    End(&'static str),
    /// SAVEPOINT and what belongs to it. Nothing outside of a transaction.
    Savepoint(&'static str),
    /// Reads a row into the application. The twin must agree on the first `width` columns.
    Load {
        sql: String,
        width: usize,
    },
    /// Writes back the row that the application has read before, whatever has become of it since.
    Save(Save),
}

/// How a row is written back.
#[derive(Clone, Debug)]
pub struct Save {
    /// `$set` becomes assignments, `$columns` names, `$values` the values in their order, `$excluded` assignments of what an
    /// upsert would have inserted, `$json` the last value of the load.
    pub sql: String,
    /// The columns, in the order of the load.
    pub columns: Vec<String>,
    /// What the application has changed in the meantime: the number of a column, and a literal.
    pub changed: Option<(usize, String)>,
    /// The columns from here on are the new side: this application does not know them and writes them back all the same.
    pub star: Option<usize>,
    /// Whether it may be written back even if it had a value when it was read.
    pub always: bool,
}

impl Save {
    /// The statement for a row that was loaded.
    pub fn sql(&self, row: &Row) -> String {
        let literal = |value: &Option<String>| value.as_deref().map_or_else(|| "NULL".to_owned(), quoted);
        let mut values: Vec<String> = row.iter().take(self.columns.len()).map(literal).collect();
        let mut json = format!("{}::jsonb", literal(row.last().unwrap_or(&None)));
        if let Some((index, value)) = &self.changed {
            values[*index].clone_from(value);
            let name = self.columns[*index].trim_matches('"');
            json += &format!(" || jsonb_build_object('{name}', {value})");
        }
        let each = |assign: &dyn Fn(usize, &String) -> String| -> String {
            let all: Vec<String> = self.columns.iter().enumerate().map(|(index, name)| assign(index, name)).collect();
            all.join(", ")
        };
        self.sql
            .replace("$set", &each(&|index, name| format!("{name} = {}", values[index])))
            .replace("$excluded", &each(&|_, name| format!("{name} = EXCLUDED.{name}")))
            .replace("$columns", &self.columns.join(", "))
            .replace("$values", &values.join(", "))
            .replace("$json", &json)
    }
}

/// What is done to the change; the twin never hears of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    /// split_column, beside the applications, which may keep it waiting.
    Split,
    /// Locks the row that nobody touches, so that the backfill cannot end.
    Hold,
    Release,
    /// A backfill beside the applications: in a session or, with `workers`, in the background, with at most so many rows per
    /// second.
    Backfill {
        workers: u8,
        rows_per_second: u16,
    },
    Pause,
    Resume,
    /// Waits until what goes on beside the applications is over.
    Await,
    /// Waits until every row carries both shapes.
    AwaitExpanded,
    Fence,
    Unfence,
    Rollback,
    Contract,
    /// The twin becomes that of the new application: what the table holds, in a table without the old column.
    Renew,
}

/// The setting of a run.
pub struct Stage {
    pub shape: Shape,
    pub rule: Rule,
    /// SQL that each application begins with.
    pub settings: Vec<String>,
    /// What both sides get when the new application starts.
    pub renewal: Vec<String>,
    pub steps: Vec<Step>,
}

impl Stage {
    /// The tables that are compared, and their columns.
    pub fn compared(&self, renewed: bool) -> Vec<(String, String)> {
        let shape = &self.shape;
        let columns = match renewed {
            false => shape.all_columns(),
            true => {
                let kept = shape.columns.iter().filter(|name| **name != shape.source);
                kept.map(|name| (*name).to_owned()).chain(self.rule.target_names()).collect::<Vec<_>>().join(", ")
            }
        };
        let mut tables = vec![(shape.table.to_owned(), columns), ("app.audit".into(), "*".into())];
        if shape.child {
            tables.push(("app.child".into(), "*".into()));
        }
        if shape.lookup {
            tables.push(("app.streets".into(), "*".into()));
        }
        tables
    }

    /// All of it, for people.
    pub fn describe(&self, steps: &[Step]) -> String {
        let mut text = format!("{};\n\n", self.shape.ddl.join(";\n"));
        text += &format!("{};\n\n", self.rule.split_column(self.shape.table, self.shape.source));
        text += &self.renewal.join(";\n");
        for (app, role) in ROLES.iter().enumerate() {
            text += &format!("\napplication {app}: {role}; {}", self.settings[app]);
        }
        steps.iter().fold(text, |text, step| format!("{text}\n{step:?}"))
    }
}
