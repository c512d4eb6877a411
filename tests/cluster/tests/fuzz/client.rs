//! Somebody who talks to the server until the time is over.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::{Client, Error, NoTls};

use crate::judge::{Failure, Judge};
use crate::statements::{self, Statement};
use crate::values::chance;
use crate::world::{DATABASE, Function, Role, Slot, Snapshot, rows};

/// What all clients share.
pub struct Stage<'c> {
    pub cluster: &'c Cluster,
    pub judge: &'c Judge,
    pub functions: Vec<Function>,
    /// Tables, views and sequences of the extension, and whether each is a view.
    pub relations: Vec<(String, bool)>,
    pub slots: Vec<Slot>,
    pub now: Mutex<Arc<Snapshot>>,
    pub end: Instant,
}

impl Stage<'_> {
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    pub fn now(&self) -> Arc<Snapshot> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection with limits, so that nobody waits for long; none while the server is down.
    pub fn connect(&self, role: Role, application: &str) -> Option<Client> {
        let mut config = self.cluster.config(DATABASE, role.name(), application);
        config.options(
            "-c statement_timeout=3s -c lock_timeout=300ms -c idle_in_transaction_session_timeout=20s \
             -c client_min_messages=error -c zdd.lock_timeout=50ms -c zdd.lock_patience=1s",
        );
        config.connect(NoTls).ok()
    }
}

/// One of them.
pub struct Talker<'s, 'c> {
    stage: &'s Stage<'c>,
    rng: Rng,
    number: usize,
}

/// A connection and what is known of it.
struct Line {
    client: Client,
    role: Role,
    pid: i32,
    /// Whether it is inside a transaction block.
    inside: bool,
}

impl<'s, 'c> Talker<'s, 'c> {
    pub fn new(stage: &'s Stage<'c>, seed: u64, number: usize) -> Self {
        Talker { stage, rng: Rng::with_seed(seed.wrapping_add(number as u64)), number }
    }

    /// Talks as one role for a while, then as another.
    pub fn talk(mut self) {
        while !self.stage.is_over() {
            let role = match self.rng.u8(..100) {
                0..32 => Role::OwnerA,
                32..54 => Role::OwnerB,
                54..78 => Role::App,
                78..87 => Role::Superuser,
                87..93 => Role::DatabaseOwner,
                _ => Role::Stranger,
            };
            let application = format!("fuzz {}", self.number);
            let Some(client) = self.stage.connect(role, &application) else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            let mut line = Line { client, role, pid: 0, inside: false };
            let pid = rows(&mut line.client, "SELECT pg_catalog.pg_backend_pid()");
            line.pid = pid.ok().and_then(|rows| rows.first()?.first()?.parse().ok()).unwrap_or(0);
            let statements = if chance(&mut self.rng, 5) { 300 } else { self.rng.usize(3..40) };
            for _ in 0..statements {
                if self.stage.is_over() || line.client.is_closed() {
                    break;
                }
                let statement = self.next(&line);
                if !self.say(&mut line, &statement) {
                    break;
                }
            }
        }
    }

    fn next(&mut self, line: &Line) -> Statement {
        let (stage, role) = (self.stage, line.role);
        let now = stage.now();
        let rng = &mut self.rng;
        if line.inside && chance(rng, 15) {
            return statements::transaction(rng, true);
        }
        // How often which: calls, splits, steps on a change's way, looks, DML, what the role alone does, settings.
        let weights: [u8; 7] = match role {
            Role::OwnerA | Role::OwnerB => [16, 14, 24, 4, 14, 18, 6],
            Role::App => [10, 2, 0, 8, 66, 0, 8],
            Role::Superuser => [34, 2, 24, 10, 0, 18, 8],
            Role::DatabaseOwner => [40, 6, 0, 14, 0, 26, 10],
            Role::Stranger => [44, 8, 0, 14, 8, 18, 8],
        };
        let mut dice = rng.u8(..weights.iter().sum::<u8>());
        let mut which = 0;
        while dice >= weights[which] {
            dice -= weights[which];
            which += 1;
        }
        let call = |rng: &mut Rng| {
            let function = &stage.functions[rng.usize(..stage.functions.len())];
            statements::call(rng, function, &now, role)
        };
        match which {
            1 => statements::split(rng, &now, role, "split_column"),
            2 => {
                statements::march(rng, &now, role).unwrap_or_else(|| statements::split(rng, &now, role, "split_column"))
            }
            3 => statements::look(rng, &stage.relations, role),
            4 => statements::dml(rng, &now, role).unwrap_or_else(|| call(rng)),
            5 => match role {
                Role::OwnerA | Role::OwnerB => statements::ddl(rng, &now, &stage.slots, role),
                Role::Superuser if chance(rng, 60) => statements::disturb(rng, &now).unwrap_or_else(|| call(rng)),
                Role::Superuser | Role::DatabaseOwner => statements::administer(rng, &now, role),
                _ => statements::trespass(rng, &now),
            },
            6 if line.inside || rng.bool() => statements::setting(rng, role),
            6 => statements::transaction(rng, false),
            _ => call(rng),
        }
    }

