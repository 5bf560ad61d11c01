//! Owns: established TCP connections whose frames leave through a device that drops them, and the
//! acknowledgements that their peer would have sent.
//! Never: copies or reads what is sent. Flow: `Device::open` -> streams to send on; the sender
//! calls
//! `acknowledge` for what the socket took.
//!
//! Over loopback and veth every zero-copy send is copied, because the receiver would hold the
//! sender's pages. A NIC takes frames (segmentation offload, scatter-gather) and is done. Here an
//! `ifb` stands for it: it has a NIC's offloads and drops what nobody redirected to it.
//! - Each connection is opened for real over loopback, to an address of a peer that is also ours; a
//!   raw socket sees both initial sequence numbers go by.
//! - Then the peer's address is taken away and its route leads to the ifb.
//! - Acknowledgements come in as raw packets over loopback, with the peer's address as source: the
//!   kernel takes them, because output has routed them already.
//!
//! The congestion window starts large by route (`initcwnd`) and nothing is ever lost, so all that a
//! socket takes leaves at once, and acknowledging it is never ahead of what was sent.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::ip;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const NAME: &str = "frames0";
/// Segments in flight from the start: 29 MB, more than a socket's send buffer ever holds.
const WINDOW: &str = "initcwnd 20000 congctl cubic";
/// At an MTU of 1,500 with timestamps.
const SEGMENT_BYTES: usize = 1448;
const BACKLOG: usize = 500;
const PACKET_BYTES: usize = 40;
/// IPPROTO_RAW: sends whole packets, receives none.
const SEND_ONLY: i32 = 255;

pub struct Device {
    sender: Socket,
    to: SockAddr,
    /// The peers' ends: never used again, closed at the end.
    _peers: Vec<TcpStream>,
}

/// One connection, seen from its peer.
pub struct Peer {
    packet: [u8; PACKET_BYTES],
    /// Sequence number of the first byte that the server sends.
    first: u32,
    acknowledged: u64,
}

impl Device {
    /// Must run in a network namespace of its own: routes and devices are made.
    pub fn open(connections: usize) -> Result<(Self, Vec<(OwnedFd, Peer)>)> {
        ip("link set lo up")?;
        ip(&format!("addr add {SERVER}/32 dev lo"))?;
        ip(&format!("addr add {PEER}/32 dev lo"))?;
        let route = format!("local {PEER} dev lo proto kernel scope host table local");
        ip(&format!("route change {route} {WINDOW}"))?;
        ip(&format!("link add {NAME} type ifb"))
            .context("the kernel needs the ifb device (CONFIG_IFB, modprobe ifb)")?;
        ip(&format!("link set {NAME} up mtu 1500"))?;
        // A pause would shrink the window again.
        fs::write("/proc/sys/net/ipv4/tcp_slow_start_after_idle", "0")?;
        // Nothing is lost here: no probe may mistake a busy core for a loss.
        fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0")?;

        let sniffer = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))
            .context("a raw socket needs CAP_NET_RAW: run as root")?;
        sniffer.set_read_timeout(Some(Duration::from_millis(500)))?;
        let listener = TcpListener::bind((SERVER, 0))?;
        let (mut streams, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            let (stream, near, peer) = connect(&listener, &sniffer)?;
            stream.set_nodelay(true)?;
            streams.push((OwnedFd::from(stream), near));
            peers.push(peer);
        }
        drop(sniffer);
        ip(&format!("addr del {PEER}/32 dev lo"))?;
        ip(&format!("route del {route}"))?;
        ip(&format!("route add {PEER}/32 dev {NAME} src {SERVER} {WINDOW}"))?;

        let sender = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SEND_ONLY)))?;
        sender.set_header_included_v4(true)?;
        let device = Device { sender, to: SocketAddr::from((SERVER, 0)).into(), _peers: peers };
        for (_, peer) in &mut streams {
            // Opens the receive window from the handshake's 64 KiB to its scaled size.
            device.acknowledge(peer, 0)?;
        }
        Ok((device, streams))
    }

    /// The peer has received the first `bytes` of the stream.
    pub fn acknowledge(&self, peer: &mut Peer, bytes: u64) -> Result<()> {
        peer.acknowledged = bytes;
        let number = peer.first.wrapping_add(bytes as u32);
        peer.packet[28..32].copy_from_slice(&number.to_be_bytes());
        peer.packet[36..38].fill(0);
        let sum = checksum(&peer.packet);
        peer.packet[36..38].copy_from_slice(&sum.to_be_bytes());
        self.sender.send_to(&peer.packet, &self.to).context("injecting an acknowledgement")?;
        Ok(())
    }

    /// Something was acknowledged before it was sent, and so in vain: goes up in small steps, of
    /// which the kernel takes those that it has sent.
    pub fn acknowledge_in_steps(&self, peer: &mut Peer, from: u64, bytes: u64) -> Result<()> {
        for (count, step) in (from..bytes).step_by(SEGMENT_BYTES).enumerate() {
            self.acknowledge(peer, step)?;
            if count % BACKLOG == BACKLOG - 1 {
                // Let ksoftirqd take them: the kernel's backlog holds 1,000 packets.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.acknowledge(peer, bytes)
    }

    /// Frames and bytes that the device has dropped (an ifb counts them as received).
    pub fn dropped() -> Result<(u64, u64)> {
        let text = fs::read_to_string("/proc/self/net/dev")?;
        let line =
            text.lines().find_map(|line| line.trim_start().strip_prefix(NAME)?.strip_prefix(':'));
        let fields: Vec<u64> = line
            .context("/proc/self/net/dev does not list the device")?
            .split_whitespace()
            .map_while(|field| field.parse().ok())
            .collect();
        match fields[..] {
            [bytes, _, _, dropped, ..] => Ok((dropped, bytes)),
            _ => anyhow::bail!("unknown form of /proc/self/net/dev"),
        }
    }
}

impl Peer {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }
}

