//! `files`: what a torrent holds, how much of it is there, and which of it is wanted.
//!
//! Owns: the listing, and changes of priorities. Never: reads the .torrent on the loop.
//! Flow: .torrent read (blocking) -> bits and rows of the registry -> reply; a change reaches the
//! running download at once, and the store before the reply.

use seedring_proto::{
    metainfo::Metainfo,
    units::{FileIndex, PieceIndex},
};
use seedring_shard::{
    Command,
    torrent::{Contents, FilePlace, TorrentId},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Done, reply};
use crate::engine::{
    Engine, Note,
    download::{look::had_bytes, select},
    prepare::read_torrent,
};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FilesReport {
    pub info_hash: String,
    pub name: String,
    pub files: Vec<FileReport>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FileReport {
    /// The number by which `--priority` may name it.
    pub index: usize,
    pub path: String,
    pub length: u64,
    pub had_bytes: u64,
    /// Where it lies, if that is not under its own name: `aside`, or that name.
    #[serde(default)]
    pub lies: Option<String>,
    /// 0: not wanted. `None`: the torrent is not downloaded.
    pub priority: Option<u8>,
}

/// A .torrent that was read for a listing.
pub(crate) struct Read {
    id: TorrentId,
    metainfo: Result<Box<Metainfo>, String>,
    priority: Option<u8>,
    files: Vec<String>,
    answer: Answer,
}

impl Engine {
    pub(super) fn files(
        &mut self,
        which: &str,
        priority: Option<u8>,
        files: Vec<String>,
        answer: Answer,
    ) {
        let id = match self.find(which) {
            Ok(id) => id,
            Err(why) => return reply::<()>(answer, Err(why)),
        };
        let Some(torrent) = self.torrents.get(id) else { return };
        if torrent.shared.pieces.piece_count() == 0 {
            let why = format!("{}: what its files are is not known yet", torrent.name);
            return reply::<()>(answer, Err(why));
        }
        let path = torrent.place.torrent_file.clone();
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let metainfo = read_torrent(&path).map(Box::new).map_err(|error| error.to_string());
            let read = Done::Files(Read { id, metainfo, priority, files, answer });
            let _ = notes.send(Note::Command(Box::new(read)));
        });
    }

    pub(super) fn files_read(&mut self, read: Read) {
        let Read { id, metainfo, priority, files, answer } = read;
        let listed = metainfo.and_then(|metainfo| {
            if let Some(priority) = priority {
                self.set_priority(id, &metainfo, priority, &files)?;
            }
            self.listing(id, &metainfo).ok_or_else(|| String::from("it is gone"))
        });
        match (listed, priority) {
            (Ok(listed), Some(_)) => self.reply_when_saved(listed, answer),
            (listed, _) => reply(answer, listed),
        }
    }

    fn listing(&self, id: TorrentId, metainfo: &Metainfo) -> Option<FilesReport> {
        let torrent = self.torrents.get(id)?;
        let pieces = &torrent.shared.pieces;
        let mut had = pieces.verified_bitfield();
        if torrent.download.is_none() {
            pieces.write_offered(&mut had);
        }
        let rows = torrent.download.as_ref().map(|download| &download.row.files);
        let contents = torrent.shared.contents.load();
        let layout = &metainfo.info.layout;
        let shown = layout.files.iter().enumerate().filter(|(_, file)| !file.padding);
        let file = |(index, file): (usize, &seedring_proto::layout::File)| FileReport {
            index,
            path: select::path_of(metainfo, index).to_owned(),
            length: file.length,
            had_bytes: had_bytes(metainfo, index, &had),
            lies: contents.as_ref().and_then(|contents| lies(contents, index)),
            priority: rows.and_then(|rows| rows.get(index)).map(|row| row.priority),
        };
        Some(FilesReport {
            info_hash: torrent.info_hash().to_string(),
            name: torrent.name.clone(),
            files: shown.map(file).collect(),
        })
    }

    fn set_priority(
        &mut self,
        id: TorrentId,
        metainfo: &Metainfo,
        priority: u8,
        files: &[String],
    ) -> Result<(), String> {
        let Some(torrent) = self.torrents.get_mut(id) else { return Ok(()) };
        let (hash, name) = (torrent.info_hash(), torrent.name.clone());
        let Some(download) = &mut torrent.download else {
            return Err(format!("{name} is not downloaded: all of its files are seeded"));
        };
        // Which files are made and which lie aside is decided by a look at them.
        let mut other_files = false;
        for file in files {
            for at in named(metainfo, file)? {
                if let Some(row) = download.row.files.get_mut(at) {
                    other_files |= (row.priority > 0) != (priority > 0);
                    row.priority = priority;
                }
            }
        }
        let priorities = select::piece_priorities(&metainfo.info.layout, &download.row.files);
        let pieces = &torrent.shared.pieces;
        let missing = (0..pieces.piece_count())
            .any(|at| priorities[at as usize] > 0 && !pieces.is_verified(PieceIndex(at)));
        let transfer = torrent.shared.download.load_full();
        let torrent_downloads = transfer.is_some();
        let begins_again = transfer.is_none() && missing;
        if begins_again {
            download.row.completed_at = None;
        }
        let (row, paused) = (download.row.clone(), torrent.is_paused());
        if let Some(transfer) = transfer {
            select::set_priorities(&transfer, &priorities);
            self.shards.send_all(|| Command::Look(id));
        }
        self.save_download(hash, &row);
        let look = begins_again || (other_files && torrent_downloads);
        if look && !paused {
            self.look_anew(id, "other files of it are wanted");
        }
        Ok(())
    }
}

fn lies(contents: &Contents, index: usize) -> Option<String> {
    let file = FileIndex(index as u32);
    match contents.places.place(file) {
        FilePlace::Own => None,
        FilePlace::Aside => Some(String::from("aside")),
        FilePlace::Suffixed => {
            let path = contents.path(file);
            path.file_name().map(|name| name.to_string_lossy().into_owned())
        }
    }
}

/// The files that a number, or a pattern, means.
fn named(metainfo: &Metainfo, text: &str) -> Result<Vec<usize>, String> {
    let count = metainfo.info.layout.files.len();
    if let Ok(index) = text.parse::<usize>()
        && index < count
    {
        return Ok(vec![index]);
    }
    let pattern = select::pattern(text)?;
    let found: Vec<usize> =
        (0..count).filter(|at| select::matches(&pattern, metainfo, *at)).collect();
    match found.is_empty() {
        true => Err(format!(
            "\"{text}\" is no file's number and matches none; `seedring files` \
                             lists them"
        )),
        false => Ok(found),
    }
}
