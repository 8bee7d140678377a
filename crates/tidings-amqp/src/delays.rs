//! Where a message waits that is to come again later: one ladder of delays for all consumers.
//!
//! ```text
//!  copy, routing key `Q` ──► tidings.delay.D ──► tidings.delay.D ── its time ends ──► tidings.delayed ──► Q
//!                            (fanout exchange)   (quorum queue)                       (direct exchange)
//!                                                                                           │ `Q` is gone
//!                                                                                           ▼
//!                                                                                 tidings.undeliverable
//! ```
//!
//! The name of the consumer's queue is the routing key all the way, so that one queue for each delay
//! serves everybody. The queues are quorum queues that dead-letter at least once: a classic one on
//! RabbitMQ forgets the message before its target has stored it. Such a queue waits for a target
//! that is missing, and everybody behind would wait with it; so what has no target any more goes to
//! the queue `tidings.undeliverable`, with its history and its routing key.

use std::time::Duration;

use tidings_wire::{ShortStr, Table, Value};

use crate::parts::{Part, binding, exchange, queue, table};

/// The delays there are, in milliseconds: the steps of the toolkit's retry policy. Every other is
/// rounded up.
const LADDER_MS: [u32; 17] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000,
    600_000, 1_800_000, 3_600_000,
];

/// The longest delay.
pub(crate) const DELAY_MAX: Duration = Duration::from_millis(LADDER_MS[LADDER_MS.len() - 1] as u64);

/// The exchange from which what has waited goes back, by the name of its queue.
const DELAYED: &str = "tidings.delayed";
/// The exchange and the queue of what has waited and has no queue any more.
const UNDELIVERABLE: &str = "tidings.undeliverable";

/// The step for `delay`, in milliseconds: not less, unless it is longer than [`DELAY_MAX`].
pub(crate) fn step(delay: Duration) -> u32 {
    let fits = |ms: &&u32| delay <= Duration::from_millis(u64::from(**ms));
    let step = LADDER_MS.iter().find(fits);
    *step.unwrap_or(&LADDER_MS[LADDER_MS.len() - 1])
}

/// The exchange, and the queue, of a step.
pub(crate) fn name_of(step_ms: u32) -> String {
    format!("tidings.delay.{step_ms}")
}

/// What all steps lead to. It has to be there before them.
pub(crate) fn ends() -> Vec<Part> {
    let alternate = table([("alternate-exchange", Value::from(UNDELIVERABLE))]);
    let undeliverable = ShortStr::from_static(UNDELIVERABLE);
    vec![
        Part::Exchange(exchange(undeliverable.clone(), "fanout", Table::default())),
        Part::Queue(queue(undeliverable.clone(), Table::default())),
        Part::Binding(binding(undeliverable.clone(), undeliverable, None)),
        Part::Exchange(exchange(
            ShortStr::from_static(DELAYED),
            "direct",
            alternate,
        )),
    ]
}

/// A step of the ladder.
pub(crate) fn rung(step_ms: u32) -> Vec<Part> {
    let name = ShortStr::truncated(&name_of(step_ms));
    let arguments = table([
        ("x-queue-type", Value::from("quorum")),
        ("x-dead-letter-exchange", Value::from(DELAYED)),
        ("x-dead-letter-strategy", Value::from("at-least-once")),
        // At least once asks for it; the queue has no limit.
        ("x-overflow", Value::from("reject-publish")),
        ("x-message-ttl", Value::I64(step_ms.into())),
    ]);
    vec![
        Part::Queue(queue(name.clone(), arguments)),
        Part::Exchange(exchange(name.clone(), "fanout", Table::default())),
        Part::Binding(binding(name.clone(), name, None)),
    ]
}

/// The way back for the queue `consumer`.
pub(crate) fn way_back(consumer: ShortStr) -> Part {
    let key = Some(consumer.clone());
    Part::Binding(binding(consumer, ShortStr::from_static(DELAYED), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_the_next_step_and_never_cut_short() {
        let check = |delay_us: u64, expected: u32| {
            assert_eq!(
                step(Duration::from_micros(delay_us)),
                expected,
                "{delay_us}"
            );
        };
        check(1, 10);
        check(10_000, 10);
        check(10_001, 20);
        check(1_000_000, 1_000);
        check(1_000_001, 2_000);
        check(3_600_000_000, 3_600_000);
        // But for the longest.
        check(u64::MAX, 3_600_000);
        assert_eq!(DELAY_MAX, Duration::from_secs(3_600));
    }
}
