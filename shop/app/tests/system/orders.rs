//! What becomes of one order: every service does its part, or everything is undone.

use std::time::Duration;

use serde_json::{Value, json};
use tidings_testing::servers::wait_until;

use crate::world::{World, order};

/// Generous, for machines that are busy: it is the end that counts here, not how soon it comes.
const SOON: Duration = Duration::from_secs(60);

pub(crate) fn reach_their_end(world: &World) {
    a_good_order_is_confirmed(world);
    a_declined_card_cancels(world);
    too_little_stock_cancels(world);
    a_flaky_bank_charges_once(world);
    the_same_key_is_the_same_order(world);
}

fn a_good_order_is_confirmed(world: &World) {
    let id = world.place(&order("ann", "tok_ok", "LAMP-BRASS", 2), "good");
    becomes(world, &id, "CONFIRMED");
    eventually(world, &format!("/payments/{id}"), |p| {
        p["status"] == "AUTHORIZED"
    });
    eventually(world, &format!("/shipments/{id}"), |s| {
        s["tracking"].is_string()
    });
    eventually(world, &format!("/emails?orderId={id}"), |mails| {
        mails
            .as_array()
            .is_some_and(|mails| mails.iter().any(|m| m["to"] == "ann@example.com"))
    });
    eventually(world, "/loyalty/ann", |loyalty| loyalty["points"] == 199);
    assert_eq!(ledger(world, &id), [("charge".to_owned(), 199.98)]);
}

fn a_declined_card_cancels(world: &World) {
    let before = world.get("/stock/TEA-SENCHA");
    let id = world.place(&order("bob", "tok_declined", "TEA-SENCHA", 3), "declined");
    becomes(world, &id, "CANCELLED");
    let order = world.get(&format!("/orders/{id}"));
    assert!(order["reason"].is_string(), "{order}");
    eventually(world, "/stock/TEA-SENCHA", |stock| *stock == before);
    eventually(world, &format!("/payments/{id}"), |p| {
        p["status"] == "DECLINED"
    });
    assert_eq!(ledger(world, &id), []);
    assert_eq!(world.get("/loyalty/bob")["points"], 0);
}

fn too_little_stock_cancels(world: &World) {
    let id = world.place(&order("cid", "tok_ok", "TELESCOPE-BRASS", 4), "too much");
    becomes(world, &id, "CANCELLED");
    pays_nothing(world, &id);
    let stock = world.get("/stock/TELESCOPE-BRASS");
    assert_eq!(
        (&stock["available"], &stock["reserved"]),
        (&json!(3), &json!(0))
    );
}

fn a_flaky_bank_charges_once(world: &World) {
    let id = world.place(&order("dan", "tok_flaky", "MUG-ENAMEL", 1), "flaky");
    becomes(world, &id, "CONFIRMED");
    assert_eq!(ledger(world, &id), [("charge".to_owned(), 12.9)]);
    let payment = world.get(&format!("/payments/{id}"));
    assert!(payment["attempts"].as_i64() > Some(1), "{payment}");
}

fn the_same_key_is_the_same_order(world: &World) {
    let order = order("eve", "tok_ok", "PEN-FOUNTAIN", 1);
    assert_eq!(world.place(&order, "same"), world.place(&order, "same"));
}

/// What the bank has done for an order, as kinds and amounts.
pub(crate) fn ledger(world: &World, order_id: &str) -> Vec<(String, f64)> {
    let entries = world.get(&format!("/bank/ledger?orderId={order_id}"));
    let entry = |entry: &Value| {
        Some((
            entry["kind"].as_str()?.to_owned(),
            entry["amount"].as_f64()?,
        ))
    };
    entries
        .as_array()
        .unwrap()
        .iter()
        .map(|e| entry(e).expect("kind and amount"))
        .collect()
}

/// Waits until a cancelled order has cost nothing: no charge, or one that was given back.
#[track_caller]
pub(crate) fn pays_nothing(world: &World, order_id: &str) {
    let what = format!("the ledger of {order_id} to balance");
    let outcome = wait_until(&what, SOON, || match ledger(world, order_id).as_slice() {
        [] => true,
        [(charge, paid), (refund, back)] => {
            charge == "charge" && refund == "refund" && paid == back
        }
        _ => false,
    });
    if let Err(error) = outcome {
        panic!("{error}; it is {:?}", ledger(world, order_id));
    }
}

#[track_caller]
fn becomes(world: &World, order_id: &str, status: &str) {
    world.wait_for_all(&[order_id.to_owned()], status, SOON);
}

/// Waits until what is at `path` is as `wanted` says.
#[track_caller]
pub(crate) fn eventually(world: &World, path: &str, wanted: impl Fn(&Value) -> bool) {
    let mut last = String::new();
    let outcome = wait_until(path, SOON, || {
        let Ok(answer) = world.try_get(path) else {
            return false;
        };
        last = answer.to_string();
        answer.status == 200 && wanted(&answer.json())
    });
    if let Err(error) = outcome {
        panic!("{error}; it says {last}");
    }
}
