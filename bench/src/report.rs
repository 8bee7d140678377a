//! Rounds become a table: median, range, and the ratio to the peer it stands beside.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::machine::Machine;

/// Everything a run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    settings: BTreeMap<&'static str, String>,
    rows: Vec<Row>,
}

/// The rounds of one peer at one job.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) job: String,
    /// Who was measured.
    pub(crate) peer: String,
    /// D0 to D3.
    pub(crate) durability: &'static str,
    /// Messages (or orders) per second, one figure per round.
    pub(crate) per_second: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut sorted = self.per_second.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, settings: BTreeMap<&'static str, String>) -> Self {
        Self {
            machine,
            settings,
            rows: Vec::new(),
        }
    }

    /// Adds one round's figure.
    pub(crate) fn add(&mut self, job: &str, peer: &str, durability: &'static str, per_second: f64) {
        let row = self
            .rows
            .iter_mut()
            .find(|row| row.job == job && row.peer == peer);
        match row {
            Some(row) => row.per_second.push(per_second),
            None => self.rows.push(Row {
                job: job.to_owned(),
                peer: peer.to_owned(),
                durability,
                per_second: vec![per_second],
            }),
        }
    }

    /// A Markdown table on stdout: the first peer of each job is what the others are divided into.
    pub(crate) fn print(&self) {
        println!("{}\n", self.machine);
        for (name, value) in &self.settings {
            println!("{name}: {value}");
        }
        println!("\n| job | peer | class | median | min to max | ours is |");
        println!("| --- | --- | --- | ---: | ---: | ---: |");
        for row in &self.rows {
            let ours = self
                .rows
                .iter()
                .find(|first| first.job == row.job)
                .map(|first| {
                    // Rounds are paired: the ratio is taken inside a round, then the median of those.
                    let mut ratios: Vec<f64> = first
                        .per_second
                        .iter()
                        .zip(&row.per_second)
                        .map(|(a, b)| a / b)
                        .collect();
                    ratios.sort_by(f64::total_cmp);
                    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
                });
            let min = row.per_second.iter().copied().fold(f64::INFINITY, f64::min);
            let max = row.per_second.iter().copied().fold(0.0, f64::max);
            println!(
                "| {} | {} | {} | {:.0} | {min:.0} to {max:.0} | {:.2}x |",
                row.job,
                row.peer,
                row.durability,
                row.median(),
                ours.unwrap_or(f64::NAN)
            );
        }
    }

    /// Prints it, and writes it to a file if one was named.
    pub(crate) fn finish(&self, json: Option<&std::path::Path>) -> anyhow::Result<()> {
        self.print();
        json.map_or(Ok(()), |path| self.write(path))
    }

    /// The same as JSON, for machines.
    pub(crate) fn write(&self, path: &std::path::Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)?;
        eprintln!("written to {}", path.display());
        Ok(())
    }
}
