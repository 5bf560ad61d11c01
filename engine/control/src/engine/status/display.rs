//! Live status on a terminal; nothing where standard error is not one (the log says it then).
//!
//! Owns: the status lines and their place on the terminal. Never: numbers of its own beside rates.
//! Flow: once a second, engine's reports -> lines.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::{
    Engine,
    download::missing_bytes,
    torrents::{State, Torrent},
};

/// Shards that get a line of their own.
const SHARD_LINES_MAX: usize = 16;

/// Without a terminal, progress is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest second in the rate from which the remaining time is reckoned.
const SMOOTHING: f64 = 0.3;

pub struct Display {
    bars: Option<Bars>,
    uploaded: Vec<u64>,
    hashed: u64,
    /// Bytes hashed a second, smoothed.
    speed: f64,
    at: Instant,
    logged_at: Instant,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    /// What keeps torrents from going on.
    trouble: Option<ProgressBar>,
    work: Option<ProgressBar>,
    shards: Vec<ProgressBar>,
}

/// What is being hashed now.
struct Work {
    what: String,
    done: u64,
    of: u64,
    /// Of a download, which has a rate of its own: bytes a second, and what else there is to say.
    download: Option<(f64, String)>,
}

impl Display {
    pub(in crate::engine) fn new() -> Display {
        let all = crate::logs::terminal();
        let bars = all.map(|all| {
            all.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
            let total = all.add(plain());
            Bars { all, total, trouble: None, work: None, shards: Vec::new() }
        });
        let now = Instant::now();
        let (uploaded, hashed, speed) = (Vec::new(), 0, 0.0);
        Display { bars, uploaded, hashed, speed, at: now, logged_at: now }
    }

    pub fn close(&mut self) {
        if let Some(bars) = self.bars.take() {
            let _ = bars.all.clear();
        }
    }

    fn show_trouble(&mut self, trouble: Option<String>) {
        let Some(bars) = &mut self.bars else { return };
        match trouble {
            Some(trouble) => {
                let new = || bars.all.insert_after(&bars.total, plain());
                bars.trouble.get_or_insert_with(new).set_message(trouble);
            }
            None => {
                if let Some(bar) = bars.trouble.take() {
                    bar.finish_and_clear();
                    bars.all.remove(&bar);
                }
            }
        }
    }

    fn show_work(&mut self, work: Option<Work>) {
        let Some(Work { what, done, of, download }) = work else {
            if let Some(bars) = &mut self.bars
                && let Some(bar) = bars.work.take()
            {
                bar.finish_and_clear();
                bars.all.remove(&bar);
            }
            return;
        };
        let (speed, more) = download.unwrap_or((self.speed, String::new()));
        let left = if speed < 1.0 {
            String::from("?")
        } else {
            duration(of.saturating_sub(done) as f64 / speed)
        };
        let speed = rate(speed);
        let Some(bars) = &mut self.bars else {
            if self.logged_at.elapsed() >= LOG_EVERY {
                self.logged_at = Instant::now();
                let percent = u128::from(done) * 100 / u128::from(of);
                let mib = of >> 20;
                tracing::info!("{what}: {percent} % of {mib} MiB, {speed}, {left} left{more}");
            }
            return;
        };
        let bar = bars.work.get_or_insert_with(|| {
            let style = "{prefix} [{bar:30}] {percent}% {msg}";
            let style = ProgressStyle::with_template(style).expect("invariant: constant");
            bars.all.insert_after(&bars.total, ProgressBar::new(of).with_style(style))
        });
        bar.set_length(of);
        bar.set_position(done);
        bar.set_prefix(what);
        bar.set_message(format!("{speed}, {left} left{more}"));
    }
}

fn plain() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}").expect("invariant: constant");
    ProgressBar::new_spinner().with_style(style)
}

