//! Expand, fence, contract and roll back: what needs a lock that nothing else can share, for as short as possible.

use std::cell::RefCell;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::spi::{quote_identifier as quote, quote_literal};
use serde_json::json;

use crate::binding::Binding;
use crate::catalog::{self, Change};
use crate::error::Error;
use crate::guard;
use crate::guc;
use crate::patience::{GaveUp, holders_of_tables, with_patience};
use crate::pg::gate::{Gate, as_owner};
use crate::pg::inspect::ObjectId;
use crate::pg::lock::{self, LockMode};
use crate::pg::parse::ColumnDefinition;
use crate::pg::security::{acts_for, query, query_strings, role_name};
use crate::pg::subxact::catch;
use crate::pg::table::{Table, relation_named};
use crate::pg::trigger::{NAME_PREFIX, record_dependencies};
use crate::pg::{class, extension};
use crate::phase::Phase;
use crate::rule::Rule;
use crate::usage;
use crate::worker::interrupt;

/// The name of the sync trigger of a change.
pub fn trigger_name(change: &str) -> String {
    const MAX_BYTES: usize = 63;
    let mut name = format!("{NAME_PREFIX}{change}");
    if name.len() > MAX_BYTES {
        // What is cut off must still tell two changes apart.
        let hash = change
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let suffix = format!("~{hash:016x}");
        let mut end = MAX_BYTES - suffix.len();
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push_str(&suffix);
    }
    name
}

/// Locks a table and its partitions or children against everything, within `zdd.lock_timeout` for all of them, so that nobody
/// queues up behind for longer. Returns them, the table first. An error of PostgreSQL's if it cannot.
fn lock_members(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    lock::lock_tree(relation, LockMode::AccessExclusive, guc::lock_timeout())
}

/// What to say when a table could not be locked.
pub fn lock_timeout(relation: pg_sys::Oid, gave_up: GaveUp) -> Result<Error, Error> {
    let GaveUp { attempts, patience, error } = gave_up;
    Ok(match error {
        Error::Caught(_) => {
            let blockers = holders_of_tables(relation, &lock::tree(relation))?;
            Error::LockTimeout { relation: class::name(relation), attempts, patience, blockers }
        }
        // Somebody else has the change.
        error => error,
    })
}

/// Runs DDL of our own on a table and its members, which the guard lets pass.
fn execute(gate: &Gate, members: &[pg_sys::Oid], sql: &str) -> Result<(), Error> {
    guard::suspended(members, || gate.execute(sql))
}

/// Opens a table that must exist, to look at it.
pub fn open(relation: pg_sys::Oid) -> Result<Table, Error> {
    Table::look_at(relation).ok_or(Error::NoSuchTable { oid: relation.to_u32() })
}

/// What `split_column` asks for.
pub struct Request {
    pub relation: pg_sys::Oid,
    pub rule: Rule,
    pub columns: Vec<ColumnDefinition>,
    pub indexes: Vec<String>,
}

/// Everything that can be wrong with the table. Asked before the lock, so that nobody waits for a refusal, and again
/// under it, when the change itself is there.
pub fn check_table(table: &Table, source: &str, but: Option<&str>) -> Result<(), Error> {
    let relation = table.name();
    if table.is_system() || relation.starts_with("zdd.") {
        return Err(Error::SystemTable { relation });
    }
    let what = match table.kind() {
        'r' | 'p' => None,
        'v' => Some("a view"),
        'm' => Some("a materialized view"),
        'f' => Some("a foreign table"),
        'i' | 'I' => Some("an index"),
        'S' => Some("a sequence"),
        'c' => Some("a composite type"),
        _ => Some("something else"),
    };
    if let Some(what) = what {
        return Err(Error::NotATable { relation, what });
    }
    if table.is_temporary() {
        return Err(Error::TemporaryTable { relation });
    }
    if table.is_partition() {
        let sql = "select i.inhparent::regclass::text from pg_inherits as i
                   where i.inhrelid = $1";
        let parent = query_strings(sql, &[table.oid().into()])?.pop().unwrap_or_default();
        return Err(Error::Partition { relation, parent });
    }
    let Some(attribute) = table.attribute(source) else {
        return Err(Error::NoSuchColumn { relation, column: source.to_owned() });
    };
    if attribute.inherited {
        return Err(Error::InheritedColumn { relation, column: source.to_owned() });
    }
    if attribute.generated || attribute.identity {
        return Err(Error::GeneratedSource { relation, column: source.to_owned() });
    }
    if let Some(change) = catalog::change_of_column(table.oid(), source)?.filter(|change| Some(change.as_str()) != but)
    {
        return Err(Error::SourceInChange { relation, column: source.to_owned(), change });
    }
    Ok(())
}

/// An error if we cannot look at each row of a table or partition ourselves: nothing else may ever be called expanded.
pub fn check_storage(table: &Table) -> Result<(), Error> {
    table.check_access_method()?;
    if is_of_citus(table)? {
        return Err(Error::Citus { relation: table.name() });
    }
    Ok(())
}

