//! Owns: a run of the load that ended before its time, with what it had found; a comparison that
//! was asked to end.
//! Never: a figure of a table. Flow: `Options::leech` -> error chain -> `Report::fail`; signal ->
//! no further round.

use std::{
    error::Error,
    fmt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use anyhow::Result;

use crate::{agents::signals, leech::Outcome};

/// The signals that came, as their place in `NAMES`, from 1 on; nothing else is published by it.
static SIGNAL: AtomicUsize = AtomicUsize::new(0);
const NAMES: [&str; 2] = ["SIGINT", "SIGTERM"];

/// From here on the first signal ends the comparison after what is being measured, with its report;
/// the second one at once.
pub fn listen() -> Result<()> {
    signals::on_end(|name| {
        let number = 1 + NAMES.iter().position(|known| *known == name).unwrap_or(0);
        if SIGNAL.swap(number, Relaxed) != 0 {
            std::process::exit(130);
        }
        eprintln!("{name}: no further run, then the report; once more ends at once");
    })
}

/// The signal that came.
pub fn signal() -> Option<&'static str> {
    NAMES.get(SIGNAL.load(Relaxed).checked_sub(1)?).copied()
}

#[derive(Debug)]
pub struct Interrupted {
    pub why: String,
    pub outcome: Box<Outcome>,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, mib) = (self.outcome.seconds, self.outcome.mib_per_s);
        write!(f, "{} (until then {seconds:.1} s at {mib:.0} MiB/s)", self.why)
    }
}

impl Error for Interrupted {}
