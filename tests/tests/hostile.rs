//! Owns: what the real engine does with bad peers, bad files, bad configurations and a bad machine.
//! Never: is content with "it did not crash": each test ends with an honest peer that is served,
//! and with content that nobody wrote to.
//! Flow: one engine process a test, on a loopback address of its own; peers are moved by hand.

use anyhow::{Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::engine::run_program;
use seedring_tests::live::peer::{BLOCK_BYTES, decode_hex, handshake};
use seedring_tests::live::torrent::PIECE_BYTES;
use seedring_tests::live::{Engine, Peer, SingleFile, loopback_address};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// Three pieces, the last one short.
const LENGTH: usize = 2 * PIECE_BYTES + 12_345;

/// Short enough for a test to wait for it.
const QUICK_HANDSHAKE: &str = "timeouts: { handshake: 2s }\n";

struct Setup {
    scratch: Scratch,
    honest: SingleFile,
}

impl Setup {
    fn new(test: &str) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let honest = SingleFile::make(scratch.path(), "honest.bin", LENGTH, "")?;
        Ok(Self { scratch, honest })
    }

    /// An engine that seeds the honest file and these entries.
    fn engine(&self, head: &str, entries: &[String]) -> Result<Engine> {
        Engine::start(self.scratch.path(), loopback_address(), &self.yaml(head, entries)?)
    }

    fn yaml(&self, head: &str, entries: &[String]) -> Result<String> {
        Ok(format!("{head}torrents:\n{}{}", self.honest.entry("full")?, entries.concat()))
    }

    /// The honest file is still served, the engine stops well, nothing was written.
    fn finish(&self, mut engine: Engine) -> Result<String> {
        let address = engine.address();
        engine.process().check_running()?;
        self.honest.check_served(address)?;
        let log = engine.stop()?;
        self.honest.check_untouched()?;
        Ok(log)
    }
}

/// Waits until the honest file is served: verification may still run when the engine listens.
fn wait_served(file: &SingleFile, engine: &Engine) -> Result<Peer> {
    let address = engine.address();
    wait_until("a served block", Duration::from_secs(20), || Ok(file.check_served(address).ok()))
}

#[test]
fn garbage_closes_the_connection() -> Result<()> {
    let setup = Setup::new("garbage")?;
    let engine = setup.engine(QUICK_HANDSHAKE, &[])?;
    let mut bystander = wait_served(&setup.honest, &engine)?;
    let openings: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0xFF; 68], b"\x13BitTorrent protocoX", &[0; 512]];
    for opening in openings {
        let mut peer = Peer::connect(engine.address())?;
        peer.send_raw(opening)?;
        ensure!(peer.is_closed_within(Duration::from_secs(6))?, "{opening:?} was not closed");
    }
    setup.honest.check_block(&mut bystander, 1, 0)?;
    setup.finish(engine).map(drop)
}

#[test]
fn a_handshake_a_byte_a_second_runs_out_of_time() -> Result<()> {
    let setup = Setup::new("slow_handshake")?;
    let engine = setup.engine(QUICK_HANDSHAKE, &[])?;
    wait_served(&setup.honest, &engine)?;
    let mut peer = Peer::connect(engine.address())?;
    let start = Instant::now();
    for byte in handshake(&setup.honest.info_hash)? {
        if peer.send_raw(&[byte]).is_err() || peer.is_closed_within(Duration::from_millis(500))? {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(6), "each byte bought it more time");
    }
    ensure!(start.elapsed() > Duration::from_secs(1), "closed before its time");
    setup.finish(engine).map(drop)
}

#[test]
fn a_silent_connection_runs_out_of_time() -> Result<()> {
    let setup = Setup::new("silent")?;
    let engine = setup.engine(QUICK_HANDSHAKE, &[])?;
    let mut peer = Peer::connect(engine.address())?;
    ensure!(peer.is_closed_within(Duration::from_secs(6))?, "it may stay without a word");
    wait_served(&setup.honest, &engine)?;
    setup.finish(engine).map(drop)
}

