//! Scanning a table by ranges of blocks, and updating its rows without firing its users' triggers.

use std::marker::PhantomData;
use std::ops::Range;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::c_string;
use super::constraint::ConstraintTriggers;
use super::ffi::{compute_stored_generated, get_partition_ancestors, partition_condition};
use super::gate::Gate;
use super::inspect::is_constant;
use super::lock::{LockMode, RowLock};
use super::page::Destinations;
use super::value::Value;
use super::version;
use crate::error::Error;

/// Where a row version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tid {
    pub block: u32,
    pub offset: u16,
}

impl Tid {
    /// From PostgreSQL's.
    pub fn unpack(tid: pg_sys::ItemPointerData) -> Tid {
        Tid { block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo), offset: tid.ip_posid }
    }

    /// As PostgreSQL has it.
    pub fn pack(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData { bi_hi: (self.block >> 16) as u16, bi_lo: (self.block & 0xffff) as u16 },
            ip_posid: self.offset,
        }
    }
}

impl From<Tid> for DatumWithOid<'_> {
    fn from(tid: Tid) -> Self {
        tid.pack().into()
    }
}

impl std::fmt::Display for Tid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({},{})", self.block, self.offset)
    }
}

/// A column of an open table, as it is now.
#[derive(Clone, Debug)]
pub struct Attribute {
    pub number: i16,
    pub type_oid: pg_sys::Oid,
    pub typmod: i32,
    pub collation: pg_sys::Oid,
    pub not_null: bool,
    pub generated: bool,
    pub identity: bool,
    pub inherited: bool,
}

/// An open table. The lock stays until the end of the transaction.
pub struct Table {
    relation: pg_sys::Relation,
    /// The lock to give back when it is closed, if any; `None` for what is not ours to close, which trigger data lend.
    closing: Option<pg_sys::LOCKMODE>,
}

impl Table {
    /// Opens a table, waiting for the lock as `lock_timeout` allows. `None` when it does not exist.
    pub fn open(oid: pg_sys::Oid, mode: LockMode) -> Option<Table> {
        // SAFETY: takes any OID; NULL when there is no such relation.
        let relation = unsafe { pg_sys::try_relation_open(oid, mode.number()) };
        (!relation.is_null()).then(|| Table { relation, closing: Some(pg_sys::NoLock as pg_sys::LOCKMODE) })
    }

    /// The same, with a lock as SELECT takes it that goes with the result: for whoever looks and then waits for others.
    pub fn look_at(oid: pg_sys::Oid) -> Option<Table> {
        let mut table = Table::open(oid, LockMode::AccessShare)?;
        table.closing = Some(LockMode::AccessShare.number());
        Some(table)
    }

    /// Whether there is such a relation, without a lock.
    pub fn exists(oid: pg_sys::Oid) -> bool {
        // SAFETY: looks the OID up; NULL when there is none.
        unsafe { !pg_sys::get_rel_name(oid).is_null() }
    }

