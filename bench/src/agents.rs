//! Owns: load that comes from several machines: `controller`, `agent`, `watch`, and the runner's
//! side of a scenario that is given one (`run --controller`).
//! Never: another load, another target or another figure than the bare run has.
//! Flow: runner starts a target -> asks the controller for a load -> agents play their parts of one
//! crowd -> outcomes merged -> the runner's report.

mod clock;
mod door;
mod play;
mod seeds;
mod task;
mod wire;

pub mod agent;
pub mod controller;
pub mod nodes;
pub mod runner;
pub mod watch;

pub use seeds::{Ask, Seeded};

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use wire::Place;

/// In place of --token, so that it does not stand in the list of processes.
const TOKEN_VARIABLE: &str = "SEEDRING_BENCH_TOKEN";
/// Shorter ones are guessed.
const TOKEN_BYTES_MIN: usize = 8;

/// What everyone who takes part has to know.
#[derive(clap::Args, Clone)]
pub struct Secret {
    /// What all who take part have in common, at least 8 letters; or in the environment's
    /// SEEDRING_BENCH_TOKEN, or in a file.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// A file that holds the token, such as a secret of a Swarm.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

impl Secret {
    pub fn read(&self) -> Result<String> {
        let of_file = self.token_file.as_ref().map(|path| {
            let text = fs::read_to_string(path);
            text.with_context(|| format!("cannot read the token's file {}", path.display()))
        });
        let token = match of_file.transpose()?.or_else(|| self.token.clone()) {
            Some(token) => token,
            None => std::env::var(TOKEN_VARIABLE).with_context(|| {
                format!("a token is needed: --token, --token-file or {TOKEN_VARIABLE}")
            })?,
        };
        let token = token.trim().to_owned();
        ensure!(
            (TOKEN_BYTES_MIN..=wire::TOKEN_BYTES_MAX).contains(&token.len()),
            "the token has {} bytes: {TOKEN_BYTES_MIN} to {} are wanted, such as `openssl rand \
             -hex 16` gives",
            token.len(),
            wire::TOKEN_BYTES_MAX
        );
        Ok(token)
    }
}

impl Place {
    pub fn here() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let network = fs::read_link("/proc/self/ns/net").unwrap_or_default();
        Place { boot: boot.trim().to_owned(), network: network.display().to_string() }
    }
}

/// Torrents in messages that are not too long; the last of them is marked.
fn chunks(torrents: &[String]) -> Vec<(&[String], bool)> {
    let mut chunks = Vec::new();
    let mut rest = torrents;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |torrent: &&String| {
            bytes += torrent.len();
            bytes <= wire::CHUNK_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (chunk, others) = rest.split_at(count);
        chunks.push((chunk, others.is_empty()));
        rest = others;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_all_of_it_in_order_and_the_last_is_marked() {
        let of = |bytes: usize| "x".repeat(bytes);
        let torrents =
            [of(10), of(wire::CHUNK_BYTES), of(3 * wire::CHUNK_BYTES), of(1), of(2), of(0)];
        let chunks = chunks(&torrents);
        let counts: Vec<usize> = chunks.iter().map(|(torrents, _)| torrents.len()).collect();
        assert_eq!(counts, [1, 1, 1, 3]);
        let last: Vec<bool> = chunks.iter().map(|(_, is_last)| *is_last).collect();
        assert_eq!(last, [false, false, false, true]);
        assert!(super::chunks(&[]).is_empty());
    }
}
