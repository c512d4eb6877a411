//! The charts of the comparison. Every axis begins at 0.

use pg_zdd_cluster::Result;

use crate::backfill::Backfill;
use crate::lifecycle::{Felt, Lifecycle, STEPS, STRETCH};
use crate::report::{NotRun, docs};
use crate::stats::thousands;
use crate::svg::{ALARM, Anchor, FAINT, GRID, INK, Svg, marks};
use crate::writes::{OPERATIONS, Writes};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
const BOLD: &str = "font-weight=\"bold\"";

pub fn write(name: &str, svg: &str) -> Result<()> {
    let dir = docs().join("charts");
    std::fs::create_dir_all(&dir)?;
    Ok(std::fs::write(dir.join(name).with_extension("svg"), svg)?)
}

pub fn rows_per_second(backfill: &Backfill) -> String {
    let groups = backfill.sizes.iter().map(|size| Group {
        title: format!("{} rows", thousands(size.rows as f64)),
        bars: size
            .contenders
            .iter()
            .map(|figures| {
                let value = size.rows_per_second(figures);
                let label = value.map_or("failed".into(), thousands);
                let speed = |seconds: Option<f64>| seconds.map(|seconds| size.rows as f64 / seconds);
                let range = speed(figures.seconds.max()).zip(speed(figures.seconds.min()));
                Bar { name: figures.name.clone(), value, range, label }
            })
            .collect(),
    });
    bars("Backfill: rows per second, more is better", "rows/s", groups.collect(), &backfill.not_run)
}

pub fn per_row_cost(writes: &Writes) -> String {
    let groups = OPERATIONS.iter().enumerate().map(|(operation, title)| Group {
        title: title.to_string(),
        bars: writes
            .contenders
            .iter()
            .map(|costs| {
                let micros = &costs.micros[operation];
                let label = micros.median().map_or("failed".into(), |value| format!("{value:.1}"));
                let range = micros.min().zip(micros.max());
                Bar { name: costs.name.clone(), value: micros.median(), range, label }
            })
            .collect(),
    });
    let title = "A write of the old application: microseconds per row, less is better";
    bars(title, "µs per row", groups.collect(), &writes.not_run)
}

/// One colour for each kind of contender.
fn colour(name: &str) -> &'static str {
    match name {
        "floor" => "#9aa4ae",
        "pgroll" | "Reshape" => "#8e6bbf",
        name if name.starts_with("pg_zdd") => "#1f6fb4",
        _ => "#d9822b",
    }
}

struct Group {
    title: String,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    value: Option<f64>,
    /// The least and the most of all rounds.
    range: Option<(f64, f64)>,
    label: String,
}

/// Horizontal bars in groups, all on one scale. A line in each bar's end shows the range of all rounds.
fn bars(title: &str, unit: &str, groups: Vec<Group>, not_run: &[NotRun]) -> String {
    const ROW: f64 = 19.0;
    const HEAD: f64 = 26.0;
    const TOP: f64 = 44.0;
    let rows = groups.iter().map(|group| HEAD + ROW * group.bars.len() as f64).sum::<f64>();
    let bottom = TOP + rows + 8.0;
    let mut svg = Svg::new(WIDTH, bottom + 46.0 + 16.0 * not_run.len() as f64);
    svg.text(LEFT, 26.0, Anchor::Start, "font-size=\"15\" font-weight=\"bold\"", title);

    let values = groups.iter().flat_map(|group| group.bars.iter().filter_map(|bar| Some(bar.range?.1)));
    let marks = marks(values.fold(0.0, f64::max));
    // Room for the label of the longest bar.
    let scale = (WIDTH - LEFT - RIGHT - 60.0) / marks.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    for &mark in &marks {
        let x = LEFT + mark * scale;
        svg.line((x, TOP), (x, bottom), GRID);
        svg.text(x, bottom + 16.0, Anchor::Middle, &fill(FAINT), &thousands(mark));
    }
    svg.text(LEFT, bottom + 34.0, Anchor::Start, &fill(FAINT), &format!("{unit}; line: range of all rounds"));

    let mut y = TOP;
    for group in groups {
        svg.text(12.0, y + 18.0, Anchor::Start, BOLD, &group.title);
        y += HEAD;
        for bar in group.bars {
            svg.text(LEFT - 8.0, y + 13.0, Anchor::End, "", &bar.name);
            let width = bar.value.unwrap_or_default() * scale;
            svg.rect(LEFT, y + 2.0, width.max(1.0), ROW - 5.0, colour(&bar.name));
            let (least, most) = bar.range.unwrap_or_default();
            let middle = y + ROW / 2.0 - 0.5;
            svg.line((LEFT + least * scale, middle), (LEFT + most * scale, middle), INK);
            svg.text(LEFT + most * scale + 5.0, y + 13.0, Anchor::Start, "", &bar.label);
            y += ROW;
        }
    }
    for (number, left_out) in not_run.iter().enumerate() {
        let text = format!("not run: {}: {}", left_out.name, left_out.reason);
        svg.text(LEFT, bottom + 52.0 + 16.0 * number as f64, Anchor::Start, &fill(FAINT), &text);
    }
    svg.finish()
}

