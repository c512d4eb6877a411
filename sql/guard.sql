-- The guard looks at the state that DDL leaves behind. It runs with the rights of whoever runs the DDL, so that it
-- knows who makes a sync trigger; the library reads the catalog with its own.

create function zdd.guard() returns event_trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    touched oid[];
    made oid[];
begin
    if tg_event = 'sql_drop' then
        -- What no change can depend on is not worth a look.
        if exists (
            select from pg_event_trigger_dropped_objects() as d
            where not d.is_temporary and d.object_type not in ('index', 'view', 'materialized view', 'sequence', 'rule')
        ) then
            perform zdd._check_guard(
                null,
                '{}',
                array_agg(d.objid) filter (where d.object_type = 'table column'),
                array_agg(d.address_names[3]) filter (where d.object_type = 'table column'))
            from pg_event_trigger_dropped_objects() as d;
        end if;
        return;
    end if;
    -- DDL on relations concerns the changes of those relations; any other DDL may concern all.
    select
        array_agg(c.objid) filter (where c.classid = 'pg_class'::regclass),
        array_agg(c.objid) filter (where c.classid = 'pg_trigger'::regclass)
    into touched, made
    from pg_event_trigger_ddl_commands() as c
    where c.schema_name is distinct from 'pg_temp' and c.objid is not null
        and c.command_tag not in ('GRANT', 'REVOKE', 'COMMENT');
    if exists (
        select from pg_event_trigger_ddl_commands() as c
        where c.classid <> 'pg_class'::regclass and c.schema_name is distinct from 'pg_temp'
            and c.command_tag not in ('GRANT', 'REVOKE', 'COMMENT')
    ) then
        perform zdd._check_guard(null, made);
    elsif touched is not null then
        perform zdd._check_guard(touched);
    end if;
end
$$;
comment on function zdd.guard() is
    'Refuses DDL that would break an active change (SQLSTATE 55006), unless zdd.guard is off.';

create event trigger pg_zdd_guard on ddl_command_end execute function zdd.guard();
create event trigger pg_zdd_guard_drop on sql_drop execute function zdd.guard();
comment on event trigger pg_zdd_guard is 'Calls zdd.guard().';
comment on event trigger pg_zdd_guard_drop is 'Calls zdd.guard().';

create function zdd.guard_extension() returns event_trigger
language c as 'MODULE_PATHNAME', 'zdd_guard_extension';
comment on function zdd.guard_extension() is
    'Refuses to drop pg_zdd while there are active changes (SQLSTATE 2BP01), unless zdd.guard is off.';

create event trigger pg_zdd_guard_extension on ddl_command_start
when tag in ('DROP EXTENSION') execute function zdd.guard_extension();
comment on event trigger pg_zdd_guard_extension is 'Calls zdd.guard_extension().';

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
