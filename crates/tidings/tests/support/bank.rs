//! A consumer that most tests handle messages with: it books deposits.

use std::time::Duration;

use tidings::{Error, prelude::*};
use tidings_sqlite::Tx;

use super::{BalanceChanged, MoneyDeposited, Running, broker::Broker, write};

pub(crate) const QUEUE: &str = "bank.money-deposited.v1";

/// Retries after 10 and 20 ms.
pub(crate) fn quick() -> Retry {
    Retry::exponential(Duration::from_millis(10))
        .attempts(4)
        .fast_attempts(2)
}

pub(crate) async fn book(deposit: MoneyDeposited, mut tx: Tx) -> Result<BalanceChanged> {
    write(&mut tx, &deposit).await?;
    let MoneyDeposited { account, number } = deposit;
    Ok(BalanceChanged { account, number })
}

/// Somebody who listens to what the bank says.
pub(crate) async fn listen(broker: &Broker) -> Running {
    let ignore = |_: BalanceChanged| async { Ok::<_, Error>(()) };
    Running::start(broker, Router::new("listener").on(ignore)).await
}
