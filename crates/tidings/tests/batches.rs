//! Handlers that take many messages at once: how batches form, and that each message still takes effect
//! once.

mod support;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use support::{
    BalanceChanged, Database, MoneyDeposited, Running,
    bank::{QUEUE, listen},
    broker::Broker,
    deposit,
    desk::{Desk, booked, deposits, router, start},
    outgoing, until, write,
};
use tidings::{
    Batch, Claim, Commit, Error, Fate, HandlerOptions, InboxEntry, InboxState, MessageId, Over,
    Store, Waiting, prelude::*,
};
use tidings_sqlite::Tx;
use tidings_testing::TestWorld;

#[tokio::test]
async fn who_is_free_gets_one_message_at_once_and_what_comes_meanwhile_is_the_next_batch() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let bank = start(&broker, &database, &desk).await;
    desk.gather(&broker, &deposits(1..=10)).await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=10));
    bank.stop().await;
    assert_eq!(desk.batches(), [vec![0], Vec::from_iter(1..=10)]);
    assert_eq!(desk.given_up(), 0);
}

#[tokio::test]
async fn a_batch_has_no_more_messages_than_the_handler_wants() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let options = HandlerOptions::new().batch_max(4).concurrency(20);
    let bank = Running::start(&broker, router(&database, &desk, options)).await;
    desk.gather(&broker, &deposits(1..=10)).await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=10));
    bank.stop().await;
    assert_eq!(desk.sizes(), [1, 4, 4, 2]);
}

#[tokio::test]
async fn a_batch_gathers_while_another_one_is_full() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let options = HandlerOptions::new().batch_max(8);
    let bank = Running::start(&broker, router(&database, &desk, options)).await;
    // As many as come at the same time, by default: one less than two batches wait.
    desk.gather(&broker, &deposits(1..=15)).await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=15));
    bank.stop().await;
    assert_eq!(desk.sizes()[..2], [1, 8]);
}

#[tokio::test]
async fn a_batch_that_takes_long_does_not_keep_the_next_one_waiting() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let bank = start(&broker, &database, &desk).await;
    broker.publish_raw(outgoing(&deposit("hang", 100)));
    until("it hangs", async || desk.sizes() == [1]).await;
    for deposit in deposits(1..=5) {
        broker.publish_raw(outgoing(&deposit));
    }
    until("the others are handled", async || {
        database.effects().await.len() == 5
    })
    .await;
    bank.crash().await;
}

#[tokio::test]
async fn the_same_message_is_never_twice_in_a_batch() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let bank = start(&broker, &database, &desk).await;
    desk.gather(&broker, &deposits([1, 2, 1, 3, 2, 0])).await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, [0, 1, 2, 3]);
    bank.stop().await;
    assert_eq!(desk.batches(), [vec![0], vec![1, 2, 3]]);
}

#[tokio::test]
async fn a_message_that_was_handled_before_does_not_reach_the_handler_again() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let bank = start(&broker, &database, &desk).await;
    for deposit in deposits([3, 5]) {
        broker.publish_raw(outgoing(&deposit));
    }
    assert_eq!(booked(&broker, &database).await, [3, 5]);
    let before = desk.sizes().len();
    desk.set_open(false);
    desk.gather(&broker, &deposits([1, 3, 2, 5, 4])).await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, [0, 1, 2, 3, 4, 5]);
    bank.stop().await;
    assert_eq!(desk.batches()[before..], [vec![0], vec![1, 2, 4]]);
}

