//! Owns: a run of the load that ended before its time, with what it had found.
//! Never: a figure of a table. Flow: `Options::leech` -> error chain -> `Report::fail`.

use std::{error::Error, fmt};

use crate::leech::Outcome;

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
