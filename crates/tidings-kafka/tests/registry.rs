//! Bodies by the schemas of a registry, on a real Kafka and with a real registry; what Confluent's own clients write and
//! read is what counts.

use std::{
    num::NonZeroU16,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use apache_avro::AvroSchema;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidings::{BodySchema, Event, Message};
use tidings_core::{
    Deliveries, Delivery, Destination, Envelope, Outgoing, PublishError, PublishErrorKind, Queue,
    Settlement, Subscription, Topology, Transport, Unrouted, dead_letter_queue,
};
use tidings_kafka::Kafka;
use tidings_registry::{Language, Registry, Schema, wire};
use tidings_testing::{
    foreign::confluent,
    servers::{SchemaRegistry, kafka_url, registry_url},
};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);

const SETTLED: &str = r#"{"title": "PaymentSettled", "type": "object", "additionalProperties": false,
    "properties": {"orderId": {"type": "string"}, "cents": {"type": "integer"}}, "required": ["orderId", "cents"]}"#;

/// A topic with a queue that subscribes to it, of one test.
struct Place {
    topic: String,
    queue: String,
    registry: String,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(registry: String) -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        Self {
            topic: format!("settled-{unique}"),
            queue: format!("ledger-{unique}.payment-settled.v1"),
            registry,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn subject(&self) -> String {
        format!("{}-value", self.topic)
    }

    async fn connect(&self, options: &str) -> Kafka {
        let url = format!(
            "{}?partitions=1&session_timeout=4000&schema_registry={}&{options}",
            kafka_url(),
            self.registry
        );
        let kafka = Kafka::connect(&url).await.expect("it connects");
        let queue = Queue::new(self.queue.clone()).topic(self.topic.clone());
        let declared = kafka.declare(&Topology::new().queue(queue)).await;
        declared.expect("it declares");
        kafka
    }

    fn event(&self, body: &str) -> Outgoing {
        Outgoing {
            destination: Destination::Topic(self.topic.clone().into()),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("payment-settled.v1", body.to_owned()),
        }
    }

    fn to_queue(&self, body: impl Into<bytes::Bytes>) -> Outgoing {
        Outgoing {
            destination: Destination::Queue(self.queue.clone().into()),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("payment-settled.v1", body),
        }
    }

    /// What `peer.py` printed, given these lines.
    fn peer(&self, verb: &str, format: &str, last: &str, lines: &[&str]) -> Vec<String> {
        let kafka = kafka_url();
        let bootstrap = kafka.trim_start_matches("kafka://");
        let mut command = confluent(&[verb, format, bootstrap, &self.registry, &self.topic, last]);
        let input = self.file("lines", &(lines.join("\n")));
        let input = std::fs::File::open(input).expect("what was written");
        let output = command.stdin(Stdio::from(input)).output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let printed = String::from_utf8(output.stdout).expect("text");
        printed.lines().map(str::to_owned).collect()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("it is written");
        path
    }

    async fn register(&self, schema: &str) -> u32 {
        self.register_as(Language::Json, schema).await
    }

    async fn register_as(&self, language: Language, schema: &str) -> u32 {
        let registry = Registry::new(&self.registry).expect("a URL");
        let schema = Schema::new(language, schema);
        let id = registry.register(&self.subject(), &schema).await;
        id.expect("it is registered")
    }
}

async fn publish(kafka: &Kafka, message: Outgoing) -> Result<(), PublishError> {
    kafka
        .publish(vec![message])
        .await
        .pop()
        .expect("an outcome")
}

async fn subscribe(kafka: &Kafka, queue: &str) -> Deliveries {
    let subscription = Subscription::new(queue.to_owned()).prefetch(NonZeroU16::MIN);
    kafka.subscribe(subscription).await.expect("it subscribes")
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        other => panic!("no delivery: {other:?}"),
    }
}

