//! What a write of the old application costs while both shapes exist: statements of many rows each, so that the row
//! is what is measured.

use std::io::Write;

use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Error, Result, describe};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::contender::{Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::{Series, seconds};
use crate::subject::{STREET, Subject, run};
use crate::table::Table;

pub const OPERATIONS: [&str; 4] = ["INSERT", "UPDATE of the source", "UPDATE of another column", "COPY"];

#[derive(Serialize, Deserialize)]
pub struct Writes {
    pub rows: i64,
    pub contenders: Vec<Costs>,
    pub not_run: Vec<NotRun>,
}

#[derive(Serialize, Deserialize)]
pub struct Costs {
    pub name: String,
    /// Microseconds per row, by operation.
    pub micros: [Series; OPERATIONS.len()],
}

pub fn measure(bench: &Bench) -> Result<Writes> {
    let rows = bench.rows / 10;
    let (mut contenders, mut not_run) = bench.contenders();
    // Who splits the rows from before makes no difference here.
    contenders.retain(|contender| !contender.name().contains("worker"));
    not_run.retain(|left_out| !left_out.name.contains("worker"));
    let mut subjects = Vec::new();
    for &contender in &contenders {
        match expanded(bench, contender) {
            Ok(db) => subjects.push((contender, db, <[Series; OPERATIONS.len()]>::default())),
            Err(e) => not_run.push(NotRun::new(contender, format!("failed: {e}"))),
        }
    }
    // The first round warms up and is not counted.
    let count = subjects.len();
    for round in 0..=bench.rounds {
        for turn in 0..count {
            let (contender, db, micros) = &mut subjects[(round + turn) % count];
            let took = one_round(*contender, db, rows).map_err(|e| format!("{}: {e}", contender.name()))?;
            if round > 0 {
                micros.iter_mut().zip(took).for_each(|(series, took)| series.add(took / rows as f64 * 1e6));
            }
        }
    }
    let costs = subjects.into_iter().map(|(contender, _, micros)| Costs { name: contender.name().to_owned(), micros });
    Ok(Writes { rows, contenders: costs.collect(), not_run })
}

fn expanded<'a>(bench: &'a Bench, contender: &dyn Contender) -> Result<Subject<'a>> {
    let db = Subject::with_rows(&bench.cluster, 1000)?;
    contender.adopt(&db)?;
    contender.start(&db)?;
    contender.backfill(&db)?;
    Ok(db)
}

fn one_round(contender: &dyn Contender, db: &Subject, rows: i64) -> Result<[f64; OPERATIONS.len()]> {
    // The floor's application writes both shapes itself.
    let (columns, values, set) = if contender.is_floor() {
        (
            "(street, streetname, housenumber)",
            format!("{STREET}, 'Rosenthaler-Allee', (1000 + g % 9000)::text"),
            "street = upper(street), streetname = upper(streetname), housenumber = housenumber",
        )
    } else {
        ("(street)", STREET.to_owned(), "street = upper(street)")
    };
    let mut client = db.application(contender, Version::Old)?;
    let mut time = |sql: &str| {
        db.run("CHECKPOINT")?;
        seconds(|| run(&mut client, sql))
    };
    db.run("TRUNCATE public.address RESTART IDENTITY")?;
    let insert = time(&format!("INSERT INTO address {columns} SELECT {values} FROM generate_series(1, {rows}) g"))?;
    db.run("VACUUM public.address")?;
    let source = time(&format!("UPDATE address SET {set}"))?;
    db.run("VACUUM public.address")?;
    let other = time("UPDATE address SET city = 'Bern'")?;
    must_be_split(db, contender, rows)?;

    db.run("TRUNCATE public.address RESTART IDENTITY; CHECKPOINT")?;
    let lines = lines(contender.is_floor(), rows);
    // Into the table itself: PostgreSQL cannot COPY into a view.
    let copy = seconds(|| copy(&mut client, &format!("COPY public.address {columns} FROM STDIN"), &lines))?;
    must_be_split(db, contender, rows)?;
    Ok([insert, source, other, copy])
}

fn lines(both_shapes: bool, rows: i64) -> String {
    let line = |number: i64| {
        let number = 1000 + number % 9000;
        let street = format!("Rosenthaler-Allee {number}");
        if both_shapes { format!("{street}\tRosenthaler-Allee\t{number}\n") } else { format!("{street}\n") }
    };
    (1..=rows).map(line).collect()
}

pub fn copy(client: &mut Client, sql: &str, lines: &str) -> Result<()> {
    let failed = |e: pg_zdd_cluster::postgres::Error| -> Error { describe(&e).into() };
    let mut writer = client.copy_in(sql).map_err(failed)?;
    writer.write_all(lines.as_bytes())?;
    writer.finish().map_err(failed)?;
    Ok(())
}

fn must_be_split(db: &Subject, contender: &dyn Contender, rows: i64) -> Result<()> {
    let mut client = db.application(contender, Version::New)?;
    let right =
        "SELECT count(*) FROM address WHERE upper(streetname) = 'ROSENTHALER-ALLEE' AND housenumber ~ '^\\d{4}$'";
    let right: i64 = client.query_one(right, &[])?.get(0);
    if right == rows { Ok(()) } else { Err(format!("{}: {right} of {rows} rows are split", contender.name()).into()) }
}

impl Part for Writes {
    const NAME: &'static str = "writes";

    fn tables(&self) -> Vec<Table> {
        let mut header = vec!["µs per row, and × the floor"];
        header.extend(OPERATIONS);
        let title = format!("Per-row cost of a write of the old application, {} rows", self.rows);
        let mut table = Table::new(title, &header);
        let floor = self.contenders.iter().find(|c| c.name == "floor");
        for contender in &self.contenders {
            let mut cells = vec![contender.name.clone()];
            for (operation, series) in contender.micros.iter().enumerate() {
                let floor = floor.and_then(|floor| floor.micros[operation].median());
                cells.push(match (series.median(), floor) {
                    (Some(median), Some(floor)) => format!("{}  {:.2} ×", series.spread(2), median / floor),
                    _ => series.spread(2),
                });
            }
            table.row(cells);
        }
        self.not_run.iter().for_each(|left_out| table.not_run(&left_out.name, &left_out.reason));
        vec![table]
    }
}
