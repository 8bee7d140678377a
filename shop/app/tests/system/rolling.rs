//! What operators do while customers order: each process is started anew, one after the other, and copies of a service
//! come and go.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::http;
use crate::orders::{eventually, ledger};
use crate::world::{World, good_order};

/// How long after the last order all may take to end.
const END_MAX: Duration = Duration::from_secs(120);

/// How many orders are placed between two changes.
const BETWEEN: usize = 10;

/// How long a customer tries to place an order: another copy answers at once.
const PLACE_TRIES: usize = 50;

/// Every process of the shop ends as it is asked to and starts again. Customers see nothing of it, if there are two copies of
/// `orders`.
pub(crate) fn restarts(world: &mut World) {
    let orders = while_ordering(world, |world, customers| {
        for number in 0..world.count() {
            world.stop(number);
            customers.order_more();
            world.restart(number);
            customers.order_more();
        }
    });
    all_end_well(world, &orders);
}

/// One copy of a service becomes four, and then one again.
pub(crate) fn copies_come_and_go(world: &mut World, service: &str) {
    let orders = while_ordering(world, |world, customers| {
        for _ in 0..3 {
            world.start(service);
            customers.order_more();
        }
        for _ in 0..3 {
            world.remove_last();
            customers.order_more();
        }
    });
    all_end_well(world, &orders);
}

/// Someone orders one thing after the other meanwhile. Returns the orders.
fn while_ordering(world: &mut World, change: impl FnOnce(&mut World, &Customers)) -> Vec<String> {
    let orders = world.all_of("orders");
    let customers = &Customers {
        ports: orders
            .into_iter()
            .map(|number| world.port(number))
            .collect(),
        first: world.count(),
        pause: world.pause(),
        placed: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let placing = scope.spawn(|| customers.place());
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change(world, customers);
        }));
        customers.is_over.store(true, Ordering::Release);
        let placed = placing.join().unwrap().unwrap();
        changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        placed
    })
}

struct Customers {
    ports: Vec<u16>,
    /// Keeps keys of one scenario apart from those of another.
    first: usize,
    /// Between two orders.
    pause: Duration,
    placed: AtomicUsize,
    is_over: AtomicBool,
}

impl Customers {
    /// Waits until some more orders are placed.
    fn order_more(&self) {
        let wanted = self.placed.load(Ordering::Acquire).saturating_add(BETWEEN);
        let more = || self.placed.load(Ordering::Acquire) >= wanted;
        tidings_testing::servers::wait_until("more orders", END_MAX, more).unwrap();
    }

    fn place(&self) -> Result<Vec<String>> {
        let mut orders = Vec::new();
        while !self.is_over.load(Ordering::Acquire) {
            let placed = self.place_one(orders.len());
            if placed.is_err() {
                // Nobody is to wait for more.
                self.placed.store(usize::MAX / 2, Ordering::Release);
            }
            orders.push(placed?);
            self.placed.store(orders.len(), Ordering::Release);
            thread::sleep(self.pause);
        }
        Ok(orders)
    }

    /// At one copy of `orders`, or at another while that is away or not ready yet, as a load balancer does.
    fn place_one(&self, number: usize) -> Result<String> {
        let key = format!("idempotency-key: rolling {} {number}\r\n", self.first);
        let order = good_order("rolling");
        let mut last = None;
        for port in self.ports.iter().cycle().skip(number).take(PLACE_TRIES) {
            match http::json(*port, "POST /orders", &key, &order) {
                Ok(answer) if answer.status == 503 => last = Some(answer.to_string()),
                Ok(answer) => {
                    ensure!(answer.status == 202, "not taken: {answer}");
                    let id = answer.json()["orderId"].as_str().map(str::to_owned);
                    return Ok(id.unwrap_or_default());
                }
                Err(error) => last = Some(error.to_string()),
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("nobody takes orders: {last:?}")
    }
}

fn all_end_well(world: &World, orders: &[String]) {
    println!("{} orders", orders.len());
    world.wait_for_all(orders, "CONFIRMED", END_MAX);
    for order in orders {
        assert_eq!(
            ledger(world, order),
            [("charge".to_owned(), 12.9)],
            "{order}"
        );
        eventually(world, &format!("/shipments/{order}"), |it| {
            it["tracking"].is_string()
        });
        eventually(world, &format!("/emails?orderId={order}"), |mails| {
            mails.as_array().is_some_and(|mails| mails.len() == 1)
        });
    }
}
