//! Reshape, the real program: the split of its README, with our rule.

use pg_zdd_cluster::{Cluster, Result};
use serde_json::{Value, json};

use super::tool::Tool;
use super::{Contender, PATTERN, Version};
use crate::subject::Subject;

const RESHAPE: Tool = Tool("reshape");

pub struct Reshape;

impl Contender for Reshape {
    fn name(&self) -> &str {
        "Reshape"
    }

    fn how(&self) -> String {
        format!(
            "Reshape {}: a first migration makes the old version's schema, a second one has `add_column` twice, with \
             `regexp_match` as `up`, and `remove_column` with `concat_ws` as `down`, as in the example of its README; \
             `reshape migration start`, `reshape migration complete`. Applications set `search_path` to their \
             version's schema.",
            RESHAPE.version()
        )
    }

    fn missing(&self, _cluster: &Cluster) -> Result<Option<String>> {
        Ok(RESHAPE.missing())
    }

    fn adopt(&self, db: &Subject) -> Result<()> {
        add_migration(db, "1_old", json!([{ "type": "custom", "start": "SELECT 1" }]))?;
        call(db, "start", true)?;
        call(db, "complete", false)
    }

    fn start(&self, db: &Subject) -> Result<()> {
        let add = |column: &str, group: u8| {
            json!({
                "type": "add_column",
                "table": "address",
                "up": format!("(regexp_match(street, '{PATTERN}'))[{group}]"),
                "column": { "name": column, "type": "varchar" },
            })
        };
        let remove = json!({
            "type": "remove_column",
            "table": "address",
            "column": "street",
            "down": "concat_ws(' ', streetname, housenumber)",
        });
        add_migration(db, "2_new", json!([add("streetname", 1), add("housenumber", 2), remove]))?;
        call(db, "start", true)
    }

    fn start_backfills(&self) -> bool {
        true
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        call(db, "complete", false)
    }

    fn search_path(&self, version: Version) -> &'static str {
        match version {
            Version::Old => "migration_1_old",
            Version::New => "migration_2_new",
        }
    }
}

fn add_migration(db: &Subject, name: &str, actions: Value) -> Result<()> {
    let file = db.dir("reshape")?.join(name).with_extension("json");
    Ok(std::fs::write(file, json!({ "actions": actions }).to_string())?)
}

fn call(db: &Subject, verb: &str, with_migrations: bool) -> Result<()> {
    let url = format!("host={} user=postgres dbname={}", db.socket_dir(), db.name());
    let dir = db.dir("reshape")?;
    let mut args = vec!["migration", verb, "--url", &url];
    let dir = dir.to_string_lossy();
    if with_migrations {
        args.extend(["--dirs", &dir]);
    }
    RESHAPE.run(&args)
}
