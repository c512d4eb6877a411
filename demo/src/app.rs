//! The application, in its two versions. An instance is one connection that issues single-row statements all the time
//! and checks every value it reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pg_zdd_cluster::fastrand::Rng;
use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::postgres::types::ToSql;
use pg_zdd_cluster::postgres::{Client, Statement};
use pg_zdd_cluster::{Cluster, Result};

use crate::model::{Pool, Row, Written};

/// A pause between two steps of an instance, so that a few instances leave the machine some air.
const PACE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Knows street only.
    One,
    /// Knows streetname and housenumber only.
    Two,
    /// Version 2, let loose on a few new customers before the old rows are split: it only inserts.
    Canary,
}

impl Version {
    /// What its connections call themselves.
    pub fn application_name(self) -> &'static str {
        match self {
            Version::One => "shop 1.0",
            Version::Two => "shop 2.0",
            Version::Canary => "shop 2.0-canary",
        }
    }
}

/// Where a new address comes from.
pub struct Place {
    pub street: String,
    pub postcode: String,
    pub city: String,
    pub country: String,
}

/// What all instances share.
pub struct World {
    pub pool: Pool,
    pub places: Vec<Place>,
}

/// All running instances of one version.
pub struct Fleet {
    version: Version,
    world: Arc<World>,
    record: Record,
    instances: Vec<Runner>,
    /// How many of 1000 requests come to it.
    share: Arc<AtomicU32>,
}

impl Fleet {
    /// Canary instances count as version 2: they share its record.
    pub fn new(version: Version, world: Arc<World>, record: Record) -> Fleet {
        Fleet { version, world, record, instances: Vec::new(), share: Arc::new(AtomicU32::new(1000)) }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether requests come to it.
    pub fn is_used(&self) -> bool {
        !self.instances.is_empty() && self.share.load(Ordering::Relaxed) > 0
    }

    /// Has only so many percent of the requests come to it, as a load balancer does.
    pub fn take_percent(&self, percent: u32) {
        self.share.store(percent * 10, Ordering::Relaxed);
    }

    pub fn size(&self) -> usize {
        self.instances.len()
    }

    pub fn scale(&mut self, cluster: &Cluster, size: usize) -> Result<()> {
        while self.instances.len() < size {
            let client = cluster.connect("shop", "shop", self.version.application_name())?;
            let mut instance = Instance::new(self, client)?;
            self.instances.push(Runner::start(PACE, move || instance.step()));
        }
        while self.instances.len() > size
            && let Some(runner) = self.instances.pop()
        {
            runner.stop();
        }
        Ok(())
    }
}

struct Instance {
    version: Version,
    world: Arc<World>,
    record: Record,
    client: Client,
    sql: Sql,
    rng: Rng,
    share: Arc<AtomicU32>,
}

/// Prepared once, then used across all phases, as a connection pool would.
struct Sql {
    read: Statement,
    insert: Statement,
    write: Statement,
    move_away: Statement,
    delete: Statement,
}

impl Sql {
    fn prepare(client: &mut Client, version: Version) -> Result<Sql> {
        let (read, insert, write) = match version {
            Version::One => (
                "SELECT city, street FROM address WHERE id = $1",
                "INSERT INTO address (postcode, city, country, street) VALUES ($1, $2, $3, $4) RETURNING id",
                "UPDATE address SET street = $2 WHERE id = $1",
            ),
            Version::Two | Version::Canary => (
                "SELECT city, streetname, housenumber FROM address WHERE id = $1",
                "INSERT INTO address (postcode, city, country, streetname, housenumber)
                 VALUES ($1, $2, $3, $4, $5) RETURNING id",
                "UPDATE address SET streetname = $2, housenumber = $3 WHERE id = $1",
            ),
        };
        Ok(Sql {
            read: client.prepare(read)?,
            insert: client.prepare(insert)?,
            write: client.prepare(write)?,
            move_away: client.prepare("UPDATE address SET city = $2 WHERE id = $1")?,
            delete: client.prepare("DELETE FROM address WHERE id = $1")?,
        })
    }
}

impl Instance {
    fn new(fleet: &Fleet, mut client: Client) -> Result<Instance> {
        let sql = Sql::prepare(&mut client, fleet.version)?;
        let (world, record) = (fleet.world.clone(), fleet.record.clone());
        let share = fleet.share.clone();
        Ok(Instance { version: fleet.version, world, record, client, sql, rng: Rng::new(), share })
    }

