//! One hold of a queue of dead letters: a thread that is the only member of the topic's group, and reads when asked.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetter, HeldLetters, LetterPlace, Received,
};
use tokio::sync::oneshot;
use tracing::debug;

use super::unavailable;
use crate::{
    Shared, client, message,
    ranges::Ranges,
    topology::LOOK_TIMEOUT,
    window::{Admitted, Progress, Window},
};

/// How long it may take to become the only member.
const JOIN_MAX: Duration = Duration::from_secs(30);
/// How long there is nothing from a broker that has more, before what there is has to do: what lies between are gaps.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// How often the thread looks whether it is still wanted, and tells Kafka that it is there.
const TICK: Duration = Duration::from_millis(20);
/// How many letters are read ahead, and how many bytes of bodies come at once.
const AHEAD_MAX: usize = 256;
/// How many calls that were dropped half-way may wait for the thread.
const ASKS_MAX: usize = 16;
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;

/// What the thread is asked for.
enum Ask {
    Next(usize, oneshot::Sender<Result<Vec<DeadLetter>, AccessError>>),
    /// Whether it still holds them.
    Holds(oneshot::Sender<Result<(), AccessError>>),
    /// These were removed.
    Removed(Vec<i64>, oneshot::Sender<Result<(), AccessError>>),
    Behind(oneshot::Sender<Result<u64, AccessError>>),
    /// Gives them back; the offset of the first that is left.
    Release(oneshot::Sender<i64>),
}

/// Letters that are held.
pub(super) struct Hold {
    shared: Arc<Shared>,
    queue: Arc<str>,
    /// `None` once it is released.
    asks: Option<mpsc::SyncSender<Ask>>,
}

/// Says that this process holds a queue no more.
struct Held(Arc<Shared>, Arc<str>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holds.lock().remove(&*self.1);
    }
}

impl Hold {
    pub(super) async fn start(shared: &Arc<Shared>, queue: &str) -> Result<Self, AccessError> {
        let queue: Arc<str> = queue.into();
        if !shared.holds.lock().insert(queue.to_string()) {
            return Err(busy(&queue));
        }
        let held = Held(Arc::clone(shared), Arc::clone(&queue));
        let name = Arc::clone(&queue);
        let members = shared.look(move |shared| {
            let failed = |error| client::passing("the group cannot be seen", &error);
            shared.receivers(&name).map_err(failed)
        });
        if members.await.map_err(super::failed)? > 0 {
            return Err(busy(&queue));
        }
        let (asks, asked) = mpsc::sync_channel(ASKS_MAX);
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("kafka {queue}"));
        let started = thread.spawn(move || {
            match Reading::start(&held) {
                Ok(mut reading) => {
                    // Who does not wait any more has dropped the other end, too.
                    let _ = ready.send(Ok(()));
                    let released = reading.run(&asked);
                    let first = reading.window.watermark();
                    // Leaves the group.
                    drop(reading);
                    drop(held);
                    if let Some(released) = released {
                        let _ = released.send(first);
                    }
                }
                Err(error) => {
                    drop(held);
                    let _ = ready.send(Err(error));
                }
            }
        });
        started.map_err(|error| unavailable("no thread can be started").with_source(error))?;
        is_ready.await.unwrap_or_else(|_| Err(lost(&queue)))?;
        Ok(Self {
            shared: Arc::clone(shared),
            queue,
            asks: Some(asks),
        })
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, AccessError>>) -> Ask,
    ) -> Result<T, AccessError> {
        let (sender, answer) = oneshot::channel();
        let asks = self.asks.as_ref().ok_or_else(|| lost(&self.queue))?;
        asks.try_send(ask(sender)).map_err(|_| lost(&self.queue))?;
        answer.await.map_err(|_| lost(&self.queue))?
    }
}

impl HeldLetters for Hold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        Box::pin(self.ask(move |sender| Ask::Next(count, sender)))
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        Box::pin(async move {
            if places.is_empty() {
                return Ok(());
            }
            self.ask(Ask::Holds).await?;
            let offset = |place: &LetterPlace| i64::try_from(place.0).unwrap_or(i64::MAX);
            let offsets: Vec<i64> = places.iter().map(offset).collect();
            self.shared.write_removed(&self.queue, &offsets).await?;
            self.ask(move |sender| Ask::Removed(offsets, sender)).await
        })
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        Box::pin(self.ask(Ask::Behind))
    }

    fn release(mut self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        Box::pin(async move {
            let (sender, released) = oneshot::channel();
            let asks = self.asks.take();
            let asked = asks.map(|asks| asks.try_send(Ask::Release(sender)));
            if !matches!(asked, Some(Ok(()))) {
                return Ok(());
            }
            if let Ok(first) = released.await {
                self.shared.delete_before(&self.queue, first).await;
            }
            Ok(())
        })
    }
}

