//! Owns: which pieces are hashed by a run that drops the rest. Never: depends on what arrives.
//! Flow: options -> crowd -> lane -> inbound asks of each block.

use seedring_proto::units::PieceIndex;

use super::walk::Random;

/// One piece in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Sample {
    one_in: u64,
    /// Which of several torrents it is of.
    torrent: u32,
    /// Of a torrent with so few pieces that none would be in it: this one is.
    least: Option<PieceIndex>,
}

impl Sample {
    pub const ALL: Sample = Sample::one_in(1);

    const fn one_in(one_in: u64) -> Self {
        Sample { one_in, torrent: 0, least: None }
    }

    /// The same of torrents with so many pieces each: of all of them together at least one.
    pub fn of_each(self, pieces: &[u64]) -> Vec<Sample> {
        let mut samples: Vec<Sample> =
            (0..pieces.len() as u32).map(|torrent| Sample { torrent, ..self }).collect();
        let has_some = |(sample, count): (&Sample, &u64)| {
            (0..*count).any(|piece| sample.has(PieceIndex(piece as u32)))
        };
        if !samples.iter().zip(pieces).any(has_some)
            && let Some((first, count)) = samples.first_mut().zip(pieces.first())
        {
            first.least = Some(PieceIndex((count / 2) as u32));
        }
        samples
    }

    /// The same pieces in every run and on every connection, and none of them by their place.
    pub fn has(self, piece: PieceIndex) -> bool {
        let number = u64::from(self.torrent) << 32 | u64::from(piece.0);
        self.one_in == 1 || self.least == Some(piece) || Random(number).below(self.one_in) == 0
    }
}

impl TryFrom<u64> for Sample {
    type Error = String;

    fn try_from(one_in: u64) -> Result<Self, String> {
        if one_in == 0 { Err("a sample of one in 0".into()) } else { Ok(Sample::one_in(one_in)) }
    }
}

impl From<Sample> for u64 {
    fn from(sample: Sample) -> u64 {
        sample.one_in
    }
}

impl std::str::FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one_in = text.parse().ok().filter(|number| *number > 0);
        one_in
            .map(Sample::one_in)
            .ok_or_else(|| format!("expected a number above 0, found {text:?}"))
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
        let of = |pieces: &[u64]| sample.of_each(pieces);
        let seen = |sample: &Sample, pieces: u32| {
            (0..pieces).filter(|piece| sample.has(PieceIndex(*piece))).count()
        };
        assert_eq!(seen(&of(&[100_000])[0], 100_000), count, "enough are in it already");
        for pieces in 1..40 {
            assert!(seen(&of(&[pieces.into()])[0], pieces) > 0, "none of {pieces}");
        }
        // Torrents of one piece are not all in it, nor all out.
        let ones = of(&[1; 1000]);
        let count = ones.iter().filter(|sample| seen(sample, 1) > 0).count();
        assert!((60..150).contains(&count), "{count} of 1000");
        assert!("0".parse::<Sample>().is_err() && "many".parse::<Sample>().is_err());
    }
}
