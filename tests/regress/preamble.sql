\set ECHO none
-- Every test begins with \i tests/regress/preamble.sql, from the top of the repository: an empty schema "app" that
-- belongs to an ordinary role, that role's session, and no changes.
set client_min_messages = warning;
drop schema if exists app cascade;
truncate zdd.change, zdd.event, zdd.lane, zdd.skipped, zdd.job, zdd.worker, zdd.sample,
    zdd.built_index, zdd.guarded;
alter sequence zdd.change_id_seq restart;
create schema app authorization regress_owner;
grant usage on schema app to public;
reset client_min_messages;

-- After a statement that must fail: its SQLSTATE, and what it has left behind since the last :remember.
\set refused 'select regress.refused(:''LAST_ERROR_SQLSTATE'') \\g (format=unaligned tuples_only)'
\set remember 'select regress.remember() as done \\gset'

-- For tests/regress/session, which is another session of this role.
\setenv PGDATABASE :DBNAME
\set database :DBNAME
\setenv PGUSER regress_owner

\pset null NULL
-- The context of an error is where in the guard's PL/pgSQL it was raised.
\set SHOW_CONTEXT never
set search_path = app;
set session authorization regress_owner;
:remember
\set ECHO all
