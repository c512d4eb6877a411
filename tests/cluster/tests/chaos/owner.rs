//! The owner of the tables alters them as owners do: rewrites, indexes, columns, and partitions that come and go.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, Error};
use pg_zdd_cluster::wait_until;

use crate::judge::Failure;
use crate::model::{DIVERGED, DIVERGING, Row, Rows};
use crate::world::{self, OWNER, Parts, SLOTS, Slot, TABLES, literal};
use crate::{Line, PATIENCE, Stage};

/// The partitioned table, and its column that is split.
const TABLE: usize = 1;
const SLOT: usize = 2;

/// Rows in a partition that is attached.
const ROWS: i32 = 300;

/// What DDL may answer: somebody is in the way, the guard, a name that is there or is not, a partition that does not fit, a
/// rewrite beside another one.
const ANSWERS: &[&str] =
    &["55P03", "55006", "55000", "42P07", "42701", "42703", "42704", "42P01", "42804", "40P01", "2BP01"];

pub struct Owner<'s> {
    stage: &'s Stage<'s>,
    rng: Rng,
    line: Option<Line>,
    unique: u64,
}

impl<'s> Owner<'s> {
    pub fn new(stage: &'s Stage<'s>, rng: Rng) -> Self {
        Owner { stage, rng, line: None, unique: 0 }
    }

    pub fn run(mut self) {
        while !self.stage.judge.is_over() {
            std::thread::sleep(Duration::from_millis(self.rng.u64(50..500)));
            let region = 10 + self.rng.i32(0..3);
            let waits = self.rng.bool();
            match self.rng.u8(..12) {
                0..4 => self.attach(region, waits),
                4..6 => self.remove(region),
                6 => self.diverge(),
                _ => {
                    let (name, sql) = self.statement();
                    let _ = self.say(name, &sql);
                }
            }
        }
    }

    fn statement(&mut self) -> (&'static str, String) {
        let rng = &mut self.rng;
        let slot = &SLOTS[rng.usize(0..SLOTS.len())];
        let table = TABLES[slot.table].name;
        let Slot { source, .. } = slot;
        let target = slot.rules[rng.usize(0..2)].targets[0];
        match rng.u8(0..20) {
            0 | 1 => ("VACUUM", format!("VACUUM (ANALYZE) {table}")),
            2 | 3 => ("VACUUM FULL", format!("VACUUM FULL {table}")),
            4 => ("CLUSTER", "CLUSTER address USING address_pkey".to_owned()),
            5 => ("REINDEX", format!("REINDEX TABLE {table}")),
            6 => ("ADD COLUMN", format!("ALTER TABLE {table} ADD COLUMN extra int DEFAULT 7")),
            7 | 8 => ("DROP COLUMN", format!("ALTER TABLE {table} DROP COLUMN extra")),
            9 => ("CREATE INDEX", format!("CREATE INDEX own_{source} ON {table} ({source})")),
            10 => ("CREATE INDEX", format!("CREATE INDEX own_{target} ON {table} ({target})")),
            11 => ("CREATE INDEX", format!("CREATE INDEX own_both ON address ({source}, note)")),
            12 | 13 => ("DROP INDEX", "DROP INDEX own_both".to_owned()),
            14 => ("DROP INDEX", format!("DROP INDEX own_{source}")),
            15 | 16 => ("ALTER TABLE", format!("ALTER TABLE {table} ALTER note SET STATISTICS {}", rng.u8(1..100))),
            // The guard is in the way. Where it is not, it is taken back.
            17 => ("(guarded)", format!("BEGIN; ALTER TABLE {table} DROP COLUMN {source}; ROLLBACK")),
            18 => ("(guarded)", format!("BEGIN; ALTER TABLE {table} RENAME COLUMN {source} TO another; ROLLBACK")),
            _ => ("(guarded)", format!("BEGIN; ALTER TABLE {table} DISABLE TRIGGER USER; ROLLBACK")),
        }
    }

