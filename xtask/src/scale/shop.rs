//! The shop as a network of queues: which message goes where, and what each step takes of which machine.
//!
//! An order is what it is in the code (ARCHITECTURE.md, "What a confirmed order costs"): 7 messages, 12 deliveries,
//! and two attempts beside them, the customer's own and the bank's. Attempts of a service that wait at the same time
//! share a commit, rows of its outbox share a round of its relay, and messages that come at the same time share a
//! sync of the broker: so what an order costs depends on how many there are.

use super::engine::{Happened, Law, Random, SECOND, Simulation, Stage, Station, Time, percentile};

/// Nanoseconds.
pub(crate) const MICROSECOND: f64 = 1000.0;

/// The services with a database.
const SERVICES: usize = 7;
const ORDERS: usize = 0;
const PAYMENT: usize = 1;
const INVENTORY: usize = 2;
const SHIPPING: usize = 3;
const NOTIFICATION: usize = 4;
const LOYALTY: usize = 5;
const BANK: usize = 6;

/// Who sends each message, and who takes it.
const MESSAGES: [(usize, &[usize]); 7] = [
    (ORDERS, &[PAYMENT, INVENTORY, ORDERS]),
    (PAYMENT, &[ORDERS]),
    (INVENTORY, &[ORDERS]),
    (ORDERS, &[INVENTORY, SHIPPING, NOTIFICATION, LOYALTY]),
    (SHIPPING, &[ORDERS]),
    (NOTIFICATION, &[ORDERS]),
    (LOYALTY, &[ORDERS]),
];
const PLACED: usize = 0;
const CONFIRMED: usize = 3;
/// The last ones, with which an order is complete.
const LAST: std::ops::Range<usize> = 4..7;

/// What an order costs, fitted to measured figures (see [`super::measured`]); nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    /// CPU of the service and of the database, for a commit and for each attempt in it.
    pub(crate) service: (f64, f64),
    pub(crate) database: (f64, f64),
    /// CPU of the service and of the database when a customer looks what became of an order.
    pub(crate) look: (f64, f64),
    /// CPU of who plays the customers; on one machine it takes the others' cores.
    pub(crate) customer: f64,
    /// How long the disk takes until what was written is there.
    pub(crate) sync: f64,
    /// CPU of the broker for a message with its deliveries.
    pub(crate) broker: f64,
    /// Of the database's log, for an order.
    pub(crate) log_bytes: f64,
    /// There and back between machines; nothing on one machine.
    pub(crate) round_trip: f64,
}

/// The attempts that share a commit, and the rows of a relay's round, at most.
const ATTEMPTS_MAX: usize = 64;
const ROWS_MAX: usize = 1000;
/// A commit waits for its database so many times, a relay's round so many.
const COMMIT_TRIPS: f64 = 4.0;
const RELAY_TRIPS: f64 = 3.0;

/// Where it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Databases; each holds its share of the keys of every service.
    pub(crate) shards: usize,
    pub(crate) database_cores: usize,
    /// For the services of one shard.
    pub(crate) service_cores: usize,
    /// Of each service for one shard; each runs one batch at a time.
    pub(crate) copies: usize,
    pub(crate) brokers: usize,
    pub(crate) broker_cores: usize,
    /// All of it on one machine with so many cores.
    pub(crate) one_machine: Option<usize>,
    /// The share of orders that take the same product: its stock is in one place.
    pub(crate) hot: f64,
}

/// How orders come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    /// By chance, so many per second.
    Open(f64),
    /// So many customers, who order again when the last fact is known. They look so often (nanoseconds).
    OneByOne { customers: usize, look_every: f64 },
    /// So many customers, who order again when they are answered.
    Answered { customers: usize },
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Orders per second, from the first call to the last fact.
    pub(crate) completed: f64,
    /// Nanoseconds, the median and the 99th percentile.
    pub(crate) answer: (f64, f64),
    pub(crate) last_fact: (f64, f64),
    /// The median by the times that the shop writes down.
    pub(crate) recorded: f64,
    /// Commits and rounds of relays for an order.
    pub(crate) batches: f64,
    /// How often a customer looks at an order.
    pub(crate) looks: f64,
    /// The busiest of the databases' machines.
    pub(crate) database_load: f64,
    pub(crate) messages: f64,
    pub(crate) deliveries: f64,
}

