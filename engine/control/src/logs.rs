//! Log lines, for people or as JSON, and their peace with the live status on the same terminal.
//!
//! Owns: the tracing subscriber, the terminal's status area. Never: what is logged.
//! Flow: `init` once; everybody logs through `tracing`; lines go above the status area.

use std::{
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::model::{Log, LogFormat, LogLevel};

static STATUS_AREA: OnceLock<Option<MultiProgress>> = OnceLock::new();

/// The status area, where standard error is a terminal.
pub fn terminal() -> Option<MultiProgress> {
    STATUS_AREA.get_or_init(|| io::stderr().is_terminal().then(MultiProgress::new)).clone()
}

/// Prints for people and pipes, above the status area where there is one.
pub fn print(text: &str) {
    // A reader that went away has seen enough.
    let print = || {
        let _ = writeln!(io::stdout(), "{text}");
    };
    match terminal() {
        Some(area) => area.suspend(print),
        None => print(),
    }
}

/// Starts logging to standard error. `SEEDRING_LOG` (tracing's filter syntax) overrides the level.
pub fn init(log: &Log) {
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::try_from_env("SEEDRING_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = fmt::layer().with_writer(|| Lines).with_target(false);
    let lines = match log.format {
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // Fails only where a subscriber is there already (tests).
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match terminal() {
            Some(area) => area.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
