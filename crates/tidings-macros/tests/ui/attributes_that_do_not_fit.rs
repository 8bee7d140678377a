use serde::{Deserialize, Serialize};
use tidings::{Command, Event};

#[derive(Serialize, Deserialize, Event)]
#[event(target = "inventory")]
struct StockReserved {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(colour = "blue")]
struct OrderShipped {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
struct ReserveStock {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", topic = "stock")]
struct ReleaseStock {
    order_id: String,
}

fn main() {}