#[derive(Clone, Copy)]
enum What {
    /// The customer calls.
    Ask,
    /// The attempt to store the order.
    Call,
    /// The bank takes the money; then payment knows.
    Bank,
    /// An attempt of a service with a message.
    Handle(usize),
    /// A message that is in an outbox.
    Send(usize),
    /// A message at the broker.
    Route(usize),
    /// A customer looks what became of the order.
    Look,
    /// A customer orders.
    Arrive(usize),
}

#[derive(Clone, Copy)]
struct Item {
    order: usize,
    what: What,
    service: usize,
}

struct Order {
    came: Time,
    customer: usize,
    shard: usize,
    /// Where the stock of its product is.
    stock: usize,
    answers: u8,
    facts: u8,
}

struct World {
    simulation: Simulation<Item>,
    fronts: Vec<usize>,
    looks: Vec<usize>,
    stores: Vec<[usize; SERVICES]>,
    relays: Vec<[usize; SERVICES]>,
    brokers: Vec<usize>,
    databases: Vec<usize>,
    orders: Vec<Order>,
    answers: Vec<f64>,
    facts: Vec<f64>,
    /// When the handler of the last fact began, which is the time that it writes down.
    recorded: Vec<f64>,
    messages: u64,
    deliveries: u64,
    looked: u64,
    last: Time,
}

/// Lets so many orders come and waits for the last fact of each. The first tenth is not counted in the times of
/// [`Arrivals::Open`], since it comes to empty queues.
pub(crate) fn run(
    costs: &Costs,
    plan: &Plan,
    arrivals: Arrivals,
    count: usize,
    seed: u64,
) -> Outcome {
    let mut world = World::new(costs, plan, seed);
    let first = match arrivals {
        Arrivals::Open(_) => 1,
        Arrivals::OneByOne { customers, .. } | Arrivals::Answered { customers } => customers,
    };
    for customer in 0..first.min(count) {
        world.arrive(customer, 0.0);
    }
    while let Some(happened) = world.simulation.next() {
        match happened {
            Happened::Alarm(item) => {
                let What::Arrive(customer) = item.what else {
                    let place = world.looks[world.orders[item.order].shard];
                    world.simulation.send(place, item, 0.0);
                    continue;
                };
                if world.orders.len() >= count {
                    continue;
                }
                world.order(customer, plan);
                if let Arrivals::Open(rate) = arrivals {
                    let after = world.simulation.random.exponential(SECOND / rate);
                    world.arrive(customer, after);
                }
            }
            Happened::Served(began, items) => items
                .into_iter()
                .for_each(|item| world.served(item, began, arrivals)),
        }
    }
    world.outcome(arrivals)
}

