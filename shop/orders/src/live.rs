//! An order as it moves, as server-sent events.
//!
//! The stream looks at the database rather than listening to handlers: what it tells is committed,
//! also by another copy of this service in another process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use shop_contracts::OrderStatus;
use shop_kit::{Db, Problem};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    http::Orders,
    orders::{self, Order},
};

/// How many streams there can be at the same time.
const STREAMS_MAX: usize = 1000;
/// How often a stream looks.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How long a stream goes on after the order has ended: others still react to that.
const QUIET_AFTER_END: Duration = Duration::from_secs(30);
/// The longest a stream lasts. A browser comes back by itself.
const STREAM_LASTS_MAX: Duration = Duration::from_secs(15 * 60);

/// The places for streams.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// `event: order` with the order each time it has changed, and `event: end` when no more is
/// expected.
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
        })?;
    let first = orders::find(&orders.db, &order_id).await?;
    let begun = Instant::now();
    let watch = Watch {
        db: orders.db,
        order_id,
        next: Some(first),
        told: None,
        last_change: begun,
        begun,
        _place: place,
    };
    let events = stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next_event().await {
            Some(event) => Some((Ok(event), Some(watch))),
            None => Some((Ok(Event::default().event("end").data("{}")), None)),
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

struct Watch {
    db: Db,
    order_id: String,
    next: Option<Order>,
    /// The status and the length of the timeline that were told last.
    told: Option<(String, usize)>,
    last_change: Instant,
    begun: Instant,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            let order = match self.next.take() {
                Some(order) => order,
                None => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    orders::find(&self.db, &self.order_id).await.ok()?
                }
            };
            let state = (order.status.clone(), order.timeline.len());
            if self.told.as_ref() != Some(&state) {
                self.told = Some(state);
                self.last_change = Instant::now();
                return Event::default().event("order").json_data(order).ok();
            }
            let ended = order.status != OrderStatus::Created.as_str();
            if (ended && self.last_change.elapsed() >= QUIET_AFTER_END)
                || self.begun.elapsed() >= STREAM_LASTS_MAX
            {
                return None;
            }
        }
    }
}
