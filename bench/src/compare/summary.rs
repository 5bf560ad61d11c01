//! Owns: medians over rounds, and the report: Markdown for people, JSON with every single run.
//! Never: hides a run or a missing target. Flow: presets fill a `Report` -> two files.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Error, Result};
use serde::Serialize;

use super::interrupted::Interrupted;
use crate::{
    caution, cut,
    environment::{Circumstances, SCHEMA},
    page,
};

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
    /// A signal ended it: what is here was measured until then.
    pub cut_short: bool,
    /// Runs that began and failed, and why. Where there is one, the report is partial.
    pub failed: Vec<String>,
    /// What a reader has to know of how it was measured, beside what the runs themselves say.
    pub notes: Vec<String>,
    /// What the load had seen of them until then.
    pub interrupted: Vec<serde_json::Value>,
    /// Every single run.
    pub runs: Vec<serde_json::Value>,
    /// Each an SVG that is written beside the report: what follows NAME-, and the text.
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
    /// Keeps that a run failed, and what it had found until then. One that was ended because all is
    /// to end has not failed.
    pub fn fail(&mut self, what: &str, error: &Error) {
        let line = format!("{what}: {error:#}");
        if cut::is_asked() {
            return;
        }
        eprintln!("FAILED {line}");
        self.failed.push(line);
        let found = error.chain().find_map(|cause| cause.downcast_ref::<Interrupted>());
        if let Some(found) = found {
            let outcome = serde_json::to_value(&*found.outcome).unwrap_or_default();
            self.interrupted.push(serde_json::json!({ "what": what, "outcome": outcome }));
        }
    }

    /// Where it was cut short.
    fn how_far(&self) -> String {
        let rounds = self.runs.iter().filter_map(|run| run["round"].as_u64());
        format!(
            "CUT SHORT by a signal in round {}: what is here was measured until then, {} runs, \
             whatever is said below of rounds.\n\n",
            rounds.max().unwrap_or(0),
            self.runs.len()
        )
    }

    /// What must be known: of the whole, then of runs.
    fn cautions(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(caution::of_runs(&self.runs)).collect()
    }

    /// Writes NAME.md, NAME.html and NAME.json into `folder`, and the Markdown to stdout. Gives
    /// their paths.
    pub fn write(&self, folder: &Path, name: &str, around: &Circumstances) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let (environment, machine) = (&around.environment, &around.environment.machine);
        let mut text = format!("# {}\n\n", self.title);
        let arguments: Vec<String> =
            std::env::args().skip(1).filter(|argument| argument != "--inside").collect();
        text.push_str(&format!(
            "{}, Linux {}, {} ({} cores, {:.0} GiB), {}, {}, interface {}, content on {}, \
             revision {}.\n\
             Command: `seedring-bench {}`\n\n",
            today(),
            machine.kernel,
            machine.cpu,
            machine.cores,
            machine.memory_gib,
            environment.congestion,
            environment.network,
            environment.nic,
            environment.file_system,
            environment.git_revision,
            arguments.join(" "),
        ));
        if self.cut_short {
            text.push_str(&self.how_far());
        }
        if !self.failed.is_empty() {
            text.push_str(&format!(
                "PARTIAL: {} runs failed. What is here was measured beside them.\n\n",
                self.failed.len()
            ));
        }
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
        list("Plots:", &plots);
        list("Failed:", &self.failed);
        list("To be known:", &self.cautions());
        list("Not run:", &self.absent);
        list("Versions:", &self.versions);
        list("Settings:", &self.settings);
        list("Commands of the targets:", &self.commands);
        let json = serde_json::json!({
            "schema": SCHEMA, "date": today(), "environment": environment,
            "settings": around.settings, "content_bytes": around.content_bytes,
            "arguments": arguments, "cautions": self.cautions(), "report": self,
        });
        let mut files = vec![
            (format!("{name}.md"), text.clone()),
            (format!("{name}.html"), page::html(&text, &self.plots)),
            (format!("{name}.json"), serde_json::to_string_pretty(&json)?),
        ];
        files.extend(self.plots.iter().map(|(of, svg)| (format!("{name}-{of}.svg"), svg.clone())));
        let mut paths = Vec::new();
        for (file, content) in files {
            let path = folder.join(file);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
            paths.push(path);
        }
        print!("{text}");
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compare::pictures, environment::Environment, probe::Reading, schema};

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn what_must_be_known_stands_in_every_form() {
        let folder = std::env::temp_dir().join(format!("report-{}", std::process::id()));
        let run = serde_json::json!({"round": 1, "target": "a", "connections": 5,
            "outcome": {"latency_ms": {}, "load_busy": 0.99, "load_threads": 1}});
        let mut report = Report { title: "T".into(), runs: vec![run], ..Report::default() };
        report.fail("b, round 2", &anyhow::anyhow!("it ended"));
        let nowhere = Path::new("/nowhere");
        let around = Circumstances {
            environment: Environment::read(nowhere, nowhere, "cubic", ("none", "loopback")),
            settings: serde_json::json!({"preset": "seeding"}),
            content_bytes: 7,
        };
        report.write(&folder, "x", &around).expect("written");
        for ending in ["md", "html", "json"] {
            let text = fs::read_to_string(folder.join(format!("x.{ending}"))).expect("there");
            for words in ["a, connections=5: the load was the limit", "b, round 2: it ended"] {
                assert!(text.contains(words), "{ending}: {text}");
            }
            assert!(ending == "json" || text.contains("PARTIAL: 1 runs failed"), "{text}");
        }
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn a_report_is_as_its_schema_says_and_what_is_not_described_is_found() {
        let folder = std::env::temp_dir().join(format!("schema-{}", std::process::id()));
        let mut outcome = serde_json::to_value(pictures::made_up(1000)).expect("JSON");
        outcome["target_after"] = serde_json::to_value(Reading::default()).expect("JSON");
        let run = serde_json::json!({"round": 1, "target": "a", "connections": 5,
            "cpu_seconds_per_gib": 0.2, "mib_per_s": 9.0, "outcome": outcome, "open_loop": null});
        let figures = serde_json::json!({"round": 1, "target": "a", "point": "x",
            "outcome": null, "figures": {"first_block_seconds": 0.5}});
        let mut report = Report { runs: vec![run, figures], ..Report::default() };
        let found = Interrupted { why: "w".into(), outcome: Box::new(pictures::made_up(7)) };
        report.fail("b, round 2", &anyhow::anyhow!(found));
        let nowhere = Path::new("/nowhere");
        let around = Circumstances {
            environment: Environment::read(nowhere, nowhere, "cubic", ("none", "loopback")),
            settings: serde_json::json!({"preset": "seeding"}),
            content_bytes: 7,
        };
        report.write(&folder, "x", &around).expect("written");
        let json = fs::read_to_string(folder.join("x.json")).expect("there");
        fs::remove_dir_all(folder).ok();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(schema::check(&json), [""; 0]);
        for (at, value, words) in [
            ("/schema", serde_json::json!(SCHEMA + 1), "report.schema is 3, not 2"),
            ("/report/runs/0/round", "x".into(), "report.report.runs[0].round is \"x\""),
            ("/report/runs/0/outcome/new", 1.into(), "runs[0].outcome.new is not described"),
            ("/report/runs/1/figures/x", "y".into(), "figures.x is \"y\", no \"number\""),
            ("/environment/nic", serde_json::Value::Null, "environment.nic is null"),
        ] {
            let mut json = json.clone();
            let (parent, name) = at.rsplit_once('/').expect("a pointer");
            json.pointer_mut(parent).expect("there")[name] = value;
            let wrong = schema::check(&json);
            assert!(wrong.iter().any(|line| line.contains(words)), "{words}: {wrong:?}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(civil(0), "1970-01-01");
        assert_eq!(civil(19_782), "2024-02-29");
        assert_eq!(civil(20_454), "2026-01-01");
    }
}
