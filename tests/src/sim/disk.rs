//! The virtual disk: directories of files whose bytes are generated.
//!
//! Owns: files, their identities, what happens to them while they are open. Never: time (it is an
//! argument), completions, what survives the loss of power (`durable`). Flow: `SimIo` opens,
//! identifies, reads and writes here; a script changes files.

use std::collections::{BTreeMap, BTreeSet};

use seedring_platform::op::{DirectAlignment, Identity};

use super::{durable::Unsynced, rng};

/// What a file's bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Generated: byte `i` of the file is byte `base + i` of the stream `seed`.
    Generated {
        seed: u64,
        base: u64,
    },
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub content: Content,
    pub identity: Identity,
    pub directory: DirectoryId,
    /// Of files that operations wrote to.
    pub unsynced: Option<Unsynced>,
    /// Blocks of `BLOCK_BYTES` that count against the directory's space.
    pub blocks: BTreeSet<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct DirectoryId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct NodeId(pub u64);

pub(super) const BLOCK_BYTES: u64 = 4096;

/// A path beneath a directory.
pub(super) type Name = (DirectoryId, Vec<u8>);

/// How much may be written beneath a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub limit_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) names: BTreeMap<Name, NodeId>,
    /// Names that are lost with the power, and the change that made them.
    pub(super) unsynced_names: BTreeMap<Name, u64>,
    /// Changes so far, of bytes, sizes and names.
    pub(super) changes: u64,
    pub(super) space: BTreeMap<DirectoryId, Space>,
    /// Symbolic links; where they lead does not matter, nothing follows them.
    links: BTreeSet<(DirectoryId, Vec<u8>)>,
    pub(super) next: u64,
    /// What direct I/O needs on this disk; `None`: the file system refuses it.
    pub direct: Option<DirectAlignment>,
}

impl Disk {
    pub fn directory(&mut self) -> DirectoryId {
        self.next += 1;
        DirectoryId(self.next)
    }

    /// Writes a file, over what has this name.
    pub fn write(
        &mut self,
        directory: DirectoryId,
        path: &str,
        size_bytes: u64,
        content: Content,
        now_ns: u64,
    ) -> NodeId {
        self.next += 1;
        let id = NodeId(self.next);
        let identity = Identity {
            size_bytes,
            modified_ns: i128::from(now_ns),
            changed_ns: i128::from(now_ns),
            inode: self.next,
            device: 1,
            direct: None,
        };
        let (unsynced, blocks) = (None, BTreeSet::new());
        let node = Node { content, identity, directory, unsynced, blocks };
        self.nodes.insert(id, node);
        self.names.insert((directory, path.as_bytes().to_vec()), id);
        id
    }

    pub fn find(&self, directory: DirectoryId, path: &[u8]) -> Option<NodeId> {
        self.names.get(&(directory, path.to_vec())).copied()
    }

    /// Makes a symbolic link.
    pub fn link(&mut self, directory: DirectoryId, path: &str) {
        self.links.insert((directory, path.as_bytes().to_vec()));
    }

    /// What opening `path` beneath a directory finds, or the errno of `openat2` with
    /// `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`.
    pub fn resolve(&self, directory: DirectoryId, path: &[u8]) -> Result<NodeId, i32> {
        self.walk(directory, path)?.1.ok_or(libc::ENOENT)
    }

    /// Where `path` leads without its detours, and what is there.
    pub(super) fn walk(
        &self,
        directory: DirectoryId,
        path: &[u8],
    ) -> Result<(Vec<u8>, Option<NodeId>), i32> {
        if path.starts_with(b"/") {
            return Err(libc::EXDEV);
        }
        let mut walked: Vec<&[u8]> = Vec::new();
        let parts = path.split(|&byte| byte == b'/');
        for part in parts.filter(|part| !part.is_empty() && *part != b".") {
            let here = (directory, walked.join(&b'/'));
            if self.names.contains_key(&here) {
                return Err(libc::ENOTDIR);
            }
            if part == b".." {
                walked.pop().ok_or(libc::EXDEV)?;
                continue;
            }
            walked.push(part);
            if self.links.contains(&(directory, walked.join(&b'/'))) {
                return Err(libc::ELOOP);
            }
        }
        let mut path = walked.join(&b'/');
        if let Some(node) = self.find(directory, &path) {
            return Ok((path, Some(node)));
        }
        path.push(b'/');
        let next = self.names.range((directory, path.clone())..).next();
        let is_folder =
            next.is_some_and(|((d, name), _)| *d == directory && name.starts_with(&path));
        path.pop();
        if is_folder { Err(libc::EISDIR) } else { Ok((path, None)) }
    }

