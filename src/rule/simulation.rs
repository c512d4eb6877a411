//! Finds the captures of a regex by following all its paths through the text at once.
//!
//! This is for what the [`matcher`](super::matcher) does not know or gives up on, if the text is too long for the
//! [`backtracker`](super::backtracker). It takes time in proportion to the length of the text times the size of the regex, which can be seconds. So after every so
//! many steps it asks whether the work is still wanted. The answer may be to unwind: each search starts afresh.
//!
//! A thread is a path that has come as far as the current position: the NFA state in which it waits for a byte, and its
//! captures. Threads stand in order of preference. Of two that come to the same state only the first goes on, for the
//! other could do no better from there. So there are never more threads than states, and it is known from the regex how
//! much memory a search takes.

use std::collections::TryReserveError;
use std::mem;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::primitives::StateID;

use super::Exceeded;

/// How many steps there are between two interrupts: some hundred microseconds, milliseconds at most.
const STEPS: usize = 1 << 16;

/// How many captures are copied in the time of a step.
const CAPTURES_PER_STEP: usize = 16;

/// More memory than this is given back after each search.
const KEPT_MEMORY: usize = 1 << 20;

/// A capture that is not on the path.
const NONE: usize = usize::MAX;

/// A compiled regex, to be simulated.
#[derive(Debug)]
pub struct Simulation {
    nfa: NFA,
    /// Per slot of the NFA the index of the capture that is wanted of it.
    wanted: Box<[Option<usize>]>,
    sizes: Sizes,
    /// Kept, so that most searches allocate nothing.
    search: Option<Box<Search>>,
}

/// How much there can be of what a search needs.
#[derive(Debug)]
struct Sizes {
    states: usize,
    threads: usize,
    /// Per thread: two for each group.
    captures: usize,
    tasks: usize,
}

impl Simulation {
    /// Prepares the search for the captures of these groups, each of which is there at most once.
    pub fn new(nfa: NFA, groups: &[usize]) -> Simulation {
        let slots = nfa.group_info().slot_len();
        let index = |slot| groups.iter().position(|&group| group == slot / 2).map(|index| 2 * index + slot % 2);
        let sizes = Sizes::new(&nfa, 2 * groups.len());
        Simulation { wanted: (0..slots).map(index).collect(), sizes, search: None, nfa }
    }

    /// How many bytes a search takes, about.
    pub fn memory(&self) -> usize {
        self.sizes.memory()
    }

    /// Whether there is a match, of which then one capture per wanted group is added to `captures`. They are those of
    /// the regex crate. `interrupt` is called every few milliseconds and may unwind.
    pub fn captures<'t>(
        &mut self,
        text: &'t str,
        captures: &mut impl Extend<Option<&'t str>>,
        interrupt: &mut dyn FnMut(),
    ) -> Result<bool, Exceeded> {
        // When an interrupt unwinds, what it leaves behind goes with it.
        let mut search = match self.search.take() {
            Some(search) => search,
            None => Box::new(Search::new(&self.sizes).map_err(|_| Exceeded::Memory { bytes: self.sizes.memory() })?),
        };
        let query = Query { nfa: &self.nfa, wanted: &self.wanted, text };
        let matched = search.run(&query, &mut Pulse { steps: 0, interrupt });
        if matched {
            captures.extend(search.best.chunks_exact(2).map(|group| match *group {
                [start, end] => text.get(start..end),
                _ => None,
            }));
        }
        if self.sizes.memory() <= KEPT_MEMORY {
            self.search = Some(search);
        }
        Ok(matched)
    }
}

impl Sizes {
    fn new(nfa: &NFA, captures: usize) -> Sizes {
        let mut sizes = Sizes { states: nfa.states().len(), threads: 0, captures, tasks: 1 };
        for state in nfa.states() {
            match state {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Match { .. } => {
                    sizes.threads += 1;
                }
                State::Union { alternates } => sizes.tasks += alternates.len(),
                State::BinaryUnion { .. } => sizes.tasks += 2,
                State::Capture { .. } => sizes.tasks += 1,
                State::Look { .. } | State::Fail => {}
            }
        }
        sizes
    }

    fn memory(&self) -> usize {
        let thread = size_of::<StateID>().saturating_add(self.captures.saturating_mul(size_of::<usize>()));
        (self.threads.saturating_mul(2).saturating_mul(thread))
            .saturating_add(self.states * size_of::<u64>())
            .saturating_add(self.tasks * size_of::<Task>())
    }
}

/// What is being searched for, and where.
struct Query<'s> {
    nfa: &'s NFA,
    wanted: &'s [Option<usize>],
    text: &'s str,
}

