//! What is said about a message when it is sent, and what an operator may say about a consumer:
//! headers, later, not at all; older versions; routers joined; pauses.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use support::{
    BalanceChanged, Database, LetterWritten, MoneyDeposited, Running,
    bank::{self, QUEUE},
    broker::Broker,
    deposit, outgoing, until, write,
};
use tidings::{
    AskError, Cancel, Error, RecordQuery, Reply, Requester, Requests, ScheduleId, Store, WorkError,
    prelude::*,
};
use tidings_sqlite::Tx;

async fn book(deposit: MoneyDeposited, mut tx: Tx) -> Result<()> {
    write(&mut tx, &deposit).await?;
    Ok(())
}

/// Somebody who listens to balances.
async fn listen(broker: &Broker) -> Running {
    let ignore = |_: BalanceChanged| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}

fn balance(number: u64) -> BalanceChanged {
    BalanceChanged {
        account: "a".into(),
        number,
    }
}

async fn scheduled(database: &Database) -> usize {
    let query = RecordQuery {
        kind: "tidings.schedule".into(),
        limit: 100,
        ..RecordQuery::default()
    };
    let records = database.store.records().list(&query).await;
    records.expect("records").len()
}

#[tokio::test]
async fn each_message_that_is_sent_can_be_looked_at_changed_and_refused() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = Router::new("bank")
        .on(bank::book)
        .transactional(database.store.clone())
        .retry(Retry::none())
        .on_send(|message| {
            message
                .envelope
                .headers
                .push(("tenant".into(), "t-1".into()));
            Ok(())
        })
        .on_send(|message| match message.envelope.header("tenant") {
            Some("t-1") if !message.envelope.body.ends_with(b":2}") => Ok(()),
            _ => Err("not for this tenant").permanent(),
        });
    let running = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    broker.publish_raw(outgoing(&deposit("a", 2)));
    until("one is refused", async || {
        broker.dead_letters(QUEUE).len() == 1
    })
    .await;
    until("the other is out", async || {
        broker.published_as::<BalanceChanged>().len() == 1
    })
    .await;
    running.stop().await;
    listener.stop().await;
    assert_eq!(database.effects().await, [("a".to_owned(), 1)]);
}

#[tokio::test]
async fn a_message_can_be_sent_later_with_headers_and_be_cancelled_or_replaced_until_then() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let later = |deposit: MoneyDeposited| async move {
        let MoneyDeposited { account, number } = deposit;
        let changed = BalanceChanged { account, number };
        let deadline = ScheduleId::new(format!("deadline/{number}"));
        let day = Duration::from_secs(24 * 3600);
        Ok::<_, Error>((
            changed
                .clone()
                .after(Duration::from_millis(100))
                .header("tenant", "t-1"),
            changed.after(day).scheduled_as(deadline),
        ))
    };
    let cancel =
        |letter: LetterWritten| async move { Ok::<_, Error>(Cancel(ScheduleId::new(letter.text))) };
    let router = Router::new("bank")
        .on(later)
        .on(cancel)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    for number in 0..3 {
        broker.publish_raw(outgoing(&deposit("a", number)));
    }
    until("those that are due are out", async || {
        broker.published().len() == 3
    })
    .await;
    assert_eq!(scheduled(&database).await, 3, "the others wait");
    let published = broker.published();
    let envelope = &published[0].envelope;
    assert_eq!(envelope.header("tenant"), Some("t-1"));
    assert_eq!(envelope.source, "bank");
    assert!(
        envelope
            .causation_id
            .as_deref()
            .is_some_and(|id| id.starts_with("money-deposited.v1/"))
    );

    let mut letter = outgoing(&LetterWritten {
        text: "deadline/1".into(),
    });
    letter.envelope.id = Some("letter".into());
    broker.publish_raw(letter);
    until("one is cancelled", async || scheduled(&database).await == 2).await;
    let producer = Producer::new("bank", database.store.clone());
    let of_2 = ScheduleId::new("deadline/2");
    assert!(producer.cancel(&of_2).await.expect("it cancels"));
    assert!(!producer.cancel(&of_2).await.expect("there is none"));

    // The last one is replaced: now it is due.
    let mut transaction = producer.transaction();
    let now = balance(7).at(jiff::Timestamp::now());
    let of_0 = ScheduleId::new("deadline/0");
    transaction
        .say(now.scheduled_as(of_0))
        .expect("it is small");
    transaction.commit().await.expect("it commits");
    until("it is out", async || broker.published().len() == 4).await;
    until("none waits", async || scheduled(&database).await == 0).await;
    bank.stop().await;
    listener.stop().await;
    assert_eq!(broker.published_as::<BalanceChanged>()[3].number, 7);
}

