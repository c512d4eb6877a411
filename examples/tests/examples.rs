//! Every example, in its short form.

use pg_zdd_examples::{EXAMPLES, Pace};

#[track_caller]
fn play(name: &str) {
    let (_, play) = EXAMPLES.iter().find(|(known, _)| *known == name).unwrap();
    play(Pace::Test).unwrap_or_else(|e| panic!("{name}: {e}"));
}

#[test]
fn rolling() {
    play("rolling");
}

#[test]
fn blue_green() {
    play("blue-green");
}

#[test]
fn canary() {
    play("canary");
}

#[test]
fn rollback() {
    play("rollback");
}

#[test]
fn all_have_a_test() {
    assert_eq!(EXAMPLES.map(|(name, _)| name), ["rolling", "blue-green", "canary", "rollback"]);
}
