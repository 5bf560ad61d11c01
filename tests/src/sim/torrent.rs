//! Generated torrents: their files on the virtual disk, their truth for whoever checks bytes.
//!
//! Owns: layout, hashes and content of a simulated torrent. Never: keeps the content. Flow: a seed
//! -> layout -> files on the disk, `Shared` and `Contents` for shards, `differs` for leeches.

use std::{path::PathBuf, sync::Arc};

use seedring_platform::hash::sha1_many;
use seedring_proto::{
    layout::{Layout, NewFile},
    metainfo::{Metainfo, PieceHashes},
    units::{InfoHash, PieceIndex},
};
use seedring_shard::torrent::{Contents, Phase, Shared, TorrentId};

use super::{
    disk::{Content, DirectoryId, NodeId},
    rng::{self, Rng},
    world::World,
};

pub struct SimTorrent {
    pub id: TorrentId,
    pub seed: u64,
    pub info_hash: InfoHash,
    pub layout: Layout,
    pub piece_hashes: PieceHashes,
    pub raw_info: Arc<[u8]>,
    pub base: PathBuf,
    /// Node of each file; `None` for padding.
    pub nodes: Vec<Option<NodeId>>,
}

/// What a torrent may be at most in a swarm of many seeds.
const PIECES_MAX: u64 = 40;

impl SimTorrent {
    /// Some files, some of them odd: empty, a byte, padded to the piece.
    pub fn random(id: u32, rng: &mut Rng) -> SimTorrent {
        let piece_bytes = 16_384 << rng.below(4);
        let single = rng.per_mille(250);
        let files_max = if single { 1 } else { rng.between(2, 12) };
        let padded = rng.per_mille(300);
        let mut files = Vec::new();
        let mut total = 0;
        for n in 0..files_max {
            let length = match rng.below(6) {
                0 if n > 0 => 0,
                1 => rng.between(1, 100),
                2 => rng.between(1, 20_000),
                _ => rng.between(1, u64::from(piece_bytes) * 6),
            };
            let path = format!("folder {}/file {n}", n % 3).into();
            files.push(NewFile { path, length, ..NewFile::default() });
            total += length;
            let over = total % u64::from(piece_bytes);
            if padded && over > 0 && n + 1 < files_max {
                let length = u64::from(piece_bytes) - over;
                files.push(NewFile {
                    path: "".into(),
                    length,
                    padding: true,
                    ..NewFile::default()
                });
                total += length;
            }
            if total > PIECES_MAX * u64::from(piece_bytes) {
                break;
            }
        }
        Self::of(id, piece_bytes, files, rng)
    }

    /// One file of this size.
    pub fn plain(id: u32, bytes: u64, piece_bytes: u32, rng: &mut Rng) -> SimTorrent {
        Self::of_files(id, piece_bytes, &[("content", bytes)], rng)
    }

    /// Files of these names and sizes.
    pub fn of_files(id: u32, piece_bytes: u32, files: &[(&str, u64)], rng: &mut Rng) -> SimTorrent {
        let file = |&(path, length): &(&str, u64)| {
            let path = path.into();
            NewFile { path, length, ..NewFile::default() }
        };
        Self::of(id, piece_bytes, files.iter().map(file).collect(), rng)
    }

    fn of(id: u32, piece_bytes: u32, files: Vec<NewFile>, rng: &mut Rng) -> SimTorrent {
        let layout = Layout::new(piece_bytes, files).expect("sizes within the limits");
        let seed = rng.draw();
        let mut hashes = Vec::new();
        for piece in 0..layout.piece_count() {
            let piece = PieceIndex(piece);
            let mut bytes = vec![0; layout.piece_length(piece) as usize];
            fill(&layout, seed, layout.piece_offset(piece), &mut bytes);
            hashes.extend_from_slice(&sha1_many(&[&bytes])[0]);
        }
        let name = format!("torrent {id}");
        let comment = rng.between(1, 40_000) as usize;
        let info = info(&layout, &name, &hashes, comment);
        let metainfo = Metainfo::from_info(&info).expect("a good info dictionary");
        assert_eq!(metainfo.info.layout, layout, "the layout survives its own metainfo");
        SimTorrent {
            id: TorrentId(id),
            seed,
            info_hash: metainfo.info_hash,
            layout,
            piece_hashes: metainfo.info.piece_hashes,
            raw_info: metainfo.raw_info,
            base: PathBuf::from(format!("/srv/{name}")),
            nodes: Vec::new(),
        }
    }

