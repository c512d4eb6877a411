//! Every error that pg_zdd raises: SQLSTATE, message, detail and hint.

use std::time::Duration;

use pgrx::PgSqlErrorCode as Code;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::spi::SpiError;

use crate::backfill::plan::format_duration;
use crate::pg::subxact::Caught;
use crate::phase::{IllegalMove, Phase};
use crate::rule::RuleError;
use crate::rule::join::MAX_LENGTH;

/// What went wrong.
#[derive(Debug)]
pub enum Error {
    // Arguments.
    NotColumns,
    ColumnSyntax {
        message: String,
    },
    ColumnConstraint {
        column: String,
    },
    NamedNotNull {
        column: String,
    },
    TableConstraint,
    DuplicateTarget {
        column: String,
    },
    NotCollatable {
        column: String,
        type_name: String,
    },
    UnsupportedType {
        column: String,
        type_name: String,
    },
    ConstrainedDomain {
        column: String,
        type_name: String,
    },
    NoSplitRule,
    SeveralSplitRules,
    NoJoinRule,
    SeveralJoinRules,
    Rule(RuleError),
    BadWord {
        argument: &'static str,
        value: String,
        allowed: &'static [&'static str],
    },
    BadNumber {
        argument: &'static str,
        value: String,
        allowed: &'static str,
    },
    EmptyName,
    WholeNeedsText {
        column: String,
    },
    UnknownIndexColumn {
        column: String,
        targets: Vec<String>,
    },
    NotAnExpression {
        argument: &'static str,
        text: String,
    },
    ExpressionType {
        argument: &'static str,
        text: String,
        found: String,
        wanted: String,
    },
    MutableExpression {
        argument: &'static str,
        text: String,
    },
    DefaultNotConstant {
        column: String,
    },
    TemporaryObject {
        object: String,
    },
    /// PostgreSQL's words are about generated columns.
    RuleExpression {
        argument: &'static str,
        code: Code,
        message: String,
    },
    /// What PostgreSQL does not find.
    RuleName {
        argument: &'static str,
        code: Code,
        message: String,
    },
    ForeignObject {
        object: String,
        user: String,
        owner: String,
    },
    MissingArgument {
        argument: &'static str,
    },

    // The table.
    NoSuchTable {
        oid: u32,
    },
    NotOwner {
        relation: String,
    },
    NotATable {
        relation: String,
        what: &'static str,
    },
    SystemTable {
        relation: String,
    },
    TemporaryTable {
        relation: String,
    },
    Partition {
        relation: String,
        parent: String,
    },
    InheritedColumn {
        relation: String,
        column: String,
    },
    OtherParent {
        relation: String,
        column: String,
        parent: String,
    },
    ForeignPartition {
        relation: String,
        partition: String,
    },
    /// Of the table or a partition of it.
    AccessMethod {
        relation: String,
        method: String,
    },
    Citus {
        relation: String,
    },
    /// SQL finds rows where we see none.
    UnseenRows {
        relation: String,
    },
    NoSuchColumn {
        relation: String,
        column: String,
    },
    TargetExists {
        relation: String,
        column: String,
    },
    GeneratedSource {
        relation: String,
        column: String,
    },
    PartitionKey {
        relation: String,
        column: String,
    },
    SourceInChange {
        relation: String,
        column: String,
        change: String,
    },
    ChangeExists {
        change: String,
    },
    /// Somebody has changed what work on it stands on.
    ClaimMoved {
        change: String,
        work: &'static str,
        verb: &'static str,
        role: String,
        at: String,
    },
    /// Another verb changes it.
    ChangeLocked {
        change: String,
        holders: Vec<String>,
    },
    /// Somebody else is taking the name.
    NameTaken {
        change: String,
        attempts: u32,
        patience: Duration,
    },
    LateTrigger {
        relation: String,
        trigger: String,
        ours: String,
    },
    NotUtf8 {
        encoding: String,
    },
    LockTimeout {
        relation: String,
        attempts: u32,
        patience: Duration,
        blockers: Vec<String>,
    },

    // A change and its phases.
    NoSuchChange {
        change: String,
    },
    Final {
        change: String,
        phase: Phase,
    },
    Move {
        change: String,
        illegal: IllegalMove,
    },
    WrongPhase {
        change: String,
        phase: Phase,
        action: &'static str,
        hint: &'static str,
    },
    NotInSync {
        change: String,
        pending: i64,
        diverged: i64,
    },
    NullViolations {
        change: String,
        rows: i64,
    },
    UnmatchedRows {
        change: String,
        rows: i64,
    },
    LossyRows {
        change: String,
        rows: i64,
    },
    ArchiveName {
        name: String,
    },
    NoSuchSchema {
        schema: String,
    },
    ArchiveDenied {
        schema: String,
        owner: String,
    },
    ArchiveShape {
        archive: String,
        problems: Vec<String>,
    },
    Dependents {
        change: String,
        column: String,
        what: &'static str,
        dependents: Vec<String>,
    },
    InUse {
        change: String,
        quiet_period: Duration,
        users: Vec<String>,
    },
    UsageUnknown {
        change: String,
        fenced_for: Option<Duration>,
        quiet_period: Duration,
        reason: String,
    },
    WholeTooLate {
        change: String,
        phase: Phase,
    },
    TableGone {
        change: String,
    },
    BrokenRule {
        relation: String,
        message: String,
    },
    Guard {
        change: String,
        message: String,
        hint: &'static str,
    },

    /// Somebody has paused it.
    Paused {
        change: String,
        role: String,
    },
    NotPaused {
        change: String,
    },
    NothingToPause {
        change: String,
    },
    ContractRunning {
        change: String,
    },
    BackfillRunning {
        change: String,
    },
    /// Code of the table has released the lock that tells who works.
    LocksGivenUp {
        change: String,
    },
    Prepared,
    /// A job ended with an error that is written down.
    Stopped {
        change: String,
        error: String,
        hint: Option<String>,
    },
    NotReached {
        change: String,
        phase: Phase,
        wanted: Phase,
        waited: Duration,
        waiting_for: Option<String>,
    },
    BadCondition {
        sql: String,
        message: String,
    },
    ActiveChanges {
        changes: Vec<String>,
    },

    // Rows.
    // Their values are left out for those who may not see them.
    UnmatchedValue {
        change: String,
        column: String,
        value: Option<String>,
    },
    Conflict {
        change: String,
        /// Old and new side.
        sides: Option<[String; 2]>,
    },
    NotNull {
        change: String,
        relation: String,
        column: String,
    },
    DoesNotFit {
        change: String,
        column: String,
        type_name: String,
        value: Option<String>,
    },
    JoinTooLong {
        change: String,
        column: String,
        bytes: usize,
    },
    OutOfMemory {
        bytes: usize,
    },

    // Calls.
    InTransactionBlock {
        procedure: &'static str,
    },
    NotATrigger,
    NotAnEventTrigger,
    NotInstalled,
    /// The SQL of a rule that no active change has registered.
    RuleNotRegistered {
        change: String,
        relation: String,
    },
    StrangeTrigger {
        trigger: String,
        relation: String,
    },
    Spi(String),
    /// An error of PostgreSQL's, on its way to the caller.
    Caught(Caught),
}

