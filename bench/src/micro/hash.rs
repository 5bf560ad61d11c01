//! Owns: how fast a core hashes pieces: each kernel by itself, and what is chosen for a number of
//! streams. Never: reads files. Flow: pieces in memory, in chunks as the engine has them, are fed
//! side by side again and again.

use std::{
    fmt::Write as _,
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use seedring_platform::hash::{Feed, Kernel, Pace, PieceHasher, update_at};

#[derive(clap::Args)]
pub struct Options {
    /// Bytes of a piece
    #[arg(long, default_value_t = 1 << 20)]
    piece_bytes: usize,
    /// Bytes of each piece that are fed in one go
    #[arg(long, default_value_t = 64 << 10)]
    step_bytes: usize,
    /// Bytes by which each piece begins later in its page than the one before
    #[arg(long, default_value_t = 0)]
    skew_bytes: usize,
    /// Runs of each line; the medians are told
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// How long a run takes, about
    #[arg(long, default_value_t = 40)]
    run_ms: u64,
}

/// Content lies on pages; what the allocator gives does not.
const PAGE_BYTES: usize = 4096;
const STREAMS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.step_bytes > 0 && options.piece_bytes > 0 && options.runs > 0, "nothing to do");
    let chosen = Pace::measured();
    let mut columns: Vec<(&str, Pace)> = Vec::new();
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        columns.push((kernel.name(), Pace::of(&[(kernel, 100_000)])));
    }
    columns.push(("chosen", chosen.clone()));
    let mut out = String::from("GiB/s a core\nstreams ");
    columns.iter().try_for_each(|(name, _)| write!(out, "{name:>11}"))?;
    println!("{out}  with");
    for streams in STREAMS {
        let memory: Vec<Vec<u8>> = (0..streams)
            .map(|n| vec![n as u8 + 1; options.piece_bytes + PAGE_BYTES + n * options.skew_bytes])
            .collect();
        let pieces: Vec<&[u8]> = (0..streams)
            .map(|n| {
                let from = memory[n].as_ptr().align_offset(PAGE_BYTES) + n * options.skew_bytes;
                &memory[n][from..from + options.piece_bytes]
            })
            .collect();
        let mut line = format!("{streams:>7} ");
        for (_, pace) in &columns {
            write!(line, "{:>11.2}", median(options, pace, &pieces))?;
        }
        println!("{line}  {}", chosen.kernel(streams).name());
    }
    println!("worth having at hand: {} streams", chosen.streams());
    Ok(ExitCode::SUCCESS)
}

/// GiB a second.
fn median(options: &Options, pace: &Pace, pieces: &[&[u8]]) -> f64 {
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut rates: Vec<f64> = (0..options.runs)
        .map(|_| {
            let (start, mut passes) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_millis(options.run_ms) {
                hash_all(pace, pieces, options.step_bytes);
                passes += 1;
            }
            (passes * bytes) as f64 / (1 << 30) as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn hash_all(pace: &Pace, pieces: &[&[u8]], step_bytes: usize) {
    let mut hashers = vec![PieceHasher::new(); pieces.len()];
    let piece_bytes = pieces[0].len();
    for from in (0..piece_bytes).step_by(step_bytes) {
        let to = (from + step_bytes).min(piece_bytes);
        let parts: Vec<&[u8]> = pieces.iter().map(|piece| &piece[from..to]).collect();
        let pairs = hashers.iter_mut().zip(&parts);
        let feed = |(hasher, part)| Feed { hasher, parts: std::slice::from_ref(part) };
        update_at(pace, &mut pairs.map(feed).collect::<Vec<_>>());
    }
    for hasher in hashers {
        black_box(hasher.finish());
    }
}
