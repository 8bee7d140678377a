//! Who is told what comes on a channel.

use tidings_wire::{Command, Delivered};
use tracing::debug;

use super::Closed;

/// What a channel is for: called by the reading task, must not block.
pub(crate) trait Inbound: Send {
    /// A delivery, an answer to a get, a return, a confirm, or a cancellation by the broker.
    fn receive(&mut self, command: Command);
    /// Who takes deliveries that came whole without their exchange and routing key. `None`: they come as
    /// commands, as all else.
    fn whole(&mut self) -> Option<&mut dyn Whole> {
        None
    }
    /// The channel is gone. Nothing comes after this.
    fn closed(&mut self, closed: &Closed);
}

/// Takes deliveries for which it does not matter from where they came; called as [`Inbound`] is.
pub(crate) trait Whole {
    /// Takes one of several that have been read at once.
    fn deliver(&mut self, delivered: Delivered);
    /// Those were all for now.
    fn hand_on(&mut self);
}

/// A channel that nothing comes from but replies.
pub(crate) struct Quiet;

impl Inbound for Quiet {
    fn receive(&mut self, command: Command) {
        debug!(method = command.method.name(), "unasked for, ignored");
    }

    fn closed(&mut self, _: &Closed) {}
}
