//! From nothing to a running shop, and back to rest.
//!
//! What may be wrong is looked at first: ports, folders, databases; until the databases are there,
//! HTTP answers that it is not ready. Then services answer, whether the broker is there or not,
//! because orders are taken without it. Then the queues of *all* services
//! of the shop are declared, wherever they run and whether they have run before; only then do the
//! services of this process receive and publish, so that nothing is said before everybody who is
//! going to listen has a queue. `ready` means that every queue is declared and every service
//! receives.
//!
//! Stopping goes downstream: services finish what they handle and publish what they said (the bank
//! of this process still answers them), then HTTP ends, then the connection, then the broker.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use shop_kit::{BaseUrl, Database};
use shop_notification::Mailer;
use tidings::{Topology, Transport};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    announce,
    broker::Messaging,
    cli::Options,
    http, operator, probes,
    services::{self, Name, Opened, Surroundings},
};

/// How long handlers under way may take once the process is told to stop. What is not done by then
/// is done after the next start.
const HANDLERS_FINISH_TIMEOUT: Duration = Duration::from_secs(10);

const PANICKED: &str = "a service's task panicked; this is a bug, and nothing was lost by it";

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let metrics = probes::start_metrics().context("the metrics cannot start")?;
    let listener = http::bind(options.listen).await?;
    let address = listener.local_addr()?;
    let data = Data::open(&options)?;
    let messaging = Messaging::start(&options, &data.path).await?;
    let operator = operator::bind(&options, &messaging.connection.transport).await?;
    let site = http::Site::default();
    let http_stop = CancellationToken::new();
    let mut http = tokio::spawn(http::serve(listener, site.clone(), http_stop.clone()));
    let opened = tokio::select! {
        opened = open_services(&options, &data.path, address) => opened?,
        () = stop.cancelled() => return messaging.close().await,
    };

    let probes = probes::Probes::new(&opened.services, &messaging.connection, metrics);
    site.open(http::routes(&opened.services, probes.clone()));
    announce::listening("http", address);
    if let Some(amqp) = messaging.amqp_addr() {
        announce::listening("amqp", amqp);
    }

    let mut operator = operator.map(|endpoint| {
        announce::listening("operator", endpoint.address());
        let endpoint = operator::with_services(endpoint, &opened.services);
        tokio::spawn(endpoint.serve(http_stop.clone().cancelled_owned()))
    });

    let topologies = options.without.topologies(options.checkout);
    let mut running = Running::start(opened, &messaging, topologies, &stop);
    let ready = || {
        probes.set_subscribed();
        announce::ready(&options.services, address, messaging.amqp_addr());
    };
    let ended = tokio::select! {
        ended = running.run(ready) => ended,
        ended = &mut http => ended.context("the HTTP server failed").flatten(),
        ended = ended_by_itself(&mut operator) => ended.context("the operator endpoint failed"),
        why = messaging.failed() => Err(anyhow!("the broker stores nothing more: {why}")),
        () = stop.cancelled() => Ok(()),
    };
    stop.cancel();
    tracing::info!("stopping");
    let stopped = running.finish().await;
    http_stop.cancel();
    if !http.is_finished() {
        let _ = http.await;
    }
    if let Some(operator) = operator.filter(|it| !it.is_finished()) {
        let _ = operator.await;
    }
    let closed = messaging.close().await;
    ended.and(stopped).and(closed)
}

/// Resolves when a task ends that is to run until it is told to stop; never without a task.
async fn ended_by_itself(task: &mut Option<JoinHandle<()>>) -> anyhow::Result<()> {
    match task {
        Some(task) => Ok(task.await?),
        None => std::future::pending().await,
    }
}

/// Cancelled by the first SIGINT or SIGTERM; a second one ends the process at once, which loses
/// nothing either.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if token.is_cancelled() {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the second signal means: at once"
                )]
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(stop)
}

