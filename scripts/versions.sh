#!/usr/bin/env bash
# Type-checks pg_zdd against every PostgreSQL version it supports, with the bindings that pgrx ships for its own
# documentation: no server and no headers of those versions are needed.
source "$(dirname "$0")/common.sh"

if [ "${1:-}" = rustc ]; then
    # As a wrapper of rustc: only pgrx-pg-sys is told to take the shipped bindings.
    shift
    case " $* " in
    *" --crate-name pgrx_pg_sys "*) exec "$@" --cfg docsrs ;;
    *) exec "$@" ;;
    esac
fi

wrapper="$CARGO_TARGET_DIR/rustc-with-shipped-bindings"
printf '#!/bin/sh\nexec %q/scripts/versions.sh rustc "$@"\n' "$PWD" >"$wrapper"
chmod +x "$wrapper"
for version in 15 16 17 18; do
    say "PostgreSQL $version"
    DOCS_RS=1 RUSTC_WRAPPER="$wrapper" cargo check -q --lib --no-default-features --features "pg$version" \
        --target-dir "$CARGO_TARGET_DIR/versions"
done
