//! Owns: the page by which the reports of a folder are found.
//! Never: computes a figure. Flow: each NAME.json of the folder, and the first of the plots that
//! NAME.md lists -> index.md, index.html.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{compare::table, environment::SCHEMA, page};

/// What no report may be called.
pub const NAME: &str = "index";

#[derive(clap::Args)]
pub struct Options {
    /// The folder with the reports.
    folder: PathBuf,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    println!("{}", write(&options.folder)?.display());
    Ok(ExitCode::SUCCESS)
}

/// One report.
struct Entry {
    /// Of its files, without what follows the dot.
    name: String,
    json: Value,
    /// The file of its first plot.
    plot: Option<String>,
}

/// Writes index.md and index.html into the folder; gives the page's path.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let entries = entries(folder)?;
    ensure!(!entries.is_empty(), "{}: no report of this program there", folder.display());
    let page = folder.join(format!("{NAME}.html"));
    let picture = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let html = page::html_with(&markdown(&entries, "html"), picture);
    let text = markdown(&entries, "md");
    for (path, text) in [(folder.join(format!("{NAME}.md")), text), (page.clone(), html)] {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(page)
}

/// By name; whatever else lies there is left alone.
fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let files =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = Vec::new();
    for file in files {
        let path = file?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let Ok(json) = serde_json::from_slice::<Value>(&text) else { continue };
        if json["schema"] != SCHEMA || !json["report"]["runs"].is_array() {
            continue;
        }
        let said = fs::read_to_string(path.with_extension("md")).unwrap_or_default();
        let plot = said.lines().find_map(|line| line.strip_prefix("- ![")?.strip_suffix(')'));
        let plot = plot.and_then(|line| Some(line.split_once("](")?.1.to_owned()));
        found.push(Entry { name, json, plot });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// `form`: the ending of the reports that are linked.
fn markdown(entries: &[Entry], form: &str) -> String {
    let all = |of: &dyn Fn(&Entry) -> String| -> String {
        let set: BTreeSet<String> = entries.iter().map(of).collect();
        set.into_iter().collect::<Vec<_>>().join(", ")
    };
    let machine = |entry: &Entry| {
        let machine = &entry.json["environment"];
        let of = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        format!("Linux {}, {} ({} cores)", of("kernel"), of("cpu"), machine["cores"])
    };
    let mut text = format!(
        "# Benchmark reports\n\n{} reports; {}; {}; revision {}. A heading leads to its report, \
         whose first picture is below it; the .json of the same name has every run.\n\n",
        entries.len(),
        all(&|entry| entry.text("date")),
        all(&machine),
        all(&|entry| entry.environment("git_revision")),
    );
    let rows: Vec<Vec<String>> = entries.iter().map(|entry| entry.row(form)).collect();
    text.push_str(&table(
        &["report", "repeats", "runs", "targets", "failed runs", "date", "revision"],
        &rows,
    ));
    let absent: BTreeSet<&str> = entries.iter().flat_map(|entry| entry.list("absent")).collect();
    if !absent.is_empty() {
        text.push_str("\nAbsent in some of them:\n");
        absent.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
    }
    for entry in entries {
        text.push_str(&format!("\n## {}\n", entry.link(form)));
        if let Some(plot) = &entry.plot {
            text.push_str(&format!("\n![{}]({plot})\n", entry.name));
        }
    }
    text
}

impl Entry {
    fn text(&self, key: &str) -> String {
        self.json[key].as_str().unwrap_or("unknown").to_owned()
    }

    fn environment(&self, key: &str) -> String {
        self.json["environment"][key].as_str().unwrap_or("unknown").to_owned()
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        self.json["report"][key].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    fn link(&self, form: &str) -> String {
        let title = self.json["report"]["title"].as_str().unwrap_or(&self.name);
        let title = title.replace(['|', '`', '[', ']'], " ");
        format!("[{title}]({}.{form})", self.address())
    }

    /// Its name in a link.
    fn address(&self) -> String {
        let of = |letter: char| match letter {
            '(' | ')' | '#' | '?' | '%' | ' ' | '"' => format!("%{:02x}", u32::from(letter)),
            _ => letter.to_string(),
        };
        self.name.chars().map(of).collect()
    }

    fn row(&self, form: &str) -> Vec<String> {
        let runs = self.json["report"]["runs"].as_array().map_or(&[][..], Vec::as_slice);
        let repeats = runs.iter().filter_map(|run| run["round"].as_u64()).max().unwrap_or(0);
        let mut targets: Vec<&str> = Vec::new();
        for target in runs.iter().filter_map(|run| run["target"].as_str()) {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        // A comparison of the engine with itself names none.
        let targets = if targets.is_empty() { "seedring".into() } else { targets.join(", ") };
        let cut = self.json["report"]["cut_short"] == true;
        let failed = self.list("failed").count();
        vec![
            self.link(form),
            format!("{repeats}{}", if cut { ", cut short" } else { "" }),
            runs.len().to_string(),
            targets,
            failed.to_string(),
            self.text("date"),
            self.environment("git_revision"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;

    #[test]
    fn reports_are_found_and_other_files_are_not() {
        let folder = std::env::temp_dir().join(format!("index-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let nowhere = Path::new("/nowhere");
        let around = Environment::read(nowhere, nowhere, "cubic", ("none", "loopback"));
        let (kernel, cores) = (around.machine.kernel.clone(), around.machine.cores);
        let report = serde_json::json!({
            "schema": SCHEMA, "date": "2026-01-02", "environment": around,
            "report": {"title": "A < B", "absent": ["nginx: no"], "failed": ["one"],
            "cut_short": true, "runs": [{"round": 1, "target": "x"}, {"round": 3, "target": "y"},
            {"round": 2, "target": "x"}]}
        });
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("written");
        write("b.json", &report.to_string());
        write("b.md", "# A\n\nPlots:\n- ![cpu](b-cpu.svg)\n- ![speed](b-speed.svg)\n");
        write("b-cpu.svg", "<svg>cpu</svg>\n");
        write("other.json", "{\"schema\": 1}");
        write("broken.json", "{");
        let page = fs::read_to_string(super::write(&folder).expect("a page")).expect("there");
        assert!(page.contains("<a href=\"b.html\">A &lt; B</a>"), "{page}");
        assert!(page.contains("<figure>\n<svg>cpu</svg>\n</figure>"), "{page}");
        assert!(
            page.contains(
                "<td>3, cut short</td><td>3</td><td>x, y</td><td>1</td><td>2026-01-02</td>"
            ),
            "{page}"
        );
        assert!(page.contains(&format!("Linux {kernel}, ")), "{page}");
        assert!(page.contains(&format!("({cores} cores)")), "{page}");
        assert!(page.contains("<li>nginx: no</li>") && !page.contains("other"), "{page}");
        let markdown = fs::read_to_string(folder.join("index.md")).expect("there");
        assert!(markdown.contains("## [A < B](b.md)\n\n![b](b-cpu.svg)\n"), "{markdown}");
        // It is no report itself, and is written again.
        assert_eq!(entries(&folder).expect("read").len(), 1);
        fs::remove_dir_all(&folder).ok();
        assert!(super::write(&folder).is_err(), "nothing there");
    }
}
