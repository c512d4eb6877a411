//! What a contract goes by: the state of every row at the moment when the old column is dropped. It looks at all of them, piece
//! by piece, while applications go on. A trigger notes the rows that are written meanwhile and are not plainly in sync, and
//! they are looked at again: the last few under the lock under which the column goes.

use std::collections::{BTreeMap, HashMap};

use pgrx::pg_sys;
use smallvec::SmallVec;

use crate::catalog::{self, Change, Claim};
use crate::ddl::open;
use crate::error::Error;
use crate::pg::inheritance::ancestors;
use crate::pg::lock::{LockMode, tree};
use crate::pg::security::query;
use crate::pg::session::{Session, with_latest_snapshot};
use crate::pg::table::{Table, Tid};
use crate::pg::trigger::WatchTrigger;
use crate::plans;
use crate::rule::state::RowState;
use crate::verify::{self, Counts};

/// So many rows are looked at again in a transaction.
const MANY: u32 = 10_000;
/// And so many while the table is locked against everybody.
const FEW: u32 = 500;

/// Called by the watching triggers: notes where a row was and is, if it is not plainly in sync in one of them.
pub fn note(trigger: &WatchTrigger) -> Result<(), Error> {
    let Some(plan) = plans::of_watch(trigger)? else { return Ok(()) };
    let binding = &plan.binding;
    let (old, new) = (trigger.old_row(), trigger.new_row());
    let sides = [&old, &new].map(|row| row.as_ref().map(|row| (binding.source_of(row), binding.targets_of(row))));
    let in_sync = |index: usize| match &sides[index] {
        Some((source, targets)) => binding.state(*source, targets) == RowState::InSync,
        None => true,
    };
    let unchanged = match &sides {
        [Some(old), Some(new)] => binding.same_source(old.0, new.0) && binding.same_targets(&old.1, &new.1),
        _ => false,
    };
    if in_sync(1) && (unchanged || in_sync(0)) {
        return Ok(());
    }
    let versions: SmallVec<[Tid; 2]> = old.iter().chain(&new).map(|row| row.tid()).collect();
    catalog::add_written(binding.rule.id, trigger.table().oid(), &versions)
}

/// A table that was looked at.
struct Seen {
    /// What it was then: with another file, or attached anew, it may have other rows.
    stamp: String,
    counts: Counts,
}

/// What is known of the rows of a change that is watched.
#[derive(Default)]
pub struct Census {
    tables: HashMap<pg_sys::Oid, Seen>,
    /// Of the rows that were looked at again.
    later: Counts,
}

impl Census {
    /// The rows by their states. What was written meanwhile counts as often as it was written.
    pub fn counts(&self) -> Counts {
        let mut counts = self.later;
        self.tables.values().for_each(|seen| counts += seen.counts);
        counts
    }

    /// Looks at the rows of all tables that it has not looked at as they are, and again at those that were written since.
    pub fn look(&mut self, session: &Session, claim: &Claim) -> Result<(), Error> {
        let tables = session.transaction(|| tables(&claim.find()?))?;
        self.tables.retain(|relation, _| tables.iter().any(|table| table.relation == *relation));
        for Member { relation, blocks, stamp } in tables {
            if self.has_seen(relation, &stamp) {
                continue;
            }
            let mut counts = Counts::default();
            for piece in verify::pieces(blocks) {
                session.transaction(|| {
                    let Some(table) = Table::open(relation, LockMode::AccessShare) else { return Ok(()) };
                    // Who changes what the rule is has the table locked.
                    let change = with_latest_snapshot(|| claim.find())?;
                    verify::count_piece(&change, &table, piece, &mut counts)
                })?;
            }
            if counts.rows == 0 {
                session.transaction(|| verify::check_empty(relation))?;
            }
            self.tables.insert(relation, Seen { stamp, counts });
        }
        while session.transaction(|| self.look_again(&claim.find()?, MANY))? {}
        Ok(())
    }

    /// Under the lock: whether it knows of all rows. If not, it takes too long to find out here.
    pub fn is_complete(&mut self, change: &Change) -> Result<bool, Error> {
        // What has no blocks has no rows.
        let is_new = |table: &Member| table.blocks > 0 && !self.has_seen(table.relation, &table.stamp);
        Ok(!tables(change)?.iter().any(is_new) && !self.look_again(change, FEW)?)
    }

    fn has_seen(&self, relation: pg_sys::Oid, stamp: &str) -> bool {
        self.tables.get(&relation).is_some_and(|seen| seen.stamp == stamp)
    }

    /// Looks at some of the rows that were written since. Returns whether there may be more.
    fn look_again(&mut self, change: &Change, most: u32) -> Result<bool, Error> {
        let written = catalog::take_written(change.id, most)?;
        let more = written.len() == most as usize;
        let mut pages: BTreeMap<(u32, u32), Vec<Tid>> = BTreeMap::new();
        for (relation, tid) in written {
            pages.entry((relation.to_u32(), tid.block)).or_default().push(tid);
        }
        for ((relation, block), tids) in pages {
            let Some(table) = Table::look_at(relation.into()) else { continue };
            verify::look_at_piece(change, &table, block..block + 1, |tid, state, null_violation| {
                if tids.contains(&tid) {
                    self.later.add(state, null_violation);
                }
            })?;
        }
        Ok(more)
    }
}

/// A table of a change that has rows.
struct Member {
    relation: pg_sys::Oid,
    blocks: u32,
    stamp: String,
}

/// The tables of a change as they are now.
fn tables(change: &Change) -> Result<Vec<Member>, Error> {
    // A table that was detached and attached again has another row here.
    let sql = "select i.inhrelid::oid, string_agg(format('%s %s', i.inhparent::oid, i.xmin), ', ' order by i.inhseqno)
        from pg_inherits as i where i.inhrelid = any ($1) group by i.inhrelid";
    let attached: HashMap<pg_sys::Oid, String> = query(sql, &[tree(change.relation).into()], |row| {
        Ok((row.get::<pg_sys::Oid>(1)?.unwrap_or_default(), row.get::<String>(2)?.unwrap_or_default()))
    })?
    .into_iter()
    .collect();
    verify::tables(change.relation)
        .into_iter()
        .map(|relation| {
            let table = open(relation)?;
            let links = ancestors(relation).iter().filter_map(|it| attached.get(it).cloned()).collect::<Vec<_>>();
            let stamp = format!("{}; {}", table.file().to_u32(), links.join("; "));
            Ok(Member { relation, blocks: table.blocks(), stamp })
        })
        .collect()
}
