//! A rolling deploy to a new version of an event, as the guide's page on contracts tells it: two versions of its consumer side
//! by side, and then two of its sender, while facts go on being published. Each fact has its effect once.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use support::{Database, Running, outgoing, until};
use tidings::{Transport, prelude::*};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_sqlite::Tx;
use tokio::task::JoinHandle;

/// What makes orders confirm.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(id = "number")]
struct OrderPlaced {
    number: u64,
}

/// As it was.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(name = "order-confirmed.v1", id = "number")]
struct OrderConfirmed {
    number: u64,
    amount: u64,
}

/// As it is to be: `amount` is called `total`.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(name = "order-confirmed.v2", id = "number")]
struct OrderConfirmedV2 {
    number: u64,
    total: u64,
}

impl From<OrderConfirmed> for OrderConfirmedV2 {
    fn from(old: OrderConfirmed) -> Self {
        Self {
            number: old.number,
            total: old.amount,
        }
    }
}

fn amount_of(number: u64) -> u64 {
    100 + number
}

fn old(number: u64) -> OrderConfirmed {
    OrderConfirmed {
        number,
        amount: amount_of(number),
    }
}

fn new(number: u64) -> OrderConfirmedV2 {
    old(number).into()
}

async fn confirms_old(order: OrderPlaced, _: Tx) -> Result<OrderConfirmed> {
    Ok(old(order.number))
}

async fn confirms_both(order: OrderPlaced, _: Tx) -> Result<(OrderConfirmed, OrderConfirmedV2)> {
    Ok((old(order.number), new(order.number)))
}

async fn confirms_new(order: OrderPlaced, _: Tx) -> Result<OrderConfirmedV2> {
    Ok(new(order.number))
}

/// What loyalty does, by whichever version: points are awarded unless they are, and each run of a handler leaves its trace.
async fn award(tx: &mut Tx, version: &str, number: u64, points: u64) -> Result<()> {
    let insert = "insert into award (number, points) values (?1, ?2) on conflict do nothing";
    tx.execute(insert, (number as i64, points as i64)).await?;
    let insert = "insert into effect (number, account) values (?1, ?2)";
    tx.execute(insert, (number as i64, version.to_owned()))
        .await?;
    Ok(())
}

async fn awards_old(order: OrderConfirmed, mut tx: Tx) -> Result<()> {
    award(&mut tx, "old", order.number, order.amount).await
}

async fn awards_new(order: OrderConfirmedV2, mut tx: Tx) -> Result<()> {
    award(&mut tx, "new", order.number, order.total).await
}

/// The broker, the two services' databases, and customers who go on ordering.
struct World {
    url: String,
    orders: Database,
    loyalty: Database,
    is_over: Arc<AtomicBool>,
    customers: JoinHandle<u64>,
}

impl World {
    async fn connect(&self) -> Arc<Amqp> {
        Arc::new(Amqp::connect(&self.url).await.expect("it connects"))
    }

    async fn start(&self, router: Router, of: &Database) -> Running {
        let transport = self.connect().await;
        Running::start(&transport, router.transactional(of.store.clone())).await
    }

    async fn orders(&self, router: Router) -> Running {
        self.start(router, &self.orders).await
    }

    async fn loyalty(&self, router: Router) -> Running {
        self.start(router, &self.loyalty).await
    }

    /// Starts an instance of the next version, and stops one of this, until all are replaced.
    async fn roll_orders(&self, this: Vec<Running>, next: impl Fn() -> Router) -> Vec<Running> {
        let mut started = Vec::new();
        for instance in this {
            started.push(self.orders(next()).await);
            self.goes_on(50).await;
            instance.stop().await;
        }
        self.goes_on(50).await;
        started
    }

