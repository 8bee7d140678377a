//! A saga by orchestration: one function leads the order through the services, and says with each step
//! how it is undone.

use tidings::{Saga, Sagas, StepError, StepReply, prelude::*};
use tidings_examples::{Ground, in_time};
use tidings_sqlite::Tx;
use tokio::sync::mpsc::{Sender, channel};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    sku: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderConfirmed {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderCancelled {
    order_id: String,
    reason: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct TakePayment {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct ReturnPayment {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = i64)]
struct ReserveStock {
    order_id: String,
    sku: String,
}

/// The way of an order. It is run from its start for each answer, over the answers so far: nothing waits in
/// memory, and a restart needs no recovery.
async fn checkout(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let OrderPlaced { order_id, sku } = order;
    let cancelled = |why: StepError| OrderCancelled {
        order_id: order_id.clone(),
        reason: why.to_string(),
    };
    let take = TakePayment {
        order_id: order_id.clone(),
    };
    let give_back = ReturnPayment {
        order_id: order_id.clone(),
    };
    let payment = saga
        .step("take-payment", take)
        .undo(move |()| ReturnPayment {
            order_id: give_back.order_id.clone(),
        });
    payment.await.map_err(cancelled)?;
    let reserve = ReserveStock {
        order_id: order_id.clone(),
        sku,
    };
    // After this the order is sent: it cannot be undone.
    let stock = saga.step("reserve-stock", reserve).pivot();
    stock.await.map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

async fn take(command: TakePayment, mut tx: Tx) -> Result<()> {
    let row = (command.order_id.clone(),);
    tx.execute("insert into payment (order_id) values (?1)", row)
        .await?;
    println!("payment   {}: took the money", command.order_id);
    Ok(())
}

async fn give_back(command: ReturnPayment, mut tx: Tx) -> Result<()> {
    let row = (command.order_id.clone(),);
    tx.execute("delete from payment where order_id = ?1", row)
        .await?;
    println!("payment   {}: gave the money back", command.order_id);
    Ok(())
}

/// There is one tea. A refusal is an answer; an `Err` would be tried again.
async fn reserve(command: ReserveStock, mut tx: Tx) -> Result<StepReply<i64>> {
    let take_one = "update stock set left = left - 1 where sku = ?1 and left > 0";
    Ok(match tx.execute(take_one, (command.sku,)).await? {
        0 => StepReply::refused("sold out"),
        _ => StepReply::Done(1),
    })
}

async fn confirmed(event: OrderConfirmed, State(ends): State<Sender<String>>) -> Result<()> {
    let _ = ends.send(format!("{} is confirmed", event.order_id)).await;
    Ok(())
}

async fn cancelled(event: OrderCancelled, State(ends): State<Sender<String>>) -> Result<()> {
    let OrderCancelled { order_id, reason } = event;
    let _ = ends
        .send(format!("{order_id} is cancelled: {reason}"))
        .await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let ground = Ground::new().await?;
    let orders = ground.store("orders", "").await?;
    let payments = "create table payment (order_id text primary key)";
    let stock = "create table stock (sku text primary key, left integer not null);
                 insert into stock values ('tea', 1)";
    let (ends, mut ended) = channel::<String>(10);
    let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
    let services = vec![
        Router::new("orders")
            .publishes::<OrderPlaced>()
            .saga(sagas.version(1, checkout))
            .transactional(orders.clone()),
        Router::new("payment")
            .on(take)
            .on(give_back)
            .transactional(ground.store("payment", payments).await?),
        Router::new("inventory")
            .on(reserve)
            .transactional(ground.store("inventory", stock).await?),
        Router::new("listener")
            .on(confirmed)
            .on(cancelled)
            .with_state(ends),
    ];
    let running = ground.run(services).await?;
    let producer = Producer::new("orders", orders);
    for (order_id, sku) in [("o-1", "tea"), ("o-2", "telescope")] {
        let order = OrderPlaced {
            order_id: order_id.into(),
            sku: sku.into(),
        };
        producer
            .publish(&order)
            .await
            .map_err(|why| anyhow::anyhow!("{why}"))?;
    }
    for _ in 0..2 {
        let end = in_time("an order's end", ended.recv()).await?;
        println!("listener  {}", end.unwrap_or_default());
    }
    running.stop().await
}
