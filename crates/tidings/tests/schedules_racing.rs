//! Schedules that are cancelled, paused or replaced at the moment at which they fire, and those that several
//! instances fire at once: on SQLite, on PostgreSQL and in memory.
//!
//! What was cancelled in time is never sent, what was not is sent once, and its neighbours in the scheduler's
//! commit do not wait.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use support::{Database, Random, Running, broker::Broker, until};
use tidings::{
    Ask, BoxFuture, Commit, Committed, Cron, Deferred, Error, Log, Outbox, Records, ScheduleId,
    Seen, Store, StoreError, Transaction, prelude::*, schedules,
};
use tidings_memory::MemoryStore;
use tidings_postgres::PostgresStore;
use tokio::time::Instant;

const KIND: &str = "tidings.schedule";

/// Without an identity: two that are sent have two ids, unless they are the same row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
struct BellRung {
    name: String,
}

fn bell(name: impl Into<String>) -> BellRung {
    BellRung { name: name.into() }
}

async fn listen(broker: &Broker) -> Running {
    let ignore = |_: BellRung| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}

fn plain(store: Arc<dyn Store>) -> Router {
    Router::new("tower")
        .publishes::<BellRung>()
        .transactional(store)
}

/// How often each was sent.
fn sent(broker: &Broker) -> BTreeMap<String, u32> {
    let mut sent = BTreeMap::new();
    for BellRung { name } in broker.published_as::<BellRung>() {
        *sent.entry(name).or_default() += 1;
    }
    sent
}

/// A producer's schedule that has been due since yesterday.
async fn overdue(store: &Arc<dyn Store>, name: &str) {
    let cron = Cron::new(name, "0 12 * * *", "UTC").expect("an expression");
    let producer = Producer::new("tower", Arc::clone(store));
    producer
        .schedule(cron, &bell(name))
        .await
        .expect("it commits");
    make_overdue(&**store, name).await;
}

async fn make_overdue(store: &dyn Store, name: &str) {
    use tidings::{Expected, RecordChange, RecordId};
    let id = RecordId::new(KIND, name);
    loop {
        let found = store.records().read(std::slice::from_ref(&id)).await;
        let mut record = found.expect("records").remove(0).expect("a record");
        let body = String::from_utf8(record.value.body.to_vec()).expect("text");
        let (head, rest) = body.split_once('\n').expect("a line");
        let mut head: serde_json::Value = serde_json::from_str(head).expect("JSON");
        let planned: Timestamp =
            serde_json::from_value(head["cron"]["planned"].clone()).expect("a time");
        let planned = planned.saturating_sub(SignedDuration::from_hours(24));
        let planned = planned.expect("a time");
        head["cron"]["planned"] = planned.to_string().into();
        record.value.body = format!("{head}\n{rest}").into();
        record.value.due = record.value.due.map(|_| planned);
        let commit = Commit {
            records: vec![RecordChange {
                id: id.clone(),
                expected: Expected::Version(record.version),
                value: Some(record.value),
            }],
            ..Commit::default()
        };
        match store.commit(commit).await {
            Err(error) if error.is_conflict() => {}
            committed => {
                committed.expect("it commits");
                return;
            }
        }
    }
}

/// What is done between the scheduler's taking of records and its commit.
type Meddle = Box<dyn FnOnce(Arc<dyn Store>) -> BoxFuture<'static, ()> + Send>;

/// A store in which something happens just before the first commit that several schedules share.
struct Meddled {
    store: Arc<dyn Store>,
    meddle: Mutex<Option<Meddle>>,
    /// How many commits changed one schedule after that, or more.
    alone: AtomicU32,
    together: AtomicU32,
    /// The most messages of one commit.
    messages: AtomicU32,
}

impl Meddled {
    fn new(store: Arc<dyn Store>, meddle: Option<Meddle>) -> Arc<Self> {
        Arc::new(Self {
            store,
            meddle: Mutex::new(meddle),
            alone: AtomicU32::new(0),
            together: AtomicU32::new(0),
            messages: AtomicU32::new(0),
        })
    }
}

