-- What users read.

-- The changes whose tables belong to the current role, or to one that it can act for.
create view zdd.owned as
select c.id
from zdd.change as c
join pg_class as t on t.oid = c.relation
where pg_has_role(t.relowner, 'usage');
comment on view zdd.owned is 'The active changes of tables that the current role can act for.';

create view zdd.changes as
select
    c.name as change,
    coalesce(c.relation::text, c.relation_name) as relation,
    c.source,
    c.targets,
    c.phase,
    c.phase_since,
    c.rule,
    c.indexes,
    coalesce(sum(l.rows_split), 0)::bigint as rows_split,
    zdd.conflicts(c.id, c.relation) as conflicts,
    c.batch_target,
    c.max_rows_per_second,
    -- The owner's own code, which may say much of what only they know.
    case when c.id in (select o.id from zdd.owned as o) then c.run_if end as run_if,
    c.started_at,
    c.started_by
from zdd.change as c
left join zdd.lane as l on l.change_id = c.id
group by c.id
order by c.started_at;
comment on view zdd.changes is 'One row per change: where it stands and what its rule is.';
comment on column zdd.changes.rows_split is 'Rows that the backfill has split so far; live writes do not count.';
comment on column zdd.changes.conflicts is
    'Rows in which one statement wrote both sides, they disagreed, and one gave way: the sum of conflicts in zdd.usage, roles that are gone included. NULL unless the server preloads pg_zdd, and when the change is over.';

create view zdd.events as
select
    e.at,
    e.change,
    e.event,
    -- The text of an error may quote a row.
    case
        when e.change_id not in (select o.id from zdd.owned as o) then e.detail - 'run_if'
        when x.event_id is null then e.detail
        else e.detail || jsonb_strip_nulls(jsonb_build_object('error', x.error, 'detail', x.detail, 'hint', x.hint))
    end as detail,
    e.role
from zdd.event as e
left join zdd.event_error as x on x.event_id = e.id
order by e.id;
comment on view zdd.events is 'Everything that happened to changes: when, what, by whom.';

-- Those who hold a lock are alive; what zdd.worker says of others is history.
create view zdd.workers as
select
    c.name as change,
    k.pid,
    case when w.slot < 32 then 'background worker' else 'session' end as kind,
    w.doing,
    case
        when w.waiting_for is null or pg_has_role('pg_read_all_stats', 'usage') then w.waiting_for
        when c.id in (select o.id from zdd.owned as o) then w.waiting_for
        else '(for the owner of the table to see)'
    end as waiting_for,
    w.waiting_since,
    w.started_at
from zdd.worker as w
join zdd.change as c on c.id = w.change_id
join pg_catalog.pg_locks as k on k.locktype = 'userlock'
    and k.classid = 2053399652::oid
    and k.objid = ((w.change_id * 64 + w.slot) % 4294967296)::oid
    and k.pid = w.pid
    and k.database = (
        select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database()
    )
order by c.name, w.slot;
comment on view zdd.workers is 'One row per background worker or session that works for a change right now.';
comment on column zdd.workers.doing is 'What it does.';
comment on column zdd.workers.waiting_for is 'What it waits for before it goes on, and why.';

