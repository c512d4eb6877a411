//! Tables whose rows we could not look at one by one are refused, and nothing is called verified that nobody has seen. With
//! access methods of our own, which are PostgreSQL's heap but for what they lack.

use std::process::Command;
use std::sync::OnceLock;

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::session::{Session, shared_cluster};

const SPLIT: &str = r#"SELECT zdd.split_column('address', 'street', columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]')"#;
const PREVIEW: &str = r#"SELECT * FROM zdd.preview_split('address', 'street', columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]')"#;
const BACKFILL: &str = "CALL zdd.backfill('address.street')";

const METHODS: &str = r#"
#include "postgres.h"
#include "fmgr.h"
#include "access/tableam.h"

PG_MODULE_MAGIC;

/* A table for large values would need an index, and the heap builds indexes of its own tables only. */
static bool no_toast(Relation relation)
{
	return false;
}

static TableAmRoutine almost_the_heap(void)
{
	TableAmRoutine method = *GetHeapamTableAmRoutine();
	method.relation_needs_toast_table = no_toast;
	return method;
}

/* Cannot find rows by their place. */
PG_FUNCTION_INFO_V1(without_ranges);
Datum without_ranges(PG_FUNCTION_ARGS)
{
	static TableAmRoutine method;
	method = almost_the_heap();
	method.scan_set_tidrange = NULL;
	method.scan_getnextslot_tidrange = NULL;
	PG_RETURN_POINTER(&method);
}

static bool nothing(TableScanDesc scan, ScanDirection direction, TupleTableSlot *slot)
{
	return false;
}

/* Says that it can, and finds none. */
PG_FUNCTION_INFO_V1(blind);
Datum blind(PG_FUNCTION_ARGS)
{
	static TableAmRoutine method;
	method = almost_the_heap();
	method.scan_getnextslot_tidrange = nothing;
	PG_RETURN_POINTER(&method);
}
"#;

/// Compiles the access methods where the server can read them. Its path is without the ending.
fn library(cluster: &Cluster) -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = cluster.socket_dir();
        let (source, library) = (folder.join("methods.c"), folder.join("methods.so"));
        std::fs::write(&source, METHODS).unwrap();
        let headers = Command::new(cluster.bin_dir().join("pg_config")).arg("--includedir-server").output().unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-I", String::from_utf8_lossy(&headers.stdout).trim(), "-o"]);
        let compiled = compiler.arg(&library).arg(&source).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        folder.join("methods").to_string_lossy().into_owned()
    })
}

/// A database with the access methods `without_ranges`, `blind` and `copy`, which lacks nothing.
fn database() -> Session {
    let mut db = Session::new();
    let library = library(shared_cluster());
    db.run("CREATE ACCESS METHOD copy TYPE TABLE HANDLER heap_tableam_handler");
    for name in ["without_ranges", "blind"] {
        db.run(&format!(
            "CREATE FUNCTION {name}(internal) RETURNS table_am_handler LANGUAGE c AS '{library}', '{name}';
             CREATE ACCESS METHOD {name} TYPE TABLE HANDLER {name}"
        ));
    }
    db
}

fn phase(db: &mut Session) -> String {
    db.text("SELECT phase FROM zdd.changes")
}

/// Both say why they refuse, and leave nothing behind.
fn refused(db: &mut Session, message: &str) {
    for call in [PREVIEW, SPLIT] {
        let error = db.error(call);
        assert!(error.starts_with(&format!("ERROR: {message} (0A000)\nDETAIL: ")), "{error}");
        assert!(error.contains("\nHINT: "), "{error}");
        let traces =
            "SELECT (SELECT count(*) FROM zdd.change), (SELECT count(*) FROM pg_trigger WHERE tgname LIKE '~zdd%'),
            (SELECT count(*) FROM pg_attribute WHERE attname IN ('streetname', 'housenumber'))";
        assert_eq!(db.text(traces), "0|0|0");
    }
}

#[test]
fn a_table_without_tid_range_scans_is_refused() {
    let mut db = database();
    db.run("CREATE TABLE address (id int, street text) USING without_ranges; INSERT INTO address VALUES (1, 'Elm 1')");
    refused(&mut db, "access method \"without_ranges\" of public.address has no TID range scans");
    // As the hint says.
    db.run("CREATE TABLE moved AS SELECT * FROM address; DROP TABLE address; ALTER TABLE moved RENAME TO address");
    db.run(SPLIT);
    db.run(BACKFILL);
    assert_eq!(phase(&mut db), "expanded");
}

#[test]
fn a_partition_without_tid_range_scans_is_refused() {
    let mut db = database();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE recent PARTITION OF address FOR VALUES FROM (1000) TO (2000);
         CREATE TABLE archive PARTITION OF address FOR VALUES FROM (0) TO (1000) USING without_ranges;
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, 1100) AS i",
    );
    refused(&mut db, "access method \"without_ranges\" of public.archive has no TID range scans");
}

#[test]
fn a_child_without_tid_range_scans_is_refused() {
    let mut db = database();
    db.run(
        "CREATE TABLE address (id int, street text);
         CREATE TABLE old () INHERITS (address) USING without_ranges",
    );
    refused(&mut db, "access method \"without_ranges\" of public.old has no TID range scans");
}

