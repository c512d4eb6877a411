//! What is done to the tables once all rows are split, by statements that only a background worker can run: VACUUM, and
//! CREATE INDEX CONCURRENTLY for the indexes that were asked for.

use pgrx::pg_sys;
use pgrx::spi::quote_identifier as quote;
use serde_json::json;

use crate::catalog::{self, Change, Claim};
use crate::ddl::{self, open};
use crate::error::Error;
use crate::patience::across_transactions;
use crate::pg::lock::tree;
use crate::pg::security::query_strings;
use crate::pg::session::Session;
use crate::pg::table::{Table, new_index_name};
use crate::pg::version::VACUUM_ONLY;

/// Removes the old row versions and tells the planner of the new columns. A VACUUM that is running already is left to do
/// it. Where the backfill has a limit, it goes at the pace of autovacuum. The table is not cut short: that takes ACCESS
/// EXCLUSIVE, here and on standbys, where it cancels queries.
pub fn vacuum(session: &Session, change: &Change, relation: pg_sys::Oid) -> Result<(), Error> {
    let table = session.transaction(|| Ok(Table::look_at(relation).map(|it| (it.name(), it.owner()))))?;
    let Some((name, owner)) = table else { return Ok(()) };
    let targets: Vec<String> = change.rule.targets.iter().map(|target| target.name.clone()).collect();
    let columns = ddl::column_list(&targets);
    let delay = if change.max_rows_per_second > 0 { "'2ms'" } else { "DEFAULT" };
    session.top_level(owner, &format!("SET vacuum_cost_delay = {delay}"))?;
    let options = "SKIP_LOCKED, ANALYZE, INDEX_CLEANUP ON, TRUNCATE OFF";
    session.top_level(owner, &format!("VACUUM ({options}) {VACUUM_ONLY}{name} ({columns})"))
}

/// Builds the indexes that are not there yet, in the table and all its partitions or children, while reads and writes go
/// on, unless one may not begin. Partitions come before what they are partitions of, whose index is then made of theirs.
pub fn build(
    session: &Session,
    claim: &Claim,
    change: &Change,
    mut begin: impl FnMut(&str) -> Result<bool, Error>,
) -> Result<(), Error> {
    // Partitions may come meanwhile.
    while !session.transaction(|| are_built(change))? {
        for columns in &change.indexes {
            let mut members = session.transaction(|| Ok(tree(change.relation)))?;
            members.reverse();
            for relation in members {
                if let Some(to_do) = session.transaction(|| to_do(&claim.lock_anyway()?, relation, columns))? {
                    if !begin(&format!("{}{}", catalog::BUILDS_INDEX, to_do.name))? {
                        return Ok(());
                    }
                    to_do.build(session, claim)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether all indexes that were asked for are there.
pub fn are_built(change: &Change) -> Result<bool, Error> {
    for columns in &change.indexes {
        for relation in tree(change.relation) {
            if ddl::index_on(relation, columns)?.is_none() && Table::exists(relation) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// An index that is to be built.
struct ToDo {
    relation: pg_sys::Oid,
    owner: pg_sys::Oid,
    table: String,
    schema: String,
    name: String,
    columns: Vec<String>,
    is_partitioned: bool,
    /// An attempt that failed has left an invalid index of that name.
    is_leftover: bool,
}

fn to_do(change: &Change, relation: pg_sys::Oid, columns: &[String]) -> Result<Option<ToDo>, Error> {
    if !Table::exists(relation) || ddl::index_on(relation, columns)?.is_some() {
        return Ok(None);
    }
    let table = open(relation)?;
    let invalid = "select c.relname::text from pg_index as i join pg_class as c on c.oid = i.indexrelid
        where i.indrelid = $1 and c.relname = $2::text::name and not i.indisvalid";
    let leftover = match catalog::built_index(change.id, relation, columns)? {
        Some(name) => query_strings(invalid, &[relation.into(), name.into()])?.pop(),
        None => None,
    };
    let is_leftover = leftover.is_some();
    let name = leftover.unwrap_or_else(|| new_index_name(&table, columns));
    catalog::set_built_index(change.id, relation, columns, &name)?;
    Ok(Some(ToDo {
        relation,
        owner: table.owner(),
        table: table.name(),
        schema: table.schema(),
        name,
        columns: columns.to_vec(),
        is_partitioned: table.kind() == 'p',
        is_leftover,
    }))
}

impl ToDo {
    fn build(&self, session: &Session, claim: &Claim) -> Result<(), Error> {
        let (name, columns) = (quote(&self.name), ddl::column_list(&self.columns));
        if self.is_partitioned {
            let attach = || {
                let locked = ddl::lock_once(&|| claim.lock_anyway(), |_| Ok(()))?;
                ddl::index_partitioned(&locked, self.relation, &self.columns, &self.name)
            };
            return across_transactions(session, false, attach, |_| Ok(()));
        }
        if self.is_leftover {
            let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {}.{name}", quote(&self.schema));
            session.top_level(self.owner, &drop)?;
        }
        let create = format!("CREATE INDEX CONCURRENTLY {name} ON {} ({columns})", self.table);
        session.top_level(self.owner, &create)?;
        session.transaction(|| {
            claim.follow()?;
            let detail = json!({ "table": self.table, "index": self.name, "columns": self.columns });
            catalog::record(claim.id(), claim.name(), "index_built", detail)
        })
    }
}
