//! A backfill that is killed, cancelled, locked out and moved under: nothing is lost, nothing is done twice.

use pg_zdd_cluster::address::{PATIENCE, address, check_expanded, rows_split, split};
use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::session::{Background, Session};
use pg_zdd_cluster::{Cluster, Stop, wait_until};

const BACKFILL: &str = "CALL zdd.backfill('address.street')";

/// Waits until a backfill has split so many rows, or has ended.
fn wait_for_rows(db: &mut Session, backfill: &Background, rows: i64) {
    wait_until("rows are split", PATIENCE, || Ok(rows_split(db) >= rows || backfill.has_ended())).expect("progress");
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill9,
    ImmediateStop,
    Terminate,
    Cancel,
}

#[test]
fn struck_down_again_and_again() {
    const ROWS: i64 = 100_000;
    const BLOWS: usize = 24;
    let seed = pg_zdd_cluster::fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let cluster = Cluster::start(&[]).expect("a cluster");
    let mut db = address(Session::on(&cluster), ROWS as i32);
    let (mut struck, mut touched) = (0, 0);
    while struck < BLOWS {
        let mut backfiller = db.another();
        let pid = backfiller.pid();
        let backfill = backfiller.in_background(BACKFILL);
        let done = rows_split(&mut db);
        // Somewhere in the part of the way that leaves enough for the blows to come.
        let step = (ROWS - done) / (BLOWS - struck + 1) as i64;
        wait_for_rows(&mut db, &backfill, done + rng.i64(1..2 * step));
        let blow = [Blow::Kill9, Blow::ImmediateStop, Blow::Terminate, Blow::Cancel][struck % 4];
        match blow {
            Blow::Kill9 => cluster.kill9_backend(pid).expect("kill"),
            Blow::ImmediateStop => cluster.stop(Stop::Immediate).expect("stop"),
            Blow::Terminate => db.run(&format!("SELECT pg_terminate_backend({pid})")),
            Blow::Cancel => db.run(&format!("SELECT pg_cancel_backend({pid})")),
        }
        let (_, result) = backfill.join();
        assert!(result.is_err(), "{blow:?} came too late after {done} rows");
        struck += 1;
        match blow {
            Blow::Kill9 => {
                // The server takes every session down with it and starts again.
                let down = || Ok(db.attempt("SELECT").is_err());
                wait_until("the server is down", PATIENCE, down).expect("a crash");
                wait_until("the server is back", PATIENCE, || Ok(db.connects())).expect("a server");
                db = db.another();
            }
            Blow::ImmediateStop => {
                cluster.start_again().expect("a server");
                db = db.another();
            }
            Blow::Terminate | Blow::Cancel => {}
        }
        // Applications go on, in both shapes, on rows that are split and on rows that are pending.
        let (old, new) = (rng.i64(1..=ROWS), rng.i64(1..=ROWS));
        touched +=
            db.number(&format!("SELECT count(*) FROM address WHERE id IN ({old}, {new}) AND streetname IS NULL"));
        db.run(&format!("UPDATE address SET street = 'Old  ' || id, note = 'old' WHERE id = {old}"));
        db.run(&format!("UPDATE address SET streetname = 'New 1', note = 'new' WHERE id = {new}"));
    }
    db.run(BACKFILL);
    check_expanded(&mut db, ROWS, ROWS - touched);
    let wrong = "SELECT count(*) FROM address WHERE housenumber IS DISTINCT FROM id::text
        OR street IS DISTINCT FROM CASE note WHEN 'old' THEN 'Old  ' WHEN 'new' THEN 'New 1 ' ELSE 'Elm Street ' END || id
        OR streetname IS DISTINCT FROM CASE note WHEN 'old' THEN 'Old' WHEN 'new' THEN 'New 1' ELSE 'Elm Street' END";
    assert_eq!(db.number(wrong), 0);
}

