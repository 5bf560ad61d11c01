//! Every interleaving of two mailboxes and the shard that sleeps over them: `cargo test -p
//! seedring-shard --features loom --test mailbox_model`. `LOOM_MAX_PREEMPTIONS=3` is the long form.
//!
//! Owns: that no message waits while its shard sleeps. Never: rtrb's own slots (`sync::queue` has
//! its interface and orderings). Flow: control and another shard send; the shard receives, arms,
//! looks, sleeps. A lost message: it sleeps, and nobody is left to wake it.

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use seedring_shard::mailbox::{Receiver, Sender, channel};
use sleep_state::SleepState;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU32, Ordering};
}
/// What platform's `Waker` and `Sleeper` are made of.
#[path = "../../platform/src/wake/sleep_state.rs"]
mod sleep_state;

trait State: Send + Sync + 'static {
    fn new() -> Self;
    fn arm(&self) -> bool;
    fn disarm(&self) -> bool;
    fn notify(&self) -> bool;
}

impl State for SleepState {
    fn new() -> SleepState {
        SleepState::new()
    }

    fn arm(&self) -> bool {
        SleepState::arm(self)
    }

    fn disarm(&self) -> bool {
        SleepState::disarm(self)
    }

    fn notify(&self) -> bool {
        SleepState::notify(self)
    }
}

/// The planted bug: who wakes only looks whether somebody sleeps.
struct Torn(atomic::AtomicU32);

impl State for Torn {
    fn new() -> Torn {
        Torn(atomic::AtomicU32::new(0))
    }

    fn arm(&self) -> bool {
        self.0.store(1, atomic::Ordering::Release);
        true
    }

    fn disarm(&self) -> bool {
        self.0.store(0, atomic::Ordering::Release);
        false
    }

    fn notify(&self) -> bool {
        self.0.load(atomic::Ordering::Acquire) == 1
    }
}

struct Sleeper<S> {
    state: S,
    eventfd: AtomicBool,
    /// Producers that have sent all they will.
    ended: AtomicUsize,
    producers: usize,
}

impl<S: State> Sleeper<S> {
    fn new(producers: usize) -> Arc<Sleeper<S>> {
        let (eventfd, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Sleeper { state: S::new(), eventfd, ended, producers })
    }

    fn wake(&self) {
        if self.state.notify() {
            // A read-modify-write, as the kernel's counter is one.
            self.eventfd.swap(true, Ordering::AcqRel);
        }
    }

    fn producer(sleeper: &Arc<Self>, f: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
        let sleeper = Arc::clone(sleeper);
        thread::spawn(move || {
            f();
            sleeper.ended.fetch_add(1, Ordering::Release);
        })
    }

    /// Polls, since a deadlock of loom's ends the process: nobody is left to end this sleep.
    fn sleep(&self) {
        loop {
            let ended = self.ended.load(Ordering::Acquire) == self.producers;
            if self.eventfd.swap(false, Ordering::AcqRel) {
                return;
            }
            assert!(!ended, "the shard sleeps for ever");
            thread::yield_now();
        }
    }

    /// What `Io::wait` does on the ring.
    fn wait(&self, pending: impl Fn() -> bool) {
        if !self.state.arm() {
            return;
        }
        if !pending() {
            self.sleep();
        }
        self.state.disarm();
    }
}

type Mail = &'static str;

fn mailbox<S: State>(sleeper: &Arc<Sleeper<S>>, capacity: usize) -> (Sender<Mail>, Receiver<Mail>) {
    let sleeper = Arc::clone(sleeper);
    channel(capacity, Box::new(move || sleeper.wake()))
}

/// The shard's loop until `count` messages came or more; what it does to sleep is the caller's.
fn receive(
    queues: &mut [Receiver<Mail>],
    count: usize,
    wait: impl Fn(&[Receiver<Mail>]),
) -> Vec<Mail> {
    let mut seen = Vec::new();
    loop {
        for queue in &mut *queues {
            while let Some(message) = queue.receive() {
                seen.push(message);
            }
        }
        if seen.len() >= count {
            return seen;
        }
        wait(queues);
    }
}

