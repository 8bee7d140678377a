//! What was measured, and what the simulator's costs are by that.
//!
//! Three runs say what a commit, an attempt and a look at an order take: with one customer nearly every attempt has a
//! commit of its own; with many who do not wait attempts share them; with many who look every 10 ms there are looks as
//! well. Two other runs, which nothing is fitted to, say whether the simulator is right.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::engine::SECOND;
use super::shop::{Arrivals, Costs, MICROSECOND, Outcome, Plan, run};

/// What `cargo xtask bench` has written.
struct Figures {
    json: Value,
    path: String,
}

impl Figures {
    fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (json, path) = (serde_json::from_slice(&text)?, path.display().to_string());
        Ok(Self { json, path })
    }

    /// The median of the rounds of a job; of the first peer.
    fn median(&self, job: &str) -> Result<f64> {
        let mut rows = self.json["rows"].as_array().into_iter().flatten();
        let row = rows.find(|row| row["job"] == job);
        let row = row.with_context(|| format!("{} has no `{job}`", self.path))?;
        let rounds = row["per_second"].as_array().into_iter().flatten();
        let mut rounds: Vec<f64> = rounds.filter_map(Value::as_f64).collect();
        rounds.sort_by(f64::total_cmp);
        rounds.get(rounds.len() / 2).copied().context("no rounds")
    }

    fn setting(&self, name: &str) -> Result<usize> {
        let text = self.json["settings"][name].as_str().unwrap_or_default();
        text.parse()
            .with_context(|| format!("{} has no `{name}`", self.path))
    }

    fn cores(&self) -> Result<usize> {
        let cores = self.json["machine"]["cores"]
            .as_u64()
            .context("no `cores`")?;
        Ok(usize::try_from(cores)?)
    }
}

/// A run of `cargo xtask bench orders --postgres`, as its JSON has it: medians of its rounds.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) customers: usize,
    pub(crate) orders: usize,
    /// Orders per second.
    pub(crate) completed: f64,
    /// Microseconds.
    pub(crate) answer: f64,
    pub(crate) last_fact: f64,
    /// Microseconds of CPU for an order.
    pub(crate) service: f64,
    pub(crate) database: f64,
    pub(crate) customer: f64,
    /// For an order.
    pub(crate) syncs: f64,
    pub(crate) log_bytes: f64,
    pub(crate) log_records: f64,
    pub(crate) messages: f64,
    pub(crate) deliveries: f64,
    /// Microseconds.
    pub(crate) disk: f64,
    pub(crate) cores: usize,
}

impl Run {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let figures = Figures::read(path)?;
        let median = |job: &str| figures.median(job);
        Ok(Self {
            customers: figures.setting("customers at a time")?,
            orders: figures.setting("orders per round")?,
            completed: median("orders completed /s")?,
            answer: median("answer p50, us")?,
            last_fact: median("last fact p50, us")?,
            service: median("CPU per order, us")?,
            database: median("CPU of PostgreSQL per order, us")?,
            customer: median("CPU of the customers per order, us")?,
            syncs: median("syncs of PostgreSQL per order")?,
            log_bytes: median("log of PostgreSQL per order, bytes")?,
            log_records: median("log of PostgreSQL per order, records")?,
            messages: median("messages per order")?,
            deliveries: median("deliveries per order")?,
            disk: figures.json["machine"]["fdatasync_p50_us"]
                .as_f64()
                .context("no `fdatasync_p50_us`")?,
            cores: figures.cores()?,
        })
    }

    /// The same in the simulator, with customers who wait for the last fact, or do not.
    pub(crate) fn simulated(&self, costs: &Costs, wait: bool) -> Outcome {
        let plan = on_one_machine(self.cores);
        let customers = self.customers;
        if !wait {
            return run(
                costs,
                &plan,
                Arrivals::Answered { customers },
                self.orders,
                1,
            );
        }
        // As `bench/src/orders.rs` looks.
        let look_every = 10_000.0 * MICROSECOND;
        let arrivals = Arrivals::OneByOne {
            customers,
            look_every,
        };
        run(costs, &plan, arrivals, self.orders, 1)
    }
}