/// What a row violates, as far as an error can tell programs.
pub enum Violated<'e> {
    Row,
    Column(&'e str),
}

struct Parts {
    code: Code,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

fn parts(code: Code, message: impl Into<String>) -> Parts {
    Parts { code, message: message.into(), detail: None, hint: None }
}

impl Parts {
    fn detail(mut self, detail: impl Into<String>) -> Parts {
        self.detail = Some(detail.into());
        self
    }

    fn detail_of(mut self, detail: Option<String>) -> Parts {
        self.detail = detail;
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Parts {
        self.hint = Some(hint.into());
        self
    }
}

/// Names as they are read in a sentence.
fn list<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A value as it is shown in a message: a long one is shortened.
pub fn shown(value: &str) -> String {
    shortened(value, 100)
}

/// A value of which at most so many characters are shown.
pub fn shortened(value: &str, most: usize) -> String {
    match value.char_indices().nth(most) {
        Some((end, _)) => format!("{}... ({} bytes)", &value[..end], value.len()),
        None => value.to_owned(),
    }
}

fn rows(count: i64) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}

fn tries(count: u32) -> String {
    if count == 1 { "1 attempt".into() } else { format!("{count} attempts") }
}

/// A verb that agrees with a number of rows.
fn agree(count: i64, singular: &'static str, plural: &'static str) -> &'static str {
    if count == 1 { singular } else { plural }
}

