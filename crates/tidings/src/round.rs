//! One round of the [`relay`](crate::relay): the rows it publishes, and what came of them.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    BoxFuture, Destination, Lane, OutboxRow, Outgoing, PublishError, PublishErrorKind, Store,
    StoreError, Unrouted, hash_of_key,
};

/// Why rows are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nobody listens.
    Unrouted,
    /// The broker did not say in time whether it took them.
    Unconfirmed,
    /// The broker refused.
    Refused,
    /// The destination takes messages again; those that are held go first.
    Draining,
}

/// The rows of a round.
#[derive(Default)]
pub(crate) struct Batch {
    /// Those that are published now.
    pub(crate) rows: Vec<(i64, Outgoing)>,
    /// Those that cannot be read, with the reason.
    pub(crate) unreadable: Vec<(i64, String)>,
    /// Positions of those that are held without being offered, by the reason.
    pub(crate) to_hold: HashMap<&'static str, Vec<i64>>,
    /// Destinations all of whose held rows are in this batch.
    pub(crate) drained: HashSet<Destination>,
    /// There may be more.
    pub(crate) is_full: bool,
}

impl Batch {
    pub(crate) fn push(&mut self, row: OutboxRow) {
        match row.message {
            Ok(message) => self.rows.push((row.position, message)),
            Err(error) => self.unreadable.push((row.position, error.to_string())),
        }
    }

    pub(crate) fn hold(&mut self, reason: &'static str, position: i64) {
        self.to_hold.entry(reason).or_default().push(position);
    }
}

/// What is needed of a row after it has been handed to the transport.
pub(crate) struct About {
    position: i64,
    /// The hash of its key: no copy of the key is made for each message.
    key: Option<u64>,
    pub(crate) destination: Destination,
    unrouted: Unrouted,
    name: Cow<'static, str>,
}

impl About {
    pub(crate) fn new(position: i64, message: &Outgoing) -> Self {
        Self {
            position,
            key: message.envelope.key.as_deref().map(hash_of_key),
            destination: message.destination.clone(),
            unrouted: message.unrouted,
            name: message.envelope.name.clone(),
        }
    }
}

/// What came of a round, by position.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) sent: Vec<i64>,
    pub(crate) reached: HashSet<Destination>,
    /// Rows that were not taken, by destination, with the reason.
    pub(crate) held: HashMap<Destination, (Why, String, Vec<i64>)>,
    pub(crate) invalid: Vec<(i64, String)>,
    pub(crate) trouble: Option<PublishError>,
    /// Keys, as hashes, of rows of which nobody knows whether they were taken. They stay ready, and are offered again. A row
    /// whose key only has the same hash stays ready as well, and is held a round later.
    in_doubt: HashSet<u64>,
}

impl Round {
    /// Everything was taken.
    pub(crate) fn is_clean(&self) -> bool {
        self.held.is_empty() && self.invalid.is_empty() && self.trouble.is_none()
    }

    pub(crate) fn take(&mut self, about: About, outcome: Result<(), PublishError>) {
        let About {
            position,
            key,
            destination,
            unrouted,
            name,
        } = about;
        let Err(error) = outcome else {
            self.sent.push(position);
            if !self.reached.contains(&destination) {
                self.reached.insert(destination);
            }
            return;
        };
        let why = match error.kind() {
            PublishErrorKind::Unroutable if unrouted == Unrouted::Drop => {
                return self.sent.push(position);
            }
            PublishErrorKind::Unroutable => Why::Unrouted,
            PublishErrorKind::Unconfirmed => Why::Unconfirmed,
            PublishErrorKind::Refused => Why::Refused,
            PublishErrorKind::Invalid => {
                let reason = format!("`{name}` to {destination}: {error}");
                return self.invalid.push((position, reason));
            }
            _ => {
                self.in_doubt.extend(key);
                return self.trouble = Some(error);
            }
        };
        // What is held goes before what is ready: held, it would overtake those of its key that are in doubt.
        if key.is_some_and(|key| self.in_doubt.contains(&key)) {
            return;
        }
        let held = self.held.entry(destination);
        let (_, _, positions) = held.or_insert_with(|| (why, error.to_string(), Vec::new()));
        positions.push(position);
    }
}

/// What was read while a round was published.
pub(crate) struct ReadAhead {
    pub(crate) began: Instant,
    pub(crate) rows: Result<Vec<OutboxRow>, StoreError>,
    /// Whether the rows of the round before are removed.
    pub(crate) confirmed: Result<(), StoreError>,
}

pub(crate) type Ahead = BoxFuture<'static, ReadAhead>;

/// Reads the rows behind those that are `in_flight` now, and removes those of the round before.
pub(crate) fn read_ahead(
    store: Arc<dyn Store>,
    lanes: Vec<Lane>,
    in_flight: Vec<i64>,
    removed: Vec<i64>,
    limit: usize,
) -> Ahead {
    let began = Instant::now();
    Box::pin(async move {
        let outbox = store.outbox();
        let except = [&*in_flight, &*removed].concat();
        let confirm = async {
            match removed.is_empty() {
                true => Ok(()),
                false => outbox.confirmed(&removed).await,
            }
        };
        let (rows, confirmed) = tokio::join!(outbox.next(&lanes, &[], &except, limit), confirm);
        ReadAhead {
            began,
            rows,
            confirmed,
        }
    })
}
