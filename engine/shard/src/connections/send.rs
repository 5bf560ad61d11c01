//! Sends and their completions.
//!
//! Owns: one ordered send in flight a connection, partial sends, whether zero-copy pays on a route.
//! Never: what is in a batch. Flow: pump fills a batch -> submit -> sent (-> released) -> pump.

use std::{collections::HashMap, io, net::IpAddr, sync::atomic::Ordering, time::Duration};

use seedring_platform::{
    op::{Io, Op, Shutdown},
    send_batch::SendBatch,
};

use super::{BATCH_BLOCKS_MAX, Key, Open, Stage, ZeroCopy};
use crate::{shard::Shard, token::Target};

/// A send that took less lets the next one be larger, one that took more makes it smaller: a fast
/// peer gets large sends, a slow one does not pin the cache.
const SEND_QUICK: Duration = Duration::from_millis(50);
const SEND_SLOW: Duration = Duration::from_millis(250);
/// Smaller sends are cheaper copied.
const ZERO_COPY_BYTES_MIN: usize = 16 << 10;
/// So many sends reported as copied, and the route is left alone for a while.
const COPIED_MAX: u8 = 3;
/// Zero-copy pages stay pinned until the peer acknowledges them: so many sends and bytes a
/// connection, then copies. It also bounds the operations in flight a connection.
const PINNED_SENDS_MAX: u32 = 4;
const PINNED_BYTES_MAX: usize = 2 << 20;
/// A peer that takes fewer blocks a send is slow: it gets copies.
const ZERO_COPY_BLOCKS_MIN: u32 = 4;
const ROUTE_REST: Duration = Duration::from_secs(600);
const ROUTES_MAX: usize = 4_096;

/// Routes on which zero-copy was copied after all (loopback, veth, some tunnels), by the peer's
/// /24 or /64.
#[derive(Debug, Default)]
pub struct Routes {
    copied: HashMap<IpAddr, Duration>,
}

impl Routes {
    fn of(ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                IpAddr::from([a, b, c, 0])
            }
            IpAddr::V6(v6) => {
                let s = v6.segments();
                IpAddr::from([s[0], s[1], s[2], s[3], 0, 0, 0, 0])
            }
        }
    }

    pub fn is_worth(&self, ip: IpAddr, now: Duration) -> bool {
        self.copied.get(&Self::of(ip)).is_none_or(|until| *until <= now)
    }

    pub fn was_copied(&mut self, ip: IpAddr, now: Duration) {
        if self.copied.len() >= ROUTES_MAX {
            self.copied.retain(|_, until| *until > now);
        }
        if self.copied.len() < ROUTES_MAX {
            self.copied.insert(Self::of(ip), now + ROUTE_REST);
        }
    }
}

impl<I: Io> Shard<I> {
    /// Hands a batch to the kernel. The connection has none in flight.
    pub(crate) fn send(&mut self, key: Key, batch: Box<SendBatch>) {
        let now = self.io.now();
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        assert!(!connection.sending, "one ordered send in flight a connection");
        connection.sending = true;
        connection.operations += 1;
        let socket = connection.socket.clone();
        let mut zero_copy = false;
        if let Stage::Open(open) = &mut connection.stage {
            let bytes = batch.len_bytes();
            let wanted = matches!(open.zero_copy, ZeroCopy::On { .. })
                && bytes >= ZERO_COPY_BYTES_MIN
                && open.batch_blocks >= ZERO_COPY_BLOCKS_MIN;
            let flow = open.flow();
            flow.sent_at = now;
            flow.batch_at = std::ptr::from_ref(&*batch).addr();
            flow.in_flight_bytes = bytes as u32;
            zero_copy = wanted
                && flow.pinned_sends < PINNED_SENDS_MAX
                && flow.pinned_bytes + bytes <= PINNED_BYTES_MAX;
        }
        self.stats.sends += 1;
        self.stats.zero_copy_sends += u64::from(zero_copy);
        self.submit_now(Op::SendBatch {
            token: Target::Send(key).token(),
            socket,
            batch,
            zero_copy,
        });
    }

    /// The socket took bytes, or the connection is broken.
    pub(crate) fn sent(
        &mut self,
        key: Key,
        result: io::Result<usize>,
        batch: Option<Box<SendBatch>>,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(mut batch) = batch else {
            // Zero-copy: the operation goes on until the pages are released. What was taken is
            // counted now, and the next batch may go.
            self.taken(key, result);
            return;
        };
        connection.operations -= 1;
        connection.sending = false;
        let closing = matches!(connection.stage, Stage::Closing);
        match result {
            Ok(n) if n < batch.len_bytes() && !closing && n > 0 => {
                self.stats.sent_bytes += n as u64;
                batch.advance(n);
                return self.send(key, batch);
            }
            Ok(n) if n == batch.len_bytes() => {
                self.io.recycle(batch);
                self.memory_came_home = true;
                self.finished(key, n);
            }
            _ => {
                self.io.recycle(batch);
                self.memory_came_home = true;
                self.close(key, Shutdown::Reset);
            }
        }
        self.settle_closing(key);
    }