#[tokio::test]
async fn work_that_runs_where_the_database_is_writes_and_sends_all_or_nothing() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = Router::new("bank")
        .publishes::<BalanceChanged>()
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let producer = Producer::new("bank", database.store.clone());
    let write_and = |number, is_good| {
        move |handle| async move {
            let mut tx = Tx::from(handle);
            write(&mut tx, &deposit("a", number)).await?;
            match is_good {
                true => Ok((number * 10, balance(number))),
                false => Err(Error::msg("it fails")),
            }
        }
    };
    let mut transaction = producer.transaction();
    transaction.publish(&balance(1)).expect("it is small");
    let value = transaction.run(write_and(2, true)).await;
    assert_eq!(value.expect("it commits"), 20);

    let mut transaction = producer.transaction();
    transaction.publish(&balance(3)).expect("it is small");
    let failed = transaction.run(write_and(4, false)).await;
    match failed.expect_err("it fails") {
        WorkError::Failed(error) => assert_eq!(error.to_string(), "it fails"),
        other => panic!("{other}"),
    }
    let value = producer.transaction().run(write_and(5, true)).await;
    assert_eq!(value.expect("it commits"), 50);
    until("they are out", async || broker.published().len() == 3).await;
    bank.stop().await;
    listener.stop().await;
    let said = broker.published_as::<BalanceChanged>();
    let said: Vec<u64> = said.iter().map(|changed| changed.number).collect();
    assert_eq!(said, [1, 2, 5]);
    assert_eq!(database.effects().await.len(), 2);
}

#[tokio::test]
async fn what_is_scheduled_survives_a_crash_and_is_sent_once_by_whichever_instance() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let router = || {
        Router::new("bank")
            .publishes::<BalanceChanged>()
            .transactional(database.store.clone())
    };
    let bank = Running::start(&broker, router()).await;
    let producer = Producer::new("bank", database.store.clone());
    for number in 0..50 {
        let mut transaction = producer.transaction();
        let message = balance(number).after(Duration::from_millis(200));
        transaction.say(message).expect("it is small");
        transaction.commit().await.expect("it commits");
    }
    bank.crash().await;
    let banks = [
        Running::start(&broker, router()).await,
        Running::start(&broker, router()).await,
    ];
    until("all are out", async || broker.published().len() >= 50).await;
    until("none waits", async || scheduled(&database).await == 0).await;
    for running in banks.into_iter().chain([listener]) {
        running.stop().await;
    }
    let mut numbers: Vec<u64> = broker
        .published_as::<BalanceChanged>()
        .into_iter()
        .map(|changed| changed.number)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
}

/// The deposit as an older version of its sender says it.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(name = "money-deposited.v0", key = "holder", id = "serial")]
struct CashDeposited {
    holder: String,
    serial: u64,
}

impl From<CashDeposited> for MoneyDeposited {
    fn from(old: CashDeposited) -> Self {
        Self {
            account: old.holder,
            number: old.serial,
        }
    }
}

