//! Owns: what the engine does while the disk below its torrents fails, is pulled, or is not
//! mounted: nothing is made, written, deleted or forgotten, no wrong byte is sent, and all goes on
//! by itself when the disk is back.
//! Never: restarts or commands the engine to help it.
//! Flow: a torrent that seeds and one that downloads on a file system of our own; a leech looks at
//! every byte; harm -> what was done meanwhile is counted -> the disk is well -> both seed.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::faulty_disk::Step;
use seedring_tests::live::watcher::Watcher;
use seedring_tests::live::{
    Engine, FaultyDisk, Manner, RecordingTracker, Seed, SingleFile, StoredHaves, loopback_address,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const PIECE_BYTES: usize = 64 << 10;
const LENGTH: usize = 24 << 20;
/// More than the engine's cache, so that it has to read.
const SEEDED_LENGTH: usize = 48 << 20;
/// Twelve seconds for all of it: what is had is stored every five.
const RATE: u64 = 2 << 20;
const SOON: Duration = Duration::from_secs(20);
/// A write or a sync that was begun on an unmounted disk, which still works, is over.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the disk is away, once the engine has said so.
const AWAY: Duration = Duration::from_secs(7);
/// Until all is as before: looked for every 5 s, and what is missing fetched.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Dropped from the front: the engine before the disk, the disk before its folders.
struct Setup {
    engine: Engine,
    honest: Seed,
    watcher: Watcher,
    disk: FaultyDisk,
    tracker: RecordingTracker,
    download: Arc<SingleFile>,
    seeded: SingleFile,
    /// Seeded all the while, from another disk.
    other: SingleFile,
    _scratch: Scratch,
}

/// What lies on the disk: names, sizes and times of files.
type Listing = Vec<(PathBuf, u64, SystemTime)>;

impl Setup {
    /// A torrent is seeded from the disk, another is half downloaded to it.
    fn half_way(test: &str) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let source = scratch.folder("source")?;
        let tracker = RecordingTracker::start(loopback_address())?;
        let download = SingleFile::make_in_pieces(&source, "new.bin", LENGTH, "", PIECE_BYTES)?;
        let url = tracker.url();
        let seeded = SingleFile::make(&source, "seeded.bin", SEEDED_LENGTH, &url)?;
        let other = SingleFile::make(&source, "other.bin", 100_000, "")?;
        let disk = FaultyDisk::mount(&scratch.folder("disk")?, &scratch.folder("backing")?)?;
        std::fs::copy(&seeded.content, disk.point().join(&seeded.name))?;
        let yaml = format!(
            "torrents:\n{}{}    trackers: keep\n{}",
            download.download_entry(disk.point())?,
            seeded.entry_in(disk.point(), "full")?,
            other.entry("full")?
        );
        let mut engine = Engine::start(scratch.path(), loopback_address(), &yaml)?;
        engine.wait_for_state(&seeded.info_hash, "seeding", SOON)?;
        let download = Arc::new(download);
        let honest = Seed::start(&download, engine.address(), loopback_address(), Manner::Honest);
        honest.set_rate(RATE);
        let files = vec![SingleFile::clone(&download), seeded.clone(), other.clone()];
        let watcher = Watcher::start(engine.address(), files);
        let _scratch = scratch;
        let mut setup =
            Self { engine, honest, watcher, disk, tracker, download, seeded, other, _scratch };
        setup.wait_half()?;
        Ok(setup)
    }

    /// Half of it is there, and the store knows of some.
    fn wait_half(&mut self) -> Result<()> {
        wait_until("the first half", SOON, || {
            self.engine.process().check_running()?;
            let missing = self.missing_bytes();
            let stored = self.stored(&self.download)?.count();
            Ok((missing < LENGTH as u64 * 3 / 4 && stored > 0).then_some(()))
        })?;
        ensure!(self.missing_bytes() > 0, "it is complete before anything went wrong");
        Ok(())
    }

    fn missing_bytes(&self) -> u64 {
        let torrent = self.engine.torrent(&self.download.info_hash).ok().flatten();
        torrent.unwrap_or_default()["missing_bytes"].as_u64().unwrap_or(u64::MAX)
    }

    fn stored(&self, file: &SingleFile) -> Result<StoredHaves> {
        StoredHaves::read(&self.engine.state_dir(), file)
    }

    fn listing(&self) -> Result<Listing> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.disk.backing())? {
            let entry = entry?;
            let facts = entry.metadata()?;
            found.push((entry.path(), facts.len(), facts.modified()?));
        }
        found.sort();
        Ok(found)
    }

    /// All is well: both torrents seed, every byte is right, nothing stored was forgotten.
    fn check_back(&mut self, began: Instant) -> Result<()> {
        for hash in [self.seeded.info_hash.clone(), self.download.info_hash.clone()] {
            self.engine.wait_for_state(&hash, "seeding", BACK_WITHIN)?;
        }
        println!("both seed {:.1} s after the disk was well", began.elapsed().as_secs_f64());
        self.download.check_copy(self.disk.backing())?;
        self.seeded.check_copy(self.disk.backing())?;
        for file in [&self.seeded, &self.download, &self.other] {
            file.check_served(self.engine.address()).context(file.name.clone())?;
        }
        self.watcher.check()?;
        ensure!(self.watcher.right() > 0, "the leech saw nothing");
        let heard = self.tracker.heard();
        ensure!(!heard.is_empty() && heard.iter().all(|told| told.left == 0), "{heard:?}");
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let log = self.engine.stop()?;
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }
}

