-- What users read.

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
    c.batch_target,
    c.max_rows_per_second,
    c.started_at,
    c.started_by
from zdd.change as c
left join zdd.lane as l on l.change_id = c.id
group by c.id
order by c.started_at;
comment on view zdd.changes is 'One row per change: where it stands and what its rule is.';
comment on column zdd.changes.rows_split is 'Rows that the backfill has split so far; live writes do not count.';

create view zdd.events as
select
    e.at,
    e.change,
    e.event,
    -- An error may quote a row.
    case
        when e.event <> 'error' or exists (
            select from zdd.change as c
            join pg_class as t on t.oid = c.relation
            where c.id = e.change_id and pg_has_role(t.relowner, 'usage')
        ) then e.detail
    end as detail,
    e.role
from zdd.event as e
order by e.id;
comment on view zdd.events is 'Everything that happened to changes: when, what, by whom.';

create view zdd.progress as
with lanes as (
    select
        l.change_id,
        sum(l.next_block - l.first_block)::bigint as blocks_done,
        sum(l.end_block - l.first_block)::bigint as blocks_total,
        sum(l.rows_split)::bigint as rows_split,
        min(l.started_at) as started_at,
        max(l.updated_at) as updated_at,
        (array_agg(l.batch_blocks order by l.updated_at desc))[1] as batch_blocks,
        (array_agg(l.batch_ms order by l.updated_at desc))[1] as batch_ms
    from zdd.lane as l
    group by l.change_id
),
workers as (
    select k.objid::bigint as change_id, count(distinct k.pid) as workers
    from pg_catalog.pg_locks as k
    where k.locktype = 'advisory'
        and k.classid = 2053399652::oid
        and k.objsubid = 2
        and k.database = (
            select d.oid from pg_catalog.pg_database as d
            where d.datname = pg_catalog.current_database()
        )
    group by k.objid
),
speed as (
    select
        l.change_id,
        l.rows_split / nullif(extract(epoch from l.updated_at - l.started_at), 0) as rows_per_second,
        l.blocks_done / nullif(extract(epoch from l.updated_at - l.started_at), 0) as blocks_per_second
    from lanes as l
)
select
    c.name as change,
    c.relation,
    c.phase,
    l.blocks_done,
    l.blocks_total,
    round(100.0 * l.blocks_done / nullif(l.blocks_total, 0), 1) as percent,
    l.rows_split,
    round(s.rows_per_second) as rows_per_second,
    make_interval(secs => round((l.blocks_total - l.blocks_done) / nullif(s.blocks_per_second, 0))::double precision)
        as eta,
    l.batch_blocks,
    round(l.batch_ms::numeric, 1) as batch_ms,
    coalesce(w.workers, 0) as workers,
    (select count(*) from zdd.skipped as k where k.change_id = c.id) as skipped_blocks,
    b.waiting_for,
    b.waiting_since,
    case
        when exists (select from pg_class as t where t.oid = c.relation and pg_has_role(t.relowner, 'usage'))
            then b.last_error
    end as last_error,
    b.last_error_at,
    l.started_at,
    l.updated_at
from zdd.change as c
join lanes as l on l.change_id = c.id
left join speed as s on s.change_id = c.id
left join workers as w on w.change_id = c.id
left join zdd.backfill as b on b.change_id = c.id
where c.phase = 'expanding'
order by c.started_at;
comment on view zdd.progress is 'One row per backfill that is not finished: how far it is, how fast, and what it waits for.';
comment on column zdd.progress.workers is 'Sessions working on it right now; 0 when it is paused or was interrupted.';
comment on column zdd.progress.last_error is 'Shown to the owner of the table: it may quote a row.';
comment on column zdd.progress.eta is 'Time left at the average speed so far.';
