//! What a backfill does next: lanes, batch sizes, speed. Pure: needs no server and reads no clock.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// How many blocks a lane has, roughly (16 MB).
const BLOCKS_PER_LANE: u32 = 2048;
/// A smaller table has so many lanes too, so that each worker has some to take turns with, as long as they are not shorter
/// than this.
const MIN_LANES: u32 = 8;
const SHORTEST_LANE: u32 = 128;
/// How many lanes a table has at most: each has a cursor row, and more workers than this make no sense.
const MAX_LANES: u32 = 64;

/// A range of blocks that one worker walks at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The first block.
    pub start: u32,
    /// The block after the last.
    pub end: u32,
}

/// Cuts a table of so many blocks into lanes whose sizes differ by one block at most.
pub fn lanes(blocks: u32) -> Vec<Lane> {
    lanes_from(0, blocks)
}

/// Cuts what a table has beyond its first blocks into lanes.
pub fn lanes_from(first: u32, blocks: u32) -> Vec<Lane> {
    let rest = blocks.saturating_sub(first);
    let count = rest.div_ceil(BLOCKS_PER_LANE).max(rest.div_ceil(SHORTEST_LANE).min(MIN_LANES)).min(MAX_LANES);
    let cut = |lane: u32| first + (u64::from(rest) * u64::from(lane) / u64::from(count)) as u32;
    (0..count).map(|lane| Lane { start: cut(lane), end: cut(lane + 1) }).collect()
}

/// How many blocks a batch should have at most in a lane of this length, for the lane to be longer than a window. In a short
/// one that matters less than the cost of a batch.
pub fn most_blocks(length: u32, visits: u32) -> u32 {
    const WORTH_A_BATCH: u32 = 16;
    (length / (2 * visits.max(1))).max(WORTH_A_BATCH)
}

/// The blocks of a lane that are being worked on. Each batch moves the window on, so that every block is visited several
/// times, by different transactions: on each visit some of its rows are split, in the space that the last visit's old row
/// versions have left. So most new versions stay on their page, where they need no new index entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first block that is not done.
    pub next: u32,
    /// The first block that has not been visited.
    pub front: u32,
}

/// What a batch does with a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The blocks to look at.
    pub blocks: Range<u32>,
    /// Nothing may be left to do in the blocks before this one.
    pub done: u32,
}

impl Visit {
    /// A visit that leaves nothing to do in these blocks.
    pub fn only(blocks: Range<u32>) -> Visit {
        Visit { done: blocks.end, blocks }
    }
}

impl Window {
    /// A window that has nothing in it yet.
    pub fn at(next: u32) -> Window {
        Window { next, front: next }
    }

    /// The batch that moves the window on by so many blocks, visiting each block so many times, up to the end of the lane.
    pub fn visit(&self, blocks: u32, visits: u32, end: u32) -> Visit {
        let (front, done) = match self.front < end {
            true => {
                let front = self.front.saturating_add(blocks).min(end);
                (front, front.saturating_sub(blocks.saturating_mul(visits.saturating_sub(1))))
            }
            false => (end, self.next.saturating_add(blocks)),
        };
        // When batches have become smaller, the old window is worked off bit by bit.
        let most = self.next.saturating_add(blocks.saturating_mul(2)).min(front);
        Visit { blocks: self.next..front, done: done.clamp(self.next, most) }
    }

    /// The window after a visit.
    pub fn after(visit: &Visit) -> Window {
        Window { next: visit.done, front: visit.blocks.end }
    }
}

/// How many blocks the next batch moves on by, so that its own work takes about the target time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchSizer {
    target: Duration,
    /// Fractional, so that small sizes can grow slowly too.
    size: f64,
}

/// What a batch did, as far as its costs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The time that it took, without any waits.
    pub time: Duration,
    /// Rows that were written.
    pub written: u64,
    /// Rows that were looked at, in so many blocks.
    pub seen: u64,
    pub blocks: u32,
}

