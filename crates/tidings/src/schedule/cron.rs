//! Cron expressions: when something recurs, in a time zone.
//!
//! The expression is evaluated on wall clocks without a zone; what happens where a wall clock jumps is
//! decided here, by the rule of Vixie's cron. A *fixed time* (`30 2 * * *`) is meant once for each day: if
//! the clocks skip it, it happens when they have jumped; if they show it twice, it happens the first time. An
//! expression whose minute or hour begins with `*` is an *interval*: it happens whenever the wall clock
//! shows a matching time, which is twice in the hour that is repeated, and not in one that is skipped.

use std::{fmt, sync::Arc};

use jiff::{
    Timestamp, ToSpan,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

use crate::Error;

/// The longest name of a schedule.
const NAME_BYTES_MAX: usize = 128;
/// The longest expression.
const EXPRESSION_BYTES_MAX: usize = 256;
/// The library looks so far ahead.
const SEARCH_YEARS: i64 = 4;
/// How often it looks on from there: the longest time between two 29 Februaries that are a Monday is 40
/// years.
const SEARCHES_MAX: i64 = 11;

/// When a message recurs, and under which name.
///
/// ```
/// # fn main() -> Result<(), tidings::Error> {
/// use tidings::Cron;
///
/// let nightly = Cron::new("close-books", "0 3 * * *", "Europe/Berlin")?;
/// let june: jiff::Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
/// assert_eq!(nightly.next_after(june).unwrap().to_string(), "2026-06-01T01:00:00Z");
///
/// assert!(Cron::new("never", "0 0 30 2 *", "UTC").is_err());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Cron {
    pub(super) name: Box<str>,
    pub(super) expression: Box<str>,
    pub(super) zone: Box<str>,
    pub(super) missed: Missed,
    times: Arc<Times>,
}

/// What becomes of occurrences whose time passed while no instance could send them: all were away,
/// or their database was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Missed {
    /// One message for all of them, as soon as one can be sent: that of the latest. It says how many
    /// there were besides ([`Occurrence::missed`](crate::Occurrence::missed)).
    #[default]
    Once,
    /// None: only an occurrence that is at most a minute late is sent.
    Skip,
    /// A message for each of them, in their order; of more than 1,000 the latest 1,000.
    All,
}

/// A parsed expression in its zone.
struct Times {
    crontab: cronexpr::Crontab,
    zone: TimeZone,
    is_interval: bool,
}

impl Cron {
    /// `name` is what the schedule is known by as long as it exists. `expression` has five fields: minute,
    /// hour, day of the month, month, day of the week, as in a crontab (`*/15`, `1-5`, `MON`, `L` for the
    /// last day, `5#3` for the third Friday). If day of the month and day of the week are both
    /// restricted, either is enough. `zone` is a name of the IANA database: `Europe/Berlin`, `UTC`.
    ///
    /// # Errors
    ///
    /// When the name is empty, longer than 128 bytes or has other characters than letters, digits,
    /// `.`, `-`, `_` and `/`; when the expression cannot be read or never happens; when there is no
    /// such zone.
    pub fn new(
        name: impl Into<Box<str>>,
        expression: impl Into<Box<str>>,
        zone: impl Into<Box<str>>,
    ) -> Result<Self, Error> {
        let (name, expression, zone) = (name.into(), expression.into(), zone.into());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
            return Err(Error::msg(format!(
                "`{name}` cannot name a schedule: it is a part of message ids; use 1 to \
                 {NAME_BYTES_MAX} letters, digits, `.`, `-`, `_` and `/`"
            )));
        }
        let times = Times::parse(&expression, &zone)
            .map_err(|why| Error::msg(format!("the schedule `{name}` cannot be made: {why}")))?;
        let cron = Self {
            name,
            expression,
            zone,
            missed: Missed::default(),
            times: Arc::new(times),
        };
        match cron.next_after(Timestamp::now()) {
            Some(_) => Ok(cron),
            None => Err(Error::msg(format!(
                "the schedule `{}` cannot be made: `{}` never happens; is there such a day in such a \
                 month?",
                cron.name, cron.expression
            ))),
        }
    }

    /// What becomes of occurrences that nobody could send in time. Default: [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The expression and the zone: `0 3 * * * Europe/Berlin`.
    pub fn when(&self) -> String {
        format!("{} {}", self.expression, self.zone)
    }

    /// The first occurrence after `time`. `None`: there is none in the next
    /// 44 years.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        self.times.next_after(time)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cron")
            .field("name", &self.name)
            .field("expression", &self.expression)
            .field("zone", &self.zone)
            .field("missed", &self.missed)
            .finish_non_exhaustive()
    }
}

