//! From old to new: f.

use std::cell::RefCell;
use std::error::Error;

use regex_automata::PatternID;
use regex_automata::nfa::thompson::{Compiler, NFA};
use smallvec::SmallVec;

use super::backtracker::Backtracker;
use super::matcher::Matcher;
use super::simulation::Simulation;
use super::{Exceeded, RuleError, Split, TEXT_LIMIT, Target, check_length, names};

/// The most bytes that a regex may have. It bounds the memory that parsing takes.
const REGEX_LENGTH_LIMIT: usize = 16 << 10;

/// The most character classes that a regex may have, or what may be one. Each takes up to some hundred microseconds to
/// parse, when it is negated or without case.
const CLASS_LIMIT: usize = 300;

/// The most memory that a compiled regex may take.
const REGEX_SIZE_LIMIT: usize = 4 << 20;

/// The most memory that matching a regex may take.
const MATCH_SIZE_LIMIT: usize = 32 << 20;

/// How many bytes are searched for a delimiter between two interrupts.
const SEARCHED_AT_ONCE: usize = 1 << 20;

/// The parts of a source, one per target.
pub type Parts<'a> = SmallVec<[Option<&'a str>; 4]>;

/// A compiled split rule.
#[derive(Debug)]
pub struct Splitter(Kind);

#[derive(Debug)]
enum Kind {
    Regex {
        /// For most regexes and texts.
        matcher: Option<Box<RefCell<Matcher>>>,
        /// For the others in several times the time, if the text is short.
        backtracker: Option<Box<RefCell<Backtracker>>>,
        /// For whatever is left, in many times the time.
        simulation: Box<RefCell<Simulation>>,
    },
    Delimiter {
        delimiter: String,
        targets: usize,
    },
}

impl Splitter {
    /// Checks and compiles the rule; `None` for SQL, which only the server can evaluate.
    pub fn new(split: &Split, targets: &[Target]) -> Result<Option<Splitter>, RuleError> {
        let kind = match split {
            Split::Regex(regex) => bind(regex, targets)?,
            Split::Delimiter(delimiter) if delimiter.is_empty() => {
                return Err(RuleError::EmptyDelimiter);
            }
            Split::Delimiter(delimiter) => {
                check_length("delimiter", delimiter, TEXT_LIMIT)?;
                Kind::Delimiter { delimiter: delimiter.clone(), targets: targets.len() }
            }
            Split::Sql(expressions) if expressions.len() == targets.len() => {
                expressions.iter().try_for_each(|text| check_length("expression of split_sql", text, TEXT_LIMIT))?;
                return Ok(None);
            }
            Split::Sql(expressions) => {
                return Err(RuleError::ExpressionCount { expressions: expressions.len(), targets: targets.len() });
            }
        };
        Ok(Some(Splitter(kind)))
    }

    /// Puts one part per target, in their order, into `parts`, which is cleared first. Returns whether the rule accepts
    /// the source; if not, the parts mean nothing.
    ///
    /// A group that takes no part in the match gives NULL, one that matches nothing the empty string. A delimiter
    /// accepts everything: targets for which there is no part are NULL.
    ///
    /// `interrupt` is called every few milliseconds and may unwind.
    pub fn split<'a>(
        &self,
        source: &'a str,
        parts: &mut Parts<'a>,
        interrupt: &mut dyn FnMut(),
    ) -> Result<bool, Exceeded> {
        parts.clear();
        match &self.0 {
            Kind::Regex { matcher, backtracker, simulation } => {
                if let Some(matcher) = matcher
                    && let Some(matched) = matcher.borrow_mut().captures(source, parts, interrupt)
                {
                    return Ok(matched);
                }
                if let Some(backtracker) = backtracker
                    && let Some(matched) = backtracker.borrow_mut().captures(source, parts)
                {
                    return Ok(matched);
                }
                simulation.borrow_mut().captures(source, parts, interrupt)
            }
            Kind::Delimiter { delimiter, targets } => {
                let mut rest = source;
                while parts.len() + 1 < *targets
                    && let Some((part, after)) = split_once(rest, delimiter, interrupt)
                {
                    parts.push(Some(part));
                    rest = after;
                }
                parts.push(Some(rest));
                parts.resize(*targets, None);
                Ok(true)
            }
        }
    }
}

