//! Sagas that are steps of other sagas, through `serve`; sagas that begin anew; and the check of open
//! journals at the start.

mod support;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use support::{Database, Running, broker::Broker, metrics::Measured, outgoing, until};
use tidings::{
    ChildSagas, First, InboxState, Saga, Sagas, StepError, StepReply, Store,
    prelude::*,
    sagas::{self, Query, SagaState},
    serve,
};
use tidings_postgres::PostgresStore;
use tidings_sqlite::Tx;

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(id = "trip_id", key = "trip_id")]
struct TripBooked {
    trip_id: String,
    /// What is refused, at whom.
    trouble: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "trip_id", key = "trip_id")]
struct TripConfirmed {
    trip_id: String,
    what: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "trip_id", key = "trip_id")]
struct TripCancelled {
    trip_id: String,
    reason: String,
}

/// Carried out by a saga of the hotels.
#[derive(Clone, Serialize, Deserialize, Command)]
#[command(target = "hotels", reply = String)]
struct BookStay {
    trip_id: String,
    trouble: String,
}

/// The identity is the room's, and two sagas may want the same one.
#[derive(Clone, Serialize, Deserialize, Command)]
#[command(target = "desk", reply = u32, id = "room")]
struct TakeRoom {
    trip_id: String,
    room: u32,
    is_full: bool,
}

#[derive(Clone, Serialize, Deserialize, Command)]
#[command(target = "desk", reply = ())]
struct LeaveRoom {
    trip_id: String,
    room: u32,
}

#[derive(Clone, Serialize, Deserialize, Command)]
#[command(target = "desk", reply = ())]
struct TakeFee {
    trip_id: String,
    is_refused: bool,
}

async fn trip(trip: TripBooked, saga: Saga) -> Result<TripConfirmed, TripCancelled> {
    let TripBooked { trip_id, trouble } = trip;
    let cancelled = |error: StepError| TripCancelled {
        trip_id: trip_id.clone(),
        reason: error.to_string(),
    };
    let stay = BookStay {
        trip_id: trip_id.clone(),
        trouble: trouble.clone(),
    };
    let deadline = match &*trouble {
        "slow" => Duration::from_millis(300),
        _ => Duration::from_secs(60),
    };
    let stay = saga.step("stay", stay).deadline(deadline).child();
    let what = stay.await.map_err(cancelled)?;
    let fee = TakeFee {
        trip_id: trip_id.clone(),
        is_refused: trouble == "fee",
    };
    saga.step("fee", fee).no_undo().await.map_err(cancelled)?;
    Ok(TripConfirmed { trip_id, what })
}

/// Two rooms, one after the other.
async fn stay(stay: BookStay, saga: Saga) -> Result<String, StepError> {
    let BookStay { trip_id, trouble } = stay;
    for room in [1, 2] {
        let take = TakeRoom {
            trip_id: trip_id.clone(),
            room,
            is_full: trouble == "full" && room == 2,
        };
        let of_trip = trip_id.clone();
        saga.step(format!("room-{room}"), take)
            .retry(2)
            .undo(move |room| LeaveRoom {
                trip_id: of_trip.clone(),
                room,
            })
            .await?;
        if trouble == "slow" {
            saga.timer(format!("rest-{room}"), Duration::from_secs(1))
                .await;
        }
    }
    Ok(format!("two rooms for {trip_id}"))
}

/// How often a room was asked for, to refuse it for the moment the first time.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

async fn take_room(
    command: TakeRoom,
    State(asked): State<Asked>,
    mut tx: Tx,
) -> Result<StepReply<u32>> {
    let TakeRoom { trip_id, room, .. } = command;
    let asks = format!("{trip_id} {room}");
    let is_first = !asked.0.lock().contains(&asks);
    asked.0.lock().push(asks);
    if command.is_full {
        return Ok(StepReply::refused("no room"));
    }
    if trip_id.contains("busy") && is_first {
        return Ok(StepReply::refused_for_now("the desk is busy"));
    }
    let row = (trip_id, i64::from(room));
    tx.execute("insert into effect (account, number) values (?1, ?2)", row)
        .await?;
    Ok(StepReply::Done(room))
}

