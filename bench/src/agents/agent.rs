//! Owns: `seedring-bench agent`: plays its part of each load that a controller asks for.
//! Never: needs a file; looks at the target's process. Flow: controller's task -> `leech`, `pull`
//! or iperf3 in this process (`play`) -> what it found.

use std::{
    collections::BTreeMap,
    net::{Shutdown, TcpStream, ToSocketAddrs as _},
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::CpuSet;

use super::{
    Secret, clock,
    play::{Led, Playing},
    watch,
    wire::{self, AgentInfo, FromAgent, Lines, Place, Role, ToAgent},
};
use crate::{cut, environment, leech::Source, nic, probe::Machine};

/// In place of --name and --node, where a container's environment is a template.
const NAME_VARIABLE: &str = "SEEDRING_BENCH_NAME";
const NODE_VARIABLE: &str = "SEEDRING_BENCH_NODE";

#[derive(clap::Args)]
pub struct Options {
    /// The controller, as HOST:PORT.
    controller: String,
    #[command(flatten)]
    secret: Secret,
    /// What it is called in the report, or SEEDRING_BENCH_NAME; its node and process by default.
    #[arg(long)]
    name: Option<String>,
    /// What its machine is called, or SEEDRING_BENCH_NODE; the host name by default.
    #[arg(long)]
    node: Option<String>,
    /// Seconds in which a controller is looked for, at first and after it was lost.
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// Threads of the load, in place of what is asked for.
    #[arg(long)]
    threads: Option<usize>,
    /// Cores to run on, such as 1 or 2-3,6.
    #[arg(long, value_name = "CORES")]
    cores: Option<String>,
    /// Addresses of this machine to connect from, as ADDRESS/PREFIX; otherwise its own, or on
    /// loopback a part of 127.64.0.0/12.
    #[arg(long)]
    source: Option<Source>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let token = options.secret.read()?;
    ensure!((0.0..=1e6).contains(&options.patience), "--patience is a number of seconds");
    ensure!(options.threads.is_none_or(|n| (1..=256).contains(&n)), "--threads is 1 to 256");
    if let Some(cores) = &options.cores {
        run_on(cores)?;
    }
    // A load that waits for a core measures itself.
    if rustix::process::setpriority_process(None, -20).is_err() {
        eprintln!("at usual priority: -20 needs CAP_SYS_NICE");
    }
    let info = introduce(options)?;
    let patience = Duration::from_secs_f64(options.patience);
    let mouth: Arc<Mutex<Option<TcpStream>>> = Arc::default();
    let last_words = mouth.clone();
    cut::watch(move |_| {
        let mouth = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = mouth.as_ref() {
            let why = "it was ended by a signal".to_owned();
            wire::send(stream, &FromAgent::Leaving { why }).ok();
            stream.shutdown(Shutdown::Both).ok();
        }
        std::process::exit(1);
    })?;
    loop {
        let role = Role::Agent(Box::new(info.clone()));
        let (stream, lines) = watch::join(&options.controller, &token, role, patience)?;
        eprintln!("{} on {}: at the controller {}", info.name, info.node, options.controller);
        *mouth.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        let mut session = Session {
            options,
            mouth: Arc::new(Mutex::new(stream)),
            sets: BTreeMap::new(),
            playing: None,
        };
        let ended = session.serve(lines);
        session.stop("the controller is lost");
        match ended {
            Ok(why) => {
                eprintln!("{why}");
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => eprintln!("the controller is lost: {error:#}"),
        }
    }
}

/// As `taskset -c` takes them; threads that are started later are on the same.
fn run_on(cores: &str) -> Result<()> {
    let wrong = || format!("--cores is such as 1 or 2-3,6, not {cores:?}");
    let mut set = CpuSet::new();
    for range in cores.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) =
            (first.parse().with_context(wrong)?, last.parse().with_context(wrong)?);
        ensure!(first <= last && last < CpuSet::MAX_CPU, wrong());
        (first..=last).for_each(|core| set.set(core));
    }
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on cores {cores}"))
}

