//! One GET to a tracker.
//!
//! Owns: exact request bytes, kept connections, redirects, deadlines, size limits. Never: reads
//! a reply's meaning.
//! Flow: the task of a job calls [`Client::get`]; connections come from `connect` or from those
//! kept.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use seedring_proto::tracker::announcer::Origin;
use seedring_proto::tracker::redact::redact_text;
use seedring_proto::tracker::reply::{INFLATED_BYTES_MAX, WIRE_BYTES_MAX};
use seedring_proto::tracker::url::{TrackerUrl, UrlError};
use tokio_rustls::TlsConnector;

use super::connect::{Bind, TlsSetupError, connect, tls_connector};
use super::rule::{Forbidden, Hop, check, scope};

const USER_AGENT: &str = concat!("seedring/", env!("CARGO_PKG_VERSION"));
const KEPT_MAX: usize = 256;
const KEPT_PER_HOST_MAX: usize = 16;
const HEAD_BYTES_MAX: usize = 32 << 10;

#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Lookup, connect and TLS together.
    pub connect_timeout: Duration,
    /// The whole request, redirects included.
    pub total_timeout: Duration,
    pub redirects_max: usize,
    /// The User-Agent header; what cannot stand in a header is replaced by the default.
    pub user_agent: String,
    /// How long an unused connection is kept.
    pub keep: Duration,
    pub bind: Bind,
    /// Certificates to trust beside the system's (PEM).
    pub extra_ca: Option<PathBuf>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(30),
            redirects_max: 5,
            user_agent: USER_AGENT.to_owned(),
            keep: Duration::from_secs(30),
            bind: Bind::default(),
            extra_ca: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot find the tracker's host {host}: {why}")]
    Resolve { host: String, why: io::Error },
    #[error("the tracker's host {host} has no address that may be used here")]
    NoAddress { host: String },
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("cannot connect to the tracker at {address}: {why}")]
    Connect { address: SocketAddr, why: io::Error },
    #[error("no secure connection to the tracker: {0}")]
    Tls(io::Error),
    #[error("no connection to the tracker within {} s", .0.as_secs())]
    ConnectTimeout(Duration),
    #[error("no answer from the tracker within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the tracker's answer has more than {WIRE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the tracker's answer inflates to more than {INFLATED_BYTES_MAX} bytes")]
    InflatedTooLarge,
    #[error("the tracker's answer is not valid gzip: {0}")]
    Gzip(io::Error),
    #[error("the tracker redirects more than {0} times")]
    Redirects(usize),
    #[error("the tracker redirects to an address that cannot be used: {0}")]
    RedirectTo(#[from] UrlError),
    #[error("the tracker redirects without saying where")]
    RedirectNowhere,
    #[error("the tracker's address cannot be put into a request")]
    Request,
    #[error("the tracker did not answer in HTTP: {0}")]
    Http(#[from] hyper::Error),
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub retry_after: Option<Duration>,
}

/// A failed request, and whether the tracker may have acted on it.
#[derive(Debug)]
pub struct Failed {
    pub error: FetchError,
    pub maybe_heard: bool,
}

type Sender = SendRequest<Empty<Bytes>>;

struct Kept {
    sender: Sender,
    address: SocketAddr,
    since: Instant,
}

pub struct Client {
    options: HttpOptions,
    user_agent: HeaderValue,
    tls: TlsConnector,
    kept: Mutex<HashMap<String, Vec<Kept>>>,
}

impl Client {
    pub fn new(options: HttpOptions) -> Result<Self, TlsSetupError> {
        let tls = tls_connector(options.extra_ca.as_deref())?;
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .unwrap_or_else(|_| HeaderValue::from_static(USER_AGENT));
        Ok(Self { options, user_agent, tls, kept: Mutex::default() })
    }

    /// Asks `url` with `parameters` behind its own query; the bytes go out as they are here.
    pub async fn get(
        &self,
        url: &TrackerUrl,
        parameters: &str,
        origin: Origin,
    ) -> Result<Answer, Failed> {
        let sent = AtomicBool::new(false);
        let limit = self.options.total_timeout;
        let work = self.follow(url, parameters, origin, &sent);
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Timeout(limit)),
        };
        result.map_err(|error| Failed { error, maybe_heard: sent.load(Ordering::Relaxed) })
    }

    async fn follow(
        &self,
        url: &TrackerUrl,
        parameters: &str,
        origin: Origin,
        sent: &AtomicBool,
    ) -> Result<Answer, FetchError> {
        let mut url = url.clone();
        let mut target = url.with_parameters(parameters);
        let mut hop = Hop::First(origin);
        for _ in 0..=self.options.redirects_max {
            let (response, sender, address) = self.exchange(&url, &target, hop, sent).await?;
            if !response.status().is_redirection() {
                let answer = read_answer(response).await?;
                self.keep(&url, sender, address);
                return Ok(answer);
            }
            let location = response.headers().get(header::LOCATION);
            let location =
                location.and_then(|l| l.to_str().ok()).ok_or(FetchError::RedirectNowhere)?;
            url = url.join(location)?;
            url.path_and_query().clone_into(&mut target);
            hop = Hop::Redirect(scope(address.ip()));
        }
        Err(FetchError::Redirects(self.options.redirects_max))
    }

    /// One request. A kept connection that the server closed meanwhile is replaced once.
    async fn exchange(
        &self,
        url: &TrackerUrl,
        target: &str,
        hop: Hop,
        sent: &AtomicBool,
    ) -> Result<(Response<Incoming>, Sender, SocketAddr), FetchError> {
        while let Some(kept) = self.take_kept(url) {
            let Kept { mut sender, address, .. } = kept;
            // The address may be one that this request must not reach.
            if check(hop, address.ip(), url.path()).is_err() || sender.ready().await.is_err() {
                continue;
            }
            match sender.send_request(self.request(url, target)?).await {
                Ok(response) => {
                    sent.store(true, Ordering::Relaxed);
                    return Ok((response, sender, address));
                }
                // Closed or reset between requests; to announce twice does no harm.
                Err(error) => {
                    tracing::trace!(%error, "a kept tracker connection had ended");
                    sent.store(true, Ordering::Relaxed);
                }
            }
        }
        let limit = self.options.connect_timeout;
        let connecting = connect(url, hop, self.options.bind, &self.tls);
        let (stream, address) = tokio::time::timeout(limit, connecting)
            .await
            .map_err(|_| FetchError::ConnectTimeout(limit))??;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(100)
            .handshake(TokioIo::new(stream))
            .await?;
        // Ends by itself when the sender is dropped or the server closes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a tracker connection ended");
            }
        });
        sent.store(true, Ordering::Relaxed);
        let response = sender.send_request(self.request(url, target)?).await?;
        Ok((response, sender, address))
    }

    fn request(&self, url: &TrackerUrl, target: &str) -> Result<Request<Empty<Bytes>>, FetchError> {
        Request::get(target)
            .header(header::HOST, url.authority())
            .header(header::USER_AGENT, &self.user_agent)
            .header(header::ACCEPT_ENCODING, "gzip")
            .body(Empty::new())
            .map_err(|_| FetchError::Request)
    }

    fn take_kept(&self, url: &TrackerUrl) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let idle_max = self.options.keep;
        let connections = kept.get_mut(&url.host_key())?;
        connections.retain(|k| k.since.elapsed() < idle_max && !k.sender.is_closed());
        connections.pop()
    }

    fn keep(&self, url: &TrackerUrl, sender: Sender, address: SocketAddr) {
        if sender.is_closed() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let idle_max = self.options.keep;
        kept.retain(|_, connections| {
            connections.retain(|k| k.since.elapsed() < idle_max && !k.sender.is_closed());
            !connections.is_empty()
        });
        let all: usize = kept.values().map(Vec::len).sum();
        let connections = kept.entry(url.host_key()).or_default();
        if all < KEPT_MAX && connections.len() < KEPT_PER_HOST_MAX {
            connections.push(Kept { sender, address, since: Instant::now() });
        }
    }
}

/// Reads the body up to the limit, never further, and inflates it.
async fn read_answer(response: Response<Incoming>) -> Result<Answer, FetchError> {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let encoding = response.headers().get(header::CONTENT_ENCODING).cloned();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > WIRE_BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    // Some trackers compress without saying so; no bencode begins with gzip's magic bytes.
    let says_gzip = encoding.is_some_and(|e| e.as_bytes().ends_with(b"gzip"));
    if says_gzip || bytes.starts_with(&[0x1f, 0x8b]) {
        bytes = inflate(&bytes)?;
    }
    Ok(Answer { status, body: bytes, retry_after })
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, FetchError> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .take(INFLATED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut out)
        .map_err(FetchError::Gzip)?;
    if out.len() > INFLATED_BYTES_MAX {
        return Err(FetchError::InflatedTooLarge);
    }
    Ok(out)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The error with its causes, secrets masked.
pub fn describe(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    // hyper's own text is general ("connection error"), its cause says what happened.
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text = format!("{text}: {why_text}");
        }
        cause = why.source();
    }
    redact_text(&text, 300)
}
