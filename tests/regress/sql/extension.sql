\i tests/regress/preamble.sql
-- What CREATE EXTENSION makes, and what PUBLIC may do with it.
reset session authorization;
select extname as name, extversion as version, extnamespace::regnamespace as schema, extrelocatable as relocatable,
    obj_description(oid, 'pg_extension') as description
from pg_extension
where extname = 'pg_zdd';
-- From PostgreSQL 17 on a table's row types belong to the extension too.
create view regress.member as
select pg_describe_object(classid, objid, 0) as object, obj_description(objid, classid::regclass::text) as comment
from pg_depend
where refclassid = 'pg_extension'::regclass
    and refobjid = (select oid from pg_extension where extname = 'pg_zdd')
    and deptype = 'e' and classid <> 'pg_type'::regclass;
select object from regress.member order by 1;

-- Everything that users see has a comment.
select object as without_a_comment from regress.member where comment is null order by 1;
drop view regress.member;

-- Functions: who may execute them, with whose rights, and with what search_path.
select oid::regprocedure as function, prosecdef as security_definer, proconfig as settings,
    has_function_privilege('regress_other', oid, 'execute') as public_may_execute
from pg_proc
where pronamespace = 'zdd'::regnamespace
order by oid::regprocedure::text;
select oid::regclass as relation, has_table_privilege('regress_other', oid, 'select') as public_may_read,
    has_table_privilege('regress_other', oid, 'insert, update, delete, truncate, references, trigger') as public_may_write
from pg_class
where relnamespace = 'zdd'::regnamespace and relkind in ('r', 'v')
order by 1;
select has_schema_privilege('regress_other', 'zdd', 'usage') as public_may_use,
    has_schema_privilege('regress_other', 'zdd', 'create') as public_may_create;

-- What pg_dump takes along: changes and events, but not block cursors.
select unnest(extconfig)::regclass as dumped from pg_extension where extname = 'pg_zdd';

-- The schema is fixed.
create schema elsewhere;
alter extension pg_zdd set schema elsewhere;
drop schema elsewhere;

-- Internal functions do nothing for those who call them.
set session authorization regress_other;
select zdd._check_move('x', 'expanding', 'contracted');
select zdd.guard();
select zdd.check_phase();

-- Without a change in flight it can be dropped and created again; with one, only by a superuser who means it.
reset session authorization;
set client_min_messages = warning;
drop database if exists regress_drop;
reset client_min_messages;
create database regress_drop template template0;
\c regress_drop
create extension pg_zdd;
create table t (a text);
select zdd.split_column('t', 'a', 'b text', delimiter => ',');
drop extension pg_zdd;
drop extension pg_zdd cascade;
drop extension if exists plpgsql, pg_zdd cascade;
begin;
set local zdd.guard = off;
drop extension pg_zdd cascade;
rollback;
select zdd.rollback('t.a');
drop extension pg_zdd;
create extension pg_zdd;
table zdd.changes;
\c :database
drop database regress_drop;
