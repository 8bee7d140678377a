//! Order per key: of the messages of a key one goes ahead, the others wait behind it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidings_core::{Committed, Fate, InboxEntry, InboxState, OrderKey, Refusal, Store};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Subject, support::*};

/// Messages of one key: the first is deferred and due, the others are parked behind it.
async fn queue_up(store: &Arc<dyn Store>, of: &str, messages: &[&str]) {
    for (place, message) in messages.iter().enumerate() {
        let fate = if place == 0 { deferred() } else { parked() };
        done(store, inbox([ordered(message, of, fate)])).await;
    }
}

pub(super) async fn a_message_behind_another_of_its_key_is_refused_and_parked(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    queue_up(&store, "key", &["1"]).await;
    for fate in [Fate::Handled, deferred(), dead(false), dead(true)] {
        refused(&store, ordered("2", "key", fate), Refusal::Behind).await;
    }
    assert_eq!(state(&store, "2").await, None);
    done(&store, inbox([ordered("2", "key", parked())])).await;
    refused(&store, ordered("3", "key", Fate::Handled), Refusal::Behind).await;
    take_one(&store, "1").await;
    refused(&store, ordered("3", "key", Fate::Handled), Refusal::Behind).await;
    assert_eq!(state(&store, "2").await, Some(InboxState::Parked));
}

pub(super) async fn parking_is_refused_when_nothing_is_before(subject: Arc<impl Subject>) {
    let store = subject.store();
    let handled = ordered("1", "key", Fate::Handled);
    done(&store, inbox([handled])).await;
    done(&store, inbox([ordered("2", "key", dead(false))])).await;
    refused(&store, ordered("3", "key", parked()), Refusal::Free).await;
    let unordered = store.commit(inbox([entry("3", parked())])).await;
    let is_done = matches!(unordered, Ok(Committed::Done));
    assert!(!is_done, "without a key there is nothing to wait for");
    assert_eq!(state(&store, "3").await, None);
    done(&store, inbox([ordered("3", "key", Fate::Handled)])).await;
}

pub(super) async fn those_of_a_key_become_due_one_after_the_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    queue_up(&store, "key", &["1", "2", "3"]).await;
    for message in ["1", "2", "3"] {
        let due = take_one(&store, message).await;
        assert_eq!(due.order, Some(key("key")));
        assert!(due.envelope.is_ok(), "it was kept while it waited");
        assert_eq!((due.failures, due.history.len()), (1, 1));
        done(&store, inbox([settled(&due, Fate::Handled)])).await;
    }
    assert!(unhandled(&store).await.is_empty());
    done(&store, inbox([ordered("4", "key", Fate::Handled)])).await;
}

pub(super) async fn a_message_that_is_deferred_again_keeps_its_key(subject: Arc<impl Subject>) {
    let store = subject.store();
    queue_up(&store, "key", &["1", "2"]).await;
    let first = take_one(&store, "1").await;
    let released = store.deferred().release(&leases(&[first]), LONG).await;
    released.expect("it is released");
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` may not pass");
    let moved = store
        .deferred()
        .reschedule(&[claim("1")], Duration::ZERO)
        .await;
    assert_eq!(moved.expect("it is rescheduled"), 1);
    let first = take_one(&store, "1").await;
    let later = Fate::Deferred(waiting(LONG));
    done(&store, inbox([settled(&first, later)])).await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` may not pass");
    refused(&store, ordered("3", "key", Fate::Handled), Refusal::Behind).await;
}

pub(super) async fn a_dead_message_that_does_not_block_lets_the_next_go_on(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    queue_up(&store, "key", &["1", "2"]).await;
    let due = take_one(&store, "1").await;
    done(&store, inbox([settled(&due, dead(false))])).await;
    let due = take_one(&store, "2").await;
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
    done(&store, inbox([ordered("3", "key", Fate::Handled)])).await;
    assert_eq!(state(&store, "1").await, Some(InboxState::Dead));
}

