//! The task that announces.
//!
//! Owns: the schedule, the clock it is given, the running requests. Never: blocks; the only
//! waits are the
//! three of `run`: a command, an outcome, a deadline.
//! Flow: command or outcome -> schedule -> jobs -> requests -> outcomes and events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use seedring_proto::tracker::announce::{Event as AnnounceEvent, Request};
use seedring_proto::tracker::announcer::Failure;
use seedring_proto::tracker::reply::{Reply, ReplyError, Retry};
use seedring_proto::tracker::schedule::{Job, JobId, Schedule, Stops};
use seedring_proto::tracker::url::Scheme;
use seedring_proto::units::InfoHash;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::http::{Answer, Client, Failed, describe};
use super::udp;
use super::{Command, Event, Heard, Options, Status, TlsSetupError, TotalsSource, TrackerStatus};

type Outcome = Result<Reply, Failure>;

struct Running {
    job: JobId,
    info_hash: InfoHash,
    event: AnnounceEvent,
    tracker: String,
    abort: AbortHandle,
}

struct Closing {
    /// Requests that are not a `stopped` are cut off here, so that theirs can still go out.
    cut: Option<Instant>,
    end: Instant,
    before: Stops,
    answer: oneshot::Sender<Stops>,
}

pub(super) struct Task {
    options: Options,
    totals: Arc<dyn TotalsSource>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    events_dropped: u64,
    client: Arc<Client>,
    udp: Arc<udp::Client>,
    schedule: Schedule,
    began: Instant,
    requests: JoinSet<Outcome>,
    running: HashMap<Id, Running>,
    closing: Option<Closing>,
}

impl Task {
    pub(super) fn new(
        options: Options,
        totals: Arc<dyn TotalsSource>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, TlsSetupError> {
        Ok(Self {
            client: Arc::new(Client::new(options.http.clone())?),
            udp: Arc::new(udp::Client::start(options.udp.clone())),
            schedule: Schedule::new(options.schedule.clone()),
            options,
            totals,
            commands,
            events,
            events_dropped: 0,
            began: Instant::now(),
            requests: JoinSet::new(),
            running: HashMap::new(),
            closing: None,
        })
    }

    pub(super) async fn run(mut self) {
        loop {
            while let Some(job) = self.schedule.poll(self.now()) {
                self.request(job);
            }
            if let Some(closing) =
                self.closing.take_if(|c| self.schedule.is_empty() || Instant::now() >= c.end)
            {
                let stops = self.schedule.stops();
                let _ = closing.answer.send(Stops {
                    sent: stops.sent - closing.before.sent,
                    failed: stops.failed - closing.before.failed,
                    owed: stops.owed,
                });
                return;
            }
            let wake = self.wake();
            let sleep = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now));
            tokio::select! {
                command = self.commands.recv(), if self.closing.is_none() => match command {
                    Some(command) => self.command(command),
                    // Every handle is gone and nobody asked for `stopped`.
                    None => return,
                },
                Some(ended) = self.requests.join_next_with_id() => self.ended(ended),
                () = sleep, if wake.is_some() => self.cut_off(),
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn wake(&self) -> Option<Instant> {
        let planned = self.schedule.deadline().map(|at| self.began + at);
        let cut = self.closing.as_ref().and_then(|c| c.cut);
        let end = self.closing.as_ref().map(|c| c.end);
        [planned, cut, end].into_iter().flatten().min()
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Add(torrent) => {
                let info_hash = torrent.info_hash;
                if !self.schedule.add(now, torrent) {
                    tracing::debug!(%info_hash, "announced already");
                }
            }
            Command::Remove(info_hash, totals) => {
                let known = self.schedule.remove(now, &info_hash, totals);
                // Nothing was owed to any tracker.
                if known && self.schedule.status(&info_hash).is_none() {
                    self.emit(Event::Removed { info_hash });
                }
            }
            Command::WantMorePeers(info_hash) => self.schedule.want_more_peers(now, &info_hash),
            Command::AnnounceNow(info_hash) => self.schedule.announce_now(now, &info_hash),
            Command::Completed(info_hash) => self.schedule.completed(now, &info_hash),
            Command::Status(info_hash, answer) => {
                let _ = answer.send(self.status(&info_hash));
            }
            Command::Shutdown(deadline, answer) => {
                self.schedule.shutdown(now);
                self.udp.hurry();
                let start = Instant::now();
                self.closing = Some(Closing {
                    cut: Some(start + deadline / 3),
                    end: start + deadline,
                    before: self.schedule.stops(),
                    answer,
                });
            }
        }
    }

    fn cut_off(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        if closing.cut.take_if(|at| Instant::now() >= *at).is_some() {
            for running in self.running.values() {
                if running.event != AnnounceEvent::Stopped {
                    running.abort.abort();
                }
            }
        }
    }

    fn request(&mut self, job: Job) {
        if let Some(failure) = job.turned_away {
            let tracker = job.endpoint.url.redacted();
            let asked = (job.info_hash, tracker, job.event);
            return self.finished(job.id, asked, false, Err(failure));
        }
        let totals = job.final_totals.unwrap_or_else(|| self.totals.totals(&job.info_hash));
        let numwant = if job.event == AnnounceEvent::Stopped { 0 } else { self.options.numwant };
        let request = Request {
            info_hash: job.info_hash,
            peer_id: self.options.peer_id,
            port: self.options.port,
            totals,
            event: job.event,
            key: self.options.key,
            numwant,
            ip: self.options.ip,
            ipv6: self.options.ipv6,
            crypto: self.options.crypto,
            tracker_id: job.tracker_id,
        };
        let endpoint = Arc::clone(&job.endpoint);
        let abort = if endpoint.url.scheme() == Scheme::Udp {
            let udp = Arc::clone(&self.udp);
            self.requests
                .spawn(async move { udp.announce(&endpoint.url, request, endpoint.origin).await })
        } else {
            let client = Arc::clone(&self.client);
            self.requests.spawn(async move {
                let parameters = request.parameters();
                outcome(client.get(&endpoint.url, &parameters, endpoint.origin).await)
            })
        };
        let running = Running {
            job: job.id,
            info_hash: job.info_hash,
            event: job.event,
            tracker: job.endpoint.url.redacted(),
            abort,
        };
        self.running.insert(running.abort.id(), running);
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => {
                assert!(error.is_cancelled(), "a tracker request panicked: {error}");
                (error.id(), Err(failure("cut off at shutdown".to_owned(), Retry::Backoff, true)))
            }
        };
        let running = self.running.remove(&id).expect("invariant: a request ends once");
        let asked = (running.info_hash, running.tracker, running.event);
        self.finished(running.job, asked, true, outcome);
    }

