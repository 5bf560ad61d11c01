//! Owns: reading the list of files out of an `info` dictionary: lengths, paths, BEP 47 attributes.
//! Never: trusts a path: each goes through `sanitise`, and collisions are resolved there.
//! Flow: called once a torrent by `Info`; the layout is made of what it returns.

use super::{Error, FileError, Warning};
use crate::bencode::Value;
use crate::layout::{Attributes, NewFile};
use crate::limits::DIRECTORY_DEPTH_MAX;
use crate::sanitise;

/// BitComet's padding, from before BEP 47: `_____padding_file_12_if you see this file, ...`.
const OLD_PADDING: &[u8] = b"_____padding_file_";

/// The files, and whether the torrent is a single one.
pub(super) fn read(
    info: Value<'_, '_>,
    name: &str,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<NewFile>, bool), Error> {
    let Some(list) = info.dict_get("files") else {
        let length = info.dict_get("length").ok_or(Error::Missing("length"))?;
        let wrong = Error::Wrong { key: "length", expected: "an integer that is not negative" };
        let length = length.as_int().and_then(|length| u64::try_from(length).ok()).ok_or(wrong)?;
        let attributes = read_attributes(info.dict_get("attr")).0;
        let attributes = Attributes { symlink: false, ..attributes };
        return Ok((vec![NewFile { path: name.into(), length, padding: false, attributes }], true));
    };
    if !list.is_list() {
        return Err(Error::Wrong { key: "files", expected: "a list" });
    }
    let mut files = Vec::new();
    for (index, entry) in list.list().enumerate() {
        files.push(read_file(entry).map_err(|wrong| Error::File { index, wrong })?);
    }
    let mut paths: Vec<Box<str>> =
        files.iter_mut().map(|file| std::mem::take(&mut file.path)).collect();
    let collisions = sanitise::resolve_collisions(&mut paths);
    for (file, path) in files.iter_mut().zip(paths) {
        file.path = path;
    }
    if collisions > 0 {
        warnings.push(Warning::Collisions { files: collisions });
    }
    let symlinks = files.iter().filter(|file| file.attributes.symlink).count();
    if symlinks > 0 {
        warnings.push(Warning::Symlinks { files: symlinks as u32 });
    }
    Ok((files, false))
}

fn read_file(entry: Value<'_, '_>) -> Result<NewFile, FileError> {
    if !entry.is_dict() {
        return Err(FileError::NotDict);
    }
    let (mut length, mut path, mut path_utf8, mut attr) = (None, None, None, None);
    // One walk an entry: five look-ups in each of 300,000 would be five.
    for (key, value) in entry.dict_iter() {
        match key {
            b"length" => length = Some(value),
            b"path" => path = Some(value),
            b"path.utf-8" => path_utf8 = Some(value),
            b"attr" => attr = Some(value),
            _ => {}
        }
    }
    let (attributes, is_padding) = read_attributes(attr);
    let length = match length {
        Some(length) => length.as_int().and_then(|length| u64::try_from(length).ok()),
        // BEP 47 leaves it out of links.
        None if attributes.symlink => Some(0),
        None => None,
    };
    let length = length.ok_or(FileError::Length)?;
    if attributes.symlink && length > 0 {
        return Err(FileError::SymlinkLength);
    }
    if is_padding {
        return Ok(NewFile { path: "".into(), length, padding: true, attributes });
    }
    let path = path_utf8.filter(|path| is_path(*path)).or(path).ok_or(FileError::Path)?;
    if !is_path(path) {
        return Err(FileError::Path);
    }
    if path.list().nth(DIRECTORY_DEPTH_MAX).is_some() {
        return Err(FileError::TooDeep);
    }
    let components = || path.list().filter_map(|component| component.as_bytes());
    let padding = components().last().is_some_and(|last| last.starts_with(OLD_PADDING));
    let path = if padding { "".into() } else { sanitise::path(components()).into() };
    Ok(NewFile { path, length, padding, attributes })
}

/// A list with something in it, all of it strings.
fn is_path(path: Value<'_, '_>) -> bool {
    path.list().next().is_some() && path.list().all(|component| component.as_bytes().is_some())
}

/// BEP 47: a letter each; `p` for padding, unknown ones are skipped.
fn read_attributes(attr: Option<Value<'_, '_>>) -> (Attributes, bool) {
    let letters = attr.and_then(|attr| attr.as_bytes()).unwrap_or(b"");
    let has = |letter: u8| letters.contains(&letter);
    let attributes = Attributes { executable: has(b'x'), hidden: has(b'h'), symlink: has(b'l') };
    (attributes, has(b'p'))
}
