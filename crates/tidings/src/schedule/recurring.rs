//! A recurring message, as its record holds it, and what becomes of it when it is due. Pure: the time
//! comes in, messages and the next state come out.
//!
//! The record holds everything: expression, zone, rule and the message itself, so any instance can
//! send it. `planned` is the next occurrence and only ever grows, whatever the machine's clock does; it is
//! written in the commit that sends the message.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    cron::{Cron, Missed},
    split_line,
};
use crate::{MessageId, Metadata, Outgoing, RecordId, RecordValue, trace};

/// The header that says which occurrence a message is.
pub(crate) const PLANNED_HEADER: &str = "tidings-scheduled-for";
/// The header that says how many occurrences were missed besides.
pub(crate) const MISSED_HEADER: &str = "tidings-missed";

/// How many missed occurrences are counted, and how many of them [`Missed::All`] sends.
const MISSED_COUNT_MAX: u64 = 1000;
/// How many occurrences of one schedule share a commit.
const OCCURRENCES_MAX: usize = 100;
/// How late an occurrence may be for [`Missed::Skip`].
const LATE_MAX: SignedDuration = SignedDuration::from_mins(1);
/// How far the clock may have been set back before a schedule is planned anew.
const CLOCK_BACK_MAX: SignedDuration = SignedDuration::from_hours(24);
/// The step of the search for an occurrence: expressions are as fine.
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// The label of records that recur, of those that an operator paused, and of those that nobody declares
/// any more or that have no further occurrence.
pub(crate) const RECURRING: &str = "recurring";
pub(crate) const PAUSED: &str = "paused";
pub(crate) const ENDED: &str = "ended";

/// Which occurrence of a schedule a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occurrence {
    /// The time that it was planned for; it may have been sent later.
    pub planned: Timestamp,
    /// How many occurrences before it were missed and are not sent: 1,000 stands for 1,000 or more. Only
    /// with [`Missed::Once`].
    pub missed: u64,
}

impl Occurrence {
    /// From a message that a schedule sent; `None` for others.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// use tidings::{Occurrence, prelude::*};
    ///
    /// #[derive(Serialize, Deserialize, Command)]
    /// #[command(target = "books")]
    /// struct CloseBooks {}
    ///
    /// async fn close(_: CloseBooks, metadata: Metadata) -> Result<()> {
    ///     if let Some(occurrence) = Occurrence::of(&metadata) {
    ///         println!("for {}, after {} missed", occurrence.planned, occurrence.missed);
    ///     }
    ///     Ok(())
    /// }
    ///
    /// Router::new("books").on(close);
    /// ```
    pub fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            planned: metadata.header(PLANNED_HEADER)?.parse().ok()?,
            missed: metadata
                .header(MISSED_HEADER)
                .and_then(|missed| missed.parse().ok())
                .unwrap_or(0),
        })
    }
}

/// What a record holds beside the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) name: Box<str>,
    pub(crate) expression: Box<str>,
    pub(crate) zone: Box<str>,
    pub(crate) missed: Missed,
    /// The next occurrence.
    pub(crate) planned: Timestamp,
    /// The last one that was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<Timestamp>,
    /// The consumer whose program declares it; `None` if it was made by a producer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) declared_by: Option<Box<str>>,
    /// Since when it has been due and only been taken by programs that do not declare it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) foreign_since: Option<Timestamp>,
    /// Why an operator paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<Box<str>>,
    /// Why it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<Box<str>>,
}

/// A recurring message.
#[derive(Debug, Clone)]
pub(crate) struct Recurring {
    pub(crate) state: State,
    pub(crate) message: Outgoing,
    pub(crate) cron: Cron,
}

/// What is in front of such a record's body, and in front of no other.
#[derive(Serialize, Deserialize)]
struct Head {
    cron: State,
}
const HEAD: &[u8] = b"{\"cron\":";

/// Whether a record is of a recurring message.
pub(crate) fn is_recurring(body: &[u8]) -> bool {
    body.starts_with(HEAD)
}

impl Recurring {
    /// A new one. `None`: it has no occurrence after `now`.
    pub(crate) fn new(
        cron: Cron,
        message: Outgoing,
        declared_by: Option<&str>,
        now: Timestamp,
    ) -> Option<Self> {
        Some(Self {
            state: State {
                name: cron.name.clone(),
                expression: cron.expression.clone(),
                zone: cron.zone.clone(),
                missed: cron.missed,
                planned: cron.next_after(now)?,
                last: None,
                declared_by: declared_by.map(Into::into),
                foreign_since: None,
                paused: None,
                ended: None,
            },
            message,
            cron,
        })
    }

