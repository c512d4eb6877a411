//! A contract and what others do meanwhile.

use std::time::{Duration, Instant};

use pg_zdd_cluster::address::{PATIENCE, wait_for};
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, wait_until};

use crate::stage::{
    BACKFILL, CONTRACT, FENCE, FENCED, NEVER, ROLLBACK, START_BACKFILL, START_CONTRACT, Stage, TABLE, UNFENCE,
    VERIFIES, WORKERS, end_worker, until_stuck,
};

#[test]
fn a_partition_attached_after_the_count_keeps_its_values() {
    // dropped.
    let table = "CREATE TABLE address (id int, region text, street text) PARTITION BY LIST (region);
        CREATE TABLE south PARTITION OF address FOR VALUES IN ('s');
        INSERT INTO address SELECT i, 's', 'Elm ' || i FROM generate_series(1, 100) AS i";
    // A NOT NULL would find the rows, so there is none.
    let mut stage = Stage::expanding(table, FENCED);
    stage.db.run(ROLLBACK);
    stage.db.run(
        "SELECT zdd.split_column('address', 'street', columns => 'streetname text, housenumber text',
            split_sql => ARRAY['public.held(split_part(street, '' '', 1))', 'split_part(street, '' '', 2)'],
            join_sql => 'public.held(streetname) || '' '' || housenumber')",
    );
    stage.expand();
    let contract = stage.db.another().in_background(CONTRACT);
    stage.until_held();
    stage.db.run(
        "CREATE TABLE east (LIKE address);
         INSERT INTO east (id, region, street_zdd_fenced) SELECT i, 'e', 'Oak ' || i FROM generate_series(1, 100) AS i",
    );
    stage.db.run("SET lock_timeout = '10s'");
    let attached = stage.db.attempt("ALTER TABLE address ATTACH PARTITION east FOR VALUES IN ('e')");
    stage.open();
    let (_, contracted) = contract.join();
    let column = if attached.is_ok() { "street" } else { "street_zdd_fenced" };
    assert_eq!(stage.db.text(&format!("SELECT count(DISTINCT {column}) FROM east")), "100", "{contracted:?}");
    assert_eq!(contracted.is_err(), attached.is_ok(), "{contracted:?}");
}

/// Takes the fence back while a contract counts behind it.
#[track_caller]
fn unfenced_while_it_counts(mut stage: Stage) {
    let contract = stage.db.another().in_background(CONTRACT);
    stage.until_held();
    let unfence = stage.db.another().in_background(UNFENCE);
    until_stuck(&mut stage.db, &unfence);
    stage.open();
    assert_eq!(unfence.join().1, Ok(()));
    let error = contract.join().1.expect_err("the fence was taken back");
    stage.check_expanded();
    assert!(error.contains("unfence") && error.contains("postgres"), "it does not say who did what: {error}");
}

#[test]
fn a_contract_ends_when_its_fence_is_taken_back() {
    unfenced_while_it_counts(Stage::expanded(TABLE, FENCED));
}

#[test]
fn a_contract_ends_when_the_operators_fence_is_taken_back() {
    let mut stage = Stage::expanded(TABLE, FENCED);
    stage.db.run(FENCE);
    unfenced_while_it_counts(stage);
}

#[test]
fn a_contract_in_a_worker_ends_when_its_fence_is_taken_back() {
    let mut stage = Stage::expanded(TABLE, FENCED);
    stage.db.run(START_CONTRACT);
    stage.until_held();
    let unfence = stage.db.another().in_background(UNFENCE);
    until_stuck(&mut stage.db, &unfence);
    stage.open();
    assert_eq!(unfence.join().1, Ok(()));
    wait_for(&mut stage.db, WORKERS, "0");
    stage.check_expanded();
}

/// The launcher brings back what was not finished, and nobody wants this contract any longer.
#[test]
fn a_contract_whose_worker_is_gone_ends_when_its_fence_is_taken_back() {
    let settings = [("shared_preload_libraries", "pg_zdd"), ("zdd.auto_resume", "off"), ("zdd.launcher_naptime", "1")];
    let cluster = Cluster::start(&settings).expect("a cluster");
    let mut stage = Stage::on(Session::on(&cluster), TABLE, FENCED);
    stage.expand();
    stage.db.run(START_CONTRACT);
    stage.until_held();
    end_worker(&mut stage.db);
    stage.db.run(UNFENCE);
    stage.open();
    // Another change is behind it in the launcher's list.
    stage.db.run(
        "CREATE TABLE canary (t text); INSERT INTO canary VALUES ('a b');
         SELECT zdd.split_column('canary', 't', columns => 'a text, b text', delimiter => ' ');
         SELECT zdd.alter_change('canary.t', run_if => 'false'); SELECT zdd.start_backfill('canary.t')",
    );
    end_worker(&mut stage.db);
    stage.db.run("SELECT zdd.alter_change('canary.t', run_if => '')");
    cluster.configure(&[("zdd.auto_resume", "on")]).and_then(|()| cluster.reload()).expect("a reload");
    wait_for(&mut stage.db, "SELECT phase FROM zdd.changes WHERE change = 'canary.t'", "expanded");
    wait_for(&mut stage.db, &WORKERS.replace("'pg_zdd%'", "'pg_zdd worker'"), "0");
    stage.check_expanded();
}

