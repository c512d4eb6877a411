//! Calling PostgreSQL's functions that return sets directly: without a statement, a plan or a snapshot.

use pgrx::datum::FromDatum;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

/// A row of a set.
pub(super) struct SetRow {
    slot: *mut pg_sys::TupleTableSlot,
}

impl SetRow {
    /// The value of a column, which are numbered from 1; `None` when it is NULL.
    ///
    /// # Safety
    /// The set has such a column, and `T` is what values of its type are read as.
    pub unsafe fn get<T: FromDatum>(&self, number: usize) -> Option<T> {
        // SAFETY: the slot holds a row, whose first columns are read up to this one.
        unsafe {
            if ((*self.slot).tts_nvalid as usize) < number {
                pg_sys::slot_getsomeattrs_int(self.slot, number as i32);
            }
            T::from_datum(*(*self.slot).tts_values.add(number - 1), *(*self.slot).tts_isnull.add(number - 1))
        }
    }
}

/// Shows the rows that a function without arguments returns. It is called with the rights of the current role, and nobody
/// asks whether it may.
///
/// # Safety
/// The function takes no arguments, returns a set of rows, and materializes it.
pub(super) unsafe fn for_each_row(function: u32, mut each: impl FnMut(&SetRow)) {
    // SAFETY: set up as the executor does for a function in FROM. All structures live until the end of the call, and what is
    // allocated goes with the current memory context if an error comes first. An error in the function, which is called
    // through a boundary, unwinds.
    unsafe {
        let context = pg_sys::CreateStandaloneExprContext();
        let mut lookup = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(function.into(), &mut lookup);
        let Some(address) = lookup.fn_addr else { return };
        let mut result = pg_sys::ReturnSetInfo {
            type_: pg_sys::NodeTag::T_ReturnSetInfo,
            econtext: context,
            allowedModes: pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32,
            ..Default::default()
        };
        let mut call = pg_sys::FunctionCallInfoBaseData {
            flinfo: &mut lookup,
            resultinfo: (&raw mut result).cast(),
            ..Default::default()
        };
        pg_guard_ffi_boundary(|| address(&mut call));
        if !result.setResult.is_null() {
            let slot = pg_sys::MakeSingleTupleTableSlot(result.setDesc, &raw const pg_sys::TTSOpsMinimalTuple);
            while pg_sys::tuplestore_gettupleslot(result.setResult, true, false, slot) {
                each(&SetRow { slot });
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::tuplestore_end(result.setResult);
        }
        pg_sys::FreeExprContext(context, true);
    }
}
