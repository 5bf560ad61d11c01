//! Owns: the seeding comparison: targets x connections x rounds, interleaved, and its table.
//! Never: lets one target's round follow its own. Flow: round -> each target fresh -> each K ->
//! report.

use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{
    Cores, Options, SOURCES,
    kind::{self, Kind, Target},
    on_cores, pictures, rounds,
    summary::{Report, Spread, table},
    target::{self, Content, Running, Way},
};
use crate::{
    cut,
    leech::Outcome,
    payload,
    probe::Reading,
    pull::{self, Pulled},
};

/// Where nothing is said: alone, as usual, and many.
pub const CONNECTIONS: [usize; 3] = [1, 50, 500];
const GIB: f64 = 1_073_741_824.0;
/// Less CPU time than this in a window is hardly more than one of the kernel's ticks.
const CPU_MIN: f64 = 0.02;
pub const TARGETS: [Kind; 12] = [
    Kind::Iperf3,
    Kind::Nginx,
    Kind::Bare,
    Kind::Seedring,
    Kind::TokioUring,
    Kind::Libtorrent,
    Kind::Qbittorrent,
    Kind::Rtorrent,
    Kind::Rqbit,
    Kind::Transmission,
    Kind::Vortex,
    Kind::Aria2,
];

#[derive(Serialize)]
pub struct Run {
    pub round: usize,
    #[serde(serialize_with = "as_text")]
    pub target: Target,
    pub connections: usize,
    pub cpu_seconds_per_gib: f64,
    pub mib_per_s: f64,
    pub outcome: Option<Outcome>,
    /// At half of `mib_per_s`.
    pub open_loop: Option<Outcome>,
}

pub fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    name: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// The content's file, in its folder and in each downloader's.
pub const CONTENT: &str = "payload.bin";
/// Whatever it is made of can be made anywhere else.
pub const SEED: u64 = 1;

