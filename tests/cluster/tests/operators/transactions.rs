//! Verbs in transactions: what one has not seen of the other decides nothing.

use pg_zdd_cluster::address::{address, wait_for};
use pg_zdd_cluster::session::Session;

use crate::stage::{BACKFILL, NEVER, START_BACKFILL, Stage, TABLE};

const LET_GO: &str = "SELECT zdd.alter_change('address.street', run_if => '')";

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM zdd.change";

#[test]
fn one_column_is_split_once_whatever_a_snapshot_sees() {
    let split = |change: &str, targets: &str| {
        format!("SELECT zdd.split_column('address', 'street', '{targets}', delimiter => ' ', change => '{change}')")
    };
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut db = Session::new();
        db.run(TABLE);
        let mut late = db.another();
        late.run(&SNAPSHOT.replace("REPEATABLE READ", level));
        db.run(&split("one", "a text, b text"));
        let error = late.error(&split("two", "c text, d text"));
        assert!(error.contains("(42710)") || error.contains("(40001)") || error.contains("(55006)"), "{error}");
        late.run("ROLLBACK");
        assert_eq!(db.text("SELECT change FROM zdd.changes"), "one");
    }
}

/// In a transaction that sees too little: done, or refused as a failure of serialization.
#[track_caller]
fn in_an_old_snapshot(db: &mut Session, meanwhile: &str, call: &str) {
    let mut late = db.another();
    late.run(SNAPSHOT);
    meanwhile.split(';').for_each(|statement| db.run(statement));
    let ended = late.attempt(call);
    assert!(ended.as_ref().err().is_none_or(|error| error.contains("(40001)")), "{ended:?}");
    late.run("ROLLBACK");
}

#[test]
fn a_start_in_a_snapshot_from_before_another() {
    let mut stage = Stage::expanding(TABLE, NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    in_an_old_snapshot(&mut stage.db, START_BACKFILL, START_BACKFILL);
    stage.db.run(LET_GO);
    stage.db.run("CALL zdd.wait_for('address.street', 'expanded', '20 s')");
}

#[test]
fn a_start_in_a_snapshot_from_before_the_change() {
    let mut db = Session::new();
    db.run("CREATE TABLE other (id int)");
    let mut late = db.another();
    late.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM other");
    let mut db = address(db, 100);
    let ended = late.attempt(START_BACKFILL);
    assert!(
        ended.as_ref().err().is_none_or(|error| error.contains("(42704)") || error.contains("(40001)")),
        "{ended:?}"
    );
    late.run("ROLLBACK");
    db.run(BACKFILL);
}
