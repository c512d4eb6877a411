-- What \df+ shows: units, defaults, errors and locks of each function. docs/reference.md has the rest.

comment on function zdd.split_column(regclass, name, text, text, text, text[], text, text, text, text, text[], text) is
'Begins a change: adds the new columns beside the old one, keeps both in sync from then on, and returns the name of the change (by default table.column).
columns: definitions as in CREATE TABLE (type, COLLATE, NOT NULL, DEFAULT with a constant). One of regex (named groups are the new columns), delimiter, split_sql (an IMMUTABLE SQL expression per new column, over the old one). One of join (template: {column}, [section left out when a column in it is NULL], \ escapes), join_sql; with delimiter it may be left out.
unmatched: what becomes of a value that the rule does not accept: null (default), whole (into the first column), error. conflict: who wins when one statement writes both sides and they disagree: new (default), old, error.
Locks: ACCESS EXCLUSIVE for catalog updates, tried for zdd.lock_timeout at a time, for zdd.lock_patience in all.
Errors: 55P03 lock not available, 42501 not the owner, 42703 no such column, 42701 a column exists, 55006 column in another change, 2201B invalid regex, 22023 invalid rule, 42P17 SQL that is not IMMUTABLE, 0A000 not supported.';

comment on function zdd.preview_split(regclass, name, text, text, text, text[], text, text, text, integer) is
'Applies a rule to about sample_rows rows (default 10000), taken evenly from all over the table, and changes nothing. Gives rows, share and up to five examples of each kind: matched, unmatched, null, and lossy (matched, but the new columns joined are not the old value again). Locks: ACCESS SHARE. Errors: as split_column.';

comment on procedure zdd.backfill(text, boolean) is
'Splits the rows that were there before the change, in transactions of about batch_target (default 50 ms), and moves the change to expanded when a look at every row finds nothing left. Prints its progress once a second. After an interruption the next call goes on where it stopped; several sessions may call it at once. Never overwrites what an application wrote and never waits for a row lock: locked rows are come back to.
fire_triggers (default false): fire the triggers of the table for the rows that are split.
Locks: ROW EXCLUSIVE; when the change becomes expanded ACCESS EXCLUSIVE, as split_column. Errors: 25001 inside a transaction block, 42704 no such change, 42501 not the owner.';

comment on function zdd.start_backfill(text, integer, boolean) is
'Hands the backfill of a change to background workers and returns its name. They begin when the transaction commits, and not at all when it does not. They split the rows as zdd.backfill does, vacuum the table, build the indexes that were asked for, and move the change to expanded. Where no worker slot is free, it is tried again later.
workers (default 1, at most 32): how many work at the same time; of those that run already, the surplus leaves. fire_triggers: as for backfill.
Locks: as backfill; SHARE UPDATE EXCLUSIVE for VACUUM and CREATE INDEX CONCURRENTLY. Errors: 42704 no such change, 42501 not the owner, 22023 invalid number, 55000 paused, 55006 being contracted; 0A000 from PREPARE TRANSACTION.';

comment on function zdd.start_contract(text, boolean, boolean, boolean, text) is
'Hands the contract of a change to a background worker, which begins when the transaction commits. What can be told without looking at rows is refused at once; what is found later stops the work, takes back a fence of its own, and is in zdd.progress and zdd.events. Arguments, locks and errors: as contract.';

comment on function zdd.pause(text) is
'Stops a backfill within a second, wherever it runs, until zdd.resume. An index that is being built, or a long batch, is begun again then. Returns the name of the change. Locks: none on the table. Errors: 42704 no such change, 42501 not the owner, 55000 nothing to pause.';

comment on function zdd.resume(text) is
'Goes on, in background workers, with a backfill or contract that was paused, stopped by an error, or left behind by workers or a session that are gone. What a session had begun gets one worker, and a NOTICE. Returns the name of the change. Locks: none on the table. Errors: 42704 no such change, 42501 not the owner, 55000 nothing to resume.';

comment on procedure zdd.wait_for(text, text, interval) is
'Waits until a change has reached a phase: expanding, expanded, fenced, contracted or rolled_back. timeout (default NULL): give up after so long. Locks: none. Errors: 55000 not reached in time, paused, or stopped by an error, which the DETAIL quotes; 25001 inside a transaction block; 42704 no such change; 42501 not the owner; 22023 no such phase.';

