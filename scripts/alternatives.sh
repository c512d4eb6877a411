#!/usr/bin/env bash
# Installs the programs that the bench compares pg_zdd with, in versions that we know. What cannot be installed leaves
# the reason in a file instead, and the bench reports it as not run.
source "$(dirname "$0")/common.sh"

pgroll_version=v0.14.0
reshape_version=0.11.2
tools="$CARGO_TARGET_DIR/tools"
mkdir -p "$tools/bin"

# alternative NAME VERSION COMMAND…: runs the command unless that version is there. NAME.version tells the bench which
# version it has, NAME.missing why it has none.
alternative() {
    local name=$1 version=$2 log="$tools/$1.log"
    [ -x "$tools/bin/$name" ] && [ "$(cat "$tools/$name.version" 2>/dev/null)" = "$version" ] && return
    say "installing $name $version below $tools (some minutes)"
    rm -f "$tools/$name.version" "$tools/$name.missing"
    if ("${@:3}") >"$log" 2>&1; then
        echo "$version" >"$tools/$name.version"
    else
        tail -n 1 "$log" >"$tools/$name.missing"
        echo "note: $name is not installed: $(cat "$tools/$name.missing")"
    fi
}

# As a requirement of a module of our own: `go install pgroll@version` would also ask for the list of all versions.
pgroll() {
    command -v go >/dev/null || { echo "there is no Go (1.21 or later) here" && return 1; }
    local module="$tools/pgroll.module"
    rm -rf "$module" && mkdir "$module" && cd "$module" &&
        go mod init alternatives &&
        go mod edit -require="github.com/xataio/pgroll@$pgroll_version" &&
        go build -mod=mod -o "$tools/bin/pgroll" github.com/xataio/pgroll
}

reshape() {
    env -u CARGO_TARGET_DIR cargo install --locked --root "$tools" reshape --version "$reshape_version"
}

alternative pgroll "$pgroll_version" pgroll
alternative reshape "$reshape_version" reshape
