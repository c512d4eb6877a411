//! What happened when: one line a phase, with both versions' statements.

use std::time::{Duration, Instant};

use pg_zdd_cluster::load::{Record, Summary};

struct Phase {
    name: String,
    /// How many instances of either version ran when it ended.
    instances: (usize, usize),
    from: Instant,
    to: Instant,
}

pub struct Timeline {
    start: Instant,
    phases: Vec<Phase>,
    old: Record,
    new: Record,
}

impl Timeline {
    pub fn new(old: Record, new: Record) -> Timeline {
        Timeline { start: Instant::now(), phases: Vec::new(), old, new }
    }

    /// A line of the story, with the time since its beginning.
    pub fn tell(&self, text: &str) {
        let at = self.start.elapsed().as_secs_f64();
        for (number, line) in text.lines().enumerate() {
            match number {
                0 => println!("{at:6.1} s  {line}"),
                _ => println!("          {line}"),
            }
        }
    }

    pub fn add(&mut self, name: &str, from: Instant, instances: (usize, usize)) {
        self.phases.push(Phase { name: name.to_owned(), instances, from, to: Instant::now() });
    }

    /// Prints the table and returns how many errors there were.
    pub fn print(&self) -> usize {
        let rule = "-".repeat(98);
        println!("\n{:<38}{:>8}   {:^23}   {:^23}", "", "", "version 1", "version 2");
        println!(
            "{:<38}{:>8}   {:>4}{:>9}{:>10}   {:>4}{:>9}{:>10}   {:>7}",
            "phase", "took", "inst", "stmts", "errors", "inst", "stmts", "errors", "longest"
        );
        println!("{rule}---------");
        for phase in &self.phases {
            let old = self.old.between(phase.from, phase.to);
            let new = self.new.between(phase.from, phase.to);
            line(&phase.name, phase.to - phase.from, Some(phase.instances), old, new);
        }
        println!("{rule}---------");
        let end = Instant::now();
        let (old, new) = (self.old.between(self.start, end), self.new.between(self.start, end));
        let took: Duration = self.phases.iter().map(|phase| phase.to - phase.from).sum();
        line("total", took, None, old, new);
        for failure in self.old.failures().iter().chain(&self.new.failures()).take(10) {
            println!("{:6.1} s  {}", (failure.at - self.start).as_secs_f64(), failure.text);
        }
        old.errors + new.errors
    }
}

fn line(name: &str, took: Duration, instances: Option<(usize, usize)>, old: Summary, new: Summary) {
    let shown = |count: Option<usize>| count.map_or(String::new(), |count| count.to_string());
    println!(
        "{name:<38}{:>6.1} s   {:>4}{:>9}{:>10}   {:>4}{:>9}{:>10}   {:>4.0} ms",
        took.as_secs_f64(),
        shown(instances.map(|both| both.0)),
        old.statements,
        old.errors,
        shown(instances.map(|both| both.1)),
        new.statements,
        new.errors,
        old.longest.max(new.longest).as_secs_f64() * 1000.0,
    );
}
