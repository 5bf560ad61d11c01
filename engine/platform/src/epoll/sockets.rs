//! Operations on sockets: tried at once, and again whenever the socket is ready.
//!
//! Owns: the calls, what their failures mean. Never: who is ready (`watch`).
//! Flow: `submit` -> try -> `watch` -> `go_on` -> completion.

use std::{io, net::SocketAddr};

use rustix::{
    io::Errno,
    net::{RecvFlags, SocketFlags, acceptfrom_with, recv, sockopt},
};

use super::{
    Epoll, Work,
    watch::{Ready, borrowed},
};
use crate::{
    descriptors::{self, Socket},
    op::{Outcome, Received, Token, cancellation},
    receive::ReceivedInner,
    send_batch::SendBatch,
    slots::SlotId,
};

/// Not now, or interrupted: the socket is watched, and tried again.
fn is_not_now(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::INTR)
}

impl Epoll {
    pub(super) fn accept(&mut self, token: Token, listener: Socket) {
        // Between an event and the call a connection may have gone again.
        let set = rustix::io::ioctl_fionbio(borrowed(&listener), true);
        let id = self.slots.occupy(token, Work::Accept { listener: listener.clone() });
        let set = set.map_err(io::Error::from);
        if let Err(error) = set.and_then(|()| self.watch.wait_for_input(&listener, id)) {
            self.end(id, Outcome::AcceptEnded(error));
        }
    }

    pub(super) fn connect(&mut self, token: Token, socket: Socket, address: SocketAddr) {
        let id = self.slots.occupy(token, Work::Connect { socket: socket.clone() });
        let result = match rustix::net::connect(borrowed(&socket), &address) {
            Ok(()) => Ok(()),
            Err(Errno::INPROGRESS | Errno::INTR) => match self.watch.wait_for_output(&socket, id) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Err(error) => Err(error.into()),
        };
        self.connected(id, &socket, result);
    }

    fn connected(&mut self, id: SlotId, socket: &Socket, result: io::Result<()>) {
        if result.is_ok() {
            descriptors::connected(socket);
        }
        self.over(socket, id, Outcome::Connected(result));
    }

    /// Receives begin with the next turn: what is there already is told by the kernel.
    pub(super) fn receive(&mut self, token: Token, socket: Socket, once: bool, bulk: bool) {
        let id = self.slots.occupy(token, Work::Receive { socket: socket.clone(), once, bulk });
        if let Err(error) = self.watch.wait_for_input(&socket, id) {
            self.end(id, Outcome::Received(Err(error)));
        }
    }

    pub(super) fn send(&mut self, token: Token, socket: Socket, mut batch: Box<SendBatch>) {
        assert!(!batch.is_empty(), "a batch to send has bytes");
        let result = if self.watch.has_output(&socket) {
            Err(Errno::AGAIN)
        } else {
            send_now(&socket, &mut batch)
        };
        let result = match result {
            Err(errno) if is_not_now(errno) => {
                let id = self.slots.occupy(token, Work::Send { socket: socket.clone(), batch });
                if let Err(error) = self.watch.wait_for_output(&socket, id) {
                    self.sent(id, Err(error));
                }
                return;
            }
            result => result.map_err(io::Error::from),
        };
        self.say(token, Outcome::Sent { result, batch: Some(batch) });
    }

    pub(super) fn cancel_one(&mut self, id: SlotId) {
        let (socket, outcome) = match self.slots.work_mut(id) {
            Some(Work::Accept { listener }) => {
                (listener.clone(), Outcome::AcceptEnded(cancellation()))
            }
            Some(Work::Connect { socket }) => {
                (socket.clone(), Outcome::Connected(Err(cancellation())))
            }
            Some(Work::Receive { socket, .. }) => {
                (socket.clone(), Outcome::Received(Err(cancellation())))
            }
            _ => return,
        };
        self.over(&socket, id, outcome);
    }

