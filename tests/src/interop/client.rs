//! Owns: how each client is told to fetch a torrent and how it says that it has it.
//! Never: changes a client's way with peers, beyond switching off DHT, LSD and PEX, so that what
//! arrives came by way of the tracker under test.
//! Flow: [`Client::fetch`] starts the program, asks its real interface, ends it.

use super::{Host, Process, python, script, wait_until};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const START_LIMIT: Duration = Duration::from_secs(30);
const WEB_PORT: u16 = 8080;
pub(super) const PEER_PORT: u16 = 51413;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Qbittorrent,
    Transmission,
    Aria2,
    Rtorrent,
    Libtorrent,
}

/// What a client is given.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    Torrent(&'a Path),
    Magnet(&'a str),
}

impl Source<'_> {
    fn argument(self) -> Result<String> {
        match self {
            Self::Torrent(path) => Ok(path.to_str().context("a path outside UTF-8")?.to_owned()),
            Self::Magnet(link) => Ok(link.to_owned()),
        }
    }
}

impl Client {
    /// Transmission 3.00 does not create files without bytes.
    pub fn skips_empty_files(self) -> bool {
        self == Self::Transmission
    }

    /// Fetches `source` into `copy`, on `host`; `folder` takes logs and settings.
    pub fn fetch(
        self,
        host: &Host,
        folder: &Path,
        copy: &Path,
        source: Source<'_>,
        limit: Duration,
    ) -> Result<()> {
        let fetch = match self {
            Self::Qbittorrent => qbittorrent,
            Self::Transmission => transmission,
            Self::Aria2 => aria2,
            Self::Rtorrent => rtorrent,
            Self::Libtorrent => libtorrent,
        };
        fetch(host, folder, copy, source, limit).with_context(|| format!("{self:?}: {source:?}"))
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path outside UTF-8")
}

/// A qBittorrent that answers on its Web API, whose address is returned.
pub(super) fn start_qbittorrent(host: &Host, folder: &Path) -> Result<(Process, String)> {
    let settings = folder.join("qbittorrent/qBittorrent/config");
    std::fs::create_dir_all(&settings)?;
    std::fs::write(
        settings.join("qBittorrent.conf"),
        format!(
            "[LegalNotice]\nAccepted=true\n\n[BitTorrent]\nSession\\DHTEnabled=false\n\
             Session\\LSDEnabled=false\nSession\\PeXEnabled=false\nSession\\Port={PEER_PORT}\n\n\
             [Preferences]\nWebUI\\LocalHostAuth=false\nWebUI\\Port={WEB_PORT}\n\
             Connection\\UPnP=false\nWebUI\\UseUPnP=false\n"
        ),
    )?;
    let profile = format!("--profile={}", text(&folder.join("qbittorrent"))?);
    let mut command = host.command("qbittorrent-nox");
    // Instances find one another by a socket in the temporary folder, and would hand over.
    command.arg(profile).env("HOME", folder).env("TMPDIR", folder);
    let mut process =
        Process::start("qbittorrent-nox", &mut command, &folder.join("qbittorrent.log"))?;
    let api = format!("http://127.0.0.1:{WEB_PORT}/api/v2");
    let version = format!("{api}/app/version");
    wait_until("qBittorrent's Web API", START_LIMIT, || {
        process.check_running()?;
        Ok(host.http_get(&version).ok())
    })?;
    Ok((process, api))
}

/// Adds a torrent to it; `more` is one form field more.
pub(super) fn add_to_qbittorrent(
    host: &Host,
    api: &str,
    source: Source<'_>,
    save_path: &Path,
    more: &str,
) -> Result<()> {
    let what = match source {
        Source::Torrent(_) => format!("torrents=@{}", source.argument()?),
        Source::Magnet(_) => format!("urls={}", source.argument()?),
    };
    // --form-string would not read the file; a magnet link holds no `@` or `<` at its start.
    let reply = host.output(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "5",
        "--form",
        &what,
        "--form",
        &format!("savepath={}", text(save_path)?),
        "--form",
        more,
        &format!("{api}/torrents/add"),
    ])?;
    if !reply.starts_with(b"Ok") {
        bail!("it refused the torrent: {}", String::from_utf8_lossy(&reply));
    }
    Ok(())
}