fn busy(queue: &str) -> AccessError {
    let why = format!("somebody else holds the letters of `{queue}`, or receives them");
    AccessError::new(AccessErrorKind::Busy, why)
}

fn lost(queue: &str) -> AccessError {
    unavailable(&format!(
        "the letters of `{queue}` are held no more; what was not removed is in its place"
    ))
}

/// How it stands with the partition.
#[derive(Debug, Default)]
enum Turn {
    #[default]
    Waits,
    /// It is ours, and begins here.
    Ours(i64, Progress),
    /// It is somebody else's.
    Theirs,
    Lost,
}

struct Context {
    status: Arc<tidings_adapter::Standing>,
    turn: Mutex<Turn>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::told(&self.status, &error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let is_assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let done = match is_assigned {
            true => self.assigned(consumer, list),
            false => {
                if list.count() > 0 {
                    *self.turn.lock() = Turn::Lost;
                }
                consumer.incremental_unassign(list)
            }
        };
        if let Err(error) = done {
            debug!(%error, "letters cannot be held");
            *self.turn.lock() = Turn::Lost;
        }
    }
}

impl Context {
    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
    ) -> KafkaResult<()> {
        let is_new = matches!(*self.turn.lock(), Turn::Waits);
        if list.count() == 0 {
            if is_new {
                *self.turn.lock() = Turn::Theirs;
            }
            return consumer.incremental_assign(list);
        }
        let committed = consumer.committed_offsets(list.clone(), LOOK_TIMEOUT)?;
        let mut begin = (0, Progress::default());
        for element in committed.elements() {
            element.error()?;
            let (first, _) =
                consumer.fetch_watermarks(element.topic(), element.partition(), LOOK_TIMEOUT)?;
            begin.0 = first;
            if let Offset::Offset(offset) = element.offset() {
                begin = (
                    first.max(offset),
                    Progress::parse(offset, element.metadata()),
                );
            }
        }
        list.set_all_offsets(Offset::Offset(begin.0))?;
        *self.turn.lock() = Turn::Ours(begin.0, begin.1);
        consumer.incremental_assign(list)
    }
}

/// The thread's end of a hold.
struct Reading {
    queue: Arc<str>,
    shared: Arc<Shared>,
    consumer: BaseConsumer<Context>,
    window: Window,
    gone: Ranges,
    /// Read ahead.
    ahead: VecDeque<(i64, Received)>,
    is_paused: bool,
}

