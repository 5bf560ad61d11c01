//! Owns: `doctor`: its arguments, the order of the checks, how findings are printed.
//! Never: changes anything on the machine; a check of its own.
//! Flow: machine and configuration -> `machine`, `site` -> findings, each with a remedy.

mod machine;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{check, print};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Check the machine against this configuration as well.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// Works, slower or weaker than it could.
    Warning,
    /// The engine would not start, or not seed.
    Bad,
}

#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    remedy: Option<String>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn warning(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Finding { check, verdict: Verdict::Warning, found, remedy }
    }

    fn bad(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Finding { check, verdict: Verdict::Bad, found, remedy }
    }
}

pub(super) fn run(args: DoctorArgs) -> ExitCode {
    let config: Option<Config> = match args.config.as_deref().map(check::load).transpose() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut findings = machine::check(config.as_ref());
    if let Some(config) = &config {
        findings.extend(site::check(config));
    }
    let well = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if args.json {
        print::json(&serde_json::json!({ "well": well, "findings": findings }));
    } else {
        print::text(&text(&findings, config.is_some()));
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(findings: &[Finding], with_config: bool) -> String {
    let mut out = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD ",
        };
        out.push_str(&format!(
            "{verdict}  {:<14} {}\n",
            finding.check,
            print::safe(&finding.found)
        ));
        if let Some(remedy) = &finding.remedy {
            out.push_str(&format!("      {:<14} -> {}\n", "", print::safe(remedy)));
        }
    }
    if !with_config {
        out.push_str("\nports, state_dir and content: seedring doctor --config FILE\n");
    }
    out
}
