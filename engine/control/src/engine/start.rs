//! From a configuration to a running engine.
//!
//! Owns: the order of the start, what is checked before anything listens, what the user is told.
//! Never: anything after the start. Flow: limits -> store -> shards -> trackers -> torrents -> loop
//! -> stop.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use seedring_platform::{cpu, resources};
use seedring_proto::{
    peer::peer_id,
    tracker::swarm_store::{self, OwnPeer},
    units::PeerId,
};
use seedring_shard::Globals;
use tokio::sync::{Notify, mpsc};

use super::{
    Engine,
    commands::added_before,
    muffled::Muffled,
    peers::{LEECHES_MAX, Peers},
    pending::Pending,
    prepare::Known,
    reload::{set_limits, wanted_of},
    shards::{Setup, Shards},
    signals::Signals,
    status::{Display, Pages, Request},
    torrents::Torrents,
};
use crate::{
    config::model::{CacheSize, Config, Shards as ShardCount, Switch},
    control_socket,
    state::Store,
    trackers::{
        self, Trackers,
        embedded::{Embedded, EmbeddedOptions, Leech},
    },
};

/// What peers see as our name (BEP 10 `v`).
const CLIENT: &str = concat!("seedring ", env!("CARGO_PKG_VERSION"));
/// Descriptors for everything but peers and content: store, logs, trackers, control socket.
const RESERVED_DESCRIPTORS: u64 = 256;
const CACHE_BYTES_MIN: u64 = 16 << 20;
const CACHE_BYTES_MAX: u64 = 1 << 40;

/// Runs until a signal ends it.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .context("starting the control runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::register().context("registering for signals")?;
        let notify = Arc::new(Notify::new());
        let (mut engine, mut heard, mut requests) = start(config, &notify).await?;
        let result = engine.turn(&mut signals, &notify, &mut heard, &mut requests).await;
        // Whoever asks now is told that the engine is stopping.
        drop((heard, requests));
        tokio::select! {
            stopped = engine.stop(&notify) => result.and(stopped),
            () = signals.stop() => {
                Err(anyhow!("asked twice to stop: left without goodbye to trackers"))
            }
        }
    });
    // Work on a file system that does not answer must not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn start(
    config: Config,
    notify: &Arc<Notify>,
) -> anyhow::Result<(Engine, mpsc::Receiver<trackers::Event>, mpsc::Receiver<Request>)> {
    let began = Instant::now();
    let descriptors = raise_descriptors(&config);
    let (store, loaded) = {
        let state_dir = config.state_dir.clone();
        tokio::task::spawn_blocking(move || Store::open(&state_dir)).await??
    };
    let mut wanted = wanted_of(&config).map_err(|why| anyhow!(why))?;
    wanted.extend(added_before(&loaded));

    let peer_id = peer_id(rand::random());
    let globals = Arc::new(Globals::new(peer_id, CLIENT));
    // Before the first connection can come.
    set_limits(&globals, &config, Duration::ZERO);
    globals.zero_copy.store(config.zero_copy != Switch::Off, Ordering::Relaxed);
    let setup = setup(&config, descriptors)?;
    let shards = Shards::start(&setup, &globals, notify)?;
    for step in &shards.steps_down {
        tracing::warn!("{step}");
    }
    let announced_port = announced_port(&config, &shards.listening);
    globals.listen_port.store(announced_port, Ordering::Relaxed);

    let torrents = Torrents::default();
    let options = tracker_options(&config, peer_id, announced_port, loaded.tracker_key);
    let (trackers, heard, _) = Trackers::start(options, Arc::new(torrents.totals_source()))?;
    let catalogue = Arc::new(Pages::default());
    let (told, leeches) = mpsc::channel(LEECHES_MAX);
    let own = OwnPeer { peer_id, listens: own_addresses(&config, &shards.listening) };
    let peers = Peers::new(own.listens.clone(), config.limits.connections_per_ip.0);
    let embedded = embedded(&config, &catalogue, own, told).await?;
    catalogue
        .set_url(&config, embedded.as_ref().and_then(|tracker| tracker.listens().first().copied()));

    let requests = control_socket::listen(&config.control_socket).await?;
    let shard_count = shards.len();
    let direct_io = config.direct_io != Switch::Off;
    let known = Known::new(
        config.state_dir.clone(),
        direct_io,
        loaded.torrents,
        loaded.made,
        loaded.downloads,
    );
    let mut engine = Engine {
        display: Display::new(),
        globals,
        shards,
        torrents,
        known: Arc::new(known),
        store: Arc::new(store),
        trackers,
        embedded,
        leeches,
        catalogue,
        peers,
        pending: Pending::new(wanted),
        looking: HashMap::new(),
        rehash: HashMap::new(),
        notes: mpsc::unbounded_channel(),
        stats: (0..shard_count).map(|_| None).collect(),
        heard_at: vec![began; shard_count],
        peer_requests: HashMap::new(),
        unanswered: Vec::new(),
        made_progress: HashMap::new(),
        began,
        all_ready_after: None,
        told_ready: false,
        reloading: false,
        reload_again: false,
        saved_at: Instant::now(),
        shared_slots_at: Instant::now(),
        muffled: Muffled::default(),
        there_since: None,
        config,
    };
    engine.share_slots();
    tracing::info!(
        "{CLIENT}: {} shard(s), block cache {} MiB, listening on {}",
        shard_count,
        setup.cache_bytes >> 20,
        join(&engine.shards.listening)
    );
    engine.prepare_next();
    Ok((engine, heard, requests))
}

