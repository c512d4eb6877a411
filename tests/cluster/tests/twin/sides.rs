//! The table and its twin: the same applications on both, each a connection of its own, in an order that the test fixes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use pg_zdd_cluster::postgres::{self, Client, SimpleQueryMessage};
use pg_zdd_cluster::session::Session;

/// What an application that is blocked for this long waits for will never come.
const PATIENCE: Duration = Duration::from_secs(60);
/// A statement that takes longer than this may be waiting for another application.
const QUICK: Duration = Duration::from_millis(8);

pub type Row = Vec<Option<String>>;

/// What an application is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done {
        count: u64,
        rows: Vec<Row>,
    },
    Failed {
        code: String,
        /// What it is about: schema, table, column, type and constraint.
        about: [Option<String>; 5],
        message: String,
    },
}

impl Outcome {
    pub fn is_error(&self) -> bool {
        matches!(self, Outcome::Failed { .. })
    }

    /// Its SQLSTATE, if it is an error.
    pub fn code(&self) -> Option<&str> {
        match self {
            Outcome::Done { .. } => None,
            Outcome::Failed { code, .. } => Some(code),
        }
    }

    /// Whether an application can tell this from `other`. Of each row it looks at the first `width` columns. The order
    /// of rows is nobody's promise, and the words of an error are for people.
    pub fn agrees(&self, other: &Outcome, width: usize) -> bool {
        let seen = |rows: &[Row]| {
            let mut rows: Vec<Row> = rows.iter().map(|row| row[..row.len().min(width)].to_vec()).collect();
            rows.sort();
            rows
        };
        match (self, other) {
            (Outcome::Done { count, rows }, Outcome::Done { count: others, rows: other }) => {
                count == others && seen(rows) == seen(other)
            }
            (Outcome::Failed { code, about, .. }, Outcome::Failed { code: others, about: other, .. }) => {
                (code, about) == (others, other)
            }
            _ => false,
        }
    }

    /// Whether both are a violation of NOT NULL on the same column, of whichever table: when a row moves to another partition,
    /// the trigger of the one that it leaves is the first to see it.
    pub fn is_same_null(&self, other: &Outcome) -> bool {
        let column = |outcome: &Outcome| match outcome {
            Outcome::Failed { code, about: [_, _, column, ..], .. } if code == "23502" => column.clone(),
            _ => None,
        };
        column(self).is_some() && column(self) == column(other)
    }
}

/// One application's connection, in a thread of its own: a statement may have to wait for another application.
struct App {
    pid: i32,
    requests: Sender<String>,
    outcomes: Receiver<Outcome>,
}

impl App {
    fn new(mut session: Session, settings: &str) -> App {
        let pid = session.pid();
        session.run(settings);
        let ((requests, incoming), (outgoing, outcomes)) = (channel::<String>(), channel());
        std::thread::spawn(move || {
            for sql in incoming {
                let outcome = answer(&mut session.client, &sql).unwrap_or_else(|error| failure(&error));
                if outgoing.send(outcome).is_err() {
                    break;
                }
            }
        });
        App { pid, requests, outcomes }
    }
}

fn answer(client: &mut Client, sql: &str) -> Result<Outcome, postgres::Error> {
    let (mut total, mut rows) = (0, Vec::new());
    for message in client.simple_query(sql)? {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
            SimpleQueryMessage::CommandComplete(count) => total += count,
            _ => {}
        }
    }
    Ok(Outcome::Done { count: total, rows })
}

fn failure(error: &postgres::Error) -> Outcome {
    match error.as_db_error() {
        Some(db) => Outcome::Failed {
            code: db.code().code().to_owned(),
            about: [db.schema(), db.table(), db.column(), db.datatype(), db.constraint()]
                .map(|name| name.map(str::to_owned)),
            message: format!("{} {}", db.message(), db.where_().unwrap_or_default()),
        },
        None => Outcome::Failed { code: "lost".into(), about: Default::default(), message: error.to_string() },
    }
}

/// What has become of a statement.
pub enum Wait {
    Over(Outcome),
    /// It waits for other applications.
    Blocked,
}

/// One of the two tables, with its applications.
pub struct Side {
    /// A superuser's connection.
    pub db: Session,
    apps: Vec<App>,
}

impl Side {
    /// `roles`: who the applications are; they begin with `settings`.
    pub fn new(db: &Session, roles: &[&str], settings: &[String]) -> Side {
        let app = |(role, settings): (&&str, &String)| App::new(db.another_as(role), settings);
        Side { db: db.another(), apps: roles.iter().zip(settings).map(app).collect() }
    }

    /// Sends a statement of an application.
    pub fn send(&mut self, app: usize, sql: &str) {
        // If its thread is gone, so is its answer.
        let _ = self.apps[app].requests.send(sql.to_owned());
    }

    /// Waits until the statement has ended or waits for another application; through waits for anybody else.
    pub fn wait(&mut self, app: usize) -> Result<Wait, String> {
        let started = Instant::now();
        loop {
            match self.apps[app].outcomes.recv_timeout(QUICK) {
                Ok(outcome) => return Ok(Wait::Over(outcome)),
                Err(RecvTimeoutError::Disconnected) => return Err(format!("application {app} is gone")),
                Err(RecvTimeoutError::Timeout) if self.is_blocked(app) => return Ok(Wait::Blocked),
                Err(RecvTimeoutError::Timeout) if started.elapsed() > PATIENCE => {
                    let waits = "SELECT pid, application_name, backend_type, wait_event_type, wait_event,
                        pg_blocking_pids(pid), left(query, 100) FROM pg_stat_activity WHERE state <> 'idle'";
                    return Err(format!("application {app} hangs:\n{}", self.db.text(waits)));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn is_blocked(&mut self, app: usize) -> bool {
        let others: Vec<String> = self.apps.iter().map(|app| app.pid.to_string()).collect();
        let sql = format!("SELECT pg_blocking_pids({}) && ARRAY[{}]", self.apps[app].pid, others.join(","));
        self.db.text(&sql) == "t"
    }

    /// Ends all applications, whatever they are at.
    pub fn end(&mut self) {
        let all: Vec<String> = self.apps.drain(..).map(|app| format!("pg_terminate_backend({})", app.pid)).collect();
        self.db.run(&format!("SELECT {}", all.join(", ")));
    }

    /// What the table holds, in a fixed order.
    pub fn contents(&mut self, table: &str, columns: &str) -> Vec<String> {
        let sql = format!("SELECT t::text FROM (SELECT {columns} FROM {table}) AS t ORDER BY t::text COLLATE \"C\"");
        self.db.text(&sql).lines().map(str::to_owned).collect()
    }

    /// The same, told by one short text.
    pub fn digest(&mut self, table: &str, columns: &str) -> String {
        self.db.text(&format!(
            "SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY t::text COLLATE \"C\"))
             FROM (SELECT {columns} FROM {table}) AS t"
        ))
    }
}
