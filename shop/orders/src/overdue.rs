//! The deadline of orders: whoever has not been decided by then is cancelled, and what is stuck
//! until then is counted.
//!
//! A task looks every few seconds, wherever orders runs. It remembers nothing: what is overdue
//! stands in the database, so a restart forgets nothing, and copies of the service do not disturb
//! each other, because only the one whose update finds the order undecided announces its end. The
//! update and the announcement are one transaction.
//!
//! A database that is away is waited for, with growing pauses.

use std::time::Duration;

use jiff::Timestamp;
use shop_contracts::OrderCancelled;
use shop_kit::{Db, Row, Statement, StoreError, sql};
use tidings::Producer;
use tokio::time::Instant;

use crate::{OrderDeadline, orders, stuck};

/// The orders cancelled in one transaction.
const BATCH_ORDERS: u32 = 100;

/// How often it looks: ten times per deadline within these bounds.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);

/// The pause after a failure of the database, doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How often the log says the same.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Cancels orders that are over their deadline, and counts those that are stuck.
pub struct Overdue {
    pub(crate) db: Db,
    pub(crate) producer: Producer,
    pub(crate) deadline: OrderDeadline,
}

impl Overdue {
    /// Looks for orders that are over their deadline, now and every few seconds. Never ends by
    /// itself; it may be dropped at any time.
    pub async fn run(self) {
        let every = (self.deadline.after() / 10).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        let mut pause = PAUSE_MIN;
        let (mut failed, mut stuck) = (Throttle::default(), Throttle::default());
        loop {
            match self.look(&mut stuck).await {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    tokio::time::sleep(every).await;
                }
                Err(error) => {
                    if failed.passes() {
                        let cause = error.cause();
                        tracing::warn!(%error, cause, "orders cannot look for overdue orders; it \
                            goes on trying");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn look(&self, throttle: &mut Throttle) -> Result<(), Failed> {
        let cancelled = self.cancel_overdue(Timestamp::now()).await?;
        if cancelled > 0 {
            let deadline = self.deadline;
            tracing::warn!(orders = cancelled, %deadline, "orders were cancelled at their deadline");
        }
        let stuck = stuck::count(&self.db, self.deadline, Timestamp::now()).await?;
        metrics::gauge!("shop_orders_stuck").set(f64::from(stuck));
        if stuck > 0 && throttle.passes() {
            tracing::warn!(
                orders = stuck,
                "orders are stuck; `GET /orders?status=stuck` says what they wait for"
            );
        }
        Ok(())
    }

    /// Cancels, batch by batch, whatever is over its deadline `now`. Returns how many orders this
    /// copy of the service has cancelled.
    pub(crate) async fn cancel_overdue(&self, now: Timestamp) -> Result<usize, Failed> {
        if !self.db.read(sql(UNTIMED)).await?.is_empty() {
            self.db.execute(give_time(now)).await?;
        }
        let cutoff = self.deadline.cutoff(now);
        let mut cancelled = 0;
        loop {
            let overdue = self.db.read(overdue(cutoff)).await?;
            if !overdue.is_empty() {
                cancelled += self.cancel(&overdue).await?;
            }
            if overdue.len() < BATCH_ORDERS as usize {
                return Ok(cancelled);
            }
        }
    }

    /// Cancels the orders of these rows that are still undecided, and tells everybody.
    async fn cancel(&self, overdue: &[Row]) -> Result<usize, Failed> {
        let ids = overdue.iter().map(|row| row.get(0));
        let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
        let (db, deadline) = (self.db.clone(), self.deadline);
        let cancel = |handle| async move {
            let mut tx = db.lend(handle);
            let mut events = Vec::new();
            for order_id in ids {
                let Some(row) = tx.first(cancel(&order_id, deadline)).await? else {
                    continue;
                };
                events.push(OrderCancelled {
                    order_id,
                    email: row.get(0)?,
                    reason: row.get(1)?,
                });
            }
            Ok((events.len(), events))
        };
        let cancelled = self.producer.transaction().run(cancel).await;
        let cancelled = cancelled.map_err(|error| Failed(error.into_inner()))?;
        metrics::counter!("shop_orders_overdue_total").increment(cancelled as u64);
        Ok(cancelled)
    }
}

/// Orders that an elder version stored when they were answered but not placed have no time.
pub(crate) const UNTIMED: &str =
    "select order_id from orders where status = 'CREATED' and placed_at is null limit 1";

/// They get one when they are first seen.
fn give_time(now: Timestamp) -> Statement {
    sql("update orders set placed_at = $1 where status = 'CREATED' and placed_at is null")
        .bind(now.as_microsecond())
}

/// The oldest undecided orders from `$1` or before, in the order in which every copy of the service
/// locks them.
pub(crate) const OVERDUE: &str = "select order_id from orders
     where status = 'CREATED' and placed_at <= $1
     order by placed_at, order_id limit $2";

fn overdue(cutoff: Timestamp) -> Statement {
    sql(OVERDUE)
        .bind(cutoff.as_microsecond())
        .bind(i64::from(BATCH_ORDERS))
}

/// Cancels the order if nobody has decided it meanwhile. Who did not answer is seen by the same
/// statement: an answer may just have come.
fn cancel(order_id: &str, deadline: OrderDeadline) -> Statement {
    let silent = |who: &str| format!("{who} did not answer within {deadline}");
    sql("update orders
         set status = 'CANCELLED',
             history = history || $6,
             reason = case
                 when amount is null then $2
                 when payment is null and stock is null then $3
                 when payment is null then $4
                 when stock is null then $5
                 else $7
             end
         where order_id = $1 and status = 'CREATED'
         returning email, reason")
    .bind(order_id)
    .bind(format!("it was answered, but not placed within {deadline}"))
    .bind(silent("payment and inventory"))
    .bind(silent("payment"))
    .bind(silent("inventory"))
    .bind(orders::entry("OrderCancelled", Timestamp::now()))
    .bind(format!("the checkout did not decide within {deadline}"))
}

/// Why a look failed.
#[derive(Debug)]
pub(crate) struct Failed(Box<dyn std::error::Error + Send + Sync>);

impl Failed {
    fn cause(&self) -> Option<String> {
        self.0.source().map(ToString::to_string)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

impl From<tidings::Error> for Failed {
    fn from(error: tidings::Error) -> Self {
        Self(error.into_inner())
    }
}

/// Lets one log line pass per [`LOG_EVERY`].
#[derive(Default)]
struct Throttle {
    last: Option<Instant>,
}

impl Throttle {
    fn passes(&mut self) -> bool {
        let passes = self.last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if passes {
            self.last = Some(Instant::now());
        }
        passes
    }
}
