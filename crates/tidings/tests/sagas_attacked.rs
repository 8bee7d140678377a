//! Sagas under attack: several instances at once, answers and starts in crowds, signals that nobody
//! wants, and a mountain of timers after an outage.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use support::{
    Database, Running,
    broker::Broker,
    checkout::{OrderCancelled, OrderConfirmed, OrderPlaced, ReserveStock},
    metrics::Measured,
    outgoing, until,
};
use tidings::{
    Commit, Destination, Expected, InboxQuery, InboxState, Outgoing, RecordChange, RecordId,
    RecordValue, Saga, Sagas, Store,
    prelude::*,
    sagas::{self, Start, What},
};
use tidings_postgres::PostgresStore;
use tokio::time::Instant;

const ANSWERS: &str = "checkout.tidings.step-answer.v1";

/// A store for the sagas, as often as there are instances.
struct Stores {
    each: Vec<Arc<dyn Store>>,
    _database: Option<Database>,
}

impl Stores {
    /// One file of SQLite, which all instances of a process share.
    async fn sqlite() -> Self {
        let database = Database::new().await;
        let store: Arc<dyn Store> = database.store.clone().into();
        Self {
            each: vec![Arc::clone(&store), store],
            _database: Some(database),
        }
    }

    /// One schema of PostgreSQL, with connections of its own for each.
    async fn postgres() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let schema = format!("attacked_{}_{number}", std::process::id());
        let url = tidings_testing::servers::postgres_url();
        let mut each: Vec<Arc<dyn Store>> = Vec::new();
        for _ in 0..2 {
            let store = PostgresStore::connect(url.clone(), &*schema).await;
            each.push(Arc::new(store.expect("a store")));
        }
        Self {
            each,
            _database: None,
        }
    }

    fn first(&self) -> &dyn Store {
        &*self.each[0]
    }

    /// How many messages of the consumer are dead.
    async fn dead(&self) -> usize {
        let query = InboxQuery {
            state: Some(InboxState::Dead),
            limit: 10_000,
            ..InboxQuery::default()
        };
        let rows = self.first().deferred().list(&query).await;
        rows.expect("it lists").len()
    }
}

macro_rules! on_both {
    ($($test:ident: $sqlite:ident, $postgres:ident;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $sqlite() {
            $test(Stores::sqlite().await).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "needs PostgreSQL"]
        async fn $postgres() {
            $test(Stores::postgres().await).await;
        }
    )+};
}

on_both! {
    crowd_of_answers: a_crowd_of_answers_on_sqlite, a_crowd_of_answers_on_postgresql;
    starts_at_once: starts_at_once_on_sqlite, starts_at_once_on_postgresql;
    unwanted_signals: unwanted_signals_on_sqlite, unwanted_signals_on_postgresql;
    many_timers: many_timers_on_sqlite, many_timers_on_postgresql;
}

fn key(order: &OrderPlaced) -> String {
    order.order_id.clone()
}

fn place(broker: &Broker, order_id: impl Into<String>) {
    broker.publish_raw(outgoing(&OrderPlaced {
        order_id: order_id.into(),
        card: "ok".into(),
    }));
}

/// Whoever does what sagas ask for.
fn inventory(database: &Database) -> Router {
    Router::new("inventory")
        .on(support::checkout::reserve)
        .transactional(database.store.clone())
        .with_state(support::checkout::Book::default())
}

/// Whoever hears how it ended.
fn listener() -> Router {
    async fn confirmed(_: OrderConfirmed) -> Result<()> {
        Ok(())
    }
    async fn cancelled(_: OrderCancelled) -> Result<()> {
        Ok(())
    }
    Router::new("listener").on(confirmed).on(cancelled)
}

const CROWD: usize = 100;

async fn crowd(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let step = |number| {
        let order_id = format!("{order_id}-{number}");
        saga.step(format!("s{number}"), ReserveStock { order_id })
            .no_undo()
    };
    let steps: Vec<_> = (0..CROWD).map(step).collect();
    match saga.all(steps).await {
        Ok(replies) => Ok(OrderConfirmed {
            order_id: format!("{order_id} with {}", replies.len()),
        }),
        Err(error) => Err(OrderCancelled {
            order_id,
            reason: error.to_string(),
        }),
    }
}

fn is_answer(message: &Outgoing) -> bool {
    message.destination == Destination::Queue(ANSWERS.into())
}

