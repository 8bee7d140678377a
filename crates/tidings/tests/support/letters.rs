//! Dead letters for tests of operators: letters that are put there, and an operator who dies.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tidings::{
    AccessError, Attempt, BoxFuture, DeadLetter, DeadLetterAccess, Deliveries, Envelope, Features,
    HeldLetters, LetterPlace, Message, Outgoing, PublishError, Queue, Subscription, Topology,
    Transport, TransportError, dead_letter,
    dead_letters::{DeadLetters, Letter, Selection},
};
use tidings_memory::MemoryTransport;
use tokio::sync::Notify;

/// The queue that [`desk`] makes.
pub(crate) const QUEUE: &str = "bank.money-deposited.v1";

/// A broker with the queue, and nobody who receives.
pub(crate) async fn desk() -> (MemoryTransport, DeadLetters) {
    let transport = MemoryTransport::new();
    let topology = Topology::new().queue(Queue::new(QUEUE));
    transport.declare(&topology).await.expect("it declares");
    let letters = DeadLetters::new(transport.connect(), QUEUE);
    (transport, letters)
}

/// A message as its consumer gives it up.
pub(crate) fn letter<M: Message>(message: &M, queue: &str, reason: &str, second: i64) -> Outgoing {
    let attempt = Attempt {
        at: jiff::Timestamp::from_second(1_700_000_000 + second).expect("a time"),
        reason: reason.into(),
        by: Some("bank-1".into()),
    };
    dead_letter(&super::outgoing(message).envelope, queue, 1, &[attempt])
}

/// Publishes these, and each is taken.
pub(crate) async fn publish(transport: &impl Transport, batch: Vec<Outgoing>) {
    for outcome in transport.publish(batch).await {
        outcome.expect("it is taken");
    }
}

/// All letters of an operator's selection.
pub(crate) async fn all(letters: &DeadLetters, selection: &Selection) -> Vec<Letter> {
    let mut listing = letters.list(selection).await.expect("they can be held");
    let mut all = Vec::new();
    loop {
        let page = listing.next_page(7).await.expect("they can be read");
        if page.is_empty() {
            listing.end().await.expect("they go back");
            return all;
        }
        all.extend(page);
    }
}

/// The connection of an operator whose process ends after some steps: from then on nothing that it
/// asked for is answered. What it had done by then is done.
#[derive(Clone)]
pub(crate) struct Dying(Arc<Inner>);

struct Inner {
    transport: MemoryTransport,
    steps_left: AtomicU32,
    died: Notify,
}

impl Dying {
    pub(crate) fn after(steps: u32, transport: &MemoryTransport) -> Self {
        Self(Arc::new(Inner {
            transport: transport.connect(),
            steps_left: AtomicU32::new(steps),
            died: Notify::new(),
        }))
    }

    /// Runs `operation`; `None` if it died.
    pub(crate) async fn run<T>(&self, operation: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = operation => Some(done),
            () = self.0.died.notified() => None,
        }
    }

    async fn step(&self) {
        if self.0.steps_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.died.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Before it, or after it without an answer.
    async fn around<T>(&self, operation: impl Future<Output = T>) -> T {
        self.step().await;
        let done = operation.await;
        self.step().await;
        done
    }

    fn access(&self) -> &dyn DeadLetterAccess {
        self.0.transport.dead_letter_access().expect("it has one")
    }
}

impl DeadLetterAccess for Dying {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        Box::pin(async move {
            let held = self.around(self.access().hold(queue)).await?;
            let dying = self.clone();
            Ok(Box::new(DyingHold { dying, held }) as Box<dyn HeldLetters>)
        })
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        self.access().count(queue)
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        Box::pin(self.around(self.access().send_back(consumer, batch)))
    }

    fn put<'a>(
        &'a self,
        queue: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        Box::pin(self.around(self.access().put(queue, batch)))
    }
}

struct DyingHold {
    dying: Dying,
    held: Box<dyn HeldLetters>,
}

impl HeldLetters for DyingHold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        Box::pin(self.dying.around(self.held.next(count)))
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        Box::pin(self.dying.around(self.held.remove(places)))
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        self.held.behind()
    }

    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        Box::pin(async move {
            let Self { dying, held } = *self;
            dying.around(held.release()).await
        })
    }
}

impl Transport for Dying {
    fn features(&self) -> Features {
        self.0.transport.features()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        self.0.transport.declare(topology)
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        self.0.transport.publish(batch)
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        self.0.transport.subscribe(subscription)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.transport.close()
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        Some(self)
    }
}
