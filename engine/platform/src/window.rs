//! Bytes of a file where they lie in the page cache: mapped for a moment instead of copied.
//!
//! Owns: mappings of files, and the answer to SIGBUS in them. Never: pages that have to be read
//! from a device first: who maps those waits for them in the middle of a computation.
//! Flow: `Io::window` -> all of it is in memory -> mapped -> looked at -> `is_whole` -> unmapped.
//!
//! Whoever truncates a file takes the pages from under its mappings, and the access that follows is
//! a SIGBUS. The handler here puts zeroes in their place and marks the window, so that the reader
//! goes on, and learns afterwards that what it saw was not the file.

use std::{
    cell::Cell,
    io,
    ops::Deref,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// What the start of a window is a multiple of.
pub const WINDOW_ALIGN: u64 = 4096;
/// Windows at once in this process: 64 shards with 64 each. Where none is left, who asks reads.
const WINDOWS_MAX: usize = 4096;
/// `cachestat`, Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Read-only bytes of a file, as it is while they are looked at: whoever writes to the file changes
/// them. Not for parsing: for what takes each byte once.
pub struct Window {
    inner: Inner,
}

enum Inner {
    Mapped(Mapped),
    Owned { bytes: Vec<u8>, whole: Cell<bool> },
}

impl Window {
    /// `length` bytes from `offset`, a multiple of `WINDOW_ALIGN`. `None`: not all of them are in
    /// memory (or the kernel does not say so, or there are too many windows): read them.
    pub(crate) fn of(file: BorrowedFd<'_>, offset: u64, length: usize) -> Option<Window> {
        assert!(length > 0 && offset.is_multiple_of(WINDOW_ALIGN), "a window starts with a page");
        if !is_in_memory(file, offset, length) || !guard() {
            return None;
        }
        Mapped::new(file, offset, length).map(|mapped| Window { inner: Inner::Mapped(mapped) })
    }

    /// For backends outside this crate (the simulator); `whole`: what `is_whole` is to say.
    pub fn from_vec(bytes: Vec<u8>, whole: bool) -> Window {
        Window { inner: Inner::Owned { bytes, whole: Cell::new(whole) } }
    }

    /// Whether all that was seen so far were bytes of the file. `false`: some were zeroes in place
    /// of pages that were taken away.
    pub fn is_whole(&self) -> bool {
        match &self.inner {
            Inner::Mapped(mapped) => !mapped.slot.broken.load(Ordering::Acquire),
            Inner::Owned { whole, .. } => whole.get(),
        }
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.inner {
            // SAFETY: `base` is mapped readable for `length` bytes until this value goes. Other
            // processes may write to the file meanwhile: each byte is what it is when it is loaded,
            // and the type's contract is that nothing depends on two loads being equal.
            Inner::Mapped(it) => unsafe { std::slice::from_raw_parts(it.base.as_ptr(), it.length) },
            Inner::Owned { bytes, .. } => bytes,
        }
    }
}

/// A mapping that the handler knows. Not `Send`: the thread that looks is the one that faults.
struct Mapped {
    base: NonNull<u8>,
    length: usize,
    slot: &'static Slot,
}

impl Mapped {
    fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> Option<Mapped> {
        let slot = claim()?;
        // SAFETY: a new mapping at an address that the kernel chooses; it touches no existing one.
        let base = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, offset)
        };
        let Some(base) = base.ok().and_then(|base| NonNull::new(base.cast::<u8>())) else {
            slot.free();
            return None;
        };
        slot.watch(base.as_ptr().addr(), length);
        Some(Mapped { base, length, slot })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.slot.free();
        // SAFETY: mapped in `new` and owned by this value alone; every slice of it borrowed it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
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

/// What the handler knows of a mapping.
struct Slot {
    /// Its first address; `FREE` and `CLAIMED` are none.
    from: AtomicUsize,
    to: AtomicUsize,
    broken: AtomicBool,
}

const FREE: usize = 0;
const CLAIMED: usize = usize::MAX;

static SLOTS: [Slot; WINDOWS_MAX] = [const {
    Slot { from: AtomicUsize::new(FREE), to: AtomicUsize::new(0), broken: AtomicBool::new(false) }
}; WINDOWS_MAX];

/// Slots are taken in turn, so that a free one is found at once.
fn claim() -> Option<&'static Slot> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: a place to begin; `Slot::claim` decides.
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % WINDOWS_MAX;
    let (before, from) = SLOTS.split_at(next);
    from.iter().chain(before).find(|slot| slot.claim())
}

