//! Owns: `seedring-bench compare OLD NEW`: two reports, a verdict at each point that both have.
//! Never: measures; says "same" of what it cannot tell apart. Flow: files -> `Saved` -> series side
//! by side -> bootstrap -> verdicts -> table, exit status.
//!
//! Exit status: 0 nothing is worse, 1 something is, 2 the two cannot be compared.

mod bootstrap;
mod saved;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::compare::table;
use bootstrap::{Interval, Repeats, median, ratio};
use saved::{Saved, Series};

/// Fewer repeats say too little about their own noise for any verdict.
const ROUNDS_MIN: usize = 5;
const CANNOT: u8 = 2;

#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Two reports (JSON) to be compared, in place of running a preset.
    #[arg(num_args = 2, value_names = ["OLD", "NEW"])]
    #[arg(conflicts_with_all = ["preset", "rounds", "seconds"])]
    reports: Vec<PathBuf>,
    /// A target that ran in both: everything is divided by its figure of the same round, so that a
    /// slower machine cancels.
    #[arg(long, value_name = "TARGET", requires = "reports")]
    reference: Option<String>,
    /// Percent by which something may be worse.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, requires = "reports")]
    tolerance: f64,
    /// Compare this target of OLD with that one of NEW (which may be the same file: then round by
    /// round).
    #[arg(long, value_name = "OLD,NEW", value_delimiter = ',', num_args = 1, requires = "reports")]
    between: Vec<String>,
    /// Print JSON instead of the table.
    #[arg(long, requires = "reports")]
    json: bool,
}

