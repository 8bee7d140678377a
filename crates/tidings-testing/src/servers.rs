//! Real servers for tests: started from what is installed, on free ports, in folders of their own,
//! and gone when the test is.
//!
//! A promise about RabbitMQ, Kafka or PostgreSQL is worth what a real one says about it (of Amazon SNS and SQS,
//! which are not to be had, there is an emulator), so a test that
//! makes such a promise starts one here, kills it, restarts it on the same port and looks again.
//! Nothing here is shared with a server that the machine may be running for somebody else: ports,
//! node names, data and logs belong to the test. Starting blocks the thread until the server
//! accepts (RabbitMQ takes about 8 seconds, Kafka 6, PostgreSQL 2).
//!
//! A test that only needs *a* server, not one to kill, asks [`rabbitmq_url`], [`kafka_url`], [`aws_url`] or
//! [`postgres_url`]: they hand out the one named in the environment (`cargo xtask test` puts it there) and else
//! start one for the whole test process.
//!
//! No server outlives the test, however it ends: on Linux each is bound to the life of the thread
//! that started it, so that even an aborted test run leaves no process behind. Folders of
//! processes that are gone are swept by the next start.

mod aws;
mod kafka;
mod postgres;
mod process;
mod rabbitmq;
mod registry;
mod s3;

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

pub use aws::AwsEmulator;
pub use kafka::{Kafka, KafkaCluster, Operation, Resource, SecuredKafka, Security};
pub use postgres::Postgres;
pub use process::Process;
pub use rabbitmq::{RabbitMq, RabbitMqCluster};
pub use registry::SchemaRegistry;
pub use s3::S3;

/// The variable that names the RabbitMQ for tests that need one but not one of their own.
pub const RABBITMQ_URL: &str = "TIDINGS_TEST_RABBITMQ_URL";

/// The variable that names the Kafka for tests that need one but not one of their own.
pub const KAFKA_URL: &str = "TIDINGS_TEST_KAFKA_URL";

/// The variable that names the SNS and SQS, or an emulator of them, for tests that need one but not one of
/// their own.
pub const AWS_URL: &str = "TIDINGS_TEST_AWS_URL";

/// The variable that names the PostgreSQL for tests that need one but not one of their own.
pub const POSTGRES_URL: &str = "TIDINGS_TEST_POSTGRES_URL";

/// The variable that names a folder with a Debian of its own (made by `debootstrap`) whose RabbitMQ is
/// started instead of the installed one, so that tests run on another version. Needs Linux and root.
pub const RABBITMQ_ROOT: &str = "TIDINGS_TEST_RABBITMQ_ROOT";

/// The variable that names the schema registry for tests that need one but not one of their own.
pub const REGISTRY_URL: &str = "TIDINGS_TEST_REGISTRY_URL";

/// The variable that names the server that speaks S3.
pub const S3_URL: &str = "TIDINGS_TEST_S3_URL";

/// Where a RabbitMQ answers: the URL in [`RABBITMQ_URL`], else of one started for this process.
///
/// # Panics
///
/// When there is neither, with what to install or set.
#[track_caller]
pub fn rabbitmq_url() -> String {
    static OURS: OnceLock<RabbitMq> = OnceLock::new();
    match std::env::var(RABBITMQ_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => OURS
            .get_or_init(|| RabbitMq::start().unwrap_or_else(|e| panic!("{e:#}")))
            .url(),
    }
}

/// Where a Kafka answers: the URL in [`KAFKA_URL`], else of one started for this process.
///
/// # Panics
///
/// When there is neither, with what to install or set.
#[track_caller]
pub fn kafka_url() -> String {
    static OURS: OnceLock<Kafka> = OnceLock::new();
    match std::env::var(KAFKA_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => OURS
            .get_or_init(|| Kafka::start().unwrap_or_else(|e| panic!("{e:#}")))
            .url(),
    }
}

/// Where SNS and SQS answer: the URL in [`AWS_URL`], else of an emulator started for this process.
///
/// # Panics
///
/// When there is neither, with what to install or set.
#[track_caller]
pub fn aws_url() -> String {
    static OURS: OnceLock<AwsEmulator> = OnceLock::new();
    match std::env::var(AWS_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => OURS
            .get_or_init(|| AwsEmulator::start().unwrap_or_else(|e| panic!("{e:#}")))
            .url(),
    }
}

/// Where a PostgreSQL answers: the URL in [`POSTGRES_URL`], else of one started for this process.
///
/// It is one database for everybody: isolate tests by a schema or table prefix of their own.
///
/// # Panics
///
/// When there is neither, with what to install or set.
#[track_caller]
pub fn postgres_url() -> String {
    static OURS: OnceLock<Postgres> = OnceLock::new();
    match std::env::var(POSTGRES_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => OURS
            .get_or_init(|| Postgres::start().unwrap_or_else(|e| panic!("{e:#}")))
            .url(),
    }
}

/// Where a schema registry answers: the URL in [`REGISTRY_URL`], else of one started for this process.
///
/// It is one for everybody: give subjects names of their own.
///
/// # Panics
///
/// When there is neither, with what to install or set.
#[track_caller]
pub fn registry_url() -> String {
    static OURS: OnceLock<SchemaRegistry> = OnceLock::new();
    match std::env::var(REGISTRY_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => OURS
            .get_or_init(|| SchemaRegistry::start().unwrap_or_else(|e| panic!("{e:#}")))
            .url(),
    }
}

/// Where a server that speaks S3 answers: the URL in [`S3_URL`]. It must not ask who calls.
///
/// # Panics
///
/// When there is none, with who starts one.
#[track_caller]
pub fn s3_url() -> String {
    match std::env::var(S3_URL) {
        Ok(url) if !url.is_empty() => url,
        _ => panic!("set `{S3_URL}`, or run this test with `cargo xtask test`, which starts one"),
    }
}

