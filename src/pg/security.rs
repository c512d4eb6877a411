//! Who acts: roles, their rights, and whose rights count right now.

#![allow(clippy::disallowed_methods)] // Our own SQL goes out from here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::spi::{OwnedPreparedStatement, Spi, SpiHeapTupleData};
use pgrx::{PgOid, pg_sys};

use super::class;
use super::settings::{Pin, Settings, with_our_syntax};
use crate::error::Error;

/// The proof that the code which has it runs with the rights of the extension's owner. For our own SQL on our own tables
/// alone: what belongs to users goes through the gate.
pub struct Extension(());

/// Runs `f` with the rights of the extension's owner, to read and write our own tables.
pub fn as_extension<R>(owner: pg_sys::Oid, f: impl FnOnce(&Extension) -> R) -> R {
    let _switch = switch_to(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE);
    let _settings = Settings::pin(Pin::SYNTAX);
    f(&Extension(()))
}

impl Extension {
    /// Runs SQL that gives rows and may write.
    pub fn write<T>(
        &self,
        sql: &str,
        args: &[DatumWithOid],
        mut each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let plan = plan(sql, args)?;
        Spi::connect_mut(|client| client.update(plan, None, args)?.map(|row| each(&row)).collect())
    }

    /// Runs SQL that only reads, also on a standby.
    pub fn read<T>(
        &self,
        sql: &str,
        args: &[DatumWithOid],
        each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        select(sql, args, each)
    }
}

/// Runs the kept plan of a statement that only reads.
fn select<T>(
    sql: &str,
    args: &[DatumWithOid],
    mut each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let plan = plan(sql, args)?;
    Spi::connect(|client| client.select(plan, None, args)?.map(|row| each(&row)).collect())
}

/// The plan of a statement, which the session keeps: each batch runs the same few. They are never given back, since that
/// must not happen while the process ends; there are only as many as the code has statements.
fn plan(sql: &str, args: &[DatumWithOid]) -> Result<&'static OwnedPreparedStatement, Error> {
    thread_local! {
        static PLANS: RefCell<HashMap<String, &'static OwnedPreparedStatement>> = RefCell::default();
    }
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(sql).copied()) {
        return Ok(plan);
    }
    let types: Vec<PgOid> = args.iter().map(|arg| arg.oid().into()).collect();
    let plan = Spi::connect(|client| Ok::<_, Error>(client.prepare(sql, &types)?.keep()))?;
    let plan: &OwnedPreparedStatement = Box::leak(Box::new(plan));
    PLANS.with_borrow_mut(|plans| plans.insert(sql.to_owned(), plan));
    Ok(plan)
}

/// Runs SQL over PostgreSQL's catalogs that gives one column of text, as the current role. It only reads.
pub fn query_strings(sql: &str, args: &[DatumWithOid]) -> Result<Vec<String>, Error> {
    query(sql, args, |row| Ok(row.get::<String>(1)?)).map(|found| found.into_iter().flatten().collect())
}

/// Runs SQL over PostgreSQL's catalogs, as the current role. It only reads. The text is the code's own, since its plan is kept.
pub fn query<T>(
    sql: &str,
    args: &[DatumWithOid],
    each: impl FnMut(&SpiHeapTupleData) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    with_our_syntax(|| select(sql, args, each))
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
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

/// Whether a role is a superuser.
pub fn is_superuser(role: pg_sys::Oid) -> bool {
    // SAFETY: looks the role up; an unknown one is none.
    unsafe { pg_sys::superuser_arg(role) }
}

/// A role's name; `None` when it is gone.
pub fn known_role_name(role: pg_sys::Oid) -> Option<String> {
    // SAFETY: with noerr an unknown role gives NULL, else a palloc'ed string.
    let name = unsafe { super::c_string(pg_sys::GetUserNameFromId(role, true)) };
    (!name.is_empty()).then_some(name)
}

/// A role's name, or its OID when it is gone.
pub fn role_name(role: pg_sys::Oid) -> String {
    known_role_name(role).unwrap_or_else(|| role.to_u32().to_string())
}

/// Whether the current role may read these columns of every row of a table.
pub fn may_select(relation: pg_sys::Oid, columns: &[&str]) -> bool {
    let role = current_role();
    let may = |result| result == pg_sys::AclResult::ACLCHECK_OK;
    // SAFETY: looks up the relation, which exists, its columns, and what is granted on them.
    unsafe {
        if pg_sys::check_enable_rls(relation, pg_sys::InvalidOid, true)
            == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
        {
            return false;
        }
        let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
        may(pg_sys::pg_class_aclcheck(relation, role, select))
            || columns.iter().all(|column| {
                let number = class::column_number(relation, column);
                number.is_some_and(|number| may(pg_sys::pg_attribute_aclcheck(relation, number, role, select)))
            })
    }
}

/// Another role's rights, until this is dropped.
pub(super) struct Switch {
    role: pg_sys::Oid,
    context: i32,
}

impl Switch {
    /// The role and the security context that were there before.
    pub(super) fn before(&self) -> (pg_sys::Oid, i32) {
        (self.role, self.context)
    }
}

/// Switches to a role and adds to the security context: a restriction that is in force already stays in force.
pub(super) fn switch_to(role: pg_sys::Oid, context: u32) -> Switch {
    let switch = switch_exactly(role, 0);
    // SAFETY: as in `switch_exactly`.
    unsafe { pg_sys::SetUserIdAndSecContext(role, switch.context | context as i32) };
    switch
}

/// Switches to a role and a security context that once were in force, for code that does not belong behind the gate.
pub(super) fn switch_exactly(role: pg_sys::Oid, context: i32) -> Switch {
    let (mut saved_role, mut saved_context) = (pg_sys::InvalidOid, 0);
    // SAFETY: saves and sets backend variables; `drop` sets them back, and so does the abort of the (sub)transaction if an
    // error comes first.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut saved_role, &mut saved_context);
        pg_sys::SetUserIdAndSecContext(role, context);
    }
    DEPTH.set(DEPTH.get() + 1);
    Switch { role: saved_role, context: saved_context }
}

/// Becomes a role as if it had logged in, between the transactions of a worker, until this is dropped.
pub(super) fn become_role(role: pg_sys::Oid) -> Switch {
    switch_to(role, 0)
}

impl Drop for Switch {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if !std::thread::panicking() {
            // SAFETY: gives back what `switch_to` took; see there for errors.
            unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) };
        }
    }
}
