//! Running other programs: from the root of the repository, with a heading and a duration.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// The root of the repository that runs this, which need not be the one that built it: clones may
/// share a folder of build output.
pub(crate) fn root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("`CARGO_MANIFEST_DIR` is not set; run it as `cargo xtask`")?;
    PathBuf::from(package)
        .parent()
        .map(PathBuf::from)
        .ok_or_else(|| anyhow!("the package has no parent folder"))
}

/// Prints `title`, does `work`, prints how long it took.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("\n==> {title}");
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!(
        "<== {title}: {outcome} after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    result.with_context(|| title.to_owned())
}

/// A program, run in the root of the repository without input.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new(name);
    command.current_dir(root()?).stdin(Stdio::null());
    Ok(command)
}

/// The cargo that runs this.
pub(crate) fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = program(cargo)?;
    command.args(args);
    Ok(command)
}

/// Runs `command` with its output shown; it is an error when it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", words(command));
    }
    Ok(())
}

/// Runs `command` quietly and returns what it printed; it is an error when it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        bail!("{} failed ({}):\n{out}{err}", words(command), output.status);
    }
    Ok(output)
}

/// Whether `name` can be run with `argument`, which should only print something.
pub(crate) fn answers(name: &str, argument: &str) -> bool {
    let (out, err) = (Stdio::null(), Stdio::null());
    Command::new(name)
        .arg(argument)
        .stdout(out)
        .stderr(err)
        .status()
        .is_ok_and(|s| s.success())
}

/// What cargo knows about the workspace, without its dependencies.
pub(crate) fn metadata() -> Result<Value> {
    let mut command = cargo(["metadata", "--format-version", "1", "--no-deps", "--locked"])?;
    serde_json::from_slice(&quietly(&mut command)?.stdout).context("cannot read cargo metadata")
}

/// The folder that cargo builds into.
pub(crate) fn target() -> Result<PathBuf> {
    let metadata = metadata()?;
    let target = metadata["target_directory"].as_str().map(PathBuf::from);
    target.ok_or_else(|| anyhow!("cargo metadata names no target directory"))
}

fn words(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    format!("`{}`", words.join(OsStr::new(" ")).to_string_lossy())
}
