\i tests/regress/preamble.sql
-- What a rule would do, without doing it.
create table address (id integer generated always as identity primary key, street text, age integer);
insert into address (street) values
    ('Elm Street 12a'), ('Main  St 5-7'), ('Unter den Linden'), ('12'), (''), (null), (null), (null);
:remember
select kind, rows, share, jsonb_pretty(examples) as examples
from zdd.preview_split('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>\D.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');

-- The other kinds of rules, and a policy.
select * from zdd.preview_split('address', 'street', 'a text, b text', delimiter => ' ');
select * from zdd.preview_split('address', 'street', 'a text, b text', delimiter => ' ', join_sql => 'b || a');
select * from zdd.preview_split('address', 'street', 'a integer', split_sql => array['street::integer'], join_sql => 'a::text');
select * from zdd.preview_split('address', 'street', 'a text', regex => '^(?<a>\D+)$', join => '{a}', unmatched => 'whole');

-- A sample, a table without rows, and one that is partitioned.
select kind, rows, share from zdd.preview_split('address', 'street', 'a text', delimiter => ' ', sample_rows => 3);
create table empty (a text);
select * from zdd.preview_split('empty', 'a', 'b text', delimiter => ' ');
create table parted (k integer, a text) partition by list (k);
create table part1 partition of parted for values in (1);
create table part2 (a text, dropped text, k integer);
alter table part2 drop column dropped;
alter table parted attach partition part2 for values in (2);
insert into parted values (1, 'one'), (2, 'two');
select * from zdd.preview_split('parted', 'a', 'b text, c text', delimiter => ' ');
-- At most five examples.
insert into empty select 'row ' || n from generate_series(1, 7) as n;
select rows, examples from zdd.preview_split('empty', 'a', 'b text, c text', delimiter => ' ') where kind = 'matched';
-- Only text is shown of other types.
insert into address (age) values (7);
select * from zdd.preview_split('address', 'age', 'a integer', split_sql => array['10 - age'], join_sql => '10 - a');
:remember

-- It is refused as split_column is, without a lock being tried.
select zdd.preview_split('address', 'nothing', 'a text', delimiter => ' ');
:refused
select zdd.preview_split('address', 'street', 'a text');
:refused
select zdd.preview_split('address', 'street', 'a text, b', delimiter => ' ');
:refused
select zdd.preview_split('address', 'street', 'a text', delimiter => ' ', unmatched => 'what');
:refused
select zdd.preview_split('address', 'street', 'a text', delimiter => ' ', sample_rows => 0);
:refused
select zdd.preview_split('address', 'street', 'a text', delimiter => ' ', sample_rows => null);
:refused
select zdd.preview_split('address', 'street', 'id text', delimiter => ' ');
:refused
select zdd.preview_split('parted', 'k', 'b text', split_sql => array['k'], join_sql => 'b::integer');
:refused
set session authorization regress_app;
select zdd.preview_split('app.address', 'street', 'a text', delimiter => ' ');
set session authorization regress_owner;
:refused
