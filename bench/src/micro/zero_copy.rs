//! Owns: the engine's send path against a device that only takes frames: copying and zero-copy.
//! Never: disk, protocol or upload decisions. Flow: cached shares -> `SendBatch` -> ring -> device.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use seedring_platform::{
    Completion, Io as _, Op, Outcome, Token,
    descriptors::Socket,
    memory::{Class, Pool, PoolOptions, Share},
    ring::{Ring, RingOptions},
};
use serde::Serialize;

use super::device::{Device, Peer, retransmitted};
use crate::{
    leech::{Random, parse_bytes},
    namespace,
    probe::{own_cpu_seconds, softirqd_seconds},
};

const BLOCK_BYTES: usize = 16 * 1024;
const PIECE_HEAD_BYTES: usize = 13;
/// Batches of one connection that the kernel may still read from.
const PINNED_MAX: usize = 4;
/// Without progress for so long, acknowledgements were in vain.
const STALL: Duration = Duration::from_millis(5);
/// net.ipv4.tcp_wmem's usual maximum.
const SEND_BUFFER_BYTES: u64 = 4 << 20;
/// Runs until one without a stall.
const TRIES: usize = 5;
/// One segment in so many may have been sent twice.
const LOSSLESS: u64 = 1000;
/// One run, at most.
const SEND_MAX: Duration = Duration::from_secs(60);
const GIB: f64 = 1_073_741_824.0;

#[derive(clap::Args, Clone)]
pub struct Options {
    #[arg(long, short = 'k', default_value_t = 16)]
    connections: usize,
    /// Blocks of 16 KiB in one send.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    blocks: Vec<usize>,
    /// Bytes sent in one run.
    #[arg(long, default_value = "8GiB", value_parser = parse_bytes)]
    size: u64,
    /// Cached content that blocks are chosen from.
    #[arg(long, default_value = "1GiB", value_parser = parse_bytes)]
    cache: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 0)]
    core: usize,
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Serialize)]
struct Run {
    blocks: usize,
    zero_copy: bool,
    /// This process and ksoftirqd.
    cpu_seconds_per_gib: f64,
    softirqd_seconds_per_gib: f64,
    /// Injecting the peers' acknowledgements and the kernel's work on them: part of the above.
    acknowledge_seconds_per_gib: f64,
    mib_per_s: f64,
    /// Of the zero-copy sends, those that the kernel copied after all.
    copied: f64,
    /// Bytes in a frame that the device took: 64 KiB and not 1,500 says that offloads are on.
    frame_bytes: f64,
}

struct Lane {
    socket: Socket,
    peer: Peer,
    sent_bytes: u64,
    /// Bytes of the send in flight, 0 for none: the socket may have taken some of them already.
    sending_bytes: u64,
    pinned: usize,
}

