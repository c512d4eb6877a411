//! An operator: calls verbs without looking whether they make sense, and now and then takes a change all of its way.

use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;

use crate::judge::{Failure, Judge};
use crate::model::DIVERGING;
use crate::world::{self, OWNER, SLOTS, Slot, chance, one};
use crate::{Line, QUIET, Stage};

/// What a verb may answer: a phase that does not go with it, somebody who is in the way or was quicker, rows or objects
/// that forbid it, no such change or column, a column or name that is taken, a NULL, and to a serializable transaction.
const ANSWERS: &[&str] = &[
    "55000", "55006", "40001", "2BP01", "42704", "42703", "42701", "42710", "23502",
    // A savepoint that was not set, since the block had failed before.
    "3B001",
];

/// SQL, and under which name it is counted.
struct Verb {
    name: &'static str,
    sql: String,
    contract: Option<Contract>,
}

/// What a contract was told.
#[derive(Clone, Copy)]
struct Contract {
    slot: usize,
    accepts: bool,
    force: bool,
}

impl Verb {
    fn new(name: &'static str, sql: String) -> Verb {
        Verb { name, sql, contract: None }
    }

    fn control(sql: &str) -> Verb {
        Verb::new("(control)", sql.to_owned())
    }

    fn ends_a_failure(&self) -> bool {
        ["COMMIT", "ROLLBACK"].iter().any(|word| self.sql.starts_with(word))
    }
}

pub struct Operator<'s> {
    stage: &'s Stage<'s>,
    number: usize,
    rng: Rng,
    line: Option<Line>,
}

impl<'s> Operator<'s> {
    pub fn new(stage: &'s Stage<'s>, number: usize, rng: Rng) -> Self {
        Operator { stage, number, rng, line: None }
    }

    pub fn run(mut self) {
        while !self.stage.judge.is_over() {
            let slot = self.rng.usize(0..SLOTS.len());
            match self.rng.u8(0..10) {
                0..4 => {
                    let verb = if chance(&mut self.rng, 70) { self.verb(slot) } else { self.procedure(slot) };
                    self.say(&verb);
                }
                4..7 => self.transaction(slot),
                _ => self.campaign(slot),
            }
            std::thread::sleep(Duration::from_millis(self.rng.u64(1..30)));
        }
    }

