//! What must wait, waits in the consumer's own database: nothing circulates through the broker, and
//! a crash forgets nothing.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    Database, MoneyDeposited, Running,
    bank::QUEUE,
    broker::Broker,
    deposit, outgoing,
    outside::{Outside, bank, waiting},
    until, write,
};
use tidings::{Error, HandlerOptions, InboxState, REDRIVE_HEADER, Store, prelude::*};
use tidings_sqlite::Tx;

#[tokio::test]
async fn what_is_tried_again_later_waits_in_the_store_and_not_in_the_broker() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let router = bank(&database, &outside, Duration::from_secs(3600));
    let bank = Running::start(&broker, router).await;
    for number in 0..10 {
        broker.publish_raw(outgoing(&deposit("a", number)));
    }
    until("all wait in the store", async || {
        waiting(&database).await.len() == 10
    })
    .await;
    until("none is in the broker", async || broker.count(QUEUE) == 0).await;
    bank.stop().await;
    for row in waiting(&database).await {
        assert_eq!(row.state, InboxState::Deferred);
        assert_eq!(row.failures, 1);
        assert!(
            row.history[0].reason.contains("the outside is down"),
            "{row:?}"
        );
        assert!(
            row.due.is_some_and(|due| due > jiff::Timestamp::now()),
            "{row:?}"
        );
        assert!(
            row.envelope
                .is_some_and(|it| it.name == "money-deposited.v1")
        );
    }
    assert!(
        database.effects().await.is_empty(),
        "what failed left nothing"
    );
}

#[tokio::test]
async fn a_crash_forgets_nothing_that_waits() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let router = || bank(&database, &outside, Duration::from_millis(300));
    let service = Running::start(&broker, router()).await;
    for number in 0..20 {
        broker.publish_raw(outgoing(&deposit("a", number)));
    }
    until("all wait in the store", async || {
        waiting(&database).await.len() == 20
    })
    .await;
    service.crash().await;
    broker.set_down(true);
    broker.set_down(false);
    outside.set_up(true);
    let service = Running::start(&broker, router().lease(Duration::from_millis(300))).await;
    until("all are handled", async || {
        database.effects().await.len() == 20
    })
    .await;
    until("nothing waits", async || {
        waiting(&database).await.is_empty()
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn a_duplicate_runs_no_handler_whether_its_message_was_handled_waits_or_is_dead() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let hour = Duration::from_secs(3600);
    let router = bank(&database, &outside, hour);
    let service = Running::start(&broker, router).await;
    let publish = async |number, calls| {
        broker.publish_raw(outgoing(&deposit("a", number)));
        until("it is settled", async || broker.is_settled()).await;
        assert_eq!(outside.calls(), calls, "deposit {number}");
    };
    publish(1, 1).await;
    publish(1, 1).await; // It waits.
    outside.set_up(true);
    publish(2, 2).await;
    publish(2, 2).await; // It was handled.
    service.stop().await;

    outside.set_up(false);
    let router = bank(&database, &outside, hour).retry(Retry::none());
    let service = Running::start(&broker, router).await;
    publish(3, 3).await;
    until("a dead letter", async || {
        broker.dead_letters(QUEUE).len() == 1
    })
    .await;
    publish(3, 3).await; // It is dead.

    // Sent again with a number it is tried once more, and only then.
    outside.set_up(true);
    let mut again = outgoing(&deposit("a", 3));
    again
        .envelope
        .headers
        .push((REDRIVE_HEADER.into(), "1".into()));
    broker.publish_raw(again.clone());
    until("it is handled", async || {
        outside.calls() == 4 && broker.is_settled()
    })
    .await;
    broker.publish_raw(again);
    until("it is settled", async || broker.is_settled()).await;
    service.stop().await;
    assert_eq!(outside.calls(), 4);
    let numbers: Vec<u64> = database
        .effects()
        .await
        .into_iter()
        .map(|(_, n)| n)
        .collect();
    assert_eq!(numbers, [2, 3]);
}

#[tokio::test]
async fn a_dead_letter_goes_through_the_outbox_when_the_broker_is_away() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let wait = |_: MoneyDeposited,
                State((gate, outside)): State<(Arc<tokio::sync::Semaphore>, Outside)>,
                _: Tx| async move {
        outside.calls.fetch_add(1, Ordering::SeqCst);
        gate.acquire().await?.forget();
        Err::<(), _>("never").permanent()
    };
    let router = Router::new("bank")
        .on(wait)
        .transactional(database.store.clone())
        .with_state((Arc::clone(&gate), outside.clone()));
    let service = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("its handler runs", async || outside.calls() == 1).await;
    broker.set_down(true);
    gate.add_permits(10);
    until("it is dead", async || {
        waiting(&database)
            .await
            .iter()
            .any(|row| row.state == InboxState::Dead)
    })
    .await;
    assert!(broker.dead_letters(QUEUE).is_empty());
    broker.set_down(false);
    until("its letter is there", async || {
        broker.dead_letters(QUEUE).len() == 1
    })
    .await;
    until("its redelivery is settled", async || broker.is_settled()).await;
    service.stop().await;
    let dead = broker.dead_letters(QUEUE);
    assert_eq!((dead.len(), dead[0].failures), (1, 1));
    assert_eq!(dead[0].history[0].reason, "never");
}

