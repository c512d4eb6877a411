//! From old to new: f.

use std::cell::RefCell;

use smallvec::SmallVec;

use regex::{CaptureLocations, Regex, RegexBuilder};

use super::matcher::Matcher;
use super::{RuleError, Split, Target, names};

/// The most memory that a compiled regex may take.
const REGEX_SIZE_LIMIT: usize = 4 << 20;

/// The parts of a source, one per target.
pub type Parts<'a> = SmallVec<[Option<&'a str>; 4]>;

/// A compiled split rule.
#[derive(Debug)]
pub struct Splitter(Kind);

#[derive(Debug)]
enum Kind {
    Regex {
        regex: Regex,
        /// Per target the index of its group.
        groups: Vec<usize>,
        /// Finds the same captures in a fraction of the time, for most regexes.
        matcher: Option<Box<RefCell<Matcher>>>,
        /// Kept, so that matching allocates nothing.
        locations: RefCell<CaptureLocations>,
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
            Split::Regex(regex) => compile(regex, targets)?,
            Split::Delimiter(delimiter) if delimiter.is_empty() => {
                return Err(RuleError::EmptyDelimiter);
            }
            Split::Delimiter(delimiter) => Kind::Delimiter { delimiter: delimiter.clone(), targets: targets.len() },
            Split::Sql(expressions) if expressions.len() == targets.len() => return Ok(None),
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
    pub fn split<'a>(&self, source: &'a str, parts: &mut Parts<'a>) -> bool {
        parts.clear();
        match &self.0 {
            Kind::Regex { regex, groups, matcher, locations } => {
                let matched = matcher.as_ref().and_then(|matcher| matcher.borrow_mut().captures(source, parts));
                if let Some(matched) = matched {
                    return matched;
                }
                let mut locations = locations.borrow_mut();
                let matched = regex.captures_read(&mut locations, source).is_some();
                if matched {
                    parts.extend(
                        groups.iter().map(|&group| locations.get(group).map(|(start, end)| &source[start..end])),
                    );
                }
                matched
            }
            Kind::Delimiter { delimiter, targets } => {
                parts.extend(source.splitn(*targets, delimiter.as_str()).map(Some));
                parts.resize(*targets, None);
                true
            }
        }
    }
}

fn compile(text: &str, targets: &[Target]) -> Result<Kind, RuleError> {
    let regex = RegexBuilder::new(text)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .map_err(|error| RuleError::InvalidRegex { message: error.to_string() })?;
    let named = || regex.capture_names().flatten();
    if let Some(group) = named().find(|&group| targets.iter().all(|target| target.name != group)) {
        return Err(RuleError::GroupWithoutTarget { group: group.to_owned(), targets: names(targets) });
    }
    let groups = targets
        .iter()
        .map(|target| {
            regex.capture_names().position(|group| group == Some(&target.name)).ok_or_else(|| {
                RuleError::TargetWithoutGroup {
                    target: target.name.clone(),
                    groups: named().map(str::to_owned).collect(),
                }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let matcher = Matcher::new(text, &groups, REGEX_SIZE_LIMIT).map(|matcher| Box::new(RefCell::new(matcher)));
    let locations = RefCell::new(regex.capture_locations());
    Ok(Kind::Regex { regex, groups, matcher, locations })
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
        splitter.split(source, &mut parts).then(|| parts.to_vec())
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
    fn what_the_matcher_does_not_support_is_left_to_the_regex() {
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

    proptest! {
        #[test]
        fn regex_never_panics(text in "(\\(\\?<a>|[()\\[\\]{}*+?|^$.\\\\a-z0-9,]){0,20}", source in ".*") {
            if let Ok(Some(splitter)) = Splitter::new(&Split::Regex(text), &targets(&["a"])) {
                let mut parts = Parts::new();
                if splitter.split(&source, &mut parts) {
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
            prop_assert_eq!(joiner.join(&parts, &mut buffer), Some(source.as_str()));
        }

        /// Nor in a join, of values that do not contain it and with no NULL before a value.
        #[test]
        fn delimiter_split_undoes_join(values in prop::collection::vec("[a-c ]{0,4}", 1..5)) {
            let names = &["a", "b", "c", "d"];
            let mut given: Vec<Option<&str>> = values.iter().map(|value| Some(value.as_str())).collect();
            given.resize(names.len(), None);
            let joiner = Joiner::new(&Join::Delimiter(";".into()), &targets(names)).unwrap().unwrap();
            let mut buffer = String::new();
            let source = joiner.join(&given, &mut buffer).unwrap();
            prop_assert_eq!(parts(&delimiter(";", names), source), Some(given));
        }
    }
}
