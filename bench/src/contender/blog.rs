//! The plain way of many a blog post: a trigger in PL/pgSQL, then one UPDATE of all rows.

use pg_zdd_cluster::Result;

use super::{Contender, PATTERN};
use crate::subject::Subject;

pub struct Blog {
    name: &'static str,
    /// Expressions over `%` for streetname and housenumber.
    split: fn() -> [String; 2],
}

impl Blog {
    pub const SPLIT_PART: Blog =
        Blog { name: "blog, split_part", split: || ["split_part(%, ' ', 1)".into(), "split_part(%, ' ', 2)".into()] };
    pub const REGEXP_MATCH: Blog = Blog {
        name: "blog, regexp_match",
        split: || [1, 2].map(|group| format!("(regexp_match(%, '{PATTERN}'))[{group}]")),
    };

    fn of(&self, street: &str) -> [String; 2] {
        (self.split)().map(|expression| expression.replace('%', street))
    }
}

impl Contender for Blog {
    fn name(&self) -> &str {
        self.name
    }

    fn how(&self) -> String {
        let [streetname, _] = self.of("street");
        format!(
            "ALTER TABLE, a BEFORE trigger in PL/pgSQL that carries the side that changed (`{streetname}` one way, \
             `concat_ws` the other), one UPDATE of all rows, DROP COLUMN. No lock timeouts, no checks."
        )
    }

    fn start(&self, db: &Subject) -> Result<()> {
        let [streetname, housenumber] = self.of("new.street");
        db.run(&format!(
            "ALTER TABLE address ADD COLUMN streetname varchar, ADD COLUMN housenumber varchar;
             CREATE FUNCTION carry_street() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF (tg_op = 'INSERT' AND new.street IS NOT NULL)
                         OR (tg_op = 'UPDATE' AND new.street IS DISTINCT FROM old.street) THEN
                     new.streetname := {streetname};
                     new.housenumber := {housenumber};
                 ELSIF tg_op = 'INSERT' OR (new.streetname, new.housenumber)
                         IS DISTINCT FROM (old.streetname, old.housenumber) THEN
                     new.street := concat_ws(' ', new.streetname, new.housenumber);
                 END IF;
                 RETURN new;
             END $$;
             CREATE TRIGGER carry_street BEFORE INSERT OR UPDATE ON address
                 FOR EACH ROW EXECUTE FUNCTION carry_street()"
        ))
    }

    fn backfill(&self, db: &Subject) -> Result<()> {
        let [streetname, housenumber] = self.of("street");
        db.run(&format!("UPDATE address SET streetname = {streetname}, housenumber = {housenumber}"))
    }

    fn complete(&self, db: &Subject) -> Result<()> {
        db.run(
            "DROP TRIGGER carry_street ON address; DROP FUNCTION carry_street; ALTER TABLE address DROP COLUMN street",
        )
    }
}
