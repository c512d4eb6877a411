//! The rule of a column split, as stored in the catalog and in the trigger's arguments. Pure: needs no server.

mod backtracker;
pub mod fit;
pub mod join;
mod matcher;
mod simulation;
pub mod split;
pub mod state;
pub mod template;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use fit::Fit;
pub use join::Joiner;
pub use split::Splitter;
pub use template::Template;

/// Everything needed to carry a write from one side of a change to the other.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The version of this format, [`Rule::VERSION`].
    pub version: u32,
    /// The id of the change; 0 in a preview.
    #[serde(default)]
    pub id: i64,
    /// The name of the change.
    pub change: String,
    /// The old side.
    pub source: Column,
    /// The new side, in the order of the `columns` argument.
    pub targets: Vec<Target>,
    /// From old to new: f.
    pub split: Split,
    /// From new to old: g.
    pub join: Join,
    /// What to do with a source that f does not accept.
    pub unmatched: Unmatched,
    /// What to do when a statement writes both sides and they disagree.
    pub conflict: Conflict,
    /// A source longer than this many bytes is unmatched.
    pub max_source_length: usize,
    /// Whether there are rows that have not been split: applications may have read NULLs that they write back later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expanding: bool,
}

/// The old column.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The name that applications and SQL rules know it by, unquoted.
    pub name: String,
    /// The name that it has while it is fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_to: Option<String>,
    /// Its type as `format_type` writes it.
    #[serde(rename = "type")]
    pub type_name: String,
}

impl Column {
    /// The name that it has in the table right now.
    pub fn current_name(&self) -> &str {
        self.renamed_to.as_deref().unwrap_or(&self.name)
    }
}

/// A new column.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name, unquoted.
    pub name: String,
    /// Its type as `format_type` writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Whether writes through the new side must give it a value.
    pub not_null: bool,
    /// Text longer than this would not fit into an index that was asked for, and so does not fit the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<usize>,
}

/// How the source is split.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// A regular expression whose named groups are the targets.
    Regex(String),
    /// The first target up to the first delimiter, …, the last takes the rest.
    Delimiter(String),
    /// One SQL expression per target.
    Sql(Vec<String>),
}

/// How the targets are joined.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// A [`Template`].
    Template(String),
    /// The targets that are not NULL, with a delimiter in between.
    Delimiter(String),
    /// An SQL expression.
    Sql(String),
}

/// What becomes of the targets when f does not accept the source.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// They are NULL.
    Null,
    /// The first takes the whole source.
    Whole,
    /// The write is rejected.
    Error,
}

impl Unmatched {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Whole => "whole",
            Self::Error => "error",
        }
    }
}

impl FromStr for Unmatched {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Null, Self::Whole, Self::Error].into_iter().find(|it| it.as_str() == word).ok_or(())
    }
}

/// Which side wins when one statement writes both and they disagree.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// The targets.
    New,
    /// The source.
    Old,
    /// Neither: the write is rejected.
    Error,
}

impl Conflict {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Old => "old",
            Self::Error => "error",
        }
    }
}

impl FromStr for Conflict {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::New, Self::Old, Self::Error].into_iter().find(|it| it.as_str() == word).ok_or(())
    }
}

impl Rule {
    /// The only format that this version writes and reads.
    pub const VERSION: u32 = 1;

    /// Whether SQL expressions split or join.
    pub fn has_sql(&self) -> bool {
        matches!(self.split, Split::Sql(_)) || matches!(self.join, Join::Sql(_))
    }

    /// The rule as JSON.
    pub fn to_json(&self) -> String {
        // Serialising strings, numbers and lists into memory has nothing to fail at.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The rule that [`Rule::to_json`] wrote.
    pub fn from_json(json: &str) -> Result<Rule, RuleError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let invalid = |error: serde_json::Error| RuleError::InvalidRule(error.to_string());
        // The version comes first: a later format may have other fields.
        match serde_json::from_str(json).map_err(invalid)? {
            Version { version: Self::VERSION } => serde_json::from_str(json).map_err(invalid),
            Version { version } => Err(RuleError::UnknownVersion { version }),
        }
    }
}