impl World {
    fn new(costs: &Costs, plan: &Plan, seed: u64) -> Self {
        let mut simulation = Simulation::new(seed);
        let one = plan.one_machine.map(|cores| simulation.machine(cores));
        let trip = if one.is_some() { 0.0 } else { costs.round_trip };
        let (mut stores, mut relays, mut databases) = (Vec::new(), Vec::new(), Vec::new());
        let (mut fronts, mut looks) = (Vec::new(), Vec::new());
        for _ in 0..plan.shards {
            let database = one.unwrap_or_else(|| simulation.machine(plan.database_cores));
            let service = one.unwrap_or_else(|| simulation.machine(plan.service_cores));
            databases.push(database);
            // Customers have machines of their own, unless there is but one.
            let asks = Stage {
                machine: one,
                batch: 0.0,
                each: if one.is_some() { costs.customer } else { trip },
            };
            fronts.push(simulation.station(Station {
                stages: vec![asks],
                batch_max: 1,
                at_once: usize::MAX,
                law: Law::Fixed,
            }));
            let work = |machine, (batch, each)| Stage {
                machine: Some(machine),
                batch,
                each,
            };
            let wait = |batch| Stage {
                machine: None,
                batch,
                each: 0.0,
            };
            let commit = [
                work(service, costs.service),
                work(database, costs.database),
                wait(costs.sync + COMMIT_TRIPS * trip),
            ];
            let at_once = |stages| Station {
                stages,
                batch_max: 1,
                at_once: usize::MAX,
                law: Law::Fixed,
            };
            looks.push(simulation.station(at_once(vec![
                work(service, (0.0, costs.look.0)),
                work(database, (0.0, costs.look.1)),
            ])));
            // What a row costs a relay is with its attempt: it is measured together.
            let round = [
                work(service, (costs.service.0, 0.0)),
                work(database, (costs.database.0, 0.0)),
                wait(costs.sync + RELAY_TRIPS * trip),
            ];
            let station = |stages: &[Stage], batch_max| Station {
                stages: stages.to_vec(),
                batch_max,
                at_once: plan.copies,
                law: Law::Fixed,
            };
            stores
                .push([(); SERVICES].map(|()| simulation.station(station(&commit, ATTEMPTS_MAX))));
            relays.push([(); SERVICES].map(|()| simulation.station(station(&round, ROWS_MAX))));
        }
        let brokers = (0..plan.brokers).map(|_| {
            let machine = one.unwrap_or_else(|| simulation.machine(plan.broker_cores));
            let stages = vec![
                Stage {
                    machine: Some(machine),
                    batch: 0.0,
                    each: costs.broker,
                },
                Stage {
                    machine: None,
                    batch: costs.sync + trip,
                    each: 0.0,
                },
            ];
            let at_once = if one.is_some() { 1 } else { plan.broker_cores };
            simulation.station(Station {
                stages,
                batch_max: ROWS_MAX,
                at_once,
                law: Law::Fixed,
            })
        });
        let brokers = brokers.collect();
        Self {
            simulation,
            fronts,
            looks,
            stores,
            relays,
            brokers,
            databases,
            orders: Vec::new(),
            answers: Vec::new(),
            facts: Vec::new(),
            recorded: Vec::new(),
            messages: 0,
            deliveries: 0,
            looked: 0,
            last: 0,
        }
    }

    fn arrive(&mut self, customer: usize, after: f64) {
        let item = Item {
            order: 0,
            what: What::Arrive(customer),
            service: ORDERS,
        };
        self.simulation.alarm(item, after);
    }

    fn look(&mut self, order: usize, after: f64) {
        let item = Item {
            order,
            what: What::Look,
            service: ORDERS,
        };
        self.simulation.alarm(item, after);
    }

    /// An order comes.
    fn order(&mut self, customer: usize, plan: &Plan) {
        let random: &mut Random = &mut self.simulation.random;
        let shard = random.next() as usize % plan.shards;
        let stock = match random.share() < plan.hot {
            true => 0,
            false => random.next() as usize % plan.shards,
        };
        let came = self.simulation.now;
        let order = self.orders.len();
        self.orders.push(Order {
            came,
            customer,
            shard,
            stock,
            answers: 0,
            facts: 0,
        });
        let item = Item {
            order,
            what: What::Ask,
            service: ORDERS,
        };
        self.simulation.send(self.fronts[shard], item, 0.0);
    }

    /// Something waits for a commit of a service.
    fn attempt(&mut self, order: usize, service: usize, what: What) {
        let place = self.stores[self.shard(order, service)][service];
        self.simulation.send(
            place,
            Item {
                order,
                what,
                service,
            },
            0.0,
        );
    }

    fn shard(&self, order: usize, service: usize) -> usize {
        let order = &self.orders[order];
        if service == INVENTORY {
            order.stock
        } else {
            order.shard
        }
    }

    /// A committed message waits for its relay.
    fn send(&mut self, order: usize, message: usize) {
        let service = MESSAGES[message].0;
        let place = self.relays[self.shard(order, service)][service];
        self.simulation.send(
            place,
            Item {
                order,
                what: What::Send(message),
                service,
            },
            0.0,
        );
    }

