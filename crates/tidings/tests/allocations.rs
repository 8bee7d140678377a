//! How often the toolkit asks for memory for a message of a handler without a store.
//!
//! Each is about 20 ns, and one more is easily added without anybody noticing.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use allocation_counter::AllocationInfo;
use futures_util::stream;
use parking_lot::Mutex;
use tidings::{
    BoxFuture, Deliveries, Delivery, Envelope, Features, MessageId, Outgoing, PublishError,
    Settlement, Settler, State, Subscription, Topology, Transport, TransportError, prelude::*,
    serve,
};
use tokio::sync::Notify;

/// In the order in which they are made:
///
/// 1. the envelope, shared between the delivery and the handler's context
/// 2. and 3. the message's own two texts
/// 4. the context, which keeps the message until its handler takes it
/// 5. the attempt, around which layers may be
const ALLOCATIONS_MAX: u64 = 5;

#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-noted.v1", key = "key")]
struct ThingNoted {
    key: String,
    text: String,
}

async fn count(thing: ThingNoted, State(seen): State<Arc<AtomicU64>>) -> tidings::Result<()> {
    assert_eq!(thing.key, "k");
    seen.fetch_add(thing.text.len() as u64, Ordering::Relaxed);
    Ok(())
}

#[test]
fn a_message_of_a_handler_without_a_store_costs_so_many_allocations() {
    let few = allocations_of(1_000);
    let many = allocations_of(3_000);
    // What the start and the end of the service take is in both.
    let each = (many - few) as f64 / 2_000.0;
    println!("{each} allocations for each message");
    assert!(
        each < ALLOCATIONS_MAX as f64 + 0.1,
        "{each} allocations for each message, more than {ALLOCATIONS_MAX}"
    );
}

/// Of a whole service that handles this many messages, on one thread.
fn allocations_of(messages: u64) -> u64 {
    let feed = Arc::new(Feed::new(messages));
    let seen = Arc::new(AtomicU64::new(0));
    // Time stands still: on a busy machine a message may take long, and those after it become tasks.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let router = Router::new("counting").on(count).with_state(seen.clone());
    let ended = Arc::clone(&feed);
    let service = serve(Engine(Arc::clone(&feed)), router)
        .with_graceful_shutdown(async move { ended.is_over.notified().await });
    let AllocationInfo { count_total, .. } = allocation_counter::measure(|| {
        runtime.block_on(service.into_future()).expect("it serves");
    });
    assert_eq!(feed.acknowledged.load(Ordering::Relaxed), messages);
    assert_eq!(seen.load(Ordering::Relaxed), messages * 4);
    count_total
}

/// Messages that were made beforehand.
struct Feed {
    envelopes: Mutex<std::vec::IntoIter<Envelope>>,
    count: u64,
    acknowledged: AtomicU64,
    is_over: Notify,
}

impl Feed {
    fn new(count: u64) -> Self {
        let envelopes: Vec<_> = (0..count)
            .map(|number| Envelope {
                id: Some(MessageId::new(format!("m-{number}"))),
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
                ..Envelope::new("thing-noted.v1", r#"{"key":"k","text":"text"}"#)
            })
            .collect();
        Self {
            envelopes: Mutex::new(envelopes.into_iter()),
            count,
            acknowledged: AtomicU64::new(0),
            is_over: Notify::new(),
        }
    }
}

struct Engine(Arc<Feed>);

impl Transport for Engine {
    fn features(&self) -> Features {
        let mut features = Features::new("nothing");
        features.delay_max = std::time::Duration::MAX;
        features
    }

    fn declare<'a>(&'a self, _: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async { Ok(()) })
    }

    fn publish(&self, _: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        unreachable!("the handler sends nothing")
    }

    fn subscribe(&self, it: Subscription) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        let (feed, queue): (_, Arc<str>) = (Arc::clone(&self.0), it.queue.into());
        let deliveries = stream::unfold(0, move |number| {
            let (feed, queue) = (Arc::clone(&feed), Arc::clone(&queue));
            async move {
                let next = feed.envelopes.lock().next();
                let Some(envelope) = next else {
                    return std::future::pending().await;
                };
                let settler = feed as Arc<dyn Settler>;
                let delivery = Delivery::new(envelope, queue, number, settler);
                Some((Ok(delivery), number + 1))
            }
        });
        Box::pin(async { Ok(Box::pin(deliveries) as Deliveries) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Settler for Feed {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        panic!("{delivery:?} was not acknowledged but {settlement:?}");
    }

    fn acknowledge(&self, _: u64) -> Option<Result<(), TransportError>> {
        if self.acknowledged.fetch_add(1, Ordering::Relaxed) + 1 == self.count {
            self.is_over.notify_one();
        }
        Some(Ok(()))
    }

    fn dropped(&self, tag: u64) {
        panic!("message {tag} was given back");
    }

    fn is_stale(&self, _: u64) -> bool {
        false
    }
}