async fn take(deliveries: &mut Deliveries) -> Envelope {
    let delivery = next(deliveries).await;
    let envelope = Arc::clone(&delivery.envelope);
    let settled = timeout(SOON, delivery.settle(Settlement::Ack)).await;
    settled.expect("an answer").expect("it is settled");
    Envelope::clone(&envelope)
}

/// The next dead letter of a queue, as it is, with what stands before its body; and why it is one.
async fn dead_letter(queue: &str) -> (Envelope, String) {
    let kafka = Kafka::connect(&kafka_url()).await.expect("it connects");
    let mut letters = subscribe(&kafka, &dead_letter_queue(queue)).await;
    let letter = next(&mut letters).await;
    let reason = letter.history.last().map(|it| it.reason.clone());
    let envelope = Envelope::clone(&letter.envelope);
    letter.settle(Settlement::Ack).await.expect("it is settled");
    kafka.close().await;
    (envelope, reason.unwrap_or_default())
}

fn value(envelope: &Envelope) -> Value {
    serde_json::from_slice(&envelope.body).expect("JSON")
}

/// What an application does with an event in another format than JSON: the body as the toolkit writes it.
fn outgoing<M: Message>(place: &Place, message: &M) -> Outgoing {
    let mut outgoing = Outgoing::new(message).expect("it is written");
    outgoing.destination = Destination::Topic(place.topic.clone().into());
    outgoing
}

fn of_envelope<M: Message>(envelope: &Envelope) -> M {
    let read = M::from_body(&envelope.body, &envelope.content_type);
    read.unwrap_or_else(|error| panic!("{}: {error}", envelope.content_type))
}

/// The money was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema, Event)]
#[serde(rename_all = "camelCase")]
#[event(name = "payment-settled.v1", format = "avro")]
struct PaymentSettled {
    order_id: String,
    cents: i64,
}

