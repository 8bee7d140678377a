//! What cannot work stops the start, at the user's line, and says what to do; how a service ends.

mod support;

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{MoneyDeposited, StoreLetter, broker::Broker};
use tidings::{HandlerOptions, Reply, Saga, Sagas, StepReply, prelude::*, serve};
use tidings_memory::MemoryStore;
use tidings_sqlite::Tx;

#[derive(Serialize, Deserialize, Event)]
struct CashDeposited {
    number: u64,
}

impl From<CashDeposited> for MoneyDeposited {
    fn from(old: CashDeposited) -> Self {
        support::deposit("cash", old.number)
    }
}

async fn plain(_: MoneyDeposited) -> Result<()> {
    Ok(())
}

async fn with_tx(_: MoneyDeposited, _: Tx) -> Result<()> {
    Ok(())
}

async fn with_state(_: MoneyDeposited, _: State<u32>) -> Result<()> {
    Ok(())
}

async fn many_with_state(_: Batch<MoneyDeposited>, _: State<u32>) -> Result<()> {
    Ok(())
}

async fn answers_many(_: Batch<StoreLetter>) -> Result<Option<Reply<MoneyDeposited>>> {
    Ok(None)
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "bank", reply = u64)]
struct ChargeCard {}

async fn charges(_: Batch<ChargeCard>) -> Result<()> {
    Ok(())
}

async fn answers_charges(_: Batch<ChargeCard>) -> Result<StepReply<u64>> {
    Ok(StepReply::Done(1))
}

async fn pay(_: ChargeCard, _: Saga) -> Result<(), ()> {
    Ok(())
}

async fn command(_: StoreLetter) -> Result<()> {
    Ok(())
}

