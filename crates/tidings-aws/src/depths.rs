//! How full queues are, as far as SQS knows: it says that its numbers may be a minute old, and nothing of who receives.

use futures_util::{StreamExt, TryStreamExt, stream};
use tidings_adapter::Backoff;
use tidings_core::{QueueDepth, TransportError};

use crate::{Shared, client::Trouble, groups, letters::Counts};

/// How many queues are asked for at once.
const ASKS_AT_ONCE: usize = 8;

impl Shared {
    pub(crate) async fn depths(
        &self,
        queues: &[String],
    ) -> Result<Vec<Option<QueueDepth>>, TransportError> {
        self.status.reached().await?;
        let looks: Vec<_> = queues.iter().map(|queue| self.depth(queue)).collect();
        let looks = stream::iter(looks).buffered(ASKS_AT_ONCE);
        looks.try_collect().await
    }

    /// What a group has is in the first of its partitions, since they share it.
    async fn count_of_partition(&self, queue: &str) -> Result<Option<Counts>, Trouble> {
        let Some((group, number)) = groups::partition(queue) else {
            return Ok(None);
        };
        match (self.queue(group).await?, number) {
            (None, _) => Ok(None),
            (Some(at), Some(0)) => self.count(&at).await.map(Some),
            (Some(_), _) => Ok(Some(Counts::default())),
        }
    }

    async fn depth(&self, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
        let mut backoff = Backoff::default();
        loop {
            let counted = match self.queue(queue).await {
                Ok(Some(at)) => self.count(&at).await.map(Some),
                Ok(None) => self.count_of_partition(queue).await,
                Err(why) => Err(why),
            };
            match counted {
                Ok(counts) => return Ok(counts.map(|it| QueueDepth::new(it.visible, None))),
                Err(Trouble::Missing(_)) => {
                    self.forget(queue);
                    return Ok(None);
                }
                Err(why) if why.passes() && !self.status.is_closed() => {
                    self.note(&why);
                    backoff.pause().await;
                }
                Err(why) => {
                    return Err(why.into_error(&format!("queue `{queue}` cannot be looked at")));
                }
            }
        }
    }
}
