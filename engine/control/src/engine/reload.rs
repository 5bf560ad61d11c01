//! SIGHUP: the configuration read again, and the difference carried out.
//!
//! Owns: the change from one configuration to the next. Never: touches what did not change.
//! Flow: load -> reconcile -> guard -> add, remove, change.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use seedring_shard::Globals;

use super::{Engine, Note, torrents::State};
use crate::{
    config::model::{Config, Files, Source, TorrentSource},
    plan::{From, Origin, Plan, Wanted, reconcile, removals_max},
};

/// All torrents that a configuration asks for. Blocking: looks through folders for patterns.
pub(super) fn wanted_of(config: &Config) -> Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for entry in &config.torrents {
        let TorrentSource { line, source, trackers, verify, limits, pex } = entry;
        let origins = match source {
            Source::Folder(folder) => vec![Origin::Folder(folder.clone())],
            Source::Files(files) => {
                let found = files.expand().map_err(|error| {
                    format!(
                        "torrents entry at line {line}: {error}; every folder of a pattern must \
                         be readable"
                    )
                })?;
                if found.is_empty() {
                    tracing::warn!("line {line}: {} matches nothing", files.patterns.join(", "));
                }
                let origin = |torrent| origin_of(torrent, files);
                found.into_iter().map(origin).collect()
            }
            Source::Magnet(magnet) => vec![Origin::Download {
                from: From::Magnet(magnet.link.clone()),
                folder: magnet.folder.clone(),
                options: magnet.download.clone(),
            }],
        };
        wanted.extend(origins.into_iter().map(|origin| Wanted {
            origin,
            trackers: trackers.clone(),
            verify: *verify,
            limits: *limits,
            pex: *pex,
            line: *line,
        }));
    }
    Ok(wanted)
}

fn origin_of(torrent: PathBuf, files: &Files) -> Origin {
    let content = files.content.clone();
    match &files.download {
        None => Origin::File { torrent, content },
        Some(options) => Origin::Download {
            from: From::Torrent(torrent),
            folder: content,
            options: options.clone(),
        },
    }
}

/// Limits and timeouts that all shards read. `now`: the shards' time.
pub(super) fn set_limits(globals: &Globals, config: &Config, now: Duration) {
    globals.upload.change(config.limits.upload.bytes_per_second, now);
    globals.download.change(config.limits.download.bytes_per_second, now);
    globals.connections_max.store(config.limits.connections, Ordering::Relaxed);
    for (timeout_ms, timeout) in [
        (&globals.handshake_timeout_ms, config.timeouts.handshake),
        (&globals.connect_timeout_ms, config.timeouts.connect),
        (&globals.idle_timeout_ms, config.timeouts.idle),
    ] {
        timeout_ms.store(timeout.0.as_millis() as u64, Ordering::Relaxed);
    }
}

fn load(path: &Path) -> Result<(Config, Vec<Wanted>), String> {
    let loaded = Config::load(path, &|name| std::env::var(name).ok())
        .map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect::<String>())?;
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let wanted = wanted_of(&loaded.config)?;
    Ok((loaded.config, wanted))
}

