//! The example of the README on real addresses: what becomes of every line, and of the hard cases one by one.

use std::path::{Path, PathBuf};

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::session::Session;

const SPLIT: &str = r#"SELECT zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex   => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    "join"  => '{streetname}[ {housenumber}]')"#;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/data/streets.csv");

/// A larger collection, where there is one: `PG_ZDD_STREETS`, or beside the repository.
fn other_streets() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/streets.csv");
    let path = std::env::var_os("PG_ZDD_STREETS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    path.exists().then_some(path)
}

/// A database with the lines of a CSV file in the table `line`, and their street in `address`.
fn load(path: &Path) -> Session {
    let mut db = Session::new();
    let csv = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let header = csv.lines().next().expect("a header");
    let columns: Vec<String> = header.split(',').map(|name| format!("{} text", name.trim())).collect();
    db.run(&format!("CREATE TABLE line (n serial, {})", columns.join(", ")));
    let copy = format!("COPY line ({header}) FROM STDIN (FORMAT csv, HEADER)");
    let mut writer = db.client.copy_in(&copy).expect("COPY begins");
    std::io::Write::write_all(&mut writer, csv.as_bytes()).expect("COPY takes the file");
    writer.finish().expect("COPY ends");
    db.run(
        "CREATE TABLE address (id int PRIMARY KEY, street text);
         INSERT INTO address SELECT n, street FROM line",
    );
    db
}

/// Splits the streets of a file, half before the change and half through the trigger, and compares them with
/// PostgreSQL's own regular expressions.
fn split_all(path: &Path) {
    let mut db = load(path);
    let [rows, unmatched, before] = ["true", "street = ''", "street <> '' AND n % 2 = 1"]
        .map(|condition| db.number(&format!("SELECT count(*) FROM line WHERE street IS NOT NULL AND {condition}")));
    assert!(rows > 300 && unmatched <= 1, "{rows}, {unmatched}");
    db.run("DELETE FROM address WHERE id % 2 = 0");
    assert_eq!(db.text(SPLIT), "address.street");
    db.run("INSERT INTO address SELECT n, street FROM line WHERE n % 2 = 0");
    assert_eq!(db.number("SELECT pending FROM zdd.verify('address.street')"), before);
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(db.number("SELECT rows_split FROM zdd.changes"), before);
    let verified = db.text("SELECT rows, in_sync, unmatched, pending, diverged FROM zdd.verify('address.street')");
    assert_eq!(verified, format!("{rows}|{}|{unmatched}|0|0", rows - unmatched));
    assert_eq!(db.text("SELECT phase FROM zdd.changes"), "expanded");
    db.run("DELETE FROM address WHERE street = ''");
    // PostgreSQL's regular expressions have one greediness for all, so the number is taken from the end first; and they
    // need to be told what digits and spaces there are.
    let different = "SELECT id, street, streetname, housenumber, m[1] FROM address
        LEFT JOIN LATERAL regexp_match(street, '[\\s\u{a0}]([0-9٠-٩०-९০-৯]\\S*)$') AS m ON true
        WHERE housenumber IS DISTINCT FROM m[1]
           OR streetname <> CASE WHEN m IS NULL THEN street
                            ELSE regexp_replace(left(street, -length(m[1])), '[\\s\u{a0}]+$', '') END";
    assert_eq!(db.text(different), "");
    let joined = "SELECT lossy = count(*) FILTER (WHERE street <> concat_ws(' ', streetname, housenumber))
        FROM address, zdd.verify('address.street') GROUP BY lossy";
    assert_eq!(db.text(joined), "t");
    db.run("CALL zdd.contract('address.street', accept_lossy => true, force => true)");
    assert_eq!(db.number("SELECT count(streetname) FROM address"), rows - unmatched);
    assert_eq!(db.number("SELECT count(*) FROM address WHERE streetname = '' OR housenumber = ''"), 0);
}

#[test]
fn the_shipped_streets() {
    split_all(Path::new(SHIPPED));
}

#[test]
fn the_other_streets() {
    match other_streets() {
        Some(path) => split_all(&path),
        None => println!("skipped: no other file of streets; PG_ZDD_STREETS names one"),
    }
}

/// A street and what becomes of it; `~` is NULL.
const HARD: &[(&str, &str, &str)] = &[
    ("Elm Street", "Elm Street", "~"),
    ("Elm Street 12a", "Elm Street", "12a"),
    ("Sonnenallee 5-7", "Sonnenallee", "5-7"),
    ("Unter den Linden", "Unter den Linden", "~"),
    ("Unter den Linden 77", "Unter den Linden", "77"),
    ("Straße des 17. Juni", "Straße des 17. Juni", "~"),
    ("Straße des 17. Juni 135", "Straße des 17. Juni", "135"),
    ("12", "12", "~"),
    ("1600 Pennsylvania Avenue", "1600 Pennsylvania Avenue", "~"),
    ("Kurfürstendamm 22 a", "Kurfürstendamm 22 a", "~"),
    ("Platz der Deutschen Einheit 1½", "Platz der Deutschen Einheit", "1½"),
    ("Elm Street\t12", "Elm Street", "12"),
    ("  Elm Street  12", "  Elm Street", "12"),
    ("Elm Street 12 ", "Elm Street 12 ", "~"),
    ("Main  St 5", "Main  St", "5"),
    (" ", " ", "~"),
    // Right to left: the number comes last in memory, wherever it is shown.
    ("רחוב הרצל 12", "רחוב הרצל", "12"),
    ("شارع الملك فهد ٤٢", "شارع الملك فهد", "٤٢"),
    ("東京都千代田区丸の内 1-9-1", "東京都千代田区丸の内", "1-9-1"),
    ("🏠 Street 7🏠", "🏠 Street", "7🏠"),
    ("e\u{301}cole 3", "e\u{301}cole", "3"),
    ("Elm Street\n12", "Elm Street", "12"),
    // Not accepted: the targets stay NULL.
    ("", "~", "~"),
    ("two\nlines", "~", "~"),
];

