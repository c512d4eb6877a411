//! The demo: a rolling update on a scratch server. Version 1 of an application knows address.street, version 2 knows
//! streetname and housenumber. Both read and write all the time while the column is split, and neither sees an error.

mod timeline;

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pg_zdd_cluster::load::Record;
use pg_zdd_cluster::postgres::Client;
use pg_zdd_cluster::{Cluster, Result, describe};

use pg_zdd_demo::app::{Fleet, Version, World};
use pg_zdd_demo::model::{self, Row, Written};
use pg_zdd_demo::shop::{self, SPLIT};
use timeline::Timeline;

const INSTANCES: usize = 4;

const SAMPLE: &str = r"SELECT DISTINCT concat_ws(' ', streetname, housenumber) AS street_was, streetname, housenumber
    FROM address
    WHERE streetname IN ('Unter den Linden', 'Straße des 17. Juni', 'Sonnenallee', 'Karl-Marx-Allee', '221B Baker Street',
        'דיזנגוף', 'شارع الحمرا', '세종대로', 'Невский проспект', 'Robert''); DROP TABLE address;--', '(unknown)')
    ORDER BY streetname, housenumber;";

fn main() -> ExitCode {
    let outcome = Demo::new().and_then(|mut demo| {
        demo.play()?;
        demo.finish()
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Demo {
    old: Fleet,
    new: Fleet,
    canary: Fleet,
    timeline: Timeline,
    /// The table's owner, who changes it. A superuser only so that the demo can shorten the quiet period.
    operator: Client,
    world: Arc<World>,
    /// What the rows that no application touches must hold.
    others: HashMap<i64, Row>,
    cluster: Cluster,
}

impl Demo {
    fn new() -> Result<Demo> {
        let rows: i64 = std::env::var("ROWS").map_or(Ok(200_000), |rows| rows.parse())?;
        let cluster = Cluster::start(&[("shared_buffers", "256MB")])?;
        let (operator, world, others) = shop::open(&cluster, rows)?;
        let (old, new) = (Record::default(), Record::default());
        let timeline = Timeline::new(old.clone(), new.clone());
        timeline.tell(&format!("a table of {rows} addresses, on a scratch server of its own"));
        Ok(Demo {
            old: Fleet::new(Version::One, world.clone(), old),
            new: Fleet::new(Version::Two, world.clone(), new.clone()),
            canary: Fleet::new(Version::Canary, world.clone(), new),
            timeline,
            operator,
            world,
            others,
            cluster,
        })
    }

    /// The rolling update, phase by phase.
    fn play(&mut self) -> Result<()> {
        self.phase("version 1 alone", |demo| {
            demo.old.scale(&demo.cluster, INSTANCES)?;
            watch();
            Ok(())
        })?;
        self.phase("split_column", |demo| demo.run(SPLIT))?;
        self.phase("expanding: backfill, a canary", |demo| {
            demo.canary.scale(&demo.cluster, 1)?;
            demo.run("SELECT zdd.start_backfill('address.street')")?;
            demo.run("CALL zdd.wait_for('address.street', 'expanded', timeout => '10 min')")?;
            demo.show("SELECT phase FROM zdd.changes WHERE change = 'address.street'")?;
            demo.show("SELECT * FROM zdd.verify('address.street')")
        })?;
        self.phase("expanded: a version 2 beside version 1", |demo| {
            demo.canary.scale(&demo.cluster, 0)?;
            for instances in 1..=INSTANCES {
                demo.new.scale(&demo.cluster, instances)?;
                demo.old.scale(&demo.cluster, INSTANCES - instances + 1)?;
                watch();
            }
            Ok(())
        })?;
        self.phase("expanded: back to version 1", |demo| {
            demo.old.scale(&demo.cluster, INSTANCES)?;
            demo.new.scale(&demo.cluster, 0)?;
            watch();
            Ok(())
        })?;
        self.phase("expanded: version 2 again", |demo| {
            demo.new.scale(&demo.cluster, INSTANCES)?;
            watch();
            demo.old.scale(&demo.cluster, 0)?;
            demo.settle_unmatched()
        })?;
        self.phase("fence", |demo| demo.run("SELECT zdd.fence('address.street')"))?;
        self.phase("fenced: a forgotten reader", Demo::rehearse)?;
        self.phase("fenced: version 2 alone", |_| {
            watch();
            watch();
            Ok(())
        })?;
        self.phase("contract", |demo| {
            demo.timeline.tell("-- an hour without users of street by default; a demo does not wait for that");
            demo.run("SET zdd.quiet_period = '1s'")?;
            demo.run("CALL zdd.contract('address.street', accept_lossy => true)")
        })?;
        self.phase("contracted: version 2 alone", |_| {
            watch();
            Ok(())
        })?;
        self.new.scale(&self.cluster, 0)
    }

    /// Nobody but a human knows what a missing street is. Until one has said it, contract is refused.
    fn settle_unmatched(&mut self) -> Result<()> {
        self.timeline.tell("-- what the rule could not split is left to a human");
        self.show(
            "SELECT kind, count(*) AS rows, min(source) AS source FROM zdd.mismatches('address.street', 1000000)
    WHERE kind = 'unmatched' GROUP BY kind",
        )?;
        self.run("UPDATE address SET streetname = '(unknown)' WHERE street = ''")?;
        for row in self.others.values_mut().filter(|row| row.street == Written::Old(String::new())) {
            row.street = Written::New("(unknown)".to_owned(), None);
        }
        Ok(())
    }

    /// Somebody still reads street. The fence shows it while undoing is one call. (The error is meant to happen, so it
    /// is not counted.)
    fn rehearse(&mut self) -> Result<()> {
        let query = "SELECT street FROM address LIMIT 1";
        let mut reader = self.cluster.connect("shop", "shop", "a forgotten report")?;
        match reader.query_one(query, &[]) {
            Ok(_) => return Err("street can still be read behind the fence".into()),
            Err(e) => self.timeline.tell(&format!("a forgotten report: {query}\n{}", describe(&e))),
        }
        self.run("SELECT zdd.unfence('address.street')")?;
        reader.query_one(query, &[])?;
        self.timeline.tell("a forgotten report: works again, and gets rewritten");
        self.run("SELECT zdd.fence('address.street')")
    }

    /// Compares every row with what was written, shows the table and the timeline.
    fn finish(&mut self) -> Result<()> {
        let rows = self
            .operator
            .query("SELECT id, streetname, housenumber, city, updated_at IS NOT NULL FROM address", &[])?;
        // The table's own trigger says when a row was updated. Of the rows that only pg_zdd wrote, none must say so.
        let by_pg_zdd_only = |id: i64| self.others.get(&id).is_some_and(|row| matches!(row.street, Written::Old(_)));
        let stamped = rows.iter().filter(|row| row.get(4) && by_pg_zdd_only(row.get(0))).count();

        let mut expected = std::mem::take(&mut self.others);
        let untouched = expected.len();
        expected.extend(self.world.pool.rows().into_iter().map(|row| (row.id, row)));
        let total = expected.len();
        let table = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)));
        let wrong = model::differences(expected, table);

        println!("\nThe table as it is now:\n");
        self.psql("\\d address\n")?;
        self.psql(SAMPLE)?;
        let errors = self.timeline.print();
        println!(
            "\n{total} rows compared with what was last written to them: {} differ\n\
             {untouched} of them no application ever touched: {stamped} say that they were updated",
            wrong.len()
        );
        wrong.iter().take(10).for_each(|line| println!("  {line}"));
        match errors + wrong.len() + stamped {
            0 => Ok(()),
            _ => Err(format!("{errors} errors, {} wrong rows, {stamped} stamped", wrong.len()).into()),
        }
    }

    fn phase(&mut self, name: &str, act: impl FnOnce(&mut Demo) -> Result<()>) -> Result<()> {
        let from = Instant::now();
        self.timeline.tell(&format!("--- {name}"));
        let outcome = act(self);
        let instances = (self.old.size(), self.new.size() + self.canary.size());
        self.timeline.add(name, from, instances);
        if outcome.is_err() {
            self.timeline.print();
        }
        outcome
    }

    /// One of the operator's statements, as in psql.
    fn run(&mut self, sql: &str) -> Result<()> {
        self.timeline.tell(&format!("{sql};"));
        let started = Instant::now();
        self.operator.batch_execute(sql).map_err(|e| describe(&e))?;
        self.timeline.tell(&format!("done in {:.0} ms", started.elapsed().as_secs_f64() * 1000.0));
        Ok(())
    }

    /// A query of the operator's, and its result.
    fn show(&mut self, query: &str) -> Result<()> {
        self.timeline.tell(&format!("{query};"));
        self.psql(query)
    }

    fn psql(&self, sql: &str) -> Result<()> {
        let output = self.cluster.psql("shop", sql)?;
        std::io::stdout().write_all(&output.stdout)?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }
}

/// A while in which nothing happens but what the applications do.
fn watch() {
    std::thread::sleep(Duration::from_millis(1500));
}
