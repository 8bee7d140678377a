//! Services under test, in the process: a broker, a store, a clock, and things that go wrong.
//!
//! Nothing here hooks into the toolkit: the services get a transport and stores that are watched.
//! Whatever they do is counted while it is under way, so *quiet* is a fact and no guess.

mod broker;
mod clock;
mod database;
mod quiet;
mod service;
mod watch;

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidings::{Attempt, Envelope, InboxQuery, InboxState, Message, MessageId, Outgoing};
use tidings_memory::{MemoryStore, MemoryTransport};
use uuid::Uuid;

pub use service::{Maker, Start};
pub use watch::CrashPoint;

use clock::{Known, Pulse, VirtualTime};
use futures_util::FutureExt;
use service::Running;
use watch::Watch;

/// How long `quiet` waits, by the machine's clock, for what is under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than this waits in no test.
const ROWS_MAX: usize = 100_000;

/// A broker and a store in the process, and the services that run on them; from
/// `#[tidings::test]`.
///
/// The clock is tokio's, and stands still until the test moves it with [`advance`](Self::advance).
/// (While a handler is under way it runs as fast as the machine's, so that a handler may sleep or
/// have a timeout.)
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidings::prelude::*;
/// use tidings_testing::TestWorld;
///
/// #[derive(Debug, Serialize, Deserialize, Event)]
/// #[event(key = "order_id", id = "order_id")]
/// struct OrderPlaced { order_id: String }
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
/// struct PaymentSettled { order_id: String }
///
/// async fn settle(order: OrderPlaced) -> Result<PaymentSettled> {
///     Ok(PaymentSettled { order_id: order.order_id })
/// }
///
/// # tidings_testing::run_test(false, async |world: TestWorld| {
/// // In a test: #[tidings::test] async fn an_order_is_paid(world: TestWorld) {
/// world.run(Router::new("payment").on(settle).transactional(world.store())).await;
/// world.publish(&OrderPlaced { order_id: "o-1".into() });
/// world.quiet().await;
/// let settled = PaymentSettled { order_id: "o-1".into() };
/// assert_eq!(world.published::<PaymentSettled>(), [settled]);
/// # });
/// ```
pub struct TestWorld {
    broker: MemoryTransport,
    store: MemoryStore,
    time: VirtualTime,
    is_real_time: bool,
    pulse: Pulse,
    watch: Arc<Watch>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Vec<Running>,
    databases: Vec<Arc<Known>>,
    /// Every queue that was declared.
    queues: Vec<String>,
}

/// A message that waits, or a dead letter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Kept {
    /// Metadata and body.
    pub envelope: Envelope,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts, oldest first (the first and the latest nine).
    pub history: Vec<Attempt>,
}

impl Kept {
    /// Why the last attempt failed; empty if none did.
    pub fn reason(&self) -> &str {
        self.history.last().map_or("", |attempt| &attempt.reason)
    }
}

/// Runs a test in a world of its own: what `#[tidings::test]` makes a function of.
///
/// # Panics
///
/// When the test does, and when it ends before a crash that it asked for.
pub fn run_test<F, T>(is_real_time: bool, test: F) -> T
where
    F: AsyncFnOnce(TestWorld) -> T,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(!is_real_time)
        .build()
        .expect("a runtime for the test");
    runtime.block_on(async move {
        let world = TestWorld::new(is_real_time);
        let watch = Arc::clone(&world.watch);
        let outcome = test(world).await;
        if let Some(point) = watch.armed() {
            panic!("the test asked for a crash at `{point:?}`, and no service came there");
        }
        outcome
    })
}

impl TestWorld {
    fn new(is_real_time: bool) -> Self {
        let watch = Arc::<Watch>::default();
        Self {
            time: VirtualTime::begin(),
            broker: MemoryTransport::new(),
            store: MemoryStore::new(),
            is_real_time,
            pulse: Pulse::new(Arc::clone(&watch)),
            watch,
            state: Mutex::default(),
        }
    }

    /// The world's own database: fresh, and on the world's clock. A service may have another one.
    pub fn store(&self) -> MemoryStore {
        self.store.clone()
    }

    /// The broker, to look into its queues.
    pub fn broker(&self) -> &MemoryTransport {
        &self.broker
    }

