//! A mapping of a file, and what happens when its pages are taken away.
//!
//! Owns: mappings, and the answer to SIGBUS in them. Never: which parts are looked at.
//! Flow: `map` -> bytes -> `is_whole` -> unmapped when dropped.
//!
//! Whoever truncates a file takes the pages from under its mappings, and the access that follows is
//! a SIGBUS. The handler here puts zeroes in place of the region and marks it, so that the reader
//! goes on, and learns afterwards that what it saw was not the file.

use std::{
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering},
    },
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::descriptors::{File, Mark};

/// Regions at once in this process: 64 shards with 64 each. Where none is left, who asks reads.
const REGIONS_MAX: usize = 4096;

/// A mapping that the handler knows. Not `Send`: the thread that looks is the one that faults.
pub struct Region {
    /// Not the file itself: descriptors are few, and a mapping needs none.
    file: Mark,
    start: u64,
    base: NonNull<u8>,
    length: usize,
    slot: &'static Slot,
}

impl Region {
    /// `length` addresses for the file from `start`, a multiple of a page; the file may end before.
    /// `None`: not enough addresses, or regions.
    pub fn map(file: &File, start: u64, length: usize) -> Option<Region> {
        if !guard() {
            return None;
        }
        let slot = claim()?;
        // SAFETY: a new mapping at an address that the kernel chooses; it touches no existing one.
        let base = file.as_os().and_then(|os| unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, os, start).ok()
        });
        let Some(base) = base.and_then(|base| NonNull::new(base.cast::<u8>())) else {
            slot.free();
            return None;
        };
        slot.watch(base.as_ptr().addr(), length);
        Some(Region { file: file.mark(), start, base, length, slot })
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    pub fn is_of(&self, file: &File) -> bool {
        self.file.is_of(file)
    }

    pub fn has(&self, offset: u64, length: usize) -> bool {
        self.start <= offset && offset + length as u64 <= self.start + self.length as u64
    }

    /// Whether no page was taken away while somebody looked at it.
    pub fn is_whole(&self) -> bool {
        !self.slot.broken.load(Ordering::Acquire)
    }

    fn place(&self, from: usize, length: usize) -> *mut u8 {
        assert!(length <= self.length && from <= self.length - length, "within the region");
        self.base.as_ptr().wrapping_add(from)
    }

    /// To look at what the file does not have is to break the region.
    pub fn bytes(&self, from: usize, length: usize) -> &[u8] {
        let place = self.place(from, length);
        // SAFETY: within what is mapped readable until this value goes, and where the file has no
        // page the handler puts one. Other processes may write to the file meanwhile: each byte is
        // what it is when it is loaded, and the contract of `Window` is that nothing depends on two
        // loads being equal.
        unsafe { std::slice::from_raw_parts(place, length) }
    }

    /// These pages are not looked at for now: they need not be in this process's tables.
    pub fn let_go(&self, from: usize, length: usize) {
        let place = self.place(from, length).cast();
        // SAFETY: within a mapping that this value owns, shared and of a file (or zeroes, after it
        // broke), which nobody writes through: a later access finds what the file has then.
        let _ = unsafe { madvise(place, length, Advice::LinuxDontNeed) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.slot.free();
        // SAFETY: mapped in `map` and owned by this value alone; every slice of it borrowed it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// What the handler knows of a region.
struct Slot {
    /// The thread that looks at it. Only slots of its own are told to the handler on a thread:
    /// those don't change under it.
    owner: AtomicI32,
    /// Its first address; `FREE` and `CLAIMED` are none.
    from: AtomicUsize,
    to: AtomicUsize,
    broken: AtomicBool,
}

const FREE: usize = 0;
const CLAIMED: usize = usize::MAX;

static SLOTS: [Slot; REGIONS_MAX] = [const {
    Slot {
        owner: AtomicI32::new(0),
        from: AtomicUsize::new(FREE),
        to: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; REGIONS_MAX];

/// Slots are taken in turn, so that a free one is found at once.
fn claim() -> Option<&'static Slot> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: a place to begin; `Slot::claim` decides.
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % REGIONS_MAX;
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
        self.owner.store(this_thread(), Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        self.to.store(from + length, Ordering::Relaxed);
        // Release: the handler, which runs on this thread, sees the rest with it.
        self.from.store(from, Ordering::Release);
    }

    fn free(&self) {
        self.from.store(FREE, Ordering::Release);
    }

    /// The range, if this address is in it, and whose it is. Of another thread's it may be torn.
    fn around(&self, address: usize) -> Option<(usize, usize, i32)> {
        let from = self.from.load(Ordering::Acquire);
        let (to, owner) = (self.to.load(Ordering::Relaxed), self.owner.load(Ordering::Relaxed));
        let is_live = from != FREE && from != CLAIMED;
        (is_live && from <= address && address < to).then_some((from, to, owner))
    }
}

fn this_thread() -> i32 {
    // SAFETY: takes nothing, changes nothing, allowed in a handler.
    unsafe { libc::gettid() }
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

/// A page was taken from under a mapping. Of a region: zeroes take its place, on this thread, which
/// then loads again. Anything else is what it was before us.
extern "C" fn taken(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: of what the kernel sent itself this is the address; of anything else it is not used.
    let address = unsafe { info.si_addr() }.addr();
    let mut regions = SLOTS.iter().filter_map(|slot| Some((slot, slot.around(address)?)));
    if code == libc::BUS_MCEERR_AO && regions.next().is_some() {
        return; // memory that nobody has looked at yet broke: whoever does is told then
    }
    let thread = this_thread();
    if [libc::BUS_ADRERR, libc::BUS_MCEERR_AR].contains(&code)
        && let Some((slot, (from, to, _))) = regions.find(|(_, (_, _, owner))| *owner == thread)
    {
        slot.broken.store(true, Ordering::Release);
        let (place, flags) = (std::ptr::without_provenance_mut(from), MapFlags::PRIVATE);
        // SAFETY: the range is a mapping that the interrupted code owns (the slot is watched from
        // after `mmap` until before `munmap`, by this very thread); readers of it load again. The
        // call is the bare system call, and leaves errno as it is.
        let placed =
            unsafe { mmap_anonymous(place, to - from, ProtFlags::READ, flags | MapFlags::FIXED) };
        if placed.is_ok() {
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
