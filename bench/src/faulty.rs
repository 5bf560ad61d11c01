//! Owns: what a seeder of the bench's own can do wrong, so that it can be shown that the load sees
//! it.
//! Never: stands in a figure that is published. Flow: `--fault` -> the seeder (`seed.rs`), which
//! asks at each block.

use std::{fmt, process::ExitCode, str::FromStr, sync::Arc, time::Duration};

use anyhow::Result;

use crate::seed::{Seeder, Share, Source};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    source: Source,
    /// What goes wrong: none, corrupt:N, wrong-piece:N, unasked:N (each with every N-th block),
    /// stall:LENGTH/PERIOD (as 1s/10s), close:N (that connection), crash:N (the process).
    #[arg(long)]
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// One byte is another one.
    Corrupt(u64),
    /// The answer names another piece than was asked for.
    WrongPiece(u64),
    /// A block is sent once more, which nobody asked for.
    Unasked(u64),
    /// Nothing is sent for the last `length` of each `period`.
    Stall {
        length: Duration,
        period: Duration,
    },
    Close(u64),
    Crash(u64),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let every = || -> Result<u64, String> {
            let number = value.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("expected {name}:N with N above 0, found {text:?}"))
        };
        Ok(match name {
            "none" => Fault::None,
            "corrupt" => Fault::Corrupt(every()?),
            "wrong-piece" => Fault::WrongPiece(every()?),
            "unasked" => Fault::Unasked(every()?),
            "close" => Fault::Close(every()?),
            "crash" => Fault::Crash(every()?),
            "stall" => {
                let both = value
                    .split_once('/')
                    .and_then(|(length, period)| Some((duration(length)?, duration(period)?)));
                let both = both.filter(|(length, period)| length < period && !length.is_zero());
                let (length, period) = both.ok_or_else(|| {
                    format!("expected stall:LENGTH/PERIOD such as stall:1s/10s, found {text:?}")
                })?;
                Fault::Stall { length, period }
            }
            _ => return Err(format!("unknown fault {text:?}: see --help")),
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// `1s` or `250ms`.
fn duration(text: &str) -> Option<Duration> {
    let (digits, scale) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    Some(Duration::from_millis(digits.parse::<u64>().ok()?.checked_mul(scale)?))
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let seeder = Arc::new(Seeder::of(&options.source, Share::ALL, options.fault)?);
    eprintln!("a target that is wrong on purpose: its figures are worth nothing");
    seeder.listen(options.source.listen, &format!(" with fault {}", options.fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let read = |text: &str| text.parse::<Fault>();
        assert_eq!(read("corrupt:100000"), Ok(Fault::Corrupt(100_000)));
        assert_eq!(read("wrong-piece:3"), Ok(Fault::WrongPiece(3)));
        let (length, period) = (Duration::from_millis(250), Duration::from_secs(2));
        assert_eq!(read("stall:250ms/2s"), Ok(Fault::Stall { length, period }));
        for wrong in ["corrupt", "corrupt:0", "stall:2s/1s", "stall:1/2", "stall:0s/1s", "slow:1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
