//! How many messages wait in a queue, as the transport of its broker counts them.

use anyhow::Result;
use tidings::{Transport, TransportError};
use tidings_amqp::Amqp;

/// The messages that are ready in `queue`, or nothing when there is no such queue.
pub(crate) fn depth(url: &str, queue: &str) -> Result<Option<u32>> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let transport = connect(url).await?;
        let depths = transport.queue_depths(&[queue.to_owned()]).await?;
        transport.close().await;
        Ok(depths[0].map(|depth| depth.ready))
    })
}

async fn connect(url: &str) -> Result<Box<dyn Transport>, TransportError> {
    #[cfg(feature = "kafka")]
    if url.starts_with("kafka://") {
        return Ok(Box::new(tidings_kafka::Kafka::connect(url).await?));
    }
    #[cfg(feature = "aws")]
    if url.starts_with("aws://") {
        return Ok(Box::new(tidings_aws::Aws::connect(url).await?));
    }
    Ok(Box::new(Amqp::connect(url).await?))
}