    /// # Safety
    /// `relation` is open for longer than the result is used.
    pub(super) unsafe fn borrowed(relation: pg_sys::Relation) -> Table {
        Table { relation, closing: None }
    }

    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: open relations are valid.
        unsafe { (*self.relation).rd_id }
    }

    fn class(&self) -> &pg_sys::FormData_pg_class {
        // SAFETY: an open relation has its pg_class row.
        unsafe { &*(*self.relation).rd_rel }
    }

    pub fn owner(&self) -> pg_sys::Oid {
        self.class().relowner
    }

    /// The table that this is a partition of in the end, or the table itself.
    pub fn root(&self) -> pg_sys::Oid {
        if !self.is_partition() {
            return self.oid();
        }
        // SAFETY: the list is one of OIDs, the topmost ancestor last.
        unsafe {
            let ancestors = get_partition_ancestors(self.oid());
            match (*ancestors).length.checked_sub(1) {
                Some(last) => (*(*ancestors).elements.add(last as usize)).oid_value,
                None => self.oid(),
            }
        }
    }

    /// pg_class.relkind.
    pub fn kind(&self) -> char {
        self.class().relkind as u8 as char
    }

    /// Whether it is a partition of another table.
    pub fn is_partition(&self) -> bool {
        self.class().relispartition
    }

    /// Whether it belongs to the system: catalogs, toast, information_schema.
    pub fn is_system(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe { pg_sys::IsSystemRelation(self.relation) || self.oid().to_u32() < pg_sys::FirstNormalObjectId }
    }

    /// Whether it is a temporary table.
    pub fn is_temporary(&self) -> bool {
        self.class().relpersistence as u8 == b't'
    }

    /// Its name, qualified and quoted.
    pub fn name(&self) -> String {
        // SAFETY: the functions give palloc'ed strings for existing objects.
        unsafe {
            let schema = pg_sys::get_namespace_name(self.class().relnamespace);
            c_string(pg_sys::quote_qualified_identifier(schema, self.class().relname.data.as_ptr()))
        }
    }

    /// The name of its schema.
    pub fn schema(&self) -> String {
        // SAFETY: the schema of an open table exists; gives a palloc'ed string.
        unsafe { c_string(pg_sys::get_namespace_name(self.class().relnamespace)) }
    }

    /// Its name alone.
    pub fn bare_name(&self) -> String {
        // SAFETY: a name is NUL-terminated.
        unsafe { c_string(self.class().relname.data.as_ptr()) }
    }

    /// The file that the rows are in: it changes when the table is rewritten.
    pub fn file(&self) -> pg_sys::Oid {
        self.class().relfilenode
    }

    /// The size in blocks right now; 0 for tables without rows of their own.
    pub fn blocks(&self) -> u32 {
        if self.kind() != 'r' {
            return 0;
        }
        // SAFETY: a table of kind r has storage.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    /// The planner's idea of how many rows there are; `None` before the first ANALYZE.
    pub fn estimated_rows(&self) -> Option<u64> {
        let rows = self.class().reltuples;
        (rows >= 0.0).then_some(rows as u64)
    }

    /// All columns, by name.
    pub fn attributes(&self) -> Vec<(String, Attribute)> {
        // SAFETY: the relation is open, and so its tuple descriptor is valid.
        let descriptor = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*self.relation).rd_att) };
        descriptor
            .iter()
            .filter(|attribute| !attribute.attisdropped)
            .map(|attribute| {
                let found = Attribute {
                    number: attribute.attnum,
                    type_oid: attribute.atttypid,
                    typmod: attribute.atttypmod,
                    collation: attribute.attcollation,
                    not_null: attribute.attnotnull,
                    generated: attribute.attgenerated != 0,
                    identity: attribute.attidentity != 0,
                    inherited: attribute.attinhcount > 0,
                };
                (attribute.name().to_owned(), found)
            })
            .collect()
    }

    /// Looks a column up by name.
    pub fn attribute(&self, name: &str) -> Option<Attribute> {
        self.attributes().into_iter().find(|(known, _)| known == name).map(|(_, attribute)| attribute)
    }

    /// A column's name.
    pub fn attribute_name(&self, number: i16) -> Option<String> {
        // SAFETY: the relation is open, and so its tuple descriptor is valid.
        let descriptor = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*self.relation).rd_att) };
        let attribute = descriptor.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        Some(attribute.name().to_owned())
    }

    /// The column's default: NULL if it has none. `None` when it cannot be known before the row is there, or only by code of
    /// users.
    pub fn constant_default(&self, _gate: &Gate, number: i16) -> Option<Value> {
        // SAFETY: the attribute exists; the planner folds its default expression, if it has one.
        unsafe {
            let expression = pg_sys::build_column_default(self.relation, number.into());
            if expression.is_null() {
                return Some(Value::NULL);
            }
            if !is_constant(expression) {
                return None;
            }
            let planned = pg_sys::expression_planner(expression.cast());
            if super::tag(planned) != pg_sys::NodeTag::T_Const {
                return None;
            }
            let constant = &*planned.cast::<pg_sys::Const>();
            Some(Value::from_parts(constant.constvalue, constant.constisnull))
        }
    }

    /// An error if rows cannot be found by ranges of blocks, as all that we do with them demands.
    pub fn check_access_method(&self) -> Result<(), Error> {
        if self.kind() != 'r' {
            return Ok(());
        }
        // SAFETY: a table of kind r has an access method; gives a palloc'ed string.
        unsafe {
            let method = &*(*self.relation).rd_tableam;
            if method.scan_set_tidrange.is_some() && method.scan_getnextslot_tidrange.is_some() {
                return Ok(());
            }
            let method = c_string(pg_sys::get_am_name(self.class().relam));
            Err(Error::AccessMethod { relation: self.name(), method })
        }
    }

    /// Whether SQL finds a row that the active snapshot sees.
    pub fn has_rows(&self, _gate: &Gate) -> Result<bool, Error> {
        let sql = std::ffi::CString::new(format!("select from only {} limit 1", self.name()))
            .map_err(|error| Error::Spi(error.to_string()))?;
        // SAFETY: connects and finishes around one statement, which, being read only, takes no snapshot of its own.
        unsafe {
            pg_sys::SPI_connect();
            pg_sys::SPI_execute(sql.as_ptr(), true, 1);
            let found = pg_sys::SPI_processed > 0;
            pg_sys::SPI_finish();
            Ok(found)
        }
    }

    /// Whether one of the columns is part of a key that a foreign key could refer to.
    pub(super) fn has_key_among(&self, columns: &[i16]) -> bool {
        // SAFETY: the relation is open; the set is a copy.
        unsafe {
            let kind = pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY;
            let key = pg_sys::RelationGetIndexAttrBitmap(self.relation, kind);
            let found = columns.iter().any(|number| is_member(*number, key));
            pg_sys::bms_free(key);
            found
        }
    }

    /// The lock that an update of these columns takes on a row.
    pub fn update_lock(&self, columns: &[i16]) -> RowLock {
        if self.has_key_among(columns) { RowLock::Update } else { RowLock::NoKeyUpdate }
    }

    /// Reads the rows in a range of blocks that the active snapshot sees.
    pub fn scan<E: From<Error>>(
        &self,
        blocks: Range<u32>,
        mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_access_method()?;
        if blocks.is_empty() || self.kind() != 'r' {
            return Ok(());
        }
        // SAFETY: the functions are those of the relation's access method, called as tableam.h does it, through a
        // boundary that turns errors into unwinding; a scan left by an error is closed by its resource owner.
        unsafe {
            let method = &*(*self.relation).rd_tableam;
            let (Some(begin), Some(set_range), Some(next), Some(end)) =
                (method.scan_begin, method.scan_set_tidrange, method.scan_getnextslot_tidrange, method.scan_end)
            else {
                // Not after the check.
                return Ok(());
            };
            let relation = self.relation;
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            let snapshot = pg_sys::GetActiveSnapshot();
            let flags = pg_sys::ScanOptions::SO_TYPE_TIDRANGESCAN | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            let scan = pg_guard_ffi_boundary(|| {
                begin(relation, snapshot, 0, std::ptr::null_mut(), std::ptr::null_mut(), flags)
            });
            let mut first = Tid { block: blocks.start, offset: 1 }.pack();
            let mut last = Tid { block: blocks.end - 1, offset: u16::MAX }.pack();
            pg_guard_ffi_boundary(|| set_range(scan, &mut first, &mut last));
            let row = Row { slot, table: PhantomData };
            let mut result = Ok(());
            while result.is_ok()
                && pg_guard_ffi_boundary(|| next(scan, pg_sys::ScanDirection::ForwardScanDirection, slot))
            {
                super::lock::check_for_interrupts();
                result = each(&row);
            }
            pg_guard_ffi_boundary(|| end(scan));
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            result
        }
    }

    pub(super) fn raw(&self) -> pg_sys::Relation {
        self.relation
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some(mode) = self.closing
            && !std::thread::panicking()
        {
            // SAFETY: opened by us, with this lock if it is one.
            unsafe { pg_sys::relation_close(self.relation, mode) };
        }
    }
}

