\i tests/regress/preamble.sql
-- Tables and columns that split_column refuses.
create table t (
    id integer primary key,
    a text,
    number integer generated always as identity,
    loud text generated always as (upper(a)) stored
);
create view v as select * from t;
create materialized view m as select * from t;
create sequence s;
create index i on t (a);
create type c as (a text);
create table parted (a text, b text, k text) partition by list (k);
create table part partition of parted for values in ('x') partition by list (b);
create table leaf partition of part default;
create table by_expression (a text, k text) partition by list ((lower(a) || k));
create table parent (a text, b text);
create table child (own text) inherits (parent);
:remember

-- Missing arguments.
select zdd.split_column(null, 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', null, 'x text', delimiter => ',');
:refused

-- No such table or column.
select zdd.split_column('nowhere', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column(1::regclass, 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', 'nothing', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', 'A', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', '', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', 'ctid', 'x text', delimiter => ',');
:refused

-- Not a table.
select zdd.split_column('v', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('m', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('s', 'last_value', 'x text', delimiter => ',');
:refused
select zdd.split_column('i', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('c', 'a', 'x text', delimiter => ',');
:refused

-- A column that can not be written.
select zdd.split_column('t', 'number', 'x text', split_sql => array['number'], join_sql => 'x::integer');
:refused
select zdd.split_column('t', 'loud', 'x text', delimiter => ',');
:refused

-- A new column that exists; also in a child alone.
select zdd.split_column('t', 'a', 'x text, id text', delimiter => ',');
:refused
select zdd.split_column('t', 'a', 'a text', delimiter => ',');
:refused
select zdd.split_column('parent', 'a', 'x text, own text', delimiter => ',');
:refused

-- Partitions and children: the parent is to be named.
select zdd.split_column('part', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('leaf', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('child', 'a', 'x text', delimiter => ',');
:refused

-- A child of two parents that both have the column.
create table parent2 (a text);
create table child2 () inherits (parent, parent2);
create table parent3 (c text);
create table child3 () inherits (parent2, parent3);
:remember
select zdd.split_column('parent', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('parent2', 'a', 'x text', delimiter => ',');
:refused
drop table child2;
select zdd.split_column('parent2', 'a', 'x text', delimiter => ',');
select zdd.rollback('parent2.a');
:remember

-- Partition keys, on every level, in expressions too.
select zdd.split_column('parted', 'k', 'x text', delimiter => ',');
:refused
select zdd.split_column('parted', 'b', 'x text', delimiter => ',');
:refused
select zdd.split_column('by_expression', 'a', 'x text', delimiter => ',');
:refused

-- Temporary tables.
\! tests/regress/session "create temporary table x (a text); select zdd.split_column('x', 'a', 'y text', delimiter => ',')"

-- A BEFORE trigger that would fire after ours; those that come before, other kinds and other events do not matter.
create function touch() returns trigger language plpgsql as $$ begin new.a := new.a || '!'; return new; end $$;
create table triggered (a text);
create trigger before before insert or update on triggered for each row execute function touch();
create trigger "~~after" after insert on triggered for each row execute function touch();
create trigger "~~statement" before insert on triggered for each statement execute function touch();
create trigger "~~delete" before delete on triggered for each row execute function touch();
create trigger "~zdd_z" before update of a on triggered for each row execute function touch();
:remember
select zdd.split_column('triggered', 'a', 'x text', delimiter => ',');
:refused
alter trigger "~zdd_z" on triggered rename to "~zdd_a";
select zdd.split_column('triggered', 'a', 'x text', delimiter => ',', change => 'z');
select zdd.rollback('z');

-- In a change already, on either side; and names of changes are unique.
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',');
:remember
select zdd.split_column('t', 'a', 'z text', delimiter => ',', change => 'second');
:refused
select zdd.split_column('t', 'x', 'z text', delimiter => ',');
:refused
select zdd.split_column('parent', 'a', 'x text', delimiter => ',', change => 't.a');
:refused
select zdd.split_column('parent', 'a', 'x text', delimiter => ',', change => '');
:refused
select zdd.rollback('t.a');

-- What is said is ASCII: a client of another encoding understands it, too.
set client_encoding = 'LATIN1';
select zdd.split_column('parent', 'nothing', 'x text', delimiter => ',');
create table latin1 (a text);
select zdd.split_column('latin1', 'a', 'x text', delimiter => ',');
select zdd.split_column('latin1', 'a', 'x text', delimiter => ',');
begin;
call zdd.backfill('latin1.a');
rollback;
select zdd.rollback('latin1.a');
select zdd.rollback('latin1.a');
reset client_encoding;

-- Not the owner; a member of the owner may.
:remember
set session authorization regress_other;
select zdd.split_column('t', 'a', 'x text', delimiter => ',');
set session authorization regress_owner;
:refused
set session authorization regress_member;
select zdd.split_column('t', 'a', 'x text', delimiter => ',');
select zdd.rollback('t.a');
reset session authorization;
select change, event, role from zdd.events where change = 't.a' order by at desc limit 2;

-- System catalogs, also as a superuser, and the tables of pg_zdd itself.
:remember
select zdd.split_column('pg_class', 'relname', 'x text', delimiter => ',');
:refused
select zdd.split_column('information_schema.sql_features', 'feature_name', 'x text', delimiter => ',');
:refused
select zdd.split_column('zdd.change', 'name', 'x text', delimiter => ',');
:refused

-- Foreign tables, themselves and as partitions.
create foreign data wrapper dummy;
create server dummy foreign data wrapper dummy;
create foreign table app.abroad (a text) server dummy;
create foreign table app.abroad_part partition of app.parted for values in ('y') server dummy;
alter foreign table app.abroad owner to regress_owner;
alter foreign table app.abroad_part owner to regress_owner;
set session authorization regress_owner;
:remember
select zdd.split_column('abroad', 'a', 'x text', delimiter => ',');
:refused
select zdd.split_column('parted', 'a', 'x text', delimiter => ',');
:refused
reset session authorization;
set client_min_messages = warning;
drop foreign data wrapper dummy cascade;

-- Databases that are not UTF8.
create database regress_latin1 encoding 'LATIN1' locale 'C' template template0;
\c regress_latin1
create extension pg_zdd;
create table t (a text);
select zdd.split_column('t', 'a', 'x text', delimiter => ',');
\echo :LAST_ERROR_SQLSTATE
\d t
select zdd.preview_split('t', 'a', 'x text', delimiter => ',');
\c :database
drop database regress_latin1;
