//! What a write of the old application costs while both shapes exist: statements of many rows each, so that the row
//! is what is measured.

use std::io::Write;

use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Error, Result, describe};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::contender::{Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::{Series, seconds, thousands, turns};
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
    pub failed: Option<String>,
}

impl Costs {
    fn new(name: &str) -> Costs {
        Costs { name: name.to_owned(), micros: Default::default(), failed: None }
    }

    fn add(&mut self, micros: [f64; OPERATIONS.len()]) {
        self.micros.iter_mut().zip(micros).for_each(|(series, micros)| series.add(micros));
    }
}

pub fn measure(bench: &Bench) -> Result<Writes> {
    let rows = bench.rows / 20;
    let (contenders, not_run) = bench.contenders(|contender| !contender.is_variant());
    let mut subjects = Vec::new();
    let mut all: Vec<Costs> = contenders.iter().map(|contender| Costs::new(contender.name())).collect();
    for (contender, costs) in contenders.iter().zip(&mut all) {
        let db = expanded(bench, *contender);
        costs.failed = db.as_ref().err().map(|e| e.to_string());
        subjects.push(db.ok());
    }
    // The first round warms up and is not counted.
    for (round, which) in turns(bench.rounds + 1, contenders.len()) {
        let (costs, Some(db)) = (&mut all[which], &subjects[which]) else { continue };
        match one_round(contenders[which], db, rows) {
            Ok(took) if round > 0 => costs.add(took.map(|seconds| seconds / rows as f64 * 1e6)),
            Ok(_) => {}
            Err(e) => {
                costs.failed = Some(e.to_string());
                subjects[which] = None;
            }
        }
    }
    Ok(Writes { rows, contenders: all, not_run })
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
    if right == rows { Ok(()) } else { Err(format!("{right} of {rows} rows are split").into()) }
}

impl Part for Writes {
    const NAME: &'static str = "writes";

    fn tables(&self) -> Vec<Table> {
        let mut header = vec!["µs per row, and × the floor"];
        header.extend(OPERATIONS);
        let title = format!("Per-row cost of a write of the old application, {} rows", thousands(self.rows as f64));
        let mut table = Table::new(title, &header);
        let floor = self.contenders.iter().find(|c| c.name == "floor");
        for contender in &self.contenders {
            if let Some(reason) = &contender.failed {
                table.failed(&contender.name, reason);
                continue;
            }
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