/// Whether Citus has spread a table over shards, or stores a shard in it.
fn is_of_citus(table: &Table) -> Result<bool, Error> {
    let exists = |name| relation_named("pg_catalog", name).is_some();
    let tables = "select p.logicalrelid::text from pg_dist_partition as p where p.logicalrelid::oid = $1";
    if exists("pg_dist_partition") && !query_strings(tables, &[table.oid().into()])?.is_empty() {
        return Ok(true);
    }
    // A shard is called as its table, with its number.
    let shards = "select s.shardid::text from pg_class as c
        join pg_dist_shard as s on s.shardid = substring(c.relname from '_([0-9]{1,18})$')::int8
        join pg_class as l on l.oid = s.logicalrelid and l.relnamespace = c.relnamespace
        where c.oid = $1";
    Ok(exists("pg_dist_shard") && !query_strings(shards, &[table.oid().into()])?.is_empty())
}

/// What can be wrong with a table and its partitions or children.
fn check_members(request: &Request, members: &[pg_sys::Oid]) -> Result<(), Error> {
    let root = open(request.relation)?;
    let relation = root.name();
    let ours = trigger_name(&request.rule.change);
    for &member in members {
        let table = open(member)?;
        if table.kind() == 'f' {
            return Err(Error::ForeignPartition { relation, partition: table.name() });
        }
        check_storage(&table)?;
        let source = &request.rule.source.name;
        let other_parent = "select i.inhparent::regclass::text from pg_inherits as i
                   join pg_attribute as a on a.attrelid = i.inhparent and a.attname = $2::text::name and not a.attisdropped
                   where i.inhrelid = $1 and i.inhparent <> all ($3)";
        let args = [member.into(), source.as_str().into(), members.to_vec().into()];
        if let Some(parent) = query_strings(other_parent, &args)?.pop() {
            return Err(Error::OtherParent { relation: table.name(), column: source.clone(), parent });
        }
        if guard::partition_key(member)?.contains(source) {
            return Err(Error::PartitionKey { relation: table.name(), column: source.clone() });
        }
        if let Some(column) = request.columns.iter().find(|column| table.attribute(&column.name).is_some()) {
            return Err(Error::TargetExists { relation: table.name(), column: column.name.clone() });
        }
        let known: Vec<String> = catalog::of_table(member)?.iter().map(|change| trigger_name(&change.name)).collect();
        if let Some(trigger) = guard::unmanaged_sync_trigger(member, &known)? {
            return Err(Error::StrangeTrigger { trigger, relation: table.name() });
        }
    }
    match guard::later_trigger(members, &ours)? {
        Some((relation, trigger)) => Err(Error::LateTrigger { relation, trigger, ours }),
        None => Ok(()),
    }
}

/// Adds the new columns and the sync trigger, and writes the change down.
pub fn expand(request: &Request) -> Result<(), Error> {
    let source = &request.rule.source.name;
    let check_again = |members: &[pg_sys::Oid]| {
        check_table(&open(request.relation)?, source, Some(&request.rule.change))?;
        check_members(request, members)
    };
    let check = |members: &[pg_sys::Oid]| {
        check_table(&open(request.relation)?, source, None)?;
        match catalog::find(&request.rule.change) {
            Ok(other) if !catalog::end_if_table_is_gone(&other)? => {
                return Err(Error::ChangeExists { change: other.name });
            }
            Ok(_) | Err(Error::NoSuchChange { .. } | Error::Final { .. }) => {}
            Err(error) => return Err(error),
        }
        check_members(request, members)
    };
    check(&lock::tree(request.relation))?;
    let rule = Rule { id: catalog::next_id()?, ..request.rule.clone() };
    // Somebody may be taking the same name in a transaction that has not ended. Nobody waits for a table meanwhile, and
    // nobody for the name while we wait for the table.
    let attempt = || {
        register(&rule, &open(request.relation)?, &request.indexes)?;
        Ok(lock_members(request.relation))
    };
    let members = match with_patience(guc::lock_patience(), attempt, || Ok(()))? {
        Ok(members) => members,
        Err(GaveUp { error: Error::NameTaken { change, .. }, attempts, patience }) => {
            return Err(Error::NameTaken { change, attempts, patience });
        }
        Err(gave_up) => return Err(lock_timeout(request.relation, gave_up)?),
    };
    check_again(&members)?;
    let (name, owner) = identity(request.relation)?;
    as_owner(owner, |gate| {
        for statement in add_columns(&name, &request.columns) {
            execute(gate, &members, &statement)?;
        }
        grant_as_source(gate, request.relation, &members, &name, &rule)?;
        create_triggers(gate, &rule, &members)
    })?;
    let table = open(request.relation)?;
    let binding = Binding::to_table(rule.clone(), &table, Some(owner))?;
    notices(&binding, &table);
    notice_triggers(&members, &rule)?;
    notice_publications()?;
    protect_used(&rule.change, &members, &binding)?;
    catalog::set_guarded(rule.id, owner)?;
    let detail = json!({ "relation": table.name() });
    drop(table);
    catalog::record(rule.id, &rule.change, Phase::Expanding.as_str(), detail)?;
    // What else the DDL has set off must not have broken it.
    match catalog::find_by_id(rule.id)? {
        Some(change) => guard::check_members(&change, change.relation),
        None => Ok(()),
    }
}

