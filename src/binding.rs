//! A rule bound to the columns of a table: f and g over the values of rows, and the facts that decide a row's state.

use std::cell::RefCell;
use std::collections::HashSet;

use smallvec::SmallVec;

use crate::error::{Error, shown};
use crate::pg::expr::Expressions;
use crate::pg::gate::{Gate, as_owner, as_owner_for_row};
use crate::pg::inspect::ObjectId;
use crate::pg::lock::check_for_interrupts;
use crate::pg::memory::Memory;
use crate::pg::subxact::catch;
use crate::pg::table::{Row, Table};
use crate::pg::types::ColumnType;
use crate::pg::value::{Value, Values};
use crate::rule::split::Parts;
use crate::rule::state::{self, InsertFacts, RowState, Side};
use crate::rule::{Exceeded, Join, Joiner, Rule, Split, Splitter, Unmatched};
use pgrx::pg_sys::Oid;

/// More memory than this is given back after each join.
const KEPT_BUFFER: usize = 64 << 10;

/// A column that a rule reads and writes.
pub struct BoundColumn {
    /// Its number in the table; 0 when it is not there yet.
    pub number: i16,
    pub column_type: ColumnType,
    defaults: Defaults,
}

/// What a row has in a column that nobody has given a value: the default of the table, or that of the table which it is a
/// partition of, through which the row may come.
#[derive(Default)]
struct Defaults {
    /// Those that are the same for every row.
    constants: SmallVec<[Value; 2]>,
    /// Whether there are others.
    is_volatile: bool,
}

impl Defaults {
    fn read(gate: &Gate, table: &Table, name: &str, column_type: &ColumnType) -> Defaults {
        let mut defaults = Defaults::default();
        let mut add = |table: &Table| {
            let Some(attribute) = table.attribute(name) else { return };
            match table.constant_default(gate, attribute.number) {
                Some(constant) => defaults.constants.push(column_type.copy(constant)),
                None => defaults.is_volatile = true,
            }
        };
        add(table);
        if let Some(root) = table.is_partition().then(|| Table::look_at(table.root())).flatten() {
            add(&root);
        }
        defaults
    }
}

/// A rule that can be applied to values.
pub struct Binding {
    pub rule: Rule,
    pub source: BoundColumn,
    pub targets: Vec<BoundColumn>,
    splitter: Splitting,
    joiner: Joining,
    /// Whose rights SQL expressions and domains are evaluated with.
    owner: Oid,
    source_has_constraints: bool,
    /// Where texts are joined, kept so that joining allocates nothing.
    buffer: RefCell<String>,
    /// Holds the defaults.
    _memory: Memory,
}

enum Splitting {
    Text(Splitter),
    Sql(Expressions),
}

enum Joining {
    Text(Joiner),
    Sql(Expressions),
}

impl Binding {
    /// Binds a rule to a table that has all its columns. Its SQL runs as the owner of the change; without one it is
    /// refused.
    pub fn to_table(rule: Rule, table: &Table, owner: Option<Oid>) -> Result<Binding, Error> {
        as_owner(owner.unwrap_or_else(|| table.owner()), |gate| {
            let memory = Memory::long_lived();
            let column = |name: &str, type_name: &str| {
                let broken = |message| Error::BrokenRule { relation: table.name(), message };
                let attribute = table.attribute(name).ok_or_else(|| broken(format!("it has no column \"{name}\"")))?;
                let column_type = ColumnType::new(attribute.type_oid, attribute.typmod, attribute.collation);
                let actual = column_type.name();
                if actual != type_name {
                    return Err(broken(format!("column \"{name}\" is of type {actual}, not {type_name}")));
                }
                let defaults = memory.enter(|| Defaults::read(gate, table, name, &column_type));
                Ok(BoundColumn { number: attribute.number, column_type, defaults })
            };
            if owner.is_none() && rule.has_sql() {
                return Err(Error::RuleNotRegistered { change: rule.change.clone(), relation: table.name() });
            }
            let source = column(rule.source.current_name(), &rule.source.type_name)?;
            let targets = rule
                .targets
                .iter()
                .map(|target| column(&target.name, &target.type_name))
                .collect::<Result<Vec<_>, _>>()?;
            Binding::new(gate, rule, source, targets, memory, &|_| Ok(()))
        })
    }

