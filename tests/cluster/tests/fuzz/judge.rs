//! What must not happen, and what has.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pg_zdd_cluster::postgres::Error;
use pg_zdd_cluster::postgres::error::ErrorPosition;

use crate::world::RESTORED;

/// Internal errors and warnings that are PostgreSQL's own, and why.
const OF_POSTGRESQL: &[(&str, &str)] = &[
    ("tuple concurrently updated", "two sessions write one row of a system catalog"),
    ("tuple concurrently deleted", "the same, and one of them deletes it"),
    ("referential integrity query on", "a rule of the table's has rewritten it"),
    ("cannot reindex invalid index", "a warning of REINDEX CONCURRENTLY's"),
    ("cannot rename trigger", "that of a partition; the error has no SQLSTATE"),
    ("you don't own a lock of type ExclusiveLock", "an owner's function has called pg_advisory_unlock_all"),
];

/// What the server warns of when a backend has not given back what it took.
const LEAKS: &[&str] = &[
    "leak",
    "still referenced",
    "lock table corrupted",
    "you don't own a lock",
    "non-empty SPI stack",
    "non-empty stack",
    "is not owned by",
    "still active",
    "problem in alloc set",
    "detected write past",
];

/// What a process writes past PostgreSQL's log when it goes.
const LAST_WORDS: &[&str] =
    &["TRAP:", "panicked at", "memory allocation of", "corrupt", "double free", "free():", "stack overflow"];

/// SQLSTATEs of those who did not get past the checks of a function's arguments and rights.
const EARLY: &[&str] = &[
    "22004", "22023", "22P02", "22021", "25001", "25P02", "26000", "2201B", "34000", "3B001", "3F000", "42501",
    "42601", "42703", "42704", "42725", "42809", "42883", "42P01", "42P02", "42P05", "42P03", "0A000", "42602",
    "42P18", "42804",
];

/// An error as the client sees it.
pub struct Failure {
    pub state: String,
    pub message: String,
    context: String,
    /// Whether pg_zdd has raised it, rather than PostgreSQL.
    is_ours: bool,
    /// The query that it is about, when that is not the client's.
    query: Option<String>,
}

impl Failure {
    /// In the place of an SQLSTATE, when the server has not said one.
    pub const LOST: &str = "-----";

    pub fn of(error: &Error) -> Failure {
        let Some(db) = error.as_db_error() else {
            let none = String::new;
            return Failure {
                state: Self::LOST.into(),
                message: error.to_string(),
                context: none(),
                is_ours: false,
                query: None,
            };
        };
        let query = match db.position() {
            Some(ErrorPosition::Internal { query, .. }) => Some(query.clone()),
            _ => None,
        };
        Failure {
            state: db.code().code().to_owned(),
            message: db.message().to_owned(),
            context: db.where_().unwrap_or_default().to_owned(),
            is_ours: db.routine() == Some("pg_zdd"),
            query,
        }
    }

    /// What is wrong with it, if it is not one that its statement may give.
    fn fault(&self, kind: &str) -> Option<String> {
        let Failure { state, message, context, .. } = self;
        let is_interrupt = ["57", "53", "54"].iter().any(|class| state.starts_with(class));
        // What the owners' own functions do is their business.
        let is_mischief = context.contains("mischief(") || message.contains("mischief(");
        if !is_interrupt && context.contains("zdd.guard()") && !OF_THE_GUARD.contains(&state.as_str()) {
            return Some(format!("the guard fails with {state}: {}", general(message)));
        }
        if !is_mischief && OWN_SQL.contains(&state.as_str()) && kind.starts_with("zdd.") {
            let query = self.query.as_deref().filter(|query| !query.contains("zdd.\""))?;
            return Some(format!(
                "{kind} runs SQL that is not right, {state}: {}",
                general(&format!("{message}: {query}"))
            ));
        }
        let is_dml = kind.chars().all(|c| c.is_ascii_uppercase());
        if is_dml && self.is_ours && !is_interrupt && !is_mischief && !OF_WRITES.contains(&state.as_str()) {
            let what = message.split(" table ").next().unwrap_or_default();
            return Some(format!("a write fails with {state}: {}", general(what)));
        }
        None
    }
}

/// What the parser says of SQL that was put together wrongly, or for another search_path.
const OWN_SQL: &[&str] = &["42601", "42703", "42P01", "42883", "42702", "42725", "42P02", "42804", "22021"];

/// What the guard may answer: that a change would break, that a trigger is not one of ours or comes too late, and to a
/// serializable transaction.
const OF_THE_GUARD: &[&str] = &["55006", "42501", "55000", "40001"];

/// What pg_zdd may answer to those who write: a policy, NOT NULL, a value that does not fit, and what the guard says to DDL
/// in an owner's function.
const OF_WRITES: &[&str] = &["23514", "23502", "22001", "42501", "55006"];

/// Something that must not happen.
struct Finding {
    count: u64,
    example: String,
}

/// What became of a function's calls.
#[derive(Default)]
struct Calls {
    succeeded: u64,
    refused: u64,
    /// With an error of later.
    failed: u64,
}

