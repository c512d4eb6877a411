-- Functions check for themselves whom they act for. Tables are written by the extension alone.

grant usage on schema zdd to public;
grant select on zdd.changes, zdd.events, zdd.progress, zdd.workers to public;
