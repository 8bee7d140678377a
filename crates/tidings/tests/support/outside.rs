//! A consumer whose handler needs an outside that may be down, and what waits in its store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tidings::{Error, InboxQuery, InboxRow, Store, prelude::*};
use tidings_sqlite::Tx;

use super::{Database, MoneyDeposited, write};

/// A switch that a handler looks at, and a count of its runs.
#[derive(Clone, Default)]
pub(crate) struct Outside {
    pub(crate) is_up: Arc<AtomicBool>,
    pub(crate) calls: Arc<AtomicU32>,
}

impl Outside {
    pub(crate) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Books the deposit while the outside is up.
pub(crate) async fn book(
    deposit: MoneyDeposited,
    State(outside): State<Outside>,
    mut tx: Tx,
) -> Result<()> {
    outside.calls.fetch_add(1, Ordering::SeqCst);
    write(&mut tx, &deposit).await?;
    match outside.is_up.load(Ordering::SeqCst) {
        true => Ok(()),
        false => Err(Error::msg("the outside is down")),
    }
}

pub(crate) fn bank(database: &Database, outside: &Outside, delay: Duration) -> Router {
    Router::new("bank")
        .on(book)
        .transactional(database.store.clone())
        .retry(
            Retry::exponential(delay)
                .attempts(1000)
                .fast_attempts(1)
                .delay_max(delay),
        )
        .with_state(outside.clone())
}

pub(crate) async fn waiting(database: &Database) -> Vec<InboxRow> {
    let query = InboxQuery {
        limit: 10_000,
        ..InboxQuery::default()
    };
    let rows = database.store.deferred().list(&query).await;
    rows.expect("it lists")
}
