//! Owns: the fuzz target of magnet links.
//! Never: expects that text is accepted.
//! Flow: parse, print, parse again: the same link.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seedring_proto::magnet::Magnet;

fuzz_target!(|text: &str| {
    let Ok(magnet) = text.parse::<Magnet>() else { return };
    let printed = magnet.to_string();
    assert!(printed.is_ascii());
    assert!(magnet.name.as_deref().is_none_or(|name| !name.contains('/') && !name.is_empty()));
    // Encoding makes it up to three times as long, so a link near the bound may pass it.
    if text.len() < 64 << 10 {
        assert_eq!(printed.parse::<Magnet>(), Ok(magnet));
    }
});
