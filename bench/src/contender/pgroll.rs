//! pgroll, the real program: one migration that adds both columns and drops the old one.

use pg_zdd_cluster::{Cluster, Result};
use serde_json::json;

use super::tool::Tool;
use super::{Contender, PATTERN, Version};
use crate::subject::Subject;

const PGROLL: Tool = Tool("pgroll");

pub struct Pgroll;

impl Contender for Pgroll {
    fn name(&self) -> &str {
        "pgroll"
    }

    fn how(&self) -> String {
        format!(
            "pgroll {}: a first migration makes the old version's schema, a second one has `add_column` twice, with \
             `regexp_match` as `up`, and `drop_column` with `concat_ws` as `down`; `pgroll start`, `pgroll complete`. \
             Applications set `search_path` to their version's schema. All settings at their defaults.",
            PGROLL.version()
        )
    }

    fn missing(&self, _cluster: &Cluster) -> Result<Option<String>> {
        Ok(PGROLL.missing())
    }

    fn adopt(&self, db: &Subject) -> Result<()> {
        call(db, &["init"])?;
        let dir = db.dir("pgroll")?;
        call(db, &["baseline", "00_before", &dir.to_string_lossy(), "--yes"])?;
        // A baseline makes no schema of its own for the old version. A migration does, also one that changes nothing.
        migrate(db, "01_old", json!([{ "sql": { "up": "SELECT 1", "down": "SELECT 1" } }]))?;
        call(db, &["complete"])
    }

    fn start(&self, db: &Subject) -> Result<()> {
        let add = |column: &str, group: u8| {
            json!({ "add_column": {
                "table": "address",
                "up": format!("(regexp_match(street, '{PATTERN}'))[{group}]"),
                "column": { "name": column, "type": "varchar", "nullable": true },
            } })
        };
        let drop = json!({ "drop_column": {
            "table": "address",
            "column": "street",
            "down": "concat_ws(' ', streetname, housenumber)",
        } });
        migrate(db, "02_new", json!([add("streetname", 1), add("housenumber", 2), drop]))
    }

    fn start_backfills(&self) -> bool {
        true
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        call(db, &["complete"])
    }

    fn search_path(&self, version: Version) -> &'static str {
        match version {
            Version::Old => "public_01_old",
            Version::New => "public_02_new",
        }
    }
}

fn migrate(db: &Subject, name: &str, operations: serde_json::Value) -> Result<()> {
    let file = db.dir("pgroll")?.join(name).with_extension("json");
    std::fs::write(&file, json!({ "operations": operations }).to_string())?;
    call(db, &["start", &file.to_string_lossy()])
}

fn call(db: &Subject, args: &[&str]) -> Result<()> {
    let url = format!("postgres:///{}?host={}&user=postgres&sslmode=disable", db.name(), db.socket_dir());
    PGROLL.run(&[&["--postgres-url", url.as_str()], args].concat())
}
