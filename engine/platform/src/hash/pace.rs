//! Which kernel is best for how many streams, and what a step costs.
//!
//! Owns: the choice, measured once in this process (about a millisecond). Never: hashes content.
//! Flow: control measures when it starts; `lanes` asks for each group of streams; verification
//! plans a tick with the costs.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::{
    BLOCK_BYTES, INITIAL,
    kernels::{Kernel, STREAMS_MAX},
};

/// Blocks of each stream in a measured run: 8 KiB, which stay in the first cache.
const RUN_BLOCKS: usize = 128;
/// The fastest of these runs counts: others were interrupted, or came before the clock was up.
const RUNS: usize = 10;
/// More streams at once than this many percent faster a stream are not worth their memory.
const WORTH_PERCENT: u64 = 3;

/// The costs of hashing on one CPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pace {
    streams: usize,
    /// By number of streams less one: with which kernel the first of them go on.
    kernels: [Kernel; STREAMS_MAX],
    /// By number of streams less one: picoseconds to take each of them over one block.
    costs_ps: [u64; STREAMS_MAX],
}

impl Pace {
    /// That of this CPU. The first call measures.
    pub fn measured() -> &'static Pace {
        static MEASURED: OnceLock<Pace> = OnceLock::new();
        MEASURED.get_or_init(|| {
            let available = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available());
            let costs: Vec<_> = available.map(|kernel| (kernel, measure(kernel))).collect();
            Pace::of(&costs)
        })
    }

    /// Made of at least one kernel, with the picoseconds that a block of all its streams takes.
    pub fn of(costs: &[(Kernel, u64)]) -> Pace {
        let mut kernels = [Kernel::Single; STREAMS_MAX];
        let mut costs_ps = [0; STREAMS_MAX];
        for n in 1..=STREAMS_MAX {
            // The first few with this kernel, what is left in the best way.
            let whole = |(kernel, cost): (Kernel, u64)| {
                let left = n - kernel.streams().min(n);
                (cost + if left == 0 { 0 } else { costs_ps[left - 1] }, kernel)
            };
            let best = costs.iter().copied().map(whole).min_by_key(|(cost, _)| *cost);
            (costs_ps[n - 1], kernels[n - 1]) = best.expect("at least one kernel");
        }
        // Of 720720 streams, which all these numbers divide.
        let a_stream = |n: usize| costs_ps[n - 1] * (720_720 / n as u64);
        let best = (1..=STREAMS_MAX).map(a_stream).min().unwrap_or_default();
        let worth = best + best * WORTH_PERCENT / 100;
        let streams = (1..=STREAMS_MAX).find(|n| a_stream(*n) <= worth).unwrap_or(1);
        Pace { streams, kernels, costs_ps }
    }

    /// As many streams as are worth having at hand: more are not faster.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// With what the first of this many streams go on.
    pub fn kernel(&self, streams: usize) -> Kernel {
        self.kernels[streams.clamp(1, STREAMS_MAX) - 1]
    }

    /// How long this many streams take for so many bytes each.
    pub fn time(&self, streams: usize, bytes_each: usize) -> Duration {
        let blocks = bytes_each.div_ceil(BLOCK_BYTES) as u64;
        let cost_ps = self.costs_ps[streams.clamp(1, STREAMS_MAX) - 1];
        Duration::from_nanos(cost_ps * blocks / 1_000)
    }
}

/// Picoseconds that a block of all its streams takes.
fn measure(kernel: Kernel) -> u64 {
    let data = vec![[0x5a; BLOCK_BYTES]; RUN_BLOCKS];
    let mut states = [INITIAL; STREAMS_MAX];
    let blocks = [data.as_slice(); STREAMS_MAX];
    let n = kernel.streams();
    let run = |_| {
        let start = Instant::now();
        kernel.advance(&mut states[..n], &blocks[..n]);
        start.elapsed()
    };
    let fastest = (0..RUNS).map(run).min().unwrap_or_default();
    // Lossless: a run takes microseconds.
    (fastest.as_nanos() as u64 * 1_000 / RUN_BLOCKS as u64).max(1)
}