/// A row of a table, valid until the scan moves on.
pub struct Row<'t> {
    pub(super) slot: *mut pg_sys::TupleTableSlot,
    pub(super) table: PhantomData<&'t Table>,
}

impl Row<'_> {
    /// The value of a column, by number.
    pub fn get(&self, number: i16) -> Value {
        // SAFETY: the slot holds a row, and `number` is a column of its table; columns are read up to it first.
        unsafe {
            let slot = self.slot;
            if (*slot).tts_nvalid < number {
                pg_sys::slot_getsomeattrs_int(slot, number.into());
            }
            let index = number as usize - 1;
            Value::from_parts(*(*slot).tts_values.add(index), *(*slot).tts_isnull.add(index))
        }
    }

    /// Reads all columns, so that the slot's arrays are complete.
    pub(super) fn read_all(&self) {
        // SAFETY: the slot holds a row.
        unsafe {
            let count = (*(*self.slot).tts_tupleDescriptor).natts;
            if i32::from((*self.slot).tts_nvalid) < count {
                pg_sys::slot_getsomeattrs_int(self.slot, count);
            }
        }
    }

    pub fn tid(&self) -> Tid {
        // SAFETY: the slot holds a row.
        Tid::unpack(unsafe { (*self.slot).tts_tid })
    }
}

