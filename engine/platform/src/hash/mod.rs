//! Piece hashing: single streams incrementally, many pieces at once.
//!
//! Owns: the batch interface and which kernel runs. Never: what is expected (verify compares).
//! Flow: verify gathers ready pieces and calls `sha1_many`; odd ones go through `PieceHasher`.

use sha1::{Digest, Sha1};

pub type Sha1Hash = [u8; 20];

/// Hashes each input whole. The order of the results is the order of the inputs.
pub fn sha1_many(inputs: &[&[u8]]) -> Vec<Sha1Hash> {
    inputs.iter().map(|input| Sha1::digest(input).into()).collect()
}

/// One piece, hashed as its bytes arrive.
#[derive(Clone, Default)]
pub struct PieceHasher {
    state: Sha1,
}

impl PieceHasher {
    pub fn new() -> PieceHasher {
        PieceHasher::default()
    }

    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.state.update(bytes);
        self
    }

    pub fn finish(self) -> Sha1Hash {
        self.state.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_examples() {
        // FIPS 180-4, appendix A.
        let abc = [
            0xa9, 0x99, 0x3e, 0x36, 0x47, 0x06, 0x81, 0x6a, 0xba, 0x3e, 0x25, 0x71, 0x78, 0x50,
            0xc2, 0x6c, 0x9c, 0xd0, 0xd8, 0x9d,
        ];
        assert_eq!(sha1_many(&[b"abc"]), [abc]);
        let mut hasher = PieceHasher::new();
        hasher.update(b"a").update(b"").update(b"bc");
        assert_eq!(hasher.finish(), abc);
    }

    #[test]
    fn results_keep_the_inputs_order() {
        let inputs: Vec<Vec<u8>> = (0..40).map(|i| vec![i as u8; i * 37]).collect();
        let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        for (input, hash) in slices.iter().zip(sha1_many(&slices)) {
            let mut one = PieceHasher::new();
            one.update(input);
            assert_eq!(one.finish(), hash);
        }
    }
}
