//! Owns: a comparison's side of a controller: asks for loads, watches the target meanwhile, hands
//! the report on.
//! Never: plays a load. Flow: preset -> `Runner::leech` -> controller -> agents; at their window
//! the target is read here -> one outcome.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha1::{Digest, Sha1};

use super::{
    chunks, clock,
    seeds::{Ask, Seeded},
    watch,
    wire::{
        self, AgentInfo, FromRunner, Fruit, Harvest, Lines, Place, Role, ToRunner, Work, to_hex,
    },
};
use crate::{
    cut,
    leech::{self, Outcome, Seen, Watched},
    pull::{self, Pulled},
};

/// Until the controller answers at all.
const CONTROLLER_MAX: Duration = Duration::from_secs(60);
/// Longer than a controller waits for its agents.
const GATHER_MAX: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_millis(2);
/// How often it is looked whether the target is still there.
const ALIVE: Duration = Duration::from_millis(100);

/// A controller, and those who are with it.
pub struct Runner {
    session: Mutex<Session>,
    pub agents: Vec<AgentInfo>,
    /// This machine's address towards the controller.
    pub own_address: SocketAddr,
}

struct Session {
    mouth: TcpStream,
    messages: Receiver<Result<ToRunner>>,
    task: u64,
    /// Sets of torrents that the controller has.
    sets: BTreeSet<String>,
    label: String,
    /// Agents that were lost so far: the task that they had a part in, and in words.
    lost: Vec<(Option<u64>, String)>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} agents", self.agents.len())
    }
}

impl Runner {
    /// Connects, and waits until all agents are there.
    pub fn connect(controller: &str, token: &str) -> Result<Runner> {
        let role = Role::Runner(Place::here());
        let (mouth, lines) = watch::join(controller, token, role, CONTROLLER_MAX)?;
        let own_address = mouth.local_addr()?;
        let messages = listen(mouth.try_clone()?, lines)?;
        let mut session = Session {
            mouth,
            messages,
            task: 0,
            sets: BTreeSet::new(),
            label: String::new(),
            lost: Vec::new(),
        };
        let agents = session.gather()?;
        Ok(Runner { session: Mutex::new(session), agents, own_address })
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of what the loads are that come now: target and round.
    pub fn label(&self, text: String) {
        self.session().label = text;
    }

    /// Agents whose loopback is not this process's.
    pub fn elsewhere(&self) -> Vec<&AgentInfo> {
        let here = Place::here();
        self.agents.iter().filter(|agent| agent.place != here).collect()
    }

    pub fn lost(&self) -> Vec<String> {
        self.session().lost.iter().map(|(_, text)| text.clone()).collect()
    }

    /// Why no agent can be iperf3's client.
    pub fn no_iperf3(&self) -> Option<String> {
        let why = |agent: &AgentInfo| {
            let why = agent.iperf3.as_ref().err()?;
            Some(format!("agent {} on {}: {why}", agent.name, agent.node))
        };
        let reasons: Vec<String> = self.agents.iter().filter_map(why).collect();
        (reasons.len() == self.agents.len()).then(|| reasons.join("; "))
    }

    /// The load, over all agents; `options` says whose cost is read.
    pub fn leech(&self, options: &leech::Options) -> Result<Outcome> {
        options.check()?;
        let mut session = self.session();
        let content = session.send_torrents(&options.torrent)?;
        let watched = Watched::new(options)?;
        let mut asked = options.clone();
        asked.linger = watched.linger_seconds();
        let is_timed = !options.once && options.bytes.is_none();
        let seconds = is_timed.then_some(options.duration);
        let work = Work::Leech { options: Box::new(asked), content };
        let (harvest, seen) = session.run(work, &watched, seconds)?;
        let Fruit::Leech(found) = harvest.fruit else { bail!("the agents did something else") };
        let mut outcome = found.outcome;
        if let Some(seen) = seen {
            let meanwhile = found.lingering_mib_per_s.unwrap_or(0.0) / 1024.0;
            seen.put_into(&mut outcome, options.idle.is_some(), meanwhile);
        }
        session.figures(&outcome)?;
        Ok(outcome)
    }

    /// Files over HTTP.
    pub fn pull(&self, options: &pull::Options) -> Result<Pulled> {
        let mut session = self.session();
        let watched = Watched::of(options.pid)?;
        let work = Work::Pull(Box::new(options.clone()));
        let (harvest, seen) = session.run(work, &watched, Some(options.duration))?;
        let Fruit::Pull(mut pulled) = harvest.fruit else { bail!("the agents did something else") };
        let gib = pulled.bytes as f64 / 1_073_741_824.0;
        let spent = seen.and_then(|seen| seen.cpu_seconds());
        pulled.target_cpu_seconds_per_gib = spent.map(|spent| spent / gib);
        session.say_figures(pulled.mib_per_s, pulled.target_cpu_seconds_per_gib, None)?;
        Ok(pulled)
    }

    /// One stream: MiB/s, and CPU seconds a GiB of the server.
    pub fn iperf3(
        &self,
        pid: u32,
        target: SocketAddr,
        seconds: f64,
        warm_up: f64,
    ) -> Result<(f64, f64)> {
        let mut session = self.session();
        let watched = Watched::of(Some(pid))?;
        let work = Work::Iperf3 { target, seconds, warm_up };
        let (harvest, seen) = session.run(work, &watched, Some(seconds))?;
        let Fruit::Iperf3 { mib_per_s } = harvest.fruit else {
            bail!("the agent did something else")
        };
        let seen = seen.context("the server was not looked at")?;
        let spent = seen.cpu_seconds().context("the server's CPU time")?;
        let cost = spent / (mib_per_s * seen.seconds() / 1024.0);
        session.say_figures(mib_per_s, Some(cost), None)?;
        Ok((mib_per_s, cost))
    }

    /// Agents seed from now on, until what comes of this is dropped or ended.
    pub fn seed(&self, torrent: &Path, ask: Ask) -> Result<Seeding<'_>> {
        ask.check()?;
        let mut session = self.session();
        let content = session.send_torrents(torrent)?;
        let (task, addresses) = session.begin(Work::Seed { ask, content })?;
        Ok(Seeding { runner: self, task: Some(task), addresses })
    }

