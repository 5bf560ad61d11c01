//! Owns: how each downloader is started, and what says that it is done.
//! Never: measures. Flow: preset -> `start` -> `Running` and its `Done` -> follow.

use std::{
    fs,
    net::SocketAddrV4,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cores, Options,
    follow::Done,
    kind::Kind,
    on_cores,
    target::{Running, Script, absolute, script, spawn},
};

const LIBTORRENT_DOWNLOAD: Script =
    ("libtorrent_download.py", include_str!("../../rivals/libtorrent_download.py"));

/// Where one download runs and where its content goes: fresh each time.
pub struct Place {
    pub run: PathBuf,
    pub content: PathBuf,
}

impl Place {
    pub fn fresh(options: &Options, kind: Kind) -> Result<Self> {
        let run = options.run_folder(&format!("download-{kind:?}").to_lowercase())?;
        let content = run.join("content");
        fs::create_dir_all(&content)?;
        Ok(Place { run, content })
    }
}

/// Why a target that is installed cannot download, if so.
pub fn can_download(kind: Kind, options: &Options) -> Result<()> {
    if kind == Kind::Seedring {
        let output = Command::new(&options.site.seedring).args(["download", "--help"]).output()?;
        ensure!(output.status.success(), "this build has no `download`");
    }
    Ok(())
}

pub fn start(
    kind: Kind,
    options: &Options,
    peers: &[SocketAddrV4],
    torrent: &Path,
    place: &Place,
) -> Result<(Running, Done)> {
    let mut command = command(kind, options, peers, torrent, place)?;
    let done = match kind {
        Kind::Transmission => Done::File(place.run.join("done")),
        _ => Done::Exit,
    };
    command.current_dir(&place.run).env("HOME", &place.run);
    Ok((spawn(command, &place.run)?, done))
}

fn command(
    kind: Kind,
    options: &Options,
    peers: &[SocketAddrV4],
    torrent: &Path,
    place: &Place,
) -> Result<Command> {
    let core = Cores::one(options.site.server_core);
    let target = options.target();
    let (address, port) = (target.ip().to_string(), target.port().to_string());
    let mut command;
    match kind {
        Kind::Seedring => {
            let program = options.site.seedring.canonicalize();
            command = on_cores(&program.context("cargo build --release")?, &core);
            command.arg("download").arg(torrent).arg("--to").arg(&place.content);
            // Below HOME its control socket's path may be too long for a socket (107 bytes).
            command.arg("--state-dir").arg(place.run.join("state"));
        }
        Kind::Libtorrent => {
            command = on_cores(&absolute(&options.site.python), &core);
            command.arg(script(options, LIBTORRENT_DOWNLOAD)?).arg(torrent).arg(&place.content);
            command.arg(target.to_string());
        }
        Kind::Transmission => {
            transmission_settings(place)?;
            command = on_cores(&absolute(&options.site.transmission), &core);
            command.args(["--no-portmap", "--port", &port, "--config-dir"]).arg(&place.run);
            command.arg("--download-dir").arg(&place.content).arg(torrent);
        }
        Kind::Rqbit => {
            command = on_cores(&absolute(&options.site.rqbit), &core);
            command.args(["-v", "error", "--disable-dht", "--disable-lsd", "--ipv4-only"]);
            command.args(["--disable-upnp-port-forward"]);
            command.args(["--listen-ip", &address, "--listen-port", &port]);
            command.args(["download", "--exit-on-finish", "--disable-http-api", "-o"]);
            command.arg(&place.content).arg(torrent);
        }
        // Its library knows no tracker: it is told.
        Kind::Vortex => {
            command = on_cores(&absolute(options.site.vortex()), &core);
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            command.args(["--listen", &target.to_string(), "--peers", &peers.join(",")]);
            command.arg(torrent).arg(&place.content);
        }
        Kind::Aria2 => {
            command = on_cores(&absolute(&options.site.aria2), &core);
            command.args(["--no-conf", "--quiet", "--seed-time=0", "--enable-dht=false"]);
            command.args(["--enable-dht6=false", "--bt-enable-lpd=false"]);
            command.args(["--enable-peer-exchange=false", "--disable-ipv6"]);
            // Its own default asks for new peers below 50 KiB/s only, and keeps at most 55.
            command.args(["--bt-max-peers=0", "--file-allocation=falloc"]);
            command.arg(format!("--listen-port={port}")).arg("--dir").arg(&place.content);
            command.arg(torrent);
        }
        Kind::Iperf3
        | Kind::Nginx
        | Kind::Bare
        | Kind::SeedringEpoll
        | Kind::TokioUring
        | Kind::Qbittorrent
        | Kind::Rtorrent
        | Kind::Sha1sum => bail!("{kind} has no part in downloading"),
    }
    Ok(command)
}

/// It runs on when it is done, and tells a script.
fn transmission_settings(place: &Place) -> Result<()> {
    let script = place.run.join("done.sh");
    fs::write(&script, format!("#!/bin/sh\n: > '{}'\n", place.run.join("done").display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let settings = include_str!("../../rivals/transmission.json");
    let settings = settings.replace("{script}", &script.display().to_string());
    fs::write(place.run.join("settings.json"), settings)?;
    Ok(())
}
