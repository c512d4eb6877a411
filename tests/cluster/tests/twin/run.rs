//! Plays a run on both sides, and says where they differ.

use std::io::{Read, Write};

use pg_zdd_cluster::describe;
use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::session::{Background, Session, shared_cluster};

use super::script::{Act, Save, Stage, Step, Verb};
use super::shape::{Layout, ROLES, quoted};
use super::sides::{Outcome, Row, Side, Wait};
use super::source::{PRELUDE, Target};

/// Where the two sides differ.
pub struct Difference {
    /// The number of the step.
    pub step: usize,
    pub text: String,
}

type Checked<T = ()> = Result<T, String>;

/// What a run has come to.
struct Play<'a> {
    stage: &'a Stage,
    table: Side,
    twin: Side,
    apps: [App; 3],
    /// What has been begun beside the applications.
    beside: Option<(Verb, Background)>,
    holder: Option<Session>,
    paused: bool,
    /// Where transactions may be asked to try again: beside a change of the table or its rows.
    unsettled: bool,
    /// Whether the twin is that of the new application.
    renewed: bool,
    statements: usize,
}

/// What is known about an application.
#[derive(Default)]
struct App {
    in_transaction: bool,
    repeatable: bool,
    savepoint: bool,
    loaded: Option<(Row, Row)>,
}

/// Plays `steps`. Returns how many statements of applications ran.
pub fn play(databases: &mut [Session; 2], stage: &Stage, steps: &[Step]) -> Result<usize, Difference> {
    let [table, twin] = databases;
    for side in [&mut *table, &mut *twin] {
        side.run(
            "SET client_min_messages = warning; DROP SCHEMA IF EXISTS app CASCADE; CREATE SCHEMA app;
             GRANT USAGE, CREATE ON SCHEMA app TO PUBLIC; SET search_path = app, public",
        );
        side.run(&format!("{PRELUDE}; {}", stage.shape.ddl.join(";\n")));
    }
    if stage.renewal.is_empty() {
        // As it is after an ADD COLUMN by hand. Nobody fills it.
        twin.run("ALTER TABLE app.split ADD CHECK (false)");
        for target in &stage.rule.targets {
            let table = stage.shape.table;
            twin.run(&format!("ALTER TABLE {table} ADD {} {}", target.name, target.type_name));
            if stage.shape.by_column {
                let rights = ["SELECT", "INSERT", "UPDATE"].map(|right| format!("{right} ({})", target.name));
                twin.run(&format!("GRANT {} ON {table} TO twin_app", rights.join(", ")));
            }
        }
    }
    let mut play = Play {
        stage,
        table: Side::new(table, &ROLES, &stage.settings),
        twin: Side::new(twin, &ROLES, &stage.settings),
        apps: Default::default(),
        beside: None,
        holder: None,
        paused: false,
        unsettled: false,
        renewed: false,
        statements: 0,
    };
    let outcome = steps
        .iter()
        .enumerate()
        .try_for_each(|(number, step)| play.step(number, step).map_err(|text| Difference { step: number, text }));
    play.end();
    outcome.map(|()| play.statements)
}

