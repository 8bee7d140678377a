//! When nothing can be tried (the database is away, a circuit is open, a layer sheds load), nothing
//! is counted and nothing is lost.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    Database, LetterWritten, MoneyDeposited, Running,
    bank::{QUEUE, book, listen, quick},
    broker::Broker,
    deposit,
    outage::Outage,
    outgoing, until, write,
};
use tidings::{Error, prelude::*};
use tidings_sqlite::Tx;

#[tokio::test]
async fn layers_of_tower_work_unmodified_and_what_they_refuse_comes_again_uncounted() {
    let broker = Broker::default();
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let handle =
        |_: MoneyDeposited, State((running, most)): State<(Arc<AtomicU32>, Arc<AtomicU32>)>| async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        };
    let layers = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(2)
        .timeout(Duration::from_secs(5));
    let router = Router::new("bank")
        .on(handle)
        .retry(Retry::exponential(Duration::from_millis(10)).attempts(2))
        .layer(layers)
        .with_state((Arc::clone(&running), Arc::clone(&most)));
    let bank = Running::start(&broker, router).await;
    for number in 0..30 {
        broker.publish_raw(outgoing(&deposit(number, number)));
    }
    until("all is settled", async || broker.is_settled()).await;
    bank.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_first_layer_is_the_outermost() {
    let broker = Broker::default();
    let (seen, mut order) = tokio::sync::mpsc::channel::<&'static str>(2);
    let note = |name: &'static str| {
        let seen = seen.clone();
        tidings::tower::util::MapRequestLayer::new(move |context: Context| {
            seen.try_send(name).expect("there is room");
            context
        })
    };
    let handle = |_: MoneyDeposited| async { Ok::<_, Error>(()) };
    let router = Router::new("bank")
        .layer(note("first"))
        .on(handle)
        .layer(note("second"));
    let bank = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    assert_eq!(order.recv().await, Some("first"));
    assert_eq!(order.recv().await, Some("second"));
    bank.stop().await;
}

#[tokio::test]
async fn an_open_circuit_breaker_postpones_messages_without_counting() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let down = Arc::new(AtomicU32::new(60));
    let breaker = CircuitBreaker::new("outside")
        .failures_max(1)
        .open_for(Duration::from_millis(20));
    let call = |deposit: MoneyDeposited,
                State((breaker, down)): State<(CircuitBreaker, Arc<AtomicU32>)>,
                mut tx: Tx| async move {
        let outside = async {
            let left = down.load(Ordering::SeqCst);
            down.store(left.saturating_sub(1), Ordering::SeqCst);
            if left == 0 { Ok(()) } else { Err("no answer") }
        };
        breaker.call(outside).await?;
        write(&mut tx, &deposit).await?;
        Ok::<_, Error>(())
    };
    let router = Router::new("bank")
        .on(call)
        .transactional(database.store.clone())
        .retry(quick().delay_max(Duration::from_millis(10)))
        .with_state((
            breaker.open_for_max(Duration::from_millis(20)),
            Arc::clone(&down),
        ));
    let bank = Running::start(&broker, router).await;
    for number in 0..40 {
        broker.publish_raw(outgoing(&deposit(number, number)));
    }
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    bank.stop().await;
    let dead = broker.dead_letters(QUEUE).len();
    assert_eq!(database.effects().await.len() + dead, 40);
    assert!(
        dead <= 60 / 4,
        "only calls that were made and failed count: {dead}"
    );
}

#[tokio::test]
async fn an_outage_of_the_database_makes_no_dead_letters_and_loses_nothing() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let store = Outage::of(database.store.clone());
    let router = Router::new("bank")
        .on(book)
        .transactional(store.clone())
        .retry(quick());
    let bank = Running::start(&broker, router).await;
    for number in 0..30 {
        broker.publish_raw(outgoing(&deposit(number % 3, number)));
        if number == 10 {
            until("some are handled", async || {
                !database.effects().await.is_empty()
            })
            .await;
            store.set_down(true);
        }
    }
    // More often than the policy would try each message.
    let before = store.refused();
    until("the database was asked in vain many times", async || {
        store.refused() > before + 30
    })
    .await;
    assert!(database.effects().await.len() < 30);
    store.set_down(false);
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    // What was published when the outage began may be published again, under the same id.
    let sent = || {
        let published = broker.published();
        let ids = published.iter().map(|message| message.envelope.id.clone());
        ids.collect::<HashSet<_>>().len()
    };
    until("all is sent", async || sent() == 30).await;
    bank.stop().await;
    listener.stop().await;
    assert_eq!(database.effects().await.len(), 30);
    // An attempt that the outage caught in its middle counts, like any other that failed.
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_message_that_the_database_can_never_hold_is_a_dead_letter_at_once_and_delays_no_other() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let read = |letter: LetterWritten, mut tx: Tx| async move {
        write(&mut tx, &deposit(letter.text, 1)).await?;
        Ok::<_, Error>(())
    };
    let router = Router::new("reader")
        .on(read)
        .transactional(Outage::of(database.store.clone()))
        .concurrency(1);
    let reader = Running::start(&broker, router).await;
    for id in ["a\0b", "c"] {
        let text = id.to_owned();
        let mut letter = outgoing(&LetterWritten { text });
        letter.envelope.id = Some(id.into());
        broker.publish_raw(letter);
    }
    until("all is settled", async || broker.is_settled()).await;
    reader.stop().await;
    assert_eq!(database.effects().await, [("c".to_owned(), 1)]);
    let dead = broker.dead_letters("reader.letter-written.v1");
    assert_eq!(dead.len(), 1);
    let reason = &dead[0].history[0].reason;
    assert!(
        reason.contains("which this database cannot hold"),
        "{reason}"
    );
}
