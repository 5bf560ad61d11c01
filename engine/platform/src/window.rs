//! Bytes of a file where they lie in the page cache: seen through a mapping instead of copied.
//!
//! Owns: which regions of files are mapped, and windows on them. Never: pages that have to be read
//! from a device first: who maps those waits for them in the middle of a computation.
//! Flow: `Io::window` -> all of it is in memory -> a region that has it -> looked at -> `is_whole`
//! -> its pages are let go, and with the last window the region.
//!
//! To map and to unmap is to hold the lock of the process's address space, and the shards wait for
//! each other there: so a region is much larger than a window. Seeing pages and letting them go
//! (`MADV_DONTNEED`) only share that lock.

mod region;

use std::{
    cell::Cell,
    io,
    ops::Deref,
    os::fd::{AsRawFd, BorrowedFd},
    rc::{Rc, Weak},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::fstat;

use self::region::Region;
use crate::descriptors::File;

/// What the start of a window is a multiple of.
pub const WINDOW_ALIGN: u64 = 4096;
/// Addresses that are mapped at once, of a file that has as many; of the tables for them only those
/// are made whose pages are looked at, 2 MiB for a whole one.
const REGION_BYTES: u64 = 1 << 30;
/// `cachestat`, Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Read-only bytes of a file, as it is while they are looked at: whoever writes to the file changes
/// them. Not for parsing: for what takes each byte once.
pub struct Window {
    inner: Inner,
}

enum Inner {
    Mapped { region: Rc<Region>, from: usize, length: usize },
    Owned { bytes: Vec<u8>, whole: Cell<bool> },
}

/// The regions that one shard has windows on.
#[derive(Default)]
pub(crate) struct Regions {
    /// Those that are gone are swept out when the next one is mapped.
    mapped: Vec<Weak<Region>>,
}

impl Regions {
    /// `length` bytes from `offset`, a multiple of `WINDOW_ALIGN`. `None`: not all of them are in
    /// memory (or the kernel does not say so, or too much is mapped): read them.
    pub fn window(&mut self, file: &File, offset: u64, length: usize) -> Option<Window> {
        assert!(length > 0 && offset.is_multiple_of(WINDOW_ALIGN), "a window starts with a page");
        if !is_in_memory(file.as_os()?, offset, length) {
            return None;
        }
        let region = match self.find(file, offset, length) {
            Some(region) => region,
            None => self.map(file, offset, length)?,
        };
        let from = (offset - region.start()) as usize;
        Some(Window { inner: Inner::Mapped { region, from, length } })
    }

    fn find(&self, file: &File, offset: u64, length: usize) -> Option<Rc<Region>> {
        let mut regions = self.mapped.iter().filter_map(Weak::upgrade);
        regions.find(|region| region.is_of(file) && region.has(offset, length) && region.is_whole())
    }

    fn map(&mut self, file: &File, offset: u64, length: usize) -> Option<Rc<Region>> {
        let start = offset / REGION_BYTES * REGION_BYTES;
        let end = fstat(file.as_os()?).ok()?.st_size as u64;
        let end = end.next_multiple_of(WINDOW_ALIGN).min(start + REGION_BYTES);
        let is_within = offset + length as u64 <= end;
        let wide = is_within.then(|| Region::map(file, start, (end - start) as usize)).flatten();
        // Across two, or where addresses are few (RLIMIT_AS): what is asked for alone.
        let region = Rc::new(wide.or_else(|| Region::map(file, offset, length))?);
        self.mapped.retain(|region| region.strong_count() > 0);
        self.mapped.push(Rc::downgrade(&region));
        Some(region)
    }
}

impl Window {
    /// For backends outside this crate (the simulator); `whole`: what `is_whole` is to say.
    pub fn from_vec(bytes: Vec<u8>, whole: bool) -> Window {
        Window { inner: Inner::Owned { bytes, whole: Cell::new(whole) } }
    }

    /// Whether all that was seen so far were bytes of the file. `false`: some were zeroes in place
    /// of pages that were taken away, from this window or from another one nearby. What a cut
    /// within a page leaves of it is the file's: zeroes up to the page's end.
    pub fn is_whole(&self) -> bool {
        match &self.inner {
            Inner::Mapped { region, .. } => region.is_whole(),
            Inner::Owned { whole, .. } => whole.get(),
        }
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.inner {
            Inner::Mapped { region, from, length } => region.bytes(*from, *length),
            Inner::Owned { bytes, .. } => bytes,
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Inner::Mapped { region, from, length } = &self.inner
            && Rc::strong_count(region) > 1
        {
            region.let_go(*from, *length);
        }
    }
}

/// Whether all of the range is in the page cache.
fn is_in_memory(file: BorrowedFd<'_>, offset: u64, length: usize) -> bool {
    #[repr(C)]
    struct Range {
        offset: u64,
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    /// Older kernels, and containers that forbid it: asked once.
    static MISSING: AtomicBool = AtomicBool::new(false);
    if MISSING.load(Ordering::Relaxed) {
        return false;
    }
    let range = Range { offset, length: length as u64 };
    let mut pages = Pages::default();
    let (range, found) = (&raw const range, &raw mut pages);
    // SAFETY: the kernel reads a `struct cachestat_range` and writes a `struct cachestat`, which
    // these are, and both live until it returns.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range, found, 0) };
    if result != 0 {
        // EPERM of a file that is not ours comes from files, not from the kernel as a whole.
        let error = io::Error::last_os_error().raw_os_error();
        MISSING.store(error == Some(libc::ENOSYS), Ordering::Relaxed);
        return false;
    }
    pages.cached >= (length as u64).div_ceil(WINDOW_ALIGN)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    /// Two descriptors on a new file: what is mapped, and who changes it.
    fn file(bytes: &[u8]) -> (File, fs::File) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let other = file.try_clone().expect("a second descriptor");
        (File::from_os(file.into()), other)
    }

    /// Where the kernel does not say what is in memory there are no windows, and nothing to test.
    fn window(regions: &mut Regions, file: &File, offset: u64, length: usize) -> Option<Window> {
        let window = regions.window(file, offset, length);
        if window.is_none() {
            eprintln!("no window here: cachestat needs Linux 6.5");
        }
        window
    }

    #[test]
    fn a_window_shows_what_lies_in_memory() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let (mut regions, (file, _)) = (Regions::default(), file(&bytes));
        let Some(seen) = window(&mut regions, &file, 4096, 10_000 - 4096) else { return };
        assert!(seen[..] == bytes[4096..] && seen.is_whole());
        assert!(regions.window(&file, 0, 20_000).is_none(), "not all of it is there");
    }

    #[test]
    fn windows_of_a_file_share_a_region_until_the_last_goes() {
        let (mut regions, (one, _), (two, _)) =
            (Regions::default(), file(&[1; 64 << 10]), file(&[2; 64 << 10]));
        let Some(first) = window(&mut regions, &one, 0, 8192) else { return };
        let second = window(&mut regions, &one, 4096, 60 << 10).expect("as before");
        let other = window(&mut regions, &two, 4096, 8192).expect("as before");
        let live = |regions: &Regions| {
            regions.mapped.iter().filter(|region| region.strong_count() > 0).count()
        };
        assert_eq!(live(&regions), 2, "a region a file");
        drop(first);
        assert!(second.iter().all(|byte| *byte == 1), "what both saw is still seen");
        assert!(other.iter().all(|byte| *byte == 2));
        drop(second);
        assert_eq!(live(&regions), 1);
    }

    #[test]
    fn a_window_across_two_regions_has_one_of_its_own() {
        let (mut regions, (file, os)) = (Regions::default(), file(&[]));
        let bytes: Vec<u8> = (0..16_384u32).map(|n| (n / 4096) as u8 + 1).collect();
        let at = REGION_BYTES - 8192;
        std::os::unix::fs::FileExt::write_all_at(&os, &bytes, at).expect("written, with a hole");
        let Some(across) = window(&mut regions, &file, at, 16_384) else { return };
        assert!(across[..] == bytes[..]);
        let before = window(&mut regions, &file, at, 8192).expect("as before");
        let after = window(&mut regions, &file, REGION_BYTES, 8192).expect("as before");
        assert!(before[..] == bytes[..8192] && after[..] == bytes[8192..]);
    }

    #[test]
    fn pages_that_are_taken_away_are_zeroes_and_told() {
        let (mut regions, (cut_file, os), (whole_file, _)) =
            (Regions::default(), file(&[7; 64 << 10]), file(&[8; 4096]));
        let Some(cut) = window(&mut regions, &cut_file, 0, 64 << 10) else { return };
        let beside = window(&mut regions, &cut_file, 0, 4096).expect("as before");
        let other = window(&mut regions, &whole_file, 0, 4096).expect("as before");
        assert_eq!(cut[40_000], 7);
        os.set_len(8192).expect("cut");
        assert_eq!((cut[4096], cut.is_whole()), (7, true), "what is left is still seen");
        assert_eq!((cut[40_000], cut.is_whole()), (0, false));
        assert!(!beside.is_whole(), "of the same region: nobody knows what it saw");
        assert_eq!((other[0], other.is_whole()), (8, true), "another file lost nothing");
        let again = window(&mut regions, &cut_file, 0, 8192).expect("as before");
        assert_eq!((again[4096], again.is_whole()), (7, true), "a region of its own, mapped anew");
        drop((cut, beside));
        assert_eq!((again[0], again.is_whole()), (7, true));
    }
}