pub(super) fn join(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// As many descriptors as the system lets us have; says when they are too few.
fn raise_descriptors(config: &Config) -> u64 {
    let soft = resources::raise_nofile_limit().map_or(1_024, |(soft, _)| soft);
    let wanted = u64::from(config.limits.connections) + RESERVED_DESCRIPTORS;
    if soft < wanted {
        tracing::warn!(
            "at most {soft} descriptors are allowed, {} connections need {wanted}; raise the limit \
             (LimitNOFILE=, ulimit -n) or lower limits.connections",
            config.limits.connections
        );
    }
    soft
}

fn setup(config: &Config, descriptors: u64) -> anyhow::Result<Setup> {
    let cores = cpu::cores().map_or(1, |cores| cores.len()).max(1);
    let shards = match config.shards {
        ShardCount::Auto => cores.min(usize::from(ShardCount::MAX)),
        ShardCount::Count(n) => usize::from(n),
    };
    let cache = match config.memory.cache {
        CacheSize::Auto => resources::memory_available_bytes().unwrap_or(1 << 30) / 2,
        CacheSize::Bytes(bytes) => bytes,
    };
    let pin = match config.pin {
        Switch::Auto => shards > 1 && shards <= cores,
        Switch::On => true,
        Switch::Off => false,
    };
    let for_files = descriptors
        .saturating_sub(u64::from(config.limits.connections) + RESERVED_DESCRIPTORS)
        .clamp(64, 65_536);
    Ok(Setup {
        shards,
        pin,
        listen: config.listen.clone(),
        cache_bytes: cache.clamp(CACHE_BYTES_MIN, CACHE_BYTES_MAX) as usize,
        connections_max: config.limits.connections,
        open_files_max: for_files as usize,
        io: config.io,
        zero_copy: config.zero_copy != Switch::Off,
        in_place: config.direct_io != Switch::On,
    })
}

fn announced_port(config: &Config, listening: &[SocketAddr]) -> u16 {
    config.announce.port.or(listening.first().map(SocketAddr::port)).unwrap_or(0)
}

fn tracker_options(config: &Config, peer_id: PeerId, port: u16, key: u32) -> trackers::Options {
    let mut options = trackers::Options::new(peer_id, port, key);
    options.ip = config.announce.ipv4;
    options.ipv6 = config.announce.ipv6;
    options.numwant = config.tracker_client.numwant;
    options.http.user_agent = config.tracker_client.user_agent.clone();
    options.http.total_timeout = config.tracker_client.timeout.0;
    options.udp.timing.announce = config.tracker_client.timeout.0;
    options.schedule.limits.requests_per_host_max =
        config.tracker_client.concurrent_per_host as usize;
    options
}

async fn embedded(
    config: &Config,
    catalogue: &Arc<Pages>,
    own: OwnPeer,
    leeches: mpsc::Sender<Leech>,
) -> anyhow::Result<Option<Embedded>> {
    let Some(tracker) = &config.tracker else { return Ok(None) };
    let mut options = EmbeddedOptions { leeches: Some(leeches), ..EmbeddedOptions::default() };
    let interval = tracker.interval.0;
    options.store = swarm_store::Options {
        interval,
        min_interval: options.store.min_interval.min(interval),
        seed: rand::random(),
        ..options.store
    };
    let embedded = Embedded::bind(&tracker.listen, options, catalogue.clone()).await?;
    embedded.set_own(own);
    Ok(Some(embedded))
}

/// Where peers find us: each listening address, or the announced one.
fn own_addresses(config: &Config, listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let announced = config.announce;
    let own = |address: &SocketAddr| {
        let (v4, v6) = (announced.ipv4.map(Into::into), announced.ipv6.map(Into::into));
        let ip = if address.is_ipv4() { v4 } else { v6 };
        let port = announced.port.unwrap_or(address.port());
        SocketAddr::new(ip.unwrap_or(address.ip()), port)
    };
    listening.iter().map(own).collect()
}

/// How long control waits for an answer from a shard.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(2);
