//! A change whose rule stops those who count its rows where a test wants it, until the test lets them go.

use pg_zdd_cluster::address::{PATIENCE, wait_for};
use pg_zdd_cluster::session::{Background, Session};
use pg_zdd_cluster::wait_until;

pub const BACKFILL: &str = "CALL zdd.backfill('address.street')";
pub const START_BACKFILL: &str = "SELECT zdd.start_backfill('address.street')";
pub const CONTRACT: &str = "CALL zdd.contract('address.street', force => true)";
pub const START_CONTRACT: &str = "SELECT zdd.start_contract('address.street', force => true)";
pub const FENCE: &str = "SELECT zdd.fence('address.street')";
pub const UNFENCE: &str = "SELECT zdd.unfence('address.street')";
pub const ROLLBACK: &str = "SELECT zdd.rollback('address.street')";
/// A second change of the same table.
pub const SPLIT_NAME: &str =
    "SELECT zdd.split_column('address', 'name', columns => 'last text, first text', delimiter => ', ')";

/// Workers of this database, as PostgreSQL knows them.
pub const WORKERS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_zdd%' AND datname = current_database()";

/// While the change is fenced.
pub const FENCED: &str = "EXISTS (SELECT FROM zdd.change WHERE name = 'address.street' AND phase = 'fenced')";
/// While somebody verifies.
pub const VERIFIES: &str = "EXISTS (SELECT FROM zdd.worker WHERE doing = 'verifies')";
pub const NEVER: &str = "false";

/// A table of a hundred addresses.
pub const TABLE: &str = "CREATE TABLE address (id int PRIMARY KEY, street text, name text);
    INSERT INTO address SELECT i, 'Elm ' || i, 'Doe, ' || i FROM generate_series(1, 100) AS i";

/// So many addresses, few on a page.
pub fn table_of(rows: u32) -> String {
    format!(
        "CREATE TABLE address (id int PRIMARY KEY, street text) WITH (fillfactor = 10);
         INSERT INTO address SELECT i, 'Elm ' || i FROM generate_series(1, {rows}) AS i"
    )
}

pub struct Stage {
    pub db: Session,
    gate: Session,
}

impl Stage {
    /// An expanding change. Who splits or joins a value stops there if `when` holds for its first part, `t`.
    #[track_caller]
    pub fn expanding(table: &str, when: &str) -> Stage {
        Stage::on(Session::new(), table, when)
    }

    /// The same, expanded.
    #[track_caller]
    pub fn expanded(table: &str, when: &str) -> Stage {
        let mut stage = Stage::expanding(table, when);
        stage.expand();
        stage
    }

    #[track_caller]
    pub fn on(mut db: Session, table: &str, when: &str) -> Stage {
        db.run(table);
        db.run(&format!(
            "CREATE FUNCTION held(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN IF {when} THEN PERFORM pg_advisory_xact_lock_shared(8); END IF; RETURN t; END $$"
        ));
        db.run(
            "SELECT zdd.split_column('address', 'street', columns => 'streetname text NOT NULL, housenumber text',
                split_sql => ARRAY['public.held(nullif(split_part(street, '' '', 1), ''''))', 'nullif(split_part(street, '' '', 2), '''')'],
                join_sql => 'public.held(streetname) || '' '' || coalesce(housenumber, '''')')",
        );
        let mut gate = db.another();
        gate.run("SELECT pg_advisory_lock(8)");
        Stage { db, gate }
    }

    /// Splits all rows with the gate open.
    #[track_caller]
    pub fn expand(&mut self) {
        self.open();
        self.db.run(BACKFILL);
        assert_eq!(self.phase(), "expanded");
        self.gate.run("SELECT pg_advisory_lock(8)");
    }

    /// Waits until somebody stands before the gate.
    #[track_caller]
    pub fn until_held(&mut self) {
        let held = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        wait_for(&mut self.db, held, "t");
    }

    #[track_caller]
    pub fn open(&mut self) {
        self.gate.run("SELECT pg_advisory_unlock(8)");
    }

    #[track_caller]
    pub fn phase(&mut self) -> String {
        self.db.text("SELECT phase FROM zdd.change WHERE name = 'address.street' ORDER BY id DESC LIMIT 1")
    }

    /// The change is as if it had never been fenced: nothing of a contract is left, and the old application can write all that
    /// it could, NULL too.
    #[track_caller]
    pub fn check_expanded(&mut self) {
        assert_eq!(self.phase(), "expanded");
        let left = self.db.text("SELECT conname FROM pg_constraint WHERE conname LIKE 'zdd\\_not\\_null%'");
        assert_eq!(left, "", "left of the contract");
        self.db.run("UPDATE address SET street = NULL WHERE id = 1; UPDATE address SET street = 'Oak 1' WHERE id = 2");
        assert_eq!(self.db.text("SELECT streetname, housenumber FROM address WHERE id = 2"), "Oak|1");
    }
}

/// Waits until a session has come as far as it gets: it waits for a lock, or has ended.
#[track_caller]
pub fn until_stuck(db: &mut Session, call: &Background) {
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE pid = {} AND state = 'active' AND wait_event_type IN ('Lock', 'Extension')",
        call.pid
    );
    wait_until("the call waits", PATIENCE, || Ok(call.has_ended() || db.number(&waits) > 0)).expect("a wait");
}

/// Waits until a session is seen to want a table all for itself, or has ended.
#[track_caller]
pub fn until_it_wants_the_table(db: &mut Session, call: &Background) {
    let wants = format!(
        "SELECT count(*) FROM pg_locks WHERE pid = {} AND NOT granted AND locktype = 'relation'
             AND mode = 'AccessExclusiveLock'",
        call.pid
    );
    wait_until("the call wants the table", PATIENCE, || Ok(call.has_ended() || db.number(&wants) > 0)).expect("a wait");
}

/// The pid of the only worker.
#[track_caller]
pub fn worker(db: &mut Session) -> i32 {
    wait_for(db, WORKERS, "1");
    db.number(&WORKERS.replace("count(*)", "pid")) as i32
}

/// Ends the only worker, as an administrator does.
#[track_caller]
pub fn end_worker(db: &mut Session) {
    let pid = worker(db);
    db.run(&format!("SELECT pg_terminate_backend({pid})"));
    wait_for(db, WORKERS, "0");
}
