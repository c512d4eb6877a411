//! The archive of a contract: old values that the new columns do not give back, in a table that the contract makes as the owner
//! of the table. What is in it is known by the change and by where the rows were.

use pgrx::pg_sys;
use pgrx::spi::{quote_identifier as quote, quote_literal};

use crate::catalog::{self, Change};
use crate::error::Error;
use crate::guc;
use crate::pg::class;
use crate::pg::gate::as_owner;
use crate::pg::lock::LockMode;
use crate::pg::security::{query, query_strings, role_name};
use crate::pg::settings::with_settings;
use crate::pg::subxact::catch;
use crate::pg::table::{Table, Tid, primary_key, relation_named};
use crate::rule::state::RowState;

/// What a row has to lose, as the archive calls it.
pub fn kind(state: RowState) -> Option<&'static str> {
    match state {
        RowState::Unmatched => Some("unmatched"),
        RowState::Lossy => Some("lossy"),
        RowState::InSync | RowState::Pending | RowState::Diverged => None,
    }
}

/// A row that has something to lose: where it is, and its kind.
pub type Lost = (Tid, &'static str);

/// The table that a contract fills.
#[derive(Clone, Copy, Debug)]
pub struct Archive {
    relation: pg_sys::Oid,
}

/// An archive that is locked against DDL and as it must be.
struct Open {
    name: String,
    owner: pg_sys::Oid,
}

/// What can be told before there is anything to archive: an error if the name is none, or means something else.
pub fn check(change: &Change, name: &str) -> Result<(), Error> {
    let (schema, table) = place(change, name)?;
    let owner = table_owner(change)?;
    if let Some(relation) = relation_named(&schema, &table) {
        return check_shape(relation, change, owner);
    }
    let sql = "select has_schema_privilege($2::oid, n.oid, 'create')::text from pg_namespace as n where n.nspname = $1::text::name";
    match query_strings(sql, &[schema.as_str().into(), owner.into()])?.pop().as_deref() {
        Some("true") => Ok(()),
        Some(_) => Err(Error::ArchiveDenied { schema, owner: role_name(owner) }),
        None => Err(Error::NoSuchSchema { schema }),
    }
}

/// The archive of a contract, with nothing in it of an attempt that came to nothing; made if there is no such table. Without a
/// name, and under another one, what an attempt before had made is taken back.
pub fn prepare(change: &Change, name: Option<&str>) -> Result<Option<Archive>, Error> {
    let place = name.map(|name| place(change, name)).transpose()?;
    let known = place.as_ref().and_then(|(schema, table)| relation_named(schema, table));
    if let Some((earlier, _)) = catalog::archive(change.id)?
        && known != Some(earlier)
    {
        discard(change)?;
    }
    let Some((schema, table)) = place else { return Ok(None) };
    let archive = match known {
        Some(relation) => {
            let archive = Archive { relation };
            archive.empty(change)?;
            catalog::set_archive(change.id, relation, false)?;
            archive
        }
        None => {
            let archive = create(change, &schema, &table)?;
            catalog::set_archive(change.id, archive.relation, true)?;
            archive
        }
    };
    Ok(Some(archive))
}

/// Takes back what a contract that came to nothing has put into its archive. A table that it made goes, unless there is
/// something else in it, or something depends on it.
pub fn discard(change: &Change) -> Result<(), Error> {
    let Some((relation, made)) = catalog::archive(change.id)? else { return Ok(()) };
    let archive = Archive { relation };
    let left = |why: String| {
        let name = class::name(relation);
        pgrx::notice!("archive {name} is left as it is, with rows of a contract that came to nothing: {why}");
    };
    if class::find(relation).is_some() {
        match archive.open(change) {
            Err(error @ (Error::ArchiveShape { .. } | Error::TableGone { .. })) => left(error.message()),
            Err(error) => return Err(error),
            Ok(open) if made && !open.has_others(change)? => match catch(|| open.drop_table()) {
                Ok(dropped) => dropped?,
                Err(error) if error.is_transient() => return Err(Error::Caught(error)),
                Err(error) => {
                    left(error.message());
                    archive.empty(change)?;
                }
            },
            Ok(_) => archive.empty(change)?,
        }
    }
    catalog::forget_archive(change.id)
}

impl Archive {
    /// Its name, qualified and quoted.
    pub fn name(self) -> String {
        class::name(self.relation)
    }

    /// Adds rows of a table. Those that have gone since they were looked at are left out.
    pub fn add(self, change: &Change, relation: pg_sys::Oid, rows: &[Lost]) -> Result<(), Error> {
        let Some(table) = Table::open(relation, LockMode::AccessShare) else { return Ok(()) };
        let Open { name, owner } = self.open(change)?;
        let key: Vec<String> = primary_key(&table)
            .into_iter()
            .filter_map(|number| table.attribute_name(number))
            .map(|column| format!("{}, t.{}", quote_literal(&column), quote(&column)))
            .collect();
        let key = match key.is_empty() {
            true => "null::pg_catalog.jsonb".to_owned(),
            false => format!("pg_catalog.jsonb_build_object({})", key.join(", ")),
        };
        let sql = format!(
            "insert into {name} (change_id, change, relation, tid, key, old_value, kind, archived_at)
             select {}, {}, t.tableoid, t.ctid, {key}, t.{}, $2, pg_catalog.clock_timestamp()
             from only {} as t where t.ctid operator(pg_catalog.=) $1",
            change.id,
            quote_literal(&change.name),
            quote(change.rule.source.current_name()),
            table.name(),
        );
        let types = [pg_sys::PgBuiltInOids::TIDOID, pg_sys::PgBuiltInOids::TEXTOID];
        let rows = rows.iter().map(|(tid, kind)| [(*tid).into(), (*kind).into()]);
        as_owner(owner, |gate| gate.for_each(&sql, types, rows, |_| Ok(())))
    }

    /// Takes rows of a table out again.
    pub fn remove(self, change: &Change, relation: pg_sys::Oid, rows: impl Iterator<Item = Tid>) -> Result<(), Error> {
        let Open { name, owner } = self.open(change)?;
        let sql = format!("{} and a.tid operator(pg_catalog.=) $1", delete_of_table(&name, change, relation));
        let types = [pg_sys::PgBuiltInOids::TIDOID];
        as_owner(owner, |gate| gate.for_each(&sql, types, rows.map(|tid| [tid.into()]), |_| Ok(())))
    }

    /// Takes all rows of a table out again.
    pub fn forget(self, change: &Change, relation: pg_sys::Oid) -> Result<(), Error> {
        let Open { name, owner } = self.open(change)?;
        as_owner(owner, |gate| gate.execute(&delete_of_table(&name, change, relation)))
    }

    /// Takes all rows of the change out again.
    fn empty(self, change: &Change) -> Result<(), Error> {
        let Open { name, owner } = self.open(change)?;
        as_owner(owner, |gate| gate.execute(&delete(&name, change)))
    }

    /// Locks it so that nobody gives it a trigger, and sees to it that it is as it must be. It may have changed since the
    /// transaction before.
    fn open(self, change: &Change) -> Result<Open, Error> {
        let gone = || Error::TableGone { change: change.name.clone() };
        let table = Table::open(self.relation, LockMode::RowExclusive).ok_or_else(gone)?;
        let owner = table_owner(change)?;
        check_shape(self.relation, change, owner)?;
        Ok(Open { name: table.name(), owner })
    }
}

impl Open {
    /// Whether there are rows that the contract has not put there.
    fn has_others(&self, change: &Change) -> Result<bool, Error> {
        let sql = format!(
            "select 1 from only {} as a where a.change_id operator(pg_catalog.<>) {}::bigint limit 1",
            self.name, change.id
        );
        let mut found = false;
        let each = |_: &pgrx::spi::SpiHeapTupleData| {
            found = true;
            Ok(())
        };
        as_owner(self.owner, |gate| gate.for_each(&sql, [], std::iter::once([]), each))?;
        Ok(found)
    }

    /// Waits for who reads it, but not for ever.
    fn drop_table(&self) -> Result<(), Error> {
        let patience = guc::milliseconds(guc::lock_patience());
        with_settings(&[(c"lock_timeout", patience.as_c_str())], || {
            as_owner(self.owner, |gate| gate.execute(&format!("DROP TABLE {}", self.name)))
        })
    }
}

fn delete(archive: &str, change: &Change) -> String {
    format!("delete from only {archive} as a where a.change_id operator(pg_catalog.=) {}::bigint", change.id)
}

fn delete_of_table(archive: &str, change: &Change, relation: pg_sys::Oid) -> String {
    format!("{} and a.relation operator(pg_catalog.=) {}::oid", delete(archive, change), relation.to_u32())
}

fn table_owner(change: &Change) -> Result<pg_sys::Oid, Error> {
    class::owner(change.relation).ok_or_else(|| Error::TableGone { change: change.name.clone() })
}

/// The schema and the table that a name means, whoever works for the change: without a schema, that of the change's table.
fn place(change: &Change, name: &str) -> Result<(String, String), Error> {
    const MAX_BYTES: usize = 63;
    let bad = || Error::ArchiveName { name: name.to_owned() };
    let parts = catch(|| query_strings("select unnest(parse_ident($1))", &[name.into()])).map_err(|_| bad())??;
    let (schema, table) = match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) => (schema, table),
        Err(parts) => {
            let [table] = <[String; 1]>::try_from(parts).map_err(|_| bad())?;
            let beside = Table::look_at(change.relation).map(|it| it.schema());
            (beside.ok_or_else(|| Error::TableGone { change: change.name.clone() })?, table)
        }
    };
    let is_ours = schema.starts_with("pg_") || schema == "zdd" || schema == "information_schema";
    let fits = |name: &str| !name.is_empty() && name.len() <= MAX_BYTES;
    if is_ours || !fits(&schema) || !fits(&table) { Err(bad()) } else { Ok((schema, table)) }
}