impl Store for Meddled {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        self.store.begin()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        let messages = u32::try_from(commit.outbox.len()).expect("few");
        self.messages.fetch_max(messages, Ordering::SeqCst);
        let schedules = commit.records.iter().filter(|it| it.id.kind == KIND.into());
        let meddle = match schedules.count() {
            0 => None,
            1 => {
                self.alone.fetch_add(1, Ordering::SeqCst);
                None
            }
            _ => {
                self.together.fetch_add(1, Ordering::SeqCst);
                self.meddle.lock().take()
            }
        };
        Box::pin(async move {
            if let Some(meddle) = meddle {
                meddle(Arc::clone(&self.store)).await;
            }
            self.store.commit(commit).await
        })
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        self.store.look(asked)
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.store.forget(consumer, age, limit)
    }

    fn outbox(&self) -> &dyn Outbox {
        self.store.outbox()
    }

    fn deferred(&self) -> &dyn Deferred {
        self.store.deferred()
    }

    fn records(&self) -> &dyn Records {
        self.store.records()
    }

    fn log(&self) -> Option<&dyn Log> {
        self.store.log()
    }
}

/// One is cancelled, one replaced, one paused, one deleted and made anew under its name, all of them after
/// they were taken. The others are sent at once, not when the lease has passed.
async fn what_changes_before_the_shared_commit_spoils_no_other(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("tower", Arc::clone(&store));
    let mut transaction = producer.transaction();
    let later = Timestamp::now().saturating_add(SignedDuration::from_hours(1));
    let later = later.expect("a time");
    for number in 0..20 {
        let name = format!("once-{number}");
        let message = bell(&name).at(Timestamp::UNIX_EPOCH);
        let message = message.scheduled_as(ScheduleId::new(name));
        transaction.say(message).expect("it is small");
    }
    transaction.commit().await.expect("it commits");
    overdue(&store, "daily").await;
    overdue(&store, "paused").await;

    let meddle: Meddle = Box::new(move |store| {
        Box::pin(async move {
            let producer = Producer::new("tower", Arc::clone(&store));
            let cancelled = producer.cancel(&ScheduleId::new("once-3")).await;
            assert!(cancelled.expect("it cancels"), "it was not sent yet");
            schedules::pause(&*store, &ScheduleId::new("paused"), "why")
                .await
                .expect("it pauses");
            let name = ScheduleId::new("once-4");
            let replaced = bell("once-4 anew").at(later).scheduled_as(name);
            let mut transaction = producer.transaction();
            transaction.say(replaced).expect("it is small");
            transaction.commit().await.expect("it commits");
            let name = ScheduleId::new("once-5");
            assert!(producer.cancel(&name).await.expect("it cancels"));
            let anew = bell("once-5 anew").at(Timestamp::UNIX_EPOCH);
            let mut transaction = producer.transaction();
            let anew = anew.scheduled_as(name);
            transaction.say(anew).expect("it is small");
            transaction.commit().await.expect("it commits");
        })
    });
    let meddled = Meddled::new(Arc::clone(&store), Some(meddle));
    let service = Running::start(&broker, plain(Arc::clone(&meddled) as _)).await;
    let began = Instant::now();
    let mut expected: BTreeMap<String, u32> = (0..20)
        .map(|number| (format!("once-{number}"), 1))
        .collect();
    for name in ["once-3", "once-4", "once-5"] {
        expected.remove(name);
    }
    expected.insert("daily".into(), 1);
    expected.insert("once-5 anew".into(), 1);
    until("the others are sent", async || sent(&broker) == expected).await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "they waited for the lease: {:?}",
        began.elapsed()
    );
    assert!(meddled.meddle.lock().is_none(), "the case came about");
    assert!(
        meddled.alone.load(Ordering::SeqCst) >= 22,
        "each for itself"
    );

    let paused = schedules::get(&*store, &ScheduleId::new("paused")).await;
    let paused = paused.expect("an answer").expect("it is there");
    assert_eq!(paused.due, None);
    let recurs = paused.recurs.expect("it recurs");
    assert_eq!((recurs.paused.as_deref(), recurs.last), (Some("why"), None));
    let replaced = schedules::get(&*store, &ScheduleId::new("once-4")).await;
    let due = replaced.expect("an answer").expect("it is there").due;
    let apart = due.expect("a time").duration_since(later);
    assert!(apart.abs() < SignedDuration::from_millis(1), "{apart}");
    service.stop().await;
    listener.stop().await;
    assert_eq!(sent(&broker), expected, "nothing else was sent");
}