/// Writes the change down. A unique key decides between two that begin at the same time, whatever their snapshots see.
fn register(rule: &Rule, table: &Table, indexes: &[String]) -> Result<(), Error> {
    match catch(|| catalog::insert(rule, table, indexes)) {
        Ok(done) => done,
        Err(error) if error.is_about_locks() => {
            Err(Error::NameTaken { change: rule.change.clone(), attempts: 1, patience: guc::lock_timeout() })
        }
        Err(error) if error.is_constraint_violation() => Err(match error.message().contains("change_source_key") {
            true => Error::SourceInChange {
                relation: table.name(),
                column: rule.source.name.clone(),
                change: "another that has just begun".into(),
            },
            false => Error::ChangeExists { change: rule.change.clone() },
        }),
        Err(error) => error.rethrow(),
    }
}

/// Has PostgreSQL protect what the rule uses from being dropped.
fn protect_used(change: &str, members: &[pg_sys::Oid], binding: &Binding) -> Result<(), Error> {
    let (trigger, uses) = (trigger_name(change), binding.uses());
    if uses.is_empty() {
        return Ok(());
    }
    own_triggers(members)?.into_iter().try_for_each(|member| record_dependencies(member, &trigger, &uses))
}

/// A rule may only use what is built in, or belongs to an extension, a superuser, or somebody for whom the table's owner can
/// act: others could make it do something else, and a change must not keep them from what is theirs.
pub fn check_uses(uses: &[ObjectId], owner: pg_sys::Oid) -> Result<(), Error> {
    if uses.is_empty() {
        return Ok(());
    }
    let sql = "select coalesce(p.proowner, t.typowner, l.collowner), pg_describe_object(o.class, o.oid, 0)
        from unnest($1::oid[], $2::oid[]) as o (class, oid)
        left join pg_proc as p on o.class = 'pg_proc'::regclass and p.oid = o.oid
        left join pg_type as t on o.class = 'pg_type'::regclass and t.oid = o.oid
        left join pg_collation as l on o.class = 'pg_collation'::regclass and l.oid = o.oid
        where not exists (
                select from pg_depend as d
                where d.classid = o.class and d.objid = o.oid and d.deptype = 'e')
            and not exists (select from pg_roles as r where r.oid = coalesce(p.proowner, t.typowner, l.collowner) and r.rolsuper)";
    let (classes, oids): (Vec<_>, Vec<_>) = uses.iter().map(|ObjectId { class, oid }| (*class, *oid)).unzip();
    let temporary = "select pg_describe_object(o.class, o.oid, 0) from unnest($1::oid[], $2::oid[]) as o (class, oid)
        left join pg_proc as p on o.class = 'pg_proc'::regclass and p.oid = o.oid
        left join pg_type as t on o.class = 'pg_type'::regclass and t.oid = o.oid
        join pg_namespace as n on n.oid = coalesce(p.pronamespace, t.typnamespace)
        where n.nspname like 'pg\\_temp\\_%' limit 1";
    if let Some(object) = query_strings(temporary, &[classes.clone().into(), oids.clone().into()])?.pop() {
        return Err(Error::TemporaryObject { object });
    }
    let used = query(sql, &[classes.into(), oids.into()], |row| {
        Ok((row.get::<pg_sys::Oid>(1)?.unwrap_or_default(), row.get::<String>(2)?.unwrap_or_default()))
    })?;
    match used.into_iter().find(|(user, _)| !acts_for(owner, *user)) {
        Some((user, object)) => Err(Error::ForeignObject { object, user: role_name(user), owner: role_name(owner) }),
        None => Ok(()),
    }
}

/// Existing rows must not get the default, so it is set after the column is there.
fn add_columns(table: &str, columns: &[ColumnDefinition]) -> Vec<String> {
    let added: Vec<String> = columns
        .iter()
        .map(|column| {
            let collation = column.collation.as_ref().map_or(String::new(), |name| format!(" COLLATE {name}"));
            let nothing = if column.has_type_default { " DEFAULT NULL" } else { "" };
            format!("ADD COLUMN {} {}{collation}{nothing}", quote(&column.name), column.column_type.name())
        })
        .collect();
    let defaults: Vec<String> = columns
        .iter()
        .filter_map(|column| match &column.default {
            Some(default) => Some(format!("ALTER COLUMN {} SET DEFAULT {default}", quote(&column.name))),
            None if column.has_type_default => Some(format!("ALTER COLUMN {} DROP DEFAULT", quote(&column.name))),
            None => None,
        })
        .collect();
    [added, defaults]
        .into_iter()
        .filter(|actions| !actions.is_empty())
        .map(|actions| format!("ALTER TABLE {table} {}", actions.join(", ")))
        .collect()
}

