//! How long an order may wait for its answers: a whole number and a unit, `90s`, `15m`, `24h`, `2d`.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use shop_kit::Time;

/// How long an order may be undecided before it is cancelled. It is shown as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderDeadline(Time);

impl OrderDeadline {
    /// The time an order has from when it was placed.
    pub fn after(&self) -> Duration {
        self.0.duration()
    }

    /// Orders that were placed at this time or before are over their deadline `now`.
    pub(crate) fn cutoff(&self, now: Timestamp) -> Timestamp {
        earlier(now, self.after())
    }
}

/// `time` before `now`, or the beginning of time.
pub(crate) fn earlier(now: Timestamp, time: Duration) -> Timestamp {
    SignedDuration::try_from(time)
        .and_then(|time| now.checked_sub(time))
        .unwrap_or(Timestamp::MIN)
}

impl FromStr for OrderDeadline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time: Time = text.parse()?;
        match time.duration() {
            Duration::ZERO => Err(format!(
                "`{text}` would cancel every order at once; the shortest time is `1s`"
            )),
            _ => Ok(Self(time)),
        }
    }
}

impl fmt::Display for OrderDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<u64, &str>) {
        match (text.parse::<OrderDeadline>(), expected) {
            (Ok(deadline), Ok(seconds)) => {
                assert_eq!(deadline.after().as_secs(), seconds, "{text}");
                assert_eq!(deadline.to_string(), text.trim_start_matches('0'));
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (parsed, _) => panic!("{text}: {parsed:?}"),
        }
    }

    #[test]
    fn a_deadline_is_a_number_and_a_unit() {
        check("90s", Ok(90));
        check("15m", Ok(900));
        check("24h", Ok(86_400));
        check("2d", Ok(172_800));
        check("007s", Ok(7));
        check("3650d", Ok(315_360_000));
        check("0s", Err("cancel every order at once"));
        check("0d", Err("cancel every order at once"));
        check("3651d", Err("the longest time is `3650d`"));
        check("99999999999999999999d", Err("the longest time is `3650d`"));
        for wrong in [
            "", "h", "24", "-1h", "+1h", "1.5h", "1h30m", "24 h", "1w", "1H", "1µ",
        ] {
            check(wrong, Err("`90s`, `15m`, `24h` or `2d`"));
        }
    }
}
