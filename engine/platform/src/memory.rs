//! The memory that content passes through: a capped pool of chunks in arenas of our own.
//!
//! Owns: arenas, their headers, the count of who holds a chunk. Never: what the bytes mean.
//! Flow: `Lease` (unique, writable) is filled by a read, frozen into `Share`s that sends hold; the
//! last holder gives the chunk back.
//!
//! Counts are not atomic: a pool and everything out of it stay on one thread (`!Send`
//! through `Rc`).

mod blocks;
pub(crate) mod mapping;
mod spare;

use std::{
    cell::{Cell, RefCell},
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    rc::Rc,
};

use blocks::{BLOCK_BYTES, Blocks, ChunkAt};
use mapping::Mapping;
use spare::Spare;

/// The first arena, which is made and pinned at the start. Each that follows is as large as all
/// before it, up to the pool's full step: memory that is first touched costs 0.1 s per 64 MiB
/// where the host has to find it, and most pools of small engines never need it.
const ARENA_FIRST_BYTES: usize = 4 << 20;
/// Smallest full step by which a pool grows; bounds what is mapped without need, and the stall of a
/// growth whose arena is not ready yet (20 ms for 4 MiB, up to 0.3 s for 64 MiB, where the host has
/// to find the memory).
const ARENA_MIN_BYTES: usize = 4 << 20;
/// The kernel refuses registered buffers above 1 GiB.
const ARENA_MAX_BYTES: usize = 1 << 30;
/// Arenas a pool has at most, those that are smaller at first left out.
const ARENAS_FULL_MAX: usize = 1024;
/// Also the size of the ring's table of registered buffers. From 4 MiB to 1 GiB it is 8
/// steps.
pub(crate) const ARENAS_MAX: usize = ARENAS_FULL_MAX + 8;

const POISON: u8 = 0xDB;
static POISON_PAGE: [u8; 4096] = [POISON; 4096];

/// Sizes of chunks. A small one exists so that a random 16 KiB block does not pin 256 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Class {
    K16,
    K64,
    K256,
}

impl Class {
    pub const fn bytes(self) -> usize {
        match self {
            Class::K16 => 16 << 10,
            Class::K64 => 64 << 10,
            Class::K256 => 256 << 10,
        }
    }

