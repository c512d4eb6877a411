//! Where the figures go: a table in the terminal, a file of JSON per part, and from those files the page and the charts.

use std::path::{Path, PathBuf};

use pg_zdd_cluster::{Cluster, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backfill::Backfill;
use crate::cases::Cases;
use crate::chart;
use crate::contender::{self, Contender};
use crate::lifecycle::Lifecycle;
use crate::load::UnderLoad;
use crate::locks::Locks;
use crate::table::Table;
use crate::writes::Writes;

/// One part of the bench: what it measured.
pub trait Part: Serialize + DeserializeOwned {
    const NAME: &'static str;
    fn tables(&self) -> Vec<Table>;
}

/// Who was left out, and why.
#[derive(Clone, Serialize, Deserialize)]
pub struct NotRun {
    pub name: String,
    pub reason: String,
}

/// Where and when.
#[derive(Serialize, Deserialize)]
pub struct Machine {
    pub date: String,
    pub server: String,
    pub cores: usize,
    pub rows: i64,
    pub rounds: usize,
    /// What else the caller asked for. What is told to glibc's malloc the server inherits: it decides what a regular
    /// expression costs.
    pub environment: Vec<String>,
}

impl Machine {
    pub fn new(cluster: &Cluster, rows: i64, rounds: usize) -> Result<Machine> {
        let mut client = cluster.connect("postgres", "postgres", "bench")?;
        let now = client.query_one("SELECT current_date::text, current_setting('server_version')", &[])?;
        let cores = std::thread::available_parallelism()?.get();
        let matters = |name: &str| ["FULL", "ONLY", "RATE", "TMPDIR"].contains(&name) || name.starts_with("MALLOC_");
        let environment = std::env::vars().filter(|(name, value)| matters(name) && !value.is_empty());
        let quoted = |value: String| if value.contains(' ') { format!("\"{value}\"") } else { value };
        let mut environment: Vec<String> =
            environment.map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        environment.sort();
        Ok(Machine { date: now.get(0), server: now.get(1), cores, rows, rounds, environment })
    }
}

#[derive(Serialize, Deserialize)]
struct File<P> {
    machine: Machine,
    figures: P,
}

/// Prints what a part measured, and keeps it.
pub fn keep<P: Part>(machine: Machine, figures: P) -> Result<()> {
    println!();
    figures.tables().iter().for_each(|table| println!("{}", table.text()));
    let path = results(P::NAME);
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(&path, serde_json::to_string_pretty(&File { machine, figures })? + "\n")?;
    println!("written to {}\n", path.display());
    Ok(())
}

/// The figures of a part, from whichever run measured it last.
fn kept<P: Part>() -> Option<File<P>> {
    let path = results(P::NAME);
    let text = std::fs::read_to_string(&path).ok()?;
    let file = serde_json::from_str(&text);
    file.inspect_err(|e| println!("{} is of another version of the bench: {e}", path.display())).ok()
}

/// Writes docs/comparison-figures.md and docs/charts from the files of all parts, whenever they were measured.
pub fn publish() -> Result<()> {
    let mut page = String::from(
        "# Figures\n\nWritten by `make bench`; [comparison.md](comparison.md) says what they mean. Read the ratios, not the \
         seconds.\n\n## How each was driven\n\n",
    );
    let (all, limited) = (contender::all(), contender::limited());
    for contender in all.iter().map(|it| &**it).chain(limited.iter().map(|it| it as &dyn Contender)) {
        page.push_str(&format!("- **{}**: {}\n", contender.name(), contender.how()));
    }
    let backfill = kept::<Backfill>();
    if let Some(file) = &backfill {
        chart::write("rows-per-second", &chart::rows_per_second(&file.figures))?;
    }
    section(&mut page, "Backfill", &["rows-per-second"], backfill);
    let writes = kept::<Writes>();
    if let Some(file) = &writes {
        chart::write("per-row-cost", &chart::per_row_cost(&file.figures))?;
    }
    section(&mut page, "Writes", &["per-row-cost"], writes);
    section(&mut page, "Backfill beside the applications", &[], kept::<UnderLoad>());
    let lifecycle = kept::<Lifecycle>();
    if let Some(file) = &lifecycle {
        chart::write("latency", &chart::latency(&file.figures))?;
    }
    section(&mut page, "Applications at work", &["latency"], lifecycle);
    section(&mut page, "When the table is held", &[], kept::<Locks>());
    section(&mut page, "Cases", &[], kept::<Cases>());
    let path = docs().join("comparison-figures.md");
    std::fs::write(&path, page)?;
    println!("written to {} and {}", path.display(), docs().join("charts").display());
    Ok(())
}

fn section<P: Part>(page: &mut String, title: &str, charts: &[&str], file: Option<File<P>>) {
    page.push_str(&format!("\n## {title}\n\n"));
    let Some(File { machine, figures }) = file else {
        page.push_str("Not measured yet.\n");
        return;
    };
    page.push_str(&format!(
        "{}, PostgreSQL {}, {} cores, `{}ROWS={} ROUNDS={} make bench PARTS={}`.\n\n",
        machine.date,
        machine.server,
        machine.cores,
        machine.environment.iter().map(|setting| format!("{setting} ")).collect::<String>(),
        machine.rows,
        machine.rounds,
        P::NAME
    ));
    for chart in charts {
        page.push_str(&format!("![{title}](charts/{chart}.svg)\n\n"));
    }
    let tables: Vec<String> = figures.tables().iter().map(Table::markdown).collect();
    page.push_str(&tables.join("\n"));
}

fn results(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(part).with_extension("json")
}

pub fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs")
}
