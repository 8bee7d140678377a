//! From what an order costs to how many machines it takes: the tables of `docs/scale.md`, and its picture.
//!
//! A *cell* is one database with the services of its share of the keys. Keys are spread by their hash and cells share
//! nothing but the broker, so what holds for one cell at its share of the load holds for a thousand: large rows
//! of the table are cells that were simulated, times their number. Only products that many orders take are not spread
//! that way ([`hot_table`]).

use std::fmt::Write as _;

use super::engine::SECOND;
use super::measured::{ATTEMPTS, Compared, Run};
use super::shop::{Arrivals, Costs, MICROSECOND, Outcome, Plan, run};

/// The cores of a database, from small to large; and as many for the services of its cell.
const SIZES: [usize; 4] = [2, 4, 8, 16];
/// How much of its capacity a cell is given in a plan: what is left is for peaks, vacuum, the loss of a neighbour, and
/// for what the simulator does not know (it is a quarter above what was measured at the limit).
const LOAD: f64 = 0.5;
/// A cell can take more as long as 99 of 100 orders are complete by then.
const IN_TIME: f64 = 250.0 * 1000.0 * MICROSECOND;
/// How exactly a capacity is found: in so many halvings, of runs so long.
const HALVINGS: usize = 8;
const SECONDS_TRIED: f64 = 20.0;
/// Within a data centre.
const ROUND_TRIP: f64 = 200.0 * MICROSECOND;
/// The orders of a simulated cell, after which its queues have long settled.
const ORDERS: usize = 40_000;
/// The cells of a plan that are simulated together, at most.
const CELLS_MAX: usize = 2;

/// CPU of a broker for a message with its deliveries, nanoseconds: RabbitMQ had 27 % of two cores at 259 orders per
/// second (bench/README.md, "PostgreSQL and RabbitMQ beside the floor of an order").
const BROKER: f64 = 300.0 * MICROSECOND;

/// What an order is to a broker.
const MESSAGES: f64 = 7.0;
/// A message with its headers, as it travels (docs/scale.md says how it was measured).
const MESSAGE_BYTES: f64 = 865.0;

/// Published, on quorum queues of a cluster of three nodes of 16 cores each.
const RABBITMQ_CLUSTER: f64 = 37_000.0;
/// Published, three brokers at their disks' limit, bytes per second.
const KAFKA_CLUSTER: f64 = 1.9e9;
const KAFKA_REPLICAS: f64 = 3.0;
const KAFKA_PARTITIONS_MIN: usize = 12;
/// A FIFO topic and a FIFO queue without high throughput.
const FIFO_PER_SECOND: f64 = 3_000.0;

/// A cell at some load.
pub(crate) struct Load {
    pub(crate) rate: f64,
    pub(crate) outcome: Outcome,
}

/// The orders per second that a cell takes in time, by trying.
fn capacity(costs: &Costs, cores: usize, seed: u64) -> f64 {
    // No more than if the database had nothing to do but attempts.
    let (mut enough, mut too_much) = (0.0, cores as f64 * SECOND / (costs.database.1 * ATTEMPTS));
    for _ in 0..HALVINGS {
        let rate = f64::midpoint(enough, too_much);
        let (costs, plan) = cells(costs, 1, cores, 0.0);
        let orders = ORDERS.min((rate * SECONDS_TRIED) as usize);
        let outcome = run(&costs, &plan, Arrivals::Open(rate), orders, seed);
        if outcome.last_fact.1 < IN_TIME {
            enough = rate;
        } else {
            too_much = rate;
        }
    }
    enough
}

/// The capacities of cells of all sizes.
pub(crate) fn capacities(costs: &Costs, seed: u64) -> Vec<(usize, f64)> {
    let sizes = SIZES.iter();
    sizes
        .map(|cores| (*cores, capacity(costs, *cores, seed)))
        .collect()
}

/// Of each service in a cell, each with its own runner.
fn copies(cores: usize) -> usize {
    cores / 2
}

fn cells(costs: &Costs, shards: usize, cores: usize, hot: f64) -> (Costs, Plan) {
    let mut costs = *costs;
    costs.round_trip = ROUND_TRIP;
    costs.broker = BROKER;
    let plan = Plan {
        shards,
        database_cores: cores,
        service_cores: cores,
        copies: copies(cores),
        brokers: 3,
        broker_cores: 16,
        one_machine: None,
        hot,
    };
    (costs, plan)
}

