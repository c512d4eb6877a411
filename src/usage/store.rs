//! What is recorded, in a fixed number of slots that all sessions share. Pure: needs no server.
//!
//! Who only counts shares the slots with others that count: counters are atomic. All else is written by one at a time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// A name as PostgreSQL stores it: at most 63 bytes, then zeros.
pub type Name = [u8; 64];

/// How many bytes of a sample query are kept.
pub const SAMPLE_SIZE: usize = 1024;

/// How old a sample may get before a newer one takes its place.
const SAMPLE_AGE: i64 = 60_000_000;

/// How many tables with a fenced column are known.
pub const FENCED_TABLES: usize = 128;

/// A side of a change.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Old,
    New,
}

impl Side {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

/// A change, by what nobody can choose: names can be had again, and imitated.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Subject {
    /// The change's id, which its database never gives a second time.
    pub change: i64,
    pub database: u32,
    /// The table that the change is of.
    pub relation: u32,
}

/// Whose use of what a slot counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    pub subject: Subject,
    pub role: u32,
    pub application: Name,
    side: u8,
}

impl Key {
    pub fn new(subject: Subject, role: u32, application: Name, side: Side) -> Key {
        Key { subject, role, application, side: side as u8 }
    }

    pub fn side(&self) -> Side {
        if self.side == Side::Old as u8 { Side::Old } else { Side::New }
    }

    /// Never 0, which marks a free slot.
    fn hash_value(&self) -> u64 {
        hash_of(self) | 1
    }

    /// Whether both are of one role for one side of a change.
    fn is_beside(&self, other: &Key) -> bool {
        (self.role, self.side, self.subject) == (other.role, other.side, other.subject)
    }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A slot that a statement was counted in. Until the statement ends it may be given to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    index: usize,
    hash: u64,
}

impl Place {
    pub fn of(slots: &[Slot], index: usize) -> Place {
        Place { index, hash: slots[index].hash }
    }

    /// The slot, if it still is the same user's.
    pub fn slot(self, slots: &[Slot]) -> Option<&Slot> {
        slots.get(self.index).filter(|slot| slot.hash == self.hash)
    }
}

/// How a statement used one side of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub read: bool,
    /// The read was of every column of the table, as with `SELECT *`.
    pub whole_row: bool,
    pub wrote: bool,
    /// What it wrote in a row gave way to the other side.
    pub settled: bool,
    /// The split rejected what it wrote.
    pub failed: bool,
    /// It named a column that is fenced. PostgreSQL has not asked yet whether its role may use the table.
    pub missed: bool,
}

impl Used {
    pub fn any(self) -> bool {
        self.is_permitted() || self.missed
    }

    /// Whether PostgreSQL has found that the role may do it.
    fn is_permitted(self) -> bool {
        self.read || self.wrote || self.settled || self.failed
    }

    /// Whether it reads all there is, and does nothing else.
    fn is_only_whole_row(self) -> bool {
        self.read && self.whole_row && !self.wrote && !self.settled && !self.failed && !self.missed
    }

    /// What a statement does that does both. It is more than `SELECT *` if one of them is.
    pub fn and(self, other: Used) -> Used {
        Used {
            read: self.read || other.read,
            whole_row: (self.whole_row || other.whole_row) && [self, other].iter().all(|it| it.whole_row || !it.read),
            wrote: self.wrote || other.wrote,
            settled: self.settled || other.settled,
            failed: self.failed || other.failed,
            missed: self.missed || other.missed,
        }
    }
}

/// The statements of one role and application that used one side of a change.
#[repr(C)]
pub struct Slot {
    /// Of the key; 0 if the slot is free.
    hash: u64,
    key: Key,
    reads: AtomicU64,
    whole_row: AtomicU64,
    writes: AtomicU64,
    rows: AtomicU64,
    conflicts: AtomicU64,
    errors: AtomicU64,
    /// 0 if nothing was counted since the last reset.
    first_seen: AtomicI64,
    last_seen: AtomicI64,
    /// What a reset does not take back: whether PostgreSQL has let it use the table, and whether it did more than read whole
    /// rows.
    permitted: AtomicBool,
    selective: AtomicBool,
    sample_is_whole_row: bool,
    sample_length: u32,
    sampled_at: i64,
    sample: [u8; SAMPLE_SIZE],
}

impl Slot {
    /// Whose it is.
    pub fn key(&self) -> Option<&Key> {
        (self.hash != 0).then_some(&self.key)
    }

    pub fn is_of(&self, key: &Key) -> bool {
        self.key() == Some(key)
    }

