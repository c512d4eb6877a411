//! A connection as tests want it: results are text, and what goes wrong ends the test.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::{Cluster, describe};

/// The cluster that the tests of one program share. It goes when the program ends.
pub fn shared_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        // Tests of the launcher have a cluster of their own.
        let settings = [
            ("max_prepared_transactions", "5"),
            ("wal_level", "logical"),
            ("max_worker_processes", "32"),
            ("shared_preload_libraries", "pg_zdd"),
            ("zdd.auto_resume", "off"),
        ];
        Cluster::start(&settings).unwrap_or_else(|e| panic!("no cluster: {e}"))
    })
}

/// One connection to a database.
pub struct Session {
    pub client: Client,
    config: Config,
    notices: Arc<Mutex<Vec<String>>>,
}

#[allow(clippy::new_without_default)] // Sessions are made on purpose.
impl Session {
    /// A superuser's connection to a new database with pg_zdd in it, on the shared cluster.
    #[track_caller]
    pub fn new() -> Session {
        Session::on(shared_cluster())
    }

    /// The same on another cluster.
    #[track_caller]
    pub fn on(cluster: &Cluster) -> Session {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let made = cluster.create_database(&name);
        made.unwrap_or_else(|e| panic!("no database: {e}"));
        Session::connect(cluster.config(&name, "postgres", "test"))
    }

    #[track_caller]
    pub fn connect(mut config: Config) -> Session {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let heard = notices.clone();
        config.notice_callback(move |notice| {
            let text = format!("{}: {}", notice.severity(), notice.message());
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        });
        // What hangs fails.
        config.options("-c statement_timeout=120s");
        let client = config.connect(NoTls).unwrap_or_else(|e| panic!("no connection: {}", describe(&e)));
        Session { client, config, notices }
    }

    /// Another connection to the same database.
    #[track_caller]
    pub fn another(&self) -> Session {
        Session::connect(self.config.clone())
    }

    /// A connection to the database of this name on another cluster: a standby, or the same cluster after a restart.
    #[track_caller]
    pub fn at(&self, cluster: &Cluster) -> Session {
        Session::connect(cluster.config(self.config.get_dbname().unwrap_or_default(), "postgres", "test"))
    }

    /// Another connection to the same database, as another role.
    #[track_caller]
    pub fn another_as(&self, user: &str) -> Session {
        Session::connect(self.config.clone().user(user).clone())
    }

    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        if let Err(e) = self.attempt(sql) {
            panic!("{e}\n{sql}");
        }
    }

    /// Runs SQL that may fail; the error is as `describe` tells it.
    pub fn attempt(&mut self, sql: &str) -> Result<(), String> {
        self.client.batch_execute(sql).map_err(|e| describe(&e))
    }

    /// The error of SQL that must fail.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> String {
        match self.attempt(sql) {
            Ok(()) => panic!("no error\n{sql}"),
            Err(error) => error,
        }
    }

    /// The result as psql prints it without alignment: a line per row, `|` between columns. NULL is written `~`.
    #[track_caller]
    pub fn text(&mut self, sql: &str) -> String {
        let messages = match self.client.simple_query(sql) {
            Ok(messages) => messages,
            Err(e) => panic!("{}\n{sql}", describe(&e)),
        };
        let lines: Vec<String> = messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let values: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or("~")).collect();
                    Some(values.join("|"))
                }
                _ => None,
            })
            .collect();
        lines.join("\n")
    }

    /// A number.
    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        let text = self.text(sql);
        text.parse().unwrap_or_else(|_| panic!("not a number: {text}\n{sql}"))
    }

    /// PostgreSQL's major version.
    pub fn major(&mut self) -> i64 {
        self.number("SELECT current_setting('server_version_num')::int / 10000")
    }

    /// Whether an extension can be made here. A test that cannot run without it says so.
    pub fn has_extension(&mut self, name: &str) -> bool {
        self.has(name, &format!("SELECT count(*) > 0 FROM pg_available_extensions WHERE name = '{name}'"))
    }

    /// Whether there are collations of ICU here. A test that cannot run without them says so.
    pub fn has_icu(&mut self) -> bool {
        self.has("ICU", "SELECT count(*) > 0 FROM pg_collation WHERE collname = 'und-x-icu'")
    }

    fn has(&mut self, what: &str, sql: &str) -> bool {
        let has = self.text(sql) == "t";
        if !has {
            let thread = std::thread::current();
            // Not by eprintln!, which tests that pass are not heard with.
            let _ = writeln!(std::io::stderr(), "not run: {}: no {what} here", thread.name().unwrap_or_default());
        }
        has
    }

    pub fn pid(&mut self) -> i32 {
        self.number("SELECT pg_backend_pid()") as i32
    }

    /// Notices, warnings and the like since the last call.
    pub fn notices(&self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a connection like this one can be made.
    pub fn connects(&self) -> bool {
        self.config.connect(NoTls).is_ok()
    }

    /// Runs SQL in a thread of its own.
    #[track_caller]
    pub fn in_background(mut self, sql: &str) -> Background {
        let (pid, sql) = (self.pid(), sql.to_owned());
        let thread = std::thread::spawn(move || {
            let result = self.attempt(&sql);
            (self, result)
        });
        Background { pid, thread }
    }
}

/// SQL under way.
pub struct Background {
    /// The backend that runs it.
    pub pid: i32,
    thread: JoinHandle<(Session, Result<(), String>)>,
}

impl Background {
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end: the session back, and what became of it.
    pub fn join(self) -> (Session, Result<(), String>) {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
