-- What pg_zdd knows. Only the extension's functions write here; the views in views.sql are for reading.

-- The script makes the schema, so that it belongs to the extension. A schema of that name which somebody else has made
-- could hold anything, and is refused by PostgreSQL (42P06). While the script runs, the search_path is pg_catalog.
create schema zdd;
comment on schema zdd is 'pg_zdd: zero-downtime column splits.';

create sequence zdd.change_id_seq;
comment on sequence zdd.change_id_seq is 'Ids of changes.';

create table zdd.change (
    id bigint primary key default nextval('zdd.change_id_seq'),
    name text not null,
    relation regclass,
    relation_name text not null,
    source text not null,
    targets text[] not null,
    phase text not null default 'expanding'
        check (phase in ('expanding', 'expanded', 'fenced', 'contracted', 'rolled_back')),
    rule jsonb not null,
    indexes text[] not null default '{}',
    batch_target interval not null default '50 milliseconds'
        check (batch_target between '1 millisecond' and '10 seconds'),
    max_rows_per_second integer check (max_rows_per_second > 0),
    run_if text,
    started_at timestamptz not null default clock_timestamp(),
    started_by text not null,
    owner text not null,
    phase_since timestamptz not null default clock_timestamp(),
    claim bigint not null default 0,
    check ((relation is null) = (phase in ('contracted', 'rolled_back')))
);
create unique index change_name_key on zdd.change (name) where relation is not null;
-- Also the index for the changes of a table.
create unique index change_source_key on zdd.change (relation, source) where relation is not null;
comment on table zdd.change is 'Every column split, active or over.';
comment on column zdd.change.relation is 'The table; NULL once the change is over.';
comment on column zdd.change.source is 'The old column by the name that applications know.';
comment on column zdd.change.rule is 'The rule, as the sync trigger carries it.';
comment on column zdd.change.owner is 'Who owned the table when the change began.';
comment on column zdd.change.claim is 'The event that last changed what work on the change stands on: work that began before it stops.';
comment on column zdd.change.batch_target is 'How long the work of one backfill batch should take.';
comment on column zdd.change.max_rows_per_second is 'Most rows that the backfill splits per second; NULL for no limit.';
comment on column zdd.change.run_if is 'An SQL expression: the backfill goes on only while it is true.';

create sequence zdd.event_id_seq;
comment on sequence zdd.event_id_seq is 'Ids of events, in their order.';

create table zdd.event (
    id bigint primary key default nextval('zdd.event_id_seq'),
    at timestamptz not null default clock_timestamp(),
    change_id bigint not null,
    change text not null,
    event text not null,
    detail jsonb not null default '{}',
    role text not null
);
create index event_change_id_idx on zdd.event (change_id, id);
comment on table zdd.event is 'Everything that happened to a change.';

-- A lane is a range of blocks with a cursor. Block numbers mean nothing after a restore, so lanes are not dumped.
create table zdd.lane (
    change_id bigint not null,
    relation oid not null,
    lane integer not null,
    file oid not null,
    first_block bigint not null,
    next_block bigint not null,
    end_block bigint not null,
    rows_split bigint not null default 0,
    batch_blocks integer,
    batch_ms real,
    wal_bytes bigint not null default 0,
    taken_by integer,
    vacuumed boolean not null default false,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (change_id, relation, lane),
    check (first_block <= next_block and next_block <= end_block)
) with (fillfactor = 50);
comment on table zdd.lane is 'How far the backfill has come, per range of blocks.';
comment on column zdd.lane.file is 'The file of the table that the block numbers are of.';
comment on column zdd.lane.taken_by is 'The slot of the worker that works on it, see zdd.worker.';
comment on column zdd.lane.vacuumed is 'In the first lane of a table: a worker has begun to vacuum it.';

create table zdd.skipped (
    change_id bigint not null,
    relation oid not null,
    block bigint not null,
    primary key (change_id, relation, block)
);
comment on table zdd.skipped is 'Blocks with rows that were locked when the backfill came by.';

