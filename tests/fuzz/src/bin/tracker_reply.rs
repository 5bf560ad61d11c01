//! Owns: the fuzz target of tracker replies and addresses.
//! Never: expects that bytes are accepted.
//! Flow: parse as a reply; what comes out is bounded and fit to dial and to show. As text, an
//! address that is accepted prints to one that is accepted and the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seedring_proto::tracker::redact::redact;
use seedring_proto::tracker::reply::{PEERS_MAX, Reply, ReplyError, TRACKER_ID_BYTES_MAX};
use seedring_proto::tracker::url::TrackerUrl;

fuzz_target!(|bytes: &[u8]| {
    match Reply::parse(bytes) {
        Ok(reply) => {
            assert!(reply.peers.len() <= PEERS_MAX);
            assert!(reply.peers.iter().all(|p| p.port() != 0 && !p.ip().is_unspecified()));
            assert!(reply.tracker_id.is_none_or(|id| id.len() <= TRACKER_ID_BYTES_MAX));
            assert!(reply.warning.is_none_or(|text| !text.contains(char::is_control)));
        }
        Err(ReplyError::Refused { reason, .. }) => assert!(!reason.contains(char::is_control)),
        Err(_) => {}
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = redact(text);
    let Ok(url) = TrackerUrl::parse(text) else { return };
    let request_line = url.with_parameters("a=%01");
    assert!(request_line.starts_with('/') && request_line.bytes().all(|b| b.is_ascii_graphic()));
    // Encoding makes it up to three times as long, so an address near the bound may pass it.
    if let Ok(again) = TrackerUrl::parse(&url.exposed()) {
        assert_eq!(again, url);
    }
    let _ = url.join(text);
});