#[tokio::test]
async fn two_instances_that_get_the_same_messages_in_other_orders_handle_each_once() {
    let database = Database::new().await;
    let (one, other) = (Broker::default(), Broker::default());
    let (first, second) = (Desk::closed(), Desk::closed());
    let instances = [
        start(&one, &database, &first).await,
        start(&other, &database, &second).await,
    ];
    first.gather(&one, &deposits(1..=10)).await;
    second.gather(&other, &deposits((6..=15).rev())).await;
    // Both have begun, and have asked before anything was committed.
    for desk in [&first, &second] {
        desk.set_open(true);
    }
    booked(&one, &database).await;
    assert_eq!(booked(&other, &database).await, Vec::from_iter(0..=15));
    for instance in instances {
        instance.stop().await;
    }
    assert!(one.dead_letters(QUEUE).is_empty() && other.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_batch_whose_messages_another_instance_handles_meanwhile_runs_again_without_them() {
    let database = Database::new().await;
    let (one, other) = (Broker::default(), Broker::default());
    let (slow, quick) = (Desk::closed(), Desk::open());
    let instances = [
        start(&one, &database, &slow).await,
        start(&other, &database, &quick).await,
    ];
    slow.gather(&one, &[]).await;
    slow.set_open(true);
    booked(&one, &database).await;
    // The first of these leads, so that the batch has begun when the other instance overtakes it.
    slow.set_open(false);
    one.publish_raw(outgoing(&deposit("lead", 20)));
    until("it begins", async || slow.sizes().len() == 2).await;
    for deposit in deposits(1..=5) {
        one.publish_raw(outgoing(&deposit));
    }
    until("the next ones begin beside it", async || {
        slow.batches().contains(&vec![1, 2, 3, 4, 5])
    })
    .await;
    for deposit in deposits([2, 4]) {
        other.publish_raw(outgoing(&deposit));
    }
    booked(&other, &database).await;
    slow.set_open(true);
    assert_eq!(booked(&one, &database).await, [0, 1, 2, 3, 4, 5, 20]);
    for instance in instances {
        instance.stop().await;
    }
    assert_eq!(slow.batches().last(), Some(&vec![1, 3, 5]));
    assert!(one.dead_letters(QUEUE).is_empty(), "nobody has failed");
}

#[tokio::test]
async fn what_waits_in_the_store_is_handled_in_batches_too() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let bank = start(&broker, &database, &desk).await;
    desk.gather(&broker, &deposits(1..=10)).await;
    bank.crash().await;
    // They come again, and are written down before they are tried.
    broker.set_down(true);
    broker.set_down(false);
    let desk = Desk::closed();
    let bank = start(&broker, &database, &desk).await;
    until("all are tried", async || {
        desk.arrived() == 11 && database.rows(InboxState::Deferred).await == 11
    })
    .await;
    desk.set_open(true);
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=10));
    bank.stop().await;
    assert!(
        desk.sizes().iter().any(|size| *size > 1),
        "{:?}",
        desk.sizes()
    );
    assert_eq!(database.rows(InboxState::Dead).await, 0);
}

#[tokio::test]
async fn suspects_are_not_in_a_batch_with_others() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let entry = |deposit: &MoneyDeposited| {
        let envelope = Arc::new(outgoing(deposit).envelope);
        InboxEntry {
            claim: Claim {
                consumer: QUEUE.into(),
                message: envelope.id.clone().expect("it has an id"),
            },
            over: Over::Nothing,
            order: None,
            fate: Fate::Deferred(Waiting {
                envelope,
                due_in: Duration::ZERO,
                failures: 0,
                history: Vec::new(),
            }),
        }
    };
    let commit = Commit {
        inbox: deposits(1..=6).iter().map(entry).collect(),
        ..Commit::default()
    };
    database.store.commit(commit).await.expect("it commits");
    // An instance has taken all of them, and died.
    let (deferred, lease) = (database.store.deferred(), Duration::from_millis(1));
    let taken = deferred.take_due(&[QUEUE.into()], "dead", lease, 10).await;
    assert_eq!(taken.expect("it takes").len(), 6);
    let bank = start(&broker, &database, &desk).await;
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(1..=6));
    bank.stop().await;
    assert_eq!(desk.sizes(), [1; 6]);
}

#[tokio::test]
async fn an_ordered_handler_gets_batches_with_one_message_of_each_key() {
    const COUNT: u64 = 60;
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let options = HandlerOptions::new().ordered(2);
    let service = Running::start(&broker, router(&database, &desk, options)).await;
    for number in 0..COUNT {
        broker.publish_raw(outgoing(&deposit(number % 6, number)));
    }
    booked(&broker, &database).await;
    service.stop().await;
    let effects = database.effects().await;
    assert_eq!(effects.len() as u64, COUNT);
    for account in 0..6 {
        let of_account = effects.iter().filter(|(a, _)| *a == account.to_string());
        let numbers: Vec<_> = of_account.map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted(), "account {account}: {numbers:?}");
    }
    let batches = desk.batches();
    assert!(batches.iter().any(|batch| batch.len() > 1), "{batches:?}");
    for batch in batches {
        let mut keys: Vec<_> = batch.iter().map(|number| number % 6).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), batch.len(), "two of one key in {batch:?}");
    }
}

#[tokio::test]
async fn what_a_batch_returns_follows_from_the_message_that_the_handler_names_or_from_none() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let listener = listen(&broker).await;
    let handler = |deposits: Batch<MoneyDeposited>, State(desk): State<Desk>| async move {
        let unfinished = desk.take(deposits.iter().map(|it| it.number)).await;
        unfinished.end();
        let all = BalanceChanged {
            account: "all".into(),
            number: deposits.len() as u64,
        };
        let each = deposits.with_metadata().map(|(deposit, about)| {
            let MoneyDeposited { account, number } = deposit;
            about.causes(BalanceChanged { account, number })
        });
        Ok::<_, Error>((all, each.collect::<Vec<_>>()))
    };
    let bank = Router::new("bank")
        .on(handler)
        .transactional(database.store.clone())
        .with_state(desk.clone());
    let bank = Running::start(&broker, bank).await;
    broker.publish_raw(outgoing(&deposit("first", 0)));
    until("it begins", async || desk.sizes() == [1]).await;
    let mut second = outgoing(&deposit("second", 2));
    second.envelope.correlation_id = Some("a conversation".into());
    broker.publish_raw(outgoing(&deposit("first", 1)));
    broker.publish_raw(second);
    tokio::task::yield_now().await;
    desk.set_open(true);
    until("all is said", async || {
        broker.published_as::<BalanceChanged>().len() == desk.sizes().len() + 3
    })
    .await;
    for running in [bank, listener] {
        running.stop().await;
    }
    for message in broker.published() {
        let said: BalanceChanged = serde_json::from_slice(&message.envelope.body).expect("JSON");
        let envelope = &message.envelope;
        let cause = envelope.causation_id.as_deref();
        let correlation = envelope.correlation_id.as_deref();
        let own = format!("money-deposited.v1/{}", said.number);
        match &*said.account {
            "all" => {
                assert_eq!(cause, None);
                assert_eq!(correlation, envelope.id.as_ref().map(MessageId::as_str));
            }
            "second" => assert_eq!((cause, correlation), (Some(&*own), Some("a conversation"))),
            _ => assert_eq!((cause, correlation), (Some(&*own), Some(&*own))),
        }
    }
}