    /// The name of its record.
    pub(crate) fn record_id(&self) -> RecordId {
        let State {
            name, declared_by, ..
        } = &self.state;
        match declared_by {
            Some(consumer) => RecordId::new(super::KIND, format!("{consumer}/{name}")),
            None => RecordId::new(super::KIND, name.clone()),
        }
    }

    pub(crate) fn read(body: &Bytes) -> Result<Self, String> {
        let (head, rest) = split_line(body)?;
        let Head { cron: state } = serde_json::from_slice(&head).map_err(|it| it.to_string())?;
        let cron = Cron::new(&*state.name, &*state.expression, &*state.zone)
            .map_err(|error| error.to_string())?
            .missed(state.missed);
        Ok(Self {
            message: super::read_message(&rest)?,
            state,
            cron,
        })
    }

    /// What its record says.
    pub(crate) fn value(&self) -> RecordValue {
        let State { paused, ended, .. } = &self.state;
        let (label, due) = match (paused, ended) {
            (_, Some(_)) => (ENDED, None),
            (Some(_), None) => (PAUSED, None),
            (None, None) => (RECURRING, Some(self.state.planned)),
        };
        let head = Head {
            cron: self.state.clone(),
        };
        // Texts and times can always be written.
        let mut body = serde_json::to_vec(&head).unwrap_or_default();
        body.push(b'\n');
        body.extend_from_slice(&super::write_message(&self.message));
        RecordValue {
            label: label.into(),
            due,
            body: body.into(),
        }
    }

    /// Whether it is sent as `other` is.
    pub(crate) fn is_defined_as(&self, other: &Self) -> bool {
        let (one, that) = (&self.state, &other.state);
        (&one.expression, &one.zone, one.missed) == (&that.expression, &that.zone, that.missed)
            && super::write_message(&self.message) == super::write_message(&other.message)
    }

    /// What it sends now that it is due, and how it goes on.
    pub(crate) fn fire(&mut self, now: Timestamp) -> Vec<Outgoing> {
        // The database says that it is due, and may have another clock.
        let now = now.max(self.state.planned);
        self.state.foreign_since = None;
        let sent = match self.state.missed {
            Missed::Once => {
                let latest = self.latest(now);
                let missed = self.count(self.state.planned, latest).saturating_sub(1);
                vec![(latest, missed)]
            }
            Missed::Skip => {
                let latest = self.latest(now);
                let late = now.duration_since(latest);
                self.state.planned = latest;
                match late <= LATE_MAX {
                    true => vec![(latest, 0)],
                    false => Vec::new(),
                }
            }
            Missed::All => self.each(now).into_iter().map(|it| (it, 0)).collect(),
        };
        let messages = sent
            .iter()
            .map(|(at, missed)| self.occurrence(*at, *missed));
        let messages: Vec<Outgoing> = messages.collect();
        let last = sent.last().map(|(at, _)| *at);
        self.state.last = last.or(self.state.last);
        self.plan_after(last.unwrap_or(self.state.planned));
        messages
    }

    /// Plans the first occurrence after `time`.
    pub(crate) fn plan_after(&mut self, time: Timestamp) {
        match self.cron.next_after(time) {
            Some(next) => self.state.planned = next,
            None => self.state.ended = Some("it has no further occurrence".into()),
        }
    }

    /// Whether the clock was set back so far that its next occurrence is not the one to wait for. A smaller
    /// step is waited out: what was sent is not sent again.
    pub(crate) fn is_far_ahead(&self, now: Timestamp) -> bool {
        let last = self.state.last.unwrap_or(Timestamp::MIN);
        last.duration_since(now) > CLOCK_BACK_MAX
            && self
                .cron
                .next_after(now)
                .is_some_and(|it| it < self.state.planned)
    }

    /// The latest occurrence until `now`, of which `planned` is one. By halves, so that a year of minutes
    /// takes no longer than a day.
    fn latest(&self, now: Timestamp) -> Timestamp {
        let (mut latest, mut none_after) = (self.state.planned, now);
        while none_after.duration_since(latest) > MINUTE {
            let half = none_after.duration_since(latest) / 2;
            let Ok(middle) = latest.checked_add(half) else {
                break;
            };
            match self.cron.next_after(middle) {
                Some(next) if next <= now => latest = next,
                _ => none_after = middle,
            }
        }
        match self.cron.next_after(latest) {
            Some(next) if next <= now => next,
            _ => latest,
        }
    }

