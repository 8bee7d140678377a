//! Lengths of time on the command line: a whole number and a unit, `90s`, `15m`, `24h`, `2d`.

use std::{fmt, str::FromStr, time::Duration};

/// The longest time. More than ten years is a mistake in the flag.
const TIME_MAX: Duration = Duration::from_secs(3650 * DAY_SECONDS);

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// The units there are, and their seconds.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', DAY_SECONDS)];

/// A length of time, shown as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    count: u64,
    unit: char,
    duration: Duration,
}

impl Time {
    /// How long it is; it may be zero.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "`{text}` is not a time; write a whole number and a unit: `90s`, `15m`, `24h` or \
                 `2d`"
            )
        };
        let unit = text.chars().next_back().ok_or_else(unknown)?;
        let known = UNITS.into_iter().find(|(name, _)| *name == unit);
        let (_, seconds) = known.ok_or_else(unknown)?;
        let count = &text[..text.len() - unit.len_utf8()];
        if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unknown());
        }
        let time = count.parse::<u64>().ok().and_then(|count| {
            let duration = Duration::from_secs(count.checked_mul(seconds)?);
            (duration <= TIME_MAX).then_some(Self {
                count,
                unit,
                duration,
            })
        });
        time.ok_or_else(|| format!("`{text}` is too long; the longest time is `3650d`"))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit)
    }
}
