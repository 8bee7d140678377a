//! A cluster of RabbitMQ nodes on loopback, for tests that kill, freeze and restart some of them.
//!
//! Names, ports, cookie, folders and the `epmd` at which its nodes find one another are its own, so that it
//! meets no other Erlang program of the machine. Everything is a process of the test, ended by its id.

use std::fmt::Write;
use std::fs::Permissions;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Process, RabbitMq};

/// A node that the others do not hear of is gone for them after five seconds, not after a minute.
pub(super) const ERLANG: &str =
    "-kernel net_ticktime 4 -kernel inet_dist_use_interface {127,0,0,1}";

/// A minority pauses, as the guide of RabbitMQ advises for three nodes: without it a node that comes back from a
/// partition goes on with what it believes (and in 3.10 has to be restarted by hand).
const SETTINGS: &str = "cluster_partition_handling = pause_minority\n\
                        cluster_formation.peer_discovery_backend = classic_config\n";

/// How long nodes may take to find one another, or a node to come back to the others.
const TOGETHER_MAX: Duration = Duration::from_secs(120);
const EPMD_MAX: Duration = Duration::from_secs(10);

/// How long a node that goes on may take to find the others again by itself: some seconds, or never.
const REJOIN_MAX: Duration = Duration::from_secs(20);

/// How long an election may take until another node is asked.
const ELECTION_MAX: Duration = Duration::from_secs(10);

/// Prints each quorum queue of which a member runs and none leads, and then `done`. What a node says of a member is
/// `{Name, State}` in 3.10, and longer later.
const LEADERLESS: &str = r#"
    Said = [rpc:call(N, ets, tab2list, [ra_state]) || N <- [node() | nodes()]],
    Members = lists:append([L || L <- Said, is_list(L)]),
    Led = [element(1, M) || M <- Members, element(2, M) =:= leader],
    Left = lists:usort([element(1, M) || M <- Members]) -- lists:usort(Led),
    [io:format("~s~n", [N]) || N <- Left],
    done."#;

/// RabbitMQ nodes that are one cluster; dropped, all are gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut cluster = tidings_testing::servers::RabbitMqCluster::start(3)?;
/// println!("{}", cluster.url()); // amqp://guest:guest@127.0.0.1:23456,127.0.0.1:24567,127.0.0.1:25678
/// cluster.kill9(1);
/// cluster.restart(1)?; // it comes back to the others with its data
/// # Ok(())
/// # }
/// ```
pub struct RabbitMqCluster {
    nodes: Vec<RabbitMq>,
    // After the nodes, which say goodbye to it.
    _epmd: Process,
}

impl RabbitMqCluster {
    /// Starts so many nodes and returns when they are one cluster.
    pub fn start(count: usize) -> Result<RabbitMqCluster> {
        Self::start_with(count, "")
    }

    /// The same with more lines in the configuration of each.
    pub fn start_with(count: usize, settings: &str) -> Result<RabbitMqCluster> {
        let epmd_port = crate::servers::free_port()?;
        let prepare = |_| RabbitMq::prepare(Some(epmd_port));
        let mut nodes = (0..count).map(prepare).collect::<Result<Vec<_>>>()?;
        let mut settings = format!("{SETTINGS}{settings}\n");
        for (number, node) in nodes.iter().enumerate() {
            let name = node.name();
            writeln!(
                settings,
                "cluster_formation.classic_config.nodes.{} = {name}",
                number + 1
            )?;
        }
        let cookie = format!("{:x}", RandomState::new().hash_one(epmd_port));
        for node in &nodes {
            node.configure(&settings)?;
            node.write(COOKIE, &cookie)?;
            let path = node.folder.path().join(COOKIE);
            std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        let first = nodes.first().context("a cluster has a node")?;
        let epmd = epmd(first, epmd_port)?;
        for node in &mut nodes {
            node.launch()?;
        }
        for node in &mut nodes {
            node.wait()?;
        }
        let cluster = RabbitMqCluster { nodes, _epmd: epmd };
        cluster.await_nodes(0, count)?;
        Ok(cluster)
    }

    /// Where all of them answer.
    pub fn url(&self) -> String {
        let hosts = self.nodes.iter().map(|it| format!("127.0.0.1:{}", it.port));
        let hosts: Vec<_> = hosts.collect();
        format!("amqp://guest:guest@{}", hosts.join(","))
    }

    /// How many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where one of them answers.
    pub fn url_of(&self, node: usize) -> String {
        self.nodes[node].url()
    }

    /// Which of them has this name (`tidings23456@localhost`), as RabbitMQ's tools print it.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name() == name)
    }

