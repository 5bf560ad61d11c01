//! Owns: a few streams of the SHA instructions, interleaved. Never: called where the CPU lacks
//! them. Flow: each step of four rounds is done for every stream before the next step.
//!
//! The instructions of one stream wait for each other: alone it leaves more than half of the unit
//! idle. With four, most of the words lie in memory, and it does not matter.

use std::arch::x86_64::*;

use super::super::{Block, State};

/// One step of four rounds, `$g` of 20, of all streams. `$w`: the words of the last 16 rounds, four
/// in a vector; the place of the oldest takes the new ones.
macro_rules! step {
    ($abcd:ident, $before:ident, $w:ident, $g:literal) => {
        for s in 0..N {
            let words = if $g < 4 {
                $w[s][$g % 4]
            } else {
                let [old, second, third, last] =
                    [$w[s][$g % 4], $w[s][($g + 1) % 4], $w[s][($g + 2) % 4], $w[s][($g + 3) % 4]];
                let sum = _mm_xor_si128(_mm_sha1msg1_epu32(old, second), third);
                _mm_sha1msg2_epu32(sum, last)
            };
            $w[s][$g % 4] = words;
            // In the first step the state says what E is, later the A of four rounds before.
            let e = if $g == 0 {
                _mm_add_epi32($before[s], words)
            } else {
                _mm_sha1nexte_epu32($before[s], words)
            };
            $before[s] = $abcd[s];
            $abcd[s] = _mm_sha1rnds4_epu32::<{ $g / 5 }>($abcd[s], e);
        }
    };
}

/// All streams have as many blocks as the first.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn advance<const N: usize>(states: &mut [State; N], blocks: &[&[Block]; N]) {
    let zero = _mm_setzero_si128();
    let (mut abcd, mut e) = ([zero; N], [zero; N]);
    for (s, state) in states.iter().enumerate() {
        let [a, b, c, d, last] = state.map(u32::cast_signed);
        abcd[s] = _mm_set_epi32(a, b, c, d);
        e[s] = _mm_set_epi32(last, 0, 0, 0);
    }
    for block in 0..blocks[0].len() {
        let (first_abcd, first_e) = (abcd, e);
        let mut w = [[zero; 4]; N];
        for (w, stream) in w.iter_mut().zip(blocks) {
            for (w, quarter) in w.iter_mut().zip(stream[block].as_chunks().0) {
                *w = load(quarter);
            }
        }
        step!(abcd, e, w, 0);
        step!(abcd, e, w, 1);
        step!(abcd, e, w, 2);
        step!(abcd, e, w, 3);
        step!(abcd, e, w, 4);
        step!(abcd, e, w, 5);
        step!(abcd, e, w, 6);
        step!(abcd, e, w, 7);
        step!(abcd, e, w, 8);
        step!(abcd, e, w, 9);
        step!(abcd, e, w, 10);
        step!(abcd, e, w, 11);
        step!(abcd, e, w, 12);
        step!(abcd, e, w, 13);
        step!(abcd, e, w, 14);
        step!(abcd, e, w, 15);
        step!(abcd, e, w, 16);
        step!(abcd, e, w, 17);
        step!(abcd, e, w, 18);
        step!(abcd, e, w, 19);
        for s in 0..N {
            e[s] = _mm_sha1nexte_epu32(e[s], first_e[s]);
            abcd[s] = _mm_add_epi32(abcd[s], first_abcd[s]);
        }
    }
    for (s, state) in states.iter_mut().enumerate() {
        *state = [
            _mm_extract_epi32::<3>(abcd[s]),
            _mm_extract_epi32::<2>(abcd[s]),
            _mm_extract_epi32::<1>(abcd[s]),
            _mm_extract_epi32::<0>(abcd[s]),
            _mm_extract_epi32::<3>(e[s]),
        ]
        .map(i32::cast_unsigned);
    }
}

/// Four words, which are big-endian in the block; the first one goes to the top.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
fn load(quarter: &[u8; 16]) -> __m128i {
    // SAFETY: reads 16 bytes, unaligned, from a reference to 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
    let reverse = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_shuffle_epi8(bytes, reverse)
}
