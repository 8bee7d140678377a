//! A cluster of Kafka nodes on loopback, for tests that kill some of them.
//!
//! Each node is broker and controller, with its own ports and folder. Topics that a client makes have as many replicas as
//! it asks for.

use anyhow::{Context, Result};

use super::{Kafka, Process, ask, replicas};

/// A controller that is silent is replaced after seconds, and a replica that stopped following is left out of those in sync
/// as soon: that is what tests wait for.
const SETTINGS: &str = "controller.quorum.fetch.timeout.ms=2000\n\
                        controller.quorum.election.timeout.ms=1000\n\
                        replica.lag.time.max.ms=3000\n";

/// Kafka nodes that are one cluster; dropped, all are gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut cluster = tidings_testing::servers::KafkaCluster::start(3)?;
/// println!("{}", cluster.url()); // kafka://127.0.0.1:23456,127.0.0.1:24567,127.0.0.1:25678
/// cluster.kill9(1);
/// cluster.restart(1)?; // it comes back to the others with its data
/// # Ok(())
/// # }
/// ```
pub struct KafkaCluster {
    nodes: Vec<Kafka>,
}

impl KafkaCluster {
    /// Starts so many nodes and returns when they are one cluster.
    pub fn start(count: usize) -> Result<KafkaCluster> {
        let prepare = |_| Kafka::prepare();
        let mut nodes = (0..count).map(prepare).collect::<Result<Vec<_>>>()?;
        let voter =
            |(at, node): (usize, &Kafka)| format!("{}@127.0.0.1:{}", at + 1, node.controller_port);
        let voters: Vec<String> = nodes.iter().enumerate().map(voter).collect();
        for (at, node) in nodes.iter().enumerate() {
            node.configure(at + 1, &voters.join(","), &replicas(count), SETTINGS)?;
        }
        for node in &mut nodes {
            node.launch()?;
        }
        let mut cluster = KafkaCluster { nodes };
        for node in 0..count {
            cluster.await_nodes(node, count)?;
        }
        Ok(cluster)
    }

    /// Where all of them answer.
    pub fn url(&self) -> String {
        let hosts = self.nodes.iter().map(|it| format!("127.0.0.1:{}", it.port));
        format!("kafka://{}", hosts.collect::<Vec<_>>().join(","))
    }

    /// `kill -9` on one of them; the first is 0 here, and 1 as Kafka calls it.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].kill9();
    }

    /// Stops one of them in its tracks, until it is [thawed](Self::thaw): it is there and does nothing.
    pub fn freeze(&mut self, node: usize) -> Result<()> {
        self.node(node)?.freeze()
    }

    /// Lets one that is frozen go on.
    pub fn thaw(&mut self, node: usize) -> Result<()> {
        self.node(node)?.thaw()
    }

    fn node(&mut self, node: usize) -> Result<&mut Process> {
        let running = self.nodes[node].node.as_mut();
        running.with_context(|| format!("node {node} does not run"))
    }

    /// Starts one of them again on its data, killing it first when it still runs, and returns when it is among the others.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].launch()?;
        let running = self.nodes.iter().filter(|it| it.node.is_some()).count();
        self.await_nodes(node, running)
    }

    /// Waits until a node sees so many that run, itself among them.
    fn await_nodes(&mut self, node: usize, count: usize) -> Result<()> {
        let sees = |port| brokers_seen(port).is_some_and(|seen| seen >= count);
        let waited = self.nodes[node].wait(sees);
        waited.with_context(|| format!("node {node} does not see {count} that run"))
    }
}

/// How many brokers a node knows of: its answer to a request for metadata of no topics begins with them.
fn brokers_seen(port: u16) -> Option<usize> {
    const ASK: [u8; 18] = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0];
    let answer: [u8; 12] = ask(port, &ASK)?;
    let (number, count) = (&answer[4..8], &answer[8..]);
    let count = u32::from_be_bytes(count.try_into().ok()?);
    (number == [0, 0, 0, 7]).then(|| usize::try_from(count).ok())?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[ignore = "needs Kafka"]
    fn a_node_is_killed_and_the_others_go_on_without_it() {
        let mut cluster = KafkaCluster::start(3).unwrap();
        cluster.kill9(1);
        let port = cluster.nodes[0].port();
        crate::servers::wait_until("the others to notice", Duration::from_secs(60), || {
            brokers_seen(port) == Some(2)
        })
        .unwrap();
        cluster.restart(1).unwrap();
        crate::servers::wait_until("all to see it", Duration::from_secs(60), || {
            brokers_seen(port) == Some(3)
        })
        .unwrap();
    }
}