    /// One thing a user does, then a look at the row. A row whose statement failed is not put back: it is counted as
    /// an error already, and nobody knows what it holds.
    fn step(&mut self) {
        if self.rng.u32(..1000) >= self.share.load(Ordering::Relaxed) {
            return;
        }
        let dice = if self.version == Version::Canary { 0 } else { self.rng.u8(..100) };
        if dice < 15 {
            if let Some(row) = self.insert()
                && self.read(&row)
            {
                self.world.pool.put(row);
            }
            return;
        }
        let Some(mut row) = self.world.pool.take(&mut self.rng) else {
            return;
        };
        let done = match dice {
            15..35 => self.write(&mut row),
            35..50 => self.move_away(&mut row),
            50..60 => {
                self.delete(&row);
                return;
            }
            _ => true,
        };
        if done && self.read(&row) {
            self.world.pool.put(row);
        }
    }

    fn insert(&mut self) -> Option<Row> {
        let street = self.street();
        let world = self.world.clone();
        let place = &world.places[self.rng.usize(..world.places.len())];
        let (statement, client) = (&self.sql.insert, &mut self.client);
        let id = self.record.time("insert", || {
            let (postcode, city, country) = (&place.postcode, &place.city, &place.country);
            let row = match &street {
                Written::Old(street) => client.query_one(statement, &[postcode, city, country, street]),
                Written::New(name, number) => client.query_one(statement, &[postcode, city, country, name, number]),
            };
            row?.try_get(0)
        })?;
        Some(Row { id, street, city: place.city.clone() })
    }

    fn write(&mut self, row: &mut Row) -> bool {
        row.street = self.street();
        let statement = self.sql.write.clone();
        match row.street.clone() {
            Written::Old(street) => self.change_one("update", &statement, &[&row.id, &street]),
            Written::New(name, number) => self.change_one("update", &statement, &[&row.id, &name, &number]),
        }
    }

    fn move_away(&mut self, row: &mut Row) -> bool {
        let place = self.rng.usize(..self.world.places.len());
        row.city.clone_from(&self.world.places[place].city);
        let statement = self.sql.move_away.clone();
        self.change_one("update of city", &statement, &[&row.id, &row.city])
    }

    fn delete(&mut self, row: &Row) -> bool {
        let statement = self.sql.delete.clone();
        self.change_one("delete", &statement, &[&row.id])
    }

    /// Runs a statement that must find exactly one row.
    fn change_one(&mut self, what: &str, statement: &Statement, args: &[&(dyn ToSql + Sync)]) -> bool {
        let client = &mut self.client;
        match self.record.time(what, || client.execute(statement, args)) {
            Some(1) => true,
            Some(count) => {
                self.record.fail(format!("{what} found {count} rows instead of 1: {args:?}"));
                false
            }
            None => false,
        }
    }

    /// Reads a row and compares it with what was written last.
    fn read(&mut self, row: &Row) -> bool {
        let (statement, client) = (&self.sql.read, &mut self.client);
        let old_shape = self.version == Version::One;
        let expected = if old_shape { (Some(row.street.old_shape()), None) } else { row.street.new_shape() };
        let found = self.record.time("select", || {
            let Some(found) = client.query_opt(statement, &[&row.id])? else {
                return Ok(None);
            };
            let number = if old_shape { None } else { found.try_get(2)? };
            Ok(Some((found.try_get::<_, String>(0)?, (found.try_get(1)?, number))))
        });
        match found {
            Some(Some((city, shape))) if city == row.city && shape == expected => true,
            Some(Some(found)) => {
                self.record.fail(format!("row {} holds {found:?}: {row:?} was written", row.id));
                false
            }
            Some(None) => {
                self.record.fail(format!("row {} is gone: {row:?} was written", row.id));
                false
            }
            None => false,
        }
    }

    /// A street to write, in the version's own shape.
    fn street(&mut self) -> Written {
        let place = &self.world.places[self.rng.usize(..self.world.places.len())];
        let street = Written::Old(place.street.clone());
        if self.version == Version::One {
            return street;
        }
        // Now and then a user of version 2 divides a street in a way that the rule would not.
        if self.rng.u8(..20) == 0 {
            return Written::New("Straße des 17.".into(), Some("Juni 135".into()));
        }
        match street.new_shape() {
            (Some(name), number) => Written::New(name, number),
            (None, _) => Written::New("(unknown)".into(), None),
        }
    }
}