/// One cell of the largest size, from little to do to too much.
pub(crate) fn loads(costs: &Costs, capacities: &[(usize, f64)], seed: u64) -> Vec<Load> {
    let Some((cores, capacity)) = capacities.last() else {
        return Vec::new();
    };
    let shares = [0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2];
    let loads = shares.iter().map(|share| {
        let rate = share * capacity;
        let (costs, plan) = cells(costs, 1, *cores, 0.0);
        Load {
            rate,
            outcome: run(&costs, &plan, Arrivals::Open(rate), ORDERS, seed),
        }
    });
    loads.collect()
}

fn ms(nanoseconds: f64) -> String {
    format!("{:.1}", nanoseconds / 1e6)
}

/// A whole number with its thousands apart.
fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn measured_table(runs: &[&Run]) -> String {
    let mut table = String::from("| for an order, with so many customers |");
    for run in runs {
        let _ = write!(table, " {} |", run.customers);
    }
    table += "\n| --- |";
    table += &" ---: |".repeat(runs.len());
    let mut row = |name: &str, figure: &dyn Fn(&Run) -> String| {
        let figures = runs.iter().map(|run| format!(" {} |", figure(run)));
        let _ = write!(table, "\n| {name} |{}", figures.collect::<String>());
    };
    row("messages, deliveries", &|run| {
        format!("{:.0}, {:.0}", run.messages, run.deliveries)
    });
    row("log of PostgreSQL, bytes", &|run| whole(run.log_bytes));
    row("log of PostgreSQL, records", &|run| whole(run.log_records));
    row("syncs of PostgreSQL", &|run| format!("{:.1}", run.syncs));
    row("CPU of PostgreSQL, ms", &|run| {
        format!("{:.2}", run.database / 1e3)
    });
    row(
        "CPU of the services and the broker in the box, ms",
        &|run| format!("{:.2}", run.service / 1e3),
    );
    row("CPU of the customers, ms", &|run| {
        format!("{:.2}", run.customer / 1e3)
    });
    row("orders per second", &|run| whole(run.completed));
    row("answer, median, ms", &|run| {
        format!("{:.1}", run.answer / 1e3)
    });
    row("last fact, median, ms", &|run| {
        format!("{:.1}", run.last_fact / 1e3)
    });
    table + "\n"
}

pub(crate) fn costs_table(costs: &Costs) -> String {
    let us = |nanoseconds: f64| format!("{:.0}", nanoseconds / MICROSECOND);
    format!(
        "| CPU, µs | for a commit | for an attempt in it |\n| --- | ---: | ---: |\n\
         | the service | {} | {} |\n| PostgreSQL | {} | {} |\n",
        us(costs.service.0),
        us(costs.service.1),
        us(costs.database.0),
        us(costs.database.1),
    )
}

pub(crate) fn capacities_table(capacities: &[(usize, f64)]) -> String {
    let mut table = String::from(
        "| cores of the database, and of the services | orders per second |\n| ---: | ---: |\n",
    );
    for (cores, capacity) in capacities {
        let _ = writeln!(table, "| {cores} | {} |", whole(*capacity));
    }
    table
}

pub(crate) fn compared_table(run: &Run, compared: &[Compared]) -> String {
    let mut table = format!(
        "| {} customers | measured | simulated | off by | may be off by |\n| --- | ---: | ---: | ---: | ---: |\n",
        run.customers
    );
    for one in compared {
        let (
            off,
            Compared {
                what,
                measured,
                simulated,
                tolerance,
            },
        ) = (one.off(), one);
        let off = off * 100.0;
        let may = tolerance * 100.0;
        let _ = writeln!(
            table,
            "| {what} | {measured:.1} | {simulated:.1} | {off:+.0} % | {may:.1} % |"
        );
    }
    table
}

