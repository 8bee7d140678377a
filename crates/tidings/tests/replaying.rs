//! Events of the past are sent again, to the consumer that asked for them and to nobody else.

mod support;

use std::{num::NonZeroU16, sync::Mutex, time::Duration};

use support::{Database, MoneyDeposited, Running, broker::Broker, deposit, until, write};
use tidings::{
    Group, HandlerOptions, Outgoing, PublishErrorKind, REPLAY_HEADER, Store,
    prelude::*,
    replay::{self, Progress, Replay, Start},
};
use tidings_sqlite::Tx;
use tokio::time::{Instant, sleep, timeout};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const LATE: &str = "late.money-deposited.v1";

/// A service that says what it says, and keeps it.
fn teller(database: &Database) -> Router {
    Router::new("teller")
        .publishes::<MoneyDeposited>()
        .transactional(database.store.clone())
        .keep_events(WEEK)
}

async fn note(deposit: MoneyDeposited, mut tx: Tx) -> Result<()> {
    Ok(write(&mut tx, &deposit).await?)
}

fn listener(name: &'static str, database: &Database) -> Router {
    Router::new(name)
        .on(note)
        .transactional(database.store.clone())
}

/// A teller that has said some things, to which one service listens.
struct Past {
    broker: Broker,
    teller: Database,
    early: Database,
    _running: [Running; 2],
}

impl Past {
    async fn with(numbers: std::ops::Range<u64>) -> Self {
        let (teller_db, early) = (Database::new().await, Database::new().await);
        let broker = Broker::default();
        let listening = Running::start(&broker, listener("early", &early)).await;
        let running = Running::start(&broker, teller(&teller_db)).await;
        let past = Self {
            broker,
            teller: teller_db,
            early,
            _running: [listening, running],
        };
        past.say(numbers).await;
        past
    }

    /// Says more, and waits until it was heard.
    async fn say(&self, numbers: std::ops::Range<u64>) {
        let producer = Producer::new("teller", self.teller.store.clone());
        for number in numbers.clone() {
            let account = (number % 3).to_string();
            let sent = producer.publish(&deposit(account, number)).await;
            sent.expect("it commits");
        }
        until("all is heard", async || {
            self.early.effects().await.len() as u64 >= numbers.end
        })
        .await;
    }

    async fn run(&self, replay: Replay) -> Result<Progress, replay::ReplayError> {
        replay.run(&self.teller.store, &self.broker, |_| {}).await
    }

    /// The messages that were sent again, in order.
    fn replayed(&self) -> Vec<Outgoing> {
        let published = self.broker.published().into_iter();
        published.filter(|it| it.envelope.is_replayed()).collect()
    }

    fn replayed_numbers(&self) -> Vec<u64> {
        let replayed = self.replayed().into_iter();
        let number = |message: Outgoing| {
            let deposit: MoneyDeposited =
                serde_json::from_slice(&message.envelope.body).expect("JSON");
            deposit.number
        };
        replayed.map(number).collect()
    }
}