/// Grants on the new columns what was granted on the old one.
fn grant_as_source(
    gate: &Gate,
    relation: pg_sys::Oid,
    members: &[pg_sys::Oid],
    name: &str,
    rule: &Rule,
) -> Result<(), Error> {
    let sql = "select format('GRANT %s (%s) ON %s TO %s%s', x.privilege_type, $3::text, $4::text,
            case x.grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(x.grantee)) end,
            case when x.is_grantable then ' WITH GRANT OPTION' else '' end)
        from pg_attribute as a, aclexplode(a.attacl) as x
        where a.attrelid = $1 and a.attname = $2::text::name";
    let columns: Vec<String> = rule.targets.iter().map(|target| quote(&target.name)).collect();
    let args = [relation.into(), rule.source.name.as_str().into(), columns.join(", ").into(), name.into()];
    for statement in query_strings(sql, &args)? {
        execute(gate, members, &statement)?;
    }
    Ok(())
}

/// The name, qualified and quoted, and the owner of a table that must not be open while DDL changes it.
fn identity(relation: pg_sys::Oid) -> Result<(String, pg_sys::Oid), Error> {
    let table = open(relation)?;
    Ok((table.name(), table.owner()))
}

/// The tables that need a trigger of their own: a partitioned table hands its trigger down to its partitions, which
/// inheritance does not.
fn own_triggers(members: &[pg_sys::Oid]) -> Result<Vec<pg_sys::Oid>, Error> {
    let sql = "select c.oid from pg_class as c where c.oid = any ($1) and not c.relispartition order by c.oid";
    Ok(query(sql, &[members.to_vec().into()], |row| Ok(row.get(1)?))?.into_iter().flatten().collect())
}

