//! Live status on a terminal; nothing where standard error is not one (the log says it then).
//!
//! Owns: the status lines and their place on the terminal. Never: numbers of its own beside rates.
//! Flow: once a second, engine's reports -> lines.

use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::{Engine, torrents::State};

/// Shards that get a line of their own.
const SHARD_LINES_MAX: usize = 16;

pub struct Display {
    bars: Option<Bars>,
    uploaded: Vec<u64>,
    hashed: u64,
    at: Instant,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    work: ProgressBar,
    shards: Vec<ProgressBar>,
}

impl Display {
    pub fn new() -> Display {
        let all = crate::logs::terminal();
        let bars = all.map(|all| {
            all.set_draw_target(ProgressDrawTarget::stderr_with_hz(2));
            let plain = ProgressStyle::with_template("{msg}").expect("invariant: constant");
            let bar = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {msg}")
                .expect("invariant: constant");
            let total = all.add(ProgressBar::new_spinner().with_style(plain));
            let work = all.add(ProgressBar::new(0).with_style(bar));
            Bars { all, total, work, shards: Vec::new() }
        });
        Display { bars, uploaded: Vec::new(), hashed: 0, at: Instant::now() }
    }

    pub fn close(&mut self) {
        if let Some(bars) = self.bars.take() {
            let _ = bars.all.clear();
        }
    }
}

impl Engine {
    pub(in crate::engine) fn show_display(&mut self) {
        let elapsed = self.display.at.elapsed().as_secs_f64().max(0.001);
        self.display.at = Instant::now();
        let uploaded: Vec<u64> =
            self.stats.iter().map(|s| s.as_ref().map_or(0, |s| s.uploaded_bytes)).collect();
        let before = std::mem::replace(&mut self.display.uploaded, uploaded.clone());
        let hashed: u64 = self.stats.iter().flatten().map(|s| s.hashed_bytes).sum();
        let hashed_before = std::mem::replace(&mut self.display.hashed, hashed);
        let Some(bars) = &mut self.display.bars else { return };
        let rate = |now: u64, then: u64| rate((now.saturating_sub(then)) as f64 / elapsed);
        let connections: u32 = self.stats.iter().flatten().map(|s| s.connections).sum();
        bars.total.set_message(format!(
            "{} torrents, {connections} peers, up {}",
            self.torrents.len(),
            rate(uploaded.iter().sum(), before.iter().sum())
        ));
        while bars.shards.len() < uploaded.len().min(SHARD_LINES_MAX) {
            let plain = ProgressStyle::with_template("{msg}").expect("invariant: constant");
            bars.shards.push(bars.all.add(ProgressBar::new_spinner().with_style(plain)));
        }
        for ((n, bar), stats) in bars.shards.iter().enumerate().zip(&self.stats) {
            let Some(stats) = stats else { continue };
            bar.set_message(format!(
                "  shard {n}: {} peers, up {}, cache {}/{} MiB, p99 {} ms",
                stats.connections,
                rate(uploaded[n], before.get(n).copied().unwrap_or(0)),
                stats.cache_bytes >> 20,
                stats.cache_cap_bytes >> 20,
                stats.service_us.value_at_quantile(0.99) / 1_000,
            ));
        }
        let (mut done, mut of) = (0u64, 0u64);
        let mut what = String::from("verifying");
        for torrent in self.torrents.iter() {
            if let State::Verifying { done: pieces, of: all, .. } = &torrent.state {
                done += torrent.total_bytes * u64::from(*pieces) / u64::from(*all).max(1);
                of += torrent.total_bytes;
            }
        }
        if let Some(progress) = &self.made_progress {
            done += progress.done_bytes;
            of += progress.total_bytes;
            what = format!("hashing {}", progress.name);
        }
        if of == 0 {
            bars.work.set_prefix("");
            bars.work.set_length(0);
            bars.work.finish_and_clear();
            return;
        }
        bars.work.set_length(of);
        bars.work.set_position(done);
        bars.work.set_prefix(what);
        let speed = hashed.saturating_sub(hashed_before) as f64 / elapsed;
        let eta = if speed > 0.0 { (of - done.min(of)) as f64 / speed } else { 0.0 };
        bars.work.set_message(format!("{} ETA {:.0} s", rate(hashed, hashed_before), eta));
    }
}

fn rate(bytes_per_s: f64) -> String {
    const UNITS: [&str; 4] = ["B/s", "KiB/s", "MiB/s", "GiB/s"];
    let (mut value, mut unit) = (bytes_per_s, 0);
    while value >= 1_024.0 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_read_well() {
        assert_eq!(super::rate(512.0), "512.0 B/s");
        assert_eq!(super::rate(1.5 * 1_048_576.0), "1.5 MiB/s");
    }
}
