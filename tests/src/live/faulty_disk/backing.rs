//! Owns: the files behind the mount: nodes, open handles, and of each file what was written and not
//! synced, so that a crash can take it back.
//! Never: faults, the kernel's channel. Flow: a request -> a file of the backing folder -> a reply.

use super::fuse::{self, Request};
use crate::sim::Rng;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

type Reply = Result<Vec<u8>, Errno>;

/// The mount point itself.
const ROOT: u64 = 1;

/// A write that no sync has covered: what was there before it.
#[derive(Debug)]
struct Undo {
    offset: u64,
    /// What lay at `offset`; shorter than the write where the file ended.
    old: Vec<u8>,
    length: u64,
    file_length: u64,
}

/// What is not on the imagined device, by the file's inode. Outlives a mount, as a device does.
#[derive(Debug, Default)]
pub struct Unsynced(Mutex<HashMap<u64, (PathBuf, Vec<Undo>)>>);

impl Unsynced {
    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (PathBuf, Vec<Undo>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a write.
    fn note(&self, path: &Path, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let found = file.metadata()?;
        let there = found.len().saturating_sub(offset).min(length);
        let mut old = vec![0; usize::try_from(there).unwrap_or(0)];
        file.read_exact_at(&mut old, offset)?;
        let undo = Undo { offset, old, length, file_length: found.len() };
        let mut files = self.files();
        let entry = files.entry(found.ino()).or_insert_with(|| (path.to_owned(), Vec::new()));
        entry.1.push(undo);
        Ok(())
    }

    fn synced(&self, inode: u64) {
        self.files().remove(&inode);
    }

    /// What lay behind the new end is gone for good.
    fn cut(&self, inode: u64, length: u64) {
        if let Some((_, undos)) = self.files().get_mut(&inode) {
            undos.retain(|undo| undo.offset < length);
            for undo in undos {
                undo.length = undo.length.min(length - undo.offset);
                undo.old.truncate(usize::try_from(undo.length).unwrap_or(0));
                undo.file_length = undo.file_length.min(length);
            }
        }
    }

    /// The power fails: each write that was not synced is lost with this chance, in per mille.
    /// Returns how many were.
    pub fn lose(&self, rng: &mut Rng, chance: u16) -> io::Result<u64> {
        let mut lost = 0;
        let mut files: Vec<_> = self.files().drain().collect();
        files.sort_by_key(|(inode, _)| *inode);
        for (inode, (path, undos)) in files {
            let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
            if file.metadata()?.ino() != inode {
                continue; // removed, and another one made in its place
            }
            let mut all_after_it = true;
            for undo in undos.into_iter().rev() {
                if !rng.per_mille(chance) {
                    all_after_it = false;
                    continue;
                }
                lost += 1;
                let mut bytes = undo.old;
                bytes.resize(usize::try_from(undo.length).unwrap_or(0), 0);
                file.write_all_at(&bytes, undo.offset)?;
                if all_after_it {
                    file.set_len(undo.file_length)?;
                }
            }
        }
        Ok(lost)
    }
}

#[derive(Debug)]
struct Handle {
    file: File,
    path: PathBuf,
}

/// The tree of one mount.
#[derive(Debug)]
pub struct Backing {
    paths: HashMap<u64, PathBuf>,
    nodes: HashMap<PathBuf, u64>,
    handles: HashMap<u64, Handle>,
    last: u64,
}

impl Backing {
    pub fn new(folder: &Path) -> Self {
        let paths = HashMap::from([(ROOT, folder.to_owned())]);
        let nodes = HashMap::from([(folder.to_owned(), ROOT)]);
        Self { paths, nodes, handles: HashMap::new(), last: ROOT }
    }

    /// The file that a request means, by its node.
    pub fn path(&self, request: &Request<'_>) -> PathBuf {
        self.paths.get(&request.node).cloned().unwrap_or_default()
    }

