//! The launcher: what a restart, a crash or the death of a worker leaves unfinished goes on by itself.

use std::time::{Duration, Instant};

use pg_zdd_cluster::address::{PATIENCE, address, check_expanded, wait_for, wait_for_rows};
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, Stop, wait_until};

const ROWS: i32 = 60_000;
const START: &str = "SELECT zdd.start_backfill('address.street')";
const PRELOADED: [(&str, &str); 2] = [("shared_preload_libraries", "pg_zdd"), ("zdd.launcher_naptime", "1s")];

/// A backfill under way in a worker, slow enough to come in between.
#[track_caller]
fn under_way(cluster: &Cluster) -> Session {
    let mut db = address(Session::on(cluster), ROWS);
    db.run(START);
    wait_for_rows(&mut db, 2_000);
    db
}

/// Waits until the launcher has brought the backfill to its end.
#[track_caller]
fn finished(db: &mut Session) {
    db.run("SELECT zdd.alter_change('address.street', batch_target => '50ms', max_rows_per_second => 0)");
    wait_for(db, "SELECT phase FROM zdd.changes", "expanded");
    check_expanded(db, ROWS.into(), ROWS.into());
}

#[test]
fn goes_on_after_a_crash() {
    let cluster = Cluster::start(&PRELOADED).expect("a cluster");
    let mut db = under_way(&cluster);
    let worker = db.number("SELECT pid FROM zdd.workers") as i32;
    cluster.kill9_backend(worker).expect("kill");
    wait_until("the server is down", PATIENCE, || Ok(db.attempt("SELECT").is_err())).expect("a crash");
    wait_until("the server is back", PATIENCE, || Ok(db.connects())).expect("a server");
    finished(&mut db.another());
}

#[test]
fn goes_on_after_a_restart() {
    let cluster = Cluster::start(&PRELOADED).expect("a cluster");
    let mut db = under_way(&cluster);
    for stop in [Stop::Immediate, Stop::Fast] {
        let begun = Instant::now();
        cluster.stop(stop).expect("stop");
        // The server needs a moment for itself too.
        assert!(begun.elapsed() < Duration::from_secs(5), "{stop:?} took {:?}", begun.elapsed());
        cluster.start_again().expect("a server");
        db = db.another();
        let before = db.number("SELECT rows_split FROM zdd.changes");
        wait_for_rows(&mut db, before + 1);
    }
    finished(&mut db);
}

#[test]
fn a_terminated_worker_is_replaced() {
    let cluster = Cluster::start(&PRELOADED).expect("a cluster");
    let mut db = under_way(&cluster);
    let worker = db.number("SELECT pid FROM zdd.workers");
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_for(&mut db, &format!("SELECT count(*) FROM zdd.workers WHERE pid <> {worker}"), "1");
    finished(&mut db);
}

#[test]
fn a_clone_does_nothing_by_itself() {
    let settings = [PRELOADED[0], PRELOADED[1], ("zdd.auto_resume", "off")];
    let cluster = Cluster::start(&settings).expect("a cluster");
    let mut db = under_way(&cluster);
    cluster.restart(Stop::Fast).expect("a restart");
    db = db.another();
    wait_for(&mut db, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_zdd launcher'", "1");
    assert_eq!(db.text("SELECT state, workers FROM zdd.progress"), "starting|0");
    // Once it may, it does.
    db.run("ALTER SYSTEM SET zdd.auto_resume = on");
    db.run("SELECT pg_reload_conf()");
    wait_for(&mut db, "SELECT workers FROM zdd.progress", "1");
    finished(&mut db);
}

#[test]
fn a_database_is_dropped_with_its_worker() {
    let cluster = Cluster::start(&PRELOADED).expect("a cluster");
    let mut db = under_way(&cluster);
    let name = db.text("SELECT current_database()");
    drop(db);
    let mut other = Session::connect(cluster.config("postgres", "postgres", "test"));
    other.run(&format!("DROP DATABASE {name} WITH (FORCE)"));
    wait_for(&mut other, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_zdd worker'", "0");
}

#[test]
fn a_table_is_dropped_or_rewritten_under_a_worker() {
    let cluster = Cluster::start(&PRELOADED).expect("a cluster");
    let mut db = under_way(&cluster);
    db.run("VACUUM FULL address");
    db.run("CLUSTER address USING address_pkey");
    finished(&mut db);
    let mut db = under_way(&cluster);
    db.run("DROP TABLE address");
    wait_for(&mut db, "SELECT count(*) FROM zdd.workers", "0");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");
    assert_eq!(db.text("SELECT count(*) FROM zdd.events WHERE event = 'error'"), "0");
}
