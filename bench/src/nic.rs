//! Owns: which network interface leads to an address, and what the kernel says of it.
//! Never: sends a packet, needs a program (an agent's image has none). Flow: address -> /proc/net's
//! routes -> /sys/class/net -> a line of the report.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

const LOOPBACK: &str = "lo";

/// The interface between this machine and `address`, in words; of an address of this machine's own
/// the loopback, unless `own`: then the one that has it.
pub fn towards(address: IpAddr, own: bool) -> String {
    if address.is_loopback() || (!own && is_here(address)) {
        return "loopback".into();
    }
    let routes = match address {
        IpAddr::V4(_) => fs::read_to_string("/proc/net/route"),
        IpAddr::V6(_) => fs::read_to_string("/proc/net/ipv6_route"),
    };
    match interface(&routes.unwrap_or_default(), address) {
        Some(name) => in_words(Path::new("/sys/class/net"), &name),
        None => format!("no route to {address} is known"),
    }
}

/// Whoever sends to an address of its own does so from that one; connecting UDP sends nothing.
fn is_here(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect((address, 9)).and_then(|()| socket.local_addr()));
    from.is_ok_and(|from| from.ip() == address)
}

/// That of the longest prefix which holds the address.
fn interface(routes: &str, address: IpAddr) -> Option<String> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (prefix, holds, name) = match address {
            // Iface Destination Gateway Flags RefCnt Use Metric Mask, as they lie in memory.
            IpAddr::V4(address) => {
                let (network, mask) = (hex(1)?, hex(7)?);
                let holds = u32::from_ne_bytes(address.octets()) & mask == network;
                (mask.count_ones(), holds, fields.first()?)
            }
            // Destination and its prefix, then eight more; the interface is the last.
            IpAddr::V6(address) => {
                let network = u128::from_str_radix(fields.first()?, 16).ok()?;
                let prefix = hex(1)?;
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
                (prefix, u128::from(address) & mask == network, fields.get(9)?)
            }
        };
        (holds && *name != LOOPBACK).then(|| (prefix, (*name).to_owned()))
    };
    let (_, name) = routes.lines().filter_map(of_line).max_by_key(|(prefix, _)| *prefix)?;
    Some(name)
}

/// What of it there is: a bridge has no driver, a virtual one no speed.
fn in_words(class: &Path, name: &str) -> String {
    let folder = class.join(name);
    let number = |file: &str| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        text.trim().parse::<u64>().ok().filter(|number| *number > 0)
    };
    let queues = |kind: &str| {
        let entries = fs::read_dir(folder.join("queues")).ok()?;
        let of_kind = |name: &str| name.starts_with(kind);
        let count = entries.flatten().filter(|one| of_kind(&one.file_name().to_string_lossy()));
        Some(count.count()).filter(|count| *count > 0)
    };
    let driver = fs::read_link(folder.join("device/driver")).ok();
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let parts = [
        driver,
        number("speed").map(|speed| format!("{speed} Mbit/s")),
        number("mtu").map(|mtu| format!("MTU {mtu}")),
        queues("rx-").map(|count| format!("{count} receive queues")),
        queues("tx-").map(|count| format!("{count} send queues")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { name.to_owned() } else { format!("{name} ({})", parts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_names_the_interface() {
        // As /proc/net/route has them on a machine whose lowest byte comes first.
        let line = |name: &str, network: [u8; 4], mask: [u8; 4]| {
            let hex = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
            format!("{name}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(network), hex(mask))
        };
        let routes = "Iface\tDestination\tGateway\n".to_owned()
            + &line("eth0", [0; 4], [0; 4])
            + &line("eth1", [10, 0, 0, 0], [255, 0, 0, 0])
            + &line("eth2", [10, 1, 0, 0], [255, 255, 0, 0]);
        let of = |text: &str| interface(&routes, text.parse().expect("an address"));
        assert_eq!(of("10.1.2.3").as_deref(), Some("eth2"));
        assert_eq!(of("10.2.2.3").as_deref(), Some("eth1"));
        assert_eq!(of("192.0.2.1").as_deref(), Some("eth0"));
        let zeros = "0".repeat(32);
        let six = format!(
            "{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 00000003     eth0\n\
             20010db8{} 20 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth1\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n",
            "0".repeat(24)
        );
        let of = |text: &str| interface(&six, text.parse().expect("an address"));
        assert_eq!(of("2001:db8::7").as_deref(), Some("eth1"));
        assert_eq!(of("2001:db9::7").as_deref(), Some("eth0"));
        assert_eq!(interface("", Ipv4Addr::BROADCAST.into()), None);
    }

    #[test]
    fn what_is_absent_is_left_out() {
        let class = std::env::temp_dir().join(format!("nic-{}", std::process::id()));
        for folder in ["eth0/queues/rx-0", "eth0/queues/rx-1", "eth0/queues/tx-0", "br0"] {
            fs::create_dir_all(class.join(folder)).expect("a folder");
        }
        fs::create_dir_all(class.join("eth0/device")).expect("a folder");
        std::os::unix::fs::symlink("../../drivers/ice", class.join("eth0/device/driver"))
            .expect("a link");
        for (file, text) in [("eth0/speed", "25000\n"), ("eth0/mtu", "9000\n"), ("br0/speed", "-1")]
        {
            fs::write(class.join(file), text).expect("written");
        }
        let words = in_words(&class, "eth0");
        assert_eq!(words, "eth0 (ice, 25000 Mbit/s, MTU 9000, 2 receive queues, 1 send queues)");
        assert_eq!(in_words(&class, "br0"), "br0");
        fs::remove_dir_all(class).ok();
    }

    #[test]
    fn this_machine_reaches_itself_by_loopback() {
        assert_eq!(towards(Ipv4Addr::LOCALHOST.into(), true), "loopback");
        assert!(
            is_here(Ipv4Addr::LOCALHOST.into()) && !is_here(Ipv4Addr::new(192, 0, 2, 1).into())
        );
    }
}
