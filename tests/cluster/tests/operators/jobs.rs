//! Backfills and repairs, and what others do meanwhile.

use pg_zdd_cluster::address::{PATIENCE, wait_for};
use pg_zdd_cluster::session::shared_cluster;
use pg_zdd_cluster::wait_until;

use crate::stage::{BACKFILL, NEVER, ROLLBACK, START_BACKFILL, Stage, WORKERS, table_of, worker};

/// What must be empty when all changes of a database are over.
const LEFT: &str = "SELECT 'job', change_id FROM zdd.job UNION ALL SELECT 'lane', change_id FROM zdd.lane
    UNION ALL SELECT 'skipped', change_id FROM zdd.skipped UNION ALL SELECT 'worker', change_id FROM zdd.worker
    UNION ALL SELECT 'sample', change_id FROM zdd.sample UNION ALL SELECT 'guarded', change_id FROM zdd.guarded
    UNION ALL SELECT 'built_index', change_id FROM zdd.built_index";

/// Gives a change up while the process that works on it does not move, outside of a transaction.
fn given_up_while_frozen(in_worker: bool) {
    let mut stage = Stage::expanding(&table_of(2000), NEVER);
    stage.db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 100)");
    let (backfill, pid) = if in_worker {
        stage.db.run(START_BACKFILL);
        (None, worker(&mut stage.db))
    } else {
        let backfill = stage.db.another().in_background(BACKFILL);
        let pid = backfill.pid;
        (Some(backfill), pid)
    };
    wait_for(&mut stage.db, "SELECT count(*) FROM zdd.worker WHERE waiting_for = 'max_rows_per_second'", "1");
    let outside = format!(
        "SELECT count(*) FROM pg_locks WHERE pid = {pid} AND locktype <> 'userlock' AND mode <> 'ExclusiveLock'"
    );
    wait_until("it is frozen outside of a transaction", PATIENCE, || {
        shared_cluster().freeze_backend(pid)?;
        let is_outside = stage.db.number(&outside) == 0;
        if !is_outside {
            shared_cluster().thaw_backend(pid)?;
        }
        Ok(is_outside)
    })
    .expect("a moment outside of a transaction");
    stage.db.run("SET zdd.lock_patience = '5s'");
    let given_up = stage.db.attempt(ROLLBACK);
    shared_cluster().thaw_backend(pid).expect("a process");
    assert_eq!(given_up, Ok(()));
    if let Some(backfill) = backfill {
        let (_, _) = backfill.join();
    }
    wait_for(&mut stage.db, WORKERS, "0");
    assert_eq!(stage.db.text(LEFT), "");
    let after = "SELECT event FROM zdd.event WHERE id > (SELECT id FROM zdd.event WHERE event = 'rolled_back')";
    assert_eq!(stage.db.text(after), "");
}

#[test]
fn a_change_given_up_before_its_session_wakes_leaves_nothing() {
    given_up_while_frozen(false);
}

#[test]
fn a_change_given_up_before_its_worker_wakes_leaves_nothing() {
    given_up_while_frozen(true);
}
