//! The shop as a system: real processes, real brokers, real databases, and what happens to orders
//! while parts of it are taken away.
//!
//! Each scenario is a function that is given a running [`World`](world::World), so that the same
//! one runs on the broker in the box with SQLite and on RabbitMQ with PostgreSQL.

mod books;
mod decoupling;
mod foreign;
mod http;
mod kill;
mod odd;
mod odd_order;
mod orders;
#[cfg(feature = "aws")]
mod policies;
mod queues;
mod random;
mod replay;
mod rolling;
mod scaling;
mod smtp;
mod surroundings;
mod world;

use world::{BrokerKind, CHECKOUT, DatabaseKind, ORCHESTRATION, SERVICES, World};

#[test]
fn on_the_broker_in_the_box_and_sqlite() {
    let mut world = World::new(BrokerKind::Embedded, DatabaseKind::Sqlite).with_services(SERVICES);
    orders::reach_their_end(&world);
    decoupling::a_service_may_be_down(&mut world, "payment");
    decoupling::a_service_may_be_down(&mut world, "notification");
    decoupling::the_bank_may_be_down(&world);
    decoupling::the_broker_may_be_down(&mut world);
    books::balance(&world);
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn on_rabbitmq_and_postgresql_with_two_copies_of_some() {
    let copies = SERVICES.into_iter().chain(["payment", "notification"]);
    let mut world = World::new(BrokerKind::RabbitMq, DatabaseKind::Postgres).with_services(copies);
    orders::reach_their_end(&world);
    decoupling::a_service_may_be_down(&mut world, "payment");
    decoupling::the_broker_may_be_down(&mut world);
    books::balance(&world);
}

/// The same, with all that operators do while customers order.
#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn on_a_cluster_of_rabbitmq_and_postgresql() {
    let mut world = World::new(BrokerKind::RabbitMqCluster, DatabaseKind::Postgres);
    world = world.with_services(SERVICES.into_iter().chain(["orders"]));
    orders::reach_their_end(&world);
    rolling::restarts(&mut world);
    rolling::copies_come_and_go(&mut world, "payment");
    decoupling::the_broker_may_be_down(&mut world);
    books::balance(&world);
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs Kafka and PostgreSQL"]
fn on_kafka_and_postgresql() {
    let mut world = World::new(BrokerKind::Kafka, DatabaseKind::Postgres);
    world = world.with_services(SERVICES.into_iter().chain(["orders"]));
    orders::reach_their_end(&world);
    rolling::restarts(&mut world);
    rolling::copies_come_and_go(&mut world, "payment");
    decoupling::a_service_may_be_down(&mut world, "payment");
    decoupling::the_broker_may_be_down(&mut world);
    books::balance(&world);
}

/// Led by the checkout, so that services send each other commands, too.
#[cfg(feature = "aws")]
#[test]
#[ignore = "needs SQS"]
fn each_service_asks_amazon_for_what_its_policies_allow() {
    let world = World::with_flags(BrokerKind::Aws, DatabaseKind::Sqlite, &ORCHESTRATION);
    let world = world.with_services(SERVICES.into_iter().chain([CHECKOUT]));
    orders::reach_their_end(&world);
    policies::allow_what_was_asked_for(&world);
}

#[cfg(feature = "aws")]
#[test]
#[ignore = "needs SQS and PostgreSQL"]
fn on_sns_and_sqs_and_postgresql() {
    let mut world = World::new(BrokerKind::Aws, DatabaseKind::Postgres);
    world = world.with_services(SERVICES.into_iter().chain(["orders"]));
    orders::reach_their_end(&world);
    rolling::restarts(&mut world);
    rolling::copies_come_and_go(&mut world, "payment");
    decoupling::a_service_may_be_down(&mut world, "payment");
    decoupling::the_broker_may_be_down(&mut world);
    books::balance(&world);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn on_the_broker_in_the_box_and_postgresql_while_processes_come_and_go() {
    let mut world = World::new(BrokerKind::Embedded, DatabaseKind::Postgres);
    world = world.with_services(SERVICES.into_iter().chain(["orders"]));
    rolling::restarts(&mut world);
    rolling::copies_come_and_go(&mut world, "payment");
    rolling::copies_come_and_go(&mut world, "inventory");
    books::balance(&world);
}

#[test]
fn led_by_the_checkout_on_the_broker_in_the_box_and_sqlite() {
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Sqlite, &ORCHESTRATION);
    let mut world = world.with_services(SERVICES.into_iter().chain([CHECKOUT]));
    orders::reach_their_end(&world);
    decoupling::a_service_may_be_down(&mut world, "payment");
    decoupling::a_service_may_be_down(&mut world, CHECKOUT);
    decoupling::the_bank_may_be_down(&world);
    books::balance(&world);
}

#[test]
fn a_service_can_be_added_to_a_running_shop() {
    let mut world = without_loyalty();
    decoupling::a_service_can_be_added(&mut world);
}

#[test]
#[ignore = "needs Node and Python"]
fn foreign_programs_take_part_on_the_broker_in_the_box() {
    let world = World::new(BrokerKind::Embedded, DatabaseKind::Sqlite).with_services(SERVICES);
    foreign::programs_take_part(&world);
}

#[test]
#[ignore = "needs RabbitMQ, Node and Python"]
fn foreign_programs_take_part_on_rabbitmq() {
    let world = World::new(BrokerKind::RabbitMq, DatabaseKind::Sqlite).with_services(SERVICES);
    foreign::programs_take_part(&world);
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs Kafka and Node"]
fn foreign_programs_take_part_on_kafka() {
    let world = World::new(BrokerKind::Kafka, DatabaseKind::Sqlite).with_services(SERVICES);
    foreign::programs_take_part_on_kafka(&world);
}

#[test]
#[ignore = "needs Node"]
fn a_service_that_comes_late_can_be_told_what_it_missed() {
    let mut world = without_loyalty();
    foreign::a_replay_brings_a_newcomer_up_to_date(&mut world);
}

#[test]
fn a_service_that_is_added_works_off_the_past() {
    let mut world = keeping_without_loyalty(BrokerKind::Embedded, DatabaseKind::Sqlite);
    replay::a_newcomer_works_off_the_past(&mut world);
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn a_service_that_is_added_works_off_the_past_on_rabbitmq_and_postgresql() {
    let mut world = keeping_without_loyalty(BrokerKind::RabbitMq, DatabaseKind::Postgres);
    replay::a_newcomer_works_off_the_past(&mut world);
}

/// A shop that does without loyalty, and keeps what it says.
fn keeping_without_loyalty(broker: BrokerKind, database: DatabaseKind) -> World {
    let flags = ["--without", "loyalty", "--keep-events", "30d"];
    let services = SERVICES.into_iter().filter(|service| *service != "loyalty");
    let mut world = World::with_flags(broker, database, &flags).with_services(services);
    world.flags.drain(..2);
    world
}

/// A shop that does without loyalty for good, until somebody changes their mind: only then may it
/// be started.
fn without_loyalty() -> World {
    let flags = ["--without", "loyalty"];
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Sqlite, &flags);
    let services = SERVICES.into_iter().filter(|service| *service != "loyalty");
    let mut world = world.with_services(services);
    world.flags.clear();
    world
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn whoever_starts_late_finds_what_it_missed_on_rabbitmq_and_postgresql() {
    let mut world = World::new(BrokerKind::RabbitMq, DatabaseKind::Postgres);
    decoupling::services_may_start_late(&mut world);
}
