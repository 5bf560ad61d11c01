//! Owns: `seedring-bench controller`: who is there, and what passes between runner, agents and
//! watchers.
//! Never: loads, measures or writes a report. Flow: sockets (`door`) -> one loop that knows
//! everything -> sockets. What becomes of a load is in `task`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::RecvTimeoutError,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{
    Secret,
    clock::{self, Offset},
    door::{self, Id, Input, Outbox},
    task::Task,
    watch::{Agent, Event},
    wire::{self, AgentInfo, FromAgent, FromRunner, Role, ToAgent, ToRunner, ToWatcher},
};
use crate::leech;

/// How often everyone is asked, and time is looked at.
const TICK: Duration = Duration::from_millis(50);
const PING: Duration = Duration::from_secs(1);
/// Of the runner's torrents: sets, and bytes of all of them.
const SETS_MAX: usize = 16;
const SETS_BYTES_MAX: usize = 512 << 20;
/// Of a report's file.
const FILE_BYTES_MAX: usize = 64 << 20;
/// Time for the last lines to go out.
const FAREWELL_MAX: Duration = Duration::from_secs(10);
/// Once a run has begun: for an agent that was lost to come back, before a load goes on without it.
const BACK_MAX: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Options {
    /// Where agents, runner and watchers connect; port 0: any, and it is printed which.
    #[arg(long, default_value = "127.0.0.1:6970")]
    listen: SocketAddr,
    #[command(flatten)]
    secret: Secret,
    /// How many agents a run waits for.
    #[arg(long, default_value_t = 1)]
    agents: usize,
    /// Their names, where they are known: who is missing is then named.
    #[arg(long, value_delimiter = ',', conflicts_with = "agents")]
    expect: Vec<String>,
    /// Seconds in which all of them have to be there when a run begins.
    #[arg(long, default_value_t = 60.0)]
    wait: f64,
    /// Seconds without a runner after which it ends.
    #[arg(long, default_value_t = 600.0)]
    patience: f64,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let token = options.secret.read()?;
    let wanted = options.expect.len().max(options.agents);
    ensure!((1..=leech::PARTS_MAX).contains(&wanted), "--agents is 1 to {}", leech::PARTS_MAX);
    for (what, seconds) in [("--wait", options.wait), ("--patience", options.patience)] {
        ensure!((0.0..=1e6).contains(&seconds), "{what} is a number of seconds");
    }
    let listener = TcpListener::bind(options.listen).with_context(|| {
        format!("cannot listen on {}: is the port taken? --listen", options.listen)
    })?;
    println!("listening on {}", listener.local_addr()?);
    let (inputs, open) = door::open(listener, &token)?;
    let mut hub = Hub {
        wanted,
        expect: options.expect.clone(),
        wait: Duration::from_secs_f64(options.wait),
        agents: BTreeMap::new(),
        watchers: BTreeMap::new(),
        runner: None,
        sets: BTreeMap::new(),
        lost: BTreeMap::new(),
        gathering: None,
        has_gathered: false,
        task: None,
        files: BTreeMap::new(),
        is_over: false,
    };
    let patience = Duration::from_secs_f64(options.patience);
    let mut alone_since = Instant::now();
    while !hub.is_over {
        match inputs.recv_timeout(TICK) {
            Ok(input) => hub.take(input),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        hub.tick();
        if hub.runner.is_some() {
            alone_since = Instant::now();
        }
        if alone_since.elapsed() > patience {
            let why = format!(
                "no comparison came within {:.0} s: `seedring-bench run SCENARIO --controller` is \
                 one",
                options.patience
            );
            hub.end(Some(&why));
            farewell(hub, &open);
            bail!(why);
        }
    }
    farewell(hub, &open);
    Ok(ExitCode::SUCCESS)
}

/// Sockets close when all that was told is out.
fn farewell(hub: Hub, open: &AtomicUsize) {
    drop(hub);
    let until = Instant::now() + FAREWELL_MAX;
    while open.load(Relaxed) > 0 && Instant::now() < until {
        thread::sleep(TICK);
    }
}

/// One who is connected.
pub struct Client {
    outbox: Outbox,
    pub offset: Offset,
    pings: u64,
    /// The number and time of the ping that it has not answered.
    pinged: Option<(u64, u64)>,
    pinged_at: Instant,
    heard: Instant,
}

pub struct AgentThere {
    pub client: Client,
    pub info: AgentInfo,
    /// Sets of torrents that it has.
    pub sets: BTreeSet<String>,
}

/// A runner's set of torrents, as hexadecimal digits.
#[derive(Default)]
pub struct Set {
    pub torrents: Vec<String>,
    pub is_whole: bool,
}

pub struct Hub {
    wanted: usize,
    expect: Vec<String>,
    wait: Duration,
    pub agents: BTreeMap<Id, AgentThere>,
    watchers: BTreeMap<Id, Client>,
    pub runner: Option<(Id, Client)>,
    pub sets: BTreeMap<String, Set>,
    /// Agents that were there once, and why they are not.
    lost: BTreeMap<String, String>,
    /// Since when the runner waits for all to be there.
    gathering: Option<Instant>,
    has_gathered: bool,
    task: Option<Task>,
    files: BTreeMap<String, String>,
    is_over: bool,
}

impl Client {
    fn new(outbox: Outbox) -> Self {
        let now = Instant::now();
        let (offset, heard) = (Offset::default(), now);
        Client { outbox, offset, pings: 0, pinged: None, pinged_at: now, heard }
    }

    pub fn ping(&mut self, message: fn(u64) -> Told) {
        self.pings += 1;
        self.pinged_at = Instant::now();
        self.pinged = Some((self.pings, clock::now()));
        self.tell(&message(self.pings));
    }

    fn pong(&mut self, number: u64, nanos: u64, received: u64) {
        if let Some((asked, sent)) = self.pinged
            && asked == number
        {
            self.offset.add(sent, nanos, received);
            self.pinged = None;
        }
    }

    /// One that does not keep up is cut: its reader then says that it is gone.
    pub fn tell<T: Serialize>(&self, message: &T) {
        if !self.outbox.send(message).unwrap_or(false) {
            self.outbox.cut();
        }
    }

    /// Another exchange, until there are so many.
    pub fn ping_until(&mut self, samples: u32, message: fn(u64) -> Told) {
        if self.pinged.is_none() && self.offset.samples() < samples {
            self.ping(message);
        }
    }

    fn is_due(&self) -> bool {
        self.pinged.is_none() && self.pinged_at.elapsed() >= PING
    }

    fn is_silent(&self) -> bool {
        self.pinged.is_some() && self.heard.elapsed() >= wire::SILENCE_MAX
    }
}

/// A message to whichever role.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Told {
    Agent(ToAgent),
    Runner(ToRunner),
    Watcher(ToWatcher),
}

