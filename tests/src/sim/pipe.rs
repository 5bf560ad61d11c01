//! One direction of a virtual TCP connection.
//!
//! Owns: bytes from the sender's queue over the wire to the receiver's buffer, with latency, a
//! bandwidth and a window. Never: sockets, peers, errors. Flow: offer -> launch -> arrive -> take.

use std::collections::VecDeque;

/// How far the end of the stream has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Fin {
    None,
    Queued,
    OnTheWire,
    Arrived,
}

#[derive(Debug)]
pub struct Pipe {
    queue: VecDeque<u8>,
    queue_max_bytes: usize,
    wire: VecDeque<(u64, Vec<u8>, bool)>,
    wire_bytes: usize,
    arrived: VecDeque<u8>,
    window_bytes: usize,
    fin: Fin,
    latency_ns: u64,
    ns_per_kib: u64,
    last_arrival_ns: u64,
    /// Bytes ever taken from the sender, and ever arrived (so: acknowledged).
    pub taken_bytes: u64,
    pub delivered_bytes: u64,
    /// When bytes last arrived, or when they began to wait.
    pub progress_ns: u64,
}

/// Bytes that travel as one.
const FLIGHT_MAX_BYTES: usize = 64 << 10;

impl Pipe {
    pub fn new(
        queue_max_bytes: usize,
        window_bytes: usize,
        latency_ns: u64,
        ns_per_kib: u64,
    ) -> Pipe {
        Pipe {
            queue: VecDeque::new(),
            queue_max_bytes,
            wire: VecDeque::new(),
            wire_bytes: 0,
            arrived: VecDeque::new(),
            window_bytes,
            fin: Fin::None,
            latency_ns,
            ns_per_kib,
            last_arrival_ns: 0,
            taken_bytes: 0,
            delivered_bytes: 0,
            progress_ns: 0,
        }
    }

    pub fn room_bytes(&self) -> usize {
        self.queue_max_bytes.saturating_sub(self.queue.len())
    }

    pub fn queued_bytes(&self) -> usize {
        self.queue.len()
    }

    pub fn arrived_bytes(&self) -> usize {
        self.arrived.len()
    }

    pub fn fin(&self) -> Fin {
        self.fin
    }

    /// All bytes and the end of the stream have been taken by the receiver.
    pub fn at_end(&self) -> bool {
        self.fin == Fin::Arrived && self.arrived.is_empty()
    }

    pub fn offer(&mut self, bytes: &[u8], now_ns: u64) {
        assert!(self.fin == Fin::None, "bytes after the end of the stream");
        if self.queue.is_empty() {
            self.progress_ns = now_ns;
        }
        self.queue.extend(bytes);
        self.taken_bytes += bytes.len() as u64;
    }

    pub fn finish(&mut self) {
        if self.fin == Fin::None {
            self.fin = Fin::Queued;
        }
    }

    /// The receiver is gone without a word: nothing is acknowledged any more.
    pub fn vanish(&mut self) {
        self.window_bytes = 0;
    }

    /// Everything not yet arrived is lost.
    pub fn cut(&mut self) {
        self.queue.clear();
        self.wire.clear();
        self.wire_bytes = 0;
        self.fin = self.fin.max(Fin::OnTheWire);
    }

    /// Sends the next flight, if the window allows one: when it arrives.
    pub fn launch(&mut self, now_ns: u64) -> Option<u64> {
        let window = self.window_bytes.saturating_sub(self.wire_bytes + self.arrived.len());
        let n = self.queue.len().min(window).min(FLIGHT_MAX_BYTES);
        let fin = self.fin == Fin::Queued && n == self.queue.len() && self.window_bytes > 0;
        if n == 0 && !fin {
            return None;
        }
        let cost_ns = (n as u64 * self.ns_per_kib) >> 10;
        let at = (now_ns + self.latency_ns).max(self.last_arrival_ns) + cost_ns;
        self.last_arrival_ns = at;
        self.wire.push_back((at, self.queue.drain(..n).collect(), fin));
        self.wire_bytes += n;
        if fin {
            self.fin = Fin::OnTheWire;
        }
        Some(at)
    }

    /// What is due arrives.
    pub fn arrive(&mut self, now_ns: u64) {
        while self.wire.front().is_some_and(|(at, ..)| *at <= now_ns) {
            let (_, bytes, fin) = self.wire.pop_front().expect("invariant: looked at above");
            self.wire_bytes -= bytes.len();
            self.delivered_bytes += bytes.len() as u64;
            self.progress_ns = now_ns;
            self.arrived.extend(&bytes);
            if fin {
                self.fin = Fin::Arrived;
            }
        }
    }

    pub fn take(&mut self, max: usize) -> Vec<u8> {
        let n = self.arrived.len().min(max);
        self.arrived.drain(..n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_window_holds_bytes_back_and_the_end_comes_last() {
        let mut pipe = Pipe::new(1000, 100, 10, 0);
        pipe.offer(&[1; 150], 0);
        pipe.finish();
        assert_eq!(pipe.launch(0), Some(10));
        assert_eq!(pipe.launch(0), None, "the window is full");
        pipe.arrive(10);
        assert_eq!((pipe.arrived_bytes(), pipe.queued_bytes()), (100, 50));
        assert_eq!(pipe.launch(10), None);
        assert_eq!(pipe.take(60).len(), 60);
        assert_eq!(pipe.launch(11), Some(21));
        pipe.arrive(21);
        assert!(pipe.fin() == Fin::Arrived && !pipe.at_end());
        assert_eq!(pipe.take(1000).len(), 90);
        assert!(pipe.at_end());
    }
}
