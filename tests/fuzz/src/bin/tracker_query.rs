//! Owns: the fuzz target of the embedded tracker: queries and the store's answers.
//! Never: expects that a query is accepted.
//! Flow: each line is a query of another client; an accepted one gets an answer that a client can
//! parse and that does not name the client itself.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::tracker::announce::Event;
use seedring_proto::tracker::query::{AnnounceQuery, scrape_hashes};
use seedring_proto::tracker::reply::Reply;
use seedring_proto::tracker::swarm_store::{Ends, Options, SwarmStore};

fuzz_target!(|text: &str| {
    let options = Options { open: true, swarms_max: 4, peers_max: 8, ..Options::default() };
    let mut store = SwarmStore::new(options);
    let local = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 6969));
    for (n, line) in text.lines().take(64).enumerate() {
        let client = SocketAddr::from((Ipv4Addr::new(10, 1, 0, n as u8), 5));
        let now = Duration::from_secs(n as u64 * 100);
        if let Ok(query) = AnnounceQuery::parse(line) {
            let ends = Ends { client, local, host: None };
            if let Ok(answer) = store.announce(now, &query, &ends) {
                let reply = Reply::parse(&answer.body).expect("our answer is a reply");
                assert!(query.event != Event::Stopped || reply.peers.is_empty());
                assert!(reply.peers.iter().all(|peer| peer.ip() != client.ip()));
            }
        }
        if let Ok(hashes) = scrape_hashes(line) {
            let _ = store.scrape(&hashes);
        }
        assert!(store.peers() <= 8);
    }
});
