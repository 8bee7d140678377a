//! What a world promises a test: quiet by counting, a clock that moves when it is told to, faults,
//! and crashes at named points. Each is looked at from outside: in the store and in the broker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tidings::{Error, InboxState, Store, prelude::*};
use tidings_memory::{MemoryStore, Tx};
use tidings_sqlite::SqliteStore;
use tidings_testing::{CrashPoint, TestWorld};

const QUEUE: &str = "payment.order-placed.v1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[event(key = "order", id = "order")]
struct OrderPlaced {
    order: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[event(key = "order", id = "order")]
struct PaymentSettled {
    order: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[event(key = "order")]
struct ReminderSent {
    order: u32,
}

/// Counts attempts, and fails while it is told to.
#[derive(Clone, Default)]
struct Bank {
    asked: Arc<AtomicU32>,
    is_down: Arc<AtomicBool>,
    orders: Arc<Mutex<Vec<u32>>>,
}

impl Bank {
    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    fn charge(&self, order: u32) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.orders.lock().push(order);
        match self.is_down.load(Ordering::SeqCst) {
            true => Err(Error::msg("the bank is down")),
            false => Ok(()),
        }
    }
}

async fn settle(
    order: OrderPlaced,
    State(bank): State<Bank>,
    mut tx: Tx,
) -> Result<PaymentSettled> {
    let order = order.order;
    bank.charge(order)?;
    let charged: u32 = tx.get("charged").await?.unwrap_or(0);
    tx.put("charged", &(charged + 1)).await?;
    Ok(PaymentSettled { order })
}

fn retry() -> Retry {
    Retry::exponential(Duration::from_secs(60))
        .attempts(5)
        .fast_attempts(1)
}

fn payment(store: MemoryStore, bank: Bank) -> impl FnMut() -> Router + 'static {
    move || {
        let router = Router::new("payment").on(settle).retry(retry());
        router.transactional(store.clone()).with_state(bank.clone())
    }
}

fn charged(world: &TestWorld) -> Option<u32> {
    world.store().get("charged").unwrap()
}

async fn is_handled(world: &TestWorld, order: u32) -> bool {
    let claim = tidings::Claim {
        consumer: QUEUE.into(),
        message: format!("order-placed.v1/{order}").into(),
    };
    let ask = tidings::Ask { claim, order: None };
    let seen = world.store().look(&[ask]).await.unwrap();
    seen[0].state == Some(InboxState::Handled)
}

#[tidings::test]
async fn when_it_is_quiet_everything_is_handled_and_published(world: TestWorld) -> Result<()> {
    let bank = Bank::default();
    world.run(payment(world.store(), bank.clone())).await;
    for order in 0..100 {
        world.publish(&OrderPlaced { order });
    }
    assert_eq!(bank.asked(), 0, "nothing runs before the test waits");
    world.quiet().await;
    assert_eq!(bank.asked(), 100);
    assert_eq!(world.published::<PaymentSettled>().len(), 100);
    assert_eq!(
        (world.unsent().await, world.broker().messages(QUEUE).len()),
        (0, 0)
    );
    Ok(())
}

#[tidings::test]
async fn a_handler_may_take_its_time(world: TestWorld) {
    async fn slow(order: OrderPlaced) -> Result<PaymentSettled> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(PaymentSettled { order: order.order })
    }
    world
        .run(Router::new("payment").on(slow).transactional(world.store()))
        .await;
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!(
        world.published::<PaymentSettled>(),
        [PaymentSettled { order: 1 }]
    );
}

#[tidings::test]
async fn the_clock_stands_still_while_the_test_waits_for_the_world_outside(world: TestWorld) {
    world.run(payment(world.store(), Bank::default())).await;
    let before = tokio::time::Instant::now();
    let (said, heard) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        said.send(())
    });
    heard.await.unwrap();
    world.quiet().await;
    assert_eq!(
        before.elapsed(),
        Duration::ZERO,
        "no timer of the service moved it"
    );
}