/// The colour of a step's background.
fn shade(step: usize) -> &'static str {
    ["#ffffff", "#ffe3b8", "#fff4d6", "#e4f3e1", "#dbe9f8"][step]
}

/// How long the applications waited, from before the change until after it: a panel for each contender, all on the
/// same axes. What is higher than the axis is cut off, in another colour; the panel's head has the number.
pub fn latency(lifecycle: &Lifecycle) -> String {
    const PANEL: f64 = 80.0;
    const HEAD: f64 = 30.0;
    const TOP: f64 = 76.0;
    const X: f64 = 56.0;
    const MOST_MS: f64 = 500.0;
    let Some(load) = lifecycle.loads.first() else { return Svg::new(WIDTH, 40.0).finish() };
    let panels: Vec<&Felt> = load.contenders.iter().filter(|felt| !felt.rounds.is_empty()).collect();
    let bottom = TOP + (PANEL + HEAD) * panels.len() as f64;
    let mut svg = Svg::new(WIDTH, bottom + 44.0);
    let rate = load.rate.map(thousands).unwrap_or_default();
    let title = format!(
        "The longest wait of a statement in every 0.1 s, {rate} statements/s ({}), {} rows",
        load.name,
        thousands(lifecycle.rows as f64)
    );
    svg.text(X, 26.0, Anchor::Start, "font-size=\"15\" font-weight=\"bold\"", &title);
    let mut x = X;
    for (number, step) in STEPS.iter().enumerate().skip(1) {
        svg.rect(x, 40.0, 14.0, 14.0, shade(number));
        svg.text(x + 20.0, 51.0, Anchor::Start, "", step);
        x += 40.0 + 7.0 * step.len() as f64;
    }
    svg.rect(x, 40.0, 14.0, 14.0, ALARM);
    svg.text(x + 20.0, 51.0, Anchor::Start, "", &format!("cut off at {MOST_MS:.0} ms"));

    let seconds = panels.iter().map(|felt| felt.rounds[0].worst_waits.len() as f64 * STRETCH).fold(1.0, f64::max);
    let waits = panels.iter().flat_map(|felt| felt.rounds[0].worst_waits.iter().copied());
    let marks_ms = marks(waits.fold(1.0, f64::max).min(MOST_MS));
    let most = marks_ms.last().copied().unwrap_or(MOST_MS);
    let (across, up) = ((WIDTH - X - RIGHT) / seconds, PANEL / most);
    for (number, felt) in panels.iter().enumerate() {
        let round = &felt.rounds[0];
        let ground = TOP + (PANEL + HEAD) * number as f64 + HEAD - 8.0 + PANEL;
        for (step, span) in round.steps.iter().enumerate().skip(1) {
            if let Some(span) = span {
                // A step of milliseconds is still to be seen.
                let width = ((span.to - span.from) * across).max(2.0);
                svg.rect(X + span.from * across, ground - PANEL, width, PANEL, shade(step));
            }
        }
        for &mark in &marks_ms {
            let y = ground - mark * up;
            svg.line((X, y), (WIDTH - RIGHT, y), GRID);
            if mark == 0.0 || mark == most {
                svg.text(X - 6.0, y + 4.0, Anchor::End, &fill(FAINT), &format!("{mark:.0} ms"));
            }
        }
        for (place, &wait) in round.worst_waits.iter().enumerate() {
            let height = wait.min(most) * up;
            let colour = if wait > most { ALARM } else { colour(&felt.name) };
            svg.rect(X + place as f64 * STRETCH * across, ground - height, STRETCH * across * 0.85, height, colour);
        }
        let head = ground - PANEL - 6.0;
        svg.text(X, head, Anchor::Start, BOLD, &felt.name);
        let worst = round.worst_waits.iter().copied().fold(0.0, f64::max);
        let failed: usize = round.steps.iter().flatten().map(|step| step.felt.failed).sum();
        let (style, failed) = match failed {
            0 => (fill(FAINT), "none failed".to_owned()),
            failed => (fill(ALARM), format!("{} failed", thousands(failed as f64))),
        };
        let text = format!("longest wait {} ms, {failed}", thousands(worst));
        svg.text(WIDTH - RIGHT, head, Anchor::End, &style, &text);
    }
    for mark in marks(seconds).into_iter().filter(|&mark| mark <= seconds) {
        svg.text(X + mark * across, bottom + 14.0, Anchor::Middle, &fill(FAINT), &format!("{mark:.0} s"));
    }
    svg.text(X, bottom + 32.0, Anchor::Start, &fill(FAINT), "seconds since the applications began");
    svg.finish()
}

fn fill(colour: &str) -> String {
    format!("fill=\"{colour}\"")
}
