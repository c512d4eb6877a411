//! SQL expressions over the columns of one side of a change, parsed once and evaluated per row.

use std::cell::Cell;
use std::ffi::CString;

use pgrx::pg_sys;

use super::memory::Memory;
use super::parse::{c_text, expression};
use super::types::ColumnType;
use super::value::{Value, Values};
use super::{list_of, node_string, tag};
use crate::error::Error;

/// Compiled expressions over the same columns.
pub struct Expressions {
    planned: Vec<*mut pg_sys::Expr>,
    slot: *mut pg_sys::TupleTableSlot,
    inputs: usize,
    /// Rebuilt in each transaction, and after an error: functions keep state in it that ends with either.
    running: Cell<Option<Running>>,
    /// Holds everything above; dropped last.
    memory: Memory,
}

#[derive(Clone, Copy)]
struct Running {
    transaction: pg_sys::TimestampTz,
    context: *mut pg_sys::ExprContext,
    states: *mut *mut pg_sys::ExprState,
}

/// The columns that expressions may name.
struct Scope {
    columns: Vec<(CString, ColumnType)>,
}

impl Expressions {
    /// Parses and checks expressions under the current role and search_path, which must be those they will be evaluated
    /// under. Each has a type that it is assigned to, as INSERT would. An error if it does anything but compute.
    pub fn compile(
        argument: &'static str,
        columns: &[(&str, &ColumnType)],
        expressions: &[(&str, &ColumnType)],
    ) -> Result<Expressions, Error> {
        let columns = columns
            .iter()
            .map(|(name, column_type)| Ok((c_text(name)?, (*column_type).clone())))
            .collect::<Result<Vec<_>, Error>>()?;
        let scope = Scope { columns };
        let memory = Memory::long_lived();
        let (planned, slot) = memory.enter(|| {
            let planned = expressions
                .iter()
                .map(|(text, result)| plan(argument, &scope, text, result))
                .collect::<Result<Vec<_>, Error>>()?;
            Ok::<_, Error>((planned, scope.slot()))
        })?;
        let inputs = scope.columns.len();
        Ok(Expressions { planned, slot, inputs, running: Cell::new(None), memory })
    }

    /// Evaluates all of them for one row, in the current memory context. PostgreSQL's errors pass through.
    pub fn evaluate(&self, inputs: &[Value], outputs: &mut Values) {
        outputs.clear();
        // SAFETY: the slot has `inputs` columns, all of which are set; the states were built for it in this
        // transaction; evaluation functions are called through a boundary that turns errors into unwinding.
        unsafe {
            let running = self.running();
            // Only a run that ends well leaves the state for the next.
            self.running.set(None);
            let slot = self.slot;
            if let Some(clear) = (*(*slot).tts_ops).clear {
                clear(slot);
            }
            for (index, value) in inputs.iter().take(self.inputs).enumerate() {
                let (datum, is_null) = value.parts();
                *(*slot).tts_values.add(index) = datum;
                *(*slot).tts_isnull.add(index) = is_null;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::MemoryContextReset((*running.context).ecxt_per_tuple_memory);
            (*running.context).ecxt_scantuple = slot;
            for index in 0..self.planned.len() {
                let state = *running.states.add(index);
                let mut is_null = false;
                let Some(evaluate) = (*state).evalfunc else { continue };
                let datum = pg_sys::ffi::pg_guard_ffi_boundary(|| evaluate(state, running.context, &mut is_null));
                outputs.push(Value::from_parts(datum, is_null));
            }
            self.running.set(Some(running));
        }
    }

    unsafe fn running(&self) -> Running {
        // SAFETY: reads a backend variable.
        let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        if let Some(running) = self.running.get()
            && running.transaction == transaction
        {
            return running;
        }
        self.memory.enter(|| {
            // SAFETY: the plans are ours and live as long; the old state's memory goes with the whole.
            unsafe {
                let context = pg_sys::CreateStandaloneExprContext();
                let size = self.planned.len().max(1) * size_of::<*mut pg_sys::ExprState>();
                let states = pg_sys::palloc(size).cast::<*mut pg_sys::ExprState>();
                for (index, planned) in self.planned.iter().enumerate() {
                    *states.add(index) = pg_sys::ExecInitExpr(*planned, std::ptr::null_mut());
                }
                Running { transaction, context, states }
            }
        })
    }
}

impl Scope {
    /// A slot for one value per column.
    fn slot(&self) -> *mut pg_sys::TupleTableSlot {
        // SAFETY: the descriptor gets an entry per column before the slot is made; names and types are valid.
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
            pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsVirtual)
        }
    }
}

fn plan(argument: &'static str, scope: &Scope, text: &str, result: &ColumnType) -> Result<*mut pg_sys::Expr, Error> {
    // SAFETY: parse analysis of our own parse tree, with a hook that gets `scope`, which outlives it.
    unsafe {
        let raw = expression(argument, text)?;
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_pre_columnref_hook = Some(column_reference);
        (*state).p_ref_hook_state = std::ptr::from_ref(scope).cast_mut().cast();
        // The kind of expression that may neither aggregate, return sets, nor have subqueries.
        let kind = pg_sys::ParseExprKind::EXPR_KIND_GENERATED_COLUMN;
        let node = pg_sys::transformExpr(state, raw, kind);
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
        if pg_sys::contain_volatile_functions(coerced) {
            return Err(Error::VolatileExpression { argument, text: text.to_owned() });
        }
        pg_sys::free_parsestate(state);
        Ok(pg_sys::expression_planner(coerced.cast()))
    }
}

/// Resolves the name of a column of the scope; anything else is left to the parser, which knows of no other columns.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn column_reference(
    state: *mut pg_sys::ParseState,
    reference: *mut pg_sys::ColumnRef,
) -> *mut pg_sys::Node {
    // SAFETY: called by the parser with its state, whose hook state `plan` set to a Scope that is still alive.
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
