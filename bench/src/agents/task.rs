//! Owns: one load over all agents, from the runner's wish to what they found together.
//! Never: waits without a bound; loses what came of an agent that was lost.
//! Flow: all there -> clocks read -> parts prepared -> one instant for all -> progress -> harvest.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    clock,
    controller::{Hub, in_words, ping_agent, ping_runner},
    door::Id,
    seeds::Seeded,
    watch::{Agent, Event, Rate},
    wire::{FromAgent, Fruit, Harvest, ToAgent, ToRunner, Work},
};
use crate::{
    leech::{self, ByAgent, Found, Kept, Lanes, Outcome, Part},
    merge,
    pull::Pulled,
};

/// Exchanges that a clock's offset is read from.
const SAMPLES: u32 = 8;
const CLOCKS_MAX: Duration = Duration::from_secs(3);
/// Until the message of the instant has reached everyone.
const NOTICE: Duration = Duration::from_millis(300);
/// More than an agent gives itself.
const MARGIN: Duration = Duration::from_secs(15);

pub struct Task {
    pub id: u64,
    label: String,
    work: Work,
    phase: Phase,
    since: Instant,
    members: BTreeMap<Id, Member>,
    /// Agents that went, in words.
    lost: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Agents are missing.
    Waiting,
    Clocks,
    Preparing,
    Running,
    Over,
}

struct Member {
    agent: Agent,
    part: Part,
    state: State,
    kept: Kept,
    rate: Option<Rate>,
    /// Where it seeds.
    addresses: Vec<SocketAddr>,
}

enum State {
    Asked,
    Ready,
    Done(Fruit),
    Lost(String),
}

impl Task {
    pub fn new(hub: &Hub, id: u64, label: String, work: Work) -> Result<Task> {
        match &work {
            Work::Leech { options, .. } => options.check()?,
            Work::Seed { ask, .. } => ask.check()?,
            Work::Pull(options) => options.check()?,
            Work::Iperf3 { seconds, warm_up, .. } => {
                let fits = |seconds: &f64| (0.0..=3600.0).contains(seconds);
                ensure!(fits(seconds) && fits(warm_up), "iperf3 for {seconds} s");
            }
        }
        if let Some(content) = content_of(&work) {
            let set = hub.sets.get(content).filter(|set| set.is_whole);
            set.context("the torrents of this load were not sent before it")?;
        }
        let phase = Phase::Waiting;
        let (since, members, lost) = (Instant::now(), BTreeMap::new(), Vec::new());
        Ok(Task { id, label, work, phase, since, members, lost })
    }

    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether an agent has a part in it.
    pub fn has(&self, id: Id) -> bool {
        self.members.contains_key(&id)
    }

