//! Owns: the network namespace that comparisons run in: loopback alone, many addresses, cubic.
//! Never: touches the host's network or its settings. Flow: run_inside -> (again) prepare ->
//! preset.
//!
//! Congestion control is set by route, because a namespace may only choose among the algorithms
//! that the host allows everyone, and a host may run bbr, which without fq costs a timer a segment.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};

use crate::cut;

/// Runs this very command once more, in a namespace of its own. A signal is passed on, and should
/// this process be killed, the comparison is told to end.
pub fn run_inside() -> Result<ExitCode> {
    run_inside_with(std::env::args_os().skip(1).collect()).map(ExitCode::from)
}

/// The same with these arguments; gives the exit status.
pub fn run_inside_with(mut arguments: Vec<OsString>) -> Result<u8> {
    // Behind the subcommands, however many; what follows a `--` is no option.
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.insert(end, "--inside".into());
    let this = std::env::current_exe().context("the path of this program")?;
    let mut inside = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "unshare", "--net", "--"])
        .arg(this)
        .args(arguments)
        .process_group(0)
        .spawn()
        .context("cannot run setpriv: install util-linux")?;
    cut::forward(&inside)?;
    let status = inside.wait()?;
    match status.code() {
        Some(0) => Ok(0),
        Some(code) => {
            if !rustix::process::geteuid().is_root() {
                eprintln!("compare makes a network namespace and sets priorities: run it as root");
            }
            Ok(u8::try_from(code).unwrap_or(1))
        }
        None => bail!("the comparison was ended by a signal"),
    }
}

/// The targets' address; every other one of its /16 is the load's.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Loopback up, 10.77.0.0/16 on it, cubic on every local route. Says which algorithm is in use.
pub fn prepare() -> Result<String> {
    ip("link set lo up")?;
    ip("addr add 10.77.0.1/16 dev lo")?;
    for route in ["10.77.0.0/16", "10.77.0.1", "127.0.0.0/8", "127.0.0.1"] {
        ip(&format!(
            "route change local {route} dev lo proto kernel scope host table local congctl cubic"
        ))?;
    }
    let used = congestion(ADDRESS.into())?;
    ensure!(used.starts_with("cubic"), "congestion control is {used}, not cubic: load tcp_cubic");
    Ok("cubic".into())
}

/// What a server that listens on this address of ours uses.
pub fn congestion(address: IpAddr) -> Result<String> {
    let listener = TcpListener::bind((address, 0))
        .with_context(|| format!("cannot listen on {address}: is it this machine's?"))?;
    let _client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok(rustix::net::sockopt::tcp_congestion(&server)?)
}

pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("cannot run ip: install iproute2")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
