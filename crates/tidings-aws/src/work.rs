//! The tasks of an intake: one receives, one deletes, one keeps what is here hidden from others and gives back
//! what nobody wants any more.
//!
//! A receive is never cut off while its process lives: what it would have brought would be hidden from everybody
//! for a while. What it brings too late is given back at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_sqs::{
    config::{Builder as SqsConfig, timeout::TimeoutConfig},
    types::{
        ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
        MessageSystemAttributeName,
    },
};
use tidings_adapter::Backoff;
use tidings_core::Received;
use tracing::{debug, warn};

use crate::{
    Shared,
    client::{CALL_TIMEOUT, Trouble, of_code, trouble},
    entry::CALL_MESSAGES_MAX,
    intake::{Arrival, Intake, Numbered},
    message::decode,
};

/// How often in a row a queue that vanished is declared again.
const VANISHED_MAX: u32 = 5;

/// Starts the tasks of an intake.
pub(crate) fn start(shared: &Arc<Shared>, intake: &Arc<Intake>, url: String) {
    let (one, two) = (Arc::clone(shared), Arc::clone(intake));
    let at = url.clone();
    intake.add_task(tokio::spawn(async move { receive(&one, &two, &at).await }));
    let (one, two) = (Arc::clone(shared), Arc::clone(intake));
    let at = url.clone();
    intake.add_task(tokio::spawn(async move { delete(&one, &two, &at).await }));
    let (one, two) = (Arc::clone(shared), Arc::clone(intake));
    intake.add_task(tokio::spawn(async move { keep(&one, &two, &url).await }));
}

async fn receive(shared: &Shared, intake: &Intake, url: &str) {
    let mut backoff = Backoff::default();
    let mut vanished = 0;
    while intake.wait(Intake::room).await.is_some() {
        let asked = Instant::now();
        match poll(shared, url).await {
            Ok(arrivals) => {
                shared.status.up();
                backoff = Backoff::default();
                vanished = 0;
                intake.put(arrivals, shared.hidden_for());
                if intake.is_over() {
                    give_back(shared, intake, url).await;
                }
                // An emulator may answer at once that there is nothing.
                if asked.elapsed() < Duration::from_millis(1) {
                    tokio::task::yield_now().await;
                }
            }
            Err(Trouble::Missing(why)) => {
                vanished += 1;
                if vanished > VANISHED_MAX || !shared.declare_again(&intake.source).await {
                    let queue = &intake.queue;
                    intake.fail(format!(
                        "queue `{queue}` is not there any more (TDG-4032): {why}; start the service again, which \
                         declares it"
                    ));
                    return;
                }
                backoff.pause().await;
            }
            Err(why) if why.passes() => {
                shared.note(&why);
                debug!(queue = &*intake.queue, ?why, "receiving waits");
                backoff.pause().await;
            }
            Err(why) => {
                let what = format!("queue `{}` cannot be received from", intake.queue);
                intake.fail(why.into_error(&what).to_string());
                return;
            }
        }
    }
}

/// What to receive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Receive {
    /// How many messages at most; ten in any case.
    pub(crate) count: usize,
    /// How long to wait for the first.
    pub(crate) wait: Duration,
    /// For how long they are hidden from others.
    pub(crate) hidden: Duration,
}

/// One receive, which waits for messages.
async fn poll(shared: &Shared, url: &str) -> Result<Vec<Arrival>, Trouble> {
    let receive = Receive {
        count: CALL_MESSAGES_MAX,
        wait: shared.address.wait,
        hidden: shared.address.visibility,
    };
    let messages = receive_messages(shared, url, receive).await?;
    Ok(messages.into_iter().map(arrival).collect())
}

