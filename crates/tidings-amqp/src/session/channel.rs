//! A channel, as those who use it see it.

use std::sync::Arc;

use tidings_wire::{ChannelClose, ChannelOpen, EncodeMethod, Method, encode_method, reply};
use tokio::sync::oneshot;

use super::{Closed, Inbound, Quiet, Session, Slot, SlotState};

/// An open channel. Dropping it closes it.
pub(crate) struct Channel {
    pub(crate) session: Arc<Session>,
    pub(crate) id: u16,
}

impl Channel {
    /// Opens a channel; `inbound` makes what receives from it, given its number.
    pub(crate) async fn open(
        session: &Arc<Session>,
        inbound: impl FnOnce(u16) -> Box<dyn Inbound>,
    ) -> Result<Self, Closed> {
        let channel = {
            let mut channels = session.channels.lock();
            if !channels.open {
                return Err(session.end());
            }
            let free = channels.slots.iter().position(Option::is_none);
            let id = match free {
                Some(free) => free,
                None if channels.slots.len() <= usize::from(channels.channel_max) => {
                    channels.slots.push(None);
                    channels.slots.len() - 1
                }
                None => {
                    return Err(Closed {
                        code: reply::RESOURCE_ERROR,
                        reason: format!(
                            "all {} channels that the broker allows are open",
                            channels.channel_max
                        )
                        .into(),
                        is_connection: false,
                    });
                }
            };
            let number = id as u16;
            channels.slots[id] = Some(Slot::new(inbound(number)));
            Self {
                session: Arc::clone(session),
                id: number,
            }
        };
        channel.call(&ChannelOpen {}).await?;
        Ok(channel)
    }

    /// Sends a method that has a reply, without waiting for it.
    pub(crate) fn request(
        &self,
        method: &impl EncodeMethod,
    ) -> Result<oneshot::Receiver<Result<Method, Closed>>, Closed> {
        self.session.request(self.id, method)
    }

    /// Sends a method and waits for its reply.
    pub(crate) async fn call(&self, method: &impl EncodeMethod) -> Result<Method, Closed> {
        self.answer(self.request(method)?).await
    }

    /// Waits for the reply to a request.
    pub(crate) async fn answer(
        &self,
        answer: oneshot::Receiver<Result<Method, Closed>>,
    ) -> Result<Method, Closed> {
        answer.await.unwrap_or_else(|_| Err(self.session.end()))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut channels = self.session.channels.lock();
        let Some(place) = channels.slots.get_mut(usize::from(self.id)) else {
            return;
        };
        let Some(slot) = place else {
            return;
        };
        if let SlotState::Closed(_) = slot.state {
            *place = None;
        } else {
            slot.state = SlotState::Closing;
            slot.inbound = Box::new(Quiet);
            let close = ChannelClose {
                reply_code: reply::REPLY_SUCCESS,
                ..ChannelClose::default()
            };
            self.session.send(|out| encode_method(out, self.id, &close));
        }
    }
}
