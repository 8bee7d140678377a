//! Publishing: in batches, in the order of each message group, every outcome looked at.
//!
//! SNS and SQS answer for each message of a batch. So that a message whose predecessor was not taken does not
//! overtake it, no call has two messages of a group, and a group goes on with the next call only when the one
//! before was taken. Messages with many keys fill their calls; those with a single key go one by one.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use aws_sdk_sns::types::{MessageAttributeValue as SnsValue, PublishBatchRequestEntry};
use aws_sdk_sqs::types::{MessageAttributeValue as SqsValue, SendMessageBatchRequestEntry};
use futures_util::{StreamExt, stream};
use tidings_core::{
    Destination, Envelope, MessageId, Outgoing, PublishError, PublishErrorKind, REDRIVE_HEADER,
    REPLAY_HEADER, slot_of,
};

use crate::{
    Shared,
    client::{Trouble, of_code, trouble},
    message::{Sent, encode},
    names::{group_of, hash_of},
    topology::QUEUE_BYTES_MAX,
};

/// The largest body: in base64, with 16 KiB for its attributes, it is within what a topic takes.
pub(crate) const BODY_BYTES_MAX: usize = 180 * 1024;
/// The largest message of a topic, and of all in one call.
const TOPIC_BYTES_MAX: usize = 256 * 1024;
/// How many messages one call takes.
pub(crate) const CALL_MESSAGES_MAX: usize = 10;
/// How many calls for one destination are under way at once.
const CALLS_AT_ONCE: usize = 8;
/// The group of what has neither key nor id.
const NO_GROUP: &str = "-";

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A topic, by its ARN.
    Topic(String),
    /// A queue, by its URL.
    Queue(String),
}

/// A message to be sent.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Which one it is.
    index: usize,
    /// What it is ordered by and known by; nothing for a standard queue.
    ordered: Option<Ordered>,
    sent: Sent,
    delay: Duration,
}

#[derive(Debug)]
struct Ordered {
    group: String,
    duplicate_of: String,
}

type Outcome = Result<(), PublishError>;

impl Shared {
    /// Publishes; one outcome for each message.
    pub(crate) async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Outcome> {
        if !self.status.is_connected() {
            self.probe_if_down();
            let none = || error(PublishErrorKind::Unavailable, "SNS and SQS do not answer");
            return batch.iter().map(|_| Err(none())).collect();
        }
        let count = batch.len();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(count);
        outcomes.resize_with(count, || Ok(()));
        let mut places: Vec<(Destination, Vec<(usize, Envelope)>)> = Vec::new();
        for (index, message) in batch.into_iter().enumerate() {
            let known = places.iter_mut().find(|it| it.0 == message.destination);
            match known {
                Some((_, messages)) => messages.push((index, message.envelope)),
                None => places.push((message.destination, vec![(index, message.envelope)])),
            }
        }
        let deadline = Instant::now() + self.confirm_timeout;
        let sends = places
            .into_iter()
            .map(|(destination, messages)| self.publish_to(destination, messages, deadline));
        for done in futures_util::future::join_all(sends).await {
            for (index, outcome) in done {
                outcomes[index] = outcome;
            }
        }
        outcomes
    }

    async fn publish_to(
        &self,
        destination: Destination,
        messages: Vec<(usize, Envelope)>,
        deadline: Instant,
    ) -> Vec<(usize, Outcome)> {
        let place = match self.place(&destination).await {
            Ok(place) => place,
            Err((kind, why)) => {
                let all = messages.into_iter();
                return all
                    .map(|(index, _)| (index, Err(error(kind, &why))))
                    .collect();
            }
        };
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut entries = Vec::with_capacity(messages.len());
        for (index, envelope) in messages {
            match self.entry(index, &destination, &envelope) {
                Ok(entry) => entries.push(entry),
                Err(why) => outcomes.push((index, Err(error(PublishErrorKind::Invalid, &why)))),
            }
        }
        outcomes.extend(self.send(&place, entries, deadline).await);
        let is_gone = |(_, outcome): &(usize, Outcome)| {
            let kind = outcome.as_ref().err().map(PublishError::kind);
            kind == Some(PublishErrorKind::Unroutable)
        };
        if outcomes.iter().any(is_gone) {
            // It was there, and may have been deleted.
            let (Destination::Topic(name) | Destination::Queue(name)) = &destination;
            self.forget(name);
        }
        outcomes
    }

