//! What the dual write costs: one INSERT of many rows without a trigger, through pg_zdd's, and through what people
//! write by hand.

use pg_zdd_cluster::Result;
use serde_json::{Value, json};

use crate::stats::{Times, print_line, timed};
use crate::{Bench, SOURCE};

const BY_HAND: &str = r"
    CREATE FUNCTION by_hand() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.streetname := (regexp_match(NEW.street, '^(.+?)(?:\s+(\d\S*))?$'))[1];
        NEW.housenumber := (regexp_match(NEW.street, '^(.+?)(?:\s+(\d\S*))?$'))[2];
        RETURN NEW;
    END $$;
    CREATE TRIGGER by_hand BEFORE INSERT OR UPDATE ON by_hand FOR EACH ROW EXECUTE FUNCTION by_hand()";

const OLD_SHAPE: &str = "(street) SELECT street FROM source";
const BOTH_SHAPES: &str = "(street, streetname, housenumber) SELECT street, streetname, housenumber FROM source";

/// Table, what it is called in the report, what is inserted.
const CONTENDERS: [(&str, &str, &str); 3] = [
    ("floor", "both shapes given, no trigger", BOTH_SHAPES),
    ("zdd", "old shape, pg_zdd's trigger", OLD_SHAPE),
    ("by_hand", "old shape, PL/pgSQL with regexp_match twice", OLD_SHAPE),
];

pub fn run(bench: &mut Bench) -> Result<Value> {
    let rows = bench.rows * 3 / 10;
    println!("INSERT of {rows} rows, {} rounds", bench.rounds);
    bench.run(&format!(
        "CREATE TABLE source AS
         SELECT street, left(street, 17) AS streetname, substr(street, 19) AS housenumber
         FROM (SELECT {SOURCE} AS street FROM generate_series(1, {rows}) g) s"
    ))?;
    for (table, ..) in CONTENDERS {
        let columns = if table == "zdd" { "" } else { ", streetname varchar, housenumber varchar" };
        bench.run(&format!(
            "CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, street varchar {columns})"
        ))?;
    }
    bench.split("zdd")?;
    bench.run(BY_HAND)?;

    let mut times: [Times; 3] = Default::default();
    // The first round warms up and is not counted.
    for round in 0..=bench.rounds {
        for turn in 0..CONTENDERS.len() {
            let which = (round + turn) % CONTENDERS.len();
            let (table, _, what) = CONTENDERS[which];
            bench.run(&format!("TRUNCATE {table}"))?;
            bench.run("CHECKPOINT")?;
            let took = timed(|| bench.run(&format!("INSERT INTO {table} {what}")))?;
            if round > 0 {
                times[which].add(took);
            }
        }
    }
    for (table, ..) in CONTENDERS {
        let wrong =
            format!("SELECT count(*) FROM {table} WHERE street <> streetname || ' ' || housenumber IS NOT FALSE");
        let wrong: i64 = bench.client.query_one(&wrong, &[])?.get(0);
        if wrong > 0 {
            return Err(format!("{wrong} rows of {table} are not split").into());
        }
    }

    let [floor, zdd, by_hand] = [times[0].median(), times[1].median(), times[2].median()];
    for (contender, times) in CONTENDERS.iter().zip(&times) {
        print_line(contender.1, times, floor);
    }
    let added = (zdd - floor) / (by_hand - floor);
    println!("  pg_zdd / no trigger {:.2} (target: at most 1.6)", zdd / floor);
    println!("  added by pg_zdd / added by PL/pgSQL {added:.2} (target: at most 0.25)");
    Ok(json!({
        "rows": rows,
        "no_trigger": times[0].json(),
        "pg_zdd": times[1].json(),
        "plpgsql": times[2].json(),
        "pg_zdd_to_no_trigger": zdd / floor,
        "added_pg_zdd_to_added_plpgsql": added,
    }))
}
