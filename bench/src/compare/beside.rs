//! Owns: what a recheck of another torrent costs those who are uploaded to: the latency of their
//! blocks, open loop at half of the engine's speed, without it and beside it, hot and cold.
//! Never: counts a window that the recheck did not outlast. Flow: engine with two torrents -> its
//! speed -> half of that alone -> beside a recheck in the page cache -> beside one from the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{
    Cores, Options, TARGET, cold,
    kind::Kind,
    pictures::{self, Figure, Line, Plot},
    seeding,
    summary::{Report, Spread, table},
    target::{self, Content, Running, Settings},
};
use crate::{cut, leech::Outcome, payload, torrent::Torrent};

/// The torrents that are rechecked: folder and name of each.
const HOT: &str = "beside";
const COLD: &str = "beside-cold";
/// What the second one is made of. A file of its own, which is never in the page cache while
/// something is measured: emptying the cache for a window would have its pages given back to the
/// host of a virtual machine in that window, which stops the machine for tens of milliseconds.
const COLD_FILE: &str = "cold.bin";
/// So many times the content, which is one inode: more than is hashed in any window, in no more
/// memory.
const COPIES: usize = 24;
const CONNECTIONS: usize = 50;
const GIB: f64 = 1_073_741_824.0;
/// Until a recheck has begun, or is over.
const LIMIT: Duration = Duration::from_secs(120);

/// Beside what the blocks are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Beside {
    Nothing,
    /// A recheck of what lies in the page cache.
    Hot,
    /// One of what has to be read.
    Cold,
}

impl Beside {
    /// The torrent that is rechecked.
    fn checked(self) -> Option<&'static str> {
        match self {
            Beside::Nothing => None,
            Beside::Hot => Some(HOT),
            Beside::Cold => Some(COLD),
        }
    }

    const ALL: [Beside; 3] = [Beside::Nothing, Beside::Hot, Beside::Cold];

    fn words(self) -> &'static str {
        match self {
            Beside::Nothing => "no recheck",
            Beside::Hot => "a recheck of what lies in the page cache",
            Beside::Cold => "a recheck from the disk",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Beside::Nothing => "no recheck",
            Beside::Hot => "beside a hot recheck",
            Beside::Cold => "beside one from the disk",
        }
    }
}

#[derive(Serialize)]
struct Run {
    round: usize,
    beside: Beside,
    /// What was asked for, half of what the engine gave at full speed.
    half_mib_per_s: f64,
    /// Statistics are a second old at most: wrong by that much of the window.
    hashed_gib_per_s: f64,
    outcome: Outcome,
}

