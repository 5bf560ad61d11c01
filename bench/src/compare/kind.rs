//! Owns: which programs are compared, under which settings, whether each is there.
//! Never: starts one to be measured. Flow: names in a scenario -> `present` -> targets and, with
//! the reason, those that are absent.

use std::{fmt, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::{
    Options, Preset,
    summary::Report,
    target::{LIBTORRENT_SEED, script},
};

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Iperf3,
    /// The same bytes over HTTP, by sendfile: a ceiling.
    Nginx,
    /// A seeder without policy: one thread, all content in memory.
    Bare,
    Seedring,
    /// The same engine where io_uring can't be had.
    SeedringEpoll,
    TokioUring,
    Libtorrent,
    Qbittorrent,
    Rtorrent,
    Transmission,
    Rqbit,
    Vortex,
    Aria2,
    /// Rechecks only.
    Sha1sum,
}

/// Whose settings a target runs with.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Tuning {
    /// What its authors or users advise for seeding at speed.
    #[default]
    Tuned,
    /// Its own defaults; nothing is set but ports, folders and discovery off.
    Default,
}

/// A program with its settings: what a row of a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub kind: Kind,
    pub tuning: Tuning,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Iperf3 => "iperf3 (ceiling)",
            Kind::Nginx => "nginx sendfile (ceiling)",
            Kind::Bare => "bare seeder",
            Kind::Seedring => "seedring",
            Kind::SeedringEpoll => "seedring on epoll",
            Kind::TokioUring => "tokio-uring, straightforward",
            Kind::Libtorrent => "libtorrent",
            Kind::Qbittorrent => "qBittorrent",
            Kind::Rtorrent => "rTorrent",
            Kind::Transmission => "transmission",
            Kind::Rqbit => "rqbit",
            Kind::Vortex => "vortex",
            Kind::Aria2 => "aria2",
            Kind::Sha1sum => "sha1sum",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tuning {
            Tuning::Tuned => self.kind.fmt(f),
            Tuning::Default => f.pad(&format!("{}, default settings", self.kind)),
        }
    }
}

impl From<Kind> for Target {
    fn from(kind: Kind) -> Self {
        Target { kind, tuning: Tuning::Tuned }
    }
}

impl Target {
    /// What it is told, in words: the files are in bench/rivals.
    pub fn settings(self) -> &'static str {
        match (self.kind, self.tuning) {
            (Kind::Seedring | Kind::SeedringEpoll, Tuning::Tuned) => {
                "one shard, a cache that holds the content, connections as many as are opened"
            }
            (Kind::Seedring | Kind::SeedringEpoll, Tuning::Default) => {
                "its defaults: a shard a core, half of the free memory as cache, 2,000 \
                 connections, 500 a torrent"
            }
            (Kind::Libtorrent, Tuning::Tuned) => {
                "high_performance_seed, no limit of unchoke slots or connections, seed mode"
            }
            (Kind::Libtorrent, Tuning::Default) => "default_settings, seed mode; 8 unchoke slots",
            (Kind::Qbittorrent, Tuning::Tuned) => {
                "no limit of connections and slots, no queueing, send buffer watermarks of \
                 high_performance_seed"
            }
            (Kind::Qbittorrent, Tuning::Default) => {
                "500 connections, 100 a torrent, 20 upload slots, 4 a torrent"
            }
            (Kind::Rtorrent, Tuning::Tuned) => "no limit of peers and uploads, 8 GiB of pieces",
            (Kind::Rtorrent, Tuning::Default) => "its defaults",
            (Kind::Transmission, Tuning::Tuned) => {
                "no limit of peers, queues and upload slots, no uTP"
            }
            (Kind::Transmission, Tuning::Default) => {
                "200 peers, 50 a torrent, 14 upload slots a torrent; no uTP"
            }
            (Kind::Rqbit, Tuning::Tuned) => "--peer-limit as high as there are connections",
            (Kind::Rqbit, Tuning::Default) => "its defaults",
            (Kind::Aria2, Tuning::Tuned) => "no limit of peers; it serves 4 at a time in any case",
            (Kind::Aria2, Tuning::Default) => "55 peers; it serves 4 at a time",
            (Kind::Vortex, Tuning::Tuned) => {
                "as many connections and unchoked peers as there are, 1,024 buffers to send from"
            }
            (Kind::Vortex, Tuning::Default) => "its library's defaults",
            (Kind::Bare, _) => "one thread, all content in memory before it listens",
            (Kind::Iperf3 | Kind::Nginx | Kind::TokioUring | Kind::Sha1sum, _) => "",
        }
    }
}

