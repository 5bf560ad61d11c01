//! Owns: `seedring-bench compare`: its options, and the one place where a preset is chosen.
//! Never: measures (the load does, as a process of its own). Flow: own namespace -> preset ->
//! report.

mod afar;
mod beside;
mod cold;
mod crowds;
mod download;
mod downloader;
mod follow;
mod hosts;
mod interrupted;
mod kind;
mod load;
mod many;
mod mixed;
mod pictures;
mod plot;
mod recheck;
mod rival;
mod rounds;
mod seeding;
mod spread;
mod starts;
mod summary;
mod swarm;
mod target;

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

pub use afar::{Afar, check_preset};
use interrupted::Interrupted;
pub use kind::{Kind, Tuning};
pub use summary::{Spread, table};

use crate::{
    agents::{nodes, runner},
    cut,
    environment::{Circumstances, Environment},
    leech::{BLOCK_BYTES_MAX, OUTSTANDING_MAX, Pattern, parse_bytes},
    namespace, nic,
};

/// Where targets listen inside the benchmark's own network namespace.
const TARGET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(namespace::ADDRESS), 6881);
/// Where the load connects from: each connection has an address of its own.
const SOURCES: &str = "10.77.0.0/16";
/// Where these programs lie once they are built; elsewhere they are looked for by name.
const BASELINE: &str = "bench/baselines/target/release/tokio-uring-seed";
const VORTEX: &str = "bench/rivals/target/release/vortex-peer";
/// Open files of targets and load, which inherit it.
const DESCRIPTORS: u64 = 200_000;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Hot content, 1, 50 and 500 connections, rivals and the iperf3 ceiling interleaved.
    Seeding,
    /// Content larger than the cache: disk reads, and throughput beside a plain O_DIRECT read.
    Cold,
    /// One hot torrent on one shard and on several.
    Spread,
    /// 10,000 torrents: start-up, memory, idle CPU; 2,000 idle connections.
    Many,
    /// One torrent from several seeders: speed and cost of the downloader.
    Download,
    /// Hashing content that is there: hot and cold, on one core and on two.
    Recheck,
    /// Uploads at half load, without and beside a recheck of another torrent.
    Beside,
    /// 2,000 to 50,000 connections, mostly idle: memory each, idle CPU, latency of the active ones.
    Connections,
    /// A few fast connections alone, and beside many that hardly read.
    SlowReaders,
    /// Connections that come and go, beside as many that stay.
    Churn,
    /// Many torrents, few of them popular, connections that come and go.
    SeedMany,
    /// Many torrents: time until all serve, on the first start and on the second.
    StartUp,
    /// Ended and started again under load: time until bytes flow again.
    Restart,
    /// Each is seed and leech together: time until all have all.
    Mixed,
}

#[derive(clap::Args, Clone, Debug, serde::Serialize)]
pub struct Options {
    #[arg(long, value_enum, default_value = "seeding")]
    pub preset: Preset,
    /// Targets, in the order they run; all of the preset's by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub targets: Vec<Kind>,
    /// Whose settings targets run with; both, to see what tuning brings.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tuned")]
    pub settings: Vec<Tuning>,
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds measured at each point.
    #[arg(long, default_value_t = 8.0)]
    pub seconds: f64,
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Connections, a point each; by default what the preset has.
    #[arg(long, value_delimiter = ',')]
    pub connections: Vec<usize>,
    /// Which blocks the load asks for (seeding, spread, beside, connections, slow-readers, churn,
    /// seed-many, restart).
    #[arg(long, value_enum, default_value = "random")]
    pub pattern: Pattern,
    /// Requests that each connection keeps outstanding (as `--pattern`).
    #[arg(long, default_value_t = 32)]
    pub outstanding: usize,
    /// Bytes that a request asks for (as `--pattern`); most clients refuse more than 16KiB.
    #[arg(long, default_value = "16KiB", value_parser = parse_bytes)]
    pub block: u64,
    /// Without the open-loop run at half of each target's speed.
    #[arg(long)]
    pub no_open_loop: bool,
    /// Size of the content; 2GiB (all presets but `many`).
    #[arg(long, value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Numbers of shards of the preset `spread`. On a machine with twice as many cores as the
    /// largest, the engine gets as many cores as it has shards, and the load others.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub shards: Vec<usize>,
    /// Small torrents of the preset `many`.
    #[arg(long, default_value_t = 10_000)]
    pub torrents: usize,
    /// Of several torrents the Nth is chosen as often as 1/N to this power (`seed-many`).
    #[arg(long, default_value_t = 1.0)]
    pub zipf: f64,
    /// Connections that come each second (`churn`, `seed-many`).
    #[arg(long, default_value_t = 50.0)]
    pub arrivals: f64,
    /// How long each stays, on average, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub stay: f64,
    /// Connections that hardly read, and what each reads a second (`slow-readers`).
    #[arg(long, default_value_t = 500)]
    pub slow: usize,
    #[arg(long, default_value = "4KiB", value_parser = parse_bytes)]
    pub slow_rate: u64,
    /// How many of one client a swarm of them alone has (`mixed`).
    #[arg(long, default_value_t = 4)]
    pub members: usize,
    /// What the only seed sends at most (`mixed`).
    #[arg(long, default_value_t = 32)]
    pub seed_mib_per_s: usize,
    /// Numbers of seeders of the preset `download`; several give a curve.
    #[arg(long, value_delimiter = ',', default_value = "4")]
    pub peers: Vec<usize>,
    /// How many percent of the pieces each seeder has; together they have all (`download`).
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    pub seeders_have_percent: u8,
    /// Seeders that have a part are mixed peers: they fetch the rest from the downloader
    /// (`download`).
    #[arg(long)]
    pub mixed_peers: bool,
    #[command(flatten)]
    pub site: Site,
}

