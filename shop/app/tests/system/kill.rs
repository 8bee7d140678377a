//! The kill test: orders are placed while every process, the broker and the database server too,
//! is killed with `kill -9` again and again and started anew. Afterwards the books must balance.
//!
//! Who is killed when comes from a seed, which is printed; `TIDINGS_TEST_SEED` gives it back. How
//! the processes' own threads run does not come from it, so a seed repeats the attack, not always
//! the outcome.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::books::{self, Placed};
use crate::http;
use crate::random::Random;
use crate::world::{BrokerKind, CHECKOUT, DatabaseKind, ORCHESTRATION, SERVICES, World, order};

const ORDERS: usize = 500;

/// How many clients place them at once.
const CLIENTS: usize = 4;

/// How long one order may have to be tried, while processes come and go.
const PLACE_MAX: Duration = Duration::from_secs(120);

/// How long orders may take to end after the last kill.
const END_MAX: Duration = Duration::from_secs(180);

#[test]
fn killing_everything_loses_nothing_on_the_broker_in_the_box_and_sqlite() {
    let world = World::new(BrokerKind::Embedded, DatabaseKind::Sqlite).with_services(SERVICES);
    kill_everything(
        world,
        Kills {
            of_each_process: 4,
            of_the_broker: 4,
            of_the_database: 0,
        },
    );
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn killing_everything_loses_nothing_on_rabbitmq_and_postgresql() {
    let copies = SERVICES
        .into_iter()
        .chain(["orders", "payment", "inventory"]);
    let world = World::new(BrokerKind::RabbitMq, DatabaseKind::Postgres).with_services(copies);
    // RabbitMQ takes ten seconds to come back, so it dies less often than we can.
    kill_everything(
        world,
        Kills {
            of_each_process: 3,
            of_the_broker: 1,
            of_the_database: 2,
        },
    );
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn killing_everything_loses_nothing_on_a_cluster_of_rabbitmq_and_postgresql() {
    let copies = SERVICES.into_iter().chain(["orders", "payment"]);
    let world = World::new(BrokerKind::RabbitMqCluster, DatabaseKind::Postgres);
    kill_everything(
        world.with_services(copies),
        Kills {
            of_each_process: 2,
            // Each node once.
            of_the_broker: 3,
            of_the_database: 1,
        },
    );
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs Kafka and PostgreSQL"]
fn killing_everything_loses_nothing_on_kafka_and_postgresql() {
    let copies = SERVICES.into_iter().chain(["orders", "payment"]);
    let world = World::new(BrokerKind::Kafka, DatabaseKind::Postgres);
    kill_everything(
        world.with_services(copies),
        Kills {
            of_each_process: 2,
            of_the_broker: 2,
            of_the_database: 1,
        },
    );
}

/// What the emulator took is in its file, and is there again when it comes back.
#[cfg(feature = "aws")]
#[test]
#[ignore = "needs SQS and PostgreSQL"]
fn killing_everything_loses_nothing_on_sns_and_sqs_and_postgresql() {
    let copies = SERVICES.into_iter().chain(["orders", "payment"]);
    let world = World::new(BrokerKind::Aws, DatabaseKind::Postgres);
    kill_everything(
        world.with_services(copies),
        Kills {
            of_each_process: 2,
            of_the_broker: 2,
            of_the_database: 1,
        },
    );
}

/// Queues that promise no order, and may bring a message twice.
#[cfg(feature = "aws")]
#[test]
#[ignore = "needs SQS"]
fn killing_everything_loses_nothing_on_standard_queues_of_sqs_and_sqlite() {
    let world = World::new(BrokerKind::AwsStandard, DatabaseKind::Sqlite);
    kill_everything(
        world.with_services(SERVICES),
        Kills {
            of_each_process: 2,
            of_the_broker: 2,
            of_the_database: 0,
        },
    );
}

#[test]
fn killing_everything_loses_no_order_that_is_led_on_the_broker_in_the_box_and_sqlite() {
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Sqlite, &ORCHESTRATION);
    let world = world.with_services(SERVICES.into_iter().chain([CHECKOUT]));
    kill_everything(
        world,
        Kills {
            of_each_process: 3,
            of_the_broker: 3,
            of_the_database: 0,
        },
    );
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn killing_everything_loses_no_order_that_is_led_on_rabbitmq_and_postgresql() {
    let world = World::with_flags(BrokerKind::RabbitMq, DatabaseKind::Postgres, &ORCHESTRATION);
    // Two of checkout: their sagas share a database.
    let world = world.with_services(SERVICES.into_iter().chain([CHECKOUT, CHECKOUT]));
    kill_everything(
        world,
        Kills {
            of_each_process: 2,
            of_the_broker: 1,
            of_the_database: 1,
        },
    );
}

/// How often who is killed.
struct Kills {
    of_each_process: usize,
    of_the_broker: usize,
    of_the_database: usize,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Process(usize),
    Broker,
    Database,
}

fn kill_everything(mut world: World, kills: Kills) {
    let mut random = Random::from_environment();
    let victims = random.shuffled(victims(&world, &kills));
    let clients = &Clients::new(&world, victims.len());
    let orders = thread::scope(|scope| {
        let placing: Vec<_> = (0..CLIENTS)
            .map(|first| scope.spawn(move || clients.place(first)))
            .collect();
        for victim in victims {
            kill(&mut world, victim, &mut random);
            clients.kills.fetch_add(1, Ordering::Release);
        }
        let placed = placing.into_iter().map(|client| client.join().unwrap());
        placed.collect::<Result<Vec<_>>>().unwrap().concat()
    });
    assert_eq!(orders.len(), ORDERS);
    let placed = Instant::now();
    let ids: Vec<String> = orders.iter().map(|order| order.id.clone()).collect();
    wait_until_all_ended(&world, &ids);
    println!(
        "all {ORDERS} orders ended {:?} after the last kill",
        placed.elapsed()
    );
    books::agree(&world, &orders);
}

fn victims(world: &World, kills: &Kills) -> Vec<Victim> {
    let processes = (0..world.count()).map(Victim::Process);
    let mut victims: Vec<_> = processes
        .flat_map(|process| vec![process; kills.of_each_process])
        .collect();
    victims.extend(vec![Victim::Broker; kills.of_the_broker]);
    victims.extend(vec![Victim::Database; kills.of_the_database]);
    victims
}

/// Kills, leaves dead for a moment, starts again, and lets live for a moment.
fn kill(world: &mut World, victim: Victim, random: &mut Random) {
    match victim {
        Victim::Process(number) => world.kill9(number),
        Victim::Broker => world.kill9_broker(),
        Victim::Database => world.postgres().expect("it is PostgreSQL").kill9(),
    }
    thread::sleep(random.up_to(Duration::from_millis(500)));
    match victim {
        Victim::Process(number) => world.restart(number),
        Victim::Broker => world.restart_broker(),
        Victim::Database => world
            .postgres()
            .expect("it is PostgreSQL")
            .restart()
            .unwrap(),
    }
    thread::sleep(random.up_to(Duration::from_millis(500)));
}

fn wait_until_all_ended(world: &World, ids: &[String]) {
    let mut open: Vec<&String> = ids.iter().collect();
    let ended = |id: &str| world.status(id).is_some_and(|status| status != "CREATED");
    let outcome = tidings_testing::servers::wait_until("all orders to end", END_MAX, || {
        open.retain(|id| !ended(id));
        open.is_empty()
    });
    if let Err(error) = outcome {
        let first = world.try_get(&format!("/orders/{}", open[0]));
        panic!("{error}: {} have not, the first is {first:?}", open.len());
    }
}

/// Those who order, as people with bad connections do: again and again, with the same key, until
/// there is an answer.
struct Clients {
    ports: Vec<u16>,
    kills: AtomicUsize,
    kills_in_all: usize,
}

impl Clients {
    fn new(world: &World, kills_in_all: usize) -> Clients {
        let ports = world
            .all_of("orders")
            .into_iter()
            .map(|number| world.port(number))
            .collect();
        Clients {
            ports,
            kills: AtomicUsize::new(0),
            kills_in_all,
        }
    }

    /// Places every [`CLIENTS`]th order from `first` on, spread over the time of the killing.
    fn place(&self, first: usize) -> Result<Vec<Placed>> {
        let orders = (first..ORDERS).step_by(CLIENTS);
        orders
            .map(|number| {
                let due = number * self.kills_in_all / ORDERS;
                while self.kills.load(Ordering::Acquire) < due {
                    thread::sleep(Duration::from_millis(10));
                }
                self.place_one(number)
            })
            .collect()
    }

    fn place_one(&self, number: usize) -> Result<Placed> {
        let customer = format!("customer-{}", number % 20);
        let card = ["tok_ok", "tok_ok", "tok_declined", "tok_flaky"][number % 4];
        let (sku, quantity) =
            [("MUG-ENAMEL", 1), ("TEA-SENCHA", 3), ("TELESCOPE-BRASS", 1)][number % 3];
        let body = order(&customer, card, sku, quantity);
        let id = self.insist(&body, &format!("kill-{number}"))?;
        let declined = card == "tok_declined";
        Ok(Placed {
            id,
            customer,
            sku: sku.to_owned(),
            quantity: quantity.into(),
            declined,
        })
    }

    fn insist(&self, order: &Value, key: &str) -> Result<String> {
        let key = format!("idempotency-key: {key}\r\n");
        let start = Instant::now();
        for port in self.ports.iter().cycle() {
            match http::json(*port, "POST /orders", &key, order) {
                Ok(answer) if answer.status == 202 => {
                    return Ok(answer.json()["orderId"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned());
                }
                Ok(answer) if answer.status < 500 => bail!("refused: {answer}"),
                outcome => ensure!(start.elapsed() < PLACE_MAX, "no answer: {outcome:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("nobody takes orders");
    }
}