impl Error {
    fn parts(&self) -> Parts {
        use Error::*;
        match self {
            NotColumns => parts(Code::ERRCODE_SYNTAX_ERROR, "the columns are not a list of column definitions")
                .hint("Write them as in CREATE TABLE, such as columns => 'streetname varchar NOT NULL, housenumber varchar'."),
            ColumnSyntax { message } => parts(Code::ERRCODE_SYNTAX_ERROR, format!("invalid column definitions: {message}"))
                .hint("Write them as in CREATE TABLE, such as columns => 'streetname varchar NOT NULL, housenumber varchar'."),
            ColumnConstraint { column } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("the definition of column \"{column}\" has a constraint that a change cannot carry"),
            )
            .detail("Allowed are a type, COLLATE, NOT NULL and DEFAULT.")
            .hint("Add other constraints after the contract."),
            NamedNotNull { column } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("NOT NULL of column \"{column}\" has a name or NO INHERIT, which a change cannot carry"),
            )
            .detail("The contract sets NOT NULL on the column of the table and of all its partitions and children.")
            .hint("Write NOT NULL alone. From PostgreSQL 18 on it can be renamed after the contract."),
            TableConstraint => parts(Code::ERRCODE_FEATURE_NOT_SUPPORTED, "the columns have a table constraint")
                .detail("Allowed are column definitions with a type, COLLATE, NOT NULL and DEFAULT.")
                .hint("Add other constraints after the contract."),
            DuplicateTarget { column } => {
                parts(Code::ERRCODE_DUPLICATE_COLUMN, format!("column \"{column}\" is defined more than once"))
            }
            NotCollatable { column, type_name } => parts(
                Code::ERRCODE_DATATYPE_MISMATCH,
                format!("the type of column \"{column}\" does not support collations"),
            )
            .detail(format!("Its type is {type_name}.")),
            UnsupportedType { column, type_name } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{column}\" has a type that this rule cannot handle"),
            )
            .detail(format!(
                "Its type is {type_name}. A regex, delimiter or template handles text, varchar, char and citext, and as new columns also smallint, integer, bigint and numeric."
            ))
            .hint("Use split_sql and join_sql for this column."),
            ConstrainedDomain { column, type_name } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{column}\" has a domain with constraints"),
            )
            .detail(format!("PostgreSQL rewrites the whole table, locked, to add a column of the domain {type_name}."))
            .hint("Use the domain's base type, and change the type after the contract."),
            NoSplitRule => parts(Code::ERRCODE_INVALID_PARAMETER_VALUE, "there is no split rule")
                .hint("Give one of regex, delimiter and split_sql."),
            SeveralSplitRules => parts(Code::ERRCODE_INVALID_PARAMETER_VALUE, "there is more than one split rule")
                .hint("Give exactly one of regex, delimiter and split_sql."),
            NoJoinRule => parts(Code::ERRCODE_INVALID_PARAMETER_VALUE, "there is no join rule")
                .detail("Writes of the new application must be carried over into the old column.")
                .hint("Give one of join and join_sql, such as \"join\" => '{streetname}[ {housenumber}]'."),
            SeveralJoinRules => parts(Code::ERRCODE_INVALID_PARAMETER_VALUE, "there is more than one join rule")
                .hint("Give one of join and join_sql."),
            Rule(error) => rule_parts(error),
            BadWord { argument, value, allowed } => parts(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid value for {argument}: \"{value}\""),
            )
            .hint(format!("Allowed are {}.", list(allowed))),
            BadNumber { argument, value, allowed } => parts(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid value for {argument}: {value}"),
            )
            .hint(format!("Allowed is {allowed}.")),
            EmptyName => parts(Code::ERRCODE_INVALID_PARAMETER_VALUE, "the name of a change must not be empty")
                .hint("Leave it out to have it called table.column."),
            WholeNeedsText { column } => parts(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("unmatched => 'whole' cannot put a text into column \"{column}\""),
            )
            .hint("Give the first new column a text type, or use unmatched => 'null'."),
            UnknownIndexColumn { column, targets } => parts(
                Code::ERRCODE_UNDEFINED_COLUMN,
                format!("indexes names \"{column}\", which is not a new column"),
            )
            .detail(format!("The new columns are {}.", list(targets)))
            .hint("indexes takes an element for each index: the name of a new column, or several with commas in between."),
            NotAnExpression { argument, text } => {
                parts(Code::ERRCODE_SYNTAX_ERROR, format!("{argument} is not one SQL expression: {}", shown(text)))
            }
            ExpressionType { argument, text, found, wanted } => parts(
                Code::ERRCODE_DATATYPE_MISMATCH,
                format!("{argument} gives {found}, which cannot be assigned to {wanted}"),
            )
            .detail(format!("The expression is {}", shown(text)))
            .hint("Cast the result of the expression."),
            MutableExpression { argument, text } => parts(
                Code::ERRCODE_INVALID_OBJECT_DEFINITION,
                format!("the expression of {argument} is not immutable: {}", shown(text)),
            )
            .detail("The same value must give the same result in every session, worker and year. This expression depends on a setting, on the time or on tables.")
            .hint("Use immutable functions, and cast what is not text before || (x::text). Where you know better than PostgreSQL, wrap it: CREATE FUNCTION my_date(text) RETURNS date LANGUAGE sql IMMUTABLE STRICT SET DateStyle = 'ISO, YMD' AS 'SELECT $1::date'; then my_date(...), with its schema."),
            DefaultNotConstant { column } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("the DEFAULT of new column \"{column}\" is not a constant"),
            )
            .detail("It could not be told from what an application has given.")
            .hint("Use a literal, or an expression over built-in immutable functions; set another default after the contract."),
            TemporaryObject { object } => {
                parts(Code::ERRCODE_FEATURE_NOT_SUPPORTED, format!("a rule must not use a temporary object: {object}"))
                    .detail("It is gone when your session ends, and other sessions cannot see it.")
                    .hint("Create it in an ordinary schema.")
            }
            RuleExpression { argument, code, message } => {
                parts(*code, format!("{argument}: {message}"))
                    .hint("An expression of a rule computes one value from the columns of one side of one row. Put what takes more into an immutable function.")
            }
            RuleName { argument, code, message } => parts(*code, format!("{argument}: {message}"))
                .hint("Name functions, operators and types of other schemas with their schema: the SQL of a rule finds pg_catalog alone. Or cast what it is given."),
            ForeignObject { object, user, owner } => parts(
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("a rule must not use {object} of role \"{user}\""),
            )
            .detail(format!("The rule runs with the rights of \"{owner}\", who owns the table. Role \"{user}\" could make it do anything else."))
            .hint("Use what is built in, or belongs to an extension, to a superuser, or to the owner of the table: for example a function of your own that calls it."),
            MissingArgument { argument } => {
                parts(Code::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("{argument} must not be NULL"))
            }
            NoSuchTable { oid } => parts(Code::ERRCODE_UNDEFINED_TABLE, format!("there is no table with OID {oid}")),
            NotOwner { relation } => {
                parts(Code::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {relation}"))
            }
            NotATable { relation, what } => {
                parts(Code::ERRCODE_WRONG_OBJECT_TYPE, format!("{relation} is not a table"))
                    .detail(format!("It is {what}."))
                    .hint("Name the table that has the rows.")
            }
            SystemTable { relation } => {
                parts(Code::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("{relation} is a system catalog"))
            }
            TemporaryTable { relation } => {
                parts(Code::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{relation} is a temporary table"))
                    .hint("Only its own session sees a temporary table: ALTER TABLE and UPDATE will do.")
            }
            Partition { relation, parent } => {
                parts(Code::ERRCODE_WRONG_OBJECT_TYPE, format!("{relation} is a partition"))
                    .detail(format!("It is a partition of {parent}."))
                    .hint("Name the partitioned table: a change covers all its partitions.")
            }
            InheritedColumn { relation, column } => parts(
                Code::ERRCODE_INVALID_TABLE_DEFINITION,
                format!("column \"{column}\" of {relation} is inherited"),
            )
            .hint("Name the parent table: a change covers all its children."),
            OtherParent { relation, column, parent } => parts(
                Code::ERRCODE_INVALID_TABLE_DEFINITION,
                format!("column \"{column}\" of {relation} is inherited from another table too"),
            )
            .detail(format!("The other parent is {parent}: the column could be neither fenced nor dropped."))
            .hint("Detach the table from one of its parents with ALTER TABLE ... NO INHERIT."),
            AccessMethod { relation, method } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("access method \"{method}\" of {relation} has no TID range scans"),
            )
            .detail("Existing rows could be neither split in batches nor verified.")
            .hint(format!("Move the rows to one that has them, such as with ALTER TABLE {relation} SET ACCESS METHOD heap.")),
            Citus { relation } => {
                parts(Code::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{relation} is a table or shard of Citus"))
                    .detail("Its rows are in shards on several servers, where they could be neither split nor verified from here.")
                    .hint("Make it an ordinary table first, with SELECT undistribute_table(...).")
            }
            UnseenRows { relation } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("no row of {relation} could be looked at, but it has rows"),
            )
            .detail("A query finds rows where a scan of the table's blocks finds none.")
            .hint("Does another extension keep the rows elsewhere? Move them to an ordinary heap table."),
            ForeignPartition { relation, partition } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("{relation} has a foreign table as a partition or child"),
            )
            .detail(format!("The foreign table is {partition}; its rows can be written without passing this server."))
            .hint("Detach it first."),
            NoSuchColumn { relation, column } => parts(
                Code::ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{column}\" of relation {relation} does not exist"),
            ),
            TargetExists { relation, column } => parts(
                Code::ERRCODE_DUPLICATE_COLUMN,
                format!("column \"{column}\" of relation {relation} already exists"),
            )
            .hint("A change creates its new columns itself. Choose other names, or drop the column."),
            GeneratedSource { relation, column } => parts(
                Code::ERRCODE_INVALID_TABLE_DEFINITION,
                format!("column \"{column}\" of {relation} is a generated or identity column"),
            )
            .detail("Writes of the new application could not be carried over into it.")
            .hint("Split the columns that it is generated from, or make it an ordinary column first (ALTER TABLE ... ALTER COLUMN ... DROP EXPRESSION, or DROP IDENTITY)."),
            PartitionKey { relation, column } => parts(
                Code::ERRCODE_INVALID_TABLE_DEFINITION,
                format!("column \"{column}\" is in the partition key of {relation}"),
            )
            .detail("A column in a partition key can neither be dropped nor written by a trigger.")
            .hint("Partition the table by another column, or leave this one as it is."),
            SourceInChange { relation, column, change } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("column \"{column}\" of {relation} is already part of an active change"),
            )
            .detail(format!("The change is \"{change}\"."))
            .hint("Finish it with CALL zdd.contract(...), or give it up with SELECT zdd.rollback(...)."),
            ClaimMoved { change, work, verb, role, at } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the {work} of change \"{change}\" ended, since somebody has changed what it stood on"),
            )
            .detail(format!("It was {verb}, by role {role} at {at}."))
            .hint("SELECT * FROM zdd.events tells the story. Call it again if it is still wanted."),
            ChangeLocked { change, holders } => parts(
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("another session is changing change \"{change}\""),
            )
            .detail(if holders.is_empty() {
                "It has just finished.".to_owned()
            } else {
                format!("It is locked by:\n{}", holders.join("\n"))
            })
            .hint("Try again when they have ended, end them with pg_terminate_backend(pid), or raise zdd.lock_patience."),
            BackfillRunning { change } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("a backfill of change \"{change}\" is not finished"),
            )
            .hint("SELECT * FROM zdd.progress shows what it does or waits for; CALL zdd.wait_for(...) waits for its end."),
            NameTaken { change, attempts, patience } => parts(
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("another transaction is about to begin a change of the name \"{change}\""),
            )
            .detail(format!("It has not ended after {} in {}.", tries(*attempts), format_duration(*patience)))
            .hint("Give the change another name with change => '...', or try again when that transaction has ended."),
            ChangeExists { change } => {
                parts(Code::ERRCODE_DUPLICATE_OBJECT, format!("there is already an active change \"{change}\""))
                    .hint("Choose another name with change => '...'.")
            }
            LateTrigger { relation, trigger, ours } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("trigger \"{trigger}\" of {relation} would fire after the sync trigger"),
            )
            .detail(format!("BEFORE triggers fire in the order of their names; the sync trigger is \"{ours}\" and must see what the others wrote."))
            .hint("Give the trigger a name that sorts before it."),
            NotUtf8 { encoding } => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("the encoding of this database is {encoding}"),
            )
            .detail("pg_zdd needs UTF8."),
            LockTimeout { relation, attempts, patience, blockers } => parts(
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("could not lock {relation} within {}", format_duration(*patience)),
            )
            .detail(if blockers.is_empty() {
                format!("Gave up after {}; whoever held the lock has just released it.", tries(*attempts))
            } else {
                format!("Gave up after {}. The lock is held by:\n{}", tries(*attempts), blockers.join("\n"))
            })
            .hint("Try again when they have ended, end them with pg_terminate_backend(pid), or raise zdd.lock_patience."),
            NoSuchChange { change } => {
                parts(Code::ERRCODE_UNDEFINED_OBJECT, format!("there is no change \"{change}\""))
                    .hint("SELECT change, phase FROM zdd.changes lists them.")
            }
            Final { change, phase } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("change \"{change}\" is {}, which is final", phase.as_str()),
            )
            .hint("Begin a new one with zdd.split_column(...)."),
            Move { change, illegal } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("change \"{change}\": {illegal}"),
            )
            .hint(illegal.hint()),
            WrongPhase { change, phase, action, hint } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("cannot {action} change \"{change}\" while it is {}", phase.as_str()),
            )
            .hint(*hint),
            NotInSync { change, pending, diverged } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the two sides of change \"{change}\" are not in sync"),
            )
            .detail(format!("{} pending, {} diverged.", rows(*pending), rows(*diverged)))
            .hint(if *diverged > 0 {
                "SELECT * FROM zdd.mismatches(change) shows them; CALL zdd.repair(change, winner => 'new' or 'old') settles diverged rows."
            } else {
                "CALL zdd.backfill(change) splits pending rows."
            }),
            NullViolations { change, rows: count } => parts(
                Code::ERRCODE_NOT_NULL_VIOLATION,
                format!(
                    "{} of change \"{change}\" {} NULL in a new column that is NOT NULL",
                    rows(*count),
                    agree(*count, "has", "have")
                ),
            )
            .hint("SELECT * FROM zdd.mismatches(change) shows them. Give them a value through the new columns first."),
            UnmatchedRows { change, rows: count } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("{} of change \"{change}\" {} unmatched", rows(*count), agree(*count, "is", "are")),
            )
            .detail("The split rule does not accept their old value, which would be lost.")
            .hint("SELECT * FROM zdd.mismatches(change) shows them. Give them new values, or say archive => 'schema.table', which keeps the old ones, or accept_unmatched => true."),
            LossyRows { change, rows: count } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("{} of change \"{change}\" {} lossy", rows(*count), agree(*count, "is", "are")),
            )
            .detail("The new columns joined would not give their old value back, which would be lost.")
            .hint("SELECT * FROM zdd.mismatches(change) shows them. Give them new values, or say archive => 'schema.table', which keeps the old ones, or accept_lossy => true."),
            ArchiveName { name } => {
                parts(Code::ERRCODE_INVALID_NAME, format!("\"{name}\" cannot be the name of an archive"))
                    .detail("It is no name of a table, or one in a schema of the system.")
                    .hint("Name a table as archive => 'schema.table'; without a schema it is made beside the table of the change.")
            }
            NoSuchSchema { schema } => {
                parts(Code::ERRCODE_INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist"))
            }
            ArchiveDenied { schema, owner } => parts(
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for schema {schema}"),
            )
            .detail(format!("The archive is made by \"{owner}\", who owns the table."))
            .hint("Name a table in a schema in which the owner of the table may create one."),
            ArchiveShape { archive, problems } => {
                parts(Code::ERRCODE_DUPLICATE_TABLE, format!("{archive} exists and is not an archive of this column"))
                    .detail(problems.join("\n"))
                    .hint("Name a table that is not there yet, or one that a contract has made for a column of the same type and owner.")
            }
            Dependents { change, column, what, dependents } => parts(
                Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!("cannot {what} change \"{change}\": other objects depend on column \"{column}\""),
            )
            .detail(dependents.join("\n"))
            .hint("Drop or change them first. pg_zdd never drops anything by CASCADE."),
            InUse { change, quiet_period, users } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!(
                    "the old column of change \"{change}\" was used within the last {} (zdd.quiet_period)",
                    format_duration(*quiet_period)
                ),
            )
            .detail(users.join("\n"))
            .hint("Move them to the new columns, and wait; or SELECT zdd.fence(change), which shows who misses the column; or say force => true."),
            UsageUnknown { change, fenced_for, quiet_period, reason } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("it is not known that nobody uses the old column of change \"{change}\""),
            )
            .detail(match fenced_for {
                Some(time) => format!(
                    "It has been fenced for {}, and zdd.quiet_period is {}. {reason}",
                    format_duration(*time),
                    format_duration(*quiet_period)
                ),
                None => format!(
                    "It has not been fenced, and zdd.quiet_period is {}. {reason}",
                    format_duration(*quiet_period)
                ),
            })
            .hint(match fenced_for {
                Some(_) => "Wait, and see whether anybody misses the column; or say force => true.",
                None => "Fence it with SELECT zdd.fence(change), wait, and see whether anybody misses the column; or say force => true.",
            }),
            WholeTooLate { change, phase } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("cannot set unmatched to whole while change \"{change}\" is {}", phase.as_str()),
            )
            .detail("Unmatched rows would become pending.")
            .hint("This is possible while the change is expanding."),
            TableGone { change } => {
                parts(Code::ERRCODE_UNDEFINED_TABLE, format!("the table of change \"{change}\" is gone"))
            }
            BrokenRule { relation, message } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the sync trigger does not fit table {relation}: {message}"),
            )
            .hint("A superuser can undo what was changed with zdd.guard = off."),
            Guard { change, message, hint } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("this would break the active change \"{change}\""),
            )
            .detail(message.as_str())
            .hint(*hint),
            Paused { change, role } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the backfill of change \"{change}\" is paused"),
            )
            .detail(format!("It was paused by {role}."))
            .hint("SELECT zdd.resume(change) goes on with it."),
            NotPaused { change } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("nothing of change \"{change}\" was paused or stopped"),
            )
            .hint("SELECT * FROM zdd.progress shows what is going on; zdd.start_backfill(change) and zdd.backfill(change) begin a backfill."),
            NothingToPause { change } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("change \"{change}\" has no backfill that could be paused"),
            )
            .hint("SELECT * FROM zdd.progress shows what is going on."),
            ContractRunning { change } => parts(
                Code::ERRCODE_OBJECT_IN_USE,
                format!("change \"{change}\" is being contracted"),
            )
            .hint("SELECT * FROM zdd.progress shows how far it is."),
            LocksGivenUp { change } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("pg_advisory_unlock_all was called while a backfill of change \"{change}\" wrote rows"),
            )
            .detail("A trigger of the table or a function of its rule has given up all locks of the session, and so the one that tells that it works.")
            .hint("Take the call out, or fire no triggers; then SELECT zdd.resume(change)."),
            Prepared => parts(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has executed zdd.start_backfill, zdd.start_contract, zdd.resume or zdd.reset_usage",
            )
            .detail("Background workers begin, and counters are reset, when the session that asked for it commits.")
            .hint("Call it in a transaction of its own."),
            Stopped { change, error, hint } => {
                let stopped = parts(
                    Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("the work on change \"{change}\" has stopped with an error"),
                )
                .detail(error.as_str());
                stopped.hint(hint.as_deref().unwrap_or(Error::RESUME))
            }
            NotReached { change, phase, wanted, waited, waiting_for } => {
                let late = parts(
                    Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "change \"{change}\" is not {} but {} after {}",
                        wanted.as_str(),
                        phase.as_str(),
                        format_duration(*waited)
                    ),
                )
                .hint("SELECT * FROM zdd.progress shows how far it is.");
                match waiting_for {
                    Some(reason) => late.detail(format!("It waits for {reason}.")),
                    None => late,
                }
            }
            BadCondition { sql, message } => parts(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("run_if cannot be evaluated: {}", shown(sql)),
            )
            .detail(message.as_str())
            .hint("Give an SQL expression that is true while the backfill may go on. It is evaluated as the table's owner, with search_path = pg_catalog, pg_temp."),
            ActiveChanges { changes } => parts(
                Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                "cannot drop extension pg_zdd: there are active changes",
            )
            .detail(format!("Their tables would lose the triggers that keep both sides in sync: {}.", list(changes)))
            .hint("Finish them with CALL zdd.contract(...), or give them up with SELECT zdd.rollback(...)."),
            UnmatchedValue { change, column, value } => parts(
                Code::ERRCODE_CHECK_VIOLATION,
                format!("value of column \"{column}\" does not match the split rule of change \"{change}\""),
            )
            .detail_of(value.as_ref().map(|value| format!("The value is: {value}")))
            .hint("The change was made with unmatched => 'error'. zdd.alter_change(change, unmatched => 'null') accepts such values."),
            Conflict { change, sides } => parts(
                Code::ERRCODE_CHECK_VIOLATION,
                format!("the two sides of change \"{change}\" were written in one statement and do not belong together"),
            )
            .detail_of(sides.as_ref().map(|[old, new]| format!("Old side: {old}; new side: {new}")))
            .hint("The change was made with conflict => 'error'. Write one side, or both so that they agree."),
            NotNull { change, relation, column } => parts(
                Code::ERRCODE_NOT_NULL_VIOLATION,
                format!("null value in column \"{column}\" of relation \"{relation}\" violates not-null constraint"),
            )
            .detail(format!("Until its contract, change \"{change}\" enforces it on writes that come through the new columns.")),
            DoesNotFit { change, column, type_name, value } => parts(
                Code::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
                format!("the new columns joined are not a value of column \"{column}\", type {type_name}"),
            )
            .detail(match value {
                Some(value) => format!("Change \"{change}\" would write: {value}"),
                None => format!("Change \"{change}\" would write it."),
            })
            .hint("The old application could not read this value. Write shorter values until the contract, or roll the change back, widen the old column and begin anew."),
            JoinTooLong { change, column, bytes } => parts(
                Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "the new columns joined would be a text of {bytes} bytes, more than the limit of {MAX_LENGTH}"
                ),
            )
            .detail(format!("Change \"{change}\" would write it into column \"{column}\"."))
            .hint("The old application could not read this value. Write shorter values until the contract."),
            OutOfMemory { bytes } => {
                parts(Code::ERRCODE_OUT_OF_MEMORY, "out of memory").detail(format!("Failed on request of size {bytes}."))
            }
            InTransactionBlock { procedure } => parts(
                Code::ERRCODE_ACTIVE_SQL_TRANSACTION,
                format!("CALL zdd.{procedure} cannot run inside a transaction block"),
            )
            .detail("It commits as it goes.")
            .hint("Call it on its own, outside BEGIN ... COMMIT, functions and DO blocks."),
            NotATrigger => parts(
                Code::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "zdd.sync is for the triggers that zdd.split_column creates",
            ),
            NotAnEventTrigger => parts(
                Code::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "zdd.guard is for the event triggers of pg_zdd",
            ),
            NotInstalled => parts(
                Code::ERRCODE_UNDEFINED_OBJECT,
                "the extension pg_zdd is not installed in this database",
            )
            .hint("CREATE EXTENSION pg_zdd."),
            RuleNotRegistered { change, relation } => parts(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the rule of the sync trigger on {relation} contains SQL that no active change has registered"),
            )
            .detail(format!("It says that it is of change \"{change}\". SQL of a rule runs with the rights of whoever began the change, so it is not taken from a trigger alone."))
            .hint("In a database that was restored without the data of pg_zdd, drop the trigger and begin the change anew, or restore the data too."),
            StrangeTrigger { trigger, relation } => parts(
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("trigger \"{trigger}\" of {relation} is not one that pg_zdd made"),
            )
            .hint("Only zdd.split_column makes triggers with the function zdd.sync. Drop it."),
            Caught(error) => parts(error.code(), error.message()),
            Spi(message) => parts(Code::ERRCODE_INTERNAL_ERROR, format!("pg_zdd: {message}")),
        }
    }
}

