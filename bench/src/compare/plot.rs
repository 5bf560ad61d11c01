//! Owns: a line chart as SVG text: axes, a line a series with its spread, a legend.
//! Never: computes what it shows. Flow: a preset fills a `Chart` -> text beside the report.
//!
//! Across, equal steps or each a factor; up starts at 0, so that heights compare, or goes by
//! factors as well.

mod bars;
mod ink;
mod look;

pub use bars::{Bar, Bars};

use self::{
    ink::{Ink, WIDTH, dash_attribute, equal_ticks, factor_ticks, number, words_width},
    look::Look,
};
use super::summary::Spread;

const HEIGHT: f64 = 420.0;
const LEFT: f64 = 84.0;
/// Room for the legend, beside the lines.
const RIGHT: f64 = 246.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
/// Between two names of the legend.
const NAMES: f64 = 18.0;
/// A line of more points has marks at so many of them, and its spread there.
const MARKS_MAX: usize = 16;

/// How far apart values are drawn.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Steps {
    #[default]
    Equal,
    /// Ten times as much is as far as ten times that; values are above 0.
    Factors,
}

pub struct Series {
    pub name: String,
    /// Whose it is: the target that gives it its colour.
    pub owner: String,
    /// Which of the owner's: each has another dash.
    pub turn: usize,
    /// Ascending.
    pub points: Vec<(f64, Spread)>,
}

pub struct Chart {
    pub title: String,
    pub across: String,
    pub up: String,
    pub series: Vec<Series>,
    pub across_steps: Steps,
    pub up_steps: Steps,
    /// Where there are marks across, and what stands there; empty: at each value.
    pub marks: Vec<(f64, String)>,
}

/// Marks at round values from 0 on, for a chart that goes to `end`.
pub fn marks(end: f64) -> Vec<(f64, String)> {
    equal_ticks(end).into_iter().map(|value| (value, number(value))).collect()
}

/// From values to the place in the picture.
struct Scale {
    from: f64,
    to: f64,
    bottom: f64,
    top: f64,
    across: Steps,
    up: Steps,
    /// Where values of `bottom` are drawn.
    floor: f64,
}

impl Steps {
    /// The part of the way from one value to another at which a third lies.
    fn part(self, value: f64, from: f64, to: f64) -> f64 {
        match self {
            Steps::Equal => (value - from) / (to - from).max(f64::MIN_POSITIVE),
            Steps::Factors => (value / from).ln() / (to / from).ln().max(f64::MIN_POSITIVE),
        }
    }
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        if self.to <= self.from {
            return f64::midpoint(LEFT, WIDTH - RIGHT); // a single point
        }
        LEFT + self.across.part(value, self.from, self.to) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let part = self.up.part(value, self.bottom, self.top).max(0.0);
        self.floor - part * (self.floor - TOP)
    }
}

impl Chart {
    pub fn svg(&self) -> String {
        let mut across: Vec<f64> =
            self.series.iter().flat_map(|series| series.points.iter().map(|at| at.0)).collect();
        across.sort_by(f64::total_cmp);
        across.dedup();
        let greatest = self
            .series
            .iter()
            .flat_map(|series| series.points.iter().map(|at| at.1.max))
            .fold(0.0, f64::max);
        let least = self.series.iter().flat_map(|series| series.points.iter().map(|at| at.1.min));
        let least = least.fold(f64::INFINITY, f64::min);
        let ticks = match self.up_steps {
            Steps::Equal => equal_ticks(greatest),
            Steps::Factors => factor_ticks(least, greatest),
        };
        let height = HEIGHT.max(TOP + BOTTOM + NAMES * self.series.len() as f64);
        let scale = Scale {
            from: across.first().copied().unwrap_or(1.0),
            to: across.last().copied().unwrap_or(1.0),
            bottom: ticks.first().copied().unwrap_or(0.0),
            top: ticks.last().copied().unwrap_or(1.0),
            across: self.across_steps,
            up: self.up_steps,
            floor: height - BOTTOM,
        };
        let all = || across.iter().map(|value| (*value, number(*value))).collect();
        let marks = if self.marks.is_empty() { all() } else { self.marks.clone() };
        let mut ink = Ink::new(height, &self.title);
        self.axes(&mut ink, &scale, &marks, &ticks);
        for (at, series) in self.series.iter().enumerate() {
            let look = look::of(&series.owner, series.turn);
            line(&mut ink, &scale, series, look);
            let y = TOP + 8.0 + NAMES * at as f64;
            let x = WIDTH - RIGHT + 14.0;
            ink.dashed((x, y - 4.0), (x + 30.0, y - 4.0), (look.color, look.dash), 2.0);
            look.put_mark(&mut ink, (x + 15.0, y - 4.0));
            ink.text((x + 37.0, y), "start", &series.name);
        }
        ink.finish()
    }

