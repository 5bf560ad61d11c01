//! Owns: making a .torrent: order of the files, piece length, and the bytes of the dictionary.
//! Never: reads content: sizes come in, the plan says what to hash, hashes come back.
//! Flow: control walks a folder, hashes the plan's pieces, and has `finish` write the torrent.
//!
//! Files are ordered by the bytes of their paths, as libtorrent orders its canonical files, and no
//! padding is added, as for its `v1_only`; so the info-hash is the one that libtorrent 2.1
//! computes for the same files in that order, with the same piece length and executable bits.

use crate::bencode::Encoder;
use crate::layout::{Attributes, Layout, LayoutError, NewFile};
use crate::limits::{DIRECTORY_DEPTH_MAX, PIECE_BYTES_MAX};
use crate::sanitise;

/// BEP 52's least, and a request's size.
pub const PIECE_BYTES_MIN: u32 = 16 << 10;
/// Greater ones are made only where they are asked for.
pub const PIECE_BYTES_CHOSEN_MAX: u32 = 16 << 20;
/// A chosen piece length gives at most so many pieces, and more than half of it.
const PIECES_CHOSEN_MAX: u64 = 2000;

/// What a torrent is to be made of. Every field may be set after [`Builder::new`].
#[derive(Clone, Debug)]
pub struct Builder {
    /// Of the file, or of the folder that holds the files.
    pub name: String,
    pub source_files: SourceFiles,
    /// A power of two; chosen by [`choose_piece_bytes`] where it is `None`.
    pub piece_bytes: Option<u32>,
    pub order: Order,
    /// BEP 27.
    pub private: bool,
    /// Part of the info-hash.
    pub source: Option<String>,
    pub comment: Option<String>,
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
    /// Tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    /// BEP 19.
    pub web_seeds: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum SourceFiles {
    /// The torrent is one file, named as the torrent.
    File {
        length: u64,
        executable: bool,
    },
    Folder(Vec<SourceFile>),
}

#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Components, relative to the folder.
    pub path: Vec<String>,
    pub length: u64,
    /// The owner may execute it; libtorrent writes that down, so it is part of the info-hash.
    pub executable: bool,
}

/// The order of the files in the torrent, which the info-hash depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// By the bytes of the paths, components joined with `/`.
    #[default]
    Sorted,
    AsGiven,
}

/// Why no torrent can be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "'{name}' cannot be a name in a torrent: other clients would store it as '{safe}'; rename \
         it first"
    )]
    Name { name: String, safe: String },
    #[error("'{0}' is there twice, or is a file and a folder")]
    Collision(String),
    #[error("'{0}' is more than {DIRECTORY_DEPTH_MAX} folders deep")]
    TooDeep(String),
    #[error("a file in the folder has no path")]
    NoPath,
    #[error(
        "a piece length of {0} bytes is not supported: a power of two from {PIECE_BYTES_MIN} to \
         {PIECE_BYTES_MAX} is"
    )]
    PieceBytes(u32),
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Builder {
    /// Public, no trackers, piece length chosen.
    pub fn new(name: impl Into<String>, source_files: SourceFiles) -> Self {
        Self {
            name: name.into(),
            source_files,
            piece_bytes: None,
            order: Order::default(),
            private: false,
            source: None,
            comment: None,
            created_by: None,
            creation_date: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
        }
    }

    /// Orders and places the files. What is planned is what [`crate::metainfo::Metainfo`] reads
    /// out of the finished torrent.
    ///
    /// # Errors
    /// Names that would be others once sanitised, and sizes outside of the crate's limits.
    pub fn plan(mut self) -> Result<Plan, Error> {
        check_name(&self.name)?;
        let source_files = std::mem::replace(
            &mut self.source_files,
            SourceFiles::File { length: 0, executable: false },
        );
        let (files, single_file) = match source_files {
            SourceFiles::File { length, executable } => {
                let attributes = Attributes { executable, ..Attributes::default() };
                let path = self.name.as_str().into();
                (vec![NewFile { path, length, padding: false, attributes }], true)
            }
            SourceFiles::Folder(files) => (new_files(files, self.order)?, false),
        };
        let total_bytes = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.length));
        let piece_bytes = self.piece_bytes.unwrap_or_else(|| choose_piece_bytes(total_bytes));
        let is_supported = piece_bytes.is_power_of_two()
            && (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes);
        if !is_supported {
            return Err(Error::PieceBytes(piece_bytes));
        }
        let layout = Layout::new(piece_bytes, files)?;
        Ok(Plan { layout, single_file, builder: self })
    }
}

