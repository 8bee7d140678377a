//! `cargo xtask deploy`: whether the files in `deploy/` are right, without an engine for containers.
//!
//! The quick part is among the tests of the shop, and so in `cargo xtask test`. `--build` runs the steps of the
//! Containerfile as well, in folders with a Debian of their own, and starts what they made. That takes a release
//! build of all programs (ten minutes and more on two cores), so CI leaves it out.

mod chroot;
mod containerfile;
mod image;

use anyhow::{Context, Result};

pub(crate) use chroot::debootstrap;

use crate::provide::{self, Provided};
use crate::run::{cargo, root, step, succeed, target};

/// What `cargo xtask deploy` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also runs the steps of the Containerfile and starts the programs that they made. Needs root, a Debian and
    /// `debootstrap`, and ten minutes and more.
    #[arg(long)]
    build: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut provided = Provided::default();
    step("install", || {
        provide::deploy(&mut provided, &target()?.join("foreign"))
    })?;
    if let Some((name, why)) = provided.missing.first() {
        anyhow::bail!("{name} is needed to check `deploy/`: {why}");
    }
    step("check", || {
        let mut test = cargo(["test", "--locked", "--package", "shop", "--test", "deploy"])?;
        succeed(test.envs(provided.env()).args(["--", "--include-ignored"]))
    })?;
    if args.build {
        let text = std::fs::read_to_string(root()?.join("deploy/Containerfile"))
            .context("cannot read `deploy/Containerfile`")?;
        let file = containerfile::parse(&text)?;
        image::build(&file, &target()?.join("deploy"))?;
    }
    Ok(())
}