#[tokio::test]
async fn without_a_store_a_batch_runs_and_what_it_returns_is_published() {
    let (broker, desk) = (Broker::default(), Desk::closed());
    let listener = listen(&broker).await;
    let handler = |deposits: Batch<MoneyDeposited>, State(desk): State<Desk>| async move {
        let unfinished = desk.take(deposits.iter().map(|it| it.number)).await;
        unfinished.end();
        if deposits.iter().any(|deposit| deposit.account == "bad") {
            return Err(Error::msg("the account is bad"));
        }
        let changed = deposits.into_iter().map(|deposit| BalanceChanged {
            account: deposit.account,
            number: deposit.number,
        });
        Ok(changed.collect::<Vec<_>>())
    };
    let bank = Router::new("bank")
        .on(handler)
        .retry(Retry::none())
        .with_state(desk.clone());
    let bank = Running::start(&broker, bank).await;
    broker.publish_raw(outgoing(&deposit("first", 0)));
    until("it begins", async || desk.sizes() == [1]).await;
    broker.publish_raw(outgoing(&deposit("bad", 100)));
    for deposit in deposits(1..=5) {
        broker.publish_raw(outgoing(&deposit));
    }
    desk.set_open(true);
    until("all is settled", async || broker.is_settled()).await;
    for running in [bank, listener] {
        running.stop().await;
    }
    let mut said: Vec<u64> = broker
        .published_as::<BalanceChanged>()
        .iter()
        .map(|changed| changed.number)
        .collect();
    said.sort_unstable();
    assert_eq!(said, Vec::from_iter(0..=5));
    assert_eq!(broker.dead_letters(QUEUE).len(), 1);
}

/// Adds up, in the memory's store.
async fn add_up(
    deposits: Batch<MoneyDeposited>,
    State(batches): State<Arc<Mutex<Vec<usize>>>>,
    mut tx: tidings_memory::Tx,
) -> Result<()> {
    batches.lock().push(deposits.len());
    for deposit in &deposits {
        let sum: u64 = tx.get("sum").await?.unwrap_or(0);
        tx.put("sum", &(sum + deposit.number)).await?;
        if deposit.account == "bad" {
            return Err(Error::msg("the account is bad"));
        }
    }
    // So that others come meanwhile.
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(())
}

#[tidings::test]
async fn in_memory_each_message_counts_once_and_a_bad_one_is_dead_alone(world: TestWorld) {
    let batches: Arc<Mutex<Vec<usize>>> = Arc::default();
    let (store, state) = (world.store(), Arc::clone(&batches));
    let bank = move || {
        Router::new("bank")
            .on(add_up)
            .transactional(store.clone())
            .retry(Retry::none())
            .with_state(Arc::clone(&state))
    };
    world.run(bank).await;
    for number in (1..=20).chain(1..=20) {
        world.publish(&deposit("a", number));
    }
    world.publish(&deposit("bad", 1000));
    world.quiet().await;
    assert_eq!(
        world.store().get::<u64>("sum").expect("a number"),
        Some(210)
    );
    assert_eq!(world.dead_letters(QUEUE).len(), 1);
    assert!(batches.lock().iter().any(|size| *size > 1), "{batches:?}");
}

#[tokio::test]
async fn a_handler_that_awaits_something_in_the_middle_of_its_transaction_can_take_batches() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let handler = |deposits: Batch<MoneyDeposited>, State(desk): State<Desk>, mut tx: Tx| async move {
        let unfinished = desk.take(deposits.iter().map(|it| it.number)).await;
        for deposit in &deposits {
            write(&mut tx, deposit).await?;
            tokio::task::yield_now().await;
        }
        unfinished.end();
        Ok::<_, Error>(())
    };
    let bank = Router::new("bank")
        .on(handler)
        .transactional(database.store.clone())
        .with_state(desk.clone());
    let bank = Running::start(&broker, bank).await;
    for deposit in deposits(0..100) {
        broker.publish_raw(outgoing(&deposit));
    }
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..100));
    bank.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
}