/// A column of an archive: its name, its type and collation, and whether it is NOT NULL.
type Column = (&'static str, pg_sys::Oid, i32, pg_sys::Oid, bool);

const KEY: &str = "change_id, relation, tid";

/// The columns of an archive, in their order.
fn columns(change: &Change) -> Result<[Column; 8], Error> {
    let gone = || Error::TableGone { change: change.name.clone() };
    let source = Table::look_at(change.relation)
        .and_then(|table| table.attribute(change.rule.source.current_name()))
        .ok_or_else(gone)?;
    let (none, default) = (pg_sys::InvalidOid, pg_sys::DEFAULT_COLLATION_OID);
    Ok([
        ("change_id", pg_sys::INT8OID, -1, none, true),
        ("change", pg_sys::TEXTOID, -1, default, true),
        ("relation", pg_sys::REGCLASSOID, -1, none, true),
        ("tid", pg_sys::TIDOID, -1, none, true),
        ("key", pg_sys::JSONBOID, -1, none, false),
        ("old_value", source.type_oid, source.typmod, source.collation, false),
        ("kind", pg_sys::TEXTOID, -1, default, true),
        ("archived_at", pg_sys::TIMESTAMPTZOID, -1, none, true),
    ])
}

/// Makes an archive that nobody but the owner may read, whatever default privileges there are.
fn create(change: &Change, schema: &str, table: &str) -> Result<Archive, Error> {
    let owner = table_owner(change)?;
    let name = format!("{}.{}", quote(schema), quote(table));
    let mut definitions = Vec::new();
    for (column, type_oid, typmod, collation, not_null) in columns(change)? {
        let sql = "select format_type($1::oid, $2) || coalesce((
                select format(' collate %I.%I', n.nspname, c.collname)
                from pg_collation as c join pg_namespace as n on n.oid = c.collnamespace
                where c.oid = $3), '')";
        let args = [type_oid.into(), typmod.into(), collation.into()];
        let definition = query_strings(sql, &args)?.pop().unwrap_or_default();
        definitions.push(format!("{column} {definition}{}", if not_null { " not null" } else { "" }));
    }
    let about = format!("Old values of change {} that its new columns do not give back.", change.name);
    as_owner(owner, |gate| {
        gate.execute(&format!("CREATE TABLE {name} ({}, PRIMARY KEY ({KEY}))", definitions.join(", ")))?;
        gate.execute(&format!("COMMENT ON TABLE {name} IS {}", quote_literal(about)))?;
        let relation =
            relation_named(schema, table).ok_or_else(|| Error::NoSuchSchema { schema: schema.to_owned() })?;
        let sql = "select distinct format('REVOKE ALL ON %s FROM %s', c.oid::regclass,
                case x.grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(x.grantee)) end)
            from pg_class as c, aclexplode(c.relacl) as x where c.oid = $1 and x.grantee <> c.relowner";
        query_strings(sql, &[relation.into()])?.iter().try_for_each(|revoke| gate.execute(revoke))?;
        let archive = Archive { relation };
        archive.open(change)?;
        Ok(archive)
    })
}

