//! Writing on the simulated machine: a small writer, faults, and the loss of power at any moment.
//!
//! Owns: the proof that what was synced survives, that what was not is lost often enough to be
//! noticed, and that a writer who gets it wrong is found. Never: the engine. Flow: seed -> world,
//! writer -> an end at some moment -> the machine that comes up is held against what was recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use seedring_platform::{
    descriptors::File,
    memory::{Class, Share},
    op::{Access, Allocation, Io, Op, OpenRequest, Outcome, Token},
    write_batch::WriteBatch,
};
use seedring_tests::sim::{
    DirectoryId, FaultKind, Faults, Rng, SimIo, SimOptions, Survives, World, oracle::Checked, rng,
};

const FILE_SEED: u64 = 4711;
const PIECE_BYTES: u64 = 20_000;
const PIECES: usize = 40;
const PATH: &str = "folder/inner/file";
const IN_FLIGHT_MAX: usize = 6;

const OPEN: Token = Token(1);
const ALLOCATE: Token = Token(2);
const SYNC: Token = Token(3);
const FIRST_PIECE: u64 = 100;

/// What the writer gets wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// A piece counts as kept when it was written.
    RecordsBeforeSync,
    /// A sync covers what is written while it is under way.
    SyncCoversLater,
    /// A sync that failed is done again, and what it should have covered is not.
    SyncFailureIgnored,
    /// A short write counts as a whole one.
    ShortWriteIgnored,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    Missing,
    InFlight,
    Written,
    /// Synced: it must be there after any end.
    Kept,
}

/// Writes a file in pieces, in any order, and syncs now and then.
struct Writer {
    io: Checked<SimIo>,
    rng: Rng,
    root: DirectoryId,
    mistake: Mistake,
    file: Option<File>,
    opening: bool,
    allocated: bool,
    pieces: Vec<Piece>,
    /// How much of a piece in flight was written by earlier writes.
    done: BTreeMap<usize, u64>,
    /// The pieces that the sync under way covers.
    syncing: Option<Vec<usize>>,
    /// Pieces in flight whose first part a failed sync may have lost.
    restart: BTreeSet<usize>,
}

impl Writer {
    fn new(world: &World, root: DirectoryId, seed: u64, mistake: Mistake) -> Writer {
        let options = SimOptions { pool_bytes: 1 << 20, ..SimOptions::default() };
        Writer {
            io: Checked::new(SimIo::new(world, options)),
            rng: Rng::new(seed),
            root,
            mistake,
            file: None,
            opening: false,
            allocated: false,
            pieces: vec![Piece::Missing; PIECES],
            done: BTreeMap::new(),
            syncing: None,
            restart: BTreeSet::new(),
        }
    }

    fn count(&self, state: Piece) -> usize {
        self.pieces.iter().filter(|&&piece| piece == state).count()
    }

    fn is_done(&self) -> bool {
        self.count(Piece::Kept) == PIECES
    }

    fn turn(&mut self) {
        let mut completions = Vec::new();
        self.io.reap(&mut completions, 16);
        for completion in completions {
            self.complete(completion.token, completion.outcome);
        }
        self.act();
        let until = self.io.now() + Duration::from_millis(200);
        self.io.wait(Some(until), &|| false);
    }

    fn act(&mut self) {
        let Some(file) = self.file.clone() else {
            if !self.opening {
                let path = std::ffi::CString::new(PATH).expect("no zero byte");
                let root = self.io.inner().world().root_handle(self.root);
                let request = OpenRequest { root, path, direct: false, access: Access::Create };
                let op = Op::Open { token: OPEN, request: Box::new(request) };
                self.opening = self.io.submit(op).is_ok();
            }
            return;
        };
        if !self.allocated {
            let (length_bytes, mode) = (PIECES as u64 * PIECE_BYTES, Allocation::Sparse);
            let op = Op::Allocate { token: ALLOCATE, file: file.clone(), length_bytes, mode };
            self.allocated = self.io.submit(op).is_ok();
        }
        while self.count(Piece::InFlight) < IN_FLIGHT_MAX {
            let missing: Vec<usize> =
                (0..PIECES).filter(|&n| self.pieces[n] == Piece::Missing).collect();
            if missing.is_empty() {
                break;
            }
            let piece = *self.rng.pick(&missing);
            if !self.write(&file, piece, 0) {
                break;
            }
        }
        let written = self.count(Piece::Written);
        let worth_it = written >= 5 || (written > 0 && self.count(Piece::Missing) == 0);
        if self.syncing.is_none() && worth_it {
            let data_only = self.rng.per_mille(500);
            if self.io.submit(Op::Sync { token: SYNC, file, data_only }).is_ok() {
                self.syncing = Some(self.all(Piece::Written));
            }
        }
    }

    fn all(&self, state: Piece) -> Vec<usize> {
        (0..PIECES).filter(|&n| self.pieces[n] == state).collect()
    }

