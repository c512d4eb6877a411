#!/usr/bin/env bash
# client.sh package [argument…]: builds pg_zdd into our copy of the server and runs one of our programs beside it.
source "$(dirname "$0")/common.sh"
find_pg_config
find_server_copy

cargo pgrx install --release --pg-config "$server_pg_config" >"$CARGO_TARGET_DIR/install.log" ||
    fail "$(cat "$CARGO_TARGET_DIR/install.log")"
PG_CONFIG="$server_pg_config" exec cargo run -q --profile client -p "$1" -- "${@:2}"
