//! Owns: what all pictures are drawn with: SVG text, numbers as people read them, round steps of an
//! axis.
//! Never: knows what is shown. Flow: a picture asks for strokes and words -> SVG text.

use std::fmt::Write as _;

/// Of every picture, so that letters are of one size on a page.
pub const WIDTH: f64 = 950.0;
/// A letter is this wide, on the wide side: what is drawn beside words keeps clear of them.
pub const LETTER: f64 = 7.3;
const TICKS: f64 = 5.0;

pub struct Ink(String);

impl Ink {
    pub fn new(height: f64, title: &str) -> Ink {
        let mut ink = Ink(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n<title>{}</title>\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n",
            escaped(title)
        ));
        ink.line(&format!(
            "<text x=\"{:.1}\" y=\"22.0\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>",
            WIDTH / 2.0,
            escaped(title)
        ));
        ink
    }

    pub fn line(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    pub fn stroke(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        self.dashed(from, to, (color, ""), width);
    }

    /// `dash` as SVG has it; empty: none.
    pub fn dashed(
        &mut self,
        from: (f64, f64),
        to: (f64, f64),
        (color, dash): (&str, &str),
        width: f64,
    ) {
        self.line(&format!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" \
             stroke-width=\"{width}\"{}/>",
            from.0,
            from.1,
            to.0,
            to.1,
            dash_attribute(dash)
        ));
    }

    pub fn text(&mut self, at: (f64, f64), anchor: &str, words: &str) {
        self.line(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at.0,
            at.1,
            escaped(words)
        ));
    }

    /// From below to above.
    pub fn text_upwards(&mut self, at: (f64, f64), words: &str) {
        self.line(&format!(
            "<text transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            at.0,
            at.1,
            escaped(words)
        ));
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

pub fn dash_attribute(dash: &str) -> String {
    if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") }
}

pub fn words_width(words: &str) -> f64 {
    LETTER * words.chars().count() as f64
}

/// Long ones in groups of three digits.
pub fn number(value: f64) -> String {
    let text = value.to_string();
    if value.abs() < 10_000.0 {
        return text;
    }
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (at, digit) in whole.char_indices() {
        let left = whole.len() - at;
        if at > 0 && left.is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    let _ = write!(out, "{rest}");
    out
}

/// From 0 to what is not below `greatest`, by a round step.
pub fn equal_ticks(greatest: f64) -> Vec<f64> {
    let step = nice_step(greatest / TICKS);
    let count = (greatest / step).ceil().max(1.0) as u32;
    // Of a step such as 0.05 the multiples have no short name.
    let round = |value: f64| (value * 1e9).round() / 1e9;
    (0..=count).map(|tick| round(f64::from(tick) * step)).collect()
}

/// Powers of ten around these values.
pub fn factor_ticks(least: f64, greatest: f64) -> Vec<f64> {
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
        assert_eq!(equal_ticks(0.23), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]);
        assert_eq!(factor_ticks(0.3, 20.0), [0.1, 1.0, 10.0, 100.0]);
    }

    #[test]
    fn numbers_are_grouped_where_they_are_long() {
        for (value, text) in [
            (0.05, "0.05"),
            (9999.0, "9999"),
            (10_000.0, "10,000"),
            (1_234_567.5, "1,234,567.5"),
            (-100_000.0, "-100,000"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
