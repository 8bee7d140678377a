//! Who is told what comes on a channel.

use tidings_wire::{BasicDeliver, Command, Delivered};
use tracing::debug;

use super::Closed;

/// What a channel is for: called by the reading task, must not block.
pub(crate) trait Inbound: Send {
    /// A delivery, an answer to a get, a return, a confirm, or a cancellation by the broker.
    fn receive(&mut self, command: Command);
    /// A delivery that came whole.
    fn deliver(&mut self, delivered: Delivered) {
        let deliver = BasicDeliver {
            delivery_tag: delivered.delivery_tag,
            redelivered: delivered.redelivered,
            ..BasicDeliver::default()
        };
        self.receive(Command {
            method: deliver.into(),
            content: Some(delivered.content),
        });
    }
    /// The channel is gone. Nothing comes after this.
    fn closed(&mut self, closed: &Closed);
}

/// A channel that nothing comes from but replies.
pub(crate) struct Quiet;

impl Inbound for Quiet {
    fn receive(&mut self, command: Command) {
        debug!(method = command.method.name(), "unasked for, ignored");
    }

    fn closed(&mut self, _: &Closed) {}
}