fn waiting(queues: &[Receiver<Mail>]) -> bool {
    queues.iter().any(|queue| !queue.is_empty())
}

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(check);
}

/// Control sends two commands, another shard hands a connection over.
fn two_producers<S: State>(wait: impl Fn(&Sleeper<S>, &[Receiver<Mail>])) {
    let sleeper = Sleeper::<S>::new(2);
    let (mut commands, from_control) = mailbox(&sleeper, 2);
    let (mut handovers, from_shard) = mailbox(&sleeper, 1);
    let control = Sleeper::producer(&sleeper, move || {
        commands.send("add").expect("room");
        commands.send("look").expect("room");
    });
    let shard = Sleeper::producer(&sleeper, move || handovers.send("connection").expect("room"));
    let mut queues = [from_control, from_shard];
    let mut seen = receive(&mut queues, 3, |queues| wait(&sleeper, queues));
    control.join().expect("control");
    shard.join().expect("the other shard");
    seen.retain(|&message| message != "connection");
    assert_eq!(seen, ["add", "look"], "in order, each once");
    assert!(!waiting(&queues));
}

#[test]
fn no_message_waits_while_its_shard_sleeps() {
    model(2, || two_producers::<SleepState>(|sleeper, queues| sleeper.wait(|| waiting(queues))));
}

/// A full mailbox gives the message back, and what was in it arrives.
#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    model(2, || {
        let sleeper = Sleeper::<SleepState>::new(1);
        let (mut sender, receiver) = mailbox(&sleeper, 1);
        let refused = Arc::new(AtomicBool::new(false));
        let control = {
            let refused = Arc::clone(&refused);
            Sleeper::producer(&sleeper, move || {
                sender.send("first").expect("room");
                if sender.send("second").is_err() {
                    refused.store(true, Ordering::Release);
                }
            })
        };
        let mut queues = [receiver];
        let wait = |queues: &[Receiver<Mail>]| sleeper.wait(|| waiting(queues));
        let first = receive(&mut queues, 1, wait);
        control.join().expect("control");
        let rest: Vec<_> = std::iter::from_fn(|| queues[0].receive()).collect();
        // The shard may have taken both before it looked at the count.
        let all = [first, rest].concat();
        let sent = if refused.load(Ordering::Acquire) { 1 } else { 2 };
        assert_eq!(all, ["first", "second"][..sent]);
        assert!(queues[0].is_abandoned());
    });
}

#[test]
#[should_panic(expected = "sleeps for ever")]
fn a_wake_up_before_the_message_is_found() {
    model(2, || {
        let sleeper = Sleeper::<SleepState>::new(1);
        let (mut sender, receiver) = channel(1, Box::new(|| {}));
        let waker = Arc::clone(&sleeper);
        let control = Sleeper::producer(&sleeper, move || {
            waker.wake();
            sender.send("add").expect("room");
        });
        let wait = |queues: &[Receiver<Mail>]| sleeper.wait(|| waiting(queues));
        receive(&mut [receiver], 1, wait);
        control.join().expect("control");
    });
}

/// A notification is taken after the look, and nobody looks again before the sleep.
#[test]
#[should_panic(expected = "sleeps for ever")]
fn a_sleep_without_a_last_look_is_found() {
    model(2, || {
        two_producers::<SleepState>(|sleeper, _| {
            sleeper.state.disarm();
            sleeper.wait(|| false);
        });
    });
}

/// Neither side's store is seen by the other's load.
#[test]
#[should_panic(expected = "sleeps for ever")]
fn a_load_in_place_of_a_swap_is_found() {
    model(2, || two_producers::<Torn>(|sleeper, queues| sleeper.wait(|| waiting(queues))));
}
