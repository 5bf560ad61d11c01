//! Owns: how sizes, rates, durations and limits are written, read and printed.
//! Never: what a value is used for; ranges that belong to one setting.
//! Flow: a scalar of the YAML tree comes in, a number with its unit in the type goes out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes: `256MiB`, `10MB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A rate of payload bytes: `12MiB/s`, `100Mbit/s`, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rate {
    /// `None` is unlimited. Never `Some(0)`.
    pub bytes_per_second: Option<u64>,
}

/// A length of time: `30s`, `5m`, `250ms`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A count, or `unlimited` (`None`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CountLimit(pub Option<u32>);

impl Period {
    pub const fn from_secs(seconds: u64) -> Period {
        Period(Duration::from_secs(seconds))
    }
}

impl Rate {
    pub const UNLIMITED: Rate = Rate { bytes_per_second: None };
}

const SIZE_UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("K", 1 << 10),
    ("KB", 1_000),
    ("KIB", 1 << 10),
    ("M", 1 << 20),
    ("MB", 1_000_000),
    ("MIB", 1 << 20),
    ("G", 1 << 30),
    ("GB", 1_000_000_000),
    ("GIB", 1 << 30),
    ("T", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("TIB", 1 << 40),
];

const BIT_UNITS: [(&str, u64); 4] =
    [("BIT", 1), ("KBIT", 1_000), ("MBIT", 1_000_000), ("GBIT", 1_000_000_000)];

const PERIOD_UNITS_MS: [(&str, u64); 13] = [
    ("ms", 1),
    ("s", 1_000),
    ("sec", 1_000),
    ("second", 1_000),
    ("seconds", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("minute", 60_000),
    ("minutes", 60_000),
    ("h", 3_600_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
    ("d", 86_400_000),
];

/// Splits `"256 MiB"` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_')));
    let (number, unit) = text.split_at(at.unwrap_or(text.len()));
    let number: f64 = number.replace('_', "").parse().ok()?;
    Some((number, unit.trim()))
}

/// Scales exactly where the number is whole, so that 2^53 and above keep every byte.
fn scale(text: &str, number: f64, factor: u64) -> Option<u64> {
    let digits: String = text.trim().chars().take_while(|c| !c.is_alphabetic()).collect();
    if let Ok(whole) = digits.trim().replace('_', "").parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number * factor as f64;
    (value.is_finite() && value <= 9e18).then_some(value.round() as u64)
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<ByteSize, String> {
        let expected = || {
            format!("\"{text}\" is not a size; write a number and a unit, such as 256MiB or 10GB")
        };
        let (number, unit) = split(text).ok_or_else(expected)?;
        let unit = unit.to_ascii_uppercase();
        let factor = match unit.as_str() {
            "" => 1,
            unit => SIZE_UNITS.iter().find(|(n, _)| *n == unit).ok_or_else(expected)?.1,
        };
        scale(text, number, factor).map(ByteSize).ok_or_else(|| format!("\"{text}\" is too large"))
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Rate, String> {
        if text.trim().eq_ignore_ascii_case("unlimited") {
            return Ok(Rate::UNLIMITED);
        }
        let expected =
            || format!("\"{text}\" is not a rate; write 12MiB/s, 100Mbit/s, or unlimited");
        let (number, unit) = split(text).ok_or_else(expected)?;
        let unit = unit.to_ascii_uppercase();
        let plain = unit.strip_suffix("/S").unwrap_or(&unit);
        let bytes = if let Some((_, bits)) = BIT_UNITS.iter().find(|(n, _)| *n == plain) {
            scale(text, number, *bits).map(|bits| bits / 8)
        } else if plain.is_empty() {
            scale(text, number, 1)
        } else {
            let unit = SIZE_UNITS.iter().find(|(n, _)| *n == plain).ok_or_else(expected)?;
            scale(text, number, unit.1)
        };
        match bytes {
            None => Err(format!("\"{text}\" is too large")),
            Some(0) => Err("a rate of 0 would stop all uploads; write unlimited for no limit, \
                            or leave the torrent out"
                .to_string()),
            Some(bytes) => Ok(Rate { bytes_per_second: Some(bytes) }),
        }
    }
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Period, String> {
        let expected = || format!("\"{text}\" is not a duration; write 30s, 5m, 2h or 250ms");
        let (number, unit) = split(text).ok_or_else(expected)?;
        let factor = PERIOD_UNITS_MS.iter().find(|(n, _)| *n == unit).ok_or_else(expected)?.1;
        let ms = scale(text, number, factor).ok_or_else(|| format!("\"{text}\" is too long"))?;
        Ok(Period(Duration::from_millis(ms)))
    }
}

impl FromStr for CountLimit {
    type Err = String;
    fn from_str(text: &str) -> Result<CountLimit, String> {
        if text.trim().eq_ignore_ascii_case("unlimited") {
            return Ok(CountLimit(None));
        }
        match text.trim().replace('_', "").parse::<u32>() {
            Ok(0) => Err("0 would allow none at all; write unlimited for no limit".to_string()),
            Ok(count) => Ok(CountLimit(Some(count))),
            Err(_) => Err(format!("\"{text}\" is neither a whole number nor \"unlimited\"")),
        }
    }
}

/// The largest binary unit that divides the value.
fn print_bytes(f: &mut fmt::Formatter<'_>, bytes: u64) -> fmt::Result {
    for (name, factor) in [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return write!(f, "{}{name}", bytes / factor);
        }
    }
    write!(f, "{bytes}B")
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_bytes(f, self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes_per_second {
            None => f.write_str("unlimited"),
            Some(bytes) => {
                print_bytes(f, bytes)?;
                f.write_str("/s")
            }
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
            if ms >= factor && ms.is_multiple_of(factor) {
                return write!(f, "{}{unit}", ms / factor);
            }
        }
        write!(f, "{ms}ms")
    }
}

impl fmt::Display for CountLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(count) => write!(f, "{count}"),
        }
    }
}

