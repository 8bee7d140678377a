//! What an order costs the database: its log, its syncs, its CPU; and what it is in messages.
//!
//! PostgreSQL counts all that its processes write, the toolkit all that its relays send and its handlers take, so
//! nothing is estimated. [`docs/scale.md`](../../docs/scale.md) multiplies these figures.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use tidings_testing::servers::Postgres;

use crate::report::Report;

/// PostgreSQL's processes tell what they wrote at most once a second.
pub(crate) const TOLD_AFTER: Duration = Duration::from_millis(1500);

/// What was written until now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log {
    bytes: f64,
    records: f64,
    syncs: f64,
}

impl Log {
    pub(crate) fn look(postgres: &Postgres) -> anyhow::Result<Self> {
        let row = postgres.sql("select wal_bytes, wal_records, wal_sync from pg_stat_wal")?;
        let mut figures = row.split('|').map(str::parse);
        let mut next = || {
            anyhow::Ok(
                figures
                    .next()
                    .context("`pg_stat_wal` has fewer columns")??,
            )
        };
        Ok(Self {
            bytes: next()?,
            records: next()?,
            syncs: next()?,
        })
    }
}

/// The user and system time of all processes of the server, and of this process, which plays the customers.
pub(crate) fn cpu(postgres: &Postgres) -> anyhow::Result<(Duration, Duration)> {
    let folder = postgres.sql("show data_directory")?;
    let pid = fs::read_to_string(Path::new(&folder).join("postmaster.pid"))?;
    let pid = pid.lines().next().context("`postmaster.pid` is empty")?;
    // Its own, and that of those that ended; then of those that run.
    let mut ticks = times(pid, 4)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        // One that has just ended is counted with its parent the next time.
        ticks += times(child, 2).unwrap_or(0);
    }
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / ticks_per_second);
    Ok((time(ticks), time(times("self", 2)?)))
}

/// The sum of the first `count` of: user time, system time, and both of children that ended; in ticks.
fn times(pid: &str, count: usize) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may hold anything: fields 3 and on; 14 to 17 are the times.
    let (_, fields) = stat.rsplit_once(')').context("an odd `stat`")?;
    let times = fields.split_whitespace().skip(11).take(count);
    Ok(times.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}

/// What the orders of a round cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) before: Log,
    pub(crate) after: Log,
    /// Of PostgreSQL and of the customers, before and after.
    pub(crate) cpu_before: (Duration, Duration),
    pub(crate) cpu_after: (Duration, Duration),
    /// Sent by all relays.
    pub(crate) messages: f64,
    /// Taken by all handlers.
    pub(crate) deliveries: f64,
}

impl Cost {
    pub(crate) fn add_to(&self, report: &mut Report, shop: &str, orders: f64) {
        let mut add = |job, figure: f64| report.add(job, shop, "D2", figure / orders);
        add(
            "log of PostgreSQL per order, bytes",
            self.after.bytes - self.before.bytes,
        );
        add(
            "log of PostgreSQL per order, records",
            self.after.records - self.before.records,
        );
        add(
            "syncs of PostgreSQL per order",
            self.after.syncs - self.before.syncs,
        );
        let micros =
            |before: Duration, after: Duration| (after.as_secs_f64() - before.as_secs_f64()) * 1e6;
        let ((server_before, own_before), (server, own)) = (self.cpu_before, self.cpu_after);
        add(
            "CPU of PostgreSQL per order, us",
            micros(server_before, server),
        );
        add(
            "CPU of the customers per order, us",
            micros(own_before, own),
        );
        add("messages per order", self.messages);
        add("deliveries per order", self.deliveries);
    }
}

/// The sum of a figure over all its labels that have `part` in them, from what `/metrics` shows.
pub(crate) fn sum(figures: &str, name: &str, part: &str) -> f64 {
    let lines = figures.lines();
    let ours = lines.filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(part));
    let values = ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.sum()
}
