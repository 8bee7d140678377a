//! An Apache Kafka of its own for a test that stops, kills and restarts it.
//!
//! Debian has no package of it. What runs here are the artifacts that Apache publishes for Maven, fetched
//! once into a cache folder of the user's and started with the installed Java: one node that is broker and
//! controller (KRaft), with its internal topics unreplicated, a [cluster](KafkaCluster) of such nodes, or
//! one that [asks who comes](SecuredKafka).

mod cluster;
mod secured;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::Process;
pub use cluster::KafkaCluster;
pub use secured::{Operation, Resource, SecuredKafka, Security};

/// The version that is fetched.
const VERSION: &str = "4.4.0";

/// How long a node may take from its start until it answers: 5 to 6 s on two idle cores.
const START_MAX: Duration = Duration::from_secs(120);

/// How long a node may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A Kafka node on ports of its own; dropped, it is gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut kafka = tidings_testing::servers::Kafka::start()?;
/// println!("{}", kafka.url()); // kafka://127.0.0.1:23456
/// kafka.kill9();
/// kafka.restart()?; // the same URL, the same data
/// # Ok(())
/// # }
/// ```
pub struct Kafka {
    java: PathBuf,
    jars: PathBuf,
    port: u16,
    /// Where it answers those who do not come through a proxy; else `port`.
    direct_port: u16,
    controller_port: u16,
    /// Users that it is to know from its beginning, as its tool wants them.
    scram: Vec<String>,
    node: Option<Process>,
    // Last, so that it is removed when nothing writes to it any more.
    folder: TempDir,
}

impl Kafka {
    /// What to do when there is no Kafka to start and none can be fetched; nothing when there is.
    pub fn missing() -> Option<String> {
        let java = super::find("java", []).is_some();
        let jars = cache().is_ok_and(|jars| jars.is_dir()) || super::find("mvn", []).is_some();
        (!java || !jars).then(|| {
            format!(
                "Kafka needs Java, and Maven to be fetched with: install them (Debian: `apt-get install \
                 default-jre-headless maven`), or set {} to one that runs",
                super::KAFKA_URL
            )
        })
    }

    /// Fetches it, unless that was done before.
    pub fn fetch() -> Result<()> {
        jars().map(drop)
    }

    /// Starts a node and returns when it answers.
    pub fn start() -> Result<Kafka> {
        Self::start_with("")
    }

    /// The same with more lines in its configuration (`log.retention.check.interval.ms=100`).
    pub fn start_with(settings: &str) -> Result<Kafka> {
        let mut kafka = Self::prepare()?;
        let voters = format!("1@127.0.0.1:{}", kafka.controller_port);
        kafka.configure(1, &voters, &replicas(1), settings)?;
        kafka.restart()?;
        Ok(kafka)
    }

    /// Starts a node whose clients come through a proxy, which listens on `proxy` and passes them on to
    /// [`port`](Kafka::port). A broker tells its clients where to connect, so this one tells them the proxy's port. Who
    /// begins at [`direct_port`](Kafka::direct_port) is told that one, and passes no proxy.
    pub fn start_behind(proxy: u16) -> Result<Kafka> {
        let mut kafka = Self::prepare()?;
        let direct = super::free_port()?;
        kafka.direct_port = direct;
        let (port, controller) = (kafka.port, kafka.controller_port);
        // What stands last in the file counts.
        let listeners = format!(
            "listeners=PLAINTEXT://127.0.0.1:{port},DIRECT://127.0.0.1:{direct},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{proxy},DIRECT://127.0.0.1:{direct}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=DIRECT"
        );
        kafka.configure(
            1,
            &format!("1@127.0.0.1:{controller}"),
            &replicas(1),
            &listeners,
        )?;
        kafka.restart()?;
        Ok(kafka)
    }

