//! Being told when the definition of a relation changes.

use std::cell::Cell;

use pgrx::pg_sys;

/// Is told of a relation, or of `None` for any.
pub type Listener = fn(Option<pg_sys::Oid>);

thread_local! {
    /// Of relations, functions and types.
    static LISTENER: Cell<Option<Listener>> = const { Cell::new(None) };
    /// Of relations alone.
    static RELATION_LISTENER: Cell<Option<Listener>> = const { Cell::new(None) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// As `listen`, but functions and types do not matter to this listener.
pub fn listen_to_relations(listener: Listener) {
    RELATION_LISTENER.set(Some(listener));
    register();
}

/// Calls `listener` with each relation whose definition changes, and with `None` when any may have changed. It is called
/// at any point where PostgreSQL accepts invalidations, so it must only note down what it hears. There is one such listener.
pub fn listen(listener: Listener) {
    LISTENER.set(Some(listener));
    register();
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a plain function that lives as long as the library, which is never unloaded.
        unsafe {
            let none = pg_sys::Datum::from(0);
            pg_sys::CacheRegisterRelcacheCallback(Some(on_relcache), none);
            // Functions of SQL rules may be inlined, and types may be altered.
            for cache in [pg_sys::SysCacheIdentifier::PROCOID, pg_sys::SysCacheIdentifier::TYPEOID] {
                pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(on_syscache), none);
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_syscache(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    if let Some(listener) = LISTENER.get() {
        listener(None);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_relcache(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    for listener in [LISTENER.get(), RELATION_LISTENER.get()].into_iter().flatten() {
        listener((relation != pg_sys::InvalidOid).then_some(relation));
    }
}
