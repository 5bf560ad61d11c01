//! Copies whose target is not read soon: past the CPU's caches.
//!
//! Owns: how that is done, and from what length on. Never: what the bytes mean.
//! Flow: a block of a download, out of its receive buffer -> the memory of its piece, which is read
//! once all of it is there.
//!
//! A plain store fetches the line that it overwrites, and pushes another one out. A non-temporal
//! store does neither (AMD64 Architecture Programmer's Manual, volume 1, 3.9.2).

/// Below it a plain copy: there is too little to save.
#[cfg(target_arch = "x86_64")]
const WORTH_BYTES: usize = 1 << 10;

/// Copies `from` to `to`, which is as long.
pub fn past_caches(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "a copy of another length");
    #[cfg(target_arch = "x86_64")]
    if to.len() >= WORTH_BYTES {
        return streamed(to, from);
    }
    to.copy_from_slice(from);
}

#[cfg(target_arch = "x86_64")]
fn streamed(to: &mut [u8], from: &[u8]) {
    use std::{
        arch::x86_64::{__m128i, _mm_sfence, _mm_stream_si128},
        mem::transmute,
    };

    // SAFETY: a vector is any 16 bytes, and may be written as bytes again; the alignment is what
    // `align_to_mut` sees to.
    let (head, vectors, tail) = unsafe { to.align_to_mut::<__m128i>() };
    let (first, rest) = from.split_at(head.len());
    let (middle, last) = rest.split_at(size_of_val(vectors));
    head.copy_from_slice(first);
    for (vector, bytes) in vectors.iter_mut().zip(middle.as_chunks::<16>().0) {
        // SAFETY: a vector is any 16 bytes.
        let value = unsafe { transmute::<[u8; 16], __m128i>(*bytes) };
        // SAFETY: the vector is aligned and exclusively ours. SSE2 is part of x86-64. The fence
        // below orders the store before whatever follows.
        unsafe { _mm_stream_si128(vector, value) };
    }
    tail.copy_from_slice(last);
    // SAFETY: SSE is part of x86-64. Non-temporal stores are not ordered with others: the fence
    // comes before anything that tells another thread or the kernel of these bytes.
    unsafe { _mm_sfence() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_length_and_the_places_the_bytes_are_the_same() {
        let from: Vec<u8> = (0..9000_u32).map(|at| (at * 31 % 251) as u8).collect();
        for length in [0, 1, 63, 1023, 1024, 1025, 1087, 4096, 8191] {
            for (start, target) in [(0, 0), (1, 0), (13, 5), (0, 63), (47, 16), (64, 128)] {
                let mut to = vec![0xaa; 9000];
                past_caches(&mut to[target..target + length], &from[start..start + length]);
                assert_eq!(to[target..target + length], from[start..start + length]);
                let others = to[..target].iter().chain(&to[target + length..]);
                assert!(others.into_iter().all(|byte| *byte == 0xaa), "{length}, {target}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "another length")]
    fn another_length_is_refused() {
        past_caches(&mut [0; 5], &[0; 4]);
    }
}