#[test]
fn what_never_ends_is_named() {
    async fn forever(_: OrderPlaced) -> Result<()> {
        std::future::pending().await
    }
    let test = || {
        tidings_testing::run_test(false, async |world: TestWorld| {
            world.run(Router::new("payment").on(forever)).await;
            world.publish(&OrderPlaced { order: 7 });
            world.quiet().await;
        });
    };
    let panic = std::panic::catch_unwind(test).unwrap_err();
    let said = panic.downcast_ref::<String>().unwrap();
    let expected = "a delivery of `payment.order-placed.v1`: message `order-placed.v1/7`";
    assert!(
        said.contains(expected) && said.contains("world.rs"),
        "{said}"
    );
}

#[test]
fn a_service_that_ends_by_itself_fails_the_test_with_the_reason() {
    async fn settle(_: OrderPlaced) -> Result<()> {
        Ok(())
    }
    let test = || {
        tidings_testing::run_test(false, async |world: TestWorld| {
            let store = world.store();
            let of = |partitions| {
                let router = Router::new("payment").on(settle).ordered(partitions);
                router.transactional(store.clone())
            };
            world.run(of(2)).await;
            world.quiet().await;
            // It starts, and finds that the other one counts otherwise.
            world.run(of(3)).await;
            world.quiet().await;
        });
    };
    let panic = std::panic::catch_unwind(test).unwrap_err();
    let said = panic.downcast_ref::<String>().unwrap();
    assert!(
        said.contains("a service has ended by itself") && said.contains("has 2 partitions"),
        "{said}"
    );
}

#[tidings::test]
async fn a_retry_waits_for_the_clock_and_each_in_its_turn(world: TestWorld) {
    let bank = Bank::default();
    bank.set_down(true);
    world.run(payment(world.store(), bank.clone())).await;
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!((bank.asked(), world.deferred(QUEUE).await.len()), (1, 1));
    world.advance(Duration::from_secs(59)).await;
    assert_eq!(bank.asked(), 1);
    world.advance(Duration::from_secs(1)).await;
    assert_eq!(bank.asked(), 2);
    // 120 s and 240 s later, not both at the end.
    world.advance(Duration::from_secs(361)).await;
    assert_eq!(bank.asked(), 4);
    bank.set_down(false);
    world.advance(Duration::from_secs(3600)).await;
    assert_eq!((bank.asked(), charged(&world)), (5, Some(1)));
}

#[tidings::test]
async fn what_fails_for_good_is_a_dead_letter(world: TestWorld) {
    let bank = Bank::default();
    bank.set_down(true);
    world.run(payment(world.store(), bank.clone())).await;
    world.publish(&OrderPlaced { order: 1 });
    world.advance(Duration::from_secs(7200)).await;
    let dead = world.dead_letters(QUEUE);
    assert_eq!(
        (dead[0].failures, dead[0].reason()),
        (5, "the bank is down")
    );
    assert!(world.deferred(QUEUE).await.is_empty());
}

#[tidings::test]
async fn without_a_store_retries_wait_in_the_broker(world: TestWorld) {
    async fn ask(order: OrderPlaced, State(bank): State<Bank>) -> Result<()> {
        bank.charge(order.order)
    }
    let bank = Bank::default();
    bank.set_down(true);
    let router = Router::new("payment")
        .on(ask)
        .retry(retry())
        .with_state(bank.clone());
    world.run(router).await;
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!(
        (bank.asked(), world.deferred(QUEUE).await[0].failures),
        (1, 1)
    );
    world.advance(Duration::from_secs(60)).await;
    assert_eq!(bank.asked(), 2);
}

#[tidings::test]
async fn what_is_sent_later_is_sent_when_the_clock_says_so(world: TestWorld) {
    async fn remind(order: OrderPlaced) -> Result<tidings::With<ReminderSent>> {
        Ok(ReminderSent { order: order.order }.after(Duration::from_secs(600)))
    }
    world
        .run(
            Router::new("payment")
                .on(remind)
                .transactional(world.store()),
        )
        .await;
    world.advance(Duration::from_secs(86_400)).await;
    world.publish(&OrderPlaced { order: 1 });
    world.advance(Duration::from_secs(598)).await;
    assert_eq!(world.published::<ReminderSent>(), []);
    world.advance(Duration::from_secs(3)).await;
    assert_eq!(
        world.published::<ReminderSent>(),
        [ReminderSent { order: 1 }]
    );
}

