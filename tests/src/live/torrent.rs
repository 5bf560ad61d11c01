//! Owns: a small file on disk and the .torrent for it, both made here.
//! Never: uses the engine's own codec or hashing.
//! Flow: the engine seeds it; peers compare what they get with `bytes`.

use super::peer::{BLOCK_BYTES, Peer};
use anyhow::{Context, Result, bail};
use sha1::{Digest, Sha1};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub const PIECE_BYTES: usize = 32 << 10;

#[derive(Debug, Clone)]
pub struct SingleFile {
    pub name: String,
    pub bytes: Vec<u8>,
    /// In hexadecimal.
    pub info_hash: String,
    pub torrent: PathBuf,
    pub content: PathBuf,
    piece_bytes: usize,
    hashes: Vec<[u8; 20]>,
    written: SystemTime,
}

impl SingleFile {
    /// `folder/content/NAME` and `folder/NAME.torrent`; the bytes follow from the name.
    pub fn make(folder: &Path, name: &str, length: usize, announce: &str) -> Result<Self> {
        Self::make_in_pieces(folder, name, length, announce, PIECE_BYTES)
    }

    /// The same in pieces of `piece_bytes`.
    pub fn make_in_pieces(
        folder: &Path,
        name: &str,
        length: usize,
        announce: &str,
        piece_bytes: usize,
    ) -> Result<Self> {
        Self::make_with(folder, name, length, announce, piece_bytes, "")
    }

    /// The same as a private torrent (BEP 27) without a tracker.
    pub fn make_private(folder: &Path, name: &str, length: usize) -> Result<Self> {
        Self::make_with(folder, name, length, "", PIECE_BYTES, "7:privatei1e")
    }

    /// `rest`: what else is in the info dictionary, after `pieces`.
    fn make_with(
        folder: &Path,
        name: &str,
        length: usize,
        announce: &str,
        piece_bytes: usize,
        rest: &str,
    ) -> Result<Self> {
        let bytes = made_up_bytes(name, length);
        let content = folder.join("content").join(name);
        std::fs::create_dir_all(folder.join("content"))?;
        std::fs::write(&content, &bytes)?;
        let hashes = bytes.chunks(piece_bytes).map(|piece| Sha1::digest(piece).into());
        let hashes: Vec<[u8; 20]> = hashes.collect();
        let pieces = hashes.concat();
        let mut info = b"d".to_vec();
        info.extend(format!("6:lengthi{length}e4:name{}:{name}", name.len()).bytes());
        info.extend(format!("12:piece lengthi{piece_bytes}e6:pieces{}:", pieces.len()).bytes());
        info.extend(pieces);
        info.extend(rest.bytes());
        info.push(b'e');
        let hash: [u8; 20] = Sha1::digest(&info).into();
        let mut file = b"d".to_vec();
        if !announce.is_empty() {
            file.extend(format!("8:announce{}:{announce}", announce.len()).bytes());
        }
        file.extend(b"4:info");
        file.extend(info);
        file.push(b'e');
        let torrent = folder.join(format!("{name}.torrent"));
        std::fs::write(&torrent, file)?;
        Ok(Self {
            name: name.to_owned(),
            info_hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            written: std::fs::metadata(&content)?.modified()?,
            bytes,
            torrent,
            content,
            piece_bytes,
            hashes,
        })
    }

    /// An entry of `torrents:` for it.
    pub fn entry(&self, verify: &str) -> Result<String> {
        self.entry_in(self.content.parent().context("content has a folder")?, verify)
    }

    /// The same for a copy that lies in `folder`.
    pub fn entry_in(&self, folder: &Path, verify: &str) -> Result<String> {
        Ok(format!(
            "  - files: {}\n    content: {}\n    verify: {verify}\n",
            serde_json::to_string(&self.torrent)?,
            serde_json::to_string(folder)?
        ))
    }

    /// What belongs into the block that starts at `begin` of `piece`.
    pub fn block(&self, piece: u32, begin: u32) -> &[u8] {
        let start = piece as usize * self.piece_bytes + begin as usize;
        let end = (start + BLOCK_BYTES as usize).min(self.bytes.len());
        &self.bytes[start..end]
    }

    /// An entry of `torrents:` that has it downloaded into `folder`.
    pub fn download_entry(&self, folder: &Path) -> Result<String> {
        Ok(format!(
            "  - files: {}\n    content: {}\n    download: true\n",
            serde_json::to_string(&self.torrent)?,
            serde_json::to_string(folder)?
        ))
    }

    pub fn piece_count(&self) -> u32 {
        self.bytes.len().div_ceil(self.piece_bytes) as u32
    }

    /// As the .torrent has it.
    pub fn piece_hash(&self, piece: u32) -> [u8; 20] {
        self.hashes[piece as usize]
    }

    pub fn piece_length(&self, piece: u32) -> u32 {
        let start = piece as usize * self.piece_bytes;
        self.piece_bytes.min(self.bytes.len().saturating_sub(start)) as u32
    }

    /// What a request names; `None`: it leads out of its piece.
    pub fn range(&self, piece: u32, begin: u32, length: u32) -> Option<&[u8]> {
        let end = begin.checked_add(length)?;
        if piece >= self.piece_count() || end > self.piece_length(piece) {
            return None;
        }
        let start = piece as usize * self.piece_bytes;
        self.bytes.get(start + begin as usize..start + end as usize)
    }

    /// The copy in `folder` is what it should be.
    pub fn check_copy(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.name);
        let copy = std::fs::read(&path).with_context(|| path.display().to_string())?;
        if copy.len() != self.bytes.len() {
            bail!("{}: {} bytes instead of {}", path.display(), copy.len(), self.bytes.len());
        }
        if let Some(at) = copy.iter().zip(&self.bytes).position(|(copy, right)| copy != right) {
            bail!("{}: wrong from byte {at} on", path.display());
        }
        Ok(())
    }

    /// A new connection is served the first block, and it is right.
    pub fn check_served(&self, address: SocketAddr) -> Result<Peer> {
        let mut peer = Peer::unchoked(address, &self.info_hash)?;
        self.check_block(&mut peer, 0, 0)?;
        Ok(peer)
    }

    /// This connection is served this block, and it is right.
    pub fn check_block(&self, peer: &mut Peer, piece: u32, begin: u32) -> Result<()> {
        let wanted = self.block(piece, begin);
        let got = peer.fetch(piece, begin, u32::try_from(wanted.len())?)?;
        match got {
            Some(bytes) if bytes == wanted => Ok(()),
            Some(_) => bail!("{}: block {piece}/{begin} holds wrong bytes", self.name),
            None => bail!("{}: block {piece}/{begin} was not served", self.name),
        }
    }

    /// The engine wrote nothing to it.
    pub fn check_untouched(&self) -> Result<()> {
        let modified = std::fs::metadata(&self.content)?.modified()?;
        if modified != self.written || std::fs::read(&self.content)? != self.bytes {
            bail!("{} was written to", self.content.display());
        }
        Ok(())
    }
}

/// SHA-1 in counter mode: the same for the same name, unlike for any other.
fn made_up_bytes(name: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 20);
    let mut counter = 0u64;
    while bytes.len() < length {
        let hash = Sha1::new().chain_update(name).chain_update(counter.to_be_bytes());
        bytes.extend_from_slice(&hash.finalize());
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}
