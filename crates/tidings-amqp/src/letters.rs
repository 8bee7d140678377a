//! Dead letters for operators: letters are fetched one by one (`basic.get`), never subscribed to, so
//! that no more are in this process than were asked for, however many are held.
//!
//! What is held is unacknowledged on one channel; the broker puts it back in its old place when the
//! channel or the connection ends, also by `kill -9`. RabbitMQ takes its time for that and answers
//! questions about the queue meanwhile, so whoever gives back waits until the queue is as long as it
//! must be. Only one may hold a queue (`lock.rs`).

mod lock;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetter, DeadLetterAccess, Destination, Envelope,
    HeldLetters, LetterPlace, Outgoing, PublishError, PublishErrorKind, RECORD_QUEUE,
    RECORDED_COUNT_MAX, Unrouted,
};
use tidings_wire::{
    BasicGet, Command, Content, Method, ShortStr, Value, encode_ack, encode_method, reply,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

pub(crate) use lock::{Lock, is_held};
use lock::{count, short};

use crate::{
    Shared, message, parts,
    publisher::{Item, Outcome},
    publishing::all_unavailable,
    session::{Channel, Closed, Inbound, Quiet, Session},
    topology,
};

/// How many letters are asked for at once.
const GETS_MAX: usize = 256;
/// How many bytes of bodies should come at once, judging by the largest of the last ones.
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// How many letters are asked for at first, when nothing is known about their size.
const GETS_FIRST: usize = 16;
/// How long it may take until all that was held is back, and how often to look.
const BACK_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a connection that is not there is waited for.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Access over a connection.
pub(crate) struct Access {
    pub(crate) shared: Arc<Shared>,
}

impl DeadLetterAccess for Access {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        Box::pin(async move {
            let hold = Hold::start(&self.shared, queue).await?;
            Ok(Box::new(hold) as Box<dyn HeldLetters>)
        })
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        Box::pin(async move {
            let session = session(&self.shared).await?;
            let channel = Channel::open(&session, |_| Box::new(Quiet)).await;
            let channel = channel.map_err(|closed| refused(queue, &closed))?;
            count(&channel, queue).await
        })
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let count = batch.len();
            let destination = match self.shared.way_back(consumer).await {
                Ok(destination) => destination,
                Err(error) => return all_failed(count, &error),
            };
            let outcomes = self.publish(&destination, batch).await;
            if outcomes.iter().any(is_unroutable) {
                // It may come back as something else.
                self.shared.ways_back.lock().remove(consumer);
            }
            outcomes
        })
    }

    fn put<'a>(&'a self, queue: &'a str, batch: Vec<Envelope>) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            if queue == RECORD_QUEUE
                && let Err(error) = self.declare_record_queue().await
            {
                return all_failed(batch.len(), &error);
            }
            let destination = Destination::Queue(queue.to_owned().into());
            self.publish(&destination, batch).await
        })
    }
}

impl Access {
    async fn publish(&self, destination: &Destination, batch: Vec<Envelope>) -> Vec<Outcome> {
        let item = |envelope| {
            Item::message(Outgoing {
                destination: destination.clone(),
                unrouted: Unrouted::Hold,
                envelope,
            })
        };
        let items = batch.into_iter().map(item).collect();
        self.shared.publish_items(items).await
    }

    async fn declare_record_queue(&self) -> Result<(), AccessError> {
        let session = session(&self.shared).await?;
        let channel = Channel::open(&session, |_| Box::new(Quiet)).await;
        let channel = channel.map_err(|closed| refused(RECORD_QUEUE, &closed))?;
        let limit = Value::I64(RECORDED_COUNT_MAX.into());
        let declare = parts::letters(
            ShortStr::from_static(RECORD_QUEUE),
            parts::table([("x-max-length", limit)]),
        );
        match channel.call(&declare).await {
            Err(closed) if !parts::is_of_another_type(&closed) => {
                Err(refused(RECORD_QUEUE, &closed))
            }
            _ => Ok(()),
        }
    }
}

