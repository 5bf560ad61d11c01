//! Owns: how each rival is told to seed: its command line, its settings, tuned and by default.
//! Never: starts it, measures it. Flow: target's `start` -> `command` -> spawned.
//!
//! The settings' files lie in bench/rivals: `{name}` stands for a value, and a line that begins
//! with `tuned: ` is there only where the target is tuned.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cores, Options,
    kind::{Kind, Target, Tuning},
    on_cores,
    target::{LIBTORRENT_SEED, Way, absolute, script},
};

/// How `target` seeds what `way` says, with its state in the folder `run`.
pub fn command(target: Target, options: &Options, way: &Way<'_>, run: &Path) -> Result<Command> {
    let seat = Seat { target, options, way, run };
    let mut command = match target.kind {
        Kind::Seedring | Kind::SeedringEpoll => {
            unreachable!("invariant: seedring has settings of its own")
        }
        Kind::Iperf3 => seat.iperf3(),
        Kind::Nginx => seat.nginx()?,
        Kind::Bare => seat.bare()?,
        Kind::TokioUring => seat.tokio_uring()?,
        Kind::Libtorrent => seat.libtorrent()?,
        Kind::Qbittorrent => seat.qbittorrent()?,
        Kind::Rtorrent => seat.rtorrent()?,
        Kind::Transmission => seat.transmission()?,
        Kind::Rqbit => seat.rqbit(),
        Kind::Vortex => seat.vortex()?,
        Kind::Aria2 => seat.aria2()?,
        Kind::Sha1sum => bail!("{} has no part in seeding", target.kind),
    };
    command.current_dir(run).env("HOME", run);
    Ok(command)
}

struct Seat<'a> {
    target: Target,
    options: &'a Options,
    way: &'a Way<'a>,
    run: &'a Path,
}

