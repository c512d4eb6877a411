//! Finds the captures of a regex by one table lookup per byte.
//!
//! The matcher is a tagged DFA that reads the text backwards and is determinised lazily. Reading backwards, it knows at
//! every position which states of the NFA are alive: from which the rest of the text leads to a match. Leftmost-first
//! means to take the first alternative that is alive, everywhere. So every state has one path to go, hence one list of
//! captures, and paths never compete.
//!
//! A [`Configuration`] is the set of the states that are alive, each with the registers that hold its captures. All
//! captures that a step adds have the same position. It therefore stores at most one register, which it chooses among
//! those that no capture needs any more, so that none is ever copied. A last step, before the first byte, decides where
//! the match starts: it follows the unanchored prefix of the NFA, which is a lazy `.*?`.
//!
//! What is built lazily is bounded in memory, and building is rationed by the bytes that are matched: time is linear in
//! the length of the text, for any regex and any text.

use std::collections::HashMap;
use std::rc::Rc;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::alphabet::ByteClasses;
use regex_automata::util::look::Look;
use regex_automata::util::primitives::{SmallIndex, StateID};

/// About how many bytes the lazily built part of a matcher may take.
const MEMORY_LIMIT: usize = 1 << 20;

/// How much may be built at once, in visits of NFA states. This takes some milliseconds and is enough for all that most
/// regexes ever need. Every byte that is matched earns one visit more.
const CREDIT_LIMIT: usize = 1 << 20;

/// How many bytes are read between two interrupts, in less than a millisecond.
const READ_AT_ONCE: usize = 1 << 16;

/// No step is begun with less, so that all but the largest are finished.
const CREDIT_RESERVE: usize = 1 << 14;

/// What building a step costs in any case.
const STEP_COST: usize = 64;

/// The row of the configuration at the end of the text is the first.
const END: u32 = 0;

/// The row that a step leads to as long as it has not been built.
const UNKNOWN: u32 = u32::MAX;

/// The register of a capture that is not on the path, and of a step that stores nothing.
const NONE: u8 = 0;

/// The register of a capture at the position of the step that is being built, until one has been found for it.
const HERE: u8 = u8::MAX;

/// A compiled regex, with all that has been built of its DFA so far.
#[derive(Debug)]
pub struct Matcher {
    nfa: NFA,
    /// The groups whose captures are wanted.
    groups: Box<[usize]>,
    classes: ByteClasses,
    /// A byte of every class.
    representatives: Box<[u8]>,
    dfa: Dfa,
    resolver: Resolver,
    /// The positions of the captures. The first register is a sink.
    registers: Box<[usize; 256]>,
    /// How much more may be built.
    credit: usize,
}

/// A transition of the DFA, backwards over one byte.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Where in the table the row of the next configuration begins.
    next: u32,
    /// The register to store the position after the byte in.
    store: u8,
}

/// A state of the DFA.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Configuration {
    /// Whether this is the end of the text.
    end: bool,
    /// The NFA states that are alive, of those that consume a byte, in ascending order.
    alive: Vec<StateID>,
    /// For each of them the registers of its captures, two per group.
    registers: Vec<u8>,
}

/// A transition of the NFA, over one byte.
#[derive(Debug)]
struct Transition {
    from: StateID,
    to: StateID,
    /// The index of the first transition to the same state.
    twin: usize,
}

/// The transitions on the bytes of one class, in ascending order of the states they come from.
type Transitions = Rc<[Transition]>;

/// What has been built of the DFA.
#[derive(Debug, Default)]
struct Dfa {
    /// A row per configuration, with a step per class.
    table: Vec<Step>,
    /// The length of a row is `1 << stride2`.
    stride2: usize,
    configurations: Vec<Rc<Configuration>>,
    rows: HashMap<Rc<Configuration>, u32>,
    /// Per class, as far as they were needed.
    transitions: Vec<Option<Transitions>>,
    /// In bytes.
    memory: usize,
}

impl Dfa {
    fn new(classes: &ByteClasses) -> Dfa {
        let transitions = vec![None; classes.alphabet_len()];
        let mut dfa = Dfa { stride2: classes.stride2(), transitions, ..Dfa::default() };
        dfa.row(Configuration { end: true, ..Configuration::default() });
        dfa
    }

