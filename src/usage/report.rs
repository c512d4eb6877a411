//! What is known of the users of a change.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::time::Duration;

use pgrx::pg_sys;

use super::effects::{self, Effect};
use super::store::{Entry, Header, Side, Slot};
use super::{now, subject};
use crate::backfill::plan::format_duration;
use crate::catalog::{self, Change};
use crate::error::Error;
use crate::pg::lock::tree;
use crate::pg::security::{acts_for, current_role, query, role_name};
use crate::pg::{class, privilege, shmem, timestamp_text};

/// What was recorded of a change of this database, as far as it says anything; `None` if nothing can be recorded.
pub fn entries(change: &Change) -> Option<Vec<Entry>> {
    let subject = change.subject();
    let mut entries: Vec<Entry> = shmem::read(|_, slots| {
        let of_change = |slot: &&Slot| slot.key().is_some_and(|key| key.subject == subject);
        slots.iter().filter(of_change).filter_map(Slot::entry).collect()
    })?;
    let members = LazyCell::new(|| tree(change.relation));
    let mut roles = HashMap::new();
    entries.retain(|entry| {
        *roles.entry((entry.role, entry.permitted)).or_insert_with(|| {
            let role = entry.role.into();
            // Nobody can use a column as a role that is gone. And anybody can make up a statement that names one in vain.
            privilege::role_exists(role) && (entry.permitted || members.iter().any(|member| may_use(role, *member)))
        })
    });
    Some(entries)
}

fn may_use(role: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    privilege::has_any(role, table) || class::owner(table).is_some_and(|owner| acts_for(role, owner))
}

/// How many rows were settled in which the two sides of an active change disagreed; `None` if nothing can be recorded.
/// Whoever wrote them: also roles that are gone.
pub fn conflicts(change: i64, relation: pg_sys::Oid) -> Option<u64> {
    let subject = subject(relation, change);
    shmem::read(|_, slots| {
        slots.iter().filter(|slot| slot.key().is_some_and(|key| key.subject == subject)).map(Slot::conflicts).sum()
    })
}

/// Starts counting anew when the current transaction commits.
pub fn reset(change: &Change) {
    effects::at_commit(Effect::Reset(change.subject()));
}

/// Whether the current role may see what others run.
pub fn may_see_samples() -> bool {
    acts_for(current_role(), pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS))
}

/// What zdd.usage_info shows.
pub struct Info {
    pub recorded_since: i64,
    pub saved_at: Option<i64>,
    pub entries: usize,
    pub entries_max: usize,
    pub evicted: u64,
    pub memory: usize,
}

pub fn info() -> Option<Info> {
    shmem::read(|header: &Header, slots: &[Slot]| Info {
        recorded_since: header.recorded_since,
        saved_at: (header.saved_at != 0).then_some(header.saved_at),
        entries: slots.iter().filter(|slot| slot.key().is_some()).count(),
        entries_max: slots.len(),
        evicted: header.evicted,
        memory: shmem::size(slots.len()),
    })
}

/// The subscriptions that may write a table, and their owners.
pub fn subscriptions(relation: pg_sys::Oid) -> Result<Vec<(String, String)>, Error> {
    let sql = "select s.subname::text, pg_get_userbyid(s.subowner)::text from pg_subscription as s
        where s.subenabled and exists (
            select from pg_subscription_rel as r where r.srsubid = s.oid and r.srrelid = any ($1))
        order by 1";
    let rows = query(sql, &[tree(relation).into()], |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?)))?;
    Ok(rows.into_iter().filter_map(|(name, owner)| name.zip(owner)).collect())
}

/// Whether an old column is out of use.
pub enum Standing {
    /// Nobody was seen using it for so long.
    Quiet,
    /// These were, a line each.
    Used(Vec<String>),
    /// That cannot be told, for this reason.
    Unknown(String),
}

