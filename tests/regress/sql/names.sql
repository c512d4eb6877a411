\i tests/regress/preamble.sql
-- Names that need quotes, are reserved, long, or not ASCII; and two changes on one table.
reset session authorization;
create schema "app's ""own""" authorization regress_owner;
set session authorization regress_owner;
create table "app's ""own"""."order" (
    "select" text default 'x y',
    "größe in m²" varchar(20),
    """quoted""" text
);
set search_path = "app's ""own""";
grant select ("größe in m²") on "order" to regress_app;
insert into "order" values ('a b', '1,50 x 2', '1'), (default, null, '2');
select zdd.split_column('order', 'select', '"from" text not null, "where" text default ''now''', delimiter => ' ');
select zdd.split_column('order', 'größe in m²', '"Höhe {m}" numeric(4, 2), "B\reite" integer, "%s" text',
    split_sql => array[
        $$replace(split_part("größe in m²", ' x ', 1), ',', '.')::numeric$$,
        $$split_part("größe in m²", ' x ', 2)::integer$$,
        $$'it''s'$$],
    join => '[{Höhe \{m\}}[ x {B\\reite}]]', change => 'höhe '' " \ {} %s');
select change, relation, source, targets, phase from zdd.changes;
insert into "order" ("from", "Höhe {m}", "B\reite") values ('c', 2.5, 3) returning *;
insert into "order" ("select", "größe in m²") values ('d e', '4 x 5') returning *;
\! tests/regress/session "call zdd.backfill('order.select')"
\! tests/regress/session "call zdd.backfill('höhe '' \" \\ {} %s')"
select * from "order" order by "select";
select zdd.fence('order.select');
select zdd.fence('höhe '' " \ {} %s');
\d "order"
insert into "order" ("from", "Höhe {m}") values ('f', 6);
select "select_zdd_fenced", "größe in m²_zdd_fenced" from "order" where "from" = 'f';
select relation, source, kind from zdd.mismatches('höhe '' " \ {} %s');
call zdd.contract('höhe '' " \ {} %s', force => true, accept_lossy => true);
select zdd.rollback('order.select');
\d "order"
-- The longest names there are; two whose beginnings are the same.
create table a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha (
    a_column_whose_name_has_exactly_the_63_bytes_that_postgresql_ha text,
    a_column_whose_name_has_exactly_the_63_bytes_that_postgresql_h2 text
);
select zdd.split_column('a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha', 'a_column_whose_name_has_exactly_the_63_bytes_that_postgresql_ha',
    'a_new_column_whose_name_has_exactly_the_63_bytes_postgresql_has text, x text', delimiter => ' ');
select zdd.split_column('a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha', 'a_column_whose_name_has_exactly_the_63_bytes_that_postgresql_h2',
    'a_new_column_whose_name_has_exactly_the_63_bytes_postgresql_ha2 text, y text', delimiter => ' ');
select tgname, length(tgname) from pg_trigger where tgrelid = 'a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha'::regclass order by tgname;
insert into a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha (x, y) values ('1', '2');
\x
table a_table_whose_name_has_exactly_the_63_bytes_that_postgresql_ha;
\x
-- Two of the same name in two schemas are told apart by a name of one's own.
create table app."order" ("select" text);
select zdd.split_column('app.order', 'select', 'x text', delimiter => ' ');
select zdd.split_column('order', 'select', 'x text', delimiter => ' ');
\echo :LAST_ERROR_SQLSTATE
select zdd.split_column('order', 'select', 'x text', delimiter => ' ', change => 'own order.select');
select change, relation from zdd.changes where phase = 'expanding' order by started_at;
reset session authorization;
set client_min_messages = warning;
drop schema "app's ""own""" cascade;