-- What is to be done for a change. Whether somebody is doing it is not written down: locks tell.
create table zdd.job (
    change_id bigint primary key,
    kind text not null check (kind in ('backfill', 'contract')),
    workers integer not null check (workers between 0 and 32),
    options jsonb not null default '{}',
    requested_at timestamptz not null default clock_timestamp(),
    requested_by text not null,
    requested_role oid not null,
    claim bigint not null default 0,
    stopped text check (stopped in ('paused', 'error')),
    stopped_at timestamptz,
    stopped_by text,
    last_error text,
    last_error_hint text,
    last_error_at timestamptz
) with (fillfactor = 50);
comment on table zdd.job is 'A backfill or contract that is not finished.';
comment on column zdd.job.workers is 'How many background workers it is to have; 0 when sessions do it that called for it.';
comment on column zdd.job.requested_role is 'Whose rights it takes to go on: the role that asked for it.';
comment on column zdd.job.claim is 'The claim of the change that it was asked for under, or that it has moved on itself.';
comment on column zdd.job.stopped is 'Why nobody is to go on with it; NULL when somebody is.';

create table zdd.worker (
    change_id bigint not null,
    slot integer not null,
    pid integer not null,
    doing text,
    waiting_for text,
    waiting_since timestamptz,
    started_at timestamptz not null default clock_timestamp(),
    primary key (change_id, slot)
) with (fillfactor = 50);
comment on table zdd.worker is 'What those who work for a change said last of what they do; they may be gone.';
comment on column zdd.worker.slot is 'Whoever holds the userlock (2053399652, change_id * 64 + slot) of pg_locks is alive: below 32 background workers.';

create table zdd.sample (
    change_id bigint not null,
    at timestamptz not null,
    rows_split bigint not null,
    blocks_done bigint not null,
    primary key (change_id, at)
);
comment on table zdd.sample is 'How far backfills were during the last minutes.';

create table zdd.built_index (
    change_id bigint not null,
    relation oid not null,
    columns text[] not null,
    name text not null,
    primary key (change_id, relation, columns)
);
comment on table zdd.built_index is 'The names of the indexes that are built for a change.';

create table zdd.archive (
    change_id bigint primary key,
    relation oid not null,
    made boolean not null
);
comment on table zdd.archive is 'The archives of contracts that are under way, or came to nothing.';
comment on column zdd.archive.made is 'Whether the contract has made the table.';

-- Not dumped: row versions are where they are in one database only.
create sequence zdd.written_id_seq;
comment on sequence zdd.written_id_seq is 'Ids of rows in zdd.written.';

create table zdd.written (
    id bigint primary key default nextval('zdd.written_id_seq'),
    change_id bigint not null,
    relation oid not null,
    tid tid not null
);
create index written_change_id_idx on zdd.written (change_id, id);
comment on table zdd.written is
    'Rows that were unmatched or lossy before or after they were written while a contract looks at all: to be looked at again.';

-- A restore brings changes back before their triggers. Only when all is there does the guard take over again.
create table zdd.guarded (
    change_id bigint primary key,
    owner oid
);
comment on table zdd.guarded is 'The changes that the guard watches over.';
comment on column zdd.guarded.owner is 'As whom the SQL of its rule runs: the owner of the table when the change began. NULL after a restore in which somebody else owns it.';

-- The texts of errors may quote rows, or what others run. They are kept apart from the events, which are dumped.
create table zdd.event_error (
    event_id bigint primary key,
    error text not null,
    detail text,
    hint text
);
comment on table zdd.event_error is 'The texts of errors in zdd.event.';

-- Whoever cannot dump a table has no use for its change, which could not be restored without it.
select pg_catalog.pg_extension_config_dump(
    'zdd.change', 'where relation is null or pg_catalog.has_table_privilege(relation::pg_catalog.oid, ''select'')');
select pg_catalog.pg_extension_config_dump('zdd.change_id_seq', '');
select pg_catalog.pg_extension_config_dump('zdd.event', '');
select pg_catalog.pg_extension_config_dump('zdd.event_id_seq', '');
