//! A witness at Kafka, with librdkafka bare.
//!
//! What was published stands in its log, so nothing is taken out: a queue of dead letters is read from its beginning to
//! its end, and the newest events of a topic are its last records.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{Headers, OwnedMessage},
    producer::{BaseProducer, BaseRecord, Producer},
    types::RDKafkaErrorCode,
};
use tidings::{Queue, Topology, Transport};
use tidings_kafka::Kafka;

use super::{Found, SILENT_MAX};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How long to wait for a record before looking at the clock.
const POLL: Duration = Duration::from_millis(100);

/// Where each partition begins and ends, by its number.
type Ends = BTreeMap<i32, (i64, i64)>;

/// A connection of the supervisor's own.
pub(crate) struct Witness {
    config: ClientConfig,
    url: String,
    consumer: BaseConsumer,
}

impl Witness {
    pub(super) fn connect(port: u16) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", format!("127.0.0.1:{port}"))
            .set("allow.auto.create.topics", "false");
        let consumer = config
            .clone()
            // It joins no group; librdkafka wants a name.
            .set("group.id", "rig.witness")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .create();
        Ok(Self {
            config,
            url: format!("kafka://127.0.0.1:{port}"),
            consumer: consumer.context("cannot connect the supervisor with Kafka")?,
        })
    }

    /// Asks until a node that has just started knows who leads each partition.
    fn ends(&self, topic: &str) -> Result<Ends> {
        let asked = Instant::now();
        loop {
            match self.ends_now(topic) {
                Err(error) if passes(&error) && asked.elapsed() < SILENT_MAX => {
                    std::thread::sleep(POLL);
                }
                done => return done,
            }
        }
    }

    fn ends_now(&self, topic: &str) -> Result<Ends> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ANSWER_MAX)?;
        let partitions = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions());
        let mut ends = Ends::new();
        for partition in partitions {
            let number = partition.id();
            let watermarks = self.consumer.fetch_watermarks(topic, number, ANSWER_MAX);
            ends.insert(number, watermarks?);
        }
        ensure!(!ends.is_empty(), "there is no topic `{topic}`");
        Ok(ends)
    }

    /// Every record of a topic between two offsets of each partition.
    fn read(&self, topic: &str, ends: &Ends) -> Result<Vec<OwnedMessage>> {
        let mut left = ends.clone();
        left.retain(|_, (from, to)| from < to);
        let mut list = TopicPartitionList::new();
        for (partition, (from, _)) in &left {
            list.add_partition_offset(topic, *partition, Offset::Offset(*from))?;
        }
        self.consumer.assign(&list)?;
        let mut records = Vec::new();
        let mut last = Instant::now();
        while !left.is_empty() {
            let Some(record) = self.consumer.poll(POLL) else {
                let silent = last.elapsed();
                ensure!(
                    silent < SILENT_MAX,
                    "`{topic}` has records ({left:?}) and gave none for {silent:?}"
                );
                continue;
            };
            // What it says of lost connections passes.
            let Ok(record) = record else { continue };
            last = Instant::now();
            let Some((_, to)) = left.get(&record.partition()).copied() else {
                continue;
            };
            if record.offset() < to {
                records.push(record.detach());
            }
            if record.offset() + 1 >= to {
                left.remove(&record.partition());
            }
        }
        self.consumer.unassign()?;
        Ok(records)
    }

    /// Publishes about `count` of the newest events once more, each to its partition. Says how many.
    pub(super) fn publish_again(&self, topic: &str, count: u64) -> Result<u64> {
        let mut ends = self.ends(topic)?;
        let each = i64::try_from(count.div_ceil(ends.len() as u64))?;
        for (from, to) in ends.values_mut() {
            *from = (*from).max(*to - each);
        }
        let records = self.read(topic, &ends)?;
        let producer: BaseProducer = self
            .config
            .clone()
            .set("enable.idempotence", "true")
            .create()?;
        for record in &records {
            let mut again = BaseRecord::to(topic).partition(record.partition());
            again.key = record.key();
            again.payload = record.payload();
            again.headers = record.headers().cloned();
            if let Err((error, _)) = producer.send::<[u8], [u8]>(again) {
                bail!("cannot publish an event of `{topic}` again: {error}");
            }
        }
        producer.flush(ANSWER_MAX)?;
        Ok(records.len() as u64)
    }

    /// A subscription of this toolkit, since publishers hold what nobody has ever subscribed to.
    pub(super) async fn listen(&self, queue: &str, topic: &str) -> Result<()> {
        let kafka = Kafka::connect(&self.url).await?;
        let queue = Queue::new(queue.to_owned()).topic(topic.to_owned());
        kafka.declare(&Topology::new().queue(queue)).await?;
        kafka.close().await;
        Ok(())
    }

    pub(super) fn depth(&self, queue: &str) -> Result<u64> {
        let ends = self.ends(queue)?;
        let count: i64 = ends.values().map(|(first, end)| end - first).sum();
        Ok(count.unsigned_abs())
    }

    pub(super) fn read_all(&self, topic: &str) -> Result<Vec<Found>> {
        let records = self.read(topic, &self.ends(topic)?)?;
        Ok(records.iter().map(found).collect())
    }
}

/// True of what a node says that has just started.
fn passes(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<KafkaError>();
    let code = error.and_then(KafkaError::rdkafka_error_code);
    code.is_some_and(|code| {
        use RDKafkaErrorCode::{
            AllBrokersDown, BrokerTransportFailure, LeaderNotAvailable, NotLeaderForPartition,
            OperationTimedOut, UnknownPartition,
        };
        matches!(
            code,
            AllBrokersDown
                | BrokerTransportFailure
                | LeaderNotAvailable
                | NotLeaderForPartition
                | OperationTimedOut
                | UnknownPartition
        )
    })
}

fn found(record: &OwnedMessage) -> Found {
    let header = |name: &str| {
        let mut headers = record.headers().into_iter().flat_map(Headers::iter);
        let value = headers.find(|header| header.key == name)?.value?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    Found {
        id: header("ce_id").unwrap_or_default(),
        reason: header("tidings-reason").unwrap_or_default(),
        body: record.payload().unwrap_or_default().to_vec(),
    }
}
