//! Sockets and files as counted handles, real or virtual.
//!
//! Owns: when a descriptor closes (its last handle goes: the caller's, or an in-flight
//! operation's).
//! Never: what flows through it. Flow: made here or by a backend, held by connections and by
//! operations; moved between threads as `OwnedSocket` / `OwnedFile`, with nothing in flight.

use std::{
    any::Any,
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    rc::{Rc, Weak},
    time::Duration,
};

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

use crate::op::Shutdown;

/// A peer that acknowledges nothing for so long is gone; bounds how long its send holds leases.
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A descriptor of a backend outside this crate (the simulator's sockets and files).
pub trait Virtual: Send + Sync + Any {
    fn id(&self) -> u64;

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// A second handle on the same thing, for another thread.
    fn try_clone(&self) -> Option<Box<dyn Virtual>> {
        None
    }
}

enum Descriptor {
    Os(OwnedFd),
    Virtual(Box<dyn Virtual>),
}

impl Descriptor {
    fn os(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Descriptor::Os(fd) => Some(fd.as_fd()),
            Descriptor::Virtual(_) => None,
        }
    }

    fn raw(&self) -> RawFd {
        self.os().expect("a virtual descriptor was given to a kernel backend").as_raw_fd()
    }

    fn virtual_id(&self) -> Option<u64> {
        match self {
            Descriptor::Os(_) => None,
            Descriptor::Virtual(it) => Some(it.id()),
        }
    }

    fn as_virtual(&self) -> Option<&dyn Virtual> {
        match self {
            Descriptor::Os(_) => None,
            Descriptor::Virtual(it) => Some(&**it),
        }
    }

    fn try_clone(&self) -> io::Result<Descriptor> {
        match self {
            Descriptor::Os(fd) => Ok(Descriptor::Os(fd.try_clone()?)),
            Descriptor::Virtual(it) => {
                let clone = it.try_clone();
                let clone = clone.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
                Ok(Descriptor::Virtual(clone))
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Descriptor::Os(fd) => SockRef::from(fd)
                .local_addr()?
                .as_socket()
                .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported)),
            Descriptor::Virtual(it) => {
                it.local_addr().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
            }
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Descriptor::Os(fd) => write!(f, "fd {}", fd.as_raw_fd()),
            Descriptor::Virtual(it) => write!(f, "virtual {}", it.id()),
        }
    }
}

/// The three types of a descriptor's kind: a counted handle, and the form that moves between
/// threads.
macro_rules! descriptor_kind {
    ($handle:ident, $owned:ident, $what:literal) => {
        #[doc = concat!("A handle on ", $what, ". It closes with the last handle.")]
        #[derive(Clone, Debug)]
        pub struct $handle {
            inner: Rc<Descriptor>,
        }

        #[doc = concat!("The only handle on ", $what, ", to give to another thread.")]
        #[derive(Debug)]
        pub struct $owned {
            inner: Descriptor,
        }

        impl $handle {
            pub fn from_os(fd: OwnedFd) -> Self {
                Self { inner: Rc::new(Descriptor::Os(fd)) }
            }

            pub fn from_virtual(descriptor: Box<dyn Virtual>) -> Self {
                Self { inner: Rc::new(Descriptor::Virtual(descriptor)) }
            }

            /// The simulator's name for it; `None` for the kernel's.
            pub fn as_virtual_id(&self) -> Option<u64> {
                self.inner.virtual_id()
            }

            pub fn as_virtual(&self) -> Option<&dyn Virtual> {
                self.inner.as_virtual()
            }

            /// `Err`: others (an operation in flight, another handle) still hold it.
            pub fn into_owned(self) -> Result<$owned, Self> {
                match Rc::try_unwrap(self.inner) {
                    Ok(inner) => Ok($owned { inner }),
                    Err(inner) => Err(Self { inner }),
                }
            }

            /// Whether both are handles on one descriptor.
            pub fn is_same(&self, other: &Self) -> bool {
                Rc::ptr_eq(&self.inner, &other.inner)
            }

            /// For backends of this crate. Panics on a virtual one: that is a wiring mistake.
            pub(crate) fn raw(&self) -> RawFd {
                self.inner.raw()
            }

            pub(crate) fn as_os(&self) -> Option<BorrowedFd<'_>> {
                self.inner.os()
            }
        }

        impl $owned {
            pub fn from_os(fd: OwnedFd) -> Self {
                Self { inner: Descriptor::Os(fd) }
            }

            pub fn from_virtual(descriptor: Box<dyn Virtual>) -> Self {
                Self { inner: Descriptor::Virtual(descriptor) }
            }
        }

        impl From<$owned> for $handle {
            fn from(owned: $owned) -> Self {
                Self { inner: Rc::new(owned.inner) }
            }
        }
    };
}

descriptor_kind!(Socket, OwnedSocket, "a socket");
descriptor_kind!(File, OwnedFile, "a file or directory");

