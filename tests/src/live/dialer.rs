//! Owns: one who dials the engine from an address of its own, shakes hands, and dials again when it
//! was closed, until it is dropped.
//! Never: knows what is said afterwards; that is a function's.
//! Flow: a thread -> connection -> handshake -> the function -> again.

use super::frames::Frames;
use super::peer::{handshake, open_from};
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const REDIAL: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Dialer {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Dialer {
    /// `speak` has the connection until it fails, or until what it is given says no more.
    pub fn start(
        info_hash: &str,
        engine: SocketAddr,
        from: Ipv4Addr,
        speak: impl Fn(&mut Frames, &dyn Fn() -> bool) -> Result<()> + Send + 'static,
    ) -> Self {
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (theirs, count) = (stop.clone(), Arc::clone(&connections));
        let info_hash = info_hash.to_owned();
        let thread = std::thread::spawn(move || {
            let goes_on = || !theirs.load(Ordering::Relaxed);
            while goes_on() {
                let speak = |mut frames: Frames| {
                    AtomicU64::fetch_add(&count, 1, Ordering::Relaxed);
                    speak(&mut frames, &goes_on)
                };
                // Closed, refused, banned: it comes again.
                let _ = greet(&info_hash, engine, from).and_then(speak);
                std::thread::sleep(REDIAL);
            }
        });
        Self { stop, connections, thread: Some(thread) }
    }

    /// Connections on which the engine shook hands.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn greet(info_hash: &str, engine: SocketAddr, from: Ipv4Addr) -> Result<Frames> {
    let mut frames = Frames::new(open_from(from, engine)?)?;
    frames.send_raw(&handshake(info_hash)?)?;
    frames.take_handshake(info_hash)?;
    Ok(frames)
}
