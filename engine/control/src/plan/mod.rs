//! What should be against what is: pure, so that a plan can be looked at before it is carried out.
//!
//! Owns: `Wanted` (a torrent as the configuration asks for it), `reconcile`.
//! Never: files, sockets, time. Flow: configuration -> wanted -> reconcile(wanted, known) ->
//! actions.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use seedring_proto::units::InfoHash;

use crate::config::model::{DownloadOptions, Folder, TorrentLimits, TrackerRef, Trackers, Verify};

/// A torrent that the configuration asks for, before anything of it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub origin: Origin,
    pub trackers: Trackers,
    pub verify: Verify,
    pub limits: TorrentLimits,
    /// Whether peers tell each other of peers; `None`: as the engine does.
    pub pex: Option<bool>,
    /// Line of its entry in the configuration; 0: none.
    pub line: u32,
}

/// Where a torrent comes from: what makes two entries the same torrent over a reload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A .torrent file, and the folder that holds its content.
    File { torrent: PathBuf, content: PathBuf },
    /// Content for which the engine makes the torrent.
    Folder(Folder),
    /// Content that is downloaded into `folder`.
    Download { from: From, folder: PathBuf, options: DownloadOptions },
    /// Added by a command; the state store has all the rest. `name` is for messages.
    Added { info_hash: InfoHash, name: String },
}

/// What a download begins with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum From {
    Torrent(PathBuf),
    Magnet(String),
}

impl Origin {
    /// What names it in messages and over reloads.
    pub fn path(&self) -> &Path {
        match self {
            Origin::File { torrent, .. } => torrent,
            Origin::Folder(folder) => &folder.path,
            Origin::Download { from: From::Torrent(torrent), .. } => torrent,
            Origin::Download { from: From::Magnet(link), .. } => Path::new(link),
            Origin::Added { name, .. } => Path::new(name),
        }
    }

    /// Whether it came by a command: the configuration says nothing about it.
    pub fn is_added(&self) -> bool {
        matches!(self, Origin::Added { .. })
    }
}

/// What a reload has to do. Anything not named stays as it is, connections included.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub add: Vec<Wanted>,
    pub remove: Vec<InfoHash>,
    /// Limits, trackers or peer exchange differ; content does not.
    pub change: Vec<(InfoHash, Wanted)>,
    /// Of `remove`, those whose path is not wanted any more in any form.
    pub lost: usize,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty() && self.change.is_empty()
    }
}

/// The difference between what is wanted and what is known. `known`: each torrent with the
/// `Wanted` it was added for.
pub fn reconcile(wanted: &[Wanted], known: &HashMap<InfoHash, Wanted>) -> Plan {
    let by_origin: HashMap<_, _> = known.iter().map(|(h, w)| (&w.origin, (h, w))).collect();
    let mut plan = Plan::default();
    let mut kept = HashSet::new();
    for item in wanted {
        match by_origin.get(&item.origin) {
            Some((hash, known)) if known.verify == item.verify => {
                let fresh = kept.insert(**hash);
                let same = known.trackers == item.trackers
                    && known.limits == item.limits
                    && known.pex == item.pex;
                // Listed twice: the first entry counts.
                if fresh && !same {
                    plan.change.push((**hash, item.clone()));
                }
            }
            // Other options (piece length, content folder, verification): taken up anew.
            _ => plan.add.push(item.clone()),
        }
    }
    let paths: HashSet<&Path> = wanted.iter().map(|item| item.origin.path()).collect();
    // What a command added is not the configuration's to remove.
    let listed = known.iter().filter(|(_, wanted)| !wanted.origin.is_added());
    let gone = listed.filter(|(hash, _)| !kept.contains(*hash));
    plan.lost = gone.clone().filter(|(_, wanted)| !paths.contains(wanted.origin.path())).count();
    plan.remove = gone.map(|(hash, _)| *hash).collect();
    plan.remove.sort_unstable();
    plan
}

/// A reload that would remove more than this many of `known` torrents is refused: an unmounted
/// folder or an empty glob must not empty a seedbox.
pub fn removals_max(known: usize) -> usize {
    (known / 10).max(10)
}

/// Whether all references of a tracker list can be used.
pub fn uses_embedded(trackers: &Trackers) -> bool {
    match trackers {
        Trackers::Keep => false,
        Trackers::Tiers(tiers) => tiers.iter().flatten().any(|t| *t == TrackerRef::Embedded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str) -> Wanted {
        Wanted {
            origin: Origin::File { torrent: name.into(), content: "/srv".into() },
            trackers: Trackers::Keep,
            verify: Verify::Quick,
            limits: TorrentLimits::default(),
            pex: None,
            line: 1,
        }
    }

    fn known(names: &[&str]) -> HashMap<InfoHash, Wanted> {
        let row = |(n, name): (usize, &&str)| (InfoHash([n as u8; 20]), wanted(name));
        names.iter().enumerate().map(row).collect()
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan() {
        let plan = reconcile(&[wanted("b"), wanted("a")], &known(&["a", "b"]));
        assert!(plan.is_empty(), "{plan:?}");
    }

    #[test]
    fn only_what_differs_is_touched() {
        let mut changed = wanted("b");
        changed.limits.connections = Some(3);
        changed.line = 9;
        let plan = reconcile(&[wanted("c"), changed.clone()], &known(&["a", "b"]));
        assert_eq!(plan.add, [wanted("c")]);
        assert_eq!(plan.remove, [InfoHash([0; 20])]);
        assert_eq!(plan.change, [(InfoHash([1; 20]), changed)]);
        assert_eq!(plan.lost, 1);
    }

    #[test]
    fn what_a_command_added_stays_over_a_reload() {
        let mut added = wanted("");
        added.origin = Origin::Added { info_hash: InfoHash([7; 20]), name: "x".into() };
        let mut known = known(&["a"]);
        known.insert(InfoHash([7; 20]), added);
        let plan = reconcile(&[], &known);
        assert_eq!((plan.remove, plan.lost), (vec![InfoHash([0; 20])], 1));
    }

    #[test]
    fn other_content_makes_another_torrent() {
        let mut moved = wanted("a");
        moved.origin = Origin::File { torrent: "a".into(), content: "/mnt".into() };
        let plan = reconcile(std::slice::from_ref(&moved), &known(&["a"]));
        assert_eq!((plan.add.len(), plan.remove.len(), plan.lost), (1, 1, 0));
    }

    #[test]
    fn another_verification_takes_a_torrent_up_anew() {
        let mut trusted = wanted("a");
        trusted.verify = Verify::Trust;
        let plan = reconcile(&[trusted.clone(), wanted("b")], &known(&["a", "b", "c"]));
        assert_eq!((plan.add, plan.remove.len(), plan.lost), (vec![trusted], 2, 1));
    }

    #[test]
    fn two_torrents_of_one_folder_are_two() {
        let folder = |name: &str| {
            let mut item = wanted("");
            item.origin = Origin::Folder(Folder {
                path: "/srv/f".into(),
                name: name.into(),
                piece_length: None,
                private: false,
                source: None,
                comment: None,
                web_seeds: Vec::new(),
            });
            item
        };
        let both = [folder("one"), folder("two")];
        let known = HashMap::from([
            (InfoHash([1; 20]), both[0].clone()),
            (InfoHash([2; 20]), both[1].clone()),
        ]);
        assert!(reconcile(&both, &known).is_empty());
    }

    #[test]
    fn a_mass_removal_is_more_than_a_tenth_but_small_sets_may_change_freely() {
        assert_eq!((removals_max(5), removals_max(1_000)), (10, 100));
    }
}