/// Where things are, and what runs where: the same for every comparison.
#[derive(clap::Args, Clone, Debug, serde::Serialize)]
pub struct Site {
    /// Content, configurations and state are kept here; content is made once.
    #[arg(long, default_value = "var/bench")]
    pub work: PathBuf,
    /// Where the report goes; the work folder by default.
    #[arg(long)]
    pub out: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,
    #[arg(long, default_value_t = 1)]
    pub load_core: usize,
    #[arg(long, default_value = "target/release/seedring")]
    pub seedring: PathBuf,
    #[arg(long, default_value = BASELINE)]
    baseline: PathBuf,
    /// A Python that can import libtorrent.
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    #[arg(long, default_value = "rqbit")]
    pub rqbit: PathBuf,
    #[arg(long, default_value = "rtorrent")]
    pub rtorrent: PathBuf,
    #[arg(long, default_value = "transmission-cli")]
    pub transmission: PathBuf,
    /// Transmission as a seeder.
    #[arg(long, default_value = "transmission-daemon")]
    pub transmission_daemon: PathBuf,
    #[arg(long, default_value = "aria2c")]
    pub aria2: PathBuf,
    #[arg(long, default_value = "qbittorrent-nox")]
    pub qbittorrent: PathBuf,
    #[arg(long, default_value = "nginx")]
    pub nginx: PathBuf,
    #[arg(long, default_value = VORTEX)]
    vortex: PathBuf,
    /// Where the load comes from agents: their controller, and where targets listen for them.
    #[arg(skip)]
    #[serde(skip)]
    pub afar: Option<Afar>,
    /// Set by the command itself once it runs in its own namespace.
    #[arg(long, hide = true)]
    #[serde(skip)]
    inside: bool,
}

impl Default for Options {
    /// What the command line has where nothing is said.
    fn default() -> Options {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: Options,
        }
        <Alone as clap::Parser>::parse_from(["compare"]).options
    }
}

/// The path; where it is the usual one, and nothing lies there, its name alone.
fn or_by_name<'a>(path: &'a Path, usual: &str) -> &'a Path {
    let is_elsewhere = path == Path::new(usual) && !path.exists();
    path.file_name().filter(|_| is_elsewhere).map_or(path, Path::new)
}

impl Site {
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    pub fn baseline(&self) -> &Path {
        or_by_name(&self.baseline, BASELINE)
    }

    pub fn vortex(&self) -> &Path {
        or_by_name(&self.vortex, VORTEX)
    }
}

pub fn run(options: Options) -> Result<ExitCode> {
    if !options.site.inside {
        return namespace::run_inside();
    }
    let name = format!("{:?}", options.preset).to_lowercase();
    measure(options, &name, None)
}

/// Runs a comparison, and writes its report as NAME.md, NAME.json and NAME.html. In a namespace of
/// its own already, or where agents reach it.
pub fn measure(options: Options, name: &str, title: Option<&str>) -> Result<ExitCode> {
    let afar = options.site.afar.clone();
    let written = measure_and_write(options, name, title);
    if let Some(afar) = afar {
        let (files, why) = match &written {
            Ok(written) => (written.files.as_slice(), written.what_is_wrong()),
            Err(error) => (&[][..], Some(format!("{error:#}"))),
        };
        if let Err(error) = afar.runner.bye(files, why) {
            eprintln!("the report was not handed to those who watch: {error:#}");
        }
    }
    Ok(match written? {
        Written { cut_short: true, .. } => ExitCode::from(cut::STATUS),
        Written { failed, .. } if failed.is_empty() => ExitCode::SUCCESS,
        Written { .. } => ExitCode::FAILURE,
    })
}

