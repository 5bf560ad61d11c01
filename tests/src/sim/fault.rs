//! What can go wrong, how often, and how often it did.
//!
//! Owns: the kinds of fault, their chances, the count of hits. Never: decides what a fault does
//! (the world does). Flow: `Faults::strikes` is asked at each point where a fault is possible.

use super::rng::Rng;

macro_rules! fault_kinds {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum FaultKind { $($(#[$doc])* $name),* }

        impl FaultKind {
            pub const ALL: &'static [FaultKind] = &[$(FaultKind::$name),*];
        }
    };
}

fault_kinds! {
    /// A read returns fewer bytes than asked for, before the file's end.
    ShortRead,
    /// A read fails with EIO.
    ReadFailed,
    /// A read takes seconds.
    ReadStalled,
    /// A read or a send fails with EINTR or EAGAIN.
    Interrupted,
    /// The socket takes only the first bytes of a batch.
    PartialSend,
    /// A send fails with ENOBUFS.
    SendNoBuffers,
    /// The connection breaks under a send: EPIPE or ECONNRESET.
    SendReset,
    /// The connection breaks under a receive: ECONNRESET.
    ReceiveReset,
    /// The connection times out: ETIMEDOUT (TCP_USER_TIMEOUT, or no route).
    ConnectionTimedOut,
    /// Received bytes come in pieces cut at any byte.
    ReceiveFragmented,
    /// The backend had no receive buffer: bytes come late.
    ReceiveBuffersOut,
    /// Completions come in another order than things happened.
    Reordered,
    /// A completion comes long after the thing happened.
    Delayed,
    /// Accept fails with EMFILE, ENFILE, ENOBUFS, ENOMEM or ECONNABORTED.
    AcceptFailed,
    /// The accept operation ends by itself.
    AcceptEnded,
    /// A connection is reset between its accept and the first receive.
    AcceptedDead,
    /// Connect: ECONNREFUSED.
    ConnectRefused,
    /// Connect takes longer than anybody waits.
    ConnectSlow,
    /// Connect: ETIMEDOUT, ENETUNREACH or EHOSTUNREACH.
    ConnectTimedOut,
    /// An operation completes as it would have although it was cancelled.
    CancelRaced,
    /// A zero-copy batch comes back long after `Sent`.
    ReleasedLate,
    /// The kernel copied a zero-copy batch after all.
    ReleasedCopied,
    /// A zero-copy send gives its batch back with `Sent`.
    ReleasedAtOnce,
    /// The in-flight table is full.
    TableFull,
    /// The pool has no chunk left (a small cap; counted where it is seen full).
    PoolExhausted,
    /// `wait` returns for no reason.
    SpuriousWake,
    /// A wake-up to a shard that does not sleep leaves no trace.
    WakeLost,
    /// A file's bytes and times change while it is open.
    FileChanged,
    /// A file shrinks while it is open.
    FileShrunk,
    /// A file is unlinked, or renamed over, while it is open.
    FileVanished,
    /// Opening fails: EMFILE, EACCES, EIO.
    OpenFailed,
    /// Looking at an open file again fails: EIO, ESTALE.
    IdentifyFailed,
    /// A write takes only the first bytes of its batch.
    ShortWrite,
    /// A write fails with EIO; some of it may have been taken.
    WriteFailed,
    /// A write or a sync takes seconds.
    WriteStalled,
    /// A write or an allocation fails with ENOSPC.
    DiskFull,
    /// A sync fails with EIO: what it should have made durable is lost with the power, although it
    /// can be read until then, and although the next sync succeeds.
    SyncFailed,
    /// An allocation fails with EOPNOTSUPP.
    AllocateRefused,
}

const KINDS: usize = FaultKind::ALL.len();

/// Chances in 1,000 a possible occurrence, and hits.
#[derive(Clone, Debug)]
pub struct Faults {
    chance: [u16; KINDS],
    hits: [u64; KINDS],
    /// Faults strike only in this stretch of virtual time, so that a run can end in calm.
    pub until_ns: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Faults::none()
    }
}

impl Faults {
    pub fn none() -> Faults {
        Faults { chance: [0; KINDS], hits: [0; KINDS], until_ns: u64::MAX }
    }

    /// Only what every network and kernel does daily, and which must cost no connection.
    pub fn weather() -> Faults {
        use FaultKind::*;
        let mut faults = Faults::none();
        for kind in [PartialSend, ReceiveFragmented, Reordered, Delayed, ReleasedLate, SpuriousWake]
        {
            faults.set(kind, 100);
        }
        faults.set(WakeLost, 1000);
        faults
    }

    /// Every kind at once, each with a chance drawn from the seed; some kinds left out.
    pub fn storm(rng: &mut Rng) -> Faults {
        let mut faults = Faults::weather();
        for &kind in FaultKind::ALL.iter().filter(|kind| !kind.is_of_writing()) {
            let ceiling = kind.ceiling();
            let chance = if rng.per_mille(300) { 0 } else { rng.between(0, ceiling) as u16 };
            faults.set(kind, chance);
        }
        faults.set(FaultKind::WakeLost, 1000);
        faults
    }

    /// The same for what writes files; apart, so that the seeds of those who only read stay theirs.
    pub fn storm_on_writes(rng: &mut Rng) -> Faults {
        let mut faults = Faults::storm(rng);
        for &kind in FaultKind::ALL.iter().filter(|kind| kind.is_of_writing()) {
            let chance = if rng.per_mille(300) { 0 } else { rng.between(0, kind.ceiling()) };
            faults.set(kind, chance as u16);
        }
        faults
    }

    pub fn set(&mut self, kind: FaultKind, per_mille: u16) -> &mut Faults {
        self.chance[kind as usize] = per_mille;
        self
    }

    pub fn with(mut self, kind: FaultKind, per_mille: u16) -> Faults {
        self.set(kind, per_mille);
        self
    }

    pub fn chance(&self, kind: FaultKind) -> u16 {
        self.chance[kind as usize]
    }

    /// Asked where the fault is possible; a strike is counted.
    pub fn strikes(&mut self, kind: FaultKind, rng: &mut Rng, now_ns: u64) -> bool {
        let strikes = now_ns < self.until_ns && rng.per_mille(self.chance[kind as usize]);
        if strikes {
            self.hit(kind);
        }
        strikes
    }

    pub fn hit(&mut self, kind: FaultKind) {
        self.hits[kind as usize] += 1;
    }

    pub fn hits(&self, kind: FaultKind) -> u64 {
        self.hits[kind as usize]
    }

    /// Adds another run's hits, for a table over many seeds.
    pub fn add_hits(&mut self, other: &Faults) {
        for (mine, theirs) in self.hits.iter_mut().zip(other.hits) {
            *mine += theirs;
        }
    }

    pub fn never_hit(&self) -> Vec<FaultKind> {
        FaultKind::ALL.iter().copied().filter(|&kind| self.hits(kind) == 0).collect()
    }
}

impl FaultKind {
    /// Strikes only who writes files.
    pub fn is_of_writing(self) -> bool {
        use FaultKind::*;
        matches!(
            self,
            ShortWrite | WriteFailed | WriteStalled | DiskFull | SyncFailed | AllocateRefused
        )
    }

    /// The highest chance in 1,000 that a storm gives it: those that end connections or torrents
    /// are rare, so that a run still gets somewhere.
    fn ceiling(self) -> u64 {
        use FaultKind::*;
        match self {
            Reordered | ReceiveFragmented | PartialSend | Delayed | CancelRaced => 600,
            ReleasedLate | ReleasedCopied | ReleasedAtOnce | SpuriousWake => 500,
            ShortRead | Interrupted | ReceiveBuffersOut | AcceptFailed => 100,
            ConnectSlow => 600,
            AcceptEnded | AcceptedDead | ConnectRefused | ConnectTimedOut => 150,
            ReadFailed | ReadStalled | SendNoBuffers | OpenFailed | IdentifyFailed => 40,
            TableFull => 30,
            SendReset | ReceiveReset | ConnectionTimedOut => 4,
            FileChanged | FileShrunk | FileVanished => 400,
            PoolExhausted | WakeLost => 1000,
            ShortWrite | AllocateRefused => 300,
            WriteFailed | WriteStalled | DiskFull => 40,
            SyncFailed => 100,
        }
    }
}
