//! Two services, their databases, and a real broker between them that is restarted meanwhile.

mod support;

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use support::{BalanceChanged, Database, MoneyDeposited, Random, Running, deposit, until, write};
use tidings::{Error, Store, Transport, prelude::*};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::Tx;

const COUNT: u64 = 200;
const ACCOUNTS: u64 = 5;

async fn broker(data: &Path, port: u16) -> Handle {
    let options = Options::durable(data).listen((Ipv4Addr::LOCALHOST, port));
    Broker::start(options).await.expect("the broker starts")
}

/// Fails now and then, after it has written.
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

/// Writes down what the bank says.
async fn listen(changed: BalanceChanged, mut tx: Tx) -> Result<()> {
    let BalanceChanged { account, number } = changed;
    write(&mut tx, &deposit(account, number)).await?;
    Ok(())
}

#[track_caller]
fn assert_once_and_in_order(effects: &[(String, u64)]) {
    assert_eq!(effects.len() as u64, COUNT);
    for account in 0..ACCOUNTS {
        let of_account = effects.iter().filter(|(a, _)| *a == account.to_string());
        let numbers: Vec<_> = of_account.map(|(_, number)| *number).collect();
        assert!(
            numbers.is_sorted_by(|a, b| a < b),
            "account {account}: {numbers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_out_of_order_when_the_broker_is_restarted() {
    let data = tempfile::tempdir().expect("a folder");
    let port = tidings_testing::servers::free_port().expect("a port");
    let running_broker = broker(data.path(), port).await;
    let amqp = Amqp::connect(&format!("amqp://guest:guest@127.0.0.1:{port}"))
        .await
        .expect("it connects");
    let amqp = Arc::new(amqp);
    let (teller, bank, listener) = (
        Database::new().await,
        Database::new().await,
        Database::new().await,
    );
    let retry = Retry::exponential(Duration::from_millis(10))
        .attempts(1000)
        .fast_attempts(1)
        .delay_max(Duration::from_millis(20));
    let services = [
        Running::start(
            &amqp,
            Router::new("listener")
                .on(listen)
                .ordered(4)
                .transactional(listener.store.clone()),
        )
        .await,
        Running::start(
            &amqp,
            Router::new("bank")
                .on(book)
                .ordered(4)
                .transactional(bank.store.clone())
                .retry(retry)
                .with_state(Random::new(1)),
        )
        .await,
        Running::start(
            &amqp,
            Router::new("teller")
                .publishes::<MoneyDeposited>()
                .transactional(teller.store.clone()),
        )
        .await,
    ];
    let producer = Producer::new("teller", teller.store.clone());
    for number in 0..COUNT / 2 {
        producer
            .publish(&deposit(number % ACCOUNTS, number))
            .await
            .expect("it commits");
    }
    until("some are through", async || {
        !listener.effects().await.is_empty()
    })
    .await;
    running_broker.shutdown().await.expect("it stops");
    for number in COUNT / 2..COUNT {
        producer
            .publish(&deposit(number % ACCOUNTS, number))
            .await
            .expect("it commits");
    }
    let running_broker = broker(data.path(), port).await;
    until("all are through", async || {
        listener.effects().await.len() as u64 == COUNT
    })
    .await;
    for service in services {
        service.stop().await;
    }
    assert_once_and_in_order(&bank.effects().await);
    assert_once_and_in_order(&listener.effects().await);
    for database in [teller, bank] {
        let stats = database.store.outbox().stats().await.expect("it counts");
        assert_eq!(stats.ready + stats.held, 0);
    }
    amqp.close().await;
    running_broker.shutdown().await.expect("it stops");
}
