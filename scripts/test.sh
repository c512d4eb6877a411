#!/usr/bin/env bash
# Every test: unit, property and #[pg_test] (cargo pgrx test), pg_regress, and the tests in tests/cluster, examples and
# bench.
# `test.sh NAME…` runs some of the three: pg_test, regress, cluster.
source "$(dirname "$0")/common.sh"
find_pg_config
find_server_copy
logs="$CARGO_TARGET_DIR/test-logs"
mkdir -p "$logs"
summary=()
failed=

# Runs one part and keeps what it said: a failure does not stop the others.
part() {
    local name=$1 started=$SECONDS result=passed
    say "$name"
    "$@" 2>&1 | tee "$logs/$name" || { result=FAILED && failed=yes; }
    summary+=("$(printf '%-8s %s  %s (%s s)' "$name" "$result" "$(count "$logs/$name")" $((SECONDS - started)))")
}

# Adds up cargo's and pg_regress's own summaries.
count() {
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
         /^(test|ok) .* ok / || /^ok [0-9]/ { regress++ }
         /^(test|not ok) .* FAILED / || /^not ok [0-9]/ { broken++ }
         END { printf "%d passed, %d failed, %d ignored", passed + regress, failed + broken, ignored }' "$1"
}

# pgrx starts a server of its own. It needs a folder with a short path (its socket lies there), and an owner that is
# not root.
pg_test() {
    local dir runas=() status=0
    dir=$(mktemp -d /tmp/pg_zdd.XXXXXX)
    if [ "$(id -u)" = 0 ]; then
        chown postgres "$dir"
        runas=(--runas postgres)
    fi
    USER=$(id -un) cargo pgrx test "pg$pg_major" "${runas[@]}" --pgdata "$dir" || status=$?
    rm -rf "$dir"
    return $status
}

# The tests below want the extension as users get it, without pgrx's test functions.
release() {
    cargo pgrx install --release --pg-config "$server_pg_config" &&
        PG_CONFIG="$server_pg_config" cargo build --profile client -p pg_zdd_cluster --all-targets
}

regress() {
    local tests status=0
    # setup makes what all others need; these need nothing of each other. Most run on a server that does not preload
    # pg_zdd, as CREATE EXTENSION alone must do.
    tests=$(cd tests/regress/sql && printf '%s\n' *.sql | sed -e 's/\.sql$//' -e '/^setup$/d' -e '/^usage$/d')
    # shellcheck disable=SC2086 # one word per test
    pg_regress "" $tests || status=1
    pg_regress pg_zdd usage || status=1
    return $status
}

# pg_regress preloaded test…
pg_regress() {
    local preloaded=$1 bindir
    bindir=$("$server_pg_config" --bindir)
    # Rust would add its backtrace to the detail of errors. The tests' own psql calls use the server's psql.
    env -u RUST_BACKTRACE -u RUST_LIB_BACKTRACE PATH="$bindir:$PATH" PG_CONFIG="$server_pg_config" \
        "$CARGO_TARGET_DIR/client/scratch" -c max_prepared_transactions=2 -c shared_preload_libraries="$preloaded" \
        "$(dirname "$("$server_pg_config" --pgxs)")/../test/regress/pg_regress" \
        --bindir="$bindir" --inputdir=tests/regress --outputdir="$CARGO_TARGET_DIR/regress" \
        --dbname=regress setup "${@:2}" ||
        { cat "$CARGO_TARGET_DIR/regress/regression.diffs" && return 1; }
}

# The tests of one program run side by side, more of them than there are processors: they wait more than they compute.
cluster() {
    RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))} PG_CONFIG="$server_pg_config" \
        cargo test --profile client -p pg_zdd_cluster -p pg_zdd_examples -p pg_zdd_bench --no-fail-fast
}

wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(pg_test regress cluster)
for name in "${wanted[@]}"; do
    if [ "$name" != pg_test ] && [ -z "${released:-}" ]; then
        released=yes
        say "building the release"
        release >"$logs/release" 2>&1 || { cat "$logs/release" && fail "the release does not build"; }
    fi
    part "$name"
done

say "summary"
printf '%s\n' "${summary[@]}"
[ -z "$failed" ]