    /// The smallest class that holds `bytes`; the largest where none does.
    pub const fn for_bytes(bytes: usize) -> Class {
        if bytes <= Class::K16.bytes() {
            Class::K16
        } else if bytes <= Class::K64.bytes() {
            Class::K64
        } else {
            Class::K256
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Chunk bytes at most; rounded down to 256 KiB, at least one such block.
    pub cap_bytes: usize,
    /// Ask for 2 MiB pages.
    pub huge_pages: bool,
}

/// A capped pool of chunks. Clones are handles on the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<PoolInner>,
}

struct PoolInner {
    cap_bytes: usize,
    arena_bytes: usize,
    huge_pages: bool,
    mapped_bytes: Cell<usize>,
    leased_bytes: Cell<usize>,
    /// Growth failed: the cap is what is mapped. Said once, not asked again a lease.
    exhausted: Cell<bool>,
    /// The next arena, under way since the pool ran low.
    spare: RefCell<Option<Spare>>,
    blocks: RefCell<Blocks>,
    arenas: RefCell<Vec<Arena>>,
}

/// One mapping and its headers, one each 16 KiB; a chunk uses the header of its first 16 KiB.
struct Arena {
    /// From `Box::into_raw`, freed on drop: leases keep pointers to single headers, which moving
    /// a `Box` would invalidate.
    headers: NonNull<[Header]>,
    mapping: Mapping,
    first_block: u32,
}

struct Header {
    data: NonNull<u8>,
    /// Leases and shares on the chunk; 0: free.
    holders: Cell<u32>,
    /// Bytes that a share shows.
    valid_bytes: Cell<u32>,
    block: u32,
    arena: u16,
    class: Cell<Class>,
    index: Cell<u8>,
    /// Debug builds: these 16 KiB were filled with poison when they came back.
    poisoned: Cell<bool>,
}

impl Pool {
    pub fn new(options: PoolOptions) -> io::Result<Pool> {
        let cap_bytes = (options.cap_bytes / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        let arena_bytes = (cap_bytes / (ARENAS_FULL_MAX / 2))
            .next_multiple_of(mapping::HUGE_PAGE_BYTES)
            .clamp(ARENA_MIN_BYTES, ARENA_MAX_BYTES);
        if cap_bytes.div_ceil(arena_bytes) > ARENAS_FULL_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a cache of {cap_bytes} bytes a shard is above the limit of \
                     {ARENAS_FULL_MAX} GiB"
                ),
            ));
        }
        let pool = Pool {
            inner: Rc::new(PoolInner {
                cap_bytes,
                arena_bytes,
                huge_pages: options.huge_pages,
                mapped_bytes: Cell::new(0),
                leased_bytes: Cell::new(0),
                exhausted: Cell::new(false),
                spare: RefCell::default(),
                blocks: RefCell::default(),
                arenas: RefCell::default(),
            }),
        };
        pool.inner.grow()?;
        Ok(pool)
    }

    /// A chunk, or `None` at the cap. Its bytes are whatever was there before.
    pub fn lease(&self, class: Class) -> Option<Lease> {
        // Its own statement: the borrow must end before `grow` takes its own.
        let taken = self.inner.blocks.borrow_mut().take(class);
        let at = match taken {
            Some(at) => at,
            None => {
                if self.inner.exhausted.get() {
                    return None;
                }
                match self.inner.grow() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(_) => {
                        self.inner.exhausted.set(true);
                        return None;
                    }
                }
                self.inner.blocks.borrow_mut().take(class)?
            }
        };
        self.inner.leased_bytes.set(self.inner.leased_bytes.get() + class.bytes());
        debug_assert!(self.inner.leased_bytes.get() <= self.inner.cap_bytes);
        self.inner.look_ahead();
        let header = self.inner.claim(at, class);
        Some(Lease { chunk: Chunk { header, pool: Rc::clone(&self.inner) } })
    }

    pub fn cap_bytes(&self) -> usize {
        self.inner.cap_bytes
    }

    /// Bytes of the chunks that are out.
    pub fn leased_bytes(&self) -> usize {
        self.inner.leased_bytes.get()
    }

    /// Address space taken so far.
    pub fn mapped_bytes(&self) -> usize {
        self.inner.mapped_bytes.get()
    }

    /// Arenas so far, for registration with a ring; grows, never shrinks, while the pool lives.
    pub fn arenas(&self) -> usize {
        self.inner.arenas.borrow().len()
    }

    pub(crate) fn arena_span(&self, arena: usize) -> (NonNull<u8>, usize) {
        let arenas = self.inner.arenas.borrow();
        (arenas[arena].mapping.base(), arenas[arena].mapping.len_bytes())
    }
}

impl PoolInner {
    /// Bytes of the next arena; 0: the cap is reached.
    fn next_step(&self) -> usize {
        let mapped = self.mapped_bytes.get();
        let step = mapped.clamp(ARENA_FIRST_BYTES, self.arena_bytes);
        (self.cap_bytes - mapped).min(step)
    }

    /// Has the next arena made once less than half of a step is left.
    fn look_ahead(&self) {
        let left = self.mapped_bytes.get() - self.leased_bytes.get();
        let step = self.next_step();
        if left >= step / 2 || self.exhausted.get() {
            return;
        }
        let mut spare = self.spare.borrow_mut();
        if spare.is_none() {
            *spare = Spare::begin(step, self.huge_pages);
        }
    }

    /// Maps one more arena. `Ok(false)`: the cap is reached.
    fn grow(&self) -> io::Result<bool> {
        let mapped = self.mapped_bytes.get();
        let len_bytes = self.next_step();
        if len_bytes == 0 {
            return Ok(false);
        }
        let ready = self.spare.take().and_then(|spare| spare.take(len_bytes));
        let mapping = match ready {
            Some(mapping) => mapping,
            None => Mapping::new(len_bytes, self.huge_pages)?,
        };
        let mut arenas = self.arenas.borrow_mut();
        let first_block = (mapped / BLOCK_BYTES) as u32;
        let arena = Arena::new(mapping, arenas.len() as u16, first_block);
        arenas.push(arena);
        self.blocks.borrow_mut().add((len_bytes / BLOCK_BYTES) as u32);
        self.mapped_bytes.set(self.mapped_bytes.get() + len_bytes);
        Ok(true)
    }

