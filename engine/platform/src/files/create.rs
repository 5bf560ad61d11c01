//! Making a file that may be missing, with its folders, so that its name survives a power loss.
//!
//! Owns: the order of the steps and what each failure means. Never: a path of several parts given
//! to a call that would follow links: every directory is opened beneath the root without symlinks,
//! and `mkdirat` gets one part. Flow: submit -> one step a completion -> statx -> `Opened`.
//!
//! ```text
//! File --ENOENT--> Folder (nearest above that is there) -> Make -> Sync -> Folder (made) ... File
//! File ----ok----> Folder (the file's own) -> Sync -> made
//! ```

use std::{ffi::CString, io};

use super::{call::Call, open};
use crate::{
    descriptors::File,
    op::{Access, OpenRequest},
};

/// An open in steps; boxed in its slot, since the kernel has addresses of paths and `how`.
pub(crate) struct Creating {
    request: Box<OpenRequest>,
    /// The parts of the path above the file.
    folders: Vec<Vec<u8>>,
    /// Folders down to the one that is being looked at; 0: the root.
    depth: usize,
    direct: bool,
    step: Step,
    how: libc::open_how,
    /// What the step's call is given: a path beneath the root, or one part of it.
    name: CString,
    /// Missing folders are made once; if one is missing again, somebody takes them away.
    makes: bool,
    descends: bool,
    file: Option<File>,
}

enum Step {
    File,
    Folder,
    Make { parent: File },
    Sync { folder: File },
}

pub(super) enum Next {
    /// `call` has the next one.
    Step,
    Made(File),
    Failed(io::Error),
}

impl Creating {
    pub(super) fn new(request: Box<OpenRequest>) -> Creating {
        let mut folders: Vec<Vec<u8>> = parts(request.path.as_bytes()).collect();
        folders.pop();
        Creating {
            direct: request.direct,
            how: open::how(Access::Create, request.direct),
            request,
            folders,
            depth: 0,
            step: Step::File,
            name: CString::default(),
            makes: false,
            descends: false,
            file: None,
        }
    }

    pub(super) fn call(&self) -> Call {
        let root = self.request.root.raw();
        let how = &raw const self.how;
        match &self.step {
            Step::File => Call::Open { folder: root, path: self.request.path.as_ptr(), how },
            Step::Folder => Call::Open { folder: root, path: self.name.as_ptr(), how },
            Step::Make { parent } => {
                Call::MakeFolder { folder: parent.raw(), name: self.name.as_ptr() }
            }
            Step::Sync { folder } => Call::Sync { fd: folder.raw(), data_only: false },
        }
    }

    /// Takes the answer to `call`.
    pub(super) fn step(&mut self, result: i32) -> Next {
        // Replaced below wherever the operation goes on.
        match std::mem::replace(&mut self.step, Step::File) {
            Step::File => self.opened_file(result),
            Step::Folder => self.opened_folder(result),
            Step::Make { parent } => match result {
                0.. => self.sync(parent),
                // By another operation, meanwhile.
                errno if errno == -libc::EEXIST => self.sync(parent),
                _ => failed(result),
            },
            Step::Sync { .. } => self.synced(result),
        }
    }

    fn opened_file(&mut self, result: i32) -> Next {
        if result >= 0 {
            self.file = Some(File::from_os(open::adopt(result)));
            self.makes = false;
            return self.open_folder(self.folders.len());
        }
        match -result {
            // The file system has no direct I/O.
            libc::EINVAL if self.direct => {
                self.direct = false;
                self.open_file()
            }
            libc::ENOENT if !self.folders.is_empty() && !self.descends => {
                self.makes = true;
                self.open_folder(self.folders.len() - 1)
            }
            _ => failed(result),
        }
    }

    fn opened_folder(&mut self, result: i32) -> Next {
        if result == -libc::ENOENT && self.makes && !self.descends && self.depth > 0 {
            return self.open_folder(self.depth - 1);
        }
        if result < 0 {
            return failed(result);
        }
        let folder = File::from_os(open::adopt(result));
        if !self.makes {
            return self.sync(folder);
        }
        self.descends = true;
        self.name = c_string(self.folders[self.depth].clone());
        self.step = Step::Make { parent: folder };
        Next::Step
    }

    fn synced(&mut self, result: i32) -> Next {
        // EINVAL: a file system whose directories need (or know) no sync.
        if result < 0 && result != -libc::EINVAL {
            return failed(result);
        }
        if let Some(file) = self.file.take() {
            return Next::Made(file);
        }
        if self.depth + 1 == self.folders.len() {
            return self.open_file();
        }
        self.open_folder(self.depth + 1)
    }

    fn open_file(&mut self) -> Next {
        self.how = open::how(Access::Create, self.direct);
        self.step = Step::File;
        Next::Step
    }

    fn open_folder(&mut self, depth: usize) -> Next {
        self.depth = depth;
        let path = self.folders[..depth].join(&b'/');
        self.name = c_string(if path.is_empty() { b".".to_vec() } else { path });
        self.how = open::how_directory();
        self.step = Step::Folder;
        Next::Step
    }

    fn sync(&mut self, folder: File) -> Next {
        self.step = Step::Sync { folder };
        Next::Step
    }
}

/// The named parts of a path.
fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

fn c_string(bytes: Vec<u8>) -> CString {
    CString::new(bytes).expect("invariant: parts of a C string hold no zero byte")
}

fn failed(result: i32) -> Next {
    Next::Failed(io::Error::from_raw_os_error(-result))
}
