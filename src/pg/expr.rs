//! SQL expressions over the columns of one side of a change, parsed once and evaluated per row.

use std::cell::RefCell;
use std::ffi::CString;

use pgrx::PgSqlErrorCode as Code;
use pgrx::pg_sys;

use super::gate::Gate;
use super::inspect::{ObjectId, UserObjects};
use super::memory::Memory;
use super::parse::{c_text, expression};
use super::subxact::catch;
use super::types::ColumnType;
use super::value::{Value, Values};
use super::{list_of, node_string, tag};
use crate::error::Error;

/// Compiled expressions over the same columns.
pub struct Expressions {
    planned: Vec<*mut pg_sys::Expr>,
    descriptor: pg_sys::TupleDesc,
    inputs: usize,
    /// What they use that is not built in.
    uses: Vec<ObjectId>,
    /// What is not in use right now.
    idle: RefCell<Vec<Evaluation>>,
    /// Holds the plans and the descriptor; dropped last.
    _memory: Memory,
}

/// The columns that expressions may name.
struct Scope {
    columns: Vec<(CString, ColumnType)>,
}

impl Expressions {
    /// Parses and checks expressions. Each has a type that it is assigned to, as INSERT would. An error unless they do
    /// nothing but compute, always the same from the same values. `check` is asked about what they use before any of it
    /// runs, which planning does with what is constant.
    pub fn compile(
        _gate: &Gate,
        argument: &'static str,
        columns: &[(&str, &ColumnType)],
        expressions: &[(&str, &ColumnType)],
        check: &dyn Fn(&[ObjectId]) -> Result<(), Error>,
    ) -> Result<Expressions, Error> {
        let columns = columns
            .iter()
            .map(|(name, column_type)| Ok((c_text(name)?, (*column_type).clone())))
            .collect::<Result<Vec<_>, Error>>()?;
        let scope = Scope { columns };
        let memory = Memory::long_lived();
        let mut uses = UserObjects::default();
        let analysed = memory.enter(|| {
            expressions
                .iter()
                .map(|(text, result)| analyse(argument, &scope, text, result, &mut uses))
                .collect::<Result<Vec<_>, Error>>()
        })?;
        let (inputs, uses) = (scope.columns.len(), uses.into_list());
        check(&uses)?;
        let (planned, descriptor) = memory.enter(|| {
            // SAFETY: comes from parse analysis.
            let plan = |analysed: *mut pg_sys::Node| unsafe { pg_sys::expression_planner(analysed.cast()) };
            (analysed.into_iter().map(plan).collect(), scope.descriptor())
        });
        Ok(Expressions { planned, descriptor, inputs, uses, idle: RefCell::default(), _memory: memory })
    }

    /// The functions and types of users that they use, by themselves.
    pub fn uses(&self) -> &[ObjectId] {
        &self.uses
    }

    /// Evaluates all of them for one row, in the current memory context. PostgreSQL's errors pass through.
    pub fn evaluate(&self, _gate: &Gate, inputs: &[Value], outputs: &mut Values) {
        outputs.clear();
        // A function may write to the table that it is called for, and so come here again before we are done.
        let evaluation = self.take();
        evaluation.run(&inputs[..self.inputs.min(inputs.len())], outputs);
        // After an error it is dropped instead: functions may have left something unfinished in it.
        self.idle.borrow_mut().push(evaluation);
    }

    /// One of this transaction that is idle, or a new one.
    fn take(&self) -> Evaluation {
        // SAFETY: reads a backend variable.
        let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        // Functions keep state that ends with the transaction.
        let idle = self.idle.borrow_mut().pop().filter(|idle| idle.transaction == transaction);
        idle.unwrap_or_else(|| {
            self.idle.take();
            Evaluation::new(&self.planned, self.descriptor, transaction)
        })
    }
}

/// What it takes to evaluate expressions for one row at a time, with memory of its own.
struct Evaluation {
    transaction: pg_sys::TimestampTz,
    slot: *mut pg_sys::TupleTableSlot,
    context: *mut pg_sys::ExprContext,
    states: Vec<*mut pg_sys::ExprState>,
    _memory: Memory,
}

