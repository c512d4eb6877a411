\i tests/regress/preamble.sql
-- DDL that would break an active change is refused, whatever statement it comes in.
create function first_word(text) returns text language sql immutable return split_part($1, ' ', 1);
create function touch() returns trigger language plpgsql as $$ begin return new; end $$;
create table t (id integer primary key, a text, d text);
select zdd.split_column('t', 'a', 'b text not null, c text',
    split_sql => array['app.first_word(a)', 'substr(a, length(app.first_word(a)) + 2)'], join_sql => 'b || '' '' || c');
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
select zdd.split_column('parted', 'a', 'x text, y text', delimiter => ' ');
create table parent (a text);
select zdd.split_column('parent', 'a', 'x text, y text', delimiter => ' ');
:remember

-- Source and targets: dropped, renamed, retyped.
alter table t drop column a;
:refused
alter table t drop column b;
:refused
alter table t drop column c cascade;
:refused
alter table t drop column a, add column a text;
:refused
alter table t drop column b, add column b text;
:refused
alter table parted drop column x, add column x text;
:refused
alter table t rename column a to a2;
:refused
alter table t rename column b to b2;
:refused
alter table t alter column a type varchar(10);
:refused
alter table t alter column c type integer using c::integer;
:refused
create domain word as text;
create table typed (a text);
select zdd.split_column('typed', 'a', 'x app.word, y text', delimiter => ' ');
:remember
drop domain word cascade;
:refused
drop table typed;
:remember

-- Constraints that the old application's writes would break.
alter table t alter column b set not null;
:refused
alter table t add primary key (b);
:refused
alter table t drop constraint t_pkey, add primary key (id, c);
:refused
alter table parted1 alter column x set not null;
:refused
create table keys (b text, c text, primary key (b, c));
create unique index on keys (b);
:remember
alter table t add constraint known foreign key (b) references keys (b);
:refused
alter table t add constraint known foreign key (b, c) references keys (b, c) not valid;
:refused
alter table parted1 add constraint known foreign key (x) references keys (b);
:refused
alter table t add constraint known foreign key (a) references keys (b);
alter table t drop constraint known;
drop table keys;
:remember

-- The sync trigger: dropped, disabled, renamed, replaced; and triggers that would come after it.
drop trigger "~zdd_t.a" on t;
:refused
alter table t disable trigger "~zdd_t.a";
:refused
alter table t disable trigger user;
:refused
alter table t disable trigger all;
:refused
alter table t enable replica trigger "~zdd_t.a";
:refused
alter table t enable trigger "~zdd_t.a";
:refused
alter table t enable trigger all;
:refused
alter table t enable always trigger "~zdd_t.a";
alter trigger "~zdd_t.a" on t rename to other;
:refused
alter table parted1 disable trigger user;
:refused
alter table parted1 enable trigger user;
:refused
create or replace trigger "~zdd_t.a" before insert on t for each row execute function touch();
:refused
create or replace trigger "~zdd_t.a" before insert on t for each row execute function zdd.sync('{}');
:refused
create trigger "~~" before insert or update on t for each row execute function touch();
:refused
create trigger aaa before insert or update on t for each row execute function touch();
alter trigger aaa on t rename to "~~";
drop trigger aaa on t;
create trigger "~~" after insert on t for each row execute function touch();
drop trigger "~~" on t;
:remember

