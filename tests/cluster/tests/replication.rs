//! Logical replication between two servers: the steps of docs/operations.md keep both ends equal, row by row, while an
//! application writes. With a key on the subscriber and without one, and with a change on one end or on both.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pg_zdd_cluster::address::{PATIENCE, wait_for};
use pg_zdd_cluster::load::Runner;
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{Cluster, wait_until};

const SPLIT: &str = r#"SELECT zdd.split_column('address', 'street', columns => 'streetname text, housenumber text',
    regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '[{streetname}][ {housenumber}]')"#;
const BACKFILL: &str = "CALL zdd.backfill('address.street')";
const FENCE: &str = "SELECT zdd.fence('address.street')";
const UNFENCE: &str = "SELECT zdd.unfence('address.street')";
const ROLLBACK: &str = "SELECT zdd.rollback('address.street')";
const CONTRACT: &str = "CALL zdd.contract('address.street', accept_unmatched => true, force => true)";
const ADD: &str = "ALTER TABLE address ADD COLUMN streetname text, ADD COLUMN housenumber text";
const DROP_NEW: &str = "ALTER TABLE address DROP COLUMN streetname, DROP COLUMN housenumber";
const HIDE: &str = "ALTER TABLE address RENAME COLUMN street TO street_zdd_fenced";
const SHOW: &str = "ALTER TABLE address RENAME COLUMN street_zdd_fenced TO street";
const DROP_OLD: &str = "ALTER TABLE address DROP COLUMN street_zdd_fenced";

fn publishing_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let settings = [
        ("wal_level", "logical"),
        ("max_replication_slots", "20"),
        ("max_wal_senders", "20"),
        ("max_worker_processes", "32"),
    ];
    CLUSTER.get_or_init(|| Cluster::start(&settings).expect("a publisher"))
}

fn subscribing_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let settings = [
        ("max_replication_slots", "20"),
        ("max_logical_replication_workers", "20"),
        ("max_worker_processes", "40"),
        // How soon it tries again after an error.
        ("wal_retrieve_retry_interval", "100ms"),
    ];
    CLUSTER.get_or_init(|| Cluster::start(&settings).expect("a subscriber"))
}

/// Whether the subscriber finds a row by its key, or by comparing all of its columns.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Primary,
    None,
}

/// Who has a change.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Publisher,
    Both,
}

/// Which version of the application writes to the publisher.
#[derive(Clone, Copy, PartialEq)]
enum App {
    Old,
    New,
    Stopped,
}

/// A table on both ends, and an application that writes it.
struct Ends {
    key: Key,
    change: Change,
    publisher: Session,
    subscriber: Session,
    app: Arc<Mutex<App>>,
    written: Arc<AtomicI64>,
    runner: Runner,
}

fn lock(app: &Mutex<App>) -> std::sync::MutexGuard<'_, App> {
    app.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the application does, one statement after the other: INSERT, UPDATE of either side and of neither, DELETE, of rows
/// that were there before and of its own; values that match, that do not, and NULL.
fn statement(app: App, n: i64) -> Option<String> {
    use App::*;
    let (insert, set) = match app {
        Old => ("street, note) VALUES ({n}, 'Elm Street {n}',", "street = 'Oak Road {n}'"),
        New => (
            "streetname, housenumber, note) VALUES ({n}, 'Elm Street', '{n}',",
            "streetname = 'Oak  Road', housenumber = '{n}b'",
        ),
        Stopped => return None,
    };
    let (old, own) = (n * 7 % 300, n - 30 - n % 10);
    let sql = match n % 10 {
        0..=2 => format!("INSERT INTO address (id, {insert} 'inserted')"),
        3 => format!("UPDATE address SET {set} WHERE id = {old}"),
        4 => format!("UPDATE address SET {set} WHERE id = {own}"),
        5 => format!("UPDATE address SET note = 'note {n}' WHERE id = {old}"),
        6 => format!("UPDATE address SET note = 'note {n}' WHERE id = {}", own + 1),
        7 => format!("DELETE FROM address WHERE id = {}", if n % 40 == 7 { old } else { own + 2 }),
        8 if app == New => format!("UPDATE address SET streetname = NULL, housenumber = NULL WHERE id = {old}"),
        8 => format!("UPDATE address SET street = {} WHERE id = {old}", if n % 20 == 8 { "NULL" } else { "''" }),
        _ => format!("UPDATE address SET note = 'x', {set} WHERE id BETWEEN {old} AND {}", old + 5),
    };
    Some(sql.replace("{n}", &n.to_string()))
}