    /// Marks the chunk's header held once and returns it.
    fn claim(&self, at: ChunkAt, class: Class) -> NonNull<Header> {
        let slots_per_block = BLOCK_BYTES / Class::K16.bytes();
        let arenas = self.arenas.borrow();
        let after = arenas.partition_point(|arena| arena.first_block <= at.block);
        let arena = &arenas[after - 1];
        let slot = (at.block - arena.first_block) as usize * slots_per_block
            + usize::from(at.index) * (class.bytes() / Class::K16.bytes());
        let header = &arena.headers()[slot];
        assert!(header.holders.get() == 0, "a free chunk has no holders");
        debug_assert_eq!(header.block, at.block);
        if cfg!(debug_assertions) {
            let spanned = class.bytes() / Class::K16.bytes();
            arena.headers()[slot..slot + spanned].iter().for_each(Header::check_poison);
        }
        header.holders.set(1);
        header.class.set(class);
        header.index.set(at.index);
        NonNull::from(header)
    }

    /// The last holder let go.
    fn give_back(&self, header: &Header) {
        let class = header.class.get();
        if cfg!(debug_assertions) {
            self.poison(header);
        }
        let leased = self.leased_bytes.get();
        assert!(leased >= class.bytes(), "what returns was leased");
        self.leased_bytes.set(leased - class.bytes());
        let at = ChunkAt { block: header.block, index: header.index.get() };
        self.blocks.borrow_mut().give_back(at, class);
    }

    fn poison(&self, header: &Header) {
        let class = header.class.get();
        // SAFETY: the chunk's class.bytes() bytes from `data` lie in the arena's mapping, which
        // lives as long as the pool; no lease or share is left (holders is 0), so nobody reads.
        let bytes = unsafe { std::slice::from_raw_parts_mut(header.data.as_ptr(), class.bytes()) };
        bytes.fill(POISON);
        let arenas = self.arenas.borrow();
        let arena = &arenas[usize::from(header.arena)];
        let offset = header.data.as_ptr().addr() - arena.mapping.base().as_ptr().addr();
        let slot = offset / Class::K16.bytes();
        let spanned = class.bytes() / Class::K16.bytes();
        arena.headers()[slot..slot + spanned].iter().for_each(|header| header.poisoned.set(true));
    }
}

impl Arena {
    fn new(mapping: Mapping, arena: u16, first_block: u32) -> Arena {
        let len_bytes = mapping.len_bytes();
        let slots_per_block = BLOCK_BYTES / Class::K16.bytes();
        let headers: Box<[Header]> = (0..len_bytes / Class::K16.bytes())
            .map(|slot| Header {
                // SAFETY: slot * 16 KiB < len_bytes, inside the mapping.
                data: unsafe { mapping.base().add(slot * Class::K16.bytes()) },
                holders: Cell::new(0),
                valid_bytes: Cell::new(0),
                block: first_block + (slot / slots_per_block) as u32,
                arena,
                class: Cell::new(Class::K16),
                index: Cell::new(0),
                poisoned: Cell::new(false),
            })
            .collect();
        let headers = NonNull::from(Box::leak(headers));
        Arena { headers, mapping, first_block }
    }

