//! Runs the steps of a Containerfile, and then what they made.
//!
//! For the images that it begins with stand Debians from debootstrap: for `debian:…-slim` the smallest there is, for
//! `rust:…` one that can compile, with the toolchain of this machine. Everything else is run as it is written.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::chroot::Chroot;
use super::containerfile::{Containerfile, Stage, Step};
use crate::run::{cargo, program, quietly, step, succeed};

/// How long a program may take to be well, and to end.
const SOON: Duration = Duration::from_secs(60);

/// A stage that was built, and how its programs run.
struct Image {
    system: Chroot,
    environment: BTreeMap<String, String>,
    user: String,
    workdir: String,
    entrypoint: Vec<String>,
    check: Vec<String>,
    stop_signal: String,
}

/// Builds every stage, in `folder`, and runs the programs of those that have an entry point.
pub(crate) fn build(file: &Containerfile, folder: &Path) -> Result<()> {
    let mut images: BTreeMap<String, Image> = BTreeMap::new();
    for stage in &file.stages {
        let image = step(&format!("stage {}", stage.name), || {
            build_stage(stage, &images, folder)
        })?;
        images.insert(stage.name.clone(), image);
    }
    for (name, image) in images.iter().filter(|(_, it)| !it.entrypoint.is_empty()) {
        step(&format!("run {name}"), || run(image))?;
    }
    Ok(())
}

fn build_stage(stage: &Stage, images: &BTreeMap<String, Image>, folder: &Path) -> Result<Image> {
    let mut image = begin(stage, images, folder)?;
    let mut arguments = BTreeMap::new();
    for step in &stage.steps {
        match step {
            Step::Arg(name, default) => {
                arguments.insert(name.clone(), default.clone());
            }
            Step::Env(name, value) => {
                image.environment.insert(name.clone(), value.clone());
            }
            Step::Workdir(path) => {
                std::fs::create_dir_all(image.system.path(path))?;
                image.workdir.clone_from(path);
            }
            Step::User(user) => image.user.clone_from(user),
            Step::StopSignal(signal) => image.stop_signal.clone_from(signal),
            Step::Expose(_) => {}
            Step::Entrypoint(words) => image.entrypoint.clone_from(words),
            Step::HealthCheck(words) => image.check.clone_from(words),
            Step::Copy { from, source, to } => {
                let from = from.as_ref().map(|stage| images.get(stage));
                copy(
                    &image,
                    from.map(|it| it.context("there is no such stage"))
                        .transpose()?,
                    source,
                    to,
                )?;
            }
            Step::Run { caches, command } => {
                eprintln!("RUN {command}");
                run_step(&mut image, &arguments, caches, command, folder)?;
            }
        }
    }
    Ok(image)
}

/// What a stage begins with.
fn begin(stage: &Stage, images: &BTreeMap<String, Image>, folder: &Path) -> Result<Image> {
    let (at, roots) = (
        folder.join("stages").join(&stage.name),
        folder.join("roots"),
    );
    if let Some(before) = images.get(&stage.from) {
        return Ok(Image {
            system: Chroot::copy_of(&before.system, &at)?,
            environment: before.environment.clone(),
            user: before.user.clone(),
            workdir: before.workdir.clone(),
            entrypoint: before.entrypoint.clone(),
            check: before.check.clone(),
            stop_signal: before.stop_signal.clone(),
        });
    }
    let paths = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut environment = BTreeMap::from([("PATH".to_owned(), paths.to_owned())]);
    let system = match stage.from.split_once(':') {
        Some(("debian", tag)) => {
            let release = tag.strip_suffix("-slim").unwrap_or(tag);
            Chroot::debian(&at, &roots, release, "minbase")?
        }
        Some(("rust", tag)) => {
            let (version, release) = tag.split_once('-').context("name the image's Debian")?;
            let mut system = Chroot::debian(&at, &roots, release, "buildd")?;
            let toolchain = toolchain(version)?;
            system
                .mounts
                .insert("/usr/local/rust".to_owned(), toolchain.into());
            environment.insert("PATH".to_owned(), format!("/usr/local/rust/bin:{paths}"));
            environment.insert("CARGO_HOME".to_owned(), "/usr/local/cargo".to_owned());
            system
        }
        _ => bail!("nothing here stands for the image `{}`", stage.from),
    };
    Ok(Image {
        system,
        environment,
        user: "0:0".to_owned(),
        workdir: "/".to_owned(),
        entrypoint: Vec::new(),
        check: Vec::new(),
        stop_signal: "SIGTERM".to_owned(),
    })
}

