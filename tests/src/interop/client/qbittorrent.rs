//! Owns: qBittorrent's ways: a profile, its Web API. Never: a window.
//! Flow: `client.rs`.

use super::{PEER_PORT, Place, START_LIMIT, Source, WEB_PORT, text};
use crate::interop::{Has, Process, wait_until};
use anyhow::{Result, bail};
use serde_json::Value;

fn api(what: &str) -> String {
    format!("http://127.0.0.1:{WEB_PORT}/api/v2/{what}")
}

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let Place { host, folder, .. } = place;
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
    wait_until("qBittorrent's Web API", START_LIMIT, || {
        process.check_running()?;
        Ok(host.http_get(&api("app/version")).ok())
    })?;
    add(place, source)?;
    Ok(process)
}

fn add(place: &Place, source: Source<'_>) -> Result<()> {
    let what = match source {
        Source::Torrent(_) => format!("torrents=@{}", source.argument()?),
        Source::Magnet(_) => format!("urls={}", source.argument()?),
    };
    // --form-string would not read the file; a magnet link holds no `@` or `<` at its start.
    let reply = place.host.output(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "5",
        "--form",
        &what,
        "--form",
        &format!("savepath={}", text(&place.save)?),
        "--form",
        &format!("skip_checking={}", place.has == Has::All),
        &api("torrents/add"),
    ])?;
    if !reply.starts_with(b"Ok") {
        bail!("it refused the torrent: {}", String::from_utf8_lossy(&reply));
    }
    Ok(())
}

pub(super) fn is_complete(place: &Place) -> Result<bool> {
    let torrents: Value = serde_json::from_slice(&place.host.http_get(&api("torrents/info"))?)?;
    let torrent = &torrents[0];
    // A magnet without its metadata has a progress too; its size is then unknown.
    Ok(torrent["progress"].as_f64() == Some(1.0)
        && torrent["amount_left"].as_i64() == Some(0)
        && torrent["size"].as_i64().unwrap_or(0) > 0
        && torrent["state"].as_str().is_some_and(|s| s == "uploading" || s.ends_with("UP")))
}

pub(super) fn state(place: &Place) -> String {
    let list = place.host.http_get(&api("torrents/info")).unwrap_or_default();
    String::from_utf8_lossy(&list).into_owned()
}