impl Seat<'_> {
    fn on_core(&self, program: &Path) -> Command {
        on_cores(&absolute(program), &Cores::one(self.options.site.server_core))
    }

    fn is_tuned(&self) -> bool {
        self.target.tuning == Tuning::Tuned
    }

    fn torrents(&self) -> impl Iterator<Item = &PathBuf> {
        self.way.content.torrents()
    }

    /// For those that serve one torrent a process.
    fn only_torrent(&self) -> Result<&Path> {
        ensure!(self.way.content.more.is_empty(), "{} is run with one torrent", self.target.kind);
        Ok(&self.way.content.torrent)
    }

    /// A settings file of bench/rivals with its values, in the target's folder.
    fn settings(&self, name: &str, template: &str, more: &[(&str, String)]) -> Result<PathBuf> {
        let path = self.run.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut values = vec![
            ("content", self.way.content.folder.display().to_string()),
            ("run", self.run.display().to_string()),
            ("address", self.options.target().ip().to_string()),
            ("port", self.options.target().port().to_string()),
            ("connections", self.way.connections.to_string()),
        ];
        values.extend_from_slice(more);
        fs::write(&path, filled(template, self.target.tuning, &values))?;
        Ok(path)
    }

    fn iperf3(&self) -> Command {
        let mut command = self.on_core(Path::new("iperf3"));
        command.args([
            "-s",
            "-B",
            &self.options.target().ip().to_string(),
            "-p",
            &self.options.target().port().to_string(),
        ]);
        command
    }

    fn nginx(&self) -> Result<Command> {
        let template = include_str!("../../rivals/nginx.conf");
        let path = self.settings("nginx.conf", template, &[])?;
        let mut command = self.on_core(&self.options.site.nginx);
        command.arg("-p").arg(self.run).arg("-c").arg(path).arg("-e").arg("stderr");
        Ok(command)
    }

    fn bare(&self) -> Result<Command> {
        let this = std::env::current_exe().context("the path of this program")?;
        let mut command = self.on_core(&this);
        command.arg("bare");
        self.one_file(command)
    }

    fn tokio_uring(&self) -> Result<Command> {
        self.one_file(self.on_core(self.options.site.baseline()))
    }

    /// For those that are told one torrent and its only file.
    fn one_file(&self, mut command: Command) -> Result<Command> {
        let torrent = self.only_torrent()?;
        let file = fs::read_dir(&self.way.content.folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "bin"))
            .context("the content's file")?;
        command.arg("--torrent").arg(torrent).arg("--content").arg(file);
        command.args(["--listen", &self.options.target().to_string()]);
        Ok(command)
    }

    fn libtorrent(&self) -> Result<Command> {
        let mut command = self.on_core(&self.options.site.python);
        command.arg(script(self.options, LIBTORRENT_SEED)?);
        if self.is_tuned() {
            command.args(["--tuned", &self.way.connections.to_string()]);
        }
        let listen = self.options.target().to_string();
        command.arg(listen).arg(&self.way.content.folder).arg(self.listed()?);
        Ok(command)
    }

    /// A file with the torrents' paths, a line each: 10,000 do not fit a command line.
    fn listed(&self) -> Result<PathBuf> {
        let path = self.run.join("torrents.txt");
        let lines: Vec<String> = self.torrents().map(|path| path.display().to_string()).collect();
        fs::write(&path, lines.join("\n"))?;
        Ok(path)
    }

    fn qbittorrent(&self) -> Result<Command> {
        let template = include_str!("../../rivals/qbittorrent.conf");
        self.settings("qBittorrent/config/qBittorrent.conf", template, &[])?;
        let mut command = self.on_core(&self.options.site.qbittorrent);
        command.arg(format!("--profile={}", self.run.display()));
        // Instances find one another by a socket in the temporary folder, and would hand over.
        command.env("TMPDIR", self.run);
        if !self.way.again {
            command.arg(format!("--save-path={}", self.way.content.folder.display()));
            command.args(["--skip-hash-check", "--add-paused=false"]).args(self.torrents());
        }
        Ok(command)
    }

    fn rtorrent(&self) -> Result<Command> {
        let load: Vec<String> = if self.way.content.more.is_empty() {
            vec![self.way.content.torrent.display().to_string()]
        } else {
            vec![self.way.content.folder.join("*.torrent").display().to_string()]
        };
        let template = include_str!("../../rivals/rtorrent.rc");
        let path = self.settings("rtorrent.rc", template, &[("torrent", load.join(" "))])?;
        let mut command = self.on_core(&self.options.site.rtorrent);
        command.args(["-n", "-o", &format!("import={}", path.display())]).env("TERM", "xterm");
        Ok(command)
    }

    fn transmission(&self) -> Result<Command> {
        let watched = self.run.join("watched");
        if !self.way.again {
            fs::create_dir_all(&watched)?;
            for torrent in self.torrents() {
                let name = torrent.file_name().context("a torrent's name")?;
                fs::copy(torrent, watched.join(name))?;
            }
        }
        let template = include_str!("../../rivals/transmission_seed.json");
        self.settings("settings.json", template, &[("watched", watched.display().to_string())])?;
        let mut command = self.on_core(&self.options.site.transmission_daemon);
        command.args(["--foreground", "--no-utp", "--config-dir"]).arg(self.run);
        Ok(command)
    }

    fn rqbit(&self) -> Command {
        let mut command = self.on_core(&self.options.site.rqbit);
        command.args(["-v", "error", "--disable-dht", "--disable-lsd", "--disable-trackers"]);
        command.args(["--disable-upnp-port-forward", "--ipv4-only"]);
        command.args(["--listen-ip", &self.options.target().ip().to_string()]);
        command.args(["--listen-port", &self.options.target().port().to_string()]);
        if self.is_tuned() {
            command.args(["--peer-limit", &self.way.connections.to_string()]);
        }
        command.args(["download", "--disable-http-api", "--overwrite", "-o"]);
        command.arg(&self.way.content.folder).args(self.torrents());
        command
    }

    fn vortex(&self) -> Result<Command> {
        let mut command = self.on_core(self.options.site.vortex());
        if self.is_tuned() {
            command.args(["--connections", &self.way.connections.to_string()]);
        }
        // It looks for a single file in a folder of its name.
        let torrent = self.only_torrent()?;
        let name = torrent.file_stem().context("the torrent's name")?;
        let folder = self.run.join("content");
        fs::create_dir_all(folder.join(name))?;
        let (file, link) = (self.way.content.folder.join(name), folder.join(name).join(name));
        if !link.exists() {
            fs::hard_link(&file, &link).with_context(|| format!("linking {}", file.display()))?;
        }
        command.args(["--listen", &self.options.target().to_string()]).arg(torrent).arg(folder);
        Ok(command)
    }

    fn aria2(&self) -> Result<Command> {
        let mut command = self.on_core(&self.options.site.aria2);
        // A ratio of 0 stands for no limit: it seeds on.
        command.args(["--no-conf", "--quiet", "--seed-ratio=0.0", "--bt-seed-unverified=true"]);
        command.args(["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]);
        command.args(["--enable-peer-exchange=false", "--disable-ipv6"]);
        if self.is_tuned() {
            command.args(["--bt-max-peers=0", "--bt-max-open-files=1000"]);
        }
        command.arg(format!("--listen-port={}", self.options.target().port()));
        command.arg("--dir").arg(&self.way.content.folder).arg(self.only_torrent()?);
        Ok(command)
    }
}

/// The template's text with its values, and without what only the tuned one has.
pub fn filled(template: &str, tuning: Tuning, values: &[(&str, String)]) -> String {
    let mut text = String::new();
    for line in template.lines() {
        match line.trim_start().strip_prefix("tuned: ") {
            Some(line) if tuning == Tuning::Tuned => text.push_str(line),
            Some(_) => continue,
            None => text.push_str(line),
        }
        text.push('\n');
    }
    for (name, value) in values {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tuned_is_left_out_of_the_defaults() {
        let template = "port = {port}\ntuned: slots = {slots}\n  tuned: more = {slots}\nend\n";
        let values = [("port", "7".to_owned()), ("slots", "9".to_owned())];
        let of = |tuning| filled(template, tuning, &values);
        assert_eq!(of(Tuning::Tuned), "port = 7\nslots = 9\nmore = 9\nend\n");
        assert_eq!(of(Tuning::Default), "port = 7\nend\n");
    }

    #[test]
    fn transmission_is_told_in_json_either_way() {
        let template = include_str!("../../rivals/transmission_seed.json");
        for tuning in [Tuning::Tuned, Tuning::Default] {
            let names = ["content", "run", "address", "watched"];
            let mut values = names.map(|name| (name, "/x".to_owned())).to_vec();
            values.extend([("port", "1".to_owned()), ("connections", "100".to_owned())]);
            let text = filled(template, tuning, &values);
            let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let is_tuned = tuning == Tuning::Tuned;
            assert_eq!(json["peer-limit-global"] == 100, is_tuned, "{text}");
            assert_eq!(json["peer-port"], 1);
        }
    }
}