    /// The place of a destination, if anybody wants what goes there.
    async fn place(&self, destination: &Destination) -> Result<Place, (PublishErrorKind, String)> {
        let (place, why) = match destination {
            Destination::Topic(topic) => (
                self.is_wanted(topic)
                    .await
                    .map(|is_wanted| is_wanted.then(|| Place::Topic(self.topic_arn(topic)))),
                format!("no queue subscribes to topic `{topic}`"),
            ),
            Destination::Queue(queue) => (
                self.queue(queue)
                    .await
                    .map(|found| found.map(|at| Place::Queue(at.url))),
                format!("there is no queue `{queue}`"),
            ),
        };
        match place {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err((PublishErrorKind::Unroutable, why)),
            Err(trouble) => {
                self.note(&trouble);
                Err(kind_of(trouble))
            }
        }
    }

    fn entry(
        &self,
        index: usize,
        destination: &Destination,
        envelope: &Envelope,
    ) -> Result<Entry, String> {
        let bytes = envelope.body.len();
        if bytes > BODY_BYTES_MAX {
            return Err(format!(
                "the body has {bytes} bytes, and SNS takes {BODY_BYTES_MAX} of this toolkit's: send it by claim check \
                 (`tidings-claim-check`)"
            ));
        }
        let (slot, bytes_max) = match destination {
            Destination::Topic(_) => (envelope.key.as_deref().map(slot_of), TOPIC_BYTES_MAX),
            Destination::Queue(_) => (None, QUEUE_BYTES_MAX),
        };
        let entry = self.unchecked_entry(index, destination, envelope, slot);
        let bytes = entry.sent.bytes();
        if bytes > bytes_max {
            return Err(format!(
                "the message has {bytes} bytes with its attributes, and {bytes_max} are taken there: make its headers \
                 smaller, or send its body by claim check (`tidings-claim-check`)"
            ));
        }
        Ok(entry)
    }

    /// An entry of whatever size; the engine refuses one that is too large.
    pub(crate) fn unchecked_entry(
        &self,
        index: usize,
        destination: &Destination,
        envelope: &Envelope,
        slot: Option<u16>,
    ) -> Entry {
        let ordered = self.address.is_fifo.then(|| Ordered {
            group: group(envelope),
            duplicate_of: duplicate_of(destination, envelope),
        });
        Entry {
            index,
            ordered,
            sent: encode(envelope, slot),
            delay: Duration::ZERO,
        }
    }

    /// Sends one message, whatever its size, to a queue.
    pub(crate) async fn send_one(&self, url: &str, entry: Entry) -> Outcome {
        let deadline = Instant::now() + self.confirm_timeout;
        let place = Place::Queue(url.to_owned());
        let mut outcomes = self.send(&place, vec![entry], deadline).await;
        outcomes.pop().map_or(Ok(()), |(_, outcome)| outcome)
    }

    async fn send(
        &self,
        place: &Place,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut stopped: HashSet<String> = HashSet::new();
        for round in rounds(entries) {
            let is_late = Instant::now() >= deadline;
            let (go, stay): (Vec<Entry>, Vec<Entry>) = round.into_iter().partition(|entry| {
                !is_late && !entry.group().is_some_and(|it| stopped.contains(it))
            });
            let why = match is_late {
                true => "it was not sent in time",
                false => "it was not sent: an earlier message of its group was not taken",
            };
            let stay = stay.into_iter().map(|entry| entry.index);
            outcomes
                .extend(stay.map(|index| (index, Err(error(PublishErrorKind::Unavailable, why)))));
            let calls = stream::iter(calls(go, place.bytes_max()));
            let mut done = calls
                .map(|call| self.call(place, call))
                .buffered(CALLS_AT_ONCE);
            while let Some(done) = done.next().await {
                for (index, group, outcome) in done {
                    let kind = outcome.as_ref().err().map(PublishError::kind);
                    if let Some(group) = group
                        && kind.is_some_and(|kind| kind != PublishErrorKind::Invalid)
                    {
                        stopped.insert(group);
                    }
                    outcomes.push((index, outcome));
                }
            }
        }
        outcomes
    }

    /// One call.
    async fn call(
        &self,
        place: &Place,
        entries: Vec<Entry>,
    ) -> Vec<(usize, Option<String>, Outcome)> {
        let answer = match place {
            Place::Topic(arn) => self.call_sns(arn, &entries).await,
            Place::Queue(url) => self.call_sqs(url, &entries).await,
        };
        let failed = match answer {
            Ok(failed) => {
                self.status.up();
                failed
            }
            Err(why) => {
                self.note(&why);
                (0..entries.len()).map(|at| (at, why.clone())).collect()
            }
        };
        let mut failed: HashMap<usize, Trouble> = failed.into_iter().collect();
        let all = entries.into_iter().enumerate();
        all.map(|(at, entry)| {
            let outcome = match failed.remove(&at) {
                None => Ok(()),
                Some(why) => {
                    let (kind, why) = kind_of(why);
                    Err(error(kind, &why))
                }
            };
            (entry.index, entry.ordered.map(|it| it.group), outcome)
        })
        .collect()
    }