pub(crate) async fn receive_messages(
    shared: &Shared,
    url: &str,
    receive: Receive,
) -> Result<Vec<Message>, Trouble> {
    let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(receive.wait + CALL_TIMEOUT)
        .build();
    let count = receive.count.min(CALL_MESSAGES_MAX);
    let call = shared
        .clients
        .sqs
        .receive_message()
        .queue_url(url)
        .max_number_of_messages(i32::try_from(count).unwrap_or(1))
        .wait_time_seconds(seconds(receive.wait))
        .visibility_timeout(seconds(receive.hidden))
        .message_attribute_names("All")
        .message_system_attribute_names(MessageSystemAttributeName::All)
        .customize()
        .config_override(SqsConfig::default().timeout_config(timeouts));
    let answer = call.send().await.map_err(trouble)?;
    Ok(answer.messages.unwrap_or_default())
}

/// What a message says.
pub(crate) fn received(message: &Message) -> Received {
    let attributes = message.message_attributes.iter().flatten();
    let texts = attributes.map(|(name, value)| (name.as_str(), value.string_value.as_deref()));
    decode(message.body.as_deref().unwrap_or_default(), texts)
}

fn arrival(message: Message) -> Arrival {
    let received = received(&message);
    let system = message.attributes.unwrap_or_default();
    let receives = system.get(&MessageSystemAttributeName::ApproximateReceiveCount);
    Arrival {
        receipt: message.receipt_handle.unwrap_or_default(),
        sqs_id: message.message_id.unwrap_or_default(),
        receives: receives.and_then(|it| it.parse().ok()).unwrap_or(1),
        received,
    }
}

async fn delete(shared: &Shared, intake: &Intake, url: &str) {
    let mut backoff = Backoff::default();
    while let Some(next) = intake.wait(|it| it.deletions(CALL_MESSAGES_MAX)).await {
        if next.is_empty() {
            continue;
        }
        let failed = delete_batch(shared, url, &next).await;
        let (again, lost): (Vec<_>, Vec<_>) = failed.iter().partition(|(_, why)| why.passes());
        for (at, why) in lost {
            if let Some((number, _)) = next.get(*at) {
                warn!(
                    queue = &*intake.queue,
                    ?why,
                    "an acknowledged message could not be deleted: it comes again"
                );
                intake.lose(*number);
            }
        }
        for (at, (number, _)) in next.iter().enumerate() {
            if !failed.iter().any(|(failed, _)| *failed == at) {
                intake.lose(*number);
            }
        }
        if again.is_empty() {
            backoff = Backoff::default();
            continue;
        }
        if let Some((_, why)) = again.first() {
            shared.note(why);
        }
        let again = again.iter().filter_map(|(at, _)| next.get(*at));
        intake.delete_again(again.map(|(number, _)| *number).collect());
        intake.lose_what_is_visible();
        backoff.pause().await;
    }
}

/// Deletes these; which could not be, by their places.
async fn delete_batch(shared: &Shared, url: &str, next: &[Numbered]) -> Vec<(usize, Trouble)> {
    let receipts: Vec<&str> = next.iter().map(|(_, receipt)| &**receipt).collect();
    match delete_receipts(shared, url, &receipts).await {
        Ok(failed) => failed,
        Err(why) => (0..next.len()).map(|at| (at, why.clone())).collect(),
    }
}

/// Deletes at most ten; which could not be, by their places.
pub(crate) async fn delete_receipts(
    shared: &Shared,
    url: &str,
    receipts: &[&str],
) -> Result<Vec<(usize, Trouble)>, Trouble> {
    let mut call = shared.clients.sqs.delete_message_batch().queue_url(url);
    for (at, receipt) in receipts.iter().enumerate() {
        let entry = DeleteMessageBatchRequestEntry::builder()
            .id(at.to_string())
            .receipt_handle(*receipt);
        if let Ok(entry) = entry.build() {
            call = call.entries(entry);
        }
    }
    let answer = call.send().await.map_err(trouble)?;
    Ok(failures(answer.failed()))
}

fn failures(failed: &[aws_sdk_sqs::types::BatchResultErrorEntry]) -> Vec<(usize, Trouble)> {
    let each = failed.iter().map(|it| {
        let text = format!("{}: {}", it.code(), it.message().unwrap_or_default());
        let why = match of_code(it.code(), text) {
            Trouble::Invalid(text) if !it.sender_fault() => Trouble::Busy(text),
            why => why,
        };
        (it.id().parse().unwrap_or(usize::MAX), why)
    });
    each.collect()
}

