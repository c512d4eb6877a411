-- The function of the sync triggers. PUBLIC may execute it, or the owner of a partitioned table could not add a partition;
-- the guard sees to it that only pg_zdd makes triggers with it.

create function zdd.sync() returns trigger
language c as 'MODULE_PATHNAME', 'zdd_sync';
comment on function zdd.sync() is
    'Carries each write from the side of a change that it was made on to the other side.';
