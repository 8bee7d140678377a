//! How long an attempt may take, and when its time begins.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    Database, LetterWritten, MoneyDeposited, Running,
    bank::{QUEUE, book, listen},
    broker::Broker,
    deposit, outgoing, until,
};
use tidings::{Error, HandlerOptions, InboxState, prelude::*};

#[tokio::test]
async fn an_attempt_that_takes_too_long_has_failed() {
    let broker = Broker::default();
    let hang = |_: MoneyDeposited| async { std::future::pending::<Result<()>>().await };
    let router = Router::new("bank")
        .on(hang)
        .attempt_timeout(Duration::from_millis(20))
        .retry(Retry::none());
    let bank = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("a dead letter", async || {
        broker.dead_letters(QUEUE).len() == 1
    })
    .await;
    bank.stop().await;
    let dead = broker.dead_letters(QUEUE);
    let reason = &dead[0].history[0].reason;
    assert!(reason.contains("`attempt_timeout` of 20ms"), "{reason}");
}

/// The store has one thread for all attempts, and somebody keeps it for longer than the others may take:
/// at first for so short that they wait, then for so long that they are given back.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_waits_for_a_busy_store_has_not_begun_and_has_not_failed() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let keeps = Arc::new(AtomicU32::new(0));
    let kept = Arc::clone(&keeps);
    let keep = move |letter: LetterWritten| {
        kept.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(letter.text.parse().expect("seconds")));
        async { Ok::<_, Error>(()) }
    };
    let short = HandlerOptions::new().attempt_timeout(Duration::from_millis(100));
    let router = Router::new("bank")
        .on(keep)
        .on_with(book, short)
        .retry(Retry::none())
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    for (round, seconds) in (0..).zip(["1", "7"]) {
        let mut letter = outgoing(&LetterWritten {
            text: seconds.into(),
        });
        letter.envelope.id = Some(MessageId::new(seconds));
        broker.publish_raw(letter);
        until("the store is kept", async || {
            keeps.load(Ordering::SeqCst) == round + 1
        })
        .await;
        for number in 0..10 {
            let number = u64::from(round) * 10 + number;
            broker.publish_raw(outgoing(&deposit(number, number)));
        }
        if round == 1 {
            until("they are given back", async || {
                broker.given_back(QUEUE) == 10
            })
            .await;
        }
        until("all are booked", async || {
            database.effects().await.len() == 10 * (round as usize + 1) && broker.is_settled()
        })
        .await;
    }
    bank.stop().await;
    listener.stop().await;
    assert_eq!(broker.dead_letters(QUEUE).len(), 0);
    assert_eq!(database.rows(InboxState::Dead).await, 0);
}
