//! Handlers that take many messages at once: one bad message harms no other, and nothing is lost when
//! somebody stops waiting.

mod support;

use std::time::Duration;

use support::{
    Database, MoneyDeposited, Running,
    bank::{QUEUE, quick},
    broker::Broker,
    deposit,
    desk::{Desk, booked, deposits, router, start},
    outage::Outage,
    outgoing, until,
};
use tidings::{Error, HandlerOptions, InboxState, Store, prelude::*, tower};
use tower::ServiceExt;

/// How long a handler may take in these tests.
const LIMIT: Duration = Duration::from_millis(300);

fn with_bad_one(account: &str) -> Vec<MoneyDeposited> {
    let mut all = deposits(1..=9);
    all.insert(5, deposit(account, 100));
    all
}

#[tokio::test]
async fn one_bad_message_of_a_batch_is_a_dead_letter_alone_and_costs_the_others_no_attempt() {
    for account in ["bad", "panic", "hang"] {
        let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
        // The first failure of anything would be a dead letter.
        let options = HandlerOptions::new().retry(Retry::none());
        let router = router(&database, &desk, options.attempt_timeout(LIMIT));
        let bank = Running::start(&broker, router).await;
        desk.gather(&broker, &with_bad_one(account)).await;
        desk.set_open(true);
        assert_eq!(
            booked(&broker, &database).await,
            Vec::from_iter(0..=9),
            "{account}"
        );
        until("its letter is sent", async || {
            broker.dead_letters(QUEUE).len() == 1
        })
        .await;
        bank.stop().await;
        let sizes = desk.sizes();
        assert_eq!(sizes[..2], [1, 10], "{account}");
        assert_eq!(sizes[2..], [1; 10], "each was tried alone, once: {account}");
        let dead = &broker.dead_letters(QUEUE)[0];
        assert_eq!(dead.failures, 1);
        let reason = &dead.history[0].reason;
        let expected = match account {
            "bad" => "the account is bad",
            "panic" => "the handler panicked: the account is worse",
            _ => "the handler was still running after the `attempt_timeout` of 300ms",
        };
        assert!(reason.contains(expected), "{account}: {reason}");
    }
}

#[tokio::test]
async fn a_message_that_has_failed_is_not_in_a_batch_again() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let options = HandlerOptions::new().retry(quick());
    let bank = Running::start(&broker, router(&database, &desk, options)).await;
    desk.gather(&broker, &with_bad_one("bad")).await;
    desk.set_open(true);
    for deposit in deposits(10..60) {
        broker.publish_raw(outgoing(&deposit));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..60));
    bank.stop().await;
    let batches = desk.batches();
    let with_it: Vec<_> = batches.iter().filter(|it| it.contains(&100)).collect();
    assert_eq!(
        with_it.len(),
        5,
        "one batch, and four attempts: {with_it:?}"
    );
    assert!(
        with_it[1..].iter().all(|batch| batch.len() == 1),
        "{with_it:?}"
    );
    assert_eq!(database.rows(InboxState::Dead).await, 1);
}

#[tokio::test]
async fn an_error_that_says_that_nothing_was_tried_is_told_to_all_and_counted_for_nobody() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let outage = Outage::of(database.store.clone());
    let options = HandlerOptions::new().retry(Retry::none());
    let router = router(&database, &desk, options).transactional(outage.clone());
    let bank = Running::start(&broker, router).await;
    desk.gather(&broker, &deposits(1..=10)).await;
    outage.set_down(true);
    desk.set_open(true);
    until("the database was asked", async || outage.refused() > 0).await;
    until("what came is given back", async || {
        broker.given_back(QUEUE) >= 10
    })
    .await;
    assert_eq!(desk.sizes(), [1], "without an answer nothing is handled");
    let refused = outage.refused();
    assert!(refused < 10, "the database was asked {refused} times");
    outage.set_down(false);
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=10));
    bank.stop().await;
    assert_eq!(database.rows(InboxState::Dead).await, 0);
}

