use proptest::prelude::*;

use super::*;

const HEX: &str = "000102030405060708090a0b0c0d0e0f10111213";
const BASE32: &str = "AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQT";

fn hash() -> InfoHash {
    InfoHash(std::array::from_fn(|at| at as u8))
}

#[test]
fn reads_every_parameter() {
    let v2 = "ab".repeat(32);
    let link = format!(
        "magnet:?xt=urn:btih:{HEX}&xt=urn:btmh:1220{v2}&dn=Some+name%2B%C3%A9\
         &tr=http%3A%2F%2Fa%2Fb%3Fc%3Dd\
         &tr.1=udp://t:80/announce&ws=http://w/&x.pe=10.0.0.1:6881&x.pe=[::1]:7&x.pe=host:0\
         &so=0,2,4-6,x,9-8&xl=5&tr=&tr=%0A%0Dx%0Ay"
    );
    let magnet: Magnet = link.parse().expect("valid");
    assert_eq!(magnet.info_hash, hash());
    assert_eq!(magnet.info_hash_v2, Some([0xab; 32]));
    assert_eq!(magnet.name.as_deref(), Some("Some name+é"));
    assert_eq!(magnet.trackers, ["http://a/b?c=d", "udp://t:80/announce"]);
    assert_eq!(magnet.web_seeds, ["http://w/"]);
    assert_eq!(magnet.peers, [("10.0.0.1".to_owned(), 6881), ("::1".to_owned(), 7)]);
    assert_eq!(magnet.select, [0..=0, 2..=2, 4..=6]);
}

#[test]
fn reads_what_users_paste() {
    for link in [
        format!("magnet:?xt=urn:btih:{BASE32}"),
        format!("  MAGNET:?dn=x&amp;xt=URN:BTIH:{}\n", HEX.to_uppercase()),
        format!("magnet:?xt.1=urn:btih:{HEX}&xt.2=urn:sha1:abc"),
        format!("magnet:?xt=urn%3Abtih%3A{HEX}&&junk&=&x=%zz%"),
        format!("magnet:?xt=urn:btih:{HEX}&xt=urn:btih:{}", "ff".repeat(20)),
    ] {
        assert_eq!(link.parse::<Magnet>().map(|magnet| magnet.info_hash), Ok(hash()), "{link}");
    }
}

#[test]
fn each_tracker_is_a_tier() {
    let link = format!("magnet:?xt=urn:btih:{HEX}&tr=udp://b&tr=http://a/x&tr=udp%3A%2F%2Fb");
    let magnet: Magnet = link.parse().expect("valid");
    assert_eq!(magnet.tiers(), [["udp://b"], ["http://a/x"]]);
    assert!(Magnet::new(hash()).tiers().is_empty());
}

#[test]
fn selected_files() {
    let selects = |so: &str| {
        let link = format!("magnet:?xt=urn:btih:{HEX}&so={so}");
        let magnet: Magnet = link.parse().expect("valid");
        (0..8).filter(|at| magnet.selects(FileIndex(*at))).collect::<Vec<u32>>()
    };
    // The example of BEP 53, and as it looks when all of the value is encoded.
    assert_eq!(selects("0,2,4,6-8"), [0, 2, 4, 6, 7]);
    assert_eq!(selects("0%2C2%2C4%2C6-8"), [0, 2, 4, 6, 7]);
    assert_eq!(selects("1&so=3"), [1, 3], "more of a kind add up");
    assert_eq!(selects("5-4294967295"), [5, 6, 7]);
    for nonsense in ["", "x", "-1", "3-", "7-3", "4294967296"] {
        assert_eq!(selects(nonsense).len(), 8, "{nonsense:?} selects nothing: all are wanted");
    }
}

#[test]
fn peers_to_begin_with() {
    let peers = |text: &str| {
        let link = format!("magnet:?xt=urn:btih:{HEX}&x.pe={text}");
        link.parse::<Magnet>().expect("valid").peers
    };
    let table = [
        ("1.2.3.4:5", Some(("1.2.3.4", 5))),
        ("%5B2001:db8::1%5D:6881", Some(("2001:db8::1", 6881))),
        ("example.org%3A80", Some(("example.org", 80))),
        ("2001:db8::1:6881", None),
        ("[1.2.3.4]:5", None),
        ("1.2.3.4", None),
        ("1.2.3.4:0", None),
        ("1.2.3.4:65536", None),
        (":5", None),
        ("a%0Ab:5", None),
    ];
    for (text, peer) in table {
        let expected: Vec<_> =
            peer.into_iter().map(|(host, port)| (host.to_owned(), port)).collect();
        assert_eq!(peers(text), expected, "{text}");
    }
}

