//! What the broker refuses, or leaves in doubt: it goes out later, in order per key.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use support::{
    Database, MoneyDeposited, Running,
    broker::Broker,
    deposit,
    teller::{
        assert_in_order, assert_in_order_per_account, listen, numbers, producer, teller, unsent,
    },
    until,
};
use tidings::{Outgoing, PublishErrorKind, Store};

#[tokio::test]
async fn a_refused_row_holds_up_nothing_else_and_catches_up_in_order() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    broker.judge(move |message: &Outgoing| {
        let refused = message.envelope.key.as_deref() == Some("full");
        (refused && is_full.load(Ordering::SeqCst)).then_some(PublishErrorKind::Refused)
    });
    let service = Running::start(&broker, teller(&database)).await;
    for number in 0..20 {
        for account in ["full", "other"] {
            let message = deposit(account, number * 2 + u64::from(account == "other"));
            producer(&database)
                .publish(&message)
                .await
                .expect("it commits");
        }
    }
    until("the others are out", async || numbers(&broker).len() == 20).await;
    until("the refused are held", async || {
        database
            .store
            .outbox()
            .stats()
            .await
            .expect("it counts")
            .held
            == 20
    })
    .await;
    full.store(false, Ordering::SeqCst);
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(numbers(&broker).len(), 40);
    assert_in_order(&broker, "full");
    assert_in_order(&broker, "other");
}

/// Three rounds of a relay, which reads each while the one before is published. One message is not
/// taken when it is offered for the first time.
async fn not_taken_at_first(number: u64, kind: PublishErrorKind) -> Broker {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let mut transaction = producer(&database).transaction();
    for number in 0..3000 {
        let message = deposit(number % 10, number);
        transaction.publish(&message).expect("it is small");
    }
    transaction.commit().await.expect("it commits");
    let mut is_first = true;
    broker.judge(move |message: &Outgoing| {
        let deposit: MoneyDeposited = serde_json::from_slice(&message.envelope.body).ok()?;
        let refuses = deposit.number == number && std::mem::take(&mut is_first);
        refuses.then_some(kind)
    });
    let service = Running::start(&broker, teller(&database)).await;
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, listener] {
        running.stop().await;
    }
    assert_eq!(numbers(&broker).len(), 3000);
    broker
}

#[tokio::test]
async fn what_was_read_ahead_is_not_sent_before_what_a_lost_connection_left() {
    for number in [5, 1500] {
        let broker = not_taken_at_first(number, PublishErrorKind::Unavailable).await;
        assert_in_order_per_account(&broker, 10);
    }
}

#[tokio::test]
async fn what_was_read_ahead_is_held_behind_a_refused_message_of_its_key() {
    let broker = not_taken_at_first(503, PublishErrorKind::Refused).await;
    let numbers = numbers(&broker);
    let refused = numbers.iter().position(|number| *number == 503);
    // Those of its own round were offered with it.
    let overtook = numbers
        .iter()
        .take(refused.expect("it was sent"))
        .filter(|number| **number % 10 == 3 && **number >= 1000);
    assert_eq!(overtook.count(), 0, "they overtook it");
}

/// In one round the first message of a key is not confirmed, and those behind it are refused, as by a queue of a cluster that
/// loses its leader meanwhile. If they were held then, they would go before it when the relay comes back.
#[tokio::test]
async fn what_is_refused_behind_a_message_in_doubt_stays_behind_it() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    broker.keep_connection();
    let offers = Arc::new(AtomicU32::new(0));
    let (count, mut offered) = (Arc::clone(&offers), HashSet::new());
    broker.judge(move |message: &Outgoing| {
        let deposit: MoneyDeposited = serde_json::from_slice(&message.envelope.body).ok()?;
        let is_behind = deposit.account == "a" && deposit.number > 0;
        if deposit.number == 0 && count.fetch_add(1, Ordering::SeqCst) < 5 {
            return Some(PublishErrorKind::Unavailable);
        }
        (is_behind && offered.insert(deposit.number)).then_some(PublishErrorKind::Refused)
    });
    let service = Running::start(&broker, teller(&database)).await;
    // A relay begins with one message.
    let first = producer(&database).publish(&deposit("b", 100)).await;
    first.expect("it commits");
    until("it is out", async || unsent(&database).await == 0).await;
    let mut transaction = producer(&database).transaction();
    for number in 0..20 {
        let message = deposit("a", number);
        transaction.publish(&message).expect("it is small");
    }
    transaction.commit().await.expect("it commits");
    until("it is offered again", async || {
        offers.load(Ordering::SeqCst) > 2
    })
    .await;
    let stats = database.store.outbox().stats().await.expect("it counts");
    assert_eq!((stats.ready, stats.held), (20, 0));
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, listener] {
        running.stop().await;
    }
    assert_eq!(numbers(&broker).len(), 21);
    assert_in_order(&broker, "a");
}
