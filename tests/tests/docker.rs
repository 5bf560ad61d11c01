//! Owns: the image of the engine: what is in it, who it is, what it writes, how it ends.
//! Never: builds it (`tests/run docker` does, without a registry) or pulls anything.
//! Flow: containers of the image that was built, a client on this machine, a look from outside.

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::{Container, Volume, docker, image, profile, try_docker};
use seedring_tests::interop::{Content, Process, Scratch, Shape, python, script, wait_until};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
/// What a user is told to give: nothing but what the engine needs.
const BARE: [&str; 5] =
    ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--health-interval=1s"];
const SEED: [&str; 5] =
    ["seed", "/downloads", "--name", "mixed", "--embedded-tracker=0.0.0.0:6969"];

/// Content that everybody may read, as an option `-v`.
fn media(scratch: &Scratch) -> Result<(Content, String)> {
    let content = Content::make(&scratch.folder("media")?.join("mixed"), Shape::Mixed)?;
    let mount = format!("{}:/downloads:ro", content.root().display());
    Ok((content, mount))
}

/// The .torrent from the container's tracker, in a file.
fn fetch_torrent(container: &Container, folder: &Path) -> Result<std::path::PathBuf> {
    let url = format!("http://{}:6969/torrents/mixed.torrent", container.address()?);
    let path = folder.join("mixed.torrent");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "5", "--noproxy", "*", "-o"]);
    wait_until("the .torrent", LIMIT, || {
        Ok(curl.arg(&path).arg(&url).status()?.success().then_some(()))
    })?;
    Ok(path)
}

fn fetch_by_aria2(container: &Container, scratch: &Scratch, content: &Content) -> Result<()> {
    let folder = scratch.folder("aria2")?;
    let torrent = fetch_torrent(container, &folder)?;
    let mut command = Command::new("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--bt-enable-lpd=false", "--seed-time=0"]);
    command.args(["--listen-port=26900-26999", "--summary-interval=0", "--dir"]).arg(&folder);
    command.arg(torrent).env("HOME", &folder);
    let mut aria2 = Process::start("aria2c", &mut command, &folder.join("log"))?;
    aria2.wait_success(LIMIT)?;
    content.compare(&folder.join("mixed"), false)
}

fn fetch_by_libtorrent(container: &Container, scratch: &Scratch, content: &Content) -> Result<()> {
    let folder = scratch.folder("libtorrent")?;
    let torrent = fetch_torrent(container, &folder)?;
    let mut command = Command::new(python()?);
    command.arg(script("libtorrent_client.py")).arg(torrent).arg(&folder).arg("0.0.0.0:0");
    let mut client = Process::start("libtorrent", &mut command, &folder.join("log"))?;
    client.wait_for_log("its word that it is complete", LIMIT, |log| {
        log.lines().any(|line| line == "complete").then_some(())
    })?;
    client.terminate(GRACE)?;
    content.compare(&folder.join("mixed"), false)
}

#[test]
fn the_image_holds_the_program_and_little_else() -> Result<()> {
    let inspect = |format: &str| docker(&["inspect", "-f", format, &image("seedring")]);
    assert_eq!(inspect("{{.Config.User}}")?, "10001:10001");
    assert_eq!(inspect("{{.Config.Healthcheck.Test}}")?, "[CMD /seedring health]");
    assert_eq!(inspect("{{json .Config.Volumes}}")?, "{\"/config\":{}}");
    let made = docker(&["create", &image("seedring")])?;
    let scratch = Scratch::new(TMP, "docker_image")?;
    let archive = scratch.path().join("root.tar");
    let exported = docker(&["export", "-o", &archive.display().to_string(), &made]);
    docker(&["rm", "-v", &made])?;
    exported?;
    let listed = Command::new("tar").arg("-tf").arg(&archive).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    // Without what Docker puts into every container.
    let folders = ["dev/", "proc/", "sys/", ".dockerenv"];
    let files_of_docker = ["etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"];
    let files: Vec<&str> = listed
        .lines()
        .filter(|path| !path.ends_with('/') && !files_of_docker.contains(path))
        .filter(|path| !folders.iter().any(|folder| path.starts_with(folder)))
        .collect();
    let expected = [
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "seedring",
    ];
    ensure!(files == expected, "a static program needs no other file: {files:?}");
    Ok(())
}