    /// `kill -9` on one of them.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].kill9();
    }

    /// `kill -9` on all of them.
    pub fn kill9_all(&mut self) {
        self.nodes.iter_mut().for_each(RabbitMq::kill9);
    }

    /// Starts all of them again on their data, killing those that still run, and returns when they are one cluster. All
    /// at once: a node waits for the one that was the last to run.
    pub fn restart_all(&mut self) -> Result<()> {
        self.kill9_all();
        for node in &mut self.nodes {
            node.launch()?;
        }
        for node in &mut self.nodes {
            node.wait()?;
        }
        let count = self.count();
        (0..count).try_for_each(|node| self.await_nodes(node, count))
    }

    /// The AMQP port of one of them on 127.0.0.1.
    pub fn port_of(&self, node: usize) -> u16 {
        self.nodes[node].port()
    }

    /// One of them does nothing more, until it is thawed, killed or restarted. The others hold it for gone within some
    /// seconds, and its clients do when their heartbeats fail.
    pub fn freeze(&mut self, node: usize) -> Result<()> {
        let process = self.nodes[node].node.as_mut();
        process.context("the node does not run")?.freeze()
    }

    /// A frozen node goes on, and returns to the others.
    ///
    /// It pauses when it notices that it is alone, and joins them afterwards. A node of 3.x that loses one of the others and
    /// finds it again before it loses the next never pauses, and stays apart until it is restarted, which operators have to
    /// do and this does then.
    pub fn thaw(&mut self, node: usize) -> Result<()> {
        let process = self.nodes[node].node.as_mut();
        process.context("the node does not run")?.thaw()?;
        let count = self.running();
        // It may believe for a moment that nothing happened. While it pauses, it answers no question.
        let joins = || {
            self.up()
                .all(|it| self.sees(it, count, Duration::from_secs(5)).is_ok())
        };
        match crate::servers::wait_until("it to come back", REJOIN_MAX, joins) {
            Ok(()) => Ok(()),
            Err(_) => self.restart(node),
        }
    }

    /// Starts one of them again on its data, killing it first when it still runs, and returns when it is among the others.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].restart()?;
        self.await_nodes(node, self.running())
    }

    /// Those that run.
    fn up(&self) -> impl Iterator<Item = usize> {
        let nodes = self.nodes.iter().enumerate();
        let running = nodes.filter(|(_, it)| it.node.is_some());
        running.map(|(node, _)| node)
    }

    fn running(&self) -> usize {
        self.up().count()
    }

    /// Waits until a node sees so many that run, itself among them.
    pub fn await_nodes(&self, node: usize, count: usize) -> Result<()> {
        self.sees(node, count, TOGETHER_MAX)
    }

    fn sees(&self, node: usize, count: usize, within: Duration) -> Result<()> {
        let (count, seconds) = (count.to_string(), within.as_secs().to_string());
        let wait = ["await_online_nodes", &count, "--timeout", &seconds];
        self.ctl(node, &wait).map(drop)
    }

    /// The quorum queues that no running node leads, by the names that Ra knows them by (`%2F_orders`). For some seconds
    /// after a node is gone that is as it should be.
    pub fn leaderless(&self) -> Result<Vec<String>> {
        let node = self.up().next().context("no node runs")?;
        let listed = self.ctl(node, &["eval", LEADERLESS])?;
        let names = listed.lines().map(str::trim);
        let names = names.filter(|it| !matches!(*it, "" | "done"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Calls an election for a quorum queue at one node after the other, as an operator does when RabbitMQ leaves it
    /// without a leader. Returns when it has one.
    pub fn elect(&self, queue: &str) -> Result<()> {
        let is_led = || {
            self.leaderless()
                .is_ok_and(|it| it.iter().all(|it| it != queue))
        };
        for node in self.up() {
            let call = format!("ra:trigger_election({{'{queue}', node()}}).");
            self.ctl(node, &["eval", &call])?;
            if crate::servers::wait_until("a leader", ELECTION_MAX, is_led).is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("no node could be made the leader of `{queue}`")
    }

    /// Runs `rabbitmqctl` on one of them, and returns what it printed.
    pub fn ctl(&self, node: usize, args: &[&str]) -> Result<String> {
        self.nodes[node].ctl(args)
    }
}

const COOKIE: &str = ".erlang.cookie";

/// The cluster's own, in the surroundings of one of its nodes.
fn epmd(node: &RabbitMq, port: u16) -> Result<Process> {
    let program = match &node.root {
        Some(_) => PathBuf::from("/usr/bin/epmd"),
        None => crate::servers::find("epmd", [Path::new("/usr/bin/epmd").into()])
            .context("there is no `epmd`: install Erlang")?,
    };
    let mut command = node.command(&program);
    command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
    let process = Process::start(command)?;
    crate::servers::wait_until("epmd to accept", EPMD_MAX, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::super::speaks_amqp;
    use super::*;

    /// A quorum queue of the virtual host, and which node leads it.
    fn leader(cluster: &RabbitMqCluster, node: usize) -> usize {
        let listed = cluster
            .ctl(node, &["list_queues", "name", "leader"])
            .unwrap();
        let name = listed.split_whitespace().last().unwrap_or_default();
        cluster.named(name).unwrap_or_else(|| panic!("{listed}"))
    }

    #[test]
    #[ignore = "needs RabbitMQ"]
    fn a_node_is_killed_and_another_frozen_and_each_comes_back() {
        let mut cluster = RabbitMqCluster::start(3).unwrap();
        let queue = r#"{ok, V} = {ok, rabbit_misc:r(<<"/">>, queue, <<"q">>)},
            {new, _} = rabbit_amqqueue:declare(V, true, false,
                [{<<"x-queue-type">>, longstr, <<"quorum">>}], none, <<"test">>), ok."#;
        cluster.ctl(0, &["eval", queue]).unwrap();
        let first = leader(&cluster, 0);

        cluster.kill9(first);
        let other = (first + 1) % cluster.count();
        cluster.await_nodes(other, 2).unwrap();
        let is_led = || {
            let now = cluster
                .ctl(other, &["list_queues", "name", "leader"])
                .unwrap();
            let name = now.split_whitespace().last().unwrap_or_default().to_owned();
            cluster.named(&name).is_some_and(|now| now != first)
        };
        crate::servers::wait_until("another leader", TOGETHER_MAX, is_led).unwrap();
        cluster.restart(first).unwrap();
        cluster.await_nodes(other, 3).unwrap();

        cluster.freeze(other).unwrap();
        let running = |cluster: &RabbitMqCluster| {
            let running = cluster
                .ctl(first, &["eval", "length(nodes()) + 1."])
                .unwrap();
            running.trim().to_owned()
        };
        crate::servers::wait_until("it to be missed", TOGETHER_MAX, || running(&cluster) == "2")
            .unwrap();
        cluster.thaw(other).unwrap();
        for node in 0..3 {
            cluster.await_nodes(node, 3).unwrap();
        }

        assert!(cluster.leaderless().unwrap().is_empty());
        let lost = "true = ets:insert(ra_state, {'%2F_lost', follower}).";
        cluster.ctl(0, &["eval", lost]).unwrap();
        assert_eq!(cluster.leaderless().unwrap(), ["%2F_lost"]);
        cluster.elect("%2F_q").unwrap();

        let ports: Vec<_> = cluster.nodes.iter().map(|it| it.port).collect();
        assert!(ports.iter().all(|port| speaks_amqp(*port)));
        drop(cluster);
        assert!(!ports.iter().any(|port| speaks_amqp(*port)));
    }
}