async fn leave_room(command: LeaveRoom, mut tx: Tx) -> Result<()> {
    let row = (command.trip_id, i64::from(command.room) + 100);
    tx.execute("insert into effect (account, number) values (?1, ?2)", row)
        .await?;
    Ok(())
}

async fn take_fee(command: TakeFee) -> Result<StepReply<()>> {
    match command.is_refused {
        true => Ok(StepReply::refused("no money")),
        false => Ok(StepReply::Done(())),
    }
}

struct World {
    broker: Broker,
    trips: Arc<dyn Store>,
    hotels: Arc<dyn Store>,
    desk: Database,
    _databases: Vec<Database>,
}

impl World {
    async fn sqlite() -> Self {
        let databases = vec![Database::new().await, Database::new().await];
        Self {
            broker: Broker::default(),
            trips: databases[0].store.clone().into(),
            hotels: databases[1].store.clone().into(),
            desk: Database::new().await,
            _databases: databases,
        }
    }

    async fn postgres() -> Self {
        let url = tidings_testing::servers::postgres_url();
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for name in ["trips", "hotels"] {
            let schema = format!("nested_{name}_{}", std::process::id());
            let store = PostgresStore::connect(url.clone(), schema).await;
            stores.push(Arc::new(store.expect("a store")));
        }
        Self {
            broker: Broker::default(),
            trips: Arc::clone(&stores[0]),
            hotels: Arc::clone(&stores[1]),
            desk: Database::new().await,
            _databases: Vec::new(),
        }
    }

    fn routers(&self) -> Vec<Router> {
        async fn confirmed(_: TripConfirmed) -> Result<()> {
            Ok(())
        }
        async fn cancelled(_: TripCancelled) -> Result<()> {
            Ok(())
        }
        let trips = Sagas::new("trip", |it: &TripBooked| it.trip_id.clone());
        vec![
            Router::new("trips")
                .saga(trips.version(1, trip))
                .transactional(Arc::clone(&self.trips)),
            Router::new("hotels")
                .child_saga(ChildSagas::new("stay").version(1, stay))
                .transactional(Arc::clone(&self.hotels)),
            Router::new("desk")
                .on(take_room)
                .on(leave_room)
                .on(take_fee)
                .transactional(self.desk.store.clone())
                .with_state(Asked::default()),
            Router::new("listener").on(confirmed).on(cancelled),
        ]
    }

    fn book(&self, trip_id: &str, trouble: &str) {
        self.broker.publish_raw(outgoing(&TripBooked {
            trip_id: trip_id.into(),
            trouble: trouble.into(),
        }));
    }

    async fn states(&self, store: &dyn Store, saga: &str) -> Vec<String> {
        let all = Query {
            limit: 1000,
            ..Query::default()
        };
        let found = sagas::list(store, saga, &all).await.expect("a list");
        let state = |it: sagas::Summary| format!("{} {}", it.key, it.state.expect("a state"));
        let mut states: Vec<String> = found.into_iter().map(state).collect();
        states.sort_unstable();
        states
    }

    async fn until_all_have_ended(&self, count: usize) {
        until("all have ended", async || {
            let of_trips = self.states(&*self.trips, "trip").await;
            let of_stays = self.states(&*self.hotels, "stay").await;
            let is_open = |it: &String| !it.ends_with("completed") && !it.ends_with("compensated");
            of_trips.len() == count && !of_trips.iter().chain(&of_stays).any(is_open)
        })
        .await;
    }
}

