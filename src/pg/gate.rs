//! The one gate for code that is not ours: rule SQL, conditions, defaults, domains, CHECKs, index expressions, triggers,
//! and every DDL on a user's table. Behind it such code has the rights of the table's owner and no others, works under
//! fixed settings, and leaves no setting behind.
//!
//! Whatever plans, evaluates or executes for a user's object takes a [`Gate`], which only [`as_owner`] hands out. So a
//! call outside of it does not compile.

#![allow(clippy::disallowed_methods)] // The SQL of others goes out from here.

use std::marker::PhantomData;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiHeapTupleData};

use super::outside::{Caller, Statement};
use super::security::switch_to;
use super::settings::{Pin, Setting, Settings};
use crate::error::Error;

/// The proof that the code which has it runs behind the gate. It cannot be kept: it lives as long as the call.
pub struct Gate<'g> {
    owner: pg_sys::Oid,
    caller: Caller,
    _call: PhantomData<&'g ()>,
}

/// Runs `f` as the owner of a table, in a security-restricted operation, as PostgreSQL does for REINDEX or VACUUM: the
/// owner's code can neither become somebody else nor leave anything behind in the session. The owner sees all rows, also
/// under FORCE ROW LEVEL SECURITY.
pub fn as_owner<R>(owner: pg_sys::Oid, f: impl FnOnce(&Gate) -> R) -> R {
    enter(owner, || Settings::pin_noting(Pin::ALL), f)
}

/// The same, but names without a schema mean what they mean to the caller, who has written them.
pub fn as_owner_for_caller<R>(owner: pg_sys::Oid, f: impl FnOnce(&Gate) -> R) -> R {
    enter(owner, || Settings::pin_noting(Pin::ALL_BUT_SEARCH_PATH), f)
}

/// The same for one row after the other: what is immutable needs no more than the search_path that it was parsed under, and
/// settings cost more than most rules do.
pub fn as_owner_for_row<R>(owner: pg_sys::Oid, f: impl FnOnce(&Gate) -> R) -> R {
    enter(owner, || (Settings::pin(Pin::SEARCH_PATH), Vec::new()), f)
}

fn enter<R>(owner: pg_sys::Oid, pin: impl FnOnce() -> (Settings, Vec<Setting>), f: impl FnOnce(&Gate) -> R) -> R {
    const RESTRICTED: u32 =
        pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_NOFORCE_RLS;
    let switch = switch_to(owner, RESTRICTED);
    let (_settings, before) = pin();
    f(&Gate { owner, caller: Caller::before(&switch, before), _call: PhantomData })
}

impl Gate<'_> {
    /// Whose rights count.
    pub fn owner(&self) -> pg_sys::Oid {
        self.owner
    }

    /// Runs a statement of our own. The event triggers that it sets off run as the caller, outside of the gate.
    pub fn execute(&self, sql: &str) -> Result<(), Error> {
        let statement = Statement::of(self.caller.clone())?;
        Ok(statement.run(|| Spi::connect_mut(|client| client.update(sql, None, &[]).map(drop)))?)
    }

    /// Runs a statement once for each list of arguments and calls `each` with every row that it gives.
    pub fn for_each<'a, const N: usize>(
        &self,
        sql: &str,
        types: [pg_sys::PgBuiltInOids; N],
        arguments: impl Iterator<Item = [DatumWithOid<'a>; N]>,
        mut each: impl FnMut(&SpiHeapTupleData) -> Result<(), Error>,
    ) -> Result<(), Error> {
        Spi::connect_mut(|client| {
            let statement = client.prepare_mut(sql, &types.map(pg_sys::PgBuiltInOids::oid))?;
            for arguments in arguments {
                for row in client.update(&statement, None, &arguments)? {
                    each(&row)?;
                }
            }
            Ok(())
        })
    }
}