/// A report as it lies there.
struct Written {
    files: Vec<PathBuf>,
    cut_short: bool,
    failed: Vec<String>,
}

impl Written {
    fn what_is_wrong(&self) -> Option<String> {
        let cut = self.cut_short.then(|| "cut short by a signal".to_owned());
        let all: Vec<String> = cut.into_iter().chain(self.failed.iter().cloned()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

fn measure_and_write(mut options: Options, name: &str, title: Option<&str>) -> Result<Written> {
    ensure!(options.rounds > 0 && options.seconds > 0.0, "--rounds and --seconds must be above 0");
    options.preset.check_targets(&options.targets)?;
    ensure!(!options.settings.is_empty(), "--settings needs one: tuned, default");
    ensure!(
        (1..=OUTSTANDING_MAX).contains(&options.outstanding),
        "--outstanding must be 1 to {OUTSTANDING_MAX}"
    );
    ensure!(
        (1..=u64::from(BLOCK_BYTES_MAX)).contains(&options.block),
        "--block must be 1 to {BLOCK_BYTES_MAX} bytes"
    );
    fs::create_dir_all(&options.site.work)
        .with_context(|| format!("cannot make the work folder {}", options.site.work.display()))?;
    options.site.work = options.site.work.canonicalize()?;
    raise_descriptor_limit();
    cut::watch_comparison()?;
    let congestion = match &options.site.afar {
        None => namespace::prepare()?,
        Some(afar) => namespace::congestion(afar.target.ip())?,
    };
    let mut report = match options.preset {
        Preset::Seeding => seeding::run(&options)?,
        Preset::Cold => cold::run(&options)?,
        Preset::Spread => spread::run(&options)?,
        Preset::Many => many::run(&options)?,
        Preset::Download => download::run(&options)?,
        Preset::Recheck => recheck::run(&options)?,
        Preset::Beside => beside::run(&options)?,
        Preset::Connections => crowds::connections(&options)?,
        Preset::SlowReaders => crowds::slow_readers(&options)?,
        Preset::Churn => crowds::churn(&options)?,
        Preset::SeedMany => crowds::seed_many(&options)?,
        Preset::StartUp => starts::start_up(&options)?,
        Preset::Restart => starts::restart(&options)?,
        Preset::Mixed => mixed::run(&options)?,
    };
    report.cut_short = cut::is_asked();
    ensure!(!report.cut_short || !report.runs.is_empty(), "cut short before a run was over");
    if let Some(title) = title {
        report.title = title.to_owned();
    }
    let out = options.site.out.clone().unwrap_or_else(|| options.site.work.clone());
    let site = &options.site;
    let (network, nic) = match &site.afar {
        None => ("own network namespace, loopback".to_owned(), "loopback".to_owned()),
        Some(Afar { runner, target }) => (
            format!("{} agents, targets listen on {target}", runner.agents.len()),
            nic::towards(target.ip(), true),
        ),
    };
    let of = (network.as_str(), nic.as_str());
    let environment = Environment::read(&site.work, &site.seedring, &congestion, of);
    if let Some(Afar { runner, target }) = &site.afar {
        report.notes = runner::notes(runner, *target, &congestion);
        report.sections.extend(nodes::section(&report.runs, &runner.agents, &environment)?);
    }
    let around = Circumstances {
        environment,
        settings: settings(&options)?,
        content_bytes: options.size_bytes(),
    };
    let files = report.write(&out, name, &around)?;
    Ok(Written { files, cut_short: report.cut_short, failed: report.failed })
}

/// The options, and what is the same in every comparison now and was not always.
fn settings(options: &Options) -> Result<serde_json::Value> {
    let mut settings = serde_json::to_value(options)?;
    settings["verify_sample"] = options.sample().into();
    Ok(settings)
}

/// As far as it goes: who then has too few says so.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= DESCRIPTORS);
    if is_enough(limit.current) {
        return;
    }
    // Without CAP_SYS_RESOURCE the hard limit is the end.
    let most = Rlimit { current: limit.maximum.or(Some(DESCRIPTORS)), maximum: limit.maximum };
    if let Err(error) =
        setrlimit(Resource::Nofile, wanted).or_else(|_| setrlimit(Resource::Nofile, most))
    {
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

impl Options {
    pub fn size_bytes(&self) -> u64 {
        self.size.unwrap_or(2 << 30)
    }

    /// The targets asked for, or the preset's own.
    pub fn targets(&self) -> &[Kind] {
        if !self.targets.is_empty() {
            return &self.targets;
        }
        match self.preset {
            Preset::Seeding => &seeding::TARGETS,
            Preset::Download if self.peers.len() > 1 => &download::CURVE_TARGETS,
            Preset::Download => &download::TARGETS,
            Preset::Recheck => &recheck::TARGETS,
            Preset::Connections | Preset::SlowReaders | Preset::Churn => &crowds::TARGETS,
            Preset::SeedMany => &crowds::MANY_TARGETS,
            Preset::StartUp => &starts::START_TARGETS,
            Preset::Restart => &starts::RESTART_TARGETS,
            Preset::Mixed => &mixed::TARGETS,
            Preset::Cold | Preset::Spread | Preset::Many | Preset::Beside => &[Kind::Seedring],
        }
    }

    /// The numbers of connections asked for, or the preset's own; none where it has no such points.
    pub fn connections(&self) -> &[usize] {
        if !self.connections.is_empty() {
            return &self.connections;
        }
        match self.preset {
            Preset::Seeding => &seeding::CONNECTIONS,
            Preset::Connections => &crowds::IDLE,
            Preset::SlowReaders => &crowds::FAST,
            Preset::Restart => &starts::CONNECTIONS,
            _ => &[],
        }
    }

    /// An empty folder for one target's state.
    pub fn run_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.site.work.join("run").join(name);
        target::empty_folder(&folder)?;
        Ok(folder)
    }

    /// Where targets listen.
    pub fn target(&self) -> SocketAddr {
        self.site.afar.as_ref().map_or(TARGET, |afar| afar.target)
    }

    /// Who makes the load, in words.
    pub fn load_place(&self) -> String {
        match &self.site.afar {
            None => format!("load on core {}", self.site.load_core),
            Some(afar) => format!("load by {} agents", afar.runner.agents.len()),
        }
    }

    /// The failure that was kept last, for those who watch.
    pub fn say_failure(&self, report: &summary::Report) {
        if let Some((afar, line)) = self.site.afar.as_ref().zip(report.failed.last()) {
            // Who is gone is noticed by the next load.
            afar.runner.say(&format!("FAILED {line}")).ok();
        }
    }

    /// What comes now, for those who watch.
    pub fn label(&self, target: &dyn std::fmt::Display, round: usize) {
        if let Some(afar) = &self.site.afar {
            afar.runner.label(format!("{target}, round {round} of {}", self.rounds));
        }
    }
}

/// In the largest unit that divides it, as `16 KiB`.
pub fn bytes_in_words(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = units.into_iter().find(|(_, bits)| count > 0 && count.is_multiple_of(1 << bits));
    fits.map_or(format!("{count} bytes"), |(unit, bits)| format!("{} {unit}", count >> bits))
}

/// So many, in words.
pub fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".into(),
        _ => format!("{count} connections"),
    }
}

/// Where a process may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Whichever is free: where the target has all cores, a pinned load would take from one shard
    /// only.
    Any,
    /// As `taskset -c` writes them.
    These(String),
}

