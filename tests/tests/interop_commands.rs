//! Owns: what users tell a running engine, and `seedring download`, with real clients as seeds:
//! commands, selections, priorities, order, progress, going on after an end, a seed that vanishes.
//! Never: looks into the engine: what commands print and the files say is all there is.
//! Flow: a client seeds, slowly where something is to happen meanwhile -> commands -> files and
//! what commands report.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use seedring_tests::interop::{
    Client, ControlledSeed, Downloader, Has, Place, Process, RunningClient, SeedingClient, Source,
    Swarm, seedring_binary, wait_until,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(30);

/// Hosts.
const SEED: usize = 0;
const ENGINE: usize = 1;
const OTHER: usize = 2;

/// Of the content, by far the largest.
const MAIN: &str = "main.bin";
const SECOND: &str = "nested/größe/данные 日本語.bin";

fn swarm(test: &str, piece_bytes: u32) -> Result<Swarm> {
    Swarm::new(TMP, &format!("commands-{test}"), 3, piece_bytes)
}

/// A seed that gives so many bytes a second; the tracker knows of it.
fn slow_seed(swarm: &mut Swarm, bytes_per_s: u32) -> Result<ControlledSeed> {
    let folder = swarm.scratch.folder("seed")?;
    let (host, content, torrent) = (swarm.host(SEED), &swarm.content, &swarm.torrent);
    let seed = ControlledSeed::slow(&host, &folder, content, torrent, bytes_per_s)?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
    Ok(seed)
}

fn seed(swarm: &mut Swarm, client: Client) -> Result<SeedingClient> {
    let folder = swarm.scratch.folder("seed")?;
    let (host, content, torrent) = (swarm.host(SEED), &swarm.content, &swarm.torrent);
    let seed = SeedingClient::start(client, &host, &folder, content, torrent)?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
    Ok(seed)
}

fn engine(swarm: &Swarm) -> Result<(Downloader, Place)> {
    let place = swarm.place("engine", ENGINE, Has::Nothing)?;
    Ok((Downloader::idle(&place.host, &place.folder)?, place))
}

fn as_text(path: &Path) -> Result<&str> {
    path.to_str().context("a path outside UTF-8")
}

/// `files --json`: of each path, what is had and what priority it has.
fn had(engine: &Downloader, path: &str) -> Result<(u64, u64, Option<u64>)> {
    let report: Value = serde_json::from_str(&engine.command(&["files", "mixed", "--json"])?)?;
    let files = report["files"].as_array().context("no files")?;
    let file = files.iter().find(|file| file["path"].as_str().is_some_and(|p| p.ends_with(path)));
    let file = file.with_context(|| format!("{path} is not listed: {report}"))?;
    let number = |key: &str| file[key].as_u64();
    let (had, length) = (number("had_bytes"), number("length"));
    Ok((had.context("had_bytes")?, length.context("length")?, number("priority")))
}

