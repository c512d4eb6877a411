\i tests/regress/preamble.sql
-- Who may do what.
create table t (id integer primary key, a text, secret text);
insert into t values (1, 'x y', 'hush');
grant select (id, a), insert (id, a), update (a), references (a) on t to regress_app;
grant select (a) on t to public;
grant select (a) on t to regress_member with grant option;
select zdd.split_column('t', 'a', 'b text, c text', delimiter => ' ');

-- Column privileges of the old column hold for the new ones, and go with them.
select attname, attacl from pg_attribute where attrelid = 't'::regclass and attnum > 0 and attname <> 'a' order by attnum;
set session authorization regress_app;
select id, b, c from app.t;
select secret from app.t;
insert into app.t (id, b, c) values (2, 'z', 'w') returning a;
update app.t set c = 'v' where id = 2 returning a, b, c;
insert into app.t (id, a) values (3, 'u t') returning b, c;
-- The application cannot read what zdd knows but through the views, and not write at all.
select change, relation, phase from zdd.changes;
select change, event from zdd.events;
select count(*) from zdd.progress;
select * from zdd.change;
insert into zdd.changes (change) values ('x');
update zdd.events set event = 'x';
delete from zdd.progress;

-- Only the owner, a member, or a superuser may act.
set session authorization regress_other;
select zdd.split_column('app.t', 'secret', 'x text', delimiter => ' ');
select zdd.preview_split('app.t', 'secret', 'x text', delimiter => ' ');
select zdd.alter_change('t.a', conflict => 'old');
select zdd.verify('t.a');
select zdd.mismatches('t.a');
select zdd.fence('t.a');
select zdd.unfence('t.a');
select zdd.rollback('t.a');
call zdd.backfill('t.a');
call zdd.repair('t.a', 'new');
call zdd.contract('t.a', force => true);
\echo :LAST_ERROR_SQLSTATE
set session authorization regress_owner;
:remember
-- The owner cannot write the tables of zdd either.
insert into zdd.change (name, relation_name, source, targets, rule, started_by) values ('x', 'x', 'x', '{x}', '{}', 'x');
:refused
update zdd.change set phase = 'contracted';
:refused
delete from zdd.change;
:refused
truncate zdd.change;
:refused
insert into zdd.event (change_id, change, event, role) values (1, 't.a', 'x', 'x');
:refused
delete from zdd.lane;
:refused
delete from zdd.skipped;
:refused
update zdd.job set last_error = 'x';
:refused
select nextval('zdd.change_id_seq');
:refused
alter function zdd.sync() owner to regress_owner;
:refused
drop event trigger pg_zdd_guard;
:refused
create function zdd.mine() returns integer language sql return 1;
:refused

-- A member of the owner may do all of it, and is the one who is written down.
set session authorization regress_member;
select zdd.alter_change('t.a', conflict => 'old');
\setenv PGUSER regress_member
\! tests/regress/session "call zdd.backfill('t.a')"
select * from zdd.verify('t.a');
select zdd.fence('t.a');
select zdd.unfence('t.a');
call zdd.contract('t.a', force => true);
select event, role from zdd.events where change = 't.a';
select pg_get_userbyid(relowner) from pg_class where oid = 'app.t'::regclass;

-- An error may quote a row: only the owner sees it.
set session authorization regress_owner;
create table leaky (a text);
insert into leaky values ('hush hush');
select zdd.split_column('leaky', 'a', 'b text, c text', delimiter => ' ');
alter table leaky add constraint quiet check (b <> 'hush');
\setenv PGUSER regress_owner
\! tests/regress/session "call zdd.backfill('leaky.a')"
select last_error, last_error_at is not null as has_failed from zdd.progress where change = 'leaky.a';
select event, detail from zdd.events where change = 'leaky.a';
set session authorization regress_member;
select last_error from zdd.progress where change = 'leaky.a';
set session authorization regress_other;
select change, phase, last_error, last_error_at is not null as has_failed from zdd.progress where change = 'leaky.a';
select event, detail from zdd.events where change = 'leaky.a';

-- What a rule runs, runs as the table's owner, with no search_path of its own, and may not do more than compute.
set session authorization regress_owner;
create function whoami(text) returns text language sql immutable
return current_user || ' ' || current_setting('search_path') || ' ' || $1;
create function sneaky(text) returns text language plpgsql immutable as $$
begin
    execute 'set session authorization postgres';
    return $1;
end
$$;
create function fails(text) returns text language plpgsql immutable as $$
begin
    if $1 = 'bad' then raise 'no % please', $1; end if;
    return $1;
end
$$;
create table r (id integer, a text, b text);
grant select, insert, update on r to regress_app;
select zdd.split_column('r', 'a', 'x text', split_sql => array['app.whoami(a)'], join_sql => 'app.fails(x)');
set session authorization regress_app;
insert into app.r (id, a) values (1, 'text') returning x;
insert into app.r (id, x) values (2, 'good') returning a;
insert into app.r (id, x) values (3, 'bad');
\echo :LAST_ERROR_SQLSTATE
select current_user, current_setting('search_path');
reset session authorization;
insert into app.r (id, a) values (4, 'superuser') returning x;
set session authorization regress_owner;
select zdd.split_column('r', 'b', 'y text', split_sql => array['app.sneaky(b)'], join_sql => 'y');
insert into r (id, b) values (5, 'text') returning y;
reset session authorization;
insert into app.r (id, b) values (6, 'text') returning y;
select current_user;
select zdd.verify('r.b');

-- Objects of the same name in other schemas are not taken for PostgreSQL's.
create schema evil;
create function evil.lower(text) returns text language sql immutable return 'evil';
create function evil.cat(text, text) returns text language sql immutable return 'evil';
create operator evil.|| (function = evil.cat, leftarg = text, rightarg = text);
set search_path = evil, pg_catalog, app;
create table app.s (a text);
select zdd.split_column('s', 'a', 'b text, c text default lower(''X'') || ''y''',
    split_sql => array['lower(a)', 'a || a'], join_sql => 'b || c');
select zdd.split_column('s', 'a', 'b text, c text default ''evil''',
    split_sql => array['lower(a)', 'a || a'], join_sql => 'b || c');
insert into app.s (a) values ('X') returning *;
insert into app.s (b) values ('X') returning *;
select * from zdd.verify('s.a');
drop schema evil cascade;
reset search_path;

-- Nobody else gets the table while a change is on: its rule runs as the owner who began it.
set search_path = app;
create role regress_leaving login;
alter table r owner to regress_leaving;
set zdd.guard = off;
alter table r owner to regress_leaving;
reset zdd.guard;
insert into r (id, a) values (7, 'text') returning x;
set session authorization regress_owner;
select zdd.rollback('r.a');
set session authorization regress_leaving;
select zdd.rollback('r.a');
reset session authorization;
alter table r owner to regress_owner;
drop role regress_leaving;
select event, role from zdd.events where change = 'r.a';
