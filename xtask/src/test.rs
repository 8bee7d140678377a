//! `cargo xtask test`: every test, with real servers where a promise is about a real server.
//!
//! A test that needs one is marked `#[ignore = "needs RabbitMQ"]`, so that plain `cargo test`
//! stays quick and runs anywhere. Here they all run. What cannot be had is named at the end with
//! the tests that were left out for it, and under `CI=true` that is a failure: a test that is
//! silently skipped is a promise that nobody checks. Tests that only measure are not run here.

use std::path::Path;
use std::process::Command;

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
TIDINGS_TEST_KAFKA_URL, TIDINGS_TEST_AWS_URL, TIDINGS_TEST_POSTGRES_URL), from what is installed, or, on Debian as
root, by installing them. Kafka and a schema registry are fetched with Maven, an emulator of SNS and SQS with npm, once.
Some tests run once more on the RabbitMQ of a newer Debian, which is fetched once into a folder of its own.
TIDINGS_TEST_RABBITMQ_ROOT names such a folder whose RabbitMQ is taken instead of the installed one
(debootstrap --variant=minbase --include=rabbitmq-server trixie FOLDER).";

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
    let missing = provided.missing_names();
    let features = Feature::flags(|it| {
        let can_be_built = it.needs.is_none_or(|needs| !missing.contains(&needs));
        !args.quick && can_be_built && concerns(args, it.package)
    });
    step("build", || {
        succeed(cargo_test(args, &features)?.arg("--no-run"))
    })?;
    if !args.quick {
        step("servers", || provide::start(&mut provided))?;
    }
    let missing = provided.missing_names();
    let ignored = if args.quick {
        Vec::new()
    } else {
        ignored_tests()?
    };
    let cannot = ignored.iter().filter(|test| !test.can_run(&missing));
    let left_out: Vec<&str> = cannot.flat_map(|test| ["--skip", &test.name]).collect();
    step("test", || {
        let mut test = cargo_test(args, &features)?;
        test.envs(provided.env()).args(&args.filter).arg("--");
        if !args.quick {
            test.arg("--include-ignored");
        }
        succeed(test.args(&left_out))
    })?;
    if !args.quick {
        without_features(args)?;
    }
    if let Some(newer) = provided.newer_rabbitmq() {
        on_newer_rabbitmq(args, &features, |test| {
            let newer = newer.iter().map(|(name, value)| (*name, &**value));
            test.envs(provided.env().chain(newer))
                .args(["--", "--include-ignored"]);
            test.args(&left_out);
        })?;
    }
    let skipped = ignored
        .iter()
        .filter(|test| test.is_in_need() && !test.can_run(&missing));
    report(
        &provided,
        &skipped.map(|test| test.name.as_str()).collect::<Vec<_>>(),
    )
}

/// A feature that no default build has.
pub(crate) struct Feature {
    package: &'static str,
    name: &'static str,
    /// What it cannot be built without, as in the reasons of ignored tests.
    needs: Option<&'static str>,
}

/// Tests are built with all of these that can be built, so that everything is built once.
pub(crate) const FEATURES: [Feature; 11] = [
    Feature::new("shop", "kafka"),
    Feature::new("shop", "aws"),
    Feature::new("tidings-cli", "kafka"),
    Feature::new("tidings-cli", "aws"),
    Feature::new("tidings-cli", "contracts"),
    Feature::new("rig", "kafka"),
    Feature::new("rig", "aws"),
    Feature::new("bench", "kafka"),
    Feature::new("bench", "aws"),
    Feature::new("tidings-kafka", "registry"),
    Feature {
        needs: Some("OpenSSL"),
        ..Feature::new("tidings-kafka", "tls")
    },
];

impl Feature {
    const fn new(package: &'static str, name: &'static str) -> Self {
        Self {
            package,
            name,
            needs: None,
        }
    }

    /// Arguments of cargo for those that `is_wanted`.
    pub(crate) fn flags(is_wanted: impl Fn(&Feature) -> bool) -> Vec<String> {
        let wanted = FEATURES.iter().filter(|it| is_wanted(it));
        let names = wanted.map(|it| format!("{}/{}", it.package, it.name));
        let names = names.collect::<Vec<_>>();
        match names.is_empty() {
            true => Vec::new(),
            false => vec!["--features".into(), names.join(",")],
        }
    }

    /// Whether nothing has to be installed for it.
    pub(crate) fn needs_nothing(&self) -> bool {
        self.needs.is_none()
    }
}

/// Which targets have tests of what a build without these features says.
const WITHOUT_FEATURES: [(&str, &str); 3] = [
    ("shop", "surroundings"),
    ("tidings-cli", "program"),
    ("tidings-kafka", "kafka"),
];
/// What their names begin with.
const WITHOUT: &str = "a_build_without";

