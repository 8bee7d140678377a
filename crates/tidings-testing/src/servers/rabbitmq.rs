//! A RabbitMQ of its own for a test that stops, kills and restarts it.
//!
//! It is the installed one, or, where [`RABBITMQ_ROOT`](super::RABBITMQ_ROOT) names a folder with a
//! Debian of its own, the one in there: it runs with that folder as its root, and its data are in there.

mod cluster;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

pub use cluster::RabbitMqCluster;

use super::{Process, User};

/// How long a node may take from its start until it accepts: 7 to 11 s on two idle cores.
const START_MAX: Duration = Duration::from_secs(120);
/// How often it is started at most until it accepts.
const STARTS_MAX: usize = 4;
/// How long its service waits before it starts it again; RabbitMQ's own file says ten seconds.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// How long a node may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A RabbitMQ node with default settings, no plugins, on ports of its own; dropped, it is gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut rabbitmq = tidings_testing::servers::RabbitMq::start()?;
/// println!("{}", rabbitmq.url()); // amqp://guest:guest@127.0.0.1:23456
/// rabbitmq.kill9();
/// rabbitmq.restart()?; // the same URL, the same data
/// # Ok(())
/// # }
/// ```
pub struct RabbitMq {
    server: PathBuf,
    /// The folder that it takes for the root.
    root: Option<PathBuf>,
    user: Option<User>,
    port: u16,
    dist_port: u16,
    tls_port: Option<u16>,
    /// Where its cluster looks names of nodes up; `None`: where all Erlang programs of the machine do.
    epmd_port: Option<u16>,
    node: Option<Process>,
    // Last, so that it is removed when nothing writes to it any more.
    folder: TempDir,
}

impl RabbitMq {
    /// What to do when RabbitMQ is not installed; nothing when it is.
    pub fn missing() -> Option<String> {
        find(root().as_deref()).is_none().then(|| match root() {
            None => format!(
                "RabbitMQ is not installed: install it (Debian: `apt-get install rabbitmq-server`), \
                 or set {} to one that runs",
                super::RABBITMQ_URL
            ),
            Some(root) => format!(
                "there is no RabbitMQ in {}, the folder that {} names: make it with `debootstrap \
                 --variant=minbase --include=rabbitmq-server trixie FOLDER`, or take the variable away",
                root.display(),
                super::RABBITMQ_ROOT
            ),
        })
    }