#[tokio::test]
async fn a_handler_takes_older_versions_from_the_broker_and_from_the_store() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let attempts = Arc::new(AtomicU32::new(0));
    let flaky = |deposit: MoneyDeposited, State(attempts): State<Arc<AtomicU32>>, mut tx: Tx| async move {
        write(&mut tx, &deposit).await?;
        // Also the fast attempts and those from the store decode it.
        match attempts.fetch_add(1, Ordering::SeqCst) {
            0..4 => Err(Error::msg("try again")),
            _ => Ok(()),
        }
    };
    let router = Router::new("bank")
        .on(flaky)
        .upcast::<CashDeposited, MoneyDeposited>()
        .retry(
            Retry::exponential(Duration::from_millis(10))
                .attempts(8)
                .fast_attempts(2),
        )
        .transactional(database.store.clone())
        .with_state(Arc::clone(&attempts));
    assert_eq!(
        router.topology().queues[0].topics,
        ["money-deposited.v1", "money-deposited.v0"]
    );
    let bank = Running::start(&broker, router).await;
    let old = CashDeposited {
        holder: "a".into(),
        serial: 1,
    };
    broker.publish_raw(outgoing(&old));
    until("it is handled", async || {
        database.effects().await.len() == 1
    })
    .await;
    // The same fact, said in the newer version: it is known.
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("it is settled", async || broker.is_settled()).await;
    bank.stop().await;
    assert_eq!(database.effects().await, [("a".to_owned(), 1)]);
    assert!(broker.dead_letters(QUEUE).is_empty());
}

#[tokio::test]
async fn routers_of_one_consumer_are_joined_and_several_consumers_run_together() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let (letters, mut read) = tokio::sync::mpsc::channel::<String>(1);
    let reading = |letter: LetterWritten,
                   State(letters): State<tokio::sync::mpsc::Sender<String>>| async move {
        letters.send(letter.text).await.permanent()
    };
    let bank = Router::new("bank")
        .on(book)
        .transactional(database.store.clone())
        .merge(Router::new("bank").on(reading).with_state(letters));
    assert_eq!(bank.topology().queues.len(), 2);
    let counted = Arc::new(AtomicU32::new(0));
    let count = |_: MoneyDeposited, State(counted): State<Arc<AtomicU32>>| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Error>(())
    };
    let audit = Router::new("audit")
        .on(count)
        .with_state(Arc::clone(&counted));
    let services = Running::start_all(&broker, [bank, audit]).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    let mut letter = outgoing(&LetterWritten {
        text: "hello".into(),
    });
    letter.envelope.id = Some("letter".into());
    broker.publish_raw(letter);
    assert_eq!(read.recv().await.as_deref(), Some("hello"));
    until("both have it", async || {
        database.effects().await.len() == 1 && counted.load(Ordering::SeqCst) == 1
    })
    .await;
    services.stop().await;
}

