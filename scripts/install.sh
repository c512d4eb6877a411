#!/usr/bin/env bash
# Builds pg_zdd and installs it into the server of PG_CONFIG, with sudo when its folders are not ours to write.
source "$(dirname "$0")/common.sh"
find_pg_config
find_server_copy

package="$CARGO_TARGET_DIR/pg$pg_major/package"
rm -rf "$package"
cargo pgrx package --pg-config "$PG_CONFIG" --out-dir "$package"

as_owner=
[ -w "$("$PG_CONFIG" --pkglibdir)" ] && [ -w "$("$PG_CONFIG" --sharedir)/extension" ] || as_owner=as_root
(cd "$package" && find . -type f) | while read -r file; do
    # install(1) replaces a file instead of writing into it: a running server keeps the library it has mapped.
    $as_owner install -D -m 644 "$package/$file" "/$file"
done
say "installed into $("$PG_CONFIG" --version): $("$PG_CONFIG" --pkglibdir)"