impl BatchSizer {
    const FIRST: f64 = 16.0;
    const MIN: f64 = 1.0;
    const MAX: f64 = 4096.0;
    /// What looking at a row costs, beside writing one.
    const LOOK: f64 = 1.0 / 16.0;

    /// A sizer that begins with a small batch.
    pub fn new(target: Duration) -> BatchSizer {
        BatchSizer { target, size: Self::FIRST }
    }

    /// Aims at another time from now on.
    pub fn set_target(&mut self, target: Duration) {
        if target < self.target {
            // What is too long now is known before it has been tried.
            let shrunk = self.size * target.as_secs_f64() / self.target.as_secs_f64();
            self.size = shrunk.max(Self::MIN);
        }
        self.target = target;
    }

    /// The size of the next batch.
    pub fn blocks(&self) -> u32 {
        self.size as u32
    }

    /// Learns from a batch, where each block is visited so many times in all. A visit may have little to write, as the
    /// first and the last do, but the size must be right for one that has: as if each row were to be written, once. Shrinks
    /// to the right size at once; grows half of the way, and never to more than double.
    pub fn record(&mut self, work: Work, visits: u32) {
        if work.blocks == 0 {
            return;
        }
        let units = work.written as f64 + work.seen as f64 * Self::LOOK;
        // The work may be too short for the clock to tell.
        let unit = work.time.as_secs_f64().max(1e-9) / units.max(1.0);
        let rows_per_block = work.seen as f64 / f64::from(work.blocks);
        let block = unit * (rows_per_block * (1.0 + f64::from(visits) * Self::LOOK)).max(0.1);
        let right = self.target.as_secs_f64() / block;
        let next = if right < self.size { right } else { ((self.size + right) / 2.0).min(self.size * 2.0) };
        self.size = next.clamp(Self::MIN, Self::MAX);
    }
}

/// A cap on the rows per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The cap; 0 for none.
    pub max_rows_per_second: u32,
}

impl RateLimit {
    /// The longest wait given at a time, so that a worker can look up in between.
    const MAX_WAIT: Duration = Duration::from_secs(1);

    /// How long to wait when so many rows were done in the time since the start. A pause must begin a new start, or
    /// the time it took would be made up for at full speed.
    pub fn wait(&self, rows: u64, elapsed: Duration) -> Duration {
        if self.max_rows_per_second == 0 {
            return Duration::ZERO;
        }
        let cap = u64::from(self.max_rows_per_second);
        let rest = Duration::from_nanos(rows % cap * 1_000_000_000 / cap);
        let due = Duration::from_secs(rows / cap) + rest;
        due.saturating_sub(elapsed).min(Self::MAX_WAIT)
    }
}

/// The speed over the last while, and the time left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    window: Duration,
    /// In the order of time; the first is the last one from before the window, if there is one.
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Duration,
    rows: u64,
    blocks: u64,
}

impl Rate {
    /// Samples closer together than this part of the window become one, which bounds how many are kept.
    const RESOLUTION: u32 = 64;

    /// A rate over a window of this length.
    pub fn new(window: Duration) -> Rate {
        Rate { window, samples: VecDeque::new() }
    }

    /// Learns how many rows and blocks have been done in all, so long after the start.
    pub fn record(&mut self, elapsed: Duration, rows: u64, blocks: u64) {
        let sample = Sample { at: elapsed, rows, blocks };
        let apart = self.window / Self::RESOLUTION;
        if let [.., before, last] = self.samples.make_contiguous()
            && last.at.saturating_sub(before.at) < apart
        {
            *last = sample;
        } else {
            self.samples.push_back(sample);
        }
        let begin = elapsed.saturating_sub(self.window);
        while self.samples.get(1).is_some_and(|second| second.at <= begin) {
            self.samples.pop_front();
        }
    }

    /// Rows per second, once there is something to tell it from.
    pub fn rows_per_second(&self) -> Option<f64> {
        self.per_second(|sample| sample.rows)
    }