pub fn run(options: &Options) -> Result<Report> {
    let title = "Uploads at half load beside a recheck".into();
    let mut report = Report { title, ..Report::default() };
    report.versions.push(format!("seedring: {}", Kind::Seedring.version(options)?));
    let content = seeding::hot_content(options)?;
    let file = content.folder.join(seeding::CONTENT);
    make_checked(&content.folder, &content.torrent, &file, HOT)?;
    let cold_file = options.site.work.join(COLD).join(COLD_FILE);
    let cold_torrent = payload::make(&cold_file, options.size_bytes(), 1 << 20, 2)?;
    cold::forget(&cold_file)?;
    make_checked(&content.folder, &cold_torrent, &cold_file, COLD)?;
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        match one_round(options, &content, &file, round, &mut report) {
            Ok(of_it) => runs.extend(of_it),
            Err(error) => report.fail(&format!("round {round}"), &error),
        }
    }
    report.sections.push(result_table(options, &runs));
    report.plots = plots(&runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn one_round(
    options: &Options,
    content: &Content,
    file: &Path,
    round: usize,
    report: &mut Report,
) -> Result<Vec<Run>> {
    let cache = format!("{}MiB", (options.size_bytes() >> 20) + 512);
    let settings = Settings {
        torrents: content.all_in_folder(),
        ..Settings::of(content, options.run_folder("seedring")?, cache)
    };
    let mut running = target::seedring(options, &settings, &Cores::one(options.site.server_core))?;
    running.wait_until_served(TARGET, &Torrent::read(&content.torrent)?)?;
    if round == 1 {
        report.commands.push(format!("`{}`", running.command));
    }
    let engine = Engine { options, settings: &settings, running: &running };
    let runs = engine.round(&content.torrent, file, round)?;
    running.end()?;
    Ok(runs)
}

/// A torrent of many files, which are all the one that is there.
fn make_checked(seeds: &Path, torrent: &Path, file: &Path, name: &str) -> Result<()> {
    let folder = seeds.join(name);
    fs::create_dir_all(&folder)?;
    let names: Vec<String> = (0..COPIES).map(|n| format!("{n:02}")).collect();
    for name in &names {
        let link: PathBuf = folder.join(name);
        // One that was made of another content is not this inode any more.
        fs::remove_file(&link).ok();
        fs::hard_link(file, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    let bytes = payload::repeated(&fs::read(torrent)?, name, &names)?;
    Ok(fs::write(seeds.join(format!("{name}.torrent")), bytes)?)
}

/// The engine that is measured.
struct Engine<'a> {
    options: &'a Options,
    settings: &'a Settings,
    running: &'a Running,
}

impl Engine<'_> {
    fn round(&self, torrent: &Path, file: &Path, round: usize) -> Result<Vec<Run>> {
        // All of it into the engine's own cache, then its full speed.
        self.options
            .heat(torrent, self.running.pid())
            .with_context(|| format!("its output: {}", self.running.last_words()))?;
        let full = self.leech_window(torrent, None)?.mib_per_s;
        let half_mib_per_s = (full / 2.0).round().max(1.0);
        let mut runs = Vec::new();
        for beside in Beside::ALL {
            if beside == Beside::Hot {
                std::io::copy(&mut fs::File::open(file)?, &mut std::io::sink())?;
            }
            if let Some(checked) = beside.checked() {
                target::ask(self.options, self.settings, &["recheck", checked])?;
                self.wait_for(checked, "verifying")?;
            }
            let (before, began) = (self.hashed_bytes()?, Instant::now());
            let outcome = self.leech_window(torrent, Some(half_mib_per_s))?;
            let hashed = (self.hashed_bytes()? - before) as f64 / GIB;
            let hashed_gib_per_s = hashed / began.elapsed().as_secs_f64();
            if let Some(checked) = beside.checked() {
                let state = self.state(checked)?;
                ensure!(state == "verifying", "the recheck was over before the window: {state}");
            }
            eprintln!(
                "round {round}  beside {beside:?}: {:.0} MiB/s p50 {:.2} ms p99 {:.2} ms, \
                 {hashed_gib_per_s:.2} GiB/s hashed",
                outcome.mib_per_s, outcome.latency_ms.p50, outcome.latency_ms.p99
            );
            runs.push(Run { round, beside, half_mib_per_s, hashed_gib_per_s, outcome });
            if beside == Beside::Hot {
                self.wait_for(HOT, "seeding")?;
            }
        }
        Ok(runs)
    }

    /// At full speed, or open loop at so many MiB/s.
    fn leech_window(&self, torrent: &Path, open_loop: Option<f64>) -> Result<Outcome> {
        let mut arguments = self.options.window();
        arguments.extend(["--connections".into(), CONNECTIONS.to_string()]);
        if let Some(rate) = open_loop {
            arguments.extend(["--open-loop".into(), format!("{rate:.0}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.leech(torrent, &arguments)
    }

    fn leech(&self, torrent: &Path, arguments: &[&str]) -> Result<Outcome> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        self.options
            .leech(torrent, self.running.pid(), &arguments)
            .with_context(|| format!("its output: {}", self.running.last_words()))
    }

    fn list(&self) -> Result<Value> {
        target::list(self.options, self.settings)
    }

    fn state(&self, checked: &str) -> Result<String> {
        let list = self.list()?;
        let torrents = list["torrents"].as_array().context("list: no torrents")?;
        let torrent = torrents.iter().find(|torrent| torrent["name"] == checked);
        let state = torrent.and_then(|torrent| torrent["state"].as_str());
        Ok(state.context("list: the torrent is missing")?.to_string())
    }

    fn hashed_bytes(&self) -> Result<u64> {
        let list = self.list()?;
        let shards = list["shards"].as_array().context("list: no shards")?;
        Ok(shards.iter().filter_map(|shard| shard["hashed_bytes"].as_u64()).sum())
    }

    fn wait_for(&self, checked: &str, state: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let is = self.state(checked)?;
            if is == state {
                return Ok(());
            }
            ensure!(start.elapsed() < LIMIT, "{checked} is {is}, not {state}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn plots(runs: &[Run]) -> Vec<Plot> {
    let seedring = || Kind::Seedring.to_string();
    let lines = runs.iter().map(|run| {
        let turn = Beside::ALL.iter().position(|beside| *beside == run.beside).unwrap_or(0);
        (Line::turn(run.beside.short(), seedring(), turn), &run.outcome)
    });
    let bars = |figure: Figure<'_>, of: fn(&Run) -> f64| {
        let value = |run: &Run| (seedring(), run.beside.short().to_owned(), of(run));
        pictures::bars(figure, runs.iter().map(value))
    };
    let hashed =
        Figure { name: "hashed", title: "Hashed beside the uploads", unit: "GiB/s", digits: 2 };
    let plots = [
        pictures::latency("latency", "Latency of a block at half load", lines),
        bars(pictures::P99, |run| run.outcome.latency_ms.p99),
        bars(hashed, |run| run.hashed_gib_per_s),
    ];
    plots.into_iter().flatten().collect()
}

fn result_table(options: &Options, runs: &[Run]) -> String {
    let row = |beside: Beside| {
        let text = |digits: usize, of: &dyn Fn(&Run) -> f64| {
            let chosen = runs.iter().filter(|run| run.beside == beside).map(of);
            Spread::of(chosen).map_or("-".into(), |spread| spread.text(digits))
        };
        vec![
            beside.words().to_string(),
            text(0, &|run| run.outcome.mib_per_s),
            text(2, &|run| run.outcome.latency_ms.p50),
            text(2, &|run| run.outcome.latency_ms.p99),
            text(2, &|run| run.outcome.latency_ms.p99_9),
            text(1, &|run| run.outcome.latency_ms.max),
            text(2, &|run| run.hashed_gib_per_s),
            text(2, &|run| run.outcome.load_busy),
        ]
    };
    let rows = Beside::ALL.map(row);
    let head = [
        "beside the uploads",
        "MiB/s sent: median (min..max)",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "GiB/s hashed",
        "load busy",
    ];
    format!(
        "{CONNECTIONS} connections, {}; {:.0} MiB in the engine's cache, open \
         loop at half of what the same engine gave at full speed, one shard on core {}, the load \
         on core {}, both nice -20; {} rounds, the engine fresh each round; {} s after {} s of \
         warm-up. Latency is from when a block was due until it was there. The recheck is of \
         another torrent on the same shard, of {COPIES} files of {:.0} MiB that are one inode; it \
         goes on before, during and after the window. What is read from the disk was not in the \
         page cache for a while before.\n\n{}",
        options.blocks(),
        options.size_bytes() as f64 / 1_048_576.0,
        options.site.server_core,
        options.site.load_core,
        options.rounds,
        options.seconds,
        options.warm_up,
        options.size_bytes() as f64 / 1_048_576.0,
        table(&head, &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_in_each_picture() {
        let run = |beside| Run {
            round: 1,
            beside,
            half_mib_per_s: 5.0,
            hashed_gib_per_s: 1.5,
            outcome: pictures::made_up(1000),
        };
        let plots = plots(&Beside::ALL.map(run));
        let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["latency", "p99", "hashed"]);
        for (name, svg) in &plots {
            for beside in Beside::ALL {
                assert!(svg.contains(beside.short()), "{name}: {svg}");
            }
        }
    }
}