/// The hot content: made once, and read once so that the page cache holds it.
pub fn hot_content(options: &Options) -> Result<Content> {
    let folder = options.site.work.join("hot");
    let file = folder.join(CONTENT);
    eprintln!("content: {} bytes in {}", options.size_bytes(), file.display());
    let torrent = payload::make(&file, options.size_bytes(), 1 << 20, SEED)?;
    std::io::copy(&mut std::fs::File::open(&file)?, &mut std::io::sink())?;
    Ok(Content { torrent, more: Vec::new(), folder })
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Seeding, hot content".into(), ..Report::default() };
    let kinds = with_a_client(options, options.targets(), &mut report);
    let targets = kind::targets(options, &kinds, &mut report)?;
    let content = hot_content(options)?;
    let window = options.seconds + options.warm_up + 1.0;
    let points = options.connections().len() as f64;
    let minutes = options.rounds as f64
        * targets.len() as f64
        * (points * window * if options.no_open_loop { 1.0 } else { 1.6 } + 5.0)
        / 60.0;
    eprintln!("{} rounds of {} targets, about {minutes:.0} minutes", options.rounds, targets.len());
    let mut runs: Vec<Run> = Vec::new();
    let mut misses = Misses::default();
    for round in cut::rounds(options.rounds) {
        for target in &targets {
            options.label(target, round);
            let at = (*target, round);
            let done = one_round(options, &content, at, &mut misses, &mut runs, &mut report);
            if let Err(error) = done {
                report.fail(&format!("{target}, round {round}"), &error);
                options.say_failure(&report);
            }
        }
    }
    report.sections.push(main_table(options, &targets, &runs));
    report.sections.push(detail_table(options, &targets, &runs));
    report.sections.push(rounds::measures(runs.iter().filter_map(|run| {
        let load = super::connections(run.connections);
        Some((vec![run.target.to_string(), load], run.outcome.as_ref()?))
    })));
    report.plots = pictures::of_seeding(options.connections(), &runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

/// A cost that would be read as nothing is none.
fn check_measurable(outcome: &Outcome, cost: f64) -> Result<()> {
    let (served, speed) = (outcome.connections_served, outcome.mib_per_s);
    ensure!(outcome.payload_bytes > 0, "{served} connections were served, and nothing was sent");
    let spent = cost * outcome.payload_bytes as f64 / GIB;
    ensure!(
        spent >= CPU_MIN,
        "at {speed:.1} MiB/s it took {spent:.2} s of CPU in the window, which the kernel counts in \
         ticks of 10 ms: too few for a cost a GiB (more `seconds`)"
    );
    Ok(())
}

/// Loads of a target that failed, and how often. After two of them it is not tried again: some
/// clients do not serve so many, and each try takes as long as the load is patient.
#[derive(Default)]
struct Misses(HashMap<(Target, usize, bool), u32>);

impl Misses {
    const MOST: u32 = 2;

    /// `half`: of the open loop at half load.
    fn is_tried(&self, target: Target, connections: usize, half: bool) -> bool {
        self.0.get(&(target, connections, half)).is_none_or(|misses| *misses < Misses::MOST)
    }

    fn add(&mut self, target: Target, connections: usize, half: bool) {
        *self.0.entry((target, connections, half)).or_default() += 1;
    }
}

fn one_round(
    options: &Options,
    content: &Content,
    (target, round): (Target, usize),
    misses: &mut Misses,
    runs: &mut Vec<Run>,
    report: &mut Report,
) -> Result<()> {
    let running = target::start(target, options, &Way::of(content))?;
    if round == 1 {
        report.commands.push(format!("{target}: `{}`", running.command));
    }
    if target.kind.is_ceiling() {
        // A server that is just being started has no block to be asked for.
        thread::sleep(Duration::from_millis(300));
        match target.kind {
            Kind::Iperf3 => runs.push(iperf3(options, &running, round)?),
            _ => runs.extend(nginx(options, &running, round)?),
        }
        return running.end();
    }
    if target.kind.is_heated() {
        options
            .heat(&content.torrent, running.pid())
            .with_context(|| format!("its output: {}", running.last_words()))?;
    }
    for connections in options.connections() {
        if !misses.is_tried(target, *connections, false) {
            continue;
        }
        let mut arguments = options.window();
        arguments.extend(["--connections".into(), connections.to_string()]);
        let outcome = options
            .leech(&content.torrent, running.pid(), &arguments)
            .with_context(|| format!("its output: {}", running.last_words()))
            .inspect_err(|_| misses.add(target, *connections, false))?;
        let cost = outcome.target_cpu_seconds_per_gib.context("the target's CPU")?;
        if let Err(error) = check_measurable(&outcome, cost) {
            misses.add(target, *connections, false);
            let load = super::connections(*connections);
            report.fail(&format!("{target}, round {round}, {load}"), &error);
            continue;
        }
        let open_loop = if options.no_open_loop || !misses.is_tried(target, *connections, true) {
            None
        } else {
            let rate = (outcome.mib_per_s / 2.0).max(1.0);
            arguments = options.plain_window();
            arguments.extend(options.asked());
            arguments.extend(["--connections".into(), connections.to_string()]);
            arguments[1] = (options.seconds / 2.0).to_string();
            arguments.extend(["--open-loop".into(), format!("{rate:.0}")]);
            let half = options.leech(&content.torrent, running.pid(), &arguments);
            // What was found at full load stands.
            half.inspect_err(|error| {
                misses.add(target, *connections, true);
                let load = super::connections(*connections);
                report.fail(&format!("{target}, round {round}, {load}, half load"), error);
            })
            .ok()
        };
        eprintln!(
            "round {round}  {target:<30} K={connections:<4} {cost:.3} CPU-s/GiB \
             {:6.0} MiB/s p99 {:.1} ms",
            outcome.mib_per_s, outcome.latency_ms.p99
        );
        runs.push(Run {
            round,
            target,
            connections: *connections,
            cpu_seconds_per_gib: cost,
            mib_per_s: outcome.mib_per_s,
            outcome: Some(outcome),
            open_loop,
        });
    }
    running.end()
}

/// Without iperf3, which no agent may have the client of.
fn with_a_client(options: &Options, kinds: &[Kind], report: &mut Report) -> Vec<Kind> {
    let why = options.site.afar.as_ref().and_then(|afar| afar.runner.no_iperf3());
    let Some(why) = why.filter(|_| kinds.contains(&Kind::Iperf3)) else { return kinds.to_vec() };
    report.absent.push(format!("{}: {why}", Kind::Iperf3));
    kinds.iter().copied().filter(|kind| *kind != Kind::Iperf3).collect()
}

/// One stream, the server sending (-R): the ceiling of copying sends over loopback.
fn iperf3(options: &Options, running: &Running, round: usize) -> Result<Run> {
    let (mib_per_s, cost) = match &options.site.afar {
        None => iperf3_here(options, running)?,
        Some(afar) => {
            let warm_up = options.warm_up.max(0.5);
            afar.runner.iperf3(running.pid(), afar.target, options.seconds, warm_up)?
        }
    };
    eprintln!("round {round}  {:<30} K=1    {cost:.3} CPU-s/GiB {mib_per_s:6.0} MiB/s", "iperf3");
    Ok(Run {
        round,
        target: Kind::Iperf3.into(),
        connections: 1,
        cpu_seconds_per_gib: cost,
        mib_per_s,
        outcome: None,
        open_loop: None,
    })
}

fn iperf3_here(options: &Options, running: &Running) -> Result<(f64, f64)> {
    let target = options.target();
    let seconds = (options.seconds + options.warm_up + 1.0).ceil();
    let mut command: Command = on_cores(Path::new("iperf3"), &Cores::one(options.site.load_core));
    command.args(["-c", &target.ip().to_string(), "-p", &target.port().to_string(), "-R", "-J"]);
    command.args(["-t", &seconds.to_string()]);
    let client = command.stdout(Stdio::piped()).spawn().context("iperf3")?;
    cut::sleep(Duration::from_secs_f64(options.warm_up.max(0.5)))?;
    let start = Instant::now();
    let before = Reading::take(running.pid())?;
    cut::sleep(Duration::from_secs_f64(options.seconds))?;
    let after = Reading::take(running.pid())?;
    let measured = start.elapsed().as_secs_f64();
    let output = client.wait_with_output()?;
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("iperf3's JSON")?;
    let bits = json["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 says: {}", json["error"]))?;
    let bytes_per_second = bits / 8.0;
    let cost = (after.cpu_seconds - before.cpu_seconds) / (bytes_per_second * measured / GIB);
    Ok((bytes_per_second / 1_048_576.0, cost))
}

/// Whole files over so many connections, dropped unread: the ceiling of sending files.
fn nginx(options: &Options, running: &Running, round: usize) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for connections in options.connections() {
        let pulled = pull_once(options, running, *connections)
            .with_context(|| format!("its output: {}", running.last_words()))?;
        let cost = pulled.target_cpu_seconds_per_gib.context("the target's CPU")?;
        eprintln!(
            "round {round}  {:<30} K={connections:<4} {cost:.3} CPU-s/GiB {:6.0} MiB/s",
            "nginx", pulled.mib_per_s
        );
        runs.push(Run {
            round,
            target: Kind::Nginx.into(),
            connections: *connections,
            cpu_seconds_per_gib: cost,
            mib_per_s: pulled.mib_per_s,
            outcome: None,
            open_loop: None,
        });
    }
    Ok(runs)
}

