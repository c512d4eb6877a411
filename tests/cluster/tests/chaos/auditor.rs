//! Looks, all the time, whether what the catalog says of the changes is what the tables look like; now and then, while
//! the applications hold their breath, at every row; and in the end, at what is left.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use pg_zdd_cluster::postgres::{Client, Error};
use pg_zdd_cluster::{describe, wait_until};

use crate::judge::{Failure, Log};
use crate::model::DIVERGING;
use crate::world::{self, SLOTS, Standing, TABLES, fenced};
use crate::{PATIENCE, Stage};

/// Between two looks at every row.
const BETWEEN_COMPARISONS: Duration = Duration::from_secs(6);

/// How long a verb may go on without saying what it waits for.
const TOO_LONG: &str = "30 seconds";

pub struct Auditor<'s> {
    stage: &'s Stage<'s>,
    client: Option<Client>,
    log: Log,
    next_comparison: Instant,
    /// A table does not hold what it should. What comes of it is no news.
    is_spoilt: bool,
}

impl<'s> Auditor<'s> {
    pub fn new(stage: &'s Stage<'s>) -> Self {
        let log = Log::of(stage.cluster.log());
        Auditor { stage, client: None, log, next_comparison: Instant::now() + BETWEEN_COMPARISONS, is_spoilt: false }
    }

    pub fn look(&mut self) {
        let judge = self.stage.judge;
        self.log.read(judge);
        let contracted = self.try_to(|auditor, client| auditor.look_at_changes(client));
        if judge.is_over() {
            let _ = self.try_to(|auditor, client| auditor.hurry(client));
        } else if Instant::now() > self.next_comparison || contracted.is_some_and(|slots| !slots.is_empty()) {
            self.compare();
            self.next_comparison = Instant::now() + BETWEEN_COMPARISONS;
        }
    }