-- A sync trigger evaluates its rule with the rights of the table's owner: nobody else may make one.
create table other (a text, b text);
grant insert, trigger on other to regress_app;
grant trigger on t to regress_app;
:remember
set session authorization regress_app;
create trigger sync before insert on other for each row execute function zdd.sync();
create trigger sync before insert on other for each row execute function zdd.sync('{}');
\echo :LAST_ERROR_SQLSTATE
create constraint trigger sync after insert on other for each row execute function zdd.sync('{}');
create trigger "~zdd_t.a" before insert on other for each row execute function zdd.sync('{}');
create trigger second before insert or update on t for each row execute function zdd.sync('{}');
set session authorization regress_owner;
:refused
-- In a table with a change the owner may not either.
create trigger second before insert or update on t for each row execute function zdd.sync('{}');
:refused
create trigger "~zdd_second" before insert or update on t for each row execute function zdd.sync('{}');
:refused
create trigger second after insert on t for each row execute function zdd.sync();
:refused
create trigger second before insert or update on parted for each row execute function zdd.sync('{}');
:refused
create trigger second before insert or update on parted1 for each row execute function zdd.sync('{}');
:refused
-- In others the owner gets no further with one than this.
create trigger sync before insert on other for each row execute function zdd.sync();
insert into other values ('x');
\echo :LAST_ERROR_SQLSTATE
create or replace trigger sync after insert on other for each row execute function zdd.sync('{}');
insert into other values ('x');
\echo :LAST_ERROR_SQLSTATE
create or replace trigger sync before insert on other for each row execute function zdd.sync('{}');
insert into other values ('x');
\echo :LAST_ERROR_SQLSTATE
create or replace trigger sync before insert on other for each row execute function zdd.sync('{"version": 2}');
insert into other values ('x');
\echo :LAST_ERROR_SQLSTATE
create or replace trigger sync before insert on other for each row execute function zdd.sync(
    '{"version":1,"id":1,"change":"fake","source":{"name":"a","type":"text"},"targets":[{"name":"c","type":"text","not_null":false}],"split":{"delimiter":","},"join":{"delimiter":","},"unmatched":"null","conflict":"new","max_source_length":65536}');
insert into other values ('x');
\echo :LAST_ERROR_SQLSTATE
drop table other;
:remember
select zdd.sync();
:refused

-- A new partition gets the trigger with the table. A child does not, and so is refused.
create table parted2 partition of parted for values in (2);
insert into parted values (2, 'p q') returning *;
create table parted3 (k integer, a text, x text, y text);
alter table parted attach partition parted3 for values in (3);
insert into parted values (3, 'r s') returning *;
drop table parted2;
alter table parted detach partition parted3;
insert into parted3 values (3, 't u') returning *;
select tgname from pg_trigger where tgrelid = 'parted3'::regclass;
drop table parted3;
:remember
create table child () inherits (parent);
:refused
create table child (a text, x text, y text);
:remember
alter table child inherit parent;
:refused

-- What the rule is made of.
drop function first_word(text);
:refused
alter function first_word(text) rename to last_word;
:refused
alter function first_word(text) volatile;
:refused
create or replace function first_word(text) returns text language sql immutable return upper(split_part($1, ' ', 1));

-- What it is made of may also be named by its schema, or be the type of a table's rows.
revoke execute on function first_word(text) from public, regress_owner;
:refused
revoke execute on all functions in schema app from public, regress_owner;
:refused
revoke usage on schema app from public, regress_owner;
:refused
reset session authorization;
alter schema app rename to app2;
set session authorization regress_owner;
:refused
create table made_of (id integer);
create function of_rows(made_of[]) returns text language sql immutable return $1::text;
create table typed (a text);
select zdd.split_column('typed', 'a', 'x text', split_sql => array['coalesce(app.of_rows(null), a)'], join_sql => 'x');
:remember
alter table made_of add column more text;
:refused
drop table typed, made_of cascade;
:remember

-- Wherever a statement comes from, and whatever else it does.
do $$ begin execute 'alter table app.t drop column b'; end $$;
:refused
do $$ begin execute 'alter table app.parted alter column x set not null'; end $$;
:refused
reset session authorization;
create schema elements authorization regress_owner create table child () inherits (app.parent);
set session authorization regress_owner;
:refused
reset session authorization;
create schema elements create table x (id integer primary key, a text)
    create trigger "~zdd_x.a" before insert on x for each row execute function zdd.sync('{}');
