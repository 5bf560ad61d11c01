//! Owns: load that comes from several machines: `controller`, `agent`, `watch`, and the runner's
//! side of a scenario that is given one (`run --controller`).
//! Never: another load, another target or another figure than the bare run has.
//! Flow: runner starts a target -> asks the controller for a load -> agents play their parts of one
//! crowd -> outcomes merged -> the runner's report.

mod clock;
mod wire;

pub mod agent;
pub mod controller;
pub mod watch;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

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
