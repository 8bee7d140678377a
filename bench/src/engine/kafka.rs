//! librdkafka's own producer and consumer, with the settings of `tidings-kafka`.

use std::{
    hint::black_box,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
    message::{DeliveryResult, Header, Headers, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};

use super::{
    Load,
    turn::{CONTENT_TYPE, CORRELATION, Count, Message, Moment, NAME, SOURCE, TRACEPARENT, Took},
};

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(120);

const COMMIT_EVERY: Duration = Duration::from_secs(1);

const READING_HEADERS: &str = "raw client with headers";

/// Who stands beside the toolkit. Whoever has to know a message by its id reads its headers, of which librdkafka makes objects
/// then; the other one looks at bodies only.
pub(super) const PEERS: [&str; 2] = ["raw client", READING_HEADERS];

pub(super) struct Raw {
    config: ClientConfig,
    load: Load,
}

/// How many are not confirmed yet, and what went wrong.
#[derive(Default)]
struct Open {
    state: Mutex<(usize, Option<KafkaError>)>,
    changed: Condvar,
}

struct Reports(Arc<Open>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut state = self.0.lock();
        state.0 -= 1;
        if let Err((error, _)) = result {
            state.1 = Some(error.clone());
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Open {
    fn lock(&self) -> std::sync::MutexGuard<'_, (usize, Option<KafkaError>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no more than `count` are open.
    fn wait(&self, count: usize) -> anyhow::Result<()> {
        let mut state = self.lock();
        while state.0 > count {
            let waited = self.changed.wait_timeout(state, STILL_MAX);
            let (now, late) = waited.unwrap_or_else(PoisonError::into_inner);
            ensure!(!late.timed_out(), "{} are not confirmed", now.0);
            state = now;
        }
        match state.1.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

impl Raw {
    pub(super) fn new(port: u16, load: Load) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", format!("127.0.0.1:{port}"))
            .set("allow.auto.create.topics", "false")
            .set("socket.nagle.disable", "true");
        Self { config, load }
    }

    pub(super) async fn publish(
        &self,
        topic: &str,
        messages: Vec<Message>,
    ) -> anyhow::Result<Took> {
        let (config, topic, load) = (self.config.clone(), topic.to_owned(), self.load);
        tokio::task::spawn_blocking(move || publish(config, &topic, messages, load)).await?
    }

    pub(super) async fn receive(
        &self,
        peer: &str,
        topic: &str,
        group: &str,
        count: &Arc<Count>,
    ) -> anyhow::Result<Took> {
        let (config, topic, group) = (
            self.config.clone(),
            topic.to_owned(),
            format!("{}-{group}", peer.replace(' ', "-")),
        );
        let count = Arc::clone(count);
        let reads_headers = peer == READING_HEADERS;
        let receiving = move || receive(config, &topic, &group, reads_headers, &count);
        tokio::task::spawn_blocking(receiving).await?
    }
}

fn publish(
    mut config: ClientConfig,
    topic: &str,
    messages: Vec<Message>,
    load: Load,
) -> anyhow::Result<Took> {
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "262144");
    let open = Arc::new(Open::default());
    let producer: ThreadedProducer<Reports> =
        config.create_with_context(Reports(Arc::clone(&open)))?;
    // The toolkit has been connected for long, too.
    producer
        .client()
        .fetch_metadata(Some(topic), STILL_MAX)
        .context("no metadata")?;
    let most = load.batch * load.window;
    let count = messages.len() as u64;
    let began = Moment::now();
    for batch in messages.chunks(load.batch) {
        open.wait(most - batch.len())?;
        open.lock().0 += batch.len();
        for message in batch {
            let record = BaseRecord::to(topic)
                .key(message.key.as_bytes())
                .payload(&*message.body)
                .headers(headers(message));
            if let Err((error, _)) = producer.send(record) {
                bail!("not sent: {error}");
            }
        }
    }
    open.wait(0)?;
    Ok(began.until(Moment::now(), count))
}

fn headers(message: &Message) -> OwnedHeaders {
    let time = message.time.to_string();
    let all = [
        ("ce_specversion", "1.0"),
        ("ce_id", &*message.id),
        ("ce_type", NAME),
        ("ce_source", SOURCE),
        ("ce_time", &*time),
        ("ce_partitionkey", &*message.key),
        ("ce_correlationid", CORRELATION),
        ("ce_traceparent", TRACEPARENT),
        ("content-type", CONTENT_TYPE),
    ];
    let headers = OwnedHeaders::new_with_capacity(all.len());
    all.into_iter().fold(headers, |headers, (key, value)| {
        let value = Some(value);
        headers.insert(Header { key, value })
    })
}

fn receive(
    mut config: ClientConfig,
    topic: &str,
    group: &str,
    reads_headers: bool,
    count: &Count,
) -> anyhow::Result<Took> {
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "250")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "16384");
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let (mut last_came, mut committed) = (Instant::now(), Instant::now());
    while !count.is_over() {
        match consumer.poll(Duration::from_millis(50)) {
            Some(Ok(record)) => {
                if reads_headers {
                    let headers = record.headers().into_iter().flat_map(Headers::iter);
                    for header in headers {
                        let value = std::str::from_utf8(header.value.unwrap_or_default());
                        black_box((header.key, value?));
                    }
                }
                count.see(record.payload().unwrap_or_default())?;
                last_came = Instant::now();
            }
            Some(Err(error))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) =>
            {
                bail!("Kafka is gone: {error}");
            }
            Some(Err(_)) | None => {
                ensure!(last_came.elapsed() < STILL_MAX, "nothing comes any more");
            }
        }
        if committed.elapsed() >= COMMIT_EVERY {
            consumer.commit_consumer_state(CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    consumer.commit_consumer_state(CommitMode::Sync)?;
    count.took()
}