impl Preset {
    /// Whether a target can run in this comparison at all, wherever it is installed.
    pub fn takes(self, kind: Kind) -> bool {
        use Kind::{
            Aria2, Bare, Iperf3, Libtorrent, Nginx, Qbittorrent, Rqbit, Rtorrent, Seedring,
            Sha1sum, TokioUring, Transmission, Vortex,
        };
        match self {
            // Parts of the engine are compared.
            Preset::Cold | Preset::Spread | Preset::Many | Preset::Beside => kind == Seedring,
            Preset::Seeding => kind != Sha1sum,
            Preset::Connections | Preset::SlowReaders | Preset::Churn | Preset::Restart => {
                kind != Sha1sum && !kind.is_ceiling()
            }
            // Several serve one torrent a process.
            Preset::SeedMany | Preset::StartUp => {
                !matches!(kind, Sha1sum | Iperf3 | Nginx | Bare | TokioUring | Vortex | Aria2)
            }
            Preset::Download => {
                matches!(kind, Seedring | Libtorrent | Transmission | Rqbit | Vortex | Aria2)
            }
            Preset::Mixed => matches!(
                kind,
                Seedring | Libtorrent | Qbittorrent | Transmission | Rtorrent | Rqbit | Aria2
            ),
            Preset::Recheck => matches!(kind, Seedring | Libtorrent | Sha1sum),
        }
    }

    /// That all of them can, else which it takes.
    pub fn check_targets(self, kinds: &[Kind]) -> Result<()> {
        let Some(other) = kinds.iter().find(|kind| !self.takes(**kind)) else { return Ok(()) };
        let fit: Vec<String> = Kind::value_variants()
            .iter()
            .filter(|kind| self.takes(**kind))
            .map(|kind| written(*kind))
            .collect();
        bail!(
            "{} has no part in the comparison {}, which takes {}",
            written(*other),
            written(self),
            fit.join(", ")
        )
    }
}

/// As it is written in scenarios and on the command line.
fn written(name: impl ValueEnum) -> String {
    name.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

impl Kind {
    /// Bytes go out, blocks do not: it is not asked for any.
    pub fn is_ceiling(self) -> bool {
        matches!(self, Kind::Iperf3 | Kind::Nginx)
    }

    /// Whether one whole download comes first, so that the content is in the target's own cache.
    /// transmission has none, and goes by a clock: that would take minutes.
    pub fn is_heated(self) -> bool {
        self != Kind::Transmission
    }

    /// Whether its own defaults differ from what it is tuned to.
    pub fn has_defaults(self) -> bool {
        !matches!(
            self,
            Kind::Iperf3
                | Kind::Nginx
                | Kind::Bare
                | Kind::SeedringEpoll
                | Kind::TokioUring
                | Kind::Sha1sum
        )
    }

    /// The installed version, or why there is none and what to do.
    pub fn version(self, options: &Options) -> Result<String> {
        let (program, argument, remedy) = self.program(options);
        let mut command = Command::new(program);
        if self == Kind::Libtorrent {
            command.arg(script(options, LIBTORRENT_SEED)?);
        }
        let output = command
            .arg(argument)
            .output()
            .with_context(|| format!("cannot run {}; try: {remedy}", program.display()))?;
        // transmission and nginx say it on stderr.
        let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let text = String::from_utf8_lossy(said);
        let line = text.lines().find(|line| line.chars().any(|letter| letter.is_ascii_digit()));
        let line = line.map(str::trim).filter(|_| output.status.success());
        line.map(|line| line.trim_end_matches('.').to_string()).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}; try: {remedy}", program.display(), complaint.trim())
        })
    }

    /// What is run, how it is asked for its version, where it comes from.
    fn program(self, options: &Options) -> (&Path, &'static str, &'static str) {
        let site = &options.site;
        let by_name: fn(&'static str) -> &'static Path = Path::new;
        match self {
            Kind::Iperf3 => (by_name("iperf3"), "--version", "apt install iperf3"),
            Kind::Nginx => (&site.nginx, "-v", "apt install nginx-light"),
            Kind::Bare => (by_name("/proc/self/exe"), "--version", "it is this program"),
            Kind::Seedring | Kind::SeedringEpoll => {
                (&site.seedring, "--version", "cargo build --release")
            }
            Kind::TokioUring => (
                site.baseline(),
                "--version",
                "cargo build --release --manifest-path bench/baselines/Cargo.toml",
            ),
            Kind::Libtorrent => (
                &site.python,
                "--version",
                "python3 -m venv V; V/bin/pip install libtorrent; --python V/bin/python",
            ),
            Kind::Qbittorrent => {
                (&site.qbittorrent, "--version", "apt install qbittorrent-nox (4.5)")
            }
            Kind::Rtorrent => (&site.rtorrent, "-h", "apt install rtorrent"),
            // It downloads by its command line, and seeds by its daemon.
            Kind::Transmission if options.preset == Preset::Download => {
                (&site.transmission, "--version", "apt install transmission-cli (3.00)")
            }
            Kind::Transmission => {
                (&site.transmission_daemon, "--version", "apt install transmission-daemon (3.00)")
            }
            Kind::Rqbit => (&site.rqbit, "--version", "cargo install rqbit"),
            Kind::Vortex => (
                site.vortex(),
                "--version",
                "cargo build --release --manifest-path bench/rivals/Cargo.toml",
            ),
            Kind::Aria2 => (&site.aria2, "--version", "apt install aria2"),
            Kind::Sha1sum => (by_name("sha1sum"), "--version", "apt install coreutils"),
        }
    }
}