    /// Runs DDL. The error is one that may be: others are found.
    fn say(&mut self, name: &str, sql: &str) -> Result<(), Failure> {
        let judge = self.stage.judge;
        while self.line.is_none() {
            let options = "-c statement_timeout=60s -c lock_timeout=300ms -c client_min_messages=warning";
            self.line = Line::open(self.stage, OWNER, "owner", options);
            if self.line.is_none() {
                if judge.is_over() {
                    return Err(Failure { state: Failure::LOST.to_owned(), text: "time is over".to_owned() });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let Some(line) = &mut self.line else { return Ok(()) };
        let sent = Instant::now();
        let failure = match line.client.batch_execute(sql) {
            Ok(()) => {
                judge.counts(name, "00000");
                return Ok(());
            }
            Err(error) => Failure::of(&error),
        };
        judge.counts(name, &failure.state);
        let is_asked_for = match failure.state.as_str() {
            _ if failure.is_end() => line.has_been_struck(judge),
            "57014" => judge.has_cancelled(line.pid, sent),
            state => ANSWERS.contains(&state),
        };
        if !is_asked_for {
            judge.finds(&format!("{name} fails with {}", failure.state), &format!("{sql}\n{}", failure.text));
        }
        if failure.is_end() {
            self.line = None;
        } else {
            let _ = line.client.batch_execute("ROLLBACK");
        }
        Err(failure)
    }

    /// Attaches a partition with rows that nobody has split yet, if it can be while a contract has counted and not dropped.
    fn attach(&mut self, region: i32, waits: bool) {
        let models = self.stage.models;
        let rows: Rows = (0..ROWS)
            .map(|n| {
                self.unique += 1;
                let value = SLOTS[SLOT].fresh_pair(&mut self.rng, self.unique).0;
                (800_000 + region * 1000 + n, Row::new(region, vec![Some(value)]))
            })
            .collect();
        if waits {
            let _ = wait_until("the old column is fenced", Duration::from_secs(1), || {
                let standing = self.line.as_mut().map(|line| world::standings(&mut line.client, &TABLES[TABLE]));
                Ok(!matches!(standing, Some(Ok(standing)) if standing[0].has(SLOTS[SLOT].source)))
            });
        }
        let _gate = models.gate.read().unwrap_or_else(PoisonError::into_inner);
        if models.partitions()[TABLE].values().any(|row| row.region == region) {
            return;
        }
        let (table, name) = (TABLES[TABLE].name, format!("{}_{region}", TABLES[TABLE].name));
        // From here on the table's columns stay what they are.
        if self.say("CREATE TABLE", &format!("BEGIN; CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS)")).is_err() {
            return;
        }
        let Some(Ok(standing)) = self.line.as_mut().map(|line| world::standings(&mut line.client, &TABLES[TABLE]))
        else {
            self.line = None;
            return;
        };
        let standing = &standing[0];
        let lines: Vec<String> = match (standing.source(SLOT), standing.rule(SLOT)) {
            (Some(_), _) => rows.iter().map(|(id, row)| row.tuple(*id)).collect(),
            (None, _) => rows
                .iter()
                .filter_map(|(id, row)| {
                    let (first, second) = (SLOTS[SLOT].split)(row.values[0].as_deref()?)?;
                    let parts = format!("{}, {}", literal(Some(&first)), literal(second.as_deref()));
                    Some(format!("({id}, {region}, {parts})"))
                })
                .collect(),
        };
        let columns = match (standing.source(SLOT), standing.rule(SLOT)) {
            (Some(source), _) => source,
            (None, rule) => SLOTS[SLOT].rules[rule.unwrap_or(0)].targets.join(", "),
        };
        let sql = format!(
            "INSERT INTO {name} (id, region, {columns}) VALUES {};
            ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES IN ({region}); COMMIT",
            lines.join(", ")
        );
        let is_there = match self.say("ATTACH", &sql) {
            Ok(()) => true,
            Err(failure) => failure.is_end() && self.is_there(&name),
        };
        if is_there {
            models.partitions()[TABLE].extend(rows);
        }
    }

    /// Takes a partition away, with all its rows.
    fn remove(&mut self, region: i32) {
        let (table, name) = (TABLES[TABLE].name, format!("{}_{region}", TABLES[TABLE].name));
        let is_detached = self.rng.bool();
        let models = self.stage.models;
        let _gate = models.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !models.partitions()[TABLE].values().any(|row| row.region == region) {
            return;
        }
        let sql = match is_detached {
            true => format!("BEGIN; ALTER TABLE {table} DETACH PARTITION {name}; DROP TABLE {name}; COMMIT"),
            false => format!("DROP TABLE {name}"),
        };
        let is_gone = match self.say(if is_detached { "DETACH" } else { "DROP TABLE" }, &sql) {
            Ok(()) => true,
            Err(failure) => failure.is_end() && !self.is_there(&name),
        };
        if is_gone {
            models.partitions()[TABLE].retain(|_, row| row.region != region);
        }
    }

    /// Writes both sides of some rows past the trigger, as a careless import does, and has that repaired, now and then.
    fn diverge(&mut self) {
        let winner = ["new", "old", ""][self.rng.usize(0..3)];
        let slot = &SLOTS[DIVERGING];
        let table = &TABLES[slot.table];
        let pairs: Vec<(String, String, Parts)> = DIVERGED
            .map(|_| {
                self.unique += 1;
                let old = slot.fresh_pair(&mut self.rng, self.unique).0;
                self.unique += 1;
                let (new, parts) = slot.fresh_pair(&mut self.rng, self.unique);
                (old, new, parts)
            })
            .collect();
        let models = self.stage.models;
        {
            let _gate = models.gate.read().unwrap_or_else(PoisonError::into_inner);
            // Past the trigger goes a superuser.
            let Ok(mut client) = self.stage.cluster.connect(world::DATABASE, "postgres", "owner") else { return };
            let update = |client: &mut Client| -> Result<bool, Error> {
                client.batch_execute(&format!(
                    "SET lock_timeout = '300ms'; BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE;
                    SET LOCAL session_replication_role = replica",
                    table.name
                ))?;
                let standing = &world::standings(client, table)?[table.place(DIVERGING)];
                let (Some(source), Some(rule)) = (standing.source(DIVERGING), standing.rule(DIVERGING)) else {
                    return Ok(false);
                };
                let [a, b] = slot.rules[rule].targets;
                let lines: Vec<String> = DIVERGED
                    .zip(&pairs)
                    .map(|(id, (old, _, (first, second)))| {
                        format!("({id}, '{old}', '{first}', {})", literal(second.as_deref()))
                    })
                    .collect();
                client.batch_execute(&format!(
                    "UPDATE {} AS t SET {source} = v.old, {a} = v.a, {b} = v.b
                    FROM (VALUES {}) AS v (id, old, a, b) WHERE t.id = v.id; COMMIT",
                    table.name,
                    lines.join(", ")
                ))?;
                Ok(true)
            };
            let done = update(&mut client);
            for (row, (old, new, _)) in models.diverging()[SLOTS[DIVERGING].table].values_mut().zip(pairs) {
                match &done {
                    Ok(true) => {
                        row.values[table.place(DIVERGING)] = Some(old);
                        row.rivals = vec![new];
                    }
                    // It may have come through.
                    Err(error) if Failure::of(error).is_end() => row.rivals.extend([old, new]),
                    _ => {}
                }
            }
            self.stage.judge.counts("import", if matches!(done, Ok(true)) { "00000" } else { "not done" });
        }
        if !winner.is_empty() {
            let _ = self.say("repair", &format!("CALL zdd.repair('{}', '{winner}')", slot.change));
        }
    }

    /// Whether a table is there, once the session that was struck down is gone.
    fn is_there(&self, name: &str) -> bool {
        let mut is_there = false;
        let found = wait_until("the end of a transaction shows", PATIENCE, || {
            let Ok(mut client) = self.stage.cluster.connect(world::DATABASE, "postgres", "eye") else {
                return Ok(false);
            };
            let sql = format!(
                "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'owner'), to_regclass('{name}')"
            );
            let look: Result<Vec<Vec<Option<String>>>, Error> = world::rows(&mut client, &sql);
            let Ok(look) = look else { return Ok(false) };
            is_there = look[0][1].is_some();
            Ok(look[0][0].as_deref() == Some("0"))
        });
        if let Err(error) = found {
            self.stage.judge.finds("the server does not come back", &error.to_string());
        }
        is_there
    }
}
