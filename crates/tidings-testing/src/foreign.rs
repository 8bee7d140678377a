//! Programs in other languages, as tests run them: with their packages, and led to a test's broker.
//!
//! `cargo xtask test` installs the packages that `examples/package.json` and
//! `examples/requirements.txt` name, outside the clone, and says in the environment where they are.

mod contracts;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use contracts::{
    CHROMIUM, CONTRACTS_NODE_PATH, CONTRACTS_PYTHON_PATH, PactLibrary, asyncapi, axe,
    chromium_missing, json_schema, pact_publish, pact_verify, pact_verify_from_broker, pact_write,
};

use crate::servers::Process;

/// The variable that names the folder of the npm packages.
pub const NODE_PATH: &str = "TIDINGS_TEST_NODE_PATH";

/// The variable that names the folder of the PyPI packages.
pub const PYTHON_PATH: &str = "TIDINGS_TEST_PYTHON_PATH";

/// The variable that names the folder of the PyPI packages that check the files in `deploy/`.
pub const DEPLOY_PATH: &str = "TIDINGS_TEST_DEPLOY_PATH";

/// The variable that names the folder of KEDA's Go module, whose definitions check the files in `deploy/`.
pub const KEDA_PATH: &str = "TIDINGS_TEST_KEDA_PATH";

/// The variable that names the folder of the PyPI packages with Confluent's client of Kafka and its serializers.
pub const CONFLUENT_PATH: &str = "TIDINGS_TEST_CONFLUENT_PATH";

/// A command that runs `xtask/registry/peer.py`, which writes and reads bodies with Confluent's own serializers.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn confluent(arguments: &[&str]) -> Command {
    let mut command = confluent_python();
    command
        .arg(workspace().join("xtask/registry/peer.py"))
        .args(arguments);
    command
}

/// Python with the packages that Confluent's serializers use, among them one for Avro.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn confluent_python() -> Command {
    let mut command = Process::command("python3");
    command
        .env("PYTHONPATH", packages(CONFLUENT_PATH))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A command that runs this Node program with the packages of the examples.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn node(script: impl AsRef<Path>) -> Command {
    let mut command = Process::command("node");
    command
        .arg(script.as_ref())
        .env("NODE_PATH", packages(NODE_PATH));
    command
}

/// Where an npm package of the examples is.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn node_package(name: &str) -> PathBuf {
    packages(NODE_PATH).join(name)
}

/// A command that runs this Python program with the packages of the examples.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn python(script: impl AsRef<Path>) -> Command {
    let mut command = Process::command("python3");
    command
        .arg(script.as_ref())
        .env("PYTHONPATH", packages(PYTHON_PATH));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A command that reads the files of a folder like `deploy/` and prints them as JSON. If they are to be checked by their
/// schemas too, what is wrong with them goes to stderr.
///
/// # Panics
///
/// When nobody installed what reads and checks them, with who does.
#[track_caller]
pub fn manifests(folder: &Path, by_schema: bool) -> Command {
    let mut command = Process::command("python3");
    command.arg(workspace().join("xtask/deploy/manifests.py"));
    command.arg(folder);
    if by_schema {
        command.arg(packages(KEDA_PATH));
    }
    command.env("PYTHONPATH", packages(DEPLOY_PATH));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The folder of this repository's examples.
pub fn examples() -> PathBuf {
    workspace().join("examples")
}

/// A page of this repository's `docs/`.
///
/// # Panics
///
/// When there is no such page.
pub fn documents(page: &str) -> String {
    let path = workspace().join("docs").join(page);
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folder of this repository. It is asked for when the test runs: a test that another clone
/// built, with the same target folder, must not look there.
///
/// # Panics
///
/// When cargo did not start the test.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("a test is started by cargo");
    let package = PathBuf::from(package);
    let mut above = package.ancestors();
    let workspace = above.find(|folder| folder.join("Cargo.lock").exists());
    workspace.expect("a workspace has a lock file").into()
}

/// Leads a Node program that has `localhost:5672` written into it to another port instead.
///
/// The program stays as its authors wrote it, and needs neither the port nor a network namespace.
pub fn lead_to_port(command: &mut Command, port: u16) {
    let lead = workspace().join("crates/tidings-testing/src/foreign/lead.cjs");
    command.env("NODE_OPTIONS", format!("--require \"{}\"", lead.display()));
    command.env("TIDINGS_TEST_AMQP_PORT", port.to_string());
}

#[track_caller]
fn packages(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) => PathBuf::from(folder),
        None => panic!(
            "`{variable}` is not set: run this test by `cargo xtask test`, which installs the packages"
        ),
    }
}
