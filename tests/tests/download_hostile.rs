//! Owns: what a downloading engine does with bad seeds.
//! Never: is content with "it did not crash": each test ends with a download that an honest seed
//! completed, every byte right.
//! Flow: the hostile seed comes first, alone, and is asked; then the honest one comes beside it.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::{Engine, Manner, Seed, SingleFile, loopback_address};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const PIECE_BYTES: usize = 64 << 10;
/// 64 pieces and a short one.
const LENGTH: usize = 64 * PIECE_BYTES + 12_345;
/// Until a hostile seed is asked for the first time.
const ASKED_WITHIN: Duration = Duration::from_secs(15);
/// Until the honest seed has brought everything, in spite of the other one. The longest that a
/// block may be waited for before another seed is asked lies in it.
const COMPLETE_WITHIN: Duration = Duration::from_secs(75);

struct Setup {
    _scratch: Scratch,
    file: Arc<SingleFile>,
    copy: PathBuf,
    engine: Engine,
}

impl Setup {
    fn new(test: &str) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let (folder, copy) = (scratch.folder("source")?, scratch.folder("copy")?);
        let file = SingleFile::make_in_pieces(&folder, "file.bin", LENGTH, "", PIECE_BYTES)?;
        let yaml = format!("torrents:\n{}", file.download_entry(&copy)?);
        let engine = Engine::start(scratch.path(), loopback_address(), &yaml)?;
        Ok(Self { _scratch: scratch, file: Arc::new(file), copy, engine })
    }

    fn seed(&self, manner: Manner) -> Seed {
        Seed::start(&self.file, self.engine.address(), loopback_address(), manner)
    }

    /// With an honest seed beside it the download is completed, right, and seeded on.
    fn complete(&mut self) -> Result<()> {
        let _honest = self.seed(Manner::Honest);
        self.engine.wait_for_state(&self.file.info_hash, "seeding", COMPLETE_WITHIN)?;
        self.file.check_copy(&self.copy)?;
        self.file.check_served(self.engine.address()).map(drop)
    }

    fn finish(self) -> Result<()> {
        let log = self.engine.stop()?;
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }
}

/// It is connected, and where it lets itself be asked, it was asked.
fn wait_active(hostile: &Seed, asked: bool) -> Result<()> {
    wait_until("the engine to ask the hostile seed", ASKED_WITHIN, || {
        let active = hostile.connections() > 0 && (!asked || hostile.requests() > 0);
        Ok(active.then_some(()))
    })
}

/// The hostile seed has the engine for itself at first; then all goes well.
fn completes_beside(test: &str, manner: Manner, asked: bool) -> Result<()> {
    let mut setup = Setup::new(test)?;
    let hostile = setup.seed(manner);
    wait_active(&hostile, asked)?;
    setup.complete().with_context(|| format!("beside a seed that {manner:?}"))?;
    setup.finish()
}

#[test]
fn a_seed_of_wrong_bytes_is_banned() -> Result<()> {
    let mut setup = Setup::new("wrong_bytes")?;
    let hostile = setup.seed(Manner::WrongBytes);
    wait_active(&hostile, true)?;
    // It dials again ten times a second and offers everything: a ban shows in requests that come
    // no more.
    wait_until("the ban", Duration::from_secs(20), || {
        let asked = hostile.requests();
        std::thread::sleep(Duration::from_secs(2));
        Ok((hostile.requests() == asked).then_some(()))
    })
    .with_context(|| format!("asked {} times", hostile.requests()))?;
    setup.complete()?;
    let torrent = setup.engine.torrent(&setup.file.info_hash)?.context("listed")?;
    ensure!(torrent["state"] == "seeding", "{torrent}");
    setup.finish()
}

/// The liar and the honest one bring blocks of the same pieces: only the liar may be banned.
#[test]
fn an_honest_seed_beside_a_liar_is_not_banned() -> Result<()> {
    let mut setup = Setup::new("liar_beside_honest")?;
    let honest = setup.seed(Manner::Honest);
    honest.set_rate(256 << 10);
    let liar = setup.seed(Manner::WrongBytes);
    wait_active(&liar, true)?;
    wait_active(&honest, true)?;
    std::thread::sleep(Duration::from_secs(2));
    honest.set_rate(0);
    setup.engine.wait_for_state(&setup.file.info_hash, "seeding", COMPLETE_WITHIN)?;
    setup.file.check_copy(&setup.copy)?;
    setup.finish()
}

#[test]
fn blocks_that_nobody_asked_for_do_no_harm() -> Result<()> {
    completes_beside("unasked", Manner::Unasked, true)
}

#[test]
fn a_block_without_end_is_asked_for_elsewhere() -> Result<()> {
    completes_beside("endless_block", Manner::EndlessBlock, true)
}

#[test]
fn a_seed_that_vanishes_in_a_block_does_no_harm() -> Result<()> {
    completes_beside("vanishes", Manner::Vanishes, true)
}

#[test]
fn a_seed_that_chokes_for_ever_does_no_harm() -> Result<()> {
    completes_beside("chokes", Manner::Chokes, false)
}

#[test]
fn a_seed_that_chokes_when_asked_does_no_harm() -> Result<()> {
    completes_beside("chokes_when_asked", Manner::ChokesWhenAsked, true)
}

#[test]
fn a_seed_that_rejects_everything_does_no_harm() -> Result<()> {
    completes_beside("rejects", Manner::Rejects, true)
}

#[test]
fn pieces_that_are_claimed_and_never_come_are_asked_for_elsewhere() -> Result<()> {
    completes_beside("claims", Manner::Claims, true)
}

/// It is asked no more than an honest seed would be: no storm of requests, no storm of processor.
#[test]
fn a_seed_that_rejects_everything_is_not_asked_without_end() -> Result<()> {
    let setup = Setup::new("reject_storm")?;
    let hostile = setup.seed(Manner::Rejects);
    wait_active(&hostile, true)?;
    std::thread::sleep(Duration::from_secs(3));
    let (requests, blocks) = (hostile.requests(), LENGTH.div_ceil(16 << 10) as u64);
    ensure!(requests < 20 * blocks, "{requests} requests for {blocks} blocks in 3 s");
    setup.finish()
}

#[test]
fn openings_that_break_the_protocol_are_closed() -> Result<()> {
    let mut setup = Setup::new("bad_openings")?;
    for manner in [Manner::HugeFrame, Manner::LongBitfield, Manner::HaveOutOfRange] {
        let hostile = setup.seed(manner);
        // Closed, it dials again.
        wait_until("a second connection", ASKED_WITHIN, || {
            Ok((hostile.connections() > 1).then_some(()))
        })
        .with_context(|| format!("{manner:?}"))?;
    }
    setup.complete()?;
    setup.finish()
}

#[test]
fn ten_thousand_addresses_by_peer_exchange_do_no_harm() -> Result<()> {
    let mut setup = Setup::new("pex_flood")?;
    let hostile = setup.seed(Manner::FloodsPex);
    hostile.set_rate(1 << 20);
    wait_active(&hostile, false)?;
    let before = Instant::now();
    setup.complete()?;
    ensure!(before.elapsed() < Duration::from_secs(20), "it took {:?}", before.elapsed());
    setup.finish()
}
