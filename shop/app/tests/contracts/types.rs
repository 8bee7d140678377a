//! What each service sends and reads: the types of its messages, with examples.

use shop_contracts::{
    CheckoutStyle, EmailSent, Money, OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced,
    OrderStatus, PaymentAuthorized, PaymentDeclined, PaymentRefunded, PointsAwarded,
    ShipmentBooked, StockRejected, StockReleased, StockReserved,
    commands::{
        BookParcel, CancelCharge, CancelOrder, ChargeCard, ConfirmOrder, RefundCard, ReleaseStock,
        ReserveStock, ShipStock,
    },
};
use tidings::{Message, event_map::EventMap};
use tidings_contracts::Contracts;

fn order_id() -> String {
    "0198a7c2-5f0e-7d3a-9a41-2f5c8e7b6d10".to_owned()
}

pub(super) fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn item() -> OrderItem {
    OrderItem {
        sku: "LAMP-BRASS".to_owned(),
        quantity: 2,
    }
}

const AMOUNT: Money = Money::from_cents(19_998);

fn placed() -> OrderPlaced {
    OrderPlaced {
        order_id: order_id(),
        amount: AMOUNT,
        timestamp: "2026-11-28T20:15:00Z".parse().unwrap(),
        status: OrderStatus::Created,
        customer_id: some("c-1017"),
        email: some("mira@example.org"),
        card: some("tok_visa"),
        items: vec![item()],
    }
}

/// Adds the messages of `service` that are on its map: their types, and their bodies.
struct Types {
    contracts: Contracts,
    names: Vec<String>,
}

impl Types {
    fn of<M: Message + schemars::JsonSchema>(self, examples: &[(Option<&str>, M)]) -> Self {
        if !self.names.iter().any(|name| name == M::NAME) {
            return self;
        }
        Self {
            contracts: of_its_own(self.contracts, examples),
            ..self
        }
    }
}

/// The map of a service in both styles of the checkout.
pub(super) fn maps() -> Vec<EventMap> {
    use CheckoutStyle::{Choreography, Orchestration};
    let both = |map: fn(CheckoutStyle) -> EventMap| map(Choreography).merge(map(Orchestration));
    vec![
        shop_checkout::event_map(),
        both(shop_inventory::event_map),
        shop_loyalty::event_map(),
        shop_notification::event_map(),
        shop_orders::event_map(),
        both(shop_payment::event_map),
        shop_shipping::event_map(),
    ]
}