/// As it was measured: all on one machine.
fn on_one_machine(cores: usize) -> Plan {
    Plan {
        shards: 1,
        database_cores: 0,
        service_cores: 0,
        copies: 1,
        brokers: 1,
        broker_cores: 1,
        one_machine: Some(cores),
        hot: 0.0,
    }
}

/// The attempts of an order: its deliveries, the customer's own and the bank's.
pub(crate) const ATTEMPTS: f64 = 14.0;
/// How often costs are tried; they settle after a few.
const TRIES: usize = 12;

/// The costs by which the simulator spends as much CPU as was measured: with one customer, with many who do not wait,
/// and with many who look.
pub(crate) fn fitted(few: &Run, rush: &Run, looking: &Run) -> Costs {
    let at_first = |measured: f64| measured / ATTEMPTS / 2.0 * MICROSECOND;
    let mut costs = Costs {
        service: (at_first(rush.service), at_first(rush.service)),
        database: (at_first(rush.database), at_first(rush.database)),
        look: (0.0, 0.0),
        customer: rush.customer * MICROSECOND,
        sync: few.disk * MICROSECOND,
        broker: 0.0,
        log_bytes: rush.log_bytes,
        round_trip: 0.0,
    };
    for _ in 0..TRIES {
        let [one, shared, looked] =
            [(few, true), (rush, false), (looking, true)].map(|(run, wait)| {
                let outcome = run.simulated(&costs, wait);
                (outcome.batches, outcome.looks)
            });
        // What is measured is so much for each batch, each attempt and each look: three equations. The second has no
        // looks; the attempts are the same in all.
        let solve = |with_one: f64, with_shared: f64, with_looks: f64| {
            let (a, b) = (one.0 - shared.0, one.1);
            let (c, d) = (looked.0 - shared.0, looked.1);
            let (e, f) = (with_one - with_shared, with_looks - with_shared);
            let whole = a * d - b * c;
            let batch = ((e * d - b * f) / whole).max(0.0);
            let look = ((a * f - e * c) / whole).max(0.0);
            let each = ((with_shared - batch * shared.0) / ATTEMPTS).max(0.0);
            [batch, each, look].map(|cost| cost * MICROSECOND)
        };
        let service = solve(few.service, rush.service, looking.service);
        let database = solve(few.database, rush.database, looking.database);
        costs.service = (service[0], service[1]);
        costs.database = (database[0], database[1]);
        costs.look = (service[2], database[2]);
    }
    costs
}

/// A figure of the simulator beside the measured one.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) what: &'static str,
    pub(crate) measured: f64,
    pub(crate) simulated: f64,
    /// How far apart they may be, as a share of what was measured.
    pub(crate) tolerance: f64,
}

impl Compared {
    pub(crate) fn off(&self) -> f64 {
        self.simulated / self.measured - 1.0
    }
}

/// What customers who do not wait for the last fact get done, of a run of `cargo xtask bench orders --postgres`.
pub(crate) fn compared_rush(path: &Path, costs: &Costs) -> Result<Compared> {
    let figures = Figures::read(path)?;
    let (customers, orders) = (
        figures.setting("customers at a time")?,
        figures.setting("orders per round")?,
    );
    let plan = on_one_machine(figures.cores()?);
    let simulated = run(costs, &plan, Arrivals::Answered { customers }, orders, 1);
    Ok(Compared {
        what: "orders per second, 32 customers who do not wait",
        measured: figures.median("orders completed /s")?,
        simulated: simulated.completed,
        tolerance: 0.35,
    })
}

/// A run beside what the simulator says about it.
pub(crate) fn compared(run: &Run, costs: &Costs) -> Vec<Compared> {
    let simulated = run.simulated(costs, true);
    let compared = |what, measured, simulated, tolerance| Compared {
        what,
        measured,
        simulated,
        tolerance,
    };
    vec![
        compared(
            "orders per second",
            run.completed,
            simulated.completed,
            0.25,
        ),
        compared(
            "last fact as it is written down, median, ms",
            run.last_fact / 1e3,
            simulated.recorded / SECOND * 1e3,
            0.35,
        ),
        compared(
            "messages per order",
            run.messages,
            simulated.messages,
            0.001,
        ),
        compared(
            "deliveries per order",
            run.deliveries,
            simulated.deliveries,
            0.001,
        ),
    ]
}
