//! Looking at queues, for operators: how much is in them, and whether anybody receives.
//!
//! A look is a passive declaration: it makes and changes nothing, and takes no message.

use tidings_core::{QueueDepth, TransportError};
use tidings_wire::{Method, QueueDeclare, QueueDeclareOk, reply};

use crate::{
    Amqp,
    session::{Channel, Quiet},
    topology::{DeclareError, NAME_BYTES_MAX, checked_name},
};

impl Amqp {
    /// How full these queues are, in their order; `None` for one that is not there.
    ///
    /// # Errors
    ///
    /// When the connection is lost, or the broker refuses the look.
    pub async fn depths(
        &self,
        queues: &[impl AsRef<str>],
    ) -> Result<Vec<Option<QueueDepth>>, TransportError> {
        let up = self.shared.publishing.up().await?;
        let closed = |queue: &str| {
            let what = format!("queue `{queue}`");
            move |closed| DeclareError::Closed { what, closed }.into_transport()
        };
        let mut depths = Vec::with_capacity(queues.len());
        // The broker closes the channel on which it is asked for a queue that is not there.
        let mut channel = None;
        for queue in queues {
            let queue = queue.as_ref();
            let passive = QueueDeclare {
                passive: true,
                queue: checked_name("queue", queue, NAME_BYTES_MAX)
                    .map_err(DeclareError::into_transport)?,
                ..QueueDeclare::default()
            };
            let open = match channel.take() {
                Some(open) => open,
                None => Channel::open(&up.session, |_| Box::new(Quiet))
                    .await
                    .map_err(closed(queue))?,
            };
            match open.call(&passive).await {
                Ok(Method::QueueDeclareOk(QueueDeclareOk {
                    message_count,
                    consumer_count,
                    ..
                })) => {
                    depths.push(Some(QueueDepth::new(message_count, Some(consumer_count))));
                    channel = Some(open);
                }
                Ok(other) => {
                    return Err(TransportError::fatal(format!(
                        "the broker answered a look at the queue `{queue}` with `{}`",
                        other.name()
                    )));
                }
                Err(error) if error.code == reply::NOT_FOUND && !error.passes() => {
                    depths.push(None);
                }
                Err(error) => return Err(closed(queue)(error)),
            }
        }
        Ok(depths)
    }
}
