//! The conformance suite of the port [`Store`]: what its doc comments promise, as cases that run
//! against every implementation.
//!
//! Whoever writes a store implements [`Subject`] for it, so that the suite can write some data of
//! an application through a transaction, and runs [`conformance`] in a test:
//!
//! ```no_run
//! use std::{any::Any, sync::Arc};
//!
//! use tidings_core::{BoxFuture, Store, StoreError, Transaction};
//! use tidings_testing::store::{Subject, conformance};
//! # use tidings_core::{Commit, Committed, Record, RecordId};
//! # struct MyTransaction;
//! # impl MyTransaction {
//! #     async fn insert_note(&mut self, _: &str) -> Result<(), StoreError> { Ok(()) }
//! # }
//! # impl Transaction for MyTransaction {
//! #     fn read<'a>(
//! #         &'a mut self,
//! #         _: &'a [RecordId],
//! #     ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> { unreachable!() }
//! #     fn commit(
//! #         self: Box<Self>,
//! #         _: Commit,
//! #     ) -> BoxFuture<'static, Result<Committed, StoreError>> { unreachable!() }
//! #     fn rollback(self: Box<Self>) -> BoxFuture<'static, ()> { unreachable!() }
//! # }
//! # async fn committed_notes(_: &Arc<dyn Store>) -> Vec<String> { unreachable!() }
//! # async fn fresh_database() -> Arc<dyn Store> { unreachable!() }
//!
//! struct MySubject(Arc<dyn Store>);
//!
//! impl Subject for MySubject {
//!     fn store(&self) -> Arc<dyn Store> {
//!         Arc::clone(&self.0)
//!     }
//!
//!     fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>> {
//!         Box::pin(async { None })
//!     }
//!
//!     fn write<'a>(
//!         &'a self,
//!         transaction: &'a mut dyn Transaction,
//!         note: &'a str,
//!     ) -> BoxFuture<'a, Result<(), StoreError>> {
//!         let transaction: &mut dyn Any = transaction;
//!         let transaction: &mut MyTransaction = transaction.downcast_mut().expect("my own");
//!         Box::pin(transaction.insert_note(note))
//!     }
//!
//!     fn notes(&self) -> BoxFuture<'_, Vec<String>> {
//!         Box::pin(committed_notes(&self.0))
//!     }
//! }
//!
//! // In a `#[tokio::test(flavor = "multi_thread")]`:
//! # async fn test() {
//! conformance(async || MySubject(fresh_database().await)).await;
//! # }
//! ```
//!
//! The suite does not ask that a piece of work that panics in [`Store::run`] leaves the others
//! alone: the default implementation runs one after the other and lets a panic through. Stores that
//! run batches in a transaction of their own test it themselves.

mod commits;
mod deferred;
mod known;
mod lanes;
mod log;
mod order;
mod outbox;
mod records;
mod support;
mod unsent;

use std::{sync::Arc, time::Duration};

use tidings_core::{BoxFuture, Claim, Store, StoreError, Transaction};
use tokio::time::timeout;

/// The longest that one case may take.
const CASE_MAX: Duration = Duration::from_secs(60);

/// An empty store, and what the suite cannot do through the port.
pub trait Subject: Send + Sync + 'static {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// The same database as another process would have it. `None` if there cannot be one.
    fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>>;

    /// Writes `note` through a transaction of this store.
    fn write<'a>(
        &'a self,
        transaction: &'a mut dyn Transaction,
        note: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The notes that are committed, sorted.
    fn notes(&self) -> BoxFuture<'_, Vec<String>>;

    /// Overwrites the metadata of a stored message with something that nobody can read. False if
    /// that cannot be done here (the default): then the cases that need it are skipped, and say so.
    fn damage<'a>(&'a self, what: Damage<'a>) -> BoxFuture<'a, bool> {
        let _ = what;
        Box::pin(async { false })
    }
}

/// A stored message.
#[derive(Debug, Clone, Copy)]
pub enum Damage<'a> {
    /// That of the outbox row at this position.
    Outbox(i64),
    /// That of an inbox row that waits.
    Inbox(&'a Claim),
    /// That of the event at this position of the log.
    Log(i64),
}

