//! `remove`: what a command added goes, for good, and with its content if that is wished.
//!
//! Owns: the order of it: peers and trackers, the store (synced), content, the .torrent.
//! Never: decides which files may go (download/delete.rs). Flow: registry -> store -> blocking ->
//! reply.

use seedring_proto::units::InfoHash;

use super::{Answer, Done, Reply, by_prefix, reply};
use crate::{
    engine::{
        Engine, Note,
        download::{delete, places, prepare::torrent_file, root},
        prepare::{Place, read_torrent},
    },
    plan::Origin,
    state::Moving,
};

impl Engine {
    pub(super) async fn remove_added(&mut self, which: &str, delete_content: bool, answer: Answer) {
        let (hash, origin, name) = match self.removable(which) {
            Ok(found) => found,
            Err(why) => return reply::<()>(answer, Err(why)),
        };
        let Some(row) = self.known.download_of(&hash) else {
            return reply::<()>(answer, Err(format!("{name} is being removed already")));
        };
        if matches!(row.moving, Moving::Renaming | Moving::Placing) {
            let why = format!("{name} is being moved just now; try again when it is there");
            return reply::<()>(answer, Err(why));
        }
        if let Some(id) = self.id_of(&hash) {
            self.remove(id).await;
        }
        self.pending.drop_origin(&origin);
        self.known.forget(&hash);
        self.store.forget(hash);
        let flush = self.store.flush_later();
        let path = torrent_file(&self.known.state_dir, &hash);
        let others: Vec<Place> = match delete_content {
            true => self.torrents.iter().map(|torrent| torrent.place.clone()).collect(),
            false => Vec::new(),
        };
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let mut done = Reply { info_hash: hash.to_string(), name, notes: Vec::new() };
            if let Err(why) = flush.wait() {
                let why = format!(
                    "removed, but not for good: {why}. It comes back with a restart unless the \
                     state can be saved before; its content was left as it is"
                );
                return reply::<()>(answer, Err(why));
            }
            if let Ok(root) = root::check(&row.folder, &row.root) {
                let _ = places::drop_blocks(&root, &hash);
            }
            if delete_content {
                match read_torrent(&path) {
                    Ok(metainfo) => match delete::content(&row, &metainfo, &others) {
                        Ok(deleted) => {
                            done.notes.push(format!("{} files deleted", deleted.files));
                            let kept = deleted.kept.iter().map(|kept| format!("kept {kept}"));
                            done.notes.extend(kept);
                        }
                        Err(why) => done.notes.push(format!("content not deleted: {why}")),
                    },
                    // A magnet without metadata has no content.
                    Err(_) => done.notes.push(String::from("there was no content yet")),
                }
            }
            reply(answer, Ok(done));
            let _ = notes.send(Note::Command(Box::new(Done::Forgotten(hash))));
        });
    }

    /// What a command added, in the registry or on its way into it.
    fn removable(&self, which: &str) -> Result<(InfoHash, Origin, String), String> {
        let id = match self.find(which) {
            Ok(id) => id,
            Err(why) => {
                let added = self.pending.added();
                let rows = added.iter().filter_map(|wanted| match &wanted.origin {
                    Origin::Added { info_hash, .. } => {
                        Some((*info_hash, self.known.download_of(info_hash)?))
                    }
                    _ => None,
                });
                let rows = rows.collect();
                let (hash, _) = by_prefix(&rows, which).ok_or(why)?;
                let of_hash = |origin: &Origin| match origin {
                    Origin::Added { info_hash, .. } => info_hash == hash,
                    _ => false,
                };
                let wanted = added.iter().find(|wanted| of_hash(&wanted.origin));
                let wanted = wanted.ok_or("it has just been admitted; try again")?;
                return Ok((*hash, wanted.origin.clone(), hash.to_string()));
            }
        };
        let torrent = self.torrents.get(id).ok_or("it is gone already")?;
        match &torrent.wanted.origin {
            origin @ Origin::Added { .. } => {
                Ok((torrent.info_hash(), origin.clone(), torrent.name.clone()))
            }
            origin => {
                let line = torrent.wanted.line;
                let file = self.config.file.as_ref().map_or_else(
                    || String::from("the command line that started the engine"),
                    |file| format!("{}, line {line}", file.display()),
                );
                Err(format!(
                    "{} ({}) comes from {file}: take it out there and reload; a command can only \
                     pause it",
                    torrent.name,
                    origin.path().display()
                ))
            }
        }
    }

    /// The store knows nothing of it: its .torrent goes, unless it was added again meanwhile or a
    /// folder's torrent is the same one.
    pub(super) fn forgotten(&self, hash: &InfoHash) {
        let needed = self.known.download_of(hash).is_some() || self.known.is_made(hash);
        if !needed {
            let _ = std::fs::remove_file(torrent_file(&self.known.state_dir, hash));
        }
    }
}
