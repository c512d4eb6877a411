//! What transactions do to the record. It is done when they commit, and not at all when they do not. Counting is no part of
//! it: also a statement that failed, or was rolled back, has used the column.

use std::cell::RefCell;

use super::store::{Fenced, Slot, Subject};
use crate::error::Error;
use crate::pg::worker::{Ending, at_end_of_transaction, current_subtransaction};
use crate::pg::{hook, shmem};

/// A step that others see at once.
pub enum Effect {
    /// The change begins. What its own transaction has counted goes if it does not.
    Begin(Subject),
    /// Counting starts anew.
    Reset(Subject),
    /// The change is over.
    End(Subject),
    /// The changes of a table whose source is fenced.
    Fenced { relation: u32, fenced: Vec<Fenced> },
}

struct Pending {
    effect: Effect,
    /// The subtransaction that wants it.
    since: u32,
}

thread_local! {
    static PENDING: RefCell<Vec<Pending>> = const { RefCell::new(Vec::new()) };
}

/// Does it when the current transaction commits.
pub fn at_commit(effect: Effect) {
    if shmem::is_available() {
        at_end_of_transaction(end);
        let pending = Pending { effect, since: current_subtransaction() };
        PENDING.with_borrow_mut(|all| all.push(pending));
    }
}

/// Whether the current transaction, when it commits, changes what is known to be fenced of a table.
pub fn changes_fences_of(table: u32) -> bool {
    PENDING.with_borrow(|all| {
        all.iter().any(|it| matches!(it.effect, Effect::Fenced { relation, .. } if relation == table))
    })
}

/// Does it now.
pub fn apply<'e>(effects: impl IntoIterator<Item = &'e Effect>) {
    let mut effects = effects.into_iter().peekable();
    if effects.peek().is_none() {
        return;
    }
    let database = hook::database().to_u32();
    shmem::write(|header, slots| {
        for effect in effects {
            let of = |subject: Subject| move |slot: &&mut Slot| slot.key().is_some_and(|key| key.subject == subject);
            match effect {
                Effect::Begin(_) => {}
                Effect::Reset(subject) => slots.iter_mut().filter(of(*subject)).for_each(Slot::reset),
                Effect::End(subject) => {
                    slots.iter_mut().filter(of(*subject)).for_each(Slot::clear);
                    header.forget_fenced(subject);
                }
                Effect::Fenced { relation, fenced } => header.set_fenced(database, *relation, fenced),
            }
        }
    });
}

fn end(ending: Ending) -> Result<(), Error> {
    let mut pending = PENDING.take();
    if pending.is_empty() {
        return Ok(());
    }
    let mut refused = Ok(());
    match ending {
        Ending::Committed => {
            apply(pending.iter().map(|it| &it.effect));
            pending.clear();
        }
        // Nobody here would hear of its commit.
        Ending::Preparing if pending.iter().any(|it| matches!(it.effect, Effect::Reset(_))) => {
            refused = Err(Error::Prepared);
        }
        Ending::Preparing => {}
        // What is fenced then, whoever looks at the table next finds out. What is left of a change that is over, nobody asks
        // for any more.
        Ending::Prepared => pending.clear(),
        Ending::AbortedSince(first) => {
            let (left, undone) = pending.into_iter().partition::<Vec<_>, _>(|it| it.since < first);
            pending = left;
            let begun_in_vain = undone.iter().filter_map(|it| match it.effect {
                Effect::Begin(subject) => Some(Effect::End(subject)),
                _ => None,
            });
            apply(&begun_in_vain.collect::<Vec<_>>());
        }
    }
    if matches!(ending, Ending::Prepared | Ending::AbortedSince(_)) {
        // What this session has seen of tables, and has not come to note, it is to note another time.
        super::forget(None);
    }
    PENDING.set(pending);
    refused
}