/// A user's container: read-only root, no capabilities, our profile, content that cannot be
/// written.
#[test]
fn it_seeds_from_a_read_only_root_and_writes_to_config_alone() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_seeds")?;
    let (content, mount) = media(&scratch)?;
    let config = Volume::new()?;
    let (profile, state) = (profile(), config.at("/config"));
    let options = ["--read-only", "--security-opt", &profile, "-v", &mount, "-v", &state];
    let engine = Container::start(&[&BARE[..], &options, &[&image("seedring")], &SEED].concat())?;
    engine.wait_healthy()?;
    for (field, expected) in [
        ("Uid", "10001 10001 10001 10001"),
        ("Gid", "10001 10001 10001 10001"),
        ("CapEff", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(engine.status(field)?, expected, "{field}");
    }
    ensure!(!engine.logs()?.contains("epoll"), "io_uring is allowed: {}", engine.logs()?);
    fetch_by_aria2(&engine, &scratch, &content)?;
    fetch_by_libtorrent(&engine, &scratch, &content)?;
    // Commands find the engine without being told where it is.
    let (status, list) = engine.exec(&["/seedring", "list"])?;
    ensure!(status == 0 && list.contains("mixed"), "{list}");
    assert_eq!(engine.changes()?, "", "files outside of /config");
    ensure!(config.path()?.join("seedring/state.sqlite").exists(), "no state in the volume");
    let (status, took) = engine.stop(GRACE)?;
    ensure!(status == 0 && took < GRACE, "exit status {status} after {took:?}");
    ensure!(engine.logs()?.contains("stopped"), "{}", engine.logs()?);
    content.check_untouched()
}

/// Nothing keeps it from writing elsewhere, and it does not.
#[test]
fn nothing_is_written_where_it_could_be() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_writable")?;
    let (content, mount) = media(&scratch)?;
    // Any user can have a fresh volume.
    let (profile, user) = (profile(), "4321:4321");
    let options = ["--security-opt", &profile, "--user", user, "-v", &mount, "-v", "/config"];
    let engine = Container::start(&[&BARE[..], &options, &[&image("seedring")], &SEED].concat())?;
    engine.wait_healthy()?;
    fetch_by_aria2(&engine, &scratch, &content)?;
    assert_eq!(engine.status("Uid")?, "4321 4321 4321 4321");
    assert_eq!(engine.changes()?, "");
    Ok(())
}

#[test]
fn a_container_whose_engine_hangs_is_not_healthy() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_hangs")?;
    let (_content, mount) = media(&scratch)?;
    let options = ["--health-retries=1", "--health-timeout=2s", "-v", &mount];
    let engine = Container::start(&[&BARE[..], &options, &[&image("seedring")], &SEED].concat())?;
    engine.wait_healthy()?;
    // Stopped, not frozen: the health check must still run.
    let pid = engine.inspect("{{.State.Pid}}")?;
    let stopped = Command::new("kill").args(["-STOP", &pid]).status()?;
    ensure!(stopped.success());
    let noticed = wait_until("an unhealthy container", LIMIT, || {
        Ok((engine.inspect("{{.State.Health.Status}}")? == "unhealthy").then_some(()))
    });
    Command::new("kill").args(["-CONT", &pid]).status()?;
    noticed
}

