//! Pieces in part that outlive a seed, a stop or a crash, and the rate at which downloads ask.
//!
//! Owns: what the end of a seed, a stop, and the loss of power at any moment may cost of what was
//! gathered.
//! Never: real time, files or sockets. Flow: a swarm downloads -> ends -> the disk as it was left
//! -> another swarm goes on with what the store would have. `SEEDRING_SIM_SEEDS` says how many
//! seeds.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering, time::Duration};

use seedring_proto::units::PieceIndex;
use seedring_shard::{
    Command,
    torrent::{Download, KeptPiece},
};
use seedring_tests::sim::{
    FaultKind, Faults, Link, Rng, Survives, World,
    seed::{Gifts, Manners, Seed},
    swarm::{Plan, Swarm},
    torrent::SimTorrent,
};

const START: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const BLOCK: u64 = 16 << 10;
const POOL_BYTES: usize = 64 << 20;
/// Blocks that are on their way from one seed.
const PIPELINE: u64 = 64;

fn seeds(short: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEEDRING_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDRING_SIM_SEEDS").unwrap_or(short),
    }
}

struct Run {
    swarm: Swarm,
    torrent: Rc<SimTorrent>,
    gifts: Gifts,
}

impl Run {
    fn new(world: World, shards: usize, again: bool, torrent: SimTorrent, of: Download) -> Run {
        world.set_link(Some(Link::FAST));
        let plan = Plan { shards, again, pool_bytes: POOL_BYTES, ..Plan::default() };
        let mut swarm = Swarm::new(world, plan);
        let torrent = swarm.go_on_with(torrent, of);
        Run { swarm, torrent, gifts: Gifts::default() }
    }

    fn add_seeds(&mut self, count: u8, bytes_per_s: u64) {
        let pieces = self.torrent.layout.piece_count();
        (0..count).for_each(|n| self.add_seed(n, Manners::plain(pieces, bytes_per_s)));
    }

    /// One that comes by itself, or one that is dialled and, once it is gone, stays away.
    fn add_seed(&mut self, n: u8, manners: Manners) {
        let (torrent, gifts, to) = (self.torrent.clone(), self.gifts.clone(), self.swarm.address);
        let waits = manners.waits;
        let seed = Seed::new(torrent, manners, gifts, to, u64::from(n));
        let from = SocketAddr::from(([10, 9, 0, n + 1], 7_000));
        let peer = self.swarm.world.add_peer(Box::new(seed), from);
        if waits {
            self.swarm.world.peer_listens(peer);
            let torrent = self.torrent.id;
            return self.swarm.tell(0, Command::Dial { torrent, address: from });
        }
        let begin = self.swarm.world.now().max(START);
        self.swarm.world.dial_at(peer, to, begin);
    }

    /// What the store would have: pieces synced, and the blocks of others.
    fn stored(&self) -> (Vec<PieceIndex>, Vec<KeptPiece>) {
        let loading = &self.swarm.loadings.all[0];
        let synced = (0..self.torrent.layout.piece_count()).map(PieceIndex);
        let synced = synced.filter(|piece| loading.download.is_synced(*piece)).collect();
        let missing = |kept: &&KeptPiece| !loading.shared.pieces.is_verified(kept.piece);
        let kept = self.swarm.loadings.kept.borrow().iter().filter(missing).cloned().collect();
        (synced, kept)
    }

    /// To completion; blocks that were fetched for it.
    fn complete(mut self) -> Result<u64, Vec<String>> {
        let done = self.swarm.run(HOUR, Swarm::is_loaded);
        let mut findings = self.swarm.had_and_not_there();
        if !done {
            findings.push("it does not complete".into());
        }
        let blocks = self.gifts.borrow().blocks.values().map(|times| u64::from(*times)).sum();
        findings.extend(self.swarm.stop().0);
        if findings.is_empty() { Ok(blocks) } else { Err(findings) }
    }
}

fn torrent(bytes: u64, piece_bytes: u32) -> SimTorrent {
    SimTorrent::plain(0, bytes, piece_bytes, &mut Rng::new(1))
}