struct Bench {
    ring: Ring,
    device: Device,
    lanes: Vec<Lane>,
    cache: Vec<Share>,
    random: Random,
    completions: Vec<Completion>,
    acknowledging: Duration,
    copied: u64,
    released: u64,
    /// Times that acknowledgements were repeated because nothing moved.
    stalls: u64,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    if !options.inside {
        return namespace::run_inside();
    }
    ensure!(
        options.connections > 0 && options.rounds > 0,
        "--connections and --rounds: at least 1"
    );
    ensure!(
        options.blocks.iter().all(|blocks| (1..=32).contains(blocks)),
        "--blocks: 1 to 32, more do not fit a batch"
    );
    pin(options.core)?;
    let mut bench = Bench::new(options)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for blocks in &options.blocks {
            for zero_copy in [false, true] {
                let run = bench.measure(*blocks, zero_copy, options.size)?;
                eprintln!(
                    "round {round}  {} blocks  {}  {:.3} CPU-s/GiB, {} stalls",
                    run.blocks,
                    if zero_copy { "zero-copy" } else { "copying  " },
                    run.cpu_seconds_per_gib,
                    std::mem::take(&mut bench.stalls)
                );
                runs.push(run);
            }
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    } else {
        print!("{}", crate::report::zero_copy(&rows(options, &runs)));
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(options: &Options, runs: &[Run]) -> Vec<Vec<String>> {
    use crate::compare::Spread;
    let mut rows = Vec::new();
    for blocks in &options.blocks {
        for zero_copy in [false, true] {
            let spread = |of: fn(&Run) -> f64| {
                let chosen =
                    runs.iter().filter(|run| run.blocks == *blocks && run.zero_copy == zero_copy);
                Spread::of(chosen.map(of)).map_or("-".into(), |spread| spread.text(3))
            };
            rows.push(vec![
                blocks.to_string(),
                if zero_copy { "zero-copy" } else { "copying" }.into(),
                spread(|run| run.cpu_seconds_per_gib),
                spread(|run| run.acknowledge_seconds_per_gib),
                spread(|run| run.mib_per_s / 1024.0),
                spread(|run| run.copied),
                spread(|run| run.frame_bytes / 1024.0),
            ]);
        }
    }
    rows
}

fn pin(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("core {core}"))?;
    // No nice level: acknowledgements arrive through softirq, and a sender that starves ksoftirqd
    // sees them a retransmission timeout later. What ksoftirqd spends is counted.
    Ok(())
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        let (device, streams) = Device::open(options.connections)?;
        // Room for the batches' small bytes is the batches' own; the pool holds the cache alone.
        let pool = Pool::new(PoolOptions { cap_bytes: options.cache as usize, huge_pages: true })
            .context("memory for the cache")?;
        let mut random = Random(7);
        let mut cache = Vec::new();
        while let Some(mut lease) = pool.lease(Class::K16) {
            let stamp = random.next().to_le_bytes();
            lease.chunks_mut(8).for_each(|word| word.copy_from_slice(&stamp[..word.len()]));
            cache.push(lease.freeze(BLOCK_BYTES));
        }
        ensure!(!cache.is_empty(), "--cache must hold a block");
        let ring = Ring::new(RingOptions::new(pool, Instant::now())).context(
            "no io_uring, which this part measures; `seedring doctor` says who forbids it",
        )?;
        eprintln!("ring: {:?}", ring.features());
        let lanes = streams
            .into_iter()
            .map(|(stream, peer)| Lane {
                socket: Socket::from_os(stream),
                peer,
                sent_bytes: 0,
                sending_bytes: 0,
                pinned: 0,
            })
            .collect();
        Ok(Bench {
            ring,
            device,
            lanes,
            cache,
            random,
            completions: Vec::new(),
            acknowledging: Duration::ZERO,
            copied: 0,
            released: 0,
            stalls: 0,
        })
    }

    fn measure(&mut self, blocks: usize, zero_copy: bool, bytes: u64) -> Result<Run> {
        // A little first, so that windows, lists and caches are as they stay.
        self.send(blocks, zero_copy, (bytes / 16).max(64 << 20))?;
        for _ in 0..TRIES {
            let (stalls, again) = (self.stalls, retransmitted()?);
            let run = self.measure_once(blocks, zero_copy, bytes)?;
            let again = retransmitted()? - again;
            if self.stalls == stalls && again * LOSSLESS < bytes / 1448 {
                return Ok(run);
            }
            eprintln!("acknowledgements were late ({again} segments sent again): once more");
        }
        anyhow::bail!("acknowledgements were late {TRIES} times: is the machine busy?")
    }