pub(super) fn contracts_of(map: EventMap) -> Contracts {
    let [service] = map.services() else {
        panic!("the map of one service");
    };
    let service = service.clone();
    let handled = service.handlers.iter();
    let mut names: Vec<String> = handled.clone().map(|it| it.message.clone()).collect();
    let sent = handled
        .flat_map(|it| &it.emits)
        .chain(&service.emits)
        .chain(
            service
                .sagas
                .iter()
                .flat_map(|it| it.sends.iter().chain(&it.ends)),
        );
    names.extend(sent.map(|it| it.message.clone()));
    let contracts = Contracts::of(map).version(env!("CARGO_PKG_VERSION"));
    let reason = || "NOT_IN_STOCK".to_owned();
    let types = Types { contracts, names }
        .of(&[
            (None, placed()),
            (
                Some("a foreign order"),
                OrderPlaced {
                    customer_id: None,
                    email: None,
                    card: None,
                    items: Vec::new(),
                    ..placed()
                },
            ),
        ])
        .of(&[(
            None,
            PaymentAuthorized {
                order_id: order_id(),
                amount: AMOUNT,
            },
        )])
        .of(&[(
            None,
            PaymentDeclined {
                order_id: order_id(),
                reason: "CARD_DECLINED".to_owned(),
            },
        )])
        .of(&[(
            None,
            PaymentRefunded {
                order_id: order_id(),
                amount: AMOUNT,
            },
        )])
        .of(&[(
            None,
            StockReserved {
                order_id: order_id(),
            },
        )])
        .of(&[(
            None,
            StockRejected {
                order_id: order_id(),
                reason: reason(),
            },
        )])
        .of(&[(
            None,
            StockReleased {
                order_id: order_id(),
            },
        )])
        .of(&[
            (
                None,
                OrderConfirmed {
                    order_id: order_id(),
                    amount: AMOUNT,
                    customer_id: some("c-1017"),
                    email: some("mira@example.org"),
                },
            ),
            (
                Some("a foreign order"),
                OrderConfirmed {
                    order_id: order_id(),
                    amount: AMOUNT,
                    customer_id: None,
                    email: None,
                },
            ),
        ])
        .of(&[(
            None,
            OrderCancelled {
                order_id: order_id(),
                reason: reason(),
                email: some("mira@example.org"),
            },
        )])
        .of(&[(
            None,
            ShipmentBooked {
                order_id: order_id(),
                tracking: "P-00017".to_owned(),
            },
        )])
        .of(&[(
            None,
            EmailSent {
                order_id: order_id(),
                subject: "Your order is confirmed".to_owned(),
            },
        )])
        .of(&[(
            None,
            PointsAwarded {
                order_id: order_id(),
                customer_id: "c-1017".to_owned(),
                points: 199,
            },
        )])
        .of(&[(
            None,
            ReserveStock {
                order_id: order_id(),
                items: [(item().sku, 2)].into(),
            },
        )])
        .of(&[(
            None,
            ReleaseStock {
                order_id: order_id(),
            },
        )])
        .of(&[(
            None,
            ShipStock {
                order_id: order_id(),
            },
        )])
        .of(&[(
            None,
            ChargeCard {
                order_id: order_id(),
                amount: AMOUNT,
                card: some("tok_visa"),
            },
        )])
        .of(&[(
            None,
            CancelCharge {
                order_id: order_id(),
                amount: AMOUNT,
            },
        )])
        .of(&[(
            None,
            RefundCard {
                order_id: order_id(),
            },
        )])
        .of(&[(
            None,
            ConfirmOrder {
                order_id: order_id(),
            },
        )])
        .of(&[(
            None,
            CancelOrder {
                order_id: order_id(),
                reason: reason(),
            },
        )])
        .of(&[(
            None,
            BookParcel {
                order_id: order_id(),
            },
        )]);
    // What they read with types of their own, and what they would miss though their types read bodies without it.
    let contracts = types.contracts;
    match &*service.name {
        "loyalty" => {
            let confirmed = |customer_id| shop_loyalty::OrderConfirmed {
                order_id: order_id(),
                amount: AMOUNT,
                customer_id,
            };
            let view = [(None, confirmed(some("c-1017"))), foreign(confirmed(None))];
            of_its_own(contracts, &view).uses::<OrderConfirmed>("customerId")
        }
        "notification" => {
            let confirmed = |email| shop_notification::OrderConfirmed {
                order_id: order_id(),
                amount: AMOUNT,
                email,
            };
            let cancelled = shop_notification::OrderCancelled {
                order_id: order_id(),
                reason: reason(),
                email: some("mira@example.org"),
            };
            let view = [
                (None, confirmed(some("mira@example.org"))),
                foreign(confirmed(None)),
            ];
            of_its_own(of_its_own(contracts, &view), &[(None, cancelled)])
                .uses::<OrderConfirmed>("email")
                .uses::<OrderCancelled>("email")
        }
        "shipping" => {
            let confirmed = shop_shipping::OrderConfirmed {
                order_id: order_id(),
            };
            of_its_own(contracts, &[(None, confirmed)])
        }
        "payment" => contracts.uses::<OrderPlaced>("card"),
        "inventory" => contracts.uses::<OrderPlaced>("items[].sku"),
        _ => contracts,
    }
}

/// The case of an order that was not placed with the shop.
fn foreign<M>(example: M) -> (Option<&'static str>, M) {
    (Some("a foreign order"), example)
}

/// A message that the service reads in a shape of its own.
fn of_its_own<M: Message + schemars::JsonSchema>(
    contracts: Contracts,
    examples: &[(Option<&str>, M)],
) -> Contracts {
    let contracts = contracts.message::<M>();
    examples
        .iter()
        .fold(contracts, |contracts, (case, example)| match case {
            Some(case) => contracts.example_of(*case, example),
            None => contracts.example(example),
        })
}
