//! The broker that the command line names: AMQP, Kafka or SNS and SQS in a build with them, or whatever an operator endpoint
//! reaches.

use std::{fmt, sync::Arc};

use anyhow::{Context as _, bail};
use tidings::Transport;
use tidings_amqp::Amqp;
use tokio::time::timeout;

use super::{BROKER_WAIT_MAX, Frame, Usage};
use crate::code::Code;

/// What a broker's URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Amqp,
    Kafka,
    Aws,
}

impl Engine {
    fn of(url: &str) -> Self {
        match url.split_once("://") {
            Some(("kafka" | "kafkas", _)) => Self::Kafka,
            Some(("aws", _)) => Self::Aws,
            _ => Self::Amqp,
        }
    }

    /// Its name for people.
    fn name(self) -> &'static str {
        match self {
            Self::Amqp => "AMQP",
            Self::Kafka => "Kafka",
            Self::Aws => "Amazon SNS and SQS",
        }
    }

    /// What this build lacks to reach it.
    #[cfg(not(all(feature = "kafka", feature = "aws")))]
    fn is_not_built(self, feature: &str, option: &str) -> anyhow::Error {
        let name = self.name();
        Usage::new(format!(
            "this build of `tidings` cannot use {name}, which `{option}` names; build it with `--features {feature}`"
        ))
        .into()
    }
}

