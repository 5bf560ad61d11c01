//! Owns: a network of hosts for a swarm: namespaces on one bridge, and a tracker on it that names
//! everybody and notes who has everything.
//! Never: reaches beyond the comparison's own namespace. Flow: `Hosts::new` -> members run on hosts
//! -> they announce -> `completed`.
//!
//! Each host is a process that does nothing in a namespace of its own: when it ends, so does the
//! host, whatever becomes of us. Several clients keep one connection an address, so each needs one.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Cores, on_cores, swarm};
use crate::namespace::ip;

const BRIDGE: &str = "swarm0";
const TRACKER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, 1), 7000);
/// Hosts have 10.78.1.1 and up.
pub const HOSTS_MAX: usize = 100;
const NAMESPACE_MAX: Duration = Duration::from_secs(5);

/// What the tracker knows of one that announced.
#[derive(Clone, Copy, Debug)]
struct Known {
    port: u16,
    completed: Option<Instant>,
}

type Swarm = Arc<Mutex<BTreeMap<Ipv4Addr, Known>>>;

pub struct Hosts {
    keepers: Vec<Child>,
    swarm: Swarm,
}

impl Hosts {
    pub fn new(count: usize) -> Result<Self> {
        ensure!(count <= HOSTS_MAX, "at most {HOSTS_MAX} hosts");
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add {}/16 dev {BRIDGE}", TRACKER.ip()))?;
        ip(&format!("link set {BRIDGE} up"))?;
        let mut hosts = Hosts { keepers: Vec::new(), swarm: Swarm::default() };
        for number in 0..count {
            hosts.add(number).with_context(|| format!("host {number}"))?;
        }
        let listener = TcpListener::bind(TRACKER).context("the tracker's address")?;
        let swarm = Arc::clone(&hosts.swarm);
        thread::spawn(move || serve(&listener, &swarm));
        Ok(hosts)
    }

    fn add(&mut self, number: usize) -> Result<()> {
        let keeper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run setpriv: install util-linux")?;
        let pid = keeper.id();
        self.keepers.push(keeper);
        let (own, start) = (fs::read_link("/proc/self/ns/net")?, Instant::now());
        while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == own) {
            ensure!(start.elapsed() < NAMESPACE_MAX, "unshare makes no namespace: run as root");
            thread::sleep(Duration::from_millis(2));
        }
        let address = address(number);
        ip(&format!("link add port{number} type veth peer name eth0 netns {pid}"))?;
        ip(&format!("link set port{number} master {BRIDGE} up"))?;
        let inside = |arguments: &str| -> Result<()> {
            let net = format!("--net=/proc/{pid}/ns/net");
            let mut command = Command::new("nsenter");
            let output = command.arg(net).arg("ip").args(arguments.split(' ')).output()?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "ip {arguments}: {}", complaint.trim());
            Ok(())
        };
        inside("link set lo up")?;
        inside("link set eth0 up")?;
        inside(&format!("addr add {address}/16 dev eth0"))?;
        // As in the comparison's own namespace: bbr without fq pays a timer a segment.
        inside(&format!("route change 10.78.0.0/16 dev eth0 src {address} congctl cubic"))
    }

    /// A program on a host, on these cores at nice -20.
    pub fn command(&self, number: usize, program: &Path, cores: &Cores) -> Command {
        let pid = self.keepers[number].id();
        let mut command = on_cores(Path::new("nsenter"), cores);
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg(program);
        command
    }

    /// The announce URL of a torrent for this network.
    pub fn announce() -> String {
        format!("http://{TRACKER}/announce")
    }

    /// When this host's client said that it has everything.
    pub fn completed(&self, number: usize) -> Option<Instant> {
        let swarm = self.swarm.lock().expect("invariant: no panic while it is held");
        swarm.get(&address(number))?.completed
    }

    /// Nobody is known any more.
    pub fn forget(&self) {
        self.swarm.lock().expect("invariant: no panic while it is held").clear();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            if let Err(error) = keeper.kill().and_then(|()| keeper.wait().map(drop)) {
                eprintln!("a host cannot be ended: {error}");
            }
        }
    }
}

pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 1, 1 + number as u8)
}

/// Answers for as long as the process lives.
fn serve(listener: &TcpListener, swarm: &Swarm) {
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(stream, swarm) {
            eprintln!("the tracker: {error:#}");
        }
    }
}

fn answer(mut stream: TcpStream, swarm: &Swarm) -> Result<()> {
    let SocketAddr::V4(from) = stream.peer_addr()? else { return Ok(()) };
    let request = swarm::read_request(&mut stream)?;
    let peers = note(swarm, *from.ip(), &request, Instant::now());
    swarm::write_answer(&mut stream, request.starts_with("GET /announce"), &peers)
}

/// Takes an announce in; gives all others.
fn note(swarm: &Swarm, from: Ipv4Addr, request: &str, now: Instant) -> Vec<SocketAddrV4> {
    let mut swarm = swarm.lock().expect("invariant: no panic while it is held");
    let port = parameter(request, "port").and_then(|port| port.parse().ok());
    match (parameter(request, "event"), port) {
        (Some("stopped"), _) | (_, None) => drop(swarm.remove(&from)),
        (event, Some(port)) => {
            let known = swarm.entry(from).or_insert(Known { port, completed: None });
            known.port = port;
            // One that misses its event says it with the next announce.
            let is_complete = event == Some("completed") || parameter(request, "left") == Some("0");
            if is_complete && known.completed.is_none() {
                known.completed = Some(now);
            }
        }
    }
    let others = swarm.iter().filter(|(address, _)| **address != from);
    others.map(|(address, known)| SocketAddrV4::new(*address, known.port)).collect()
}

fn parameter<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let query = request.split(' ').nth(1)?.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announce_is_noted_and_the_others_are_named() {
        let swarm = Swarm::default();
        let now = Instant::now();
        let request = |rest: &str| format!("GET /announce?info_hash=x&port=6881{rest} HTTP/1.1");
        let one = address(0);
        let two = address(1);
        assert!(note(&swarm, one, &request("&left=5&event=started"), now).is_empty());
        let others = note(&swarm, two, &request("&left=5"), now);
        assert_eq!(others, [SocketAddrV4::new(one, 6881)]);
        let completed = |of: Ipv4Addr| swarm.lock().expect("held by nobody")[&of].completed;
        assert_eq!((completed(one), completed(two)), (None, None));
        note(&swarm, one, &request("&left=0"), now);
        note(&swarm, two, &request("&left=3&event=completed"), now);
        assert!(completed(one).is_some() && completed(two).is_some());
        note(&swarm, one, &request("&left=0&event=stopped"), now);
        assert!(note(&swarm, two, &request(""), now).is_empty(), "it is gone");
    }
}
