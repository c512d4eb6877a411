//! Constraints that no look at a single row can tell: PostgreSQL checks them by internal triggers, which whoever writes rows
//! has to queue and fire.

use pgrx::pg_sys;

use super::list_of;
use super::table::Table;

/// The internal triggers of a table that a write of some columns may have to fire: of its foreign keys, of those that refer to
/// it, and of UNIQUE and EXCLUDE constraints that can be deferred. None of its users' triggers.
pub(super) struct ConstraintTriggers {
    state: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    /// Whether a foreign key is about the columns. The others need only look at rows that an index has doubts about.
    has_foreign_keys: bool,
}

impl ConstraintTriggers {
    /// Leaves only these triggers in `result`, and begins to queue what they will have to look at. `None` if there are none.
    ///
    /// # Safety
    /// `result` was initialised for the table; it and `state` live as long as what this gives. An active snapshot is there.
    pub(super) unsafe fn begin(
        table: &Table,
        columns: &[i16],
        state: *mut pg_sys::EState,
        result: *mut pg_sys::ResultRelInfo,
    ) -> Option<ConstraintTriggers> {
        // SAFETY: the trigger descriptor is the result's own copy, with `numtriggers` triggers; the arrays beside it are filled
        // when triggers fire, and so may be longer.
        unsafe {
            let descriptor = (*result).ri_TrigDesc;
            if descriptor.is_null() {
                return None;
            }
            let (first, count) = ((*descriptor).triggers, (*descriptor).numtriggers as usize);
            let (mut kept, mut has_foreign_keys) = (0, false);
            for index in 0..count {
                let trigger = *first.add(index);
                let kind = kind(&trigger);
                let is_wanted = match kind {
                    Kind::Referencing => is_about(table, trigger.tgconstraint, columns),
                    Kind::Referenced => table.has_key_among(columns),
                    Kind::Unique => true,
                    Kind::Other => false,
                };
                if is_wanted {
                    *first.add(kept) = trigger;
                    kept += 1;
                    has_foreign_keys |= kind != Kind::Unique;
                }
            }
            if kept == 0 {
                (*result).ri_TrigDesc = std::ptr::null_mut();
                return None;
            }
            *descriptor = pg_sys::TriggerDesc {
                triggers: first,
                numtriggers: kept as i32,
                trig_update_after_row: true,
                ..Default::default()
            };
            check_at_once();
            pg_sys::AfterTriggerBeginQuery();
            Some(ConstraintTriggers { state, result, has_foreign_keys })
        }
    }

    /// Queues a row that was updated. `doubts` are the indexes that found another row with the same key.
    ///
    /// # Safety
    /// `old` is where the row was, `new` holds it as it is now.
    pub(super) unsafe fn queue(
        &self,
        old: &mut pg_sys::ItemPointerData,
        new: *mut pg_sys::TupleTableSlot,
        doubts: *mut pg_sys::List,
    ) {
        if !self.has_foreign_keys && doubts.is_null() {
            return;
        }
        let null = std::ptr::null_mut();
        // SAFETY: the caller vouches for the row, `begin` for the rest; the row is not moved between partitions.
        unsafe {
            pg_sys::ExecARUpdateTriggers(
                self.state,
                self.result,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                old,
                null,
                new,
                doubts,
                std::ptr::null_mut(),
                false,
            );
        }
    }

    /// Fires what was queued: an error if a constraint is violated.
    ///
    /// # Safety
    /// No query was begun since `begin` that has not ended.
    pub(super) unsafe fn fire(self) {
        // SAFETY: ends the query that `begin` began. The relations and slots that PostgreSQL's trigger code made for it are
        // the state's.
        unsafe {
            pg_sys::AfterTriggerEndQuery(self.state);
            pg_sys::ExecCloseResultRelations(self.state);
            pg_sys::ExecResetTupleTable((*self.state).es_tupleTable, false);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of a foreign key of this table.
    Referencing,
    /// Of a foreign key of another table that refers to this one.
    Referenced,
    /// Of a constraint that an index cannot decide at once.
    Unique,
    /// A user's, or not for updates.
    Other,
}

fn kind(trigger: &pg_sys::Trigger) -> Kind {
    // AFTER UPDATE, for each row.
    const WANTED: u32 = pg_sys::TRIGGER_TYPE_ROW | pg_sys::TRIGGER_TYPE_UPDATE;
    const DECISIVE: u32 = WANTED | pg_sys::TRIGGER_TYPE_BEFORE | pg_sys::TRIGGER_TYPE_INSTEAD;
    if !trigger.tgisinternal || trigger.tgtype as u32 & DECISIVE != WANTED {
        return Kind::Other;
    }
    // SAFETY: compares the OID with those of built-in functions.
    match unsafe { pg_sys::RI_FKey_trigger_type(trigger.tgfoid) } as u32 {
        pg_sys::RI_TRIGGER_FK => Kind::Referencing,
        pg_sys::RI_TRIGGER_PK => Kind::Referenced,
        _ if trigger.tgfoid == pg_sys::Oid::from(pg_sys::F_UNIQUE_KEY_RECHECK) => Kind::Unique,
        _ => Kind::Other,
    }
}

/// Whether a foreign key of the table is on one of the columns.
fn is_about(table: &Table, constraint: pg_sys::Oid, columns: &[i16]) -> bool {
    // SAFETY: the list is of the open relation's foreign keys, each with `nkeys` columns; it is looked at before anything
    // can change the relation cache.
    unsafe {
        list_of::<pg_sys::ForeignKeyCacheInfo>(pg_sys::RelationGetFKeyList(table.raw()))
            .into_iter()
            .filter(|key| (**key).conoid == constraint)
            .all(|key| (&(*key).conkey)[..(*key).nkeys as usize].iter().any(|number| columns.contains(number)))
    }
}

/// Has constraints checked at the end of each statement, for the rest of the transaction. What is not ours runs in a
/// security-restricted operation, which leaves no checks for later; and a batch ends with its transaction anyway.
pub fn check_at_once() {
    let mut all = pg_sys::ConstraintsSetStmt {
        type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
        constraints: std::ptr::null_mut(),
        deferred: false,
    };
    // SAFETY: in a transaction; the statement names no constraints, which stands for all, and is not kept.
    unsafe { pg_sys::AfterTriggerSetState(&mut all) }
}
