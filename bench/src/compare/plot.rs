//! Owns: a line chart as SVG text: axes, a line a series with its spread, a legend.
//! Never: computes what it shows. Flow: a preset fills a `Chart` -> text beside the report.
//!
//! Across, equal steps or each a factor; up starts at 0, so that heights compare, or goes by
//! factors as well.

use std::fmt::Write as _;

use super::summary::Spread;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
/// Room for the legend, beside the lines.
const RIGHT: f64 = 170.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
const TICKS: f64 = 5.0;
const COLORS: [&str; 8] =
    ["#0b6e4f", "#c1440e", "#3366aa", "#8a5a00", "#6a3d9a", "#b0126b", "#4d4d4d", "#1b9e9e"];

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
    /// Ascending, all above 0.
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

/// From values to the place in the picture.
struct Scale {
    from: f64,
    to: f64,
    bottom: f64,
    top: f64,
    across: Steps,
    up: Steps,
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
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
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
        let scale = Scale {
            from: across.first().copied().unwrap_or(1.0),
            to: across.last().copied().unwrap_or(1.0),
            bottom: ticks.first().copied().unwrap_or(0.0),
            top: ticks.last().copied().unwrap_or(1.0),
            across: self.across_steps,
            up: self.up_steps,
        };
        let all = || across.iter().map(|value| (*value, value.to_string())).collect();
        let marks = if self.marks.is_empty() { all() } else { self.marks.clone() };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut out, (WIDTH / 2.0, 22.0), "middle", &self.title);
        self.axes(&mut out, &scale, &marks, &ticks);
        for (number, series) in self.series.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            line(&mut out, &scale, series, color);
            let y = TOP + 8.0 + 18.0 * number as f64;
            let x = WIDTH - RIGHT + 14.0;
            stroke(&mut out, (x, y - 4.0), (x + 22.0, y - 4.0), color, 2.0);
            text(&mut out, (x + 28.0, y), "start", &series.name);
        }
        out.push_str("</svg>\n");
        out
    }

    fn axes(&self, out: &mut String, scale: &Scale, marks: &[(f64, String)], ticks: &[f64]) {
        let (floor, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for value in ticks {
            let y = scale.y(*value);
            stroke(out, (LEFT, y), (end, y), "#dddddd", 1.0);
            text(out, (LEFT - 8.0, y + 4.0), "end", &value.to_string());
        }
        for (value, name) in marks {
            let x = scale.x(*value);
            stroke(out, (x, floor), (x, floor + 5.0), "black", 1.0);
            text(out, (x, floor + 20.0), "middle", name);
        }
        stroke(out, (LEFT, floor), (end, floor), "black", 1.0);
        stroke(out, (LEFT, TOP), (LEFT, floor), "black", 1.0);
        text(out, ((LEFT + end) / 2.0, HEIGHT - 14.0), "middle", &self.across);
        let middle = f64::midpoint(TOP, floor);
        let _ = writeln!(
            out,
            "<text transform=\"translate(18 {middle}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            escaped(&self.up)
        );
    }
}

/// The line through the medians, and at each a bar from the least to the greatest.
fn line(out: &mut String, scale: &Scale, series: &Series, color: &str) {
    let at: Vec<String> = series
        .points
        .iter()
        .map(|(value, spread)| format!("{:.1},{:.1}", scale.x(*value), scale.y(spread.median)))
        .collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        at.join(" ")
    );
    for (value, spread) in &series.points {
        let x = scale.x(*value);
        stroke(out, (x, scale.y(spread.min)), (x, scale.y(spread.max)), color, 1.5);
        let y = scale.y(spread.median);
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{color}\"/>");
    }
}

/// From 0 to what is not below `greatest`, by a round step.
fn equal_ticks(greatest: f64) -> Vec<f64> {
    let step = nice_step(greatest / TICKS);
    let count = (greatest / step).ceil().max(1.0) as u32;
    // Of a step such as 0.05 the multiples have no short name.
    let round = |value: f64| (value * 1e9).round() / 1e9;
    (0..=count).map(|tick| round(f64::from(tick) * step)).collect()
}

/// Powers of ten around these values.
fn factor_ticks(least: f64, greatest: f64) -> Vec<f64> {
    let (from, to) = (least.max(1e-3).log10().floor(), greatest.max(1e-3).log10().ceil());
    (from as i32..=(to as i32).max(from as i32 + 1)).map(|power| 10_f64.powi(power)).collect()
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn nice_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    let fits = |factor: &f64| factor * power >= least * 0.999;
    power * [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0)
}

fn stroke(out: &mut String, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        at.0,
        at.1,
        escaped(words)
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (least, step) in
            [(0.0, 1.0), (73.0, 100.0), (150.0, 200.0), (201.0, 500.0), (6.0, 10.0)]
        {
            assert!((nice_step(least) - step).abs() < 1e-9, "{least}");
        }
    }

    #[test]
    fn a_line_goes_through_its_medians_from_edge_to_edge() {
        let at = |median: f64| Spread { median, min: median - 10.0, max: median + 10.0 };
        let one = Series { name: "a<b".into(), points: vec![(1.0, at(90.0)), (4.0, at(490.0))] };
        let two = Series { name: "other".into(), points: vec![(2.0, at(300.0))] };
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
        // 0..500 over 320 units above the floor at 364; 1..4 from 70 to 690.
        assert!(svg.contains("points=\"70.0,306.4 690.0,50.4\""), "{svg}");
        assert!(svg.contains("cx=\"380.0\" cy=\"172.0\""), "{svg}");
        assert!(svg.contains(">a&lt;b</text>") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}
