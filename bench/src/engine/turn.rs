//! The turns of the toolkit, the messages of everybody, and who counts them.

use std::{
    num::NonZeroU16,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tidings::{
    Destination, Envelope, MessageId, Outgoing, Settlement, Subscription, Transport, Unrouted,
};

use super::Load;

/// Bytes of a body.
pub(super) const BODY_BYTES: usize = 256;

/// How many keys the messages have: so many that a batch has none twice.
const KEYS: u64 = 5000;

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(120);

/// What everybody publishes.
pub(super) struct Message {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) time: Timestamp,
    pub(super) body: Vec<u8>,
}

/// The attributes of a message that are the same for all.
pub(super) const NAME: &str = "thing-noted.v1";
pub(super) const SOURCE: &str = "bench";
pub(super) const CORRELATION: &str = "01930000-0000-7000-8000-000000000000";
pub(super) const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
pub(super) const CONTENT_TYPE: &str = "application/json";

/// The messages with these numbers.
pub(super) fn messages(first: u64, count: u64) -> anyhow::Result<Vec<Message>> {
    (first..first + count)
        .map(|number| {
            let text = "x".repeat(BODY_BYTES - body(number, "").len());
            Ok(Message {
                id: format!("01930000-0000-7000-8000-{number:012}"),
                key: format!("k-{:010}", number % KEYS),
                time: Timestamp::now(),
                body: body(number, &text).into_bytes(),
            })
        })
        .collect()
}

fn body(number: u64, text: &str) -> String {
    format!(r#"{{"number":"{number:010}","text":"{text}"}}"#)
}

/// The number of a message.
pub(super) fn number_in(body: &[u8]) -> Option<u64> {
    const BEFORE: usize = br#"{"number":""#.len();
    let digits = body.get(BEFORE..BEFORE + 10)?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// What a message took, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) wall: f64,
    /// User and system time of this process.
    pub(super) cpu: f64,
}

/// A moment, by the clock and by this process's CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(Instant, Duration);

impl Moment {
    pub(super) fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu = Duration::new(
            time.tv_sec.unsigned_abs(),
            time.tv_nsec.unsigned_abs() as u32,
        );
        Self(Instant::now(), cpu)
    }

    /// What each of `count` messages took since then.
    pub(super) fn until(self, end: Self, count: u64) -> Took {
        let each = |time: Duration| time.as_nanos() as f64 / count as f64;
        Took {
            wall: each(end.0 - self.0),
            cpu: each(end.1 - self.1),
        }
    }
}

/// Counts messages, each of which may come once.
pub(super) struct Count {
    expected: u64,
    seen: AtomicU64,
    each: Vec<AtomicBool>,
    is_twice: AtomicBool,
    began: OnceLock<Moment>,
    ended: OnceLock<Moment>,
}

impl Count {
    pub(super) fn new(expected: u64) -> Arc<Self> {
        Arc::new(Self {
            expected,
            seen: AtomicU64::new(0),
            each: (0..expected).map(|_| AtomicBool::new(false)).collect(),
            is_twice: AtomicBool::new(false),
            began: OnceLock::new(),
            ended: OnceLock::new(),
        })
    }

    pub(super) fn see(&self, body: &[u8]) -> anyhow::Result<()> {
        let number = number_in(body).context("a message without a number")?;
        let each = usize::try_from(number)
            .ok()
            .and_then(|it| self.each.get(it));
        let each = each.with_context(|| format!("{number} was never published"))?;
        if each.swap(true, Ordering::Relaxed) {
            self.is_twice.store(true, Ordering::Relaxed);
        }
        let seen = self.seen.fetch_add(1, Ordering::AcqRel) + 1;
        if seen == 1 {
            let _ = self.began.set(Moment::now());
        }
        if seen == self.expected {
            let _ = self.ended.set(Moment::now());
        }
        Ok(())
    }

    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.get().is_some()
    }

    pub(super) fn took(&self) -> anyhow::Result<Took> {
        let seen = self.seen.load(Ordering::Acquire);
        let ended = self.ended.get();
        let ended = ended.with_context(|| format!("{seen} of {} messages came", self.expected))?;
        ensure!(
            !self.is_twice.load(Ordering::Relaxed),
            "a message came twice"
        );
        let began = self.began.get().context("nothing came")?;
        Ok(began.until(*ended, self.expected))
    }
}

/// The toolkit publishes.
pub(super) async fn publish(
    transport: &dyn Transport,
    topic: &str,
    messages: Vec<Message>,
    load: Load,
) -> anyhow::Result<Took> {
    let count = messages.len() as u64;
    let outgoing: Vec<Outgoing> = messages
        .into_iter()
        .map(|it| as_outgoing(topic, it))
        .collect();
    let batches: Vec<Vec<Outgoing>> = outgoing.chunks(load.batch).map(<[_]>::to_vec).collect();
    let began = Moment::now();
    let batches = stream::iter(batches).map(|batch| transport.publish(batch));
    let mut published = batches.buffered(load.window);
    while let Some(outcomes) = published.next().await {
        outcomes.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(began.until(Moment::now(), count))
}

/// As a service's relay would send it.
fn as_outgoing(topic: &str, message: Message) -> Outgoing {
    Outgoing {
        destination: Destination::Topic(topic.to_owned().into()),
        unrouted: Unrouted::Hold,
        envelope: Envelope {
            id: Some(MessageId::new(message.id)),
            source: SOURCE.into(),
            time: Some(message.time),
            correlation_id: Some(CORRELATION.into()),
            traceparent: Some(TRACEPARENT.into()),
            key: Some(message.key.into()),
            ..Envelope::new(NAME, message.body)
        },
    }
}

/// The toolkit receives.
pub(super) async fn receive(
    transport: &dyn Transport,
    queue: String,
    count: &Arc<Count>,
    load: Load,
) -> anyhow::Result<Took> {
    let prefetch = NonZeroU16::new(load.prefetch).context("a prefetch of nothing")?;
    let subscription = Subscription::new(queue).prefetch(prefetch);
    let mut deliveries = transport.subscribe(subscription).await?;
    while !count.is_over() {
        let next = tokio::time::timeout(STILL_MAX, deliveries.next()).await;
        let next = next.context("no message comes any more")?;
        let delivery = next.context("the subscription ended")??;
        count.see(&delivery.envelope.body)?;
        delivery.settle(Settlement::Ack).await?;
    }
    count.took()
}