const RACES: u32 = 300;

/// Cancelled around the time at which they are due: "cancelled" means never sent, and "there is none" means
/// sent once.
async fn a_cancellation_and_a_sending_agree_on_who_was_first(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let services = [
        Running::start(&broker, plain(Arc::clone(&store))).await,
        Running::start(&broker, plain(Arc::clone(&store))).await,
    ];
    let random = Random::new(u64::from(std::process::id()));
    let producer = Producer::new("tower", Arc::clone(&store));
    let mut expected = BTreeMap::new();
    for round in 0..RACES / 30 {
        let name = |number: u32| format!("race-{}", round * 30 + number);
        let mut transaction = producer.transaction();
        for number in 0..30 {
            let delay = Duration::from_millis(random.below(60));
            let message = bell(name(number)).after(delay);
            let message = message.scheduled_as(ScheduleId::new(name(number)));
            transaction.say(message).expect("it is small");
        }
        transaction.commit().await.expect("it commits");
        for number in 0..30 {
            tokio::time::sleep(Duration::from_millis(random.below(30))).await;
            let id = ScheduleId::new(name(number));
            if !producer.cancel(&id).await.expect("an answer") {
                expected.insert(name(number), 1);
            }
        }
    }
    println!("{} of {RACES} were sent", expected.len());
    until("those are sent", async || {
        sent(&broker).len() >= expected.len()
    })
    .await;
    for service in services.into_iter().chain([listener]) {
        service.stop().await;
    }
    assert_eq!(sent(&broker), expected);
}

