//! What transactions do to the record. It is done when they commit, and not at all when they do not. Counting is no part of
//! it: also a statement that failed, or was rolled back, has used the column.

use std::cell::RefCell;

use super::store::{Fenced, Slot, Subject};
use crate::error::Error;
use crate::pg::worker::{Ending, at_end_of_transaction, current_subtransaction};
use crate::pg::{hook, shmem};

/// A step that others see at once.
pub enum Effect {
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

/// Does it now.
pub fn apply<'e>(effects: impl IntoIterator<Item = &'e Effect>) {
    let database = hook::database().to_u32();
    shmem::write(|header, slots| {
        for effect in effects {
            let of = |subject: Subject| move |slot: &&mut Slot| slot.key().is_some_and(|key| key.subject == subject);
            match effect {
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
            pending.retain(|it| it.since < first);
            // What this session has seen of tables it is to note again.
            super::forget(None);
        }
    }
    PENDING.set(pending);
    refused
}