    /// The rest of a piece from `done` on, out of chunks of two sizes. `false`: refused.
    fn write(&mut self, file: &File, piece: usize, done: u64) -> bool {
        let start = piece as u64 * PIECE_BYTES + done;
        let mut batch = Box::new(WriteBatch::new());
        let mut at = start;
        while at < (piece as u64 + 1) * PIECE_BYTES {
            let Some(share) = self.chunk(at) else { return false };
            let left = (piece as u64 + 1) * PIECE_BYTES - at;
            let n = (share.len() as u64).min(left);
            batch.push(&share, 0..n as usize);
            at += n;
        }
        let (token, file) = (Token(FIRST_PIECE + piece as u64), file.clone());
        let accepted = self.io.submit(Op::Write { token, file, offset: start, batch }).is_ok();
        self.pieces[piece] = if accepted { Piece::InFlight } else { Piece::Missing };
        self.done.insert(piece, done);
        accepted
    }

    fn chunk(&mut self, at: u64) -> Option<Share> {
        let mut lease = self.io.pool().lease(Class::K16)?;
        rng::fill(FILE_SEED, at, &mut lease);
        Some(lease.freeze(8_000 + (at % 8_000) as usize))
    }

    fn complete(&mut self, token: Token, outcome: Outcome) {
        match outcome {
            Outcome::Opened(result) => {
                self.opening = false;
                self.file = result.ok().map(|(file, _)| file);
            }
            Outcome::Allocated(_) => {}
            Outcome::Written { result, batch } => {
                let piece = (token.0 - FIRST_PIECE) as usize;
                let len = batch.len_bytes();
                drop(batch);
                if self.restart.remove(&piece) {
                    self.pieces[piece] = Piece::Missing;
                    return;
                }
                match result {
                    Ok(n) if n < len && self.mistake != Mistake::ShortWriteIgnored => {
                        let done = self.done[&piece] + n as u64;
                        let file = self.file.clone().expect("open while it is written");
                        self.write(&file, piece, done);
                    }
                    Ok(_) => self.written(piece),
                    Err(_) => self.pieces[piece] = Piece::Missing,
                }
            }
            Outcome::Synced(result) => self.synced(result.is_ok()),
            other => panic!("never asked for: {other:?}"),
        }
    }

    fn written(&mut self, piece: usize) {
        self.pieces[piece] = match self.mistake {
            Mistake::RecordsBeforeSync => Piece::Kept,
            _ => Piece::Written,
        };
    }

    fn synced(&mut self, good: bool) {
        let mut covered = self.syncing.take().expect("one sync at a time");
        if self.mistake == Mistake::SyncCoversLater {
            covered = self.all(Piece::Written);
        }
        if good {
            covered.iter().for_each(|&piece| self.pieces[piece] = Piece::Kept);
        } else if self.mistake != Mistake::SyncFailureIgnored {
            // Final: what it should have covered, and what came since, is written again.
            for piece in self.all(Piece::Written) {
                self.pieces[piece] = Piece::Missing;
            }
            self.restart.extend(self.all(Piece::InFlight));
        }
    }
}

/// What the machine that came up has of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Whole,
    Nothing,
    Torn,
}

fn find(world: &World, root: DirectoryId, piece: usize) -> Found {
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let offset = piece as u64 * PIECE_BYTES;
    let n = world.with_disk(|disk| {
        disk.find(root, PATH.as_bytes()).map_or(0, |node| disk.read(node, offset, &mut bytes))
    });
    if n == bytes.len() && rng::differs(FILE_SEED, offset, &bytes).is_none() {
        Found::Whole
    } else if bytes.iter().all(|&byte| byte == 0) {
        Found::Nothing
    } else {
        Found::Torn
    }
}

#[derive(Default, Debug)]
struct Verdict {
    /// Recorded as kept, and not there.
    broken: Vec<String>,
    images: u32,
    whole: u32,
    lost: u32,
    torn: u32,
    finished: bool,
    trace: u64,
    hits: Faults,
}

/// One writer to its end, with images taken on the way.
fn run(seed: u64, faults: Faults, mistake: Mistake) -> Verdict {
    let mut faults = faults;
    faults.until_ns = Duration::from_secs(60).as_nanos() as u64;
    let world = World::new(seed, faults);
    let root = world.directory();
    let mut writer = Writer::new(&world, root, seed, mistake);
    let (findings, mut verdict) = (writer.io.findings(), Verdict::default());
    let mut chance = Rng::new(seed ^ 0xdead);
    for _ in 0..20_000 {
        writer.turn();
        if chance.per_mille(100) {
            let survives = *chance.pick(&[Survives::Chance, Survives::Prefix(0), Survives::Cache]);
            look(&world, &writer, survives, &mut verdict);
        }
        if writer.is_done() {
            break;
        }
    }
    verdict.finished = writer.is_done();
    look(&world, &writer, Survives::Prefix(0), &mut verdict);
    let (trace, hits) = (world.trace_hash(), world.faults());
    if verdict.finished {
        writer.file = None;
        while writer.io.in_flight() > 0 {
            writer.turn();
        }
        writer.io.finish();
    }
    world.check();
    assert!(findings.borrow().is_empty(), "seed {seed}: {findings:?}");
    Verdict { trace, hits, ..verdict }
}

