//! What becomes of a message: effects once, retries, dead letters, nothing else held up.

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
    BalanceChanged, Database, LetterWritten, MoneyDeposited, Random, Running, StoreLetter,
    bank::{QUEUE, book, listen, quick},
    broker::Broker,
    deposit, outgoing, until, write,
};
use tidings::{Error, Metadata, Outgoing, prelude::*};
use tidings_sqlite::Tx;

#[tokio::test]
async fn a_message_has_its_effects_once_however_often_it_is_delivered() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = Router::new("bank")
        .on(book)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    for _ in 0..20 {
        for number in 0..5 {
            broker.publish_raw(outgoing(&deposit(number % 2, number)));
        }
    }
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    assert_eq!(database.effects().await.len(), 5);
    until("five events", async || {
        broker.published_as::<BalanceChanged>().len() >= 5
    })
    .await;
    bank.stop().await;
    assert_eq!(broker.published_as::<BalanceChanged>().len(), 5);
    listener.stop().await;
}

#[tokio::test]
async fn a_fact_is_known_by_its_identity_whatever_id_it_comes_with() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = Router::new("bank")
        .on(book)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    for id in [None, Some("one"), Some("two")] {
        let mut message = outgoing(&deposit("a", 1));
        message.envelope.id = id.map(MessageId::new);
        message.envelope.name = "".into();
        message.envelope.key = None;
        broker.publish_raw(message);
    }
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    bank.stop().await;
    assert_eq!(database.effects().await, [("a".to_owned(), 1)]);
    let published = broker.published();
    let envelope = &published[0].envelope;
    assert_eq!(published.len(), 1);
    assert_eq!(envelope.source, "bank");
    assert_eq!(
        envelope.causation_id.as_deref(),
        Some("money-deposited.v1/1")
    );
    assert_eq!(
        envelope.correlation_id.as_deref(),
        Some("money-deposited.v1/1")
    );
    assert_eq!(envelope.key.as_deref(), Some("a"));
    listener.stop().await;
}

#[tokio::test]
async fn a_failed_attempt_leaves_nothing_behind_and_the_next_one_may_succeed() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let attempts = Arc::new(AtomicU32::new(0));
    let flaky = |deposit: MoneyDeposited, State(attempts): State<Arc<AtomicU32>>, mut tx: Tx| async move {
        write(&mut tx, &deposit).await?;
        match attempts.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Error::msg("an error")),
            1 => panic!("a panic"),
            2 => {
                drop(tx);
                std::future::pending().await
            }
            _ => Ok(()),
        }
    };
    let router = Router::new("bank")
        .on(flaky)
        .transactional(database.store.clone())
        .retry(quick())
        .layer(TimeoutLayer::new(Duration::from_millis(500)))
        .with_state(Arc::clone(&attempts));
    let bank = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("it is handled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    bank.stop().await;
    assert_eq!(
        attempts.load(Ordering::SeqCst),
        4,
        "an error, a panic and a timeout are failures"
    );
    assert_eq!(database.effects().await.len(), 1);
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_message_that_always_fails_is_a_dead_letter_with_its_history() {
    let broker = Broker::default();
    let attempts = Arc::new(AtomicU32::new(0));
    let fail = |_: MoneyDeposited, State(attempts): State<Arc<AtomicU32>>, about: Metadata| async move {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(Error::msg(format!(
            "no {attempt} after {} failures",
            about.failures()
        )))
    };
    let router = Router::new("bank")
        .on(fail)
        .retry(quick())
        .with_state(Arc::clone(&attempts));
    let bank = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("a dead letter", async || {
        !broker.dead_letters(QUEUE).is_empty()
    })
    .await;
    bank.stop().await;
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    let history = &broker.dead_letters(QUEUE)[0].history;
    let reasons: Vec<_> = history
        .iter()
        .map(|attempt| attempt.reason.as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "no 1 after 0 failures",
            "no 2 after 1 failures",
            "no 3 after 2 failures"
        ]
    );
    assert!(
        history[0]
            .by
            .as_deref()
            .is_some_and(|by| by.starts_with("bank/"))
    );
}