/// What became of an attempt to update a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Another transaction has locked or changed it and has not ended.
    Locked,
    /// Another transaction has changed or deleted it.
    Gone,
}

/// Updates rows of one table as UPDATE does, except that it fires none of its users' triggers, applies no rules or policies,
/// and never waits for a row lock. What constraints demand of all rows together is checked by `finish`.
pub struct Writer<'t> {
    table: &'t Table,
    state: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    new: *mut pg_sys::TupleTableSlot,
    locked: *mut pg_sys::TupleTableSlot,
    columns: Vec<i16>,
    lock: RowLock,
    destinations: &'t mut Destinations,
    has_generated: bool,
    checks: Checks,
    triggers: Option<ConstraintTriggers>,
}

impl<'t> Writer<'t> {
    /// A writer of some columns of a table that is locked at least ROW EXCLUSIVE. An error if the table is published
    /// without a replica identity, as for UPDATE.
    pub fn new(_gate: &Gate, table: &'t Table, columns: Vec<i16>, destinations: &'t mut Destinations) -> Writer<'t> {
        destinations.begin(table);
        // SAFETY: executor state is set up as PostgreSQL's own logical replication worker does it; range table index 0
        // means that the relation is not part of a query.
        unsafe {
            // Subscribers could not follow an update without a replica identity.
            pg_sys::CheckCmdReplicaIdentity(table.raw(), pg_sys::CmdType::CMD_UPDATE);
            let state = pg_sys::CreateExecutorState();
            (*state).es_snapshot = pg_sys::GetActiveSnapshot();
            (*state).es_output_cid = pg_sys::GetCurrentCommandId(true);
            let size = size_of::<pg_sys::ResultRelInfo>();
            let result = pg_sys::palloc0(size).cast::<pg_sys::ResultRelInfo>();
            (*result).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(result, table.raw(), 0, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(result, false);
            let descriptor = (*table.raw()).rd_att;
            let constraints = (*descriptor).constr;
            let has_generated = !constraints.is_null() && (*constraints).has_generated_stored;
            let generated = table.attributes().into_iter().filter(|(_, it)| it.generated).map(|(_, it)| it.number);
            let written: Vec<i16> = columns.iter().copied().chain(generated).collect();
            Writer {
                table,
                state,
                result,
                new: pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsVirtual),
                locked: pg_sys::table_slot_create(table.raw(), std::ptr::null_mut()),
                has_generated,
                lock: table.update_lock(&written),
                checks: Checks::new(table, &written, state),
                triggers: ConstraintTriggers::begin(table, &written, state, result),
                columns,
                destinations,
            }
        }
    }

    /// Writes `values`, one per column of the writer, into a row.
    pub fn write(&mut self, _gate: &Gate, row: &Row<'_>, values: &[Value]) -> Written {
        // SAFETY: both slots have the table's descriptor, so that arrays of `count` elements can be copied; what the new
        // row points to is pinned by the old row's slot. Access method functions are called as in `Table::scan`.
        unsafe {
            let (old, new) = (row.slot, self.new);
            let count = (*(*old).tts_tupleDescriptor).natts as usize;
            row.read_all();
            if let Some(clear) = (*(*new).tts_ops).clear {
                clear(new);
            }
            std::ptr::copy_nonoverlapping((*old).tts_values, (*new).tts_values, count);
            std::ptr::copy_nonoverlapping((*old).tts_isnull, (*new).tts_isnull, count);
            for (number, value) in self.columns.iter().zip(values) {
                let index = *number as usize - 1;
                (*(*new).tts_values.add(index), *(*new).tts_isnull.add(index)) = value.parts();
            }
            // ExecStoreVirtualTuple without the cost of a call that could raise an error, which it cannot.
            (*new).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
            (*new).tts_nvalid = count as i16;
            if self.has_generated {
                compute_stored_generated(self.result, self.state, new);
            }
            if !self.checks.hold(new, self.state) {
                // Raises PostgreSQL's error.
                pg_sys::ExecConstraints(self.result, new, self.state);
            }
            if self.checks.partition {
                pg_sys::ExecPartitionCheck(self.result, new, self.state, true);
            }
            if row.is_on_page() {
                self.destinations.aim(self.table);
            }
            let mut tid = (*old).tts_tid;
            let written = match self.update(&mut tid, false) {
                pg_sys::TM_Result::TM_BeingModified if self.lock(&mut tid) => self.update(&mut tid, true),
                result => result,
            };
            let per_tuple = (*self.state).es_per_tuple_exprcontext;
            if !per_tuple.is_null() {
                pg_sys::MemoryContextReset((*per_tuple).ecxt_per_tuple_memory);
            }
            match written {
                pg_sys::TM_Result::TM_Ok => {
                    let block = Tid::unpack((*new).tts_tid).block;
                    if block != row.tid().block {
                        self.destinations.moved_to(block);
                    }
                    Written::Done
                }
                pg_sys::TM_Result::TM_BeingModified => Written::Locked,
                _ => Written::Gone,
            }
        }
    }

    /// Fires the triggers of constraints for what was written: an error if one is violated. A writer that wrote must come to
    /// this or to the end of its transaction.
    pub fn finish(mut self, _gate: &Gate) {
        if let Some(triggers) = self.triggers.take() {
            // SAFETY: what ran since `new` has ended its queries.
            unsafe { triggers.fire() }
        }
    }

    /// Takes the lock that the update needs on a row that somebody else holds some lock on, if the two go together (as a
    /// foreign key's does, unless the update changes the key).
    unsafe fn lock(&mut self, tid: &mut pg_sys::ItemPointerData) -> bool {
        // SAFETY: as in `write`.
        unsafe {
            let relation = self.table.raw();
            let Some(lock) = (*(*relation).rd_tableam).tuple_lock else { return false };
            let (state, slot) = (self.state, self.locked);
            let mut failure: pg_sys::TM_FailureData = std::mem::zeroed();
            let result = pg_guard_ffi_boundary(|| {
                lock(
                    relation,
                    tid,
                    (*state).es_snapshot,
                    slot,
                    (*state).es_output_cid,
                    self.lock.mode(),
                    pg_sys::LockWaitPolicy::LockWaitSkip,
                    0,
                    &mut failure,
                )
            });
            if let Some(clear) = (*(*slot).tts_ops).clear {
                clear(slot);
            }
            result == pg_sys::TM_Result::TM_Ok
        }
    }

    unsafe fn update(&mut self, tid: &mut pg_sys::ItemPointerData, wait: bool) -> pg_sys::TM_Result::Type {
        // SAFETY: as in `write`.
        unsafe {
            let relation = self.table.raw();
            let Some(update) = (*(*relation).rd_tableam).tuple_update else {
                return pg_sys::TM_Result::TM_Invisible;
            };
            let (state, slot) = (self.state, self.new);
            let mut failure: pg_sys::TM_FailureData = std::mem::zeroed();
            let mut lock_mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
            let mut indexes = version::NO_INDEXES;
            let result = pg_guard_ffi_boundary(|| {
                update(
                    relation,
                    tid,
                    slot,
                    (*state).es_output_cid,
                    (*state).es_snapshot,
                    std::ptr::null_mut(),
                    wait,
                    &mut failure,
                    &mut lock_mode,
                    &mut indexes,
                )
            });
            if result == pg_sys::TM_Result::TM_Ok {
                let doubts = if (*self.result).ri_NumIndices > 0 && indexes != version::NO_INDEXES {
                    version::insert_index_entries(self.result, slot, state, indexes)
                } else {
                    std::ptr::null_mut()
                };
                if let Some(triggers) = &self.triggers {
                    triggers.queue(tid, slot, doubts);
                }
            }
            result
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: undoes `new`.
        unsafe {
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::ExecDropSingleTupleTableSlot(self.new);
            pg_sys::ExecDropSingleTupleTableSlot(self.locked);
            pg_sys::FreeExecutorState(self.state);
        }
    }
}

