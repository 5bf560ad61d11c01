//! The code that takes SHA-1 states over blocks: one stream, or several side by side.
//!
//! Owns: which kernels there are, what the CPU must have for each. Never: which one is best
//! (`pace`). Flow: `lanes` calls `Kernel::advance` with blocks of as many streams as it has.
//!
//! Each kernel is a function of its own with its own target features: a function that has both the
//! SHA instructions and vectors of 512 bits gets the slower code of the two.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(target_arch = "x86_64")]
mod vector;

use super::{Block, State};

/// The most streams that any kernel takes.
pub(super) const STREAMS_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// The `sha1` crate: one stream, with the SHA instructions of x86-64 or AArch64 where they are.
    Single,
    /// Two streams of the SHA instructions, interleaved.
    ShaNi2,
    /// Four of them.
    ShaNi4,
    /// Eight streams, one word of each in a vector.
    Avx2,
    /// Sixteen streams.
    Avx512,
}

/// One stream, with the best that a single stream has.
pub(super) fn single(state: &mut State, blocks: &[Block]) {
    sha1::block_api::compress(state, blocks);
}

impl Kernel {
    pub const ALL: [Kernel; 5] =
        [Kernel::Single, Kernel::ShaNi2, Kernel::ShaNi4, Kernel::Avx2, Kernel::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Kernel::Single => "single",
            Kernel::ShaNi2 => "sha-ni-2",
            Kernel::ShaNi4 => "sha-ni-4",
            Kernel::Avx2 => "avx2-8",
            Kernel::Avx512 => "avx512-16",
        }
    }

    /// Streams side by side. Fewer cost as much time.
    pub fn streams(self) -> usize {
        match self {
            Kernel::Single => 1,
            Kernel::ShaNi2 => 2,
            Kernel::ShaNi4 => 4,
            Kernel::Avx2 => 8,
            Kernel::Avx512 => 16,
        }
    }

    /// Whether this CPU has what it needs.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        match self {
            Kernel::Single => true,
            Kernel::ShaNi2 | Kernel::ShaNi4 => {
                is_x86_feature_detected!("sha")
                    && is_x86_feature_detected!("ssse3")
                    && is_x86_feature_detected!("sse4.1")
            }
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            Kernel::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Kernel::Single
    }

    /// Takes each state over its blocks, of which all streams have the same number. There are at
    /// most `streams` of them, and the kernel is available.
    pub(super) fn advance(self, states: &mut [State], blocks: &[&[Block]]) {
        let n = states.len();
        assert!(n == blocks.len() && n <= self.streams() && self.is_available());
        let Some(first) = blocks.first() else { return };
        assert!(blocks.iter().all(|other| other.len() == first.len()), "streams out of step");
        match self {
            Kernel::Single => single(&mut states[0], first),
            #[cfg(target_arch = "x86_64")]
            Kernel::ShaNi2 => filled(states, blocks, |states, blocks| {
                // SAFETY: the CPU has the function's features: `is_available`, asserted above.
                unsafe { sha_ni::advance::<2>(states, blocks) }
            }),
            #[cfg(target_arch = "x86_64")]
            Kernel::ShaNi4 => filled(states, blocks, |states, blocks| {
                // SAFETY: the CPU has the function's features: `is_available`, asserted above.
                unsafe { sha_ni::advance::<4>(states, blocks) }
            }),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => filled(states, blocks, |states, blocks| {
                // SAFETY: the CPU has the function's features: `is_available`, asserted above.
                unsafe { avx2::advance(states, blocks) }
            }),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => filled(states, blocks, |states, blocks| {
                // SAFETY: the CPU has the function's features: `is_available`, asserted above.
                unsafe { avx512::advance(states, blocks) }
            }),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("invariant: asserted to be available"),
        }
    }
}

/// Calls a kernel with all its lanes; those without a stream hash the first one's blocks for
/// nothing.
#[cfg(target_arch = "x86_64")]
fn filled<const N: usize>(
    states: &mut [State],
    blocks: &[&[Block]],
    kernel: impl FnOnce(&mut [State; N], &[&[Block]; N]),
) {
    let mut all_states = [[0; 5]; N];
    let mut all_blocks = [blocks[0]; N];
    all_states[..states.len()].copy_from_slice(states);
    all_blocks[..blocks.len()].copy_from_slice(blocks);
    kernel(&mut all_states, &all_blocks);
    states.copy_from_slice(&all_states[..states.len()]);
}