#[tokio::test]
async fn what_can_never_be_handled_is_a_dead_letter_at_once_and_holds_up_nothing() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let strict = |deposit: MoneyDeposited, mut tx: Tx| async move {
        if deposit.number == 13 {
            Err("unlucky").permanent()?;
        }
        write(&mut tx, &deposit).await?;
        Ok::<_, Error>(())
    };
    let router = Router::new("bank")
        .on(strict)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let raw = |body: &'static str| Outgoing {
        envelope: tidings::Envelope::new("", body),
        ..outgoing(&deposit("a", 0))
    };
    broker.publish_raw(outgoing(&deposit("a", 13)));
    broker.publish_raw(raw("not JSON"));
    broker.publish_raw(raw(r#"{"account": "a"}"#));
    broker.publish_raw(outgoing(&deposit("a", 14)));
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    bank.stop().await;
    assert_eq!(database.effects().await, [("a".to_owned(), 14)]);
    let mut reasons: Vec<_> = broker
        .dead_letters(QUEUE)
        .into_iter()
        .map(|dead| {
            dead.history
                .into_iter()
                .map(|attempt| attempt.reason)
                .collect::<String>()
        })
        .collect();
    reasons.sort();
    assert_eq!(reasons.len(), 3, "one failure each");
    assert!(
        reasons[0].contains("the body is not the JSON of a `money-deposited.v1`"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("missing field `number`"), "{reasons:?}");
    assert_eq!(reasons[2], "unlucky");
}

#[tokio::test]
async fn a_message_without_id_and_identity_is_a_dead_letter_that_says_what_to_do() {
    let broker = Broker::default();
    let read = |_: LetterWritten| async { Ok::<_, Error>(()) };
    let router = Router::new("reader").on(read);
    let reader = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&LetterWritten {
        text: "hello".into(),
    }));
    until("all is settled", async || broker.is_settled()).await;
    reader.stop().await;
    let dead = broker.dead_letters("reader.letter-written.v1");
    assert!(dead[0].history[0].reason.contains("the message has no id"));
}

#[tokio::test]
async fn a_poison_message_holds_up_nothing_else() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let strict = |deposit: MoneyDeposited, mut tx: Tx| async move {
        if deposit.account == "poison" {
            return Err(Error::msg("never"));
        }
        write(&mut tx, &deposit).await?;
        Ok(())
    };
    let hours = Retry::exponential(Duration::from_secs(3600)).attempts(10);
    let router = Router::new("bank")
        .on(strict)
        .transactional(database.store.clone())
        .retry(hours)
        .concurrency(1);
    let bank = Running::start(&broker, router).await;
    for number in 0..50 {
        broker.publish_raw(outgoing(&deposit("poison", 1000 + number)));
        broker.publish_raw(outgoing(&deposit(format!("a{number}"), number)));
    }
    until("the others are handled", async || {
        database.effects().await.len() == 50
    })
    .await;
    bank.stop().await;
}

#[tokio::test]
async fn effects_are_once_through_failures_retries_and_lost_connections() {
    for seed in 0..4 {
        let (broker, database) = (Broker::default(), Database::new().await);
        let random = Random::new(seed);
        let flaky = |deposit: MoneyDeposited, State(random): State<Random>, mut tx: Tx| async move {
            tokio::time::sleep(Duration::from_micros(random.below(2000))).await;
            write(&mut tx, &deposit).await?;
            match random.below(10) {
                0..3 => Err(Error::msg("try again")),
                _ => Ok(()),
            }
        };
        let policy = Retry::exponential(Duration::from_millis(10))
            .attempts(1000)
            .fast_attempts(1)
            .delay_max(Duration::from_millis(50));
        let router = Router::new("bank")
            .on(flaky)
            .transactional(database.store.clone())
            .retry(policy)
            .concurrency(8)
            .with_state(random.clone());
        let bank = Running::start(&broker, router).await;
        const COUNT: u64 = 200;
        for number in 0..COUNT {
            broker.publish_raw(outgoing(&deposit(number % 7, number)));
            if number % 50 == 25 {
                tokio::time::sleep(Duration::from_millis(random.below(30))).await;
                broker.set_down(true);
                broker.set_down(false);
            }
        }
        until("all are handled", async || {
            database.effects().await.len() as u64 == COUNT
        })
        .await;
        until("all is settled", async || {
            broker.is_settled() && database.is_quiet().await
        })
        .await;
        bank.stop().await;
        let effects = database.effects().await;
        let numbers: HashSet<u64> = effects.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers.len() as u64, COUNT, "seed {seed}: none is missing");
        assert_eq!(effects.len() as u64, COUNT, "seed {seed}: no effect twice");
    }
}

