//! Owns: an agent's part of one load: its thread, and what leads it from afar.
//! Never: speaks to the controller but through the agent's mouth. Flow: task -> `Playing` -> ready
//! -> the controller's instant -> window -> done.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    agent::say,
    seeds,
    wire::{FromAgent, Fruit, Work},
};
use crate::{
    leech::{self, Lead, Offer, Part, Progress, Source},
    pull,
    torrent::Torrent,
};

/// How often progress is told.
const INTERVAL: Duration = Duration::from_millis(500);
/// Until all other agents are ready.
const OTHERS_MAX: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(20);

/// What leads a load: the controller.
pub struct Led {
    task: u64,
    mouth: Arc<Mutex<TcpStream>>,
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default)]
struct Said {
    begin: Option<Instant>,
    stop: Option<String>,
}

impl Led {
    pub fn new(task: u64, mouth: Arc<Mutex<TcpStream>>) -> Self {
        Led { task, mouth, said: Mutex::default(), changed: Condvar::new() }
    }

    pub fn begin_at(&self, at: Instant) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).begin = Some(at);
        self.changed.notify_all();
    }

    pub fn end(&self, why: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.stop.get_or_insert_with(|| why.to_owned());
        drop(said);
        self.changed.notify_all();
    }

    fn say(&self, message: &FromAgent) {
        // A controller that is gone is noticed by whoever reads.
        say(&self.mouth, message).ok();
    }
}

impl Led {
    /// Seeders listen at these addresses.
    pub fn open(&self, addresses: Vec<SocketAddr>) -> Result<Instant> {
        let count = addresses.len();
        self.wait(FromAgent::Ready { task: self.task, served: count, of: count, addresses })
    }

    fn wait(&self, ready: FromAgent) -> Result<Instant> {
        self.say(&ready);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |said: &mut Said| said.begin.is_none() && said.stop.is_none();
        let (said, waited) = self
            .changed
            .wait_timeout_while(said, OTHERS_MAX, waits)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &said.stop {
            bail!("{why}");
        }
        ensure!(!waited.timed_out(), "the controller did not say when to begin");
        said.begin.context("the controller did not say when to begin")
    }

    /// Until it is told to stop.
    pub fn wait_for_stop(&self, most: Duration) -> Result<()> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, waited) = self
            .changed
            .wait_timeout_while(said, most, |said| said.stop.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        drop(said);
        ensure!(!waited.timed_out(), "nobody said stop within {} s", most.as_secs());
        Ok(())
    }
}

impl Lead for Led {
    fn ready(&self, served: usize, of: usize, _: Duration) -> Result<Instant> {
        self.wait(FromAgent::Ready { task: self.task, served, of, addresses: Vec::new() })
    }

    fn interval(&self) -> Option<Duration> {
        Some(INTERVAL)
    }

    fn hear(&self, progress: Progress) {
        self.say(&FromAgent::Interval { task: self.task, progress: Box::new(progress) });
    }

    fn stop(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).stop.clone()
    }
}

/// A part of a load.
pub struct Playing {
    pub led: Arc<Led>,
    pub part: Part,
    pub work: Work,
    pub sets: BTreeMap<String, Arc<Vec<Vec<u8>>>>,
    pub threads: Option<usize>,
    pub source: Option<Source>,
}

impl Playing {
    pub fn play(self) {
        let task = self.led.task;
        let message = match self.fruit() {
            Ok(fruit) => FromAgent::Done { task, fruit },
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("{why}");
                FromAgent::Failed { task, why }
            }
        };
        self.led.say(&message);
    }

    fn fruit(&self) -> Result<Fruit> {
        self.part.check()?;
        Ok(match &self.work {
            Work::Leech { options, content } => {
                let mut options = leech::Options { part: self.part, ..(**options).clone() };
                options.threads =
                    self.threads.unwrap_or(options.threads.div_ceil(self.part.of).max(1));
                options.source = self.source.or(options.source);
                options.check()?;
                let set = self.sets.get(content).context("torrents that did not come")?;
                let offers: Vec<Offer> = set
                    .iter()
                    .map(|bytes| Ok(Offer::new(Torrent::parse(bytes)?, options.block)))
                    .collect::<Result<_>>()?;
                let found = leech::led(&options, offers, &*self.led)?;
                found.map_or(Fruit::Nothing, |found| Fruit::Leech(Box::new(found)))
            }
            Work::Pull(options) => {
                let mut options = (**options).clone();
                options.source = self.source.or(options.source);
                let pulled = pull::part(&options, self.part, &*self.led)?;
                pulled.map_or(Fruit::Nothing, Fruit::Pull)
            }
            Work::Seed { ask, content } => {
                let set = self.sets.get(content).context("a torrent that did not come")?;
                let torrent = Torrent::parse(set.first().context("a set without a torrent")?)?;
                let seeded = seeds::play(ask, torrent, self.part, self.source, &self.led)?;
                Fruit::Seeds(vec![seeded])
            }
            Work::Iperf3 { target, seconds, .. } => self.iperf3(*target, *seconds)?,
        })
    }

    /// One stream, the server sending (-R).
    fn iperf3(&self, target: SocketAddr, seconds: f64) -> Result<Fruit> {
        let begin = self.led.ready(1, 1, Duration::ZERO)?;
        let until = begin + Duration::try_from_secs_f64(seconds + 0.5)?;
        let all = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
        let mut client = Command::new("iperf3")
            .args(["-c", &target.ip().to_string(), "-p", &target.port().to_string(), "-R", "-J"])
            .args(["-t", &all.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run iperf3; try: apt install iperf3")?;
        let most = until + Duration::from_secs(10);
        while client.try_wait()?.is_none() {
            let stop = self.led.stop();
            if stop.is_some() || Instant::now() > most {
                client.kill().ok();
                client.wait().ok();
                bail!("iperf3 was ended: {}", stop.as_deref().unwrap_or("it took too long"));
            }
            thread::sleep(LOOK);
        }
        let output = client.wait_with_output()?;
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("iperf3's JSON")?;
        let bits = json["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .with_context(|| format!("iperf3 says: {}", json["error"]))?;
        Ok(Fruit::Iperf3 { mib_per_s: bits / 8.0 / 1_048_576.0 })
    }
}
