//! The shop as it runs in earnest: a broker, databases, and each service in processes of its own,
//! all of which a test can stop, kill and start again at the same address.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shop_contracts::CheckoutStyle;
use tempfile::TempDir;
#[cfg(feature = "aws")]
use tidings_testing::servers::AwsEmulator;
#[cfg(feature = "kafka")]
use tidings_testing::servers::Kafka;
use tidings_testing::servers::{
    Postgres, Process, RabbitMq, RabbitMqCluster, free_port, wait_until,
};

use crate::http::{self, Answer};
use crate::queues;

/// How long a process of the shop may take until it is ready, on a machine that is busy.
const READY_MAX: Duration = Duration::from_secs(120);

/// How long a process may take to end in peace.
const STOP_MAX: Duration = Duration::from_secs(30);

/// How much of a log is shown when a test fails.
const LOG_LINES: usize = 20;

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BrokerKind {
    /// The broker in the box, in a process of its own.
    Embedded,
    RabbitMq,
    /// Three nodes of RabbitMQ, of which one at a time may be away.
    RabbitMqCluster,
    #[cfg(feature = "kafka")]
    Kafka,
    /// An emulator of Amazon SNS and SQS, with FIFO queues.
    #[cfg(feature = "aws")]
    Aws,
    /// The same with standard queues.
    #[cfg(feature = "aws")]
    AwsStandard,
}

/// Where services keep what they know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DatabaseKind {
    Sqlite,
    Postgres,
}

/// Every service that handles events, each to be its own process.
pub(crate) const SERVICES: [&str; 6] = [
    "orders",
    "payment",
    "inventory",
    "shipping",
    "notification",
    "loyalty",
];

/// What a shop needs whose orders are led, beside [`SERVICES`].
pub(crate) const CHECKOUT: &str = "checkout";

/// The flags of every process of a shop whose orders are led.
pub(crate) const ORCHESTRATION: [&str; 2] = ["--checkout", "orchestration"];

/// A running shop.
pub(crate) struct World {
    // First, so that services end before what they depend on.
    instances: Vec<Instance>,
    broker: Broker,
    postgres: Option<Postgres>,
    bank_port: u16,
    folder: TempDir,
    /// More flags for every service that is started from now on.
    pub(crate) flags: Vec<String>,
}

enum Broker {
    // Our broker comes with any process of the shop; this one has nothing else but the page.
    Embedded {
        amqp_port: u16,
        instance: Instance,
    },
    RabbitMq(RabbitMq),
    RabbitMqCluster {
        cluster: RabbitMqCluster,
        /// The node that is away, or that was last.
        away: usize,
    },
    #[cfg(feature = "kafka")]
    Kafka(Kafka),
    #[cfg(feature = "aws")]
    Aws {
        aws: AwsEmulator,
        options: &'static str,
    },
}

/// Of so many messages of a standard queue one comes twice.
#[cfg(feature = "aws")]
const TWICE_OF: u32 = 20;

/// What the shop needs of Kafka beside its address: few partitions for a small machine, and those of a process that was
/// killed soon go to others.
#[cfg(feature = "kafka")]
const KAFKA_OPTIONS: &str = "partitions=4&session_timeout=2000";

/// What the shop needs of SNS and SQS beside their address: what a process had that was killed soon goes to others, and receives
/// end soon.
#[cfg(feature = "aws")]
const AWS_OPTIONS: &str = "visibility=6&wait=2";
#[cfg(feature = "aws")]
const AWS_STANDARD_OPTIONS: &str = "visibility=6&wait=2&queues=standard";

/// One process of the shop.
struct Instance {
    services: String,
    port: u16,
    args: Vec<String>,
    process: Option<Process>,
}

impl World {
    /// Starts the broker, the database server and the bank; no service yet.
    pub(crate) fn new(broker: BrokerKind, database: DatabaseKind) -> World {
        Self::with_flags(broker, database, &[])
    }