    async fn call_sns(
        &self,
        arn: &str,
        entries: &[Entry],
    ) -> Result<Vec<(usize, Trouble)>, Trouble> {
        let mut call = self.clients.sns.publish_batch().topic_arn(arn);
        for (at, entry) in entries.iter().enumerate() {
            let mut one = PublishBatchRequestEntry::builder()
                .id(at.to_string())
                .message(&entry.sent.body);
            if let Some(ordered) = &entry.ordered {
                one = one
                    .message_group_id(&ordered.group)
                    .message_deduplication_id(&ordered.duplicate_of);
            }
            for (name, value) in &entry.sent.attributes {
                let value = SnsValue::builder().data_type("String").string_value(value);
                one = one.message_attributes(*name, value.build().map_err(unbuilt)?);
            }
            call = call.publish_batch_request_entries(one.build().map_err(unbuilt)?);
        }
        let answer = call.send().await.map_err(trouble)?;
        let failed = answer.failed().iter();
        Ok(failed
            .map(|it| failure(it.id(), it.code(), it.message(), it.sender_fault()))
            .collect())
    }

    async fn call_sqs(
        &self,
        url: &str,
        entries: &[Entry],
    ) -> Result<Vec<(usize, Trouble)>, Trouble> {
        let mut call = self.clients.sqs.send_message_batch().queue_url(url);
        for (at, entry) in entries.iter().enumerate() {
            let mut one = SendMessageBatchRequestEntry::builder()
                .id(at.to_string())
                .message_body(&entry.sent.body);
            if !entry.delay.is_zero() {
                one = one.delay_seconds(whole_seconds(entry.delay));
            }
            if let Some(ordered) = &entry.ordered {
                one = one
                    .message_group_id(&ordered.group)
                    .message_deduplication_id(&ordered.duplicate_of);
            }
            for (name, value) in &entry.sent.attributes {
                let value = SqsValue::builder().data_type("String").string_value(value);
                one = one.message_attributes(*name, value.build().map_err(unbuilt)?);
            }
            call = call.entries(one.build().map_err(unbuilt)?);
        }
        let answer = call.send().await.map_err(trouble)?;
        let failed = answer.failed().iter();
        Ok(failed
            .map(|it| failure(it.id(), it.code(), it.message(), it.sender_fault()))
            .collect())
    }
}

impl Place {
    fn bytes_max(&self) -> usize {
        match self {
            Self::Topic(_) => TOPIC_BYTES_MAX,
            Self::Queue(_) => QUEUE_BYTES_MAX,
        }
    }
}

impl Entry {
    /// It is to come after a delay.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// It is no duplicate of another message with its id.
    pub(crate) fn apart(mut self, by: &str) -> Self {
        if let Some(ordered) = &mut self.ordered {
            ordered.duplicate_of = hash_of(&[&ordered.duplicate_of, by]);
        }
        self
    }

    fn group(&self) -> Option<&str> {
        self.ordered.as_ref().map(|ordered| &*ordered.group)
    }
}

fn failure(id: &str, code: &str, message: Option<&str>, is_senders: bool) -> (usize, Trouble) {
    let text = format!("{code}: {}", message.unwrap_or_default());
    let trouble = match of_code(code, text) {
        Trouble::Invalid(text) if !is_senders => Trouble::Busy(text),
        trouble => trouble,
    };
    (id.parse().unwrap_or(usize::MAX), trouble)
}

fn unbuilt(error: impl std::fmt::Display) -> Trouble {
    Trouble::Invalid(error.to_string())
}

fn kind_of(trouble: Trouble) -> (PublishErrorKind, String) {
    match trouble {
        Trouble::Away(why) => (PublishErrorKind::Unavailable, why),
        Trouble::Busy(why) => (PublishErrorKind::Refused, why),
        // Somebody may give the permission.
        Trouble::Denied(why) => (
            PublishErrorKind::Refused,
            format!("its credentials may not publish there (TDG-4031): {why}"),
        ),
        Trouble::Missing(why) => (PublishErrorKind::Unroutable, why),
        Trouble::Invalid(why) => (PublishErrorKind::Invalid, why),
    }
}

