//! What a contract goes by: the state of every row at the moment when the old column is dropped. It looks at all of them, piece
//! by piece, while applications go on. A trigger notes the rows that are written meanwhile and are not plainly in sync, and
//! they are looked at again: the last few under the lock under which the column goes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use pgrx::pg_sys;
use smallvec::SmallVec;

use crate::archive::{self, Archive, Lost};
use crate::catalog::{self, Change, Claim};
use crate::ddl::open;
use crate::error::Error;
use crate::guc;
use crate::pg::inheritance::ancestors;
use crate::pg::lock::{LockMode, tree};
use crate::pg::security::query;
use crate::pg::session::{Session, with_latest_snapshot};
use crate::pg::settings::with_settings;
use crate::pg::table::{Table, Tid};
use crate::pg::trigger::WatchTrigger;
use crate::plans;
use crate::rule::state::RowState;
use crate::verify::{self, Counts};

/// So many rows are looked at again in a transaction.
const MANY: u32 = 10_000;
/// And so many while the table is locked against everybody.
const FEW: u32 = 200;

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
pub struct Census {
    tables: HashMap<pg_sys::Oid, Seen>,
    /// Of the rows that were looked at again.
    later: Counts,
    /// Has those of the rows that have something to lose.
    archive: Option<Archive>,
}

impl Census {
    /// Knows nothing yet, and fills an archive that is empty.
    pub fn new(archive: Option<Archive>) -> Census {
        Census { tables: HashMap::new(), later: Counts::default(), archive }
    }

    /// The rows by their states. What was written meanwhile counts as often as it was written.
    pub fn counts(&self) -> Counts {
        let mut counts = self.later;
        self.tables.values().for_each(|seen| counts += seen.counts);
        counts
    }

    /// Looks at the rows of all tables that it has not looked at as they are, and again at those that were written since.
    pub fn look(&mut self, session: &Session, claim: &Claim) -> Result<(), Error> {
        let tables = session.transaction(|| tables(&claim.find()?))?;
        let known: Vec<pg_sys::Oid> = self.tables.keys().copied().collect();
        let gone = known.iter().copied().filter(|it| !tables.iter().any(|table| table.relation == *it));
        for relation in gone.chain(tables.iter().map(|table| table.relation)) {
            if self.is_current(relation, &tables) {
                continue;
            }
            // Rows of it may have been looked at again already.
            self.tables.remove(&relation);
            if let Some(archive) = self.archive {
                session.transaction(|| archive.forget(&claim.find()?, relation))?;
            }
        }
        for Member { relation, blocks, stamp } in tables {
            if self.tables.contains_key(&relation) {
                continue;
            }
            let mut counts = Counts::default();
            for piece in verify::pieces(blocks) {
                session.transaction(|| {
                    let Some(table) = Table::open(relation, LockMode::AccessShare) else { return Ok(()) };
                    // Who changes what the rule is has the table locked.
                    let change = with_latest_snapshot(|| claim.find())?;
                    let lost = self.look_at(&change, &table, piece, |_| true, &mut counts)?;
                    self.archive(&change, relation, &lost)
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
        let tables = tables(change)?;
        // What has no blocks has no rows.
        let is_new = |table: &Member| table.blocks > 0 && !self.has_seen(table.relation, &table.stamp);
        let is_known = !tables.iter().any(is_new) && self.tables.keys().all(|it| self.is_current(*it, &tables));
        // Nobody is to wait behind us for whoever has locked the archive.
        let timeout = guc::milliseconds(guc::lock_timeout());
        with_settings(&[(c"lock_timeout", timeout.as_c_str())], || Ok(is_known && !self.look_again(change, FEW)?))
    }

    /// Whether a table that was looked at is as it was then.
    fn is_current(&self, relation: pg_sys::Oid, tables: &[Member]) -> bool {
        tables.iter().any(|table| table.relation == relation && self.has_seen(relation, &table.stamp))
    }

    fn has_seen(&self, relation: pg_sys::Oid, stamp: &str) -> bool {
        self.tables.get(&relation).is_some_and(|seen| seen.stamp == stamp)
    }

    /// Looks at some of the rows that were written since. Returns whether there may be more.
    fn look_again(&mut self, change: &Change, most: u32) -> Result<bool, Error> {
        let written = catalog::take_written(change.id, most)?;
        let more = written.len() == most as usize;
        let mut tables: BTreeMap<u32, BTreeMap<u32, Vec<Tid>>> = BTreeMap::new();
        for (relation, tid) in written {
            tables.entry(relation.to_u32()).or_default().entry(tid.block).or_default().push(tid);
        }
        let mut later = self.later;
        for (relation, pages) in tables {
            let relation = relation.into();
            if let Some(archive) = self.archive {
                archive.remove(change, relation, pages.values().flatten().copied())?;
            }
            let Some(table) = Table::look_at(relation) else { continue };
            let mut lost = Vec::new();
            for (block, tids) in pages {
                lost.extend(self.look_at(change, &table, block..block + 1, |tid| tids.contains(&tid), &mut later)?);
            }
            drop(table);
            self.archive(change, relation, &lost)?;
        }
        self.later = later;
        Ok(more)
    }

    /// Counts rows of one piece of a table. Returns those that are to be archived.
    fn look_at(
        &self,
        change: &Change,
        table: &Table,
        blocks: Range<u32>,
        wanted: impl Fn(Tid) -> bool,
        counts: &mut Counts,
    ) -> Result<Vec<Lost>, Error> {
        let mut lost = Vec::new();
        verify::look_at_piece(change, table, blocks, |tid, state, null_violation| {
            if wanted(tid) {
                counts.add(state, null_violation);
                lost.extend(archive::kind(state).filter(|_| self.archive.is_some()).map(|kind| (tid, kind)));
            }
        })?;
        Ok(lost)
    }

    fn archive(&self, change: &Change, relation: pg_sys::Oid, lost: &[Lost]) -> Result<(), Error> {
        match self.archive {
            Some(archive) if !lost.is_empty() => archive.add(change, relation, lost),
            _ => Ok(()),
        }
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
