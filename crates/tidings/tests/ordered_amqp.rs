//! Order per key on real brokers: two types of messages, two instances that share the partitions,
//! handlers that fail, and a broker that dies in the middle.

mod support;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use support::{BalanceChanged, Database, MoneyDeposited, Random, Running, deposit, until, write};
use tidings::{Error, Store, Transport, prelude::*};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::Tx;
use tidings_testing::servers::{RabbitMq, free_port};

/// How many messages, and of how many accounts.
const COUNT: u64 = 300;
const ACCOUNTS: u64 = 6;

/// Another type of message with the same keys: a command, which no topic carries.
#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "bank", key = "account", id = "number")]
struct WithdrawMoney {
    account: String,
    number: u64,
}

/// Fails one time out of five, after it has written.
async fn book(
    deposit: MoneyDeposited,
    State(random): State<Random>,
    mut tx: Tx,
) -> Result<BalanceChanged> {
    write(&mut tx, &deposit).await?;
    match random.below(5) {
        0 => Err(Error::msg("try again")),
        _ => {
            let MoneyDeposited { account, number } = deposit;
            Ok(BalanceChanged { account, number })
        }
    }
}

async fn withdraw(command: WithdrawMoney, state: State<Random>, tx: Tx) -> Result<BalanceChanged> {
    let WithdrawMoney { account, number } = command;
    book(MoneyDeposited { account, number }, state, tx).await
}

/// Writes down what the bank says.
async fn listen(changed: BalanceChanged, mut tx: Tx) -> Result<()> {
    let BalanceChanged { account, number } = changed;
    write(&mut tx, &deposit(account, number)).await?;
    Ok(())
}

/// A broker that dies and comes back with what is on its disk.
trait Server {
    fn url(&self) -> String;
    async fn restart(&mut self);
}

struct Embedded {
    data: tempfile::TempDir,
    port: u16,
    running: Option<Handle>,
}

impl Embedded {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let port = free_port().expect("a port");
        let running = Some(broker(data.path(), port).await);
        Self {
            data,
            port,
            running,
        }
    }
}

async fn broker(data: &Path, port: u16) -> Handle {
    let options = Options::durable(data).listen(([127, 0, 0, 1], port));
    Broker::start(options).await.expect("the broker starts")
}

impl Server for Embedded {
    fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    async fn restart(&mut self) {
        let running = self.running.take().expect("it runs");
        running.shutdown().await.expect("it stops");
        self.running = Some(broker(self.data.path(), self.port).await);
    }
}

impl Server for RabbitMq {
    fn url(&self) -> String {
        self.url()
    }

    async fn restart(&mut self) {
        self.kill9();
        RabbitMq::restart(self).expect("it starts again");
    }
}

/// A process of its own, as far as the broker can see: it has its own connections.
async fn connect(server: &impl Server) -> Arc<Amqp> {
    let amqp = Amqp::connect(&server.url()).await.expect("it connects");
    Arc::new(amqp)
}

fn bank(database: &Database, random: &Random) -> Router {
    let retry = Retry::exponential(Duration::from_millis(10))
        .attempts(1000)
        .fast_attempts(1)
        .delay_max(Duration::from_millis(20));
    Router::new("bank")
        .on(book)
        .on(withdraw)
        .ordered(4)
        .transactional(database.store.clone())
        .retry(retry)
        .with_state(random.clone())
}

/// Publishes the numbers as one of the two types each.
async fn publish(producer: &Producer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let account = (number % ACCOUNTS).to_string();
        let sent = match number / ACCOUNTS % 2 {
            0 => producer.publish(&deposit(account, number)).await,
            _ => producer.send(&WithdrawMoney { account, number }).await,
        };
        sent.expect("it commits");
    }
}

#[track_caller]
fn assert_once_and_in_order(effects: &[(String, u64)]) {
    let mut by_account: HashMap<&str, Vec<u64>> = HashMap::new();
    for (account, number) in effects {
        by_account.entry(account).or_default().push(*number);
    }
    for (account, numbers) in by_account {
        let in_order = numbers.is_sorted_by(|one, next| one < next);
        assert!(in_order, "account {account}: {numbers:?}");
    }
    assert_eq!(effects.len() as u64, COUNT);
}

async fn order_holds_while_the_broker_dies_and_instances_come_and_go(mut server: impl Server) {
    let (teller, books, notes) = (
        Database::new().await,
        Database::new().await,
        Database::new().await,
    );
    let random = Random::new(1);
    let mut transports = Vec::new();
    for _ in 0..4 {
        transports.push(connect(&server).await);
    }
    let listener = Router::new("listener")
        .on(listen)
        .ordered(3)
        .transactional(notes.store.clone());
    let listener = Running::start(&transports[0], listener).await;
    let first = Running::start(&transports[1], bank(&books, &random)).await;
    let second = Running::start(&transports[2], bank(&books, &random)).await;
    let sending = Router::new("teller")
        .publishes::<MoneyDeposited>()
        .transactional(teller.store.clone());
    let sending = Running::start(&transports[3], sending).await;
    let producer = Producer::new("teller", teller.store.clone());

    publish(&producer, 0..COUNT / 3).await;
    until("some are through", async || {
        !notes.effects().await.is_empty()
    })
    .await;
    server.restart().await;
    publish(&producer, COUNT / 3..COUNT * 2 / 3).await;
    until("some more are through", async || {
        notes.effects().await.len() as u64 > COUNT / 3
    })
    .await;
    // The partitions of one go to the other, and to one that comes.
    first.stop().await;
    let third = Running::start(&transports[1], bank(&books, &random)).await;
    publish(&producer, COUNT * 2 / 3..COUNT).await;
    until("half of the rest is through", async || {
        notes.effects().await.len() as u64 > COUNT * 5 / 6
    })
    .await;
    second.crash().await;
    transports[2].close().await;
    until("all are through", async || {
        notes.effects().await.len() as u64 >= COUNT
    })
    .await;
    for service in [listener, third, sending] {
        service.stop().await;
    }
    assert_once_and_in_order(&books.effects().await);
    assert_once_and_in_order(&notes.effects().await);
    for database in [teller, books] {
        let stats = database.store.outbox().stats().await.expect("it counts");
        assert_eq!(stats.ready + stats.held, 0);
    }
    for transport in transports {
        transport.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_on_the_broker_in_the_box() {
    let server = Embedded::start().await;
    order_holds_while_the_broker_dies_and_instances_come_and_go(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn order_holds_on_rabbitmq() {
    let server = RabbitMq::start().expect("it starts");
    order_holds_while_the_broker_dies_and_instances_come_and_go(server).await;
}