    /// Binds a rule to types alone, for columns that do not exist yet. Nothing that the rule uses runs before `check` has
    /// been asked about it.
    pub fn to_types(
        rule: Rule,
        source: (i16, ColumnType),
        targets: Vec<ColumnType>,
        owner: Oid,
        check: &dyn Fn(&[ObjectId]) -> Result<(), Error>,
    ) -> Result<Binding, Error> {
        let types: Vec<_> = targets.iter().chain([&source.1]).flat_map(ColumnType::user_objects).collect();
        check(&types)?;
        let column = |number, column_type| BoundColumn { number, column_type, defaults: Defaults::default() };
        let source = column(source.0, source.1);
        let targets = targets.into_iter().map(|column_type| column(0, column_type)).collect();
        as_owner(owner, |gate| Binding::new(gate, rule, source, targets, Memory::long_lived(), check))
    }

    fn new(
        gate: &Gate,
        rule: Rule,
        source: BoundColumn,
        targets: Vec<BoundColumn>,
        memory: Memory,
        check: &dyn Fn(&[ObjectId]) -> Result<(), Error>,
    ) -> Result<Binding, Error> {
        let old = [(rule.source.name.as_str(), &source.column_type)];
        let new: Vec<(&str, &ColumnType)> = rule
            .targets
            .iter()
            .zip(&targets)
            .map(|(target, column)| (target.name.as_str(), &column.column_type))
            .collect();
        let unsupported = |name: &str, column_type: &ColumnType| Error::UnsupportedType {
            column: name.to_owned(),
            type_name: column_type.name(),
        };
        let splitter = Splitter::new(&rule.split, &rule.targets)?;
        let joiner = Joiner::new(&rule.join, &rule.targets)?;
        if splitter.is_some() || joiner.is_some() {
            if !source.column_type.is_text() {
                return Err(unsupported(&rule.source.name, &source.column_type));
            }
            if let Some((name, column_type)) = new.iter().find(|(_, it)| it.is_opaque()) {
                return Err(unsupported(name, column_type));
            }
        }
        if rule.unmatched == Unmatched::Whole
            && let Some((name, first)) = new.first()
            && !(first.is_text() && source.column_type.is_text())
        {
            return Err(Error::WholeNeedsText { column: (*name).to_owned() });
        }
        let compile = |argument, from: &[(&str, &ColumnType)], texts: Vec<(&str, &ColumnType)>| {
            Expressions::compile(gate, argument, from, &texts, check)
        };
        let splitter = match (splitter, &rule.split) {
            (None, Split::Sql(texts)) => {
                let results = new.iter().map(|(_, column_type)| *column_type);
                let texts = texts.iter().map(String::as_str).zip(results).collect();
                Splitting::Sql(compile("split_sql", &old, texts)?)
            }
            (Some(splitter), _) => Splitting::Text(splitter),
            (None, _) => return Err(Error::NoSplitRule),
        };
        let joiner = match (joiner, &rule.join) {
            (None, Join::Sql(text)) => Joining::Sql(compile("join_sql", &new, vec![(text, &source.column_type)])?),
            (Some(joiner), _) => Joining::Text(joiner),
            (None, _) => return Err(Error::NoJoinRule),
        };
        let source_has_constraints = source.column_type.has_domain_constraints();
        Ok(Binding {
            rule,
            source,
            targets,
            splitter,
            joiner,
            owner: gate.owner(),
            source_has_constraints,
            buffer: RefCell::default(),
            _memory: memory,
        })
    }

    /// The join template, if there is one.
    pub fn template(&self) -> Option<&crate::rule::Template> {
        match &self.joiner {
            Joining::Text(joiner) => joiner.template(),
            Joining::Sql(_) => None,
        }
    }