/// What is known of the use of a change's old column in the last while.
pub fn standing(change: &Change, period: Duration) -> Result<Standing, Error> {
    let Some(entries) = entries(change) else {
        return Ok(Standing::Unknown("Usage is not recorded: pg_zdd is not in shared_preload_libraries.".to_owned()));
    };
    let now = now();
    let ago = |time: i64| Duration::from_micros(u64::try_from(now - time).unwrap_or(0));
    let owner = class::owner(change.relation).unwrap_or_default();
    let is_user = |entry: &&Entry| entry.side == Side::Old && ago(entry.last_seen) < period && !is_dump(entry, owner);
    let mut users: Vec<&Entry> = entries.iter().filter(is_user).collect();
    users.sort_by_key(|entry| std::cmp::Reverse(entry.last_seen));
    let mut lines: Vec<String> = users.iter().take(MOST_LINES).map(|entry| line(entry, now)).collect();
    if users.len() > MOST_LINES {
        lines.push(format!("and {} more: see zdd.usage", users.len() - MOST_LINES));
    }
    lines.extend(subscriptions(change.relation)?.into_iter().map(|(name, owner)| {
        format!("subscription \"{name}\" of role \"{owner}\" writes the table: its publisher may send the old column at any time")
    }));
    if !lines.is_empty() {
        return Ok(Standing::Used(lines));
    }
    let subject = change.subject();
    let (recorded, evicted) =
        shmem::read(|header, _| (ago(header.recorded_since), header.evicted_old_seen(&subject))).unwrap_or_default();
    let age = ago(catalog::times(change.id)?.0);
    if recorded.min(age) < period {
        return Ok(Standing::Unknown(format!(
            "Usage has been recorded for {}, since the {}.",
            format_duration(recorded.min(age)),
            if recorded < age { "server was started" } else { "change began" }
        )));
    }
    if evicted != 0 && ago(evicted) < period {
        return Ok(Standing::Unknown(format!(
            "What was recorded {} ago had to make room for others: raise zdd.usage_max.",
            format_duration(ago(evicted))
        )));
    }
    Ok(Standing::Quiet)
}

/// Whether it is a dump, which reads whatever columns there are, and misses none that is gone. What an application calls itself
/// is no proof: only the role can be trusted. So it must be one that dumps are made as: the table's owner or a superuser, who
/// could force the contract anyway, or a member of pg_read_all_data. And it must never have done anything but read whole rows.
fn is_dump(entry: &Entry, owner: pg_sys::Oid) -> bool {
    let role = entry.role.into();
    matches!(entry.application.as_str(), "pg_dump" | "pg_dumpall")
        && !entry.selective
        && (acts_for(role, owner) || acts_for(role, pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_DATA)))
}

/// Who has named a fenced column in vain, a line each.
pub fn failed_while_fenced(change: &Change) -> Result<Vec<String>, Error> {
    let (_, fenced_at) = catalog::times(change.id)?;
    let now = now();
    let mut entries = entries(change).unwrap_or_default();
    entries.retain(|entry| entry.side == Side::Old && entry.errors > 0 && entry.last_seen >= fenced_at);
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.last_seen));
    Ok(entries.iter().take(MOST_LINES).map(|entry| line(entry, now)).collect())
}

const MOST_LINES: usize = 10;

/// A user as a line of a message.
fn line(entry: &Entry, now: i64) -> String {
    let count = |count: u64, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let mut counts = vec![count(entry.reads, "read"), count(entry.writes, "write")];
    if entry.errors > 0 {
        counts.push(count(entry.errors, "error"));
    }
    if !entry.is_counted() {
        counts = vec!["nothing since the reset".to_owned()];
    }
    let ago = Duration::from_micros(u64::try_from(now - entry.last_seen).unwrap_or(0));
    let mut line = format!(
        "role \"{}\", application \"{}\": {}, last seen {} ({} ago)",
        role_name(entry.role.into()),
        entry.application,
        counts.join(", "),
        timestamp_text(entry.last_seen),
        format_duration(ago)
    );
    if entry.reads > 0 && entry.reads == entry.whole_row && entry.writes == 0 {
        line.push_str(", always with all columns, so it may be no more than SELECT *");
    }
    if may_see_samples() && !entry.sample.is_empty() {
        let sample: String = entry.sample.split_whitespace().collect::<Vec<_>>().join(" ");
        line.push_str(&format!(": {}", crate::error::shown(&sample)));
    }
    line
}
