//! What a request sends and what answers it survives.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use seedring_proto::tracker::announcer::Origin;
use seedring_proto::tracker::reply::{INFLATED_BYTES_MAX, WIRE_BYTES_MAX};
use seedring_proto::tracker::url::TrackerUrl;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::trackers::http::{Answer, Client, Failed, FetchError, HttpOptions, describe};

const BODY: &[u8] = b"d8:intervali1800e5:peers0:e";

fn options() -> HttpOptions {
    HttpOptions { total_timeout: Duration::from_secs(5), ..HttpOptions::default() }
}

async fn get(url: &str) -> Result<Answer, Failed> {
    get_from(url, Origin::User).await
}

async fn get_from(url: &str, origin: Origin) -> Result<Answer, Failed> {
    let client = Client::new(options()).unwrap();
    client.get(&TrackerUrl::parse(url).unwrap(), "a=%01", origin).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn the_request_is_exact() {
    let server = Server::start(|_| Script::Send(ok(BODY))).await;
    let answer = get(&server.url("/pass%2fkey/announce?x=1")).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, BODY));
    let head = server.heads().remove(0);
    assert!(head.starts_with("GET /pass%2fkey/announce?x=1&a=%01 HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains(&format!("\r\nhost: {}\r\n", server.address)));
    assert!(head.contains("\r\nuser-agent: seedring/0.1.0\r\n"));
    assert!(head.contains("\r\naccept-encoding: gzip\r\n"));
}

#[tokio::test]
async fn chunked_and_compressed_answers() {
    let server = Server::start(|head| {
        let packed = gzip(BODY);
        Script::Send(match head.split(' ').nth(1).unwrap() {
            "/chunked?a=%01" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                10\r\nd8:intervali1800\r\nb\r\ne5:peers0:e\r\n0\r\n\r\n"
                .to_vec(),
            "/gzip?a=%01" => with_headers("Content-Encoding: gzip\r\n", &packed),
            _ => ok(&packed),
        })
    })
    .await;
    for path in ["/chunked", "/gzip", "/gzip-unsaid"] {
        assert_eq!(get(&server.url(path)).await.unwrap().body, BODY, "{path}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_stale_ones_replaced() {
    let server = Server::start(|_| Script::Send(ok(BODY))).await;
    let client = Client::new(options()).unwrap();
    let url = TrackerUrl::parse(&server.url("/announce")).unwrap();
    for _ in 0..5 {
        client.get(&url, "a=1", Origin::User).await.unwrap();
    }
    assert_eq!(server.connections(), 1);
    // A user's connection to this machine is not lent to a .torrent file's address.
    let inner = TrackerUrl::parse(&server.url("/shutdown")).unwrap();
    let failed = client.get(&inner, "a=1", Origin::Torrent).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Forbidden(_)));
    assert_eq!(server.heads().len(), 5);
    let closing = Server::start(|_| Script::SendAndClose(ok(BODY))).await;
    let url = TrackerUrl::parse(&closing.url("/announce")).unwrap();
    for _ in 0..3 {
        client.get(&url, "a=1", Origin::User).await.unwrap();
    }
    assert_eq!((closing.connections(), closing.heads().len()), (3, 3));
}

#[tokio::test]
async fn redirects_are_followed_five_times() {
    let server = Server::start(|head| {
        let path = head.split(' ').nth(1).unwrap();
        let hops: u32 = path[1..].split('?').next().unwrap().parse().unwrap();
        if hops == 0 {
            return Script::Send(ok(BODY));
        }
        let to = format!(
            "HTTP/1.1 302 Found\r\nLocation: /{}?b=2\r\nContent-Length: 0\r\n\r\n",
            hops - 1
        );
        Script::Send(to.into_bytes())
    })
    .await;
    assert_eq!(get(&server.url("/5")).await.unwrap().body, BODY);
    assert!(server.heads().last().unwrap().starts_with("GET /0?b=2 HTTP/1.1"));
    let failed = get(&server.url("/6")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Redirects(5)));
    let file = Server::start(|_| {
        Script::Send(b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\n\r\n".to_vec())
    })
    .await;
    let failed = get(&file.url("/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::RedirectTo(_)));
}

#[tokio::test]
async fn a_torrents_address_reaches_this_machine_only_to_announce() {
    let server = Server::start(|_| Script::Send(ok(BODY))).await;
    let failed = get_from(&server.url("/api/shutdown"), Origin::Torrent).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Forbidden(_)));
    assert!(!failed.maybe_heard);
    assert_eq!(server.connections(), 0);
    get_from(&server.url("/announce"), Origin::Torrent).await.unwrap();
}

#[tokio::test]
async fn too_much_is_not_read() {
    let length = Server::start(|_| {
        Script::Flood(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec())
    })
    .await;
    let failed = get(&length.url("/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::TooLarge), "{}", failed.error);
    let bomb = gzip(&vec![0; INFLATED_BYTES_MAX + 1]);
    assert!(bomb.len() < WIRE_BYTES_MAX);
    let server = Server::start(move |_| Script::Send(ok(&bomb))).await;
    let failed = get(&server.url("/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::InflatedTooLarge), "{}", failed.error);
    let heads = Server::start(|_| Script::Flood(b"HTTP/1.1 200 OK\r\nX: ".repeat(9))).await;
    let failed = get(&heads.url("/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Http(_)), "{}", failed.error);
}

#[tokio::test]
async fn silence_and_garbage_end() {
    let client =
        Client::new(HttpOptions { total_timeout: Duration::from_millis(300), ..options() })
            .unwrap();
    let server = Server::start(|_| Script::Silence).await;
    let began = Instant::now();
    let url = TrackerUrl::parse(&server.url("/announce")).unwrap();
    let failed = client.get(&url, "a=1", Origin::User).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Timeout(_)));
    assert!(failed.maybe_heard, "it was sent");
    assert!(began.elapsed() < Duration::from_secs(3));
    for garbage in [&b"SSH-2.0-OpenSSH_9.9\r\n"[..], b"\x00\xff\x00", b""] {
        let server = Server::start(|_| Script::SendAndClose(garbage.to_vec())).await;
        let failed = get(&server.url("/announce")).await.unwrap_err();
        assert!(matches!(failed.error, FetchError::Http(_)), "{}", failed.error);
    }
    let broken = Server::start(|_| Script::Send(ok(&[0x1f, 0x8b, 1, 2, 3]))).await;
    let failed = get(&broken.url("/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Gzip(_)));
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failed = get(&format!("http://{gone}/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Connect { .. }) && !failed.maybe_heard);
}

#[tokio::test]
async fn both_families() {
    let v6 = Server::start_on("[::1]:0", |_| Script::Send(ok(BODY))).await;
    assert_eq!(get(&v6.url("/announce")).await.unwrap().body, BODY);
    // `localhost` has both addresses; only one is listened on.
    let v4 = Server::start(|_| Script::Send(ok(BODY))).await;
    let url = format!("http://localhost:{}/announce", v4.address.port());
    assert_eq!(get(&url).await.unwrap().body, BODY);
}

#[tokio::test]
async fn https_with_an_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let ca_path = folder.path().join("ca.pem");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    std::fs::write(&ca_path, ca_certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                converse(stream, &|_| Script::Send(ok(BODY)), &Mutex::default()).await;
            });
        }
    });
    let trusting = Client::new(HttpOptions { extra_ca: Some(ca_path), ..options() }).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let url = TrackerUrl::parse(&format!("https://{host}:{port}/announce")).unwrap();
        let answer = trusting.get(&url, "a=1", Origin::User).await.unwrap();
        assert_eq!(answer.body, BODY);
    }
    let failed = get(&format!("https://localhost:{port}/announce")).await.unwrap_err();
    assert!(matches!(failed.error, FetchError::Tls(_)), "{}", failed.error);
    assert!(describe(&failed.error).contains("certificate"), "{}", describe(&failed.error));
    let no_ca = folder.path().join("none.pem");
    std::fs::write(&no_ca, "nothing").unwrap();
    assert!(Client::new(HttpOptions { extra_ca: Some(no_ca), ..options() }).is_err());
}
