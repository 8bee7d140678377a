//! A saga that wants the money of an order and nothing else: what payment sees of the checkout.

use std::{pin::pin, time::Duration};

use futures_util::future::{Either, select};
use shop_contracts::{
    OrderPlaced,
    commands::{CancelCharge, ChargeCard, RefundCard},
};
use tidings::{Saga, Sagas, prelude::*, serve};
use tidings_memory::{MemoryStore, MemoryTransport};

/// The order is not wanted any more.
#[derive(Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub(crate) struct OrderAbandoned {
    pub(crate) order_id: String,
}

async fn lead(order: OrderPlaced, saga: Saga) -> Result<(), ()> {
    let (refund, cancel) = (
        RefundCard {
            order_id: order.order_id.clone(),
        },
        CancelCharge {
            order_id: order.order_id.clone(),
            amount: order.amount,
        },
    );
    let charge = saga
        .step("charge-card", ChargeCard::from(order))
        .cancel(cancel)
        .undo(move |_| refund.clone());
    let given_up = pin!(saga.signal::<OrderAbandoned>("gave-up"));
    if let Either::Left((charged, given_up)) = select(charge, given_up).await {
        charged.map_err(drop)?;
        given_up.await;
    }
    Err(())
}

/// Runs it beside payment until the test ends.
pub(crate) async fn start(connection: MemoryTransport) {
    let sagas = Sagas::new("test", |order: &OrderPlaced| order.order_id.clone());
    let router = Router::new("test")
        .saga(sagas.version(1, lead))
        .saga_signal("test", "gave-up", |it: &OrderAbandoned| it.order_id.clone())
        .retry(Retry::exponential(Duration::from_millis(20)).attempts(1000))
        .transactional(MemoryStore::new());
    let serve = serve(connection, router);
    let ready = serve.ready();
    tokio::spawn(async move { serve.await.unwrap() });
    ready.await;
}
