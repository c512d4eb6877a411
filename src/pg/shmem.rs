//! The memory that all sessions share: one header and a fixed number of slots, behind one lock. It is there only if the
//! library is preloaded by the server.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use crate::usage::store::{Header, Slot};

const NAME: &core::ffi::CStr = c"pg_zdd usage";

/// Of PostgreSQL's fixed locks, the one for setting shared memory up (AddinShmemInitLock).
const INIT_LOCK: usize = 21;

type Hook = Option<unsafe extern "C-unwind" fn()>;

static PREVIOUS_STARTUP: OnceLock<Hook> = OnceLock::new();
static PREVIOUS_REQUEST: OnceLock<Hook> = OnceLock::new();

/// Where it is, in this process: forked ones inherit it.
static HEADER: AtomicPtr<Header> = AtomicPtr::new(std::ptr::null_mut());
static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

/// How many slots there are.
fn slot_count() -> usize {
    crate::guc::usage_max()
}

/// How much memory so many slots take.
pub fn size(slots: usize) -> usize {
    size_of::<Header>() + slots * size_of::<Slot>()
}

/// Whether the server is preloading us, which is when shared memory can be asked for.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Asks for the memory. Called by `_PG_init` while the server preloads us.
pub fn install() {
    // SAFETY: hooks are set in the postmaster's only thread, before anything calls them; the previous ones are kept.
    unsafe {
        if PREVIOUS_REQUEST.set(pg_sys::shmem_request_hook).is_ok() {
            pg_sys::shmem_request_hook = Some(request);
        }
        if PREVIOUS_STARTUP.set(pg_sys::shmem_startup_hook).is_ok() {
            pg_sys::shmem_startup_hook = Some(start_up);
        }
    }
}

/// # Safety
/// Called when shared memory may be asked for.
unsafe fn ask() {
    // SAFETY: the caller sees to the time; the name is a constant.
    unsafe {
        pg_sys::RequestAddinShmemSpace(size(slot_count()));
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: calls the hook that was there before us as PostgreSQL would, then asks at the time for it.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST.get().copied().flatten() {
            pg_guard_ffi_boundary(|| previous());
        }
        ask();
    }
}

/// Called by the postmaster when it starts, and again after a crash.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn start_up() {
    // SAFETY: calls the hook that was there before us as PostgreSQL would. The memory is as large as was asked for, and
    // zeroed before references to it are made; zeros are a valid header and valid slots.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP.get().copied().flatten() {
            pg_guard_ffi_boundary(|| previous());
        }
        let slots = slot_count();
        let init_lock = &raw mut (*pg_sys::MainLWLockArray.add(INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(init_lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        let header = pg_sys::ShmemInitStruct(NAME.as_ptr(), size(slots), &mut found).cast::<Header>();
        if !found {
            std::ptr::write_bytes(header.cast::<u8>(), 0, size(slots));
        }
        HEADER.store(header, Relaxed);
        SLOTS.store(header.add(1).cast::<Slot>(), Relaxed);
        LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock, Relaxed);
        pg_sys::LWLockRelease(init_lock);
        if !found {
            pg_sys::on_shmem_exit(Some(at_exit), pg_sys::Datum::from(0));
            crate::usage::file::load(&mut *header, slots_mut(slots));
        }
    }
}

/// Called when the postmaster ends, after all other processes: nothing is recorded any more.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(code: core::ffi::c_int, _argument: pg_sys::Datum) {
    // A server that crashed does not know what its memory holds.
    if code == 0 && is_available() {
        // SAFETY: no other process is left; the memory is there until the callbacks that came before ours are run.
        let (header, slots) = unsafe { (&mut *HEADER.load(Relaxed), slots_mut(slot_count())) };
        crate::usage::file::save_at_exit(header, slots);
    }
}

/// # Safety
/// The memory is there, and nobody else uses it: see `read` and `write`.
unsafe fn slots_mut<'m>(count: usize) -> &'m mut [Slot] {
    // SAFETY: `count` slots follow the header.
    unsafe { std::slice::from_raw_parts_mut(SLOTS.load(Relaxed), count) }
}

/// Whether there is shared memory.
pub fn is_available() -> bool {
    !HEADER.load(Relaxed).is_null()
}

/// Runs `f` on the memory while others may read it and count. `f` must be short and call nothing of PostgreSQL's. `None`
/// without shared memory.
pub fn read<R>(f: impl FnOnce(&Header, &[Slot]) -> R) -> Option<R> {
    // SAFETY: under the shared lock everything but atomics is constant, so shared references are sound. The lock is
    // released at once; if `f` panicked, the abort of the transaction would do it.
    unsafe {
        let header = HEADER.load(Relaxed).as_ref()?;
        let lock = LOCK.load(Relaxed);
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let result = f(header, std::slice::from_raw_parts(SLOTS.load(Relaxed), slot_count()));
        pg_sys::LWLockRelease(lock);
        Some(result)
    }
}

/// Runs `f` on the memory while nobody else uses it. As `read` otherwise.
pub fn write<R>(f: impl FnOnce(&mut Header, &mut [Slot]) -> R) -> Option<R> {
    // SAFETY: under the exclusive lock no other process has references into the memory, and this one has no others,
    // since `f` cannot come back here: it would wait for itself.
    unsafe {
        let header = HEADER.load(Relaxed).as_mut()?;
        let lock = LOCK.load(Relaxed);
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let result = f(header, slots_mut(slot_count()));
        pg_sys::LWLockRelease(lock);
        Some(result)
    }
}
