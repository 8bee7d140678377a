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
use tidings_core::{Destination, Envelope, Outgoing, PublishError, PublishErrorKind};

use crate::{
    Shared,
    client::{Trouble, of_code, trouble},
    entry::{Entry, Ordered, calls, is_of_letters, rounds},
    message::encode,
    topology::QUEUE_BYTES_MAX,
};

/// The largest body: in base64, with 16 KiB for its attributes, it is within what a topic takes.
pub(crate) const BODY_BYTES_MAX: usize = 180 * 1024;
/// The largest message of a topic, and of all in one call.
const TOPIC_BYTES_MAX: usize = 256 * 1024;
/// How many calls for one destination are under way at once.
const CALLS_AT_ONCE: usize = 8;

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A topic, by its ARN.
    Topic(String),
    /// A queue, by its URL.
    Queue(String),
}

/// What becomes of a message whose id was there within five minutes, where SQS looks for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    /// It is dropped.
    Dropped,
    /// It is meant to be there again.
    Meant,
}

pub(crate) type Outcome = Result<(), PublishError>;

impl Shared {
    /// Publishes; one outcome for each message.
    pub(crate) async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Outcome> {
        let none = |why: &str| {
            let each = batch
                .iter()
                .map(|_| Err(error(PublishErrorKind::Unavailable, why)));
            each.collect()
        };
        if !self.status.is_connected() {
            self.probe_if_down();
            return none("SNS and SQS do not answer");
        }
        let Ok(_publishing) = self.publishing.try_read() else {
            return none("a queue is gone, and everything is declared again first (TDG-4032)");
        };
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
        let sends = places.into_iter().map(|(destination, messages)| {
            self.publish_to(destination, messages, Copies::Dropped, deadline)
        });
        for done in futures_util::future::join_all(sends).await {
            for (index, outcome) in done {
                outcomes[index] = outcome;
            }
        }
        outcomes
    }

    /// Publishes to a queue what an operator sends there on purpose, whatever was there before.
    pub(crate) async fn publish_on_purpose(
        &self,
        queue: &str,
        batch: Vec<Envelope>,
    ) -> Vec<Outcome> {
        let count = batch.len();
        let destination = Destination::Queue(queue.to_owned().into());
        let messages = batch.into_iter().enumerate().collect();
        let deadline = Instant::now() + self.confirm_timeout;
        let done = self.publish_to(destination, messages, Copies::Meant, deadline);
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(count);
        outcomes.resize_with(count, || Ok(()));
        for (index, outcome) in done.await {
            outcomes[index] = outcome;
        }
        outcomes
    }

    async fn publish_to(
        &self,
        destination: Destination,
        messages: Vec<(usize, Envelope)>,
        copies: Copies,
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
            match self.entry(index, &destination, &envelope, place.bytes_max()) {
                Ok(entry) if copies == Copies::Meant => {
                    entries.push(entry.apart(&uuid::Uuid::new_v4().to_string()));
                }
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
                self.place_of_queue(queue).await,
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
        bytes_max: usize,
    ) -> Result<Entry, String> {
        let bytes = envelope.body.len();
        if bytes > BODY_BYTES_MAX {
            return Err(format!(
                "the body has {bytes} bytes, and SNS takes {BODY_BYTES_MAX} of this toolkit's: send it by claim check \
                 (`tidings-claim-check`)"
            ));
        }
        let entry = self.unchecked_entry(index, destination, envelope);
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
    ) -> Entry {
        let is_fifo = self.address.is_fifo;
        Entry {
            index,
            ordered: is_fifo.then(|| Ordered::of(destination, envelope)),
            sent: encode(envelope),
            delay: Duration::ZERO,
            is_letter: matches!(destination, Destination::Queue(name) if is_of_letters(name)),
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
            // Dead letters have no key in common, and are to be found in the order in which they were put there.
            let at_once = match go.iter().any(|entry| entry.is_letter) {
                true => 1,
                false => CALLS_AT_ONCE,
            };
            let calls = stream::iter(calls(go, place.bytes_max()));
            let mut done = calls.map(|call| self.call(place, call)).buffered(at_once);
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

/// SQS counts delays in seconds; none is to end early.
fn whole_seconds(delay: Duration) -> i32 {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}