/// Segments that this namespace has sent again.
pub fn retransmitted() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let names = lines.next().context("/proc/net/snmp has no Tcp line")?;
    let values = lines.next().context("/proc/net/snmp has no Tcp values")?;
    let at = names.split(' ').position(|name| name == "RetransSegs").context("RetransSegs")?;
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).context("RetransSegs")
}

fn connect(listener: &TcpListener, sniffer: &Socket) -> Result<(TcpStream, Peer, TcpStream)> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    client.bind(&SocketAddr::from((PEER, 0)).into())?;
    client.connect(&listener.local_addr()?.into())?;
    let client = TcpStream::from(client);
    let (stream, _) = listener.accept()?;
    let (near, far) = (stream.local_addr()?.port(), client.local_addr()?.port());
    let peer = loop {
        let packet = receive(sniffer)?;
        if let Some(peer) = read_syn_ack(&packet, near, far) {
            break peer;
        }
    };
    Ok((stream, peer, client))
}

fn receive(sniffer: &Socket) -> Result<Vec<u8>> {
    let mut packet = vec![0; 256];
    loop {
        match std::io::Read::read(&mut &*sniffer, &mut packet) {
            Ok(count) => {
                packet.truncate(count);
                return Ok(packet);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the SYN-ACK did not come by"),
        }
    }
}

/// Both sides' sequence numbers are in the server's SYN-ACK.
fn read_syn_ack(packet: &[u8], near: u16, far: u16) -> Option<Peer> {
    let start = usize::from(packet.first()? & 0x0f) * 4;
    let tcp = packet.get(start..start + 20)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let is_syn_ack = tcp[13] & 0x3f == 0x12;
    if !is_syn_ack || port(0) != near || port(2) != far {
        return None;
    }
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let (server, client_next) = (number(4), number(8));
    let mut bytes = [0; PACKET_BYTES];
    bytes[0] = 0x45;
    bytes[3] = PACKET_BYTES as u8;
    bytes[8] = 64;
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&PEER.octets());
    bytes[16..20].copy_from_slice(&SERVER.octets());
    bytes[20..22].copy_from_slice(&far.to_be_bytes());
    bytes[22..24].copy_from_slice(&near.to_be_bytes());
    bytes[24..28].copy_from_slice(&client_next.to_be_bytes());
    bytes[32] = 5 << 4;
    bytes[33] = 0x10;
    bytes[34..36].fill(0xff);
    Some(Peer { packet: bytes, first: server.wrapping_add(1), acknowledged: 0 })
}

/// TCP's checksum of a packet without options or data (RFC 9293, section 3.1).
fn checksum(packet: &[u8; PACKET_BYTES]) -> u16 {
    let words = packet[12..].chunks_exact(2);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    sum += 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_to_zero() {
        let mut syn_ack = vec![0_u8; 40];
        syn_ack[0] = 0x45;
        syn_ack[20..22].copy_from_slice(&7000_u16.to_be_bytes());
        syn_ack[22..24].copy_from_slice(&7001_u16.to_be_bytes());
        syn_ack[24..28].copy_from_slice(&0xffff_ffff_u32.to_be_bytes());
        syn_ack[28..32].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
        syn_ack[33] = 0x12;
        assert!(read_syn_ack(&syn_ack, 7000, 7002).is_none());
        let mut peer = read_syn_ack(&syn_ack, 7000, 7001).expect("the SYN-ACK");
        assert_eq!(peer.first, 0, "sequence numbers wrap");
        assert_eq!(peer.packet[24..28], 0x1234_5678_u32.to_be_bytes());
        let sum = checksum(&peer.packet);
        peer.packet[36..38].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&peer.packet), 0);
    }
}