/// The data folder; gone at the end if it is ephemeral.
struct Data {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Data {
    fn open(options: &Options) -> anyhow::Result<Self> {
        if options.ephemeral {
            let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
            let path = folder.path().to_owned();
            return Ok(Self {
                path,
                _temporary: Some(folder),
            });
        }
        let path = options.data.clone();
        std::fs::create_dir_all(&path).with_context(|| {
            format!(
                "cannot make the data folder `{}`; choose another one with `--data`",
                path.display()
            )
        })?;
        tempfile::tempfile_in(&path).with_context(|| {
            format!(
                "cannot write to the data folder `{}`; choose another one with `--data`",
                path.display()
            )
        })?;
        Ok(Self {
            path,
            _temporary: None,
        })
    }
}

async fn open_services(
    options: &Options,
    data: &Path,
    address: SocketAddr,
) -> anyhow::Result<Opened> {
    let names = &options.services;
    let database = options
        .database
        .clone()
        .unwrap_or_else(|| Database::Sqlite(data.join("db")));
    if let Database::Sqlite(folder) = &database {
        std::fs::create_dir_all(folder).with_context(|| {
            format!(
                "cannot make the folder `{}` for databases",
                folder.display()
            )
        })?;
    }
    let bank = match &options.bank {
        Some(bank) => Some(bank.clone()),
        None if names.contains(Name::Bank) => Some(own_url(address)?),
        None => None,
    };
    let mailer = match &options.smtp {
        _ if !names.contains(Name::Notification) => None,
        Some(url) => Some(Mailer::smtp(url)?),
        None => Some(Mailer::folder(data.join("mail"))?),
    };
    let around = Surroundings {
        database: &database,
        bank,
        mailer,
        api: &options.api,
        order_deadline: options.order_deadline,
        checkout: options.checkout,
        keep_events: options.keep_events.map(|retention| retention.0),
    };
    services::open(names, &around).await
}

/// How this process reaches itself, also when it listens on every address.
fn own_url(mut address: SocketAddr) -> anyhow::Result<BaseUrl> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    BaseUrl::of_address(address).map_err(anyhow::Error::msg)
}

/// The tasks of the services: those that handle messages, and what runs beside them. If one ends
/// or panics, the process ends with its reason.
struct Running {
    broker: Arc<dyn Transport>,
    /// What has to be on the broker before a service receives or publishes.
    first: Vec<Topology>,
    declared: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    ready: JoinSet<()>,
}

impl Running {
    /// Starts their tasks, which wait until [`run`](Self::run) has declared `topologies`: those of
    /// all services. A process that neither has the broker nor says anything declares nothing, and
    /// waits for no broker.
    fn start(
        opened: Opened,
        messaging: &Messaging,
        topologies: Vec<Topology>,
        stop: &CancellationToken,
    ) -> Self {
        let broker = &messaging.connection.transport;
        let Opened { services, overdue } = opened;
        let speaks = services.iter().any(|service| service.messages.is_some());
        let needs_queues = speaks || messaging.embedded.is_some();
        let mut running = Self {
            broker: Arc::clone(broker),
            first: if needs_queues { topologies } else { Vec::new() },
            declared: CancellationToken::new(),
            tasks: JoinSet::new(),
            ready: JoinSet::new(),
        };
        for router in services.into_iter().filter_map(|service| service.messages) {
            let router = router.shutdown_timeout(HANDLERS_FINISH_TIMEOUT);
            let serve = tidings::serve(Arc::clone(broker), router)
                .with_graceful_shutdown(stop.clone().cancelled_owned());
            running.ready.spawn(serve.ready());
            let (declared, stop) = (running.declared.clone(), stop.clone());
            running.tasks.spawn(async move {
                tokio::select! {
                    () = declared.cancelled() => Ok(serve.await?),
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
        if let Some(overdue) = overdue {
            let stop = stop.clone();
            running.tasks.spawn(async move {
                tokio::select! {
                    () = overdue.run() => Err(anyhow!("nobody keeps the deadline of orders any more")),
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
        running
    }

    /// Calls `ready` when all receive, and ends when one has stopped by itself.
    async fn run(&mut self, ready: impl FnOnce()) -> anyhow::Result<()> {
        for topology in &self.first {
            self.broker.declare(topology).await?;
        }
        self.declared.cancel();
        loop {
            tokio::select! {
                received = self.ready.join_next() => if received.is_none() {
                    break;
                },
                Some(ended) = self.tasks.join_next() => return ended.context(PANICKED)?,
            }
        }
        ready();
        match self.tasks.join_next().await {
            Some(ended) => ended.context(PANICKED)?,
            // No service of this process handles messages.
            None => std::future::pending().await,
        }
    }

    /// Until all have stopped, after they were told to.
    async fn finish(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            outcome = outcome.and(ended.context(PANICKED)?);
        }
        outcome
    }
}
