//! The task: torrents in, announces out, peers and status back.

use std::collections::HashMap;

use seedring_proto::tracker::announce::{Event as AnnounceEvent, Totals};
use seedring_proto::tracker::announcer::{Origin, State};
use seedring_proto::tracker::query::AnnounceQuery;
use seedring_proto::tracker::schedule::{Stops, Torrent};
use seedring_proto::units::{InfoHash, PeerId};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::trackers::{Event, Options, Trackers};

fn hash(n: u8) -> InfoHash {
    InfoHash([n; 20])
}

fn torrent(n: u8, urls: &[String]) -> Torrent {
    let tiers = urls.iter().map(|url| vec![url.clone()]).collect();
    Torrent { info_hash: hash(n), tiers, origin: Origin::User, private: false }
}

/// Uploaded is the torrent's number a thousand times.
fn start(edit: impl FnOnce(&mut Options)) -> (Trackers, Receiver<Event>) {
    let mut options = Options::new(PeerId(*b"-SR0100-abcdefghijkl"), 6881, 7);
    options.schedule.limits.requests_per_host_per_s = 1000;
    edit(&mut options);
    let totals = |info_hash: &InfoHash| Totals {
        uploaded_bytes: u64::from(info_hash.0[0]) * 1000,
        ..Totals::default()
    };
    let (trackers, events, _task) = Trackers::start(options, Arc::new(totals)).unwrap();
    (trackers, events)
}

async fn next(events: &mut Receiver<Event>) -> Event {
    let waiting = tokio::time::timeout(Duration::from_secs(10), events.recv());
    waiting.await.expect("an event within 10 s").expect("the task runs")
}

fn uploaded(head: &str) -> u64 {
    let at = head.find("&uploaded=").unwrap() + "&uploaded=".len();
    head[at..].split('&').next().unwrap().parse().unwrap()
}

fn query(head: &str) -> AnnounceQuery {
    let target = head.split(' ').nth(1).unwrap();
    AnnounceQuery::parse(target.split_once('?').unwrap().1).unwrap()
}

#[tokio::test]
async fn announced_shown_and_stopped_with_exact_totals() {
    let body = b"d8:completei5e10:incompletei6e8:intervali1800e\
        5:peers6:\x0a\x00\x00\x01\x1a\xe110:tracker id2:t&e";
    let server = Server::start(|_| Script::Send(ok(body))).await;
    let (trackers, mut events) = start(|_| {});
    let url = server.url("/0123456789abcdef0123456789abcdef/announce");
    for n in 1..=20 {
        trackers.add(torrent(n, std::slice::from_ref(&url))).await;
    }
    let mut peers = 0;
    for _ in 0..40 {
        match next(&mut events).await {
            Event::Peers { peers: found, replace, .. } => {
                assert_eq!((found, replace), (vec!["10.0.0.1:6881".parse().unwrap()], false));
                peers += 1;
            }
            Event::Announced { tracker, event, result, .. } => {
                assert!(tracker.ends_with("/***/announce"), "{tracker}");
                assert_eq!((event, result.unwrap().seeders), (AnnounceEvent::Started, Some(5)));
            }
            Event::Removed { .. } => panic!("nothing was removed"),
        }
    }
    assert_eq!(peers, 20);
    let status = trackers.status(hash(3)).await.unwrap();
    let first = &status.trackers[0];
    assert_eq!((first.state, first.seeders, first.leechers), (State::Working, Some(5), Some(6)));
    assert!(first.next_announce_in.unwrap() > Duration::from_secs(1700));
    assert!(!first.url.contains("0123456789abcdef"));
    assert_eq!(trackers.status(hash(99)).await, None);
    // One is removed with totals of its own, the others at shutdown with the source's.
    let last = Totals { uploaded_bytes: 42, downloaded_bytes: 1, left_bytes: 0 };
    trackers.remove(hash(1), last).await;
    while next(&mut events).await != (Event::Removed { info_hash: hash(1) }) {}
    let stops = trackers.shutdown(Duration::from_secs(5)).await;
    assert_eq!(stops, Stops { sent: 19, failed: 0, owed: 0 });
    let mut heard: HashMap<InfoHash, Vec<(AnnounceEvent, u64)>> = HashMap::new();
    for head in server.heads() {
        let query = query(&head);
        heard.entry(query.info_hash).or_default().push((query.event, uploaded(&head)));
        if query.event == AnnounceEvent::Stopped {
            assert_eq!(query.numwant, Some(0));
            assert!(head.contains("&trackerid=t%26 "), "{head}");
        }
    }
    for n in 1..=20 {
        let total = u64::from(n) * 1000;
        let end = if n == 1 { 42 } else { total };
        let expected = [(AnnounceEvent::Started, total), (AnnounceEvent::Stopped, end)];
        assert_eq!(heard[&hash(n)], expected);
    }
    // At most four connections at a time, kept between requests.
    assert!(server.connections() <= 16, "{}", server.connections());
}

