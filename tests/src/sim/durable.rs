//! What of the virtual disk survives: the page cache over the device, and the loss of power.
//!
//! Owns: changes that are not synced, images of the disk as a crash leaves it, space. Never: when
//! an operation completes. Flow: writes change the cache and are listed; a sync moves them to the
//! device; an image is the device with what chance adds of the rest.

use std::collections::BTreeSet;

use seedring_platform::op::Identity;

use super::{
    disk::{BLOCK_BYTES, Content, DirectoryId, Disk, Node, NodeId, Space},
    rng::Rng,
};

/// What a device writes whole, or not.
const SECTOR_BYTES: usize = 512;

/// What is left when a machine or a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survives {
    /// The process alone ended: the page cache lives, writes in flight came through or not.
    Cache,
    /// The power went. What was synced, and the changes up to this one (`Disk::last_change`):
    /// every prefix of what was written.
    Prefix(u64),
    /// The power went. What was synced, and of each other change all, nothing, a prefix, or some of
    /// its sectors.
    Chance,
}

/// The device's side of a file that is written to.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsynced {
    /// What the device holds.
    device: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    number: u64,
    offset: usize,
    /// Empty: only the size changed, to `offset`.
    bytes: Vec<u8>,
}

fn apply(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[offset..end].copy_from_slice(bytes);
}

