//! UDP trackers on loopback: packet loss, wrong and cut answers, refusals, the stop.

use std::collections::HashMap;

use seedring_proto::tracker::announce::Totals;
use seedring_proto::tracker::announcer::{Origin, State};
use seedring_proto::tracker::schedule::{Stops, Torrent};
use seedring_proto::units::{InfoHash, PeerId};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::trackers::{Event, Options, Trackers};

const CONNECTION: [u8; 8] = *b"a secret";
const URL_DATA: &[u8] = b"\x02\x15/announce?passkey=key";
/// Interval 1800, 4 leeches, 3 seeds.
const GOOD: &[u8] = b"\0\0\x07\x08\0\0\0\x04\0\0\0\x03";

/// A datagram of a client, read by the tables of BEP 15.
#[derive(Debug, Clone)]
struct Packet(Vec<u8>);

impl Packet {
    fn is_connect(&self) -> bool {
        self.0.len() == 16 && self.0[..12] == *b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0"
    }

    fn is_announce(&self) -> bool {
        self.0.len() >= 98 && self.0[..8] == CONNECTION && self.0[8..12] == [0, 0, 0, 1]
    }

    fn info_hash(&self) -> u8 {
        self.0[16]
    }

    fn uploaded(&self) -> u64 {
        u64::from_be_bytes(self.0[72..80].try_into().unwrap())
    }

    fn event(&self) -> u8 {
        self.0[83]
    }

    fn is_stopped(&self) -> bool {
        self.is_announce() && self.event() == 3
    }

    fn answer(&self, action: u8, body: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, action], &self.0[12..16], body].concat()
    }

    /// What a tracker should say, with these bytes as peers.
    fn good(&self, peers: &[u8]) -> Vec<u8> {
        match self.is_connect() {
            true => self.answer(0, &CONNECTION),
            false => self.answer(1, &[GOOD, peers].concat()),
        }
    }
}

struct Tracker {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Packet>>>,
}