impl Shared {
    /// Where what goes back to `consumer` is published: to its queue, or by its group's exchange.
    async fn way_back(&self, consumer: &str) -> Result<Destination, AccessError> {
        if let Some(known) = self.ways_back.lock().get(consumer) {
            return Ok(known.clone());
        }
        let session = session(self).await?;
        let channel = Channel::open(&session, |_| Box::new(Quiet)).await;
        let channel = channel.map_err(|closed| refused(consumer, &closed))?;
        let name = consumer.to_owned();
        let destination = match count(&channel, consumer).await {
            Ok(_) => Destination::Queue(name.into()),
            Err(error) if error.kind() == AccessErrorKind::Missing => {
                match topology::find_exchange(&session, consumer).await {
                    Ok(()) => Destination::Topic(name.into()),
                    Err(closed) if closed.is_connection() => {
                        let message = "the connection was lost";
                        return Err(AccessError::new(AccessErrorKind::Unavailable, message));
                    }
                    Err(_) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let mut known = self.ways_back.lock();
        known.insert(name_of(&destination), destination.clone());
        Ok(destination)
    }
}

fn name_of(destination: &Destination) -> String {
    destination.name().to_owned()
}

fn is_unroutable(outcome: &Outcome) -> bool {
    matches!(outcome, Err(error) if error.kind() == PublishErrorKind::Unroutable)
}

fn all_failed(count: usize, error: &AccessError) -> Vec<Outcome> {
    let kind = match error.kind() {
        AccessErrorKind::Unavailable | AccessErrorKind::Busy => {
            return all_unavailable(count, &Closed::lost(error.to_string()));
        }
        AccessErrorKind::Missing => PublishErrorKind::Unroutable,
        _ => PublishErrorKind::Refused,
    };
    let each = |_| Err(PublishError::new(kind, error.to_string()));
    (0..count).map(each).collect()
}

/// The connection for receiving: settlements must go through while publishers are blocked.
pub(crate) async fn session(shared: &Shared) -> Result<Arc<Session>, AccessError> {
    match timeout(CONNECT_TIME_MAX, shared.consuming().up()).await {
        Ok(Ok(session)) => Ok((*session).clone()),
        Ok(Err(error)) => Err(AccessError::new(
            AccessErrorKind::Refused,
            error.to_string(),
        )),
        Err(_) => Err(AccessError::new(
            AccessErrorKind::Unavailable,
            format!("the broker cannot be reached since {CONNECT_TIME_MAX:?}; see whether it runs"),
        )),
    }
}

pub(crate) fn refused(queue: &str, closed: &Closed) -> AccessError {
    let said = &closed.reason;
    let (kind, message) = match closed.code {
        _ if closed.passes() => (
            AccessErrorKind::Unavailable,
            format!("the connection was lost; what was held is back in its place ({said})"),
        ),
        reply::NOT_FOUND => (
            AccessErrorKind::Missing,
            format!("there is no queue `{queue}`"),
        ),
        reply::RESOURCE_LOCKED => (
            AccessErrorKind::Busy,
            format!("somebody else holds the letters of `{queue}`"),
        ),
        reply::PRECONDITION_FAILED if said.contains("timed out") => (
            AccessErrorKind::Unavailable,
            format!("the broker took back what was held of `{queue}` for too long ({said})"),
        ),
        reply::ACCESS_REFUSED => (
            AccessErrorKind::Refused,
            format!(
                "the queue `{queue}` may not be used: grant the user of the broker's URL the \
                 permission to read it, and to configure and write `tidings.*` (the broker said: \
                 {said})"
            ),
        ),
        _ => (
            AccessErrorKind::Refused,
            format!("the queue `{queue}` cannot be held (the broker said: {said})"),
        ),
    };
    AccessError::new(kind, message)
}

/// What a get brought.
enum Answer {
    Letter {
        tag: u64,
        redelivered: bool,
        content: Content,
    },
    Nothing,
}

/// The reading task's end of a hold.
struct Incoming {
    answers: Option<mpsc::Sender<Answer>>,
    closed: Arc<OnceLock<Closed>>,
}

impl Inbound for Incoming {
    fn receive(&mut self, command: Command) {
        let answer = match (command.method, command.content) {
            (Method::BasicGetOk(ok), Some(content)) => Answer::Letter {
                tag: ok.delivery_tag,
                redelivered: ok.redelivered,
                content,
            },
            (Method::BasicGetEmpty(_), _) => Answer::Nothing,
            _ => return,
        };
        // There is room for as many as were asked for.
        let sent = self
            .answers
            .as_ref()
            .map(|answers| answers.try_send(answer));
        if !matches!(sent, Some(Ok(()))) {
            debug!("a letter came that nobody waits for; it goes back with the hold");
        }
    }

    fn closed(&mut self, closed: &Closed) {
        let _ = self.closed.set(closed.clone());
        self.answers = None;
    }
}

struct Hold {
    /// `None` once it is released.
    held: Option<Held>,
    name: ShortStr,
    answers: mpsc::Receiver<Answer>,
    closed: Arc<OnceLock<Closed>>,
    /// How many gets are not answered: more than none only if a call of `next` was dropped.
    asked: usize,
    /// How many to ask for at once.
    window: usize,
}

/// What has to be given back.
struct Held {
    /// The letters are unacknowledged here.
    channel: Channel,
    /// How many.
    count: u64,
    /// Who asks on its channel does not wait for letters.
    lock: Lock,
}

impl Hold {
    async fn start(shared: &Arc<Shared>, queue: &str) -> Result<Self, AccessError> {
        let name = short(queue)?;
        let session = session(shared).await?;
        let lock = Lock::take(shared, &session, queue).await?;
        let (sender, answers) = mpsc::channel(2 * GETS_MAX);
        let closed = Arc::new(OnceLock::new());
        let incoming = Incoming {
            answers: Some(sender),
            closed: Arc::clone(&closed),
        };
        let channel = Channel::open(&session, |_| Box::new(incoming)).await;
        let channel = match channel {
            Ok(channel) => channel,
            Err(closed) => {
                lock.release().await?;
                return Err(refused(queue, &closed));
            }
        };
        Ok(Self {
            held: Some(Held {
                channel,
                count: 0,
                lock,
            }),
            name,
            answers,
            closed,
            asked: 0,
            window: GETS_FIRST,
        })
    }

    fn held(&self) -> Result<&Held, AccessError> {
        self.held.as_ref().ok_or_else(|| self.lost())
    }

    fn lost(&self) -> AccessError {
        let closed = self.closed.get().cloned();
        let closed = closed.unwrap_or_else(|| Closed::lost("the hold has ended"));
        refused(&self.name.to_str_lossy(), &closed)
    }

    fn ask(&mut self, count: usize) -> Result<(), AccessError> {
        let held = self.held()?;
        if self.closed.get().is_some() {
            return Err(self.lost());
        }
        let get = BasicGet {
            queue: self.name.clone(),
            no_ack: false,
        };
        let (session, id) = (Arc::clone(&held.channel.session), held.channel.id);
        let more = count.saturating_sub(self.asked);
        session.send(|out| (0..more).for_each(|_| encode_method(out, id, &get)));
        self.asked += more;
        Ok(())
    }

    async fn next_letters(&mut self, count: usize) -> Result<Vec<DeadLetter>, AccessError> {
        self.ask(count.clamp(1, self.window))?;
        let (mut letters, mut largest) = (Vec::new(), 1);
        while self.asked > 0 {
            let Some(answer) = self.answers.recv().await else {
                return Err(self.lost());
            };
            self.asked -= 1;
            if let Answer::Letter {
                tag,
                redelivered,
                content,
            } = answer
            {
                largest = largest.max(content.body.len());
                letters.push(self.read(tag, redelivered, content)?);
            }
        }
        self.window = (BYTES_AT_ONCE / largest).clamp(1, GETS_MAX);
        if let Some(held) = &mut self.held {
            held.count += letters.len() as u64;
        }
        Ok(letters)
    }

    fn read(
        &self,
        tag: u64,
        redelivered: bool,
        content: Content,
    ) -> Result<DeadLetter, AccessError> {
        let queue = self.name.to_str_lossy();
        if content.is_too_large() {
            let message = format!(
                "a letter in `{queue}` has a body of {} bytes, which is more than can be read",
                content.body_bytes
            );
            return Err(AccessError::new(AccessErrorKind::Refused, message));
        }
        let received = message::read(&content.properties, content.body);
        let looked = received.delivered_before.filter(|_| redelivered);
        let looks_max = self.held()?.lock.shared().looks_max;
        if looked.is_some_and(|looked| looked >= looks_max) {
            return Err(AccessError::new(
                AccessErrorKind::UsesUp,
                format!(
                    "a letter in `{queue}` was handed out {} times: its queue counts that, and one \
                     with a delivery limit (20 by default on RabbitMQ 4) drops what was handed \
                     out too often; move the letters to a classic queue of that name, or take the \
                     limit away and say so with `dead_letter_looks_max`",
                    looked.unwrap_or_default()
                ),
            ));
        }
        let mut letter = DeadLetter::new(LetterPlace(tag), received.envelope);
        let dead = received.dead;
        let moved = dead.moved.map(|why| format!("the broker moved it: {why}"));
        letter.reason = dead.reason.or(moved).map(Into::into);
        letter.consumer = dead.consumer.or(dead.moved_from).map(Into::into);
        letter.failures = received.failures;
        letter.history = received.history;
        Ok(letter)
    }
}

impl HeldLetters for Hold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        Box::pin(self.next_letters(count))
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        Box::pin(async move {
            let lost = self.lost();
            let held = self.held.as_mut().ok_or(lost)?;
            let (session, id) = (&held.channel.session, held.channel.id);
            session.send(|out| {
                for place in places {
                    encode_ack(out, id, place.0, false);
                }
            });
            held.count = held.count.saturating_sub(places.len() as u64);
            // The answer says that the channel has taken what was said before.
            let answered = count(&held.channel, &self.name.to_str_lossy()).await;
            answered.map(drop)
        })
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        Box::pin(async move { count(&self.held()?.lock.control, &self.name.to_str_lossy()).await })
    }

    fn release(mut self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        let held = self.held.take();
        let queue = self.name.to_str_lossy().into_owned();
        Box::pin(async move {
            match held {
                Some(held) => held.give_back(&queue).await,
                None => Ok(()),
            }
        })
    }
}

impl Held {
    /// Everything back in its place, then the lock. The end of the channel puts back all at once,
    /// which a refusal of each does not on RabbitMQ, where it takes a time that grows with the square.
    async fn give_back(self, queue: &str) -> Result<(), AccessError> {
        let Self {
            channel,
            count: held,
            lock,
        } = self;
        let expected = held + count(&lock.control, queue).await?;
        drop(channel);
        let deadline = Instant::now() + BACK_TIME_MAX;
        while count(&lock.control, queue).await? < expected && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
        lock.release().await
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        let queue = self.name.to_str_lossy().into_owned();
        // Outside of a runtime the channel closes, and the lock goes with the connection.
        if tokio::runtime::Handle::try_current().is_ok() {
            let tasks = held.lock.shared().around.tasks.clone();
            tasks.spawn(async move {
                if let Err(error) = held.give_back(&queue).await {
                    debug!("{error}");
                }
            });
        }
    }
}