    /// Publishes a message as its sender would. With several of them, none is handled before the
    /// test waits for something.
    ///
    /// # Panics
    ///
    /// When no service that runs, or ran, wants it; or when its body is too large.
    #[track_caller]
    pub fn publish<M: Message>(&self, message: &M) {
        let outgoing = Outgoing::new(message);
        self.publish_raw(outgoing.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Publishes a message just as it is: with any headers, or a body that nobody can read.
    ///
    /// # Panics
    ///
    /// When no service that runs, or ran, wants it.
    #[track_caller]
    pub fn publish_raw(&self, mut message: Outgoing) {
        if message.envelope.id.is_none() && !message.envelope.name.is_empty() {
            message.envelope.id = Some(MessageId::new(Uuid::now_v7().to_string()));
        }
        let published = broker::publish(&self.broker, &self.watch, &message);
        if let Some(Err(error)) = published.now_or_never() {
            let name = &message.envelope.name;
            panic!("`{name}` was not published: {error}; `run` the service that wants it before");
        }
    }

    /// What services published of this type, in order, each message once (by its id).
    ///
    /// # Panics
    ///
    /// When a body is no `M`.
    #[track_caller]
    pub fn published<M: Message>(&self) -> Vec<M> {
        let mut known = HashSet::new();
        let of_type = self
            .sent()
            .into_iter()
            .filter(|it| it.envelope.name == M::NAME);
        let fresh = of_type.filter(|it| {
            let id = it.envelope.id.clone();
            id.is_none_or(|id| known.insert(id))
        });
        let decoded = fresh.map(|it| M::from_body(&it.envelope.body, &it.envelope.content_type));
        let all: Result<_, _> = decoded.collect();
        all.unwrap_or_else(|error| panic!("a `{}` cannot be read: {error}", M::NAME))
    }

    /// Everything that services published and the broker took, in order, as often as it did.
    pub fn sent(&self) -> Vec<Outgoing> {
        self.watch.sent()
    }

    /// How many messages are in outboxes: ready, held or set aside.
    pub async fn unsent(&self) -> u64 {
        let mut count = 0;
        for known in self.databases() {
            let stats = known.store.outbox().stats().await;
            let stats = stats.unwrap_or_else(|error| panic!("an outbox was not read: {error}"));
            count += stats.ready + stats.held + stats.set_aside;
        }
        count
    }

    /// The dead letters beside `queue` (`payment.order-placed.v1`), oldest first.
    pub fn dead_letters(&self, queue: &str) -> Vec<Kept> {
        let dead = self.broker.dead_letters(queue).into_iter();
        let kept = dead.map(|stored| Kept {
            envelope: stored.envelope,
            failures: stored.failures,
            history: stored.history,
        });
        kept.collect()
    }

    /// The messages of `queue` (`payment.order-placed.v1`) that wait for their next attempt, or
    /// behind an earlier one of their key; in stores, or in the broker if the service has none.
    pub async fn deferred(&self, queue: &str) -> Vec<Kept> {
        let mut kept = Vec::new();
        for known in self.databases() {
            let query = InboxQuery {
                consumer: Some(queue.into()),
                limit: ROWS_MAX,
                ..InboxQuery::default()
            };
            let rows = known.store.deferred().list(&query).await;
            let rows = rows.unwrap_or_else(|error| panic!("an inbox was not read: {error}"));
            kept.extend(rows.into_iter().filter_map(|row| {
                let waits = matches!(row.state, InboxState::Deferred | InboxState::Parked);
                let envelope = row.envelope.filter(|_| waits)?;
                Some(Kept {
                    envelope: (*envelope).clone(),
                    failures: row.failures,
                    history: row.history,
                })
            }));
        }
        let delayed = self.watch.delayed_in(queue);
        let waiting = self.broker.messages(queue).into_iter().rev().take(delayed);
        kept.extend(waiting.map(|stored| Kept {
            envelope: stored.envelope,
            failures: stored.failures,
            history: stored.history,
        }));
        kept
    }

    /// From now on, each message is delivered twice.
    pub fn deliver_twice(&self) {
        self.watch.change(|faults| faults.is_doubling = true);
    }

    /// From now on, messages that wait together are delivered newest first. (Those of an ordered
    /// group keep their order, as on a real broker.)
    pub fn reorder(&self) {
        self.watch.change(|faults| faults.is_reordering = true);
    }

    /// From now on, the broker refuses what services publish to this topic or queue, as a full
    /// queue does; until [`accept`](Self::accept).
    pub fn refuse(&self, destination: &str) {
        self.watch
            .change(|faults| faults.refused.insert(destination.to_owned()));
    }

    /// Ends [`refuse`](Self::refuse). The relay offers refused messages again after a pause: move
    /// the clock.
    pub fn accept(&self, destination: &str) {
        self.watch
            .change(|faults| faults.refused.remove(destination));
    }

    fn databases(&self) -> Vec<Arc<Known>> {
        self.state.lock().databases.clone()
    }
}
