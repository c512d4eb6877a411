//! The twin test: the oracle for what pg_zdd promises to applications. Random statements of an old application run on a
//! random table, and in the same order on a twin of it that no change ever touches, while the table goes through the
//! whole life of a change. Neither may differ in anything that an application can see. Then the same for a new application
//! and a table that never had the old column.
//!
//! PG_ZDD_SOAK_SECONDS: for how long (0, the default: some thousands of statements). PG_ZDD_SEED: the one run to play again.

#[path = "twin/author.rs"]
mod author;
#[path = "twin/new_app.rs"]
mod new_app;
#[path = "twin/old_app.rs"]
mod old_app;
#[path = "twin/run.rs"]
mod run;
#[path = "twin/script.rs"]
mod script;
#[path = "twin/shape.rs"]
mod shape;
#[path = "twin/sides.rs"]
mod sides;
#[path = "twin/source.rs"]
mod source;

use std::time::{Duration, Instant};

use pg_zdd_cluster::fastrand::{self, Rng};
use pg_zdd_cluster::session::{Session, shared_cluster};

use run::{Difference, play};
use script::{Stage, Step};

/// How many runs each test makes when nobody asks for more.
const RUNS: u64 = 30;
/// How often a run that failed may be played again to make it shorter.
const SHRINKS: usize = 60;
const SHRINK_TIME: Duration = Duration::from_secs(90);

pub fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

pub fn one_in(rng: &mut Rng, times: u8) -> bool {
    rng.u8(..times) == 0
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A database with pg_zdd and one without.
fn databases() -> [Session; 2] {
    let mut table = Session::new();
    let name = table.text("SELECT current_database()") + "_twin";
    table.run(&format!("CREATE DATABASE {name}"));
    let mut twin = Session::connect(shared_cluster().config(&name, "postgres", "test"));
    for side in [&mut table, &mut twin] {
        // Where they are not to be had, the runs are the same without what is special about them.
        let (has_citext, has_icu) = (side.has_extension("citext"), side.has_icu());
        side.run(if has_citext { "CREATE EXTENSION citext" } else { "CREATE DOMAIN citext AS text" });
        side.run(if has_icu {
            "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        } else {
            "CREATE COLLATION ci FROM \"C\""
        });
        for role in &shape::ROLES[1..] {
            // Roles are the cluster's, and both tests want them.
            side.run(&format!(
                "DO $$ BEGIN CREATE ROLE {role} LOGIN IN ROLE pg_read_server_files;
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            ));
        }
    }
    [table, twin]
}

/// Plays runs, and tells of the first that fails in as few steps as will do.
fn test(name: &str, stage: impl Fn(&mut Rng) -> Stage) {
    let soak = Duration::from_secs(setting("PG_ZDD_SOAK_SECONDS").unwrap_or(0));
    let replayed = setting("PG_ZDD_SEED");
    // The same runs each time, unless more are asked for.
    let first = replayed.unwrap_or_else(|| if soak.is_zero() { 300 } else { fastrand::u64(..1 << 40) });
    let started = Instant::now();
    let (mut databases, mut seed, mut statements) = (databases(), first, 0);
    loop {
        let stage = stage(&mut Rng::with_seed(seed));
        match play(&mut databases, &stage, &stage.steps) {
            Ok(count) => statements += count,
            Err(difference) => {
                eprintln!("{name}: PG_ZDD_SEED={seed}, step {}: {}", difference.step, difference.text);
                let (steps, difference) = shrink(&mut databases, &stage, difference);
                panic!(
                    "{name}: PG_ZDD_SEED={seed}\n{}\n\nstep {}: {}\n",
                    stage.describe(&steps),
                    difference.step,
                    difference.text
                );
            }
        }
        seed += 1;
        let enough = if soak.is_zero() { seed - first >= RUNS } else { started.elapsed() >= soak };
        if replayed.is_some() || enough {
            break;
        }
    }
    eprintln!("{name}: seeds from {first}, {} runs, {statements} statements in {:?}", seed - first, started.elapsed());
}

/// Fewer steps that still end in a difference, and that difference.
fn shrink(databases: &mut [Session; 2], stage: &Stage, found: Difference) -> (Vec<Step>, Difference) {
    let deadline = Instant::now() + SHRINK_TIME;
    let mut steps = stage.steps[..=found.step].to_vec();
    let mut found = found;
    let mut tries = 0;
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < steps.len() && tries < SHRINKS && Instant::now() < deadline {
            let shorter: Vec<Step> = steps
                .iter()
                .enumerate()
                .filter(|(index, step)| !(from..from + size).contains(index) || matches!(step, Step::Change(_)))
                .map(|(_, step)| step.clone())
                .collect();
            tries += 1;
            match play(databases, stage, &shorter) {
                Err(difference) if shorter.len() < steps.len() => {
                    steps = shorter[..=difference.step].to_vec();
                    found = difference;
                }
                _ => from += size,
            }
        }
        size /= 2;
    }
    (steps, found)
}

#[test]
fn an_old_application_notices_nothing() {
    test("old application", old_app::stage);
}

#[test]
fn a_new_application_notices_nothing() {
    test("new application", new_app::stage);
}