#[test]
fn hard_cases_one_by_one() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int PRIMARY KEY, street text)");
    let insert = db.client.prepare("INSERT INTO address VALUES ($1, $2)").expect("INSERT is prepared");
    let add = |db: &mut Session, first: i32| {
        for (id, (street, _, _)) in (first..).zip(HARD) {
            db.client.execute(&insert, &[&id, street]).expect("INSERT runs");
        }
    };
    add(&mut db, 0);
    assert_eq!(db.text(SPLIT), "address.street");
    add(&mut db, 1000);
    db.run("CALL zdd.backfill('address.street')");
    for (id, (street, name, number)) in (0..).zip(HARD) {
        for id in [id, id + 1000] {
            let sql = format!("SELECT streetname, housenumber FROM address WHERE id = {id}");
            assert_eq!(db.text(&sql), format!("{name}|{number}"), "{street:?}");
            let kept = db.client.query_one("SELECT street FROM address WHERE id = $1", &[&id]).expect("a row");
            assert_eq!(kept.get::<_, &str>(0), *street);
        }
    }
    let unmatched = HARD.iter().filter(|(_, name, _)| *name == "~").count() * 2;
    let verified = db.text("SELECT unmatched, pending, diverged FROM zdd.verify('address.street')");
    assert_eq!(verified, format!("{unmatched}|0|0"));
    let kinds =
        db.text("SELECT DISTINCT source, kind FROM zdd.mismatches('address.street') WHERE kind <> 'lossy' ORDER BY 1");
    assert_eq!(kinds, "|unmatched\ntwo\nlines|unmatched");
}

#[test]
fn null_stays_null() {
    let mut db = Session::new();
    db.run("CREATE TABLE address (id int, street text); INSERT INTO address VALUES (1, NULL)");
    db.run(SPLIT);
    db.run("INSERT INTO address (id, street) VALUES (2, NULL)");
    db.run("CALL zdd.backfill('address.street')");
    assert_eq!(db.text("SELECT * FROM address"), "1|~|~|~\n2|~|~|~");
    let verified = db.text("SELECT in_sync, unmatched, null_violations FROM zdd.verify('address.street')");
    assert_eq!(verified, "2|0|2");
}

#[test]
fn a_very_long_text_is_unmatched() {
    let mut db = Session::new();
    // 65536 bytes are the most: the limit counts bytes, and an ü has two.
    db.run(
        "CREATE TABLE address (id int, street text);
         CREATE TABLE long (id int, street text);
         INSERT INTO long VALUES (1, repeat('x', 70 * 1024) || ' 5'), (2, repeat('x', 65534) || ' 5'),
             (3, repeat('x', 65535) || ' 5'), (4, repeat('ü', 32767) || ' 5'), (5, repeat('ü', 32768) || ' 5');
         INSERT INTO address SELECT * FROM long",
    );
    db.run(SPLIT);
    db.run("INSERT INTO address (id, street) SELECT id + 10, street FROM long");
    db.run("CALL zdd.backfill('address.street')");
    let lengths =
        "SELECT DISTINCT id % 10, octet_length(street), octet_length(streetname), housenumber FROM address ORDER BY 1";
    assert_eq!(db.text(lengths), "1|71682|~|~\n2|65536|65534|5\n3|65537|~|~\n4|65536|65534|5\n5|65538|~|~");
    assert_eq!(db.text("SELECT in_sync, unmatched FROM zdd.verify('address.street')"), "4|6");
    // The new side may be as long as it likes.
    db.run("UPDATE address SET streetname = repeat('y', 100000) WHERE id = 2");
    assert_eq!(
        db.text(
            "SELECT octet_length(street), pending, diverged FROM address, zdd.verify('address.street') WHERE id = 2"
        ),
        "100002|0|0"
    );
}

#[test]
fn all_of_it_in_psql() {
    let cluster: &Cluster = pg_zdd_cluster::session::shared_cluster();
    cluster.create_database("example").expect("a database");
    let script = format!(
        "\\set ON_ERROR_STOP on\n\\pset format unaligned\n\\t\n
         CREATE TABLE address (id int PRIMARY KEY, street varchar);
         INSERT INTO address VALUES (1, 'Elm Street 12a'), (2, 'Unter den Linden');
         {SPLIT};
         CALL zdd.backfill('address.street');
         SELECT change, percent, rows_split FROM zdd.progress;
         SELECT * FROM zdd.verify('address.street');
         SELECT zdd.fence('address.street');
         SELECT zdd.unfence('address.street');
         CALL zdd.contract('address.street', force => true);
         TABLE address;\n"
    );
    let output = cluster.psql("example", &script).expect("psql runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> =
        stdout.lines().filter(|line| !line.contains("pset") && line.contains(['|', '.', 'e'])).collect();
    assert!(stdout.ends_with("1|Elm Street|12a\n2|Unter den Linden|\n"), "{stdout}");
    for line in ["address.street", "2|2|0|0|0|0|0", "fenced", "expanded"] {
        assert!(lines.contains(&line), "no {line} in\n{stdout}");
    }
}
