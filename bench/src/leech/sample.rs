//! Owns: which pieces are hashed by a run that drops the rest. Never: depends on what arrives.
//! Flow: options -> lane -> inbound asks of each block.

use seedring_proto::units::PieceIndex;

use super::walk::Random;

/// One piece in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Sample(u64);

impl Sample {
    pub const ALL: Sample = Sample(1);

    /// The same pieces in every run and on every connection, and none of them by their place.
    pub fn has(self, piece: PieceIndex) -> bool {
        self.0 == 1 || Random(u64::from(piece.0)).below(self.0) == 0
    }
}

impl TryFrom<u64> for Sample {
    type Error = String;

    fn try_from(one_in: u64) -> Result<Self, String> {
        if one_in == 0 { Err("a sample of one in 0".into()) } else { Ok(Sample(one_in)) }
    }
}

impl From<Sample> for u64 {
    fn from(sample: Sample) -> u64 {
        sample.0
    }
}

impl std::str::FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one_in = text.parse().ok().filter(|number| *number > 0);
        one_in.map(Sample).ok_or_else(|| format!("expected a number above 0, found {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_about_that() {
        let sample: Sample = "10".parse().expect("a number");
        let count = (0..100_000).filter(|piece| sample.has(PieceIndex(*piece))).count();
        assert!((9_500..10_500).contains(&count), "{count}");
        assert!((0..1000).all(|piece| Sample::ALL.has(PieceIndex(piece))));
        assert!("0".parse::<Sample>().is_err() && "many".parse::<Sample>().is_err());
    }
}
