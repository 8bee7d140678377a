//! Records as bytes: a type, then fields in order, little-endian, lengths before bytes.
//!
//! What the log itself must see of a record, to know what is alive, comes first ([`Fact`]); the
//! message behind it is only decoded when a log is opened.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use tidings_broker_core::{
    BindingEnd, BindingRecord, Death, DeathReason, Deaths, Message, MessageId, QueueId, Queues,
    Record, Table, Value,
};

const EXCHANGE_DECLARED: u8 = 1;
const EXCHANGE_DELETED: u8 = 2;
const QUEUE_DECLARED: u8 = 3;
const QUEUE_DELETED: u8 = 4;
const BOUND: u8 = 5;
const UNBOUND: u8 = 6;
const ENQUEUED: u8 = 7;
const REMOVED: u8 = 8;
const REMOVED_MANY: u8 = 9;
const IDS: u8 = 10;

/// Bytes that are no record although their checksum is right: written by something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// What a record means for the question of what is alive.
#[derive(Debug, PartialEq)]
pub(crate) enum Fact {
    /// Something of the topology exists.
    Declared(Topic),
    /// It is gone.
    Deleted(Topic),
    Enqueued(MessageId, Queues),
    Removed(QueueId, MessageId),
    RemovedMany(QueueId, Vec<MessageId>),
    Ids {
        next_message: u64,
        next_queue: u64,
    },
}

/// A part of the topology, by what identifies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Topic {
    Exchange(Bytes),
    Queue(QueueId),
    /// The whole encoded binding.
    Binding(Bytes),
}

/// Appends the encoded record, without a length.
pub(crate) fn encode(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::ExchangeDeclared {
            name,
            kind,
            auto_delete,
            internal,
            arguments,
        } => {
            out.put_u8(EXCHANGE_DECLARED);
            put_bytes(name, out);
            put_bytes(kind, out);
            out.put_u8(u8::from(*auto_delete));
            out.put_u8(u8::from(*internal));
            put_table(arguments, out);
        }
        Record::ExchangeDeleted { name } => {
            out.put_u8(EXCHANGE_DELETED);
            put_bytes(name, out);
        }
        Record::QueueDeclared {
            queue,
            name,
            auto_delete,
            arguments,
        } => {
            out.put_u8(QUEUE_DECLARED);
            out.put_u64_le(queue.0);
            put_bytes(name, out);
            out.put_u8(u8::from(*auto_delete));
            put_table(arguments, out);
        }
        Record::QueueDeleted { queue } => {
            out.put_u8(QUEUE_DELETED);
            out.put_u64_le(queue.0);
        }
        Record::Bound(binding) => put_binding(BOUND, binding, out),
        Record::Unbound(binding) => put_binding(UNBOUND, binding, out),
        Record::Enqueued {
            id,
            at,
            queues,
            message,
        } => {
            put_enqueued_head(*id, queues, out);
            out.put_u64_le(*at);
            put_message(message, out);
        }
        Record::Removed { queue, id } => {
            out.put_u8(REMOVED);
            out.put_u64_le(queue.0);
            out.put_u64_le(id.0);
        }
        Record::RemovedMany { queue, ids } => {
            out.put_u8(REMOVED_MANY);
            out.put_u64_le(queue.0);
            ids.iter().for_each(|id| out.put_u64_le(id.0));
        }
        Record::Ids {
            next_message,
            next_queue,
        } => {
            out.put_u8(IDS);
            out.put_u64_le(next_message.0);
            out.put_u64_le(next_queue.0);
        }
    }
}

fn put_enqueued_head(id: MessageId, queues: &Queues, out: &mut Vec<u8>) {
    let queues = queues.as_slice();
    out.put_u8(ENQUEUED);
    out.put_u64_le(id.0);
    out.put_u32_le(queues.len() as u32);
    queues.iter().for_each(|queue| out.put_u64_le(queue.0));
}

/// Appends the record of a message again, for the queues it is still in.
pub(crate) fn reencode(encoded: &[u8], id: MessageId, queues: &Queues, out: &mut Vec<u8>) {
    let mut reader = &encoded[1 + 8..];
    let count = reader.get_u32_le() as usize;
    put_enqueued_head(id, queues, out);
    out.extend_from_slice(&reader[8 * count..]);
}

