\i tests/regress/preamble.sql
-- Splitting the rows that were there before the change.
create table address (id integer generated always as identity primary key, street text, touched integer not null default 0);
insert into address (street) select 'Elm Street ' || n from generate_series(1, 1000) as n;
insert into address (street) values (''), (null), ('Broadway');
create function touch() returns trigger language plpgsql as
$$ begin new.touched := new.touched + 1; return new; end $$;
create trigger touch before update on address for each row execute function touch();
select zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');
select * from zdd.verify('address.street');
table zdd.progress;
:remember

-- It commits as it goes, so it wants no transaction around it.
begin;
call zdd.backfill('address.street');
rollback;
:refused
create procedure wrapped() language plpgsql as $$ begin call zdd.backfill('address.street'); end $$;
:remember
begin;
call wrapped();
rollback;
:refused
drop procedure wrapped();
:remember
do $$
begin
    call zdd.backfill('address.street');
exception
    when division_by_zero then null;
end
$$;
:refused
call zdd.backfill('nothing');
:refused
call zdd.backfill(null);
:refused

-- In psql it ends with a summary, here with # for what differs from run to run.
\! tests/regress/session "call zdd.backfill('address.street')"
select * from zdd.verify('address.street');
select * from address where id % 500 = 0 or id > 1000 order by id;
-- No trigger of the table has fired.
select sum(touched) from address;
select phase, rows_split from zdd.changes;
select event, detail, role from zdd.events;
select count(*) from zdd.progress;

-- Once more: nothing is left to do, before and behind the fence.
\! tests/regress/session "call zdd.backfill('address.street')"
select zdd.fence('address.street');
\! tests/regress/session "call zdd.backfill('address.street')"
select event from zdd.events;
select zdd.rollback('address.street');
:remember
call zdd.backfill('address.street');
:refused

-- With the triggers of the table.
update address set touched = 0;
select zdd.split_column('address', 'street', 'a text, b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('address.street', fire_triggers => true)"
select min(touched), max(touched) from address;
select count(*), sum(touched) from address where a is not null;
select * from zdd.verify('address.street');
select zdd.rollback('address.street');

-- An empty table, a partitioned one, children.
create table empty (a text);
select zdd.split_column('empty', 'a', 'b text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('empty.a')"
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
create table parted2 (a text, dropped text, k integer);
alter table parted2 drop column dropped;
alter table parted attach partition parted2 for values in (2);
insert into parted values (1, 'x y'), (2, 'z w'), (2, null);
select zdd.split_column('parted', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('parted.a')"
select tableoid::regclass, * from parted order by 1, a;
-- A partition that is attached later brings rows that are not split.
create table parted3 (k integer, a text, b text, c text);
insert into parted3 values (3, 'late one');
alter table parted attach partition parted3 for values in (3);
select * from zdd.verify('parted.a');
\! tests/regress/session "call zdd.backfill('parted.a')"
select * from zdd.verify('parted.a');
create table parent (a text);
create table child (own integer) inherits (parent);
create table grandchild () inherits (child);
insert into parent values ('p q');
insert into child values ('r s', 1);
insert into grandchild values ('t u', 2);
select zdd.split_column('parent', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('parent.a')"
select tableoid::regclass, * from parent order by 1;

-- A row that another session has locked is passed over, and waited for at the end. What is done stays done.
create table busy (id integer primary key, a text);
insert into busy select n, 'x ' || n from generate_series(1, 500) as n;
select zdd.split_column('busy', 'a', 'b text, c text', delimiter => ' ');
begin;
select id from busy where id = 250 for update;
\! tests/regress/session "set statement_timeout = '1s'" "call zdd.backfill('busy.a')"
select count(*) - count(b) as left from busy;
select change, relation, phase, state, percent, rows_split, workers, skipped_blocks, waiting_for, last_error from zdd.progress;
commit;
\! tests/regress/session "call zdd.backfill('busy.a')"
select count(*) - count(b) as left from busy;
select event from zdd.events where change = 'busy.a';
table zdd.progress;

-- Generated columns, constraints and indexes follow; a CHECK that is not valid for old rows is not in the way.
create table full_house (
    a text,
    k integer generated by default as identity,
    length integer generated always as (length(a)) stored,
    check (a <> 'never')
);
insert into full_house (a) values ('x y'), (''), ('p  q');
create index on full_house (lower(a));
select zdd.split_column('full_house', 'a', 'b text, c text', delimiter => ' ');
alter table full_house add upper_b text generated always as (upper(b)) stored;
create index on full_house (b);
\! tests/regress/session "call zdd.backfill('full_house.a')"
table full_house;
create table bad (a text);
insert into bad values ('x y'), ('bad');
alter table bad add constraint not_bad check (a <> 'bad') not valid;
select zdd.split_column('bad', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('bad.a')"
table bad;

-- Row security of the table, forced on its owner, hides no row.
create table secret (a text, who name default current_user);
alter table secret enable row level security;
alter table secret force row level security;
create policy own on secret using (who = 'regress_app');
reset session authorization;
insert into secret values ('x y', 'regress_app'), ('z w', 'regress_other');
set session authorization regress_owner;
select zdd.split_column('secret', 'a', 'b text, c text', delimiter => ' ');
\! tests/regress/session "call zdd.backfill('secret.a')"
table secret;
reset session authorization;
table secret;

-- What cannot become expanded stays expanding, and says so.
set session authorization regress_owner;
create table crooked (a text);
select zdd.split_column('crooked', 'a', 'b text, c text', delimiter => ' ');
set session authorization postgres;
set session_replication_role = replica;
insert into crooked values ('x y', 'p', 'q');
reset session_replication_role;
set session authorization regress_owner;
call zdd.backfill('crooked.a');
select phase from zdd.changes where change = 'crooked.a';
select relation, key, source, targets, kind from zdd.mismatches('crooked.a');
