//! A message as it lies in queues: routing facts in the open, everything else as opaque bytes.

use std::sync::Arc;

use bytes::Bytes;

/// A published message. Queues and deliveries share it; nobody changes it after publication.
///
/// The byte fields may be slices of a larger buffer. They keep that buffer alive for as long as the
/// message waits in a queue, so a caller with large read buffers copies small messages out first.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The exchange it was published to, or dead-lettered to last; empty for the default exchange.
    pub exchange: Bytes,
    /// The routing key it was published with, or dead-lettered with last.
    pub routing_key: Bytes,
    /// Further routing keys, from the header `CC`. (Those of `BCC` go to
    /// [`Broker::publish`](crate::Broker::publish) beside the message and are not kept.)
    pub cc: Box<[Bytes]>,
    /// The property list in the encoding of whoever published it; the core never looks inside.
    /// When `deaths` is there, whoever renders the message leaves out the `expiration` in here.
    pub properties: Bytes,
    /// The payload.
    pub body: Bytes,
    /// Delivery mode 2: in a durable queue it survives a restart.
    pub persistent: bool,
    /// The property `priority`; counts only in queues with `x-max-priority`.
    pub priority: u8,
    /// The property `expiration` in milliseconds.
    pub expiration: Option<u64>,
    /// What the header `x-death` says, if the message was dead-lettered.
    pub deaths: Option<Arc<Deaths>>,
}

/// Why a message left its queue for the dead-letter exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeathReason {
    /// A consumer rejected it without requeueing.
    Rejected,
    /// Its time to live was over.
    Expired,
    /// The queue was over its length limit.
    MaxLen,
    /// It was redelivered more often than the queue allows.
    DeliveryLimit,
}

impl DeathReason {
    /// The word used in `x-death`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLen => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// The history of dead-lettering of one message: one entry per (queue, reason), latest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Deaths {
    /// Never empty; the latest death is first.
    pub entries: Vec<Death>,
    /// The queue and reason of the very first death, for `x-first-death-*`.
    pub first: (Bytes, DeathReason),
}

/// One entry of `x-death`.
#[derive(Debug, Clone, PartialEq)]
pub struct Death {
    /// The queue the message died in.
    pub queue: Bytes,
    /// Why.
    pub reason: DeathReason,
    /// How often it died there for that reason.
    pub count: u64,
    /// When it first did, in milliseconds since the epoch.
    pub time: u64,
    /// The exchange it had come by.
    pub exchange: Bytes,
    /// The routing keys it had come with, `CC` included.
    pub routing_keys: Vec<Bytes>,
    /// The `expiration` that was taken off it.
    pub original_expiration: Option<u64>,
}

impl Deaths {
    /// The latest death, for `x-last-death-*`.
    pub fn last(&self) -> &Death {
        &self.entries[0]
    }

    /// The first death, for `x-first-death-*`.
    pub fn first(&self) -> &Death {
        let (queue, reason) = &self.first;
        let is_first = |death: &&Death| death.queue == *queue && death.reason == *reason;
        self.entries
            .iter()
            .find(is_first)
            .unwrap_or_else(|| self.last())
    }

    /// The history `before` with one more death. A (queue, reason) that is there already is counted
    /// up and moves to the front; it keeps the circumstances of its first time.
    pub(crate) fn record(before: Option<&Self>, death: Death) -> Self {
        let Some(before) = before else {
            return Self {
                first: (death.queue.clone(), death.reason),
                entries: vec![death],
            };
        };
        let mut entries = before.entries.clone();
        let same = |old: &Death| old.queue == death.queue && old.reason == death.reason;
        let latest = match entries.iter().position(same) {
            Some(at) => {
                let old = entries.remove(at);
                Death {
                    count: old.count + 1,
                    ..old
                }
            }
            None => death,
        };
        entries.insert(0, latest);
        Self {
            entries,
            first: before.first.clone(),
        }
    }

    /// Whether delivering to `queue` would close a cycle in which no consumer ever rejected: such a
    /// message would go round for ever.
    pub(crate) fn is_cycle(&self, queue: &[u8]) -> bool {
        let Some(end) = self.entries.iter().position(|death| death.queue == queue) else {
            return false;
        };
        self.entries[..=end]
            .iter()
            .all(|death| death.reason != DeathReason::Rejected)
    }
}

impl Message {
    /// A transient message with nothing but a body, to fill in further with `..`.
    pub fn new(
        exchange: impl Into<Bytes>,
        routing_key: impl Into<Bytes>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            cc: Box::default(),
            properties: Bytes::new(),
            body: body.into(),
            persistent: false,
            priority: 0,
            expiration: None,
            deaths: None,
        }
    }
}