/// What the record means, without its message.
pub(crate) fn fact(encoded: &[u8]) -> Result<Fact> {
    let mut reader = encoded;
    let kind = get_u8(&mut reader)?;
    Ok(match kind {
        EXCHANGE_DECLARED => Fact::Declared(Topic::Exchange(copy(get_slice(&mut reader)?))),
        EXCHANGE_DELETED => Fact::Deleted(Topic::Exchange(copy(get_slice(&mut reader)?))),
        QUEUE_DECLARED => Fact::Declared(Topic::Queue(QueueId(get_u64(&mut reader)?))),
        QUEUE_DELETED => Fact::Deleted(Topic::Queue(QueueId(get_u64(&mut reader)?))),
        BOUND => Fact::Declared(Topic::Binding(copy(reader))),
        UNBOUND => Fact::Deleted(Topic::Binding(copy(reader))),
        ENQUEUED => {
            let id = MessageId(get_u64(&mut reader)?);
            Fact::Enqueued(id, get_queues(&mut reader)?)
        }
        REMOVED => {
            let queue = QueueId(get_u64(&mut reader)?);
            Fact::Removed(queue, MessageId(get_u64(&mut reader)?))
        }
        REMOVED_MANY => {
            let queue = QueueId(get_u64(&mut reader)?);
            let ids = reader
                .chunks_exact(8)
                .map(|mut id| MessageId(id.get_u64_le()));
            Fact::RemovedMany(queue, ids.collect())
        }
        IDS => {
            let next_message = get_u64(&mut reader)?;
            Fact::Ids {
                next_message,
                next_queue: get_u64(&mut reader)?,
            }
        }
        _ => return Err(Malformed),
    })
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn get_queues(reader: &mut &[u8]) -> Result<Queues> {
    let count = get_u32(reader)? as usize;
    let bytes = count.checked_mul(8).ok_or(Malformed)?;
    let (mut ids, rest) = reader.split_at_checked(bytes).ok_or(Malformed)?;
    *reader = rest;
    Ok(match count {
        0 => return Err(Malformed),
        1 => Queues::One(QueueId(ids.get_u64_le())),
        _ => Queues::Many(
            ids.chunks_exact(8)
                .map(|mut id| QueueId(id.get_u64_le()))
                .collect(),
        ),
    })
}

/// Whether an encoded record can be read back. Messages always can; arguments may be nested too deep.
pub(crate) fn is_readable(encoded: &[u8]) -> bool {
    match encoded.first() {
        Some(&(EXCHANGE_DECLARED | QUEUE_DECLARED | BOUND | UNBOUND)) => {
            decode(copy(encoded)).is_ok()
        }
        kind => kind.is_some(),
    }
}

/// The whole record. Its message shares `encoded`.
pub(crate) fn decode(encoded: Bytes) -> Result<Record> {
    let mut reader = Reader(encoded);
    let kind = reader.u8()?;
    Ok(match kind {
        EXCHANGE_DECLARED => Record::ExchangeDeclared {
            name: reader.bytes()?,
            kind: reader.bytes()?,
            auto_delete: reader.u8()? != 0,
            internal: reader.u8()? != 0,
            arguments: reader.table(0)?,
        },
        EXCHANGE_DELETED => Record::ExchangeDeleted {
            name: reader.bytes()?,
        },
        QUEUE_DECLARED => Record::QueueDeclared {
            queue: QueueId(reader.u64()?),
            name: reader.bytes()?,
            auto_delete: reader.u8()? != 0,
            arguments: reader.table(0)?,
        },
        QUEUE_DELETED => Record::QueueDeleted {
            queue: QueueId(reader.u64()?),
        },
        BOUND => Record::Bound(reader.binding()?),
        UNBOUND => Record::Unbound(reader.binding()?),
        ENQUEUED => {
            let id = MessageId(reader.u64()?);
            let mut slice = &reader.0[..];
            let queues = get_queues(&mut slice)?;
            let consumed = reader.0.len() - slice.len();
            reader.0.advance(consumed);
            let at = reader.u64()?;
            Record::Enqueued {
                id,
                at,
                queues,
                message: Arc::new(reader.message()?),
            }
        }
        _ => match fact(&[&[kind], &reader.0[..]].concat())? {
            Fact::Removed(queue, id) => Record::Removed { queue, id },
            Fact::RemovedMany(queue, ids) => Record::RemovedMany { queue, ids },
            Fact::Ids {
                next_message,
                next_queue,
            } => Record::Ids {
                next_message: MessageId(next_message),
                next_queue: QueueId(next_queue),
            },
            _ => return Err(Malformed),
        },
    })
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.put_u32_le(bytes.len() as u32);
    out.extend_from_slice(bytes);
}

fn put_binding(kind: u8, binding: &BindingRecord, out: &mut Vec<u8>) {
    out.put_u8(kind);
    put_bytes(&binding.source, out);
    match &binding.destination {
        BindingEnd::Queue(queue) => {
            out.put_u8(0);
            out.put_u64_le(queue.0);
        }
        BindingEnd::Exchange(name) => {
            out.put_u8(1);
            put_bytes(name, out);
        }
    }
    put_bytes(&binding.routing_key, out);
    put_table(&binding.arguments, out);
}

fn put_table(table: &Table, out: &mut Vec<u8>) {
    out.put_u32_le(table.0.len() as u32);
    for (name, value) in &table.0 {
        put_bytes(name, out);
        put_value(value, out);
    }
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Void => out.put_u8(0),
        Value::Bool(value) => {
            out.put_u8(1);
            out.put_u8(u8::from(*value));
        }
        Value::Int(value) => {
            out.put_u8(2);
            out.put_i64_le(*value);
        }
        Value::Float(value) => {
            out.put_u8(3);
            out.put_f64_le(*value);
        }
        Value::Decimal(scale, value) => {
            out.put_u8(4);
            out.put_u8(*scale);
            out.put_i32_le(*value);
        }
        Value::Str(value) => {
            out.put_u8(5);
            put_bytes(value, out);
        }
        Value::Bytes(value) => {
            out.put_u8(6);
            put_bytes(value, out);
        }
        Value::Timestamp(value) => {
            out.put_u8(7);
            out.put_u64_le(*value);
        }
        Value::Array(values) => {
            out.put_u8(8);
            out.put_u32_le(values.len() as u32);
            values.iter().for_each(|value| put_value(value, out));
        }
        Value::Table(table) => {
            out.put_u8(9);
            put_table(table, out);
        }
    }
}

