\i tests/regress/preamble.sql
-- How writes are carried over. tests/cluster has every case; these are the ones to read first.
create table address (id integer primary key, street text, note text);
insert into address values (1, 'Elm Street 12a'), (2, 'Main  St 5');
select zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar(8)',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');
grant select, insert, update on address to regress_app;
set session authorization regress_app;

-- The old application inserts, then the new one.
insert into address values (3, 'Abbey Road 3'), (4, 'Broadway'), (5, ''), (6, null), (7, 'Long Lane 123456789');
insert into address (id, streetname, housenumber) values (8, 'Baker Street', '221b'), (9, 'Unter den Linden', null);
table address order by id;

-- Either updates its side; an update of another column recomputes nothing.
update address set street = 'Penny Lane 1' where id = 3 returning *;
update address set housenumber = '2' where id = 3 returning *;
update address set street = null where id = 3 returning *;
update address set streetname = 'Oak  Avenue' where id = 4 returning *;
update address set note = 'unrelated' where id = 4 returning *;

-- A row that is not split yet: any update splits it; what the new application leaves alone is as it was.
update address set note = 'unrelated' where id = 2 returning *;
update address set housenumber = '13' where id = 1 returning *;

-- Both sides at once: they agree, or the new side wins.
insert into address values (10, 'High Street 1', null, 'High Street', '1') returning *;
insert into address values (11, 'High Street 1', null, 'Low Road', '2') returning *;
update address set street = 'High Street 1', housenumber = '3' where id = 11 returning *;

-- NOT NULL holds for the new application alone, and names what the real constraint would name.
insert into address (id, housenumber) values (12, '1');
\echo :LAST_ERROR_SQLSTATE
update address set streetname = null where id = 8;
\echo :LAST_ERROR_SQLSTATE
insert into address (id) values (12) returning *;

-- A value that the old column cannot take, or that a constraint refuses.
set session authorization regress_owner;
create table short (code varchar(6) check (code <> 'a b'));
select zdd.split_column('short', 'code', 'x text, y text', delimiter => ' ');
insert into short (x, y) values ('abcdef', 'g');
\echo :LAST_ERROR_SQLSTATE
insert into short (x, y) values ('a', 'b');
insert into short (x, y) values ('abc', 'de') returning *;

-- The policies for values that do not match.
select zdd.alter_change('address.street', unmatched => 'whole');
insert into address (id, street) values (13, ''), (14, 'Long Lane 123456789') returning *;
select zdd.alter_change('address.street', unmatched => 'error');
insert into address (id, street) values (15, 'Long Lane 123456789');
\echo :LAST_ERROR_SQLSTATE
update address set street = 'Long Lane 123456789' || repeat('!', 200) where id = 3;
\echo :LAST_ERROR_SQLSTATE
insert into address (id, street) values (15, 'Short Lane 1') returning *;

-- The policies for two sides that disagree.
select zdd.alter_change('address.street', conflict => 'old');
insert into address values (16, 'High Street 1', null, 'Low Road', '2') returning *;
select zdd.alter_change('address.street', conflict => 'error');
insert into address values (17, 'High Street 1', null, 'Low Road', '2');
\echo :LAST_ERROR_SQLSTATE
update address set street = 'x 1', streetname = 'y', housenumber = null where id = 16;
\echo :LAST_ERROR_SQLSTATE
insert into address values (17, 'High Street 1', null, 'High Street', '1') returning *;

-- Values longer than zdd.max_source_length do not match.
select zdd.alter_change('address.street', unmatched => 'null');
insert into address (id, street) values (18, repeat('x', 65536)), (19, repeat('x', 65537));
select id, length(street), length(streetname), housenumber from address where id in (18, 19);