    /// The same, with these flags for every process of the shop from the first on.
    pub(crate) fn with_flags(broker: BrokerKind, database: DatabaseKind, flags: &[&str]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let postgres = (database == DatabaseKind::Postgres).then(|| Postgres::start().unwrap());
        let broker = match broker {
            BrokerKind::RabbitMq => Broker::RabbitMq(RabbitMq::start().unwrap()),
            BrokerKind::RabbitMqCluster => Broker::RabbitMqCluster {
                cluster: RabbitMqCluster::start(3).unwrap(),
                away: 2,
            },
            #[cfg(feature = "kafka")]
            BrokerKind::Kafka => Broker::Kafka(Kafka::start().unwrap()),
            #[cfg(feature = "aws")]
            BrokerKind::Aws => Broker::aws(AWS_OPTIONS),
            #[cfg(feature = "aws")]
            BrokerKind::AwsStandard => Broker::aws(AWS_STANDARD_OPTIONS),
            BrokerKind::Embedded => {
                let amqp_port = free_port().unwrap();
                let data = folder.path().join("broker");
                let mut instance = Instance::new("storefront", data);
                let listen = format!("127.0.0.1:{amqp_port}");
                instance.flags(&["--broker", "embedded", "--amqp-listen", &listen]);
                instance.flags(flags);
                instance.start().unwrap();
                Broker::Embedded {
                    amqp_port,
                    instance,
                }
            }
        };
        let bank_port = free_port().unwrap();
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut world = World {
            instances: Vec::new(),
            broker,
            postgres,
            bank_port,
            folder,
            flags,
        };
        let bank = world.add("bank");
        world.instances[bank].port = bank_port;
        world.instances[bank].start().unwrap();
        world
    }

