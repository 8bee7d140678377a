//! What a command records must have room in the store before the command changes anything.
//!
//! Whoever drives the broker says before each command how much room there is. A command whose records
//! do not fit is refused and nothing has changed, so that the same command is a new one when there is
//! room again. What the broker does by itself, to bury a message that died in its queue, waits for
//! room: until then the store has the message where it was.
//!
//! In the same way there is a limit to how many queues, exchanges and bindings there are.

use super::{Broker, PREDECLARED};
use crate::exchange::Target;
use crate::queue::{Queue, text};
use crate::slab::Key;
use crate::{Effect, Message, Record, Refusal};

impl Broker {
    /// Says how many bytes of records of new things the store has room for, until this is said
    /// anew. Without it there is no limit.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    /// How much of that is left.
    pub fn room(&self) -> usize {
        self.room
    }

    /// The room that a message needs which waits to be buried, if one does: give it as much, or call
    /// [`Broker::tick`] when the store has room again.
    pub fn waits_for_room(&self) -> Option<usize> {
        self.dying.front().map(|dying| dying.room)
    }

    /// The most queues that a store can be asked to keep one message in.
    pub fn durable_queues(&self) -> usize {
        self.queue_ids.len()
    }

    pub(super) fn check_room(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes <= self.room {
            return Ok(());
        }
        Err(Refusal::no_room())
    }

    /// Records something new, for which there is room.
    pub(super) fn store(&mut self, record: Record, out: &mut Vec<Effect>) {
        self.room = self.room.saturating_sub(record.stored_bytes());
        out.push(Effect::Store(record));
    }

    /// The room that a message needs in these queues.
    pub(super) fn room_for(&self, message: &Message, queues: &[Key]) -> usize {
        if !message.persistent {
            return 0;
        }
        let survives = |key: &&Key| self.queues.get(**key).is_some_and(Queue::survives);
        match queues.iter().filter(survives).count() {
            0 => 0,
            durable => message.stored_bytes(durable),
        }
    }

    /// Whether there may be another queue.
    pub(super) fn check_queue_limit(&self, name: &[u8]) -> Result<(), Refusal> {
        let max = self.options.queues_max;
        if self.queue_names.len() < max {
            return Ok(());
        }
        Err(Refusal::precondition(format_args!(
            "cannot declare queue '{}': queue limit in vhost '{}' ({max}) is reached (`queues_max`)",
            text(name),
            self.options.vhost
        )))
    }

    /// Whether there may be another exchange.
    pub(super) fn check_exchange_limit(&self, name: &[u8]) -> Result<(), Refusal> {
        let max = self.options.exchanges_max;
        // Those that are always there, and the default exchange.
        let declared = self.exchange_names.len() - PREDECLARED.len() - 1;
        if declared < max {
            return Ok(());
        }
        Err(Refusal::precondition(format_args!(
            "cannot declare exchange '{}': exchange limit of {max} is reached (`exchanges_max`)",
            text(name)
        )))
    }

    /// Whether there may be another binding.
    pub(super) fn check_binding_limit(&self, source: Key, target: Target) -> Result<(), Refusal> {
        let max = self.options.bindings_max;
        if self.bindings < max {
            return Ok(());
        }
        let source = self.exchanges.get(source).map(|source| &source.name[..]);
        Err(Refusal::precondition(format_args!(
            "cannot bind '{}' to exchange '{}': binding limit of {max} is reached (`bindings_max`)",
            text(&self.target_name(target)),
            text(source.unwrap_or_default())
        )))
    }
}