fn pull_once(options: &Options, running: &Running, connections: usize) -> Result<Pulled> {
    if let Some(afar) = &options.site.afar {
        return afar.runner.pull(&pull::Options {
            target: afar.target,
            path: format!("/{CONTENT}"),
            connections,
            duration: options.seconds,
            warm_up: options.warm_up,
            source: None,
            pid: Some(running.pid()),
        });
    }
    let this = std::env::current_exe().context("the path of this program")?;
    let mut command = on_cores(&this, &Cores::one(options.site.load_core));
    let target = options.target().to_string();
    command.args(["pull", &target, &format!("/{CONTENT}"), "--source", SOURCES]);
    command.args(["--pid", &running.pid().to_string(), "-k", &connections.to_string()]);
    let output = command.args(options.plain_window()).output().context("cannot run taskset")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pull: {}", complaint.trim());
    serde_json::from_slice(&output.stdout).context("pull's JSON")
}

fn spread(
    runs: &[Run],
    target: Target,
    connections: usize,
    of: impl Fn(&Run) -> Option<f64>,
) -> Option<Spread> {
    let chosen = runs.iter().filter(|run| run.target == target && run.connections == connections);
    Spread::of(chosen.filter_map(of))
}

fn main_table(options: &Options, targets: &[Target], runs: &[Run]) -> String {
    let ceiling = spread(runs, Kind::Iperf3.into(), 1, |run| Some(run.cpu_seconds_per_gib));
    let mut rows = Vec::new();
    for target in targets {
        let mut row = vec![target.to_string()];
        for connections in options.connections() {
            let cost = spread(runs, *target, *connections, |run| Some(run.cpu_seconds_per_gib));
            let speed = spread(runs, *target, *connections, |run| Some(run.mib_per_s));
            let Some((cost, speed)) = cost.zip(speed) else {
                row.push("-".into());
                continue;
            };
            let ratio =
                ceiling.map_or(String::new(), |top| format!(", {:.1}x", cost.median / top.median));
            row.push(format!("{}{ratio}; {:.0} MiB/s", cost.text(3), speed.median));
        }
        rows.push(row);
    }
    let columns: Vec<String> =
        options.connections().iter().map(|count| super::connections(*count)).collect();
    let mut head = vec!["CPU-s per GiB: median (min..max), times iperf3"];
    head.extend(columns.iter().map(String::as_str));
    format!(
        "{}, {:.0} MiB hot, server on core {}, {}, \
         both nice -20; {} rounds, interleaved, each target fresh each round, and \
         heated by one whole download, all of it hashed (but transmission, which goes by a clock); \
         {} s measured \
         after {} s warm-up. CPU is user + system time of the target and its children.\n\n{}",
        options.blocks(),
        options.size_bytes() as f64 / 1_048_576.0,
        options.site.server_core,
        options.load_place(),
        options.rounds,
        options.seconds,
        options.warm_up,
        table(&head, &rows)
    )
}