    /// Does what a request asks for.
    pub fn serve(&mut self, request: &Request<'_>, unsynced: &Unsynced) -> Reply {
        let path = self.path(request);
        match request.opcode {
            fuse::INIT => Ok(fuse::init(request)),
            fuse::LOOKUP => self.entry(&path.join(request.name(0))),
            fuse::GETATTR => self.attributes(request, &path),
            fuse::SETATTR => self.set(request, &path, unsynced),
            fuse::MKNOD => self.make_node(request, &path.join(request.name(16))),
            fuse::MKDIR => {
                let folder = path.join(request.name(8));
                errno(std::fs::create_dir(&folder))?;
                self.entry(&folder)
            }
            fuse::UNLINK => {
                self.remove(&path.join(request.name(0)), |path| std::fs::remove_file(path))
            }
            fuse::RMDIR => {
                self.remove(&path.join(request.name(0)), |path| std::fs::remove_dir(path))
            }
            fuse::RENAME => self.rename(request, &path, 8),
            fuse::RENAME2 if request.u32(8) <= 1 => self.rename(request, &path, 16),
            fuse::OPEN => self.open(&path),
            fuse::CREATE => self.create(request, &path.join(request.name(16))),
            fuse::READ => self.read(request),
            fuse::WRITE => self.write(request, request.rest(40), unsynced),
            fuse::FSYNC => {
                let handle = self.handle(request)?;
                unsynced.synced(errno(handle.file.metadata())?.ino());
                Ok(Vec::new())
            }
            fuse::RELEASE => {
                self.handles.remove(&request.u64(0));
                Ok(Vec::new())
            }
            fuse::READDIR => list(request, &path),
            fuse::STATFS => {
                let found = rustix::fs::statvfs(&path)?;
                Ok(fuse::statfs(&found))
            }
            fuse::OPENDIR => Ok(fuse::opened(0)),
            fuse::FLUSH | fuse::FSYNCDIR | fuse::RELEASEDIR | fuse::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    /// A write of a part of what was asked for.
    pub fn write(&mut self, request: &Request<'_>, bytes: &[u8], unsynced: &Unsynced) -> Reply {
        let (offset, handle) = (request.u64(8), self.handle(request)?);
        let bytes = &bytes[..bytes.len().min(request.u32(16) as usize)];
        errno(unsynced.note(&handle.path, &handle.file, offset, bytes.len() as u64))?;
        errno(handle.file.write_all_at(bytes, offset))?;
        Ok(fuse::written(bytes.len()))
    }

    fn handle(&self, request: &Request<'_>) -> Result<&Handle, Errno> {
        self.handles.get(&request.u64(0)).ok_or(Errno::BADF)
    }

    fn entry(&mut self, path: &Path) -> Reply {
        let found = errno(std::fs::symlink_metadata(path))?;
        Ok(fuse::entry(self.node(path), &found))
    }

    fn node(&mut self, path: &Path) -> u64 {
        if let Some(node) = self.nodes.get(path) {
            return *node;
        }
        self.last += 1;
        self.nodes.insert(path.to_owned(), self.last);
        self.paths.insert(self.last, path.to_owned());
        self.last
    }

    fn attributes(&self, request: &Request<'_>, path: &Path) -> Reply {
        let handle = self.handles.get(&request.u64(8));
        let found = match handle.filter(|_| request.u32(0) & fuse::BY_HANDLE != 0) {
            Some(handle) => errno(handle.file.metadata())?,
            None => errno(std::fs::symlink_metadata(path))?,
        };
        Ok(fuse::attr(&found))
    }

    /// Size and mode; times are as they come.
    fn set(&self, request: &Request<'_>, path: &Path, unsynced: &Unsynced) -> Reply {
        const MODE: u32 = 1;
        let (valid, length) = (request.u32(0), request.u64(16));
        if valid & MODE != 0 {
            let mode = std::fs::Permissions::from_mode(request.u32(68) & 0o7777);
            errno(std::fs::set_permissions(path, mode))?;
        }
        if valid & fuse::SET_SIZE != 0 {
            let file = errno(OpenOptions::new().write(true).open(path))?;
            errno(file.set_len(length))?;
            unsynced.cut(errno(file.metadata())?.ino(), length);
        }
        Ok(fuse::attr(&errno(std::fs::symlink_metadata(path))?))
    }

    fn remove(&mut self, path: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Reply {
        errno(remove(path))?;
        self.nodes.remove(path);
        Ok(Vec::new())
    }

    /// A socket or the like.
    fn make_node(&mut self, request: &Request<'_>, path: &Path) -> Reply {
        let raw = request.u32(0);
        let (kind, mode) = (FileType::from_raw_mode(raw), Mode::from_raw_mode(raw & 0o7777));
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, u64::from(request.u32(4)))?;
        self.entry(path)
    }

    fn rename(&mut self, request: &Request<'_>, folder: &Path, names: usize) -> Reply {
        let from = folder.join(request.name(names));
        let name = request.name(names + request.name(names).len() + 1);
        let to = self.paths.get(&request.u64(0)).ok_or(Errno::NOENT)?.join(name);
        let keep = names == 16 && request.u32(8) & 1 != 0;
        if keep && to.exists() {
            return Err(Errno::EXIST);
        }
        errno(std::fs::rename(&from, &to))?;
        self.nodes.remove(&to);
        let moved: Vec<_> =
            self.nodes.keys().filter(|path| path.starts_with(&from)).cloned().collect();
        for old in moved {
            let Some(node) = self.nodes.remove(&old) else { continue };
            let rest = old.strip_prefix(&from).unwrap_or(Path::new(""));
            let new = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
            self.paths.insert(node, new.clone());
            self.nodes.insert(new, node);
        }
        Ok(Vec::new())
    }

    fn open(&mut self, path: &Path) -> Reply {
        let both = OpenOptions::new().read(true).write(true).open(path);
        let file = both.or_else(|_| File::open(path));
        let handle = self.keep(errno(file)?, path);
        Ok(fuse::opened(handle))
    }

    fn create(&mut self, request: &Request<'_>, path: &Path) -> Reply {
        let flags = rustix::fs::OFlags::from_bits_truncate(request.u32(0));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(request.u32(4) & 0o777);
        let file = match flags.contains(rustix::fs::OFlags::EXCL) {
            true => options.create_new(true).open(path),
            false => options.open(path),
        };
        let file = errno(file)?;
        let mut out = fuse::entry(self.node(path), &errno(file.metadata())?);
        out.extend_from_slice(&fuse::opened(self.keep(file, path)));
        Ok(out)
    }

    fn keep(&mut self, file: File, path: &Path) -> u64 {
        self.last += 1;
        self.handles.insert(self.last, Handle { file, path: path.to_owned() });
        self.last
    }

    fn read(&self, request: &Request<'_>) -> Reply {
        let (file, mut offset) = (&self.handle(request)?.file, request.u64(8));
        let mut bytes = vec![0; request.u32(16) as usize];
        let mut length = 0;
        while length < bytes.len() {
            match errno(file.read_at(&mut bytes[length..], offset))? {
                0 => break,
                count => {
                    length += count;
                    offset += count as u64;
                }
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// Lists from the request's offset on; offsets count entries.
fn list(request: &Request<'_>, folder: &Path) -> Reply {
    let (from, room) = (request.u64(8), request.u32(16) as usize);
    let mut names = Vec::new();
    for entry in errno(std::fs::read_dir(folder))? {
        let entry = errno(entry)?;
        names.push((entry.file_name(), entry.path()));
    }
    names.sort();
    let mut out = Vec::new();
    for (next, (name, path)) in (1..).zip(names).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
        let found: Metadata = errno(std::fs::symlink_metadata(path))?;
        let before = out.len();
        fuse::listed(&mut out, found.ino(), next, &name, found.is_dir());
        if out.len() > room {
            out.truncate(before);
            break;
        }
    }
    Ok(out)
}

fn errno<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
