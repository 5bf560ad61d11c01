//! Bounded single-producer queues between threads, each with the receiver's wake-up.
//!
//! Owns: the pairing of a queue with a waker. Never: what is in the messages.
//! Flow: control -> shard (`Command`), shard -> control (`Event`), shard -> shard (`Handover`).
//!
//! Order of a send: push, then wake (the waker writes only when the other sleeps). Order of a
//! sleep: arm, look at the queues once more, sleep. So a message is either seen by that look or
//! wakes the sleeper; tests/mailbox_model.rs checks it with two queues and one sleeper.

use crate::sync::queue::{Consumer, Producer, PushError, RingBuffer};

/// Wakes the receiving thread; must not block.
pub type Wake = Box<dyn Fn() + Send>;

/// The sending end.
pub struct Sender<T> {
    queue: Producer<T>,
    wake: Wake,
}

/// The receiving end; the wake-up given at construction wakes whoever polls it.
pub struct Receiver<T> {
    queue: Consumer<T>,
}

/// A queue of at most `capacity` messages to the thread that `wake` wakes.
pub fn channel<T>(capacity: usize, wake: Wake) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = RingBuffer::new(capacity);
    (Sender { queue: producer, wake }, Receiver { queue: consumer })
}

impl<T> Sender<T> {
    /// `Err(message)`: the queue is full; nothing was sent.
    pub fn send(&mut self, message: T) -> Result<(), T> {
        match self.queue.push(message) {
            Ok(()) => {
                (self.wake)();
                Ok(())
            }
            Err(PushError::Full(message)) => Err(message),
        }
    }

    pub fn room(&self) -> usize {
        self.queue.slots()
    }
}

impl<T> Receiver<T> {
    pub fn receive(&mut self) -> Option<T> {
        self.queue.pop().ok()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The other end was dropped.
    pub fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}