    /// f: puts one value per target into `targets`. Returns whether the rule accepts the source, the policy `whole`
    /// applied; if not, they are all NULL.
    pub fn split(&self, source: Value, targets: &mut Values) -> bool {
        let accepted = source.is_null() || {
            let fits = self.source.column_type.text_length(source) <= self.rule.max_source_length;
            // A split that gives nothing has not found what the rule is about.
            fits && self.split_value(source, targets)
                && targets.iter().any(|value| !value.is_null())
                && self.fits_indexes(targets)
                || self.rule.unmatched == Unmatched::Whole && self.whole(source, targets) && self.fits_indexes(targets)
        };
        if source.is_null() || !accepted {
            targets.clear();
            targets.resize(self.targets.len(), Value::NULL);
        }
        accepted
    }

    fn split_value(&self, source: Value, targets: &mut Values) -> bool {
        targets.clear();
        match &self.splitter {
            Splitting::Text(splitter) => {
                let Some(text) = self.source.column_type.decode(&source) else { return false };
                let mut parts = Parts::new();
                splitter
                    .split(&text, &mut parts, &mut check_for_interrupts)
                    .unwrap_or_else(|exceeded| self.exceeded(exceeded).raise())
                    && parts.iter().zip(&self.targets).all(|(part, target)| {
                        let value = match part {
                            Some(part) => target.column_type.encode(part),
                            None => Some(Value::NULL),
                        };
                        targets.extend(value);
                        value.is_some()
                    })
            }
            Splitting::Sql(expressions) => {
                match catch(|| as_owner_for_row(self.owner, |gate| expressions.evaluate(gate, &[source], targets))) {
                    Ok(()) => true,
                    Err(error) if error.is_rejection() => false,
                    Err(error) => error.rethrow(),
                }
            }
        }
    }

    /// Whether no target is longer than an index that was asked for allows.
    fn fits_indexes(&self, targets: &[Value]) -> bool {
        let limits = self.rule.targets.iter().zip(&self.targets).zip(targets);
        limits.into_iter().all(|((target, column), value)| match target.max_bytes {
            Some(most) => column.column_type.text_length(*value) <= most,
            None => true,
        })
    }

    /// The whole source in the first target.
    fn whole(&self, source: Value, targets: &mut Values) -> bool {
        let text = self.source.column_type.decode(&source);
        let first = text.and_then(|text| self.targets.first()?.column_type.encode(&text));
        targets.clear();
        targets.extend(first);
        targets.resize(self.targets.len(), Value::NULL);
        first.is_some()
    }

    /// g: the source for these targets. An error if it is not a value of the source's type; errors of `join_sql` pass.
    pub fn join(&self, targets: &[Value]) -> Result<Value, Error> {
        let source = match &self.joiner {
            Joining::Text(joiner) => self.join_texts(joiner, targets, |joined| match joined {
                None => Ok(Value::NULL),
                Some(text) => self.source.column_type.encode(text).ok_or_else(|| self.does_not_fit(text)),
            })??,
            Joining::Sql(expressions) => {
                let mut result = Values::new();
                as_owner_for_row(self.owner, |gate| expressions.evaluate(gate, targets, &mut result));
                result.first().copied().unwrap_or(Value::NULL)
            }
        };
        if self.source_has_constraints {
            as_owner_for_row(self.owner, |gate| self.source.column_type.check_domain(gate, source));
        }
        Ok(source)
    }

    /// Calls `f` with the joined texts of the targets. An error if they are too long.
    fn join_texts<R>(&self, joiner: &Joiner, targets: &[Value], f: impl FnOnce(Option<&str>) -> R) -> Result<R, Error> {
        let texts: SmallVec<[_; 4]> =
            targets.iter().zip(&self.targets).map(|(value, target)| target.column_type.decode(value)).collect();
        let texts: SmallVec<[Option<&str>; 4]> = texts.iter().map(Option::as_deref).collect();
        // Taken, so that an error frees it.
        let mut buffer = self.buffer.take();
        let result = match joiner.join(&texts, &mut buffer, &mut check_for_interrupts) {
            Ok(joined) => Ok(f(joined)),
            Err(exceeded) => Err(self.exceeded(exceeded)),
        };
        if buffer.capacity() <= KEPT_BUFFER {
            self.buffer.replace(buffer);
        }
        result
    }

    fn exceeded(&self, exceeded: Exceeded) -> Error {
        match exceeded {
            Exceeded::Length { bytes } => {
                Error::JoinTooLong { change: self.rule.change.clone(), column: self.rule.source.name.clone(), bytes }
            }
            Exceeded::Memory { bytes } => Error::OutOfMemory { bytes },
        }
    }

