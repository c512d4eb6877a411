//! When a backfill has to wait, and for what. Pure: needs no server and reads no clock.

use std::time::Duration;

/// Something that was read from the server, or why it could not be.
pub type Reading<T> = Result<T, String>;

/// What a backfill looks at before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signals {
    /// The standby that lags most, and by how many bytes of WAL.
    pub replication_lag: Reading<Option<(String, u64)>>,
    /// The replication slot that holds back most, and how many bytes of WAL.
    pub slot_backlog: Reading<Option<(String, u64)>>,
    /// Bytes of WAL since the last checkpoint began.
    pub checkpoint_distance: Reading<u64>,
    /// Whether the change's own condition holds; `None` when it has none.
    pub condition: Reading<Option<bool>>,
}

/// From where on a backfill waits. 0 switches a limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of WAL that a standby may lag behind.
    pub replication_lag: u64,
    /// Bytes of WAL that a replication slot may hold back.
    pub slot_backlog: u64,
    /// Bytes of WAL since the last checkpoint began.
    pub checkpoint_distance: u64,
}

impl Signals {
    /// What to wait for, if anything. What cannot be read is waited for too: nobody knows how bad it is.
    pub fn wait_for(&self, limits: &Limits) -> Option<String> {
        let unreadable = |what: &str, error: &String| Some(format!("{what}, which cannot be read: {error}"));
        let over = |reading: &Reading<Option<(String, u64)>>, limit: u64, what: &str| match reading {
            _ if limit == 0 => None,
            Err(error) => unreadable(what, error),
            Ok(Some((name, bytes))) if *bytes > limit => {
                Some(format!("{what} \"{name}\": {} of at most {}", megabytes(*bytes), megabytes(limit)))
            }
            Ok(_) => None,
        };
        over(&self.replication_lag, limits.replication_lag, "replication lag of standby")
            .or_else(|| over(&self.slot_backlog, limits.slot_backlog, "backlog of replication slot"))
            .or_else(|| match &self.checkpoint_distance {
                _ if limits.checkpoint_distance == 0 => None,
                Err(error) => unreadable("checkpoint", error),
                Ok(bytes) if *bytes > limits.checkpoint_distance => Some(format!(
                    "checkpoint: {} of WAL since the last one, of at most {}",
                    megabytes(*bytes),
                    megabytes(limits.checkpoint_distance)
                )),
                Ok(_) => None,
            })
            .or_else(|| match &self.condition {
                Err(_) => Some("run_if, which cannot be evaluated: see last_error".to_owned()),
                Ok(Some(false)) => Some("run_if to be true".to_owned()),
                Ok(_) => None,
            })
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1_048_576.0)
}

/// How much of its time a backfill takes for a batch, so that whoever it blocks is not blocked for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Courtesy {
    /// What the next batch may take.
    target: Duration,
}

impl Courtesy {
    /// Below this, batches cost more than the work that they do.
    const LEAST: Duration = Duration::from_millis(2);
    /// Until it is known whether anybody is in the way. Batches of this length cost hardly more than long ones.
    const FIRST: Duration = Duration::from_millis(10);
    /// How much work that keeps nobody waiting doubles the length of a batch.
    const DOUBLED_BY: Duration = Duration::from_secs(1);

    /// Begins with short batches, if no shorter ones are asked for.
    pub fn new(asked: Duration) -> Courtesy {
        Courtesy { target: Self::FIRST.min(asked) }
    }