comment on function zdd.verify(text) is
'Looks at every row and counts: rows, in_sync (lossy included), unmatched (the rule does not accept the old value), pending (not split yet), diverged (the sides belong together in neither direction), lossy (the new columns joined would not give the old value), null_violations (NULL in a new column that is NOT NULL, pending rows left out). Locks: ACCESS SHARE. Errors: 42704 no such change, 42501 not the owner.';

comment on function zdd.mismatches(text, integer) is
'The rows behind the numbers of zdd.verify: up to max_rows (default 100) rows that are unmatched, pending, diverged, lossy or violate NOT NULL, with their primary key. Locks: ACCESS SHARE. Errors: as verify.';

comment on procedure zdd.repair(text, text) is
'Settles diverged rows by one side, in small transactions. winner: new or old. Locks: ROW EXCLUSIVE. Errors: 25001 inside a transaction block, 42704 no such change, 42501 not the owner, 22023 invalid winner.';

comment on function zdd.alter_change(text, text, text, interval, integer, text) is
'Changes what is not NULL: the policies unmatched and conflict; batch_target, the time that the work of a batch should take (1 ms to 10 s, default 50 ms); max_rows_per_second of the backfill (0 for no limit); run_if, an SQL expression that must be true for the backfill to go on ('''' for none), evaluated about twice a second as the owner of the table with search_path = pg_catalog, pg_temp. A running backfill follows with its next batch. Returns the name of the change. Locks: policies take ACCESS EXCLUSIVE as split_column does. Errors: 42704 no such change, 42501 not the owner, 22023 invalid value, 55000 unmatched => whole after expanding.';

comment on function zdd.fence(text) is
'Rehearses the contract: renames the old column out of the reach of applications; dual writes go on, views and indexes follow. Returns the phase. zdd.unfence takes it back at once. Locks: ACCESS EXCLUSIVE as split_column does. Errors: 55000 wrong phase, 55P03 lock not available, 42704 no such change, 42501 not the owner.';

comment on function zdd.unfence(text) is
'Gives a fenced column its name back. Returns the phase. Locks and errors: as fence.';

comment on procedure zdd.contract(text, boolean, boolean, boolean, text) is
'Drops the old column, sets NOT NULL where it was asked for, and removes the trigger. From expanded it passes through a fence of its own, which it takes back when it refuses.
accept_unmatched (default false): the values of unmatched rows may be lost. accept_lossy (default false): what the new columns do not say of the values of lossy rows may be lost. archive (default NULL): the name of a table that keeps, of each such row, its key, its old value, its kind (unmatched or lossy) and when, so that nothing is lost; the contract makes it as the owner of the table, or adds to one that another contract has made for a column of the same type. force (default false): do not wait until nobody has used the old column for zdd.quiet_period, as zdd.usage or a fence held that long shows.
Locks: scans under ACCESS SHARE and SHARE UPDATE EXCLUSIVE; ACCESS EXCLUSIVE as split_column does, for catalog updates. Errors: 55000 wrong phase, rows not in sync, unmatched or lossy; 23502 NULLs; 2BP01 objects depend on the column; 42602 not a name for an archive, 42P07 archive exists and is none, 3F000 no such schema; 55006 the column may be in use, or a background worker contracts; 25001 inside a transaction block; 55P03 lock not available; 42704 no such change; 42501 not the owner.';

comment on function zdd.rollback(text) is
'Gives a change up, in any phase before contracted: drops the new columns and the trigger, and a fenced old column gets its name back. Background workers that vacuum or build indexes are ended. Returns the phase. Locks: as fence. Errors: 2BP01 objects depend on a new column, 55P03 lock not available, 42704 no such change, 42501 not the owner.';

comment on function zdd.reset_usage(text) is
'Sets the counters of a change in zdd.usage to zero when the transaction commits, and returns its name. When somebody was last seen is kept: a contract still waits for them. Locks: none. Errors: 42704 no such change, 42501 not the owner, 0A000 from PREPARE TRANSACTION.';

comment on function zdd.usage(bigint) is 'Behind the view zdd.usage: what it shows of the change with this id.';
comment on function zdd.conflicts(bigint, oid) is 'Behind the column conflicts of the view zdd.changes.';
comment on function zdd.usage_info() is 'Behind the view zdd.usage_info.';

comment on function zdd._check_move(text, text, text) is 'Behind zdd.check_phase: an error if the move does not exist.';