set session authorization regress_owner;
:refused
reset session authorization;
create schema elements create table x (id integer primary key, a text) create index on x (a)
    create table y (id integer references x) create view v as select * from y;
drop schema elements cascade;
set session authorization regress_owner;
-- Temporary tables are nobody else's business, but their triggers run the same code.
create temporary table temporary (a text, b text);
alter table temporary drop column b;
\set VERBOSITY sqlstate
create trigger "~zdd_t.a" before insert on temporary for each row execute function zdd.sync('{}');
\set VERBOSITY default
:refused
create trigger sync before insert on temporary for each row execute function touch();
drop trigger sync on temporary;
drop table temporary;
:remember

-- Everything else goes on.
alter table t add column e text default 'x', alter column d set not null, add check (c <> 'never');
alter table t alter column a set default 'x y', alter column a set statistics 10, alter column b set storage external;
alter table t alter column a set not null;
alter table t alter column a drop not null, alter column a drop default;
alter table t drop column d, add column d text;
alter table t drop column d;
create index on t (b);
create view v as select a, b from t;
grant select on t to regress_app;
comment on column t.b is 'new';
alter table t rename to t2;
alter table t2 rename to t;
alter table t set (fillfactor = 50);
alter table t replica identity full;
alter table t enable row level security;
vacuum full t;
cluster t using t_pkey;
truncate t;
insert into t (id, a) values (1, 'k l') returning *;
reindex table t;
drop view v;
create table elsewhere as select * from t;
drop table elsewhere;
create temporary table temporary (a text);
drop table temporary;

-- Only a superuser can switch the guard off.
:remember
set zdd.guard = off;
:refused
select set_config('zdd.guard', 'off', false);
:refused
do $$ begin set local zdd.guard = off; end $$;
:refused
reset session authorization;
set zdd.guard = off;
alter table app.t alter column c type varchar(10);
reset zdd.guard;
set session authorization regress_owner;
-- Then the trigger itself says what is wrong.
:remember
insert into t (id, a) values (2, 'm n');
:refused
select * from zdd.verify('t.a');
:refused
call zdd.backfill('t.a');
\echo :LAST_ERROR_SQLSTATE
create table unrelated (a text);
drop table unrelated;
alter table t add column f text;
reset session authorization;
set zdd.guard = off;
alter table app.t alter column c type text;
reset zdd.guard;
set session authorization regress_owner;
insert into t (id, a) values (2, 'm n') returning b, c;

-- Dropping a table ends its change, also with others in one statement, and with its schema.
drop table t, parted;
select change, phase, relation from zdd.changes order by change;
select change, event, detail, role from zdd.events where event = 'rolled_back' order by change;
:remember
select * from zdd.verify('t.a');
:refused
-- A table that goes while event triggers do not fire leaves its change behind, until the next DDL.
create table u (a text);
select zdd.split_column('u', 'a', 'b text, c text', delimiter => ' ');
reset session authorization;
set session_replication_role = replica;
drop table u;
reset session_replication_role;
set session authorization regress_owner;
select zdd.verify('u.a');
\echo :LAST_ERROR_SQLSTATE
select zdd.rollback('u.a');
call zdd.contract('u.a');
create table u ();
select change, phase from zdd.changes where change = 'u.a';

-- DROP OWNED, DROP SCHEMA.
create table t (a text);
select zdd.split_column('t', 'a', 'b text, c text', delimiter => ' ');
drop table parent;
drop owned by regress_owner;
select change, phase, relation from zdd.changes order by change, phase;

-- Where there is no change at all, sync triggers are still nobody else's to make.
reset session authorization;
\set VERBOSITY sqlstate
create schema elements create table x (a text)
    create trigger sync before insert on x for each row execute function zdd.sync('{}');
create temporary table temporary (a text);
create trigger sync before insert on temporary for each row execute function zdd.sync('{}');
create constraint trigger sync after insert on temporary for each row execute function zdd.sync('{}');
\set VERBOSITY default
drop table temporary;