    pub fn identity(&self, node: NodeId, direct: bool) -> Identity {
        let mut identity = self.nodes[&node].identity;
        identity.direct = if direct { self.direct } else { None };
        identity
    }

    /// Reads as the kernel does: short at the file's end, nothing past it.
    pub fn read(&self, node: NodeId, offset: u64, out: &mut [u8]) -> usize {
        let node = &self.nodes[&node];
        let left = node.identity.size_bytes.saturating_sub(offset);
        let n = left.min(out.len() as u64) as usize;
        if n == 0 {
            return 0;
        }
        match &node.content {
            Content::Generated { seed, base } => rng::fill(*seed, base + offset, &mut out[..n]),
            Content::Bytes(bytes) => {
                out[..n].copy_from_slice(&bytes[offset as usize..offset as usize + n]);
            }
        }
        n
    }

    /// Somebody writes to the file: other bytes, other times, the same inode and size. Durable at
    /// once, as all that scripts do.
    pub fn change(&mut self, node: NodeId, seed: u64, now_ns: u64) {
        let node = self.nodes.get_mut(&node).expect("invariant: nodes are never dropped");
        node.content = Content::Generated { seed, base: 0 };
        node.unsynced = None;
        node.identity.modified_ns = i128::from(now_ns);
        node.identity.changed_ns = i128::from(now_ns);
    }

    pub fn truncate(&mut self, node: NodeId, size_bytes: u64, now_ns: u64) {
        let node = self.nodes.get_mut(&node).expect("invariant: nodes are never dropped");
        node.identity.size_bytes = size_bytes.min(node.identity.size_bytes);
        node.unsynced = None;
        node.identity.modified_ns = i128::from(now_ns);
        node.identity.changed_ns = i128::from(now_ns);
    }

    /// The name goes; who has the file open keeps the bytes (their link count, so ctime, changes).
    pub fn unlink(&mut self, directory: DirectoryId, path: &str, now_ns: u64) {
        let name = (directory, path.as_bytes().to_vec());
        self.unsynced_names.remove(&name);
        if let Some(id) = self.names.remove(&name) {
            let node = self.nodes.get_mut(&id).expect("invariant: nodes are never dropped");
            node.identity.changed_ns = i128::from(now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_ends_where_the_file_does_and_a_change_shows_in_the_identity() {
        let mut disk = Disk::default();
        let root = disk.directory();
        let node = disk.write(root, "a", 100, Content::Generated { seed: 1, base: 5 }, 10);
        let mut out = [0; 64];
        assert_eq!(disk.read(node, 60, &mut out), 40);
        assert_eq!(rng::differs(1, 65, &out[..40]), None);
        assert_eq!(disk.read(node, 200, &mut out), 0);
        let before = disk.identity(node, false);
        disk.truncate(node, 50, 11);
        assert_ne!(disk.identity(node, false), before);
        disk.write(root, "folder/b", 1, Content::Bytes(vec![1]), 12);
        disk.link(root, "folder/link");
        for (path, errno) in [
            ("/a", libc::EXDEV),
            ("folder/../../a", libc::EXDEV),
            ("folder/link", libc::ELOOP),
            ("folder/link/a", libc::ELOOP),
            ("folder", libc::EISDIR),
            ("a/b", libc::ENOTDIR),
            ("b", libc::ENOENT),
        ] {
            assert_eq!(disk.resolve(root, path.as_bytes()), Err(errno), "{path}");
        }
        assert_eq!(disk.resolve(root, b"folder/../a"), Ok(node));
        disk.unlink(root, "a", 12);
        assert_eq!(disk.find(root, b"a"), None);
        assert_eq!(disk.read(node, 0, &mut out), 50);
    }
}