    /// Something can be done with a socket.
    pub(super) fn go_on(&mut self, ready: Ready) {
        if ready.input
            && let Some(id) = self.watch.input(ready)
        {
            match self.slots.work_mut(id) {
                Some(Work::Accept { listener }) => {
                    let listener = listener.clone();
                    self.accept_now(id, &listener);
                }
                Some(Work::Receive { socket, once, bulk }) => {
                    let (socket, once, bulk) = (socket.clone(), *once, *bulk);
                    self.receive_now(id, &socket, once, bulk);
                }
                _ => unreachable!("invariant: those two wait for input"),
            }
        }
        if ready.output
            && let Some(id) = self.watch.output(ready)
        {
            match self.slots.work_mut(id) {
                Some(Work::Connect { socket }) => {
                    let socket = socket.clone();
                    self.connect_now(id, &socket);
                }
                Some(Work::Send { socket, batch }) => {
                    let result = send_now(socket, batch);
                    if !result.is_err_and(is_not_now) {
                        self.sent(id, result.map_err(io::Error::from));
                    }
                }
                _ => unreachable!("invariant: those two wait for output"),
            }
        }
    }

    /// Ends an operation that waited on a socket.
    fn over(&mut self, socket: &Socket, id: SlotId, outcome: Outcome) {
        self.watch.done(socket, id);
        self.end(id, outcome);
    }

    fn sent(&mut self, id: SlotId, result: io::Result<usize>) {
        let token = self.slots.token(id);
        let Work::Send { socket, batch } = self.slots.vacate(id) else {
            unreachable!("invariant: the caller matched a send")
        };
        self.watch.done(&socket, id);
        self.say(token, Outcome::Sent { result, batch: Some(batch) });
    }

    fn accept_now(&mut self, id: SlotId, listener: &Socket) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match acceptfrom_with(borrowed(listener), flags) {
            Ok((fd, address)) => {
                // A peer that left meanwhile may have no address: nobody is there to hear of it.
                if let Some(address) = address.and_then(|address| address.try_into().ok()) {
                    let token = self.slots.token(id);
                    let socket = Socket::from_os(fd);
                    self.say(token, Outcome::Accepted(Ok((socket, address))));
                }
            }
            Err(errno) if is_not_now(errno) => {}
            Err(errno) => {
                let error = io::Error::from(errno);
                if descriptors::accepts_again(&error) {
                    let token = self.slots.token(id);
                    self.say(token, Outcome::Accepted(Err(errno.into())));
                }
                self.over(listener, id, Outcome::AcceptEnded(error));
            }
        }
    }

    fn receive_now(&mut self, id: SlotId, socket: &Socket, once: bool, bulk: bool) {
        let mut buffer = if bulk { self.bulk.take() } else { self.buffers.take() };
        let result = recv(borrowed(socket), buffer.space(), RecvFlags::DONTWAIT);
        let outcome = match result {
            Ok((0, _)) => Ok(Received::from_vec(Vec::new())),
            Ok((bytes, _)) => {
                buffer.filled(bytes);
                let received = Received { inner: ReceivedInner::Epoll(buffer) };
                if !once {
                    let token = self.slots.token(id);
                    return self.say(token, Outcome::Received(Ok(received)));
                }
                Ok(received)
            }
            Err(errno) if is_not_now(errno) => return,
            Err(errno) => Err(errno.into()),
        };
        self.over(socket, id, Outcome::Received(outcome));
    }

    fn connect_now(&mut self, id: SlotId, socket: &Socket) {
        let result = match sockopt::socket_error(borrowed(socket)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(errno.into()),
        };
        self.connected(id, socket, result);
    }
}

/// As much of it as the socket takes.
fn send_now(socket: &Socket, batch: &mut SendBatch) -> Result<usize, Errno> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let header = batch.prepare();
    // SAFETY: `prepare` built the header, and the batch, borrowed here, has not changed since.
    let result = unsafe { libc::sendmsg(socket.raw(), header, flags) };
    usize::try_from(result).map_err(|_| {
        let errno = io::Error::last_os_error().raw_os_error();
        Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))
    })
}