/// Those of `kinds` that can run, their versions and the others' reasons in the report.
pub fn present(options: &Options, kinds: &[Kind], report: &mut Report) -> Result<Vec<Kind>> {
    let mut targets = Vec::new();
    for kind in kinds {
        match kind.version(options) {
            Ok(version) => {
                report.versions.push(format!("{kind}: {version}"));
                targets.push(*kind);
            }
            Err(error) => {
                eprintln!("{kind} is absent: {error:#}");
                report.absent.push(format!("{kind}: {error:#}"));
            }
        }
    }
    ensure!(!targets.is_empty(), "none of the targets can run");
    Ok(targets)
}

/// The same as targets: each under all settings that were asked for and differ.
pub fn targets(options: &Options, kinds: &[Kind], report: &mut Report) -> Result<Vec<Target>> {
    let kinds = present(options, kinds, report)?;
    let targets: Vec<Target> = kinds
        .into_iter()
        .flat_map(|kind| {
            let tunings: &[Tuning] =
                if kind.has_defaults() { &options.settings } else { &[Tuning::Tuned] };
            tunings.iter().map(move |tuning| Target { kind, tuning: *tuning })
        })
        .collect();
    let told = targets.iter().filter(|target| !target.settings().is_empty());
    report.settings.extend(told.map(|target| format!("{target}: {}", target.settings())));
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_that_is_not_there_is_listed_with_its_remedy_and_is_no_target() {
        let mut options = Options::default();
        options.site.qbittorrent = "/nowhere/qbittorrent-nox".into();
        options.site.nginx = "false".into();
        options.site.rqbit = "/nowhere/rqbit".into();
        options.site.vortex = "/nowhere/vortex".into();
        options.site.aria2 = "/nowhere/aria2c".into();
        options.site.transmission_daemon = "/nowhere/transmission-daemon".into();
        let missing = [
            Kind::Qbittorrent,
            Kind::Nginx,
            Kind::Rqbit,
            Kind::Vortex,
            Kind::Aria2,
            Kind::Transmission,
        ];
        let mut report = Report::default();
        let kinds: Vec<Kind> = missing.into_iter().chain([Kind::Sha1sum]).collect();
        let targets = targets(&options, &kinds, &mut report).expect("sha1sum is there");
        assert_eq!(targets, [Target::from(Kind::Sha1sum)]);
        assert_eq!(report.absent.len(), missing.len(), "{:?}", report.absent);
        for (kind, line) in missing.iter().zip(&report.absent) {
            assert!(line.starts_with(&kind.to_string()) && line.contains("; try: "), "{line}");
        }
    }

    #[test]
    fn what_a_comparison_runs_by_itself_it_takes_and_others_are_refused_by_name() {
        for preset in Preset::value_variants() {
            let options = Options { preset: *preset, ..Options::default() };
            preset.check_targets(options.targets()).expect("its own targets");
            assert_eq!(preset.takes(Kind::Sha1sum), *preset == Preset::Recheck);
        }
        let refused = |preset: Preset, kind| preset.check_targets(&[Kind::Seedring, kind]);
        let error = refused(Preset::Cold, Kind::Libtorrent).expect_err("the engine's own");
        let words = "libtorrent has no part in the comparison cold, which takes seedring";
        assert_eq!(error.to_string(), words);
        assert!(refused(Preset::Download, Kind::Qbittorrent).is_err());
        assert!(refused(Preset::Download, Kind::Aria2).is_ok());
        assert!(refused(Preset::StartUp, Kind::Aria2).is_err(), "one torrent a process");
        assert!(refused(Preset::Churn, Kind::Iperf3).is_err(), "it knows no blocks");
    }

    #[test]
    fn both_settings_are_targets_of_their_own_where_they_differ() {
        let tunings = [Tuning::Tuned, Tuning::Default];
        let options = Options { settings: tunings.to_vec(), ..Options::default() };
        let mut report = Report::default();
        let targets = targets(&options, &[Kind::Sha1sum], &mut report).expect("sha1sum is there");
        assert_eq!(targets.len(), 1, "its settings do not differ");
        assert!(Kind::Libtorrent.has_defaults() && !Kind::Nginx.has_defaults());
        let default = Target { kind: Kind::Libtorrent, tuning: Tuning::Default };
        assert_eq!(default.to_string(), "libtorrent, default settings");
    }
}
