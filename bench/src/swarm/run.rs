//! Owns: one run of a scenario in a Swarm, from what is made to what is left: nothing.
//! Never: says how services look (`spec.rs`) or what a failure means (`tasks.rs`).
//! Flow: secret, scenario, controller -> watcher -> comparison and agents -> events until the
//! end -> all is removed, whatever happened.
//!
//! Signals are looked at between two requests: one that is on its way could make something
//! after the cleaning.

use std::{net::ToSocketAddrs as _, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, sleep},
};

use super::{
    engine::Engine,
    made::{self, Whose},
    show::Show,
    spec::{Held, Network, Plan, Publish, with_port},
    tasks::{Follow, Seen, port_of_mesh},
};
use crate::agents::watch::{Event, Watcher, keep};

/// A node may have to fetch the image first.
const CONTROLLER_MAX: Duration = Duration::from_secs(120);
/// Until the routing mesh leads to a controller that runs.
const MESH_MAX: Duration = Duration::from_secs(8);
const WATCHER_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(500);
/// What ended has said its last by then.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// After Ctrl-C: the run under way is given up, the report written and sent.
const CUT_SHORT_MAX: Duration = Duration::from_secs(70);

/// How it went.
#[derive(Debug, Default)]
pub struct Ended {
    pub files: Vec<PathBuf>,
    /// The report as Markdown.
    pub text: Option<String>,
    pub failed: Option<String>,
    pub interrupted: bool,
}

/// What the user said beside the plan.
#[derive(Clone, Debug)]
pub struct Told {
    pub scenario: String,
    pub token: String,
    pub out: PathBuf,
    /// Ways to publish the controller's port, the first that works.
    pub ways: Vec<Publish>,
    /// Images as the user calls them.
    pub image: String,
    pub target_image: String,
    pub makes_network: bool,
}

/// SIGINT, SIGTERM and SIGHUP: from the first on the run ends in order, and nothing ends it before
/// what was made is gone.
pub struct Signals {
    all: [Signal; 3],
}

impl Signals {
    pub fn install() -> Result<Signals> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [one, two, three] = kinds.map(signal);
        Ok(Signals { all: [one?, two?, three?] })
    }

    async fn next(&mut self) {
        let [one, two, three] = &mut self.all;
        tokio::select! {
            _ = one.recv() => {}
            _ = two.recv() => {}
            _ = three.recv() => {}
        }
    }

    /// Waits, unless one comes: that is an error.
    async fn pause(&mut self, time: Duration) -> Result<()> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            () = self.next() => bail!("interrupted"),
        }
    }
}

/// Runs it, and removes what it made.
pub async fn run(engine: &Engine, plan: &Plan, told: &Told, nodes: Names) -> Result<Ended> {
    let mut signals = Signals::install().context("signals can't be handled")?;
    let mut show = Show::new();
    let went = Run { engine, plan, told, nodes }.drive(&mut signals, &mut show).await;
    show.line("removing what this run made");
    let docker = engine.docker.clone();
    let whose = Whose::Run(plan.run.clone());
    let mut removal = tokio::spawn(async move { made::remove(&docker, &whose).await });
    let removed = loop {
        tokio::select! {
            removed = &mut removal => break removed.context("the removal").and_then(|it| it),
            () = signals.next() => show.line("still removing what this run made"),
        }
    };
    match (went, removed) {
        (went, Ok(())) => went,
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Err(left)) => Err(error.context(format!("and {left:#}"))),
    }
}

/// Of nodes, by ID.
pub type Names = std::collections::HashMap<String, String>;

struct Run<'a> {
    engine: &'a Engine,
    plan: &'a Plan,
    told: &'a Told,
    nodes: Names,
}

/// A controller that answers.
struct Controller {
    follow: Follow,
    events: UnboundedReceiver<Result<Event>>,
    /// Where tasks find it.
    at: String,
}

