//! What the metrics mean, for recorders that show it.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes every metric of this crate. Doing it again changes nothing.
pub(crate) fn describe() {
    describe_counter!(
        "tidings_messages_total",
        "Messages by queue and by what became of them."
    );
    describe_histogram!(
        "tidings_handler_duration_seconds",
        Unit::Seconds,
        "How long handling a delivery took, with all its attempts in the process."
    );
    describe_histogram!(
        "tidings_batch_messages",
        "How many messages a batch had, of those that had several."
    );
    describe_gauge!(
        "tidings_deferred_messages",
        "Messages that wait in the store, deferred or parked."
    );
    describe_gauge!(
        "tidings_outbox_unsent",
        "Messages that are ready to be published."
    );
    describe_gauge!(
        "tidings_outbox_held",
        "Messages that the broker did not take: nobody listens, or a queue refused them."
    );
    describe_gauge!(
        "tidings_outbox_oldest_held_age_seconds",
        Unit::Seconds,
        "The age of the oldest message that the broker did not take."
    );
    describe_gauge!(
        "tidings_outbox_set_aside",
        "Messages that cannot be sent as they are."
    );
    describe_gauge!(
        "tidings_outbox_oldest_age_seconds",
        Unit::Seconds,
        "The age of the oldest message that is ready to be published."
    );
    describe_counter!(
        "tidings_outbox_sent_total",
        "Messages that the broker confirmed."
    );
    describe_counter!(
        "tidings_replay_sent_total",
        "Events of the past that were sent to a consumer."
    );
    describe_gauge!(
        "tidings_circuit_breaker_state",
        "0: calls go through; 1: one call tries; 2: calls are refused."
    );
}