    /// What a target came to that no load measured, for those who watch.
    pub fn say_figures(&self, mib_per_s: f64, cost: f64) -> Result<()> {
        self.session().say_figures(mib_per_s, Some(cost), None)
    }

    /// The report's files and how it went, for those who watch; nothing comes after it.
    pub fn bye(&self, files: &[std::path::PathBuf], why: Option<String>) -> Result<()> {
        let mut session = self.session();
        for path in files {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            session.file(&name, &text)?;
        }
        session.tell(&FromRunner::Bye { why })?;
        // The controller closes when it has passed all on.
        let until = Instant::now() + wire::WRITE_MAX;
        while Instant::now() < until {
            match session.messages.recv_timeout(ALIVE) {
                Ok(Ok(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    pub fn say(&self, text: &str) -> Result<()> {
        self.session().tell(&FromRunner::Line { text: text.to_owned() })
    }
}

/// While it lives, agents seed.
pub struct Seeding<'a> {
    runner: &'a Runner,
    task: Option<u64>,
    pub addresses: Vec<SocketAddr>,
}

impl Seeding<'_> {
    /// An error: some of them are lost, or all.
    pub fn check(&mut self) -> Result<()> {
        let mut session = self.runner.session();
        let own = self.task;
        match session.hear(Duration::ZERO)? {
            Some(ToRunner::Failed { task, why }) if Some(task) == own => {
                self.task = None;
                bail!(why);
            }
            // It was not asked for yet: nobody is left.
            Some(ToRunner::Harvest { task, .. }) if Some(task) == own => self.task = None,
            _ => {}
        }
        let lost = session.lost.iter().filter(|(task, _)| task.is_some() && *task == own);
        let lost: Vec<&str> = lost.map(|(_, text)| text.as_str()).collect();
        ensure!(lost.is_empty(), "lost: {}", lost.join("; "));
        ensure!(self.task.is_some(), "no agent seeds any more");
        Ok(())
    }

    /// What they did, by agent. An error: some of them were lost.
    pub fn end(mut self) -> Result<Vec<Seeded>> {
        let task = self.task.take().context("it was ended")?;
        let harvest = self.runner.session().end(task)?;
        ensure!(harvest.lost.is_empty(), "{}", harvest.lost.join("; "));
        let Fruit::Seeds(seeded) = harvest.fruit else { bail!("the agents did something else") };
        Ok(seeded)
    }
}

impl Drop for Seeding<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            self.runner.session().end(task).ok();
        }
    }
}

