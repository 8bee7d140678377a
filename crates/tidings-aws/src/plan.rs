//! What services need at Amazon, for operators: the pieces, whether they are there, and a policy of IAM for each service
//! that allows what its transport asks for and nothing more.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tidings_adapter::{Piece, PieceKind, PieceState};
use tidings_core::{Topology, TransportError, dead_letter_queue};

use crate::{Aws, Shared, client::Trouble, groups::topic_of_command, topology::LOOK_NAME};

impl Aws {
    /// The pieces that a topology is made of, each once.
    pub fn pieces(topology: &Topology) -> BTreeSet<Piece> {
        let Needed {
            topics,
            queues,
            subscriptions,
        } = Needed::of(topology);
        let piece = Piece::new;
        let topics = topics
            .into_iter()
            .map(|name| piece(PieceKind::Topic, name, None));
        let queues = queues
            .into_iter()
            .map(|name| piece(PieceKind::Queue, name, None));
        let subscriptions = subscriptions
            .into_iter()
            .map(|(topic, queue)| piece(PieceKind::Subscription, queue, Some(topic)));
        topics.chain(queues).chain(subscriptions).collect()
    }

    /// Looks which pieces of a topology are there. Makes nothing.
    ///
    /// # Errors
    ///
    /// When Amazon does not answer, or the looks are not allowed.
    pub async fn inspect(
        &self,
        topology: &Topology,
    ) -> Result<Vec<(Piece, PieceState)>, TransportError> {
        self.shared.status.reached().await?;
        let mut states = Vec::new();
        for piece in Self::pieces(topology) {
            let looked = self.shared.look_at(&piece).await;
            let state =
                looked.map_err(|why| why.into_error("what is there cannot be looked at"))?;
            states.push((piece, state));
        }
        Ok(states)
    }

    /// The policy that lets a service declare and use `topology`, and send the commands whose queues are called `commands`.
    /// A service that is started with what it needs made already, and makes nothing, does without the statement `Declare`.
    ///
    /// `sns:GetSubscriptionAttributes` and `sns:Unsubscribe` know no resources, says Amazon's authorization reference, so
    /// they are allowed for all.
    ///
    /// # Errors
    ///
    /// When it is not known yet whose account it is: Amazon did not answer since the start.
    pub async fn policy(
        &self,
        topology: &Topology,
        commands: &BTreeSet<String>,
    ) -> Result<Value, TransportError> {
        self.shared.status.reached().await?;
        Ok(self.shared.policy(topology, commands))
    }
}

/// The names in a topology.
struct Needed {
    topics: BTreeSet<String>,
    queues: BTreeSet<String>,
    /// A topic, and the queue that has what is published to it.
    subscriptions: BTreeSet<(String, String)>,
}

impl Needed {
    fn of(topology: &Topology) -> Self {
        let mut needed = Self {
            topics: topology.topics.iter().map(ToString::to_string).collect(),
            queues: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
        };
        for queue in &topology.queues {
            let topics = queue.topics.iter().map(ToString::to_string);
            needed.receives(&queue.name, topics.collect());
            if queue.is_ephemeral {
                needed.queues.remove(&dead_letter_queue(&queue.name));
            }
        }
        for group in &topology.groups {
            let commands = group.commands.iter().map(|it| topic_of_command(it));
            let topics = group.topics.iter().map(ToString::to_string).chain(commands);
            needed.receives(&group.name, topics.collect());
        }
        needed
    }

    fn receives(&mut self, queue: &str, topics: Vec<String>) {
        self.queues.insert(queue.to_owned());
        self.queues.insert(dead_letter_queue(queue));
        for topic in topics {
            self.topics.insert(topic.clone());
            self.subscriptions.insert((topic, queue.to_owned()));
        }
    }
}