impl OwnedSocket {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl OwnedFile {
    /// A second descriptor on the same open file.
    pub fn try_clone(&self) -> io::Result<OwnedFile> {
        Ok(OwnedFile { inner: self.inner.try_clone()? })
    }
}

impl File {
    /// A second descriptor on the same open file, for another thread.
    pub fn try_clone_owned(&self) -> io::Result<OwnedFile> {
        let inner = self.inner.try_clone()?;
        Ok(OwnedFile { inner })
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(Rc::downgrade(&self.inner))
    }
}

/// Tells a descriptor from all others, also from those that get its number when it is closed; does
/// not keep it open.
pub(crate) struct Mark(Weak<Descriptor>);

impl Mark {
    pub fn is_of(&self, file: &File) -> bool {
        std::ptr::eq(self.0.as_ptr(), Rc::as_ptr(&file.inner))
    }
}

pub fn local_addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.inner.local_addr()
}

/// The other end's address. Accepting in multishot form cannot report it with the connection.
pub(crate) fn peer_addr(socket: &Socket) -> io::Result<SocketAddr> {
    let fd = socket.as_os().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    SockRef::from(&fd)
        .peer_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Errors are ignored: the peer may have closed first, and the close that follows is what counts.
pub(crate) fn shut_down(socket: &Socket, how: Shutdown) {
    let Some(fd) = socket.as_os() else { return };
    let socket = SockRef::from(&fd);
    match how {
        Shutdown::Orderly => {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        Shutdown::Reset => {
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Whether an accept failed for a reason that passes: the caller is asked whether to go on.
pub(crate) fn accepts_again(error: &io::Error) -> bool {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ECONNABORTED];
    error.raw_os_error().is_some_and(|errno| passing.contains(&errno))
}

/// How to listen.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    pub address: SocketAddr,
    pub backlog: u32,
    /// Several shards listen on one address; the kernel spreads connections over them.
    pub reuse_port: bool,
    /// An IPv6 wildcard leaves IPv4 to its own listener.
    pub v6_only: bool,
}

/// Binds and listens. Options that connections need (no delay, user timeout, keep-alive) are set
/// here: Linux copies them to accepted sockets, so that an accept costs no further calls.
pub fn listen(options: ListenOptions) -> io::Result<OwnedSocket> {
    let socket = stream_socket(options.address)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if options.address.is_ipv6() {
        socket.set_only_v6(options.v6_only)?;
    }
    socket.bind(&options.address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(OwnedSocket::from_os(socket.into()))
}

/// An unconnected socket for `remote`, bound to `bind` where one is named.
pub(crate) fn connecting(remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Socket> {
    let socket = stream_socket(remote)?;
    if let Some(local) = bind {
        bind_without_port(&socket)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    Ok(Socket::from_os(socket.into()))
}

/// A connect is done. The user timeout comes only now: it would end a connect too, before the
/// caller's own deadline. Its failure costs time when the peer is gone, nothing else.
pub(crate) fn connected(socket: &Socket) {
    if let Some(fd) = socket.as_os() {
        let _ = SockRef::from(&fd).set_tcp_user_timeout(Some(USER_TIMEOUT));
    }
}

/// The port is chosen at connect, by the whole 4-tuple: binding must not use one up.
fn bind_without_port(socket: &socket2::Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is a c_int that lives across the call, and its size is what is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// In blocking mode: the ring arms its own polls, and `O_NONBLOCK` would turn each of its waits
/// into EAGAIN.
fn stream_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let kind = Type::STREAM.cloexec();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL),
    )?;
    Ok(socket)
}

/// A directory to open files beneath; needs search permission only.
pub fn open_directory(path: impl AsRef<Path>) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from_os(rustix::fs::open(path.as_ref(), flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbered(u64);

    impl Virtual for Numbered {
        fn id(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn only_the_last_handle_moves() {
        let socket = Socket::from_virtual(Box::new(Numbered(7)));
        let other = socket.clone();
        assert!(socket.is_same(&other));
        let socket = socket.into_owned().expect_err("another handle is alive");
        drop(other);
        let owned = socket.into_owned().expect("the last one");
        let socket = std::thread::spawn(move || owned).join().expect("thread").into();
        assert_eq!(Socket::as_virtual_id(&socket), Some(7));
        assert!(local_addr(&socket).is_err());
    }

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let owned = listen(ListenOptions {
            address: "127.0.0.1:0".parse().unwrap(),
            backlog: 16,
            reuse_port: true,
            v6_only: false,
        })
        .expect("listen");
        let address = owned.local_addr().expect("address");
        let _client = std::net::TcpStream::connect(address).expect("connect");
        let socket = Socket::from(owned);
        let fd = socket.as_os().expect("real").try_clone_to_owned().expect("dup");
        let (accepted, _) = std::net::TcpListener::from(fd).accept().expect("accept");
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().expect("option"));
        assert!(accepted.keepalive().expect("option"));
        assert_eq!(accepted.tcp_user_timeout().expect("option"), Some(USER_TIMEOUT));
    }

    #[test]
    fn a_taken_port_is_an_error() {
        let options =
            |address| ListenOptions { address, backlog: 16, reuse_port: false, v6_only: false };
        let first = listen(options("127.0.0.1:0".parse().unwrap())).expect("listen");
        let again = listen(options(first.local_addr().expect("address")));
        assert_eq!(again.expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn directories_open_and_files_do_not() {
        let folder = tempfile::tempdir().expect("folder");
        let root = open_directory(folder.path()).expect("directory");
        let other = root.try_clone_owned().expect("second descriptor");
        drop(root);
        assert!(File::from(other).as_os().is_some());
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        assert!(open_directory(&file).is_err());
    }
}
