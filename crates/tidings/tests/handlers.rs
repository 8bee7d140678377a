//! What services write down about their handlers when they start.

mod support;

use std::sync::Arc;

use support::{
    BalanceChanged, Database, MoneyDeposited, Running, StoreLetter, broker::Broker, outage::Outage,
    until,
};
use tidings::{
    Commit, Expected, HandlerOptions, RecordChange, RecordId, RecordValue, Saga, Sagas, Store,
    event_map::MessageKind,
    handlers::{self, HandlerRecord, SagaRole},
    prelude::*,
};

async fn book(deposit: MoneyDeposited) -> Result<BalanceChanged> {
    let MoneyDeposited { account, number } = deposit;
    Ok(BalanceChanged { account, number })
}

async fn see(_: BalanceChanged) -> Result<()> {
    Ok(())
}

async fn store_letter(_: StoreLetter) -> Result<()> {
    Ok(())
}

async fn open_account(deposit: MoneyDeposited, _: Saga) -> Result<BalanceChanged, BalanceChanged> {
    let MoneyDeposited { account, number } = deposit;
    Ok(BalanceChanged { account, number })
}

/// Starts a router, and stops it when it runs.
async fn start_once(router: Router) {
    let broker = Broker::default();
    Running::start(&broker, router).await.stop().await;
}

async fn listed(store: &dyn Store) -> Vec<HandlerRecord> {
    handlers::list(store).await.expect("it lists")
}

#[tokio::test]
async fn a_start_writes_each_handler_down_and_another_one_changes_nothing() {
    let database = Database::new().await;
    let router = || {
        Router::new("bank")
            .on(book)
            .on_with(see, HandlerOptions::new().ordered(4))
            .transactional(database.store.clone())
    };
    start_once(router()).await;
    let first = listed(&database.store).await;
    let [see, book] = &first[..] else {
        panic!("two handlers: {first:#?}");
    };
    assert_eq!(
        (&*book.consumer, &*book.service),
        ("bank.money-deposited.v1", "bank")
    );
    assert_eq!(
        (&*book.message, book.version, book.kind),
        ("money-deposited.v1", Some(1), MessageKind::Event)
    );
    assert_eq!(book.topics, ["money-deposited.v1"]);
    assert_eq!((book.ordered.is_none(), book.is_gone()), (true, false));
    let group = see.ordered.as_ref().expect("it asks for order");
    assert_eq!(
        (&*group.group, group.partitions.get()),
        ("bank.balance-changed.v1.ordered", 4)
    );
    assert_eq!(see.dead_letters_beside(), group.group);
    let services = handlers::services(&database.store).await.expect("services");
    assert_eq!(services[0].publishes, ["balance-changed.v1"]);

    start_once(router()).await;
    let again = listed(&database.store).await;
    assert_eq!(
        again, first,
        "nothing was written: neither time nor version"
    );
}

#[tokio::test]
async fn the_records_say_what_a_router_needs_on_the_broker() {
    let database = Database::new().await;
    let sagas = Sagas::new("opening", |deposit: &MoneyDeposited| {
        deposit.account.clone()
    });
    let check = async |router: Router| {
        let router = router.transactional(database.store.clone());
        let needed = router.topology();
        let written = handlers::of(&router);
        let service = router.topology().topics;
        start_once(router).await;
        let services = handlers::services(&database.store).await.expect("services");
        let service_topics = services.last().expect("one").publishes.iter();
        assert!(
            service
                .iter()
                .all(|topic| service_topics.clone().any(|it| topic == it))
        );
        let mut from_records = handlers::topology(&written, services.last());
        let mut needed = needed;
        for topology in [&mut from_records, &mut needed] {
            topology
                .queues
                .sort_by(|one, other| one.name.cmp(&other.name));
            for group in &mut topology.groups {
                group.topics.sort();
                group.commands.sort();
            }
        }
        assert_eq!(from_records, needed);
    };
    check(Router::new("a").on(book).on(see)).await;
    check(Router::new("archive").on(store_letter).on(see).ordered(3)).await;
    check(
        Router::new("b")
            .on(book)
            .publishes::<BalanceChanged>()
            .unsubscribed(),
    )
    .await;
    check(Router::new("c").saga(sagas.version(1, open_account))).await;
    let of_saga = listed(&database.store).await;
    let of_saga = of_saga.iter().filter(|it| it.service == "c");
    let roles: Vec<_> = of_saga
        .map(|it| (it.saga.clone().expect("a saga").role, it.kind))
        .collect();
    assert_eq!(
        roles,
        [
            (SagaRole::Starts, MessageKind::Event),
            (SagaRole::Answers, MessageKind::Reply)
        ]
    );
}

