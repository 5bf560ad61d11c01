//! Owns: `seedring-bench run`: scenario files, what they may say, which comparison each asks for.
//! Never: measures. Flow: file -> checked -> the engine is built where it is missing -> comparison;
//! several: all checked, then each by this program once more.

mod keys;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum as _;
use serde::Deserialize;

use crate::{
    agents::{
        Secret,
        runner::{self, Runner},
    },
    compare::{self, Afar, Kind, Preset, Site, Tuning},
    cut, index,
    leech::{BLOCK_BYTES_MAX, OUTSTANDING_MAX, Pattern, parse_bytes},
    namespace,
    seed::Share,
};

/// Where targets listen for agents.
const PORT: u16 = 6881;

#[derive(clap::Args)]
pub struct Options {
    /// The scenario, a YAML file such as bench/scenarios/quick.yaml. Several are run one after the
    /// other, each with its own report, and index.html leads to them.
    #[arg(required = true)]
    scenario: Vec<PathBuf>,
    /// Only check the files, and print each with all defaults filled in, and what is absent here.
    #[arg(long)]
    check: bool,
    /// Repeats, in place of the scenario's.
    #[arg(long)]
    repeats: Option<usize>,
    /// The load comes from agents that this controller (HOST:PORT) brings together.
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
    #[command(flatten)]
    secret: Secret,
    /// In this network and not in a namespace of its own: what agents need to reach the targets.
    #[arg(long, requires = "controller")]
    in_place: bool,
    /// Where targets listen, in place; by default this machine's address towards the controller,
    /// port 6881.
    #[arg(long, requires = "in_place", value_name = "ADDRESS:PORT")]
    address: Option<SocketAddr>,
    #[command(flatten)]
    site: Site,
}

/// What a scenario file holds. Whatever is left out is the comparison's default.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// The report's heading.
    title: String,
    /// What is measured.
    compare: Preset,
    /// Programs, in the order of their turns.
    targets: Option<Vec<Kind>>,
    /// Whose settings they run with: `tuned`, `default`, or both, each a target of its own.
    settings: Option<Vec<Tuning>>,
    /// Runs of each target, interleaved.
    repeats: Option<usize>,
    /// Measured at each point, and before it at full speed.
    seconds: Option<f64>,
    warm_up_seconds: Option<f64>,
    /// Bytes of content: a number with KiB, MiB or GiB.
    size: Option<String>,
    /// Of `seeding`, `connections`, `slow-readers` and `restart`: so many at once, a point each.
    connections: Option<Vec<usize>>,
    /// Of those with a load of leeches: `random` blocks, `sequential`, `together` from the first,
    /// `rarest-first`.
    pattern: Option<Pattern>,
    /// Of those with a load of leeches: requests that each keeps outstanding, and what one asks
    /// for, such as 16KiB.
    outstanding: Option<usize>,
    block: Option<String>,
    /// Of `seeding`: latency at half of each target's speed as well.
    open_loop: Option<bool>,
    /// Of `spread`: shards of the engine, a point each.
    shards: Option<Vec<usize>>,
    /// Of `many`, `seed-many` and `start-up`.
    torrents: Option<usize>,
    /// Of `seed-many`: the Nth torrent is chosen as often as 1/N to this power.
    zipf: Option<f64>,
    /// Of `churn` and `seed-many`: connections that come each second, and how long each stays.
    arrivals_per_second: Option<f64>,
    stay_seconds: Option<f64>,
    /// Of `slow-readers`: how many there are, and what each reads a second, such as 4KiB.
    slow: Option<usize>,
    slow_rate: Option<String>,
    /// Of `mixed`: how many of one client a swarm of them alone has, and what the seed sends.
    members: Option<usize>,
    seed_mib_per_s: Option<usize>,
    /// Of `download`: seeders, a point each, and how many percent of the pieces each of them has.
    seeders: Option<Vec<usize>>,
    seeders_have_percent: Option<u8>,
    /// They are mixed peers: each fetches the rest from the downloader.
    mixed_peers: Option<bool>,
}