/// A TCP port on loopback that nobody listens on.
///
/// It lies below the range that systems take outgoing ports from: else a client that keeps
/// calling a server that is down would sooner or later be given that very port, connect to itself,
/// and keep the server from coming back.
pub fn free_port() -> Result<u16> {
    const FIRST: u64 = 20_000;
    const COUNT: u64 = 12_000;
    let random = RandomState::new();
    (0..200_u64)
        .filter_map(|attempt| u16::try_from(FIRST + random.hash_one(attempt) % COUNT).ok())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| anyhow!("found no free port on 127.0.0.1 from {FIRST} up in 200 attempts"))
}

/// Waits until `ready` says so, asking every 50 ms, for at most `deadline`.
pub fn wait_until(what: &str, deadline: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether an HTTP server on this port of loopback says that all is well with `path`.
fn http_ok(port: u16, path: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let patience = Some(Duration::from_secs(5));
        stream.set_read_timeout(patience).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        Some(answer.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

/// A folder in the system's temporary folder, removed with its owner, and readable by `user`.
fn folder(server: &str, user: Option<&User>) -> Result<TempDir> {
    folder_in(&std::env::temp_dir(), server, user)
}

/// The same in the folder `place`.
fn folder_in(place: &Path, server: &str, user: Option<&User>) -> Result<TempDir> {
    sweep(place);
    let prefix = format!("{FOLDER_PREFIX}{}-{server}-", std::process::id());
    let dir = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(place)
        .with_context(|| format!("cannot make a folder for {server}"))?;
    if let Some(user) = user {
        user.give(dir.path())?;
    }
    Ok(dir)
}

const FOLDER_PREFIX: &str = "tidings-test-";

/// Removes the folders of test processes that were killed before they could.
fn sweep(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(FOLDER_PREFIX));
        let owner = owner.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !process::exists(owner)) {
            // Somebody else may be sweeping too, or own it: what stays is only litter.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The account a server runs as when the tests run as root: servers refuse root, or should.
struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
}

impl User {
    /// `name` when the tests run as root, nobody else otherwise.
    fn instead_of_root(name: &'static str) -> Result<Option<User>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Self::known_to(Command::new, name).map(Some)
    }

    /// `name` as the program `id` knows it that `program` runs.
    fn known_to(program: impl Fn(&'static str) -> Command, name: &'static str) -> Result<User> {
        let id = |flag: &str| -> Result<u32> {
            let output = program("id")
                .args([flag, name])
                .output()
                .context("cannot run `id`")?;
            String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| {
                anyhow!("there is no user `{name}` to start the server as: run the tests as another user than root")
            })
        };
        Ok(User {
            name,
            uid: id("-u")?,
            gid: id("-g")?,
        })
    }

    fn give(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to user `{}`", path.display(), self.name))
    }
}

/// Becomes the program, unless who started it is gone already: then no signal will come.
const UNLESS_ALONE: &str = r#"[ "$PPID" = "$0" ] && shift && exec "$@""#;

/// A command that runs as `user`, and on Linux ends with the thread that starts it.
fn command(program: &Path, user: Option<&User>) -> Command {
    let mut words = words(program.as_os_str(), user).into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// The same as the words of a command line.
fn words(program: &OsStr, user: Option<&User>) -> Vec<OsString> {
    let mut flags = Vec::new();
    if let Some(User { uid, gid, .. }) = user {
        flags.extend([format!("--reuid={uid}"), format!("--regid={gid}")]);
        flags.push("--init-groups".to_owned());
    }
    if cfg!(target_os = "linux") {
        flags.push("--pdeathsig=KILL".to_owned());
    }
    // setpriv does both and then becomes the program, by a shell: the process id stays the server's.
    if flags.is_empty() {
        return vec![program.to_owned()];
    }
    let mut words: Vec<OsString> = vec!["setpriv".into()];
    words.extend(flags.into_iter().map(OsString::from));
    if cfg!(target_os = "linux") {
        let parent = std::process::id().to_string();
        words.extend(["sh", "-c", UNLESS_ALONE, &parent].map(OsString::from));
    }
    words.extend(["--".into(), program.to_owned()]);
    words
}

/// The first of `candidates` that exists, else `name` on the PATH.
pub(crate) fn find(name: &str, candidates: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    candidates
        .into_iter()
        .chain(on_path.collect::<Vec<_>>())
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_is_none_that_outgoing_connections_get() {
        let port = free_port().unwrap();
        assert!((20_000..32_000).contains(&port));
        let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(taken.local_addr().unwrap().port(), port);
    }

    #[test]
    fn waiting_in_vain_says_for_what() {
        let error = wait_until("a miracle", Duration::from_millis(1), || false).unwrap_err();
        assert_eq!(error.to_string(), "waited 1ms in vain for a miracle");
    }

    #[test]
    fn folders_of_dead_processes_are_swept_and_of_living_ones_are_not() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let make = |owner: u32| {
            let path = std::env::temp_dir().join(format!("{FOLDER_PREFIX}{owner}-sweeping"));
            std::fs::create_dir_all(path.join("within")).unwrap();
            path
        };
        let (dead, living) = (make(child.id()), make(std::process::id()));
        sweep(&std::env::temp_dir());
        let (dead_stays, living_stays) = (dead.exists(), living.exists());
        std::fs::remove_dir_all(living).unwrap();
        assert!(
            !dead_stays && living_stays,
            "dead {dead_stays}, living {living_stays}"
        );
    }
}
