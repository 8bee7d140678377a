//! Recurring messages, and many that are due at once: on SQLite, on PostgreSQL and in memory.

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use support::{Database, Running, broker::Broker, until};
use tidings::{
    Commit, Cron, Error, Expected, Missed, Occurrence, Outgoing, Record, RecordChange, RecordId,
    RecordValue, ScheduleId, Store,
    event_map::EventMap,
    prelude::*,
    schedules::{self, Query},
};
use tidings_memory::MemoryStore;
use tidings_postgres::PostgresStore;

const KIND: &str = "tidings.schedule";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[event(key = "number", id = "number")]
struct ReportRequested {
    number: u64,
}

fn report(number: u64) -> ReportRequested {
    ReportRequested { number }
}

fn cron(name: &str, expression: &str) -> Cron {
    Cron::new(name, expression, "Europe/Berlin").expect("an expression")
}

/// Somebody who listens to reports.
async fn listen(broker: &Broker) -> Running {
    let ignore = |_: ReportRequested| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}

/// A service that sends what is scheduled, and declares nothing.
fn plain(store: &Arc<dyn Store>) -> Router {
    Router::new("reports")
        .publishes::<ReportRequested>()
        .transactional(Arc::clone(store))
}

async fn find(store: &dyn Store, id: &str) -> Option<Record> {
    let id = RecordId::new(KIND, id);
    let found = store.records().read(&[id]).await.expect("records");
    found.into_iter().next().flatten()
}

async fn put(store: &dyn Store, record: Record) {
    let change = RecordChange {
        id: record.id,
        expected: Expected::Version(record.version),
        value: Some(record.value),
    };
    let commit = Commit {
        records: vec![change],
        ..Commit::default()
    };
    store.commit(commit).await.expect("it commits");
}

/// Changes what is in a record of a schedule; as if time had passed, for example.
async fn change(store: &dyn Store, id: &str, change: impl Fn(&mut serde_json::Value)) {
    let mut record = find(store, id).await.expect("a record");
    let body = &record.value.body;
    let end = body.iter().position(|byte| *byte == b'\n').expect("a line");
    let mut head: serde_json::Value = serde_json::from_slice(&body[..end]).expect("JSON");
    change(&mut head["cron"]);
    let planned: Timestamp = head["cron"]["planned"]
        .as_str()
        .expect("text")
        .parse()
        .expect("a time");
    let mut written = serde_json::to_vec(&head).expect("JSON");
    written.extend_from_slice(&body[end..]);
    record.value.body = Bytes::from(written);
    record.value.due = record.value.due.map(|_| planned);
    put(store, record).await;
}

/// As if nobody had looked after a schedule since then.
async fn wind_back(store: &dyn Store, id: &str, by: SignedDuration) {
    change(store, id, |cron| {
        let planned: Timestamp = cron["planned"]
            .as_str()
            .expect("text")
            .parse()
            .expect("a time");
        cron["planned"] = planned
            .saturating_sub(by)
            .expect("a time")
            .to_string()
            .into();
    })
    .await;
}

fn ids(published: &[Outgoing]) -> BTreeSet<String> {
    let ids = published.iter().filter_map(|it| it.envelope.id.as_ref());
    ids.map(|id| id.as_str().to_owned()).collect()
}

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Two instances come back after a day, and each schedule is sent once, by one of them.
async fn fires_once_across_instances(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("reports", Arc::clone(&store));
    for number in 0..60 {
        let hourly = cron(&format!("hourly-{number}"), "0 * * * *");
        producer
            .schedule(hourly, &report(number))
            .await
            .expect("it commits");
        wind_back(&*store, &format!("hourly-{number}"), DAY).await;
    }
    let services = [
        Running::start(&broker, plain(&store)).await,
        Running::start(&broker, plain(&store)).await,
    ];
    until("all are out", async || broker.published().len() >= 60).await;
    let first = find(&*store, "hourly-0").await.expect("it goes on");
    assert!(first.value.due > Some(Timestamp::now()), "{first:?}");
    for service in services.into_iter().chain([listener]) {
        service.stop().await;
    }
    let published = broker.published();
    assert_eq!((published.len(), ids(&published).len()), (60, 60));
    for message in &published {
        let envelope = &message.envelope;
        // Of a day the 24 before the last one were missed, or 23 when the hour has just begun.
        let missed = envelope.header("tidings-missed").expect("some were missed");
        assert!(["22", "23", "24"].contains(&missed), "{missed}");
        assert_eq!(envelope.source, "reports");
        assert!(envelope.time.is_some_and(|time| time < Timestamp::now()));
    }
}