#[tidings::test]
async fn a_message_that_comes_twice_takes_effect_once(world: TestWorld) {
    world.run(payment(world.store(), Bank::default())).await;
    world.deliver_twice();
    world.publish(&OrderPlaced { order: 1 });
    assert_eq!(world.broker().messages(QUEUE).len(), 2);
    world.quiet().await;
    assert_eq!(charged(&world), Some(1));
    assert_eq!(world.published::<PaymentSettled>().len(), 1);
}

#[tidings::test]
async fn messages_come_in_another_order(world: TestWorld) {
    let bank = Bank::default();
    let mut router = payment(world.store(), bank.clone());
    world.run(router().concurrency(1)).await;
    world.reorder();
    for order in 1..=3 {
        world.publish(&OrderPlaced { order });
    }
    world.quiet().await;
    assert_eq!(*bank.orders.lock(), [3, 2, 1]);
}

#[tidings::test]
async fn what_is_refused_stays_in_the_outbox(world: TestWorld) {
    world.run(payment(world.store(), Bank::default())).await;
    world.refuse("payment-settled.v1");
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!((charged(&world), world.unsent().await), (Some(1), 1));
    assert_eq!(world.published::<PaymentSettled>(), []);
    world.accept("payment-settled.v1");
    world.advance(Duration::from_secs(60)).await;
    assert_eq!(
        (
            world.unsent().await,
            world.published::<PaymentSettled>().len()
        ),
        (0, 1)
    );
}

/// What is left at the moment of a crash.
struct Left {
    is_committed: bool,
    unsent: u64,
    sent: usize,
}

/// Crashes there, compares what is left, and sees that all is well after the restart.
async fn check_crash(world: TestWorld, point: CrashPoint, left: Left) {
    let bank = Bank::default();
    world.run(payment(world.store(), bank.clone())).await;
    world.crash_at(point);
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert!(world.has_crashed());
    assert_eq!(charged(&world).is_some(), left.is_committed);
    assert_eq!(is_handled(&world, 1).await, left.is_committed);
    assert_eq!(
        (world.unsent().await, world.sent().len()),
        (left.unsent, left.sent)
    );
    assert_eq!(bank.asked(), 1);

    world.restart().await;
    world.advance(Duration::from_secs(60)).await;
    assert!(!world.has_crashed());
    assert_eq!((charged(&world), world.unsent().await), (Some(1), 0));
    assert_eq!(
        world.published::<PaymentSettled>(),
        [PaymentSettled { order: 1 }]
    );
    assert!(world.broker().messages(QUEUE).is_empty());
}

#[tidings::test]
async fn a_crash_before_the_commit_leaves_nothing(world: TestWorld) {
    let left = Left {
        is_committed: false,
        unsent: 0,
        sent: 0,
    };
    check_crash(world, CrashPoint::BeforeCommit, left).await;
}

#[tidings::test]
async fn a_crash_before_publishing_leaves_the_message_in_the_outbox(world: TestWorld) {
    let left = Left {
        is_committed: true,
        unsent: 1,
        sent: 0,
    };
    check_crash(world, CrashPoint::AfterCommitBeforePublish, left).await;
}

#[tidings::test]
async fn a_crash_before_the_confirm_leaves_it_in_both_places(world: TestWorld) {
    let left = Left {
        is_committed: true,
        unsent: 1,
        sent: 1,
    };
    check_crash(world, CrashPoint::AfterPublishBeforeConfirm, left).await;
}

#[tidings::test]
async fn a_crash_before_the_acknowledgement_leaves_the_delivery(world: TestWorld) {
    let bank = Bank::default();
    world.run(payment(world.store(), bank.clone())).await;
    world.crash_at(CrashPoint::AfterHandlerBeforeAck);
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!((bank.asked(), charged(&world)), (1, Some(1)));
    let left = world.broker().messages(QUEUE);
    assert!(left.len() == 1 && left[0].redelivered);
    world.restart().await;
    world.advance(Duration::from_secs(60)).await;
    assert!(world.broker().messages(QUEUE).is_empty());
    assert_eq!(
        (bank.asked(), charged(&world), world.unsent().await),
        (1, Some(1), 0)
    );
}