/// A hundred answers to one saga, each of them twice, which two instances take at the same time.
async fn crowd_of_answers(stores: Stores) {
    let broker = Broker::default();
    let stock = Database::new().await;
    let router = |number: usize| {
        Router::new("checkout")
            .saga(Sagas::new("checkout", key).version(1, crowd))
            .transactional(Arc::clone(&stores.each[number]))
    };
    broker.declare_for(&inventory(&stock)).await;
    let listening = Running::start(&broker, listener()).await;
    let asking = Running::start(&broker, router(0)).await;
    place(&broker, "all");
    let queue = "inventory.reserve-stock.v1";
    until("all are asked for", async || broker.count(queue) == CROWD).await;
    asking.stop().await;
    let working = Running::start(&broker, inventory(&stock)).await;
    until("all are answered", async || broker.count(ANSWERS) == CROWD).await;
    let answers = broker.published().into_iter().filter(is_answer);
    answers.for_each(|answer| broker.publish_raw(answer));
    assert_eq!(broker.count(ANSWERS), 2 * CROWD);
    let instances = [
        Running::start(&broker, router(0)).await,
        Running::start(&broker, router(1)).await,
    ];
    until("the saga has ended", async || {
        !broker.published_as::<OrderConfirmed>().is_empty()
    })
    .await;
    until("everything is settled", async || broker.is_settled()).await;
    let confirmed = broker.published_as::<OrderConfirmed>();
    assert_eq!(confirmed.len(), 1);
    assert_eq!(confirmed[0].order_id, format!("all with {CROWD}"));
    let journal = sagas::journal(stores.first(), "checkout", "all").await;
    let journal = journal.expect("an answer").expect("a journal");
    let is_done = |what: &What| matches!(what, What::Done { .. });
    let done = journal.entries.iter().filter(|entry| is_done(&entry.what));
    assert_eq!(done.count(), CROWD);
    assert_eq!(stores.dead().await, 0);
    assert!(broker.dead_letters(ANSWERS).is_empty());
    for running in instances.into_iter().chain([working, listening]) {
        running.stop().await;
    }
}

async fn one_step(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let reserve = ReserveStock {
        order_id: order_id.clone(),
    };
    let reserved = saga.step("reserve-stock", reserve).no_undo().await;
    match reserved {
        Ok(_) => Ok(OrderConfirmed { order_id }),
        Err(error) => Err(OrderCancelled {
            order_id,
            reason: error.to_string(),
        }),
    }
}

/// Four messages with four ids start the same saga, on two instances at the same time.
async fn starts_at_once(stores: Stores) {
    const SAGAS: usize = 50;
    let broker = Broker::default();
    let stock = Database::new().await;
    let router = |number: usize| {
        let key = |order: &OrderPlaced| {
            let (key, _) = order.order_id.split_once('.').expect("a key");
            key.to_owned()
        };
        Router::new("checkout")
            .saga(Sagas::new("checkout", key).version(1, one_step))
            .transactional(Arc::clone(&stores.each[number]))
    };
    broker.declare_for(&router(0)).await;
    // One after the other, so that both instances have the same saga in hand.
    for saga in 0..SAGAS {
        for number in 0..4 {
            place(&broker, format!("{saga}.{number}"));
        }
    }
    let routers = [inventory(&stock), listener()];
    let others = Running::start_all(&broker, routers).await;
    let instances = [
        Running::start(&broker, router(0)).await,
        Running::start(&broker, router(1)).await,
    ];
    until("all have ended", async || {
        broker.published_as::<OrderConfirmed>().len() >= SAGAS
    })
    .await;
    until("everything is settled", async || broker.is_settled()).await;
    assert_eq!(broker.published_as::<OrderConfirmed>().len(), SAGAS);
    assert_eq!(broker.published_as::<ReserveStock>().len(), SAGAS);
    assert_eq!(stock.effects().await.len(), SAGAS);
    let all = sagas::Query {
        limit: 1000,
        ..sagas::Query::default()
    };
    let sagas = sagas::list(stores.first(), "checkout", &all).await;
    assert_eq!(sagas.expect("a list").len(), SAGAS);
    assert_eq!(stores.dead().await, 0);
    for running in instances.into_iter().chain([others]) {
        running.stop().await;
    }
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "id", key = "order_id")]
struct OrderPraised {
    id: u64,
    order_id: String,
}

