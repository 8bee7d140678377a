use serde::{Deserialize, Serialize};
use tidings::prelude::*;

#[derive(Serialize, Deserialize, Event)]
struct OrderPlaced {
    order_id: String,
}

#[tidings::handler]
fn not_async(_order: OrderPlaced) -> Result<()> {
    Ok(())
}

#[tidings::handler]
async fn no_message() -> Result<()> {
    Ok(())
}

#[tidings::handler]
async fn no_result(_order: OrderPlaced) {}

fn main() {}
