# Sourced by the other scripts: where things are.
#
#   PG_CONFIG           the server chosen by the caller
#   pg_major            its major version
#   PGRX_HOME           pgrx's configuration, our own, whatever HOME is
#   server_pg_config    the pg_config of our copy of that server's installation (see copy_server in setup.sh)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pgrx_version=0.18.1
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export PATH="$CARGO_TARGET_DIR/tools/bin:$PATH"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

versions=(15 16 17 18)

given_pg_config=${PG_CONFIG:-}
find_pg_config() {
    local version
    PG_CONFIG=$given_pg_config
    [ -z "$PG_CONFIG" ] || return 0
    for version in "${versions[@]}"; do
        PG_CONFIG=/usr/lib/postgresql/$version/bin/pg_config
        [ ! -x "$PG_CONFIG" ] || return 0
    done
    # Debian's pg_config on the path may be a placeholder that only says what to install.
    PG_CONFIG=
    ! pg_config --version >/dev/null 2>&1 || PG_CONFIG=$(command -v pg_config)
}

# The server must be able to read some of our folders. Run by root it runs as postgres, which cannot see into, say, /root.
readable_folder() {
    local folder="$CARGO_TARGET_DIR/$1"
    mkdir -p "$CARGO_TARGET_DIR"
    if [ "$(id -u)" = 0 ] && ! setpriv --reuid=postgres --regid=postgres --init-groups test -r "$CARGO_TARGET_DIR/."; then
        folder="/var/tmp/pg_zdd-$(cksum <<<"$folder" | cut -d' ' -f1)"
    fi
    echo "$folder"
}

find_server_copy() {
    pg_major=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
    export PGRX_HOME="$CARGO_TARGET_DIR/pg$pg_major/pgrx"
    server=$(readable_folder "pg$pg_major/server")
    mkdir -p "$CARGO_TARGET_DIR/pg$pg_major"
    server_pg_config=$server$(cat "$server/pg_config" 2>/dev/null || true)
}
