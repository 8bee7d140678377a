//! A witness at SNS and SQS, with Amazon's SDK bare.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use aws_sdk_sns::types::MessageAttributeValue as SnsValue;
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message, QueueAttributeName as Attribute,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use uuid::Uuid;

use super::{Found, SILENT_MAX};
use crate::broker::AWS_CREDENTIALS;

/// How many messages a call has at most.
const CALL_MAX: i32 = 10;

/// A connection of the supervisor's own.
pub(crate) struct Witness {
    sns: aws_sdk_sns::Client,
    sqs: aws_sdk_sqs::Client,
}

/// What a topic or queue is called at Amazon (docs/guide/aws.md).
fn name_at_amazon(name: &str) -> String {
    format!("{}.fifo", name.replace('.', "--"))
}

impl Witness {
    pub(super) fn connect(endpoint: &str) -> Self {
        let [(_, user), (_, secret)] = AWS_CREDENTIALS;
        let credentials = Credentials::new(user, secret, None, None, "rig");
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let sns = aws_sdk_sns::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_sns::config::Region::new("eu-central-1"))
            .endpoint_url(endpoint)
            .credentials_provider(credentials.clone())
            .http_client(http.clone());
        let sqs = aws_sdk_sqs::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_sqs::config::Region::new("eu-central-1"))
            .endpoint_url(endpoint)
            .credentials_provider(credentials)
            .http_client(http);
        Self {
            sns: aws_sdk_sns::Client::from_conf(sns.build()),
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
        }
    }

    async fn url(&self, queue: &str) -> Result<String> {
        let asked = self.sqs.get_queue_url().queue_name(name_at_amazon(queue));
        let url = asked.send().await?.queue_url;
        url.with_context(|| format!("`{queue}` has no URL"))
    }

    async fn attribute(&self, url: &str, name: Attribute) -> Result<String> {
        let asked = self.sqs.get_queue_attributes().queue_url(url);
        let answer = asked.attribute_names(Attribute::All).send().await?;
        let value = answer.attributes().and_then(|all| all.get(&name)).cloned();
        value.with_context(|| format!("{url} has no `{name}`"))
    }

    async fn topic_arn(&self, topic: &str) -> Result<String> {
        let ends = format!(":{}", name_at_amazon(topic));
        let mut pages = self.sns.list_topics().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page?;
            let mut arns = page.topics().iter().filter_map(|topic| topic.topic_arn());
            if let Some(arn) = arns.find(|arn| arn.ends_with(&ends)) {
                return Ok(arn.to_owned());
            }
        }
        anyhow::bail!("there is no topic `{topic}`")
    }

    /// A queue that gets what is published to a topic from now on.
    pub(super) async fn listen(&self, queue: &str, topic: &str) -> Result<()> {
        let made = self
            .sqs
            .create_queue()
            .queue_name(name_at_amazon(queue))
            .attributes(Attribute::FifoQueue, "true")
            .send()
            .await?;
        let url = made.queue_url.context("a queue without an URL")?;
        let arn = self.attribute(&url, Attribute::QueueArn).await?;
        self.sns
            .subscribe()
            .topic_arn(self.topic_arn(topic).await?)
            .protocol("sqs")
            .endpoint(arn)
            .attributes("RawMessageDelivery", "true")
            .send()
            .await?;
        Ok(())
    }

    /// Publishes up to `count` of what came to `tap` once more, with their ids, but so that Amazon does not know them for
    /// duplicates. What is older in the tap is forgotten. Says how many.
    pub(super) async fn publish_again(&self, tap: &str, topic: &str, count: u64) -> Result<u64> {
        let (url, arn) = (self.url(tap).await?, self.topic_arn(topic).await?);
        let mut published = 0;
        while published < count {
            let messages = self.take(&url).await?;
            if messages.is_empty() {
                break;
            }
            for message in messages {
                let mut again = self
                    .sns
                    .publish()
                    .topic_arn(&arn)
                    .message(message.body.as_deref().unwrap_or_default())
                    .message_group_id(attribute_of(&message, "ce_partitionkey"))
                    .message_deduplication_id(Uuid::now_v7().to_string());
                for (name, value) in message.message_attributes.iter().flatten() {
                    let value = SnsValue::builder()
                        .data_type(value.data_type())
                        .set_string_value(value.string_value.clone());
                    again = again.message_attributes(name, value.build()?);
                }
                again.send().await?;
                published += 1;
            }
        }
        self.sqs.purge_queue().queue_url(&url).send().await?;
        Ok(published)
    }

    pub(super) async fn depth(&self, queue: &str) -> Result<u64> {
        let url = self.url(queue).await?;
        let visible = Attribute::ApproximateNumberOfMessages;
        let hidden = Attribute::ApproximateNumberOfMessagesNotVisible;
        let visible: u64 = self.attribute(&url, visible).await?.parse()?;
        let hidden: u64 = self.attribute(&url, hidden).await?.parse()?;
        Ok(visible + hidden)
    }

    pub(super) async fn take_all(&self, queue: &str) -> Result<Vec<Found>> {
        let url = self.url(queue).await?;
        let count = self.depth(queue).await?;
        let mut all = Vec::new();
        let mut last = Instant::now();
        while (all.len() as u64) < count {
            let messages = self.take(&url).await?;
            if messages.is_empty() {
                let gave = all.len();
                ensure!(
                    last.elapsed() < SILENT_MAX,
                    "`{queue}` has {count} messages and gave {gave}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            last = Instant::now();
            all.extend(messages.into_iter().map(|message| Found {
                id: attribute_of(&message, "ce_id"),
                reason: attribute_of(&message, "tidings-reason"),
                body: message.body.unwrap_or_default().into_bytes(),
            }));
        }
        Ok(all)
    }

    /// Takes the next messages out of a queue, if there are some.
    async fn take(&self, url: &str) -> Result<Vec<Message>> {
        let asked = self
            .sqs
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(CALL_MAX)
            .message_attribute_names("All");
        let messages = asked.send().await?.messages.unwrap_or_default();
        if messages.is_empty() {
            return Ok(messages);
        }
        let mut done = self.sqs.delete_message_batch().queue_url(url);
        for (number, message) in messages.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(message.receipt_handle.as_deref().unwrap_or_default());
            done = done.entries(entry.build()?);
        }
        let done = done.send().await?;
        ensure!(done.failed().is_empty(), "not deleted: {:?}", done.failed());
        Ok(messages)
    }
}

fn attribute_of(message: &Message, name: &str) -> String {
    let attributes = message.message_attributes.as_ref();
    let value = attributes.and_then(|all| all.get(name)?.string_value.clone());
    value.unwrap_or_default()
}
