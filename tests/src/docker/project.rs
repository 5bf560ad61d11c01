//! Owns: one Compose project of a file as users have it: up, its logs, down, what is left.
//! Never: changes the file; what differs by machine is in its variables.
//! Flow: `mod.rs`.

use super::{docker, image, run, unused_name};
use anyhow::{Result, bail, ensure};
use rustix::process::{Resource, getrlimit};
use std::process::Command;

/// What the files leave to the machine: images, and limits, which may be lower than wanted.
pub(super) fn of_this_machine() -> Vec<(String, String)> {
    let hard = |resource| getrlimit(resource).maximum.map_or(-1, u64::cast_signed).to_string();
    vec![
        ("SEEDRING_IMAGE".to_owned(), image("seedring")),
        ("SEEDRING_BENCH_IMAGE".to_owned(), image("seedring-bench")),
        ("SEEDRING_NOFILE".to_owned(), hard(Resource::Nofile)),
        ("SEEDRING_MEMLOCK".to_owned(), hard(Resource::Memlock)),
    ]
}

/// Taken down when dropped.
#[derive(Debug)]
pub struct Project {
    name: String,
    file: &'static str,
    variables: Vec<(String, String)>,
}

impl Project {
    /// Of a file in docker/.
    pub fn new(file: &'static str, variables: &[(&str, &str)]) -> Self {
        let mut all = of_this_machine();
        all.extend(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        Self { name: unused_name(), file, variables: all }
    }

    /// Runs Compose (the plugin, or the program of its own that Debian has).
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        let plugin = super::try_docker(&["compose", "version"])?.0 == 0;
        let mut command = Command::new(if plugin { "docker" } else { "docker-compose" });
        if plugin {
            command.arg("compose");
        }
        // Compose 1 looks for the profile in the working folder.
        command.args(["-p", &self.name, "-f", self.file]).args(arguments);
        command.current_dir(super::file("")).envs(self.variables.iter().cloned());
        let (status, text) = run(&mut command)?;
        if status != 0 {
            bail!("compose {}: status {status}: {text}", arguments.join(" "));
        }
        Ok(text)
    }

    /// The ids of a service's containers, those that ended among them.
    pub fn containers(&self, service: &str) -> Result<Vec<String>> {
        let label = format!("label=com.docker.compose.service={service}");
        let ids = docker(&["ps", "-aq", "--filter", &self.label(), "--filter", &label])?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.name)
    }

    /// Down, with its volumes; then nothing of it may be there.
    pub fn end(self) -> Result<()> {
        self.compose(&["down", "-v"])?;
        let filter = ["--filter", &self.label()];
        for what in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
            let left = docker(&[what, &filter].concat())?;
            ensure!(left.is_empty(), "docker {}: {left} is left behind", what.join(" "));
        }
        Ok(())
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "-v", "-t", "1"]);
    }
}
