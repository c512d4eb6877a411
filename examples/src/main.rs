//! `pg_zdd_examples name…` (`make example NAME=canary`): plays ways to deploy the new version of an application.

use std::process::ExitCode;

use pg_zdd_examples::{EXAMPLES, Pace};

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<_> = EXAMPLES.iter().filter(|(name, _)| wanted.iter().any(|wanted| wanted == name)).collect();
    if chosen.len() != wanted.len() || chosen.is_empty() {
        let names: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: pg_zdd_examples name…, of: {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for (name, play) in chosen {
        if let Err(error) = play(Pace::Watch) {
            eprintln!("{name} failed: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
