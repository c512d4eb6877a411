\i tests/regress/preamble.sql
-- Policies and pace of a change that is under way.
create table t (a text);
insert into t values ('x,1'), ('y');
select zdd.split_column('t', 'a', 'b text, c integer', regex => '^(?<b>\w+),(?<c>\d+)$', join => '{b}[,{c}]');
select change, rule ->> 'unmatched' as unmatched, rule ->> 'conflict' as conflict, batch_target, max_rows_per_second
from zdd.changes;
select zdd.alter_change('t.a');
select zdd.alter_change('t.a', batch_target => '20 milliseconds', max_rows_per_second => 1000);
select zdd.alter_change('t.a', conflict => 'old', unmatched => 'error');
select change, rule ->> 'unmatched' as unmatched, rule ->> 'conflict' as conflict, batch_target, max_rows_per_second
from zdd.changes;
insert into t values ('y');
\echo :LAST_ERROR_SQLSTATE
insert into t values ('z,2', 'w', 3) returning *;
select zdd.alter_change('t.a', unmatched => 'null', max_rows_per_second => 0);
select change, rule ->> 'unmatched' as unmatched, rule ->> 'conflict' as conflict, batch_target, max_rows_per_second
from zdd.changes;
select event, detail, role from zdd.events;

-- A policy that makes rows pending is for expanding changes.
\! tests/regress/session "call zdd.backfill('t.a')"
select * from t;
:remember
select zdd.alter_change('t.a', unmatched => 'whole');
:refused
select zdd.fence('t.a');
:remember
select zdd.alter_change('t.a', unmatched => 'whole');
:refused
select zdd.alter_change('t.a', unmatched => 'error');
select zdd.unfence('t.a');
select zdd.rollback('t.a');
select zdd.split_column('t', 'a', 'b text, c integer', regex => '^(?<b>\w+),(?<c>\d+)$', join => '{b}[,{c}]');
insert into t values ('w');
select zdd.alter_change('t.a', unmatched => 'whole');
select * from zdd.verify('t.a');
\! tests/regress/session "call zdd.backfill('t.a')"
select * from t;

-- Refused.
:remember
select zdd.alter_change('t.a', unmatched => 'some');
:refused
select zdd.alter_change('t.a', conflict => 'some');
:refused
select zdd.alter_change('t.a', batch_target => '0');
:refused
select zdd.alter_change('t.a', batch_target => '-1 second');
:refused
select zdd.alter_change('t.a', batch_target => '1 month');
:refused
select zdd.alter_change('t.a', max_rows_per_second => -1);
:refused
select zdd.alter_change(null);
:refused
select zdd.alter_change('nothing');
:refused
select zdd.rollback('t.a');
:remember
select zdd.alter_change('t.a', conflict => 'new');
:refused
create table number (n integer);
select zdd.split_column('number', 'n', 'm integer', split_sql => array['n + 1'], join_sql => 'm - 1');
:remember
select zdd.alter_change('number.n', unmatched => 'whole');
:refused
