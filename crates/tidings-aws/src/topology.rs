//! What is made at Amazon, and what is there.
//!
//! A topic is a topic of SNS, a queue one of SQS with another one for its dead letters beside it, and a
//! subscription brings messages as they were published. What SNS cannot deliver (a policy was changed) it puts
//! into the dead letters itself. Each queue lets the topics of its account and prefix in by one statement of its
//! policy, however many there are.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use aws_sdk_sqs::types::QueueAttributeName;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tidings_adapter::Backoff;
use tidings_core::{Queue, Topology, TransportError, dead_letter_queue};
use tracing::{debug, info};

use crate::{
    Shared,
    client::{Trouble, trouble},
    groups::topic_of_command,
    names::{NAME_BYTES_TAKEN_MAX, name_at_amazon},
};

/// How long a topic is believed to have subscribers since it was looked at.
const WANTED: Duration = Duration::from_secs(30);
/// How many queues are made at once: a service has dozens, and each takes several calls.
const QUEUES_AT_ONCE: usize = 8;
/// How long a queue keeps a message: the longest that SQS offers, fourteen days.
pub(crate) const RETENTION_SECONDS: u32 = 14 * 24 * 3600;
/// The largest message of a queue.
pub(crate) const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// The queue that is asked for to see whether Amazon answers. It need not be there.
pub(crate) const LOOK_NAME: &str = "tidings";
/// What the statement is known by that lets topics into a queue.
const STATEMENT: &str = "tidings-topics";

/// A queue at Amazon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueAt {
    pub(crate) url: String,
    pub(crate) arn: String,
}

impl Shared {
    /// Makes what is not there yet, and waits while Amazon does not answer.
    pub(crate) async fn declare(&self, topology: &Topology) -> Result<(), TransportError> {
        check(topology, self.partitions_max())?;
        self.status.reached().await?;
        {
            let mut declared = self.declared.lock();
            *declared = std::mem::take(&mut *declared).merge(topology.clone());
        }
        let mut backoff = Backoff::default();
        loop {
            match self.make(topology).await {
                Ok(()) => return Ok(()),
                Err((what, why)) if why.passes() && !self.status.is_closed() => {
                    debug!(%what, ?why, "declaring waits");
                    self.note(&why);
                    backoff.pause().await;
                }
                Err((what, why)) => return Err(why.into_error(&what)),
            }
        }
    }

    async fn make(&self, topology: &Topology) -> Result<(), (String, Trouble)> {
        let queues = topology.queues.iter();
        let topics: BTreeSet<&str> = queues
            .flat_map(|queue| &queue.topics)
            .chain(&topology.topics)
            .map(|topic| &**topic)
            .collect();
        for topic in topics {
            let made = self.make_topic(topic).await;
            made.map_err(|why| (format!("topic `{topic}` cannot be made"), why))?;
        }
        for group in &topology.groups {
            let made = self.make_group(group).await;
            made.map_err(|why| {
                (
                    format!("the ordered group `{}` cannot be made", group.name),
                    why,
                )
            })?;
        }
        let makes = topology.queues.iter().map(async |queue| {
            let made = self.make_queue_with_letters(queue).await;
            made.map_err(|why| (format!("queue `{}` cannot be made", queue.name), why))
        });
        let makes: Vec<_> = makes.collect();
        let mut made = stream::iter(makes).buffer_unordered(QUEUES_AT_ONCE);
        while made.try_next().await?.is_some() {}
        for queue in &topology.queues {
            for topic in &queue.left {
                let left = self.unsubscribe(topic, &queue.name).await;
                let what = || format!("queue `{}` cannot leave topic `{topic}`", queue.name);
                left.map_err(|why| (what(), why))?;
            }
        }
        Ok(())
    }

    async fn make_queue_with_letters(&self, queue: &Queue) -> Result<(), Trouble> {
        let letters = if queue.is_ephemeral {
            self.ephemeral.lock().insert(queue.name.to_string());
            None
        } else {
            Some(self.make_queue(&dead_letter_queue(&queue.name)).await?)
        };
        let at = self.make_queue(&queue.name).await?;
        for topic in &queue.topics {
            self.subscribe_queue(topic, &at, letters.as_ref()).await?;
        }
        Ok(())
    }

