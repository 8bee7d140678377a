//! Dead letters: what cannot be handled is put aside with its reason and holds up nothing; an operator
//! looks, mends the body, and sends it on.

use std::{num::NonZeroU32, time::Duration};

use tidings::{
    PermanentExt,
    dead_letters::{Audit, DeadLetters, Selection},
    prelude::*,
};
use tidings_examples::{Ground, in_time};
use tokio::sync::mpsc::{Sender, channel};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    amount: String,
}

/// An amount that is none will be none tomorrow: `.permanent()` makes it a dead letter at once.
async fn charge(order: OrderPlaced, State(charged): State<Sender<String>>) -> Result<()> {
    let amount: u32 = order.amount.parse().permanent()?;
    let _ = charged.send(format!("{}: {amount}", order.order_id)).await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let ground = Ground::new().await?;
    let orders = ground.store("orders", "").await?;
    let (charges, mut charged) = channel::<String>(10);
    let services = vec![
        Router::new("orders")
            .publishes::<OrderPlaced>()
            .transactional(orders.clone()),
        Router::new("payment")
            .on(charge)
            .with_state(charges)
            .transactional(ground.store("payment", "").await?),
    ];
    let running = ground.run(services).await?;
    let producer = Producer::new("orders", orders);
    for (order_id, amount) in [("o-1", "seven"), ("o-2", "8"), ("o-3", "nine")] {
        let order = OrderPlaced {
            order_id: order_id.into(),
            amount: amount.into(),
        };
        producer
            .publish(&order)
            .await
            .map_err(|why| anyhow::anyhow!("{why}"))?;
    }
    let next = in_time("the good order", charged.recv()).await?;
    println!("charged {}", next.unwrap_or_default());

    let letters = DeadLetters::new(ground.transport().await?, "payment.order-placed.v1");
    let both = async {
        while letters.count().await.is_ok_and(|count| count < 2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("two dead letters", both).await?;
    for group in letters.groups(&Selection::all()).await?.groups {
        println!(
            "{} dead letters: {}",
            group.count, group.fingerprint.pattern
        );
    }

    let mut listing = letters.list(&Selection::all()).await?;
    let found = listing.next_page(10).await?;
    listing.end().await?; // From here on others may look.
    for letter in found {
        let mut order: OrderPlaced = serde_json::from_slice(&letter.envelope.body)?;
        order.amount = match &*order.amount {
            "seven" => "7".into(),
            "nine" => "9".into(),
            other => other.into(),
        };
        let audit = Audit::now("ann", "the amount was in words");
        let mended = serde_json::to_vec(&order)?;
        letters.edit(&letter.id, mended, &audit).await?;
    }
    let report = letters
        .redrive(Selection::all())
        .rate(NonZeroU32::MIN.saturating_add(99))
        .ramp(Duration::ZERO)
        .run(|_| {})
        .await?;
    println!("{} sent again, {} came back", report.sent, report.came_back);
    for _ in 0..2 {
        let next = in_time("a mended order", charged.recv()).await?;
        println!("charged {}", next.unwrap_or_default());
    }
    running.stop().await
}
