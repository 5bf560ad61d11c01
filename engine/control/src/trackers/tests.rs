//! Real sockets on loopback: scripted servers, the embedded tracker, and the task between them.

mod announcing;
mod datagrams;
mod embedded;
mod fetching;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a scripted server does with the head of a request.
enum Script {
    /// Sends these bytes, then waits for the next request on the same connection.
    Send(Vec<u8>),
    /// Sends these bytes, then closes.
    SendAndClose(Vec<u8>),
    /// Sends this again and again until the client goes away.
    Flood(Vec<u8>),
    /// Answers nothing.
    Silence,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    /// Request lines and headers, one text a request.
    heads: Vec<String>,
}

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    async fn start(script: impl Fn(&str) -> Script + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", script).await
    }

    async fn start_on(
        listen: &str,
        script: impl Fn(&str) -> Script + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (script, noted) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                noted.lock().unwrap().connections += 1;
                let (script, noted) = (Arc::clone(&script), Arc::clone(&noted));
                tokio::spawn(async move { converse(stream, &*script, &noted).await });
            }
        });
        Self { address, seen }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().heads.clone()
    }
}

async fn converse<S>(mut stream: S, script: &(dyn Fn(&str) -> Script + Sync), seen: &Mutex<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(head) = read_head(&mut stream).await {
        let next = script(&head);
        seen.lock().unwrap().heads.push(head);
        match next {
            Script::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Script::SendAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Script::Flood(bytes) => while stream.write_all(&bytes).await.is_ok() {},
            Script::Silence => std::future::pending().await,
        }
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A 200 with a length.
fn ok(body: &[u8]) -> Vec<u8> {
    with_headers("", body)
}

fn with_headers(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// One request on a connection of its own; the whole answer until the server closes.
async fn raw(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let reading = stream.read_to_end(&mut out);
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await.expect("the server closes");
    out
}
