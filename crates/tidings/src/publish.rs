//! What every message that leaves gets, and sending without an outbox.

use std::borrow::Cow;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{Context, Error, MessageId, Outgoing, PublishErrorKind, Transport, Unrouted};

/// Who sends.
pub(crate) struct Sender {
    pub(crate) source: Cow<'static, str>,
}

impl Sender {
    /// Completes the envelopes of messages that are about to leave: id, source, time, and what
    /// caused them.
    pub(crate) fn stamp(&self, messages: &mut [Outgoing], cause: Option<&Context>) {
        if messages.is_empty() {
            return;
        }
        let now = Timestamp::now();
        for Outgoing { envelope, .. } in messages {
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
                    envelope.traceparent = incoming.traceparent.clone();
                }
                None => {
                    let first = || id.as_str().into();
                    envelope.correlation_id.get_or_insert_with(first);
                }
            }
        }
    }
}

/// Publishes without an outbox, and resolves when the broker has taken over every message.
///
/// This is for consumers without a store: a crash between this and the acknowledgement publishes
/// again, so P2 (effects once) is not theirs.
pub(crate) async fn directly(
    transport: &dyn Transport,
    messages: Vec<Outgoing>,
) -> Result<(), Error> {
    if messages.is_empty() {
        return Ok(());
    }
    let sent: Vec<_> = messages
        .iter()
        .map(|message| {
            (
                message.envelope.name.clone(),
                message.destination.clone(),
                message.unrouted,
            )
        })
        .collect();
    let outcomes = transport.publish(messages).await;
    for ((name, destination, unrouted), outcome) in sent.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => {}
            Err(error)
                if error.kind() == PublishErrorKind::Unroutable && unrouted == Unrouted::Drop => {}
            Err(error) => {
                return Err(Error::msg(format!(
                    "`{name}` was not published to {destination}: {error}"
                )));
            }
        }
    }
    Ok(())
}