/// Why a rule cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleError {
    /// The regex does not compile; `message` may have several lines that point at the place.
    InvalidRegex { message: String },
    /// A named group is not called like any target.
    GroupWithoutTarget { group: String, targets: Vec<String> },
    /// No named group is called like this target.
    TargetWithoutGroup { target: String, groups: Vec<String> },
    /// The delimiter to split at is empty.
    EmptyDelimiter,
    /// `split_sql` has not exactly one expression per target.
    ExpressionCount { expressions: usize, targets: usize },
    /// The template is malformed at this character, counted from 1.
    InvalidTemplate { message: String, position: usize },
    /// The template names something else than a target at this character, counted from 1.
    TemplateUnknownTarget { name: String, position: usize, targets: Vec<String> },
    /// A text of the rule is longer than it may be.
    TooLong { what: &'static str, bytes: usize, limit: usize },
    /// A stored rule is of a format that this version does not know.
    UnknownVersion { version: u32 },
    /// A stored rule cannot be read.
    InvalidRule(String),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRegex { message } => write!(f, "invalid regex: {message}"),
            Self::GroupWithoutTarget { group, .. } => {
                write!(f, "regex group \"{group}\" is not a target column")
            }
            Self::TargetWithoutGroup { target, .. } => {
                write!(f, "target column \"{target}\" has no named group in the regex")
            }
            Self::EmptyDelimiter => write!(f, "the delimiter is empty"),
            Self::ExpressionCount { expressions, targets } => {
                write!(f, "split_sql has {expressions} expressions for {targets} target columns")
            }
            Self::InvalidTemplate { message, position } => {
                write!(f, "invalid join template: {message} at character {position}")
            }
            Self::TemplateUnknownTarget { name, position, .. } => {
                write!(f, "join template names \"{name}\" at character {position}, which is not a target column")
            }
            Self::TooLong { what, bytes, limit } => {
                write!(f, "the {what} has {bytes} bytes, more than the limit of {limit}")
            }
            Self::UnknownVersion { version } => write!(
                f,
                "the rule is of format version {version}, but this pg_zdd knows only version {}",
                Rule::VERSION
            ),
            Self::InvalidRule(message) => write!(f, "the stored rule cannot be read: {message}"),
        }
    }
}

impl std::error::Error for RuleError {}

/// A limit that the work on one value has run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// A joined text would be longer than [`join::MAX_LENGTH`].
    Length { bytes: usize },
    /// There is no memory for so many bytes.
    Memory { bytes: usize },
}

/// The most bytes that a template, a delimiter or an SQL expression may have. What is read bounds what reading it takes.
const TEXT_LIMIT: usize = 64 << 10;

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), RuleError> {
    let bytes = text.len();
    if bytes > limit { Err(RuleError::TooLong { what, bytes, limit }) } else { Ok(()) }
}

/// The names of the targets, for an error to list.
fn names(targets: &[Target]) -> Vec<String> {
    targets.iter().map(|target| target.name.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Targets of type text with these names.
    pub(crate) fn targets(names: &[&str]) -> Vec<Target> {
        let target =
            |name: &&str| Target { name: name.to_string(), type_name: "text".into(), not_null: false, max_bytes: None };
        names.iter().map(target).collect()
    }

    fn address() -> Rule {
        Rule {
            version: Rule::VERSION,
            id: 7,
            change: "address.street".into(),
            source: Column { name: "street".into(), renamed_to: None, type_name: "text".into() },
            targets: targets(&["streetname", "housenumber"]),
            split: Split::Regex("^(?<streetname>.+?)(?:\\s+(?<housenumber>\\d\\S*))?$".into()),
            join: Join::Template("{streetname}[ {housenumber}]".into()),
            unmatched: Unmatched::Null,
            conflict: Conflict::New,
            max_source_length: 65_536,
            expanding: true,
        }
    }

    #[test]
    fn json_round_trips_every_kind_of_rule() {
        let splits = [
            Split::Regex("(?<a>\"\\w)".into()),
            Split::Delimiter("\u{1F600}".into()),
            Split::Sql(vec!["lower(a)".into()]),
        ];
        let joins = [Join::Template("{a}".into()), Join::Delimiter("'".into()), Join::Sql("a || b".into())];
        for (split, join) in splits.into_iter().zip(joins) {
            let rule = Rule { split, join, unmatched: Unmatched::Whole, conflict: Conflict::Error, ..address() };
            assert_eq!(Rule::from_json(&rule.to_json()), Ok(rule));
        }
    }

    #[test]
    fn the_stored_format_does_not_change() {
        let json = r#"{"version":1,"id":7,"change":"address.street","source":{"name":"street","type":"text"},"targets":[{"name":"streetname","type":"text","not_null":false},{"name":"housenumber","type":"text","not_null":false}],"split":{"regex":"^(?<streetname>.+?)(?:\\s+(?<housenumber>\\d\\S*))?$"},"join":{"template":"{streetname}[ {housenumber}]"},"unmatched":"null","conflict":"new","max_source_length":65536,"expanding":true}"#;
        assert_eq!(address().to_json(), json);
    }

    #[test]
    fn a_later_format_is_named_as_such() {
        let error = Rule::from_json(r#"{"version": 2, "wheels": 4}"#).unwrap_err();
        assert_eq!(error, RuleError::UnknownVersion { version: 2 });
        assert!(error.to_string().contains("version 2"));
    }

    #[test]
    fn garbage_is_no_rule() {
        let extra = address().to_json().replacen('{', r#"{"wheels":4,"#, 1);
        for json in ["", "{}", "[]", r#"{"version":1}"#, &extra] {
            assert!(matches!(Rule::from_json(json), Err(RuleError::InvalidRule(_))));
        }
    }

    #[test]
    fn words_round_trip() {
        for word in ["null", "whole", "error"] {
            assert_eq!(word.parse().map(Unmatched::as_str), Ok(word));
        }
        for word in ["new", "old", "error"] {
            assert_eq!(word.parse().map(Conflict::as_str), Ok(word));
        }
        assert_eq!("Null".parse::<Unmatched>(), Err(()));
        assert_eq!("".parse::<Conflict>(), Err(()));
    }
}
