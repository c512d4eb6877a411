//! From new to old: g.

use super::{Exceeded, Join, RuleError, TEXT_LIMIT, Target, Template, check_length};

/// The most bytes that a joined text may have: what PostgreSQL can store in one value, without its length word.
pub const MAX_LENGTH: usize = 0x3fff_ffff - 4;

/// How many bytes are copied between two interrupts.
const COPIED_AT_ONCE: usize = 1 << 20;

/// A compiled join rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Template(Template),
    Delimiter(String),
}

impl Joiner {
    /// Checks and compiles the rule; `None` for SQL, which only the server can evaluate.
    pub fn new(join: &Join, targets: &[Target]) -> Result<Option<Joiner>, RuleError> {
        Ok(match join {
            Join::Template(text) => {
                check_length("join template", text, TEXT_LIMIT)?;
                Some(Joiner(Kind::Template(Template::parse(text, targets)?)))
            }
            Join::Delimiter(delimiter) => {
                check_length("delimiter", delimiter, TEXT_LIMIT)?;
                Some(Joiner(Kind::Delimiter(delimiter.clone())))
            }
            Join::Sql(text) => {
                check_length("expression of join_sql", text, TEXT_LIMIT)?;
                None
            }
        })
    }

    /// The source for these values, one per target, written into `buffer`. NULL when all of them are NULL. `interrupt` is
    /// called every few milliseconds and may unwind.
    pub fn join<'b>(
        &self,
        values: &[Option<&str>],
        buffer: &'b mut String,
        interrupt: &mut dyn FnMut(),
    ) -> Result<Option<&'b str>, Exceeded> {
        buffer.clear();
        if values.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut bytes = 0usize;
        self.each_piece(values, &mut |piece| bytes = bytes.saturating_add(piece.len()));
        if bytes > MAX_LENGTH {
            return Err(Exceeded::Length { bytes });
        }
        buffer.try_reserve_exact(bytes).map_err(|_| Exceeded::Memory { bytes })?;
        let mut copied = 0;
        self.each_piece(values, &mut |piece| {
            copied += piece.len();
            if copied >= COPIED_AT_ONCE {
                copied = 0;
                interrupt();
            }
            buffer.push_str(piece);
        });
        Ok(Some(buffer))
    }

    /// Calls `each` with the pieces of the source in their order.
    fn each_piece(&self, values: &[Option<&str>], each: &mut impl FnMut(&str)) {
        match &self.0 {
            Kind::Template(template) => template.render(values, each),
            Kind::Delimiter(delimiter) => {
                for (index, value) in values.iter().flatten().enumerate() {
                    if index > 0 {
                        each(delimiter);
                    }
                    each(value);
                }
            }
        }
    }

    /// The template, if that is what joins.
    pub fn template(&self) -> Option<&Template> {
        match &self.0 {
            Kind::Template(template) => Some(template),
            Kind::Delimiter(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::tests::targets;

    fn joined(join: Join, values: &[Option<&str>]) -> Option<String> {
        let joiner = Joiner::new(&join, &targets(&["a", "b", "c"])).unwrap().unwrap();
        let mut buffer = "left over".to_owned();
        joiner.join(values, &mut buffer, &mut || ()).unwrap().map(str::to_owned)
    }

    fn delimited(values: &[Option<&str>]) -> Option<String> {
        joined(Join::Delimiter(", ".into()), values)
    }

    fn templated(values: &[Option<&str>]) -> Option<String> {
        joined(Join::Template("{a}[ {b}]{c}".into()), values)
    }

    #[test]
    fn nulls_only_give_null() {
        assert_eq!(delimited(&[None; 3]), None);
        assert_eq!(templated(&[None; 3]), None);
    }

    #[test]
    fn delimiter_leaves_out_nulls() {
        assert_eq!(delimited(&[Some("x"), None, Some("")]), Some("x, ".into()));
        assert_eq!(delimited(&[None, Some("y"), None]), Some("y".into()));
        assert_eq!(delimited(&[None, Some(""), Some("z")]), Some(", z".into()));
    }

    #[test]
    fn template_renders() {
        assert_eq!(templated(&[Some("x"), Some("y"), None]), Some("x y".into()));
        assert_eq!(templated(&[Some(""), None, None]), Some("".into()));
    }

    #[test]
    fn what_would_be_too_long_is_not_begun() {
        let value = "x".repeat(5_000_000);
        let template = |count: usize| Join::Template("{a}".repeat(count));
        let mut buffer = String::new();
        let mut length = |join: Join, values: &[Option<&str>]| {
            let joiner = Joiner::new(&join, &targets(&["a", "b", "c"])).unwrap().unwrap();
            let joined = joiner.join(values, &mut buffer, &mut || ()).map(|joined| joined.map(str::len));
            assert!(joined.is_ok() || buffer.capacity() == 0);
            joined
        };
        let values = [Some(value.as_str()), None, None];
        assert_eq!(length(template(2000), &values), Err(Exceeded::Length { bytes: 10_000_000_000 }));
        // One byte more than there may be.
        let rest = "x".repeat(MAX_LENGTH + 1 - 214 * value.len());
        let template = Join::Template(format!("{}{{c}}", "{a}".repeat(214)));
        assert_eq!(length(template, &[values[0], None, Some(&rest)]), Err(Exceeded::Length { bytes: MAX_LENGTH + 1 }));
    }

    #[test]
    fn a_long_join_can_be_interrupted() {
        let joiner = Joiner::new(&Join::Template("{a}".repeat(1000)), &targets(&["a"])).unwrap().unwrap();
        let value = "x".repeat(100_000);
        let (mut buffer, mut interrupts) = (String::new(), 0);
        let joined = joiner.join(&[Some(&value)], &mut buffer, &mut || interrupts += 1).unwrap();
        assert_eq!(joined.map(str::len), Some(100_000_000));
        assert!(interrupts >= 90, "{interrupts}");
    }

    #[test]
    fn sql_is_left_to_the_server() {
        let sql = Join::Sql("a || b".into());
        assert_eq!(Joiner::new(&sql, &targets(&["a"])), Ok(None));
    }

    #[test]
    fn only_a_template_has_one() {
        let template = |join| {
            let joiner = Joiner::new(&join, &targets(&["a"])).unwrap().unwrap();
            joiner.template().cloned()
        };
        assert_eq!(template(Join::Template("{a}".into())), Template::parse("{a}", &targets(&["a"])).ok());
        assert_eq!(template(Join::Delimiter(",".into())), None);
        assert!(Joiner::new(&Join::Template("{x}".into()), &targets(&["a"])).is_err());
    }
}
