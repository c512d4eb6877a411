//! What state a row is in, and what a write to it has to do. O is the source, N the targets, f splits, g joins.

use super::Conflict;

/// How the two sides of a row stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// The sides belong together.
    InSync,
    /// In sync by f, but g would not give the source back.
    Lossy,
    /// f does not accept the source, and the targets are NULL.
    Unmatched,
    /// Not yet split.
    Pending,
    /// The sides belong together under neither f nor g.
    Diverged,
}

/// The facts about a row that decide its state. The last three run f or g and are asked for only when needed, each at
/// most once, and `split_accepts` before the two that build on it.
pub trait Row {
    /// O is NULL.
    fn source_is_null(&self) -> bool;
    /// N is all NULL.
    fn targets_all_null(&self) -> bool;
    /// f accepts O. It accepts NULL, and with the policy `whole` whatever it would put into the first target; what it would
    /// give nothing but NULLs for it does not accept.
    fn split_accepts(&mut self) -> bool;
    /// N = f(O), f accepting.
    fn targets_equal_split(&mut self) -> bool;
    /// O = g(N).
    fn source_equals_join(&mut self) -> bool;
}

/// The state of a row.
pub fn classify(row: &mut impl Row) -> RowState {
    if row.source_is_null() && row.targets_all_null() {
        return RowState::InSync;
    }
    // Joining is much cheaper than splitting, and tells all there is to know about most rows.
    if row.source_equals_join() {
        return RowState::InSync;
    }
    let accepted = row.split_accepts();
    match accepted && row.targets_equal_split() {
        true => RowState::Lossy,
        false if !row.targets_all_null() => RowState::Diverged,
        false if accepted => RowState::Pending,
        false => RowState::Unmatched,
    }
}

/// Whether a row's state is [`RowState::Pending`]; at once for the many rows whose source is NULL or whose targets are
/// not.
pub fn is_pending(row: &mut impl Row) -> bool {
    !row.source_is_null() && row.targets_all_null() && row.split_accepts() && !row.source_equals_join()
}

/// What the trigger does with a written row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// N := f(O).
    Split,
    /// O := g(N).
    Join,
    /// The unchanged targets := theirs of f(OLD.O), then O := g(N).
    FillThenJoin,
    /// Both sides were written and disagree: one gives way to the other.
    Settle(Winner),
    /// The error for two sides that disagree.
    Reject,
}

/// Which side stays when both were written and disagree; the other is made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// N := f(O).
    Old,
    /// O := g(N), with N filled as for [`Action::FillThenJoin`] if the row was pending.
    New,
}

/// What an INSERT gives for one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// NULL, in all columns.
    Null,
    /// Not NULL, but merely the defaults.
    Default,
    /// A value.
    Given,
}

/// What an INSERT gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertFacts {
    /// O.
    pub source: Side,
    /// N.
    pub targets: Side,
}

/// What to do with an inserted row; `agree` is N = f(O) or O = g(N).
pub fn on_insert(facts: InsertFacts, conflict: Conflict, agree: impl FnOnce() -> bool) -> Action {
    use Side::{Default, Given, Null};
    match (facts.source, facts.targets) {
        (Null, Null | Default) | (Default, Default) => Action::Keep,
        // A default alone is split too, or the row would be pending.
        (Given | Default, Null) => Action::Split,
        (Null, Given) => Action::Join,
        _ if agree() => Action::Keep,
        (Given, Default) => Action::Split,
        (Default, Given) => Action::Join,
        (Given, Given) => settle(conflict),
    }
}

/// What an UPDATE changes, by binary image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateFacts {
    /// O.
    pub source_changed: bool,
    /// Any of N.
    pub targets_changed: bool,
    /// O is not NULL and N is set to all NULL while the change is expanding: somebody writes back a row that was not split
    /// when they read it.
    pub is_stale: bool,
}

/// What to do with an updated row; `agree` is N = f(O) or O = g(N).
pub fn on_update(
    facts: UpdateFacts,
    conflict: Conflict,
    old_was_pending: impl FnOnce() -> bool,
    new_is_pending: impl FnOnce() -> bool,
    agree: impl FnOnce() -> bool,
) -> Action {
    match (facts.source_changed, facts.targets_changed) {
        (_, true) if facts.is_stale => Action::Settle(Winner::Old),
        (true, false) => Action::Split,
        (false, true) if old_was_pending() => Action::FillThenJoin,
        (false, true) => Action::Join,
        (true, true) if agree() => Action::Keep,
        (true, true) => settle(conflict),
        (false, false) if new_is_pending() => Action::Split,
        (false, false) => Action::Keep,
    }
}

