//! Owns: swarms in which each is seed and leech together: one of each client, and several of the
//! same; the time until all have all.
//! Never: counts a member whose content is not what the torrent says. Flow: hosts -> one seed ->
//! all members at once -> each says that it has everything -> hashed -> report.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cores, Options, download,
    hosts::{self, Hosts},
    kind::{self, Kind, Target, Tuning},
    pictures::{self, Figure, Plot},
    rival::filled,
    rounds::{self, Column, MIB, Run, result_table},
    seeding,
    summary::Report,
    target::{Running, Script, absolute, script, spawn},
};
use crate::{cut, payload, probe::Reading, torrent::Torrent};

pub const TARGETS: [Kind; 7] = [
    Kind::Seedring,
    Kind::Libtorrent,
    Kind::Qbittorrent,
    Kind::Transmission,
    Kind::Rtorrent,
    Kind::Rqbit,
    Kind::Aria2,
];
const LIBTORRENT_PEER: Script =
    ("libtorrent_peer.py", include_str!("../../rivals/libtorrent_peer.py"));
const PORT: u16 = 6881;
const LIMIT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(50);
const GIB: f64 = 1_073_741_824.0;

/// Who takes part, by host: the first host has the seed.
struct Members<'a> {
    name: String,
    kinds: &'a [Kind],
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Mixed swarms".into(), ..Report::default() };
    let kinds = kind::present(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let torrent = options.site.work.join("mixed.torrent");
    let bytes = payload::with_announce(&fs::read(&content.torrent)?, &Hosts::announce())?;
    fs::write(&torrent, bytes)?;
    let alike: Vec<Vec<Kind>> = kinds.iter().map(|kind| vec![*kind; options.members]).collect();
    let mut swarms = vec![Members { name: "one of each".into(), kinds: &kinds }];
    swarms.extend(
        alike.iter().map(|kinds| Members { name: format!("{} alike", options.members), kinds }),
    );
    let most = swarms.iter().map(|members| members.kinds.len()).max().unwrap_or(0);
    let hosts = Hosts::new(most + 1)?;
    let site = Place { options, hosts: &hosts, torrent: &torrent, content: &content.folder };
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        for members in &swarms {
            if let Err(error) = site.swarm(round, members, &mut runs) {
                let first = members.kinds.first().map_or(String::new(), ToString::to_string);
                report.fail(&format!("{} ({first}), round {round}", members.name), &error);
            }
        }
    }
    let columns = [
        Column { head: "s until it had all", digits: 2, of: |run| run.figure("seconds") },
        Column { head: "s until all had all", digits: 2, of: |run| run.figure("all_seconds") },
        Column {
            head: "its CPU-s per GiB, until all had all",
            digits: 3,
            of: |r| r.figure("cpu_seconds_per_gib"),
        },
    ];
    report.sections.push(format!(
        "{:.0} MiB in pieces of 1 MiB; one seed, an engine that sends at most {} MiB/s, so that \
         leeches have to get most from one another: {:.1} s is the least. All members start \
         together on hosts of their own with nothing, peers from one tracker, their own defaults, \
         no discovery; the seed on core {}, they on all. Time runs from before the first member's \
         start until each told the tracker that it has everything (rqbit, which does not, until \
         its API says so); then its file is hashed. {} rounds. One of each: one swarm of all \
         clients. Alike: swarms of one client alone, whose members are in one row.\n\n{}",
        options.size_bytes() as f64 / MIB,
        options.seed_mib_per_s,
        options.size_bytes() as f64 / MIB / options.seed_mib_per_s as f64,
        options.site.load_core,
        options.rounds,
        result_table(&runs, &columns)
    ));
    report.plots = plots(&runs);
    rounds::finish(report, &runs)
}

fn plots(runs: &[Run]) -> Vec<Plot> {
    let bars = |name, title, unit, digits, of| {
        pictures::column(Figure { name, title, unit, digits }, runs, of)
    };
    let plots = [
        bars("seconds", "From the start until it had all", "seconds", 2, |run| {
            run.figure("seconds")
        }),
        bars("cpu", "CPU until all had all", "CPU seconds per GiB of content", 3, |run| {
            run.figure("cpu_seconds_per_gib")
        }),
    ];
    plots.into_iter().flatten().collect()
}