impl Play<'_> {
    fn step(&mut self, number: usize, step: &Step) -> Checked {
        match step {
            Step::App(app, act) => self.act(*app, act, number),
            Step::Change(verb) => self.change(*verb),
            Step::Compare => self.compare(),
        }
    }

    fn act(&mut self, app: usize, act: &Act, number: usize) -> Checked {
        let both = |sql: &str| [sql.to_owned(), sql.to_owned()];
        let state = &mut self.apps[app];
        match act {
            Act::Begin(sql) if !state.in_transaction => {
                (state.in_transaction, state.savepoint) = (true, false);
                state.repeatable = sql.contains("REPEATABLE");
                self.send(app, both(sql), usize::MAX, number).map(drop)
            }
            Act::End(sql) if state.in_transaction => {
                state.in_transaction = false;
                self.send(app, both(sql), usize::MAX, number).map(drop)
            }
            Act::Savepoint(sql) if state.in_transaction => {
                if !sql.starts_with("SAVEPOINT") && !state.savepoint {
                    return Ok(());
                }
                state.savepoint = !sql.starts_with("RELEASE");
                self.send(app, both(sql), usize::MAX, number).map(drop)
            }
            Act::Begin(_) | Act::End(_) | Act::Savepoint(_) => Ok(()),
            Act::Sql(sql) => self.send(app, both(sql), usize::MAX, number).map(drop),
            Act::Apart { table, twin } => self.send(app, [table.clone(), twin.clone()], usize::MAX, number).map(drop),
            Act::Copy(into, lines) => {
                // From a file: the client library loses count of the server's answers when a COPY from itself fails.
                let file = shared_cluster().socket_dir().join(format!("copy{number}"));
                std::fs::write(&file, lines).map_err(|e| e.to_string())?;
                self.send(app, both(&format!("{into} FROM '{}'", file.display())), usize::MAX, number).map(drop)
            }
            Act::Load { sql, width } => {
                self.apps[app].loaded = None;
                let loaded = self.send(app, both(sql), *width, number)?;
                let first = |outcome: Outcome| match outcome {
                    Outcome::Done { rows, .. } if rows.len() == 1 => rows.into_iter().next(),
                    _ => None,
                };
                self.apps[app].loaded = loaded.and_then(|[table, twin]| Some((first(table)?, first(twin)?)));
                Ok(())
            }
            Act::Save(save) => match self.apps[app].loaded.take() {
                Some((table, twin)) if may_save(save, &table) => {
                    let statements = [save.sql(&table), save.sql(&twin)];
                    self.send(app, statements, usize::MAX, number).map(drop)
                }
                _ => Ok(()),
            },
        }
    }

    /// Sends a statement to both sides and compares what they say. Nothing, when the application has to begin its transaction
    /// anew.
    fn send(
        &mut self,
        app: usize,
        statements: [String; 2],
        width: usize,
        number: usize,
    ) -> Checked<Option<[Outcome; 2]>> {
        self.statements += 1;
        self.table.send(app, &statements[0]);
        self.twin.send(app, &statements[1]);
        let mut waits = [self.table.wait(app)?, self.twin.wait(app)?];
        // The others end their transactions, one after the other, until there is nobody to wait for.
        for other in (0..self.apps.len()).filter(|other| *other != app) {
            if !waits.iter().all(|wait| matches!(wait, Wait::Blocked)) {
                break;
            }
            if !self.apps[other].in_transaction {
                continue;
            }
            let end = if (number + other).is_multiple_of(3) { "ROLLBACK" } else { "COMMIT" };
            self.act(other, &Act::End(end), number)?;
            waits = [self.table.wait(app)?, self.twin.wait(app)?];
        }
        let outcomes = match waits {
            [Wait::Over(table), Wait::Over(twin)] => [table, twin],
            [Wait::Blocked, Wait::Blocked] => return Err(format!("application {app} is blocked by nobody")),
            // With a trigger a row is locked before it is found to violate something.
            [Wait::Blocked, Wait::Over(twin)] if is_violation(&twin) => return self.fail_late(app, twin, number),
            [Wait::Blocked, Wait::Over(twin)] => return Err(format!("blocked, and the twin is not: {twin:?}")),
            // The backfill was there first, and others are there too.
            [Wait::Over(table), Wait::Blocked] if self.unsettled && self.must_repeat(app, &table) => {
                self.end_others(app, number)?;
                self.twin.wait(app)?;
                return self.undo(app, true).map(|()| None);
            }
            [Wait::Over(table), Wait::Blocked] => {
                return Err(format!("the twin is blocked, and this is not: {table:?}"));
            }
        };
        let [table, twin] = &outcomes;
        // With a trigger a row is locked before it is found to violate something.
        let again = self.must_repeat(app, table) && (self.unsettled || is_violation(twin));
        // Of several violations COPY meets another first when there are triggers, and so does what writes several rows if they
        // lie in another order.
        let several = ["COPY", "MERGE", " BETWEEN ", " FROM (VALUES"].iter().any(|word| statements[0].contains(word));
        let violated = several && is_violation(table) && is_violation(twin);
        let moving = self.stage.shape.is_partitioned() && statements[0].starts_with("UPDATE");
        if !(again || violated || table.agrees(twin, width) || moving && table.is_same_null(twin)) {
            return Err(format!("table: {table:?}\n   twin: {twin:?}"));
        }
        if table.is_error() || again {
            self.undo(app, again)?;
        }
        Ok((!again).then_some(outcomes))
    }

    /// What the twin was told at once comes when the others are out of the way, unless they have taken the row away.
    fn fail_late(&mut self, app: usize, twin: Outcome, number: usize) -> Checked<Option<[Outcome; 2]>> {
        self.end_others(app, number)?;
        match self.table.wait(app)? {
            Wait::Over(table) if self.must_repeat(app, &table) => self.undo(app, true).map(|()| None),
            Wait::Over(table) if is_violation(&table) || matches!(table, Outcome::Done { count: 0, .. }) => {
                self.undo(app, false).map(|()| None)
            }
            Wait::Over(table) => Err(format!("table: {table:?}\n   twin: {twin:?}")),
            Wait::Blocked => Err(format!("application {app} is blocked by nobody")),
        }
    }

    fn end_others(&mut self, app: usize, number: usize) -> Checked {
        let end = if number.is_multiple_of(3) { "ROLLBACK" } else { "COMMIT" };
        (0..self.apps.len()).filter(|other| *other != app).try_for_each(|other| self.act(other, &Act::End(end), number))
    }

    /// Whether a transaction that must not see what happens meanwhile is told to try again.
    fn must_repeat(&self, app: usize, outcome: &Outcome) -> bool {
        let state = &self.apps[app];
        state.in_transaction && state.repeatable && outcome.code() == Some("40001")
    }

    /// Takes back what a transaction has done, to its savepoint if it has one, or `all` of it.
    fn undo(&mut self, app: usize, all: bool) -> Checked {
        let state = &mut self.apps[app];
        if !state.in_transaction {
            return Ok(());
        }
        let back = if state.savepoint && !all { "ROLLBACK TO s" } else { "ROLLBACK" };
        state.in_transaction = back != "ROLLBACK";
        for side in [&mut self.table, &mut self.twin] {
            side.send(app, back);
            side.wait(app)?;
        }
        Ok(())
    }

    fn compare(&mut self) -> Checked {
        for (table, columns) in self.stage.compared(self.renewed) {
            if self.table.digest(&table, &columns) == self.twin.digest(&table, &columns) {
                continue;
            }
            let (found, expected) = (self.table.contents(&table, &columns), self.twin.contents(&table, &columns));
            let only = |these: &[String], those: &[String]| -> String {
                let only: Vec<&str> = these.iter().filter(|row| !those.contains(row)).map(String::as_str).collect();
                only.join("\n  ")
            };
            return Err(format!(
                "{table} ({columns}) holds\n  {}\nwhere the twin holds\n  {}",
                only(&found, &expected),
                only(&expected, &found)
            ));
        }
        Ok(())
    }

    fn change(&mut self, verb: Verb) -> Checked {
        match verb {
            Verb::Split => {
                self.unsettled = true;
                let split = self.stage.rule.split_column(self.stage.shape.table, self.stage.shape.source);
                self.begin_beside(verb, &format!("SET zdd.lock_timeout = '20ms'; {split}"));
            }
            Verb::Hold => {
                let mut holder = self.table.db.another();
                holder.run(&format!("BEGIN; SELECT FROM {} WHERE id = 0 FOR UPDATE", self.stage.shape.table));
                self.holder = Some(holder);
            }
            Verb::Release => drop(self.holder.take()),
            Verb::Backfill { workers, rows_per_second } => {
                self.unsettled = true;
                self.ask(&format!("SELECT zdd.alter_change('twin', max_rows_per_second => {rows_per_second})"))?;
                match workers {
                    0 => self.begin_beside(verb, "CALL zdd.backfill('twin')"),
                    _ => self.ask(&format!("SELECT zdd.start_backfill('twin', workers => {workers})"))?,
                }
            }
            Verb::Pause => {
                // It may not have begun yet, and is not paused then.
                if self.table.db.attempt("SELECT zdd.pause('twin')").is_ok() {
                    // That of a session ends with an error.
                    self.end_beside();
                    self.paused = true;
                }
            }
            Verb::Resume if std::mem::take(&mut self.paused) => self.ask("SELECT zdd.resume('twin')")?,
            Verb::Resume => {}
            Verb::Await => {
                // It may wait for them.
                for app in 0..self.apps.len() {
                    self.act(app, &Act::End("COMMIT"), 0)?;
                }
                if let Some((verb, beside)) = self.beside.take() {
                    beside.join().1.map_err(|error| format!("{verb:?}: {error}"))?;
                }
            }
            Verb::AwaitExpanded => {
                self.change(Verb::Release)?;
                self.change(Verb::Await)?;
                self.ask("CALL zdd.wait_for('twin', 'expanded', '60s')")?;
                self.unsettled = false;
                self.table.db.run("DROP TABLE IF EXISTS app.split");
                let counts = self.table.db.text("SELECT pending, diverged FROM zdd.verify('twin')");
                if counts != "0|0" {
                    return Err(format!("pending and diverged: {counts}"));
                }
            }
            Verb::Fence => self.ask("SELECT zdd.fence('twin')")?,
            Verb::Unfence => self.ask("SELECT zdd.unfence('twin')")?,
            Verb::Rollback => {
                // It waits for whoever uses the table.
                self.change(Verb::Release)?;
                self.ask("SELECT zdd.rollback('twin')")?;
                self.end_beside();
                self.unsettled = false;
            }
            Verb::Contract => {
                self.ask("CALL zdd.contract('twin', accept_unmatched => true, accept_lossy => true, force => true)")?;
            }
            Verb::Renew => self.renew()?,
        }
        Ok(())
    }

    fn ask(&mut self, sql: &str) -> Checked {
        self.table.db.attempt(sql).map_err(|error| format!("{sql}: {error}"))
    }

    fn begin_beside(&mut self, verb: Verb, sql: &str) {
        self.beside = Some((verb, self.table.db.another().in_background(sql)));
    }

    /// The new application starts where no new column lacks a value that it must have.
    fn renew(&mut self) -> Checked {
        let stage = self.stage;
        let (name, source) = (stage.shape.table, stage.shape.source);
        self.renewed = true;
        let mut random = Rng::with_seed(1);
        let needed: Vec<_> = stage.rule.targets.iter().filter(|target| target.not_null).collect();
        let fill = |target: &&Target| {
            format!("{0} = coalesce({0}, {1})", target.name, quoted(&target.some_value(&mut random)))
        };
        let set: Vec<String> = needed.iter().map(fill).collect();
        let lacking: Vec<String> = needed.iter().map(|target| format!("{} IS NULL", target.name)).collect();
        if !needed.is_empty() {
            self.ask(&format!("UPDATE {name} SET {} WHERE {}", set.join(", "), lacking.join(" OR ")))?;
        }
        let twin = &mut self.twin.db;
        twin.run(&format!("ALTER TABLE {name} DROP {source}"));
        twin.run("SET session_replication_role = replica");
        let mut tables: Vec<(String, String)> = Vec::new();
        for target in &stage.rule.targets {
            twin.run(&format!("ALTER TABLE {name} ADD {} {}", target.name, target.type_name));
        }
        for (table, columns) in stage.compared(true) {
            if table == name && stage.shape.layout == Layout::Inherited {
                tables.push(("app.item_x".into(), format!("{columns}, extra")));
                tables.push((format!("ONLY {name}"), columns));
            } else {
                tables.push((table, columns));
            }
        }
        for (table, columns) in &tables {
            let rows = copied(&mut self.table.db.client, &format!("COPY (SELECT {columns} FROM {table}) TO STDOUT"))?;
            twin.run(&format!("DELETE FROM {table}"));
            let into = table.trim_start_matches("ONLY ");
            let columns = if columns == "*" { String::new() } else { format!("({columns})") };
            let mut writer =
                twin.client.copy_in(&format!("COPY {into} {columns} FROM STDIN")).map_err(|e| describe(&e))?;
            writer.write_all(&rows).map_err(|e| e.to_string())?;
            writer.finish().map_err(|e| describe(&e))?;
        }
        twin.run("RESET session_replication_role");
        for target in &stage.rule.targets {
            if target.not_null {
                twin.run(&format!("ALTER TABLE {name} ALTER {} SET NOT NULL", target.name));
            }
            if let Some(default) = target.default {
                twin.run(&format!("ALTER TABLE {name} ALTER {} SET DEFAULT {default}", target.name));
            }
        }
        let last = self.table.db.text("SELECT last_value, is_called FROM app.item_seq").replace('|', ", '") + "'";
        twin.run(&format!("SELECT setval('app.item_seq', {last})"));
        for ddl in &stage.renewal {
            self.table.db.attempt(ddl).map_err(|error| format!("{ddl}: {error}"))?;
            self.twin.db.run(ddl);
        }
        self.compare()
    }

    /// Leaves nothing behind that the next run could stumble over.
    fn end(&mut self) {
        self.holder = None;
        self.table.end();
        self.twin.end();
        let active = "SELECT zdd.rollback(change) FROM zdd.changes WHERE phase NOT IN ('contracted', 'rolled_back')";
        let _ = self.table.db.attempt(active);
        if let Some((_, beside)) = &self.beside {
            let _ = self.table.db.attempt(&format!("SELECT pg_terminate_backend({})", beside.pid));
        }
        self.end_beside();
    }

    /// Waits for what has been told to end, and what becomes of it is known.
    fn end_beside(&mut self) {
        if let Some((_, beside)) = self.beside.take() {
            let _ = beside.join().1;
        }
    }
}

/// Of a constraint, a policy, or the condition of a view.
fn is_violation(outcome: &Outcome) -> bool {
    outcome.code().is_some_and(|code| code.starts_with("23") || ["42501", "44000"].contains(&code))
}

/// Whether what was read may be written back: not, if the new side has been seen and the conflict policy says that this
/// application's word about it counts.
fn may_save(save: &Save, loaded: &Row) -> bool {
    let unsplit = |from: usize| loaded[from..save.columns.len()].iter().all(Option::is_none);
    save.star.is_none_or(|from| save.always || unsplit(from))
}

fn copied(client: &mut Client, sql: &str) -> Checked<Vec<u8>> {
    let mut rows = Vec::new();
    let mut reader = client.copy_out(sql).map_err(|e| describe(&e))?;
    reader.read_to_end(&mut rows).map_err(|e| e.to_string())?;
    Ok(rows)
}