/// Signals to a saga that takes none, before it has ended and after it.
async fn unwanted_signals(stores: Stores) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let measured = Measured::install();
    let name = format!("unwanted-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let broker = Broker::default();
    let stock = Database::new().await;
    let router = Router::new("checkout")
        .saga(Sagas::new(name.clone(), key).version(1, one_step))
        .saga_signal(&name, "praised", |it: &OrderPraised| it.order_id.clone())
        .retry(Retry::exponential(Duration::from_millis(20)).attempts(3))
        .transactional(Arc::clone(&stores.each[0]));
    broker.declare_for(&inventory(&stock)).await;
    let running = Running::start_all(&broker, [router, listener()]).await;
    let praise = |id: u64, order_id: &str| {
        let order_id = order_id.to_owned();
        broker.publish_raw(outgoing(&OrderPraised { id, order_id }));
    };
    place(&broker, "o-1");
    until("it waits", async || {
        broker.count("inventory.reserve-stock.v1") == 1
    })
    .await;
    praise(1, "o-1");
    praise(2, "o-1");
    let signals = async || {
        let journal = sagas::journal(stores.first(), &name, "o-1").await;
        let journal = journal.expect("an answer").expect("a journal");
        let is_signal = |what: &What| matches!(what, What::Signal { .. });
        let of_journal = journal.entries.iter();
        of_journal.filter(|entry| is_signal(&entry.what)).count()
    };
    until("both are kept", async || signals().await == 2).await;
    let ignored = format!("tidings_saga_ignored_total{{saga={name}}}");
    assert_eq!(measured.get(&ignored), 0.0, "it may still take them");
    let working = Running::start(&broker, inventory(&stock)).await;
    until("it has ended", async || {
        broker.published_as::<OrderConfirmed>().len() == 1
    })
    .await;
    assert_eq!(measured.get(&ignored), 2.0, "nobody took them");
    praise(3, "o-1");
    until("it was passed over", async || measured.get(&ignored) == 3.0).await;
    until("it is settled", async || broker.is_settled()).await;
    assert_eq!(signals().await, 2);
    assert_eq!(stores.dead().await, 0);
    // For a saga that never comes it is tried again, and in the end a dead letter.
    praise(4, "nobody");
    until("it is a dead letter", async || stores.dead().await == 1).await;
    running.stop().await;
    working.stop().await;
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderHeld {
    order_id: String,
}

async fn held(order: OrderHeld, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    saga.timer("held", Duration::from_secs(60)).await;
    Err(OrderCancelled {
        order_id: order.order_id,
        reason: "held for too long".into(),
    })
}

/// Writes sagas whose timers were due a while ago, as an outage leaves them.
async fn write_overdue(store: &dyn Store, count: usize) {
    let definition = Sagas::new("held", |order: &OrderHeld| order.order_id.clone())
        .version(1, held)
        .define("checkout");
    let began = Timestamp::now() - SignedDuration::from_hours(1);
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(500) {
        let records = numbers.iter().map(|number| {
            let key = format!("held-{number}");
            let order = OrderHeld {
                order_id: key.clone(),
            };
            let start = Start::of(&order).expect("a message");
            let turn = definition.start(&key, start, began);
            RecordChange {
                id: RecordId::new("saga:held", key),
                expected: Expected::Nothing,
                value: Some(RecordValue {
                    label: turn.journal.state.label().into(),
                    due: turn.due,
                    body: turn.journal.write().into(),
                }),
            }
        });
        let commit = Commit {
            records: records.collect(),
            ..Commit::default()
        };
        store.commit(commit).await.expect("it commits");
    }
}

/// Waits for a timer of its own before its step.
async fn rested(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    saga.timer("rest", Duration::from_millis(1)).await;
    one_step(order, saga).await
}

/// Timers that all became due while nobody was there; meanwhile others live as always.
async fn many_timers(stores: Stores) {
    const TIMERS: usize = 3000;
    const LIVE_MAX: Duration = Duration::from_secs(4);
    write_overdue(stores.first(), TIMERS).await;
    let broker = Broker::default();
    let stock = Database::new().await;
    let router = |number: usize| {
        let held_sagas = Sagas::new("held", |order: &OrderHeld| order.order_id.clone());
        Router::new("checkout")
            .saga(held_sagas.version(1, held))
            .saga(Sagas::new("checkout", key).version(1, rested))
            .transactional(Arc::clone(&stores.each[number]))
    };
    let others = Running::start_all(&broker, [inventory(&stock), listener()]).await;
    let fired = || broker.published_as::<OrderCancelled>();
    let instances = [
        Running::start(&broker, router(0)).await,
        Running::start(&broker, router(1)).await,
    ];
    let began = Instant::now();
    let mut live = 0;
    let mut slowest = Duration::ZERO;
    while fired().len() < TIMERS {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{} fired",
            fired().len()
        );
        let asked = Instant::now();
        place(&broker, format!("live-{live}"));
        live += 1;
        until("the live one has ended", async || {
            broker.published_as::<OrderConfirmed>().len() == live
        })
        .await;
        slowest = slowest.max(asked.elapsed());
    }
    let took = began.elapsed();
    println!("{TIMERS} timers in {took:?}, {live} live sagas, the slowest {slowest:?}");
    assert!(slowest < LIVE_MAX, "a live saga took {slowest:?}");
    assert!(live >= 3, "live sagas went on meanwhile: {live}");
    until("everything is settled", async || broker.is_settled()).await;
    let mut of_order: BTreeMap<String, usize> = BTreeMap::new();
    for cancelled in fired() {
        *of_order.entry(cancelled.order_id).or_default() += 1;
    }
    assert_eq!(of_order.len(), TIMERS);
    assert!(of_order.values().all(|count| *count == 1), "each once");
    for running in instances.into_iter().chain([others]) {
        running.stop().await;
    }
}
