//! A contract and what others do meanwhile.

use pg_zdd_cluster::session::Session;

use crate::stage::{BACKFILL, CONTRACT, FENCE, FENCED, ROLLBACK, Stage, TABLE, UNFENCE};

#[test]
fn a_cancelled_contract_takes_its_own_fence_back() {
    let mut stage = Stage::expanded(TABLE, FENCED);
    let contract = stage.db.another().in_background(CONTRACT);
    stage.until_held();
    stage.db.run(&format!("SELECT pg_cancel_backend({})", contract.pid));
    let error = contract.join().1.expect_err("it was cancelled");
    assert!(error.contains("(57014)"), "{error}");
    stage.check_expanded();
}

/// What a transaction does to the record of usage is undone with it.
#[test]
fn usage_survives_what_is_rolled_back() {
    let split = "SELECT zdd.split_column('address', 'street', 'streetname text, housenumber text', delimiter => ' ')";
    let contract = "CALL zdd.contract('address.street')";
    let mut db = Session::new();
    db.run(TABLE);
    db.run(split);
    db.run(BACKFILL);
    db.another().run("SET application_name = 'shop'; SELECT street FROM address WHERE id = 1");
    let begun_anew = format!("{ROLLBACK}; {split}");
    for undone in [
        format!("BEGIN; {begun_anew}; ROLLBACK"),
        format!("BEGIN; SAVEPOINT s; {begun_anew}; ROLLBACK TO s; COMMIT"),
        format!(
            "BEGIN; SAVEPOINT s; SELECT zdd.reset_usage('address.street'); ROLLBACK TO s; {FENCE}; {UNFENCE}; COMMIT"
        ),
        format!("BEGIN; {begun_anew}; PREPARE TRANSACTION 'undone'; ROLLBACK PREPARED 'undone'"),
    ] {
        // Each statement on its own: psql would send them so.
        undone.split(';').for_each(|statement| db.run(statement));
        let error = db.error(contract);
        assert!(error.contains("was used within") && error.contains("\"shop\": 1 read"), "{undone}\n{error}");
    }
}