fn create_triggers(gate: &Gate, rule: &Rule, members: &[pg_sys::Oid]) -> Result<(), Error> {
    let (trigger, rule) = (quote(trigger_name(&rule.change)), quote_literal(rule.to_json()));
    own_triggers(members)?.into_iter().map(class::name).try_for_each(|table| {
        execute(
            gate,
            members,
            &format!(
                "CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION zdd.sync({rule})"
            ),
        )?;
        // What logical replication writes is not carried over, but counted.
        execute(gate, members, &format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"))
    })
}

fn drop_triggers(gate: &Gate, change: &str, members: &[pg_sys::Oid]) -> Result<(), Error> {
    let trigger = quote(trigger_name(change));
    own_triggers(members)?
        .into_iter()
        .map(class::name)
        .try_for_each(|table| execute(gate, members, &format!("DROP TRIGGER IF EXISTS {trigger} ON {table}")))
}

fn notices(binding: &Binding, table: &Table) {
    let rule = &binding.rule;
    if let Some(template) = binding.template() {
        for target in template.targets_outside_sections().map(|index| &rule.targets[index]) {
            if !target.not_null {
                pgrx::notice!(
                    "column \"{}\" can be NULL but stands outside of a [section] of the join template: NULL is joined as an empty text",
                    target.name
                );
            }
        }
        for target in template.unused_targets().map(|index| &rule.targets[index]) {
            pgrx::notice!(
                "column \"{}\" is not in the join template: what the new application writes there is not carried over",
                target.name
            );
        }
    }
    let nullable = rule.targets.iter().all(|target| !target.not_null);
    if nullable && table.attribute(&rule.source.name).is_some_and(|source| source.not_null) {
        pgrx::notice!(
            "column \"{}\" is NOT NULL but no new column is: a write of NULL to all new columns will be rejected",
            rule.source.name
        );
    }
}

/// Triggers that mind the old column: what they make of it they make for writes of the old application alone.
fn notice_triggers(members: &[pg_sys::Oid], rule: &Rule) -> Result<(), Error> {
    let sql = "select distinct format('%s (%s)', t.tgname, c.oid::regclass) || case
            when a.attnum = any (t.tgattr::int2[]) then ': it fires for UPDATE OF this column alone'
            else ': its function names the column' end
        from pg_trigger as t
        join pg_class as c on c.oid = t.tgrelid
        join pg_proc as p on p.oid = t.tgfoid
        join pg_attribute as a on a.attrelid = t.tgrelid and a.attname = $2::text::name
        where t.tgrelid = any ($1) and not t.tgisinternal and t.tgparentid = 0 and t.tgfoid <> $3
            and (a.attnum = any (t.tgattr::int2[])
                or (t.tgtype & 3 = 3 and t.tgtype & 20 <> 0 and p.prosrc ~ format('(^|\\W)%s($|\\W)', regexp_replace($2, '(\\W)', '\\\\\\1', 'g'))))
        order by 1";
    let sync = extension::sync_function().unwrap_or_default();
    let args = [members.to_vec().into(), rule.source.name.as_str().into(), sync.into()];
    for trigger in query_strings(sql, &args)? {
        pgrx::notice!(
            "trigger {trigger}. When the new application writes, \"{}\" is carried over after it has fired: see zdd's documentation, \"Triggers on the old column\"",
            rule.source.name
        );
    }
    Ok(())
}

/// Publications that send the tables of pg_zdd too.
fn notice_publications() -> Result<(), Error> {
    for name in query_strings("select quote_ident(pubname) from pg_publication where puballtables", &[])? {
        pgrx::notice!(
            "publication {name} is FOR ALL TABLES and so sends the tables of pg_zdd: install pg_zdd on the subscribers, which discards what arrives for them"
        );
    }
    Ok(())
}

/// A table locked against everything, for DDL, and its change.
pub struct Locked {
    pub change: Change,
    name: String,
    owner: pg_sys::Oid,
    members: Vec<pg_sys::Oid>,
}

/// How to lock a change: by the right to it, or under a claim.
pub type LockChange<'a> = &'a dyn Fn() -> Result<Change, Error>;

/// Locks a change and then its table, trying for `zdd.lock_patience`; between two attempts neither is held.
pub fn lock(lock_change: LockChange, check: impl Fn(&Change) -> Result<(), Error>) -> Result<Locked, Error> {
    lock_clearing(lock_change, check, guc::lock_patience(), |_| Ok(()))
}

/// One attempt of the same, for whoever tries again in another transaction.
pub fn lock_once(lock_change: LockChange, check: impl Fn(&Change) -> Result<(), Error>) -> Result<Locked, Error> {
    lock_clearing(lock_change, check, Duration::ZERO, |_| Ok(()))
}

fn lock_clearing(
    lock_change: LockChange,
    check: impl Fn(&Change) -> Result<(), Error>,
    patience: Duration,
    clear_the_way: impl Fn(&Change) -> Result<(), Error>,
) -> Result<Locked, Error> {
    let last = RefCell::new(None);
    let attempt = || {
        last.take();
        let change = lock_change()?;
        check(&change)?;
        last.replace(Some(change.clone()));
        let members = lock_members(change.relation);
        let gone = |_| Error::TableGone { change: change.name.clone() };
        let (name, owner) = identity(change.relation).map_err(gone)?;
        Ok(Locked { change, name, owner, members })
    };
    let clear = || last.borrow().as_ref().map_or(Ok(()), &clear_the_way);
    match with_patience(patience, attempt, clear)? {
        Ok(locked) => Ok(locked),
        Err(gave_up) => match last.take() {
            Some(change) => Err(lock_timeout(change.relation, gave_up)?),
            None => Err(gave_up.error),
        },
    }
}

/// Gives the sync trigger another rule.
pub fn set_rule(table: &Locked, rule: &Rule) -> Result<(), Error> {
    as_owner(table.owner, |gate| replace_triggers(gate, &table.change, rule, &table.members))?;
    catalog::set_rule(&table.change, rule)?;
    protect_rule(&table.change, rule, &table.members)
}

/// Every row is split: from now on NULLs on the new side mean what they say.
pub fn end_expanding(table: &Locked) -> Result<(), Error> {
    set_rule(table, &Rule { expanding: false, ..table.change.rule.clone() })
}

fn replace_triggers(gate: &Gate, change: &Change, rule: &Rule, members: &[pg_sys::Oid]) -> Result<(), Error> {
    drop_triggers(gate, &change.name, members)?;
    create_triggers(gate, rule, members)
}

/// After the triggers were replaced: what they use is protected again, and the change is whole.
fn protect_rule(change: &Change, rule: &Rule, members: &[pg_sys::Oid]) -> Result<(), Error> {
    let table = open(change.relation)?;
    let binding = Binding::to_table(rule.clone(), &table, catalog::rule_owner(change.id))?;
    drop(table);
    protect_used(&change.name, members, &binding)?;
    match catalog::find_by_id(change.id)? {
        Some(change) => guard::check_members(&change, change.relation),
        None => Ok(()),
    }
}

/// The name of an old column while it is fenced.
fn fenced_name(source: &str) -> String {
    const SUFFIX: &str = "_zdd_fenced";
    const MAX_BYTES: usize = 63;
    let mut end = source.len().min(MAX_BYTES - SUFFIX.len());
    while !source.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &source[..end])
}

/// What can be wrong with a fence.
pub fn check_fence(change: &Change) -> Result<(), Error> {
    check_move(change, Phase::Fenced)
}

/// What can be wrong with taking a fence back.
pub fn check_unfence(change: &Change) -> Result<(), Error> {
    if change.phase == Phase::Expanding {
        return Err(Error::WrongPhase {
            change: change.name.clone(),
            phase: change.phase,
            action: "unfence",
            hint: "Only a fenced change can be unfenced.",
        });
    }
    check_move(change, Phase::Expanded)
}

/// Renames the old column out of the applications' reach. Returns the claim.
pub fn fence(table: &Locked) -> Result<i64, Error> {
    rename_source(table, &fenced_name(&table.change.rule.source.name), Phase::Fenced)
}

/// Gives the old column its name back. Returns the claim.
pub fn unfence(table: &Locked) -> Result<i64, Error> {
    rename_source(table, &table.change.rule.source.name, Phase::Expanded)
}

fn check_move(change: &Change, to: Phase) -> Result<(), Error> {
    crate::phase::move_to(change.phase, to).map_err(|illegal| Error::Move { change: change.name.clone(), illegal })
}