/// The folder of this machine's toolchain, which must be the version that the image has.
fn toolchain(version: &str) -> Result<String> {
    let rustc = |argument: &[&str]| -> Result<String> {
        let output = quietly(program("rustc")?.args(argument))?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let here = rustc(&["--version"])?;
    if !here.starts_with(&format!("rustc {version}.")) {
        bail!(
            "the image has Rust {version}, this machine `{here}`; let the Containerfile name the same"
        );
    }
    rustc(&["--print", "sysroot"])
}

fn copy(image: &Image, from: Option<&Image>, source: &str, to: &str) -> Result<()> {
    let to = match to {
        "." => image.system.path(&image.workdir),
        to => image.system.path(to),
    };
    std::fs::create_dir_all(&to)?;
    match from {
        Some(stage) => {
            let source = stage.system.path(source).join(".");
            quietly(program("cp")?.arg("--recursive").args([&source, &to])).map(drop)
        }
        None if source == "." => {
            let mut tar = program("sh")?;
            tar.args(["-c", "git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create \
                 --ignore-failed-read | tar --extract --no-same-owner --directory \"$0\""]);
            quietly(tar.arg(&to)).map(drop)
        }
        None => bail!("only all of the repository can be copied here, not `{source}`"),
    }
}

fn run_step(
    image: &mut Image,
    arguments: &BTreeMap<String, String>,
    caches: &[String],
    command: &str,
    folder: &Path,
) -> Result<()> {
    let mounts = image.system.mounts.clone();
    for inside in caches {
        let outside = if inside.ends_with("/cargo/registry") {
            // What this build needs of it may have been fetched by others.
            succeed(&mut cargo(["fetch", "--locked", "--quiet"])?)?;
            cargo_home()?.join("registry")
        } else {
            folder
                .join("caches")
                .join(inside.trim_start_matches('/').replace('/', "-"))
        };
        std::fs::create_dir_all(&outside)?;
        image.system.mounts.insert(inside.clone(), outside);
    }
    let mut environment = image.environment.clone();
    environment.extend(arguments.clone());
    let words = ["/bin/sh", "-c", command].map(str::to_owned);
    let run = image
        .system
        .command(&image.user, &image.workdir, &environment, &words);
    succeed(&mut run?)?;
    image.system.mounts = mounts;
    Ok(())
}

fn cargo_home() -> Result<std::path::PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither `CARGO_HOME` nor `HOME` is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// Starts the program, waits until its health check finds it well, and asks it to end.
fn run(image: &Image) -> Result<()> {
    let mut environment = image.environment.clone();
    for name in ["TIDINGS_LISTEN", "TIDINGS_AMQP_LISTEN"] {
        // The usual ports may be taken here.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        environment.insert(name.to_owned(), format!("127.0.0.1:{port}"));
    }
    let inside = |words: &[String]| {
        image
            .system
            .command(&image.user, &image.workdir, &environment, words)
    };
    let program_name = image.entrypoint.first().cloned().unwrap_or_default();
    for name in [program_name.as_str(), "tidings"] {
        let version = quietly(&mut inside(&[name.to_owned(), "--version".to_owned()])?)?;
        eprint!("{}", String::from_utf8_lossy(&version.stdout));
    }
    let mut started = inside(&image.entrypoint)?.stdout(Stdio::null()).spawn()?;
    let outcome = (|| {
        wait(&mut started, "well", || {
            Ok(inside(&image.check)?
                .stderr(Stdio::null())
                .status()?
                .success())
        })?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.id()))?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let expected = image.user.split(':').next().unwrap_or_default();
        if uid.and_then(|uid| uid.split_whitespace().next()) != Some(expected) {
            bail!("it does not run as the user {expected}");
        }
        let signal = image.stop_signal.trim_start_matches("SIG");
        quietly(program("kill")?.args(["-s", signal, &started.id().to_string()]))?;
        let end = Instant::now() + SOON;
        loop {
            match started.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("it ended badly: {status}"),
                None if Instant::now() > end => bail!("it did not end within {SOON:?}"),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    })();
    if outcome.is_err() {
        let _ = started.kill();
    }
    outcome
}

/// Until it is so, or the program has ended, or it takes too long.
fn wait(program: &mut Child, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + SOON;
    while !is_so()? {
        if let Some(status) = program.try_wait()? {
            bail!("it ended before it was {what}: {status}");
        }
        if Instant::now() > end {
            bail!("it was not {what} within {SOON:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
