//! The local control socket: `seedring list` and `show` speak to the running engine through it.
//!
//! Owns: the Unix socket, its file, one JSON line in, one JSON document out. Never: the answers.
//! Flow: client connects -> request line -> engine's loop -> answer -> closed.
//!
//! Access is by file permission: the socket is made with mode 0600, in a folder of the engine's user.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
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

use crate::engine::status::Request;

const REQUESTS_MAX: usize = 16;
const REQUEST_BYTES_MAX: u64 = 4_096;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request as it stands on the wire.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "command", rename_all = "lowercase")]
enum Line {
    List,
    Show { torrent: String },
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
    let listener = UnixListener::bind(path)
        .with_context(|| format!("the control socket {} can't be made", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("setting the permissions of {}", path.display()))?;
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
        Err(error) => {
            return reply(&mut write, &Answer::Error(format!("not a request: {error}"))).await;
        }
    };
    let _ = requests.send(request).await;
    let answer = match answered.await {
        Ok(Ok(json)) => Answer::Ok(serde_json::from_str(&json)?),
        Ok(Err(why)) => Answer::Error(why),
        Err(_) => Answer::Error("the engine is stopping".into()),
    };
    reply(&mut write, &answer).await
}

async fn reply(write: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    write.write_all(&serde_json::to_vec(answer)?).await?;
    write.shutdown().await
}

/// Asks a running engine. Blocking, for the command line.
pub fn ask<T: serde::de::DeserializeOwned>(
    path: &Path,
    torrent: Option<&str>,
) -> anyhow::Result<T> {
    use std::io::{Read as _, Write as _};
    let line = match torrent {
        None => Line::List,
        Some(torrent) => Line::Show { torrent: torrent.to_owned() },
    };
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(|error| {
        anyhow!(
            "no engine answers on {}: {error}; is `seedring run` running with this state_dir?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match serde_json::from_slice(&answer).context("the engine's answer is not what was expected")? {
        Answer::Ok(value) => Ok(serde_json::from_value(value)?),
        Answer::Error(why) => Err(anyhow!(why)),
    }
}
