//! What the table must hold: the demo's own idea of it, independent of pg_zdd.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pg_zdd_cluster::fastrand::Rng;

/// A street as one of the two versions of the application wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Old(String),
    New(String, Option<String>),
}

impl Written {
    /// As version 1 reads it.
    pub fn old_shape(&self) -> String {
        match self {
            Written::Old(street) => street.clone(),
            Written::New(name, None) => name.clone(),
            Written::New(name, Some(number)) => format!("{name} {number}"),
        }
    }

    /// As version 2 reads it.
    pub fn new_shape(&self) -> (Option<String>, Option<String>) {
        match self {
            Written::Old(street) => match split(street) {
                Some((name, number)) => (Some(name), number),
                None => (None, None),
            },
            Written::New(name, number) => (Some(name.clone()), number.clone()),
        }
    }
}

/// The demo's split rule by hand: a last word that begins with a digit is the number. Streets are one line each.
fn split(street: &str) -> Option<(String, Option<String>)> {
    if street.is_empty() {
        return None;
    }
    let last_space = street.char_indices().rev().find(|(_, c)| c.is_whitespace());
    if let Some((at, space)) = last_space {
        let number = &street[at + space.len_utf8()..];
        let name = street[..at].trim_end();
        if number.starts_with(char::is_numeric) && !name.is_empty() {
            return Some((name.to_owned(), Some(number.to_owned())));
        }
    }
    Some((street.to_owned(), None))
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: i64,
    pub street: Written,
    pub city: String,
}

/// The rows that the instances of both versions work on. Whoever takes one has it for itself until it is put back,
/// so what it reads must be what was written last, by whichever version.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Row>>);

impl Pool {
    pub fn put(&self, row: Row) {
        self.lock().push(row);
    }

    pub fn take(&self, rng: &mut Rng) -> Option<Row> {
        let mut rows = self.lock();
        let count = rows.len();
        (count > 0).then(|| rows.swap_remove(rng.usize(..count)))
    }

    pub fn rows(&self) -> Vec<Row> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares what the finished table holds with what it must hold; one line for each row that is wrong.
pub fn differences(
    mut expected: HashMap<i64, Row>,
    table: impl Iterator<Item = (i64, Option<String>, Option<String>, String)>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, name, number, city) in table {
        match expected.remove(&id) {
            None => wrong.push(format!("row {id} should not exist")),
            Some(row) if row.street.new_shape() != (name.clone(), number.clone()) => {
                wrong.push(format!("row {id} holds {name:?}, {number:?}: {:?} was written", row.street));
            }
            Some(row) if row.city != city => {
                wrong.push(format!("row {id} holds city {city:?}: {:?} was written", row.city));
            }
            Some(_) => {}
        }
    }
    wrong.extend(expected.keys().map(|id| format!("row {id} is lost")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(street: &str) -> (Option<String>, Option<String>) {
        Written::Old(street.to_owned()).new_shape()
    }

    fn some(name: &str, number: Option<&str>) -> (Option<String>, Option<String>) {
        (Some(name.to_owned()), number.map(str::to_owned))
    }

    #[test]
    fn splits_like_the_rule() {
        assert_eq!(both("Elm Street 12a"), some("Elm Street", Some("12a")));
        assert_eq!(both("Elm  Street   12a"), some("Elm  Street", Some("12a")));
        assert_eq!(both("Straße des 17. Juni 135"), some("Straße des 17. Juni", Some("135")));
        assert_eq!(both("Unter den Linden"), some("Unter den Linden", None));
        assert_eq!(both("Trailing 4 "), some("Trailing 4 ", None));
        assert_eq!(both("12"), some("12", None));
        assert_eq!(both("شارع ٢٦ يوليو ١٥"), some("شارع ٢٦ يوليو", Some("١٥")));
        assert_eq!(both(""), (None, None));
    }

    #[test]
    fn tells_lost_stale_and_unknown_rows() {
        let row = |id, street: &str| Row { id, street: Written::Old(street.into()), city: "X".into() };
        let expected = [(1, row(1, "A 1")), (2, row(2, "B 2")), (3, row(3, "C 3"))].into();
        let held = |id, name: &str, number: &str| (id, Some(name.to_owned()), Some(number.to_owned()), "X".to_owned());
        let table = [held(1, "A", "1"), held(2, "B", "7"), held(4, "D", "4")];
        let wrong = differences(expected, table.into_iter());
        assert_eq!(wrong.len(), 3);
        assert!(wrong[0].starts_with("row 2 holds"));
        assert_eq!(wrong[1..], ["row 4 should not exist", "row 3 is lost"]);
    }
}