/// A crash in the middle of many: what was sent is not sent again, and nothing is forgotten.
async fn a_crash_in_the_middle_forgets_and_doubles_nothing(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("reports", Arc::clone(&store));
    let mut transaction = producer.transaction();
    for number in 0..1200 {
        let message = report(number).at(Timestamp::UNIX_EPOCH);
        transaction.say(message).expect("it is small");
    }
    transaction.commit().await.expect("it commits");
    for number in 0..20 {
        let name = format!("weekly-{number}");
        producer
            .schedule(cron(&name, "30 4 * * MON"), &report(5000 + number))
            .await
            .expect("it commits");
        wind_back(&*store, &name, DAY * 7).await;
    }
    let mut crashes = 0;
    while broker.published().len() < 1220 && crashes < 40 {
        let before = broker.published().len();
        let service = Running::start(&broker, plain(&store)).await;
        until("something is out", async || {
            broker.published().len() > before || broker.published().len() >= 1220
        })
        .await;
        service.crash().await;
        crashes += 1;
    }
    let service = Running::start(&broker, plain(&store)).await;
    until("all are out", async || {
        ids(&broker.published()).len() == 1220
    })
    .await;
    let rest = Query::default();
    let rest = schedules::list(&*store, &rest).await.expect("a list");
    assert_eq!(rest.len(), 20, "only what recurs is left");
    assert!(rest.iter().all(|it| it.due > Some(Timestamp::now())));
    service.stop().await;
    listener.stop().await;
}