fn numbers(effects: &[(String, u64)]) -> Vec<u64> {
    let mut numbers: Vec<u64> = effects.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn a_consumer_that_is_added_later_works_off_the_past_once_and_nobody_else_hears_of_it() {
    let past = Past::with(0..50).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    past.say(50..60).await;

    let ended = past
        .run(Replay::to(LATE).rate(10_000))
        .await
        .expect("it ends");
    assert!(ended.is_done);
    assert_eq!((ended.sent, ended.passed_over, ended.not_sent), (60, 0, 0));
    until("the past is worked off", async || {
        late.effects().await.len() == 60
    })
    .await;
    until("nothing is left", async || past.broker.is_settled()).await;
    assert_eq!(numbers(&late.effects().await), (0..60).collect::<Vec<_>>());
    assert_eq!(
        past.early.effects().await.len(),
        60,
        "the others hear nothing"
    );
    assert_eq!(
        past.replayed_numbers(),
        (0..60).collect::<Vec<_>>(),
        "in order"
    );

    // Each is what it was, but for the header.
    let published = past.broker.published();
    for again in past.replayed() {
        let mut envelope = again.envelope.clone();
        assert_eq!(envelope.headers.len(), 1);
        let (name, id) = envelope.headers.remove(0);
        assert_eq!((&*name, &*id), (REPLAY_HEADER, &*ended.id));
        let is_first = |it: &&Outgoing| it.envelope == envelope;
        let first = published.iter().find(is_first).expect("it was sent before");
        assert_eq!(&*first.envelope.source, "teller");
    }

    // Once more: all of it is sent, nothing has an effect.
    let ended = past
        .run(Replay::to(LATE).rate(10_000))
        .await
        .expect("it ends");
    assert_eq!(ended.sent, 60);
    until("nothing is left", async || past.broker.is_settled()).await;
    assert_eq!(late.effects().await.len(), 60);
    let listed = replay::list(&past.teller.store, 10).await.expect("a list");
    assert_eq!(listed, [ended]);
    running.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_an_error_that_says_what_to_do() {
    let past = Past::with(0..20).await;
    let replay = || Replay::to(LATE).rate(10_000);
    let error = past.run(replay()).await.expect_err("there is no queue");
    assert!(error.is_no_queue());
    let says = error.to_string();
    assert!(
        says.contains(LATE) && says.contains("start the service once"),
        "{says}"
    );
    assert!(past.replayed().is_empty());
    past.say(20..25).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let ended = past.run(replay()).await.expect("it goes on");
    assert_eq!(
        ended.sent, 25,
        "also what was said since, when there was no queue"
    );
    until("it is heard", async || late.effects().await.len() == 25).await;
    running.stop().await;
}

/// Runs a replay until `count` are sent, and then drops it, as a crash does.
async fn killed_after(past: &Past, replay: Replay, count: u64) -> u64 {
    let sent = Mutex::new(0);
    let run = replay.run(&past.teller.store, &past.broker, |progress| {
        *sent.lock().expect("a number") = progress.sent;
    });
    let enough = until("some are sent", async || {
        *sent.lock().expect("a number") >= count
    });
    tokio::select! {
        ended = run => panic!("it ended before: {ended:?}"),
        () = enough => {}
    }
    *sent.lock().expect("a number")
}

#[tokio::test]
async fn a_replay_that_is_killed_goes_on_where_it_was() {
    let past = Past::with(0..1000).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    // For longer than how far it is is written down at least.
    let replay = || Replay::to(LATE).rate(300);
    let sent = killed_after(&past, replay(), 600).await;
    assert!(sent < 1000);
    let before = past.replayed_numbers().len();
    past.say(1000..1001).await;
    let ended = past.run(replay().rate(100_000)).await.expect("it ends");
    let all = past.replayed_numbers();
    let again = all[before];
    assert!(
        again > 0 && again <= sent,
        "it goes on with {again} after {sent}"
    );
    assert!(
        sent - again <= 2 * 330,
        "no more than a second's share is sent again"
    );
    let rest: Vec<u64> = (again..1001).collect();
    assert_eq!(all[before..], rest, "and ends where the log ends now");
    assert_eq!(ended.sent, again + rest.len() as u64);
    until("all is heard", async || late.effects().await.len() == 1001).await;
    until("nothing is left", async || past.broker.is_settled()).await;
    assert_eq!(
        numbers(&late.effects().await),
        (0..1001).collect::<Vec<_>>()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_run_that_is_started_while_another_one_runs_takes_over() {
    let past = Past::with(0..500).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let replay = || Replay::to(LATE).rate(100);
    let first = past.run(replay());
    let second = async {
        until("the first has begun", async || !past.replayed().is_empty()).await;
        past.run(replay().rate(400)).await
    };
    let (first, second) = tokio::join!(first, second);
    let error = first.expect_err("it is over");
    assert!(error.is_taken_over(), "{error}");
    assert!(second.expect("it ends").is_done);
    until("all is heard", async || late.effects().await.len() == 500).await;
    running.stop().await;
}

#[tokio::test]
async fn an_unfinished_replay_is_gone_on_with_or_begun_anew_and_nothing_else() {
    let past = Past::with(0..300).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let replay = || Replay::to(LATE).rate(100);
    killed_after(&past, replay(), 30).await;
    for other in [
        replay().from(Start::After(1)),
        replay().event("balance-changed.v1"),
    ] {
        let error = past.run(other).await.expect_err("it is another one");
        assert!(error.is_unfinished(), "{error}");
    }
    let before = past.replayed().len();
    let anew = replay().from(Start::After(250)).restart().rate(10_000);
    let ended = past.run(anew).await.expect("it ends");
    assert_eq!(ended.sent, 50);
    assert_eq!(past.replayed().len(), before + 50);
    // One that was finished is over: the next one begins where it says.
    let ended = past.run(replay().rate(100_000)).await.expect("it ends");
    assert_eq!(ended.sent, 300);
    running.stop().await;
}

#[tokio::test]
async fn it_begins_at_a_time_or_after_a_position() {
    let past = Past::with(0..100).await;
    sleep(Duration::from_millis(30)).await;
    let time = jiff::Timestamp::now();
    sleep(Duration::from_millis(30)).await;
    past.say(100..130).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let replay = |start| Replay::to(LATE).rate(100_000).from(start);
    let ended = past.run(replay(Start::Time(time))).await.expect("it ends");
    assert_eq!(ended.sent, 30);
    assert_eq!(past.replayed_numbers(), (100..130).collect::<Vec<_>>());

    let log = past.teller.store.log().expect("a log");
    let page = log.read(0, i64::MAX, 120).await.expect("a page");
    let position = page.entries.last().expect("an event").position;
    let ended = past
        .run(replay(Start::After(position)))
        .await
        .expect("it ends");
    assert_eq!(ended.sent, 10);
    let hour = jiff::SignedDuration::from_hours(1);
    let ahead = jiff::Timestamp::now() + hour;
    let ended = past.run(replay(Start::Time(ahead))).await.expect("it ends");
    assert_eq!(ended.sent, 0);
    let ended = past
        .run(replay(Start::Time(time - hour)))
        .await
        .expect("it ends");
    assert_eq!(ended.sent, 130);
    running.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_away_or_refuses_is_waited_for_and_order_is_kept() {
    let past = Past::with(0..200).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let mut count = 0;
    past.broker.judge(move |message| {
        let is_late = message.destination.name() == LATE;
        count += u32::from(is_late);
        match count {
            30..=31 if is_late => Some(PublishErrorKind::Refused),
            100 if is_late => Some(PublishErrorKind::Unavailable),
            150 if is_late => Some(PublishErrorKind::Invalid),
            _ => None,
        }
    });
    let troubles = Mutex::new(0);
    let replay = Replay::to(LATE).rate(400);
    let ended = replay.run(&past.teller.store, &past.broker, |progress| {
        *troubles.lock().expect("a number") += u32::from(progress.trouble.is_some());
    });
    let ended = ended.await.expect("it ends");
    assert!(
        *troubles.lock().expect("a number") >= 2,
        "it says why it waits"
    );
    assert_eq!(
        (ended.sent, ended.not_sent),
        (199, 1),
        "one can never be sent"
    );
    assert_eq!(ended.trouble, None);
    // Of what was sent again because something before it failed, the last time counts.
    let mut last = Vec::new();
    for number in past.replayed_numbers() {
        last.retain(|it| *it < number);
        last.push(number);
    }
    assert_eq!(last.len(), 199, "nothing but that one is missing");
    until("all is heard", async || late.effects().await.len() == 199).await;
    running.stop().await;
}

#[tokio::test]
async fn no_more_than_the_rate_is_sent() {
    let past = Past::with(0..60).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    for (rate, seconds) in [(50, 1.0), (7, 1.0)] {
        let since = Instant::now();
        let run = past.run(Replay::to(LATE).rate(rate).restart());
        let before = past.replayed().len();
        let _ = timeout(Duration::from_secs_f64(seconds), run).await;
        let sent = past.replayed().len() - before;
        let allowed = since.elapsed().as_secs_f64() * f64::from(rate) + f64::from(rate) / 10.0;
        assert!(
            sent as f64 <= allowed + 1.0,
            "{sent} were sent, {allowed} are allowed"
        );
        assert!(
            sent as f64 >= f64::from(rate) * seconds / 2.0,
            "{sent} were sent"
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_opted_out_passes_over_what_is_replayed_and_takes_what_is_new() {
    let past = Past::with(0..20).await;
    let (late, ordered) = (Database::new().await, Database::new().await);
    let mail = |name: &'static str, database: &Database, options: HandlerOptions| {
        Router::new(name)
            .on_with(note, options.skip_replayed())
            .transactional(database.store.clone())
    };
    let plain = mail("late", &late, HandlerOptions::new());
    let of_groups = mail("tidy", &ordered, HandlerOptions::new().ordered(2));
    let group = of_groups.topology().groups.remove(0);
    let running = Running::start_all(&past.broker, [plain, of_groups]).await;
    let ended = past.run(Replay::to(LATE).rate(10_000)).await;
    assert_eq!(ended.expect("it ends").sent, 20);
    let to_group = Replay::to_group(group).event("money-deposited.v1");
    let ended = past.run(to_group.rate(10_000)).await;
    assert_eq!(ended.expect("it ends").sent, 20);
    past.say(20..25).await;
    until("what is new is handled", async || {
        late.effects().await.len() == 5 && ordered.effects().await.len() == 5
    })
    .await;
    until("all is acknowledged", async || past.broker.is_settled()).await;
    assert_eq!(numbers(&late.effects().await), (20..25).collect::<Vec<_>>());
    assert_eq!(
        numbers(&ordered.effects().await),
        (20..25).collect::<Vec<_>>()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_consumer_that_asks_for_order_gets_the_past_in_its_partitions() {
    let past = Past::with(0..90).await;
    let late = Database::new().await;
    let router = listener("late", &late).ordered(4);
    let group = router.topology().groups.remove(0);
    let running = Running::start(&past.broker, router).await;

    let error = past.run(Replay::to(LATE)).await.expect_err("no such queue");
    assert!(
        error.is_no_queue() && error.to_string().contains("partitions"),
        "{error}"
    );
    let unnamed = Replay::to_group(group.clone());
    let error = past.run(unnamed).await.expect_err("which events?");
    assert!(error.to_string().contains("names"), "{error}");
    let three = const { NonZeroU16::new(3).unwrap() };
    let wrong = Replay::to_group(Group::new(group.name.clone(), three));
    let wrong = wrong.event("money-deposited.v1");
    let error = past.run(wrong).await.expect_err("it has four");
    assert!(
        error.is_no_queue() && error.to_string().contains("as many"),
        "{error}"
    );

    let replay = Replay::to_group(group).event("money-deposited.v1");
    let ended = past.run(replay.rate(10_000)).await.expect("it ends");
    assert!(ended.is_done);
    until("all is heard", async || late.effects().await.len() == 90).await;
    for account in ["0", "1", "2"] {
        let effects = late.effects().await;
        let of_account = effects.iter().filter(|(it, _)| it == account);
        let numbers: Vec<u64> = of_account.map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted() && numbers.len() == 30, "{numbers:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn events_that_are_dropped_before_they_are_sent_are_not_passed_over_in_silence() {
    let past = Past::with(0..50).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    killed_after(&past, Replay::to(LATE).rate(20), 5).await;
    let log = past.teller.store.log().expect("a log");
    let dropped = log.drop_older(Duration::ZERO).await.expect("it drops");
    assert!(dropped > 0);
    let error = past.run(Replay::to(LATE)).await.expect_err("they are gone");
    assert!(error.is_dropped(), "{error}");
    let error = past
        .run(Replay::to(LATE).restart().from(Start::After(3)))
        .await;
    assert!(error.expect_err("they are gone").is_dropped());
    // From the beginning means: from what is there.
    past.say(50..60).await;
    let ended = past.run(Replay::to(LATE).restart()).await.expect("it ends");
    assert_eq!(ended.sent, 10);
    running.stop().await;
}

#[tokio::test]
async fn events_that_are_dropped_while_a_replay_reads_end_it_with_an_error() {
    // More than one page, of which the second is not read before the log is dropped.
    let past = Past::with(0..700).await;
    let late = Database::new().await;
    let running = Running::start(&past.broker, listener("late", &late)).await;
    let run = past.run(Replay::to(LATE).rate(500));
    let drop_all = async {
        until("some are sent", async || !past.replayed().is_empty()).await;
        let log = past.teller.store.log().expect("a log");
        log.drop_older(Duration::ZERO).await.expect("it drops");
    };
    let (ended, ()) = tokio::join!(run, drop_all);
    let error = ended.expect_err("the rest is gone");
    assert!(error.is_dropped(), "{error}");
    assert_eq!(
        past.replayed_numbers(),
        (0..500).collect::<Vec<_>>(),
        "what was read before is sent"
    );
    running.stop().await;
}