/// Calls back after every so many steps.
struct Pulse<'i> {
    steps: usize,
    interrupt: &'i mut dyn FnMut(),
}

impl Pulse<'_> {
    fn step(&mut self, steps: usize) {
        self.steps += steps;
        if self.steps >= STEPS {
            self.steps = 0;
            (self.interrupt)();
        }
    }
}

/// The memory of a search. Nothing in it grows: it is allocated for all that there can be.
#[derive(Debug)]
struct Search {
    threads: Threads,
    /// Those at the position after that.
    next: Threads,
    /// The captures of the best match so far.
    best: Vec<usize>,
    explorer: Explorer,
}

/// The threads at one position, the preferred ones first.
#[derive(Debug)]
struct Threads {
    states: Vec<StateID>,
    captures: Vec<usize>,
}

/// Follows the empty transitions of the NFA.
#[derive(Debug)]
struct Explorer {
    /// Per state the last round that came by.
    visited: Vec<u64>,
    /// One for each position of each search.
    round: u64,
    tasks: Vec<Task>,
    /// The captures on the current path.
    path: Vec<usize>,
}

#[derive(Debug)]
enum Task {
    Explore(StateID),
    /// To set a capture back to what it was on the path so far.
    Restore {
        capture: usize,
        position: usize,
    },
}

/// An empty vector with room for so many elements.
fn room<T>(elements: usize) -> Result<Vec<T>, TryReserveError> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(elements)?;
    Ok(vector)
}

impl Search {
    fn new(sizes: &Sizes) -> Result<Search, TryReserveError> {
        let threads = || {
            let captures = room(sizes.threads.saturating_mul(sizes.captures))?;
            Ok::<_, TryReserveError>(Threads { states: room(sizes.threads)?, captures })
        };
        let mut visited = room(sizes.states)?;
        visited.resize(sizes.states, 0);
        let (mut path, mut best) = (room(sizes.captures)?, room(sizes.captures)?);
        path.resize(sizes.captures, NONE);
        best.resize(sizes.captures, NONE);
        let explorer = Explorer { visited, round: 0, tasks: room(sizes.tasks)?, path };
        Ok(Search { threads: threads()?, next: threads()?, best, explorer })
    }

    /// Whether there is a match, whose captures then are the best.
    fn run(&mut self, query: &Query<'_>, pulse: &mut Pulse<'_>) -> bool {
        let anchored = query.nfa.is_always_start_anchored();
        let mut matched = false;
        self.threads.clear();
        self.explorer.round += 1;
        for at in 0..=query.text.len() {
            // A match that starts further to the left is preferred. None starts within a character.
            if !matched && (at == 0 || !anchored) && query.text.is_char_boundary(at) {
                self.explorer.path.fill(NONE);
                self.explorer.explore(query, query.nfa.start_anchored(), at, &mut self.threads, pulse);
            }
            if self.threads.states.is_empty() && (matched || anchored) {
                break;
            }
            self.explorer.round += 1;
            matched |= self.step(query, at, pulse);
            mem::swap(&mut self.threads, &mut self.next);
        }
        matched
    }

    /// Lets the threads go on over the byte at a position. Returns whether one of them has matched.
    fn step(&mut self, query: &Query<'_>, at: usize, pulse: &mut Pulse<'_>) -> bool {
        self.next.clear();
        let captures = self.best.len();
        for (index, &state) in self.threads.states.iter().enumerate() {
            pulse.step(1);
            let of_thread = &self.threads.captures[index * captures..(index + 1) * captures];
            let next = match (query.nfa.state(state), query.text.as_bytes().get(at)) {
                (State::Match { .. }, _) => {
                    self.best.copy_from_slice(of_thread);
                    // The threads that follow would only find what is not preferred.
                    return true;
                }
                (State::ByteRange { trans }, Some(&byte)) if trans.matches_byte(byte) => Some(trans.next),
                (State::Sparse(transitions), Some(&byte)) => transitions.matches_byte(byte),
                (State::Dense(transitions), Some(&byte)) => transitions.matches_byte(byte),
                _ => None,
            };
            if let Some(next) = next {
                self.explorer.path.copy_from_slice(of_thread);
                self.explorer.explore(query, next, at + 1, &mut self.next, pulse);
            }
        }
        false
    }
}

impl Threads {
    fn clear(&mut self) {
        self.states.clear();
        self.captures.clear();
    }
}

