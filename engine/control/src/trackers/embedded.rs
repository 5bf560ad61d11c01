//! The embedded HTTP tracker.
//!
//! Owns: its listening socket, connections and their limits; the store behind one lock.
//! Never: answers for a torrent that it was not told of, unless it is open; believes a client's
//! address.
//! Flow: request -> proto's query -> proto's swarm store -> bytes. Pages come from a
//! [`Catalogue`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use seedring_proto::bencode::Encoder;
use seedring_proto::tracker::query::{AnnounceQuery, decode_percent, scrape_hashes};
use seedring_proto::tracker::swarm_store::{self, Counts, Ends, OwnPeer, SwarmStore};
use seedring_proto::tracker::url::TrackerUrl;
use seedring_proto::units::InfoHash;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

const HEAD_BYTES_MAX: usize = 16 << 10;
/// Lines of the page at `/`.
const LISTINGS_MAX: usize = 1000;
const BACKLOG: i32 = 512;
/// After accept fails (descriptors used up), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    pub store: swarm_store::Options,
    pub connections_max: usize,
    /// Loopback is exempt.
    pub connections_per_ip_max: usize,
    /// For a request's head, and so also for an idle connection.
    pub head_timeout: Duration,
    pub connection_timeout: Duration,
    /// Told of leeches that announce for torrents that seedring is in. What finds it full is
    /// dropped: a leech was given our address, and announces again.
    pub leeches: Option<mpsc::Sender<Leech>>,
}

/// Where a leech takes peers, and of which torrent.
pub type Leech = (InfoHash, SocketAddr);

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            store: swarm_store::Options::default(),
            connections_max: 512,
            connections_per_ip_max: 32,
            head_timeout: Duration::from_secs(10),
            connection_timeout: Duration::from_secs(120),
            leeches: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the embedded tracker cannot listen on {listen}: {why}; choose another tracker.listen")]
pub struct EmbeddedError {
    pub listen: SocketAddr,
    pub why: io::Error,
}

/// A torrent as the page at `/` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub name: String,
    pub info_hash: InfoHash,
    pub size_bytes: u64,
    pub magnet: String,
    /// `NAME` in `/torrents/NAME.torrent`, not encoded.
    pub file: Option<String>,
}

/// What the tracker's pages show. `reached_as` is the `host:port` by which this client reached
/// the
/// tracker, fit for an announce address. Called on the control thread: must not block.
pub trait Catalogue: Send + Sync + 'static {
    fn listings(&self, reached_as: &str) -> Vec<Listing>;
    /// The .torrent file called `name`.
    fn torrent(&self, name: &str, reached_as: &str) -> Option<Vec<u8>>;
}

/// For a tracker without pages.
pub struct NoCatalogue;

impl Catalogue for NoCatalogue {
    fn listings(&self, _reached_as: &str) -> Vec<Listing> {
        Vec::new()
    }

    fn torrent(&self, _name: &str, _reached_as: &str) -> Option<Vec<u8>> {
        None
    }
}

struct Shared {
    store: Mutex<SwarmStore>,
    catalogue: Arc<dyn Catalogue>,
    options: EmbeddedOptions,
    began: Instant,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

impl Shared {
    /// Held for one query or change, never over an await.
    fn store(&self) -> MutexGuard<'_, SwarmStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running tracker; it stops when this is dropped.
pub struct Embedded {
    shared: Arc<Shared>,
    listens: Vec<SocketAddr>,
    /// One a listening socket; a dropped set ends its tasks.
    _accepting: JoinSet<()>,
}

impl Embedded {
    /// Listens on every address, or on none, and serves on the current tokio runtime. Port 0
    /// takes a
    /// free one: see [`Self::listens`].
    pub async fn bind(
        listens: &[SocketAddr],
        options: EmbeddedOptions,
        catalogue: Arc<dyn Catalogue>,
    ) -> Result<Self, EmbeddedError> {
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for &listen in listens {
            let fault = |why| EmbeddedError { listen, why };
            let listener = listen_on(listen).map_err(fault)?;
            bound.push(listener.local_addr().map_err(fault)?);
            listeners.push(listener);
        }
        // Each listening socket holds a place while it waits, so there are more places than
        // sockets.
        let places = options.connections_max.max(2 * listens.len());
        let places = Arc::new(Semaphore::new(places));
        let shared = Arc::new(Shared {
            store: Mutex::new(SwarmStore::new(options.store.clone())),
            catalogue,
            options,
            began: Instant::now(),
            connections: Mutex::default(),
        });
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(listener, Arc::clone(&shared), Arc::clone(&places)));
        }
        Ok(Self { shared, listens: bound, _accepting: accepting })
    }

    #[must_use]
    pub fn listens(&self) -> &[SocketAddr] {
        &self.listens
    }

    /// Serves this info-hash also where the tracker is closed.
    pub fn allow(&self, info_hash: InfoHash) {
        self.shared.store().allow(info_hash);
    }

    /// Stops serving it and forgets its peers.
    pub fn disallow(&self, info_hash: &InfoHash) {
        self.shared.store().disallow(info_hash);
    }

    /// Where seedring takes peers: each listen address, or the announced one. An unspecified
    /// address
    /// (0.0.0.0, `[::]`) is offered as the address by which the asking client reached the
    /// tracker.
    pub fn set_own(&self, own: OwnPeer) {
        self.shared.store().set_own(own);
    }

    /// Seedring is in this torrent's swarm from now on, without announcing over HTTP.
    pub fn register_self(&self, info_hash: InfoHash, seeds: bool) {
        self.shared.store().register_self(info_hash, seeds);
    }

    pub fn unregister_self(&self, info_hash: &InfoHash) {
        self.shared.store().unregister_self(info_hash);
    }

