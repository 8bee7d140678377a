//! What becomes of a committed message: it goes out, in order per key, whatever happens meanwhile.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    BalanceChanged, Database, LetterWritten, MoneyDeposited, Random, Running, StoreLetter,
    broker::Broker, deposit, until, write,
};
use tidings::{Error, OutboxState, Outgoing, PublishErrorKind, Store, prelude::*};

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
    let stats = database.store.outbox().stats().await.expect("it counts");
    stats.ready + stats.held + stats.set_aside
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

#[track_caller]
fn assert_in_order(broker: &Broker, account: &str) {
    let published = broker.published_as::<MoneyDeposited>();
    let of_account = published
        .iter()
        .filter(|deposit| deposit.account == account);
    let numbers: Vec<u64> = of_account.map(|deposit| deposit.number).collect();
    assert!(numbers.is_sorted(), "{account}: {numbers:?}");
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

#[tokio::test]
async fn a_destination_nobody_listens_to_costs_one_probe_now_and_then() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let offers = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&offers);
    broker.judge(move |message: &Outgoing| {
        if message.envelope.name == MoneyDeposited::NAME {
            count.fetch_add(1, Ordering::SeqCst);
        }
        None
    });
    for number in 0..3000 {
        let message = deposit(number % 10, number);
        producer(&database)
            .publish(&message)
            .await
            .expect("it commits");
    }
    let service = Running::start(&broker, teller(&database)).await;
    until("all are held", async || {
        database
            .store
            .outbox()
            .stats()
            .await
            .expect("it counts")
            .held
            == 3000
    })
    .await;
    let ignore = |_: LetterWritten| async { Ok::<_, Error>(()) };
    let reader = Running::start(&broker, Router::new("reader").on(ignore)).await;
    let before = offers.load(Ordering::SeqCst);
    for number in 0..50 {
        let letter = LetterWritten {
            text: number.to_string(),
        };
        producer(&database)
            .publish(&letter)
            .await
            .expect("it commits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until("the letters are out", async || {
        broker.published().len() == 50
    })
    .await;
    let probes = offers.load(Ordering::SeqCst) - before;
    assert!(probes < 10, "{probes} offers while 50 letters went out");

    // Also after a restart, what is held goes first.
    service.stop().await;
    let service = Running::start(&broker, teller(&database)).await;
    let listener = listen(&broker).await;
    for number in 3000..3100 {
        let message = deposit(number % 10, number);
        producer(&database)
            .publish(&message)
            .await
            .expect("it commits");
    }
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, reader, listener] {
        running.stop().await;
    }
    assert_eq!(numbers(&broker).len(), 3100);
    assert_in_order_per_account(&broker, 10);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_set_aside_with_its_reason_and_the_others_go_out() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    for number in 0..5 {
        producer(&database)
            .publish(&deposit("a", number))
            .await
            .expect("it commits");
    }
    let damage = "update tidings_outbox set message = '{' where position =
                  (select min(position) + 2 from tidings_outbox)";
    let damaged = database
        .store
        .write(move |connection| connection.execute(damage, ()));
    assert_eq!(damaged.await.expect("it writes"), 1);
    let service = Running::start(&broker, teller(&database)).await;
    until("the others are out", async || broker.published().len() == 4).await;
    until("it is set aside", async || {
        database
            .store
            .outbox()
            .stats()
            .await
            .expect("it counts")
            .set_aside
            == 1
    })
    .await;
    service.stop().await;
    listener.stop().await;
    let rows = database
        .store
        .outbox()
        .list(OutboxState::SetAside, None, 10)
        .await;
    let rows = rows.expect("it lists");
    assert_eq!(rows.len(), 1);
    assert!(
        !rows[0].reason.is_empty() && rows[0].message.is_none(),
        "{rows:?}"
    );
    assert_eq!(numbers(&broker), [0, 1, 3, 4]);
}

#[tokio::test]
async fn an_event_that_was_held_for_its_longest_time_is_set_aside_and_not_lost() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = teller(&database).held_max(Duration::from_millis(300));
    let service = Running::start(&broker, router).await;
    producer(&database)
        .publish(&deposit("a", 1))
        .await
        .expect("it commits");
    let letter = StoreLetter {
        text: "hello".into(),
    };
    producer(&database).send(&letter).await.expect("it commits");
    until("the event is set aside", async || {
        database
            .store
            .outbox()
            .stats()
            .await
            .expect("it counts")
            .set_aside
            == 1
    })
    .await;
    let rows = database
        .store
        .outbox()
        .list(OutboxState::SetAside, None, 10)
        .await;
    let position = rows.expect("it lists")[0].position;
    let stats = database.store.outbox().stats().await.expect("it counts");
    assert_eq!(stats.held, 1, "a command has no end");
    let listener = listen(&broker).await;
    let restored = database.store.outbox().restore(&[position]).await;
    assert_eq!(restored.expect("it restores"), 1);
    until("it is out", async || numbers(&broker) == [1]).await;
    service.stop().await;
    listener.stop().await;
}

#[tokio::test]
async fn relays_share_the_lanes_rather_than_leave_them_to_the_first() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let lanes = async || {
        let sql = "select count(*) from tidings_lane where relay is not null group by relay";
        let lanes = database.store.read(move |connection| {
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map((), |row| row.get::<_, u32>(0))?;
            rows.collect::<std::result::Result<Vec<_>, _>>()
        });
        lanes.await.expect("it reads")
    };
    let first = Running::start(&broker, teller(&database)).await;
    until("the first has all", async || lanes().await == [16]).await;
    let second = Running::start(&broker, teller(&database)).await;
    until("each has half", async || lanes().await == [8, 8]).await;
    first.crash().await;
    until("the second has all", async || lanes().await == [16]).await;
    second.stop().await;
}
