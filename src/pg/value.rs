//! Values of columns.

use pgrx::pg_sys;
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