fn download(pieces: u32, (synced, kept): (Vec<PieceIndex>, Vec<KeptPiece>)) -> Download {
    let download = Download::new(pieces).with_kept(kept);
    synced.into_iter().for_each(|piece| download.set_synced(piece));
    download
}

fn blocks_of(kept: &[KeptPiece]) -> u64 {
    kept.iter().map(|kept| kept.numbers().count() as u64).sum()
}

#[test]
fn a_stop_in_the_middle_of_pieces_costs_nothing_that_was_gathered() {
    for seed in seeds(8) {
        let mut rng = Rng::new(seed ^ 0x4e);
        let (bytes, piece_bytes) = (24 << 20, *rng.pick(&[1 << 20, 4 << 20]));
        let shards = rng.between(1, 2) as usize;
        let all = torrent(bytes, piece_bytes);
        let pieces = all.layout.piece_count();
        let mut run =
            Run::new(World::new(seed, Faults::none()), shards, false, all, Download::new(pieces));
        run.add_seeds(4, 400_000);
        run.swarm.run(Duration::from_millis(rng.between(2_000, 9_000)), |_| false);
        let loading = &run.swarm.loadings.all[0];
        let (shared, of) = (loading.shared.clone(), loading.download.clone());
        let (world, kept) = (run.swarm.world.clone(), run.swarm.loadings.kept.clone());
        let given: u64 = run.gifts.borrow().blocks.len() as u64;
        assert_eq!(run.swarm.stop().0, Vec::<String>::new(), "seed {seed}");

        let missing = |kept: &&KeptPiece| !shared.pieces.is_verified(kept.piece);
        let kept: Vec<KeptPiece> = kept.borrow().iter().filter(missing).cloned().collect();
        let synced = (0..pieces).map(PieceIndex).filter(|piece| of.is_synced(*piece));
        let synced: Vec<PieceIndex> = synced.collect();
        let had = synced.len() as u64 * u64::from(piece_bytes) / BLOCK + blocks_of(&kept);
        assert!(had + 4 * PIPELINE >= given, "seed {seed}: {had} of {given} blocks are kept");
        let after = world.reboot(seed, Faults::none(), Survives::Chance);
        let all = torrent(bytes, piece_bytes);
        let shards = rng.between(1, 2) as usize;
        let mut run = Run::new(after, shards, true, all, download(pieces, (synced, kept)));
        run.add_seeds(4, 400_000);
        let fetched = run.complete().unwrap_or_else(|why| panic!("seed {seed}: {why:?}"));
        let rest = bytes / BLOCK - had;
        assert!(fetched <= rest + 16, "seed {seed}: {fetched} blocks, {rest} were missing");
    }
}

#[test]
fn a_seed_that_vanishes_and_comes_again_costs_only_what_was_on_its_way() {
    for seed in seeds(8) {
        let mut rng = Rng::new(seed ^ 0x7a);
        let (bytes, piece_bytes) = (24 << 20, 4 << 20);
        let all = torrent(bytes, piece_bytes);
        let pieces = all.layout.piece_count();
        let shards = rng.between(1, 2) as usize;
        let world = World::new(seed, Faults::none());
        let mut run = Run::new(world, shards, false, all, Download::new(pieces));
        let mut manners = Manners::plain(pieces, 400_000);
        manners.vanishes_at = Some(rng.between(100, 1_400));
        run.add_seed(0, manners);
        let fetched = run.complete().unwrap_or_else(|why| panic!("seed {seed}: {why:?}"));
        let twice = fetched - bytes / BLOCK;
        assert!(twice <= PIPELINE, "seed {seed}: {twice} blocks were fetched twice");
    }
}

