//! Owns: following a run from outside: what happens, live rates, the report's files.
//! Never: takes part. Flow: `Watcher::connect` -> `next` again and again -> `Event::End`.
//!
//! `seedring-bench watch` prints it; a Swarm's run shows its progress by it.

use std::{
    fs,
    net::{Shutdown, TcpStream, ToSocketAddrs as _},
    path::{Component, Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Secret, clock,
    wire::{self, FromWatcher, Hello, Lines, Role, ToWatcher},
};

/// Between two tries to reach a controller.
const PAUSE: Duration = Duration::from_millis(200);
/// Of a report's file, all parts together.
const FILE_BYTES_MAX: usize = 256 << 20;

/// What happened. New kinds may come: match with a `_` arm that does nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Who is there, each time that changes; `wanted`: how many the run waits for.
    Agents {
        there: Vec<Agent>,
        wanted: usize,
    },
    AgentLost {
        agent: Agent,
        why: String,
    },
    /// The comparison itself is there: in a Swarm, its container started.
    RunnerThere,
    /// It went without a word; what it had measured is not known here.
    RunnerLost {
        why: String,
    },
    /// A load is being prepared: target and round, and what is asked of it, in words.
    Begun {
        label: String,
        load: String,
        agents: usize,
    },
    /// Its window has begun and is so long; `None`: until all have everything.
    Window {
        seconds: Option<f64>,
    },
    /// Of each agent in the last half second; `at`: seconds of the window that are over.
    Rates {
        at: f64,
        rates: Vec<Rate>,
    },
    /// A load is over: what came of it, in words; and what was wrong.
    Ended {
        label: String,
        text: String,
        partial: Option<String>,
    },
    /// What the comparison says beside that (its stderr).
    Line {
        text: String,
    },
    /// One of the report's files, whole.
    File {
        name: String,
        text: String,
    },
    /// Nothing comes after it. `failed`: some run failed or the report is cut short, and how.
    End {
        failed: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    pub name: String,
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub agent: Agent,
    pub mib_per_s: f64,
    pub blocks: u64,
    pub p99_ms: f64,
}

/// A connection to a controller that only listens.
pub struct Watcher {
    stream: TcpStream,
    events: Receiver<Result<Event>>,
    is_over: bool,
}

impl Watcher {
    /// `controller`: HOST:PORT, tried again until `patience` is over; a wrong token or version is
    /// an error at once.
    pub fn connect(controller: &str, token: &str, patience: Duration) -> Result<Watcher> {
        let (stream, mut lines) = join(controller, token, Role::Watcher, patience)?;
        let (sender, events) = mpsc::channel();
        let mouth = stream.try_clone()?;
        thread::Builder::new().name("watch".into()).spawn(move || {
            loop {
                let event = match lines.next::<ToWatcher>() {
                    Ok(Some(ToWatcher::Happened { event })) => Ok(event),
                    Ok(Some(ToWatcher::Ping { number })) => {
                        let pong = FromWatcher::Pong { number, nanos: clock::now() };
                        match wire::send(&mouth, &pong) {
                            Ok(()) => continue,
                            Err(error) => Err(error),
                        }
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_last = event.is_err();
                if sender.send(event).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Watcher { stream, events, is_over: false })
    }

    /// What happened next. `None`: nothing in this time. After `Event::End` the controller closes;
    /// one that closes without it is an error.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(timeout) {
            Ok(Ok(event)) => {
                self.is_over = matches!(event, Event::End { .. });
                Ok(Some(event))
            }
            Ok(Err(error)) => Err(error.context("the controller")),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) if self.is_over => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the controller closed the connection"),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Its thread is in a read.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

/// Connects and says hello until it is welcome, refused, or out of patience.
pub fn join(
    controller: &str,
    token: &str,
    role: Role,
    patience: Duration,
) -> Result<(TcpStream, Lines<TcpStream>)> {
    let deadline = Instant::now() + patience;
    loop {
        match try_to_join(controller, token, role.clone()) {
            Ok(Ok(joined)) => return Ok(joined),
            Ok(Err(why)) => bail!("the controller at {controller} says: {why}"),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| {
                    let seconds = patience.as_secs();
                    format!("no controller answered at {controller} within {seconds} s")
                });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

type Joined = (TcpStream, Lines<TcpStream>);

/// The inner error: it was refused, and trying again is in vain.
fn try_to_join(controller: &str, token: &str, role: Role) -> Result<Result<Joined, String>> {
    #[derive(Deserialize)]
    #[serde(tag = "is", rename_all = "kebab-case")]
    enum Answer {
        Welcome,
        Refused { why: String },
    }
    let addresses: Vec<_> = controller.to_socket_addrs().context("its name")?.collect();
    let mut last = anyhow::anyhow!("{controller} has no address");
    for address in addresses {
        let stream = match TcpStream::connect_timeout(&address, wire::SILENCE_MAX) {
            Ok(stream) => stream,
            Err(error) => {
                last = error.into();
                continue;
            }
        };
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(wire::WRITE_MAX))?;
        stream.set_read_timeout(Some(wire::SILENCE_MAX))?;
        wire::send(&stream, &Hello::new(token, role))?;
        let mut lines = Lines::new(stream.try_clone()?, wire::LINE_BYTES_MAX);
        let answer = lines.next::<Answer>()?.context("it closed the connection")?;
        // A controller speaks each second; one that is gone for good is seen by this.
        stream.set_read_timeout(Some(3 * wire::SILENCE_MAX))?;
        return Ok(match answer {
            Answer::Welcome => Ok((stream, lines)),
            Answer::Refused { why } => Err(why),
        });
    }
    Err(last)
}

#[derive(clap::Args)]
pub struct Options {
    /// The controller, as HOST:PORT.
    controller: String,
    #[command(flatten)]
    secret: Secret,
    /// The report's files go here.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Seconds until the controller has to be there.
    #[arg(long, default_value_t = 30.0)]
    patience: f64,
}

/// Prints what happens, a line each, and keeps the report.
pub fn run(options: &Options) -> Result<ExitCode> {
    let token = options.secret.read()?;
    ensure!((0.0..1e6).contains(&options.patience), "--patience is a number of seconds");
    let patience = Duration::from_secs_f64(options.patience);
    let mut watcher = Watcher::connect(&options.controller, &token, patience)?;
    loop {
        let Some(event) = watcher.next(Duration::from_secs(1))? else { continue };
        match &event {
            Event::File { name, text } => {
                if let Some(folder) = &options.out {
                    println!("wrote {}", keep(folder, name, text)?.display());
                }
            }
            Event::End { failed } => {
                println!("{}", in_words(&event));
                return Ok(if failed.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            _ => println!("{}", in_words(&event)),
        }
    }
}

/// Writes a report's file; its name comes from elsewhere and may not leave the folder.
pub fn keep(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let parts: Vec<Component<'_>> = Path::new(name).components().collect();
    ensure!(matches!(parts[..], [Component::Normal(_)]), "a report's file of the name {name:?}");
    ensure!(text.len() <= FILE_BYTES_MAX, "{name} has {} bytes", text.len());
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// An event as a line for people.
pub fn in_words(event: &Event) -> String {
    let of = |agent: &Agent| format!("{} on {}", agent.name, agent.node);
    match event {
        Event::Agents { there, wanted } => {
            let names: Vec<String> = there.iter().map(of).collect();
            format!("{} of {wanted} agents are there: {}", there.len(), names.join(", "))
        }
        Event::AgentLost { agent, why } => format!("LOST agent {}: {why}", of(agent)),
        Event::RunnerThere => "the comparison is there".into(),
        Event::RunnerLost { why } => format!("LOST the comparison: {why}"),
        Event::Begun { label, load, agents } => format!("{label}: {load}, {agents} agents"),
        Event::Window { seconds: Some(seconds) } => format!("measuring for {seconds} s"),
        Event::Window { seconds: None } => "measuring until all have everything".into(),
        Event::Rates { at, rates } => {
            let sum: f64 = rates.iter().map(|rate| rate.mib_per_s).sum();
            let each: Vec<String> = rates
                .iter()
                .map(|rate| format!("{} {:.0}", rate.agent.name, rate.mib_per_s))
                .collect();
            format!("  {at:5.1} s  {sum:.0} MiB/s ({})", each.join(", "))
        }
        Event::Ended { label, text, partial: None } => format!("{label}: {text}"),
        Event::Ended { label, text, partial: Some(why) } => {
            format!("{label}: PARTIAL: {why}; {text}")
        }
        Event::Line { text } => text.clone(),
        Event::File { name, text } => format!("{name}: {} bytes", text.len()),
        Event::End { failed: None } => "done".into(),
        Event::End { failed: Some(why) } => format!("FAILED: {why}"),
    }
}