fn detail_table(options: &Options, targets: &[Target], runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for target in targets.iter().filter(|target| !target.kind.is_ceiling()) {
        for connections in options.connections() {
            let of = |field: fn(&Outcome) -> f64| {
                spread(runs, *target, *connections, |run| run.outcome.as_ref().map(field))
                    .map_or("-".into(), |spread| format!("{:.2}", spread.median))
            };
            let open = |field: fn(&Outcome) -> f64| {
                spread(runs, *target, *connections, |run| run.open_loop.as_ref().map(field))
                    .map_or("-".into(), |spread| format!("{:.2}", spread.median))
            };
            let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
            let after = move |outcome: &Outcome| outcome.target_after.unwrap_or_default();
            let memory = |field: &dyn Fn(&Outcome) -> f64| {
                spread(runs, *target, *connections, |run| run.outcome.as_ref().map(field))
                    .map_or("-".into(), |spread| format!("{:.0}", spread.median))
            };
            rows.push(vec![
                target.to_string(),
                connections.to_string(),
                of(|outcome| outcome.latency_ms.p50),
                of(|outcome| outcome.latency_ms.p99),
                of(|outcome| outcome.latency_ms.p99_9),
                open(|outcome| outcome.latency_ms.p99),
                of(|outcome| outcome.load_cpu_seconds_per_gib),
                of(|outcome| outcome.load_busy),
                of(|outcome| outcome.softirqd_seconds_per_gib.unwrap_or(0.0)),
                memory(&|outcome| mib(after(outcome).rss_bytes)),
                memory(&|outcome| mib(after(outcome).private_bytes)),
            ]);
        }
    }
    let head = [
        "target",
        "connections",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "p99 ms at half load",
        "load CPU-s/GiB",
        "load busy",
        "ksoftirqd s/GiB",
        "RSS MiB",
        "private MiB",
    ];
    format!(
        "Latency is from request to block received whole; at half load it is open loop, from the \
         time the block was due. Where \"load busy\" nears 1 the load was the limit. RSS counts \
         mapped content; private is anonymous, shared and huge pages.\n\n{}",
        table(&head, &rows)
    )
}
