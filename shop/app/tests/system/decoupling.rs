//! P7, temporal decoupling: whoever is away, orders are answered, and are worked off afterwards.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::orders::{eventually, ledger};
use crate::world::{World, good_order};

const ORDERS: usize = 200;

/// An answer that waited for somebody who is away would take longer than this.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// To work off the backlog, on a machine that is busy.
const BACKLOG_MAX: Duration = Duration::from_secs(120);

pub(crate) fn a_service_may_be_down(world: &mut World, service: &str) {
    let copies = world.all_of(service);
    copies.iter().for_each(|copy| world.stop(*copy));
    let orders = place_many(world, service);
    copies.iter().for_each(|copy| world.restart(*copy));
    all_end_well(world, service, &orders);
}

pub(crate) fn the_broker_may_be_down(world: &mut World) {
    world.kill9_broker();
    let orders = place_many(world, "the broker");
    world.restart_broker();
    all_end_well(world, "the broker", &orders);
}

/// The bank is not ours and speaks HTTP, so it is what a chain of calls would break at.
pub(crate) fn the_bank_may_be_down(world: &World) {
    world.bank_behaves(&json!({ "mode": "down" }));
    let orders = place_many(world, "the bank");
    assert_eq!(world.status(&orders[0]).as_deref(), Some("CREATED"));
    world.bank_behaves(&json!({ "mode": "ok" }));
    all_end_well(world, "the bank", &orders);
}

/// Places orders while `away` is away, each answered at once.
fn place_many(world: &World, away: &str) -> Vec<String> {
    let mut took = Vec::with_capacity(ORDERS);
    let orders = (0..ORDERS).map(|number| {
        let start = Instant::now();
        let id = world.place(
            &good_order(&customer(away)),
            &format!("without {away} {number}"),
        );
        took.push(start.elapsed());
        id
    });
    let orders = orders.collect();
    took.sort();
    let p99 = took[ORDERS * 99 / 100];
    println!("without {away}: p50 {:?}, p99 {p99:?}", took[ORDERS / 2]);
    assert!(
        p99 < ANSWER_MAX,
        "answers took up to {p99:?} without {away}"
    );
    orders
}

fn all_end_well(world: &World, away: &str, orders: &[String]) {
    world.wait_for_all(orders, "CONFIRMED", BACKLOG_MAX);
    for order in orders {
        assert_eq!(
            ledger(world, order),
            [("charge".to_owned(), 12.9)],
            "{order}"
        );
        eventually(world, &format!("/emails?orderId={order}"), |mails| {
            mails.as_array().is_some_and(|mails| !mails.is_empty())
        });
    }
    let points = 12 * ORDERS;
    eventually(world, &format!("/loyalty/{}", customer(away)), |l| {
        l["points"] == points
    });
}

fn customer(away: &str) -> String {
    format!("without-{}", away.replace(' ', "-"))
}

/// Orders are taken and payment answers before any other service has ever been started: whoever
/// comes finds what it missed.
pub(crate) fn services_may_start_late(world: &mut World) {
    world.start("orders,payment");
    let place = |number| world.place(&good_order("patient"), &format!("late {number}"));
    let orders: Vec<String> = (0..5).map(place).collect();
    for order in &orders {
        eventually(world, &format!("/payments/{order}"), |payment| {
            payment["status"] == "AUTHORIZED"
        });
    }
    world.start("inventory");
    world.wait_for_all(&orders, "CONFIRMED", BACKLOG_MAX);
    world.start("shipping,notification,loyalty");
    for order in &orders {
        eventually(world, &format!("/shipments/{order}"), |s| {
            s["tracking"].is_string()
        });
        eventually(world, &format!("/emails?orderId={order}"), |mails| {
            mails.as_array().is_some_and(|mails| mails.len() == 1)
        });
        assert_eq!(ledger(world, order), [("charge".to_owned(), 12.9)]);
    }
    let points = 12 * orders.len();
    eventually(world, "/loyalty/patient", |l| l["points"] == points);
}

/// Loyalty was left out: added later, it gets what happens from then on, and from then on misses
/// nothing, because its queue is there even when it is not.
pub(crate) fn a_service_can_be_added(world: &mut World) {
    let before = world.place(&good_order("early"), "before loyalty");
    world.wait_for_all(&[before], "CONFIRMED", BACKLOG_MAX);

    let loyalty = world.start("loyalty");
    let after = world.place(&good_order("late"), "with loyalty");
    world.wait_for_all(&[after], "CONFIRMED", BACKLOG_MAX);
    eventually(world, "/loyalty/late", |loyalty| loyalty["points"] == 12);
    assert_eq!(world.get("/loyalty/early")["points"], 0);

    world.stop(loyalty);
    let missed = world.place(&good_order("late"), "while loyalty is away");
    world.wait_for_all(&[missed], "CONFIRMED", BACKLOG_MAX);
    world.restart(loyalty);
    eventually(world, "/loyalty/late", |loyalty| loyalty["points"] == 24);
}