/// Runs every case, each on a store that `fresh` makes. Panics at the first that fails.
pub async fn conformance<S: Subject>(fresh: impl AsyncFn() -> S) {
    macro_rules! run {
        ($($part:ident { $($case:ident)* })*) => {$($(
            eprintln!("store case: {}", stringify!($case).replace('_', " "));
            let subject = Arc::new(fresh().await);
            let case = Box::pin($part::$case(subject));
            if timeout(CASE_MAX, case).await.is_err() {
                panic!("{} took longer than {CASE_MAX:?}", stringify!($case));
            }
        )*)*};
    }
    run! {
        commits {
            a_commit_is_inbox_row_writes_messages_and_records_together
            a_message_is_handled_once_and_a_duplicate_writes_nothing
            a_delivery_of_a_message_that_has_a_row_is_a_duplicate_whatever_its_state
            of_many_who_commit_one_message_at_once_one_wins
            one_entry_that_is_refused_leaves_nothing_of_its_commit
            a_rollback_leaves_nothing
            a_dropped_transaction_leaves_nothing
            an_empty_commit_is_done
            works_of_a_batch_do_not_harm_each_other
            works_of_a_batch_claim_each_message_once
            a_work_with_many_messages_is_refused_by_the_one_that_is_known
            what_cannot_be_stored_is_invalid_and_harms_nothing
        }
        known {
            look_answers_each_question_and_changes_nothing
            handled_rows_are_forgotten_by_consumer_and_age
            a_claim_holds_for_its_whole_window_while_old_ones_are_forgotten
            rows_that_wait_or_are_dead_are_not_forgotten
            a_redrive_reopens_a_dead_message_once
            processes_share_what_is_known_of_messages
        }
        deferred {
            a_deferred_message_is_due_after_its_time_as_it_was
            those_that_are_due_longest_come_first_and_no_more_than_asked
            a_due_message_goes_to_one_worker
            a_lease_that_ends_makes_it_due_again_and_counts_the_start
            a_renewed_lease_lasts
            a_released_message_was_not_started
            a_commit_over_a_lease_decides_what_becomes_of_it
            a_lease_that_is_lost_settles_nothing
            a_leased_message_cannot_be_parked
            what_waits_is_counted_up_to_a_limit
            what_is_not_handled_is_listed_in_pages
            consumers_that_have_rows_are_listed
            what_is_deferred_can_be_rescheduled_unless_leased
            what_waits_or_is_dead_can_be_discarded_unless_leased
            a_message_that_cannot_be_read_is_due_with_its_reason
        }
        order {
            a_message_behind_another_of_its_key_is_refused_and_parked
            parking_is_refused_when_nothing_is_before
            those_of_a_key_become_due_one_after_the_other
            a_message_that_is_deferred_again_keeps_its_key
            a_dead_message_that_does_not_block_lets_the_next_go_on
            a_dead_message_that_blocks_is_waited_for_until_its_redrive_ends
            a_dead_message_that_blocks_is_waited_for_until_it_is_discarded
            a_redrive_waits_for_its_key_too
            discarding_lets_only_the_next_go_on
            keys_and_groups_do_not_disturb_each_other
            a_group_orders_messages_of_several_consumers
            entries_of_one_commit_keep_their_order
            of_many_who_commit_with_one_key_one_goes_ahead
            no_message_of_a_key_is_forgotten_behind_another
        }
        outbox {
            a_message_comes_out_as_it_went_in
            next_gives_the_oldest_of_its_lanes_and_no_more_than_asked
            next_leaves_out_what_is_in_flight
            a_late_commit_is_not_skipped
            concurrent_writers_and_a_relay_lose_nothing_and_keep_order_per_key
            what_commits_later_with_a_key_has_a_later_place
            confirmed_removes_those_rows_and_no_other
            committed_wakes_after_a_commit_with_messages
            processes_share_messages_and_lanes
        }
        unsent {
            held_rows_are_left_out_and_come_in_order_when_asked_for
            a_row_is_behind_if_one_with_its_key_is_held_for_its_destination
            held_destinations_are_those_of_the_lanes
            who_does_not_have_the_lane_holds_nothing_and_sets_nothing_aside
            rows_set_aside_wait_for_an_operator
            rows_that_are_not_ready_are_listed_in_pages
            a_message_that_cannot_be_read_stops_no_other
            stats_say_how_full_the_outbox_is
            counts_of_the_outbox_stop_at_a_limit
        }
        lanes {
            one_relay_has_all_lanes
            relays_have_equal_shares
            a_relay_that_leaves_gives_its_lanes_to_the_others
            a_relay_that_dies_loses_its_lanes_when_its_lease_ends
            no_lane_belongs_to_two_relays
        }
        records {
            a_record_says_what_was_written_and_counts_its_writes
            a_record_that_is_not_as_expected_fails_the_commit
            a_commit_writes_many_records_in_all_ways_or_none
            of_many_who_expect_one_version_one_writes
            a_record_read_in_a_transaction_is_locked
            due_records_go_to_one_worker_under_a_lease
            a_lease_on_a_record_ends
            next_due_says_how_long_until_a_record_is_due
            records_are_listed_by_kind_label_and_age_in_pages
            kinds_of_records_are_listed
        }
        log {
            nothing_is_kept_unless_asked_for
            events_are_kept_as_they_were_committed_and_nothing_else_is
            the_log_is_read_in_pages
            a_reader_of_the_log_misses_nothing_while_it_is_written
            events_that_are_old_are_dropped_and_young_ones_stay
            an_event_that_cannot_be_read_says_why
            processes_share_the_log
        }
    }
}