impl Reading {
    /// Becomes the only member.
    fn start(held: &Held) -> Result<Self, AccessError> {
        let (shared, queue) = (&held.0, &held.1);
        let refused = |error: KafkaError| {
            let why = format!("the letters of `{queue}` cannot be read: {error}");
            AccessError::new(AccessErrorKind::Refused, why)
        };
        let mut config = shared.consumer_config(queue);
        config
            .set("queued.min.messages", "100")
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.wait.max.ms", "50");
        let context = Context {
            status: Arc::clone(&shared.status),
            turn: Mutex::default(),
        };
        let consumer = config.create_with_context::<_, BaseConsumer<Context>>(context);
        let consumer = consumer.map_err(refused)?;
        consumer.subscribe(&[queue]).map_err(refused)?;
        let mut reading = Self {
            queue: Arc::clone(queue),
            shared: Arc::clone(shared),
            consumer,
            window: Window::new(0, Progress::default()),
            gone: shared.bindings.removed(queue),
            ahead: VecDeque::new(),
            is_paused: false,
        };
        let deadline = Instant::now() + JOIN_MAX;
        loop {
            reading.poll(TICK);
            let standing = std::mem::take(&mut *reading.consumer.context().turn.lock());
            match standing {
                Turn::Waits if reading.is_over() || Instant::now() > deadline => {
                    return Err(lost(queue));
                }
                Turn::Waits => {}
                Turn::Theirs => return Err(busy(queue)),
                Turn::Lost => return Err(lost(queue)),
                Turn::Ours(first, mut before) => {
                    *reading.consumer.context().turn.lock() =
                        Turn::Ours(first, Progress::default());
                    reading.gone = reading.gone.with(before.settled);
                    before.settled = reading.gone.iter().collect();
                    reading.window = Window::new(first, before);
                    return Ok(reading);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.shared.status.is_closed()
    }

    fn holds(&self) -> Result<(), AccessError> {
        let is_ours = matches!(*self.consumer.context().turn.lock(), Turn::Ours(..));
        match is_ours && !self.is_over() && !self.consumer.assignment_lost() {
            true => Ok(()),
            false => Err(lost(&self.queue)),
        }
    }

    /// Answers until nobody asks any more, or the hold is lost; who waits for its end, if somebody does.
    fn run(&mut self, asked: &mpsc::Receiver<Ask>) -> Option<oneshot::Sender<i64>> {
        while self.holds().is_ok() {
            match asked.recv_timeout(TICK) {
                // Whoever has given up waiting needs no answer.
                Ok(Ask::Next(count, answer)) => drop(answer.send(self.next(count))),
                Ok(Ask::Holds(answer)) => drop(answer.send(self.holds())),
                Ok(Ask::Removed(offsets, answer)) => {
                    self.removed(&offsets);
                    drop(answer.send(Ok(())));
                }
                Ok(Ask::Behind(answer)) => drop(answer.send(self.behind())),
                Ok(Ask::Release(answer)) => {
                    self.commit(0);
                    return Some(answer);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.poll(Duration::ZERO),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.commit(0);
                    return None;
                }
            }
        }
        None
    }

    /// Takes over what has come, and rests while that is enough.
    fn poll(&mut self, wait: Duration) {
        match self.consumer.poll(wait) {
            Some(Ok(record)) => {
                let received = message::read(&record);
                self.ahead.push_back((record.offset(), received));
            }
            Some(Err(error)) => debug!(queue = %self.queue, %error, "told while letters are held"),
            None => {}
        }
        let is_enough = self.ahead.len() >= AHEAD_MAX;
        if is_enough != self.is_paused {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.queue, 0);
            let done = match is_enough {
                true => self.consumer.pause(&list),
                false => self.consumer.resume(&list),
            };
            if done.is_ok() {
                self.is_paused = is_enough;
            }
        }
    }

    fn end(&self) -> Result<i64, AccessError> {
        let looked = self.consumer.fetch_watermarks(&self.queue, 0, LOOK_TIMEOUT);
        let failed =
            |error| unavailable("the end of the letters cannot be seen").with_source(error);
        looked.map(|(_, end)| end).map_err(failed)
    }

    fn next(&mut self, count: usize) -> Result<Vec<DeadLetter>, AccessError> {
        let end = self.end()?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        let mut quiet_since = Instant::now();
        while letters.len() < count && bytes < BYTES_AT_ONCE && self.window.next() < end {
            let Some((offset, received)) = self.ahead.pop_front() else {
                self.poll(TICK);
                self.holds()?;
                if self.ahead.is_empty() && quiet_since.elapsed() > QUIET_MAX {
                    match self.shared.status.is_down() {
                        true => return Err(unavailable("there is no connection to Kafka")),
                        false => break,
                    }
                }
                continue;
            };
            quiet_since = Instant::now();
            if self.window.admit(offset, true) != Admitted::Not {
                bytes += received.envelope.body.len();
                letters.push(letter(offset, received));
            }
        }
        // For who counts what is not held.
        self.commit(self.window.next());
        Ok(letters)
    }

    /// How far this is, and up to where letters are held: for whoever counts, and whoever receives them as messages.
    fn commit(&self, held: i64) {
        let watermark = self.window.watermark();
        let text = self.window.progress(held).text(watermark);
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&self.queue, 0);
        element.set_metadata(text);
        let set = element.set_offset(Offset::Offset(watermark));
        let committed = set.and_then(|()| self.consumer.commit(&list, CommitMode::Sync));
        if let Err(error) = committed {
            debug!(queue = %self.queue, %error, "how far letters are held is not committed");
        }
    }

    fn removed(&mut self, offsets: &[i64]) {
        for offset in offsets {
            self.window.settle(*offset);
            self.gone.insert(*offset, offset + 1);
        }
        self.commit(self.window.next());
    }

    fn behind(&self) -> Result<u64, AccessError> {
        let (next, end) = (self.window.next(), self.end()?);
        Ok(u64::try_from(end - next - self.gone.count(next, end)).unwrap_or(0))
    }
}

fn letter(offset: i64, received: Received) -> DeadLetter {
    let place = LetterPlace(u64::try_from(offset).unwrap_or(0));
    let mut letter = DeadLetter::new(place, received.envelope);
    letter.reason = received.reason;
    letter.consumer = received.consumer;
    letter.failures = received.failures;
    letter.history = received.history;
    letter
}