impl Tracker {
    /// Sends what `script` makes of each packet.
    async fn start(
        listen: &str,
        mut script: impl FnMut(&Packet) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind(listen).await.unwrap();
        let address = socket.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Packet>>> = Arc::default();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let packet = Packet(buffer[..length].to_vec());
                assert!(packet.is_connect() || packet.is_announce(), "{packet:?}");
                let answers = script(&packet);
                noted.lock().unwrap().push(packet);
                for answer in answers {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self { address, seen }
    }

    fn url(&self) -> String {
        format!("udp://{}/announce?passkey=key", self.address)
    }

    fn packets(&self) -> Vec<Packet> {
        self.seen.lock().unwrap().clone()
    }

    fn connects(&self) -> usize {
        self.packets().iter().filter(|p| p.is_connect()).count()
    }
}

fn torrent(n: u8, urls: &[String], origin: Origin) -> Torrent {
    let tiers = urls.iter().map(|url| vec![url.clone()]).collect();
    Torrent { info_hash: InfoHash([n; 20]), tiers, origin, private: false }
}

/// Waits are a hundredth of what they are; uploaded is the torrent's number a thousand times.
fn start() -> (Trackers, Receiver<Event>) {
    let mut options = Options::new(PeerId(*b"-SR0100-abcdefghijkl"), 6881, 7);
    options.schedule.limits.requests_per_host_per_s = 1000;
    options.udp.timing.wait = Duration::from_millis(150);
    options.udp.timing.announce = Duration::from_secs(2);
    options.udp.timing.hurried_wait = Duration::from_millis(150);
    let totals = |info_hash: &InfoHash| Totals {
        uploaded_bytes: u64::from(info_hash.0[0]) * 1000,
        ..Totals::default()
    };
    let (trackers, events, _task) = Trackers::start(options, Arc::new(totals)).unwrap();
    (trackers, events)
}

async fn announced(events: &mut Receiver<Event>) -> Result<Vec<SocketAddr>, String> {
    let mut found = Vec::new();
    loop {
        let waiting = tokio::time::timeout(Duration::from_secs(10), events.recv());
        match waiting.await.expect("an event within 10 s").expect("the task runs") {
            Event::Peers { peers, .. } => found = peers,
            Event::Announced { result, tracker, .. } => {
                assert!(!tracker.contains("=key"), "{tracker}");
                return result.map(|_| found);
            }
            Event::Removed { .. } => {}
        }
    }
}

#[tokio::test]
async fn torrents_share_a_connection_and_stop_with_exact_totals() {
    let tracker = Tracker::start("127.0.0.1:0", |p| vec![p.good(b"\x0a\0\0\x01\x1a\xe1")]).await;
    let (trackers, mut events) = start();
    for n in 1..=20 {
        trackers.add(torrent(n, &[tracker.url()], Origin::User)).await;
    }
    for _ in 0..20 {
        let peers = announced(&mut events).await.unwrap();
        assert_eq!(peers, ["10.0.0.1:6881".parse().unwrap()]);
    }
    let status = trackers.status(InfoHash([3; 20])).await.unwrap();
    assert!(status.unusable.is_empty());
    let first = &status.trackers[0];
    assert_eq!((first.state, first.seeders, first.leechers), (State::Working, Some(3), Some(4)));
    assert!(first.next_announce_in.unwrap() > Duration::from_secs(1700));
    assert!(first.url.ends_with("/announce?passkey=***"), "{}", first.url);
    let stops = trackers.shutdown(Duration::from_secs(5)).await;
    assert_eq!(stops, Stops { sent: 20, failed: 0, owed: 0 });
    let mut heard: HashMap<u8, Vec<(u8, u64)>> = HashMap::new();
    for packet in tracker.packets().iter().filter(|p| !p.is_connect()) {
        heard.entry(packet.info_hash()).or_default().push((packet.event(), packet.uploaded()));
        assert_eq!(packet.0[98..], *URL_DATA);
        assert_eq!(packet.0[88..92], [0, 0, 0, 7], "the key");
        let numwant = if packet.is_stopped() { 0 } else { 80 };
        assert_eq!(packet.0[92..98], [0, 0, 0, numwant, 0x1a, 0xe1]);
    }
    for n in 1..=20 {
        let total = u64::from(n) * 1000;
        assert_eq!(heard[&n], [(2, total), (3, total)], "started, stopped");
    }
    assert_eq!(tracker.connects(), 1);
}

#[tokio::test]
async fn losses_and_bad_answers_are_survived() {
    // Of every two packets of a kind one is lost; before each answer comes one of another
    // transaction, one of another action, one that is cut, and one that is nothing.
    let mut came = [0, 0];
    let tracker = Tracker::start("127.0.0.1:0", move |p| {
        let count = &mut came[usize::from(p.is_connect())];
        *count += 1;
        if *count % 2 == 1 {
            return vec![];
        }
        let good = p.good(b"\x0a\0\0\x01\x1a\xe1");
        let mut wrong = good.clone();
        wrong[7] ^= 1;
        let cut = good[..15].to_vec();
        vec![wrong, p.answer(2, &[0; 12]), cut, vec![0; 3], good]
    })
    .await;
    let (trackers, mut events) = start();
    trackers.add(torrent(1, &[tracker.url()], Origin::User)).await;
    let peers = announced(&mut events).await.unwrap();
    assert_eq!(peers, ["10.0.0.1:6881".parse().unwrap()]);
    let connects: Vec<bool> = tracker.packets().iter().map(Packet::is_connect).collect();
    assert_eq!(connects, [true, true, false, true, true, false]);
    // A `stopped` that is lost once is said again within the deadline.
    let stops = trackers.shutdown(Duration::from_secs(5)).await;
    assert_eq!((stops.sent, stops.owed), (1, 0));
    assert!(tracker.packets().iter().any(Packet::is_stopped));
}

#[tokio::test]
async fn refusals_are_told_and_the_next_tier_is_asked() {
    let refusing = Tracker::start("127.0.0.1:0", |p| match p.is_connect() {
        true => vec![p.good(b"")],
        false => vec![p.answer(3, b"no such torrent, key 0123456789abcdef0123")],
    })
    .await;
    let silent = Tracker::start("127.0.0.1:0", |_| vec![]).await;
    let good = Server::start(|_| Script::Send(ok(b"d8:intervali900e5:peers0:e"))).await;
    let (trackers, mut events) = start();
    let urls = [refusing.url(), silent.url(), good.url("/announce")];
    trackers.add(torrent(1, &urls, Origin::User)).await;
    let refusal = announced(&mut events).await.unwrap_err();
    assert_eq!(refusal, "no such torrent, key ***");
    let silence = announced(&mut events).await.unwrap_err();
    assert!(silence.contains("silent") || silence.contains("no answer"), "{silence}");
    announced(&mut events).await.unwrap();
    // At 0, 150, 450, 1050 ms; the next would come after 2 s.
    assert_eq!(silent.connects(), 4);
    let status = trackers.status(InfoHash([1; 20])).await.unwrap();
    let states: Vec<State> = status.trackers.iter().map(|t| t.state).collect();
    assert_eq!(states, [State::Failing(1), State::Failing(1), State::Working]);
    // Neither the one that refused nor the one that never let us connect is owed a `stopped`.
    let stops = trackers.shutdown(Duration::from_secs(5)).await;
    assert_eq!((stops.sent, stops.failed, stops.owed), (1, 0, 0));
}

#[tokio::test]
async fn shutdown_keeps_its_deadline_and_cuts_off_what_hangs() {
    let deaf = Tracker::start("127.0.0.1:0", |p| match p.is_connect() {
        true => vec![p.good(b"")],
        false => vec![],
    })
    .await;
    let (trackers, mut events) = start();
    trackers.add(torrent(1, &[deaf.url()], Origin::User)).await;
    while deaf.packets().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = std::time::Instant::now();
    let stops = trackers.shutdown(Duration::from_millis(900)).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(stops, Stops { sent: 0, failed: 0, owed: 1 });
    assert!(announced(&mut events).await.is_err());
    // Once `stopped` was said, nothing else follows.
    let packets = deaf.packets();
    let first = packets.iter().position(Packet::is_stopped).expect("stopped was sent");
    assert!(packets[first..].iter().all(|p| p.is_connect() || p.is_stopped()));
}

#[tokio::test]
async fn over_ipv6_peers_are_of_ipv6() {
    let peer = [&[0x20, 1, 0xd, 0xb8], &[0; 11][..], &[7, 0x1a, 0xe1]].concat();
    let tracker = Tracker::start("[::1]:0", move |p| vec![p.good(&peer)]).await;
    let (trackers, mut events) = start();
    trackers.add(torrent(1, &[tracker.url()], Origin::User)).await;
    assert_eq!(announced(&mut events).await.unwrap(), ["[2001:db8::7]:6881".parse().unwrap()]);
    let stops = trackers.shutdown(Duration::from_secs(5)).await;
    assert_eq!(stops.sent, 1);
}

#[tokio::test]
async fn a_torrent_does_not_lead_to_this_machine() {
    let tracker = Tracker::start("127.0.0.1:0", |p| vec![p.good(b"")]).await;
    let (trackers, mut events) = start();
    trackers.add(torrent(1, &[tracker.url()], Origin::Torrent)).await;
    let why = announced(&mut events).await.unwrap_err();
    assert!(why.contains("leads to this machine"), "{why}");
    assert!(tracker.packets().is_empty());
    trackers.add(torrent(2, &[tracker.url()], Origin::User)).await;
    announced(&mut events).await.unwrap();
    let packets = tracker.packets();
    assert_eq!((packets.len(), packets[1].event()), (2, 2));
}
