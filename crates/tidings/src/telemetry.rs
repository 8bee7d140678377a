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
    describe_sagas();
}

fn describe_sagas() {
    describe_gauge!(
        "tidings_sagas_open",
        "Sagas that have not ended, by version of their function and state."
    );
    describe_gauge!(
        "tidings_sagas_oldest_age_seconds",
        Unit::Seconds,
        "The age of the oldest saga that has not ended."
    );
    describe_counter!("tidings_sagas_total", "Sagas that ended, by how.");
    describe_histogram!(
        "tidings_saga_step_duration_seconds",
        Unit::Seconds,
        "From a step's command to its answer."
    );
    describe_counter!(
        "tidings_saga_late_replies_total",
        "Answers that say it is done, for which nobody waits any more."
    );
    describe_counter!(
        "tidings_saga_ignored_total",
        "What changed nothing: answers that came twice, signals that nobody took."
    );
    describe_counter!(
        "tidings_saga_mismatches_total",
        "Turns in which a function went another way than its journal."
    );
    describe_counter!(
        "tidings_saga_conflicts_total",
        "Turns of a clock or an operator that an answer overtook."
    );
    describe_histogram!(
        "tidings_saga_timer_lag_seconds",
        Unit::Seconds,
        "How long after its time a saga was told that it is due."
    );
    describe_histogram!(
        "tidings_saga_journal_bytes",
        Unit::Bytes,
        "The size of journals as they are written."
    );
}
