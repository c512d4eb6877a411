//! pg_zdd: the backfill in the caller's session, or in background workers.

use std::time::Duration;

use pg_zdd_cluster::{Cluster, Result, wait_until};

use super::Contender;
use crate::subject::Subject;

pub struct Zdd {
    /// None: the session that calls it.
    pub workers: Option<i32>,
}

impl Contender for Zdd {
    fn name(&self) -> &'static str {
        match self.workers {
            None => "pg_zdd",
            Some(1) => "pg_zdd, 1 worker",
            Some(_) => "pg_zdd, 2 workers",
        }
    }

    fn how(&self) -> String {
        let backfill = match self.workers {
            None => "`CALL zdd.backfill`".into(),
            Some(n) => format!("`zdd.start_backfill(…, workers => {n})`"),
        };
        format!(
            "`zdd.split_column` with the regex of the README, {backfill} with its verification, `zdd.fence`, `CALL \
             zdd.contract(…, force => true)`. All settings at their defaults."
        )
    }

    fn missing(&self, cluster: &Cluster) -> Result<Option<String>> {
        let Some(_) = self.workers else { return Ok(None) };
        let db = Subject::empty(cluster)?;
        db.run("CREATE EXTENSION pg_zdd")?;
        let there: bool = db.value(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'zdd'::regnamespace
                 AND proname = 'start_backfill' AND 'workers' = ANY (proargnames))",
        )?;
        Ok((!there).then(|| "this pg_zdd has no zdd.start_backfill".into()))
    }

    fn adopt(&self, db: &Subject) -> Result<()> {
        db.run("CREATE EXTENSION pg_zdd")
    }

    fn start(&self, db: &Subject) -> Result<()> {
        db.run(
            r"SELECT zdd.split_column('address', 'street',
                  columns => 'streetname varchar, housenumber varchar',
                  regex => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
                  join => '{streetname}[ {housenumber}]')",
        )
    }

    fn backfill(&self, db: &Subject) -> Result<()> {
        let phase = "SELECT phase::text FROM zdd.changes WHERE change = 'address.street'";
        match self.workers {
            None => db.run("CALL zdd.backfill('address.street')")?,
            Some(n) => {
                db.run(&format!("SELECT zdd.start_backfill('address.street', workers => {n})"))?;
                let mut watcher = db.connect("watcher")?;
                let waited = wait_until("every row is split", Duration::from_secs(600), || {
                    Ok(watcher.query_one(phase, &[])?.get::<_, String>(0) != "expanding")
                });
                if let Err(e) = waited {
                    let errors = "SELECT string_agg(detail::text, '; ') FROM zdd.events WHERE event = 'error'";
                    let errors = db.value::<Option<String>>(errors)?.unwrap_or_default();
                    return Err(format!("{e} {errors}").into());
                }
            }
        }
        match db.value::<String>(phase)?.as_str() {
            "expanded" => Ok(()),
            phase => Err(format!("after the backfill the change is {phase}").into()),
        }
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        db.run("SELECT zdd.fence('address.street')")?;
        db.run("CALL zdd.contract('address.street', force => true)")
    }

    fn is_variant(&self) -> bool {
        self.workers.is_some()
    }
}
