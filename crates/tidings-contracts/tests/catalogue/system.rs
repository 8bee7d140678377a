//! A small system: two services with types, and two programs of others with documents that somebody wrote.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings::{Sensitive, event_map::EventMap, prelude::*};
use tidings_contracts::{Contracts, Deprecation, Document};

/// As orders writes its messages.
mod written {
    use super::*;

    /// A customer has placed an order. Nothing is paid or packed yet.
    ///
    /// Prices are what the customer saw: `total` is their sum.
    #[derive(Serialize, Deserialize, JsonSchema, Event)]
    #[event(
        name = "order-placed.v2",
        topic = "order-placed",
        body_bytes_max = 8192
    )]
    #[serde(rename_all = "camelCase")]
    pub(super) struct OrderPlaced {
        /// The order.
        pub(super) order_id: String,
        pub(super) customer: Customer,
        /// What was ordered.
        #[schemars(length(min = 1, max = 50))]
        pub(super) items: Vec<Item>,
        pub(super) total: Money,
        /// What the customer wrote.
        #[schemars(length(max = 500))]
        pub(super) note: Option<String>,
        /// How it is paid.
        pub(super) method: Method,
        /// From which campaigns the customer came.
        pub(super) campaigns: Vec<String>,
    }

    #[derive(Serialize, Deserialize, JsonSchema, Sensitive)]
    pub(super) struct Customer {
        pub(super) name: String,
        /// Where to write to.
        #[tidings(sensitive)]
        pub(super) email: String,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    pub(super) struct Item {
        /// Which product.
        pub(super) sku: String,
        #[schemars(range(min = 1, max = 99))]
        pub(super) quantity: u32,
        pub(super) price: Money,
    }

    /// Money in the smallest unit of its currency.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub(super) struct Money {
        pub(super) amount: u64,
        #[schemars(regex(pattern = "^[A-Z]{3}$"))]
        pub(super) currency: String,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase", tag = "by")]
    pub(super) enum Method {
        Card { token: String },
        Invoice { days: u8 },
    }

    /// A customer has placed an order.
    #[derive(Serialize, Deserialize, JsonSchema, Event)]
    #[event(name = "order-placed.v1", topic = "order-placed")]
    #[serde(rename_all = "camelCase")]
    pub(super) struct OrderPlacedV1 {
        pub(super) order_id: String,
        /// In cents.
        pub(super) total: u64,
    }

    /// Send the parcel of an order.
    #[derive(Serialize, Deserialize, JsonSchema, Command)]
    #[command(target = "shipping")]
    #[serde(rename_all = "camelCase")]
    pub(super) struct SendParcel {
        pub(super) order_id: String,
    }
}

/// As payment reads and writes.
mod paid {
    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema, Event)]
    #[event(name = "order-placed.v2", topic = "order-placed")]
    #[serde(rename_all = "camelCase")]
    pub(super) struct OrderPlaced {
        pub(super) order_id: String,
        pub(super) total: Money,
        pub(super) note: Option<String>,
        /// Kept for the books.
        pub(super) items: serde_json::Value,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    pub(super) struct Money {
        pub(super) amount: u64,
        pub(super) currency: String,
    }

    /// The money for an order was taken.
    #[derive(Serialize, Deserialize, JsonSchema, Event)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct PaymentSettled {
        pub(super) order_id: String,
    }
}

async fn settle(order: paid::OrderPlaced) -> Result<paid::PaymentSettled> {
    let order_id = order.order_id;
    Ok(paid::PaymentSettled { order_id })
}

async fn ship(_: paid::PaymentSettled) -> Result<written::SendParcel> {
    let order_id = String::new();
    Ok(written::SendParcel { order_id })
}

fn orders() -> Document {
    let router = Router::new("orders")
        .on(ship)
        .publishes::<written::OrderPlaced>()
        .publishes::<written::OrderPlacedV1>();
    let usual = written::OrderPlaced {
        order_id: "o-1042".to_owned(),
        customer: written::Customer {
            name: "Ada Lovelace".to_owned(),
            email: "ada@example.org".to_owned(),
        },
        items: vec![written::Item {
            sku: "MUG-ENAMEL".to_owned(),
            quantity: 2,
            price: euros(1290),
        }],
        total: euros(2580),
        note: None,
        method: written::Method::Card {
            token: "tok_ok".to_owned(),
        },
        campaigns: Vec::new(),
    };
    let invoice = written::OrderPlaced {
        note: Some("Leave it <at the door> & ring".to_owned()),
        method: written::Method::Invoice { days: 14 },
        customer: written::Customer {
            name: "Bob".to_owned(),
            email: "bob@example.org".to_owned(),
        },
        order_id: "o-1043".to_owned(),
        items: Vec::new(),
        total: euros(1290),
        campaigns: vec!["spring".to_owned()],
    };
    Contracts::of(EventMap::of([&router]))
        .version("2.3.0")
        .description("Takes orders, and leads each to its end.")
        .message::<written::OrderPlaced>()
        .example(&usual)
        .example_of("on invoice", &invoice)
        .message::<written::OrderPlacedV1>()
        .deprecated::<written::OrderPlacedV1>(Deprecation {
            since: "2026-11-01".to_owned(),
            until: Some("2027-01-31".to_owned()),
            instead: Some("order-placed.v2".to_owned()),
        })
        .message::<written::SendParcel>()
        .message::<paid::PaymentSettled>()
        .document()
        .unwrap()
}

fn euros(amount: u64) -> written::Money {
    let currency = "EUR".to_owned();
    written::Money { amount, currency }
}

fn payment() -> Document {
    let router = Router::new("payment").on(settle);
    Contracts::of(EventMap::of([&router]))
        .version("1.4.0")
        .description("Takes the money for every order that is placed, once.")
        .message::<paid::OrderPlaced>()
        .message::<paid::PaymentSettled>()
        .document()
        .unwrap()
}

/// It needs what nobody writes, and takes for an integer what is a text.
const NEWSLETTER: &str = "
asyncapi: 3.0.0
info: { title: newsletter, version: 0.9.1, description: Writes to customers who asked for it. }
channels:
  placed:
    address: order-placed
    messages:
      placed:
        name: order-placed.v2
        payload:
          type: object
          required: [customer, coupon]
          properties:
            customer:
              type: object
              required: [email]
              properties:
                email: { type: string, format: email }
                name: { type: integer }
            coupon: { type: string, description: What it sends along. }
            campaigns: { type: array, items: { type: string } }
operations:
  write: { action: receive, channel: { $ref: '#/channels/placed' }, x-tidings: { queue: newsletter-orders } }
";

const ACCOUNTING: &str = "
asyncapi: 3.0.0
info: { title: accounting, version: '7' }
channels:
  old:
    address: order-placed
    messages:
      old: { name: order-placed.v1, payload: { schemaFormat: 'application/vnd.apache.avro;version=1.9.0', schema: {} } }
  parcels:
    address: shipping.send-parcel.v1
    bindings: { amqp: { is: queue } }
    messages:
      parcel: { name: send-parcel.v1 }
operations:
  book: { action: receive, channel: { $ref: '#/channels/old' } }
  count: { action: receive, channel: { $ref: '#/channels/parcels' } }
";

pub(super) fn documents() -> Vec<Document> {
    vec![
        orders(),
        payment(),
        Document::parse(NEWSLETTER).unwrap(),
        Document::parse(ACCOUNTING).unwrap(),
    ]
}
