//! Values of columns.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::{FromDatum, IntoDatum, impl_sql_translatable, pg_sys};
use smallvec::SmallVec;

/// The values of one side of a row: rarely more than a few, so they do not go to the heap.
pub type Values = SmallVec<[Value; 4]>;

/// A column's value or NULL. It points into the memory of the row or the memory context that it came from, and is of
/// the type of the column that it was read from or encoded for: only `pg` makes and unwraps values.
#[derive(Clone, Copy, Debug)]
pub struct Value(pub(super) Option<pg_sys::Datum>);

impl Value {
    pub const NULL: Value = Value(None);

    pub fn is_null(self) -> bool {
        self.0.is_none()
    }

    pub(super) fn from_parts(datum: pg_sys::Datum, is_null: bool) -> Value {
        Value((!is_null).then_some(datum))
    }

    /// Datum and null flag, as PostgreSQL's arrays have them.
    pub(super) fn parts(self) -> (pg_sys::Datum, bool) {
        (self.0.unwrap_or(pg_sys::Datum::from(0)), self.is_null())
    }
}

/// A text or jsonb value of a query's result, for a function to return as it is. However long it is, it stays in
/// PostgreSQL's memory, and nothing that PostgreSQL can store is too deep or too large to be understood.
pub struct Passed(pg_sys::Datum);

impl_sql_translatable!(Passed, "text");

impl FromDatum for Passed {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _type: pg_sys::Oid) -> Option<Passed> {
        // SAFETY: the types that this is compatible with are varlenas; the copy is in the current context.
        (!is_null).then(|| Passed(unsafe { pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr()) }.into()))
    }
}

impl IntoDatum for Passed {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(self.0)
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }

    fn is_compatible_with(other: pg_sys::Oid) -> bool {
        [pg_sys::TEXTOID, pg_sys::JSONBOID].contains(&other)
    }
}

// SAFETY: the datum is returned as it is.
unsafe impl BoxRet for Passed {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: it lives until the end of the transaction.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}