struct Place<'a> {
    options: &'a Options,
    hosts: &'a Hosts,
    torrent: &'a Path,
    content: &'a Path,
}

/// One that runs: its host, and where its content goes.
struct Member {
    kind: Kind,
    host: usize,
    running: Running,
    content: PathBuf,
    done: Option<Instant>,
}

impl Place<'_> {
    fn swarm(&self, round: usize, members: &Members<'_>, runs: &mut Vec<Run>) -> Result<()> {
        self.hosts.forget();
        let torrent = Torrent::read(self.torrent)?;
        let seed = self.seed()?;
        let start = Instant::now();
        while self.hosts.completed(0).is_none() {
            ensure!(seed.ended()?.is_none(), "the seed ended: {}", seed.last_words());
            ensure!(start.elapsed() < LIMIT, "the seed does not announce");
            thread::sleep(LOOK);
        }
        let start = Instant::now();
        let mut running = Vec::new();
        for (number, kind) in members.kinds.iter().enumerate() {
            running.push(self.member(*kind, number + 1)?);
        }
        while running.iter().any(|member| member.done.is_none()) {
            for member in running.iter_mut().filter(|member| member.done.is_none()) {
                let command = &member.running;
                ensure!(
                    command.ended()?.is_none(),
                    "{} ended: {}",
                    member.kind,
                    command.last_words()
                );
                member.done = self.is_done(member);
            }
            if start.elapsed() > LIMIT {
                let late = running.iter().filter(|member| member.done.is_none());
                let late: Vec<String> = late.map(|m| m.kind.to_string()).collect();
                bail!("not complete in {} s: {}", LIMIT.as_secs(), late.join(", "));
            }
            thread::sleep(LOOK);
        }
        let seconds =
            |member: &Member| member.done.map_or(f64::NAN, |done| (done - start).as_secs_f64());
        let all = running.iter().map(seconds).fold(0.0, f64::max);
        eprintln!(
            "round {round}  {} ({}): all had all after {all:.2} s",
            members.name,
            names(&running)
        );
        for member in running {
            let cost = Reading::take(member.running.pid())?.cpu_seconds;
            let mut run = Run::new(round, Target::from(member.kind), members.name.clone());
            run.figures.insert("seconds", seconds(&member));
            run.figures.insert("all_seconds", all);
            let gib = torrent.total_bytes as f64 / GIB;
            run.figures.insert("cpu_seconds_per_gib", cost / gib);
            let kind = member.kind;
            member.running.end()?;
            let bad = download::bad_pieces(&download::only_file(&member.content)?, &torrent)?;
            ensure!(bad == 0, "{kind}: {bad} pieces do not have the torrent's hash");
            runs.push(run);
        }
        seed.end()
    }

    fn seed(&self) -> Result<Running> {
        let run = self.options.run_folder("mixed-seed")?;
        let more = format!(
            "pin: off\nshards: 1\nlimits: {{ upload: {}MiB/s }}\n",
            self.options.seed_mib_per_s
        );
        let entry = format!("content: {}\n    verify: trust\n", self.content.display());
        self.engine(0, &run, &Cores::one(self.options.site.load_core), &more, &entry)
    }

    /// The engine as it is when nothing is said, but for what `more` says.
    fn engine(
        &self,
        host: usize,
        run: &Path,
        cores: &Cores,
        more: &str,
        entry: &str,
    ) -> Result<Running> {
        let yaml = format!(
            "state_dir: {}\nlisten: [\"{}:{PORT}\"]\nmemory: {{ cache: 64MiB }}\n{more}\
             torrents:\n  - files: \"{}\"\n    trackers: keep\n    {entry}",
            run.join("state").display(),
            hosts::address(host),
            self.torrent.display(),
        );
        let path = run.join("bench.yaml");
        fs::write(&path, yaml)?;
        let program = absolute(&self.options.site.seedring);
        let mut command = self.hosts.command(host, &program, cores);
        command.arg("run").arg(path).current_dir(run);
        spawn(command, run)
    }

    fn member(&self, kind: Kind, host: usize) -> Result<Member> {
        let run = self.options.run_folder(&format!("mixed-{host}"))?;
        let content = run.join("content");
        fs::create_dir_all(&content)?;
        let running = if kind == Kind::Seedring {
            let entry = format!("content: {}\n    download: true\n", content.display());
            self.engine(host, &run, &Cores::Any, "pin: off\nshards: 1\n", &entry)?
        } else {
            let mut command = self.rival(kind, host, &run, &content)?;
            command.current_dir(&run).env("HOME", &run).env("TMPDIR", &run).env("TERM", "xterm");
            spawn(command, &run)?
        };
        Ok(Member { kind, host, running, content, done: None })
    }

    fn rival(&self, kind: Kind, host: usize, run: &Path, content: &Path) -> Result<Command> {
        let site = &self.options.site;
        let address = hosts::address(host).to_string();
        let on_host = |program: &Path| self.hosts.command(host, &absolute(program), &Cores::Any);
        let settings = |name: &str, template: &str| -> Result<PathBuf> {
            let path = run.join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            let values = [
                ("content", content.display().to_string()),
                ("run", run.display().to_string()),
                ("address", address.clone()),
                ("port", PORT.to_string()),
                ("torrent", self.torrent.display().to_string()),
                ("watched", run.join("watched").display().to_string()),
            ];
            fs::write(&path, filled(template, Tuning::Default, &values))?;
            Ok(path)
        };
        let mut command;
        match kind {
            Kind::Libtorrent => {
                command = on_host(&site.python);
                command.arg(script(self.options, LIBTORRENT_PEER)?).arg(self.torrent);
                command.arg(content).arg(format!("{address}:{PORT}"));
            }
            Kind::Qbittorrent => {
                let template = include_str!("../../rivals/qbittorrent.conf");
                settings("qBittorrent/config/qBittorrent.conf", template)?;
                command = on_host(&site.qbittorrent);
                command.arg(format!("--profile={}", run.display()));
                command.arg(format!("--save-path={}", content.display()));
                command.arg("--add-paused=false").arg(self.torrent);
            }
            Kind::Transmission => {
                fs::create_dir_all(run.join("watched"))?;
                fs::copy(self.torrent, run.join("watched/mixed.torrent"))?;
                settings("settings.json", include_str!("../../rivals/transmission_seed.json"))?;
                command = on_host(&site.transmission_daemon);
                command.args(["--foreground", "--no-utp", "--config-dir"]).arg(run);
            }
            Kind::Rtorrent => {
                let path = settings("rtorrent.rc", include_str!("../../rivals/rtorrent.rc"))?;
                command = on_host(&site.rtorrent);
                command.args(["-n", "-o", &format!("import={}", path.display())]);
            }
            Kind::Rqbit => {
                command = on_host(&site.rqbit);
                command.args(["-v", "error", "--disable-dht", "--disable-lsd", "--ipv4-only"]);
                command.args(["--disable-upnp-port-forward", "--listen-ip", &address]);
                command.args(["--listen-port", &PORT.to_string(), "--http-api-listen-addr"]);
                command.args([&format!("{address}:{RQBIT_API}"), "download", "-o"]);
                command.arg(content).arg(self.torrent);
            }
            Kind::Aria2 => {
                command = on_host(&site.aria2);
                command.args(["--no-conf", "--quiet", "--seed-ratio=0.0", "--enable-dht=false"]);
                command.args(["--enable-dht6=false", "--bt-enable-lpd=false", "--disable-ipv6"]);
                command.args(["--enable-peer-exchange=false", "--file-allocation=falloc"]);
                command.arg(format!("--listen-port={PORT}")).arg("--dir").arg(content);
                command.arg(self.torrent);
            }
            _ => bail!("{kind} has no part in a mixed swarm"),
        }
        Ok(command)
    }

    /// By what it told the tracker; rqbit tells it nothing, and is asked.
    fn is_done(&self, member: &Member) -> Option<Instant> {
        if member.kind != Kind::Rqbit {
            return self.hosts.completed(member.host);
        }
        let url = format!("http://{}:{RQBIT_API}/torrents/0/stats/v1", hosts::address(member.host));
        let output = Command::new("curl")
            .args(["--silent", "--fail", "--max-time", "2", "--noproxy", "*", &url])
            .output()
            .ok()?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (said["finished"] == true).then(Instant::now)
    }
}

/// The port of rqbit's API, reached over the bridge.
const RQBIT_API: u16 = 3030;

fn names(members: &[Member]) -> String {
    let mut names: Vec<String> = members.iter().map(|member| member.kind.to_string()).collect();
    names.dedup();
    names.join(", ")
}
