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

#[derive(Serialize, Deserialize, Event)]
#[event(format = "xml")]
struct StockCounted {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(format = "protobuf", proto = "shop.StockMoved")]
struct StockMoved {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(proto_file = "stock.proto")]
struct StockSold {
    order_id: String,
}

fn main() {}
