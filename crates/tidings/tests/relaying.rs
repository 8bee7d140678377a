//! What becomes of a committed message: it goes out, in order per key, whatever happens meanwhile.

mod support;

use std::{collections::HashSet, time::Duration};

use support::{
    BalanceChanged, Database, LetterWritten, MoneyDeposited, Random, Running, StoreLetter,
    broker::Broker, deposit, until, write,
};
use tidings::{Error, Outgoing, PublishErrorKind, Store, prelude::*};

/// A service that only publishes.
fn teller(database: &Database) -> Router {
    Router::new("teller")
        .publishes::<MoneyDeposited>()
        .transactional(database.store.clone())
}

fn producer(database: &Database) -> Producer {
    Producer::new("teller", database.store.clone())
}

/// Somebody who listens to what the teller says.
async fn listen(broker: &Broker) -> Running {
    let ignore = |_: MoneyDeposited| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}

async fn unsent(database: &Database) -> u64 {
    database
        .store
        .outbox_stats()
        .await
        .expect("it counts")
        .unsent
}

/// The numbers that were published, in order; each once, by the first time.
fn numbers(broker: &Broker) -> Vec<u64> {
    let mut seen = HashSet::new();
    let published = broker.published_as::<MoneyDeposited>();
    let numbers = published.iter().map(|deposit| deposit.number);
    numbers.filter(|number| seen.insert(*number)).collect()
}

#[track_caller]
fn assert_in_order_per_account(broker: &Broker, accounts: u64) {
    let published = broker.published_as::<MoneyDeposited>();
    for account in 0..accounts {
        let mut seen = HashSet::new();
        let of_account = published
            .iter()
            .filter(|d| d.account == account.to_string());
        let firsts: Vec<_> = of_account
            .map(|d| d.number)
            .filter(|n| seen.insert(*n))
            .collect();
        assert!(firsts.is_sorted(), "account {account}: {firsts:?}");
    }
}

#[tokio::test]
async fn messages_go_out_if_and_only_if_their_transaction_commits() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let service = Running::start(&broker, teller(&database)).await;
    for number in 0..10 {
        let mut transaction = producer(&database).transaction();
        let deposit = deposit("a", number);
        let mut tx = tidings_sqlite::Tx::from(transaction.handle());
        write(&mut tx, &deposit).await.expect("it writes");
        drop(tx);
        transaction.publish(&deposit).expect("it is small");
        match number % 2 {
            0 => transaction.commit().await.expect("it commits"),
            _ => transaction.rollback().await,
        }
    }
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(numbers(&broker), [0, 2, 4, 6, 8]);
    assert_eq!(database.effects().await.len(), 5);
}

#[tokio::test]
async fn what_was_committed_while_the_broker_was_down_goes_out_in_order_when_it_is_back() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let service = Running::start(&broker, teller(&database)).await;
    broker.set_down(true);
    for number in 0..100 {
        let deposit = deposit(number % 5, number);
        producer(&database)
            .publish(&deposit)
            .await
            .expect("the producer does not notice");
    }
    assert!(broker.published().is_empty());
    broker.set_down(false);
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(numbers(&broker).len(), 100);
    assert_in_order_per_account(&broker, 5);
}

#[tokio::test]
async fn a_message_whose_confirmation_was_lost_in_a_crash_goes_out_again_under_the_same_id() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    broker.set_mute(true);
    let service = Running::start(&broker, teller(&database)).await;
    let letter = LetterWritten {
        text: "hello".into(),
    };
    let ignore = |_: LetterWritten| async { Ok::<_, Error>(()) };
    let reader = Running::start(&broker, Router::new("reader").on(ignore)).await;
    producer(&database)
        .publish(&letter)
        .await
        .expect("it commits");
    until("it is out", async || broker.published().len() == 1).await;
    service.crash().await;
    assert_eq!(unsent(&database).await, 1, "it was not confirmed");

    broker.set_mute(false);
    let service = Running::start(&broker, teller(&database)).await;
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, reader, listener] {
        running.stop().await;
    }
    let published = broker.published();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0].envelope, published[1].envelope);
}

