-- What pg_zdd knows. Only the extension's functions write here; the views in views.sql are for reading.

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
    started_at timestamptz not null default clock_timestamp(),
    started_by text not null,
    phase_since timestamptz not null default clock_timestamp(),
    check ((relation is null) = (phase in ('contracted', 'rolled_back')))
);
create unique index change_name_key on zdd.change (name) where relation is not null;
comment on table zdd.change is 'Every column split, active or over.';
comment on column zdd.change.relation is 'The table; NULL once the change is over.';
comment on column zdd.change.source is 'The old column by the name that applications know.';
comment on column zdd.change.rule is 'The rule, as the sync trigger carries it.';
comment on column zdd.change.batch_target is 'How long the work of one backfill batch should take.';
comment on column zdd.change.max_rows_per_second is 'Most rows that the backfill splits per second; NULL for no limit.';

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
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (change_id, relation, lane),
    check (first_block <= next_block and next_block <= end_block)
) with (fillfactor = 50);
comment on table zdd.lane is 'How far the backfill has come, per range of blocks.';
comment on column zdd.lane.file is 'The file of the table that the block numbers are of.';

create table zdd.skipped (
    change_id bigint not null,
    relation oid not null,
    block bigint not null,
    primary key (change_id, relation, block)
);
comment on table zdd.skipped is 'Blocks with rows that were locked when the backfill came by.';

create table zdd.backfill (
    change_id bigint primary key,
    started_at timestamptz not null default clock_timestamp(),
    waiting_for text,
    waiting_since timestamptz,
    last_error text,
    last_error_at timestamptz
);
comment on table zdd.backfill is 'What a backfill waits for and what went wrong last.';

-- A restore brings changes back before their triggers. Only when all is there does the guard take over again.
create table zdd.guarded (
    change_id bigint primary key
);
comment on table zdd.guarded is 'The changes that the guard watches over.';

select pg_catalog.pg_extension_config_dump('zdd.change', '');
select pg_catalog.pg_extension_config_dump('zdd.change_id_seq', '');
select pg_catalog.pg_extension_config_dump('zdd.event', '');
select pg_catalog.pg_extension_config_dump('zdd.event_id_seq', '');