    /// How many points each order has brought.
    async fn awarded(&self) -> BTreeMap<u64, u64> {
        let store = &self.loyalty.store;
        let read = store.read(|connection| {
            let mut statement = connection.prepare("select number, points from award")?;
            let rows = statement.query_map((), |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
            })?;
            rows.collect()
        });
        read.await.expect("it reads")
    }

    /// Waits until so many more orders have brought points.
    async fn goes_on(&self, count: usize) {
        let before = self.awarded().await.len();
        until("orders are placed and bring points", async || {
            self.awarded().await.len() >= before + count
        })
        .await;
    }
}

/// Orders without a pause, until it is over. Returns how many.
async fn order(amqp: Arc<Amqp>, is_over: Arc<AtomicBool>) -> u64 {
    let mut number = 0;
    while !is_over.load(Ordering::SeqCst) {
        let placed = outgoing(&OrderPlaced { number });
        match amqp.publish(vec![placed]).await.remove(0) {
            Ok(()) => number += 1,
            Err(error) => panic!("an order cannot be placed: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_run_side_by_side_and_each_fact_has_its_effect_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options::durable(folder.path()).listen(([127, 0, 0, 1], 0));
    let broker = Broker::start(options).await.expect("the broker starts");
    let url = broker.amqp_url();
    let (orders, loyalty) = (Database::new().await, Database::new().await);
    let award = "create table award (number integer primary key, points integer not null)";
    let made = loyalty
        .store
        .write(|connection| connection.execute(award, ()));
    made.await.expect("a table");
    let of_orders = || Router::new("orders");
    let of_loyalty = || Router::new("loyalty");

    let is_over = Arc::new(AtomicBool::new(false));
    let mut world = World {
        url,
        orders,
        loyalty,
        customers: tokio::spawn(async { 0 }),
        is_over: Arc::clone(&is_over),
    };
    // As it was: two instances of each.
    let mut old_orders = Vec::new();
    let mut old_loyalty = Vec::new();
    for _ in 0..2 {
        old_loyalty.push(world.loyalty(of_loyalty().on(awards_old)).await);
        old_orders.push(world.orders(of_orders().on(confirms_old)).await);
    }
    world.customers = tokio::spawn(order(world.connect().await, is_over));
    world.goes_on(50).await;

    // The consumer is moved first: it reads the new version, and the old one by its upcaster.
    let moved = || {
        of_loyalty()
            .on(awards_new)
            .upcast::<OrderConfirmed, OrderConfirmedV2>()
    };
    let mut new_loyalty = vec![world.loyalty(moved()).await];
    world.goes_on(50).await;
    new_loyalty.push(world.loyalty(moved()).await);
    // What is published from here on is in the queues of both.
    world.goes_on(100).await;
    for instance in old_loyalty {
        instance.stop().await;
        world.goes_on(20).await;
    }

    // The sender sends both, and later the new one alone; its versions are side by side each time.
    let both = world.roll_orders(old_orders, || of_orders().on(confirms_both));
    let last = world.roll_orders(both.await, || of_orders().on(confirms_new));
    let last = last.await;

    world.is_over.store(true, Ordering::SeqCst);
    let count = (&mut world.customers).await.expect("no panic");
    until("all orders have brought points", async || {
        world.awarded().await.len() as u64 == count
    })
    .await;
    let expected: BTreeMap<u64, u64> = (0..count).map(|it| (it, amount_of(it))).collect();
    assert_eq!(world.awarded().await, expected);
    for instance in new_loyalty.into_iter().chain(last) {
        instance.stop().await;
    }

    // No version took a fact twice, though for a time each fact was said in both.
    let mut runs = BTreeMap::new();
    for run in world.loyalty.effects().await {
        *runs.entry(run).or_insert(0) += 1;
    }
    let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!(twice, []);
    let by = |version: &str| runs.keys().filter(|(it, _)| it == version).count() as u64;
    assert!(by("old") > 100 && by("new") > 100, "both took part");
    assert!(
        by("old") + by("new") > count,
        "both took the same facts for a time"
    );
    broker.shutdown().await.expect("it stops");
}
