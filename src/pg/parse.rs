//! PostgreSQL's own parser, for what users write in SQL.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::gate::Gate;
use super::inspect::is_constant;
use super::settings::with_settings;
use super::subxact::catch;
use super::types::ColumnType;
use super::{c_string, list_of, tag};
use crate::error::Error;

/// Under this search_path PostgreSQL writes all names qualified, but for its own.
const BUILT_IN: &[(&CStr, &CStr)] = &[(c"search_path", c"pg_catalog")];

/// A column as CREATE TABLE would define it.
pub struct ColumnDefinition {
    pub name: String,
    pub column_type: ColumnType,
    /// The COLLATE clause's collation, quoted and qualified.
    pub collation: Option<String>,
    pub not_null: bool,
    /// The DEFAULT expression, with all names qualified.
    pub default: Option<String>,
    /// Whether the type has a default of its own, which a column without one has.
    pub has_type_default: bool,
}

/// Parses column definitions as in CREATE TABLE. Types are looked up in the current search_path.
pub fn column_definitions(_gate: &Gate, text: &str) -> Result<Vec<ColumnDefinition>, Error> {
    let statement = c_text(&format!("CREATE TABLE pg_zdd ({text}\n)"))?;
    let definitions = catch(|| {
        // SAFETY: the parser gives valid nodes of the kinds that their tags say, allocated in the current context.
        unsafe {
            let statements = list_of::<pg_sys::RawStmt>(pg_sys::raw_parser(
                statement.as_ptr(),
                pg_sys::RawParseMode::RAW_PARSE_DEFAULT,
            ));
            let [statement] = statements.as_slice() else { return Err(Error::NotColumns) };
            let create = (**statement).stmt.cast::<pg_sys::CreateStmt>();
            // Whatever a text with an unbalanced parenthesis could have added to the statement.
            if tag(create) != NodeTag::T_CreateStmt
                || !(*create).inhRelations.is_null()
                || !(*create).partbound.is_null()
                || !(*create).partspec.is_null()
                || !(*create).options.is_null()
                || !(*create).tablespacename.is_null()
                || !(*create).accessMethod.is_null()
            {
                return Err(Error::NotColumns);
            }
            list_of::<pg_sys::ColumnDef>((*create).tableElts)
                .into_iter()
                .map(|element| match tag(element) {
                    NodeTag::T_ColumnDef => column_definition(element),
                    NodeTag::T_Constraint => Err(Error::TableConstraint),
                    _ => Err(Error::NotColumns),
                })
                .collect::<Result<Vec<_>, _>>()
        }
    });
    let definitions = match definitions {
        Ok(definitions) => definitions?,
        Err(error) if error.code() == pgrx::PgSqlErrorCode::ERRCODE_SYNTAX_ERROR => {
            return Err(Error::ColumnSyntax { message: error.message() });
        }
        Err(error) => error.rethrow(),
    };
    if definitions.is_empty() {
        return Err(Error::NotColumns);
    }
    for (index, definition) in definitions.iter().enumerate() {
        if definitions[..index].iter().any(|other| other.name == definition.name) {
            return Err(Error::DuplicateTarget { column: definition.name.clone() });
        }
    }
    Ok(definitions)
}

