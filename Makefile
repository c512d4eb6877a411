# The verbs of pg_zdd. Each one does its own set-up; `make setup` alone is never needed.
#
#   make demo       a rolling update, played on a scratch server
#   make example    ways to deploy; NAME=rolling, blue-green, canary or rollback
#   make test       every test
#   make soak       the tests that find more the longer they run, each for SECONDS (600); SEED to say the same again,
#                   TESTS="fuzz" for some of them
#   make bench      side by side with the alternatives; PARTS="writes backfill load lifecycle locks cases report", "usage" or "ddl",
#                   ROWS, ROUNDS, FULL=1 for a table ten times as large, ONLY="pgroll floor" for some of the contenders,
#                   RATE for so many statements per second in load, TMPDIR=/dev/shm for a server without a disk
#   make lint       formatting and clippy
#   make install    into the server of PG_CONFIG
#
# PG_CONFIG=/path/to/pg_config chooses the server (14 to 18), by default Debian's PostgreSQL 15 or the first pg_config
# on the path. Only `install` writes to its folders: the others use a copy of the installation below target/ and
# scratch clusters in temporary folders, which a running server never notices.

SHELL := bash
export PG_CONFIG

.PHONY: setup install demo example test soak bench lint

setup:
	@scripts/setup.sh

install: setup
	@scripts/install.sh

demo: setup
	@scripts/client.sh pg_zdd_demo

example: setup
	@scripts/client.sh pg_zdd_examples $(or $(NAME),rolling blue-green canary rollback)

test: setup
	@scripts/test.sh

soak: export SEED := $(SEED)
soak: setup
	@scripts/soak.sh $(or $(SECONDS),600) $(TESTS)

# PostgreSQL's regular expressions take and give back memory for every value. Where that happens to be the last of the
# heap, glibc returns it to the system each time, and the ways that use them get up to four times slower. It depends on
# chance, so we spare them that.
bench: export MALLOC_TRIM_THRESHOLD_ ?= 268435456
bench: export MALLOC_MMAP_THRESHOLD_ ?= 268435456
bench: setup
	@scripts/alternatives.sh
	@scripts/client.sh pg_zdd_bench $(PARTS)

lint: setup
	@scripts/lint.sh
