//! Owns: what a downloading engine does when its save folder can't take more, and what it does
//! with a finished download that somebody cut.
//! Never: restarts the engine to help it, where it has to go on by itself.
//! Flow: the save folder is a file system of the test's own, remounted under the engine.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Process, Scratch, seedring_binary, wait_until};
use seedring_tests::live::peer::BLOCK_BYTES;
use seedring_tests::live::{
    Engine, Manner, Message, Peer, Seed, SingleFile, SmallDisk, loopback_address,
};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const PIECE_BYTES: usize = 64 << 10;
const LENGTH: usize = 12 << 20;
const SOON: Duration = Duration::from_secs(20);
/// A halted download looks every few seconds whether it can go on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);

struct Setup {
    /// Before `scratch`: unmounted before its folder is removed.
    disk: SmallDisk,
    file: Arc<SingleFile>,
    /// Seeded all the while, from another disk.
    other: SingleFile,
    address: Ipv4Addr,
    scratch: Scratch,
}

impl Setup {
    fn new(test: &str, mib: u32) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let source = scratch.folder("source")?;
        let file = SingleFile::make_in_pieces(&source, "file.bin", LENGTH, "", PIECE_BYTES)?;
        let other = SingleFile::make(&source, "other.bin", 100_000, "")?;
        let disk = SmallDisk::mount(&scratch.folder("copy")?, mib)?;
        Ok(Self { disk, file: Arc::new(file), other, address: loopback_address(), scratch })
    }

    fn start(&self) -> Result<Engine> {
        let download = self.file.download_entry(self.disk.path())?;
        let yaml = format!("torrents:\n{download}{}", self.other.entry("full")?);
        Engine::start(self.scratch.path(), self.address, &yaml)
    }

    fn honest(&self, engine: &Engine) -> Seed {
        Seed::start(&self.file, engine.address(), loopback_address(), Manner::Honest)
    }

    /// Waits until the download says that it is halted, for this reason.
    fn wait_halted(&self, engine: &mut Engine, reason: &str) -> Result<Value> {
        let torrent = engine.wait_for_state(&self.file.info_hash, "halted", SOON)?;
        let detail = torrent["detail"].as_str().unwrap_or_default().to_owned();
        ensure!(detail.contains(reason), "`{reason}` is not in the detail `{detail}`");
        ensure!(torrent["missing_bytes"].as_u64() > Some(0), "{torrent}");
        engine.wait_for_text(&["file.bin", reason])?;
        Ok(torrent)
    }

    /// Both the other torrent and the pieces that are there are served.
    fn check_uploads(&self, engine: &Engine) -> Result<()> {
        self.other.check_served(engine.address()).context("the other torrent")?;
        let mut peer = Peer::greet(engine.address(), &self.file.info_hash)?;
        let had = self.first_piece_of(&mut peer)?;
        peer.send(2, &[])?;
        peer.wait_for("an unchoke", |message| *message == Message::Unchoke)?;
        self.file.check_block(&mut peer, had, 0).context("a piece of the halted download")
    }

    /// A piece that the engine says it has.
    fn first_piece_of(&self, peer: &mut Peer) -> Result<u32> {
        let opening = peer.wait_for("a bitfield", |message| {
            matches!(message, Message::Bitfield(_) | Message::HaveAll | Message::HaveNone)
        })?;
        match opening {
            Message::HaveAll => Ok(0),
            Message::Bitfield(bits) => (0..self.file.piece_count())
                .find(|piece| bits[*piece as usize / 8] & (0x80 >> (piece % 8)) != 0)
                .context("a bitfield without a piece"),
            _ => anyhow::bail!("the halted download has no piece"),
        }
    }

    fn wait_complete(&self, engine: &mut Engine) -> Result<()> {
        engine.wait_for_state(&self.file.info_hash, "seeding", GOES_ON_WITHIN)?;
        self.file.check_copy(self.disk.path())
    }
}

#[test]
fn a_full_disk_halts_the_download_until_there_is_room() -> Result<()> {
    let setup = Setup::new("disk_full", 8)?;
    let mut engine = setup.start()?;
    let honest = setup.honest(&engine);
    setup.wait_halted(&mut engine, "no space")?;
    setup.check_uploads(&engine)?;
    // Nothing is fetched that can't be kept.
    honest.take_sent();
    std::thread::sleep(Duration::from_secs(2));
    let sent = honest.take_sent().len();
    ensure!(sent <= 64, "{sent} blocks were fetched in 2 s while halted");
    setup.disk.resize(64)?;
    setup.wait_complete(&mut engine)?;
    engine.stop().map(drop)
}