impl Engine {
    /// Reads the file again, beside the loop. Another SIGHUP meanwhile reads it once more.
    pub(super) fn reload(&mut self) {
        let Some(path) = self.config.file.clone() else {
            return tracing::warn!("SIGHUP: there is no configuration file to read again");
        };
        if self.reloading {
            self.reload_again = true;
            return;
        }
        self.reloading = true;
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let _ = notes.send(Note::Loaded(Box::new(load(&path))));
        });
    }

    /// What is wrong with the new configuration changes nothing.
    pub(super) async fn loaded(&mut self, result: Result<(Config, Vec<Wanted>), String>) {
        self.reloading = false;
        if std::mem::take(&mut self.reload_again) {
            return self.reload();
        }
        let (config, wanted) = match result {
            Ok(loaded) => loaded,
            Err(why) => return tracing::error!("reload refused, nothing was changed:\n{why}"),
        };
        let known: HashMap<_, _> =
            self.torrents.iter().map(|t| (t.info_hash(), t.wanted.clone())).collect();
        let plan = reconcile(&wanted, &known);
        let most = removals_max(known.len());
        if plan.lost > most {
            tracing::error!(
                "reload refused, nothing was changed: it would remove {} of {} torrents, and more \
                 than {most} at once looks like a mistake (an unmounted folder, an empty pattern). \
                 Restart to do it all the same",
                plan.lost,
                known.len(),
            );
            return;
        }
        self.warn_of_fixed(&config);
        self.carry_out(config, plan).await;
    }

    /// What a reload can't change.
    fn warn_of_fixed(&self, new: &Config) {
        let old = &self.config;
        let fixed = [
            ("listen", old.listen != new.listen),
            ("shards", old.shards != new.shards),
            ("io", old.io != new.io),
            ("memory.cache", old.memory != new.memory),
            ("state_dir", old.state_dir != new.state_dir),
            ("control_socket", old.control_socket != new.control_socket),
            ("tracker", old.tracker != new.tracker),
            ("tracker_client", old.tracker_client != new.tracker_client),
            ("announce", old.announce != new.announce),
            ("pin", old.pin != new.pin),
            ("zero_copy", old.zero_copy != new.zero_copy),
            ("direct_io", old.direct_io != new.direct_io),
            ("log", old.log != new.log),
        ];
        for (key, _) in fixed.iter().filter(|(_, differs)| *differs) {
            tracing::warn!("{key} changed; it takes effect at the next start");
        }
    }

    /// Removals come first: a torrent that moves from one entry to another is then no duplicate.
    async fn carry_out(&mut self, config: Config, plan: Plan) {
        let (remove, change) = (plan.remove.len(), plan.change.len());
        self.config.limits = config.limits;
        self.config.timeouts = config.timeouts;
        self.config.downloads = config.downloads;
        self.config.pex = config.pex;
        self.peers.set_connections_per_ip(self.config.limits.connections_per_ip.0);
        self.config.torrents = config.torrents;
        set_limits(&self.globals, &self.config, self.shards.now());
        self.share_slots();
        for hash in plan.remove {
            if let Some(id) = self.id_of(&hash) {
                self.remove(id).await;
            }
        }
        for (hash, wanted) in plan.change {
            let Some(id) = self.id_of(&hash) else { continue };
            let Some(torrent) = self.torrents.get_mut(id) else { continue };
            let trackers_differ = torrent.wanted.trackers != wanted.trackers;
            torrent.wanted = wanted;
            if trackers_differ {
                self.announce_anew(id).await;
            }
        }
        let now = Instant::now();
        let ids: Vec<_> =
            self.torrents.iter().map(|t| (t.shared.id, t.state == State::Partial)).collect();
        for (id, partial) in ids {
            self.apply_limits(id);
            if partial {
                // The user may have put the missing pieces right.
                self.looking.insert(id, now);
            }
        }
        let mut wanted = plan.add;
        wanted.extend(self.pending.added());
        let add = self.pending.replace(wanted);
        self.told_ready = false;
        tracing::info!("reloaded: {add} added, {remove} removed, {change} changed");
        self.prepare_next();
    }

    /// Unchoke slots over the shards: each as many as it has interested peers of all, at least
    /// one; unlimited stays unlimited.
    pub(super) fn share_slots(&mut self) {
        self.shared_slots_at = Instant::now();
        let shards = self.shards.len();
        let Some(slots) = self.config.limits.upload_slots.0 else {
            return self.shards.send_all(|| seedring_shard::Command::Slots(u32::MAX));
        };
        let interested: Vec<u64> = (0..shards)
            .map(|n| self.stats[n].as_ref().map_or(0, |stats| u64::from(stats.interested)))
            .collect();
        let all: u64 = interested.iter().sum();
        for (shard, mine) in interested.into_iter().enumerate() {
            let part = match all {
                0 => u64::from(slots) / shards as u64,
                all => u64::from(slots) * mine / all,
            };
            let part = part.max(1) as u32;
            self.shards.send(shard, seedring_shard::Command::Slots(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_told_of_every_limit_and_timeout_that_they_follow() {
        let globals = Globals::new(seedring_proto::units::PeerId([0; 20]), "test");
        let tell = |text: &str| {
            let parsed = Config::parse(text, "x.yaml", Path::new("/srv"), &|_| None);
            set_limits(&globals, &parsed.expect("valid").config, Duration::ZERO);
            let timeouts =
                [globals.handshake_timeout(), globals.connect_timeout(), globals.idle_timeout()];
            timeouts.map(|timeout| timeout.as_secs())
        };
        let defaults = tell("");
        assert_eq!(defaults, [10, 15, 180]);
        assert_eq!(tell("timeouts: { handshake: 3s, connect: 1m, idle: 45s }\n"), [3, 60, 45]);
        assert_eq!(tell(""), defaults, "keys that are gone are at their defaults again");
    }

    /// What shards begin with where nobody tells them.
    #[test]
    fn the_defaults_of_shards_are_those_of_the_file() {
        let globals = Globals::new(seedring_proto::units::PeerId([0; 20]), "test");
        let before =
            [globals.handshake_timeout(), globals.connect_timeout(), globals.idle_timeout()];
        let parsed = Config::parse("", "x.yaml", Path::new("/srv"), &|_| None);
        set_limits(&globals, &parsed.expect("valid").config, Duration::ZERO);
        let after =
            [globals.handshake_timeout(), globals.connect_timeout(), globals.idle_timeout()];
        assert_eq!(before, after);
    }
}