    pub fn count(&self, used: Used, now: i64) {
        for (counter, counts) in [
            (&self.reads, used.read),
            (&self.whole_row, used.read && used.whole_row),
            (&self.writes, used.wrote),
            (&self.conflicts, used.settled),
            (&self.errors, used.failed || used.missed),
        ] {
            if counts {
                counter.fetch_add(1, Relaxed);
            }
        }
        for (flag, holds) in [(&self.permitted, used.is_permitted()), (&self.selective, !used.is_only_whole_row())] {
            // Most of the time nothing changes: others need not fetch the line again.
            if holds && !flag.load(Relaxed) {
                flag.store(true, Relaxed);
            }
        }
        if self.first_seen.load(Relaxed) == 0 {
            // If somebody else was first, it is set.
            let _ = self.first_seen.compare_exchange(0, now, Relaxed, Relaxed);
        }
        self.last_seen.fetch_max(now, Relaxed);
    }

    /// Counts rows of a statement that was counted before.
    pub fn count_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Relaxed);
    }

    /// Rows in which this side gave way to the other since the last reset.
    pub fn conflicts(&self) -> u64 {
        self.conflicts.load(Relaxed)
    }

    /// Whether the statement would make a better sample: it is much newer, or says more than `SELECT *`.
    pub fn wants_sample(&self, used: Used, now: i64) -> bool {
        now - self.sampled_at > SAMPLE_AGE || (self.sample_is_whole_row && !used.whole_row)
    }

    pub fn set_sample(&mut self, text: &[u8], used: Used, now: i64) {
        let text = cut(text, SAMPLE_SIZE);
        self.sample[..text.len()].copy_from_slice(text);
        self.sample_length = text.len() as u32;
        self.sample_is_whole_row = used.whole_row;
        self.sampled_at = now;
    }

    /// Starts counting anew. That somebody was seen, and when, is not forgotten.
    pub fn reset(&mut self) {
        for counter in [
            &mut self.reads,
            &mut self.whole_row,
            &mut self.writes,
            &mut self.rows,
            &mut self.conflicts,
            &mut self.errors,
        ] {
            *counter.get_mut() = 0;
        }
        *self.first_seen.get_mut() = 0;
    }

    pub fn clear(&mut self) {
        self.hash = 0;
    }

    /// Makes it the slot of a key that has recorded nothing yet.
    fn begin(&mut self, key: &Key) {
        self.reset();
        *self.last_seen.get_mut() = 0;
        (*self.permitted.get_mut(), *self.selective.get_mut()) = (false, false);
        (self.sampled_at, self.sample_is_whole_row, self.sample_length) = (0, false, 0);
        (self.hash, self.key) = (key.hash_value(), *key);
    }

    /// Takes over what another has recorded.
    fn absorb(&mut self, other: &mut Slot) {
        for (mine, its) in [
            (&mut self.reads, &mut other.reads),
            (&mut self.whole_row, &mut other.whole_row),
            (&mut self.writes, &mut other.writes),
            (&mut self.rows, &mut other.rows),
            (&mut self.conflicts, &mut other.conflicts),
            (&mut self.errors, &mut other.errors),
        ] {
            *mine.get_mut() += *its.get_mut();
        }
        for (mine, its) in [(&mut self.permitted, &mut other.permitted), (&mut self.selective, &mut other.selective)] {
            *mine.get_mut() |= *its.get_mut();
        }
        let seen = [*self.first_seen.get_mut(), *other.first_seen.get_mut()];
        *self.first_seen.get_mut() = seen.into_iter().filter(|seen| *seen != 0).min().unwrap_or(0);
        *self.last_seen.get_mut() = (*self.last_seen.get_mut()).max(*other.last_seen.get_mut());
        if other.sampled_at > self.sampled_at {
            self.sample_is_whole_row = other.sample_is_whole_row;
            self.sample_length = other.sample_length;
            self.sampled_at = other.sampled_at;
            self.sample = other.sample;
        }
    }

    /// What else is known of the role's applications for this side is here.
    fn rename_to_others(&mut self) {
        self.key.application = name(OTHERS.as_bytes());
        self.hash = self.key.hash_value();
    }

    fn is_of_others(&self) -> bool {
        bytes(&self.key.application) == OTHERS.as_bytes()
    }

    /// What it has recorded, if it is in use.
    pub fn entry(&self) -> Option<Entry> {
        (self.hash != 0).then(|| Entry {
            subject: self.key.subject,
            role: self.key.role,
            application: text(&self.key.application),
            side: self.key.side(),
            reads: self.reads.load(Relaxed),
            whole_row: self.whole_row.load(Relaxed),
            writes: self.writes.load(Relaxed),
            rows: self.rows.load(Relaxed),
            conflicts: self.conflicts(),
            errors: self.errors.load(Relaxed),
            permitted: self.permitted.load(Relaxed),
            selective: self.selective.load(Relaxed),
            first_seen: self.first_seen.load(Relaxed),
            last_seen: self.last_seen.load(Relaxed),
            sample: String::from_utf8_lossy(&self.sample[..self.sample_length as usize]).into_owned(),
        })
    }
}