    /// Does something that is given up when the server goes down.
    fn try_to<T>(&mut self, what: impl FnOnce(&mut Self, &mut Client) -> Result<T, Error>) -> Option<T> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let mut config = self.stage.cluster.config(world::DATABASE, "postgres", "auditor");
                config.options("-c statement_timeout=60s -c lock_timeout=3s -c client_min_messages=error");
                config.connect(pg_zdd_cluster::postgres::NoTls).ok()?
            }
        };
        let done = what(self, &mut client);
        match done {
            Ok(done) => {
                self.client = Some(client);
                Some(done)
            }
            Err(error) => {
                let failure = Failure::of(&error);
                self.stage.judge.counts("auditor", &failure.state);
                if !failure.is_end() && !matches!(failure.state.as_str(), "55P03" | "57014") {
                    self.stage.judge.finds("the auditor fails", &failure.text);
                }
                None
            }
        }
    }

    /// Catalog and tables in one snapshot. Returns the slots whose old column is gone.
    fn look_at_changes(&mut self, client: &mut Client) -> Result<Vec<usize>, Error> {
        let judge = self.stage.judge;
        for fault in world::rows(client, &faults())? {
            let words: Vec<&str> = fault.iter().flatten().map(String::as_str).collect();
            judge.finds(words[0], &words[1..].join(" "));
        }
        let waiting = format!(
            "SELECT a.application_name, a.query, a.wait_event_type, a.wait_event, pg_blocking_pids(a.pid)
            FROM pg_stat_activity AS a
            WHERE a.application_name LIKE 'operator%' AND a.state = 'active'
                AND a.query_start < clock_timestamp() - interval '{TOO_LONG}'
                AND NOT EXISTS (SELECT FROM zdd.workers AS w WHERE w.pid = a.pid AND w.waiting_for IS NOT NULL)"
        );
        for verb in world::rows(client, &waiting)? {
            let words: Vec<&str> = verb.iter().flatten().map(String::as_str).collect();
            judge.finds("a verb waits and does not say for what", &words.join(" | "));
        }
        let all: Vec<usize> = (0..SLOTS.len()).collect();
        let standings = world::rows(client, &Standing::sql(&all))?;
        Ok(all.into_iter().filter(|&slot| Standing::of(&standings[slot]).source(slot).is_none()).collect())
    }

    /// Time is over: nobody is waited for.
    fn hurry(&mut self, client: &mut Client) -> Result<(), Error> {
        let others = "SELECT pid FROM pg_stat_activity
            WHERE (application_name LIKE 'operator%' OR application_name = 'owner') AND state = 'active'";
        for row in world::rows(client, others)? {
            let Some(pid) = row[0].as_ref().and_then(|pid| pid.parse().ok()) else { continue };
            self.stage.judge.cancels(pid);
            client.batch_execute(&format!("SELECT pg_cancel_backend({pid})"))?;
        }
        Ok(())
    }

    /// Compares all rows, while no application writes. What is contracted is begun anew.
    fn compare(&mut self) {
        let models = self.stage.models;
        let _gate = models.gate.write().unwrap_or_else(PoisonError::into_inner);
        for (number, table) in TABLES.iter().enumerate() {
            let Some(compared) = self.try_to(|_, client| models.compare(client, number)) else { return };
            let judge = self.stage.judge;
            judge.counts("comparison", "00000");
            if let Some(first) = compared.faults.first() {
                let count = compared.faults.len();
                judge.finds("a table does not hold what was written", &format!("{count} rows, such as {first}"));
                self.is_spoilt = true;
                judge.ends();
                return;
            }
            for (&slot, standing) in table.slots.iter().zip(&compared.standings) {
                if standing.source(slot).is_none() {
                    self.release(slot);
                } else {
                    self.verify(slot);
                }
            }
        }
    }

    /// What is expanded has no rows that are not, unless they came with a partition.
    fn verify(&mut self, slot: usize) {
        let table = &TABLES[SLOTS[slot].table];
        let change = SLOTS[slot].change;
        let counted = self.try_to(|_, client| {
            let before = world::standings(client, table)?;
            if !before[table.place(slot)].is_active || before[table.place(slot)].is_expanding() {
                return Ok((before, vec![]));
            }
            let counts = world::rows(client, &format!("SELECT pending, diverged FROM zdd.verify('{change}')"));
            let is_steady = before == world::standings(client, table)?;
            match counts {
                Ok(counts) if is_steady => Ok((before, counts[0].clone())),
                // Over, or begun anew.
                Err(error) if is_steady => Err(error),
                _ => Ok((before, vec![])),
            }
        });
        let Some((standings, counts)) = counted else { return };
        let has_come = !self.stage.models.partitions()[SLOTS[slot].table].is_empty();
        let is_wrong = |place: usize| counts.get(place).is_some_and(|count| count.as_deref() != Some("0"));
        if (is_wrong(0) && !has_come) || (is_wrong(1) && slot != DIVERGING) {
            let title = "rows are pending or diverged in a change that is expanded";
            self.stage.judge.finds(title, &format!("{counts:?}: {:?}", standings[table.place(slot)]));
        }
    }

    /// Gives a table that was contracted its old shape back.
    fn release(&mut self, slot: usize) {
        let table = &TABLES[SLOTS[slot].table];
        let released = self.try_to(|_, client| {
            let lock = format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.name);
            let released = client.batch_execute(&lock).and_then(|()| {
                let standing = &world::standings(client, table)?[table.place(slot)];
                match standing.rule(slot) {
                    Some(rule) => client.batch_execute(&(SLOTS[slot].restore(rule) + "COMMIT")),
                    None => client.batch_execute("ROLLBACK"),
                }
            });
            if released.is_err() {
                let _ = client.batch_execute("ROLLBACK");
            }
            released
        });
        let mut has_source = released.is_some();
        if !has_source {
            let known = wait_until("the end of a release shows", PATIENCE, || {
                let standings = self.try_to(|_, client| world::standings(client, table));
                has_source =
                    standings.as_ref().is_some_and(|standings| standings[table.place(slot)].has(SLOTS[slot].source));
                Ok(standings.is_some())
            });
            if let Err(error) = known {
                self.stage.judge.finds("the server does not come back", &error.to_string());
                self.stage.judge.ends();
            }
        }
        if has_source {
            self.stage.models.forget_what_is_lost(slot);
            self.stage.judge.counts("release", "00000");
        }
    }

    /// All have gone: every change is given up, and what is left shows.
    pub fn close(&mut self) {
        let judge = self.stage.judge;
        let back = wait_until("the server is there", PATIENCE, || {
            Ok(self.try_to(|auditor, client| auditor.look_at_changes(client)).is_some())
        });
        if let Err(error) = back {
            return judge.finds("the server does not come back", &error.to_string());
        }
        self.compare();
        if self.is_spoilt {
            return;
        }
        let active = "SELECT name FROM zdd.change WHERE relation IS NOT NULL";
        let _ = self.try_to(|_, client| {
            client.batch_execute("SET zdd.lock_patience = '60s'")?;
            for row in world::rows(client, active)? {
                let change = row[0].as_deref().unwrap_or_default();
                // The owner's index over two new columns is the owner's business.
                client.batch_execute("DROP INDEX IF EXISTS own_both")?;
                if let Err(error) = client.batch_execute(&format!("SELECT zdd.rollback('{change}')")) {
                    judge.finds("a change can't be given up", &format!("{change}: {}", describe(&error)));
                }
            }
            Ok(())
        });
        self.compare();
        for (what, sql) in LEFT_BEHIND {
            let mut left = Vec::new();
            // What ends by itself has a moment to do so.
            let _ = wait_until("nothing is left", Duration::from_secs(20), || {
                if let Some(found) = self.try_to(|_, client| world::rows(client, sql)) {
                    left = found;
                }
                Ok(left.is_empty())
            });
            if !left.is_empty() {
                let lines: Vec<String> = left.iter().take(10).map(|row| format!("{row:?}")).collect();
                judge.finds(&format!("left behind: {what}"), &lines.join("\n"));
            }
        }
        let _ = self.try_to(|auditor, client| auditor.look_at_changes(client));
        self.log.read(judge);
    }
}

