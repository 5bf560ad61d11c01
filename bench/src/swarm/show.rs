//! Owns: what a run shows while it goes on: a line an event, and on a terminal one line that lives.
//! Never: waits, decides. Flow: events of the watcher and of tasks -> stderr.

use std::io::{IsTerminal as _, Write as _};

use crate::agents::watch::{Event, Rate, in_words};

const BAR: usize = 20;
/// What is left of rates on a terminal of unknown width.
const COLUMNS: usize = 100;

pub struct Show {
    /// stderr is a terminal that knows how to erase a line.
    lives: bool,
    label: String,
    seconds: Option<f64>,
    runs: usize,
}

impl Show {
    pub fn new() -> Show {
        let knows = std::env::var("TERM").is_ok_and(|term| term != "dumb");
        let lives = knows && std::io::stderr().is_terminal();
        Show { lives, label: String::new(), seconds: None, runs: 0 }
    }

    pub fn line(&self, text: &str) {
        let erase = if self.lives { "\r\x1b[K" } else { "" };
        eprintln!("{erase}{text}");
    }

    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Begun { label, .. } => {
                (self.label, self.seconds) = (label.clone(), None);
                self.line(&in_words(event));
            }
            Event::Window { seconds } => self.seconds = *seconds,
            Event::Rates { at, rates } if self.lives => {
                let text = living(&self.label, *at, self.seconds, rates);
                let mut out = std::io::stderr().lock();
                // Not being able to show progress is no failure of the run.
                let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
            }
            Event::Ended { .. } => {
                self.runs += 1;
                self.line(&format!("{} (run {})", in_words(event), self.runs));
            }
            Event::File { .. } | Event::End { .. } => {}
            _ => self.line(&in_words(event)),
        }
    }
}

/// Target, how far its window is, the sum, and who gets what.
fn living(label: &str, at: f64, seconds: Option<f64>, rates: &[Rate]) -> String {
    let sum: f64 = rates.iter().map(|rate| rate.mib_per_s).sum();
    let bar = match seconds.filter(|seconds| *seconds > 0.0) {
        Some(seconds) => {
            let full = ((at / seconds).clamp(0.0, 1.0) * BAR as f64).round() as usize;
            format!("[{}{}] {at:.1}/{seconds:.1} s", "#".repeat(full), ".".repeat(BAR - full))
        }
        None => format!("{at:.1} s"),
    };
    let mut text = format!("{label}: {bar} {sum:.0} MiB/s");
    for rate in rates {
        let one = format!("  {} {:.0}", rate.agent.name, rate.mib_per_s);
        if text.chars().count() + one.len() > COLUMNS {
            text.push_str(" ..");
            break;
        }
        text.push_str(&one);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::watch::Agent;

    fn rates(count: usize) -> Vec<Rate> {
        let rate = |n| Rate {
            agent: Agent { name: format!("agent-{n}"), node: "east".into() },
            mib_per_s: 100.0,
            blocks: 1,
            p99_ms: 1.0,
        };
        (0..count).map(rate).collect()
    }

    #[test]
    fn the_living_line_says_how_far_it_is_and_fits() {
        let half = living("seedring, round 1", 2.0, Some(4.0), &rates(2));
        assert!(half.contains("[##########..........] 2.0/4.0 s 200 MiB/s"), "{half}");
        assert!(half.ends_with("agent-0 100  agent-1 100"), "{half}");
        assert!(living("x", 9.0, Some(4.0), &[]).contains("[####################]"));
        let many = living("x", 1.0, None, &rates(1000));
        assert!(
            many.contains("100000 MiB/s") && many.ends_with(" ..") && many.len() < 110,
            "{many}"
        );
    }
}
