//! A queue that the broker cannot subscribe to ends the connection on which it is asked for, as a quorum queue of RabbitMQ
//! that has lost its leader does. The other queues of the process must not notice more than once.

mod peer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use peer::{DEADLINE, Peer};
use tidings_amqp::Amqp;
use tidings_core::{Deliveries, Settlement, Subscription, Transport};
use tidings_wire::{
    BasicConsume, BasicConsumeOk, BasicQosOk, ChannelCloseOk, ChannelOpenOk, ConfirmSelectOk,
    ConnectionClose, ConnectionCloseOk, Frame, Method, Payload, ShortStr, reply,
};
use tokio::{net::TcpListener, time::timeout};

const GOOD: &str = "orders";
const BROKEN: &str = "letters";

/// What the broker has seen.
#[derive(Default)]
struct Broker {
    is_mended: AtomicBool,
    /// Subscriptions to either queue.
    good: AtomicUsize,
    broken: AtomicUsize,
    acknowledged: AtomicUsize,
    closed: AtomicUsize,
}

impl Broker {
    async fn serve(self: Arc<Self>, mut peer: Peer) {
        peer.shake_hands(0).await;
        while let Some(Frame { channel, payload }) = peer.frame().await {
            let Payload::Method(method) = payload else {
                continue;
            };
            match method {
                Method::ChannelOpen(_) => peer.send(channel, ChannelOpenOk::default()).await,
                Method::ChannelClose(_) => peer.send(channel, ChannelCloseOk {}).await,
                Method::ConfirmSelect(_) => peer.send(channel, ConfirmSelectOk {}).await,
                Method::BasicQos(_) => peer.send(channel, BasicQosOk {}).await,
                Method::BasicAck(_) => drop(self.acknowledged.fetch_add(1, Ordering::SeqCst)),
                Method::BasicConsume(consume) => self.consume(&mut peer, channel, consume).await,
                Method::ConnectionClose(_) => {
                    self.closed.fetch_add(1, Ordering::SeqCst);
                    return peer.send(0, ConnectionCloseOk {}).await;
                }
                _ => {}
            }
        }
    }

    async fn consume(&self, peer: &mut Peer, channel: u16, consume: BasicConsume) {
        let is_broken = consume.queue == ShortStr::from_static(BROKEN);
        let count = if is_broken { &self.broken } else { &self.good };
        count.fetch_add(1, Ordering::SeqCst);
        if is_broken && !self.is_mended.load(Ordering::SeqCst) {
            let close = ConnectionClose {
                reply_code: reply::INTERNAL_ERROR,
                reply_text: ShortStr::from_static("INTERNAL_ERROR"),
                ..ConnectionClose::default()
            };
            return peer.send(0, close).await;
        }
        let consumer_tag = consume.consumer_tag;
        let ok = BasicConsumeOk {
            consumer_tag: consumer_tag.clone(),
        };
        peer.send(channel, ok).await;
        peer.deliver(channel, consumer_tag).await;
    }
}

async fn subscribe(amqp: &Amqp, queue: &'static str) -> Deliveries {
    let subscribing = amqp.subscribe(Subscription::new(queue));
    subscribing.await.expect("subscribed")
}

async fn receive(deliveries: &mut Deliveries) {
    let next = timeout(DEADLINE, deliveries.next()).await;
    let delivery = next.expect("in time").expect("it goes on");
    let delivery = delivery.expect("no error");
    delivery.settle(Settlement::Ack).await.expect("settled");
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_queue_that_cannot_be_subscribed_to_does_not_disturb_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!(
        "amqp://user:word@{}?heartbeat=0",
        listener.local_addr().expect("bound")
    );
    let broker = Arc::new(Broker::default());
    let serving = Arc::clone(&broker);
    tokio::spawn(async move {
        loop {
            let peer = Peer::accept(&listener).await;
            tokio::spawn(Arc::clone(&serving).serve(peer));
        }
    });
    let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);

    let amqp = Arc::new(Amqp::builder(&url).expect("a URL").start());
    let mut good = subscribe(&amqp, GOOD).await;
    receive(&mut good).await;
    let other = Arc::clone(&amqp);
    let broken = tokio::spawn(async move { subscribe(&other, BROKEN).await });
    // The first time it takes the others with it, and never again.
    receive(&mut good).await;
    until("it is tried again", || count(&broker.broken) >= 5).await;
    assert_eq!(count(&broker.good), 2);

    broker.is_mended.store(true, Ordering::SeqCst);
    let mut broken = broken.await.expect("no panic");
    receive(&mut broken).await;
    assert_eq!(count(&broker.good), 2);

    // Each connection is closed in order, so that what was acknowledged has been said.
    let closed = count(&broker.closed);
    amqp.close().await;
    until("three connections say goodbye", || {
        count(&broker.closed) == closed + 3 && count(&broker.acknowledged) == 3
    })
    .await;
}