pub(crate) fn loads_table(loads: &[Load]) -> String {
    let mut table = String::from(
        "| orders per second | database busy | commits and rounds per order | answer p50 / p99, ms | last fact p50 / p99, ms |\n\
         | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for Load { rate, outcome } in loads {
        let _ = writeln!(
            table,
            "| {} | {:.0} % | {:.1} | {} / {} | {} / {} |",
            whole(*rate),
            outcome.database_load * 100.0,
            outcome.batches,
            ms(outcome.answer.0),
            ms(outcome.answer.1),
            ms(outcome.last_fact.0),
            ms(outcome.last_fact.1),
        );
    }
    table
}

/// Four cells at the load of a plan, and a product that a growing share of all orders takes.
pub(crate) fn hot_table(costs: &Costs, capacities: &[(usize, f64)], seed: u64) -> String {
    let Some((cores, capacity)) = capacities.last() else {
        return String::new();
    };
    let (cores, shards) = (*cores, 4);
    let rate = LOAD * capacity * shards as f64;
    let mut table = String::from(
        "| orders that take one product | its database busy | last fact p50 / p99, ms |\n| ---: | ---: | ---: |\n",
    );
    for hot in [0.0, 0.1, 0.25, 0.5] {
        let (costs, plan) = cells(costs, shards, cores, hot);
        let outcome = run(&costs, &plan, Arrivals::Open(rate), ORDERS * 2, seed);
        let _ = writeln!(
            table,
            "| {:.0} % | {:.0} % | {} / {} |",
            hot * 100.0,
            outcome.database_load * 100.0,
            ms(outcome.last_fact.0),
            ms(outcome.last_fact.1),
        );
    }
    table
}

/// How many cells of what size so many orders per second take.
fn sized(capacities: &[(usize, f64)], rate: f64) -> (usize, usize) {
    let fits = capacities
        .iter()
        .find(|(_, capacity)| capacity * LOAD >= rate);
    match (fits, capacities.last()) {
        (Some((cores, _)), _) => (1, *cores),
        (None, Some((cores, capacity))) => ((rate / (capacity * LOAD)).ceil() as usize, *cores),
        (None, None) => (0, 0),
    }
}

pub(crate) fn scale_table(costs: &Costs, capacities: &[(usize, f64)], seed: u64) -> String {
    let mut table = String::from(
        "| orders per second | databases × cores | log of each, MB/s | RabbitMQ, clusters of three | \
         Kafka, brokers; partitions of a topic | FIFO topics for an event | answer p50 / p99, ms | last fact p50 / p99, ms |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for rate in [100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0] {
        let (count, cores) = sized(capacities, rate);
        let together = count.min(CELLS_MAX);
        let share = rate * together as f64 / count as f64;
        let (with_network, plan) = cells(costs, together, cores, 0.0);
        let orders = ORDERS.min((share * 120.0) as usize);
        let outcome = run(&with_network, &plan, Arrivals::Open(share), orders, seed);
        let rabbitmq = (rate * MESSAGES / (RABBITMQ_CLUSTER * LOAD)).ceil();
        let bytes = rate * MESSAGES * MESSAGE_BYTES;
        let kafka = (bytes / (KAFKA_CLUSTER / 3.0 * LOAD))
            .ceil()
            .max(KAFKA_REPLICAS);
        let partitions = (count * copies(cores)).max(KAFKA_PARTITIONS_MIN);
        let topics = (rate / (FIFO_PER_SECOND * LOAD)).ceil();
        let _ = writeln!(
            table,
            "| {} | {} × {cores} | {} | {} | {}; {} | {} | {} / {} | {} / {} |",
            whole(rate),
            whole(count as f64),
            whole(rate / count as f64 * costs.log_bytes / 1e6),
            whole(rabbitmq),
            whole(kafka),
            whole(partitions as f64),
            whole(topics),
            ms(outcome.answer.0),
            ms(outcome.answer.1),
            ms(outcome.last_fact.0),
            ms(outcome.last_fact.1),
        );
    }
    table
}