#[derive(Default)]
struct Notes {
    findings: BTreeMap<String, Finding>,
    /// How many of each kind, how many of them have succeeded, and how long they took in all.
    statements: BTreeMap<String, (u64, u64, Duration)>,
    calls: BTreeMap<String, Calls>,
    sqlstates: BTreeMap<String, u64>,
    /// One error of each kind of statement and SQLSTATE.
    errors: BTreeMap<(String, String), (u64, String)>,
    /// What each backend was last told.
    histories: HashMap<i32, VecDeque<String>>,
}

/// Hears of everything.
#[derive(Default)]
pub struct Judge {
    notes: Mutex<Notes>,
}

impl Judge {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A backend is about to run a statement.
    pub fn begins(&self, pid: i32, sql: &str) {
        const KEPT: usize = 15;
        let mut notes = self.notes();
        let history = notes.histories.entry(pid).or_default();
        if history.len() == KEPT {
            history.pop_front();
        }
        history.push_back(shortened(sql, 1500));
    }

    /// A statement has ended, with this error unless it has succeeded.
    pub fn ended(&self, pid: i32, kind: &str, failure: Option<&Failure>, took: Duration) {
        if let Some(title) = failure.and_then(|failure| failure.fault(kind)) {
            self.finds(&title, &self.history(pid));
        }
        let error = failure.map(|failure| (failure.state.as_str(), failure.message.as_str()));
        let mut notes = self.notes();
        let count = notes.statements.entry(kind.to_owned()).or_default();
        count.0 += 1;
        count.1 += u64::from(error.is_none());
        count.2 += took;
        let state = error.map_or("00000", |(state, _)| state);
        *notes.sqlstates.entry(state.to_owned()).or_default() += 1;
        if let Some(function) = kind.strip_prefix("zdd.") {
            let calls = notes.calls.entry(function.to_owned()).or_default();
            match error {
                None => calls.succeeded += 1,
                Some((state, _)) if EARLY.contains(&state) => calls.refused += 1,
                Some(_) => calls.failed += 1,
            }
        }
        if let Some((state, message)) = error {
            let seen = notes.errors.entry((kind.to_owned(), state.to_owned())).or_default();
            seen.0 += 1;
            if seen.1.is_empty() {
                seen.1 = shortened(message, 200);
            }
        }
    }

    /// Something must not have happened. Findings of one title are one.
    pub fn finds(&self, title: &str, example: &str) {
        // Told at once: the test may not come to its end.
        let title = shortened(title, 200);
        let mut notes = self.notes();
        let finding = notes.findings.entry(title.clone()).or_insert_with(|| {
            println!("found: {title}");
            Finding { count: 0, example: example.to_owned() }
        });
        finding.count += 1;
    }

    /// The statements of a backend, the last one last.
    fn history(&self, pid: i32) -> String {
        let notes = self.notes();
        let history = notes.histories.get(&pid).map(|history| Vec::from(history.clone())).unwrap_or_default();
        history.join(";\n    ")
    }

    /// How many calls of a function have succeeded.
    pub fn successes(&self, function: &str) -> u64 {
        self.notes().calls.get(function).map_or(0, |calls| calls.succeeded)
    }

    /// Says what was done.
    pub fn report(&self) {
        let notes = self.notes();
        let all: u64 = notes.statements.values().map(|count| count.0).sum();
        println!("\n{all} statements (succeeded of all, mean time):");
        for (kind, (all, succeeded, took)) in &notes.statements {
            println!("  {succeeded:>7} of {all:>7} {:>6} ms  {kind}", took.as_millis() / u128::from(*all));
        }
        println!("\nfunctions:   succeeded  failed later  refused at once");
        for (name, calls) in &notes.calls {
            println!("  {:>18} {:>13} {:>16}  {name}", calls.succeeded, calls.failed, calls.refused);
        }
        println!("\nSQLSTATEs:");
        for (state, count) in &notes.sqlstates {
            println!("  {state} {count:>8}");
        }
        if std::env::var_os("PG_ZDD_VERBOSE").is_some() {
            println!("\none error of each kind:");
            for ((kind, state), (count, message)) in &notes.errors {
                println!("  {kind} {state} x{count}: {message}");
            }
        }
    }

    /// Everything that must not have happened; or only crashes, errors of the XX class and gained rights.
    pub fn verdict(&self, only_grave: bool) -> Result<(), String> {
        const GRAVE: [&str; 7] =
            ["XX00", "terminated by signal", "PANIC", "TRAP", "panicked", "superuser", "allocation"];
        let notes = self.notes();
        let is_grave = |title: &str| GRAVE.iter().any(|word| title.contains(word));
        let findings: Vec<String> = notes
            .findings
            .iter()
            .filter(|(title, _)| !only_grave || is_grave(title))
            .map(|(title, finding)| {
                format!("--- {title} ({} times), for instance:\n{}\n", finding.count, finding.example)
            })
            .collect();
        if findings.is_empty() { Ok(()) } else { Err(format!("{} findings\n{}", findings.len(), findings.concat())) }
    }
}