    /// How many occurrences there are from one to another, as far as they are counted.
    fn count(&self, first: Timestamp, last: Timestamp) -> u64 {
        let next = |time: &Timestamp| self.cron.next_after(*time);
        let all = std::iter::successors(Some(first), next);
        let counted = all
            .take_while(|time| *time <= last)
            .take(MISSED_COUNT_MAX as usize + 1);
        counted.count() as u64
    }

    /// The occurrences until `now` that [`Missed::All`] sends, as many as share a commit.
    fn each(&self, now: Timestamp) -> Vec<Timestamp> {
        let mut first = self.state.planned;
        if self.count(first, now) > MISSED_COUNT_MAX {
            let mut too_many = first;
            let mut few = now;
            while few.duration_since(too_many) > MINUTE {
                let Ok(middle) = too_many.checked_add(few.duration_since(too_many) / 2) else {
                    break;
                };
                match self.cron.next_after(middle) {
                    Some(next) if self.count(next, now) > MISSED_COUNT_MAX => too_many = middle,
                    _ => few = middle,
                }
            }
            first = self.cron.next_after(few).unwrap_or(first);
            tracing::warn!(
                schedule = &*self.state.name,
                "more than {MISSED_COUNT_MAX} occurrences were missed; those before {first} are not sent"
            );
        }
        let next = |time: &Timestamp| self.cron.next_after(*time);
        let all = std::iter::successors(Some(first), next);
        all.take_while(|time| *time <= now)
            .take(OCCURRENCES_MAX)
            .collect()
    }