impl Times {
    fn parse(expression: &str, zone: &str) -> Result<Self, String> {
        let fields: Vec<&str> = expression.split_ascii_whitespace().collect();
        if fields.len() != 5 || expression.len() > EXPRESSION_BYTES_MAX {
            return Err(format!(
                "`{expression}` is no cron expression: write five fields, minute, hour, day of the \
                 month, month and day of the week, as `0 3 * * *`"
            ));
        }
        let zone = TimeZone::get(zone).map_err(|_| {
            format!("there is no time zone `{zone}`; use a name as `Europe/Berlin` or `UTC`")
        })?;
        let crontab = cronexpr::parse_crontab(&format!("{} UTC", fields.join(" ")))
            .map_err(|why| format!("`{expression}` is no cron expression: {why}"))?;
        Ok(Self {
            crontab,
            zone,
            is_interval: fields[0].starts_with('*') || fields[1].starts_with('*'),
        })
    }

    fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        match self.is_interval {
            true => self.next_of_interval(time),
            false => self.next_fixed(time),
        }
    }

    /// The next match on a wall clock that never jumps.
    fn next_on_wall(&self, after: DateTime) -> Option<DateTime> {
        (0..SEARCHES_MAX).find_map(|search| {
            let from = after.checked_add((SEARCH_YEARS * search).years()).ok()?;
            let from = TimeZone::UTC.to_timestamp(from).ok()?;
            let next = self.crontab.find_next(from).ok()?;
            Some(next.datetime())
        })
    }

    /// Between two jumps the wall clock runs evenly.
    fn next_of_interval(&self, time: Timestamp) -> Option<Timestamp> {
        let offset = self.zone.to_offset(time);
        let (mut offset, mut wall, mut from) = (offset, offset.to_datetime(time), time);
        loop {
            let next = self.next_on_wall(wall)?;
            let jump = self.zone.following(from).next();
            let found = offset.to_timestamp(next).ok()?;
            let Some(jump) = jump.filter(|jump| jump.timestamp() <= found) else {
                return Some(found);
            };
            from = jump.timestamp();
            offset = jump.offset();
            // What matches just when the clock has jumped counts.
            let just_before = jiff::SignedDuration::from_nanos(-1);
            wall = offset.to_datetime(from).checked_add(just_before).ok()?;
        }
    }

    fn next_fixed(&self, time: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(time);
        loop {
            wall = self.next_on_wall(wall)?;
            let found = match self.zone.to_ambiguous_timestamp(wall).offset() {
                AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok()?,
                // Skipped: when the clock has jumped.
                AmbiguousOffset::Gap { before, .. } => {
                    let past = before.to_timestamp(wall).ok()?;
                    let just_after = jiff::SignedDuration::from_nanos(1);
                    let jump = self
                        .zone
                        .preceding(past.checked_add(just_after).ok()?)
                        .next();
                    jump.map_or(past, |jump| jump.timestamp())
                }
                // Shown twice: the first time.
                AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok()?,
            };
            // In the hour that is repeated it may have happened before.
            if found > time {
                return Some(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let cron = Cron::new("test", expression, zone).unwrap();
        let mut time: Timestamp = after.parse().unwrap();
        let next = std::iter::from_fn(|| {
            time = cron.next_after(time)?;
            Some(time.to_string())
        });
        next.take(count).collect()
    }

    #[track_caller]
    fn check(expression: &str, zone: &str, after: &str, expected: &[&str]) {
        let found = times(expression, zone, after, expected.len());
        assert_eq!(found, expected, "`{expression}` in {zone} after {after}");
    }

    #[test]
    fn fixed_times_follow_the_zone_through_the_year() {
        check(
            "0 3 * * *",
            "Europe/Berlin",
            "2026-03-28T00:00:00Z",
            &[
                "2026-03-28T02:00:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T01:00:00Z",
            ],
        );
        check(
            "0 0 29 2 *",
            "UTC",
            "2097-01-01T00:00:00Z",
            &["2104-02-29T00:00:00Z"],
        );
        // The fifth Monday of February is there in few leap years, and 2100 is none.
        check(
            "0 0 * 2 1#5",
            "UTC",
            "2072-03-01T00:00:00Z",
            &["2112-02-29T00:00:00Z"],
        );
        check(
            "30 8 L * *",
            "Asia/Kolkata",
            "2026-01-31T03:00:00Z",
            &["2026-02-28T03:00:00Z", "2026-03-31T03:00:00Z"],
        );
        check(
            "0 12 13 * FRI",
            "UTC",
            "2026-11-09T00:00:00Z",
            &["2026-11-13T12:00:00Z", "2026-11-20T12:00:00Z"],
        );
    }

    #[test]
    fn a_fixed_time_that_the_clocks_skip_happens_when_they_have_jumped() {
        // In Berlin 02:00 to 03:00 is not there on 2026-03-29.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        // Two that are skipped, and one just when the clock has jumped, are one.
        check(
            "0,30 2,3 * * *",
            "Europe/Berlin",
            "2026-03-29T00:59:59Z",
            &[
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:30:00Z",
                "2026-03-30T00:00:00Z",
            ],
        );
        // On Lord Howe the clocks jump by half an hour: 02:00 to 02:30 is not there.
        check(
            "15 2 4 10 *",
            "Australia/Lord_Howe",
            "2026-10-01T00:00:00Z",
            &["2026-10-03T15:30:00Z"],
        );
        // In Samoa a whole day was skipped: 2011-12-30.
        check(
            "0 12 30 12 *",
            "Pacific/Apia",
            "2011-12-01T00:00:00Z",
            &["2011-12-30T10:00:00Z", "2012-12-29T22:00:00Z"],
        );
    }

    #[test]
    fn a_fixed_time_that_the_clocks_show_twice_happens_the_first_time() {
        // In Berlin 02:00 to 03:00 is there twice on 2026-10-25.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        // Asked in the hour that is repeated.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T01:10:00Z",
            &["2026-10-26T01:30:00Z"],
        );
    }

    #[test]
    fn an_interval_goes_on_evenly_where_the_clocks_jump() {
        check(
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:00:00Z",
            &[
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:00:00Z",
            ],
        );
        check(
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:30:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"],
        );
        // One that is only in the hour that is skipped does not happen on that day, and in the one that is
        // repeated it happens twice.
        check(
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T02:00:00Z",
            &["2026-03-30T00:00:00Z"],
        );
        check(
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T22:30:00Z",
            &[
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-26T01:00:00Z",
            ],
        );
        // Rare, over many jumps.
        check(
            "* 0 29 2 *",
            "America/New_York",
            "2026-01-01T00:00:00Z",
            &["2028-02-29T05:00:00Z"],
        );
    }

    #[test]
    fn what_makes_no_sense_is_an_error_at_once() {
        let check = |name: &str, expression: &str, zone: &str, part: &str| {
            let error = Cron::new(name, expression, zone).unwrap_err().to_string();
            assert!(error.contains(part), "{expression}: {error}");
        };
        check("a", "0 0 30 2 *", "UTC", "`0 0 30 2 *` never happens");
        check("a", "0 0 31 4,6,9,11 *", "UTC", "never happens");
        check("a", "0 3 * *", "UTC", "write five fields");
        check("a", "0 3 * * * UTC", "UTC", "write five fields");
        check("a", "@daily", "UTC", "write five fields");
        check("a", "0 24 * * *", "UTC", "is no cron expression");
        check("a", "*/0 * * * *", "UTC", "is no cron expression");
        check(
            "a",
            "0 3 * * *",
            "Europe/Berln",
            "no time zone `Europe/Berln`",
        );
        check("a", "0 3 * * *", "", "no time zone");
        check("", "0 3 * * *", "UTC", "cannot name a schedule");
        check("a b", "0 3 * * *", "UTC", "cannot name a schedule");
        check(
            &"a".repeat(129),
            "0 3 * * *",
            "UTC",
            "cannot name a schedule",
        );
        check(
            "a",
            &format!("{} * * * *", "1,".repeat(200)),
            "UTC",
            "write five fields",
        );
    }
}
