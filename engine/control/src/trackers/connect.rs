//! A connection to a tracker.
//!
//! Owns: lookup, the address rule, connecting (both families raced), TLS. Never: sends a request.
//! Flow: `http` asks for a connection where it keeps none; the address checked is the address
//! dialled.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use seedring_proto::tracker::url::{Scheme, TrackerUrl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http::FetchError;
use super::rule::{self, Forbidden, Hop};

/// RFC 8305, section 8: the next address is tried when the one before is silent for this long.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("cannot read the certificates in {path}: {why}")]
    ExtraCa { path: PathBuf, why: rustls::pki_types::pem::Error },
    #[error("{path} holds no certificate that can be used; a PEM file is expected")]
    NoCertificate { path: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Trust: Mozilla's roots built in, the system's, and the user's own. `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` replace the system's.
pub fn tls_connector(extra_ca: Option<&Path>) -> Result<TlsConnector, TlsSetupError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a system certificate was not read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra_ca {
        let unreadable = |why| TlsSetupError::ExtraCa { path: path.to_owned(), why };
        let found: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
            .map_err(unreadable)?
            .collect::<Result<_, _>>()
            .map_err(unreadable)?;
        let (added, _ignored) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(TlsSetupError::NoCertificate { path: path.to_owned() });
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Source addresses. Where one is set, only families that have one are used: nothing leaks past
/// it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bind {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Bind {
    /// `Err` where this family must not be used.
    pub(super) fn source(self, target: IpAddr) -> Result<Option<IpAddr>, ()> {
        match (self.v4, self.v6, target) {
            (None, None, _) => Ok(None),
            (Some(v4), _, IpAddr::V4(_)) => Ok(Some(v4.into())),
            (_, Some(v6), IpAddr::V6(_)) => Ok(Some(v6.into())),
            _ => Err(()),
        }
    }
}

pub async fn connect(
    url: &TrackerUrl,
    hop: Hop,
    bind: Bind,
    tls: &TlsConnector,
) -> Result<(Stream, SocketAddr), FetchError> {
    // Jobs are told apart before, and a redirect does not lead there.
    if url.scheme() == Scheme::Udp {
        return Err(FetchError::Request);
    }
    let addresses = resolve(url, hop, bind).await?;
    let (tcp, address) = race(addresses, bind).await?;
    tcp.set_nodelay(true).ok();
    let stream = if url.scheme() == Scheme::Https {
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|_| FetchError::Tls(io::Error::other("not a host name for TLS")))?;
        Stream::Tls(Box::new(tls.connect(name, tcp).await.map_err(FetchError::Tls)?))
    } else {
        Stream::Plain(tcp)
    };
    Ok((stream, address))
}

async fn resolve(url: &TrackerUrl, hop: Hop, bind: Bind) -> Result<Vec<SocketAddr>, FetchError> {
    usable(lookup(url).await?, url.host(), bind, |ip| rule::check(hop, ip, url.path()))
}

/// On a thread of tokio's for what blocks.
pub(super) async fn lookup(url: &TrackerUrl) -> Result<Vec<SocketAddr>, FetchError> {
    let found = tokio::net::lookup_host((url.host(), url.port())).await;
    let found = found.map_err(|why| FetchError::Resolve { host: url.host().to_owned(), why })?;
    Ok(found.collect())
}

/// The host's addresses that may be dialled, families taking turns, the resolver's first in
/// front.
pub(super) fn usable(
    found: Vec<SocketAddr>,
    host: &str,
    bind: Bind,
    check: impl Fn(IpAddr) -> Result<(), Forbidden>,
) -> Result<Vec<SocketAddr>, FetchError> {
    let mut refused = None;
    let mut usable = Vec::new();
    for address in found {
        match check(address.ip()) {
            Err(forbidden) => refused = Some(forbidden),
            Ok(()) if bind.source(address.ip()).is_ok() => usable.push(address),
            Ok(()) => {}
        }
    }
    match (usable.is_empty(), refused) {
        (true, Some(forbidden)) => Err(FetchError::Forbidden(forbidden)),
        (true, None) => Err(FetchError::NoAddress { host: host.to_owned() }),
        _ => Ok(take_turns(usable)),
    }
}

fn take_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut out = Vec::new();
    for address in first {
        out.push(address);
        out.extend(second.next());
    }
    out.extend(second);
    out.truncate(ADDRESSES_MAX);
    out
}

/// RFC 8305: the first to answer wins, the rest are dropped. A failure starts the next at once.
async fn race(
    addresses: Vec<SocketAddr>,
    bind: Bind,
) -> Result<(TcpStream, SocketAddr), FetchError> {
    let mut waiting = addresses.into_iter();
    let mut dialling = JoinSet::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.next() {
            dialling.spawn(async move { (dial(address, bind).await, address) });
        }
        let more = waiting.len() > 0;
        tokio::select! {
            joined = dialling.join_next() => match joined {
                Some(Ok((Ok(stream), address))) => return Ok((stream, address)),
                Some(Ok((Err(why), address))) => last = Some(FetchError::Connect { address, why }),
                Some(Err(_)) => {}
                None if !more => {
                    return Err(last.expect("invariant: at least one address is dialled"));
                }
                None => {}
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}

async fn dial(address: SocketAddr, bind: Bind) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if let Ok(Some(source)) = bind.source(address.ip()) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// TCP, with or without TLS.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let turns = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(take_turns(given), turns);
    }

    #[test]
    fn a_bound_family_shuts_the_other_out() {
        let bind = Bind { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None };
        assert_eq!(bind.source("1.1.1.1".parse().unwrap()), Ok(Some("10.0.0.1".parse().unwrap())));
        assert_eq!(bind.source("::1".parse().unwrap()), Err(()));
        assert_eq!(Bind::default().source("::1".parse().unwrap()), Ok(None));
    }
}