/// qBittorrent, driven through its Web API.
fn qbittorrent(
    host: &Host,
    folder: &Path,
    copy: &Path,
    source: Source<'_>,
    limit: Duration,
) -> Result<()> {
    let (mut process, api) = start_qbittorrent(host, folder)?;
    add_to_qbittorrent(host, &api, source, copy, "skip_checking=false")?;
    let list = format!("{api}/torrents/info");
    let done = wait_until("the download", limit, || {
        process.check_running()?;
        let torrents: Value = serde_json::from_slice(&host.http_get(&list)?)?;
        let torrent = &torrents[0];
        // A magnet without its metadata has a progress too; its size is then unknown.
        let complete = torrent["progress"].as_f64() == Some(1.0)
            && torrent["amount_left"].as_i64() == Some(0)
            && torrent["size"].as_i64().unwrap_or(0) > 0
            && torrent["state"].as_str().is_some_and(|state| state.ends_with("UP"));
        Ok(complete.then_some(()))
    });
    if let Err(error) = done {
        let list = host.http_get(&list).unwrap_or_default();
        return Err(process.failure(&format!("{error:#}: {}", String::from_utf8_lossy(&list))));
    }
    process.terminate(START_LIMIT).map(drop)
}

/// Transmission's daemon, once it answers.
pub(super) fn start_transmission(host: &Host, folder: &Path, save: &Path) -> Result<Process> {
    let settings = folder.join("transmission");
    std::fs::create_dir_all(&settings)?;
    let mut command = host.command("transmission-daemon");
    command.args(["--foreground", "--no-dht", "--no-lpd", "--no-portmap", "--no-auth"]);
    command.args(["--config-dir", text(&settings)?, "--download-dir", text(save)?]);
    command.args(["--port", &WEB_PORT.to_string(), "--peerport", &PEER_PORT.to_string()]);
    command.args(["--log-debug", "--no-utp"]).env("HOME", folder);
    let mut process =
        Process::start("transmission-daemon", &mut command, &folder.join("transmission.log"))?;
    wait_until("transmission's RPC", START_LIMIT, || {
        process.check_running()?;
        Ok(transmission_remote(host, &["--session-info"]).ok())
    })?;
    Ok(process)
}

pub(super) fn transmission_remote(host: &Host, arguments: &[&str]) -> Result<String> {
    let port = WEB_PORT.to_string();
    let argv = [&["transmission-remote", &port], arguments].concat();
    Ok(String::from_utf8_lossy(&host.output(&argv)?).into_owned())
}

/// Transmission's daemon, driven by transmission-remote.
fn transmission(
    host: &Host,
    folder: &Path,
    copy: &Path,
    source: Source<'_>,
    limit: Duration,
) -> Result<()> {
    let mut process = start_transmission(host, folder, copy)?;
    let remote = |arguments: &[&str]| transmission_remote(host, arguments);
    remote(&["--add", &source.argument()?])?;
    let done = wait_until("the download", limit, || {
        process.check_running()?;
        let info = remote(&["--torrent", "all", "--info"])?;
        let finished = ["State: Idle", "State: Seeding", "State: Finished"];
        let complete = info.contains("Percent Done: 100%")
            && finished.iter().any(|state| info.contains(state));
        Ok(complete.then_some(()))
    });
    if let Err(error) = done {
        let info = remote(&["--torrent", "all", "--info", "--info-peers"]).unwrap_or_default();
        return Err(process.failure(&format!("{error:#}: {info}")));
    }
    process.terminate(START_LIMIT).map(drop)
}

