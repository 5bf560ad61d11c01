//! Owns: the controller's sockets: who is let in, a thread that reads and one that writes for each.
//! Never: knows what a message means. Flow: listener -> hello -> `Input` to the controller's loop;
//! its lines -> `Outbox` -> socket.

use std::{
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    clock,
    wire::{self, FromAgent, FromRunner, FromWatcher, Hello, Lines, Role, ToAgent},
};

/// Connections at once, those that have not said hello counted.
const CONNECTIONS_MAX: usize = 512;
/// Until whoever connects has said hello.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Lines that wait for one socket; whoever lets more wait is too slow.
const LINES_MAX: usize = 4096;
/// Messages that wait for the controller's loop; then sockets wait.
const INPUTS_MAX: usize = 1024;

pub type Id = u64;

pub enum Input {
    Joined { id: Id, role: Role, from: SocketAddr, outbox: Outbox },
    Agent { id: Id, message: FromAgent, received: u64 },
    Runner { id: Id, message: FromRunner, received: u64 },
    Watcher { id: Id, message: FromWatcher, received: u64 },
    Gone { id: Id, why: String },
}

/// Lines on their way to one socket; the socket closes when it is dropped and they are out.
pub struct Outbox {
    lines: SyncSender<Vec<u8>>,
    stream: TcpStream,
}

impl Outbox {
    /// `false`: it does not keep up.
    pub fn send<T: Serialize>(&self, message: &T) -> Result<bool> {
        Ok(self.lines.try_send(wire::line_of(message)?).is_ok())
    }

    /// At once, whatever waits.
    pub fn cut(&self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

/// Lets in whoever says the token, until the process ends. Beside what they say: how many sockets
/// are open.
pub fn open(listener: TcpListener, token: &str) -> Result<(Receiver<Input>, Arc<AtomicUsize>)> {
    let (sender, inputs) = mpsc::sync_channel(INPUTS_MAX);
    let (next, open) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicUsize::new(0)));
    let token: Arc<str> = token.into();
    let count = open.clone();
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, most likely: others go first.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Relaxed);
                continue;
            }
            let (sender, token) = (sender.clone(), token.clone());
            let (id, left) = (next.fetch_add(1, Relaxed), open.clone());
            let serve = move || {
                serve(stream, id, &token, &sender);
                left.fetch_sub(1, Relaxed);
            };
            if thread::Builder::new().name(format!("reader-{id}")).spawn(serve).is_err() {
                open.fetch_sub(1, Relaxed);
            }
        }
    };
    thread::Builder::new().name("door".into()).spawn(accept)?;
    Ok((inputs, count))
}

/// One connection from its hello to its end.
fn serve(stream: TcpStream, id: Id, token: &str, sender: &SyncSender<Input>) {
    let (role, mut lines, outbox) = match greet(&stream, token) {
        Ok(guest) => guest,
        Err(error) => {
            // Whoever is refused is told why, and may be of any role: the form is the same.
            wire::send(&stream, &ToAgent::Refused { why: format!("{error:#}") }).ok();
            // What it still sends is not waited for, but a reset would overtake the reason.
            stream.shutdown(Shutdown::Write).ok();
            return;
        }
    };
    let from = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let of = role.clone();
    if sender.send(Input::Joined { id, role, from, outbox }).is_err() {
        return;
    }
    let ended = match of {
        Role::Agent(_) => read_all(&mut lines, |message, received| {
            sender.send(Input::Agent { id, message, received }).is_ok()
        }),
        Role::Runner(_) => read_all(&mut lines, |message, received| {
            sender.send(Input::Runner { id, message, received }).is_ok()
        }),
        Role::Watcher => read_all(&mut lines, |message, received| {
            sender.send(Input::Watcher { id, message, received }).is_ok()
        }),
    };
    let why = match ended {
        Ok(()) => "it closed the connection".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    stream.shutdown(Shutdown::Both).ok();
    sender.send(Input::Gone { id, why }).ok();
}

type Guest = (Role, Lines<TcpStream>, Outbox);

fn greet(stream: &TcpStream, token: &str) -> Result<Guest> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_MAX))?;
    stream.set_write_timeout(Some(wire::WRITE_MAX))?;
    let mut lines = Lines::new(stream.try_clone()?, wire::HELLO_BYTES_MAX);
    let line = lines.next_line()?.context("no hello")?;
    let hello = Hello::read(&line, token)?;
    wire::send(stream, &ToAgent::Welcome)?;
    // From here on the controller's loop notices who is silent.
    stream.set_read_timeout(None)?;
    lines.most = wire::LINE_BYTES_MAX;
    let (sender, waiting) = mpsc::sync_channel::<Vec<u8>>(LINES_MAX);
    let mut mouth = stream.try_clone()?;
    thread::Builder::new().name("writer".into()).spawn(move || {
        for line in waiting {
            if mouth.write_all(&line).is_err() {
                break;
            }
        }
        // Its reader then sees the end as well.
        mouth.shutdown(Shutdown::Both).ok();
    })?;
    Ok((hello.role, lines, Outbox { lines: sender, stream: stream.try_clone()? }))
}

/// `take`: `false` when nobody listens any more.
fn read_all<T: DeserializeOwned>(
    lines: &mut Lines<TcpStream>,
    take: impl Fn(T, u64) -> bool,
) -> Result<()> {
    while let Some(line) = lines.next_line()? {
        let received = clock::now();
        if !take(wire::parse(&line)?, received) {
            break;
        }
    }
    Ok(())
}
