//! The orderly end.
//!
//! Owns: the order of it: shards first (so that totals are final), then `stopped`, then the store.
//! Never: waits longer than the configured deadline. Flow: signal -> stop -> exit.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use seedring_shard::Command;
use tokio::sync::Notify;

use super::Engine;

impl Engine {
    pub(super) async fn stop(mut self, notify: &Notify) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.config.timeouts.shutdown.0;
        self.display.close();
        tracing::info!("stopping: closing connections");
        // Hashing of folders ends at its next window; what is known now is safe, come what may.
        self.known.cancelled.store(true, Ordering::Relaxed);
        let downloads = self.torrents.iter().filter_map(|torrent| torrent.download.as_ref());
        downloads.for_each(|download| download.mover.cancel());
        self.save_changes();
        self.shards.send_all(|| Command::Stop);
        while !self.shards.all_ended() && Instant::now() < deadline {
            self.shards.flush();
            let _ = tokio::time::timeout(Duration::from_millis(20), notify.notified()).await;
            self.shard_events().await;
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let stops = self.trackers.shutdown(left).await;
        if stops.sent + stops.failed + stops.owed > 0 {
            tracing::info!(
                "trackers: {} told, {} refused, {} not reached in time",
                stops.sent,
                stops.failed,
                stops.owed
            );
        }
        self.save_changes();
        let uploaded: u64 = self.stats.iter().flatten().map(|stats| stats.uploaded_bytes).sum();
        let Engine { store, shards, .. } = self;
        let saved = tokio::task::spawn_blocking(move || {
            let saved = store.flush();
            drop(store);
            saved
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::error!("state not saved: {why}"),
            Err(error) => tracing::error!("state not saved: {error}"),
        }
        if shards.all_ended() {
            shards.join()?;
        } else {
            tracing::warn!("connections did not end in time; leaving them to the kernel");
        }
        tracing::info!("stopped; {uploaded} bytes uploaded in this run");
        Ok(())
    }
}