fn error(kind: PublishErrorKind, why: &str) -> PublishError {
    PublishError::new(kind, why)
}

/// What a message is ordered by.
fn group(envelope: &Envelope) -> String {
    match (&envelope.key, &envelope.id) {
        (Some(key), _) => group_of(key),
        (None, Some(id)) => group_of(id.as_str()),
        (None, None) => NO_GROUP.to_owned(),
    }
}

/// What a second copy of a message is known by within five minutes: the same message to the same place. One that is
/// sent again on purpose (a redrive, a replay) is another.
fn duplicate_of(destination: &Destination, envelope: &Envelope) -> String {
    let Some(id) = envelope.id.as_ref().map(MessageId::as_str) else {
        return uuid::Uuid::new_v4().simple().to_string();
    };
    let (kind, name) = match destination {
        Destination::Topic(name) => ("topic", name),
        Destination::Queue(name) => ("queue", name),
    };
    let again = [REDRIVE_HEADER, REPLAY_HEADER].map(|name| envelope.header(name).unwrap_or("-"));
    hash_of(&[kind, name, id, again[0], again[1]])
}

/// SQS counts delays in seconds; none is to end early.
fn whole_seconds(delay: Duration) -> i32 {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// In each round at most one message of each group, in their order.
fn rounds(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut rounds: Vec<Vec<Entry>> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for entry in entries {
        let round = match entry.group() {
            None => 0,
            Some(group) => {
                let next = seen.entry(group.to_owned()).or_default();
                *next += 1;
                *next - 1
            }
        };
        if rounds.len() <= round {
            rounds.resize_with(round + 1, Vec::new);
        }
        rounds[round].push(entry);
    }
    rounds
}

/// As many as one call takes.
fn calls(entries: Vec<Entry>, bytes_max: usize) -> Vec<Vec<Entry>> {
    let mut calls: Vec<Vec<Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let more = entry.sent.bytes();
        match calls.last_mut() {
            Some(call) if call.len() < CALL_MESSAGES_MAX && bytes + more <= bytes_max => {
                bytes += more;
                call.push(entry);
            }
            _ => {
                bytes = more;
                calls.push(vec![entry]);
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: usize, group: &str, bytes: usize) -> Entry {
        Entry {
            index,
            ordered: Some(Ordered {
                group: group.to_owned(),
                duplicate_of: index.to_string(),
            }),
            sent: Sent {
                body: "x".repeat(bytes),
                attributes: Vec::new(),
            },
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_round_has_one_message_of_each_group_and_keeps_their_order() {
        let groups = ["a", "b", "a", "c", "a", "b"];
        let entries = groups.iter().enumerate();
        let entries = entries
            .map(|(index, group)| entry(index, group, 1))
            .collect();
        let rounds: Vec<Vec<usize>> = rounds(entries)
            .iter()
            .map(|round| round.iter().map(|entry| entry.index).collect())
            .collect();
        assert_eq!(rounds, [vec![0, 1, 3], vec![2, 5], vec![4]]);
    }

    #[test]
    fn a_call_is_within_its_limits() {
        let sizes = |entries: Vec<Entry>, bytes_max| -> Vec<usize> {
            let calls = calls(entries, bytes_max);
            calls.iter().map(Vec::len).collect()
        };
        let many = |count: usize, bytes| (0..count).map(|it| entry(it, "g", bytes)).collect();
        assert_eq!(sizes(many(25, 1), 1000), [10, 10, 5]);
        assert_eq!(sizes(many(5, 400), 1000), [2, 2, 1]);
        assert_eq!(sizes(many(2, 1000), 1000), [1, 1]);
    }

    #[test]
    fn the_same_message_to_the_same_place_is_a_duplicate_unless_it_is_sent_again_on_purpose() {
        let topic = Destination::Topic("t".into());
        let mut envelope = Envelope::new("n.v1", "");
        assert_ne!(
            duplicate_of(&topic, &envelope),
            duplicate_of(&topic, &envelope),
            "without an id nobody knows"
        );
        envelope.id = Some("1".into());
        let first = duplicate_of(&topic, &envelope);
        assert_eq!(duplicate_of(&topic, &envelope), first);
        assert_ne!(
            duplicate_of(&Destination::Queue("t".into()), &envelope),
            first
        );
        envelope.headers = vec![(REDRIVE_HEADER.into(), "1".into())];
        let redriven = duplicate_of(&topic, &envelope);
        envelope.headers = vec![(REDRIVE_HEADER.into(), "2".into())];
        assert_ne!(redriven, first);
        assert_ne!(duplicate_of(&topic, &envelope), redriven);
    }
}
