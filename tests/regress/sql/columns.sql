\i tests/regress/preamble.sql
-- The columns argument: what PostgreSQL's own parser makes of it, and what of that is accepted.
create table t (id integer primary key, a text);
insert into t values (1, 'x,1');
:remember

-- Types, collations, NOT NULL and DEFAULT. Names are read as PostgreSQL reads them, and keep their quoting.
create domain "My Type" as varchar(20);
create function seven() returns integer language sql immutable return 7;
:remember
select zdd.split_column('t', 'a', delimiter => ',', columns => $$
    Plain text,
    "Quoted ""Name""" character varying(10) collate "C" not null default 'it''s' || ' here',
    "größe" numeric(8, 2) default 1 + 1, -- with a comment
    "select" char(3) null,
    b "My Type",
    c int4 default seven()
$$);
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => $$
    Plain text,
    "Quoted ""Name""" character varying(10) collate "C" not null default 'it''s' || ' here',
    "größe" numeric(8, 2) default 1 + 1, -- with a comment
    "select" char(3) null,
    b "My Type",
    c int4 default 3 + 4
$$);
select * from regress.columns;
-- Rows that are there do not get the defaults; new ones do.
select * from t;
insert into t (id) values (2);
insert into t (id, a) values (3, 'y,"z",3.50,ab,,9');
select * from t;
select zdd.rollback('t.a');
:remember

-- Not column definitions.
select zdd.split_column('t', 'a', delimiter => ',', columns => null);
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => ' ');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text,');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text c text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'like t');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text /* never closed');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, "c text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, c text, b integer');
:refused

-- Attempts at more than that.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text); drop table t; create table x (c text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) inherits (t');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) with (fillfactor = 10');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) tablespace pg_default --');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) partition by list (b');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) using heap --');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text) on commit drop --');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text); select pg_sleep(60) --');
:refused

-- Constraints wait until after the contract.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text check (b <> '''')');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text unique');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b integer primary key');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b integer references t');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b integer generated always as identity');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text generated always as (lower(a)) stored');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text not null deferrable');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text constraint filled not null');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, unique (b)');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, check (b is not null)');
:refused

-- Types.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b strange');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b varchar(0)');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b setof text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b serial');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text[]');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b date');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b anyelement');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b t');
:refused
create domain filled as text check (value <> '');
create domain given as text not null;
:remember
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b filled');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, c given');
:refused

-- Collations.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text collate nowhere');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b integer collate "C"');
:refused

-- Defaults.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b integer default ''x''');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text default a');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text default (select 1)');
:refused

-- Names that are taken, too long, or PostgreSQL's own.
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, id text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, a text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text, ctid text');
:refused
select zdd.split_column('t', 'a', delimiter => ',', change => 'long', columns =>
    'b text, a_name_that_is_one_letter_longer_than_the_63_that_postgresql_has text');
select zdd.rollback('long');
:remember

-- Clauses that contradict each other, or would be lost.
begin;
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text default 1 default 2');
rollback;
:refused
begin;
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text null not null');
rollback;
:refused
begin;
select zdd.split_column('t', 'a', delimiter => ',', columns => 'b text compression pglz');
rollback;
:refused
