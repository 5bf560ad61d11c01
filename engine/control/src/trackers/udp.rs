//! Announces over UDP.
//!
//! Owns: one socket an address family for all trackers, names looked up, who waits for which
//! announce. Never: decides what is sent when, or what an answer means (proto's exchanges do).
//! Flow: the task of a job calls [`Client::announce`], which looks the host up and asks the
//! driver, a task of its own: asks, datagrams and deadlines in, datagrams and outcomes out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seedring_proto::tracker::announce::Request;
use seedring_proto::tracker::announcer::{Failure, Origin};
use seedring_proto::tracker::reply::{Reply, Retry};
use seedring_proto::tracker::udp::exchanges::{
    Action, Announcement, ExchangeId, Exchanges, Timing,
};
use seedring_proto::tracker::udp::packet::ANSWER_BYTES_MAX;
use seedring_proto::tracker::url::TrackerUrl;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connect::{Bind, lookup, usable};
use super::http::{FetchError, describe};
use super::rule;

/// Asks that wait for the driver; the governor lets no more run.
const ASKS_MAX: usize = 64;
/// How long addresses of a host are used without asking again: as long as a connection id.
const LOOKUP_LIFE: Duration = Duration::from_secs(60);
const LOOKUPS_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct UdpOptions {
    pub timing: Timing,
    pub lookup_timeout: Duration,
    pub bind: Bind,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            lookup_timeout: Duration::from_secs(10),
            bind: Bind::default(),
        }
    }
}

type Outcome = Result<Reply, Failure>;
/// By host and port: addresses, and since when they are known.
type Lookups = HashMap<(String, u16), (Vec<SocketAddr>, Instant)>;

struct Ask {
    addresses: Vec<SocketAddr>,
    what: Announcement,
    /// Closed when the job was cut off.
    answer: oneshot::Sender<Outcome>,
}

pub struct Client {
    options: UdpOptions,
    asks: mpsc::Sender<Ask>,
    hurry: watch::Sender<bool>,
    lookups: Mutex<Lookups>,
}

impl Client {
    /// Starts the driver on the current tokio runtime; it ends with the client.
    pub fn start(options: UdpOptions) -> Self {
        let (asks, inbox) = mpsc::channel(ASKS_MAX);
        let (hurry, hurried) = watch::channel(false);
        let driver = Driver {
            machine: Exchanges::new(options.timing.clone(), rand::random()),
            began: Instant::now(),
            bind: options.bind,
            v4: None,
            v6: None,
            inbox,
            hurry: hurried,
            waiting: HashMap::new(),
            next_id: 0,
        };
        tokio::spawn(driver.run());
        Self { options, asks, hurry, lookups: Mutex::default() }
    }

    pub async fn announce(&self, url: &TrackerUrl, request: Request, origin: Origin) -> Outcome {
        let addresses = match self.addresses(url, origin).await {
            Ok(addresses) => addresses,
            Err(error) => {
                return Err(Failure { unreached: true, ..not_sent(describe(&error)) });
            }
        };
        let (answer, outcome) = oneshot::channel();
        let what = Announcement { request, url: url.clone() };
        let ended = || not_sent("announces over UDP have ended".to_owned());
        let ask = Ask { addresses, what, answer };
        self.asks.send(ask).await.map_err(|_| ended())?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Shutdown: shorter waits, and no lookup where an address is known.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }

    async fn addresses(
        &self,
        url: &TrackerUrl,
        origin: Origin,
    ) -> Result<Vec<SocketAddr>, FetchError> {
        let found = self.look_up(url).await?;
        usable(found, url.host(), self.options.bind, |ip| rule::check_datagram(origin, ip))
    }