    pub(crate) async fn make_topic(&self, topic: &str) -> Result<(), Trouble> {
        if self.subscribers(topic).await?.is_some() {
            return Ok(());
        }
        let name = self.name_of(topic);
        let mut call = self.clients.sns.create_topic().name(&name);
        if self.address.is_fifo {
            call = call
                .attributes("FifoTopic", "true")
                .attributes("FifoThroughputScope", "MessageGroup");
        }
        call.send().await.map_err(trouble)?;
        info!(topic, name, "made a topic of SNS");
        Ok(())
    }

    /// A queue of that name, made if it is not there, into which topics can put.
    pub(crate) async fn make_queue(&self, queue: &str) -> Result<QueueAt, Trouble> {
        let at = match self.queue(queue).await? {
            Some(at) => at,
            None => self.create_queue(queue).await?,
        };
        self.let_topics_in(&at).await?;
        Ok(at)
    }

    pub(crate) async fn create_queue(&self, queue: &str) -> Result<QueueAt, Trouble> {
        let name = self.name_of(queue);
        let number = |number: u64| number.to_string();
        let mut call = self
            .clients
            .sqs
            .create_queue()
            .queue_name(&name)
            .attributes(
                QueueAttributeName::VisibilityTimeout,
                number(self.address.visibility.as_secs()),
            )
            .attributes(
                QueueAttributeName::MessageRetentionPeriod,
                number(RETENTION_SECONDS.into()),
            )
            .attributes(
                QueueAttributeName::MaximumMessageSize,
                number(QUEUE_BYTES_MAX as u64),
            );
        if self.address.is_fifo {
            call = call
                .attributes(QueueAttributeName::FifoQueue, "true")
                .attributes(QueueAttributeName::DeduplicationScope, "messageGroup")
                .attributes(QueueAttributeName::FifoThroughputLimit, "perMessageGroupId");
        }
        let made = call.send().await.map_err(trouble)?;
        let at = self.queue_at(&name, made.queue_url.unwrap_or_default());
        info!(queue, name, "made a queue of SQS");
        self.queues.lock().insert(queue.to_owned(), at.clone());
        Ok(at)
    }

    /// Adds the statement that lets topics put messages in, unless it is there.
    async fn let_topics_in(&self, at: &QueueAt) -> Result<(), Trouble> {
        let call = self.clients.sqs.get_queue_attributes().queue_url(&at.url);
        let answer = call
            .attribute_names(QueueAttributeName::Policy)
            .send()
            .await
            .map_err(trouble)?;
        let policy = answer.attributes.unwrap_or_default();
        let policy = policy.get(&QueueAttributeName::Policy).map(String::as_str);
        let topics = format!("{}*", self.arn("sns", &self.address.prefix));
        let Some(policy) = policy_with_statement(policy.unwrap_or_default(), &at.arn, &topics)
        else {
            return Ok(());
        };
        let call = self.clients.sqs.set_queue_attributes().queue_url(&at.url);
        let call = call.attributes(QueueAttributeName::Policy, policy);
        call.send().await.map(drop).map_err(trouble)
    }

    /// Lets a queue have what is published to a topic, as it was published.
    pub(crate) async fn subscribe_queue(
        &self,
        topic: &str,
        at: &QueueAt,
        letters: Option<&QueueAt>,
    ) -> Result<(), Trouble> {
        let mut call = self
            .clients
            .sns
            .subscribe()
            .topic_arn(self.topic_arn(topic))
            .protocol("sqs")
            .endpoint(&at.arn)
            .return_subscription_arn(true)
            .attributes("RawMessageDelivery", "true");
        if let Some(letters) = letters {
            let redrive = json!({ "deadLetterTargetArn": letters.arn });
            call = call.attributes("RedrivePolicy", redrive.to_string());
        }
        match call.send().await.map_err(trouble) {
            Ok(_) => {}
            // It is there with other attributes, which somebody may have chosen.
            Err(Trouble::Invalid(why)) => {
                let Some(arn) = self.subscription(topic, &at.arn).await? else {
                    return Err(Trouble::Invalid(why));
                };
                if !self.is_raw(&arn).await? {
                    return Err(Trouble::Invalid(format!(
                        "its subscription to topic `{topic}` is there without raw message delivery, which is needed: \
                         delete it, or set that ({why})"
                    )));
                }
            }
            Err(why) => return Err(why),
        }
        self.wanted.lock().insert(topic.to_owned(), Instant::now());
        Ok(())
    }