#[test]
fn puid_pgid_and_umask_say_whose_the_files_are() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_puid")?;
    let (_content, mount) = media(&scratch)?;
    let config = Volume::new()?;
    let (profile, state, image) = (profile(), config.at("/config"), image("seedring"));
    let variables = ["-e", "PUID=1234", "-e", "PGID=2345", "-e", "UMASK=077"];
    let options = ["--security-opt", &profile, "-v", &mount, "-v", &state];
    let root = ["--user=0", "--cap-add=SETUID", "--cap-add=SETGID", "--group-add=3456"];
    let engine =
        Container::start(&[&BARE[..], &options, &variables, &root, &[&image], &SEED].concat())?;
    engine.wait_healthy()?;
    for (field, expected) in [
        ("Uid", "1234 1234 1234 1234"),
        ("Gid", "2345 2345 2345 2345"),
        ("Groups", "3456"),
        ("Umask", "0077"),
        ("CapEff", "0000000000000000"),
    ] {
        assert_eq!(engine.status(field)?, expected, "{field}");
    }
    use std::os::unix::fs::MetadataExt;
    let state = std::fs::metadata(config.path()?.join("seedring"))?;
    assert_eq!((state.uid(), state.gid(), state.mode() & 0o777), (1234, 2345, 0o700));
    drop(engine);

    // A user that is not root cannot become another one, and says what to do.
    let (status, text) =
        try_docker(&[&["run", "--rm"], &variables[..], &[&image, "doctor"]].concat())?;
    ensure!(status == 1 && text.contains("--user 1234:2345"), "{status}: {text}");
    let root = ["run", "--rm", "--user=0", "--cap-drop=ALL"];
    let (status, text) = try_docker(&[&root, &variables[..], &[&image, "doctor"]].concat())?;
    ensure!(status == 1 && text.contains("--cap-add SETUID"), "{status}: {text}");
    Ok(())
}

#[test]
fn secrets_are_files() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_secret")?;
    std::fs::write(scratch.path().join("passkey"), "0123456789abcdef\n")?;
    let yaml = "state_dir: /config\ntorrents:\n  - folder: /downloads\n    trackers: \
                [\"https://tracker.example/${file:/run/secrets/passkey}/announce\"]\n";
    std::fs::write(scratch.path().join("seedring.yaml"), yaml)?;
    let folder = scratch.path().display();
    let configuration = format!("{folder}/seedring.yaml:/config/seedring.yaml:ro");
    let secret = format!("{folder}/passkey:/run/secrets/passkey:ro");
    let image = image("seedring");
    let check = ["check-config", "/config/seedring.yaml"];
    let run = ["run", "--rm", "-v", &configuration];
    let with = [&run, &["-v", &secret, &image][..], &check].concat();
    let text = docker(&with)?;
    ensure!(text.contains("usable") && !text.contains("0123456789abcdef"), "{text}");
    let (status, text) = try_docker(&[&run, &[&*image][..], &check].concat())?;
    ensure!(status == 1 && text.contains("/run/secrets/passkey}: No such file"), "{text}");
    Ok(())
}

/// The name server of a network that a user made: what Compose services call each other by.
#[test]
fn names_are_found_through_the_containers_name_server() -> Result<()> {
    struct Network(String);
    impl Drop for Network {
        fn drop(&mut self) {
            let _ = try_docker(&["network", "rm", &self.0]);
        }
    }
    let scratch = Scratch::new(TMP, "docker_names")?;
    let (_content, mount) = media(&scratch)?;
    let network = Network(format!("seedring-n{}", std::process::id()));
    docker(&["network", "create", &network.0])?;
    let profile = profile();
    let options = ["--network", &network.0, "--security-opt", &profile, "-v", &mount];
    let image = image("seedring");
    let tracker = ["--network-alias=tracker"];
    let _tracker = Container::start(&[&BARE[..], &options, &tracker, &[&image], &SEED].concat())?;
    let other = ["--tracker", "http://tracker:6969/announce", "--no-embedded-tracker"];
    let seed = ["seed", "/downloads", "--name", "mixed"];
    let engine = Container::start(&[&BARE[..], &options, &[&image], &seed[..], &other].concat())?;
    engine.wait_healthy()?;
    wait_until("the tracker's answer", LIMIT, || {
        let (_, text) = engine.exec(&["/seedring", "show", "mixed"])?;
        ensure!(!text.contains("cannot find"), "{text}");
        let answered = text.contains("http://tracker:6969/announce") && text.contains("working");
        Ok(answered.then_some(()))
    })
    .with_context(|| engine.logs().unwrap_or_default())
}