/// # Safety
/// `column` comes from the parser.
unsafe fn column_definition(column: *mut pg_sys::ColumnDef) -> Result<ColumnDefinition, Error> {
    // SAFETY: the nodes are the parser's; lookups by name raise PostgreSQL's own errors.
    unsafe {
        let name = c_string((*column).colname);
        let (mut oid, mut typmod) = (pg_sys::InvalidOid, -1);
        if (*column).typeName.is_null() {
            return Err(Error::NotColumns);
        }
        if (*(*column).typeName).setof {
            return Err(Error::UnsupportedType { column: name, type_name: "setof".into() });
        }
        pg_sys::typenameTypeIdAndMod(std::ptr::null_mut(), (*column).typeName, &mut oid, &mut typmod);
        let mut definition = ColumnDefinition {
            column_type: ColumnType::new(oid, typmod, pg_sys::get_typcollation(oid)),
            collation: None,
            not_null: (*column).is_not_null,
            default: None,
            has_type_default: false,
            name,
        };
        let type_default = pg_sys::get_typdefault(oid);
        if !type_default.is_null() {
            if !is_constant(type_default) {
                return Err(Error::DefaultNotConstant { column: definition.name });
            }
            definition.has_type_default = true;
        }
        if !(*column).collClause.is_null() {
            let collation = pg_sys::get_collation_oid((*(*column).collClause).collname, false);
            if !pg_sys::type_is_collatable(oid) {
                return Err(Error::NotCollatable { column: definition.name, type_name: definition.column_type.name() });
            }
            definition.column_type.collation = collation;
            let name = with_settings(BUILT_IN, || c_string(pg_sys::generate_collation_name(collation)));
            definition.collation = Some(name);
        }
        let constraints = list_of::<pg_sys::Constraint>((*column).constraints);
        let times = |kind| constraints.iter().filter(|constraint| (***constraint).contype == kind).count();
        if times(pg_sys::ConstrType::CONSTR_NULL) > 0 && times(pg_sys::ConstrType::CONSTR_NOTNULL) > 0 {
            let message = format!("conflicting NULL/NOT NULL declarations for column \"{}\"", definition.name);
            return Err(Error::ColumnSyntax { message });
        }
        if times(pg_sys::ConstrType::CONSTR_DEFAULT) > 1 {
            let message = format!("multiple default values specified for column \"{}\"", definition.name);
            return Err(Error::ColumnSyntax { message });
        }
        let storage = super::version::storage_name(&*column);
        if !storage.is_null() || !(*column).compression.is_null() || !(*column).fdwoptions.is_null() {
            return Err(Error::ColumnConstraint { column: definition.name });
        }
        for constraint in constraints {
            use pg_sys::ConstrType;
            match (*constraint).contype {
                ConstrType::CONSTR_NULL => {}
                ConstrType::CONSTR_NOTNULL if !(*constraint).conname.is_null() || (*constraint).is_no_inherit => {
                    return Err(Error::NamedNotNull { column: definition.name });
                }
                ConstrType::CONSTR_NOTNULL => definition.not_null = true,
                ConstrType::CONSTR_DEFAULT => {
                    let name = c_text(&definition.name)?;
                    let state = pg_sys::make_parsestate(std::ptr::null_mut());
                    let default = pg_sys::cookDefault(state, (*constraint).raw_expr, oid, typmod, name.as_ptr(), 0);
                    if !is_constant(default) {
                        return Err(Error::DefaultNotConstant { column: definition.name });
                    }
                    let text = with_settings(BUILT_IN, || {
                        c_string(pg_sys::deparse_expression(default, std::ptr::null_mut(), false, false))
                    });
                    definition.default = Some(text);
                }
                _ => return Err(Error::ColumnConstraint { column: definition.name }),
            }
        }
        Ok(definition)
    }
}

/// Parses one SQL expression, and nothing but one expression.
///
/// # Safety
/// The result is a raw parse tree in the current memory context.
pub(super) unsafe fn expression(argument: &'static str, text: &str) -> Result<*mut pg_sys::Node, Error> {
    let not_one = || Error::NotAnExpression { argument, text: text.to_owned() };
    let source = c_text(text)?;
    // SAFETY: in this mode the parser gives one SelectStmt, of whose clauses only the target list may be there.
    unsafe {
        let statements = list_of::<pg_sys::RawStmt>(pg_sys::raw_parser(
            source.as_ptr(),
            pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR,
        ));
        let [statement] = statements.as_slice() else { return Err(not_one()) };
        let select = (**statement).stmt.cast::<pg_sys::SelectStmt>();
        if tag(select) != NodeTag::T_SelectStmt {
            return Err(not_one());
        }
        let clauses = [
            (*select).distinctClause,
            (*select).fromClause,
            (*select).groupClause,
            (*select).windowClause,
            (*select).valuesLists,
            (*select).sortClause,
            (*select).lockingClause,
        ];
        let nodes = [
            (*select).whereClause,
            (*select).havingClause,
            (*select).limitOffset,
            (*select).limitCount,
            (*select).larg.cast(),
        ];
        let targets = list_of::<pg_sys::ResTarget>((*select).targetList);
        match targets.as_slice() {
            [target]
                if clauses.iter().all(|clause| clause.is_null())
                    && nodes.iter().all(|node| node.is_null())
                    && (**target).name.is_null()
                    && !is_star((**target).val) =>
            {
                Ok((**target).val)
            }
            _ => Err(not_one()),
        }
    }
}

/// Whether a node is `*`, which the parser takes for an expression.
///
/// # Safety
/// `node` comes from the parser.
unsafe fn is_star(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag says which kind of node it is.
    unsafe {
        tag(node) == NodeTag::T_ColumnRef
            && list_of::<pg_sys::Node>((*node.cast::<pg_sys::ColumnRef>()).fields)
                .into_iter()
                .any(|field| tag(field) == NodeTag::T_A_Star)
    }
}

/// A text for C, which cannot have NUL bytes in it.
pub(super) fn c_text(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::NotColumns)
}

/// The name of the database's encoding.
pub fn database_encoding() -> String {
    // SAFETY: gives a constant string.
    unsafe { c_string(pg_sys::GetDatabaseEncodingName()) }
}