fn rename_source(table: &Locked, to: &str, phase: Phase) -> Result<i64, Error> {
    let change = &table.change;
    let mut rule = change.rule.clone();
    rule.source.renamed_to = (to != rule.source.name).then(|| to.to_owned());
    let from = change.rule.source.current_name();
    let detail = json!({ "column": from, "renamed_to": to });
    as_owner(table.owner, |gate| {
        // A contract that was interrupted may have left them: the old application may write NULLs.
        drop_not_null_check(gate, table)?;
        if phase == Phase::Expanded {
            drop_watch(gate, table)?;
        }
        let (from, to) = (quote(from), quote(to));
        execute(gate, &table.members, &format!("ALTER TABLE {} RENAME COLUMN {from} TO {to}", table.name))?;
        replace_triggers(gate, change, &rule, &table.members)
    })?;
    catalog::set_rule(change, &rule)?;
    protect_rule(change, &rule, &table.members)?;
    let claim = catalog::set_phase(change, phase, detail)?;
    usage::look_again(&table.members);
    Ok(claim)
}

/// Drops the new columns and the trigger, and gives a fenced old column its name back.
pub fn roll_back(lock_change: LockChange) -> Result<(), Error> {
    let targets =
        |change: &Change| -> Vec<String> { change.rule.targets.iter().map(|target| target.name.clone()).collect() };
    let check = |change: &Change| {
        check_move(change, Phase::RolledBack)?;
        refuse_dependents(change, "roll back", &targets(change))?;
        // A backfill that is running stops here, before it can hold the table against us.
        catalog::forget_work(change.id)
    };
    // What they were to build is not wanted any longer.
    let table = &lock_clearing(lock_change, check, guc::lock_patience(), interrupt)?;
    let change = &table.change;
    let targets = targets(change);
    refuse_dependents(change, "roll back", &targets)?;
    as_owner(table.owner, |gate| {
        drop_triggers(gate, &change.name, &table.members)?;
        drop_watch(gate, table)?;
        drop_not_null_check(gate, table)?;
        let actions: Vec<String> = targets.iter().map(|target| format!("DROP COLUMN {}", quote(target))).collect();
        execute(gate, &table.members, &format!("ALTER TABLE {} {}", table.name, actions.join(", ")))?;
        let (now, before) = (change.rule.source.current_name(), &change.rule.source.name);
        if now != before {
            let (now, before) = (quote(now), quote(before));
            execute(gate, &table.members, &format!("ALTER TABLE {} RENAME COLUMN {now} TO {before}", table.name))?;
        }
        Ok::<_, Error>(())
    })?;
    let mut rule = change.rule.clone();
    rule.source.renamed_to = None;
    catalog::set_rule(change, &rule)?;
    catalog::set_phase(change, Phase::RolledBack, json!({ "dropped": targets })).map(drop)
}

/// The name of the CHECK that stands in for NOT NULL while the table is scanned.
fn not_null_check(change: &Change) -> String {
    format!("zdd_not_null_{}", change.id)
}

/// Whether NOT NULL is demanded of the new rows.
fn demands_not_null(change: &Change) -> Result<bool, Error> {
    let sql = "select conname::text from pg_constraint where conrelid = $1 and conname = $2::text::name";
    Ok(!query_strings(sql, &[change.relation.into(), not_null_check(change).into()])?.is_empty())
}

/// Whether a contract has begun to alter a table that is fenced.
pub fn has_contract_begun(change: &Change) -> Result<bool, Error> {
    Ok(demands_not_null(change)? || !watched(change, &lock::tree(change.relation))?.is_empty())
}

fn drop_not_null_check(gate: &Gate, table: &Locked) -> Result<(), Error> {
    if !demands_not_null(&table.change)? {
        return Ok(());
    }
    let drop = format!("ALTER TABLE {} DROP CONSTRAINT {}", table.name, quote(not_null_check(&table.change)));
    execute(gate, &table.members, &drop)
}

fn not_null_targets(change: &Change) -> impl Iterator<Item = String> {
    change.rule.targets.iter().filter(|target| target.not_null).map(|target| quote(&target.name))
}

/// Whether a contract has to demand NOT NULL.
pub fn has_not_null(change: &Change) -> bool {
    not_null_targets(change).next().is_some()
}

/// Demands NOT NULL of all new rows, without looking at the old ones.
pub fn demand_not_null(table: &Locked) -> Result<(), Error> {
    let conditions: Vec<String> =
        not_null_targets(&table.change).map(|target| format!("{target} IS NOT NULL")).collect();
    as_owner(table.owner, |gate| {
        drop_not_null_check(gate, table)?;
        let (check, conditions) = (quote(not_null_check(&table.change)), conditions.join(" AND "));
        let add = format!("ALTER TABLE {} ADD CONSTRAINT {check} CHECK ({conditions}) NOT VALID", table.name);
        execute(gate, &table.members, &add)
    })
}

/// Takes back what a contract does to a table that is fenced.
pub fn stop_contract(table: &Locked) -> Result<(), Error> {
    as_owner(table.owner, |gate| {
        drop_watch(gate, table)?;
        drop_not_null_check(gate, table)
    })
}

