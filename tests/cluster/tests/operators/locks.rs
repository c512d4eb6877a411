//! Who waits for whom, and how long.

use crate::stage::{CONTRACT, FENCE, NEVER, ROLLBACK, Stage, TABLE, UNFENCE, until_stuck};

/// Whoever waits for the change holds nothing that its holder may need.
#[test]
fn whoever_waits_for_a_change_is_in_nobodys_way() {
    for verb in [FENCE, ROLLBACK, CONTRACT, "SELECT zdd.alter_change('address.street', conflict => 'old')"] {
        let mut stage = Stage::expanded(TABLE, NEVER);
        let mut first = stage.db.another();
        first.run("BEGIN; SELECT zdd.alter_change('address.street', batch_target => '10ms')");
        let second = stage.db.another().in_background(verb);
        until_stuck(&mut stage.db, &second);
        first.run("SET zdd.lock_patience = '5s'");
        first.run(&format!("{FENCE}; {UNFENCE}"));
        first.run("COMMIT");
        assert_eq!(second.join().1, Ok(()), "{verb}");
    }
}