#[test]
fn rewritten_in_the_middle() {
    let mut db = address(Session::new(), 60_000);
    let backfill = db.another().in_background(BACKFILL);
    for (rows, rewrite) in [
        (5_000, "VACUUM FULL address"),
        (20_000, "CLUSTER address USING address_pkey"),
        (30_000, "ALTER TABLE address ALTER note TYPE varchar COLLATE \"C\" USING coalesce(note, 'x')"),
        (40_000, "VACUUM address"),
    ] {
        let enough = format!("SELECT count(streetname) >= {rows} FROM address");
        wait_until("rows are split", PATIENCE, || Ok(backfill.has_ended() || db.text(&enough) == "t"))
            .expect("progress");
        db.run(rewrite);
        assert!(!backfill.has_ended(), "{rewrite} came too late");
    }
    backfill.join().1.expect("the backfill succeeds");
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn truncated_in_the_middle() {
    let mut db = address(Session::new(), 20_000);
    let backfill = db.another().in_background(BACKFILL);
    wait_for_rows(&mut db, &backfill, 2_000);
    db.run("TRUNCATE address; INSERT INTO address (id, street) VALUES (1, 'Elm Street 1')");
    backfill.join().1.expect("the backfill succeeds");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    assert_eq!(db.text("SELECT rows, in_sync FROM zdd.verify('address.street')"), "1|1");
}

#[test]
fn locked_rows_are_skipped_and_swept_up() {
    for lock in ["FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE"] {
        let mut db = address(Session::new(), 5_000);
        let mut other = db.another();
        other.run(&format!("BEGIN; SELECT FROM address WHERE id IN (1, 2, 2500, 5000) {lock}"));
        let mut backfill = db.another().in_background(BACKFILL);
        let waiting = "SELECT skipped_blocks, waiting_for FROM zdd.progress WHERE waiting_for LIKE 'row locks%'";
        wait_until("the backfill waits", PATIENCE, || Ok(!db.text(waiting).is_empty())).expect("a wait");
        assert_eq!(db.text(waiting), "3|row locks of other sessions", "{lock}");
        assert_eq!(db.number("SELECT pending FROM zdd.verify('address.street')"), 4, "{lock}");
        assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanding");
        // Ctrl-C while it waits, and another try.
        db.run(&format!("SELECT pg_cancel_backend({})", backfill.pid));
        assert!(backfill.join().1.expect_err("cancelled").contains("(57014)"));
        backfill = db.another().in_background(BACKFILL);
        other.run("COMMIT");
        backfill.join().1.expect("the backfill succeeds");
        check_expanded(&mut db, 5_000, 5_000);
        assert_eq!(db.text("SELECT * FROM zdd.progress"), "");
    }
}

#[test]
fn rows_locked_for_their_key_are_no_obstacle() {
    let mut db = address(Session::new(), 5_000);
    db.run("CREATE TABLE child (id int REFERENCES address)");
    let mut other = db.another();
    other.run("BEGIN; INSERT INTO child VALUES (1), (5000); SELECT FROM address WHERE id = 2500 FOR KEY SHARE");
    let backfill = db.another().in_background(BACKFILL);
    // All rows are split; only the short lock that ends `expanding` waits for the other session.
    let waiting = "SELECT count(*) FROM zdd.workers WHERE waiting_for = 'a short lock on the table'";
    wait_until("the backfill waits for the lock alone", PATIENCE, || Ok(db.number(waiting) == 1)).expect("a wait");
    assert_eq!(db.number("SELECT count(*) FROM address WHERE streetname IS NULL"), 0);
    other.run("ROLLBACK");
    backfill.join().1.expect("the backfill succeeds");
    check_expanded(&mut db, 5_000, 5_000);
}

#[test]
fn rows_under_change_are_left_to_their_writers() {
    let mut db = address(Session::new(), 5_000);
    let (mut commits, mut rolls_back) = (db.another(), db.another());
    commits.run("BEGIN; UPDATE address SET street = 'Oak 7' WHERE id = 1; DELETE FROM address WHERE id = 2");
    commits.run("UPDATE address SET housenumber = '8' WHERE id = 3");
    rolls_back.run("BEGIN; UPDATE address SET street = 'never' WHERE id = 4; DELETE FROM address WHERE id = 5");
    let backfill = db.another().in_background(BACKFILL);
    let waiting = "SELECT count(*) FROM zdd.workers WHERE waiting_for LIKE 'row locks%'";
    wait_until("the backfill waits", PATIENCE, || Ok(db.number(waiting) == 1)).expect("a wait");
    commits.run("COMMIT");
    rolls_back.run("ROLLBACK");
    backfill.join().1.expect("the backfill succeeds");
    check_expanded(&mut db, 4_999, 4_997);
    assert_eq!(
        db.text("SELECT id, street, streetname, housenumber FROM address WHERE id < 6 ORDER BY id"),
        "1|Oak 7|Oak|7\n3|Elm Street 8|Elm Street|8\n4|Elm Street 4|Elm Street|4\n5|Elm Street 5|Elm Street|5"
    );
}

#[test]
fn several_sessions_at_once() {
    let mut db = address(Session::new(), 60_000);
    let backfills = [(); 3].map(|()| db.another().in_background(BACKFILL));
    for backfill in backfills {
        backfill.join().1.expect("the backfill succeeds");
    }
    check_expanded(&mut db, 60_000, 60_000);
}

#[test]
fn two_changes_of_one_table_at_once() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text, name text)");
    db.run("INSERT INTO address SELECT i, 'Elm Street ' || i, i || ', Joe' FROM generate_series(1, 30000) AS i");
    split(&mut db);
    db.run("SELECT zdd.split_column('address', 'name', columns => 'last text, first text', delimiter => ', ')");
    db.run("SELECT zdd.alter_change('address.name', batch_target => '1ms', max_rows_per_second => 20000)");
    let street = db.another().in_background(BACKFILL);
    let name = db.another().in_background("CALL zdd.backfill('address.name')");
    for backfill in [street, name] {
        backfill.join().1.expect("the backfill succeeds");
    }
    // Whichever backfill comes to a row first splits it for both changes, and counts it.
    assert_eq!(db.number("SELECT sum(rows_split) FROM zdd.changes"), 30_000);
    for change in ["address.street", "address.name"] {
        assert_eq!(db.text(&format!("SELECT phase FROM zdd.changes WHERE change = '{change}'")), "expanded");
        assert_eq!(db.text(&format!("SELECT in_sync FROM zdd.verify('{change}')")), "30000");
    }
}