    /// Returns whether the connection can be used further.
    fn say(&mut self, line: &mut Line, statement: &Statement) -> bool {
        let sql = &statement.sql;
        let watched = statement.kind.starts_with("zdd.")
            && sql.starts_with("SELECT")
            && !line.inside
            && chance(&mut self.rng, 25);
        let before = if watched { state(&mut line.client) } else { None };
        self.stage.judge.begins(line.pid, sql);
        let start = Instant::now();
        let result = match &statement.copy {
            Some(lines) => copy(&mut line.client, sql, lines),
            // The extended protocol takes one statement at a time.
            None if !sql.contains(';') && chance(&mut self.rng, 25) => line.client.query(sql, &[]).map(drop),
            None => line.client.simple_query(sql).map(drop),
        };
        let failure = result.as_ref().err().map(Failure::of);
        self.stage.judge.ended(line.pid, &statement.kind, failure.as_ref(), start.elapsed());
        let error = failure.as_ref().map(|failure| failure.state.as_str());
        // No error of the server's: the connection is lost, or the two have lost each other.
        if failure.as_ref().is_some_and(|failure| failure.state == Failure::LOST) {
            return false;
        }
        // A block that catches errors has none.
        let is_caught = sql.contains("EXCEPTION WHEN");
        if error.is_none() && !is_caught && statement.kind.starts_with("zdd._") && line.role != Role::Superuser {
            let title = format!("{} answers those who are no superuser", statement.kind);
            self.stage.judge.finds(&title, &format!("{}: {sql}", line.role.name()));
        }
        match error {
            None if sql.starts_with("BEGIN") && !sql.contains(';') => line.inside = true,
            None if sql.starts_with("COMMIT AND CHAIN") => {}
            None if sql.contains("COMMIT") || sql.starts_with("PREPARE TRANSACTION") => line.inside = false,
            None if sql.ends_with("ROLLBACK") => line.inside = false,
            // A block that failed half-way, or one that its statements can't go on in.
            Some(_) if sql.starts_with("BEGIN;") || (line.inside && !chance(&mut self.rng, 60)) => {
                let _ = line.client.batch_execute("ROLLBACK");
                line.inside = false;
            }
            Some("25P02") if !line.inside => {
                let _ = line.client.batch_execute("ROLLBACK");
            }
            _ => {}
        }
        if let Some(before) = before
            && let Some(after) = state(&mut line.client)
            && before != after
        {
            let title = format!("{} has left a setting changed", statement.kind);
            self.stage.judge.finds(&title, &format!("{sql}\nbefore: {before}\nafter: {after}"));
        }
        true
    }
}

/// What a session has set, and who it is.
fn state(client: &mut Client) -> Option<String> {
    const SQL: &str = "SELECT current_user, session_user, pg_catalog.string_agg(
            pg_catalog.concat_ws('=', name, setting), ' ' ORDER BY name COLLATE \"C\")
        FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'";
    rows(client, SQL).ok()?.pop().map(|row| row.join(" "))
}

fn copy(client: &mut Client, sql: &str, lines: &str) -> Result<(), Error> {
    let mut writer = client.copy_in(sql)?;
    // An error of the server's shows at the end.
    let _ = writer.write_all(lines.as_bytes());
    writer.finish().map(drop)
}
