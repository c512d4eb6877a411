//! Finds the captures of a regex in a short text by trying one path after the other.
//!
//! No state is tried twice at the same position, so a short text takes few steps. They are quicker than those of the
//! [`simulation`](super::simulation), but nobody could interrupt them.

use regex_automata::Input;
use regex_automata::nfa::thompson::NFA;
use regex_automata::nfa::thompson::backtrack::{BoundedBacktracker, Cache};
use regex_automata::util::primitives::NonMaxUsize;

/// How many steps there can be at most: a millisecond or so.
const STEPS: usize = 1 << 16;

/// A compiled regex, to be matched with short texts.
#[derive(Debug)]
pub struct Backtracker {
    regex: BoundedBacktracker,
    /// The groups whose captures are wanted.
    groups: Box<[usize]>,
    cache: Cache,
    slots: Box<[Option<NonMaxUsize>]>,
}

impl Backtracker {
    /// Prepares the search for the captures of these groups.
    pub fn new(nfa: NFA, groups: &[usize]) -> Option<Backtracker> {
        // It notes each step that it has done in one bit.
        let config = BoundedBacktracker::config().visited_capacity(STEPS / 8);
        let slots = vec![None; nfa.group_info().slot_len()].into();
        let regex = BoundedBacktracker::builder().configure(config).build_from_nfa(nfa).ok()?;
        Some(Backtracker { cache: regex.create_cache(), groups: groups.into(), slots, regex })
    }

    /// Whether there is a match, of which then one capture per wanted group is added to `captures`. They are those of
    /// the regex crate. `None` if the text is too long.
    pub fn captures<'t>(&mut self, text: &'t str, captures: &mut impl Extend<Option<&'t str>>) -> Option<bool> {
        if text.len() > self.regex.max_haystack_len() {
            return None;
        }
        let found = self.regex.try_search_slots(&mut self.cache, &Input::new(text), &mut self.slots).ok()?;
        if found.is_some() {
            let position = |slot: usize| self.slots.get(slot).copied().flatten().map(NonMaxUsize::get);
            let capture = |&group| text.get(position(2 * group)?..position(2 * group + 1)?);
            captures.extend(self.groups.iter().map(capture));
        }
        Some(found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::split::compile;

    fn backtracker(regex: &str, groups: &[usize]) -> Backtracker {
        Backtracker::new(compile(regex).unwrap(), groups).unwrap()
    }

    #[test]
    fn wanted_groups_are_given_in_their_order() {
        let mut address = backtracker(r"^(?<a>.+?)\b(?:\s+(?<b>\d\S*))?$", &[2, 1]);
        for (text, expected) in [
            ("Elm Street 12a", vec![Some("12a"), Some("Elm Street")]),
            ("Straße", vec![None, Some("Straße")]),
            // Nothing of the search before is left.
            ("Elm 1", vec![Some("1"), Some("Elm")]),
        ] {
            let mut captures = Vec::new();
            assert_eq!(address.captures(text, &mut captures), Some(true));
            assert_eq!(captures, expected);
        }
        assert_eq!(address.captures("", &mut Vec::new()), Some(false));
    }

    #[test]
    fn it_takes_what_is_short_for_the_regex() {
        let (short, long) = ("a".repeat(1_000), "a".repeat(100_000));
        let mut small = backtracker(r"^(a|\b)*b", &[]);
        assert_eq!(small.captures(&short, &mut Vec::new()), Some(false));
        assert_eq!(small.captures(&long, &mut Vec::new()), None);
        let mut large = backtracker("^(?:a?){30000}b", &[]);
        assert_eq!(large.captures("ab", &mut Vec::new()), None);
    }
}