#[tokio::test]
async fn a_handler_that_is_gone_is_marked_and_comes_back() {
    let database = Database::new().await;
    let store = || database.store.clone();
    // A stranger's record in the same database, of a newer program too.
    let strange = RecordChange {
        id: RecordId::new("tidings.handler", "other.thing-done.v1"),
        expected: Expected::Nothing,
        value: Some(RecordValue {
            body: br#"{"format": 9}"#.as_slice().into(),
            ..RecordValue::default()
        }),
    };
    let commit = |change: RecordChange| Commit {
        records: vec![change],
        ..Commit::default()
    };
    let both = || Router::new("bank").on(book).on(see).transactional(store());
    let one = || Router::new("bank").on(book).transactional(store());
    start_once(both()).await;
    start_once(Router::new("audit").on(see).transactional(store())).await;
    database
        .store
        .commit(commit(strange.clone()))
        .await
        .expect("it commits");
    start_once(one()).await;
    let unreadable = handlers::list(&database.store)
        .await
        .expect_err("one is newer");
    assert!(
        unreadable.to_string().contains("other.thing-done.v1"),
        "{unreadable}"
    );
    let removed = RecordChange {
        expected: Expected::Version(1),
        value: None,
        ..strange
    };
    database
        .store
        .commit(commit(removed))
        .await
        .expect("nobody wrote it");

    let gone = |all: &[HandlerRecord]| {
        let gone = all.iter().filter(|it| it.is_gone());
        gone.map(|it| it.consumer.clone()).collect::<Vec<_>>()
    };
    let marked = listed(&database.store).await;
    assert_eq!(gone(&marked), ["bank.balance-changed.v1"]);
    assert_eq!(
        marked.len(),
        3,
        "none is deleted, and the other service's stays"
    );
    let left: Vec<_> = marked.iter().flat_map(handlers::abandoned).collect();
    assert_eq!(left[0].0.queues[0].name, "bank.balance-changed.v1");
    start_once(one()).await;
    assert_eq!(listed(&database.store).await, marked, "since when stays");
    start_once(both()).await;
    assert_eq!(gone(&listed(&database.store).await), [""; 0]);

    // Whoever looked before that must not forget it now.
    let seen = marked.iter().find(|it| it.is_gone()).expect("one");
    let forgotten = handlers::forget(&database.store, seen).await;
    assert!(!forgotten.expect("it answers"));
    start_once(one()).await;
    let marked = listed(&database.store).await;
    let seen = marked.iter().find(|it| it.is_gone()).expect("one");
    assert!(
        handlers::forget(&database.store, seen)
            .await
            .expect("it answers")
    );
    assert_eq!(listed(&database.store).await.len(), 2);
}

#[tokio::test]
async fn where_a_handler_received_before_is_remembered() {
    let database = Database::new().await;
    let plain = || {
        Router::new("bank")
            .on(book)
            .transactional(database.store.clone())
    };
    start_once(plain()).await;
    start_once(plain().ordered(2)).await;
    let all = listed(&database.store).await;
    let left = handlers::abandoned(&all[0]);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0.queues[0].name, "bank.money-deposited.v1");
    assert_eq!(handlers::topology(&all, []).queues.len(), 0);
    assert!(
        handlers::forget(&database.store, &all[0])
            .await
            .expect("it answers")
    );
    let kept = listed(&database.store).await;
    assert_eq!((kept.len(), handlers::abandoned(&kept[0]).len()), (1, 0));
    // And back: what it receives from is not what it has left.
    start_once(plain()).await;
    let all = listed(&database.store).await;
    let left = handlers::abandoned(&all[0]);
    assert_eq!((left.len(), left[0].0.groups.len()), (1, 1));
}

/// Many instances of two versions start at once: none fails, and what they leave is one of the two.
async fn instances_start_at_once(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let starts = (0..12).map(|number| {
        let router = Router::new("bank")
            .on(book)
            .transactional(Arc::clone(&store));
        let router = match number % 2 {
            0 => router.on(see),
            _ => router,
        };
        let broker = broker.clone();
        tokio::spawn(async move { Running::start(&broker, router).await })
    });
    let starts: Vec<_> = starts.collect();
    for start in starts {
        start.await.expect("it starts").stop().await;
    }
    let all = listed(&*store).await;
    let names: Vec<&str> = all.iter().map(|it| &*it.consumer).collect();
    assert_eq!(
        names,
        ["bank.balance-changed.v1", "bank.money-deposited.v1"]
    );
    assert!(!all[1].is_gone());
    let one = Router::new("bank")
        .on(book)
        .transactional(Arc::clone(&store));
    start_once(one).await;
    assert!(listed(&*store).await[0].is_gone(), "the last start wins");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_start_at_once_on_sqlite() {
    let database = Database::new().await;
    instances_start_at_once(database.store.clone().into()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn instances_start_at_once_on_postgresql() {
    let url = tidings_testing::servers::postgres_url();
    let schema = format!("handlers_{}", uuid::Uuid::new_v4().simple());
    let store = tidings_postgres::PostgresStore::connect(url, &*schema).await;
    instances_start_at_once(store.expect("it connects").into()).await;
}

#[tokio::test]
async fn a_database_that_is_away_at_the_start_is_written_to_later() {
    let database = Database::new().await;
    let outage = Outage::of(database.store.clone());
    outage.set_down(true);
    let broker = Broker::default();
    let router = Router::new("bank").on(book).transactional(outage.clone());
    let bank = Running::start(&broker, router).await;
    assert_eq!(listed(&database.store).await, []);
    outage.set_down(false);
    until("it is written down", async || {
        listed(&database.store).await.len() == 1
    })
    .await;
    bank.stop().await;
}
