//! An open channel: its number, its mode, and what it owes its publisher.

use std::sync::Arc;

use tidings_broker_core::ChannelId;
use tidings_broker_log::Lsn;

use super::confirm::Confirms;
use super::reply_to::Replies;
use super::tx::Transaction;
use crate::admission::ChannelPlace;
use crate::options::Limits;
use crate::outbound::Outbound;
use crate::pending::{Holder, Of};

/// A channel that was opened and not yet forgotten.
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) number: u16,
    /// `channel.close` was sent; everything but its answer is ignored.
    pub(super) closing: bool,
    pub(super) mode: Mode,
    /// Its consumer of direct replies.
    pub(super) replies: Option<Replies>,
    tx_operations_max: usize,
    holder: Arc<Holder>,
    /// Given back when the channel is gone.
    _place: ChannelPlace,
}

/// What publishing on the channel means.
pub(super) enum Mode {
    Plain,
    Confirm(Confirms),
    Tx(Transaction),
}

impl Channel {
    pub(super) fn new(
        id: ChannelId,
        number: u16,
        limits: &Limits,
        holder: &Arc<Holder>,
        place: ChannelPlace,
    ) -> Channel {
        Channel {
            id,
            number,
            closing: false,
            mode: Mode::Plain,
            replies: None,
            tx_operations_max: limits.tx_operations_max,
            holder: holder.clone(),
            _place: place,
        }
    }

    /// An empty transaction.
    pub(super) fn transaction(&self) -> Transaction {
        Transaction::new(self.tx_operations_max, self.holder.holds(Of::Transaction))
    }

    /// Confirms what has become durable. Gives whether something still waits.
    pub(super) fn confirm(&mut self, outbound: &Arc<Outbound>, durable: Lsn) -> bool {
        match &mut self.mode {
            Mode::Confirm(confirms) if !self.closing => {
                confirms.settle(outbound, self.number, durable)
            }
            _ => false,
        }
    }
}
