//! What the transport does when connections break, brokers restart and queues vanish.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tidings_amqp::Amqp;
use tidings_core::{
    Deliveries, Outgoing, PublishErrorKind, Queue, Settlement, Topology, Transport,
    dead_letter_queue,
};
use tidings_wire::{BasicProperties, ShortStr, Table, Value};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    DEADLINE, attempt, connect, id, next, raw::Raw, subscribe, to_queue, to_topic, topology,
    unique, within,
};

/// A wire between client and broker that can be cut.
pub(crate) struct Wire {
    pub(crate) url: String,
    cut: CancellationToken,
    tasks: JoinSet<()>,
    listen: std::net::SocketAddr,
    broker: String,
}

impl Wire {
    pub(crate) async fn to(url: &str) -> Self {
        let (login, place) = url.split_once('@').expect("a URL with a user");
        let (broker, rest) = place.split_once('/').unwrap_or((place, ""));
        let broker = broker.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listen = listener.local_addr().expect("bound");
        let mut wire = Self {
            url: format!("{login}@{listen}/{rest}"),
            cut: CancellationToken::new(),
            tasks: JoinSet::new(),
            listen,
            broker,
        };
        wire.serve(listener);
        wire
    }

    fn serve(&mut self, listener: TcpListener) {
        let (cut, broker) = (self.cut.clone(), self.broker.clone());
        self.tasks.spawn(async move {
            let mut pairs = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = cut.cancelled() => return,
                };
                let (mut client, _) = accepted.expect("accepted");
                let broker = broker.clone();
                pairs.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(broker).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
    }

    /// Every connection breaks, and no new one is accepted.
    pub(crate) async fn cut(&mut self) {
        self.cut.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// It is there again, at the same address.
    pub(crate) async fn mend(&mut self) {
        self.cut = CancellationToken::new();
        let listener = within("the port", async {
            loop {
                match TcpListener::bind(self.listen).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let listener = listener.await;
        self.serve(listener);
    }
}

/// Publishes until it is confirmed, as the relay does.
pub(crate) async fn publish_at_last(amqp: &Amqp, message: Outgoing) {
    let trying = async {
        loop {
            let outcome = amqp.publish(vec![message.clone()]).await.pop();
            match outcome.expect("one outcome") {
                Ok(()) => return,
                Err(error) => {
                    assert_eq!(error.kind(), PublishErrorKind::Unavailable, "{error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    within("a confirm", trying).await;
}

pub(crate) async fn a_cut_connection_is_mended_and_nothing_is_lost(url: String) {
    let mut wire = Wire::to(&url).await;
    let amqp = connect(&wire.url).await;
    let (queue, topic) = (unique("queue"), unique("topic"));
    amqp.declare(&topology(&queue, &[&topic]))
        .await
        .expect("declared");
    publish_at_last(&amqp, to_topic(&topic, "1")).await;
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    let first = next(&mut deliveries).await;

    wire.cut().await;
    within("the loss to be noticed", async {
        while amqp.is_connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let started = Instant::now();
    let outcomes = amqp
        .publish(vec![to_topic(&topic, "2"), to_topic(&topic, "3")])
        .await;
    assert!(started.elapsed() < Duration::from_secs(1), "at once");
    for outcome in outcomes {
        assert_eq!(
            outcome.map_err(|it| it.kind()),
            Err(PublishErrorKind::Unavailable)
        );
    }

    wire.mend().await;
    let again = next(&mut deliveries).await;
    assert_eq!(id(&again), "1");
    assert!(again.redelivered);
    let settling = first.settle(Settlement::Ack).await;
    let error = settling.expect_err("its connection is gone");
    assert!(error.is_temporary(), "{error}");
    again.settle(Settlement::Ack).await.expect("settled");
    publish_at_last(&amqp, to_topic(&topic, "2")).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(id(&delivery), "2");
    delivery.settle(Settlement::Ack).await.expect("settled");
}

pub(crate) async fn who_waits_for_a_confirm_when_the_connection_breaks_is_told(url: String) {
    let mut wire = Wire::to(&url).await;
    let amqp = connect(&wire.url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    // More than the window, so that some are not even sent.
    let batch: Vec<_> = (0..50_000)
        .map(|it| to_queue(&queue, it.to_string()))
        .collect();
    let publishing = amqp.publish(batch);
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        wire.cut().await;
    };
    let (outcomes, ()) = within("outcomes", async { tokio::join!(publishing, cutting) }).await;
    assert_eq!(outcomes.len(), 50_000);
    let failed = outcomes.iter().filter_map(|it| it.as_ref().err());
    let kinds: HashSet<_> = failed.map(|it| format!("{:?}", it.kind())).collect();
    assert_eq!(kinds, HashSet::from(["Unavailable".to_owned()]));
}

pub(crate) async fn a_broker_that_is_not_there_yet_is_waited_for(url: String) {
    let mut wire = Wire::to(&url).await;
    wire.cut().await;
    let url = wire.url.clone();
    let connecting = tokio::spawn(async move { Amqp::connect(&url).await });
    let lazy = Amqp::builder(&wire.url)
        .expect("a URL")
        .name("lazy")
        .start();
    let outcome = lazy
        .publish(vec![to_queue("q", "1")])
        .await
        .pop()
        .expect("one");
    assert_eq!(
        outcome.map_err(|it| it.kind()),
        Err(PublishErrorKind::Unavailable)
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!connecting.is_finished());
    wire.mend().await;
    let amqp = within("a connection", connecting).await.expect("no panic");
    assert!(amqp.expect("connected").is_connected());
    let queue = unique("queue");
    within("the declaration", lazy.declare(&topology(&queue, &[])))
        .await
        .expect("declared");
}

pub(crate) async fn a_deleted_queue_is_declared_again_and_subscribed(url: String) {
    let amqp = connect(&url).await;
    let (queue, topic) = (unique("queue"), unique("topic"));
    amqp.declare(&topology(&queue, &[&topic]))
        .await
        .expect("declared");
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    let mut raw = Raw::connect(&url).await;
    raw.delete_queue(&queue).await;
    raw.delete_queue(&dead_letter_queue(&queue)).await;
    let arriving = async {
        loop {
            let outcomes = amqp.publish(vec![to_topic(&topic, "1")]).await;
            if outcomes.iter().all(Result::is_ok) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the queue", arriving).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(id(&delivery), "1");

    // The dead letters vanish between a failure and its copy.
    raw.delete_queue(&dead_letter_queue(&queue)).await;
    let attempt = attempt("for good");
    let settling = delivery.settle(Settlement::DeadLetter { attempt });
    within("the copy", settling).await.expect("settled");
    let mut dead = subscribe(&amqp, &dead_letter_queue(&queue), 1).await;
    assert_eq!(id(&next(&mut dead).await), "1");
}

pub(crate) async fn a_deleted_topic_is_declared_again(url: String) {
    let amqp = connect(&url).await;
    let (queue, topic) = (unique("queue"), unique("topic"));
    amqp.declare(&topology(&queue, &[&topic]))
        .await
        .expect("declared");
    let mut raw = Raw::connect(&url).await;
    raw.delete_exchange(&topic).await;
    // The first finds out; with the topic its binding comes back.
    publish_at_last(&amqp, to_topic(&topic, "1")).await;
    publish_at_last(&amqp, to_queue(&queue, "2")).await;
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    assert_eq!(id(&next(&mut deliveries).await), "1");
    assert_eq!(id(&next(&mut deliveries).await), "2");
}

/// While nobody is connected somebody changes a queue and a delay so that they cannot be declared any
/// more, and deletes another queue.
pub(crate) async fn what_cannot_be_declared_again_stops_nothing_else(url: String) {
    // Nobody else uses this step.
    const CHANGED: &str = "tidings.delay.600000";
    let delay = Duration::from_secs(600);
    let mut wire = Wire::to(&url).await;
    let amqp = connect(&wire.url).await;
    let (queue, deleted, topic) = (unique("queue"), unique("deleted"), unique("topic"));
    let changed = unique("a-changed-one-comes-first");
    let wanted = Topology::new()
        .queue(Queue::new(changed.clone()))
        .queue(Queue::new(queue.clone()).delay(delay))
        .queue(Queue::new(deleted.clone()).topic(topic.clone()));
    amqp.declare(&wanted).await.expect("declared");
    let mut raw = Raw::connect(&url).await;
    wire.cut().await;
    raw.delete_exchange(CHANGED).await;
    raw.delete_queue(CHANGED).await;
    raw.declare_queue(CHANGED, &[]).await;
    raw.delete_queue(&changed).await;
    raw.declare_queue(&changed, &[]).await;
    raw.delete_queue(&deleted).await;
    wire.mend().await;

    publish_at_last(&amqp, to_topic(&topic, "1")).await;
    assert_eq!(raw.count(&deleted).await, Some(1), "it is there again");
    publish_at_last(&amqp, to_queue(&queue, "1")).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let attempt = attempt("not yet");
    let retry = Settlement::Retry { delay, attempt };
    let settling = tokio::spawn(next(&mut deliveries).await.settle(retry));
    // It has nowhere to wait, and nobody else notices.
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        let outcomes = amqp.publish(vec![to_topic(&topic, "2")]).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    assert!(!settling.is_finished());
    raw.delete_queue(CHANGED).await;
    let settled = within("the copy", settling).await.expect("no panic");
    settled.expect("settled");
    raw.delete_exchange(CHANGED).await;
    raw.delete_queue(CHANGED).await;
}

pub(crate) async fn a_foreign_message_is_copied_as_it_came(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let headers: Table = [
        (ShortStr::from_static("number"), Value::I32(7)),
        (ShortStr::from_static("text"), Value::from("t")),
        (
            ShortStr::from_static("CC"),
            Value::Array([Value::from("cc")].into_iter().collect()),
        ),
    ]
    .into_iter()
    .collect();
    let properties = BasicProperties {
        headers: Some(headers),
        expiration: Some(ShortStr::from_static("60000")),
        user_id: Some(ShortStr::from_static("guest")),
        ..BasicProperties::default()
    };
    let mut raw = Raw::connect(&url).await;
    raw.publish("", &queue, &properties, b"not JSON").await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let delay = Duration::from_millis(50);
    for failures in 0..2 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(
            (&delivery.envelope.id, delivery.failures),
            (&None, failures)
        );
        assert_eq!(delivery.envelope.body, "not JSON");
        assert_eq!(delivery.envelope.header("text"), Some("t"));
        let attempt = attempt("no");
        let settlement = match failures {
            0 => Settlement::Retry { delay, attempt },
            _ => Settlement::DeadLetter { attempt },
        };
        delivery.settle(settlement).await.expect("settled");
    }
    let mut dead = subscribe(&amqp, &dead_letter_queue(&queue), 1).await;
    let delivery = next(&mut dead).await;
    assert_eq!((delivery.envelope.id.clone(), delivery.failures), (None, 2));
    delivery.settle(Settlement::Ack).await.expect("settled");
}

/// How long a message waits that is tried again.
const DELAY: Duration = Duration::from_millis(100);

/// A broker that can be stopped and started again on its data.
pub(crate) trait Server {
    fn url(&self) -> String;
    async fn stop(&mut self);
    async fn start(&mut self);
}

/// Some publish at once, one receives and has every tenth tried again later; meanwhile the broker
/// goes away twice.
pub(crate) async fn a_restart_of_the_broker_loses_nothing_and_needs_nobody(
    mut server: impl Server,
) {
    const COUNT: usize = 3_000;
    const PUBLISHERS: usize = 16;
    let amqp = Arc::new(connect(&server.url()).await);
    let (queue, topic) = (unique("queue"), unique("topic"));
    let wanted = Queue::new(queue.clone()).topic(topic.clone()).delay(DELAY);
    let wanted = Topology::new().queue(wanted);
    amqp.declare(&wanted).await.expect("declared");
    let deliveries = subscribe(&amqp, &queue, 50).await;
    // RabbitMQ writes down the names of new quorum queues half a second late (decision 0013).
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (progress, mut at) = watch::channel(0);
    let publishing = tokio::spawn({
        let amqp = amqp.clone();
        async move {
            let publish = async |message: usize| {
                publish_at_last(&amqp, to_topic(&topic, message.to_string())).await;
                progress.send_modify(|at| *at += 1);
            };
            let messages = stream::iter(0..COUNT);
            messages.for_each_concurrent(PUBLISHERS, publish).await;
        }
    });
    let receiving = tokio::spawn(receive(deliveries, COUNT));
    // Here and not in a task, because the thread that starts a server must stay.
    for share in [3, 2] {
        within("progress", at.wait_for(|at| *at > COUNT / share))
            .await
            .expect("it publishes");
        server.stop().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.start().await;
    }
    within("all confirms", publishing).await.expect("published");
    receiving.await.expect("received");
    amqp.close().await;
}

/// Takes what comes until every message was there, or none came for long.
async fn receive(mut deliveries: Deliveries, count: usize) {
    let mut missing: BTreeSet<_> = (0..count).map(|id| id.to_string()).collect();
    while !missing.is_empty() {
        let Ok(delivery) = timeout(DEADLINE, deliveries.next()).await else {
            panic!("{} never came: {missing:?}", missing.len());
        };
        let delivery = delivery.expect("the stream goes on").expect("no error");
        let id = id(&delivery);
        let again = delivery.failures == 0 && id.ends_with('7');
        let settlement = if again {
            let attempt = attempt("once");
            Settlement::Retry {
                delay: DELAY,
                attempt,
            }
        } else {
            Settlement::Ack
        };
        match delivery.settle(settlement).await {
            Ok(()) if !again => drop(missing.remove(&id)),
            Ok(()) => {}
            Err(error) => assert!(error.is_temporary(), "{error}"),
        }
    }
}