/// Reads the server's log as it grows.
pub struct Log {
    path: PathBuf,
    read: u64,
    /// The end of what was read, which is no whole line yet.
    rest: Vec<u8>,
    /// Messages that may have more lines to come.
    open: HashMap<i32, Message>,
    last: i32,
}

struct Message {
    who: String,
    head: String,
    more: String,
}

impl Log {
    /// What the server has to be told for its log to be understood.
    pub const SETTINGS: [(&str, &str); 2] =
        [("log_line_prefix", "%m [%p] %b/%u@%d: "), ("log_error_verbosity", "verbose")];

    pub fn of(path: PathBuf) -> Log {
        Log { path, read: 0, rest: Vec::new(), open: HashMap::new(), last: 0 }
    }

    /// Judges what was written since the last time; at the end of all also what might have had more lines.
    pub fn read(&mut self, judge: &Judge, is_over: bool) {
        let mut bytes = std::mem::take(&mut self.rest);
        let read = std::fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut bytes)
        });
        self.read += read.unwrap_or(0) as u64;
        let end =
            if is_over { bytes.len() } else { bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1) };
        self.rest = bytes.split_off(end);
        for line in String::from_utf8_lossy(&bytes).lines() {
            self.line(judge, line);
        }
        if is_over {
            for (pid, message) in std::mem::take(&mut self.open) {
                message.judge(judge, pid);
            }
        }
    }

    fn line(&mut self, judge: &Judge, line: &str) {
        const SEVERITIES: &[&str] = &["DEBUG", "LOG:", "INFO:", "NOTICE:", "WARNING:", "ERROR:", "FATAL:", "PANIC:"];
        let Some((pid, who, text)) = parts(line) else {
            if let Some(message) = self.open.get_mut(&self.last).filter(|_| line.starts_with('\t')) {
                append(&mut message.more, line);
            } else if LAST_WORDS.iter().any(|words| line.contains(words)) {
                judge.finds(&general(line), line);
            }
            return;
        };
        self.last = pid;
        if SEVERITIES.iter().any(|severity| text.starts_with(severity)) {
            let message = Message { who: who.to_owned(), head: text.to_owned(), more: String::new() };
            if let Some(before) = self.open.insert(pid, message) {
                before.judge(judge, pid);
            }
        } else if let Some(message) = self.open.get_mut(&pid) {
            append(&mut message.more, text);
        }
    }
}

fn append(to: &mut String, line: &str) {
    if to.len() < 6000 {
        to.push('\n');
        to.push_str(&shortened(line, 2000));
    }
}

/// Process, kind of process and message of a line that begins a message or a part of it.
fn parts(line: &str) -> Option<(i32, &str, &str)> {
    if !line.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (_, rest) = line.split_once(" [")?;
    let (pid, rest) = rest.split_once("] ")?;
    let (who, text) = rest.split_once(": ")?;
    Some((pid.parse().ok()?, who, text))
}

impl Message {
    fn judge(&self, judge: &Judge, pid: i32) {
        // The SQLSTATE comes between the severity and the text.
        let (severity, rest) = self.head.split_once(":  ").unwrap_or(("", &self.head));
        let (state, text) = rest.split_once(": ").unwrap_or(("", rest));
        let is_known = OF_POSTGRESQL.iter().any(|(known, _)| text.contains(known));
        let is_internal = state.starts_with("XX") && !is_known;
        let is_leak = severity == "WARNING" && !is_known && LEAKS.iter().any(|words| text.contains(words));
        let is_crash = severity == "PANIC"
            || (severity == "LOG" && text.contains("terminated by signal") && !text.contains("signal 9: Killed"))
            // 1 is an error, 2 the end of all backends when one has crashed.
            || (severity == "LOG" && text.contains("exited with exit code") && !text.ends_with(['0', '1', '2']))
            || self.head.contains("panicked at")
            // Who restores a dump as a superuser runs its functions as one.
            || (self.head.contains("LOOT") && !self.who.ends_with(RESTORED));
        if is_internal || is_leak || is_crash {
            // The postmaster tells whose end it was.
            let whose = text.split_once("(PID ").and_then(|(_, rest)| rest.split_once(')'));
            let pid = whose.and_then(|(pid, _)| pid.parse().ok()).unwrap_or(pid);
            let example = format!(
                "{} {}{}\n  this backend was told:\n    {}",
                self.who,
                shortened(&self.head, 1000),
                self.more,
                judge.history(pid)
            );
            judge.finds(&format!("{severity} {state}: {}", general(text)), &example);
        }
    }
}

/// A message without what differs from time to time: numbers and what stands in quotes.
fn general(message: &str) -> String {
    let mut text = String::new();
    let (mut quoted, mut number) = (false, false);
    for c in message.chars() {
        if c == '"' {
            quoted = !quoted;
            text.push(c);
        } else if !quoted {
            if !c.is_ascii_digit() {
                text.push(c);
            } else if !number {
                text.push('N');
            }
        }
        number = c.is_ascii_digit();
    }
    text
}

/// The beginning of a text.
pub fn shortened(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