pub fn ping_agent(number: u64) -> Told {
    Told::Agent(ToAgent::Ping { number })
}

pub fn ping_runner(number: u64) -> Told {
    Told::Runner(ToRunner::Ping { number })
}

fn ping_watcher(number: u64) -> Told {
    Told::Watcher(ToWatcher::Ping { number })
}

impl AgentThere {
    pub fn agent(&self) -> Agent {
        Agent { name: self.info.name.clone(), node: self.info.node.clone() }
    }
}

pub fn in_words(agent: &Agent) -> String {
    format!("{} on {}", agent.name, agent.node)
}

impl Hub {
    fn take(&mut self, input: Input) {
        match input {
            Input::Joined { id, role, from, outbox } => self.join(id, role, from, outbox),
            Input::Agent { id, message, received } => {
                let Some(there) = self.agents.get_mut(&id) else { return };
                there.client.heard = Instant::now();
                self.of_agent(id, message, received);
            }
            Input::Runner { id, message, received } => {
                if let Some((of, client)) = &mut self.runner
                    && *of == id
                {
                    client.heard = Instant::now();
                    self.of_runner(message, received);
                }
            }
            Input::Watcher { id, message, received } => {
                if let Some(client) = self.watchers.get_mut(&id) {
                    client.heard = Instant::now();
                    let wire::FromWatcher::Pong { number, nanos } = message;
                    client.pong(number, nanos, received);
                }
            }
            Input::Gone { id, why } => self.lose(id, &why),
        }
    }

    fn join(&mut self, id: Id, role: Role, from: SocketAddr, outbox: Outbox) {
        let client = Client::new(outbox);
        match role {
            Role::Agent(mut info) => {
                let taken = |name: &str| self.agents.values().any(|one| one.info.name == name);
                if taken(&info.name) {
                    let free = (2..).map(|n| format!("{}-{n}", info.name));
                    info.name = free.into_iter().find(|name| !taken(name)).unwrap_or_default();
                }
                eprintln!("agent {} on {} is there ({from})", info.name, info.node);
                self.lost.remove(&info.name);
                self.agents.insert(id, AgentThere { client, info: *info, sets: BTreeSet::new() });
                self.say_agents();
            }
            Role::Runner(_) if self.runner.is_some() => {
                client.tell(&ToRunner::NotGathered { why: "another comparison is running".into() });
            }
            Role::Runner(_) => {
                eprintln!("the comparison is there ({from})");
                self.runner = Some((id, client));
                self.has_gathered = false;
                self.sets.clear();
                self.publish(Event::RunnerThere);
            }
            Role::Watcher => {
                self.watchers.insert(id, client);
                self.say_agents();
                if self.runner.is_some() {
                    self.publish_to(id, Event::RunnerThere);
                }
            }
        }
    }