fn rule_parts(error: &RuleError) -> Parts {
    let invalid = |code| parts(code, error.to_string());
    match error {
        RuleError::InvalidRegex { .. } => invalid(Code::ERRCODE_INVALID_REGULAR_EXPRESSION)
            .hint("The syntax is that of the Rust regex crate: no backreferences and no look-around."),
        RuleError::GroupWithoutTarget { targets, .. } => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE)
            .detail(format!("The new columns are {}.", list(targets)))
            .hint("Name each group after a new column; use (?:...) for other groups."),
        RuleError::TargetWithoutGroup { target, groups } => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE)
            .detail(if groups.is_empty() {
                "The regex has no named groups.".to_owned()
            } else {
                format!("The named groups are {}.", list(groups))
            })
            .hint(format!("Add a group (?<{target}>...).")),
        RuleError::EmptyDelimiter => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE),
        RuleError::ExpressionCount { .. } => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE)
            .hint("Give one SQL expression per new column, in their order."),
        RuleError::InvalidTemplate { .. } => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE).hint(
            "A template is text with {column}, [sections left out when a column in them is NULL], and \\ to escape.",
        ),
        RuleError::TemplateUnknownTarget { targets, .. } => invalid(Code::ERRCODE_INVALID_PARAMETER_VALUE)
            .detail(format!("The new columns are {}.", list(targets)))
            .hint("Write {name} for the value of a new column, and \\{ for a brace."),
        RuleError::TooLong { .. } => invalid(Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED),
        RuleError::UnknownVersion { .. } => invalid(Code::ERRCODE_FEATURE_NOT_SUPPORTED)
            .hint("Install the version of pg_zdd that wrote the rule, or a later one."),
        RuleError::InvalidRule(_) => {
            invalid(Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE).hint("Only zdd.split_column makes sync triggers.")
        }
    }
}

