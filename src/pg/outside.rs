//! The way out of the gate, for event triggers. Our DDL runs behind the gate, as the table's owner. The event triggers that
//! it sets off are not the owner's but a superuser's, and should find what they would find had the caller written the DDL:
//! the caller's rights and search_path. So we step out for as long as the function of one runs, and for nothing else.
//!
//! PostgreSQL has a hook around calls of functions for this. It is asked whenever a function is looked up, and says no
//! unless a statement of our own is under way.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::sync::OnceLock;

use pgrx::pg_sys::FmgrHookEventType::{FHET_ABORT, FHET_END, FHET_START};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, FmgrHookEventType, FmgrInfo, Oid};

use super::security::{Switch, current_role, query, switch_exactly};
use super::settings::{Setting, Settings};
use crate::error::Error;

thread_local! {
    /// The role that this background worker works for.
    static CLIENT: Cell<Option<Oid>> = const { Cell::new(None) };
}

/// From now on this background worker works for a role.
pub fn work_for(role: Oid) {
    CLIENT.set(Some(role));
}

/// Who has called for what goes on behind the gate.
#[derive(Clone)]
pub(super) struct Caller {
    role: Oid,
    context: i32,
    /// What the gate has pinned, as the caller had it.
    settings: Vec<Setting>,
}

impl Caller {
    /// The one that was there before a switch, with these settings.
    pub(super) fn before(switch: &Switch, settings: Vec<Setting>) -> Caller {
        let (role, context) = switch.before();
        match CLIENT.get() {
            // The session is a superuser's: what runs there for others must not become somebody else.
            Some(role) => Caller { role, context: context | RESTRICTED as i32, settings },
            None => Caller { role, context, settings },
        }
    }

    /// The one of a statement that a background worker runs as `role` but outside of the gate.
    pub(super) fn of_worker(role: Oid) -> Caller {
        Caller { role: CLIENT.get().unwrap_or(role), context: RESTRICTED as i32, settings: Vec::new() }
    }
}

const RESTRICTED: u32 = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;

/// The function of an event trigger.
struct Function {
    oid: Oid,
    /// It has rights of its own.
    is_security_definer: bool,
    /// It has settings of its own, `name=value`.
    settings: Vec<String>,
}

impl Function {
    fn sets(&self, name: &CStr) -> bool {
        let name = name.to_bytes();
        self.settings
            .iter()
            .any(|setting| setting.split_once('=').is_some_and(|(own, _)| own.as_bytes().eq_ignore_ascii_case(name)))
    }
}

/// The functions of event triggers, but for our own, which look at what DDL has done whoever runs it.
fn functions() -> Result<Vec<Function>, Error> {
    let sql = "select distinct p.oid, p.prosecdef, coalesce(p.proconfig, '{}')
        from pg_event_trigger as e join pg_proc as p on p.oid = e.evtfoid
        where e.evtenabled <> 'D' and not exists (
            select from pg_depend as d join pg_extension as x on x.oid = d.refobjid
            where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
                and d.refclassid = 'pg_extension'::regclass and x.extname = 'pg_zdd')";
    query(sql, &[], |row| {
        Ok(Function {
            oid: row.get(1)?.unwrap_or_default(),
            is_security_definer: row.get(2)? == Some(true),
            settings: row.get(3)?.unwrap_or_default(),
        })
    })
}

/// A statement of our own, and the event triggers that it can set off.
pub(super) struct Statement {
    caller: Caller,
    functions: Vec<Function>,
}

/// A call of a function that is not ours.
struct Call {
    info: *const FmgrInfo,
    /// The statement that it is part of.
    statement: Statement,
    _outside: Option<Outside>,
}

thread_local! {
    /// The statement of our own that is under way, unless code of others runs.
    static STATEMENT: RefCell<Option<Statement>> = const { RefCell::new(None) };
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

impl Statement {
    pub(super) fn of(caller: Caller) -> Result<Statement, Error> {
        Ok(Statement { caller, functions: functions()? })
    }

    /// Runs it. Its event triggers run as the caller.
    pub(super) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore {
            statement: Option<Statement>,
            calls: usize,
        }
        impl Drop for Restore {
            fn drop(&mut self) {
                STATEMENT.replace(self.statement.take());
                CALLS.with_borrow_mut(|calls| calls.truncate(self.calls));
            }
        }
        let statement = (!self.functions.is_empty()).then_some(self);
        let _restore = Restore { statement: STATEMENT.replace(statement), calls: CALLS.with_borrow(Vec::len) };
        f()
    }
}