impl Evaluation {
    fn new(
        planned: &[*mut pg_sys::Expr],
        descriptor: pg_sys::TupleDesc,
        transaction: pg_sys::TimestampTz,
    ) -> Evaluation {
        let memory = Memory::long_lived();
        let (slot, context, states) = memory.enter(|| {
            // SAFETY: plans and descriptor are those of the expressions, which outlive this.
            unsafe {
                let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsVirtual);
                let context = pg_sys::CreateStandaloneExprContext();
                let states =
                    planned.iter().map(|planned| pg_sys::ExecInitExpr(*planned, std::ptr::null_mut())).collect();
                (slot, context, states)
            }
        });
        Evaluation { transaction, slot, context, states, _memory: memory }
    }

    fn run(&self, inputs: &[Value], outputs: &mut Values) {
        // SAFETY: the slot has as many columns as there are inputs, all of which are set; the states were built for it in
        // this transaction; evaluation functions are called through a boundary that turns errors into unwinding.
        unsafe {
            let slot = self.slot;
            if let Some(clear) = (*(*slot).tts_ops).clear {
                clear(slot);
            }
            for (index, value) in inputs.iter().enumerate() {
                let (datum, is_null) = value.parts();
                *(*slot).tts_values.add(index) = datum;
                *(*slot).tts_isnull.add(index) = is_null;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
            (*self.context).ecxt_scantuple = slot;
            for &state in &self.states {
                let mut is_null = false;
                let Some(evaluate) = (*state).evalfunc else { continue };
                let datum = pg_sys::ffi::pg_guard_ffi_boundary(|| evaluate(state, self.context, &mut is_null));
                outputs.push(Value::from_parts(datum, is_null));
            }
        }
    }
}

impl Scope {
    /// Describes a row with one value per column.
    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: the descriptor gets an entry per column; names and types are valid.
        unsafe {
            let descriptor = pg_sys::CreateTemplateTupleDesc(self.columns.len() as i32);
            for (index, (name, column_type)) in self.columns.iter().enumerate() {
                pg_sys::TupleDescInitEntry(
                    descriptor,
                    index as i16 + 1,
                    name.as_ptr(),
                    column_type.oid,
                    column_type.typmod,
                    0,
                );
            }
            descriptor
        }
    }
}

fn analyse(
    argument: &'static str,
    scope: &Scope,
    text: &str,
    result: &ColumnType,
    uses: &mut UserObjects,
) -> Result<*mut pg_sys::Node, Error> {
    // SAFETY: parse analysis of our own parse tree, with a hook that gets `scope`, which outlives it.
    unsafe {
        let raw = expression(argument, text)?;
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_pre_columnref_hook = Some(column_reference);
        (*state).p_ref_hook_state = std::ptr::from_ref(scope).cast_mut().cast();
        // The kind of expression that may neither aggregate, return sets, nor have subqueries.
        let kind = pg_sys::ParseExprKind::EXPR_KIND_GENERATED_COLUMN;
        let node = match catch(|| pg_sys::transformExpr(state, raw, kind)) {
            Ok(node) => node,
            Err(error) if error.message().contains("column generation expression") => {
                let message = error.message().replace("column generation expressions", "the SQL of a rule");
                let message = message.replace("a column generation expression", "the SQL of a rule");
                let message = message.replace("column generation expression", "the SQL of a rule");
                return Err(Error::RuleExpression { argument, code: error.code(), message });
            }
            Err(error)
                if [Code::ERRCODE_UNDEFINED_FUNCTION, Code::ERRCODE_UNDEFINED_OBJECT].contains(&error.code()) =>
            {
                return Err(Error::RuleName { argument, code: error.code(), message: error.message() });
            }
            Err(error) => error.rethrow(),
        };
        let node_type = pg_sys::exprType(node);
        let coerced = pg_sys::coerce_to_target_type(
            state,
            node,
            node_type,
            result.oid,
            result.typmod,
            pg_sys::CoercionContext::COERCION_ASSIGNMENT,
            pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
            -1,
        );
        if coerced.is_null() {
            return Err(Error::ExpressionType {
                argument,
                text: text.to_owned(),
                found: ColumnType::new(node_type, -1, pg_sys::InvalidOid).name(),
                wanted: result.name(),
            });
        }
        pg_sys::assign_expr_collations(state, coerced);
        if pg_sys::contain_mutable_functions(coerced) {
            return Err(Error::MutableExpression { argument, text: text.to_owned() });
        }
        pg_sys::free_parsestate(state);
        uses.add_from(coerced);
        Ok(coerced)
    }
}

/// Resolves the name of a column of the scope; anything else is left to the parser, which knows of no other columns.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn column_reference(
    state: *mut pg_sys::ParseState,
    reference: *mut pg_sys::ColumnRef,
) -> *mut pg_sys::Node {
    // SAFETY: called by the parser with its state, whose hook state `analyse` set to a Scope that is still alive.
    unsafe {
        let scope = &*(*state).p_ref_hook_state.cast::<Scope>();
        let fields = list_of::<pg_sys::Node>((*reference).fields);
        let [field] = fields.as_slice() else { return std::ptr::null_mut() };
        if tag(*field) != pg_sys::NodeTag::T_String {
            return std::ptr::null_mut();
        }
        let name = node_string(*field);
        let found = scope.columns.iter().position(|(column, _)| column.as_c_str() == name);
        match found {
            Some(index) => {
                let column_type = &scope.columns[index].1;
                pg_sys::makeVar(1, index as i16 + 1, column_type.oid, column_type.typmod, column_type.collation, 0)
                    .cast()
            }
            None => std::ptr::null_mut(),
        }
    }
}