async fn a_saga_is_a_step_of_another_one(world: World) {
    let running = Running::start_all(&world.broker, world.routers()).await;
    world.book("good", "");
    // The same rooms, so commands with the same identities; and each is sent twice.
    world.book("busy", "");
    world.book("full", "full");
    world.book("poor", "fee");
    world.book("slow", "slow");
    world.until_all_have_ended(5).await;
    let trips = [
        "busy completed",
        "full compensated",
        "good completed",
        "poor compensated",
        "slow compensated",
    ];
    assert_eq!(world.states(&*world.trips, "trip").await, trips);
    let stays = trips.map(|trip| format!("trip/0/stay/{trip}"));
    assert_eq!(world.states(&*world.hotels, "stay").await, stays);
    // A saga that has ended has written what it tells; the relay sends it after that.
    until("what they tell is sent", async || {
        let confirmed = world.broker.published_as::<TripConfirmed>().len();
        confirmed + world.broker.published_as::<TripCancelled>().len() >= trips.len()
    })
    .await;
    let confirmed = world.broker.published_as::<TripConfirmed>();
    let mut confirmed: Vec<String> = confirmed.into_iter().map(|it| it.what).collect();
    confirmed.sort_unstable();
    assert_eq!(confirmed, ["two rooms for busy", "two rooms for good"]);
    let cancelled = world.broker.published_as::<TripCancelled>();
    let mut reasons: Vec<String> = cancelled.into_iter().map(|it| it.reason).collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        ["`stay` was not answered in time", "no money", "no room"]
    );
    let mut effects = world.desk.effects().await;
    effects.sort_unstable();
    // Of `slow` it is not certain how far it came.
    let (slow, others): (Vec<_>, Vec<_>) =
        effects.into_iter().partition(|(trip, _)| trip == "slow");
    let of = |trip: &str, rooms: &[u64]| rooms.iter().map(|it| (trip.to_owned(), *it)).collect();
    let expected: Vec<Vec<(String, u64)>> = vec![
        of("busy", &[1, 2]),
        of("full", &[1, 101]),
        of("good", &[1, 2]),
        of("poor", &[1, 2, 101, 102]),
    ];
    assert_eq!(others, expected.concat());
    let taken = slow.iter().filter(|(_, room)| *room < 100).count();
    assert_eq!(
        slow.len(),
        2 * taken,
        "what was taken is given back: {slow:?}"
    );
    assert_eq!(world.desk.rows(InboxState::Dead).await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_saga_is_a_step_of_another_one_on_sqlite() {
    a_saga_is_a_step_of_another_one(World::sqlite().await).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_saga_is_a_step_of_another_one_on_postgresql() {
    a_saga_is_a_step_of_another_one(World::postgres().await).await;
}

/// The parent and its child are killed and started anew; the command comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_sagas_survive_a_crash() {
    let world = World::sqlite().await;
    let running = Running::start_all(&world.broker, world.routers()).await;
    const COUNT: usize = 40;
    for number in 0..COUNT {
        let trouble = ["", "full", "fee", ""][number % 4];
        world.book(&format!("t-{number}"), trouble);
    }
    until("some rooms are taken", async || {
        world.desk.effects().await.len() > 20
    })
    .await;
    running.crash().await;
    let commands = world.broker.published();
    let commands = commands
        .iter()
        .filter(|it| it.envelope.name == "book-stay.v1");
    for command in commands.cloned().collect::<Vec<_>>() {
        let mut again = command;
        let id = again.envelope.id.as_ref().expect("an id").as_str();
        again.envelope.id = Some(tidings::MessageId::new(format!("{id}/again")));
        world.broker.publish_raw(again);
    }
    let running = Running::start_all(&world.broker, world.routers()).await;
    world.until_all_have_ended(COUNT).await;
    until("everything is settled", async || world.broker.is_settled()).await;
    for state in world.states(&*world.trips, "trip").await {
        let (key, end) = state.split_once(' ').expect("a key and a state");
        let number: usize = key.trim_start_matches("t-").parse().expect("a number");
        let expected = ["completed", "compensated", "compensated", "completed"][number % 4];
        assert_eq!(end, expected, "{key}");
    }
    let stays = world.states(&*world.hotels, "stay").await;
    assert_eq!(stays.len(), COUNT, "one for each");
    let effects = world.desk.effects().await;
    // Two rooms for each of half, one of a quarter and two of a quarter given back.
    let taken = effects.iter().filter(|(_, room)| *room < 100).count();
    let left = effects.len() - taken;
    assert_eq!(
        (taken, left),
        (COUNT / 2 * 2 + COUNT / 4 * 3, COUNT / 4 * 3)
    );
    running.stop().await;
}

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(id = "customer", key = "customer")]
struct MonthBegun {
    customer: String,
    month: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(id = "customer", key = "customer")]
