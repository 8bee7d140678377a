use tidings::{Batch, prelude::*};

#[derive(Serialize, Deserialize, Event)]
struct OrderPlaced {
    order_id: String,
}

/// Neither a message nor many.
struct Order;

#[tidings::handler]
async fn about_one(_orders: Batch<OrderPlaced>, _id: MessageId) -> Result<()> {
    Ok(())
}

#[tidings::handler]
async fn of_what(_orders: Batch<Order>) -> Result<()> {
    Ok(())
}

#[tidings::handler]
async fn no_message(_order: Order) -> Result<()> {
    Ok(())
}

fn main() {}
