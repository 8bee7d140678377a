//! `cargo xtask test`: every test, with real servers where a promise is about a real server.
//!
//! A test that needs one is marked `#[ignore = "needs RabbitMQ"]`, so that plain `cargo test`
//! stays quick and runs anywhere. Here they all run. What cannot be had is named at the end with
//! the tests that were left out for it, and under `CI=true` that is a failure: a test that is
//! silently skipped is a promise that nobody checks.

use std::path::Path;

use anyhow::{Result, bail};

use crate::provide::{self, Provided};
use crate::run::{cargo, root, step, succeed};

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                     every test
  cargo xtask test kill                those with `kill` in their name
  cargo xtask test -p tidings-amqp     those of one package
  cargo xtask test --quick             only those that need no server
  TIDINGS_TEST_RABBITMQ_URL=amqp://guest:guest@127.0.0.1:5672 cargo xtask test

Servers are taken, in this order, from a URL in the environment (TIDINGS_TEST_RABBITMQ_URL,
TIDINGS_TEST_POSTGRES_URL), from what is installed, or, on Debian as root, by installing them.";

/// What `cargo xtask test` takes.
#[derive(clap::Args, Default)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only the tests that need no server and no other language.
    #[arg(long)]
    quick: bool,
    /// Only the tests of this package.
    #[arg(long, short)]
    package: Vec<String>,
    /// Only the tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut provided = Provided::default();
    if !args.quick {
        step("install", || provide::install(&mut provided))?;
    }
    step("build", || succeed(cargo_test(args)?.arg("--no-run")))?;
    if !args.quick {
        step("servers", || provide::start(&mut provided))?;
    }
    let skipped = if args.quick {
        Vec::new()
    } else {
        without(&provided.missing_names())?
    };
    step("test", || {
        let mut test = cargo_test(args)?;
        test.envs(provided.env()).args(&args.filter).arg("--");
        if !args.quick {
            test.arg("--include-ignored");
        }
        for name in &skipped {
            test.args(["--skip", name]);
        }
        succeed(&mut test)
    })?;
    report(&provided, &skipped)
}

fn cargo_test(args: &Args) -> Result<std::process::Command> {
    let mut test = cargo(["test", "--locked", "--no-fail-fast"])?;
    if args.package.is_empty() {
        test.arg("--workspace");
    }
    for package in &args.package {
        test.args(["--package", package]);
    }
    Ok(test)
}

fn report(provided: &Provided, skipped: &[String]) -> Result<()> {
    if provided.missing.is_empty() {
        return Ok(());
    }
    eprintln!("\nmissing:");
    for (name, why) in &provided.missing {
        eprintln!("  {name}: {why}");
    }
    eprintln!("so these tests did not run:");
    for name in skipped {
        eprintln!("  {name}");
    }
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        bail!(
            "{} tests did not run for want of what is named above",
            skipped.len()
        );
    }
    Ok(())
}

/// The names of the tests that need something of `missing`.
fn without(missing: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if !missing.is_empty() {
        visit(&root()?, &mut |text| {
            names.extend(tests_in_need(text, missing))
        })?;
    }
    Ok(names)
}

fn visit(folder: &Path, source: &mut impl FnMut(&str)) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
            visit(&path, source)?;
        } else if name.ends_with(".rs") {
            source(&std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}

/// The functions under an `#[ignore = "needs ..."]` that names something of `missing`.
fn tests_in_need(source: &str, missing: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_need = false;
    for line in source.lines().map(str::trim_start) {
        if let Some(reason) = line.strip_prefix("#[ignore = \"needs ") {
            in_need = missing.iter().any(|name| reason.contains(name));
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| in_need) {
            names.extend(rest.split('(').next().map(str::to_owned));
            in_need = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_left_out_only_for_what_is_missing() {
        // Put together so that this file holds no such test itself.
        let source = ["RabbitMQ", "RabbitMQ and Node", "PostgreSQL"]
            .map(|need| {
                format!(
                    "#[{} = \"needs {need}\"]\nasync fn with_{need}() {{}}",
                    "ignore"
                )
            })
            .join("\n")
            .replace("with_RabbitMQ and Node", "with_both");
        let check = |missing: &[&str], expected: &[&str]| {
            assert_eq!(
                tests_in_need(&source, missing),
                expected,
                "without {missing:?}"
            );
        };
        check(&[], &[]);
        check(&["RabbitMQ"], &["with_RabbitMQ", "with_both"]);
        check(&["Node"], &["with_both"]);
        check(&["PostgreSQL", "Node"], &["with_both", "with_PostgreSQL"]);
        check(&["Chromium"], &[]);
    }
}