#[tokio::test]
async fn what_nobody_listens_to_waits_in_order_and_holds_up_nothing_else() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let service = Running::start(&broker, teller(&database)).await;
    let ignore = |_: LetterWritten| async { Ok::<_, Error>(()) };
    let reader = Running::start(&broker, Router::new("reader").on(ignore)).await;
    for number in 0..20 {
        producer(&database)
            .publish(&deposit("0", number))
            .await
            .expect("it commits");
        let letter = LetterWritten {
            text: number.to_string(),
        };
        producer(&database)
            .publish(&letter)
            .await
            .expect("it commits");
    }
    until("the letters are out", async || {
        broker.published_as::<LetterWritten>().len() == 20
    })
    .await;
    until("only the deposits are left", async || {
        unsent(&database).await == 20
    })
    .await;
    let listener = listen(&broker).await;
    producer(&database)
        .publish(&deposit("0", 20))
        .await
        .expect("it commits");
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, reader, listener] {
        running.stop().await;
    }
    assert_eq!(numbers(&broker), (0..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_command_waits_until_its_target_exists() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let service = Running::start(&broker, teller(&database)).await;
    let letter = StoreLetter {
        text: "hello".into(),
    };
    producer(&database).send(&letter).await.expect("it commits");
    let store = |_: StoreLetter| async { Ok::<_, Error>(()) };
    let archive = Running::start(&broker, Router::new("archive").on(store)).await;
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, archive] {
        running.stop().await;
    }
    assert_eq!(broker.published_as::<StoreLetter>().len(), 1);
}

#[tokio::test]
async fn a_message_that_can_never_be_published_stays_and_the_others_go_out() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    broker.judge(|message: &Outgoing| {
        let unlucky = message.envelope.body.ends_with(b"\"number\":3}");
        unlucky.then_some(PublishErrorKind::Invalid)
    });
    let service = Running::start(&broker, teller(&database)).await;
    for number in 0..10 {
        producer(&database)
            .publish(&deposit("a", number))
            .await
            .expect("it commits");
    }
    until("nine are out", async || broker.published().len() == 9).await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(
        unsent(&database).await,
        1,
        "it is still there to be looked at"
    );
}

#[tokio::test]
async fn order_per_key_holds_through_lost_connections_and_two_relays() {
    for seed in 0..3 {
        let (broker, database) = (Broker::default(), Database::new().await);
        let listener = listen(&broker).await;
        let random = Random::new(seed);
        let chance = random.clone();
        broker.judge(move |_| (chance.below(50) == 0).then_some(PublishErrorKind::Unavailable));
        let services = [
            Running::start(&broker, teller(&database)).await,
            Running::start(&broker, teller(&database)).await,
        ];
        for number in 0..300 {
            let deposit = deposit(random.below(10), number);
            producer(&database)
                .publish(&deposit)
                .await
                .expect("it commits");
        }
        until("the outbox is empty", async || unsent(&database).await == 0).await;
        for running in services.into_iter().chain([listener]) {
            running.stop().await;
        }
        assert_eq!(numbers(&broker).len(), 300, "seed {seed}");
        assert_in_order_per_account(&broker, 10);
    }
}

#[tokio::test]
async fn a_shutdown_lets_handlers_finish_and_publishes_what_they_sent() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let ignore = |_: BalanceChanged| async { Ok::<_, Error>(()) };
    let listener = Running::start(&broker, Router::new("listener").on(ignore)).await;
    let (began, mut begun) = tokio::sync::mpsc::channel::<()>(1);
    let slow = |deposit: MoneyDeposited, State(began): State<tokio::sync::mpsc::Sender<()>>| async move {
        began.send(()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let MoneyDeposited { account, number } = deposit;
        Ok::<_, Error>(BalanceChanged { account, number })
    };
    let router = Router::new("bank")
        .on(slow)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router.with_state(began)).await;
    broker.publish_raw(support::outgoing(&deposit("a", 1)));
    begun.recv().await.expect("the handler runs");
    bank.stop().await;
    assert_eq!(broker.published_as::<BalanceChanged>().len(), 1);
    assert_eq!(unsent(&database).await, 0);
    listener.stop().await;
}

#[tokio::test]
async fn a_body_over_its_budget_is_an_error_that_names_the_limit() {
    let database = Database::new().await;
    let text = "x".repeat(LetterWritten::BODY_BYTES_MAX);
    let error = producer(&database)
        .publish(&LetterWritten { text })
        .await
        .unwrap_err();
    assert!(error.is_permanent());
    assert!(
        error.to_string().contains("`body_bytes_max` of 65536"),
        "{error}"
    );
    assert_eq!(unsent(&database).await, 0);
}