    fn axes(&self, ink: &mut Ink, scale: &Scale, marks: &[(f64, String)], ticks: &[f64]) {
        let (floor, end) = (scale.floor, WIDTH - RIGHT);
        for value in ticks {
            let y = scale.y(*value);
            ink.stroke((LEFT, y), (end, y), "#dddddd", 1.0);
            ink.text((LEFT - 8.0, y + 4.0), "end", &number(*value));
        }
        let mut words_end = f64::NEG_INFINITY;
        let is_inside = |value: f64| value >= scale.from && value <= scale.to;
        for (value, name) in marks.iter().filter(|(value, _)| is_inside(*value)) {
            let (x, half) = (scale.x(*value), words_width(name) / 2.0);
            ink.stroke((x, floor), (x, floor + 5.0), "black", 1.0);
            // One that would stand on its neighbour is left out.
            if x - half > words_end {
                ink.text((x, floor + 20.0), "middle", name);
                words_end = x + half;
            }
        }
        ink.stroke((LEFT, floor), (end, floor), "black", 1.0);
        ink.stroke((LEFT, TOP), (LEFT, floor), "black", 1.0);
        ink.text((f64::midpoint(LEFT, end), floor + BOTTOM - 14.0), "middle", &self.across);
        ink.text_upwards((16.0, f64::midpoint(TOP, floor)), &self.up);
    }
}

/// The line through the medians, and at its marks a bar from the least to the greatest.
fn line(ink: &mut Ink, scale: &Scale, series: &Series, look: Look) {
    let at: Vec<String> = series
        .points
        .iter()
        .map(|(value, spread)| format!("{:.1},{:.1}", scale.x(*value), scale.y(spread.median)))
        .collect();
    ink.line(&format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>",
        at.join(" "),
        look.color,
        dash_attribute(look.dash)
    ));
    let every =
        if series.points.len() > MARKS_MAX { series.points.len() / MARKS_MAX + 1 } else { 1 };
    for (value, spread) in series.points.iter().step_by(every) {
        let x = scale.x(*value);
        ink.stroke((x, scale.y(spread.min)), (x, scale.y(spread.max)), look.color, 1.5);
        look.put_mark(ink, (x, scale.y(spread.median)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_medians_from_edge_to_edge() {
        let at = |median: f64| Spread { median, min: median - 10.0, max: median + 10.0 };
        let series = |name: &str, points: Vec<(f64, Spread)>| Series {
            name: name.into(),
            owner: name.into(),
            turn: 0,
            points,
        };
        let one = series("a<b", vec![(1.0, at(90.0)), (4.0, at(490.0))]);
        let two = series("other", vec![(2.0, at(300.0))]);
        let chart = Chart {
            title: "speed".into(),
            across: "seeders".into(),
            up: "MiB/s".into(),
            series: vec![one, two],
            across_steps: Steps::Factors,
            up_steps: Steps::Equal,
            marks: Vec::new(),
        };
        let svg = chart.svg();
        // 0..500 over 320 units above the floor at 364; 1..4 from 84 to 704.
        assert!(svg.contains("points=\"84.0,306.4 704.0,50.4\""), "{svg}");
        assert!(svg.contains("cx=\"394.0\" cy=\"172.0\""), "{svg}");
        assert!(svg.contains(">a&lt;b</text>") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}