impl From<RuleError> for Error {
    fn from(error: RuleError) -> Error {
        Error::Rule(error)
    }
}

impl From<SpiError> for Error {
    fn from(error: SpiError) -> Error {
        Error::Spi(error.to_string())
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> ErrorReport {
        if let Error::Caught(error) = error {
            error.rethrow();
        }
        let Parts { code, message, detail, hint } = error.parts();
        let mut report = ErrorReport::new(code, message, "pg_zdd");
        if let Some(detail) = detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = hint {
            report = report.set_hint(hint);
        }
        report
    }
}

impl Error {
    /// Raises it at once, for where no caller could do anything about it.
    pub fn raise(self) -> ! {
        ErrorReport::from(self).report(pgrx::PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// What to do about an error that has stopped the work on a change and has no better HINT.
    pub const RESUME: &str = "SELECT zdd.resume(change) goes on with it when the cause is gone.";

    /// Whether a lock could not be had. The same work may succeed when it is tried again in the same transaction.
    pub fn is_about_locks(&self) -> bool {
        match self {
            Error::Caught(error) => error.is_about_locks(),
            Error::LockTimeout { .. } | Error::NameTaken { .. } | Error::ChangeLocked { .. } => true,
            _ => false,
        }
    }

    /// Whether the same work may succeed when it is tried again.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Caught(error) => error.is_transient(),
            Error::LockTimeout { .. } | Error::NameTaken { .. } | Error::ChangeLocked { .. } => true,
            _ => false,
        }
    }