fn look(world: &World, writer: &Writer, survives: Survives, verdict: &mut Verdict) {
    let after = world.reboot(7, Faults::none(), survives);
    verdict.images += 1;
    for (piece, &state) in writer.pieces.iter().enumerate() {
        let found = find(&after, writer.root, piece);
        if state == Piece::Kept && found != Found::Whole {
            let text = format!("{survives:?} at {:?}: piece {piece} {found:?}", world.now());
            verdict.broken.push(text);
        }
        let written = state == Piece::Written || state == Piece::InFlight;
        if written && survives == Survives::Chance {
            match found {
                Found::Whole => verdict.whole += 1,
                Found::Nothing => verdict.lost += 1,
                Found::Torn => verdict.torn += 1,
            }
        }
    }
}

fn storm(seed: u64) -> Faults {
    Faults::storm_on_writes(&mut Rng::new(seed))
}

#[test]
fn what_was_synced_survives_any_end() {
    let (mut sum, mut hits) = (Verdict::default(), Faults::none());
    for seed in 0..150 {
        let verdict = run(seed, storm(seed), Mistake::None);
        assert!(verdict.broken.is_empty(), "seed {seed}: {:#?}", verdict.broken);
        assert!(verdict.finished, "seed {seed}: never done");
        hits.add_hits(&verdict.hits);
        sum.images += verdict.images;
        sum.whole += verdict.whole;
        sum.lost += verdict.lost;
        sum.torn += verdict.torn;
    }
    println!("{sum:?}");
    assert!(sum.images > 1_000, "{sum:?}");
    // The model takes what it may.
    assert!(sum.whole > 50 && sum.lost > 50 && sum.torn > 50, "{sum:?}");
    let missed: Vec<_> = FaultKind::ALL
        .iter()
        .filter(|kind| kind.is_of_writing() && hits.hits(**kind) == 0)
        .collect();
    assert!(missed.is_empty(), "never hit: {missed:?}");
}

#[test]
fn a_writer_who_gets_it_wrong_is_found() {
    use Mistake::*;
    for mistake in [RecordsBeforeSync, SyncCoversLater, SyncFailureIgnored, ShortWriteIgnored] {
        let broken = (0..150).find(|&seed| !run(seed, storm(seed), mistake).broken.is_empty());
        assert!(broken.is_some(), "{mistake:?} was not found");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..10 {
        let (a, b) = (run(seed, storm(seed), Mistake::None), run(seed, storm(seed), Mistake::None));
        assert_eq!((a.trace, a.torn), (b.trace, b.torn), "seed {seed}");
        assert_ne!(a.trace, run(seed + 1000, storm(seed), Mistake::None).trace, "seed {seed}");
    }
}

/// A new process goes on where the power left the old one, with what was recorded.
#[test]
fn a_writer_goes_on_after_the_power_was_gone() {
    for seed in 0..40 {
        let (mut world, mut kept) = (World::new(seed, storm(seed)), vec![Piece::Missing; PIECES]);
        let root = world.directory();
        let mut chance = Rng::new(seed);
        for life in 0..6 {
            let mut writer = Writer::new(&world, root, seed + life, Mistake::None);
            writer.pieces = kept;
            let turns = if life == 5 { 20_000 } else { chance.below(60) };
            for _ in 0..turns {
                writer.turn();
                if writer.is_done() {
                    break;
                }
            }
            world.check();
            let faults = if life == 4 { Faults::none() } else { storm(seed + life) };
            let after = world.reboot(seed + life, faults, Survives::Chance);
            for piece in writer.all(Piece::Kept) {
                assert_eq!(find(&after, root, piece), Found::Whole, "seed {seed}, life {life}");
            }
            kept = writer
                .pieces
                .iter()
                .map(|&it| if it == Piece::Kept { it } else { Piece::Missing })
                .collect();
            assert!(life < 5 || writer.is_done(), "seed {seed}: never done");
            world = after;
        }
    }
}

#[test]
fn a_full_disk_is_said_and_room_lets_it_go_on() {
    let world = World::new(1, Faults::none());
    let root = world.directory();
    world.limit_space(root, 10 * PIECE_BYTES);
    let mut writer = Writer::new(&world, root, 1, Mistake::None);
    (0..2_000).for_each(|_| writer.turn());
    let kept = writer.count(Piece::Kept);
    assert!((5..10).contains(&kept) && !writer.is_done(), "{kept} pieces in the space of 10");
    world.limit_space(root, 1 << 30);
    (0..2_000).for_each(|_| writer.turn());
    assert!(writer.is_done());
    world.check();
}
