//! Copies of what came in: with their history, and without what was for the original alone.

use tidings_core::{
    Attempt, Delivery, FAILURES_HEADER, HISTORY_HEADER, QUEUE_HEADER, REASON_HEADER,
    history_as_json, shortened_reason,
};
use tidings_wire::{Properties, ShortStr, Table, TableBuilder, Value};

use super::{DELIVERY_COUNT, OURS, PERSISTENT, fitting, is_of_broker};

/// Why a delivery is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CopyFor<'a> {
    /// It is to be handled later and did not fail.
    Later,
    /// It failed and is to be handled again.
    Retry(&'a Attempt),
    /// It failed for good; its queue, as dead letters name it.
    DeadLetters(&'a Attempt, &'a str),
}

/// The properties of a copy of `delivery`, whose own are `original`: as they came, whatever program
/// wrote them, with the failure added to the history, and without what would make the broker treat
/// the copy specially:
///
/// * an expiration (a dead letter would vanish when it runs out),
/// * a user id (the broker refuses one that is not ours),
/// * `CC` and `BCC` (the copy is for one queue alone),
/// * a count of deliveries (it begins anew),
/// * the broker's own `x-death` unless it is for good (a retry would look like a loop to it).
///
/// The reasons in the history are cut so that all fits into `bytes_max`, if that is possible.
pub(crate) fn properties_of_copy(
    original: &Properties,
    delivery: &Delivery,
    copy_for: CopyFor<'_>,
    bytes_max: usize,
) -> Properties {
    let mut properties = original.decode();
    properties.delivery_mode = Some(PERSISTENT);
    properties.expiration = None;
    properties.user_id = None;
    let mut kept = Table::builder();
    for (name, value) in properties.headers.iter().flat_map(Table::iter) {
        if !is_dropped(&name.to_str_lossy(), copy_for) {
            kept.push(&name, &value);
        }
    }
    let made = fitting(bytes_max, |reason_bytes_max| {
        let mut headers = kept.clone();
        push_failure(&mut headers, delivery, copy_for, reason_bytes_max);
        let mut properties = properties.clone();
        properties.headers = Some(headers.build());
        Ok(properties.encode())
    });
    made.unwrap_or_else(|_: String| properties.encode())
}

fn push_failure(
    headers: &mut TableBuilder,
    delivery: &Delivery,
    copy_for: CopyFor<'_>,
    reason_bytes_max: usize,
) {
    let (CopyFor::Retry(attempt) | CopyFor::DeadLetters(attempt, _)) = copy_for else {
        return;
    };
    let mut push = |name: &'static str, value: Value| {
        headers.push(&ShortStr::from_static(name), &value);
    };
    let mut history = delivery.history.clone();
    attempt.clone().add_to(&mut history);
    let failures = i64::from(delivery.failures.saturating_add(1));
    push(FAILURES_HEADER, failures.into());
    push(
        HISTORY_HEADER,
        history_as_json(&history, reason_bytes_max).into(),
    );
    if let CopyFor::DeadLetters(_, queue) = copy_for {
        let reason = shortened_reason(&attempt.reason, reason_bytes_max);
        push(REASON_HEADER, Value::from(&*reason));
        push(QUEUE_HEADER, queue.into());
    }
}

fn is_dropped(header: &str, copy_for: CopyFor<'_>) -> bool {
    let is_replaced = !matches!(copy_for, CopyFor::Later) && OURS.contains(&header);
    let is_final = matches!(copy_for, CopyFor::DeadLetters(..));
    is_replaced
        || matches!(header, "CC" | "BCC" | DELIVERY_COUNT)
        || (!is_final && is_of_broker(header))
}
