//! Order per key, for consumers that ask for it: across types, instances, retries, redelivery,
//! restarts and dead letters.

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use support::{
    Database, MoneyDeposited, Random, Running, broker::Broker, deposit, outgoing, until, write,
};
use tidings::{
    AfterDeadLetter, Error, HandlerOptions, InboxQuery, InboxState, OrderKey, REDRIVE_HEADER,
    Store, prelude::*, serve,
};
use tidings_sqlite::Tx;

/// Another type of message with the same keys.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(key = "account", id = "number")]
struct MoneyWithdrawn {
    account: String,
    number: u64,
}

fn quick() -> Retry {
    Retry::exponential(Duration::from_millis(10))
        .attempts(1000)
        .fast_attempts(1)
        .delay_max(Duration::from_millis(40))
}

/// Fails three times out of ten, after it has written.
async fn book(deposit: MoneyDeposited, State(random): State<Random>, mut tx: Tx) -> Result<()> {
    tokio::time::sleep(Duration::from_micros(random.below(2000))).await;
    write(&mut tx, &deposit).await?;
    match random.below(10) {
        0..3 => Err(Error::msg("try again")),
        _ => Ok(()),
    }
}

async fn unbook(withdrawn: MoneyWithdrawn, state: State<Random>, tx: Tx) -> Result<()> {
    let MoneyWithdrawn { account, number } = withdrawn;
    book(MoneyDeposited { account, number }, state, tx).await
}

fn bank(database: &Database, random: &Random) -> Router {
    Router::new("bank")
        .on(book)
        .on(unbook)
        .ordered(4)
        .transactional(database.store.clone())
        .retry(quick())
        .lease(Duration::from_millis(500))
        .concurrency(8)
        .with_state(random.clone())
}

/// Publishes number `number` as one of the two types.
fn publish(broker: &Broker, account: u64, number: u64) {
    let account = account.to_string();
    match number % 3 {
        0 => broker.publish_raw(outgoing(&MoneyWithdrawn { account, number })),
        _ => broker.publish_raw(outgoing(&deposit(account, number))),
    }
}

#[track_caller]
fn assert_once_and_in_order(effects: &[(String, u64)], count: u64) {
    let mut by_account: HashMap<&str, Vec<u64>> = HashMap::new();
    for (account, number) in effects {
        by_account.entry(account).or_default().push(*number);
    }
    for (account, numbers) in by_account {
        let in_order = numbers.is_sorted_by(|one, next| one < next);
        assert!(in_order, "account {account}: {numbers:?}");
    }
    assert_eq!(effects.len() as u64, count);
}

#[tokio::test]
async fn order_holds_across_types_through_failures_retries_and_lost_connections() {
    for seed in 0..4 {
        let (broker, database) = (Broker::default(), Database::new().await);
        let random = Random::new(seed);
        let service = Running::start(&broker, bank(&database, &random)).await;
        const COUNT: u64 = 200;
        for number in 0..COUNT {
            publish(&broker, number % 7, number);
            if number % 50 == 25 {
                tokio::time::sleep(Duration::from_millis(random.below(30))).await;
                broker.set_down(true);
                broker.set_down(false);
            }
        }
        until("all are handled", async || {
            database.effects().await.len() as u64 >= COUNT
        })
        .await;
        until("all is settled", async || {
            broker.is_settled() && database.is_quiet().await
        })
        .await;
        service.stop().await;
        assert_once_and_in_order(&database.effects().await, COUNT);
    }
}

#[tokio::test]
async fn order_holds_while_instances_come_go_and_crash() {
    for seed in 0..3 {
        let (broker, database) = (Broker::default(), Database::new().await);
        let random = Random::new(seed + 100);
        let start = async || Running::start(&broker, bank(&database, &random)).await;
        let mut instances = vec![start().await, start().await];
        const COUNT: u64 = 400;
        for number in 0..COUNT {
            publish(&broker, number % 5, number);
            if number % 80 == 40 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                match random.below(3) {
                    0 => instances.push(start().await),
                    1 => instances.remove(0).stop().await,
                    _ => {
                        instances.remove(0).crash().await;
                        // What it had goes back, as when its connection ends.
                        broker.set_down(true);
                        broker.set_down(false);
                    }
                }
                if instances.is_empty() {
                    instances.push(start().await);
                }
            }
        }
        until("all are handled", async || {
            database.effects().await.len() as u64 >= COUNT
        })
        .await;
        for instance in instances {
            instance.stop().await;
        }
        assert_once_and_in_order(&database.effects().await, COUNT);
    }
}

/// Fails for account `bad` until it is told otherwise.
async fn picky(
    deposit: MoneyDeposited,
    State(is_bad): State<Arc<AtomicBool>>,
    mut tx: Tx,
) -> Result<()> {
    if deposit.account == "bad" && deposit.number == 0 && is_bad.load(Ordering::SeqCst) {
        return Err(Error::msg("the account is bad"));
    }
    write(&mut tx, &deposit).await?;
    Ok(())
}