/// What must give no row when all changes are over.
const LEFT_BEHIND: &[(&str, &str)] = &[
    ("a lock", "SELECT pid, objid, mode, granted FROM pg_locks WHERE locktype = 'userlock'"),
    (
        "a worker",
        "SELECT pid, backend_type, query FROM pg_stat_activity
        WHERE backend_type LIKE 'pg_zdd%' AND backend_type NOT IN ('pg_zdd launcher', 'pg_zdd usage saver')",
    ),
    (
        "no launcher, or nobody who saves usage",
        "SELECT * FROM (VALUES ('pg_zdd launcher'), ('pg_zdd usage saver')) AS w (who)
        WHERE w.who NOT IN (SELECT backend_type FROM pg_stat_activity)",
    ),
    (
        "usage",
        // A crash brings back what was saved last.
        "SELECT DISTINCT c.id, c.phase
        FROM jsonb_array_elements(pg_read_file('pg_stat/pg_zdd_usage.json', 0, 100000000, true)::jsonb -> 'entries') AS e
        JOIN zdd.change AS c ON c.id = (e ->> 'change')::bigint
        WHERE c.phase_since > (SELECT recorded_since FROM zdd.usage_info) + interval '1 second'",
    ),
    (
        "an index that was not finished",
        "SELECT indexrelid::regclass FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE NOT i.indisvalid AND c.relname NOT LIKE 'own%'",
    ),
    ("a column", "SELECT attrelid::regclass, attname FROM pg_attribute
        WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p'))
            AND attnum > 0 AND NOT attisdropped
            AND attname NOT IN ('id', 'region', 'note', 'extra', 'street', 'city', 'fullname', 'spot')"),
    (
        "a function, type or trigger",
        "SELECT classid::regclass, objid FROM pg_depend
        WHERE refclassid = 'pg_proc'::regclass AND classid = 'pg_trigger'::regclass
            AND refobjid IN (SELECT oid FROM pg_proc WHERE proname = 'sync' AND pronamespace = 'zdd'::regnamespace)",
    ),
];

/// SQL for everything that is wrong in one snapshot: a title, and what it is about.
fn faults() -> String {
    let slots: Vec<String> = SLOTS
        .iter()
        .map(|slot| {
            let [[a, b], [c, d]] = [slot.rules[0].targets, slot.rules[1].targets];
            let (table, source) = (TABLES[slot.table].name, slot.source);
            format!(
                "('{table}'::regclass::oid, '{source}', '{}', ARRAY['{a}', '{b}'], ARRAY['{c}', '{d}'])",
                fenced(source)
            )
        })
        .collect();
    let roots: Vec<String> = TABLES.iter().map(|table| format!("('{}'::regclass::oid)", table.name)).collect();
    format!(
        r#"
WITH slot (relation, source, fenced, one, other) AS (VALUES {slots}),
root (relation) AS (VALUES {roots}),
member AS (
    SELECT r.relation AS root, r.relation AS member FROM root AS r
    UNION ALL SELECT r.relation, i.inhrelid FROM root AS r JOIN pg_inherits AS i ON i.inhparent = r.relation
),
active AS (SELECT * FROM zdd.change WHERE relation IS NOT NULL),
col AS (
    SELECT m.root, m.member, array_agg(a.attname::text ORDER BY a.attnum) AS names
    FROM member AS m JOIN pg_attribute AS a ON a.attrelid = m.member AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY m.root, m.member
),
state AS (
    SELECT s.*, c.member, c.names, a.id, a.name, a.phase, a.targets, s.source = ANY (c.names) AS has_source,
        s.fenced = ANY (c.names) AS has_fenced, c.names @> s.one AS has_one, c.names @> s.other AS has_other,
        c.names && (s.one || s.other) AS has_any
    FROM slot AS s JOIN col AS c ON c.root = s.relation
    LEFT JOIN active AS a ON a.relation = s.relation AND a.source = s.source
),
sync AS (
    SELECT t.tgrelid, t.tgname, t.tgenabled, t.tgargs FROM pg_trigger AS t
    WHERE t.tgfoid = 'zdd.sync'::regproc
)
SELECT 'the columns are not those of the phase', concat_ws(' ', s.member, s.source, s.id, s.phase, s.targets, s.names)
FROM state AS s
WHERE CASE s.phase
    WHEN 'expanding' THEN NOT (s.has_source AND NOT s.has_fenced AND s.names @> s.targets)
    WHEN 'expanded' THEN NOT (s.has_source AND NOT s.has_fenced AND s.names @> s.targets)
    WHEN 'fenced' THEN NOT (s.has_fenced AND NOT s.has_source AND s.names @> s.targets)
    ELSE s.has_fenced OR (s.has_source AND s.has_any) OR (NOT s.has_source AND s.has_one = s.has_other)
END
UNION ALL
SELECT 'the triggers are not those of the active changes', concat_ws(' ', m.root, m.member, n.triggers, n.changes)
FROM member AS m CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM sync AS t WHERE t.tgrelid = m.member AND t.tgenabled = 'A') AS triggers,
        (SELECT count(*) FROM active AS a WHERE a.relation = m.root) AS changes
) AS n
WHERE n.triggers <> n.changes
UNION ALL
SELECT 'a trigger does not know the phase', concat_ws(' ', a.name, a.phase, t.tgrelid)
FROM active AS a JOIN member AS m ON m.root = a.relation JOIN sync AS t ON t.tgrelid = m.member
    AND position(format('"id":%s,', a.id) IN encode(t.tgargs, 'escape')) > 0
WHERE (position('"expanding":true' IN encode(t.tgargs, 'escape')) > 0) <> (a.phase = 'expanding')
UNION ALL
SELECT 'a constraint of a contract that is not under way', concat_ws(' ', k.conrelid, k.conname, a.phase)
FROM pg_constraint AS k LEFT JOIN active AS a ON k.conname = 'zdd_not_null_' || a.id
WHERE k.conname LIKE 'zdd\_not\_null\_%' AND a.phase IS DISTINCT FROM 'fenced'
UNION ALL
SELECT 'rows of a change that is over', concat_ws(' ', w.what, w.change_id)
FROM (
    SELECT 'job', change_id FROM zdd.job UNION ALL SELECT 'lane', change_id FROM zdd.lane
    UNION ALL SELECT 'skipped', change_id FROM zdd.skipped UNION ALL SELECT 'worker', change_id FROM zdd.worker
    UNION ALL SELECT 'sample', change_id FROM zdd.sample UNION ALL SELECT 'guarded', change_id FROM zdd.guarded
    UNION ALL SELECT 'built_index', change_id FROM zdd.built_index
) AS w (what, change_id)
WHERE w.change_id NOT IN (SELECT id FROM active)
UNION ALL
SELECT 'a step that does not follow from the one before', concat_ws(' ', p.change, p.before, 'and then', p.event, p.detail)
FROM (
    SELECT e.change, e.event, e.detail, lag(e.event) OVER (PARTITION BY e.change_id ORDER BY e.id) AS before
    FROM zdd.event AS e WHERE e.event IN ('expanding', 'expanded', 'fenced', 'contracted', 'rolled_back')
) AS p
WHERE NOT (coalesce(p.before, 'nothing') || ' ' || p.event) = ANY ('{{nothing expanding, expanding expanded,
    expanding rolled_back, expanded fenced, expanded rolled_back, fenced expanded, fenced contracted, fenced rolled_back}}')
UNION ALL
SELECT 'an event of a change that is over', concat_ws(' ', e.change, e.event, e.detail, 'after', f.event)
FROM zdd.event AS f JOIN zdd.event AS e ON e.change_id = f.change_id AND e.id > f.id
WHERE f.event IN ('contracted', 'rolled_back')
"#,
        slots = slots.join(", "),
        roots = roots.join(", ")
    )
}