/// The constraints of a table that a writer's columns can violate. Others may be NOT VALID and violated already, which is
/// nothing that the writer has to do with.
struct Checks {
    expressions: Vec<*mut pg_sys::ExprState>,
    not_null: Vec<i16>,
    /// Whether a row may belong to another partition.
    partition: bool,
}

impl Checks {
    /// # Safety
    /// `state` lives as long as the result.
    unsafe fn new(table: &Table, written: &[i16], state: *mut pg_sys::EState) -> Checks {
        let attributes = table.attributes();
        let (mut expressions, mut not_null, mut partition) = (Vec::new(), Vec::new(), false);
        // SAFETY: the array has `num_check` elements, each with its expression as text that PostgreSQL wrote.
        unsafe {
            // Number 0 stands for the whole row.
            let concerns = |expression: *mut pg_sys::Node| {
                let mut mentioned: *mut pg_sys::Bitmapset = std::ptr::null_mut();
                pg_sys::pull_varattnos(expression, 1, &mut mentioned);
                written.iter().chain([&0]).any(|number| is_member(*number, mentioned))
            };
            if table.is_partition() {
                partition = concerns(partition_condition(table.raw()).cast());
            }
            let constraints = (*(*table.raw()).rd_att).constr;
            let count = if constraints.is_null() { 0 } else { (*constraints).num_check as usize };
            for check in (0..count).map(|index| &*(*constraints).check.add(index)) {
                let expression = version::expand_generated(pg_sys::stringToNode(check.ccbin).cast(), table.raw());
                if version::is_enforced(check) && concerns(expression) {
                    expressions.push(pg_sys::ExecPrepareExpr(expression.cast(), state));
                }
            }
            for (_, attribute) in attributes.iter().filter(|(_, attribute)| attribute.not_null) {
                let expression = version::virtual_expression(table.raw(), attribute.number);
                if expression.is_null() {
                    if written.contains(&attribute.number) {
                        not_null.push(attribute.number);
                    }
                } else if concerns(expression) {
                    let test = pg_sys::palloc0(size_of::<pg_sys::NullTest>()).cast::<pg_sys::NullTest>();
                    (*test).xpr.type_ = pg_sys::NodeTag::T_NullTest;
                    (*test).arg = expression.cast();
                    (*test).nulltesttype = pg_sys::NullTestType::IS_NOT_NULL;
                    (*test).location = -1;
                    expressions.push(pg_sys::ExecPrepareExpr(test.cast(), state));
                }
            }
        }
        Checks { expressions, not_null, partition }
    }

