//! What operators of dead letters do to queues.

use std::sync::Arc;

use tidings_core::{
    AccessErrorKind, Destination, Envelope, Outgoing, PublishError, PublishErrorKind, RECORD_QUEUE,
    RECORDED_COUNT_MAX, Unrouted, slot_of,
};

use super::{Broker, Holder, Next, Stored};

impl Broker {
    /// Holds a queue, if it is there and nobody else does.
    pub(crate) fn hold(&mut self, queue: &str, connection: u64) -> Result<Holder, AccessErrorKind> {
        let found = self.queues.get_mut(queue);
        let found = found.ok_or(AccessErrorKind::Missing)?;
        if found.held_by.is_some() {
            return Err(AccessErrorKind::Busy);
        }
        self.counter += 1;
        let holder = Holder {
            connection,
            consumer: self.counter,
        };
        found.held_by = Some(holder);
        Ok(holder)
    }

    /// The next messages of a queue that `holder` holds; none if it does not (any more).
    pub(crate) fn take_held(
        &mut self,
        queue: &str,
        holder: Holder,
        count: usize,
    ) -> Vec<(u64, Stored)> {
        let mut taken = Vec::new();
        let held_by = self.queues.get(queue).and_then(|queue| queue.held_by);
        if held_by != Some(holder) {
            return taken;
        }
        while taken.len() < count
            && let Next::Message(tag, stored) = self.take(queue, holder)
        {
            taken.push((tag, *stored));
        }
        taken
    }

    /// Takes a message out for good. False if it is not held (any more).
    pub(crate) fn remove_held(&mut self, queue: &str, tag: u64) -> bool {
        let queue = self.queues.get_mut(queue);
        queue.is_some_and(|queue| queue.out.remove(&tag).is_some())
    }

    /// Puts back what `holder` has, as it was: nobody tried to handle it.
    pub(crate) fn release(&mut self, queue: &str, holder: Holder) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.held_by.take_if(|it| *it == holder);
            for (_, out) in queue.out.extract_if(|_, out| out.holder == holder) {
                queue.ready.insert(out.number, out.stored);
            }
            queue.changed.notify_waiters();
        }
    }

    /// How many messages are in a queue and with nobody. `None` if there is no such queue.
    pub(crate) fn ready(&self, queue: &str) -> Option<u64> {
        Some(self.queues.get(queue)?.ready.len() as u64)
    }

    /// Sends a message to a queue, or to the ordered group of that name.
    pub(crate) fn send_back(
        &mut self,
        consumer: &str,
        envelope: Envelope,
    ) -> Result<(), PublishError> {
        let group = self.groups.iter().find(|group| group.name == consumer);
        let queue = match group {
            Some(group) => match &envelope.key {
                Some(key) => group.partition(group.partition_of_slot(slot_of(key))),
                None => group.any(),
            },
            None => consumer.to_owned(),
        };
        self.publish_to(&queue, envelope)
    }

    /// Puts a message into a queue as it is; the one for the record is made if it is not there.
    pub(crate) fn put(&mut self, queue: &str, envelope: Envelope) -> Result<(), PublishError> {
        if queue == RECORD_QUEUE {
            let record = self.queues.entry(Arc::from(RECORD_QUEUE)).or_default();
            while record.ready.len() >= RECORDED_COUNT_MAX as usize {
                record.ready.pop_first();
            }
        }
        self.publish_to(queue, envelope)
    }

    fn publish_to(&mut self, queue: &str, envelope: Envelope) -> Result<(), PublishError> {
        if !self.queues.contains_key(queue) {
            return Err(PublishError::new(
                PublishErrorKind::Unroutable,
                format!("there is neither a queue nor an ordered group `{queue}`"),
            ));
        }
        self.publish(Outgoing {
            destination: Destination::Queue(queue.to_owned().into()),
            unrouted: Unrouted::Hold,
            envelope,
        })
    }
}