impl Frame {
    /// The broker's URL without user and password, or the endpoint through which it is reached.
    pub(crate) fn broker_address(&self) -> String {
        if let (None, Some(at)) = (&self.options.broker, self.options.at.first()) {
            return format!("through {at}");
        }
        let url = self.options.broker.as_deref().unwrap_or_default();
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, address))) => format!("{scheme}://{address}"),
            _ => url.to_owned(),
        }
    }

    /// The broker, itself or through an operator endpoint, within ten seconds.
    ///
    /// # Errors
    ///
    /// When the command line names none, or it cannot be reached.
    pub(crate) async fn broker(&self) -> anyhow::Result<Arc<dyn Transport>> {
        if self.options.broker.is_some() || !self.has_endpoint() {
            return self.direct("this").await;
        }
        let remote = self.remotes()?.into_iter().next();
        let remote = remote.context("an operator endpoint was named")?;
        let broker: Arc<dyn Transport> = Arc::new(remote.broker());
        // Whether the endpoint answers, and then whether its service is connected.
        remote.services().await?;
        self.depths(&broker, &[] as &[&str]).await?;
        Ok(broker)
    }

    /// The broker itself, of whatever engine, within ten seconds, for `what` cannot be done through an endpoint.
    ///
    /// # Errors
    ///
    /// When the command line names none, or it cannot be reached.
    pub(crate) async fn direct(&self, what: &str) -> anyhow::Result<Arc<dyn Transport>> {
        Self::reach(self.broker_url(what)?, "--broker").await
    }

    /// Kafka itself, within ten seconds, for `what` cannot be done on another engine.
    ///
    /// # Errors
    ///
    /// When the command line names none or another engine, or it cannot be reached.
    #[cfg(feature = "kafka")]
    pub(crate) async fn kafka(&self, what: &str) -> anyhow::Result<tidings_kafka::Kafka> {
        let url = self.broker_url(what)?;
        if Engine::of(url) != Engine::Kafka {
            bail!(Usage::new(format!(
                "{what} needs Kafka: `--broker kafka://host:port`"
            )));
        }
        Self::connect_kafka(url, "--broker").await
    }

    /// Kafka, within ten seconds, if the command line names it.
    ///
    /// # Errors
    ///
    /// When it cannot be reached.
    #[cfg(feature = "kafka")]
    pub(crate) async fn kafka_if_named(&self) -> anyhow::Result<Option<tidings_kafka::Kafka>> {
        let url = self.options.broker.as_deref().unwrap_or_default();
        match Engine::of(url) {
            Engine::Kafka => Ok(Some(Self::connect_kafka(url, "--broker").await?)),
            _ => Ok(None),
        }
    }

    /// Amazon SNS and SQS, within ten seconds, if the command line names them.
    ///
    /// # Errors
    ///
    /// When they cannot be reached.
    #[cfg(feature = "aws")]
    pub(crate) async fn aws_if_named(&self) -> anyhow::Result<Option<tidings_aws::Aws>> {
        let url = self.options.broker.as_deref().unwrap_or_default();
        match Engine::of(url) {
            Engine::Aws => Ok(Some(Self::connect_aws(url, "--broker").await?)),
            _ => Ok(None),
        }
    }

    /// A connection with an AMQP broker itself, within ten seconds, for `what` cannot be done otherwise.
    ///
    /// # Errors
    ///
    /// When the command line names none or another engine, or it cannot be reached.
    pub(crate) async fn amqp(&self, what: &str) -> anyhow::Result<Amqp> {
        let url = self.broker_url(what)?;
        let engine = Engine::of(url);
        if engine != Engine::Amqp {
            bail!(Usage::new(format!(
                "{what} cannot be done on {}: `--broker` has to name RabbitMQ or the broker in the box",
                engine.name()
            )));
        }
        Self::reach_amqp(url, "--broker").await
    }

    fn broker_url(&self, what: &str) -> anyhow::Result<&str> {
        if self.options.broker.is_none() && self.has_endpoint() {
            self.not_through_an_endpoint(what, "--broker amqp://user:password@host:port/vhost")?;
        }
        Ok(match self.options.broker.as_deref() {
            None => bail!(Usage::new(
                "say where the broker is: `--broker amqp://user:password@host:port/vhost`, or set \
                 TIDINGS_BROKER"
            )),
            Some("embedded") => bail!(Usage::new(
                "`embedded` is the broker in the program of a service; name the address at which \
                 that listens: `--broker amqp://guest:guest@127.0.0.1:5672`"
            )),
            Some(url) => url,
        })
    }

    /// The broker at `url`, which `option` names, within ten seconds.
    ///
    /// # Errors
    ///
    /// When it cannot be reached.
    pub(crate) async fn reach(url: &str, option: &str) -> anyhow::Result<Arc<dyn Transport>> {
        match Engine::of(url) {
            Engine::Kafka => Self::reach_kafka(url, option).await,
            Engine::Aws => Self::reach_aws(url, option).await,
            Engine::Amqp => Ok(Arc::new(Self::reach_amqp(url, option).await?)),
        }
    }

    async fn reach_amqp(url: &str, option: &str) -> anyhow::Result<Amqp> {
        let builder = Amqp::builder(url).map_err(|error| Usage::new(error.to_string()))?;
        Self::within(builder.name("tidings").connect(), option).await
    }

    #[cfg(feature = "kafka")]
    async fn reach_kafka(url: &str, option: &str) -> anyhow::Result<Arc<dyn Transport>> {
        Ok(Arc::new(Self::connect_kafka(url, option).await?))
    }

    #[cfg(feature = "kafka")]
    async fn connect_kafka(url: &str, option: &str) -> anyhow::Result<tidings_kafka::Kafka> {
        let builder = tidings_kafka::Kafka::builder(url);
        let builder = builder.map_err(|error| Usage::new(error.to_string()))?;
        Self::within(builder.name("tidings").connect(), option).await
    }

    #[cfg(not(feature = "kafka"))]
    async fn reach_kafka(_: &str, option: &str) -> anyhow::Result<Arc<dyn Transport>> {
        Err(Engine::Kafka.is_not_built("kafka", option))
    }

    #[cfg(feature = "aws")]
    async fn reach_aws(url: &str, option: &str) -> anyhow::Result<Arc<dyn Transport>> {
        Ok(Arc::new(Self::connect_aws(url, option).await?))
    }

    #[cfg(feature = "aws")]
    async fn connect_aws(url: &str, option: &str) -> anyhow::Result<tidings_aws::Aws> {
        let builder = tidings_aws::Aws::builder(url);
        let builder = builder.map_err(|error| Usage::new(error.to_string()))?;
        Self::within(builder.name("tidings").connect(), option).await
    }

    #[cfg(not(feature = "aws"))]
    async fn reach_aws(_: &str, option: &str) -> anyhow::Result<Arc<dyn Transport>> {
        Err(Engine::Aws.is_not_built("aws", option))
    }

    async fn within<T, E>(
        connecting: impl Future<Output = Result<T, E>>,
        option: &str,
    ) -> anyhow::Result<T>
    where
        E: fmt::Display,
    {
        match timeout(BROKER_WAIT_MAX, connecting).await {
            Ok(Ok(broker)) => Ok(broker),
            Ok(Err(error)) => Err(Code::Broker.of(error)),
            Err(_) => Err(Code::Broker.of(format!(
                "the broker cannot be reached: it did not answer in {} seconds; see that it runs, and \
                 that `{option}` names its address",
                BROKER_WAIT_MAX.as_secs()
            ))),
        }
    }
}