fn text_of(payload: &dyn std::any::Any) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// What should not start, and what it says.
type Case = (&'static str, Box<dyn FnOnce()>);

/// The panic's message and the file it points at.
fn panic_of(action: impl FnOnce()) -> (String, String) {
    let seen = Arc::new(Mutex::new(None));
    let hook = panic::take_hook();
    let note = Arc::clone(&seen);
    let own = std::thread::current().id();
    panic::set_hook(Box::new(move |info| {
        // Other tests of this program panic at the same time.
        if std::thread::current().id() != own {
            return;
        }
        let message = text_of(info.payload());
        let file = info
            .location()
            .map(|place| place.file().to_owned())
            .unwrap_or_default();
        *note.lock().expect("no panic here") = Some((message, file));
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(action));
    panic::set_hook(hook);
    assert!(outcome.is_err(), "it should have panicked");
    seen.lock()
        .expect("no panic here")
        .take()
        .expect("the hook ran")
}

#[test]
fn misuse_panics_at_the_users_line_and_says_what_to_do() {
    let start = |router: Router| drop(serve(Broker::default(), router));
    let cases: [Case; 22] = [
        (
            "`money-deposited.v1` has two handlers in the router `bank`",
            Box::new(move || start(Router::new("bank").on(plain).on(with_state))),
        ),
        (
            "add `.transactional(store)`",
            Box::new(move || start(Router::new("bank").on(with_tx))),
        ),
        (
            "it takes a `State<u32>`, but the router has none; add `.with_state(value)`",
            Box::new(move || start(Router::new("bank").on(with_state))),
        ),
        (
            "give the router the name of the command's target",
            Box::new(move || start(Router::new("bank").on(command))),
        ),
        (
            "two states of the type `u32`",
            Box::new(move || start(Router::new("bank").with_state(1u32).with_state(2u32))),
        ),
        (
            "`a bank` cannot name a consumer",
            Box::new(move || start(Router::new("a bank"))),
        ),
        (
            "`concurrency` is between 1 and 16383",
            Box::new(move || start(Router::new("bank").concurrency(0))),
        ),
        (
            "`batch_max` is between 1 and 1000",
            Box::new(move || _ = HandlerOptions::new().batch_max(1001)),
        ),
        (
            "which takes one message; let it take a `Batch<MoneyDeposited>`",
            Box::new(move || {
                let options = HandlerOptions::new().batch_max(10);
                start(Router::new("bank").on_with(plain, options));
            }),
        ),
        (
            "it takes a `Batch` and returns a `Reply`",
            Box::new(move || start(Router::new("archive").on(answers_many))),
        ),
        (
            "it takes a `Batch`, and `charge-card.v1` is a step of sagas",
            Box::new(move || start(Router::new("bank").on(charges))),
        ),
        (
            "it takes a `Batch` and returns a `Reply` or a `StepReply`",
            Box::new(move || start(Router::new("bank").on(answers_charges))),
        ),
        (
            "let the command start a saga with `.child_saga(...)` (TDG-3010)",
            Box::new(move || {
                let sagas = Sagas::new("pay", |_: &ChargeCard| "k".into()).version(1, pay);
                start(
                    Router::new("bank")
                        .saga(sagas)
                        .transactional(MemoryStore::new()),
                );
            }),
        ),
        (
            "it takes a `State<u32>`, but the router has none",
            Box::new(move || start(Router::new("bank").on(many_with_state))),
        ),
        (
            "`ordered` takes 1 to 64 partitions",
            Box::new(move || start(Router::new("bank").ordered(65))),
        ),
        (
            "asks for order, but the router has no store",
            Box::new(move || start(Router::new("bank").on(plain).ordered(4))),
        ),
        (
            "asks for order and is unsubscribed",
            Box::new(move || {
                let router = Router::new("bank").on(plain).ordered(4);
                start(router.transactional(MemoryStore::new()).unsubscribed());
            }),
        ),
        (
            "give both to `serve` instead",
            Box::new(move || start(Router::new("bank").merge(Router::new("audit")))),
        ),
        (
            "has two handlers in the router `bank`",
            Box::new(move || {
                let other = Router::new("bank").on(plain);
                start(Router::new("bank").on(plain).merge(other));
            }),
        ),
        (
            "both routers of `bank` were given a state of the same type",
            Box::new(move || {
                let other = Router::new("bank").with_state(2u32);
                start(Router::new("bank").with_state(1u32).merge(other));
            }),
        ),
        (
            "the two routers of `bank` have two stores",
            Box::new(move || {
                let router = || Router::new("bank").transactional(MemoryStore::new());
                start(router().merge(router()));
            }),
        ),
        (
            "is upcast to `money-deposited.v1`, for which the router `bank` has no handler",
            Box::new(move || start(Router::new("bank").upcast::<CashDeposited, MoneyDeposited>())),
        ),
    ];
    for (expected, action) in cases {
        let (message, file) = panic_of(action);
        assert!(
            message.contains(expected),
            "expected `{expected}`, got `{message}`"
        );
        assert!(
            file.ends_with("starting.rs"),
            "`{message}` points at {file}"
        );
    }
}

#[test]
fn what_a_service_needs_is_known_before_it_starts() {
    let router = Router::new("bank")
        .on(plain)
        .publishes::<support::LetterWritten>()
        .retry(Retry::exponential(Duration::from_secs(1)).attempts(6));
    let topology = router.topology();
    assert_eq!(topology.topics, ["letter-written.v1"]);
    assert_eq!(topology.queues[0].name, "bank.money-deposited.v1");
    assert_eq!(topology.queues[0].topics, ["money-deposited.v1"]);
    let delays = [1, 2, 4].map(Duration::from_secs);
    assert_eq!(topology.queues[0].delays, delays);
    let store = MemoryStore::new();
    let topology = Router::new("bank")
        .on(plain)
        .transactional(store)
        .topology();
    assert!(
        topology.queues[0].delays.is_empty(),
        "they wait in the store"
    );
}

#[tokio::test]
async fn a_service_that_asks_for_what_its_engine_lacks_does_not_start() {
    let broker = Broker::default();
    broker.set_cannot_delay();
    let error = serve(broker.clone(), Router::new("bank").on(plain))
        .await
        .unwrap_err();
    let expected = "the service `bank` cannot run: retries of `bank.money-deposited.v1` are to wait \
                    1s, and `a scripted broker` can delay 0ns at most";
    assert!(error.to_string().starts_with(expected), "{error}");

    let at_once = Retry::default().attempts(3).fast_attempts(3);
    let router = Router::new("bank").on(plain).retry(at_once);
    let serving = serve(broker, router);
    let ready = serving.ready();
    serving
        .with_graceful_shutdown(ready)
        .await
        .expect("it starts");
}

/// Kafka keeps an order within a topic.
#[tokio::test]
async fn an_ordered_group_of_several_topics_does_not_start_where_they_have_no_common_order() {
    let (broker, database) = (Broker::default(), support::Database::new().await);
    broker.set_shares_partitions();
    let stored = async |_: StoreLetter, _: Tx| -> Result<()> { Ok(()) };
    let router = Router::new("archive").on(with_tx).on(stored);
    let router = router.transactional(database.store.clone()).ordered(4);
    let error = serve(broker.clone(), router).await.unwrap_err().to_string();
    let expected = "the ordered group `archive.ordered` takes messages from 2 places (topics \
                    [\"money-deposited.v1\"], commands [\"archive.store-letter.v1\"]), and `a scripted broker` \
                    keeps an order within a topic only";
    assert!(error.contains(expected), "{error}");

    let router = Router::new("bank").on(with_tx);
    let router = router.transactional(database.store.clone()).ordered(4);
    let serving = serve(broker, router);
    let ready = serving.ready();
    let served = serving.with_graceful_shutdown(ready).await;
    served.expect("one topic has an order");
}

#[tokio::test]
async fn a_part_of_the_toolkit_that_fails_takes_its_service_down_with_the_reason() {
    let (broker, database) = (Broker::default(), support::Database::new().await);
    let store = support::outage::Outage::of(database.store.clone());
    let router = Router::new("bank").on(with_tx).transactional(store.clone());
    let serving = serve(broker.clone(), router);
    let ready = serving.ready();
    let serving = tokio::spawn(serving.into_future());
    ready.await;
    store.panic();
    let ended = tokio::time::timeout(Duration::from_secs(20), serving).await;
    let error = ended.expect("it ends").expect("no panic").unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("the service `bank` cannot run: the ")
            && error.contains("a bug in the store"),
        "{error}"
    );
}

#[tokio::test]
async fn a_shutdown_begins_nothing_new_and_gives_back_what_it_has_fetched() {
    let broker = Broker::default();
    let started = Arc::new(AtomicU32::new(0));
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = |_: MoneyDeposited,
                State((started, finished)): State<(
        Arc<AtomicU32>,
        tokio::sync::watch::Receiver<bool>,
    )>| async move {
        started.fetch_add(1, Ordering::SeqCst);
        let mut finished = finished;
        let _ = finished.wait_for(|finished| *finished).await;
        Ok::<_, tidings::Error>(())
    };
    let router = Router::new("bank")
        .on(slow)
        .concurrency(2)
        .with_state((Arc::clone(&started), finished));
    broker.declare_for(&router).await;
    for number in 0..8 {
        broker.publish_raw(support::outgoing(&support::deposit("a", number)));
    }
    let service = support::Running::start(&broker, router).await;
    support::until("two run", async || started.load(Ordering::SeqCst) == 2).await;
    tokio::join!(service.stop(), async {
        // The others are back in the queue before the two have finished.
        support::until("the others are given back", async || {
            broker.given_back("bank.money-deposited.v1") == 6
        })
        .await;
        finish.send(true).expect("the handlers wait");
    });
    assert_eq!(started.load(Ordering::SeqCst), 2);
    assert_eq!(broker.count("bank.money-deposited.v1"), 6);
}