    /// How long so many more blocks will take; `None` while nothing moves.
    pub fn eta(&self, blocks_left: u64) -> Option<Duration> {
        let speed = self.per_second(|sample| sample.blocks)?;
        Duration::try_from_secs_f64(blocks_left as f64 / speed).ok()
    }

    fn per_second(&self, count: impl Fn(&Sample) -> u64) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        (seconds > 0.0).then(|| count(last).saturating_sub(count(first)) as f64 / seconds)
    }
}

/// A duration for people, in its two largest units: `1h 02m`, `3m 20s`, `12s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// A number of rows for people: `1 row`, `1,234 rows`.
pub fn format_rows(rows: u64) -> String {
    if rows == 1 { "1 row".into() } else { format!("{} rows", format_count(rows)) }
}

/// A number for people: `1,234,567`.
pub fn format_count(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: Duration = Duration::from_millis(50);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_empty_table_has_no_lanes() {
        assert_eq!(lanes(0), []);
    }

    #[test]
    fn lanes_grow_with_the_table() {
        assert_eq!(lanes(1), [Lane { start: 0, end: 1 }]);
        assert_eq!(lanes(128).len(), 1);
        assert_eq!(lanes(129), [Lane { start: 0, end: 64 }, Lane { start: 64, end: 129 }]);
        assert_eq!(lanes(2000).len(), 8);
        assert_eq!(lanes(8 * 2048).len(), 8);
        assert_eq!(lanes(8 * 2048 + 1).len(), 9);
        assert_eq!(lanes(u32::MAX).len(), 64);
    }

    /// All visits of a lane, with batches of these sizes, the last one again and again.
    fn visits(end: u32, visits: u32, mut sizes: impl Iterator<Item = u32>) -> Vec<Visit> {
        let (mut window, mut all) = (Window::at(0), Vec::new());
        while window.next < end {
            let visit = window.visit(sizes.next().unwrap_or(1), visits, end);
            window = Window::after(&visit);
            all.push(visit);
        }
        all
    }

    #[test]
    fn a_window_visits_each_block_several_times() {
        let all = visits(10, 3, std::iter::repeat(2));
        let expected = [(0..2, 0), (0..4, 0), (0..6, 2), (2..8, 4), (4..10, 6), (6..10, 8), (8..10, 10)];
        assert_eq!(all, expected.map(|(blocks, done)| Visit { blocks, done }));
    }

    #[test]
    fn batches_are_short_in_short_lanes() {
        assert_eq!(most_blocks(512, 8), 32);
        assert_eq!(most_blocks(10_000, 8), 625);
        assert_eq!(most_blocks(10_000, 1), 5_000);
        assert_eq!(most_blocks(1, 8), 16);
    }

    #[test]
    fn a_window_of_one_visit_is_a_batch() {
        let all = visits(5, 1, std::iter::repeat(2));
        assert_eq!(all, [(0..2, 2), (2..4, 4), (4..5, 5)].map(|(blocks, done)| Visit { blocks, done }));
    }

    #[test]
    fn a_window_shrinks_bit_by_bit() {
        let window = Window { next: 100, front: 200 };
        assert_eq!(window.visit(2, 8, 1000), Visit { blocks: 100..202, done: 104 });
    }

    /// A batch of so many blocks of 80 rows, all of which are written, at this time per row.
    fn written(blocks: u32, per_row: Duration) -> Work {
        let rows = u64::from(blocks) * 80;
        Work { time: per_row * rows as u32 * 17 / 16, written: rows, seen: rows, blocks }
    }

    #[test]
    fn batches_reach_the_target_time() {
        let mut sizer = BatchSizer::new(TARGET);
        for _ in 0..20 {
            sizer.record(written(sizer.blocks(), Duration::from_micros(2)), 1);
        }
        // 50 ms at 2 µs a row are 25,000 rows.
        assert!((290..=295).contains(&sizer.blocks()), "{sizer:?}");
    }

    #[test]
    fn a_visit_that_writes_little_teaches_the_same() {
        let mut sizer = BatchSizer::new(TARGET);
        for share in (1..=16).cycle().take(100) {
            let seen = u64::from(sizer.blocks()) * 8 * 80;
            let written = seen * share / 128;
            let time = Duration::from_micros(2 * written) + Duration::from_nanos(125 * seen);
            sizer.record(Work { time, written, seen, blocks: sizer.blocks() * 8 }, 8);
            assert!(sizer.blocks() <= 210, "{sizer:?}");
        }
        // Of what a block takes in all its visits, a third is for looking at it.
        assert!((200..=210).contains(&sizer.blocks()), "{sizer:?}");
    }

    #[test]
    fn a_slow_batch_shrinks_the_next_at_once() {
        let mut sizer = BatchSizer::new(TARGET);
        sizer.record(written(16, Duration::from_micros(147)), 1);
        assert_eq!(sizer.blocks(), 4);
        sizer.record(written(4, Duration::from_millis(10)), 1);
        assert_eq!(sizer.blocks(), 1);
    }

    #[test]
    fn a_fast_batch_doubles_the_next_at_most() {
        let mut sizer = BatchSizer::new(TARGET);
        sizer.record(written(16, Duration::ZERO), 1);
        assert_eq!(sizer.blocks(), 32);
        sizer.record(Work { time: TARGET, ..Work::default() }, 1);
        assert_eq!(sizer.blocks(), 32);
        // Blocks without rows cost next to nothing.
        sizer.record(Work { time: Duration::from_micros(10), blocks: 32, ..Work::default() }, 1);
        assert_eq!(sizer.blocks(), 64);
    }

    #[test]
    fn sizes_grow_from_one_again() {
        let mut sizer = BatchSizer::new(TARGET);
        sizer.record(written(16, Duration::from_millis(10)), 1);
        for _ in 0..20 {
            sizer.record(written(sizer.blocks(), Duration::from_micros(400)), 1);
        }
        assert_eq!(sizer.blocks(), 1);
        for _ in 0..20 {
            sizer.record(written(sizer.blocks(), Duration::from_micros(140)), 1);
        }
        assert_eq!(sizer.blocks(), 4);
    }

    #[test]
    fn another_target_counts_at_once() {
        let mut sizer = BatchSizer::new(TARGET);
        sizer.set_target(TARGET / 8);
        assert_eq!(sizer.blocks(), 2);
    }

    #[test]
    fn a_rate_limit_waits_until_the_rows_are_due() {
        let limit = RateLimit { max_rows_per_second: 1000 };
        assert_eq!(limit.wait(500, ms(100)), ms(400));
        assert_eq!(limit.wait(500, ms(500)), Duration::ZERO);
        assert_eq!(limit.wait(500, ms(900)), Duration::ZERO);
        assert_eq!(limit.wait(60_000, ms(100)), ms(1000));
        assert_eq!(limit.wait(0, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn no_rate_limit_never_waits() {
        let limit = RateLimit { max_rows_per_second: 0 };
        assert_eq!(limit.wait(u64::MAX, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_rate_forgets_what_is_before_its_window() {
        let mut rate = Rate::new(ms(10_000));
        assert_eq!((rate.rows_per_second(), rate.eta(1)), (None, None));
        rate.record(ms(0), 0, 0);
        assert_eq!((rate.rows_per_second(), rate.eta(1)), (None, None));
        rate.record(ms(10_000), 1000, 100);
        assert_eq!(rate.rows_per_second(), Some(100.0));
        assert_eq!(rate.eta(50), Some(ms(5000)));
        rate.record(ms(20_000), 3000, 300);
        assert_eq!(rate.rows_per_second(), Some(200.0));
        assert_eq!(rate.eta(0), Some(Duration::ZERO));
    }

    #[test]
    fn a_standstill_has_no_end() {
        let mut rate = Rate::new(ms(1000));
        rate.record(ms(0), 5, 5);
        rate.record(ms(1000), 5, 5);
        assert_eq!(rate.rows_per_second(), Some(0.0));
        assert_eq!((rate.eta(1), rate.eta(0)), (None, None));
    }

    #[test]
    fn many_samples_are_kept_as_few() {
        let mut rate = Rate::new(ms(1000));
        for at in 0..100_000 {
            rate.record(Duration::from_micros(at * 100), at, at);
        }
        assert!(rate.samples.len() <= 2 * Rate::RESOLUTION as usize);
        let speed = rate.rows_per_second().unwrap();
        assert!((speed - 10_000.0).abs() < 1.0, "{speed}");
    }

    #[test]
    fn durations_for_people() {
        let format = |seconds| format_duration(Duration::from_secs(seconds));
        assert_eq!(format_duration(ms(900)), "0s");
        assert_eq!(format(12), "12s");
        assert_eq!(format(200), "3m 20s");
        assert_eq!(format(3720), "1h 02m");
        assert_eq!(format(2 * 86_400 + 3 * 3600), "2d 03h");
    }

    #[test]
    fn counts_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(format_count(number), text);
        }
        assert_eq!(format_count(u64::MAX), "18,446,744,073,709,551,615");
    }

    proptest! {
        /// Whatever the sizes: each block is done once, in order, on its last visit, and never left out.
        #[test]
        fn windows_leave_nothing_out(end in 1u32..300, count in 1u32..9, sizes in prop::collection::vec(1u32..60, 0..40)) {
            let mut done = 0;
            let mut front = 0;
            for visit in visits(end, count, sizes.into_iter()) {
                prop_assert_eq!(visit.blocks.start, done);
                prop_assert!(visit.done >= done && visit.done <= visit.blocks.end);
                prop_assert!(visit.blocks.end >= front && visit.blocks.end <= end);
                prop_assert!(visit.done > done || visit.blocks.end > front);
                (done, front) = (visit.done, visit.blocks.end);
            }
            prop_assert_eq!((done, front), (end, end));
        }

        #[test]
        fn lanes_cover_every_block_once(blocks in prop_oneof![0u32..100_000, any::<u32>()]) {
            let lanes = lanes(blocks);
            prop_assert!(lanes.len() <= MAX_LANES as usize);
            let mut next = 0;
            for lane in &lanes {
                prop_assert_eq!(lane.start, next);
                prop_assert!(lane.start < lane.end);
                next = lane.end;
            }
            prop_assert_eq!(next, blocks);
            let sizes = || lanes.iter().map(|lane| lane.end - lane.start);
            prop_assert!(sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0) <= 1);
        }

        #[test]
        fn batch_sizes_stay_in_bounds(
            target in any::<Duration>(),
            batches in prop::collection::vec((any::<Duration>(), any::<u64>(), any::<u64>(), any::<u32>()), 0..50),
            visits in 1u32..10,
        ) {
            let mut sizer = BatchSizer::new(target);
            for (time, written, seen, blocks) in batches {
                let before = sizer.size;
                sizer.record(Work { time, written, seen, blocks }, visits);
                prop_assert!((1..=4096).contains(&sizer.blocks()));
                prop_assert!(sizer.size <= before * 2.0);
            }
        }

        #[test]
        fn waits_are_bounded(rows in any::<u64>(), elapsed in any::<Duration>(), max_rows_per_second in any::<u32>()) {
            let wait = RateLimit { max_rows_per_second }.wait(rows, elapsed);
            prop_assert!(wait <= Duration::from_secs(1));
        }

        #[test]
        fn rates_never_panic(window in any::<Duration>(), samples in prop::collection::vec(any::<(Duration, u64, u64)>(), 0..20), left in any::<u64>()) {
            let mut rate = Rate::new(window);
            for (elapsed, rows, blocks) in samples {
                rate.record(elapsed, rows, blocks);
                prop_assert!(rate.rows_per_second().is_none_or(|speed| speed >= 0.0));
                rate.eta(left);
            }
        }
    }
}
