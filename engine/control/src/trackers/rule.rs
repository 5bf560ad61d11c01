//! Where a tracker address may lead.
//!
//! Owns: the rule against server-side request forgery (libtorrent's `ssrf_mitigation`, its
//! milder form).
//! Never: resolves; it judges addresses that a lookup gave and that are then pinned.
//! Flow: `connect` asks it for every address, kept connections included, and again at each
//! redirect.
//!
//! - What the user wrote in the configuration may be anything: trackers on a LAN are common.
//! - What a .torrent file names may reach a private network; loopback only with an announce path;
//!   link-local (where clouds keep their metadata service) not at all.
//! - A redirect may not lead inwards: from a public address to a private one, from either to this
//!   machine.
//! - Over UDP an announce path protects nobody, since the first packet does not hold it: what a
//!   .torrent file names does not lead to this machine at all. Groups of machines are for none.

use std::net::{IpAddr, Ipv4Addr};

use seedring_proto::tracker::announcer::Origin;

/// How near an address is; a redirect may only keep or widen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Loopback and the unspecified address, which Linux takes for loopback.
    Machine,
    LinkLocal,
    Private,
    Public,
}

/// How we came to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    First(Origin),
    /// From a server of this scope.
    Redirect(Scope),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error(
        "a .torrent file's tracker leads to this machine ({0}) and its path is not /announce; \
         list the tracker in the configuration if that is meant"
    )]
    Machine(IpAddr),
    #[error(
        "a .torrent file's tracker leads to the link-local address {0}; \
         list the tracker in the configuration if that is meant"
    )]
    LinkLocal(IpAddr),
    #[error("the tracker redirects inwards, to {0}")]
    Inwards(IpAddr),
    #[error(
        "a .torrent file's UDP tracker leads to this machine ({0}); \
         list the tracker in the configuration if that is meant"
    )]
    MachineByUdp(IpAddr),
    #[error("the tracker's address {0} stands for more than one machine")]
    Group(IpAddr),
}

pub fn scope(ip: IpAddr) -> Scope {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_loopback() || v4.octets()[0] == 0 => Scope::Machine,
        IpAddr::V4(v4) if v4.is_link_local() => Scope::LinkLocal,
        IpAddr::V4(v4) if v4.is_private() || is_shared(v4) => Scope::Private,
        IpAddr::V4(_) => Scope::Public,
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Scope::Machine,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Scope::LinkLocal,
        IpAddr::V6(v6) if v6.is_unique_local() => Scope::Private,
        IpAddr::V6(_) => Scope::Public,
    }
}

pub fn check(hop: Hop, ip: IpAddr, path: &str) -> Result<(), Forbidden> {
    let scope = scope(ip);
    match hop {
        Hop::First(Origin::User) => Ok(()),
        Hop::First(Origin::Torrent) => match scope {
            Scope::Machine if !is_announce(path) => Err(Forbidden::Machine(ip)),
            Scope::LinkLocal => Err(Forbidden::LinkLocal(ip)),
            _ => Ok(()),
        },
        Hop::Redirect(from) if scope < from => Err(Forbidden::Inwards(ip)),
        Hop::Redirect(_) => Ok(()),
    }
}

/// The rule for UDP.
pub fn check_datagram(origin: Origin, ip: IpAddr) -> Result<(), Forbidden> {
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_multicast() || broadcast {
        return Err(Forbidden::Group(ip));
    }
    match (origin, scope(ip)) {
        (Origin::User, _) => Ok(()),
        (Origin::Torrent, Scope::Machine) => Err(Forbidden::MachineByUdp(ip)),
        (Origin::Torrent, Scope::LinkLocal) => Err(Forbidden::LinkLocal(ip)),
        (Origin::Torrent, Scope::Private | Scope::Public) => Ok(()),
    }
}

/// 100.64.0.0/10 (RFC 6598): carrier-grade NAT and overlay networks.
fn is_shared(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
}

fn is_announce(path: &str) -> bool {
    path.strip_prefix("/announce").is_some_and(|rest| matches!(rest, "" | "/" | ".php"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        for (ip, expected) in [
            ("127.0.0.1", Scope::Machine),
            ("127.9.9.9", Scope::Machine),
            ("0.0.0.0", Scope::Machine),
            ("::1", Scope::Machine),
            ("::ffff:127.0.0.1", Scope::Machine),
            ("169.254.169.254", Scope::LinkLocal),
            ("fe80::1", Scope::LinkLocal),
            ("10.1.2.3", Scope::Private),
            ("100.100.0.1", Scope::Private),
            ("100.128.0.1", Scope::Public),
            ("fd00::1", Scope::Private),
            ("192.0.2.1", Scope::Public),
            ("2001:db8::1", Scope::Public),
        ] {
            assert_eq!(scope(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn the_rule() {
        let (user, torrent) = (Hop::First(Origin::User), Hop::First(Origin::Torrent));
        let (outer, near) = (Hop::Redirect(Scope::Public), Hop::Redirect(Scope::Machine));
        for (hop, ip, path, allowed) in [
            (user, "127.0.0.1", "/anything", true),
            (user, "169.254.169.254", "/latest", true),
            (torrent, "127.0.0.1", "/announce", true),
            (torrent, "::1", "/announce.php", true),
            (torrent, "127.0.0.1", "/api/v2/shutdown", false),
            (torrent, "127.0.0.1", "/announce/../shutdown", false),
            (torrent, "0.0.0.0", "/x", false),
            (torrent, "169.254.169.254", "/announce", false),
            (torrent, "192.168.1.2", "/x", true),
            (torrent, "192.0.2.1", "/x", true),
            (outer, "192.168.1.2", "/announce", false),
            (outer, "127.0.0.1", "/announce", false),
            (outer, "192.0.2.2", "/x", true),
            (near, "127.0.0.1", "/x", true),
            (near, "192.0.2.2", "/x", true),
            (Hop::Redirect(Scope::Private), "127.0.0.1", "/announce", false),
        ] {
            let result = check(hop, ip.parse().unwrap(), path);
            assert_eq!(result.is_ok(), allowed, "{hop:?} {ip} {path}");
        }
    }

    #[test]
    fn the_rule_for_udp() {
        let (user, torrent) = (Origin::User, Origin::Torrent);
        for (origin, ip, allowed) in [
            (user, "127.0.0.1", true),
            (user, "169.254.1.1", true),
            (user, "224.0.0.1", false),
            (user, "255.255.255.255", false),
            (torrent, "127.0.0.1", false),
            (torrent, "::1", false),
            (torrent, "::ffff:127.0.0.1", false),
            (torrent, "0.0.0.0", false),
            (torrent, "169.254.169.254", false),
            (torrent, "fe80::1", false),
            (torrent, "ff02::1", false),
            (torrent, "192.168.1.2", true),
            (torrent, "2001:db8::1", true),
        ] {
            let result = check_datagram(origin, ip.parse().unwrap());
            assert_eq!(result.is_ok(), allowed, "{origin:?} {ip}");
        }
    }
}