    fn served(&mut self, item: Item, began: Time, arrivals: Arrivals) {
        let Item {
            order,
            what,
            service,
        } = item;
        match what {
            What::Ask => self.attempt(order, ORDERS, What::Call),
            What::Call => {
                self.answers
                    .push((self.simulation.now - self.orders[order].came) as f64);
                self.send(order, PLACED);
                match arrivals {
                    Arrivals::Answered { .. } => self.arrive(self.orders[order].customer, 0.0),
                    Arrivals::OneByOne { .. } => self.look(order, 0.0),
                    Arrivals::Open(_) => {}
                }
            }
            What::Send(message) => {
                let node = (order * 7 + message) % self.brokers.len();
                let item = Item {
                    order,
                    what: What::Route(message),
                    service,
                };
                self.simulation.send(self.brokers[node], item, 0.0);
            }
            What::Route(message) => {
                self.messages += 1;
                for &service in MESSAGES[message].1 {
                    self.deliveries += 1;
                    match (service, message) {
                        (PAYMENT, PLACED) => self.attempt(order, BANK, What::Bank),
                        _ => self.attempt(order, service, What::Handle(message)),
                    }
                }
            }
            What::Bank => self.attempt(order, PAYMENT, What::Handle(PLACED)),
            What::Handle(message) => self.handled(order, service, message, began),
            What::Look => {
                self.looked += 1;
                let known = &self.orders[order];
                match arrivals {
                    Arrivals::OneByOne { look_every, .. }
                        if usize::from(known.facts) < LAST.len() =>
                    {
                        self.look(order, look_every);
                    }
                    _ => self.arrive(known.customer, 0.0),
                }
            }
            What::Arrive(_) => {}
        }
    }

    /// What follows when a service has handled a message.
    fn handled(&mut self, order: usize, service: usize, message: usize, began: Time) {
        match (service, message) {
            (PAYMENT, PLACED) => self.send(order, 1),
            (INVENTORY, PLACED) => self.send(order, 2),
            (ORDERS, 1 | 2) => {
                self.orders[order].answers += 1;
                if self.orders[order].answers == 2 {
                    self.send(order, CONFIRMED);
                }
            }
            (SHIPPING, CONFIRMED) => self.send(order, 4),
            (NOTIFICATION, CONFIRMED) => self.send(order, 5),
            (LOYALTY, CONFIRMED) => self.send(order, 6),
            (ORDERS, last) if LAST.contains(&last) => self.fact(order, began),
            _ => {}
        }
    }

    fn fact(&mut self, order: usize, began: Time) {
        let known = &mut self.orders[order];
        known.facts += 1;
        if usize::from(known.facts) < LAST.len() {
            return;
        }
        let took = (self.simulation.now - known.came) as f64;
        self.recorded.push((began - known.came) as f64);
        self.last = self.simulation.now;
        self.facts.push(took);
    }

    fn outcome(mut self, arrivals: Arrivals) -> Outcome {
        let count = self.facts.len();
        assert_eq!(count, self.orders.len(), "every order ends");
        let skipped = match arrivals {
            Arrivals::Open(_) => count / 10,
            _ => 0,
        };
        let middle = |times: &mut Vec<f64>| {
            times.drain(..skipped);
            times.sort_by(f64::total_cmp);
            (percentile(times, 0.5), percentile(times, 0.99))
        };
        let (answer, last_fact) = (middle(&mut self.answers), middle(&mut self.facts));
        let (recorded, _) = middle(&mut self.recorded);
        let stations = self.stores.iter().chain(&self.relays).flatten();
        let batches: u64 = stations.map(|place| self.simulation.batches(*place)).sum();
        let loads = self
            .databases
            .iter()
            .map(|it| self.simulation.utilisation(*it));
        Outcome {
            completed: count as f64 * SECOND / self.last as f64,
            answer,
            last_fact,
            recorded,
            batches: batches as f64 / count as f64,
            looks: self.looked as f64 / count as f64,
            database_load: loads.fold(0.0, f64::max),
            messages: self.messages as f64 / count as f64,
            deliveries: self.deliveries as f64 / count as f64,
        }
    }
}
