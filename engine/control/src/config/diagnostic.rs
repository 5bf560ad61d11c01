//! Owns: one finding about a configuration file and how it is printed.
//! Never: decides what is wrong.
//! Flow: `tree`, `read`, `ranges` and `resolve` collect them; the command line and reload print
//! them.

use std::fmt;

use seedring_proto::tracker::redact::redact;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One finding: where, what was expected, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The file as the user named it.
    pub file: String,
    /// From 1; 0 where the finding concerns the whole file.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// Characters to underline.
    pub width: u32,
    /// Such as `limits.connections` or `torrents[3].verify`; empty for the file as a whole.
    pub key: String,
    pub message: String,
    pub help: Option<String>,
    /// The line of the file.
    pub excerpt: Option<String>,
}

/// The longest piece of a line that is shown.
const EXCERPT_CHARS_MAX: usize = 100;

impl Diagnostic {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: ")?;
        match (self.file.as_str(), self.line) {
            ("", _) => {}
            (file, 0) => write!(f, "{file}: ")?,
            (file, line) => write!(f, "{file}:{line}:{}: ", self.column)?,
        }
        if !self.key.is_empty() && !self.message.contains(&format!("\"{}\"", self.key)) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&without_secrets(&self.message))?;
        let margin = if self.line == 0 { 2 } else { self.line.to_string().len().max(4) };
        if let Some(excerpt) = &self.excerpt {
            let (shown, before) = crop(&without_secrets(excerpt), self.column as usize);
            let rest = shown.chars().count().saturating_sub(before).max(1);
            let carets = "^".repeat((self.width as usize).clamp(1, rest));
            write!(f, "\n{:>margin$} | {shown}", self.line)?;
            write!(f, "\n{:>margin$} | {}{carets}", "", " ".repeat(before))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:>margin$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// The same text, as long, with the passkeys of tracker addresses masked: findings are logged at
/// a reload.
fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ']' | '}');
    for word in text.split_inclusive(ends) {
        let (url, end) = match word.char_indices().next_back() {
            Some((at, last)) if ends(last) => word.split_at(at),
            _ => (word, ""),
        };
        let masked = if url.contains("://") { redact(url) } else { url.to_string() };
        out.push_str(&masked);
        if masked != url {
            let short = url.chars().count().saturating_sub(masked.chars().count());
            out.extend(std::iter::repeat_n('*', short));
        }
        out.push_str(end);
    }
    out
}

/// The part of a line around a column, and how many characters of it lie before that column.
fn crop(line: &str, column: usize) -> (String, usize) {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let at = column.saturating_sub(1);
    let start = at.saturating_sub(EXCERPT_CHARS_MAX / 2);
    let start = if line.chars().count() <= EXCERPT_CHARS_MAX { 0 } else { start };
    let shown = line.chars().skip(start).take(EXCERPT_CHARS_MAX).map(clean).collect();
    (shown, at - start)
}

/// The nearest of the known names, if it is near enough to be what was meant.
pub(super) fn did_you_mean<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let bound = match written.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    known
        .iter()
        .map(|name| (edits(&written.to_lowercase().replace('-', "_"), name), *name))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edit distance with transpositions (optimal string alignment), over names of bounded length.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// `a, b or c`.
pub(super) fn any_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_string(),
        [one] => (*one).to_string(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["verify", "trackers", "folder", "files", "limits"];
        assert_eq!(did_you_mean("verfy", &known), Some("verify"));
        assert_eq!(did_you_mean("tracker", &known), Some("trackers"));
        assert_eq!(did_you_mean("fodler", &known), Some("folder"));
        assert_eq!(did_you_mean("Verify", &known), Some("verify"));
        assert_eq!(did_you_mean("ratio", &known), None);
    }

    #[test]
    fn a_long_line_is_cropped_around_the_column() {
        let line = "x".repeat(5000);
        let (shown, before) = crop(&line, 4000);
        assert!(shown.len() <= EXCERPT_CHARS_MAX && before < shown.len());
    }
}
