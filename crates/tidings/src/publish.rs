//! What every message that leaves gets, what is committed to send it, and sending without an outbox.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tidings_saga::STEP_HEADER;
use uuid::Uuid;

use crate::{
    Commit, Context, Destination, Error, MessageId, Messages, Outgoing, Permanent,
    PublishErrorKind, REPLY_TO_HEADER, RecordChange, RecordId, Transport, Unrouted, schedule,
    trace,
};

/// Looks at each message that is sent, and may change or refuse it.
pub(crate) type OnSend = Arc<dyn Fn(&mut Outgoing) -> Result<(), Error> + Send + Sync>;

/// Who sends.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) source: Cow<'static, str>,
    /// Called for each message, in this order.
    pub(crate) on_send: Vec<OnSend>,
}

impl Sender {
    /// What is committed to send `messages`: those that leave now as outbox rows, those that leave
    /// later as schedules.
    ///
    /// # Errors
    ///
    /// When one of [`on_send`](Self::on_send) refuses a message.
    pub(crate) fn commit(
        &self,
        mut messages: Messages,
        cause: Option<&Context>,
    ) -> Result<Commit, Error> {
        self.complete(&mut messages, cause)?;
        let cancelled = messages.cancelled.iter().map(schedule::cancelled);
        let scheduled = messages.later.into_iter().map(schedule::record);
        // Of several words about one name the last one holds, and a schedule more than a
        // cancellation.
        let mut records: BTreeMap<RecordId, RecordChange> = BTreeMap::new();
        for change in messages
            .records
            .into_iter()
            .chain(cancelled)
            .chain(scheduled)
        {
            records.insert(change.id.clone(), change);
        }
        Ok(Commit {
            outbox: messages.now,
            records: records.into_values().collect(),
            ..Commit::default()
        })
    }

    /// Makes messages ready to leave.
    fn complete(&self, messages: &mut Messages, cause: Option<&Context>) -> Result<(), Error> {
        self.stamp(messages.now.iter_mut(), cause);
        self.stamp(messages.later.iter_mut().map(|it| &mut it.message), cause);
        self.answer(messages, cause);
        let later = messages.later.iter_mut().map(|it| &mut it.message);
        for message in messages.now.iter_mut().chain(later) {
            for on_send in &self.on_send {
                on_send(message)?;
            }
        }
        Ok(())
    }

    /// Turns answers into messages to whoever asked.
    fn answer(&self, messages: &mut Messages, cause: Option<&Context>) {
        let mut replies = std::mem::take(&mut messages.replies);
        let asked = cause.and_then(|context| {
            let reply_to = context.envelope().header(REPLY_TO_HEADER)?;
            Some((reply_to.to_owned(), context.message_id()))
        });
        let Some((reply_to, question)) = asked else {
            return;
        };
        self.stamp(replies.iter_mut(), cause);
        let step = cause.and_then(|context| context.envelope().header(STEP_HEADER));
        for mut reply in replies {
            reply.destination = Destination::Queue(reply_to.clone().into());
            // Whoever asked may be gone, and nobody else wants the answer.
            reply.unrouted = Unrouted::Drop;
            if let Some(step) = step {
                reply.unrouted = Unrouted::Hold; // A saga is not gone.
                reply
                    .envelope
                    .headers
                    .push((STEP_HEADER.into(), step.into()));
            }
            // One answer to one question, whatever the answer says.
            reply.envelope.id = Some(MessageId::new(format!("reply/{question}")));
            reply.envelope.key = None;
            messages.now.push(reply);
        }
    }

    /// Completes the envelopes of messages that are about to leave: id, source, time, and what
    /// caused them.
    fn stamp<'a>(&self, messages: impl Iterator<Item = &'a mut Outgoing>, cause: Option<&Context>) {
        let mut now = None;
        for Outgoing { envelope, .. } in messages {
            let now = *now.get_or_insert_with(Timestamp::now);
            let id = envelope
                .id
                .get_or_insert_with(|| MessageId::new(Uuid::now_v7().to_string()));
            envelope.source = self.source.clone();
            envelope.time.get_or_insert(now);
            match cause {
                Some(context) => {
                    let (incoming, incoming_id) = (context.envelope(), context.message_id());
                    let correlation_id = incoming.correlation_id.clone();
                    envelope.correlation_id =
                        Some(correlation_id.unwrap_or_else(|| incoming_id.as_str().into()));
                    envelope.causation_id = Some(incoming_id.as_str().into());
                    envelope.traceparent = Some(trace::of(context).into());
                }
                None => {
                    let first = || id.as_str().into();
                    envelope.correlation_id.get_or_insert_with(first);
                    let begun = || trace::below(None);
                    envelope.traceparent.get_or_insert_with(begun);
                }
            }
        }
    }

    /// Publishes without an outbox, and resolves when the broker has taken over every message.
    ///
    /// This is for consumers without a store: a crash between this and the acknowledgement publishes
    /// again, so P2 (effects once) is not theirs.
    ///
    /// # Errors
    ///
    /// When the broker did not take a message; permanent, when one is to be sent later.
    pub(crate) async fn directly(
        &self,
        transport: &dyn Transport,
        mut messages: Messages,
        cause: Option<&Context>,
    ) -> Result<(), Error> {
        let in_store = !messages.cancelled.is_empty() || !messages.records.is_empty();
        if in_store || !messages.later.is_empty() {
            return Err(Error::from(Permanent::new(
                "a message that is sent later waits in the store, and this consumer has none; add \
                 `.transactional(store)` to its router",
            )));
        }
        self.complete(&mut messages, cause)?;
        if messages.now.is_empty() {
            return Ok(());
        }
        let sent: Vec<_> = messages
            .now
            .iter()
            .map(|message| {
                (
                    message.envelope.name.clone(),
                    message.destination.clone(),
                    message.unrouted,
                )
            })
            .collect();
        let outcomes = transport.publish(messages.now).await;
        for ((name, destination, unrouted), outcome) in sent.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {}
                Err(error)
                    if error.kind() == PublishErrorKind::Unroutable
                        && unrouted == Unrouted::Drop => {}
                Err(error) => {
                    return Err(Error::msg(format!(
                        "`{name}` was not published to {destination}: {error}"
                    )));
                }
            }
        }
        Ok(())
    }
}
