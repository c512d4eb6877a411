//! What must not happen, what has, and whom the driver has struck down itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pg_zdd_cluster::postgres::Error;

/// Findings of one title are one; of so many titles examples are kept.
const TITLES: usize = 40;

#[derive(Default)]
struct Notes {
    /// How often, and an example.
    findings: BTreeMap<String, (u64, String)>,
    /// Statements and verbs by what became of them.
    outcomes: BTreeMap<(String, String), u64>,
    /// How long they took at most.
    longest: BTreeMap<String, Duration>,
    /// Backends that the driver has ended.
    struck: BTreeSet<i32>,
    /// Backends whose statements the driver has cancelled, and when last.
    cancelled: BTreeMap<i32, Instant>,
}

pub struct Judge {
    notes: Mutex<Notes>,
    started: Instant,
    /// How often the driver has brought the server down, and how often it was up again.
    crashes: AtomicU64,
    is_over: AtomicBool,
    end: Instant,
}

impl Judge {
    pub fn new(time: Duration) -> Judge {
        let now = Instant::now();
        Judge {
            notes: Mutex::default(),
            started: now,
            crashes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            end: now + time,
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || Instant::now() >= self.end
    }

    /// Nobody begins anything any more.
    pub fn ends(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Something must not have happened.
    pub fn finds(&self, title: &str, example: &str) {
        let mut notes = self.notes();
        if notes.findings.len() >= TITLES && !notes.findings.contains_key(title) {
            return;
        }
        let example = shortened(example, 3000);
        let finding = notes.findings.entry(title.to_owned()).or_insert_with(|| {
            // Told at once: the test may not come to its end.
            println!("found after {:?}: {title}\n    {}", self.started.elapsed(), example.replace('\n', "\n    "));
            (0, example)
        });
        finding.0 += 1;
    }

    pub fn counts(&self, what: &str, outcome: &str) {
        *self.notes().outcomes.entry((what.to_owned(), outcome.to_owned())).or_default() += 1;
    }

    pub fn times(&self, what: &str, took: Duration) {
        let mut notes = self.notes();
        let longest = notes.longest.entry(what.to_owned()).or_default();
        *longest = took.max(*longest);
    }

    /// How often something has come to this, or to anything.
    pub fn count(&self, what: &str, outcome: Option<&str>) -> u64 {
        let is_meant =
            |key: &(String, String)| key.0.starts_with(what) && outcome.is_none_or(|outcome| key.1 == outcome);
        self.notes().outcomes.iter().filter(|(key, _)| is_meant(key)).map(|(_, count)| count).sum()
    }

    /// The driver is about to end a backend.
    pub fn strikes(&self, pid: i32) {
        self.notes().struck.insert(pid);
    }

    pub fn has_struck(&self, pid: i32) -> bool {
        self.notes().struck.contains(&pid)
    }

    /// The driver is about to cancel what a backend does.
    pub fn cancels(&self, pid: i32) {
        self.notes().cancelled.insert(pid, Instant::now());
    }

    /// Whether it may have hit a statement that was sent then.
    pub fn has_cancelled(&self, pid: i32, sent: Instant) -> bool {
        let late = Duration::from_millis(500);
        self.notes().cancelled.get(&pid).is_some_and(|at| *at + late > sent)
    }

    /// The driver is about to bring the server down, or it is back.
    pub fn crashes(&self) {
        self.crashes.fetch_add(1, Ordering::SeqCst);
    }

    pub fn crash(&self) -> u64 {
        self.crashes.load(Ordering::SeqCst)
    }

    pub fn report(&self) {
        let notes = self.notes();
        let mut of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((what, outcome), count) in &notes.outcomes {
            of.entry(what).or_default().push(format!("{outcome} {count}"));
        }
        for (what, outcomes) in of {
            let longest = notes.longest.get(what).map_or(0, Duration::as_millis);
            println!("  {what:<16} {longest:>6} ms  {}", outcomes.join(", "));
        }
    }

    pub fn verdict(&self) -> Result<(), String> {
        let notes = self.notes();
        let tell =
            |(title, (count, example)): (&String, &(u64, String))| format!("--- {title} ({count} times):\n{example}\n");
        match notes.findings.is_empty() {
            true => Ok(()),
            false => Err(notes.findings.iter().map(tell).collect()),
        }
    }
}

/// An error as a client sees it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The SQLSTATE, or `LOST`.
    pub state: String,
    pub text: String,
}

impl Failure {
    /// In the place of an SQLSTATE, when the connection is gone without one.
    pub const LOST: &str = "lost";

    pub fn of(error: &Error) -> Failure {
        let state = error.code().map_or(Self::LOST, |code| code.code()).to_owned();
        Failure { state, text: pg_zdd_cluster::describe(error) }
    }

    /// Whether the connection is gone with it.
    pub fn is_end(&self) -> bool {
        self.state == Self::LOST || self.state.starts_with("57P")
    }
}

/// Reads the server's log as it grows.
pub struct Log {
    path: PathBuf,
    read: u64,
}

impl Log {
    /// What the server has to be told for its log to be understood.
    pub const SETTINGS: [(&str, &str); 2] =
        [("log_line_prefix", "%m [%p] %b %a: "), ("log_error_verbosity", "verbose")];

    pub fn of(path: PathBuf) -> Log {
        Log { path, read: 0 }
    }

    /// Judges what was written since the last time.
    pub fn read(&mut self, judge: &Judge) {
        const LAST_WORDS: &[&str] =
            &["TRAP:", "panicked at", "memory allocation of", "PANIC:", "stack overflow", "free():"];
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut bytes)
        });
        if read.is_err() {
            return;
        }
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.read += end as u64;
        let text = String::from_utf8_lossy(&bytes[..end]);
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            // The SQLSTATE comes between the severity and the text.
            let is_internal = ["ERROR:  XX", "FATAL:  XX", "WARNING:  XX"].iter().any(|words| line.contains(words));
            let is_crash = (line.contains("terminated by signal") && !is_asked_for(line, judge))
                || LAST_WORDS.iter().any(|words| line.contains(words));
            let is_leak = line.contains("WARNING:")
                && ["leak", "still referenced", "don't own a lock"].iter().any(|w| line.contains(w));
            if is_internal || is_crash || is_leak {
                let about: Vec<&str> = lines[number..].iter().take(8).copied().collect();
                judge.finds(&title(line), &about.join("\n"));
            }
        }
    }
}

/// Whether a backend's end was the driver's doing.
fn is_asked_for(line: &str, judge: &Judge) -> bool {
    let pid = line.split_once("(PID ").and_then(|(_, rest)| rest.split_once(')')).and_then(|(pid, _)| pid.parse().ok());
    line.contains("signal 9") && pid.is_some_and(|pid| judge.has_struck(pid))
}

/// A line of the log without what differs from time to time.
fn title(line: &str) -> String {
    let message = line.split_once("]").map_or(line, |(_, message)| message);
    shortened(&message.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }).collect::<String>(), 160)
}

fn shortened(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