    fn of_agent(&mut self, id: Id, message: FromAgent, received: u64) {
        match message {
            FromAgent::Pong { number, nanos } => {
                if let Some(there) = self.agents.get_mut(&id) {
                    there.client.pong(number, nanos, received);
                }
            }
            FromAgent::Leaving { why } => self.lose(id, &why),
            message => self.with_task(|hub, task| task.of_agent(hub, id, message)),
        }
    }

    fn of_runner(&mut self, message: FromRunner, received: u64) {
        match message {
            FromRunner::Pong { number, nanos } => {
                if let Some((_, client)) = &mut self.runner {
                    client.pong(number, nanos, received);
                }
            }
            FromRunner::Gather => self.gathering = Some(Instant::now()),
            FromRunner::Torrents { content, torrents, is_last } => {
                if let Err(error) = self.keep(content, torrents, is_last) {
                    self.tell_runner(&ToRunner::NotGathered { why: format!("{error:#}") });
                }
            }
            FromRunner::Task { task, label, work } => {
                let begun = if self.task.is_some() {
                    Err(anyhow::anyhow!("another load is running"))
                } else {
                    Task::new(self, task, label, work)
                };
                match begun {
                    Ok(task) => self.task = Some(task),
                    Err(error) => {
                        self.tell_runner(&ToRunner::Failed { task, why: format!("{error:#}") });
                    }
                }
            }
            FromRunner::Stop { task: of, why } => self.with_task(|hub, task| {
                if task.id == of {
                    task.stop(hub, &why);
                }
            }),
            FromRunner::Line { text } => self.publish(Event::Line { text }),
            FromRunner::Figures { label, text, partial } => {
                self.publish(Event::Ended { label, text, partial });
            }
            FromRunner::File { name, part, is_last } => self.file(name, &part, is_last),
            FromRunner::Bye { why } => {
                eprintln!("the comparison is over{}", why.as_ref().map_or("", |_| ", partial"));
                self.end(why.as_deref());
            }
        }
    }

    fn keep(&mut self, content: String, torrents: Vec<String>, is_last: bool) -> Result<()> {
        ensure!(
            self.sets.len() < SETS_MAX || self.sets.contains_key(&content),
            "more than {SETS_MAX} sets of torrents"
        );
        let set = self.sets.entry(content).or_default();
        ensure!(!set.is_whole, "a set of torrents that is whole already");
        set.torrents.extend(torrents);
        set.is_whole = is_last;
        let bytes = |set: &Set| set.torrents.iter().map(String::len).sum::<usize>();
        let all: usize = self.sets.values().map(bytes).sum();
        ensure!(all <= SETS_BYTES_MAX, "torrents of more than {SETS_BYTES_MAX} bytes");
        Ok(())
    }

    fn file(&mut self, name: String, part: &str, is_last: bool) {
        let text = self.files.entry(name.clone()).or_default();
        if text.len() + part.len() <= FILE_BYTES_MAX {
            text.push_str(part);
        }
        if is_last {
            let text = self.files.remove(&name).unwrap_or_default();
            // As JSON in a line it is longer.
            if text.len() > wire::LINE_BYTES_MAX / 2 {
                let text = format!("{name} is too long to be sent: it is where the comparison ran");
                return self.publish(Event::Line { text });
            }
            self.publish(Event::File { name, text });
        }
    }

    /// A task may look at everything else while it is at work.
    fn with_task(&mut self, work: impl FnOnce(&mut Hub, &mut Task)) {
        let Some(mut task) = self.task.take() else { return };
        work(self, &mut task);
        if !task.is_over() {
            self.task = Some(task);
        }
    }

    fn tick(&mut self) {
        for there in self.agents.values_mut().filter(|there| there.client.is_due()) {
            there.client.ping(ping_agent);
        }
        for client in self.watchers.values_mut().filter(|client| client.is_due()) {
            client.ping(ping_watcher);
        }
        if let Some((_, client)) = self.runner.as_mut().filter(|(_, client)| client.is_due()) {
            client.ping(ping_runner);
        }
        let agents = self.agents.iter().map(|(id, there)| (*id, &there.client));
        let watchers = self.watchers.iter().map(|(id, client)| (*id, client));
        let runner = self.runner.iter().map(|(id, client)| (*id, client));
        let all = agents.chain(watchers).chain(runner);
        let silent: Vec<Id> =
            all.filter(|(_, client)| client.is_silent()).map(|(id, _)| id).collect();
        for id in silent {
            self.lose(id, &format!("silent for {} s", wire::SILENCE_MAX.as_secs()));
        }
        self.look_who_is_there();
        self.with_task(|hub, task| task.tick(hub));
    }

