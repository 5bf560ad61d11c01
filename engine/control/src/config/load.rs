//! Owns: the steps from a file, or from a command line, to a valid configuration.
//! Never: a check of its own.
//! Flow: text -> `tree` -> `ranges` -> `read` -> `resolve`; all findings come back at once, in
//! order.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value as Json;

use super::diagnostic::{Diagnostic, Severity};
use super::file::{ConfigFile, TorrentEntry};
use super::model::Config;
use super::read::{Problem, Reading};
use super::resolve::{Resolver, absolute};
use super::tree::{self, Node, Place, Value};
use super::{ranges, reference, variables};

/// A configuration that can be used, and what is odd about it.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// Reads, checks and resolves a file. The errors are all there are, with the warnings among
    /// them.
    pub fn load(
        path: &Path,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Vec<Diagnostic>> {
        let name = path.display().to_string();
        let text = match read_file(path) {
            Ok(text) => text,
            Err(message) => return Err(vec![of_file(&name, message)]),
        };
        let working_dir = match std::env::current_dir() {
            Ok(dir) => dir,
            Err(error) => {
                let message = format!("the working directory cannot be read: {error}");
                return Err(vec![of_file(&name, message)]);
            }
        };
        let mut loaded = Config::parse(&text, &name, &working_dir, environment)?;
        loaded.config.file = Some(absolute(&working_dir, &name));
        Ok(loaded)
    }

    /// The same from text. `name` is what messages call it; `working_dir` is absolute.
    pub fn parse(
        text: &str,
        name: &str,
        working_dir: &Path,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Vec<Diagnostic>> {
        let reading = Reading::default();
        let (node, syntax_errors) = tree::parse(text);
        for error in syntax_errors {
            let (key, message, help) = (String::new(), error.message, Some(error.help.to_string()));
            reading.report(Problem { place: error.place, key, message, help });
        }
        let mut warnings = Vec::new();
        let mut config = None;
        if let Some(mut node) = node {
            tree::interpolate(&mut node, environment, &mut |scalar, message| {
                reading.set_aside(scalar);
                let key = String::new();
                reading.report(Problem { place: scalar.place, key, message, help: None });
            });
            let control_socket = variables::control_socket(environment);
            config = read(&reading, &node, working_dir, control_socket, &mut warnings);
        }
        let lines: Vec<&str> = text.lines().collect();
        let finding = |severity, problem: Problem| diagnostic(severity, problem, name, &lines);
        let errors = reading.into_problems().into_iter().map(|p| finding(Severity::Error, p));
        let mut findings: Vec<Diagnostic> = errors.collect();
        let failed = !findings.is_empty();
        findings.extend(warnings.into_iter().map(|p| finding(Severity::Warning, p)));
        findings.sort_by_key(|finding| (finding.line, finding.column));
        match config {
            Some(config) if !failed => Ok(Loaded { config, warnings: findings }),
            _ => Err(findings),
        }
    }
}

fn read(
    reading: &Reading,
    node: &Node,
    working_dir: &Path,
    control_socket: Option<PathBuf>,
    warnings: &mut Vec<Problem>,
) -> Option<Config> {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    let schema = SCHEMA.get_or_init(reference::schema);
    ranges::check(reading, schema, schema, node, "");
    // Each torrent is a section of its own, so that an error in one costs one torrent's reading.
    let torrents = node.get("torrents").filter(|torrents| matches!(torrents.value, Value::Seq(_)));
    if let Some(torrents) = torrents {
        reading.set_aside(torrents);
    }
    let file: ConfigFile = reading.section(node, "")?;
    let mut entries = Vec::new();
    for (index, item) in torrents.map_or(&[][..], Node::items).iter().enumerate() {
        if let Some(entry) = reading.section::<TorrentEntry>(item, &format!("torrents[{index}]")) {
            entries.push((index, item, entry));
        }
    }
    let base = match &file.base_dir {
        Some(dir) => absolute(working_dir, dir),
        None => PathBuf::from(working_dir),
    };
    let has_tracker = node.get("tracker").is_some_and(|t| !matches!(t.value, Value::Null));
    let warned = Vec::new();
    let mut resolver =
        Resolver { root: node, reading, warnings: warned, base, has_tracker, control_socket };
    let config = resolver.config(file, entries);
    warnings.append(&mut resolver.warnings);
    let listed = node.get("torrents").map(|torrents| &torrents.value);
    if listed.is_none_or(|torrents| match torrents {
        Value::Null => true,
        Value::Seq(items) => items.is_empty(),
        _ => false,
    }) {
        let message = "no torrents: the engine would start and seed nothing".to_string();
        let help = Some("add torrents: with a folder or with files".to_string());
        let (place, key) = (Place::default(), "torrents".to_string());
        warnings.push(Problem { place, key, message, help });
    }
    Some(config)
}

fn read_file(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_string(),
        std::io::ErrorKind::InvalidData => "not a text in UTF-8".to_string(),
        _ => error.to_string(),
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut text = String::new();
    file.take(tree::FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > tree::FILE_BYTES_MAX {
        return Err("larger than 256 MiB, which no configuration is".to_string());
    }
    Ok(text)
}

fn of_file(name: &str, message: String) -> Diagnostic {
    let problem = Problem { place: Place::default(), key: String::new(), message, help: None };
    diagnostic(Severity::Error, problem, name, &[])
}

fn diagnostic(severity: Severity, problem: Problem, name: &str, lines: &[&str]) -> Diagnostic {
    let excerpt = (problem.place.line as usize).checked_sub(1).and_then(|line| lines.get(line));
    Diagnostic {
        severity,
        file: name.to_string(),
        line: problem.place.line,
        column: problem.place.column,
        width: problem.place.width,
        key: problem.key,
        message: problem.message,
        help: problem.help,
        excerpt: excerpt.map(|line| (*line).to_string()),
    }
}