/// Answers pings at once, whatever the comparison does; the rest is for it.
fn listen(mouth: TcpStream, mut lines: Lines<TcpStream>) -> Result<Receiver<Result<ToRunner>>> {
    let (sender, messages) = mpsc::channel();
    let work = move || {
        loop {
            let message = match lines.next::<ToRunner>() {
                Ok(Some(ToRunner::Ping { number })) => {
                    let pong = FromRunner::Pong { number, nanos: clock::now() };
                    match wire::send(&mouth, &pong) {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                Ok(Some(message)) => Ok(message),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let is_last = message.is_err();
            if sender.send(message).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new().name("controller".into()).spawn(work)?;
    Ok(messages)
}

impl Session {
    fn tell(&mut self, message: &FromRunner) -> Result<()> {
        wire::send(&self.mouth, message).context("the controller is lost")
    }

    fn hear(&mut self, timeout: Duration) -> Result<Option<ToRunner>> {
        match self.messages.recv_timeout(timeout) {
            Ok(Ok(ToRunner::AgentLost { text, task })) => {
                eprintln!("LOST {text}");
                self.lost.push((task, text));
                Ok(None)
            }
            Ok(Ok(message)) => Ok(Some(message)),
            Ok(Err(error)) => Err(error.context("the controller is lost")),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the controller is lost: it closed"),
        }
    }

    fn gather(&mut self) -> Result<Vec<AgentInfo>> {
        self.tell(&FromRunner::Gather)?;
        eprintln!("waiting for the agents");
        let until = Instant::now() + GATHER_MAX;
        while Instant::now() < until {
            match self.hear(ALIVE)? {
                Some(ToRunner::Gathered { agents }) => return Ok(agents),
                Some(ToRunner::NotGathered { why }) => bail!("the controller says: {why}"),
                _ => {}
            }
        }
        bail!("the controller did not say whether the agents are there")
    }

    /// Once each, whatever set it is of; gives the set's name.
    fn send_torrents(&mut self, path: &Path) -> Result<String> {
        let mut torrents = Vec::new();
        let mut hash = Sha1::new();
        for path in leech::torrents(path)? {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            hash.update(Sha1::digest(&bytes));
            torrents.push(to_hex(&bytes));
        }
        let content = to_hex(&hash.finalize());
        if self.sets.insert(content.clone()) {
            for (torrents, is_last) in chunks(&torrents) {
                let (content, torrents) = (content.clone(), torrents.to_vec());
                self.tell(&FromRunner::Torrents { content, torrents, is_last })?;
            }
        }
        Ok(content)
    }

    /// A task from its beginning to its end, the target watched in its window. `seconds`: of the
    /// window; `None`: it is over when all have everything.
    fn run(
        &mut self,
        work: Work,
        watched: &Watched,
        seconds: Option<f64>,
    ) -> Result<(Harvest, Option<Seen>)> {
        self.task += 1;
        let task = self.task;
        self.tell(&FromRunner::Task { task, label: self.label.clone(), work })?;
        let (mut watching, mut seen, mut is_stopped) = (None, None, false);
        let mut until: Option<Instant> = None;
        let mut looked = Instant::now();
        let harvest = loop {
            match self.hear(LOOK)? {
                Some(ToRunner::Window { task: of, at, .. }) if of == task => {
                    let at = clock::instant(at);
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    watching = Some(watched.begin()?);
                    until = seconds.map(|seconds| at + Duration::from_secs_f64(seconds));
                }
                Some(ToRunner::Harvest { task: of, harvest }) if of == task => break *harvest,
                Some(ToRunner::Failed { task: of, why }) if of == task => bail!(why),
                _ => {}
            }
            let now = Instant::now();
            if let Some(watching) = &mut watching {
                watching.look(now);
            }
            if until.is_some_and(|until| now >= until)
                && let Some(over) = watching.take()
            {
                let over = over.end(is_stopped)?;
                seen = Some(over.with_syscalls(watched.count_syscalls()));
            }
            if now.duration_since(looked) >= ALIVE && !is_stopped {
                looked = now;
                let asked = cut::is_asked().then(|| "cut short by a signal".to_owned());
                let why = match &watching {
                    _ if asked.is_some() => asked,
                    Some(watching) => watching.why_ended(),
                    None if seen.is_none() => watched.has_ended().map(|pid| {
                        format!(
                            "the target (process {pid}) ended before it served every connection"
                        )
                    }),
                    None => None,
                };
                if let Some(why) = why {
                    is_stopped = true;
                    self.tell(&FromRunner::Stop { task, why })?;
                }
            }
        };
        if let Some(over) = watching {
            seen = Some(over.end(true)?);
        }
        Ok((harvest, seen))
    }

    /// A task whose end this side says: its number, and where agents listen.
    fn begin(&mut self, work: Work) -> Result<(u64, Vec<SocketAddr>)> {
        self.task += 1;
        let task = self.task;
        self.tell(&FromRunner::Task { task, label: self.label.clone(), work })?;
        let mut is_stopped = false;
        loop {
            match self.hear(ALIVE)? {
                Some(ToRunner::Window { task: of, addresses, .. }) if of == task => {
                    return Ok((task, addresses));
                }
                Some(ToRunner::Failed { task: of, why }) if of == task => bail!(why),
                _ => {}
            }
            if cut::is_asked() && !is_stopped {
                is_stopped = true;
                let why = "cut short by a signal".to_owned();
                self.tell(&FromRunner::Stop { task, why })?;
            }
        }
    }

    fn end(&mut self, task: u64) -> Result<Harvest> {
        self.tell(&FromRunner::Stop { task, why: "the target is done".into() })?;
        loop {
            match self.hear(ALIVE)? {
                Some(ToRunner::Harvest { task: of, harvest }) if of == task => return Ok(*harvest),
                Some(ToRunner::Failed { task: of, why }) if of == task => bail!(why),
                _ => {}
            }
        }
    }

    /// For those who watch.
    fn figures(&mut self, outcome: &Outcome) -> Result<()> {
        let cost = outcome.target_cpu_seconds_per_gib;
        self.say_figures(outcome.mib_per_s, cost, outcome.partial.clone())
    }

    fn say_figures(
        &mut self,
        speed: f64,
        cost: Option<f64>,
        partial: Option<String>,
    ) -> Result<()> {
        let cost = cost.map_or(String::new(), |cost| format!(", {cost:.3} CPU-s/GiB"));
        let (label, text) = (self.label.clone(), format!("{speed:.0} MiB/s{cost}"));
        self.tell(&FromRunner::Figures { label, text, partial })
    }

    fn file(&mut self, name: &str, text: &str) -> Result<()> {
        let mut rest = text;
        loop {
            let mut end = rest.len().min(wire::CHUNK_BYTES);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (part, others) = rest.split_at(end);
            let (name, part, is_last) = (name.to_owned(), part.to_owned(), others.is_empty());
            self.tell(&FromRunner::File { name, part, is_last })?;
            if is_last {
                return Ok(());
            }
            rest = others;
        }
    }
}

/// What a report says of how its load was made.
pub fn notes(runner: &Runner, target: SocketAddr, congestion: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut revisions: Vec<&str> =
        runner.agents.iter().map(|agent| agent.revision.as_str()).collect();
    revisions.dedup();
    if revisions.len() > 1 {
        lines.push(format!("agents of different revisions: {}", revisions.join(", ")));
    }
    if !congestion.starts_with("cubic") {
        lines.push(format!(
            "congestion control is {congestion} here, not cubic: cost and speed do not compare \
             with runs on cubic (`sysctl net.ipv4.tcp_congestion_control=cubic`, on every node)"
        ));
    }
    let sourceless = runner.agents.iter().filter(|agent| !agent.has_sources).count();
    if !target.ip().is_loopback() && sourceless > 0 {
        lines.push(format!(
            "{sourceless} agents connect from, or seed at, their machine's one address: clients \
             that take one connection an address serve, or ask, one of each (agent --source \
             ADDRESS/PREFIX)"
        ));
    }
    lines.extend(
        runner
            .lost()
            .into_iter()
            .map(|line| format!("{line}; loads after it were made by the agents that were left")),
    );
    lines
}

/// Clients take one connection an address: where several seeders have one, and each a part only,
/// a download would never end.
pub fn check_seeders(
    runner: &Runner,
    target: SocketAddr,
    seeders: usize,
    have_percent: u8,
) -> Result<()> {
    let names: Vec<String> = runner
        .agents
        .iter()
        .filter(|agent| !agent.has_sources)
        .map(|agent| format!("{} on {}", agent.name, agent.node))
        .collect();
    let is_shared = seeders > runner.agents.len() && !target.ip().is_loopback();
    ensure!(
        have_percent == 100 || !is_shared || names.is_empty(),
        "{seeders} seeders that have a part each need an address each, as clients take one \
         connection an address: give agents --source ADDRESS/PREFIX of addresses that their \
         machine has ({}), or take as many agents as seeders, on machines of their own",
        names.join(", ")
    );
    Ok(())
}

/// A target that listens where agents can't come is refused before it is started.
pub fn check_address(runner: &Runner, target: SocketAddr) -> Result<()> {
    if target.ip().is_loopback() {
        let names: Vec<String> = runner
            .elsewhere()
            .iter()
            .map(|agent| format!("{} on {}", agent.name, agent.node))
            .collect();
        ensure!(
            names.is_empty(),
            "targets would listen on {target}, which is another machine's or container's own for \
             {}: give --address an address of this one that they reach",
            names.join(", ")
        );
    }
    Ok(())
}