    /// Whatever time brings.
    pub fn tick(&mut self, hub: &mut Hub) {
        let waited = self.since.elapsed();
        match self.phase {
            Phase::Waiting if hub.may_begin(waited) => {
                if let Err(error) = self.choose(hub) {
                    self.fail(hub, &format!("{error:#}"));
                }
            }
            Phase::Waiting => {
                if let Some(why) = hub.why_not(waited) {
                    self.fail(hub, &why);
                }
            }
            Phase::Clocks => self.read_clocks(hub, waited),
            Phase::Preparing if waited >= self.prepare_max() => {
                let why = format!("not ready within {} s: {}", waited.as_secs(), self.not_done());
                self.fail(hub, &why);
            }
            Phase::Running if self.run_max().is_some_and(|most| waited >= most) => {
                let why = format!("not done within {} s: {}", waited.as_secs(), self.not_done());
                self.fail(hub, &why);
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Parts for those who are there, by their names, so that the same agents have the same parts
    /// each time.
    fn choose(&mut self, hub: &mut Hub) -> Result<()> {
        let mut there: Vec<(Agent, Id)> = hub
            .agents
            .iter()
            .filter(|(_, there)| {
                !matches!(self.work, Work::Iperf3 { .. }) || there.info.iperf3.is_ok()
            })
            .map(|(id, there)| (there.agent(), *id))
            .collect();
        there.sort_by(|one, other| one.0.name.cmp(&other.0.name));
        match &self.work {
            // One stream: the ceiling of one sender.
            Work::Iperf3 { .. } => there.truncate(1),
            Work::Seed { ask, .. } => there.truncate(ask.seeders),
            Work::Leech { .. } | Work::Pull(_) => {}
        }
        ensure!(!there.is_empty(), "no agent has iperf3; try: apt install iperf3 beside one");
        let of = there.len();
        for (number, (agent, id)) in there.into_iter().enumerate() {
            let part = Part { number, of };
            let member = Member {
                agent,
                part,
                state: State::Asked,
                kept: Kept::default(),
                rate: None,
                addresses: Vec::new(),
            };
            self.members.insert(id, member);
        }
        for id in self.members.keys() {
            if let Some(there) = hub.agents.get_mut(id) {
                there.client.offset = clock::Offset::default();
            }
        }
        if let Some((_, runner)) = &mut hub.runner {
            runner.offset = clock::Offset::default();
        }
        let (label, load) = (self.label.clone(), in_short(&self.work));
        hub.publish(Event::Begun { label, load, agents: self.members.len() });
        self.enter(Phase::Clocks);
        Ok(())
    }

    fn read_clocks(&mut self, hub: &mut Hub, waited: Duration) {
        let wanted = if waited >= CLOCKS_MAX { 1 } else { SAMPLES };
        let mut is_known = true;
        for id in self.members.keys() {
            if let Some(there) = hub.agents.get_mut(id) {
                there.client.ping_until(SAMPLES, ping_agent);
                is_known &= there.client.offset.samples() >= wanted;
            }
        }
        if let Some((_, runner)) = &mut hub.runner {
            runner.ping_until(SAMPLES, ping_runner);
            is_known &= runner.offset.samples() >= wanted;
        }
        if is_known {
            self.prepare(hub);
        }
    }

    fn prepare(&mut self, hub: &mut Hub) {
        self.enter(Phase::Preparing);
        for (id, member) in &self.members {
            let Some(there) = hub.agents.get_mut(id) else { continue };
            if let Some(content) = content_of(&self.work)
                && there.sets.insert(content.to_owned())
                && let Some(set) = hub.sets.get(content)
            {
                for (torrents, is_last) in super::chunks(&set.torrents) {
                    let (content, torrents) = (content.to_owned(), torrents.to_vec());
                    there.client.tell(&ToAgent::Torrents { content, torrents, is_last });
                }
            }
            let (task, part, work) = (self.id, member.part, self.work.clone());
            there.client.tell(&ToAgent::Task { task, part, work });
        }
        // A load without a warm-up may be over before anyone else is asked.
        self.go_on(hub);
    }

    pub fn of_agent(&mut self, hub: &mut Hub, id: Id, message: FromAgent) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match message {
            FromAgent::Ready { task, addresses, .. } if task == self.id => {
                if matches!(member.state, State::Asked) {
                    member.state = State::Ready;
                    member.addresses = addresses;
                }
            }
            FromAgent::Interval { task, progress } if task == self.id => {
                match member.kept.add(*progress) {
                    Ok(step) => {
                        let rate = Rate {
                            agent: member.agent.clone(),
                            mib_per_s: step.mib_per_s,
                            blocks: step.blocks,
                            p99_ms: step.p99_ms,
                        };
                        let is_second = member.rate.replace(rate).is_some();
                        self.say_rates(hub, step.seconds, is_second);
                    }
                    Err(error) => eprintln!("{}: {error:#}", in_words(&member.agent)),
                }
            }
            FromAgent::Done { task, fruit } if task == self.id => member.state = State::Done(fruit),
            FromAgent::Failed { task, why } if task == self.id => {
                let why = format!("agent {}: {why}", in_words(&member.agent));
                return self.fail(hub, &why);
            }
            _ => return,
        }
        self.go_on(hub);
    }

    /// Live rates, once all that are at it have said theirs.
    fn say_rates(&mut self, hub: &mut Hub, at: f64, is_second: bool) {
        let running = || self.members.values().filter(|one| matches!(one.state, State::Ready));
        if !is_second && running().any(|one| one.rate.is_none()) {
            return;
        }
        let mut rates: Vec<Rate> =
            self.members.values_mut().filter_map(|member| member.rate.take()).collect();
        rates.sort_by(|one, other| one.agent.name.cmp(&other.agent.name));
        hub.publish(Event::Rates { at, rates });
    }

    pub fn lose(&mut self, hub: &mut Hub, id: Id, why: &str) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if matches!(member.state, State::Done(_)) {
            return;
        }
        let line = format!("agent {} was lost: {why}", in_words(&member.agent));
        member.state = State::Lost(line.clone());
        self.lost.push(line.clone());
        // Before the window nothing is lost but time: the load is asked for again with the others.
        if self.phase == Phase::Running {
            self.go_on(hub);
        } else {
            self.fail(hub, &line);
        }
    }

    /// What was found until now is wanted.
    pub fn stop(&mut self, hub: &mut Hub, why: &str) {
        if matches!(self.phase, Phase::Waiting | Phase::Clocks) {
            return self.fail(hub, why);
        }
        self.tell_members(hub, why);
    }

    /// Nobody wants it any more.
    pub fn abandon(&mut self, hub: &mut Hub, why: &str) {
        self.tell_members(hub, why);
        self.phase = Phase::Over;
    }

    fn tell_members(&self, hub: &Hub, why: &str) {
        let at_work = |member: &Member| matches!(member.state, State::Asked | State::Ready);
        for id in self.members.iter().filter(|(_, member)| at_work(member)).map(|(id, _)| id) {
            if let Some(there) = hub.agents.get(id) {
                there.client.tell(&ToAgent::Stop { task: self.id, why: why.to_owned() });
            }
        }
    }

    fn fail(&mut self, hub: &mut Hub, why: &str) {
        self.tell_members(hub, why);
        self.phase = Phase::Over;
        let partial = Some(why.to_owned());
        let text = "no figures".to_owned();
        hub.publish(Event::Ended { label: self.label.clone(), text, partial });
        hub.tell_runner(&ToRunner::Failed { task: self.id, why: why.to_owned() });
    }

    /// Whether the next phase can begin.
    fn go_on(&mut self, hub: &mut Hub) {
        let none = |of: fn(&State) -> bool| !self.members.values().any(|one| of(&one.state));
        let nobody_asked = none(|state| matches!(state, State::Asked));
        let nobody_ready = none(|state| matches!(state, State::Ready));
        match self.phase {
            Phase::Preparing if nobody_asked && !nobody_ready => self.begin(hub),
            Phase::Preparing | Phase::Running if nobody_asked && nobody_ready => self.harvest(hub),
            _ => {}
        }
    }

    fn begin(&mut self, hub: &mut Hub) {
        self.enter(Phase::Running);
        let at = clock::now() + (NOTICE + self.settle()).as_nanos() as u64;
        for id in self.members.keys() {
            if let Some(there) = hub.agents.get(id) {
                let at = there.client.offset.theirs(at);
                there.client.tell(&ToAgent::Window { task: self.id, at });
            }
        }
        if let Some((_, runner)) = &hub.runner {
            let at = runner.offset.theirs(at);
            let addresses =
                self.members.values().flat_map(|member| member.addresses.clone()).collect();
            runner.tell(&ToRunner::Window { task: self.id, at, addresses });
        }
        hub.publish(Event::Window { seconds: self.seconds() });
    }

    fn harvest(&mut self, hub: &mut Hub) {
        self.phase = Phase::Over;
        let members = std::mem::take(&mut self.members);
        let (task, lost) = (self.id, self.lost.clone());
        match together(&self.work, members) {
            Ok(fruit) => {
                let harvest = Box::new(Harvest { fruit, lost });
                hub.tell_runner(&ToRunner::Harvest { task, harvest });
            }
            Err(error) => self.fail(hub, &format!("{error:#}")),
        }
    }

    fn settle(&self) -> Duration {
        match &self.work {
            Work::Leech { options, .. } => leech::settle(options),
            Work::Pull(options) => Duration::from_secs_f64(options.warm_up),
            Work::Seed { .. } => Duration::ZERO,
            Work::Iperf3 { warm_up, .. } => Duration::from_secs_f64(*warm_up),
        }
    }

    fn seconds(&self) -> Option<f64> {
        match &self.work {
            Work::Leech { options, .. } => {
                let is_timed = !options.once && options.bytes.is_none();
                is_timed.then_some(options.duration)
            }
            Work::Pull(options) => Some(options.duration),
            Work::Seed { .. } => None,
            Work::Iperf3 { seconds, .. } => Some(*seconds),
        }
    }

    fn prepare_max(&self) -> Duration {
        let connections = match &self.work {
            Work::Leech { options, .. } => options.members_max(),
            Work::Pull(_) | Work::Seed { .. } | Work::Iperf3 { .. } => 0,
        };
        MARGIN + leech::ready_max(connections)
    }

    /// An agent's own deadline and patience are shorter.
    fn run_max(&self) -> Option<Duration> {
        let seconds = match &self.work {
            Work::Leech { options, .. } => options.deadline + options.linger,
            Work::Pull(options) => options.duration,
            Work::Seed { ask, .. } => ask.seconds_max,
            Work::Iperf3 { seconds, .. } => *seconds,
        };
        Some(Duration::try_from_secs_f64(seconds).ok()? + self.settle() + 2 * MARGIN)
    }

    fn not_done(&self) -> String {
        let waiting = |member: &&Member| matches!(member.state, State::Asked | State::Ready);
        let names: Vec<String> = self
            .members
            .values()
            .filter(waiting)
            .map(|member| format!("agent {}", in_words(&member.agent)))
            .collect();
        names.join(", ")
    }
}

/// What is asked for, in words.
pub fn in_short(work: &Work) -> String {
    match work {
        Work::Leech { options, .. } if options.once => {
            format!("{} whole downloads", options.active())
        }
        Work::Leech { options, .. } => {
            let mut words = match (options.idle, options.arrivals) {
                (Some(idle), _) => format!("{idle} idle connections"),
                (_, Some(rate)) => format!("{rate} connections a second come and go"),
                _ => format!("{} connections", options.connections),
            };
            for (count, what) in [(options.slow, "slow"), (options.idle_beside, "idle")] {
                if count > 0 {
                    words.push_str(&format!(" beside {count} {what} ones"));
                }
            }
            if let Some(rate) = options.open_loop {
                words.push_str(&format!(", {rate:.0} MiB/s asked for"));
            }
            words
        }
        Work::Pull(options) => format!("{} connections over HTTP", options.connections),
        Work::Seed { ask, .. } => {
            let what = if ask.fetch { "mixed peers" } else { "seeders" };
            format!("{} {what} with {} % of the pieces", ask.seeders, ask.have_percent)
        }
        Work::Iperf3 { .. } => "one stream of iperf3".into(),
    }
}

/// What all have found.
fn together(work: &Work, members: BTreeMap<Id, Member>) -> Result<Fruit> {
    match work {
        Work::Leech { options, .. } => leeches(options, members),
        Work::Pull(_) => pulls(members),
        Work::Seed { .. } => seeds(members),
        Work::Iperf3 { .. } => {
            let state = members.into_values().map(|member| member.state).next();
            match state.context("no agent")? {
                State::Done(fruit @ Fruit::Iperf3 { .. }) => Ok(fruit),
                State::Lost(why) => bail!(why),
                _ => bail!("an agent found something else than it was asked for"),
            }
        }
    }
}

/// The set of torrents that it needs.
fn content_of(work: &Work) -> Option<&str> {
    match work {
        Work::Leech { content, .. } | Work::Seed { content, .. } => Some(content),
        Work::Pull(_) | Work::Iperf3 { .. } => None,
    }
}

/// One that was lost took what it knew with it; that it was stands beside.
fn seeds(members: BTreeMap<Id, Member>) -> Result<Fruit> {
    let mut all: Vec<Seeded> = Vec::new();
    for member in members.into_values() {
        let Agent { name: agent, node } = member.agent;
        match member.state {
            State::Done(Fruit::Seeds(seeded)) => {
                let named = |one| Seeded { agent: agent.clone(), node: node.clone(), ..one };
                all.extend(seeded.into_iter().map(named));
            }
            State::Lost(_) => {}
            _ => bail!("agent {agent} on {node} found something else than it was asked for"),
        }
    }
    all.sort_by(|one, other| one.agent.cmp(&other.agent));
    Ok(Fruit::Seeds(all))
}

fn leeches(options: &leech::Options, members: BTreeMap<Id, Member>) -> Result<Fruit> {
    let (mut by_agent, mut lost) = (Vec::new(), Vec::new());
    let (mut lanes, mut lingering) = (Lanes::default(), None);
    for member in members.into_values() {
        let Agent { name: agent, node } = member.agent;
        match member.state {
            State::Done(Fruit::Leech(found)) => {
                lanes.add(found.lanes);
                let so_far: f64 = lingering.unwrap_or(0.0);
                lingering = found.lingering_mib_per_s.map(|speed| so_far + speed).or(lingering);
                by_agent.push(ByAgent { agent, node, outcome: found.outcome });
            }
            State::Done(Fruit::Nothing) => {}
            State::Lost(why) => {
                let part = leech::Options { part: member.part, ..options.clone() };
                match member.kept.outcome(&part, &why) {
                    Some(outcome) => by_agent.push(ByAgent { agent, node, outcome }),
                    None => lost.push(format!("{why}; nothing is known of its part")),
                }
            }
            _ => bail!("agent {agent} on {node} found something else than it was asked for"),
        }
    }
    let why = lost.join("; ");
    ensure!(!by_agent.is_empty(), "nothing came of any agent{}{why}", if_any(&why, ": "));
    by_agent.sort_by(|one, other| one.agent.cmp(&other.agent));
    over_the_window(&mut by_agent);
    let agents: Vec<merge::Agent> = by_agent
        .iter()
        .map(|one| merge::Agent {
            name: format!("{} on {}", one.agent, one.node),
            outcome: one.outcome.clone(),
        })
        .collect();
    let mut outcome = merge::merge(&agents)?;
    outcome.fairness = lanes.fairness().filter(|_| outcome.partial.is_none());
    if !why.is_empty() {
        let known = outcome.partial.take().unwrap_or_default();
        outcome.partial = Some(format!("{known}{}{why}", if_any(&known, "; ")));
    }
    outcome.by_agent = by_agent;
    Ok(Fruit::Leech(Box::new(Found { outcome, lanes, lingering_mib_per_s: lingering })))
}

fn if_any<'a>(text: &str, words: &'a str) -> &'a str {
    if text.is_empty() { "" } else { words }
}

