//! Owns: an HTTP tracker that answers every announce with no peers and writes it down.
//! Never: judges; the test reads the list.
//! Flow: the engine announces to [`RecordingTracker::url`]; the test waits for what it expects.

use crate::interop::wait_until;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const REPLY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 27\r\nConnection: close\r\n\r\n\
                     d8:intervali1800e5:peers0:e";
const LINES_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    /// In hexadecimal.
    pub info_hash: String,
    /// Empty for the regular ones.
    pub event: String,
    pub uploaded: u64,
    pub downloaded: u64,
    pub left: u64,
    pub port: u16,
}

#[derive(Debug)]
pub struct RecordingTracker {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Announce>>>,
}

impl RecordingTracker {
    /// Its thread ends with the process.
    pub fn start(address: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Each is short: one request, one answer, closed.
                if let Ok(Some(announce)) = answer(stream) {
                    list.lock().unwrap_or_else(PoisonError::into_inner).push(announce);
                }
            }
        });
        Ok(Self { address, heard })
    }

    pub fn url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    pub fn heard(&self) -> Vec<Announce> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least `count` announces with this event were heard, and returns them.
    pub fn wait_for(&self, event: &str, count: usize, limit: Duration) -> Result<Vec<Announce>> {
        let of_event = || -> Vec<Announce> {
            self.heard().into_iter().filter(|announce| announce.event == event).collect()
        };
        let what = format!("{count} announces of `{event}`");
        wait_until(&what, limit, || Ok(Some(of_event()).filter(|heard| heard.len() >= count)))
            .with_context(|| format!("heard {}", of_event().len()))
    }
}

fn answer(stream: TcpStream) -> Result<Option<Announce>> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().context("no request")??;
    for line in lines.by_ref().take(LINES_MAX) {
        if line?.is_empty() {
            break;
        }
    }
    (&stream).write_all(REPLY.as_bytes())?;
    let target = request.split(' ').nth(1).unwrap_or_default();
    Ok(target.split_once('?').map(|(_, query)| parse(query)))
}

fn parse(query: &str) -> Announce {
    let value = |key: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    };
    let number = |key: &str| value(key).parse().unwrap_or(u64::MAX);
    Announce {
        info_hash: decode_percent(value("info_hash")),
        event: value("event").to_owned(),
        uploaded: number("uploaded"),
        downloaded: number("downloaded"),
        left: number("left"),
        port: value("port").parse().unwrap_or(0),
    }
}

/// The bytes of a percent-encoded value, in hexadecimal.
fn decode_percent(text: &str) -> String {
    let mut hex = String::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            hex.extend(bytes.by_ref().take(2).map(|digit| char::from(digit).to_ascii_lowercase()));
        } else {
            hex.push_str(&format!("{byte:02x}"));
        }
    }
    hex
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_announce_is_read() {
        let query = "info_hash=%00A%ff&peer_id=x&port=6881&uploaded=5&downloaded=0&left=0&\
                     event=stopped";
        let announce = super::parse(query);
        assert_eq!(announce.info_hash, "0041ff");
        assert_eq!((announce.uploaded, announce.event.as_str()), (5, "stopped"));
        assert_eq!(announce.port, 6881);
    }
}
