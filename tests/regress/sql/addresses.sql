\i tests/regress/preamble.sql
-- Hard cases of the README's rule, and what becomes of them: written before the change, by the old application, and
-- read back through the join by the new one.
create table address (id integer generated always as identity primary key, street text);
create table cases (id integer generated always as identity, street text);
insert into cases (street) values
    ('Elm Street 12a'),                                 -- the plain case
    ('Elm Street'),                                     -- no number
    ('Main St 5-7'),
    ('Main  St   5-7'),                                 -- spaces that a join does not give back
    (' Main St 5 '),                                    -- and at the ends
    ('Unter den Linden'),
    ('Straße des 17. Juni 135'),                        -- a number inside the name
    ('Straße des 17. Juni'),
    ('5th Avenue 350'),
    ('12'),                                             -- nothing but a number
    ('1600 Pennsylvania Ave NW'),                       -- the number first
    ('Rue de la République 3 bis'),
    ('شارع التحرير ١٢'),                                 -- right to left, other digits
    ('רחוב הרצל 12'),
    (E'Elm\tStreet\u00a012'),                           -- a tab, a no-break space
    (E'Elm Street\n12'),                                -- two lines
    ('東京都千代田区1-1'),
    (''),
    (' '),
    (null);
insert into cases (street) values (repeat('x', 70 * 1024)), (repeat('y', 65530) || ' 12');
insert into address (street) select street from cases order by id;
select zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join => '{streetname}[ {housenumber}]');
\! tests/regress/session "call zdd.backfill('address.street')"
insert into address (street) select street from cases order by id;
select c.id, left(c.street, 30) as street, octet_length(c.street) as bytes,
    left(backfilled.streetname, 30) as streetname, left(backfilled.housenumber, 30) as housenumber,
    (backfilled.streetname, backfilled.housenumber) is not distinct from (written.streetname, written.housenumber)
        as same_when_written
from cases as c
join address as backfilled on backfilled.id = c.id
join address as written on written.id = c.id + (select count(*) from cases)
order by c.id;
select * from zdd.verify('address.street');
select key, octet_length(source) as bytes, targets ->> 'streetname' as streetname, targets ->> 'housenumber' as housenumber, kind
from zdd.mismatches('address.street') where (key ->> 'id')::integer <= (select count(*) from cases) order by (key ->> 'id')::integer;