    /// Verbs in one transaction, some of them taken back.
    fn transaction(&mut self, slot: usize) {
        let isolation = one(&mut self.rng, &["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]);
        let mut verbs = vec![Verb::control(&format!("BEGIN ISOLATION LEVEL {isolation}"))];
        let mut has_savepoint = false;
        for _ in 0..self.rng.usize(1..5) {
            let slot = if chance(&mut self.rng, 80) { slot } else { self.rng.usize(0..SLOTS.len()) };
            match self.rng.u8(0..10) {
                0 | 1 => {
                    verbs.push(Verb::control("SAVEPOINT s"));
                    has_savepoint = true;
                    verbs.push(self.verb(slot));
                }
                2 | 3 if has_savepoint => verbs.push(Verb::control("ROLLBACK TO s")),
                4 => verbs.push(Verb::control("SELECT pg_sleep(0.2)")),
                _ => verbs.push(self.verb(slot)),
            }
        }
        verbs.push(Verb::control(one(&mut self.rng, &["COMMIT", "COMMIT", "ROLLBACK"])));
        let mut has_failed = false;
        for verb in verbs {
            // Of a block that has failed the rest would be refused, up to its end or its savepoint.
            if !has_failed || verb.ends_a_failure() {
                has_failed = !self.say(&verb);
            }
            if self.line.is_none() {
                return;
            }
        }
    }

    /// All the way from the split to the contract, whatever the others do meanwhile.
    fn campaign(&mut self, slot: usize) {
        let change = SLOTS[slot].change;
        let by_worker = self.rng.bool();
        let split = self.split(slot);
        let mut verbs = vec![split];
        if by_worker {
            verbs.push(Verb::new("start_backfill", format!("SELECT zdd.start_backfill('{change}', workers => 2)")));
            verbs.push(Verb::new("wait_for", format!("CALL zdd.wait_for('{change}', 'expanded', '8 seconds')")));
        } else {
            verbs.push(Verb::new("backfill", format!("CALL zdd.backfill('{change}')")));
        }
        if chance(&mut self.rng, 40) {
            verbs.push(Verb::new("fence", format!("SELECT zdd.fence('{change}')")));
            if chance(&mut self.rng, 50) {
                verbs.push(Verb::control("SELECT pg_sleep(2.5)"));
            }
        }
        if chance(&mut self.rng, 75) {
            verbs.push(self.contract(slot));
        }
        for verb in verbs {
            self.say(&verb);
            std::thread::sleep(Duration::from_millis(self.rng.u64(1..150)));
        }
    }

    fn split(&mut self, slot: usize) -> Verb {
        let rule = self.rng.usize(0..2);
        Verb::new("split_column", SLOTS[slot].split_column(rule))
    }

    /// One that a transaction can have.
    fn verb(&mut self, slot: usize) -> Verb {
        let Slot { change, is_untidy, .. } = &SLOTS[slot];
        let rng = &mut self.rng;
        let call =
            |name: &'static str, arguments: &str| Verb::new(name, format!("SELECT zdd.{name}('{change}'{arguments})"));
        match rng.u8(0..100) {
            0..16 => self.split(slot),
            16..28 => call("start_backfill", one(rng, &["", ", workers => 2", ", workers => 3"])),
            28..36 => call("pause", ""),
            36..46 => call("resume", ""),
            46..58 => {
                let pace = [
                    ", batch_target => '1ms', max_rows_per_second => 3000",
                    ", max_rows_per_second => 0, run_if => ''",
                    ", run_if => 'extract(milliseconds FROM now())::int % 1000 < 700'",
                    ", conflict => 'old'",
                    ", conflict => 'new'",
                    ", unmatched => 'null'",
                    ", unmatched => 'whole'",
                ];
                let of_all = if *is_untidy { 7 } else { 5 };
                call("alter_change", one(rng, &pace[..of_all]))
            }
            58..66 => Verb::new("verify", format!("SELECT diverged FROM zdd.verify('{change}')")),
            66..74 => call("fence", ""),
            74..82 => call("unfence", ""),
            82..88 => call("rollback", ""),
            88..92 => {
                let contract = Contract { slot, accepts: *is_untidy && chance(rng, 70), force: chance(rng, 60) };
                call("start_contract", &contract.arguments(self.stage.acceptance))
            }
            92..96 => call("reset_usage", ""),
            96 | 97 => Verb::new("mismatches", format!("SELECT count(*) FROM zdd.mismatches('{change}')")),
            _ => Verb::new(
                "views",
                "TABLE zdd.progress; TABLE zdd.workers; TABLE zdd.changes; TABLE zdd.usage".to_owned(),
            ),
        }
    }

    /// One that commits as it goes.
    fn procedure(&mut self, slot: usize) -> Verb {
        let change = SLOTS[slot].change;
        let call =
            |name: &'static str, arguments: &str| Verb::new(name, format!("CALL zdd.{name}('{change}'{arguments})"));
        match self.rng.u8(0..10) {
            0..4 => call("backfill", one(&mut self.rng, &["", "", ", fire_triggers => true"])),
            4 | 5 => call("repair", one(&mut self.rng, &[", 'new'", ", 'old'"])),
            6 => call("wait_for", one(&mut self.rng, &[", 'expanded', '3 seconds'", ", 'fenced', '1 second'"])),
            _ => self.contract(slot),
        }
    }

    fn contract(&mut self, slot: usize) -> Verb {
        let Slot { change, is_untidy, .. } = &SLOTS[slot];
        let rng = &mut self.rng;
        let contract = Contract { slot, accepts: *is_untidy && chance(rng, 70), force: chance(rng, 65) };
        let sql = format!("CALL zdd.contract('{change}'{})", contract.arguments(self.stage.acceptance));
        Verb { contract: Some(contract), ..Verb::new("contract", sql) }
    }

    /// Calls a verb. Returns whether it has succeeded.
    fn say(&mut self, verb: &Verb) -> bool {
        let judge = self.stage.judge;
        while self.line.is_none() {
            // The owner, or a superuser.
            let user = if self.number == 0 { "postgres" } else { OWNER };
            let name = format!("operator {}", self.number);
            self.line = Line::open(self.stage, user, &name, "-c statement_timeout=90s -c client_min_messages=warning");
            if self.line.is_none() {
                if judge.is_over() {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let Some(line) = &mut self.line else { return false };
        let used = verb.contract.and_then(|contract| self.stage.models.last_use(contract.slot));
        let sent = Instant::now();
        let found = world::rows(&mut line.client, &verb.sql);
        judge.times(verb.name, sent.elapsed());
        let failure = match found {
            Ok(found) => {
                judge.counts(verb.name, "00000");
                let is_diverging = verb.sql.contains(SLOTS[DIVERGING].change);
                if verb.name == "verify" && !is_diverging && found[0][0].as_deref() != Some("0") {
                    judge.finds("verify counts rows that have diverged", &format!("{found:?}: {}", verb.sql));
                }
                if let Some(contract) = verb.contract {
                    contract.judge(judge, verb, used, sent);
                }
                return true;
            }
            Err(error) => Failure::of(&error),
        };
        judge.counts(verb.name, &failure.state);
        let is_asked_for = match failure.state.as_str() {
            _ if failure.is_end() => line.has_been_struck(judge),
            "57014" => judge.has_cancelled(line.pid, sent),
            // Whoever waits for two tables at once must expect it.
            "40P01" => true,
            "55P03" => failure.text.contains("DETAIL"),
            state => ANSWERS.contains(&state),
        };
        if !is_asked_for {
            let title = format!("{} fails with {}", verb.name, failure.state);
            judge.finds(
                &title,
                &format!("operator {} after {:?}: {}\n{}", self.number, sent.elapsed(), verb.sql, failure.text),
            );
        }
        if failure.is_end() {
            self.line = None;
        }
        false
    }
}

impl Contract {
    fn arguments(self, acceptance: &str) -> String {
        let accepts = if self.accepts { acceptance } else { "" };
        let force = if self.force { ", force => true" } else { "" };
        format!("{accepts}{force}")
    }

    /// A contract has succeeded that was called at `sent`.
    fn judge(self, judge: &Judge, verb: &Verb, used: Option<(Instant, Instant)>, sent: Instant) {
        // There are always rows that it must ask about.
        if SLOTS[self.slot].is_untidy && !self.accepts {
            judge.finds("a contract has not asked about unmatched and lossy rows", &verb.sql);
        }
        // Whenever it looked, it was before now.
        let is_used = used.is_some_and(|(from, to)| from.elapsed() < QUIET && to < sent);
        if !self.force && is_used {
            judge.finds("a contract has passed though the old column was in use", &format!("{used:?}: {}", verb.sql));
        }
    }
}