#[tokio::test]
async fn failures_are_told_and_the_next_tier_is_asked() {
    let refusing = Server::start(|_| Script::Send(ok(b"d14:failure reason8:not heree"))).await;
    let broken = Server::start(|_| {
        Script::Send(b"HTTP/1.1 503 Busy\r\nRetry-After: 777\r\nContent-Length: 0\r\n\r\n".to_vec())
    })
    .await;
    let garbage = Server::start(|_| Script::Send(ok(b"<html>hello</html>"))).await;
    let good = Server::start(|_| Script::Send(ok(b"d8:intervali900e5:peers0:e"))).await;
    let (trackers, mut events) = start(|_| {});
    let urls: Vec<String> =
        [&refusing, &broken, &garbage, &good].iter().map(|s| s.url("/announce")).collect();
    trackers.add(torrent(1, &urls)).await;
    let mut messages = Vec::new();
    for _ in 0..4 {
        let Event::Announced { result, .. } = next(&mut events).await else { panic!("no peers") };
        messages.push(result.err());
    }
    assert_eq!(messages[0].as_deref(), Some("not here"));
    assert_eq!(messages[1].as_deref(), Some("the tracker answered HTTP 503 Service Unavailable"));
    assert!(messages[2].as_ref().unwrap().contains("not a tracker reply"));
    assert_eq!(messages[3], None);
    let status = trackers.status(hash(1)).await.unwrap();
    assert_eq!(status.trackers[0].state, State::Failing(1));
    let wait = status.trackers[1].next_announce_in.unwrap();
    assert!(wait > Duration::from_secs(760) && wait <= Duration::from_secs(777));
    assert_eq!(status.trackers[3].state, State::Working);
    // The one that refused is owed nothing; those that may have heard are tried.
    let stops = trackers.shutdown(Duration::from_secs(8)).await;
    assert_eq!((stops.sent, stops.owed), (1, 0));
    assert_eq!(refusing.heads().len(), 1);
}

#[tokio::test]
async fn shutdown_keeps_its_deadline() {
    let silent = Server::start(|_| Script::Silence).await;
    let answering = Server::start(|head| match query(head).event {
        AnnounceEvent::Started => Script::Send(ok(b"d8:intervali900e5:peers0:e")),
        _ => Script::Silence,
    })
    .await;
    let (trackers, mut events) = start(|_| {});
    trackers.add(torrent(1, &[silent.url("/announce")])).await;
    trackers.add(torrent(2, &[answering.url("/announce")])).await;
    let _ = next(&mut events).await;
    let began = std::time::Instant::now();
    let stops = trackers.shutdown(Duration::from_millis(900)).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(stops, Stops { sent: 0, failed: 0, owed: 2 });
    // The announce that hung was cut off, and its tracker was still told.
    let events: Vec<_> = silent.heads().iter().map(|h| query(h).event).collect();
    assert_eq!(events, [AnnounceEvent::Started, AnnounceEvent::Stopped]);
}