/// What a slot has recorded, to look at and to save.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    #[serde(flatten)]
    pub subject: Subject,
    pub role: u32,
    pub application: String,
    pub side: Side,
    pub reads: u64,
    pub whole_row: u64,
    pub writes: u64,
    pub rows: u64,
    /// A file may be older than they are.
    #[serde(default)]
    pub conflicts: u64,
    pub errors: u64,
    /// PostgreSQL has let it use the table, by a privilege of the role or by those of a view or function.
    pub permitted: bool,
    /// It has done more than read whole rows, be it before the last reset.
    pub selective: bool,
    pub first_seen: i64,
    pub last_seen: i64,
    pub sample: String,
}

impl Entry {
    /// Whether anything was counted since the last reset.
    pub fn is_counted(&self) -> bool {
        self.first_seen != 0
    }
}

/// A table whose old column is out of reach: statements that name it fail before any hook sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fenced {
    pub subject: Subject,
    /// The table of the change, or one of its partitions or children; 0 if this is free.
    pub relation: u32,
    /// Of the table of the change.
    pub owner: u32,
    pub source: Name,
    pub table: Name,
}

impl Fenced {
    pub const FREE: Fenced = Fenced {
        subject: Subject { change: 0, database: 0, relation: 0 },
        relation: 0,
        owner: 0,
        source: [0; 64],
        table: [0; 64],
    };

    fn is_of(&self, database: u32, relation: u32) -> bool {
        self.relation == relation && self.subject.database == database && relation != 0
    }

    /// Whether it is a partition or child: most statements name the table that these are of.
    fn is_member(&self) -> bool {
        self.relation != self.subject.relation
    }
}

/// In how many parts it is remembered of which changes something had to go.
const BUCKETS: usize = 256;

/// What there is once.
#[repr(C)]
pub struct Header {
    /// Since when statements are seen: the start of the server.
    pub recorded_since: i64,
    pub saved_at: i64,
    /// Slots that were given to somebody else.
    pub evicted: u64,
    /// When somebody was last seen using an old side of whom nothing is known any more. Each change has its place here, which
    /// it shares with few others: who uses up the slots with changes of his own makes few contracts wait but his.
    evicted_old_seen: [i64; BUCKETS],
    fenced: [Fenced; FENCED_TABLES],
}

impl Header {
    /// When somebody was last seen using the old side of a change, or of another, of whom nothing is known any more; 0 if
    /// that never was.
    pub fn evicted_old_seen(&self, subject: &Subject) -> i64 {
        self.evicted_old_seen[bucket(subject)]
    }

    /// Nothing had to go yet.
    pub fn forget_evictions(&mut self) {
        self.evicted = 0;
        self.evicted_old_seen = [0; BUCKETS];
    }

    /// All tables with a fenced column.
    pub fn fenced(&self) -> impl Iterator<Item = &Fenced> {
        self.fenced.iter().filter(|fenced| fenced.relation != 0)
    }

    pub fn fenced_in(&self, database: u32) -> impl Iterator<Item = &Fenced> {
        self.fenced().filter(move |fenced| fenced.subject.database == database)
    }

    /// Whether what is known of a table is what is so.
    pub fn knows_fenced(&self, database: u32, relation: u32, changes: &[Fenced]) -> bool {
        let mut known = self.fenced.iter().filter(|fenced| fenced.is_of(database, relation));
        known.clone().count() == changes.len() && known.all(|fenced| changes.contains(fenced))
    }

    /// Replaces what is known of a table.
    pub fn set_fenced(&mut self, database: u32, relation: u32, changes: &[Fenced]) {
        for fenced in self.fenced.iter_mut().filter(|fenced| fenced.is_of(database, relation)) {
            *fenced = Fenced::FREE;
        }
        changes.iter().for_each(|fenced| self.add_fenced(fenced));
    }

    /// When there is no room, the owner who has most makes it, the new one included: first with partitions, whose statements
    /// are not found then.
    pub fn add_fenced(&mut self, new: &Fenced) {
        let free = self.fenced.iter().position(|fenced| fenced.relation == 0);
        if let Some(place) = free.or_else(|| self.least_fenced(new)) {
            self.fenced[place] = *new;
        }
    }