/// Every command that a torrent can be told, from its beginning to its end.
#[test]
fn a_torrents_life_by_commands() -> Result<()> {
    let mut swarm = swarm("life", 0)?;
    let seed = slow_seed(&mut swarm, 4 << 20)?;
    let (mut engine, place) = engine(&swarm)?;
    let (torrent, save) = (as_text(&swarm.torrent)?, as_text(&place.save)?);
    let added = engine.command(&["add", torrent, "--to", save, "--label", "tv"])?;
    ensure!(added.starts_with(&swarm.info_hash) && added.contains("added"), "{added}");
    let again = engine.command(&["add", torrent, "--to", save]);
    ensure!(again.is_err(), "it was added twice: {again:?}");
    let some = |torrent: &Value| torrent["downloaded_bytes"].as_u64().unwrap_or(0) > 1 << 20;
    let seen = engine.wait("a MiB of it", LIMIT, some)?;
    ensure!(seen["state"] == "downloading" && seen["labels"][0] == "tv", "{seen}");
    let listed = engine.command(&["list"])?;
    ensure!(listed.contains("mixed") && listed.contains("downloading"), "{listed}");
    let shown = engine.command(&["show", "mixed"])?;
    let seed_address = swarm.host(SEED).address().to_string();
    ensure!(shown.contains(&seed_address) && shown.contains("libtorrent"), "{shown}");
    let files = engine.command(&["files", "mixed"])?;
    ensure!(files.contains(MAIN) && files.contains(SECOND), "{files}");

    engine.command(&["pause", "mixed"])?;
    let paused = engine.wait("the pause", LIMIT, |torrent| torrent["connections"] == 0)?;
    std::thread::sleep(Duration::from_millis(1_500));
    let later = engine.torrent()?;
    ensure!(later["state"] == "paused", "{later}");
    ensure!(later["downloaded_bytes"] == paused["downloaded_bytes"], "{paused}\n{later}");
    ensure!(later["missing_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "too late: {later}");
    engine.command(&["resume", "mixed"])?;
    seed.unleash()?;
    engine.wait_complete(LIMIT)?;
    swarm.check(&place.save, None)?;

    // What nobody could see by looking at times and lengths.
    spoil(&place.save.join("mixed").join(MAIN), 5_000_000)?;
    engine.command(&["recheck", &swarm.info_hash[..8]])?;
    let total = swarm.content.bytes();
    engine.wait("the bad piece to be fetched again", LIMIT, |torrent| {
        torrent["state"] == "seeding" && torrent["downloaded_bytes"].as_u64() > Some(total)
    })?;
    swarm.check(&place.save, None)?;

    let removed = engine.command(&["remove", "mixed", "--delete-content"])?;
    ensure!(removed.contains("removed"), "{removed}");
    ensure!(engine.torrent().is_err(), "it is listed still");
    let gone = || Ok((!place.save.join("mixed").exists()).then_some(()));
    wait_until("the files to go", LIMIT, gone)?;
    seed.stop().map(drop)
}

/// Changes a byte and gives the file its old time back.
fn spoil(path: &Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let before = std::fs::metadata(path)?.modified()?;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(file.set_modified(before)?)
}

/// First a file, by a magnet link, then the others as well.
#[test]
fn files_are_chosen_and_chosen_anew() -> Result<()> {
    let mut swarm = swarm("chosen", 0)?;
    let _seed = seed(&mut swarm, Client::Qbittorrent)?;
    let (mut engine, place) = engine(&swarm)?;
    engine.command(&["add", &swarm.magnet, "--to", as_text(&place.save)?, "--only", SECOND])?;
    engine.wait_complete(LIMIT)?;
    let (bytes, length, priority) = had(&engine, SECOND)?;
    ensure!(bytes == length && priority == Some(4), "{bytes} of {length}, {priority:?}");
    let (bytes, length, priority) = had(&engine, MAIN)?;
    ensure!(bytes < length / 10 && priority == Some(0), "{bytes} of {length}, {priority:?}");
    let copy = |name: &str| place.save.join("mixed").join(name);
    let original = |name: &str| swarm.content.root().join(name);
    ensure!(std::fs::read(copy(SECOND))? == std::fs::read(original(SECOND))?, "another file");
    ensure!(!copy("zz-последний 🌱.txt").exists(), "a file that is not wanted, nor a neighbour");

    engine.command(&["files", "mixed", "--priority", "4", "*"])?;
    engine.wait("all", LIMIT, |torrent| {
        torrent["state"] == "seeding" && torrent["pieces_verified"] == torrent["pieces"]
    })?;
    swarm.check(&place.save, None)
}

/// Of two files, the later one is wanted more.
#[test]
fn what_is_wanted_more_comes_first() -> Result<()> {
    let mut swarm = swarm("priorities", 0)?;
    let seed = slow_seed(&mut swarm, 2 << 20)?;
    let (mut engine, place) = engine(&swarm)?;
    let torrent = as_text(&swarm.torrent)?;
    engine.command(&["add", torrent, "--to", as_text(&place.save)?, "--paused"])?;
    engine.wait("the pause", LIMIT, |torrent| torrent["state"] == "paused")?;
    engine.command(&["files", "mixed", "--priority", "7", SECOND])?;
    engine.command(&["files", "mixed", "--priority", "1", MAIN])?;
    engine.command(&["resume", "mixed"])?;
    let (other, length) = wait_until("the file that is wanted most", LIMIT, || {
        let (bytes, length, _) = had(&engine, SECOND)?;
        let (other, other_length, _) = had(&engine, MAIN)?;
        Ok((bytes == length).then_some((other, other_length)))
    })?;
    ensure!(other < length / 8, "{other} of {length} bytes of what is wanted least came before");
    seed.unleash()?;
    engine.wait_complete(LIMIT)?;
    swarm.check(&place.save, None)
}

#[test]
fn sequential_is_from_the_front_to_the_end() -> Result<()> {
    let mut swarm = swarm("sequential", 0)?;
    let seed = slow_seed(&mut swarm, 4 << 20)?;
    let (mut engine, place) = engine(&swarm)?;
    let (torrent, save) = (as_text(&swarm.torrent)?, as_text(&place.save)?);
    engine.command(&["add", torrent, "--to", save, "--sequential"])?;
    // The torrent's files are sorted: main.bin comes before nested/.
    wait_until("half of the first large file", LIMIT, || {
        let (first, length, _) = had(&engine, MAIN)?;
        let (second, ..) = had(&engine, SECOND)?;
        ensure!(second == 0 || first > length * 9 / 10, "{second} bytes before {first}");
        Ok((first > length / 2).then_some(()))
    })?;
    seed.unleash()?;
    engine.wait_complete(LIMIT)?;
    swarm.check(&place.save, None)
}

/// `seedring download` as on a terminal: its whole output goes to a file.
fn on_a_terminal(swarm: &Swarm, place: &Place, more: &[&str]) -> Result<(Command, PathBuf)> {
    let mut words = vec![String::from("exec"), quoted(as_text(&seedring_binary()?)?)];
    words.extend(["download", as_text(&swarm.torrent)?, "--to", as_text(&place.save)?].map(quoted));
    words.push(format!("--listen {}:6881", place.host.address()));
    words.push(format!("--state-dir {}", quoted(as_text(&place.folder.join("state"))?)));
    words.extend(more.iter().map(|word| quoted(word)));
    let screen = place.folder.join("screen");
    let mut command = place.host.command("script");
    command.args(["--quiet", "--flush", "--return", "--command", &words.join(" ")]).arg(&screen);
    command.env("TERM", "xterm");
    Ok((command, screen))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// It shows how far it is, is stopped in the middle, goes on where it was, ends with success, and
/// has nothing to do then.
#[test]
fn the_command_goes_on_where_it_was() -> Result<()> {
    let mut swarm = swarm("goes-on", 0)?;
    let seed = slow_seed(&mut swarm, 2 << 20)?;
    let place = swarm.place("engine", ENGINE, Has::Nothing)?;
    let log = place.folder.join("seedring.log");
    let (mut command, screen) = on_a_terminal(&swarm, &place, &[])?;
    let mut process = Process::start("seedring download", &mut command, &log)?;
    let shown = |text: &str| text.contains("downloading mixed [") && text.contains("MiB/s, ");
    let text = wait_until("a rate on the terminal", LIMIT, || {
        process.check_running()?;
        let text =
            String::from_utf8_lossy(&std::fs::read(&screen).unwrap_or_default()).into_owned();
        Ok(shown(&text).then_some(text))
    })?;
    for part in ["% ", " left", " of 359 pieces", "1 peers"] {
        ensure!(text.contains(part), "{part} is not shown: {text:?}");
    }
    let mut engine = Downloader::at(&place.folder.join("state"), process);
    wait_until("a third of it", LIMIT, || {
        let had = engine.number("total_bytes").saturating_sub(engine.number("missing_bytes"));
        Ok((had > swarm.content.bytes() / 3).then_some(()))
    })?;
    // As Ctrl-C does.
    engine.process().signal_child(Signal::INT)?;
    engine.process().wait(LIMIT)?;

    let (mut command, _) = on_a_terminal(&swarm, &place, &[])?;
    let mut process = Process::start("seedring download", &mut command, &log)?;
    seed.unleash()?;
    process.wait_success(LIMIT).context("the second run")?;
    swarm.check(&place.save, None)?;
    let sent = seed.stop()?;
    let twice = sent.saturating_sub(swarm.content.bytes());
    ensure!(twice < 1 << 20, "{twice} bytes were fetched twice");
    let (mut command, _) = on_a_terminal(&swarm, &place, &[])?;
    Process::start("seedring download", &mut command, &log)?.wait_success(LIMIT)
}

/// `--seed`: it stays when all is there, and another client gets everything from it.
#[test]
fn the_command_seeds_on() -> Result<()> {
    let mut swarm = swarm("seeds-on", 0)?;
    let first = seed(&mut swarm, Client::Aria2)?;
    let place = swarm.place("engine", ENGINE, Has::Nothing)?;
    let source = &swarm.magnet;
    let more = ["--seed", "--upload", "64MiB/s"];
    let mut engine =
        Downloader::start_once(&place.host, &place.folder, source, &place.save, &more)?;
    engine.wait_complete(LIMIT)?;
    first.stop()?;
    let leech = swarm.place("leech", OTHER, Has::Nothing)?;
    let (torrent, save) = (Source::Torrent(&swarm.torrent), leech.save.clone());
    let mut running = RunningClient::start(Client::Libtorrent, leech, torrent)?;
    running.wait_complete(LIMIT)?;
    running.stop()?;
    swarm.check(&save, Some(Client::Libtorrent))?;
    swarm.check(&place.save, None)?;
    let ended = engine.process().terminate(LIMIT)?;
    ensure!(ended.success(), "stopped while it seeds, it ends with {ended}");
    Ok(())
}

/// The seed is gone in the middle of large pieces: by its end, of which we hear, or unplugged.
/// Another one comes and is asked for the rest of them; what was gathered is not fetched again.
fn vanishes(test: &str, unplug: bool, next: Client) -> Result<()> {
    const PIECE: u32 = 4 << 20;
    let mut swarm = swarm(test, PIECE)?;
    let seed = slow_seed(&mut swarm, 2 << 20)?;
    let (mut engine, place) = engine(&swarm)?;
    engine.command(&["add", as_text(&swarm.torrent)?, "--to", as_text(&place.save)?])?;
    let half = u64::from(PIECE) * 3 / 2;
    engine.wait("a piece and a half", LIMIT, |torrent| {
        torrent["downloaded_bytes"].as_u64().is_some_and(|bytes| bytes > half)
    })?;
    match unplug {
        true => swarm.network.unplug(SEED)?,
        false => drop(seed.stop()?),
    }
    let other = Place { has: Has::All, ..swarm.place("other", OTHER, Has::All)? };
    let save = swarm.content.root().parent().context("content has a folder")?.to_path_buf();
    let place_of_next = Place { save, ..other };
    let _next = RunningClient::start(next, place_of_next, Source::Torrent(&swarm.torrent))?;
    engine.wait_complete(LIMIT)?;
    swarm.check(&place.save, None)?;
    let total = engine.number("downloaded_bytes");
    let twice = total.saturating_sub(swarm.content.bytes());
    println!("  {twice} bytes were fetched twice");
    ensure!(twice < 1 << 20, "{twice} bytes were fetched twice");
    Ok(())
}

#[test]
fn a_seed_that_ends_in_the_middle_of_a_piece() -> Result<()> {
    vanishes("ends", false, Client::Rtorrent)
}

#[test]
fn a_seed_that_is_unplugged_in_the_middle_of_a_piece() -> Result<()> {
    vanishes("unplugged", true, Client::Qbittorrent)
}
