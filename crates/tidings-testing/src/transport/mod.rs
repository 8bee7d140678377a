//! The conformance suite of the port [`Transport`]: what its doc comments promise, as cases that
//! run against every implementation.
//!
//! Each case has topics and queues of its own, with names nobody used before, so the suite can run
//! on a broker that others use too.
//!
//! What an engine can do beyond the contract is in its [`Features`]: the suite shows what an engine
//! claims, and relies on nothing that it does not. A case that needs what is not claimed says on
//! standard error that it is skipped. That messages survive a restart of the broker
//! ([`Features::durable`]) cannot be shown from here: an adapter that claims it shows it with a
//! broker of its own that it kills.
//!
//! ```no_run
//! # use tidings_core::Transport;
//! # async fn connect_to_my_broker() -> std::sync::Arc<dyn Transport> { unreachable!() }
//! // In a `#[tokio::test(flavor = "multi_thread")]`:
//! # async fn test() {
//! tidings_testing::transport::conformance(async || connect_to_my_broker().await).await;
//! # }
//! ```

mod delivering;
mod features;
mod groups;
mod letters;
mod partitions;
mod publishing;
mod settling;
mod support;
mod table;

use std::{sync::Arc, time::Duration};

use tidings_core::Transport;
#[cfg(doc)]
use tidings_core::{Features, PublishErrorKind};
use tokio::time::timeout;

use support::Case;
pub use table::{assert_documented, rows};

/// The longest that one case may take.
const CASE_MAX: Duration = Duration::from_secs(60);

/// Runs every case. `connect` makes a new connection, always to the same broker. Panics at the
/// first case that fails.
pub async fn conformance<T: Transport>(connect: impl AsyncFn() -> T) {
    run(&connect).await;
    eprintln!("  skipped: a full queue refuses (see `conformance_with_limits`)");
}

/// As [`conformance`], for brokers whose queues can be limited from outside: `limit` makes the
/// queue of that name refuse what is published beyond that many messages. Then the suite also shows
/// that a refusal is [`PublishErrorKind::Refused`] and harms no other message.
pub async fn conformance_with_limits<T: Transport>(
    connect: impl AsyncFn() -> T,
    limit: impl AsyncFn(&str, usize),
) {
    run(&connect).await;
    let one: Arc<dyn Transport> = Arc::new(connect().await);
    let other: Arc<dyn Transport> = Arc::new(connect().await);
    let case = Case::new(Arc::clone(&one), Arc::clone(&other));
    eprintln!("transport case: a full queue refuses and the others take");
    let case = publishing::a_full_queue_refuses_and_the_others_take(case, limit);
    if timeout(CASE_MAX, Box::pin(case)).await.is_err() {
        panic!("a_full_queue_refuses_and_the_others_take took longer than {CASE_MAX:?}");
    }
    one.close().await;
    other.close().await;
}

async fn run<T: Transport>(connect: &impl AsyncFn() -> T) {
    macro_rules! run {
        ($($part:ident { $($case:ident)* })*) => {$($(
            eprintln!("transport case: {}", stringify!($case).replace('_', " "));
            let case = async {
                let one: Arc<dyn Transport> = Arc::new(connect().await);
                let other: Arc<dyn Transport> = Arc::new(connect().await);
                let case = Case::new(Arc::clone(&one), Arc::clone(&other));
                Box::pin($part::$case(case)).await;
                one.close().await;
                other.close().await;
            };
            if timeout(CASE_MAX, case).await.is_err() {
                panic!("{} took longer than {CASE_MAX:?}", stringify!($case));
            }
        )*)*};
    }
    run! {
        publishing {
            a_message_comes_as_it_went
            every_queue_of_a_topic_gets_each_message
            a_queue_gets_messages_in_the_order_they_were_published
            each_message_of_a_batch_has_its_own_outcome
            declaring_again_changes_nothing
            a_queue_that_leaves_a_topic_keeps_what_it_has_and_gets_no_more
            large_bodies_and_large_batches_go_through
            a_closed_transport_takes_nothing
        }
        delivering {
            a_queue_that_is_not_there_cannot_be_subscribed_to
            no_more_than_the_prefetch_is_out
            consumers_of_a_queue_share_its_messages
            what_a_lost_connection_held_is_delivered_again
            a_delivery_whose_connection_is_gone_is_stale
            a_dropped_subscription_holds_nothing_back
            a_dropped_delivery_comes_back_at_once
            a_delivery_that_is_dropped_late_comes_back_too
        }
        settling {
            a_requeued_message_comes_back_to_its_place_at_once
            requeued_messages_keep_their_order
            a_retry_comes_after_its_delay_with_its_history
            messages_sent_to_one_delay_come_back_in_order
            a_deferred_message_has_not_failed
            the_history_keeps_the_first_and_the_latest_attempts
            a_dead_letter_says_why
            a_dead_letter_looks_the_same_whichever_way_it_came
        }
        groups {
            more_partitions_than_claimed_are_refused
            a_key_goes_to_one_partition_and_each_gets_some
            a_key_is_with_one_partition_at_a_time
            what_has_no_key_goes_to_any
            all_types_of_a_key_come_in_the_order_they_were_published
            groups_and_queues_of_a_topic_get_each_message
            declaring_a_group_again_takes_nothing_away
            one_subscription_at_a_time_receives_a_partition
            a_partition_goes_on_elsewhere_when_its_connection_closes
            a_delivery_of_a_dropped_ordered_stream_is_stale
            a_partition_passes_from_hand_to_hand_and_keeps_its_order
            a_partition_keeps_its_order_whatever_the_prefetch
            what_is_given_back_comes_first_in_its_partition
            no_more_than_the_prefetch_is_out_of_a_partition
            a_dead_letter_of_a_group_is_beside_its_name
            the_longest_names_of_a_group_can_be_used
        }
        letters {
            looking_at_dead_letters_changes_nothing
            dead_letters_are_held_by_one_at_a_time
            removed_dead_letters_are_gone_and_the_others_stay
            what_is_sent_back_goes_to_its_queue_or_partition
        }
        features {
            deliveries_are_counted
            the_longest_names_can_be_used
            the_largest_body_goes_through_and_a_larger_one_never
        }
    }
}
