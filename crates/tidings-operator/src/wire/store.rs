//! What is in a store, on its way: claims, rows of outbox and inbox, records.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tidings_core::{
    Ask, Attempt, Claim, Destination, Expected, InboxRow, InboxState, ListedRow, MessageId,
    OrderKey, OutboxStats, Outgoing, Record, RecordChange, RecordId, RecordQuery, RecordValue,
    Seen,
};

use super::{Malformed, WireBytes, WireEnvelope};

/// A message at a consumer, and what order it keeps if that was asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireClaim {
    consumer: String,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<(String, String)>,
}

impl From<&Claim> for WireClaim {
    fn from(claim: &Claim) -> Self {
        Self {
            consumer: claim.consumer.to_string(),
            message: claim.message.to_string(),
            order: None,
        }
    }
}

impl From<&Ask> for WireClaim {
    fn from(ask: &Ask) -> Self {
        Self {
            order: ask.order.as_ref().map(pair),
            ..Self::from(&ask.claim)
        }
    }
}

impl From<WireClaim> for Ask {
    fn from(claim: WireClaim) -> Self {
        Self {
            order: claim.order.map(order_key),
            claim: Claim {
                consumer: claim.consumer.into(),
                message: MessageId::new(claim.message),
            },
        }
    }
}

fn pair(order: &OrderKey) -> (String, String) {
    (order.group.to_string(), order.key.to_string())
}

fn order_key((group, key): (String, String)) -> OrderKey {
    OrderKey {
        group: group.into(),
        key: key.into(),
    }
}

/// What is known of a message: the number of its state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireSeen {
    state: Option<i16>,
    redrive: u32,
    behind: bool,
}

impl From<Seen> for WireSeen {
    fn from(seen: Seen) -> Self {
        Self {
            state: seen.state.map(|state| state as i16),
            redrive: seen.redrive,
            behind: seen.behind,
        }
    }
}

