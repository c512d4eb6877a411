-- Who uses which side of a change.

create view zdd.usage as
select
    c.name as change,
    u.side,
    u.role,
    u.application_name,
    u.reads,
    u.writes,
    u.rows,
    u.conflicts,
    u.errors,
    u.first_seen,
    u.last_seen,
    u.sample_query,
    u.whole_row
from zdd.change as c
cross join lateral zdd.usage(c.id) as u
where c.relation is not null
order by c.started_at, u.side desc, u.last_seen desc nulls last;
comment on view zdd.usage is
    'Who reads and writes which side of each active change, in statements; empty unless the server preloads pg_zdd.';
comment on column zdd.usage.side is 'old (the source) or new (the targets).';
comment on column zdd.usage.role is 'Whom the session acted for, outside of all functions with rights of their own.';
comment on column zdd.usage.application_name is
    'Of the session, by its own choice; of a subscription its name; (other applications) if there was no room for all names.';
comment on column zdd.usage.reads is 'Statements that read the side.';
comment on column zdd.usage.writes is 'Statements that write the side; of a subscription, rows.';
comment on column zdd.usage.rows is 'Rows that these statements have returned or affected; those of COPY are not known.';
comment on column zdd.usage.conflicts is
    'Rows in which these statements wrote both sides, they disagreed, and what was written on this side gave way to the other: by the policy conflict, or because a row was saved as it was before it was split.';
comment on column zdd.usage.errors is
    'Statements that the split rejected, or that named the old column while it was fenced.';
comment on column zdd.usage.sample_query is
    'The beginning of one of the statements, renewed about once a minute. NULL unless you are a member of pg_read_all_stats.';
comment on column zdd.usage.whole_row is 'How many of the reads were of every column of the table, as with SELECT *.';

create view zdd.usage_info as
select i.recorded_since, i.saved_at, i.entries, i.entries_max, i.evicted, i.memory_bytes
from zdd.usage_info() as i;
comment on view zdd.usage_info is 'How usage is recorded; no row unless the server preloads pg_zdd.';
comment on column zdd.usage_info.recorded_since is 'Since when statements are seen: the start of the server.';
comment on column zdd.usage_info.saved_at is 'When usage was last saved since then.';
comment on column zdd.usage_info.evicted is 'Entries that had to make room for others since then: see zdd.usage_max.';

grant select on zdd.usage, zdd.usage_info to public;
