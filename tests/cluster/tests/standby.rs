//! A streaming standby: it takes over in the middle of a backfill, and while it lags the backfill waits for it.

use std::time::Duration;

use pg_zdd_cluster::address::{PATIENCE, address, check_expanded, rows_split, wait_for, wait_for_rows};
use pg_zdd_cluster::load::Runner;
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, Stop, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const START: &str = "SELECT zdd.start_backfill('address.street')";
const EXPANDED: &str = "CALL zdd.wait_for('address.street', 'expanded', '60 s')";
const STANDBY: [(&str, &str); 1] = [("cluster_name", "standby")];

/// A server with the launcher, which has a look once a second.
#[track_caller]
fn primary(conf: &[(&str, &str)]) -> Cluster {
    let launcher = [("shared_preload_libraries", "pg_zdd"), ("zdd.launcher_naptime", "1s")];
    Cluster::start(&[&launcher, conf].concat()).expect("a cluster")
}

/// Waits until a standby has replayed all that its primary has written by now.
#[track_caller]
fn wait_for_replay(primary: &mut Session, standby: &mut Session) {
    let written = primary.text("SELECT pg_current_wal_insert_lsn()");
    wait_for(standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"), "t");
}

#[test]
fn promoted_in_the_middle_of_a_batch() {
    const ROWS: i64 = 40_000;
    for synchronous in [false, true] {
        let primary = primary(&[]);
        let mut db = address(Session::on(&primary), ROWS as i32);
        let standby = primary.standby(&STANDBY).expect("a standby");
        if synchronous {
            primary.configure(&[("synchronous_standby_names", "standby")]).expect("a setting");
            primary.reload().expect("a reload");
            wait_for(&mut db, "SELECT sync_state FROM pg_stat_replication", "sync");
        } else {
            wait_for(&mut db, "SELECT state FROM pg_stat_replication", "streaming");
        }
        db.run(START);
        wait_for_rows(&mut db, 1_000);

        // On the standby everything can be read, and nobody works.
        let mut there = db.at(&standby);
        wait_for_replay(&mut db, &mut there);
        assert_eq!(there.text("SELECT change, phase FROM zdd.changes"), "address.street|expanding");
        assert_eq!(
            there.text("SELECT change, phase, job, rows_split > 0, workers, waiting_for FROM zdd.progress"),
            "address.street|expanding|backfill|t|0|the primary server, which does the work"
        );
        assert_eq!(there.text("SELECT * FROM zdd.workers"), "");
        assert_eq!(there.text("SELECT count(*) > 0 FROM zdd.events"), "t");
        let workers =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd launcher' OR datname IS NOT NULL
            AND backend_type LIKE 'pg_zdd%'";
        assert_eq!(there.text(workers), "0");

        // An application adds rows, which are split when they come in.
        let acknowledged = Arc::new(AtomicI64::new(0));
        let runner = {
            let (mut client, acknowledged) = (db.another(), acknowledged.clone());
            Runner::start(Duration::from_millis(1), move || {
                let id = ROWS + 1 + acknowledged.load(Ordering::Relaxed);
                let insert = format!("INSERT INTO address (id, street) VALUES ({id}, 'Elm Street ' || {id})");
                if client.attempt(&insert).is_ok() {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        wait_until("some rows", PATIENCE, || Ok(acknowledged.load(Ordering::Relaxed) > 50)).expect("rows");
        let rows = rows_split(&mut db);
        wait_for_rows(&mut db, rows + 1);
        primary.stop(Stop::Immediate).expect("stop");
        runner.stop();
        standby.promote().expect("promotion");

        // Its launcher finishes the work.
        wait_for(&mut there, "SELECT phase FROM zdd.changes", "expanded");
        let added = there.number(&format!("SELECT count(*) FROM address WHERE id > {ROWS}"));
        let acknowledged = acknowledged.load(Ordering::Relaxed);
        if synchronous {
            assert!((acknowledged..=acknowledged + 1).contains(&added), "{acknowledged} rows, but {added} there");
        }
        check_expanded(&mut there, ROWS + added, ROWS);
        let wrong = "SELECT count(*) FROM address WHERE streetname IS DISTINCT FROM 'Elm Street'
            OR housenumber IS DISTINCT FROM id::text OR street IS DISTINCT FROM 'Elm Street ' || id";
        assert_eq!(there.number(wrong), 0);
        assert_eq!(there.text("SELECT * FROM zdd.events WHERE event = 'error'"), "");
    }
}

#[test]
fn a_standby_that_lags_makes_the_backfill_wait() {
    let primary = primary(&[("zdd.max_replication_lag", "1MB")]);
    let mut db = address(Session::on(&primary), 20_000);
    let standby = primary.standby(&STANDBY).expect("a standby");
    let mut there = db.at(&standby);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    db.run(START);
    wait_for_rows(&mut db, 1);
    for _ in 0..2 {
        there.run("SELECT pg_wal_replay_pause()");
        wait_for(&mut there, "SELECT pg_get_wal_replay_pause_state()", "paused");
        let before = db.text("SELECT clock_timestamp()");
        db.run("SELECT pg_logical_emit_message(false, 'test', repeat('x', 2000000))");
        let waiting =
            "SELECT state, waiting_for LIKE 'replication lag of standby \"standby\": _.% MB of at most 1.0 MB'
            FROM zdd.progress";
        wait_for(&mut db, waiting, "waiting|t");
        let since = format!("SELECT waiting_since BETWEEN '{before}' AND clock_timestamp() FROM zdd.progress");
        assert_eq!(db.text(&since), "t");
        let rows = rows_split(&mut db);
        // Nothing moves, whatever the limit.
        db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
        let looks = "SELECT count(*) FROM zdd.sample WHERE at > clock_timestamp() - interval '3 s'";
        wait_for(&mut db, &format!("SELECT ({looks}) >= 2"), "t");
        assert_eq!(rows_split(&mut db), rows);
        db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
        there.run("SELECT pg_wal_replay_resume()");
        wait_for_rows(&mut db, rows + 1);
    }
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
    wait_for_replay(&mut db, &mut there);
    assert_eq!(there.text("SELECT rows, in_sync FROM zdd.verify('address.street')"), "20000|20000");
}

#[test]
fn batches_do_not_wait_for_synchronous_standbys() {
    let primary = primary(&[]);
    let mut db = address(Session::on(&primary), 20_000);
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 1000)");
    db.run(START);
    wait_for_rows(&mut db, 1);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    // From now on a commit that waits for its standby waits forever.
    primary.configure(&[("synchronous_standby_names", "nobody")]).expect("a setting");
    primary.reload().expect("a reload");
    let other = db.another().in_background("CREATE TABLE other ()");
    wait_for(&mut db, waits, "1");
    let rows = rows_split(&mut db);
    wait_for_rows(&mut db, rows + 3_000);
    assert_eq!(db.text(waits), "1");
    primary.configure(&[("synchronous_standby_names", "")]).expect("a setting");
    primary.reload().expect("a reload");
    other.join().1.expect("a table");
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    db.run(EXPANDED);
    check_expanded(&mut db, 20_000, 20_000);
}
