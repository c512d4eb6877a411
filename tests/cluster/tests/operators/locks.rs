//! Who waits for whom, and how long.

use std::time::{Duration, Instant};

use pg_zdd_cluster::address::{check_expanded, wait_for};
use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::session::Session;

use crate::stage::{
    BACKFILL, CONTRACT, FENCE, NEVER, ROLLBACK, SPLIT_NAME, START_BACKFILL, START_CONTRACT, Stage, TABLE, UNFENCE,
    WORKERS, table_of, until_it_wants_the_table, until_stuck,
};

const SPLIT_STREET: &str =
    "SELECT zdd.split_column('address', 'street', 'streetname text, housenumber text', delimiter => ' ')";

/// Two verbs that wait for the same table. None may keep the other from it: when the holder goes, both are done soon.
#[track_caller]
fn both_get_their_turn(mut db: Session, first: &str, second: &str) {
    let mut holder = db.another();
    holder.run("BEGIN; SELECT count(*) FROM address");
    let calls = [first, second].map(|call| {
        let mut operator = db.another();
        operator.run("SET zdd.lock_timeout = '100ms'; SET zdd.lock_patience = '20s'");
        operator.in_background(call)
    });
    // Each has come as far as it gets, and holds what it holds while it waits.
    calls.iter().for_each(|call| until_it_wants_the_table(&mut db, call));
    holder.run("COMMIT");
    let begun = Instant::now();
    for call in calls {
        assert_eq!(call.join().1, Ok(()));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Two changes of one table, expanded.
fn two_changes() -> Session {
    let mut stage = Stage::expanded(TABLE, NEVER);
    stage.db.run(SPLIT_NAME);
    stage.db.run("CALL zdd.backfill('address.name')");
    stage.db
}

fn of_name(verb: &str) -> String {
    verb.replace("address.street", "address.name")
}

#[test]
fn two_splits_of_one_table() {
    let mut db = Session::new();
    db.run(TABLE);
    both_get_their_turn(db, SPLIT_STREET, SPLIT_NAME);
}

#[test]
fn two_fences_of_one_table() {
    both_get_their_turn(two_changes(), FENCE, &of_name(FENCE));
}

#[test]
fn two_rollbacks_of_one_table() {
    both_get_their_turn(two_changes(), ROLLBACK, &of_name(ROLLBACK));
}

#[test]
fn two_contracts_of_one_table() {
    both_get_their_turn(two_changes(), CONTRACT, &of_name(CONTRACT));
}

#[test]
fn a_split_beside_a_fence() {
    let stage = Stage::expanded(TABLE, NEVER);
    both_get_their_turn(stage.db, FENCE, SPLIT_NAME);
}

#[test]
fn a_policy_beside_a_rollback() {
    let alter = "SELECT zdd.alter_change('address.name', conflict => 'old')";
    both_get_their_turn(two_changes(), alter, ROLLBACK);
}

/// Somebody has a change in a transaction and goes to lunch.
#[test]
fn whoever_waits_for_a_change_is_told_for_whom() {
    let mut refused = Vec::new();
    for verb in [
        FENCE,
        ROLLBACK,
        BACKFILL,
        START_BACKFILL,
        CONTRACT,
        START_CONTRACT,
        "SELECT zdd.alter_change('address.street', run_if => 'true')",
        "SELECT zdd.alter_change('address.street', conflict => 'old')",
        "CALL zdd.repair('address.street', winner => 'old')",
    ] {
        let mut stage = Stage::expanded(TABLE, NEVER);
        let mut other = stage.db.another();
        let pid = other.pid();
        other.run("BEGIN; SELECT zdd.alter_change('address.street', batch_target => '10ms')");
        stage.db.run("SET zdd.lock_timeout = '100ms'; SET zdd.lock_patience = '1s'; SET statement_timeout = '10s'");
        match stage.db.attempt(verb) {
            // What need not wait for it need not say so.
            Ok(()) => {}
            Err(error) if error.contains("(55P03)") && error.contains(&format!("{pid}")) => {}
            Err(error) => refused.push(format!("{verb}\n{error}")),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n\n"));
}

/// Whoever waits for the change holds nothing that its holder may need.
#[test]
fn whoever_waits_for_a_change_is_in_nobodys_way() {
    for verb in [FENCE, ROLLBACK, CONTRACT, "SELECT zdd.alter_change('address.street', conflict => 'old')"] {
        let mut stage = Stage::expanded(TABLE, NEVER);
        let mut first = stage.db.another();
        first.run("BEGIN; SELECT zdd.alter_change('address.street', batch_target => '10ms')");
        let second = stage.db.another().in_background(verb);
        until_stuck(&mut stage.db, &second);
        first.run("SET zdd.lock_patience = '5s'");
        first.run(&format!("{FENCE}; {UNFENCE}"));
        first.run("COMMIT");
        assert_eq!(second.join().1, Ok(()), "{verb}");
    }
}

/// Holders of a partition each, who let go one after the other, each before an attempt to lock it has taken too long.
#[test]
fn an_attempt_to_lock_many_partitions_is_one_attempt() {
    const PARTITIONS: i32 = 8;
    const TIMEOUT: Duration = Duration::from_secs(1);
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text) PARTITION BY LIST (id)");
    let mut holders = Vec::new();
    for n in 0..PARTITIONS {
        db.run(&format!("CREATE TABLE part{n} PARTITION OF address FOR VALUES IN ({n})"));
        let mut holder = db.another();
        holder.run(&format!("BEGIN; SELECT count(*) FROM part{n}"));
        holders.push(holder);
    }
    let (mut operator, mut prober) = (db.another(), db.another());
    let record = Record::default();
    let probes = record.clone();
    let runner = Runner::start(Duration::from_millis(5), move || {
        probes.time("SELECT", || prober.client.batch_execute("SELECT id FROM address WHERE id = 0"));
    });
    let begun = Instant::now();
    operator.run("SET zdd.lock_timeout = '1s'");
    let split = operator.in_background(SPLIT_STREET);
    for mut holder in holders {
        std::thread::sleep(TIMEOUT * 7 / 10);
        holder.run("COMMIT");
    }
    assert_eq!(split.join().1, Ok(()));
    runner.stop();
    let seen = record.between(begun, Instant::now());
    assert!(seen.longest < TIMEOUT + Duration::from_millis(900), "{seen:?}");
}

/// Both begin the lanes again when the rows have moved.
#[test]
fn workers_do_not_deadlock_when_the_table_is_rewritten() {
    let mut db = Session::new();
    let database = db.text("SELECT current_database()");
    db.run(&format!("ALTER DATABASE {database} SET zdd.lock_timeout = '60s'"));
    db.run(&table_of(20_000));
    db.run(SPLIT_STREET);
    db.run(
        "SELECT zdd.alter_change('address.street', batch_target => '1ms', max_rows_per_second => 2000);
         SELECT zdd.start_backfill('address.street', workers => 3)",
    );
    for round in 1..=3 {
        wait_for(&mut db, "SELECT count(DISTINCT taken_by) FROM zdd.lane WHERE next_block > first_block", "3");
        let mut operator = db.another();
        operator.run("BEGIN; LOCK TABLE address IN ACCESS EXCLUSIVE MODE");
        let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'address'::regclass AND NOT granted";
        wait_for(&mut db, waiting, "3");
        operator.run("CLUSTER address USING address_pkey");
        operator.run("COMMIT");
        let file = "SELECT bool_and(file = pg_relation_filenode('address')) FROM zdd.lane";
        wait_for(&mut db, file, "t");
        let retried = db.text("SELECT detail FROM zdd.event WHERE event IN ('retried', 'error')");
        assert_eq!(retried, "", "in round {round}");
    }
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    check_expanded(&mut db, 20_000, 20_000);
    let retried = "SELECT detail FROM zdd.event WHERE event IN ('retried', 'error') AND detail->>'sqlstate' = '40P01'";
    assert_eq!(db.text(retried), "");
}

/// To give space back to the system takes ACCESS EXCLUSIVE, here and on every standby.
#[test]
fn vacuum_does_not_cut_the_table_short() {
    let mut db = Session::new();
    db.run(&table_of(20_000));
    db.run("ALTER TABLE address SET (autovacuum_enabled = false); DELETE FROM address WHERE id > 100");
    db.run(SPLIT_STREET);
    let size = "SELECT pg_relation_size('address')";
    let before = db.number(size);
    db.run(START_BACKFILL);
    db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    wait_for(&mut db, WORKERS, "0");
    wait_for(&mut db, "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'address'", "1");
    assert!(db.number(size) >= before, "{} bytes of {before} are left", db.number(size));
}