impl From<WireSeen> for Seen {
    fn from(seen: WireSeen) -> Self {
        Self {
            state: seen.state.and_then(InboxState::from_number),
            redrive: seen.redrive,
            behind: seen.behind,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireStats {
    ready: u64,
    oldest_ready_ms: u64,
    held: u64,
    oldest_held_ms: u64,
    set_aside: u64,
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<OutboxStats> for WireStats {
    fn from(stats: OutboxStats) -> Self {
        Self {
            ready: stats.ready,
            oldest_ready_ms: millis(stats.oldest_ready_age),
            held: stats.held,
            oldest_held_ms: millis(stats.oldest_held_age),
            set_aside: stats.set_aside,
        }
    }
}

impl From<WireStats> for OutboxStats {
    fn from(stats: WireStats) -> Self {
        Self {
            ready: stats.ready,
            oldest_ready_age: Duration::from_millis(stats.oldest_ready_ms),
            held: stats.held,
            oldest_held_age: Duration::from_millis(stats.oldest_held_ms),
            set_aside: stats.set_aside,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireListedRow {
    pub(crate) position: i64,
    written: Timestamp,
    destination: String,
    reason: String,
    message: Option<(String, WireBytes)>,
}

impl From<ListedRow> for WireListedRow {
    fn from(row: ListedRow) -> Self {
        let message = row
            .message
            .map(|it| (it.to_metadata(), it.envelope.body.into()));
        Self {
            position: row.position,
            written: row.written,
            destination: row.destination.to_text(),
            reason: row.reason,
            message,
        }
    }
}

impl WireListedRow {
    pub(crate) fn read(self) -> Result<ListedRow, Malformed> {
        let destination = Destination::from_text(&self.destination);
        let message = self.message.map(|(metadata, body)| {
            let read = Outgoing::from_metadata(&metadata, body.read()?);
            read.map_err(|error| Malformed(error.to_string()))
        });
        Ok(ListedRow {
            position: self.position,
            written: self.written,
            destination: destination
                .ok_or_else(|| Malformed("a destination is none".to_owned()))?,
            reason: self.reason,
            message: message.transpose()?,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireInboxRow {
    pub(crate) number: i64,
    claim: WireClaim,
    state: i16,
    due: Option<Timestamp>,
    is_leased: bool,
    failures: u32,
    history: Vec<Attempt>,
    envelope: Option<WireEnvelope>,
}

impl From<InboxRow> for WireInboxRow {
    fn from(row: InboxRow) -> Self {
        Self {
            number: row.number,
            claim: WireClaim {
                order: row.order.as_ref().map(pair),
                ..WireClaim::from(&row.claim)
            },
            state: row.state as i16,
            due: row.due,
            is_leased: row.is_leased,
            failures: row.failures,
            history: row.history,
            envelope: row.envelope.as_deref().map(WireEnvelope::from),
        }
    }
}

impl WireInboxRow {
    pub(crate) fn read(self) -> Result<InboxRow, Malformed> {
        let Ask { claim, order } = self.claim.into();
        let state = InboxState::from_number(self.state);
        Ok(InboxRow {
            number: self.number,
            claim,
            state: state.ok_or_else(|| Malformed("a state is none".to_owned()))?,
            order,
            due: self.due,
            is_leased: self.is_leased,
            failures: self.failures,
            history: self.history,
            envelope: self
                .envelope
                .map(WireEnvelope::read)
                .transpose()?
                .map(Arc::new),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireQuery {
    kind: String,
    label: Option<String>,
    older_than_ms: Option<u64>,
    after: Option<(Timestamp, String)>,
    pub(crate) limit: usize,
}

impl From<&RecordQuery> for WireQuery {
    fn from(query: &RecordQuery) -> Self {
        let after = query.after.as_ref();
        Self {
            kind: query.kind.to_string(),
            label: query.label.as_deref().map(str::to_owned),
            older_than_ms: query.older_than.map(millis),
            after: after.map(|(at, id)| (*at, id.to_string())),
            limit: query.limit,
        }
    }
}

impl From<WireQuery> for RecordQuery {
    fn from(query: WireQuery) -> Self {
        Self {
            kind: query.kind.into(),
            label: query.label.map(Into::into),
            older_than: query.older_than_ms.map(Duration::from_millis),
            after: query.after.map(|(at, id)| (at, id.into())),
            limit: query.limit,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireValue {
    label: String,
    due: Option<Timestamp>,
    body: WireBytes,
}

impl From<RecordValue> for WireValue {
    fn from(value: RecordValue) -> Self {
        Self {
            label: value.label.into(),
            due: value.due,
            body: value.body.into(),
        }
    }
}

impl WireValue {
    fn read(self) -> Result<RecordValue, Malformed> {
        Ok(RecordValue {
            label: self.label.into(),
            due: self.due,
            body: self.body.read()?,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireRecord {
    id: (String, String),
    version: u64,
    value: WireValue,
    written: Timestamp,
}

impl From<Record> for WireRecord {
    fn from(record: Record) -> Self {
        Self {
            id: (record.id.kind.into(), record.id.id.into()),
            version: record.version,
            value: record.value.into(),
            written: record.written,
        }
    }
}

impl WireRecord {
    pub(crate) fn read(self) -> Result<Record, Malformed> {
        let (kind, id) = self.id;
        Ok(Record {
            id: RecordId::new(kind, id),
            version: self.version,
            value: self.value.read()?,
            written: self.written,
        })
    }
}

/// A change of a record. What a lease guards is not an operator's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireChange {
    pub(crate) kind: String,
    id: String,
    /// `None`: whatever there is; 0: nothing; else the version.
    expected: Option<u64>,
    value: Option<WireValue>,
}

impl WireChange {
    /// `None` for one that only a worker makes.
    pub(crate) fn of(change: RecordChange) -> Option<Self> {
        let expected = match change.expected {
            Expected::Anything => None,
            Expected::Nothing => Some(0),
            Expected::Version(version) => Some(version),
            Expected::Lease(_) => return None,
        };
        Some(Self {
            kind: change.id.kind.into(),
            id: change.id.id.into(),
            expected,
            value: change.value.map(WireValue::from),
        })
    }

    pub(crate) fn read(self) -> Result<RecordChange, Malformed> {
        Ok(RecordChange {
            id: RecordId::new(self.kind, self.id),
            expected: match self.expected {
                None => Expected::Anything,
                Some(0) => Expected::Nothing,
                Some(version) => Expected::Version(version),
            },
            value: self.value.map(WireValue::read).transpose()?,
        })
    }
}