pub(super) async fn a_dead_message_that_blocks_is_waited_for_until_its_redrive_ends(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    queue_up(&store, "key", &["1", "2"]).await;
    let due = take_one(&store, "1").await;
    done(&store, inbox([settled(&due, dead(true))])).await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` waits");
    refused(&store, ordered("3", "key", Fate::Handled), Refusal::Behind).await;
    done(&store, inbox([ordered("3", "key", parked())])).await;

    // It does not wait for itself, nor for those behind it.
    let redrive = |number, fate| redriven(number, ordered("1", "key", fate));
    refused(&store, redrive(1, parked()), Refusal::Free).await;
    done(&store, inbox([redrive(1, deferred())])).await;
    let due = take_one(&store, "1").await;
    done(&store, inbox([settled(&due, dead(true))])).await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` still waits");
    done(&store, inbox([redrive(2, dead(true))])).await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` still waits");
    done(&store, inbox([redrive(3, Fate::Handled)])).await;
    let due = take_one(&store, "2").await;
    done(&store, inbox([settled(&due, dead(true))])).await;

    let second = redriven(1, ordered("2", "key", dead(false)));
    done(&store, inbox([second])).await;
    take_one(&store, "3").await;
}

pub(super) async fn a_dead_message_that_blocks_is_waited_for_until_it_is_discarded(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    done(&store, inbox([ordered("1", "key", dead(true))])).await;
    done(&store, inbox([ordered("2", "key", parked())])).await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`2` waits");
    let discarded = store.deferred().discard(&[claim("1")]).await;
    assert_eq!(discarded.expect("it is discarded"), 1);
    let due = take_one(&store, "2").await;
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
    done(&store, inbox([ordered("3", "key", Fate::Handled)])).await;
}

pub(super) async fn a_redrive_waits_for_its_key_too(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([ordered("1", "key", dead(false))])).await;
    queue_up(&store, "key", &["2"]).await;
    let redrive = |fate| redriven(1, ordered("1", "key", fate));
    refused(&store, redrive(Fate::Handled), Refusal::Behind).await;
    assert_eq!(state(&store, "1").await, Some(InboxState::Dead));
    done(&store, inbox([redrive(parked())])).await;
    assert_eq!(state(&store, "1").await, Some(InboxState::Parked));
    let due = take_one(&store, "2").await;
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
    let due = take_one(&store, "1").await;
    assert!(due.envelope.is_ok(), "the redrive brought it");
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
}

pub(super) async fn discarding_lets_only_the_next_go_on(subject: Arc<impl Subject>) {
    let store = subject.store();
    let discard = async |message| {
        let claims = [claim(message)];
        let count = store.deferred().discard(&claims).await;
        assert_eq!(count.expect("it is discarded"), 1);
    };
    let passed = ordered("0", "key", dead(false));
    done(&store, inbox([passed])).await;
    queue_up(&store, "key", &["1", "2", "3", "4"]).await;
    discard("2").await;
    let first = take_one(&store, "1").await;
    let later = Fate::Deferred(waiting(LONG));
    done(&store, inbox([settled(&first, later)])).await;
    discard("0").await;
    assert!(take(&store, LONG, 10).await.is_empty(), "`1` is not done");
    discard("1").await;
    let third = take_one(&store, "3").await;

    // The same where the first is dead and blocks.
    done(&store, inbox([settled(&third, dead(true))])).await;
    let mut another = ordered("passed", "key", dead(false));
    refused(&store, another.clone(), Refusal::Behind).await;
    another.order = Some(key("another key"));
    done(
        &store,
        inbox([another, ordered("first", "another key", dead(true))]),
    )
    .await;
    let waits = ordered("waits", "another key", parked());
    done(&store, inbox([waits])).await;
    discard("passed").await;
    assert!(take(&store, LONG, 10).await.is_empty(), "both keys block");
}

pub(super) async fn keys_and_groups_do_not_disturb_each_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    queue_up(&store, "key", &["1", "2"]).await;
    queue_up(&store, "another key", &["3", "4"]).await;
    let other_group = InboxEntry {
        order: Some(OrderKey {
            group: "another group".into(),
            key: "key".into(),
        }),
        ..entry("5", Fate::Handled)
    };
    done(&store, inbox([other_group])).await;
    done(&store, inbox([entry("6", Fate::Handled)])).await;
    done(&store, inbox([ordered("7", "a third key", Fate::Handled)])).await;
    done(&store, inbox([ordered("8", "", Fate::Handled)])).await;

    let mut due = take(&store, LONG, 10).await;
    due.sort_by(|one, other| one.claim.cmp(&other.claim));
    assert_eq!(ids(&due), ["1", "3"], "the first of each key");
    done(&store, inbox([settled(&due[1], Fate::Handled)])).await;
    take_one(&store, "4").await;
    assert_eq!(state(&store, "2").await, Some(InboxState::Parked));
    done(&store, inbox([settled(&due[0], Fate::Handled)])).await;
    take_one(&store, "2").await;
}

pub(super) async fn a_group_orders_messages_of_several_consumers(subject: Arc<impl Subject>) {
    let store = subject.store();
    let of_another = |fate| InboxEntry {
        claim: claim_of("mail.changed.v1", "1"),
        ..ordered("1", "key", fate)
    };
    queue_up(&store, "key", &["1"]).await;
    refused(&store, of_another(Fate::Handled), Refusal::Behind).await;
    done(&store, inbox([of_another(parked())])).await;
    let due = take_one(&store, "1").await;
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
    assert!(take(&store, LONG, 10).await.is_empty());
    let consumers = ["mail.changed.v1".into()];
    let due = store.deferred();
    let due = due.take_due(&consumers, "worker", LONG, 10).await;
    assert_eq!(ids(&due.expect("due messages")), ["1"]);
}

pub(super) async fn entries_of_one_commit_keep_their_order(subject: Arc<impl Subject>) {
    let store = subject.store();
    let one_after_the_other = [
        ordered("1", "key", Fate::Handled),
        ordered("2", "key", deferred()),
        ordered("3", "key", parked()),
        ordered("4", "key", parked()),
    ];
    done(&store, inbox(one_after_the_other)).await;
    let overtakes = [
        ordered("5", "another key", deferred()),
        ordered("6", "another key", Fate::Handled),
    ];
    let committed = store.commit(inbox(overtakes)).await.expect("an answer");
    let behind = Committed::Refused {
        entry: 1,
        why: Refusal::Behind,
    };
    assert_eq!(committed, behind);
    let too_late = [
        ordered("7", "a third key", parked()),
        ordered("8", "a third key", deferred()),
    ];
    let committed = store.commit(inbox(too_late)).await.expect("an answer");
    let free = Committed::Refused {
        entry: 0,
        why: Refusal::Free,
    };
    assert_eq!(committed, free);

    for message in ["2", "3", "4"] {
        let due = take_one(&store, message).await;
        done(&store, inbox([settled(&due, Fate::Handled)])).await;
    }
}

pub(super) async fn of_many_who_commit_with_one_key_one_goes_ahead(subject: Arc<impl Subject>) {
    const ROUNDS: usize = 10;
    const MESSAGES: usize = 12;
    let store = subject.store();
    for round in 0..ROUNDS {
        let mut attempts = JoinSet::new();
        for number in 0..MESSAGES {
            let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
            attempts.spawn(async move {
                let order = format!("key {round}");
                let message = format!("{round}-{number}");
                let commit = inbox([ordered(&message, &order, deferred())]);
                if number % 2 == 0 {
                    return store.commit(commit).await.expect("an answer");
                }
                let mut transaction = begin(&store).await;
                write(&subject, &mut transaction, &message).await;
                transaction.commit(commit).await.expect("an answer")
            });
        }
        let committed = attempts.join_all().await;
        let ahead = committed.iter().filter(|one| **one == Committed::Done);
        assert_eq!(ahead.count(), 1, "one goes ahead");
        let behind = Committed::Refused {
            entry: 0,
            why: Refusal::Behind,
        };
        let rest = committed.iter().filter(|one| **one == behind);
        assert_eq!(rest.count(), MESSAGES - 1, "the others are behind");
    }
}

/// Deliveries of one key race with a worker that handles what is due. Whatever is parked must be
/// woken: at the end nothing waits.
pub(super) async fn no_message_of_a_key_is_forgotten_behind_another(subject: Arc<impl Subject>) {
    const KEYS: usize = 3;
    const MESSAGES: usize = 40;
    let store = subject.store();
    let mut deliveries = JoinSet::new();
    for of in 0..KEYS {
        let store = Arc::clone(&store);
        deliveries.spawn(async move {
            for number in 0..MESSAGES {
                // One in four fails at first, so that there is always something to wait for.
                let tried = if number % 4 == 0 {
                    deferred()
                } else {
                    Fate::Handled
                };
                deliver(&store, &format!("key {of}"), number, tried).await;
            }
        });
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let worker = tokio::spawn(work(Arc::clone(&store), Arc::clone(&is_over)));
    deliveries.join_all().await;
    let deadline = Instant::now() + 2 * SOON;
    while !unhandled(&store).await.is_empty() {
        assert!(
            Instant::now() < deadline,
            "these wait for ever: {:?}",
            unhandled(&store).await
        );
        sleep(Duration::from_millis(20)).await;
    }
    is_over.store(true, Ordering::SeqCst);
    worker.await.expect("the worker works");
}

/// Commits a delivery as a consumer does: parks it behind another, or tries it.
async fn deliver(store: &Arc<dyn Store>, of: &str, number: usize, tried: Fate) {
    let message = format!("{of}: {number}");
    let mut fate = tried.clone();
    for _ in 0..1000 {
        let commit = inbox([ordered(&message, of, fate.clone())]);
        match store.commit(commit).await.expect("an answer") {
            Committed::Done => return,
            Committed::Refused {
                why: Refusal::Behind,
                ..
            } => fate = parked(),
            Committed::Refused {
                why: Refusal::Free, ..
            } => fate = tried.clone(),
            refused => panic!("`{message}` was never committed, and yet {refused:?}"),
        }
    }
    panic!("`{message}` is refused for ever");
}

/// Handles what is due.
async fn work(store: Arc<dyn Store>, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::SeqCst) {
        let due = take(&store, LONG, 10).await;
        if due.is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        for due in due {
            done(&store, inbox([settled(&due, Fate::Handled)])).await;
        }
    }
}
