//! Memory contexts.

use pgrx::pg_sys;

/// A memory context of our own, deleted when dropped.
pub struct Memory {
    context: pg_sys::MemoryContext,
    /// Whether it has a parent that goes before it if an error comes.
    is_short_lived: bool,
}

impl Memory {
    /// For what lives as long as the backend, or until it is dropped.
    pub fn long_lived() -> Memory {
        // SAFETY: TopMemoryContext exists from the start of the backend to its end.
        Memory::child_of(unsafe { pg_sys::TopMemoryContext }, false)
    }

    /// For what lives until it is dropped, at the end of the statement at the latest.
    pub fn short_lived() -> Memory {
        // SAFETY: there is always a current context.
        Memory::child_of(unsafe { pg_sys::CurrentMemoryContext }, true)
    }

    fn child_of(parent: pg_sys::MemoryContext, is_short_lived: bool) -> Memory {
        // SAFETY: the name is a constant; the sizes are those of ALLOCSET_SMALL_SIZES.
        let context = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                parent,
                c"pg_zdd".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            )
        };
        Memory { context, is_short_lived }
    }

    /// Runs `f` with this as the current context.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the context is alive; after an error whoever catches it sets the context anew.
        unsafe {
            let saved = pg_sys::MemoryContextSwitchTo(self.context);
            let result = f();
            pg_sys::MemoryContextSwitchTo(saved);
            result
        }
    }

    /// Makes this the current context until somebody chooses another.
    pub(super) fn make_current(&self) {
        // SAFETY: the context is alive.
        unsafe { pg_sys::MemoryContextSwitchTo(self.context) };
    }

    /// Frees everything in it. Values that were made in it must not be used afterwards; no type says so.
    pub fn reset(&self) {
        // SAFETY: the context is alive.
        unsafe { pg_sys::MemoryContextReset(self.context) }
    }
}

/// The memory context that was current when it was noted: for what has to outlive a query that is run meanwhile.
#[derive(Clone, Copy)]
pub struct Caller(pg_sys::MemoryContext);

impl Caller {
    pub fn current() -> Caller {
        // SAFETY: reads a backend variable.
        Caller(unsafe { pg_sys::CurrentMemoryContext })
    }

    /// Runs `f` with it as the current context.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: it belongs to somebody who called us, and so is still there.
        unsafe {
            let saved = pg_sys::MemoryContextSwitchTo(self.0);
            let result = f();
            pg_sys::MemoryContextSwitchTo(saved);
            result
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // During an error the abort of the (sub)transaction deletes it with its parent.
        if self.is_short_lived && std::thread::panicking() {
            return;
        }
        // SAFETY: created by us and dropped once; the owners of pointers into it go with it. After an error it may still be
        // the current context, until whoever catches the error chooses another.
        unsafe {
            if pg_sys::CurrentMemoryContext == self.context {
                pg_sys::MemoryContextSwitchTo((*self.context).parent);
            }
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}
