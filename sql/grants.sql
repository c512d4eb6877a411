-- Functions check for themselves whom they act for. Tables are written by the extension alone.

grant usage on schema zdd to public;
grant select on zdd.changes, zdd.events, zdd.progress, zdd.workers to public;

-- Whoever may dump the database may dump what pg_zdd knows. The texts of errors are not in there.
grant select on zdd.change, zdd.event, zdd.change_id_seq, zdd.event_id_seq to pg_database_owner;

-- What is internal is for the extension alone.
revoke execute on function zdd._check_move(text, text, text) from public;
