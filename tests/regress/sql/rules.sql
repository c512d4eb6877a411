\i tests/regress/preamble.sql
-- Split and join rules: one working example of each, and what each is refused for.
create table t (id integer generated always as identity primary key, a text, b integer);
insert into t (a) values ('before');
:remember

-- A regex: named groups are the new columns. A group that takes no part gives NULL, one that matches nothing ''.
select zdd.split_column('t', 'a', 'name text, number integer, rest text',
    regex => '^(?<name>[a-z]+)(?: (?<number>\d+))?(?<rest>!*)$', join => '{name}[ {number}][{rest}]');
insert into t (a) values ('x'), ('x 12'), ('x 12!!'), ('X'), ('x 99999999999'), (null);
insert into t (name, number, rest) values ('y', 7, null), ('y', null, ''), (null, null, null);
select a, name, number, rest from t order by id;
select zdd.rollback('t.a');

-- A delimiter: the last column takes the rest. It joins with the delimiter, too, unless told otherwise.
select zdd.split_column('t', 'a', 'first text, second text, third text', delimiter => ', ');
insert into t (a) values ('1'), ('1, 2'), ('1, 2, 3'), ('1, 2, 3, 4'), (''), (', '), ('1,2');
insert into t (first, second, third) values ('x', 'y', 'z'), ('x', null, 'z'), (null, '', null);
select a, first, second, third from t where a not like 'x%' or first is not null order by id;
select zdd.rollback('t.a');
select zdd.split_column('t', 'a', 'first text, second text', delimiter => '/', "join" => '{second}[ of {first}]');
insert into t (first, second) values ('x', 'y'), (null, 'y');
select a, first, second from t where second is not null order by id;
select zdd.rollback('t.a');

-- SQL expressions over the old column, one for each new one; and one over the new ones.
create function shout(text) returns text language sql immutable return upper($1) || '!';
select zdd.split_column('t', 'b', 'big bigint, word text, odd boolean',
    split_sql => array['b * 10000000000', 'app.shout(''n'' || b::text)', 'b % 2 = 1'], join_sql => '(big / 10000000000)::integer');
insert into t (b) values (1), (2), (null);
insert into t (big, word, odd) values (30000000000, 'whatever', null);
select b, big, word, odd from t where coalesce(b, big) is not null order by id;
select zdd.rollback('t.b');
delete from t;
:remember

-- Exactly one of each.
select zdd.split_column('t', 'a', 'x text');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.)', delimiter => ',');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.)', split_sql => '{a}', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.)');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => '{a}');
:refused
select zdd.split_column('t', 'a', 'x text', delimiter => ',', join => '{x}', join_sql => 'x');
:refused

-- Regexes.
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.)(?<x>.)', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>a)(?=b)', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>a)\1', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>(\w{100}){100}){100}', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(.*)', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', regex => '(?<x>.*)', join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text', regex => '(?<x>.)(?<y>.)', join => '{x}');
:refused
select zdd.split_column('t', 'a', '"X" text', regex => '(?<x>.)', join => '{X}');
:refused

-- Delimiters.
select zdd.split_column('t', 'a', 'x text', delimiter => '');
:refused

-- Templates.
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x}}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => 'ä {}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x}[ {y}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x}] {y}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x} {y}[, ]');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x} {y}\');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{x} {a}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => '{X}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', join => repeat('[', 17) || '{x}' || repeat(']', 17));
:refused

-- SQL expressions.
select zdd.split_column('t', 'a', 'x text, y text', split_sql => '{a}', join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => '{}', join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => '{null}', join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => '{""}', join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['lower('], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a, a'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a as b'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a; drop table t'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a from t'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a where true'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a union select 1'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['distinct a'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['*'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['t.*'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['t.a'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['id::text'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['(select a)'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['max(a)'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['lag(a) over ()'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['unnest(array[a])'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['shout(a)'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a || $1'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x text', split_sql => array['a || random()'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x integer', split_sql => array['a'], join_sql => 'x');
:refused
select zdd.split_column('t', 'a', 'x integer', split_sql => array['a::integer'], join_sql => 'x || now()');
:refused
select zdd.split_column('t', 'a', 'x integer', split_sql => array['a::integer'], join_sql => 'x = 1 or random() > 2');
:refused
select zdd.split_column('t', 'a', 'x integer', split_sql => array['a::integer'], join_sql => 'x || a');
:refused
select zdd.split_column('t', 'a', 'x integer', split_sql => array['a::integer'], join_sql => '');
:refused

-- Types that a regex, delimiter or template cannot handle.
select zdd.split_column('t', 'b', 'x text', delimiter => ',');
:refused
select zdd.split_column('t', 'b', 'x text', split_sql => array['b'], join => '{x}');
:refused
select zdd.split_column('t', 'a', 'x text, y boolean', delimiter => ',');
:refused
select zdd.split_column('t', 'a', 'x text, y boolean', delimiter => ',', join_sql => 'x || y');
:refused

-- Words.
select zdd.split_column('t', 'a', 'x text', delimiter => ',', unmatched => 'drop');
:refused
select zdd.split_column('t', 'a', 'x text', delimiter => ',', unmatched => null);
:refused
select zdd.split_column('t', 'a', 'x text', delimiter => ',', conflict => 'New');
:refused
select zdd.split_column('t', 'a', 'x text', delimiter => ',', conflict => null);
:refused
select zdd.split_column('t', 'a', 'x integer, y text', delimiter => ',', unmatched => 'whole');
:refused
select zdd.split_column('t', 'b', 'x text', split_sql => array['b'], join_sql => 'x::integer', unmatched => 'whole');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', indexes => '{x,"x, z"}');
:refused
select zdd.split_column('t', 'a', 'x text, y text', delimiter => ',', change => '');
:refused

-- Notices about what a rule will do to the new application's writes.
create table required (a text not null);
select zdd.split_column('required', 'a', 'x text, y text not null, z text', delimiter => ',', join => '{x} {y}');
select zdd.rollback('required.a');
select zdd.split_column('required', 'a', 'x text, y text', delimiter => ',');
select zdd.rollback('required.a');
