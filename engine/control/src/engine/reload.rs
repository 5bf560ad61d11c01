//! SIGHUP: the configuration read again, and the difference carried out.
//!
//! Owns: the change from one configuration to the next. Never: touches what did not change.
//! Flow: load -> reconcile -> guard -> add, remove, change.

use std::{collections::HashMap, sync::atomic::Ordering};

use super::Engine;
use crate::{
    config::model::{Config, Source, TorrentSource},
    plan::{Origin, Plan, Wanted, reconcile, removals_max},
};

/// All torrents that a configuration asks for. Blocking: looks through folders for patterns.
pub(super) fn wanted_of(config: &Config) -> Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for entry in &config.torrents {
        let TorrentSource { line, source, trackers, verify, limits } = entry;
        let origins = match source {
            Source::Folder(folder) => vec![Origin::Folder(folder.clone())],
            Source::Files(files) => {
                let found = files.expand().map_err(|error| {
                    format!("torrents entry at line {line}: {error}; every folder of a pattern must be readable")
                })?;
                if found.is_empty() {
                    tracing::warn!("line {line}: {} matches nothing", files.patterns.join(", "));
                }
                let origin = |torrent| Origin::File { torrent, content: files.content.clone() };
                found.into_iter().map(origin).collect()
            }
        };
        wanted.extend(origins.into_iter().map(|origin| Wanted {
            origin,
            trackers: trackers.clone(),
            verify: *verify,
            limits: *limits,
            line: *line,
        }));
    }
    Ok(wanted)
}

impl Engine {
    /// Reads the file again. What is wrong with it changes nothing.
    pub(super) async fn reload(&mut self) {
        let Some(path) = self.config.file.clone() else {
            tracing::warn!("SIGHUP: there is no configuration file to read again");
            return;
        };
        let loaded = tokio::task::spawn_blocking(move || {
            let loaded = Config::load(&path, &|name| std::env::var(name).ok())
                .map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect::<String>())?;
            let wanted = wanted_of(&loaded.config)?;
            Ok::<_, String>((loaded.config, wanted))
        });
        let (config, wanted) = match loaded.await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(why)) => {
                tracing::error!("reload refused, nothing was changed:\n{why}");
                return;
            }
            Err(error) => {
                tracing::error!("reload failed, nothing was changed: {error}");
                return;
            }
        };
        let known: HashMap<_, _> =
            self.torrents.iter().map(|t| (t.info_hash(), t.wanted.clone())).collect();
        let plan = reconcile(&wanted, &known);
        if plan.remove.len() > removals_max(known.len()) {
            tracing::error!(
                "reload refused, nothing was changed: it would remove {} of {} torrents, and more \
                 than {} at once looks like a mistake (an unmounted folder, an empty pattern). \
                 Restart to do it all the same",
                plan.remove.len(),
                known.len(),
                removals_max(known.len())
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
            ("tracker", old.tracker != new.tracker),
        ];
        for (key, _) in fixed.iter().filter(|(_, differs)| *differs) {
            tracing::warn!("{key} changed; it takes effect at the next start");
        }
    }

    async fn carry_out(&mut self, config: Config, plan: Plan) {
        let (add, remove, change) = (plan.add.len(), plan.remove.len(), plan.change.len());
        self.config.limits = config.limits;
        self.config.timeouts = config.timeouts;
        self.config.torrents = config.torrents;
        self.apply_globals();
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
        let ids: Vec<_> = self.torrents.iter().map(|t| t.shared.id).collect();
        ids.into_iter().for_each(|id| self.apply_limits(id));
        self.queue.extend(plan.add);
        self.prepare_next();
        tracing::info!("reloaded: {add} added, {remove} removed, {change} changed");
    }

    /// Limits that all shards read.
    pub(super) fn apply_globals(&mut self) {
        let (limits, globals) = (&self.config.limits, &self.globals);
        globals.upload.set(limits.upload.bytes_per_second);
        globals.connections_max.store(limits.connections, Ordering::Relaxed);
        let handshake_ms = self.config.timeouts.handshake.0.as_millis() as u64;
        globals.handshake_timeout_ms.store(handshake_ms, Ordering::Relaxed);
        self.share_slots();
    }

    /// Unchoke slots over the shards: each as many as it has interested peers of all, at least
    /// one; unlimited stays unlimited.
    pub(super) fn share_slots(&mut self) {
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