#[test]
fn an_unknown_torrent_is_refused() -> Result<()> {
    let setup = Setup::new("unknown_torrent")?;
    let engine = setup.engine("", &[])?;
    wait_served(&setup.honest, &engine)?;
    let mut peer = Peer::connect(engine.address())?;
    peer.send_raw(&handshake(&"5e".repeat(20))?)?;
    ensure!(peer.is_closed_within(Duration::from_secs(3))?, "an unknown info-hash was kept");
    setup.finish(engine).map(drop)
}

#[test]
fn oversized_frames_close_the_connection() -> Result<()> {
    let setup = Setup::new("oversized")?;
    let engine = setup.engine("", &[])?;
    let mut bystander = wait_served(&setup.honest, &engine)?;
    for length in [u32::MAX, 0x7FFF_FFFF, 1 << 25] {
        let mut peer = Peer::greet(engine.address(), &setup.honest.info_hash)?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&[20; 64]);
        peer.send_raw(&frame)?;
        ensure!(peer.is_closed_within(Duration::from_secs(3))?, "{length} bytes were believed");
    }
    setup.honest.check_block(&mut bystander, 1, 0)?;
    setup.finish(engine).map(drop)
}

#[test]
fn malformed_messages_close_the_connection() -> Result<()> {
    let setup = Setup::new("malformed")?;
    let engine = setup.engine("", &[])?;
    wait_served(&setup.honest, &engine)?;
    // A request cut short, a have cut short, a bitfield of a wrong size, a cancel too long.
    let cases: [(u8, &[u8]); 4] = [(6, &[0; 5]), (4, &[0; 2]), (5, &[0xFF; 100]), (8, &[0; 13])];
    for (id, payload) in cases {
        let mut peer = Peer::greet(engine.address(), &setup.honest.info_hash)?;
        peer.send(id, payload)?;
        ensure!(
            peer.is_closed_within(Duration::from_secs(3))?,
            "message {id} with {} bytes was accepted",
            payload.len()
        );
    }
    setup.finish(engine).map(drop)
}

#[test]
fn requests_out_of_range_are_never_answered_with_data() -> Result<()> {
    let setup = Setup::new("out_of_range")?;
    let engine = setup.engine("", &[])?;
    let mut bystander = wait_served(&setup.honest, &engine)?;
    let piece = PIECE_BYTES as u32;
    let last_length = (LENGTH % PIECE_BYTES) as u32;
    let requests = [
        (3, 0, BLOCK_BYTES),
        (u32::MAX, 0, BLOCK_BYTES),
        (0, piece, BLOCK_BYTES),
        (0, piece - 1, 2),
        (0, u32::MAX, BLOCK_BYTES),
        (0, u32::MAX - 10, 20),
        (0, 0, 0),
        (0, 0, u32::MAX),
        (0, 0, 1 << 24),
        (2, 0, last_length + 1),
        (2, last_length, 1),
    ];
    for (index, begin, length) in requests {
        let mut peer = Peer::unchoked(engine.address(), &setup.honest.info_hash)?;
        let answer = peer.fetch(index, begin, length)?;
        ensure!(answer.is_none(), "piece {index}, begin {begin}, length {length} was answered");
    }
    setup.honest.check_block(&mut bystander, 1, 0)?;
    setup.finish(engine).map(drop)
}

