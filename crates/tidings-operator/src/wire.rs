//! What crosses the network: one JSON document each way. Fields are only ever added.
//!
//! The core's types have no form of their own for it, so each has one here. Messages are written as stores
//! write them: metadata as one text, and the body.

mod failure;
mod store;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_core::{Attempt, DeadLetter, Envelope, LetterPlace, QueueDepth};

pub(crate) use self::{
    failure::Failure,
    store::{
        WireChange, WireClaim, WireInboxRow, WireListedRow, WireQuery, WireRecord, WireSeen,
        WireStats, millis,
    },
};

/// What is asked. Those of a store name the service whose it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(crate) enum Request {
    Services,
    Store { service: String, what: StoreAsk },
    Broker { what: BrokerAsk },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(crate) enum StoreAsk {
    OutboxStats,
    OutboxList {
        state: i16,
        after: Option<i64>,
        limit: usize,
    },
    OutboxRestore {
        positions: Vec<i64>,
    },
    OutboxDiscard {
        positions: Vec<i64>,
    },
    Consumers {
        limit: usize,
    },
    Waiting {
        consumer: String,
        limit: u64,
    },
    InboxList {
        consumer: Option<String>,
        state: Option<i16>,
        after: Option<i64>,
        limit: usize,
    },
    InboxReschedule {
        claims: Vec<WireClaim>,
        due_in_ms: u64,
    },
    InboxDiscard {
        claims: Vec<WireClaim>,
    },
    Look {
        asked: Vec<WireClaim>,
    },
    RecordsRead {
        ids: Vec<(String, String)>,
    },
    RecordKinds {
        limit: usize,
    },
    RecordsList {
        query: WireQuery,
    },
    RecordsWrite {
        changes: Vec<WireChange>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(crate) enum BrokerAsk {
    Depths {
        queues: Vec<String>,
    },
    Count {
        queue: String,
    },
    SendBack {
        consumer: String,
        batch: Vec<WireEnvelope>,
    },
    Put {
        queue: String,
        batch: Vec<WireEnvelope>,
    },
    Hold {
        queue: String,
    },
    Next {
        hold: String,
        count: usize,
    },
    Remove {
        hold: String,
        places: Vec<u64>,
    },
    Behind {
        hold: String,
    },
    Release {
        hold: String,
    },
    Keep {
        hold: String,
    },
}

impl Request {
    /// What it is, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Store { what, .. } => match what {
                StoreAsk::OutboxRestore { .. } => "restore of the outbox",
                StoreAsk::OutboxDiscard { .. } => "discard of the outbox",
                StoreAsk::InboxReschedule { .. } => "release of deferred messages",
                StoreAsk::InboxDiscard { .. } => "cancellation of deferred messages",
                StoreAsk::RecordsWrite { .. } => "records",
                _ => "a store",
            },
            Self::Broker { what } => match what {
                BrokerAsk::SendBack { .. } => "redrive of dead letters",
                BrokerAsk::Put { .. } => "dead letters put",
                BrokerAsk::Remove { .. } => "dead letters removed",
                _ => "the broker",
            },
        }
    }

    /// Whether it may change something. Holding letters is looking: they go back.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Self::Services => false,
            Self::Store { what, .. } => matches!(
                what,
                StoreAsk::OutboxRestore { .. }
                    | StoreAsk::OutboxDiscard { .. }
                    | StoreAsk::InboxReschedule { .. }
                    | StoreAsk::InboxDiscard { .. }
                    | StoreAsk::RecordsWrite { .. }
            ),
            Self::Broker { what } => matches!(
                what,
                BrokerAsk::SendBack { .. } | BrokerAsk::Put { .. } | BrokerAsk::Remove { .. }
            ),
        }
    }
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer<T> {
    Done(T),
    Failed(Failure),
}

/// Some rows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rows<T> {
    pub(crate) rows: Vec<T>,
    /// The answer was cut: ask for those after the last one.
    pub(crate) more: bool,
}

/// A body: text as it is, anything else in base64.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum WireBytes {
    Text(String),
    Base64 { base64: String },
}

impl From<Bytes> for WireBytes {
    fn from(bytes: Bytes) -> Self {
        match str::from_utf8(&bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64 {
                base64: STANDARD.encode(bytes),
            },
        }
    }
}

/// What came does not fit its type.
#[derive(Debug)]
pub(crate) struct Malformed(pub(crate) String);

impl From<Malformed> for Failure {
    fn from(Malformed(what): Malformed) -> Self {
        Self::new("invalid", what)
    }
}

impl WireBytes {
    pub(crate) fn read(self) -> Result<Bytes, Malformed> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Base64 { base64 } => {
                let read = STANDARD.decode(base64);
                Ok(read.map_err(|error| Malformed(error.to_string()))?.into())
            }
        }
    }
}

/// A message without a destination.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireEnvelope {
    metadata: String,
    body: WireBytes,
}

impl From<&Envelope> for WireEnvelope {
    fn from(envelope: &Envelope) -> Self {
        Self {
            metadata: envelope.to_metadata(),
            body: envelope.body.clone().into(),
        }
    }
}

impl WireEnvelope {
    pub(crate) fn read(self) -> Result<Envelope, Malformed> {
        let read = Envelope::from_metadata(&self.metadata, self.body.read()?);
        read.map_err(|error| Malformed(format!("a message cannot be read: {error}")))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireDepth {
    ready: u32,
    /// Not there if the broker does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    receivers: Option<u32>,
}

impl From<QueueDepth> for WireDepth {
    fn from(depth: QueueDepth) -> Self {
        Self {
            ready: depth.ready,
            receivers: depth.receivers,
        }
    }
}

impl From<WireDepth> for QueueDepth {
    fn from(depth: WireDepth) -> Self {
        Self::new(depth.ready, depth.receivers)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireLetter {
    place: u64,
    envelope: WireEnvelope,
    reason: Option<String>,
    consumer: Option<String>,
    failures: u32,
    history: Vec<Attempt>,
}

impl From<DeadLetter> for WireLetter {
    fn from(letter: DeadLetter) -> Self {
        Self {
            place: letter.place.0,
            envelope: (&letter.envelope).into(),
            reason: letter.reason.map(Into::into),
            consumer: letter.consumer.map(Into::into),
            failures: letter.failures,
            history: letter.history,
        }
    }
}

impl WireLetter {
    pub(crate) fn read(self) -> Result<DeadLetter, Malformed> {
        let mut letter = DeadLetter::new(LetterPlace(self.place), self.envelope.read()?);
        letter.reason = self.reason.map(Into::into);
        letter.consumer = self.consumer.map(Into::into);
        letter.failures = self.failures;
        letter.history = self.history;
        Ok(letter)
    }
}