    /// # Safety
    /// The slot holds a row of the table, all columns read.
    unsafe fn hold(&self, slot: *mut pg_sys::TupleTableSlot, state: *mut pg_sys::EState) -> bool {
        if self.expressions.is_empty() && self.not_null.is_empty() {
            return true;
        }
        // SAFETY: the expressions were prepared for this state; the context is the state's own.
        unsafe {
            let mut context = (*state).es_per_tuple_exprcontext;
            if context.is_null() {
                context = pg_sys::MakePerTupleExprContext(state);
            }
            (*context).ecxt_scantuple = slot;
            self.not_null.iter().all(|number| !*(*slot).tts_isnull.add(*number as usize - 1))
                && self.expressions.iter().all(|expression| pg_sys::ExecCheck(*expression, context))
        }
    }
}

/// Whether a column is in a set of columns, as PostgreSQL has them.
///
/// # Safety
/// The set is NULL or valid.
unsafe fn is_member(number: i16, columns: *const pg_sys::Bitmapset) -> bool {
    // SAFETY: the caller vouches for the set.
    unsafe { pg_sys::bms_is_member(i32::from(number) - pg_sys::FirstLowInvalidHeapAttributeNumber, columns) }
}

/// The columns of the table's primary key, in its order.
pub fn primary_key(table: &Table) -> Vec<i16> {
    // SAFETY: the index list is of OIDs of existing indexes; their pg_index row is part of the relation cache entry.
    unsafe {
        let list = pg_sys::RelationGetIndexList(table.raw());
        let key = (*table.raw()).rd_pkindex;
        pg_sys::list_free(list);
        if key == pg_sys::InvalidOid {
            return Vec::new();
        }
        let index = pg_sys::index_open(key, LockMode::AccessShare.number());
        let form = &*(*index).rd_index;
        let columns = form.indkey.values.as_slice(form.indnkeyatts as usize).to_vec();
        pg_sys::index_close(index, pg_sys::NoLock as i32);
        columns
    }
}

/// A name for a new index, as PostgreSQL would choose it.
pub fn new_index_name(table: &Table, columns: &[String]) -> String {
    let columns = std::ffi::CString::new(columns.join("_")).unwrap_or_default();
    // SAFETY: the strings are NUL-terminated; gives a palloc'ed one that fits and is not taken.
    unsafe {
        let class = table.class();
        let name = class.relname.data.as_ptr();
        c_string(pg_sys::ChooseRelationName(name, columns.as_ptr(), c"idx".as_ptr(), class.relnamespace, false))
    }
}

/// The OID of a relation, if it exists.
pub fn relation_named(schema: &str, name: &str) -> Option<pg_sys::Oid> {
    let (schema, name) = (std::ffi::CString::new(schema).ok()?, std::ffi::CString::new(name).ok()?);
    // SAFETY: both strings are NUL-terminated; unknown names give InvalidOid.
    let oid = unsafe {
        let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), namespace)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
