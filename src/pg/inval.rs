//! Being told when the definition of a relation changes.

use std::cell::Cell;

use pgrx::pg_sys;

/// Is told of a relation, or of `None` for any.
pub type Listener = fn(Option<pg_sys::Oid>);

thread_local! {
    static LISTENER: Cell<Option<Listener>> = const { Cell::new(None) };
}

/// Calls `listener` with each relation whose definition changes, and with `None` when any may have changed. It is called
/// at any point where PostgreSQL accepts invalidations, so it must only note down what it hears. Only the first listener
/// counts: callbacks cannot be unregistered.
pub fn listen(listener: Listener) {
    if LISTENER.get().is_none() {
        LISTENER.set(Some(listener));
        // SAFETY: the callback is a plain function that lives as long as the library, which is never unloaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(on_relcache), pg_sys::Datum::from(0)) };
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_relcache(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    if let Some(listener) = LISTENER.get() {
        listener((relation != pg_sys::InvalidOid).then_some(relation));
    }
}
