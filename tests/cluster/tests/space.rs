//! What a backfill leaves behind on disk. A program of its own: nothing else may be going on.

use pg_zdd_cluster::Cluster;
use pg_zdd_cluster::address::RULE;
use pg_zdd_cluster::session::Session;

#[test]
fn the_table_ends_near_its_final_size() {
    let cluster = Cluster::start(&[("autovacuum", "off")]).expect("a cluster");
    for (rows, workers) in [(400_000, 1), (400_000, 2), (100_000, 1), (100_000, 2)] {
        let mut db = Session::on(&cluster);
        db.run("CREATE TABLE address (id int PRIMARY KEY, street text, note text)");
        db.run(&format!(
            "INSERT INTO address SELECT i, 'Elm Street ' || i, repeat('x', 60) FROM generate_series(1, {rows}) AS i"
        ));
        db.run("VACUUM (FREEZE, ANALYZE) address");
        db.run(&format!("SELECT zdd.split_column('address', 'street', {RULE})"));
        db.run(&format!("SELECT zdd.start_backfill('address.street', workers => {workers})"));
        db.run("CALL zdd.wait_for('address.street', 'expanded', '60 s')");
        let sizes = |db: &mut Session| {
            ["address", "address_pkey"].map(|name| db.number(&format!("SELECT pg_relation_size('{name}')")) as f64)
        };
        let [heap, key] = sizes(&mut db);
        db.run("VACUUM FULL address");
        let [least_heap, least_key] = sizes(&mut db);
        let (heap, key) = (heap / least_heap, key / least_key);
        let figures = format!("{rows} rows, {workers} workers: heap {heap:.3}, primary key {key:.3}");
        println!("{figures}");
        assert!(heap <= 1.15 && key <= 1.15, "{figures}");
    }
}