#[test]
fn pieces_whose_seeds_are_gone_do_not_keep_others_from_coming() {
    for shards in [1, 2] {
        let piece_bytes = 4 << 20;
        // Half of the pool is for downloads: eight such pieces.
        let all = torrent(12 * u64::from(piece_bytes), piece_bytes);
        let pieces = all.layout.piece_count();
        let world = World::new(shards as u64, Faults::none());
        let mut run = Run::new(world, shards, false, all, Download::new(pieces));
        let of = |has: &dyn Fn(usize) -> bool| {
            let mut manners = Manners::plain(pieces, 400_000);
            manners.has = (0..pieces as usize).map(has).collect();
            manners
        };
        for n in 0..9_u8 {
            let mut manners = of(&|piece| piece == usize::from(n));
            manners.waits = true;
            manners.vanishes_at = Some(100);
            run.add_seed(n, manners);
        }
        run.swarm.run(Duration::from_secs(20), |_| false);
        run.add_seed(9, of(&|piece| piece >= 9));
        let had = |swarm: &Swarm| {
            let all = &swarm.loadings.all[0].shared.pieces;
            (9..12).all(|piece| all.is_verified(PieceIndex(piece)))
        };
        // That a seed is gone without a word is noticed after minutes.
        assert!(run.swarm.run(Duration::from_secs(900), had), "{shards} shards: they do not come");
        run.add_seed(10, Manners::plain(pieces, 4_000_000));
        let fetched = run.complete().unwrap_or_else(|why| panic!("{shards} shards: {why:?}"));
        println!("{shards} shards: {fetched} blocks of {}", 12 * piece_bytes / BLOCK as u32);
    }
}

#[test]
fn the_loss_of_power_costs_little_of_a_large_piece_that_comes_slowly() {
    let mut most = 0;
    for seed in seeds(8) {
        let mut rng = Rng::new(seed ^ 0x9e);
        let mut faults = Faults::storm_on_writes(&mut rng);
        faults.set(FaultKind::TableFull, 0);
        faults.until_ns = 60_000_000_000;
        let (bytes, piece_bytes) = (32 << 20, 16 << 20);
        let all = torrent(bytes, piece_bytes);
        let mut run = Run::new(World::new(seed, faults), 1, false, all, Download::new(2));
        run.add_seeds(2, 150_000);
        let mut at = Duration::from_secs(20);
        for _ in 0..6 {
            at += Duration::from_millis(rng.between(1, 9_000));
            run.swarm.run(at, |_| false);
            let given = run.gifts.borrow().blocks.len() as u64;
            let stored = run.stored();
            let had = stored.0.len() as u64 * u64::from(piece_bytes) / BLOCK + blocks_of(&stored.1);
            let lost = given.saturating_sub(had);
            most = most.max(lost);
            let survives = *rng.pick(&[Survives::Prefix(0), Survives::Chance]);
            let after = run.swarm.world.reboot(seed, Faults::none(), survives);
            let all = torrent(bytes, piece_bytes);
            let mut next = Run::new(after, 1, true, all, download(2, stored));
            next.add_seeds(4, 4_000_000);
            let fetched = next.complete().unwrap_or_else(|why| panic!("seed {seed}: {why:?}"));
            let rest = bytes / BLOCK - had;
            assert!(fetched <= rest + 16, "seed {seed}: {fetched} blocks, {rest} were missing");
        }
    }
    // 300 KB/s for 5 s and a MiB, and a failed write now and then.
    println!("at most {most} blocks were lost");
    assert!(most * BLOCK < 8 << 20, "{most} blocks were lost");
}

#[test]
fn a_limit_of_the_download_holds_within_two_percent() {
    for (rate, of_torrent, shards) in
        [(200_000, false, 1), (200_000, true, 2), (2_000_000, false, 2)]
    {
        let all = torrent(rate * 30, 256 << 10);
        let pieces = all.layout.piece_count();
        let world = World::new(rate, Faults::none());
        let mut run = Run::new(world, shards, false, all, Download::new(pieces));
        match of_torrent {
            true => run.swarm.loadings.all[0].shared.receive.set(Some(rate)),
            false => run.swarm.globals.download.set(Some(rate)),
        }
        run.add_seeds(6, 2_000_000);
        let shared = run.swarm.loadings.all[0].shared.clone();
        let mut came = |until: u64| {
            run.swarm.run(Duration::from_secs(until), |_| false);
            shared.downloaded_bytes.load(Ordering::Relaxed)
        };
        let (before, after) = (came(5), came(25));
        let ratio = (after - before) as f64 / (rate * 20) as f64;
        println!("{rate} bytes/s: {ratio:.4} of it came");
        assert!((0.98..=1.02).contains(&ratio), "{rate}: {ratio}");
        assert_eq!(run.swarm.stop().0, Vec::<String>::new());
    }
}
