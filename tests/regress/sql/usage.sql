\i tests/regress/preamble.sql
-- Who uses the old column, and a contract that waits for them. This runs on a server that preloads pg_zdd.
create table address (id integer generated always as identity primary key, street text);
insert into address (street) values ('Elm Street 1');
select zdd.split_column('address', 'street', 'streetname text, housenumber text',
    regex => '^(?<streetname>\D+?)(?:\s+(?<housenumber>\d\S*))?$', join => '{streetname}[ {housenumber}]');
\! tests/regress/session "call zdd.backfill('address.street')"
select * from zdd.usage;

-- Nobody was seen, but the record is short.
\! tests/regress/session "call zdd.contract('address.street')"

-- The old and the new version of an application.
\! PGAPPNAME='shop 1.0' tests/regress/session "select street from address where id = 1" "update address set street = 'Oak Street 2'"
\! PGAPPNAME='shop 2.0' tests/regress/session "select streetname, housenumber from address" "select * from address"
select change, side, role, application_name, reads, writes, rows, conflicts, errors, whole_row,
    first_seen <= last_seen as seen
from zdd.usage order by side desc, application_name;
-- What they ran is for pg_read_all_stats.
select count(sample_query) from zdd.usage;
reset session authorization;
select application_name, side, sample_query from zdd.usage order by side desc, application_name;
set session authorization regress_owner;

-- The contract names them. To its owner who may not see what others run, without a sample.
\! tests/regress/session "call zdd.contract('address.street')"
\! PGUSER=postgres tests/regress/session "call zdd.contract('address.street')"
select zdd.reset_usage('address.street');
select * from zdd.usage;
\! tests/regress/session "call zdd.contract('address.street')"

-- Only SELECT *.
create table starred (a text);
select zdd.split_column('starred', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('starred.a')"
\! PGAPPNAME=report tests/regress/session "select * from starred"
\! tests/regress/session "call zdd.contract('starred.a')"

-- A statement writes both sides, and they disagree: one value gives way, and that is counted.
\! PGAPPNAME='shop 1.5' tests/regress/session "insert into starred values ('a b', 'c', 'd'), ('a b', 'a', 'b')"
select * from starred;
select side, application_name, writes, rows, conflicts from zdd.usage where change = 'starred.a' and writes > 0
order by side desc;
select change, conflicts from zdd.changes order by change;
select zdd.alter_change('starred.a', conflict => 'error');
\! PGAPPNAME='shop 1.5' tests/regress/session "insert into starred values ('a b', 'c', 'd')"
select side, conflicts, errors from zdd.usage where change = 'starred.a' and writes > 0 order by side desc;

-- The split rejects a write.
create table strict (a text);
select zdd.split_column('strict', 'a', 'b text, c text', regex => '^(?<b>\w+) (?<c>\w+)$', join => '{b} {c}', unmatched => 'error');
\! PGAPPNAME='shop 1.0' tests/regress/session "insert into strict (a) values ('one')"
select side, application_name, writes, rows, errors from zdd.usage where change = 'strict.a';

-- Behind the fence, PostgreSQL's own error; who ran into it is counted.
select zdd.fence('address.street');
\! PGAPPNAME=forgotten tests/regress/session "select street from address"
select side, application_name, reads, errors from zdd.usage where change = 'address.street' and errors > 0;
\! tests/regress/session "call zdd.contract('address.street')"
-- A fence that was held for long enough is proof enough. What ran into it is told.
reset session authorization;
update zdd.change set phase_since = phase_since - interval '2 hours' where name = 'address.street';
set session authorization regress_owner;
\! tests/regress/session "call zdd.contract('address.street')"

-- force does not ask.
\! tests/regress/session "call zdd.contract('starred.a', force => true)"

-- Usage is for the owner to reset.
reset session authorization;
create role regress_stranger;
set role regress_stranger;
select zdd.reset_usage('strict.a');
reset role;
drop role regress_stranger;
select zdd.reset_usage('no such change');
select zdd.reset_usage(null);
select recorded_since < now() as recorded, entries > 0 as entries, entries_max, evicted, memory_bytes > 1000000 as memory
from zdd.usage_info;
