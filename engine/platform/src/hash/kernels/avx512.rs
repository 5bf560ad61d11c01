//! Owns: sixteen streams side by side with AVX-512. Never: called where the CPU lacks it.
//! Flow: the blocks of all streams are loaded by quarters and transposed, so that vector t holds
//! word t of each; then `vector::compress`.

use std::arch::x86_64::*;

use super::super::{Block, State};
use super::vector::{K, compress};

const N: usize = 16;
/// Sixteen streams are more than the CPU's own prefetching follows.
const AHEAD_BLOCKS: usize = 6;

/// All streams have as many blocks as the first.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn advance(states: &mut [State; N], blocks: &[&[Block]; N]) {
    let mut state = [splat(0); 5];
    for (word, vector) in state.iter_mut().enumerate() {
        *vector = from_words(std::array::from_fn(|lane| states[lane][word]));
    }
    for block in 0..blocks[0].len() {
        for stream in blocks {
            if let Some(soon) = stream.get(block + AHEAD_BLOCKS) {
                prefetch(soon);
            }
        }
        let words = words_of(blocks, block);
        compress!(state, words);
    }
    for (word, vector) in state.into_iter().enumerate() {
        for (stream, value) in states.iter_mut().zip(to_words(vector)) {
            stream[word] = value;
        }
    }
}

#[inline]
#[target_feature(enable = "sse")]
fn prefetch(block: &Block) {
    // SAFETY: a hint; nothing is read that the program could see.
    #[allow(unused_unsafe, reason = "not unsafe in every version of Rust that builds this")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast())
    }
}

/// Vector t of the result holds word t of each block, in the order of the blocks.
///
/// Quarters of four blocks are loaded into one vector, which any of the CPU's units can merge, and
/// not whole blocks that are shuffled into place: two units alone shuffle and rotate, and those
/// have the most to do (6.3 GiB/s and not 5.5 on Zen 4).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words_of(blocks: &[&[Block]; N], block: usize) -> [__m512i; N] {
    let [a, b, c, d] = four_words::<0>(blocks, block);
    let [e, f, g, h] = four_words::<1>(blocks, block);
    let [i, j, k, l] = four_words::<2>(blocks, block);
    let [m, n, o, p] = four_words::<3>(blocks, block);
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The words of one quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn four_words<const QUARTER: usize>(blocks: &[&[Block]; N], block: usize) -> [__m512i; 4] {
    let of = |stream: usize| &blocks[stream][block];
    // Row j holds in its quarter i that of block 4i + j.
    let rows = [
        load::<QUARTER>(of(0), of(4), of(8), of(12)),
        load::<QUARTER>(of(1), of(5), of(9), of(13)),
        load::<QUARTER>(of(2), of(6), of(10), of(14)),
        load::<QUARTER>(of(3), of(7), of(11), of(15)),
    ];
    let low = [_mm512_unpacklo_epi32(rows[0], rows[1]), _mm512_unpacklo_epi32(rows[2], rows[3])];
    let high = [_mm512_unpackhi_epi32(rows[0], rows[1]), _mm512_unpackhi_epi32(rows[2], rows[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// One quarter, four words, of each of four blocks. The words are big-endian there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load<const QUARTER: usize>(a: &Block, b: &Block, c: &Block, d: &Block) -> __m512i {
    let bytes = _mm512_castsi128_si512(quad::<QUARTER>(a));
    let bytes = _mm512_mask_broadcast_i32x4(bytes, 0x00f0, quad::<QUARTER>(b));
    let bytes = _mm512_mask_broadcast_i32x4(bytes, 0x0f00, quad::<QUARTER>(c));
    let bytes = _mm512_mask_broadcast_i32x4(bytes, 0xf000, quad::<QUARTER>(d));
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(swap))
}

#[inline]
#[target_feature(enable = "sse2")]
fn quad<const QUARTER: usize>(block: &Block) -> __m128i {
    let bytes: &[u8; 16] = &block.as_chunks().0[QUARTER];
    // SAFETY: reads 16 bytes, unaligned, from a reference to 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_words(words: [u32; N]) -> __m512i {
    // SAFETY: reads 64 bytes, unaligned, from an array of 64 bytes.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_words(vector: __m512i) -> [u32; N] {
    let mut words = [0; N];
    // SAFETY: writes 64 bytes, unaligned, into an array of 64 bytes.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word.cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

/// To the left; the second number is what the first lacks to 32.
#[inline]
#[target_feature(enable = "avx512f")]
fn rotate<const LEFT: i32, const RIGHT: i32>(a: __m512i) -> __m512i {
    const { assert!(LEFT + RIGHT == 32) };
    _mm512_rol_epi32::<LEFT>(a)
}

// The third arguments below are truth tables: bit 4b + 2c + d is the result for these bits.

#[inline]
#[target_feature(enable = "avx512f")]
fn choose(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn parity(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0x96>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn majority(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xe8>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor4(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    parity(_mm512_xor_si512(a, b), c, d)
}