    fn look_who_is_there(&mut self) {
        let Some(since) = self.gathering else { return };
        if self.is_complete() {
            self.gathering = None;
            self.has_gathered = true;
            let mut agents: Vec<AgentInfo> =
                self.agents.values().map(|there| there.info.clone()).collect();
            agents.sort_by(|one, other| one.name.cmp(&other.name));
            self.tell_runner(&ToRunner::Gathered { agents });
        } else if since.elapsed() >= self.wait {
            self.gathering = None;
            let seconds = self.wait.as_secs_f64();
            let why = format!("after {seconds:.0} s {}", self.who_is_missing());
            self.tell_runner(&ToRunner::NotGathered { why });
        }
    }

    fn is_complete(&self) -> bool {
        let is_there = |name: &String| self.agents.values().any(|one| one.info.name == *name);
        self.agents.len() >= self.wanted && self.expect.iter().all(is_there)
    }

    /// Whether a load may begin with those who are there, so long after it was asked for.
    pub fn may_begin(&self, waited: Duration) -> bool {
        self.is_complete() || (self.has_gathered && !self.agents.is_empty() && waited >= BACK_MAX)
    }

    /// Why a load that waited so long can't begin.
    pub fn why_not(&self, waited: Duration) -> Option<String> {
        (waited >= self.wait.max(BACK_MAX)).then(|| self.who_is_missing())
    }

    fn who_is_missing(&self) -> String {
        let there: Vec<String> =
            self.agents.values().map(|there| in_words(&there.agent())).collect();
        let mut text = format!("{} of {} agents are there", there.len(), self.wanted);
        if !there.is_empty() {
            text.push_str(&format!(" ({})", there.join(", ")));
        }
        let is_there = |name: &str| self.agents.values().any(|one| one.info.name == name);
        let missing: Vec<&str> =
            self.expect.iter().map(String::as_str).filter(|name| !is_there(name)).collect();
        if !missing.is_empty() {
            text.push_str(&format!("; missing: {}", missing.join(", ")));
        }
        for (name, why) in &self.lost {
            text.push_str(&format!("; {name} was there: {why}"));
        }
        text.push_str("; `seedring-bench agent` on each machine is one");
        text
    }

    fn lose(&mut self, id: Id, why: &str) {
        if let Some(there) = self.agents.remove(&id) {
            there.client.outbox.cut();
            let agent = there.agent();
            eprintln!("agent {} is lost: {why}", in_words(&agent));
            self.lost.insert(agent.name.clone(), format!("{why} (on {})", agent.node));
            let task = self.task.as_ref().filter(|task| task.has(id)).map(|task| task.id);
            let text = format!("agent {}: {why}", in_words(&agent));
            self.tell_runner(&ToRunner::AgentLost { text, task });
            self.publish(Event::AgentLost { agent, why: why.to_owned() });
            self.say_agents();
            self.with_task(|hub, task| task.lose(hub, id, why));
        } else if self.watchers.remove(&id).is_none()
            && self.runner.as_ref().is_some_and(|(of, _)| *of == id)
        {
            if let Some((_, client)) = self.runner.take() {
                client.outbox.cut();
            }
            eprintln!("the comparison is lost: {why}");
            self.with_task(|hub, task| task.abandon(hub, "the comparison is lost"));
            (self.task, self.gathering, self.has_gathered) = (None, None, false);
            self.files.clear();
            self.publish(Event::RunnerLost { why: why.to_owned() });
        }
    }

    /// All are told, and go.
    fn end(&mut self, why: Option<&str>) {
        self.publish(Event::End { failed: why.map(str::to_owned) });
        let why = why.unwrap_or("the comparison is over").to_owned();
        for there in self.agents.values() {
            there.client.tell(&ToAgent::End { why: why.clone() });
        }
        self.is_over = true;
    }

    fn say_agents(&mut self) {
        let there = self.agents.values().map(AgentThere::agent).collect();
        self.publish(Event::Agents { there, wanted: self.wanted });
    }

    pub fn publish(&mut self, event: Event) {
        let ids: Vec<Id> = self.watchers.keys().copied().collect();
        for id in ids {
            self.publish_to(id, event.clone());
        }
    }

    fn publish_to(&mut self, id: Id, event: Event) {
        if let Some(client) = self.watchers.get(&id) {
            client.tell(&ToWatcher::Happened { event });
        }
    }

    pub fn tell_runner(&self, message: &ToRunner) {
        if let Some((_, client)) = &self.runner {
            client.tell(message);
        }
    }
}
