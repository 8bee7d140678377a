//! `cargo xtask scale`: what it takes to run so many orders per second, by measured costs and a simulation.

mod engine;
mod measured;
mod plan;
mod shop;

use anyhow::Result;

use crate::run::root;
use measured::{Run, compared, compared_rush, fitted};

/// The measured runs that costs are fitted to, and those that they are checked by.
const FEW: &str = "bench/cost-1.json";
const RUSH: &str = "bench/cost-rush.json";
const LOOKING: &str = "bench/cost-32.json";
const CHECK: &str = "bench/cost-8.json";
const CHECK_RUSH: &str = "bench/orders-postgres-looks.json";

/// What `cargo xtask scale` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Chance comes from this; the same seed gives the same figures everywhere.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also draws `docs/scale.svg`.
    #[arg(long)]
    draw: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let read = |path: &str| Run::read(&root()?.join(path));
    let (few, rush, looking, check) = (read(FEW)?, read(RUSH)?, read(LOOKING)?, read(CHECK)?);
    let costs = fitted(&few, &rush, &looking);
    let mut beside = compared(&check, &costs);
    beside.push(compared_rush(&root()?.join(CHECK_RUSH), &costs)?);
    println!(
        "## Measured\n\n{}",
        plan::measured_table(&[&few, &check, &looking, &rush])
    );
    println!("## Costs\n\n{}", plan::costs_table(&costs));
    println!(
        "## Simulated beside measured\n\n{}",
        plan::compared_table(&check, &beside)
    );
    let capacities = plan::capacities(&costs, args.seed);
    println!(
        "## What a cell takes\n\n{}",
        plan::capacities_table(&capacities)
    );
    let loads = plan::loads(&costs, &capacities, args.seed);
    println!("## A cell under load\n\n{}", plan::loads_table(&loads));
    let hot = plan::hot_table(&costs, &capacities, args.seed);
    println!("## Hot products\n\n{hot}");
    let table = plan::scale_table(&costs, &capacities, args.seed);
    println!("## From 100 to 1,000,000 orders per second\n\n{table}");
    if args.draw {
        std::fs::write(root()?.join("docs/scale.svg"), plan::drawn(&loads))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The simulator was fitted to one customer and to many, and says what other runs gave.
    #[test]
    fn the_small_end_is_as_it_was_measured() {
        let read = |path: &str| Run::read(&root().unwrap().join(path)).unwrap();
        let costs = fitted(&read(FEW), &read(RUSH), &read(LOOKING));
        let rush = compared_rush(&root().unwrap().join(CHECK_RUSH), &costs).unwrap();
        let check = read(CHECK);
        let all = compared(&check, &costs).into_iter().chain([rush]);
        for one in all {
            assert!(
                one.off().abs() <= one.tolerance,
                "off by {:.0} %: {one:?}",
                one.off() * 100.0
            );
        }
    }
}