struct SubscriptionEnded {
    customer: String,
    months: u32,
}

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(id = "customer", key = "customer")]
struct SubscriptionStopped {
    customer: String,
}

async fn subscription(this: MonthBegun, saga: Saga) -> Result<SubscriptionEnded, ()> {
    let MonthBegun { customer, month } = this;
    let fee = TakeFee {
        trip_id: customer.clone(),
        is_refused: false,
    };
    let _ = saga.step("fee", fee).no_undo().await;
    let stopped = saga.signal::<SubscriptionStopped>("stopped");
    let over = saga.timer("month", Duration::from_millis(10));
    match saga.first((stopped, over)).await {
        First::First(_) => Ok(SubscriptionEnded {
            customer,
            months: month,
        }),
        First::Second(()) => {
            let month = month + 1;
            saga.restart_with(MonthBegun { customer, month }).await
        }
    }
}

#[tokio::test]
async fn a_saga_lives_for_many_months_under_one_key() {
    let world = World::sqlite().await;
    let subscriptions = Sagas::new("subscription", |it: &MonthBegun| it.customer.clone());
    async fn ended(_: SubscriptionEnded) -> Result<()> {
        Ok(())
    }
    let routers = vec![
        Router::new("trips")
            .saga(subscriptions.version(1, subscription))
            .saga_signal("subscription", "stopped", |it: &SubscriptionStopped| {
                it.customer.clone()
            })
            .transactional(Arc::clone(&world.trips)),
        Router::new("desk")
            .on(take_fee)
            .transactional(world.desk.store.clone()),
        Router::new("listener").on(ended),
    ];
    let running = Running::start_all(&world.broker, routers).await;
    let customer = || "ann".to_owned();
    world.broker.publish_raw(outgoing(&MonthBegun {
        customer: customer(),
        month: 0,
    }));
    let run = async || {
        let journal = sagas::journal(&*world.trips, "subscription", "ann").await;
        journal.expect("an answer").map_or(0, |journal| journal.run)
    };
    until("it has begun anew a few times", async || run().await >= 3).await;
    world.broker.publish_raw(outgoing(&SubscriptionStopped {
        customer: customer(),
    }));
    until("it has ended", async || {
        !world.broker.published_as::<SubscriptionEnded>().is_empty()
    })
    .await;
    let ended = world.broker.published_as::<SubscriptionEnded>();
    let journal = sagas::journal(&*world.trips, "subscription", "ann").await;
    let journal = journal.expect("an answer").expect("a journal");
    assert_eq!(journal.state, SagaState::Completed);
    assert_eq!(journal.run, ended[0].months);
    let fees = world.broker.published_as::<TakeFee>();
    assert_eq!(fees.len() as u32, ended[0].months + 1, "once a month");
    running.stop().await;
}

/// `trip` with another name for a step.
async fn renamed(trip: TripBooked, saga: Saga) -> Result<TripConfirmed, TripCancelled> {
    let TripBooked { trip_id, trouble } = trip;
    let stay = BookStay {
        trip_id: trip_id.clone(),
        trouble,
    };
    match saga.step("hotel", stay).child().await {
        Ok(what) => Ok(TripConfirmed { trip_id, what }),
        Err(error) => Err(TripCancelled {
            trip_id,
            reason: error.to_string(),
        }),
    }
}

