//! The room on a table's pages.

use pgrx::pg_sys;

use super::table::{Row, Table};

/// How full a page is.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Bytes that a new row version could take.
    pub free: usize,
    /// How many row versions there are, dead ones included.
    pub rows: usize,
}

/// The size of every page.
pub const PAGE_SIZE: usize = pg_sys::BLCKSZ as usize;

impl Row<'_> {
    /// The page that the row is on; `None` when the table's storage has no such pages.
    pub fn page(&self) -> Option<Page> {
        // SAFETY: a buffer tuple's slot keeps its buffer pinned, and a shared buffer's page is where bufmgr.h says; the
        // lock keeps it from changing while it is looked at.
        unsafe {
            let buffer = self.buffer()?;
            let page = pg_sys::BufferBlocks.add((buffer as usize - 1) * PAGE_SIZE);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let free = pg_sys::PageGetHeapFreeSpace(page.cast());
            let lower = (*page.cast::<pg_sys::PageHeaderData>()).pd_lower as usize;
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
            let header = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
            Some(Page { free, rows: lower.saturating_sub(header) / size_of::<pg_sys::ItemIdData>() })
        }
    }

    /// The size of the row in bytes, with its header.
    pub fn size(&self) -> usize {
        // SAFETY: a buffer tuple's slot has a heap tuple.
        unsafe {
            match self.buffer() {
                Some(_) => (*(*self.slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple).t_len as usize,
                None => 0,
            }
        }
    }

    /// Whether a column is NULL, found out without reading the columns before it.
    pub fn is_null(&self, number: i16) -> bool {
        // SAFETY: a buffer tuple's slot has a heap tuple, whose header says how many columns it has and which are NULL.
        unsafe {
            let constraints = (*(*self.slot).tts_tupleDescriptor).constr;
            let has_missing = !constraints.is_null() && !(*constraints).missing.is_null();
            if has_missing || self.buffer().is_none() {
                return self.get(number).is_null();
            }
            let header = (*(*self.slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple).t_data;
            if ((*header).t_infomask2 as u32 & pg_sys::HEAP_NATTS_MASK) < number as u32 {
                return true;
            }
            let bits = (&raw const (*header).t_bits).cast::<u8>();
            let index = number as usize - 1;
            (*header).t_infomask as u32 & pg_sys::HEAP_HASNULL != 0 && *bits.add(index / 8) & (1 << (index % 8)) == 0
        }
    }

    /// Whether the table's storage has pages that we know.
    pub(super) fn is_on_page(&self) -> bool {
        self.buffer().is_some()
    }

    fn buffer(&self) -> Option<pg_sys::Buffer> {
        // SAFETY: the slot's operations tell its kind; a shared buffer has a positive number.
        unsafe {
            let is_buffer = std::ptr::eq((*self.slot).tts_ops, &raw const pg_sys::TTSOpsBufferHeapTuple);
            let buffer = is_buffer.then(|| (*self.slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).buffer)?;
            (buffer > 0).then_some(buffer)
        }
    }
}

/// The pages that rows go to which no longer fit on their own: several in turn. An index drops its entries of old row
/// versions page by page, first those of the page that has the most entries of rows with two versions, and gives up at
/// a page that has nothing to drop. That must never be the one that rows were moved to, so it gets few of neighbours.
#[derive(Debug)]
pub struct Destinations {
    file: pg_sys::Oid,
    blocks: [u32; Destinations::MOST],
    /// How many are in use, and which of them is next.
    count: usize,
    next: usize,
}

impl Default for Destinations {
    fn default() -> Destinations {
        let file = pg_sys::InvalidOid;
        Destinations { file, blocks: [pg_sys::InvalidBlockNumber; Destinations::MOST], count: 1, next: 0 }
    }
}

impl Destinations {
    const MOST: usize = 16;
    /// Each may stay half empty, which must not matter.
    const BLOCKS_PER_DESTINATION: u32 = 128;

    /// Begins to move rows of a table that is locked against being cut short.
    pub(super) fn begin(&mut self, table: &Table) {
        if self.file != table.file() {
            *self = Destinations { file: table.file(), ..Destinations::default() };
        }
        let end = table.blocks();
        self.blocks.iter_mut().filter(|block| **block >= end).for_each(|block| *block = pg_sys::InvalidBlockNumber);
        self.count = (end / Self::BLOCKS_PER_DESTINATION).clamp(1, Self::MOST as u32) as usize;
        self.next %= self.count;
    }

    /// Makes the next one the page where a row goes unless it fits on its own.
    pub(super) fn aim(&self, table: &Table) {
        // SAFETY: the table is open; where its storage is open it has a target block: a hint, of a block that the table
        // has, or none.
        unsafe {
            if let Some(storage) = (*table.raw()).rd_smgr.as_mut() {
                storage.smgr_targblock = self.blocks[self.next];
            }
        }
    }

    /// Notes where a row went.
    pub(super) fn moved_to(&mut self, block: u32) {
        self.blocks[self.next] = block;
        self.next = (self.next + 1) % self.count;
    }
}

impl Table {
    /// Tells writers of the free bytes on a page, as VACUUM does. It takes effect with `publish_free_space`.
    pub fn record_free_space(&self, block: u32, free: usize) {
        // SAFETY: the table is open and has the block; a wrong figure is found out and put right by who relies on it.
        unsafe { pg_sys::RecordPageWithFreeSpace(self.raw(), block, free) }
    }

    /// Makes what was recorded for these blocks known.
    pub fn publish_free_space(&self, blocks: std::ops::Range<u32>) {
        // SAFETY: the table is open.
        unsafe { pg_sys::FreeSpaceMapVacuumRange(self.raw(), blocks.start, blocks.end) }
    }
}
