//! The local control socket: `seedring list` and `show` speak to the running engine through it.
//!
//! Owns: the Unix socket, its file, one JSON line in, one JSON document out. Never: the answers.
//! Flow: client connects -> request line -> engine's loop -> answer -> closed.
//!
//! Access is by file permission: the socket has mode 0600 from its first moment.

use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::engine::{
    commands::Action,
    status::{HealthReport, Request},
};

const REQUESTS_MAX: usize = 16;
/// A .torrent file of 64 MiB in hexadecimal digits, and what goes with it. Only the engine's own
/// user can connect.
const REQUEST_BYTES_MAX: u64 = (128 << 20) + (64 << 10);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A request as it stands on the wire.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "command", rename_all = "lowercase")]
enum Line {
    List,
    Show { torrent: String },
    Health,
    Act { action: Box<Action> },
}

/// An answer as it stands on the wire.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(serde_json::Value),
    Error(String),
}

/// Listens; requests come out of the channel.
pub async fn listen(path: &Path) -> anyhow::Result<mpsc::Receiver<Request>> {
    remove_stale(path).await?;
    let listener = bind(path).with_context(|| {
        format!(
            "the control socket {} can't be made; its folder must be writable and its path at \
             most 107 bytes long (control_socket sets another)",
            path.display()
        )
    })?;
    let (requests, received) = mpsc::channel(REQUESTS_MAX);
    let guard = Unlink(path.to_owned());
    tokio::spawn(async move {
        let _guard = guard;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let requests = requests.clone();
                    tokio::spawn(async move {
                        let served = serve(stream, requests);
                        let _ = tokio::time::timeout(CLIENT_TIMEOUT, served).await;
                    });
                }
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    Ok(received)
}

/// The mode is on the socket before it has a name: Linux takes it over, less the umask, at the
/// bind. So nobody else can connect at any moment.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(REQUESTS_MAX as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A socket file that nobody listens on any more is left over from a crash.
async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(anyhow!(
            "{} is in the way of the control socket; move it away",
            path.display()
        ));
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(anyhow!(
            "another seedring answers on {}; give this one another state_dir or control_socket",
            path.display()
        ));
    }
    std::fs::remove_file(path).with_context(|| format!("removing the stale {}", path.display()))
}

async fn serve(stream: UnixStream, requests: mpsc::Sender<Request>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    let (answer, answered) = oneshot::channel();
    let request = match serde_json::from_str(&line) {
        Ok(Line::List) => Request::List(answer),
        Ok(Line::Show { torrent }) => Request::Show(torrent, answer),
        Ok(Line::Health) => Request::Health(answer),
        Ok(Line::Act { action }) => Request::Act(action, answer),
        Err(error) => {
            return reply(&mut write, &Answer::Error(format!("not a request: {error}"))).await;
        }
    };
    let _ = requests.send(request).await;
    let answer = match answered.await {
        // The document goes through as it is: that of 10,000 torrents has megabytes.
        Ok(Ok(json)) => return send(&mut write, &["{\"ok\":", &json, "}"]).await,
        Ok(Err(why)) => Answer::Error(why),
        Err(_) => Answer::Error("the engine is stopping".into()),
    };
    reply(&mut write, &answer).await
}

async fn reply(write: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    send(write, &[&serde_json::to_string(answer)?]).await
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), parts: &[&str]) -> io::Result<()> {
    for part in parts {
        write.write_all(part.as_bytes()).await?;
    }
    write.shutdown().await
}

/// Asks a running engine. Blocking, for the command line.
pub fn ask<T: serde::de::DeserializeOwned>(
    path: &Path,
    torrent: Option<&str>,
) -> anyhow::Result<T> {
    let line = match torrent {
        None => Line::List,
        Some(torrent) => Line::Show { torrent: torrent.to_owned() },
    };
    send_line(path, &line, CLIENT_TIMEOUT)
}

/// Asks a running engine whether it works; `limit` bounds its answer. Blocking.
pub fn health(path: &Path, limit: Duration) -> anyhow::Result<HealthReport> {
    send_line(path, &Line::Health, limit)
}

/// Has a running engine do something. Blocking, for the command line.
pub fn act<T: serde::de::DeserializeOwned>(path: &Path, action: Action) -> anyhow::Result<T> {
    send_line(path, &Line::Act { action: Box::new(action) }, CLIENT_TIMEOUT)
}

fn send_line<T: serde::de::DeserializeOwned>(
    path: &Path,
    line: &Line,
    limit: Duration,
) -> anyhow::Result<T> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(|error| {
        anyhow!(
            "no engine answers on {}: {error}; is `seedring run` running with this state_dir?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{}\n", serde_json::to_string(line)?).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match serde_json::from_slice(&answer).context("the engine's answer is not what was expected")? {
        Answer::Ok(value) => Ok(serde_json::from_value(value)?),
        Answer::Error(why) => Err(anyhow!(why)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn only_its_user_may_connect_and_what_a_crash_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(bind(&path).unwrap()); // as a crash leaves it: a name that nobody listens on
        let _requests = listen(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = listen(&path).await.err().unwrap().to_string();
        assert!(error.contains("another seedring"), "{error}");
        let other = dir.path().join("file");
        std::fs::write(&other, "x").unwrap();
        let error = listen(&other).await.err().unwrap().to_string();
        assert!(error.contains("in the way"), "{error}");
    }
}