impl Run<'_> {
    async fn drive(&self, signals: &mut Signals, show: &mut Show) -> Result<Ended> {
        let docker = &self.engine.docker;
        let (plan, told) = (self.plan, self.told);
        let labels = plan.labels();
        let secret = plan.name_of("token");
        let secret = made::secret(docker, secret, labels.clone(), &told.token).await?;
        let config = plan.name_of("scenario");
        let config = made::config(docker, config, labels.clone(), &told.scenario).await?;
        if let (true, Network::Overlay(name)) = (told.makes_network, &plan.network) {
            made::network(docker, name, labels).await?;
        }
        let controller = self.controller(&secret, signals, show).await?;
        let comparison = plan.comparison(&controller.at, &secret, &config);
        let comparison = made::service(docker, comparison).await?;
        let agents = made::service(docker, plan.agents(&controller.at, &secret)).await?;
        let follow = |service: &str, part, image: &str| {
            Follow::new(service.to_owned(), part, self.nodes.clone(), image)
        };
        let mut going = Going {
            run: self,
            controller,
            comparison: follow(&comparison, "comparison", &told.target_image),
            agents: follow(&agents, "agents", &told.image),
            service: comparison,
            ended: Ended::default(),
            has_begun: false,
            give_up_at: None,
        };
        going.until_the_end(signals, show).await?;
        if going.ended.files.is_empty()
            && let Some(why) = &mut going.ended.failed
        {
            let said = going.comparison.last_words(docker).await;
            why.push_str(&format!("\nIt said last:\n{said}"));
        }
        Ok(going.ended)
    }

    /// The first way to publish its port that leads to it.
    async fn controller(
        &self,
        secret: &Held,
        signals: &mut Signals,
        show: &mut Show,
    ) -> Result<Controller> {
        let docker = &self.engine.docker;
        let mut last = None;
        for way in &self.told.ways {
            let id = made::service(docker, self.plan.controller(*way, secret)).await?;
            let mut follow =
                Follow::new(id.clone(), "controller", self.nodes.clone(), &self.told.image);
            self.until_running(&mut follow, signals, show).await?;
            match self.reach(*way, &id, &follow, signals).await? {
                Ok((from_here, port)) => {
                    let events = watch(&from_here, &self.told.token)?;
                    let at = self.plan.controller_at(*way, port);
                    show.line(&format!("the controller runs; tasks reach it at {at}"));
                    return Ok(Controller { follow, events, at });
                }
                Err(why) => {
                    show.line(&why);
                    last = Some(why);
                    made::remove_service(docker, &id).await?;
                }
            }
        }
        bail!(last.unwrap_or_else(|| "no way to publish the controller's port".into()))
    }

    async fn until_running(
        &self,
        follow: &mut Follow,
        signals: &mut Signals,
        show: &mut Show,
    ) -> Result<()> {
        let deadline = Instant::now() + CONTROLLER_MAX;
        while !follow.is_running() {
            for seen in follow.look(&self.engine.docker).await? {
                self.fail_with_log(&seen, follow).await?;
                show.line(&in_state(&seen));
            }
            let seconds = CONTROLLER_MAX.as_secs();
            anyhow::ensure!(Instant::now() < deadline, "no controller runs after {seconds} s");
            signals.pause(LOOK).await?;
        }
        Ok(())
    }

    /// Where the controller is reached from here, and the port that tasks use. The inner
    /// error: this way does not lead there.
    async fn reach(
        &self,
        way: Publish,
        id: &str,
        follow: &Follow,
        signals: &mut Signals,
    ) -> Result<Result<(String, u16), String>> {
        let docker = &self.engine.docker;
        let start = Instant::now();
        if way == Publish::Mesh && self.engine.is_local() && !has_ipvs() {
            return Ok(Err(
                "this kernel has no IPVS, so that Swarm's routing mesh leads nowhere: \
                           the controller's port is published on its node alone"
                    .into(),
            ));
        }
        loop {
            let port = match way {
                Publish::Mesh => port_of_mesh(docker, id).await?,
                Publish::Node => follow.port_of_node(docker).await?,
            };
            if let Some(port) = port {
                let host = match way {
                    Publish::Mesh => self.engine.publishes_at(),
                    Publish::Node => self.plan.choice.controller.address.clone(),
                };
                let at = with_port(&host, port);
                if answers(&at).await {
                    return Ok(Ok((at, port)));
                }
                if start.elapsed() > MESH_MAX {
                    return Ok(Err(match way {
                        Publish::Mesh => format!(
                            "Swarm's routing mesh does not lead to the controller ({at}): its port \
                             is published on its node alone"
                        ),
                        Publish::Node => format!(
                            "the controller runs, and {at} does not answer: is there a firewall?"
                        ),
                    }));
                }
            } else if start.elapsed() > MESH_MAX {
                return Ok(Err("Swarm publishes no port of the controller".into()));
            }
            signals.pause(LOOK / 2).await?;
        }
    }

    async fn fail_with_log(&self, seen: &Seen, follow: &Follow) -> Result<()> {
        let Some(why) = &seen.failed else { return Ok(()) };
        let log = follow.last_words(&self.engine.docker).await;
        let log = if log.is_empty() { log } else { format!("\nIt said last:\n{log}") };
        bail!("{}: {why}{log}", seen.who)
    }
}

