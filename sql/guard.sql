-- The guard looks at the state that DDL leaves behind, with the rights of whoever runs the DDL.

create function zdd.guard() returns event_trigger
language c as 'MODULE_PATHNAME', 'zdd_guard';
comment on function zdd.guard() is
    'Refuses DDL that would break an active change (SQLSTATE 55006), and to drop pg_zdd while there are active changes (2BP01), unless zdd.guard is off.';

-- These are the statements that can touch a table, its triggers, or what a rule uses.
create event trigger pg_zdd_guard on ddl_command_end
when tag in (
    'CREATE TABLE', 'ALTER TABLE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA',
    'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE FUNCTION', 'ALTER FUNCTION',
    'ALTER ROUTINE', 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER COLLATION', 'ALTER OPERATOR', 'REVOKE'
)
execute function zdd.guard();
create event trigger pg_zdd_guard_drop on sql_drop execute function zdd.guard();
create event trigger pg_zdd_guard_extension on ddl_command_start
when tag in ('DROP EXTENSION') execute function zdd.guard();
comment on event trigger pg_zdd_guard is 'Calls zdd.guard().';
comment on event trigger pg_zdd_guard_drop is 'Calls zdd.guard().';
comment on event trigger pg_zdd_guard_extension is 'Calls zdd.guard().';

-- The legal moves are written down in one place, in the library.
create function zdd.check_phase() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    perform zdd._check_move(old.name, old.phase, new.phase);
    return new;
end
$$;
comment on function zdd.check_phase() is 'Rejects moves between phases that do not exist (SQLSTATE 55000).';

create trigger check_phase before update of phase on zdd.change
for each row when (old.phase is distinct from new.phase) execute function zdd.check_phase();
