//! Which events a service keeps, and for how long.

mod support;

use std::{sync::Arc, time::Duration};

use support::{BalanceChanged, Database, MoneyDeposited, Running, broker::Broker, deposit, until};
use tidings::{
    Ask, BoxFuture, Commit, Committed, Deferred, Outbox, Records, Seen, Store, StoreError,
    Transaction, prelude::*, replay::Replay,
};
use tokio::time::{Instant, timeout};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const LATE: &str = "late.money-deposited.v1";

#[tokio::test]
async fn whatever_a_service_sends_is_kept_but_not_what_was_rolled_back() {
    async fn change(deposit: MoneyDeposited) -> Result<BalanceChanged> {
        let MoneyDeposited { account, number } = deposit;
        Ok(BalanceChanged { account, number })
    }
    let (broker, database) = (Broker::default(), Database::new().await);
    let service = Router::new("bank")
        .on(change)
        .publishes::<MoneyDeposited>()
        .transactional(database.store.clone())
        .keep_events(WEEK);
    let hear = |_: BalanceChanged| async { Ok::<_, tidings::Error>(()) };
    let other = Running::start(&broker, Router::new("other").on(hear)).await;
    let service = Running::start(&broker, service).await;
    let producer = Producer::new("bank", database.store.clone());
    let mut undone = producer.transaction();
    undone.publish(&deposit("a", 1)).expect("it is small");
    undone.rollback().await;
    let mut later = producer.transaction();
    let soon = deposit("a", 2).after(Duration::from_millis(50));
    later.say(soon).expect("it is small");
    later.commit().await.expect("it commits");
    until("it is answered", async || {
        !broker.published_as::<BalanceChanged>().is_empty()
    })
    .await;
    let log = database.store.log().expect("a log");
    let until = log.horizon().await.expect("an end");
    let page = log.read(0, until, 100).await.expect("a page");
    let names = page.entries.iter().map(|entry| {
        let message = entry.message.as_ref().expect("it can be read");
        message.envelope.name.to_string()
    });
    let expected = ["money-deposited.v1", "balance-changed.v1"];
    assert_eq!(names.collect::<Vec<_>>(), expected);
    service.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_upkeep_drops_what_is_older_than_it_is_to_be_kept() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let retention = Duration::from_millis(1500);
    let router = Router::new("teller")
        .publishes::<MoneyDeposited>()
        .transactional(database.store.clone())
        .keep_events(retention);
    let hear = |_: MoneyDeposited| async { Ok::<_, tidings::Error>(()) };
    let heard = Running::start(&broker, Router::new("early").on(hear)).await;
    let service = Running::start(&broker, router).await;
    let producer = Producer::new("teller", database.store.clone());
    let since = Instant::now();
    producer
        .publish(&deposit("a", 1))
        .await
        .expect("it commits");
    let log = database.store.log().expect("a log");
    until("it is dropped", async || {
        let page = log.read(0, i64::MAX, 10).await.expect("a page");
        page.entries.is_empty() && page.dropped_until > 0
    })
    .await;
    assert!(
        since.elapsed() >= retention,
        "it is kept for as long as was said"
    );
    service.stop().await;
    heard.stop().await;
}

#[tokio::test]
#[should_panic(expected = "has no store to keep them in")]
async fn a_router_without_a_store_keeps_no_events() {
    let router = Router::new("teller").publishes::<MoneyDeposited>();
    drop(tidings::serve(Broker::default(), router.keep_events(WEEK)));
}

/// A store that has no log.
struct Forgetful(tidings_sqlite::SqliteStore);

impl Store for Forgetful {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        self.0.begin()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.0.commit(commit)
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        self.0.look(asked)
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.0.forget(consumer, age, limit)
    }

    fn outbox(&self) -> &dyn Outbox {
        self.0.outbox()
    }

    fn deferred(&self) -> &dyn Deferred {
        self.0.deferred()
    }

    fn records(&self) -> &dyn Records {
        self.0.records()
    }
}

#[tokio::test]
async fn a_service_whose_store_cannot_keep_events_does_not_start() {
    let database = Database::new().await;
    let store: Arc<dyn Store> = Arc::new(Forgetful(database.store.clone()));
    let broker = Broker::default();
    let error = Replay::to(LATE).run(&*store, &broker, |_| {}).await;
    assert!(
        error
            .expect_err("no log")
            .to_string()
            .contains("cannot keep")
    );
    let router = Router::new("teller").transactional(store).keep_events(WEEK);
    let ended = timeout(
        Duration::from_secs(5),
        tidings::serve(broker, router).into_future(),
    );
    let error = ended.await.expect("it ends").expect_err("it cannot");
    assert!(error.to_string().contains("keep_events"), "{error}");
}
