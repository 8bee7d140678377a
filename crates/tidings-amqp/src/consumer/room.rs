//! How an ordered subscription receives from a quorum queue, so that the order is kept.
//!
//! A quorum queue hands out what came back before everything else, in the order in which it came back, and puts what
//! comes back from one channel behind what came back before. So whatever was out has to come back whole, and has to be
//! handed out whole to whoever is next:
//!
//! - The broker is asked for the same number of deliveries always ([`WINDOW`]); what is beyond the prefetch count of the
//!   subscription waits here. Otherwise the next consumer could take a part of what came back, give that back, and find it
//!   behind the rest.
//! - What is given back alone is given back with all that is out, by closing the channel; the subscription goes on on a new
//!   one. Otherwise it would be handed out again behind later ones, and keep that place when the connection is lost.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tidings_core::TransportError;

use super::Consumer;

/// How many deliveries the broker is asked for. All instances that receive from a partition must agree on it, so it is no
/// option.
pub(super) const WINDOW: u16 = 256;

/// How many deliveries may be in the hands of whoever has the stream.
pub(super) struct Room {
    count_max: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    out: u16,
    waiting: Option<Waker>,
}

impl Room {
    pub(super) fn of(count_max: u16) -> Self {
        Self {
            count_max: count_max.min(WINDOW),
            state: Mutex::default(),
        }
    }

    /// Ready when one more may be handed out.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.out < self.count_max {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// One is handed out.
    pub(super) fn take(&self) {
        self.state.lock().out += 1;
    }

    /// One was settled.
    pub(super) fn give(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.out = state.out.saturating_sub(1);
            state.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        let waiting = self.state.lock().waiting.take();
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Consumer {
    /// Ready when one more may be handed out, or all that comes is stale.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        match &self.room {
            Some(room) if room.poll(cx).is_pending() && !self.is_ended() => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Gives this one back with all that is out, so that they keep their order. [`Keeper::serve`] closes the channel and
    /// subscribes again.
    pub(super) fn give_all_back(&self, tag: u64) -> Result<(), TransportError> {
        {
            let unsettled = self.unsettled.lock();
            if self.is_ended() || unsettled.properties(tag).is_none() {
                return Err(self.stale());
            }
            self.set_ended();
        }
        self.tell();
        Ok(())
    }
}
