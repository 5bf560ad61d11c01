//! Owns: turning names that strangers chose into names that are safe here, in this one place.
//! Never: depends on anything but its input: the same torrent has the same paths everywhere.
//! Flow: metainfo, magnet links and resume data pass every name and text through it.
//!
//! What it yields follows libtorrent 2.1 where that is safe, so that content which that client
//! stored is found: `/`, `\`, NUL and characters that turn the writing direction are dropped,
//! control characters and bytes that are not UTF-8 become `_`, and what has nothing left, or is
//! `.` or `..`, is `_`. Zero-width joiners stay: Persian and emoji names have them.

use std::collections::BTreeSet;

use crate::limits::{COMPONENT_BYTES_MAX, TEXT_BYTES_MAX};

/// An extension longer than this is not kept when a name is cut.
const EXTENSION_BYTES_MAX: usize = 16;

/// Suffixes tried for one name before the count that is common to the torrent takes over.
const OWN_SUFFIXES_MAX: u32 = 16;

/// One component of a path: never empty, `.` or `..`, no separator, at most 255 bytes of UTF-8.
pub fn component(raw: &[u8]) -> String {
    let mut name = String::with_capacity(raw.len().min(COMPONENT_BYTES_MAX));
    for chunk in raw.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '/' | '\\' | '\0' => {}
                _ if turns_direction(letter) => {}
                _ if letter.is_control() => name.push('_'),
                _ => name.push(letter),
            }
        }
        if !chunk.invalid().is_empty() {
            name.push('_');
        }
    }
    cut(&mut name, COMPONENT_BYTES_MAX);
    if matches!(name.as_str(), "" | "." | "..") {
        name.clear();
        name.push('_');
    }
    name
}

/// Components joined with `/`; `_` where there are none.
pub fn path<'raw>(components: impl IntoIterator<Item = &'raw [u8]>) -> String {
    let mut path = String::new();
    for raw in components {
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(&component(raw));
    }
    if path.is_empty() { component(b"") } else { path }
}

/// Text to show, such as a comment: what could move a terminal's cursor becomes a space.
pub fn text(raw: &[u8]) -> String {
    let mut text = String::new();
    for letter in String::from_utf8_lossy(raw).chars() {
        let shown = if letter.is_control() || turns_direction(letter) { ' ' } else { letter };
        if text.len() + shown.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        text.push(shown);
    }
    text
}

/// Marks, embeddings and isolates, and the byte order mark: they hide a name's true extension.
fn turns_direction(letter: char) -> bool {
    matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
    )
}

/// Shortens to a bound at the boundary of a character, and keeps a short extension.
fn cut(name: &mut String, bytes_max: usize) {
    if name.len() <= bytes_max {
        return;
    }
    let extension = split_extension(name).1.to_owned();
    truncate(name, bytes_max - extension.len());
    name.push_str(&extension);
}

fn truncate(name: &mut String, bytes_max: usize) {
    let mut end = name.len().min(bytes_max);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
}

/// Stem and extension with its dot; no extension where it is long, or would leave no stem.
fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= EXTENSION_BYTES_MAX => name.split_at(dot),
        _ => (name, ""),
    }
}

/// Makes the paths of one torrent differ, and no file's path the folder of another, by giving
/// later ones a number as libtorrent does: `a.txt`, `a.1.txt`. Empty paths are padding, and left
/// alone. Says how many were changed. O(n log n), also where an author wants it to be more.
pub fn resolve_collisions(paths: &mut [Box<str>]) -> u32 {
    let keys = sorted_keys(paths);
    let mut collided: Vec<u32> = Vec::new();
    let mut at = 0;
    while let Some((this, _)) = keys.get(at) {
        let mut end = at + 1;
        while keys.get(end).is_some_and(|(key, _)| key == this) {
            end += 1;
        }
        // A folder keeps its name, else the first of the files that share one keeps it.
        let is_folder = keys.get(end).is_some_and(|(next, _)| is_inside(next, this));
        let first = at + usize::from(!is_folder);
        collided.extend(keys[first..end].iter().map(|(_, index)| *index));
        at = end;
    }
    let changes = renamed(paths, &keys, &collided);
    let count = changes.len() as u32;
    for (index, path) in changes {
        paths[index as usize] = path.into_boxed_str();
    }
    count
}

/// A path with NUL, that no name has, as separator: in the order of the bytes, what lies in a
/// folder then follows directly what bears the folder's own path.
type Key = Box<[u8]>;

fn key(path: &str) -> Key {
    path.replace('/', "\0").into_bytes().into_boxed_slice()
}

/// Of the paths that are not empty, each with its index; copies are neighbours, the earlier first.
fn sorted_keys(paths: &[Box<str>]) -> Vec<(Key, u32)> {
    assert!(u32::try_from(paths.len()).is_ok(), "metainfo bounds the files");
    let named = paths.iter().enumerate().filter(|(_, path)| !path.is_empty());
    let mut keys: Vec<(Key, u32)> = named.map(|(index, path)| (key(path), index as u32)).collect();
    keys.sort_unstable();
    keys
}

fn is_inside(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&0))
}

/// A new path for each that collided, in no use yet.
fn renamed(paths: &[Box<str>], keys: &[(Key, u32)], collided: &[u32]) -> Vec<(u32, String)> {
    let mut made: BTreeSet<String> = BTreeSet::new();
    let mut changes = Vec::with_capacity(collided.len());
    let mut path_before = "";
    let mut own = 0;
    // Numbers beyond a path's own first few are used once a torrent, so that long names which are
    // cut to the same stem do not try the same numbers over and over.
    let mut common = OWN_SUFFIXES_MAX;
    for index in collided {
        let path = &*paths[*index as usize];
        if path != path_before {
            (path_before, own) = (path, 0);
        }
        let candidate = loop {
            let counter = if own < OWN_SUFFIXES_MAX { &mut own } else { &mut common };
            *counter += 1;
            let candidate = numbered(path, *counter);
            if !is_taken(keys, &candidate) && made.insert(candidate.clone()) {
                break candidate;
            }
        };
        changes.push((*index, candidate));
    }
    changes
}

/// Whether a path is a file or a folder of the torrent.
fn is_taken(keys: &[(Key, u32)], candidate: &str) -> bool {
    let candidate = key(candidate);
    let at = keys.partition_point(|(key, _)| *key < candidate);
    keys.get(at).is_some_and(|(found, _)| *found == candidate || is_inside(found, &candidate))
}

/// `d/a.txt` and 3 make `d/a.3.txt`.
fn numbered(path: &str, number: u32) -> String {
    let (folder, name) = path.split_at(path.rfind('/').map_or(0, |slash| slash + 1));
    let (stem, extension) = split_extension(name);
    let suffix = format!(".{number}{extension}");
    let mut stem = stem.to_owned();
    truncate(&mut stem, COMPONENT_BYTES_MAX - suffix.len());
    format!("{folder}{stem}{suffix}")
}

#[cfg(test)]
mod tests;