/// aria2c with `source` and these options more.
pub(super) fn start_aria2(
    host: &Host,
    folder: &Path,
    save: &Path,
    source: Source<'_>,
    more: &[&str],
) -> Result<Process> {
    let mut command = host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false"]).args(more);
    command.args(["--bt-enable-lpd=false", "--enable-peer-exchange=false"]);
    command.args(["--console-log-level=info", "--summary-interval=5", "--file-allocation=none"]);
    command.args([&format!("--listen-port={PEER_PORT}"), "--dir", text(save)?]);
    command.arg(source.argument()?).env("HOME", folder);
    Process::start("aria2c", &mut command, &folder.join("aria2.log"))
}

/// aria2c ends by itself.
fn aria2(
    host: &Host,
    folder: &Path,
    copy: &Path,
    source: Source<'_>,
    limit: Duration,
) -> Result<()> {
    start_aria2(host, folder, copy, source, &["--seed-time=0"])?.wait_success(limit)
}

/// rTorrent with one torrent; it makes the returned file when a download is finished.
pub(super) fn start_rtorrent(
    host: &Host,
    folder: &Path,
    save: &Path,
    torrent: &Path,
) -> Result<(Process, PathBuf)> {
    let state = folder.join("rtorrent");
    let session = state.join("session");
    std::fs::create_dir_all(&session)?;
    let (configuration, finished) = (state.join("rtorrent.rc"), state.join("finished"));
    std::fs::write(
        &configuration,
        format!(
            "system.daemon.set = true\nsession.path.set = {session}\n\
             directory.default.set = {copy}\nnetwork.port_range.set = {PEER_PORT}-{PEER_PORT}\n\
             dht.mode.set = disable\nprotocol.pex.set = no\ntrackers.use_udp.set = no\n\
             pieces.hash.on_completion.set = yes\nlog.open_file = \"log\", {log}\n\
             log.add_output = \"info\", \"log\"\nlog.add_output = \"tracker_info\", \"log\"\n\
             method.set_key = event.download.finished, done, \
             \"execute.nothrow=touch,{finished}\"\n\
             load.start = {torrent}\n",
            session = text(&session)?,
            copy = text(save)?,
            log = text(&state.join("events.log"))?,
            finished = text(&finished)?,
            torrent = text(torrent)?,
        ),
    )?;
    let mut command = host.command("rtorrent");
    command.args(["-n", "-o", &format!("import={}", text(&configuration)?)]);
    command.env("HOME", folder).env("TERM", "xterm");
    let process = Process::start("rtorrent", &mut command, &folder.join("rtorrent.log"))?;
    Ok((process, finished))
}

/// rTorrent, which says by an event command that a download is finished.
fn rtorrent(
    host: &Host,
    folder: &Path,
    copy: &Path,
    source: Source<'_>,
    limit: Duration,
) -> Result<()> {
    let Source::Torrent(torrent) = source else {
        bail!("rTorrent is given .torrent files only");
    };
    let (mut process, finished) = start_rtorrent(host, folder, copy, torrent)?;
    let done = wait_until("the download", limit, || {
        process.check_running()?;
        Ok(finished.exists().then_some(()))
    });
    if let Err(error) = done {
        let log = folder.join("rtorrent/events.log");
        let events = std::fs::read_to_string(log).unwrap_or_default();
        return Err(process.failure(&format!("{error:#}\n{events}")));
    }
    process.terminate(START_LIMIT).map(drop)
}

/// libtorrent through its Python binding.
fn libtorrent(
    host: &Host,
    folder: &Path,
    copy: &Path,
    source: Source<'_>,
    limit: Duration,
) -> Result<()> {
    let mut command = host.command(python()?);
    command.arg(script("libtorrent_leech.py")).arg(source.argument()?).arg(copy);
    // Every address, as by default: on loopback it reaches a tracker that listens there.
    command.arg(format!("0.0.0.0:{PEER_PORT}"));
    Process::start("libtorrent", &mut command, &folder.join("libtorrent.log"))?.wait_success(limit)
}