    fn measure_once(&mut self, blocks: usize, zero_copy: bool, bytes: u64) -> Result<Run> {
        (self.copied, self.released, self.acknowledging) = (0, 0, Duration::ZERO);
        let sent_before: u64 = self.lanes.iter().map(|lane| lane.sent_bytes).sum();
        let (frames_before, dropped_before) = Device::dropped()?;
        let softirqd = softirqd_seconds();
        let (start, cpu) = (Instant::now(), own_cpu_seconds());
        self.send(blocks, zero_copy, bytes)?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), own_cpu_seconds() - cpu);
        let softirqd = softirqd_seconds() - softirqd;
        let (frames, dropped) = Device::dropped()?;
        let sent = self.lanes.iter().map(|lane| lane.sent_bytes).sum::<u64>() - sent_before;
        let (frames, dropped) = (frames - frames_before, dropped - dropped_before);
        ensure!(
            dropped >= sent,
            "{sent} bytes sent but {dropped} left: the route is not the device"
        );
        let gib = sent as f64 / GIB;
        Ok(Run {
            blocks,
            zero_copy,
            cpu_seconds_per_gib: (cpu + softirqd) / gib,
            softirqd_seconds_per_gib: softirqd / gib,
            acknowledge_seconds_per_gib: self.acknowledging.as_secs_f64() / gib,
            mib_per_s: gib * 1024.0 / seconds,
            copied: self.copied as f64 / self.released.max(1) as f64,
            frame_bytes: dropped as f64 / frames.max(1) as f64,
        })
    }

    /// Sends at least `bytes`, and waits until the kernel has let go of everything.
    fn send(&mut self, blocks: usize, zero_copy: bool, bytes: u64) -> Result<()> {
        let mut left = bytes as i64;
        let mut progress = Instant::now();
        let deadline = progress + SEND_MAX;
        loop {
            for lane in 0..self.lanes.len() {
                if left > 0
                    && self.lanes[lane].sending_bytes == 0
                    && self.lanes[lane].pinned < PINNED_MAX
                {
                    left -= self.submit(lane, blocks, zero_copy)? as i64;
                }
            }
            self.ring.reap(&mut self.completions, 1024);
            let quiet = self.completions.is_empty();
            if !quiet {
                progress = Instant::now();
            }
            let mut completions = std::mem::take(&mut self.completions);
            for completion in completions.drain(..) {
                self.complete(completion)?;
            }
            self.completions = completions;
            let idle = self.lanes.iter().all(|lane| lane.sending_bytes == 0 && lane.pinned == 0);
            if left <= 0 && idle {
                return Ok(());
            }
            if progress.elapsed() > STALL {
                ensure!(
                    Instant::now() < deadline,
                    "the connections have stalled for good: {}",
                    self.describe()
                );
                self.stalls += 1;
                self.acknowledge_again()?;
            }
            if quiet {
                let until = self.ring.now() + STALL;
                self.ring.wait(Some(until), &|| false);
            }
        }
    }

    fn submit(&mut self, lane: usize, blocks: usize, zero_copy: bool) -> Result<usize> {
        let mut batch = self.ring.batch();
        for _ in 0..blocks {
            let choice = self.random.below(self.cache.len() as u64) as usize;
            let mut head = [0; PIECE_HEAD_BYTES];
            head[..5].copy_from_slice(&[0, 0, 0x40, 9, 7]);
            head[5..].copy_from_slice(&(choice as u64).to_be_bytes());
            batch.push_bytes(&head);
            batch.push_share(&self.cache[choice], 0..BLOCK_BYTES);
        }
        let bytes = batch.len_bytes();
        let socket = self.lanes[lane].socket.clone();
        let token = Token(lane as u64);
        self.ring
            .submit(Op::SendBatch { token, socket, batch, zero_copy })
            .map_err(|_| anyhow::anyhow!("the ring's in-flight table is full"))?;
        self.lanes[lane].sending_bytes = bytes as u64;
        self.lanes[lane].pinned += usize::from(zero_copy);
        Ok(bytes)
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let lane = &mut self.lanes[completion.token.0 as usize];
        match completion.outcome {
            Outcome::Sent { result, batch } => {
                // A short send would break a stream's framing; here nobody reads it.
                lane.sent_bytes += result.context("send")? as u64;
                lane.sending_bytes = 0;
                if let Some(batch) = batch {
                    lane.pinned = lane.pinned.saturating_sub(1);
                    self.ring.recycle(batch);
                }
                let start = Instant::now();
                self.device.acknowledge(&mut lane.peer, lane.sent_bytes)?;
                self.acknowledging += start.elapsed();
            }
            Outcome::Released { batch, copied } => {
                lane.pinned -= 1;
                self.released += 1;
                self.copied += u64::from(copied);
                self.ring.recycle(batch);
            }
            other => anyhow::bail!("not an answer to a send: {other:?}"),
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let busy = self.lanes.iter().filter(|lane| lane.sending_bytes > 0 || lane.pinned > 0);
        let lanes: Vec<String> = busy
            .map(|lane| {
                format!(
                    "sent {} sending {} acknowledged {} pinned {}",
                    lane.sent_bytes,
                    lane.sending_bytes,
                    lane.peer.acknowledged(),
                    lane.pinned
                )
            })
            .collect();
        format!("{} operations in flight; {}", self.ring.in_flight(), lanes.join("; "))
    }

    fn acknowledge_again(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            // At most a send buffer's worth can be unsent.
            let from = lane.sent_bytes.saturating_sub(SEND_BUFFER_BYTES);
            let end = lane.sent_bytes + lane.sending_bytes;
            self.device.acknowledge_in_steps(&mut lane.peer, from, end)?;
        }
        Ok(())
    }
}
