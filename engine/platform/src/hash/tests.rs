//! Every kernel and every way of cutting a piece against the `sha1` crate.

use proptest::prelude::*;
use sha1::{Digest, Sha1};

use super::*;

fn oracle(bytes: &[u8]) -> Sha1Hash {
    Sha1::digest(bytes).into()
}

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn only(kernel: Kernel) -> Pace {
    Pace::of(&[(kernel, 100_000)])
}

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Hashes each input, cut into these parts, in batches: some parts of each, then the others.
fn hash_cut(pace: &Pace, inputs: &[Vec<&[u8]>], batches: usize) -> Vec<Sha1Hash> {
    let mut hashers = vec![PieceHasher::new(); inputs.len()];
    for batch in 0..batches {
        let cut = |parts: &[&[u8]], at: usize| parts.len() * at / batches;
        let mut feeds: Vec<Feed> = hashers
            .iter_mut()
            .zip(inputs)
            .map(|(hasher, parts)| {
                let parts = &parts[cut(parts, batch)..cut(parts, batch + 1)];
                Feed { hasher, parts }
            })
            .collect();
        update_at(pace, &mut feeds);
    }
    hashers.into_iter().map(PieceHasher::finish).collect()
}

#[test]
fn the_standards_examples() {
    // FIPS 180-4, examples of NIST: one block, two blocks, many blocks, nothing.
    let million = vec![b'a'; 1_000_000];
    let two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    let cases: [(&[u8], &str); 4] = [
        (b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (two, "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
        (&million, "34aa973cd4c4daa4f61eeb2bdbad27316534016f"),
        (b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    ];
    let hex = |hash: Sha1Hash| hash.map(|byte| format!("{byte:02x}")).concat();
    for kernel in available() {
        // All four in each of five places, so that every lane sees each of them.
        let inputs: Vec<Vec<&[u8]>> = (0..20).map(|n| vec![cases[n % 4].0]).collect();
        for (n, hash) in hash_cut(&only(kernel), &inputs, 1).into_iter().enumerate() {
            assert_eq!(hex(hash), cases[n % 4].1, "{} {n}", kernel.name());
        }
    }
    let mut hasher = PieceHasher::new();
    hasher.update(b"a").update(b"").update(b"bc");
    assert_eq!(hex(hasher.finish()), cases[0].1);
}

#[test]
fn each_kernel_takes_every_number_of_streams_over_every_number_of_blocks() {
    for kernel in available() {
        for streams in 1..=kernel.streams() {
            for blocks in [0, 1, 2, 17] {
                let data: Vec<Vec<u8>> =
                    (0..streams).map(|n| bytes(n, blocks * BLOCK_BYTES)).collect();
                let slices: Vec<&[Block]> = data.iter().map(|data| data.as_chunks().0).collect();
                let start: Vec<State> =
                    (0..streams as u32).map(|n| INITIAL.map(|word| word ^ (n * 77))).collect();
                let mut states = start.clone();
                kernel.advance(&mut states, &slices);
                for n in 0..streams {
                    let mut expected = start[n];
                    sha1::block_api::compress(&mut expected, slices[n]);
                    assert_eq!(states[n], expected, "{} {n} of {streams}", kernel.name());
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "out of step")]
fn streams_of_different_lengths_are_not_one_step() {
    let blocks = [[0; BLOCK_BYTES]; 3];
    Kernel::Single.advance(&mut [INITIAL; 1], &[&blocks[..1]]);
    let Some(kernel) = available().last().filter(|kernel| kernel.streams() > 1) else {
        panic!("out of step: this CPU has no kernel for two");
    };
    kernel.advance(&mut [INITIAL; 2], &[&blocks[..2], &blocks[..3]]);
}

#[test]
fn results_keep_the_inputs_order() {
    let inputs: Vec<Vec<u8>> = (0..40).map(|n| bytes(n, (n * 7919) % 3001)).collect();
    let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let expected: Vec<_> = slices.iter().map(|input| oracle(input)).collect();
    assert_eq!(sha1_many(&slices), expected);
    assert_eq!(sha1_many(&[]), Vec::<Sha1Hash>::new());
}

/// As content lies in memory: pieces begin with a page, and so do steps.
#[test]
fn pieces_at_the_same_place_of_their_pages_are_told_apart() {
    const PAGE: usize = 4096;
    for lengths in [[20 * PAGE; 20], std::array::from_fn(|n| 20 * PAGE - n * 700)] {
        let memory: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(n, length)| bytes(n, length + PAGE)).collect();
        let piece = |(memory, length): (&'_ Vec<u8>, &usize)| {
            let from = memory.as_ptr().align_offset(PAGE);
            from..from + length
        };
        let ranges: Vec<_> = memory.iter().zip(&lengths).map(piece).collect();
        let inputs: Vec<Vec<&[u8]>> = memory
            .iter()
            .zip(&ranges)
            .map(|(memory, range)| memory[range.clone()].chunks(10 * PAGE).collect())
            .collect();
        let expected: Vec<Sha1Hash> = memory
            .iter()
            .zip(&ranges)
            .map(|(memory, range)| oracle(&memory[range.clone()]))
            .collect();
        let paces = available().map(only).chain([Pace::measured().clone()]);
        for pace in paces {
            for batches in [1, 2] {
                assert_eq!(hash_cut(&pace, &inputs, batches), expected, "{pace:?}");
            }
        }
    }
}

#[test]
fn the_cheapest_kernels_are_chosen_for_each_number_of_streams() {
    let pace = Pace::of(&[
        (Kernel::Single, 35_000),
        (Kernel::ShaNi2, 40_000),
        (Kernel::ShaNi4, 56_000),
        (Kernel::Avx2, 170_000),
        (Kernel::Avx512, 115_000),
    ]);
    let chosen: Vec<_> = [1, 2, 3, 4, 8, 9, 16].map(|n| pace.kernel(n)).to_vec();
    use Kernel::*;
    assert_eq!(chosen, [Single, ShaNi2, ShaNi4, ShaNi4, ShaNi4, Avx512, Avx512]);
    assert_eq!(pace.streams(), 16);
    let without = Pace::of(&[(Single, 35_000), (ShaNi4, 56_000), (Avx2, 170_000)]);
    assert_eq!(without.streams(), 4, "eight are no faster than twice four");
    assert_eq!(Pace::of(&[(Single, 35_000)]).streams(), 1);
    for kernel in Kernel::ALL {
        assert_eq!(Pace::of(&[(kernel, 1)]).streams(), kernel.streams(), "in whole numbers too");
    }
    assert_eq!(pace.time(16, 1 << 20).as_nanos(), 115 * 16_384);
    assert_eq!(pace.time(5, 64).as_nanos(), 91);
}

#[test]
fn what_was_measured_is_of_this_cpu() {
    let pace = Pace::measured();
    for streams in 1..=16 {
        assert!(pace.kernel(streams).is_available());
    }
    assert!((1..=16).contains(&pace.streams()));
    assert!(!pace.time(16, 1 << 20).is_zero());
}

/// A piece: its length, and where it is cut.
fn piece() -> impl Strategy<Value = (usize, Vec<usize>)> {
    let length = prop_oneof![0..200usize, 0..1_500usize, (0..20usize).prop_map(|n| n * 64)];
    length.prop_flat_map(|length| (Just(length), prop::collection::vec(0..=length, 0..6)))
}

proptest! {
    #[test]
    fn pieces_cut_anywhere_are_hashed_as_one(
        pieces in prop::collection::vec(piece(), 0..40),
        batches in 1..4usize,
    ) {
        let data: Vec<Vec<u8>> =
            pieces.iter().enumerate().map(|(n, (length, _))| bytes(n, *length)).collect();
        let mut inputs = Vec::new();
        for (data, (_, cuts)) in data.iter().zip(&pieces) {
            let mut cuts = cuts.clone();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            inputs.push(cuts.windows(2).map(|cut| &data[cut[0]..cut[1]]).collect::<Vec<&[u8]>>());
        }
        let expected: Vec<_> = data.iter().map(|data| oracle(data)).collect();
        for kernel in available() {
            let hashes = hash_cut(&only(kernel), &inputs, batches);
            prop_assert_eq!(&hashes, &expected, "{}", kernel.name());
        }
        prop_assert_eq!(&hash_cut(Pace::measured(), &inputs, batches), &expected);
        for (parts, expected) in inputs.iter().zip(&expected) {
            let mut alone = PieceHasher::new();
            for part in parts {
                alone.update(part);
            }
            prop_assert_eq!(&alone.finish(), expected);
        }
    }
}