    fn finished(
        &mut self,
        job: JobId,
        (info_hash, tracker, event): (InfoHash, String, AnnounceEvent),
        asked: bool,
        outcome: Outcome,
    ) {
        let effect = self.schedule.finished(self.now(), job, &outcome);
        let result = match outcome {
            Ok(reply) => {
                let heard = Heard {
                    peers: reply.peers.len(),
                    seeders: reply.seeders,
                    leechers: reply.leechers,
                    external_ip: reply.external_ip,
                    warning: reply.warning,
                };
                if event != AnnounceEvent::Stopped && (effect.switched || !reply.peers.is_empty()) {
                    let (peers, replace) = (reply.peers, effect.switched);
                    self.emit(Event::Peers { info_hash, peers, replace });
                }
                Ok(heard)
            }
            Err(failure) => Err(failure.message),
        };
        self.emit(Event::Announced { info_hash, tracker, event, asked, result });
        if effect.removed {
            self.emit(Event::Removed { info_hash });
        }
    }

    fn emit(&mut self, event: Event) {
        // Closed: the engine is stopping and listens no more.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            self.events_dropped += 1;
            if self.events_dropped.is_power_of_two() {
                tracing::warn!(
                    dropped = self.events_dropped,
                    "tracker events are not read in time"
                );
            }
        }
    }

    fn status(&self, info_hash: &InfoHash) -> Option<Status> {
        let now = self.now();
        let status = self.schedule.status(info_hash)?;
        let trackers = status.trackers.into_iter().map(|t| TrackerStatus {
            tier: t.tier,
            url: t.url,
            state: t.state,
            next_announce_in: t.next_announce.map(|at| at.saturating_sub(now)),
            last_success_ago: t.last_success.map(|at| now.saturating_sub(at)),
            seeders: t.seeders,
            leechers: t.leechers,
            peers: t.peers,
            message: t.message,
        });
        Some(Status { trackers: trackers.collect(), unusable: status.unusable })
    }
}

fn failure(message: String, retry: Retry, maybe_heard: bool) -> Failure {
    Failure { message, retry, refused: false, maybe_heard, unreached: false }
}

/// What a tracker's answer, or the lack of one, means to the schedule.
fn outcome(answer: Result<Answer, Failed>) -> Outcome {
    let answer = answer.map_err(|failed| Failure {
        unreached: !failed.maybe_heard,
        ..failure(describe(&failed.error), Retry::Backoff, failed.maybe_heard)
    })?;
    let parsed = Reply::parse(&answer.body);
    if let Err(ReplyError::Refused { reason, retry }) = parsed {
        let retry = match (retry, answer.retry_after) {
            (Retry::Backoff, Some(wait)) => Retry::After(wait),
            (said, _) => said,
        };
        let refused = true;
        return Err(Failure {
            message: reason,
            retry,
            refused,
            maybe_heard: false,
            unreached: false,
        });
    }
    if answer.status != 200 {
        let name = hyper::StatusCode::from_u16(answer.status).ok();
        let name = name.and_then(|s| s.canonical_reason()).unwrap_or("");
        let message = format!("the tracker answered HTTP {} {name}", answer.status);
        let retry = answer.retry_after.map_or(Retry::Backoff, Retry::After);
        // Behind a 5xx the tracker may have heard us all the same; a 4xx turned us away.
        return Err(failure(message.trim_end().to_owned(), retry, answer.status >= 500));
    }
    parsed.map_err(|error| failure(error.to_string(), Retry::Backoff, true))
}
