//! `tidings topology`, and what else rests on what services write down about their handlers: on the broker in the
//! box and on RabbitMQ.

mod permissions;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tidings::{
    Destination, Envelope, Outgoing, Queue, ServeError, Store, Topology, Transport as _, Unrouted,
    dead_letter_queue, prelude::*,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_sqlite::SqliteStore;
use tidings_testing::servers::rabbitmq_url;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::run::{Ran, tidings};

const SOON: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderShipped {
    order_id: String,
}

type Count = Arc<AtomicU32>;

async fn settle(_: OrderPlaced, State(count): State<Count>) -> Result<()> {
    count.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn thank(_: OrderShipped) -> Result<()> {
    Ok(())
}

/// A service with a name of its own, its database, and a broker.
struct Shop {
    folder: TempDir,
    url: String,
    service: String,
    amqp: Amqp,
    count: Count,
}

/// A service that runs.
struct Running {
    stop: oneshot::Sender<()>,
    service: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.service.await.unwrap().unwrap();
    }
}

impl Shop {
    async fn new(url: String) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            amqp: Amqp::connect(&url).await.unwrap(),
            url,
            service: format!("pay-{}", uuid::Uuid::new_v4().simple()),
            count: Count::default(),
        }
    }

    fn queue(&self, message: &str) -> String {
        format!("{}.{message}.v1", self.service)
    }

    async fn store(&self) -> Arc<dyn Store> {
        let file = self.folder.path().join("payment.db");
        SqliteStore::open(file).await.unwrap().into()
    }

    fn router(&self) -> Router {
        Router::new(self.service.clone())
            .on(settle)
            .with_state(Arc::clone(&self.count))
    }

    async fn start(&self, router: Router, options: &str) -> Result<Running, ServeError> {
        let amqp = Amqp::connect(&format!("{}{options}", self.url))
            .await
            .unwrap();
        let router = router.transactional(self.store().await);
        let (stop, stopped) = oneshot::channel::<()>();
        let service = serve(amqp, router).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let mut service = tokio::spawn(service.into_future());
        tokio::select! {
            () = ready => Ok(Running { stop, service }),
            ended = &mut service => Err(ended.unwrap().unwrap_err()),
            () = tokio::time::sleep(SOON) => panic!("neither ready nor ended"),
        }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let database = format!("sqlite://{}", self.folder.path().display());
        let args = [args, &["--broker", &self.url, "--database", &database]].concat();
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
    }

    async fn publish(&self, destination: Destination, name: &'static str, body: &str) {
        let message = Outgoing {
            destination,
            unrouted: Unrouted::Hold,
            envelope: Envelope::new(name, body.to_owned()),
        };
        self.amqp.publish(vec![message]).await.remove(0).unwrap();
    }

    async fn depth(&self, queue: &str) -> Option<u32> {
        let depths = self.amqp.depths(&[queue]).await.unwrap();
        depths[0].map(|it| it.ready)
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let since = Instant::now();
        while !is_so().await {
            assert!(since.elapsed() < SOON, "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn states<'a>(plan: &'a Value, member: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let items = plan["items"].as_array().unwrap().iter();
    let text = |it: &'a Value, member: &str| it[member].as_str().unwrap();
    items
        .map(|it| (text(it, "kind"), text(it, "name"), text(it, member)))
        .collect()
}

fn codes(diagnosis: &Value) -> Vec<(&str, &str)> {
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    findings
        .map(|it| (it["code"].as_str().unwrap(), it["what"].as_str().unwrap()))
        .collect()
}

/// Each test on both brokers.
macro_rules! on_both {
    ($($test:ident: $embedded:ident, $rabbitmq:ident;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $embedded() {
            let broker = Broker::start(Options::ephemeral()).await.unwrap();
            $test(Shop::new(broker.amqp_url()).await).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        async fn $rabbitmq() {
            $test(Shop::new(rabbitmq_url()).await).await;
        }
    )+};
}

on_both! {
    who_may_not_declare_is_served_by_apply:
        who_may_not_declare_is_served_by_apply_in_the_box,
        who_may_not_declare_is_served_by_apply_on_rabbitmq;
    what_is_otherwise_is_named_and_left_alone:
        what_is_otherwise_is_named_and_left_alone_in_the_box,
        what_is_otherwise_is_named_and_left_alone_on_rabbitmq;
    what_a_handler_has_left_is_found_and_pruned:
        what_a_handler_has_left_is_found_and_pruned_in_the_box,
        what_a_handler_has_left_is_found_and_pruned_on_rabbitmq;
    letters_that_somebody_holds_are_not_pruned:
        letters_that_somebody_holds_are_not_pruned_in_the_box,
        letters_that_somebody_holds_are_not_pruned_on_rabbitmq;
    a_group_that_others_are_in_stays:
        a_group_that_others_are_in_stays_in_the_box,
        a_group_that_others_are_in_stays_on_rabbitmq;
    a_handler_that_could_read_nothing_is_seen:
        a_handler_that_could_read_nothing_is_seen_in_the_box,
        a_handler_that_could_read_nothing_is_seen_on_rabbitmq;
}

async fn who_may_not_declare_is_served_by_apply(shop: Shop) {
    let nothing = Arc::clone(&shop.store().await);
    drop(nothing);
    shop.run(&["topology", "plan"])
        .await
        .ends(1)
        .says("no service has written down");
    let refused = shop.start(shop.router().ordered(2), "?declare=false").await;
    let refused = refused
        .err()
        .expect("its topology is not there")
        .to_string();
    assert!(
        refused.contains("is not there") && refused.contains("tidings topology apply"),
        "{refused}"
    );
    let plan = shop.run(&["topology", "plan", "--json"]).await;
    let plan = plan.ends(1).says("(TDG-9030)").json();
    assert_eq!(plan["complete"], false);
    let group = format!("{}.ordered", shop.service);
    let partition = format!("{group}.1of2");
    assert!(
        states(&plan, "state").contains(&("queue", &partition, "missing")),
        "{plan:#}"
    );
    assert_eq!(shop.depth(&partition).await, None, "a plan makes nothing");

    let applied = shop
        .run(&["topology", "apply", "--json"])
        .await
        .ends(0)
        .json();
    assert!(
        states(&applied, "outcome").contains(&("queue", &partition, "made")),
        "{applied:#}"
    );
    let again = shop
        .run(&["topology", "apply", "--json"])
        .await
        .ends(0)
        .json();
    let outcomes = states(&again, "outcome");
    assert!(
        outcomes.iter().all(|it| matches!(it.2, "kept" | "ensured")),
        "{again:#}"
    );
    let plan = shop
        .run(&["topology", "plan", "--json"])
        .await
        .ends(0)
        .json();
    let of_group = plan["items"].as_array().unwrap().iter();
    let mut of_group = of_group.filter(|it| it["name"] == *partition && it["kind"] == "queue");
    let item = of_group.next().unwrap();
    assert_eq!(
        (&item["state"], &item["services"][0]),
        (&"there".into(), &shop.service.as_str().into())
    );

    // Its bindings are there, too.
    let running = shop.start(shop.router().ordered(2), "?declare=false").await;
    let running = running.expect("everything is there");
    let topic = || Destination::Topic("order-placed.v1".into());
    shop.publish(topic(), "order-placed.v1", r#"{"order_id":"o-1"}"#)
        .await;
    shop.until("it is handled", async || {
        shop.count.load(Ordering::SeqCst) == 1
    })
    .await;
    let doctor = shop.run(&["doctor"]).await;
    doctor.ends(0).tells("nothing is wrong");
    running.stop().await;
}

async fn what_is_otherwise_is_named_and_left_alone(shop: Shop) {
    shop.start(shop.router(), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let queue = shop.queue("order-placed");
    let deleted = shop.amqp.delete_queue(&queue, false).await.unwrap();
    assert_eq!(deleted, tidings_amqp::Deleted::Done(0));
    let listed = shop
        .run(&["consumers", "list", "--json"])
        .await
        .ends(0)
        .json();
    let consumer = &listed["consumers"][0];
    assert_eq!(
        (&consumer["consumer"], &consumer["queueMissing"]),
        (&queue.as_str().into(), &true.into())
    );
    shop.run(&["consumers", "list"])
        .await
        .ends(0)
        .tells("queue missing");
    let doctor = shop.run(&["doctor", "--json"]).await.ends(1).json();
    assert!(
        codes(&doctor)
            .iter()
            .any(|(code, what)| *code == "TDG-9030" && what.contains(&queue)),
        "{doctor:#}"
    );

    // Somebody else makes a queue of that name.
    let other = Topology::new().queue(Queue::new(queue.clone()).ephemeral());
    shop.amqp.declare(&other).await.unwrap();
    let plan = shop.run(&["topology", "plan", "--json"]).await;
    let plan = plan.ends(1).says("(TDG-9032)").json();
    assert!(
        states(&plan, "state").contains(&("queue", &queue, "differs")),
        "{plan:#}"
    );
    let applied = shop
        .run(&["topology", "apply", "--json"])
        .await
        .ends(1)
        .json();
    assert!(
        states(&applied, "outcome").contains(&("queue", &queue, "refused")),
        "{applied:#}"
    );
    let binding = states(&applied, "outcome");
    assert!(
        binding.contains(&("binding", &queue, "refused")),
        "a stranger's is not bound: {applied:#}"
    );
    shop.amqp.declare(&other).await.expect("it is as it was");
}

async fn what_a_handler_has_left_is_found_and_pruned(shop: Shop) {
    let both = shop.router().on(thank);
    shop.start(both, "").await.expect("it starts").stop().await;
    shop.run(&["topology", "prune"])
        .await
        .ends(0)
        .tells("nothing is left");
    shop.start(shop.router(), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let (left, kept) = (shop.queue("order-shipped"), shop.queue("order-placed"));
    let stranger = format!("{left}.stranger");
    shop.amqp
        .declare(&Topology::new().queue(Queue::new(stranger.clone())))
        .await
        .unwrap();
    let topic = || Destination::Topic("order-shipped.v1".into());
    shop.publish(topic(), "order-shipped.v1", r#"{"order_id":"o-1"}"#)
        .await;
    assert_eq!(shop.depth(&left).await, Some(1), "it goes on to fill");

    let doctor = shop.run(&["doctor", "--json"]).await.ends(1).json();
    assert!(
        codes(&doctor)
            .iter()
            .any(|(code, what)| *code == "TDG-9031" && what.contains(&left)),
        "{doctor:#}"
    );
    shop.run(&["consumers", "list"]).await.ends(0).tells("gone");
    let listed = shop.run(&["topology", "prune", "--json"]).await;
    let listed = listed.ends(0).says("nothing was deleted").json();
    let dead = dead_letter_queue(&left);
    let outcomes = states(&listed, "outcome");
    assert_eq!(
        outcomes,
        [
            ("queue", &*left, "would-keep"),
            ("queue", &*dead, "would-keep")
        ],
        "{listed:#}"
    );
    let refused = shop.run(&["topology", "prune", "--yes"]).await;
    refused
        .ends(1)
        .says("(TDG-9033)")
        .tells("--with-messages")
        .tells("Router::unsubscribed");
    assert_eq!(
        (shop.depth(&left).await, shop.depth(&dead).await),
        (Some(1), Some(0))
    );
    shop.run(&["topology", "prune", "--with-messages"])
        .await
        .ends(2);

    // A receiver keeps its queue, whatever is asked for.
    let subscription = tidings::Subscription::new(left.clone());
    let receiver = Amqp::connect(&shop.url).await.unwrap();
    let deliveries = receiver.subscribe(subscription).await.unwrap();
    let in_use = shop
        .run(&["topology", "prune", "--yes", "--with-messages"])
        .await;
    in_use.ends(1).tells("1 receives from");
    drop(deliveries);
    receiver.close().await;
    shop.until("it is given back", async || {
        let depths = shop.amqp.depths(&[&left]).await.unwrap();
        depths[0].is_some_and(|it| it.receivers == Some(0) && it.ready == 1)
    })
    .await;

    let pruned = shop
        .run(&["topology", "prune", "--yes", "--with-messages"])
        .await;
    pruned
        .ends(0)
        .tells("1 message was deleted with its queue")
        .tells("its record is removed");
    for gone in [&left, &dead] {
        assert_eq!(shop.depth(gone).await, None, "{gone}");
    }
    for stays in [&stranger, &kept, &dead_letter_queue(&kept)] {
        assert_eq!(shop.depth(stays).await, Some(0), "{stays}");
    }
    shop.run(&["topology", "plan"]).await.ends(0);
    shop.run(&["topology", "prune", "--yes"])
        .await
        .ends(0)
        .tells("nothing is left");

    // From its own queue into an ordered group, and back: each time what it has left goes, and no more.
    shop.start(shop.router().ordered(2), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let pruned = shop
        .run(&["topology", "prune", "--yes", "--json"])
        .await
        .ends(0)
        .json();
    let outcomes = states(&pruned, "outcome");
    assert_eq!(
        outcomes,
        [
            ("queue", &*kept, "deleted"),
            ("queue", &*dead_letter_queue(&kept), "deleted")
        ]
    );
    shop.start(shop.router(), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let pruned = shop
        .run(&["topology", "prune", "--yes", "--json"])
        .await
        .ends(0)
        .json();
    let outcomes = states(&pruned, "outcome");
    assert_eq!(
        (outcomes.len(), outcomes.iter().all(|it| it.2 == "deleted")),
        (6, true),
        "{pruned:#}"
    );
    shop.run(&["topology", "plan"]).await.ends(0);
}

/// What is fetched does not count as being in the queue, which looks empty and unused meanwhile.
async fn letters_that_somebody_holds_are_not_pruned(shop: Shop) {
    shop.start(shop.router(), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    shop.start(Router::new(shop.service.clone()), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let queue = shop.queue("order-placed");
    let dead = dead_letter_queue(&queue);
    let letters = || Destination::Queue(dead.clone().into());
    for _ in 0..3 {
        shop.publish(letters(), "order-placed.v1", "{").await;
    }
    let other = Amqp::connect(&shop.url).await.unwrap();
    let access = other.dead_letter_access().unwrap();
    let mut held = access.hold(&dead).await.unwrap();
    assert_eq!(held.next(10).await.unwrap().len(), 3);
    assert_eq!(shop.depth(&dead).await, Some(0), "as if it were empty");

    let why = format!("an operator holds the dead letters of `{dead}`");
    let listed = shop.run(&["topology", "prune", "--json"]).await;
    let listed = listed.ends(0).json();
    let both = |outcome| [("queue", &*queue, outcome), ("queue", &*dead, outcome)];
    assert_eq!(states(&listed, "outcome"), both("would-keep"));
    for how in [&["--yes"][..], &["--yes", "--with-messages"]] {
        let kept = shop.run(&[&["topology", "prune"], how].concat()).await;
        kept.ends(1).says("(TDG-9033)").tells(&why);
    }
    // Who comes between the look and the deletion is seen by the deletion itself.
    for with_messages in [false, true] {
        let kept = shop.amqp.delete_queue(&dead, with_messages).await.unwrap();
        let tidings_amqp::Deleted::Refused(why) = kept else {
            panic!("it was held: {kept:?}");
        };
        assert!(why.contains("somebody else holds the letters"), "{why}");
    }
    held.release().await.unwrap();
    assert_eq!(shop.depth(&dead).await, Some(3), "they are all there");
    assert!(
        shop.depth(&queue).await.is_some(),
        "and so is what is beside them"
    );

    let pruned = shop
        .run(&["topology", "prune", "--yes", "--with-messages"])
        .await;
    pruned.ends(0).tells("3 messages were deleted");
    assert_eq!(shop.depth(&dead).await, None);
    // What was deleted is not held: it can be made and looked at anew.
    let anew = Topology::new().queue(Queue::new(queue.clone()));
    shop.amqp.declare(&anew).await.unwrap();
    access.hold(&dead).await.unwrap().release().await.unwrap();
    assert!(!shop.amqp.is_held(&dead).await.unwrap());
}

/// A handler that is gone from an ordered group leaves the group to the others.
async fn a_group_that_others_are_in_stays(shop: Shop) {
    let both = shop.router().on(thank).ordered(2);
    shop.start(both, "").await.expect("it starts").stop().await;
    shop.start(shop.router().ordered(2), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let pruned = ["topology", "prune", "--yes", "--json"];
    let pruned = shop.run(&pruned).await.ends(0).json();
    assert_eq!(states(&pruned, "outcome"), [], "{pruned:#}");
    assert_eq!(pruned["forgotten"][0], *shop.queue("order-shipped"));
    let group = format!("{}.ordered", shop.service);
    for queue in ["0of2", "1of2", "any", "dead"] {
        let queue = format!("{group}.{queue}");
        assert_eq!(shop.depth(&queue).await, Some(0), "{queue}");
    }
    shop.run(&["topology", "plan"]).await.ends(0);
}

async fn a_handler_that_could_read_nothing_is_seen(shop: Shop) {
    let running = shop.start(shop.router(), "").await.expect("it starts");
    let queue = shop.queue("order-placed");
    let own = || Destination::Queue(queue.clone().into());
    shop.publish(own(), "order-placed.v1", "{").await;
    let dead = dead_letter_queue(&queue);
    shop.until("it is dead", async || shop.depth(&dead).await == Some(1))
        .await;
    let groups = shop
        .run(&["dead-letters", "groups", "--json"])
        .await
        .ends(0)
        .json();
    assert_eq!(groups["groups"][0]["consumer"], *queue);
    let doctor = shop.run(&["doctor", "--json"]).await.ends(1).json();
    let expected = ("TDG-9008", &*format!("1 dead letter is in `{dead}`"));
    assert_eq!(codes(&doctor), [expected]);
    let listed = shop
        .run(&["consumers", "list", "--json"])
        .await
        .ends(0)
        .json();
    let consumer = &listed["consumers"][0];
    assert_eq!(
        (&consumer["receivers"], &consumer["queueMissing"]),
        (&1.into(), &false.into())
    );
    running.stop().await;
    shop.start(Router::new(shop.service.clone()), "")
        .await
        .expect("it starts")
        .stop()
        .await;
    let groups = shop
        .run(&["dead-letters", "groups", "--json"])
        .await
        .ends(0)
        .json();
    assert_eq!(groups["count"], 1, "also when it is gone");
    let pruned = shop.run(&["topology", "prune", "--yes"]).await;
    pruned.ends(1).tells("1 dead letter is in it");
}
