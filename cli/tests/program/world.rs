//! Two services, `checkout` and `payment`, with a database each and a broker between them: a saga of one
//! step, whose target does as the order's card says.

use std::{path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;
use tidings::{
    IntoRouters, Permanent, Saga, Sagas, ScheduleId, Sensitive, StepError, StepReply, Store,
    prelude::*,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_postgres::{PostgresOptions, PostgresStore};
use tidings_sqlite::SqliteStore;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::run::{Ran, tidings};

/// How long to wait for something that happens soon.
const SOON: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    card: String,
    customer: Customer,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Customer {
    #[tidings(sensitive)]
    nick: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderConfirmed {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderCancelled {
    order_id: String,
    reason: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderExpired {
    order_id: String,
    email: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = String)]
struct ChargeCard {
    order_id: String,
    card: String,
    /// What stands on the bill.
    statement: [Line; 2],
}

#[derive(Clone, Serialize, Deserialize, Sensitive)]
struct Line(#[tidings(sensitive)] String);

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct RefundCard {
    charge: String,
}

async fn checkout(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let OrderPlaced { order_id, card, .. } = order;
    let cancelled = |error: StepError| OrderCancelled {
        order_id: order_id.clone(),
        reason: error.to_string(),
    };
    let charge = ChargeCard {
        order_id: order_id.clone(),
        card,
        statement: ["l1ne one", "l1ne two"].map(|it| Line(it.into())),
    };
    let charge = saga
        .step("charge-card", charge)
        .undo(|charge| RefundCard { charge });
    charge.await.map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

async fn refund_first(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let OrderPlaced { order_id, card, .. } = order;
    let refund = RefundCard { charge: card };
    let refunded = saga.step("refund-first", refund).no_undo().await;
    match refunded {
        Ok(()) => Ok(OrderConfirmed { order_id }),
        Err(error) => Err(OrderCancelled {
            order_id,
            reason: error.to_string(),
        }),
    }
}

async fn charge(command: ChargeCard) -> Result<StepReply<String>> {
    match &*command.card {
        "broken" => Err(Permanent::new("the bank cannot be understood").into()),
        "later" => Err(tidings::Error::msg("the bank does not answer")),
        _ => Ok(StepReply::Done(format!("c-{}", command.order_id))),
    }
}

async fn refund(_: RefundCard) -> Result<()> {
    Ok(())
}

/// What the services keep their data in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stack {
    Sqlite,
    Postgres,
}

/// The services' databases and their broker.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    /// As the command line names it.
    pub(crate) database: String,
    pub(crate) checkout: Arc<dyn Store>,
    pub(crate) payment: Arc<dyn Store>,
    broker: Handle,
}

impl World {
    pub(crate) async fn new(stack: Stack) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::start(Options::ephemeral()).await.unwrap();
        let database = match stack {
            Stack::Sqlite => format!("sqlite://{}", folder.path().display()),
            Stack::Postgres => fresh_database().await,
        };
        let open = async |service: &str| -> Arc<dyn Store> {
            match stack {
                Stack::Sqlite => open_file(folder.path(), service).await.into(),
                Stack::Postgres => {
                    let options = PostgresOptions::new(&database, service).connections_max(6);
                    options.connect().await.unwrap().into()
                }
            }
        };
        let (checkout, payment) = (open("checkout").await, open("payment").await);
        Self {
            folder,
            database,
            checkout,
            payment,
            broker,
        }
    }

    /// The broker's URL.
    pub(crate) fn broker(&self) -> String {
        self.broker.amqp_url()
    }

    /// Runs the program on the databases.
    pub(crate) async fn tidings(&self, args: &[&str]) -> Ran {
        self.tidings_with(args, &[]).await
    }

    /// Runs the program on the databases and the broker.
    pub(crate) async fn tidings_and_broker(&self, args: &[&str]) -> Ran {
        self.tidings_with(args, &["--broker", &self.broker()]).await
    }

    async fn tidings_with(&self, args: &[&str], more: &[&str]) -> Ran {
        let args = [args, &["--database", &self.database], more].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        // The services of this test go on meanwhile.
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
    }

    /// Starts both services.
    pub(crate) async fn start(&self) -> Running {
        let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
        self.start_with(sagas.version(1, checkout)).await
    }

    /// Starts both services, with a function that was changed in place.
    pub(crate) async fn start_changed(&self) -> Running {
        let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
        let sagas = sagas.version(1, refund_first).force_start(true);
        self.start_with(sagas).await
    }

    async fn start_with(&self, sagas: Sagas<OrderPlaced>) -> Running {
        let retry = Retry::exponential(Duration::from_secs(3600)).attempts(5);
        let routers = vec![
            Router::new("checkout")
                .saga(sagas)
                .transactional(Arc::clone(&self.checkout)),
            Router::new("payment")
                .on(charge)
                .on(refund)
                .retry(retry)
                .transactional(Arc::clone(&self.payment)),
        ];
        Running::start(&self.broker(), routers).await
    }

    /// A customer places an order.
    pub(crate) async fn place(&self, order_id: &str, card: &str) {
        let order = OrderPlaced {
            order_id: order_id.into(),
            card: card.into(),
            customer: Customer {
                nick: "n1ck".into(),
            },
        };
        let shop = Producer::new("shop", Arc::clone(&self.checkout));
        shop.publish(&order).await.unwrap();
    }

    /// The service `checkout` says something in an hour.
    pub(crate) async fn schedule(&self, order_id: &str, name: &str) {
        let event = OrderExpired {
            order_id: order_id.into(),
            email: "ann@example.org".into(),
        };
        let later = event.after(Duration::from_secs(3600));
        let producer = Producer::new("checkout", Arc::clone(&self.checkout));
        let mut transaction = producer.transaction();
        transaction
            .say(later.scheduled_as(ScheduleId::new(name)))
            .unwrap();
        transaction.commit().await.unwrap();
    }

    /// Runs the program until its JSON is as it should be, and returns that.
    pub(crate) async fn until(
        &self,
        args: &[&str],
        is_so: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let since = Instant::now();
        loop {
            let ran = self.tidings(args).await;
            let json = ran.json();
            if is_so(&json) {
                return json;
            }
            assert!(since.elapsed() < SOON, "in vain: {args:?}: {ran:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A service's database, made as the service makes it.
pub(crate) async fn open_file(folder: &Path, service: &str) -> SqliteStore {
    let path = folder.join(format!("{service}.db"));
    SqliteStore::open(path).await.unwrap()
}

/// A database of a PostgreSQL server that nobody else uses.
async fn fresh_database() -> String {
    let url = tidings_testing::servers::postgres_url();
    let name = format!("cli_{}", uuid::Uuid::new_v4().simple());
    let maker = PostgresStore::connect(&*url, "cli_maker").await.unwrap();
    let client = maker.client().await.unwrap();
    client
        .batch_execute(&format!("create database {name}"))
        .await
        .unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// Services that run until they are stopped.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    services: JoinHandle<Result<(), tidings::ServeError>>,
}

impl Running {
    async fn start(broker: &str, routers: impl IntoRouters) -> Self {
        let amqp = Arc::new(Amqp::connect(broker).await.unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let services = serve(amqp, routers).with_graceful_shutdown(stopped);
        let ready = services.ready();
        let services = tokio::spawn(services.into_future());
        tokio::time::timeout(SOON, ready).await.unwrap();
        Self { stop, services }
    }

    /// Stops them in good order.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.services.await.unwrap().unwrap();
    }
}
