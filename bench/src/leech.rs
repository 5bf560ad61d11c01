//! Owns: `seedring-bench leech`: its options, and what they may not contradict.
//! Never: talks to sockets. Flow: options -> measure (threads, windows, probes) -> report.

mod assembly;
mod connection;
mod crowd;
pub mod frames;
mod histogram;
mod inbound;
mod lead;
mod measure;
mod outcome;
mod pace;
mod sample;
mod stalls;
mod strain;
mod tally;
pub mod walk;
mod watched;
mod worker;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};

pub use connection::fetch_first_block;
pub use crowd::{Offer, torrents};
pub use histogram::from_text as read_histogram;
pub use lead::{Alone, Found, Kept, Lanes, Lead, PARTS_MAX, Part, Progress};
pub use measure::{led, ready_max, settle};
pub use outcome::{Beside, ByAgent, IdleBytes, Latency, Outcome};
pub use sample::Sample;
pub use strain::BUSY_MAX;
pub use walk::{Pattern, Random};
pub use watched::{Seen, Watched};

use crate::{environment, probe::Machine, report};

/// Requests a connection may have outstanding: libtorrent's default `max_out_request_queue`.
pub const OUTSTANDING_MAX: usize = 500;
pub const BLOCK_BYTES_MAX: u32 = 128 * 1024;
/// A port a connection, and several addresses.
const MEMBERS_MAX: usize = 2_000_000;
/// A day.
const SECONDS_MAX: f64 = 86_400.0;

#[derive(clap::Args, Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Where the seeder listens, as ADDRESS:PORT.
    pub target: SocketAddr,
    /// The .torrent that it seeds, or a folder of them: each connection is of one.
    #[arg(long)]
    #[serde(skip)]
    pub torrent: PathBuf,
    /// Of several, the Nth torrent by name is chosen as often as 1/N to this power.
    #[arg(long, default_value_t = 1.0)]
    pub zipf: f64,
    #[arg(long, short = 'k', default_value_t = 1)]
    pub connections: usize,
    /// Requests kept outstanding on each connection.
    #[arg(long, short = 'q', default_value_t = 32)]
    pub outstanding: usize,
    /// Bytes a request asks for.
    #[arg(long, default_value_t = 16 * 1024)]
    pub block: u32,
    #[arg(long, value_enum, default_value = "random")]
    pub pattern: Pattern,
    /// Measure for so many seconds (after the warm-up).
    #[arg(long, default_value_t = 10.0, conflicts_with_all = ["bytes", "once"])]
    pub duration: f64,
    /// Measure until so many bytes have come (after the warm-up).
    #[arg(long, conflicts_with = "once", value_parser = parse_bytes)]
    pub bytes: Option<u64>,
    /// Each connection fetches the whole torrent once; measured from the first connect, no warm-up.
    #[arg(long)]
    pub once: bool,
    /// Seconds at full speed before the measurement.
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Give up after so many seconds, however much has come.
    #[arg(long, default_value_t = 600.0)]
    pub deadline: f64,
    /// Give up after so many seconds in which nothing came; what was measured is reported.
    #[arg(long, default_value_t = 30.0)]
    pub patience: f64,
    /// Hash each piece; the exit status is 1 when one is bad.
    #[arg(long, conflicts_with = "discard")]
    pub verify: bool,
    /// Hash one piece in N, and drop the rest unread: random blocks become random pieces, each
    /// asked for in order.
    #[arg(long, value_name = "N", conflicts_with = "verify")]
    pub verify_sample: Option<Sample>,
    /// Drop payload unread (the default).
    #[arg(long)]
    pub discard: bool,
    /// Read the head of every block, even while blocks come in the order asked for.
    #[arg(long)]
    pub all_heads: bool,
    /// Open loop: ask for blocks at this many MiB/s, whatever comes back.
    #[arg(long, value_name = "MIB_PER_S", conflicts_with = "once")]
    pub open_loop: Option<f64>,
    /// Only open this many connections, keep them idle, and report the target's memory for each.
    #[arg(long, value_name = "N")]
    #[arg(conflicts_with_all = ["open_loop", "bytes", "once", "connections"])]
    pub idle: Option<usize>,
    /// Hold so many idle connections beside the others.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub idle_beside: usize,
    /// Hold so many connections beside the others that read at --slow-rate with full queues.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub slow: usize,
    /// Bytes a second that a slow one reads.
    #[arg(long, default_value = "4KiB", value_parser = parse_bytes)]
    pub slow_rate: u64,
    /// So many connections come each second, by chance, in place of --connections.
    #[arg(long, value_name = "PER_SECOND", requires = "stay")]
    #[arg(conflicts_with_all = ["connections", "once", "idle", "open_loop", "verify"])]
    pub arrivals: Option<f64>,
    /// How long one that comes stays, on average, in seconds; it leaves without a word.
    #[arg(long, requires = "arrivals")]
    pub stay: Option<f64>,
    /// The longest that a lost connection waits until it is opened again, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub reopen_max: u64,
    /// Addresses to connect from, as ADDRESS/PREFIX; a connection each, in turn. On loopback
    /// 127.64.0.0/12 is the default, because several clients take one connection an address.
    #[arg(long)]
    pub source: Option<Source>,
    /// Threads of the load.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// The target's process: report its CPU, memory and reads (with its descendants').
    #[arg(long)]
    #[serde(skip)]
    pub pid: Option<u32>,
    /// The core that the target runs on: what the kernel's network work takes of it is reported.
    #[arg(long, value_name = "CORE")]
    #[serde(skip)]
    pub target_core: Option<usize>,
    /// After the window, count the target's system calls for another second (with perf).
    #[arg(long, requires = "pid")]
    #[serde(skip)]
    pub syscalls: bool,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON instead of the table.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// Which members of the crowd are this process's, where it is one of several agents.
    #[arg(skip)]
    #[serde(skip)]
    pub part: Part,
    /// Seconds in which the load goes on after the window.
    #[arg(skip)]
    pub linger: f64,
}

