//! The parts: what each process of a run does. They know nothing of the faults.
//!
//! A part takes its surroundings as arguments, prints `ready` when it works, and runs until it is
//! killed or asked to end.

mod consumer;
mod producer;
mod trips;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use tidings::{Router, Transport, serve};
use tidings_amqp::Amqp;
#[cfg(feature = "aws")]
use tidings_aws::Aws;
use tidings_broker::{Broker, Options};
#[cfg(feature = "kafka")]
use tidings_kafka::Kafka;

use crate::database::Database;

/// One part.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Commits events, and takes the answers.
    Producer(producer::Options),
    /// Handles events.
    Consumer(Surroundings),
    /// The broker in the box.
    Broker {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        data: PathBuf,
    },
}

/// What a service needs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Surroundings {
    #[arg(long)]
    broker: String,
    /// A path, or a URL.
    #[arg(long)]
    database: String,
    #[arg(long)]
    seed: u64,
    /// Which of the processes of this kind it is.
    #[arg(long)]
    instance: u64,
}

impl Part {
    pub(crate) async fn run(self) -> Result<()> {
        match self {
            Self::Producer(options) => producer::run(options).await,
            Self::Consumer(surroundings) => consumer::run(surroundings).await,
            Self::Broker { listen, data } => broker(listen, data).await,
        }
    }
}

async fn broker(listen: SocketAddr, data: PathBuf) -> Result<()> {
    let broker = Broker::start(Options::durable(data).listen(listen)).await?;
    println!("ready");
    tokio::select! {
        failure = broker.failed() => anyhow::bail!("nothing can be stored any more: {failure}"),
        () = terminated() => {}
    }
    Ok(broker.shutdown().await?)
}

impl Surroundings {
    async fn database(&self, schema: &str) -> Result<Database> {
        let opened = Database::open(&self.database, schema).await;
        opened.with_context(|| format!("cannot open `{}`", self.database))
    }

    async fn transport(&self) -> Result<Arc<dyn Transport>> {
        let url = &*self.broker;
        Ok(match url.split("://").next() {
            #[cfg(feature = "kafka")]
            Some("kafka") => Arc::new(Kafka::connect(url).await?),
            #[cfg(feature = "aws")]
            Some("aws") => Arc::new(Aws::connect(url).await?),
            _ => Arc::new(Amqp::connect(url).await?),
        })
    }
}

/// Serves until the process is asked to end.
async fn serve_until_terminated(transport: Arc<dyn Transport>, routers: Vec<Router>) -> Result<()> {
    let serve = serve(transport, routers).with_graceful_shutdown(terminated());
    let ready = serve.ready();
    tokio::spawn(async move {
        ready.await;
        println!("ready");
    });
    Ok(serve.await?)
}

/// Resolves when the process is asked to end.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        // Then it can only be killed.
        Err(_) => std::future::pending().await,
    }
}
