//! Owns: medians over rounds, and the report: Markdown for people, JSON with every single run.
//! Never: hides a run or a missing target. Flow: presets fill a `Report` -> two files.

use std::{fs, path::Path, time::SystemTime};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{page, probe::Machine};

#[derive(Default, Serialize)]
pub struct Report {
    pub title: String,
    /// Paragraphs and tables, in Markdown.
    pub sections: Vec<String>,
    /// Commands as they were run, a target each.
    pub commands: Vec<String>,
    pub versions: Vec<String>,
    /// Whose settings each target runs with, in words.
    pub settings: Vec<String>,
    /// Targets that could not run, and why.
    pub absent: Vec<String>,
    /// Every single run.
    pub runs: Vec<serde_json::Value>,
    /// Curves, each an SVG that is written beside the report: what follows NAME-, and the text.
    #[serde(skip)]
    pub plots: Vec<(String, String)>,
}

/// Middle, least and greatest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Spread { median, min, max })
    }

    pub fn text(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.min, self.max)
    }
}

/// A Markdown table.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out
}

/// YYYY-MM-DD of now, UTC (days to civil date: Hinnant's algorithm).
fn today() -> String {
    let seconds =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    civil(seconds / 86_400)
}

fn civil(days: u64) -> String {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

impl Report {
    /// Writes NAME.md, NAME.html and NAME.json into `folder`, and the Markdown to stdout.
    pub fn write(&self, folder: &Path, name: &str, congestion: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        let machine = Machine::read();
        let mut text = format!("# {}\n\n", self.title);
        let arguments: Vec<String> =
            std::env::args().skip(1).filter(|argument| argument != "--inside").collect();
        text.push_str(&format!(
            "{}, Linux {}, {} ({} cores, {:.0} GiB), {congestion}, own network namespace.\n\
             Command: `seedring-bench {}`\n\n",
            today(),
            machine.kernel,
            machine.cpu,
            machine.cores,
            machine.memory_gib,
            arguments.join(" "),
        ));
        for section in &self.sections {
            text.push_str(section);
            text.push('\n');
        }
        let mut list = |head: &str, lines: &[String]| {
            if !lines.is_empty() {
                text.push_str(&format!("{head}\n"));
                lines.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
                text.push('\n');
            }
        };
        let plots: Vec<String> =
            self.plots.iter().map(|(of, _)| format!("![{of}]({name}-{of}.svg)")).collect();
        list("Curves:", &plots);
        list("Not run:", &self.absent);
        list("Versions:", &self.versions);
        list("Settings:", &self.settings);
        list("Commands of the targets:", &self.commands);
        let json = serde_json::json!({
            "schema": 1, "date": today(), "machine": machine, "congestion": congestion,
            "arguments": arguments, "report": self,
        });
        let mut files = vec![
            (format!("{name}.md"), text.clone()),
            (format!("{name}.html"), page::html(&text, &self.plots)),
            (format!("{name}.json"), serde_json::to_string_pretty(&json)?),
        ];
        files.extend(self.plots.iter().map(|(of, svg)| (format!("{name}-{of}.svg"), svg.clone())));
        for (file, content) in files {
            let path = folder.join(file);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
        }
        print!("{text}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn dates() {
        assert_eq!(civil(0), "1970-01-01");
        assert_eq!(civil(19_782), "2024-02-29");
        assert_eq!(civil(20_454), "2026-01-01");
    }
}
