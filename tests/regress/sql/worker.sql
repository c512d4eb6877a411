\i tests/regress/preamble.sql
-- Backfills and contracts in background workers, which begin when the transaction commits. How workers live and die is
-- tested in tests/cluster.
create table address (id integer primary key, street text);
insert into address select i, 'Elm Street ' || i from generate_series(1, 1000) as i;

begin;
select zdd.split_column('address', 'street', 'streetname text, housenumber text', change => 'street',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]',
    indexes => '{housenumber,"streetname, housenumber"}');
select zdd.start_backfill('street', workers => 2);
select job, state, workers, workers_requested, last_error from zdd.progress;
commit;
\! tests/regress/session "call zdd.wait_for('street', 'expanded', timeout => '60 s')"
select phase, rows_split from zdd.changes;
table zdd.progress;
select rows, in_sync from zdd.verify('street');
select indexdef from pg_indexes where tablename = 'address' order by indexname;
select event, detail from zdd.events;
-- The table has been vacuumed, and the planner knows the new columns.
select relpages > 0 as vacuumed,
    (select string_agg(attname, ', ' order by attname) from pg_stats where tablename = 'address') as columns_analyzed
from pg_class where oid = 'address'::regclass;

-- A phase that has been left behind has been reached.
\! tests/regress/session "call zdd.wait_for('street', 'expanding', '0')"
\! tests/regress/session "call zdd.wait_for('street', 'fenced', '0')"
\! tests/regress/session "call zdd.wait_for('street', 'over')" "call zdd.wait_for('street', null)" "call zdd.wait_for('nothing', 'expanded')"
begin;
call zdd.wait_for('street', 'expanded');
:refused
rollback;

-- What goes wrong leaves nothing behind.
:remember
select zdd.start_backfill('nothing');
:refused
select zdd.start_backfill(null);
:refused
select zdd.start_backfill('street', workers => 0);
:refused
select zdd.start_backfill('street', workers => 33);
:refused
select zdd.start_contract('street');
:refused
select zdd.pause('street');
:refused
select zdd.resume('street');
:refused
set session authorization regress_other;
:remember
select zdd.start_backfill('street');
:refused
select zdd.pause('street');
:refused
select zdd.resume('street');
:refused
select zdd.start_contract('street');
:refused
set session authorization regress_owner;

-- The contract.
select zdd.fence('street');
select zdd.start_contract('street', force => true);
\! tests/regress/session "call zdd.wait_for('street', 'contracted', timeout => '60 s')"
\! tests/regress/session "call zdd.wait_for('street', 'expanded')"
\d address
select event, detail from zdd.events offset 5;

-- A contract that comes upon rows in its way stops, and whoever waits for it hears why.
create table parcel (id integer primary key, street text);
insert into parcel values (1, 'Elm Street 1'), (2, '');
select zdd.split_column('parcel', 'street', 'streetname text, housenumber text', change => 'parcel',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]');
\! tests/regress/session "call zdd.backfill('parcel')"
select zdd.start_contract('parcel', force => true);
\! tests/regress/session "call zdd.wait_for('parcel', 'contracted', timeout => '60 s')"
select change, phase, job, state, last_error, last_error_hint from zdd.progress;
select event, detail from zdd.events where change = 'parcel';
update parcel set streetname = '(unknown)' where id = 2;
select zdd.resume('parcel');
\! tests/regress/session "call zdd.wait_for('parcel', 'contracted', timeout => '60 s')"
select * from parcel order by id;

-- Paused before it begins: the worker finds that nobody wants it to go on.
create table slow (id integer primary key, street text);
insert into slow select i, 'Elm Street ' || i from generate_series(1, 1000) as i;
select zdd.split_column('slow', 'street', 'streetname text, housenumber text', delimiter => ' ', change => 'slow');
begin;
select zdd.start_backfill('slow');
select zdd.pause('slow');
commit;
select change, state, workers_requested, stopped_by from zdd.progress;
select zdd.pause('slow');
select zdd.start_backfill('slow');
\! tests/regress/session "call zdd.backfill('slow')" "call zdd.wait_for('slow', 'expanded')"
select zdd.alter_change('slow', run_if => 'no sql');
select zdd.alter_change('slow', run_if => '1, 2');
select zdd.alter_change('slow', run_if => '(select ''x'')');
select zdd.alter_change('slow', run_if => 'current_user = ''regress_owner''');
select run_if from zdd.changes where change = 'slow';
select zdd.resume('slow');
\! tests/regress/session "call zdd.wait_for('slow', 'expanded', timeout => '60 s')"
select zdd.alter_change('slow', run_if => '');
select run_if from zdd.changes where change = 'slow';

-- Indexes of partitioned tables are made of those of their partitions; a foreground backfill waits for a worker.
create table parted (id integer, street text) partition by range (id);
create table "parted One" partition of parted for values from (0) to (100);
create table parted_2 partition of parted for values from (100) to (300) partition by range (id);
create table parted_2a partition of parted_2 for values from (100) to (200);
insert into parted select i, 'Elm Street ' || i from generate_series(1, 199) as i;
select zdd.split_column('parted', 'street', 'streetname text, "House Number" text', delimiter => ' ', change => 'parted',
    indexes => '{House Number}');
\! tests/regress/session "call zdd.backfill('parted')"
select indexdef from pg_indexes where schemaname = 'app' and tablename like 'parted%' order by 1;
select i.indexrelid::regclass, i.indisvalid from pg_index as i join pg_class as c on c.oid = i.indrelid
where c.relname like 'parted%' order by 1;
-- Its indexes are no reason to keep a change.
select zdd.rollback('parted');
select indexdef from pg_indexes where schemaname = 'app' and tablename like 'parted%' order by 1;
