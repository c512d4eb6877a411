#!/usr/bin/env bash
# soak.sh seconds [test…]: the tests that find more the longer they run, one after the other, each for so many seconds.
# SEED repeats what one of them has said.
source "$(dirname "$0")/common.sh"
find_pg_config
find_server_copy

# Each takes PG_ZDD_SOAK_SECONDS and PG_ZDD_SEED from its environment.
tests=(fuzz twin chaos)

export PG_ZDD_SOAK_SECONDS=${1:-600}
export PG_ZDD_SEED=${SEED:-${PG_ZDD_SEED:-}}
[ $# -le 1 ] || tests=("${@:2}")

say "building the release"
mkdir -p "$CARGO_TARGET_DIR/test-logs"
log="$CARGO_TARGET_DIR/test-logs/release"
{
    cargo pgrx install --release --pg-config "$server_pg_config" &&
        PG_CONFIG="$server_pg_config" cargo build --profile client -p pg_zdd_cluster --all-targets
} >"$log" 2>&1 || { cat "$log" && fail "the release does not build"; }

failed=()
for name in "${tests[@]}"; do
    say "$name, $PG_ZDD_SOAK_SECONDS s"
    PG_CONFIG="$server_pg_config" cargo test -q --profile client -p pg_zdd_cluster --test "$name" -- --nocapture ||
        failed+=("$name")
done
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
