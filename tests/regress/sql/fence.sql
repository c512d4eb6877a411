\i tests/regress/preamble.sql
-- Taking the old column out of the applications' reach, and giving it back.
create table address (id integer generated always as identity primary key, street text not null);
insert into address (street) values ('Elm Street 1');
create index on address (street);
create view streets as select street from address;
select zdd.split_column('address', 'street', 'streetname text not null, housenumber text',
    regex => '^(?<streetname>\D+?)(?:\s+(?<housenumber>\d\S*))?$', join => '{streetname}[ {housenumber}]');
:remember
select zdd.fence('address.street');
:refused
\! tests/regress/session "call zdd.backfill('address.street')"
:remember
select zdd.unfence('address.street');
:refused

prepare old_shape as select street from address order by id;
execute old_shape;
select zdd.fence('address.street');
select * from regress.columns;
select change, source, phase from zdd.changes;
-- SQL that names it fails as it will after the contract; views and indexes follow.
select street from address;
execute old_shape;
insert into address (street) values ('Elm Street 2');
table streets;
\d streets
select indexdef from pg_indexes where tablename = 'address' order by 1;
-- Dual writes go on.
insert into address (streetname, housenumber) values ('Elm Street', '2');
update address set housenumber = '3' where housenumber = '1';
insert into streets values ('Elm Street 4');
select * from address order by id;
select * from zdd.verify('address.street');
:remember
select zdd.fence('address.street');
:refused
select zdd.split_column('address', 'street_zdd_fenced', 'x text', delimiter => ' ');
:refused

-- Back at once.
select zdd.unfence('address.street');
select street from address order by id;
insert into address (street) values ('Elm Street 5') returning *;
execute old_shape;
select event, detail from zdd.events;

-- In a transaction, a fence can be rehearsed without being seen.
begin;
select zdd.fence('address.street');
select phase from zdd.changes;
rollback;
select phase from zdd.changes;

-- Names that are too long to be added to, also where a character has several bytes.
create table long (äääääääääääääääääääääääääääääää text);
select zdd.split_column('long', 'äääääääääääääääääääääääääääääää', 'x text, y text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('long.äääääääääääääääääääääääääääääää')"
select zdd.fence('long.äääääääääääääääääääääääääääääää');
select "column" from regress.columns where relation = 'long'::regclass;
select tgname from pg_trigger where tgrelid = 'long'::regclass;
insert into long (x, y) values ('1', '2');
select zdd.unfence('long.äääääääääääääääääääääääääääääää');
table long;

-- A name that is taken.
create table taken (a text, a_zdd_fenced text);
select zdd.split_column('taken', 'a', 'x text, y text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('taken.a')"
:remember
select zdd.fence('taken.a');
:refused
alter table taken drop column a_zdd_fenced;
select zdd.fence('taken.a');
alter table taken add column a text;
:remember
select zdd.unfence('taken.a');
:refused

-- Partitioned.
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
insert into parted values (1, 'x y');
select zdd.split_column('parted', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('parted.a')"
select zdd.fence('parted.a');
insert into parted (k, b, c) values (1, 'z', 'w');
insert into parted1 (k, b) values (1, 'v');
select * from parted;
select zdd.unfence('parted.a');
insert into parted1 (k, a) values (1, 'u t') returning *;
