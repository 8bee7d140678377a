//! An order as it moves, as server-sent events.
//!
//! The stream looks at the database rather than listening to handlers: what it tells is committed,
//! also by another copy of this service in another process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use shop_contracts::OrderStatus;
use shop_kit::{Db, Problem};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    http::Orders,
    orders::{self, Order},
};

/// How many streams there can be at the same time.
const STREAMS_MAX: usize = 1000;
/// How often a stream looks.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How long a client should wait before it comes back (the field `retry`).
const COME_BACK_AFTER: Duration = Duration::from_secs(2);
/// The pause after the database did not answer.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How long a stream lasts.
#[derive(Clone, Copy)]
struct Lasts {
    /// How long it goes on after the order has ended and nothing more has happened: others still
    /// react to that.
    quiet_after_end: Duration,
    /// The longest in all. Who wants to see more comes back.
    at_most: Duration,
}

const LASTS: Lasts = Lasts {
    quiet_after_end: Duration::from_secs(30),
    at_most: Duration::from_secs(15 * 60),
};

/// The places for streams.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// `event: order` with the order each time it has changed, and `event: end` when no more is
/// expected. A stream that ends without that has reached its time limit, or was cut: then there may
/// be more, and the client is to come back.
pub(crate) async fn events(
    State(orders): State<Orders>,
    Path(order_id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let place = Arc::clone(&orders.streams.0)
        .try_acquire_owned()
        .map_err(|_| {
            Problem::busy(format_args!(
                "{STREAMS_MAX} orders are watched already; try again later"
            ))
            .retry_soon()
        })?;
    let first = orders::find(&orders.db, &order_id).await?;
    let come_back = Event::default().retry(COME_BACK_AFTER);
    let watch = Watch::new(orders.db, order_id, first, LASTS);
    let steps = steps(watch).filter_map(async |step| match step {
        Step::Order(order) => Event::default().event("order").json_data(order).ok(),
        Step::End => Some(Event::default().event("end").data("{}")),
    });
    let events = stream::iter([come_back]).chain(steps).map(move |event| {
        let _as_long_as_it_lasts = &place;
        Ok(event)
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// What a stream tells.
#[derive(Debug)]
enum Step {
    Order(Box<Order>),
    /// No more is expected.
    End,
}

/// Ends after [`Step::End`], or without it at the time limit.
fn steps(watch: Watch) -> impl Stream<Item = Step> {
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await? {
            Step::End => Some((Step::End, None)),
            order => Some((order, Some(watch))),
        }
    })
}

struct Watch {
    db: Db,
    order_id: String,
    next: Option<Order>,
    /// The status and the length of the timeline that were told last.
    told: Option<(String, usize)>,
    last_change: Instant,
    begun: Instant,
    lasts: Lasts,
}

impl Watch {
    fn new(db: Db, order_id: String, first: Order, lasts: Lasts) -> Self {
        let begun = Instant::now();
        Self {
            db,
            order_id,
            next: Some(first),
            told: None,
            last_change: begun,
            begun,
            lasts,
        }
    }

    /// The next thing to tell; `None` at the time limit.
    async fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(order) = self.look().await {
                let state = (order.status.clone(), order.timeline.len());
                if self.told.as_ref() != Some(&state) {
                    self.told = Some(state);
                    self.last_change = Instant::now();
                    return Some(Step::Order(Box::new(order)));
                }
                let ended = order.status != OrderStatus::Created.as_str();
                if ended && self.last_change.elapsed() >= self.lasts.quiet_after_end {
                    return Some(Step::End);
                }
            }
            if self.begun.elapsed() >= self.lasts.at_most {
                return None;
            }
        }
    }

    /// The order as it is after a moment; `None` while the database does not answer.
    async fn look(&mut self) -> Option<Order> {
        if let Some(order) = self.next.take() {
            return Some(order);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let order = orders::find(&self.db, &self.order_id).await;
        if order.is_err() {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
        order.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use shop_kit::sql;

    use super::*;
    use crate::{
        orders::{Decision, decided},
        tests::{Fixture, placed},
    };

    const SOON: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(3600);

    fn end() -> Decision {
        Decision::Cancel {
            reason: "no mugs".into(),
        }
    }

    async fn watch(shop: &Fixture, quiet_after_end: Duration, at_most: Duration) -> Watch {
        let order = placed("o-1", Duration::ZERO);
        shop.write(orders::place(&order, None, None)).await;
        let first = orders::find(&shop.db, "o-1").await.unwrap();
        let lasts = Lasts {
            quiet_after_end,
            at_most,
        };
        Watch::new(shop.db.clone(), "o-1".into(), first, lasts)
    }

    fn told(step: Option<Step>) -> String {
        match step {
            Some(Step::Order(order)) => order.status,
            Some(Step::End) => "the end".into(),
            None => "nothing".into(),
        }
    }

    #[tokio::test]
    async fn a_stream_says_its_end_when_no_more_is_expected() {
        let shop = Fixture::new().await;
        let mut steps = pin!(steps(watch(&shop, SOON, LONG).await));
        assert_eq!(told(steps.next().await), "CREATED");
        shop.write(decided("o-1", &end())).await;
        assert_eq!(told(steps.next().await), "CANCELLED");
        assert_eq!(told(steps.next().await), "the end");
        assert_eq!(told(steps.next().await), "nothing");
    }

    #[tokio::test]
    async fn a_stream_that_reaches_its_time_limit_does_not_say_that_the_order_has_ended() {
        let shop = Fixture::new().await;
        let mut steps = pin!(steps(watch(&shop, LONG, SOON).await));
        assert_eq!(told(steps.next().await), "CREATED");
        assert_eq!(told(steps.next().await), "nothing");
    }

    #[tokio::test]
    async fn a_stream_goes_on_when_the_database_answers_again() {
        let shop = Fixture::new().await;
        let mut steps = pin!(steps(watch(&shop, LONG, LONG).await));
        assert_eq!(told(steps.next().await), "CREATED");
        shop.write(sql("alter table happening rename to away"))
            .await;
        let failed = tokio::time::timeout(2 * LOOK_EVERY, steps.next()).await;
        assert!(failed.is_err(), "{failed:?}");
        shop.write(sql("alter table away rename to happening"))
            .await;
        shop.write(decided("o-1", &end())).await;
        assert_eq!(told(steps.next().await), "CANCELLED");
    }
}