/// Paused while it fires: a pause that was confirmed holds, whoever wrote last.
async fn a_pause_is_not_lost_to_a_sending(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let names: Vec<String> = (0..20).map(|number| format!("daily-{number}")).collect();
    for name in &names {
        overdue(&store, name).await;
    }
    let pause = async || {
        for name in &names {
            let id = ScheduleId::new(name.clone());
            schedules::pause(&*store, &id, "why")
                .await
                .expect("it pauses");
        }
    };
    let services = [
        Running::start(&broker, plain(Arc::clone(&store))),
        Running::start(&broker, plain(Arc::clone(&store))),
    ];
    let (services, ()) = tokio::join!(join_all(services), pause());
    // Which were sent before is in their records.
    let state = async |name: &str| {
        let found = schedules::get(&*store, &ScheduleId::new(name)).await;
        let found = found.expect("an answer").expect("it is there");
        let recurs = found.recurs.expect("it recurs");
        assert_eq!((found.due, recurs.paused.as_deref()), (None, Some("why")));
        recurs.last
    };
    let mut expected = BTreeMap::new();
    for name in &names {
        if state(name).await.is_some() {
            expected.insert(name.clone(), 1);
        }
        make_overdue(&*store, name).await;
    }
    println!("{} were sent before", expected.len());
    until("those are out", async || {
        sent(&broker).len() >= expected.len()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for service in services.into_iter().chain([listener]) {
        service.stop().await;
    }
    assert_eq!(sent(&broker), expected, "nothing is sent in the pause");
    for name in &names {
        assert_eq!(state(name).await.is_some(), expected.contains_key(name));
    }
}

/// Sixty schedules of which a day was missed: what is sent of them does not fill one commit.
async fn what_was_missed_of_many_schedules_is_sent_by_commits_of_a_bounded_size(
    store: Arc<dyn Store>,
) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("tower", Arc::clone(&store));
    for number in 0..60 {
        let name = format!("often-{number}");
        let cron = Cron::new(&*name, "*/20 * * * *", "UTC").expect("an expression");
        let cron = cron.missed(tidings::Missed::All);
        let made = producer.schedule(cron, &bell(&name)).await;
        made.expect("it commits");
        make_overdue(&*store, &name).await;
    }
    let meddled = Meddled::new(Arc::clone(&store), None);
    let service = Running::start(&broker, plain(Arc::clone(&meddled) as _)).await;
    until("all are sent", async || {
        let sent = sent(&broker);
        sent.len() == 60 && sent.values().all(|count| *count >= 72)
    })
    .await;
    service.stop().await;
    listener.stop().await;
    assert!(sent(&broker).values().all(|count| *count <= 73));
    let messages = meddled.messages.load(Ordering::SeqCst);
    assert!((73..600).contains(&messages), "{messages} in one commit");
}

/// Schedules that become due while four instances look for them.
async fn instances_that_fire_at_once_send_each_occurrence_once(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let names: Vec<String> = (0..40).map(|number| format!("daily-{number}")).collect();
    let mut services = Vec::new();
    for _ in 0..4 {
        services.push(Running::start(&broker, plain(Arc::clone(&store))).await);
    }
    for name in &names {
        overdue(&store, name).await;
    }
    until("all are sent", async || sent(&broker).len() == names.len()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for service in services.into_iter().chain([listener]) {
        service.stop().await;
    }
    assert!(sent(&broker).values().all(|count| *count == 1));
}

/// Times that no calendar of a database has, and one that is months away.
async fn the_first_and_the_last_of_all_times_are_times(store: Arc<dyn Store>) {
    let broker = Broker::default();
    let listener = listen(&broker).await;
    let producer = Producer::new("tower", Arc::clone(&store));
    let day = Timestamp::now().saturating_add(SignedDuration::from_hours(24 * 300));
    let day = day.expect("a time");
    let mut transaction = producer.transaction();
    for (name, message) in [
        ("first", bell("first").at(Timestamp::MIN)),
        ("last", bell("last").at(Timestamp::MAX)),
        ("never", bell("never").after(Duration::MAX)),
        ("months", bell("months").at(day)),
    ] {
        let message = message.scheduled_as(ScheduleId::new(name));
        transaction.say(message).expect("it is small");
    }
    transaction.commit().await.expect("it commits");
    let service = Running::start(&broker, plain(Arc::clone(&store))).await;
    until("the first is sent", async || sent(&broker).len() == 1).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    service.stop().await;
    listener.stop().await;
    assert_eq!(sent(&broker), BTreeMap::from([("first".to_owned(), 1)]));
    let due = async |name: &str| {
        let found = schedules::get(&*store, &ScheduleId::new(name)).await;
        found
            .expect("an answer")
            .expect("it is there")
            .due
            .expect("a time")
    };
    assert!(due("months").await.duration_since(day).abs() < SignedDuration::from_millis(1));
    for name in ["last", "never"] {
        let due = due(name).await;
        assert_eq!(due.to_string(), "9999-01-01T00:00:00Z");
    }
}

macro_rules! on_every_store {
    ($($test:ident)+) => {
        mod on_sqlite {
            use super::Database;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let database = Database::new().await;
                super::$test(database.store.clone().into()).await;
            })+
        }

        mod in_memory {
            use super::{Arc, MemoryStore};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(Arc::new(MemoryStore::new())).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs PostgreSQL: run `cargo xtask test`"]
            async fn $test() {
                super::$test(super::postgres().await).await;
            })+
        }
    };
}

on_every_store! {
    what_changes_before_the_shared_commit_spoils_no_other
    a_cancellation_and_a_sending_agree_on_who_was_first
    a_pause_is_not_lost_to_a_sending
    instances_that_fire_at_once_send_each_occurrence_once
    what_was_missed_of_many_schedules_is_sent_by_commits_of_a_bounded_size
    the_first_and_the_last_of_all_times_are_times
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A database that nobody used before.
async fn postgres() -> Arc<dyn Store> {
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let schema = format!("racing_{}_{number}", std::process::id());
    let url = tidings_testing::servers::postgres_url();
    let store = PostgresStore::connect(url, &*schema).await;
    Arc::new(store.expect("a store"))
}