/// In the kernel, or as a module that the engine has loaded for the mesh.
fn has_ipvs() -> bool {
    std::path::Path::new("/proc/net/ip_vs").exists()
}

async fn answers(at: &str) -> bool {
    let Some(address) = at.to_socket_addrs().ok().and_then(|mut all| all.next()) else {
        return false;
    };
    let connected = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(Duration::from_secs(2), connected).await, Ok(Ok(_)))
}

fn in_state(seen: &Seen) -> String {
    format!("{}: {}", seen.who, seen.state)
}

/// A thread listens; what it hears comes through a channel.
fn watch(at: &str, token: &str) -> Result<UnboundedReceiver<Result<Event>>> {
    let mut watcher = Watcher::connect(at, token, WATCHER_PATIENCE)?;
    let (sender, events) = unbounded_channel();
    thread::Builder::new().name("events".into()).spawn(move || {
        while !sender.is_closed() {
            match watcher.next(LOOK) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    let is_last = matches!(event, Event::End { .. });
                    if sender.send(Ok(event)).is_err() || is_last {
                        return;
                    }
                }
                Err(error) => {
                    // The receiver may be gone as well: then nobody asks.
                    let _ = sender.send(Err(error));
                    return;
                }
            }
        }
    })?;
    Ok(events)
}

/// A run whose services are there.
struct Going<'a> {
    run: &'a Run<'a>,
    controller: Controller,
    comparison: Follow,
    agents: Follow,
    /// The comparison's.
    service: String,
    ended: Ended,
    /// A load was asked for: from here on lost agents are the controller's to judge.
    has_begun: bool,
    /// What was asked to end has ended by then.
    give_up_at: Option<Instant>,
}

impl Going<'_> {
    async fn until_the_end(&mut self, signals: &mut Signals, show: &mut Show) -> Result<()> {
        let docker = &self.run.engine.docker;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                event = self.controller.events.recv() => {
                    let Some(event) = event else { return Ok(()) };
                    let event = match event {
                        Ok(event) => event,
                        Err(error) => return Err(self.controller_lost(error).await),
                    };
                    show.event(&event);
                    if self.take(event)? {
                        return Ok(());
                    }
                }
                _ = looks.tick() => {
                    self.look(show).await?;
                    if self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                        return self.gave_up().await;
                    }
                }
                () = signals.next() => {
                    if self.ended.interrupted {
                        show.line("no longer waiting for the report");
                        return Ok(());
                    }
                    self.ended.interrupted = true;
                    show.line(
                        "interrupted: the comparison ends, and what it measured is fetched \
                         (again: without that)",
                    );
                    self.give_up_at = Some(Instant::now() + CUT_SHORT_MAX);
                    made::remove_service(docker, &self.service).await?;
                }
            }
        }
    }

    /// Whether it was the last one.
    fn take(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Begun { .. } => self.has_begun = true,
            Event::File { name, text } => {
                let path = keep(&self.run.told.out, &name, &text)?;
                if path.extension().is_some_and(|ending| ending == "md") {
                    self.ended.text = Some(text);
                }
                self.ended.files.push(path);
            }
            Event::End { failed } => {
                self.ended.failed = failed;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    async fn look(&mut self, show: &Show) -> Result<()> {
        let docker = &self.run.engine.docker;
        for seen in self.agents.look(docker).await? {
            match &seen.failed {
                // The controller knows, and says what it means for the figures.
                Some(why) if self.has_begun || self.ended.interrupted => {
                    show.line(&format!("{}: {why}", seen.who));
                }
                Some(_) => self.run.fail_with_log(&seen, &self.agents).await?,
                None => show.line(&in_state(&seen)),
            }
        }
        for seen in self.comparison.look(docker).await? {
            match &seen.failed {
                Some(_) if !seen.has_run => {
                    self.run.fail_with_log(&seen, &self.comparison).await?;
                }
                _ => show.line(&in_state(&seen)),
            }
        }
        if self.comparison.has_ended() && self.give_up_at.is_none() {
            // Its last message may still be on its way.
            self.give_up_at = Some(Instant::now() + LAST_WORDS);
        }
        Ok(())
    }

    async fn gave_up(&self) -> Result<()> {
        if self.ended.interrupted {
            return Ok(());
        }
        let said = self.comparison.last_words(&self.run.engine.docker).await;
        bail!("the comparison ended without a report; it said last:\n{said}")
    }

    async fn controller_lost(&self, error: anyhow::Error) -> anyhow::Error {
        let said = self.controller.follow.last_words(&self.run.engine.docker).await;
        error.context(format!("the controller was lost; it said last:\n{said}"))
    }
}
