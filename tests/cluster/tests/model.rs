//! A randomised rolling update: eight clients write in the old and the new shape while a change goes through its whole
//! life, and each knows what its rows must hold.
//!
//! SEEDS (how many, 4), OPS (how many statements in all, 200000), SEED (the first one, random) come from the
//! environment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::postgres::types::ToSql;
use pg_zdd_cluster::postgres::{Client, Statement};
use pg_zdd_cluster::session::Session;
use pg_zdd_cluster::{describe, wait_until};

const CLIENTS: usize = 8;
/// Rows that were there before the change.
const ROWS: i32 = 16_000;
/// Rows that all clients fight for; they count how often they were hit.
const SHARED: i32 = 40;

/// What a row must hold. A row that is still pending is known by what it will be split into.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    street: Option<String>,
    streetname: Option<String>,
    housenumber: Option<String>,
    note: i32,
}

type Rows = BTreeMap<i32, Row>;

/// f, written by hand. `None` when it does not accept the street.
fn split(street: &str) -> Option<(String, Option<String>)> {
    let (name, number) = match street.rsplit_once(char::is_whitespace) {
        Some((before, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => {
            (before.trim_end(), Some(number.to_owned()))
        }
        _ => (street, None),
    };
    (!name.is_empty() && !name.contains('\n')).then(|| (name.to_owned(), number))
}

/// g.
fn join(streetname: &str, housenumber: Option<&str>) -> String {
    housenumber.map_or_else(|| streetname.to_owned(), |number| format!("{streetname} {number}"))
}

impl Row {
    fn old(street: Option<String>, note: i32) -> Row {
        let (streetname, housenumber) = match street.as_deref().and_then(split) {
            Some((name, number)) => (Some(name), number),
            None => (None, None),
        };
        Row { street, streetname, housenumber, note }
    }

    fn new(streetname: String, housenumber: Option<String>, note: i32) -> Row {
        let street = Some(join(&streetname, housenumber.as_deref()));
        Row { street, streetname: Some(streetname), housenumber, note }
    }

    fn write_old(&mut self, street: Option<String>) {
        if self.street != street {
            *self = Row::old(street, self.note);
        }
    }

    fn write_new(&mut self, streetname: String, housenumber: Option<String>) {
        let written = Row::new(streetname, housenumber, self.note);
        if (&self.streetname, &self.housenumber) != (&written.streetname, &written.housenumber) {
            *self = written;
        }
    }

    /// Whether a write of the new side gives the same whether or not the row is still pending: if it is, what it writes
    /// is no repetition of what is there.
    fn joins_back(&self) -> bool {
        self.streetname.as_deref().is_some_and(|name| self.street == Some(join(name, self.housenumber.as_deref())))
    }
}

/// What the clients may do.
#[derive(Clone, Copy, PartialEq)]
struct Allowed {
    /// The old shape.
    old: bool,
    new: New,
}

#[derive(Clone, Copy, PartialEq)]
enum New {
    No,
    /// A few, while not every row carries both shapes yet.
    Canary,
    Yes,
}

/// What the clients of one run share.
struct Run {
    allowed: RwLock<Allowed>,
    statements: AtomicUsize,
    over: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Run {
    fn fail(&self, text: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn failed(&self) -> bool {
        !self.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits for statements under way.
    fn allow(&self, old: bool, new: New) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = Allowed { old, new };
    }

    /// Lets the clients send some more statements.
    fn let_run(&self, statements: usize) {
        let enough = self.statements.load(Ordering::Relaxed) + statements;
        let done = || Ok(self.failed() || self.statements.load(Ordering::Relaxed) >= enough);
        wait_until("the clients have made progress", Duration::from_secs(300), done).expect("progress");
    }
}

fn street(rng: &mut Rng) -> Option<String> {
    const NAMES: [&str; 8] =
        ["Elm", "Unter den Linden", "Straße des 17. Juni", "Q7", "Große Elbstraße", "רחוב הרצל", "丸の内", "Main  St"];
    let name = NAMES[rng.usize(..NAMES.len())];
    let number = rng.u16(1..2000);
    Some(match rng.u8(..100) {
        0..55 => format!("{name} {number}"),
        55..65 => format!("{name} {number}-{}", number + 2),
        65..75 => format!("{name}   {number}b"),
        75..88 => name.to_owned(),
        88..90 => format!("{} {number}", "Long ".repeat(800)),
        90..95 => String::new(),
        95..97 => "two\nlines".to_owned(),
        _ => return None,
    })
}

fn streetname(rng: &mut Rng) -> String {
    const NAMES: [&str; 6] = ["Oak", "Avenue 17", "Straße des 17. Juni", "Elm", "  indented", "丸の内 3"];
    match rng.u8(..50) {
        0 => "Long ".repeat(800),
        _ => NAMES[rng.usize(..NAMES.len())].to_owned(),
    }
}

fn housenumber(rng: &mut Rng) -> Option<String> {
    match rng.u8(..10) {
        0..6 => Some(rng.u16(1..2000).to_string()),
        6 => Some("7 b".to_owned()),
        7 => Some(String::new()),
        _ => None,
    }
}

/// The statements of one shape, prepared once and used in every phase.
struct Statements(BTreeMap<&'static str, Statement>);

const OLD: &[&str] = &[
    "INSERT INTO item (id, street, note) VALUES ($1, $2, $3)",
    "INSERT INTO item (id, street, note) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET street = EXCLUDED.street",
    "UPDATE item SET street = $2 WHERE id = $1",
    "UPDATE item SET street = street || 'x' WHERE id = $1",
    "UPDATE item SET street = $2, note = note + 1 WHERE id = $1",
    "SELECT street, note FROM item WHERE id = $1",
];

const NEW: &[&str] = &[
    "INSERT INTO item (id, streetname, housenumber, note) VALUES ($1, $2, $3, $4)",
    "INSERT INTO item (id, streetname, housenumber, note) VALUES ($1, $2, $3, $4) ON CONFLICT (id)
         DO UPDATE SET streetname = EXCLUDED.streetname, housenumber = EXCLUDED.housenumber",
    "UPDATE item SET streetname = $2, housenumber = $3 WHERE id = $1",
    "UPDATE item SET housenumber = $2 WHERE id = $1",
    "UPDATE item SET streetname = $2 WHERE id = $1",
    "UPDATE item SET streetname = $2, housenumber = $3, note = note + 1 WHERE id = $1",
    "SELECT streetname, housenumber, note FROM item WHERE id = $1",
];

const EITHER: &[&str] = &["UPDATE item SET note = note + 1 WHERE id = $1", "DELETE FROM item WHERE id = $1"];

impl Statements {
    fn prepare(&mut self, client: &mut Client, texts: &[&'static str]) {
        for &text in texts {
            if !self.0.contains_key(text) {
                let statement = client.prepare(text).unwrap_or_else(|e| panic!("{}\n{text}", describe(&e)));
                self.0.insert(text, statement);
            }
        }
    }
}

/// One application instance.
struct App {
    run: Arc<Run>,
    client: Client,
    statements: Statements,
    rng: Rng,
    rows: Rows,
    next_id: i32,
    /// How often it has hit each shared row.
    hits: BTreeMap<i32, i32>,
}

impl App {
    /// Writes until told to stop; returns what its rows must hold.
    fn work(mut self) -> (Rows, BTreeMap<i32, i32>) {
        let run = Arc::clone(&self.run);
        while !run.over.load(Ordering::Relaxed) {
            let allowed = run.allowed.read().unwrap_or_else(PoisonError::into_inner);
            self.statement(*allowed);
            drop(allowed);
            run.statements.fetch_add(1, Ordering::Relaxed);
        }
        (self.rows, self.hits)
    }

    fn statement(&mut self, allowed: Allowed) {
        let new = match allowed.new {
            New::No => false,
            New::Canary => self.rng.u8(..20) == 0,
            New::Yes => !allowed.old || self.rng.bool(),
        };
        if new {
            self.statements.prepare(&mut self.client, NEW);
        } else if !allowed.old {
            return;
        }
        if self.rng.u8(..8) == 0 {
            return self.hit_shared(new);
        }
        let id = self.some_row();
        match (self.rng.u8(..100), id) {
            (0..5, Some(id)) => self.delete(id),
            (5..20, Some(id)) => self.read(id, new, allowed.new == New::Yes),
            (20..30, Some(id)) => {
                self.execute(EITHER[0], &[&id]);
                self.row(id).note += 1;
            }
            (30..85, Some(id)) if !new => self.update_old(id),
            (30..85, Some(id)) if allowed.new == New::Yes => {
                let number = housenumber(&mut self.rng);
                self.update_new(id, number);
            }
            // If the row is still pending, NULL is what is there: only other values are a write.
            (30..85, Some(id)) if self.row(id).joins_back() => self.update_new(id, Some("1".to_owned())),
            _ if new => self.insert_new(),
            _ => self.insert_old(),
        }
    }

    /// Sends a statement; in a transaction or not, and sometimes once more in one that is rolled back first.
    fn execute(&mut self, text: &'static str, values: &[&(dyn ToSql + Sync)]) {
        let statement = self.statements.0[text].clone();
        let how = self.rng.u8(..20);
        let mut send = || match how {
            0 => {
                let mut transaction = self.client.transaction()?;
                transaction.execute(&statement, values)?;
                transaction.rollback()?;
                self.client.execute(&statement, values)
            }
            1 => {
                let mut transaction = self.client.transaction()?;
                let mut inner = transaction.savepoint("s")?;
                inner.execute(&statement, values)?;
                inner.rollback()?;
                let count = transaction.execute(&statement, values)?;
                transaction.commit()?;
                Ok(count)
            }
            _ => self.client.execute(&statement, values),
        };
        match send() {
            Ok(1) => {}
            Ok(count) => self.run.fail(format!("{text}: {count} rows, values {values:?}")),
            Err(error) => self.run.fail(format!("{text}: {}, values {values:?}", describe(&error))),
        }
    }

    fn some_row(&mut self) -> Option<i32> {
        let last = *self.rows.last_key_value()?.0;
        let guess = self.rng.i32(0..=last);
        self.rows.range(guess..).next().map(|(id, _)| *id)
    }

    fn row(&mut self, id: i32) -> &mut Row {
        self.rows.get_mut(&id).expect("the client's own row")
    }

    fn insert_old(&mut self) {
        let street = street(&mut self.rng);
        self.next_id += CLIENTS as i32;
        let text = OLD[self.rng.usize(0..2)];
        self.execute(text, &[&self.next_id.clone(), &street, &0]);
        self.rows.insert(self.next_id, Row::old(street, 0));
    }

    fn insert_new(&mut self) {
        let (name, number) = (streetname(&mut self.rng), housenumber(&mut self.rng));
        self.next_id += CLIENTS as i32;
        let text = NEW[self.rng.usize(0..2)];
        self.execute(text, &[&self.next_id.clone(), &name, &number, &0]);
        self.rows.insert(self.next_id, Row::new(name, number, 0));
    }

    fn update_old(&mut self, id: i32) {
        let street = street(&mut self.rng);
        match self.rng.u8(..10) {
            0 | 1 => {
                self.execute(OLD[3], &[&id]);
                let appended = self.row(id).street.as_ref().map(|street| format!("{street}x"));
                return self.row(id).write_old(appended);
            }
            2 => self.execute(OLD[1], &[&id, &street, &0]),
            3 | 4 => {
                self.execute(OLD[4], &[&id, &street]);
                self.row(id).note += 1;
            }
            _ => self.execute(OLD[2], &[&id, &street]),
        }
        self.row(id).write_old(street);
    }

    fn update_new(&mut self, id: i32, mut number: Option<String>) {
        let mut name = streetname(&mut self.rng);
        let before = self.row(id).clone();
        match (self.rng.u8(..10), before.streetname) {
            (0..3, Some(kept)) => {
                self.execute(NEW[3], &[&id, &number]);
                name = kept;
            }
            (3..5, Some(_)) => {
                self.execute(NEW[4], &[&id, &name]);
                number = before.housenumber;
            }
            (5, _) => self.execute(NEW[1], &[&id, &name, &number, &0]),
            (6 | 7, _) => {
                self.execute(NEW[5], &[&id, &name, &number]);
                self.row(id).note += 1;
            }
            _ => self.execute(NEW[2], &[&id, &name, &number]),
        }
        self.row(id).write_new(name, number);
    }

    fn delete(&mut self, id: i32) {
        self.execute(EITHER[1], &[&id]);
        self.rows.remove(&id);
    }

    /// No write may be lost, whoever reads it.
    fn read(&mut self, id: i32, new: bool, all_split: bool) {
        let expected = self.row(id).clone();
        let statement = if new { NEW[6] } else { OLD[5] };
        let row = match self.client.query_one(&self.statements.0[statement], &[&id]) {
            Ok(row) => row,
            Err(error) => return self.run.fail(format!("{statement}: {}", describe(&error))),
        };
        let text = |column: usize| row.get::<_, Option<String>>(column);
        let found = match new {
            false => Row { street: text(0), note: row.get(1), ..expected.clone() },
            // Not split yet.
            true if !all_split && text(0).is_none() => return,
            true => Row { streetname: text(0), housenumber: text(1), note: row.get(2), ..expected.clone() },
        };
        if found != expected {
            self.run.fail(format!("row {id}, new side {new}: read {found:?}, expected {expected:?}"));
        }
    }

    fn hit_shared(&mut self, new: bool) {
        let id = -self.rng.i32(1..=SHARED);
        if new {
            let (name, number) = (streetname(&mut self.rng), housenumber(&mut self.rng));
            self.execute(NEW[5], &[&id, &name, &number]);
        } else {
            let street = street(&mut self.rng);
            self.execute(OLD[4], &[&id, &street]);
        }
        *self.hits.entry(id).or_default() += 1;
    }
}

/// The table as it is, compared with what it must be.
fn compare(db: &mut Session, expected: &Rows, with_source: bool) {
    let columns = if with_source { "street" } else { "NULL::text" };
    let sql = format!("SELECT id, {columns}, streetname, housenumber, note FROM item WHERE id >= 0 ORDER BY id");
    let found = db.client.query(&sql, &[]).unwrap_or_else(|e| panic!("{}", describe(&e)));
    assert_eq!(found.len(), expected.len(), "rows");
    for (row, (id, expected)) in found.iter().zip(expected) {
        let street = if with_source { row.get(1) } else { expected.street.clone() };
        let found = Row { street, streetname: row.get(2), housenumber: row.get(3), note: row.get(4) };
        assert_eq!((row.get::<_, i32>(0), &found), (*id, expected));
    }
}

/// Returns how many statements ran.
fn one_run(seed: u64, statements: usize) -> usize {
    let mut rng = Rng::with_seed(seed);
    let mut db = Session::new();
    db.run("CREATE TABLE item (id int PRIMARY KEY, street text, note int NOT NULL)");
    let mut rows: Vec<Rows> = vec![Rows::new(); CLIENTS];
    let insert = db.client.prepare(OLD[0]).expect("INSERT is prepared");
    let mut transaction = db.client.transaction().expect("a transaction");
    for id in -SHARED..ROWS {
        let street = street(&mut rng);
        transaction.execute(&insert, &[&id, &street, &0]).expect("INSERT runs");
        if id >= 0 {
            rows[id as usize % CLIENTS].insert(id, Row::old(street, 0));
        }
    }
    transaction.commit().expect("COMMIT");

    let run = Arc::new(Run {
        allowed: RwLock::new(Allowed { old: true, new: New::No }),
        statements: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        failures: Mutex::default(),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut app = App {
                run: Arc::clone(&run),
                client: db.another().client,
                statements: Statements(BTreeMap::new()),
                rng: Rng::with_seed(rng.u64(..)),
                rows: std::mem::take(&mut rows[number]),
                next_id: ROWS + number as i32,
                hits: BTreeMap::new(),
            };
            app.statements.prepare(&mut app.client, OLD);
            app.statements.prepare(&mut app.client, EITHER);
            std::thread::spawn(move || app.work())
        })
        .collect();

    let tenth = statements / 10;
    run.let_run(tenth);
    db.run(
        r#"SELECT zdd.split_column('item', 'street', columns => 'streetname varchar NOT NULL, housenumber varchar',
            regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$', "join" => '{streetname}[ {housenumber}]')"#,
    );
    run.allow(true, New::Canary);
    // As slow as it takes to be in the clients' way.
    db.run("SELECT zdd.alter_change('item.street', batch_target => '2ms', max_rows_per_second => 5000)");
    let helper = rng.bool().then(|| db.another().in_background("CALL zdd.backfill('item.street')"));
    db.run("CALL zdd.backfill('item.street')");
    if let Some(helper) = helper {
        helper.join().1.expect("the second backfill succeeds");
    }
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    run.allow(true, New::Yes);
    run.let_run(3 * tenth);

    // A rehearsal: nobody uses the old shape, until it is found that somebody needs it.
    run.allow(false, New::Yes);
    db.run("SELECT zdd.fence('item.street')");
    run.let_run(tenth);
    db.run("SELECT zdd.unfence('item.street')");
    run.allow(true, New::Yes);
    run.let_run(2 * tenth);

    run.allow(false, New::Yes);
    db.run("SELECT zdd.fence('item.street')");
    run.let_run(tenth);
    run.over.store(true, Ordering::Relaxed);
    let results: Vec<_> = clients.into_iter().map(|client| client.join().expect("no panic")).collect();
    let total = run.statements.load(Ordering::Relaxed);
    println!("seed {seed}: {total} statements");
    let failures = run.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(failures.is_empty(), "{} failures, such as {:#?}", failures.len(), &failures[..failures.len().min(5)]);

    assert_eq!(db.text("SELECT pending, diverged FROM zdd.verify('item.street')"), "0|0");
    db.run("SELECT zdd.unfence('item.street')");
    let mut hits = BTreeMap::<i32, i32>::new();
    let mut expected = Rows::new();
    for (rows, hit) in results {
        expected.extend(rows);
        hit.into_iter().for_each(|(id, times)| *hits.entry(id).or_default() += times);
    }
    compare(&mut db, &expected, true);
    for (id, hits) in hits {
        assert_eq!(db.number(&format!("SELECT note FROM item WHERE id = {id}")), i64::from(hits), "shared row {id}");
    }

    // What the split rule does not accept is given a value through the new side.
    db.run("UPDATE item SET streetname = 'unknown' WHERE streetname IS NULL");
    for row in expected.values_mut().filter(|row| row.streetname.is_none()) {
        row.write_new("unknown".into(), None);
    }
    compare(&mut db, &expected, true);
    db.run("CALL zdd.contract('item.street', accept_lossy => true, force => true)");
    compare(&mut db, &expected, false);
    total
}

#[test]
fn no_write_is_lost_in_a_rolling_update() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = number("SEEDS").unwrap_or(4).max(1);
    let statements = number("OPS").unwrap_or(200_000) as usize;
    let first = number("SEED").unwrap_or_else(|| pg_zdd_cluster::fastrand::u64(..1 << 32));
    let run = |seed: u64| {
        eprintln!("SEED={seed}");
        one_run(seed, statements.div_ceil(seeds as usize))
    };
    let total: usize = (first..first + seeds).map(run).sum();
    assert!(total >= statements, "{total} statements");
}

#[test]
fn the_model_splits_as_the_rule_does() {
    for (street, expected) in [
        ("Elm Street 12a", Some(("Elm Street", Some("12a")))),
        ("Elm Street", Some(("Elm Street", None))),
        ("Main  St   5", Some(("Main  St", Some("5")))),
        ("two\nlines", None),
        ("", None),
    ] {
        let found = split(street);
        assert_eq!(found.as_ref().map(|(name, number)| (name.as_str(), number.as_deref())), expected, "{street}");
    }
}