    /// The torrent's bytes from `offset` on; padding is zeros.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        fill(&self.layout, self.seed, offset, out);
    }

    /// The first index at which `bytes` are not the torrent's from `offset` on.
    pub fn differs(&self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let mut done = 0;
        for segment in self.layout.segments(offset, bytes.len() as u64) {
            let part = &bytes[done..done + segment.length as usize];
            let found = if segment.padding {
                part.iter().position(|&byte| byte != 0)
            } else {
                rng::differs(self.seed, offset + done as u64, part)
            };
            if let Some(at) = found {
                return Some(done + at);
            }
            done += segment.length as usize;
        }
        None
    }

    /// Writes the files below the directory that stands for `/`.
    pub fn write(&mut self, world: &World, root: DirectoryId) {
        for file in &self.layout.files {
            let node = (!file.padding).then(|| {
                let path = self.base.join(&*file.path);
                let path = path.to_str().expect("made of ASCII").trim_start_matches('/').to_owned();
                let content = Content::Generated { seed: self.seed, base: file.offset };
                world.write_file(root, &path, file.length, content)
            });
            self.nodes.push(node);
        }
    }

    /// The path of a file below the directory that stands for `/`.
    pub fn path(&self, file: usize) -> String {
        let path = self.base.join(&*self.layout.files[file].path);
        path.to_str().expect("made of ASCII").trim_start_matches('/').to_owned()
    }

    /// The torrent's folder below the directory that stands for `/`.
    pub fn folder(&self) -> String {
        let base = self.base.to_str().expect("made of ASCII");
        base.trim_start_matches('/').to_owned()
    }

    pub fn shared(&self, shards: usize) -> Arc<Shared> {
        let shared = Shared::new(self.id, self.info_hash, self.layout.piece_count()).over(shards);
        // Offered to everybody; nobody here speaks it.
        shared.exchange.store(true, std::sync::atomic::Ordering::Relaxed);
        shared.set_phase(Phase::Active);
        Arc::new(shared)
    }

    pub fn contents(&self, direct_io: bool) -> Arc<Contents> {
        Arc::new(Contents {
            layout: self.layout.clone(),
            piece_hashes: self.piece_hashes.clone(),
            raw_info: self.raw_info.clone(),
            private: false,
            base: self.base.clone(),
            base_is_file: false,
            places: Default::default(),
            stamps: Box::new([]),
            direct_io,
            writing: None,
        })
    }
}

fn fill(layout: &Layout, seed: u64, offset: u64, out: &mut [u8]) {
    let mut done = 0;
    for segment in layout.segments(offset, out.len() as u64) {
        let part = &mut out[done..done + segment.length as usize];
        if segment.padding {
            part.fill(0);
        } else {
            rng::fill(seed, offset + done as u64, part);
        }
        done += segment.length as usize;
    }
    assert_eq!(done, out.len(), "a range inside the torrent");
}

/// An info dictionary, with a comment of some length so that its size varies.
fn info(layout: &Layout, name: &str, hashes: &[u8], comment: usize) -> Vec<u8> {
    let mut out = b"d7:comment".to_vec();
    out.extend_from_slice(format!("{comment}:").as_bytes());
    out.resize(out.len() + comment, b'x');
    out.extend_from_slice(b"5:filesl");
    for (n, file) in layout.files.iter().enumerate() {
        let attr = if file.padding { "4:attr1:p" } else { "" };
        out.extend_from_slice(format!("d{attr}6:lengthi{}e4:pathl", file.length).as_bytes());
        let padding = format!(".pad/{n}");
        let path = if file.padding { &padding } else { &*file.path };
        for part in path.split('/') {
            out.extend_from_slice(format!("{}:{part}", part.len()).as_bytes());
        }
        out.extend_from_slice(b"ee");
    }
    let piece_bytes = layout.piece_bytes;
    let middle = format!("e4:name{}:{name}12:piece lengthi{piece_bytes}e6:pieces", name.len());
    out.extend_from_slice(middle.as_bytes());
    out.extend_from_slice(format!("{}:", hashes.len()).as_bytes());
    out.extend_from_slice(hashes);
    out.push(b'e');
    out
}
