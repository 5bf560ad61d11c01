//! Owns: the kernel's side of a file system in user space: mounting, requests, replies, as
//! `linux/fuse.h` lays them out (protocol 7.31).
//! Never: files; what a request does is its caller's.
//! Flow: /dev/fuse -> `Device::receive` -> a [`Request`] -> `Device::reply`.

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const RENAME2: u32 = 45;

/// Bits of `SETATTR`.
pub const SET_SIZE: u32 = 1 << 3;
/// Bit of `GETATTR`: the handle in the request counts.
pub const BY_HANDLE: u32 = 1;

const MINOR: u32 = 31;
/// Reads ahead, writes of more than a page, of more than 32 pages, caches dropped when a file's
/// time changes.
const WANTED: u32 = 1 | 1 << 5 | 1 << 12 | 1 << 22;
const WRITE_BYTES_MAX: u32 = 1 << 20;
const HEADER_BYTES: usize = 40;
const MOUNTED_WITHIN: Duration = Duration::from_secs(5);

/// One request, as it lies in the buffer.
#[derive(Debug)]
pub struct Request<'a> {
    pub opcode: u32,
    pub node: u64,
    unique: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let header = Request { opcode: 0, node: 0, unique: 0, body: header };
        let (opcode, unique, node) = (header.u32(4), header.u64(8), header.u64(16));
        Some(Request { opcode, unique, node, body })
    }

    /// A field of the body; 0 where the body is shorter.
    pub fn u32(&self, at: usize) -> u32 {
        let field = self.body.get(at..).and_then(|rest| rest.first_chunk());
        field.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    pub fn u64(&self, at: usize) -> u64 {
        let field = self.body.get(at..).and_then(|rest| rest.first_chunk());
        field.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    pub fn rest(&self, at: usize) -> &'a [u8] {
        self.body.get(at..).unwrap_or_default()
    }

    /// The zero-terminated name that begins at `at`.
    pub fn name(&self, at: usize) -> &'a OsStr {
        let rest = self.rest(at);
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        OsStr::from_bytes(&rest[..end])
    }

    /// Whether somebody waits for an answer.
    pub fn is_answered(&self) -> bool {
        !matches!(self.opcode, FORGET | BATCH_FORGET | INTERRUPT)
    }
}

/// One mounted file system's channel to the kernel.
#[derive(Debug)]
pub struct Device {
    file: File,
    buffer: Vec<u8>,
}

impl Device {
    /// Begins to mount at `point`. The mount is there when `wait` has returned; until then, and
    /// after, somebody has to serve requests.
    pub fn mount(point: &Path, source: &str) -> Result<(Self, Mounting)> {
        let file = File::options().read(true).write(true).open("/dev/fuse");
        let file = file.context("open /dev/fuse (a container needs --device /dev/fuse)")?;
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        let child = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", options, source])
            .arg(point)
            // `mount` hands the descriptor on by its number, and standard input's is known.
            .stdin(Stdio::from(file.try_clone()?))
            .stderr(Stdio::piped())
            .spawn()?;
        let buffer = vec![0; WRITE_BYTES_MAX as usize + (64 << 10)];
        Ok((Self { file, buffer }, Mounting(child)))
    }

    /// The next request; `None`: unmounted.
    pub fn receive(&mut self) -> Option<Request<'_>> {
        let began = Instant::now();
        let length = loop {
            match self.file.read(&mut self.buffer) {
                Ok(length) => break length,
                // Not mounted yet.
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                    if began.elapsed() > MOUNTED_WITHIN {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                // Interrupted, or the request was withdrawn.
                Err(error) if is_passing(&error) => {}
                Err(_) => return None,
            }
        };
        Request::parse(&self.buffer[..length])
    }

    pub fn answerer(&self) -> Result<Answerer> {
        Ok(Answerer(self.file.try_clone()?))
    }
}

/// Writes replies while a request still lies in the device's buffer.
#[derive(Debug)]
pub struct Answerer(File);