    /// A node that has its ports and its folder, and nothing in it.
    fn prepare() -> Result<Kafka> {
        let java = super::find("java", []);
        let java = java.ok_or_else(|| anyhow!("{}", Self::missing().unwrap_or_default()))?;
        let port = super::free_port()?;
        Ok(Kafka {
            java,
            jars: jars()?,
            port,
            direct_port: port,
            controller_port: super::free_port()?,
            scram: Vec::new(),
            node: None,
            folder: super::folder("kafka", None)?,
        })
    }

    /// Writes its configuration, and makes its data folder. A node that was killed comes back when its session of before
    /// is over, which by Kafka's own settings takes nine seconds more.
    fn configure(&self, id: usize, voters: &str, internal: &str, settings: &str) -> Result<()> {
        let (port, controller_port) = (self.port, self.controller_port);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             controller.quorum.voters={voters}\n\
             controller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             log.dirs={}\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.num.partitions=4\n\
             share.coordinator.state.topic.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=500\n\
             {internal}\n\
             {settings}\n",
            self.data().display()
        );
        self.write("server.properties", &properties)?;
        // What it has to say, without a file of its own.
        let log = "appender.console.type=Console\n\
                   appender.console.name=console\n\
                   appender.console.layout.type=PatternLayout\n\
                   appender.console.layout.pattern=%d{HH:mm:ss.SSS} %p %m%n%throwable\n\
                   rootLogger.level=WARN\n\
                   rootLogger.appenderRef.console.ref=console\n";
        self.write("log4j2.properties", log)?;
        self.format()
    }

    /// Where its data is: a folder for each partition, `TOPIC-NUMBER`. For tests in which a disk loses some of it while
    /// the node does not run.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where it answers; the same after each restart.
    pub fn url(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it answers those who are to pass no proxy: on [`port`](Kafka::port), unless it was started
    /// [behind one](Kafka::start_behind).
    pub fn direct_port(&self) -> u16 {
        self.direct_port
    }

    /// `kill -9` on the node.
    pub fn kill9(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill9();
        }
    }

    /// Ends the node as an operator would.
    pub fn stop(&mut self) -> Result<()> {
        match self.node.take() {
            Some(mut node) => node.stop(STOP_MAX).map(drop).context("cannot stop Kafka"),
            None => Ok(()),
        }
    }

    /// Starts the node again on its old data and ports, killing it first when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait(speaks_kafka)
    }

    /// Starts the node and does not wait for it.
    fn launch(&mut self) -> Result<()> {
        self.kill9();
        let mut command = self.command("kafka.Kafka");
        command.arg(self.properties());
        self.node = Some(Process::start(command)?);
        Ok(())
    }

    /// Waits until it answers as it should.
    fn wait(&mut self, answers: impl Fn(u16) -> bool) -> Result<()> {
        let (port, folder) = (self.port, self.folder.path().display());
        let node = self.node.as_mut().context("the node was not started")?;
        super::wait_until("Kafka to answer", START_MAX, || {
            !node.is_running() || answers(port)
        })
        .and_then(|()| match node.status() {
            None => Ok(()),
            Some(status) => Err(anyhow!("it ended ({status})")),
        })
        .with_context(|| {
            let printed = [node.stdout(), node.stderr()].concat().join("\n");
            format!("cannot start Kafka in {folder}:\n{printed}")
        })
    }

    /// Makes its data folder, once.
    fn format(&self) -> Result<()> {
        let mut command = self.command("kafka.tools.StorageTool");
        // Any id will do, in the form of 16 bytes in base64.
        command.args(["format", "-t", "dGlkaW5ncy10ZXN0LTAwMQ", "-c"]);
        command.arg(self.properties());
        for user in &self.scram {
            command.args(["--add-scram", user]);
        }
        let output = command.output();
        let output = output.with_context(|| format!("cannot run {}", self.java.display()))?;
        if !output.status.success() {
            let printed = [&output.stdout[..], &output.stderr[..]].concat();
            let printed = String::from_utf8_lossy(&printed);
            bail!("cannot make the data folder of Kafka: {printed}");
        }
        Ok(())
    }

    /// A program of Kafka's.
    fn command(&self, class: &str) -> Command {
        let log = self.folder.path().join("log4j2.properties");
        let mut command = Process::command(&self.java);
        command
            .current_dir(self.folder.path())
            .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-Dlog4j2.configurationFile={}", log.display()))
            .arg("-cp")
            .arg(self.jars.join("*"))
            .arg(class);
        command
    }

    fn properties(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where the jars are kept: `$XDG_CACHE_HOME/tidings-test/kafka-4.4.0`.
fn cache() -> Result<PathBuf> {
    Ok(cache_folder()?.join(format!("kafka-{VERSION}")))
}

/// Where what is fetched with Maven is kept.
pub(super) fn cache_folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache =
        cache.context("neither XDG_CACHE_HOME nor HOME says where to keep what is fetched")?;
    Ok(cache.join("tidings-test"))
}

