//! Owns: sixteen streams side by side with AVX-512. Never: called where the CPU lacks it.
//! Flow: the blocks of all streams are loaded and transposed, so that vector t holds word t of
//! each; then `vector::compress`.

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
        let mut rows = [splat(0); N];
        for (row, stream) in rows.iter_mut().zip(blocks) {
            *row = load(&stream[block]);
            if let Some(soon) = stream.get(block + AHEAD_BLOCKS) {
                prefetch(soon);
            }
        }
        let words = transpose(rows);
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

/// The sixteen words of a block, which are big-endian there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(block: &Block) -> __m512i {
    // SAFETY: reads 64 bytes, unaligned, from a reference to 64 bytes.
    let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(swap))
}

/// Vector t of the result holds word t of each row, in the order of the rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: [__m512i; N]) -> [__m512i; N] {
    // Of four rows: vector j holds in its quarter q the column 4q + j.
    let mut quads = [[rows[0]; 4]; 4];
    for (four, quad) in rows.as_chunks::<4>().0.iter().zip(&mut quads) {
        let low =
            [_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpacklo_epi32(four[2], four[3])];
        let high =
            [_mm512_unpackhi_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[2], four[3])];
        *quad = [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ];
    }
    let mut words = rows;
    for j in 0..4 {
        // Quarters 0 and 2 of two vectors, and 1 and 3; then the same again of those.
        let even = [
            _mm512_shuffle_i32x4::<0x88>(quads[0][j], quads[1][j]),
            _mm512_shuffle_i32x4::<0x88>(quads[2][j], quads[3][j]),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(quads[0][j], quads[1][j]),
            _mm512_shuffle_i32x4::<0xdd>(quads[2][j], quads[3][j]),
        ];
        words[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        words[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        words[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        words[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    words
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
