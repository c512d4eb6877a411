//! Running code as another role, with a search_path that nobody can interfere with.

use std::ffi::CStr;

use pgrx::pg_sys;

/// What the code that runs as another role may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// Our own SQL on our own tables.
    Trusted,
    /// Code that belongs to a table: PostgreSQL's security-restricted operation, as for REINDEX or VACUUM. The owner
    /// sees all rows, also under FORCE ROW LEVEL SECURITY.
    Restricted,
}

/// Runs `f` as `role` with `search_path = pg_catalog, pg_temp`, and restores both.
pub fn as_role<R>(role: pg_sys::Oid, confinement: Confinement, f: impl FnOnce() -> R) -> R {
    let _guard = Guard::enter(role, confinement);
    f()
}

thread_local! {
    static DEPTH: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Whether what runs right now is ours, or was called by us, and not what an application asked for.
pub fn acts_for_extension() -> bool {
    DEPTH.get() > 0
}

/// The role that a function acts for right now.
pub fn current_role() -> pg_sys::Oid {
    // SAFETY: reads a backend variable.
    unsafe { pg_sys::GetUserId() }
}

/// The role that the session acts for, outside of all functions with rights of their own.
pub fn session_role() -> pg_sys::Oid {
    // SAFETY: reads a backend variable.
    unsafe { pg_sys::GetOuterUserId() }
}

/// Whether `member` is `role`, or can act for it.
pub fn acts_for(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: looks both up in the catalogs; unknown roles give false.
    unsafe { pg_sys::has_privs_of_role(member, role) }
}

/// A role's name, or its OID when it is gone.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: with noerr an unknown role gives NULL, else a palloc'ed string.
    let name = unsafe { super::c_string(pg_sys::GetUserNameFromId(role, true)) };
    if name.is_empty() { role.to_u32().to_string() } else { name }
}

struct Guard {
    role: pg_sys::Oid,
    context: i32,
    settings: Settings,
}

impl Guard {
    fn enter(role: pg_sys::Oid, confinement: Confinement) -> Guard {
        let (mut saved_role, mut saved_context) = (pg_sys::InvalidOid, 0);
        let flags = match confinement {
            Confinement::Trusted => pg_sys::SECURITY_LOCAL_USERID_CHANGE,
            Confinement::Restricted => {
                pg_sys::SECURITY_LOCAL_USERID_CHANGE
                    | pg_sys::SECURITY_RESTRICTED_OPERATION
                    | pg_sys::SECURITY_NOFORCE_RLS
            }
        };
        // SAFETY: saves and sets backend variables; the guard sets them back, and so does the abort of the
        // (sub)transaction if an error comes first.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut saved_role, &mut saved_context);
            // A restriction that is in force already stays in force.
            pg_sys::SetUserIdAndSecContext(role, saved_context | flags as i32);
        }
        let settings = Settings::override_with(&[(c"search_path", c"pg_catalog, pg_temp")]);
        DEPTH.set(DEPTH.get() + 1);
        Guard { role: saved_role, context: saved_context, settings }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        self.settings.restore();
        if !std::thread::panicking() {
            // SAFETY: gives back what `enter` took; see there for errors.
            unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) };
        }
    }
}

/// Runs `f` with some settings changed for its duration, whoever the current role is.
pub fn with_settings<R>(settings: &[(&CStr, &CStr)], f: impl FnOnce() -> R) -> R {
    let mut saved = Settings::override_with(settings);
    let result = f();
    saved.restore();
    result
}

/// Changes a setting until the transaction has ended, its commit included, whoever the current role is.
pub fn set_local(name: &CStr, value: &CStr) {
    set(name, value, pg_sys::GucAction::GUC_ACTION_LOCAL);
}

fn set(name: &CStr, value: &CStr, action: pg_sys::GucAction::Type) {
    // SAFETY: the strings are NUL-terminated and PostgreSQL copies them.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

struct Settings {
    nest_level: Option<i32>,
}

impl Settings {
    fn override_with(settings: &[(&CStr, &CStr)]) -> Settings {
        // SAFETY: begins a level that `restore` ends, or the abort of the (sub)transaction.
        let nest_level = unsafe { pg_sys::NewGUCNestLevel() };
        // This action ties the values to the level.
        settings.iter().for_each(|(name, value)| set(name, value, pg_sys::GucAction::GUC_ACTION_SAVE));
        Settings { nest_level: Some(nest_level) }
    }

    fn restore(&mut self) {
        if let Some(nest_level) = self.nest_level.take()
            && !std::thread::panicking()
        {
            // SAFETY: ends the nest level that `override_with` began, innermost first as guards are dropped.
            unsafe { pg_sys::AtEOXact_GUC(true, nest_level) };
        }
    }
}