    fn headers(&self) -> &[Header] {
        // SAFETY: allocated in `new`, freed only in `drop`; headers are only ever borrowed shared.
        unsafe { self.headers.as_ref() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        debug_assert!(self.headers().iter().all(|header| header.holders.get() == 0));
        // SAFETY: from `Box::leak` in `new`; the arena goes with its pool, and every lease and
        // share keeps the pool alive, so none is left to point here.
        drop(unsafe { Box::from_raw(self.headers.as_ptr()) });
    }
}

impl Header {
    /// Debug builds: nobody (a kernel still writing into a chunk that was given back too early)
    /// touched these 16 KiB since they were poisoned.
    fn check_poison(&self) {
        if !self.poisoned.replace(false) {
            return;
        }
        // SAFETY: 16 KiB from `data` lie in the mapping; the chunk was free and was claimed by the
        // caller just now, so nobody writes.
        let bytes = unsafe { std::slice::from_raw_parts(self.data.as_ptr(), Class::K16.bytes()) };
        assert!(
            bytes.chunks_exact(POISON_PAGE.len()).all(|page| page == POISON_PAGE),
            "a chunk was written after its last holder gave it back"
        );
    }
}

/// One holder of a chunk. The count in the header is the number of these.
struct Chunk {
    header: NonNull<Header>,
    pool: Rc<PoolInner>,
}

impl Chunk {
    fn header(&self) -> &Header {
        // SAFETY: points into an arena of `pool`, which this value keeps alive; arenas are never
        // removed from a living pool and headers never move.
        unsafe { self.header.as_ref() }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let header = self.header();
        let holders = header.holders.get();
        assert!(holders > 0, "a holder is counted");
        header.holders.set(holders - 1);
        if holders == 1 {
            self.pool.give_back(header);
        }
    }
}

/// The only handle on a chunk: writable. Dropping it gives the chunk back.
pub struct Lease {
    chunk: Chunk,
}

impl Lease {
    pub fn class(&self) -> Class {
        self.chunk.header().class.get()
    }

    /// Makes the first `valid_len` bytes shareable and read-only.
    pub fn freeze(self, valid_len: usize) -> Share {
        assert!(valid_len <= self.len(), "{valid_len} bytes of a chunk of {}", self.len());
        self.chunk.header().valid_bytes.set(valid_len as u32);
        Share { chunk: self.chunk }
    }

    /// Where the kernel writes. The caller keeps the lease until the kernel is done.
    pub(crate) fn data(&self) -> NonNull<u8> {
        self.chunk.header().data
    }

    /// Which arena it lies in, for registered reads.
    pub(crate) fn arena(&self) -> u16 {
        self.chunk.header().arena
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let header = self.chunk.header();
        // SAFETY: class.bytes() initialised bytes (mapped zeroed) in the arena's mapping; a lease
        // is the chunk's only holder and is inside an operation while the kernel writes.
        unsafe { std::slice::from_raw_parts(header.data.as_ptr(), header.class.get().bytes()) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        let header = self.chunk.header();
        // SAFETY: as in `deref`; `&mut self` of the only holder makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(header.data.as_ptr(), header.class.get().bytes()) }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({:?} at {:p})", self.class(), self.data())
    }
}

/// One of several read-only handles on a chunk. The last one to go gives it back.
pub struct Share {
    chunk: Chunk,
}

impl Share {
    /// Handles on this chunk, this one included.
    pub fn holders(&self) -> u32 {
        self.chunk.header().holders.get()
    }

    pub fn class(&self) -> Class {
        self.chunk.header().class.get()
    }

    /// Which arena it lies in, for registered writes.
    pub(crate) fn arena(&self) -> u16 {
        self.chunk.header().arena
    }
}

impl Clone for Share {
    fn clone(&self) -> Share {
        let holders = &self.chunk.header().holders;
        holders
            .set(holders.get().checked_add(1).expect("invariant: under 2^32 handles fit memory"));
        Share { chunk: Chunk { header: self.chunk.header, pool: Rc::clone(&self.chunk.pool) } }
    }
}

impl Deref for Share {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let header = self.chunk.header();
        // SAFETY: valid_bytes <= class.bytes() (asserted in `freeze`), in the arena's mapping, and
        // no lease exists on a frozen chunk, so nobody writes.
        unsafe {
            std::slice::from_raw_parts(header.data.as_ptr(), header.valid_bytes.get() as usize)
        }
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({} bytes, {} holders)", self.len(), self.holders())
    }
}

#[cfg(test)]
mod tests;
