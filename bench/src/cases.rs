//! Does the value survive? Each case is played with each contender, and what became of it is told from the rows.

use std::time::{Duration, Instant};

use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Result, Stop, describe, wait_until};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::clients::{Clients, Load};
use crate::contender::{Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::thousands;
use crate::subject::{COLUMNS, KEY, STREET, Subject, WAL_BYTES, run};
use crate::table::Table;
use crate::writes::copy;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Kept,
    Lost,
    Failed,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Kept => "kept",
            Verdict::Lost => "lost",
            Verdict::Failed => "failed",
        })
    }
}

#[derive(Serialize, Deserialize)]
pub struct Outcome {
    pub contender: String,
    pub verdict: Verdict,
    /// What exactly was found.
    pub found: String,
}

#[derive(Serialize, Deserialize)]
pub struct Case {
    pub title: String,
    pub outcomes: Vec<Outcome>,
}

#[derive(Serialize, Deserialize)]
pub struct Cases {
    pub cases: Vec<Case>,
    pub not_run: Vec<NotRun>,
}

type Found = (Verdict, String);
type Play = fn(&Bench, &dyn Contender) -> Result<Found>;

const CASES: [(&str, Play); 10] = [
    ("the old application updates another column after the new one corrected the split", corrected),
    ("the new application updates a row that is not split yet", early_write),
    ("the server crashes in mid-backfill, then somebody completes", crash),
    ("the key is GENERATED ALWAYS AS IDENTITY", always_identity),
    ("the table has no primary key", no_key),
    ("the new application's search_path has `, public` at its end", search_path),
    ("the new application writes during completion", completion),
    ("a trigger of the user's stamps updated_at", stamped),
    ("the old application uses COPY", copied),
    ("a street of several words: Unter den Linden 77", several_words),
];

pub fn measure(bench: &Bench) -> Result<Cases> {
    let (contenders, not_run) = bench.contenders(|contender| !contender.is_floor());
    let mut cases = Vec::new();
    for (title, play) in CASES {
        bench.say(title);
        let outcome = |contender: &&dyn Contender| {
            let (verdict, found) = play(bench, *contender).unwrap_or_else(|e| (Verdict::Failed, e.to_string()));
            Outcome { contender: contender.name().to_owned(), verdict, found: first_line(&found).to_owned() }
        };
        cases.push(Case { title: title.to_owned(), outcomes: contenders.iter().map(outcome).collect() });
    }
    Ok(Cases { cases, not_run })
}

fn corrected(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let db = table(bench, KEY, "INSERT INTO address (street) VALUES ('Strasse 42')")?;
    expand(&db, contender)?;
    let correct = "UPDATE address SET streetname = 'Strasse 42', housenumber = NULL";
    run(&mut db.application(contender, Version::New)?, correct)?;
    run(&mut db.application(contender, Version::Old)?, "UPDATE address SET city = 'Hamburg'")?;
    both_sides(&db, contender, "Strasse 42", "Strasse 42, ~")
}

fn early_write(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let last = "UPDATE address SET street = 'Elmstreet 12a' WHERE id = 10000";
    let write = "UPDATE address SET housenumber = '12b' WHERE id = 10000";
    let rows = format!("INSERT INTO address (street) SELECT {STREET} FROM generate_series(1, 10000) g; {last}");
    let db = table(bench, KEY, &rows)?;
    contender.adopt(&db)?;
    let (meanwhile, remark) = if contender.start_backfills() {
        match start_and_write(&db, contender, write)? {
            true => (true, " (written before the command that starts the change had returned)"),
            false => (false, " (the new version has no access before all rows are split)"),
        }
    } else {
        contender.start(&db)?;
        (false, "")
    };
    if !meanwhile {
        run(&mut db.application(contender, Version::New)?, write)?;
    }
    contender.backfill(&db)?;
    run(&mut db.application(contender, Version::Old)?, "DELETE FROM address WHERE id < 10000")?;
    let (verdict, found) = both_sides(&db, contender, "Elmstreet 12b", "Elmstreet, 12b")?;
    Ok((verdict, found + remark))
}