    fn least_fenced(&self, new: &Fenced) -> Option<usize> {
        let mut counts = HashMap::from([(new.owner, 1)]);
        self.fenced.iter().for_each(|fenced| *counts.entry(fenced.owner).or_default() += 1);
        // Nobody goes for the sake of one who would have as many.
        let (owner, _) = counts.into_iter().max_by_key(|(owner, count)| (*count, *owner == new.owner))?;
        let of_owner = |fenced: &Fenced| fenced.owner == owner;
        let member = self.fenced.iter().position(|fenced| of_owner(fenced) && fenced.is_member());
        if owner == new.owner {
            return member.filter(|_| !new.is_member());
        }
        member.or_else(|| self.fenced.iter().position(of_owner))
    }

    /// Forgets that something of a change is fenced.
    pub fn forget_fenced(&mut self, subject: &Subject) {
        for fenced in self.fenced.iter_mut().filter(|fenced| fenced.subject == *subject) {
            *fenced = Fenced::FREE;
        }
    }
}

fn bucket(subject: &Subject) -> usize {
    hash_of(subject) as usize % BUCKETS
}

/// The slot of a key.
pub fn find(slots: &[Slot], key: &Key) -> Option<usize> {
    let hash = key.hash_value();
    slots.iter().position(|slot| slot.hash == hash && slot.key == *key)
}

/// The slot of a key, which is made if need be.
pub fn claim(header: &mut Header, slots: &mut [Slot], key: &Key) -> Option<usize> {
    if let Some(found) = find(slots, key) {
        return Some(found);
    }
    let free = slots.iter().position(|slot| slot.hash == 0);
    let index = free.or_else(|| make_room(header, slots, key.role))?;
    slots[index].begin(key);
    Some(index)
}

/// What applications are called whose names had to make room.
pub const OTHERS: &str = "(other applications)";

/// Frees a slot when none is free, of the role that has most of them: nobody has to make room for a role that has more. Of
/// two of its applications that use the same side of a change, those not seen for longest, nothing but their names is
/// forgotten. Only when it has no such two, its entry not seen for longest is lost.
fn make_room(header: &mut Header, slots: &mut [Slot], newcomer: u32) -> Option<usize> {
    let role = most_crowded(slots, newcomer)?;
    header.evicted += 1;
    let seen = |index: usize| slots[index].last_seen.load(Relaxed);
    let mut entries: Vec<usize> = (0..slots.len()).filter(|index| slots[*index].key.role == role).collect();
    // Those that could be one stand together.
    entries.sort_by_key(|index| {
        let slot = &slots[*index];
        (slot.key.subject, slot.key.side, !slot.is_of_others(), seen(*index))
    });
    let pairs = entries.windows(2).filter(|pair| slots[pair[0]].key.is_beside(&slots[pair[1]].key));
    if let Some(&[first, second]) = pairs.min_by_key(|pair| seen(pair[1])) {
        if let Ok([first, second]) = slots.get_disjoint_mut([first, second]) {
            first.absorb(second);
            first.rename_to_others();
        }
        return Some(second);
    }
    let lost = entries.into_iter().min_by_key(|index| seen(*index))?;
    let slot = &mut slots[lost];
    if slot.key.side() == Side::Old {
        let known = &mut header.evicted_old_seen[bucket(&slot.key.subject)];
        *known = (*known).max(*slot.last_seen.get_mut());
    }
    Some(lost)
}

/// The role that has most entries, the one that it is about to make included; of several the one that has not been seen for
/// longest in one of them.
fn most_crowded(slots: &[Slot], newcomer: u32) -> Option<u32> {
    let mut roles = HashMap::<u32, (usize, i64)>::new();
    for slot in slots {
        let seen = slot.last_seen.load(Relaxed);
        let (count, oldest) = roles.entry(slot.key.role).or_insert((usize::from(slot.key.role == newcomer), seen));
        (*count, *oldest) = (*count + 1, seen.min(*oldest));
    }
    let most = roles.into_iter().max_by_key(|(_, (count, oldest))| (*count, std::cmp::Reverse(*oldest)));
    most.map(|(role, _)| role)
}

/// Takes over what was saved.
pub fn restore(header: &mut Header, slots: &mut [Slot], entry: &Entry) {
    let key = Key::new(entry.subject, entry.role, name(entry.application.as_bytes()), entry.side);
    let Some(index) = claim(header, slots, &key) else { return };
    let slot = &mut slots[index];
    *slot.reads.get_mut() = entry.reads;
    *slot.whole_row.get_mut() = entry.whole_row;
    *slot.writes.get_mut() = entry.writes;
    *slot.rows.get_mut() = entry.rows;
    *slot.conflicts.get_mut() = entry.conflicts;
    *slot.errors.get_mut() = entry.errors;
    *slot.permitted.get_mut() = entry.permitted;
    *slot.selective.get_mut() = entry.selective;
    *slot.first_seen.get_mut() = entry.first_seen;
    *slot.last_seen.get_mut() = entry.last_seen;
    let whole_row = entry.reads == entry.whole_row && entry.writes == 0;
    slot.set_sample(entry.sample.as_bytes(), Used { whole_row, ..Used::default() }, entry.last_seen);
}

