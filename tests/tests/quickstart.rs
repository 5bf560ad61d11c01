//! Owns: the README's promise: on a fresh clone, one command seeds docs/, and a client fetches it
//! with the link that was printed; another runs all tests.
//! Never: helps: the commands are the README's, the configuration lies in the repository. Nor
//! builds: that cargo would run the engine is read from its metadata.
//! Flow: clone into a temporary folder, run the engine there, fetch with aria2 and libtorrent.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{
    Client, Network, Process, Scratch, Seeder, Source, repository_root, seedring_binary,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);
/// The README's commands before its first section.
const COMMANDS: [&str; 2] = ["cargo run --release -- run config/quickstart.yaml", "tests/run"];

fn files_below(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                files.insert(name, std::fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

#[test]
fn the_readme_has_two_commands_and_the_first_one_runs_the_engine() -> Result<()> {
    let root = repository_root();
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let opening = readme.lines().take_while(|line| !line.starts_with("## "));
    let commands: Vec<&str> = opening.filter_map(|line| line.strip_prefix("    ")).collect();
    ensure!(commands == COMMANDS, "README.md opens with {commands:?}");
    let mode = std::fs::metadata(root.join(COMMANDS[1]))?.permissions().mode();
    ensure!(mode & 0o111 == 0o111, "{} has the mode {mode:o}", COMMANDS[1]);

    // `cargo run` takes the one program of the default members; where there are more, it fails.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let told = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(&root)
        .output()?;
    ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let members = list(&told["workspace_default_members"]);
    let mut programs = Vec::new();
    for package in list(&told["packages"]) {
        if members.contains(&package["id"]) {
            let is_program = |target: &Value| list(&target["kind"]).contains(&"bin".into());
            let targets = list(&package["targets"]).into_iter().filter(is_program);
            programs.extend(targets.map(|target| target["name"].clone()));
        }
    }
    ensure!(programs == ["seedring"], "`cargo run` finds the programs {programs:?}");
    Ok(())
}

#[test]
fn the_quick_start_seeds_its_own_docs() -> Result<()> {
    let scratch = Scratch::new(TMP, "quickstart")?;
    let clone = scratch.path().join("clone");
    let cloned = Command::new("git")
        .args(["clone", "--quiet", "--local", "--no-hardlinks"])
        .args([repository_root(), clone.clone()])
        .output()?;
    ensure!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));

    // A host of its own: the quick start's ports are fixed.
    let network = Network::new(1)?;
    let host = network.host(0);
    let mut command = host.command(seedring_binary()?);
    let (_, arguments) = COMMANDS[0].split_once(" -- ").context("arguments of the engine")?;
    command.args(arguments.split(' ')).current_dir(&clone);
    let log = scratch.path().join("seedring.log");
    let process = Process::start("seedring", &mut command, &log)?;
    let mut seeder = Seeder::read_links(&host, &clone, process)?;

    let printed = seeder.process().log();
    ensure!(printed.contains("aria2c") || printed.contains("transmission"), "how? {printed}");
    let docs = files_below(&clone.join("docs"))?;
    ensure!(!docs.is_empty(), "docs/ is empty");
    // The .torrent may be printed as a path relative to where the command ran.
    let torrent = clone.join(seeder.torrent());
    let sources = [
        (Client::Aria2, Source::Torrent(&torrent)),
        (Client::Aria2, Source::Magnet(seeder.magnet())),
        (Client::Libtorrent, Source::Magnet(seeder.magnet())),
    ];
    for (number, (client, source)) in (1..).zip(sources) {
        let folder = scratch.folder(&format!("client-{number}"))?;
        let copy = scratch.folder(&format!("copy-{number}"))?;
        client.fetch(&host, &folder, &copy, source, LIMIT)?;
        let mut fetched = files_below(&copy.join("seedring-docs"))?;
        fetched.retain(|name, _| !name.ends_with(".aria2"));
        ensure!(fetched == docs, "the fetched docs differ from docs/");
    }
    let status = seeder.process().terminate(Duration::from_secs(20))?;
    ensure!(status.success(), "SIGTERM: {status}");
    Ok(())
}