/// On a terminal, `seedring download` says that it is halted as long as it is, and no longer.
#[test]
fn a_terminal_shows_a_halt_until_it_is_over() -> Result<()> {
    let setup = Setup::new("halt_shown", 8)?;
    let address = SocketAddr::from((setup.address, 6881));
    let (screen, state) = (setup.scratch.path().join("screen"), setup.scratch.path().join("state"));
    let words = format!(
        "exec '{}' download '{}' --to '{}' --listen {address} --state-dir '{}'",
        seedring_binary()?.display(),
        setup.file.torrent.display(),
        setup.disk.path().display(),
        state.display(),
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "script", "--quiet", "--flush", "--return"]);
    command.args(["--command", &words]).arg(&screen).env("TERM", "xterm");
    let log = setup.scratch.path().join("seedring.log");
    let mut process = Process::start("seedring download", &mut command, &log)?;
    let seed = Seed::start(&setup.file, address, loopback_address(), Manner::Honest);
    let shown = || {
        let bytes = std::fs::read(&screen).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    wait_until("the halt on the terminal", SOON, || {
        process.check_running()?;
        Ok(shown().contains("file.bin is halted: no space left").then_some(()))
    })?;
    seed.set_rate(1 << 20);
    setup.disk.resize(64)?;
    process.wait_success(GOES_ON_WITHIN)?;
    setup.file.check_copy(setup.disk.path())?;
    let text = shown();
    ensure!(text.contains("the download goes on"), "{text}");
    let last = text.rfind("is halted").context("seen above")?;
    let after = text[last..].matches("downloading file.bin [").count();
    ensure!(after >= 2, "it is shown until the end: {text}");
    Ok(())
}

#[test]
fn a_read_only_file_system_loses_nothing_and_is_waited_for() -> Result<()> {
    let setup = Setup::new("read_only", 64)?;
    let mut engine = setup.start()?;
    let honest = setup.honest(&engine);
    honest.set_rate(2 << 20);
    wait_until("the first half", SOON, || {
        engine.process().check_running()?;
        let torrent = engine.torrent(&setup.file.info_hash).ok().flatten().unwrap_or_default();
        let missing = torrent["missing_bytes"].as_u64().unwrap_or(u64::MAX);
        Ok((missing < LENGTH as u64 / 2).then_some(()))
    })?;
    drop(honest);
    engine.stop()?;
    setup.disk.set_read_only(true)?;
    let before = std::fs::read(setup.disk.path().join(&setup.file.name))?;

    let mut engine = setup.start()?;
    let _honest = setup.honest(&engine);
    setup.wait_halted(&mut engine, "read-only")?;
    setup.check_uploads(&engine)?;
    let after = std::fs::read(setup.disk.path().join(&setup.file.name))?;
    ensure!(before == after, "it was written to");
    setup.disk.set_read_only(false)?;
    setup.wait_complete(&mut engine)?;
    engine.stop().map(drop)
}

#[test]
fn a_finished_download_that_was_cut_is_named_and_not_served() -> Result<()> {
    let setup = Setup::new("cut_download", 64)?;
    let mut engine = setup.start()?;
    let honest = setup.honest(&engine);
    setup.wait_complete(&mut engine)?;
    drop(honest);
    let path = setup.disk.path().join(&setup.file.name);
    let length = LENGTH as u64 / 2 + 1_000;
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(length)?;
    // What is gone is not served from then on; the engine compares files each second.
    std::thread::sleep(Duration::from_millis(1500));
    let last = setup.file.piece_count() - 1;
    if let Ok(mut peer) = Peer::unchoked(engine.address(), &setup.file.info_hash) {
        let answer = peer.fetch(last, 0, BLOCK_BYTES)?;
        ensure!(answer.is_none(), "bytes past the end of the file were served");
    }
    engine.wait_for_text(&["file.bin"])?;
    let torrent = engine.torrent(&setup.file.info_hash)?.context("listed")?;
    ensure!(torrent["state"] != "seeding", "{torrent}");
    setup.other.check_served(engine.address())?;
    ensure!(std::fs::metadata(&path)?.len() == length, "it was made longer");

    // Asked to hash it again, the engine fetches what is gone.
    let _honest = setup.honest(&engine);
    engine.command(&["recheck", &setup.file.info_hash])?;
    setup.wait_complete(&mut engine)?;
    engine.stop().map(drop)
}
