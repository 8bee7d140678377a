//! Money as an exact decimal: a whole number of cents, never a binary floating-point number.
//!
//! In JSON it stands as a number with exactly two places (`99.90`). It is read from the number's
//! own digits, so `99.9`, `99.90` and `9990e-2` are the same amount and `0.1 + 0.2` is `0.30`.

use std::{
    fmt,
    iter::Sum,
    ops::{Add, Sub},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

/// An amount in the shop's one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money {
    cents: i64,
}

/// The longest number that is read: more digits than any amount has, fewer than would cost time.
const DIGITS_MAX: usize = 64;

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self { cents: 0 };

    /// The largest amount that is taken from outside. Sums of many of these still fit.
    pub const MAX: Self = Self {
        cents: 10_i64.pow(15),
    };

    /// An amount in cents.
    pub const fn from_cents(cents: i64) -> Self {
        Self { cents }
    }

    /// The amount in cents.
    pub const fn cents(self) -> i64 {
        self.cents
    }

    /// The whole units of currency in it, without the cents.
    pub const fn whole_units(self) -> i64 {
        self.cents / 100
    }

    /// `quantity` times this, or `None` if that is too much to count.
    pub fn times(self, quantity: u32) -> Option<Self> {
        let cents = self.cents.checked_mul(i64::from(quantity))?;
        Some(Self { cents })
    }

    /// For `#[serde(deserialize_with)]`: an amount that must be greater than zero.
    ///
    /// # Errors
    ///
    /// When it is not a number with at most two places, not above zero, or above
    /// [`MAX`](Self::MAX).
    pub fn deserialize_positive<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let money = Self::deserialize(from)?;
        if money <= Self::ZERO {
            return Err(de::Error::custom(format_args!(
                "an amount must be greater than zero, not {money}"
            )));
        }
        Ok(money)
    }
}

/// Why a text is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseMoneyError {
    text: Box<str>,
    problem: &'static str,
}

impl fmt::Display for ParseMoneyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not an amount: {}", self.text, self.problem)
    }
}

impl std::error::Error for ParseMoneyError {}

impl FromStr for Money {
    type Err = ParseMoneyError;

    /// Reads a JSON number.
    fn from_str(text: &str) -> Result<Self, ParseMoneyError> {
        let error = |problem| ParseMoneyError {
            text: text.chars().take(DIGITS_MAX).collect(),
            problem,
        };
        if text.len() > DIGITS_MAX {
            return Err(error("too many digits"));
        }
        let cents = parse_cents(text).map_err(error)?;
        Ok(Self { cents })
    }
}

/// Digits and a power of ten: `12.5e1` is 125 × 10⁰.
fn parse_cents(text: &str) -> Result<i64, &'static str> {
    const NOT_A_NUMBER: &str = "it must be a number like 99.90";
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| NOT_A_NUMBER)?),
        None => (rest, 0_i32),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_point = mantissa.contains('.');
    if whole.is_empty() || (has_point && fraction.is_empty()) {
        return Err(NOT_A_NUMBER);
    }
    let mut digits = 0_i128;
    for byte in whole.bytes().chain(fraction.bytes()) {
        if !byte.is_ascii_digit() {
            return Err(NOT_A_NUMBER);
        }
        digits = digits
            .checked_mul(10)
            .and_then(|digits| digits.checked_add(i128::from(byte - b'0')))
            .ok_or("too many digits")?;
    }
    if digits == 0 {
        return Ok(0);
    }
    // The power of ten that turns the digits into cents.
    let power = i64::from(exponent) - fraction.len() as i64 + 2;
    let cents = scale(digits, power)?;
    if cents > i128::from(Money::MAX.cents) {
        return Err("it is too large");
    }
    let cents = i64::try_from(cents).map_err(|_| "it is too large")?;
    Ok(if negative { -cents } else { cents })
}

fn scale(mut digits: i128, power: i64) -> Result<i128, &'static str> {
    for _ in power..0 {
        if digits % 10 != 0 {
            return Err("it has more than two places");
        }
        digits /= 10;
    }
    for _ in 0..power {
        digits = digits.checked_mul(10).ok_or("it is too large")?;
    }
    Ok(digits)
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.cents < 0 { "-" } else { "" };
        let cents = self.cents.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string())
            .map_err(ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let token = Box::<RawValue>::deserialize(deserializer)?;
        token.get().parse().map_err(de::Error::custom)
    }
}

/// A number with at most two places; how many no schema says in a way that validators of all languages agree on.
#[cfg(feature = "schema")]
impl schemars::JsonSchema for Money {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Money".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "number",
            "description": "An amount in the shop's one currency, exactly, with at most two places."
        })
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::from_cents(self.cents + other.cents)
    }
}

impl Sub for Money {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self::from_cents(self.cents - other.cents)
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<i64, &str>) {
        let read = serde_json::from_str::<Money>(json);
        match expected {
            Ok(cents) => assert_eq!(read.unwrap(), Money::from_cents(cents), "{json}"),
            Err(part) => {
                let error = read.expect_err(json).to_string();
                assert!(error.contains(part), "{json}: {error}");
            }
        }
    }

    #[test]
    fn a_json_number_is_read_exactly() {
        check("99.99", Ok(9999));
        check("99.9", Ok(9990));
        check("99.90", Ok(9990));
        check("99.900", Ok(9990));
        check("0.1", Ok(10));
        check("1e2", Ok(10_000));
        check("1.5E1", Ok(1500));
        check("9990e-2", Ok(9990));
        check("0", Ok(0));
        check("0e999999999", Ok(0));
        check("-1.25", Ok(-125));
        check("10000000000000", Ok(1_000_000_000_000_000));
    }

    #[test]
    fn what_is_not_an_exact_amount_is_refused() {
        check("99.999", Err("more than two places"));
        check("1e-3", Err("more than two places"));
        check("1e300", Err("too large"));
        check("10000000000000.01", Err("too large"));
        check("1e99999999999", Err("number like"));
        check("\"99.99\"", Err("number like"));
        check("null", Err("number like"));
        check("{\"a\":1}", Err("number like"));
        check(&"9".repeat(65), Err("too many digits"));
    }

    #[test]
    fn an_amount_has_two_places_in_json() {
        let written = |cents| serde_json::to_string(&Money::from_cents(cents)).unwrap();
        assert_eq!(written(9990), "99.90");
        assert_eq!(written(5), "0.05");
        assert_eq!(written(-5), "-0.05");
        assert_eq!(written(100), "1.00");
    }

    #[test]
    fn ten_cents_and_twenty_cents_are_thirty_cents() {
        let sum: Money = ["0.10", "0.20"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .sum();
        assert_eq!(sum.to_string(), "0.30");
    }

    #[test]
    fn points_count_whole_units_only() {
        assert_eq!(Money::from_cents(9999).whole_units(), 99);
        assert_eq!(Money::from_cents(99).whole_units(), 0);
    }
}
