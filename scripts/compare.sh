#!/usr/bin/env bash
# compare.sh commit: writes and a backfill under that commit and under this tree, in turn, on two scratch servers that run at
# the same time. Prints the median ratio of the rounds for each; ROUNDS (7) says how many.
source "$(dirname "$0")/common.sh"

main() {
    [ $# = 1 ] || fail "usage: make compare BASE=commit"
    find_pg_config
    find_server_copy
    build_base "$1"
    say "building this tree"
    cargo pgrx install --release --pg-config "$server_pg_config" >"$CARGO_TARGET_DIR/install.log" 2>&1 ||
        fail "$(cat "$CARGO_TARGET_DIR/install.log")"
    PG_CONFIG="$server_pg_config" cargo build -q --profile client -p pg_zdd_cluster --bin scratch
    export PATH="$("$server_pg_config" --bindir):$PATH"
    local scratch="$CARGO_TARGET_DIR/client/scratch"
    local settings=(-c shared_preload_libraries=pg_zdd -c zdd.auto_resume=off -c autovacuum=off)
    say "$1 and this tree, side by side"
    export PG_CONFIG="$base_pg_config" SETTINGS="${settings[*]}" THIS_PG_CONFIG="$server_pg_config" SCRATCH="$scratch"
    "$scratch" "${settings[@]}" bash "$PWD/scripts/compare.sh" --beside-base
}

# The other commit has its own folder, built by its own scripts, with our tools.
build_base() {
    local home="$CARGO_TARGET_DIR/compare"
    mkdir -p "$home/target"
    [ -e "$home/tree" ] || git worktree add -q --detach "$home/tree" "$1"
    git -C "$home/tree" checkout -q --detach "$1"
    [ -e "$home/target/tools" ] || ln -s "$CARGO_TARGET_DIR/tools" "$home/target/tools"
    say "building $1"
    base_pg_config=$(
        export CARGO_TARGET_DIR="$home/target"
        cd "$home/tree"
        scripts/setup.sh >&2
        source scripts/common.sh
        find_pg_config
        find_server_copy
        cargo pgrx install --release --pg-config "$server_pg_config" >"$CARGO_TARGET_DIR/install.log" 2>&1 ||
            fail "$(cat "$CARGO_TARGET_DIR/install.log")" >&2
        echo "$server_pg_config"
    )
}

sql() { PGHOST=$1 psql -XqAt -v ON_ERROR_STOP=1 postgres >/dev/null; }

# Milliseconds that a statement takes.
time_of() {
    PGHOST=$1 psql -XqAt -v ON_ERROR_STOP=1 postgres -c '\timing on' -c "$2" 2>/dev/null |
        sed -nE 's/^Time: ([0-9.]+).*/\1/p' | tail -1
}

regex="regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?\$', \"join\" => '{streetname}[ {housenumber}]'"

prepare() {
    sql "$1" <<SQL
create extension pg_zdd;
create table source as
select i as id, (array['Elm Street 12a', 'Unter den Linden', 'Straße des 17. Juni 135', 'Sonnenallee 5-7'])[1 + i % 4] as street, 'Berlin'::text as city
from generate_series(1, 200000) as i;
create table by_regex (id int, street text, city text);
select zdd.split_column('by_regex', 'street', 'streetname text not null, housenumber text', $regex);
create table by_sql (id int, street text, city text);
select zdd.split_column('by_sql', 'street', 'streetname text, housenumber text',
    split_sql => array['split_part(street, '' '', 1)', 'nullif(substr(street, length(split_part(street, '' '', 1)) + 2), '''')'],
    join_sql => 'streetname || coalesce('' '' || housenumber, '''')');
vacuum analyze;
SQL
}

# One run of a case on one server.
run() {
    local fill="insert into by_regex (id, street, city) select id, street, city from source"
    case $2 in
    insert_by_regex)
        sql "$1" <<<"truncate by_regex; checkpoint"
        time_of "$1" "$fill"
        ;;
    insert_by_sql)
        sql "$1" <<<"truncate by_sql; checkpoint"
        time_of "$1" "insert into by_sql (id, street, city) select id, street, city from source where id <= 60000"
        ;;
    update_of_another_column)
        sql "$1" <<<"truncate by_regex; $fill; vacuum by_regex; checkpoint"
        time_of "$1" "update by_regex set city = 'Bonn'"
        ;;
    backfill)
        sql "$1" <<<"set client_min_messages = warning; drop table if exists old; create table old as select * from source; insert into old select * from source;
            select zdd.split_column('old', 'street', 'streetname text not null, housenumber text', $regex); checkpoint"
        time_of "$1" "call zdd.backfill('old.street')"
        ;;
    esac
}

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }

compare() {
    local base=$1 this=$2 case round old new
    prepare "$base"
    prepare "$this"
    for case in insert_by_regex insert_by_sql update_of_another_column backfill; do
        : >"$log"
        for ((round = 0; round < ${ROUNDS:-7}; round++)); do
            old=$(run "$base" $case) new=$(run "$this" $case)
            echo "$old $new" | awk '{ printf "%.3f %s %s\n", $2 / $1, $1, $2 }' >>"$log"
        done
        printf '%-26s base %8s ms, this %8s ms, ratio %s of %s\n' "$case" "$(cut -d' ' -f2 "$log" | median)" \
            "$(cut -d' ' -f3 "$log" | median)" "$(cut -d' ' -f1 "$log" | median)" "$(cut -d' ' -f1 "$log" | xargs)"
    done
}

case ${1:-} in
--beside-base)
    export BASE_HOST=$PGHOST PG_CONFIG=$THIS_PG_CONFIG
    # shellcheck disable=SC2086
    exec "$SCRATCH" $SETTINGS bash "$PWD/scripts/compare.sh" --beside-both
    ;;
--beside-both)
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    compare "$BASE_HOST" "$PGHOST"
    ;;
*) main "$@" ;;
esac
