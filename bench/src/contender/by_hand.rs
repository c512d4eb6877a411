//! What a careful team writes by hand: a trigger that knows rows that are not split yet, batches by primary key with
//! a commit after each, short lock timeouts with retries, and a look at the rows before the column goes.

use std::time::{Duration, Instant};

use pg_zdd_cluster::postgres::error::SqlState;
use pg_zdd_cluster::{Result, describe};

use super::{Contender, PATTERN};
use crate::subject::Subject;

const BATCH: i64 = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct ByHand;

impl Contender for ByHand {
    fn name(&self) -> &str {
        "by hand, careful"
    }

    fn how(&self) -> String {
        format!(
            "A BEFORE trigger in PL/pgSQL that matches once per row and knows rows that are not split yet; batches of \
             {BATCH} rows by primary key, a commit after each; lock_timeout of 200 ms with retries; rows that are not \
             split are counted before DROP COLUMN."
        )
    }

    fn start(&self, db: &Subject) -> Result<()> {
        ddl(
            db,
            &format!(
                "ALTER TABLE address ADD COLUMN streetname varchar, ADD COLUMN housenumber varchar;
                 CREATE FUNCTION carry_street() RETURNS trigger LANGUAGE plpgsql AS $$
                 DECLARE
                     parts text[];
                     street_changed boolean := true;
                     parts_changed boolean := true;
                     pending boolean := false;
                 BEGIN
                     IF tg_op = 'UPDATE' THEN
                         street_changed := new.street IS DISTINCT FROM old.street;
                         parts_changed := new.streetname IS DISTINCT FROM old.streetname
                             OR new.housenumber IS DISTINCT FROM old.housenumber;
                         pending := old.streetname IS NULL AND old.housenumber IS NULL AND old.street IS NOT NULL;
                     ELSE
                         street_changed := new.street IS NOT NULL;
                         parts_changed := new.streetname IS NOT NULL OR new.housenumber IS NOT NULL;
                     END IF;
                     IF parts_changed THEN
                         IF pending THEN
                             parts := regexp_match(old.street, '{PATTERN}');
                             new.streetname := coalesce(new.streetname, parts[1]);
                             new.housenumber := coalesce(new.housenumber, parts[2]);
                         END IF;
                         new.street := concat_ws(' ', new.streetname, new.housenumber);
                     ELSIF street_changed OR pending THEN
                         parts := regexp_match(new.street, '{PATTERN}');
                         new.streetname := parts[1];
                         new.housenumber := parts[2];
                     END IF;
                     RETURN new;
                 END $$;
                 CREATE TRIGGER carry_street BEFORE INSERT OR UPDATE ON address
                     FOR EACH ROW EXECUTE FUNCTION carry_street()"
            ),
        )
    }

    fn backfill(&self, db: &Subject) -> Result<()> {
        let mut client = db.connect("by_hand")?;
        // By ranges of the key, so that no plan can come to look at more than a batch.
        let end =
            client.prepare("SELECT max(id) FROM (SELECT id FROM address WHERE id > $1 ORDER BY id LIMIT $2) AS b");
        let end = end.map_err(|e| describe(&e))?;
        // The trigger does the splitting: the rule is in one place.
        let split = client.prepare(
            "UPDATE address SET street = street
             WHERE id > $1 AND id <= $2 AND streetname IS NULL AND housenumber IS NULL AND street IS NOT NULL",
        )?;
        let mut done = i64::MIN;
        while let Some(to) = client.query_one(&end, &[&done, &BATCH])?.get::<_, Option<i64>>(0) {
            client.execute(&split, &[&done, &to]).map_err(|e| describe(&e))?;
            done = to;
        }
        Ok(())
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        let unsplit: i64 =
            db.value("SELECT count(*) FROM address WHERE street <> '' AND streetname IS NULL AND housenumber IS NULL")?;
        if unsplit > 0 {
            return Err(format!("{unsplit} rows are not split yet").into());
        }
        ddl(
            db,
            "DROP TRIGGER carry_street ON address; DROP FUNCTION carry_street; ALTER TABLE address DROP COLUMN street",
        )
    }
}

/// In one transaction, which must get its lock quickly or try again.
fn ddl(db: &Subject, sql: &str) -> Result<()> {
    let started = Instant::now();
    let mut client = db.connect("by_hand")?;
    client.batch_execute("SET lock_timeout = '200ms'")?;
    loop {
        match client.batch_execute(sql) {
            Ok(()) => return Ok(()),
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(e) => return Err(describe(&e).into()),
        }
    }
}
