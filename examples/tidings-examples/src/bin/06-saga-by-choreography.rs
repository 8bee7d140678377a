//! A saga by choreography: each service reacts to what the others announce, and undoes what it did when
//! the whole cannot be had. Nobody leads.
//!
//! Payment takes the money for an order. Inventory hears that, and has the goods or not. If not, payment
//! hears that and gives the money back.

use tidings::prelude::*;
use tidings_examples::{Ground, in_time};
use tidings_sqlite::Tx;
use tokio::sync::mpsc::{Sender, channel};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    sku: String,
    amount: i64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct PaymentTaken {
    order_id: String,
    sku: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct StockReserved {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct StockRefused {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct PaymentReturned {
    order_id: String,
}

/// Payment: takes the money.
async fn take(order: OrderPlaced, mut tx: Tx) -> Result<PaymentTaken> {
    let OrderPlaced {
        order_id,
        sku,
        amount,
    } = order;
    let row = (order_id.clone(), amount);
    tx.execute(
        "insert into payment (order_id, amount) values (?1, ?2)",
        row,
    )
    .await?;
    println!("payment   {order_id}: took {amount}");
    Ok(PaymentTaken { order_id, sku })
}

/// Payment: gives it back, because the order cannot be had.
async fn give_back(refused: StockRefused, mut tx: Tx) -> Result<PaymentReturned> {
    let order_id = refused.order_id;
    tx.execute(
        "delete from payment where order_id = ?1",
        (order_id.clone(),),
    )
    .await?;
    println!("payment   {order_id}: gave the money back");
    Ok(PaymentReturned { order_id })
}

/// Inventory: there is one tea, and nothing else. Two facts are possible, and one of them is announced.
async fn reserve(
    paid: PaymentTaken,
    mut tx: Tx,
) -> Result<(Option<StockReserved>, Option<StockRefused>)> {
    let PaymentTaken { order_id, sku } = paid;
    let take_one = "update stock set left = left - 1 where sku = ?1 and left > 0";
    let taken = tx.execute(take_one, (sku,)).await?;
    Ok(match taken {
        0 => (None, Some(StockRefused { order_id })),
        _ => (Some(StockReserved { order_id }), None),
    })
}

/// A listener of its own: nobody had to be told about it.
async fn reserved(event: StockReserved, State(ends): State<Sender<String>>) -> Result<()> {
    let _ = ends.send(format!("{} is sent", event.order_id)).await;
    Ok(())
}

async fn returned(event: PaymentReturned, State(ends): State<Sender<String>>) -> Result<()> {
    let _ = ends.send(format!("{} is undone", event.order_id)).await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let ground = Ground::new().await?;
    let orders = ground.store("orders", "").await?;
    let payments = "create table payment (order_id text primary key, amount integer not null)";
    let stock = "create table stock (sku text primary key, left integer not null);
                 insert into stock values ('tea', 1)";
    let (ends, mut ended) = channel::<String>(10);
    let services = vec![
        Router::new("orders")
            .publishes::<OrderPlaced>()
            .transactional(orders.clone()),
        Router::new("payment")
            .on(take)
            .on(give_back)
            .transactional(ground.store("payment", payments).await?),
        Router::new("inventory")
            .on(reserve)
            .transactional(ground.store("inventory", stock).await?),
        Router::new("listener")
            .on(reserved)
            .on(returned)
            .with_state(ends),
    ];
    let running = ground.run(services).await?;
    let producer = Producer::new("orders", orders);
    for (order_id, sku) in [("o-1", "tea"), ("o-2", "telescope")] {
        let order = OrderPlaced {
            order_id: order_id.into(),
            sku: sku.into(),
            amount: 7,
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
