//! On which connection a subscription is: on the one that all share, or on one of its own after the broker ended the shared
//! one instead of answering.
//!
//! RabbitMQ closes the whole connection (`INTERNAL_ERROR`, after five seconds) when a quorum queue cannot answer
//! `basic.consume`. On a shared connection one such queue would end all subscriptions of a process again and again.

use std::sync::Arc;

use tidings_core::TransportError;
use tokio_util::sync::DropGuard;
use tracing::warn;

use crate::{
    Consuming, Shared,
    link::Link,
    session::{Closed, Session},
};

/// The connection that all share, at first.
#[derive(Default)]
pub(super) struct Place {
    own: Option<Own>,
}

struct Own {
    link: Link<Consuming>,
    _stop: DropGuard,
}

impl Place {
    /// The connection there is, or the next one there will be.
    pub(super) async fn session(&self, shared: &Shared) -> Result<Arc<Session>, TransportError> {
        let Some(own) = &self.own else {
            return Ok(Arc::clone(&*shared.consuming().up().await?));
        };
        // What keeps only this subscription from the broker (a limit of connections, perhaps) ends no service.
        let up = own.link.up().await;
        let up = up.map_err(|error| TransportError::temporary(error.to_string()))?;
        shared.note_apart(&up);
        Ok(Arc::clone(&*up))
    }

    /// The subscription was asked for, and this came instead of an answer.
    pub(super) fn unanswered(&mut self, shared: &Shared, queue: &str, closed: &Closed) {
        let is_by_broker = closed.is_connection && closed.code != 0;
        if !is_by_broker || self.own.is_some() {
            return;
        }
        warn!(
            queue,
            reason = %closed.reason,
            "the broker closed the connection instead of answering a subscription, which gets a connection of its own, so \
             that the others go on; see in the broker's log what is wrong with the queue"
        );
        let stop = shared.around.stop.child_token();
        let mut around = shared.around.clone();
        around.stop = stop.clone();
        self.own = Some(Own {
            link: Link::start(Consuming, &around),
            _stop: stop.drop_guard(),
        });
    }

    /// It was answered, and has ended since: the next time it may share again.
    pub(super) fn answered(&mut self) {
        self.own = None;
    }
}
