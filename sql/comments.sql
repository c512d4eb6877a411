-- What \df+ shows. Units, defaults, errors and locks of each function; docs/reference.md has the rest.

comment on function zdd.split_column(regclass, name, text, text, text, text[], text, text, text, text, text[], text) is
'Begins a change: adds the new columns beside the old one and keeps both in sync from then on. Returns the change''s name, by default table.column. Exactly one of regex, delimiter, split_sql; join or join_sql (with delimiter optional). unmatched: null, whole or error; conflict: new, old or error. Locks the table ACCESS EXCLUSIVE for catalog updates, waiting at most zdd.lock_timeout at a time, for zdd.lock_patience in all (SQLSTATE 55P03 after that).';