impl Shared {
    async fn look_at(&self, piece: &Piece) -> Result<PieceState, Trouble> {
        let is_there = match (piece.kind, &piece.topic) {
            (PieceKind::Topic, _) => self.subscribers(&piece.name).await?.is_some(),
            (PieceKind::Queue, _) => self
                .queue_called(&self.name_of(&piece.name))
                .await?
                .is_some(),
            (PieceKind::Subscription, topic) => {
                let topic = topic.as_deref().unwrap_or_default();
                let queue = self.queue_arn(&piece.name);
                let found = match self.subscription(topic, &queue).await {
                    Err(Trouble::Missing(_)) => None,
                    found => found?,
                };
                match found {
                    None => false,
                    Some(arn) if self.is_raw(&arn).await? => true,
                    Some(_) => {
                        let why = "it has no raw message delivery: set that, or delete it";
                        return Ok(PieceState::Differs(why.into()));
                    }
                }
            }
        };
        Ok(if is_there {
            PieceState::There
        } else {
            PieceState::Missing
        })
    }

    fn policy(&self, topology: &Topology, commands: &BTreeSet<String>) -> Value {
        let needed = Needed::of(topology);
        let of_groups: Vec<String> = commands.iter().map(|it| topic_of_command(it)).collect();
        let own_commands = topology.groups.iter().flat_map(|it| &it.commands);
        let received = topology.queues.iter().map(|it| &*it.name);
        let received = received.chain(topology.groups.iter().map(|it| &*it.name));
        let left = topology.queues.iter().flat_map(|it| &it.left);
        let left: Vec<&str> = left.map(|it| &**it).collect();
        let subscribed: BTreeSet<&str> = needed.subscriptions.iter().map(|it| &*it.0).collect();
        let any_subscription = match subscribed.is_empty() && left.is_empty() {
            true => Vec::new(),
            false => vec!["*".to_owned()],
        };
        let published = topology.topics.iter().map(|it| &**it);
        let topics = |names: Vec<&str>| -> Vec<String> {
            names.into_iter().map(|it| self.topic_arn(it)).collect()
        };
        let queues = |names: Vec<&str>| -> Vec<String> {
            names.into_iter().map(|it| self.queue_arn(it)).collect()
        };
        let publish = ["sns:GetTopicAttributes", "sns:Publish"];
        let send = ["sqs:GetQueueUrl", "sqs:SendMessage"];
        let receive = [
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
        ];
        let declare = [
            "sqs:CreateQueue",
            "sqs:GetQueueAttributes",
            "sqs:GetQueueUrl",
            "sqs:SetQueueAttributes",
        ];
        let statements = [
            statement("Look", &["sqs:GetQueueUrl"], queues(vec![LOOK_NAME])),
            statement("Publish", &publish, topics(published.collect())),
            statement("SendCommands", &send, queues(strs(commands))),
            statement("SendCommandsOfGroups", &publish, topics(strs(&of_groups))),
            statement("Receive", &receive, queues(received.collect())),
            // To its dead letters, and back to a standard queue after a delay.
            statement("SettleByCopies", &send, queues(strs(&needed.queues))),
            statement(
                "DeclareTopics",
                &["sns:CreateTopic", "sns:GetTopicAttributes"],
                topics(strs(&needed.topics)),
            ),
            statement("DeclareQueues", &declare, queues(strs(&needed.queues))),
            // Whether they have a queue from a time without order.
            statement(
                "LookForOldQueues",
                &["sqs:GetQueueUrl"],
                queues(own_commands.map(|it| &**it).collect()),
            ),
            statement(
                "Subscribe",
                &["sns:ListSubscriptionsByTopic", "sns:Subscribe"],
                topics(subscribed.into_iter().collect()),
            ),
            statement("Leave", &["sns:ListSubscriptionsByTopic"], topics(left)),
            statement(
                "LookAtSubscriptions",
                &["sns:GetSubscriptionAttributes", "sns:Unsubscribe"],
                any_subscription,
            ),
        ];
        let statements: Vec<Value> = statements.into_iter().flatten().collect();
        json!({ "Version": "2012-10-17", "Statement": statements })
    }
}

fn strs<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
    names.into_iter().map(String::as_str).collect()
}

/// A statement of a policy, if there is anything that it is about.
fn statement(id: &str, actions: &[&str], resources: Vec<String>) -> Option<Value> {
    (!resources.is_empty())
        .then(|| json!({ "Sid": id, "Effect": "Allow", "Action": actions, "Resource": resources }))
}
