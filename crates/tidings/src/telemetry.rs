//! What the metrics mean, for recorders that show it.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes every metric of this crate. Doing it again changes nothing.
pub(crate) fn describe() {
    describe_counter!(
        "tidings_messages_total",
        "Deliveries by queue and by how they ended."
    );
    describe_histogram!(
        "tidings_handler_duration_seconds",
        Unit::Seconds,
        "How long handling a delivery took, with all its attempts in the process."
    );
    describe_gauge!(
        "tidings_outbox_unsent",
        "Messages that the broker has not confirmed yet."
    );
    describe_gauge!(
        "tidings_outbox_oldest_age_seconds",
        Unit::Seconds,
        "The age of the oldest message that the broker has not confirmed yet."
    );
    describe_counter!(
        "tidings_outbox_sent_total",
        "Messages that the broker confirmed."
    );
    describe_gauge!(
        "tidings_circuit_breaker_state",
        "0: calls go through; 1: one call tries; 2: calls are refused."
    );
}