/// The least power of two that gives at most 2,000 pieces, so 1,001 to 2,000 of them; within
/// 16 KiB (up to 31 MiB of content) and 16 MiB (from 15.6 GiB on). 64 KiB go with 63 to 125 MiB,
/// 256 KiB with 250 to 500 MiB, 1 MiB with 1 to 2 GiB, 4 MiB with 4 to 8 GiB.
pub fn choose_piece_bytes(total_bytes: u64) -> u32 {
    let mut piece_bytes = PIECE_BYTES_MIN;
    while piece_bytes < PIECE_BYTES_CHOSEN_MAX
        && total_bytes.div_ceil(u64::from(piece_bytes)) > PIECES_CHOSEN_MAX
    {
        piece_bytes *= 2;
    }
    piece_bytes
}

fn new_files(files: Vec<SourceFile>, order: Order) -> Result<Vec<NewFile>, Error> {
    let mut planned = Vec::with_capacity(files.len());
    for SourceFile { path, length, executable } in files {
        if path.is_empty() {
            return Err(Error::NoPath);
        }
        if path.len() > DIRECTORY_DEPTH_MAX {
            return Err(Error::TooDeep(path.join("/")));
        }
        path.iter().try_for_each(|component| check_name(component))?;
        let attributes = Attributes { executable, ..Attributes::default() };
        let path = path.join("/").into_boxed_str();
        planned.push(NewFile { path, length, padding: false, attributes });
    }
    if order == Order::Sorted {
        planned.sort_by(|a, b| a.path.cmp(&b.path));
    }
    let mut paths: Vec<Box<str>> = planned.iter().map(|file| file.path.clone()).collect();
    if sanitise::resolve_collisions(&mut paths) > 0 {
        let changed = planned.iter().zip(&paths).find(|(file, path)| file.path != **path);
        return Err(Error::Collision(changed.map_or("", |(file, _)| &*file.path).to_owned()));
    }
    Ok(planned)
}

fn check_name(name: &str) -> Result<(), Error> {
    let safe = sanitise::component(name.as_bytes());
    if safe == name {
        Ok(())
    } else {
        Err(Error::Name { name: sanitise::text(name.as_bytes()), safe })
    }
}

/// What is to be hashed, and then written.
#[derive(Clone, Debug)]
pub struct Plan {
    pub layout: Layout,
    /// The torrent is one file and no folder.
    pub single_file: bool,
    builder: Builder,
}

impl Plan {
    /// The .torrent file, given the SHA-1 of every piece in order, 20 bytes each.
    ///
    /// # Panics
    /// Where there is not one hash a piece.
    pub fn finish(&self, piece_hashes: &[u8]) -> Vec<u8> {
        let expected = self.layout.piece_count() as usize * 20;
        assert_eq!(piece_hashes.len(), expected, "there is one hash a piece");
        let Builder { trackers, web_seeds, .. } = &self.builder;
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.begin_dict();
        if let Some(first) = trackers.iter().flatten().next() {
            encoder.key("announce").str(first);
        }
        if trackers.iter().flatten().count() > 1 {
            encoder.key("announce-list").begin_list();
            for tier in trackers.iter().filter(|tier| !tier.is_empty()) {
                strings(encoder.begin_list(), tier);
                encoder.end();
            }
            encoder.end();
        }
        optional(&mut encoder, "comment", &self.builder.comment);
        optional(&mut encoder, "created by", &self.builder.created_by);
        if let Some(date) = self.builder.creation_date {
            encoder.key("creation date").int(date);
        }
        self.info(encoder.key("info"), piece_hashes);
        match web_seeds.as_slice() {
            [] => {}
            [alone] => _ = encoder.key("url-list").str(alone),
            several => {
                strings(encoder.key("url-list").begin_list(), several);
                encoder.end();
            }
        }
        encoder.end().finish();
        out
    }

    fn info(&self, encoder: &mut Encoder<'_>, piece_hashes: &[u8]) {
        encoder.begin_dict();
        if self.single_file {
            let file = &self.layout.files[0];
            if file.attributes.executable {
                encoder.key("attr").str("x");
            }
            encoder.key("length").int(file.length as i64);
        } else {
            encoder.key("files").begin_list();
            for file in &self.layout.files {
                encoder.begin_dict();
                if file.attributes.executable {
                    encoder.key("attr").str("x");
                }
                encoder.key("length").int(file.length as i64).key("path").begin_list();
                file.path.split('/').for_each(|component| _ = encoder.str(component));
                encoder.end().end();
            }
            encoder.end();
        }
        encoder.key("name").str(&self.builder.name);
        encoder.key("piece length").int(i64::from(self.layout.piece_bytes));
        encoder.key("pieces").bytes(piece_hashes);
        if self.builder.private {
            encoder.key("private").int(1);
        }
        optional(encoder, "source", &self.builder.source);
        encoder.end();
    }
}

fn strings(encoder: &mut Encoder<'_>, strings: &[String]) {
    strings.iter().for_each(|string| _ = encoder.str(string));
}

fn optional(encoder: &mut Encoder<'_>, key: &str, text: &Option<String>) {
    if let Some(text) = text {
        encoder.key(key).str(text);
    }
}

#[cfg(test)]
mod tests;
