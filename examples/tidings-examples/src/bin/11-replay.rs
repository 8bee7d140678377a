//! Replay: a service that is added later works off the past. The sender keeps its events; they are sent
//! again to that one consumer, and to nobody else.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidings::{
    prelude::*,
    replay::{Replay, Start},
};
use tidings_examples::{Ground, in_time};
use tidings_sqlite::Tx;
use tokio::sync::mpsc::{Sender, channel};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "customer", id = "order_id")]
struct OrderConfirmed {
    order_id: String,
    customer: String,
    amount: i64,
}

async fn mail(order: OrderConfirmed, State(said): State<Sender<String>>) -> Result<()> {
    let _ = said.send(format!("mail for {}", order.order_id)).await;
    Ok(())
}

async fn award(
    order: OrderConfirmed,
    State(said): State<Sender<String>>,
    mut tx: Tx,
) -> Result<()> {
    let add = "insert into points (customer, points) values (?1, ?2)
               on conflict (customer) do update set points = points + excluded.points";
    tx.execute(add, (order.customer, order.amount)).await?;
    let _ = said.send(format!("points for {}", order.order_id)).await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let failed = |why: tidings::Error| anyhow::anyhow!("{why}");
    let ground = Ground::new().await?;
    let orders = ground.store("orders", "").await?;
    let (say, mut said) = channel::<String>(100);
    let shop = vec![
        Router::new("orders")
            .publishes::<OrderConfirmed>()
            .transactional(orders.clone())
            .keep_events(Duration::from_secs(30 * 24 * 60 * 60)),
        Router::new("mail").on(mail).with_state(say.clone()),
    ];
    let running = ground.run(shop).await?;
    let producer = Producer::new("orders", orders.clone());
    for number in 1..=3 {
        let order = OrderConfirmed {
            order_id: format!("o-{number}"),
            customer: "ann".into(),
            amount: number,
        };
        producer.publish(&order).await.map_err(failed)?;
    }
    for _ in 0..3 {
        let next = in_time("a mail", said.recv()).await?;
        println!("{}", next.unwrap_or_default());
    }

    // Loyalty is added. Its queue is declared when it starts, and the past is not in it.
    let tables = "create table points (customer text primary key, points integer not null)";
    let loyalty = ground.store("loyalty", tables).await?;
    let added = Router::new("loyalty")
        .on(award)
        .with_state(say)
        .transactional(loyalty.clone());
    let later = ground.run(added).await?;
    let transport: Arc<dyn tidings::Transport> = Arc::new(ground.transport().await?);
    for time in ["once", "twice"] {
        let replay = Replay::to("loyalty.order-confirmed.v1").from(Start::Beginning);
        let ended = replay.restart().run(&orders, &*transport, |_| {}).await?;
        println!("replayed {time}: {} events", ended.sent);
    }
    for _ in 0..3 {
        let next = in_time("points", said.recv()).await?;
        println!("{}", next.unwrap_or_default());
    }
    later.stop().await?;
    running.stop().await?;
    let points = loyalty.read(|connection| {
        let mut select = connection.prepare("select customer, points from points")?;
        let rows = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<BTreeMap<String, i64>, _>>()
    });
    println!("{:?}, and nobody got a second mail", points.await?);
    Ok(())
}
