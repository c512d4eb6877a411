//! What is recorded, in a fixed number of slots that all sessions share. Pure: needs no server.
//!
//! Who only counts shares the slots with others that count: counters are atomic. All else is written by one at a time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

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

/// Whose use of what a slot counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    pub database: u32,
    pub role: u32,
    /// The name of the change's sync trigger, which tells the changes of a database apart.
    pub change: Name,
    pub application: Name,
    side: u8,
}

impl Key {
    pub fn new(database: u32, role: u32, change: Name, application: Name, side: Side) -> Key {
        Key { database, role, change, application, side: side as u8 }
    }

    pub fn side(&self) -> Side {
        if self.side == Side::Old as u8 { Side::Old } else { Side::New }
    }

    pub fn is_about(&self, database: u32, change: &Name) -> bool {
        self.database == database && self.change == *change
    }

    /// Never 0, which marks a free slot.
    fn hash_value(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish() | 1
    }
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
    pub failed: bool,
}

impl Used {
    pub fn any(self) -> bool {
        self.read || self.wrote || self.failed
    }

    /// What a statement does that does both. It is more than `SELECT *` if one of them is.
    pub fn and(self, other: Used) -> Used {
        Used {
            read: self.read || other.read,
            whole_row: (self.whole_row || other.whole_row) && [self, other].iter().all(|it| it.whole_row || !it.read),
            wrote: self.wrote || other.wrote,
            failed: self.failed || other.failed,
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
    errors: AtomicU64,
    /// 0 if nothing was counted since the last reset.
    first_seen: AtomicI64,
    last_seen: AtomicI64,
    sampled_at: i64,
    sample_is_whole_row: u32,
    sample_length: u32,
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
            (&self.errors, used.failed),
        ] {
            if counts {
                counter.fetch_add(1, Relaxed);
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

    /// Whether the statement would make a better sample: it is much newer, or says more than `SELECT *`.
    pub fn wants_sample(&self, used: Used, now: i64) -> bool {
        now - self.sampled_at > SAMPLE_AGE || (self.sample_is_whole_row != 0 && !used.whole_row)
    }

    pub fn set_sample(&mut self, text: &[u8], used: Used, now: i64) {
        let text = cut(text, SAMPLE_SIZE);
        self.sample[..text.len()].copy_from_slice(text);
        self.sample_length = text.len() as u32;
        self.sample_is_whole_row = u32::from(used.whole_row);
        self.sampled_at = now;
    }

    /// Starts counting anew. That somebody was seen, and when, is not forgotten.
    pub fn reset(&mut self) {
        for counter in [&mut self.reads, &mut self.whole_row, &mut self.writes, &mut self.rows, &mut self.errors] {
            *counter.get_mut() = 0;
        }
        *self.first_seen.get_mut() = 0;
    }

    pub fn clear(&mut self) {
        self.hash = 0;
    }

    /// What it has recorded, if it is in use.
    pub fn entry(&self) -> Option<Entry> {
        (self.hash != 0).then(|| Entry {
            database: self.key.database,
            role: self.key.role,
            change: text(&self.key.change),
            application: text(&self.key.application),
            side: self.key.side(),
            reads: self.reads.load(Relaxed),
            whole_row: self.whole_row.load(Relaxed),
            writes: self.writes.load(Relaxed),
            rows: self.rows.load(Relaxed),
            errors: self.errors.load(Relaxed),
            first_seen: self.first_seen.load(Relaxed),
            last_seen: self.last_seen.load(Relaxed),
            sample: String::from_utf8_lossy(&self.sample[..self.sample_length as usize]).into_owned(),
        })
    }
}

/// What a slot has recorded, to look at and to save.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub database: u32,
    pub role: u32,
    pub change: String,
    pub application: String,
    pub side: Side,
    pub reads: u64,
    pub whole_row: u64,
    pub writes: u64,
    /// What was saved before they were counted has none.
    #[serde(default)]
    pub rows: u64,
    pub errors: u64,
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
    pub database: u32,
    /// 0 if this is free.
    pub relation: u32,
    pub change: Name,
    pub source: Name,
    pub table: Name,
}

impl Fenced {
    pub const FREE: Fenced = Fenced { database: 0, relation: 0, change: [0; 64], source: [0; 64], table: [0; 64] };

    fn is_of(&self, database: u32, relation: u32) -> bool {
        self.relation == relation && self.database == database && relation != 0
    }
}

/// What there is once.
#[repr(C)]
pub struct Header {
    /// Since when statements are seen: the start of the server.
    pub recorded_since: i64,
    pub saved_at: i64,
    /// Slots that were given to somebody else.
    pub evicted: u64,
    /// When somebody was last seen using an old side whose slot was given to somebody else.
    pub evicted_old_seen: i64,
    pub fenced: [Fenced; FENCED_TABLES],
}

impl Header {
    pub fn fenced_in(&self, database: u32) -> impl Iterator<Item = &Fenced> {
        self.fenced.iter().filter(move |fenced| fenced.relation != 0 && fenced.database == database)
    }

    /// Whether what is known of a table is what is so.
    pub fn knows_fenced(&self, database: u32, relation: u32, changes: &[Fenced]) -> bool {
        let mut known = self.fenced.iter().filter(|fenced| fenced.is_of(database, relation));
        known.clone().count() == changes.len() && known.all(|fenced| changes.contains(fenced))
    }

    /// Replaces what is known of a table. When there is no room, its statements are not found.
    pub fn set_fenced(&mut self, database: u32, relation: u32, changes: &[Fenced]) {
        for fenced in self.fenced.iter_mut().filter(|fenced| fenced.is_of(database, relation)) {
            *fenced = Fenced::FREE;
        }
        let free = self.fenced.iter_mut().filter(|fenced| fenced.relation == 0);
        free.zip(changes).for_each(|(free, fenced)| *free = *fenced);
    }
}

/// The slot of a key.
pub fn find(slots: &[Slot], key: &Key) -> Option<usize> {
    let hash = key.hash_value();
    slots.iter().position(|slot| slot.hash == hash && slot.key == *key)
}

/// The slot of a key, which is made if need be: of a free slot, or of the one whose owner was not seen for longest.
pub fn claim(header: &mut Header, slots: &mut [Slot], key: &Key) -> Option<usize> {
    if let Some(found) = find(slots, key) {
        return Some(found);
    }
    let free = slots.iter().position(|slot| slot.hash == 0);
    let oldest = || (0..slots.len()).min_by_key(|index| slots[*index].last_seen.load(Relaxed));
    let index = free.or_else(oldest)?;
    let slot = &mut slots[index];
    if free.is_none() {
        header.evicted += 1;
        if slot.key.side() == Side::Old {
            header.evicted_old_seen = header.evicted_old_seen.max(*slot.last_seen.get_mut());
        }
    }
    slot.reset();
    *slot.last_seen.get_mut() = 0;
    (slot.sampled_at, slot.sample_is_whole_row, slot.sample_length) = (0, 0, 0);
    (slot.hash, slot.key) = (key.hash_value(), *key);
    Some(index)
}

/// Takes over what was saved.
pub fn restore(header: &mut Header, slots: &mut [Slot], entry: &Entry) {
    let (change, application) = (name(entry.change.as_bytes()), name(entry.application.as_bytes()));
    let key = Key::new(entry.database, entry.role, change, application, entry.side);
    let Some(index) = claim(header, slots, &key) else { return };
    let slot = &mut slots[index];
    *slot.reads.get_mut() = entry.reads;
    *slot.whole_row.get_mut() = entry.whole_row;
    *slot.writes.get_mut() = entry.writes;
    *slot.rows.get_mut() = entry.rows;
    *slot.errors.get_mut() = entry.errors;
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

/// Whether a word stands in a text by itself, in capitals or not.
pub fn mentions(text: &[u8], word: &[u8]) -> bool {
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
    !word.is_empty()
        && text.windows(word.len()).enumerate().any(|(start, window)| {
            window.eq_ignore_ascii_case(word)
                && !text[..start].last().is_some_and(in_word)
                && !text[start + word.len()..].first().is_some_and(in_word)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(slots: usize) -> (Header, Vec<Slot>) {
        let header =
            Header { recorded_since: 0, saved_at: 0, evicted: 0, evicted_old_seen: 0, fenced: [Fenced::FREE; 128] };
        let slot = || Slot {
            hash: 0,
            key: key("", Side::Old),
            reads: AtomicU64::new(0),
            whole_row: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_seen: AtomicI64::new(0),
            last_seen: AtomicI64::new(0),
            sampled_at: 0,
            sample_is_whole_row: 0,
            sample_length: 0,
            sample: [0; SAMPLE_SIZE],
        };
        (header, (0..slots).map(|_| slot()).collect())
    }

    fn key(application: &str, side: Side) -> Key {
        Key::new(1, 2, name(b"~zdd_t.a"), name(application.as_bytes()), side)
    }

    const READ: Used = Used { read: true, whole_row: false, wrote: false, failed: false };
    const STAR: Used = Used { read: true, whole_row: true, wrote: false, failed: false };

    fn count(memory: &mut (Header, Vec<Slot>), key: &Key, used: Used, now: i64) {
        let index = claim(&mut memory.0, &mut memory.1, key).unwrap();
        memory.1[index].count(used, now);
    }

    fn applications(memory: &(Header, Vec<Slot>)) -> Vec<String> {
        memory.1.iter().filter_map(Slot::entry).map(|entry| entry.application).collect()
    }

    #[test]
    fn takes_the_memory_that_is_documented() {
        assert_eq!((size_of::<Slot>(), size_of::<Header>()), (1248, 25_632));
    }

    #[test]
    fn counts_by_key() {
        let mut memory = memory(4);
        count(&mut memory, &key("a", Side::Old), READ, 5);
        count(&mut memory, &key("a", Side::Old), Used { wrote: true, failed: true, ..Used::default() }, 7);
        count(&mut memory, &key("a", Side::New), STAR, 6);
        let entries: Vec<Entry> = memory.1.iter().filter_map(Slot::entry).collect();
        assert_eq!(entries.len(), 2);
        let Entry { reads, whole_row, writes, errors, first_seen, last_seen, .. } = entries[0];
        assert_eq!((reads, whole_row, writes, errors, first_seen, last_seen), (1, 0, 1, 1, 5, 7));
        assert_eq!((entries[1].side, entries[1].reads, entries[1].whole_row), (Side::New, 1, 1));
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
    fn what_was_saved_without_rows_is_not_lost() {
        let mut before = memory(1);
        count(&mut before, &key("a", Side::Old), READ, 5);
        let mut saved = serde_json::to_value(before.1[0].entry().unwrap()).unwrap();
        saved.as_object_mut().unwrap().remove("rows");
        assert_eq!(serde_json::from_value::<Entry>(saved).unwrap(), before.1[0].entry().unwrap());
    }

    #[test]
    fn the_one_not_seen_for_longest_makes_room() {
        let mut memory = memory(2);
        count(&mut memory, &key("a", Side::Old), READ, 1);
        count(&mut memory, &key("b", Side::New), READ, 2);
        count(&mut memory, &key("a", Side::Old), READ, 3);
        count(&mut memory, &key("c", Side::Old), READ, 4);
        assert_eq!(applications(&memory), ["a", "c"]);
        assert_eq!((memory.0.evicted, memory.0.evicted_old_seen), (1, 0));
        count(&mut memory, &key("d", Side::New), READ, 5);
        assert_eq!((memory.0.evicted, memory.0.evicted_old_seen), (2, 3));
        let d = memory.1.iter().filter_map(Slot::entry).find(|entry| entry.application == "d").unwrap();
        assert_eq!((d.reads, d.first_seen, d.sample.as_str()), (1, 5, ""));
    }

    #[test]
    fn a_reset_forgets_counts_but_not_that_somebody_was_seen() {
        let mut memory = memory(1);
        count(&mut memory, &key("a", Side::Old), READ, 5);
        memory.1[0].reset();
        let entry = memory.1[0].entry().unwrap();
        assert!(!entry.is_counted());
        assert_eq!((entry.reads, entry.last_seen), (0, 5));
        count(&mut memory, &key("a", Side::Old), READ, 9);
        assert_eq!(memory.1[0].entry().unwrap().first_seen, 9);
    }

    #[test]
    fn restored_as_saved() {
        let mut before = memory(2);
        count(&mut before, &key("a", Side::Old), STAR, 5);
        before.1[0].count_rows(9);
        before.1[0].set_sample(b"select * from t", STAR, 5);
        let entry = before.1[0].entry().unwrap();
        let mut after = memory(2);
        restore(&mut after.0, &mut after.1, &entry);
        assert_eq!(after.1[0].entry(), Some(entry));
        assert!(after.1[0].wants_sample(READ, 6) && !after.1[0].wants_sample(STAR, 6));
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
        let write = Used { wrote: true, ..Used::default() };
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
        assert!(!mentions(b"", b"address") && !mentions(b"address", b""));
    }

    #[test]
    fn fenced_tables_come_and_go() {
        let mut header = memory(0).0;
        let fenced = |source: &[u8]| Fenced {
            database: 1,
            relation: 2,
            change: name(b"~zdd_t.a"),
            source: name(source),
            table: name(b"t"),
        };
        assert!(header.knows_fenced(1, 2, &[]));
        header.set_fenced(1, 2, &[fenced(b"a"), fenced(b"b")]);
        assert!(header.knows_fenced(1, 2, &[fenced(b"a"), fenced(b"b")]));
        assert!(!header.knows_fenced(1, 2, &[fenced(b"a")]));
        header.set_fenced(1, 2, &[fenced(b"b")]);
        assert_eq!(header.fenced_in(1).count(), 1);
        assert_eq!(header.fenced_in(2).count(), 0);
        header.set_fenced(1, 2, &[]);
        assert_eq!(header.fenced_in(1).count(), 0);
    }
}
