//! Several engines in one world: they find each other and share what they have.
//!
//! Owns: the order in which engines take turns, the one clock of all. Never: what an engine does.
//! Flow: engines -> dials among them -> run -> stop, everything home.

use std::time::Duration;

use seedring_shard::{Command, torrent::TorrentId};

use super::{
    World,
    swarm::{Plan, Swarm},
};

pub struct Fleet {
    pub world: World,
    pub engines: Vec<Swarm>,
}

/// For a stop: longer than a peer may keep a closed socket's last bytes.
const STOP_GRACE: Duration = Duration::from_secs(120);

impl Fleet {
    pub fn new(world: World, plan: Plan, engines: u8) -> Fleet {
        let engines = (0..engines).map(|n| Swarm::nth(world.clone(), plan, n)).collect();
        Fleet { world, engines }
    }

    /// Each engine dials all those before it.
    pub fn connect(&mut self, torrent: TorrentId) {
        let addresses: Vec<_> = self.engines.iter().map(|engine| engine.address).collect();
        for (n, engine) in self.engines.iter_mut().enumerate() {
            for (m, address) in addresses[..n].iter().copied().enumerate() {
                engine.tell(m % engine.shards(), Command::Dial { torrent, address });
            }
        }
    }

    /// Lets all engines work until `done` or until the virtual time `until`. `true`: `done`.
    pub fn run(&mut self, until: Duration, mut done: impl FnMut(&Fleet) -> bool) -> bool {
        loop {
            self.engines.iter_mut().for_each(Swarm::turn);
            if done(self) {
                return true;
            }
            if self.world.now() >= until || self.engines.iter().any(Swarm::is_broken) {
                return false;
            }
            let wakes = self.engines.iter().filter_map(Swarm::wakes_at);
            let next = wakes.chain(self.world.next_event()).min().unwrap_or(until);
            self.world.advance_to(next.min(until));
        }
    }

    /// How far each engine is, and what is wrong; for a failure.
    pub fn state(&mut self) -> String {
        let mut out = format!("{:?}", self.world.violations());
        for engine in &self.engines {
            let had = engine.loadings.all.iter().map(|l| l.shared.pieces.verified_count());
            let had: Vec<u32> = had.collect();
            let (broken, connections) = (engine.is_broken(), engine.connections());
            let claims = engine.claims();
            out += &format!("; has {had:?}, {connections} connections, {claims} claims");
            out += if broken { ", broken" } else { "" };
        }
        out
    }

    /// Stops all at once; what was found.
    pub fn stop(mut self) -> Vec<String> {
        self.engines.iter_mut().for_each(|engine| engine.tell_all(|| Command::Stop));
        let until = self.world.now() + STOP_GRACE;
        let stopped = self.run(until, |fleet| fleet.engines.iter().all(Swarm::is_gone));
        let mut findings = self.world.violations();
        for engine in &mut self.engines {
            findings.extend(engine.findings());
        }
        if !stopped && findings.is_empty() {
            findings.push("an engine did not stop".into());
        }
        findings
    }
}