#[test]
fn names_are_sanitised() {
    let link = format!("magnet:?xt=urn:btih:{HEX}&dn=..%2F..%2Fetc%00%0A");
    assert_eq!(link.parse::<Magnet>().expect("valid").name.as_deref(), Some("....etc_"));
    let link = format!("magnet:?xt=urn:btih:{HEX}&dn=..");
    assert_eq!(link.parse::<Magnet>().expect("valid").name.as_deref(), Some("_"));
}

#[test]
fn refuses_with_a_reason() {
    let v2 = "ab".repeat(32);
    let table = [
        ("http://x".to_owned(), Error::NotMagnet),
        ("magnet:".to_owned(), Error::NotMagnet),
        ("magnet:\u{e9}x".to_owned(), Error::NotMagnet),
        ("magnet:?".to_owned(), Error::NoInfoHash),
        ("magnet:?dn=x".to_owned(), Error::NoInfoHash),
        ("magnet:?xt=urn:btih:abc".to_owned(), Error::InfoHash(InfoHashError::HexLength(3))),
        (format!("magnet:?xt=urn:btih:g{}", &HEX[1..]), Error::InfoHash(InfoHashError::Digit(0))),
        (format!("magnet:?xt=urn:btmh:1220{v2}"), Error::V2Only),
        (format!("magnet:?xt=urn:btmh:1114{v2}"), Error::InfoHashV2),
        (format!("magnet:?xt=urn:btih:{HEX}&dn={}", "x".repeat(300_000)), Error::TooLong),
    ];
    for (link, error) in table {
        assert_eq!(link.parse::<Magnet>(), Err(error));
    }
}

#[test]
fn addresses_are_bounded() {
    let link = format!("magnet:?xt=urn:btih:{HEX}{}", "&tr=udp:a".repeat(5000));
    assert_eq!(link.parse::<Magnet>().expect("valid").trackers.len(), ADDRESSES_MAX);
    let many = "&so=1,3,5,7,9".repeat(400);
    let link = format!("magnet:?xt=urn:btih:{HEX}{many}{}", "&x.pe=a:1&ws=http:a".repeat(2000));
    let magnet: Magnet = link.parse().expect("valid");
    let lists = [magnet.select.len(), magnet.peers.len(), magnet.web_seeds.len()];
    assert_eq!(lists, [ADDRESSES_MAX; 3]);
}

#[test]
fn a_torrent_has_a_link() {
    let info = "d6:lengthi5e4:name3:a b12:piece lengthi16384e6:pieces20:HHHHHHHHHHHHHHHHHHHHe";
    let torrent = format!("d8:announce7:udp://t4:info{info}e");
    let metainfo = Metainfo::parse(torrent.as_bytes()).expect("valid");
    let link = Magnet::from(&metainfo).to_string();
    let expected = format!("magnet:?xt=urn:btih:{}&dn=a%20b&tr=udp%3A%2F%2Ft", metainfo.info_hash);
    assert_eq!(link, expected);
}

proptest! {
    #[test]
    fn what_is_printed_is_read(
        info_hash: [u8; 20],
        info_hash_v2: Option<[u8; 32]>,
        name: Option<String>,
        trackers in proptest::collection::vec("[!-~é]{1,30}", 0..4),
        web_seeds in proptest::collection::vec("[!-~]{1,30}", 0..3),
        peers in proptest::collection::vec(
            ("[a-z.0-9]{1,9}|([0-9a-f]{1,4}:){3}:1", 1..=u16::MAX), 0..3,
        ),
        select in proptest::collection::vec((any::<u32>(), 0..9u32), 0..4),
    ) {
        let magnet = Magnet {
            info_hash: InfoHash(info_hash),
            info_hash_v2,
            name: name.map(|name| sanitise::component(name.as_bytes())),
            trackers,
            web_seeds,
            peers,
            select: select.into_iter().map(|(at, more)| at..=at.saturating_add(more)).collect(),
        };
        prop_assert_eq!(magnet.to_string().parse::<Magnet>(), Ok(magnet));
    }

    #[test]
    fn arbitrary_text_never_panics(text: String) {
        _ = text.parse::<Magnet>();
        _ = format!("magnet:?{text}").parse::<Magnet>();
        _ = format!("magnet:?xt=urn:btih:{HEX}&tr={text}&x.pe={text}&so={text}").parse::<Magnet>();
    }
}