#[test]
fn a_flood_of_requests_is_bounded() -> Result<()> {
    let setup = Setup::new("flood")?;
    let mut engine = setup.engine("", &[])?;
    let mut bystander = wait_served(&setup.honest, &engine)?;
    let before = resident_kib(engine.process().pid())?;
    let mut flooders = Vec::new();
    for _ in 0..20 {
        let mut peer = Peer::unchoked(engine.address(), &setup.honest.info_hash)?;
        // It never reads: the engine may neither queue all of this nor wait for it.
        for _ in 0..20_000 {
            if peer.request(0, 0, BLOCK_BYTES).is_err() {
                break;
            }
        }
        flooders.push(peer);
        setup.honest.check_block(&mut bystander, 1, 0)?;
    }
    let grown = resident_kib(engine.process().pid())?.saturating_sub(before);
    ensure!(grown < 96 << 10, "{grown} KiB more for 20 peers that only ask");
    drop(flooders);
    setup.finish(engine).map(drop)
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn a_file_shorter_than_its_torrent_is_named_and_not_served() -> Result<()> {
    let setup = Setup::new("short_file")?;
    for verify in ["full", "quick"] {
        let name = format!("short-{verify}.bin");
        let short = SingleFile::make(setup.scratch.path(), &name, LENGTH, "")?;
        let file = std::fs::OpenOptions::new().write(true).open(&short.content)?;
        file.set_len(LENGTH as u64 - 20_000)?;
        let mut engine = setup.engine("", &[short.entry(verify)?])?;
        wait_served(&setup.honest, &engine)?;
        engine.wait_for_text(&[&name])?;
        // What is gone is not served, whatever is done with the rest.
        if let Ok(mut peer) = Peer::unchoked(engine.address(), &short.info_hash) {
            let answer = peer.fetch(2, 0, (LENGTH % PIECE_BYTES) as u32)?;
            ensure!(answer.is_none(), "bytes past the end of the file were served");
        }
        setup.finish(engine)?;
        ensure!(std::fs::metadata(&short.content)?.len() == LENGTH as u64 - 20_000, "extended");
    }
    Ok(())
}

#[test]
fn a_file_changed_while_seeded_is_not_served_changed() -> Result<()> {
    let setup = Setup::new("changed_file")?;
    let changed = SingleFile::make(setup.scratch.path(), "changed.bin", LENGTH, "")?;
    let engine = setup.engine("", &[changed.entry("full")?])?;
    wait_served(&setup.honest, &engine)?;
    let mut peer = wait_served(&changed, &engine)?;
    let file = std::fs::OpenOptions::new().write(true).open(&changed.content)?;
    file.write_all_at(&[0xEE; PIECE_BYTES], PIECE_BYTES as u64)?;
    drop(file);
    // The engine compares a file's identity each second.
    std::thread::sleep(Duration::from_millis(1500));
    for begin in [0, BLOCK_BYTES] {
        if let Ok(Some(bytes)) = peer.fetch(1, begin, BLOCK_BYTES) {
            ensure!(bytes == changed.block(1, begin), "changed bytes were served");
        }
    }
    setup.finish(engine).map(drop)
}

#[test]
fn missing_content_is_named_and_seeded_when_it_is_back() -> Result<()> {
    let setup = Setup::new("missing_content")?;
    let folder = setup.scratch.folder("away")?;
    let lost = SingleFile::make(&folder, "lost.bin", LENGTH, "")?;
    let entry = lost.entry("quick")?;
    let hidden = folder.join("hidden");
    let content = folder.join("content");
    std::fs::rename(&content, &hidden)?;
    let mut engine = setup.engine("", &[entry])?;
    wait_served(&setup.honest, &engine)?;
    engine.wait_for_text(&["lost.bin"])?;
    ensure!(!content.exists(), "the engine made the missing folder");
    std::fs::rename(&hidden, &content)?;
    let address = engine.address();
    let back = Duration::from_secs(60);
    wait_until("seeding by itself", back, || Ok(lost.check_served(address).ok()))?;
    // And once more while it is being seeded.
    std::fs::rename(&content, &hidden)?;
    std::thread::sleep(Duration::from_millis(1500));
    setup.honest.check_served(address)?;
    std::fs::rename(&hidden, &content)?;
    wait_until("seeding again", back, || Ok(lost.check_served(address).ok()))?;
    lost.check_untouched()?;
    setup.finish(engine).map(drop)
}

#[test]
fn a_taken_port_is_named() -> Result<()> {
    let setup = Setup::new("taken_port")?;
    let address = loopback_address();
    let _taken = TcpListener::bind((address, 6881))?;
    let yaml = setup.yaml("", &[])?;
    let mut engine = Engine::launch(setup.scratch.path(), address, &yaml, &[])?;
    let status = engine.process().wait(Duration::from_secs(20))?;
    ensure!(!status.success(), "it went on without its port");
    let log = engine.process().log();
    ensure!(log.contains(&format!("{address}:6881")), "{log}");
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn a_file_without_permission_is_named() -> Result<()> {
    let setup = Setup::new("no_permission")?;
    let folder = setup.scratch.folder("secret")?;
    let secret = SingleFile::make(&folder, "secret.bin", LENGTH, "")?;
    std::fs::set_permissions(&secret.content, PermissionsExt::from_mode(0o0))?;
    // Root reads everything by two capabilities: without them it is like everybody.
    let caps = "-dac_override,-dac_read_search";
    let wrapper = ["setpriv", "--bounding-set", caps, "--inh-caps", caps];
    let yaml = setup.yaml("", &[secret.entry("full")?])?;
    let mut engine = Engine::start_with(setup.scratch.path(), loopback_address(), &yaml, &wrapper)?;
    wait_served(&setup.honest, &engine)?;
    engine.wait_for_text(&["secret.bin", "ermission"])?;
    setup.finish(engine).map(drop)
}

#[test]
fn used_up_descriptors_do_not_stop_it() -> Result<()> {
    let setup = Setup::new("descriptors")?;
    let yaml = setup.yaml("limits: { connections: 2000 }\n", &[])?;
    let wrapper = ["prlimit", "--nofile=96:96"];
    let mut engine = Engine::start_with(setup.scratch.path(), loopback_address(), &yaml, &wrapper)?;
    let mut bystander = wait_served(&setup.honest, &engine)?;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.extend(Peer::connect(engine.address()));
    }
    std::thread::sleep(Duration::from_secs(1));
    setup.honest.check_block(&mut bystander, 1, 0)?;
    let ticks = cpu_ticks(engine.process().pid())?;
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ticks(engine.process().pid())? - ticks;
    ensure!(spent < 50, "it spins: {spent} of 100 ticks");
    engine.wait_for_text(&[
        "at most 96 descriptors are allowed, 2000 connections need",
        "can't accept connections",
        "Raise the descriptor limit (LimitNOFILE, ulimit -n) or lower limits.connections",
    ])?;
    drop(crowd);
    wait_served(&setup.honest, &engine)?;
    setup.finish(engine).map(drop)
}

/// User and system time in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// .torrent files that a parser may stumble over, each with a reason to be refused.
fn bad_torrents(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let info = |rest: &str| format!("d4:infod{rest}ee").into_bytes();
    let hash = "6:pieces20:aaaaaaaaaaaaaaaaaaaa";
    vec![
        ("empty", Vec::new()),
        ("truncated", good[..good.len() - 10].to_vec()),
        ("no-torrent", b"<html>not found</html>".to_vec()),
        ("deep-lists", "l".repeat(20_000).into_bytes()),
        ("deep-dictionaries", "d1:a".repeat(20_000).into_bytes()),
        ("huge-string", b"d4:info99999999999999999999:".to_vec()),
        ("long-string", b"d4:info4294967295:x".to_vec()),
        ("negative-length", info(&format!("6:lengthi-5e4:name1:a12:piece lengthi16384e{hash}"))),
        ("zero-piece-length", info(&format!("6:lengthi5e4:name1:a12:piece lengthi0e{hash}"))),
        ("too-few-hashes", info(&format!("6:lengthi99999e4:name1:a12:piece lengthi16384e{hash}"))),
        ("no-pieces", info("6:lengthi5e4:name1:a12:piece lengthi16384e")),
        (
            "overflowing-files",
            info(&format!(
                "5:filesld6:lengthi9223372036854775807e4:pathl1:aeed6:lengthi9223372036854775807e\
                 4:pathl1:beee4:name1:a12:piece lengthi16384e{hash}"
            )),
        ),
    ]
}

#[test]
fn bad_torrent_files_are_named_and_the_good_one_is_seeded() -> Result<()> {
    let setup = Setup::new("bad_torrents")?;
    let folder = setup.scratch.folder("torrents")?;
    let cases = bad_torrents(&std::fs::read(&setup.honest.torrent)?);
    for (name, bytes) in &cases {
        let path = folder.join(format!("{name}.torrent"));
        std::fs::write(&path, bytes)?;
        let path = path.to_string_lossy().into_owned();
        let start = Instant::now();
        let (status, text) = run_program(&["inspect", &path])?;
        ensure!(status == 1, "inspect {name}: status {status}: {text}");
        ensure!(text.trim().len() > 10 && !text.contains("panicked"), "inspect {name}: {text}");
        ensure!(start.elapsed() < Duration::from_secs(2), "inspect {name} took its time");
    }
    let glob = serde_json::to_string(&folder.join("*.torrent"))?;
    let content = serde_json::to_string(&folder)?;
    let entry = format!("  - files: {glob}\n    content: {content}\n    verify: quick\n");
    let mut engine = setup.engine("", &[entry])?;
    wait_served(&setup.honest, &engine)?;
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    engine.wait_for_text(&names)?;
    setup.finish(engine).map(drop)
}

#[test]
fn paths_that_lead_outside_are_not_followed() -> Result<()> {
    let setup = Setup::new("paths")?;
    let folder = setup.scratch.folder("content")?;
    std::fs::write(setup.scratch.path().join("outside.txt"), "secret")?;
    let hash: String = "a".repeat(20);
    let torrent = format!(
        "d4:infod5:filesld6:lengthi6e4:pathl2:..11:outside.txteee4:name1:x12:piece lengthi16384e\
         6:pieces20:{hash}ee"
    );
    let path = setup.scratch.path().join("climbing.torrent");
    std::fs::write(&path, torrent)?;
    let (_, text) = run_program(&["inspect", "--json", &path.to_string_lossy()])?;
    ensure!(!text.contains("\"..\"") && !text.contains("../"), "{text}");
    let entry = format!(
        "  - files: {}\n    content: {}\n    verify: trust\n",
        serde_json::to_string(&path)?,
        serde_json::to_string(&folder)?
    );
    let engine = setup.engine("", &[entry])?;
    wait_served(&setup.honest, &engine)?;
    setup.finish(engine).map(drop)
}

#[test]
fn all_errors_of_a_configuration_are_told_at_once() -> Result<()> {
    let scratch = Scratch::new(TMP, "bad_yaml")?;
    let path = scratch.path().join("bad.yaml");
    let text = "listen: [\"127.0.0.1:99999\"]\nshards: many\nlimits: { uplaod: 5 }\n\
                torrents:\n  - folder: x\n    verify: sometimes\n";
    std::fs::write(&path, text)?;
    for command in ["check-config", "run"] {
        let (status, text) = run_program(&[command, &path.to_string_lossy()])?;
        ensure!(status != 0, "{command} accepted it");
        for wanted in ["99999", "many", "uplaod", "upload", "sometimes", "bad.yaml"] {
            ensure!(text.contains(wanted), "{command} does not tell of {wanted}: {text}");
        }
        ensure!(!text.contains("panicked"), "{text}");
    }
    std::fs::write(&path, "torrents: [unclosed\nlisten: {{{")?;
    let (status, text) = run_program(&["check-config", &path.to_string_lossy()])?;
    ensure!(status != 0 && !text.contains("panicked"), "{text}");
    let (status, text) = run_program(&["run", "/nonexistent/seedring.yaml"])?;
    ensure!(status != 0 && text.contains("/nonexistent/seedring.yaml"), "{text}");
    Ok(())
}

/// Metadata can be asked for out of order, twice, out of range and as nonsense.
#[test]
fn hostile_extension_messages_do_not_stop_it() -> Result<()> {
    let setup = Setup::new("extensions")?;
    let engine = setup.engine("", &[])?;
    wait_served(&setup.honest, &engine)?;
    let payloads: [&[u8]; 6] = [
        b"\x00d1:md11:ut_metadatai3eee",
        b"\x00llllllllllllllllllllllllllllllllllllllll",
        b"\x00d1:md11:ut_metadatai-1eee",
        b"\x01d8:msg_typei0e5:piecei99999ee",
        b"\x02d8:msg_typei0e5:piecei-1ee",
        b"\xffnonsense",
    ];
    for payload in payloads {
        let mut peer = Peer::greet(engine.address(), &setup.honest.info_hash)?;
        peer.send(20, payload)?;
        // Answered, ignored or closed: all are right; the engine's end is not.
        peer.is_closed_within(Duration::from_millis(200))?;
    }
    ensure!(decode_hex(&setup.honest.info_hash)?.len() == 20);
    setup.finish(engine).map(drop)
}