impl Answerer {
    pub fn reply(&self, request: &Request<'_>, answer: Result<Vec<u8>, Errno>) {
        let (code, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).expect("invariant: at most a write's size");
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&code.to_le_bytes());
        bytes.extend_from_slice(&request.unique.to_le_bytes());
        bytes.extend_from_slice(&body);
        // Who asked may be gone.
        let _ = (&self.0).write_all(&bytes);
    }
}

#[derive(Debug)]
pub struct Mounting(std::process::Child);

impl Mounting {
    pub fn wait(self) -> Result<()> {
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("mount -t fuse (needs CAP_SYS_ADMIN): {}", text.trim());
        }
        Ok(())
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    let passing = [Errno::INTR, Errno::NOENT, Errno::AGAIN];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What is agreed on with the kernel.
pub fn init(request: &Request<'_>) -> Vec<u8> {
    let (read_ahead, flags) = (request.u32(8), request.u32(12));
    let mut out = Vec::with_capacity(64);
    for word in [7, MINOR, read_ahead, flags & WANTED] {
        put(&mut out, word);
    }
    // Requests in the background, and from how many on it is congested.
    out.extend_from_slice(&64u16.to_le_bytes());
    out.extend_from_slice(&48u16.to_le_bytes());
    put(&mut out, WRITE_BYTES_MAX);
    put(&mut out, 1); // granularity of times, ns
    let pages_max = u16::try_from(WRITE_BYTES_MAX / 4096).expect("invariant: 256");
    out.extend_from_slice(&pages_max.to_le_bytes());
    out.resize(64, 0);
    out
}

/// A node and its attributes, neither to be remembered by the kernel.
pub fn entry(node: u64, found: &Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    put64(&mut out, node);
    out.resize(40, 0); // generation and how long it holds: not at all
    attributes(&mut out, found);
    out
}

pub fn attr(found: &Metadata) -> Vec<u8> {
    let mut out = vec![0; 16];
    attributes(&mut out, found);
    out
}

fn attributes(out: &mut Vec<u8>, found: &Metadata) {
    let seconds = [found.atime(), found.mtime(), found.ctime()].map(i64::cast_unsigned);
    for word in [found.ino(), found.size(), found.blocks(), seconds[0], seconds[1], seconds[2]] {
        put64(out, word);
    }
    let nanoseconds = [found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec()];
    for word in nanoseconds {
        put(out, u32::try_from(word).unwrap_or(0));
    }
    let links = u32::try_from(found.nlink()).unwrap_or(u32::MAX);
    for word in [found.mode(), links, found.uid(), found.gid(), 0, 4096, 0] {
        put(out, word);
    }
}

pub fn opened(handle: u64) -> Vec<u8> {
    let mut out = handle.to_le_bytes().to_vec();
    out.resize(16, 0);
    out
}

pub fn written(bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    put64(&mut out, bytes as u64);
    out
}

/// One line of a folder's listing; `next` is where the one after it begins.
pub fn listed(out: &mut Vec<u8>, inode: u64, next: u64, name: &OsStr, is_folder: bool) {
    put64(out, inode);
    put64(out, next);
    let name = name.as_bytes();
    put(out, u32::try_from(name.len()).unwrap_or(0));
    put(out, if is_folder { 4 } else { 8 });
    out.extend_from_slice(name);
    out.resize(out.len().next_multiple_of(8), 0);
}

pub fn statfs(found: &rustix::fs::StatVfs) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    let counts = [found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree];
    counts.into_iter().for_each(|count| put64(&mut out, count));
    for word in [found.f_bsize, found.f_namemax, found.f_frsize] {
        put(&mut out, u32::try_from(word).unwrap_or(u32::MAX));
    }
    out.resize(80, 0);
    out
}

fn put(out: &mut Vec<u8>, word: u32) {
    out.extend_from_slice(&word.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}