/// The beginning of a text, not cut inside a character.
pub fn cut(text: &[u8], most: usize) -> &[u8] {
    if text.len() <= most {
        return text;
    }
    let mut end = most;
    while end > 0 && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

/// A text as a name.
pub fn name(text: &[u8]) -> Name {
    let text = cut(text, 63);
    let mut name = [0; 64];
    name[..text.len()].copy_from_slice(text);
    name
}

/// The bytes of a name.
pub fn bytes(name: &Name) -> &[u8] {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    &name[..end]
}

/// A name as a text.
pub fn text(name: &Name) -> String {
    String::from_utf8_lossy(bytes(name)).into_owned()
}

/// The changes whose fenced column the message of an error names, and whose table, or a name for it that is not to be seen,
/// the statement that failed.
pub fn missed(fenced: &[Fenced], message: &[u8], statement: &[u8]) -> Vec<Subject> {
    // What PostgreSQL says is short; what users raise need not be.
    const LONGEST_MESSAGE: usize = 1024;
    if message.len() > LONGEST_MESSAGE {
        return Vec::new();
    }
    // What EXECUTE runs is not to be seen here.
    let is_execute = statement.trim_ascii_start().get(..7).is_some_and(|word| word.eq_ignore_ascii_case(b"execute"));
    let mut subjects = Vec::new();
    for fenced in fenced.iter().filter(|fenced| mentions(message, bytes(&fenced.source))) {
        if !subjects.contains(&fenced.subject) && (is_execute || mentions(statement, bytes(&fenced.table))) {
            subjects.push(fenced.subject);
        }
    }
    subjects
}

/// Whether a word stands in a text by itself, in capitals or not. Looks at each place of the text once, and no further than
/// to the first difference.
pub fn mentions(text: &[u8], word: &[u8]) -> bool {
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
    let Some(first) = word.first() else { return false };
    let begins = |(start, byte): &(usize, &u8)| {
        byte.eq_ignore_ascii_case(first) && !start.checked_sub(1).is_some_and(|before| in_word(&text[before]))
    };
    text.iter().enumerate().filter(begins).any(|(start, _)| {
        let rest = &text[start..];
        rest.get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word))
            && !rest.get(word.len()).is_some_and(in_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(slots: usize) -> (Header, Vec<Slot>) {
        let header = Header {
            recorded_since: 0,
            saved_at: 0,
            evicted: 0,
            evicted_old_seen: [0; BUCKETS],
            fenced: [Fenced::FREE; FENCED_TABLES],
        };
        let slot = || Slot {
            hash: 0,
            key: key("", Side::Old),
            reads: AtomicU64::new(0),
            whole_row: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_seen: AtomicI64::new(0),
            last_seen: AtomicI64::new(0),
            permitted: AtomicBool::new(false),
            selective: AtomicBool::new(false),
            sample_is_whole_row: false,
            sample_length: 0,
            sampled_at: 0,
            sample: [0; SAMPLE_SIZE],
        };
        (header, (0..slots).map(|_| slot()).collect())
    }

    const ROLE: u32 = 2;
    const SUBJECT: Subject = Subject { change: 3, database: 1, relation: 4 };

    fn key(application: &str, side: Side) -> Key {
        key_of(ROLE, SUBJECT.change, application, side)
    }

    fn key_of(role: u32, change: i64, application: &str, side: Side) -> Key {
        Key::new(Subject { change, ..SUBJECT }, role, name(application.as_bytes()), side)
    }

    const NONE: Used =
        Used { read: false, whole_row: false, wrote: false, settled: false, failed: false, missed: false };
    const READ: Used = Used { read: true, ..NONE };
    const STAR: Used = Used { whole_row: true, ..READ };

    fn count(memory: &mut (Header, Vec<Slot>), key: &Key, used: Used, now: i64) {
        let index = claim(&mut memory.0, &mut memory.1, key).unwrap();
        memory.1[index].count(used, now);
    }

    fn applications(memory: &(Header, Vec<Slot>)) -> Vec<String> {
        memory.1.iter().filter_map(Slot::entry).map(|entry| entry.application).collect()
    }

    #[test]
    fn takes_the_memory_that_is_documented() {
        assert_eq!((size_of::<Slot>(), size_of::<Header>()), (1200, 21_528));
    }

    #[test]
    fn counts_by_key() {
        let mut memory = memory(4);
        count(&mut memory, &key("a", Side::Old), READ, 5);
        count(&mut memory, &key("a", Side::Old), Used { wrote: true, failed: true, ..NONE }, 7);
        count(&mut memory, &key("a", Side::New), STAR, 6);
        let entries: Vec<Entry> = memory.1.iter().filter_map(Slot::entry).collect();
        assert_eq!(entries.len(), 2);
        let Entry { reads, whole_row, writes, errors, first_seen, last_seen, .. } = entries[0];
        assert_eq!((reads, whole_row, writes, errors, first_seen, last_seen), (1, 0, 1, 1, 5, 7));
        assert_eq!((entries[1].side, entries[1].reads, entries[1].whole_row), (Side::New, 1, 1));
        count(&mut memory, &key("a", Side::Old), Used { settled: true, ..NONE }, 8);
        let conflicts: Vec<u64> = memory.1.iter().map(Slot::conflicts).collect();
        assert_eq!(conflicts, [1, 0, 0, 0]);
    }

    #[test]
    fn rows_are_counted_for_whom_the_statement_was() {
        let mut memory = memory(1);
        count(&mut memory, &key("a", Side::Old), READ, 1);
        let place = Place::of(&memory.1, 0);
        place.slot(&memory.1).unwrap().count_rows(3);
        place.slot(&memory.1).unwrap().count_rows(4);
        assert_eq!(memory.1[0].entry().unwrap().rows, 7);
        // Somebody else has the slot by now.
        count(&mut memory, &key("b", Side::Old), READ, 2);
        assert!(place.slot(&memory.1).is_none());
        assert_eq!(memory.1[0].entry().unwrap().rows, 0);
    }

    #[test]
    fn two_applications_of_a_role_become_one_when_there_is_no_room() {
        let mut memory = memory(3);
        count(&mut memory, &key("a", Side::Old), READ, 1);
        count(&mut memory, &key("b", Side::Old), Used { wrote: true, ..NONE }, 2);
        count(&mut memory, &key("a", Side::Old), Used { settled: true, ..NONE }, 1);
        count(&mut memory, &key("b", Side::Old), Used { settled: true, ..NONE }, 2);
        memory.1[0].set_sample(b"select a", READ, 1);
        memory.1[1].set_sample(b"update a", READ, 2);
        count(&mut memory, &key("a", Side::New), READ, 3);
        count(&mut memory, &key("c", Side::Old), READ, 4);
        assert_eq!(applications(&memory), [OTHERS, "c", "a"]);
        assert_eq!(memory.0.evicted, 1);
        let others = memory.1[0].entry().unwrap();
        assert_eq!((others.reads, others.writes, others.first_seen, others.last_seen), (1, 1, 1, 2));
        assert_eq!(others.conflicts, 2);
        assert_eq!(others.sample, "update a");
        assert_eq!(find(&memory.1, &key(OTHERS, Side::Old)), Some(0));
        // The next joins them. Nobody has to be told that something is not known.
        count(&mut memory, &key("d", Side::Old), READ, 5);
        assert_eq!(applications(&memory), [OTHERS, "d", "a"]);
        assert_eq!((memory.1[0].entry().unwrap().reads, memory.1[0].entry().unwrap().last_seen), (2, 4));
        assert_eq!((memory.0.evicted, memory.0.evicted_old_seen(&SUBJECT)), (2, 0));
    }

    #[test]
    fn where_nothing_can_become_one_the_one_not_seen_for_longest_is_lost() {
        let mut memory = memory(2);
        count(&mut memory, &key("a", Side::Old), READ, 1);
        count(&mut memory, &key("a", Side::New), READ, 2);
        count(&mut memory, &key_of(ROLE, 7, "a", Side::New), READ, 4);
        assert_eq!(memory.1.iter().filter_map(Slot::entry).map(|it| it.side).collect::<Vec<_>>(), [Side::New; 2]);
        // Of its change it is known that something is not known, and of others it is not.
        let others = (8..).map(|change| Subject { change, ..SUBJECT });
        let other = others.into_iter().find(|other| bucket(other) != bucket(&SUBJECT)).unwrap();
        assert_eq!((memory.0.evicted_old_seen(&SUBJECT), memory.0.evicted_old_seen(&other)), (1, 0));
        // A new side is no evidence.
        count(&mut memory, &key_of(ROLE, 9, "a", Side::New), READ, 5);
        assert_eq!((memory.0.evicted, memory.0.evicted_old_seen(&SUBJECT)), (2, 1));
        memory.0.forget_evictions();
        assert_eq!((memory.0.evicted, memory.0.evicted_old_seen(&SUBJECT)), (0, 0));
    }

    #[test]
    fn nobody_makes_room_for_a_role_that_has_more() {
        let mut memory = memory(10);
        for number in 0..3 {
            count(&mut memory, &key(&format!("shop {number}"), Side::Old), READ, number);
        }
        let crowd = |memory: &mut (Header, Vec<Slot>), role: u32, changes: std::ops::Range<i64>| {
            for number in 0..1000 {
                let key = key_of(
                    role,
                    changes.start + number % (changes.end - changes.start),
                    &number.to_string(),
                    Side::Old,
                );
                count(memory, &key, READ, 1000 + number);
            }
        };
        let has = |memory: &(Header, Vec<Slot>), role| {
            memory.1.iter().filter(|slot| slot.key().is_some_and(|key| key.role == role)).count()
        };
        // With names of applications, and with changes of his own.
        crowd(&mut memory, 66, 100..101);
        crowd(&mut memory, 66, 100..200);
        assert_eq!((has(&memory, ROLE), has(&memory, 66)), (3, 7));
        assert_eq!(&applications(&memory)[..3], ["shop 0", "shop 1", "shop 2"]);
        // Those who come later get their share too.
        crowd(&mut memory, 67, 100..101);
        assert_eq!(has(&memory, ROLE), 3);
        assert!(has(&memory, 66) >= 3 && has(&memory, 67) >= 3);
    }

    #[test]
    fn a_reset_does_not_make_it_a_dump_or_a_stranger() {
        let mut memory = memory(1);
        let known = |memory: &(Header, Vec<Slot>)| {
            let entry = memory.1[0].entry().unwrap();
            (entry.permitted, entry.selective)
        };
        count(&mut memory, &key("a", Side::Old), STAR, 1);
        assert_eq!(known(&memory), (true, false));
        count(&mut memory, &key("a", Side::Old), READ, 2);
        memory.1[0].reset();
        assert_eq!(known(&memory), (true, true));
        for selective in [Used { wrote: true, ..STAR }, Used { failed: true, ..NONE }, Used { missed: true, ..NONE }] {
            memory.1[0].clear();
            count(&mut memory, &key("b", Side::Old), selective, 3);
            assert_eq!(known(&memory), (!selective.missed, true));
        }
        assert_eq!(memory.1[0].entry().unwrap().errors, 1);
    }

    #[test]
    fn a_reset_forgets_counts_but_not_that_somebody_was_seen() {
        let mut memory = memory(1);
        count(&mut memory, &key("a", Side::Old), Used { settled: true, ..READ }, 5);
        memory.1[0].reset();
        let entry = memory.1[0].entry().unwrap();
        assert!(!entry.is_counted());
        assert_eq!((entry.reads, entry.conflicts, entry.last_seen), (0, 0, 5));
        count(&mut memory, &key("a", Side::Old), READ, 9);
        assert_eq!(memory.1[0].entry().unwrap().first_seen, 9);
    }

    #[test]
    fn restored_as_saved() {
        let mut before = memory(2);
        count(&mut before, &key("a", Side::Old), STAR, 5);
        count(&mut before, &key("a", Side::Old), Used { settled: true, ..NONE }, 5);
        before.1[0].count_rows(9);
        before.1[0].set_sample(b"select * from t", STAR, 5);
        let entry = before.1[0].entry().unwrap();
        let mut after = memory(2);
        restore(&mut after.0, &mut after.1, &entry);
        assert_eq!(after.1[0].entry(), Some(entry));
        assert!(after.1[0].wants_sample(READ, 6) && !after.1[0].wants_sample(STAR, 6));
    }

    #[test]
    fn a_file_from_before_conflicts_were_counted_is_understood() {
        let mut memory = memory(1);
        count(&mut memory, &key("a", Side::Old), READ, 5);
        let entry = memory.1[0].entry().unwrap();
        let mut saved = serde_json::to_value(&entry).unwrap();
        assert_eq!(saved.as_object_mut().unwrap().remove("conflicts"), Some(0.into()));
        assert_eq!(serde_json::from_value::<Entry>(saved).unwrap(), entry);
    }

    #[test]
    fn samples_are_cut_between_characters() {
        let mut slot = memory(1).1.remove(0);
        slot.hash = 1;
        slot.set_sample("ß".repeat(600).as_bytes(), READ, 1);
        assert_eq!(slot.entry().unwrap().sample, "ß".repeat(512));
        slot.set_sample(format!("x{}", "ß".repeat(600)).as_bytes(), READ, 1);
        assert_eq!(slot.entry().unwrap().sample, format!("x{}", "ß".repeat(511)));
        assert_eq!(cut("aß".as_bytes(), 2), b"a");
        assert_eq!(cut("ß".as_bytes(), 1), b"");
    }

    #[test]
    fn a_statement_is_a_whole_row_only_if_all_it_reads_is() {
        let write = Used { wrote: true, ..NONE };
        assert!(STAR.and(STAR).whole_row && STAR.and(write).whole_row && STAR.and(Used::default()).whole_row);
        assert!(!STAR.and(READ).whole_row && !READ.and(STAR).whole_row && !write.and(write).whole_row);
    }

    #[test]
    fn words_stand_by_themselves() {
        assert!(mentions(b"column \"street\" does not exist", b"street"));
        assert!(mentions(b"column a.street does not exist", b"street"));
        assert!(mentions(b"SELECT 1 FROM ADDRESS", b"address"));
        assert!(mentions(b"address", b"address"));
        assert!(!mentions(b"column \"streetname\" does not exist", b"street"));
        assert!(!mentions(b"select from my_address", b"address"));
        assert!(!mentions("hauptstraße".as_bytes(), b"hauptstra"));
        assert!(mentions(b"a b c", b"b c") && mentions("große".as_bytes(), "große".as_bytes()));
        assert!(!mentions(b"", b"address") && !mentions(b"address", b"") && !mentions(b"addres", b"address"));
    }

    fn fenced(owner: u32, root: u32, relation: u32, source: &[u8]) -> Fenced {
        let subject = Subject { relation: root, ..SUBJECT };
        Fenced { subject, relation, owner, source: name(source), table: name(format!("t{relation}").as_bytes()) }
    }

    #[test]
    fn fenced_tables_come_and_go() {
        let mut header = memory(0).0;
        let fenced = |source: &[u8]| fenced(9, 2, 2, source);
        assert!(header.knows_fenced(1, 2, &[]));
        header.set_fenced(1, 2, &[fenced(b"a"), fenced(b"b")]);
        assert!(header.knows_fenced(1, 2, &[fenced(b"a"), fenced(b"b")]));
        assert!(!header.knows_fenced(1, 2, &[fenced(b"a")]));
        header.set_fenced(1, 2, &[fenced(b"b")]);
        assert_eq!(header.fenced_in(1).count(), 1);
        assert_eq!(header.fenced_in(2).count(), 0);
        header.set_fenced(1, 2, &[]);
        assert_eq!(header.fenced_in(1).count(), 0);
        header.set_fenced(1, 2, &[fenced(b"a")]);
        header.forget_fenced(&SUBJECT);
        assert_eq!(header.fenced().count(), 1);
        header.forget_fenced(&Subject { relation: 2, ..SUBJECT });
        assert_eq!(header.fenced().count(), 0);
    }

    #[test]
    fn one_owner_does_not_use_up_the_fenced_tables() {
        let mut header = memory(0).0;
        let has = |header: &Header, owner| header.fenced().filter(|fenced| fenced.owner == owner).count();
        for relation in 1..=200 {
            header.set_fenced(1, relation, &[fenced(66, 1, relation, b"a")]);
        }
        assert_eq!(has(&header, 66), FENCED_TABLES);
        for relation in 1001..=1003 {
            header.set_fenced(1, relation, &[fenced(7, relation, relation, b"a")]);
        }
        assert_eq!((has(&header, 66), has(&header, 7)), (FENCED_TABLES - 3, 3));
        // The root stays; for another root of his own, a partition goes.
        header.set_fenced(1, 500, &[fenced(66, 500, 500, b"a")]);
        assert_eq!((has(&header, 66), has(&header, 7)), (FENCED_TABLES - 3, 3));
        for relation in [1, 500, 1001, 1002, 1003] {
            assert!(!header.knows_fenced(1, relation, &[]), "{relation}");
        }
        // Not even with roots alone.
        for relation in 2001..=2200 {
            header.set_fenced(1, relation, &[fenced(66, relation, relation, b"a")]);
        }
        header.set_fenced(1, 1004, &[fenced(7, 1004, 1004, b"a")]);
        assert_eq!(has(&header, 7), 4);
    }

    #[test]
    fn what_was_missed_is_told_by_the_texts() {
        let all = [fenced(7, 1, 1, b"street"), fenced(7, 2, 2, b"street"), fenced(7, 2, 3, b"street")];
        let missed = |message: &str, statement: &str| -> Vec<u32> {
            missed(&all, message.as_bytes(), statement.as_bytes()).iter().map(|subject| subject.relation).collect()
        };
        const MESSAGE: &str = "column \"street\" does not exist";
        assert_eq!(missed(MESSAGE, "select street from t1"), [1]);
        assert_eq!(missed(MESSAGE, "select street from t3 join t2"), [2]);
        assert!(missed(MESSAGE, "select street from t4").is_empty());
        assert!(missed("column \"road\" does not exist", "select road from t1").is_empty());
        assert_eq!(missed(MESSAGE, " EXECUTE p"), [1, 2]);
        assert!(missed(&format!("{MESSAGE}{}", " ".repeat(1000)), "select street from t1").is_empty());
    }
}