    /// The message of an occurrence. What makes it the same message is the occurrence.
    fn occurrence(&self, planned: Timestamp, missed: u64) -> Outgoing {
        let mut message = self.message.clone();
        let envelope = &mut message.envelope;
        let id = MessageId::new(format!(
            "schedule/{}/{}/{planned}",
            envelope.source, self.state.name
        ));
        envelope.correlation_id = Some(id.as_str().into());
        envelope.traceparent = Some(trace::below(None));
        envelope.id = Some(id);
        envelope.time = Some(planned);
        let planned = planned.to_string();
        envelope
            .headers
            .push((PLANNED_HEADER.into(), planned.into()));
        if missed > 0 {
            let missed = missed.min(MISSED_COUNT_MAX).to_string();
            envelope.headers.push((MISSED_HEADER.into(), missed.into()));
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Destination, Envelope, Unrouted};

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn made(expression: &str, missed: Missed, now: &str) -> Recurring {
        let mut envelope = Envelope::new("books-closed.v1", "{}");
        envelope.source = "books".into();
        let message = Outgoing {
            destination: Destination::topic("books-closed.v1"),
            unrouted: Unrouted::Hold,
            envelope,
        };
        let cron = Cron::new("nightly", expression, "UTC")
            .unwrap()
            .missed(missed);
        Recurring::new(cron, message, Some("books"), at(now)).unwrap()
    }

    /// Fires until nothing is due any more, each time from what the record says.
    #[track_caller]
    fn fired(recurring: &mut Recurring, now: &str) -> Vec<(String, Option<String>)> {
        let mut fired = Vec::new();
        while recurring.state.planned <= at(now) {
            let messages = recurring.fire(at(now));
            assert!(messages.len() <= OCCURRENCES_MAX);
            fired.extend(messages.iter().map(|message| {
                let header = |name| message.envelope.header(name).map(str::to_owned);
                let planned = header(PLANNED_HEADER).unwrap();
                let id = message.envelope.id.as_ref().unwrap().as_str();
                assert_eq!(id, format!("schedule/books/nightly/{planned}"));
                assert_eq!(message.envelope.time, Some(at(&planned)));
                (planned, header(MISSED_HEADER))
            }));
            *recurring = Recurring::read(&recurring.value().body).unwrap();
        }
        fired
    }

    /// An instance that was away for a day, and a year.
    #[test]
    fn what_was_missed_is_sent_as_the_rule_says() {
        let check =
            |expression, missed, now: &str, count: usize, last: &str, missing: Option<&str>| {
                let mut recurring = made(expression, missed, "2026-03-01T00:30:00Z");
                let fired = fired(&mut recurring, now);
                assert_eq!(fired.len(), count, "{expression} {missed:?} {now}");
                if count > 0 {
                    let (planned, header) = &fired[count - 1];
                    assert_eq!((&**planned, header.as_deref()), (last, missing));
                }
                let next = recurring.cron.next_after(at(now)).unwrap();
                assert_eq!(
                    recurring.state.planned, next,
                    "{expression} {missed:?} {now}"
                );
            };
        let (on_time, late) = ("2026-03-01T01:00:01Z", "2026-03-02T01:30:00Z");
        for missed in [Missed::Once, Missed::Skip, Missed::All] {
            check(
                "0 * * * *",
                missed,
                on_time,
                1,
                "2026-03-01T01:00:00Z",
                None,
            );
        }
        let last = "2026-03-02T01:00:00Z";
        check("0 * * * *", Missed::Once, late, 1, last, Some("24"));
        check("0 * * * *", Missed::All, late, 25, last, None);
        check("0 * * * *", Missed::Skip, late, 0, "", None);
        // A minute late is in time.
        check(
            "0 * * * *",
            Missed::Skip,
            "2026-03-02T01:01:00Z",
            1,
            last,
            None,
        );
        check(
            "0 * * * *",
            Missed::Skip,
            "2026-03-02T01:01:01Z",
            0,
            "",
            None,
        );
        let year = "2027-03-01T00:30:30Z";
        let last = "2027-03-01T00:30:00Z";
        check("* * * * *", Missed::Once, year, 1, last, Some("1000"));
        check("* * * * *", Missed::All, year, 1000, last, None);
        check("* * * * *", Missed::Skip, year, 1, last, None);
        // Far apart, the last long ago.
        check(
            "* * * 4 *",
            Missed::Once,
            year,
            1,
            "2026-04-30T23:59:00Z",
            Some("1000"),
        );
        check(
            "0 0 1 4 *",
            Missed::All,
            "2029-03-01T00:00:00Z",
            3,
            "2028-04-01T00:00:00Z",
            None,
        );
    }

    #[test]
    fn what_is_months_ahead_waits_for_months() {
        let recurring = made("0 0 29 2 *", Missed::Once, "2025-01-01T00:00:00Z");
        assert_eq!(recurring.value().due, Some(at("2028-02-29T00:00:00Z")));
    }

    /// The record only knows what comes next, so a clock that goes back sends nothing again.
    #[test]
    fn a_clock_that_was_set_back_sends_nothing_twice_and_one_that_was_wrong_is_noticed() {
        let mut recurring = made("0 * * * *", Missed::Once, "2026-03-01T00:30:00Z");
        assert_eq!(fired(&mut recurring, "2026-03-01T01:00:00Z").len(), 1);
        let back = "2026-03-01T00:10:00Z";
        assert_eq!(fired(&mut recurring, back), []);
        assert_eq!(recurring.state.planned, at("2026-03-01T02:00:00Z"));
        assert!(!recurring.is_far_ahead(at(back)));
        // The database's clock is ahead of ours: it is due all the same, and goes on from there.
        let sent = recurring.fire(at(back));
        assert_eq!(sent[0].envelope.time, Some(at("2026-03-01T02:00:00Z")));
        assert_eq!(recurring.state.planned, at("2026-03-01T03:00:00Z"));

        for missed in [Missed::Once, Missed::Skip, Missed::All] {
            let mut recurring = made("0 * * * *", missed, "2026-03-01T00:30:00Z");
            assert_eq!(recurring.fire(at(back)).len(), 1, "{missed:?}");
        }

        // A clock that was years ahead for a moment.
        recurring.fire(at("2031-01-01T00:00:00Z"));
        assert!(recurring.is_far_ahead(at("2026-03-01T03:30:00Z")));
        assert!(!recurring.is_far_ahead(at("2030-12-31T12:00:00Z")));
    }

    #[test]
    fn what_was_paused_or_has_ended_is_not_due() {
        let mut recurring = made("0 * * * *", Missed::Once, "2026-03-01T00:30:00Z");
        recurring.state.paused = Some("the auditors are here".into());
        let value = recurring.value();
        assert_eq!((&*value.label, value.due), (PAUSED, None));
        recurring.state.ended = Some("nobody declares it".into());
        let value = recurring.value();
        assert_eq!((&*value.label, value.due), (ENDED, None));
        let read = Recurring::read(&value.body).unwrap();
        assert_eq!(read.state, recurring.state);
        assert_eq!(read.message, recurring.message);
    }
}
