//! What the examples stand on: the broker in the box, and a folder for databases. Both are gone at the
//! end.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use tidings::{IntoRouters, serve};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::SqliteStore;
use tokio::{sync::oneshot, task::JoinHandle};

/// The longest an example may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker and a folder.
pub struct Ground {
    broker: Handle,
    folder: tempfile::TempDir,
}

/// Services that run.
pub struct Running {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tidings::ServeError>>,
}

impl Ground {
    /// Starts the broker, on a free port.
    ///
    /// # Errors
    ///
    /// When there is no port, or no room for a folder.
    pub async fn new() -> anyhow::Result<Self> {
        let options = Options::ephemeral().listen(([127, 0, 0, 1], 0));
        Ok(Self {
            broker: Broker::start(options).await?,
            folder: tempfile::tempdir()?,
        })
    }

    /// A connection with the broker.
    ///
    /// # Errors
    ///
    /// When it cannot be reached.
    pub async fn transport(&self) -> anyhow::Result<Amqp> {
        let address = self.broker.amqp_addr();
        Ok(Amqp::connect(&format!("amqp://guest:guest@{address}")).await?)
    }

    /// The database of a service, with these tables.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub async fn store(&self, service: &str, tables: &str) -> anyhow::Result<SqliteStore> {
        let store = SqliteStore::open(self.folder.path().join(service)).await?;
        if !tables.is_empty() {
            store.migrate(&[("0001", tables)]).await?;
        }
        Ok(store)
    }

    /// Runs services until [`Running::stop`]; returns when they receive.
    ///
    /// # Errors
    ///
    /// When they cannot start.
    pub async fn run(&self, services: impl IntoRouters) -> anyhow::Result<Running> {
        let (stop, stopped) = oneshot::channel();
        let service = serve(self.transport().await?, services);
        let service = service.with_graceful_shutdown(async { drop(stopped.await) });
        let ready = service.ready();
        let serving = tokio::spawn(service.into_future());
        in_time("services that receive", ready).await?;
        Ok(Running { stop, serving })
    }
}

impl Running {
    /// Stops the services when they have finished what they have begun.
    ///
    /// # Errors
    ///
    /// When one of them had ended by itself.
    pub async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        Ok(self.serving.await??)
    }
}

/// Waits for something, for a minute at most.
///
/// # Errors
///
/// When it does not happen.
pub async fn in_time<T>(what: &str, happens: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(PATIENCE, happens).await;
    waited.with_context(|| format!("waited in vain for {what}"))
}
