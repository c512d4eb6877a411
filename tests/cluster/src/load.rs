//! Clients that keep a server busy while something else goes on, and what became of their statements.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::describe;

/// One statement: when it was sent, how long its answer took.
#[derive(Clone, Copy)]
struct Sample {
    sent: Instant,
    took: Duration,
}

/// Something that went wrong: an error of a statement, or a value that was not the one written.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: Instant,
    pub text: String,
    /// The statement succeeded, but what it found is not what was written.
    pub wrong_value: bool,
}

/// The statements of one group of clients. Clones share the record.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Samples>>);

#[derive(Default)]
struct Samples {
    samples: Vec<Sample>,
    failures: Vec<Failure>,
}

/// What a record holds of a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub statements: usize,
    pub errors: usize,
    /// The longest time a statement took that was under way in this stretch.
    pub longest: Duration,
}

impl Record {
    /// Times a statement. An error is recorded; the caller only learns that there is no result.
    pub fn time<T>(&self, what: &str, statement: impl FnOnce() -> Result<T, postgres::Error>) -> Option<T> {
        let sent = Instant::now();
        let result = statement();
        self.lock().samples.push(Sample { sent, took: sent.elapsed() });
        result.map_err(|e| self.add(format!("{what}: {}", describe(&e)), false)).ok()
    }

    /// Records that a statement succeeded but found what it should not.
    pub fn fail(&self, text: String) {
        self.add(text, true);
    }

    fn add(&self, text: String, wrong_value: bool) {
        self.lock().failures.push(Failure { at: Instant::now(), text, wrong_value });
    }

    pub fn failures(&self) -> Vec<Failure> {
        self.lock().failures.clone()
    }

    /// Counts the statements sent in a stretch of time.
    pub fn between(&self, from: Instant, to: Instant) -> Summary {
        let inner = self.lock();
        let within = |at: Instant| from <= at && at < to;
        Summary {
            statements: inner.samples.iter().filter(|s| within(s.sent)).count(),
            errors: inner.failures.iter().filter(|f| within(f.at)).count(),
            longest: inner
                .samples
                .iter()
                .filter(|s| s.sent < to && s.sent + s.took > from)
                .map(|s| s.took)
                .max()
                .unwrap_or_default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Samples> {
        // A client that panicked has not left half a sample behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client in a thread of its own: one `step` after the other at a steady pace, until told to stop.
pub struct Runner {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Runner {
    pub fn start(pace: Duration, mut step: impl FnMut() + Send + 'static) -> Runner {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                step();
                next += pace;
                match next.checked_duration_since(Instant::now()) {
                    Some(pause) => std::thread::sleep(pause),
                    // Late: go on from here instead of making up for it in a burst.
                    None => next = Instant::now(),
                }
            }
        });
        Runner { stop, thread }
    }

    /// Lets the client finish its step and waits for it.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
