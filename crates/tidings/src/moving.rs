//! Moving what waits on one broker to another: for services that change their broker's URL.
//!
//! What has been handled is known to the databases of the services, under names that no engine has a part in, so a
//! service may run on both brokers at once, and a message that comes over both is handled once. What is left behind
//! is what waited on the old broker: that is moved here, queue by queue, in order. A message is taken away
//! from the old broker when the new one has confirmed it; if anything dies in between, it is on both, and known by
//! its id.
//!
//! ```no_run
//! # async fn example(router: tidings::Router, old: &dyn tidings::Transport, new: &dyn tidings::Transport) -> tidings::Result<()> {
//! use tidings::moving::{Place, move_all};
//!
//! let topology = router.topology();
//! new.declare(&topology).await?;
//! for place in Place::of(&topology) {
//!     let count = move_all(old, new, &place, |_| ()).await?;
//!     println!("{place}: {count}");
//! }
//! # Ok(()) }
//! ```

use std::{fmt, num::NonZeroU16, time::Duration};

use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    AccessErrorKind, DeadLetterAccess, Deliveries, Delivery, Destination, Envelope, Error, Group,
    HOLD_TIME_MAX, HeldLetters, Outgoing, PublishError, PublishErrorKind, Queue, RECORD_QUEUE,
    Settlement, Subscription, Topology, Transport, Unrouted, dead_letter_queue,
    dead_letters::Letter,
};

/// How many messages are moved at once.
const BATCH_MAX: NonZeroU16 = NonZeroU16::new(200).unwrap();
/// How long a queue that has messages may give none.
const GIVES_NONE_MAX: Duration = Duration::from_secs(10);
/// How long to wait for the next message of a queue before it is asked whether it has any.
const NEXT_WAIT: Duration = Duration::from_millis(300);
/// How long an engine whose consumers share partitions may take to see that nobody receives any more: a move that has just
/// ended a queue, or a service that was just stopped.
const LEAVING_MAX: Duration = Duration::from_secs(15);
/// How long the new broker may be away, or refuse for now.
const AWAY_MAX: Duration = Duration::from_secs(60);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Where messages wait.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A queue.
    Queue(String),
    /// The partitions of an ordered group. It must have as many on the new broker as it is declared with here; they
    /// get what their slots say.
    Group(Group),
    /// The dead letters beside a queue or an ordered group, by its name.
    DeadLetters(String),
    /// What operators discarded, and the earlier versions of what they edited.
    Record,
}

impl Place {
    /// All places of a topology: its queues and groups, their dead letters, and the record. Queues for answers
    /// ([`Queue::is_ephemeral`]) are left out: who waits there asks again.
    pub fn of(topology: &Topology) -> Vec<Self> {
        let lasting = |queue: &&Queue| !queue.is_ephemeral;
        let queues = topology.queues.iter().filter(lasting);
        let queues = queues.map(|queue| Self::Queue(queue.name.to_string()));
        let groups = topology.groups.iter().cloned().map(Self::Group);
        let letters = crate::dead_letters::consumers_of(topology).into_iter();
        let letters = letters.map(Self::DeadLetters);
        queues
            .chain(groups)
            .chain(letters)
            .chain([Self::Record])
            .collect()
    }

    /// The queues that it consists of.
    pub fn queues(&self) -> Vec<String> {
        match self {
            Self::Queue(name) => vec![name.clone()],
            Self::Group(group) => partitions(group).collect(),
            Self::DeadLetters(beside) => vec![dead_letter_queue(beside)],
            Self::Record => vec![RECORD_QUEUE.to_owned()],
        }
    }
}

/// The queue's name, the group's, or that of the dead letters.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => f.write_str(name),
            Self::Group(group) => f.write_str(&group.name),
            Self::DeadLetters(beside) => f.write_str(&dead_letter_queue(beside)),
            Self::Record => f.write_str(RECORD_QUEUE),
        }
    }
}

fn partitions(group: &Group) -> impl Iterator<Item = String> {
    let all = (0..group.partitions.get()).map(|number| group.partition(number));
    all.chain([group.any()])
}

