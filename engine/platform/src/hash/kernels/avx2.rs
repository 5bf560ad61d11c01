//! Owns: eight streams side by side with AVX2. Never: called where the CPU lacks it.
//! Flow: the blocks of all streams are loaded and transposed, so that vector t holds word t of
//! each; then `vector::compress`.

use std::arch::x86_64::*;

use super::super::{Block, State};
use super::vector::{K, compress};

const N: usize = 8;
const HALF_BYTES: usize = 32;

/// All streams have as many blocks as the first.
#[target_feature(enable = "avx2")]
pub(super) fn advance(states: &mut [State; N], blocks: &[&[Block]; N]) {
    let mut state = [splat(0); 5];
    for (word, vector) in state.iter_mut().enumerate() {
        *vector = from_words(std::array::from_fn(|lane| states[lane][word]));
    }
    for block in 0..blocks[0].len() {
        let mut words = [splat(0); 16];
        for (half, words) in words.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            let mut rows = [splat(0); N];
            for (row, stream) in rows.iter_mut().zip(blocks) {
                *row = load(&stream[block].as_chunks().0[half]);
            }
            *words = transpose(rows);
        }
        compress!(state, words);
    }
    for (word, vector) in state.into_iter().enumerate() {
        for (stream, value) in states.iter_mut().zip(to_words(vector)) {
            stream[word] = value;
        }
    }
}

/// Eight words of a block, which are big-endian there.
#[inline]
#[target_feature(enable = "avx2")]
fn load(half: &[u8; HALF_BYTES]) -> __m256i {
    // SAFETY: reads 32 bytes, unaligned, from a reference to 32 bytes.
    let bytes = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(swap))
}

/// Vector t of the result holds word t of each row, in the order of the rows.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; N]) -> [__m256i; N] {
    // Of four rows: vector j holds in its half h the column 4h + j.
    let mut quads = [[rows[0]; 4]; 2];
    for (four, quad) in rows.as_chunks::<4>().0.iter().zip(&mut quads) {
        let low =
            [_mm256_unpacklo_epi32(four[0], four[1]), _mm256_unpacklo_epi32(four[2], four[3])];
        let high =
            [_mm256_unpackhi_epi32(four[0], four[1]), _mm256_unpackhi_epi32(four[2], four[3])];
        *quad = [
            _mm256_unpacklo_epi64(low[0], low[1]),
            _mm256_unpackhi_epi64(low[0], low[1]),
            _mm256_unpacklo_epi64(high[0], high[1]),
            _mm256_unpackhi_epi64(high[0], high[1]),
        ];
    }
    let mut words = rows;
    for j in 0..4 {
        words[j] = _mm256_permute2x128_si256::<0x20>(quads[0][j], quads[1][j]);
        words[4 + j] = _mm256_permute2x128_si256::<0x31>(quads[0][j], quads[1][j]);
    }
    words
}

#[inline]
#[target_feature(enable = "avx2")]
fn from_words(words: [u32; N]) -> __m256i {
    // SAFETY: reads 32 bytes, unaligned, from an array of 32 bytes.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn to_words(vector: __m256i) -> [u32; N] {
    let mut words = [0; N];
    // SAFETY: writes 32 bytes, unaligned, into an array of 32 bytes.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
    words
}

#[inline]
#[target_feature(enable = "avx2")]
fn splat(word: u32) -> __m256i {
    _mm256_set1_epi32(word.cast_signed())
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

/// To the left; the second number is what the first lacks to 32.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const LEFT: i32, const RIGHT: i32>(a: __m256i) -> __m256i {
    const { assert!(LEFT + RIGHT == 32) };
    _mm256_or_si256(_mm256_slli_epi32::<LEFT>(a), _mm256_srli_epi32::<RIGHT>(a))
}

#[inline]
#[target_feature(enable = "avx2")]
fn choose(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_xor_si256(d, _mm256_and_si256(b, _mm256_xor_si256(c, d)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn parity(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(b, c), d)
}

#[inline]
#[target_feature(enable = "avx2")]
fn majority(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_and_si256(b, c), _mm256_and_si256(d, _mm256_or_si256(b, c)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor4(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d))
}
