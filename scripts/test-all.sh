#!/usr/bin/env bash
# Every test on every version of PostgreSQL: on the first all of them, on the others all that need a server. A version
# that there is no server of counts as a failure.
# `test-all.sh quick`: on the others without the programs of tests/cluster that go on for long, and with a library that has
# Rust's assertions on.
source "$(dirname "$0")/common.sh"

# They look for rare orders of events, or measure. Which version it is makes no difference to what they are about.
long=(bounds crash fuzz model space twin worker)

short_tests() {
    local path name
    for path in tests/cluster/tests/*; do
        name=$(basename "$path" .rs)
        [[ " ${long[*]} " == *" $name "* ]] || { [ -d "$path" ] && [ ! -e "$path/main.rs" ]; } || printf '%s ' "$name"
    done
}

results=()
failed=
before=
for version in "${versions[@]}"; do
    say "PostgreSQL $version"
    if ! pg_config=$(scripts/servers.sh "$version"); then
        results+=("PostgreSQL $version: NOT RUN: there is no server of it here")
        failed=yes
        continue
    fi
    # Where pg_upgrade comes from: the version before, as its own tests have left it. Not from 15, which is newer than the
    # wheels: the pg_attver that Debian's 15.20 writes into pg_attribute.attoptions is unknown to 16.14 and 17.10.
    settings=(PG_CONFIG="$pg_config")
    [ "$version" = 16 ] || settings+=(PG_ZDD_UPGRADE_FROM="$before")
    before=
    started=$SECONDS
    logs="$CARGO_TARGET_DIR/test-logs"
    rm -f "$logs/summary"
    if [ "$version" != "${versions[0]}" ]; then
        settings+=(WITHOUT_PURE=1)
        if [ "${1:-}" = quick ]; then
            settings+=(CLUSTER_TESTS="$(short_tests)" DEBUG=1)
        fi
    fi
    env "${settings[@]}" bash -c 'scripts/setup.sh && scripts/test.sh' || failed=yes
    before=$(PG_CONFIG="$pg_config" bash -c 'source scripts/common.sh && find_pg_config && find_server_copy && echo "$server_pg_config"')
    results+=("$("$pg_config" --version): $((SECONDS - started)) s")
    [ -e "$logs/summary" ] || results+=("  nothing was run")
    while read -r line; do results+=("  $line"); done < <(cat "$logs/summary" 2>/dev/null)
    mkdir -p "$logs/$version"
    find "$logs" -maxdepth 1 -type f -exec mv -t "$logs/$version" {} +
done

say "summary of all versions"
printf '%s\n' "${results[@]}"
[ -z "$failed" ]
