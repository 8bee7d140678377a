//! `basic.publish`: what can be checked and copied without the engine, and what happens with it.

use std::sync::Arc;

use bytes::Bytes;
use tidings_broker_core::{Message, Published};
use tidings_broker_log::Lsn;
use tidings_wire::{BasicPublish, BasicReturn, Content, ShortStr, reply};

use super::Fail;
use super::channel::{Channel, Mode};
use super::reply_to::REPLY_TO;
use crate::engine::{Locked, Trouble, now};
use crate::meter::Meter;
use crate::outbound::{Outbound, content};
use crate::translate::read_properties;

/// A message on its way in.
pub(super) struct Publication {
    pub(super) exchange: ShortStr,
    pub(super) routing_key: ShortStr,
    pub(super) mandatory: bool,
    /// Replies to it are to come to the channel's own consumer of replies.
    pub(super) wants_replies: bool,
    /// What its payload counts in the meter.
    pub(super) weight: u64,
    /// What is wrong with it comes to light after its exchange was looked up.
    pub(super) message: Result<(Message, Vec<Bytes>), Fail>,
}

/// The names used last. A publisher mostly repeats them, and repeated ones share memory.
#[derive(Default)]
pub(super) struct Names {
    exchange: Bytes,
    routing_key: Bytes,
}

impl Names {
    fn keep(last: &mut Bytes, name: &ShortStr) -> ShortStr {
        if *last != **name {
            *last = Bytes::copy_from_slice(name);
        }
        ShortStr::try_from(last.clone()).unwrap_or_default()
    }
}

impl Publication {
    pub(super) fn prepare(
        publish: BasicPublish,
        content: Content,
        names: &mut Names,
        user: &ShortStr,
        body_bytes_max: u64,
        meter: &Arc<Meter>,
    ) -> Publication {
        let exchange = Names::keep(&mut names.exchange, &publish.exchange);
        let routing_key = Names::keep(&mut names.routing_key, &publish.routing_key);
        let reply_to = content.properties.reply_to();
        let wants_replies = reply_to.is_some_and(|reply_to| reply_to == REPLY_TO);
        let message = if publish.immediate {
            Err(Fail::new(reply::NOT_IMPLEMENTED, "immediate=true"))
        } else if content.is_too_large() {
            Err(Fail::precondition(format!(
                "message size {} is larger than configured max size {body_bytes_max}",
                content.body_bytes
            )))
        } else {
            build(
                exchange.as_bytes(),
                routing_key.as_bytes(),
                content,
                user,
                meter,
            )
        };
        let weight = message.as_ref().map_or(0, |(message, _)| {
            Meter::weight(message.properties.len(), message.body.len())
        });
        Publication {
            weight,
            exchange,
            routing_key,
            mandatory: publish.mandatory,
            wants_replies,
            message,
        }
    }
}

fn build(
    exchange: &Bytes,
    routing_key: &Bytes,
    content: Content,
    user: &ShortStr,
    meter: &Arc<Meter>,
) -> Result<(Message, Vec<Bytes>), Fail> {
    let properties = &content.properties;
    if let Some(claimed) = properties.user_id()
        && claimed != *user
    {
        return Err(Fail::precondition(format!(
            "user_id property set to '{claimed}' but authenticated user was '{user}'"
        )));
    }
    let asked = read_properties(properties).map_err(Fail::precondition)?;
    let own = |keys: Vec<Bytes>| keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
    let cc: Vec<Bytes> = own(asked.cc);
    let (kept, body) = meter.take_in(&asked.properties, content.body);
    let message = Message {
        exchange: exchange.clone(),
        routing_key: routing_key.clone(),
        cc: cc.into(),
        properties: kept,
        body,
        persistent: properties.delivery_mode() == Some(2),
        priority: properties.priority().unwrap_or(0),
        expiration: asked.expiration,
        deaths: None,
    };
    Ok((message, own(asked.bcc)))
}

/// The way back of a message that no queue wants.
pub(super) struct Returning {
    exchange: ShortStr,
    routing_key: ShortStr,
    properties: Bytes,
    body: Bytes,
}

impl Returning {
    pub(super) fn of(publication: &Publication) -> Option<Returning> {
        let (message, _) = publication.message.as_ref().ok()?;
        publication.mandatory.then(|| Returning {
            exchange: publication.exchange.clone(),
            routing_key: publication.routing_key.clone(),
            properties: message.properties.clone(),
            body: message.body.clone(),
        })
    }

    pub(super) fn send(self, outbound: &Outbound, channel: u16) {
        let method = BasicReturn {
            reply_code: reply::NO_ROUTE,
            reply_text: ShortStr::from_static("NO_ROUTE"),
            exchange: self.exchange,
            routing_key: self.routing_key,
        };
        outbound.push([content(channel, method, self.properties, self.body)]);
    }
}

impl Channel {
    pub(super) fn on_publish(
        &mut self,
        engine: &mut Locked<'_>,
        outbound: &Arc<Outbound>,
        mut publication: Publication,
    ) -> Result<(), Fail> {
        if publication.message.is_err() || matches!(self.mode, Mode::Tx(_)) {
            engine
                .core()
                .check_publish(publication.exchange.as_bytes())?;
        }
        if let (true, Ok((message, _))) = (publication.wants_replies, &mut publication.message) {
            message.properties = self.with_reply_queue(message.properties.clone())?;
        }
        if let Mode::Tx(transaction) = &mut self.mode {
            return transaction.publish(publication);
        }
        let returning = Returning::of(&publication);
        let (message, bcc) = publication.message?;
        let id = self.id;
        let room = match message.persistent {
            true => message.stored_bytes(engine.core().durable_queues()),
            false => 0,
        };
        let mut outcome: Option<(Published, Lsn)> = None;
        let done = engine.run_with_room(
            room,
            |core, out| core.publish(id, message, &bcc, now(), out),
            |published, lsn| outcome = Some((published, lsn)),
        );
        let (published, after) = match (done, outcome) {
            // A publisher that waits for confirms is told of this message; any other has to hear of
            // it by the end of its connection.
            (Err(Trouble::Refused(refusal)), _)
                if refusal.is_no_room() && matches!(self.mode, Mode::Confirm(_)) =>
            {
                let refused = Published {
                    queues: 1,
                    rejected: true,
                    stored: false,
                };
                (refused, Lsn(0))
            }
            (Err(trouble), _) => return Err(trouble.into()),
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => return Ok(()),
        };
        if let (0, Some(returning)) = (published.queues, returning) {
            returning.send(outbound, self.number);
        }
        if let Mode::Confirm(confirms) = &mut self.mode {
            let after = if published.stored { after } else { Lsn(0) };
            confirms.push(after, !published.rejected);
        }
        Ok(())
    }
}
