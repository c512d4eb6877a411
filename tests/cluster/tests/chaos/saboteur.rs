//! Cancels and ends sessions and workers, and brings the server down.

use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Stop, wait_until};

use crate::world;
use crate::{PATIENCE, Stage};

/// Between two crashes of the server.
const BETWEEN_CRASHES: Duration = Duration::from_secs(11);

const OPERATORS: &str = "application_name LIKE 'operator%'";
const APPLICATIONS: &str = "application_name LIKE 'app %'";
const WORKERS: &str = "backend_type LIKE 'pg_zdd%'";
const OWNER: &str = "application_name = 'owner'";

pub struct Saboteur<'s> {
    stage: &'s Stage<'s>,
    rng: Rng,
    client: Option<Client>,
}

impl<'s> Saboteur<'s> {
    pub fn new(stage: &'s Stage<'s>, rng: Rng) -> Self {
        Saboteur { stage, rng, client: None }
    }

    pub fn run(mut self) {
        let judge = self.stage.judge;
        let mut next_crash = Instant::now() + BETWEEN_CRASHES;
        while !judge.is_over() {
            std::thread::sleep(Duration::from_millis(self.rng.u64(50..400)));
            let is_crash = Instant::now() > next_crash;
            // Chosen in any case: the clock has no part in what comes later.
            let (dice, crash, which) = (self.rng.u8(0..100), self.rng.bool(), self.rng.u32(..));
            if is_crash {
                if crash {
                    self.restart()
                } else {
                    self.kill(which)
                }
                next_crash = Instant::now() + BETWEEN_CRASHES;
                continue;
            }
            match dice {
                0..35 => self.strike(OPERATORS, which, false),
                35..50 => self.strike(OPERATORS, which, true),
                50..65 => self.strike(WORKERS, which, true),
                65..75 => self.strike(WORKERS, which, false),
                75..90 => self.strike(APPLICATIONS, which, true),
                _ => self.strike(OWNER, which, dice % 2 == 0),
            }
        }
    }

    /// One of the backends of a kind.
    fn find(&mut self, whom: &str, which: u32) -> Option<i32> {
        if self.client.is_none() {
            self.client = self.stage.cluster.connect(world::DATABASE, "postgres", "saboteur").ok();
        }
        let client = self.client.as_mut()?;
        match world::rows(client, &format!("SELECT pid FROM pg_stat_activity WHERE {whom} ORDER BY backend_start")) {
            Ok(found) if found.is_empty() => None,
            Ok(found) => found[which as usize % found.len()][0].as_ref()?.parse().ok(),
            Err(_) => {
                self.client = None;
                None
            }
        }
    }

    fn strike(&mut self, whom: &str, which: u32, ends: bool) {
        let judge = self.stage.judge;
        let Some(pid) = self.find(whom, which) else { return };
        let how = if ends { "terminate" } else { "cancel" };
        if ends {
            judge.strikes(pid);
        } else {
            judge.cancels(pid);
        }
        judge.counts("saboteur", how);
        if let Some(client) = &mut self.client {
            let _ = client.batch_execute(&format!("SELECT pg_{how}_backend({pid})"));
        }
        if !ends {
            // It may have been late, and the statement after it is hit.
            judge.cancels(pid);
        }
    }

    /// Kills one process: the server ends all others and recovers.
    fn kill(&mut self, which: u32) {
        let whom = [OPERATORS, WORKERS, APPLICATIONS][which as usize % 3];
        let Some(pid) = self.find(whom, which / 3) else { return };
        let judge = self.stage.judge;
        judge.strikes(pid);
        judge.crashes();
        judge.counts("saboteur", "kill");
        let _ = self.stage.cluster.kill9_backend(pid);
        // The postmaster hears of it in a moment.
        let _ = wait_until("the server is down", PATIENCE, || {
            Ok(self.client.as_mut().is_none_or(|client| client.batch_execute("SELECT").is_err()))
        });
        self.await_server();
    }

    fn restart(&mut self) {
        let judge = self.stage.judge;
        judge.crashes();
        judge.counts("saboteur", "restart");
        self.client = None;
        if let Err(error) = self.stage.cluster.restart(Stop::Immediate) {
            judge.finds("the server does not start again", &error.to_string());
            judge.ends();
        }
        self.await_server();
    }

    fn await_server(&mut self) {
        let back = wait_until("the server is back", PATIENCE, || {
            self.client = self.stage.cluster.connect(world::DATABASE, "postgres", "saboteur").ok();
            Ok(self.client.is_some())
        });
        let judge = self.stage.judge;
        if let Err(error) = back {
            judge.finds("the server does not come back", &error.to_string());
            judge.ends();
        }
        judge.crashes();
    }
}