#[tokio::test]
async fn a_topic_may_carry_messages_of_other_kinds() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = Router::new("bank")
        .on(book)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let mut other = outgoing(&deposit("a", 1));
    other.envelope.name = "money-withdrawn.v1".into();
    broker.publish_raw(other);
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    bank.stop().await;
    assert!(database.effects().await.is_empty());
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn a_command_goes_to_its_target_and_a_consumer_without_a_store_sends_before_it_acknowledges()
{
    let broker = Broker::default();
    let forward =
        |letter: LetterWritten| async { Ok::<_, Error>(StoreLetter { text: letter.text }) };
    let (stored, mut letters) = tokio::sync::mpsc::channel::<String>(1);
    let store = |letter: StoreLetter, State(stored): State<tokio::sync::mpsc::Sender<String>>| async move {
        stored.send(letter.text).await.permanent()
    };
    let archive =
        Running::start(&broker, Router::new("archive").on(store).with_state(stored)).await;
    let reader = Running::start(&broker, Router::new("reader").on(forward)).await;
    let mut letter = outgoing(&LetterWritten {
        text: "hello".into(),
    });
    letter.envelope.id = Some(MessageId::new("letter-1"));
    broker.publish_raw(letter);
    assert_eq!(letters.recv().await.as_deref(), Some("hello"));
    until("all is settled", async || broker.is_settled()).await;
    reader.stop().await;
    archive.stop().await;
}

#[tokio::test]
async fn two_instances_share_the_work_and_the_effects_are_still_once() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let random = Random::new(7);
    let flaky = |deposit: MoneyDeposited, State(random): State<Random>, mut tx: Tx| async move {
        write(&mut tx, &deposit).await?;
        match random.below(4) {
            0 => Err(Error::msg("try again")),
            _ => Ok(()),
        }
    };
    let router = || {
        Router::new("bank")
            .on(flaky)
            .transactional(database.store.clone())
            .retry(
                quick()
                    .attempts(100)
                    .fast_attempts(1)
                    .delay_max(Duration::from_millis(50)),
            )
            .with_state(random.clone())
    };
    let banks = [
        Running::start(&broker, router()).await,
        Running::start(&broker, router()).await,
    ];
    for number in 0..200 {
        broker.publish_raw(outgoing(&deposit(number % 5, number)));
    }
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    for bank in banks {
        bank.stop().await;
    }
    let mut numbers: Vec<_> = database
        .effects()
        .await
        .into_iter()
        .map(|(_, n)| n)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_whose_key_panics_is_a_dead_letter() {
    #[derive(Serialize, Deserialize)]
    struct Trap;
    impl tidings::Message for Trap {
        const NAME: &'static str = "trap-sprung.v1";
        const DESTINATION: tidings::Destination = tidings::Destination::topic("trap-sprung.v1");
        fn identity(&self) -> Option<std::borrow::Cow<'_, str>> {
            panic!("a bug in a message")
        }
    }
    let broker = Broker::default();
    let handle = |_: Trap| async { Ok::<_, Error>(()) };
    let service = Running::start(&broker, Router::new("mouse").on(handle)).await;
    broker.publish_raw(Outgoing {
        destination: tidings::Destination::topic("trap-sprung.v1"),
        unrouted: tidings::Unrouted::Hold,
        envelope: tidings::Envelope::new("trap-sprung.v1", "null"),
    });
    until("all is settled", async || broker.is_settled()).await;
    service.stop().await;
    let dead = broker.dead_letters("mouse.trap-sprung.v1");
    assert!(dead[0].history[0].reason.contains("a bug in a message"));
}