    #[must_use]
    pub fn counts(&self, info_hash: &InfoHash) -> Option<Counts> {
        self.shared.store().counts(info_hash)
    }
}

/// IPv6 sockets take IPv6 only, so that `0.0.0.0` and `[::]` can stand beside each other.
fn listen_on(listen: SocketAddr) -> io::Result<TcpListener> {
    let kind = socket2::Domain::for_address(listen);
    let socket = socket2::Socket::new(kind, socket2::Type::STREAM, None)?;
    if listen.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "the embedded tracker could not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&shared, client.ip().to_canonical()) else { continue };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let limit = shared.options.connection_timeout;
            if tokio::time::timeout(limit, serve(stream, client, &shared)).await.is_err() {
                tracing::trace!(%client, "a connection to the embedded tracker took too long");
            }
            drop((seat, place));
        });
    }
}

/// One of an address's connections.
struct Seat {
    shared: Arc<Shared>,
    ip: IpAddr,
}

impl Seat {
    fn take(shared: &Arc<Shared>, ip: IpAddr) -> Option<Self> {
        let mut taken = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(ip).or_default();
        if !ip.is_loopback() && *count >= shared.options.connections_per_ip_max {
            return None;
        }
        *count += 1;
        Some(Self { shared: Arc::clone(shared), ip })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.ip);
            }
        }
    }
}

async fn serve(stream: TcpStream, client: SocketAddr, shared: &Arc<Shared>) {
    let Ok(local) = stream.local_addr() else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&request, client, local, shared);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.head_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::trace!(%client, %error, "a connection to the embedded tracker ended");
    }
}

type Page = Response<Full<Bytes>>;

fn respond<B>(
    request: &Request<B>,
    client: SocketAddr,
    local: SocketAddr,
    shared: &Shared,
) -> Page {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".into());
    }
    let query = request.uri().query().unwrap_or("");
    let (host, reached_as) = reached_as(request, local);
    match request.uri().path() {
        "/announce" => {
            let ends = Ends { client, local, host };
            bencoded(announce(query, &ends, shared))
        }
        "/scrape" => {
            let hashes = scrape_hashes(query).map_err(|error| error.to_string());
            bencoded(hashes.map(|hashes| shared.store().scrape(&hashes)))
        }
        "/" => page(StatusCode::OK, "text/plain; charset=utf-8", index(&reached_as, shared)),
        path => torrent(path, &reached_as, shared).unwrap_or_else(|| {
            page(StatusCode::NOT_FOUND, "text/plain", "there is nothing here; see /\n".into())
        }),
    }
}

fn announce(query: &str, ends: &Ends, shared: &Shared) -> Result<Vec<u8>, String> {
    let query = AnnounceQuery::parse(query).map_err(|error| error.to_string())?;
    let now = shared.began.elapsed();
    let answer = shared.store().announce(now, &query, ends).map_err(|error| error.to_string())?;
    if let (Some(address), Some(leeches)) = (answer.leech, &shared.options.leeches) {
        let _ = leeches.try_send((query.info_hash, address));
    }
    Ok(answer.body)
}

/// Trackers answer in bencode with status 200 also when they refuse (BEP 3).
fn bencoded(answer: Result<Vec<u8>, String>) -> Page {
    let body = answer.unwrap_or_else(|reason| {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.begin_dict().key("failure reason").str(&reason).end();
        encoder.finish();
        out
    });
    page(StatusCode::OK, "text/plain", body)
}

fn index(reached_as: &str, shared: &Shared) -> Vec<u8> {
    let listings = shared.catalogue.listings(reached_as);
    let mut out = format!("seedring's tracker: http://{reached_as}/announce\n");
    out.push_str(&format!("{} torrents\n", listings.len()));
    for listing in listings.iter().take(LISTINGS_MAX) {
        let counts = shared.store().counts(&listing.info_hash).unwrap_or_default();
        let name: String = listing.name.chars().filter(|c| !c.is_control()).collect();
        out.push_str(&format!(
            "\n{name}\n  info-hash {}\n  size      {} bytes\n  peers     {} seeding, {} leeching\n",
            listing.info_hash, listing.size_bytes, counts.seeders, counts.leechers
        ));
        out.push_str(&format!("  magnet    {}\n", listing.magnet));
        if let Some(file) = &listing.file {
            let mut encoded = String::new();
            seedring_proto::tracker::announce::push_encoded(&mut encoded, file.as_bytes());
            out.push_str(&format!("  torrent   http://{reached_as}/torrents/{encoded}.torrent\n"));
        }
    }
    if listings.len() > LISTINGS_MAX {
        out.push_str(&format!("\nand {} more\n", listings.len() - LISTINGS_MAX));
    }
    out.into_bytes()
}

fn torrent(path: &str, reached_as: &str, shared: &Shared) -> Option<Page> {
    let name = path.strip_prefix("/torrents/")?.strip_suffix(".torrent")?;
    let name = String::from_utf8(decode_percent(name, 1024)?).ok()?;
    let body = shared.catalogue.torrent(&name, reached_as)?;
    let mut page = page(StatusCode::OK, "application/x-bittorrent", body);
    page.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Some(page)
}

/// The `host:port` this client used: its Host header where that is well-formed, else our end.
fn reached_as<B>(request: &Request<B>, local: SocketAddr) -> (Option<IpAddr>, String) {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let url = host.and_then(|h| TrackerUrl::parse(&format!("http://{h}")).ok());
    match url.filter(|url| url.path_and_query() == "/") {
        Some(url) => (url.host().parse().ok(), url.authority()),
        None => (None, SocketAddr::new(local.ip().to_canonical(), local.port()).to_string()),
    }
}

fn page(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Page {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