    fn configuration(&self, row: u32) -> &Rc<Configuration> {
        &self.configurations[row as usize >> self.stride2]
    }

    /// Where the row of the configuration begins.
    fn row(&mut self, configuration: Configuration) -> u32 {
        if let Some(&row) = self.rows.get(&configuration) {
            return row;
        }
        // Far from an overflow, for the table's memory is limited.
        let row = self.table.len() as u32;
        let unknown = Step { next: UNKNOWN, store: NONE };
        self.table.resize(self.table.len() + (1 << self.stride2), unknown);
        self.memory += (size_of::<Step>() << self.stride2)
            + 2 * size_of::<Configuration>()
            + size_of_val(configuration.alive.as_slice())
            + configuration.registers.len();
        let configuration = Rc::new(configuration);
        self.configurations.push(Rc::clone(&configuration));
        self.rows.insert(configuration, row);
        row
    }
}

/// Finds paths over the empty transitions of the NFA.
#[derive(Debug)]
struct Resolver {
    /// Per state the last search that came by.
    visited: Vec<u64>,
    search: u64,
    /// What is left to try, with the length of the path to it.
    stack: Vec<(StateID, usize)>,
    /// The slots of the captures on the path.
    path: Vec<SmallIndex>,
}

/// What a path leads to.
enum Goal {
    Match,
    /// The index of a state that is alive.
    Alive(usize),
}

impl Resolver {
    /// Goes depth-first, the first alternative first, to the first state that is alive, and leaves the captures on the
    /// way in `path`. The outer `Option` is `None` when the credit is used up.
    fn resolve(
        &mut self,
        nfa: &NFA,
        from: StateID,
        configuration: &Configuration,
        start: bool,
        credit: &mut usize,
    ) -> Option<Option<Goal>> {
        self.search += 1;
        self.path.clear();
        self.stack.clear();
        self.stack.push((from, 0));
        while let Some((id, length)) = self.stack.pop() {
            charge(credit, 1)?;
            self.path.truncate(length);
            if std::mem::replace(&mut self.visited[id], self.search) == self.search {
                continue;
            }
            match nfa.state(id) {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => {
                    if let Ok(index) = configuration.alive.binary_search(&id) {
                        return Some(Some(Goal::Alive(index)));
                    }
                }
                State::Match { .. } => return Some(Some(Goal::Match)),
                State::Fail => {}
                State::Capture { next, slot, .. } => {
                    self.path.push(*slot);
                    self.stack.push((*next, self.path.len()));
                }
                State::Look { look, next } => {
                    let holds = match look {
                        Look::Start => start,
                        Look::End => configuration.end,
                        _ => false,
                    };
                    if holds {
                        self.stack.push((*next, length));
                    }
                }
                State::BinaryUnion { alt1, alt2 } => self.stack.extend([(*alt2, length), (*alt1, length)]),
                State::Union { alternates } => {
                    charge(credit, alternates.len())?;
                    self.stack.extend(alternates.iter().rev().map(|&id| (id, length)));
                }
            }
        }
        Some(None)
    }
}

/// `None` if there is less credit than that, which is then used up.
fn charge(credit: &mut usize, cost: usize) -> Option<()> {
    let left = credit.checked_sub(cost);
    *credit = left.unwrap_or(0);
    left.map(|_| ())
}

impl Matcher {
    /// Prepares to match a regex, for the captures of the given groups only. `None` if it is beyond this matcher: with
    /// word boundaries or the starts and ends of lines.
    pub fn new(nfa: NFA, groups: &[usize]) -> Option<Matcher> {
        if !nfa.look_set_any().iter().all(|look| matches!(look, Look::Start | Look::End)) {
            return None;
        }
        let classes = *nfa.byte_classes();
        Some(Matcher {
            groups: groups.into(),
            classes,
            representatives: classes.representatives(0..=255).filter_map(|unit| unit.as_u8()).collect(),
            dfa: Dfa::new(&classes),
            resolver: Resolver { visited: vec![0; nfa.states().len()], search: 0, stack: vec![], path: vec![] },
            nfa,
            registers: Box::new([0; 256]),
            credit: CREDIT_LIMIT,
        })
    }

