//! When all have gone: every change is given up, and what is left behind shows.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use pg_zdd_cluster::postgres::{Client, NoTls};
use pg_zdd_cluster::{Cluster, describe, wait_until};

use crate::judge::Judge;
use crate::values::lit;
use crate::world::{DATABASE, RESTORED, ensure_extension, rows};

const PATIENCE: Duration = Duration::from_secs(60);

/// What must give no row when all changes are over, and what it is.
const LEFT_BEHIND: &[(&str, &str)] = &[
    (
        "a trigger",
        "SELECT t.tgrelid::regclass, t.tgname, t.tgargs FROM pg_trigger AS t
        WHERE t.tgfoid IN (SELECT oid FROM pg_proc WHERE proname = 'sync' AND pronamespace = 'zdd'::regnamespace)",
    ),
    (
        "a constraint",
        // Owners make some of this name themselves.
        r"SELECT conrelid::regclass, conname FROM pg_constraint
        WHERE conname LIKE 'zdd\_not\_null\_%' AND conname NOT LIKE 'zdd\_not\_null\_1%'",
    ),
    (
        "rows of the catalog",
        "SELECT w.* FROM (
            SELECT 'job', change_id FROM zdd.job UNION ALL SELECT 'lane', change_id FROM zdd.lane
            UNION ALL SELECT 'skipped', change_id FROM zdd.skipped UNION ALL SELECT 'worker', change_id FROM zdd.worker
            UNION ALL SELECT 'sample', change_id FROM zdd.sample UNION ALL SELECT 'guarded', change_id FROM zdd.guarded
            UNION ALL SELECT 'built_index', change_id FROM zdd.built_index) AS w (where_it_is, change_id)
        WHERE w.change_id NOT IN (SELECT id FROM zdd.change WHERE relation IS NOT NULL)",
    ),
    ("a lock", "SELECT * FROM pg_locks WHERE locktype = 'userlock'"),
    ("a worker", "SELECT pid, backend_type, query FROM pg_stat_activity
        WHERE backend_type LIKE 'pg_zdd%' AND backend_type NOT IN ('pg_zdd launcher', 'pg_zdd usage saver')"),
    ("usage", "SELECT * FROM zdd.usage"),
    ("a superuser", "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'"),
    (
        "a member of a role",
        "SELECT roleid::regrole, member::regrole FROM pg_auth_members WHERE roleid::regrole::text NOT LIKE 'pg\\_%'",
    ),
    (
        "an event with an internal error",
        "SELECT event, detail FROM zdd.event WHERE event IN ('error', 'retried') AND (detail->>'sqlstate' LIKE 'XX%'
            OR detail->>'error' ~ '^pg_zdd: |cache lookup|could not open relation with OID|panic|unexpected|unrecognized')",
    ),
];

/// Gives everything up and looks at what remains.
pub fn clean_up(cluster: &Cluster, judge: &Judge) {
    let connect = || {
        let mut config = cluster.config(DATABASE, "postgres", "aftermath");
        config.options(
            "-c statement_timeout=120s -c search_path=pg_catalog -c default_transaction_isolation=read\\ committed",
        );
        config.connect(NoTls).map_err(|e| describe(&e).into())
    };
    // A crash may have been last.
    let mut client = None;
    let back = wait_until("the server takes connections", PATIENCE, || {
        client = connect().inspect_err(|_: &pg_zdd_cluster::Error| ()).ok();
        Ok(client.is_some())
    });
    let Some(mut client) = client else {
        return judge.finds("the server does not come back", &format!("{back:?}\n{}", cluster.log_tail(20)));
    };
    settle(&mut client, judge);
    dump_and_restore(cluster, judge);
    give_up_changes(&mut client, judge);
    for (what, sql) in LEFT_BEHIND {
        let mut left = Vec::new();
        // What ends by itself has a moment to do so.
        let gone = wait_until("", Duration::from_secs(20), || {
            left = rows(&mut client, sql).unwrap_or_else(|e| vec![vec![describe(&e)]]);
            Ok(left.is_empty() || !matches!(*what, "a lock" | "a worker"))
        });
        if gone.is_err() || !left.is_empty() {
            let lines: Vec<String> = left.iter().take(10).map(|row| row.join(" | ")).collect();
            judge.finds(&format!("left behind: {what}"), &lines.join("\n"));
        }
    }
    check_files(&mut client, judge);
    check_ordinary_life(&mut client, judge);
}

/// Ends what others have begun, and takes back what they have set.
fn settle(client: &mut Client, judge: &Judge) {
    let others = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'fuzz%'";
    let gone = wait_until("sessions have ended", PATIENCE, || {
        rows(client, &others.replace("pid", "pg_terminate_backend(pid)"))?;
        Ok(rows(client, others)?.is_empty())
    });
    if let Err(error) = gone {
        judge.finds("sessions do not end", &error.to_string());
    }
    for row in rows(client, "SELECT gid FROM pg_prepared_xacts").unwrap_or_default() {
        let _ = client.batch_execute(&format!("ROLLBACK PREPARED '{}'", row[0]));
    }
    let _ = client.batch_execute("ALTER DATABASE fuzz RESET ALL");
    let _ = client.batch_execute("ALTER ROLE owner_a RESET ALL; ALTER ROLE owner_b RESET ALL");
    ensure_extension(client);
}