/// Stops waiting for one message, `hasty`, after 20 ms, or when it is in a batch that runs.
fn impatient(router: Router, desk: &Desk, in_a_batch: bool) -> Router {
    let desk = desk.clone();
    router.layer(tower::layer::layer_fn(
        move |inner: tidings::HandlerService| {
            let desk = desk.clone();
            tower::service_fn(move |context: Context| {
                let (inner, desk) = (inner.clone(), desk.clone());
                async move {
                    if context.envelope().key.as_deref() != Some("hasty") {
                        return inner.oneshot(context).await;
                    }
                    let patience = async {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        while in_a_batch && !desk.batches().concat().contains(&1) {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    tokio::select! {
                        handled = inner.oneshot(context) => handled,
                        () = patience => Err("it takes too long".into()),
                    }
                }
            })
        },
    ))
}

#[tokio::test]
async fn one_that_stops_waiting_harms_no_other_of_its_batch() {
    for in_a_batch in [false, true] {
        let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
        let hour = Duration::from_secs(3600);
        let retry = Retry::exponential(hour).delay_max(hour).fast_attempts(1);
        let router = router(&database, &desk, HandlerOptions::new().retry(retry));
        let bank = Running::start(&broker, impatient(router, &desk, in_a_batch)).await;
        let mut all = deposits(2..=10);
        all.insert(0, deposit("hasty", 1));
        desk.gather(&broker, &all).await;
        until("the hasty one is put off", async || {
            database.rows(InboxState::Deferred).await == 1
        })
        .await;
        assert_eq!(desk.sizes().contains(&10), in_a_batch);
        desk.set_open(true);
        until("all is settled", async || broker.is_settled()).await;
        // If it was in the batch, it is known as deferred meanwhile: the batch runs again without it.
        let expected: &[usize] = if in_a_batch { &[1, 10, 9] } else { &[1, 9] };
        assert_eq!(desk.sizes(), expected, "{:?}", desk.batches());
        assert_eq!(database.rows(InboxState::Deferred).await, 1);
        assert_eq!(database.effects().await.len(), 10);
        bank.stop().await;
    }
}

#[tokio::test]
async fn what_was_refused_by_a_circuit_breaker_is_not_tried_one_by_one() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let breaker = CircuitBreaker::new("the outside").open_for(Duration::from_secs(3600));
    let handler = |deposits: Batch<MoneyDeposited>,
                   State(desk): State<Desk>,
                   State(breaker): State<CircuitBreaker>| async move {
        let unfinished = desk.take(deposits.iter().map(|it| it.number)).await;
        unfinished.end();
        breaker.call(async { Ok::<_, Error>(()) }).await
    };
    let router = Router::new("bank")
        .on(handler)
        .transactional(database.store.clone())
        .retry(Retry::none())
        .with_state(desk.clone())
        .with_state(breaker.clone());
    let bank = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("first", 0)));
    until("it begins", async || desk.sizes() == [1]).await;
    for deposit in deposits(1..=10) {
        broker.publish_raw(outgoing(&deposit));
    }
    until("the next ones begin beside it", async || {
        desk.sizes() == [1, 10]
    })
    .await;
    while !breaker.is_open() {
        let _ = breaker
            .call(async { Err::<(), _>(Error::msg("no answer")) })
            .await;
    }
    desk.set_open(true);
    until("all are given back", async || {
        broker.given_back(QUEUE) == 11
    })
    .await;
    assert_eq!(desk.sizes(), [1, 10]);
    bank.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_batch_that_nobody_waits_for_any_more_is_given_up_and_each_is_tried_alone() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let options = HandlerOptions::new().retry(quick());
    let router = router(&database, &desk, options).layer(TimeoutLayer::new(LIMIT));
    let bank = Running::start(&broker, router).await;
    desk.gather(&broker, &[]).await;
    desk.set_open(true);
    booked(&broker, &database).await;
    desk.set_open(false);
    desk.gather_behind(&broker, 20, &with_bad_one("hang")).await;
    desk.set_open(true);
    assert_eq!(
        booked(&broker, &database).await,
        Vec::from_iter((0..=9).chain([20]))
    );
    bank.stop().await;
    let dead = broker.dead_letters(QUEUE);
    assert_eq!(dead.len(), 1);
    let batches = desk.batches();
    let with_it = batches.iter().filter(|batch| batch.contains(&100));
    let sizes: Vec<_> = with_it.map(Vec::len).collect();
    assert_eq!(sizes, [10, 1, 1, 1], "{batches:?}");
    assert_eq!(desk.given_up(), 4, "each time it was dropped");
}

#[tokio::test]
async fn a_shutdown_waits_for_the_batch_under_way_and_gives_back_what_gathers() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::closed());
    let bank = start(&broker, &database, &desk).await;
    desk.gather(&broker, &deposits(1..=10)).await;
    let stopping = tokio::spawn(bank.stop());
    tokio::time::sleep(Duration::from_millis(20)).await;
    desk.set_open(true);
    stopping.await.expect("it stops");
    assert_eq!(desk.given_up(), 0);
    let bank = start(&broker, &database, &desk).await;
    assert_eq!(booked(&broker, &database).await, Vec::from_iter(0..=10));
    bank.stop().await;
}

#[tokio::test]
async fn a_shutdown_that_cuts_off_a_batch_loses_nothing_of_it() {
    let (broker, database, desk) = (Broker::default(), Database::new().await, Desk::open());
    let options = HandlerOptions::new().retry(Retry::none());
    let hurried = router(&database, &desk, options.clone()).shutdown_timeout(LIMIT);
    let bank = Running::start(&broker, hurried).await;
    broker.publish_raw(outgoing(&deposit("first", 0)));
    assert_eq!(booked(&broker, &database).await, [0]);
    desk.set_open(false);
    desk.gather_behind(&broker, 20, &deposits(1..=10)).await;
    until("the batch runs", async || {
        desk.batches().contains(&Vec::from_iter(1..=10))
    })
    .await;
    bank.stop().await;
    until("it is given up", async || desk.given_up() == 2).await;
    broker.set_down(true);
    broker.set_down(false);
    desk.set_open(true);
    let bank = Running::start(&broker, router(&database, &desk, options)).await;
    assert_eq!(
        booked(&broker, &database).await,
        Vec::from_iter((0..=10).chain([20]))
    );
    bank.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
    assert_eq!(
        database.store.outbox().stats().await.expect("stats").ready,
        0
    );
}
