//! Amazon's SDK bare: as many calls under way as `tidings-aws` has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use aws_credential_types::Credentials;
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message as Received, MessageSystemAttributeName,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use futures_util::{StreamExt, stream};

use super::{
    Load,
    turn::{CONTENT_TYPE, CORRELATION, Count, Message, Moment, NAME, SOURCE, TRACEPARENT, Took},
};
use crate::servers::AWS_CREDENTIALS;

/// Messages of a call.
const CALL_MESSAGES: usize = 10;

/// Calls of one batch that are under way.
const CALLS_AT_ONCE: usize = 8;

/// How long an empty receive waits.
const WAIT_SECONDS: i32 = 20;

pub(super) struct Raw {
    sns: aws_sdk_sns::Client,
    sqs: aws_sdk_sqs::Client,
    load: Load,
}

/// What a topic or queue is called at Amazon (docs/guide/aws.md).
fn name_at_amazon(name: &str) -> String {
    format!("{}.fifo", name.replace('.', "--"))
}

impl Raw {
    pub(super) fn new(endpoint: &str, load: Load) -> Self {
        let [(_, user), (_, secret)] = AWS_CREDENTIALS;
        let credentials = Credentials::new(user, secret, None, None, "bench");
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
            load,
        }
    }

    pub(super) async fn publish(
        &self,
        topic: &str,
        messages: Vec<Message>,
    ) -> anyhow::Result<Took> {
        let ends = format!(":{}", name_at_amazon(topic));
        let mut arn = None;
        let mut pages = self.sns.list_topics().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page?;
            let found = page.topics().iter().filter_map(|topic| topic.topic_arn());
            arn = arn.or(found
                .filter(|arn| arn.ends_with(&ends))
                .map(str::to_owned)
                .next_back());
        }
        let arn = arn.with_context(|| format!("there is no topic `{topic}`"))?;
        let count = messages.len() as u64;
        let began = Moment::now();
        let mut batches = stream::iter(messages.chunks(self.load.batch))
            .map(|batch| self.publish_batch(&arn, batch))
            .buffered(self.load.window);
        while let Some(done) = batches.next().await {
            done?;
        }
        Ok(began.until(Moment::now(), count))
    }

    async fn publish_batch(&self, arn: &str, batch: &[Message]) -> anyhow::Result<()> {
        let mut calls = stream::iter(batch.chunks(CALL_MESSAGES))
            .map(|call| self.publish_call(arn, call))
            .buffered(CALLS_AT_ONCE);
        while let Some(done) = calls.next().await {
            done?;
        }
        Ok(())
    }

    async fn publish_call(&self, arn: &str, messages: &[Message]) -> anyhow::Result<()> {
        let mut call = self.sns.publish_batch().topic_arn(arn);
        for (number, message) in messages.iter().enumerate() {
            let time = message.time.to_string();
            let more = format!(
                r#"{{"ce":[["ce_correlationid","{CORRELATION}"],["ce_traceparent","{TRACEPARENT}"]]}}"#
            );
            let mut attributes = HashMap::new();
            for (name, value) in [
                ("ce_specversion", "1.0"),
                ("ce_id", &*message.id),
                ("ce_type", NAME),
                ("ce_source", SOURCE),
                ("ce_time", &*time),
                ("ce_partitionkey", &*message.key),
                ("content-type", CONTENT_TYPE),
                ("tidings-slot", "7"),
                ("tidings-more", &*more),
            ] {
                let value = MessageAttributeValue::builder()
                    .data_type("String")
                    .string_value(value);
                attributes.insert(name.to_owned(), value.build()?);
            }
            let entry = PublishBatchRequestEntry::builder()
                .id(number.to_string())
                .message(str::from_utf8(&message.body)?)
                .message_group_id(&message.key)
                .message_deduplication_id(&message.id)
                .set_message_attributes(Some(attributes));
            call = call.publish_batch_request_entries(entry.build()?);
        }
        let answer = call.send().await?;
        ensure!(answer.failed().is_empty(), "{:?}", answer.failed());
        Ok(())
    }

    /// Deletes what came last while it receives what comes next, as the toolkit does.
    pub(super) async fn receive(&self, queue: &str, count: &Arc<Count>) -> anyhow::Result<Took> {
        let asked = self.sqs.get_queue_url().queue_name(name_at_amazon(queue));
        let url = asked
            .send()
            .await?
            .queue_url
            .context("a queue without an URL")?;
        let mut done = Vec::new();
        while !count.is_over() {
            let deleted = self.delete(&url, std::mem::take(&mut done));
            let (received, deleted) = tokio::join!(self.take(&url), deleted);
            deleted?;
            done = received?;
            for message in &done {
                count.see(message.body.as_deref().unwrap_or_default().as_bytes())?;
            }
        }
        self.delete(&url, done).await?;
        count.took()
    }

    async fn take(&self, url: &str) -> anyhow::Result<Vec<Received>> {
        let asked = self
            .sqs
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(CALL_MESSAGES as i32)
            .wait_time_seconds(WAIT_SECONDS)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        let received = tokio::time::timeout(Duration::from_secs(60), asked.send()).await??;
        Ok(received.messages.unwrap_or_default())
    }

    async fn delete(&self, url: &str, messages: Vec<Received>) -> anyhow::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut call = self.sqs.delete_message_batch().queue_url(url);
        for (number, message) in messages.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(message.receipt_handle.as_deref().unwrap_or_default());
            call = call.entries(entry.build()?);
        }
        let answer = call.send().await?;
        ensure!(answer.failed().is_empty(), "{:?}", answer.failed());
        Ok(())
    }
}
