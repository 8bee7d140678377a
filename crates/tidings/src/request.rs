//! Asking a service and waiting for its answer, with a deadline.
//!
//! Events and commands are the rule; a question is for the case in which a handler or an HTTP call
//! cannot go on without an answer. It is a command with the name of the asking instance's own queue;
//! the target's handler returns a [`Reply`](crate::Reply), which goes there through its outbox.
//!
//! A question is not kept: it is published at once, and asked again when the handler that asks is
//! tried again. So ask for what may be asked twice. An answer that comes after the deadline is
//! counted (`tidings_late_replies_total`) and passed over.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use metrics::counter;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tracing::{debug, error};
use uuid::Uuid;

use crate::{
    BoxFuture, Command, Context, Deliveries, Envelope, Error, FromBatch, FromContext, Message,
    MessageId, Outgoing, Provided, PublishError, Queue, REPLY_TO_HEADER, Settlement, Subscription,
    Topology, TransactionSlot, Transport, TransportError, accept,
};

/// The place where one instance asks and gets its answers. Cloning is cheap and gives the same one.
///
/// Give it to a router with [`with_state`](crate::Router::with_state), and take a [`Requester`] in a
/// handler; or use it directly outside of handlers.
#[derive(Clone)]
pub struct Requests(Arc<Shared>);

struct Shared {
    transport: Arc<dyn Transport>,
    queue: String,
    waiting: Mutex<HashMap<String, oneshot::Sender<Arc<Envelope>>>>,
    is_receiving: AtomicBool,
    receiver: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.lock().take() {
            receiver.abort();
        }
    }
}

impl Requests {
    /// Declares a queue for this instance's answers and begins to receive from it. `name` begins the
    /// queue's name.
    ///
    /// # Errors
    ///
    /// When the queue cannot be declared or received from.
    pub async fn start(transport: Arc<dyn Transport>, name: &str) -> Result<Self, TransportError> {
        let queue = format!("{name}.reply.{}", Uuid::new_v4().simple());
        let topology = Topology::new().queue(Queue::new(queue.clone()).ephemeral());
        transport.declare(&topology).await?;
        let deliveries = transport
            .subscribe(Subscription::new(queue.clone()))
            .await?;
        let shared = Arc::new(Shared {
            transport,
            queue,
            waiting: Mutex::default(),
            is_receiving: AtomicBool::new(true),
            receiver: Mutex::default(),
        });
        let receiver = tokio::spawn(receive(Arc::downgrade(&shared), deliveries));
        *shared.receiver.lock() = Some(receiver);
        Ok(Self(shared))
    }

    /// Asks, and waits for the answer for at most `deadline`.
    ///
    /// # Errors
    ///
    /// When the command was not taken by the broker, no answer came in time, or the answer is not an
    /// `R`.
    pub async fn ask<C: Command, R: Message>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<R, AskError> {
        let mut question = Outgoing::new(command).map_err(AskError::Encoding)?;
        let id = Uuid::now_v7().to_string();
        question.envelope.id = Some(MessageId::new(&*id));
        let headers = &mut question.envelope.headers;
        headers.push((REPLY_TO_HEADER.into(), (&*self.0.queue).into()));
        if !self.0.is_receiving.load(Ordering::SeqCst) {
            return Err(AskError::Deaf);
        }
        let (reply, answer) = oneshot::channel();
        self.0.waiting.lock().insert(id.clone(), reply);
        let waiting = Waiting(&self.0, &id);
        let asking = async {
            let outcome = self.0.transport.publish(vec![question]).await.pop();
            if let Some(Err(error)) = outcome {
                return Err(AskError::NotAsked(error));
            }
            answer.await.map_err(|_| AskError::Deaf)
        };
        let envelope = timeout(deadline, asking)
            .await
            .map_err(|_| AskError::Late(deadline))??;
        drop(waiting);
        accept::decode(&envelope, &[]).map_err(|error| AskError::Encoding(error.into()))
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests")
            .field("queue", &self.0.queue)
            .finish_non_exhaustive()
    }
}

/// A question that waits; dropped when nobody waits any more.
struct Waiting<'a>(&'a Shared, &'a str);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(self.1);
    }
}

/// Hands answers to those who wait.
async fn receive(shared: std::sync::Weak<Shared>, mut deliveries: Deliveries) {
    while let Some(delivery) = deliveries.next().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                error!(
                    queue = shared.queue,
                    "answers are not received any more: {error}"
                );
                break;
            }
        };
        let id = delivery.envelope.id.as_ref().map(MessageId::as_str);
        let question = id
            .and_then(|id| id.strip_prefix("reply/"))
            .unwrap_or_default();
        let waiting = shared.waiting.lock().remove(question);
        let envelope = Arc::clone(&delivery.envelope);
        if waiting.is_none_or(|waiting| waiting.send(envelope).is_err()) {
            counter!("tidings_late_replies_total").increment(1);
            debug!(
                question,
                "an answer came when nobody waited for it any more"
            );
        }
        if let Err(error) = delivery.settle(Settlement::Ack).await {
            debug!("an answer was not acknowledged: {error}");
        }
    }
    if let Some(shared) = shared.upgrade() {
        shared.is_receiving.store(false, Ordering::SeqCst);
        shared.waiting.lock().clear();
    }
}

/// Why there is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum AskError {
    /// None came in time.
    Late(Duration),
    /// The broker did not take the question.
    NotAsked(PublishError),
    /// The question or the answer cannot be written or read.
    Encoding(Error),
    /// This instance cannot receive answers any more.
    Deaf,
    /// The handler has used its transaction before: it would be held open while waiting.
    TransactionUsed,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(deadline) => write!(f, "no answer came within {deadline:?}"),
            Self::NotAsked(error) => write!(f, "the question was not taken: {error}"),
            Self::Encoding(error) => fmt::Display::fmt(error, f),
            Self::Deaf => f.write_str("answers cannot be received any more; restart the service"),
            Self::TransactionUsed => f.write_str(
                "a handler may not ask after it has used its `Tx`, which would be held open while it \
                 waits; ask first",
            ),
        }
    }
}

impl std::error::Error for AskError {}

/// Asks from within a handler; needs a [`Requests`] given with `with_state`.
pub struct Requester {
    requests: Requests,
    slot: Option<Arc<TransactionSlot>>,
}

impl Requester {
    /// As [`Requests::ask`].
    ///
    /// # Errors
    ///
    /// As there; and when the handler has used its `Tx` before.
    pub async fn ask<C: Command, R: Message>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<R, AskError> {
        if self.slot.as_ref().is_some_and(|slot| slot.is_used()) {
            return Err(AskError::TransactionUsed);
        }
        self.requests.ask(command, deadline).await
    }
}

impl FromContext for Requester {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        let requests = context
            .state::<Requests>()
            .map(|requests| (*requests).clone());
        let ask = requests.map(|requests| Self {
            requests,
            slot: context.transaction().cloned(),
        });
        Box::pin(std::future::ready(ask.ok_or_else(|| Error::msg(MISSING))))
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        match provided.has_state::<Requests>() {
            true => Ok(()),
            false => Err(MISSING.into()),
        }
    }
}

impl FromBatch for Requester {}

const MISSING: &str = "it takes a `Requester`, but the router has no `Requests`; add \
                       `.with_state(Requests::start(transport, name).await?)`";
