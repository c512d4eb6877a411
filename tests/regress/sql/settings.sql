\i tests/regress/preamble.sql
-- Every setting: its default, its bounds, who may set it.
select name, setting, unit, context, min_val, max_val, short_desc, extra_desc
from pg_settings
where name like 'zdd.%'
order by name;
show zdd.lock_timeout;
show zdd.lock_patience;
show zdd.max_source_length;
show zdd.guard;
show zdd.quiet_period;

-- The bounds are above; what PostgreSQL says of them differs between versions.
\set VERBOSITY sqlstate
set zdd.lock_timeout = '1s';
set zdd.lock_timeout = '0';
set zdd.lock_timeout = '2min';
set zdd.lock_timeout = 'long';
reset zdd.lock_timeout;
set zdd.lock_patience = '1d';
set zdd.lock_patience = '-1';
set zdd.lock_patience = '2d';
reset zdd.lock_patience;
set zdd.max_source_length = '1MB';
set zdd.max_source_length = '512';
set zdd.max_source_length = 0;
set zdd.max_source_length = '1GB';
reset zdd.max_source_length;
set zdd.quiet_period = 0;
set zdd.guard = off;
reset session authorization;
set zdd.quiet_period = '10min';
set zdd.quiet_period = '-1s';
set zdd.guard = off;
set zdd.guard = 'maybe';
set zdd.nothing = 1;
reset zdd.quiet_period;
reset zdd.guard;
\set VERBOSITY default
set session authorization regress_owner;

-- max_source_length goes into the rule of each new change, and stays.
create table t (a text);
set zdd.max_source_length = '1kB';
select zdd.split_column('t', 'a', 'b text', delimiter => ' ');
reset zdd.max_source_length;
insert into t values (repeat('x', 1024)), (repeat('x', 1025)), (repeat('ä', 513));
select char_length(a), octet_length(a), char_length(b) from t;

-- A contract asks for the quiet period in force.
\! tests/regress/session "call zdd.backfill('t.a')"
:remember
call zdd.contract('t.a');
:refused
reset session authorization;
set zdd.quiet_period = 0;
call zdd.contract('t.a', accept_unmatched => true);
reset zdd.quiet_period;
set session authorization regress_owner;

-- How long to try for a lock: this session holds one that the other wants. A session of one's own role is shown with
-- what it does.
\c - regress_owner
set search_path = app;
create table busy (a text);
begin;
lock table busy in access share mode;
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.split_column('busy', 'a', 'b text', delimiter => ' ')"
commit;
select zdd.split_column('busy', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('busy.a')"
begin;
lock table busy in row exclusive mode;
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.fence('busy.a')"
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.rollback('busy.a')"
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.alter_change('busy.a', conflict => 'old')"
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "call zdd.contract('busy.a', force => true)"
-- What does not need the lock does not wait for it.
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.alter_change('busy.a', max_rows_per_second => 10)"
\! tests/regress/session "select * from zdd.verify('busy.a')"
commit;
-- Others are named, without what they do; a prepared transaction has no pid.
\c - postgres
begin;
select * from app.busy;
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.fence('busy.a')"
prepare transaction 'regress left open';
\! tests/regress/session "set zdd.lock_timeout = '10ms'" "set zdd.lock_patience = 0" "select zdd.fence('busy.a')"
commit prepared 'regress left open';
select change, phase, rule ->> 'conflict' as conflict from zdd.changes where change = 'busy.a';
select "column" from regress.columns where relation = 'app.busy'::regclass;