#[test]
fn a_cancelled_contract_leaves_the_fence_of_another() {
    let mut stage = Stage::expanded(TABLE, FENCED);
    let contract = stage.db.another().in_background(CONTRACT);
    stage.until_held();
    let fence = stage.db.another().in_background(&format!("BEGIN; {UNFENCE}; {FENCE}; COMMIT"));
    until_stuck(&mut stage.db, &fence);
    stage.db.run(&format!("SELECT pg_cancel_backend({})", contract.pid));
    assert_eq!(fence.join().1, Ok(()));
    contract.join().1.expect_err("it was cancelled");
    assert_eq!(stage.phase(), "fenced");
}

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

#[test]
fn a_contract_out_of_patience_does_not_stay_fenced() {
    let mut stage = Stage::expanded(TABLE, FENCED);
    let mut caller = stage.db.another();
    caller.run("SET zdd.lock_timeout = '50ms'; SET zdd.lock_patience = '1s'");
    let contract = caller.in_background(CONTRACT);
    stage.until_held();
    let mut holder = stage.db.another();
    holder.run("BEGIN; SELECT count(*) FROM address");
    stage.open();
    // For longer than it has patience, going on and going back.
    let begun = Instant::now();
    wait_until("", PATIENCE, || Ok(contract.has_ended() || begun.elapsed() > Duration::from_secs(5))).expect("a wait");
    holder.run("COMMIT");
    let error = contract.join().1.expect_err("the table was held");
    assert!(error.contains("(55P03)"), "{error}");
    wait_for(&mut stage.db, "SELECT phase FROM zdd.changes", "expanded");
    stage.check_expanded();
}

/// A contract that was accepted is done, or refused with a word on what is in the way.
#[track_caller]
fn contracts_beside_a_backfill(stage: &mut Stage, let_go: impl FnOnce(&mut Stage)) {
    match stage.db.attempt(START_CONTRACT) {
        Err(error) => {
            assert!(error.contains("(55006)") && error.contains("backfill"), "{error}");
            let_go(stage);
            wait_for(&mut stage.db, "SELECT count(*) FROM zdd.progress", "0");
        }
        Ok(()) => {
            // Its worker waits for a place for a second, if there is none.
            let one_left = format!("SELECT ({WORKERS}) < 2");
            let _ = wait_until("", Duration::from_secs(5), || Ok(stage.db.text(&one_left) == "t"));
            let_go(stage);
            stage.db.run("CALL zdd.wait_for('address.street', 'contracted', '20 s')");
        }
    }
}

#[test]
fn a_contract_beside_a_backfill_that_verifies() {
    let mut stage = Stage::expanded(TABLE, VERIFIES);
    stage.db.run(START_BACKFILL);
    stage.until_held();
    contracts_beside_a_backfill(&mut stage, Stage::open);
}

#[test]
fn a_contract_beside_a_backfill_that_waits_for_its_condition() {
    let mut stage = Stage::expanded(TABLE, NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', run_if => 'false')");
    stage.db.run(START_BACKFILL);
    wait_for(&mut stage.db, "SELECT waiting_for FROM zdd.progress", "run_if to be true");
    contracts_beside_a_backfill(&mut stage, |stage| {
        stage.db.run("SELECT zdd.alter_change('address.street', run_if => '')");
    });
}

#[test]
fn a_contract_accepted_while_a_backfill_is_about_to_end() {
    let mut stage = Stage::expanded(TABLE, VERIFIES);
    let backfill = stage.db.another().in_background(BACKFILL);
    stage.until_held();
    let mut operator = stage.db.another();
    let started = operator.attempt(&format!("BEGIN; {START_CONTRACT}"));
    stage.open();
    until_stuck(&mut stage.db, &backfill);
    operator.run(if started.is_ok() { "COMMIT" } else { "ROLLBACK" });
    let (_, ended) = backfill.join();
    match started {
        Err(error) => assert!(error.contains("backfill") && ended.is_ok(), "{error}, {ended:?}"),
        Ok(()) => stage.db.run("CALL zdd.wait_for('address.street', 'contracted', '20 s')"),
    }
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