    /// The version of the one that would be started (`3.10.8`), if its folder says so.
    pub fn version() -> Option<String> {
        let root = root().unwrap_or_else(|| "/".into());
        let mut entries = std::fs::read_dir(root.join("usr/lib/rabbitmq/lib")).ok()?;
        entries.find_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("rabbitmq_server-").map(str::to_owned)
        })
    }

    /// Starts a node and returns when it accepts.
    pub fn start() -> Result<RabbitMq> {
        Self::start_with("")
    }

    /// The same with more lines in its configuration (`default_queue_type = quorum`).
    pub fn start_with(settings: &str) -> Result<RabbitMq> {
        let mut rabbitmq = Self::prepare(None)?;
        rabbitmq.configure(settings)?;
        rabbitmq.restart()?;
        Ok(rabbitmq)
    }

    /// A node that also speaks TLS, with these files in PEM: what it shows, and the authority whose certificates it asks clients
    /// for. They are read when it starts.
    pub fn start_with_tls(authority: &Path, certificate: &Path, key: &Path) -> Result<RabbitMq> {
        let mut rabbitmq = Self::prepare(None)?;
        let port = super::free_port()?;
        let mut settings = format!("listeners.ssl.1 = 127.0.0.1:{port}\n");
        let files = [
            ("cacertfile", authority),
            ("certfile", certificate),
            ("keyfile", key),
        ];
        for (name, path) in files {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            rabbitmq.write(name, &text)?;
            let path = rabbitmq.home().join(name);
            settings += &format!("ssl_options.{name} = {}\n", path.display());
        }
        settings += "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n";
        rabbitmq.tls_port = Some(port);
        rabbitmq.configure(&settings)?;
        rabbitmq.restart()?;
        Ok(rabbitmq)
    }

    /// Its ports and its folder.
    fn prepare(epmd_port: Option<u16>) -> Result<RabbitMq> {
        let root = root();
        let server = find(root.as_deref());
        let server = server.ok_or_else(|| anyhow!("{}", Self::missing().unwrap_or_default()))?;
        let (user, folder) = match &root {
            None => {
                let user = User::instead_of_root("rabbitmq")?;
                let folder = super::folder("rabbitmq", user.as_ref())?;
                (user, folder)
            }
            Some(root) => {
                let within = |program: &str| {
                    let mut chroot = Command::new("chroot");
                    chroot.arg(root).arg(program);
                    chroot
                };
                let user = User::known_to(within, "rabbitmq")?;
                let folder = super::folder_in(&root.join("tmp"), "rabbitmq", Some(&user))?;
                (Some(user), folder)
            }
        };
        let (port, dist_port) = (super::free_port()?, super::free_port()?);
        Ok(RabbitMq {
            server,
            root,
            user,
            port,
            dist_port,
            tls_port: None,
            epmd_port,
            node: None,
            folder,
        })
    }

    fn configure(&self, settings: &str) -> Result<()> {
        self.write("enabled_plugins", "[].\n")?;
        let settings = format!("log.file.level = warning\n{settings}\n");
        self.write("rabbitmq.conf", &settings)
    }

    fn name(&self) -> String {
        format!("tidings{}@localhost", self.port)
    }

    /// Where it answers; the same after each restart.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Its port for TLS on 127.0.0.1, if it has one.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Its AMQP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `kill -9` on the whole node.
    pub fn kill9(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill9();
        }
    }

    /// Ends the node as an operator would.
    pub fn stop(&mut self) -> Result<()> {
        match self.node.take() {
            Some(mut node) => node
                .stop(STOP_MAX)
                .map(drop)
                .context("cannot stop RabbitMQ"),
            None => Ok(()),
        }
    }

    /// Starts the node again on its old data and ports, killing it first when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait()
    }

    /// Begins to start it.
    fn launch(&mut self) -> Result<()> {
        self.kill9();
        self.node = Some(Process::start(self.command(&self.server))?);
        Ok(())
    }

    /// Waits until it accepts. A node that ends while it starts is started again, as RabbitMQ's own service file says
    /// (`Restart=on-failure`): of nodes that were killed together, one may end because another is not there yet.
    fn wait(&mut self) -> Result<()> {
        for start in 1.. {
            let mut node = self.node.take().context("RabbitMQ was not started")?;
            let waited = super::wait_until("RabbitMQ to accept", START_MAX, || {
                !node.is_running() || speaks_amqp(self.port)
            });
            let status = node.status();
            if waited.is_ok() && status.is_none() {
                self.node = Some(node);
                return Ok(());
            }
            let printed = [node.stdout(), node.stderr()].concat();
            let Some(status) = status.filter(|_| start < STARTS_MAX) else {
                let why = waited.err().unwrap_or_else(|| anyhow!("it ended"));
                return Err(why.context(format!(
                    "cannot start RabbitMQ in {}:\n{}",
                    self.folder.path().display(),
                    printed.join("\n")
                )));
            };
            let mut errors = printed.iter().filter(|it| it.starts_with("error:"));
            let why = errors.next_back().map_or("", String::as_str);
            eprintln!("RabbitMQ ended while it started ({status}), and is started again: {why}");
            std::thread::sleep(RESTART_PAUSE);
            self.launch()?;
        }
        Ok(())
    }

    /// Runs `rabbitmqctl` on the node, and returns what it printed: `["list_queues", "name", "type"]`.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let program = self.server.with_file_name("rabbitmqctl");
        let mut command = self.command(&program);
        let output = command.arg("--quiet").args(args).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(printed),
            false => Err(anyhow!(
                "rabbitmqctl {args:?} failed ({}): {printed}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    /// A program of RabbitMQ's, with this node's surroundings.
    fn command(&self, program: &Path) -> Command {
        let home = self.home();
        let mut command = match &self.root {
            None => {
                let mut command = super::command(program, self.user.as_ref());
                command.current_dir(&home);
                command
            }
            Some(root) => {
                let words = super::words(program.as_os_str(), self.user.as_ref());
                rooted(root, words.iter().map(|word| &**word))
            }
        };
        command
            .env("HOME", &home)
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                home.join("enabled_plugins"),
            )
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            // These two make the start script become the node instead of watching over it, so
            // that the process here is the one to kill.
            .env("RABBITMQ_ALLOW_INPUT", "true")
            .env("RABBITMQ_SERVER_START_ARGS", "-noinput");
        if let Some(port) = self.epmd_port {
            command
                .env("ERL_EPMD_PORT", port.to_string())
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", cluster::ERLANG);
        }
        command
    }

    /// Its folder, as it is called in what it takes for the root.
    fn home(&self) -> PathBuf {
        let folder = self.folder.path();
        match self.root.as_deref().map(|root| folder.strip_prefix(root)) {
            Some(Ok(inside)) => Path::new("/").join(inside),
            _ => folder.to_owned(),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.user.as_ref().map_or(Ok(()), |user| user.give(&path))
    }
}

fn root() -> Option<PathBuf> {
    let root = std::env::var_os(super::RABBITMQ_ROOT)?;
    (!root.is_empty()).then(|| root.into())
}

/// The program, as it is called in the folder that is its root.
fn find(root: Option<&Path>) -> Option<PathBuf> {
    // Debian's script on the PATH refuses every user but its own; the one behind it does not.
    const BEHIND: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
    match root {
        None => super::find("rabbitmq-server", [BEHIND.into()]),
        Some(root) => {
            let is_there = root.join(&BEHIND[1..]).is_file();
            is_there.then(|| BEHIND.into())
        }
    }
}

/// Runs a command in a folder that it takes for the root, where it sees processes and devices, which
/// nobody else sees there. The process id stays the same.
fn rooted<'a>(root: &Path, words: impl Iterator<Item = &'a OsStr>) -> Command {
    const MOUNT: &str = r#"mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" &&
        exec chroot "$0" "$@""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", MOUNT])
        .arg(root)
        .args(words);
    command
}

/// Whether an AMQP 0-9-1 server answers: the first byte of its greeting is a method frame's.
fn speaks_amqp(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut frame_type = [0];
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .is_ok()
        && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut frame_type).is_ok()
        && frame_type == [1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs RabbitMQ"]
    fn it_starts_dies_and_comes_back_where_it_was() {
        let mut rabbitmq = RabbitMq::start().unwrap();
        let url = rabbitmq.url();
        assert!(speaks_amqp(rabbitmq.port()));

        rabbitmq.kill9();
        assert!(!speaks_amqp(rabbitmq.port()));
        rabbitmq.restart().unwrap();
        assert!(speaks_amqp(rabbitmq.port()));

        rabbitmq.stop().unwrap();
        assert!(!speaks_amqp(rabbitmq.port()));
        rabbitmq.restart().unwrap();
        assert_eq!(rabbitmq.url(), url);

        let (folder, port) = (rabbitmq.folder.path().to_owned(), rabbitmq.port());
        drop(rabbitmq);
        assert!(!speaks_amqp(port) && !folder.exists());
    }
}
