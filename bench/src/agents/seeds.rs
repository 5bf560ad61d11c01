//! Owns: seeders and mixed peers that an agent plays, and what all of them sent and fetched.
//! Never: is measured as a target; needs a file: content is made from its seed number.
//! Flow: task -> listeners, whose addresses the runner's tracker names -> until it is told to stop
//! -> `Seeded`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::play::Led;
use crate::{
    faulty::Fault,
    leech::{Part, Source},
    probe::own_cpu_seconds,
    seed::{Content, Seeder, Share, Totals},
    torrent::Torrent,
};

/// Of all agents together.
pub const SEEDERS_MAX: usize = 200;
/// On loopback each seeder has an address by itself.
const ON_LOOPBACK: &str = "127.64.0.0/12";

/// What all agents together are to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    pub seeders: usize,
    /// Each has so many percent of the pieces; together they have all.
    pub have_percent: u8,
    /// They fetch the rest from who downloads from them.
    pub fetch: bool,
    /// The content's seed number.
    pub made: u64,
    /// Who downloads from them.
    pub target: SocketAddr,
    /// After so long nobody wants them any more.
    pub seconds_max: f64,
}

/// What one agent's seeders did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seeded {
    pub agent: String,
    pub node: String,
    pub seeders: usize,
    /// From the first one's begin to the end of the last.
    pub seconds: f64,
    pub cpu_seconds: f64,
    #[serde(flatten)]
    pub totals: Totals,
}

impl Ask {
    pub fn check(&self) -> Result<()> {
        ensure!((1..=SEEDERS_MAX).contains(&self.seeders), "1 to {SEEDERS_MAX} seeders");
        ensure!((1..=100).contains(&self.have_percent), "a part of 1 to 100 percent");
        ensure!((0.0..=86_400.0).contains(&self.seconds_max), "seconds up to a day");
        ensure!(!self.fetch || self.have_percent < 100, "who has 100 % has nothing to fetch");
        Share::check(self.have_percent, self.seeders as u32)
    }

    pub fn most(&self) -> Duration {
        Duration::from_secs_f64(self.seconds_max)
    }
}

/// This machine's address on the way to another; nothing is sent.
fn own_address(towards: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr = match towards.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(towards).with_context(|| format!("no way to the target {towards}"))?;
    Ok(socket.local_addr()?.ip())
}

/// A seeder that accepts, until it is closed or dropped.
struct Open {
    seeder: Arc<Seeder>,
    address: SocketAddr,
    accepting: Option<JoinHandle<Result<()>>>,
}

impl Open {
    fn at(seeder: Seeder, at: SocketAddr, number: usize) -> Result<Open> {
        let listener = TcpListener::bind(at)
            .with_context(|| format!("cannot seed at {at}: is it an address of this machine?"))?;
        let (address, seeder) = (listener.local_addr()?, Arc::new(seeder));
        let accepting = seeder.clone();
        let thread = thread::Builder::new().name(format!("seeder-{number}"));
        let accepting = Some(thread.spawn(move || accepting.accept(&listener))?);
        Ok(Open { seeder, address, accepting })
    }

    fn close(&mut self) -> Result<()> {
        let Some(thread) = self.accepting.take() else { return Ok(()) };
        self.seeder.close(self.address);
        thread.join().map_err(|_| anyhow::anyhow!("a seeder panicked"))?
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close().ok();
    }
}

/// This agent's part of them, each at an address or a port of its own.
pub fn play(
    ask: &Ask,
    torrent: Torrent,
    part: Part,
    source: Option<Source>,
    led: &Led,
) -> Result<Seeded> {
    ask.check()?;
    let own = own_address(ask.target)?;
    let source = match source {
        None if own.is_loopback() => Some(ON_LOOPBACK.parse().map_err(anyhow::Error::msg)?),
        source => source,
    };
    let torrent = Arc::new(torrent);
    let content = Arc::new(Content::made(ask.made, &torrent)?);
    let mut open = Vec::new();
    for number in (0..ask.seeders).filter(|number| part.has(*number)) {
        let (of, percent) = (ask.seeders as u32, ask.have_percent);
        let share = Share { percent, of, number: number as u32 };
        let seeder = Seeder::new(torrent.clone(), content.clone(), share, Fault::None);
        let at = source.map_or(SocketAddr::new(own, 0), |source| source.address(number));
        open.push(Open::at(seeder.fetching(ask.fetch), at, number)?);
    }
    let (begin, before) = (Instant::now(), own_cpu_seconds());
    led.open(open.iter().map(|one| one.address).collect())?;
    led.wait_for_stop(ask.most())?;
    let mut seeded = Seeded { seeders: open.len(), ..Seeded::default() };
    for one in &mut open {
        one.close()?;
        seeded.totals = seeded.totals.and(one.seeder.totals());
    }
    seeded.seconds = begin.elapsed().as_secs_f64();
    seeded.cpu_seconds = own_cpu_seconds() - before;
    Ok(seeded)
}