/// From the first start with a schedule to long after it was taken out of the code.
async fn what_a_program_declares_follows_its_code(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let with = |expression: &str, number| {
        plain(&store)
            .schedule(cron("nightly", expression), &report(number))
            .on_send(|message| {
                message
                    .envelope
                    .headers
                    .push(("tenant".into(), "t-1".into()));
                Ok(())
            })
    };
    let id = "reports/nightly";
    let service = Running::start(&broker, with("0 3 * * *", 1)).await;
    until("it is planned", async || find(&*store, id).await.is_some()).await;
    let planned = find(&*store, id).await.expect("a record");
    service.stop().await;

    // The same code changes nothing.
    let service = Running::start(&broker, with("0 3 * * *", 1)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(find(&*store, id).await, Some(planned.clone()));
    service.stop().await;

    // What was due before a change is sent as it was.
    wind_back(&*store, id, DAY).await;
    let service = Running::start(&broker, with("0 4 * * *", 2)).await;
    until("it is replaced", async || {
        let record = find(&*store, id).await.expect("a record");
        record.value.due.is_some_and(|due| due > Timestamp::now())
    })
    .await;
    until("it is out", async || broker.published().len() == 1).await;
    assert_eq!(broker.published_as::<ReportRequested>(), [report(1)]);
    let sent = &broker.published()[0].envelope;
    assert_eq!(sent.header("tenant"), Some("t-1"));
    let listed = schedules::list(&*store, &Query::default())
        .await
        .expect("a list");
    let recurs = listed[0].recurs.as_ref().expect("it recurs");
    assert_eq!(
        (&*recurs.expression, recurs.is_declared),
        ("0 4 * * *", true)
    );
    assert_eq!(recurs.last, sent.time);
    service.stop().await;

    // It was taken out of the code: nobody sends it.
    wind_back(&*store, id, DAY).await;
    let service = Running::start(&broker, plain(&store)).await;
    until("it is left to others", async || {
        let record = find(&*store, id).await.expect("a record");
        String::from_utf8_lossy(&record.value.body).contains("foreignSince")
    })
    .await;
    assert_eq!(broker.published().len(), 1);
    // And in the end it is over.
    let long_ago = Timestamp::now()
        .saturating_sub(SignedDuration::from_mins(61))
        .expect("a time");
    change(&*store, id, |cron| {
        cron["foreignSince"] = long_ago.to_string().into()
    })
    .await;
    until("it has ended", async || {
        let listed = schedules::list(&*store, &Query::default())
            .await
            .expect("a list");
        listed[0]
            .recurs
            .as_ref()
            .is_some_and(|it| it.ended.is_some())
    })
    .await;
    service.stop().await;
    assert_eq!(broker.published().len(), 1);

    // It comes back with the code, and misses nothing of the time in which it was over.
    let service = Running::start(&broker, with("0 4 * * *", 2)).await;
    until("it is planned again", async || {
        let record = find(&*store, id).await.expect("a record");
        record.value.due.is_some_and(|due| due > Timestamp::now())
    })
    .await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(broker.published().len(), 1);
}

async fn an_operator_pauses_resumes_and_cancels(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("reports", Arc::clone(&store));
    let hourly = ScheduleId::new("hourly");
    producer
        .schedule(cron("hourly", "0 * * * *"), &report(1))
        .await
        .expect("it commits");
    schedules::pause(&*store, &hourly, "the printer burns")
        .await
        .expect("it pauses");
    let listed = schedules::list(&*store, &Query::default())
        .await
        .expect("a list");
    assert_eq!(listed[0].due, None);
    let message = &listed[0].message.as_ref().expect("it can be read").envelope;
    assert_eq!(
        (&*message.name, &*message.source),
        ("report-requested.v1", "reports")
    );
    let recurs = listed[0].recurs.as_ref().expect("it recurs");
    assert_eq!(recurs.paused.as_deref(), Some("the printer burns"));
    assert_eq!((recurs.missed, recurs.is_declared), (Missed::Once, false));
    let running = Query {
        only_recurring: true,
        ..Query::default()
    };
    assert!(
        schedules::list(&*store, &running)
            .await
            .expect("a list")
            .is_empty()
    );

    // What it misses in the pause is not sent after it.
    wind_back(&*store, "hourly", DAY).await;
    let service = Running::start(&broker, plain(&store)).await;
    schedules::resume(&*store, &hourly)
        .await
        .expect("it resumes");
    let resumed = schedules::list(&*store, &running).await.expect("a list");
    assert!(resumed[0].due > Some(Timestamp::now()));
    wind_back(&*store, "hourly", SignedDuration::from_hours(1)).await;
    until("it is sent", async || broker.published().len() == 1).await;
    assert!(producer.cancel(&hourly).await.expect("it cancels"));
    assert!(
        !schedules::cancel(&*store, &hourly)
            .await
            .expect("there is none")
    );
    for outcome in [
        schedules::pause(&*store, &hourly, "why").await,
        schedules::resume(&*store, &hourly).await,
    ] {
        let error = outcome.expect_err("there is none").to_string();
        assert!(
            error.contains("nothing recurs under the id `hourly`"),
            "{error}"
        );
    }
    service.stop().await;
    listener.stop().await;
    assert_eq!(broker.published().len(), 1);
}

/// One record that cannot be read, one that was cancelled in the meantime: the others are sent.
async fn one_bad_record_holds_up_no_other(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let now = Timestamp::now();
    let bodies: [&[u8]; 4] = [b"", b"no line", b"{\"cron\":{}}\n{}\n", b"{\"cron\":\n\n"];
    let records = bodies
        .iter()
        .enumerate()
        .map(|(number, body)| RecordChange {
            id: RecordId::new(KIND, format!("bad-{number}")),
            expected: Expected::Nothing,
            value: Some(RecordValue {
                label: "bad".into(),
                due: Some(Timestamp::UNIX_EPOCH),
                body: Bytes::copy_from_slice(body),
            }),
        });
    let commit = Commit {
        records: records.collect(),
        ..Commit::default()
    };
    store.commit(commit).await.expect("it commits");
    let producer = Producer::new("reports", Arc::clone(&store));
    let mut transaction = producer.transaction();
    transaction.say(report(1).at(now)).expect("it is small");
    transaction.commit().await.expect("it commits");
    let service = Running::start(&broker, plain(&store)).await;
    until("it is sent", async || broker.published().len() == 1).await;
    until("the others are left for an operator", async || {
        let listed = schedules::list(&*store, &Query::default())
            .await
            .expect("a list");
        let later = now
            .saturating_add(SignedDuration::from_mins(50))
            .expect("a time");
        listed.len() == 4
            && listed
                .iter()
                .all(|it| it.due > Some(later) && it.message.is_err())
    })
    .await;
    service.stop().await;
    listener.stop().await;
}

macro_rules! on_every_store {
    ($($test:ident)+) => {
        mod on_sqlite {
            use super::{Arc, Database, Store};
            $(#[tokio::test]
            async fn $test() {
                let database = Database::new().await;
                let store: Arc<dyn Store> = Arc::new(database.store.clone());
                super::$test(store).await;
            })+
        }

        mod in_memory {
            use super::{Arc, MemoryStore};
            $(#[tokio::test]
            async fn $test() {
                super::$test(Arc::new(MemoryStore::new())).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test]
            #[ignore = "needs PostgreSQL: run `cargo xtask test`"]
            async fn $test() {
                super::$test(super::postgres().await).await;
            })+
        }
    };
}

on_every_store! {
    fires_once_across_instances
    a_crash_in_the_middle_forgets_and_doubles_nothing
    what_a_program_declares_follows_its_code
    an_operator_pauses_resumes_and_cancels
    one_bad_record_holds_up_no_other
    a_backlog_is_turned_into_rows_while_others_work
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A database that nobody used before.
async fn postgres() -> Arc<dyn Store> {
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let schema = format!("schedules_{}_{number}", std::process::id());
    let url = tidings_testing::servers::postgres_url();
    let store = PostgresStore::connect(url, &*schema).await;
    Arc::new(store.expect("a store"))
}

#[tokio::test]
async fn a_handler_learns_which_occurrence_it_is() {
    let broker = Broker::default();
    let database = Database::new().await;
    let store: Arc<dyn Store> = Arc::new(database.store.clone());
    let (told, mut heard) = tokio::sync::mpsc::channel(10);
    let listen = move |_: ReportRequested, metadata: Metadata| {
        let told = told.clone();
        async move {
            let _ = told.send(Occurrence::of(&metadata)).await;
            Ok::<_, Error>(())
        }
    };
    let listener = Running::start(&broker, Router::new("listener").on(listen)).await;
    let producer = Producer::new("reports", Arc::clone(&store));
    let all = cron("all", "0 0 * * *").missed(Missed::All);
    producer
        .schedule(all, &report(1))
        .await
        .expect("it commits");
    wind_back(&*store, "all", DAY * 2).await;
    producer.publish(&report(2)).await.expect("it commits");
    let service = Running::start(&broker, plain(&store)).await;
    let mut occurrences = Vec::new();
    for _ in 0..3 {
        occurrences.push(heard.recv().await.expect("three"));
    }
    service.stop().await;
    listener.stop().await;
    occurrences.sort_by_key(|it| it.map(|it| it.planned));
    assert_eq!(occurrences[0], None, "it was not scheduled");
    let [one, other] = [1, 2].map(|it| occurrences[it].expect("an occurrence"));
    assert_eq!((one.missed, other.missed), (0, 0));
    let apart = other.planned.duration_since(one.planned);
    let a_day = SignedDuration::from_hours(23)..=SignedDuration::from_hours(25);
    assert!(a_day.contains(&apart), "{apart}");
}

#[test]
fn a_declared_schedule_is_on_the_map_and_its_topic_is_declared() {
    let router = Router::new("reports").schedule(cron("nightly", "0 3 * * *"), &report(1));
    assert_eq!(router.topology().topics, ["report-requested.v1"]);
    let map = EventMap::of([&router]);
    let schedule = &map.services()[0].schedules[0];
    assert_eq!(
        (&*schedule.name, &*schedule.when),
        ("nightly", "0 3 * * * Europe/Berlin")
    );
    assert!(
        map.to_mermaid()
            .contains("((\"reports<br/>nightly: 0 3 * * * Europe/Berlin\"))")
    );
    assert_eq!(EventMap::from_json(&map.to_json()).expect("a map"), map);
}

#[test]
fn a_schedule_without_a_store_or_with_the_name_of_another_is_told_at_the_users_line() {
    let panics = |what: &str, f: fn()| {
        let panic = std::panic::catch_unwind(f).expect_err(what);
        panic.downcast_ref::<String>().expect("a text").clone()
    };
    let without = panics("no store", || {
        let router = Router::new("reports").schedule(cron("nightly", "0 3 * * *"), &report(1));
        let _ = tidings::serve(Broker::default(), router);
    });
    assert!(
        without.contains("`nightly` at crates/tidings/tests/schedules.rs:"),
        "{without}"
    );
    assert!(without.contains("add `.transactional(store)`"), "{without}");
    let twice = panics("twice", || {
        let _ = Router::new("reports")
            .schedule(cron("nightly", "0 3 * * *"), &report(1))
            .schedule(cron("nightly", "0 4 * * *"), &report(1));
    });
    assert!(
        twice.contains("two schedules with the name `nightly`"),
        "{twice}"
    );
}

/// Due at once: how many, and how long they may take in a build without optimisation beside other tests.
const BACKLOG: usize = 10_000;
const BACKLOG_TIME: Duration = Duration::from_secs(60);
/// The longest that a live message may take meanwhile, of ten the slowest but one.
const LIVE_TIME: Duration = Duration::from_secs(1);

/// Many that are due at once become outbox rows by the hundred, and a message that comes meanwhile does
/// not wait for them. (The relay is left out: what is measured is the scheduler beside handlers.)
async fn a_backlog_is_turned_into_rows_while_others_work(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let producer = Producer::new("reports", Arc::clone(&store));
    for part in 0..BACKLOG / 1000 {
        let mut transaction = producer.transaction();
        for number in 0..1000 {
            let number = (part * 1000 + number) as u64;
            let message = report(number).at(Timestamp::UNIX_EPOCH);
            transaction.say(message).expect("it is small");
        }
        transaction.commit().await.expect("it commits");
    }
    // Nobody listens to reports, so the relay holds them.
    let (told, mut heard) = tokio::sync::mpsc::channel(10);
    let live = move |_: LiveAsked, handle: tidings::TransactionHandle| {
        let told = told.clone();
        async move {
            let mut handle = handle;
            let id = RecordId::new("none", "none");
            handle.get_any().await?.read(&[id]).await?;
            let _ = told.send(()).await;
            Ok::<_, Error>(())
        }
    };
    let began = std::time::Instant::now();
    let service = Running::start(&broker, plain(&store).on(live)).await;
    let left = async || {
        let due = store.records().next_due(KIND).await.expect("records");
        due.is_some()
    };
    let mut waits = Vec::new();
    while left().await {
        assert!(began.elapsed() < BACKLOG_TIME, "it takes too long");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asked = std::time::Instant::now();
        let mut message = support::outgoing(&LiveAsked {});
        message.envelope.id = Some(format!("live/{}", waits.len()).into());
        broker.publish_raw(message);
        heard.recv().await.expect("it is handled");
        waits.push(asked.elapsed());
    }
    let took = began.elapsed();
    service.stop().await;
    waits.sort_unstable();
    println!("{BACKLOG} in {took:?}; live messages: {waits:?}");
    assert!(waits[waits.len() * 9 / 10] < LIVE_TIME, "{waits:?}");
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "reports")]
struct LiveAsked {}