#[tokio::test]
async fn a_paused_consumer_handles_nothing_in_any_instance_until_it_is_resumed() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = || {
        Router::new("bank")
            .on(book)
            .transactional(database.store.clone())
    };
    for name in ["bank", QUEUE] {
        let before = database.effects().await.len();
        let first = Running::start(&broker, router()).await;
        tidings::pause(&database.store, name, "the auditors are here")
            .await
            .expect("it pauses");
        let paused = tidings::paused(&database.store, 10).await.expect("a list");
        assert_eq!(paused[0].consumer, name);
        assert_eq!(paused[0].reason, "the auditors are here");
        // A restart does not forget it, and it holds for the second instance as well.
        first.stop().await;
        let services = [
            Running::start(&broker, router()).await,
            Running::start(&broker, router()).await,
        ];
        for number in 0..20 {
            broker.publish_raw(outgoing(&deposit("a", before as u64 + number)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(database.effects().await.len(), before, "{name} is paused");
        assert_eq!(broker.count(QUEUE), 20, "all is where it was");
        tidings::resume(&database.store, name)
            .await
            .expect("it resumes");
        until("it goes on", async || {
            database.effects().await.len() == before + 20
        })
        .await;
        for service in services {
            service.stop().await;
        }
    }
    assert!(
        tidings::paused(&database.store, 10)
            .await
            .expect("a list")
            .is_empty()
    );
}

#[tokio::test]
async fn what_a_handler_sends_is_of_its_trace() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let listener = listen(&broker).await;
    let answer = |deposit: MoneyDeposited| async move {
        let MoneyDeposited { account, number } = deposit;
        Ok::<_, Error>(BalanceChanged { account, number })
    };
    let router = Router::new("bank")
        .on(answer)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let mut message = outgoing(&deposit("a", 1));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    message.envelope.traceparent = Some(parent.into());
    broker.publish_raw(message);
    until("it is answered", async || broker.published().len() == 1).await;
    bank.stop().await;
    listener.stop().await;
    let traceparent = broker.published()[0]
        .envelope
        .traceparent
        .clone()
        .expect("one");
    assert!(
        traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{traceparent}"
    );
    assert!(
        !traceparent.contains("b7ad6b7169203331"),
        "the handler has a span of its own"
    );
}

/// Asks for the balance of an account.
#[derive(Debug, Serialize, Deserialize, Command)]
#[command(target = "bank")]
struct TellBalance {
    account: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
struct BalanceTold {
    balance: u64,
}

async fn tell(question: TellBalance, _: Tx) -> Result<Reply<BalanceTold>> {
    match &*question.account {
        "slow" => tokio::time::sleep(Duration::from_millis(300)).await,
        "mute" => return Err("never").permanent(),
        _ => {}
    }
    let balance = question.account.len() as u64;
    Ok(Reply(BalanceTold { balance }))
}

#[tokio::test]
async fn an_answer_reaches_the_instance_that_asks_within_its_deadline_or_not_at_all() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = Router::new("bank")
        .on(tell)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let start = async || {
        Requests::start(Arc::new(broker.clone()), "desk")
            .await
            .expect("it starts")
    };
    let (one, other) = (start().await, start().await);
    let ask = async |requests: &Requests, account: &str, deadline| {
        let question = TellBalance {
            account: account.to_owned(),
        };
        let answer = requests.ask::<_, BalanceTold>(&question, Duration::from_millis(deadline));
        answer.await.map(|told| told.balance)
    };
    let answers = tokio::join!(
        ask(&one, "a", 5000),
        ask(&other, "bb", 5000),
        ask(&one, "ccc", 5000),
    );
    assert_eq!(
        (
            answers.0.expect("one"),
            answers.1.expect("two"),
            answers.2.expect("three")
        ),
        (1, 2, 3)
    );
    for account in ["slow", "mute"] {
        let error = ask(&one, account, 50).await.unwrap_err();
        assert!(matches!(error, AskError::Late(_)), "{error}");
    }
    // The late answer harms nobody.
    assert_eq!(ask(&one, "dddd", 5000).await.expect("four"), 4);
    until("all is settled", async || broker.is_settled()).await;
    assert_eq!(broker.dead_letters("bank.tell-balance.v1").len(), 1);

    // A command that nobody waits for is carried out, and its answer goes nowhere.
    let mut command = outgoing(&TellBalance {
        account: "a".into(),
    });
    command.envelope.id = Some("no question".into());
    broker.publish_raw(command);
    until("all is settled", async || broker.is_settled()).await;
    bank.stop().await;
}

#[tokio::test]
async fn a_handler_asks_before_it_uses_its_transaction_and_not_after() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let router = Router::new("bank")
        .on(tell)
        .transactional(database.store.clone());
    let bank = Running::start(&broker, router).await;
    let audit = |deposit: MoneyDeposited, requester: Requester, mut tx: Tx| async move {
        let question = TellBalance {
            account: deposit.account.clone(),
        };
        if deposit.number == 2 {
            write(&mut tx, &deposit).await?;
        }
        let told: BalanceTold = requester
            .ask(&question, Duration::from_secs(5))
            .await
            .permanent()?;
        let number = 100 + told.balance;
        write(&mut tx, &MoneyDeposited { number, ..deposit }).await?;
        Ok::<_, Error>(())
    };
    let requests = Requests::start(Arc::new(broker.clone()), "audit").await;
    let router = Router::new("audit")
        .on(audit)
        .transactional(database.store.clone())
        .with_state(requests.expect("it starts"));
    let auditor = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("abc", 1)));
    broker.publish_raw(outgoing(&deposit("abc", 2)));
    until("one is done", async || database.effects().await.len() == 1).await;
    until("the other is refused", async || {
        broker.dead_letters("audit.money-deposited.v1").len() == 1
    })
    .await;
    auditor.stop().await;
    bank.stop().await;
    assert_eq!(database.effects().await, [("abc".to_owned(), 103)]);
    let dead = broker.dead_letters("audit.money-deposited.v1");
    let reason = &dead[0].history[0].reason;
    assert!(
        reason.contains("may not ask after it has used its `Tx`"),
        "{reason}"
    );
}
