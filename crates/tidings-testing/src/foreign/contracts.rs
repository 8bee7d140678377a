//! What judges contracts: the programs of those who own the formats, as commands that tests run.
//!
//! A document of AsyncAPI is worth what AsyncAPI's own parser says about it, a pact what Pact's own verifier says, and a
//! page what people can do with it. `cargo xtask test` installs the packages that
//! `xtask/contracts/` names; afterwards nothing here needs a network.
//!
//! Each program prints what it found as lines of JSON to stdout (Pact's verifier tells people before that). Its
//! exit code is 0 if there is nothing to mend, 1 if there is, and 2 if it could not look, for which the
//! reason is on stderr.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{packages, workspace};
use crate::servers::{Process, find};

/// The variable that names the folder of the npm packages that judge contracts.
pub const CONTRACTS_NODE_PATH: &str = "TIDINGS_TEST_CONTRACTS_NODE_PATH";

/// The variable that names the folder of the PyPI packages that judge contracts.
pub const CONTRACTS_PYTHON_PATH: &str = "TIDINGS_TEST_CONTRACTS_PYTHON_PATH";

/// The variable that names the Chromium that shows pages, where it is not on the `PATH`.
pub const CHROMIUM: &str = "TIDINGS_TEST_CHROMIUM";

/// A command that reads AsyncAPI documents with the specification's own parser.
///
/// A finding is a line like `{"file":"…","severity":"error","code":"asyncapi-document-resolved","message":"…",
/// "path":"operations/send/action","line":12}`. The severity is `error`, `warning`, `info` or `hint`, and only errors make
/// the exit code 1.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn asyncapi(files: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = node("asyncapi.cjs");
    command.args(files);
    command
}

/// A command that checks values by a JSON Schema (draft 2020-12), and the schema by the draft; all are files.
///
/// A finding is a line like `{"file":"…","path":"/orderId","message":"must be string …"}`.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn json_schema(
    schema: impl AsRef<Path>,
    values: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Command {
    let mut command = node("schema.cjs");
    command.arg(schema.as_ref()).args(values);
    command
}

/// Whose library of Pact's: they write different files, and bring verifiers of different versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PactLibrary {
    /// `@pact-foundation/pact` of npm; a test that takes it needs Node.
    JavaScript,
    /// `pact-python` of PyPI; a test that takes it needs Python.
    Python,
}

impl PactLibrary {
    /// All of them.
    pub const ALL: [PactLibrary; 2] = [PactLibrary::JavaScript, PactLibrary::Python];
}

/// A command that verifies a pact of messages with Pact's own verifier.
///
/// `messages` is a JSON file with what the provider sends for each interaction, by its description:
/// `{"order-confirmed.v1": {"body": …, "metadata": {"type": "order-confirmed.v1"}}}`. The content type is
/// `application/json` unless the metadata have another `contentType`.
///
/// A finding is a line like `{"interaction":"…","path":"$.items[1].quantity","mismatch":"Expected '3' (String) to be an
/// integer",…}`, with `key` instead of `path` for metadata; lines before it that begin with no brace are for people.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn pact_verify(
    library: PactLibrary,
    pact: impl AsRef<Path>,
    messages: impl AsRef<Path>,
) -> Command {
    let mut command = match library {
        PactLibrary::JavaScript => node("pact-verify.cjs"),
        PactLibrary::Python => python("pact_verify.py"),
    };
    command.arg(pact.as_ref()).arg(messages.as_ref());
    command
}

/// A command that writes a pact of asynchronous messages (version 4) with Pact's own library.
///
/// It is what `newsletter` needs of `orders`, in `newsletter-orders.json` in the folder: `order-confirmed.v1` and
/// `order-placed.v1`, with matchers of type, decimal, integer, regular expression and array.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn pact_write(library: PactLibrary, folder: impl AsRef<Path>) -> Command {
    let mut command = match library {
        PactLibrary::JavaScript => node("pact-write.cjs"),
        PactLibrary::Python => python("pact_write.py"),
    };
    command.arg(folder.as_ref());
    command
}

/// A command that puts the pacts in a folder to a Pact broker with Pact's own command, as those of this version of their
/// consumers, on the branch `main`.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn pact_publish(url: &str, version: &str, folder: impl AsRef<Path>) -> Command {
    let mut command = node("pact-broker.cjs");
    command.args(["publish", url, version]).arg(folder.as_ref());
    command
}

/// A command that verifies what a Pact broker says with Pact's own verifier, and publishes the results as those of this
/// version of the provider, on the branch `main`. `messages` is as [`pact_verify`] has it.
///
/// # Panics
///
/// When nobody installed the packages, with who does.
#[track_caller]
pub fn pact_verify_from_broker(
    url: &str,
    version: &str,
    provider: &str,
    messages: impl AsRef<Path>,
) -> Command {
    let mut command = node("pact-broker.cjs");
    command
        .args(["verify", url, version, provider])
        .arg(messages.as_ref());
    command
}

/// A command that looks at HTML files in Chromium, as on a phone and on a desk, light and dark, and asks axe whether
/// people can use them. A test that takes it needs Chromium and Node.
///
/// A finding is a line like `{"page":"…","view":"phone dark","rule":"color-contrast","impact":"serious","help":"…",
/// "elements":[{"element":"p","says":"…"}]}`. The impact is `minor`, `moderate`, `serious` or `critical`, and only the last two
/// make the exit code 1. If there is a folder for pictures, each view is put there, as `1-index-phone-dark.png` and so on
/// in the order of the pages.
///
/// # Panics
///
/// When nobody installed the packages or Chromium, with who does.
#[track_caller]
pub fn axe(pages: impl IntoIterator<Item = impl AsRef<OsStr>>, pictures: Option<&Path>) -> Command {
    let chromium =
        chromium().unwrap_or_else(|| panic!("{}", chromium_missing().unwrap_or_default()));
    let mut command = node("axe.cjs");
    command
        .arg(chromium)
        .arg(pictures.unwrap_or(Path::new("-")))
        .args(pages);
    command
}

/// What to do when there is no Chromium; nothing when there is.
pub fn chromium_missing() -> Option<String> {
    chromium().is_none().then(|| {
        format!(
            "there is no Chromium to show pages with: install it (Debian: `apt-get install chromium-headless-shell`), or \
             name its program in {CHROMIUM}"
        )
    })
}

fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os(CHROMIUM).filter(|it| !it.is_empty());
    let names = [
        "chromium-headless-shell",
        "chromium",
        "chromium-browser",
        "google-chrome",
    ];
    named
        .map(PathBuf::from)
        .or_else(|| names.iter().find_map(|name| find(name, [])))
}

/// A command that runs a Node program of `xtask/contracts/`.
#[track_caller]
fn node(script: &str) -> Command {
    let mut command = Process::command("node");
    command
        .arg(workspace().join("xtask/contracts").join(script))
        .env("NODE_PATH", packages(CONTRACTS_NODE_PATH));
    command
}

/// A command that runs a Python program of `xtask/contracts/`.
#[track_caller]
fn python(script: &str) -> Command {
    let mut command = Process::command("python3");
    command
        .arg(workspace().join("xtask/contracts").join(script))
        .env("PYTHONPATH", packages(CONTRACTS_PYTHON_PATH))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
