//! How much room a store must have for what a command records.
//!
//! A command is carried out only if the store has room for its records, so the core has to know that
//! before it changes anything. What is said here is the most that an encoding may need whose numbers
//! have 8 bytes, and whose lengths and counts have 4. `tidings-broker-log` tests that it needs no more.

use bytes::Bytes;

use crate::{BindingEnd, Deaths, Message, NAME_BYTES_MAX, Record, Table, Value};

/// A record without its names, tables and lists.
const RECORD_BYTES: usize = 64;
/// What a name, a list or one of its items has besides its own bytes.
const ITEM_BYTES: usize = 8;
const VALUE_BYTES: usize = 16;

impl Record {
    /// The most bytes that a store needs for this record, if it is one of something new. Records of
    /// what is gone need none: a store always has room for them, since they are what frees space.
    pub(crate) fn stored_bytes(&self) -> usize {
        match self {
            Self::ExchangeDeclared {
                name,
                kind,
                arguments,
                ..
            } => RECORD_BYTES + item(name) + item(kind) + arguments.stored_bytes(),
            Self::QueueDeclared {
                name, arguments, ..
            } => RECORD_BYTES + item(name) + arguments.stored_bytes(),
            Self::Bound(binding) => {
                let destination = match &binding.destination {
                    BindingEnd::Queue(_) => 0,
                    BindingEnd::Exchange(name) => item(name),
                };
                let names = item(&binding.source) + destination + item(&binding.routing_key);
                RECORD_BYTES + names + binding.arguments.stored_bytes()
            }
            Self::Enqueued {
                queues, message, ..
            } => message.stored_bytes(queues.as_slice().len()),
            Self::ExchangeDeleted { .. }
            | Self::QueueDeleted { .. }
            | Self::Unbound(_)
            | Self::Removed { .. }
            | Self::RemovedMany { .. }
            | Self::Ids { .. } => 0,
        }
    }
}

impl Table {
    fn stored_bytes(&self) -> usize {
        let entries = self.0.iter();
        let entries = entries.map(|(name, value)| item(name) + value.stored_bytes());
        ITEM_BYTES + entries.sum::<usize>()
    }

    /// The most bytes that a store needs for a declaration or a binding with these arguments,
    /// whatever its names.
    pub fn record_bytes_max(&self) -> usize {
        RECORD_BYTES + 3 * (ITEM_BYTES + NAME_BYTES_MAX) + self.stored_bytes()
    }
}

impl Value {
    fn stored_bytes(&self) -> usize {
        VALUE_BYTES
            + match self {
                Self::Str(bytes) | Self::Bytes(bytes) => bytes.len(),
                Self::Array(values) => values.iter().map(Self::stored_bytes).sum(),
                Self::Table(table) => table.stored_bytes(),
                _ => 0,
            }
    }
}

impl Message {
    /// The most bytes that a store needs for this message in so many durable queues.
    pub fn stored_bytes(&self, queues: usize) -> usize {
        let names = item(&self.exchange) + item(&self.routing_key) + items(&self.cc);
        let content = item(&self.properties) + item(&self.body);
        let deaths = self.deaths.as_deref().map_or(0, Deaths::stored_bytes);
        RECORD_BYTES + 8 * queues + names + content + deaths
    }
}

impl Deaths {
    fn stored_bytes(&self) -> usize {
        let entries = self.entries.iter().map(|death| {
            let names = item(&death.queue) + item(&death.exchange);
            RECORD_BYTES + names + items(&death.routing_keys)
        });
        RECORD_BYTES + item(&self.first.0) + entries.sum::<usize>()
    }
}

fn item(bytes: &Bytes) -> usize {
    ITEM_BYTES + bytes.len()
}

fn items(list: &[Bytes]) -> usize {
    ITEM_BYTES + list.iter().map(item).sum::<usize>()
}
