//! The transport on a cluster of three RabbitMQ nodes, of which some are killed or do not answer.
//!
//! What starts and stops servers blocks the thread of its test, but not those that the transport runs on.

// The other tests use the rest of it.
#[allow(dead_code, unused_imports, unused_macros)]
mod behaviour;
// Each of the two uses a part of it.
#[allow(dead_code)]
mod versions;

use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use behaviour::{
    attempt, connect, groups::Ledger, id, next, publish_all, subscribe, to_queue, to_topic, unique,
    within,
};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tidings_amqp::Amqp;
use tidings_core::{
    Deliveries, Group, Outgoing, PublishErrorKind, Queue, Settlement, Subscription, Topology,
    Transport, dead_letter_queue,
};
use tidings_testing::servers::{RabbitMq, RabbitMqCluster};
use tokio::task::JoinSet;

/// A cluster is much for a small machine: one test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How long a cluster may take until it confirms again: a node that stays apart is started anew meanwhile.
const RECOVERED_MAX: Duration = Duration::from_secs(180);

/// Fast enough to notice a node that does not answer.
const OPTIONS: &str = "heartbeat=2";

fn url(cluster: &RabbitMqCluster) -> String {
    format!("{}/?{OPTIONS}", cluster.url())
}

/// Which node leads a queue, as another one says.
fn leader(cluster: &RabbitMqCluster, asked: usize, queue: &str) -> usize {
    let listed = cluster.ctl(asked, &["list_queues", "name", "leader", "pid"]);
    let listed = listed.expect("it lists");
    let mut lines = listed.lines().map(|it| it.split('\t').collect::<Vec<_>>());
    let words = lines.find(|words| words[0] == queue).expect("it is there");
    // A classic queue has a process, `<tidings23456@localhost.1.2.3>`.
    let of_process = words[2].trim_start_matches('<');
    let of_process = of_process.split_once("localhost");
    let of_process = of_process.map(|(name, _)| format!("{name}localhost"));
    let names = [Some(words[1].to_owned()), of_process]
        .into_iter()
        .flatten();
    let mut nodes = names.filter_map(|name| cluster.named(&name));
    nodes.next().unwrap_or_else(|| panic!("{listed}"))
}

fn keyed(topic: &str, key: usize, number: usize) -> Outgoing {
    let mut message = to_topic(topic, format!("{key}/{number}"));
    message.envelope.key = Some(key.to_string().into());
    message
}

/// Publishes until it is confirmed, as the relay does. A cluster refuses for a moment what goes to a queue whose node is
/// lost.
async fn publish_at_last(amqp: &Amqp, message: Outgoing) {
    let trying = async {
        loop {
            let outcome = amqp.publish(vec![message.clone()]).await.pop();
            match outcome.expect("one outcome").map_err(|error| error.kind()) {
                Ok(()) => return,
                Err(
                    PublishErrorKind::Unavailable
                    | PublishErrorKind::Unconfirmed
                    | PublishErrorKind::Refused,
                ) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(kind) => panic!("{kind:?}"),
            }
        }
    };
    let confirmed = tokio::time::timeout(RECOVERED_MAX, trying).await;
    confirmed.unwrap_or_else(|_| panic!("waited {RECOVERED_MAX:?} in vain for a confirm"));
}

const KEYS: usize = 16;

