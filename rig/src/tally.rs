//! The tally: what was found for each promise, added up over legs, and the table of it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::faults::Fault;

/// Findings that are described; the others are only counted.
const DESCRIBED_MAX: usize = 50;

/// The promises that are attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Promise {
    LostEvent,
    EffectsOnce,
    OrderPerKey,
    NoPoison,
    SagasEnd,
    Decoupling,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LostEvent => "P1 no lost event",
            Self::EffectsOnce => "P2 effects once",
            Self::OrderPerKey => "P3 order per key",
            Self::NoPoison => "P4 no poison",
            Self::SagasEnd => "P6 sagas end",
            Self::Decoupling => "P7 decoupling",
        })
    }
}

/// What was found for one promise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) faults: u64,
    pub(crate) messages: u64,
    lost: u64,
    doubled: u64,
    disorder: u64,
    stuck: u64,
    /// What is not among those: something that was never committed, an innocent dead letter.
    other: u64,
}

impl Row {
    fn is_kept(&self) -> bool {
        self.lost + self.doubled + self.disorder + self.stuck + self.other == 0
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) rows: BTreeMap<Promise, Row>,
    /// Findings, described.
    pub(crate) described: Vec<String>,
    /// Faults by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Handlers that aborted their process.
    pub(crate) aborted: u64,
    /// Sagas by how they ended.
    #[serde(default)]
    pub(crate) sagas: BTreeMap<String, u64>,
    /// Elections that an operator had to call, for a queue that RabbitMQ left without a leader.
    #[serde(default)]
    pub(crate) elections: u64,
    /// Events that waited for a listener.
    pub(crate) shelved: u64,
    /// The longest time from a commit to the effect of a message that was handled at its first
    /// attempt, at the consumer that competes: how old the backlog was.
    pub(crate) waited_ms: u64,
    /// The same of messages that had failed before.
    pub(crate) retried_waited_ms: u64,
}

impl Tally {
    pub(crate) fn lost(&mut self, promise: Promise, what: String) {
        self.rows.entry(promise).or_default().lost += 1;
        self.describe(promise, what);
    }

    pub(crate) fn doubled(&mut self, promise: Promise, what: String) {
        self.rows.entry(promise).or_default().doubled += 1;
        self.describe(promise, what);
    }

    pub(crate) fn disorder(&mut self, promise: Promise, what: String) {
        self.rows.entry(promise).or_default().disorder += 1;
        self.describe(promise, what);
    }

    pub(crate) fn stuck(&mut self, promise: Promise, what: String) {
        self.rows.entry(promise).or_default().stuck += 1;
        self.describe(promise, what);
    }

    pub(crate) fn other(&mut self, promise: Promise, what: String) {
        self.rows.entry(promise).or_default().other += 1;
        self.describe(promise, what);
    }

    fn describe(&mut self, promise: Promise, what: String) {
        if self.described.len() < DESCRIBED_MAX {
            self.described.push(format!("{promise}: {what}"));
        }
    }

    /// Counts a fault.
    pub(crate) fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault.to_string()).or_default() += 1;
    }

    /// True if every promise was kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.rows.values().all(Row::is_kept)
    }

    /// Adds what another leg found.
    pub(crate) fn add(&mut self, other: &Self) {
        for (promise, of) in &other.rows {
            let row = self.rows.entry(*promise).or_default();
            row.faults += of.faults;
            row.messages += of.messages;
            row.lost += of.lost;
            row.doubled += of.doubled;
            row.disorder += of.disorder;
            row.stuck += of.stuck;
            row.other += of.other;
        }
        self.described.extend(other.described.iter().cloned());
        self.described.truncate(DESCRIBED_MAX);
        for (fault, count) in &other.faults {
            *self.faults.entry(fault.clone()).or_default() += count;
        }
        self.aborted += other.aborted;
        self.elections += other.elections;
        self.shelved += other.shelved;
        for (end, count) in &other.sagas {
            *self.sagas.entry(end.clone()).or_default() += count;
        }
        self.waited_ms = self.waited_ms.max(other.waited_ms);
        self.retried_waited_ms = self.retried_waited_ms.max(other.retried_waited_ms);
    }

    /// The table, in Markdown.
    pub(crate) fn table(&self, stack: &str) -> String {
        let mut table = format!(
            "| {:<16} | {:<25} | {:>6} | {:>8} | {:>5} | {:>7} | {:>12} | {:>5} | {:>5} |\n",
            "promise",
            "stack",
            "faults",
            "messages",
            "lost",
            "doubled",
            "out of order",
            "stuck",
            "other"
        );
        table += "|------------------|---------------------------|-------:|---------:|------:|--------:|-------------:|------:|------:|\n";
        for promise in [
            Promise::LostEvent,
            Promise::EffectsOnce,
            Promise::OrderPerKey,
            Promise::NoPoison,
            Promise::SagasEnd,
            Promise::Decoupling,
        ] {
            let Some(row) = self.rows.get(&promise) else {
                table += &format!(
                    "| {promise:<16} | {stack:<25} | not attacked: this transport keeps no order across instances |\n"
                );
                continue;
            };
            table += &format!(
                "| {promise:<16} | {stack:<25} | {:>6} | {:>8} | {:>5} | {:>7} | {:>12} | {:>5} | {:>5} |\n",
                row.faults, row.messages, row.lost, row.doubled, row.disorder, row.stuck, row.other
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_breaks_its_promise_and_legs_add_up() {
        type Find = fn(&mut Tally, Promise, String);
        let finds: [Find; 5] = [
            Tally::lost,
            Tally::doubled,
            Tally::disorder,
            Tally::stuck,
            Tally::other,
        ];
        for find in finds {
            let mut leg = Tally::default();
            leg.rows.entry(Promise::NoPoison).or_default().messages = 7;
            assert!(leg.is_kept());
            find(&mut leg, Promise::NoPoison, "it happened".into());
            assert!(!leg.is_kept());
            let mut all = leg.clone();
            all.add(&leg);
            assert_eq!(all.rows[&Promise::NoPoison].messages, 14);
            assert_eq!(all.described, ["P4 no poison: it happened"; 2]);
            assert!(!all.is_kept());
        }
    }
}
