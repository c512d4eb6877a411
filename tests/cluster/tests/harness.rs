//! The harness itself: a cluster starts, stops, crashes and goes without leaving anything behind.

use std::time::Duration;

use pg_zdd_cluster::load::{Record, Runner};
use pg_zdd_cluster::{Cluster, Result, Stop, wait_until};

#[test]
fn a_cluster_lives_and_goes() -> Result<()> {
    let cluster = Cluster::start(&[("work_mem", "7MB"), ("cluster_name", "it's")])?;
    let dir = cluster.socket_dir().to_owned();
    let mut client = cluster.connect("postgres", "postgres", "harness")?;
    for (name, expected) in [
        ("work_mem", "7MB"),
        ("cluster_name", "it's"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("application_name", "harness"),
    ] {
        let value: String = client.query_one("SELECT current_setting($1)", &[&name])?.get(0);
        assert_eq!(value, expected, "{name}");
    }
    client.batch_execute("CREATE TABLE kept AS SELECT 42 AS answer")?;

    // A killed backend takes its connection along; the server recovers and keeps what was committed.
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    cluster.kill9_backend(pid)?;
    assert!(client.batch_execute("SELECT 1").is_err());
    wait_until("the server has recovered", Duration::from_secs(30), || {
        Ok(cluster.connect("postgres", "postgres", "harness").is_ok())
    })?;
    cluster.restart(Stop::Immediate)?;
    cluster.stop(Stop::Fast)?;
    cluster.start_again()?;

    let output = cluster.psql("postgres", "\\t\n\\a\nSELECT answer FROM kept;\n")?;
    assert_eq!(String::from_utf8(output.stdout)?.lines().last(), Some("42"));
    let failed = cluster.psql("postgres", "SELECT nothing;\n")?;
    assert!(!failed.status.success());
    assert!(String::from_utf8(failed.stderr)?.contains("column \"nothing\" does not exist"));

    drop(cluster);
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn a_record_tells_stretches_of_time_apart() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let record = Record::default();
    let start = std::time::Instant::now();
    let runner = {
        let record = record.clone();
        let mut client = cluster.connect("postgres", "postgres", "runner")?;
        Runner::start(Duration::from_millis(1), move || {
            record.time("select", || client.batch_execute("SELECT 1"));
        })
    };
    let end = || std::time::Instant::now();
    wait_until("ten statements ran", Duration::from_secs(10), || Ok(record.between(start, end()).statements >= 10))?;
    runner.stop();

    let middle = end();
    let mut client = cluster.connect("postgres", "postgres", "failing")?;
    assert!(record.time("divide", || client.batch_execute("SELECT 1/0")).is_none());
    assert_eq!(record.between(start, middle).errors, 0);
    let after = record.between(middle, end());
    assert_eq!((after.statements, after.errors), (1, 1));
    assert!(record.failures()[0].text.contains("division by zero (22012)"));
    Ok(())
}