impl Slot {
    fn claim(&self) -> bool {
        // Acquire: the partner of `free`; what the one before wrote here is over.
        self.from.load(Ordering::Relaxed) == FREE
            && self
                .from
                .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn watch(&self, from: usize, length: usize) {
        self.broken.store(false, Ordering::Relaxed);
        self.to.store(from + length, Ordering::Relaxed);
        // Release: the handler, which runs on this thread, sees the rest with it.
        self.from.store(from, Ordering::Release);
    }

    fn free(&self) {
        self.from.store(FREE, Ordering::Release);
    }

    /// The range, if this address is in it.
    fn around(&self, address: usize) -> Option<(usize, usize)> {
        let from = self.from.load(Ordering::Acquire);
        let to = self.to.load(Ordering::Relaxed);
        (from != FREE && from != CLAIMED && from <= address && address < to).then_some((from, to))
    }
}

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Sees to it that SIGBUS is answered, once in this process. `false`: it can't be.
fn guard() -> bool {
    static GUARDED: OnceLock<bool> = OnceLock::new();
    *GUARDED.get_or_init(|| {
        // SAFETY: a C struct of integers and an address, for which all zeroes is valid.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: no new action is given; the old one is written to a struct that lives here.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
            return false;
        }
        let _ = BEFORE.set(before);
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = taken;
        let mut ours = before;
        ours.sa_sigaction = handler as libc::sighandler_t;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does nothing but
        // atomics and system calls; the struct lives until the call returns.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) == 0 }
    })
}

/// A page was taken from under a mapping. Of a window: zeroes take its place, on this thread, which
/// then loads again. Anything else is what it was before us.
extern "C" fn taken(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: of what the kernel sent itself this is the address; of anything else it is not used.
    let address = unsafe { info.si_addr() }.addr();
    let window = SLOTS.iter().find_map(|slot| Some((slot, slot.around(address)?)));
    if code > 0
        && let Some((slot, (from, to))) = window
    {
        let (place, flags) = (std::ptr::without_provenance_mut(from), MapFlags::PRIVATE);
        // SAFETY: the range is a mapping that the interrupted code owns (the slot is watched from
        // after `mmap` until before `munmap`, by this very thread); readers of it load again. The
        // call is the bare system call, and leaves errno as it is.
        let placed =
            unsafe { mmap_anonymous(place, to - from, ProtFlags::READ, flags | MapFlags::FIXED) };
        if placed.is_ok() {
            slot.broken.store(true, Ordering::Release);
            return;
        }
    }
    let before = BEFORE.get().map_or(std::ptr::null(), |before| &raw const *before);
    // SAFETY: an action that was in force before, or none, which changes nothing.
    unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    if code <= 0 {
        // Sent by somebody: it does not come again by itself.
        // SAFETY: allowed in a handler.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::fd::AsFd};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file
    }

    /// Where the kernel does not say what is in memory there are no windows, and nothing to test.
    fn window(file: &File, offset: u64, length: usize) -> Option<Window> {
        let window = Window::of(file.as_fd(), offset, length);
        if window.is_none() {
            eprintln!("no window here: cachestat needs Linux 6.5");
        }
        window
    }

    #[test]
    fn a_window_shows_what_lies_in_memory() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let file = file(&bytes);
        let Some(seen) = window(&file, 4096, 10_000 - 4096) else { return };
        assert!(seen[..] == bytes[4096..] && seen.is_whole());
        assert!(Window::of(file.as_fd(), 0, 20_000).is_none(), "not all of it is there");
    }

    #[test]
    fn pages_that_are_taken_away_are_zeroes_and_told() {
        let file = file(&[7; 64 << 10]);
        let (Some(cut), Some(other)) = (window(&file, 0, 64 << 10), window(&file, 0, 4096)) else {
            return;
        };
        assert_eq!(cut[40_000], 7);
        file.set_len(8192).expect("cut");
        assert_eq!((cut[4096], cut.is_whole()), (7, true), "what is left is still seen");
        assert_eq!((cut[40_000], cut.is_whole()), (0, false));
        assert_eq!((other[0], other.is_whole()), (7, true), "this one lost nothing");
        drop(cut);
        let again = window(&file, 0, 8192).expect("as before");
        assert!(again.is_whole(), "a slot starts anew");
    }

    #[test]
    fn every_slot_comes_home() {
        let file = file(&[1; 4096]);
        if window(&file, 0, 4096).is_none() {
            return;
        }
        for _ in 0..3 {
            let all: Vec<Window> =
                std::iter::from_fn(|| Window::of(file.as_fd(), 0, 4096)).collect();
            // Other tests hold some meanwhile.
            assert!(all.len() > WINDOWS_MAX - 16 && all.len() <= WINDOWS_MAX);
        }
    }
}
