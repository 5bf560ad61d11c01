//! The embedded tracker, asked by raw requests and by our own announces.

use seedring_proto::tracker::announce::Totals;
use seedring_proto::tracker::announcer::Origin;
use seedring_proto::tracker::reply::Reply;
use seedring_proto::tracker::schedule::{Stops, Torrent};
use seedring_proto::tracker::swarm_store::{Counts, OwnPeer};
use seedring_proto::units::{InfoHash, PeerId};

use super::*;
use crate::trackers::embedded::{Catalogue, Embedded, EmbeddedOptions, Listing, NoCatalogue};
use crate::trackers::{Event, Options, Trackers};

const HASH: InfoHash = InfoHash(*b"aaaaaaaaaaaaaaaaaaaa");

struct OneTorrent;

impl Catalogue for OneTorrent {
    fn listings(&self, reached_as: &str) -> Vec<Listing> {
        vec![Listing {
            name: "docs\u{1b}[0m".into(),
            info_hash: HASH,
            size_bytes: 12,
            magnet: format!("magnet:?tr=http://{reached_as}/announce"),
            file: Some("d ocs".into()),
        }]
    }

    fn torrent(&self, name: &str, reached_as: &str) -> Option<Vec<u8>> {
        (name == "d ocs").then(|| format!("torrent for {reached_as}").into_bytes())
    }
}

async fn tracker(options: EmbeddedOptions) -> Embedded {
    let listen = "127.0.0.1:0".parse().unwrap();
    Embedded::bind(&[listen], options, Arc::new(NoCatalogue)).await.unwrap()
}

async fn get(address: SocketAddr, target: &str) -> (String, Vec<u8>) {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = raw(address, &request).await;
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8(answer[..split].to_vec()).unwrap(), answer[split..].to_vec())
}

fn announce(id: char, port: u16, more: &str) -> String {
    let (hash, id) = ("a".repeat(20), id.to_string().repeat(20));
    format!("/announce?info_hash={hash}&peer_id={id}&port={port}&left=5{more}")
}

async fn peers(address: SocketAddr, target: &str) -> Vec<SocketAddr> {
    Reply::parse(&get(address, target).await.1).unwrap().peers
}

