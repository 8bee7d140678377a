//! How much memory messages hold, exactly: each payload is counted when it is taken in and when its
//! last owner lets it go, wherever that is: in queues, in outbound buffers, in transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tidings_broker_core::{Message, Record};

/// Counts bytes of messages.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
}

/// What a message costs besides its bytes: its place in a queue, its shared parts. Measured
/// roughly.
const OVERHEAD_BYTES: u64 = 256;

/// A body from here on stays in the buffer it was read into; a smaller one could keep a large
/// buffer alive.
const COPY_BYTES_MAX: usize = 16 * 1024;

impl Meter {
    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes a payload out of the buffer it was read into, and counts it.
    pub(crate) fn take_in(self: &Arc<Self>, properties: &[u8], body: Bytes) -> (Bytes, Bytes) {
        if body.len() >= COPY_BYTES_MAX {
            return (self.weigh(properties.to_vec()), self.weigh(body));
        }
        let mut both = Vec::with_capacity(properties.len() + body.len());
        both.extend_from_slice(properties);
        both.extend_from_slice(&body);
        let mut properties_copy = self.weigh(both);
        let body = properties_copy.split_off(properties.len());
        (properties_copy, body)
    }

    /// What a payload counts when it is taken in.
    pub(crate) fn weight(properties: usize, body: usize) -> u64 {
        let parts = if body >= COPY_BYTES_MAX { 2 } else { 1 };
        (properties + body) as u64 + parts * OVERHEAD_BYTES
    }

    /// Counts the message in a record, too.
    pub(crate) fn weighed(self: &Arc<Self>, record: Record) -> Record {
        let Record::Enqueued {
            id,
            at,
            queues,
            message,
        } = record
        else {
            return record;
        };
        let message = self.weighed_message(message);
        Record::Enqueued {
            id,
            at,
            queues,
            message,
        }
    }

    /// Counts a message that was read.
    pub(crate) fn weighed_message(self: &Arc<Self>, message: Arc<Message>) -> Arc<Message> {
        let mut message = Arc::unwrap_or_clone(message);
        (message.properties, message.body) =
            self.take_in(&message.properties, std::mem::take(&mut message.body));
        Arc::new(message)
    }

    fn weigh<B: AsRef<[u8]> + Send + 'static>(self: &Arc<Self>, bytes: B) -> Bytes {
        let weight = bytes.as_ref().len() as u64 + OVERHEAD_BYTES;
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        Bytes::from_owner(Weighed {
            bytes,
            weight,
            meter: self.clone(),
        })
    }
}

struct Weighed<B> {
    bytes: B,
    weight: u64,
    meter: Arc<Meter>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Weighed<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B> Drop for Weighed<B> {
    fn drop(&mut self) {
        self.meter.bytes.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_counts_until_its_last_part_is_gone() {
        let meter = Arc::new(Meter::default());
        let (properties, body) = meter.take_in(b"pp", Bytes::from_static(b"body"));
        assert_eq!((&properties[..], &body[..]), (&b"pp"[..], &b"body"[..]));
        assert_eq!(meter.bytes(), 6 + OVERHEAD_BYTES);
        assert_eq!(meter.bytes(), Meter::weight(2, 4));
        drop(properties);
        assert_eq!(meter.bytes(), 6 + OVERHEAD_BYTES);
        drop(body);
        assert_eq!(meter.bytes(), 0);

        let large = meter.take_in(b"pp", vec![0; COPY_BYTES_MAX].into());
        assert_eq!(
            meter.bytes(),
            2 + COPY_BYTES_MAX as u64 + 2 * OVERHEAD_BYTES
        );
        assert_eq!(meter.bytes(), Meter::weight(2, COPY_BYTES_MAX));
        drop(large);
        assert_eq!(meter.bytes(), 0);
    }
}