/// Addresses to connect from.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source {
    first: std::net::Ipv4Addr,
    prefix: u32,
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected IPV4/PREFIX such as 10.77.0.0/16, found {text:?}");
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(wrong)?;
        Ok(Source { first: address.parse().map_err(|_| wrong())?, prefix })
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> String {
        format!("{}/{}", source.first, source.prefix)
    }
}

impl Source {
    /// The address of connection `index`; network and broadcast address are left out, and so are
    /// the first 255, where targets live.
    pub fn address(&self, index: usize) -> SocketAddr {
        let size = 1_u64 << (32 - self.prefix);
        let skipped = if size > 1024 { 256 } else { u64::from(size > 2) };
        let usable = (size - skipped).saturating_sub(u64::from(size > 2)).max(1);
        let network = u64::from(u32::from(self.first)) & !(size - 1);
        let base = if size > 2 { network } else { u64::from(u32::from(self.first)) };
        let address = base + skipped + index as u64 % usable;
        SocketAddr::from((std::net::Ipv4Addr::from(address as u32), 0))
    }
}

/// Bytes with an optional KiB, MiB or GiB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" | "k" | "K" => 1 << 10,
        "MiB" | "m" | "M" => 1 << 20,
        "GiB" | "g" | "G" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}: use KiB, MiB or GiB")),
    };
    let number: f64 =
        digits.trim().parse().map_err(|_| format!("expected a number of bytes, found {text:?}"))?;
    Ok((number * f64::from(factor)) as u64)
}

impl Options {
    /// Members of the whole crowd, at most, those that come by chance left out.
    pub fn members_max(&self) -> usize {
        let beside = self.slow.saturating_add(self.idle_beside);
        self.active().saturating_add(beside).saturating_add(self.idle.unwrap_or(0))
    }

