#!/usr/bin/env bash
# apt-install.sh package…: as root. `postgresql` and `postgresql-server-dev` stand for those of the first version that the
# system's sources have. Installing a PostgreSQL server on Debian normally makes a cluster and starts every cluster there
# is. We want the programs only, so both are switched off while apt runs.
set -euo pipefail

policy=/usr/sbin/policy-rc.d
conf=/etc/postgresql-common/createcluster.conf
made_policy=
made_conf=
restore() {
    if [ -n "$made_policy" ]; then rm -f "$policy"; fi
    if [ -e "$conf.pg_zdd" ]; then mv -f "$conf.pg_zdd" "$conf"; fi
    if [ -n "$made_conf" ]; then rm -f "$conf"; fi
}
trap restore EXIT

if [ ! -e "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-upgrade "$@"; }

first_version() {
    local version
    for version in 15 16 17 18; do
        if apt-cache show "postgresql-server-dev-$version" >/dev/null 2>&1; then
            echo "$version"
            return
        fi
    done
    echo "error: this system's package sources have no PostgreSQL of 15 to 18. Install a server of these with its" \
        "postgresql-server-dev package and pass PG_CONFIG=/usr/lib/postgresql/NN/bin/pg_config," \
        "or add the sources of https://wiki.postgresql.org/wiki/Apt" >&2
    return 1
}

apt-get update -q
packages=()
for package in "$@"; do
    case $package in
    postgresql | postgresql-server-dev)
        version=$(first_version)
        package=$package-$version
        ;;
    esac
    packages+=("$package")
done
case " ${packages[*]} " in
*" postgresql-1"*)
    install postgresql-common
    if [ -e "$conf" ]; then cp -p "$conf" "$conf.pg_zdd"; else made_conf=yes; fi
    echo 'create_main_cluster = false' >>"$conf"
    ;;
esac
install "${packages[@]}"
