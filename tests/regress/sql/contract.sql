\i tests/regress/preamble.sql
-- Dropping the old column, and everything that is in the way of it.
create table address (id integer generated always as identity primary key, street text);
insert into address (street) values ('Elm Street 1'), ('Elm Street  2'), ('12'), (null);
create index on address (street);
create index on address (lower(street)) where street <> '';
select zdd.split_column('address', 'street', 'streetname text not null, housenumber text',
    regex => '^(?<streetname>\D+?)(?:\s+(?<housenumber>\d\S*))?$', join => '{streetname}[ {housenumber}]');

-- Rows that are pending, unmatched, diverged, or have NULL where there will be NOT NULL.
:remember
begin;
call zdd.contract('address.street');
rollback;
:refused
call zdd.contract('address.street', accept_unmatched => true, force => true);
:refused
\! tests/regress/session "call zdd.backfill('address.street')"
select * from zdd.verify('address.street');
:remember
call zdd.contract('address.street', force => true);
:refused
call zdd.contract('address.street', force => true, accept_unmatched => true);
:refused
call zdd.contract('address.street', force => true, accept_unmatched => true, accept_lossy => true);
:refused
reset session authorization;
set session_replication_role = replica;
insert into address (street, streetname) values ('Elm Street 3', 'Oak Street'), ('Elm Street 4', null);
reset session_replication_role;
set session authorization regress_owner;
:remember
call zdd.contract('address.street', force => true, accept_unmatched => true);
:refused
call zdd.repair('address.street', 'old');
:remember
call zdd.contract('address.street', force => true, accept_unmatched => true, accept_lossy => true);
:refused
\! tests/regress/session "call zdd.backfill('address.street')"
delete from address where street = '12' or street is null;
update address set street = street || 'b' where street = 'Elm Street 4';
select * from zdd.verify('address.street');

-- Nobody may use the old column: it was fenced for long enough, or force.
:remember
call zdd.contract('address.street');
:refused
select zdd.fence('address.street');
:remember
\! tests/regress/session "call zdd.contract('address.street')"
:refused
reset session authorization;
update zdd.change set phase_since = phase_since - interval '2 hours 10 seconds' where name = 'address.street';
alter role regress_owner set zdd.quiet_period = '3h';
\! tests/regress/session "call zdd.contract('address.street')"
alter role regress_owner reset zdd.quiet_period;
set session authorization regress_owner;
show zdd.quiet_period;
call zdd.contract('address.street');
call zdd.contract('address.street', accept_lossy => true);
\d address
select * from address order by id;
select change, relation, source, phase, rows_split from zdd.changes;
select event, detail from zdd.events;
insert into address (housenumber) values ('1');
\echo :LAST_ERROR_SQLSTATE
:remember
call zdd.contract('address.street');
:refused
select zdd.rollback('address.street');
:refused
call zdd.contract('nothing');
:refused
call zdd.contract(null);
:refused
drop table address;

-- Unmatched rows, when their loss is accepted. NULL for these arguments is false.
create table t (id integer generated always as identity primary key, a text);
insert into t (a) values ('x'), ('1');
select zdd.split_column('t', 'a', 'b text, c text', regex => '^(?<b>\D)(?<c>\d)?$', join => '[{b}][{c}]');
\! tests/regress/session "call zdd.backfill('t.a')"
:remember
call zdd.contract('t.a', accept_unmatched => null, accept_lossy => null, force => null);
:refused
call zdd.contract('t.a', force => true);
:refused
call zdd.contract('t.a', accept_unmatched => true, force => true);
select * from regress.columns;
table t;
drop table t;