    /// Torrents of one tracker share a lookup; addresses of before serve where one fails.
    async fn look_up(&self, url: &TrackerUrl) -> Result<Vec<SocketAddr>, FetchError> {
        let key = (url.host().to_owned(), url.port());
        let known = self.lookups().get(&key).cloned();
        let hurried = *self.hurry.borrow();
        if let Some((addresses, since)) = &known
            && (hurried || since.elapsed() < LOOKUP_LIFE)
        {
            return Ok(addresses.clone());
        }
        let limit = self.options.lookup_timeout;
        let looked_up = match tokio::time::timeout(limit, lookup(url)).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Resolve {
                host: key.0.clone(),
                why: io::ErrorKind::TimedOut.into(),
            }),
        };
        match (looked_up, known) {
            (Ok(addresses), _) => {
                self.remember(key, addresses.clone());
                Ok(addresses)
            }
            (Err(error), Some((addresses, _))) => {
                tracing::debug!(host = key.0, error = describe(&error), "addresses of before");
                Ok(addresses)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn remember(&self, key: (String, u16), addresses: Vec<SocketAddr>) {
        let mut lookups = self.lookups();
        if lookups.len() >= LOOKUPS_MAX {
            lookups.retain(|_, (_, since)| since.elapsed() < LOOKUP_LIFE);
        }
        if lookups.len() < LOOKUPS_MAX {
            lookups.insert(key, (addresses, Instant::now()));
        }
    }

    /// Never held over an await.
    fn lookups(&self) -> MutexGuard<'_, Lookups> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Driver {
    machine: Exchanges,
    began: Instant,
    bind: Bind,
    /// Opened when first needed.
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    inbox: mpsc::Receiver<Ask>,
    hurry: watch::Receiver<bool>,
    waiting: HashMap<ExchangeId, oneshot::Sender<Outcome>>,
    next_id: ExchangeId,
}

impl Driver {
    async fn run(mut self) {
        let (mut v4, mut v6) = (vec![0; ANSWER_BYTES_MAX], vec![0; ANSWER_BYTES_MAX]);
        loop {
            self.act().await;
            let wake = self.machine.deadline().map(|at| self.began + at);
            let sleep = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now));
            tokio::select! {
                ask = self.inbox.recv() => match ask {
                    Some(ask) => self.begin(ask),
                    None => return,
                },
                changed = self.hurry.changed() => match changed {
                    Ok(()) => self.machine.hurry(self.now()),
                    Err(_) => return,
                },
                received = receive(self.v4.as_ref(), &mut v4) => match received {
                    Ok((length, from)) => self.received(from, &v4[..length]),
                    Err(error) => drop_socket(&mut self.v4, &error),
                },
                received = receive(self.v6.as_ref(), &mut v6) => match received {
                    Ok((length, from)) => self.received(from, &v6[..length]),
                    Err(error) => drop_socket(&mut self.v6, &error),
                },
                () = sleep, if wake.is_some() => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn begin(&mut self, ask: Ask) {
        self.next_id += 1;
        self.machine.begin(self.now(), self.next_id, ask.addresses, ask.what);
        self.waiting.insert(self.next_id, ask.answer);
    }

    fn received(&mut self, from: SocketAddr, datagram: &[u8]) {
        let before = self.machine.strays();
        self.machine.received(self.now(), from, datagram);
        let strays = self.machine.strays();
        if strays > before && strays.is_power_of_two() {
            tracing::debug!(strays, %from, "a datagram that answers no announce");
        }
    }

    async fn act(&mut self) {
        // A job that was cut off sends nothing more: its tracker may be told `stopped` now.
        let machine = &mut self.machine;
        self.waiting.retain(|id, answer| {
            if answer.is_closed() {
                machine.abandon(*id);
            }
            !answer.is_closed()
        });
        while let Some(action) = self.machine.poll(self.now()) {
            match action {
                Action::Send { to, datagram } => {
                    if let Err(why) = self.send(to, &datagram).await {
                        self.machine.unsendable(self.now(), to, why.to_string());
                    }
                }
                Action::Ended { id, outcome } => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        // Closed just now: nobody is interested.
                        let _ = answer.send(outcome);
                    }
                }
            }
        }
    }

    /// Waits at most until the kernel has room in the socket's buffer.
    async fn send(&mut self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let slot = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let socket = match slot {
            Some(socket) => socket,
            None => slot.insert(open(to.ip(), self.bind).await?),
        };
        socket.send_to(datagram, to).await.map(drop)
    }
}

/// A port of the kernel's choice: another thing to guess for who would answer in a tracker's place.
async fn open(family: IpAddr, bind: Bind) -> io::Result<UdpSocket> {
    let source = bind.source(family).map_err(|()| io::ErrorKind::AddrNotAvailable)?;
    let any: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0)).await
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// The next packet opens another, so that a socket that only fails does not keep the loop busy.
fn drop_socket(socket: &mut Option<UdpSocket>, error: &io::Error) {
    tracing::debug!(%error, "the socket for UDP trackers is opened anew");
    *socket = None;
}

fn not_sent(message: String) -> Failure {
    Failure { message, retry: Retry::Backoff, refused: false, maybe_heard: false, unreached: false }
}