/// Serialises as it is printed, reads what it prints, and says so in the schema.
macro_rules! written_as_text {
    ($type:ty, $name:literal, $description:literal, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $description,
                    "type": ["string", "integer"],
                    "pattern": $pattern,
                    "minimum": 0
                })
            }
        }
    };
}

written_as_text!(
    ByteSize,
    "ByteSize",
    "A size: a number and a unit (B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB of 1000).",
    "^[0-9][0-9_.]* ?([KMGTkmgt]?([iI]?[bB])?)$"
);
written_as_text!(
    Rate,
    "Rate",
    "A rate: a size each second (12MiB/s), bits each second (100Mbit/s), or unlimited.",
    "^(unlimited|[0-9][0-9_.]* ?[A-Za-z]*(/s)?)$"
);
written_as_text!(
    Period,
    "Period",
    "A duration: a number and ms, s, m, h or d.",
    "^[0-9][0-9_.]* ?[a-z]+$"
);
written_as_text!(
    CountLimit,
    "CountLimit",
    "A whole number, or unlimited.",
    "^(unlimited|[0-9][0-9_]*)$"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("256MiB", 256 << 20),
            ("10MB", 10_000_000),
            ("4096", 4096),
            ("1.5 GiB", 3 << 29),
            ("64k", 65_536),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "12 parsecs", "-1", "1..2MiB", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("100Mbit/s", Some(12_500_000)),
            ("12MiB/s", Some(12 << 20)),
            ("unlimited", None),
            ("10Gbit", Some(1_250_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(Rate { bytes_per_second: bytes }), "{text}");
        }
        // Bits to some and bytes to others: refused.
        assert!("1Gbps".parse::<Rate>().is_err());
        assert!("0".parse::<Rate>().unwrap_err().contains("unlimited"));
    }

    #[test]
    fn periods_and_counts() {
        assert_eq!("5m".parse(), Ok(Period(Duration::from_secs(300))));
        assert_eq!("1.5h".parse(), Ok(Period(Duration::from_secs(5400))));
        assert!("30".parse::<Period>().is_err(), "a duration without a unit is ambiguous");
        assert_eq!("unlimited".parse(), Ok(CountLimit(None)));
        assert_eq!("8".parse(), Ok(CountLimit(Some(8))));
        assert!("0".parse::<CountLimit>().is_err());
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for bytes in [0, 1, 1023, 1024, 1 << 20, (1 << 30) + 1, u64::MAX / 2] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        for ms in [1, 999, 1000, 60_000, 90_000, 86_400_000] {
            let period = Period(Duration::from_millis(ms));
            assert_eq!(period.to_string().parse(), Ok(period));
        }
    }
}
