#!/usr/bin/env bash
# Installs what is missing: system packages (Debian and Ubuntu), cargo-pgrx, and a copy of the PostgreSQL installation
# that the tests and the demo may install pg_zdd into. Quick when all is there.
source "$(dirname "$0")/common.sh"

main() {
    find_pg_config
    system_packages
    rust_toolchain
    cargo_pgrx
    find_server_copy
    copy_server
    pgrx_init
}

has() { command -v "$1" >/dev/null; }
has_server() { [ -x "$PG_CONFIG" ] && [ -x "$("$PG_CONFIG" --bindir)/postgres" ]; }
has_server_headers() { [ -x "$PG_CONFIG" ] && [ -e "$("$PG_CONFIG" --includedir-server)/postgres.h" ]; }
has_libclang() { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang.so*' >/dev/null; }

system_packages() {
    local missing=()
    has cc && has make || missing+=(build-essential)
    has pkg-config || missing+=(pkg-config)
    has pkg-config && pkg-config --exists openssl || missing+=(libssl-dev)
    has_libclang || missing+=(libclang-dev)
    has clang || compgen -c clang- >/dev/null || missing+=(clang)
    has sudo || missing+=(sudo)
    has_server || missing+=(postgresql)
    has_server_headers || missing+=(postgresql-server-dev)
    [ ${#missing[@]} -gt 0 ] || return 0

    has apt-get || fail "missing: ${missing[*]}" \
        "There is no apt-get here. Please install what these Debian packages hold (for PostgreSQL any of ${versions[*]} will do," \
        "with its server headers; tell us with PG_CONFIG=/path/to/pg_config), then try again."
    [ "$(id -u)" = 0 ] || has sudo || fail "missing: ${missing[*]}" "Installing them takes root or sudo."
    say "installing ${missing[*]}"
    as_root scripts/apt-install.sh "${missing[@]}"
    find_pg_config
    has_server && has_server_headers || fail "$PG_CONFIG is no complete server with its headers"
}

rust_toolchain() {
    has cargo || fail "There is no cargo here. Install Rust first: https://rustup.rs"
    has cargo-clippy && has rustfmt || echo "note: make lint needs clippy and rustfmt (rustup component add clippy rustfmt)"
}

cargo_pgrx() {
    [ "$(cargo pgrx --version 2>/dev/null)" = "cargo-pgrx $pgrx_version" ] && return
    say "installing cargo-pgrx $pgrx_version below $CARGO_TARGET_DIR/tools (some minutes)"
    env -u CARGO_TARGET_DIR cargo install --locked --root "$CARGO_TARGET_DIR/tools" cargo-pgrx --version "$pgrx_version"
}

# PostgreSQL finds its folders from where its programs are, so an installation can be had twice: the programs as
# copies, all else as links into the real one. An extension installed into the copy is seen by scratch servers only.
copy_server() {
    local stamp
    # Another server, or an extension that was installed or removed.
    stamp="$("$PG_CONFIG" --version --bindir) $(stat -Lc %Y "$("$PG_CONFIG" --bindir)/postgres" \
        "$("$PG_CONFIG" --pkglibdir)" "$("$PG_CONFIG" --sharedir)/extension" | xargs)"
    [ "$(cat "$server/stamp" 2>/dev/null)" = "$stamp" ] && return
    say "copying the installation of $("$PG_CONFIG" --version) to $server"
    if [ -e "$server" ]; then
        [ -O "$server" ] || fail "$server belongs to someone else"
        rm -rf "$server"
    fi
    mkdir -p -m 755 "$server"

    local bin lib share include prefix
    bin=$("$PG_CONFIG" --bindir) lib=$("$PG_CONFIG" --pkglibdir)
    share=$("$PG_CONFIG" --sharedir) include=$("$PG_CONFIG" --includedir-server)
    prefix=$(printf '%s/\n' "$bin" "$lib" "$share" "$include" | sed -e 'N;N;N;s/^\(.*\/\).*\n\1.*\n\1.*\n\1.*$/\1/')
    local there="$server/${bin#"$prefix"}"
    mkdir -p "$there"
    cp -L "$bin"/* "$there/"
    link_entries "$lib" "$server/${lib#"$prefix"}"
    link_entries "$share" "$server/${share#"$prefix"}"
    rm "$server/${share#"$prefix"}/extension"
    link_entries "$share/extension" "$server/${share#"$prefix"}/extension"
    mkdir -p "$(dirname "$server/${include#"$prefix"}")"
    ln -sfn "$include" "$server/${include#"$prefix"}"

    [ "$("$there/pg_config" --sharedir)" = "$server/${share#"$prefix"}" ] ||
        fail "the copy of $PG_CONFIG in $server does not find its own folders"
    echo "/${bin#"$prefix"}/pg_config" >"$server/pg_config"
    echo "$stamp" >"$server/stamp"
    server_pg_config="$there/pg_config"
}

# pg_zdd itself is left out: installing through a link would replace the real server's file.
link_entries() {
    mkdir -p "$2"
    find "$1" -mindepth 1 -maxdepth 1 ! -name 'pg_zdd*' -exec ln -sfn -t "$2" {} +
}

pgrx_init() {
    grep -qsF "\"$server_pg_config\"" "$PGRX_HOME/config.toml" && return
    mkdir -p "$PGRX_HOME"
    cargo pgrx init --no-run "--pg$pg_major=$server_pg_config" >/dev/null
}

main