/// What is before the first delimiter and what is after it.
fn split_once<'a>(text: &'a str, delimiter: &str, interrupt: &mut dyn FnMut()) -> Option<(&'a str, &'a str)> {
    let mut start = 0;
    loop {
        let end = text.floor_char_boundary(start + SEARCHED_AT_ONCE + delimiter.len());
        if let Some(index) = text[start..end].find(delimiter) {
            let found = start + index;
            return Some((&text[..found], &text[found + delimiter.len()..]));
        }
        if end == text.len() {
            return None;
        }
        // The delimiter may begin in this piece and end in the next one.
        start = text.floor_char_boundary(end - delimiter.len() + 1);
        interrupt();
    }
}

/// Parses and compiles a regex.
pub(super) fn compile(regex: &str) -> Result<NFA, RuleError> {
    check_length("regex", regex, REGEX_LENGTH_LIMIT)?;
    let invalid = |message| RuleError::InvalidRegex { message };
    let classes = regex.matches(['[', '\\']).count();
    if classes > CLASS_LIMIT {
        return Err(invalid(format!(
            "it has {classes} brackets and backslashes, more than the limit of {CLASS_LIMIT}"
        )));
    }
    let config = NFA::config().nfa_size_limit(Some(REGEX_SIZE_LIMIT));
    Compiler::new().configure(config).build(regex).map_err(|error| {
        invalid(match (error.size_limit(), error.source()) {
            (Some(limit), _) => format!("compiled, it takes more memory than the limit of {limit} bytes"),
            (None, Some(source)) => source.to_string(),
            (None, None) => error.to_string(),
        })
    })
}

