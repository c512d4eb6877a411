//! What the backfill costs beside the least that any rewrite of all rows costs: one UPDATE with constants.

use std::sync::{Arc, Mutex, PoisonError};

use pg_zdd_cluster::postgres::{Client, NoTls};
use pg_zdd_cluster::{Result, describe};
use serde_json::{Value, json};

use crate::stats::{Times, print_line, timed};
use crate::{Bench, SOURCE};

pub fn run(bench: &mut Bench) -> Result<Value> {
    let rows = bench.rows;
    println!("backfill of {rows} rows, {} rounds", bench.rounds);
    let (mut update, mut backfill) = (Times::default(), Times::default());
    let (mut update_size, mut backfill_size) = (0, 0);
    let mut before = 0;
    let mut told = String::new();
    let (mut caller, notices) = listening(bench)?;
    for round in 0..bench.rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                fresh_table(bench, ", streetname varchar, housenumber varchar")?;
                let sql = "UPDATE address SET streetname = 'x', housenumber = 'y'";
                update.add(timed(|| bench.run(sql))?);
                update_size = heap_size(bench)?;
            } else {
                fresh_table(bench, "")?;
                before = heap_size(bench)?;
                bench.split("address")?;
                bench.run("CHECKPOINT")?;
                backfill.add(timed(|| {
                    let call = "CALL zdd.backfill('address.street')";
                    caller.batch_execute(call).map_err(|e| describe(&e).into())
                })?);
                backfill_size = heap_size(bench)?;
                let messages = std::mem::take(&mut *notices.lock().unwrap_or_else(PoisonError::into_inner));
                told = messages.last().cloned().unwrap_or_default();
                must_be_expanded(bench)?;
            }
        }
    }

    let floor = update.median();
    print_line("UPDATE of all rows with constants", &update, floor);
    print_line("CALL zdd.backfill", &backfill, floor);
    println!("  backfill's own summary: {told}");
    let mb = |bytes: i64| bytes / 1024 / 1024;
    println!(
        "  heap: {} MB before, {} MB after the UPDATE, {} MB after the backfill",
        mb(before),
        mb(update_size),
        mb(backfill_size)
    );
    println!("  backfill / UPDATE {:.2} (target: at most 1.3)", backfill.median() / floor);
    Ok(json!({
        "rows": rows,
        "update": update.json(),
        "backfill": backfill.json(),
        "backfill_to_update": backfill.median() / floor,
        "summary": told,
        "heap_bytes": { "before": before, "after_update": update_size, "after_backfill": backfill_size },
    }))
}

fn fresh_table(bench: &mut Bench, columns: &str) -> Result<()> {
    let rows = bench.rows;
    bench.run("DROP TABLE IF EXISTS address")?;
    bench.run(&format!(
        "CREATE TABLE address (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street varchar,
            city varchar, updated_at timestamptz DEFAULT now(), note text {columns});
         INSERT INTO address (street, city, note) SELECT {SOURCE}, 'Berlin', repeat('x', 20) FROM generate_series(1, {rows}) g"
    ))?;
    bench.run("VACUUM ANALYZE address")?;
    bench.run("CHECKPOINT")
}

fn heap_size(bench: &mut Bench) -> Result<i64> {
    Ok(bench.client.query_one("SELECT pg_relation_size('address')", &[])?.get(0))
}

fn must_be_expanded(bench: &mut Bench) -> Result<()> {
    let sql = "SELECT phase::text FROM zdd.changes WHERE change = 'address.street' AND phase::text <> 'rolled_back'";
    let phase: String = bench.client.query_one(sql, &[])?.get(0);
    match phase.as_str() {
        "expanded" => Ok(()),
        _ => Err(format!("after the backfill the change is {phase}").into()),
    }
}

/// A connection that keeps the messages it gets.
fn listening(bench: &Bench) -> Result<(Client, Arc<Mutex<Vec<String>>>)> {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = notices.clone();
    let mut config = bench.cluster.config("bench", "postgres", "bench");
    config.notice_callback(move |notice| {
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(notice.message().to_owned());
    });
    Ok((config.connect(NoTls)?, notices))
}
