//! The shop's database: a table of addresses from all over the world, and the people who work on it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use pg_zdd_cluster::postgres::{Client, NoTls};
use pg_zdd_cluster::{Cluster, Result, fastrand};

use crate::app::{Place, World};
use crate::model::{Pool, Row, Written};

const STREETS: &str = include_str!("../data/streets.csv");

/// How many rows the applications work on; all others must come through untouched.
const POOL: usize = 5000;

const SCHEMA: &str = "
    CREATE TABLE place (street varchar, postcode varchar, city varchar, country varchar);
    CREATE TABLE address (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        street     varchar NOT NULL,
        postcode   varchar,
        city       varchar NOT NULL,
        country    varchar,
        updated_at timestamptz
    );
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.updated_at := now(); RETURN NEW; END';
    CREATE TRIGGER touch BEFORE UPDATE ON address FOR EACH ROW EXECUTE FUNCTION touch();";

/// The change that the applications live through.
pub const SPLIT: &str = r"SELECT zdd.split_column('address', 'street',
    columns => 'streetname varchar NOT NULL, housenumber varchar',
    regex   => '^(?<streetname>.+?)(?:\s+(?<housenumber>\d\S*))?$',
    join    => '{streetname}[ {housenumber}]')";

/// Makes the table with so many rows. Gives the operator's connection, what the applications share, and the rows that no
/// application touches.
pub fn open(cluster: &Cluster, rows: i64) -> Result<(Client, Arc<World>, HashMap<i64, Row>)> {
    cluster.create_database("shop")?.batch_execute("CREATE ROLE shop SUPERUSER LOGIN")?;
    let mut operator = operator(cluster)?;
    load_streets(&mut operator, rows)?;
    let places = places(&mut operator)?;
    let mut others = read_all(&mut operator)?;
    let pool = Pool::default();
    // Not the rows without a street: those are the operator's to settle.
    let taken: Vec<i64> =
        others.values().filter(|row| row.street != Written::Old(String::new())).map(|row| row.id).take(POOL).collect();
    taken.iter().filter_map(|id| others.remove(id)).for_each(|row| pool.put(row));
    Ok((operator, Arc::new(World { pool, places }), others))
}

/// A connection that prints the messages it gets, as psql does.
fn operator(cluster: &Cluster) -> Result<Client> {
    let mut config = cluster.config("shop", "shop", "operator");
    config.notice_callback(|notice| println!("          {}:  {}", notice.severity(), notice.message()));
    Ok(config.connect(NoTls)?)
}

/// Loads the streets and multiplies them.
fn load_streets(client: &mut Client, rows: i64) -> Result<()> {
    client.batch_execute(SCHEMA)?;
    let mut copy = client.copy_in("COPY place FROM STDIN (FORMAT csv, HEADER)")?;
    copy.write_all(STREETS.as_bytes())?;
    let count = i64::try_from(copy.finish()?)?;
    client.execute(
        "INSERT INTO address (street, postcode, city, country)
         SELECT street, postcode, city, country FROM generate_series(0, $1::bigint / $2::bigint), place LIMIT $1",
        &[&rows, &count],
    )?;
    client.batch_execute("VACUUM ANALYZE address")?;
    Ok(())
}

fn places(client: &mut Client) -> Result<Vec<Place>> {
    let rows = client.query("SELECT street, postcode, city, country FROM place WHERE street <> ''", &[])?;
    let mut places: Vec<Place> = rows
        .iter()
        .map(|row| Place { street: row.get(0), postcode: row.get(1), city: row.get(2), country: row.get(3) })
        .collect();
    fastrand::shuffle(&mut places);
    Ok(places)
}

fn read_all(client: &mut Client) -> Result<HashMap<i64, Row>> {
    let rows = client.query("SELECT id, street, city FROM address", &[])?;
    let row = |id: i64, street, city| (id, Row { id, street: Written::Old(street), city });
    Ok(rows.iter().map(|r| row(r.get(0), r.get(1), r.get(2))).collect())
}