/// Publishes without an end, each key in order, one after the other; says how many of each are confirmed.
struct Load {
    confirmed: Arc<Mutex<Vec<usize>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(amqp: Arc<Amqp>, topic: String) -> Self {
        let confirmed = Arc::new(Mutex::new(vec![0; KEYS]));
        let counting = Arc::clone(&confirmed);
        let all = async move {
            let publish_key = async |key: usize| {
                for number in 0.. {
                    publish_at_last(&amqp, keyed(&topic, key, number)).await;
                    counting.lock()[key] = number + 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let keys = stream::iter(0..KEYS);
            keys.for_each_concurrent(KEYS, publish_key).await;
        };
        Self {
            confirmed,
            task: tokio::spawn(all),
        }
    }

    fn count(&self) -> usize {
        self.confirmed.lock().iter().sum()
    }

    /// So many more are confirmed.
    async fn goes_on(&self, what: &str, more: usize) {
        let wanted = self.count() + more;
        let end = Instant::now() + RECOVERED_MAX;
        while self.count() < wanted {
            assert!(!self.task.is_finished(), "{what}: publishing ended");
            assert!(
                Instant::now() < end,
                "waited {RECOVERED_MAX:?} in vain for {what}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(self) -> Vec<usize> {
        self.task.abort();
        self.confirmed.lock().clone()
    }
}

/// Handles and acknowledges what comes. What is handled is noted before it is acknowledged, as a database would.
async fn receive(mut deliveries: Deliveries, handle: impl Fn(&str)) {
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery.expect("the stream goes on");
        handle(&id(&delivery));
        // Stale, if its connection is gone: then it comes again.
        if let Err(error) = delivery.settle(Settlement::Ack).await {
            assert!(error.is_temporary(), "{error}");
        }
    }
}

async fn ordered(amqp: &Amqp, queue: &str) -> Deliveries {
    let subscription = Subscription::new(queue.to_owned())
        .prefetch(NonZeroU16::new(20).expect("not zero"))
        .ordered();
    let deliveries = within("a subscription", amqp.subscribe(subscription));
    deliveries.await.expect("the partition is there")
}

/// A consumer without order and an ordered group, both with two instances, that receive what is published without an end.
struct Attack {
    cluster: RabbitMqCluster,
    group: Group,
    queue: String,
    load: Load,
    seen: Arc<Mutex<BTreeSet<String>>>,
    ledger: Arc<Mutex<Ledger>>,
    tasks: JoinSet<()>,
    // For as long as they receive.
    _instances: Vec<Amqp>,
}

impl Attack {
    async fn start() -> Self {
        let cluster = RabbitMqCluster::start(3).expect("it starts");
        // RabbitMQ 3.10's side of a channel may hang for as long as a node does not answer. It is given up after twice this
        // time.
        let builder = Amqp::builder(&url(&cluster)).expect("an URL");
        let publisher = builder.confirm_timeout(Duration::from_secs(5)).connect();
        let publisher = within("a connection", publisher).await;
        let publisher = Arc::new(publisher.expect("it is taken"));
        let (queue, topic) = (unique("queue"), unique("topic"));
        let group = Group::new(unique("group"), NonZeroU16::new(2).expect("not zero"));
        let wanted = Topology::new()
            .queue(Queue::new(queue.clone()).topic(topic.clone()))
            .group(group.clone().topic(topic.clone()));
        publisher.declare(&wanted).await.expect("declared");
        // RabbitMQ writes down the names of new quorum queues half a second late (decision 0013).
        tokio::time::sleep(Duration::from_secs(2)).await;

        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let mut tasks = JoinSet::new();
        let mut instances = Vec::new();
        for _ in 0..2 {
            let amqp = connect(&url(&cluster)).await;
            let seen = Arc::clone(&seen);
            let handle = move |id: &str| {
                seen.lock().insert(id.to_owned());
            };
            tasks.spawn(receive(subscribe(&amqp, &queue, 50).await, handle));
            for partition in 0..2 {
                let deliveries = ordered(&amqp, &group.partition(partition)).await;
                let ledger = Arc::clone(&ledger);
                tasks.spawn(receive(deliveries, move |id| {
                    ledger.lock().handle(id);
                }));
            }
            instances.push(amqp);
        }
        let load = Load::start(publisher, topic);
        load.goes_on("a start", 500).await;
        Self {
            cluster,
            group,
            queue,
            load,
            seen,
            ledger,
            tasks,
            _instances: instances,
        }
    }

    /// Ends the load: nothing that was confirmed is missing, and each key is in order.
    async fn end(mut self) {
        let confirmed = self.load.stop();
        let total: usize = confirmed.iter().sum();
        let missing = || {
            let seen = self.seen.lock();
            let ids = confirmed
                .iter()
                .enumerate()
                .flat_map(|(key, count)| (0..*count).map(move |number| format!("{key}/{number}")));
            ids.filter(|id| !seen.contains(id)).collect::<Vec<_>>()
        };
        let end = Instant::now() + RECOVERED_MAX;
        while !missing().is_empty() || self.ledger.lock().count < total as u64 {
            let handled = self.ledger.lock().count;
            assert!(
                Instant::now() < end,
                "of {total} confirmed the group has {handled}, and the queue lacks {:?}",
                missing()
            );
            if let Some(ended) = self.tasks.try_join_next() {
                ended.expect("no message overtook another of its key");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                let other = error.is_cancelled();
                assert!(other, "a message overtook another of its key: {error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn what_is_confirmed_survives_a_killed_leader_and_a_node_that_does_not_answer() {
    let _alone = ALONE.lock().await;
    let mut attack = Attack::start().await;
    let (cluster, load) = (&mut attack.cluster, &attack.load);

    let killed = leader(cluster, 0, &attack.group.partition(0));
    cluster.kill9(killed);
    // RabbitMQ 3.10 refuses what is published to a queue whose leader was killed, for as long as that is away.
    let is_old = RabbitMq::version().is_some_and(|version| version.starts_with("3."));
    match is_old {
        true => tokio::time::sleep(Duration::from_secs(8)).await,
        false => load.goes_on("publishing without the leader", 500).await,
    }
    cluster.restart(killed).expect("it comes back");
    load.goes_on("publishing with all nodes", 200).await;

    let asked = (killed + 1) % 3;
    let frozen = leader(cluster, asked, &attack.queue);
    cluster.freeze(frozen).expect("it is frozen");
    // Channels of RabbitMQ 3.10 may hang for as long as a node does not answer.
    if !is_old {
        load.goes_on("publishing while a node does not answer", 500)
            .await;
    }
    // Longer than its net tick: for the others it is gone.
    tokio::time::sleep(Duration::from_secs(8)).await;
    cluster.thaw(frozen).expect("it goes on");
    load.goes_on("publishing with all nodes", 500).await;
    attack.end().await;
}

/// One node of three is left: it confirms nothing, and all goes on when a second one is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_minority_confirms_nothing_and_the_others_bring_back_everything() {
    let _alone = ALONE.lock().await;
    let mut attack = Attack::start().await;
    let (cluster, load) = (&mut attack.cluster, &attack.load);
    let killed = [0, 1];
    for node in killed {
        cluster.kill9(node);
    }
    // What was under way when they died may still be confirmed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let alone = load.count();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(load.count(), alone, "a minority confirms nothing");
    for node in killed {
        cluster.restart(node).expect("it comes back");
    }
    load.goes_on("publishing with all nodes", 500).await;
    attack.end().await;
}

/// A classic queue is on one node. What is to go there, and who receives from it, waits until that is back, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_dead_letter_waits_for_the_node_of_its_queue() {
    let _alone = ALONE.lock().await;
    let mut cluster = RabbitMqCluster::start(3).expect("it starts");
    let amqp = connect(&url(&cluster)).await;
    let queue = unique("queue");
    let wanted = Topology::new().queue(Queue::new(queue.clone()));
    amqp.declare(&wanted).await.expect("declared");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let dead = dead_letter_queue(&queue);
    let node = leader(&cluster, 0, &dead);
    // Another classic queue of that node, whose consumer has its connection elsewhere: the broker ends its subscription.
    let elsewhere = cluster.url_of((node + 1) % 3);
    let (there, consumer) = (
        connect(&cluster.url_of(node)).await,
        connect(&elsewhere).await,
    );
    let classic = unique("classic");
    let wanted = Topology::new().queue(Queue::new(classic.clone()));
    for amqp in [&there, &consumer] {
        amqp.declare(&wanted).await.expect("declared");
    }
    there.close().await;
    assert_eq!(leader(&cluster, 0, &classic), node);
    let mut of_classic = subscribe(&consumer, &classic, 1).await;
    publish_at_last(&amqp, to_queue(&queue, "1")).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    cluster.kill9(node);
    tokio::time::sleep(Duration::from_secs(8)).await;
    versions::a_queue_that_is_away_is_asked_for_as_the_guide_says(&elsewhere, &dead).await;
    // Delivered before and stale, or again since.
    let mut delivery = next(&mut deliveries).await;
    while delivery.is_stale() {
        delivery = next(&mut deliveries).await;
    }
    let attempt = attempt("no");
    let mut settling = tokio::spawn(delivery.settle(Settlement::DeadLetter { attempt }));
    let early = tokio::time::timeout(Duration::from_secs(3), &mut settling).await;
    assert!(early.is_err(), "{early:?}");
    cluster.restart(node).expect("it comes back");
    let settled = within("the letter", settling).await.expect("no panic");
    settled.expect("settled");
    let access = amqp.dead_letter_access().expect("it has one");
    assert_eq!(access.count(&dead).await.expect("it counts"), 1);

    publish_at_last(&consumer, to_queue(&classic, "2")).await;
    assert_eq!(id(&next(&mut of_classic).await), "2");
}

/// The server ends a subscription whose delivery is not settled in time: the delivery is stale and comes again, and the
/// subscription goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_consumer_time_out_is_survived() {
    let _alone = ALONE.lock().await;
    // How often it looks for them is no setting of its configuration file.
    const FAST: &str = "application:set_env(rabbit, consumer_timeout, 1000),
        application:set_env(rabbit, channel_tick_interval, 1000).";
    let server = RabbitMq::start().expect("it starts");
    server.ctl(&["eval", FAST]).expect("it is set");
    for queues in ["quorum", "classic"] {
        let url = format!("{}/?queues={queues}", server.url());
        let (amqp, other) = (connect(&url).await, connect(&url).await);
        let group = Group::new(unique("group"), NonZeroU16::MIN);
        let (queue, topic) = (unique("queue"), unique("topic"));
        let wanted = Topology::new()
            .queue(Queue::new(queue.clone()).topic(topic.clone()))
            .group(group.clone().topic(topic.clone()));
        amqp.declare(&wanted).await.expect("declared");
        let mut deliveries = subscribe(&amqp, &queue, 1).await;
        let mut partition = ordered(&amqp, &group.partition(0)).await;
        let mut waiting = ordered(&other, &group.partition(0)).await;
        let messages = (0..4).map(|number| keyed(&topic, 0, number)).collect();
        publish_all(&amqp, messages).await;
        let (slow, slow_ordered) = (next(&mut deliveries).await, next(&mut partition).await);
        within("the end of the subscriptions", async {
            while !slow.is_stale() || !slow_ordered.is_stale() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        for stale in [slow, slow_ordered] {
            let error = stale
                .settle(Settlement::Ack)
                .await
                .expect_err("it is stale");
            assert!(error.is_temporary(), "{error}");
        }
        for number in 0..4 {
            let delivery = next(&mut deliveries).await;
            assert_eq!(id(&delivery), format!("0/{number}"), "{queues}");
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
        // One of the two has it, in order.
        let mut ledger = Ledger::default();
        while ledger.count < 4 {
            let delivery = tokio::select! {
                delivery = next(&mut partition) => delivery,
                delivery = next(&mut waiting) => delivery,
            };
            ledger.handle(&id(&delivery));
            if let Err(error) = delivery.settle(Settlement::Ack).await {
                assert!(error.is_temporary(), "{error}");
            }
        }
    }
}
