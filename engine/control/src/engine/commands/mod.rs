//! What users ask of the running engine: torrents added and removed, paused, hashed again, files
//! chosen.
//!
//! Owns: these actions, their replies, and the promise that goes with a reply (D1): what it
//! acknowledges is on disk.
//! Never: how the request came (the control socket today). Flow: `Action` -> blocking part beside
//! the loop -> `Done` -> registry and store -> flushed -> reply.

mod add;
mod files;
mod remove;

use std::{collections::HashMap, path::PathBuf, time::Instant};

use seedring_proto::units::InfoHash;
use seedring_shard::{
    Command,
    torrent::{Phase, TorrentId},
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub(super) use self::add::Unanswered;
pub use self::files::{FileReport, FilesReport};
use super::{
    Engine,
    look::NO_STAMP,
    torrents::{Recheck, State},
};
use crate::{
    config::model::{Preallocate, Storage, TorrentLimits, Trackers, Verify},
    plan::{Origin, Wanted},
    state::{Download, Loaded},
};

/// One thing to do. A `torrent` is an info-hash, the beginning of one, or a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Add(AddTorrent),
    Remove {
        torrent: String,
        delete_content: bool,
    },
    Pause {
        torrent: String,
    },
    Resume {
        torrent: String,
    },
    Recheck {
        torrent: String,
    },
    /// The files of a torrent; with `priority`, set for those that are named (number or pattern).
    Files {
        torrent: String,
        priority: Option<u8>,
        files: Vec<String>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddTorrent {
    pub from: AddFrom,
    /// The save folder, absolute.
    pub folder: PathBuf,
    pub paused: bool,
    pub sequential: bool,
    pub only: Vec<String>,
    pub labels: Vec<String>,
    #[serde(default)]
    pub storage: StorageChoice,
}

/// How it is kept on disk; what is left out is as the configuration has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageChoice {
    pub preallocate: Option<Preallocate>,
    /// Absolute, as all paths here.
    pub incomplete_folder: Option<PathBuf>,
    pub incomplete_suffix: Option<String>,
    pub move_completed_to: Option<PathBuf>,
}

impl StorageChoice {
    pub fn over(self, all: &Storage) -> Storage {
        Storage {
            preallocate: self.preallocate.unwrap_or(all.preallocate),
            incomplete_folder: self.incomplete_folder.or_else(|| all.incomplete_folder.clone()),
            incomplete_suffix: self
                .incomplete_suffix
                .unwrap_or_else(|| all.incomplete_suffix.clone()),
            move_completed_to: self.move_completed_to.or_else(|| all.move_completed_to.clone()),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddFrom {
    /// The bytes of a .torrent file.
    Torrent(#[serde(with = "hex")] Vec<u8>),
    Magnet(String),
}

/// What was done to which torrent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    pub info_hash: String,
    pub name: String,
    /// What the caller may want to know besides.
    #[serde(default)]
    pub notes: Vec<String>,
}

pub(crate) type Answer = oneshot::Sender<Result<String, String>>;

/// What blocking work of a command brings back.
pub(crate) enum Done {
    Parsed(Result<Box<add::Parsed>, String>, Answer),
    Added(InfoHash, String, Result<(), String>, Answer),
    /// The store has forgotten it: its .torrent may go.
    Forgotten(InfoHash),
    Files(files::Read),
}

/// What commands added before this start, in that order.
pub(super) fn added_before(loaded: &Loaded) -> Vec<Wanted> {
    let by_command = loaded.downloads.iter().filter(|(_, row)| row.by_command);
    let mut rows: Vec<(&InfoHash, &Download)> = by_command.collect();
    rows.sort_by_key(|(hash, row)| (row.added_at, **hash));
    let name = |hash: &InfoHash| loaded.torrents.get(hash).map(|record| record.name.clone());
    rows.iter().map(|(hash, _)| wanted(**hash, name(hash).unwrap_or_default())).collect()
}

fn wanted(info_hash: InfoHash, name: String) -> Wanted {
    Wanted {
        origin: Origin::Added { info_hash, name },
        trackers: Trackers::Keep,
        verify: Verify::Full,
        limits: TorrentLimits::default(),
        pex: None,
        line: 0,
    }
}

fn reply<T: Serialize>(answer: Answer, result: Result<T, String>) {
    let json = result.and_then(|doc| serde_json::to_string(&doc).map_err(|e| e.to_string()));
    let _ = answer.send(json);
}

impl Engine {
    pub(super) async fn act(&mut self, action: Action, answer: Answer) {
        let changed = match action {
            Action::Add(add) => return self.add(add, answer),
            Action::Remove { torrent, delete_content } => {
                return self.remove_added(&torrent, delete_content, answer).await;
            }
            Action::Files { torrent, priority, files } => {
                return self.files(&torrent, priority, files, answer);
            }
            Action::Pause { torrent } => match self.find(&torrent) {
                Ok(id) => self.pause(id).await.map(|()| id),
                Err(why) => Err(why),
            },
            Action::Resume { torrent } => match self.find(&torrent) {
                Ok(id) => self.resume(id).await.map(|()| id),
                Err(why) => Err(why),
            },
            Action::Recheck { torrent } => self.find(&torrent).and_then(|id| {
                self.recheck(id)?;
                Ok(id)
            }),
        };
        match changed {
            Ok(id) => self.acknowledge(id, answer),
            Err(why) => reply::<()>(answer, Err(why)),
        }
    }

    pub(super) async fn command_done(&mut self, done: Done) {
        match done {
            Done::Parsed(parsed, answer) => self.parsed(parsed, answer),
            Done::Added(hash, name, kept, answer) => self.added(hash, name, kept, answer),
            Done::Forgotten(hash) => self.forgotten(&hash),
            Done::Files(read) => self.files_read(read),
        }
    }

    /// Replies when what was changed is on disk.
    fn acknowledge(&mut self, id: TorrentId, answer: Answer) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (hash, name) = (torrent.info_hash(), torrent.name.clone());
        if let Some(record) = torrent.record_if_changed() {
            self.store.save(hash, record);
        }
        let done = Reply { info_hash: hash.to_string(), name, notes: Vec::new() };
        self.reply_when_saved(done, answer);
    }

    fn reply_when_saved<T: Serialize + Send + 'static>(&self, done: T, answer: Answer) {
        let flush = self.store.flush_later();
        tokio::task::spawn_blocking(move || {
            let saved = flush.wait();
            reply(
                answer,
                saved
                    .map(|()| done)
                    .map_err(|why| format!("done, but not saved: {why}; a restart may undo it")),
            );
        });
    }

    /// No peers, no trackers, no open file, until it is resumed.
    async fn pause(&mut self, id: TorrentId) -> Result<(), String> {
        let Some(torrent) = self.torrents.get_mut(id) else { return Ok(()) };
        if torrent.is_paused() {
            return Ok(());
        }
        let announced = std::mem::replace(&mut torrent.announced, false);
        self.set_aside(id, State::Paused, Phase::Paused);
        self.looking.remove(&id);
        self.rehash.remove(&id);
        let Some(torrent) = self.torrents.get(id) else { return Ok(()) };
        if announced {
            self.say_goodbye(torrent).await;
            // Trackers hear of it anew, so with totals from there on.
            self.torrents.reset_totals(id);
        }
        self.tell_when_ready();
        Ok(())
    }

    async fn resume(&mut self, id: TorrentId) -> Result<(), String> {
        let Some(torrent) = self.torrents.get_mut(id) else { return Ok(()) };
        if !torrent.is_paused() {
            return Ok(());
        }
        torrent.on_trackers = false;
        torrent.touch();
        if torrent.shared.pieces.piece_count() == 0 {
            self.begin_metadata(id).await;
        } else {
            self.look_anew(id, "its files are looked at");
        }
        Ok(())
    }

    /// All of its content that is there is hashed, whatever is known of it.
    fn recheck(&mut self, id: TorrentId) -> Result<(), String> {
        let Some(torrent) = self.torrents.get_mut(id) else { return Ok(()) };
        match torrent.state {
            State::Paused => return Err(format!("{} is paused; resume it first", torrent.name)),
            State::Metadata => {
                return Err(format!("{}: what its files are is not known yet", torrent.name));
            }
            _ => {}
        }
        torrent.recheck = Recheck::Asked;
        torrent.stamps.fill(Some(NO_STAMP));
        let hash = torrent.info_hash();
        if let Some(download) = &mut torrent.download
            && let Some(completed) = download.row.completed_at.take()
        {
            download.completed_before = Some(completed);
            download.fetches = false;
            let row = download.row.clone();
            self.save_download(hash, &row);
        }
        self.look_anew(id, "all of it is hashed again");
        Ok(())
    }

    /// Out of the shards, and taken up again from what its files are now.
    fn look_anew(&mut self, id: TorrentId, why: &str) {
        self.set_aside(id, State::Waiting(why.to_owned()), Phase::Parked);
        self.looking.insert(id, Instant::now());
        self.look_again();
    }

    fn set_aside(&mut self, id: TorrentId, state: State, phase: Phase) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.state = state;
        torrent.set_aside += 1;
        torrent.verifying = Default::default();
        torrent.awaits_contents = false;
        (torrent.hopeless, torrent.troubles) = (false, 0);
        torrent.shared.set_phase(phase);
        torrent.shared.contents.store(None);
        torrent.touch();
        self.shards.send_all(|| Command::Remove(id));
    }
}

/// What is kept of torrents by their hash, for `remove` of one that never came into the registry.
pub(super) fn by_prefix<'a>(
    rows: &'a HashMap<InfoHash, Download>,
    which: &str,
) -> Option<(&'a InfoHash, &'a Download)> {
    let lower = which.to_ascii_lowercase();
    let mut found = rows.iter().filter(|(hash, _)| hash.to_string().starts_with(&lower));
    let only = found.next()?;
    (lower.len() >= 4 && found.next().is_none()).then_some(only)
}

/// Bytes as hexadecimal digits, which JSON can hold.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>();
        bytes.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_file_goes_through_json_byte_by_byte() {
        let bytes: Vec<u8> = (0..=255).collect();
        let json = serde_json::to_string(&AddFrom::Torrent(bytes.clone())).unwrap();
        let AddFrom::Torrent(back) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert_eq!(back, bytes);
        for bad in ["{\"torrent\":\"abc\"}", "{\"torrent\":\"zz\"}"] {
            assert!(serde_json::from_str::<AddFrom>(bad).is_err(), "{bad}");
        }
    }
}