#[test]
#[should_panic(expected = "asked for a crash at `BeforeCommit`, and no service came there")]
fn a_crash_that_never_comes_fails_the_test() {
    tidings_testing::run_test(false, async |world: TestWorld| {
        world.crash_at(CrashPoint::BeforeCommit);
    });
}

#[test]
#[should_panic(expected = "give `run` a function that makes the router")]
fn a_router_cannot_be_restarted() {
    tidings_testing::run_test(false, async |world: TestWorld| {
        world
            .run(Router::new("payment").transactional(world.store()))
            .await;
        world.restart().await;
    });
}

#[test]
#[should_panic(expected = "its clock cannot be moved")]
fn the_machines_clock_cannot_be_moved() {
    tidings_testing::run_test(true, async |world: TestWorld| {
        world.advance(Duration::from_secs(1)).await;
    });
}

async fn note(
    order: OrderPlaced,
    State(bank): State<Bank>,
    mut tx: tidings_sqlite::Tx,
) -> Result<PaymentSettled> {
    let order = order.order;
    tx.execute("insert into charge values (?1)", [order])
        .await?;
    bank.charge(order)?;
    Ok(PaymentSettled { order })
}

async fn on_sqlite(world: &TestWorld, bank: &Bank) -> (SqliteStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("payment.db"))
        .await
        .unwrap();
    let table = "create table charge (number integer primary key)";
    store.migrate(&[("charge", table)]).await.unwrap();
    let (of_router, bank) = (store.clone(), bank.clone());
    let router = move || {
        let router = Router::new("payment").on(note).retry(retry());
        router
            .transactional(of_router.clone())
            .with_state(bank.clone())
    };
    world.run(router).await;
    (store, folder)
}

async fn charges(store: &SqliteStore) -> u32 {
    let query = "select count(*) from charge";
    let count = store.read(move |connection| connection.query_one(query, (), |row| row.get(0)));
    count.await.unwrap()
}

#[tidings::test]
async fn what_waits_in_sqlite_follows_the_clock_too(world: TestWorld) {
    let bank = Bank::default();
    let (store, _folder) = on_sqlite(&world, &bank).await;
    bank.set_down(true);
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!((bank.asked(), charges(&store).await), (1, 0));
    world.advance(Duration::from_secs(30)).await;
    assert_eq!(bank.asked(), 1);
    bank.set_down(false);
    world.advance(Duration::from_secs(35)).await;
    assert_eq!((bank.asked(), charges(&store).await), (2, 1));
    assert_eq!(
        world.published::<PaymentSettled>(),
        [PaymentSettled { order: 1 }]
    );
}

#[tidings::test]
async fn a_crash_before_the_commit_leaves_nothing_in_sqlite(world: TestWorld) {
    let bank = Bank::default();
    let (store, _folder) = on_sqlite(&world, &bank).await;
    world.crash_at(CrashPoint::BeforeCommit);
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!(
        (bank.asked(), charges(&store).await, world.unsent().await),
        (1, 0, 0)
    );
    world.restart().await;
    world.quiet().await;
    assert_eq!(
        (
            charges(&store).await,
            world.published::<PaymentSettled>().len()
        ),
        (1, 1)
    );
}

#[tidings::test(real_time)]
async fn in_real_time_quiet_waits_for_what_is_ready(world: TestWorld) {
    let bank = Bank::default();
    let (store, _folder) = on_sqlite(&world, &bank).await;
    world.publish(&OrderPlaced { order: 1 });
    world.quiet().await;
    assert_eq!((charges(&store).await, world.unsent().await), (1, 0));
}

#[tidings::test]
async fn what_recurs_follows_the_worlds_clock(world: TestWorld) {
    let nightly = tidings::Cron::new("nightly", "0 3 * * *", "Europe/Berlin").unwrap();
    let store = world.store();
    let router = Router::new("payment")
        .schedule(nightly, &ReminderSent { order: 1 })
        .transactional(store);
    world.run(router).await;
    world.advance(Duration::from_secs(3 * 86_400)).await;
    assert_eq!(world.published::<ReminderSent>().len(), 3);
}
