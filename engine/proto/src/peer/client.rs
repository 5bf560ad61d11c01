//! Owns: peer ids (BEP 20): ours, and the names of clients read from those of others.
//! Never: passes on a byte that could steer a terminal or a log.
//! Flow: control draws our id at start; listings name peers by it until their handshake says `v`.

use crate::units::PeerId;

/// Characters of a client's name at most.
pub const CLIENT_NAME_CHARS: usize = 48;

const OURS: &[u8; 8] = b"-SR0100-";

/// Two letters of Azureus-style ids that appear in real swarms.
const AZUREUS: [(&[u8; 2], &str); 32] = [
    (b"7T", "aTorrent"),
    (b"AG", "Ares"),
    (b"AZ", "Azureus"),
    (b"BC", "BitComet"),
    (b"BI", "BiglyBT"),
    (b"BT", "BitTorrent"),
    (b"BW", "BitWombat"),
    (b"DE", "Deluge"),
    (b"FD", "Free Download Manager"),
    (b"FL", "Folx"),
    (b"FW", "FrostWire"),
    (b"GT", "go-torrent"),
    (b"KG", "KGet"),
    (b"KT", "KTorrent"),
    (b"LT", "libtorrent"),
    (b"lt", "libTorrent (rakshasa)"),
    (b"PI", "PicoTorrent"),
    (b"qB", "qBittorrent"),
    (b"RN", "rain"),
    (b"rQ", "rqbit"),
    (b"SD", "Xunlei"),
    (b"SR", "seedring"),
    (b"TL", "Tribler"),
    (b"TR", "Transmission"),
    (b"TX", "Tixati"),
    (b"UM", "uTorrent Mac"),
    (b"UT", "uTorrent"),
    (b"UW", "uTorrent Web"),
    (b"VZ", "Vuze"),
    (b"WW", "WebTorrent"),
    (b"XL", "Xunlei"),
    (b"XF", "Xfplay"),
];

/// Our id: name and version, then 12 characters made of the random bytes that the caller drew.
pub fn peer_id(random: [u8; 12]) -> PeerId {
    const ALPHABET: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.-";
    let mut id = [0; 20];
    id[..8].copy_from_slice(OURS);
    for (character, random) in id[8..].iter_mut().zip(random) {
        *character = ALPHABET[usize::from(random) % ALPHABET.len()];
    }
    PeerId(id)
}

/// Name and version as far as an id tells them, safe to print.
pub fn client_name(id: PeerId) -> String {
    if let [b'-', first, second, version @ .., b'-'] = &id.0[..8]
        && first.is_ascii_alphanumeric()
        && second.is_ascii_alphanumeric()
        && version.iter().all(u8::is_ascii_alphanumeric)
    {
        let known = AZUREUS.iter().find(|(code, _)| code[..] == [*first, *second]);
        let name = known.map_or_else(
            || format!("{}{}", char::from(*first), char::from(*second)),
            |(_, name)| (*name).to_owned(),
        );
        return format!("{name} {}", dotted(version));
    }
    if let [b'A', b'2', b'-', rest @ ..] = &id.0 {
        let version: String = rest.iter().map(|byte| char::from(*byte)).collect();
        let version = version.trim_start_matches('-');
        let end = version.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(0);
        let version = version[..end].trim_end_matches('-').replace('-', ".");
        return format!("aria2 {version}").trim_end().to_owned();
    }
    if let [b'M', major, b'-', minor, b'-', tiny, b'-', ..] = &id.0
        && [major, minor, tiny].iter().all(|digit| digit.is_ascii_digit())
    {
        let [major, minor, tiny] = [*major, *minor, *tiny].map(char::from);
        return format!("BitTorrent {major}.{minor}.{tiny}");
    }
    let text = printable(&id.0[..8]);
    if text.is_empty() { "unknown".to_owned() } else { format!("unknown ({text})") }
}

/// What a client calls itself, cut and cleaned: letters, digits, ASCII signs and single spaces.
/// Control and direction characters are left out, so a name cannot rewrite a line of a listing.
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(4 * CLIENT_NAME_CHARS)]);
    let shown = |c: &char| c.is_alphanumeric() || c.is_ascii_graphic() || *c == ' ';
    text.chars().filter(shown).take(CLIENT_NAME_CHARS).collect::<String>().trim().to_owned()
}

/// `4630` is 4.6.3: zeros at the end say nothing, letters count on from 9.
fn dotted(version: &[u8]) -> String {
    let figure = |c: &u8| char::from(*c).to_digit(36).unwrap_or(0);
    let last = version.iter().rposition(|c| *c != b'0').unwrap_or(0).max(1);
    let figures: Vec<String> =
        version.iter().take(last + 1).map(|c| figure(c).to_string()).collect();
    figures.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_id_is_printable_and_keeps_its_head() {
        let ids = [peer_id([0; 12]), peer_id([255; 12]), peer_id([0x0a; 12])];
        for id in ids {
            assert!(id.0.starts_with(b"-SR0100-"));
            assert!(id.0.iter().all(u8::is_ascii_graphic), "{id}");
        }
        assert_ne!(ids[0], ids[1]);
        assert_eq!(client_name(ids[0]), "seedring 0.1");
    }

    #[test]
    fn names_of_real_clients() {
        let table: [(&[u8; 20], &str); 8] = [
            (b"-qB4630-abcdefghijkl", "qBittorrent 4.6.3"),
            (b"-TR4050-abcdefghijkl", "Transmission 4.0.5"),
            (b"-lt0D80-abcdefghijkl", "libTorrent (rakshasa) 0.13.8"),
            (b"-LT20B0-abcdefghijkl", "libtorrent 2.0.11"),
            (b"A2-1-36-0-abcdefghij", "aria2 1.36.0"),
            (b"M7-9-2--abcdefghijkl", "BitTorrent 7.9.2"),
            (b"-ZZ1000-abcdefghijkl", "ZZ 1.0"),
            (b"plainoldidentifier..", "unknown (plainold)"),
        ];
        for (id, name) in table {
            assert_eq!(client_name(PeerId(*id)), name);
        }
    }

    #[test]
    fn nothing_steers_a_terminal() {
        let hostile = b"\x1b[2J\r\nevil\xe2\x80\xae\xff\0 name";
        assert_eq!(printable(hostile), "[2Jevil name");
        assert_eq!(printable(&[b'x'; 5000]).chars().count(), CLIENT_NAME_CHARS);
        assert_eq!(printable("\u{b5}Torrent 3.5".as_bytes()), "\u{b5}Torrent 3.5");
        let name = client_name(PeerId(*b"-\x1b]0;x\x07-abcdefghijkl"));
        assert!(name.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{name}");
        assert_eq!(client_name(PeerId([0; 20])), "unknown");
    }
}
