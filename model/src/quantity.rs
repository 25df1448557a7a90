use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A whole number of 0 or more, as a Kubernetes quantity: `100000000`, `"100M"`, `"64Ki"`, `"1.5G"`. Fractions are rounded up, as by
/// `Quantity.Value` (apimachinery/pkg/api/resource/quantity.go). It is written as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quantity(u64);

/// The text is not a quantity of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number, 0 or more, with an optional suffix k, M, G, T, Ki, Mi, Gi or Ti")]
pub struct QuantityError(String);

impl Quantity {
    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Quantity {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text).map(Self).ok_or_else(|| QuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor))).unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) || number.ends_with('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(factor.into())?;
    u64::try_from(scaled.div_ceil(scale)).ok()
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = Quantity;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a quantity such as 1000000 or \"1M\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        u64::try_from(number).map(Quantity).map_err(|_| E::custom(QuantityError(number.to_string())))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_quantities() {
        for (text, number) in [
            ("0", 0),
            ("100M", 100_000_000),
            ("64Ki", 65_536),
            ("1.5G", 1_500_000_000),
            ("0.5Ki", 512),
            ("1.50k", 1_500),
            ("2Ti", 2 << 40),
            ("0.5", 1),
            ("1.0001k", 1_001),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Quantity(number)), "{text}");
        }
        for text in ["", "M", "-1", "+1", "1.", ".5", "1m", "1e3", "1 M", "1MM", "20000000000G"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_and_text_decode_alike_and_encode_as_numbers() {
        let read = |json: &str| serde_json::from_str::<Quantity>(json);
        assert_eq!(read("1000000").expect("a number"), read("\"1M\"").expect("a text"));
        assert!(read("-1").is_err() && read("1.5").is_err() && read("null").is_err());
        assert_eq!(serde_json::to_string(&Quantity(1_000_000)).expect("a number"), "1000000");
    }
}