/// An error unless a table is as a contract makes it for this column: so that nobody's code runs, nobody else can see what is
/// put there, and nothing is turned away.
fn check_shape(relation: pg_sys::Oid, change: &Change, owner: pg_sys::Oid) -> Result<(), Error> {
    let sql = "select p.problem from pg_class as c, lateral (values
            (c.relkind <> 'r', 'It is not an ordinary table.'),
            (c.relpersistence <> 'p', 'It is temporary or unlogged.'),
            (c.relowner <> $2, 'It has another owner.'),
            (exists (select from pg_inherits as i where i.inhrelid = c.oid or i.inhparent = c.oid),
                'It is a partition, or a parent or child of another table.'),
            (exists (select from pg_trigger as t where t.tgrelid = c.oid), 'It has triggers or foreign keys.'),
            (exists (select from pg_rewrite as r where r.ev_class = c.oid) and c.relkind = 'r', 'It has rules.'),
            (c.relrowsecurity or c.relforcerowsecurity, 'It has row-level security.'),
            (exists (select from aclexplode(c.relacl) as x where x.grantee <> c.relowner)
                or exists (select from pg_attribute as a, aclexplode(a.attacl) as x
                    where a.attrelid = c.oid and x.grantee <> c.relowner),
                'Others than its owner have privileges on it.'),
            (exists (select from pg_constraint as k where k.conrelid = c.oid and k.contype not in ('p', 'n'))
                or exists (select from pg_index as i where i.indrelid = c.oid
                    and (i.indisunique and not i.indisprimary or i.indexprs is not null or i.indpred is not null)),
                'It has constraints, or indexes that are more than plain ones.'),
            (c.relkind = 'r' and $3 is distinct from (
                select string_agg(a.attname, ', ' order by k.n)
                from pg_index as i, unnest(i.indkey::int2[]) with ordinality as k (attnum, n)
                join pg_attribute as a on a.attnum = k.attnum
                where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid),
                'It has another primary key.')
        ) as p (holds, problem)
        where c.oid = $1 and p.holds";
    let mut problems = query_strings(sql, &[relation.into(), owner.into(), KEY.into()])?;
    let sql =
        "select format('%s %s %s %s %s%s', a.attname, a.atttypid::oid, a.atttypmod, a.attcollation::oid, a.attnotnull,
            case when a.atthasdef or a.attidentity <> '' then ' computed' end)
        from pg_attribute as a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum";
    let found = query(sql, &[relation.into()], |row| Ok(row.get::<String>(1)?.unwrap_or_default()))?;
    let wanted = columns(change)?.map(|(name, type_oid, typmod, collation, not_null)| {
        let flag = if not_null { 't' } else { 'f' };
        format!("{name} {} {typmod} {} {flag}", type_oid.to_u32(), collation.to_u32())
    });
    if problems.is_empty() && found != wanted {
        problems.push("It has other columns.".to_owned());
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::ArchiveShape { archive: class::name(relation), problems }) }
}