fn bind(text: &str, targets: &[Target]) -> Result<Kind, RuleError> {
    let nfa = compile(text)?;
    let group_names = || nfa.group_info().pattern_names(PatternID::ZERO);
    let named = || group_names().flatten();
    if let Some(group) = named().find(|&group| targets.iter().all(|target| target.name != group)) {
        return Err(RuleError::GroupWithoutTarget { group: group.to_owned(), targets: names(targets) });
    }
    let groups = targets
        .iter()
        .map(|target| {
            group_names().position(|group| group == Some(&target.name)).ok_or_else(|| RuleError::TargetWithoutGroup {
                target: target.name.clone(),
                groups: named().map(str::to_owned).collect(),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let matcher = Matcher::new(nfa.clone(), &groups).map(|matcher| Box::new(RefCell::new(matcher)));
    let backtracker = Backtracker::new(nfa.clone(), &groups).map(|backtracker| Box::new(RefCell::new(backtracker)));
    let simulation = Simulation::new(nfa, &groups);
    if simulation.memory() > MATCH_SIZE_LIMIT {
        let message = format!(
            "to match it takes up to {} bytes of memory, more than the limit of {MATCH_SIZE_LIMIT}",
            simulation.memory()
        );
        return Err(RuleError::InvalidRegex { message });
    }
    Ok(Kind::Regex { matcher, backtracker, simulation: Box::new(RefCell::new(simulation)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rule::tests::targets;
    use crate::rule::{Join, Joiner};

    const ADDRESS: &str = r"^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$";

    fn splitter(split: Split, names: &[&str]) -> Splitter {
        Splitter::new(&split, &targets(names)).unwrap().unwrap()
    }

    fn regex(regex: &str, names: &[&str]) -> Splitter {
        splitter(Split::Regex(regex.into()), names)
    }

    fn delimiter(delimiter: &str, names: &[&str]) -> Splitter {
        splitter(Split::Delimiter(delimiter.into()), names)
    }

    fn error(split: Split, names: &[&str]) -> RuleError {
        Splitter::new(&split, &targets(names)).unwrap_err()
    }

    /// The parts, or `None` if the source is not accepted.
    fn parts<'a>(splitter: &Splitter, source: &'a str) -> Option<Vec<Option<&'a str>>> {
        let mut parts = Parts::from_iter([Some("left over")]);
        splitter.split(source, &mut parts, &mut || ()).unwrap().then(|| parts.to_vec())
    }

    #[test]
    fn regex_groups_go_to_the_targets_of_their_names() {
        let address = regex(ADDRESS, &["housenumber", "streetname"]);
        assert_eq!(parts(&address, "Elm Street 12a"), Some(vec![Some("12a"), Some("Elm Street")]));
        assert_eq!(parts(&address, "Elm Street"), Some(vec![None, Some("Elm Street")]));
        assert_eq!(parts(&address, "Straße des 17. Juni 135"), Some(vec![Some("135"), Some("Straße des 17. Juni")]));
        assert_eq!(parts(&address, ""), None);
    }

    #[test]
    fn a_group_that_matches_nothing_is_not_null() {
        let optional = regex("^(?<a>x*)(?<b>y)?$", &["a", "b"]);
        assert_eq!(parts(&optional, ""), Some(vec![Some(""), None]));
    }

    #[test]
    fn what_the_matcher_does_not_support_is_left_to_the_simulation() {
        let words = regex(r"^(?<a>\w+)\b.*?\b(?<b>\w+)$", &["b", "a"]);
        assert_eq!(parts(&words, "Unter den Linden"), Some(vec![Some("Linden"), Some("Unter")]));
        assert_eq!(parts(&words, "Unter"), None);
    }

    #[test]
    fn unnamed_groups_are_the_rule_s_own_business() {
        let grouped = regex("^((?<a>x)|y)-(z)$", &["a"]);
        assert_eq!(parts(&grouped, "x-z"), Some(vec![Some("x")]));
        assert_eq!(parts(&grouped, "y-z"), Some(vec![None]));
    }

    #[test]
    fn delimiter_gives_the_rest_to_the_last_target() {
        let name = delimiter(", ", &["last", "first", "more"]);
        assert_eq!(parts(&name, "a"), Some(vec![Some("a"), None, None]));
        assert_eq!(parts(&name, "a, b"), Some(vec![Some("a"), Some("b"), None]));
        assert_eq!(parts(&name, "a, b, c, d"), Some(vec![Some("a"), Some("b"), Some("c, d")]));
        assert_eq!(parts(&name, ""), Some(vec![Some(""), None, None]));
        assert_eq!(parts(&name, ", "), Some(vec![Some(""), Some(""), None]));
    }

    #[test]
    fn sql_is_left_to_the_server() {
        let split = Split::Sql(vec!["lower(a)".into()]);
        assert!(Splitter::new(&split, &targets(&["a"])).unwrap().is_none());
        assert_eq!(error(split, &["a", "b"]), RuleError::ExpressionCount { expressions: 1, targets: 2 });
    }

    #[test]
    fn rules_that_do_not_fit_the_targets_are_refused() {
        assert_eq!(error(Split::Delimiter("".into()), &["a"]), RuleError::EmptyDelimiter);
        assert_eq!(
            error(Split::Regex("(?<a>x)(?<c>y)".into()), &["a", "b"]),
            RuleError::GroupWithoutTarget { group: "c".into(), targets: vec!["a".into(), "b".into()] }
        );
        assert_eq!(
            error(Split::Regex("(?<a>x)(y)".into()), &["a", "b"]),
            RuleError::TargetWithoutGroup { target: "b".into(), groups: vec!["a".into()] }
        );
        assert_eq!(
            error(Split::Regex("x".into()), &["a"]),
            RuleError::TargetWithoutGroup { target: "a".into(), groups: vec![] }
        );
    }

    #[test]
    fn a_regex_that_does_not_compile_is_refused() {
        for text in ["(?<a>x", "(?<a>x)(?=y)", "(?<a>(?:x{1000}){1000})"] {
            let error = error(Split::Regex(text.into()), &["a"]);
            assert!(matches!(&error, RuleError::InvalidRegex { message } if !message.is_empty()), "{error:?}");
        }
    }

    #[test]
    fn a_rule_that_is_too_large_is_refused() {
        let long = "x".repeat(TEXT_LIMIT + 1);
        let too_long = |what, limit| RuleError::TooLong { what, bytes: long.len(), limit };
        assert_eq!(error(Split::Regex(long.clone()), &["a"]), too_long("regex", REGEX_LENGTH_LIMIT));
        assert_eq!(error(Split::Delimiter(long.clone()), &["a"]), too_long("delimiter", TEXT_LIMIT));
        assert_eq!(error(Split::Sql(vec![long.clone()]), &["a"]), too_long("expression of split_sql", TEXT_LIMIT));
        let classes = error(Split::Regex(format!("(?<a>{})", r"\w".repeat(301))), &["a"]);
        assert!(matches!(&classes, RuleError::InvalidRegex { message } if message.contains("301")), "{classes:?}");
        // Small by itself, but not with the captures of so many targets for every thread.
        let names: Vec<String> = (0..100).map(|index| format!("t{index}")).collect();
        let groups: String = names.iter().map(|name| format!("(?<{name}>x)")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(parts(&regex(&groups, &names), &"x".repeat(100)), Some(vec![Some("x"); 100]));
        let error = error(Split::Regex(format!("{groups}x{{30000}}")), &names);
        assert!(matches!(&error, RuleError::InvalidRegex { message } if message.contains("to match")), "{error:?}");
    }

    /// More than a matcher can be asked to build.
    const EXPLOSIVE: &str = "^(?:a|b){40}(?<a>a)(?<b>(?:a|b)*)$";

    #[test]
    fn what_the_matcher_gives_up_on_is_simulated() {
        let explosive = regex(EXPLOSIVE, &["a", "b"]);
        let oracle = regex::Regex::new(EXPLOSIVE).unwrap();
        let (mut given_up, mut interrupts) = (0, 0);
        for length in (50..60_000).step_by(4_999) {
            let text = crate::rule::matcher::tests::text("ab", length);
            let captures = oracle.captures(&text);
            let expected = captures.map(|captures| [1, 2].map(|group| captures.get(group).map(|it| it.as_str())));
            let mut parts = Parts::new();
            let matched = explosive.split(&text, &mut parts, &mut || interrupts += 1).unwrap();
            assert_eq!(matched.then_some(parts.as_slice()), expected.as_ref().map(|parts| parts.as_slice()));
            let Kind::Regex { matcher, .. } = &explosive.0 else { unreachable!() };
            let matcher = matcher.as_ref().unwrap();
            given_up += usize::from(matcher.borrow_mut().captures(&text, &mut Parts::new(), &mut || ()).is_none());
        }
        assert!(given_up > 0 && interrupts > given_up, "{given_up} {interrupts}");
    }

    #[test]
    fn a_delimiter_is_found_wherever_it_stands() {
        for delimiter_text in [";", "<=>", "ß"] {
            let rule = delimiter(delimiter_text, &["a", "b", "c"]);
            for around in [0, 1, 2, 3, 4] {
                let first = format!("{}€", "=".repeat(SEARCHED_AT_ONCE - around));
                let second = "ü".repeat(SEARCHED_AT_ONCE);
                let source = format!("{first}{delimiter_text}{second}{delimiter_text}{delimiter_text}");
                let mut interrupts = 0;
                let mut parts = Parts::new();
                rule.split(&source, &mut parts, &mut || interrupts += 1).unwrap();
                let expected: Vec<_> = source.splitn(3, delimiter_text).map(Some).collect();
                assert!(parts.as_slice() == expected, "{delimiter_text} {around}");
                assert!(interrupts > 0);
            }
        }
    }

    proptest! {
        #[test]
        fn regex_never_panics(text in "(\\(\\?<a>|[()\\[\\]{}*+?|^$.\\\\a-z0-9,]){0,20}", source in ".*") {
            if let Ok(Some(splitter)) = Splitter::new(&Split::Regex(text), &targets(&["a"])) {
                let mut parts = Parts::new();
                if splitter.split(&source, &mut parts, &mut || ()).unwrap() {
                    prop_assert_eq!(parts.len(), 1);
                }
            }
        }

        #[test]
        fn regex_parts_are_parts_of_the_source(source in "[ a-c0-9äß]{0,20}") {
            let address = regex(ADDRESS, &["streetname", "housenumber"]);
            prop_assert_eq!(parts(&address, &source).is_some(), !source.is_empty());
            for part in parts(&address, &source).into_iter().flatten().flatten() {
                prop_assert!(source.contains(part));
            }
        }

        /// Nothing is lost in a split by delimiter.
        #[test]
        fn delimiter_join_undoes_split(source in "[ab,]{0,20}", delimiter_text in "[ab,]{1,2}", count in 1usize..5) {
            let names = &["a", "b", "c", "d"][..count];
            let parts = parts(&delimiter(&delimiter_text, names), &source).unwrap();
            prop_assert_eq!(parts.len(), count);
            let joiner = Joiner::new(&Join::Delimiter(delimiter_text), &targets(names)).unwrap().unwrap();
            let mut buffer = String::new();
            prop_assert_eq!(joiner.join(&parts, &mut buffer, &mut || ()), Ok(Some(source.as_str())));
        }

        /// Nor in a join, of values that do not contain it and with no NULL before a value.
        #[test]
        fn delimiter_split_undoes_join(values in prop::collection::vec("[a-c ]{0,4}", 1..5)) {
            let names = &["a", "b", "c", "d"];
            let mut given: Vec<Option<&str>> = values.iter().map(|value| Some(value.as_str())).collect();
            given.resize(names.len(), None);
            let joiner = Joiner::new(&Join::Delimiter(";".into()), &targets(names)).unwrap().unwrap();
            let mut buffer = String::new();
            let source = joiner.join(&given, &mut buffer, &mut || ()).unwrap().unwrap();
            prop_assert_eq!(parts(&delimiter(";", names), source), Some(given));
        }
    }
}