/// The same, of a service that reads less.
mod reader {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, AvroSchema, Event)]
    #[serde(rename_all = "camelCase")]
    #[event(name = "payment-settled.v1", format = "avro")]
    pub(super) struct PaymentSettled {
        pub(super) cents: f64,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka, Apicurio and Python"]
async fn an_event_in_avro_is_written_by_its_own_schema_and_read_by_any() {
    let place = Place::new(registry_url());
    let kafka = place.connect("").await;
    let mut deliveries = subscribe(&kafka, &place.queue).await;
    let ours = PaymentSettled {
        order_id: "o-1".to_owned(),
        cents: 1990,
    };
    let event = outgoing(&place, &ours);

    // A schema that is not there is told with what to do; a newer one under the subject is no substitute.
    let error = publish(&kafka, event.clone()).await.expect_err("no schema");
    for part in ["register the Avro schema", &place.subject(), "(TDG-4018)"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let Some(BodySchema::Avro(text)) = PaymentSettled::body_schema() else {
        panic!("it has a schema")
    };
    let id = place.register_as(Language::Avro, &text).await;
    let newer = text.replace(
        r#"{"name":"cents","type":"long"}"#,
        r#"{"name":"cents","type":"long"},{"name":"note","type":"string","default":""}"#,
    );
    assert_ne!(newer, *text, "a field more");
    let newer_id = place.register_as(Language::Avro, &newer).await;
    assert_ne!(newer_id, id);
    publish(&kafka, event.clone())
        .await
        .expect("it is published");

    let read = place.peer("read", "avro", "1", &[]);
    let read: Value = serde_json::from_str(&read[0]).expect("JSON");
    assert_eq!(read, serde_json::json!({"orderId": "o-1", "cents": 1990}));
    let received = take(&mut deliveries).await;
    assert_eq!(of_envelope::<PaymentSettled>(&received), ours);
    assert_eq!(received, event.envelope, "it is the body that was sent");

    // A foreign program writes by the newer schema, and says nothing but its id.
    let theirs = r#"{"orderId": "o-2", "cents": 5, "note": "by hand"}"#;
    let schema = place.file("schema", &newer);
    place.peer("write", "avro", &schema.to_string_lossy(), &[theirs]);
    let received = take(&mut deliveries).await;
    assert_eq!(received.content_type, "application/avro");
    let cents = of_envelope::<reader::PaymentSettled>(&received).cents;
    assert_eq!(cents, 5.0);
    assert_eq!(of_envelope::<PaymentSettled>(&received).order_id, "o-2");
    kafka.close().await;
}

/// The money was taken.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(
    name = "payment-settled.v1",
    format = "protobuf",
    proto_file = "proto/payments.proto",
    proto = "payments.PaymentSettled"
)]
struct Settled {
    #[prost(string, tag = "1")]
    order_id: String,
    #[prost(int64, tag = "2")]
    cents: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka, Apicurio and Python"]
async fn an_event_in_protobuf_says_which_message_of_its_file_it_is() {
    let place = Place::new(registry_url());
    let kafka = place.connect("").await;
    let mut deliveries = subscribe(&kafka, &place.queue).await;
    let ours = Settled {
        order_id: "o-1".to_owned(),
        cents: -5,
    };
    let event = outgoing(&place, &ours);
    let error = publish(&kafka, event.clone()).await.expect_err("no schema");
    assert!(
        error.to_string().contains("register the `.proto` file"),
        "{error}"
    );
    let file = include_str!("proto/payments.proto");
    place.register_as(Language::Protobuf, file).await;
    publish(&kafka, event.clone())
        .await
        .expect("it is published");

    let read = place.peer("read", "protobuf", "1#PaymentSettled", &[]);
    let read: Value = serde_json::from_str(&read[0]).expect("JSON");
    assert_eq!(read, serde_json::json!({"orderId": "o-1", "cents": "-5"}));
    let received = take(&mut deliveries).await;
    assert_eq!(received, event.envelope, "it is the body that was sent");

    let schema = place.file("schema", file);
    let schema = format!("{}#PaymentSettled", schema.display());
    let theirs = r#"{"orderId": "o-2", "cents": "7"}"#;
    place.peer("write", "protobuf", &schema, &[theirs]);
    let received = take(&mut deliveries).await;
    assert_eq!(received.content_type, "application/protobuf");
    let settled = of_envelope::<Settled>(&received);
    assert_eq!((&*settled.order_id, settled.cents), ("o-2", 7));

    // Whoever says not which message it is, or one that is not in the file, is told.
    for (content_type, part) in [
        ("application/protobuf", "proto=package.Message"),
        ("application/protobuf; proto=payments.Other", "no message"),
        ("image/png", "in JSON, Avro or Protocol Buffers"),
    ] {
        let mut other = event.clone();
        other.envelope.content_type = content_type.into();
        let error = publish(&kafka, other).await.expect_err(content_type);
        assert!(error.to_string().contains(part), "{error}");
    }
    kafka.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka, Apicurio and Python"]
async fn confluents_clients_read_what_is_written_and_write_what_is_read() {
    let place = Place::new(registry_url());
    let id = place.register(SETTLED).await;
    let kafka = place.connect("").await;
    let mut deliveries = subscribe(&kafka, &place.queue).await;

    let ours = r#"{"orderId": "o-1", "cents": 1990}"#;
    publish(&kafka, place.event(ours))
        .await
        .expect("it is published");
    assert_eq!(place.peer("read", "json", "1", &[]), [ours]);
    let received = take(&mut deliveries).await;
    assert_eq!(received, place.event(ours).envelope);

    let theirs = r#"{"orderId": "o-2", "cents": 5}"#;
    let schema = place.file("schema", SETTLED);
    place.peer("write", "json", &schema.to_string_lossy(), &[theirs]);
    let received = take(&mut deliveries).await;
    assert_eq!(
        value(&received),
        serde_json::from_str::<Value>(theirs).expect("JSON")
    );
    assert_eq!(
        (&*received.name, &*received.content_type),
        ("", "application/json")
    );

    // On the wire both are the same, whoever looks.
    let plain = Kafka::connect(&kafka_url()).await.expect("it connects");
    let other = format!("{}-seen", place.queue);
    let topology = Topology::new().queue(Queue::new(other.clone()).topic(place.topic.clone()));
    plain.declare(&topology).await.expect("it declares");
    publish(&kafka, place.event(ours))
        .await
        .expect("it is published");
    let seen = take(&mut subscribe(&plain, &other).await).await;
    assert_eq!(seen.body, wire::frame(id, ours.as_bytes()));
    assert_eq!(seen.body[..5], [&[0][..], &id.to_be_bytes()].concat());
    for kafka in [kafka, plain] {
        kafka.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and Apicurio"]
async fn what_the_registry_cannot_say_now_waits_and_nothing_is_lost() {
    let mut registry = SchemaRegistry::prepare().expect("a registry");
    let place = Place::new(registry.url());
    let kafka = place.connect("").await;
    let event = || place.event(r#"{"orderId": "o-1", "cents": 1}"#);

    // Nobody answers; what is behind it in the topic waits as well.
    let outcomes = kafka.publish(vec![event(), event()]).await;
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|it| it.as_ref().err().map(PublishError::kind))
        .collect();
    assert_eq!(kinds, [Some(PublishErrorKind::Unconfirmed); 2]);

    // It answers, and has no such schema: what to do is told, and the message can be sent when it is done.
    registry.restart().expect("it starts");
    let refusal = until(async || {
        publish(&kafka, event())
            .await
            .err()
            .filter(|it| it.kind() == PublishErrorKind::Refused)
    })
    .await;
    let said = refusal.to_string();
    for part in [
        &*place.subject(),
        "register the JSON Schema of `payment-settled.v1`",
        "(TDG-4018)",
    ] {
        assert!(said.contains(part), "{said}");
    }
    // Another server is no registry that has forgotten: nothing is given up for it.
    let elsewhere = registry.url().replace("/apis/ccompat/v7", "/elsewhere");
    let elsewhere = Registry::new(&elsewhere).expect("a URL");
    let error = elsewhere.schema(1).await.expect_err("it is none");
    assert!(
        !error.is_unknown() && error.to_string().contains("(TDG-4020)"),
        "{error}"
    );
    place.register(SETTLED).await;
    publish(&kafka, event()).await.expect("it is published");

    let by_message = place.connect("schema_subject=message").await;
    let schema = Schema::new(Language::Json, SETTLED);
    let known = Registry::new(&place.registry).expect("a URL");
    let id = known.register("payment-settled.v1", &schema).await;
    id.expect("it is registered");
    publish(&by_message, event())
        .await
        .expect("it is published");

    registry.stop().expect("it ends");
    // What could be written waits behind what cannot in its topic; what goes elsewhere does not.
    let mut begun = event();
    begun.envelope.name = "payment-begun.v1".into();
    let batch = vec![begun, event(), place.to_queue("{}")];
    let outcomes = by_message.publish(batch).await;
    let kinds = outcomes
        .iter()
        .map(|it| it.as_ref().map_err(PublishError::kind));
    let waits = Err(PublishErrorKind::Unconfirmed);
    assert_eq!(kinds.collect::<Vec<_>>(), [waits, waits, Ok(&())]);
    by_message.close().await;

    // Who has not asked before cannot read it while the registry is away, and gets it when it is back.
    let reader = place.connect("").await;
    let mut deliveries = subscribe(&reader, &place.queue).await;
    let first = tokio::spawn(async move { (take(&mut deliveries).await, deliveries) });
    // Who has asked goes on.
    publish(&kafka, event()).await.expect("it is published");
    assert!(!first.is_finished());
    registry.restart().expect("it starts");
    let (received, mut deliveries) = timeout(SOON, first)
        .await
        .expect("in time")
        .expect("no panic");
    // The command came by another log, and may come at any place among the events.
    let mut all = vec![received];
    while all.len() < 4 {
        all.push(take(&mut deliveries).await);
    }
    let (events, commands): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|it| *it == event().envelope);
    assert_eq!(events.len(), 3);
    assert_eq!(commands[0].body, "{}");
    reader.close().await;
    kafka.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and Apicurio"]
async fn what_cannot_be_read_becomes_a_dead_letter_that_says_why() {
    let place = Place::new(registry_url());
    let kafka = place.connect("").await;
    let plain = Kafka::connect(&kafka_url()).await.expect("it connects");
    let mut deliveries = subscribe(&kafka, &place.queue).await;
    let receiving = tokio::spawn(async move { (take(&mut deliveries).await, deliveries) });

    let registry = Registry::new(&place.registry).expect("a URL");
    let proto = Schema::new(
        Language::Protobuf,
        "syntax = \"proto3\"; message Settled { string order_id = 1; }",
    );
    let proto = registry
        .register(&format!("{}-protobuf", place.topic), &proto)
        .await;
    let proto = wire::frame(proto.expect("it is registered"), b"");
    let unknown = wire::frame(1_999_999_999, b"{}");
    for (body, parts) in [
        (unknown, ["schema 1999999999", "one registry", "(TDG-4019)"]),
        (
            proto,
            ["which message", "in Protocol Buffers", "(TDG-4019)"],
        ),
        (
            "{}".into(),
            ["does not begin", "without_schema=accept", "(TDG-4019)"],
        ),
    ] {
        let mut message = place.event("");
        message.envelope.body = body.clone();
        publish(&plain, message).await.expect("it is published");
        let (letter, reason) = dead_letter(&place.queue).await;
        assert_eq!(letter.body, body, "the letter is what was sent");
        for part in parts {
            assert!(reason.contains(part), "{reason}");
        }
    }

    // What is sent to the queue by name, as by a redrive, is taken with an id and without.
    let id = place.register(SETTLED).await;
    publish(&kafka, place.to_queue("{}"))
        .await
        .expect("it is published");
    let (received, mut deliveries) = timeout(SOON, receiving)
        .await
        .expect("in time")
        .expect("no panic");
    assert_eq!(received.body, "{}");
    let framed = wire::frame(id, b"{ }");
    publish(&kafka, place.to_queue(framed))
        .await
        .expect("it is published");
    assert_eq!(take(&mut deliveries).await.body, "{ }");
    kafka.close().await;

    // Whose senders do not all use the registry says so.
    let lenient = place.connect("without_schema=accept").await;
    let mut deliveries = subscribe(&lenient, &place.queue).await;
    publish(&plain, place.event("{\"bare\": 1}"))
        .await
        .expect("it is published");
    assert_eq!(take(&mut deliveries).await.body, "{\"bare\": 1}");
    lenient.close().await;
    plain.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and Apicurio"]
async fn a_topic_of_several_types_has_a_subject_for_each() {
    let place = Place::new(registry_url());
    let registry = Registry::new(&place.registry).expect("a URL");
    let schema = Schema::new(Language::Json, SETTLED);
    let subject = format!("{}-payment-settled.v1", place.topic);
    let id = registry
        .register(&subject, &schema)
        .await
        .expect("it is registered");
    let kafka = place.connect("schema_subject=topic-message").await;
    let mut deliveries = subscribe(&kafka, &place.queue).await;
    let body = "{\"orderId\": \"o\", \"cents\": 1}";
    publish(&kafka, place.event(body))
        .await
        .expect("it is published");
    assert_eq!(take(&mut deliveries).await.body, body);
    let version = registry.version(&subject).await.expect("it is there");
    assert_eq!(version.id, id);
    let mut other = place.event(body);
    other.envelope.name = "payment-refused.v1".into();
    let error = publish(&kafka, other)
        .await
        .expect_err("there is no schema");
    assert!(
        error
            .to_string()
            .contains(&format!("{}-payment-refused.v1", place.topic)),
        "{error}"
    );
    kafka.close().await;
}

/// Waits until this has a value.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(start.elapsed() < SOON, "it does not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