    /// Starts each service in a process of its own.
    pub(crate) fn with_services<'a>(
        mut self,
        services: impl IntoIterator<Item = &'a str>,
    ) -> World {
        for service in services {
            self.start(service);
        }
        self
    }

    /// Starts one more process with these services and returns its number.
    pub(crate) fn start(&mut self, services: &str) -> usize {
        let number = self.add(services);
        self.instances[number].start().unwrap();
        number
    }

    fn add(&mut self, services: &str) -> usize {
        let number = self.instances.len();
        let data = self.folder.path().join(format!("{number}-{services}"));
        let mut instance = Instance::new(services, data);
        instance.flags(&["--broker", &self.broker.url()]);
        instance.flags(&["--bank", &format!("http://127.0.0.1:{}", self.bank_port)]);
        if let Some(postgres) = &self.postgres {
            instance.flags(&["--database", &postgres.url()]);
        }
        instance.args.extend(self.flags.iter().cloned());
        self.instances.push(instance);
        number
    }

    /// Who leads its orders.
    pub(crate) fn style(&self) -> CheckoutStyle {
        let is_led = self.flags.iter().any(|flag| flag == "orchestration");
        match is_led {
            true => CheckoutStyle::Orchestration,
            false => CheckoutStyle::Choreography,
        }
    }

    /// How many processes of the shop there are, running or not, without the broker.
    pub(crate) fn count(&self) -> usize {
        self.instances.len()
    }

    /// The numbers of the processes with this service.
    pub(crate) fn all_of(&self, service: &str) -> Vec<usize> {
        let has = |instance: &Instance| instance.services.split(',').any(|name| name == service);
        (0..self.count())
            .filter(|number| has(&self.instances[*number]))
            .collect()
    }

    /// The folder with the data of a process.
    pub(crate) fn data(&self, number: usize) -> PathBuf {
        let services = &self.instances[number].services;
        self.folder.path().join(format!("{number}-{services}"))
    }

    /// Where the database server answers, when there is one.
    pub(crate) fn postgres_url(&self) -> Option<String> {
        self.postgres.as_ref().map(Postgres::url)
    }

    /// Where a process answers HTTP.
    pub(crate) fn port(&self, number: usize) -> u16 {
        self.instances[number].port
    }

    /// `kill -9` on a process of the shop.
    pub(crate) fn kill9(&mut self, number: usize) {
        self.instances[number].kill9();
    }

    /// Ends a process as Ctrl-C does; it must end well.
    pub(crate) fn stop(&mut self, number: usize) {
        self.instances[number].stop();
    }

    /// The same for the process that was started last, for good: it is no part of the shop any more.
    pub(crate) fn remove_last(&mut self) {
        self.instances.pop().expect("there is one").stop();
    }

    /// The last lines of what a process that runs has logged.
    pub(crate) fn log(&self, number: usize) -> String {
        let process = self.instances[number].process.as_ref();
        let lines = process.map(Process::stderr).unwrap_or_default();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Starts a process again as it was.
    pub(crate) fn restart(&mut self, number: usize) {
        self.instances[number].start().unwrap();
    }

    /// `kill -9` on the broker, or on one node of it after the other.
    pub(crate) fn kill9_broker(&mut self) {
        match &mut self.broker {
            Broker::Embedded { instance, .. } => instance.kill9(),
            Broker::RabbitMq(rabbitmq) => rabbitmq.kill9(),
            Broker::RabbitMqCluster { cluster, away } => {
                *away = (*away + 1) % cluster.count();
                cluster.kill9(*away);
            }
            #[cfg(feature = "kafka")]
            Broker::Kafka(kafka) => kafka.kill9(),
            #[cfg(feature = "aws")]
            Broker::Aws { aws, .. } => aws.kill9(),
        }
    }

    /// Starts the broker again on its data.
    pub(crate) fn restart_broker(&mut self) {
        match &mut self.broker {
            Broker::Embedded { instance, .. } => instance.start().unwrap(),
            Broker::RabbitMq(rabbitmq) => rabbitmq.restart().unwrap(),
            Broker::RabbitMqCluster { cluster, away } => cluster.restart(*away).unwrap(),
            #[cfg(feature = "kafka")]
            Broker::Kafka(kafka) => kafka.restart().unwrap(),
            #[cfg(feature = "aws")]
            Broker::Aws { aws, .. } => {
                aws.restart().unwrap();
                aws.hand_out_twice(TWICE_OF).unwrap();
            }
        }
    }

    /// How long who orders one thing after the other waits in between, so that nothing piles up: an emulator does everything in
    /// a single thread.
    pub(crate) fn pause(&self) -> Duration {
        let is_emulated = self.broker.url().starts_with("aws://");
        Duration::from_millis(if is_emulated { 100 } else { 10 })
    }

    /// The database server, when there is one.
    pub(crate) fn postgres(&mut self) -> Option<&mut Postgres> {
        self.postgres.as_mut()
    }

    /// Where the broker answers.
    pub(crate) fn broker_url(&self) -> String {
        self.broker.url()
    }

    /// The same as programs of others are told it, `host:port`.
    #[cfg(feature = "kafka")]
    pub(crate) fn kafka_brokers(&self) -> String {
        match &self.broker {
            Broker::Kafka(kafka) => kafka.url().replace("kafka://", ""),
            _ => panic!("the broker is not Kafka"),
        }
    }

    /// The emulator of SNS and SQS.
    #[cfg(feature = "aws")]
    pub(crate) fn aws(&self) -> &AwsEmulator {
        match &self.broker {
            Broker::Aws { aws, .. } => aws,
            _ => panic!("the broker is not SNS and SQS"),
        }
    }

    /// The messages waiting in a queue; nothing when there is no such queue.
    pub(crate) fn depth(&self, queue: &str) -> Option<u32> {
        queues::depth(&self.broker_url(), queue).unwrap()
    }

    /// Asks the first process whose service answers `path`.
    pub(crate) fn try_get(&self, path: &str) -> Result<Answer> {
        http::get(self.port_of(path), path)
    }

    /// The same, where nothing but 200 and JSON is expected.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self
            .try_get(path)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(answer.status, 200, "GET {path}: {answer}");
        answer.json()
    }

    /// Tells the bank how to behave from now on.
    pub(crate) fn bank_behaves(&self, settings: &Value) {
        let answer = http::json(self.bank_port, "PUT /bank/behaviour", "", settings).unwrap();
        assert_eq!(answer.status, 200, "{answer}");
    }

    /// Places an order once, at the first process that takes orders.
    pub(crate) fn try_place(&self, order: &Value, key: &str) -> Result<Answer> {
        let key = format!("idempotency-key: {key}\r\n");
        http::json(self.port_of("/orders"), "POST /orders", &key, order)
    }

    /// Places an order and returns its id; the answer must be there at once.
    #[track_caller]
    pub(crate) fn place(&self, order: &Value, key: &str) -> String {
        let answer = self.try_place(order, key).unwrap();
        assert_eq!(answer.status, 202, "{answer}");
        answer.json()["orderId"].as_str().unwrap().to_owned()
    }

    /// The status of an order, while its service answers.
    pub(crate) fn status(&self, order_id: &str) -> Option<String> {
        let answer = self.try_get(&format!("/orders/{order_id}")).ok()?;
        (answer.status == 200).then(|| answer.json()["status"].as_str().map(str::to_owned))?
    }

    /// Waits until all these orders have this status.
    #[track_caller]
    pub(crate) fn wait_for_all(&self, order_ids: &[String], status: &str, deadline: Duration) {
        let mut left: Vec<&String> = order_ids.iter().collect();
        let outcome = wait_until(&format!("all orders to be {status}"), deadline, || {
            left.retain(|id| self.status(id).as_deref() != Some(status));
            left.is_empty()
        });
        if let Err(error) = outcome {
            let first = self
                .try_get(&format!("/orders/{}", left[0]))
                .map(|answer| answer.body);
            panic!("{error}: {} are not, the first is {first:?}", left.len());
        }
    }

    fn port_of(&self, path: &str) -> u16 {
        let service = match path.split(['/', '?']).nth(1).unwrap_or_default() {
            "orders" => "orders",
            "payments" => "payment",
            "stock" | "products" => "inventory",
            "shipments" => "shipping",
            "emails" => "notification",
            "loyalty" => "loyalty",
            "bank" => "bank",
            other => panic!("no service answers `/{other}`"),
        };
        let number = *self
            .all_of(service)
            .first()
            .unwrap_or_else(|| panic!("no {service} runs"));
        self.instances[number].port
    }
}