    /// Whether there is a match, of which then one capture per wanted group is added to `captures`. They are those of
    /// the regex crate. `None` if the matcher gives up, for it would have to build too much. `interrupt` is called every
    /// few milliseconds and may unwind.
    pub fn captures<'t>(
        &mut self,
        text: &'t str,
        captures: &mut impl Extend<Option<&'t str>>,
        interrupt: &mut dyn FnMut(),
    ) -> Option<bool> {
        self.credit = self.credit.saturating_add(text.len()).min(CREDIT_LIMIT);
        let mut row = END;
        let mut unread = text.as_bytes();
        while !unread.is_empty() {
            let (before, piece) = unread.split_at(unread.len().saturating_sub(READ_AT_ONCE));
            let left;
            (row, left) = self.run(row, piece, before.len());
            unread = &unread[..before.len() + left];
            if left == 0 {
                if !before.is_empty() {
                    interrupt();
                }
            } else if let Some((&byte, before)) = unread.split_last() {
                row = self.step(row, self.classes.get(byte).into(), unread.len(), interrupt)?;
                unread = before;
            }
        }
        row = self.step(row, self.start_class(), 0, interrupt)?;
        let configuration = self.dfa.configuration(row);
        let position = |register| (register != NONE).then(|| self.registers[usize::from(register)]);
        captures.extend(configuration.registers.chunks_exact(2).map(|group| match *group {
            [start, end] => Some(&text[position(start)?..position(end)?]),
            _ => None,
        }));
        Some(!configuration.alive.is_empty())
    }

    /// The class of the step before the first byte. None of the bytes has it.
    fn start_class(&self) -> usize {
        self.representatives.len()
    }

    /// Reads bytes, which begin at a position, as long as the steps are known. Returns how many are left. This is where
    /// the time goes.
    fn run(&mut self, mut row: u32, mut unread: &[u8], start: usize) -> (u32, usize) {
        let (table, registers) = (self.dfa.table.as_slice(), &mut *self.registers);
        while let Some((&byte, before)) = unread.split_last() {
            // Sliced first, so that only the load itself has to wait for the row.
            let step = table[usize::from(self.classes.get(byte))..][row as usize];
            if step.next == UNKNOWN {
                break;
            }
            registers[usize::from(step.store)] = start + unread.len();
            (row, unread) = (step.next, before);
        }
        (row, unread.len())
    }

    fn step(&mut self, row: u32, class: usize, position: usize, interrupt: &mut dyn FnMut()) -> Option<u32> {
        let mut step = self.dfa.table[row as usize + class];
        if step.next == UNKNOWN {
            step = self.build(row, class, interrupt)?;
        }
        self.registers[usize::from(step.store)] = position;
        Some(step.next)
    }

    /// Builds a step. `None` if that takes too much time or too many registers. An interrupt that unwinds leaves nothing
    /// half built.
    #[cold]
    fn build(&mut self, row: u32, class: usize, interrupt: &mut dyn FnMut()) -> Option<Step> {
        if self.credit < CREDIT_RESERVE {
            return None;
        }
        let configuration = Rc::clone(self.dfa.configuration(row));
        let transitions = self.transitions(class)?;
        let slots = 2 * self.groups.len();
        charge(&mut self.credit, STEP_COST + transitions.len() + (1 << self.dfa.stride2))?;

        let mut next = Configuration::default();
        // Per transition the index in `next` of the state it comes from, if that is alive.
        let mut indices: Vec<Option<usize>> = Vec::with_capacity(transitions.len());
        for transition in transitions.iter() {
            interrupt();
            let alive = match indices.get(transition.twin) {
                Some(&Some(twin)) => {
                    next.registers.extend_from_within(twin * slots..(twin + 1) * slots);
                    true
                }
                Some(None) => false,
                None => self.follow(transition.to, &configuration, class == self.start_class(), &mut next.registers)?,
            };
            indices.push(alive.then_some(next.alive.len()));
            if alive {
                charge(&mut self.credit, slots)?;
                next.alive.push(transition.from);
            }
        }
        let store = allocate(&mut next.registers)?;

        // The registers keep their meaning, hence the match can go on after everything else has been forgotten.
        let full = self.dfa.memory > MEMORY_LIMIT;
        if full {
            self.dfa = Dfa::new(&self.classes);
        }
        let step = Step { next: self.dfa.row(next), store };
        if !full {
            self.dfa.table[row as usize + class] = step;
        }
        Some(step)
    }

    /// Whether a state is alive at the position of a configuration; if so, adds the registers of its captures. `None`
    /// when the credit is used up.
    fn follow(
        &mut self,
        from: StateID,
        configuration: &Configuration,
        start: bool,
        registers: &mut Vec<u8>,
    ) -> Option<bool> {
        let slots = 2 * self.groups.len();
        let first = registers.len();
        match self.resolver.resolve(&self.nfa, from, configuration, start, &mut self.credit)? {
            None => return Some(false),
            Some(Goal::Match) => registers.resize(first + slots, NONE),
            Some(Goal::Alive(index)) => {
                registers.extend_from_slice(&configuration.registers[index * slots..(index + 1) * slots]);
            }
        }
        charge(&mut self.credit, self.resolver.path.len() * self.groups.len())?;
        for slot in &self.resolver.path {
            let slot = slot.as_usize();
            for (index, _) in self.groups.iter().enumerate().filter(|&(_, &group)| group == slot / 2) {
                let register = &mut registers[first + 2 * index + slot % 2];
                // The last capture of a group is the one that counts, and what lies ahead is later.
                if *register == NONE {
                    *register = HERE;
                }
            }
        }
        Some(true)
    }

    /// `None` when the credit is used up.
    fn transitions(&mut self, class: usize) -> Option<Transitions> {
        if let Some(transitions) = &self.dfa.transitions[class] {
            return Some(Rc::clone(transitions));
        }
        charge(&mut self.credit, self.nfa.states().len())?;
        let transitions: Transitions = match self.representatives.get(class) {
            // The start of the text is read as if by a state before it, of which only the captures matter.
            None => Rc::new([Transition { from: StateID::ZERO, to: self.nfa.start_unanchored(), twin: 0 }]),
            Some(&byte) => transitions_on(&self.nfa, byte),
        };
        self.dfa.memory += size_of_val(&*transitions);
        self.dfa.transitions[class] = Some(Rc::clone(&transitions));
        Some(transitions)
    }
}

