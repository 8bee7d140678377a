//! The broker that the services of this process use: the one in the box, or one elsewhere.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, anyhow};
use tidings::Transport;
use tidings_amqp::Amqp;
#[cfg(feature = "aws")]
use tidings_aws::Aws;
use tidings_broker::{Broker, Handle, Options};
#[cfg(feature = "kafka")]
use tidings_kafka::Kafka;

use crate::cli::{self, BrokerAt};

/// A connection, over whichever engine.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) transport: Arc<dyn Transport>,
    is_connected: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Connection {
    fn amqp(url: &str) -> anyhow::Result<Self> {
        let builder = Amqp::builder(url).context(NO_URL)?;
        let amqp = Arc::new(builder.name("shop").start());
        Ok(Self {
            transport: Arc::<Amqp>::clone(&amqp),
            is_connected: Arc::new(move || amqp.is_connected()),
        })
    }

    #[cfg(feature = "kafka")]
    fn kafka(url: &str) -> anyhow::Result<Self> {
        let builder = Kafka::builder(url).context(NO_URL)?;
        let kafka = Arc::new(builder.name("shop").start().context(NO_URL)?);
        Ok(Self {
            transport: Arc::<Kafka>::clone(&kafka),
            is_connected: Arc::new(move || kafka.is_connected()),
        })
    }

    #[cfg(feature = "aws")]
    async fn aws(url: &str) -> anyhow::Result<Self> {
        let builder = Aws::builder(url).context(NO_URL)?;
        let aws = Arc::new(builder.name("shop").start().await?);
        Ok(Self {
            transport: Arc::<Aws>::clone(&aws),
            is_connected: Arc::new(move || aws.is_connected()),
        })
    }

    /// True while the broker is there to publish to.
    pub(crate) fn is_connected(&self) -> bool {
        (self.is_connected)()
    }
}

const NO_URL: &str = "`--broker` is not the URL of a broker";

/// A connection, shared by all services of the process, and the broker itself if it runs here.
pub(crate) struct Messaging {
    pub(crate) connection: Connection,
    pub(crate) embedded: Option<Handle>,
}

impl Messaging {
    /// Starts the embedded broker, if that is what to use, and begins to connect. It does not wait
    /// for a broker elsewhere: orders are taken without one.
    pub(crate) async fn start(options: &cli::Options, data: &Path) -> anyhow::Result<Self> {
        let (connection, embedded) = match &options.broker {
            BrokerAt::Amqp(url) => (Connection::amqp(url)?, None),
            #[cfg(feature = "kafka")]
            BrokerAt::Kafka(url) => (Connection::kafka(url)?, None),
            #[cfg(feature = "aws")]
            BrokerAt::Aws(url) => (Connection::aws(url).await?, None),
            BrokerAt::Embedded => {
                let listen = options.amqp_listen;
                let kept = match options.ephemeral {
                    true => Options::ephemeral(),
                    false => Options::durable(data.join("broker")),
                };
                let broker = Broker::start(kept.listen(listen)).await;
                let broker = broker.map_err(|error| explain(error, listen, data))?;
                (Connection::amqp(&broker.amqp_url())?, Some(broker))
            }
        };
        Ok(Self {
            connection,
            embedded,
        })
    }

    /// Where the embedded broker listens.
    pub(crate) fn amqp_addr(&self) -> Option<SocketAddr> {
        self.embedded.as_ref().map(Handle::amqp_addr)
    }

    /// Resolves with the reason when the embedded broker can store nothing more.
    pub(crate) async fn failed(&self) -> String {
        match &self.embedded {
            Some(broker) => broker.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the connection and then the broker, in good order.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.connection.transport.close().await;
        match self.embedded {
            Some(broker) => broker
                .shutdown()
                .await
                .context("the broker did not stop properly"),
            None => Ok(()),
        }
    }
}

/// The broker names the flags of its own program; here they are others.
fn explain(error: tidings_broker::Error, listen: SocketAddr, data: &Path) -> anyhow::Error {
    if error.is_address_taken() {
        anyhow!(
            "port {} for AMQP is taken by another program; stop it, choose another address with \
             `--amqp-listen` (port 0 picks a free one), or use a broker that runs already with \
             `--broker amqp://…`",
            listen.port()
        )
    } else if error.is_data_in_use() {
        anyhow!(
            "the data folder `{}` is used by another process; stop it, or choose another folder \
             with `--data`",
            data.display()
        )
    } else {
        anyhow::Error::from(error).context("the embedded broker cannot start")
    }
}
