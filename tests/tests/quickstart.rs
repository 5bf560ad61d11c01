//! Owns: the README's promise: on a fresh clone, one command seeds docs/, and a client fetches it
//! with the link that was printed.
//! Never: helps: the configuration is config/quickstart.yaml as it lies in the repository.
//! Flow: clone into a temporary folder, run the engine there, fetch with aria2 and libtorrent.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{
    Client, Network, Process, Scratch, Seeder, Source, repository_root, seedring_binary,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);

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
    command.args(["run", "config/quickstart.yaml"]).current_dir(&clone);
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