impl Change {
    /// Puts what chance leaves of it onto the device.
    fn land(&self, device: &mut Vec<u8>, rng: &mut Rng) {
        match rng.below(4) {
            0 => {}
            1 => apply(device, self.offset, &self.bytes),
            2 => {
                let n = rng.below(self.bytes.len() as u64 + 1) as usize;
                apply(device, self.offset, &self.bytes[..n]);
            }
            _ => {
                // Sectors of the file, not of the write: its ends share theirs with others' bytes.
                let mut at = 0;
                while at < self.bytes.len() {
                    let inside = (self.offset + at) % SECTOR_BYTES;
                    let end = (at + SECTOR_BYTES - inside).min(self.bytes.len());
                    if rng.per_mille(500) {
                        apply(device, self.offset + at, &self.bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

impl Disk {
    /// The number of the last change of bytes, sizes or names.
    pub fn last_change(&self) -> u64 {
        self.changes
    }

    /// The oldest change that no sync covers.
    pub fn first_unsynced(&self) -> Option<u64> {
        let unsynced = self.nodes.values().filter_map(|node| node.unsynced.as_ref());
        unsynced.flat_map(|unsynced| &unsynced.changes).map(|change| change.number).min()
    }

    /// At most so much may be written beneath the directory.
    pub fn limit_space(&mut self, directory: DirectoryId, limit_bytes: u64) {
        let used_bytes = self.space.get(&directory).map_or(0, |space| space.used_bytes);
        self.space.insert(directory, Space { limit_bytes, used_bytes });
    }

    /// Makes an empty file, whose name the next loss of power may take away.
    pub(super) fn create(&mut self, directory: DirectoryId, path: &[u8], now_ns: u64) -> NodeId {
        self.next += 1;
        self.changes += 1;
        let id = NodeId(self.next);
        let at_ns = i128::from(now_ns);
        let identity = Identity {
            modified_ns: at_ns,
            changed_ns: at_ns,
            inode: self.next,
            device: 1,
            ..Identity::default()
        };
        let content = Content::Bytes(Vec::new());
        let (unsynced, blocks) = (Some(Unsynced::default()), BTreeSet::new());
        self.nodes.insert(id, Node { content, identity, directory, unsynced, blocks });
        let name = (directory, path.to_vec());
        self.names.insert(name.clone(), id);
        self.unsynced_names.insert(name, self.changes);
        id
    }

    pub(super) fn sync_name(&mut self, directory: DirectoryId, path: &[u8]) {
        self.unsynced_names.remove(&(directory, path.to_vec()));
    }

    /// Writes to the cache. Short where the space ends; `Err`: there is none.
    pub(super) fn write_at(
        &mut self,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<usize, i32> {
        let end = self.take_space(node, offset, offset + bytes.len() as u64);
        if end == offset {
            return Err(libc::ENOSPC);
        }
        let bytes = &bytes[..(end - offset) as usize];
        self.change_at(node, offset as usize, bytes, now_ns);
        Ok(bytes.len())
    }

    /// Makes the file longer, never shorter.
    pub(super) fn grow(
        &mut self,
        node: NodeId,
        length_bytes: u64,
        full: bool,
        now_ns: u64,
    ) -> Result<(), i32> {
        let from = if full { 0 } else { length_bytes.saturating_sub(1) };
        if self.take_space(node, from, length_bytes) < length_bytes {
            return Err(libc::ENOSPC);
        }
        if self.nodes[&node].identity.size_bytes < length_bytes {
            self.change_at(node, length_bytes as usize, &[], now_ns);
        }
        Ok(())
    }

    fn change_at(&mut self, id: NodeId, offset: usize, bytes: &[u8], now_ns: u64) {
        self.changes += 1;
        let number = self.changes;
        let size_bytes = self.nodes[&id].identity.size_bytes;
        let mut whole = Vec::new();
        if self.nodes[&id].unsynced.is_none() {
            whole.resize(size_bytes as usize, 0);
            self.read(id, 0, &mut whole);
        }
        let node = self.nodes.get_mut(&id).expect("invariant: nodes are never dropped");
        if node.unsynced.is_none() {
            node.content = Content::Bytes(whole.clone());
        }
        let device = || Unsynced { device: whole, changes: Vec::new() };
        let unsynced = node.unsynced.get_or_insert_with(device);
        let Content::Bytes(cache) = &mut node.content else {
            unreachable!("a file that is written to has bytes")
        };
        apply(cache, offset, bytes);
        unsynced.changes.push(Change { number, offset, bytes: bytes.to_vec() });
        node.identity.size_bytes = cache.len() as u64;
        node.identity.modified_ns = i128::from(now_ns);
        node.identity.changed_ns = i128::from(now_ns);
    }

    /// Takes the blocks of a range; where the space ends.
    fn take_space(&mut self, id: NodeId, from: u64, to: u64) -> u64 {
        let node = self.nodes.get_mut(&id).expect("invariant: nodes are never dropped");
        let mut space = self.space.get_mut(&node.directory);
        for block in from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES) {
            if node.blocks.contains(&block) {
                continue;
            }
            if let Some(space) = &mut space {
                if space.used_bytes + BLOCK_BYTES > space.limit_bytes {
                    return (block * BLOCK_BYTES).max(from);
                }
                space.used_bytes += BLOCK_BYTES;
            }
            node.blocks.insert(block);
        }
        to
    }

    /// The device has all changes of the file up to `covers`; later ones stay in the cache alone.
    pub(super) fn sync(&mut self, id: NodeId, covers: u64) {
        let node = self.nodes.get_mut(&id).expect("invariant: nodes are never dropped");
        let Some(unsynced) = &mut node.unsynced else { return };
        for change in unsynced.changes.extract_if(.., |change| change.number <= covers) {
            apply(&mut unsynced.device, change.offset, &change.bytes);
        }
    }

    /// A sync that failed: the kernel counts the changes as written, and the device has few.
    pub(super) fn lose(&mut self, id: NodeId, covers: u64, rng: &mut Rng) {
        let node = self.nodes.get_mut(&id).expect("invariant: nodes are never dropped");
        let Some(unsynced) = &mut node.unsynced else { return };
        for change in unsynced.changes.extract_if(.., |change| change.number <= covers) {
            change.land(&mut unsynced.device, rng);
        }
    }

    /// The disk as it is found after an end. Nothing on it is unsynced but with `Survives::Cache`.
    pub fn image(&self, survives: Survives, rng: &mut Rng) -> Disk {
        let mut image = self.clone();
        if survives == Survives::Cache {
            return image;
        }
        for node in image.nodes.values_mut() {
            let Some(Unsynced { mut device, changes }) = node.unsynced.take() else { continue };
            for change in changes {
                match survives {
                    Survives::Prefix(last) if change.number <= last => {
                        apply(&mut device, change.offset, &change.bytes);
                    }
                    Survives::Chance => change.land(&mut device, rng),
                    _ => {}
                }
            }
            node.identity.size_bytes = device.len() as u64;
            node.content = Content::Bytes(device);
        }
        for (name, number) in std::mem::take(&mut image.unsynced_names) {
            let kept = match survives {
                Survives::Prefix(last) => number <= last,
                _ => rng.per_mille(500),
            };
            if !kept {
                image.names.remove(&name);
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 8 << 10;

    fn bytes_of(disk: &Disk, node: NodeId) -> Vec<u8> {
        let mut out = vec![0; ALL];
        let n = disk.read(node, 0, &mut out);
        out.truncate(n);
        out
    }

    #[test]
    fn every_prefix_of_what_was_written_can_be_what_is_left() {
        let (mut disk, mut rng) = (Disk::default(), Rng::new(1));
        let root = disk.directory();
        let node = disk.create(root, b"a", 1);
        let first = disk.last_change();
        let mut states = vec![Vec::new()];
        for n in 0..10u8 {
            let bytes = [n + 1; 700];
            disk.write_at(node, u64::from(n) * 500, &bytes, 2).expect("space");
            states.push(bytes_of(&disk, node));
        }
        for (n, state) in states.iter().enumerate() {
            let image = disk.image(Survives::Prefix(first + n as u64), &mut rng);
            assert_eq!(&bytes_of(&image, node), state, "{n}");
            assert!(image.find(root, b"a").is_some());
        }
        let nothing = disk.image(Survives::Prefix(first - 1), &mut rng);
        assert!(nothing.find(root, b"a").is_none(), "a name that was not synced");
        assert_eq!(&bytes_of(&disk, node), &states[10], "an image changes nothing");
        let cache = disk.image(Survives::Cache, &mut rng);
        assert_eq!(&bytes_of(&cache, node), &states[10]);
    }

    #[test]
    fn a_sync_covers_what_came_before_it_and_chance_has_the_rest() {
        let (mut disk, mut rng) = (Disk::default(), Rng::new(1));
        let root = disk.directory();
        let node = disk.create(root, b"a", 1);
        disk.write_at(node, 0, &[1; 2048], 2).expect("space");
        let covers = disk.last_change();
        disk.write_at(node, 2048, &[2; 4096], 2).expect("space");
        disk.sync(node, covers);
        disk.sync_name(root, b"a");
        let (mut whole, mut none, mut torn) = (0, 0, 0);
        for _ in 0..200 {
            let image = disk.image(Survives::Chance, &mut rng);
            assert!(image.find(root, b"a").is_some());
            let found = bytes_of(&image, node);
            assert_eq!(found[..2048], [1; 2048]);
            let twos = found[2048..].iter().filter(|&&byte| byte == 2).count();
            match twos {
                0 => none += 1,
                4096 => whole += 1,
                _ => torn += 1,
            }
        }
        assert!(whole > 20 && none > 20 && torn > 20, "{whole} whole, {none} lost, {torn} torn");
    }

    #[test]
    fn a_failed_sync_loses_what_the_next_one_does_not_bring_back() {
        let mut lost = 0;
        for seed in 0..20 {
            let (mut disk, mut rng) = (Disk::default(), Rng::new(seed));
            let root = disk.directory();
            let node = disk.create(root, b"a", 1);
            disk.sync_name(root, b"a");
            disk.write_at(node, 0, &[1; 2048], 2).expect("space");
            disk.lose(node, disk.last_change(), &mut rng);
            assert_eq!(bytes_of(&disk, node), [1; 2048], "the cache still shows it");
            disk.sync(node, disk.last_change());
            let image = disk.image(Survives::Prefix(u64::MAX), &mut rng);
            lost += u32::from(bytes_of(&image, node) != [1; 2048]);
        }
        assert!(lost > 5, "lost {lost} times");
    }

    #[test]
    fn space_ends_with_a_short_write_and_then_with_an_error() {
        let mut disk = Disk::default();
        let root = disk.directory();
        disk.limit_space(root, 3 * BLOCK_BYTES);
        let node = disk.create(root, b"a", 1);
        assert_eq!(disk.grow(node, 1 << 20, false, 2), Ok(()), "a hole takes one block");
        assert_eq!(disk.write_at(node, 100, &[1; ALL + 4096], 2), Ok(ALL - 100));
        assert_eq!(disk.write_at(node, ALL as u64, &[1; 10], 2), Err(libc::ENOSPC));
        assert_eq!(disk.write_at(node, 0, &[2; 10], 2), Ok(10), "what is taken is there");
        assert_eq!(disk.grow(node, 1 << 20, true, 2), Err(libc::ENOSPC));
        assert_eq!(disk.identity(node, false).size_bytes, 1 << 20);
    }
}
