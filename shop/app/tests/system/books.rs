//! Do the books balance? Money, goods, points and mail against the orders they are for.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::orders::{eventually, ledger, pays_nothing};
use crate::world::World;

/// Asserts of the whole shop that nothing is reserved any more and no goods appeared or vanished,
/// and that no consumer has dead letters.
pub(crate) fn balance(world: &World) {
    no_dead_letters(world);
    goods_are_all_there(world);
}

/// Asserts that no goods appeared or vanished.
pub(crate) fn goods_are_all_there(world: &World) {
    for product in world.get("/products").as_array().unwrap() {
        let stock = world.get(&format!("/stock/{}", product["sku"].as_str().unwrap()));
        let count = |what: &str| stock[what].as_i64().unwrap();
        let initial = shop_contracts::product(product["sku"].as_str().unwrap())
            .unwrap()
            .initial_stock;
        let known = count("available") + count("reserved") + count("shipped");
        assert_eq!(known, initial, "goods appeared or vanished: {stock}");
    }
}

/// An order of the kill test, with all that has to be true of it afterwards.
#[derive(Clone)]
pub(crate) struct Placed {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: i64,
    pub(crate) declined: bool,
}

/// Asserts that each order ended, and that everybody's books agree on how.
pub(crate) fn agree(world: &World, orders: &[Placed]) {
    let ends: Vec<Value> = orders.iter().map(|order| end_of(world, order)).collect();
    let mut shipped: BTreeMap<&str, i64> = BTreeMap::new();
    let mut points: BTreeMap<&str, i64> = BTreeMap::new();
    for (order, end) in orders.iter().zip(&ends) {
        let amount = end["amount"].as_f64().unwrap();
        let points = points.entry(order.customer.as_str()).or_default();
        if end["status"] == "CONFIRMED" {
            assert!(!order.declined, "{end}");
            let booked = ledger(world, &order.id);
            assert_eq!(booked, [("charge".to_owned(), amount)], "{end}");
            *shipped.entry(&order.sku).or_default() += order.quantity;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "whole points of small amounts"
            )]
            let whole = amount.trunc() as i64;
            *points += whole;
        } else {
            pays_nothing(world, &order.id);
        }
    }
    for (customer, expected) in points {
        eventually(world, &format!("/loyalty/{customer}"), |l| {
            l["points"] == expected
        });
    }
    for (order, end) in orders
        .iter()
        .zip(&ends)
        .filter(|(_, end)| end["status"] == "CONFIRMED")
    {
        let shipment = format!("/shipments/{}", order.id);
        eventually(world, &shipment, |shipment| {
            shipment["tracking"].is_string()
        });
        let mails = format!("/emails?orderId={}", order.id);
        eventually(world, &mails, |mails| {
            mails.as_array().is_some_and(|m| !m.is_empty())
        });
        let mails = world.get(&mails);
        let mut subjects: Vec<_> = mails
            .as_array()
            .unwrap()
            .iter()
            .map(|m| &m["subject"])
            .collect();
        let sent = subjects.len();
        subjects.sort_by_key(ToString::to_string);
        subjects.dedup();
        assert_eq!(
            subjects.len(),
            sent,
            "a mail went out twice: {mails} for {end}"
        );
    }
    for product in shop_contracts::CATALOGUE {
        let expected = shipped.get(product.sku).copied().unwrap_or_default();
        let path = format!("/stock/{}", product.sku);
        eventually(world, &path, |s| {
            s["shipped"] == expected && s["reserved"] == 0
        });
    }
    balance(world);
}

/// How an order ended, according to the service that takes orders.
fn end_of(world: &World, order: &Placed) -> Value {
    let end = world.get(&format!("/orders/{}", order.id));
    let status = end["status"].as_str().unwrap_or_default();
    assert!(
        status == "CONFIRMED" || status == "CANCELLED",
        "it has not ended: {end}"
    );
    end
}

/// No consumer of the shop gave up on anything.
pub(crate) fn no_dead_letters(world: &World) {
    let style = world.style();
    let topologies = [
        shop_orders::topology(),
        shop_payment::topology(style),
        shop_inventory::topology(style),
        shop_shipping::topology(),
        shop_notification::topology(),
        shop_loyalty::topology(),
        shop_checkout::topology(style),
    ];
    for queue in topologies.iter().flat_map(|topology| &topology.queues) {
        let dead = format!("{}.dead", queue.name);
        assert_eq!(world.depth(&dead), Some(0), "messages in `{dead}`");
    }
}
