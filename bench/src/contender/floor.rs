//! The least that any way costs: one UPDATE that rewrites all rows with constants.

use pg_zdd_cluster::Result;

use super::Contender;
use crate::subject::Subject;

pub struct Floor;

impl Contender for Floor {
    fn name(&self) -> &str {
        "floor"
    }

    fn how(&self) -> String {
        "No rule and no trigger: one UPDATE of all rows with constants; the application writes both shapes itself."
            .into()
    }

    fn start(&self, db: &Subject) -> Result<()> {
        db.run("ALTER TABLE address ADD COLUMN streetname varchar, ADD COLUMN housenumber varchar")
    }

    fn backfill(&self, db: &Subject) -> Result<()> {
        db.run("UPDATE address SET streetname = 'Rosenthaler-Allee', housenumber = '1234'")
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        db.run("ALTER TABLE address DROP COLUMN street")
    }

    fn is_floor(&self) -> bool {
        true
    }
}
