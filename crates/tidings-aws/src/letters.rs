//! Dead letters for operators: received from their queue and kept hidden from everybody else for as long as somebody
//! looks, then made visible again where they were, or deleted.
//!
//! SQS hands out nothing more of a message group while one of its messages is out, so each dead letter has a group
//! of its own. What came into the queue with the group of its key (SNS puts there what it could not deliver) is
//! moved behind the others, with a group of its own, when somebody looks. That makes the order in which letters are found
//! that in which they came, as far as SQS searches its queues from their beginning; it promises that for no two groups.
//!
//! One operator at a time holds a queue ([`lock`]): two would see a part of the letters each.

mod hold;
mod lock;

use std::{sync::Arc, time::Duration};

use aws_sdk_sqs::types::QueueAttributeName;
use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetterAccess, Envelope, HeldLetters, PublishError,
    PublishErrorKind, RECORD_QUEUE, RECORDED_COUNT_MAX, TransportError,
};
use tokio::time::timeout;
use tracing::debug;

use crate::{
    Shared,
    client::{Trouble, trouble},
    entry::CALL_MESSAGES_MAX,
    publisher::Outcome,
    topology::QueueAt,
    work::{self, Receive},
};

use hold::Hold;
pub(crate) use hold::Inner as HeldQueue;

/// How long Amazon is waited for if it does not answer yet.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Access over a transport's connections.
pub(crate) struct Access {
    pub(crate) shared: Arc<Shared>,
}

impl DeadLetterAccess for Access {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        Box::pin(async move {
            let at = self.shared.letters_at(queue).await?;
            let hold = Hold::start(&self.shared, queue, at).await?;
            Ok(Box::new(hold) as Box<dyn HeldLetters>)
        })
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        Box::pin(async move {
            let at = self.shared.letters_at(queue).await?;
            let counted = self.shared.count(&at).await;
            let counts = counted.map_err(|why| self.shared.refused(queue, why))?;
            Ok(counts.visible.into())
        })
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            match self.shared.reached().await {
                Ok(()) => self.shared.publish_on_purpose(consumer, batch).await,
                Err(error) => all_failed(batch.len(), &error),
            }
        })
    }

    fn put<'a>(&'a self, queue: &'a str, batch: Vec<Envelope>) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            if let Err(error) = self.shared.reached().await {
                return all_failed(batch.len(), &error);
            }
            let is_record = queue == RECORD_QUEUE;
            if is_record && let Err(why) = self.shared.make_record().await {
                let error = self.shared.refused(RECORD_QUEUE, why);
                return all_failed(batch.len(), &error);
            }
            let outcomes = self.shared.publish_on_purpose(queue, batch).await;
            if is_record && let Err(why) = self.shared.cut_record().await {
                debug!(?why, "the record was not cut");
            }
            outcomes
        })
    }
}

/// How many messages a queue has, as far as SQS knows: it says that its numbers may be a minute old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// That may be received.
    pub(crate) visible: u32,
    /// That somebody has.
    pub(crate) out: u32,
}

impl Shared {
    async fn reached(&self) -> Result<(), AccessError> {
        match timeout(CONNECT_TIME_MAX, self.status.reached()).await {
            Ok(reached) => reached.map_err(of_transport)?,
            Err(_) => {
                return Err(unavailable(
                    "SNS and SQS cannot be reached; see whether they answer",
                ));
            }
        }
        if !self.status.is_connected() {
            self.probe_if_down();
            return Err(unavailable("SNS and SQS do not answer"));
        }
        Ok(())
    }

    /// The queue of these letters.
    async fn letters_at(&self, queue: &str) -> Result<QueueAt, AccessError> {
        self.reached().await?;
        let found = self.queue(queue).await;
        let found = found.map_err(|why| self.refused(queue, why))?;
        found.ok_or_else(|| missing(queue))
    }

    /// How many messages a queue has.
    pub(crate) async fn count(&self, at: &QueueAt) -> Result<Counts, Trouble> {
        let call = self.clients.sqs.get_queue_attributes().queue_url(&at.url);
        let call = call
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessagesNotVisible);
        let answer = call.send().await.map_err(trouble)?;
        let attributes = answer.attributes.unwrap_or_default();
        let number = |name| attributes.get(&name).and_then(|it| it.parse().ok());
        let of = |name| {
            number(name).ok_or_else(|| Trouble::Busy("SQS does not say how many there are".into()))
        };
        Ok(Counts {
            visible: of(QueueAttributeName::ApproximateNumberOfMessages)?,
            out: of(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)?,
        })
    }

    async fn make_record(&self) -> Result<(), Trouble> {
        match self.queue(RECORD_QUEUE).await? {
            Some(_) => Ok(()),
            None => self.create_queue(RECORD_QUEUE).await.map(drop),
        }
    }

    /// Takes the oldest out of the record if it has more than it keeps.
    async fn cut_record(&self) -> Result<(), Trouble> {
        let Some(at) = self.queue(RECORD_QUEUE).await? else {
            return Ok(());
        };
        let there = self.count(&at).await?.visible;
        let mut beyond = there.saturating_sub(RECORDED_COUNT_MAX) as usize;
        while beyond > 0 {
            let oldest = Receive {
                count: beyond.min(CALL_MESSAGES_MAX),
                wait: Duration::ZERO,
                hidden: self.address.visibility,
            };
            let oldest = work::receive_messages(self, &at.url, oldest).await?;
            let receipts = oldest.iter().filter_map(|it| it.receipt_handle.as_deref());
            let receipts: Vec<&str> = receipts.collect();
            if receipts.is_empty() {
                break;
            }
            work::delete_receipts(self, &at.url, &receipts).await?;
            beyond = beyond.saturating_sub(receipts.len());
        }
        Ok(())
    }

    /// What a failed call means for whoever wants dead letters.
    fn refused(&self, queue: &str, why: Trouble) -> AccessError {
        self.note(&why);
        match why {
            Trouble::Missing(_) => {
                self.forget(queue);
                missing(queue)
            }
            why => {
                of_transport(why.into_error(&format!("the letters of `{queue}` cannot be read")))
            }
        }
    }
}

fn missing(queue: &str) -> AccessError {
    AccessError::new(
        AccessErrorKind::Missing,
        format!("there is no queue `{queue}`"),
    )
}

fn unavailable(why: impl Into<String>) -> AccessError {
    AccessError::new(AccessErrorKind::Unavailable, why)
}

fn of_transport(error: TransportError) -> AccessError {
    let kind = match error.is_temporary() {
        true => AccessErrorKind::Unavailable,
        false => AccessErrorKind::Refused,
    };
    AccessError::new(kind, error.to_string())
}

fn all_failed(count: usize, error: &AccessError) -> Vec<Outcome> {
    let kind = match error.kind() {
        AccessErrorKind::Unavailable | AccessErrorKind::Busy => PublishErrorKind::Unavailable,
        AccessErrorKind::Missing => PublishErrorKind::Unroutable,
        _ => PublishErrorKind::Refused,
    };
    let each = |_| Err(PublishError::new(kind, error.to_string()));
    (0..count).map(each).collect()
}
