//! Files to write: opened, made and brought to their size.
//!
//! Owns: the way from a wanted file to one that is written to. Never: writes, syncs.
//! Flow: `write_piece` wants a file -> open (made where it is missing, beneath the save
//! folder) -> its size -> what waits for it is written; or all of that is lost.

use std::{collections::HashMap, ffi::CString, io, os::unix::ffi::OsStrExt, time::Duration};

use seedring_platform::{
    descriptors::File,
    op::{Access, Allocation, DirectAlignment, Identity, Io, Op, OpenRequest},
};

use super::{Entry, SLOW_MAX, State, same};
use crate::{
    mix::Hashed,
    shard::Shard,
    token::Target,
    torrent::{PAGE_BYTES, TorrentId},
};

impl<I: Io> Shard<I> {
    pub(super) fn open_next(&mut self, now: Duration) {
        while self.downloads.writer.slow < SLOW_MAX {
            let writer = &mut self.downloads.writer;
            let Some(file) = writer.to_open.pop_front() else { return };
            let Some(entry) = writer.files.get_mut(&file) else { continue };
            if !matches!(entry.state, State::Closed) {
                continue;
            }
            let request = match folder_of(&mut writer.folders, entry) {
                Ok(root) => match path_of(entry) {
                    Some(path) => {
                        let (direct, access) = (entry.direct, Access::Create);
                        OpenRequest { root, path, direct, access }
                    }
                    None => {
                        let why = io::Error::from(io::ErrorKind::InvalidFilename);
                        self.file_failed(file, why, now);
                        continue;
                    }
                },
                Err(error) => {
                    self.file_failed(file, error, now);
                    continue;
                }
            };
            entry.state = State::Opening;
            let op =
                Op::Open { token: Target::WriteOpen(file).token(), request: Box::new(request) };
            if self.io.submit(op).is_err() {
                let writer = &mut self.downloads.writer;
                let entry = writer.files.get_mut(&file).expect("invariant: looked up above");
                entry.state = State::Closed;
                writer.to_open.push_front(file);
                return;
            }
            self.downloads.writer.slow += 1;
        }
    }

    /// Completion of the open of a file to write.
    pub(crate) fn opened_to_write(&mut self, file: u32, result: io::Result<(File, Identity)>) {
        let now = self.io.now();
        let writer = &mut self.downloads.writer;
        writer.slow -= 1;
        let Some(entry) = writer.files.get_mut(&file) else { return };
        let (opened, identity) = match result {
            Ok(opened) => opened,
            Err(error) => return self.file_failed(file, error, now),
        };
        if identity.direct.is_some_and(|needs| !fits(needs)) {
            entry.direct = false;
            entry.state = State::Closed;
            return writer.to_open.push_front(file);
        }
        entry.align_bytes =
            identity.direct.map_or(1, |d| d.offset_bytes.max(d.memory_bytes) as usize);
        let length_bytes = entry.length_bytes();
        // Of what is kept aside only bytes at a border are ever written.
        let aside = entry.contents.places.is_aside(entry.index);
        let mode = entry.contents.writing.as_ref().map(|writing| writing.allocation);
        let mode = mode.filter(|_| !aside);
        let enough = identity.size_bytes >= length_bytes;
        if enough && mode != Some(Allocation::Full) {
            entry.state = State::Open(opened);
            return writer.go_on(file);
        }
        let op = Op::Allocate {
            token: Target::Allocate(file).token(),
            file: opened.clone(),
            length_bytes,
            mode: mode.unwrap_or(Allocation::Sparse),
        };
        entry.state = State::Allocating(opened);
        if self.io.submit(op).is_err() {
            let writer = &mut self.downloads.writer;
            if let Some(entry) = writer.files.get_mut(&file) {
                entry.state = State::Closed; // opened again with the next step
                writer.to_open.push_back(file);
            }
        } else {
            self.downloads.writer.slow += 1;
        }
    }

    /// Completion of setting a file's size.
    pub(crate) fn allocated(&mut self, file: u32, result: io::Result<()>) {
        let now = self.io.now();
        let writer = &mut self.downloads.writer;
        writer.slow -= 1;
        let Some(entry) = writer.files.get_mut(&file) else { return };
        let unsupported =
            matches!(&result, Err(error) if error.kind() == io::ErrorKind::Unsupported);
        if let Err(error) = result
            && !unsupported
        {
            entry.state = State::Closed;
            return self.file_failed(file, error, now);
        }
        if let State::Allocating(opened) = &entry.state {
            entry.state = State::Open(opened.clone());
        }
        writer.go_on(file);
    }

    /// A file can't be opened or made as long as it is: what waits for it is lost.
    fn file_failed(&mut self, file: u32, error: io::Error, now: Duration) {
        let writer = &mut self.downloads.writer;
        let Some(entry) = writer.files.get_mut(&file) else { return };
        entry.state = State::Closed;
        let waiting = std::mem::take(&mut entry.waiting);
        for segment in waiting {
            self.segment_over(&segment, Some(same(&error)), now);
        }
    }
}

/// Whether what starts at a page is aligned as this file needs it.
fn fits(needs: DirectAlignment) -> bool {
    u64::from(needs.offset_bytes.max(needs.memory_bytes)) <= PAGE_BYTES
}

/// A second handle on a torrent's save folder, kept while it is written to.
fn folder_of(folders: &mut HashMap<TorrentId, File, Hashed>, entry: &Entry) -> io::Result<File> {
    if let Some(folder) = folders.get(&entry.torrent) {
        return Ok(folder.clone());
    }
    let writing = entry.contents.writing.as_ref();
    let writing = writing.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let folder = File::from(writing.folder.try_clone()?);
    folders.insert(entry.torrent, folder.clone());
    Ok(folder)
}

/// A file's path beneath the save folder.
fn path_of(entry: &Entry) -> Option<CString> {
    let folder = &entry.contents.writing.as_ref()?.folder_path;
    let path = entry.path();
    CString::new(path.strip_prefix(folder).ok()?.as_os_str().as_bytes()).ok()
}
