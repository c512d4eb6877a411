//! From new to old: g.

use super::{Join, RuleError, Target, Template};

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
            Join::Template(text) => Some(Joiner(Kind::Template(Template::parse(text, targets)?))),
            Join::Delimiter(delimiter) => Some(Joiner(Kind::Delimiter(delimiter.clone()))),
            Join::Sql(_) => None,
        })
    }

    /// The source for these values, one per target, written into `buffer`. NULL when all of them are NULL.
    pub fn join<'b>(&self, values: &[Option<&str>], buffer: &'b mut String) -> Option<&'b str> {
        buffer.clear();
        let mut given = values.iter().flatten();
        let first = given.next()?;
        match &self.0 {
            Kind::Template(template) => template.render(values, buffer),
            Kind::Delimiter(delimiter) => {
                buffer.push_str(first);
                for value in given {
                    buffer.push_str(delimiter);
                    buffer.push_str(value);
                }
            }
        }
        Some(buffer)
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
        joiner.join(values, &mut buffer).map(str::to_owned)
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