    /// What a row violates, if the error is of the kind that PostgreSQL gives table and column with: a violation of a
    /// constraint.
    pub fn violated(&self) -> Option<Violated<'_>> {
        match self {
            Error::NotNull { column, .. } | Error::UnmatchedValue { column, .. } => Some(Violated::Column(column)),
            Error::Conflict { .. } => Some(Violated::Row),
            _ => None,
        }
    }

    /// Its SQLSTATE.
    pub fn code(&self) -> Code {
        self.parts().code
    }

    /// Its SQLSTATE, as it is written.
    pub fn sqlstate(&self) -> String {
        // Five characters, six bits each.
        let code = self.code() as u32;
        (0..5).map(|place| char::from(b'0' + (code >> (6 * place) & 0x3f) as u8)).collect()
    }

    /// Its DETAIL and HINT.
    pub fn detail_and_hint(&self) -> (Option<String>, Option<String>) {
        match self {
            Error::Caught(error) => error.detail_and_hint(),
            _ => {
                let parts = self.parts();
                (parts.detail, parts.hint)
            }
        }
    }

    /// The same without the values of a row.
    pub fn without_values(mut self) -> Error {
        match &mut self {
            Error::UnmatchedValue { value, .. } | Error::DoesNotFit { value, .. } => *value = None,
            Error::Conflict { sides, .. } => *sides = None,
            _ => {}
        }
        self
    }

    /// Whether it quotes values of a row.
    pub fn has_values(&self) -> bool {
        matches!(
            self,
            Error::UnmatchedValue { value: Some(_), .. }
                | Error::DoesNotFit { value: Some(_), .. }
                | Error::Conflict { sides: Some(_), .. }
        )
    }

    /// The message alone, for a report that is not an error.
    pub fn message(&self) -> String {
        self.parts().message
    }
}
