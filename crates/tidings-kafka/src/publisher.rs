//! Publishing: batches go out in order, and each message has an outcome of its own.
//!
//! The producer is idempotent and waits for all replicas in sync, so a message stands in its partition once and
//! behind those that were sent before it, however often librdkafka tries. It tries for ever: a message that it
//! gave up would leave a gap while its successors arrive. It is [`publish`](Publisher::publish) that gives
//! up: that producer is thrown away with what it still has, and the next batch gets another one. What others have under
//! way in it is confirmed there first, unless nothing is confirmed any more, or after an error from which a producer does not
//! recover.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tidings_adapter::Standing;
use tidings_core::{Envelope, PublishError, PublishErrorKind, TransportError};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::{
    client::{self, ALLOW},
    message::headers_of,
};

/// The largest body.
pub(crate) const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest message, with its headers.
pub(crate) const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX + 1024 * 1024;

/// A message on its way, and the topic it goes to.
pub(crate) struct Record {
    pub(crate) topic: Arc<str>,
    pub(crate) envelope: Envelope,
}

pub(crate) struct Publisher {
    config: ClientConfig,
    status: Arc<Standing>,
    timeout: Duration,
    current: Mutex<Option<Arc<Generation>>>,
}

/// A producer, until it is thrown away.
struct Generation {
    /// `None` while it is being dropped.
    producer: Option<ThreadedProducer<Reports>>,
    /// How many messages were confirmed.
    confirmed: Arc<AtomicU64>,
}

impl Drop for Generation {
    /// What is left in it ends now, unavailable. That may take a while, and no task is to wait for it.
    fn drop(&mut self) {
        let producer = self.producer.take();
        std::thread::spawn(move || {
            if let Some(producer) = &producer {
                producer.purge(PurgeConfig::default().queue().inflight());
            }
            drop(producer);
        });
    }
}

impl Generation {
    /// Ends what is under way, as unavailable.
    fn purge(&self) {
        if let Some(producer) = &self.producer {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

/// The outcomes of a batch, as they come.
struct Batch {
    state: Mutex<Outcomes>,
    done: Notify,
}

struct Outcomes {
    outcomes: Vec<Option<Result<(), PublishError>>>,
    missing: usize,
}

type Outcome = Result<(), PublishError>;

impl Batch {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Outcomes {
                outcomes: std::iter::repeat_with(|| None).take(count).collect(),
                missing: count,
            }),
            done: Notify::new(),
        })
    }

    fn set(&self, index: usize, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.outcomes[index].is_none() {
            state.outcomes[index] = Some(outcome);
            state.missing -= 1;
        }
        if state.missing == 0 {
            self.done.notify_one();
        }
    }

    async fn wait(&self) {
        while self.state.lock().missing > 0 {
            self.done.notified().await;
        }
    }

    /// The outcomes; if the producer was refused, that is why nothing else is known of a message.
    fn take(&self, missing: PublishErrorKind, refusal: Option<&PublishError>) -> Vec<Outcome> {
        let mut state = self.state.lock();
        let outcomes = std::mem::take(&mut state.outcomes).into_iter();
        let why = "Kafka did not confirm it in time; it may have it";
        let unknown = || Err(PublishError::new(missing, why));
        let outcomes = outcomes.map(|outcome| outcome.unwrap_or_else(unknown));
        let told = |outcome: Outcome| match (outcome, refusal) {
            (Err(error), Some(refusal)) if error.kind() == missing => {
                Err(PublishError::new(refusal.kind(), refusal.to_string()))
            }
            (outcome, _) => outcome,
        };
        outcomes.map(told).collect()
    }
}

/// Where the outcome of a message goes.
struct Report {
    batch: Arc<Batch>,
    index: usize,
}

struct Reports {
    status: Arc<Standing>,
    confirmed: Arc<AtomicU64>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::told(&self.status, &error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let outcome = match result {
            Ok(_) => {
                self.status.answered();
                self.confirmed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err((error, _)) => Err(publish_error(error)),
        };
        // Nobody may wait any more: then the batch has been told already.
        if report.index < report.batch.state.lock().outcomes.len() {
            report.batch.set(report.index, outcome);
        }
    }
}

impl Publisher {
    pub(crate) fn new(mut config: ClientConfig, status: Arc<Standing>, timeout: Duration) -> Self {
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "262144");
        Self {
            config,
            status,
            timeout,
            current: Mutex::new(None),
        }
    }