    /// A zero-copy send was taken whole (MSG_WAITALL), or in part, or failed. Its pages stay with
    /// the kernel; the socket does not.
    fn taken(&mut self, key: Key, result: io::Result<usize>) {
        let Some(connection) = self.connections.get(key) else { return };
        let mut whole = true;
        if let Stage::Open(open) = &mut connection.stage {
            let flow = open.flow();
            flow.pinned_sends += 1;
            flow.pinned_bytes += flow.in_flight_bytes as usize;
            if let Ok(n) = &result
                && *n < flow.in_flight_bytes as usize
            {
                // The rest can't be sent before the kernel gives the batch back; `released` does
                // it then, and until then the send counts as in flight.
                whole = false;
                flow.in_flight_bytes -= *n as u32;
                flow.partial = true;
                self.stats.sent_bytes += *n as u64;
            }
        }
        if !whole {
            return;
        }
        connection.sending = false;
        connection.operations -= 1;
        match result {
            Ok(n) => self.finished(key, n),
            Err(_) => self.close(key, Shutdown::Reset),
        }
        self.settle_closing(key);
    }

    /// The kernel let go of a zero-copy batch.
    pub(crate) fn released(&mut self, key: Key, mut batch: Box<SendBatch>, copied: bool) {
        let now = self.io.now();
        self.memory_came_home = true;
        self.stats.zero_copy_copied += u64::from(copied);
        let Some(connection) = self.connections.get(key) else {
            self.io.recycle(batch);
            return;
        };
        let ip = connection.address.ip();
        if let Stage::Open(open) = &mut connection.stage {
            let flow = open.flow.as_mut().expect("invariant: kept while a send is pinned");
            flow.pinned_sends -= 1;
            flow.pinned_bytes -= batch.len_bytes();
            if let ZeroCopy::On { copied: times } = &mut open.zero_copy {
                *times = if copied { *times + 1 } else { 0 };
                if *times >= COPIED_MAX {
                    open.zero_copy = ZeroCopy::Off;
                    self.choking.routes.was_copied(ip, now);
                }
            }
            if flow.partial && flow.batch_at == std::ptr::from_ref(&*batch).addr() {
                flow.partial = false;
                let rest = flow.in_flight_bytes as usize;
                batch.advance(batch.len_bytes() - rest);
                connection.operations -= 1;
                connection.sending = false;
                return self.send(key, batch);
            }
        }
        self.io.recycle(batch);
    }

    /// A whole batch is with the socket.
    fn finished(&mut self, key: Key, bytes: usize) {
        let now = self.io.now();
        self.stats.sent_bytes += bytes as u64;
        let Some(connection) = self.connections.get(key) else { return };
        if let Stage::Open(open) = &mut connection.stage {
            let payload = match open.flow.as_mut().filter(|flow| flow.in_flight_bytes > 0) {
                Some(flow) => {
                    let took = now.saturating_sub(flow.sent_at);
                    if took < SEND_QUICK {
                        open.batch_blocks = (open.batch_blocks * 2).min(BATCH_BLOCKS_MAX);
                    } else if took > SEND_SLOW {
                        open.batch_blocks = (open.batch_blocks / 2).max(1);
                    }
                    for asked_at in flow.in_flight.drain(..) {
                        self.stats.served(now.saturating_sub(asked_at));
                        self.stats.blocks += 1;
                    }
                    flow.in_flight_bytes = 0;
                    u64::from(std::mem::take(&mut flow.payload_in_flight))
                }
                // The handshake, on its way since before the connection was open.
                None => 0,
            };
            open.uploaded_bytes += payload;
            open.rate.add(payload, now);
            open.session.sent(now);
            self.stats.uploaded_bytes += payload;
            if let Some(local) = self.torrents.get(&open.torrent) {
                // Relaxed: a total, read by control when it announces or stores.
                local.shared.uploaded_bytes.fetch_add(payload, Ordering::Relaxed);
            }
            self.enqueue(key);
        }
    }

    /// A connection that ends with a batch half sent: what did not go whole is not counted (D4:
    /// totals are never over-counted).
    pub(crate) fn settle_partial(&mut self, open: &mut Open) {
        if let Some(flow) = &mut open.flow {
            flow.in_flight.clear();
            flow.payload_in_flight = 0;
        }
    }

    fn settle_closing(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key)
            && connection.operations == 0
            && matches!(connection.stage, Stage::Closing)
        {
            self.connections.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_copies_rests_and_is_tried_again() {
        let mut routes = Routes::default();
        let at = Duration::from_secs(1);
        routes.was_copied("10.1.2.3".parse().unwrap(), at);
        assert!(!routes.is_worth("10.1.2.200".parse().unwrap(), at));
        assert!(routes.is_worth("10.1.3.1".parse().unwrap(), at));
        assert!(routes.is_worth("10.1.2.3".parse().unwrap(), at + ROUTE_REST));
    }
}