/// What was there is there.
fn check_kept(before: &StoredHaves, after: &StoredHaves, file: &SingleFile) -> Result<()> {
    let lost = (0..file.piece_count()).filter(|piece| before.has(*piece) && !after.has(*piece));
    let lost: Vec<u32> = lost.collect();
    ensure!(lost.is_empty(), "{}: bits were cleared: {lost:?}", file.name);
    Ok(())
}

/// The disk goes in one way or another, is away, and comes back.
fn goes_and_comes(test: &str, is_pulled: bool) -> Result<()> {
    let mut setup = Setup::half_way(test)?;
    if is_pulled {
        setup.disk.pull();
    }
    setup.disk.unmount_lazily();
    setup.engine.wait_for_state(&setup.download.info_hash.clone(), "waiting", SOON)?;
    // Unmounted and not pulled, a disk can be read on through files that are open.
    if is_pulled {
        setup.engine.wait_for_state(&setup.seeded.info_hash.clone(), "waiting", SOON)?;
    }
    // What was under way when it was noticed comes to its end.
    std::thread::sleep(SETTLED);
    let stored = [setup.stored(&setup.seeded)?, setup.stored(&setup.download)?];
    let before = setup.listing()?;
    setup.disk.take_steps();
    std::thread::sleep(AWAY);
    let writes = setup.disk.take_steps();
    let writes = writes.iter().filter(|(step, _)| *step != Step::Read).count();
    ensure!(writes == 0, "{writes} changes were tried on a disk that is away");
    let below: Vec<_> = std::fs::read_dir(setup.disk.point())?.collect();
    ensure!(below.is_empty(), "made below the mount point: {below:?}");
    ensure!(setup.listing()? == before, "the disk's files were changed while it was away");
    check_kept(&stored[0], &setup.stored(&setup.seeded)?, &setup.seeded)?;
    check_kept(&stored[1], &setup.stored(&setup.download)?, &setup.download)?;
    setup.other.check_served(setup.engine.address()).context("from another disk")?;

    setup.honest.take_sent();
    let began = Instant::now();
    setup.disk.mount_again()?;
    setup.check_back(began)?;
    let again = setup.honest.take_sent();
    let again = again.iter().filter(|sent| stored[1].has(sent.piece)).count();
    ensure!(again == 0, "{again} blocks of pieces that were stored were fetched again");
    setup.finish()
}

#[test]
fn a_disk_that_is_pulled_is_waited_for_and_nothing_is_made_in_its_place() -> Result<()> {
    goes_and_comes("disk_pulled", true)
}

#[test]
fn a_disk_that_is_unmounted_under_open_files_is_waited_for() -> Result<()> {
    goes_and_comes("disk_unmounted", false)
}

/// Until each of `harmed` says so, these steps fail; then no more.
fn fails_for_a_while(test: &str, steps: &[Step], state: &str, of_download: bool) -> Result<()> {
    let mut setup = Setup::half_way(test)?;
    let stored = [setup.stored(&setup.seeded)?, setup.stored(&setup.download)?];
    setup.disk.fail(steps);
    let harmed = if of_download { &setup.download.info_hash } else { &setup.seeded.info_hash };
    let torrent = setup.engine.wait_for_state(&harmed.clone(), state, SOON)?;
    let detail = torrent["detail"].as_str().unwrap_or_default().to_owned();
    ensure!(detail.contains("error"), "the reason is not in `{detail}`");
    setup.other.check_served(setup.engine.address()).context("from another disk")?;
    std::thread::sleep(Duration::from_secs(2));
    check_kept(&stored[0], &setup.stored(&setup.seeded)?, &setup.seeded)?;
    check_kept(&stored[1], &setup.stored(&setup.download)?, &setup.download)?;
    setup.stored(&setup.download)?.check(&setup.download, setup.disk.backing())?;
    let began = Instant::now();
    setup.disk.fail(&[]);
    setup.check_back(began)?;
    setup.finish()
}

#[test]
fn writes_that_fail_halt_the_download_until_they_do_not() -> Result<()> {
    fails_for_a_while("writes_fail", &[Step::Write], "halted", true)
}

#[test]
fn syncs_that_fail_halt_the_download_and_what_they_lost_is_fetched_again() -> Result<()> {
    fails_for_a_while("syncs_fail", &[Step::Sync], "halted", true)
}

#[test]
fn reads_that_fail_park_the_torrent_until_they_do_not() -> Result<()> {
    fails_for_a_while("reads_fail", &[Step::Read], "waiting", false)
}

#[test]
fn a_seeded_file_that_is_cut_is_waited_for_until_it_is_whole() -> Result<()> {
    let mut setup = Setup::half_way("seeded_cut")?;
    let path = setup.disk.backing().join(&setup.seeded.name);
    let file = std::fs::OpenOptions::new().write(true).open(&path)?;
    file.set_len(SEEDED_LENGTH as u64 / 2 + 1_000)?;
    let hash = setup.seeded.info_hash.clone();
    let torrent = setup.engine.wait_for_state(&hash, "waiting", SOON)?;
    let detail = torrent["detail"].as_str().unwrap_or_default().to_owned();
    ensure!(detail.contains("seeded.bin") && detail.contains("bytes"), "`{detail}`");
    std::thread::sleep(Duration::from_secs(2));
    let length = std::fs::metadata(&path)?.len();
    ensure!(length == SEEDED_LENGTH as u64 / 2 + 1_000, "it was made {length} bytes long");
    let began = Instant::now();
    std::fs::write(&path, &setup.seeded.bytes)?;
    setup.check_back(began)?;
    setup.finish()
}
