//! Owns: bars as SVG text: a row each target and point, its median with the least and the greatest.
//! Never: computes what it shows. Flow: `pictures` fills `Bars` -> text beside the report.
//!
//! They lie, because names are long; they begin at 0, so that lengths compare; and each has its
//! figure written beside it, so that a short one is read as well.

use super::{
    super::summary::Spread,
    ink::{Ink, WIDTH, equal_ticks, number, words_width},
    look,
};

const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;
const ROW: f64 = 20.0;
const BAR: f64 = 14.0;
/// Between two targets.
const APART: f64 = 8.0;
const EDGE: f64 = 14.0;

pub struct Bar {
    pub target: String,
    /// What was varied; not shown where it is the same for all.
    pub point: String,
    pub spread: Spread,
}

pub struct Bars {
    pub title: String,
    pub unit: String,
    pub digits: usize,
    /// Those of one target follow one another.
    pub bars: Vec<Bar>,
}

impl Bars {
    pub fn svg(&self) -> String {
        let points: Vec<&str> = self.bars.iter().map(|bar| bar.point.as_str()).collect();
        let one_point = points.windows(2).all(|pair| pair[0] == pair[1]);
        let title = match points.first() {
            Some(point) if one_point && !point.is_empty() => format!("{} ({point})", self.title),
            _ => self.title.clone(),
        };
        let widest = |words: &dyn Fn(&Bar) -> String| {
            self.bars.iter().map(|bar| words_width(&words(bar))).fold(0.0, f64::max)
        };
        let names_end = EDGE + widest(&|bar| bar.target.clone());
        let points_end =
            if one_point { names_end } else { names_end + 14.0 + widest(&|bar| bar.point.clone()) };
        let from = points_end + 10.0;
        let to = WIDTH - EDGE - 10.0 - widest(&|bar| self.figure(bar));
        let ticks = equal_ticks(self.bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max));
        let most = ticks.last().copied().unwrap_or(1.0);
        let x = |value: f64| from + (value / most).clamp(0.0, 1.0) * (to - from);
        let rows = self.rows();
        let floor = rows.last().map_or(TOP, |(y, _)| y + ROW) + 2.0;
        let mut ink = Ink::new(floor + BOTTOM, &title);
        let mut words_end = f64::NEG_INFINITY;
        for tick in ticks {
            ink.stroke((x(tick), TOP - 4.0), (x(tick), floor), "#dddddd", 1.0);
            let (words, half) = (number(tick), words_width(&number(tick)) / 2.0);
            if x(tick) - half > words_end + 6.0 {
                ink.text((x(tick), floor + 18.0), "middle", &words);
                words_end = x(tick) + half;
            }
        }
        for (at, (y, bar)) in rows.iter().enumerate() {
            let is_first = at == 0 || rows[at - 1].1.target != bar.target;
            if is_first {
                ink.text((names_end, y + 14.0), "end", &bar.target);
            }
            if !one_point {
                ink.text((points_end, y + 14.0), "end", &bar.point);
            }
            let look = look::of(&bar.target, 0);
            ink.line(&format!(
                "<rect class=\"bar\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
                 height=\"{BAR}\" fill=\"{}\"/>",
                y + 3.0,
                (x(bar.spread.median) - from).max(1.0),
                look.color
            ));
            self.put_spread(&mut ink, bar, (x(bar.spread.min), x(bar.spread.max)), y + 10.0);
        }
        ink.stroke((from, TOP - 4.0), (from, floor), "black", 1.0);
        ink.text((f64::midpoint(from, to), floor + 40.0), "middle", &self.unit);
        ink.finish()
    }

    /// From the least to the greatest, and the figure after it.
    fn put_spread(&self, ink: &mut Ink, bar: &Bar, (least, greatest): (f64, f64), y: f64) {
        if greatest - least >= 1.0 {
            // White below, so that it is seen on the bar too.
            ink.stroke((least, y), (greatest, y), "white", 3.0);
            ink.stroke((least, y), (greatest, y), "black", 1.0);
            for end in [least, greatest] {
                ink.stroke((end, y - 3.0), (end, y + 3.0), "black", 1.0);
            }
        }
        ink.text((greatest + 7.0, y + 4.0), "start", &self.figure(bar));
    }

    fn figure(&self, bar: &Bar) -> String {
        let text = format!("{:.*}", self.digits, bar.spread.median);
        // Grouped like the axis, where there is nothing after the point.
        match text.parse::<f64>() {
            Ok(value) if self.digits == 0 => number(value),
            _ => text,
        }
    }

    /// Where each begins.
    fn rows(&self) -> Vec<(f64, &Bar)> {
        let mut y = TOP;
        let mut before: Option<&str> = None;
        let mut rows = Vec::new();
        for bar in &self.bars {
            if before.is_some_and(|before| before != bar.target) {
                y += APART;
            }
            rows.push((y, bar));
            before = Some(&bar.target);
            y += ROW;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(target: &str, point: &str, median: f64) -> Bar {
        let spread = Spread { median, min: median * 0.9, max: median * 1.1 };
        Bar { target: target.into(), point: point.into(), spread }
    }

    #[test]
    fn a_bar_is_as_long_as_its_figure_and_says_it() {
        let bars = vec![bar("a", "first", 10.0), bar("a", "second", 5.0), bar("b<c", "first", 0.0)];
        let mut bars = Bars { title: "start".into(), unit: "seconds".into(), digits: 1, bars };
        let svg = bars.svg();
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("class=\"bar\""))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] - 2.0 * widths[1]).abs() < 0.2 && widths[2] <= 1.0, "{widths:?}");
        for words in [">10.0<", ">5.0<", ">0.0<", ">b&lt;c<", ">first<", ">second<", ">seconds<"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert_eq!(svg.matches(">a<").count(), 1, "a name stands once");
        bars.bars.remove(1);
        let svg = bars.svg();
        assert!(svg.contains(">start (first)<") && !svg.contains(">first<"), "{svg}");
    }
}
