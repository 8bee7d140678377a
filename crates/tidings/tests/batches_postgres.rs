//! Handlers that take many messages at once, on PostgreSQL: one statement for a batch.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use support::{
    MoneyDeposited, Running, bank::QUEUE, broker::Broker, deposit, desk::deposits, outgoing, until,
};
use tidings::{Batch, Error, InboxQuery, InboxState, Store, prelude::*};
use tidings_postgres::{PostgresStore, Tx};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A database that nobody used before, as one of its services has it, and as another has.
async fn databases() -> (PostgresStore, PostgresStore) {
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let schema = format!("batches_{}_{number}", std::process::id());
    let open = async || {
        let url = tidings_testing::servers::postgres_url();
        PostgresStore::connect(url, &*schema)
            .await
            .expect("a store")
    };
    let stores = (open().await, open().await);
    let table = "create table effect (number bigint primary key, account text not null)";
    stores
        .0
        .migrate(&[("effect", table)])
        .await
        .expect("tables");
    stores
}

type Sizes = Arc<Mutex<Vec<usize>>>;

/// A deposit that is booked twice violates the table's key.
async fn record(
    deposits: Batch<MoneyDeposited>,
    State(sizes): State<Sizes>,
    mut tx: Tx,
) -> Result<()> {
    sizes.lock().push(deposits.len());
    let has_bad = deposits.iter().any(|deposit| deposit.account == "bad");
    let (numbers, accounts): (Vec<i64>, Vec<String>) = deposits
        .into_iter()
        .map(|deposit| (deposit.number as i64, deposit.account))
        .unzip();
    let sql = "insert into effect select * from unnest($1::bigint[], $2::text[])";
    tx.execute(sql, &[&numbers, &accounts]).await?;
    match has_bad {
        true => Err(Error::msg("the account is bad")),
        false => Ok(()),
    }
}

async fn start(broker: &Broker, store: &PostgresStore, sizes: &Sizes) -> Running {
    let router = Router::new("bank")
        .on(record)
        .transactional(store.clone())
        .retry(Retry::none())
        .with_state(Arc::clone(sizes));
    Running::start(broker, router).await
}

async fn rows(store: &PostgresStore, state: InboxState) -> usize {
    let query = InboxQuery {
        state: Some(state),
        limit: 10_000,
        ..InboxQuery::default()
    };
    store.deferred().list(&query).await.expect("it lists").len()
}

async fn booked(broker: &Broker, store: &PostgresStore) -> Vec<u64> {
    until("all is settled", async || {
        broker.is_settled() && rows(store, InboxState::Deferred).await == 0
    })
    .await;
    let client = store.client().await.expect("a connection");
    let found = client.query("select number from effect order by 1", &[]);
    let found = found.await.expect("rows");
    found
        .iter()
        .map(|row| row.get::<_, i64>(0) as u64)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn bad_messages_among_many_are_dead_alone_and_the_others_are_handled_once() {
    let (broker, (store, _)) = (Broker::default(), databases().await);
    let sizes = Sizes::default();
    let bank = start(&broker, &store, &sizes).await;
    for number in 0..300 {
        let account = match number % 100 {
            50 => "bad",
            _ => "good",
        };
        broker.publish_raw(outgoing(&deposit(account, number)));
        if number % 3 == 0 {
            broker.publish_raw(outgoing(&deposit(account, number)));
        }
    }
    let good: Vec<u64> = (0..300).filter(|number| number % 100 != 50).collect();
    assert_eq!(booked(&broker, &store).await, good);
    until("three letters are sent", async || {
        broker.dead_letters(QUEUE).len() == 3
    })
    .await;
    bank.stop().await;
    assert_eq!(rows(&store, InboxState::Dead).await, 3);
    let sizes = sizes.lock();
    assert!(sizes.iter().any(|size| *size > 10), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn two_instances_that_get_the_same_messages_in_other_orders_handle_each_once() {
    for _ in 0..5 {
        let (one, other) = (Broker::default(), Broker::default());
        let (store, another) = databases().await;
        let sizes = Sizes::default();
        let instances = [
            start(&one, &store, &sizes).await,
            start(&other, &another, &sizes).await,
        ];
        let all = deposits(0..200);
        for (here, there) in all.iter().zip(all.iter().rev()) {
            one.publish_raw(outgoing(here));
            other.publish_raw(outgoing(there));
        }
        booked(&one, &store).await;
        assert_eq!(booked(&other, &store).await, Vec::from_iter(0..200));
        for instance in instances {
            instance.stop().await;
        }
        assert_eq!(rows(&store, InboxState::Dead).await, 0);
    }
}