/// The folder of its jars, which are fetched if they are not there yet. The folder appears as a whole, so
/// that of two who fetch at once neither sees half of it.
fn jars() -> Result<PathBuf> {
    let jars = cache()?;
    if jars.is_dir() {
        return Ok(jars);
    }
    let maven = super::find("mvn", []);
    let maven = maven.ok_or_else(|| anyhow!("{}", Kafka::missing().unwrap_or_default()))?;
    let place = jars.parent().context("a folder in a folder")?;
    std::fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let fetching = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(place)?;
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>tidings.test</groupId><artifactId>kafka</artifactId><version>1</version>\
         <dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>\
         <version>{VERSION}</version></dependency></dependencies></project>"
    );
    std::fs::write(fetching.path().join("pom.xml"), pom)?;
    let mut command = Command::new(maven);
    command
        .current_dir(fetching.path())
        .args(["-q", "-B", "dependency:copy-dependencies"])
        .arg("-DoutputDirectory=jars");
    let output = command.output().context("cannot run `mvn`")?;
    if !output.status.success() {
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        let printed = String::from_utf8_lossy(&printed);
        bail!("Maven cannot fetch Kafka {VERSION}: {printed}");
    }
    match std::fs::rename(fetching.path().join("jars"), &jars) {
        // Somebody else was quicker.
        Err(_) if jars.is_dir() => Ok(jars),
        done => done
            .map(|()| jars.clone())
            .with_context(|| format!("cannot put Kafka into {}", jars.display())),
    }
}

/// How often what a node keeps for itself is there, in a cluster of `nodes`.
fn replicas(nodes: usize) -> String {
    let (replicas, in_sync) = (nodes.min(3), nodes.min(3).div_ceil(2));
    format!(
        "offsets.topic.replication.factor={replicas}\n\
         transaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={in_sync}\n\
         share.coordinator.state.topic.replication.factor={replicas}\n\
         share.coordinator.state.topic.min.isr={in_sync}\n"
    )
}

/// Whether a Kafka answers: with the versions of requests that it knows, to a request of version 0.
fn speaks_kafka(port: u16) -> bool {
    const ASK: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    // Behind the length: the number of the request, and no error.
    ask::<10>(port, &ASK).is_some_and(|answer| answer[4..] == [0, 0, 0, 7, 0, 0])
}

/// The first bytes of the answer to a request.
fn ask<const BYTES: usize>(port: u16, request: &[u8]) -> Option<[u8; BYTES]> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = [0; BYTES];
    stream.read_exact(&mut answer).ok()?;
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs Kafka"]
    fn it_starts_dies_and_comes_back_where_it_was() {
        let mut kafka = Kafka::start().unwrap();
        let url = kafka.url();
        assert!(speaks_kafka(kafka.port()));

        kafka.kill9();
        assert!(!speaks_kafka(kafka.port()));
        kafka.restart().unwrap();
        assert!(speaks_kafka(kafka.port()));

        kafka.stop().unwrap();
        assert!(!speaks_kafka(kafka.port()));
        kafka.restart().unwrap();
        assert_eq!(kafka.url(), url);

        let (folder, port) = (kafka.folder.path().to_owned(), kafka.port());
        drop(kafka);
        assert!(!speaks_kafka(port) && !folder.exists());
    }
}