    pub fn check(&self) -> Result<()> {
        ensure!(
            self.members_max() <= MEMBERS_MAX,
            "more than {MEMBERS_MAX} connections: use several targets"
        );
        let seconds = [self.duration, self.warm_up, self.deadline, self.patience, self.linger];
        let is_time = |seconds: &f64| (0.0..=SECONDS_MAX).contains(seconds);
        ensure!(seconds.iter().all(is_time), "times are 0 to {SECONDS_MAX} seconds");
        ensure!(self.connections > 0, "--connections must be at least 1");
        ensure!(self.idle != Some(0), "--idle must be at least 1");
        ensure!(
            (1..=OUTSTANDING_MAX).contains(&self.outstanding),
            "--outstanding must be 1 to {OUTSTANDING_MAX}"
        );
        ensure!(
            (1..=BLOCK_BYTES_MAX).contains(&self.block),
            "--block must be 1 to {BLOCK_BYTES_MAX} bytes; most seeders refuse more than 16384"
        );
        ensure!((1..=256).contains(&self.threads), "--threads must be 1 to 256");
        ensure!(
            self.duration > 0.0
                && self.warm_up >= 0.0
                && self.deadline > 0.0
                && self.patience > 0.0,
            "--duration, --warm-up, --deadline and --patience are seconds, above 0"
        );
        ensure!(self.open_loop.is_none_or(|rate| rate > 0.0), "--open-loop needs a rate above 0");
        ensure!(
            self.arrivals.zip(self.stay).is_none_or(|(rate, stay)| rate > 0.0 && stay > 0.0),
            "--arrivals and --stay must be above 0"
        );
        ensure!(
            !self.once || (self.slow == 0 && self.idle_beside == 0),
            "--once is over when all have everything: use it without --slow and --idle-beside"
        );
        ensure!(self.slow == 0 || self.slow_rate > 0, "--slow-rate must be above 0");
        ensure!((0.0..=5.0).contains(&self.zipf), "--zipf is a power from 0 to 5");
        self.part.check()?;
        ensure!(
            !(self.verify && self.bytes.is_none() && self.open_loop.is_some()),
            "--open-loop measures latency: use it without --verify"
        );
        if let Some(pid) = self.pid {
            crate::probe::Reading::take(pid).with_context(|| format!("--pid {pid}"))?;
        }
        Ok(())
    }

    pub fn source_of(&self, index: usize) -> Option<SocketAddr> {
        let loopback = Source { first: std::net::Ipv4Addr::new(127, 64, 0, 0), prefix: 12 };
        let default = (self.target.is_ipv4() && self.target.ip().is_loopback()).then_some(loopback);
        self.source.or(default).map(|source| source.address(index))
    }
}

pub fn run(options: &Options) -> Result<ExitCode> {
    options.check()?;
    let outcome = measure::run(options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&Printed::of(&outcome))?);
    } else {
        print!("{}", report::leech(&outcome));
    }
    if let Some(why) = &outcome.partial {
        let last = outcome.last_end.as_deref().unwrap_or("nothing was said");
        eprintln!("seedring-bench: PARTIAL: {why}; last seen on a connection: {last}");
    }
    if outcome.pieces_bad > 0 {
        eprintln!("seedring-bench: {}", outcome.bad_in_words());
    }
    let failed = outcome.pieces_bad > 0 || outcome.partial.is_some();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// An outcome as --json prints it.
#[derive(serde::Serialize)]
struct Printed<'a> {
    schema: u64,
    machine: Machine,
    git_revision: String,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

impl<'a> Printed<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        let git_revision = environment::git_revision();
        Printed { schema: environment::SCHEMA, machine: Machine::read(), git_revision, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_spread_and_stay_inside() {
        let source: Source = "10.77.0.0/16".parse().expect("valid");
        let mut seen = std::collections::HashSet::new();
        for index in 0..70_000 {
            let std::net::IpAddr::V4(address) = source.address(index).ip() else { panic!("v4") };
            let octets = address.octets();
            assert_eq!(octets[..2], [10, 77]);
            assert!(octets[2] > 0 && octets != [10, 77, 255, 255], "{address}");
            seen.insert(address);
        }
        assert_eq!(seen.len(), 65_536 - 257);
        let one: Source = "10.1.2.3".parse().expect("valid");
        assert_eq!(one.address(5).to_string(), "10.1.2.3:0");
        assert!("10.0.0.0/33".parse::<Source>().is_err());
    }

    #[test]
    fn bytes_take_units() {
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("16384"), Ok(16_384));
        assert!(parse_bytes("3 parsecs").is_err());
    }
}
