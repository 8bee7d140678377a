//! What waits to be written to one peer: items in order, turned into bytes only when the socket has
//! room.
//!
//! Anyone may add items, under the engine's lock, so that the order of the items is the order of
//! events. Only the connection's own task takes them out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tidings_broker_core::{ConnectionId, Delivery};
use tidings_broker_log::Lsn;
use tidings_wire::{
    BasicCancel, EncodeMethod, Method, ShortStr, ShortStrTooLong, encode_content, encode_deliver,
    encode_method,
};
use tokio::sync::Notify;

use crate::translate::delivered_properties;

/// One thing to write.
#[derive(Debug)]
pub(crate) enum Item {
    /// `basic.deliver` with its content.
    Deliver(Delivery),
    /// `basic.cancel`, from the server.
    Cancel { channel: u16, consumer_tag: Bytes },
    /// A method that waits until the log is durable up to `after`.
    Reply {
        channel: u16,
        method: Method,
        after: Lsn,
    },
    /// A method with content: `basic.return`, `basic.get-ok`.
    Content {
        channel: u16,
        method: Method,
        properties: Bytes,
        body: Bytes,
    },
}

impl Item {
    /// About how much memory it holds until it is written.
    fn weight(&self) -> usize {
        const ITEM: usize = 256;
        ITEM + match self {
            Item::Deliver(delivery) => {
                delivery.message.body.len() + delivery.message.properties.len()
            }
            Item::Content {
                properties, body, ..
            } => properties.len() + body.len(),
            Item::Cancel { .. } | Item::Reply { .. } => 0,
        }
    }

    fn must_wait(&self, durable: Lsn) -> bool {
        matches!(self, Item::Reply { after, .. } if *after > durable)
    }

    /// Fails, and appends nothing, when a name is too long; the core lets none in.
    fn encode(&self, out: &mut BytesMut, frame_max: u32) -> Result<(), ShortStrTooLong> {
        match self {
            Item::Deliver(delivery) => return encode_delivery(delivery, out, frame_max),
            Item::Cancel {
                channel,
                consumer_tag,
            } => {
                let consumer_tag = ShortStr::try_from(consumer_tag.clone())?;
                encode_method(
                    out,
                    *channel,
                    &BasicCancel {
                        consumer_tag,
                        no_wait: true,
                    },
                );
            }
            Item::Reply {
                channel, method, ..
            } => encode_method(out, *channel, method),
            Item::Content {
                channel,
                method,
                properties,
                body,
            } => {
                encode_method(out, *channel, method);
                encode_content(out, *channel, properties, body, frame_max);
            }
        }
        Ok(())
    }
}

fn encode_delivery(
    delivery: &Delivery,
    out: &mut BytesMut,
    frame_max: u32,
) -> Result<(), ShortStrTooLong> {
    let message = &delivery.message;
    let properties = delivered_properties(message, delivery.delivery_count);
    encode_deliver(
        out,
        delivery.channel,
        &delivery.consumer_tag,
        delivery.delivery_tag,
        delivery.redelivered,
        &message.exchange,
        &message.routing_key,
        &properties,
        &message.body,
        frame_max,
    )
}

/// The queue of items of one connection.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) id: ConnectionId,
    /// The client knows `basic.cancel` from a server.
    cancel_notify: bool,
    items: Mutex<VecDeque<Item>>,
    /// The weight of everything that was added and not yet reported as written.
    bytes: AtomicUsize,
    /// Its consumers get nothing until the peer has read some.
    paused: AtomicBool,
    wake: Notify,
}

impl Outbound {
    pub(crate) fn new(id: ConnectionId, cancel_notify: bool) -> Outbound {
        Outbound {
            id,
            cancel_notify,
            items: Mutex::default(),
            bytes: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Whether the client is to get this at all.
    pub(crate) fn understands(&self, item: &Item) -> bool {
        self.cancel_notify || !matches!(item, Item::Cancel { .. })
    }

    /// Adds items in order. Gives the weight of all that waits now.
    pub(crate) fn push(&self, added: impl IntoIterator<Item = Item>) -> usize {
        let mut weight = 0;
        let mut items = self.items.lock();
        items.extend(added.into_iter().inspect(|item| weight += item.weight()));
        // Counted before anybody can take them out, and count them off again.
        let bytes = self.bytes.fetch_add(weight, Ordering::Relaxed) + weight;
        drop(items);
        self.wake.notify_one();
        bytes
    }

    pub(crate) fn reply(&self, channel: u16, method: impl Into<Method>, after: Lsn) {
        self.push([Item::Reply {
            channel,
            method: method.into(),
            after,
        }]);
    }

    /// The weight of what waits to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Marks its consumers as paused; gives whether they were.
    pub(crate) fn set_paused(&self) -> bool {
        self.paused.swap(true, Ordering::Relaxed)
    }

    /// Marks its consumers as running; gives whether they were paused.
    pub(crate) fn take_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) && self.paused.swap(false, Ordering::Relaxed)
    }

    /// Makes the connection's task look around: at new items, the log's progress, alarms.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// The end where items are taken out and become bytes.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    taken: VecDeque<Item>,
}

impl Encoder {
    /// Encodes until `out` has `bytes_max`, nothing is left, or an item has to wait for the log:
    /// gives whether it is that. When the log has failed, what waits for it is never sent. An item that
    /// cannot be encoded is an error, and the connection cannot go on.
    pub(crate) fn fill(
        &mut self,
        outbound: &Outbound,
        durable: Lsn,
        failed: bool,
        out: &mut BytesMut,
        bytes_max: usize,
        frame_max: u32,
    ) -> Result<bool, ShortStrTooLong> {
        let mut written = 0;
        let mut waits = false;
        while out.len() < bytes_max {
            let Some(item) = self.taken.front() else {
                std::mem::swap(&mut self.taken, &mut *outbound.items.lock());
                if self.taken.is_empty() {
                    break;
                }
                continue;
            };
            let must_wait = item.must_wait(durable);
            if must_wait && !failed {
                waits = true;
                break;
            }
            if !must_wait {
                item.encode(out, frame_max)?;
            }
            written += item.weight();
            self.taken.pop_front();
        }
        outbound.bytes.fetch_sub(written, Ordering::Relaxed);
        Ok(waits)
    }

    /// Whether something could be encoded at once.
    pub(crate) fn has_more(&self, outbound: &Outbound, durable: Lsn) -> bool {
        match self.taken.front() {
            Some(item) => !item.must_wait(durable),
            None => !outbound.items.lock().is_empty(),
        }
    }
}

/// The content of a returned or fetched message, with the method before it.
pub(crate) fn content(
    channel: u16,
    method: impl EncodeMethod + Into<Method>,
    properties: Bytes,
    body: Bytes,
) -> Item {
    Item::Content {
        channel,
        method: method.into(),
        properties,
        body,
    }
}