/// Chart of a cell under load, by hand: no program for charts is needed to look at it again.
pub(crate) fn drawn(loads: &[Load]) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 420.0;
    const LEFT: f64 = 90.0;
    const RIGHT: f64 = 30.0;
    const TOP: f64 = 50.0;
    const BOTTOM: f64 = 60.0;
    let most = loads.iter().map(|load| load.rate).fold(1.0, f64::max);
    // Milliseconds, each line ten times the one below.
    let (low, high) = (0.0_f64, 4.0_f64);
    let x = |rate: f64| LEFT + rate / most * (WIDTH - LEFT - RIGHT);
    let y = |nanoseconds: f64| {
        let decade = (nanoseconds / 1e6).log10().clamp(low, high);
        HEIGHT - BOTTOM - (decade - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">A cell under load (simulated): how long orders take</text>\n"
    );
    for decade in 0..=4 {
        let label = 10_u64.pow(decade);
        let at = y(label as f64 * 1e6);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} ms</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            whole(label as f64),
        );
    }
    for thousands in 0..=(most / 1000.0) as u32 {
        let rate = f64::from(thousands) * 1000.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(rate),
            HEIGHT - BOTTOM + 20.0,
            whole(rate),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">orders per second</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0,
    );
    type Figure = fn(&Outcome) -> f64;
    let lines: [(&str, &str, Figure); 4] = [
        ("last fact, 99 %", "#b3261e", |outcome| outcome.last_fact.1),
        ("last fact, median", "#e07a5f", |outcome| {
            outcome.last_fact.0
        }),
        ("answer, 99 %", "#1f4e79", |outcome| outcome.answer.1),
        ("answer, median", "#5b9bd5", |outcome| outcome.answer.0),
    ];
    for (number, (name, colour, figure)) in lines.iter().enumerate() {
        let points = loads
            .iter()
            .map(|load| format!("{:.1},{:.1}", x(load.rate), y(figure(&load.outcome))));
        let points = points.collect::<Vec<_>>().join(" ");
        let legend = TOP + 8.0 + 18.0 * number as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <line x1=\"{:.1}\" y1=\"{legend}\" x2=\"{:.1}\" y2=\"{legend}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
            LEFT + 12.0,
            LEFT + 40.0,
            LEFT + 46.0,
            legend + 4.0,
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        service: (300.0 * MICROSECOND, 80.0 * MICROSECOND),
        database: (300.0 * MICROSECOND, 120.0 * MICROSECOND),
        look: (0.0, 0.0),
        customer: 0.0,
        sync: 100.0 * MICROSECOND,
        broker: 0.0,
        log_bytes: 20_000.0,
        round_trip: 0.0,
    };

    #[test]
    fn cells_grow_and_then_become_more() {
        let capacities = [(2, 200.0), (16, 3000.0)];
        assert_eq!(sized(&capacities, 100.0), (1, 2));
        assert_eq!(sized(&capacities, 101.0), (1, 16));
        assert_eq!(sized(&capacities, 15_000.0), (10, 16));
        assert_eq!(sized(&capacities, 15_001.0), (11, 16));
    }

    /// What a plan multiplies: cells that share nothing take twice as much together as one does alone.
    #[test]
    fn two_cells_at_twice_the_load_are_as_fast_as_one() {
        let at = |shards: usize, rate: f64| {
            let (costs, plan) = cells(&COSTS, shards, 4, 0.0);
            run(&costs, &plan, Arrivals::Open(rate), 20_000, 1)
        };
        let (one, two) = (at(1, 300.0), at(2, 600.0));
        let ratio = two.last_fact.0 / one.last_fact.0;
        assert!((0.97..1.03).contains(&ratio), "{ratio}");
        assert!((one.messages, one.deliveries) == (7.0, 12.0), "{one:?}");
        // And one at twice the load is not.
        assert!(at(1, 600.0).last_fact.0 > 1.2 * one.last_fact.0);
    }

    /// What is taken by many orders is in one place, however many cells there are.
    #[test]
    fn a_hot_product_makes_one_cell_busier() {
        let at = |hot: f64| {
            let (costs, plan) = cells(&COSTS, 4, 4, hot);
            run(&costs, &plan, Arrivals::Open(800.0), 20_000, 1)
        };
        assert!(at(0.6).database_load > 1.1 * at(0.0).database_load);
    }

    #[test]
    fn numbers_are_read_easily() {
        let found = [0.0, 999.0, 1000.0, 1_234_567.0].map(whole);
        assert_eq!(found, ["0", "999", "1,000", "1,234,567"]);
    }
}