/// In simulated time: the memory transport's clock is tokio's.
#[tokio::test(start_paused = true)]
async fn the_default_policy_tries_for_a_quarter_of_an_hour() {
    let transport = tidings_memory::MemoryTransport::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let fail = |_: MoneyDeposited, State(attempts): State<Arc<AtomicU32>>| async move {
        attempts.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(Error::msg("no"))
    };
    let router = Router::new("bank")
        .on(fail)
        .with_state(Arc::clone(&attempts));
    let began = tokio::time::Instant::now();
    let dead = {
        let transport = transport.clone();
        async move {
            while transport.dead_letters(QUEUE).is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let service = tidings::serve(transport.clone(), router).with_graceful_shutdown(dead);
    let ready = service.ready();
    let publish = async {
        ready.await;
        let outcomes = tidings::Transport::publish(&transport, vec![outgoing(&deposit("a", 1))]);
        assert!(outcomes.await[0].is_ok());
    };
    let (served, ()) = tokio::join!(service.into_future(), publish);
    served.expect("no error");
    assert_eq!(attempts.load(Ordering::SeqCst), 13);
    let minutes = began.elapsed().as_secs() / 60;
    assert!((15..25).contains(&minutes), "{minutes} minutes");
}

#[tokio::test]
async fn a_message_is_remembered_for_its_window_and_then_forgotten() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let again = async |window, expected| {
        let router = Router::new("bank")
            .on(book)
            .transactional(database.store.clone())
            .claim_window(window);
        let bank = Running::start(&broker, router).await;
        // Old rows are deleted soon after the start.
        let listener = listen(&broker).await;
        let count = async || {
            let sql = "select count(*) from tidings_inbox";
            let count = database
                .store
                .read(move |connection| connection.query_one(sql, (), |row| row.get::<_, u32>(0)));
            count.await.expect("it counts")
        };
        until("what is remembered", async || count().await == expected).await;
        broker.publish_raw(outgoing(&deposit("a", 1)));
        until("it is settled", async || broker.is_settled()).await;
        bank.stop().await;
        listener.stop().await;
    };
    again(Duration::from_secs(3600), 0).await;
    again(Duration::from_secs(3600), 1).await;
    assert_eq!(database.effects().await.len(), 1, "it is known");
    again(Duration::from_millis(1), 0).await;
    assert_eq!(database.effects().await.len(), 2, "it was forgotten");
}

/// As when another service takes over: what is there is worked off, and nothing new comes.
#[tokio::test]
async fn a_handler_that_is_unsubscribed_works_off_what_it_has() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = || {
        Router::new("bank")
            .on(book)
            .transactional(database.store.clone())
    };
    broker.declare_for(&router()).await;
    broker.publish_raw(outgoing(&deposit("before", 1)));
    let bank = Running::start(&broker, router().unsubscribed()).await;
    // Somebody else wants them now; otherwise they would wait for a listener.
    let other = Router::new("other").on(ignore);
    let other = Running::start(&broker, other).await;
    broker.publish_raw(outgoing(&deposit("after", 2)));
    let mut sent_on = outgoing(&deposit("by name", 3));
    sent_on.destination = tidings::Destination::Queue(QUEUE.into());
    broker.publish_raw(sent_on);
    until("both are handled", async || {
        database.effects().await.len() == 2 && broker.is_settled()
    })
    .await;
    let accounts = || async {
        let effects = database.effects().await;
        let mut accounts: Vec<String> = effects.into_iter().map(|(account, _)| account).collect();
        accounts.sort_unstable();
        accounts
    };
    assert_eq!(accounts().await, ["before", "by name"]);
    bank.stop().await;

    // And it may come back.
    let bank = Running::start(&broker, router()).await;
    broker.publish_raw(outgoing(&deposit("again", 4)));
    until("it is handled", async || {
        database.effects().await.len() == 3
    })
    .await;
    assert_eq!(accounts().await, ["again", "before", "by name"]);
    bank.stop().await;
    other.stop().await;
    listener.stop().await;
}

async fn ignore(_: MoneyDeposited) -> Result<()> {
    Ok(())
}