/// However such a partition came to be there, it is not passed over.
#[test]
fn a_partition_that_cannot_be_scanned_is_never_expanded() {
    let mut db = database();
    db.run(
        "CREATE TABLE address (id int, street text) PARTITION BY RANGE (id);
         CREATE TABLE recent PARTITION OF address FOR VALUES FROM (1000) TO (2000);
         CREATE TABLE archive (id int, street text, streetname text, housenumber text) USING without_ranges;
         INSERT INTO address VALUES (1000, 'Elm 1'); INSERT INTO archive VALUES (1, 'Elm 1')",
    );
    db.run(SPLIT);
    db.run("SET zdd.guard = off; ALTER TABLE address ATTACH PARTITION archive FOR VALUES FROM (0) TO (1000); RESET zdd.guard");
    for call in [
        BACKFILL,
        "SELECT * FROM zdd.verify('address.street')",
        "SELECT * FROM zdd.mismatches('address.street')",
        "CALL zdd.repair('address.street', 'old')",
    ] {
        let error = db.error(call);
        assert!(error.contains("of public.archive has no TID range scans (0A000)"), "{error}\n{call}");
        assert_eq!(phase(&mut db), "expanding");
    }
}

#[test]
fn what_nobody_has_seen_is_not_verified() {
    let mut db = database();
    db.run("CREATE TABLE address (id int, street text) USING blind");
    db.run(SPLIT);
    // There is nothing to see.
    assert_eq!(db.text("SELECT rows FROM zdd.verify('address.street')"), "0");
    db.run("SET session_replication_role = replica; INSERT INTO address VALUES (1, 'Elm 1'); RESET session_replication_role");
    for call in [BACKFILL, "SELECT * FROM zdd.verify('address.street')"] {
        let error = db.error(call);
        assert!(
            error.starts_with("ERROR: no row of public.address could be looked at, but it has rows (55000)"),
            "{error}"
        );
        assert!(error.contains("\nHINT: "), "{error}");
        assert_eq!(phase(&mut db), "expanding");
    }
    db.run("DELETE FROM address");
    db.run(BACKFILL);
    assert_eq!(phase(&mut db), "expanded");
}

#[test]
fn another_access_method_that_lacks_nothing_will_do() {
    let mut db = database();
    db.run(
        "CREATE TABLE address (id int, street text) USING copy;
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, 2000) AS i",
    );
    assert_eq!(db.text(&PREVIEW.replace('*', "kind, rows")), "matched|2000\nunmatched|0\nnull|0\nlossy|0");
    db.run(SPLIT);
    db.run("INSERT INTO address VALUES (0, 'Oak 1')");
    db.run(BACKFILL);
    assert_eq!(db.text("SELECT rows, in_sync FROM zdd.verify('address.street')"), "2001|2001");
    db.run("CALL zdd.contract('address.street', force => true)");
    assert_eq!(db.text("SELECT * FROM address WHERE id IN (0, 7) ORDER BY id"), "0|Oak|1\n7|Elm|7");
}

/// As Citus writes it down.
fn of_citus(relation: &str) -> String {
    format!(
        "SET allow_system_table_mods = on;
         CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass PRIMARY KEY, partmethod \"char\");
         CREATE TABLE pg_catalog.pg_dist_shard (logicalrelid regclass, shardid int8 PRIMARY KEY);
         INSERT INTO pg_dist_partition VALUES ('{relation}', 'h');
         INSERT INTO pg_dist_shard VALUES ('{relation}', 102008), ('{relation}', 102009);
         RESET allow_system_table_mods"
    )
}

#[test]
fn tables_of_citus_are_refused() {
    let mut db = database();
    db.run("CREATE TABLE address (id int, street text); CREATE TABLE other (id int, street text)");
    db.run(&of_citus("address"));
    refused(&mut db, "public.address is a table or shard of Citus");
    // Others of the same database are not.
    db.run(&SPLIT.replace("address", "other"));
}

#[test]
fn partitions_of_citus_are_refused() {
    let mut db = database();
    db.run("CREATE TABLE address (id int, street text) PARTITION BY RANGE (id)");
    db.run("CREATE TABLE low PARTITION OF address FOR VALUES FROM (0) TO (100)");
    db.run(&of_citus("low"));
    refused(&mut db, "public.low is a table or shard of Citus");
}

#[test]
fn shards_of_citus_are_refused() {
    let mut db = database();
    db.run("CREATE TABLE distributed (id int, street text); CREATE TABLE address_102009 (id int, street text)");
    db.run(&of_citus("distributed"));
    db.run("ALTER TABLE address_102009 RENAME TO address_10200; ALTER TABLE address_10200 RENAME TO address");
    db.run(PREVIEW);
    db.run("ALTER TABLE address RENAME TO address_102009");
    let error = db.error(&SPLIT.replace("'address'", "'address_102009'"));
    assert!(error.starts_with("ERROR: public.address_102009 is a table or shard of Citus (0A000)"), "{error}");
}