#[test]
fn rolled_back_in_the_middle() {
    let mut db = address(Session::new(), 50_000);
    let backfill = db.another().in_background(BACKFILL);
    wait_for_rows(&mut db, &backfill, 5_000);
    db.run("SELECT zdd.rollback('address.street')");
    let (session, result) = backfill.join();
    result.expect("the backfill ends well");
    let notices = session.notices();
    assert!(notices.iter().any(|notice| notice.contains("stopped, the change is rolled_back")), "{notices:?}");
    assert_eq!(db.text("SELECT * FROM address WHERE id = 1"), "1|Elm Street 1|~");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");
}

#[test]
fn the_table_dropped_in_the_middle() {
    let mut db = address(Session::new(), 50_000);
    let backfill = db.another().in_background(BACKFILL);
    wait_for_rows(&mut db, &backfill, 5_000);
    db.run("DROP TABLE address");
    backfill.join().1.expect("the backfill ends well");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "rolled_back");
}

#[test]
fn altered_in_the_middle() {
    let mut db = address(Session::new(), 50_000);
    db.run("UPDATE address SET street = '' WHERE id % 100 = 0");
    let backfill = db.another().in_background(BACKFILL);
    wait_for_rows(&mut db, &backfill, 10_000);
    db.run("SELECT zdd.alter_change('address.street', unmatched => 'whole', conflict => 'error')");
    db.run("SELECT zdd.alter_change('address.street', max_rows_per_second => 0)");
    assert!(db.error("SELECT zdd.fence('address.street')").contains("(55000)"));
    backfill.join().1.expect("the backfill succeeds");
    check_expanded(&mut db, 50_000, 50_000);
    assert_eq!(db.number("SELECT count(*) FROM address WHERE streetname = ''"), 500);
}

#[test]
fn partitions_come_and_go_in_the_middle() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text) PARTITION BY RANGE (id)");
    for n in 0..6 {
        let (from, to) = (n * 10_000, (n + 1) * 10_000);
        db.run(&format!("CREATE TABLE address_{n} PARTITION OF address FOR VALUES FROM ({from}) TO ({to})"));
    }
    db.run("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(0, 59999) AS i");
    split(&mut db);
    let backfill = db.another().in_background(BACKFILL);
    wait_for_rows(&mut db, &backfill, 5_000);
    db.run("DROP TABLE address_4");
    db.run("ALTER TABLE address DETACH PARTITION address_5");
    db.run("CREATE TABLE address_6 PARTITION OF address FOR VALUES FROM (60000) TO (70000)");
    db.run("INSERT INTO address (id, street) VALUES (60000, 'Elm Street 60000')");
    // One that brings rows which nobody has split.
    db.run(
        "CREATE TABLE address_7 (LIKE address_0);
         INSERT INTO address_7 SELECT i, 'Elm Street ' || i FROM generate_series(70000, 79999) AS i;
         ALTER TABLE address ATTACH PARTITION address_7 FOR VALUES FROM (70000) TO (80000)",
    );
    assert!(!backfill.has_ended(), "the partitions came too late");
    backfill.join().1.expect("the backfill succeeds");
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    let wrong =
        "SELECT count(*), count(*) FILTER (WHERE streetname <> 'Elm Street' OR housenumber <> id::text) FROM address";
    assert_eq!(db.text(wrong), "50001|0");
    assert_eq!(db.text("SELECT rows, in_sync FROM zdd.verify('address.street')"), "50001|50001");
}

#[test]
fn triggers_of_the_table_do_not_fire_unless_asked_for() {
    for (fire, notes) in [("false", "0"), ("true", "2000")] {
        let mut db = Session::new();
        db.run(
            "CREATE TABLE address (id int PRIMARY KEY, street text, note text);
             INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 2000) AS i;
             CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := ''updated''; RETURN NEW; END';
             CREATE TRIGGER stamp BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION stamp()",
        );
        split(&mut db);
        db.run(&format!("CALL zdd.backfill('address.street', fire_triggers => {fire})"));
        assert_eq!(db.text("SELECT count(note) FROM address"), notes);
        check_expanded(&mut db, 2_000, 2_000);
    }
}
