//! A redrive as a job: what it sends, how fast, in which order, and what is left when it dies.

mod support;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use support::{
    BalanceChanged, Database, MoneyDeposited, Running, deposit,
    letters::{Dying, QUEUE, all, desk, letter, publish},
    until, write,
};
use tidings::{
    Queue, REDRIVE_HEADER, Topology, Transport,
    dead_letters::{
        Audit, Code, DeadLetters, Event, JOB_HEADER, Outcome, Redrive, Report, Selection,
        consumers_of,
    },
    prelude::*,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_memory::MemoryTransport;
use tidings_sqlite::Tx;
use tokio::time::Instant;

#[tokio::test]
async fn a_letter_stays_behind_an_earlier_one_of_its_key_that_stays() {
    let (transport, letters) = desk().await;
    let batch = [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("c", 4)];
    let batch = batch
        .map(|(account, number)| letter(&deposit(account, number), QUEUE, "no", number as i64));
    publish(&transport, batch.to_vec()).await;
    let ids: Vec<_> = all(&letters, &Selection::all()).await;
    let mut selection = Selection::all();
    for letter in &ids[1..] {
        selection = selection.id(&letter.id);
    }
    let mut kept = Vec::new();
    let redrive = letters.redrive(selection).keep_order(true).unlimited();
    let report = redrive.settle(Duration::ZERO).run(|event| {
        if let Event::Letter {
            letter,
            outcome: Outcome::KeptBack,
        } = event
        {
            kept.push(letter.id.clone());
        }
    });
    let report = report.await.expect("it runs");
    assert_eq!(
        (report.sent, report.kept_back, report.passed_over),
        (3, 1, 1)
    );
    assert_eq!(kept, [ids[2].id.clone()]);
    let sent = transport.messages(QUEUE);
    let sent: Vec<_> = sent.iter().map(|it| it.envelope.id.clone()).collect();
    let expected: Vec<_> = [1, 3, 4].map(|at| ids[at].envelope.id.clone()).to_vec();
    assert_eq!(sent, expected, "in order");
}

#[tokio::test]
async fn letters_of_others_do_not_stop_a_redrive_and_are_not_sent() {
    let (transport, letters) = desk().await;
    let put = async |numbers: std::ops::Range<u64>| {
        let batch = numbers.map(|number| letter(&deposit("a", number), QUEUE, "no", 0));
        publish(&transport, batch.collect()).await;
    };
    put(0..100).await;
    let rate = NonZeroU32::new(500).expect("not zero");
    let redrive = letters
        .redrive(Selection::all())
        .rate(rate)
        .ramp(Duration::ZERO);
    let redrive = redrive.batch(10).settle(Duration::ZERO).run(|_| {});
    let (report, ()) = tokio::join!(redrive, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        put(1000..1200).await;
    });
    let report = report.expect("it runs");
    assert_eq!(
        (report.sent, report.came_back, report.stopped),
        (100, 0, None)
    );
    assert_eq!(transport.messages(QUEUE).len(), 100);
    assert_eq!(transport.dead_letters(QUEUE).len(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_redrive_keeps_its_rate_and_lets_others_look() {
    let (transport, letters) = desk().await;
    let batch = (0..60).map(|number| letter(&deposit("a", number), QUEUE, "no", 0));
    publish(&transport, batch.collect()).await;
    let other = DeadLetters::new(transport.connect(), QUEUE);
    let began = Instant::now();
    let redrive = letters.redrive(Selection::all().name("money-deposited.v1"));
    let redrive = redrive.rate(NonZeroU32::MIN).ramp(Duration::from_secs(20));
    let mut times = Vec::new();
    let redrive = redrive.run(|event| {
        if let Event::Letter {
            outcome: Outcome::Sent,
            ..
        } = event
        {
            times.push(began.elapsed().as_secs());
        }
    });
    let (report, looked) = tokio::join!(redrive, async {
        let mut looked = Vec::new();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            looked.push(all(&other, &Selection::all()).await.len());
        }
        looked
    });
    assert_eq!(report.expect("it runs").sent, 60);
    assert!(looked.is_sorted_by(|one, next| one > next), "{looked:?}");
    // A second each, and at first fewer.
    let early = times.iter().filter(|at| **at < 10).count();
    assert!((2..=5).contains(&early), "{times:?}");
    let late = times.iter().filter(|at| (30..40).contains(*at)).count();
    assert!((9..=11).contains(&late), "{times:?}");
}

/// The last letters are sent, and the job waits for what comes back of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_while_a_redrive_waits_in_the_end_may_come_back() {
    let data = tempfile::tempdir().expect("a folder");
    let options = Options::durable(data.path()).listen(([127, 0, 0, 1], 0));
    let broker = Broker::start(options).await.expect("the broker starts");
    let amqp = Arc::new(
        Amqp::connect(&broker.amqp_url())
            .await
            .expect("it connects"),
    );
    let topology = Topology::new().queue(Queue::new(QUEUE));
    amqp.declare(&topology).await.expect("it declares");
    let batch = (0..3).map(|number| letter(&deposit("a", number), QUEUE, "no", 0));
    publish(&amqp, batch.collect()).await;

    let (all_sent, waits) = tokio::sync::oneshot::channel();
    let mut all_sent = Some(all_sent);
    let letters = DeadLetters::new(amqp.clone(), QUEUE);
    let redrive = letters.redrive(Selection::all()).unlimited();
    let redrive = redrive.settle(Duration::from_secs(15)).run(|event| {
        if let Event::Progress(report) = event
            && report.sent == 3
            && let Some(all_sent) = all_sent.take()
        {
            all_sent.send(()).expect("somebody waits");
        }
    });
    let restart = async {
        waits.await.expect("all are sent");
        let options = Options::durable(data.path()).listen(broker.amqp_addr());
        broker.shutdown().await.expect("it stops");
        // Longer than a look waits for a connection.
        tokio::time::sleep(Duration::from_secs(11)).await;
        Broker::start(options).await.expect("the broker starts")
    };
    let (report, broker) = tokio::join!(redrive, restart);
    let report = report.expect("it does not end for that");
    assert_eq!((report.sent, report.came_back), (3, 0));
    amqp.close().await;
    broker.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_consumer_that_is_gone_is_an_error_and_its_letters_stay() {
    let (transport, letters) = desk().await;
    let batch = (0..3).map(|number| letter(&deposit("a", number), QUEUE, "no", 0));
    publish(&transport, batch.collect()).await;
    transport.delete_queue(QUEUE);
    let error = letters.redrive(Selection::all()).run(|_| {}).await;
    assert_eq!(error.expect_err("it is gone").code(), Code::NotTaken);
    assert_eq!(transport.dead_letters(QUEUE).len(), 3);
    // They can be sent to another one that takes such messages.
    let newer = Topology::new().queue(Queue::new("bank.money-deposited.v2"));
    transport.declare(&newer).await.expect("it declares");
    let to = letters
        .redrive(Selection::all())
        .to("bank.money-deposited.v2");
    let report = to.unlimited().settle(Duration::ZERO).run(|_| {}).await;
    assert_eq!(report.expect("it runs").sent, 3);
    let sent = transport.messages("bank.money-deposited.v2");
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[0].envelope.header(REDRIVE_HEADER), Some("1"));
    assert!(sent[0].envelope.header(JOB_HEADER).is_some());
    assert_eq!(
        (sent[0].failures, sent[0].history.len()),
        (0, 1),
        "it begins anew"
    );

    let missing = DeadLetters::new(transport.connect(), "nobody")
        .count()
        .await;
    assert_eq!(missing.expect_err("it is not there").code(), Code::Missing);
    let topology = newer.queue(Queue::new("answers").ephemeral());
    assert_eq!(consumers_of(&topology), ["bank.money-deposited.v2"]);
}

/// Dies after each step there is, in turn; another operator does it again.
#[tokio::test]
async fn a_redrive_or_a_discard_that_dies_anywhere_loses_nothing() {
    for is_discard in [false, true] {
        let mut deaths = 0;
        for steps in 1.. {
            let (transport, again) = desk().await;
            let batch = (0..5).map(|number| letter(&deposit("a", number), QUEUE, "no", 0));
            publish(&transport, batch.collect()).await;
            let dying = Dying::after(steps, &transport);
            let letters = DeadLetters::new(dying.clone(), QUEUE);
            let run = async |letters: &DeadLetters| match is_discard {
                true => drop(
                    letters
                        .discard(&Selection::all(), &Audit::now("ann", "not ours"), |_| {})
                        .await,
                ),
                false => {
                    let redrive = letters.redrive(Selection::all()).job("one").batch(2);
                    drop(redrive.unlimited().settle(Duration::ZERO).run(|_| {}).await);
                }
            };
            let done = dying.run(run(&letters)).await;
            deaths += u32::from(done.is_none());
            run(&again).await;
            assert_eq!(
                transport.dead_letters(QUEUE).len(),
                0,
                "after {steps} steps"
            );
            let there = transport.messages(match is_discard {
                true => tidings::RECORD_QUEUE,
                false => QUEUE,
            });
            let mut ids: Vec<_> = there.iter().map(|it| it.envelope.id.clone()).collect();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), 5, "after {steps} steps");
            assert!(there.len() <= 7 || is_discard, "after {steps} steps");
            if !is_discard {
                let number =
                    |it: &tidings_memory::Stored| it.envelope.header(REDRIVE_HEADER) == Some("1");
                assert!(there.iter().all(number), "the consumer knows them");
            }
            if done.is_some() {
                break;
            }
        }
        assert!(deaths >= 10, "it died {deaths} times");
    }
}

