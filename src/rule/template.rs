//! The join template: literal text, `{target}`, `[…]` for a section that may be left out, `\` to escape.

use std::iter::Enumerate;
use std::mem;
use std::str::Chars;

use super::{RuleError, Target, names};

/// How deep sections nest; it bounds the recursion.
const MAX_DEPTH: usize = 16;

/// A parsed template.
///
/// A section is left out when a target directly in it is NULL, with all sections inside it. A section that has only
/// other sections in it is left out when all of these are: `{street}[, [{zip} ][{city}]]`. Outside of sections NULL
/// renders as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    /// How many targets there are.
    targets: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The index of a target.
    Target(usize),
    Section(Vec<Piece>),
}

impl Template {
    /// Parses a template over these targets.
    pub fn parse(text: &str, targets: &[Target]) -> Result<Template, RuleError> {
        let mut chars = text.chars().enumerate();
        // Per section that is still open its position and the pieces before it.
        let mut open: Vec<(usize, Vec<Piece>)> = Vec::new();
        let mut pieces = Vec::new();
        while let Some((at, char)) = chars.next() {
            match char {
                '{' => {
                    let name = name(&mut chars, at)?;
                    let target = targets.iter().position(|target| target.name == name);
                    pieces.push(Piece::Target(target.ok_or_else(|| RuleError::TemplateUnknownTarget {
                        name,
                        position: at + 1,
                        targets: names(targets),
                    })?));
                }
                '}' => return Err(invalid("\"}\" without \"{\"", at)),
                '[' if open.len() == MAX_DEPTH => {
                    return Err(invalid("too many sections inside each other", at));
                }
                '[' => open.push((at, mem::take(&mut pieces))),
                ']' => {
                    let (start, outer) = open.pop().ok_or_else(|| invalid("\"]\" without \"[\"", at))?;
                    let section = mem::replace(&mut pieces, outer);
                    if section.iter().all(|piece| matches!(piece, Piece::Text(_))) {
                        return Err(invalid("section without a target", start));
                    }
                    pieces.push(Piece::Section(section));
                }
                '\\' => push(&mut pieces, escaped(&mut chars, at)?),
                _ => push(&mut pieces, char),
            }
        }
        match open.pop() {
            Some((start, _)) => Err(invalid("\"[\" without \"]\"", start)),
            None => Ok(Template { pieces, targets: targets.len() }),
        }
    }

    /// Calls `each` with the pieces of the text for these values, one per target, in their order.
    pub fn render(&self, values: &[Option<&str>], each: &mut impl FnMut(&str)) {
        render(&self.pieces, values, each);
    }

    /// The targets that stand outside of every section, so that their NULL renders as nothing.
    pub fn targets_outside_sections(&self) -> impl Iterator<Item = usize> {
        (0..self.targets).filter(|&target| self.pieces.contains(&Piece::Target(target)))
    }

    /// The targets that appear nowhere, so that a join would lose them.
    pub fn unused_targets(&self) -> impl Iterator<Item = usize> {
        (0..self.targets).filter(|&target| !mentions(&self.pieces, target))
    }
}

fn render(pieces: &[Piece], values: &[Option<&str>], each: &mut impl FnMut(&str)) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => each(text),
            Piece::Target(target) => each(values[*target].unwrap_or_default()),
            Piece::Section(section) if is_shown(section, values) => render(section, values, each),
            Piece::Section(_) => {}
        }
    }
}

fn is_shown(section: &[Piece], values: &[Option<&str>]) -> bool {
    let mut targets = section.iter().filter_map(|piece| match piece {
        Piece::Target(target) => Some(values[*target]),
        _ => None,
    });
    match targets.next() {
        Some(first) => first.is_some() && targets.all(|value| value.is_some()),
        None => section.iter().any(|piece| matches!(piece, Piece::Section(inner) if is_shown(inner, values))),
    }
}

fn mentions(pieces: &[Piece], target: usize) -> bool {
    pieces.iter().any(|piece| match piece {
        Piece::Text(_) => false,
        Piece::Target(it) => *it == target,
        Piece::Section(section) => mentions(section, target),
    })
}