fn transitions_on(nfa: &NFA, byte: u8) -> Transitions {
    let mut transitions = Vec::new();
    let mut twins = HashMap::new();
    for (id, state) in nfa.states().iter().enumerate() {
        let to = match state {
            State::ByteRange { trans } if trans.matches_byte(byte) => Some(trans.next),
            State::Sparse(transitions) => transitions.matches_byte(byte),
            State::Dense(transitions) => transitions.matches_byte(byte),
            _ => None,
        };
        if let (Ok(from), Some(to)) = (StateID::new(id), to) {
            let twin = *twins.entry(to).or_insert(transitions.len());
            transitions.push(Transition { from, to, twin });
        }
    }
    transitions.into()
}

/// Puts a register that is free in the place of `HERE`, and returns it. `None` if all are taken.
fn allocate(registers: &mut [u8]) -> Option<u8> {
    if !registers.contains(&HERE) {
        return Some(NONE);
    }
    let mut taken = [false; 256];
    taken[usize::from(NONE)] = true;
    for &register in &*registers {
        taken[usize::from(register)] = true;
    }
    let free = (0..HERE).find(|&register| !taken[usize::from(register)])?;
    for register in registers {
        if *register == HERE {
            *register = free;
        }
    }
    Some(free)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use proptest::sample::select;
    use regex::Regex;

    use super::*;
    use crate::rule::split::compile;

    const ADDRESS: &str = r"^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$";

    /// Read backwards, this has a configuration per combination of thirteen bytes.
    const EXPLOSIVE: &str = "^(?:a|b){12}(?<a>a)(?:a|b)*$";

    fn matcher(regex: &str, groups: &[usize]) -> Matcher {
        Matcher::new(compile(regex).unwrap(), groups).unwrap()
    }

    /// What matches if it is not interrupted.
    fn match_it<'t>(matcher: &mut Matcher, text: &'t str, captures: &mut Vec<Option<&'t str>>) -> Option<bool> {
        matcher.captures(text, captures, &mut || ())
    }

    /// The captures, or `None` if there is no match.
    fn captures<'t>(matcher: &mut Matcher, text: &'t str) -> Option<Vec<Option<&'t str>>> {
        let mut captures = Vec::new();
        match_it(matcher, text, &mut captures).expect("it does not give up").then_some(captures)
    }

    /// The same, from the regex crate.
    pub fn expected<'t>(regex: &Regex, groups: &[usize], text: &'t str) -> Option<Vec<Option<&'t str>>> {
        let captures = regex.captures(text)?;
        Some(groups.iter().map(|&group| captures.get(group).map(|capture| capture.as_str())).collect())
    }

    /// What has been built to match a text for which the credit was full.
    fn spent(matcher: &Matcher) -> usize {
        CREDIT_LIMIT - matcher.credit
    }

    pub fn text(alphabet: &str, length: usize) -> String {
        // A fixed sequence in no order.
        let random = (0..length).scan(1u32, |seed, _| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(*seed >> 16)
        });
        let alphabet: Vec<char> = alphabet.chars().collect();
        random.map(|random| alphabet[random as usize % alphabet.len()]).collect()
    }

    #[test]
    fn address() {
        let mut address = matcher(ADDRESS, &[2, 1]);
        let mut parts = |text| captures(&mut address, text);
        assert_eq!(parts("Elm Street 12a"), Some(vec![Some("12a"), Some("Elm Street")]));
        assert_eq!(parts("Elm Street"), Some(vec![None, Some("Elm Street")]));
        assert_eq!(parts("Straße des 17. Juni 135"), Some(vec![Some("135"), Some("Straße des 17. Juni")]));
        assert_eq!(parts("Elm  1  2"), Some(vec![Some("2"), Some("Elm  1")]));
        assert_eq!(parts("1"), Some(vec![None, Some("1")]));
        assert_eq!(parts(""), None);
        assert_eq!(parts("Elm\n1"), Some(vec![Some("1"), Some("Elm")]));
        assert_eq!(parts("Elm\nStreet"), None);
    }

    #[test]
    fn the_leftmost_match_wins() {
        let mut number = matcher(r"(\d)\d*|x(y)", &[0, 1, 2]);
        assert_eq!(captures(&mut number, "ßa12b3"), Some(vec![Some("12"), Some("1"), None]));
        assert_eq!(captures(&mut number, "1xy"), Some(vec![Some("1"), Some("1"), None]));
        assert_eq!(captures(&mut number, "xxy1"), Some(vec![Some("xy"), None, Some("y")]));
        assert_eq!(captures(&mut number, "xxß"), None);
        assert_eq!(captures(&mut matcher("$", &[0]), "ß"), Some(vec![Some("")]));
    }

    #[test]
    fn the_first_alternative_wins() {
        assert_eq!(captures(&mut matcher("(a|ab)(c|bcd)?", &[1, 2]), "abcd"), Some(vec![Some("a"), Some("bcd")]));
        assert_eq!(captures(&mut matcher("(a*?)(a*)", &[1, 2]), "aa"), Some(vec![Some(""), Some("aa")]));
    }

    #[test]
    fn the_last_iteration_wins() {
        assert_eq!(captures(&mut matcher("(?:(a)|(b))*", &[1, 2]), "abab"), Some(vec![Some("a"), Some("b")]));
        assert_eq!(captures(&mut matcher("(?:(a)|b)*", &[1]), "bb"), Some(vec![None]));
    }

    #[test]
    fn loops_may_be_empty() {
        for regex in ["(a*)*", "(a*)+", "(|a)+", "(a|)+", "(?:(a)?|(b))*", "((a*)*b)*?c", "(?:|(a)|(b)){3}", "(^|a)*$"]
        {
            let groups: Vec<usize> = (0..Regex::new(regex).unwrap().captures_len()).collect();
            for text in ["", "a", "aa", "ab", "ba", "abaab", "abac", "c"] {
                let expected = expected(&Regex::new(regex).unwrap(), &groups, text);
                assert_eq!(captures(&mut matcher(regex, &groups), text), expected, "{regex} on {text:?}");
            }
        }
    }

    #[test]
    fn an_empty_text_is_both_start_and_end() {
        assert_eq!(captures(&mut matcher("^(a*)$", &[1]), ""), Some(vec![Some("")]));
        assert_eq!(captures(&mut matcher("$(a*)^", &[1]), ""), Some(vec![Some("")]));
        assert_eq!(captures(&mut matcher("$(a*)^", &[1]), "a"), None);
        assert_eq!(captures(&mut matcher("", &[]), ""), Some(vec![]));
    }

    #[test]
    fn what_it_does_not_support_is_left_to_the_simulation() {
        for regex in [r"a\b", r"\Ba", "(?m)^a", "(?m)a$", "(?R)(?m)a$", r"(?-u:\b)a"] {
            assert!(Matcher::new(compile(regex).unwrap(), &[]).is_none(), "{regex}");
        }
    }

    #[test]
    fn more_captures_than_registers_are_left_to_the_simulation() {
        let regex = format!("^(?:{}|{})$", "(a)".repeat(300), "(a)".repeat(100));
        let groups: Vec<usize> = (1..=400).collect();
        let mut matcher = matcher(&regex, &groups);
        assert_eq!(captures(&mut matcher, &"a".repeat(100)).unwrap()[299..=300], [None, Some("a")]);
        assert_eq!(match_it(&mut matcher, &"a".repeat(300), &mut Vec::new()), None);
        assert!(matcher.credit > 0);
    }

    #[test]
    fn a_long_text_takes_no_more_building_than_a_short_one() {
        let regex = Regex::new(ADDRESS).unwrap();
        for alphabet in ["a1 ", "abcß€ 123"] {
            let mut address = matcher(ADDRESS, &[1, 2]);
            let long = text(alphabet, 100_000);
            assert_eq!(captures(&mut address, &long), expected(&regex, &[1, 2], &long));
            assert!(spent(&address) < 20_000, "{}", spent(&address));
            captures(&mut address, &long);
            assert_eq!(spent(&address), 0);
        }
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let mut explosive = matcher(EXPLOSIVE, &[1]);
        let regex = Regex::new(EXPLOSIVE).unwrap();
        let long = text("ab", 100_000);
        let (mut peak, mut cleared, mut given_up) = (0, 0, 0);
        for step in 0..200 {
            let text = &long[step * 500..][..500];
            let before = explosive.dfa.memory;
            let mut captures = Vec::new();
            match match_it(&mut explosive, text, &mut captures) {
                Some(matched) => assert_eq!(matched.then_some(captures), expected(&regex, &[1], text)),
                None => given_up += 1,
            }
            peak = peak.max(explosive.dfa.memory);
            cleared += usize::from(explosive.dfa.memory < before);
        }
        assert!(peak < MEMORY_LIMIT + 1000, "{peak}");
        assert!(cleared > 0 && given_up > 0, "{cleared} {given_up}");
        assert_eq!(match_it(&mut explosive, &long, &mut Vec::new()), None);
    }

    #[test]
    fn one_step_cannot_take_long() {
        // Each of the states has an empty path along all that follow.
        let mut matcher = matcher("^(?:a?){20000}b", &[0]);
        assert_eq!(match_it(&mut matcher, "a", &mut Vec::new()), None);
        assert_eq!(matcher.credit, 0);
    }

    #[test]
    fn it_gives_up_for_a_while_only() {
        let mut address = matcher(ADDRESS, &[2]);
        address.credit = 0;
        let text = "Straße des 17. Juni 135";
        let tries = (0..10_000).take_while(|_| match_it(&mut address, text, &mut Vec::new()).is_none()).count();
        assert!(tries >= CREDIT_RESERVE / text.len(), "{tries}");
        assert_eq!(captures(&mut address, text), Some(vec![Some("135")]));
    }

    /// Regexes that get into every corner, with some more leaves. Named groups are still without a name.
    fn regex(more: &[&'static str]) -> impl Strategy<Value = String> {
        let mut leaves = vec![
            "a", "a", "b", "b", "ß", "€", "ab", "1", " ", ".", "(?s:.)", "[ab]", "[^a]", "[ß€]", "[^ß]", "(?i:a)",
            r"\d", r"\s", r"\S", r"\w", r"\W", "", "^", "$", r"\z", "()", "(?<>a)",
        ];
        leaves.extend(more);
        let leaf = select(leaves);
        leaf.prop_map(str::to_owned).prop_recursive(5, 24, 4, |inner| {
            let repetition = select(vec![
                "*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{0,2}?", "{2,}", "{0}", "{1,}?", "{0,3}",
            ]);
            prop_oneof![
                3 => prop::collection::vec(inner.clone(), 2..5).prop_map(|parts| parts.concat()),
                2 => prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
                3 => (inner.clone(), repetition).prop_map(|(part, repetition)| format!("(?:{part}){repetition}")),
                2 => inner.clone().prop_map(|part| format!("({part})")),
                1 => inner.prop_map(|part| format!("(?<>{part})")),
            ]
        })
    }

    /// Gives every named group a name of its own.
    fn named(regex: &str) -> String {
        let mut parts = regex.split("(?<>");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.enumerate().fold(first, |regex, (index, part)| format!("{regex}(?<g{index}>{part}"))
    }

    /// A regex, texts to search, and a bit for each group that is wanted.
    #[derive(Clone, Debug)]
    pub struct Case {
        regex: String,
        texts: Vec<String>,
        wanted: u64,
    }

    /// Regexes with some more leaves, anchored or not, and texts that get into their corners.
    pub fn case(more: &[&'static str]) -> impl Strategy<Value = Case> {
        let anchors = select(vec![("", ""), ("^", ""), ("", "$"), ("^", "$")]);
        let texts = prop::collection::vec("[ab1 \\r\\nßéA€😀]{0,8}|[abß]{0,12}|[ab]{10,30}", 8);
        (regex(more), anchors, texts, any::<u64>()).prop_map(|(regex, (start, end), texts, wanted)| Case {
            regex: named(&format!("{start}{regex}{end}")),
            texts,
            wanted,
        })
    }

    /// Whether an engine finds what the regex crate finds: all groups, and those that are wanted alone. `new` makes one for
    /// a regex and groups.
    pub fn check_case<E>(
        case: &Case,
        new: impl Fn(&str, &[usize]) -> E,
        captures: impl for<'t> Fn(&mut E, &'t str) -> Option<Vec<Option<&'t str>>>,
    ) -> Result<(), TestCaseError> {
        let Case { regex, texts, wanted } = case;
        let Ok(crates) = Regex::new(regex) else { return Ok(()) };
        let all: Vec<usize> = (0..crates.captures_len()).collect();
        let some = all.iter().rev().copied().filter(|group| wanted >> (group % 64) & 1 == 1).collect();
        for groups in [all, some] {
            let mut engine = new(regex, &groups);
            for text in texts {
                let found = captures(&mut engine, text);
                prop_assert_eq!(found, expected(&crates, &groups, text), "{} on {:?}", regex, text);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn captures_equal_those_of_the_regex_crate(case in case(&[])) {
            check_case(&case, matcher, captures)?;
        }
    }

    #[test]
    fn any_text_will_do() {
        let regex = r"(?<a>\w+)\W*(?<b>\S*?)(?<c>\s|$)";
        let groups = [0, 1, 2, 3];
        let matcher = RefCell::new(matcher(regex, &groups));
        let regex = Regex::new(regex).unwrap();
        proptest!(|(text in ".*")| {
            let mut captures = Vec::new();
            // It may give up: every text is of characters that it has never seen.
            if let Some(matched) = match_it(&mut matcher.borrow_mut(), &text, &mut captures) {
                prop_assert_eq!(matched.then_some(captures), expected(&regex, &groups, &text));
            }
        });
    }
}