/// Renews, gives back, and ends with the intake.
async fn keep(shared: &Shared, intake: &Intake, url: &str) {
    let pause = shared.address.visibility / 3;
    let mut renewal = Instant::now() + pause;
    loop {
        let handover = shared.address.handover;
        intake.wait(|it| it.to_keep(handover, renewal)).await;
        give_back(shared, intake, url).await;
        if intake.is_over() && intake.to_renew(Duration::MAX).is_empty() {
            return;
        }
        if renewal <= Instant::now() {
            renew(shared, intake, url).await;
            renewal = Instant::now() + pause;
        } else if intake.is_over() {
            // What is acknowledged stays hidden until it is deleted.
            let pause = Duration::from_millis(20);
            tokio::time::sleep(pause).await;
        }
    }
}

async fn renew(shared: &Shared, intake: &Intake, url: &str) {
    let all = intake.to_renew(shared.address.handling);
    for some in all.chunks(CALL_MESSAGES_MAX) {
        let receipts: Vec<&str> = some.iter().map(|(_, receipt)| &**receipt).collect();
        let asked = Instant::now();
        match change_visibility(shared, url, &receipts, shared.address.visibility).await {
            Ok(failed) => {
                let mut renewed = Vec::with_capacity(some.len());
                for (at, (number, _)) in some.iter().enumerate() {
                    let why = failed.iter().find(|(failed, _)| *failed == at);
                    match why.map(|(_, why)| why) {
                        None => renewed.push(*number),
                        Some(why) if why.passes() => {}
                        Some(why) => {
                            warn!(
                                queue = &*intake.queue,
                                ?why,
                                "a message is not ours any more: it comes again"
                            );
                            intake.lose(*number);
                        }
                    }
                }
                intake.renewed(&renewed, asked + shared.hidden_for());
            }
            Err(why) => {
                shared.note(&why);
                debug!(
                    queue = &*intake.queue,
                    ?why,
                    "messages could not be kept hidden"
                );
            }
        }
    }
    let lost = intake.lose_what_is_visible();
    if lost > 0 {
        warn!(
            queue = &*intake.queue,
            lost, "messages were being handled for too long, or could not be kept: they come again"
        );
    }
}

/// Makes what is not wanted here visible again, in its order.
async fn give_back(shared: &Shared, intake: &Intake, url: &str) {
    let all = intake.take_returning();
    for some in all.chunks(CALL_MESSAGES_MAX) {
        let receipts: Vec<&str> = some.iter().map(|receipt| &**receipt).collect();
        // What fails becomes visible by itself a little later.
        match change_visibility(shared, url, &receipts, Duration::ZERO).await {
            Ok(failed) if failed.is_empty() => {}
            Ok(failed) => debug!(queue = &*intake.queue, ?failed, "some were not given back"),
            Err(why) => {
                shared.note(&why);
                debug!(queue = &*intake.queue, ?why, "messages were not given back");
            }
        }
    }
}

/// Changes for how long at most ten are hidden; of which that could not be, by their places.
pub(crate) async fn change_visibility(
    shared: &Shared,
    url: &str,
    receipts: &[&str],
    to: Duration,
) -> Result<Vec<(usize, Trouble)>, Trouble> {
    let sqs = &shared.clients.sqs;
    let mut call = sqs.change_message_visibility_batch().queue_url(url);
    for (at, receipt) in receipts.iter().enumerate() {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
            .id(at.to_string())
            .receipt_handle(*receipt)
            .visibility_timeout(i32::try_from(to.as_secs()).unwrap_or(i32::MAX));
        if let Ok(entry) = entry.build() {
            call = call.entries(entry);
        }
    }
    let answer = call.send().await.map_err(trouble)?;
    Ok(failures(answer.failed()))
}