async fn book(deposit: MoneyDeposited, mut tx: Tx) -> Result<()> {
    Ok(write(&mut tx, &deposit).await?)
}

async fn look(_: BalanceChanged) -> Result<()> {
    Ok(())
}

fn changed(account: &str) -> BalanceChanged {
    BalanceChanged {
        account: account.into(),
        number: 1,
    }
}

/// What became of letters, and why some were not sent.
async fn outcome(redrive: Redrive<'_>) -> (Report, Vec<String>) {
    let mut not_sent = Vec::new();
    let redrive = redrive.unlimited();
    let report = redrive.run(|event| {
        if let Event::Letter {
            outcome: Outcome::NotSent { why },
            ..
        } = event
        {
            not_sent.push(why);
        }
    });
    (report.await.expect("it runs"), not_sent)
}

#[tokio::test]
async fn what_a_consumer_does_not_take_is_not_sent_or_comes_back() {
    for (place, partitions) in [(QUEUE, None), ("bank.ordered", Some(2))] {
        let (transport, database) = (MemoryTransport::new(), Database::new().await);
        let mut router = Router::new("bank")
            .on(book)
            .transactional(database.store.clone());
        if let Some(partitions) = partitions {
            router = router.ordered(partitions);
        }
        let service = Running::start(&transport, router).await;
        let mut nameless = letter(&deposit("b", 2), place, "no", 2);
        nameless.envelope.name = "".into();
        let batch = [
            letter(&changed("x"), place, "no", 0),
            letter(&deposit("a", 1), place, "no", 1),
            nameless,
        ];
        publish(&transport, batch.into()).await;

        let letters = DeadLetters::new(transport.connect(), place).store(database.store.clone());
        let dry = letters.redrive(Selection::all()).dry_run();
        let (report, _) = outcome(dry).await;
        assert_eq!((report.sent, report.not_sent), (2, 1), "{place}");
        let (report, why) = outcome(letters.redrive(Selection::all())).await;
        assert_eq!((report.sent, report.not_sent), (2, 1), "{place}");
        assert_eq!(
            why,
            [format!(
                "no handler of `{place}` takes `balance-changed.v1`; redrive the letter to a consumer that \
                 does, or discard it (TDG-2011)"
            )]
        );
        until("what it takes is handled", async || {
            database.effects().await == [("a".to_owned(), 1), ("b".to_owned(), 2)]
        })
        .await;
        let stays = all(&letters, &Selection::all()).await;
        assert_eq!((stays.len(), &*stays[0].reason), (1, "no"), "{place}");

        // An operator who says so sends it; so does one who has no database at hand.
        let elsewhere = DeadLetters::new(transport.connect(), place);
        for redrive in [
            letters.redrive(Selection::all()).unchecked(),
            elsewhere.redrive(Selection::all()),
        ] {
            let (report, _) = outcome(redrive.settle(Duration::from_secs(60))).await;
            assert_eq!((report.sent, report.came_back), (1, 1), "{place}");
        }
        let back = all(&letters, &Selection::all()).await;
        assert_eq!((back.len(), back[0].redrives), (1, 2), "{place}");
        let why = "takes `balance-changed.v1`";
        assert!(back[0].reason.contains(why), "{}", back[0].reason);
        service.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_sent_to_where_a_handler_has_been() {
    let (transport, database) = (MemoryTransport::new(), Database::new().await);
    let router = || Router::new("bank").transactional(database.store.clone());
    let start = async |router: Router| Running::start(&transport, router).await;
    start(router().on(book)).await.stop().await;
    publish(&transport, vec![letter(&deposit("a", 1), QUEUE, "no", 0)]).await;
    let letters = DeadLetters::new(transport.connect(), QUEUE).store(database.store.clone());
    let redrive = || letters.redrive(Selection::all());

    start(router().on(look)).await.stop().await;
    let (report, why) = outcome(redrive()).await;
    assert_eq!((report.sent, report.not_sent), (0, 1));
    let gone = format!("nobody receives from `{QUEUE}` any more");
    assert!(why[0].contains(&gone), "{why:?}");

    let service = start(router().on(book).ordered(2)).await;
    let (report, why) = outcome(redrive()).await;
    assert_eq!((report.sent, report.not_sent), (0, 1));
    assert!(why[0].contains("redrive it to `bank.ordered`"), "{why:?}");
    let (report, _) = outcome(redrive().to("bank.ordered")).await;
    assert_eq!((report.sent, report.not_sent), (1, 0));
    until("it is handled", async || {
        database.effects().await == [("a".to_owned(), 1)]
    })
    .await;
    service.stop().await;
}