impl Engine {
    pub(in crate::engine) fn show_display(&mut self) {
        let elapsed = self.display.at.elapsed().as_secs_f64().max(0.001);
        self.display.at = Instant::now();
        let uploaded: Vec<u64> =
            self.stats.iter().map(|s| s.as_ref().map_or(0, |s| s.uploaded_bytes)).collect();
        let before = std::mem::replace(&mut self.display.uploaded, uploaded.clone());
        let made: u64 = self.made_progress.values().map(|progress| progress.done_bytes).sum();
        let hashed = self.stats.iter().flatten().map(|s| s.hashed_bytes).sum::<u64>() + made;
        let newly = hashed.saturating_sub(std::mem::replace(&mut self.display.hashed, hashed));
        self.display.speed += (newly as f64 / elapsed - self.display.speed)
            * if self.display.speed == 0.0 { 1.0 } else { SMOOTHING };
        if self.display.bars.is_some() {
            let trouble = self.what_is_wrong();
            self.display.show_trouble(trouble);
        }
        let work = self.work();
        self.display.show_work(work);
        let Some(bars) = &mut self.display.bars else { return };
        let rate = |now: u64, then: u64| rate((now.saturating_sub(then)) as f64 / elapsed);
        let connections: u32 = self.stats.iter().flatten().map(|s| s.connections).sum();
        bars.total.set_message(format!(
            "{}, {connections} peers, up {}",
            super::ready::plural(self.torrents.len()),
            rate(uploaded.iter().sum(), before.iter().sum())
        ));
        while bars.shards.len() < uploaded.len().min(SHARD_LINES_MAX) {
            bars.shards.push(bars.all.add(plain()));
        }
        for ((n, bar), stats) in bars.shards.iter().enumerate().zip(&self.stats) {
            let Some(stats) = stats else { continue };
            bar.set_message(format!(
                "  shard {n}: {} peers, up {}, cache {}/{} MiB, p99 {:.1} ms",
                stats.connections,
                rate(uploaded[n], before.get(n).copied().unwrap_or(0)),
                stats.cache_bytes >> 20,
                stats.cache_cap_bytes >> 20,
                stats.service_us.value_at_quantile(0.99) as f64 / 1_000.0,
            ));
        }
    }

    fn work(&self) -> Option<Work> {
        let what = String::from("verifying");
        let mut work = Work { what, done: 0, of: 0, download: None };
        for torrent in self.torrents.iter() {
            if let State::Verifying { done, of, .. } = &torrent.state {
                let share = u128::from(torrent.total_bytes) * u128::from(*done);
                work.done += (share / u128::from((*of).max(1))) as u64;
                work.of += torrent.total_bytes;
            }
        }
        for progress in self.made_progress.values() {
            work.done += progress.done_bytes;
            work.of += progress.total_bytes;
            work.what = format!("hashing {}", progress.name);
        }
        if work.of > 0 { Some(work) } else { self.downloads() }
    }

    /// What keeps torrents from going on: as it is now, so that it goes when the trouble does,
    /// which a line of the log does not.
    fn what_is_wrong(&self) -> Option<String> {
        let of = |torrent: &Torrent| match &torrent.state {
            State::Waiting(why) => Some(format!("{} waits: {why}", torrent.name)),
            State::Metadata => Some(match &torrent.note {
                Some(note) => format!("{}: {note}", torrent.name),
                None => format!("{}: peers are asked what its files are", torrent.name),
            }),
            State::Downloading => {
                let halted = torrent.download.as_ref().and_then(|it| it.halted.as_ref());
                halted.map(|halt| format!("{} is halted: {}", torrent.name, halt.why))
            }
            _ => None,
        };
        let mut all = self.torrents.iter().filter_map(of);
        let first = all.next()?;
        Some(match all.count() {
            0 => first,
            more => format!("{first} (and {more} more: `seedring list`)"),
        })
    }

    /// All that is downloaded, as one.
    fn downloads(&self) -> Option<Work> {
        let fetching = |torrent: &&Torrent| torrent.state == State::Downloading;
        let mut work = Work { what: String::new(), done: 0, of: 0, download: None };
        let (mut speed, mut peers, mut pieces, mut had, mut torrents) = (0.0, 0, 0, 0, 0);
        for torrent in self.torrents.iter().filter(fetching) {
            let map = &torrent.shared.pieces;
            let there = u128::from(torrent.total_bytes) * u128::from(map.verified_count());
            let there = (there / u128::from(map.piece_count().max(1))) as u64;
            work.done += there;
            work.of += there + missing_bytes(torrent);
            speed += torrent.download.as_ref().map_or(0.0, |download| download.rates.down);
            peers += torrent.shared.connections.load(Ordering::Relaxed);
            (had, pieces) = (had + map.verified_count(), pieces + map.piece_count());
            torrents += 1;
            work.what = format!("downloading {}", torrent.name);
        }
        if torrents > 1 {
            work.what = format!("downloading {}", super::ready::plural(torrents));
        }
        work.download = Some((speed, format!(", {had} of {pieces} pieces, {peers} peers")));
        (work.of > 0).then_some(work)
    }
}

/// `1 h 4 min`, `4 min 10 s`, `10 s`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
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
        assert_eq!(super::duration(9.2), "10 s");
        assert_eq!(super::duration(250.0), "4 min 10 s");
        assert_eq!(super::duration(3_840.0), "1 h 4 min");
    }
}
