//! Everything that can happen to an order that the checkout leads, tried out: every order of commands and
//! answers, every refusal, every answer that comes twice, and the cancellation of the order at any moment.
//! Each ending must be legal: all done, or all undone.

use std::panic::catch_unwind;

use shop_contracts::{
    Money, OrderCancelled, OrderItem, OrderPlaced, OrderStatus,
    commands::{CardCharged, ParcelBooked},
};
use tidings::{
    Message,
    sagas::{Explored, Explorer, Start},
};

fn order(items: Vec<OrderItem>) -> OrderPlaced {
    OrderPlaced {
        order_id: "o-1".into(),
        amount: Money::from_cents(1290),
        timestamp: "2026-11-23T12:00:00Z".parse().unwrap(),
        status: OrderStatus::Created,
        customer_id: Some("c-1".into()),
        email: None,
        card: Some("tok_ok".into()),
        items,
    }
}

fn line(sku: &str, quantity: u32) -> OrderItem {
    OrderItem {
        sku: sku.into(),
        quantity,
    }
}

fn explore(order: &OrderPlaced, never_refused: &[&str]) -> Explored {
    let cancelled = OrderCancelled {
        order_id: order.order_id.clone(),
        reason: "payment did not answer within 24h".into(),
        email: None,
    };
    let raw = |value: serde_json::Value| serde_json::value::to_raw_value(&value).unwrap();
    let cancelled = raw(serde_json::to_value(&cancelled).unwrap());
    let amount = order.amount;
    Explorer::new(
        shop_checkout::sagas().define("checkout"),
        "o-1",
        Start::of(order).unwrap(),
    )
    .replies(move |step, _| {
        raw(match &*step.step {
            "charge-card" => serde_json::to_value(CardCharged { amount }).unwrap(),
            "book-parcel" => serde_json::to_value(ParcelBooked {
                tracking: "TRK-1".into(),
            })
            .unwrap(),
            _ => serde_json::Value::Null,
        })
    })
    .signal("order-cancelled", cancelled)
    .never_refused(never_refused)
    .run()
}

/// What comes after the pivot: the services never refuse it.
const AFTER: [&str; 2] = ["ship-stock", "book-parcel"];

#[test]
fn every_order_ends_done_or_undone_whatever_happens() {
    let order = order(vec![line("MUG-ENAMEL", 1), line("MUG-ENAMEL", 2)]);
    let explored = explore(&order, &AFTER);
    println!("{explored:?}");
    assert!(explored.states > 1_000, "{explored:?}");
    let all = [
        "book-parcel",
        "charge-card",
        "confirm-order",
        "reserve-stock",
        "ship-stock",
    ];
    // The one or the other, and never a part of it.
    let legal = [
        ("compensated", Vec::new()),
        ("completed", all.map(Box::from).to_vec()),
    ];
    assert_eq!(explored.in_effect, legal.into());
}

/// If they did refuse, a confirmed order would not be undone: an operator would have to look.
#[test]
fn a_confirmed_order_is_never_undone() {
    for refuses in AFTER {
        let others = AFTER.into_iter().filter(|step| *step != refuses);
        let others: Vec<_> = others.collect();
        let explored = catch_unwind(|| explore(&order(vec![line("MUG-ENAMEL", 1)]), &others));
        let why = explored.expect_err(refuses);
        let why = why.downcast_ref::<String>().expect("a text");
        let expected = "its function failed after `confirm-order`, which cannot be undone";
        assert!(why.contains(expected), "{refuses}: {why}");
    }
}

/// A stranger's order: it is cancelled without asking anybody, and fits into a journal.
#[test]
fn an_order_of_more_products_than_can_be_had_asks_for_nothing() {
    let many: Vec<_> = (0..2_000)
        .map(|number| line(&format!("{number:0128}"), 1))
        .collect();
    let order = order(many);
    // Larger than this shop itself would publish.
    assert!(serde_json::to_vec(&order).unwrap().len() > OrderPlaced::BODY_BYTES_MAX);
    let start = Start {
        name: OrderPlaced::NAME.into(),
        id: "o-1".into(),
        correlation_id: None,
        body: serde_json::value::to_raw_value(&order).unwrap(),
    };
    let definition = shop_checkout::sagas().define("checkout");
    let explored = Explorer::new(definition, "o-1", start).run();
    assert_eq!(
        explored.endings.keys().copied().collect::<Vec<_>>(),
        ["compensated"]
    );
}
