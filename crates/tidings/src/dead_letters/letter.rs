//! A dead letter, as an operator sees it, and what becomes of it when it is sent or put back.

use jiff::Timestamp;

use super::{
    audit::{self, Audit, RECORDED_HEADER, Recorded, body_hash, set_header},
    fingerprint::Fingerprint,
};
use crate::{
    Attempt, Claim, DeadLetter, Envelope, FAILURES_HEADER, HISTORY_HEADER, LetterPlace, MessageId,
    QUEUE_HEADER, REASON_HEADER, REDRIVE_HEADER,
};

/// The header that names the job by which a message was last redriven.
pub const JOB_HEADER: &str = "tidings-redrive-job";

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Letter {
    /// The message's id; of a message without one, `body:` and a hash of its body. Letters of the
    /// same message have the same.
    pub id: Box<str>,
    /// The queue or ordered group that it came from.
    pub consumer: Box<str>,
    /// Why it is here: the last error with its causes.
    pub reason: Box<str>,
    /// What is common to letters with that reason.
    pub fingerprint: Fingerprint,
    /// When the last attempt failed, by the consumer's clock; if that is not known, when the message
    /// was made.
    pub died_at: Option<Timestamp>,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts, oldest first; bounded.
    pub history: Vec<Attempt>,
    /// How often it was redriven.
    pub redrives: u32,
    /// How often it was edited; [`edits`](Self::edits) knows the first and the latest ones.
    pub edit_count: u32,
    /// Metadata and body.
    pub envelope: Envelope,
    pub(super) place: LetterPlace,
    /// The number of its last redrive, or of its last edit, which counts as one to its consumer.
    pub(super) number: u32,
}

impl Letter {
    /// The [`id`](Self::id) of the letter with this message.
    pub(super) fn id_of(envelope: &Envelope) -> Box<str> {
        match &envelope.id {
            Some(id) => id.as_str().into(),
            None => format!("body:{}", body_hash(&envelope.body)).into(),
        }
    }

    pub(crate) fn new(letter: DeadLetter, consumer: &str) -> Self {
        let envelope = letter.envelope;
        let last = letter.history.last();
        let (number, edit_count) = (number_of(&envelope), audit::edit_count(&envelope));
        let reason = letter
            .reason
            .or(last.map(|last| last.reason.as_str().into()));
        let reason = reason.unwrap_or_default();
        Self {
            id: Self::id_of(&envelope),
            consumer: letter.consumer.unwrap_or_else(|| consumer.into()),
            fingerprint: Fingerprint::of(&reason),
            reason,
            died_at: last.map(|last| last.at).or(envelope.time),
            failures: letter.failures,
            redrives: number.saturating_sub(edit_count),
            edit_count,
            number,
            history: letter.history,
            envelope,
            place: letter.place,
        }
    }

    /// The error and its causes, the outermost first. (They are one text in the letter, `error:
    /// cause: cause`, so an error that has a colon itself is taken apart, too.)
    pub fn errors(&self) -> Vec<&str> {
        self.reason
            .split(": ")
            .filter(|it| !it.is_empty())
            .collect()
    }

    /// What operators changed, oldest first.
    pub fn edits(&self) -> Vec<Audit> {
        audit::edits_of(&self.envelope)
    }

    /// Why it is in the record, if it is.
    pub fn recorded(&self) -> Option<Recorded> {
        let recorded = self.envelope.header(RECORDED_HEADER)?;
        serde_json::from_str(recorded).ok()
    }

    /// The job that redrove it last.
    pub fn job(&self) -> Option<&str> {
        self.envelope.header(JOB_HEADER)
    }

    /// The inbox rows it may have. A group's name does not say which of its handlers it is.
    pub(super) fn claim(&self) -> Option<Claim> {
        let message: MessageId = self.envelope.id.clone()?;
        let consumer = match self.consumer.strip_suffix(".ordered") {
            Some(service) if !is_name(service) => format!("{service}.{}", self.envelope.name),
            Some(queue) => queue.to_owned(),
            None => self.consumer.to_string(),
        };
        Some(Claim {
            consumer: consumer.into(),
            message,
        })
    }

    /// The message as it is sent to its consumer again: with its history, but as one that has not
    /// failed yet, and with a number that the consumer has not seen.
    pub(super) fn to_send(&self, job: &str) -> Envelope {
        let mut envelope = self.envelope.clone();
        envelope
            .headers
            .retain(|(name, _)| **name != *RECORDED_HEADER);
        set_header(&mut envelope, HISTORY_HEADER, audit::as_json(&self.history));
        let number = self.number.saturating_add(1);
        set_header(&mut envelope, REDRIVE_HEADER, number.to_string());
        set_header(&mut envelope, JOB_HEADER, job);
        envelope
    }

    /// The same letter again, to be put behind the others.
    pub(crate) fn to_put(&self) -> Envelope {
        let mut envelope = self.envelope.clone();
        set_header(&mut envelope, FAILURES_HEADER, self.failures.to_string());
        set_header(&mut envelope, HISTORY_HEADER, audit::as_json(&self.history));
        set_header(&mut envelope, REASON_HEADER, self.reason.clone());
        set_header(&mut envelope, QUEUE_HEADER, self.consumer.clone());
        envelope
    }

    /// The letter as it goes into the record.
    pub(super) fn to_record(&self, what: &str, audit: &Audit) -> Envelope {
        let mut envelope = self.to_put();
        let recorded = Recorded::new(what, audit);
        set_header(&mut envelope, RECORDED_HEADER, audit::as_json(&recorded));
        envelope
    }

    /// The letter with another body, and a number above that of the letter as it was: whichever of
    /// the two a consumer sees last, it is this one that it tries.
    pub(super) fn to_edit(&self, body: bytes::Bytes, audit: &Audit) -> Envelope {
        let mut envelope = self.to_put();
        audit::add_edit(&mut envelope, audit.of_edit(&self.envelope.body));
        let number = self.number.saturating_add(1);
        set_header(&mut envelope, REDRIVE_HEADER, number.to_string());
        // To the job that sent it as it was, it is another letter.
        envelope.headers.retain(|(name, _)| **name != *JOB_HEADER);
        envelope.body = body;
        envelope
    }
}

fn number_of(envelope: &Envelope) -> u32 {
    let number = envelope.header(REDRIVE_HEADER);
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// True for a handler's queue (`bank.money-deposited.v1`), whose group is its own.
fn is_name(queue: &str) -> bool {
    let version = queue.rsplit_once(".v").map(|(_, version)| version);
    version.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}