impl Scenario {
    fn parse(text: &str) -> Result<Scenario> {
        // Its errors name line and column.
        let scenario: Scenario = serde_saphyr::from_str(text)?;
        scenario.check().map_err(|error| at_its_line(text, error))?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.title.trim().is_empty(), "`title` is empty: it heads the report");
        let some = |key: &str, list: Option<&[usize]>| -> Result<()> {
            let Some(list) = list else { return Ok(()) };
            ensure!(!list.is_empty(), "`{key}` is an empty list: name a number, or leave it out");
            ensure!(!list.contains(&0), "`{key}` has a 0 in it: numbers begin at 1");
            Ok(())
        };
        some("connections", self.connections.as_deref())?;
        some("shards", self.shards.as_deref())?;
        some("seeders", self.seeders.as_deref())?;
        some("repeats", self.repeats.as_ref().map(std::slice::from_ref))?;
        some("outstanding", self.outstanding.as_ref().map(std::slice::from_ref))?;
        ensure!(
            self.outstanding.is_none_or(|count| count <= OUTSTANDING_MAX),
            "`outstanding` is at most {OUTSTANDING_MAX}"
        );
        some("slow", self.slow.as_ref().map(std::slice::from_ref))?;
        some("members", self.members.as_ref().map(std::slice::from_ref))?;
        some("seed_mib_per_s", self.seed_mib_per_s.as_ref().map(std::slice::from_ref))?;
        some("torrents", self.torrents.as_ref().map(std::slice::from_ref))?;
        ensure!(
            self.targets.as_ref().is_none_or(|targets| !targets.is_empty()),
            "`targets` is an empty list: name one, or leave it out for all that have a part in it"
        );
        ensure!(
            self.settings.as_ref().is_none_or(|settings| !settings.is_empty()),
            "`settings` is an empty list: `tuned`, `default` or both"
        );
        self.compare.check_targets(self.targets.as_deref().unwrap_or(&[])).context("`targets`")?;
        let seconds = |key: &str, value: Option<f64>, least: f64| -> Result<()> {
            let fits = value.is_none_or(|value| (least..=3600.0).contains(&value));
            ensure!(fits, "`{key}` is a number of seconds from {least} to 3600");
            Ok(())
        };
        seconds("seconds", self.seconds, 0.1)?;
        seconds("warm_up_seconds", self.warm_up_seconds, 0.0)?;
        let rate = |key: &str, value: Option<f64>| -> Result<()> {
            let fits = value.is_none_or(|value| value > 0.0 && value <= 10_000.0);
            ensure!(fits, "`{key}` is a number above 0, at most 10000");
            Ok(())
        };
        rate("arrivals_per_second", self.arrivals_per_second)?;
        rate("stay_seconds", self.stay_seconds)?;
        let fits = self.zipf.is_none_or(|power| (0.0..=5.0).contains(&power));
        ensure!(fits, "`zipf` is a power from 0, all alike, to 5");
        let fits = self.seeders_have_percent.is_none_or(|percent| (1..=100).contains(&percent));
        ensure!(fits, "`seeders_have_percent` is a number from 1 to 100");
        let percent = self.seeders_have_percent.unwrap_or(100);
        let is_partial = percent < 100;
        let is_curve = self.seeders.as_ref().is_some_and(|seeders| seeders.len() > 1);
        ensure!(
            !(is_partial && is_curve),
            "`seeders` has one number where each has a part: fewer would not have all pieces"
        );
        let usual = compare::Options::default().peers;
        let seeders = self.seeders.as_ref().unwrap_or(&usual);
        Share::check(percent, seeders.first().map_or(0, |count| *count as u32))
            .context("`seeders_have_percent` is too much")?;
        ensure!(
            !self.mixed_peers.unwrap_or(false) || is_partial,
            "`mixed_peers` needs `seeders_have_percent` below 100: who has everything fetches \
             nothing"
        );
        self.keys_fit()?;
        self.slow_rate()?;
        self.block_bytes()?;
        self.size_bytes().map(drop)
    }

    /// A key that its comparison does not know would be silently without effect.
    fn keys_fit(&self) -> Result<()> {
        let set = [
            ("settings", self.settings.is_some()),
            ("size", self.size.is_some()),
            ("seconds", self.seconds.is_some()),
            ("warm_up_seconds", self.warm_up_seconds.is_some()),
            ("outstanding", self.outstanding.is_some()),
            ("block", self.block.is_some()),
            ("connections", self.connections.is_some()),
            ("pattern", self.pattern.is_some()),
            ("open_loop", self.open_loop.is_some()),
            ("shards", self.shards.is_some()),
            ("torrents", self.torrents.is_some()),
            ("seeders", self.seeders.is_some()),
            ("seeders_have_percent", self.seeders_have_percent.is_some()),
            ("mixed_peers", self.mixed_peers.is_some()),
            ("zipf", self.zipf.is_some()),
            ("arrivals_per_second", self.arrivals_per_second.is_some()),
            ("stay_seconds", self.stay_seconds.is_some()),
            ("members", self.members.is_some()),
            ("seed_mib_per_s", self.seed_mib_per_s.is_some()),
            ("slow", self.slow.is_some()),
            ("slow_rate", self.slow_rate.is_some()),
        ];
        for (key, is_set) in set {
            let of = keys::belongs_to(key);
            ensure!(
                !is_set || of.contains(&self.compare),
                "`{key}` belongs to `compare: {}`; this scenario has `compare: {}`",
                of.iter().map(|preset| named(*preset)).collect::<Vec<_>>().join("`, `"),
                named(self.compare)
            );
        }
        Ok(())
    }

    fn slow_rate(&self) -> Result<Option<u64>> {
        let Some(text) = &self.slow_rate else { return Ok(None) };
        let bytes = parse_bytes(text).map_err(|why| anyhow::anyhow!("`slow_rate`: {why}"))?;
        ensure!(bytes > 0, "`slow_rate` is {text}: above 0");
        Ok(Some(bytes))
    }

    fn block_bytes(&self) -> Result<Option<u64>> {
        let Some(text) = &self.block else { return Ok(None) };
        let bytes = parse_bytes(text).map_err(|why| anyhow::anyhow!("`block`: {why}"))?;
        let fits = (1..=u64::from(BLOCK_BYTES_MAX)).contains(&bytes);
        ensure!(fits, "`block` is {text}: at least 1, at most {}KiB", BLOCK_BYTES_MAX >> 10);
        Ok(Some(bytes))
    }

    fn size_bytes(&self) -> Result<Option<u64>> {
        let Some(text) = &self.size else { return Ok(None) };
        let bytes = parse_bytes(text).map_err(|why| anyhow::anyhow!("`size`: {why}"))?;
        ensure!(bytes >= 1 << 20, "`size` is {text}: at least 1MiB");
        Ok(Some(bytes))
    }

    fn comparison(self, site: Site) -> Result<compare::Options> {
        let size = self.size_bytes()?;
        let (slow_rate, block) = (self.slow_rate()?, self.block_bytes()?);
        let usual = compare::Options::default();
        Ok(compare::Options {
            preset: self.compare,
            targets: self.targets.unwrap_or_default(),
            settings: self.settings.unwrap_or(usual.settings),
            rounds: self.repeats.unwrap_or(usual.rounds),
            seconds: self.seconds.unwrap_or(usual.seconds),
            warm_up: self.warm_up_seconds.unwrap_or(usual.warm_up),
            connections: self.connections.unwrap_or(usual.connections),
            pattern: self.pattern.unwrap_or(usual.pattern),
            outstanding: self.outstanding.unwrap_or(usual.outstanding),
            block: block.unwrap_or(usual.block),
            no_open_loop: !self.open_loop.unwrap_or(true),
            size: size.or(usual.size),
            shards: self.shards.unwrap_or(usual.shards),
            torrents: self.torrents.unwrap_or(usual.torrents),
            zipf: self.zipf.unwrap_or(usual.zipf),
            arrivals: self.arrivals_per_second.unwrap_or(usual.arrivals),
            stay: self.stay_seconds.unwrap_or(usual.stay),
            members: self.members.unwrap_or(usual.members),
            seed_mib_per_s: self.seed_mib_per_s.unwrap_or(usual.seed_mib_per_s),
            slow: self.slow.unwrap_or(usual.slow),
            slow_rate: slow_rate.unwrap_or(usual.slow_rate),
            peers: self.seeders.unwrap_or(usual.peers),
            seeders_have_percent: self.seeders_have_percent.unwrap_or(100),
            mixed_peers: self.mixed_peers.unwrap_or(false),
            site,
        })
    }
}

