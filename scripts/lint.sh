#!/usr/bin/env bash
# Formatting, clippy without a single warning, and the house rules that neither knows.
source "$(dirname "$0")/common.sh"
find_pg_config
find_server_copy

cargo fmt --all --check
cargo clippy --workspace --all-targets --no-default-features --features "pg$pg_major" -- -D warnings
if grep -nP '\t' sql/*.sql; then fail "tabs in SQL"; fi
say "lint passed"