impl Cores {
    pub fn one(core: usize) -> Cores {
        Cores::These(core.to_string())
    }

    pub fn range(first: usize, count: usize) -> Cores {
        Cores::These(format!("{first}-{}", first + count.max(1) - 1))
    }
}

/// A command on these cores at nice -20 that ends when this process does (`place.rs`), and that no
/// signal of a terminal reaches.
pub fn on_cores(program: &Path, cores: &Cores) -> Command {
    let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut command = Command::new(this);
    command.process_group(0).args(["place", "--parent", &std::process::id().to_string()]);
    if let Cores::These(list) = cores {
        command.args(["--cores", list]);
    }
    command.arg("--").arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_where_it_is_built_or_where_its_user_says_else_in_path() {
        // Of a folder in which neither has been built.
        let usual = "nowhere/release/peer";
        assert_eq!(or_by_name(Path::new(usual), usual), Path::new("peer"));
        assert_eq!(or_by_name(Path::new("/a/peer"), usual), Path::new("/a/peer"));
        let built = env!("CARGO_MANIFEST_DIR");
        assert_eq!(or_by_name(Path::new(built), built), Path::new(built));
    }

    #[test]
    fn bytes_are_written_in_the_largest_unit_that_divides_them() {
        let words = [16 << 10, 3 << 20, 1500, 0, 2 << 30].map(bytes_in_words);
        assert_eq!(words, ["16 KiB", "3 MiB", "1500 bytes", "0 bytes", "2 GiB"]);
    }
}