/// Where the key that a complaint names stands in the file, with the complaint.
fn at_its_line(text: &str, error: anyhow::Error) -> anyhow::Error {
    let complaint = format!("{error:#}");
    let key = complaint.split('`').nth(1).unwrap_or_default();
    let line = text.lines().position(|line| {
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'))
    });
    match line.filter(|_| !key.is_empty()) {
        Some(line) => error.context(format!("line {}, column 1", line + 1)),
        None => error,
    }
}

fn named(preset: Preset) -> String {
    let value = preset.to_possible_value();
    value.map_or(String::new(), |value| value.get_name().to_owned())
}

pub fn run(options: Options) -> Result<ExitCode> {
    let read = |path: &PathBuf| Ok((path.clone(), read(path, options.repeats)?));
    let mut scenarios = options.scenario.iter().map(read).collect::<Result<Vec<_>>>()?;
    if options.check {
        for (number, (path, scenario)) in scenarios.into_iter().enumerate() {
            let title = scenario.title.clone();
            let comparison = scenario.comparison(options.site.clone())?;
            let gap = if number > 0 { "\n" } else { "" };
            println!("{gap}{}", keys::written_out(&path, &title, &comparison));
        }
        return Ok(ExitCode::SUCCESS);
    }
    match scenarios.pop() {
        Some((path, scenario)) if scenarios.is_empty() => run_one(options, &path, scenario),
        _ => run_all(&options),
    }
}

