//! `cargo xtask ci`: all that CI runs, in the order in which a failure is cheapest.

use anyhow::Result;

use crate::run::{answers, cargo, step, succeed};
use crate::{
    test::{self, Feature},
    tidy,
};

/// What `cargo xtask ci` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// All but the tests, which are `cargo xtask test`.
    #[arg(long)]
    skip_tests: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    step("fmt", || succeed(&mut cargo(["fmt", "--all", "--check"])?))?;
    step("tidy", tidy::run)?;
    step("clippy", || {
        let everything = ["clippy", "--workspace", "--all-targets", "--locked"];
        let features = Feature::flags(Feature::needs_nothing);
        succeed(
            cargo(everything)?
                .args(features)
                .args(["--", "-D", "warnings"]),
        )
    })?;
    step("doc", || {
        let mut doc = cargo(["doc", "--workspace", "--no-deps", "--locked"])?;
        succeed(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if answers("cargo-deny", "--version") {
        // The advisory database is on the network; licences, bans and sources are in this clone.
        let checks = ["deny", "check", "licenses", "bans", "sources"];
        step("deny", || succeed(&mut cargo(checks)?))?;
    } else {
        eprintln!(
            "\nmissing: cargo-deny, so licences and bans were not checked (`cargo install cargo-deny`)"
        );
    }
    if args.skip_tests {
        Ok(())
    } else {
        test::run(&test::Args::default())
    }
}
