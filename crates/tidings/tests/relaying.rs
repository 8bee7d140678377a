//! What becomes of a committed message: it goes out, in order per key, whatever happens meanwhile.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    BalanceChanged, Database, LetterWritten, MoneyDeposited, Random, Running, StoreLetter,
    broker::Broker,
    deposit,
    teller::{assert_in_order_per_account, listen, numbers, producer, teller, unsent},
    until, write,
};
use tidings::{Error, OutboxState, Outgoing, PublishErrorKind, Store, prelude::*};

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

/// Also after a restart, of which the relay does not know why rows are held.
#[tokio::test]
async fn what_is_never_confirmed_holds_up_nothing_else_and_catches_up_in_order() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let ignore = |_: LetterWritten| async { Ok::<_, Error>(()) };
    let reader = Running::start(&broker, Router::new("reader").on(ignore)).await;
    broker.set_silent(Some(MoneyDeposited::NAME));
    let mut service = Running::start(&broker, teller(&database)).await;
    for number in 0..40 {
        let deposited = deposit(number % 20, number);
        let letter = LetterWritten {
            text: number.to_string(),
        };
        let producer = producer(&database);
        producer.publish(&deposited).await.expect("it commits");
        producer.publish(&letter).await.expect("it commits");
        let are_out = async || broker.published_as::<LetterWritten>().len() as u64 == number + 1;
        until("the letter is out", are_out).await;
        if number == 20 {
            service.stop().await;
            service = Running::start(&broker, teller(&database)).await;
        }
    }
    // In the first round nobody knew.
    let batches = broker.batches();
    let asked = batches.iter().skip_while(|(silent, _)| *silent == 0);
    let stalled = asked
        .skip(1)
        .find(|batch| !matches!(batch, (0, _) | (1, 0)));
    assert_eq!(stalled, None, "{batches:?}");
    assert_eq!(unsent(&database).await, 40);
    broker.set_silent(None);
    until("the outbox is empty", async || unsent(&database).await == 0).await;
    for running in [service, reader, listener] {
        running.stop().await;
    }
    assert_in_order_per_account(&broker, 20);
    assert_eq!(numbers(&broker).len(), 40);
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