-- Everything else that depends on the old column is listed, and nothing is dropped: a change that is fenced for it
-- is unfenced again.
create table k (a text unique);
create table t (id integer primary key, a text default 'x' check (a <> ''), other text);
insert into t values (1, 'x 1');
select zdd.split_column('t', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('t.a')"
create function touch() returns trigger language plpgsql as $$ begin return new; end $$;
create view v as select id, a from t;
create view vv as select * from v;
create materialized view m as select count(a) from t;
create rule r as on update to t where new.a = 'never' do instead nothing;
alter table t add length integer generated always as (length(a)) stored;
create policy p on t using (a <> 'secret');
alter table t add constraint known foreign key (a) references k (a) not valid;
create index pair on t (a, other);
create index partly on t (other) where a <> '';
create unique index alone on t (a);
create statistics several on a, other from t;
create statistics alone_too on lower(a), upper(a) from t;
alter table t add constraint different check (a <> other);
create trigger touch before update of a on t for each row execute function touch();
create trigger touch_when before update on t for each row when (new.a is null) execute function touch();
create function standard() returns bigint language sql begin atomic select count(a) from t; end;
reset session authorization;
set client_min_messages = error;
create publication regress_pub for table app.t (id, a);
reset client_min_messages;
set session authorization regress_owner;
:remember
call zdd.contract('t.a', force => true);
:refused
select phase from zdd.changes where relation = 't';
drop view v cascade;
drop materialized view m;
drop rule r on t;
alter table t drop length, drop constraint known, drop constraint different;
drop policy p on t;
drop index pair, partly;
drop statistics several, alone_too;
drop trigger touch on t;
drop trigger touch_when on t;
drop function standard();
:remember
call zdd.contract('t.a', force => true);
:refused
reset session authorization;
drop publication regress_pub;
set session authorization regress_owner;
call zdd.contract('t.a', force => true);
\d t

-- An error on the way undoes what was done: here the last step fails, by an event trigger of somebody else.
create table t2 (a text);
insert into t2 values ('x 1');
select zdd.split_column('t2', 'a', 'b text not null, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('t2.a')"
reset session authorization;
create function regress.no_drops() returns event_trigger language plpgsql as $$
begin
    if exists (select from pg_event_trigger_dropped_objects() where object_type = 'table column') then
        raise 'no column is dropped on a Friday';
    end if;
end
$$;
create event trigger no_drops on sql_drop execute function regress.no_drops();
set session authorization regress_owner;
call zdd.contract('t2.a', force => true);
\echo :LAST_ERROR_SQLSTATE
select * from regress.columns where relation = 't2'::regclass;
select conname from pg_constraint where conrelid = 't2'::regclass;
select event, detail from zdd.events where change = 't2.a';
select zdd.fence('t2.a');
:remember
call zdd.contract('t2.a', force => true);
:refused
reset session authorization;
drop event trigger no_drops;
set session authorization regress_owner;
call zdd.contract('t2.a', force => true);
select * from regress.columns where relation = 't2'::regclass;

-- The referenced side of a foreign key, and a key of the table.
create table referenced (a text primary key);
create table referencing (a text references referenced);
insert into referenced values ('x y');
select zdd.split_column('referenced', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('referenced.a')"
:remember
call zdd.contract('referenced.a', force => true);
:refused
drop table referencing;
:remember
call zdd.contract('referenced.a', force => true);
:refused
alter table referenced drop constraint referenced_pkey, add primary key (b, c);
alter table referenced drop constraint referenced_pkey;
call zdd.contract('referenced.a', force => true);
\d referenced

-- What depends on the column in a partition or a child counts as well.
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
insert into parted values (1, 'x y');
select zdd.split_column('parted', 'a', 'b text not null, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('parted.a')"
create view v as select a from parted1;
create index on parted1 (a, k);
:remember
call zdd.contract('parted.a', force => true);
:refused
drop view v;
drop index parted1_a_k_idx;
call zdd.contract('parted.a', force => true);
\d parted1
\d parted

-- The index that tells subscribers which row is meant, and constraints of which one part minds the old column and the
-- other another one. What the table is clustered by is an index as others are.
create table t3 (id integer primary key, a text not null, other text);
insert into t3 values (1, 'x 1', 'y');
alter table t3 add constraint once unique (a);
alter table t3 replica identity using index once;
alter table t3 add constraint where_other exclude using btree (a with =) where (other <> '');
alter table t3 add constraint where_a exclude using btree (other with =) where (a <> '');
alter table t3 add constraint expression exclude using btree (upper(a) with =, other with =);
alter table t3 add constraint upper_alone exclude using btree (upper(a) with =);
alter table t3 add constraint alone exclude using btree (a with =) where (a <> 'x');
alter table t3 add constraint included unique (a) include (other);
create index clustered on t3 (a);
alter table t3 cluster on clustered;
select zdd.split_column('t3', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('t3.a')"
:remember
call zdd.contract('t3.a', force => true);
:refused
alter table t3 replica identity default, drop constraint where_other, drop constraint where_a,
    drop constraint expression, drop constraint upper_alone, drop constraint included;
call zdd.contract('t3.a', force => true);
\d t3
create table parted3 (k integer, a text not null) partition by list (k);
create table parted31 partition of parted3 for values in (1);
create table parted32 partition of parted3 for values in (2);
create unique index on parted32 (a);
alter table parted32 replica identity using index parted32_a_idx;
insert into parted3 values (1, 'x y'), (2, 'x z');
select zdd.split_column('parted3', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('parted3.a')"
:remember
call zdd.contract('parted3.a', force => true);
:refused
alter table parted32 replica identity full;
call zdd.contract('parted3.a', force => true);
update parted3 set c = 'updated' where k = 2;

-- A sequence that the column owns, and a column that is an array of what it was split into.
select zdd.split_column('parted', 'b', 'x text, y text', delimiter => ' ');
create sequence s owned by parted.b;
\! tests/regress/session "call zdd.backfill('parted.b')"
:remember
call zdd.contract('parted.b', force => true);
:refused
