//! The services' broker through their endpoint: queues and dead letters. All else is an error that says so.

use std::fmt;

use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetter, DeadLetterAccess, Deliveries, Envelope,
    Features, HeldLetters, LetterPlace, Outgoing, PublishError, PublishErrorKind, QueueDepth,
    Subscription, Topology, Transport, TransportError,
};
use tokio::{task::JoinHandle, time::sleep};
use tracing::debug;

use crate::{
    Error, Remote,
    client::CallError,
    limits::{ANSWER_BYTES_MAX, HOLD_IDLE_MAX},
    wire::{BrokerAsk, Failure, Request, WireDepth, WireEnvelope, WireLetter},
};

/// The services' broker, through their operator endpoint.
#[derive(Clone, Debug)]
pub struct RemoteBroker {
    remote: Remote,
}

impl RemoteBroker {
    pub(crate) fn new(remote: Remote) -> Self {
        Self { remote }
    }
}

impl Remote {
    async fn ask_broker<T: serde::de::DeserializeOwned>(
        &self,
        what: BrokerAsk,
    ) -> Result<T, CallError> {
        self.call(&Request::Broker { what }).await
    }
}

fn not_here(what: &str) -> Error {
    Error::impossible(format!(
        "{what} cannot be done through an operator endpoint; name the broker itself"
    ))
}

impl Transport for RemoteBroker {
    fn features(&self) -> Features {
        let mut features = Features::new("an operator endpoint");
        features.holds_dead_letters = true;
        features
    }

    fn declare<'a>(&'a self, _: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        let error = TransportError::fatal(not_here("declaring").to_string());
        Box::pin(std::future::ready(Err(error)))
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        let error = || PublishError::new(PublishErrorKind::Invalid, not_here("publishing"));
        let outcomes = batch.iter().map(|_| Err(error())).collect();
        Box::pin(std::future::ready(outcomes))
    }

    fn subscribe(&self, _: Subscription) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        let error = TransportError::fatal(not_here("receiving").to_string());
        Box::pin(std::future::ready(Err(error)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        Some(self)
    }

    fn queue_depths<'a>(
        &'a self,
        queues: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<QueueDepth>>, TransportError>> {
        Box::pin(async move {
            let queues = queues.to_vec();
            let depths = self.remote.ask_broker(BrokerAsk::Depths { queues }).await;
            let depths: Vec<Option<WireDepth>> = depths.map_err(CallError::into_transport)?;
            Ok(depths
                .into_iter()
                .map(|depth| depth.map(QueueDepth::from))
                .collect())
        })
    }
}

impl DeadLetterAccess for RemoteBroker {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        Box::pin(async move {
            let queue = queue.to_owned();
            let hold = self.remote.ask_broker(BrokerAsk::Hold { queue }).await;
            let hold = hold.map_err(CallError::into_access)?;
            let held = RemoteHold::new(self.remote.clone(), hold);
            Ok(Box::new(held) as Box<dyn HeldLetters>)
        })
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        Box::pin(async move {
            let queue = queue.to_owned();
            let count = self.remote.ask_broker(BrokerAsk::Count { queue }).await;
            count.map_err(CallError::into_access)
        })
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        let ask = |batch| BrokerAsk::SendBack {
            consumer: consumer.to_owned(),
            batch,
        };
        Box::pin(self.send(batch, ask))
    }

    fn put<'a>(
        &'a self,
        queue: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        let ask = |batch| BrokerAsk::Put {
            queue: queue.to_owned(),
            batch,
        };
        Box::pin(self.send(batch, ask))
    }
}

impl RemoteBroker {
    /// Sends messages in requests that are not too large, in order.
    async fn send(
        &self,
        batch: Vec<Envelope>,
        ask: impl Fn(Vec<WireEnvelope>) -> BrokerAsk,
    ) -> Vec<Result<(), PublishError>> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut rest = batch.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut part, mut bytes) = (Vec::new(), 0);
            while let Some(next) =
                rest.next_if(|next| part.is_empty() || bytes + next.body.len() <= ANSWER_BYTES_MAX)
            {
                bytes += next.body.len();
                part.push(WireEnvelope::from(&next));
            }
            let count = part.len();
            let told: Result<Vec<Option<Failure>>, _> = self.remote.ask_broker(ask(part)).await;
            match told {
                Ok(told) if told.len() == count => outcomes.extend(
                    told.into_iter()
                        .map(|failure| failure.map_or(Ok(()), |it| Err(it.into_publish()))),
                ),
                told => {
                    let error = told.map_err(CallError::into_transport).err();
                    let kind = match &error {
                        Some(error) if !error.is_temporary() => PublishErrorKind::Refused,
                        _ => PublishErrorKind::Unavailable,
                    };
                    let why = error.map_or_else(
                        || "the answer is of another length than the question".to_owned(),
                        |error| error.to_string(),
                    );
                    outcomes.extend((0..count).map(|_| Err(PublishError::new(kind, why.clone()))));
                }
            }
        }
        outcomes
    }
}

/// Letters that the endpoint holds for this client, as long as it is told that the client lives.
struct RemoteHold {
    remote: Remote,
    /// `None` once it is released.
    hold: Option<String>,
    keeper: JoinHandle<()>,
}

impl RemoteHold {
    fn new(remote: Remote, hold: String) -> Self {
        let keeping = (remote.clone(), hold.clone());
        let keeper = tokio::spawn(async move {
            let (remote, hold) = keeping;
            loop {
                sleep(HOLD_IDLE_MAX / 3).await;
                let hold = hold.clone();
                let kept: Result<(), _> = remote.ask_broker(BrokerAsk::Keep { hold }).await;
                if let Err(CallError::Failed(_)) = kept {
                    return;
                }
            }
        });
        Self {
            remote,
            hold: Some(hold),
            keeper,
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        what: impl FnOnce(String) -> BrokerAsk,
    ) -> Result<T, AccessError> {
        let hold = self
            .hold
            .clone()
            .ok_or_else(|| AccessError::new(AccessErrorKind::Unavailable, "the hold has ended"))?;
        self.remote
            .ask_broker(what(hold))
            .await
            .map_err(CallError::into_access)
    }
}

impl HeldLetters for RemoteHold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        Box::pin(async move {
            let letters = self.ask(|hold| BrokerAsk::Next { hold, count });
            let letters: Vec<WireLetter> = letters.await?;
            let read = letters.into_iter().map(WireLetter::read);
            read.collect::<Result<_, _>>()
                .map_err(|malformed| AccessError::new(AccessErrorKind::Refused, malformed.0))
        })
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        let places = places.iter().map(|place| place.0).collect();
        Box::pin(self.ask(|hold| BrokerAsk::Remove { hold, places }))
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        Box::pin(self.ask(|hold| BrokerAsk::Behind { hold }))
    }

    fn release(mut self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        Box::pin(async move {
            let released = self.ask(|hold| BrokerAsk::Release { hold }).await;
            self.hold = None;
            released
        })
    }
}

impl Drop for RemoteHold {
    fn drop(&mut self) {
        self.keeper.abort();
        let Some(hold) = self.hold.take() else {
            return;
        };
        // Outside of a runtime the endpoint gives it back when it hears no more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let remote = self.remote.clone();
            runtime.spawn(async move {
                let released: Result<(), _> = remote.ask_broker(BrokerAsk::Release { hold }).await;
                if let Err(error) = released {
                    debug!(?error, "what was held goes back later");
                }
            });
        }
    }
}

impl fmt::Debug for RemoteHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHold").finish_non_exhaustive()
    }
}