create view zdd.progress as
with lanes as (
    select
        l.change_id,
        sum(l.next_block - l.first_block)::bigint as blocks_done,
        sum(l.end_block - l.first_block)::bigint as blocks_total,
        sum(l.rows_split)::bigint as rows_split,
        sum(l.wal_bytes)::bigint as wal_bytes,
        min(l.started_at) as started_at,
        max(l.updated_at) as updated_at,
        (array_agg(l.batch_blocks order by l.updated_at desc))[1] as batch_blocks,
        (array_agg(l.batch_ms order by l.updated_at desc))[1] as batch_ms
    from zdd.lane as l
    group by l.change_id
),
live as (
    select k.database, k.objid::bigint / 64 as change
    from pg_locks as k
    where k.locktype = 'userlock' and k.classid = 2053399652::oid and k.objid::bigint % 64 < 32 and k.granted
),
quota as (
    select coalesce(nullif(current_setting('zdd.max_workers', true), '')::integer, 8) as most,
        (select count(*) from live) as live
),
-- Of an owner's changes in this database.
shares as (
    select g.owner, count(*) as live
    from live as l
    join zdd.change as c on c.id % 67108864 = l.change and c.relation is not null
    join zdd.guarded as g on g.change_id = c.id
    join pg_roles as r on r.oid = g.owner and not r.rolsuper
    where l.database = (select d.oid from pg_database as d where d.datname = current_database())
    group by g.owner
),
workers as (
    select
        w.change,
        count(*) as workers,
        string_agg(distinct w.doing, ', ') as doing,
        (array_agg(w.waiting_for order by w.waiting_since) filter (where w.waiting_for is not null))[1] as waiting_for,
        min(w.waiting_since) filter (where w.waiting_for is not null) as waiting_since
    from zdd.workers as w
    group by w.change
),
-- The speed over the last minute, over the last ten seconds, and since the beginning, of what is being worked on.
speeds as (
    select
        l.change_id,
        (l.rows_split - m.rows_split) / nullif(extract(epoch from n.now - m.at), 0) as rows_per_second,
        (l.blocks_done - m.blocks_done) / nullif(extract(epoch from n.now - m.at), 0) as last_minute,
        (l.blocks_done - t.blocks_done) / nullif(extract(epoch from n.now - t.at), 0) as last_seconds,
        l.blocks_done / nullif(extract(epoch from l.updated_at - l.started_at), 0) as overall,
        l.rows_split / nullif(extract(epoch from l.updated_at - l.started_at), 0) as rows_overall
    from lanes as l
    join zdd.change as c on c.id = l.change_id
    join workers as w on w.change = c.name
    cross join (select clock_timestamp() as now) as n
    left join lateral (
        select s.at, s.rows_split, s.blocks_done from zdd.sample as s
        where s.change_id = l.change_id and s.at > n.now - interval '60 seconds'
        order by s.at limit 1
    ) as m on true
    left join lateral (
        select s.at, s.blocks_done from zdd.sample as s
        where s.change_id = l.change_id and s.at > n.now - interval '10 seconds'
        order by s.at limit 1
    ) as t on true
    where c.relation is not null
)
select
    c.name as change,
    c.relation,
    c.phase,
    coalesce(j.kind, 'backfill') as job,
    case
        when j.stopped = 'paused' then 'paused'
        when j.stopped = 'error' then 'stopped'
        when w.workers is null then case when j.workers > 0 then 'starting' else 'interrupted' end
        when w.waiting_for is not null then 'waiting'
        else 'running'
    end as state,
    w.doing,
    l.blocks_done,
    l.blocks_total,
    round(100.0 * l.blocks_done / nullif(l.blocks_total, 0), 1) as percent,
    l.rows_split,
    round(coalesce(s.rows_per_second, s.rows_overall)) as rows_per_second,
    make_interval(secs => round((l.blocks_total - l.blocks_done)
        / nullif(greatest(s.last_minute, s.last_seconds, s.overall), 0))::double precision) as eta_min,
    make_interval(secs => round((l.blocks_total - l.blocks_done)
        / nullif(least(s.last_minute, s.last_seconds, s.overall), 0))::double precision) as eta_max,
    l.batch_blocks,
    round(l.batch_ms::numeric, 1) as batch_ms,
    coalesce(w.workers, 0) as workers,
    coalesce(j.workers, 0) as workers_requested,
    (select count(*) from zdd.skipped as k where k.change_id = c.id) as skipped_blocks,
    case
        -- Workers of another server cannot be seen.
        when w.workers is null and j.stopped is null and pg_catalog.pg_is_in_recovery()
            then 'the primary server, which does the work'
        when w.workers is null and j.workers > 0 and j.stopped is null and q.live >= q.most
            then 'a background worker: all of zdd.max_workers are at work'
        when w.workers is null and j.workers > 0 and j.stopped is null and h.live >= (q.most + 1) / 2
            then 'a background worker: other changes of the same owner have all that one owner gets of zdd.max_workers'
        when w.workers is null and j.workers > 0 and j.stopped is null
            then 'a free background worker slot (max_worker_processes), or the launcher'
        when w.workers is null and j.workers = 0 and j.stopped is null
            then 'a call of zdd.resume, zdd.start_backfill or zdd.backfill'
        -- It may name standbys.
        when c.id in (select o.id from zdd.owned as o) or pg_has_role('pg_read_all_stats', 'usage') then w.waiting_for
        when w.waiting_for is not null then '(for the owner of the table to see)'
    end as waiting_for,
    case
        when w.workers is null and j.change_id is not null and j.stopped is null
            then greatest(j.requested_at, l.updated_at)
        else w.waiting_since
    end as waiting_since,
    j.stopped_at,
    j.stopped_by,
    case when c.id in (select o.id from zdd.owned as o) then j.last_error end as last_error,
    case when c.id in (select o.id from zdd.owned as o) then j.last_error_hint end as last_error_hint,
    j.last_error_at,
    l.wal_bytes,
    l.started_at,
    l.updated_at
from zdd.change as c
left join zdd.job as j on j.change_id = c.id
left join lanes as l on l.change_id = c.id
left join speeds as s on s.change_id = c.id
left join workers as w on w.change = c.name
cross join quota as q
left join zdd.guarded as g on g.change_id = c.id
left join shares as h on h.owner = g.owner
where c.relation is not null and (j.change_id is not null or (c.phase = 'expanding' and l.change_id is not null))
order by c.started_at;
comment on view zdd.progress is
    'One row per backfill or contract that is not finished: how far it is, how fast, and what it waits for.';
comment on column zdd.progress.state is
    'running; waiting: see waiting_for; paused: by zdd.pause; stopped: by an error; starting: no background worker has begun yet; interrupted: the session that did it is gone.';
comment on column zdd.progress.workers is 'Background workers and sessions that work on it right now.';
comment on column zdd.progress.workers_requested is 'Background workers that it is to have.';
comment on column zdd.progress.rows_per_second is 'Over the last minute; NULL when nobody works on it.';
comment on column zdd.progress.eta_min is
    'Time left at the highest of the speeds over the last ten seconds, the last minute and since the beginning; NULL when nobody works on it.';
comment on column zdd.progress.eta_max is 'Time left at the lowest of these speeds; NULL while it stands still.';
comment on column zdd.progress.batch_ms is 'What the work of the last batch took, in milliseconds.';
comment on column zdd.progress.last_error is 'Shown to the owner of the table: it may quote a row.';
comment on column zdd.progress.wal_bytes is 'Bytes of WAL that the backfill has written.';
