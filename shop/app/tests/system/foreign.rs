//! Programs that know nothing of Tidings take part in the shop: those of `examples/`.

use std::process::Command;
use std::time::Duration;

use tidings_testing::foreign::{examples, node, python};
use tidings_testing::servers::Process;

use crate::orders::{eventually, ledger};
use crate::world::{World, good_order};

/// Starting Node or Python on a busy machine takes a while.
const SOON: Duration = Duration::from_secs(60);

pub(crate) fn programs_take_part(world: &World) {
    an_order_from_node_is_charged_once(world);
    a_listener_in_python_gets_the_orders_of_the_shop(world);
    what_nobody_can_read_becomes_a_dead_letter(world);
}

fn an_order_from_node_is_charged_once(world: &World) {
    let script = examples().join("02-order-node/place-order.js");
    for _ in 0..2 {
        let mut command = node(&script);
        command.args(["FOREIGN-1", "99.99", "5"]);
        run(world, command);
    }
    eventually(world, "/payments/FOREIGN-1", |payment| {
        payment["status"] == "AUTHORIZED"
    });
    // All ten were there before this one, in the same queue.
    let mut command = node(&script);
    command.args(["FOREIGN-2", "10.00", "1"]);
    run(world, command);
    eventually(world, "/payments/FOREIGN-2", |payment| {
        payment["status"] == "AUTHORIZED"
    });
    assert_eq!(ledger(world, "FOREIGN-1"), [("charge".to_owned(), 99.99)]);
}

fn a_listener_in_python_gets_the_orders_of_the_shop(world: &World) {
    let listen = |count: &str| {
        let mut command = python(examples().join("03-listen-python/listen.py"));
        command
            .args(["listener_in_python", count])
            .env("AMQP_URL", world.broker_url());
        Process::start(command).unwrap()
    };
    let mut listener = listen("1");
    listener
        .wait_for_line(SOON, |line| line.starts_with("listening "))
        .unwrap();
    let id = world.place(&good_order("listened-to"), "listened to");
    let line = listener
        .wait_for_line(SOON, |line| line.starts_with(&id))
        .unwrap();
    assert!(
        line.starts_with(&format!("{id} 12.9")) && line.ends_with(" CREATED"),
        "{line}"
    );
    assert!(listener.wait(SOON).unwrap().success());

    // While it is away its queue goes on listening.
    let id = world.place(&good_order("listened-to"), "collected");
    let mut listener = listen("1");
    listener
        .wait_for_line(SOON, |line| line.starts_with(&id))
        .unwrap();
}

fn what_nobody_can_read_becomes_a_dead_letter(world: &World) {
    for (body, reason) in [
        ("{\"orderId\": ", "EOF"),
        ("{\"orderId\": \"half\"}", "missing field"),
    ] {
        let mut command = python(examples().join("04-poison-python/poison.py"));
        command.arg(body);
        let printed = run(world, command);
        assert!(
            printed.contains("dead letter in") && printed.contains(reason),
            "{printed}"
        );
        let id = world.place(&good_order("after-poison"), body);
        world.wait_for_all(&[id], "CONFIRMED", SOON);
    }
}

/// The article's two programs, with a client of Kafka that is not ours.
#[cfg(feature = "kafka")]
pub(crate) fn programs_take_part_on_kafka(world: &World) {
    let script = |name: &str| {
        let mut command = node(examples().join("12-article-kafka").join(name));
        command.env("KAFKA_BROKERS", world.kafka_brokers());
        command
    };
    let order = |arguments: [&str; 3]| {
        let mut command = script("order-service.js");
        command.args(arguments);
        run(world, command);
    };
    order(["FOREIGN-1", "99.99", "5"]);
    order(["FOREIGN-1", "99.99", "5"]);
    order(["FOREIGN-2", "10.00", "1"]);
    for id in ["FOREIGN-1", "FOREIGN-2"] {
        eventually(world, &format!("/payments/{id}"), |payment| {
            payment["status"] == "AUTHORIZED"
        });
    }
    // What nobody can read: an order without an amount. Those behind it in its partition go on.
    order(["FOREIGN-1", "none", "1"]);
    order(["FOREIGN-1", "99.99", "1"]);
    eventually_dead(world, "payment.order-placed.v1.dead");
    assert_eq!(ledger(world, "FOREIGN-1"), [("charge".to_owned(), 99.99)]);

    let mut listener = Process::start(script("payment-service.js")).unwrap();
    let hears = |listener: &mut Process, id: &str| {
        let wanted = format!("[Payment Service] Received order {id}:");
        let heard = listener.wait_for_line(SOON, |line| line.starts_with(&wanted));
        heard.unwrap();
    };
    hears(&mut listener, "FOREIGN-2");
    let id = world.place(&good_order("listened-to"), "listened to");
    hears(&mut listener, &id);
    world.wait_for_all(&[id], "CONFIRMED", SOON);
}

#[cfg(feature = "kafka")]
fn eventually_dead(world: &World, queue: &str) {
    let has_one = || world.depth(queue) == Some(1);
    tidings_testing::servers::wait_until("a dead letter", SOON, has_one).unwrap();
}

/// Loyalty comes late and is told of what it missed, twice, and gives the points once.
pub(crate) fn a_replay_brings_a_newcomer_up_to_date(world: &mut World) {
    let orders = ["first", "second"].map(|key| world.place(&good_order("early"), key));
    world.wait_for_all(&orders, "CONFIRMED", SOON);
    let loyalty = world.start("loyalty");
    assert_eq!(world.get("/loyalty/early")["points"], 0);
    for _ in 0..2 {
        let mut command = node(examples().join("05-replay-node/replay.js"));
        let orders = world.port(world.all_of("orders")[0]);
        command
            .arg("early")
            .env("SHOP_URL", format!("http://127.0.0.1:{orders}"));
        let printed = run(world, command);
        assert!(printed.contains("about 2 order(s)"), "{printed}");
    }
    eventually(world, "/loyalty/early", |loyalty| loyalty["points"] == 24);
    // Whatever the second run sent has been handled when a later order has.
    let later = world.place(&good_order("later"), "later");
    world.wait_for_all(&[later], "CONFIRMED", SOON);
    eventually(world, "/loyalty/later", |loyalty| loyalty["points"] == 12);
    assert_eq!(world.get("/loyalty/early")["points"], 24);
    world.stop(loyalty);
}

/// Runs a program against the world's broker to its end and returns what it printed.
fn run(world: &World, mut command: Command) -> String {
    command.env("AMQP_URL", world.broker_url());
    let mut process = Process::start(command).unwrap();
    let status = process.wait(SOON).unwrap();
    let printed = [process.stdout(), process.stderr()].concat().join("\n");
    assert!(status.success(), "{status}: {printed}");
    printed
}
