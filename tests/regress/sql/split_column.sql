\i tests/regress/preamble.sql
-- Beginning a change, as in the README.
create table address (
    id integer generated always as identity primary key,
    street text
);
insert into address (street) values
    ('Elm Street 12a'), ('Unter den Linden'), ('Straße des 17. Juni 135'), ('Main  St 5-7'), (''), (null);

select zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');
\d address

-- Existing rows are as they were, new ones carry both shapes.
insert into address (street) values ('Abbey Road 3');
insert into address (streetname, housenumber) values ('Baker Street', '221b');
select * from address order by id;
select change, relation, source, targets, phase, indexes, rows_split, batch_target, max_rows_per_second, started_by
from zdd.changes;
select jsonb_pretty(rule) from zdd.changes;
select change, event, detail, role from zdd.events;