fn put_optional(value: Option<u64>, out: &mut Vec<u8>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64_le(value.unwrap_or(0));
}

fn put_message(message: &Message, out: &mut Vec<u8>) {
    put_bytes(&message.exchange, out);
    put_bytes(&message.routing_key, out);
    put_list(&message.cc, out);
    put_bytes(&message.properties, out);
    put_bytes(&message.body, out);
    out.put_u8(u8::from(message.persistent));
    out.put_u8(message.priority);
    put_optional(message.expiration, out);
    out.put_u8(u8::from(message.deaths.is_some()));
    if let Some(deaths) = &message.deaths {
        put_bytes(&deaths.first.0, out);
        out.put_u8(reason_number(deaths.first.1));
        out.put_u32_le(deaths.entries.len() as u32);
        deaths
            .entries
            .iter()
            .for_each(|death| put_death(death, out));
    }
}

fn put_list(list: &[Bytes], out: &mut Vec<u8>) {
    out.put_u32_le(list.len() as u32);
    list.iter().for_each(|bytes| put_bytes(bytes, out));
}

fn put_death(death: &Death, out: &mut Vec<u8>) {
    put_bytes(&death.queue, out);
    out.put_u8(reason_number(death.reason));
    out.put_u64_le(death.count);
    out.put_u64_le(death.time);
    put_bytes(&death.exchange, out);
    put_list(&death.routing_keys, out);
    put_optional(death.original_expiration, out);
}

const REASONS: [DeathReason; 4] = [
    DeathReason::Rejected,
    DeathReason::Expired,
    DeathReason::MaxLen,
    DeathReason::DeliveryLimit,
];

const fn reason_number(reason: DeathReason) -> u8 {
    match reason {
        DeathReason::Rejected => 0,
        DeathReason::Expired => 1,
        DeathReason::MaxLen => 2,
        DeathReason::DeliveryLimit => 3,
    }
}

fn get_u8(reader: &mut &[u8]) -> Result<u8> {
    reader.try_get_u8().map_err(|_| Malformed)
}

fn get_u32(reader: &mut &[u8]) -> Result<u32> {
    reader.try_get_u32_le().map_err(|_| Malformed)
}