/// Moves what is in a place, in order, until there is nothing. Returns how many messages that were; `on_moved` is told
/// of them while it goes on. A place that is not on the old broker has none.
///
/// Whoever receives from the place on the old broker goes on to get messages; those are handled there. Where consumers share
/// partitions instead of single messages ([`Features::shares_partitions`](crate::Features::shares_partitions)), a move would take
/// partitions away from them, or get none: it is refused while somebody receives.
///
/// # Errors
///
/// When a broker cannot be reached or refuses; when the new one lacks the queue, or takes nothing for a
/// minute; when somebody else holds the messages of the old one. What was not moved is where it was.
pub async fn move_all(
    from: &dyn Transport,
    to: &dyn Transport,
    place: &Place,
    mut on_moved: impl FnMut(u64) + Send,
) -> Result<u64, Error> {
    let mut moving = Moving {
        from,
        to,
        on_moved: &mut on_moved,
        count: 0,
    };
    match place {
        Place::Queue(name) => {
            let subscription = Subscription::new(name.clone());
            moving.queue(subscription, &Target::Queue(name)).await?;
        }
        Place::Group(group) => {
            for partition in partitions(group) {
                let subscription = Subscription::new(partition).ordered();
                moving
                    .queue(subscription, &Target::Group(&group.name))
                    .await?;
            }
        }
        Place::DeadLetters(beside) => moving.letters(&dead_letter_queue(beside), beside).await?,
        Place::Record => moving.letters(RECORD_QUEUE, "").await?,
    }
    Ok(moving.count)
}

/// Where messages go on the new broker.
enum Target<'a> {
    Queue(&'a str),
    /// An ordered group, by its name.
    Group(&'a str),
    /// A queue of dead letters.
    Letters(&'a str),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Queue(name) | Self::Group(name) | Self::Letters(name)) = self;
        f.write_str(name)
    }
}

struct Moving<'a> {
    from: &'a dyn Transport,
    to: &'a dyn Transport,
    on_moved: &'a mut (dyn FnMut(u64) + Send),
    count: u64,
}

impl Moving<'_> {
    /// Moves the messages of one queue.
    async fn queue(&mut self, of: Subscription, target: &Target<'_>) -> Result<(), Error> {
        let queue = of.queue.to_string();
        if waiting(self.from, &queue).await? == 0 {
            return Ok(());
        }
        if self.from.features().shares_partitions {
            nobody_receives(self.from, &queue).await?;
        }
        // Dropped, it gives back what was not moved, in order.
        let mut deliveries = self.from.subscribe(of.prefetch(BATCH_MAX)).await?;
        let mut last = Instant::now();
        loop {
            let batch = next_batch(&mut deliveries).await?;
            if batch.is_empty() {
                match waiting(self.from, &queue).await? {
                    0 => return Ok(()),
                    _ if last.elapsed() < GIVES_NONE_MAX => continue,
                    count => return Err(gives_none(&queue, count)),
                }
            }
            let envelopes = batch.iter().map(|it| Envelope::clone(&it.envelope));
            self.publish(target, envelopes.collect()).await?;
            for delivery in batch {
                // If that fails it comes again, and its copy is known by its id.
                let _ = delivery.settle(Settlement::Ack).await;
            }
            last = Instant::now();
        }
    }

    /// Moves dead letters, or the record.
    async fn letters(&mut self, queue: &str, beside: &str) -> Result<(), Error> {
        let access = access(self.from)?;
        loop {
            let (count, before) = (waiting(self.from, queue).await?, self.count);
            if count == 0 {
                return Ok(());
            }
            let mut held = match access.hold(queue).await {
                Err(error) if error.kind() == AccessErrorKind::Missing => return Ok(()),
                held => held?,
            };
            let moved = self.held(&mut *held, queue, beside).await;
            let released = held.release().await;
            moved?;
            released?;
            if self.count == before {
                return Err(gives_none(queue, count));
            }
        }
    }

    /// Moves letters that are held, for as long as they may be.
    async fn held(
        &mut self,
        held: &mut dyn HeldLetters,
        queue: &str,
        beside: &str,
    ) -> Result<(), Error> {
        let since = Instant::now();
        while since.elapsed() < HOLD_TIME_MAX {
            let letters = held.next(BATCH_MAX.get().into()).await?;
            if letters.is_empty() {
                break;
            }
            let places: Vec<_> = letters.iter().map(|it| it.place).collect();
            let letters = letters.into_iter();
            let letters = letters.map(|it| Letter::new(it, beside).to_put());
            let target = Target::Letters(queue);
            self.publish(&target, letters.collect()).await?;
            held.remove(&places).await?;
        }
        Ok(())
    }

    /// Publishes messages to the new broker, in order, until all are confirmed.
    async fn publish(&mut self, target: &Target<'_>, mut left: Vec<Envelope>) -> Result<(), Error> {
        let count = left.len() as u64;
        let until = Instant::now() + AWAY_MAX;
        loop {
            let outcomes = offer(self.to, target, left.clone()).await?;
            let (mut lasting, mut passing) = (None, None);
            let mut outcomes = outcomes.into_iter();
            left.retain(|envelope| {
                let Some(Err(error)) = outcomes.next() else {
                    return false;
                };
                let why = match error.kind() {
                    PublishErrorKind::Unavailable
                    | PublishErrorKind::Unconfirmed
                    | PublishErrorKind::Refused => &mut passing,
                    _ => &mut lasting,
                };
                why.get_or_insert_with(|| not_taken(target, envelope, &error));
                true
            });
            match (lasting, passing) {
                (None, None) => break,
                (None, Some(_)) if Instant::now() < until => sleep(TRY_AGAIN_AFTER).await,
                (Some(why), _) | (None, Some(why)) => return Err(why),
            }
        }
        self.count += count;
        (self.on_moved)(count);
        Ok(())
    }
}

