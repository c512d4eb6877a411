//! What old and new applications have in common.

use pg_zdd_cluster::fastrand::Rng;

use super::script::{Act, Step, Verb};
use super::shape::{ROWS, Shape};
use super::source::Rule;
use super::{one_in, pick};

/// Writes down what the applications of a run say, all of one version.
pub struct Author<'a, V> {
    pub rng: Rng,
    pub shape: &'a Shape,
    pub rule: &'a Rule,
    pub version: V,
    /// Keys that nobody had.
    next_id: i32,
    pub steps: Vec<Step>,
}

/// A version of the application.
pub trait Version: Sized {
    /// A statement of an application, or some that belong together; `choice`, of 19, says of which kind.
    fn speak(author: &mut Author<'_, Self>, app: usize, choice: u8);
}

impl<'a, V: Version> Author<'a, V> {
    pub fn new(rng: Rng, shape: &'a Shape, rule: &'a Rule, version: V) -> Author<'a, V> {
        Author { rng, shape, rule, version, next_id: 1000, steps: Vec::new() }
    }

    /// So many statements, of all applications, in transactions or not.
    pub fn statements(&mut self, count: usize) {
        for _ in 0..count {
            let app = self.rng.usize(..3);
            match self.rng.u8(..24) {
                0 => self.act(app, Act::Begin("BEGIN")),
                1 => self.act(app, Act::Begin("BEGIN ISOLATION LEVEL REPEATABLE READ")),
                2 | 3 => self.end(app),
                4 => {
                    let savepoint = pick(&mut self.rng, &["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s"]);
                    self.act(app, Act::Savepoint(savepoint));
                }
                choice => V::speak(self, app, choice - 5),
            }
            if one_in(&mut self.rng, 15) {
                self.steps.push(Step::Compare);
            }
        }
    }

    /// Nobody is in a transaction any more.
    pub fn end_all(&mut self) {
        for app in 0..3 {
            self.end(app);
        }
    }

    fn end(&mut self, app: usize) {
        let end = pick(&mut self.rng, &["COMMIT", "COMMIT", "ROLLBACK"]);
        self.act(app, Act::End(end));
    }

    pub fn act(&mut self, app: usize, act: Act) {
        self.steps.push(Step::App(app, act));
    }

    pub fn sql(&mut self, app: usize, sql: String) {
        self.act(app, Act::Sql(sql));
    }

    pub fn change(&mut self, verbs: &[Verb]) {
        self.steps.extend(verbs.iter().map(|verb| Step::Change(*verb)));
    }

    /// A key that is there, often one that others want too.
    pub fn id(&mut self) -> i32 {
        if self.rng.bool() { self.rng.i32(1..=6) } else { self.rng.i32(1..=ROWS) }
    }

    pub fn fresh(&mut self) -> i32 {
        self.next_id += 1;
        self.next_id
    }

    /// What makes a key that nobody had of each that is there, if it is added.
    pub fn fresh_for_all(&mut self) -> i32 {
        self.next_id += ROWS + 1;
        self.next_id - ROWS
    }

    pub fn region(&mut self) -> &'static str {
        pick(&mut self.rng, &["n", "s", "e", "w"])
    }
}

/// What a session begins with.
pub fn settings(rng: &mut Rng) -> String {
    let mut settings = "SET search_path = app, public; SET client_min_messages = warning".to_owned();
    const HARMLESS: [&str; 10] = [
        "DateStyle = 'German, DMY'",
        "IntervalStyle = sql_standard",
        "extra_float_digits = 0",
        "bytea_output = escape",
        "plan_cache_mode = force_generic_plan",
        "plan_cache_mode = force_custom_plan",
        "enable_indexscan = off; SET enable_seqscan = off",
        "timezone = 'Asia/Kathmandu'",
        "search_path = ''",
        "constraint_exclusion = on",
    ];
    // With these SQL means something else.
    const HARMFUL: [&str; 3] =
        ["quote_all_identifiers = on", "standard_conforming_strings = off", "transform_null_equals = on"];
    if one_in(rng, 2) {
        settings += &format!("; SET {}", pick(rng, &HARMLESS));
    }
    if one_in(rng, 4) {
        settings += &format!("; SET {}", pick(rng, &HARMFUL));
    }
    settings
}
