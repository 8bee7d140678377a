use serde::{Deserialize, Serialize};
use tidings::Event;

#[derive(Serialize, Deserialize, Event)]
struct ProcessPaymentNow {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
struct OrderPlacedEvent {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
struct StockFeed {
    sku: String,
}

fn main() {}
