//! Direct reply-to: answers without a queue that the client would have to declare.
//!
//! A client consumes from [`REPLY_TO`] and publishes requests with that as their `reply_to`;
//! whoever answers finds the name of a queue there that lives as long as the consumer. To everybody
//! else it is an ordinary queue.

use bytes::Bytes;
use tidings_broker_core as core;
use tidings_wire::{BasicConsume, BasicConsumeOk, Properties, QueueDeclareOk, ShortStr};

use super::Fail;
use super::channel::Channel;
use super::methods::{Out, Turn, short};
use crate::engine::now;

/// The name that means "this channel's replies".
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The consumer of a channel's replies.
pub(super) struct Replies {
    pub(super) consumer_tag: Bytes,
    queue: Bytes,
}

impl Channel {
    /// `basic.consume` of [`REPLY_TO`].
    pub(super) fn consume_replies(
        &mut self,
        turn: &mut Turn<'_, '_>,
        consume: &BasicConsume,
    ) -> Result<(), Fail> {
        if !consume.no_ack {
            return Err(Fail::precondition("reply consumer cannot acknowledge"));
        }
        if self.replies.is_some() {
            return Err(Fail::precondition("reply consumer already set"));
        }
        let id = self.id;
        let mut wanted = core::Consume {
            consumer_tag: Bytes::copy_from_slice(&consume.consumer_tag),
            no_ack: true,
            ..Default::default()
        };
        let mut replies = None;
        let command = |core: &mut core::Broker, out: &mut Out| {
            let queue = core.declare_reply_queue(id, now(), out)?;
            wanted.queue = queue.clone();
            let consumer_tag = core.consume(id, wanted, now(), out).inspect_err(|_| {
                // Without a consumer it would stay until the connection ends.
                let _ = core.delete_queue(id, &queue, false, false, out);
            })?;
            replies = Some(Replies {
                consumer_tag: consumer_tag.clone(),
                queue,
            });
            Ok(consumer_tag)
        };
        let answer = |consumer_tag| BasicConsumeOk {
            consumer_tag: short(consumer_tag),
        };
        turn.run(consume.no_wait, command, answer)?;
        self.replies = replies;
        Ok(())
    }

    /// The properties of a request, with the place that replies go to.
    pub(super) fn with_reply_queue(&self, properties: Bytes) -> Result<Bytes, Fail> {
        let Some(replies) = &self.replies else {
            return Err(Fail::precondition("fast reply consumer does not exist"));
        };
        // They were checked when they came in.
        let mut all = Properties::parse(properties).unwrap_or_default().decode();
        all.reply_to = Some(short(replies.queue.clone()));
        Ok(all.encode().as_bytes().clone())
    }
}

/// Whether a name stands for somebody's replies: declaring it only asks whether they are still
/// consumed.
pub(super) fn is_reply_name(queue: &ShortStr) -> bool {
    queue.starts_with(REPLY_TO.as_bytes())
}

/// The answer to a declaration of a reply queue: there, with its consumer, if it is.
pub(super) fn declared(core: &core::Broker, queue: &ShortStr) -> Result<QueueDeclareOk, Fail> {
    if *queue == REPLY_TO || core.queue(queue).is_some() {
        return Ok(QueueDeclareOk {
            queue: queue.clone(),
            message_count: 0,
            consumer_count: 1,
        });
    }
    let text = format!("no queue '{queue}' in vhost '/'");
    Err(Fail::new(tidings_wire::reply::NOT_FOUND, text))
}