    /// What the next batch may take.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// Learns how long the last batch took and how many sessions it kept waiting: if any, the next one is half as long,
    /// else a little longer, up to what is asked for. A short batch is seldom in anybody's way, so that its length settles
    /// where waits are few. Returns how long to let the others go first.
    pub fn record(&mut self, blocked: u64, took: Duration, asked: Duration) -> Duration {
        if blocked > 0 {
            let pause = self.target;
            self.target = (self.target / 2).max(Self::LEAST).min(asked);
            pause
        } else {
            let doublings = took.as_secs_f64() / Self::DOUBLED_BY.as_secs_f64();
            self.target = self.target.mul_f64(doublings.min(1.0).exp2()).min(asked);
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { replication_lag: 10 << 20, slot_backlog: 20 << 20, checkpoint_distance: 30 << 20 };

    fn calm() -> Signals {
        Signals { replication_lag: Ok(None), slot_backlog: Ok(None), checkpoint_distance: Ok(0), condition: Ok(None) }
    }

    fn signal(name: &str, megabytes: u64) -> Reading<Option<(String, u64)>> {
        Ok(Some((name.to_owned(), megabytes << 20)))
    }

    #[track_caller]
    fn waits(signals: &Signals, reason: &str) {
        assert_eq!(signals.wait_for(&LIMITS).as_deref(), Some(reason));
    }

    #[test]
    fn nothing_to_wait_for() {
        let near = Signals {
            replication_lag: signal("s1", 10),
            slot_backlog: signal("s2", 20),
            checkpoint_distance: Ok(30 << 20),
            condition: Ok(Some(true)),
        };
        for signals in [calm(), near] {
            assert_eq!(signals.wait_for(&LIMITS), None);
        }
    }

    #[test]
    fn each_limit_has_its_reason() {
        let lag = Signals { replication_lag: signal("s1", 11), ..calm() };
        waits(&lag, "replication lag of standby \"s1\": 11.0 MB of at most 10.0 MB");
        let slot = Signals { slot_backlog: signal("s2", 21), ..calm() };
        waits(&slot, "backlog of replication slot \"s2\": 21.0 MB of at most 20.0 MB");
        let checkpoint = Signals { checkpoint_distance: Ok(31 << 20), ..calm() };
        waits(&checkpoint, "checkpoint: 31.0 MB of WAL since the last one, of at most 30.0 MB");
        waits(&Signals { condition: Ok(Some(false)), ..calm() }, "run_if to be true");
    }

    #[test]
    fn what_cannot_be_read_is_waited_for() {
        let broken = || Err("no".to_owned());
        let lag = Signals { replication_lag: broken(), ..calm() };
        waits(&lag, "replication lag of standby, which cannot be read: no");
        let slot = Signals { slot_backlog: Err("no".into()), ..calm() };
        waits(&slot, "backlog of replication slot, which cannot be read: no");
        let checkpoint = Signals { checkpoint_distance: Err("no".into()), ..calm() };
        waits(&checkpoint, "checkpoint, which cannot be read: no");
        waits(&Signals { condition: Err("no".into()), ..calm() }, "run_if, which cannot be evaluated: see last_error");
    }

    #[test]
    fn limits_can_be_switched_off() {
        let off = Limits { replication_lag: 0, slot_backlog: 0, checkpoint_distance: 0 };
        let storm = Signals {
            replication_lag: Err("no".into()),
            slot_backlog: signal("s", 1 << 20),
            checkpoint_distance: Err("no".into()),
            condition: Ok(None),
        };
        assert_eq!(storm.wait_for(&off), None);
    }

    #[test]
    fn batches_shrink_for_those_they_block_and_grow_back() {
        let ms = Duration::from_millis;
        let mut courtesy = Courtesy::new(ms(50));
        assert_eq!(courtesy.target(), ms(10));
        // A second of work.
        for _ in 0..10 {
            assert_eq!(courtesy.record(0, ms(100), ms(50)), Duration::ZERO);
        }
        assert!((ms(19)..ms(21)).contains(&courtesy.target()), "{courtesy:?}");
        for _ in 0..20 {
            courtesy.record(0, ms(100), ms(50));
        }
        assert_eq!(courtesy.target(), ms(50));
        assert_eq!(courtesy.record(2, ms(50), ms(50)), ms(50));
        assert_eq!(courtesy.target(), ms(25));
        for _ in 0..20 {
            courtesy.record(1, ms(50), ms(50));
        }
        assert_eq!(courtesy.target(), ms(2));
        // However long a batch took.
        courtesy.record(0, Duration::MAX, ms(50));
        assert_eq!(courtesy.target(), ms(4));
    }

    #[test]
    fn a_shorter_batch_that_is_asked_for_counts_at_once() {
        let mut courtesy = Courtesy::new(Duration::from_millis(50));
        courtesy.record(0, Duration::ZERO, Duration::from_millis(1));
        assert_eq!(courtesy.target(), Duration::from_millis(1));
        courtesy.record(1, Duration::ZERO, Duration::from_millis(1));
        assert_eq!(courtesy.target(), Duration::from_millis(1));
    }
}