#[tokio::test]
async fn while_a_circuit_is_open_the_backlog_stays_in_the_broker() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let breaker = CircuitBreaker::new("outside")
        .failures_max(1)
        .open_for(Duration::from_millis(50))
        .open_for_max(Duration::from_millis(50));
    let call = |deposit: MoneyDeposited,
                State((breaker, outside)): State<(CircuitBreaker, Outside)>,
                mut tx: Tx| async move {
        let call = async {
            outside.calls.fetch_add(1, Ordering::SeqCst);
            match outside.is_up.load(Ordering::SeqCst) {
                true => Ok(()),
                false => Err("no answer"),
            }
        };
        breaker.call(call).await?;
        write(&mut tx, &deposit).await?;
        Ok::<_, Error>(())
    };
    let router = Router::new("bank")
        .on(call)
        .transactional(database.store.clone())
        .retry(
            Retry::exponential(Duration::from_millis(10))
                .attempts(1000)
                .fast_attempts(1),
        )
        .concurrency(4)
        .with_state((breaker, outside.clone()));
    let service = Running::start(&broker, router).await;
    for number in 0..500 {
        broker.publish_raw(outgoing(&deposit(number, number)));
    }
    until("some calls were tried", async || outside.calls() >= 8).await;
    let (in_broker, in_store) = (broker.count(QUEUE), waiting(&database).await.len());
    assert!(
        in_broker > 400,
        "{in_broker} in the broker, {in_store} in the store"
    );
    assert!(
        in_broker + in_store >= 500,
        "{in_broker} in the broker, {in_store} in the store"
    );
    outside.set_up(true);
    until("all are handled", async || {
        database.effects().await.len() == 500
    })
    .await;
    service.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_handler_whose_messages_fill_the_store_receives_no_more() {
    let (broker, database, outside) =
        (Broker::default(), Database::new().await, Outside::default());
    let router = bank(&database, &outside, Duration::from_secs(3600)).deferred_count_max(20);
    let service = Running::start(&broker, router).await;
    let published = AtomicU32::new(0);
    until("the broker keeps what comes", async || {
        let number = published.fetch_add(1, Ordering::SeqCst);
        broker.publish_raw(outgoing(&deposit("a", number.into())));
        waiting(&database).await.len() >= 20 && broker.count(QUEUE) > 50
    })
    .await;
    // An operator mends the outside and makes due what waits, also what was under way meanwhile:
    // then the rest comes, too.
    outside.set_up(true);
    until("all are handled", async || {
        let rows = waiting(&database).await;
        let claims: Vec<_> = rows.into_iter().map(|row| row.claim).collect();
        let deferred = database.store.deferred();
        let rescheduled = deferred.reschedule(&claims, Duration::ZERO).await;
        rescheduled.expect("it does");
        database.effects().await.len() as u32 == published.load(Ordering::SeqCst)
    })
    .await;
    service.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_handlers_own_options_hold_for_it_alone_and_from_broker_and_store_together() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let failed = Arc::new(AtomicU32::new(0));
    let one = |deposit: MoneyDeposited,
               State((running, most, failed)): State<(
        Arc<AtomicU32>,
        Arc<AtomicU32>,
        Arc<AtomicU32>,
    )>,
               mut tx: Tx| async move {
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2)).await;
        running.fetch_sub(1, Ordering::SeqCst);
        if failed.fetch_add(1, Ordering::SeqCst) % 3 == 0 {
            return Err(Error::msg("try again"));
        }
        write(&mut tx, &deposit).await?;
        Ok(())
    };
    let quick = Retry::exponential(Duration::from_millis(1))
        .attempts(1000)
        .fast_attempts(1);
    let options = HandlerOptions::new().concurrency(1).retry(quick);
    let router = Router::new("bank")
        .on_with(one, options)
        .retry(Retry::none())
        .transactional(database.store.clone())
        .with_state((Arc::clone(&running), Arc::clone(&most), failed));
    let service = Running::start(&broker, router).await;
    for number in 0..60 {
        broker.publish_raw(outgoing(&deposit(number, number)));
    }
    until("all are handled", async || {
        database.effects().await.len() == 60
    })
    .await;
    service.stop().await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert!(broker.dead_letters(QUEUE).is_empty());
}