static PREVIOUS_NEEDS: OnceLock<pg_sys::needs_fmgr_hook_type> = OnceLock::new();
static PREVIOUS_HOOK: OnceLock<pg_sys::fmgr_hook_type> = OnceLock::new();

/// Sets the hooks. Called by `_PG_init`.
pub fn install() {
    // SAFETY: set in the only thread, while the library is loaded; the previous ones are kept.
    unsafe {
        if PREVIOUS_NEEDS.set(pg_sys::needs_fmgr_hook).is_ok() {
            pg_sys::needs_fmgr_hook = Some(needs_hook);
        }
        if PREVIOUS_HOOK.set(pg_sys::fmgr_hook).is_ok() {
            pg_sys::fmgr_hook = Some(around_call);
        }
    }
}

/// Asked for each function that is looked up and not built in.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn needs_hook(function: Oid) -> bool {
    let ours = STATEMENT.with_borrow(|statement| {
        let Some(statement) = statement else { return false };
        statement.functions.iter().any(|it| it.oid == function) || !is_compiled(function)
    });
    ours || match PREVIOUS_NEEDS.get().copied().flatten() {
        // SAFETY: called as PostgreSQL called us.
        Some(previous) => unsafe { pg_guard_ffi_boundary(|| previous(function)) },
        None => false,
    }
}

/// Whether a function comes from the server or a library, and so from a superuser.
fn is_compiled(function: Oid) -> bool {
    /// The OIDs of the languages "internal" and "c", which are the same everywhere.
    const COMPILED: [u32; 2] = [12, 13];
    // SAFETY: a tuple of this cache is of pg_proc, whose data begin at its offset; it is released after it was read.
    unsafe {
        let key = pg_sys::Datum::from(function);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as i32, key);
        if tuple.is_null() {
            return false;
        }
        let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff as usize);
        let language = (*data.cast::<pg_sys::FormData_pg_proc>()).prolang;
        pg_sys::ReleaseSysCache(tuple);
        COMPILED.contains(&language.to_u32())
    }
}

/// Called before and after each call of a function that needs it.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn around_call(
    event: FmgrHookEventType::Type,
    info: *mut FmgrInfo,
    private: *mut pg_sys::Datum,
) {
    // SAFETY: PostgreSQL passes the function that it calls.
    match event {
        FHET_START => begin(info, unsafe { (*info).fn_oid }),
        FHET_END | FHET_ABORT => end(info),
        _ => {}
    }
    if let Some(previous) = PREVIOUS_HOOK.get().copied().flatten() {
        // SAFETY: called as PostgreSQL called us.
        unsafe { pg_guard_ffi_boundary(|| previous(event, info, private)) }
    }
}

fn begin(info: *const FmgrInfo, function: Oid) {
    // What the function does is not ours: if it is the owner's, the event triggers that its own DDL sets off are for the owner.
    let Some(statement) = STATEMENT.take() else { return };
    let trigger = statement.functions.iter().find(|it| it.oid == function);
    let outside = trigger.map(|trigger| Outside::step_out(&statement.caller, trigger));
    CALLS.with_borrow_mut(|calls| calls.push(Call { info, statement, _outside: outside }));
}

fn end(info: *const FmgrInfo) {
    if let Some(call) = CALLS.with_borrow_mut(|calls| calls.pop_if(|call| std::ptr::eq(call.info, info))) {
        STATEMENT.replace(Some(call.statement));
    }
}

/// The way back behind the gate is to drop it.
struct Outside {
    _settings: Settings,
    _switch: Switch,
}

impl Outside {
    fn step_out(caller: &Caller, trigger: &Function) -> Outside {
        let switch = if trigger.is_security_definer {
            switch_exactly(current_role(), caller.context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32)
        } else {
            switch_exactly(caller.role, caller.context)
        };
        let settings = caller.settings.iter().filter(|(name, _)| !trigger.sets(name));
        let settings = Settings::of(settings.map(|(name, value)| (*name, value.as_c_str())));
        Outside { _settings: settings, _switch: switch }
    }
}
