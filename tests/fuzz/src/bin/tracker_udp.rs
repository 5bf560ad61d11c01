//! Owns: the fuzz target of UDP tracker packets and the machine that exchanges them.
//! Never: expects that a datagram is believed.
//! Flow: the input is a script: announces begin, time goes on, datagrams arrive (as they are, or
//! with the transaction of the last request). Announces end once, in their time; what is sent to an
//! address that does not answer keeps its distance.
#![no_main]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::tracker::announce::{Crypto, Event, Request, Totals};
use seedring_proto::tracker::reply::PEERS_MAX;
use seedring_proto::tracker::udp::exchanges::{Action, Announcement, Exchanges, Timing};
use seedring_proto::tracker::udp::packet::{Family, parse_announce};
use seedring_proto::tracker::url::TrackerUrl;
use seedring_proto::units::{InfoHash, PeerId};

const ADDRESSES: [&str; 3] = ["192.0.2.1:80", "[2001:db8::1]:80", "192.0.2.2:80"];
const STEPS_MAX: usize = 256;
const RUNNING_MAX: usize = 64;

struct World {
    machine: Exchanges,
    now: Duration,
    last: Option<(SocketAddr, [u8; 4])>,
    /// Begun and not ended, with the time.
    running: BTreeMap<u64, Duration>,
    connects: BTreeMap<SocketAddr, Duration>,
}

impl World {
    fn settle(&mut self) {
        while let Some(action) = self.machine.poll(self.now) {
            match action {
                Action::Send { to, datagram } => {
                    assert!(datagram.len() == 16 || datagram.len() >= 98);
                    let transaction = datagram[12..16].try_into().expect("invariant: 4 bytes");
                    self.last = Some((to, transaction));
                    if datagram.len() > 16 {
                        self.connects.remove(&to);
                    } else if let Some(before) = self.connects.insert(to, self.now) {
                        assert!(self.now - before >= Timing::default().wait);
                    }
                }
                Action::Ended { id, outcome } => {
                    let begun = self.running.remove(&id).expect("an announce ends once");
                    assert!(self.now <= begun + Timing::default().announce);
                    match outcome {
                        Ok(reply) => assert!(reply.peers.len() <= PEERS_MAX),
                        Err(failure) => assert!(!failure.message.contains(char::is_control)),
                    }
                }
            }
        }
    }

    fn run(&mut self, until: Duration) {
        while let Some(at) = self.machine.deadline().filter(|at| *at <= until) {
            assert!(at > self.now);
            self.now = at;
            self.settle();
        }
        self.now = until;
    }
}

fn announcement() -> Announcement {
    let request = Request {
        info_hash: InfoHash([7; 20]),
        peer_id: PeerId([8; 20]),
        port: 6881,
        totals: Totals::default(),
        event: Event::Started,
        key: 9,
        numwant: 80,
        ip: None,
        ipv6: None,
        crypto: Crypto::Unsupported,
        tracker_id: None,
    };
    let url =
        TrackerUrl::parse("udp://t:80/announce?passkey=k").expect("invariant: a good address");
    Announcement { request, url }
}

fuzz_target!(|bytes: &[u8]| {
    for family in [Family::V4, Family::V6] {
        if let Ok(reply) = parse_announce(bytes, family) {
            assert!(reply.peers.len() <= PEERS_MAX.min(bytes.len() / 6));
        }
    }
    let mut world = World {
        machine: Exchanges::new(Timing::default(), [1; 32]),
        now: Duration::ZERO,
        last: None,
        running: BTreeMap::new(),
        connects: BTreeMap::new(),
    };
    let mut rest = bytes;
    for id in 0..STEPS_MAX as u64 {
        let [what, parameter, tail @ ..] = rest else { break };
        rest = tail;
        let parameter = usize::from(*parameter);
        match what % 4 {
            0 if world.running.len() < RUNNING_MAX => {
                let from = parameter % ADDRESSES.len();
                let addresses = ADDRESSES[from..].iter().map(|a| a.parse().expect("an address"));
                world.machine.begin(world.now, id, addresses.collect(), announcement());
                world.running.insert(id, world.now);
            }
            1 => world.run(world.now + Duration::from_millis(parameter as u64 * 100)),
            kind => {
                let (datagram, after) = rest.split_at(parameter.min(rest.len()));
                rest = after;
                let Some((from, transaction)) = world.last else { continue };
                let mut datagram = datagram.to_vec();
                if let (2, Some(at)) = (kind, datagram.get_mut(4..8)) {
                    at.copy_from_slice(&transaction);
                }
                world.machine.received(world.now, from, &datagram);
            }
        }
        world.settle();
    }
    world.run(world.now + Timing::default().announce);
    assert!(world.running.is_empty() && world.machine.running() == 0);
});