    /// Publishes, in order.
    pub(crate) async fn publish(&self, records: Vec<Record>) -> Vec<Outcome> {
        if records.is_empty() {
            return Vec::new();
        }
        if self.status.is_closed() || self.status.is_down() {
            let none = "there is no connection to Kafka";
            return records.iter().map(|_| Err(unavailable(none))).collect();
        }
        let generation = match self.generation() {
            Ok(generation) => generation,
            Err(error) => {
                let why = error.to_string();
                return records.iter().map(|_| Err(unavailable(&why))).collect();
            }
        };
        let batch = Batch::new(records.len());
        let Some(producer) = &generation.producer else {
            return batch.take(PublishErrorKind::Unavailable, None);
        };
        let confirmed = || generation.confirmed.load(Ordering::Relaxed);
        let confirmed_before = confirmed();
        let sent = async {
            send_all(producer, &batch, records).await;
            batch.wait().await;
        };
        let is_late = tokio::time::timeout(self.timeout, sent).await.is_err();
        let fatal = producer.client().fatal_error();
        let forbidden = fatal
            .as_ref()
            .filter(|(code, _)| client::is_forbidden(*code));
        let refusal = forbidden.map(|(_, why)| may_not(why));
        let missing = match is_late && fatal.is_none() && !self.status.is_down() {
            true => PublishErrorKind::Unconfirmed,
            false => PublishErrorKind::Unavailable,
        };
        let outcomes = batch.take(missing, refusal.as_ref());
        if is_late || fatal.is_some() {
            let is_silent = fatal.is_some() || confirmed() == confirmed_before;
            self.throw_away(&generation, is_silent, fatal.map(|(_, why)| why));
        }
        outcomes
    }

    fn generation(&self) -> Result<Arc<Generation>, KafkaError> {
        let mut current = self.current.lock();
        if let Some(current) = &*current {
            return Ok(Arc::clone(current));
        }
        let confirmed = Arc::new(AtomicU64::new(0));
        let reports = Reports {
            status: Arc::clone(&self.status),
            confirmed: Arc::clone(&confirmed),
        };
        let producer = self.config.create_with_context(reports)?;
        let generation = Arc::new(Generation {
            producer: Some(producer),
            confirmed,
        });
        *current = Some(Arc::clone(&generation));
        Ok(generation)
    }

    /// The next batch gets another producer. If this one is silent, all that is under way in it ends.
    fn throw_away(&self, generation: &Arc<Generation>, is_silent: bool, fatal: Option<String>) {
        let mut current = self.current.lock();
        let is_current = current
            .as_ref()
            .is_some_and(|it| Arc::ptr_eq(it, generation));
        if !is_current {
            return;
        }
        *current = None;
        drop(current);
        warn!(
            is_silent,
            fatal,
            "Kafka did not confirm a message in time; what is published next gets another producer"
        );
        if is_silent {
            generation.purge();
        }
    }

    /// Ends in good order: what is under way is confirmed first, if that happens before `deadline`.
    pub(crate) fn close(&self, deadline: Duration) {
        let old = self.current.lock().take();
        if let Some(producer) = old.as_ref().and_then(|old| old.producer.as_ref())
            && !self.status.is_down()
        {
            let _ = producer.flush(deadline);
        }
    }
}

/// Hands all to librdkafka, waiting for room where it has none.
async fn send_all(producer: &ThreadedProducer<Reports>, batch: &Arc<Batch>, records: Vec<Record>) {
    for (index, record) in records.into_iter().enumerate() {
        let Record { topic, envelope } = record;
        if envelope.body.len() > BODY_BYTES_MAX {
            let bytes = envelope.body.len();
            let why =
                format!("its body has {bytes} bytes; Kafka takes at most {BODY_BYTES_MAX} here");
            batch.set(
                index,
                Err(PublishError::new(PublishErrorKind::Invalid, why)),
            );
            continue;
        }
        let report = Report {
            batch: Arc::clone(batch),
            index,
        };
        let key = envelope.key.as_deref().map(str::as_bytes);
        let mut next = BaseRecord::with_opaque_to(&topic, Box::new(report))
            .payload(&*envelope.body)
            .headers(headers_of(&envelope));
        next.key = key;
        if key.is_none() && envelope.id.is_none() {
            // Nothing tells them apart, so they keep their order.
            next.partition = Some(0);
        }
        let since = Instant::now();
        loop {
            match producer.send(next) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    next = back;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err((error, _)) => {
                    debug!(%error, waited = ?since.elapsed(), "not sent");
                    batch.set(index, Err(publish_error(&error)));
                    break;
                }
            }
        }
    }
}

fn unavailable(why: &str) -> PublishError {
    PublishError::new(PublishErrorKind::Unavailable, why)
}

fn publish_error(error: &KafkaError) -> PublishError {
    use RDKafkaErrorCode as Code;
    let kind = match error.rdkafka_error_code() {
        Some(
            Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::BadMessage,
        ) => PublishErrorKind::Invalid,
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            PublishErrorKind::Unroutable
        }
        Some(code) if client::is_forbidden(code) => return may_not(&error.to_string()),
        Some(Code::PolicyViolation) => PublishErrorKind::Refused,
        _ => PublishErrorKind::Unavailable,
    };
    PublishError::new(kind, format!("Kafka did not take it: {error}"))
}

fn may_not(why: &str) -> PublishError {
    PublishError::new(
        PublishErrorKind::Refused,
        format!("the user of the broker's URL may not publish it ({why}): {ALLOW} (TDG-4015)"),
    )
}

/// What an outcome means to whoever asks for a transport's own record in `topic`.
pub(crate) fn own_record(topic: &str, outcome: Outcome) -> Result<(), TransportError> {
    outcome.map_err(|error| match error.kind() {
        PublishErrorKind::Refused => client::may_not("write to", topic),
        _ => TransportError::temporary(error.to_string()),
    })
}