/// A dump can be made whatever is under way, and be restored without a crash.
fn dump_and_restore(cluster: &Cluster, judge: &Judge) {
    let dump = match cluster.client_tool("pg_dump", DATABASE).output() {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => return judge.finds("pg_dump fails", &String::from_utf8_lossy(&output.stderr)),
        Err(error) => return judge.finds("there is no pg_dump", &error.to_string()),
    };
    let restored = cluster
        .connect("postgres", "postgres", "aftermath")
        .and_then(|mut client| Ok(client.batch_execute(&format!("CREATE DATABASE {RESTORED}"))?));
    if let Err(error) = restored {
        return judge.finds("no database to restore into", &error.to_string());
    }
    // What an owner's functions stand in the way of is not restored; there must be no other harm.
    let mut psql = cluster.client_tool("psql", RESTORED);
    let child =
        psql.args(["-X", "-q", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else { return judge.finds("there is no psql", "") };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(&dump);
    }
    let _ = child.wait();
    let forget = cluster
        .connect("postgres", "postgres", "aftermath")
        .and_then(|mut client| Ok(client.batch_execute(&format!("DROP DATABASE {RESTORED} WITH (FORCE)"))?));
    if let Err(error) = forget {
        judge.finds("the restored database does not go", &error.to_string());
    }
}

fn give_up_changes(client: &mut Client, judge: &Judge) {
    let changes =
        "SELECT c.name, c.relation::regclass::text, c.phase FROM zdd.change AS c WHERE c.relation IS NOT NULL";
    for row in rows(client, changes).unwrap_or_else(|e| panic!("{}", describe(&e))) {
        let (change, relation) = (&row[0], &row[1]);
        // With a table that was dropped below, others may have gone.
        let still = rows(client, &format!("{changes} AND c.name = {}", lit(change)));
        if still.is_ok_and(|found| found.is_empty()) {
            continue;
        }
        let rollback = format!("SELECT zdd.rollback({})", lit(change));
        let Err(error) = client.batch_execute(&rollback) else { continue };
        // Others use the new columns, or the table is gone: then the change ends with it.
        let state = error.code().map(|state| state.code().to_owned()).unwrap_or_default();
        if state != "2BP01" {
            judge.finds(
                &format!("a change cannot be given up ({state})"),
                &format!("{change} on {relation}, which is {}: {}", row[2], describe(&error)),
            );
        }
        let _ = client.batch_execute(&format!("DROP TABLE IF EXISTS {relation} CASCADE"));
    }
    let left = rows(client, changes).unwrap_or_default();
    if !left.is_empty() {
        judge.finds("changes outlive their tables", &left[0].join(" | "));
    }
}

/// Tables and indexes are sound, by PostgreSQL's own checks where it has them.
fn check_files(client: &mut Client, judge: &Judge) {
    if client.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog").is_err() {
        println!("no amcheck here: the files are not checked");
        return;
    }
    let checks = [
        (
            "a table is corrupt",
            "SELECT c.oid::regclass, v.* FROM pg_class AS c CROSS JOIN LATERAL verify_heapam(c.oid) AS v
            WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence <> 't' LIMIT 10",
        ),
        (
            "an index is corrupt",
            // Expressions of others are not for a superuser to run.
            "SELECT bt_index_check(i.indexrelid, true) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_am AS a ON a.oid = c.relam
            WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready AND i.indexprs IS NULL AND i.indpred IS NULL
                AND c.relpersistence <> 't' AND c.relkind = 'i'",
        ),
    ];
    for (title, sql) in checks {
        match rows(client, sql) {
            Err(error) => judge.finds(title, &describe(&error)),
            Ok(found) if title.contains("table") && !found.is_empty() => {
                judge.finds(title, &found[0].join(" | "));
            }
            Ok(_) => {}
        }
    }
}

/// What everybody does works as if nothing had been, and the extension goes.
fn check_ordinary_life(client: &mut Client, judge: &Judge) {
    const LIFE: &[&str] = &[
        "SET ROLE owner_a",
        "CREATE TABLE shop.ordinary (id int PRIMARY KEY, street text)",
        "INSERT INTO shop.ordinary SELECT i, 'Elm ' || i FROM generate_series(1, 100) AS i",
        "SELECT zdd.split_column('shop.ordinary', 'street', columns => 'a text, b text', delimiter => ' ')",
        "CALL zdd.backfill('ordinary.street')",
        "DO $$ BEGIN ASSERT (SELECT in_sync FROM zdd.verify('ordinary.street')) = 100; END $$",
        "UPDATE shop.ordinary SET street = 'Oak 7' WHERE id = 1",
        "DO $$ BEGIN ASSERT (SELECT a = 'Oak' AND b = '7' FROM shop.ordinary WHERE id = 1); END $$",
        "CALL zdd.contract('ordinary.street', force => true)",
        "DO $$ BEGIN ASSERT (SELECT count(*) FROM shop.ordinary WHERE a IN ('Elm', 'Oak') AND b IS NOT NULL) = 100; END $$",
        "DROP TABLE shop.ordinary",
        "RESET ROLE",
        "DROP EXTENSION pg_zdd",
        "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'zdd'::regnamespace); END $$",
        "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'zdd'::regnamespace); END $$",
        "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname LIKE 'pg_zdd%'); END $$",
        "CREATE TABLE shop.ordinary (id int); DROP TABLE shop.ordinary",
        "CREATE EXTENSION pg_zdd",
    ];
    for sql in LIFE {
        if let Err(error) = client.batch_execute(sql) {
            judge.finds("ordinary life does not go on", &format!("{sql}\n{}", describe(&error)));
            return;
        }
    }
}