async fn changed_function(store: Arc<dyn Store>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("changed-{number}");
    let measured = Measured::install();
    let broker = Broker::default();
    let sagas_named = || Sagas::new(name.clone(), |it: &TripBooked| it.trip_id.clone());
    let with = |sagas: Sagas<TripBooked>| {
        Router::new("trips")
            .saga(sagas)
            .transactional(Arc::clone(&store))
    };
    // Somebody takes the commands and does not answer.
    let hotels = World::sqlite().await;
    broker.declare_for(&hotels.routers()[1]).await;
    broker.declare_for(&hotels.routers()[3]).await;
    let running = Running::start(&broker, with(sagas_named().version(1, trip))).await;
    for number in 0..250 {
        broker.publish_raw(outgoing(&TripBooked {
            trip_id: format!("t-{number}"),
            trouble: String::new(),
        }));
    }
    until("all wait", async || {
        broker.count("hotels.book-stay.v1") == 250
    })
    .await;
    running.stop().await;

    let changed = || sagas_named().version(1, renamed);
    let good = sagas_named().version(1, trip).version(2, renamed);
    let checked = sagas::check(&*store, &good.define("trips"))
        .await
        .expect("an answer");
    assert_eq!((checked.count, checked.is_good()), (250, true), "{checked}");
    let checked = sagas::check(&*store, &changed().define("trips")).await;
    let checked = checked.expect("an answer");
    assert_eq!(checked.mismatch_count, 250);
    assert_eq!(checked.mismatches.len(), 100, "the others are counted");
    assert!(
        checked.mismatches[0]
            .why
            .contains("the step `stay` was sent"),
        "{checked}"
    );
    // The old function was taken away.
    let newer = sagas_named().version(2, renamed).define("trips");
    let checked = sagas::check(&*store, &newer).await.expect("an answer");
    assert_eq!(
        (checked.foreign_count, checked.count),
        (250, 0),
        "{checked}"
    );

    let refused = serve(broker.clone(), with(changed())).await;
    let error = refused.expect_err("it does not start").to_string();
    for part in [
        "TDG-3001",
        "250 go another way",
        "the step `stay` was sent",
        &name,
    ] {
        assert!(error.contains(part), "{error}");
    }

    // It is forced: what arrives makes the saga stuck, and is kept.
    let running = Running::start(&broker, with(changed().force_start(true))).await;
    let open = |state: &str| format!("tidings_sagas_open{{saga={name},state={state},version=1}}");
    until("they are counted", async || {
        measured.get(&open("running")) == 250.0
    })
    .await;
    let age = open("running").replace("tidings_sagas_open", "tidings_sagas_oldest_age_seconds");
    assert!(measured.get(&age) > 0.0);
    let answers = Router::new("hotels")
        .on(async |command: BookStay| Ok::<_, tidings::Error>(StepReply::Done(command.trip_id)))
        .transactional(Arc::clone(&hotels.hotels));
    let answering = Running::start(&broker, answers).await;
    let stuck = Query {
        state: Some("stuck".into()),
        limit: 1000,
        ..Query::default()
    };
    let all_stuck = async || {
        let stuck = sagas::list(&*store, &name, &stuck).await.expect("a list");
        stuck.len() == 250
    };
    until("all are stuck", all_stuck).await;
    let mismatches = format!("tidings_saga_mismatches_total{{saga={name}}}");
    assert!(measured.get(&mismatches) >= 250.0);
    let journal = sagas::journal(&*store, &name, "t-7")
        .await
        .expect("an answer");
    let journal = journal.expect("a journal");
    let is_kept = |what: &sagas::What| matches!(what, sagas::What::Done { .. });
    assert!(
        journal.entries.iter().any(|entry| is_kept(&entry.what)),
        "the answer is kept"
    );
    answering.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_function_is_found_out_at_the_start_on_sqlite() {
    let database = Database::new().await;
    changed_function(database.store.clone().into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_changed_function_is_found_out_at_the_start_on_postgresql() {
    let schema = format!("changed_{}", std::process::id());
    let url = tidings_testing::servers::postgres_url();
    let store = PostgresStore::connect(url, schema).await.expect("a store");
    changed_function(Arc::new(store)).await;
}