fn settle(conflict: Conflict) -> Action {
    match conflict {
        Conflict::New => Action::Settle(Winner::New),
        Conflict::Old => Action::Settle(Winner::Old),
        Conflict::Error => Action::Reject,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row over a toy rule: f is looked up, g joins with a space. It counts the expensive questions.
    #[derive(Clone, Debug)]
    struct Facts {
        source: Option<&'static str>,
        targets: [Option<&'static str>; 2],
        /// f(O); `None` when f does not accept it.
        split: Option<[Option<&'static str>; 2]>,
        /// g(N).
        join: Option<&'static str>,
        asked: [u32; 3],
    }

    impl Row for Facts {
        fn source_is_null(&self) -> bool {
            self.source.is_none()
        }
        fn targets_all_null(&self) -> bool {
            self.targets == [None; 2]
        }
        fn split_accepts(&mut self) -> bool {
            self.asked[0] += 1;
            self.split.is_some()
        }
        fn targets_equal_split(&mut self) -> bool {
            self.asked[1] += 1;
            self.split == Some(self.targets)
        }
        fn source_equals_join(&mut self) -> bool {
            self.asked[2] += 1;
            self.source == self.join
        }
    }

    fn row(
        source: Option<&'static str>,
        targets: [Option<&'static str>; 2],
        split: Option<[Option<&'static str>; 2]>,
        join: Option<&'static str>,
    ) -> Facts {
        // f gives something for what it accepts.
        let split = split.filter(|split| source.is_none() || *split != NULLS);
        Facts { source, targets, split, join, asked: [0; 3] }
    }

    const NULLS: [Option<&str>; 2] = [None; 2];
    const AB: [Option<&str>; 2] = [Some("a"), Some("b")];
    const XY: [Option<&str>; 2] = [Some("x"), Some("y")];

    #[track_caller]
    fn check(mut row: Facts, state: RowState) {
        assert_eq!(classify(&mut row), state);
        assert!(row.asked.iter().all(|&times| times <= 1), "{row:?}");
        row.asked = [0; 3];
        assert_eq!(is_pending(&mut row), state == RowState::Pending);
        assert!(row.asked.iter().all(|&times| times <= 1), "{row:?}");
    }

    #[test]
    fn two_nulls_are_in_sync() {
        check(row(None, NULLS, Some(NULLS), None), RowState::InSync);
    }

    #[test]
    fn a_split_row_is_in_sync() {
        check(row(Some("a b"), AB, Some(AB), Some("a b")), RowState::InSync);
    }

    #[test]
    fn a_split_row_that_does_not_join_back_is_lossy() {
        check(row(Some("a  b"), AB, Some(AB), Some("a b")), RowState::Lossy);
    }

    #[test]
    fn a_source_split_into_nulls_is_unmatched() {
        check(row(Some(" "), NULLS, Some(NULLS), None), RowState::Unmatched);
    }

    #[test]
    fn a_joined_row_is_in_sync_whatever_f_says() {
        check(row(Some("x y"), XY, Some(AB), Some("x y")), RowState::InSync);
        check(row(Some("x y"), XY, None, Some("x y")), RowState::InSync);
        check(row(None, XY, Some(NULLS), None), RowState::InSync);
    }

    #[test]
    fn a_join_of_nulls_to_the_source_is_in_sync_and_not_pending() {
        check(row(Some(""), NULLS, Some(AB), Some("")), RowState::InSync);
    }

    #[test]
    fn a_source_not_accepted_is_unmatched() {
        check(row(Some("?"), NULLS, None, None), RowState::Unmatched);
    }

    #[test]
    fn a_source_not_yet_split_is_pending() {
        check(row(Some("a b"), NULLS, Some(AB), None), RowState::Pending);
    }

    #[test]
    fn sides_that_belong_to_different_things_are_diverged() {
        check(row(Some("a b"), XY, Some(AB), Some("x y")), RowState::Diverged);
        check(row(Some("?"), XY, None, Some("x y")), RowState::Diverged);
        check(row(None, XY, Some(NULLS), Some("x y")), RowState::Diverged);
    }

    #[test]
    fn nulls_decide_without_f_and_g() {
        let mut nulls = row(None, NULLS, Some(NULLS), None);
        classify(&mut nulls);
        is_pending(&mut nulls);
        assert_eq!(nulls.asked, [0; 3]);
        let mut split = row(Some("a b"), AB, Some(AB), Some("a b"));
        assert!(!is_pending(&mut split));
        assert_eq!(split.asked, [0; 3]);
    }

    const CONFLICTS: [Conflict; 3] = [Conflict::New, Conflict::Old, Conflict::Error];

    /// What an INSERT of these sides does when they disagree, and whether it had to ask if they do.
    fn insert(source: Side, targets: Side, conflict: Conflict) -> (Action, bool) {
        let mut asked = false;
        let action = on_insert(InsertFacts { source, targets }, conflict, || {
            asked = true;
            false
        });
        (action, asked)
    }

    #[track_caller]
    fn check_insert(source: Side, targets: Side, expected: (Action, bool)) {
        for conflict in CONFLICTS {
            assert_eq!(insert(source, targets, conflict), expected);
        }
    }

    #[test]
    fn insert_of_the_source_is_split() {
        check_insert(Side::Given, Side::Null, (Action::Split, false));
        check_insert(Side::Given, Side::Default, (Action::Split, true));
    }

    #[test]
    fn insert_of_the_targets_is_joined() {
        check_insert(Side::Null, Side::Given, (Action::Join, false));
        check_insert(Side::Default, Side::Given, (Action::Join, true));
    }

    #[test]
    fn insert_of_neither_is_kept() {
        check_insert(Side::Null, Side::Null, (Action::Keep, false));
        check_insert(Side::Null, Side::Default, (Action::Keep, false));
        check_insert(Side::Default, Side::Default, (Action::Keep, false));
    }

    #[test]
    fn insert_of_a_default_source_alone_is_split() {
        check_insert(Side::Default, Side::Null, (Action::Split, false));
    }

    #[test]
    fn insert_of_both_that_disagree_is_settled_by_policy() {
        let both = |conflict| insert(Side::Given, Side::Given, conflict);
        assert_eq!(both(Conflict::New), (Action::Settle(Winner::New), true));
        assert_eq!(both(Conflict::Old), (Action::Settle(Winner::Old), true));
        assert_eq!(both(Conflict::Error), (Action::Reject, true));
    }

    #[test]
    fn insert_of_both_that_agree_is_kept() {
        let sides = [Side::Default, Side::Given];
        for (source, targets) in sides.into_iter().flat_map(|it| sides.map(|other| (it, other))) {
            for conflict in CONFLICTS {
                let facts = InsertFacts { source, targets };
                assert_eq!(on_insert(facts, conflict, || true), Action::Keep);
            }
        }
    }

    /// Answers a question that must not be asked.
    fn unasked() -> bool {
        panic!("asked needlessly")
    }

    fn changed(source_changed: bool, targets_changed: bool) -> UpdateFacts {
        UpdateFacts { source_changed, targets_changed, is_stale: false }
    }

    #[test]
    fn update_of_the_source_is_split() {
        for conflict in CONFLICTS {
            let action = on_update(changed(true, false), conflict, unasked, unasked, unasked);
            assert_eq!(action, Action::Split);
        }
    }

    #[test]
    fn update_of_the_targets_is_joined() {
        for conflict in CONFLICTS {
            let action = on_update(changed(false, true), conflict, || false, unasked, unasked);
            assert_eq!(action, Action::Join);
        }
    }

    #[test]
    fn update_of_the_targets_of_a_pending_row_is_filled_first() {
        for conflict in CONFLICTS {
            let action = on_update(changed(false, true), conflict, || true, unasked, unasked);
            assert_eq!(action, Action::FillThenJoin);
        }
    }

    #[test]
    fn a_row_that_is_written_back_as_it_was_before_it_was_split_is_split_again() {
        for conflict in CONFLICTS {
            for source_changed in [false, true] {
                let facts = UpdateFacts { is_stale: true, ..changed(source_changed, true) };
                let action = on_update(facts, conflict, unasked, unasked, unasked);
                assert_eq!(action, Action::Settle(Winner::Old));
            }
        }
    }

    #[test]
    fn update_of_both_that_agree_is_kept() {
        for conflict in CONFLICTS {
            let action = on_update(changed(true, true), conflict, unasked, unasked, || true);
            assert_eq!(action, Action::Keep);
        }
    }

    #[test]
    fn update_of_both_that_disagree_is_settled_by_policy() {
        let both = |conflict| on_update(changed(true, true), conflict, unasked, unasked, || false);
        assert_eq!(both(Conflict::New), Action::Settle(Winner::New));
        assert_eq!(both(Conflict::Old), Action::Settle(Winner::Old));
        assert_eq!(both(Conflict::Error), Action::Reject);
    }

    #[test]
    fn update_of_neither_is_kept() {
        for conflict in CONFLICTS {
            let action = on_update(changed(false, false), conflict, unasked, || false, unasked);
            assert_eq!(action, Action::Keep);
        }
    }

    #[test]
    fn update_of_neither_splits_a_pending_row() {
        for conflict in CONFLICTS {
            let action = on_update(changed(false, false), conflict, unasked, || true, unasked);
            assert_eq!(action, Action::Split);
        }
    }

    fn side() -> impl Strategy<Value = [Option<&'static str>; 2]> {
        let value = prop::sample::select(vec![None, Some(""), Some("a")]);
        [value.clone(), value]
    }

    proptest! {
        #[test]
        fn state_is_what_the_words_say(
            source in prop::sample::select(vec![None, Some(""), Some("a")]),
            targets in side(),
            split in prop::option::of(side()),
            join in prop::sample::select(vec![None, Some(""), Some("a")]),
        ) {
            let row = row(source, targets, if source.is_none() { Some(NULLS) } else { split }, join);
            let by_split = row.split == Some(targets);
            let unsplit = targets == NULLS;
            let state = match (by_split, source == join) {
                _ if source.is_none() && unsplit => RowState::InSync,
                (_, true) => RowState::InSync,
                (true, _) => RowState::Lossy,
                _ if unsplit && row.split.is_none() => RowState::Unmatched,
                _ if unsplit => RowState::Pending,
                _ => RowState::Diverged,
            };
            check(row, state);
        }
    }
}
