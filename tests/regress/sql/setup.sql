-- Runs before all other tests: the extension, roles, and what the tests look at refusals with.
set client_min_messages = warning;
drop role if exists regress_owner, regress_member, regress_app, regress_other;
reset client_min_messages;

create extension pg_zdd;

-- Owns the tables; an ordinary role, as all of these are.
create role regress_owner login;
-- May act for the owner.
create role regress_member login in role regress_owner;
-- An application: may read and write the tables that it is told of.
create role regress_app login;
-- Has nothing to do with any of it.
create role regress_other login;

create schema regress;
grant usage on schema regress to public;

-- \d shows a trigger with its whole rule; most tests want less.
create view regress.columns as
select a.attrelid::regclass as relation, a.attname as "column", format_type(a.atttypid, a.atttypmod) as type,
    nullif(a.attcollation, t.typcollation)::regcollation as "collation", a.attnotnull as not_null,
    pg_get_expr(d.adbin, d.adrelid) as "default"
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
join pg_type as t on t.oid = a.atttypid
left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = to_regnamespace('app') and c.relkind in ('r', 'p', 'f')
order by a.attrelid, a.attnum;
grant select on regress.columns to public;

-- Every trace that a call of pg_zdd can leave in the database.
create view regress.trace as
with relation as (
    select c.oid, c.oid::regclass::text as name, c.relacl
    from pg_class as c
    where c.relnamespace = to_regnamespace('app')
)
select format('table %s, privileges %s', r.name, r.relacl) as trace
from relation as r
union all
select format('column %s.%s %s, not null %s, default %s, privileges %s', r.name, a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attacl)
from relation as r
join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef as d on d.adrelid = r.oid and d.adnum = a.attnum
union all
select format('trigger %s, %s', pg_get_triggerdef(t.oid), t.tgenabled)
from relation as r
join pg_trigger as t on t.tgrelid = r.oid
union all
select format('constraint %s of %s: %s, valid %s', k.conname, r.name, pg_get_constraintdef(k.oid), k.convalidated)
from relation as r
join pg_constraint as k on k.conrelid = r.oid
union all
select format('change %s of %s is %s: %s', c.id, c.relation, c.phase, c.rule)
from zdd.change as c
union all
select format('event %s of change %s', e.event, e.change_id)
from zdd.event as e
-- Of a contract that was refused, events tell.
where e.event not in ('contract_started', 'error')
union all
select format('lane %s of change %s, %s, at block %s', l.lane, l.change_id, l.relation, l.next_block)
from zdd.lane as l
union all
select format('skipped block %s of change %s', s.block, s.change_id)
from zdd.skipped as s
union all
select format('%s of change %s, stopped %s', j.kind, j.change_id, j.stopped)
from zdd.job as j
union all
select format('%s %s %s, %s', k.locktype, k.classid, k.objid, k.mode)
from pg_locks as k
where k.pid = pg_backend_pid() and k.locktype in ('advisory', 'userlock');

-- What the session is like.
create function regress.session() returns text
language sql
return format('role %s, search_path %s, lock_timeout %s, deadlock_timeout %s, synchronous_commit %s',
    current_user, current_setting('search_path'), current_setting('lock_timeout'),
    current_setting('deadlock_timeout'), current_setting('synchronous_commit'));

create table regress.remembered (trace text not null);

create function regress.remember(session text default regress.session()) returns void
language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
    delete from regress.remembered;
    insert into regress.remembered select t.trace from regress.trace as t union all select session;
end;

-- One line when nothing has changed since; else what has.
create function regress.refused(sqlstate text, session text default regress.session()) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
    with now as (
        select t.trace from regress.trace as t union all select session
    ),
    difference as (
        (select '+ ' || n.trace as trace from now as n except all select '+ ' || r.trace from regress.remembered as r)
        union all
        (select '- ' || r.trace from regress.remembered as r except all select '- ' || n.trace from now as n)
    )
    select format('%s, %s left behind', refused.sqlstate,
        coalesce(E'this is\n' || string_agg(d.trace, E'\n' order by d.trace) || E'\n', 'nothing'))
    from difference as d;
end;