    /// O = g(N), as far as g can be had.
    fn is_joined(&self, source: Value, targets: &[Value]) -> bool {
        match &self.joiner {
            // A value that is there fits its column.
            Joining::Text(joiner) if !self.source.column_type.is_padded() => {
                let joined = self.join_texts(joiner, targets, |joined| match joined {
                    None => source.is_null(),
                    Some(_) => joined == self.source.column_type.decode(&source).as_deref(),
                });
                if_possible(joined).unwrap_or(false)
            }
            _ => self.join_if_possible(targets).is_some_and(|joined| self.same_source(joined, source)),
        }
    }

    fn does_not_fit(&self, text: &str) -> Error {
        Error::DoesNotFit {
            change: self.rule.change.clone(),
            column: self.rule.source.name.clone(),
            type_name: self.rule.source.type_name.clone(),
            value: Some(shown(text)),
        }
    }

    /// g, or nothing where it fails.
    pub fn join_if_possible(&self, targets: &[Value]) -> Option<Value> {
        let may_raise = matches!(self.joiner, Joining::Sql(_)) || self.source_has_constraints;
        if !may_raise {
            return if_possible(self.join(targets));
        }
        match catch(|| self.join(targets)) {
            Ok(result) => if_possible(result),
            // A domain's constraints reject it.
            Err(error) if error.is_rejection() || error.is_constraint_violation() => None,
            Err(error) => error.rethrow(),
        }
    }

    /// What of users it takes to apply the rule, by itself: functions, types and collations.
    pub fn uses(&self) -> Vec<ObjectId> {
        let mut uses: Vec<ObjectId> = Vec::new();
        if let Splitting::Sql(expressions) = &self.splitter {
            uses.extend(expressions.uses());
        }
        if let Joining::Sql(expressions) = &self.joiner {
            uses.extend(expressions.uses());
        }
        uses.extend(self.targets.iter().chain([&self.source]).flat_map(|column| column.column_type.user_objects()));
        let mut seen = HashSet::new();
        uses.retain(|object| seen.insert(*object));
        uses
    }

    /// Reads the source of a row.
    pub fn source_of(&self, row: &Row<'_>) -> Value {
        row.get(self.source.number)
    }

    /// Reads the targets of a row.
    pub fn targets_of(&self, row: &Row<'_>) -> Values {
        self.targets.iter().map(|target| row.get(target.number)).collect()
    }

    /// Whether all targets of a row are NULL.
    pub fn lacks_targets(&self, row: &Row<'_>) -> bool {
        self.targets.iter().all(|target| row.is_null(target.number))
    }

    /// Reads the targets of a row into a buffer.
    pub fn read_targets(&self, row: &Row<'_>, targets: &mut Values) {
        targets.clear();
        targets.extend(self.targets.iter().map(|target| row.get(target.number)));
    }

    pub fn same_source(&self, left: Value, right: Value) -> bool {
        self.source.column_type.same_image(left, right)
    }

    pub fn same_targets(&self, left: &[Value], right: &[Value]) -> bool {
        self.targets
            .iter()
            .zip(left.iter().zip(right))
            .all(|(target, (left, right))| target.column_type.same_image(*left, *right))
    }

    /// What a row has on the old side.
    pub fn source_side(&self, source: Value) -> Side {
        if source.is_null() {
            Side::Null
        } else if self.source.defaults.constants.iter().any(|default| self.same_source(source, *default)) {
            Side::Default
        } else {
            Side::Given
        }
    }

    /// What a row has on the new side.
    pub fn targets_side(&self, targets: &[Value]) -> Side {
        let is_default = |target: &BoundColumn, value: Value| {
            target.defaults.constants.iter().any(|default| target.column_type.same_image(value, *default))
        };
        if targets.iter().all(|value| value.is_null()) {
            Side::Null
        } else if self.targets.iter().zip(targets).all(|(target, value)| is_default(target, *value)) {
            Side::Default
        } else {
            Side::Given
        }
    }

