//! Later, and again and again: a reminder that is sent after a while, or cancelled; and what is sent by a
//! crontab's expression in a time zone.

use std::time::Duration;

use tidings::{
    Cancel, Cron, ScheduleId,
    prelude::*,
    schedules::{self, Query},
};
use tidings_examples::{Ground, in_time};
use tokio::sync::mpsc::{Sender, channel};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderPaid {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "orders")]
struct RemindCustomer {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "orders")]
struct CloseBooks {}

fn reminder(order_id: &str) -> ScheduleId {
    ScheduleId::new(format!("reminder/{order_id}"))
}

/// Waits in the service's own database: a restart forgets nothing.
async fn placed(order: OrderPlaced) -> Result<impl tidings::IntoMessages> {
    let id = reminder(&order.order_id);
    let remind = RemindCustomer {
        order_id: order.order_id,
    };
    Ok(remind.after(Duration::from_secs(1)).scheduled_as(id))
}

/// Who has paid is not reminded.
async fn paid(order: OrderPaid) -> Result<Cancel> {
    Ok(Cancel(reminder(&order.order_id)))
}

async fn remind(command: RemindCustomer, State(said): State<Sender<String>>) -> Result<()> {
    let _ = said.send(format!("{} is reminded", command.order_id)).await;
    Ok(())
}

async fn close(_: CloseBooks) -> Result<()> {
    println!("the books are closed");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let ground = Ground::new().await?;
    let store = ground.store("orders", "").await?;
    let (say, mut said) = channel::<String>(10);
    let nightly = Cron::new("close-books", "0 3 * * *", "Europe/Berlin")
        .map_err(|why| anyhow::anyhow!("{why}"))?;
    let orders = Router::new("orders")
        .on(placed)
        .on(paid)
        .on(remind)
        .on(close)
        .publishes::<OrderPlaced>()
        .publishes::<OrderPaid>()
        .schedule(nightly, &CloseBooks {})
        .with_state(say)
        .transactional(store.clone());
    let running = ground.run(orders).await?;
    let producer = Producer::new("orders", store.clone());
    let failed = |why: tidings::Error| anyhow::anyhow!("{why}");
    for order_id in ["o-1", "o-2"] {
        let order_id = order_id.to_owned();
        producer
            .publish(&OrderPlaced { order_id })
            .await
            .map_err(failed)?;
    }
    let two_wait = async {
        loop {
            let planned = schedules::list(&store, &Query::default()).await;
            let planned = planned.map_err(failed)?;
            if planned.len() == 3 {
                return anyhow::Ok(planned);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for planned in in_time("two reminders", two_wait).await?? {
        let recurs = planned
            .recurs
            .map(|it| format!("{} {}", it.expression, it.zone));
        println!("{}: {}", planned.id, recurs.as_deref().unwrap_or("once"));
    }
    let order_id = "o-1".to_owned();
    producer
        .publish(&OrderPaid { order_id })
        .await
        .map_err(failed)?;
    let next = in_time("a reminder", said.recv()).await?;
    println!("{}", next.unwrap_or_default());
    running.stop().await?;
    println!("{} more reminders", said.len());
    Ok(())
}