impl Explorer {
    /// Adds the threads at a position that come from a state by empty transitions alone, unless they have been added in
    /// this round. They begin with the captures in `path`.
    fn explore(&mut self, query: &Query<'_>, from: StateID, at: usize, threads: &mut Threads, pulse: &mut Pulse<'_>) {
        self.tasks.clear();
        self.tasks.push(Task::Explore(from));
        while let Some(task) = self.tasks.pop() {
            let id = match task {
                Task::Explore(id) => id,
                Task::Restore { capture, position } => {
                    self.path[capture] = position;
                    continue;
                }
            };
            pulse.step(1);
            if mem::replace(&mut self.visited[id], self.round) == self.round {
                continue;
            }
            match query.nfa.state(id) {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Match { .. } => {
                    pulse.step(self.path.len() / CAPTURES_PER_STEP);
                    threads.states.push(id);
                    threads.captures.extend_from_slice(&self.path);
                }
                State::Fail => {}
                State::Look { look, next } => {
                    if query.nfa.look_matcher().matches(*look, query.text.as_bytes(), at) {
                        self.tasks.push(Task::Explore(*next));
                    }
                }
                State::Capture { next, slot, .. } => {
                    if let Some(capture) = query.wanted[*slot] {
                        self.tasks.push(Task::Restore { capture, position: self.path[capture] });
                        self.path[capture] = at;
                    }
                    self.tasks.push(Task::Explore(*next));
                }
                State::BinaryUnion { alt1, alt2 } => {
                    self.tasks.extend([Task::Explore(*alt2), Task::Explore(*alt1)]);
                }
                State::Union { alternates } => {
                    pulse.step(alternates.len());
                    self.tasks.extend(alternates.iter().rev().map(|&id| Task::Explore(id)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use proptest::prelude::*;
    use regex::Regex;

    use super::*;
    use crate::rule::matcher::tests::{case, check_case, expected, text};
    use crate::rule::split::compile;

    /// Many paths stay alive.
    const WORDS: &str = r"^(?<a>(\w+\b\W*)+)x(?<b>.*)$";

    fn simulation(regex: &str, groups: &[usize]) -> Simulation {
        Simulation::new(compile(regex).unwrap(), groups)
    }

    /// The captures, or `None` if there is no match.
    fn captures<'t>(simulation: &mut Simulation, text: &'t str) -> Option<Vec<Option<&'t str>>> {
        let mut captures = Vec::new();
        simulation.captures(text, &mut captures, &mut || ()).unwrap().then_some(captures)
    }

    #[track_caller]
    fn check(regex: &str, texts: &[&str]) {
        let crates = Regex::new(regex).unwrap();
        let groups: Vec<usize> = (0..crates.captures_len()).collect();
        let mut simulation = simulation(regex, &groups);
        for text in texts {
            assert_eq!(captures(&mut simulation, text), expected(&crates, &groups, text), "{regex} on {text:?}");
        }
    }

    #[test]
    fn words_and_lines() {
        check(WORDS, &["", "x", "ax", "Straße 5x1", "axbxc", "a\nx", "ß x €x"]);
        check(r"\b(\w)\w*\b", &["", " ", "ß", "€ é1 a", "-a-"]);
        check(r"\B", &["", "a", "ab", "ß", "ßé", "€", "a€", "😀"]);
        check(r"(?-u:\B)", &["", "a", "ab", "ß", "aß", "€a", "😀"]);
        check(r"(?-u:\b)\w+", &["ßa", "aß", "é"]);
        check(r"\b{start}(\w+)\b{end}|\b{start-half}()\b{end-half}", &["", "a", " ab ", "€", "ßa€"]);
        check(r"(?m)^(a?)$", &["", "\n", "b\na", "b\r\na\r\n", "ab\n\n"]);
        check(r"(?mR)^(a?)$", &["", "\n", "b\r\na\r\n", "b\r\r\n", "ab\r"]);
        check(r"\Aa|b\z|^c$", &["", "ca", "ab", "bab", "c", "c\n"]);
    }

    #[test]
    fn the_leftmost_first_match_wins() {
        check(r"(\d)\d*|x(y)", &["ßa12b3", "1xy", "xxy1", "xxß", ""]);
        check("(a|ab)(c|bcd)?", &["abcd", "ab", "xabc", "ß"]);
        check("(a*?)(a*)", &["", "aa", "ba"]);
        check("(?:(a)|(b))*", &["abab", "ba", "cab", ""]);
        for regex in ["(a*)*", "(a*)+", "(|a)+", "(a|)+", "(?:(a)?|(b))*", "((a*)*b)*?c", "(?:|(a)|(b)){3}", "(^|a)*$"]
        {
            check(regex, &["", "a", "aa", "ab", "ba", "abaab", "abac", "c"]);
        }
    }

    #[test]
    fn only_wanted_groups_are_given_in_their_order() {
        let mut address = simulation(r"^(?<a>.+?)\b(?:\s+(?<b>\d\S*))?$", &[2, 1]);
        assert_eq!(captures(&mut address, "Elm Street 12a"), Some(vec![Some("12a"), Some("Elm Street")]));
        assert_eq!(captures(&mut address, "Straße"), Some(vec![None, Some("Straße")]));
        assert_eq!(captures(&mut simulation("a", &[]), "ba"), Some(vec![]));
        assert_eq!(captures(&mut simulation("a", &[]), "b"), None);
    }

    #[test]
    fn it_interrupts_all_the_time_and_costs_what_it_has_cost() {
        let long = text("ab ", 20_000);
        for regex in [WORDS, "^(?:a|b|\\s)*(?<a>a)(?:a|b|\\s){200}$", r"(?<a>\w{10}){5}"] {
            let (mut calls, mut captures) = (0, Vec::new());
            let mut simulation = simulation(regex, &[1]);
            simulation.captures(&long, &mut captures, &mut || calls += 1).unwrap();
            let visits = calls * STEPS / long.len();
            assert!(calls > 0 && visits <= 2 * simulation.sizes.states, "{regex}: {visits} visits for each byte");
        }
    }

    #[test]
    fn one_position_of_a_large_regex_is_interrupted_too() {
        let mut large = simulation("(?:a?){30000}b", &[0]);
        let mut calls = 0;
        large.captures("aaa", &mut Vec::new(), &mut || calls += 1).unwrap();
        assert!(calls >= 3, "{calls}");
    }

    #[test]
    fn an_interrupt_that_unwinds_does_no_harm() {
        let long = text("ab ", 20_000);
        let mut words = simulation(WORDS, &[1, 3]);
        for most in [0, 1] {
            let mut calls = 0;
            let interrupted = catch_unwind(AssertUnwindSafe(|| {
                let mut interrupt = || {
                    calls += 1;
                    if calls > most {
                        resume_unwind(Box::new("interrupted"));
                    }
                };
                words.captures(&long, &mut Vec::new(), &mut interrupt)
            }));
            assert!(interrupted.is_err());
            assert_eq!(captures(&mut words, "Elm x 5"), Some(vec![Some("Elm "), Some(" 5")]));
        }
    }

    #[test]
    fn a_search_needs_no_more_than_it_has() {
        for (regex, groups) in [(WORDS, vec![1, 2]), ("(?:a?){30000}b", vec![0]), (r"(?:(\w)|\b){40}", vec![0, 1])] {
            let simulation = simulation(regex, &groups);
            let text = text("ab ", 200);
            let query = Query { nfa: &simulation.nfa, wanted: &simulation.wanted, text: &text };
            let capacities = |search: &Search| {
                let threads = |threads: &Threads| [threads.states.capacity(), threads.captures.capacity()];
                (threads(&search.threads), threads(&search.next), search.explorer.tasks.capacity())
            };
            let mut search = Search::new(&simulation.sizes).unwrap();
            let before = capacities(&search);
            search.run(&query, &mut Pulse { steps: 0, interrupt: &mut || () });
            assert_eq!(capacities(&search), before, "{regex}");
        }
    }

    #[test]
    fn much_memory_is_not_kept() {
        for (regex, kept) in [("^(?<a>a)b", true), ("(?:a?){30000}b", false)] {
            let mut simulation = simulation(regex, &[0]);
            captures(&mut simulation, "aab");
            assert_eq!(simulation.search.is_some(), kept, "{regex}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn captures_equal_those_of_the_regex_crate(
            case in case(&[
                r"\b", r"\b", r"\B", r"(?-u:\b)", r"(?-u:\B)", "(?m:^)", "(?m:$)", "(?mR:^)", "(?mR:$)", r"\b{start}",
                r"\b{end}", r"\b{start-half}", r"\b{end-half}",
            ]),
        ) {
            check_case(&case, simulation, captures)?;
        }

        #[test]
        fn any_text_will_do(text in ".*") {
            let regex = r"(?<a>\w+)\b\W*(?<b>\S*?)(?<c>\s|$)";
            let mut simulation = simulation(regex, &[0, 1, 2, 3]);
            prop_assert_eq!(captures(&mut simulation, &text), expected(&Regex::new(regex).unwrap(), &[0, 1, 2, 3], &text));
        }
    }
}