/// Has rows noted that are written from now on and are not plainly in sync, see `census`.
pub fn watch(table: &Locked) -> Result<(), Error> {
    as_owner(table.owner, |gate| {
        drop_watch(gate, table)?;
        let (trigger, id) = (quote(watch_name(&table.change)), quote_literal(table.change.id.to_string()));
        own_triggers(&table.members)?.into_iter().map(class::name).try_for_each(|name| {
            let create = format!("CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {name}");
            execute(gate, &table.members, &format!("{create} FOR EACH ROW EXECUTE FUNCTION zdd.watch({id})"))?;
            execute(gate, &table.members, &format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"))
        })
    })?;
    catalog::forget_written(table.change.id)
}

/// The name of the trigger that watches for a contract.
fn watch_name(change: &Change) -> String {
    format!("zdd_watch_{}", change.id)
}

/// The tables that have such a trigger.
fn watched(change: &Change, members: &[pg_sys::Oid]) -> Result<Vec<pg_sys::Oid>, Error> {
    let sql = "select t.tgrelid from pg_trigger as t
        where t.tgrelid = any ($1) and t.tgname = $2::text::name and t.tgfoid = $3 and t.tgparentid = 0";
    let function = extension::watch_function().unwrap_or_default();
    let args = [members.to_vec().into(), watch_name(change).into(), function.into()];
    Ok(query(sql, &args, |row| Ok(row.get::<pg_sys::Oid>(1)?))?.into_iter().flatten().collect())
}

fn drop_watch(gate: &Gate, table: &Locked) -> Result<(), Error> {
    watched(&table.change, &table.members)?.into_iter().map(class::name).try_for_each(|name| {
        execute(gate, &table.members, &format!("DROP TRIGGER {} ON {name}", quote(watch_name(&table.change))))
    })
}

/// Scans the table for NULLs while reads and writes go on.
pub fn validate_not_null(change: &Change) -> Result<(), Error> {
    let (name, owner) = identity(change.relation)?;
    let validate = format!("ALTER TABLE {name} VALIDATE CONSTRAINT {}", quote(not_null_check(change)));
    as_owner(owner, |gate| gate.execute(&validate))
}

/// What can be wrong with dropping the old column.
pub fn check_drop_source(change: &Change) -> Result<(), Error> {
    check_move(change, Phase::Contracted)?;
    refuse_dependents(change, "contract", &[change.rule.source.current_name().to_owned()])
}

/// Drops the old column, catalog updates only.
pub fn drop_source(table: &Locked) -> Result<(), Error> {
    let change = &table.change;
    // Something may have come while the table was not locked.
    check_drop_source(change)?;
    as_owner(table.owner, |gate| {
        drop_triggers(gate, &change.name, &table.members)?;
        drop_watch(gate, table)?;
        // The validated CHECK saves PostgreSQL the scan.
        let set_not_null: Vec<String> =
            not_null_targets(change).map(|target| format!("ALTER COLUMN {target} SET NOT NULL")).collect();
        if !set_not_null.is_empty() {
            let alter = format!("ALTER TABLE {} {}", table.name, set_not_null.join(", "));
            execute(gate, &table.members, &alter)?;
        }
        drop_not_null_check(gate, table)?;
        drop_column(gate, &table.members, change.rule.source.current_name())
    })?;
    catalog::set_phase(change, Phase::Contracted, json!({ "dropped": change.rule.source.name })).map(drop)
}

/// Drops a column from a table and from its children, which may have defined it for themselves too.
fn drop_column(gate: &Gate, members: &[pg_sys::Oid], column: &str) -> Result<(), Error> {
    for &member in members {
        let table = open(member)?;
        let (name, is_there) = (table.name(), table.attribute(column).is_some());
        drop(table);
        if is_there {
            execute(gate, members, &format!("ALTER TABLE {name} DROP COLUMN {}", quote(column)))?;
        }
    }
    Ok(())
}

/// A foreign key on a column.
pub fn foreign_key(relation: pg_sys::Oid, column: &str) -> Result<Option<String>, Error> {
    let sql = "select c.conname::text from pg_constraint as c
        join pg_attribute as a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
        where c.conrelid = $1 and c.contype = 'f' and a.attname = $2::text::name";
    Ok(query_strings(sql, &[relation.into(), column.into()])?.pop())
}

/// Names of columns as SQL lists them.
pub fn column_list(columns: &[String]) -> String {
    columns.iter().map(quote).collect::<Vec<_>>().join(", ")
}

/// A valid index of a table on exactly these columns, in this order.
pub fn index_on(relation: pg_sys::Oid, columns: &[String]) -> Result<Option<String>, Error> {
    let sql = "select i.indexrelid::regclass::text from pg_index as i
        join pg_class as c on c.oid = i.indexrelid join pg_am as m on m.oid = c.relam
        where i.indrelid = $1 and i.indisvalid and i.indpred is null and i.indexprs is null and m.amname = 'btree'
            and i.indnkeyatts = i.indnatts
            and (select array_agg(a.attname::text order by k.n)
                from unnest(i.indkey::int2[]) with ordinality as k (attnum, n)
                join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum) = $2";
    Ok(query_strings(sql, &[relation.into(), columns.to_vec().into()])?.pop())
}

/// Makes the index of a partitioned table out of those of its partitions. A partition that has none yet is left for
/// another time.
pub fn index_partitioned(locked: &Locked, relation: pg_sys::Oid, columns: &[String], index: &str) -> Result<(), Error> {
    let table = open(relation)?;
    let (name, schema) = (table.name(), table.schema());
    drop(table);
    let partitions = "select i.inhrelid::oid::text from pg_inherits as i where i.inhparent = $1";
    let partitions = query_strings(partitions, &[relation.into()])?;
    let members = &locked.members;
    as_owner(locked.owner, |gate| {
        if relation_named(&schema, index).is_none() {
            let create = format!("CREATE INDEX {} ON ONLY {name} ({})", quote(index), column_list(columns));
            execute(gate, members, &create)?;
        }
        for partition in partitions.iter().filter_map(|oid| oid.parse::<u32>().ok()) {
            if let Some(part) = index_on(partition.into(), columns)? {
                let index = format!("{}.{}", quote(&schema), quote(index));
                execute(gate, members, &format!("ALTER INDEX {index} ATTACH PARTITION {part}"))?;
            }
        }
        Ok(())
    })
}

/// An error that lists what depends on columns and would break, or be dropped, with them. What depends on one such column
/// alone, or on several of them, and is no more than a property of them goes with them: indexes, CHECKs, defaults. But not
/// the index that tells subscribers which row is meant: without it UPDATE and DELETE fail.
pub fn refuse_dependents(change: &Change, what: &'static str, columns: &[String]) -> Result<(), Error> {
    let sql = "with dependents as (
            select d.classid, d.objid, d.objsubid, a.attrelid, a.attnum, k.oid as constraint_oid, k.contype, k.conname,
                i.indexrelid, coalesce(i.indisreplident, false) as identifies,
                -- PostgreSQL drops no constraint for what its index alone depends on.
                p.refobjid is not null and not exists (
                    select from pg_depend as o
                    where o.classid = p.refclassid and o.objid = p.refobjid
                        and o.refclassid = d.refclassid and o.refobjid = d.refobjid and o.refobjsubid = d.refobjsubid
                ) as by_index
            from pg_attribute as a
            join pg_depend as d on d.refclassid = 'pg_class'::regclass
                and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            -- A constraint and its index are one: the index alone depends on what is in its expressions and predicate.
            left join pg_depend as p on d.classid = 'pg_class'::regclass
                and p.classid = d.classid and p.objid = d.objid and p.objsubid = 0
                and p.refclassid = 'pg_constraint'::regclass and p.deptype = 'i'
            left join pg_constraint as k
                on k.oid = case when d.classid = 'pg_constraint'::regclass then d.objid else p.refobjid end
            left join pg_index as i on i.indexrelid = case
                when d.classid = 'pg_class'::regclass and d.objsubid = 0 then d.objid
                when k.contype in ('p', 'u', 'x') then k.conindid end
            where a.attrelid = any ($1) and a.attname = $2::text::name
        )
        select distinct coalesce(
                case c.relkind when 'v' then 'view ' when 'm' then 'materialized view ' end
                    || c.oid::regclass::text,
                pg_describe_object('pg_constraint'::regclass, d.constraint_oid, 0),
                pg_describe_object(d.classid, d.objid, d.objsubid))
            || case when d.identifies then ', the replica identity' else '' end
        from dependents as d
        left join pg_rewrite as r on d.classid = 'pg_rewrite'::regclass
            and r.oid = d.objid
        left join pg_class as c on c.oid = r.ev_class
            and c.relkind in ('v', 'm')
        left join pg_attrdef as f on d.classid = 'pg_attrdef'::regclass
            and f.oid = d.objid
        where d.conname is distinct from $3::text::name and f.adnum is distinct from d.attnum
            and not (
                coalesce(d.contype in ('c', 'u', 'x', 'n'), d.indexrelid is not null)
                and not d.identifies and not d.by_index
                and not exists (
                    select from (values
                        ('pg_constraint'::regclass::oid, d.constraint_oid),
                        ('pg_class'::regclass::oid, d.indexrelid)) as g (classid, objid)
                    join pg_depend as o on o.classid = g.classid and o.objid = g.objid
                    where o.refclassid = 'pg_class'::regclass
                        and o.refobjid = d.attrelid and o.refobjsubid > 0
                        and o.refobjsubid not in (
                            select n.attnum from pg_attribute as n
                            where n.attrelid = d.attrelid and n.attname = any ($4::text[]::name[]))))
        order by 1";
    let members = lock::tree(change.relation);
    for column in columns {
        let column = column.as_str();
        let args = [members.clone().into(), column.into(), not_null_check(change).into(), columns.to_vec().into()];
        let dependents = query_strings(sql, &args)?;
        if !dependents.is_empty() {
            let source = &change.rule.source;
            let column = if column == source.current_name() { &source.name } else { column };
            return Err(Error::Dependents { change: change.name.clone(), column: column.to_owned(), what, dependents });
        }
    }
    Ok(())
}