fn read(path: &Path, repeats: Option<usize>) -> Result<Scenario> {
    ensure!(
        name_of(path) != index::NAME,
        "{}: a report of this name would be overwritten by the page that leads to all: rename it",
        path.display()
    );
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the scenario {}", path.display()))?;
    let mut scenario = Scenario::parse(&text).with_context(|| format!("{}", path.display()))?;
    scenario.repeats = repeats.or(scenario.repeats);
    scenario.check()?;
    Ok(scenario)
}

/// What a scenario's report is called.
fn name_of(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("scenario")
}

/// Each in a namespace of its own. One that fails does not keep the next from running; the page
/// that leads to the reports is there from the first on.
fn run_all(options: &Options) -> Result<ExitCode> {
    let Options { scenario: paths, site, .. } = options;
    ensure!(
        options.controller.is_none(),
        "several scenarios are run on this machine alone: --controller takes one at a time"
    );
    let names: BTreeSet<&str> = paths.iter().map(|path| name_of(path)).collect();
    ensure!(
        names.len() == paths.len(),
        "two of the scenarios have the same file name: their reports would too"
    );
    build_engine(&site.seedring)?;
    let is_scenario = |word: &OsString| paths.iter().any(|path| path.as_os_str() == word);
    let others: Vec<OsString> =
        std::env::args_os().skip(1).filter(|word| !is_scenario(word)).collect();
    let folder = site.out.as_ref().unwrap_or(&site.work);
    let mut failed = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        eprintln!("scenario {} of {}: {}", number + 1, paths.len(), path.display());
        let mut arguments = others.clone();
        arguments.push(path.into());
        let status = namespace::run_inside_with(arguments).unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", path.display());
            1
        });
        if status != 0 {
            failed.push(name_of(path));
        }
        // None is there yet where the first ones left no report.
        match index::write(folder) {
            Ok(page) => eprintln!("wrote {}", page.display()),
            Err(error) => eprintln!("no page that leads to the reports: {error:#}"),
        }
        if cut::is_asked() || status == cut::STATUS {
            return Ok(ExitCode::from(cut::STATUS));
        }
    }
    if !failed.is_empty() {
        eprintln!("not whole: {}", failed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn run_one(options: Options, path: &Path, scenario: Scenario) -> Result<ExitCode> {
    let Options { controller, secret, in_place, address, mut site, .. } = options;
    let name = name_of(path).to_owned();
    let title = scenario.title.clone();
    if let Some(controller) = controller {
        compare::check_preset(scenario.compare, &named(scenario.compare))
            .with_context(|| format!("{}", path.display()))?;
        ensure!(
            in_place,
            "--controller needs --in-place: agents don't reach a network namespace of its own"
        );
        site.afar = Some(meet(&controller, &secret.read()?, address)?);
        build_engine(&site.seedring)?;
        return compare::measure(scenario.comparison(site)?, &name, Some(&title));
    }
    if !site.is_inside() {
        build_engine(&site.seedring)?;
        return namespace::run_inside();
    }
    compare::measure(scenario.comparison(site)?, &name, Some(&title))
}

/// A file that `run` will take, for whoever hands it on.
pub struct Checked {
    pub text: String,
    pub has_iperf3: bool,
}

/// The same for one whose load comes from agents.
pub fn checked(path: &Path) -> Result<Checked> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the scenario {}", path.display()))?;
    let scenario = Scenario::parse(&text).with_context(|| format!("{}", path.display()))?;
    // Whether agents can play this load.
    compare::check_preset(scenario.compare, &named(scenario.compare))
        .with_context(|| format!("{}", path.display()))?;
    let has_iperf3 = scenario.targets.is_none_or(|targets| targets.contains(&Kind::Iperf3));
    Ok(Checked { text, has_iperf3 })
}

/// Waits until all agents are there, and chooses where targets listen for them.
fn meet(controller: &str, token: &str, address: Option<SocketAddr>) -> Result<Afar> {
    let runner = Runner::connect(controller, token)?;
    let own = SocketAddr::new(runner.own_address.ip(), PORT);
    let target = address.unwrap_or(own);
    runner::check_address(&runner, target)?;
    for agent in &runner.agents {
        eprintln!("agent {} on {}, {} cores", agent.name, agent.node, agent.cores);
    }
    Ok(Afar { runner: Arc::new(runner), target })
}

/// `cargo run` builds this program alone: so the engine is built here, where cargo is.
fn build_engine(program: &Path) -> Result<()> {
    let usual = Path::new("target/release/seedring");
    let Some(cargo) = std::env::var_os("CARGO").filter(|_| program == usual) else {
        return Ok(());
    };
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "-p", "seedring"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the engine was not built: `cargo build --release -p seedring` says why");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_default() {
        let scenario = Scenario::parse("title: t\ncompare: seeding\nsize: 64MiB\n").expect("good");
        let usual = compare::Options::default();
        let options = scenario.comparison(usual.site.clone()).expect("good");
        assert_eq!((options.rounds, options.size), (usual.rounds, Some(64 << 20)));
        assert_eq!((options.connections, options.no_open_loop), (usual.connections, false));
    }

    #[test]
    fn what_is_written_out_is_the_same_scenario_with_nothing_left_out() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        for entry in fs::read_dir(folder).expect("scenarios") {
            let path = entry.expect("entry").path();
            let whole = |text: &str| {
                let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{error:#}"));
                let title = scenario.title.clone();
                let options = scenario.comparison(compare::Options::default().site);
                keys::written_out(&path, &title, &options.expect("good"))
            };
            let once = whole(&fs::read_to_string(&path).expect("text"));
            assert_eq!(whole(&once), once);
            assert!(once.contains("targets: [") && !once.contains("[]"), "{once}");
        }
    }

    #[test]
    fn mistakes_are_named_with_line_and_remedy() {
        let wrong = |text: &str| format!("{:#}", Scenario::parse(text).expect_err(text));
        let unknown = wrong("title: t\ncompare: seeding\nconections: [1]\n");
        assert!(unknown.contains("conections") && unknown.contains("line 3"), "{unknown}");
        let preset = wrong("title: t\ncompare: seedin\n");
        assert!(preset.contains("seedin") && preset.contains("seeding"), "{preset}");
        let target = wrong("title: t\ncompare: seeding\ntargets: [deluge]\n");
        assert!(target.contains("deluge") && target.contains("libtorrent"), "{target}");
        let other = wrong("title: t\ncompare: many\nseeders: [4]\n");
        assert!(other.contains("belongs to `compare: download`"), "{other}");
        for (key, of, value) in [
            ("size", "many", "1GiB"),
            ("seconds", "download", "3"),
            ("warm_up_seconds", "recheck", "1"),
            ("seconds", "cold", "3"),
            ("settings", "mixed", "[default]"),
            ("outstanding", "download", "16"),
            ("block", "cold", "16KiB"),
        ] {
            let without = wrong(&format!("title: t\ncompare: {of}\n{key}: {value}\n"));
            let words =
                [format!("line 3, column 1: `{key}` belongs to"), format!("compare: {of}`")];
            assert!(words.iter().all(|words| without.contains(words)), "{without}");
        }
        let queue = wrong("title: t\ncompare: seeding\noutstanding: 501\n");
        assert!(queue.contains("at most 500") && queue.contains("line 3"), "{queue}");
        let block = wrong("title: t\ncompare: seeding\nblock: 129KiB\n");
        assert!(block.contains("at most 128KiB") && block.contains("line 3"), "{block}");
        let idle = wrong("title: t\ncompare: spread\ntargets: [libtorrent]\n");
        let words = "libtorrent has no part in the comparison spread, which takes seedring";
        assert!(idle.contains(words) && idle.contains("line 3"), "{idle}");
        let zero = wrong("title: t\ncompare: seeding\nconnections: [0]\n");
        assert!(zero.contains("numbers begin at 1"), "{zero}");
        assert!(zero.contains("line 3, column 1"), "{zero}");
        let part = "compare: download\nseeders: [2, 4]\nseeders_have_percent: ";
        let few = wrong(&format!("title: t\n{part}50\n"));
        assert!(few.contains("one number") && few.contains("line 3"), "{few}");
        let all = wrong("title: t\ncompare: download\nseeders_have_percent: 90\n");
        assert!(all.contains("of 4 seeders") && all.contains("line 3"), "{all}");
        let nothing = wrong("title: t\ncompare: download\nmixed_peers: true\n");
        let words = ["line 3, column 1", "`mixed_peers` needs `seeders_have_percent` below 100"];
        assert!(words.iter().all(|words| nothing.contains(words)), "{nothing}");
        let none = wrong(&format!("title: t\n{part}0\n"));
        assert!(none.contains("from 1 to 100") && none.contains("line 4"), "{none}");
        let size = wrong("title: t\ncompare: seeding\nsize: 3 parsecs\n");
        assert!(size.contains("KiB, MiB or GiB"), "{size}");
    }

    #[test]
    fn the_scenarios_here_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut seen = 0;
        for entry in fs::read_dir(folder).expect("scenarios") {
            let path = entry.expect("entry").path();
            let text = fs::read_to_string(&path).expect("text");
            Scenario::parse(&text).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            seen += 1;
        }
        assert!(seen >= 8, "{seen} scenarios");
    }
}
