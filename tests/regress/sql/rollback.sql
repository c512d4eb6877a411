\i tests/regress/preamble.sql
-- Giving a change up, in every phase.
create table address (id integer generated always as identity primary key, street text);
insert into address (street) values ('Elm Street 1'), ('Broadway');
create function split() returns text language sql as $$
    select zdd.split_column('address', 'street', 'streetname text not null, housenumber text default ''0''',
        regex => '^(?<streetname>\D+?)(?:\s+(?<housenumber>\d\S*))?$', join => '{streetname}[ {housenumber}]');
$$;
select split();
insert into address (streetname, housenumber) values ('Oak Street', '2');
select zdd.rollback('address.street');
\d address
select * from address;

-- While the backfill is under way, once it is done, and from behind the fence.
select split();
begin;
select id from address where id = 2 for update;
\! tests/regress/session "set statement_timeout = '1s'" "call zdd.backfill('address.street')"
select change, skipped_blocks from zdd.progress;
commit;
select zdd.rollback('address.street');
table zdd.progress;
select split();
\! tests/regress/session "call zdd.backfill('address.street')"
select zdd.rollback('address.street');
select split();
\! tests/regress/session "call zdd.backfill('address.street')"
select zdd.fence('address.street');
create index on address (street_zdd_fenced);
select zdd.rollback('address.street');
\d address
select change, phase, relation, source, rule -> 'source' ->> 'name' as name_in_rule from zdd.changes order by started_at;
select event, detail from zdd.events order by at desc limit 2;

-- Inside a transaction, and back.
begin;
select split();
insert into address (streetname) values ('Low Road') returning street;
select zdd.rollback('address.street');
commit;
begin;
select split();
savepoint s;
select zdd.rollback('address.street');
rollback to s;
select phase from zdd.changes where relation = 'address';
insert into address (streetname) values ('High Road') returning street;
commit;

-- Indexes and constraints on a new column alone go with it; nothing else that depends on one is dropped.
create index on address (housenumber);
alter table address add constraint filled check (streetname <> '');
create view names as select streetname from address;
create index on address (streetname, id);
:remember
select zdd.rollback('address.street');
:refused
drop view names;
drop index address_streetname_id_idx;
select zdd.rollback('address.street');
\d address

-- Refused.
:remember
select zdd.rollback('address.street');
:refused
select zdd.rollback('nothing');
:refused
select zdd.rollback(null);
:refused

-- Partitions and children.
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
create table parent (a text);
create table child () inherits (parent);
select zdd.split_column('parted', 'a', 'b text, c text', delimiter => ' ');
select zdd.split_column('parent', 'a', 'b text, c text', delimiter => ' ');
create table parted2 partition of parted for values in (2);
insert into parted values (2, 'x y') returning *;
select zdd.rollback('parted.a'), zdd.rollback('parent.a');
select * from regress.columns where relation <> 'address'::regclass;
select tgrelid::regclass, tgname from pg_trigger where tgname like '~%';
