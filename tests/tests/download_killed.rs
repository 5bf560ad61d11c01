//! Owns: kill -9 of a downloading engine at random moments: what was stored as had is right, little
//! is fetched twice, and the download ends well.
//! Never: gives the engine a hint: it is killed where it stands.
//! Flow: a seed of known rate; lives of random length; after each death the database is read as it
//! lies. `SEEDRING_KILLS` sets how many (10), `SEEDRING_KILLS_SEED` repeats a run.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::Scratch;
use seedring_tests::live::seed::Sent;
use seedring_tests::live::{Engine, Manner, Seed, SingleFile, StoredHaves, loopback_address};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const KILLS: u64 = 10;
const PIECE_BYTES: usize = 256 << 10;
const LENGTH: usize = 192 << 20;
const RATE: u64 = 16 << 20;
/// One life in so many is long enough for the bound on lost work to bite.
const LONG_LIFE_EVERY: u64 = 10;
const LONG_LIFE: Duration = Duration::from_secs(8);
const SHORT_LIFE_MS_MAX: u64 = 900;
const COMPLETE_WITHIN: Duration = Duration::from_secs(60);

/// A crash costs at most the larger of these.
const LOST_WITHIN: Duration = Duration::from_secs(5);
const LOST_BYTES: u64 = 64 << 20;
/// Of pieces that were under way and not whole: requests in flight, and partial pieces.
const UNFINISHED_BYTES: u64 = 16 << 20;

struct Run {
    scratch: Scratch,
    file: Arc<SingleFile>,
    address: Ipv4Addr,
    copy: PathBuf,
    round: u32,
    /// What the database held at the last death.
    stored: StoredHaves,
    random: u64,
}

impl Run {
    fn new(seed: u64) -> Result<Self> {
        let scratch = Scratch::new(TMP, "download_killed")?;
        let source = scratch.folder("source")?;
        let file = SingleFile::make_in_pieces(&source, "file.bin", LENGTH, "", PIECE_BYTES)?;
        let stored = StoredHaves::read(scratch.path(), &file)?;
        let copy = scratch.folder("copy-0")?;
        let (address, file) = (loopback_address(), Arc::new(file));
        Ok(Self { scratch, file, address, copy, round: 0, stored, random: seed | 1 })
    }

    fn start(&self) -> Result<Engine> {
        let folder = self.scratch.folder(&format!("engine-{}", self.round))?;
        let yaml = format!("torrents:\n{}", self.file.download_entry(&self.copy)?);
        Engine::start(&folder, self.address, &yaml)
    }

    /// Complete: the next life begins with nothing.
    fn begin_again(&mut self) -> Result<()> {
        std::fs::remove_dir_all(&self.copy)?;
        self.round += 1;
        self.copy = self.scratch.folder(&format!("copy-{}", self.round))?;
        self.stored = StoredHaves::read(self.scratch.path(), &self.file)?;
        Ok(())
    }

    fn life(&mut self, number: u64) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        match number % LONG_LIFE_EVERY {
            4 => LONG_LIFE,
            _ => Duration::from_millis(self.random % SHORT_LIFE_MS_MAX),
        }
    }

    /// The engine is dead: what it left must be right, and nearly all that it was sent.
    fn check_death(&mut self, state_dir: PathBuf, sent: &[Sent], died: Instant) -> Result<u64> {
        let stored = StoredHaves::read(&state_dir, &self.file)?;
        stored.check(&self.file, &self.copy)?;
        for piece in 0..self.file.piece_count() {
            ensure!(
                stored.has(piece) || !self.stored.has(piece),
                "piece {piece} was stored as had before, and is not any more"
            );
        }
        let lost = sent.iter().filter(|sent| !stored.has(sent.piece));
        let lost: u64 = lost.map(|sent| u64::from(sent.length)).sum();
        let late = sent.iter().filter(|sent| died.duration_since(sent.at) <= LOST_WITHIN);
        let late: u64 = late.map(|sent| u64::from(sent.length)).sum();
        let bound = late.max(LOST_BYTES) + UNFINISHED_BYTES;
        ensure!(lost <= bound, "{lost} bytes of what was sent are lost, at most {bound} may be");
        self.stored = stored;
        Ok(lost)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// No block that was stored as had is ever sent again.
fn check_not_sent_again(stored: &StoredHaves, sent: &[Sent]) -> Result<()> {
    let again = sent.iter().find(|sent| stored.has(sent.piece));
    ensure!(again.is_none(), "a piece that was had was fetched again: {again:?}");
    Ok(())
}

#[test]
fn kills_lose_little_and_leave_nothing_wrong() -> Result<()> {
    let kills = number("SEEDRING_KILLS", KILLS);
    let seed = number("SEEDRING_KILLS_SEED", u64::from(std::process::id()) * 0x9E37_79B9);
    println!("SEEDRING_KILLS_SEED={seed}");
    let mut run = Run::new(seed)?;
    let engine_address = (run.address, 6881).into();
    let honest = Seed::start(&run.file, engine_address, loopback_address(), Manner::Honest);
    honest.set_rate(RATE);
    let (mut fetched, mut lost_most, mut rounds) = (0, 0, 0);
    for kill in 0..kills {
        let life = run.life(kill);
        let engine = run.start().with_context(|| format!("start after kill {kill}"))?;
        std::thread::sleep(life);
        let state_dir = engine.state_dir();
        engine.kill()?;
        let died = Instant::now();
        let sent = honest.take_sent();
        fetched += sent.iter().map(|sent| u64::from(sent.length)).sum::<u64>();
        let before = run.stored.clone();
        let lost = check_not_sent_again(&before, &sent)
            .and_then(|()| run.check_death(state_dir, &sent, died))
            .with_context(|| format!("kill {kill} after {life:?}, SEEDRING_KILLS_SEED={seed}"))?;
        lost_most = lost_most.max(lost);
        if run.stored.count() == run.file.piece_count() as usize {
            run.file.check_copy(&run.copy)?;
            run.begin_again()?;
            rounds += 1;
        }
    }
    honest.set_rate(0);
    let mut engine = run.start()?;
    engine.wait_for_state(&run.file.info_hash, "seeding", COMPLETE_WITHIN)?;
    run.file.check_copy(&run.copy)?;
    let sent = honest.take_sent();
    check_not_sent_again(&run.stored, &sent)?;
    let distinct: HashSet<(u32, u32)> = sent.iter().map(|sent| (sent.piece, sent.begin)).collect();
    println!(
        "{kills} kills, {rounds} downloads ended between them: {} MiB fetched, at most {} KiB lost \
         by one; {} of the last {} blocks came twice",
        fetched >> 20,
        lost_most >> 10,
        sent.len() - distinct.len(),
        sent.len()
    );
    engine.stop().map(drop)
}