/// Whoever was lost sent nothing in the rest of the window: speeds are over all of it.
fn over_the_window(by_agent: &mut [ByAgent]) {
    let all = || by_agent.iter().map(|one| &one.outcome);
    let seconds = all().map(|one| one.seconds).fold(0.0, f64::max);
    let tenths = all().map(|one| one.mib_per_s_by_tenth.len()).max().unwrap_or(0);
    let is_lost = |one: &&mut Outcome| one.partial.is_some() && one.seconds < seconds;
    for outcome in by_agent.iter_mut().map(|one| &mut one.outcome).filter(is_lost) {
        outcome.mib_per_s = outcome.payload_bytes as f64 / 1_048_576.0 / seconds;
        outcome.mib_per_s_by_tenth.resize(tenths, 0.0);
    }
}

fn pulls(members: BTreeMap<Id, Member>) -> Result<Fruit> {
    let mut sum: Option<Pulled> = None;
    for member in members.into_values() {
        match member.state {
            State::Done(Fruit::Pull(pulled)) => {
                sum = Some(match sum {
                    None => pulled,
                    Some(sum) => sum.and(&pulled),
                });
            }
            State::Done(Fruit::Nothing) => {}
            State::Lost(why) => bail!(why),
            _ => bail!("an agent found something else than it was asked for"),
        }
    }
    sum.map(Fruit::Pull).context("nothing came of any agent")
}