    /// Whether a subscription brings messages as they were published.
    pub(crate) async fn is_raw(&self, subscription_arn: &str) -> Result<bool, Trouble> {
        let call = self.clients.sns.get_subscription_attributes();
        let call = call.subscription_arn(subscription_arn);
        let answer = call.send().await.map_err(trouble)?;
        let attributes = answer.attributes.unwrap_or_default();
        Ok(attributes.get("RawMessageDelivery").map(String::as_str) == Some("true"))
    }

    async fn unsubscribe(&self, topic: &str, queue: &str) -> Result<(), Trouble> {
        let subscription = match self.subscription(topic, &self.queue_arn(queue)).await {
            Ok(subscription) => subscription,
            Err(Trouble::Missing(_)) => None,
            Err(why) => return Err(why),
        };
        self.wanted.lock().remove(topic);
        let Some(subscription) = subscription else {
            return Ok(());
        };
        let call = self
            .clients
            .sns
            .unsubscribe()
            .subscription_arn(subscription);
        call.send().await.map(drop).map_err(trouble)?;
        info!(queue, topic, "ended a subscription");
        Ok(())
    }

    /// The subscription of a queue to a topic.
    pub(crate) async fn subscription(
        &self,
        topic: &str,
        queue_arn: &str,
    ) -> Result<Option<String>, Trouble> {
        let call = self.clients.sns.list_subscriptions_by_topic();
        let mut pages = call
            .topic_arn(self.topic_arn(topic))
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let all = page.map_err(trouble)?.subscriptions.unwrap_or_default();
            let mut all = all.into_iter();
            if let Some(found) = all.find(|it| it.endpoint.as_deref() == Some(queue_arn)) {
                return Ok(found.subscription_arn);
            }
        }
        Ok(None)
    }

    /// How many subscriptions a topic has; `None` if it is not there.
    pub(crate) async fn subscribers(&self, topic: &str) -> Result<Option<u32>, Trouble> {
        let call = self.clients.sns.get_topic_attributes();
        match call
            .topic_arn(self.topic_arn(topic))
            .send()
            .await
            .map_err(trouble)
        {
            Ok(answer) => {
                let attributes = answer.attributes.unwrap_or_default();
                let count = attributes.get("SubscriptionsConfirmed");
                Ok(Some(
                    count.and_then(|it| it.parse().ok()).unwrap_or_default(),
                ))
            }
            Err(Trouble::Missing(_)) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Whether anybody subscribes to a topic. SNS takes what nobody wants and forgets it.
    pub(crate) async fn is_wanted(&self, topic: &str) -> Result<bool, Trouble> {
        if self.is_known_as_wanted(topic) {
            return Ok(true);
        }
        let is_wanted = self
            .subscribers(topic)
            .await?
            .is_some_and(|count| count > 0);
        let mut wanted = self.wanted.lock();
        if is_wanted {
            wanted.insert(topic.to_owned(), Instant::now());
        } else {
            wanted.remove(topic);
        }
        Ok(is_wanted)
    }

    /// Whether a topic had subscribers a moment ago.
    pub(crate) fn is_known_as_wanted(&self, topic: &str) -> bool {
        let known = self.wanted.lock().get(topic).copied();
        known.is_some_and(|since| since.elapsed() < WANTED)
    }

    /// A queue; `None` if it is not there.
    pub(crate) async fn queue(&self, queue: &str) -> Result<Option<QueueAt>, Trouble> {
        if let Some(at) = self.queues.lock().get(queue) {
            return Ok(Some(at.clone()));
        }
        let found = self.queue_called(&self.name_of(queue)).await?;
        if let Some(at) = &found {
            self.queues.lock().insert(queue.to_owned(), at.clone());
        }
        Ok(found)
    }

    /// A queue by what it is called at Amazon.
    pub(crate) async fn queue_called(&self, name: &str) -> Result<Option<QueueAt>, Trouble> {
        let call = self.clients.sqs.get_queue_url().queue_name(name);
        match call.send().await.map_err(trouble) {
            Ok(found) => Ok(Some(
                self.queue_at(name, found.queue_url.unwrap_or_default()),
            )),
            Err(Trouble::Missing(_)) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// What was known of these places is looked at again.
    pub(crate) fn forget(&self, name: &str) {
        self.queues.lock().remove(name);
        let mut wanted = self.wanted.lock();
        wanted.remove(name);
        wanted.remove(&topic_of_command(name));
    }

    pub(crate) fn topic_arn(&self, topic: &str) -> String {
        self.arn("sns", &self.name_of(topic))
    }

    pub(crate) fn queue_arn(&self, queue: &str) -> String {
        self.arn("sqs", &self.name_of(queue))
    }

    fn queue_at(&self, name: &str, url: String) -> QueueAt {
        let arn = self.arn("sqs", name);
        QueueAt { url, arn }
    }

    fn arn(&self, service: &str, name: &str) -> String {
        let (partition, account) = self
            .account
            .get()
            .map_or(("aws", ""), |(partition, account)| (partition, account));
        let region = &self.address.region;
        format!("arn:{partition}:{service}:{region}:{account}:{name}")
    }

    pub(crate) fn name_of(&self, name: &str) -> String {
        name_at_amazon(&self.address.prefix, name, self.address.is_fifo)
    }
}

/// The policy with the statement that lets topics in; `None` if it has that.
fn policy_with_statement(policy: &str, queue: &str, topics: &str) -> Option<String> {
    let mut policy: Value = serde_json::from_str(policy)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({ "Version": "2012-10-17" }));
    let statement = json!({
        "Sid": STATEMENT,
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": { "ArnLike": { "aws:SourceArn": topics } },
    });
    // A single statement may stand there without a list.
    let statements = match policy["Statement"].take() {
        Value::Null => Vec::new(),
        Value::Array(statements) => statements,
        single => vec![single],
    };
    if statements.iter().any(|it| it["Sid"] == STATEMENT) {
        return None;
    }
    let all: Vec<Value> = statements.into_iter().chain([statement]).collect();
    policy["Statement"] = Value::Array(all);
    Some(policy.to_string())
}

fn check(topology: &Topology, partitions_max: u16) -> Result<(), TransportError> {
    let queues = topology.queues.iter();
    let names =
        queues.flat_map(|queue| queue.topics.iter().chain(&queue.left).chain([&queue.name]));
    for name in names.chain(&topology.topics) {
        if name.is_empty() || name.len() > NAME_BYTES_TAKEN_MAX {
            return Err(TransportError::fatal(format!(
                "the name `{name}` has {} bytes; it may have 1 to {NAME_BYTES_TAKEN_MAX}",
                name.len()
            )));
        }
    }
    for group in &topology.groups {
        if group.partitions.get() > partitions_max {
            return Err(TransportError::fatal(format!(
                "the ordered group `{}` has {} partitions, and there may be {partitions_max}",
                group.name, group.partitions
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_page() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        let table = std::fs::read_to_string(docs.join("README.md")).expect("the table");
        let sources = [
            include_str!("address.rs"),
            include_str!("client.rs"),
            include_str!("lib.rs"),
            include_str!("receiving.rs"),
        ];
        for code in ["TDG-4030", "TDG-4031", "TDG-4032", "TDG-4033"] {
            let page = std::fs::read_to_string(docs.join(format!("{code}.md"))).expect("a page");
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            let is_used = |source: &&str| source.contains(&format!("({code})"));
            assert!(sources.iter().any(is_used), "{code} is used");
            let row = format!("| [{code}]({code}.md) |");
            assert!(table.contains(&row), "{code}");
        }
    }

    #[test]
    fn a_policy_gets_one_statement_and_keeps_the_others() {
        let made = policy_with_statement("", "queue", "topics*").expect("a policy");
        assert!(made.contains("topics*") && made.contains("sns.amazonaws.com"));
        assert_eq!(policy_with_statement(&made, "queue", "topics*"), None);
        for theirs in [
            r#"{"Version":"2012-10-17","Statement":[{"Sid":"theirs"}]}"#,
            r#"{"Version":"2012-10-17","Statement":{"Sid":"theirs"}}"#,
        ] {
            let both = policy_with_statement(theirs, "queue", "topics*").expect("a policy");
            assert!(both.contains("theirs") && both.contains(STATEMENT));
            assert_eq!(policy_with_statement(&both, "queue", "topics*"), None);
        }
    }
}