fn introduce(options: &Options) -> Result<AgentInfo> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fits = |name: String| {
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>()
    };
    let or_else = |given: &Option<String>, variable| {
        given.clone().or_else(|| std::env::var(variable).ok()).filter(|name| !name.is_empty())
    };
    let node = or_else(&options.node, NODE_VARIABLE).unwrap_or_else(|| fits(host));
    let name = match or_else(&options.name, NAME_VARIABLE) {
        Some(name) => name,
        None => format!("{node}-{}", own_number()?),
    };
    wire::check_name("--name", &name)?;
    wire::check_name("--node", &node)?;
    let iperf3 = match Command::new("iperf3").arg("--version").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.lines().next().unwrap_or("iperf3").chars().take(60).collect())
        }
        Err(error) => Err(format!("cannot run iperf3: {error}; try: apt install iperf3")),
    };
    let machine = Machine::read();
    let short = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    let controller = options.controller.to_socket_addrs().ok().and_then(|mut all| all.next());
    let nic = controller.map_or(String::new(), |address| nic::towards(address.ip(), false));
    Ok(AgentInfo {
        name,
        node,
        place: Place::here(),
        cores: thread::available_parallelism().map_or(1, usize::from),
        kernel: short(&machine.kernel, 60),
        cpu: short(&machine.cpu, 80),
        governor: short(&machine.governor, 20),
        mitigations: short(&machine.mitigations, 400),
        nic: short(&nic, 120),
        revision: environment::git_revision(),
        iperf3,
        has_sources: options.source.is_some(),
    })
}

/// That no other agent has: in a container each is process 1, and on the host's network all
/// have the host's name.
fn own_number() -> Result<String> {
    let number = std::process::id();
    if number > 1 {
        return Ok(number.to_string());
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("a number")?;
    Ok(text.chars().take(4).collect())
}

/// One connection to a controller.
struct Session<'a> {
    options: &'a Options,
    mouth: Arc<Mutex<TcpStream>>,
    /// Torrents, as they came.
    sets: BTreeMap<String, Arc<Vec<Vec<u8>>>>,
    playing: Option<(u64, Arc<Led>, JoinHandle<()>)>,
}

pub fn say(mouth: &Mutex<TcpStream>, message: &FromAgent) -> Result<()> {
    let stream = mouth.lock().unwrap_or_else(PoisonError::into_inner);
    wire::send(&stream, message)
}

impl Session<'_> {
    /// Until the controller says that it is over, and why. An error: it is gone.
    fn serve(&mut self, mut lines: Lines<TcpStream>) -> Result<String> {
        let mut coming: Vec<Vec<u8>> = Vec::new();
        loop {
            let message = lines.next::<ToAgent>()?.context("it closed the connection")?;
            match message {
                ToAgent::Ping { number } => {
                    say(&self.mouth, &FromAgent::Pong { number, nanos: clock::now() })?;
                }
                ToAgent::Torrents { content, torrents, is_last } => {
                    for torrent in torrents {
                        coming.push(wire::from_hex(&torrent)?);
                    }
                    if is_last {
                        self.sets.insert(content, Arc::new(std::mem::take(&mut coming)));
                    }
                }
                ToAgent::Task { task, part, work } => {
                    self.stop("another load is asked for");
                    let led = Arc::new(Led::new(task, self.mouth.clone()));
                    let playing = Playing {
                        led: led.clone(),
                        part,
                        work,
                        sets: self.sets.clone(),
                        threads: self.options.threads,
                        source: self.options.source,
                    };
                    let name = format!("task-{task}");
                    let thread = thread::Builder::new().name(name).spawn(move || playing.play())?;
                    self.playing = Some((task, led, thread));
                }
                ToAgent::Window { task, at } => {
                    if let Some((of, led, _)) = &self.playing
                        && *of == task
                    {
                        led.begin_at(clock::instant(at));
                    }
                }
                ToAgent::Stop { task, why } => {
                    if let Some((of, led, _)) = &self.playing
                        && *of == task
                    {
                        led.end(&why);
                    }
                }
                ToAgent::End { why } => return Ok(why),
                ToAgent::Refused { why } => bail!(why),
                ToAgent::Welcome => {}
            }
        }
    }

    /// What is played, and waits until it is over.
    fn stop(&mut self, why: &str) {
        if let Some((_, led, thread)) = self.playing.take() {
            led.end(why);
            if thread.join().is_err() {
                eprintln!("the load panicked");
            }
        }
    }
}