/// Builds once more what users build who ask for nothing, for the tests of that.
fn without_features(args: &Args) -> Result<()> {
    let targets = WITHOUT_FEATURES.iter();
    let targets = targets.filter(|(package, _)| concerns(args, package));
    let targets: Vec<&str> = targets.flat_map(|(_, it)| ["--test", it]).collect();
    let is_asked_for = args.filter.as_ref().is_none_or(|it| it.contains(WITHOUT));
    if targets.is_empty() || !is_asked_for {
        return Ok(());
    }
    step("test the default build", || {
        let mut test = cargo_test(args, &[])?;
        succeed(test.args(targets).arg(WITHOUT))
    })
}

/// What runs once more on a newer RabbitMQ: all that its adapter promises, and what the toolkit and the shop promise on it.
const ON_NEWER_RABBITMQ: [(&str, &[&str], &[&str]); 3] = [
    ("tidings-amqp", &["rabbitmq", "cluster"], &[]),
    (
        "tidings",
        &["ordered_amqp", "dead_letters_amqp"],
        &["order_holds_on_rabbitmq", "outlasts_a_kill_of_rabbitmq"],
    ),
    (
        "shop",
        &["system"],
        &[
            "on_rabbitmq_and_postgresql_with_two_copies_of_some",
            "killing_everything_loses_nothing_on_rabbitmq",
        ],
    ),
];

fn on_newer_rabbitmq(
    args: &Args,
    features: &[String],
    surround: impl Fn(&mut Command),
) -> Result<()> {
    for (package, targets, words) in ON_NEWER_RABBITMQ {
        if !concerns(args, package) {
            continue;
        }
        step(&format!("test `{package}` on a newer RabbitMQ"), || {
            // The same packages and features as before, so that nothing is built anew.
            let mut test = cargo_test(args, features)?;
            for target in targets {
                test.args(["--test", target]);
            }
            surround(&mut test);
            match &args.filter {
                Some(filter) => test.arg(filter),
                None => test.args(words),
            };
            succeed(&mut test)
        })?;
    }
    Ok(())
}

/// Whether a package is among what is tested.
fn concerns(args: &Args, package: &str) -> bool {
    args.package.is_empty() || args.package.iter().any(|it| it == package)
}

fn cargo_test(args: &Args, features: &[String]) -> Result<Command> {
    let mut test = cargo(["test", "--locked", "--no-fail-fast"])?;
    test.args(features);
    if args.package.is_empty() {
        test.arg("--workspace");
    }
    for package in &args.package {
        test.args(["--package", package]);
    }
    Ok(test)
}

fn report(provided: &Provided, skipped: &[&str]) -> Result<()> {
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

/// A test that `cargo test` leaves out, and why.
#[derive(Debug, PartialEq)]
struct Ignored {
    name: String,
    reason: String,
}

impl Ignored {
    /// Whether it needs something that may be missing.
    fn is_in_need(&self) -> bool {
        self.reason.starts_with("needs ")
    }

    fn can_run(&self, missing: &[&str]) -> bool {
        let lacks = self.is_in_need() && missing.iter().any(|name| self.reason.contains(name));
        !lacks && !self.reason.starts_with("measures")
    }
}

fn ignored_tests() -> Result<Vec<Ignored>> {
    let mut tests = Vec::new();
    visit(&root()?, &mut |text| tests.extend(ignored_in(text)))?;
    Ok(tests)
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

/// The functions under an `#[ignore = "..."]`.
fn ignored_in(source: &str) -> Vec<Ignored> {
    let mut tests = Vec::new();
    let mut reason = None;
    for line in source.lines().map(str::trim_start) {
        if let Some(rest) = line.strip_prefix("#[ignore = \"") {
            reason = Some(rest.trim_end_matches("\"]").to_owned());
        } else if let Some((_, rest)) = line.split_once("fn ")
            && let Some(reason) = reason.take()
        {
            let name = rest.split('(').next().unwrap_or_default().to_owned();
            tests.push(Ignored { name, reason });
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tests_run_when_what_they_need_is_there() {
        // Put together so that this file holds no such test itself.
        let test = |name: &str, reason: &str| {
            format!(
                "#[test]\n#[{} = \"{reason}\"]\nasync fn {name}() {{}}\nfn helper() {{}}",
                "ignore"
            )
        };
        let source = [
            test("rabbit", "needs RabbitMQ"),
            test("both", "needs RabbitMQ and Node"),
            test("postgres", "needs PostgreSQL"),
            test("figures", "measures; run it in release"),
        ];
        let tests = ignored_in(&source.join("\n"));
        let check = |missing: &[&str], expected: &[&str]| {
            let run = tests.iter().filter(|test| test.can_run(missing));
            let run: Vec<&str> = run.map(|test| test.name.as_str()).collect();
            assert_eq!(run, expected, "without {missing:?}");
        };
        check(&[], &["rabbit", "both", "postgres"]);
        check(&["Node"], &["rabbit", "postgres"]);
        check(&["RabbitMQ"], &["postgres"]);
        check(&["RabbitMQ", "PostgreSQL"], &[]);
        check(&["Chromium"], &["rabbit", "both", "postgres"]);
    }
}