/// How many messages wait in a queue of a broker.
async fn waiting(broker: &dyn Transport, queue: &str) -> Result<u32, Error> {
    let queues = [queue.to_owned()];
    let depths = broker.queue_depths(&queues).await?;
    Ok(depths.into_iter().flatten().map(|depth| depth.ready).sum())
}

/// Waits a moment until nobody receives from a queue, and fails if somebody goes on to.
async fn nobody_receives(broker: &dyn Transport, queue: &str) -> Result<(), Error> {
    let since = Instant::now();
    let queues = [queue.to_owned()];
    loop {
        let depths = broker.queue_depths(&queues).await?;
        // An engine that does not know them (SQS) hands out single messages, and takes nothing away from anybody.
        let known = depths.into_iter().flatten().filter_map(|it| it.receivers);
        let receivers: u32 = known.sum();
        if receivers == 0 {
            return Ok(());
        }
        if since.elapsed() > LEAVING_MAX {
            return Err(Error::msg(format!(
                "{receivers} receive from `{queue}`, and on `{}` a move would take its partitions away from them; stop \
                 the services that use the old broker, and run it again",
                broker.features().engine
            )));
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

/// Publishes messages once.
async fn offer(
    to: &dyn Transport,
    target: &Target<'_>,
    batch: Vec<Envelope>,
) -> Result<Vec<Result<(), PublishError>>, Error> {
    Ok(match target {
        Target::Queue(queue) => {
            let outgoing = batch.into_iter().map(|envelope| Outgoing {
                destination: Destination::Queue((*queue).to_owned().into()),
                unrouted: Unrouted::Hold,
                envelope,
            });
            to.publish(outgoing.collect()).await
        }
        Target::Group(group) => access(to)?.send_back(group, batch).await,
        Target::Letters(queue) => access(to)?.put(queue, batch).await,
    })
}

/// Messages that are there, at most as many as are moved at once; none if none comes for a moment.
async fn next_batch(deliveries: &mut Deliveries) -> Result<Vec<Delivery>, Error> {
    let mut batch = Vec::new();
    let first = timeout(NEXT_WAIT, deliveries.next()).await;
    let mut next = first.unwrap_or_default();
    while let Some(delivery) = next {
        batch.push(delivery?);
        if batch.len() >= usize::from(BATCH_MAX.get()) {
            break;
        }
        next = deliveries.next().now_or_never().flatten();
    }
    Ok(batch)
}

fn access(broker: &dyn Transport) -> Result<&dyn DeadLetterAccess, Error> {
    broker.dead_letter_access().ok_or_else(|| {
        let engine = broker.features().engine;
        Error::msg(format!(
            "`{engine}` gives no access to single dead letters and to the partitions of ordered groups; handle \
             these on the old broker before it is left"
        ))
    })
}

fn gives_none(queue: &str, count: u32) -> Error {
    Error::msg(format!(
        "`{queue}` has {count} messages and gives none: somebody else receives them in order; stop the \
         services that use the old broker, and run it again"
    ))
}

fn not_taken(target: &Target<'_>, envelope: &Envelope, error: &PublishError) -> Error {
    let id = envelope
        .id
        .as_ref()
        .map_or("without an id", |id| id.as_str());
    let advice = match error.kind() {
        PublishErrorKind::Unroutable => {
            "; it is not there: make it with `tidings topology apply`, or start its service on the new broker"
        }
        PublishErrorKind::Unavailable
        | PublishErrorKind::Unconfirmed
        | PublishErrorKind::Refused => "; run it again when it is mended",
        _ => "; discard it on the old broker, or raise the new one's limit",
    };
    Error::msg(format!(
        "the new broker does not take message `{id}` for `{target}`: {error}{advice}"
    ))
}