/// Appends a character to the text at the end.
fn push(pieces: &mut Vec<Piece>, char: char) {
    match pieces.last_mut() {
        Some(Piece::Text(text)) => text.push(char),
        _ => pieces.push(Piece::Text(char.into())),
    }
}

/// The rest of `{name}`, whose brace stands at `start`.
fn name(chars: &mut Enumerate<Chars<'_>>, start: usize) -> Result<String, RuleError> {
    let mut name = String::new();
    loop {
        match chars.next() {
            None => return Err(invalid("\"{\" without \"}\"", start)),
            Some((_, '}')) if name.is_empty() => return Err(invalid("empty target name", start)),
            Some((_, '}')) => return Ok(name),
            Some((at, '\\')) => name.push(escaped(chars, at)?),
            Some((_, char)) => name.push(char),
        }
    }
}

/// The character after the backslash at `at`.
fn escaped(chars: &mut Enumerate<Chars<'_>>, at: usize) -> Result<char, RuleError> {
    chars.next().map(|(_, char)| char).ok_or_else(|| invalid("\"\\\" with nothing to escape", at))
}

/// The error at the character with this index; people count from 1.
fn invalid(message: &str, index: usize) -> RuleError {
    RuleError::InvalidTemplate { message: message.to_owned(), position: index + 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rule::tests::targets;

    const NAMES: [&str; 3] = ["a", "b c", "}{\\"];

    fn parse(text: &str) -> Result<Template, RuleError> {
        Template::parse(text, &targets(&NAMES))
    }

    #[track_caller]
    fn rendered(text: &str, values: &[Option<&str>]) -> String {
        let mut out = String::new();
        parse(text).unwrap().render(values, &mut |piece| out.push_str(piece));
        out
    }

    #[test]
    fn renders_text_and_targets() {
        let values = [Some("1"), Some("2"), Some("3")];
        assert_eq!(rendered("", &values), "");
        assert_eq!(rendered(r"<{b c}ß{a}{a}{\}\{\\}>", &values), "<2ß113>");
        assert_eq!(rendered(r"\{a\} \[\] \\ \x", &values), r"{a} [] \ x");
        assert_eq!(rendered("{a}", &[Some("{b c}"), None, None]), "{b c}");
    }

    #[test]
    fn null_outside_a_section_is_nothing() {
        assert_eq!(rendered("{a} {b c}", &[None, Some("2"), None]), " 2");
    }

    #[test]
    fn a_section_is_left_out_when_a_target_in_it_is_null() {
        let text = r"{a}[ {b c}-{\}{\\}]";
        assert_eq!(rendered(text, &[Some("1"), Some("2"), Some("3")]), "1 2-3");
        assert_eq!(rendered(text, &[Some("1"), Some("2"), None]), "1");
        assert_eq!(rendered(text, &[None, Some(""), Some("")]), " -");
    }

    #[test]
    fn a_section_goes_with_the_section_around_it() {
        let text = "[{a}[/{b c}]]";
        assert_eq!(rendered(text, &[Some("1"), Some("2"), None]), "1/2");
        assert_eq!(rendered(text, &[Some("1"), None, None]), "1");
        assert_eq!(rendered(text, &[None, Some("2"), None]), "");
    }

    #[test]
    fn a_section_of_sections_goes_when_all_of_them_do() {
        let text = "x[, [{a}][{b c}]]";
        assert_eq!(rendered(text, &[Some("1"), None, None]), "x, 1");
        assert_eq!(rendered(text, &[None, Some("2"), None]), "x, 2");
        assert_eq!(rendered(text, &[None, None, Some("3")]), "x");
    }

    #[test]
    fn malformed_templates_are_refused_with_their_place() {
        let deep = "[".repeat(MAX_DEPTH + 1);
        for (text, place) in [
            ("ä{a", 2),
            ("ä{a\\}", 2),
            ("a}", 2),
            ("{}", 1),
            ("[{a}", 1),
            ("[{a}[", 5),
            ("{a}]", 4),
            ("x[y]", 2),
            ("[{a}[]]", 5),
            ("äb\\", 3),
            ("{a\\", 3),
            (deep.as_str(), MAX_DEPTH + 1),
        ] {
            match parse(text) {
                Err(RuleError::InvalidTemplate { position, .. }) => {
                    assert_eq!(position, place, "{text}")
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_unknown_target_is_refused_with_its_place() {
        assert_eq!(
            parse("ä{A}"),
            Err(RuleError::TemplateUnknownTarget {
                name: "A".into(),
                position: 2,
                targets: NAMES.map(str::to_owned).into()
            })
        );
    }

    #[test]
    fn knows_where_targets_stand() {
        let template = parse("[{a}[{b c}]]{a}{a}").unwrap();
        assert_eq!(template.targets_outside_sections().collect::<Vec<_>>(), [0]);
        assert_eq!(template.unused_targets().collect::<Vec<_>>(), [2]);
    }

    fn escape(text: &str) -> String {
        text.chars().flat_map(|char| "{}[]\\".contains(char).then_some('\\').into_iter().chain([char])).collect()
    }

    fn write(pieces: &[Piece]) -> String {
        let write = |piece: &Piece| match piece {
            Piece::Text(text) => escape(text),
            Piece::Target(target) => format!("{{{}}}", escape(NAMES[*target])),
            Piece::Section(section) => format!("[{}]", write(section)),
        };
        pieces.iter().map(write).collect()
    }

    /// Pieces as the parser would produce them.
    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        fn normal(pieces: Vec<Piece>) -> Vec<Piece> {
            let mut normal: Vec<Piece> = Vec::new();
            for piece in pieces {
                match (normal.last_mut(), piece) {
                    (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                    (_, piece) => normal.push(piece),
                }
            }
            normal
        }
        let leaf =
            prop_oneof!["[a\\\\{}\\[\\]ä ]{1,4}".prop_map(Piece::Text), (0..NAMES.len()).prop_map(Piece::Target)];
        let piece = leaf.prop_recursive(4, 32, 4, |inner| {
            (prop::collection::vec(inner, 0..4), 0..NAMES.len()).prop_map(|(mut pieces, target)| {
                pieces.push(Piece::Target(target));
                Piece::Section(normal(pieces))
            })
        });
        prop::collection::vec(piece, 0..5).prop_map(normal)
    }

    fn values() -> impl Strategy<Value = Vec<Option<String>>> {
        prop::collection::vec(prop::option::of("[a{\\[\\\\]{0,3}"), NAMES.len())
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*", syntax in "[a{}\\[\\]\\\\ä]{0,40}") {
            let _ = (parse(&text), parse(&syntax));
        }

        #[test]
        fn what_parses_renders(syntax in "(\\{a\\}|\\{b c\\}|[\\[\\]\\\\ä]){0,12}", values in values()) {
            if let Ok(template) = parse(&syntax) {
                let values: Vec<_> = values.iter().map(Option::as_deref).collect();
                template.render(&values, &mut |_| ());
            }
        }

        #[test]
        fn parse_undoes_write(pieces in pieces()) {
            prop_assert_eq!(parse(&write(&pieces)).map(|template| template.pieces), Ok(pieces));
        }

        #[test]
        fn escaped_text_renders_as_itself(text in ".*") {
            prop_assert_eq!(rendered(&escape(&text), &[None; 3]), text);
        }

        /// With no NULLs, sections do nothing.
        #[test]
        fn given_values_are_all_rendered(pieces in pieces(), values in prop::collection::vec("[a{\\[\\\\]{0,3}", NAMES.len())) {
            fn flat(pieces: &[Piece], values: &[String]) -> String {
                pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Target(target) => values[*target].clone(),
                    Piece::Section(section) => flat(section, values),
                }).collect()
            }
            let given: Vec<_> = values.iter().map(|value| Some(value.as_str())).collect();
            prop_assert_eq!(rendered(&write(&pieces), &given), flat(&pieces, &values));
        }
    }
}
