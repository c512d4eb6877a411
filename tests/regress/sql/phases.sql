\i tests/regress/preamble.sql
-- Every move between phases: those that exist, and what the others say.
create table t (a text);
insert into t values ('x y');
create view phase as select phase from zdd.changes where change = 't.a' order by started_at desc limit 1;

-- expanding
select zdd.split_column('t', 'a', 'b text, c text', delimiter => ' ');
:remember
select zdd.fence('t.a');
:refused
select zdd.unfence('t.a');
:refused
call zdd.contract('t.a', force => true);
:refused

-- expanded
\! tests/regress/session "call zdd.backfill('t.a')"
table phase;
:remember
select zdd.unfence('t.a');
:refused
\! tests/regress/session "call zdd.backfill('t.a')"

-- fenced
select zdd.fence('t.a');
table phase;
:remember
select zdd.fence('t.a');
:refused
\! tests/regress/session "call zdd.backfill('t.a')"

-- rolled back
select zdd.rollback('t.a');
table phase;
:remember
select zdd.verify('t.a');
:refused
select zdd.mismatches('t.a');
:refused
select zdd.alter_change('t.a', conflict => 'old');
:refused
select zdd.fence('t.a');
:refused
select zdd.unfence('t.a');
:refused
select zdd.rollback('t.a');
:refused
call zdd.backfill('t.a');
:refused
call zdd.repair('t.a', 'new');
:refused
call zdd.contract('t.a');
:refused

-- contracted
select zdd.split_column('t', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('t.a')"
call zdd.contract('t.a', force => true);
table phase;
:remember
select zdd.verify('t.a');
:refused
select zdd.fence('t.a');
:refused
select zdd.unfence('t.a');
:refused
select zdd.rollback('t.a');
:refused
call zdd.backfill('t.a');
:refused
call zdd.repair('t.a', 'new');
:refused
call zdd.contract('t.a');
:refused

-- A name may be used again once its change is over.
alter table t add column a text;
select zdd.split_column('t', 'a', 'd text', delimiter => ' ');
select change, phase from zdd.changes order by started_at;
select zdd.rollback('t.a');
select zdd.split_column('t', 'a', 'd text', delimiter => ' ', change => 'one change');
select zdd.split_column('t', 'b', 'e text', delimiter => ' ', change => 'another');

-- The catalog rejects every other move, whoever tries.
reset session authorization;
create function regress.try(source text, destination text) returns text
language plpgsql
as $$
begin
    perform zdd._check_move('example', source, destination);
    return 'legal';
exception
    when object_not_in_prerequisite_state then return sqlerrm;
end
$$;
with phase (name) as (values ('expanding'), ('expanded'), ('fenced'), ('contracted'), ('rolled_back'))
select source.name as source, destination.name as destination, regress.try(source.name, destination.name)
from phase as source, phase as destination
where source.name <> destination.name;
drop function regress.try;
update zdd.change set phase = 'fenced' where name = 'another';
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
update zdd.change set phase = 'rolled_back' where name = 'another';
insert into zdd.change (name, relation, relation_name, source, targets, phase, rule, started_by, owner)
values ('forged', 'app.t', 'app.t', 'a', '{b}', 'no such phase', '{}', 'me', 'me');