    /// What an INSERT gives for both sides. What a default that changes has made of the old side is nothing that anybody
    /// has given, if there is a new side.
    pub fn given(&self, source: Value, targets: &[Value]) -> InsertFacts {
        let (mut source, targets) = (self.source_side(source), self.targets_side(targets));
        if source == Side::Given && targets == Side::Given && self.source.defaults.is_volatile {
            source = Side::Default;
        }
        InsertFacts { source, targets }
    }

    /// The name of a target that must not be NULL but is.
    pub fn null_violation(&self, targets: &[Value]) -> Option<&str> {
        self.rule
            .targets
            .iter()
            .zip(targets)
            .find(|(target, value)| target.not_null && value.is_null())
            .map(|(target, _)| target.name.as_str())
    }

    /// A value as people read it, shortened.
    pub fn source_text(&self, source: Value) -> String {
        self.shown(&self.source.column_type, source)
    }

    /// The targets as people read them, shortened.
    pub fn targets_text(&self, targets: &[Value]) -> String {
        let texts: Vec<String> = self
            .rule
            .targets
            .iter()
            .zip(&self.targets)
            .zip(targets)
            .map(|((target, column), value)| format!("{} = {}", target.name, self.shown(&column.column_type, *value)))
            .collect();
        texts.join(", ")
    }

    fn shown(&self, column_type: &ColumnType, value: Value) -> String {
        self.text(column_type, value, shown).unwrap_or_else(|| "NULL".to_owned())
    }

    /// A value of one of its columns as people read it; `None` for NULL.
    pub fn text(&self, column_type: &ColumnType, value: Value, show: impl FnOnce(&str) -> String) -> Option<String> {
        match column_type.decode(&value) {
            Some(text) => Some(show(&text)),
            None => as_owner(self.owner, |gate| column_type.output(gate, value, show)),
        }
    }

    /// The facts about a row with these values.
    pub fn facts<'v>(&'v self, source: Value, targets: &'v [Value]) -> Facts<'v> {
        Facts { binding: self, source, targets, split: None }
    }

    /// The state of a row with these values.
    pub fn state(&self, source: Value, targets: &[Value]) -> RowState {
        state::classify(&mut self.facts(source, targets))
    }
}

/// What was joined. Nothing if it is too long or does not fit; that there is no memory is an error in any case.
fn if_possible<T>(joined: Result<T, Error>) -> Option<T> {
    match joined {
        Ok(joined) => Some(joined),
        Err(error @ Error::OutOfMemory { .. }) => error.raise(),
        Err(_) => None,
    }
}

/// What there is to know about a row, found out when asked for.
pub struct Facts<'v> {
    binding: &'v Binding,
    source: Value,
    targets: &'v [Value],
    split: Option<(bool, Values)>,
}

impl Facts<'_> {
    fn split(&mut self) -> &(bool, Values) {
        let (binding, source) = (self.binding, self.source);
        self.split.get_or_insert_with(|| {
            let mut targets = Values::new();
            let accepted = binding.split(source, &mut targets);
            (accepted, targets)
        })
    }

    /// f(O), once it is known that f accepts O.
    pub fn into_split(mut self) -> Values {
        self.split();
        self.split.map(|(_, targets)| targets).unwrap_or_default()
    }

    /// N = f(O) or O = g(N).
    pub fn agree(&mut self) -> bool {
        use state::Row;
        self.source_equals_join() || (self.split_accepts() && self.targets_equal_split())
    }
}

impl state::Row for Facts<'_> {
    fn source_is_null(&self) -> bool {
        self.source.is_null()
    }

    fn targets_all_null(&self) -> bool {
        self.targets.iter().all(|value| value.is_null())
    }

    fn split_accepts(&mut self) -> bool {
        self.split().0
    }

    fn targets_equal_split(&mut self) -> bool {
        let (binding, targets) = (self.binding, self.targets);
        binding.same_targets(&self.split().1, targets)
    }

    /// Also when the row has nothing but defaults: nobody has said what they mean to the other side.
    fn source_equals_join(&mut self) -> bool {
        let (binding, source, targets) = (self.binding, self.source, self.targets);
        binding.is_joined(source, targets)
            || (binding.source_side(source) != Side::Given && binding.targets_side(targets) == Side::Default)
    }
}