#[tokio::test]
async fn a_retry_keeps_its_place_before_a_long_backlog_and_other_keys_go_on() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let is_bad = Arc::new(AtomicBool::new(true));
    let options = HandlerOptions::new().ordered(2);
    let router = Router::new("bank")
        .on_with(picky, options)
        .transactional(database.store.clone())
        .retry(quick())
        .with_state(Arc::clone(&is_bad));
    let service = Running::start(&broker, router).await;
    for number in 0..500 {
        broker.publish_raw(outgoing(&deposit("bad", number)));
        broker.publish_raw(outgoing(&deposit(
            format!("good{}", number % 50),
            1000 + number,
        )));
    }
    until("the other keys are done", async || {
        database.effects().await.len() == 500
    })
    .await;
    until("the others of its key wait behind it", async || {
        database.rows(InboxState::Parked).await == 499
    })
    .await;
    until("nothing waits in the broker", async || broker.is_settled()).await;
    is_bad.store(false, Ordering::SeqCst);
    until("all are handled", async || {
        database.effects().await.len() == 1000
    })
    .await;
    service.stop().await;
    assert_once_and_in_order(&database.effects().await, 1000);
}

#[tokio::test]
async fn after_a_dead_letter_the_others_of_its_key_pass_or_stay_parked_as_the_router_says() {
    for (then, expected) in [(AfterDeadLetter::Pass, 9), (AfterDeadLetter::Park, 0)] {
        let (broker, database) = (Broker::default(), Database::new().await);
        let is_bad = Arc::new(AtomicBool::new(true));
        let router = Router::new("bank")
            .on(picky)
            .ordered(2)
            .after_dead_letter(then)
            .transactional(database.store.clone())
            .retry(quick().attempts(2))
            .with_state(Arc::clone(&is_bad));
        let service = Running::start(&broker, router).await;
        for number in 0..10 {
            broker.publish_raw(outgoing(&deposit("bad", number)));
        }
        broker.publish_raw(outgoing(&deposit("good", 100)));
        until("it is dead", async || {
            database.rows(InboxState::Dead).await == 1
        })
        .await;
        until("the others are settled", async || {
            broker.is_settled() && database.rows(InboxState::Deferred).await == 0
        })
        .await;
        until("what passes has passed", async || {
            database.effects().await.len() == expected + 1
        })
        .await;
        assert_eq!(database.rows(InboxState::Parked).await, 9 - expected);
        until("its letter is there", async || {
            broker.dead_letters("bank.ordered").len() == 1
        })
        .await;

        // It is mended and sent again: then it is its turn, and the parked ones follow.
        is_bad.store(false, Ordering::SeqCst);
        let mut again = outgoing(&deposit("bad", 0));
        again
            .envelope
            .headers
            .push((REDRIVE_HEADER.into(), "1".into()));
        broker.publish_raw(again);
        until("all are handled", async || {
            database.effects().await.len() == 11
        })
        .await;
        service.stop().await;
        if then == AfterDeadLetter::Park {
            assert_once_and_in_order(&database.effects().await, 11);
        }
    }
}

#[tokio::test]
async fn discarding_a_dead_letter_lets_the_parked_ones_go_on() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = Router::new("bank")
        .on(picky)
        .ordered(2)
        .after_dead_letter(AfterDeadLetter::Park)
        .transactional(database.store.clone())
        .retry(Retry::none())
        .with_state(Arc::new(AtomicBool::new(true)));
    let service = Running::start(&broker, router).await;
    for number in 0..10 {
        broker.publish_raw(outgoing(&deposit("bad", number)));
    }
    until("the others are parked", async || {
        database.rows(InboxState::Parked).await == 9
    })
    .await;
    let query = InboxQuery {
        state: Some(InboxState::Dead),
        limit: 10,
        ..InboxQuery::default()
    };
    let dead = database.store.deferred().list(&query).await.expect("rows");
    let order = OrderKey {
        group: "bank.ordered".into(),
        key: "bad".into(),
    };
    assert_eq!(dead[0].order, Some(order));
    let claims = [dead[0].claim.clone()];
    let discarded = database.store.deferred().discard(&claims);
    assert_eq!(discarded.await.expect("it discards"), 1);
    until("they go on", async || database.effects().await.len() == 9).await;
    service.stop().await;
    assert_once_and_in_order(&database.effects().await, 9);
}

#[tokio::test]
async fn the_partitions_are_shared_and_an_instance_that_counts_others_does_not_run() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let random = Random::new(1);
    let first = Running::start(&broker, bank(&database, &random)).await;
    until("the first receives all", async || {
        broker.receivers() == [1; 5]
    })
    .await;
    let second = Running::start(&broker, bank(&database, &random)).await;
    until("each has a part of them", async || {
        let owners = owners(&database).await;
        owners.len() == 2 && owners.values().all(|count| (2..=3).contains(count))
    })
    .await;
    first.crash().await;
    until("the second has all", async || {
        owners(&database).await.values().eq(&[5])
    })
    .await;
    second.stop().await;
    assert!(owners(&database).await.is_empty());

    let other = bank(&database, &random).ordered(8);
    let error = serve(broker.clone(), other).await.unwrap_err().to_string();
    assert!(
        error.contains("`bank.ordered` has 4 partitions, and this instance asks for 8"),
        "{error}"
    );
}

/// How many partitions each instance owns.
async fn owners(database: &Database) -> HashMap<String, usize> {
    #[derive(Deserialize)]
    struct Shares {
        owners: HashMap<String, String>,
    }
    let id = tidings::RecordId::new("tidings.group", "bank.ordered");
    let records = database.store.records().read(&[id]).await.expect("records");
    let Some(Some(record)) = records.into_iter().next() else {
        return HashMap::new();
    };
    let shares: Shares = serde_json::from_slice(&record.value.body).expect("JSON");
    let mut owners = HashMap::new();
    for owner in shares.owners.into_values() {
        *owners.entry(owner).or_default() += 1;
    }
    owners
}