/// Writes while the rows are being split, if the new version has access by then. The first row is split first and the
/// last one, which is written, last.
fn start_and_write(db: &Subject, contender: &dyn Contender, write: &str) -> Result<bool> {
    let in_between = "SELECT FROM address AS first, address AS last
        WHERE first.id = 1 AND first.streetname IS NOT NULL AND last.id = 10000 AND last.streetname IS NULL";
    std::thread::scope(|scope| {
        let start = scope.spawn(|| contender.start(db).map_err(|e| e.to_string()));
        let mut written = false;
        while !written && !start.is_finished() {
            let mut client = db.application(contender, Version::New)?;
            if client.query(in_between, &[]).is_ok_and(|rows| !rows.is_empty()) {
                run(&mut client, write)?;
                written = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.join().map_err(|_| "the starter panicked")??;
        Ok(written)
    })
}

fn crash(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    const ROWS: i64 = 100_000;
    let db = Subject::with_rows(&bench.cluster, ROWS)?;
    contender.adopt(&db)?;
    if !contender.start_backfills() {
        contender.start(&db)?;
    }
    let split = || if contender.start_backfills() { contender.start(&db) } else { contender.backfill(&db) };
    let ended = std::thread::scope(|scope| -> Result<bool> {
        let written = || db.value::<i64>(WAL_BYTES);
        let before = written()?;
        let under_way = scope.spawn(|| split().is_ok());
        // The first rows are being split: the tables and triggers of the change alone write less than that.
        wait_until("rows are being split", Duration::from_secs(60), || Ok(written()? > before + 2_000_000))?;
        bench.cluster.stop(Stop::Immediate)?;
        bench.cluster.start_again()?;
        // A client may take its time to see that its connection is gone.
        under_way.join().map_err(|_| "the backfill panicked".into())
    })?;
    if ended {
        return Err("the backfill was over before the crash".into());
    }
    let refused = match contender.complete(&db) {
        Ok(()) => None,
        Err(e) => Some(first_line(&e.to_string()).to_owned()),
    };
    if let Some(refused) = &refused {
        split().and_then(|()| contender.complete(&db)).map_err(|e| format!("refused ({refused}), then: {e}"))?;
    }
    let lost = ROWS - split_rows(&db, contender)?;
    Ok(match (lost, refused) {
        (0, None) => (Verdict::Kept, "all rows are split".into()),
        (0, Some(refused)) => {
            (Verdict::Kept, format!("refused ({refused}); the backfill was run again, then all rows are split"))
        }
        (lost, _) => {
            let (lost, all) = (thousands(lost as f64), thousands(ROWS as f64));
            (Verdict::Lost, format!("the old column is gone, and {lost} of {all} rows are not split"))
        }
    })
}

fn always_identity(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    whole_change(bench, contender, "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
}

fn no_key(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    whole_change(bench, contender, "nr bigint")
}

fn whole_change(bench: &Bench, contender: &dyn Contender, key: &str) -> Result<Found> {
    let db =
        table(bench, key, &format!("INSERT INTO address (street) SELECT {STREET} FROM generate_series(1, 2500) g"))?;
    expand(&db, contender)?;
    contender.complete(&db)?;
    Ok(match split_rows(&db, contender)? {
        2500 => (Verdict::Kept, "all rows are split".into()),
        right => (Verdict::Lost, format!("{right} of 2500 rows are split")),
    })
}

fn search_path(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let db = table(bench, KEY, "")?;
    expand(&db, contender)?;
    let mut new = db.connect("application")?;
    run(&mut new, &format!("SET search_path = {}, public", contender.search_path(Version::New)))?;
    run(&mut new, "INSERT INTO address (streetname, housenumber) VALUES ('Elmstreet', '12a')")?;
    both_sides(&db, contender, "Elmstreet 12a", "Elmstreet, 12a")
}

fn completion(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let db = Subject::with_rows(&bench.cluster, 10_000)?;
    expand(&db, contender)?;
    let load = Load { clients: 8, rate: Some(500.0) };
    let epoch = Instant::now();
    let clients = Clients::start(&db, contender, Version::New, load, epoch)?;
    std::thread::sleep(Duration::from_millis(300));
    let completed = contender.complete(&db);
    std::thread::sleep(Duration::from_millis(300));
    let felt = clients.stop()?.summary(0.0, epoch.elapsed().as_secs_f64());
    completed?;
    let mut new = db.application(contender, Version::New)?;
    let (all, right) = (rows(&mut new, "true")?, split_rows(&db, contender)?);
    if all > right {
        return Ok((Verdict::Lost, format!("{} of {all} rows are not split", all - right)));
    }
    let statements = thousands(felt.statements as f64);
    Ok(match &felt.first_error {
        Some(error) => (Verdict::Failed, format!("{} of {statements} statements: {error}", felt.failed)),
        None => (Verdict::Kept, format!("none of {statements} statements failed")),
    })
}

fn stamped(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let rows = format!(
        "INSERT INTO address (street, updated_at) SELECT {STREET}, '2000-01-01' FROM generate_series(1, 2500) g;
         CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN new.updated_at := now(); RETURN new; END';
         CREATE TRIGGER stamp BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION stamp()"
    );
    let db = table(bench, KEY, &rows)?;
    expand(&db, contender)?;
    let stamped: i64 = db.value("SELECT count(*) FROM public.address WHERE updated_at <> '2000-01-01'")?;
    Ok(match stamped {
        0 => (Verdict::Kept, "no row has another updated_at".into()),
        stamped => (Verdict::Lost, format!("{stamped} of 2500 rows have another updated_at")),
    })
}

fn copied(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let db = table(bench, KEY, "")?;
    expand(&db, contender)?;
    let mut old = db.application(contender, Version::Old)?;
    copy(&mut old, "COPY address (street) FROM STDIN", "Elmstreet 12a\n")?;
    both_sides(&db, contender, "Elmstreet 12a", "Elmstreet, 12a")
}

fn several_words(bench: &Bench, contender: &dyn Contender) -> Result<Found> {
    let db = table(bench, KEY, "INSERT INTO address (street) VALUES ('Unter den Linden 77')")?;
    expand(&db, contender)?;
    both_sides(&db, contender, "Unter den Linden 77", "Unter den Linden, 77")
}

fn table<'a>(bench: &'a Bench, key: &str, rows: &str) -> Result<Subject<'a>> {
    let db = Subject::empty(&bench.cluster)?;
    db.run(&format!("CREATE TABLE address ({key}, {COLUMNS}); {rows}"))?;
    Ok(db)
}

fn expand(db: &Subject, contender: &dyn Contender) -> Result<()> {
    contender.adopt(db)?;
    contender.start(db)?;
    contender.backfill(db)
}

/// The single row as either version sees it. NULL is written ~.
fn both_sides(db: &Subject, contender: &dyn Contender, street: &str, parts: &str) -> Result<Found> {
    let see = |version: Version, sql: &str| -> Result<String> {
        let row = db.application(contender, version)?.query_one(sql, &[]).map_err(|e| describe(&e))?;
        Ok(row.get(0))
    };
    let old = see(Version::Old, "SELECT coalesce(street, '~') FROM address")?;
    let new = see(Version::New, "SELECT coalesce(streetname, '~') || ', ' || coalesce(housenumber, '~') FROM address")?;
    let verdict = if old == street && new == parts { Verdict::Kept } else { Verdict::Lost };
    Ok((verdict, format!("street: {old}; streetname, housenumber: {new}")))
}

/// How many rows the new application sees split.
fn split_rows(db: &Subject, contender: &dyn Contender) -> Result<i64> {
    let mut new = db.application(contender, Version::New)?;
    rows(&mut new, "streetname = 'Rosenthaler-Allee' AND housenumber ~ '^\\d{4}$'")
}

fn rows(client: &mut Client, condition: &str) -> Result<i64> {
    Ok(client.query_one(&format!("SELECT count(*) FROM address WHERE {condition}"), &[])?.get(0))
}

impl Part for Cases {
    const NAME: &'static str = "cases";

    /// A table of verdicts, then what was found, for all that is not kept.
    fn tables(&self) -> Vec<Table> {
        // Every case is played with the same contenders.
        let columns: Vec<&str> =
            self.cases.iter().take(1).flat_map(|case| &case.outcomes).map(|outcome| &*outcome.contender).collect();
        let mut header = vec!["case"];
        header.extend(&columns);
        let mut verdicts = Table::new("What becomes of the values", &header).in_words();
        let mut found =
            Table::new("What was found, where a value was lost or a statement failed", &["case", "contender", "found"])
                .in_words();
        for (number, case) in self.cases.iter().enumerate() {
            let number = number + 1;
            let mut cells = vec![format!("{number}. {}", case.title)];
            cells.extend(case.outcomes.iter().map(|outcome| outcome.verdict.to_string()));
            verdicts.row(cells);
            for outcome in case.outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Kept) {
                found.row(vec![
                    format!("{number}"),
                    format!("{}: {}", outcome.contender, outcome.verdict),
                    outcome.found.clone(),
                ]);
            }
        }
        self.not_run.iter().for_each(|left_out| verdicts.not_run(&left_out.name, &left_out.reason));
        vec![verdicts, found]
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
