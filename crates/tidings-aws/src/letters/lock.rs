//! Who may hold the letters of a queue: one at a time, of all processes, since two that look at the same time would
//! see a part of them each.
//!
//! A FIFO queue beside the letters, `Q.dead.hold`, is the lock. All of its messages, the *tokens*, are of one group, and
//! while somebody has one of a group SQS hands out no other. So whoever has received a token has the lock, for as long as it
//! is kept hidden; it comes back by itself when its holder is gone. The first operator who looks makes the queue and puts
//! a token into it; who finds none because SQS counts late puts in another, which changes nothing. One that gets old is
//! replaced before SQS forgets it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName, QueueAttributeName};
use parking_lot::Mutex;
use tidings_core::{AccessError, AccessErrorKind};

use super::unavailable;
use crate::{
    Shared,
    client::{Trouble, trouble},
    entry::CALL_MESSAGES_MAX,
    names::name_at_amazon,
    topology::{QueueAt, RETENTION_SECONDS},
    work::{self, Receive},
};

/// A token that is older than that gets a successor. SQS forgets it after fourteen days.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a queue that was made just now is looked for.
const LOOKS_MAX: u32 = 5;

/// The right to hold the letters of a queue.
pub(super) struct Lock {
    at: QueueAt,
    /// How long it stays with a process that has died.
    hidden: Duration,
    tokens: Mutex<Tokens>,
}

struct Tokens {
    /// In the order in which they were put there.
    receipts: Vec<Arc<str>>,
    /// Others may have the lock from then on.
    until: Instant,
}

impl Lock {
    /// Takes it.
    pub(super) async fn take(
        shared: &Shared,
        queue: &str,
        hidden: Duration,
    ) -> Result<Self, AccessError> {
        let name = format!("{queue}.hold");
        let taken = async {
            let at = shared.lock_queue(&name).await?;
            if let Some(lock) = Self::receive(shared, &at, hidden).await? {
                return Ok(Some(lock));
            }
            let counts = shared.count(&at).await?;
            if counts.visible + counts.out > 0 {
                return Ok(None);
            }
            put_token(shared, &at).await?;
            Self::receive(shared, &at, hidden).await
        };
        match taken.await {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(AccessError::new(
                AccessErrorKind::Busy,
                format!(
                    "somebody else holds the letters of `{queue}`; of one who was killed they are free after {} seconds",
                    hidden.as_secs()
                ),
            )),
            Err(why) => {
                shared.forget(&name);
                shared.note(&why);
                let what =
                    format!("the queue `{name}`, by which operators take turns, cannot be used");
                Err(super::of_transport(why.into_error(&what)))
            }
        }
    }

    /// Takes it if nobody has it and there is a token.
    async fn receive(
        shared: &Shared,
        at: &QueueAt,
        hidden: Duration,
    ) -> Result<Option<Self>, Trouble> {
        let asked = Instant::now();
        let all = Receive {
            count: CALL_MESSAGES_MAX,
            wait: Duration::ZERO,
            hidden,
        };
        let tokens = work::receive_messages(shared, &at.url, all).await?;
        let Some(newest) = tokens.last() else {
            return Ok(None);
        };
        let lock = Self {
            at: at.clone(),
            hidden,
            tokens: Mutex::new(Tokens {
                receipts: receipts(&tokens),
                until: asked + hidden,
            }),
        };
        if age(newest) > TOKEN_AGE_MAX {
            put_token(shared, at).await?;
        }
        Ok(Some(lock))
    }

    /// Until when it is surely this one's.
    pub(super) fn until(&self) -> Instant {
        self.tokens.lock().until
    }

    /// Keeps it.
    pub(super) async fn renew(&self, shared: &Shared) -> Result<(), AccessError> {
        let receipts = self.tokens.lock().receipts.clone();
        let receipts: Vec<&str> = receipts.iter().map(|it| &**it).collect();
        let asked = Instant::now();
        let changed = work::change_visibility(shared, &self.at.url, &receipts, self.hidden).await;
        let failed = match changed {
            Ok(failed) => failed.into_iter().next().map(|(_, why)| why),
            Err(why) => Some(why),
        };
        match failed {
            None => self.tokens.lock().until = asked + self.hidden,
            Some(why) if why.passes() && Instant::now() < self.until() => shared.note(&why),
            Some(why) => return Err(unavailable(format!("the lock was lost: {why:?}"))),
        }
        Ok(())
    }

    /// Lets the next one take it.
    pub(super) async fn release(&self, shared: &Shared) {
        let receipts = std::mem::take(&mut self.tokens.lock().receipts);
        let receipts: Vec<&str> = receipts.iter().map(|it| &**it).collect();
        let Some((newest, older)) = receipts.split_last() else {
            return;
        };
        // What fails here is free when it becomes visible by itself.
        if !older.is_empty() {
            let _ = work::delete_receipts(shared, &self.at.url, older).await;
        }
        let newest = [*newest];
        let free = work::change_visibility(shared, &self.at.url, &newest, Duration::ZERO);
        let _ = free.await;
    }
}

impl Shared {
    /// The queue that is the lock of another one, made if it is not there. It is FIFO, whatever the others are.
    async fn lock_queue(&self, name: &str) -> Result<QueueAt, Trouble> {
        let known = self.queues.lock().get(name).cloned();
        if let Some(at) = known {
            return Ok(at);
        }
        let called = name_at_amazon(&self.address.prefix, name, true);
        let at = match self.queue_called(&called).await? {
            Some(at) => at,
            None => self.create_lock(&called).await?,
        };
        self.queues.lock().insert(name.to_owned(), at.clone());
        Ok(at)
    }

    async fn create_lock(&self, called: &str) -> Result<QueueAt, Trouble> {
        let call = self.clients.sqs.create_queue().queue_name(called);
        let call = call
            .attributes(QueueAttributeName::FifoQueue, "true")
            .attributes(
                QueueAttributeName::MessageRetentionPeriod,
                RETENTION_SECONDS.to_string(),
            );
        call.send().await.map_err(trouble)?;
        for _ in 0..LOOKS_MAX {
            if let Some(at) = self.queue_called(called).await? {
                return Ok(at);
            }
            // It may be used a second after it was made.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(Trouble::Busy("it was made just now".into()))
    }
}

async fn put_token(shared: &Shared, at: &QueueAt) -> Result<(), Trouble> {
    let call = shared.clients.sqs.send_message().queue_url(&at.url);
    let call = call
        .message_body("Whoever has received this holds the dead letters.")
        .message_group_id("hold")
        .message_deduplication_id(uuid::Uuid::new_v4().to_string());
    call.send().await.map(drop).map_err(trouble)
}

fn receipts(messages: &[Message]) -> Vec<Arc<str>> {
    let receipts = messages.iter().filter_map(|it| it.receipt_handle());
    receipts.map(Arc::from).collect()
}

/// How old a message is, by this machine's clock; nothing if that cannot be told.
fn age(message: &Message) -> Duration {
    let sent = message.attributes.as_ref();
    let sent = sent.and_then(|it| it.get(&MessageSystemAttributeName::SentTimestamp));
    let sent = sent
        .and_then(|it| it.parse().ok())
        .map(Duration::from_millis);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let age = now.zip(sent).and_then(|(now, sent)| now.checked_sub(sent));
    age.unwrap_or_default()
}
