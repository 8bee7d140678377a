//! A service that only publishes, and what came of what it said.

use std::collections::HashSet;

use tidings::{Error, Producer, Router, Store};

use super::{Database, MoneyDeposited, Running, broker::Broker};

/// A service that only publishes.
pub(crate) fn teller(database: &Database) -> Router {
    Router::new("teller")
        .publishes::<MoneyDeposited>()
        .transactional(database.store.clone())
}

pub(crate) fn producer(database: &Database) -> Producer {
    Producer::new("teller", database.store.clone())
}

/// Somebody who listens to what the teller says.
pub(crate) async fn listen(broker: &Broker) -> Running {
    let ignore = |_: MoneyDeposited| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}

pub(crate) async fn unsent(database: &Database) -> u64 {
    let stats = database.store.outbox().stats().await.expect("it counts");
    stats.ready + stats.held + stats.set_aside
}

/// The numbers that were published, in order; each once, by the first time.
pub(crate) fn numbers(broker: &Broker) -> Vec<u64> {
    let mut seen = HashSet::new();
    let published = broker.published_as::<MoneyDeposited>();
    let numbers = published.iter().map(|deposit| deposit.number);
    numbers.filter(|number| seen.insert(*number)).collect()
}

#[track_caller]
pub(crate) fn assert_in_order_per_account(broker: &Broker, accounts: u64) {
    let published = broker.published_as::<MoneyDeposited>();
    for account in 0..accounts {
        let mut seen = HashSet::new();
        let of_account = published
            .iter()
            .filter(|d| d.account == account.to_string());
        let firsts: Vec<_> = of_account
            .map(|d| d.number)
            .filter(|n| seen.insert(*n))
            .collect();
        assert!(firsts.is_sorted(), "account {account}: {firsts:?}");
    }
}

#[track_caller]
pub(crate) fn assert_in_order(broker: &Broker, account: &str) {
    let published = broker.published_as::<MoneyDeposited>();
    let of_account = published
        .iter()
        .filter(|deposit| deposit.account == account);
    let numbers: Vec<u64> = of_account.map(|deposit| deposit.number).collect();
    assert!(numbers.is_sorted(), "{account}: {numbers:?}");
}
