\i tests/regress/preamble.sql
-- verify counts rows by state, mismatches shows them, repair settles those that have diverged.
create table address (id integer, part integer, street text, primary key (part, id));
select zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar(6)',
    regex => '^(?<streetname>\D+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');
-- Written past the trigger, as a logical-replication worker or a bulk load would.
reset session authorization;
set session_replication_role = replica;
insert into address values
    (1, 1, 'Elm Street 1', 'Elm Street', '1'),      -- in sync
    (2, 1, null, null, null),                       -- in sync, but NULL where there will be NOT NULL
    (3, 1, 'Elm Street  2', 'Elm Street', '2'),     -- lossy: two spaces become one
    (4, 1, '5th Avenue', null, null),               -- unmatched
    (5, 1, 'Elm Street 3', null, null),             -- pending
    (6, 1, 'Elm Street 4', 'Oak Street', '4'),      -- diverged
    (7, 1, null, 'Oak Street', '5'),                -- diverged
    (8, 1, null, null, '6'),                        -- diverged, with a NULL
    (9, 1, '7th Avenue', 'Seventh Avenue', null),   -- diverged, and the old side does not match
    (10, 1, 'Oak Street', 'Oak', 'Street');         -- in sync by the join
reset session_replication_role;
set session authorization regress_owner;
select * from zdd.verify('address.street');
select relation, key, source, targets, kind from zdd.mismatches('address.street');
select relation, key, kind from zdd.mismatches('address.street', max_rows => 2);
select key, kind from zdd.mismatches('address.street', max_rows => 2147483647) where kind = 'diverged';

-- Refused.
:remember
select zdd.verify('nothing');
:refused
select zdd.verify(null);
:refused
select zdd.mismatches('nothing');
:refused
select zdd.mismatches('address.street', 0);
:refused
select zdd.mismatches('address.street', null);
:refused
begin;
call zdd.repair('address.street', 'new');
rollback;
:refused
call zdd.repair('address.street', 'both');
:refused
call zdd.repair('address.street', null);
:refused
call zdd.repair('nothing', 'new');
:refused

-- The new side wins.
create table saved as select * from address;
call zdd.repair('address.street', 'new');
select * from address order by id;
select * from zdd.verify('address.street');

-- The old side wins.
reset session authorization;
set session_replication_role = replica;
delete from address;
insert into address select * from saved;
reset session_replication_role;
set session authorization regress_owner;
call zdd.repair('address.street', 'old');
select * from address order by id;
select * from zdd.verify('address.street');
select event, detail from zdd.events;

-- Tables without a key, and in several parts.
create table parted (k integer, a text) partition by list (k);
create table parted1 partition of parted for values in (1);
create table parted2 (a text, dropped text, k integer);
alter table parted2 drop column dropped;
alter table parted attach partition parted2 for values in (2);
insert into parted values (1, 'x y'), (2, 'z w'), (2, null);
select zdd.split_column('parted', 'a', 'b text, c integer', delimiter => ' ');
select * from zdd.verify('parted.a');
select relation, key, source, targets, kind from zdd.mismatches('parted.a');
insert into parted values (2, 'v 7');
select relation, source, targets, kind from zdd.mismatches('parted.a');
select count(*) from zdd.mismatches('parted.a') as m join parted as p on p.tableoid = m.relation and p.ctid = m.ctid;