impl Options {
    /// Whether reports are to be compared, and not presets run.
    pub fn is_asked_for(&self) -> bool {
        !self.reports.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Better,
    Same,
    Worse,
    #[serde(rename = "no-verdict")]
    Undecided,
}

#[derive(Debug, Serialize)]
struct Line {
    target: String,
    point: String,
    measure: String,
    old: f64,
    new: f64,
    /// New over old.
    ratio: f64,
    low: f64,
    high: f64,
    rounds: (usize, usize),
    verdict: Verdict,
    /// Of `Undecided`: why.
    why: String,
}

#[derive(Debug, Serialize)]
struct Judgement {
    tolerance_percent: f64,
    reference: Option<String>,
    lines: Vec<Line>,
    /// What a reader must know: other machine, other settings, partial results.
    cautions: Vec<String>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    match judge(options) {
        Ok(judgement) => {
            if options.json {
                println!("{}", serde_json::to_string_pretty(&judgement)?);
            } else {
                print!("{}", judgement.text());
            }
            let worse = judgement.lines.iter().any(|line| line.verdict == Verdict::Worse);
            Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Err(error) => {
            eprintln!("seedring-bench: cannot be compared: {error:#}");
            Ok(ExitCode::from(CANNOT))
        }
    }
}

fn judge(options: &Options) -> Result<Judgement> {
    let [old_path, new_path] = &options.reports[..] else { bail!("two reports are needed") };
    ensure!(
        (0.0..=1000.0).contains(&options.tolerance),
        "--tolerance is a number of percent from 0 to 1000"
    );
    let (old, new) = (Saved::read(old_path)?, Saved::read(new_path)?);
    let same_run = fs::canonicalize(old_path).ok() == fs::canonicalize(new_path).ok();
    judge_saved(options, &old, &new, same_run)
}

fn judge_saved(options: &Options, old: &Saved, new: &Saved, same_run: bool) -> Result<Judgement> {
    let comparable = |what: &str, old: &dyn std::fmt::Display, new: &dyn std::fmt::Display| {
        let (old, new) = (old.to_string(), new.to_string());
        ensure!(old == new, "{what} differs: {old} in OLD, {new} in NEW");
        Ok(())
    };
    comparable("the schema version", &old.schema, &new.schema)?;
    comparable("what was measured", &old.preset, &new.preset)?;
    comparable("the content's size in bytes", &old.content_bytes, &new.content_bytes)?;
    // There the content is so many torrents of one size.
    let torrents = |saved: &Saved| {
        let number = saved.settings.get("torrents").filter(|_| saved.preset == "many");
        number.map_or_else(String::new, Value::to_string)
    };
    comparable("the number of torrents", &torrents(old), &torrents(new))?;
    let pairs = pairs(options, old, new)?;
    ensure!(!pairs.is_empty(), "they have no target with a point and a measure in common");
    let mut judgement = Judgement {
        tolerance_percent: options.tolerance,
        reference: options.reference.clone(),
        lines: Vec::new(),
        cautions: cautions(options, old, new),
    };
    let mut without = Vec::new();
    for (before, after) in pairs {
        let values = values(options, old, before)?.zip(values(options, new, after)?);
        match values {
            Some(values) => judgement.lines.push(line(options, (before, after), values, same_run)),
            None if without.contains(&before.measure) => {}
            None => without.push(before.measure),
        }
    }
    ensure!(!judgement.lines.is_empty(), "the reference has none of the figures that they share");
    let not_judged = |measure| format!("{measure} is not judged: the reference has no such figure");
    judgement.cautions.extend(without.into_iter().map(not_judged));
    Ok(judgement)
}

/// Series that stand in both, in OLD's order.
fn pairs<'a>(
    options: &Options,
    old: &'a Saved,
    new: &'a Saved,
) -> Result<Vec<(&'a Series, &'a Series)>> {
    let reference = options.reference.as_ref().map(|name| old.target(name)).transpose()?;
    let between = match &options.between[..] {
        [] => None,
        [before, after] => Some((old.target(before)?, new.target(after)?)),
        _ => bail!("--between takes two targets: OLD,NEW"),
    };
    let mut pairs = Vec::new();
    for before in &old.series {
        let wanted = match &between {
            Some((of_old, of_new)) if before.target == *of_old => of_new,
            Some(_) => continue,
            None if reference.as_ref() == Some(&before.target) => continue,
            None => &before.target,
        };
        let after = new.series.iter().find(|one| one.target == *wanted && one.is_same_as(before));
        pairs.extend(after.map(|after| (before, after)));
    }
    Ok(pairs)
}

/// Round and value.
type Values = Vec<(u64, f64)>;

/// Divided by the reference's of each round. `None`: it has none.
fn values(options: &Options, saved: &Saved, series: &Series) -> Result<Option<Values>> {
    let all = series.by_round.iter().map(|(round, value)| (*round, *value));
    let Some(name) = &options.reference else { return Ok(Some(all.collect())) };
    let name = saved.target(name)?;
    let of_it = || {
        let all = saved.series.iter().filter(|one| one.target == name);
        all.filter(|one| one.measure == series.measure)
    };
    let mut own = of_it().filter(|one| one.part.is_empty());
    let only = own.next().filter(|_| own.next().is_none());
    let reference = of_it().find(|one| one.is_same_as(series)).or(only);
    Ok(reference.map(|reference| {
        let divided =
            |(round, value): (u64, f64)| Some((round, value / reference.by_round.get(&round)?));
        all.filter_map(divided).collect()
    }))
}

fn line(
    options: &Options,
    (before, after): (&Series, &Series),
    (of_old, of_new): (Values, Values),
    same_run: bool,
) -> Line {
    let mut line = Line {
        target: if before.target == after.target {
            before.target.clone()
        } else {
            format!("{} -> {}", before.target, after.target)
        },
        point: [before.point.as_str(), before.part.as_str()].join(" ").trim().to_owned(),
        measure: before.measure.to_string(),
        old: f64::NAN,
        new: f64::NAN,
        ratio: f64::NAN,
        low: f64::NAN,
        high: f64::NAN,
        rounds: (0, 0),
        verdict: Verdict::Undecided,
        why: "no round has both".into(),
    };
    let by_round: Vec<(f64, f64)> = of_old
        .iter()
        .filter_map(|(round, old)| {
            let new = of_new.iter().find(|(of, _)| of == round)?;
            Some((*old, new.1))
        })
        .collect();
    let mut of_old: Vec<f64> = of_old.into_iter().map(|(_, value)| value).collect();
    let mut of_new: Vec<f64> = of_new.into_iter().map(|(_, value)| value).collect();
    line.rounds = (of_old.len(), of_new.len());
    let repeats = if same_run {
        line.rounds = (by_round.len(), by_round.len());
        Repeats::ByRound(&by_round)
    } else {
        Repeats::Apart(&of_old, &of_new)
    };
    let Some(found) = ratio(repeats, 1) else { return line };
    (line.old, line.new) = (median(&mut of_old), median(&mut of_new));
    (line.ratio, line.low, line.high) = (found.ratio, found.low, found.high);
    let limited = [("OLD", before), ("NEW", after)].into_iter().find(|(_, one)| one.was_limited());
    (line.verdict, line.why) = if let Some((which, _)) = limited {
        (Verdict::Undecided, format!("the load was the limit in {which}"))
    } else if line.rounds.0.min(line.rounds.1) < ROUNDS_MIN {
        let (old, new) = line.rounds;
        (Verdict::Undecided, format!("too few rounds: {old} and {new}, {ROUNDS_MIN} are needed"))
    } else {
        let cost = if before.measure.more_is_better() { found.inverse() } else { found };
        verdict(cost, options.tolerance)
    };
    line
}

/// `cost`: above 1 is worse.
fn verdict(cost: Interval, tolerance_percent: f64) -> (Verdict, String) {
    let limit = 1.0 + tolerance_percent / 100.0;
    if cost.low > 1.0 && cost.ratio > limit {
        (Verdict::Worse, String::new())
    } else if cost.high < 1.0 && cost.ratio < 1.0 / limit {
        (Verdict::Better, String::new())
    } else if cost.low >= 1.0 / limit && cost.high <= limit {
        (Verdict::Same, String::new())
    } else if cost.low <= 1.0 && cost.high >= 1.0 {
        (Verdict::Undecided, "noise is larger than the difference".into())
    } else {
        (Verdict::Undecided, "they differ, but perhaps by less than the tolerance".into())
    }
}

fn cautions(options: &Options, old: &Saved, new: &Saved) -> Vec<String> {
    let mut cautions = Vec::new();
    for (name, saved) in [("OLD", old), ("NEW", new)] {
        if saved.partial {
            cautions
                .push(format!("{name} is partial: runs of it failed, {}", saved.path.display()));
        }
    }
    let machine = differences(&old.environment, &new.environment, &["date", "git_revision"]);
    let hint = match (&options.reference, machine.is_empty()) {
        (None, false) => " (`--reference iperf3` cancels a faster or slower machine)",
        _ => "",
    };
    cautions.extend(machine.into_iter().map(|line| format!("the machine differs{hint}: {line}")));
    let not_settings = ["work", "out", "targets", "seedring", "baseline"];
    let settings = differences(&old.settings, &new.settings, &not_settings);
    cautions.extend(settings.into_iter().map(|line| format!("a setting differs: {line}")));
    let missing = |from: &[String], to: &[String]| -> Vec<String> {
        from.iter().filter(|line| !to.contains(line)).cloned().collect()
    };
    let (gone, come) =
        (missing(&old.versions, &new.versions), missing(&new.versions, &old.versions));
    if !gone.is_empty() || !come.is_empty() {
        let text = |lines: &[String]| lines.join("; ");
        cautions.push(format!("versions differ: {} -> {}", text(&gone), text(&come)));
    }
    cautions
}

/// Keys whose values differ, `name: old -> new`; objects within are looked into.
fn differences(old: &Map<String, Value>, new: &Map<String, Value>, but: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys.filter(|key| !but.contains(&key.as_str())) {
        let (of_old, of_new) = (old.get(key), new.get(key));
        match (of_old, of_new) {
            (Some(Value::Object(old)), Some(Value::Object(new))) => {
                found.extend(differences(old, new, but));
            }
            _ if of_old == of_new => {}
            _ => {
                let text = |value: Option<&Value>| value.map_or("-".into(), Value::to_string);
                found.push(format!("{key}: {} -> {}", text(of_old), text(of_new)));
            }
        }
    }
    found
}

impl Judgement {
    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self.lines.iter().map(Line::row).collect();
        let of = match &self.reference {
            Some(name) => format!(", each divided by {name}'s of the same round"),
            None => String::new(),
        };
        let mut text = format!(
            "Medians{of}; new over old with its 95 % interval (bootstrap over the repeats). Worse \
             or better: the interval leaves 1 out and the ratio is more than {} % from it. Same: \
             the whole interval is within {0} %.\n\n{}\n",
            self.tolerance_percent,
            table(&["target", "at", "measure", "old", "new", "new / old", "verdict"], &rows)
        );
        let count = |verdict| self.lines.iter().filter(|line| line.verdict == verdict).count();
        text.push_str(&format!(
            "Better {}, same {}, worse {}, no verdict {}.\n",
            count(Verdict::Better),
            count(Verdict::Same),
            count(Verdict::Worse),
            count(Verdict::Undecided)
        ));
        for caution in &self.cautions {
            text.push_str(&format!("- {caution}\n"));
        }
        text
    }
}

impl Line {
    fn row(&self) -> Vec<String> {
        let number = |value: f64| match value.abs() {
            _ if !value.is_finite() => "-".to_owned(),
            size if size >= 100.0 => format!("{value:.0}"),
            size if size >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.3}"),
        };
        let verdict = match self.verdict {
            Verdict::Better => "better".to_owned(),
            Verdict::Same => "same".to_owned(),
            Verdict::Worse => "**worse**".to_owned(),
            Verdict::Undecided => format!("no verdict: {}", self.why),
        };
        let ratio = if self.ratio.is_finite() {
            format!("{:.3} ({:.3}..{:.3})", self.ratio, self.low, self.high)
        } else {
            "-".to_owned()
        };
        vec![
            self.target.clone(),
            self.point.clone(),
            self.measure.clone(),
            number(self.old),
            number(self.new),
            ratio,
            verdict,
        ]
    }
}

#[cfg(test)]
mod tests;