#[tokio::test]
async fn announce_and_scrape() {
    let tracker = tracker(EmbeddedOptions::default()).await;
    let at = tracker.listens()[0];
    let refused = get(at, &announce('b', 1001, "")).await;
    assert!(refused.0.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(refused.1, b"d14:failure reason40:this tracker does not serve that torrente");
    tracker.allow(HASH);
    assert_eq!(peers(at, &announce('b', 1001, "")).await, []);
    let first: SocketAddr = "127.0.0.1:1001".parse().unwrap();
    assert_eq!(peers(at, &announce('c', 1002, "")).await, [first]);
    assert_eq!(peers(at, &announce('c', 1002, "&compact=0")).await, [first]);
    let body = get(at, &announce('c', 1002, "&compact=0")).await.1;
    assert!(
        String::from_utf8_lossy(&body).contains("7:peer id20:bbbbbbbbbbbbbbbbbbbb4:porti1001ee")
    );
    let scrape = get(at, &format!("/scrape?info_hash={}", "a".repeat(20))).await.1;
    let files = "d5:filesd20:aaaaaaaaaaaaaaaaaaaad";
    let counts = "8:completei0e10:downloadedi0e10:incompletei2eeee";
    assert_eq!(String::from_utf8(scrape).unwrap(), format!("{files}{counts}"));
    peers(at, &announce('c', 1002, "&event=stopped")).await;
    assert_eq!(tracker.counts(&HASH), Some(Counts { leechers: 1, ..Counts::default() }));
    let (_, body) = get(at, "/announce?port=1").await;
    assert_eq!(body, b"d14:failure reason20:info_hash is missinge");
}

#[tokio::test]
async fn the_seeder_appears_where_the_client_reached_the_tracker() {
    let both = ["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()];
    let options = EmbeddedOptions::default();
    let tracker = Embedded::bind(&both, options, Arc::new(NoCatalogue)).await.unwrap();
    let listens = vec!["0.0.0.0:6881".parse().unwrap(), "[::]:6881".parse().unwrap()];
    tracker.set_own(OwnPeer { peer_id: PeerId([b'z'; 20]), listens });
    tracker.register_self(HASH, true);
    let (v4, v6) = (tracker.listens()[0].port(), tracker.listens()[1].port());
    let ways = [("127.0.0.1", v4, "127.0.0.1:6881"), ("[::1]", v6, "[::1]:6881")];
    for (ip, port, offered) in ways {
        let at: SocketAddr = format!("{ip}:{port}").parse().unwrap();
        let seen = peers(at, &announce('b', 1001, "")).await;
        assert_eq!(seen, [offered.parse().unwrap()], "{ip}");
    }
    tracker.unregister_self(&HASH);
    let at: SocketAddr = format!("127.0.0.1:{v4}").parse().unwrap();
    assert_eq!(peers(at, &announce('b', 1001, "")).await, []);
}

#[tokio::test]
async fn our_own_announces_work_against_it() {
    let embedded = tracker(EmbeddedOptions::default()).await;
    embedded.allow(HASH);
    let mut leeches = Vec::new();
    for n in 0..2u16 {
        let id = PeerId([b'0' + n as u8; 20]);
        let totals = |_: &InfoHash| Totals { left_bytes: 1, ..Totals::default() };
        let options = Options::new(id, 7000 + n, 1);
        let (trackers, mut events, task) = Trackers::start(options, Arc::new(totals)).unwrap();
        let url = format!("http://{}/announce", embedded.listens()[0]);
        let tiers = vec![vec![url]];
        let origin = Origin::Torrent;
        trackers.add(Torrent { info_hash: HASH, tiers, origin, private: true }).await;
        let event = events.recv().await.unwrap();
        if n == 1 {
            let peers = vec!["127.0.0.1:7000".parse().unwrap()];
            assert_eq!(event, Event::Peers { info_hash: HASH, peers, replace: false });
        }
        leeches.push((trackers, task));
    }
    assert_eq!(embedded.counts(&HASH).unwrap().leechers, 2);
    for (trackers, task) in leeches {
        let stops = trackers.shutdown(Duration::from_secs(5)).await;
        assert_eq!(stops, Stops { sent: 1, failed: 0, owed: 0 });
        task.await.unwrap();
    }
    assert_eq!(embedded.counts(&HASH), Some(Counts::default()));
}

#[tokio::test]
async fn pages() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = EmbeddedOptions::default();
    let tracker = Embedded::bind(&[listen], options, Arc::new(OneTorrent)).await.unwrap();
    let at = tracker.listens()[0];
    let (head, body) = get(at, "/").await;
    let body = String::from_utf8(body).unwrap();
    assert!(head.contains("content-type: text/plain"));
    assert!(!body.contains('\u{1b}'));
    assert!(body.contains(&format!("magnet:?tr=http://{at}/announce")), "{body}");
    assert!(body.contains(&format!("http://{at}/torrents/d%20ocs.torrent")), "{body}");
    let (head, body) = get(at, "/torrents/d%20ocs.torrent").await;
    assert!(head.contains("application/x-bittorrent"));
    assert_eq!(body, format!("torrent for {at}").into_bytes());
    assert!(get(at, "/torrents/other.torrent").await.0.starts_with("HTTP/1.1 404"));
    assert!(get(at, "/etc/passwd").await.0.starts_with("HTTP/1.1 404"));
    // A Host header that is no host is not repeated.
    let odd = "GET / HTTP/1.1\r\nHost: a/b?c\r\nConnection: close\r\n\r\n";
    assert!(String::from_utf8_lossy(&raw(at, odd).await).contains(&format!("http://{at}/")));
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(raw(at, post).await.starts_with(b"HTTP/1.1 405"));
}

#[tokio::test]
async fn slow_and_large_requests_are_cut_off() {
    let tracker = tracker(EmbeddedOptions {
        head_timeout: Duration::from_millis(200),
        connections_max: 2,
        ..EmbeddedOptions::default()
    })
    .await;
    let at = tracker.listens()[0];
    // Two that never finish their head hold both places, but not for long.
    let idle = (TcpStream::connect(at).await.unwrap(), TcpStream::connect(at).await.unwrap());
    let (head, _) = tokio::time::timeout(Duration::from_secs(3), get(at, "/")).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"));
    drop(idle);
    let large = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(64 << 10));
    let mut stream = TcpStream::connect(at).await.unwrap();
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 4");
    assert!(refused, "{}", String::from_utf8_lossy(&answer[..answer.len().min(40)]));
    assert!(raw(at, "\x16\x03\x01garbage\r\n\r\n").await.len() < 200);
    let taken = Embedded::bind(&[at], EmbeddedOptions::default(), Arc::new(NoCatalogue)).await;
    assert!(taken.err().unwrap().to_string().contains(&at.to_string()));
}