impl Ends {
    /// Both ends with the same rows, subscribed, and the old application writing.
    #[track_caller]
    fn new(key: Key, change: Change) -> Ends {
        let mut publisher = Session::on(publishing_cluster());
        let mut subscriber = Session::on(subscribing_cluster());
        let columns = match key {
            Key::Primary => "id int PRIMARY KEY",
            Key::None => "id int",
        };
        for db in [&mut publisher, &mut subscriber] {
            db.run(&format!("CREATE TABLE address ({columns}, street text, note text)"));
        }
        if key == Key::None {
            publisher.run("ALTER TABLE address REPLICA IDENTITY FULL");
        }
        // Without a key there may be rows that are equal.
        let copies = if key == Key::None { 2 } else { 1 };
        publisher.run(&format!(
            "INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 300) AS i, generate_series(1, {copies})"
        ));
        publisher.run("CREATE PUBLICATION feed FOR TABLE address");
        subscribe(&mut publisher, &mut subscriber);
        let (app, written) = (Arc::new(Mutex::new(App::Old)), Arc::new(AtomicI64::new(0)));
        let runner = {
            let (mut client, app, written) = (publisher.another(), app.clone(), written.clone());
            Runner::start(Duration::from_millis(2), move || {
                let app = lock(&app);
                let n = 1_000 + written.load(Ordering::Relaxed);
                if let Some(sql) = statement(*app, n) {
                    client.run(&sql);
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let mut ends = Ends { key, change, publisher, subscriber, app, written, runner };
        ends.check();
        ends
    }

    /// Another version of the application takes over; returns which one was there.
    fn deploy(&self, app: App) -> App {
        std::mem::replace(&mut *lock(&self.app), app)
    }

    /// Lets the application write for a while.
    #[track_caller]
    fn traffic(&self) {
        let before = self.written.load(Ordering::Relaxed);
        wait_until("the application has written", PATIENCE, || Ok(self.written.load(Ordering::Relaxed) >= before + 60))
            .unwrap();
    }

    /// Waits until the subscriber has received everything that the publisher has written by now.
    #[track_caller]
    fn receive(&mut self) {
        let written = self.publisher.text("SELECT pg_current_wal_insert_lsn()");
        let received = format!(
            "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots
            WHERE slot_type = 'logical' AND database = current_database()"
        );
        wait_for(&mut self.publisher, &received, "t");
    }

    /// Stops the application, and compares all rows on both ends.
    #[track_caller]
    fn check(&mut self) {
        self.traffic();
        let app = self.deploy(App::Stopped);
        self.receive();
        self.compare();
        self.deploy(app);
    }

    #[track_caller]
    fn compare(&mut self) {
        let columns = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
            WHERE attrelid = 'address'::regclass AND attnum > 0 AND NOT attisdropped";
        let columns = self.publisher.text(columns);
        let rows = format!("SELECT {columns} FROM address ORDER BY id, ROW({columns})");
        let (sent, received) = (self.publisher.text(&rows), self.subscriber.text(&rows));
        for (sent, received) in sent.lines().zip(received.lines()) {
            assert_eq!(received, sent, "({columns})");
        }
        assert_eq!(received.lines().count(), sent.lines().count());
    }

    /// Waits until replication has stopped at what the application writes, for a column that the subscriber lacks.
    #[track_caller]
    fn wait_until_it_stops(&mut self) {
        let errors = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats JOIN pg_subscription ON oid = subid
            JOIN pg_database AS d ON d.oid = subdbid AND datname = current_database()";
        let before = self.subscriber.number(errors);
        self.traffic();
        wait_for(&mut self.subscriber, &format!("SELECT ({errors}) > {before}"), "t");
    }

    /// A step on a subscriber that has a change of its own, or the DDL that does the same there.
    #[track_caller]
    fn on_subscriber(&mut self, step: &str, by_hand: &str) {
        self.subscriber.run(if self.change == Change::Both { step } else { by_hand });
    }

    #[track_caller]
    fn phases(&mut self, phase: &str) {
        let phases = "SELECT phase FROM zdd.changes";
        assert_eq!(self.publisher.text(phases), phase);
        assert_eq!(self.subscriber.text(phases), if self.change == Change::Both { phase } else { "" });
    }

    /// The step "expand".
    #[track_caller]
    fn expand(&mut self) {
        self.on_subscriber(SPLIT, ADD);
        self.check();
        self.publisher.run(SPLIT);
        self.check();
        self.phases("expanding");
        self.publisher.run(BACKFILL);
        self.receive();
        if self.change == Change::Both {
            self.subscriber.run(BACKFILL);
            assert_eq!(self.subscriber.text("SELECT rows_split FROM zdd.changes"), "0");
        }
        self.check();
        self.phases("expanded");
        self.deploy(App::New);
        self.check();
    }

    /// The step "fence".
    #[track_caller]
    fn fence(&mut self) {
        self.publisher.run(FENCE);
        self.wait_until_it_stops();
        self.on_subscriber(FENCE, HIDE);
        self.check();
        self.phases("fenced");
    }

    /// The step "unfence".
    #[track_caller]
    fn unfence(&mut self) {
        self.publisher.run(UNFENCE);
        self.wait_until_it_stops();
        self.on_subscriber(UNFENCE, SHOW);
        self.check();
        self.phases("expanded");
    }

    /// The step "contract".
    #[track_caller]
    fn contract(&mut self) {
        match (self.key, self.change) {
            (Key::Primary, Change::Publisher) => {
                self.publisher.run(CONTRACT);
                self.traffic();
                self.receive();
                self.subscriber.run(DROP_OLD);
            }
            (Key::Primary, Change::Both) => {
                self.subscriber.run("ALTER SUBSCRIPTION feed DISABLE");
                self.subscriber.run(CONTRACT);
                self.subscriber.run("ALTER TABLE address ADD COLUMN street_zdd_fenced text");
                self.subscriber.run("ALTER SUBSCRIPTION feed ENABLE");
                self.traffic();
                self.publisher.run(CONTRACT);
                self.traffic();
                self.receive();
                self.subscriber.run(DROP_OLD);
            }
            (Key::None, _) => {
                let app = self.deploy(App::Stopped);
                self.receive();
                self.publisher.run(CONTRACT);
                self.on_subscriber(CONTRACT, DROP_OLD);
                self.deploy(app);
            }
        }
        self.check();
        self.phases("contracted");
    }

    /// The step "rollback".
    #[track_caller]
    fn roll_back(&mut self, fenced: bool) {
        let by_hand = if fenced { format!("{SHOW}; {DROP_NEW}") } else { DROP_NEW.into() };
        match self.key {
            Key::Primary => {
                self.deploy(App::Stopped);
                self.publisher.run(ROLLBACK);
                self.deploy(App::Old);
                if fenced {
                    self.wait_until_it_stops()
                } else {
                    self.receive()
                }
                self.on_subscriber(ROLLBACK, &by_hand);
            }
            Key::None => {
                self.deploy(App::Stopped);
                self.receive();
                self.publisher.run(ROLLBACK);
                self.on_subscriber(ROLLBACK, &by_hand);
                self.deploy(App::Old);
            }
        }
        self.check();
        self.phases("rolled_back");
    }

    /// Both ends have the same columns in the end, and nothing was lost on the way.
    #[track_caller]
    fn end(mut self) {
        let columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'address'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1";
        assert_eq!(self.subscriber.text(columns), self.publisher.text(columns));
        self.deploy(App::Stopped);
        self.runner.stop();
        self.subscriber.run("DROP SUBSCRIPTION feed");
    }
}

/// Subscribes to all that the publisher's `feed` has.
#[track_caller]
fn subscribe(publisher: &mut Session, subscriber: &mut Session) {
    let name = publisher.text("SELECT current_database()");
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION feed CONNECTION 'host={} dbname={name} user=postgres' PUBLICATION feed WITH (slot_name = '{name}')",
        publishing_cluster().socket_dir().display()
    ));
    wait_for(subscriber, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'", "0");
}

fn contracted(key: Key, change: Change) {
    let mut ends = Ends::new(key, change);
    ends.expand();
    ends.fence();
    ends.unfence();
    ends.fence();
    ends.contract();
    ends.end();
}

fn rolled_back(key: Key, change: Change) {
    for fenced in [false, true] {
        let mut ends = Ends::new(key, change);
        ends.expand();
        if fenced {
            ends.fence();
        }
        ends.roll_back(fenced);
        ends.end();
    }
}

#[test]
fn with_a_key_and_a_change_on_the_publisher() {
    contracted(Key::Primary, Change::Publisher);
    rolled_back(Key::Primary, Change::Publisher);
}

#[test]
fn with_a_key_and_a_change_on_both_ends() {
    contracted(Key::Primary, Change::Both);
    rolled_back(Key::Primary, Change::Both);
}

#[test]
fn without_a_key_and_with_a_change_on_the_publisher() {
    contracted(Key::None, Change::Publisher);
    rolled_back(Key::None, Change::Publisher);
}

#[test]
fn without_a_key_and_with_a_change_on_both_ends() {
    contracted(Key::None, Change::Both);
    rolled_back(Key::None, Change::Both);
}

/// A subscriber that was fenced too early waits for a name that no longer comes; it goes on when it is unfenced.
#[test]
fn fenced_too_early_on_the_subscriber() {
    for key in [Key::Primary, Key::None] {
        let mut ends = Ends::new(key, Change::Both);
        ends.expand();
        ends.subscriber.run(FENCE);
        ends.wait_until_it_stops();
        ends.publisher.run(FENCE);
        ends.traffic();
        ends.subscriber.run(UNFENCE);
        ends.wait_until_it_stops();
        ends.subscriber.run(FENCE);
        ends.check();
        ends.end();
    }
}

/// A change of the subscriber alone: what arrives is not carried over, so its rows are split when the subscription is over.
#[test]
fn with_a_change_on_the_subscriber_alone() {
    for key in [Key::Primary, Key::None] {
        let mut ends = Ends::new(key, Change::Both);
        ends.subscriber.run(SPLIT);
        ends.check();
        // Rows that are found by their key may be split before.
        if key == Key::Primary {
            ends.subscriber.run(BACKFILL);
            ends.check();
        }
        ends.deploy(App::Stopped);
        ends.receive();
        ends.subscriber.run("DROP SUBSCRIPTION feed");
        if key == Key::Primary {
            assert_ne!(ends.subscriber.text("SELECT diverged FROM zdd.verify('address.street')"), "0");
            ends.subscriber.run("CALL zdd.repair('address.street', winner => 'old')");
        }
        ends.subscriber.run(BACKFILL);
        ends.compare();
        let states =
            "SELECT pending, diverged, unmatched < rows / 2, phase FROM zdd.verify('address.street'), zdd.changes";
        assert_eq!(ends.subscriber.text(states), "0|0|t|expanded");
        ends.runner.stop();
    }
}

/// What a publication FOR ALL TABLES sends for the tables of pg_zdd is discarded by a subscriber that has pg_zdd, also
/// where ids and names are those of its own changes.
#[test]
fn all_tables_are_published() {
    let mut publisher = Session::on(publishing_cluster());
    let mut subscriber = Session::on(subscribing_cluster());
    let table = "CREATE TABLE address (id int PRIMARY KEY, street text);
        CREATE TABLE other (id int PRIMARY KEY, street text)";
    publisher.run(table);
    subscriber.run(table);
    publisher.run("INSERT INTO address SELECT i, 'Elm Street ' || i FROM generate_series(1, 300) AS i");
    publisher.run("CREATE PUBLICATION feed FOR ALL TABLES");
    let split = SPLIT.replace("'address'", "'other'");
    subscriber.run(&format!("{ADD}; INSERT INTO other VALUES (1, 'Elm Street 1'); {split}"));
    let ours = "SELECT to_jsonb(c) FROM zdd.change AS c UNION ALL SELECT to_jsonb(e) FROM zdd.event AS e
        UNION ALL SELECT to_jsonb(l) FROM zdd.lane AS l UNION ALL SELECT to_jsonb(j) FROM zdd.job AS j";
    let before = subscriber.text(ours);
    publisher.notices();
    // What is there when the subscription begins is copied, and what comes later is streamed.
    publisher.run(&SPLIT.replace("'address'", "'other'"));
    let notices = publisher.notices().join("\n");
    assert!(notices.contains("publication feed is FOR ALL TABLES and so sends the tables of pg_zdd"), "{notices}");
    subscribe(&mut publisher, &mut subscriber);
    publisher.run(SPLIT);
    publisher.run("SELECT zdd.start_backfill('address.street')");
    publisher.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
    publisher.run("UPDATE address SET streetname = 'Oak' WHERE id < 10; DELETE FROM address WHERE id = 11");
    publisher.run("SELECT zdd.rollback('other.street')");
    let rows = "SELECT id, street, streetname, housenumber FROM address ORDER BY id";
    let sent = publisher.text(rows);
    wait_for(&mut subscriber, rows, &sent);
    assert_eq!(subscriber.text(ours), before);
    // Its own change goes on.
    subscriber.run("CALL zdd.backfill('other.street')");
    assert_eq!(subscriber.text("SELECT change, phase FROM zdd.changes"), "other.street|expanded");
    subscriber.run("DROP SUBSCRIPTION feed");
}