fn get_u64(reader: &mut &[u8]) -> Result<u64> {
    reader.try_get_u64_le().map_err(|_| Malformed)
}

fn get_slice<'a>(reader: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = get_u32(reader)? as usize;
    let (slice, rest) = reader.split_at_checked(length).ok_or(Malformed)?;
    *reader = rest;
    Ok(slice)
}

/// Reads fields off the front; byte fields share the buffer.
struct Reader(Bytes);

impl Reader {
    fn u8(&mut self) -> Result<u8> {
        self.0.try_get_u8().map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32> {
        self.0.try_get_u32_le().map_err(|_| Malformed)
    }

    fn u64(&mut self) -> Result<u64> {
        self.0.try_get_u64_le().map_err(|_| Malformed)
    }

    fn bytes(&mut self) -> Result<Bytes> {
        let length = self.u32()? as usize;
        if length > self.0.len() {
            return Err(Malformed);
        }
        Ok(self.0.split_to(length))
    }

    fn optional(&mut self) -> Result<Option<u64>> {
        let there = self.u8()? != 0;
        let value = self.u64()?;
        Ok(there.then_some(value))
    }

    fn list(&mut self) -> Result<Vec<Bytes>> {
        let count = self.u32()?;
        (0..count).map(|_| self.bytes()).collect()
    }

    fn binding(&mut self) -> Result<BindingRecord> {
        Ok(BindingRecord {
            source: self.bytes()?,
            destination: match self.u8()? {
                0 => BindingEnd::Queue(QueueId(self.u64()?)),
                1 => BindingEnd::Exchange(self.bytes()?),
                _ => return Err(Malformed),
            },
            routing_key: self.bytes()?,
            arguments: self.table(0)?,
        })
    }

    /// A table that lies in `depth` tables and arrays.
    fn table(&mut self, depth: usize) -> Result<Table> {
        let count = self.u32()?;
        let entry = |_| Ok((self.bytes()?, self.value(depth)?));
        (0..count).map(entry).collect::<Result<_>>().map(Table)
    }

    /// A value whose table or array lies in `depth` others.
    fn value(&mut self, depth: usize) -> Result<Value> {
        Ok(match self.u8()? {
            0 => Value::Void,
            1 => Value::Bool(self.u8()? != 0),
            2 => Value::Int(self.u64()? as i64),
            3 => Value::Float(f64::from_bits(self.u64()?)),
            4 => Value::Decimal(self.u8()?, self.u32()? as i32),
            5 => Value::Str(self.bytes()?),
            6 => Value::Bytes(self.bytes()?),
            7 => Value::Timestamp(self.u64()?),
            8 | 9 if depth >= Table::DEPTH_MAX => return Err(Malformed),
            8 => {
                let count = self.u32()?;
                Value::Array(
                    (0..count)
                        .map(|_| self.value(depth + 1))
                        .collect::<Result<_>>()?,
                )
            }
            9 => Value::Table(self.table(depth + 1)?),
            _ => return Err(Malformed),
        })
    }

    fn reason(&mut self) -> Result<DeathReason> {
        REASONS
            .get(usize::from(self.u8()?))
            .copied()
            .ok_or(Malformed)
    }

    fn message(&mut self) -> Result<Message> {
        Ok(Message {
            exchange: self.bytes()?,
            routing_key: self.bytes()?,
            cc: self.list()?.into(),
            properties: self.bytes()?,
            body: self.bytes()?,
            persistent: self.u8()? != 0,
            priority: self.u8()?,
            expiration: self.optional()?,
            deaths: match self.u8()? {
                0 => None,
                _ => Some(Arc::new(self.deaths()?)),
            },
        })
    }

    fn deaths(&mut self) -> Result<Deaths> {
        let first = (self.bytes()?, self.reason()?);
        let count = self.u32()?;
        let entries: Vec<Death> = (0..count).map(|_| self.death()).collect::<Result<_>>()?;
        if entries.is_empty() {
            Err(Malformed)
        } else {
            Ok(Deaths { entries, first })
        }
    }

    fn death(&mut self) -> Result<Death> {
        Ok(Death {
            queue: self.bytes()?,
            reason: self.reason()?,
            count: self.u64()?,
            time: self.u64()?,
            exchange: self.bytes()?,
            routing_keys: self.list()?,
            original_expiration: self.optional()?,
        })
    }
}
