//! How long it takes until every row is split, with nobody else at work, and what it leaves behind.

use pg_zdd_cluster::Result;
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::contender::{Contender, Version};
use crate::report::{NotRun, Part};
use crate::stats::{Series, seconds, thousands, turns};
use crate::subject::{Subject, WAL_BYTES};
use crate::table::Table;

/// Whoever takes longer than this many seconds for one of the larger tables has one round of it.
const LONG: f64 = 60.0;

#[derive(Serialize, Deserialize)]
pub struct Backfill {
    pub sizes: Vec<Size>,
    pub not_run: Vec<NotRun>,
}

#[derive(Serialize, Deserialize)]
pub struct Size {
    pub rows: i64,
    pub contenders: Vec<Figures>,
}

#[derive(Serialize, Deserialize)]
pub struct Figures {
    pub name: String,
    /// From the beginning of the change until every row is split.
    pub seconds: Series,
    pub wal_bytes_per_row: Series,
    /// Afterwards, to what VACUUM FULL makes of it.
    pub heap: Series,
    pub indexes: Series,
    pub failed: Option<String>,
}

pub fn measure(bench: &Bench) -> Result<Backfill> {
    let (contenders, not_run) = bench.contenders(|_| true);
    let mut rows = vec![bench.rows / 10, bench.rows];
    if bench.full {
        rows.push(bench.rows * 10);
    }
    let sizes: Result<Vec<Size>> = rows.into_iter().map(|rows| size(bench, &contenders, rows)).collect();
    Ok(Backfill { sizes: sizes?, not_run })
}

fn size(bench: &Bench, contenders: &[&dyn Contender], rows: i64) -> Result<Size> {
    let mut all: Vec<Figures> = contenders.iter().map(|contender| Figures::new(contender.name())).collect();
    for (round, which) in turns(bench.rounds, contenders.len()) {
        let figures = &mut all[which];
        let long = rows >= bench.rows && figures.seconds.max().is_some_and(|seconds| seconds > LONG);
        if figures.failed.is_some() || long {
            continue;
        }
        bench.say(&format!("{} rows, round {}: {}", thousands(rows as f64), round + 1, figures.name));
        figures.failed = one_run(bench, contenders[which], rows, figures).err().map(|e| e.to_string());
    }
    Ok(Size { rows, contenders: all })
}

fn one_run(bench: &Bench, contender: &dyn Contender, rows: i64, figures: &mut Figures) -> Result<()> {
    let db = Subject::with_rows(&bench.cluster, rows)?;
    contender.adopt(&db)?;
    db.run("CHECKPOINT")?;
    let before: i64 = db.value(WAL_BYTES)?;
    let took = seconds(|| {
        contender.start(&db)?;
        contender.backfill(&db)
    })?;
    let written = db.value::<i64>(WAL_BYTES)? - before;
    must_be_split(&db, contender, rows)?;
    figures.seconds.add(took);
    figures.wal_bytes_per_row.add(written as f64 / rows as f64);
    if figures.heap.count() == 0 {
        let sizes = |db: &Subject| -> Result<[i64; 2]> {
            let heap = db.value("SELECT pg_relation_size('public.address')")?;
            Ok([heap, db.value("SELECT pg_indexes_size('public.address')")?])
        };
        let [heap, indexes] = sizes(&db)?;
        db.run("VACUUM (FULL) public.address")?;
        let [small_heap, small_indexes] = sizes(&db)?;
        figures.heap.add(heap as f64 / small_heap as f64);
        figures.indexes.add(indexes as f64 / small_indexes as f64);
    }
    Ok(())
}

fn must_be_split(db: &Subject, contender: &dyn Contender, rows: i64) -> Result<()> {
    let mut client = db.application(contender, Version::New)?;
    let right = "SELECT count(*) FROM address WHERE streetname = 'Rosenthaler-Allee' AND housenumber ~ '^\\d{4}$'";
    let right: i64 = client.query_one(right, &[])?.get(0);
    if right == rows { Ok(()) } else { Err(format!("{right} of {rows} rows are split").into()) }
}

impl Figures {
    fn new(name: &str) -> Figures {
        Figures {
            name: name.to_owned(),
            seconds: Series::default(),
            wal_bytes_per_row: Series::default(),
            heap: Series::default(),
            indexes: Series::default(),
            failed: None,
        }
    }
}

impl Size {
    pub fn rows_per_second(&self, figures: &Figures) -> Option<f64> {
        figures.seconds.median().map(|seconds| self.rows as f64 / seconds)
    }

    fn floor(&self) -> Option<&Figures> {
        self.contenders.iter().find(|figures| figures.name == "floor")
    }
}

impl Part for Backfill {
    const NAME: &'static str = "backfill";

    fn tables(&self) -> Vec<Table> {
        let table = |size: &Size| {
            let header = ["", "seconds", "runs", "× floor", "rows/s", "WAL bytes per row", "heap", "indexes"];
            let title = format!(
                "Backfill of {} rows (heap and indexes: afterwards, to VACUUM FULL's)",
                thousands(size.rows as f64)
            );
            let mut table = Table::new(title, &header);
            let floor = size.floor().and_then(|floor| floor.seconds.median());
            let floor_wal = size.floor().and_then(|floor| floor.wal_bytes_per_row.median());
            for figures in &size.contenders {
                if let Some(reason) = &figures.failed {
                    table.failed(&figures.name, reason);
                    continue;
                }
                let ratio =
                    figures.seconds.median().zip(floor).map(|(seconds, floor)| format!("{:.2}", seconds / floor));
                let wal = figures.wal_bytes_per_row.median();
                table.row(vec![
                    figures.name.clone(),
                    figures.seconds.spread(2),
                    figures.seconds.count().to_string(),
                    ratio.unwrap_or_default(),
                    size.rows_per_second(figures).map(thousands).unwrap_or_default(),
                    match (wal, floor_wal) {
                        (Some(wal), Some(floor)) => format!("{} ({:.2} ×)", thousands(wal), wal / floor),
                        (wal, _) => wal.map(thousands).unwrap_or_default(),
                    },
                    figures.heap.spread(2),
                    figures.indexes.spread(2),
                ]);
            }
            self.not_run.iter().for_each(|left_out| table.not_run(&left_out.name, &left_out.reason));
            table
        };
        self.sizes.iter().map(table).collect()
    }
}
