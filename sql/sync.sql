-- The function of the sync triggers. PUBLIC may execute it, or the owner of a partitioned table could not add a partition;
-- the guard sees to it that only pg_zdd makes triggers with it.

create function zdd.sync() returns trigger
language c as 'MODULE_PATHNAME', 'zdd_sync';
comment on function zdd.sync() is
    'Carries each write from the side of a change that it was made on to the other side.';

-- PUBLIC may execute it for the same reason. It notes nothing but rows of tables of an active change.
create function zdd.watch() returns trigger
language c as 'MODULE_PATHNAME', 'zdd_watch';
comment on function zdd.watch() is
    'Notes for a contract, which looks at all rows meanwhile, those that are written and not plainly in sync.';

-- A publication FOR ALL TABLES has our tables too. What a publisher knows of its changes means nothing on a subscriber, where
-- ids and names may be those of other changes.
create function zdd.discard_replicated() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_stat_subscription as s where s.pid = pg_backend_pid()) then
        return null;
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$$;
comment on function zdd.discard_replicated() is 'Discards what logical replication brings for the tables of pg_zdd.';
revoke execute on function zdd.discard_replicated() from public;

do $$
declare
    name text;
begin
    foreach name in array array['change', 'event', 'event_error', 'lane', 'skipped', 'job', 'worker', 'sample',
        'built_index', 'guarded', 'written', 'archive']
    loop
        execute format('create trigger discard_replicated before insert or update or delete on zdd.%I
            for each row execute function zdd.discard_replicated()', name);
        execute format('alter table zdd.%I enable replica trigger discard_replicated', name);
    end loop;
end
$$;
