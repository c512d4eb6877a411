//! Tests of the rooms in `pg` and of what is built on them, inside a server. What needs commits or several sessions is
//! tested from outside, in tests/.

#![allow(clippy::disallowed_methods)]

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::ddl::trigger_name;
    use crate::error::Error;
    use crate::pg::expr::Expressions;
    use crate::pg::gate::{Gate, as_owner_for_caller};
    use crate::pg::parse::{self, ColumnDefinition};
    use crate::pg::security::current_role;
    use crate::pg::subxact::catch;
    use crate::pg::types::ColumnType;
    use crate::pg::value::{Value, Values};

    fn behind_gate<R>(f: impl FnOnce(&Gate) -> R) -> R {
        as_owner_for_caller(current_role(), f)
    }

    fn column_definitions(text: &str) -> Result<Vec<ColumnDefinition>, Error> {
        behind_gate(|gate| parse::column_definitions(gate, text))
    }

    fn compile(columns: &[(&str, &ColumnType)], expressions: &[(&str, &ColumnType)]) -> Result<Expressions, Error> {
        behind_gate(|gate| Expressions::compile(gate, "split_sql", columns, expressions, &|_| Ok(())))
    }

    fn evaluate(compiled: &Expressions, value: Value) -> Values {
        let mut results = Values::new();
        behind_gate(|gate| compiled.evaluate(gate, &[value], &mut results));
        results
    }

    fn column_type(definition: &str) -> ColumnType {
        column_definitions(&format!("c {definition}")).unwrap().remove(0).column_type
    }

    fn text(text: &str) -> Value {
        column_type("text").encode(text).unwrap()
    }

    #[pg_test]
    fn column_definitions_are_those_of_create_table() {
        let columns =
            column_definitions(r#""Straße" varchar(20) COLLATE "C" NOT NULL DEFAULT lower('X'), n numeric(5,2)"#);
        let columns = columns.unwrap();
        assert_eq!(columns[0].name, "Straße");
        assert_eq!(columns[0].column_type.name(), "character varying(20)");
        assert_eq!(columns[0].collation.as_deref(), Some("\"C\""));
        assert_eq!(columns[0].default.as_deref(), Some("lower('X'::text)"));
        assert!(columns[0].not_null && !columns[1].not_null);
        assert_eq!(columns[1].column_type.name(), "numeric(5,2)");
    }

    #[pg_test]
    fn column_definitions_are_nothing_else() {
        for text in ["", "a", "a int,", "a int); drop table t; create table u (b int", "a int) inherits (t", "like t"] {
            let error = column_definitions(text).err();
            assert!(matches!(error, Some(Error::NotColumns | Error::ColumnSyntax { .. })), "{text}: {error:?}");
        }
        let constraint = column_definitions("a int check (a > 0)").err();
        assert!(matches!(constraint, Some(Error::ColumnConstraint { .. })));
        assert!(matches!(column_definitions("a int, primary key (a)").err(), Some(Error::TableConstraint)));
        assert!(matches!(column_definitions("a int, a int").err(), Some(Error::DuplicateTarget { .. })));
    }

    #[pg_test]
    fn values_go_to_text_and_back() {
        for (definition, given, back) in [
            ("text", "Elm Street", "Elm Street"),
            ("varchar(3)", "äöü", "äöü"),
            ("char(5)", "ab", "ab"),
            ("smallint", "-7", "-7"),
            ("integer", "007", "7"),
            ("bigint", "9223372036854775807", "9223372036854775807"),
            ("numeric(5,2)", "12.3", "12.30"),
        ] {
            let column_type = column_type(definition);
            let value = column_type.encode(given).unwrap();
            assert_eq!(column_type.decode(&value).as_deref(), Some(back), "{definition}");
        }
    }

    #[pg_test]
    fn values_that_do_not_fit_are_not_cut_off() {
        for (definition, text) in [
            ("varchar(3)", "abcd"),
            ("char(2)", "äöü"),
            ("smallint", "32768"),
            ("integer", "12a"),
            ("integer", ""),
            ("numeric(5,2)", "1.234"),
            ("numeric(5,2)", "1234"),
        ] {
            assert!(column_type(definition).encode(text).is_none(), "{definition}: {text}");
        }
    }

    #[pg_test]
    fn images_are_compared_in_binary() {
        let column_type = column_type("text");
        assert!(column_type.same_image(text("a"), text("a")));
        assert!(!column_type.same_image(text("a"), text("A")));
        assert!(!column_type.same_image(text("a"), Value::NULL));
        assert!(column_type.same_image(Value::NULL, Value::NULL));
    }

    #[pg_test]
    fn a_domain_is_handled_as_its_base_type() {
        Spi::run("create domain public.town as varchar(5)").unwrap();
        let town = column_type("public.town");
        assert!(town.encode("Wien").is_some() && town.encode("Berlin").is_none());
        assert!(!town.has_domain_constraints());
        Spi::run("alter domain public.town add check (value <> '')").unwrap();
        assert!(column_type("public.town").has_domain_constraints());
    }

    #[pg_test]
    fn expressions_see_the_columns_of_their_side_only() {
        let (street, number) = (column_type("text"), column_type("integer"));
        let compiled = compile(&[("street", &street)], &[("length(street)", &number)]).unwrap();
        assert_eq!(number.decode(&evaluate(&compiled, text("Elm"))[0]).as_deref(), Some("3"));
        let unknown = catch(|| compile(&[("street", &street)], &[("city", &street)]).is_ok());
        assert!(unknown.is_err_and(|error| error.code() == PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN));
    }

    #[pg_test]
    fn expressions_do_nothing_but_compute() {
        let street = column_type("text");
        let refused = |expression: &str| catch(|| compile(&[("street", &street)], &[(expression, &street)]).err());
        for expression in
            ["street, street", "street from pg_class", "street; drop table t", "max(street)", "(select 'x')"]
        {
            assert!(!matches!(refused(expression), Ok(None)), "{expression}");
        }
        for expression in ["random()::text", "now()", "street::date", "current_user", "to_char(1.5, 'L9')"] {
            assert!(matches!(refused(expression), Ok(Some(Error::MutableExpression { .. }))), "{expression}");
        }
        assert!(matches!(refused("upper(street)"), Ok(None)));
    }

    #[pg_test]
    fn an_expression_goes_on_after_an_error() {
        let (street, number) = (column_type("text"), column_type("integer"));
        let compiled = compile(&[("street", &street)], &[("street::integer", &number)]).unwrap();
        assert!(catch(|| evaluate(&compiled, text("x"))).is_err());
        assert_eq!(number.decode(&evaluate(&compiled, text("5"))[0]).as_deref(), Some("5"));
    }

    #[pg_test]
    fn a_default_is_a_constant() {
        Spi::run("create function public.f() returns text language sql immutable return 'x'").unwrap();
        for default in ["'x'", "lower('X')", "'x'::varchar(3)", "null", "('a' || 'b')"] {
            assert!(column_definitions(&format!("c text default {default}")).is_ok(), "{default}");
        }
        for default in ["now()", "current_user", "random()::text", "public.f()", "'u-' || current_user"] {
            let refused = column_definitions(&format!("c text default {default}")).err();
            assert!(matches!(refused, Some(Error::DefaultNotConstant { .. })), "{default}");
        }
    }

    #[pg_test]
    fn the_gate_leaves_no_setting_behind() {
        let before = Spi::get_one::<String>("select current_setting('search_path')").unwrap();
        behind_gate(|gate| {
            gate.execute(
                "select set_config('search_path', 'pg_temp', false), set_config('zdd.lock_timeout', '7ms', false)",
            )
            .unwrap();
        });
        assert_eq!(Spi::get_one::<String>("select current_setting('search_path')").unwrap(), before);
        assert_eq!(Spi::get_one::<String>("show zdd.lock_timeout").unwrap().as_deref(), Some("200ms"));
    }

    #[pg_test]
    fn what_fails_is_undone() {
        Spi::run("create table public.t (a int)").unwrap();
        let caught = catch(|| {
            Spi::run("insert into public.t values (1)").unwrap();
            Spi::run("select 1 / 0").unwrap();
        });
        assert!(caught.is_err_and(|error| error.is_about_data() && !error.is_transient()));
        assert_eq!(Spi::get_one::<i64>("select count(*) from public.t"), Ok(Some(0)));
    }

    #[pg_test]
    fn trigger_names_fit_and_differ() {
        assert_eq!(trigger_name("address.street"), "~zdd_address.street");
        let long = |end: &str| trigger_name(&format!("{}{end}", "ü".repeat(40)));
        assert!(long("a").len() <= 63 && long("a") != long("b"));
    }
}