impl Broker {
    #[cfg(feature = "aws")]
    fn aws(options: &'static str) -> Broker {
        let aws = AwsEmulator::start().unwrap();
        aws.hand_out_twice(TWICE_OF).unwrap();
        Broker::Aws { aws, options }
    }

    fn url(&self) -> String {
        match self {
            Broker::Embedded { amqp_port, .. } => {
                format!("amqp://guest:guest@127.0.0.1:{amqp_port}")
            }
            Broker::RabbitMq(rabbitmq) => rabbitmq.url(),
            Broker::RabbitMqCluster { cluster, .. } => cluster.url(),
            #[cfg(feature = "kafka")]
            Broker::Kafka(kafka) => format!("{}?{KAFKA_OPTIONS}", kafka.url()),
            #[cfg(feature = "aws")]
            Broker::Aws { aws, options } => {
                let url = aws.url().replacen('?', "/shop-?", 1);
                format!("{url}&{options}")
            }
        }
    }
}

impl Instance {
    fn new(services: &str, data: PathBuf) -> Instance {
        let services = services.to_owned();
        let port = free_port().unwrap();
        let args = vec!["--data".to_owned(), data.display().to_string()];
        Instance {
            services,
            port,
            args,
            process: None,
        }
    }

    fn flags(&mut self, flags: &[&str]) {
        self.args.extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    fn start(&mut self) -> Result<()> {
        self.kill9();
        let mut command = program();
        command.args(["--services", &self.services]);
        command
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(&self.args)
            // An emulator takes any, and tells who asks by them.
            .env("AWS_ACCESS_KEY_ID", &self.services)
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        let mut process = Process::start(command)?;
        process
            .wait_for_line(READY_MAX, |line| line == "ready")
            .with_context(|| format!("cannot start {}", self.services))?;
        self.process = Some(process);
        Ok(())
    }

    fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let status = process.interrupt(STOP_MAX).unwrap();
        let stderr = process.stderr().join("\n");
        assert!(
            status.success(),
            "{} ended badly ({status}):\n{stderr}",
            self.services
        );
    }
}

/// The shop, without what the environment of the test may say about another one.
pub(crate) fn program() -> Command {
    let mut command = Process::command(env!("CARGO_BIN_EXE_shop"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command
}

/// An order of one customer for some of one thing, paid by a card.
pub(crate) fn order(customer: &str, card: &str, sku: &str, quantity: u32) -> Value {
    json!({
        "customerId": customer,
        "email": format!("{customer}@example.com"),
        "card": card,
        "items": [{ "sku": sku, "quantity": quantity }],
    })
}

/// An order that nothing stands against.
pub(crate) fn good_order(customer: &str) -> Value {
    order(customer, "tok_ok", "MUG-ENAMEL", 1)
}
